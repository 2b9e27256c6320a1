//! The limit on unacknowledged data: enough to fill the path, and no more.
//!
//! str0m does not show the congestion window of its SCTP. What is written beyond it is sent in the
//! order it was written, so every excess byte delays every other substream. Too few bytes limit the
//! throughput to budget / round trip. So the budget follows the bandwidth-delay product, measured
//! as delivered rate x minimum round trip, with a margin to probe for more.
//!
//! SCTP's slow start only ends when it has filled the queue of the path and lost packets from it.
//! The budget ends it earlier, as BBR does (draft-ietf-ccwg-bbr): when the round trip grows and the
//! rate does not. The congestion window of SCTP reacts to loss that others cause.
//!
//! ```text
//!            the rate does not grow, or the round trip grows
//! Startup ─────────────────────────────────────────────► Cruise ◄──────┐
//!                                                          │ the minimum round trip is old
//!                                                          ▼           │
//!                                                        Drain ────────┘ it was measured again
//! ```

use std::time::{Duration, Instant};

/// The longest message of a substream.
const MAX_MESSAGE: usize = 16 * 1024;

/// Minimum budget in bytes: a few messages for each of a few substreams.
pub(crate) const MIN_BUDGET: usize = 64 * 1024;

/// Multiple of the bandwidth-delay product during startup. Less than 2, so that a path whose queue
/// holds one bandwidth-delay product loses nothing.
const STARTUP_GAIN: f64 = 1.7;

/// The same after startup: a quarter to probe for more.
const CRUISE_GAIN: f64 = 1.25;

/// The same while the queue that this sender built drains.
const DRAIN_GAIN: f64 = 0.75;

/// Minimum growth factor of the rate per round during startup.
const GROWTH: f64 = 1.25;

/// Rounds without growth that end the startup.
const FLAT_ROUNDS: u32 = 3;

/// Multiple of the minimum round trip above which there is a queue.
const QUEUE_FACTOR: f64 = 1.4;

/// Rounds of draining: the first empties the queue, the second measures without it.
const DRAIN_ROUNDS: u32 = 2;

/// Rounds over which the maximum rate is taken.
const RATE_ROUNDS: usize = 8;

/// How long the minimum round trip is valid.
const MIN_RTT_LIFETIME: Duration = Duration::from_secs(10);

/// See the diagram of the module.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Phase {
    /// Looking for the rate of the path.
    Startup {
        /// The highest rate so far.
        best: f64,
        /// Consecutive rounds without growth.
        flat: u32,
    },
    Cruise,
    Drain {
        rounds_left: u32,
    },
}

/// Limits unacknowledged data by what was delivered.
#[derive(Debug)]
pub(crate) struct Budget {
    bytes: usize,
    max: usize,
    phase: Phase,
    /// Bytes written to SCTP in total.
    written: u64,
    /// Bytes acknowledged in total.
    delivered: u64,
    /// The current round.
    round: Option<Round>,
    min_rtt: Option<(Duration, Instant)>,
    /// Delivered bytes per second of the last rounds, a ring buffer.
    rates: [f64; RATE_ROUNDS],
    next_rate: usize,
}

/// One round: from a write until that byte is acknowledged.
#[derive(Debug, Clone, Copy)]
struct Round {
    /// `written` when the round began: complete once as much is delivered.
    until: u64,
    started_at: Instant,
    delivered_before: u64,
    /// The budget was used up during this round.
    is_limited: bool,
}

impl Budget {
    pub(crate) fn new(max: usize) -> Self {
        Self {
            bytes: MIN_BUDGET.min(max),
            max,
            phase: Phase::Startup { best: 0.0, flat: 0 },
            written: 0,
            delivered: 0,
            round: None,
            min_rtt: None,
            rates: [0.0; RATE_ROUNDS],
            next_rate: 0,
        }
    }

    /// Maximum unacknowledged bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Counts written bytes, after which `unacknowledged` are.
    pub(crate) fn on_written(&mut self, now: Instant, bytes: usize, unacknowledged: usize) {
        self.written = self.written.saturating_add(bytes as u64);
        if self.round.is_none() && bytes > 0 {
            self.round = Some(Round {
                until: self.written,
                started_at: now,
                delivered_before: self.delivered,
                is_limited: false,
            });
        }
        // The next message would not fit.
        if unacknowledged + MAX_MESSAGE > self.bytes
            && let Some(round) = &mut self.round
        {
            round.is_limited = true;
        }
    }

    /// Updates what is unacknowledged; returns whether the budget grew.
    pub(crate) fn on_unacknowledged(&mut self, now: Instant, unacknowledged: usize) -> bool {
        let delivered = self.written.saturating_sub(unacknowledged as u64);
        self.delivered = self.delivered.max(delivered);
        let Some(round) = self.round.filter(|round| self.delivered >= round.until) else {
            return false;
        };
        self.round = None;
        let elapsed = now
            .saturating_duration_since(round.started_at)
            .max(Duration::from_micros(50));
        let is_old = self.update_min_rtt(now, elapsed, round.is_limited);
        // A sender that was not limited says nothing about the path.
        if !round.is_limited {
            return false;
        }
        let rate = (self.delivered - round.delivered_before) as f64 / elapsed.as_secs_f64();
        if let Some(slot) = self.rates.get_mut(self.next_rate) {
            *slot = rate;
        }
        self.next_rate = (self.next_rate + 1) % RATE_ROUNDS;
        self.advance_phase(rate, elapsed, is_old);
        let before = self.bytes;
        self.bytes = self.target().clamp(MIN_BUDGET.min(self.max), self.max);
        self.bytes > before
    }

    /// Updates the minimum round trip; returns whether it is old and has to be measured without a
    /// queue.
    fn update_min_rtt(&mut self, now: Instant, elapsed: Duration, is_limited: bool) -> bool {
        let Some((min_rtt, seen)) = self.min_rtt else {
            self.min_rtt = Some((elapsed, now));
            return false;
        };
        let is_old = now.saturating_duration_since(seen) >= MIN_RTT_LIFETIME;
        // Without refusals this sender builds no queue, and at the end of a drain none is left: the
        // sample is that of the path.
        let is_clear = !is_limited || self.phase == Phase::Drain { rounds_left: 1 };
        if elapsed <= min_rtt || (is_old && is_clear) {
            self.min_rtt = Some((elapsed, now));
            return false;
        }
        is_old
    }

    fn advance_phase(&mut self, rate: f64, elapsed: Duration, min_rtt_is_old: bool) {
        self.phase = match self.phase {
            Phase::Startup { best, flat } => {
                let (best, flat) = if rate >= best * GROWTH {
                    (rate, 0)
                } else {
                    (best, flat + 1)
                };
                // At the minimum budget SCTP itself delays data, and there is no queue.
                let has_queue =
                    self.bytes > 2 * MIN_BUDGET && elapsed > self.min_rtt().mul_f64(QUEUE_FACTOR);
                if flat >= FLAT_ROUNDS || has_queue {
                    Phase::Cruise
                } else {
                    Phase::Startup { best, flat }
                }
            }
            Phase::Cruise if min_rtt_is_old => Phase::Drain {
                rounds_left: DRAIN_ROUNDS,
            },
            Phase::Drain { rounds_left } if rounds_left > 1 => Phase::Drain {
                rounds_left: rounds_left - 1,
            },
            Phase::Cruise | Phase::Drain { .. } => Phase::Cruise,
        };
    }

    /// The recent minimum round trip; zero before the first sample.
    fn min_rtt(&self) -> Duration {
        self.min_rtt.map_or(Duration::ZERO, |(min_rtt, _)| min_rtt)
    }

    fn target(&self) -> usize {
        let rate = self.rates.iter().copied().fold(0.0, f64::max);
        let gain = match self.phase {
            Phase::Startup { .. } => STARTUP_GAIN,
            Phase::Cruise => CRUISE_GAIN,
            Phase::Drain { .. } => DRAIN_GAIN,
        };
        (rate * self.min_rtt().as_secs_f64() * gain) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sends as fast as the budget allows over a path of `rate` bytes/s and `round_trip`.
    fn run(budget: &mut Budget, rate: f64, round_trip: Duration, seconds: f64) -> (f64, Instant) {
        let start = Instant::now();
        let step = Duration::from_micros(100);
        let mut now = start;
        let mut under_way = std::collections::VecDeque::new();
        let (mut unacknowledged, mut delivered) = (0_usize, 0_usize);
        let mut link_free = start;
        while now.duration_since(start).as_secs_f64() < seconds {
            while unacknowledged + 16_384 <= budget.bytes() {
                unacknowledged += 16_384;
                budget.on_written(now, 16_384, unacknowledged);
                link_free = link_free.max(now) + Duration::from_secs_f64(16_384.0 / rate);
                under_way.push_back(link_free + round_trip);
            }
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
        let mut budget = Budget::new(8 * 1024 * 1024);
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
        let mut budget = Budget::new(8 * 1024 * 1024);
        run(&mut budget, 100e6, Duration::from_micros(200), 0.5);
        assert!(budget.bytes() <= 2 * MIN_BUDGET, "{}", budget.bytes());
    }

    #[test]
    fn the_budget_never_leaves_its_bounds() {
        let mut budget = Budget::new(256 * 1024);
        run(&mut budget, 1e9, Duration::from_millis(200), 2.0);
        assert_eq!(budget.bytes(), 256 * 1024);
        let mut tiny = Budget::new(1000);
        run(&mut tiny, 1e6, Duration::from_millis(1), 0.1);
        assert_eq!(tiny.bytes(), 1000);
    }

    #[test]
    fn a_sender_with_nothing_to_send_changes_nothing() {
        let mut budget = Budget::new(1024 * 1024);
        let mut now = Instant::now();
        for _ in 0..100 {
            budget.on_written(now, 100, 100);
            now += Duration::from_millis(80);
            assert!(!budget.on_unacknowledged(now, 0));
        }
        assert_eq!(budget.bytes(), MIN_BUDGET);
    }
}
