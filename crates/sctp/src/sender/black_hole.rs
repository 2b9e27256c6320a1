//! Detection of a path that no longer takes long packets (black hole, RFC 8899 section 4.3).

/// Long packets lost in a row, while shorter ones sent after them arrive. As many can be lost by
/// chance only where every second packet is.
const LOSSES: u32 = 10;

/// Round trips over which they are lost, each of packets sent after the loss of the round before
/// was detected. A buffer that overflows drops more than [`LOSSES`] in a row, and has room for a
/// short packet before it has room for a long one: on loopback, four of ten transfers of 1 GiB fell
/// back to short packets.
const ROUNDS: u32 = 3;

/// What became of packets that are longer than every path is assumed to take.
#[derive(Debug, Default)]
pub(super) struct BlackHole {
    /// The highest number of a long packet that has arrived.
    arrived: Option<u64>,
    /// Long packets sent later that were lost, and the last of them.
    lost: u32,
    first_lost: u64,
    last_lost: Option<u64>,
    /// Round trips in which they were lost, and the first packet of the next.
    rounds: u32,
    next_round: u64,
    is_found: bool,
}

impl BlackHole {
    /// The long packet `number` has arrived.
    pub(super) fn on_arrived(&mut self, number: u64) {
        self.arrived = self.arrived.max(Some(number));
        // One that was sent before those that are lost says nothing about them.
        if self.lost == 0 || number > self.first_lost {
            (self.lost, self.rounds) = (0, 0);
        }
    }

    /// The long packet `number` is lost, and the next one is `next_packet`. What was lost before
    /// another one arrived was not too long: a full queue drops dozens in a row.
    pub(super) fn on_lost(&mut self, number: u64, next_packet: u64) {
        // A packet may hold several chunks that are longer than every path carries.
        let is_counted = self.last_lost.replace(number) == Some(number);
        if !is_counted && self.arrived.is_none_or(|arrived| number > arrived) {
            if self.lost == 0 {
                self.first_lost = number;
            }
            self.lost += 1;
            if number >= self.next_round {
                self.rounds += 1;
                self.next_round = next_packet;
            }
            self.is_found |= self.lost >= LOSSES && self.rounds >= ROUNDS;
        }
    }

    /// Nothing arrives any more.
    pub(super) fn on_timeout(&mut self) {
        self.is_found = true;
    }

    /// Whether one was found since the last call.
    pub(super) fn take(&mut self) -> bool {
        if self.is_found {
            (self.lost, self.rounds) = (0, 0);
        }
        std::mem::take(&mut self.is_found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_of_losses_that_a_later_long_packet_survives_is_none() {
        let mut hole = BlackHole::default();
        for round in (0..1_000).step_by(100) {
            hole.on_arrived(round + 99);
            (round..round + 99).for_each(|number| hole.on_lost(number, round + 100));
        }
        assert!(!hole.take());
    }

    #[test]
    fn a_burst_of_losses_of_one_round_trip_is_none_although_a_short_packet_survives_it() {
        let mut hole = BlackHole::default();
        hole.on_arrived(0);
        for round in [1, 200] {
            (round..round + 100).for_each(|number| hole.on_lost(number, round + 150));
            assert!(!hole.take());
        }
    }

    #[test]
    fn a_packet_from_before_the_losses_that_is_late_does_not_hide_them() {
        let mut hole = BlackHole::default();
        for round in 0..3 {
            (0..4).for_each(|n| hole.on_lost(100 + 10 * round + n, 110 + 10 * round));
            hole.on_arrived(50 + round);
        }
        assert!(hole.take());
    }

    #[test]
    fn several_chunks_of_one_packet_are_one_loss() {
        let mut hole = BlackHole::default();
        (0..100).for_each(|_| hole.on_lost(7, 8));
        assert!(!hole.take());
    }

    #[test]
    fn the_tenth_loss_in_a_row_over_three_rounds_is_one_and_is_reported_once() {
        let mut hole = BlackHole::default();
        hole.on_arrived(7);
        (8..17).for_each(|number| hole.on_lost(number, number - number % 4 + 4));
        assert!(!hole.take());
        hole.on_lost(17, 20);
        assert!(hole.take());
        assert!(!hole.take());
        hole.on_lost(18, 20);
        assert!(!hole.take(), "counted anew");
    }
}
