//! The WebRTC carrier: an engine, a path for its datagrams, and a timer.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use anabranch_rtc::{Engine, TransmitQueue};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::time::{Instant, Sleep, sleep_until};

mod budget;
mod consent;
mod datagrams;
pub(crate) mod engine;
mod limits;
mod notices;
mod reachability;
mod source_watch;
mod turns;

use budget::Budget;
use engine::EngineEvent;
pub(crate) use limits::CarrierLimits;
use limits::Lifetime;
use notices::Notices;
use reachability::{Reachability, Validation};
use source_watch::SourceWatch;
use turns::{Answer, TURNS_PER_POLL};

use crate::carrier::{
    Carrier, CarrierEvent, ChannelId, Class, MessageCounts, OpenChannelError, Written,
};
use crate::error::ConnectionError;
use crate::message::MAX_FRAME;
use crate::udp::DatagramSocket;
use crate::udp::router::RouteGuard;

/// Bytes that may wait for a blocked socket before the engine is left alone until it drains.
const MAX_UNSENT: usize = 512 * 1024;

/// How long the closing of a channel is left to the peer.
///
/// SCTP closes a channel by resetting its stream in both directions (RFC 8831 section 6.7). When both
/// sides begin that at once, str0m resets a second time to answer the peer; js-libp2p in Node,
/// which uses a number again without waiting for our side of the reset, then has its next channel
/// closed under it. So whoever opened a channel closes it, and the other side only if that does not
/// happen. And js in Node loses a RESET_STREAM that the closing follows at once, so behind one
/// the closing is left to the peer in any case.
const LEFT_TO_PEER: Duration = Duration::from_secs(2);

/// Channels whose closing is left to the peer. With more, the oldest is closed.
const MAX_LEFT_TO_PEER: usize = 1024;

/// Where the datagrams of a connection come from.
#[derive(Debug)]
pub(crate) enum Source {
    /// The socket is this connection's own, and the system chooses the address that it sends from.
    Socket {
        /// The address that was dialled.
        remote: SocketAddr,
    },
    /// A listener shares its socket and sorts what arrives.
    Inbox(RouteGuard),
}

/// One connection: engine, socket and timer, driven by [`Carrier::poll_event`].
pub(crate) struct WebRtcCarrier {
    engine: Box<dyn Engine>,
    socket: Arc<dyn DatagramSocket>,
    source: Source,
    /// The address that stands for "here" where the system does not tell.
    local: SocketAddr,
    timer: Pin<Box<Sleep>>,
    budget: Budget,
    messages: MessageCounts,
    /// A write was refused for want of budget, and `Writable` is owed.
    refused: bool,
    /// A channel that was not open yet was written to, and `Writable` is owed.
    not_open: bool,
    /// The engine was changed and has to be polled before this task waits.
    dirty: bool,
    /// Something was received and not answered yet: the next turn sends before it receives.
    owes_answer: bool,
    /// When the engine wants to know of the time.
    engine_timeout: Instant,
    /// Channels whose closing is left to the peer, and until when, oldest first. Those that the
    /// peer has closed are skipped when their time comes.
    left_to_peer: VecDeque<(Instant, ChannelId)>,
    unsent: TransmitQueue,
    /// Where the system sends from, if the socket is ours.
    source_watch: Option<SourceWatch>,
    /// What may be sent where, if whoever is there has come to us.
    reachability: Option<Reachability>,
    /// The password that a refusal of the listener is made with, until the handshake is done.
    refusal_password: Option<String>,
    /// The listener has refused, and that has yet to be reported.
    refused_by_peer: bool,
    /// Completes when nobody listens at the port that was dialled, until anything comes from there.
    port_watch: Option<BoxFuture<'static, io::Error>>,
    lifetime: Lifetime,
    blocked: Option<BoxFuture<'static, io::Result<()>>>,
    /// What happened before the peer was authenticated. Bounded by the engine's limits for that
    /// time.
    early: VecDeque<CarrierEvent>,
    notices: Notices,
    ended: bool,
    closing: bool,
}

impl fmt::Debug for WebRtcCarrier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WebRtcCarrier")
            .field("local", &self.local)
            .field("budget", &self.budget.bytes())
            .finish_non_exhaustive()
    }
}

impl WebRtcCarrier {
    pub(crate) fn new(
        engine: Box<dyn Engine>,
        socket: Arc<dyn DatagramSocket>,
        source: Source,
        local: SocketAddr,
        limits: CarrierLimits,
    ) -> Self {
        let budget = Budget::new(limits.max_in_flight, engine.latency_allowance());
        let (source_watch, reachability) = match &source {
            Source::Socket { remote } => (Some(SourceWatch::new(*remote, Instant::now())), None),
            Source::Inbox(route) => {
                let key = Arc::clone(route.challenge_key());
                let validation = match engine.validates_addresses() {
                    true => Validation::ByEngine,
                    false => Validation::ByChallenge,
                };
                let reachability = Reachability::new(key, route.peer.clone(), validation);
                (None, Some(reachability))
            }
        };
        Self {
            engine,
            socket,
            source,
            local,
            timer: Box::pin(sleep_until(Instant::now())),
            budget,
            messages: MessageCounts::default(),
            refused: false,
            not_open: false,
            dirty: true,
            owes_answer: false,
            engine_timeout: Instant::now(),
            left_to_peer: VecDeque::new(),
            unsent: TransmitQueue::default(),
            source_watch,
            reachability,
            refusal_password: None,
            refused_by_peer: false,
            port_watch: None,
            lifetime: Lifetime::new(limits),
            blocked: None,
            early: VecDeque::new(),
            notices: Notices::default(),
            ended: false,
            closing: false,
        }
    }

    /// Looks out for a refusal by a listener that knows this password, until the handshake is done.
    pub(crate) fn expect_refusal(&mut self, password: String) {
        self.refusal_password = Some(password);
    }

    /// Ends the handshake with what `watch` completes with, unless anything comes from the peer before.
    pub(crate) fn watch_port(&mut self, watch: BoxFuture<'static, io::Error>) {
        self.port_watch = Some(watch);
    }

    /// The peer is authenticated, or does not have to be. `early` is what it did meanwhile.
    pub(crate) fn authenticated(&mut self, early: VecDeque<CarrierEvent>) {
        self.engine.authenticated();
        self.refusal_password = None;
        self.lifetime.begin(Instant::now());
        // The timer has to know of it, also where nothing else moves.
        self.dirty = true;
        if let Source::Inbox(route) = &self.source {
            route.inbox.authenticated();
        }
        self.early = early;
    }

    /// Sets the timer for the next look, which what was received or sent may have called for. `true` if it has to
    /// be polled.
    fn arm_source_watch(&mut self, now: Instant) -> bool {
        let look_at = self.source_watch.as_ref().and_then(SourceWatch::look_at);
        let is_sooner = !self.ended && look_at.is_some_and(|at| at < self.timer.deadline());
        if is_sooner {
            self.set_timer(now);
        }
        is_sooner
    }

    /// Looks up which address the system sends from, when it is time to, and tells the engine of another one.
    fn watch_source(&mut self, now: Instant) {
        let Some(watch) = &mut self.source_watch else {
            return;
        };
        if self.ended || !watch.is_due(now) {
            return;
        }
        let source = self.socket.source_towards(watch.remote());
        watch.looked(now, source.is_ok());
        match source {
            Ok(source) if source != self.local.ip() => {
                tracing::debug!(target: "anabranch::webrtc", from = %self.local.ip(), to = %source, "moved");
                self.local.set_ip(source);
                self.engine.move_to(now.into_std(), self.local);
                self.dirty = true;
            }
            Ok(_) => {}
            Err(error) => {
                tracing::debug!(target: "anabranch::webrtc", %error, "no source address");
            }
        }
    }

    fn set_timer(&mut self, now: Instant) {
        let mut next = self.engine_timeout;
        if let Some(look_at) = self.source_watch.as_ref().and_then(SourceWatch::look_at) {
            next = next.min(look_at);
        }
        if let Some(silent_at) = self.lifetime.silent_at() {
            next = next.min(silent_at);
        }
        if let (Some(ask_at), Some(_)) = (self.lifetime.ask_at(), &self.reachability) {
            next = next.min(ask_at);
        }
        if let Some((until, _)) = self.left_to_peer.front() {
            next = next.min(*until);
        }
        // Never in the past: what is due is handled in the next turn.
        let next = next.max(now);
        if self.timer.deadline() != next {
            self.timer.as_mut().reset(next);
        }
    }

    fn leave_to_peer(&mut self, channel: ChannelId) {
        self.engine.ignore_channel(channel.into());
        self.dirty = true;
        self.left_to_peer
            .push_back((Instant::now() + LEFT_TO_PEER, channel));
        if self.left_to_peer.len() > MAX_LEFT_TO_PEER
            && let Some((_, oldest)) = self.left_to_peer.pop_front()
        {
            self.engine.close_channel(oldest.into());
        }
    }

    fn close_overdue(&mut self, now: Instant) {
        while let Some(&(until, channel)) = self.left_to_peer.front() {
            if until > now {
                break;
            }
            self.left_to_peer.pop_front();
            self.engine.close_channel(channel.into());
        }
    }

    /// Whether the budget allows so many bytes more. A single message always passes.
    fn has_room(&self, bytes: usize) -> bool {
        let held = self.engine.unacknowledged();
        held == 0 || held + bytes <= self.budget.bytes()
    }

    fn account(&mut self, now: Instant) {
        let unacknowledged = self.engine.unacknowledged();
        self.budget
            .on_unacknowledged(now.into_std(), unacknowledged);
    }
}

impl Carrier for WebRtcCarrier {
    fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Result<CarrierEvent, ConnectionError>> {
        if let Some(event) = self.next_early(cx) {
            return Poll::Ready(Ok(event));
        }
        for _ in 0..TURNS_PER_POLL {
            if self.lifetime.keys_used_up(self.engine.dtls12_records()) {
                let cause = ConnectionError::KeysUsedUp;
                return Poll::Ready(Ok(CarrierEvent::Expiring { cause }));
            }
            let event = std::task::ready!(self.poll_turns(cx, Answer::NextTurn));
            if let Some(event) = self.report(event, cx) {
                return Poll::Ready(event);
            }
        }
        // Events that nobody waits for, and there may be more.
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn poll_queued_event(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<CarrierEvent, ConnectionError>> {
        if let Some(event) = self.next_early(cx) {
            return Poll::Ready(Ok(event));
        }
        while let Some(event) = self.next_event() {
            if let Some(event) = self.report(event, cx) {
                return Poll::Ready(event);
            }
        }
        Poll::Pending
    }

    fn open(&mut self, label: &str) -> Result<ChannelId, OpenChannelError> {
        if self.closing || self.ended {
            return Err(OpenChannelError::Closed);
        }
        if self.notices.goodbye.is_some() {
            return Err(OpenChannelError::GoingAway);
        }
        self.dirty = true;
        let opened = self.engine.open(label).map(ChannelId::from);
        let opened = opened.map_err(OpenChannelError::from);
        // Whoever waits for a number is told as whoever waits for a channel.
        self.not_open |= opened == Err(OpenChannelError::NotNow);
        opened
    }

    fn write(&mut self, channel: ChannelId, frame: &[u8], class: Class) -> Written {
        self.write_vectored(channel, &[frame], class)
    }

    fn write_vectored(&mut self, channel: ChannelId, pieces: &[&[u8]], class: Class) -> Written {
        if self.closing || self.ended {
            return Written::Closed;
        }
        let length = pieces.iter().map(|piece| piece.len()).sum();
        if class == Class::Data && !self.has_room(length) {
            self.budget.on_refused();
            self.refused = true;
            return Written::Busy;
        }
        let written = self
            .engine
            .write_vectored(channel.into(), pieces, class.into());
        let written = written.into();
        match written {
            Written::Taken => {
                self.budget.on_written(Instant::now().into_std(), length);
                self.messages.sent += 1;
                self.dirty = true;
            }
            Written::Busy => self.refused = true,
            Written::NotOpen => {
                self.not_open = true;
                // It may have to ask the peer for room.
                self.dirty = true;
            }
            Written::Closed => {}
        }
        written
    }

    fn read(&mut self, channel: ChannelId) -> Option<Bytes> {
        let bytes = self.engine.read(channel.into());
        self.dirty |= self.engine.wants_poll();
        self.messages.received += u64::from(bytes.is_some());
        bytes
    }

    fn message_counts(&self) -> MessageCounts {
        self.messages
    }

    fn notify_delivered(&mut self, channel: ChannelId) {
        self.dirty = true;
        self.engine.notify_delivered(channel.into());
    }

    fn close_channel(&mut self, channel: ChannelId) {
        if self.engine.is_own_channel(channel.into()) {
            self.dirty = true;
            self.engine.close_channel(channel.into());
        } else {
            self.leave_to_peer(channel);
        }
    }

    fn abandon_channel(&mut self, channel: ChannelId) {
        self.leave_to_peer(channel);
    }

    fn max_message(&self) -> usize {
        MAX_FRAME
    }

    fn packet_payload(&self) -> Option<usize> {
        self.engine.packet_payload()
    }

    fn holds_back_unread(&self) -> bool {
        self.engine.holds_back_unread()
    }

    fn allow_shut_window(&mut self) {
        self.engine.allow_shut_window();
    }

    fn carries_notices(&self) -> bool {
        true
    }

    fn write_notice(&mut self, frame: &[u8]) -> Written {
        self.notices.are_known = true;
        self.write(engine::CHANNEL_ZERO, frame, Class::Control)
    }

    fn begin_close(&mut self, cause: &ConnectionError) {
        if !self.notices.are_known || std::mem::replace(&mut self.notices.said_goodbye, true) {
            return;
        }
        // It is as good as said where it is not taken: the peer learns of the end in any case.
        let _ = self.write(
            engine::CHANNEL_ZERO,
            &cause.goodbye().encode(),
            Class::Control,
        );
    }

    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while !self.ended {
            if self.engine.unacknowledged() == 0 && !std::mem::replace(&mut self.closing, true) {
                // All is delivered: only now may the peer be told to forget the connection.
                self.engine.close(Instant::now().into_std());
                self.dirty = true;
            }
            match self.poll_engine(cx) {
                Poll::Ready(EngineEvent::Ended(_)) => self.ended = true,
                Poll::Ready(_) => {}
                // The peer may never answer, and nothing depends on it.
                Poll::Pending if self.closing && self.unsent.is_empty() => self.ended = true,
                Poll::Pending => return Poll::Pending,
            }
        }
        Poll::Ready(())
    }
}
