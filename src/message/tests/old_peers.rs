//! Peers that support the message of the specification and none of our fields. Row FR-1.

use proptest::prelude::*;
use prost::Message as _;

use super::*;

/// The message of libp2p's WebRTC specification and nothing more: what go-libp2p, js-libp2p and
/// rust-libp2p parse.
#[derive(Clone, PartialEq, prost::Message)]
struct OldMessage {
    #[prost(int32, optional, tag = "1")]
    flag: Option<i32>,
    #[prost(bytes = "bytes", optional, tag = "2")]
    message: Option<Bytes>,
}

/// The body of the one frame in `frame`, after its length prefix.
fn body(frame: &Bytes) -> Bytes {
    let start = frame.iter().take_while(|byte| **byte & 0x80 != 0).count() + 1;
    frame.slice(start..)
}

proptest! {
    #![proptest_config(crate::random::cases(256))]

    /// Our frames mean the same to a peer that skips our fields.
    #[test]
    fn fr1_old_peers_read_flag_and_payload_of_every_frame(
        message in any_message(),
    ) {
        let old = OldMessage::decode(body(&message.encode())).expect("protobuf");
        prop_assert_eq!(old.flag.and_then(Flag::from_wire), message.flag);
        prop_assert_eq!(old.message.unwrap_or_default(), message.payload);
    }

    /// Frames of such a peer are parsed, and no field of ours appears in them.
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
