//! Why a WebSocket ended.

use std::io;

use super::ConnectionError;
use crate::message::DecodeError;

/// Why the WebSocket under a connection ended, where nobody closed it in an orderly way.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WebSocketError {
    /// The peer ended it with this close code, which is none of an orderly end.
    #[error("the peer closed it with {code}: {reason}")]
    Closed {
        /// The code of the close frame (RFC 6455 section 7.4).
        code: u16,
        /// The reason in it.
        reason: String,
    },
    /// A message has no bytes. Answered with close code 1002.
    #[error("a message is empty")]
    EmptyMessage,
    /// The bytes of a message are not frames. Answered with close code 1002.
    #[error("bad framing: {0}")]
    Framing(#[source] DecodeError),
    /// A text message, or the reason of a close, is not UTF-8. Answered with close code 1007.
    #[error("text that is not UTF-8")]
    InvalidUtf8,
    /// The socket failed.
    #[error("{message}")]
    Io {
        /// What kind of failure it is.
        kind: io::ErrorKind,
        /// What the system says.
        message: String,
    },
    /// The socket ended without a close frame.
    #[error("the socket ended without a close")]
    Lost,
    /// A message, or a frame of one, is longer than is accepted. Nothing of it was kept. Answered with close code
    /// 1009.
    #[error("a message of {size} bytes is longer than {max}")]
    MessageTooLong {
        /// Its bytes, as far as they were announced.
        size: usize,
        /// `WebSocketConfig::max_message`; of a server 4 224
        /// until Noise has succeeded.
        max: usize,
    },
    /// A new substream has no label. Answered with close code 1002.
    #[error("the first frame of substream {stream} has no label")]
    MissingLabel {
        /// The number of the substream.
        stream: u64,
    },
    /// A frame does not say which substream it is of. Answered with close code 1002.
    #[error("a frame names no substream")]
    MissingStream,
    /// What the peer causes to be sent grows, and the peer reads none of it. Answered with close code 1008.
    #[error("{queued} bytes of answers wait for a peer that does not read")]
    NotReading {
        /// Bytes that wait.
        queued: usize,
    },
    /// The peer broke RFC 6455. Answered with close code 1002.
    #[error("RFC 6455: {0}")]
    Protocol(String),
    /// A text message, which has no meaning here. Answered with close code 1003.
    #[error("a text message")]
    Text,
    /// A label stands on a frame that is not the first of its substream. Answered with close code 1002.
    #[error("a later frame of substream {stream} has a label")]
    UnexpectedLabel {
        /// The number of the substream.
        stream: u64,
    },
    /// A new substream has a number that the peer may not give it: lower than an earlier one, of this side's
    /// parity, reserved, or too large. Answered with close code 1002.
    #[error("{stream} is no number for a new substream of the peer")]
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
