//! The WebRTC carrier: an engine, a socket for its datagrams, and a timer.

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

mod consent;
mod datagrams;
pub(crate) mod engine;
mod limits;
mod notices;
mod reachability;
mod source_watch;
mod steps;

use engine::EngineEvent;
pub(crate) use limits::CarrierLimits;
use limits::Lifetime;
use notices::Notices;
use reachability::{Reachability, Validation};
use source_watch::SourceWatch;
use steps::{AnswerTime, STEPS_PER_POLL};

use crate::carrier::{
    Carrier, CarrierEvent, ChannelId, Class, MessageCounts, OpenChannelError, PathStats, Written,
};
use crate::error::ConnectionError;
use crate::message::{FrameDecoder, MAX_FRAME};
use crate::udp::DatagramSocket;
use crate::udp::admission::challenge::PeerCredentials;
use crate::udp::router::RouteGuard;

/// Maximum bytes queued for a blocked socket. Beyond it the engine is not polled until the queue
/// drains.
const MAX_UNSENT: usize = 512 * 1024;

/// How long the peer has to close a channel before this side does.
///
/// A channel is closed by resetting its stream in both directions (RFC 8831 section 6.7). When both
/// sides begin at once, str0m resets a second time to answer the peer; js-libp2p in Node, which
/// reuses a stream number without waiting for the reset of the other side, then has its next
/// channel closed. So the side that opened a channel closes it, and the other side only if that
/// does not happen. js-libp2p in Node also loses a RESET_STREAM that is followed at once by the
/// close, so after a RESET_STREAM the peer always closes the channel.
const LEFT_TO_PEER: Duration = Duration::from_secs(2);

/// Maximum channels that wait for the peer to close them. Beyond it the oldest is closed.
const MAX_LEFT_TO_PEER: usize = 1024;

/// The source of a connection's datagrams.
#[derive(Debug)]
pub(crate) enum Source {
    /// The connection owns its socket, and the system selects the source address.
    Socket {
        /// The dialled address.
        remote: SocketAddr,
    },
    /// A dial from a port that others share, whose router delivers what arrives.
    SharedPort {
        /// The dialled address.
        remote: SocketAddr,
        /// What arrives from there.
        route: RouteGuard,
        /// Whether the system selects the source address.
        on_wildcard: bool,
    },
    /// A listener shares its socket and routes what arrives.
    Inbox {
        /// What arrives for the connection.
        route: RouteGuard,
        /// The credentials for challenges to the addresses of the peer.
        peer: PeerCredentials,
    },
}

impl Source {
    /// The address that this side has dialled.
    fn dialled(&self) -> Option<SocketAddr> {
        match self {
            Self::Socket { remote } | Self::SharedPort { remote, .. } => Some(*remote),
            Self::Inbox { .. } => None,
        }
    }

    fn route(&self) -> Option<&RouteGuard> {
        match self {
            Self::Socket { .. } => None,
            Self::SharedPort { route, .. } | Self::Inbox { route, .. } => Some(route),
        }
    }
}

/// One connection: engine, socket and timer, driven by [`Carrier::poll_event`].
pub(crate) struct WebRtcCarrier {
    engine: Box<dyn Engine>,
    socket: Arc<dyn DatagramSocket>,
    /// The local address, as ICE knows it.
    local: SocketAddr,
    timer: Pin<Box<Sleep>>,
    messages: MessageCounts,
    writers: Writers,
    /// The engine has been changed, and has to be polled before this task waits.
    dirty: bool,
    /// Something was received and not answered yet: the next step sends before it receives.
    owes_answer: bool,
    /// When the engine has to handle a timeout.
    engine_timeout: Instant,
    /// Channels that the peer has to close, with the time at which this side does, oldest first. A
    /// channel that is closed already ignores the second close.
    left_to_peer: VecDeque<(Instant, ChannelId)>,
    unsent: TransmitQueue,
    /// Detects a new source address, on a dial from a wildcard.
    source_watch: Option<SourceWatch>,
    /// What may be sent to each address of the peer, on a listener.
    reachability: Option<Reachability>,
    refusal: Refusal,
    /// Completes when nobody listens at the dialled port. Dropped when anything arrives from there.
    port_watch: Option<BoxFuture<'static, io::Error>>,
    lifetime: Lifetime,
    blocked: Option<BoxFuture<'static, io::Result<()>>>,
    /// Events from before the peer was authenticated. Bounded by the engine's limits for that time.
    early: VecDeque<CarrierEvent>,
    notices: Notices,
    phase: Phase,
    /// Last: when the last route of a closed port goes, nothing holds the socket any more.
    source: Source,
}

/// How far the end of a connection has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Open,
    /// This side closes: the engine sends close_notify.
    Closing,
    Ended,
}

/// What the writers wait for that were refused, and are owed `Writable`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Writers {
    /// No writer was refused.
    Idle,
    /// The write limit was reached: room for a whole frame.
    NeedRoom,
    /// A channel was not open or no stream number was free: the next `Writable` of the engine.
    NeedChannel,
}

/// Whether the listener has refused the dial, with a STUN error.
enum Refusal {
    /// This side listens, or the handshake is complete.
    NotExpected,
    /// A refusal is signed with this password.
    Expected(String),
    /// It has yet to be reported.
    Received,
}

impl fmt::Debug for WebRtcCarrier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WebRtcCarrier")
            .field("local", &self.local)
            .field("write_limit", &self.write_limit())
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
        let watch = |remote: &SocketAddr| Some(SourceWatch::new(*remote, Instant::now()));
        let (source_watch, reachability) = match &source {
            Source::Socket { remote } => (watch(remote), None),
            Source::SharedPort {
                remote,
                on_wildcard,
                ..
            } => (on_wildcard.then(|| watch(remote)).flatten(), None),
            Source::Inbox { route, peer } => {
                let key = Arc::clone(route.challenge_key());
                let validation = match engine.validates_addresses() {
                    true => Validation::ByEngine,
                    false => Validation::ByChallenge,
                };
                let reachability = Reachability::new(key, peer.clone(), validation);
                (None, Some(reachability))
            }
        };
        Self {
            engine,
            socket,
            source,
            local,
            timer: Box::pin(sleep_until(Instant::now())),
            messages: MessageCounts::default(),
            writers: Writers::Idle,
            dirty: true,
            owes_answer: false,
            engine_timeout: Instant::now(),
            left_to_peer: VecDeque::new(),
            unsent: TransmitQueue::default(),
            source_watch,
            reachability,
            refusal: Refusal::NotExpected,
            port_watch: None,
            lifetime: Lifetime::new(limits),
            blocked: None,
            early: VecDeque::new(),
            notices: Notices::default(),
            phase: Phase::Open,
        }
    }

    /// Accepts a refusal that is signed with this password, until the handshake is complete.
    pub(crate) fn expect_refusal(&mut self, password: String) {
        self.refusal = Refusal::Expected(password);
    }

    /// The peer knows one address of this side: no other source address is ever chosen.
    pub(crate) fn stay_at_source(&mut self) {
        self.source_watch = None;
    }

    /// Ends the handshake with the error of `watch`, unless anything arrives from the peer before.
    pub(crate) fn watch_port(&mut self, watch: BoxFuture<'static, io::Error>) {
        self.port_watch = Some(watch);
    }

    /// Begins the connection, after authentication. `early` are the events of the handshake, and
    /// `decoder` has what followed its last message on channel 0.
    pub(crate) fn authenticated(&mut self, early: VecDeque<CarrierEvent>, decoder: FrameDecoder) {
        self.engine.authenticated();
        self.refusal = Refusal::NotExpected;
        self.lifetime.begin(Instant::now());
        // The timer now has the deadline of silence, even if nothing else happens.
        self.dirty = true;
        if let Some(route) = self.source.route() {
            route.inbox.authenticated();
        }
        self.early = early;
        self.notices.resume(decoder);
    }

    /// Sets the timer for a look at the source address that receiving or sending has scheduled.
    /// Returns `true` if the timer has to be polled.
    fn arm_source_watch(&mut self, now: Instant) -> bool {
        let look_at = self.source_watch.as_ref().and_then(SourceWatch::look_at);
        let is_sooner =
            self.phase != Phase::Ended && look_at.is_some_and(|at| at < self.timer.deadline());
        if is_sooner {
            self.set_timer(now);
        }
        is_sooner
    }

    /// Looks up the source address when it is due, and moves the engine to a new one.
    fn watch_source(&mut self, now: Instant) {
        let Some(watch) = &mut self.source_watch else {
            return;
        };
        if self.phase == Phase::Ended || !watch.is_due(now) {
            return;
        }
        let source = self.socket.source_towards(watch.remote());
        let is_silent = !watch.follows_failure();
        watch.looked(now, source.is_ok());
        match source {
            Ok(source) if source != self.local.ip() => {
                let from = self.local.ip();
                tracing::debug!(target: "anabranch::webrtc", %from, to = %source, "moved");
                self.local.set_ip(source);
                self.engine.move_to(now.into_std(), self.local);
                self.dirty = true;
            }
            // After a failure the check would fail too, and so on.
            Ok(_) if is_silent => {
                self.engine.check_path();
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
        if let (Some(check_at), Some(_)) = (self.lifetime.check_at(), &self.reachability) {
            next = next.min(check_at);
        }
        if let Some((until, _)) = self.left_to_peer.front() {
            next = next.min(*until);
        }
        // Not in the past: what is due is handled in the next step.
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

    /// Maximum unacknowledged data.
    fn write_limit(&self) -> usize {
        self.engine.write_limit().min(self.lifetime.max_in_flight())
    }

    /// Whether the write limit allows `bytes` more. A single message always fits.
    fn has_room(&self, bytes: usize) -> bool {
        let held = self.engine.unacknowledged();
        held == 0 || held + bytes <= self.write_limit()
    }
}

impl Carrier for WebRtcCarrier {
    fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Result<CarrierEvent, ConnectionError>> {
        if let Some(event) = self.next_early(cx) {
            return Poll::Ready(Ok(event));
        }
        for _ in 0..STEPS_PER_POLL {
            if self.lifetime.keys_used_up(self.engine.dtls12_records()) {
                let cause = ConnectionError::KeysUsedUp;
                return Poll::Ready(Ok(CarrierEvent::Expiring { cause }));
            }
            let event = std::task::ready!(self.poll_steps(cx, AnswerTime::NextStep));
            if let Some(event) = self.report(event, cx) {
                return Poll::Ready(event);
            }
        }
        // Only events without a report so far, and there may be more.
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
        if self.phase != Phase::Open {
            return Err(OpenChannelError::Closed);
        }
        if self.notices.goodbye.is_some() {
            return Err(OpenChannelError::GoingAway);
        }
        self.dirty = true;
        let opened = self.engine.open(label).map(ChannelId::from);
        let opened = opened.map_err(OpenChannelError::from);
        // A writer that waits for a stream number also gets `Writable`.
        if opened == Err(OpenChannelError::NotNow) {
            self.writers = Writers::NeedChannel;
        }
        opened
    }

    fn write(&mut self, channel: ChannelId, frame: &[u8], class: Class) -> Written {
        self.write_vectored(channel, &[frame], class)
    }

    fn write_vectored(&mut self, channel: ChannelId, pieces: &[&[u8]], class: Class) -> Written {
        if self.phase != Phase::Open {
            return Written::Closed;
        }
        let length = pieces.iter().map(|piece| piece.len()).sum();
        if class == Class::Data && !self.has_room(length) {
            self.writers = self.writers.max(Writers::NeedRoom);
            return Written::Busy;
        }
        let written = self
            .engine
            .write_vectored(channel.into(), pieces, class.into());
        let written = written.into();
        match written {
            Written::Taken => {
                self.messages.sent += 1;
                self.dirty = true;
            }
            Written::Busy => self.writers = self.writers.max(Writers::NeedRoom),
            Written::NotOpen => {
                self.writers = Writers::NeedChannel;
                // The engine may have to request room from the peer.
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

    fn path(&self) -> Option<PathStats> {
        let state = self.engine.path()?;
        let mut path = PathStats::new(state.local, state.remote);
        path.rtt = state.rtt;
        path.min_rtt = state.min_rtt;
        path.cwnd = state.cwnd as u64;
        path.in_flight = state.in_flight as u64;
        path.mtu = state.mtu as u64;
        path.bytes_sent = state.bytes_sent;
        path.bytes_lost = state.bytes_lost;
        Some(path)
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
        // Best effort: the peer learns of the end in any case.
        let _ = self.write(
            engine::CHANNEL_ZERO,
            &cause.goodbye().encode(),
            Class::Control,
        );
    }

    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while self.phase != Phase::Ended {
            if self.phase == Phase::Open && self.engine.unacknowledged() == 0 {
                self.phase = Phase::Closing;
                // Everything is delivered; close_notify before that would discard it.
                self.engine.close(Instant::now().into_std());
                self.dirty = true;
            }
            match self.poll_engine(cx) {
                Poll::Ready(EngineEvent::Ended(_)) => self.phase = Phase::Ended,
                Poll::Ready(_) => {}
                // An answer of the peer is not needed.
                Poll::Pending if self.phase == Phase::Closing && self.unsent.is_empty() => {
                    self.phase = Phase::Ended;
                }
                Poll::Pending => return Poll::Pending,
            }
        }
        Poll::Ready(())
    }
}
