//! How much unacknowledged data SCTP may hold: enough to fill the path, and no more.
//!
//! What lies below the scheduler is sent in the order it was written, so every byte too many delays
//! every other substream, and costs the SCTP crate time on each packet. Too few bytes cap the
//! throughput at budget / round trip. So the budget follows the bandwidth-delay product, measured
//! as delivered rate x shortest round trip, with room to find out whether the path has more.
//!
//! SCTP's own slow start only ends when it has filled the queue of the path and lost packets from
//! it; with Reno that costs seconds on a long path. The budget ends it before, as BBR does
//! (draft-ietf-ccwg-bbr), by noticing that data takes longer and does not arrive faster:
//!
//! ```text
//!            rate stands still, or the round trip grows
//! Startup ─────────────────────────────────────────────► Cruise ◄──────┐
//!                                                          │ the shortest round trip is old
//!                                                          ▼           │
//!                                                        Drain ────────┘ it was measured again
//! ```

use std::time::{Duration, Instant};

/// Smallest budget, in bytes: a few frames for each of a few substreams.
pub(crate) const MIN_BUDGET: usize = 64 * 1024;

/// Times the bandwidth-delay product that may be under way while the rate is being found. Less
/// than 2, so that a path whose queue holds one bandwidth-delay product loses nothing.
const STARTUP_GAIN: f64 = 1.7;

/// The same afterwards: a quarter to find out whether the path has more.
const CRUISE_GAIN: f64 = 1.25;

/// The same while the queue that this sender made is let run empty.
const DRAIN_GAIN: f64 = 0.75;

/// Times the delivered rate that may wait for tasks to run, see [`Budget::new`].
const ALLOWANCE_GAIN: f64 = 2.0;

/// A rate that does not grow by as much from one round to the next stands still.
const GROWTH: f64 = 1.25;

/// Rounds without growth that end the startup.
const FLAT_ROUNDS: u32 = 3;

/// Times the shortest round trip that a round may take before there is a queue.
const QUEUE_FACTOR: f64 = 1.4;

/// Rounds of draining: the first lets the queue run empty, the second measures without it.
const DRAIN_ROUNDS: u32 = 2;

/// Rounds for which the highest rate is believed in.
const RATE_ROUNDS: usize = 8;

/// How long the shortest round trip is believed in.
const ROUND_TRIP_MEMORY: Duration = Duration::from_secs(10);

/// See the diagram of the module.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Phase {
    /// Finding the rate of the path.
    Startup {
        /// The highest rate so far.
        best: f64,
        /// Rounds that were no faster.
        flat: u32,
    },
    Cruise,
    Drain {
        rounds_left: u32,
    },
}

/// Follows deliveries and says how much more to hand to SCTP.
#[derive(Debug)]
pub(crate) struct Budget {
    bytes: usize,
    max: usize,
    /// Added to the shortest round trip: time that data may wait for tasks to run. On loopback
    /// that is most of a round trip, and a budget without it leaves both sides idle in turns.
    allowance: Duration,
    phase: Phase,
    /// Bytes handed to SCTP since the connection began.
    written: u64,
    /// Bytes acknowledged since the connection began.
    delivered: u64,
    /// The running measurement of one round.
    probe: Option<Probe>,
    shortest: Option<(Duration, Instant)>,
    /// Delivered bytes a second of the last rounds, a ring.
    rates: [f64; RATE_ROUNDS],
    next_rate: usize,
}

/// One round: from a write until that byte is acknowledged.
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
            phase: Phase::Startup { best: 0.0, flat: 0 },
            written: 0,
            delivered: 0,
            probe: None,
            shortest: None,
            rates: [0.0; RATE_ROUNDS],
            next_rate: 0,
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
        let is_old = self.note_round_trip(now, elapsed, probe.limited);
        // A sender that had nothing to send, or room to send it, says nothing about the path.
        if !probe.limited {
            return false;
        }
        let rate = (self.delivered - probe.delivered_before) as f64 / elapsed.as_secs_f64();
        if let Some(slot) = self.rates.get_mut(self.next_rate) {
            *slot = rate;
        }
        self.next_rate = (self.next_rate + 1) % RATE_ROUNDS;
        self.next_phase(rate, elapsed, is_old);
        let before = self.bytes;
        self.bytes = self.target().clamp(MIN_BUDGET.min(self.max), self.max);
        self.bytes > before
    }

    /// Keeps the shortest round trip; returns whether it has to be measured without a queue.
    fn note_round_trip(&mut self, now: Instant, elapsed: Duration, limited: bool) -> bool {
        let Some((shortest, seen)) = self.shortest else {
            self.shortest = Some((elapsed, now));
            return false;
        };
        let is_old = now.saturating_duration_since(seen) >= ROUND_TRIP_MEMORY;
        // Without the budget in the way this sender makes no queue, and at the end of a drain it
        // has none left: what the path takes then is what it takes.
        let is_clear = !limited || self.phase == Phase::Drain { rounds_left: 1 };
        if elapsed <= shortest || (is_old && is_clear) {
            self.shortest = Some((elapsed, now));
            return false;
        }
        is_old
    }

    fn next_phase(&mut self, rate: f64, elapsed: Duration, round_trip_is_old: bool) {
        self.phase = match self.phase {
            Phase::Startup { best, flat } => {
                let (best, flat) = if rate >= best * GROWTH {
                    (rate, 0)
                } else {
                    (best, flat + 1)
                };
                // With the smallest budget it is SCTP that holds data back, and no queue.
                let queue = self.bytes > 2 * MIN_BUDGET
                    && elapsed > self.round_trip().mul_f64(QUEUE_FACTOR) + self.allowance;
                if flat >= FLAT_ROUNDS || queue {
                    Phase::Cruise
                } else {
                    Phase::Startup { best, flat }
                }
            }
            Phase::Cruise if round_trip_is_old => Phase::Drain {
                rounds_left: DRAIN_ROUNDS,
            },
            Phase::Drain { rounds_left } if rounds_left > 1 => Phase::Drain {
                rounds_left: rounds_left - 1,
            },
            Phase::Cruise | Phase::Drain { .. } => Phase::Cruise,
        };
    }

    /// The shortest round trip of the last seconds; zero before one was measured.
    fn round_trip(&self) -> Duration {
        self.shortest
            .map_or(Duration::ZERO, |(shortest, _)| shortest)
    }

    fn target(&self) -> usize {
        let rate = self.rates.iter().copied().fold(0.0, f64::max);
        let gain = match self.phase {
            Phase::Startup { .. } => STARTUP_GAIN,
            Phase::Cruise => CRUISE_GAIN,
            Phase::Drain { .. } => DRAIN_GAIN,
        };
        let path = rate * self.round_trip().as_secs_f64() * gain;
        let tasks = rate * self.allowance.as_secs_f64() * ALLOWANCE_GAIN;
        (path + tasks) as usize
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
