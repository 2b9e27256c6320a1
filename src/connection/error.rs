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
    /// The carrier can not open a channel.
    #[error("cannot open a channel: {0}")]
    Channel(#[source] OpenChannelError),
    /// The peer supports none of the offered protocols.
    #[error("the peer does not support {0:?}")]
    UnsupportedProtocol(String),
    /// The peer did not answer in time.
    #[error("no answer within the open timeout")]
    TimedOut,
    /// The peer aborted the negotiation or sent something else.
    #[error("negotiation failed: {0}")]
    Negotiation(String),
}
