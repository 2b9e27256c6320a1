//! Why an operation on a connection failed.

use crate::carrier::OpenChannelError;
use crate::error::ConnectionError;

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
