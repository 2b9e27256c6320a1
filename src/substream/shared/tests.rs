//! Results that handles see when a reset intervenes between two of their checks.

use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::Duration;

use bytes::Bytes;

use super::Shared;
use crate::carrier::ChannelId;
use crate::events::{ConnectionEvents, ConnectionInfo, Initiator};
use crate::substream::state::SubstreamEvent;
use crate::substream::{Ceilings, ReceiveBuffer, SendBuffer, Siblings};

pub(super) fn shared() -> Arc<Shared> {
    let info = ConnectionInfo::new(Initiator::Local, None);
    let ceilings = Ceilings {
        connection: 1 << 20,
        substream: 1 << 18,
    };
    let siblings = Arc::new(Siblings::new(ConnectionEvents::new(info, None), ceilings));
    let send = SendBuffer::new(1024, 1024);
    let receive = ReceiveBuffer::new(1024, 1024);
    Shared::new(ChannelId::new(0), Initiator::Local, siblings, send, receive)
}

fn context() -> Context<'static> {
    Context::from_waker(Waker::noop())
}

/// Long enough for a thread to block on the lock. If it does not, the test passes without having
/// tested anything.
fn wait_for_threads() {
    thread::sleep(Duration::from_millis(50));
}

/// Runs both while another thread holds the lock, so that they contend for it. Returns the result
/// of `first`.
fn race<T: Send + 'static>(
    shared: &Arc<Shared>,
    first: fn(&Arc<Shared>) -> T,
    second: fn(&Arc<Shared>),
) -> T {
    let held = shared.inner();
    let first = {
        let shared = Arc::clone(shared);
        thread::spawn(move || first(&shared))
    };
    wait_for_threads();
    let second = {
        let shared = Arc::clone(shared);
        thread::spawn(move || second(&shared))
    };
    wait_for_threads();
    drop(held);
    second.join().expect("no panic");
    first.join().expect("no panic")
}

#[test]
fn a_flush_does_not_take_what_a_reset_threw_away_for_sent() {
    for _ in 0..10 {
        let shared = shared();
        let written = shared.poll_write_with(&mut context(), |send| send.write(b"hello"));
        assert!(matches!(written, Poll::Ready(Ok(5))));
        let flushed = race(
            &shared,
            |shared| shared.poll_flush(&mut context()),
            |shared| {
                shared.apply(SubstreamEvent::ResetStream);
            },
        );
        assert!(!matches!(flushed, Poll::Ready(Ok(()))), "{flushed:?}");
        let flushed = shared.poll_flush(&mut context());
        assert!(matches!(flushed, Poll::Ready(Err(_))), "{flushed:?}");
    }
}

#[test]
fn a_read_does_not_take_what_a_reset_threw_away_for_the_end() {
    for _ in 0..10 {
        let shared = shared();
        let received = shared.receive_payload(Bytes::from_static(b"hello"));
        received.result.expect("room");
        shared.apply(SubstreamEvent::Fin);
        let read = |shared: &Arc<Shared>| {
            shared.poll_read_with(&mut context(), |receive| receive.read_chunk(100))
        };
        // Either the data or the reset, depending on which gets the lock first.
        let first = race(&shared, read, |shared| shared.reset(7));
        assert!(!matches!(first, Poll::Ready(Ok(None))), "{first:?}");
        let second = read(&shared);
        assert!(matches!(second, Poll::Ready(Err(_))), "{second:?}");
    }
}
