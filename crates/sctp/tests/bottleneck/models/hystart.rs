//! HyStart (Ha and Rhee, 2011) as in Linux: slow start ends when the round trip grows, or when the
//! acknowledgements of a round arrive in a train as long as half of the round trip.

use std::time::{Duration, Instant};

/// Bounds of the growth of the round trip that counts, and its part of the round trip.
const MIN_THRESHOLD: Duration = Duration::from_millis(4);
const MAX_THRESHOLD: Duration = Duration::from_millis(16);
const THRESHOLD_DIVISOR: u32 = 8;

/// Samples that a round needs before it is judged.
const SAMPLES: u32 = 8;

/// A longer pause ends a train.
const TRAIN_PAUSE: Duration = Duration::from_millis(2);

/// Windows below this, in packets, are not judged.
const LOW_WINDOW: f64 = 16.0;

/// State of HyStart.
#[derive(Debug, Default)]
pub(super) struct HyStart {
    min_rtt: Option<Duration>,
    round: Option<Round>,
}

/// A round trip.
#[derive(Debug, Clone, Copy)]
struct Round {
    start: Instant,
    /// The last acknowledgement of the train with which the round began.
    last_ack: Instant,
    min_rtt: Duration,
    samples: u32,
}

impl HyStart {
    /// Handles a sample. Returns whether slow start is over.
    pub(super) fn on_sample(
        &mut self,
        now: Instant,
        rtt: Duration,
        is_round_start: bool,
        cwnd: f64,
    ) -> bool {
        let min_rtt = self.min_rtt.map_or(rtt, |min| min.min(rtt));
        self.min_rtt = Some(min_rtt);
        if is_round_start {
            self.round = None;
        }
        let round = self.round.get_or_insert(Round {
            start: now,
            last_ack: now,
            min_rtt: rtt,
            samples: 0,
        });
        if cwnd < LOW_WINDOW {
            return false;
        }
        let mut is_over = false;
        if now - round.last_ack <= TRAIN_PAUSE {
            round.last_ack = now;
            is_over = now - round.start > min_rtt / 2;
        }
        round.min_rtt = round.min_rtt.min(rtt);
        if round.samples < SAMPLES {
            round.samples += 1;
            return is_over;
        }
        let threshold = (min_rtt / THRESHOLD_DIVISOR).clamp(MIN_THRESHOLD, MAX_THRESHOLD);
        is_over || round.min_rtt > min_rtt + threshold
    }
}
