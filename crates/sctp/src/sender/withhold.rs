//! TSNs that are withheld now and then: a SACK for one shows that the peer acknowledges what it has
//! not received.
//!
//! A window grows by what is acknowledged, and a round trip ends when an acknowledgement says so. A
//! peer that acknowledges ahead of what it receives makes a sender faster than the path. QUIC skips
//! packet numbers against that (RFC 9000 section 21.4). SCTP acknowledges TSNs, and every TSN has
//! to reach the peer somehow:
//!
//! ```text
//! peer knows FORWARD-TSN (RFC 3758):  1 2 3 _ 5 6 ... a SACK reports the gap ─► FORWARD-TSN 4
//! peer does not:                      1 2 3   5 6 ... a SACK reports the gap ─► DATA 4
//! ```
//!
//! In the first case the TSN carries nothing and lies between two messages, so that no message
//! waits: streams are ordered by their own sequence numbers.
//! In the second case the message is a round trip late.
//!
//! aiortc drops the pieces that it has of a message which is not whole when FORWARD-TSN comes. It
//! gets one only while no message is under way, for which the sender pauses up to two round trips.
//!
//! This finds a peer that acknowledges what was not received at all. One that receives most of what
//! is sent, and denies the loss of pieces inside a message, is not told from an honest one where
//! TSNs are skipped between messages.

use std::time::{Duration, Instant};

use crate::entropy;

/// Round trips after which a TSN is withheld: the first time, while the window doubles each round
/// trip, and from then on. A peer that lies has ended its association after 19 of them; it can not
/// know when to pause.
const FIRST_ROUNDS: std::ops::RangeInclusive<u32> = 1..=6;
const ROUNDS: std::ops::RangeInclusive<u32> = 1..=17;

/// Bytes that are sent before another TSN is withheld. A gap costs a packet in each direction and
/// makes the peer acknowledge every packet for a round trip, which is much for a request now and
/// then.
const BYTES: usize = 64 * 1024;

/// Bytes after the last of these round trips, so that a peer can not tell where in a flight the gap
/// is.
const OFFSET: std::ops::RangeInclusive<u32> = 0..=128 * 1024;

/// TSNs that are skipped together, so that a peer can not take all gaps of one for these.
const RUN: std::ops::RangeInclusive<u32> = 1..=3;

/// Retransmission timeouts without a gap in a SACK after which the TSNs are given up. A receiver
/// that drops what comes out of order never reports one.
const PATIENCE: u32 = 2;

/// How TSNs can be withheld from a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Means {
    /// They are skipped, and passed over by FORWARD-TSN.
    Skip,
    /// The same, and FORWARD-TSN is sent while no message is under way: no other begins until then.
    SkipAndDrain,
    /// A chunk is sent late.
    Delay,
}

/// What is withheld.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Withheld {
    /// So many TSNs, which carry nothing.
    Nothing(u32),
    /// The next chunk.
    Chunk,
}

/// The withheld TSNs of an association. There is one run at a time.
#[derive(Debug)]
pub(super) struct Withholding {
    means: Means,
    rounds: u32,
    /// Bytes that were sent since the last time.
    bytes: usize,
    /// Bytes that are left to send after the rounds.
    offset: usize,
    run: Option<Run>,
    timeouts: u32,
}

#[derive(Debug)]
struct Run {
    first: u32,
    last: u32,
    /// The peer has reported the gap.
    reported: bool,
    /// When FORWARD-TSN was sent last, or the chunk. Before that the peer can not have them.
    sent_at: Option<Instant>,
    /// FORWARD-TSN is to be sent.
    due: bool,
}

impl Withholding {
    pub(super) fn new() -> Self {
        Self {
            means: Means::Delay,
            rounds: entropy::choose(FIRST_ROUNDS),
            bytes: 0,
            offset: 0,
            run: None,
            timeouts: 0,
        }
    }

    pub(super) fn set_means(&mut self, means: Means) {
        self.means = means;
    }

    fn skips(&self) -> bool {
        self.means != Means::Delay
    }

    /// Whether no message may begin until FORWARD-TSN has passed what is skipped.
    pub(super) fn is_draining(&self) -> bool {
        self.means == Means::SkipAndDrain && self.run.as_ref().is_some_and(|run| run.reported)
    }

    pub(super) fn on_sent(&mut self, bytes: usize) {
        self.bytes = self.bytes.saturating_add(bytes);
        if self.rounds == 0 {
            self.offset = self.offset.saturating_sub(bytes);
        }
    }

    /// A round trip is over. `flight` says how many bytes go out in one.
    pub(super) fn on_round(&mut self, flight: usize) {
        if self.rounds == 1 {
            // In the flight that follows, and not beyond.
            self.offset = (entropy::choose(OFFSET) as usize).min(flight / 2);
        }
        self.rounds = self.rounds.saturating_sub(1);
    }

    /// Begins with the next TSN, if it is time. `begun` says whether it continues a message, in
    /// which no TSN may be missing, and `follows` whether more than the next chunk waits to be
    /// sent: what is sent last can not be withheld, as nothing would show the gap.
    pub(super) fn begin(&mut self, next_tsn: u32, begun: bool, follows: bool) -> Option<Withheld> {
        let is_due =
            self.rounds == 0 && self.offset == 0 && self.bytes >= BYTES && self.run.is_none();
        let is_possible = if self.skips() { !begun } else { follows };
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

    /// Whether a peer that acknowledges a withheld TSN now acknowledges what it can not have.
    pub(super) fn is_secret(&self) -> bool {
        self.run.as_ref().is_some_and(|run| run.sent_at.is_none())
    }

    /// The TSN after what is withheld, until a SACK has reported it.
    pub(super) fn awaited(&self) -> Option<u32> {
        let run = self.run.as_ref().filter(|run| !run.reported)?;
        Some(run.last.wrapping_add(1))
    }

    /// A SACK has reported that TSN and not what is withheld. Returns the TSN whose chunk is to be
    /// sent for that.
    pub(super) fn on_reported(&mut self) -> Option<u32> {
        let skips = self.skips();
        let run = self.run.as_mut()?;
        run.reported = true;
        (!skips && run.sent_at.is_none()).then_some(run.first)
    }

    /// A chunk is sent that is not new.
    pub(super) fn on_chunk_sent(&mut self, tsn: u32, now: Instant) {
        if let Some(run) = &mut self.run
            && self.means == Means::Delay
            && run.first == tsn
        {
            run.sent_at = Some(now);
        }
    }

    /// Everything up to `reached` is acknowledged. Ends the run when that includes it, and makes
    /// FORWARD-TSN due when its TSNs are next; again, when it is not answered for this long.
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
        let is_time = match self.means {
            Means::Skip => run.reported,
            Means::SkipAndDrain => run.reported && is_drained,
            Means::Delay => false,
        };
        if is_time && run.follows_on(reached) && run.sent_at.is_none_or(is_late) {
            run.due = true;
        }
    }

    /// It is time to send the last packet again: this was perhaps the one that was lost.
    pub(super) fn on_probe(&mut self, reached: u32) {
        if let Some(run) = &mut self.run {
            run.due |=
                self.means != Means::Delay && run.sent_at.is_some() && run.follows_on(reached);
        }
    }

    /// The retransmission timeout has passed, and everything up to `reached` is acknowledged.
    /// Everything that has a chunk is sent again.
    pub(super) fn on_timeout(&mut self, reached: u32, is_drained: bool) {
        self.timeouts = self.timeouts.saturating_add(1);
        let Some(run) = &mut self.run else {
            return;
        };
        let is_time = match self.means {
            Means::Skip => run.reported || self.timeouts >= PATIENCE,
            Means::SkipAndDrain => run.reported && is_drained,
            Means::Delay => false,
        };
        run.due |= is_time && run.follows_on(reached);
    }

    /// Whether FORWARD-TSN is to be sent.
    pub(super) fn is_forward_due(&self) -> bool {
        self.run.as_ref().is_some_and(|run| run.due)
    }

    /// The TSN of a FORWARD-TSN that is sent now.
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
