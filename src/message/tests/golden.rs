//! The encoding of every kind of frame, in both directions: `proto/frames.txt`, which the tests of
//! other codecs read too.

use super::*;

const FRAMES: &str = include_str!("../../../proto/frames.txt");

/// `message` encodes to exactly `bytes`, and `bytes` decode to `message`.
fn golden(message: &Message, bytes: &[u8]) {
    assert_eq!(message.encode(), bytes);
    assert_eq!(message.encoded_len(), bytes.len());
    let decoded = decode_all(bytes.to_vec());
    assert_eq!(decoded, (vec![message.clone()], None));
}

/// Bytes in hex and in patterns, in any number of words.
fn bytes(text: &str) -> Bytes {
    let mut bytes = Vec::new();
    for word in text.split_whitespace() {
        match word.strip_prefix("pattern:") {
            Some(len) => bytes.extend(content(len.parse().expect("a length"))),
            None => bytes.extend(
                (0..word.len())
                    .step_by(2)
                    .map(|at| u8::from_str_radix(&word[at..at + 2], 16).expect("hex")),
            ),
        }
    }
    bytes.into()
}

fn message(fields: &str) -> Message {
    let mut message = Message::default();
    for field in fields.split_whitespace() {
        let (name, value) = field.split_once('=').expect("a name and a value");
        let number = || value.parse::<u64>().expect("a number");
        match name {
            "flag" => message.flag = Flag::from_wire(number() as i32),
            "payload" => message.payload = bytes(value),
            "error_code" => message.error_code = Some(number() as u32),
            "max_data" => message.max_data = Some(number()),
            "stream" => message.stream = Some(number()),
            "label" => message.label = Some(value.to_owned()),
            "max_substreams" => message.max_substreams = Some(number()),
            "reason" => message.reason = Some(value.to_owned()),
            "draining" => message.draining = number() != 0,
            "opened" => message.opened = Some(number()),
            other => panic!("no field {other}"),
        }
    }
    message
}

fn error(kind: &str) -> ProtobufError {
    match kind {
        "truncated" => ProtobufError::Truncated,
        "varint" => ProtobufError::Varint,
        "field-number" => ProtobufError::FieldNumber,
        "wire-type" => ProtobufError::WireType,
        "end-group" => ProtobufError::EndGroup,
        "utf8" => ProtobufError::Utf8,
        other => panic!("no error {other}"),
    }
}

#[test]
fn l1_r1_l24_frames_of_the_file() {
    let mut cases = [0; 3];
    let is_case = |line: &&str| !line.is_empty() && !line.starts_with('#');
    for line in FRAMES.lines().filter(is_case) {
        println!("{line}");
        if let Some((fields, encoded)) = line.split_once(" = ") {
            golden(&message(fields), &bytes(encoded));
            cases[0] += 1;
            continue;
        }
        let (what, encoded) = line.split_once(" < ").expect("one of the three forms");
        if let Some(kind) = what.strip_prefix("error ") {
            let decoded = Message::decode_body(bytes(encoded));
            assert_eq!(decoded, Err(DecodeError::Protobuf(error(kind))));
            cases[1] += 1;
        } else {
            let decoded = decode_all(bytes(encoded));
            assert_eq!(decoded, (vec![message(what)], None));
            cases[2] += 1;
        }
    }
    assert!(cases.iter().all(|cases| *cases > 5), "{cases:?}");
}

#[test]
fn constructors_set_their_fields_and_no_others() {
    let cases = [
        (Message::data(Bytes::from_static(b"ab")), "payload=6162"),
        (Message::flag(Flag::FinAck), "flag=3"),
        (Message::reset(9), "flag=2 error_code=9"),
        (Message::stop_sending(9), "flag=1 error_code=9"),
        (Message::substream_limit(9), "max_substreams=9"),
        (Message::draining(), "draining=1"),
        (Message::opened(9), "opened=9"),
        (
            Message::goodbye(Some(9), "bye"),
            "flag=0 error_code=9 reason=bye",
        ),
        (Message::goodbye(None, ""), "flag=0 reason="),
        (Message::credit(9), "max_data=9"),
    ];
    for (constructed, fields) in cases {
        assert_eq!(constructed, message(fields));
    }
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
fn l24_groups_that_are_nested_too_deeply() {
    let deep = |depth| [vec![0x23; depth], vec![0x24; depth]].concat();
    assert_eq!(
        Message::decode_body(deep(100).into()),
        Ok(Message::default())
    );
    assert_eq!(
        Message::decode_body(deep(101).into()),
        Err(DecodeError::Protobuf(ProtobufError::Depth)),
    );
}
