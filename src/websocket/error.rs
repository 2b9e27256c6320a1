//! What goes wrong on a WebSocket, before and after it is one.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use crate::connection::ConfigError;
use crate::error::ConnectionError;
pub use crate::error::WebSocketError;
use crate::identity::PeerId;
use crate::noise::NoiseError;

/// Longest text of a refusal.
const MAX_REASON: usize = 1024;

/// How far the opening of a WebSocket connection has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum HandshakePhase {
    /// The name is looked up and the TCP connection made; of a listener, the header of a PROXY protocol is awaited.
    Tcp,
    /// TLS is being set up.
    Tls,
    /// HTTP is being upgraded.
    Upgrade,
    /// Noise proves the identities.
    Noise,
}

impl std::fmt::Display for HandshakePhase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Tls => "TLS",
            Self::Upgrade => "HTTP upgrade",
            Self::Noise => "Noise",
        })
    }
}

/// Why an HTTP request or response is not the upgrade that was wanted (RFC 6455 section 4).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum UpgradeError {
    /// The request is for another host than [`RequestPolicy::hosts`](super::RequestPolicy::hosts). Answered with status
    /// 421.
    #[error("the host {host:?} is none of this server")]
    ForeignHost {
        /// The header `Host`.
        host: String,
    },
    /// The request is of a page that may not connect; see [`Origins`](super::Origins). Answered with status 403.
    #[error("pages of {origin:?} may not connect")]
    ForeignOrigin {
        /// The header `Origin`.
        origin: String,
    },
    /// The head of the request has more than 8 KiB, or more than 100 headers. Answered with status 431.
    #[error("the head of the request is too long")]
    HeadTooLong,
    /// The answer has another `Sec-WebSocket-Accept` than belongs to the key.
    #[error("Sec-WebSocket-Accept does not belong to the key")]
    InvalidAccept,
    /// The request has no `Sec-WebSocket-Key` of 16 bytes. Answered with status 400.
    #[error("no valid Sec-WebSocket-Key")]
    InvalidKey,
    /// Not HTTP, or not as it has to be. Answered with status 400.
    #[error("malformed HTTP: {0}")]
    Malformed(String),
    /// No `Connection` header with the token `Upgrade`. Answered with status 426.
    #[error("no Connection: Upgrade")]
    MissingConnection,
    /// No `Upgrade: websocket` header. Answered with status 426.
    #[error("no Upgrade: websocket")]
    MissingUpgrade,
    /// [`RequestPolicy::with_hook`](super::RequestPolicy::with_hook) refused the request; see
    /// [`UpgradeError::refused`]. A client gets [`UpgradeError::UnexpectedStatus`] then.
    #[error("refused with status {status}: {reason}")]
    Refused {
        /// The status of the answer.
        status: u16,
        /// What stands in the answer.
        reason: String,
    },
    /// A header is repeated that may stand there once only. Answered with status 400.
    #[error("{0} is repeated")]
    RepeatedHeader(&'static str),
    /// The answer has none of the subprotocols that were offered, or the request offers none that is spoken. Answered
    /// with status 400.
    #[error("subprotocol {returned:?}, where {offered:?} was offered")]
    SubprotocolMismatch {
        /// What the client offered.
        offered: Vec<String>,
        /// What the server chose, or would have; `None` for nothing.
        returned: Option<String>,
    },
    /// The answer has a status other than 101.
    #[error("HTTP status {status}")]
    UnexpectedStatus {
        /// The status.
        status: u16,
    },
    /// Nothing is upgraded at this path; see [`RequestPolicy::paths`](super::RequestPolicy::paths). Answered with
    /// status 404.
    #[error("nothing is upgraded at {path:?}")]
    UnknownPath {
        /// The path of the request.
        path: String,
    },
    /// The answer names an extension, and none was offered.
    #[error("extension {0:?}, where none was offered")]
    UnsupportedExtension(String),
    /// The request is of another version of HTTP than 1. Answered with status 505.
    #[error("a version of HTTP that is not spoken")]
    UnsupportedHttp,
    /// The request is not a GET. Answered with status 405.
    #[error("the request is no GET")]
    WrongMethod,
    /// The request asks for another version of the WebSocket protocol than 13. Answered with status 426.
    #[error("the request is not of WebSocket version 13")]
    WrongVersion,
}

impl UpgradeError {
    /// Refuses a request with this status, 400 to 599 (another one counts as 403), and this text of at most 1 KiB.
    pub fn refused(status: u16, reason: impl Into<String>) -> Self {
        let mut reason = reason.into();
        let mut end = reason.len().min(MAX_REASON);
        while !reason.is_char_boundary(end) {
            end -= 1;
        }
        reason.truncate(end);
        let status = if (400..600).contains(&status) {
            status
        } else {
            403
        };
        Self::Refused { status, reason }
    }
}

/// Why a connection over a WebSocket could not be opened, from either side.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HandshakeError {
    /// The settings can not work together.
    #[error("configuration: {0}")]
    Config(#[from] ConfigError),
    /// No TCP connection.
    #[error("no connection to {target}: {source}")]
    Connect {
        /// Host and port.
        target: String,
        /// What the system says.
        source: io::Error,
    },
    /// The WebSocket ended before the peer had proven who it is.
    #[error("ended during {phase}: {cause}")]
    Ended {
        /// What was not completed.
        phase: HandshakePhase,
        /// Why.
        cause: ConnectionError,
    },
    /// Framing, flags or bytes that do not belong into the handshake.
    #[error("the peer broke the handshake off")]
    Aborted,
    /// Keys of the TLS session were asked for, and there is none.
    #[error("the channel binding needs TLS, and this connection has none")]
    NoTlsToBind,
    /// Noise failed.
    #[error("Noise: {0}")]
    Noise(#[source] NoiseError),
    /// [`Authentication::Tls`](super::Authentication::Tls) was chosen for an address without TLS.
    #[error("ws:// proves nothing about the server, and TLS was to prove it")]
    PlaintextServer,
    /// The address names a peer, and the chosen authentication proves no identity.
    #[error("the address names peer {0}, which only Noise can prove")]
    PeerNeedsNoise(PeerId),
    /// A client that a trusted proxy has named has connected too often, or has too many handshakes under way. Answered
    /// with status 503.
    #[error("{client} connects too often")]
    TooManyFromClient {
        /// Where the client is.
        client: SocketAddr,
    },
    /// The listener has no room. Answered with status 503.
    #[error("the listener has {max} connections, and may have no more")]
    TooManyConnections {
        /// [`ListenerConfig::max_connections`](super::ListenerConfig::max_connections).
        max: usize,
    },
    /// Not done in time.
    #[error("no connection within {after:?}: got as far as {phase}")]
    TimedOut {
        /// What was not completed.
        phase: HandshakePhase,
        /// The time it was given.
        after: Duration,
    },
    /// TLS failed: the certificate is not trusted, or the peer speaks none.
    #[error("TLS: {0}")]
    Tls(#[source] io::Error),
    /// The peer proved another identity than was wanted.
    #[error("expected peer {expected}, got {got}")]
    UnexpectedPeer {
        /// The identity that was wanted.
        expected: PeerId,
        /// The identity that was proven.
        got: PeerId,
    },
    /// HTTP was not upgraded.
    #[error("upgrade: {0}")]
    Upgrade(#[from] UpgradeError),
}

impl From<NoiseError> for HandshakeError {
    fn from(error: NoiseError) -> Self {
        match error {
            NoiseError::UnexpectedPeer { expected, got } => Self::UnexpectedPeer { expected, got },
            error => Self::Noise(error),
        }
    }
}

impl HandshakeError {
    /// The HTTP status, if the server answered with another one than 101.
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Upgrade(UpgradeError::UnexpectedStatus { status }) => Some(*status),
            _ => None,
        }
    }
}

impl From<HandshakeError> for io::Error {
    fn from(error: HandshakeError) -> Self {
        let kind = match &error {
            HandshakeError::Config(_)
            | HandshakeError::NoTlsToBind
            | HandshakeError::PeerNeedsNoise(_)
            | HandshakeError::PlaintextServer => io::ErrorKind::InvalidInput,
            HandshakeError::Connect { source, .. } => source.kind(),
            HandshakeError::Ended { .. } | HandshakeError::Aborted => {
                io::ErrorKind::ConnectionAborted
            }
            HandshakeError::Noise(_)
            | HandshakeError::Tls(_)
            | HandshakeError::UnexpectedPeer { .. } => io::ErrorKind::PermissionDenied,
            HandshakeError::TimedOut { .. } => io::ErrorKind::TimedOut,
            HandshakeError::TooManyConnections { .. }
            | HandshakeError::TooManyFromClient { .. } => io::ErrorKind::QuotaExceeded,
            HandshakeError::Upgrade(UpgradeError::UnexpectedStatus { .. }) => {
                io::ErrorKind::ConnectionRefused
            }
            HandshakeError::Upgrade(_) => io::ErrorKind::InvalidData,
        };
        Self::new(kind, error)
    }
}

/// Why a listener could not be started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ListenError {
    /// The settings can not work together.
    #[error("configuration: {0}")]
    Config(#[from] ConfigError),
    /// The socket can not be had.
    #[error("listening on {address}: {source}")]
    Socket {
        /// Where.
        address: SocketAddr,
        /// What the system says.
        source: io::Error,
    },
}
