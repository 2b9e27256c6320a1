//! The driver of a connection: the one task that owns its carrier.
//!
//! It moves frames between the carrier and the substreams and never waits for a consumer. What it
//! has to do for a substream it derives from the substream's state each time it looks, so nothing
//! that is owed (FIN, FIN_ACK, STOP_SENDING, RESET_STREAM, credit) needs a place in a queue that
//! could be full.

use std::collections::{HashMap, VecDeque};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::BytesMut;
use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep, sleep_until};

use super::config::{CeilingPolicy, Negotiation};
use super::deadlines::{Deadline, DeadlineKind, Deadlines, NO_CHANNEL};
use super::entry::Entry;
use super::ineffective::IneffectiveFrames;
use super::negotiate::{NegotiationOutcome, Negotiations};
use super::opening::SubstreamLimits;
use super::report;
use super::shared::ConnectionShared;
use super::unused::UnusedSubstreams;
use super::work::{
    BACKLOG, EVENTS_PER_ROUND, OTHERS_PER_ROUND, ROUNDS_PER_POLL, UNITS_PER_OPENING, Work,
};
use crate::carrier::{Carrier, CarrierEvent, ChannelId, Class};
use crate::error::ConnectionError;
use crate::events::Initiator;
use crate::message::Message;
use crate::substream::{
    ReadState, ReceiveBuffer, SendBuffer, Shared, Substream, SubstreamEvent, Usage, WriteState,
    code,
};

/// Where the driver is in the life of its connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DriverPhase {
    /// Substreams come and go.
    Running,
    /// No new substreams; those that exist close, until all have or the time is over.
    Draining { until: Instant },
    /// The carrier tells the peer, until it has or the time is over.
    ClosingCarrier { until: Instant },
}

pin_project! {
    /// The driver of a connection. Completes when the connection has ended and nothing is left of
    /// it; spawn it, or poll it, for the connection to make progress. If it is dropped before
    /// that, the connection ends at once.
    #[must_use = "a connection makes no progress unless its driver is polled"]
    pub struct Driver<C> {
        #[pin]
        deadlines: Deadlines,
        #[pin]
        phase_timer: Sleep,
        core: Core<C>,
    }

    impl<C> PinnedDrop for Driver<C> {
        fn drop(this: Pin<&mut Self>) {
            this.project().core.abandon();
        }
    }
}

impl<C> std::fmt::Debug for Driver<C> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Driver")
            .field("phase", &self.core.phase)
            .field("substreams", &self.core.substreams.len())
            .finish_non_exhaustive()
    }
}

/// The unpinned part of the driver.
pub(super) struct Core<C> {
    pub(super) carrier: C,
    pub(super) conn: Arc<ConnectionShared>,
    pub(super) phase: DriverPhase,
    /// Boxed: a table has up to twice as many places as entries.
    pub(super) substreams: HashMap<ChannelId, Box<Entry>>,
    /// Substreams in `substreams` that the peer opened.
    pub(super) inbound: usize,
    /// Substreams that leave their channel unread.
    pub(super) reads_paused: usize,
    /// Round-robin order of the substreams with data to send.
    pub(super) active: VecDeque<ChannelId>,
    /// Substreams to look at again when the carrier reports room: a control frame found it busy, or
    /// their channel is still being opened.
    pub(super) blocked: VecDeque<ChannelId>,
    /// Those that were in `blocked` when the carrier last reported room.
    pub(super) retrying: VecDeque<ChannelId>,
    /// Round-robin order of the channels with something to read.
    pub(super) reading: VecDeque<ChannelId>,
    /// The carrier has ended for this cause. What arrived before is read first.
    carrier_error: Option<ConnectionError>,
    /// What this poll may still do.
    pub(super) work: Work,
    /// Counts frames that change nothing.
    pub(super) ineffective: IneffectiveFrames,
    /// There were too many of them.
    pub(super) too_many_ineffective: bool,
    /// No data goes out before the carrier reports room.
    pub(super) busy: bool,
    /// The peer has shown `max_data` on any substream, so it knows the field.
    pub(super) peer_supports_credit: bool,
    /// How many substreams either side may open.
    pub(super) opening: SubstreamLimits,
    /// Counts what the peer opens in vain.
    pub(super) unused: UnusedSubstreams,
    /// Set while there are no substreams.
    idle_deadline: Option<Deadline>,
    /// Inbound substreams whose protocol is being negotiated.
    pub(super) negotiations: Negotiations,
    /// What is left of the ready queue that was last taken.
    pub(super) batch: VecDeque<Arc<Shared>>,
    /// Control frames are encoded here.
    pub(super) scratch: BytesMut,
}

impl<C> Core<C> {
    /// Ends everything without a word to the peer, for a driver that is dropped before its end:
    /// nobody waits for it in vain, and no handle keeps the others alive.
    fn abandon(&mut self) {
        let panicked = std::thread::panicking();
        let cause = match panicked {
            true => ConnectionError::Panicked,
            false => ConnectionError::ClosedLocally,
        };
        // First the cause: negotiations that are dropped find it.
        let first = self.conn.end(cause);
        self.negotiations.clear();
        for (_, entry) in self.substreams.drain() {
            entry.shared.apply(SubstreamEvent::CarrierLost);
            if !panicked {
                // It may be this that has panicked.
                report::ended(&self.conn, &entry);
            }
        }
        self.conn.counters.substreams.set(0);
        if first && !panicked {
            self.conn.report_end();
        }
    }
}

impl<C: Carrier> Driver<C> {
    pub(crate) fn new(mut carrier: C, conn: Arc<ConnectionShared>) -> Self {
        if conn.config.ceiling_policy == CeilingPolicy::Backpressure && carrier.holds_back_unread()
        {
            carrier.allow_shut_window();
            conn.siblings.set_bounded_by_carrier();
        }
        conn.siblings
            .set_delivery_is_local(!carrier.confirms_delivery());
        let opening = SubstreamLimits::new(carrier.carries_notices());
        // Peers that name protocols by label are ours.
        let peer_supports_credit =
            conn.config.negotiation == Negotiation::ChannelLabel || carrier.knows_credit();
        Self {
            deadlines: Deadlines::new(),
            phase_timer: sleep_until(Instant::now()),
            core: Core {
                carrier,
                conn,
                phase: DriverPhase::Running,
                substreams: HashMap::new(),
                inbound: 0,
                reads_paused: 0,
                active: VecDeque::new(),
                blocked: VecDeque::new(),
                retrying: VecDeque::new(),
                reading: VecDeque::new(),
                carrier_error: None,
                work: Work::new(),
                ineffective: IneffectiveFrames::new(),
                too_many_ineffective: false,
                busy: false,
                peer_supports_credit,
                opening,
                unused: UnusedSubstreams::default(),
                idle_deadline: None,
                negotiations: Negotiations::default(),
                batch: VecDeque::new(),
                scratch: BytesMut::with_capacity(64),
            },
        }
    }
}

impl<C: Carrier> Future for Driver<C> {
    type Output = ConnectionError;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<ConnectionError> {
        let mut this = self.project();
        let conn = Arc::clone(&this.core.conn);
        // Entered for one poll: nothing in here awaits.
        let _span = conn.siblings.span.enter();
        conn.siblings.register_driver(cx.waker());
        this.core.work.begin_poll();
        for _ in 0..ROUNDS_PER_POLL {
            let mut turn = Turn {
                core: &mut *this.core,
                deadlines: this.deadlines.as_mut(),
            };
            let moved = match turn.round(cx) {
                Ok(moved) => moved,
                Err(_) if matches!(turn.core.phase, DriverPhase::ClosingCarrier { .. }) => {
                    // The carrier ends because we close it.
                    let cause = turn.core.conn.siblings.closing_cause();
                    return Poll::Ready(turn.end(cause));
                }
                Err(cause) => return Poll::Ready(turn.end(cause)),
            };
            match turn.core.phase {
                DriverPhase::Running if moved => {}
                DriverPhase::Running => return Poll::Pending,
                // Looked at whether anything moved or not: a peer that always has something to say does not
                // hold up the close.
                DriverPhase::Draining { until } | DriverPhase::ClosingCarrier { until } => {
                    if this.phase_timer.deadline() != until {
                        this.phase_timer.as_mut().reset(until);
                    }
                    let expired = this.phase_timer.as_mut().poll(cx).is_ready();
                    match turn.advance_closing(expired, cx) {
                        Poll::Ready(Some(cause)) => return Poll::Ready(turn.end(cause)),
                        Poll::Ready(None) => {}
                        Poll::Pending if moved => {}
                        Poll::Pending => return Poll::Pending,
                    }
                }
            }
            if turn.core.work.poll_is_over() {
                break;
            }
        }
        // More to do, but other tasks have waited long enough.
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

/// The driver at work: its core, and the timers that have to stay pinned.
pub(super) struct Turn<'a, C> {
    pub(super) core: &'a mut Core<C>,
    pub(super) deadlines: Pin<&'a mut Deadlines>,
}

impl<C: Carrier> Turn<'_, C> {
    /// One round of everything; `Ok(false)` when nothing moved.
    fn round(&mut self, cx: &mut Context<'_>) -> Result<bool, ConnectionError> {
        self.core.work.begin_round();
        let mut moved = self.take_events(cx);
        moved |= self.read_queued();
        if self.core.reading.is_empty()
            && let Some(cause) = self.core.carrier_error.take()
        {
            return Err(cause);
        }
        for _ in 0..OTHERS_PER_ROUND {
            let Poll::Ready(deadline) = self.deadlines.as_mut().poll_next(cx) else {
                break;
            };
            self.core.work.spend(1);
            self.on_deadline(deadline);
            moved = true;
        }
        for _ in 0..OTHERS_PER_ROUND {
            let Poll::Ready(outcome) = self.core.negotiations.poll_next(cx) else {
                break;
            };
            self.core.work.spend(1);
            self.on_negotiated(outcome);
            moved = true;
        }
        moved |= self.open_requested();
        moved |= self.service_ready();
        moved |= self.write_data();
        moved |= self.announce_limit();
        moved |= self.update_idle_deadline();
        // A close ends what is unused too, and soon enough: it goes on delivering what was written.
        if self.core.phase == DriverPhase::Running
            && self.core.unused.too_many(&self.core.conn.config)
        {
            self.close_for_abuse(ConnectionError::TooManyUnusedSubstreams);
            return Ok(true);
        }
        if self.core.phase == DriverPhase::Running && self.core.too_many_ineffective {
            self.close_for_abuse(ConnectionError::TooManyFramesWithoutEffect);
            return Ok(true);
        }
        moved |= self.begin_closing();
        let messages = self.core.carrier.message_counts();
        let counters = &self.core.conn.counters;
        counters.messages_sent.set(messages.sent);
        counters.messages_received.set(messages.received);
        counters.substreams.set(self.core.substreams.len() as u64);
        Ok(moved)
    }

    /// Keeps the idle deadline set as long as there are no substreams. Returns whether it was set now, so
    /// that another round arranges the wake-up for it.
    fn update_idle_deadline(&mut self) -> bool {
        let Some(timeout) = self.core.conn.config.idle_timeout else {
            return false;
        };
        let is_idle = self.core.substreams.is_empty() && self.core.phase == DriverPhase::Running;
        match (is_idle, self.core.idle_deadline) {
            (true, None) => {
                let kind = DeadlineKind::Idle;
                let deadline = self.deadlines.as_mut().set(NO_CHANNEL, kind, timeout);
                self.core.idle_deadline = Some(deadline);
                return true;
            }
            (false, Some(deadline)) => {
                self.deadlines.as_mut().cancel(deadline);
                self.core.idle_deadline = None;
            }
            (true, Some(_)) | (false, None) => {}
        }
        false
    }

    // Input.

    /// Takes in what the carrier reports.
    fn take_events(&mut self, cx: &mut Context<'_>) -> bool {
        // A carrier that does not hold back its peer would go on receiving while this falls behind.
        let is_unbounded = !self.core.carrier.holds_back_unread();
        if (is_unbounded && !self.core.reading.is_empty()) || self.core.carrier_error.is_some() {
            return false;
        }
        let mut moved = false;
        for _ in 0..EVENTS_PER_ROUND {
            let polled = match moved {
                false => self.core.carrier.poll_event(cx),
                true => self.core.carrier.poll_queued_event(cx),
            };
            let Poll::Ready(event) = polled else {
                break;
            };
            moved = true;
            self.core.work.spend(1);
            match event {
                Ok(event) => self.on_carrier(event),
                Err(cause) => {
                    self.core.carrier_error = Some(cause);
                    break;
                }
            }
            if is_unbounded && self.core.reading.len() >= BACKLOG {
                break;
            }
        }
        moved
    }

    fn on_carrier(&mut self, event: CarrierEvent) {
        match event {
            CarrierEvent::Opened { channel, label } => self.on_opened(channel, label),
            CarrierEvent::Readable { channel } => self.on_readable(channel),
            CarrierEvent::Writable => {
                // Every refused write is tried again, not only those of the channel that has
                // room: the budget is shared, and its low mark of one channel says nothing
                // of the others (row H-6).
                self.core.busy = false;
                self.core.retrying.append(&mut self.core.blocked);
            }
            CarrierEvent::Delivered { channel } => self.on_delivered(channel),
            CarrierEvent::RoundTrip { time } => self
                .core
                .conn
                .emit(|events, connection| events.ping(connection, time)),
            CarrierEvent::Notice { message } => self.on_notice(&message),
            CarrierEvent::Expiring { cause } => self.core.conn.begin_close_for(cause),
            CarrierEvent::Closed { channel } => self.on_channel_closed(channel),
        }
    }

    fn on_opened(&mut self, channel: ChannelId, label: String) {
        self.core.work.spend(UNITS_PER_OPENING);
        if self.core.opening.on_opened() && self.core.phase == DriverPhase::Running {
            self.core.unused.count();
        }
        if self.core.phase != DriverPhase::Running || self.core.conn.is_unreachable() {
            return self.refuse(channel, code::SHUTDOWN);
        }
        // What has ended before anybody accepted it is not inbound any more, and takes memory all the same.
        let most = self.core.conn.config.max_inbound_substreams;
        if self.core.inbound >= most || self.core.conn.unaccepted() >= most {
            return self.refuse(channel, code::RESOURCE_LIMIT);
        }
        let substream = self.insert(channel, Initiator::Remote);
        self.core.conn.counters.accepted.add(1);
        let config = Arc::clone(&self.core.conn.config);
        if let Some(outcome) = self.core.negotiations.begin(substream, label, &config) {
            self.on_negotiated(outcome);
        }
    }

    fn refuse(&mut self, channel: ChannelId, code: u32) {
        // Not while the connection closes: that has an end of its own, and data to deliver until then.
        if self.core.phase == DriverPhase::Running {
            self.core.unused.count_refused();
        }
        self.core.conn.counters.refused.add(1);
        self.core
            .conn
            .emit(|events, connection| events.substream_refused(connection, code));
        self.core.scratch.clear();
        Message::reset(code).encode_into(&mut self.core.scratch);
        // Whether it is taken or not, the channel ends here.
        let _ = self
            .core
            .carrier
            .write(channel, &self.core.scratch, Class::Control);
        self.core.carrier.close_channel(channel);
    }

    pub(super) fn insert(&mut self, channel: ChannelId, origin: Initiator) -> Substream {
        let config = &self.core.conn.config;
        let send = SendBuffer::new(config.send_buffer, self.core.max_frame_payload());
        let window = u64::from(config.receive_window);
        let receive = ReceiveBuffer::new(window, u64::from(config.max_receive_window));
        let siblings = Arc::clone(&self.core.conn.siblings);
        let shared = Shared::new(channel, origin, siblings, send, receive);
        let entry = Entry::new(Arc::clone(&shared));
        self.core
            .conn
            .emit(|events, connection| events.substream_opened(connection, entry.shared.info()));
        self.core.substreams.insert(channel, Box::new(entry));
        if origin == Initiator::Remote {
            self.core.inbound += 1;
        }
        if self.core.carrier.knows_credit() {
            // The first credit goes out at once, with the opening where this side opens.
            shared.request_service();
        }
        Substream::new(shared)
    }

    fn on_negotiated(&mut self, outcome: NegotiationOutcome) {
        match outcome {
            NegotiationOutcome::Agreed(substream) => {
                let channel = substream.shared().id;
                substream.shared().set_usage(Usage::Waiting);
                report::negotiated(&self.core.conn, &substream);
                let timeout = self.core.conn.config.accept_timeout;
                // Whether the peer has ended it meanwhile or not: it waits for the application in any case.
                let kind = DeadlineKind::Accept;
                let deadline = self.deadlines.as_mut().set(channel, kind, timeout);
                if let Some(entry) = self.core.substreams.get_mut(&channel) {
                    entry.accept_deadline = Some(deadline);
                }
                self.core.conn.push_accepted(substream);
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
        let timeout = self.core.conn.config.fin_ack_timeout;
        let Some(entry) = self.core.substreams.get_mut(&channel) else {
            return;
        };
        entry.shared.apply(SubstreamEvent::FinDelivered);
        if entry.shared.state().write != WriteState::FinDelivered {
            return;
        }
        if !self.core.conn.expects_fin_ack() {
            entry.shared.apply(SubstreamEvent::NoFinAckExpected);
            return;
        }
        // The wait starts now: a slow conn is not a silent peer (docs/wire.md section 2).
        if entry.fin_ack_deadline.is_none() {
            let deadline = self
                .deadlines
                .as_mut()
                .set(channel, DeadlineKind::FinAck, timeout);
            entry.fin_ack_deadline = Some(deadline);
        }
    }

    fn on_deadline(&mut self, deadline: Deadline) {
        if deadline.kind == DeadlineKind::Opening {
            return self.on_silent_peer();
        }
        if deadline.kind == DeadlineKind::Idle {
            self.core.idle_deadline = None;
            // A substream may have come in this very round.
            if self.core.substreams.is_empty() {
                self.core.conn.begin_close_for(ConnectionError::Idle);
            }
            return;
        }
        if deadline.kind == DeadlineKind::Accept
            && let Some(substream) = self.core.conn.take_unaccepted(deadline.channel)
        {
            // If the peer has ended it already, this frees what is unread.
            substream.reset(code::RESOURCE_LIMIT);
        }
        let Some(entry) = self.core.substreams.get_mut(&deadline.channel) else {
            return;
        };
        let shared = Arc::clone(&entry.shared);
        match deadline.kind {
            DeadlineKind::FinAck => {
                entry.fin_ack_deadline = None;
                if !self.core.conn.expects_fin_ack() {
                    shared.apply(SubstreamEvent::NoFinAckExpected);
                }
                shared.apply(SubstreamEvent::FinAckTimeout);
            }
            DeadlineKind::Teardown => {
                entry.teardown_deadline = None;
                let state = shared.state();
                let fin_delivered = matches!(
                    state.write,
                    WriteState::FinDelivered | WriteState::Finished(_)
                );
                if state.end().is_some() || (fin_delivered && state.read != ReadState::FinAcked) {
                    // The RESET finds no room, or the peer has all of ours and does not end its
                    // own: a RESET would let it throw away what it has not read (docs/wire.md 2).
                    shared.apply(SubstreamEvent::ChannelClosed);
                    self.core.carrier.close_channel(deadline.channel);
                    self.remove(deadline.channel);
                } else if !fin_delivered {
                    shared.reset(code::ABANDONED);
                }
                // Else only the FIN_ACK is missing: its own deadline ends that.
            }
            DeadlineKind::Accept => entry.accept_deadline = None,
            DeadlineKind::Idle | DeadlineKind::Opening => {}
            // The peer said nothing on this substream: if it knows no credit, it never will.
            DeadlineKind::Credit => {
                entry.credit_deadline = None;
                if !self.core.peer_supports_credit {
                    shared.credit_unsupported();
                    self.report_resumed(deadline.channel);
                }
            }
        }
    }
}
