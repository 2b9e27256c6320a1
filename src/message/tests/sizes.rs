//! Sizes, limits and in-place framing.

use super::*;

const LONGEST: usize = 32_768;

#[test]
fn l1_sizes_of_the_specification() {
    let overhead = |len| Message::data(content(len)).encoded_len() - len;
    assert_eq!([overhead(1), overhead(125)], [3, 3]);
    assert_eq!([overhead(126), overhead(127)], [4, 4]);
    assert_eq!([overhead(128), overhead(16_379)], [5, 5]);
    assert_eq!(Message::flag(Flag::Fin).encoded_len(), 3);
    assert_eq!(Message::default().encoded_len(), 1);
    assert_eq!(Message::credit(1 << 20).encoded_len(), 1 + 5);

    assert_eq!(max_payload(MAX_FRAME, false), 16_379);
    assert_eq!(Message::default().max_payload(MAX_FRAME), 16_379);
    assert_eq!(Message::flag(Flag::Fin).max_payload(MAX_FRAME), 16_377);
    assert_eq!(Message::reset(u32::MAX).max_payload(MAX_FRAME), 16_371);
    let with_credit = Message::credit(u64::from(u32::MAX));
    assert_eq!(with_credit.max_payload(MAX_FRAME), 16_372);
    let both = Message {
        flag: Some(Flag::Fin),
        ..with_credit
    };
    assert_eq!(both.max_payload(MAX_FRAME), 16_370);
}

#[test]
fn h15_no_payload_makes_a_frame_above_the_limit() {
    let source = content(LONGEST);
    for limit in [8192, MAX_FRAME] {
        for max_data in [None, Some(u64::MAX)] {
            let max = max_payload(limit, max_data.is_some());
            for len in 0..=LONGEST {
                let mut rest = source.slice(..len);
                while !rest.is_empty() {
                    let message = Message {
                        max_data,
                        ..Message::data(rest.split_to(rest.len().min(max)))
                    };
                    assert!(message.encoded_len() <= limit, "{len}");
                }
            }
        }
    }
}

#[test]
fn h15_cut_payloads_arrive_whole() {
    let source = content(LONGEST);
    for limit in [8192, MAX_FRAME] {
        let max = max_payload(limit, false);
        // All lengths around the splits, and a few between.
        let near = (0..4 * max).filter(|len| (len + 8) % max < 16);
        for len in near.chain((0..LONGEST).step_by(997)).chain([LONGEST]) {
            let mut rest = source.slice(..len.min(LONGEST));
            let mut decoder = FrameDecoder::new();
            let mut sent = rest.clone();
            while !rest.is_empty() {
                let frame = Message::data(rest.split_to(rest.len().min(max))).encode();
                assert!(frame.len() <= limit);
                decoder.push(frame);
            }
            let (messages, error) = drain(&mut decoder);
            assert_eq!(error, None);
            for message in messages {
                assert_eq!(message.payload, sent.split_to(message.payload.len()));
            }
            assert!(sent.is_empty());
        }
    }
}

#[test]
fn h15_max_payload_is_the_largest() {
    for limit in 1..=20_000 {
        for max_data in [None, Some(u64::MAX)] {
            let frame = |len| {
                let body = if len == 0 {
                    0
                } else {
                    1 + varint_len(len as u64) + len
                };
                let body = body + max_data.map_or(0, |_| DATA_TAILROOM);
                varint_len(body as u64) + body
            };
            let max = max_payload(limit, max_data.is_some());
            assert!(frame(max) <= limit || max == 0, "{limit}");
            assert!(frame(max + 1) > limit, "{limit}");
        }
    }
    assert_eq!(max_payload(0, false), 0);
    assert_eq!(max_payload(usize::MAX, false), usize::MAX - 10 - 1 - 10);
}

#[test]
fn varints_are_those_of_unsigned_varint() {
    let mut values = vec![0, u64::MAX];
    values.extend((0..64).flat_map(|bit| [(1_u64 << bit) - 1, 1 << bit, (1 << bit) + 1]));
    for value in values {
        let mut buffer = unsigned_varint::encode::u64_buffer();
        let expected = unsigned_varint::encode::u64(value, &mut buffer);
        assert_eq!(varint_len(value), expected.len());
        let frame = Message::credit(value).encode();
        assert_eq!(&frame[3..], expected);
    }
}

/// Seals `payload` with exactly the given room before and after it, and returns the frame.
fn seal(payload: &[u8], max_data: Option<u64>, front: usize, back: usize) -> Vec<u8> {
    let mut buf = [&vec![0xee; front], payload, &vec![0xee; back]].concat();
    let range = front..front + payload.len();
    match seal_data_frame(&mut buf, range, max_data) {
        Ok(frame) => {
            assert!(buf[..frame.start].iter().all(|byte| *byte == 0xee));
            assert!(buf[frame.end..].iter().all(|byte| *byte == 0xee));
            buf[frame].to_vec()
        }
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn r5_sealed_frames_are_those_of_encode() {
    for len in (0..300).chain(16_350..=16_379) {
        for max_data in [None, Some(0), Some(1 << 20), Some(u64::MAX)] {
            let message = Message {
                max_data,
                ..Message::data(content(len))
            };
            let frame = seal(&message.payload, max_data, DATA_HEADROOM, DATA_TAILROOM);
            assert_eq!(frame, message.encode());
        }
    }
}

#[test]
fn r5_sealing_needs_no_more_room_than_the_frame_takes() {
    for (len, front) in [(0, 1), (1, 3), (125, 3), (126, 4), (128, 5), (16_379, 5)] {
        seal(&content(len), None, front, 0);
        let mut short = vec![0xee; front - 1 + len];
        let before = short.clone();
        let sealed = seal_data_frame(&mut short, front - 1..front - 1 + len, None);
        assert_eq!(
            sealed,
            Err(SealError::NoHeadroom {
                needed: front,
                available: front - 1,
            })
        );
        assert_eq!(short, before);
    }
    seal(b"x", Some(1 << 20), 3, 5);
    let mut short = [0xee; 8];
    assert_eq!(
        seal_data_frame(&mut short, 3..4, Some(1 << 20)),
        Err(SealError::NoTailroom {
            needed: 5,
            available: 4,
        })
    );
    assert_eq!(short, [0xee; 8]);
}

#[test]
fn r5_sealing_refuses_a_range_outside_of_the_buffer() {
    let mut buf = [0; 16];
    for (start, end) in [(8, 7), (8, 17), (17, 17), (usize::MAX, 0), (0, usize::MAX)] {
        assert_eq!(
            seal_data_frame(&mut buf, std::ops::Range { start, end }, None),
            Err(SealError::OutOfRange {
                start,
                end,
                len: 16,
            })
        );
    }
}

#[test]
fn the_headroom_is_exact_for_the_longest_prefixes() {
    let len = 100_000;
    let mut buf = vec![0; DATA_HEADROOM + len];
    let range = DATA_HEADROOM..DATA_HEADROOM + len;
    let frame = seal_data_frame(&mut buf, range, None).expect("the headroom suffices");
    assert_eq!(frame, 0..buf.len(), "and none of it is left");
}

#[test]
fn all_fields_at_their_longest_are_encoded() {
    for (label, reason) in [
        (None, None),
        (Some("l"), Some("r")),
        (None, Some("r")),
        (Some("l"), None),
    ] {
        let message = Message {
            flag: Some(Flag::ResetStream),
            error_code: Some(u32::MAX),
            max_data: Some(u64::MAX),
            stream: Some(u64::MAX),
            max_substreams: Some(u64::MAX),
            draining: true,
            opened: Some(u64::MAX),
            label: label.map(Into::into),
            reason: reason.map(Into::into),
            ..Message::default()
        };
        let (decoded, error) = decode_all(message.encode());
        assert_eq!((decoded, error), (vec![message], None));
    }
}
