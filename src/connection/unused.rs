//! Limits rapid open and reset.
//!
//! Opening and resetting a substream costs a peer two small messages. It costs this side a channel,
//! a substream, a negotiation and their removal, and the peer never exceeds the limit on open
//! substreams. So substreams that end before the application used them are counted over a window,
//! and a peer that exceeds the limit is disconnected.

use tokio::time::Instant;

use super::config::Config;

/// Counts over a window that begins with the first unused substream.
#[derive(Debug, Default)]
pub(super) struct UnusedSubstreams {
    window: Option<Instant>,
    count: u32,
    /// Substreams refused since a refusal was last counted.
    refused: u32,
}

/// Number of refused substreams that count as one unused. The lack of room is not the peer's fault,
/// and a peer without support for limits may send an honest burst; but refusing a channel is work
/// too.
const REFUSED_PER_UNUSED: u32 = 16;

impl UnusedSubstreams {
    pub(super) fn count(&mut self) {
        let now = Instant::now();
        let begin = *self.window.get_or_insert(now);
        if now.saturating_duration_since(begin) >= Config::UNUSED_WINDOW {
            self.window = Some(now);
            self.count = 0;
        }
        self.count = self.count.saturating_add(1);
    }

    /// Counts a substream that was refused because the limit was reached.
    pub(super) fn count_refused(&mut self) {
        self.refused += 1;
        if self.refused == REFUSED_PER_UNUSED {
            self.refused = 0;
            self.count();
        }
    }

    /// Whether the count exceeds [`Config::max_unused_substreams`].
    pub(super) fn too_many(&self, config: &Config) -> bool {
        self.count > config.max_unused_substreams
    }
}
