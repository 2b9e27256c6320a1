//! The errors of binding an endpoint and of establishing a connection.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use super::handshake::Phase;
use crate::certificate::Fingerprint;
use crate::connection::{ConfigError, ConnectionError};
use crate::identity::PeerId;
use crate::message::DecodeError;
use crate::noise::NoiseError;

/// Why an endpoint could not be built.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum BindError {
    /// A setting is out of range.
    #[error("configuration: {0}")]
    Config(#[from] ConfigError),
    /// The name resolved to no address, or not at all.
    #[error("no address to listen on: {0}")]
    Resolve(#[source] Arc<io::Error>),
    /// The socket could not be bound.
    #[error("can not listen on {address}: {source}")]
    Socket {
        /// The address.
        address: SocketAddr,
        /// The error of the system.
        source: Arc<io::Error>,
    },
    /// The endpoint is closed.
    #[error("the endpoint is closed")]
    EndpointClosed,
}

#[cfg(feature = "websocket")]
impl From<crate::websocket::ListenError> for BindError {
    fn from(error: crate::websocket::ListenError) -> Self {
        use crate::websocket::ListenError;
        match error {
            ListenError::Config(error) => Self::Config(error),
            ListenError::Socket { address, source } => Self::Socket { address, source },
        }
    }
}

/// Why a hole could not be punched.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum PunchError {
    /// There is no listener from whose address the system would send there.
    #[error("no listener to reach {remote} from")]
    NoListener {
        /// Where the datagram was to go.
        remote: SocketAddr,
    },
    /// The datagram was not sent, and is lost.
    #[error("no datagram to {remote}: {source}")]
    Socket {
        /// Where the datagram was to go.
        remote: SocketAddr,
        /// The error of the system.
        source: Arc<io::Error>,
    },
}

/// Why a connection could not be established, in either direction.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The address has no certificate hash, so the peer could not be authenticated.
    #[error("the address has no certhash")]
    MissingCerthash,
    /// No socket could be bound for the connection.
    #[error("no socket for {remote}: {source}")]
    Socket {
        /// Where the connection was to go.
        remote: SocketAddr,
        /// The error of the system.
        source: Arc<io::Error>,
    },
    /// Nobody listens at the port: the host, or a firewall, answered repeatedly with ICMP errors
    /// and nothing else arrived.
    #[error("nobody listens at {remote}: {source}")]
    Unreachable {
        /// Where the connection was to go.
        remote: SocketAddr,
        /// The error of the system: [`io::ErrorKind::ConnectionRefused`], on Windows
        /// [`io::ErrorKind::ConnectionReset`].
        source: Arc<io::Error>,
    },
    /// The handshake took too long: the peer or the path is slow, or nobody answers.
    #[error("no connection within {after:?}: timed out during {phase}")]
    TimedOut {
        /// What was not completed.
        phase: Phase,
        /// The time limit.
        after: Duration,
    },
    /// The hash of the peer's certificate is not in the address.
    #[error("certificate hash of the peer is not in the address: {got}")]
    CertificateMismatch {
        /// The fingerprint of the peer's certificate.
        got: Fingerprint,
    },
    /// The peer proved another identity than the address names.
    #[error("expected peer {expected}, got {got}")]
    UnexpectedPeer {
        /// The identity in the address.
        expected: PeerId,
        /// The identity that the peer proved.
        got: PeerId,
    },
    /// The Noise handshake failed.
    #[error("Noise: {0}")]
    Noise(#[source] NoiseError),
    /// The peer sent a malformed frame during the handshake.
    #[error("framing during the handshake: {0}")]
    Framing(#[from] DecodeError),
    /// The peer aborted the handshake.
    #[error("the peer aborted the handshake")]
    HandshakeAborted,
    /// The connection ended before it was established.
    #[error("ended during {phase}: {cause}")]
    Ended {
        /// What was not completed.
        phase: Phase,
        /// Why it ended.
        cause: ConnectionError,
    },
    /// The listener refused the connection, because it does not accept this peer, or no more peers
    /// now.
    #[error("the listener refused the connection")]
    Refused,
    /// The endpoint has reached
    /// [`EndpointConfig::max_connections`](super::EndpointConfig::max_connections).
    #[error("the endpoint has its maximum of {max} connections")]
    TooManyConnections {
        /// [`EndpointConfig::max_connections`](super::EndpointConfig::max_connections).
        max: usize,
    },
    /// The handshake over a WebSocket failed.
    #[cfg(feature = "websocket")]
    #[error(transparent)]
    WebSocket(#[from] Box<crate::websocket::HandshakeError>),
    /// The endpoint is closed, or is drained and dials no more.
    #[error("the endpoint is closed")]
    EndpointClosed,
}

impl From<BindError> for io::Error {
    fn from(error: BindError) -> Self {
        let kind = match &error {
            BindError::Config(_) => io::ErrorKind::InvalidInput,
            BindError::Resolve(source) | BindError::Socket { source, .. } => source.kind(),
            BindError::EndpointClosed => io::ErrorKind::NotConnected,
        };
        Self::new(kind, error)
    }
}

impl From<PunchError> for io::Error {
    fn from(error: PunchError) -> Self {
        let kind = match &error {
            PunchError::NoListener { .. } => io::ErrorKind::AddrNotAvailable,
            PunchError::Socket { source, .. } => source.kind(),
        };
        Self::new(kind, error)
    }
}

impl From<ConnectError> for io::Error {
    fn from(error: ConnectError) -> Self {
        #[cfg(feature = "websocket")]
        let error = match error {
            ConnectError::WebSocket(error) => return (*error).into(),
            error => error,
        };
        let kind = match &error {
            #[cfg(feature = "websocket")]
            ConnectError::WebSocket(_) => io::ErrorKind::Other,
            ConnectError::MissingCerthash => io::ErrorKind::InvalidInput,
            ConnectError::Socket { source, .. } | ConnectError::Unreachable { source, .. } => {
                source.kind()
            }
            ConnectError::TimedOut { .. } => io::ErrorKind::TimedOut,
            ConnectError::CertificateMismatch { .. }
            | ConnectError::UnexpectedPeer { .. }
            | ConnectError::Noise(_) => io::ErrorKind::PermissionDenied,
            ConnectError::Framing(_) => io::ErrorKind::InvalidData,
            ConnectError::HandshakeAborted | ConnectError::Ended { .. } => {
                io::ErrorKind::ConnectionAborted
            }
            ConnectError::Refused => io::ErrorKind::ConnectionRefused,
            ConnectError::TooManyConnections { .. } => io::ErrorKind::QuotaExceeded,
            ConnectError::EndpointClosed => io::ErrorKind::NotConnected,
        };
        Self::new(kind, error)
    }
}
