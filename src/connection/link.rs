//! What the handles of a connection and its driver share.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use atomic_waker::AtomicWaker;
use tokio::sync::{Notify, oneshot};

use super::config::{Config, FinAckPolicy};
use super::error::{ConnectionError, OpenError};
use super::stats::Counters;
use crate::carrier::ChannelId;
use crate::events::{ConnectionInfo, Events};
use crate::substream::{Shared, Substream, Usage};

/// A request to open a channel, and where the substream goes.
#[derive(Debug)]
pub(crate) struct OpenRequest {
    pub(crate) label: String,
    pub(crate) reply: oneshot::Sender<Result<Substream, OpenError>>,
}

/// Shared by every [`Connection`](crate::Connection) handle, every substream and the driver.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) config: Arc<Config>,
    pub(crate) info: ConnectionInfo,
    /// Everything that is logged of the connection lies in it.
    pub(crate) span: tracing::Span,
    /// Bytes unread in all substreams, with the cost of their frames.
    pub(crate) unread: ByteSum,
    /// Bytes that writers have given and the carrier has not taken, of all substreams.
    pub(crate) queued: ByteSum,
    pub(crate) promised: PromisedBytes,
    pub(crate) counters: Counters,
    /// That of the configuration until the application changes it.
    fin_ack: Mutex<FinAckPolicy>,
    expect_fin_ack: AtomicBool,
    /// Substreams that the driver is to look at. Each is in here at most once.
    ready: Mutex<VecDeque<Arc<Shared>>>,
    opens: Mutex<VecDeque<OpenRequest>>,
    /// Negotiated substreams that nobody has accepted, those included that the peer has ended since. With
    /// `max_inbound_substreams` of them no more are let in, and each expires with the accept timeout.
    accepted: Mutex<VecDeque<Substream>>,
    accept: Notify,
    driver: AtomicWaker,
    /// Set when the application, or the last handle, closes the connection.
    closing: AtomicBool,
    /// Why this side closes it, if that has a name; set once, before `closing`.
    closing_cause: OnceLock<ConnectionError>,
    /// Set by the driver while the peer may open few substreams more, until the application accepts some.
    accepts_awaited: AtomicBool,
    /// Set by the driver while a channel is left unread until its reader takes something.
    held_back: AtomicBool,
    /// The carrier holds back what is beyond the ceilings: nothing is reset for it.
    bounded_by_carrier: AtomicBool,
    /// What the carrier reports as delivered has left this side, and no more is known.
    delivery_is_local: AtomicBool,
    /// Why the connection ended; set once, before anybody is woken for it.
    cause: OnceLock<ConnectionError>,
    ended: Notify,
    /// [`Connection`](crate::Connection) handles.
    handles: AtomicUsize,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Queues of whole entries: nothing is ever left half done under these locks.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Link {
    pub(crate) fn new(config: Arc<Config>, info: ConnectionInfo) -> Arc<Self> {
        let span = tracing::debug_span!(
            target: "anabranch",
            "connection",
            id = info.id,
            initiator = info.initiator.as_str(),
            remote = info.remote.map(tracing::field::display),
            peer = info.peer.map(tracing::field::display),
        );
        Arc::new(Self {
            fin_ack: Mutex::new(config.fin_ack),
            expect_fin_ack: AtomicBool::new(config.expect_fin_ack),
            config,
            info,
            span,
            unread: ByteSum::default(),
            queued: ByteSum::default(),
            promised: PromisedBytes::default(),
            counters: Counters::default(),
            ready: Mutex::new(VecDeque::new()),
            opens: Mutex::new(VecDeque::new()),
            accepted: Mutex::new(VecDeque::new()),
            accept: Notify::new(),
            driver: AtomicWaker::new(),
            closing: AtomicBool::new(false),
            closing_cause: OnceLock::new(),
            accepts_awaited: AtomicBool::new(false),
            held_back: AtomicBool::new(false),
            bounded_by_carrier: AtomicBool::new(false),
            delivery_is_local: AtomicBool::new(false),
            cause: OnceLock::new(),
            ended: Notify::new(),
            handles: AtomicUsize::new(0),
        })
    }

    /// Tells whoever listens. Never under a lock.
    pub(crate) fn tell(&self, event: impl FnOnce(&dyn Events, &ConnectionInfo)) {
        if let Some(events) = &self.config.events {
            event(events.as_ref(), &self.info);
        }
    }

    pub(crate) fn register_driver(&self, waker: &std::task::Waker) {
        self.driver.register(waker);
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

    pub(crate) fn push_ready(&self, substream: Arc<Shared>) {
        {
            let mut ready = lock(&self.ready);
            // Without a driver nobody would take it out again, and it keeps this link alive.
            if self.cause.get().is_some() {
                return;
            }
            ready.push_back(substream);
        }
        self.driver.wake();
    }

    /// Moves the ready substreams into `batch`, which is empty.
    pub(crate) fn take_ready(&self, batch: &mut VecDeque<Arc<Shared>>) {
        std::mem::swap(&mut *lock(&self.ready), batch);
    }

    pub(crate) fn request_open(&self, request: OpenRequest) {
        lock(&self.opens).push_back(request);
        if self.cause.get().is_some() {
            // The driver may have drained the queue for the last time already.
            self.fail_opens();
        }
        self.driver.wake();
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

    /// Whether somebody waits for a channel.
    pub(crate) fn has_opens(&self) -> bool {
        !lock(&self.opens).is_empty()
    }

    fn fail_opens(&self) {
        let cause = self.cause().unwrap_or(ConnectionError::ClosedLocally);
        for request in lock(&self.opens).drain(..) {
            // The caller may have given up meanwhile.
            let _ = request
                .reply
                .send(Err(OpenError::Connection(cause.clone())));
        }
    }

    pub(crate) fn push_accepted(&self, substream: Substream) {
        {
            let mut accepted = lock(&self.accepted);
            if !self.is_unreachable() {
                accepted.push_back(substream);
                self.accept.notify_one();
                return;
            }
        }
        // Nobody is left to accept it. Outside of the lock: its drop takes others.
        drop(substream);
    }

    /// How many substreams nobody has accepted.
    pub(crate) fn unaccepted(&self) -> usize {
        lock(&self.accepted).len()
    }

    /// Takes a substream out that nobody has accepted; `None` if somebody has. It is among the
    /// first, because all wait equally long.
    pub(crate) fn take_unaccepted(&self, channel: ChannelId) -> Option<Substream> {
        let mut accepted = lock(&self.accepted);
        let position = accepted.iter().position(|s| s.shared().id == channel)?;
        accepted.remove(position)
    }

    /// The next accepted substream; `Ok(None)` after an orderly end. Cancel safe.
    pub(crate) async fn accept(&self) -> Result<Option<Substream>, ConnectionError> {
        loop {
            // Created before the look at the queue: a wake-up in between is not missed.
            let notified = self.accept.notified();
            tokio::pin!(notified);
            notified.as_mut().enable();
            let next = {
                let mut accepted = lock(&self.accepted);
                let next = accepted.pop_front();
                if !accepted.is_empty() {
                    // Another task may wait for what is left.
                    self.accept.notify_one();
                }
                next
            };
            if let Some(substream) = next {
                substream.shared().set_usage(Usage::Accepted);
                if self.accepts_awaited.load(Ordering::Acquire) {
                    // The peer may open another.
                    self.driver.wake();
                }
                return Ok(Some(substream));
            }
            match self.cause.get() {
                Some(cause) if cause.is_orderly() => return Ok(None),
                Some(cause) => return Err(cause.clone()),
                None => {}
            }
            notified.await;
        }
    }

    pub(crate) fn begin_close(&self) {
        self.begin_close_for(ConnectionError::ClosedLocally);
    }

    /// Closes for a reason that has a name. The first one counts.
    pub(crate) fn begin_close_for(&self, cause: ConnectionError) {
        let _ = self.closing_cause.set(cause);
        self.closing.store(true, Ordering::Release);
        self.driver.wake();
    }

    /// Why this side closes the connection.
    pub(crate) fn closing_cause(&self) -> ConnectionError {
        self.closing_cause
            .get()
            .cloned()
            .unwrap_or(ConnectionError::ClosedLocally)
    }

    pub(crate) fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Acquire)
    }

    pub(crate) fn await_accepts(&self, awaited: bool) {
        self.accepts_awaited.store(awaited, Ordering::Release);
    }

    pub(crate) fn set_bounded_by_carrier(&self) {
        self.bounded_by_carrier.store(true, Ordering::Release);
    }

    pub(crate) fn is_bounded_by_carrier(&self) -> bool {
        self.bounded_by_carrier.load(Ordering::Acquire)
    }

    pub(crate) fn set_delivery_is_local(&self, is_local: bool) {
        self.delivery_is_local.store(is_local, Ordering::Release);
    }

    pub(crate) fn is_delivery_local(&self) -> bool {
        self.delivery_is_local.load(Ordering::Acquire)
    }

    pub(crate) fn set_held_back(&self, held_back: bool) {
        self.held_back.store(held_back, Ordering::Release);
    }

    /// Whether the driver wants to know of reads.
    pub(crate) fn reads_are_awaited(&self) -> bool {
        self.held_back.load(Ordering::Acquire)
    }

    pub(crate) fn cause(&self) -> Option<ConnectionError> {
        self.cause.get().cloned()
    }

    /// Ends the connection: the first cause counts. What was not accepted yet stays, since its peer
    /// may have written, closed and gone before anybody could accept it.
    ///
    /// Returns whether this was the first end, for [`Self::tell_end`].
    pub(crate) fn end(&self, cause: ConnectionError) -> bool {
        let first = self.cause.set(cause).is_ok();
        self.fail_opens();
        let unserved = std::mem::take(&mut *lock(&self.ready));
        drop(unserved);
        self.accept.notify_waiters();
        self.ended.notify_waiters();
        first
    }

    /// Tells that the connection has ended, when the ends of its substreams have been told.
    pub(crate) fn tell_end(&self) {
        if let Some(cause) = self.cause.get() {
            self.tell(|events, connection| match cause.is_orderly() {
                true => events.connection_closed(connection, cause),
                false => events.connection_failed(connection, cause),
            });
        }
    }

    /// Completes when the connection has ended. Cancel safe.
    pub(crate) async fn ended(&self) -> ConnectionError {
        loop {
            let ended = self.ended.notified();
            tokio::pin!(ended);
            ended.as_mut().enable();
            if let Some(cause) = self.cause() {
                return cause;
            }
            ended.await;
        }
    }

    pub(crate) fn add_handle(&self) {
        self.handles.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn drop_handle(&self) {
        if self.handles.fetch_sub(1, Ordering::AcqRel) == 1 {
            // Nobody is left to accept these, and they keep this link alive. Outside of the lock:
            // dropping a substream takes others.
            let unaccepted = std::mem::take(&mut *lock(&self.accepted));
            drop(unaccepted);
            self.driver.wake();
        }
    }

    /// Whether no [`Connection`](crate::Connection) handle is left.
    pub(crate) fn is_unreachable(&self) -> bool {
        self.handles.load(Ordering::Acquire) == 0
    }

    /// Whether neither queue holds anything; what tests end with.
    pub(crate) fn is_idle(&self) -> bool {
        lock(&self.ready).is_empty()
            && lock(&self.opens).is_empty()
            && lock(&self.accepted).is_empty()
            && self.unread.get() == 0
            && self.promised.get() == 0
    }
}

/// A sum over all substreams of a connection.
#[derive(Debug, Default)]
pub(crate) struct ByteSum(AtomicUsize);

impl ByteSum {
    pub(crate) fn adjust(&self, before: usize, after: usize) {
        match after.checked_sub(before) {
            Some(0) => {}
            Some(more) => drop(self.0.fetch_add(more, Ordering::Relaxed)),
            None => {
                let less = before.saturating_sub(after);
                // Wrapped around it would look like a connection that holds more than any ceiling.
                let lower = |sum: usize| Some(sum.saturating_sub(less));
                let sum = self
                    .0
                    .fetch_update(Ordering::Relaxed, Ordering::Relaxed, lower);
                debug_assert!(sum.is_ok_and(|sum| sum >= less), "{sum:?}, {less} less");
            }
        }
    }

    pub(crate) fn get(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    /// What one substream may hold unread: its own ceiling, or what is left of the connection's.
    ///
    /// So the largest holder meets the limit first, without a search for it, and a small one
    /// is not punished for the sum.
    pub(crate) fn ceiling_for_one(&self, config: &Config) -> usize {
        let left = config.connection_ceiling.saturating_sub(self.get());
        config.substream_ceiling.min(left.max(Self::ALWAYS_ALLOWED))
    }

    /// What a substream may hold however full the connection is: a few frames.
    const ALWAYS_ALLOWED: usize = 32 * 1024;
}

/// Bytes that the peers of all substreams of a connection may send unread: what is unread, and what
/// they have credit for.
///
/// Credit can not be taken back, so this and not what is unread has to stay below the ceiling.
#[derive(Debug, Default)]
pub(crate) struct PromisedBytes(AtomicU64);

impl PromisedBytes {
    pub(crate) fn adjust(&self, before: u64, after: u64) {
        match after.checked_sub(before) {
            Some(0) => {}
            Some(more) => drop(self.0.fetch_add(more, Ordering::Relaxed)),
            None => {
                let less = before.saturating_sub(after);
                let lower = |sum: u64| Some(sum.saturating_sub(less));
                let sum = self
                    .0
                    .fetch_update(Ordering::Relaxed, Ordering::Relaxed, lower);
                debug_assert!(
                    sum.is_ok_and(|sum| sum >= less),
                    "{sum:?} promised, {less} less"
                );
            }
        }
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// What is left to promise.
    pub(crate) fn room(&self, config: &Config) -> u64 {
        (config.connection_ceiling as u64).saturating_sub(self.get())
    }
}
