//! The errors of WebSockets.

use std::io;

use super::ConnectionError;
use crate::message::DecodeError;

/// Why the WebSocket under a connection ended without an orderly close.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WebSocketError {
    /// The peer closed it with a code that is not one of an orderly close.
    #[error("closed by the peer with code {code}: {reason}")]
    Closed {
        /// The code of the close frame (RFC 6455 section 7.4).
        code: u16,
        /// The reason in it.
        reason: String,
    },
    /// A message is empty. Answered with close code 1002.
    #[error("empty message")]
    EmptyMessage,
    /// A message does not contain valid frames. Answered with close code 1002.
    #[error("invalid framing: {0}")]
    Framing(#[source] DecodeError),
    /// A text message, or the reason of a close, is not UTF-8. Answered with close code 1007.
    #[error("invalid UTF-8")]
    InvalidUtf8,
    /// The socket failed.
    #[error("{message}")]
    Io {
        /// The kind of the error.
        kind: io::ErrorKind,
        /// The message of the error.
        message: String,
    },
    /// The socket ended without a close frame.
    #[error("the socket ended without a close frame")]
    Lost,
    /// A message, or a frame of one, exceeds the maximum length. Answered with close code 1009.
    #[error("message of {size} bytes exceeds the maximum of {max}")]
    MessageTooLong {
        /// Its length in bytes, as far as announced.
        size: usize,
        /// `WebSocketConfig::max_message`; on a server 4 224 until Noise has succeeded.
        max: usize,
    },
    /// A new substream has no label. Answered with close code 1002.
    #[error("the first frame of substream {stream} has no label")]
    MissingLabel {
        /// The number of the substream.
        stream: u64,
    },
    /// A frame has no substream number. Answered with close code 1002.
    #[error("frame without a substream number")]
    MissingStream,
    /// The peer does not read, and causes ever more bytes to be queued. Answered with close code
    /// 1008.
    #[error("{queued} bytes are queued for a peer that does not read")]
    NotReading {
        /// Queued bytes.
        queued: usize,
    },
    /// The peer violated RFC 6455. Answered with close code 1002.
    #[error("RFC 6455: {0}")]
    Protocol(String),
    /// A text message, which is not supported. Answered with close code 1003.
    #[error("text message")]
    Text,
    /// A frame that is not the first of its substream has a label. Answered with close code 1002.
    #[error("a later frame of substream {stream} has a label")]
    UnexpectedLabel {
        /// The number of the substream.
        stream: u64,
    },
    /// The number of a new substream is invalid: lower than an earlier one, of this side's parity,
    /// reserved, or too large. Answered with close code 1002.
    #[error("invalid number {stream} for a new substream of the peer")]
    UnexpectedStream {
        /// The number.
        stream: u64,
    },
}

impl From<WebSocketError> for ConnectionError {
    fn from(error: WebSocketError) -> Self {
        Self::WebSocket(error)
    }
}
