//! The errors of payloads.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::{ConnectionError, SubstreamError};

/// Codes of RESET_STREAM that end a payload.
pub mod code {
    /// The payload exceeds the maximum length of the receiver.
    pub const TOO_LARGE: u32 = 0x2101;
    /// The receiver has its maximum of open payloads.
    pub const TOO_MANY: u32 = 0x2102;
    /// A [`TimeLimit`](super::TimeLimit) expired.
    pub const EXPIRED: u32 = 0x2103;
    /// The header, or another message around the bytes, is invalid.
    pub const BAD_MESSAGE: u32 = 0x2104;
    /// There are more bytes than announced in the header.
    pub const OVERFLOW: u32 = 0x2105;
    /// There are fewer bytes than announced in the header.
    pub const TRUNCATED: u32 = 0x2106;
    /// The bytes do not match the hash, or the hash is missing.
    pub const HASH_MISMATCH: u32 = 0x2107;
    /// One side dropped the payload, or the application cancelled it with this code.
    pub const CANCELLED: u32 = 0x2108;
    /// The application could not read the sent payload, or not write the received one.
    pub const LOCAL_FAILURE: u32 = 0x2109;
}

/// Which time limit expired.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum TimeLimit {
    /// [`PayloadConfig::idle_timeout`](crate::payload::PayloadConfig::idle_timeout): there was no
    /// progress.
    Idle,
    /// [`PayloadConfig::time_limit`](crate::payload::PayloadConfig::time_limit): the payload took
    /// too long in total.
    Total,
}

/// Why an operation was interrupted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Interrupt {
    Cancelled(u32),
    Expired { limit: TimeLimit, after: Duration },
}

/// Why a message could not be read.
#[derive(Debug)]
pub(crate) enum ReadError {
    /// The substream failed.
    Io(io::Error),
    /// The stream ended before or within the message.
    End,
    /// The message is invalid.
    Bad(MessageError),
}

/// Why a header, or another message around the bytes of a payload, is invalid.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MessageError {
    /// The length prefix is not a varint in its shortest form.
    #[error("the length is not a minimal varint")]
    Length,
    /// The length prefix exceeds the maximum. Nothing of the message was buffered.
    #[error("{len} bytes exceed the maximum of {max}")]
    TooLong {
        /// The announced length in bytes.
        len: u64,
        /// The maximum.
        max: usize,
    },
    /// The message is not the expected protobuf message.
    #[error("not protobuf: {0}")]
    Protobuf(String),
    /// The metadata is longer than
    /// [`PayloadConfig::max_metadata`](crate::payload::PayloadConfig::max_metadata).
    #[error("{len} bytes of metadata are more than {max}")]
    MetadataTooLong {
        /// Its length in bytes.
        len: usize,
        /// The maximum.
        max: usize,
    },
    /// The hash function is not supported by this version.
    #[error("unknown hash function {0}")]
    UnknownHash(i32),
    /// The header offers to resume, which requires a length and a hash.
    #[error("resumable without a length and a hash")]
    NotResumable,
    /// The payload can not be resumed at this offset.
    #[error("can not be resumed at {offset}")]
    BadOffset {
        /// The offset.
        offset: u64,
    },
    /// A hash has the wrong length.
    #[error("a hash of {0} bytes")]
    HashLength(usize),
    /// The receipt confirms another number of bytes than were sent.
    #[error("{confirmed} of {total} bytes confirmed")]
    BadReceipt {
        /// Confirmed bytes.
        confirmed: u64,
        /// Sent bytes.
        total: u64,
    },
    /// The stream ended before the message was complete.
    #[error("the stream ended")]
    End,
}

/// The code with which the other side ended a payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Rejection {
    /// [`code::TOO_LARGE`].
    TooLarge,
    /// [`code::TOO_MANY`].
    TooMany,
    /// [`code::EXPIRED`].
    Expired,
    /// [`code::BAD_MESSAGE`].
    BadMessage,
    /// [`code::OVERFLOW`].
    Overflow,
    /// [`code::TRUNCATED`].
    Truncated,
    /// [`code::HASH_MISMATCH`].
    HashMismatch,
    /// [`code::CANCELLED`].
    Cancelled,
    /// [`code::LOCAL_FAILURE`].
    LocalFailure,
    /// Another code, of the application or of the substream ([`crate::substream::code`]).
    Code(u32),
    /// There was no code.
    Unspecified,
}

impl From<Option<u32>> for Rejection {
    fn from(code: Option<u32>) -> Self {
        match code {
            Some(code::TOO_LARGE) => Self::TooLarge,
            Some(code::TOO_MANY) => Self::TooMany,
            Some(code::EXPIRED) => Self::Expired,
            Some(code::BAD_MESSAGE) => Self::BadMessage,
            Some(code::OVERFLOW) => Self::Overflow,
            Some(code::TRUNCATED) => Self::Truncated,
            Some(code::HASH_MISMATCH) => Self::HashMismatch,
            Some(code::CANCELLED) => Self::Cancelled,
            Some(code::LOCAL_FAILURE) => Self::LocalFailure,
            Some(other) => Self::Code(other),
            None => Self::Unspecified,
        }
    }
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self {
            Self::TooLarge => "it is too large",
            Self::TooMany => "too many payloads are open",
            Self::Expired => "it took too long",
            Self::BadMessage => "a message around it is invalid",
            Self::Overflow => "there was more of it than announced",
            Self::Truncated => "there was less of it than announced",
            Self::HashMismatch => "its hash does not match",
            Self::Cancelled => "it was cancelled",
            Self::LocalFailure => "it could not be read or stored there",
            Self::Code(code) => return write!(f, "code {code:#x}"),
            Self::Unspecified => "without a code",
        };
        f.write_str(text)
    }
}

/// Why a payload was not received completely.
///
/// Bytes received before the error have been delivered, except those that a RESET_STREAM of the
/// sender dropped before they were read.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum PayloadError {
    /// It is longer than [`PayloadConfig::max_total`](crate::payload::PayloadConfig::max_total), or
    /// than the limit of [`Payload::assemble`](crate::payload::Payload::assemble). With a length in
    /// the header nothing was allocated; a payload of unknown length is received up to the limit.
    #[error("the payload of {len} bytes is longer than {max}")]
    TooLarge {
        /// Its length in bytes; if unknown, what has arrived so far.
        len: u64,
        /// The maximum.
        max: u64,
    },
    /// [`PayloadConfig::max_open`](crate::payload::PayloadConfig::max_open) payloads are open, or
    /// [`max_open_per_connection`](crate::payload::PayloadConfig::max_open_per_connection)
    /// of this connection. This one was refused; the open ones are not affected.
    #[error("{open} of at most {max} payloads are open")]
    TooMany {
        /// Number of open payloads.
        open: usize,
        /// The maximum.
        max: usize,
    },
    /// The stream ended too early: by FIN before the last byte, or with the connection.
    #[error("the payload ended after {got} of {} bytes", Wanted(.want))]
    Truncated {
        /// Bytes received and delivered.
        got: u64,
        /// The announced length; `None` if the sender did not know it.
        want: Option<u64>,
        /// The error of the substream; `None` if the sender ended it with FIN.
        #[source]
        cause: Option<SubstreamError>,
    },
    /// More bytes arrived than the header announced.
    #[error("{got} bytes arrived of a payload of {want}")]
    Overflow {
        /// Bytes received when this was detected.
        got: u64,
        /// The announced length.
        want: u64,
    },
    /// It took too long; see [`PayloadConfig`](crate::payload::PayloadConfig).
    #[error("the payload expired after {received} bytes: {}", Limit(.limit, .after))]
    Expired {
        /// Which time limit expired.
        limit: TimeLimit,
        /// The time limit.
        after: Duration,
        /// Bytes received and delivered.
        received: u64,
    },
    /// The header, or a message after it, is invalid.
    #[error("invalid header: {0}")]
    BadHeader(#[source] MessageError),
    /// The hash of the bytes, all of which have been delivered, is not the one that the sender
    /// sent.
    #[error("the hash of the payload does not match")]
    HashMismatch {
        /// The hash from the sender.
        expected: [u8; 32],
        /// The hash of the received bytes.
        actual: [u8; 32],
    },
    /// All bytes arrived, but not the whole announced hash.
    #[error("the hash after the payload is missing")]
    HashMissing,
    /// This side cancelled it, with this code.
    #[error("cancelled here (code {0:#x})")]
    Cancelled(u32),
    /// The sender ended it.
    #[error("ended by the sender: {0}")]
    EndedBySender(Rejection),
    /// The writer failed, or the prefix of a resumed payload could not be read.
    #[error("local failure: {0}")]
    Local(#[source] Arc<io::Error>),
    /// The connection failed, while payloads were accepted from it.
    #[error("the connection ended: {0}")]
    Connection(#[source] ConnectionError),
}

struct Wanted<'a>(&'a Option<u64>);

impl fmt::Display for Wanted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(want) => want.fmt(f),
            None => f.write_str("an unknown number of"),
        }
    }
}

struct Limit<'a>(&'a TimeLimit, &'a Duration);

impl fmt::Display for Limit<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            TimeLimit::Idle => write!(f, "no progress for {:?}", self.1),
            TimeLimit::Total => write!(f, "took longer than {:?}", self.1),
        }
    }
}

impl PayloadError {
    /// The code for RESET_STREAM; `None` if the sender or the connection has ended the payload.
    pub(crate) fn code(&self) -> Option<u32> {
        match self {
            Self::TooLarge { .. } => Some(code::TOO_LARGE),
            Self::TooMany { .. } => Some(code::TOO_MANY),
            Self::Truncated { .. } => Some(code::TRUNCATED),
            Self::Overflow { .. } => Some(code::OVERFLOW),
            Self::Expired { .. } => Some(code::EXPIRED),
            Self::BadHeader(_) => Some(code::BAD_MESSAGE),
            Self::HashMismatch { .. } | Self::HashMissing => Some(code::HASH_MISMATCH),
            Self::Cancelled(code) => Some(*code),
            Self::Local(_) => Some(code::LOCAL_FAILURE),
            Self::EndedBySender(_) | Self::Connection(_) => None,
        }
    }

    pub(crate) fn interrupted(interrupt: Interrupt, received: u64) -> Self {
        match interrupt {
            Interrupt::Cancelled(code) => Self::Cancelled(code),
            Interrupt::Expired { limit, after } => Self::Expired {
                limit,
                after,
                received,
            },
        }
    }

    /// The error of a read after `got` bytes of `want`.
    pub(crate) fn read(error: io::Error, got: u64, want: Option<u64>) -> Self {
        match substream_error(&error) {
            Some(SubstreamError::ResetByPeer(code)) => Self::EndedBySender((*code).into()),
            Some(SubstreamError::ResetLocally(code)) => {
                Self::Cancelled(code.unwrap_or(code::CANCELLED))
            }
            cause => Self::Truncated {
                got,
                want,
                cause: cause.cloned(),
            },
        }
    }

    /// The error of a message that could not be read after `got` bytes of `want`.
    pub(crate) fn message(error: ReadError, got: u64, want: Option<u64>) -> Self {
        match error {
            ReadError::Io(error) => Self::read(error, got, want),
            ReadError::End => Self::BadHeader(MessageError::End),
            ReadError::Bad(error) => Self::BadHeader(error),
        }
    }
}

impl From<PayloadError> for io::Error {
    fn from(error: PayloadError) -> Self {
        use io::ErrorKind;
        let kind = match &error {
            PayloadError::TooLarge { .. } | PayloadError::TooMany { .. } => {
                ErrorKind::QuotaExceeded
            }
            PayloadError::Truncated { .. } | PayloadError::HashMissing => ErrorKind::UnexpectedEof,
            PayloadError::Overflow { .. }
            | PayloadError::BadHeader(_)
            | PayloadError::HashMismatch { .. } => ErrorKind::InvalidData,
            PayloadError::Expired { .. } => ErrorKind::TimedOut,
            PayloadError::Cancelled(_) => ErrorKind::ConnectionAborted,
            PayloadError::EndedBySender(_) => ErrorKind::ConnectionReset,
            PayloadError::Local(error) => error.kind(),
            PayloadError::Connection(_) => ErrorKind::ConnectionAborted,
        };
        Self::new(kind, error)
    }
}

/// Why a payload was not sent, or not confirmed.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum SendError {
    /// It is longer than [`PayloadConfig::max_total`](crate::payload::PayloadConfig::max_total).
    /// Nothing was sent, or with an unknown length as much as that.
    #[error("the payload of {len} bytes is longer than {max}")]
    TooLarge {
        /// Its length in bytes; if unknown, what was read so far.
        len: u64,
        /// The maximum.
        max: u64,
    },
    /// The metadata is longer than
    /// [`PayloadConfig::max_metadata`](crate::payload::PayloadConfig::max_metadata). Nothing was
    /// sent.
    #[error("{len} bytes of metadata are more than {max}")]
    MetadataTooLong {
        /// Its length in bytes.
        len: usize,
        /// The maximum.
        max: usize,
    },
    /// The receiver ended it.
    #[error("ended by the receiver: {0}")]
    Rejected(Rejection),
    /// The receiver closed its side, or the connection ended, before the payload was confirmed. How
    /// much has arrived is unknown.
    #[error("not confirmed: {0}")]
    Unconfirmed(#[source] Arc<io::Error>),
    /// A message of the receiver is invalid.
    #[error("invalid answer of the receiver: {0}")]
    BadAnswer(#[source] MessageError),
    /// The source could not be read.
    #[error("reading the source failed: {0}")]
    Source(#[source] Arc<io::Error>),
    /// The source ended before the given length.
    #[error("the source ended after {got} of {want} bytes")]
    SourceTruncated {
        /// Length of the source in bytes.
        got: u64,
        /// The given length.
        want: u64,
    },
    /// It took too long; see [`PayloadConfig`](crate::payload::PayloadConfig).
    #[error("expired after {sent} bytes: {}", Limit(.limit, .after))]
    Expired {
        /// Which time limit expired.
        limit: TimeLimit,
        /// The time limit.
        after: Duration,
        /// Bytes that the substream had accepted.
        sent: u64,
    },
    /// This side cancelled it, with this code.
    #[error("cancelled here (code {0:#x})")]
    Cancelled(u32),
}

impl SendError {
    /// The code for RESET_STREAM.
    pub(crate) fn code(&self) -> u32 {
        match self {
            Self::TooLarge { .. } => code::TOO_LARGE,
            Self::MetadataTooLong { .. } | Self::BadAnswer(_) => code::BAD_MESSAGE,
            Self::Rejected(_) | Self::Unconfirmed(_) => code::CANCELLED,
            Self::Source(_) => code::LOCAL_FAILURE,
            Self::SourceTruncated { .. } => code::TRUNCATED,
            Self::Expired { .. } => code::EXPIRED,
            Self::Cancelled(code) => *code,
        }
    }

    pub(crate) fn interrupted(interrupt: Interrupt, sent: u64) -> Self {
        match interrupt {
            Interrupt::Cancelled(code) => Self::Cancelled(code),
            Interrupt::Expired { limit, after } => Self::Expired { limit, after, sent },
        }
    }
}

/// The error of a read or write of the substream.
impl From<io::Error> for SendError {
    fn from(error: io::Error) -> Self {
        match substream_error(&error) {
            Some(SubstreamError::ResetByPeer(code) | SubstreamError::Stopped(code)) => {
                Self::Rejected((*code).into())
            }
            Some(SubstreamError::ResetLocally(code)) => {
                Self::Cancelled(code.unwrap_or(code::CANCELLED))
            }
            _ => Self::Unconfirmed(Arc::new(error)),
        }
    }
}

impl From<ReadError> for SendError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Io(error) => error.into(),
            ReadError::End => Self::Unconfirmed(Arc::new(io::ErrorKind::UnexpectedEof.into())),
            ReadError::Bad(error) => Self::BadAnswer(error),
        }
    }
}

impl From<SendError> for io::Error {
    fn from(error: SendError) -> Self {
        use io::ErrorKind;
        let kind = match &error {
            SendError::TooLarge { .. } | SendError::MetadataTooLong { .. } => {
                ErrorKind::QuotaExceeded
            }
            SendError::Rejected(_) => ErrorKind::ConnectionReset,
            SendError::Unconfirmed(error) | SendError::Source(error) => error.kind(),
            SendError::BadAnswer(_) => ErrorKind::InvalidData,
            SendError::SourceTruncated { .. } => ErrorKind::UnexpectedEof,
            SendError::Expired { .. } => ErrorKind::TimedOut,
            SendError::Cancelled(_) => ErrorKind::ConnectionAborted,
        };
        Self::new(kind, error)
    }
}

fn substream_error(error: &io::Error) -> Option<&SubstreamError> {
    error.get_ref()?.downcast_ref()
}
