//! Ends a connection: drains its substreams, then closes its carrier.

use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::deadlines::deadline_after;
use super::driver::Driver;
use crate::carrier::Carrier;
use crate::error::ConnectionError;
use crate::substream::{SubstreamEvent, code};

/// Time that a peer has to receive the cause when it is disconnected for abuse.
const ABUSE_CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// Phases of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DriverPhase {
    /// Substreams are opened and accepted.
    Running,
    /// No new substreams; existing ones close, until none is left or the time is over.
    Draining { until: Instant },
    /// The carrier notifies the peer, until that is done or the time is over.
    ClosingCarrier { until: Instant },
}

impl<C: Carrier> Driver<C> {
    /// Starts the close when the application requests it or can not reach the connection any more.
    pub(super) fn begin_closing(&mut self) -> bool {
        if self.phase != DriverPhase::Running {
            return false;
        }
        let is_unused = self.conn.is_unreachable() && self.substreams.is_empty();
        if !self.conn.is_closing() && !is_unused && !self.is_drained() {
            return false;
        }
        let until = deadline_after(self.conn.config.teardown_timeout);
        let cause = self.conn.siblings.closing_cause();
        self.conn
            .emit(|events, connection| events.connection_closing(connection, &cause));
        self.phase = DriverPhase::Draining { until };
        let stop_code = match cause {
            ConnectionError::ClosedWith { code, .. } => code,
            _ => code::SHUTDOWN,
        };
        self.carrier
            .begin_close(&self.conn.siblings.closing_cause());
        for substream in self.substreams.iter() {
            substream.close(stop_code);
        }
        // Not earlier: the drop of a negotiation would end its substream with FIN.
        self.negotiations.clear();
        true
    }

    /// Closes the connection for what the peer did: it is notified, with a short timeout.
    pub(super) fn close_for_abuse(&mut self, cause: ConnectionError) {
        self.conn.begin_close_for(cause);
        let timeout = ABUSE_CLOSE_TIMEOUT.min(self.conn.config.teardown_timeout);
        self.carrier
            .begin_close(&self.conn.siblings.closing_cause());
        self.phase = DriverPhase::ClosingCarrier {
            until: deadline_after(timeout),
        };
    }

    /// Advances the close. `Pending` if it has to wait, or has not started; the cause once it is
    /// complete.
    pub(super) fn poll_closing(&mut self, cx: &mut Context<'_>) -> Poll<Option<ConnectionError>> {
        let (DriverPhase::Draining { until } | DriverPhase::ClosingCarrier { until }) = self.phase
        else {
            return Poll::Pending;
        };
        let timer = self
            .phase_timer
            .get_or_insert_with(|| Box::pin(sleep_until(until)));
        if timer.deadline() != until {
            timer.as_mut().reset(until);
        }
        let has_expired = timer.as_mut().poll(cx).is_ready();
        match self.phase {
            DriverPhase::Running => Poll::Pending,
            DriverPhase::Draining { .. } if has_expired || self.substreams.is_empty() => {
                // With the rest of the time: the teardown timeout covers the whole close.
                self.phase = DriverPhase::ClosingCarrier { until };
                Poll::Ready(None)
            }
            DriverPhase::Draining { .. } => Poll::Pending,
            DriverPhase::ClosingCarrier { .. } => {
                // Polled in any case, so that the peer is notified even if the time is over.
                if self.carrier.poll_close(cx).is_ready() || has_expired {
                    return Poll::Ready(Some(self.conn.siblings.closing_cause()));
                }
                Poll::Pending
            }
        }
    }

    /// Ends the connection: the remaining substreams and open requests fail with the cause.
    pub(super) fn end(&mut self, cause: ConnectionError) -> ConnectionError {
        tracing::debug!(target: "anabranch::connection", %cause, "connection ended");
        self.negotiations.clear();
        // The cause before the wake-ups, so that every task that wakes finds it.
        let is_first = self.conn.end(cause.clone());
        self.limits.fail(&cause);
        self.writer.clear();
        self.reader.clear();
        self.ready.clear();
        for channel in self.substreams.channels() {
            self.carrier.close_channel(channel);
            if let Some(entry) = self.substreams.get(channel) {
                entry.shared.apply(SubstreamEvent::CarrierLost);
            }
            self.forget(channel);
        }
        self.conn.counters.substreams.set(0);
        if is_first {
            self.conn.report_end();
        }
        cause
    }
}

impl<C> Driver<C> {
    /// Ends the connection without notifying the peer, for a driver that is dropped before its end:
    /// no task waits in vain, and no handle keeps the others alive.
    pub(super) fn abandon(&mut self) {
        let panicked = std::thread::panicking();
        let cause = match panicked {
            true => ConnectionError::Panicked,
            false => ConnectionError::ClosedLocally,
        };
        // The cause first: negotiations that are dropped find it.
        let is_first = self.conn.end(cause);
        self.negotiations.clear();
        // After a panic nothing is reported: it may have come from the event listener.
        self.substreams.abandon(!panicked);
        self.conn.counters.substreams.set(0);
        if is_first && !panicked {
            self.conn.report_end();
        }
    }
}
