//! The allocations of the frame codec (rows L-2, L-3, R-5, R-6).

use std::cell::Cell;

use anabranch::message::{
    DATA_HEADROOM, DATA_TAILROOM, Flag, FrameDecoder, MAX_FRAME, Message, max_payload,
    seal_data_frame,
};
use bytes::{Bytes, BytesMut};

mod allocator;
use allocator::Watched;

thread_local! {
    // Counted per thread, since tests run in parallel. Constant and without a destructor, so that
    // its first use does not allocate.
    static COUNT: Cell<Count> = const { Cell::new(Count { calls: 0, bytes: 0 }) };
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Count {
    calls: usize,
    bytes: usize,
}

fn record(bytes: usize) {
    COUNT.with(|count| {
        let Count { calls, bytes: sum } = count.get();
        count.set(Count {
            calls: calls + 1,
            bytes: sum + bytes,
        });
    });
}

#[global_allocator]
static ALLOCATOR: Watched = Watched {
    allocated: record,
    freed: |_| {},
};

const NONE: Count = Count { calls: 0, bytes: 0 };

/// The allocations of `work` on this thread.
fn count<T>(work: impl FnOnce() -> T) -> (T, Count) {
    let before = COUNT.get();
    let result = work();
    let after = COUNT.get();
    let count = Count {
        calls: after.calls - before.calls,
        bytes: after.bytes - before.bytes,
    };
    (result, count)
}

fn payload(len: usize) -> Bytes {
    (0..len).map(|offset| (offset % 251) as u8).collect()
}

/// Messages with each combination of fields that is sent.
fn messages() -> Vec<Message> {
    let mut messages = vec![
        Message::default(),
        Message::flag(Flag::Fin),
        Message::reset(u32::MAX),
        Message::credit(u64::MAX),
    ];
    for len in [1, 125, 126, 127, 128, 1024, 16_379] {
        messages.push(Message::data(payload(len)));
    }
    let mut full = Message::data(payload(1000));
    full.max_data = Some(1 << 20);
    full.stream = Some(300);
    full.label = Some("/echo/1.0.0".to_owned());
    messages.push(full);
    messages
}

#[test]
fn the_counter_counts() {
    let (vec, counted) = count(|| vec![1_u8; 100]);
    assert_eq!(
        counted,
        Count {
            calls: 1,
            bytes: 100
        }
    );
    drop(vec);
}

#[test]
fn l2_encode_into_a_warm_buffer_allocates_nothing() {
    let messages = messages();
    let mut out = BytesMut::with_capacity(messages.iter().map(Message::encoded_len).sum());
    for _ in 0..3 {
        out.clear();
        let ((), counted) = count(|| {
            for message in &messages {
                message.encode_into(&mut out);
            }
        });
        assert_eq!(counted, NONE);
        assert_eq!(out.len(), out.capacity());
    }
}

#[test]
fn l2_r5_encode_allocates_once_and_exactly() {
    for message in messages() {
        let (frame, counted) = count(|| message.encode());
        let len = message.encoded_len();
        assert_eq!(frame.len(), len);
        assert_eq!(
            counted,
            Count {
                calls: 1,
                bytes: len
            }
        );
        let capacity = frame.try_into_mut().map(|frame| frame.capacity());
        assert_eq!(capacity, Ok(len));
    }
}

#[test]
fn r5_sealing_in_place_allocates_nothing() {
    let len = max_payload(MAX_FRAME, true);
    let mut buf = vec![7; DATA_HEADROOM + len + DATA_TAILROOM];
    let payload = DATA_HEADROOM..DATA_HEADROOM + len;
    let (frame, counted) = count(|| seal_data_frame(&mut buf, payload, Some(u64::MAX)));
    assert_eq!(counted, NONE);
    assert_eq!(frame.map(|frame| frame.len()), Ok(MAX_FRAME));
}

#[test]
fn l3_r6_decoding_a_whole_frame_copies_no_payload() {
    for len in [1, 1024, 16_379] {
        let frame = Message::data(payload(len)).encode();
        let end = frame.as_ptr_range().end;
        let mut decoder = FrameDecoder::new();
        let (decoded, counted) = count(|| {
            decoder.push(frame);
            decoder.next_message()
        });
        assert_eq!(counted, NONE);
        let payload = decoded.ok().flatten().unwrap_or_default().payload;
        assert_eq!(payload.len(), len);
        assert_eq!(payload.as_ptr_range().end, end);
    }
}

#[test]
fn l3_r6_merged_frames_cost_one_small_allocation_in_all() {
    let frame = Message::data(payload(1000)).encode();
    let merged = Bytes::from(frame.repeat(16));
    let source = merged.as_ptr_range();
    let mut decoder = FrameDecoder::new();
    let ((), counted) = count(|| {
        decoder.push(merged);
        while let Ok(Some(message)) = decoder.next_message() {
            let payload = message.payload.as_ptr_range();
            assert!(source.start <= payload.start && payload.end <= source.end);
            assert_eq!(message.payload.len(), 1000);
        }
    });
    // The reference count of the carrier message.
    assert!(counted.calls <= 1 && counted.bytes <= 64, "{counted:?}");
}

#[test]
fn l3_a_cut_frame_costs_one_allocation_of_its_size() {
    let frame = Message::data(payload(16_379)).encode();
    let (first, second) = (
        Bytes::copy_from_slice(&frame[..1199]),
        Bytes::copy_from_slice(&frame[1199..]),
    );
    let mut decoder = FrameDecoder::new();
    let (decoded, counted) = count(|| {
        decoder.push(first);
        assert_eq!(decoder.next_message(), Ok(None));
        decoder.push(second);
        decoder.next_message()
    });
    assert_eq!(
        counted,
        Count {
            calls: 1,
            bytes: frame.len() - 2
        }
    );
    let message = decoded.ok().flatten().unwrap_or_default();
    assert_eq!(message.payload, payload(16_379));
}

#[test]
fn l23_an_announced_body_costs_nothing_until_it_comes() {
    let mut decoder = FrameDecoder::new();
    let prefix = Bytes::from_static(&[0x80, 0x80, 0x01]);
    let (decoded, counted) = count(|| {
        decoder.push(prefix);
        decoder.next_message()
    });
    assert_eq!((decoded, counted), (Ok(None), NONE));
    assert_eq!(decoder.buffered(), 3);
}
