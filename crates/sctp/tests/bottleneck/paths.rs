//! The paths of the scenarios: 50 Mbit/s and a round trip of 50 ms unless they say otherwise.

use std::time::Duration;

use super::link::LinkConfig;

/// Bandwidth-delay product of the usual path, in bytes.
pub(crate) const BDP: usize = 312_500;

const DELAY: Duration = Duration::from_millis(25);

/// The usual bottleneck, with this queue.
pub(crate) fn bottleneck(queue: usize) -> LinkConfig {
    LinkConfig::new(50.0, DELAY, queue)
}

/// The usual way back, whose queue does not overflow.
pub(crate) fn back() -> LinkConfig {
    bottleneck(1_000_000)
}

/// A path both of whose links are the same.
pub(crate) fn both(link: &LinkConfig) -> [LinkConfig; 2] {
    [link.clone(), link.clone()]
}

pub(crate) fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

pub(crate) fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}
