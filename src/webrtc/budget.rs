//! How much unacknowledged data SCTP may hold: enough to fill the path, and no more.
//!
//! What lies below the scheduler is sent in the order it was written, so every byte too many delays
//! every other substream, and costs the SCTP crate time on each packet. Too few bytes cap the
//! throughput at budget / round trip. So the budget follows the bandwidth-delay product, measured
//! as delivered rate x shortest round trip, with room to find out whether the path has more.

use std::time::{Duration, Instant};

/// Smallest budget, in bytes: a few frames for each of a few substreams.
pub(crate) const MIN_BUDGET: usize = 64 * 1024;

/// Times the bandwidth-delay product that may be under way, so that the rate can double from one
/// round trip to the next.
const HEADROOM: f64 = 2.0;

/// How long the shortest round trip is believed in.
const ROUND_TRIP_MEMORY: Duration = Duration::from_secs(10);

/// Follows deliveries and says how much more to hand to SCTP.
#[derive(Debug)]
pub(crate) struct Budget {
    bytes: usize,
    max: usize,
    /// Added to the shortest round trip: time that data may wait for tasks to run. On loopback
    /// that is most of a round trip, and a budget without it leaves both sides idle in turns.
    allowance: Duration,
    /// Bytes handed to SCTP since the connection began.
    written: u64,
    /// Bytes acknowledged since the connection began.
    delivered: u64,
    /// The byte whose delivery ends the running measurement, with the state when it was written.
    probe: Option<Probe>,
    shortest: Option<(Duration, Instant)>,
}

#[derive(Debug, Clone, Copy)]
struct Probe {
    /// `written` when the probe began: complete once as much is delivered.
    until: u64,
    began: Instant,
    delivered_before: u64,
    /// The budget held writes back while this probe ran.
    limited: bool,
}

impl Budget {
    pub(crate) fn new(max: usize, allowance: Duration) -> Self {
        Self {
            bytes: MIN_BUDGET.min(max),
            max,
            allowance,
            written: 0,
            delivered: 0,
            probe: None,
            shortest: None,
        }
    }

    /// Bytes that may be unacknowledged.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Takes note of a write.
    pub(crate) fn on_written(&mut self, now: Instant, bytes: usize) {
        self.written = self.written.saturating_add(bytes as u64);
        if self.probe.is_none() {
            self.probe = Some(Probe {
                until: self.written,
                began: now,
                delivered_before: self.delivered,
                limited: false,
            });
        }
    }

    /// Takes note that a write was refused for want of budget.
    pub(crate) fn on_refused(&mut self) {
        if let Some(probe) = &mut self.probe {
            probe.limited = true;
        }
    }

    /// Takes note of what is left unacknowledged; returns whether the budget grew.
    pub(crate) fn on_unacknowledged(&mut self, now: Instant, unacknowledged: usize) -> bool {
        let delivered = self.written.saturating_sub(unacknowledged as u64);
        self.delivered = self.delivered.max(delivered);
        let Some(probe) = self.probe.filter(|probe| self.delivered >= probe.until) else {
            return false;
        };
        self.probe = None;
        let elapsed = now
            .saturating_duration_since(probe.began)
            .max(Duration::from_micros(50));
        let shortest = match self.shortest {
            Some((shortest, seen))
                if shortest <= elapsed
                    && now.saturating_duration_since(seen) < ROUND_TRIP_MEMORY =>
            {
                shortest
            }
            _ => {
                self.shortest = Some((elapsed, now));
                elapsed
            }
        };
        // A sender that had nothing to send, or room to send it, says nothing about the path.
        if !probe.limited {
            return false;
        }
        let rate = (self.delivered - probe.delivered_before) as f64 / elapsed.as_secs_f64();
        let product = rate * (shortest + self.allowance).as_secs_f64() * HEADROOM;
        let before = self.bytes;
        self.bytes = (product as usize).clamp(MIN_BUDGET.min(self.max), self.max);
        self.bytes > before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sends as fast as the budget and a path of `rate` bytes/s and `round_trip` allow.
    fn run(budget: &mut Budget, rate: f64, round_trip: Duration, seconds: f64) -> (f64, Instant) {
        let start = Instant::now();
        let step = Duration::from_micros(100);
        let mut now = start;
        let mut under_way = std::collections::VecDeque::new();
        let (mut unacknowledged, mut delivered) = (0_usize, 0_usize);
        let mut link_free = start;
        while now.duration_since(start).as_secs_f64() < seconds {
            while unacknowledged + 16_384 <= budget.bytes() {
                budget.on_written(now, 16_384);
                unacknowledged += 16_384;
                link_free = link_free.max(now) + Duration::from_secs_f64(16_384.0 / rate);
                under_way.push_back(link_free + round_trip);
            }
            budget.on_refused();
            now += step;
            while under_way.front().is_some_and(|at| *at <= now) {
                under_way.pop_front();
                unacknowledged -= 16_384;
                delivered += 16_384;
            }
            budget.on_unacknowledged(now, unacknowledged);
        }
        (delivered as f64 / seconds, now)
    }

    #[test]
    fn a_long_path_is_filled() {
        let mut budget = Budget::new(8 * 1024 * 1024, Duration::ZERO);
        let (goodput, _) = run(&mut budget, 12.5e6, Duration::from_millis(50), 5.0);
        assert!(goodput > 0.85 * 12.5e6, "{goodput}");
        let product = 12.5e6 * 0.05;
        assert!(
            (budget.bytes() as f64) < 4.0 * product,
            "{}",
            budget.bytes()
        );
    }

    #[test]
    fn a_short_path_keeps_a_small_budget() {
        let mut budget = Budget::new(8 * 1024 * 1024, Duration::ZERO);
        run(&mut budget, 100e6, Duration::from_micros(200), 0.5);
        assert!(budget.bytes() <= 2 * MIN_BUDGET, "{}", budget.bytes());
    }

    #[test]
    fn an_allowance_for_tasks_counts_on_a_fast_path_and_not_on_a_slow_one() {
        let allowance = Duration::from_micros(500);
        let mut fast = Budget::new(8 * 1024 * 1024, allowance);
        run(&mut fast, 400e6, Duration::from_micros(200), 0.5);
        assert!(fast.bytes() >= 4 * MIN_BUDGET, "{}", fast.bytes());
        let mut slow = Budget::new(8 * 1024 * 1024, allowance);
        run(&mut slow, 125e3, Duration::from_millis(50), 5.0);
        assert_eq!(slow.bytes(), MIN_BUDGET);
    }

    #[test]
    fn the_budget_never_leaves_its_bounds() {
        let mut budget = Budget::new(256 * 1024, Duration::ZERO);
        run(&mut budget, 1e9, Duration::from_millis(200), 2.0);
        assert_eq!(budget.bytes(), 256 * 1024);
        let mut tiny = Budget::new(1000, Duration::ZERO);
        run(&mut tiny, 1e6, Duration::from_millis(1), 0.1);
        assert_eq!(tiny.bytes(), 1000);
    }

    #[test]
    fn a_sender_with_nothing_to_send_changes_nothing() {
        let mut budget = Budget::new(1024 * 1024, Duration::ZERO);
        let mut now = Instant::now();
        for _ in 0..100 {
            budget.on_written(now, 100);
            now += Duration::from_millis(80);
            assert!(!budget.on_unacknowledged(now, 0));
        }
        assert_eq!(budget.bytes(), MIN_BUDGET);
    }
}
