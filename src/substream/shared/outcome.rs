//! How a substream ended, as reported to its handles, and its error codes.

use std::io;
use std::sync::Arc;
use std::task::{Context, Poll};

use super::Shared;
use crate::error::ConnectionError;
use crate::error::{CloseOutcome, FinishError, Finished, SubstreamError};
use crate::substream::state::{Ended, FinishedAs, SubstreamEvent, WritePermit, WriteState};

impl Shared {
    /// Completes when the carrier has taken every accepted byte.
    pub(crate) fn poll_flush(self: &Arc<Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        for registered in [false, true] {
            // A guard in the condition would live until the end of the block.
            let flushed = self.inner().flushed();
            if let Some(flushed) = flushed {
                return Poll::Ready(flushed.map_err(|refused| self.write_error(refused)));
            }
            if !registered {
                self.flusher.register(cx.waker());
            }
        }
        Poll::Pending
    }

    /// Shuts the write half down and completes with the outcome.
    pub(crate) fn poll_finish(self: &Arc<Self>, cx: &mut Context<'_>) -> Poll<CloseOutcome> {
        self.apply(SubstreamEvent::Shutdown);
        self.poll_outcome(cx)
    }

    /// Completes with the outcome of the write half, without shutting it down.
    pub(crate) fn poll_outcome(&self, cx: &mut Context<'_>) -> Poll<CloseOutcome> {
        if let Some(outcome) = self.outcome() {
            return Poll::Ready(outcome);
        }
        self.closer.register(cx.waker());
        self.outcome().map_or(Poll::Pending, Poll::Ready)
    }

    /// How the write half ended, if it has.
    pub(crate) fn outcome(&self) -> Option<CloseOutcome> {
        let inner = self.inner();
        let state = inner.state;
        match (state.write, state.end()) {
            (WriteState::Finished(how), _) => Some(match how {
                FinishedAs::Acked => CloseOutcome::Acked,
                FinishedAs::Delivered => CloseOutcome::Delivered,
                FinishedAs::TimedOut => CloseOutcome::TimedOut,
                FinishedAs::Stopped | FinishedAs::Discarded => {
                    CloseOutcome::Stopped(inner.stop_code)
                }
            }),
            (WriteState::Stopped, _) => Some(CloseOutcome::Stopped(inner.stop_code)),
            (_, None) => None,
            (WriteState::CutOff, Some(Ended::ResetLocally)) => Some(CloseOutcome::Lost),
            (_, Some(Ended::ResetByPeer | Ended::ResetLocally)) => {
                Some(CloseOutcome::Reset(inner.reset_code))
            }
            (WriteState::FinSent | WriteState::FinDelivered, Some(Ended::Closed)) => {
                Some(CloseOutcome::ChannelClosed)
            }
            (_, Some(Ended::Closed | Ended::Lost)) => Some(CloseOutcome::Lost),
        }
    }

    /// The result of `finish()` once the write half has ended: success only if the peer has
    /// everything.
    pub(crate) fn finish_result(&self) -> Result<Finished, FinishError> {
        let state = self.state();
        match (state.write, state.end()) {
            (WriteState::Finished(FinishedAs::Acked), _) => Ok(Finished::Acked),
            (WriteState::Finished(FinishedAs::Delivered), _) => Ok(Finished::Delivered),
            (WriteState::Finished(FinishedAs::TimedOut), _) => Err(FinishError::TimedOut),
            (
                WriteState::Stopped
                | WriteState::Finished(FinishedAs::Stopped | FinishedAs::Discarded),
                _,
            ) => Err(FinishError::Stopped(self.inner().stop_code)),
            (_, Some(end)) => Err(match self.error(end) {
                SubstreamError::ResetByPeer(code) => FinishError::ResetByPeer(code),
                SubstreamError::ResetLocally(code) => FinishError::ResetLocally(code),
                SubstreamError::ConnectionLost(cause) => FinishError::ConnectionLost(cause),
                _ => FinishError::ChannelClosed,
            }),
            // Called before the end.
            (_, None) => Err(FinishError::TimedOut),
        }
    }

    /// The result of `shutdown()`: success if the peer's transport has everything and FIN. Where
    /// the carrier reports nothing about that transport, FIN_ACK is required.
    ///
    /// STOP_SENDING is a success unless it discarded accepted bytes: the peer wants no more, and
    /// there is no more.
    pub(crate) fn shutdown_result(&self) -> io::Result<()> {
        let (write, has_discarded) = {
            let inner = self.inner();
            (inner.state.write, inner.has_discarded)
        };
        match write {
            WriteState::FinDelivered | WriteState::Finished(FinishedAs::TimedOut)
                if self.siblings.is_delivery_local() =>
            {
                self.finish_result().map(drop).map_err(io::Error::from)
            }
            WriteState::FinDelivered
            | WriteState::Finished(
                FinishedAs::Acked
                | FinishedAs::Delivered
                | FinishedAs::TimedOut
                | FinishedAs::Stopped,
            ) if !self.was_reset() => Ok(()),
            WriteState::Stopped | WriteState::Finished(FinishedAs::Discarded)
                if !has_discarded && !self.was_reset() =>
            {
                Ok(())
            }
            WriteState::Finished(FinishedAs::Acked | FinishedAs::Delivered) => Ok(()),
            _ => self.finish_result().map(drop).map_err(io::Error::from),
        }
    }

    /// Whether a reset has let the peer discard unread data.
    fn was_reset(&self) -> bool {
        let end = self.state().end();
        matches!(end, Some(Ended::ResetByPeer | Ended::ResetLocally))
    }

    pub(super) fn write_error(&self, refused: WritePermit) -> io::Error {
        match refused {
            WritePermit::Ended(end) => self.error(end).into(),
            WritePermit::CutOff => {
                SubstreamError::ConnectionLost(self.siblings.closing_cause()).into()
            }
            WritePermit::Stopped => SubstreamError::Stopped(self.inner().stop_code).into(),
            WritePermit::Allowed | WritePermit::ShutDown => SubstreamError::ShutDown.into(),
        }
    }

    pub(super) fn error(&self, end: Ended) -> SubstreamError {
        let (is_cut_off, reset_code) = {
            let inner = self.inner();
            (inner.state.is_cut_off(), inner.reset_code)
        };
        match end {
            Ended::ResetLocally if is_cut_off => {
                SubstreamError::ConnectionLost(self.siblings.closing_cause())
            }
            Ended::ResetLocally => SubstreamError::ResetLocally(reset_code),
            Ended::ResetByPeer => SubstreamError::ResetByPeer(reset_code),
            Ended::Closed => SubstreamError::ChannelClosed,
            Ended::Lost => SubstreamError::ConnectionLost(
                self.siblings
                    .cause()
                    .unwrap_or(ConnectionError::ClosedLocally),
            ),
        }
    }
}
