//! What may be in flight towards another stack nearby.
//!
//! A queue of milliseconds is short for the bottleneck of a long path. On the path within a host
//! or a network it is a megabyte, and it stands where no window announces it: in the socket buffer
//! of the peer, where Linux drops what exceeds 90 packets by default, and in the queues between
//! its tasks. litep2p resets a substream that has 256 messages to read, however briefly: 8 of 20
//! runs of its uploads on loopback failed with a queue of 5 ms, and 0 of 30 with this limit.
//!
//! So towards other stacks, on a path this short, no more is in flight than the path holds and a
//! few packets. This library enlarges its socket buffers, and has credit for each substream.

use std::time::Duration;

/// RTT below which a path has no queue but those of its ends.
const NEARBY: Duration = Duration::from_millis(3);

/// Packets in flight beyond what the path holds. With 64 of them litep2p reset 4 of 10 uploads of
/// 64 MiB, with 32 still 3 of 12, with 24 none of 12; pion receives at 0.96 of its rate without the
/// limit.
const PACKETS: usize = 24;

/// The limit for one association.
#[derive(Debug, Default)]
pub(super) struct Nearby {
    is_lifted: bool,
    /// Maximum delivery rates of the current and the previous round trip, in bytes per second.
    rates: [f64; 2],
}

impl Nearby {
    /// Nothing is limited from now on.
    pub(super) fn lift(&mut self) {
        self.is_lifted = true;
    }

    /// Handles a sample of the delivery rate, in bytes per second.
    pub(super) fn on_sample(&mut self, rate: Option<f64>, is_round_start: bool) {
        let [current, previous] = &mut self.rates;
        if is_round_start {
            *previous = std::mem::take(current);
        }
        *current = current.max(rate.unwrap_or(0.0));
    }

    /// Maximum bytes in flight on a path of this RTT.
    pub(super) fn limit(&self, min_rtt: Duration, max_packet: usize) -> usize {
        if self.is_lifted || min_rtt >= NEARBY {
            return usize::MAX;
        }
        let [current, previous] = self.rates;
        let path = (current.max(previous) * min_rtt.as_secs_f64()) as usize;
        path.saturating_add(PACKETS.saturating_mul(max_packet))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACKET: usize = 1000;
    const SHORT: Duration = Duration::from_millis(1);

    #[test]
    fn the_path_and_a_few_packets_are_in_flight_at_most() {
        let mut nearby = Nearby::default();
        assert_eq!(nearby.limit(SHORT, PACKET), 24_000);
        // 50 MB/s fill a path of 1 ms with 50 000 bytes.
        nearby.on_sample(Some(50e6), true);
        assert_eq!(nearby.limit(SHORT, PACKET), 74_000);
        // One slow round trip forgets nothing, two do.
        nearby.on_sample(Some(10e6), true);
        assert_eq!(nearby.limit(SHORT, PACKET), 74_000);
        nearby.on_sample(Some(10e6), true);
        assert_eq!(nearby.limit(SHORT, PACKET), 34_000);
    }

    #[test]
    fn neither_a_longer_path_nor_this_library_is_limited() {
        let mut nearby = Nearby::default();
        assert_eq!(nearby.limit(NEARBY, PACKET), usize::MAX);
        assert_eq!(nearby.limit(Duration::MAX, PACKET), usize::MAX);
        nearby.lift();
        assert_eq!(nearby.limit(SHORT, PACKET), usize::MAX);
    }
}
