//! BBRv1 (Cardwell et al., "BBR: Congestion-Based Congestion Control", 2016, as in Linux), without
//! its policer detection and its compensation of aggregation.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use anabranch_sctp::{Ack, Controller};

/// 2/ln 2: the smallest gain that doubles the rate each round.
const STARTUP_GAIN: f64 = 2.885;
const CWND_GAIN: f64 = 2.0;
const CYCLE: [f64; 8] = [1.25, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0];

/// The first phase of the cycle that neither probes nor drains.
const CRUISE: usize = 2;

/// Linux paces this much below the estimate, so that the queue empties.
const PACING_MARGIN: f64 = 0.99;

/// Rounds for which a delivery rate counts.
const BANDWIDTH_ROUNDS: u64 = 10;

/// The pipe is full after this many rounds with less than this growth.
const FULL_ROUNDS: u32 = 3;
const FULL_GROWTH: f64 = 1.25;

const MIN_RTT_WINDOW: Duration = Duration::from_secs(10);
const PROBE_RTT_DURATION: Duration = Duration::from_millis(200);

/// Windows in packets.
const INITIAL_WINDOW: usize = 10;
const MIN_WINDOW: usize = 4;

/// Packets beyond the target, for those that stretched acknowledgements hold back.
const ALLOWANCE: usize = 3;

#[derive(Debug, Clone, Copy, PartialEq)]
enum Mode {
    Startup,
    Drain,
    ProbeBandwidth {
        phase: usize,
        since: Instant,
    },
    /// `until` is set once the pipe has drained.
    ProbeRtt {
        until: Option<Instant>,
    },
}

#[derive(Debug)]
pub(super) struct Bbr1 {
    max_packet: usize,
    mode: Mode,
    cwnd: usize,
    /// The window before the round trip was probed.
    prior_cwnd: usize,
    round: u64,
    /// Delivery rates by round, descending: the first is the maximum.
    rates: VecDeque<(u64, f64)>,
    min_rtt: Option<(Duration, Instant)>,
    full_rate: f64,
    full_rounds: u32,
}

impl Bbr1 {
    pub(super) fn new(max_packet: usize) -> Self {
        Self {
            max_packet,
            mode: Mode::Startup,
            cwnd: INITIAL_WINDOW * max_packet,
            prior_cwnd: 0,
            round: 0,
            rates: VecDeque::new(),
            min_rtt: None,
            full_rate: 0.0,
            full_rounds: 0,
        }
    }

    fn rate(&self) -> f64 {
        self.rates.front().map_or(0.0, |(_, rate)| *rate)
    }

    fn is_full(&self) -> bool {
        self.full_rounds >= FULL_ROUNDS
    }

    /// Bytes in flight that fill the path.
    fn bdp(&self) -> usize {
        match self.min_rtt {
            Some((rtt, _)) => (self.rate() * rtt.as_secs_f64()) as usize,
            None => INITIAL_WINDOW * self.max_packet,
        }
    }

    fn pacing_gain(&self) -> f64 {
        match self.mode {
            Mode::Startup => STARTUP_GAIN,
            Mode::Drain => 1.0 / STARTUP_GAIN,
            Mode::ProbeBandwidth { phase, .. } => CYCLE[phase],
            Mode::ProbeRtt { .. } => 1.0,
        }
    }

    /// Keeps the maximum of the last rounds.
    fn update_rate(&mut self, ack: &Ack<'_>) {
        self.round += u64::from(ack.is_round_start);
        if let Some(rate) = ack.delivery_rate
            && (!ack.is_app_limited || rate > self.rate())
        {
            while self.rates.back().is_some_and(|(_, other)| *other <= rate) {
                self.rates.pop_back();
            }
            self.rates.push_back((self.round, rate));
        }
        let is_old = |(round, _): &(u64, f64)| round + BANDWIDTH_ROUNDS < self.round;
        while self.rates.len() > 1 && self.rates.front().is_some_and(is_old) {
            self.rates.pop_front();
        }
    }

    /// Returns whether the minimum was too old, so that the round trip has to be probed.
    fn update_min_rtt(&mut self, ack: &Ack<'_>) -> bool {
        let Some(rtt) = ack.rtt else {
            return false;
        };
        let is_expired = (self.min_rtt).is_some_and(|(_, at)| ack.now - at > MIN_RTT_WINDOW);
        if is_expired || self.min_rtt.is_none_or(|(min, _)| rtt <= min) {
            self.min_rtt = Some((rtt, ack.now));
        }
        is_expired
    }

    fn check_full(&mut self, ack: &Ack<'_>) {
        if self.is_full() || !ack.is_round_start || ack.is_app_limited {
            return;
        }
        if self.rate() >= FULL_GROWTH * self.full_rate {
            (self.full_rate, self.full_rounds) = (self.rate(), 0);
        } else {
            self.full_rounds += 1;
        }
    }

    fn update_mode(&mut self, ack: &Ack<'_>) {
        let (bdp, now) = (self.bdp(), ack.now);
        let min_rtt = self.min_rtt.map_or(Duration::ZERO, |(rtt, _)| rtt);
        if self.mode == Mode::Startup && self.is_full() {
            self.mode = Mode::Drain;
        }
        if self.mode == Mode::Drain && ack.in_flight <= bdp {
            self.cruise(now);
        }
        match self.mode {
            Mode::ProbeBandwidth { phase, since } => {
                let has_elapsed = now - since > min_rtt;
                let has_filled = ack.in_flight as f64 >= CYCLE[0] * bdp as f64;
                let is_over = match phase {
                    0 => has_elapsed && (!ack.lost.is_empty() || has_filled),
                    1 => has_elapsed || ack.in_flight <= bdp,
                    _ => has_elapsed,
                };
                if is_over {
                    self.mode = Mode::ProbeBandwidth {
                        phase: (phase + 1) % CYCLE.len(),
                        since: now,
                    };
                }
            }
            Mode::ProbeRtt { until: None } if ack.in_flight <= MIN_WINDOW * self.max_packet => {
                self.mode = Mode::ProbeRtt {
                    until: Some(now + PROBE_RTT_DURATION),
                };
            }
            Mode::ProbeRtt { until: Some(until) } if now > until => {
                self.min_rtt = Some((min_rtt, now));
                self.cwnd = self.cwnd.max(self.prior_cwnd);
                if self.is_full() {
                    self.cruise(now);
                } else {
                    self.mode = Mode::Startup;
                }
            }
            _ => {}
        }
    }

    fn cruise(&mut self, now: Instant) {
        self.mode = Mode::ProbeBandwidth {
            phase: CRUISE,
            since: now,
        };
    }

    fn update_cwnd(&mut self, acked: usize) {
        let gain = match self.mode {
            Mode::Startup | Mode::Drain => STARTUP_GAIN,
            Mode::ProbeBandwidth { .. } | Mode::ProbeRtt { .. } => CWND_GAIN,
        };
        let target = (gain * self.bdp() as f64) as usize + ALLOWANCE * self.max_packet;
        self.cwnd += acked;
        if self.is_full() {
            self.cwnd = self.cwnd.min(target);
        }
        self.cwnd = self.cwnd.max(MIN_WINDOW * self.max_packet);
        if matches!(self.mode, Mode::ProbeRtt { .. }) {
            self.cwnd = MIN_WINDOW * self.max_packet;
        }
    }
}

impl Controller for Bbr1 {
    fn on_ack(&mut self, ack: &Ack<'_>) {
        if ack.acked == 0 {
            return;
        }
        self.update_rate(ack);
        let is_expired = self.update_min_rtt(ack);
        self.check_full(ack);
        self.update_mode(ack);
        if is_expired && !matches!(self.mode, Mode::ProbeRtt { .. }) {
            self.mode = Mode::ProbeRtt { until: None };
            self.prior_cwnd = self.cwnd;
        }
        self.update_cwnd(ack.acked);
    }

    fn on_timeout(&mut self, _now: Instant, _count: u32) {}

    fn cwnd(&self) -> usize {
        self.cwnd
    }

    fn pacing_rate(&self) -> Option<f64> {
        let rate = self.rate();
        (rate > 0.0).then(|| PACING_MARGIN * self.pacing_gain() * rate)
    }
}
