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

#[test]
fn a_flush_does_not_take_what_a_reset_threw_away_for_sent() {
    let shared = shared();
    let written = shared.poll_write_with(&mut context(), |send| send.write(b"hello"));
    assert!(matches!(written, Poll::Ready(Ok(5))));
    let mut send = shared.send_buffer();
    let flush = {
        let shared = Arc::clone(&shared);
        thread::spawn(move || shared.poll_flush(&mut context()))
    };
    wait_for_threads();
    let reset = {
        let shared = Arc::clone(&shared);
        thread::spawn(move || shared.apply(SubstreamEvent::ResetStream))
    };
    wait_for_threads();
    // What the reset does next, had it been the first to get the lock.
    send.discard();
    drop(send);
    reset.join().expect("no panic");
    let flushed = flush.join().expect("no panic");
    assert!(matches!(flushed, Poll::Ready(Err(_))), "{flushed:?}");
}

#[test]
fn a_read_does_not_take_what_a_reset_threw_away_for_the_end() {
    let shared = shared();
    shared
        .receive_payload(Bytes::from_static(b"hello"))
        .expect("room");
    shared.apply(SubstreamEvent::Fin);
    let mut receive = shared.receive_buffer();
    let read = {
        let shared = Arc::clone(&shared);
        thread::spawn(move || {
            shared.poll_read_with(&mut context(), |receive| receive.read_chunk(100))
        })
    };
    wait_for_threads();
    let reset = {
        let shared = Arc::clone(&shared);
        thread::spawn(move || shared.reset(7))
    };
    wait_for_threads();
    receive.discard();
    drop(receive);
    reset.join().expect("no panic");
    let read = read.join().expect("no panic");
    assert!(matches!(read, Poll::Ready(Err(_))), "{read:?}");
}
