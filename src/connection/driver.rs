//! The driver of a connection: the one task that owns its carrier.
//!
//! It moves frames between the carrier and the substreams and never waits for a consumer. Its jobs
//! are in modules of their own: `reader` takes frames from channels and `received` applies them,
//! `service` derives from the state of a substream what has to be sent and `writer` sends it,
//! `substreams` keeps the table of substreams, `opening` opens them, and `closing` ends the
//! connection.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::time::Sleep;

use super::closing::DriverPhase;
use super::config::{CeilingPolicy, Negotiation};
use super::deadlines::{Deadline, DeadlineKind, Deadlines, NO_CHANNEL};
use super::draining::Draining;
use super::ineffective::IneffectiveFrames;
use super::negotiate::{NegotiationOutcome, Negotiations};
use super::opening::SubstreamLimits;
use super::peer_credit::{PeerCredit, PeerLimit};
use super::reader::FrameReader;
use super::report;
use super::shared::ConnectionShared;
use super::substreams::Substreams;
use super::work::{BACKLOG, EVENTS_PER_ROUND, OTHERS_PER_ROUND, ROUNDS_PER_POLL, Work};
use super::writer::FrameWriter;
use crate::carrier::{Carrier, CarrierEvent, ChannelId};
use crate::error::ConnectionError;
use crate::substream::{ReadState, Shared, SubstreamEvent, Usage, WriteState, code};

/// The driver of a connection. Completes when the connection has ended and nothing is left of it;
/// spawn it, or poll it, for the connection to make progress. If it is dropped before that, the
/// connection ends at once.
#[must_use = "a connection makes no progress unless its driver is polled"]
pub struct Driver<C> {
    pub(super) carrier: C,
    pub(super) conn: Arc<ConnectionShared>,
    pub(super) phase: DriverPhase,
    /// Ends the current phase of a close. Made with the first.
    pub(super) phase_timer: Option<Pin<Box<Sleep>>>,
    pub(super) deadlines: Deadlines,
    pub(super) substreams: Substreams,
    pub(super) reader: FrameReader,
    pub(super) writer: FrameWriter,
    /// The part of the ready queue that was taken and not serviced yet.
    pub(super) ready: VecDeque<Arc<Shared>>,
    pub(super) credit: PeerCredit,
    pub(super) limits: SubstreamLimits,
    pub(super) draining: Draining,
    /// Inbound substreams whose protocol is being negotiated.
    pub(super) negotiations: Negotiations,
    pub(super) ineffective: IneffectiveFrames,
    /// The peer exceeded a limit on abuse: the connection is closed for this cause.
    pub(super) abuse: Option<ConnectionError>,
    /// The carrier has ended for this cause. Data that arrived before is read first.
    carrier_error: Option<ConnectionError>,
    pub(super) work: Work,
}

// The carrier is never pinned.
impl<C> Unpin for Driver<C> {}

impl<C> std::fmt::Debug for Driver<C> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Driver")
            .field("phase", &self.phase)
            .field("substreams", &self.substreams.len())
            .finish_non_exhaustive()
    }
}

impl<C> Drop for Driver<C> {
    fn drop(&mut self) {
        self.abandon();
    }
}

impl<C: Carrier> Driver<C> {
    pub(crate) fn new(mut carrier: C, conn: Arc<ConnectionShared>) -> Self {
        let config = Arc::clone(&conn.config);
        if config.ceiling_policy == CeilingPolicy::Backpressure && carrier.holds_back_unread() {
            carrier.allow_shut_window();
            conn.siblings.set_bounded_by_carrier();
        }
        conn.siblings
            .set_delivery_is_local(!carrier.confirms_delivery());
        // Peers that name protocols by label run this library.
        let supports_credit = config.negotiation == Negotiation::ChannelLabel
            || conn.takes_labels
            || carrier.knows_credit();
        Self {
            phase: DriverPhase::Running,
            phase_timer: None,
            deadlines: Deadlines::new(),
            substreams: Substreams::new(Arc::clone(&conn)),
            reader: FrameReader::new(),
            writer: FrameWriter::new(Arc::clone(&conn)),
            ready: VecDeque::new(),
            credit: match supports_credit {
                true => PeerCredit::Supported(PeerLimit::Awaited),
                false => PeerCredit::Unknown,
            },
            limits: SubstreamLimits::new(carrier.carries_notices()),
            draining: Draining::default(),
            negotiations: Negotiations::default(),
            ineffective: IneffectiveFrames::new(),
            abuse: None,
            carrier_error: None,
            work: Work::new(),
            carrier,
            conn,
        }
    }
}

impl<C: Carrier> Future for Driver<C> {
    type Output = ConnectionError;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<ConnectionError> {
        let driver = self.get_mut();
        let conn = Arc::clone(&driver.conn);
        // Entered for one poll: nothing in here awaits.
        let _span = conn.siblings.span.enter();
        conn.siblings.register_driver(cx.waker());
        driver.work.begin_poll();
        for _ in 0..ROUNDS_PER_POLL {
            let moved = match driver.round(cx) {
                Ok(moved) => moved,
                Err(_) if matches!(driver.phase, DriverPhase::ClosingCarrier { .. }) => {
                    // The carrier ends because this side closes it.
                    let cause = conn.siblings.closing_cause();
                    return Poll::Ready(driver.end(cause));
                }
                Err(cause) => return Poll::Ready(driver.end(cause)),
            };
            // Polled whether anything moved or not: a peer that always sends must not delay the
            // close.
            match driver.poll_closing(cx) {
                Poll::Ready(Some(cause)) => return Poll::Ready(driver.end(cause)),
                Poll::Ready(None) => {}
                Poll::Pending if moved => {}
                Poll::Pending => return Poll::Pending,
            }
            if driver.work.poll_is_over() {
                break;
            }
        }
        // More to do, but other tasks have waited long enough.
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

impl<C: Carrier> Driver<C> {
    /// One round of all jobs; `Ok(false)` if nothing moved.
    fn round(&mut self, cx: &mut Context<'_>) -> Result<bool, ConnectionError> {
        self.work.begin_round();
        let mut moved = self.take_events(cx);
        moved |= self.read_queued();
        if self.reader.is_idle()
            && let Some(cause) = self.carrier_error.take()
        {
            return Err(cause);
        }
        for _ in 0..OTHERS_PER_ROUND {
            let Poll::Ready(deadline) = self.deadlines.poll_next(cx) else {
                break;
            };
            self.work.spend(1);
            self.on_deadline(deadline);
            moved = true;
        }
        for _ in 0..OTHERS_PER_ROUND {
            let Poll::Ready(outcome) = self.negotiations.poll_next(cx) else {
                break;
            };
            self.work.spend(1);
            self.on_negotiated(outcome);
            moved = true;
        }
        moved |= self.open_requested();
        moved |= self.service_ready();
        moved |= self.write_data();
        moved |= self.announce_limit();
        moved |= self.tell_draining();
        moved |= self.update_idle_deadline();
        if let Some(cause) = self.abuse_cause() {
            self.close_for_abuse(cause);
            return Ok(true);
        }
        moved |= self.begin_closing();
        let messages = self.carrier.message_counts();
        let counters = &self.conn.counters;
        counters.messages_sent.set(messages.sent);
        counters.messages_received.set(messages.received);
        counters.substreams.set(self.substreams.len() as u64);
        counters.set_path(self.carrier.path());
        Ok(moved)
    }

    /// Why the connection has to be closed for what the peer did.
    fn abuse_cause(&mut self) -> Option<ConnectionError> {
        // A close ends unused substreams as well, within its timeout: it continues to deliver
        // written data.
        if self.phase != DriverPhase::Running {
            return None;
        }
        if self.substreams.unused.too_many(&self.conn.config) {
            return Some(ConnectionError::TooManyUnusedSubstreams);
        }
        self.abuse.take()
    }

    /// Sets the idle deadline while there are no substreams. Returns whether it was set now, so
    /// that another round arranges the wake-up for it.
    fn update_idle_deadline(&mut self) -> bool {
        let idle = self.conn.take_idle_timeout();
        if idle.has_changed {
            self.deadlines.cancel(NO_CHANNEL, DeadlineKind::Idle);
        }
        let Some(timeout) = idle.timeout else {
            return false;
        };
        if self.substreams.is_empty() && self.phase == DriverPhase::Running {
            return self.deadlines.set(NO_CHANNEL, DeadlineKind::Idle, timeout);
        }
        self.deadlines.cancel(NO_CHANNEL, DeadlineKind::Idle);
        false
    }

    /// Handles the events of the carrier.
    fn take_events(&mut self, cx: &mut Context<'_>) -> bool {
        // A carrier without backpressure would continue to receive while this falls behind.
        let is_unbounded = !self.carrier.holds_back_unread();
        if (is_unbounded && !self.reader.is_idle()) || self.carrier_error.is_some() {
            return false;
        }
        let mut moved = false;
        for _ in 0..EVENTS_PER_ROUND {
            let polled = match moved {
                false => self.carrier.poll_event(cx),
                true => self.carrier.poll_queued_event(cx),
            };
            let Poll::Ready(event) = polled else {
                break;
            };
            moved = true;
            self.work.spend(1);
            match event {
                Ok(event) => self.on_carrier_event(event),
                Err(cause) => {
                    self.carrier_error = Some(cause);
                    break;
                }
            }
            if is_unbounded && self.reader.backlog() >= BACKLOG {
                break;
            }
        }
        moved
    }

    fn on_carrier_event(&mut self, event: CarrierEvent) {
        match event {
            CarrierEvent::Opened { channel, label } => self.on_opened(channel, label),
            CarrierEvent::Readable { channel } => self.on_readable(channel),
            CarrierEvent::Writable => self.writer.on_writable(),
            CarrierEvent::Delivered { channel } => self.on_delivered(channel),
            CarrierEvent::RoundTrip { time } => self
                .conn
                .emit(|events, connection| events.ping(connection, time)),
            CarrierEvent::Notice { message } => self.on_notice(&message),
            CarrierEvent::Expiring { cause } => self.conn.begin_close_for(cause),
            CarrierEvent::Closed { channel } => self.on_channel_closed(channel),
        }
    }

    pub(super) fn on_negotiated(&mut self, outcome: NegotiationOutcome) {
        match outcome {
            NegotiationOutcome::Agreed(substream) => {
                let channel = substream.shared().id;
                substream.shared().set_usage(Usage::Waiting);
                report::negotiated(&self.conn, &substream);
                // Set even if the peer has ended it meanwhile: it waits for the application anyway.
                let timeout = self.conn.config.accept_timeout;
                self.deadlines.set(channel, DeadlineKind::Accept, timeout);
                self.conn.push_accepted(substream);
            }
            NegotiationOutcome::Failed(substream, reason) => {
                tracing::debug!(
                    target: "anabranch::connection",
                    id = substream.id(), %reason, "inbound negotiation failed"
                );
                substream.reset(code::NEGOTIATION_FAILED);
            }
        }
    }

    fn on_delivered(&mut self, channel: ChannelId) {
        let Some(entry) = self.substreams.get(channel) else {
            return;
        };
        entry.shared.apply(SubstreamEvent::FinDelivered);
        if entry.shared.state().write != WriteState::FinDelivered {
            return;
        }
        if !self.conn.expects_fin_ack() {
            entry.shared.apply(SubstreamEvent::NoFinAckExpected);
            return;
        }
        // The wait starts now: a slow link is not a silent peer (docs/wire.md section 2).
        let timeout = self.conn.config.fin_ack_timeout;
        self.deadlines.set(channel, DeadlineKind::FinAck, timeout);
    }

    fn on_deadline(&mut self, deadline: Deadline) {
        let channel = deadline.channel;
        match deadline.kind {
            DeadlineKind::Opening => self.credit.on_silence(),
            DeadlineKind::Draining => self.on_draining_timeout(),
            // A substream may have been opened in this very round, or the time have been changed.
            DeadlineKind::Idle
                if self.substreams.is_empty() && !self.conn.idle_timeout_has_changed() =>
            {
                self.conn.begin_close_for(ConnectionError::Idle);
            }
            DeadlineKind::Idle => {}
            DeadlineKind::Accept => {
                if let Some(substream) = self.conn.take_unaccepted(channel) {
                    // If the peer has ended it already, this frees unread data.
                    substream.reset(code::RESOURCE_LIMIT);
                }
            }
            DeadlineKind::FinAck => self.on_fin_ack_timeout(channel),
            DeadlineKind::Teardown => self.on_teardown_timeout(channel),
            DeadlineKind::Credit => self.on_credit_timeout(channel),
        }
    }

    fn on_fin_ack_timeout(&mut self, channel: ChannelId) {
        let Some(entry) = self.substreams.get(channel) else {
            return;
        };
        if !self.conn.expects_fin_ack() {
            entry.shared.apply(SubstreamEvent::NoFinAckExpected);
        }
        entry.shared.apply(SubstreamEvent::FinAckTimeout);
    }

    fn on_teardown_timeout(&mut self, channel: ChannelId) {
        let Some(entry) = self.substreams.get(channel) else {
            return;
        };
        let shared = Arc::clone(&entry.shared);
        let state = shared.state();
        let fin_delivered = matches!(
            state.write,
            WriteState::FinDelivered | WriteState::Finished(_)
        );
        if state.end().is_some() || (fin_delivered && state.read != ReadState::FinAcked) {
            // The carrier has no room for RESET_STREAM, or the peer has all of our data and does
            // not end its own stream: a reset would let it discard unread data (docs/wire.md
            // section 2).
            shared.apply(SubstreamEvent::ChannelClosed);
            self.carrier.close_channel(channel);
            self.forget(channel);
        } else if !fin_delivered {
            shared.reset(code::ABANDONED);
        }
        // Otherwise only FIN_ACK is missing, which has its own deadline.
    }

    /// The peer has sent nothing on this substream: without support for credit it never will.
    fn on_credit_timeout(&mut self, channel: ChannelId) {
        let Some(entry) = self.substreams.get(channel) else {
            return;
        };
        if !self.credit.is_supported() {
            entry.shared.credit_unsupported();
            self.substreams.report_resumed(channel);
        }
    }
}
