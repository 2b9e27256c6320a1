//! How much may be under way: congestion control.
//!
//! The window grows as RFC 9260 section 7.2 says, by what is acknowledged in slow start and by a packet a
//! round trip after it. What it does about loss is not Reno's halving for each lost packet, which holds a long
//! path with random loss to 1.22 x packet / (round trip x sqrt p): as in BBR (draft-ietf-ccwg-bbr section 5.5.10),
//! a round may lose 2 % before the window shrinks, by a factor of 0.7. What keeps queues
//! short is the budget of the layer above (the user), which follows the bandwidth-delay product.

/// Packets that may be under way at first (RFC 6928).
const INITIAL_PACKETS: usize = 10;

/// Smallest window, in packets: fewer can not show a loss by what comes behind it.
const MIN_PACKETS: usize = 4;

/// Part of the bytes of a round that may be lost, as its inverse.
const TOLERATED: usize = 50;

/// What is left of the window when more is lost, in tenths.
const BETA_TENTHS: usize = 7;

/// After slow start the window grows by this part of itself each round trip, or by a packet if that is more.
const GROWTH: usize = 32;

/// The congestion window of an association.
#[derive(Debug)]
pub(super) struct Congestion {
    window: usize,
    threshold: usize,
    /// Longest packet.
    packet: usize,
    /// Bytes acknowledged and lost in the running round.
    acknowledged: usize,
    lost: usize,
    /// The window was reduced in this round.
    reduced: bool,
    /// Bytes acknowledged since the window grew last, after slow start.
    credit: usize,
}

impl Congestion {
    pub(super) fn new(packet: usize) -> Self {
        Self {
            window: INITIAL_PACKETS * packet,
            threshold: usize::MAX,
            packet,
            acknowledged: 0,
            lost: 0,
            reduced: false,
            credit: 0,
        }
    }

    /// Bytes that may be under way.
    pub(super) fn window(&self) -> usize {
        self.window
    }

    /// Bytes were acknowledged. `limited` says whether the window had held something back.
    pub(super) fn on_acknowledged(&mut self, bytes: usize, limited: bool) {
        self.acknowledged += bytes;
        if !limited || self.reduced {
            return;
        }
        if self.window < self.threshold {
            self.window = self.window.saturating_add(bytes).min(self.threshold);
            return;
        }
        self.credit += bytes;
        let step = self.packet.max(self.window / GROWTH);
        // A step for each window that is acknowledged.
        let part = self.credit.saturating_mul(step) / self.window;
        if part >= self.packet {
            self.window += part;
            self.credit = 0;
        }
    }

    /// Bytes are lost. Returns whether that made the window smaller: then the round ends when something is
    /// acknowledged that is sent from now on, as everything before it was sent into the larger one.
    pub(super) fn on_lost(&mut self, bytes: usize) -> bool {
        self.lost += bytes;
        if self.reduced {
            return false;
        }
        // Of the round so far, or of a window: early in a round one packet is much of it.
        let base = self.window.max(self.acknowledged + self.lost);
        // And what chance adds to that: a path that loses 1 % loses 4 % of a short round now and then.
        let chance = (base / self.packet).isqrt() / 4 * self.packet;
        if self.lost > (base / TOLERATED + chance).max(self.packet - 1) {
            self.reduced = true;
            self.shrink_to(self.window / 10 * BETA_TENTHS);
        }
        self.reduced
    }

    /// A round trip is over.
    pub(super) fn on_round(&mut self) {
        self.acknowledged = 0;
        self.lost = 0;
        self.reduced = false;
    }

    /// Nothing at all was acknowledged for long (RFC 9260 section 7.2.3).
    pub(super) fn on_timeout(&mut self) {
        self.shrink_to(self.window / 2);
        self.window = self.packet;
        self.credit = 0;
        self.on_round();
    }

    fn shrink_to(&mut self, window: usize) {
        self.window = window.max(MIN_PACKETS * self.packet);
        self.threshold = self.window;
        self.credit = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACKET: usize = 1000;

    /// A round in which everything that may be under way is, and the given number of packets is lost.
    fn round(congestion: &mut Congestion, lost: usize) {
        let packets = congestion.window() / PACKET;
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
            assert_eq!(congestion.window(), (INITIAL_PACKETS << rounds) * PACKET);
            round(&mut congestion, 0);
        }
    }

    #[test]
    fn a_loss_within_the_tolerance_costs_nothing_and_one_above_it_three_tenths_once_a_round() {
        let mut congestion = Congestion::new(PACKET);
        while congestion.window() < 500 * PACKET {
            round(&mut congestion, 0);
        }
        let before = congestion.window();
        round(&mut congestion, before / PACKET / TOLERATED);
        assert!(congestion.window() >= before);
        let before = congestion.window();
        round(&mut congestion, before / PACKET / 15);
        let after = congestion.window();
        assert!(
            after < before * 8 / 10 && after >= before * 6 / 10,
            "{after}"
        );
        // Slow start is over.
        round(&mut congestion, 0);
        let grown = congestion.window();
        assert!(grown > after && grown < after * 21 / 20, "{grown}");
    }

    #[test]
    fn a_small_window_shrinks_with_each_round_that_loses() {
        let mut congestion = Congestion::new(PACKET);
        round(&mut congestion, 1);
        assert_eq!(congestion.window(), 7 * PACKET);
        for _ in 0..20 {
            round(&mut congestion, 1);
        }
        assert!(congestion.window() <= (MIN_PACKETS + 1) * PACKET);
    }

    #[test]
    fn a_timeout_begins_again_and_slow_start_ends_at_half() {
        let mut congestion = Congestion::new(PACKET);
        while congestion.window() < 160 * PACKET {
            round(&mut congestion, 0);
        }
        congestion.on_timeout();
        assert_eq!(congestion.window(), PACKET);
        for _ in 0..7 {
            round(&mut congestion, 0);
        }
        let window = congestion.window();
        assert!((80 * PACKET..86 * PACKET).contains(&window), "{window}");
    }

    #[test]
    fn who_does_not_use_the_window_does_not_grow_it() {
        let mut congestion = Congestion::new(PACKET);
        for _ in 0..1000 {
            congestion.on_acknowledged(PACKET, false);
        }
        assert_eq!(congestion.window(), INITIAL_PACKETS * PACKET);
    }
}
