//! Peers that know the message of the specification and none of our fields. Row FR-1.

use proptest::prelude::*;
use prost::Message as _;

use super::*;

/// As in the specification of libp2p's WebRTC, and nothing more: what go-libp2p, js-libp2p and
/// rust-libp2p read.
#[derive(Clone, PartialEq, prost::Message)]
struct OldMessage {
    #[prost(int32, optional, tag = "1")]
    flag: Option<i32>,
    #[prost(bytes = "bytes", optional, tag = "2")]
    message: Option<Bytes>,
}

/// The body of the one frame in `frame`, behind its length.
fn body(frame: &Bytes) -> Bytes {
    let start = frame.iter().take_while(|byte| **byte & 0x80 != 0).count() + 1;
    frame.slice(start..)
}

proptest! {
    /// What we send says the same to a peer that skips our fields.
    #[test]
    fn fr1_old_peers_read_flag_and_payload_of_every_frame(
        flag in prop::option::of(0..4_i32),
        payload in prop::collection::vec(any::<u8>(), 0..300),
        error_code in any::<Option<u32>>(),
        max_data in any::<Option<u64>>(),
        stream in any::<Option<u64>>(),
        label in any::<Option<String>>(),
        max_substreams in any::<Option<u64>>(),
        reason in any::<Option<String>>(),
    ) {
        let message = Message {
            flag: flag.and_then(Flag::from_wire),
            payload: payload.clone().into(),
            error_code,
            max_data,
            stream,
            label,
            max_substreams,
            reason,
            unknown_flag: false,
        };
        let old = OldMessage::decode(body(&message.encode())).expect("protobuf");
        prop_assert_eq!(old.flag, flag);
        prop_assert_eq!(old.message.unwrap_or_default(), payload);
    }

    /// What such a peer sends is read, and nothing is taken from it that it has not said.
    #[test]
    fn fr1_frames_of_old_peers_have_flag_and_payload_and_nothing_else(
        flag in prop::option::of(0..4_i32),
        payload in prop::option::of(prop::collection::vec(any::<u8>(), 0..300)),
    ) {
        let old = OldMessage { flag, message: payload.clone().map(Bytes::from) };
        let expected = Message {
            flag: flag.and_then(Flag::from_wire),
            payload: payload.unwrap_or_default().into(),
            ..Message::default()
        };
        let frame = old.encode_length_delimited_to_vec();
        prop_assert_eq!(decode_all(frame), (vec![expected], None));
    }
}
