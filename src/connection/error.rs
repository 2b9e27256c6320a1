//! Why a connection, or an operation on it, ended.

use crate::carrier::OpenChannelError;

/// Why a connection ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectionError {
    /// This side closed it, or dropped every handle to it.
    #[error("closed locally")]
    ClosedLocally,
    /// The peer closed it.
    #[error("closed by the peer")]
    ClosedByPeer,
    /// Nothing came from the peer for too long.
    #[error("the peer does not answer any more")]
    TimedOut,
    /// The carrier failed.
    #[error("the carrier failed: {0}")]
    Carrier(String),
}

impl ConnectionError {
    /// Whether the connection ended because one side wanted it to.
    pub fn is_orderly(&self) -> bool {
        matches!(self, Self::ClosedLocally | Self::ClosedByPeer)
    }
}

/// Why a substream could not be opened.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The connection has ended.
    #[error("the connection ended: {0}")]
    Connection(#[source] ConnectionError),
    /// The carrier has no channel for it.
    #[error("no channel: {0}")]
    Channel(#[source] OpenChannelError),
    /// The peer speaks none of the protocols that were offered.
    #[error("the peer does not speak {0:?}")]
    UnsupportedProtocol(String),
    /// The peer did not answer in time.
    #[error("no answer within the open timeout")]
    TimedOut,
    /// The peer broke the negotiation off, or spoke something else.
    #[error("negotiation failed: {0}")]
    Negotiation(String),
}
