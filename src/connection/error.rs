//! Why an operation on a connection failed.

use std::io;

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
    /// The connection takes no new substreams, since this side or the peer drains it
    /// ([`Connection::drain`](crate::Connection::drain)). Those that are open go on.
    #[error("the connection takes no new substreams")]
    Draining,
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

impl From<OpenError> for io::Error {
    fn from(error: OpenError) -> Self {
        let kind = match &error {
            OpenError::Connection(cause) => Self::from(cause.clone()).kind(),
            OpenError::Channel(cause) => match cause {
                OpenChannelError::LabelTooLong { .. } => io::ErrorKind::InvalidInput,
                OpenChannelError::Closed | OpenChannelError::GoingAway => {
                    io::ErrorKind::NotConnected
                }
                _ => io::ErrorKind::QuotaExceeded,
            },
            OpenError::Draining => io::ErrorKind::NotConnected,
            OpenError::UnsupportedProtocol(_) => io::ErrorKind::Unsupported,
            OpenError::TimedOut => io::ErrorKind::TimedOut,
            OpenError::Negotiation(_) => io::ErrorKind::InvalidData,
        };
        Self::new(kind, error)
    }
}
