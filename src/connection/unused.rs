//! Substreams that a peer opens for nothing.
//!
//! Opening and resetting costs a peer two small messages, and this side a channel, a substream, a negotiation
//! and their removal; and it never has more open than it may. So what comes to nothing is counted,
//! over a window, and a peer that does nothing else is left.

use tokio::time::Instant;

use super::config::Config;

/// Counts over a window that begins with the first.
#[derive(Debug, Default)]
pub(super) struct UnusedSubstreams {
    window: Option<Instant>,
    count: u32,
    /// Refused since one of them was counted.
    refused: u32,
}

/// Refused substreams that count as one. This side has no room, which is not the peer's fault and may be an honest
/// burst of a peer that knows no limit; but a channel that is refused is work too.
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

    /// Counts a substream that was refused for want of room.
    pub(super) fn count_refused(&mut self) {
        self.refused += 1;
        if self.refused == REFUSED_PER_UNUSED {
            self.refused = 0;
            self.count();
        }
    }

    /// Whether there were more than the configuration allows.
    pub(super) fn too_many(&self, config: &Config) -> bool {
        self.count > config.max_unused_substreams
    }
}
