//! CUBIC that judges a loss by the delay it comes with, and bounds the queue it builds.
//!
//! `docs/congestion.md` says why, with what was measured. In short:
//!
//! - The window is that of CUBIC (RFC 9438) with HyStart++ (RFC 9406), paced.
//! - A loss reduces it if the queue shows in the delay ([`loss`]).
//! - So does a standing queue of its own ([`rivals`]), unless the queue is so short that loss
//!   bounds its delay.
//! - Now and then the queue is drained, so that everybody learns the RTT without it ([`drain`]).

use std::time::{Duration, Instant};

use super::cubic::{BETA, CubicWindow, GAIN, SLOW_START_GAIN, pacing_rate};
use super::hystart::HyStart;
use super::{Ack, Controller, INITIAL_PACKETS, MIN_PACKETS};

mod delay;
mod drain;
mod loss;
mod rivals;

use delay::Delay;
use drain::{Drained, Drains};
use loss::{Conditions, LossJudge};
use rivals::Rivals;

/// The standing queue that a sender allows itself, as a part of the RTT, with its bounds in
/// seconds.
const TARGET: f64 = 0.2;
const TARGET_BOUNDS: (f64, f64) = (0.005, 0.025);

/// The maximum of it on a path with jitter, and the part of the jitter that is added.
const MAX_TARGET: f64 = 0.050;
const JITTER: f64 = 0.5;

/// The minimum of it in packets: fewer can not be told from a burst.
const TARGET_PACKETS: f64 = 4.0;

/// Bounds of a reduction by delay.
const DELAY_BETA: (f64, f64) = (0.5, 0.9);

/// The part of the RTT without a queue that is left by it: a little less than all.
const DELAY_MARGIN: f64 = 0.95;

/// Growth of the delivery rate in a round trip below which slow start may have filled the path, and
/// the round trips of that which end it.
const GROWTH: f64 = 1.1;
const FLAT_ROUNDS: u32 = 3;

/// Round trips without a queue after which the window grows by an eighth in each, beyond what it
/// was before: capacity has come back.
const EMPTY_ROUNDS: u32 = 5;
const ACCELERATION: f64 = 8.0;

/// Round trips after a drain in which a standing queue is that of a rival that did not drain.
const RELAPSE_ROUNDS: u32 = 3;

/// The part of the window before the drain that is taken up again then: about what a rival that
/// reacts to loss has left.
const RELAPSE: f64 = 0.85;

/// Minimum window to drain beside rivals, in packets: fewer are no part of the queue that matters.
const MIN_DRAINED: f64 = 40.0;

/// How long after a timeout half of the earlier window is taken up again.
const RESUME: Duration = Duration::from_secs(10);

/// The controller, see the module.
#[derive(Debug)]
pub struct Heed {
    /// Longest packet at first, in which everything is counted.
    max_packet: f64,
    /// Longest packet at the moment, in bytes.
    longest: f64,
    /// cwnd and ssthresh in packets.
    window: f64,
    ssthresh: f64,
    is_slow_start: bool,
    cubic: CubicWindow,
    hystart: HyStart,
    srtt: Duration,
    delay: Delay,
    judge: LossJudge,
    rivals: Rivals,
    drains: Drains,
    /// Delivery rate of the last round trip, and of the current one, in bytes per second.
    rate: f64,
    round_rate: f64,
    /// Whether everything in the current round trip was limited by the application.
    is_round_idle: bool,
    /// The highest rate of slow start, and the round trips since.
    best_rate: f64,
    flat_rounds: u32,
    /// Minimum RTT of the previous round trip, in seconds.
    previous_min: f64,
    /// Round trips without a queue.
    empty_rounds: u32,
    reduced_at: Option<Instant>,
    /// cwnd before the last reduction.
    reduced_from: f64,
    before: Option<Before>,
    /// Packets that the path held for this sender before the drain.
    path_before_drain: f64,
    /// cwnd before the drain that ended a competition, and until when a standing queue resumes it.
    relapse: Option<(f64, Instant)>,
    /// cwnd before a timeout, and when it expired.
    resume: Option<(f64, Instant)>,
}

/// What a reduction changes, for its undo.
#[derive(Debug, Clone, Copy)]
struct Before {
    window: f64,
    ssthresh: f64,
    w_max: f64,
}

impl Heed {
    /// Creates a controller for packets of at most `max_packet` bytes.
    pub fn new(max_packet: usize) -> Self {
        Self {
            max_packet: max_packet.max(1) as f64,
            longest: max_packet.max(1) as f64,
            window: INITIAL_PACKETS,
            ssthresh: f64::INFINITY,
            is_slow_start: true,
            cubic: CubicWindow::new(),
            hystart: HyStart::new(),
            srtt: Duration::ZERO,
            delay: Delay::new(),
            judge: LossJudge::new(),
            rivals: Rivals::None,
            drains: Drains::new(),
            rate: 0.0,
            round_rate: 0.0,
            is_round_idle: true,
            best_rate: 0.0,
            flat_rounds: 0,
            previous_min: 0.0,
            empty_rounds: 0,
            reduced_at: None,
            reduced_from: f64::INFINITY,
            before: None,
            path_before_drain: 0.0,
            relapse: None,
            resume: None,
        }
    }

    /// The standing queue that this sender allows itself, in seconds.
    fn target(&self) -> f64 {
        let base = self.delay.base();
        let target = (TARGET * base).clamp(TARGET_BOUNDS.0, TARGET_BOUNDS.1);
        let target = (target + JITTER * self.delay.jitter()).min(MAX_TARGET);
        if self.rate > 0.0 {
            target.max(TARGET_PACKETS * self.longest / self.rate)
        } else {
            target
        }
    }

    /// Packets that the path holds without a queue.
    fn path(&self) -> f64 {
        self.rate * self.delay.base() / self.max_packet
    }

    /// Whether the last reduction was longer ago than this many round trips.
    fn is_past_reduction(&self, now: Instant, rounds: f64) -> bool {
        self.reduced_at.is_none_or(|at| {
            now.saturating_duration_since(at) > Duration::from_secs_f64(rounds * self.srtt_secs())
        })
    }

    fn srtt_secs(&self) -> f64 {
        self.srtt.as_secs_f64()
    }

    /// Whether this sender builds no queue: its window is smaller than the one that was too large.
    fn is_calm(&self, now: Instant) -> bool {
        !self.is_slow_start
            && !self.rivals.is_competing()
            && self.window <= 0.9 * self.reduced_from
            && self.is_past_reduction(now, 2.0)
    }

    fn reduce(&mut self, now: Instant, factor: f64) {
        self.judge.on_reduction();
        self.reduced_from = self.window;
        self.window = self.cubic.reduce(self.window, factor).max(MIN_PACKETS);
        self.ssthresh = self.window;
        self.is_slow_start = false;
        self.reduced_at = Some(now);
        self.before = None;
    }

    /// Handles detected losses and marks. Returns whether they are signs of congestion.
    fn judge(&mut self, ack: &Ack<'_>) -> bool {
        let queueing = self.delay.queueing();
        let target = self.target();
        let is_low = queueing < self.judge.low(target);
        let is_calm = self.is_calm(ack.now);
        let packets = ack.acked as f64 / self.max_packet;
        self.judge
            .on_acked(packets, is_calm && is_low && ack.rtt.is_some());
        let mut is_congestion = false;
        for lost in ack.lost {
            let packets = (lost.bytes as f64 / self.max_packet).max(1.0);
            self.judge.on_lost(packets);
            let sent_after_reduction =
                |margin: Duration| self.reduced_at.is_none_or(|at| lost.sent_at > at + margin);
            // A reduction still shows in packets of the round trip after it.
            if is_calm && is_low && sent_after_reduction(self.srtt) {
                self.judge.on_calm_loss(packets);
            }
            // One reduction a round trip.
            if sent_after_reduction(Duration::ZERO) {
                is_congestion |= self.judge.is_congestion(Conditions {
                    packets,
                    queueing,
                    window: self.window,
                    is_slow_start: self.is_slow_start,
                    target,
                    base: self.delay.base(),
                });
            }
        }
        is_congestion || ack.is_ce_since(self.reduced_at)
    }

    /// Takes up half of the earlier window when the path is back after a timeout.
    fn resume(&mut self, ack: &Ack<'_>, rtt: f64) {
        if let Some((window, at)) = self.resume.take()
            && rtt <= self.delay.base() + self.target()
            && ack.now.saturating_duration_since(at) < RESUME
        {
            self.window = self.window.max(window / 2.0);
        }
    }

    fn on_round(&mut self, ack: &Ack<'_>) {
        let now = ack.now;
        if self.round_rate > 0.0 {
            self.rate = self.round_rate;
        }
        if self.is_slow_start {
            if self.rate < GROWTH * self.best_rate {
                self.flat_rounds += 1;
            } else {
                (self.best_rate, self.flat_rounds) = (self.rate, 0);
            }
        }
        let is_measured = self.delay.has_round_sample();
        let queueing = self.delay.round_queueing();
        let target = self.target();
        // A sender that is limited by its application learns nothing of rivals.
        if is_measured && !self.is_slow_start && !self.drains.is_running() && !self.is_round_idle {
            self.bound_delay(now, queueing, target);
        }
        if is_measured
            && !self.is_slow_start
            && !self.rivals.is_competing()
            && self.is_past_reduction(now, 2.0)
        {
            self.delay.learn_jitter();
        }
        self.start_drain(now, is_measured);
        self.previous_min = if is_measured {
            self.delay.round_min
        } else {
            0.0
        };
        self.empty_rounds = if is_measured && queueing < target / 4.0 {
            self.empty_rounds.saturating_add(1)
        } else {
            0
        };
        self.delay.begin_round();
        self.judge.begin_round(self.srtt_secs());
        self.round_rate = 0.0;
        self.is_round_idle = true;
    }

    /// Reduces the window because of a standing queue, and looks whether it was its own.
    fn bound_delay(&mut self, now: Instant, queueing: f64, target: f64) {
        if let Some((window, until)) = self.relapse {
            // What this sender's own window exceeds the path by.
            let own = (self.window - self.path_before_drain).max(0.0);
            let own = own / self.path_before_drain.max(1.0) * self.delay.base();
            if now > until {
                self.relapse = None;
            } else if queueing > target + own && matches!(self.rivals, Rivals::None) {
                self.relapse = None;
                self.rivals = Rivals::compete();
                self.window = self.window.max(RELAPSE * window);
                self.cubic.restart(window);
            }
        }
        let highest = self.delay.round_max - self.delay.base();
        let is_quiet = queueing < 0.3 * target || highest < 1.75 * target;
        if let Some(window) = self.rivals.on_round(self.delay.round_min, is_quiet) {
            // The reduction was for nothing.
            self.window = self.window.max(window);
            self.ssthresh = self.window;
            self.cubic.restart(self.window);
        }
        if matches!(self.rivals, Rivals::None)
            && !self.judge.is_queue_short(target)
            && queueing > target
            && self.is_past_reduction(now, 1.5)
        {
            let (base, rtt) = (self.delay.base(), self.delay.round_min);
            let factor = (DELAY_MARGIN * base / rtt).clamp(DELAY_BETA.0, DELAY_BETA.1);
            self.rivals = Rivals::watch(self.window, rtt, queueing, factor);
            self.reduce(now, factor);
        }
    }

    fn start_drain(&mut self, now: Instant, is_measured: bool) {
        let is_small = self.rivals.is_competing() && self.window < MIN_DRAINED;
        if self.is_slow_start || self.drains.is_running() || self.is_round_idle || is_small {
            return;
        }
        let fall = self.previous_min - self.delay.round_min;
        let queueing = self.previous_min - self.delay.base();
        // Another sender drains: the more do so at once, the emptier the queue becomes.
        let is_joined = self.rivals.is_competing()
            && is_measured
            && fall > (0.06 * queueing).max(0.002)
            && self.is_past_reduction(now, 2.0)
            && self.drains.may_join(now);
        if is_joined || self.delay.since_near_base(now) > self.drains.interval() {
            let hold = if self.rivals.is_competing() {
                self.srtt_secs()
            } else {
                self.delay.base()
            };
            let hold = Duration::try_from_secs_f64(hold).unwrap_or_default();
            self.path_before_drain = self.path();
            self.drains.start(now, self.window, hold);
        }
    }

    /// Continues a drain. Returns `false` if there is none.
    fn drain(&mut self, ack: &Ack<'_>) -> bool {
        let path = self.path_before_drain;
        let Some(small) = self.drains.window(path) else {
            return false;
        };
        self.window = small;
        let in_flight = ack.in_flight as f64 / self.max_packet;
        let low = self.delay.base() + self.target() / 2.0;
        if let Some(Drained { window, is_empty }) =
            self.drains.advance(ack.now, in_flight, small, low)
        {
            self.delay.touch_base(ack.now);
            self.delay.begin_round();
            if is_empty {
                self.relapse = self
                    .rivals
                    .is_competing()
                    .then(|| (window, ack.now + self.srtt * RELAPSE_ROUNDS));
                self.rivals = Rivals::None;
                self.window = path.max(0.3 * window).min(window);
                self.reduced_at = Some(ack.now);
                self.cubic.restart(window);
            } else {
                self.window = window;
                self.rivals.on_congestion();
            }
        }
        true
    }

    fn grow(&mut self, ack: &Ack<'_>) {
        let packets = ack.acked as f64 / self.max_packet;
        if self.is_slow_start {
            let rtt = ack.rtt.map(|rtt| rtt.as_secs_f64());
            let is_over = self.hystart.on_ack(rtt, ack.is_round_start, packets)
                || (self.flat_rounds >= FLAT_ROUNDS && self.ssthresh.is_infinite())
                || self.window >= self.ssthresh;
            if is_over {
                self.is_slow_start = false;
                self.cubic.restart(self.cubic.w_max.max(self.window));
            }
            self.window += packets / self.hystart.growth_divisor();
            return;
        }
        let srtt = self.srtt_secs();
        let window = self.cubic.grow(self.window, packets, ack.now, srtt);
        let is_capacity_back = !self.rivals.is_competing()
            && self.empty_rounds >= EMPTY_ROUNDS
            && self.window > 1.05 * self.cubic.w_max
            && !self.judge.is_queue_short(self.target())
            && self.judge.is_delay_informative(self.delay.base());
        self.window = if is_capacity_back {
            window.max(self.window + packets / ACCELERATION)
        } else {
            window
        };
    }
}

impl Controller for Heed {
    fn on_ack(&mut self, ack: &Ack<'_>) {
        self.srtt = ack.srtt;
        self.longest = self.max_packet.max(ack.max_packet as f64);
        let rtt = ack.rtt.map(|rtt| rtt.as_secs_f64());
        if let Some(rtt) = rtt {
            self.delay.on_sample(ack.now, rtt, self.srtt_secs());
            self.drains.on_rtt(rtt);
            self.judge.on_delay(rtt - self.delay.base());
        }
        if let Some(rate) = ack.delivery_rate
            && (!ack.is_app_limited || rate > self.round_rate)
        {
            self.round_rate = self.round_rate.max(rate);
        }
        self.is_round_idle &= !ack.is_cwnd_limited;
        if self.delay.has_sample() && self.judge(ack) && !self.drains.is_running() {
            let before = Before {
                window: self.window,
                ssthresh: self.ssthresh,
                w_max: self.cubic.w_max,
            };
            self.judge.on_congestion(self.delay.queueing());
            self.rivals.on_congestion();
            self.reduce(ack.now, BETA);
            // A mark is never spurious.
            self.before = (ack.ce == 0).then_some(before);
        }
        if ack.acked == 0 {
            return;
        }
        if let Some(rtt) = rtt {
            self.resume(ack, rtt);
        }
        if ack.is_round_start {
            self.on_round(ack);
        }
        if self.drain(ack) || !ack.is_cwnd_limited {
            return;
        }
        if self.is_slow_start || self.is_past_reduction(ack.now, 1.0) {
            self.grow(ack);
        }
    }

    fn on_timeout(&mut self, now: Instant, count: u32) {
        // Later ones say the same (RFC 5681 section 3.1, equation 4).
        if count != 2 {
            return;
        }
        let window = self.drains.cancel().unwrap_or(self.window);
        self.before = Some(Before {
            window,
            ssthresh: self.ssthresh,
            w_max: self.cubic.w_max,
        });
        self.cubic.restart(window);
        self.ssthresh = (BETA * window).max(MIN_PACKETS);
        self.window = INITIAL_PACKETS.min(window);
        self.is_slow_start = true;
        self.hystart = HyStart::new();
        self.reduced_at = Some(now);
        (self.best_rate, self.flat_rounds) = (0.0, 0);
        self.resume = Some((window, now));
    }

    fn on_spurious_loss(&mut self, _now: Instant) {
        if let Some(before) = self.before.take() {
            self.window = self.window.max(before.window);
            self.ssthresh = before.ssthresh;
            self.is_slow_start = before.ssthresh.is_infinite();
            self.cubic.restart(before.w_max);
        }
    }

    fn cwnd(&self) -> usize {
        (self.window * self.max_packet) as usize
    }

    fn pacing_rate(&self) -> Option<f64> {
        let gain = if self.is_slow_start {
            SLOW_START_GAIN
        } else {
            GAIN
        };
        pacing_rate(self.window * self.max_packet, gain, self.srtt)
    }
}
