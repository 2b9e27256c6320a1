//! How a substream ended, as reported to its handles, and its error codes.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use super::Shared;
use crate::error::ConnectionError;
use crate::error::{CloseOutcome, FinishError, Finished, SubstreamError};
use crate::substream::state::{Ended, FinishedAs, WritePermit, WriteState};

/// An optional `u32` in an atomic word.
#[derive(Debug)]
pub(super) struct AtomicCode(AtomicU64);

impl AtomicCode {
    const NONE: u64 = u64::MAX;

    pub(super) const fn new() -> Self {
        Self(AtomicU64::new(Self::NONE))
    }

    pub(super) fn set(&self, code: Option<u32>) {
        self.0
            .store(code.map_or(Self::NONE, u64::from), Ordering::Release);
    }

    pub(super) fn get(&self) -> Option<u32> {
        u32::try_from(self.0.load(Ordering::Acquire)).ok()
    }
}

impl Shared {
    /// How the write half ended, if it has.
    pub(crate) fn outcome(&self) -> Option<CloseOutcome> {
        let state = self.state();
        match (state.write, state.end()) {
            (WriteState::Finished(how), _) => Some(match how {
                FinishedAs::Acked => CloseOutcome::Acked,
                FinishedAs::Delivered => CloseOutcome::Delivered,
                FinishedAs::TimedOut => CloseOutcome::TimedOut,
                FinishedAs::Stopped | FinishedAs::Discarded => {
                    CloseOutcome::Stopped(self.stop_code.get())
                }
            }),
            (WriteState::Stopped, _) => Some(CloseOutcome::Stopped(self.stop_code.get())),
            (_, None) => None,
            (WriteState::CutOff, Some(Ended::ResetLocally)) => Some(CloseOutcome::Lost),
            (_, Some(Ended::ResetByPeer | Ended::ResetLocally)) => {
                Some(CloseOutcome::Reset(self.reset_code.get()))
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
            ) => Err(FinishError::Stopped(self.stop_code.get())),
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
    /// STOP_SENDING after our FIN is a success: the peer wants no more, and there is no more.
    pub(crate) fn shutdown_result(&self) -> io::Result<()> {
        match self.state().write {
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
            WritePermit::Stopped => SubstreamError::Stopped(self.stop_code.get()).into(),
            WritePermit::Allowed | WritePermit::ShutDown => SubstreamError::ShutDown.into(),
        }
    }

    pub(super) fn error(&self, end: Ended) -> SubstreamError {
        match end {
            Ended::ResetLocally if self.state().is_cut_off() => {
                SubstreamError::ConnectionLost(self.siblings.closing_cause())
            }
            Ended::ResetLocally => SubstreamError::ResetLocally(self.reset_code.get()),
            Ended::ResetByPeer => SubstreamError::ResetByPeer(self.reset_code.get()),
            Ended::Closed => SubstreamError::ChannelClosed,
            Ended::Lost => SubstreamError::ConnectionLost(
                self.siblings
                    .cause()
                    .unwrap_or(ConnectionError::ClosedLocally),
            ),
        }
    }
}
