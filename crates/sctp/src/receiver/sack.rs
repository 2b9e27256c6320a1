//! What is acknowledged, and when.

use std::time::{Duration, Instant};

use super::Receiver;

/// Delay of a SACK that may wait for another packet. RFC 9260 section 6.2 allows 500 ms. This is
/// long enough for a reply to carry the SACK, and short enough not to delay the end of a burst.
const SACK_DELAY: Duration = Duration::from_millis(20);

/// Packets per SACK, unless more are handled in one batch.
const PACKETS_PER_SACK: u32 = 2;

impl Receiver {
    /// Counts a packet with DATA.
    pub(crate) fn on_data_packet(&mut self, now: Instant) {
        self.unacknowledged_packets += 1;
        if self.unacknowledged_packets >= PACKETS_PER_SACK {
            self.sack_now = true;
        }
        self.sack_at.get_or_insert(now + SACK_DELAY);
    }

    /// Sends the SACK at once, if one is pending.
    pub(crate) fn hasten_sack(&mut self) {
        self.sack_now |= self.has_unacknowledged();
    }

    pub(crate) fn is_sack_due(&self, now: Instant) -> bool {
        self.sack_now || self.sack_at.is_some_and(|at| at <= now) || self.is_window_update_due()
    }

    /// Whether a SACK is pending, which can be bundled with DATA.
    pub(crate) fn has_unacknowledged(&self) -> bool {
        self.sack_now || self.sack_at.is_some()
    }

    pub(crate) fn sack_at(&self) -> Option<Instant> {
        self.sack_at
    }

    /// TSNs that arrived more than once since the last SACK.
    pub(crate) fn take_duplicates(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.duplicates)
    }

    /// Cumulative TSN, window and gap ack blocks of a SACK to send now.
    pub(crate) fn sack(&mut self) -> (u32, u32, impl ExactSizeIterator<Item = (u16, u16)> + '_) {
        self.unacknowledged_packets = 0;
        self.sack_now = false;
        self.sack_at = None;
        self.advertised_window = self.window();
        let cumulative_tsn = self.cumulative_tsn;
        // All offsets are within `MAX_AHEAD`.
        let distance = move |tsn: u64| (tsn - cumulative_tsn) as u16;
        let gaps = self
            .gap_blocks
            .iter()
            .map(move |run| (distance(*run.start()), distance(*run.end())));
        (
            self.cumulative_tsn as u32,
            u32::try_from(self.advertised_window).unwrap_or(u32::MAX),
            gaps,
        )
    }

    fn window(&self) -> usize {
        self.capacity.saturating_sub(self.held)
    }

    /// Whether the advertised window is much smaller than the actual one, so that the peer may be
    /// blocked. An update for every read would be one for every packet.
    pub(crate) fn is_window_update_due(&self) -> bool {
        self.advertised_window < self.capacity / 2
            && self.window() >= self.advertised_window + self.capacity / 4
    }

    /// Whether the last advertised window is less than a quarter of the buffer.
    pub(crate) fn is_window_tight(&self) -> bool {
        self.advertised_window < self.capacity / 4
    }
}
