//! Datagrams that a listener has received for one connection.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::Context;

use anabranch_rtc::Ecn;
use atomic_waker::AtomicWaker;
use bytes::Bytes;

/// Maximum bytes in an inbox. More are dropped, as by a full socket buffer.
///
/// Less than the receive window that SCTP may advertise: SCTP retransmits what is dropped here, and
/// the peer slows down.
const MAX_BYTES: usize = 2 * 1024 * 1024;

/// The same before the peer is authenticated. A handshake is a dozen datagrams, and unauthenticated
/// peers have as many inboxes as there may be concurrent handshakes.
const MAX_EARLY_BYTES: usize = 32 * 1024;

/// Bytes counted for an entry beside its contents, so that tiny datagrams are bounded too.
const ENTRY_COST: usize = 128;

#[derive(Debug)]
struct Batch {
    source: SocketAddr,
    destination: SocketAddr,
    contents: Bytes,
    stride: usize,
    ecn: Ecn,
}

#[derive(Debug, Default)]
struct Queue {
    batches: VecDeque<Batch>,
    bytes: usize,
    closed: bool,
}

/// A bounded queue from the task of a listener to the task of one connection.
#[derive(Debug)]
pub(crate) struct Inbox {
    queue: Mutex<Queue>,
    max_bytes: AtomicUsize,
    waker: AtomicWaker,
}

impl Default for Inbox {
    fn default() -> Self {
        Self {
            queue: Mutex::default(),
            max_bytes: AtomicUsize::new(MAX_EARLY_BYTES),
            waker: AtomicWaker::new(),
        }
    }
}

impl Inbox {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        // Valid after a panic: no entry is half written.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds datagrams, or drops them if the inbox is full.
    pub(crate) fn push(
        &self,
        source: SocketAddr,
        destination: SocketAddr,
        contents: &[u8],
        stride: usize,
        ecn: Ecn,
    ) {
        {
            let mut queue = self.lock();
            let cost = contents.len() + ENTRY_COST;
            let max_bytes = self.max_bytes.load(Ordering::Relaxed);
            if queue.closed || queue.bytes + cost > max_bytes {
                return;
            }
            queue.bytes += cost;
            queue.batches.push_back(Batch {
                source,
                destination,
                contents: Bytes::copy_from_slice(contents),
                stride,
                ecn,
            });
        }
        self.waker.wake();
    }

    /// Raises the limit once the peer is authenticated.
    pub(crate) fn authenticated(&self) {
        self.max_bytes.store(MAX_BYTES, Ordering::Relaxed);
    }

    /// Passes the queued datagrams to `sink`. Returns `false` if there were none, and then wakes
    /// the task when one arrives.
    pub(crate) fn poll_receive(
        &self,
        cx: &mut Context<'_>,
        mut sink: impl FnMut(SocketAddr, SocketAddr, &[u8], usize, Ecn),
    ) -> bool {
        let mut batches = self.take();
        if batches.is_empty() {
            self.waker.register(cx.waker());
            batches = self.take();
        }
        let received = !batches.is_empty();
        for batch in batches {
            sink(
                batch.source,
                batch.destination,
                &batch.contents,
                batch.stride,
                batch.ecn,
            );
        }
        received
    }

    fn take(&self) -> VecDeque<Batch> {
        let mut queue = self.lock();
        queue.bytes = 0;
        std::mem::take(&mut queue.batches)
    }

    /// Drops what is queued, and everything that arrives later.
    pub(crate) fn close(&self) {
        let mut queue = self.lock();
        queue.closed = true;
        queue.bytes = 0;
        queue.batches = VecDeque::new();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::task::Waker;

    fn addr(port: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], port))
    }

    fn drain(inbox: &Inbox) -> Vec<(u16, usize, usize)> {
        let mut cx = Context::from_waker(Waker::noop());
        let mut out = Vec::new();
        inbox.poll_receive(&mut cx, |from, _, contents, stride, _| {
            out.push((from.port(), contents.len(), stride));
        });
        out
    }

    #[test]
    fn batches_come_out_in_the_order_they_went_in() {
        let inbox = Inbox::default();
        inbox.push(addr(1), addr(9), &[0; 2400], 1200, Ecn::NotEct);
        inbox.push(addr(2), addr(9), &[0; 10], 10, Ecn::NotEct);
        assert_eq!(drain(&inbox), [(1, 2400, 1200), (2, 10, 10)]);
        assert_eq!(drain(&inbox), []);
    }

    #[test]
    fn little_waits_before_the_peer_is_authenticated() {
        let inbox = Inbox::default();
        for _ in 0..1000 {
            inbox.push(addr(1), addr(9), &[0; 1200], 1200, Ecn::NotEct);
        }
        let waiting: usize = drain(&inbox).iter().map(|(_, len, _)| len).sum();
        assert!(
            (30_000 - 2400..=MAX_EARLY_BYTES).contains(&waiting),
            "{waiting}"
        );
    }

    #[test]
    fn a_full_inbox_drops_what_comes_and_takes_more_once_it_is_read() {
        let inbox = Inbox::default();
        inbox.authenticated();
        for _ in 0..100 {
            inbox.push(addr(1), addr(9), &[0; 64_000], 1200, Ecn::NotEct);
        }
        let waiting: usize = drain(&inbox).iter().map(|(_, len, _)| len).sum();
        assert!(
            (MAX_BYTES - 128_000..=MAX_BYTES).contains(&waiting),
            "{waiting}"
        );
        inbox.push(addr(1), addr(9), &[0; 5], 5, Ecn::NotEct);
        assert_eq!(drain(&inbox).len(), 1);
    }

    #[test]
    fn many_tiny_datagrams_are_bounded_too() {
        let inbox = Inbox::default();
        inbox.authenticated();
        for _ in 0..1_000_000 {
            inbox.push(addr(1), addr(9), &[0], 1, Ecn::NotEct);
        }
        assert!(drain(&inbox).len() <= MAX_BYTES / ENTRY_COST);
    }

    #[test]
    fn a_closed_inbox_takes_nothing() {
        let inbox = Inbox::default();
        inbox.push(addr(1), addr(9), &[0; 5], 5, Ecn::NotEct);
        inbox.close();
        inbox.push(addr(1), addr(9), &[0; 5], 5, Ecn::NotEct);
        assert_eq!(drain(&inbox), []);
    }
}
