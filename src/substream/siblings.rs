//! State shared by the substreams of one connection and its driver.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use atomic_waker::AtomicWaker;

use super::Shared;
use super::recv::Room;
use crate::error::ConnectionError;
use crate::events::ConnectionEvents;

/// Limits on unread bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ceilings {
    /// Of all substreams together, in bytes.
    pub(crate) connection: usize,
    /// Of one, in bytes.
    pub(crate) substream: usize,
}

/// The part of one substream in the sums of its connection.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Levels {
    /// Unread bytes, with the overhead of their frames.
    pub(crate) unread: usize,
    /// Bytes accepted from the writer that the carrier has not taken.
    pub(crate) queued: usize,
    /// Bytes committed to the peer, beyond the minimum of every substream.
    pub(crate) committed: u64,
}

/// Shared by every substream of a connection and its driver.
#[derive(Debug)]
pub(crate) struct Siblings {
    /// The event listener of the connection.
    pub(crate) events: ConnectionEvents,
    /// Span of everything that is logged about the connection.
    pub(crate) span: tracing::Span,
    /// Bounds what is granted to peers with credit.
    grant_ceiling: AtomicUsize,
    /// Bounds unread bytes of peers without credit. Never falls: what they have sent within it
    /// stays.
    unread_ceiling: AtomicUsize,
    substream_ceiling: usize,
    /// Unread bytes of all substreams, with the overhead of their frames.
    pub(crate) unread: ByteSum,
    /// Bytes accepted from writers that the carrier has not taken, of all substreams.
    pub(crate) queued: ByteSum,
    pub(crate) committed: CommittedBytes,
    /// Substreams that wait for service by the driver, each at most once.
    ready: Mutex<VecDeque<Arc<Shared>>>,
    driver: AtomicWaker,
    /// Set by the driver while a channel is left unread: every read then requests service.
    reads_awaited: AtomicBool,
    /// The carrier applies backpressure at the ceilings: no substream is reset for reaching them.
    bounded_by_carrier: AtomicBool,
    /// Delivery as reported by the carrier means only that the local socket took the data.
    delivery_is_local: AtomicBool,
    /// The cause for which this side closes the connection; set once.
    closing_cause: OnceLock<ConnectionError>,
    /// The cause of the end of the connection; set once, before any task is woken for it.
    cause: OnceLock<ConnectionError>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A queue of complete entries: a panic under this lock leaves nothing inconsistent.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Siblings {
    pub(crate) fn new(events: ConnectionEvents, ceilings: Ceilings) -> Self {
        let info = &events.info;
        let span = tracing::debug_span!(
            target: "anabranch",
            "connection",
            id = info.id,
            initiator = info.initiator.as_str(),
            remote = info.remote.map(tracing::field::display),
            peer = info.peer.map(tracing::field::display),
        );
        Self {
            events,
            span,
            grant_ceiling: AtomicUsize::new(ceilings.connection),
            unread_ceiling: AtomicUsize::new(ceilings.connection),
            substream_ceiling: ceilings.substream,
            unread: ByteSum::default(),
            queued: ByteSum::default(),
            committed: CommittedBytes::default(),
            ready: Mutex::new(VecDeque::new()),
            driver: AtomicWaker::new(),
            reads_awaited: AtomicBool::new(false),
            bounded_by_carrier: AtomicBool::new(false),
            delivery_is_local: AtomicBool::new(false),
            closing_cause: OnceLock::new(),
            cause: OnceLock::new(),
        }
    }

    /// Replaces the ceiling of the connection.
    pub(crate) fn set_connection_ceiling(&self, bytes: usize) {
        self.grant_ceiling.store(bytes, Ordering::Relaxed);
        self.unread_ceiling.fetch_max(bytes, Ordering::Relaxed);
    }

    /// What one substream may hold unread if its peer does not support credit.
    pub(crate) fn ceiling_for_one(&self) -> usize {
        self.unread.ceiling_for_one(Ceilings {
            connection: self.unread_ceiling.load(Ordering::Relaxed),
            substream: self.substream_ceiling,
        })
    }

    /// What may still be committed to peers.
    pub(crate) fn room(&self) -> Room {
        self.committed
            .room(self.grant_ceiling.load(Ordering::Relaxed))
    }

    /// Updates the sums for a change of one substream.
    pub(crate) fn adjust(&self, before: Levels, after: Levels) {
        self.unread.adjust(before.unread, after.unread);
        self.queued.adjust(before.queued, after.queued);
        self.committed.adjust(before.committed, after.committed);
    }

    pub(crate) fn register_driver(&self, waker: &std::task::Waker) {
        self.driver.register(waker);
    }

    pub(crate) fn wake_driver(&self) {
        self.driver.wake();
    }

    pub(crate) fn push_ready(&self, substream: Arc<Shared>) {
        {
            let mut ready = lock(&self.ready);
            // After the end no driver would remove it, and it keeps its siblings alive.
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

    /// Sets the cause for which this side closes the connection. The first one wins.
    pub(crate) fn set_closing_cause(&self, cause: ConnectionError) {
        let _ = self.closing_cause.set(cause);
    }

    /// Whether this side closes the connection for a cause of its own.
    pub(crate) fn is_closing(&self) -> bool {
        self.closing_cause.get().is_some()
    }

    /// The cause for which this side closes the connection.
    pub(crate) fn closing_cause(&self) -> ConnectionError {
        self.closing_cause
            .get()
            .cloned()
            .unwrap_or(ConnectionError::ClosedLocally)
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

    pub(crate) fn set_reads_awaited(&self, reads_awaited: bool) {
        self.reads_awaited.store(reads_awaited, Ordering::Release);
    }

    /// Whether reads request service by the driver.
    pub(crate) fn reads_awaited(&self) -> bool {
        self.reads_awaited.load(Ordering::Acquire)
    }

    pub(crate) fn cause(&self) -> Option<ConnectionError> {
        self.cause.get().cloned()
    }

    /// The cause, by reference.
    pub(crate) fn cause_ref(&self) -> Option<&ConnectionError> {
        self.cause.get()
    }

    /// Ends the connection: the first cause wins. Returns whether this was the first.
    pub(crate) fn end(&self, cause: ConnectionError) -> bool {
        let first = self.cause.set(cause).is_ok();
        let unserved = std::mem::take(&mut *lock(&self.ready));
        drop(unserved);
        first
    }

    /// Whether no substream holds anything; checked at the end of tests.
    pub(crate) fn is_idle(&self) -> bool {
        lock(&self.ready).is_empty() && self.unread.get() == 0 && self.committed.get() == 0
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
                // A wrapped sum would look like a connection above every ceiling.
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
    /// The largest holder reaches the limit first, without a search for it, and a small one does
    /// not suffer for the sum.
    fn ceiling_for_one(&self, ceilings: Ceilings) -> usize {
        let left = ceilings.connection.saturating_sub(self.get());
        ceilings.substream.min(left.max(Self::ALWAYS_ALLOWED))
    }

    /// What a substream may hold however full the connection is: a few frames.
    const ALWAYS_ALLOWED: usize = 32 * 1024;
}

/// Bytes committed to the peer on all substreams of a connection, beyond the minimum of each: what
/// is unread, and what it has credit for.
///
/// Credit can not be revoked, so this sum, and not that of unread bytes, has to stay below the
/// ceiling.
#[derive(Debug, Default)]
pub(crate) struct CommittedBytes(AtomicU64);

impl CommittedBytes {
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
                    "{sum:?} committed, {less} less"
                );
            }
        }
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// What may still be committed.
    fn room(&self, ceiling: usize) -> Room {
        let ceiling = ceiling as u64;
        Room {
            uncommitted: ceiling.saturating_sub(self.get()),
            ceiling,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Row L-26: the fuller the connection, the less one substream may hold, so that the largest
    /// reaches the limit first; a small one does not suffer for the sum.
    #[test]
    fn l26_the_ceiling_of_one_substream_falls_as_the_connection_fills() {
        let ceilings = Ceilings {
            connection: 4 << 20,
            substream: 1 << 20,
        };
        let unread = ByteSum::default();
        assert_eq!(unread.ceiling_for_one(ceilings), ceilings.substream);
        unread.adjust(0, ceilings.connection - ceilings.substream);
        assert_eq!(unread.ceiling_for_one(ceilings), ceilings.substream);
        unread.adjust(0, ceilings.substream / 2);
        assert_eq!(unread.ceiling_for_one(ceilings), ceilings.substream / 2);
        unread.adjust(0, ceilings.connection);
        assert_eq!(unread.ceiling_for_one(ceilings), 32 * 1024);
        unread.adjust(unread.get(), 0);
        assert_eq!(unread.ceiling_for_one(ceilings), ceilings.substream);
    }
}
