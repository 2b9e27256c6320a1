//! CUBIC (RFC 9438) as in the TCP of Linux: with HyStart, not paced.

use std::time::{Duration, Instant};

use anabranch_sctp::{Ack, Controller};

use super::hystart::HyStart;

/// Initial window in packets (RFC 6928).
const INITIAL_WINDOW: f64 = 10.0;

/// Minimum window in packets.
const MIN_WINDOW: f64 = 2.0;

/// What is kept of the window on loss.
const BETA: f64 = 0.7;

/// Growth of the window of Reno in packets a round trip. Linux keeps it at this, where RFC 9438
/// section 4.3 sets it to 1 once the window before the reduction is reached.
const ALPHA: f64 = 3.0 * (1.0 - BETA) / (1.0 + BETA);

/// Before the first loss the window grows by this part of itself a round trip.
const FIRST_GROWTH_DIVISOR: f64 = 20.0;

/// The constant C, in packets per second cubed.
const C: f64 = 0.4;

/// Windows are in packets.
#[derive(Debug)]
pub(super) struct Cubic {
    max_packet: f64,
    cwnd: f64,
    ssthresh: f64,
    w_max: f64,
    epoch: Option<Epoch>,
    hystart: HyStart,
    reduced_at: Option<Instant>,
    srtt: Duration,
    /// The window, `ssthresh` and `w_max` before the last reduction.
    undo: Option<(f64, f64, f64)>,
}

/// A stage of congestion avoidance (RFC 9438 section 4.2).
#[derive(Debug)]
struct Epoch {
    start: Instant,
    /// The plateau, and the time until it is reached.
    origin: f64,
    k: f64,
    w_est: f64,
}

impl Cubic {
    pub(super) fn new(max_packet: usize) -> Self {
        Self {
            max_packet: max_packet as f64,
            cwnd: INITIAL_WINDOW,
            ssthresh: f64::INFINITY,
            w_max: 0.0,
            epoch: None,
            hystart: HyStart::default(),
            reduced_at: None,
            srtt: Duration::ZERO,
            undo: None,
        }
    }

    fn is_in_slow_start(&self) -> bool {
        self.cwnd < self.ssthresh
    }

    /// Reduces the window, with fast convergence (RFC 9438 section 4.7).
    fn reduce(&mut self, now: Instant) {
        self.undo = Some((self.cwnd, self.ssthresh, self.w_max));
        self.w_max = if self.cwnd < self.w_max {
            self.cwnd * (1.0 + BETA) / 2.0
        } else {
            self.cwnd
        };
        self.cwnd = (self.cwnd * BETA).max(MIN_WINDOW);
        self.ssthresh = self.cwnd;
        self.epoch = None;
        self.reduced_at = Some(now);
    }

    /// Grows in congestion avoidance (RFC 9438 sections 4.2 to 4.5).
    fn grow(&mut self, now: Instant, acked: f64) {
        let (cwnd, w_max) = (self.cwnd, self.w_max);
        let epoch = self.epoch.get_or_insert_with(|| Epoch {
            start: now,
            origin: w_max.max(cwnd),
            k: ((w_max - cwnd).max(0.0) / C).cbrt(),
            w_est: cwnd,
        });
        let elapsed = (now - epoch.start + self.srtt).as_secs_f64();
        let target = epoch.origin + C * (elapsed - epoch.k).powi(3);
        let mut target = target.clamp(cwnd, 1.5 * cwnd);
        // Linux: no slower than this before the first loss.
        if w_max == 0.0 {
            target = target.max(cwnd + cwnd / FIRST_GROWTH_DIVISOR);
        }
        epoch.w_est += ALPHA * acked / cwnd;
        self.cwnd = if epoch.w_est > target {
            cwnd.max(epoch.w_est)
        } else {
            cwnd + (target - cwnd) / cwnd * acked
        };
    }
}

impl Controller for Cubic {
    fn on_ack(&mut self, ack: &Ack<'_>) {
        self.srtt = ack.srtt;
        let is_new = |sent_at| {
            self.reduced_at
                .is_none_or(|reduced_at| sent_at > reduced_at)
        };
        if ack.lost.iter().any(|lost| is_new(lost.sent_at)) {
            return self.reduce(ack.now);
        }
        // In recovery the window does not grow.
        let is_recovering = (self.reduced_at).is_some_and(|at| ack.now - at < ack.srtt);
        if ack.acked == 0 || is_recovering || !ack.is_cwnd_limited {
            return;
        }
        let acked = ack.acked as f64 / self.max_packet;
        if !self.is_in_slow_start() {
            return self.grow(ack.now, acked);
        }
        let is_over = ack.rtt.is_some_and(|rtt| {
            self.hystart
                .on_sample(ack.now, rtt, ack.is_round_start, self.cwnd)
        });
        self.cwnd += acked;
        if is_over {
            self.ssthresh = self.cwnd;
        }
    }

    fn on_timeout(&mut self, now: Instant, count: u32) {
        if count == 2 {
            self.reduce(now);
            self.cwnd = MIN_WINDOW;
            self.hystart = HyStart::default();
        }
    }

    fn on_spurious_loss(&mut self, _now: Instant) {
        if let Some((cwnd, ssthresh, w_max)) = self.undo.take() {
            self.cwnd = self.cwnd.max(cwnd);
            (self.ssthresh, self.w_max) = (ssthresh, w_max);
            self.epoch = None;
        }
    }

    fn cwnd(&self) -> usize {
        (self.cwnd * self.max_packet) as usize
    }

    fn pacing_rate(&self) -> Option<f64> {
        None
    }
}
