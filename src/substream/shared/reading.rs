//! Reads from the receive buffer, and the credit that they make due.

use std::sync::Arc;

use super::{Shared, Usage};
use crate::substream::recv::ReceiveBuffer;

impl Shared {
    /// Applies `take` to the receive buffer; it returns what it took, if anything. Requests service
    /// when a grant becomes due.
    pub(super) fn take_received<T>(
        self: &Arc<Self>,
        take: impl FnOnce(&mut ReceiveBuffer) -> Option<T>,
    ) -> Option<T> {
        let mut due = false;
        let taken = self.with_received(|receive| {
            let taken = take(receive)?;
            let room = self.siblings.committed.room(self.siblings.ceilings);
            due = receive.credit_offer(room, false).is_some();
            Some(taken)
        })?;
        self.record_usage(Usage::Read);
        if due || self.siblings.reads_awaited() {
            self.request_service();
        }
        Some(taken)
    }

    /// Consumes `length` bytes that the reader has seen; fewer if a reset or a stop has discarded
    /// them since.
    pub(crate) fn consume_received(self: &Arc<Self>, length: usize) {
        self.take_received(|receive| match receive.skip(length) {
            0 => None,
            _ => Some(()),
        });
    }
}
