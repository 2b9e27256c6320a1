//! Pauses in which the queue empties, so that every sender sees the path without it.

use std::time::{Duration, Instant};

/// How long the queue may stand before a drain; doubled up to the maximum while drains are in vain.
const INTERVAL: Duration = Duration::from_secs(5);
const MAX_INTERVAL: Duration = Duration::from_secs(20);

/// Minimum time for which the window stays small.
const HOLD: Duration = Duration::from_millis(100);

/// How often a drain is extended while the RTT falls, and the least fall in seconds.
const MAX_EXTENSIONS: u32 = 6;
const FALL: f64 = 0.002;

/// The drains of a sender.
#[derive(Debug)]
pub(super) struct Drains {
    state: State,
    interval: Duration,
    started_at: Option<Instant>,
}

#[derive(Debug, Clone, Copy)]
enum State {
    Idle,
    /// Until what is in flight fits the small window.
    Emptying {
        window: f64,
        hold: Duration,
    },
    /// Until the time, with the minimum RTT since. Longer while the RTT falls: others drain too.
    Holding {
        window: f64,
        hold: Duration,
        until: Instant,
        extensions: u32,
        min_rtt: f64,
        /// The same when the time was last extended.
        earlier_min: f64,
    },
}

/// The end of a drain.
#[derive(Debug, Clone, Copy)]
pub(super) struct Drained {
    /// cwnd before, in packets.
    pub(super) window: f64,
    /// The queue became empty.
    pub(super) is_empty: bool,
}

impl Drains {
    pub(super) fn new() -> Self {
        Self {
            state: State::Idle,
            interval: INTERVAL,
            started_at: None,
        }
    }

    pub(super) fn is_running(&self) -> bool {
        !matches!(self.state, State::Idle)
    }

    /// How long the queue may stand.
    pub(super) fn interval(&self) -> Duration {
        self.interval
    }

    /// Whether the last drain was long enough ago to join that of another sender.
    pub(super) fn may_join(&self, now: Instant) -> bool {
        let since = |at| now.saturating_duration_since(at);
        self.started_at
            .is_none_or(|at| since(at) > self.interval / 2)
    }

    pub(super) fn start(&mut self, now: Instant, window: f64, hold: Duration) {
        self.started_at = Some(now);
        self.state = State::Emptying {
            window,
            hold: hold.max(HOLD),
        };
    }

    /// Ends a drain. Returns the window before it.
    pub(super) fn cancel(&mut self) -> Option<f64> {
        match std::mem::replace(&mut self.state, State::Idle) {
            State::Idle => None,
            State::Emptying { window, .. } | State::Holding { window, .. } => Some(window),
        }
    }

    pub(super) fn on_rtt(&mut self, rtt: f64) {
        if let State::Holding { min_rtt, .. } = &mut self.state {
            *min_rtt = min_rtt.min(rtt);
        }
    }

    /// The window during a drain: half of what the empty path holds, `path` packets.
    pub(super) fn window(&self, path: f64) -> Option<f64> {
        match self.state {
            State::Idle => None,
            State::Emptying { window, .. } | State::Holding { window, .. } => {
                Some((path / 2.0).clamp(2.0, window.max(4.0) / 2.0))
            }
        }
    }

    /// Continues a drain with `in_flight` packets, of which `small` may be in flight. `low` is the
    /// RTT below which the queue counts as empty.
    pub(super) fn advance(
        &mut self,
        now: Instant,
        in_flight: f64,
        small: f64,
        low: f64,
    ) -> Option<Drained> {
        match self.state {
            State::Emptying { window, hold } if in_flight <= small + 1.0 => {
                self.state = State::Holding {
                    window,
                    hold,
                    until: now + hold,
                    extensions: 0,
                    min_rtt: f64::INFINITY,
                    earlier_min: f64::INFINITY,
                };
                None
            }
            State::Holding {
                window,
                hold,
                until,
                extensions,
                min_rtt,
                earlier_min,
            } if now > until
                && min_rtt > low
                && extensions < MAX_EXTENSIONS
                && min_rtt < earlier_min - FALL =>
            {
                self.state = State::Holding {
                    window,
                    hold,
                    until: now + hold,
                    extensions: extensions + 1,
                    min_rtt,
                    earlier_min: min_rtt,
                };
                None
            }
            State::Holding {
                window,
                until,
                min_rtt,
                ..
            } if now > until => {
                self.state = State::Idle;
                let is_empty = min_rtt < low;
                self.interval = if is_empty {
                    INTERVAL
                } else {
                    (self.interval * 2).min(MAX_INTERVAL)
                };
                Some(Drained { window, is_empty })
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drain_goes_on_while_the_queue_falls_as_others_drain_too() {
        let start = Instant::now();
        let after = |millis| start + Duration::from_millis(millis);
        let mut drains = Drains::new();
        drains.start(start, 100.0, HOLD);
        drains.advance(after(0), 30.0, 30.0, 0.055);
        for (end, rtt) in [(101, 0.300), (202, 0.200), (303, 0.100)] {
            drains.on_rtt(rtt);
            assert!(drains.advance(after(end), 30.0, 30.0, 0.055).is_none());
        }
        // It does not fall any more.
        drains.on_rtt(0.099);
        let drained = drains.advance(after(404), 30.0, 30.0, 0.055).unwrap();
        assert!(!drained.is_empty);
    }

    #[test]
    fn a_drain_waits_for_the_flight_holds_and_reports_whether_the_queue_was_empty() {
        let start = Instant::now();
        let after = |millis| start + Duration::from_millis(millis);
        let mut drains = Drains::new();
        for (rtt, is_empty, interval) in [(0.050, true, 5), (0.080, false, 10), (0.080, false, 20)]
        {
            drains.start(start, 100.0, Duration::from_millis(50));
            assert_eq!(drains.window(60.0), Some(30.0));
            assert!(drains.advance(after(10), 100.0, 30.0, 0.055).is_none());
            assert!(drains.advance(after(20), 31.0, 30.0, 0.055).is_none());
            drains.on_rtt(rtt);
            assert!(drains.advance(after(100), 30.0, 30.0, 0.055).is_none());
            let drained = drains.advance(after(121), 30.0, 30.0, 0.055);
            // Once more, as it may fall further.
            let drained = drained.or_else(|| drains.advance(after(242), 30.0, 30.0, 0.055));
            let drained = drained.unwrap();
            assert_eq!((drained.window, drained.is_empty), (100.0, is_empty));
            assert_eq!(drains.interval(), Duration::from_secs(interval));
            assert!(!drains.is_running());
        }
    }
}
