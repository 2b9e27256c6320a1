//! Occasionally withheld TSNs: a SACK for one proves that the peer acknowledges what it has not
//! received.
//!
//! The window grows with acknowledged bytes, and acknowledgements end a round trip. A peer that
//! acknowledges in advance makes a sender exceed the capacity of the path. QUIC skips packet
//! numbers against that (RFC 9000 section 21.4). SCTP acknowledges TSNs, and every TSN has to reach
//! the peer eventually:
//!
//! ```text
//! peer supports FORWARD-TSN (RFC 3758): 1 2 3 _ 5 6 ... a SACK reports the gap ─► FORWARD-TSN 4
//! peer does not:                        1 2 3   5 6 ... a SACK reports the gap ─► DATA 4
//! ```
//!
//! In the first case the TSN carries nothing and lies between two messages, so no message waits:
//! streams are ordered by their own sequence numbers. In the second case the message is one round
//! trip late.
//!
//! On FORWARD-TSN, aiortc drops the fragments it has of an incomplete message. It receives one only
//! while no message is in flight, for which the sender pauses up to two round trips.
//!
//! This detects a peer that acknowledges what it did not receive at all. A peer that receives most
//! of what is sent and denies the loss of fragments inside a message is indistinguishable from an
//! honest one if TSNs are skipped between messages.

use std::time::{Duration, Instant};

use crate::entropy;

/// Round trips before a TSN is withheld: the first time, while the window doubles each round trip,
/// and afterwards. The association of a lying peer ends within 19 of them; it can not know when to
/// be honest.
const FIRST_ROUNDS: std::ops::RangeInclusive<u32> = 1..=6;
const ROUNDS: std::ops::RangeInclusive<u32> = 1..=17;

/// Minimum bytes between two withheld runs. A gap costs a packet in each direction and makes the
/// peer acknowledge every packet for a round trip, which is too much for an occasional request.
const BYTES: usize = 64 * 1024;

/// Bytes to send after the last of these round trips, so that a peer can not predict the position
/// of the gap in a flight.
const OFFSET: std::ops::RangeInclusive<u32> = 0..=128 * 1024;

/// TSNs skipped together, so that a peer can not recognize withheld gaps by their length.
const RUN: std::ops::RangeInclusive<u32> = 1..=3;

/// Retransmission timeouts without a reported gap after which a run is given up. A receiver that
/// drops out-of-order chunks never reports one.
const PATIENCE: u32 = 2;

/// How TSNs can be withheld from a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WithholdMode {
    /// They are skipped, and FORWARD-TSN passes them.
    Skip,
    /// As `Skip`, but FORWARD-TSN is sent while no message is in flight: none is started until
    /// then.
    SkipWhenDrained,
    /// A chunk is sent late.
    Delay,
}

/// What is withheld.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Withheld {
    /// This many TSNs, which carry nothing.
    Nothing(u32),
    /// The next chunk.
    Chunk,
}

/// The withheld TSNs of an association. There is at most one run at a time.
#[derive(Debug)]
pub(super) struct Withholding {
    mode: WithholdMode,
    rounds: u32,
    /// Bytes sent since the last run.
    bytes: usize,
    /// Bytes left to send after the round trips.
    offset: usize,
    run: Option<Run>,
    timeouts: u32,
}

#[derive(Debug)]
struct Run {
    first: u32,
    last: u32,
    /// Whether the peer has reported the gap.
    reported: bool,
    /// When FORWARD-TSN or the chunk was last sent. Before that the peer can not have the TSNs.
    sent_at: Option<Instant>,
    /// FORWARD-TSN is to be sent.
    due: bool,
}

impl Withholding {
    pub(super) fn new() -> Self {
        Self {
            mode: WithholdMode::Delay,
            rounds: entropy::choose(FIRST_ROUNDS),
            bytes: 0,
            offset: 0,
            run: None,
            timeouts: 0,
        }
    }

    pub(super) fn set_withhold_mode(&mut self, mode: WithholdMode) {
        self.mode = mode;
    }

    fn skips(&self) -> bool {
        self.mode != WithholdMode::Delay
    }

    /// Whether no message may be started until FORWARD-TSN has passed the skipped TSNs.
    pub(super) fn is_draining(&self) -> bool {
        self.mode == WithholdMode::SkipWhenDrained
            && self.run.as_ref().is_some_and(|run| run.reported)
    }

    pub(super) fn on_sent(&mut self, bytes: usize) {
        self.bytes = self.bytes.saturating_add(bytes);
        if self.rounds == 0 {
            self.offset = self.offset.saturating_sub(bytes);
        }
    }

    /// A round trip has ended. `flight` is the number of bytes sent in one.
    pub(super) fn on_round(&mut self, flight: usize) {
        if self.rounds == 1 {
            // Within the next flight.
            self.offset = (entropy::choose(OFFSET) as usize).min(flight / 2);
        }
        self.rounds = self.rounds.saturating_sub(1);
    }

    /// Starts a run at the next TSN, if one is due. `started` is whether the TSN continues a
    /// message, in which none may be missing. `follows` is whether another chunk is queued after
    /// the next one: the last chunk can not be withheld, as no later one would reveal the gap.
    pub(super) fn begin(
        &mut self,
        next_tsn: u32,
        started: bool,
        follows: bool,
    ) -> Option<Withheld> {
        let is_due =
            self.rounds == 0 && self.offset == 0 && self.bytes >= BYTES && self.run.is_none();
        let is_possible = if self.skips() { !started } else { follows };
        if !is_due || !is_possible {
            return None;
        }
        let count = if self.skips() {
            entropy::choose(RUN)
        } else {
            1
        };
        self.run = Some(Run {
            first: next_tsn,
            last: next_tsn.wrapping_add(count - 1),
            reported: false,
            sent_at: None,
            due: false,
        });
        self.timeouts = 0;
        Some(if self.skips() {
            Withheld::Nothing(count)
        } else {
            Withheld::Chunk
        })
    }

    /// Whether the peer can not have the withheld TSNs, so that an acknowledgement of them is a
    /// lie.
    pub(super) fn is_unsent(&self) -> bool {
        self.run.as_ref().is_some_and(|run| run.sent_at.is_none())
    }

    /// The TSN after the run, until a SACK has reported the gap before it.
    pub(super) fn awaited(&self) -> Option<u32> {
        let run = self.run.as_ref().filter(|run| !run.reported)?;
        Some(run.last.wrapping_add(1))
    }

    /// A SACK has reported the gap. Returns the TSN of the chunk to send now.
    pub(super) fn on_reported(&mut self) -> Option<u32> {
        let skips = self.skips();
        let run = self.run.as_mut()?;
        run.reported = true;
        (!skips && run.sent_at.is_none()).then_some(run.first)
    }

    /// A chunk is retransmitted.
    pub(super) fn on_chunk_sent(&mut self, tsn: u32, now: Instant) {
        if let Some(run) = &mut self.run
            && self.mode == WithholdMode::Delay
            && run.first == tsn
        {
            run.sent_at = Some(now);
        }
    }

    /// Everything up to `reached` is acknowledged. Ends the run if that includes it. Otherwise
    /// FORWARD-TSN becomes due once the run is next, and again if it is not acknowledged within
    /// `patience`.
    pub(super) fn on_reached(
        &mut self,
        reached: u32,
        is_drained: bool,
        now: Instant,
        patience: Duration,
    ) {
        let Some(run) = &mut self.run else {
            return;
        };
        if reached.wrapping_sub(run.last).cast_signed() >= 0 {
            self.run = None;
            (self.rounds, self.bytes) = (entropy::choose(ROUNDS), 0);
            return;
        }
        let is_late = |at| now.saturating_duration_since(at) > patience;
        let is_time = match self.mode {
            WithholdMode::Skip => run.reported,
            WithholdMode::SkipWhenDrained => run.reported && is_drained,
            WithholdMode::Delay => false,
        };
        if is_time && run.follows_on(reached) && run.sent_at.is_none_or(is_late) {
            run.due = true;
        }
    }

    /// A tail probe is due: FORWARD-TSN may be what was lost.
    pub(super) fn on_probe(&mut self, reached: u32) {
        if let Some(run) = &mut self.run {
            run.due |= self.mode != WithholdMode::Delay
                && run.sent_at.is_some()
                && run.follows_on(reached);
        }
    }

    /// The retransmission timeout has expired, and everything up to `reached` is acknowledged.
    /// Every chunk is retransmitted.
    pub(super) fn on_timeout(&mut self, reached: u32, is_drained: bool) {
        self.timeouts = self.timeouts.saturating_add(1);
        let Some(run) = &mut self.run else {
            return;
        };
        let is_time = match self.mode {
            WithholdMode::Skip => run.reported || self.timeouts >= PATIENCE,
            WithholdMode::SkipWhenDrained => run.reported && is_drained,
            WithholdMode::Delay => false,
        };
        run.due |= is_time && run.follows_on(reached);
    }

    /// Whether FORWARD-TSN is to be sent.
    pub(super) fn is_forward_due(&self) -> bool {
        self.run.as_ref().is_some_and(|run| run.due)
    }

    /// The new cumulative TSN of a FORWARD-TSN to send now.
    pub(super) fn take_forward(&mut self, now: Instant) -> Option<u32> {
        let run = self.run.as_mut()?;
        let is_due = std::mem::take(&mut run.due);
        is_due.then(|| {
            run.sent_at = Some(now);
            run.last
        })
    }
}

impl Run {
    fn follows_on(&self, reached: u32) -> bool {
        self.first.wrapping_sub(reached) == 1
    }
}

#[cfg(test)]
impl Withholding {
    pub(super) fn set_rounds(&mut self, rounds: u32) {
        self.rounds = rounds;
    }
}
