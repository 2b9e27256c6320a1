//! Loss that does not depend on the queue, and a policer.

use std::time::Duration;

use fastrand::Rng;

/// The Gilbert-Elliott model, by time: a state in which packets are lost comes and goes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Burst {
    /// Mean length of the state without loss.
    pub(crate) good: Duration,
    /// Mean length of the state with loss.
    pub(crate) bad: Duration,
    /// Probability of loss in the bad state.
    pub(crate) loss: f64,
}

/// The state of the model.
#[derive(Debug)]
pub(crate) struct GilbertElliott {
    settings: Burst,
    is_bad: bool,
    /// When the state changes.
    flip: Duration,
}

impl GilbertElliott {
    pub(crate) fn new(settings: Burst, rng: &mut Rng) -> Self {
        Self {
            settings,
            is_bad: false,
            flip: exponential(settings.good, rng),
        }
    }

    /// Whether a packet at `now` is lost.
    pub(crate) fn loses(&mut self, now: Duration, rng: &mut Rng) -> bool {
        while self.flip <= now {
            self.is_bad = !self.is_bad;
            let mean = match self.is_bad {
                true => self.settings.bad,
                false => self.settings.good,
            };
            // Not zero, so that the loop ends.
            self.flip += exponential(mean, rng) + Duration::from_nanos(1);
        }
        self.is_bad && rng.f64() < self.settings.loss
    }
}

fn exponential(mean: Duration, rng: &mut Rng) -> Duration {
    mean.mul_f64(-(1.0 - rng.f64()).ln())
}

/// A token bucket without a queue.
#[derive(Debug)]
pub(crate) struct Policer {
    /// Bytes in a second.
    rate: f64,
    /// Maximum number of tokens, in bytes.
    burst: f64,
    tokens: f64,
    refilled: Duration,
}

impl Policer {
    /// A full bucket that fills with `bits` in a second.
    pub(crate) fn new(bits: f64, burst: f64) -> Self {
        Self {
            rate: bits / 8.0,
            burst,
            tokens: burst,
            refilled: Duration::ZERO,
        }
    }

    /// Whether a packet of this length conforms.
    pub(crate) fn conforms(&mut self, now: Duration, len: usize) -> bool {
        let since = now.saturating_sub(self.refilled).as_secs_f64();
        self.tokens = (self.tokens + since * self.rate).min(self.burst);
        self.refilled = now;
        let does = self.tokens >= len as f64;
        if does {
            self.tokens -= len as f64;
        }
        does
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn bursts_have_their_mean_lengths() {
        let mut rng = Rng::with_seed(7);
        let settings = Burst {
            good: 95 * MS,
            bad: 5 * MS,
            loss: 1.0,
        };
        let mut model = GilbertElliott::new(settings, &mut rng);
        let lost: Vec<bool> = (0..1_000_000)
            .map(|t| model.loses(t * MS / 10, &mut rng))
            .collect();
        let share = lost.iter().filter(|lost| **lost).count() as f64 / lost.len() as f64;
        assert!((0.04..0.06).contains(&share), "{share}");
        let bursts = lost
            .windows(2)
            .filter(|pair| pair == &[false, true])
            .count();
        assert!((850..1150).contains(&bursts), "{bursts}");
    }

    #[test]
    fn a_policer_lets_its_burst_pass_and_then_its_rate() {
        let mut policer = Policer::new(8e6, 3000.0);
        let passed =
            |policer: &mut Policer, now| (0..9).filter(|_| policer.conforms(now, 1000)).count();
        assert_eq!(passed(&mut policer, Duration::ZERO), 3);
        assert_eq!(passed(&mut policer, 2 * MS), 2);
        assert_eq!(passed(&mut policer, 1000 * MS), 3, "tokens are bounded");
    }
}
