use bytes::Bytes;

use super::{Chunk, INITIAL_CREDIT, SendBuffer};
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
    // The first payload leaves room in its frame for our credit, which always accompanies it.
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

/// A grant below the bytes already sent allows nothing, and does not wrap around.
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

/// Our credit follows the payload of the first chunk, which must not be split for it.
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
    // As `Shared` does when the driver returns the chunk.
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

/// Rows F-1 and F-3: full frames are slices of the written buffer, wherever it was split.
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

/// The remaining room is less than a frame: using it would cost a copy and a short frame.
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

#[test]
fn reports_follow_writes_credit_and_sends() {
    let mut buffer = send_buffer();
    assert!(!buffer.is_sendable() && !buffer.waits_for_credit());
    assert!(!buffer.waits_for_first_credit() && !buffer.has_grant());
    assert_eq!((buffer.total_sent(), buffer.granted_credit()), (0, None));

    buffer.write(&pattern(INITIAL_CREDIT as usize + 100));
    assert!(buffer.is_sendable() && !buffer.waits_for_credit());
    assert!(!buffer.waits_for_first_credit(), "there is credit");
    let mut sent = Vec::new();
    drain(&mut buffer, &mut sent);
    assert_eq!(buffer.total_sent(), INITIAL_CREDIT);
    assert!(!buffer.is_sendable() && buffer.waits_for_credit());
    assert!(buffer.waits_for_first_credit() && !buffer.has_grant());

    buffer.grant(INITIAL_CREDIT + 40);
    assert!(buffer.has_grant() && buffer.is_sendable());
    assert_eq!(buffer.granted_credit(), Some(40));
    drain(&mut buffer, &mut sent);
    assert_eq!(buffer.total_sent(), INITIAL_CREDIT + 40);
    assert_eq!(buffer.granted_credit(), Some(0));
    assert!(buffer.waits_for_credit() && !buffer.waits_for_first_credit());

    buffer.grant(INITIAL_CREDIT + 100);
    drain(&mut buffer, &mut sent);
    assert_eq!((buffer.queued(), buffer.granted_credit()), (0, Some(0)));
    assert!(
        !buffer.is_sendable() && !buffer.waits_for_credit(),
        "nothing waits"
    );
    assert_eq!(sent, pattern(INITIAL_CREDIT as usize + 100));
}

#[test]
fn the_payload_of_new_chunks_can_change() {
    let mut buffer = send_buffer();
    buffer.set_chunk_payload(1000);
    buffer.write(&pattern(2500));
    let mut sent = Vec::new();
    let first = 1000 - DATA_TAILROOM;
    let lengths = drain(&mut buffer, &mut sent);
    assert_eq!(lengths, [first, 1000, 1500 - first]);
}

#[test]
fn a_chunk_that_was_sent_lends_its_memory_to_the_next() {
    let begins_at = |chunk: &Chunk| match chunk {
        Chunk::Copied(copied) => copied.buf.as_ptr(),
        Chunk::Slice(_) => panic!("it was copied"),
    };
    let mut buffer = send_buffer();
    buffer.grant(1 << 20);
    buffer.write(&pattern(2 * CHUNK));
    let (chunk, length) = buffer.take(CHUNK).expect("data is queued");
    let memory = begins_at(&chunk);
    buffer.sent(chunk, length);
    // The second chunk is full, and a third begins.
    buffer.write(&pattern(CHUNK));
    let mut later = Vec::new();
    while let Some((chunk, length)) = buffer.take(CHUNK) {
        later.push(begins_at(&chunk));
        buffer.sent(chunk, length);
    }
    assert!(later.contains(&memory), "{memory:?} is not among {later:?}");
}
