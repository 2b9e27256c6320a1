//! Frames that change nothing.
//!
//! An empty frame is one byte for its sender, and a look at a substream for its receiver. So are flags that are not
//! known or were sent before, a `max_data` that raises nothing, data behind FIN, and notices that repeat. Honest peers
//! send a few: flags of both sides cross, and a carrier opens a substream with an empty frame. So what is
//! counted is what comes within a second, and a few on each substream are free.

use tokio::time::Instant;

use super::config::Config;

/// Free on each substream, in each second.
const FREE: u32 = 8;

/// A connection has this many times the frames of one substream.
const OF_CONNECTION: u32 = 4;

/// Substreams that are reset for it within [`Config::UNUSED_WINDOW`] before the connection ends.
const MAX_RESETS: u32 = 4;

/// A count within the second that it was last raised in. Seconds begin with the connection.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct PerSecond {
    second: u32,
    count: u32,
}

impl PerSecond {
    fn add(&mut self, second: u32) -> u32 {
        if self.second != second {
            *self = Self { second, count: 0 };
        }
        self.count = self.count.saturating_add(1);
        self.count
    }
}

/// What a frame without effect leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nothing.
    Ignored,
    /// Its substream is reset.
    Reset,
    /// The connection ends.
    Leave,
}

/// Counts frames without effect, over a connection.
#[derive(Debug)]
pub(super) struct Ineffective {
    begun: Instant,
    all: PerSecond,
    /// Substreams that were reset for it, and since when they are counted.
    resets: u32,
    resets_since: Instant,
}

impl Ineffective {
    pub(super) fn new() -> Self {
        let now = Instant::now();
        Self {
            begun: now,
            all: PerSecond::default(),
            resets: 0,
            resets_since: now,
        }
    }

    fn second(&self, now: Instant) -> u32 {
        // Beyond 136 years all is one second.
        u32::try_from(now.saturating_duration_since(self.begun).as_secs()).unwrap_or(u32::MAX)
    }

    /// A frame without effect came on a substream with this count.
    pub(super) fn on_frame(&mut self, substream: &mut PerSecond, config: &Config) -> Verdict {
        let now = Instant::now();
        let second = self.second(now);
        let count = substream.add(second);
        if count <= FREE {
            return Verdict::Ignored;
        }
        if self.are_too_many(second, config) {
            return Verdict::Leave;
        }
        let limit = config.max_frames_without_effect;
        // Those behind it are of a substream that is reset already.
        if count.checked_sub(limit) != Some(1) {
            return Verdict::Ignored;
        }
        if now.saturating_duration_since(self.resets_since) >= Config::UNUSED_WINDOW {
            self.resets_since = now;
            self.resets = 0;
        }
        self.resets = self.resets.saturating_add(1);
        match self.resets > MAX_RESETS {
            true => Verdict::Leave,
            false => Verdict::Reset,
        }
    }

    /// A frame of no substream came that changes nothing: there is none to reset.
    pub(super) fn on_notice(&mut self, config: &Config) -> Verdict {
        let second = self.second(Instant::now());
        match self.are_too_many(second, config) {
            true => Verdict::Leave,
            false => Verdict::Ignored,
        }
    }

    /// Counts one in this second.
    fn are_too_many(&mut self, second: u32, config: &Config) -> bool {
        let limit = config.max_frames_without_effect;
        self.all.add(second) > limit.saturating_mul(OF_CONNECTION)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::advance;

    use super::*;

    fn config() -> Config {
        Config {
            max_frames_without_effect: 20,
            ..Config::default()
        }
    }

    fn verdicts(counts: &mut Ineffective, substream: &mut PerSecond, frames: u32) -> [u32; 3] {
        let mut all = [0; 3];
        for _ in 0..frames {
            all[match counts.on_frame(substream, &config()) {
                Verdict::Ignored => 0,
                Verdict::Reset => 1,
                Verdict::Leave => 2,
            }] += 1;
        }
        all
    }

    #[tokio::test(start_paused = true)]
    async fn a_substream_is_reset_for_more_than_it_may_send_in_a_second() {
        let mut counts = Ineffective::new();
        let mut substream = PerSecond::default();
        for _ in 0..100 {
            assert_eq!(verdicts(&mut counts, &mut substream, 20), [20, 0, 0]);
            advance(Duration::from_secs(1)).await;
        }
        assert_eq!(verdicts(&mut counts, &mut substream, 21), [20, 1, 0]);
    }

    #[tokio::test(start_paused = true)]
    async fn the_fifth_reset_within_ten_seconds_ends_the_connection() {
        let mut counts = Ineffective::new();
        for at in 0..5 {
            let expected = if at < 4 { [20, 1, 0] } else { [20, 0, 1] };
            let mut substream = PerSecond::default();
            assert_eq!(verdicts(&mut counts, &mut substream, 21), expected);
            advance(Duration::from_secs(2)).await;
        }
        let mut slowly = Ineffective::new();
        for _ in 0..50 {
            let mut substream = PerSecond::default();
            assert_eq!(verdicts(&mut slowly, &mut substream, 21), [20, 1, 0]);
            advance(Duration::from_secs(3)).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn many_substreams_together_may_send_four_times_as_many_beside_the_free_ones() {
        let mut counts = Ineffective::new();
        for _ in 0..8 {
            assert_eq!(
                verdicts(&mut counts, &mut PerSecond::default(), 18),
                [18, 0, 0]
            );
        }
        assert_eq!(
            verdicts(&mut counts, &mut PerSecond::default(), 9),
            [8, 0, 1]
        );
        // However many substreams there are: what is free is free.
        let mut counts = Ineffective::new();
        for _ in 0..10_000 {
            assert_eq!(
                verdicts(&mut counts, &mut PerSecond::default(), 8),
                [8, 0, 0]
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn notices_are_counted_with_those_of_all_substreams() {
        let mut counts = Ineffective::new();
        for second in 0..3 {
            let sent = if second < 2 { 80 } else { 81 };
            let last = (0..sent)
                .map(|_| counts.on_notice(&config()))
                .last()
                .unwrap();
            assert_eq!(last == Verdict::Leave, second == 2);
            advance(Duration::from_secs(1)).await;
        }
    }
}
