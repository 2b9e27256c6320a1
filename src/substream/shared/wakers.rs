//! Wake-ups: every event in every state, and every change of the buffers, for every waiter.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use bytes::Bytes;

use super::Shared;
use super::tests::shared;
use crate::substream::state::{ChannelState, ReadState, State, SubstreamEvent, WriteState};

const READER: u8 = 1;
const WRITER: u8 = 1 << 1;
const FLUSHER: u8 = 1 << 2;
const CLOSER: u8 = 1 << 3;
const DRIVER: u8 = 1 << 4;
const WRITERS: u8 = WRITER | FLUSHER | CLOSER;
const ALL: u8 = READER | WRITERS | DRIVER;

const EVENTS: [SubstreamEvent; 20] = [
    SubstreamEvent::Shutdown,
    SubstreamEvent::ConnectionClosing,
    SubstreamEvent::CutOffDrained,
    SubstreamEvent::CutOffByPeer,
    SubstreamEvent::Stop,
    SubstreamEvent::Reset,
    SubstreamEvent::Violation,
    SubstreamEvent::Fin,
    SubstreamEvent::FinAck,
    SubstreamEvent::StopSending,
    SubstreamEvent::ResetStream,
    SubstreamEvent::ChannelClosed,
    SubstreamEvent::FinWritten,
    SubstreamEvent::FinDelivered,
    SubstreamEvent::NoFinAckExpected,
    SubstreamEvent::FinAckWritten,
    SubstreamEvent::StopWritten,
    SubstreamEvent::ResetWritten,
    SubstreamEvent::FinAckTimeout,
    SubstreamEvent::CarrierLost,
];

/// The waiters that an event wakes. Written from docs/wire.md section 2, not from the code.
fn woken(state: State, event: SubstreamEvent) -> u8 {
    use WriteState as W;
    if state.channel != ChannelState::Open {
        return match (state.channel, event) {
            // The pending RESET_STREAM is not needed any more.
            (
                ChannelState::ResetPending,
                SubstreamEvent::ResetStream
                | SubstreamEvent::CutOffByPeer
                | SubstreamEvent::ChannelClosed
                | SubstreamEvent::CarrierLost,
            ) => DRIVER,
            _ => 0,
        };
    }
    match event {
        SubstreamEvent::Reset
        | SubstreamEvent::Violation
        | SubstreamEvent::ResetStream
        | SubstreamEvent::CutOffByPeer
        | SubstreamEvent::ChannelClosed
        | SubstreamEvent::CarrierLost => ALL,
        SubstreamEvent::CutOffDrained if state.write == W::CutOff => ALL,
        SubstreamEvent::Shutdown | SubstreamEvent::ConnectionClosing if state.write == W::Open => {
            WRITERS | DRIVER
        }
        SubstreamEvent::StopSending => match state.write {
            W::Open | W::Closing | W::CutOff | W::FinSent | W::FinDelivered => WRITERS | DRIVER,
            W::Stopped | W::Finished(_) => 0,
        },
        SubstreamEvent::FinAck | SubstreamEvent::FinAckTimeout => match state.write {
            W::FinSent | W::FinDelivered => WRITERS | DRIVER,
            _ => 0,
        },
        SubstreamEvent::NoFinAckExpected if state.write == W::FinDelivered => WRITERS | DRIVER,
        SubstreamEvent::FinWritten if state.write == W::Stopped => WRITERS | DRIVER,
        SubstreamEvent::Fin if !state.read.has_fin() => READER | DRIVER,
        SubstreamEvent::Stop if state.read == ReadState::Open => READER | DRIVER,
        SubstreamEvent::FinAckWritten if state.read == ReadState::FinReceived => DRIVER,
        _ => 0,
    }
}

/// Waiters that an event wakes although they continue to wait: a change of the write half wakes all
/// of its waiters, and after a shutdown a flush and a close still wait for the queue.
fn woken_for_nothing(event: SubstreamEvent) -> u8 {
    match event {
        SubstreamEvent::Shutdown | SubstreamEvent::ConnectionClosing => FLUSHER | CLOSER,
        _ => 0,
    }
}

#[derive(Debug, Default)]
struct Counter(AtomicUsize);

impl Wake for Counter {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// How a writer waits for its end: by `finish` or `shutdown()`, or by `stopped`.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Closer {
    Finish,
    Stopped,
}

/// Polls every role. Returns the roles that wait, and for each of them a counter of its wake-ups.
fn wait(shared: &Arc<Shared>, closer: Closer) -> (u8, HashMap<u8, Arc<Counter>>) {
    let mut counters: HashMap<u8, Arc<Counter>> = HashMap::new();
    let mut waiting = 0;
    for role in [CLOSER, READER, WRITER, FLUSHER] {
        let counter = Arc::<Counter>::default();
        let waker = Waker::from(Arc::clone(&counter));
        if is_waiting(shared, role, closer, &mut Context::from_waker(&waker)) {
            waiting |= role;
            counters.insert(role, counter);
        }
    }
    counters.insert(DRIVER, park_driver(shared));
    (waiting | DRIVER, counters)
}

/// The driver has serviced everything. The counter holds the number of its wake-ups.
fn park_driver(shared: &Arc<Shared>) -> Arc<Counter> {
    shared.begin_service();
    shared.siblings.take_ready(&mut VecDeque::new());
    let counter = Arc::<Counter>::default();
    shared
        .siblings
        .register_driver(&Waker::from(Arc::clone(&counter)));
    counter
}

fn is_waiting(shared: &Arc<Shared>, role: u8, closer: Closer, cx: &mut Context<'_>) -> bool {
    match role {
        READER => shared
            .poll_read_with(cx, |receive| receive.read_chunk(1))
            .is_pending(),
        WRITER => shared
            .poll_write_with(cx, |send| send.write(b"x"))
            .is_pending(),
        FLUSHER => shared.poll_flush(cx).is_pending(),
        _ if closer == Closer::Finish => shared.poll_finish(cx).is_pending(),
        _ => shared.poll_outcome(cx).is_pending(),
    }
}

/// The roles that were woken, each exactly once.
fn fired(counters: &HashMap<u8, Arc<Counter>>) -> u8 {
    let mut fired = 0;
    for (role, counter) in counters {
        match counter.0.load(Ordering::SeqCst) {
            0 => {}
            1 => fired |= role,
            times => panic!("role {role} was woken {times} times"),
        }
    }
    fired
}

/// A substream whose send buffer is full, after these events.
fn after(path: &[SubstreamEvent]) -> Arc<Shared> {
    let shared = shared();
    let mut cx = Context::from_waker(Waker::noop());
    while let Poll::Ready(written) = shared.poll_write_with(&mut cx, |send| send.write(&[0; 512])) {
        written.expect("it is open");
    }
    for event in path {
        if matches!(
            event,
            SubstreamEvent::FinWritten | SubstreamEvent::CutOffDrained
        ) {
            // FIN, or the RESET_STREAM of a close, is sent after the last byte.
            shared.update(|inner| inner.send.discard());
        }
        shared.apply(*event);
    }
    shared
}

/// Every reachable state of a substream, with a path to it.
fn reachable() -> Vec<(State, Vec<SubstreamEvent>)> {
    let mut found = vec![(State::INITIAL, Vec::new())];
    let mut next = 0;
    while let Some((state, path)) = found.get(next).cloned() {
        for event in EVENTS {
            let (after, _) = state.on(event);
            if found.iter().all(|(known, _)| *known != after) {
                let path = path.iter().copied().chain([event]).collect();
                found.push((after, path));
            }
        }
        next += 1;
    }
    found
}

/// Row R-10, for the states: exactly the waiters in the table are woken, each once, and no waiter
/// whose wait is over stays asleep.
#[test]
fn r10_every_event_wakes_exactly_whom_it_concerns() {
    let states = reachable();
    assert!(states.len() > 100, "{}", states.len());
    let mut waits = [0; 4];
    for (state, path) in &states {
        for event in EVENTS {
            for closer in [Closer::Finish, Closer::Stopped] {
                let shared = after(path);
                assert_eq!(shared.state(), *state);
                if event == SubstreamEvent::FinWritten
                    && (state.write != WriteState::Open || closer == Closer::Finish)
                {
                    shared.update(|inner| inner.send.discard());
                }
                if event == SubstreamEvent::CutOffDrained && state.write == WriteState::CutOff {
                    shared.update(|inner| inner.send.discard());
                }
                let (waiting, counters) = wait(&shared, closer);
                // Waiting by `finish` has shut the write half down.
                let state = shared.state();
                shared.apply(event);
                let context = format!("{event:?} in {state:?}, {closer:?}");
                let expected = woken(state, event) & waiting;
                assert_eq!(fired(&counters), expected, "{context}");
                let mut cx = Context::from_waker(Waker::noop());
                for (index, role) in [READER, WRITER, FLUSHER, CLOSER].into_iter().enumerate() {
                    if waiting & role == 0 {
                        continue;
                    }
                    waits[index] += 1;
                    let goes_on = is_waiting(&shared, role, closer, &mut cx);
                    let is_idle = expected & role == 0 || woken_for_nothing(event) & role != 0;
                    assert_eq!(goes_on, is_idle, "{role}: {context}");
                }
            }
        }
    }
    // Every role was covered.
    assert!(waits.iter().all(|count| *count > 50), "{waits:?}");
}

/// Row R-10, for the buffers.
#[test]
fn r10_what_happens_to_the_buffers_wakes_exactly_whom_it_concerns() {
    type Step = fn(&Arc<Shared>);
    fn sent(shared: &Arc<Shared>, least: usize) {
        let mut next = shared.take_data(usize::MAX, true).expect("it is queued");
        while shared.buffered() - next.length > least {
            shared.data_sent(next.chunk, next.length, None);
            next = shared.take_data(usize::MAX, true).expect("more is queued");
        }
        shared.data_sent(next.chunk, next.length, None);
    }
    let steps: [(&str, Step, u8); 10] = [
        (
            "payload arrives",
            |shared| {
                let receipt = shared.receive_payload(Bytes::from_static(b"x"));
                receipt.result.expect("room");
            },
            READER,
        ),
        (
            "a chunk of many goes out",
            |shared| {
                let next = shared.take_data(100, true).expect("it is queued");
                shared.data_sent(next.chunk, next.length, None);
            },
            0,
        ),
        (
            "half of the queue goes out",
            |shared| sent(shared, 512),
            WRITER,
        ),
        (
            "all of it goes out",
            |shared| sent(shared, 0),
            WRITER | FLUSHER,
        ),
        (
            "the carrier is busy",
            |shared| {
                let next = shared.take_data(100, true).expect("it is queued");
                shared.data_refused(next.chunk);
            },
            0,
        ),
        (
            "the peer grants",
            |shared| assert!(shared.granted(1 << 20, 1024)),
            DRIVER,
        ),
        (
            "the peer knows no credit",
            |shared| assert!(shared.credit_unsupported()),
            DRIVER,
        ),
        ("a grant goes out", |shared| shared.credit_sent(1 << 20), 0),
        (
            "the reader is dropped",
            Shared::drop_reader,
            READER | DRIVER,
        ),
        (
            "the writer is dropped",
            Shared::drop_writer,
            WRITERS | DRIVER,
        ),
    ];
    for (what, step, expected) in steps {
        let shared = after(&[]);
        let (waiting, counters) = wait(&shared, Closer::Stopped);
        assert_eq!(waiting, ALL);
        step(&shared);
        assert_eq!(fired(&counters), expected, "{what}");
    }
}

/// A read wakes the driver if it makes a grant due, and no other waiter.
#[test]
fn r10_a_read_wakes_the_driver_once_a_grant_is_due() {
    for by_look in [false, true] {
        let shared = after(&[]);
        shared.credit_sent(1024);
        for _ in 0..2 {
            let payload = Bytes::from(vec![1; 600]);
            shared.receive_payload(payload).result.expect("room");
        }
        let mut cx = Context::from_waker(Waker::noop());
        let mut take = |length| {
            let counters = HashMap::from([(DRIVER, park_driver(&shared))]);
            if by_look {
                let look = shared.poll_read_with(&mut cx, super::ReceiveBuffer::peek);
                assert!(matches!(look, Poll::Ready(Ok(Some(_)))));
                assert_eq!(fired(&counters), 0, "a look gives nothing");
                shared.consume_received(length);
            } else {
                let read = shared.poll_read_with(&mut cx, |receive| receive.read_chunk(length));
                assert!(matches!(read, Poll::Ready(Ok(Some(_)))));
            }
            fired(&counters)
        };
        assert_eq!(take(500), 0, "less than half of the window");
        assert_eq!(take(100), DRIVER);
    }
}
