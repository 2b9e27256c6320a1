//! What is told of payloads.

use crate::error::payload::{PayloadError, SendError};

/// Which way a payload goes, seen from this side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PayloadDirection {
    /// This side sends it.
    Sent,
    /// This side receives it.
    Received,
}

impl PayloadDirection {
    /// `sent` or `received`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Sent => "sent",
            Self::Received => "received",
        }
    }
}

/// How far a payload has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct PayloadProgress {
    /// Which way it goes.
    pub direction: PayloadDirection,
    /// Bytes that are through, as [`Progress::transferred`](crate::payload::Progress::transferred): a part
    /// that was skipped counts.
    pub transferred: u64,
    /// Bytes of the whole payload; `None` while they are not known.
    pub total: Option<u64>,
    /// Where it was resumed: bytes that were skipped. Zero while that is not known.
    pub resumed_from: u64,
    /// Bytes that went over the substream since the event before. Their sum over all events of a payload is
    /// `transferred` less `resumed_from`.
    pub moved: u64,
}

/// How a payload has ended.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub enum PayloadOutcome<'a> {
    /// All of it was received, and confirmed.
    Complete,
    /// It was not sent, or not confirmed.
    SendFailed(&'a SendError),
    /// It was not received.
    ReceiveFailed(&'a PayloadError),
    /// This side has dropped it.
    Dropped,
}

impl PayloadOutcome<'_> {
    /// `complete`, `dropped`, `cancelled` by this side, `rejected` by the other side, `expired`, or `failed` for any
    /// other reason.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Complete => "complete",
            Self::Dropped => "dropped",
            Self::SendFailed(SendError::Cancelled(_))
            | Self::ReceiveFailed(PayloadError::Cancelled(_)) => "cancelled",
            Self::SendFailed(SendError::Rejected(_))
            | Self::ReceiveFailed(PayloadError::EndedBySender(_)) => "rejected",
            Self::SendFailed(SendError::Expired { .. })
            | Self::ReceiveFailed(PayloadError::Expired { .. }) => "expired",
            Self::SendFailed(_) | Self::ReceiveFailed(_) => "failed",
        }
    }
}
