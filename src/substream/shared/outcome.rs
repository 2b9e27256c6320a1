//! How a substream has ended, as its handles are told, and with which codes.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use super::Shared;
use crate::connection::ConnectionError;
use crate::substream::error::{CloseOutcome, SubstreamError};
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
    /// How the write half ended, if it did.
    pub(crate) fn outcome(&self) -> Option<CloseOutcome> {
        let state = self.state();
        match (state.write, state.end()) {
            (WriteState::Finished(FinishedAs::Acked), _) => Some(CloseOutcome::Acked),
            (WriteState::Finished(FinishedAs::TimedOut), _) => Some(CloseOutcome::TimedOut),
            (WriteState::Finished(FinishedAs::Stopped) | WriteState::Stopped, _) => {
                Some(CloseOutcome::Stopped(self.stop_code.get()))
            }
            (_, None) => None,
            (_, Some(Ended::ResetLocally)) if self.was_reset_by_close() => Some(CloseOutcome::Lost),
            (_, Some(Ended::ResetByPeer | Ended::ResetLocally)) => {
                Some(CloseOutcome::Reset(self.reset_code.get()))
            }
            (WriteState::FinSent, Some(Ended::Closed)) => Some(CloseOutcome::ChannelClosed),
            (_, Some(Ended::Closed | Ended::Lost)) => Some(CloseOutcome::Lost),
        }
    }

    /// The result of `shutdown()` for an outcome: an error only where data may be missing.
    pub(crate) fn shutdown_result(&self, outcome: CloseOutcome) -> io::Result<()> {
        match outcome {
            CloseOutcome::Acked
            | CloseOutcome::TimedOut
            | CloseOutcome::Stopped(_)
            | CloseOutcome::ChannelClosed => Ok(()),
            CloseOutcome::Reset(_) | CloseOutcome::Lost => match self.state().end() {
                Some(end) => Err(self.error(end).into()),
                None => Ok(()),
            },
        }
    }

    fn was_reset_by_close(&self) -> bool {
        self.reset_by_close.load(Ordering::Acquire)
    }

    pub(super) fn write_error(&self, refused: WritePermit) -> io::Error {
        match refused {
            WritePermit::Ended(end) => self.error(end).into(),
            WritePermit::Stopped => SubstreamError::Stopped(self.stop_code.get()).into(),
            WritePermit::Allowed | WritePermit::ShutDown => SubstreamError::ShutDown.into(),
        }
    }

    pub(super) fn error(&self, end: Ended) -> SubstreamError {
        match end {
            Ended::ResetLocally if self.was_reset_by_close() => {
                SubstreamError::ConnectionLost(self.link.closing_cause())
            }
            Ended::ResetLocally => SubstreamError::ResetLocally(self.reset_code.get()),
            Ended::ResetByPeer => SubstreamError::ResetByPeer(self.reset_code.get()),
            Ended::Closed => SubstreamError::ChannelClosed,
            Ended::Lost => SubstreamError::ConnectionLost(
                self.link.cause().unwrap_or(ConnectionError::ClosedLocally),
            ),
        }
    }
}
