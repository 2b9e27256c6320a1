//! The incremental decoder: splits, merges, bad framing, and what it holds.

use proptest::{collection::vec, prelude::*};

use super::*;

fn multi_frame() -> (Vec<Message>, Bytes) {
    let messages = every_kind();
    let bytes = messages.iter().flat_map(Message::encode).collect();
    (messages, bytes)
}

/// Pushes `pieces` one by one and drains after each, so that frames stay incomplete as in use.
fn decode_pieces(pieces: impl IntoIterator<Item = Bytes>) -> (Vec<Message>, Option<DecodeError>) {
    let mut decoder = FrameDecoder::new();
    let mut messages = Vec::new();
    for piece in pieces {
        decoder.push(piece);
        let (more, error) = drain(&mut decoder);
        messages.extend(more);
        assert!(decoder.buffered() <= MAX_BODY + 3);
        if error.is_some() {
            return (messages, error);
        }
    }
    (messages, None)
}

fn within(inner: &[u8], outer: &[u8]) -> bool {
    let (inner, outer) = (inner.as_ptr_range(), outer.as_ptr_range());
    outer.start <= inner.start && inner.end <= outer.end
}

/// Capacity of the allocation of `bytes`, which must be its only handle.
fn capacity(bytes: Bytes) -> usize {
    match bytes.try_into_mut() {
        Ok(bytes) => bytes.capacity(),
        Err(bytes) => panic!("{} bytes are shared", bytes.len()),
    }
}

#[test]
fn l23_h1_every_split_point() {
    let (messages, bytes) = multi_frame();
    for at in 0..=bytes.len() {
        let pieces = [bytes.slice(..at), bytes.slice(at..)];
        assert_eq!(decode_pieces(pieces), (messages.clone(), None), "{at}");
    }
}

#[test]
fn l23_h1_byte_by_byte() {
    let (messages, bytes) = multi_frame();
    let pieces = (0..bytes.len()).map(|at| bytes.slice(at..=at));
    assert_eq!(decode_pieces(pieces), (messages.clone(), None));

    // The same without reading between pushes.
    let mut decoder = FrameDecoder::new();
    for at in 0..bytes.len() {
        assert_eq!(decoder.buffered(), at);
        decoder.push(bytes.slice(at..=at));
    }
    assert_eq!(drain(&mut decoder), (messages, None));
    assert!(decoder.is_empty());
}

#[test]
fn l23_h1_merged_frames_and_a_part_of_the_next() {
    let (messages, bytes) = multi_frame();
    let mut decoder = FrameDecoder::new();
    decoder.push(Bytes::from([&bytes[..], &bytes[..], &[0x80]].concat()));
    let (decoded, error) = drain(&mut decoder);
    assert_eq!(error, None);
    assert_eq!(decoded, [&messages[..], &messages[..]].concat());
    assert_eq!(decoder.buffered(), 1);
    assert!(!decoder.is_empty());
    decoder.push(Bytes::from_static(&[0x01]));
    decoder.push([&[0x12, 0x7e], &content(126)[..]].concat().into());
    assert_eq!(
        drain(&mut decoder),
        (vec![Message::data(content(126))], None)
    );
    assert!(decoder.is_empty());
}

#[test]
fn l3_r6_a_whole_frame_is_a_slice_of_the_carrier_message() {
    let (_, bytes) = multi_frame();
    let (messages, _) = decode_all(bytes.clone());
    for message in &messages {
        assert!(message.payload.is_empty() || within(&message.payload, &bytes));
    }
    let frame = Message::data(content(16_379)).encode();
    let expected = frame[5..].as_ptr();
    let (messages, _) = decode_all(frame);
    assert_eq!(messages[0].payload.as_ptr(), expected);
}

#[test]
fn h1_l3_prefix_and_body_as_two_carrier_messages_cost_no_copy() {
    let frame = Message::data(content(1000)).encode();
    let (prefix, body) = (frame.slice(..2), frame.slice(2..));
    let mut decoder = FrameDecoder::new();
    decoder.push(prefix);
    assert_eq!(decoder.next_message(), Ok(None));
    assert_eq!(decoder.buffered(), 2);
    decoder.push(body);
    let (messages, error) = drain(&mut decoder);
    assert_eq!(error, None);
    assert_eq!(messages[0].payload, content(1000));
    assert!(within(&messages[0].payload, &frame));
}

#[test]
fn l3_a_cut_frame_costs_one_buffer_of_its_own_size() {
    let frame = Message::data(content(1000)).encode();
    let body = frame.len() - 2;
    for at in [3, 500, frame.len() - 1] {
        let (mut messages, error) = decode_pieces([frame.slice(..at), frame.slice(at..)]);
        assert_eq!(error, None);
        let payload = messages.remove(0).payload;
        assert!(!within(&payload, &frame));
        assert!(capacity(payload) <= body);
    }
}

#[test]
fn l23_carrier_messages_are_let_go_of_when_read() {
    let bytes = [
        &Message::data(content(10)).encode()[..],
        &[0x83, 0x01, 0x12],
    ]
    .concat();
    let pushed = Bytes::from(bytes);
    let mut decoder = FrameDecoder::new();
    decoder.push(pushed.clone());
    drop(drain(&mut decoder));
    assert_eq!(decoder.buffered(), 3);
    // No other handle exists, not even in the unfinished frame.
    assert!(pushed.is_unique());
}

#[test]
fn l23_varint_split_byte_by_byte() {
    let pieces = [&[0x80][..], &[0x80], &[0x01]].map(Bytes::from_static);
    let mut decoder = FrameDecoder::new();
    for piece in pieces {
        assert_eq!(decoder.next_message(), Ok(None));
        decoder.push(piece);
    }
    assert_eq!(decoder.next_message(), Ok(None));
    assert_eq!(decoder.buffered(), 3);
}

#[test]
fn l23_l24_bad_lengths() {
    let cases: &[(&[u8], DecodeError)] = &[
        (&[0x80, 0x00], DecodeError::NonMinimalVarint),
        (&[0x83, 0x80, 0x00], DecodeError::NonMinimalVarint),
        (&[0xff, 0x00], DecodeError::NonMinimalVarint),
        (&[0x80, 0x80, 0x80], DecodeError::OverlongVarint),
        (&[0xff, 0xff, 0xff, 0xff, 0x0f], DecodeError::OverlongVarint),
        (
            &[0x8d, 0x80, 0x01],
            DecodeError::FrameTooLarge {
                len: 16_397,
                max: MAX_BODY,
            },
        ),
        (
            &[0xff, 0xff, 0x7f],
            DecodeError::FrameTooLarge {
                len: 0x1f_ffff,
                max: MAX_BODY,
            },
        ),
    ];
    let good = Message::flag(Flag::Fin);
    for (bytes, error) in cases {
        let stream = Bytes::from([&good.encode(), *bytes, &[0; 100]].concat());
        let expected = (vec![good.clone()], Some(*error));
        assert_eq!(decode_all(stream.clone()), expected, "{bytes:02x?}");
        let pieces = (0..stream.len()).map(|at| stream.slice(at..=at));
        assert_eq!(decode_pieces(pieces), expected, "{bytes:02x?}");
    }
}

#[test]
fn l24_a_failed_decoder_holds_and_takes_nothing() {
    let mut decoder = FrameDecoder::new();
    decoder.push(Message::flag(Flag::Fin).encode());
    decoder.push(Bytes::from_static(&[0x02, 0x12, 0x7f]));
    decoder.push(Message::flag(Flag::FinAck).encode());
    let error = DecodeError::Protobuf(ProtobufError::Truncated);
    let before = vec![Message::flag(Flag::Fin)];
    assert_eq!(drain(&mut decoder), (before, Some(error)));
    for _ in 0..3 {
        assert_eq!(decoder.buffered(), 0);
        assert!(decoder.is_empty());
        decoder.push(content(MAX_BODY));
        assert_eq!(decoder.next_message(), Err(error));
    }
}

#[test]
fn l23_bodies_up_to_the_limit() {
    // litep2p sends this frame with every full buffer.
    let (messages, error) = decode_all(Message::data(content(16_384)).encode());
    assert_eq!((messages[0].payload.len(), error), (16_384, None));
    // A payload of 16 392 makes the largest body; it is accepted but never sent.
    let frame = Message::data(content(16_392)).encode();
    assert_eq!(frame.len(), MAX_BODY + 3);
    let (messages, error) = decode_all(frame.clone());
    assert_eq!((messages[0].payload.len(), error), (16_392, None));
    let all_but_one = frame.slice(..frame.len() - 1);
    let mut decoder = FrameDecoder::new();
    decoder.push(all_but_one);
    assert_eq!(decoder.next_message(), Ok(None));
    assert_eq!(decoder.buffered(), MAX_BODY + 2);
    let (_, error) = decode_all(Message::data(content(16_393)).encode());
    assert_eq!(
        error,
        Some(DecodeError::FrameTooLarge {
            len: 16_397,
            max: MAX_BODY,
        })
    );
}

#[test]
fn l23_other_limits() {
    let run = |max, bytes: &[u8]| {
        let mut decoder = FrameDecoder::with_max_body(max);
        decoder.push(Bytes::copy_from_slice(bytes));
        decoder.next_message()
    };
    assert_eq!(run(0, &[0x00]), Ok(Some(Message::default())));
    assert_eq!(
        run(0, &[0x01]),
        Err(DecodeError::FrameTooLarge { len: 1, max: 0 })
    );
    assert_eq!(run(127, &[0x80]), Err(DecodeError::OverlongVarint));
    assert_eq!(run(128, &[0x80]), Ok(None));
    // Nothing is allocated for a body, however large, before its first byte.
    let huge = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01];
    if usize::BITS == 64 {
        assert_eq!(run(usize::MAX, &huge), Ok(None));
        let above = [&huge[..9], &[0x02]].concat();
        assert_eq!(run(usize::MAX, &above), Err(DecodeError::OverlongVarint));
    }
}

/// Bytes that often form frames: random ones rarely get past the first length.
fn stream_bytes() -> impl Strategy<Value = Vec<u8>> {
    let kinds = every_kind();
    let frame = (0..kinds.len()).prop_map(move |kind| kinds[kind].encode().to_vec());
    let small = vec(any::<u8>(), 0..32).prop_map(|mut body| {
        body.insert(0, body.len() as u8);
        body
    });
    vec(
        prop_oneof![4 => frame, 1 => small, 1 => vec(any::<u8>(), 0..6)],
        0..8,
    )
    .prop_map(|parts| parts.concat())
}

fn cut(bytes: &Bytes, cuts: &[prop::sample::Index]) -> Vec<Bytes> {
    let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
    at.sort_unstable();
    let mut rest = bytes.clone();
    let mut pieces = Vec::new();
    for at in at {
        let done = bytes.len() - rest.len();
        pieces.push(rest.split_to(at - done));
    }
    pieces.push(rest);
    pieces
}

proptest! {
    #![proptest_config(crate::random::cases(256))]

    #[test]
    fn l23_h1_cuts_make_no_difference(
        bytes in stream_bytes(),
        cuts in vec(any::<prop::sample::Index>(), 0..12),
    ) {
        let bytes = Bytes::from(bytes);
        let whole = decode_all(bytes.clone());
        prop_assert_eq!(decode_pieces(cut(&bytes, &cuts)), whole);
    }

    #[test]
    fn l24_arbitrary_bytes_never_panic_and_are_never_hoarded(
        pieces in vec(vec(any::<u8>(), 0..64), 0..32),
    ) {
        decode_pieces(pieces.into_iter().map(Bytes::from));
    }

    #[test]
    fn l23_a_stream_that_ends_early_loses_only_its_last_frame(
        messages in vec(0..14_usize, 1..6),
        end in any::<prop::sample::Index>(),
    ) {
        let kinds = every_kind();
        let frames: Vec<Bytes> = messages.iter().map(|kind| kinds[*kind].encode()).collect();
        let bytes = Bytes::from(frames.concat());
        let end = end.index(bytes.len());
        let mut decoder = FrameDecoder::new();
        decoder.push(bytes.slice(..end));
        let (decoded, error) = drain(&mut decoder);
        prop_assert_eq!(error, None);
        let mut rest = end;
        for (index, message) in decoded.iter().enumerate() {
            prop_assert_eq!(message, &kinds[messages[index]]);
            rest -= frames[index].len();
        }
        prop_assert_eq!(decoder.buffered(), rest);
        prop_assert!(rest < frames[decoded.len()].len());
    }

    #[test]
    fn l1_round_trip(
        message in any_message(),
        queued in 0..20_usize,
    ) {
        let frame = message.encode();
        prop_assert_eq!(frame.len(), message.encoded_len());
        prop_assert_eq!(decode_all(frame.clone()), (vec![message.clone()], None));
        let mut out = bytes::BytesMut::from(&content(queued)[..]);
        message.encode_into(&mut out);
        prop_assert_eq!(&out[queued..], &frame[..]);
    }
}
