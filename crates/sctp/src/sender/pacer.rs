//! Pacing: when the next packet may be sent.

use std::time::{Duration, Instant};

/// Maximum credit of a sender that was idle or comes late: a timer of tokio fires up to a
/// millisecond late, and without credit that would lower the rate.
const CREDIT: Duration = Duration::from_millis(2);

/// Times the packets of an association.
#[derive(Debug, Default)]
pub(super) struct Pacer {
    /// When the next packet is due at the current rate.
    next: Option<Instant>,
}

impl Pacer {
    /// When the next packet may be sent; `None` if it may be sent now.
    pub(super) fn blocked_until(&self, now: Instant) -> Option<Instant> {
        self.next.filter(|next| *next > now)
    }

    /// Counts a packet of `bytes`, which is sent now at `rate` bytes per second.
    pub(super) fn on_sent(&mut self, now: Instant, bytes: usize, rate: Option<f64>) {
        let Some(rate) = rate.filter(|rate| *rate > 0.0) else {
            self.next = None;
            return;
        };
        let earliest = now.checked_sub(CREDIT).unwrap_or(now);
        let due = self.next.map_or(earliest, |next| next.max(earliest));
        // A peer with a round trip of minutes is not waited for longer than that.
        let time = Duration::try_from_secs_f64(bytes as f64 / rate).unwrap_or(Duration::MAX);
        self.next = due.checked_add(time.min(Duration::from_secs(1)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Packets of 1 000 bytes at 1 MB/s, one each millisecond, by a sender that comes whenever
    /// `steps` say, in microseconds.
    fn sent(steps: impl Iterator<Item = u64>) -> (usize, usize) {
        let start = Instant::now();
        let mut pacer = Pacer::default();
        let (mut sent, mut most) = (0, 0);
        for step in steps {
            let now = start + Duration::from_micros(step);
            let mut burst = 0;
            while pacer.blocked_until(now).is_none() {
                pacer.on_sent(now, 1000, Some(1e6));
                burst += 1;
            }
            sent += burst;
            most = most.max(burst);
        }
        (sent, most)
    }

    #[test]
    fn packets_are_spread_over_time() {
        let (sent, most) = sent((0..1_000_000).step_by(10));
        assert!((1000..=1003).contains(&sent), "{sent}");
        assert!(most <= 3, "{most}");
    }

    #[test]
    fn a_late_timer_costs_no_rate() {
        let (sent, most) = sent((0..1_000_000).step_by(1_900));
        assert!((995..=1005).contains(&sent), "{sent}");
        assert!(most <= 3, "{most}");
    }

    #[test]
    fn a_pause_earns_a_small_burst_only() {
        let (_, most) = sent([0, 10_000_000].into_iter());
        assert!(most <= 3, "{most}");
    }
}
