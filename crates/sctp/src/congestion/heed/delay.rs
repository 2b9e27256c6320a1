//! What round trips say about the queue of the path. Delays are in seconds.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Periods of which the minimum RTT is remembered, and their length. A longer route is learnt in
/// `PERIODS * PERIOD` at most.
const PERIODS: usize = 5;
const PERIOD: Duration = Duration::from_secs(5);

/// Samples that may count as recent.
const RECENT: usize = 8;

/// Round trips of a path.
#[derive(Debug)]
pub(super) struct Delay {
    /// Start and minimum RTT of the last periods.
    periods: VecDeque<(Instant, f64)>,
    base: f64,
    /// The last samples.
    recent: VecDeque<(Instant, f64)>,
    /// When a sample was last near the base.
    near_base_at: Option<Instant>,
    /// Variation within a round trip that is not caused by a queue of our own.
    jitter: f64,
    /// Minimum and maximum of the current round trip.
    pub(super) round_min: f64,
    pub(super) round_max: f64,
}

impl Delay {
    pub(super) fn new() -> Self {
        Self {
            periods: VecDeque::with_capacity(PERIODS),
            base: f64::INFINITY,
            recent: VecDeque::with_capacity(RECENT),
            near_base_at: None,
            jitter: 0.0,
            round_min: f64::INFINITY,
            round_max: 0.0,
        }
    }

    pub(super) fn on_sample(&mut self, now: Instant, rtt: f64, srtt: f64) {
        let is_over = |(start, _): &(Instant, f64)| now.saturating_duration_since(*start) > PERIOD;
        if self.periods.back().is_none_or(is_over) {
            if self.periods.len() == PERIODS {
                self.periods.pop_front();
            }
            self.periods.push_back((now, rtt));
        } else if let Some((_, min)) = self.periods.back_mut() {
            *min = min.min(rtt);
        }
        let minima = self.periods.iter().map(|(_, min)| *min);
        self.base = minima.fold(f64::INFINITY, f64::min);
        if rtt <= self.base + (self.base / 32.0).clamp(0.001, 0.004) {
            self.near_base_at = Some(now);
        }
        self.round_min = self.round_min.min(rtt);
        self.round_max = self.round_max.max(rtt);
        if self.recent.len() == RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back((now, rtt));
        let is_old = |(at, _): &(Instant, f64)| {
            now.saturating_duration_since(*at).as_secs_f64() > srtt / 4.0
        };
        while self.recent.front().is_some_and(is_old) {
            self.recent.pop_front();
        }
    }

    /// RTT of the path without a queue: the minimum of the last periods.
    pub(super) fn base(&self) -> f64 {
        self.base
    }

    pub(super) fn has_sample(&self) -> bool {
        self.base.is_finite()
    }

    /// Queueing delay at the moment: the median of the last samples, without that of the base.
    /// Single samples are late for other reasons, and the burst of a rival fills a short queue for
    /// some packets only.
    pub(super) fn queueing(&self) -> f64 {
        let mut samples = [0.0; RECENT];
        let count = self.recent.len().min(RECENT);
        for (sample, (_, rtt)) in samples.iter_mut().zip(&self.recent) {
            *sample = *rtt;
        }
        let samples = &mut samples[..count];
        samples.sort_unstable_by(f64::total_cmp);
        let median = samples.get(count.saturating_sub(1) / 2);
        median.map_or(0.0, |median| (median - self.base).max(0.0))
    }

    pub(super) fn jitter(&self) -> f64 {
        self.jitter
    }

    pub(super) fn learn_jitter(&mut self) {
        if self.has_round_sample() {
            self.jitter += (self.round_max - self.round_min - self.jitter) / 8.0;
        }
    }

    pub(super) fn has_round_sample(&self) -> bool {
        self.round_min.is_finite()
    }

    /// Queueing delay that all packets of the round trip had at least.
    pub(super) fn round_queueing(&self) -> f64 {
        self.round_min - self.base
    }

    pub(super) fn begin_round(&mut self) {
        (self.round_min, self.round_max) = (f64::INFINITY, 0.0);
    }

    /// How long no sample has been near the base.
    pub(super) fn since_near_base(&self, now: Instant) -> Duration {
        let since = |at| now.saturating_duration_since(at);
        self.near_base_at.map_or(Duration::ZERO, since)
    }

    pub(super) fn touch_base(&mut self, now: Instant) {
        self.near_base_at = Some(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_base_is_the_minimum_and_a_longer_route_is_learnt() {
        let start = Instant::now();
        let mut delay = Delay::new();
        for second in 0..10 {
            let now = start + Duration::from_secs(second);
            delay.on_sample(now, 0.050 + 0.001 * second as f64, 0.05);
        }
        assert_eq!(delay.base(), 0.050);
        let learnt = (10..100).find(|second| {
            delay.on_sample(start + Duration::from_secs(*second), 0.100, 0.1);
            delay.base() == 0.100
        });
        assert!((20..=36).contains(&learnt.unwrap()), "{learnt:?}");
    }

    #[test]
    fn one_late_sample_is_no_queue() {
        let start = Instant::now();
        let mut delay = Delay::new();
        delay.on_sample(start, 0.050, 0.05);
        delay.on_sample(start + Duration::from_millis(2), 0.090, 0.05);
        assert_eq!(delay.queueing(), 0.0);
        for n in 10..30 {
            delay.on_sample(start + Duration::from_millis(2 * n), 0.070, 0.05);
        }
        assert!((delay.queueing() - 0.020).abs() < 1e-9);
    }
}
