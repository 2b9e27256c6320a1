//! What the driver keeps for each substream.

use std::sync::Arc;

use tokio::time::Instant;

use super::deadlines::Deadline;
use super::ineffective::PerSecond;
use crate::message::FrameDecoder;
use crate::substream::Shared;

/// What the driver knows of a substream beside its state.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) shared: Arc<Shared>,
    pub(super) decoder: FrameDecoder,
    /// In the round-robin queue of those with data to send.
    pub(super) active: bool,
    /// In the queue of those that the carrier had no room for.
    pub(super) blocked: bool,
    /// `max_data` was sent on this substream.
    pub(super) credit_shown: bool,
    /// The carrier holds what this substream has no room for.
    pub(super) reads_paused: bool,
    /// In the queue of those with something to read.
    pub(super) reading: bool,
    /// The carrier has closed the channel: the substream ends when that is read to its end.
    pub(super) closed: bool,
    /// Frames that have changed nothing.
    pub(super) ineffective: PerSecond,
    /// Payload was received on this substream.
    pub(super) peer_spoke: bool,
    /// `max_data` was received on this substream.
    pub(super) peer_credit: bool,
    /// The FIN_ACK timer, once the carrier has delivered the FIN.
    pub(super) fin_ack_deadline: Option<Deadline>,
    pub(super) teardown_deadline: Option<Deadline>,
    /// How long a silent peer is waited for before it counts as one that knows no credit.
    pub(super) credit_deadline: Option<Deadline>,
    /// How long the application has to accept it.
    pub(super) accept_deadline: Option<Deadline>,
    /// Since when data waits for the peer's credit, if somebody wants to know.
    pub(super) stalled_since: Option<Instant>,
}

impl Entry {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            decoder: FrameDecoder::new(),
            active: false,
            blocked: false,
            credit_shown: false,
            reads_paused: false,
            reading: false,
            closed: false,
            ineffective: PerSecond::default(),
            peer_spoke: false,
            peer_credit: false,
            fin_ack_deadline: None,
            teardown_deadline: None,
            credit_deadline: None,
            accept_deadline: None,
            stalled_since: None,
        }
    }
}
