//! CUBIC (RFC 9438).

use std::time::{Duration, Instant};

use super::hystart::HyStart;
use super::{Ack, Controller, INITIAL_PACKETS, MIN_PACKETS};

/// Multiplicative decrease (section 4.6).
pub(super) const BETA: f64 = 0.7;

/// Aggressiveness in packets per cubic second (section 5).
const C: f64 = 0.4;

/// The pacing rate as a multiple of cwnd / SRTT, in slow start and afterwards. 1 would keep the
/// window from being used up, as its packets would never all be in flight.
pub(super) const SLOW_START_GAIN: f64 = 2.0;
pub(super) const GAIN: f64 = 1.2;

/// The cubic function of the window. Windows are in packets.
#[derive(Debug, Clone, Copy)]
pub(super) struct CubicWindow {
    /// The window before the last reduction.
    pub(super) w_max: f64,
    epoch: Option<Epoch>,
}

/// A period of growth without a reduction.
#[derive(Debug, Clone, Copy)]
struct Epoch {
    start: Instant,
    /// Seconds until the window is back at its maximum.
    k: f64,
    /// The window that it grows back to.
    origin: f64,
    /// The window of Reno (section 4.3).
    w_est: f64,
}

impl CubicWindow {
    pub(super) fn new() -> Self {
        Self {
            w_max: 0.0,
            epoch: None,
        }
    }

    /// Begins another period of growth.
    pub(super) fn restart(&mut self, w_max: f64) {
        self.w_max = w_max;
        self.epoch = None;
    }

    /// Reduces a window by `factor`, with fast convergence (section 4.7).
    pub(super) fn reduce(&mut self, window: f64, factor: f64) -> f64 {
        self.restart(if window < self.w_max {
            window * (1.0 + factor) / 2.0
        } else {
            window
        });
        window * factor
    }

    /// Grows a window in congestion avoidance by acknowledged packets (sections 4.2 to 4.5).
    pub(super) fn grow(&mut self, window: f64, acked: f64, now: Instant, srtt: f64) -> f64 {
        let w_max = self.w_max;
        let epoch = self.epoch.get_or_insert_with(|| Epoch {
            start: now,
            k: ((w_max - window).max(0.0) / C).cbrt(),
            origin: w_max.max(window),
            w_est: window,
        });
        let elapsed = now.saturating_duration_since(epoch.start).as_secs_f64() + srtt;
        let cubic = epoch.origin + C * (elapsed - epoch.k).powi(3);
        let target = cubic.clamp(window, 1.5 * window);
        let alpha = if epoch.w_est < w_max {
            3.0 * (1.0 - BETA) / (1.0 + BETA)
        } else {
            1.0
        };
        epoch.w_est += alpha * acked / window;
        if epoch.w_est > target {
            window.max(epoch.w_est)
        } else {
            window + (target - window) / window * acked
        }
    }
}

/// CUBIC with HyStart++, paced: every loss is a sign of congestion.
#[derive(Debug)]
pub struct Cubic {
    max_packet: f64,
    /// cwnd and ssthresh in packets.
    window: f64,
    ssthresh: f64,
    cubic: CubicWindow,
    hystart: HyStart,
    srtt: Duration,
    reduced_at: Option<Instant>,
    /// The state before the last reduction, for its undo.
    before: Option<Before>,
}

/// What a reduction changes.
#[derive(Debug, Clone, Copy)]
struct Before {
    window: f64,
    ssthresh: f64,
    w_max: f64,
}

impl Cubic {
    /// Creates a controller for packets of at most `max_packet` bytes.
    pub fn new(max_packet: usize) -> Self {
        Self {
            max_packet: max_packet.max(1) as f64,
            window: INITIAL_PACKETS,
            ssthresh: f64::INFINITY,
            cubic: CubicWindow::new(),
            hystart: HyStart::new(),
            srtt: Duration::ZERO,
            reduced_at: None,
            before: None,
        }
    }

    fn remember(&mut self) {
        self.before = Some(Before {
            window: self.window,
            ssthresh: self.ssthresh,
            w_max: self.cubic.w_max,
        });
    }

    fn reduce(&mut self, now: Instant) {
        self.remember();
        self.window = self.cubic.reduce(self.window, BETA).max(MIN_PACKETS);
        self.ssthresh = self.window;
        self.reduced_at = Some(now);
    }
}

impl Controller for Cubic {
    fn on_ack(&mut self, ack: &Ack<'_>) {
        self.srtt = ack.srtt;
        let is_new = |at: Instant| self.reduced_at.is_none_or(|reduced_at| at > reduced_at);
        let is_lost = ack.lost.iter().any(|lost| is_new(lost.sent_at));
        // CE counts once a round trip, as loss does (RFC 3168 section 6.1.2).
        let since = self
            .reduced_at
            .map(|at| ack.now.saturating_duration_since(at));
        let in_recovery = since.is_some_and(|since| since < ack.srtt);
        if is_lost || (ack.ce > 0 && !in_recovery) {
            return self.reduce(ack.now);
        }
        if ack.acked == 0 || in_recovery || !ack.is_cwnd_limited {
            return;
        }
        let packets = ack.acked as f64 / self.max_packet;
        if self.window < self.ssthresh {
            let rtt = ack.rtt.map(|rtt| rtt.as_secs_f64());
            if self.hystart.on_ack(rtt, ack.is_round_start, packets) {
                self.ssthresh = self.window;
            }
            self.window += packets / self.hystart.growth_divisor();
        } else {
            let srtt = ack.srtt.as_secs_f64();
            self.window = self.cubic.grow(self.window, packets, ack.now, srtt);
        }
    }

    fn on_timeout(&mut self, now: Instant, count: u32) {
        // Later ones say the same (RFC 5681 section 3.1, equation 4).
        if count == 2 {
            self.remember();
            let window = self.window;
            self.cubic.reduce(window, BETA);
            self.ssthresh = (window * BETA).max(MIN_PACKETS);
            self.window = MIN_PACKETS;
            self.hystart = HyStart::new();
            self.reduced_at = Some(now);
        }
    }

    fn on_spurious_loss(&mut self, _now: Instant) {
        if let Some(before) = self.before.take() {
            self.window = self.window.max(before.window);
            self.ssthresh = before.ssthresh;
            self.cubic.restart(before.w_max);
        }
    }

    fn cwnd(&self) -> usize {
        (self.window * self.max_packet) as usize
    }

    fn pacing_rate(&self) -> Option<f64> {
        let gain = if self.window < self.ssthresh {
            SLOW_START_GAIN
        } else {
            GAIN
        };
        pacing_rate(self.window * self.max_packet, gain, self.srtt)
    }
}

/// A multiple of cwnd / SRTT; `None` before the first RTT sample.
pub(super) fn pacing_rate(cwnd: f64, gain: f64, srtt: Duration) -> Option<f64> {
    let srtt = srtt.as_secs_f64();
    (srtt > 0.0).then(|| gain * cwnd / srtt)
}
