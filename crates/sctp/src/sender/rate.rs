//! Delivery rate samples (draft-ietf-ccwg-bbr section 4.1).
//!
//! A sample is what was delivered while one packet was in flight, divided by the longer of two
//! times: that in which it was sent, and that in which it was acknowledged. Acknowledgements in
//! bursts so do not raise the rate above what was sent.

use std::time::{Duration, Instant};

/// What is delivered, and since when.
#[derive(Debug, Default)]
pub(super) struct DeliveryRate {
    /// Bytes delivered so far.
    delivered: u64,
    delivered_at: Option<Instant>,
    /// When the packet was sent with which the current flight began.
    first_sent_at: Option<Instant>,
    /// The sender is limited by the application until this much is delivered.
    app_limited_until: u64,
    /// The end of the round trip, in delivered bytes.
    round_end: u64,
    /// Window or pacing limited the sender while what is delivered until then was in flight.
    limited_until: u64,
}

/// The state when a packet was sent. Times are microseconds before that, to keep it small.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Snapshot {
    delivered: u64,
    delivered_before: u32,
    first_sent_before: u32,
    is_app_limited: bool,
}

/// What the newest packet acknowledged reveals.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sample {
    /// Bytes per second.
    pub(super) rate: Option<f64>,
    pub(super) prior_delivered: u64,
    pub(super) is_app_limited: bool,
    /// The packet was sent after the end of the previous round trip.
    pub(super) is_round_start: bool,
}

impl DeliveryRate {
    pub(super) fn delivered(&self) -> u64 {
        self.delivered
    }

    /// The state for a packet that is sent now. `is_idle` is whether nothing is in flight.
    pub(super) fn on_sent(&mut self, now: Instant, is_idle: bool) -> Snapshot {
        if is_idle {
            self.delivered_at = Some(now);
            self.first_sent_at = Some(now);
        }
        let before = |at: Option<Instant>| {
            let before = at.map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
            u32::try_from(before.as_micros()).unwrap_or(u32::MAX)
        };
        Snapshot {
            delivered: self.delivered,
            delivered_before: before(self.delivered_at),
            first_sent_before: before(self.first_sent_at),
            is_app_limited: self.app_limited_until > self.delivered,
        }
    }

    /// Notes what stopped the last transmission: a limit on the sender, or a lack of data.
    pub(super) fn on_stopped(&mut self, is_limited: bool, in_flight: usize) {
        let until = self.delivered.saturating_add(in_flight.max(1) as u64);
        if is_limited {
            self.limited_until = until;
        } else {
            self.app_limited_until = until;
        }
    }

    /// Whether window or pacing limited the sender while `acked` bytes, which are delivered now,
    /// were in flight.
    pub(super) fn was_limited(&self, acked: usize) -> bool {
        self.delivered.saturating_sub(acked as u64) < self.limited_until
    }

    /// Counts delivered bytes.
    pub(super) fn on_delivered(&mut self, bytes: usize) {
        self.delivered = self.delivered.saturating_add(bytes as u64);
    }

    /// Takes a sample with the newest packet acknowledged, after everything acknowledged with it
    /// was counted.
    pub(super) fn sample(&mut self, now: Instant, sent_at: Instant, packet: Snapshot) -> Sample {
        self.delivered_at = Some(now);
        self.first_sent_at = Some(sent_at);
        let micros = |micros: u32| Duration::from_micros(micros.into());
        let in_flight = now.saturating_duration_since(sent_at);
        let interval = (in_flight + micros(packet.delivered_before))
            .max(micros(packet.first_sent_before))
            .as_secs_f64();
        let is_round_start = packet.delivered >= self.round_end;
        if is_round_start {
            self.round_end = self.delivered;
        }
        let delivered = self.delivered.saturating_sub(packet.delivered) as f64;
        Sample {
            rate: (interval > 0.0).then(|| delivered / interval),
            prior_delivered: packet.delivered,
            is_app_limited: packet.is_app_limited,
            is_round_start,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACKET: usize = 1000;

    fn after(start: Instant, millis: u64) -> Instant {
        start + Duration::from_millis(millis)
    }

    #[test]
    fn a_flight_is_sampled_at_the_rate_of_the_path() {
        let start = Instant::now();
        let mut rate = DeliveryRate::default();
        let sent: Vec<_> = (0..100)
            .map(|n| (after(start, n), rate.on_sent(after(start, n), n == 0)))
            .collect();
        // A packet per millisecond, after a round trip of 50.
        for (n, (at, snapshot)) in sent.into_iter().enumerate() {
            rate.on_delivered(PACKET);
            let sample = rate.sample(after(start, n as u64 + 50), at, snapshot);
            assert_eq!(sample.is_round_start, n == 0 || sample.prior_delivered > 0);
            if n >= 60 {
                let rate = sample.rate.unwrap();
                assert!((0.5e6..=1.01e6).contains(&rate), "{rate}");
            }
        }
    }

    #[test]
    fn acknowledgements_in_one_burst_do_not_raise_the_rate_above_what_was_sent() {
        let start = Instant::now();
        let mut rate = DeliveryRate::default();
        let sent: Vec<_> = (0..20)
            .map(|n| {
                (
                    after(start, 10 * n),
                    rate.on_sent(after(start, 10 * n), n == 0),
                )
            })
            .collect();
        let (at, snapshot) = *sent.last().unwrap();
        sent.iter().for_each(|_| rate.on_delivered(PACKET));
        let sample = rate.sample(after(start, 200), at, snapshot);
        let limit = 20.0 * PACKET as f64 / 0.190;
        assert!(sample.rate.unwrap() <= limit, "{sample:?}");
    }

    #[test]
    fn a_sender_without_data_marks_what_is_in_flight_as_limited_by_the_application() {
        let start = Instant::now();
        let mut rate = DeliveryRate::default();
        rate.on_stopped(false, 2 * PACKET);
        let first = rate.on_sent(start, true);
        assert!(first.is_app_limited);
        rate.on_delivered(3 * PACKET);
        assert!(!rate.was_limited(PACKET));
        rate.on_stopped(true, PACKET);
        let later = rate.on_sent(after(start, 1), false);
        assert!(!later.is_app_limited);
        rate.on_delivered(PACKET);
        assert!(rate.was_limited(PACKET));
        rate.on_delivered(PACKET);
        assert!(!rate.was_limited(PACKET));
    }
}
