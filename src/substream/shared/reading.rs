//! What a reader takes, and the credit that it gives the peer by that.

use std::sync::Arc;

use super::{Shared, Usage};
use crate::substream::recv::ReceiveBuffer;

impl Shared {
    /// Lets `take` take from the receive buffer; it returns what it took, if anything. Has the
    /// driver grant what became free, once that is worth a frame.
    pub(super) fn take_received<T>(
        self: &Arc<Self>,
        take: impl FnOnce(&mut ReceiveBuffer) -> Option<T>,
    ) -> Option<T> {
        let mut due = false;
        let taken = self.with_received(|receive| {
            let taken = take(receive)?;
            let room = self.siblings.promised.room(self.siblings.ceilings);
            due = receive.credit_offer(room, false).is_some();
            Some(taken)
        })?;
        self.used(Usage::Read);
        if due || self.siblings.reads_are_awaited() {
            self.request_service();
        }
        Some(taken)
    }

    /// Reads `length` bytes that the reader has looked at. Fewer where a reset or a stop has
    /// discarded them since.
    pub(crate) fn consume_received(self: &Arc<Self>, length: usize) {
        self.take_received(|receive| match receive.skip(length) {
            0 => None,
            _ => Some(()),
        });
    }
}
