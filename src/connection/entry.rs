//! What the driver keeps for each substream.

use std::sync::Arc;

use tokio::time::Instant;

use super::ineffective::PerSecond;
use super::turns::Turn;
use crate::message::FrameDecoder;
use crate::substream::Shared;

/// Whether a channel is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ReadProgress {
    /// Everything that has arrived was read.
    Idle,
    /// Queued for a turn of reading.
    Queued,
    /// Left unread until the reader makes room: the carrier holds data for which there is none.
    Paused,
}

/// The driver's state of a substream, besides [`Shared`].
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) shared: Arc<Shared>,
    pub(super) decoder: FrameDecoder,
    /// Unread bytes at which the channel is left to the carrier.
    pub(super) window: u32,
    /// Changed by [`FrameReader`](super::reader::FrameReader) and
    /// [`Substreams`](super::substreams::Substreams).
    pub(super) reading: ReadProgress,
    /// The carrier has closed the channel: the substream ends once the channel is read to its end.
    pub(super) is_channel_closed: bool,
    /// Its place in the order in which the writer sends data.
    pub(super) turn: Option<Turn>,
    /// In the writer's queue of substreams whose data has to carry credit.
    pub(super) is_owed: bool,
    /// In the writer's queue of substreams that found the carrier busy.
    pub(super) is_blocked: bool,
    /// Frames without effect.
    pub(super) ineffective: PerSecond,
    /// When data began to wait for credit; set only if there is an event listener.
    pub(super) stalled_since: Option<Instant>,
}

impl Entry {
    pub(super) fn new(shared: Arc<Shared>, window: u32) -> Self {
        Self {
            shared,
            decoder: FrameDecoder::new(),
            window,
            reading: ReadProgress::Idle,
            is_channel_closed: false,
            turn: None,
            is_owed: false,
            is_blocked: false,
            ineffective: PerSecond::default(),
            stalled_since: None,
        }
    }
}
