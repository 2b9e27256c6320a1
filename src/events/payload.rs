//! Values reported with payload events.

use crate::error::payload::{PayloadError, SendError};

/// Direction of a payload, seen from this side.
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

/// Progress of a payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct PayloadProgress {
    /// Its direction.
    pub direction: PayloadDirection,
    /// Bytes transferred, like [`Progress::transferred`](crate::payload::Progress::transferred): a
    /// part skipped by resuming counts.
    pub transferred: u64,
    /// Length of the whole payload in bytes; `None` while it is unknown.
    pub total: Option<u64>,
    /// Offset at which it was resumed: bytes skipped. Zero while that is unknown.
    pub resumed_from: u64,
    /// Bytes that crossed the substream since the previous event. Their sum over all events of a
    /// payload is `transferred` less `resumed_from`.
    pub moved: u64,
}

/// How a payload ended.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub enum PayloadOutcome<'a> {
    /// All of it was received and confirmed.
    Complete,
    /// It was not sent completely, or not confirmed.
    SendFailed(&'a SendError),
    /// It was not received.
    ReceiveFailed(&'a PayloadError),
    /// This side dropped it.
    Dropped,
}

impl PayloadOutcome<'_> {
    /// `complete`, `dropped`, `cancelled` by this side, `rejected` by the other side, `expired`, or
    /// `failed` for any other reason.
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
