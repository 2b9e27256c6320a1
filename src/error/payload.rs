//! Why a payload was not sent, or not received.

use std::fmt;
use std::io;
use std::time::Duration;

use super::{ConnectionError, SubstreamError};

/// Codes that end a payload, in RESET_STREAM.
pub mod code {
    /// The payload is longer than the receiver takes.
    pub const TOO_LARGE: u32 = 0x2101;
    /// The receiver has as many payloads open as it takes at once.
    pub const TOO_MANY: u32 = 0x2102;
    /// Nothing moved for too long, or the payload took too long as a whole.
    pub const EXPIRED: u32 = 0x2103;
    /// A header, or another message around the bytes, breaks a rule.
    pub const BAD_MESSAGE: u32 = 0x2104;
    /// There are more bytes than the header said.
    pub const OVERFLOW: u32 = 0x2105;
    /// There are fewer bytes than the header said.
    pub const TRUNCATED: u32 = 0x2106;
    /// The bytes do not have the hash that they should have.
    pub const HASH_MISMATCH: u32 = 0x2107;
    /// One side wants no more of it: dropped, or cancelled by the application with this code.
    pub const CANCELLED: u32 = 0x2108;
    /// The application could not read what it sends, or not write what it receives.
    pub const LOCAL_FAILURE: u32 = 0x2109;
}

/// Which time is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum TimeLimit {
    /// [`PayloadConfig::idle_timeout`](crate::payload::PayloadConfig::idle_timeout): not a byte has moved.
    Idle,
    /// [`PayloadConfig::time_limit`](crate::payload::PayloadConfig::time_limit): the payload takes too long as a whole.
    Total,
}

/// Why an operation was given up.
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
    /// The stream ended within it, or before it.
    End,
    /// It breaks a rule.
    Bad(MessageError),
}

/// What is wrong with a header, or another of the messages around the bytes of a payload.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MessageError {
    /// Its length is not a varint in its shortest form.
    #[error("the length is not a minimal varint")]
    Length,
    /// It says that it is longer than allowed. Nothing of it was buffered.
    #[error("{len} bytes are more than {max}")]
    TooLong {
        /// Bytes that it claims to have.
        len: u64,
        /// Most bytes of one.
        max: usize,
    },
    /// It is not the protobuf message that it should be.
    #[error("not protobuf: {0}")]
    Protobuf(String),
    /// The metadata is longer than [`PayloadConfig::max_metadata`](crate::payload::PayloadConfig::max_metadata).
    #[error("{len} bytes of metadata are more than {max}")]
    MetadataTooLong {
        /// Bytes of metadata.
        len: usize,
        /// Most bytes.
        max: usize,
    },
    /// It names a kind of hash that this version does not know.
    #[error("unknown hash {0}")]
    UnknownHash(i32),
    /// It offers to resume, but has no length or no hash, without which that can not be.
    #[error("resumable without a length and a hash")]
    NotResumable,
    /// It names a place in the payload at which that can not be resumed.
    #[error("can not be resumed at {offset}")]
    BadOffset {
        /// The place.
        offset: u64,
    },
    /// A hash has not the length that it should have.
    #[error("a hash of {0} bytes")]
    HashLength(usize),
    /// The receiver confirms another number of bytes than there are.
    #[error("{confirmed} of {total} bytes confirmed")]
    BadReceipt {
        /// What it confirms.
        confirmed: u64,
        /// What was sent.
        total: u64,
    },
    /// The stream ended before it was complete.
    #[error("the stream ended")]
    End,
}

/// Why the other side ended a payload: the code that it gave.
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
    /// Another code: of the application, or of the substream ([`crate::substream::code`]).
    Code(u32),
    /// None was given.
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
            Self::TooMany => "too many are open",
            Self::Expired => "it took too long",
            Self::BadMessage => "a message around it broke a rule",
            Self::Overflow => "there was more of it than announced",
            Self::Truncated => "there was less of it than announced",
            Self::HashMismatch => "its hash is wrong",
            Self::Cancelled => "it was cancelled",
            Self::LocalFailure => "it could not be read or stored there",
            Self::Code(code) => return write!(f, "code {code:#x}"),
            Self::Unspecified => "no code was given",
        };
        f.write_str(text)
    }
}

/// Why a payload was not received as it was sent.
///
/// What was received before was handed over first, but for what a RESET_STREAM of the sender drops:
/// bytes that had arrived and were not read yet.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PayloadError {
    /// It is longer than [`PayloadConfig::max_total`](crate::payload::PayloadConfig::max_total), or than the
    /// limit of [`Payload::assemble`](crate::payload::Payload::assemble). Nothing was allocated for one
    /// whose header has its length; one of unknown length is received up to the limit.
    #[error("the payload of {len} bytes is longer than {max}")]
    TooLarge {
        /// Its length; of one of unknown length, what has arrived by now.
        len: u64,
        /// Most bytes.
        max: u64,
    },
    /// [`PayloadConfig::max_open`](crate::payload::PayloadConfig::max_open) payloads are open, or
    /// [`PayloadConfig::max_open_per_connection`](crate::payload::PayloadConfig::max_open_per_connection) of the same
    /// connection; this one was refused, and none of them was harmed.
    #[error("{open} payloads are open, of at most {max}")]
    TooMany {
        /// Payloads that are open.
        open: usize,
        /// Most of them.
        max: usize,
    },
    /// The stream ended too early: by an orderly end before the last byte, or with the connection.
    #[error("the payload ended after {got} of {} bytes", Wanted(.want))]
    Truncated {
        /// Bytes that were received, and handed over.
        got: u64,
        /// Bytes that there should be; `None` where the sender did not know.
        want: Option<u64>,
        /// What ended it; `None` if the sender did.
        #[source]
        cause: Option<SubstreamError>,
    },
    /// More came than the header had announced.
    #[error("{got} bytes of a payload of {want}")]
    Overflow {
        /// Bytes received when this was noticed.
        got: u64,
        /// Bytes that the header announced.
        want: u64,
    },
    /// It took too long; see [`PayloadConfig`](crate::payload::PayloadConfig).
    #[error("the payload expired after {received} bytes: {}", Limit(.limit, .after))]
    Expired {
        /// Which time is over.
        limit: TimeLimit,
        /// How long that is.
        after: Duration,
        /// Bytes that were received, and handed over.
        received: u64,
    },
    /// The header, or a message that follows it, breaks a rule.
    #[error("bad header: {0}")]
    BadHeader(#[source] MessageError),
    /// The bytes, all of which were handed over, do not have the hash that the sender gave.
    #[error("the payload does not have the hash that its sender gave")]
    HashMismatch {
        /// The hash that the sender gave.
        expected: [u8; 32],
        /// The hash of what arrived.
        actual: [u8; 32],
    },
    /// All bytes arrived, but not all of the hash that the header had announced.
    #[error("the hash behind the payload is missing")]
    HashMissing,
    /// This side cancelled it, with this code.
    #[error("cancelled here (code {0:#x})")]
    Cancelled(u32),
    /// The sender ended it.
    #[error("ended by the sender: {0}")]
    EndedBySender(Rejection),
    /// What it was to be written to failed, or the prefix of a resumed one could not be read.
    #[error("local failure: {0}")]
    Local(#[source] io::Error),
    /// The connection that payloads were accepted from has failed.
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
            TimeLimit::Idle => write!(f, "nothing moved for {:?}", self.1),
            TimeLimit::Total => write!(f, "it took longer than {:?}", self.1),
        }
    }
}

impl PayloadError {
    /// What the sender is told with RESET_STREAM; `None` where there is nobody to tell.
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
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SendError {
    /// It is longer than [`PayloadConfig::max_total`](crate::payload::PayloadConfig::max_total). Nothing was
    /// sent, unless its length was not known: then it was sent up to that.
    #[error("the payload of {len} bytes is longer than {max}")]
    TooLarge {
        /// Its length; of one of unknown length, what was read by now.
        len: u64,
        /// Most bytes.
        max: u64,
    },
    /// The metadata is longer than [`PayloadConfig::max_metadata`](crate::payload::PayloadConfig::max_metadata).
    /// Nothing was sent.
    #[error("{len} bytes of metadata are more than {max}")]
    MetadataTooLong {
        /// Bytes of metadata.
        len: usize,
        /// Most bytes.
        max: usize,
    },
    /// The receiver ended it.
    #[error("ended by the receiver: {0}")]
    Rejected(Rejection),
    /// The receiver closed its end, or the connection ended, before the payload was confirmed: what of
    /// it has arrived is not known.
    #[error("not confirmed: {0}")]
    Unconfirmed(#[source] io::Error),
    /// What the receiver says breaks a rule.
    #[error("bad answer of the receiver: {0}")]
    BadAnswer(#[source] MessageError),
    /// What was to be sent could not be read.
    #[error("reading failed: {0}")]
    Source(#[source] io::Error),
    /// What was to be sent ended before the length that was given.
    #[error("the source ended after {got} of {want} bytes")]
    SourceTruncated {
        /// Bytes that it had.
        got: u64,
        /// Bytes that it should have had.
        want: u64,
    },
    /// It took too long; see [`PayloadConfig`](crate::payload::PayloadConfig).
    #[error("expired after {sent} bytes: {}", Limit(.limit, .after))]
    Expired {
        /// Which time is over.
        limit: TimeLimit,
        /// How long that is.
        after: Duration,
        /// Bytes that the substream had accepted.
        sent: u64,
    },
    /// This side cancelled it, with this code.
    #[error("cancelled here (code {0:#x})")]
    Cancelled(u32),
}

impl SendError {
    /// What the receiver is told with RESET_STREAM.
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
            _ => Self::Unconfirmed(error),
        }
    }
}

impl From<ReadError> for SendError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Io(error) => error.into(),
            ReadError::End => Self::Unconfirmed(io::ErrorKind::UnexpectedEof.into()),
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
