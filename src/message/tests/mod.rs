//! Tests of the frame codec. Test names begin with the rows of the feature list that they cover.

use bytes::Bytes;
use proptest::prelude::*;

use super::*;

mod decoder;
mod golden;
mod old_peers;
mod oracle;
mod sizes;

/// All messages that `decoder` returns, and the error after them, if any.
fn drain(decoder: &mut FrameDecoder) -> (Vec<Message>, Option<DecodeError>) {
    let mut messages = Vec::new();
    loop {
        match decoder.next_message() {
            Ok(Some(message)) => messages.push(message),
            Ok(None) => return (messages, None),
            Err(error) => return (messages, Some(error)),
        }
    }
}

/// Decodes `bytes` as one carrier message.
fn decode_all(bytes: impl Into<Bytes>) -> (Vec<Message>, Option<DecodeError>) {
    let mut decoder = FrameDecoder::new();
    decoder.push(bytes.into());
    drain(&mut decoder)
}

/// Payload bytes in the pattern of the `peer` example.
fn content(len: usize) -> Bytes {
    (0..len).map(|offset| (offset % 251) as u8).collect()
}

prop_compose! {
    /// Messages with any combination of fields, and a payload of less than 300 bytes.
    fn any_message()(
        flag in prop::option::of(0..4_i32),
        payload in prop::collection::vec(any::<u8>(), 0..300),
        error_code in any::<Option<u32>>(),
        max_data in any::<Option<u64>>(),
        stream in any::<Option<u64>>(),
        label in any::<Option<String>>(),
        max_substreams in any::<Option<u64>>(),
        reason in any::<Option<String>>(),
        draining in any::<bool>(),
        opened in any::<Option<u64>>(),
    ) -> Message {
        Message {
            flag: flag.and_then(Flag::from_wire),
            payload: payload.into(),
            error_code,
            max_data,
            stream,
            label,
            max_substreams,
            reason,
            draining,
            opened,
            unknown_flag: false,
        }
    }
}

/// One message of each kind that a substream sends, and some that only a foreign peer sends.
fn every_kind() -> Vec<Message> {
    vec![
        Message::flag(Flag::Fin),
        Message::flag(Flag::StopSending),
        Message::stop_sending(7),
        Message::flag(Flag::ResetStream),
        Message::reset(u32::MAX),
        Message::flag(Flag::FinAck),
        Message::data(content(1)),
        Message::data(content(125)),
        Message::data(content(128)),
        Message {
            max_data: Some(1 << 20),
            ..Message::data(content(300))
        },
        Message::credit(u64::MAX),
        Message::default(),
        Message {
            stream: Some(300),
            label: Some("/echo/1.0.0".to_owned()),
            ..Message::data(content(3))
        },
        Message {
            flag: Some(Flag::Fin),
            payload: content(200),
            error_code: Some(0),
            max_data: Some(0),
            stream: Some(0),
            label: Some(String::new()),
            max_substreams: Some(u64::MAX),
            reason: Some("why".to_owned()),
            draining: true,
            opened: Some(u64::MAX),
            unknown_flag: false,
        },
        Message::substream_limit(256),
        Message::draining(),
        Message::opened(u64::MAX),
        Message::goodbye(None, ""),
        Message::goodbye(Some(7), "bye"),
    ]
}
