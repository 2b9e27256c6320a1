//! Protocol violations, which end an association.

use std::error::Error;
use std::fmt;

/// How the peer violated the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Violation {
    /// A FORWARD-TSN abandons a message of a stream that is read: every stream is reliable.
    AbandonedMessage,
    /// A SACK or SHUTDOWN acknowledges a TSN that was not sent.
    AcknowledgedUnsent,
    /// A SACK acknowledges a TSN that was withheld from the peer.
    AcknowledgedWithheld,
    /// A DATA chunk has no user data (RFC 9260 section 6.2).
    EmptyData,
    /// A segment of a DATA chunk lies outside of it, or has no user data.
    InvalidSegment,
    /// A message is longer than `Config::max_message`.
    MessageTooLong,
    /// A message has no first fragment.
    MissingBeginning,
    /// A message has no last fragment.
    MissingEnd,
    /// The fragments of different messages are interleaved.
    MixedFragments,
    /// The peer reuses and resets a stream id whose messages are not read, again and again.
    TooManyResets,
    /// A DATA chunk is shorter than its header.
    TruncatedData,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::AbandonedMessage => "FORWARD-TSN abandons a message of a reliable stream",
            Self::AcknowledgedUnsent => "a TSN is acknowledged that was not sent",
            Self::AcknowledgedWithheld => "a TSN is acknowledged that was withheld",
            Self::EmptyData => "DATA without user data",
            Self::InvalidSegment => "segment outside of its DATA chunk",
            Self::MessageTooLong => "message too long",
            Self::MissingBeginning => "message without a first fragment",
            Self::MissingEnd => "message without a last fragment",
            Self::MixedFragments => "fragments of different messages are interleaved",
            Self::TooManyResets => "too many resets of a stream that is not read",
            Self::TruncatedData => "DATA without a complete header",
        })
    }
}

impl Error for Violation {}
