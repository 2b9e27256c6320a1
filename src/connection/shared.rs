//! State shared by the handles of a connection and its driver.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicIsize, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::sync::oneshot;

use super::config::{Config, FinAckPolicy};
use super::error::OpenError;
use super::stats::Counters;
use crate::carrier::ChannelId;
use crate::error::ConnectionError;
use crate::events::{ConnectionEvents, ConnectionInfo, Events};
use crate::substream::{Ceilings, Shared, Siblings, Substream, Usage};
use crate::waiters::Waiters;

/// Maximum length of a protocol that a label names, in bytes: that of a label on every carrier.
const MAX_PROTOCOL_LABEL: usize = 1024;

/// A request to open a channel, and the receiver of the substream.
#[derive(Debug)]
pub(crate) struct OpenRequest {
    pub(crate) label: String,
    pub(crate) reply: oneshot::Sender<Result<Substream, OpenError>>,
}

/// A value that the application has attached to a connection before it was established.
#[cfg(feature = "websocket")]
pub(crate) type Attachment = Arc<dyn std::any::Any + Send + Sync>;

/// What the handshake has found out.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    /// The peer has announced that labels may name protocols.
    pub(crate) takes_labels: bool,
    /// What the peer has proven in TLS, in DER.
    #[cfg(feature = "websocket")]
    pub(crate) certificate: Option<bytes::Bytes>,
    /// What the hook of the upgrade request returned.
    #[cfg(feature = "websocket")]
    pub(crate) attachment: Option<Attachment>,
}

impl Findings {
    /// Of a handshake without TLS and without a request.
    #[cfg(feature = "webrtc")]
    pub(crate) fn of_labels(takes_labels: bool) -> Self {
        Self {
            takes_labels,
            #[cfg(feature = "websocket")]
            certificate: None,
            #[cfg(feature = "websocket")]
            attachment: None,
        }
    }
}

/// [`Config::idle_timeout`], or what has replaced it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct IdleTimeout {
    pub(crate) timeout: Option<Duration>,
    /// Since the driver has last looked: the time begins anew.
    pub(crate) has_changed: bool,
}

/// Shared by every [`Connection`](crate::Connection) handle and the driver.
#[derive(Debug)]
pub(crate) struct ConnectionShared {
    pub(crate) config: Arc<Config>,
    /// Both sides have announced that the label of a channel may name the protocol.
    pub(crate) takes_labels: bool,
    #[cfg(feature = "websocket")]
    pub(crate) certificate: Option<bytes::Bytes>,
    #[cfg(feature = "websocket")]
    pub(crate) attachment: Option<Attachment>,
    /// The part that is also shared with the substreams.
    pub(crate) siblings: Arc<Siblings>,
    pub(crate) counters: Counters,
    /// Limits that the application may change: those of the configuration until it does.
    max_inbound_substreams: AtomicUsize,
    /// The greatest that was ever set: what was announced within it is accepted.
    greatest_max_inbound: AtomicUsize,
    receive_window: AtomicU32,
    idle_timeout: Mutex<IdleTimeout>,
    /// The configured policy until the application changes it.
    fin_ack: Mutex<FinAckPolicy>,
    expect_fin_ack: AtomicBool,
    opens: Mutex<VecDeque<OpenRequest>>,
    /// Negotiated substreams that were not accepted yet, including those that the peer has ended
    /// since. At `max_inbound_substreams` of them new ones are refused, and each expires after the
    /// accept timeout.
    accepted: Mutex<VecDeque<Substream>>,
    /// How many of these have ended. May be negative for a moment: the application is faster than
    /// the driver counts. Sequentially consistent with `accepts_awaited`: either the driver counts
    /// what was accepted, or is woken for it.
    ended_unaccepted: AtomicIsize,
    /// Wakes those who wait for one of these, or for the end.
    accept: Waiters,
    /// Set by the driver while the peer is close to its substream limit: accepting a substream then
    /// wakes the driver.
    accepts_awaited: AtomicBool,
    /// Wakes those who wait for the end.
    ended: Waiters,
    /// This side wants no new substreams.
    is_draining: AtomicBool,
    /// The peer has said that it wants no new substreams.
    is_drained_by_peer: AtomicBool,
    /// [`Connection`](crate::Connection) handles.
    handles: AtomicUsize,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Queues of complete entries: a panic under these locks leaves nothing inconsistent.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl ConnectionShared {
    pub(crate) fn new(config: Arc<Config>, info: ConnectionInfo, findings: Findings) -> Arc<Self> {
        let ceilings = Ceilings {
            connection: config.connection_ceiling,
            substream: config.substream_ceiling,
        };
        let events = ConnectionEvents::new(info, config.events.clone());
        Arc::new(Self {
            max_inbound_substreams: AtomicUsize::new(config.max_inbound_substreams),
            greatest_max_inbound: AtomicUsize::new(config.max_inbound_substreams),
            receive_window: AtomicU32::new(config.receive_window),
            idle_timeout: Mutex::new(IdleTimeout {
                timeout: config.idle_timeout,
                has_changed: false,
            }),
            fin_ack: Mutex::new(config.fin_ack),
            expect_fin_ack: AtomicBool::new(config.expect_fin_ack),
            takes_labels: findings.takes_labels && config.takes_labels(),
            #[cfg(feature = "websocket")]
            certificate: findings.certificate,
            #[cfg(feature = "websocket")]
            attachment: findings.attachment,
            config,
            siblings: Arc::new(Siblings::new(events, ceilings)),
            counters: Counters::default(),
            opens: Mutex::new(VecDeque::new()),
            accepted: Mutex::new(VecDeque::new()),
            ended_unaccepted: AtomicIsize::new(0),
            accept: Waiters::default(),
            accepts_awaited: AtomicBool::new(false),
            ended: Waiters::default(),
            is_draining: AtomicBool::new(false),
            is_drained_by_peer: AtomicBool::new(false),
            handles: AtomicUsize::new(0),
        })
    }

    /// Whether a substream for `protocol` can be opened without multistream-select.
    pub(crate) fn may_name_by_label(&self, protocol: &str) -> bool {
        // An empty label stands for multistream-select, and a longer one does not fit.
        let fits = (1..=MAX_PROTOCOL_LABEL).contains(&protocol.len());
        self.takes_labels && self.config.lazy_negotiation && fits
    }

    /// Calls the event listener. Never call this while holding a lock.
    pub(crate) fn emit(&self, event: impl FnOnce(&dyn Events, &ConnectionInfo)) {
        self.siblings.events.emit(event);
    }

    pub(crate) fn max_inbound_substreams(&self) -> usize {
        self.max_inbound_substreams.load(Ordering::Relaxed)
    }

    pub(crate) fn greatest_max_inbound(&self) -> usize {
        self.greatest_max_inbound.load(Ordering::Relaxed)
    }

    pub(crate) fn set_max_inbound_substreams(&self, max: usize) {
        self.greatest_max_inbound.fetch_max(max, Ordering::Relaxed);
        self.max_inbound_substreams.store(max, Ordering::Relaxed);
        self.siblings.wake_driver();
    }

    pub(crate) fn receive_window(&self) -> u32 {
        self.receive_window.load(Ordering::Relaxed)
    }

    pub(crate) fn set_receive_window(&self, bytes: u32) {
        self.receive_window.store(bytes, Ordering::Relaxed);
    }

    pub(crate) fn set_idle_timeout(&self, timeout: Option<Duration>) {
        *lock(&self.idle_timeout) = IdleTimeout {
            timeout,
            has_changed: true,
        };
        self.siblings.wake_driver();
    }

    /// Since the driver has last looked.
    pub(crate) fn idle_timeout_has_changed(&self) -> bool {
        lock(&self.idle_timeout).has_changed
    }

    /// For the driver, which is told of each change once.
    pub(crate) fn take_idle_timeout(&self) -> IdleTimeout {
        let mut idle = lock(&self.idle_timeout);
        let taken = *idle;
        idle.has_changed = false;
        taken
    }

    pub(crate) fn fin_ack(&self) -> FinAckPolicy {
        *lock(&self.fin_ack)
    }

    pub(crate) fn set_fin_ack(&self, policy: FinAckPolicy) {
        *lock(&self.fin_ack) = policy;
    }

    pub(crate) fn expects_fin_ack(&self) -> bool {
        self.expect_fin_ack.load(Ordering::Relaxed)
    }

    pub(crate) fn set_expect_fin_ack(&self, expected: bool) {
        self.expect_fin_ack.store(expected, Ordering::Relaxed);
    }

    pub(crate) fn request_open(&self, request: OpenRequest) {
        lock(&self.opens).push_back(request);
        if self.siblings.cause_ref().is_some() {
            // The driver may already have drained the queue for the last time.
            self.fail_opens();
        }
        self.siblings.wake_driver();
    }

    pub(crate) fn next_open(&self) -> Option<OpenRequest> {
        let mut opens = lock(&self.opens);
        while let Some(request) = opens.pop_front() {
            if !request.reply.is_closed() {
                return Some(request);
            }
        }
        None
    }

    /// Whether a request to open a channel is queued.
    pub(crate) fn has_opens(&self) -> bool {
        !lock(&self.opens).is_empty()
    }

    fn fail_opens(&self) {
        let cause = self
            .siblings
            .cause()
            .unwrap_or(ConnectionError::ClosedLocally);
        for request in lock(&self.opens).drain(..) {
            // The caller may have given up.
            let _ = request
                .reply
                .send(Err(OpenError::Connection(cause.clone())));
        }
    }

    pub(crate) fn push_accepted(&self, substream: Substream) {
        {
            let mut accepted = lock(&self.accepted);
            if !self.is_unreachable() {
                if substream.shared().place.enter() {
                    self.ended_unaccepted.fetch_add(1, Ordering::SeqCst);
                }
                accepted.push_back(substream);
                self.accept.wake_one();
                return;
            }
        }
        // No handle is left to accept it. Dropped outside the lock, because the drop takes others.
        drop(substream);
    }

    /// The driver forgets a substream, which has ended.
    pub(crate) fn on_forgotten(&self, shared: &Shared) {
        if shared.place.end() {
            self.ended_unaccepted.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// A substream has left the queue.
    fn on_unqueued(&self, substream: &Substream) {
        if substream.shared().place.leave() {
            self.ended_unaccepted.fetch_sub(1, Ordering::SeqCst);
        }
    }

    /// Number of unaccepted substreams that have ended.
    pub(crate) fn ended_unaccepted(&self) -> usize {
        let ended = self.ended_unaccepted.load(Ordering::SeqCst);
        usize::try_from(ended).unwrap_or_default()
    }

    /// Number of unaccepted substreams.
    pub(crate) fn unaccepted(&self) -> usize {
        lock(&self.accepted).len()
    }

    /// Removes an unaccepted substream; `None` if it was accepted. It is near the front, because
    /// all have the same timeout.
    pub(crate) fn take_unaccepted(&self, channel: ChannelId) -> Option<Substream> {
        let mut accepted = lock(&self.accepted);
        let position = accepted.iter().position(|s| s.shared().id == channel)?;
        let taken = accepted.remove(position);
        if let Some(substream) = &taken {
            self.on_unqueued(substream);
        }
        taken
    }

    /// The next inbound substream; `Ok(None)` after an orderly end. Cancel safe.
    pub(crate) async fn accept(&self) -> Result<Option<Substream>, ConnectionError> {
        self.accept.wait(|| self.next_accepted()).await
    }

    pub(crate) fn poll_accept(
        &self,
        cx: &Context<'_>,
    ) -> Poll<Result<Option<Substream>, ConnectionError>> {
        self.accept.poll_wait(cx, || self.next_accepted())
    }

    fn next_accepted(&self) -> Poll<Result<Option<Substream>, ConnectionError>> {
        // Before the queue: what came before the end is accepted first.
        let cause = self.siblings.cause_ref();
        let next = {
            let mut accepted = lock(&self.accepted);
            let next = accepted.pop_front();
            if !accepted.is_empty() {
                // Another task may wait for the rest.
                self.accept.wake_one();
            }
            next
        };
        if let Some(substream) = next {
            self.on_unqueued(&substream);
            substream.shared().set_usage(Usage::Accepted);
            if self.accepts_awaited.load(Ordering::SeqCst) || self.is_draining() {
                // The peer's limit may rise, or this was the last.
                self.siblings.wake_driver();
            }
            return Poll::Ready(Ok(Some(substream)));
        }
        match cause {
            Some(cause) if cause.is_orderly() => Poll::Ready(Ok(None)),
            Some(cause) => Poll::Ready(Err(cause.clone())),
            None => Poll::Pending,
        }
    }

    pub(crate) fn begin_close(&self) {
        self.begin_close_for(ConnectionError::ClosedLocally);
    }

    /// Closes the connection for this cause. The first cause wins.
    pub(crate) fn begin_close_for(&self, cause: ConnectionError) {
        self.siblings.set_closing_cause(cause);
        self.siblings.wake_driver();
    }

    /// Takes no new substreams, and closes the connection when none is left.
    pub(crate) fn begin_drain(&self) {
        self.is_draining.store(true, Ordering::Release);
        self.siblings.wake_driver();
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.is_draining.load(Ordering::Acquire)
    }

    pub(crate) fn set_drained_by_peer(&self) {
        self.is_drained_by_peer.store(true, Ordering::Release);
    }

    pub(crate) fn is_drained_by_peer(&self) -> bool {
        self.is_drained_by_peer.load(Ordering::Acquire)
    }

    pub(crate) fn is_closing(&self) -> bool {
        self.siblings.is_closing()
    }

    pub(crate) fn set_accepts_awaited(&self, awaited: bool) {
        self.accepts_awaited.store(awaited, Ordering::SeqCst);
    }

    /// Ends the connection: the first cause wins. Unaccepted substreams stay, since the peer may
    /// have written, closed and left before the application could accept them.
    ///
    /// Returns whether this was the first end; then [`Self::report_end`] is due.
    pub(crate) fn end(&self, cause: ConnectionError) -> bool {
        let first = self.siblings.end(cause);
        self.fail_opens();
        self.accept.wake_all();
        self.ended.wake_all();
        first
    }

    /// Reports the end of the connection, after the ends of its substreams were reported.
    pub(crate) fn report_end(&self) {
        if let Some(cause) = self.siblings.cause_ref() {
            self.emit(|events, connection| match cause.is_orderly() {
                true => events.connection_closed(connection, cause),
                false => events.connection_failed(connection, cause),
            });
        }
    }

    /// Completes when the connection has ended. Cancel safe.
    pub(crate) async fn ended(&self) -> ConnectionError {
        self.ended.wait(|| self.end_cause()).await
    }

    pub(crate) fn poll_ended(&self, cx: &Context<'_>) -> Poll<ConnectionError> {
        self.ended.poll_wait(cx, || self.end_cause())
    }

    fn end_cause(&self) -> Poll<ConnectionError> {
        self.siblings.cause().map_or(Poll::Pending, Poll::Ready)
    }

    pub(crate) fn add_handle(&self) {
        self.handles.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn drop_handle(&self) {
        if self.handles.fetch_sub(1, Ordering::AcqRel) == 1 {
            // No handle is left to accept these, and they keep this struct alive. Dropped outside
            // the lock, because dropping a substream takes others.
            let unaccepted = std::mem::take(&mut *lock(&self.accepted));
            unaccepted
                .iter()
                .for_each(|substream| self.on_unqueued(substream));
            drop(unaccepted);
            self.siblings.wake_driver();
        }
    }

    /// Whether no [`Connection`](crate::Connection) handle is left.
    pub(crate) fn is_unreachable(&self) -> bool {
        self.handles.load(Ordering::Acquire) == 0
    }

    /// Whether both queues are empty; checked at the end of tests.
    pub(crate) fn is_idle(&self) -> bool {
        self.siblings.is_idle() && lock(&self.opens).is_empty() && lock(&self.accepted).is_empty()
    }
}
