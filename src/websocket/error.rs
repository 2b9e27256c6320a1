//! The errors of WebSocket handshakes and listeners.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use super::tls::{ClientCertificateFault, Presented};
use crate::connection::ConfigError;
use crate::error::ConnectionError;
pub use crate::error::WebSocketError;
use crate::identity::PeerId;
use crate::noise::NoiseError;

/// Maximum length of the text of a refusal, in bytes.
const MAX_REASON: usize = 1024;

/// A phase of the handshake of a WebSocket connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum HandshakePhase {
    /// Name resolution and TCP connect; on a listener, the PROXY protocol header.
    Tcp,
    /// The TLS handshake.
    Tls,
    /// The HTTP upgrade.
    Upgrade,
    /// The Noise handshake, which proves the identities.
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

/// Why an HTTP request or response is not a valid upgrade (RFC 6455 section 4).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum UpgradeError {
    /// The `Host` of the request is not in [`RequestPolicy::hosts`](super::RequestPolicy::hosts).
    /// Answered with status 421.
    #[error("host {host:?} is not served here")]
    ForeignHost {
        /// The header `Host`.
        host: String,
    },
    /// The origin of the page may not connect; see [`Origins`](super::Origins). Answered with
    /// status 403.
    #[error("origin {origin:?} may not connect")]
    ForeignOrigin {
        /// The header `Origin`.
        origin: String,
    },
    /// The request head has more than 8 KiB, or more than 100 headers. Answered with status 431.
    #[error("request head too long")]
    HeadTooLong,
    /// The `Sec-WebSocket-Accept` of the response does not match the key.
    #[error("Sec-WebSocket-Accept does not match the key")]
    InvalidAccept,
    /// The request has no `Sec-WebSocket-Key` of 16 bytes. Answered with status 400.
    #[error("no valid Sec-WebSocket-Key")]
    InvalidKey,
    /// Not valid HTTP. Answered with status 400.
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
        /// The status of the response.
        status: u16,
        /// The body of the response.
        reason: String,
    },
    /// A header that may occur once is repeated. Answered with status 400.
    #[error("header {0} is repeated")]
    RepeatedHeader(&'static str),
    /// The response selects none of the offered subprotocols, or the request offers none that is
    /// supported. Answered with status 400.
    #[error("subprotocol {returned:?} for the offer {offered:?}")]
    SubprotocolMismatch {
        /// The offer of the client.
        offered: Vec<String>,
        /// The choice of the server; `None` if it made none.
        returned: Option<String>,
    },
    /// The response has a status other than 101.
    #[error("HTTP status {status}")]
    UnexpectedStatus {
        /// The status.
        status: u16,
    },
    /// The path of the request is not in [`RequestPolicy::paths`](super::RequestPolicy::paths).
    /// Answered with status 404.
    #[error("no WebSocket at path {path:?}")]
    UnknownPath {
        /// The path of the request.
        path: String,
    },
    /// The response selects an extension, and none was offered.
    #[error("extension {0:?} was not offered")]
    UnsupportedExtension(String),
    /// The request has another HTTP version than 1. Answered with status 505.
    #[error("unsupported HTTP version")]
    UnsupportedHttp,
    /// The request is not a GET. Answered with status 405.
    #[error("request method is not GET")]
    WrongMethod,
    /// The request has another WebSocket version than 13. Answered with status 426.
    #[error("WebSocket version is not 13")]
    WrongVersion,
}

impl UpgradeError {
    /// Refuses a request with `status`, 400 to 599 (any other becomes 403), and `reason`, which is
    /// truncated to 1 KiB.
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

/// Why a connection over a WebSocket could not be established, in either direction.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum HandshakeError {
    /// A setting is out of range.
    #[error("configuration: {0}")]
    Config(#[from] ConfigError),
    /// The TCP connection failed.
    #[error("no connection to {target}: {source}")]
    Connect {
        /// Host and port.
        target: String,
        /// The error of the system.
        source: Arc<io::Error>,
    },
    /// The WebSocket ended during the handshake.
    #[error("ended during {phase}: {cause}")]
    Ended {
        /// What was not completed.
        phase: HandshakePhase,
        /// Why it ended.
        cause: ConnectionError,
    },
    /// The listener requires a certificate of the client
    /// ([`TlsIdentity::with_client_trust`](super::TlsIdentity::with_client_trust)), and the client
    /// has presented none. On both sides.
    #[error("the listener requires a client certificate")]
    ClientCertificateMissing,
    /// The listener does not accept the certificate of the client. On both sides.
    #[error("the listener does not accept the client certificate: {0}")]
    ClientCertificateRefused(#[source] Arc<io::Error>),
    /// The peer aborted the handshake, or sent frames that do not belong to it.
    #[error("the peer aborted the handshake")]
    Aborted,
    /// [`ChannelBinding::TlsExporter`](super::ChannelBinding::TlsExporter) was chosen for a
    /// connection without TLS.
    #[error("channel binding requires TLS")]
    NoTlsToBind,
    /// The Noise handshake failed.
    #[error("Noise: {0}")]
    Noise(#[source] NoiseError),
    /// [`Authentication::Tls`](super::Authentication::Tls) was chosen for an address without TLS.
    #[error("authentication by TLS requires wss://")]
    PlaintextServer,
    /// The address names a peer, and the configured authentication proves no identity.
    #[error("the address names peer {0}, which requires Noise")]
    PeerNeedsNoise(PeerId),
    /// A client behind a trusted proxy connects too often, or has too many concurrent handshakes.
    /// Answered with status 503.
    #[error("{client} connects too often")]
    TooManyFromClient {
        /// The address of the client.
        client: SocketAddr,
    },
    /// The listener has reached its maximum of connections. Answered with status 503.
    #[error("the listener has its maximum of {max} connections")]
    TooManyConnections {
        /// [`ListenerConfig::max_connections`](super::ListenerConfig::max_connections).
        max: usize,
    },
    /// The handshake took too long.
    #[error("no connection within {after:?}: timed out during {phase}")]
    TimedOut {
        /// What was not completed.
        phase: HandshakePhase,
        /// The time limit.
        after: Duration,
    },
    /// TLS failed: for example the certificate is not trusted, or the peer does not support TLS.
    #[error("TLS: {0}")]
    Tls(#[source] Arc<io::Error>),
    /// The peer proved another identity than the expected one.
    #[error("expected peer {expected}, got {got}")]
    UnexpectedPeer {
        /// The expected identity.
        expected: PeerId,
        /// The identity that the peer proved.
        got: PeerId,
    },
    /// The HTTP upgrade failed.
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
    /// TLS could not begin, or failed for a reason that is not about a client certificate.
    pub(super) fn tls(error: io::Error) -> Self {
        Self::Tls(Arc::new(error))
    }

    /// TLS failed on a client that has presented this.
    pub(super) fn tls_at_client(error: io::Error, presented: Presented) -> Self {
        Self::reported(error, presented).unwrap_or_else(Self::tls)
    }

    /// TLS failed on the server.
    pub(super) fn tls_at_server(error: io::Error) -> Self {
        match ClientCertificateFault::found(&error) {
            Some(fault) => Self::client_certificate(fault, error),
            None => Self::tls(error),
        }
    }

    /// The server has reported that it does not accept the certificate of this client, or that the
    /// client has presented none.
    ///
    /// # Errors
    /// The same error, if it says something else.
    pub(super) fn reported(error: io::Error, presented: Presented) -> Result<Self, io::Error> {
        match ClientCertificateFault::reported(&error, presented) {
            Some(fault) => Ok(Self::client_certificate(fault, error)),
            None => Err(error),
        }
    }

    fn client_certificate(fault: ClientCertificateFault, error: io::Error) -> Self {
        match fault {
            ClientCertificateFault::Missing => Self::ClientCertificateMissing,
            ClientCertificateFault::Refused => Self::ClientCertificateRefused(Arc::new(error)),
        }
    }

    pub(super) fn is_about_client_certificate(&self) -> bool {
        matches!(
            self,
            Self::ClientCertificateMissing | Self::ClientCertificateRefused(_)
        )
    }

    /// The HTTP status, if the server answered with another than 101.
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
            | HandshakeError::ClientCertificateMissing
            | HandshakeError::ClientCertificateRefused(_)
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

/// Why a listener could not be bound.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum ListenError {
    /// A setting is out of range.
    #[error("configuration: {0}")]
    Config(#[from] ConfigError),
    /// The socket could not be bound.
    #[error("can not listen on {address}: {source}")]
    Socket {
        /// The address.
        address: SocketAddr,
        /// The error of the system.
        source: Arc<io::Error>,
    },
}
