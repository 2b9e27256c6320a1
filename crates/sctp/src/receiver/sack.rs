//! What is acknowledged, and when.

use std::time::{Duration, Instant};

use super::Receiver;

/// How long an acknowledgement may wait for another packet. RFC 9260 section 6.2 allows 500 ms;
/// this is long enough for an answer to go along, and short enough to keep the end of a burst from
/// waiting.
const SACK_DELAY: Duration = Duration::from_millis(20);

/// Packets that are acknowledged together at most, unless a batch of them comes at once.
const PACKETS_PER_SACK: u32 = 2;

impl Receiver {
    /// A packet with DATA was taken in.
    pub(crate) fn note_packet(&mut self, now: Instant) {
        self.packets += 1;
        if self.packets >= PACKETS_PER_SACK {
            self.sack_now = true;
        }
        self.sack_at.get_or_insert(now + SACK_DELAY);
    }

    pub(crate) fn is_sack_due(&self, now: Instant) -> bool {
        self.sack_now || self.sack_at.is_some_and(|at| at <= now) || self.is_window_update_due()
    }

    /// Whether there is something to acknowledge, at once or later: it can go along with DATA.
    pub(crate) fn has_news(&self) -> bool {
        self.sack_now || self.sack_at.is_some()
    }

    pub(crate) fn sack_at(&self) -> Option<Instant> {
        self.sack_at
    }

    /// Number, window and gaps of a SACK that is sent now.
    pub(crate) fn sack(&mut self) -> (u32, u32, impl ExactSizeIterator<Item = (u16, u16)> + '_) {
        self.packets = 0;
        self.sack_now = false;
        self.sack_at = None;
        self.told = self.window();
        let cumulative = self.cumulative;
        // All are within `MAX_AHEAD`.
        let distance = move |number: u64| (number - cumulative) as u16;
        let gaps = self
            .runs
            .iter()
            .map(move |run| (distance(*run.start()), distance(*run.end())));
        (
            self.cumulative as u32,
            u32::try_from(self.told).unwrap_or(u32::MAX),
            gaps,
        )
    }

    fn window(&self) -> usize {
        self.capacity.saturating_sub(self.held)
    }

    /// Whether the peer believes in a window much smaller than it is, and has to be told: it may be
    /// waiting. An update for every read would be an update for every packet.
    pub(crate) fn is_window_update_due(&self) -> bool {
        self.told < self.capacity / 2 && self.window() >= self.told + self.capacity / 4
    }

    /// Whether the peer was told of less than a quarter of the window.
    pub(crate) fn is_window_tight(&self) -> bool {
        self.told < self.capacity / 4
    }
}
