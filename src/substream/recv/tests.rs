use bytes::Bytes;

use super::{
    FRAME_COST, MIN_FIRST_WINDOW, MIN_WINDOW, Overrun, ReceiveBuffer, Room, SMALL, TAIL, unpinned,
};
use crate::message::{FrameDecoder, Message};
use crate::substream::INITIAL_CREDIT;

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|i| (i % 251) as u8).collect()
}

/// More uncommitted bytes than any test needs.
const ROOM: Room = Room {
    uncommitted: 1 << 41,
    ceiling: 1 << 41,
};

/// So many bytes of 32 MiB are not committed.
fn room(uncommitted: u64) -> Room {
    Room {
        uncommitted,
        ceiling: 32 << 20,
    }
}

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

/// Coalesced payloads make chunks of `TAIL` bytes; one byte more starts the next chunk.
#[test]
fn pieces_of_tiny_payloads_are_full_and_no_fuller() {
    let mut buffer = received();
    for _ in 0..TAIL / SMALL {
        push(&mut buffer, &pattern(SMALL));
    }
    push(&mut buffer, &[1]);
    let read = buffer.read_chunk(usize::MAX).expect("a full piece");
    assert_eq!(read.len(), TAIL);
    assert_eq!(buffer.read_chunk(usize::MAX).expect("the rest").len(), 1);
    // A payload that does not fit entirely starts the next chunk.
    push(&mut buffer, &pattern(SMALL - 1));
    for _ in 0..TAIL / SMALL {
        push(&mut buffer, &pattern(SMALL));
    }
    let read = buffer.read_chunk(usize::MAX).expect("a piece");
    assert_eq!(read.len(), TAIL - 1);
    assert_eq!(
        buffer.read_chunk(usize::MAX).expect("the rest").len(),
        SMALL
    );
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

/// The bound that `Config::validate` relies on: a peer within its window reaches no ceiling.
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
    // A long path: the data of one grant is read, and the next grant is sent, long before the peer
    // receives it.
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
        // No frame ends where a grant ends.
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
        // The whole grant has arrived before the reader has read half of it.
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
    // The first grant takes a small share of the uncommitted bytes, and always a minimum.
    assert_eq!(buffer.credit_offer(room(32 << 20), true), Some(1 << 16));
    assert_eq!(buffer.credit_offer(room(0), true), Some(MIN_FIRST_WINDOW));
    buffer.granted(MIN_FIRST_WINDOW);
    // A negotiation is read, and no data after it.
    push(&mut buffer, &pattern(29));
    read_all(&mut buffer);
    assert_eq!(buffer.credit_offer(room(18 << 20), false), None);
    let mut buffer = ReceiveBuffer::new(1 << 20, 1 << 20);
    buffer.granted(MIN_WINDOW);
    assert_eq!(buffer.credit_offer(room(0), false), None);
    push(&mut buffer, &pattern(MIN_WINDOW as usize / 2));
    assert_eq!(buffer.committed(), MIN_WINDOW);
    assert_eq!(
        buffer.credit_offer(room(0), false),
        None,
        "received is not consumed"
    );
    read_all(&mut buffer);
    // Consumed bytes can be granted again, and more once other substreams release theirs.
    let consumed = MIN_WINDOW / 2;
    assert_eq!(
        buffer.credit_offer(room(0), false),
        Some(consumed + MIN_WINDOW)
    );
    assert_eq!(
        buffer.credit_offer(room(20 << 20), false),
        Some(consumed + (1 << 20))
    );
}

/// What every substream may always be granted is not taken from the others: the sum of the rest
/// stays below the ceiling however many there are, and idle ones leave half of it.
#[test]
fn any_number_of_idle_substreams_leaves_half_of_the_ceiling() {
    const CEILING: u64 = 32 << 20;
    let mut committed = 0;
    let mut idle = Vec::new();
    for _ in 0..20_000 {
        let mut buffer = ReceiveBuffer::new(1 << 20, 1 << 20);
        let offer = buffer.credit_offer(room(CEILING - committed), true);
        buffer.granted(offer.expect("a first grant"));
        committed += buffer.committed_beyond_minimum();
        idle.push(buffer);
    }
    assert!(committed <= CEILING / 2, "{committed}");
    assert!(idle.iter().all(|buffer| buffer.granted >= MIN_FIRST_WINDOW));
    let last = idle.last().expect("there are some");
    assert_eq!(last.granted, MIN_FIRST_WINDOW);
    assert_eq!(last.committed_beyond_minimum(), 0);
}

/// Substreams that carry a little and keep their last grant leave something to one that carries
/// more, and so at each level.
#[test]
fn the_more_was_read_the_more_of_the_ceiling_can_be_granted() {
    const CEILING: u64 = 32 << 20;
    let mut committed = 0;
    let mut read_once = |length: u64| {
        let mut buffer = ReceiveBuffer::new(1 << 20, 16 << 20);
        (buffer.granted, buffer.received, buffer.consumed) = (length, length, length);
        let offer = buffer.credit_offer(room(CEILING - committed), true);
        buffer.granted(offer.expect("a grant"));
        committed += buffer.committed_beyond_minimum();
        (buffer.committed(), committed)
    };
    let mut left = CEILING;
    for length in [200_000, 2 << 20, 20 << 20] {
        left /= 2;
        let (first, _) = read_once(length);
        assert_eq!(first, 1 << 20, "after {length} bytes");
        for _ in 0..200 {
            let (window, committed) = read_once(length);
            assert!(window >= MIN_WINDOW && committed <= CEILING - left);
        }
        let (last, _) = read_once(length);
        assert_eq!(last, MIN_WINDOW, "after {length} bytes");
    }
}

/// A ceiling of which nothing can be divided is no reason to panic.
#[test]
fn a_window_without_a_ceiling_is_the_minimum() {
    for ceiling in [0, 1, 511] {
        let mut buffer = ReceiveBuffer::new(1 << 20, 1 << 20);
        let none = Room {
            uncommitted: ceiling,
            ceiling,
        };
        assert_eq!(buffer.credit_offer(none, true), Some(MIN_FIRST_WINDOW));
        buffer.consumed = u64::MAX - MIN_WINDOW;
        assert_eq!(buffer.affordable_window(none), MIN_WINDOW + ceiling / 2);
    }
}

#[test]
fn what_will_not_come_is_no_longer_promised() {
    let mut buffer = ReceiveBuffer::new(10_000, 0);
    buffer.granted(10_000);
    push(&mut buffer, &pattern(600));
    assert_eq!(buffer.committed(), 10_000);
    buffer.complete();
    assert_eq!(buffer.committed(), 600);
    read_all(&mut buffer);
    assert_eq!(buffer.committed(), 0);
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

    // Initial data, sent before a grant that is smaller than the initial credit.
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

/// Memory kept alive for a reader that reads nothing, decoded as the driver does it.
fn kept(message: Vec<u8>) -> Vec<(usize, bool)> {
    let message = Bytes::from(message);
    let range = message.as_ptr_range();
    let mut decoder = FrameDecoder::new();
    decoder.push(message);
    let mut kept = Vec::new();
    while let Some(message) = decoder.next_message().expect("good frames") {
        let payload = unpinned(message.payload, decoder.backing());
        kept.push((payload.len(), range.contains(&payload.as_ptr())));
    }
    kept
}

#[test]
fn a_small_payload_does_not_keep_a_large_message() {
    let frame = |len| Message::data(Bytes::from(vec![7; len])).encode();
    // One frame, and as many empty ones as fit after it.
    let mut message = frame(600).to_vec();
    message.resize(60_000, 0);
    assert_eq!(kept(message)[0], (600, false));
    // A quarter of the message may be pinned.
    let message = [frame(1000), frame(1000), frame(1000)].concat();
    assert_eq!(kept(message), [(1000, true); 3]);
}

#[test]
fn a_frame_that_came_in_parts_keeps_its_own_bytes_only() {
    let frame = Message::data(Bytes::from(vec![7; 1000])).encode();
    let (head, tail) = frame.split_at(500);
    let mut decoder = FrameDecoder::new();
    decoder.push(Bytes::copy_from_slice(head));
    assert_eq!(decoder.next_message(), Ok(None));
    // The rest of the frame precedes many empty frames.
    let mut message = tail.to_vec();
    message.resize(60_000, 0);
    decoder.push(Bytes::from(message));
    let message = decoder.next_message().expect("a frame").expect("whole");
    assert!(decoder.backing() <= frame.len());
    assert_eq!(message.payload.len(), 1000);
}

/// The bound itself: a payload of a quarter of its message stays a slice; with a byte less it is
/// copied.
#[test]
fn a_small_payload_is_one_of_less_than_a_quarter_of_its_message() {
    let message = Bytes::from(pattern(40_000));
    let is_kept = |length: usize| {
        let payload = message.slice(100..100 + length);
        unpinned(payload.clone(), message.len()).as_ptr() == payload.as_ptr()
    };
    assert!(is_kept(10_000) && is_kept(30_000));
    assert!(!is_kept(9_999) && !is_kept(SMALL + 1));
    // Copied when it is queued, so not copied twice.
    assert!(is_kept(SMALL));
}

#[test]
fn a_look_takes_nothing_and_a_skip_takes_what_there_is() {
    let mut buffer = received();
    assert_eq!(buffer.peek(), None);
    assert_eq!(buffer.skip(10), 0);
    let payload = Bytes::from(pattern(600));
    assert_eq!(buffer.push(payload.clone(), true, false), Ok(()));
    push(&mut buffer, b"tail");
    let seen = buffer.peek().expect("a payload");
    assert_eq!(
        (seen.as_ptr(), seen.len(), buffer.buffered()),
        (payload.as_ptr(), 600, 604)
    );
    assert_eq!((buffer.skip(250), buffer.buffered()), (250, 354));
    assert_eq!(buffer.peek(), Some(payload.slice(250..)));
    // Past the end of a payload, then past the end of all.
    assert_eq!((buffer.skip(352), buffer.buffered()), (352, 2));
    assert_eq!(buffer.peek(), Some(Bytes::from_static(b"il")));
    assert_eq!((buffer.skip(100), buffer.buffered()), (2, 0));
    assert_eq!(buffer.peek(), None);
}

#[test]
fn a_payload_that_is_read_whole_is_gone_and_memory_with_the_last() {
    let mut buffer = received();
    for _ in 0..100 {
        push(&mut buffer, &pattern(1000));
    }
    assert_eq!(buffer.cost(), 100 * (1000 + FRAME_COST));
    assert_eq!(buffer.read_chunk(1000).expect("a payload").len(), 1000);
    assert_eq!(buffer.cost(), 99 * (1000 + FRAME_COST));
    assert_eq!(read_all(&mut buffer).len(), 99_000);
    assert_eq!(buffer.chunks.capacity(), 0);
}

/// Half of the room beyond the minimum, for a substream that has read half of the first window.
#[test]
fn a_substream_that_is_read_gets_half_of_what_is_left() {
    for (read, expected) in [
        (MIN_FIRST_WINDOW / 2 - 1, MIN_FIRST_WINDOW),
        (MIN_FIRST_WINDOW / 2, MIN_WINDOW + 100_000),
    ] {
        let mut buffer = ReceiveBuffer::new(1 << 20, 1 << 20);
        push(&mut buffer, &pattern(read as usize));
        read_all(&mut buffer);
        let offer = buffer.credit_offer(room((16 << 20) + 200_000), true);
        assert_eq!(offer, Some(read + expected));
    }
}

#[test]
fn a_first_grant_is_offered_whatever_has_come() {
    let mut buffer = ReceiveBuffer::new(10_000, 0);
    assert!(!buffer.has_granted());
    buffer.complete();
    assert_eq!(buffer.credit_offer(ROOM, false), None);
    let first = buffer.credit_offer(ROOM, true).expect("one that shows it");
    buffer.granted(first);
    assert!(buffer.has_granted());
}
