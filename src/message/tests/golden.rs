//! The encoding of every kind of frame, in both directions.

use super::*;

/// `message` encodes to exactly `bytes`, and `bytes` decode to `message`.
fn golden(message: &Message, bytes: &[u8]) {
    assert_eq!(message.encode(), bytes);
    assert_eq!(message.encoded_len(), bytes.len());
    let decoded = decode_all(bytes.to_vec());
    assert_eq!(decoded, (vec![message.clone()], None));
}

/// A data frame of `len` bytes has this header.
fn golden_data(len: usize, header: &[u8]) {
    let payload = content(len);
    golden(
        &Message::data(payload.clone()),
        &[header, &payload[..]].concat(),
    );
}

#[test]
fn l1_r1_flags() {
    golden(&Message::flag(Flag::Fin), &[0x02, 0x08, 0x00]);
    golden(&Message::flag(Flag::StopSending), &[0x02, 0x08, 0x01]);
    golden(&Message::flag(Flag::ResetStream), &[0x02, 0x08, 0x02]);
    golden(&Message::flag(Flag::FinAck), &[0x02, 0x08, 0x03]);
}

#[test]
fn l1_flags_with_error_code() {
    golden(&Message::stop_sending(7), &[0x04, 0x08, 0x01, 0x18, 0x07]);
    golden(&Message::reset(0), &[0x04, 0x08, 0x02, 0x18, 0x00]);
    golden(
        &Message::reset(u32::MAX),
        &[0x08, 0x08, 0x02, 0x18, 0xff, 0xff, 0xff, 0xff, 0x0f],
    );
}

#[test]
fn l1_data() {
    golden_data(1, &[0x03, 0x12, 0x01]);
    golden_data(125, &[0x7f, 0x12, 0x7d]);
    golden_data(126, &[0x80, 0x01, 0x12, 0x7e]);
    golden_data(127, &[0x81, 0x01, 0x12, 0x7f]);
    golden_data(128, &[0x83, 0x01, 0x12, 0x80, 0x01]);
    golden_data(16_379, &[0xfe, 0x7f, 0x12, 0xfb, 0x7f]);
}

#[test]
fn l1_credit() {
    golden(
        &Message::credit(1 << 20),
        &[0x05, 0xc8, 0x3e, 0x80, 0x80, 0x40],
    );
    golden(
        &Message {
            max_data: Some(1 << 20),
            ..Message::data(Bytes::from_static(b"ab"))
        },
        &[0x09, 0x12, 0x02, b'a', b'b', 0xc8, 0x3e, 0x80, 0x80, 0x40],
    );
}

#[test]
fn l1_stream_and_label() {
    golden(
        &Message {
            stream: Some(300),
            label: Some("ab".to_owned()),
            ..Message::data(Bytes::from_static(b"x"))
        },
        &[
            0x0c, 0x12, 0x01, b'x', 0xd0, 0x3e, 0xac, 0x02, 0xda, 0x3e, 0x02, b'a', b'b',
        ],
    );
}

/// The frames about the connection, which belong to no substream.
#[test]
fn l1_limit_and_goodbye() {
    golden(
        &Message::substream_limit(300),
        &[0x04, 0xe0, 0x3e, 0xac, 0x02],
    );
    golden(
        &Message::goodbye(Some(7), "bye"),
        &[
            0x0a, 0x08, 0x00, 0x18, 0x07, 0xea, 0x3e, 0x03, b'b', b'y', b'e',
        ],
    );
    golden(
        &Message::goodbye(None, ""),
        &[0x05, 0x08, 0x00, 0xea, 0x3e, 0x00],
    );
}

#[test]
fn l1_all_fields_in_the_order_of_their_numbers() {
    golden(
        &Message {
            flag: Some(Flag::ResetStream),
            payload: Bytes::from_static(b"x"),
            error_code: Some(1),
            max_data: Some(2),
            stream: Some(3),
            label: Some("l".to_owned()),
            max_substreams: None,
            reason: None,
            draining: false,
            opened: None,
            unknown_flag: false,
        },
        &[
            0x11, 0x08, 0x02, 0x12, 0x01, b'x', 0x18, 0x01, 0xc8, 0x3e, 0x02, 0xd0, 0x3e, 0x03,
            0xda, 0x3e, 0x01, b'l',
        ],
    );
}

#[test]
fn l1_l23_empty_message() {
    golden(&Message::default(), &[0x00]);
    // An empty payload field means the same as none.
    let decoded = decode_all(vec![0x02, 0x12, 0x00]);
    assert_eq!(decoded, (vec![Message::default()], None));
}

#[test]
fn l4_unknown_flag_keeps_the_payload() {
    let expected = Message {
        unknown_flag: true,
        ..Message::data(Bytes::from_static(b"x"))
    };
    for flag in [
        &[0x04][..],
        &[0x7f],
        &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1],
    ] {
        let body = [&[0x08], flag, &[0x12, 0x01, b'x']].concat();
        let frame = [&[body.len() as u8], &body[..]].concat();
        assert_eq!(decode_all(frame), (vec![expected.clone()], None));
    }
    // Unknown fields are not encoded again.
    assert_eq!(&expected.encode()[..], [0x03, 0x12, 0x01, b'x']);
}

#[test]
fn l4_last_flag_counts() {
    let (messages, _) = decode_all(vec![0x04, 0x08, 0x07, 0x08, 0x03]);
    assert_eq!(messages, [Message::flag(Flag::FinAck)]);
    let (messages, _) = decode_all(vec![0x04, 0x08, 0x03, 0x08, 0x07]);
    assert_eq!(messages[0].flag, None);
    assert!(messages[0].unknown_flag);
}

#[test]
fn l5_fin_ack_is_no_other_flag() {
    let (messages, error) = decode_all(vec![0x02, 0x08, 0x03]);
    assert_eq!(error, None);
    assert_eq!(messages, [Message::flag(Flag::FinAck)]);
    for other in [Flag::Fin, Flag::StopSending, Flag::ResetStream] {
        assert_ne!(messages[0].flag, Some(other));
    }
    assert!(!messages[0].unknown_flag);
}

#[test]
fn l1_unknown_fields_are_skipped() {
    let body = [
        &[0x20, 0x96, 0x01][..],               // 4: varint
        &[0x29, 1, 2, 3, 4, 5, 6, 7, 8],       // 5: 64 bits
        &[0x32, 0x02, 0x08, 0x00],             // 6: bytes that look like a FIN
        &[0x3d, 1, 2, 3, 4],                   // 7: 32 bits
        &[0x43, 0x08, 0x00, 0x4b, 0x4c, 0x44], // 8: group of a FIN and a group 9
        &[0x12, 0x01, b'x'],
    ]
    .concat();
    let message = Message::decode_body(body.into());
    assert_eq!(message, Ok(Message::data(Bytes::from_static(b"x"))));
}

#[test]
fn l24_malformed_bodies() {
    use ProtobufError::*;
    let cases: &[(&[u8], ProtobufError)] = &[
        (&[0x08], Truncated),
        (&[0x08, 0x80], Truncated),
        (&[0x12, 0x02, b'x'], Truncated),
        (
            &[
                0x12, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01,
            ],
            Truncated,
        ),
        (&[0x29, 1, 2, 3, 4, 5, 6, 7], Truncated),
        (&[0x23], Truncated),
        (
            &[
                0xc8, 0x3e, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02,
            ],
            Varint,
        ),
        (&[0x00, 0x00], FieldNumber),
        (&[0x80, 0x80, 0x80, 0x80, 0x10, 0x00], FieldNumber),
        (&[0x0a, 0x00], WireType),
        (&[0x10, 0x00], WireType),
        (&[0x1a, 0x00], WireType),
        (&[0x13, 0x14], WireType),
        (&[0xca, 0x3e, 0x00], WireType),
        (&[0xd8, 0x3e, 0x00], WireType),
        (&[0x26], WireType),
        (&[0x24], EndGroup),
        (&[0x23, 0x2c], EndGroup),
        (&[0xda, 0x3e, 0x01, 0xff], Utf8),
    ];
    for (body, error) in cases {
        let decoded = Message::decode_body(Bytes::copy_from_slice(body));
        assert_eq!(decoded, Err(DecodeError::Protobuf(*error)), "{body:02x?}");
    }
    let deep = |depth| [vec![0x23; depth], vec![0x24; depth]].concat();
    assert_eq!(
        Message::decode_body(deep(100).into()),
        Ok(Message::default())
    );
    assert_eq!(
        Message::decode_body(deep(101).into()),
        Err(DecodeError::Protobuf(Depth)),
    );
}
