//! Reports one payload to [`Events`](crate::events::Events).

use std::sync::Arc;

use super::watch::State;
use crate::error::payload::{PayloadError, SendError};
use crate::events::{PayloadDirection, PayloadOutcome, PayloadProgress};
use crate::substream::Shared;

/// Reports a payload from its beginning to its end. The end is reported exactly once, on drop at
/// the latest.
///
/// `None` before the beginning, after the end, and without `Events`.
#[derive(Debug)]
pub(super) struct Reporter(Option<Report>);

#[derive(Debug)]
struct Report {
    substream: Arc<Shared>,
    state: Arc<State>,
    direction: PayloadDirection,
    /// Bytes between two progress events.
    interval: u64,
    resumed_from: u64,
    /// Bytes transferred at the previous event.
    last: u64,
    /// Whether there was a progress event.
    has_progress: bool,
}

impl Reporter {
    pub(super) const fn silent() -> Self {
        Self(None)
    }

    pub(super) fn begin(
        substream: &Arc<Shared>,
        state: &Arc<State>,
        direction: PayloadDirection,
        interval: u64,
    ) -> Self {
        if !substream.siblings.events.is_enabled() {
            return Self::silent();
        }
        let report = Report {
            substream: Arc::clone(substream),
            state: Arc::clone(state),
            direction,
            interval,
            resumed_from: 0,
            last: 0,
            has_progress: false,
        };
        let progress = report.progress();
        report.substream.siblings.events.emit(|events, connection| {
            events.payload_begun(connection, report.substream.info(), progress);
        });
        Self(Some(report))
    }

    /// The first `offset` bytes are skipped.
    pub(super) fn resumed(&mut self, offset: u64) {
        if let Some(report) = &mut self.0 {
            report.resumed_from = offset;
            report.last = offset;
        }
    }

    /// Bytes were transferred.
    pub(super) fn progressed(&mut self) {
        if let Some(report) = &mut self.0
            && report.state.transferred().saturating_sub(report.last) >= report.interval
        {
            report.report_progress();
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
        let Some(mut report) = self.0.take() else {
            return;
        };
        if !report.has_progress || report.state.transferred() != report.last {
            report.report_progress();
        }
        let progress = report.progress();
        report.substream.siblings.events.emit(|events, connection| {
            events.payload_ended(connection, report.substream.info(), progress, outcome);
        });
    }
}

impl Report {
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

    fn report_progress(&mut self) {
        let progress = self.progress();
        self.last = progress.transferred;
        self.has_progress = true;
        self.substream.siblings.events.emit(|events, connection| {
            events.payload_progress(connection, self.substream.info(), progress);
        });
    }
}

impl Drop for Reporter {
    fn drop(&mut self) {
        let cancelled = self
            .0
            .as_ref()
            .map(|report| (report.state.cancelled(), report.direction));
        match cancelled {
            // Cancelled by a `Canceller`, and not polled since.
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
