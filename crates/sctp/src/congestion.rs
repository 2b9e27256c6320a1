//! Congestion control.
//!
//! The window grows by the acknowledged bytes in slow start, as in RFC 9260 section 7.2, and by a
//! 32nd of itself or one packet a round trip afterwards, whichever is more. Loss does not halve it
//! as in Reno, which limits a long path with random loss to 1.22 x packet / (round trip x sqrt p).
//! As in BBR (draft-ietf-ccwg-bbr section 5.5.10), a round may lose 2 % before the window is
//! multiplied by 0.7. Queues are kept short by the user's own limit on unacknowledged bytes, which
//! follows the bandwidth-delay product.

/// Initial window in packets (RFC 6928).
const INITIAL_PACKETS: usize = 10;

/// Minimum window in packets: with fewer, no later packet reveals a loss.
const MIN_PACKETS: usize = 4;

/// Tolerated loss in a round, as a divisor of its bytes.
const TOLERATED: usize = 50;

/// Tenths of the window that are kept on excessive loss.
const BETA_TENTHS: usize = 7;

/// After slow start the window grows by this fraction of itself (a divisor) each round trip, at
/// least by one packet.
const GROWTH: usize = 32;

/// The congestion window of an association.
#[derive(Debug)]
pub(super) struct Congestion {
    cwnd: usize,
    ssthresh: usize,
    max_packet: usize,
    /// Bytes acknowledged and lost in the current round.
    acknowledged: usize,
    lost: usize,
    /// Whether the window was reduced in this round.
    reduced: bool,
    /// Bytes acknowledged since the window last grew, after slow start.
    partial_bytes_acked: usize,
}

impl Congestion {
    pub(super) fn new(max_packet: usize) -> Self {
        Self {
            cwnd: INITIAL_PACKETS * max_packet,
            ssthresh: usize::MAX,
            max_packet,
            acknowledged: 0,
            lost: 0,
            reduced: false,
            partial_bytes_acked: 0,
        }
    }

    /// Maximum bytes in flight.
    pub(super) fn cwnd(&self) -> usize {
        self.cwnd
    }

    /// Grows the window by acknowledged bytes, unless the sender did not use all of it.
    pub(super) fn on_acknowledged(&mut self, bytes: usize, cwnd_limited: bool) {
        self.acknowledged += bytes;
        if !cwnd_limited || self.reduced {
            return;
        }
        if self.cwnd < self.ssthresh {
            self.cwnd = self.cwnd.saturating_add(bytes).min(self.ssthresh);
            return;
        }
        self.partial_bytes_acked += bytes;
        let step = self.max_packet.max(self.cwnd / GROWTH);
        // One step for each acknowledged window.
        let part = self.partial_bytes_acked.saturating_mul(step) / self.cwnd;
        if part >= self.max_packet {
            self.cwnd += part;
            self.partial_bytes_acked = 0;
        }
    }

    /// Counts lost bytes. Returns whether the window was reduced. The round then ends when a packet
    /// that is sent from now on is acknowledged: all earlier ones were sent into the larger window.
    pub(super) fn on_lost(&mut self, bytes: usize) -> bool {
        self.lost += bytes;
        if self.reduced {
            return false;
        }
        // Relative to a full window at least: early in a round one packet is a large part of it.
        let base = self.cwnd.max(self.acknowledged + self.lost);
        // Variance: a path that loses 1 % occasionally loses 4 % of a short round.
        let chance = (base / self.max_packet).isqrt() / 4 * self.max_packet;
        if self.lost > (base / TOLERATED + chance).max(self.max_packet - 1) {
            self.reduced = true;
            self.shrink_to(self.cwnd / 10 * BETA_TENTHS);
        }
        self.reduced
    }

    /// Starts the next round.
    pub(super) fn on_round(&mut self) {
        self.acknowledged = 0;
        self.lost = 0;
        self.reduced = false;
    }

    /// The retransmission timeout has expired (RFC 9260 section 7.2.3).
    pub(super) fn on_timeout(&mut self) {
        self.shrink_to(self.cwnd / 2);
        self.cwnd = self.max_packet;
        self.partial_bytes_acked = 0;
        self.on_round();
    }

    fn shrink_to(&mut self, cwnd: usize) {
        self.cwnd = cwnd.max(MIN_PACKETS * self.max_packet);
        self.ssthresh = self.cwnd;
        self.partial_bytes_acked = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACKET: usize = 1000;

    /// A round with a full window, of which `lost` packets are lost.
    fn round(congestion: &mut Congestion, lost: usize) {
        let packets = congestion.cwnd() / PACKET;
        for packet in 0..packets {
            if packet < lost {
                congestion.on_lost(PACKET);
            } else {
                congestion.on_acknowledged(PACKET, true);
            }
        }
        congestion.on_round();
    }

    #[test]
    fn slow_start_doubles_each_round() {
        let mut congestion = Congestion::new(PACKET);
        for rounds in 0..6 {
            assert_eq!(congestion.cwnd(), (INITIAL_PACKETS << rounds) * PACKET);
            round(&mut congestion, 0);
        }
    }

    #[test]
    fn a_loss_within_the_tolerance_costs_nothing_and_one_above_it_three_tenths_once_a_round() {
        let mut congestion = Congestion::new(PACKET);
        while congestion.cwnd() < 500 * PACKET {
            round(&mut congestion, 0);
        }
        let before = congestion.cwnd();
        round(&mut congestion, before / PACKET / TOLERATED);
        assert!(congestion.cwnd() >= before);
        let before = congestion.cwnd();
        round(&mut congestion, before / PACKET / 15);
        let after = congestion.cwnd();
        assert!(
            after < before * 8 / 10 && after >= before * 6 / 10,
            "{after}"
        );
        // Slow start is over.
        round(&mut congestion, 0);
        let grown = congestion.cwnd();
        assert!(grown > after && grown < after * 21 / 20, "{grown}");
    }

    #[test]
    fn a_small_window_shrinks_with_each_round_that_loses() {
        let mut congestion = Congestion::new(PACKET);
        round(&mut congestion, 1);
        assert_eq!(congestion.cwnd(), 7 * PACKET);
        for _ in 0..20 {
            round(&mut congestion, 1);
        }
        assert!(congestion.cwnd() <= (MIN_PACKETS + 1) * PACKET);
    }

    #[test]
    fn a_timeout_begins_again_and_slow_start_ends_at_half() {
        let mut congestion = Congestion::new(PACKET);
        while congestion.cwnd() < 160 * PACKET {
            round(&mut congestion, 0);
        }
        congestion.on_timeout();
        assert_eq!(congestion.cwnd(), PACKET);
        for _ in 0..7 {
            round(&mut congestion, 0);
        }
        let cwnd = congestion.cwnd();
        assert!((80 * PACKET..86 * PACKET).contains(&cwnd), "{cwnd}");
    }

    #[test]
    fn who_does_not_use_the_window_does_not_grow_it() {
        let mut congestion = Congestion::new(PACKET);
        for _ in 0..1000 {
            congestion.on_acknowledged(PACKET, false);
        }
        assert_eq!(congestion.cwnd(), INITIAL_PACKETS * PACKET);
    }
}
