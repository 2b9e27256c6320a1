//! Why an endpoint could not be made, or a connection not be established.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use super::handshake::Phase;
use crate::certificate::Fingerprint;
use crate::connection::{ConfigError, ConnectionError};
use crate::identity::PeerId;
use crate::message::DecodeError;
use crate::noise::NoiseError;

/// Why an endpoint could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BindError {
    /// The configuration can not work.
    #[error("configuration: {0}")]
    Config(#[from] ConfigError),
    /// The name resolved to no address, or not at all.
    #[error("no address to listen on: {0}")]
    Resolve(#[source] io::Error),
    /// The socket could not be bound.
    #[error("can not listen on {address}: {source}")]
    Socket {
        /// The address.
        address: SocketAddr,
        /// What the system says.
        source: io::Error,
    },
}

/// Why a connection could not be established, in either direction.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The address has no certificate hash, so the peer could not be told from anybody else.
    #[error("the address has no certhash")]
    MissingCerthash,
    /// No socket for the connection.
    #[error("no socket towards {remote}: {source}")]
    Socket {
        /// Where the connection was to go.
        remote: SocketAddr,
        /// What the system says.
        source: io::Error,
    },
    /// Nobody listens at the port: the host, or a firewall, has answered several times with an ICMP error, and
    /// nothing else came.
    #[error("nobody listens at {remote}: {source}")]
    Unreachable {
        /// Where the connection was to go.
        remote: SocketAddr,
        /// What the system says: [`io::ErrorKind::ConnectionRefused`], on Windows
        /// [`io::ErrorKind::ConnectionReset`].
        source: io::Error,
    },
    /// The peer, or the path to it, was too slow, or nobody is there.
    #[error("no connection within {after:?}: got as far as {phase}")]
    TimedOut {
        /// What was not completed.
        phase: Phase,
        /// The time it was given.
        after: Duration,
    },
    /// The peer's certificate is none of those in the address.
    #[error("the peer's certificate has another hash: {got}")]
    CertificateMismatch {
        /// The certificate's fingerprint.
        got: Fingerprint,
    },
    /// The peer proved another identity than the address names.
    #[error("expected peer {expected}, got {got}")]
    UnexpectedPeer {
        /// The identity in the address.
        expected: PeerId,
        /// The identity that was proven.
        got: PeerId,
    },
    /// The Noise handshake failed.
    #[error("Noise: {0}")]
    Noise(#[source] NoiseError),
    /// The peer broke the framing during the handshake.
    #[error("framing during the handshake: {0}")]
    Framing(#[from] DecodeError),
    /// The peer broke the handshake off.
    #[error("the peer broke the handshake off")]
    HandshakeAborted,
    /// The connection ended before it was established.
    #[error("ended during {phase}: {cause}")]
    Ended {
        /// What was not completed.
        phase: Phase,
        /// Why it ended.
        cause: ConnectionError,
    },
    /// The listener answered that it does not want this peer, or no more of them now.
    #[error("the listener refused")]
    Refused,
    /// This endpoint has as many connections as it may.
    #[error("the endpoint has {max} connections, and may have no more")]
    TooManyConnections {
        /// [`EndpointConfig::max_connections`](super::EndpointConfig::max_connections).
        max: usize,
    },
    /// The endpoint is closed.
    #[error("the endpoint is closed")]
    EndpointClosed,
}

impl From<ConnectError> for io::Error {
    fn from(error: ConnectError) -> Self {
        let kind = match &error {
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
