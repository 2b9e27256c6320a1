//! The errors of length-delimited messages.

use std::io;
use std::sync::Arc;

/// Why no further message could be read.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum MessageReadError {
    /// The peer announced a message above the limit.
    #[error("message of {length} bytes, of which {max} are allowed")]
    TooLong {
        /// Length that the peer announced, in bytes.
        length: u64,
        /// The limit, in bytes.
        max: usize,
    },
    /// A length is no unsigned varint of at most 64 bits, or is not encoded minimally.
    #[error("malformed length of a message")]
    Length,
    /// The stream ended within a message.
    #[error("stream ended within a message")]
    Truncated,
    /// The substream failed.
    #[error("substream failed")]
    Substream(#[source] Arc<io::Error>),
}

impl From<MessageReadError> for io::Error {
    fn from(error: MessageReadError) -> Self {
        let kind = match &error {
            MessageReadError::TooLong { .. } | MessageReadError::Length => {
                io::ErrorKind::InvalidData
            }
            MessageReadError::Truncated => io::ErrorKind::UnexpectedEof,
            MessageReadError::Substream(source) => source.kind(),
        };
        Self::new(kind, error)
    }
}

/// Why a message could not be written.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum MessageWriteError {
    /// The message is above the limit. Nothing of it was written, and others can be.
    #[error("message of {length} bytes, of which {max} are allowed")]
    TooLong {
        /// Length of the message in bytes.
        length: usize,
        /// The limit, in bytes.
        max: usize,
    },
    /// The substream failed.
    #[error("substream failed")]
    Substream(#[source] Arc<io::Error>),
}

impl MessageWriteError {
    pub(super) fn substream(error: io::Error) -> Self {
        Self::Substream(Arc::new(error))
    }
}

impl From<MessageWriteError> for io::Error {
    fn from(error: MessageWriteError) -> Self {
        let kind = match &error {
            MessageWriteError::TooLong { .. } => io::ErrorKind::InvalidInput,
            MessageWriteError::Substream(source) => source.kind(),
        };
        Self::new(kind, error)
    }
}
