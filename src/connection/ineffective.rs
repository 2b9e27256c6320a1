//! Limits frames without effect.
//!
//! An empty frame costs its sender one byte and its receiver a look at a substream. The same holds
//! for unknown and repeated flags, a `max_data` that raises nothing, data after FIN, and repeated
//! notices. Honest peers send a few: flags of both sides cross, and a carrier opens a substream
//! with an empty frame. So frames are counted per second, and a few on each substream are free.

use tokio::time::Instant;

use super::config::Config;

/// Frames without effect that are free on each substream in each second.
const FREE_PER_SECOND: u32 = 8;

/// The limit of a connection is this many times that of one substream.
const CONNECTION_FACTOR: u32 = 4;

/// Substreams reset for exceeding the limit within [`Config::UNUSED_WINDOW`] before the connection
/// is closed.
const MAX_RESETS: u32 = 4;

/// A count within the second of its last increment. Seconds begin with the connection.
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

/// Consequence of a frame without effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Penalty {
    /// None.
    None,
    /// The substream is reset.
    ResetSubstream,
    /// The connection is closed.
    CloseConnection,
}

/// Counts frames without effect on a connection.
#[derive(Debug)]
pub(super) struct IneffectiveFrames {
    started: Instant,
    all: PerSecond,
    /// Substreams reset for exceeding the limit, counted since `resets_since`.
    resets: u32,
    resets_since: Instant,
}

impl IneffectiveFrames {
    pub(super) fn new() -> Self {
        let now = Instant::now();
        Self {
            started: now,
            all: PerSecond::default(),
            resets: 0,
            resets_since: now,
        }
    }

    fn second(&self, now: Instant) -> u32 {
        // Saturates after 136 years.
        u32::try_from(now.saturating_duration_since(self.started).as_secs()).unwrap_or(u32::MAX)
    }

    /// A frame without effect arrived on the substream with this count.
    pub(super) fn on_frame(&mut self, substream: &mut PerSecond, config: &Config) -> Penalty {
        let now = Instant::now();
        let second = self.second(now);
        let count = substream.add(second);
        if count <= FREE_PER_SECOND {
            return Penalty::None;
        }
        if self.exceeds_connection_limit(second, config) {
            return Penalty::CloseConnection;
        }
        let limit = config.max_frames_without_effect;
        // Frames after this one belong to a substream that is already reset.
        if count.checked_sub(limit) != Some(1) {
            return Penalty::None;
        }
        if now.saturating_duration_since(self.resets_since) >= Config::UNUSED_WINDOW {
            self.resets_since = now;
            self.resets = 0;
        }
        self.resets = self.resets.saturating_add(1);
        match self.resets > MAX_RESETS {
            true => Penalty::CloseConnection,
            false => Penalty::ResetSubstream,
        }
    }

    /// A frame about the connection had no effect; there is no substream to reset.
    pub(super) fn on_notice(&mut self, config: &Config) -> Penalty {
        let second = self.second(Instant::now());
        match self.exceeds_connection_limit(second, config) {
            true => Penalty::CloseConnection,
            false => Penalty::None,
        }
    }

    /// Counts one for the connection in this second; returns whether that exceeds its limit.
    fn exceeds_connection_limit(&mut self, second: u32, config: &Config) -> bool {
        let limit = config.max_frames_without_effect;
        self.all.add(second) > limit.saturating_mul(CONNECTION_FACTOR)
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

    fn penalties(
        counts: &mut IneffectiveFrames,
        substream: &mut PerSecond,
        frames: u32,
    ) -> [u32; 3] {
        let mut all = [0; 3];
        for _ in 0..frames {
            all[match counts.on_frame(substream, &config()) {
                Penalty::None => 0,
                Penalty::ResetSubstream => 1,
                Penalty::CloseConnection => 2,
            }] += 1;
        }
        all
    }

    #[tokio::test(start_paused = true)]
    async fn a_substream_is_reset_for_more_than_it_may_send_in_a_second() {
        let mut counts = IneffectiveFrames::new();
        let mut substream = PerSecond::default();
        for _ in 0..100 {
            assert_eq!(penalties(&mut counts, &mut substream, 20), [20, 0, 0]);
            advance(Duration::from_secs(1)).await;
        }
        assert_eq!(penalties(&mut counts, &mut substream, 21), [20, 1, 0]);
    }

    #[tokio::test(start_paused = true)]
    async fn the_fifth_reset_within_ten_seconds_ends_the_connection() {
        let mut counts = IneffectiveFrames::new();
        for at in 0..5 {
            let expected = if at < 4 { [20, 1, 0] } else { [20, 0, 1] };
            let mut substream = PerSecond::default();
            assert_eq!(penalties(&mut counts, &mut substream, 21), expected);
            advance(Duration::from_secs(2)).await;
        }
        let mut slowly = IneffectiveFrames::new();
        for _ in 0..50 {
            let mut substream = PerSecond::default();
            assert_eq!(penalties(&mut slowly, &mut substream, 21), [20, 1, 0]);
            advance(Duration::from_secs(3)).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn many_substreams_together_may_send_four_times_as_many_beside_the_free_ones() {
        let mut counts = IneffectiveFrames::new();
        for _ in 0..8 {
            assert_eq!(
                penalties(&mut counts, &mut PerSecond::default(), 18),
                [18, 0, 0]
            );
        }
        assert_eq!(
            penalties(&mut counts, &mut PerSecond::default(), 9),
            [8, 0, 1]
        );
        // The free frames are free on any number of substreams.
        let mut counts = IneffectiveFrames::new();
        for _ in 0..10_000 {
            assert_eq!(
                penalties(&mut counts, &mut PerSecond::default(), 8),
                [8, 0, 0]
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn notices_are_counted_with_those_of_all_substreams() {
        let mut counts = IneffectiveFrames::new();
        for second in 0..3 {
            let sent = if second < 2 { 80 } else { 81 };
            let last = (0..sent)
                .map(|_| counts.on_notice(&config()))
                .last()
                .unwrap();
            assert_eq!(last == Penalty::CloseConnection, second == 2);
            advance(Duration::from_secs(1)).await;
        }
    }
}
