//! Why a connection could not be made, or has ended.

use std::sync::Arc;

use anabranch::{BindError, ConfigError, ConnectError, ConnectionError, OpenError};

/// The error of the transport and of its connections. Its source says which phase has failed.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The address to listen on can not be bound.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// A setting of the transport is out of range.
    #[error("configuration: {0}")]
    Settings(#[from] ConfigError),
    /// The interfaces of the machine can not be watched.
    #[error("interfaces can not be watched: {0}")]
    Interfaces(#[source] Arc<std::io::Error>),
    /// The handshake has failed.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The peer has proven no identity.
    #[error("the peer has proven no identity")]
    NoPeerId,
    /// The connection has ended.
    #[error(transparent)]
    Connection(#[from] ConnectionError),
    /// A substream could not be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// A hole is punched from a port that listens, and there is none of the family of the address.
    #[error("no listener to punch a hole from")]
    NoListener,
    /// The peer of a hole punch did not arrive in time.
    #[error("nobody came through the punched hole")]
    NotPunched,
    /// A peer for which a hole was punched meanwhile: the connection is that of the dial.
    #[error("the connection is that of a dial as a listener")]
    Punched,
    /// The peer connected a moment before a hole was to be punched for it. Another attempt expects
    /// another dial of the peer.
    #[error("the peer has just connected by itself")]
    AlreadyConnected,
    /// A hole to the same address is being punched already.
    #[error("the same hole is being punched already")]
    PunchInProgress,
}
