//! How much one poll of the driver does before other tasks have their turn.
//!
//! Everything that a peer or an application can queue without end is taken in pieces, and each piece is counted. No
//! clock is read: a count gives the same order of work on every machine.

/// Rounds of work in one poll.
pub(super) const ROUNDS_PER_POLL: usize = 32;

/// Units of work after which a poll ends with its round: frames, reads, events, and substreams looked at. 0.1 ms of
/// frames in an optimised build, 1 ms without optimisation.
const UNITS_PER_POLL: u32 = 512;

/// Units that a substream of the peer costs which is made: its buffers, its negotiation, its removal.
pub(super) const UNITS_PER_OPENING: u32 = 8;

/// Frames and reads in one round, of all channels.
const STEPS_PER_ROUND: u32 = 128;

/// Those of channels that are read when they become readable. The rest is for those that wait for their turn.
const STEPS_AT_ONCE: u32 = STEPS_PER_ROUND / 2;

/// Frames and reads in one turn of a channel.
pub(super) const STEPS_PER_TURN: u32 = 32;

/// Carrier events taken in one round, so that writes are not starved by reads.
pub(super) const EVENTS_PER_ROUND: usize = 64;

/// Channels that wait to be read when no more events are taken of a carrier that does not hold back its peer.
pub(super) const BACKLOG: usize = 16;

/// Deadlines, outcomes of negotiations, and requests to open, each, in one round.
pub(super) const OTHERS_PER_ROUND: usize = 64;

/// Substreams looked at in one round.
pub(super) const SERVICES_PER_ROUND: usize = 128;

/// Data frames written in one round, so that reads are not starved by writes.
pub(super) const WRITES_PER_ROUND: usize = 32;

/// What is left to do in this poll, and to read in this round.
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

    /// Counts what was done.
    pub(super) fn spend(&mut self, units: u32) {
        self.units = self.units.saturating_sub(units);
    }

    /// Counts a frame or a read; `false` if the round has no more of them.
    pub(super) fn step(&mut self) -> bool {
        let Some(left) = self.steps.checked_sub(1) else {
            return false;
        };
        self.steps = left;
        self.spend(1);
        true
    }

    /// Whether the round has read as much as it may.
    pub(super) fn round_is_read(&self) -> bool {
        self.steps == 0
    }

    /// Whether a channel that has become readable is read before those that wait for their turn.
    pub(super) fn reads_at_once(&self) -> bool {
        self.steps > STEPS_PER_ROUND - STEPS_AT_ONCE
    }

    pub(super) fn poll_is_over(&self) -> bool {
        self.units == 0
    }
}
