//! Reads from the receive buffer, and the credit that they make due.

use std::io;
use std::sync::Arc;
use std::task::{Context, Poll};

use super::{Shared, Usage};
use crate::error::SubstreamError;
use crate::substream::recv::ReceiveBuffer;
use crate::substream::state::ReadPermit;

impl Shared {
    /// Polls for data; `take` gets the buffer and returns what it took, if anything.
    pub(crate) fn poll_read_with<T>(
        self: &Arc<Self>,
        cx: &mut Context<'_>,
        mut take: impl FnMut(&mut ReceiveBuffer) -> Option<T>,
    ) -> Poll<io::Result<Option<T>>> {
        for registered in [false, true] {
            match self.take_received(&mut take) {
                Ok(taken) => return Poll::Ready(Ok(Some(taken))),
                Err((ReadPermit::EndOfStream, true)) => {
                    let cause = SubstreamError::ConnectionLost(self.siblings.closing_cause());
                    return Poll::Ready(Err(cause.into_read_error()));
                }
                Err((ReadPermit::EndOfStream, false)) => return Poll::Ready(Ok(None)),
                Err((ReadPermit::Ended(end), _)) => {
                    return Poll::Ready(Err(self.error(end).into_read_error()));
                }
                Err((ReadPermit::Wait, _)) if registered => {}
                // Register, then check again, so that no change in between is missed.
                Err((ReadPermit::Wait, _)) => self.reader.register(cx.waker()),
            }
        }
        Poll::Pending
    }

    /// Applies `take` to the receive buffer; it returns what it took, if anything. Requests service
    /// when a grant becomes due.
    ///
    /// # Errors
    /// If nothing was taken: the meaning of the empty buffer, and whether the close of the
    /// connection stopped the read half.
    fn take_received<T>(
        self: &Arc<Self>,
        take: impl FnOnce(&mut ReceiveBuffer) -> Option<T>,
    ) -> Result<T, (ReadPermit, bool)> {
        let (taken, is_due) = self.update_receive(|inner| {
            let Some(taken) = take(&mut inner.receive) else {
                return Err((inner.state.read_permit(), inner.cut_off));
            };
            inner.record_usage(Usage::Read);
            let room = self.siblings.room();
            Ok((taken, inner.receive.credit_offer(room, false).is_some()))
        })?;
        if is_due || self.siblings.reads_awaited() {
            self.request_service();
        }
        Ok(taken)
    }

    /// Consumes `length` bytes that the reader has seen; fewer if a reset or a stop has discarded
    /// them since.
    pub(crate) fn consume_received(self: &Arc<Self>, length: usize) {
        let _ = self.take_received(|receive| match receive.skip(length) {
            0 => None,
            _ => Some(()),
        });
    }
}
