//! Bounds the work of one poll of the driver, so that other tasks run.
//!
//! Work that a peer or an application can queue without limit is taken in pieces, and each piece is
//! counted. No clock is read: a count gives the same order of work on every machine.

/// Rounds of work in one poll.
pub(super) const ROUNDS_PER_POLL: usize = 32;

/// Units of work (frames, reads, events, substreams serviced) after which a poll ends with its
/// round. That is 0.1 ms of frames in an optimised build, 1 ms without optimisation.
const UNITS_PER_POLL: u32 = 512;

/// Cost in units of a substream that is opened: its buffers, its negotiation, its removal.
pub(super) const UNITS_PER_OPENING: u32 = 8;

/// Frames and reads in one round, over all channels.
const STEPS_PER_ROUND: u32 = 128;

/// Share of them for channels read as soon as they become readable. The rest is for queued
/// channels.
const STEPS_AT_ONCE: u32 = STEPS_PER_ROUND / 2;

/// Frames and reads in one turn of a channel.
pub(super) const STEPS_PER_TURN: u32 = 32;

/// Carrier events taken in one round, so that writes are not starved by reads.
pub(super) const EVENTS_PER_ROUND: usize = 64;

/// Number of channels waiting to be read at which no more events are taken from a carrier without
/// backpressure.
pub(super) const BACKLOG: usize = 16;

/// Deadlines, negotiation outcomes and open requests, each, in one round.
pub(super) const OTHERS_PER_ROUND: usize = 64;

/// Substreams serviced in one round.
pub(super) const SERVICES_PER_ROUND: usize = 128;

/// Data frames written in one round, so that writes do not starve reads.
pub(super) const WRITES_PER_ROUND: usize = 32;

/// The work that is left for this poll, and the reads that are left for this round.
#[derive(Debug)]
pub(super) struct Work {
    units: u32,
    steps: u32,
}

impl Work {
    pub(super) fn new() -> Self {
        Self {
            units: UNITS_PER_POLL,
            steps: STEPS_PER_ROUND,
        }
    }

    pub(super) fn begin_poll(&mut self) {
        *self = Self::new();
    }

    pub(super) fn begin_round(&mut self) {
        self.steps = STEPS_PER_ROUND;
    }

    /// Counts work that was done.
    pub(super) fn spend(&mut self, units: u32) {
        self.units = self.units.saturating_sub(units);
    }

    /// Counts a frame or a read; `false` if the round allows no more.
    pub(super) fn step(&mut self) -> bool {
        let Some(left) = self.steps.checked_sub(1) else {
            return false;
        };
        self.steps = left;
        self.spend(1);
        true
    }

    /// Whether the round allows no more reads.
    pub(super) fn round_is_read(&self) -> bool {
        self.steps == 0
    }

    /// Whether a channel that becomes readable may be read before the queued ones.
    pub(super) fn reads_at_once(&self) -> bool {
        self.steps > STEPS_PER_ROUND - STEPS_AT_ONCE
    }

    pub(super) fn poll_is_over(&self) -> bool {
        self.units == 0
    }
}
