//! Where a substream that the peer opened waits for the application.

use std::sync::atomic::{AtomicU8, Ordering};

/// Not yet, or no longer, in the queue of those that were not accepted. The default.
const NOWHERE: u8 = 0;
/// In that queue.
const QUEUED: u8 = 1;
/// There too, and the driver has forgotten it, since it has ended.
const QUEUED_ENDED: u8 = 2;
/// The driver has forgotten it, and it is not in the queue.
const FORGOTTEN: u8 = 3;

/// See the module. The application moves it, and the driver marks its end.
#[derive(Debug, Default)]
pub(crate) struct Place(AtomicU8);

impl Place {
    fn update(&self, next: impl Fn(u8) -> u8) -> u8 {
        let (success, failure) = (Ordering::AcqRel, Ordering::Acquire);
        let updated = self
            .0
            .fetch_update(success, failure, |place| Some(next(place)));
        // It never fails.
        updated.unwrap_or_else(|place| place)
    }

    /// The substream enters the queue. Returns whether it has ended before.
    pub(crate) fn enter(&self) -> bool {
        let before = self.update(|place| match place {
            FORGOTTEN => QUEUED_ENDED,
            _ => QUEUED,
        });
        before == FORGOTTEN
    }

    /// It leaves the queue. Returns whether it has ended in it, or before.
    pub(crate) fn leave(&self) -> bool {
        self.0.swap(NOWHERE, Ordering::AcqRel) == QUEUED_ENDED
    }

    /// The driver forgets it. Returns whether it is in the queue.
    pub(crate) fn end(&self) -> bool {
        let before = self.update(|place| match place {
            QUEUED => QUEUED_ENDED,
            NOWHERE => FORGOTTEN,
            other => other,
        });
        before == QUEUED
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_counts_once_while_the_substream_is_queued() {
        let place = Place::default();
        assert!(!place.enter());
        assert!(place.end() && !place.end());
        assert!(place.leave() && !place.leave());
        let ended_before = Place::default();
        assert!(!ended_before.end() && ended_before.enter() && ended_before.leave());
        let accepted = Place::default();
        assert!(!accepted.enter() && !accepted.leave() && !accepted.end());
    }
}
