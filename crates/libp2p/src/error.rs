//! Why a connection could not be made, or has ended.

use anabranch::{BindError, ConnectError, ConnectionError, OpenError};

/// The error of the transport and of its connections. Its source says which phase has failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The address to listen on can not be bound.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The interfaces of the machine can not be watched.
    #[error("interfaces can not be watched: {0}")]
    Interfaces(#[source] std::io::Error),
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
    /// Hole punching is not supported.
    #[error("hole punching is not supported")]
    HolePunching,
}
