//! What [`Events`](crate::events::Events) are told of one payload.

use std::sync::Arc;

use super::watch::State;
use crate::error::payload::{PayloadError, SendError};
use crate::events::{PayloadDirection, PayloadOutcome, PayloadProgress};
use crate::substream::Shared;

/// Tells of one payload, from its beginning to its end, which it tells once whatever becomes of it.
///
/// `None` before that, after it, and where nobody listens.
#[derive(Debug)]
pub(super) struct Teller(Option<Told>);

#[derive(Debug)]
struct Told {
    substream: Arc<Shared>,
    state: Arc<State>,
    direction: PayloadDirection,
    /// Bytes between two events.
    interval: u64,
    resumed_from: u64,
    /// Bytes that were through at the event before.
    last: u64,
    /// There was an event since the beginning.
    told: bool,
}

impl Teller {
    pub(super) const fn silent() -> Self {
        Self(None)
    }

    pub(super) fn begin(
        substream: &Arc<Shared>,
        state: &Arc<State>,
        direction: PayloadDirection,
        interval: u64,
    ) -> Self {
        if !substream.siblings.audience.is_there() {
            return Self::silent();
        }
        let told = Told {
            substream: Arc::clone(substream),
            state: Arc::clone(state),
            direction,
            interval,
            resumed_from: 0,
            last: 0,
            told: false,
        };
        let progress = told.progress();
        told.substream.siblings.audience.tell(|events, connection| {
            events.payload_begun(connection, told.substream.info(), progress);
        });
        Self(Some(told))
    }

    /// The first `offset` bytes are skipped.
    pub(super) fn resumed(&mut self, offset: u64) {
        if let Some(told) = &mut self.0 {
            told.resumed_from = offset;
            told.last = offset;
        }
    }

    /// Bytes have moved.
    pub(super) fn moved(&mut self) {
        if let Some(told) = &mut self.0
            && told.state.transferred().saturating_sub(told.last) >= told.interval
        {
            told.tell_progress();
        }
    }

    pub(super) fn completed(&mut self) {
        self.end(PayloadOutcome::Complete);
    }

    pub(super) fn send_failed(&mut self, error: &SendError) {
        self.end(PayloadOutcome::SendFailed(error));
    }

    pub(super) fn receive_failed(&mut self, error: &PayloadError) {
        self.end(PayloadOutcome::ReceiveFailed(error));
    }

    fn end(&mut self, outcome: PayloadOutcome<'_>) {
        let Some(mut told) = self.0.take() else {
            return;
        };
        if !told.told || told.state.transferred() != told.last {
            told.tell_progress();
        }
        let progress = told.progress();
        told.substream.siblings.audience.tell(|events, connection| {
            events.payload_ended(connection, told.substream.info(), progress, outcome);
        });
    }
}

impl Told {
    fn progress(&self) -> PayloadProgress {
        let transferred = self.state.transferred();
        PayloadProgress {
            direction: self.direction,
            transferred,
            total: self.state.total(),
            resumed_from: self.resumed_from,
            moved: transferred.saturating_sub(self.last),
        }
    }

    fn tell_progress(&mut self) {
        let progress = self.progress();
        self.last = progress.transferred;
        self.told = true;
        self.substream.siblings.audience.tell(|events, connection| {
            events.payload_progress(connection, self.substream.info(), progress);
        });
    }
}

impl Drop for Teller {
    fn drop(&mut self) {
        let cancelled = self
            .0
            .as_ref()
            .map(|told| (told.state.cancelled(), told.direction));
        match cancelled {
            // By a `Canceller`, and nobody has waited for it since.
            Some((Some(code), PayloadDirection::Sent)) => {
                self.send_failed(&SendError::Cancelled(code));
            }
            Some((Some(code), PayloadDirection::Received)) => {
                self.receive_failed(&PayloadError::Cancelled(code));
            }
            Some((None, _)) => self.end(PayloadOutcome::Dropped),
            None => {}
        }
    }
}
