//! HyStart++ (RFC 9406): the end of slow start before the queue overflows.

/// RTT samples in a round before it is judged (N_RTT_SAMPLE).
const SAMPLES: f64 = 8.0;

/// Bounds of the increase in RTT that ends slow start, in seconds (MIN_RTT_THRESH,
/// MAX_RTT_THRESH).
const THRESHOLD: (f64, f64) = (0.004, 0.016);

/// The increase, as a divisor of the round trip (MIN_RTT_DIVISOR).
const DIVISOR: f64 = 8.0;

/// Rounds of conservative slow start (CSS_ROUNDS).
const CONSERVATIVE_ROUNDS: u32 = 5;

/// Divisor of the growth in conservative slow start (CSS_GROWTH_DIVISOR).
const CONSERVATIVE_GROWTH: f64 = 4.0;

/// State of a slow start.
#[derive(Debug, Clone, Copy)]
pub(super) struct HyStart {
    /// Minimum RTT of the last and of the current round, in seconds.
    last_min: f64,
    current_min: f64,
    samples: f64,
    conservative: Option<Conservative>,
}

#[derive(Debug, Clone, Copy)]
struct Conservative {
    rounds: u32,
    /// Minimum RTT when it began.
    baseline: f64,
}

impl HyStart {
    pub(super) fn new() -> Self {
        Self {
            last_min: f64::INFINITY,
            current_min: f64::INFINITY,
            samples: 0.0,
            conservative: None,
        }
    }

    /// Handles the acknowledgement of `packets` with an RTT in seconds. Returns whether slow start
    /// is over.
    pub(super) fn on_ack(&mut self, rtt: Option<f64>, is_round_start: bool, packets: f64) -> bool {
        if is_round_start {
            if let Some(conservative) = &mut self.conservative {
                conservative.rounds += 1;
                if conservative.rounds >= CONSERVATIVE_ROUNDS {
                    return true;
                }
            }
            self.last_min = self.current_min;
            self.current_min = f64::INFINITY;
            self.samples = 0.0;
        }
        let Some(rtt) = rtt else {
            return false;
        };
        self.current_min = self.current_min.min(rtt);
        self.samples += packets;
        if self.samples < SAMPLES || self.last_min == f64::INFINITY {
            return false;
        }
        let threshold = (self.last_min / DIVISOR).clamp(THRESHOLD.0, THRESHOLD.1);
        match self.conservative {
            None if self.current_min >= self.last_min + threshold => {
                self.conservative = Some(Conservative {
                    rounds: 0,
                    baseline: self.current_min,
                });
            }
            // The increase was noise.
            Some(Conservative { baseline, .. }) if self.current_min < baseline => {
                self.conservative = None;
            }
            _ => {}
        }
        false
    }

    /// Divisor of the growth.
    pub(super) fn growth_divisor(&self) -> f64 {
        match self.conservative {
            Some(_) => CONSERVATIVE_GROWTH,
            None => 1.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One round of `samples` acknowledgements with this RTT.
    fn round(hystart: &mut HyStart, rtt: f64, samples: u32) -> bool {
        (0..samples).any(|n| hystart.on_ack(Some(rtt), n == 0, 1.0))
    }

    #[test]
    fn a_growing_round_trip_slows_growth_and_ends_slow_start_after_five_rounds() {
        let mut hystart = HyStart::new();
        for _ in 0..5 {
            assert!(!round(&mut hystart, 0.050, 20));
            assert_eq!(hystart.growth_divisor(), 1.0);
        }
        assert!(!round(&mut hystart, 0.057, 20));
        assert_eq!(hystart.growth_divisor(), 4.0);
        let rounds = (1..).find(|_| round(&mut hystart, 0.060, 20));
        assert_eq!(rounds, Some(5));
    }

    #[test]
    fn a_round_trip_that_shrinks_again_resumes_slow_start() {
        let mut hystart = HyStart::new();
        round(&mut hystart, 0.050, 20);
        round(&mut hystart, 0.060, 20);
        assert_eq!(hystart.growth_divisor(), 4.0);
        round(&mut hystart, 0.051, 20);
        assert_eq!(hystart.growth_divisor(), 1.0);
    }

    #[test]
    fn few_samples_and_unknown_round_trips_decide_nothing() {
        let mut hystart = HyStart::new();
        round(&mut hystart, 0.050, 20);
        round(&mut hystart, 0.100, 7);
        assert!(!hystart.on_ack(None, false, 100.0));
        assert_eq!(hystart.growth_divisor(), 1.0);
    }
}
