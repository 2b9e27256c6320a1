//! The path of the packets: how long they may be, and when it changes.

use std::time::{Duration, Instant};

use super::super::PathChange;
use super::super::packet::COMMON_HEADER;
use super::{BlackHole, Pacer, Reordering, Sender, Suspects};

impl Sender {
    /// Sets the longest packet. The controller goes on counting in packets of the first size: its
    /// window is bytes, and it grows no faster because packets have become longer.
    pub(crate) fn set_max_packet(&mut self, max_packet: usize) {
        self.max_packet = max_packet;
    }

    /// Packets take another path: those in flight are lost. At another address nothing that is
    /// known of the path holds (RFC 9000 section 9.4).
    pub(crate) fn on_path_change(&mut self, now: Instant, change: PathChange) {
        if change == PathChange::Address {
            self.controller = self.control.controller(self.base_packet);
            self.max_packet = self.base_packet;
            self.reordering = Reordering::default();
            self.pacer = Pacer::default();
            (self.srtt, self.min_rtt) = (None, Duration::MAX);
            (self.rttvar, self.latest_rtt) = (Duration::ZERO, Duration::ZERO);
        }
        self.suspect_all();
        // That is no sign of congestion, reordering or a black hole.
        for sent in &mut self.sent {
            sent.is_suspect = false;
        }
        self.suspects = Suspects::default();
        self.is_reduction_suspect = false;
        self.black_hole = BlackHole::default();
        self.path_since = self.next_packet;
        (self.pto_count, self.rto_at) = (0, None);
        self.arm_pto(now);
    }

    /// Whether longer packets would be of use: more is on its way than a few of them hold.
    pub(crate) fn wants_longer_packets(&self) -> bool {
        self.unacknowledged > 2 * self.max_packet && self.pto_count == 0
    }

    /// Bytes that the peer has acknowledged.
    pub(crate) fn delivered(&self) -> u64 {
        self.rate.delivered()
    }

    /// Whether a chunk needs longer packets than every path is assumed to take.
    pub(super) fn is_long(&self, size: usize) -> bool {
        size > self.base_packet.saturating_sub(COMMON_HEADER)
    }

    /// Whether long packets turned out not to arrive any more, since the last call.
    pub(crate) fn take_black_hole(&mut self) -> bool {
        self.black_hole.take() && self.max_packet > self.base_packet
    }
}
