//! Where a substream that the peer opened waits for the application.

use std::sync::atomic::{AtomicU8, Ordering};

const NOWHERE: u8 = 0;
/// In the queue of those that were not accepted.
const QUEUED: u8 = 1;
/// There too, and the driver has forgotten it, since it has ended.
const QUEUED_ENDED: u8 = 2;

/// See the module. The application moves it, and the driver marks its end.
#[derive(Debug, Default)]
pub(crate) struct Place(AtomicU8);

impl Place {
    /// The substream enters the queue.
    pub(crate) fn enter(&self) {
        self.0.store(QUEUED, Ordering::Release);
    }

    /// It leaves the queue. Returns whether [`Place::end`] has returned `true`.
    pub(crate) fn leave(&self) -> bool {
        self.0.swap(NOWHERE, Ordering::AcqRel) == QUEUED_ENDED
    }

    /// The driver forgets it. Returns whether it is in the queue.
    pub(crate) fn end(&self) -> bool {
        let orders = (Ordering::AcqRel, Ordering::Acquire);
        self.0
            .compare_exchange(QUEUED, QUEUED_ENDED, orders.0, orders.1)
            .is_ok()
    }
}

const _: () = assert!(NOWHERE == 0, "the default");
