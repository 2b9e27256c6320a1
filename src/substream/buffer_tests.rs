//! Tests of the send and the receive buffer.

use bytes::Bytes;

use super::recv::{FRAME_COST, MIN_WINDOW, Overrun, ReceiveBuffer};
use super::send::{Chunk, INITIAL_CREDIT, SendBuffer};
use crate::message::{DATA_HEADROOM, DATA_TAILROOM};

const CAPACITY: usize = 64 * 1024;
const CHUNK: usize = 8000;

fn send_buffer() -> SendBuffer {
    SendBuffer::new(CAPACITY, CHUNK)
}

/// Takes and sends everything that credit allows; returns the lengths of the payloads.
fn drain(buffer: &mut SendBuffer, sent: &mut Vec<u8>) -> Vec<usize> {
    let mut lengths = Vec::new();
    while let Some((chunk, length)) = buffer.take(CHUNK) {
        match &chunk {
            Chunk::Copied(copied) => {
                sent.extend_from_slice(&copied.buf[copied.start..copied.start + length]);
            }
            Chunk::Slice(slice) => sent.extend_from_slice(&slice[..length]),
        }
        lengths.push(length);
        buffer.sent(chunk, length);
    }
    lengths
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|i| (i % 251) as u8).collect()
}

#[test]
fn a_write_takes_what_fits_and_refuses_the_rest() {
    let mut buffer = send_buffer();
    assert_eq!(buffer.write(&pattern(CAPACITY + 5)), CAPACITY);
    assert_eq!(buffer.queued(), CAPACITY);
    assert!(!buffer.has_room());
    assert!(!buffer.is_half_empty());
    assert_eq!(buffer.write(b"more"), 0);
}

#[test]
fn chunks_are_full_and_leave_room_for_a_header() {
    let mut buffer = send_buffer();
    buffer.grant(u64::MAX);
    let data = pattern(20_000);
    buffer.write(&data);
    // The first leaves room in its frame for our credit, which rides on it in any case.
    let first = CHUNK - DATA_TAILROOM;
    let (chunk, length) = buffer.take(CHUNK).expect("data is queued");
    let Chunk::Copied(copied) = &chunk else {
        panic!("a write is copied");
    };
    assert_eq!((copied.start, length), (DATA_HEADROOM, first));
    assert!(copied.buf.capacity() >= DATA_HEADROOM + first + DATA_TAILROOM);
    buffer.put_back(chunk);
    let mut sent = Vec::new();
    assert_eq!(
        drain(&mut buffer, &mut sent),
        [first, CHUNK, 20_000 - first - CHUNK]
    );
    assert_eq!(sent, data);
    assert_eq!(buffer.queued(), 0);
}

#[test]
fn small_writes_share_a_chunk() {
    let mut buffer = send_buffer();
    for byte in 0..100 {
        buffer.write(&[byte]);
    }
    let mut sent = Vec::new();
    assert_eq!(drain(&mut buffer, &mut sent), [100]);
    assert_eq!(sent, pattern(100));
}

#[test]
fn initial_credit_holds_back_until_it_is_lifted_or_granted() {
    let mut buffer = send_buffer();
    buffer.write(&pattern(40_000));
    let mut sent = Vec::new();
    drain(&mut buffer, &mut sent);
    assert_eq!(sent.len() as u64, INITIAL_CREDIT);
    assert!(buffer.waits_for_first_credit());
    assert!(!buffer.is_sendable());

    buffer.grant(20_000);
    assert!(!buffer.waits_for_first_credit());
    drain(&mut buffer, &mut sent);
    assert_eq!(sent.len(), 20_000);
    assert!(
        !buffer.lift_initial_limit(),
        "a granted credit is not lifted"
    );

    buffer.grant(1_000_000);
    drain(&mut buffer, &mut sent);
    assert_eq!(sent, pattern(40_000));

    let mut unlimited = send_buffer();
    unlimited.write(&pattern(CAPACITY));
    assert!(unlimited.lift_initial_limit());
    assert!(!unlimited.lift_initial_limit());
    let mut sent = Vec::new();
    drain(&mut unlimited, &mut sent);
    assert_eq!(sent.len(), CAPACITY);
}

#[test]
fn a_grant_never_falls() {
    let mut buffer = send_buffer();
    buffer.write(&pattern(30_000));
    buffer.grant(10_000);
    buffer.grant(5_000);
    buffer.grant(10_000);
    let mut sent = Vec::new();
    drain(&mut buffer, &mut sent);
    assert_eq!(sent.len(), 10_000);
}

/// A grant below what was sent under another regime allows nothing, and does not wrap around.
#[test]
fn a_grant_below_what_was_sent_allows_nothing() {
    let mut buffer = send_buffer();
    buffer.write(&pattern(CAPACITY));
    buffer.lift_initial_limit();
    let (chunk, length) = buffer.take(CHUNK).expect("data is queued");
    buffer.sent(chunk, length);
    buffer.grant(1);
    assert!(!buffer.is_sendable());
    assert!(buffer.take(CHUNK).is_none());
}

/// Our credit rides behind the payload of the first chunk, which must not be cut for it.
#[test]
fn the_first_chunk_goes_out_whole() {
    let mut buffer = SendBuffer::new(CAPACITY, 16_370);
    buffer.write(&pattern(CAPACITY));
    let (chunk, length) = buffer.take(16_370).expect("data is queued");
    assert_eq!(chunk.len(), length);
    assert!(length as u64 <= INITIAL_CREDIT);
    buffer.sent(chunk, length);
    buffer.grant(u64::MAX);
    let (_, length) = buffer.take(16_370).expect("data is queued");
    assert_eq!(length, 16_370, "later chunks use the whole frame");
}

#[test]
fn a_chunk_that_was_put_back_is_first_again() {
    let mut buffer = send_buffer();
    buffer.grant(u64::MAX);
    let data = pattern(CHUNK + 10);
    buffer.write(&data);
    let (chunk, _) = buffer.take(CHUNK).expect("data is queued");
    assert_eq!(
        buffer.queued(),
        data.len(),
        "what the driver holds counts as queued"
    );
    buffer.put_back(chunk);
    let mut sent = Vec::new();
    drain(&mut buffer, &mut sent);
    assert_eq!(sent, data);
}

#[test]
fn discard_while_the_driver_holds_a_chunk_leaves_nothing() {
    let mut buffer = send_buffer();
    buffer.write(&pattern(3 * CHUNK));
    let held = buffer.take(CHUNK).expect("data is queued");
    buffer.discard();
    assert_eq!(buffer.queued(), 0);
    // What `Shared` does when the driver comes back with it.
    drop(held);
    buffer.discard();
    assert_eq!(buffer.queued(), 0);
    assert!(!buffer.is_sendable());
    assert!(buffer.take(CHUNK).is_none());
}

#[test]
fn an_idle_buffer_keeps_no_memory() {
    let mut buffer = send_buffer();
    buffer.grant(u64::MAX);
    let mut sent = Vec::new();
    for _ in 0..3 {
        buffer.write(&pattern(CAPACITY));
        drain(&mut buffer, &mut sent);
        let idle = format!("{buffer:?}");
        assert!(
            idle.contains("spare: None") && idle.contains("chunks: []"),
            "{idle}"
        );
    }
}

#[test]
fn half_of_the_buffer_is_free_before_a_writer_is_woken() {
    let mut buffer = send_buffer();
    buffer.grant(u64::MAX);
    buffer.write(&pattern(CAPACITY));
    while !buffer.is_half_empty() {
        let (chunk, length) = buffer.take(CHUNK).expect("data is queued");
        buffer.sent(chunk, length);
    }
    assert!(buffer.queued() <= CAPACITY / 2);
    assert!(buffer.queued() > CAPACITY / 2 - CHUNK);
}

/// A peer that grants a little less than is queued must not make the buffer grow with every byte
/// of the stream.
#[test]
fn a_chunk_that_never_empties_does_not_grow() {
    let mut buffer = send_buffer();
    let data = pattern(1000);
    let mut granted = 0;
    buffer.write(&data);
    for _ in 0..1000 {
        buffer.write(&data);
        granted += 1000;
        buffer.grant(granted);
        let mut sent = Vec::new();
        drain(&mut buffer, &mut sent);
        assert_eq!(buffer.queued(), 1000);
        if let Some((chunk, _)) = buffer.take(CHUNK) {
            panic!("more than granted: {}", Chunk::len(&chunk));
        }
        assert!(
            buffer.capacity_held() <= 4 * CHUNK,
            "{}",
            buffer.capacity_held()
        );
    }
}

/// More than enough left to promise.
const ROOM: u64 = 1 << 40;

fn received() -> ReceiveBuffer {
    ReceiveBuffer::new(1024 * 1024, 0)
}

fn push(buffer: &mut ReceiveBuffer, data: &[u8]) {
    assert_eq!(
        buffer.push(Bytes::copy_from_slice(data), true, false),
        Ok(())
    );
}

fn read_all(buffer: &mut ReceiveBuffer) -> Vec<u8> {
    let mut out = Vec::new();
    buffer.read(|chunk| {
        out.extend_from_slice(chunk);
        chunk.len()
    });
    out
}

/// Row L-26: a ceiling that counts bytes only would let frames of one byte cost 64 times as much.
#[test]
fn l26_tiny_payloads_are_copied_together_and_cost_little() {
    let mut buffer = received();
    let data = pattern(100_000);
    for byte in &data {
        push(&mut buffer, std::slice::from_ref(byte));
    }
    assert_eq!(buffer.buffered(), 100_000);
    assert!(
        buffer.cost() < 100_000 + 26 * FRAME_COST,
        "{}",
        buffer.cost()
    );
    assert_eq!(read_all(&mut buffer), data);
    assert_eq!(buffer.cost(), 0);
}

#[test]
fn large_payloads_are_kept_as_they_came_and_cost_their_frame() {
    let mut buffer = received();
    let payload = Bytes::from(pattern(5000));
    assert_eq!(buffer.push(payload.clone(), true, false), Ok(()));
    assert_eq!(buffer.cost(), 5000 + FRAME_COST);
    let read = buffer.read_chunk(usize::MAX).expect("a payload is queued");
    assert_eq!(read.as_ptr(), payload.as_ptr(), "not copied");
}

/// The bound that `Config::validate` relies on: a peer within its window meets no ceiling.
#[test]
fn the_worst_cut_costs_a_quarter_more_than_its_bytes() {
    let mut buffer = received();
    while buffer.buffered() < 500_000 {
        push(&mut buffer, &[1]);
        push(&mut buffer, &pattern(513));
    }
    assert!(
        buffer.cost() <= buffer.buffered() + buffer.buffered() / 4,
        "{}",
        buffer.cost()
    );
}

#[test]
fn a_read_crosses_chunks_and_keeps_the_order() {
    let mut buffer = received();
    let data = pattern(10_000);
    let mut rest = &data[..];
    for length in [1, 700, 3, 2000, 5, 5, 1000, 512, 513] {
        let (now, later) = rest.split_at(length);
        push(&mut buffer, now);
        rest = later;
    }
    let total = data.len() - rest.len();
    let mut out = Vec::new();
    let mut room = 2500;
    buffer.read(|chunk| {
        let taken = chunk.len().min(room);
        out.extend_from_slice(&chunk[..taken]);
        room -= taken;
        taken
    });
    assert_eq!(out.len(), 2500);
    while let Some(chunk) = buffer.read_chunk(300) {
        assert!(chunk.len() <= 300 && !chunk.is_empty());
        out.extend_from_slice(&chunk);
    }
    assert_eq!(out, &data[..total]);
    assert_eq!((buffer.buffered(), buffer.cost()), (0, 0));
}

#[test]
fn credit_is_due_at_first_and_then_at_half_of_the_window() {
    let mut buffer = ReceiveBuffer::new(1000, 0);
    assert!(
        buffer.credit_offer(ROOM, false).is_some(),
        "the peer was told nothing yet"
    );
    assert_eq!(buffer.credit_offer(ROOM, true).unwrap_or_default(), 1000);
    buffer.granted(1000);
    assert!(buffer.credit_offer(ROOM, false).is_none());
    push(&mut buffer, &pattern(1000));
    assert!(
        buffer.credit_offer(ROOM, false).is_none(),
        "received is not consumed"
    );
    buffer.read_chunk(499);
    assert!(buffer.credit_offer(ROOM, false).is_none());
    buffer.read_chunk(1);
    assert!(buffer.credit_offer(ROOM, false).is_some());
    assert_eq!(buffer.credit_offer(ROOM, true).unwrap_or_default(), 1500);
    buffer.granted(1500);
    buffer.granted(1200);
    assert_eq!(
        buffer.credit_offer(ROOM, true).unwrap_or_default(),
        1500,
        "an offer never falls"
    );
}

#[test]
fn a_window_grows_while_the_peer_waits_for_each_grant_and_no_further_than_its_cap() {
    let mut buffer = ReceiveBuffer::new(1000, 6000);
    buffer.granted(1000);
    let mut windows = Vec::new();
    // A long path: what was sent on one grant is read, and the next granted, long before the peer
    // learns of that.
    let mut known = 1000;
    for _ in 0..40 {
        let mut next_known = known;
        while buffer.received < known {
            let frame = (known - buffer.received).min(300);
            push(&mut buffer, &pattern(frame as usize));
            read_all(&mut buffer);
            if let Some(offer) = buffer.credit_offer(ROOM, false) {
                buffer.granted(offer);
                next_known = offer;
            }
        }
        known = next_known;
        windows.push(buffer.window);
    }
    assert!(windows.is_sorted(), "{windows:?}");
    assert!(
        windows.contains(&2000) && windows.contains(&4000),
        "{windows:?}"
    );
    assert_eq!(windows.last(), Some(&6000));
}

#[test]
fn a_peer_that_is_not_held_up_leaves_the_window_alone() {
    let mut buffer = ReceiveBuffer::new(1000, 100_000);
    buffer.granted(1000);
    for _ in 0..100 {
        // Never ends a frame where a grant ends.
        push(&mut buffer, &pattern(333));
        read_all(&mut buffer);
        if let Some(offer) = buffer.credit_offer(ROOM, false) {
            buffer.granted(offer);
        }
    }
    assert_eq!(buffer.window, 1000);
}

#[test]
fn a_slow_reader_is_no_reason_to_grow() {
    let mut buffer = ReceiveBuffer::new(1000, 100_000);
    buffer.granted(1000);
    for _ in 0..20 {
        // All that is granted has come before the reader has read half of it.
        let missing = buffer.granted - buffer.received;
        push(&mut buffer, &pattern(missing as usize));
        while buffer.credit_offer(ROOM, false).is_none() {
            buffer.read_chunk(100);
        }
        let offer = buffer.credit_offer(ROOM, false).unwrap_or_default();
        buffer.granted(offer);
    }
    assert_eq!(buffer.window, 1000);
}

#[test]
fn the_window_is_what_the_connection_can_afford() {
    let mut buffer = ReceiveBuffer::new(1 << 20, 1 << 20);
    // The first grant takes an eighth of what is left, and a minimum in any case.
    assert_eq!(buffer.credit_offer(4 << 20, true), Some(1 << 19));
    assert_eq!(buffer.credit_offer(0, true), Some(MIN_WINDOW));
    buffer.granted(MIN_WINDOW);
    assert_eq!(buffer.credit_offer(0, false), None);
    push(&mut buffer, &pattern(MIN_WINDOW as usize / 2));
    assert_eq!(buffer.promised(), MIN_WINDOW);
    assert_eq!(
        buffer.credit_offer(0, false),
        None,
        "received is not consumed"
    );
    read_all(&mut buffer);
    // What was read can be granted again, and more once others give theirs back.
    let consumed = MIN_WINDOW / 2;
    assert_eq!(buffer.credit_offer(0, false), Some(consumed + MIN_WINDOW));
    assert_eq!(
        buffer.credit_offer(4 << 20, false),
        Some(consumed + (1 << 20))
    );
}

#[test]
fn what_will_not_come_is_no_longer_promised() {
    let mut buffer = ReceiveBuffer::new(10_000, 0);
    buffer.granted(10_000);
    push(&mut buffer, &pattern(600));
    assert_eq!(buffer.promised(), 10_000);
    buffer.complete();
    assert_eq!(buffer.promised(), 600);
    read_all(&mut buffer);
    assert_eq!(buffer.promised(), 0);
    assert_eq!(buffer.credit_offer(ROOM, false), None);
}

#[test]
fn more_than_granted_is_an_overrun_only_for_those_who_know() {
    let mut buffer = ReceiveBuffer::new(20_000, 0);
    buffer.granted(20_000);
    assert_eq!(
        buffer.push(Bytes::from(pattern(20_000)), true, true),
        Ok(())
    );
    assert_eq!(
        buffer.push(Bytes::from_static(b"x"), true, true),
        Err(Overrun)
    );

    let mut ignorant = ReceiveBuffer::new(20_000, 0);
    ignorant.granted(20_000);
    assert_eq!(
        ignorant.push(Bytes::from(pattern(30_000)), true, false),
        Ok(())
    );

    let mut untold = ReceiveBuffer::new(20_000, 0);
    assert_eq!(
        untold.push(Bytes::from(pattern(30_000)), true, true),
        Ok(())
    );

    // Sent before a grant that is smaller than what may be sent without one.
    let initial = INITIAL_CREDIT as usize;
    let mut small = ReceiveBuffer::new(1024, 0);
    small.granted(1024);
    assert_eq!(
        small.push(Bytes::from(pattern(initial)), true, true),
        Ok(())
    );
    assert_eq!(
        small.push(Bytes::from_static(b"x"), true, true),
        Err(Overrun)
    );
}

#[test]
fn payload_that_nobody_wants_counts_as_consumed() {
    let mut buffer = ReceiveBuffer::new(1000, 0);
    buffer.granted(1000);
    assert_eq!(buffer.push(Bytes::from(pattern(700)), false, true), Ok(()));
    assert_eq!((buffer.buffered(), buffer.cost()), (0, 0));
    assert_eq!(buffer.credit_offer(ROOM, true).unwrap_or_default(), 1700);
}

#[test]
fn discard_frees_everything_and_counts_it_as_consumed() {
    let mut buffer = ReceiveBuffer::new(10_000, 0);
    buffer.granted(10_000);
    push(&mut buffer, &pattern(600));
    push(&mut buffer, &pattern(10));
    buffer.discard();
    assert_eq!((buffer.buffered(), buffer.cost()), (0, 0));
    assert_eq!(buffer.credit_offer(ROOM, true).unwrap_or_default(), 10_610);
    assert!(read_all(&mut buffer).is_empty());
}

/// Rows F-1 and F-3: whole frames are slices of what was written, wherever it was cut.
#[test]
fn f3_whole_frames_of_bytes_stay_where_they_lie() {
    let mut buffer = send_buffer();
    buffer.grant(u64::MAX);
    let data = Bytes::from(pattern(3 * CHUNK + 100));
    let mut rest = data.clone();
    assert_eq!(buffer.write_bytes(&mut rest), 3 * CHUNK);
    assert_eq!(buffer.write_bytes(&mut rest), 100);
    assert!(rest.is_empty());
    assert_eq!(buffer.queued(), data.len());
    let first = CHUNK - DATA_TAILROOM;
    let mut offset = 0;
    for expected in [first, CHUNK, CHUNK, DATA_TAILROOM, 100] {
        let (chunk, length) = buffer.take(CHUNK).expect("data is queued");
        assert_eq!(length, expected);
        if let Chunk::Slice(slice) = &chunk {
            assert_eq!(slice.as_ptr(), data[offset..].as_ptr(), "at {offset}");
        } else {
            assert_eq!(length, 100, "only the rest is copied");
        }
        offset += length;
        buffer.sent(chunk, length);
    }
    assert_eq!(buffer.queued(), 0);
}

#[test]
fn bytes_fill_the_frame_that_small_writes_began() {
    let mut buffer = send_buffer();
    buffer.grant(u64::MAX);
    buffer.write(&pattern(CHUNK));
    let (chunk, length) = buffer.take(CHUNK).expect("data is queued");
    buffer.sent(chunk, length);
    let mut sent = Vec::new();
    drain(&mut buffer, &mut sent);
    sent.clear();
    let data = pattern(10 + 2 * CHUNK + 5);
    buffer.write(&data[..10]);
    let mut rest = Bytes::copy_from_slice(&data[10..]);
    while !rest.is_empty() {
        assert_ne!(buffer.write_bytes(&mut rest), 0);
    }
    assert_eq!(drain(&mut buffer, &mut sent), [CHUNK, CHUNK, 15]);
    assert_eq!(sent, data);
}

/// What is left of the room is less than a frame: taking it would cost a copy and a short frame.
#[test]
fn bytes_wait_for_room_for_a_whole_frame() {
    let mut buffer = send_buffer();
    buffer.grant(u64::MAX);
    let data = pattern(2 * CAPACITY);
    let mut rest = Bytes::copy_from_slice(&data);
    assert_eq!(buffer.write_bytes(&mut rest), CAPACITY / CHUNK * CHUNK);
    assert!(buffer.has_room());
    assert_eq!(buffer.write_bytes(&mut rest), 0);
    let mut sent = Vec::new();
    while !rest.is_empty() {
        drain(&mut buffer, &mut sent);
        assert_ne!(
            buffer.write_bytes(&mut rest),
            0,
            "an empty buffer takes some"
        );
    }
    drain(&mut buffer, &mut sent);
    assert_eq!(sent, data);

    let mut small = SendBuffer::new(100, CHUNK);
    small.grant(u64::MAX);
    let mut rest = Bytes::from(pattern(2 * CHUNK));
    assert_eq!(small.write_bytes(&mut rest), 100);
    assert_eq!(small.write_bytes(&mut rest), 0);
    let mut sent = Vec::new();
    assert_eq!(drain(&mut small, &mut sent), [100]);
}

#[test]
fn a_discard_lets_go_of_bytes() {
    let mut buffer = send_buffer();
    let data = Bytes::from(pattern(3 * CHUNK));
    buffer.write_bytes(&mut data.clone());
    assert!(!data.is_unique());
    buffer.discard();
    assert!(data.is_unique());
    assert_eq!(buffer.queued(), 0);
}
