//! What the substreams of one connection share, and its driver.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use atomic_waker::AtomicWaker;

use super::Shared;
use crate::error::ConnectionError;
use crate::events::Audience;

/// The most that may be unread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ceilings {
    /// Of all substreams together, in bytes.
    pub(crate) connection: usize,
    /// Of one, in bytes.
    pub(crate) substream: usize,
}

/// Shared by every substream of a connection and its driver.
#[derive(Debug)]
pub(crate) struct Siblings {
    /// Who is told what happens to them.
    pub(crate) audience: Audience,
    /// Everything that is logged of the connection lies in it.
    pub(crate) span: tracing::Span,
    pub(crate) ceilings: Ceilings,
    /// Bytes unread in all substreams, with the cost of their frames.
    pub(crate) unread: ByteSum,
    /// Bytes that writers have given and the carrier has not taken, of all substreams.
    pub(crate) queued: ByteSum,
    pub(crate) promised: PromisedBytes,
    /// Substreams that the driver is to look at. Each is in here at most once.
    ready: Mutex<VecDeque<Arc<Shared>>>,
    driver: AtomicWaker,
    /// Set by the driver while a channel is left unread until its reader takes something.
    held_back: AtomicBool,
    /// The carrier holds back what is beyond the ceilings: nothing is reset for it.
    bounded_by_carrier: AtomicBool,
    /// What the carrier reports as delivered has left this side, and no more is known.
    delivery_is_local: AtomicBool,
    /// Why this side closes the connection, if that has a name; set once.
    closing_cause: OnceLock<ConnectionError>,
    /// Why the connection ended; set once, before anybody is woken for it.
    cause: OnceLock<ConnectionError>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A queue of whole entries: nothing is ever left half done under this lock.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Siblings {
    pub(crate) fn new(audience: Audience, ceilings: Ceilings) -> Self {
        let info = &audience.info;
        let span = tracing::debug_span!(
            target: "anabranch",
            "connection",
            id = info.id,
            initiator = info.initiator.as_str(),
            remote = info.remote.map(tracing::field::display),
            peer = info.peer.map(tracing::field::display),
        );
        Self {
            audience,
            span,
            ceilings,
            unread: ByteSum::default(),
            queued: ByteSum::default(),
            promised: PromisedBytes::default(),
            ready: Mutex::new(VecDeque::new()),
            driver: AtomicWaker::new(),
            held_back: AtomicBool::new(false),
            bounded_by_carrier: AtomicBool::new(false),
            delivery_is_local: AtomicBool::new(false),
            closing_cause: OnceLock::new(),
            cause: OnceLock::new(),
        }
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
            // Without a driver nobody would take it out again, and it keeps its siblings alive.
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

    /// Names why this side closes the connection. The first one counts.
    pub(crate) fn set_closing_cause(&self, cause: ConnectionError) {
        let _ = self.closing_cause.set(cause);
    }

    /// Why this side closes the connection.
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

    /// The cause, by reference.
    pub(crate) fn cause_ref(&self) -> Option<&ConnectionError> {
        self.cause.get()
    }

    /// Ends the connection: the first cause counts. Returns whether this was it.
    pub(crate) fn end(&self, cause: ConnectionError) -> bool {
        let first = self.cause.set(cause).is_ok();
        let unserved = std::mem::take(&mut *lock(&self.ready));
        drop(unserved);
        first
    }

    /// Whether nothing is left of any substream; what tests end with.
    pub(crate) fn is_idle(&self) -> bool {
        lock(&self.ready).is_empty() && self.unread.get() == 0 && self.promised.get() == 0
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
    pub(crate) fn ceiling_for_one(&self, ceilings: Ceilings) -> usize {
        let left = ceilings.connection.saturating_sub(self.get());
        ceilings.substream.min(left.max(Self::ALWAYS_ALLOWED))
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
    pub(crate) fn room(&self, ceilings: Ceilings) -> u64 {
        (ceilings.connection as u64).saturating_sub(self.get())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Row L-26: the fuller the connection, the less one substream may hold, so that the largest
    /// meets the limit first; a small one is never punished for the sum.
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
