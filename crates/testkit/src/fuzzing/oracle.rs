//! Decodes the body of a frame with prost, by an independent definition of its message.

use anabranch::message::{Flag, Message};
use bytes::Bytes;
use prost::Message as _;

/// The message of `proto/message.proto`.
#[derive(Clone, PartialEq, prost::Message)]
struct Body {
    #[prost(int32, optional, tag = "1")]
    flag: Option<i32>,
    #[prost(bytes = "bytes", optional, tag = "2")]
    message: Option<Bytes>,
    #[prost(uint32, optional, tag = "3")]
    error_code: Option<u32>,
    #[prost(uint64, optional, tag = "1001")]
    max_data: Option<u64>,
    #[prost(uint64, optional, tag = "1002")]
    stream: Option<u64>,
    #[prost(string, optional, tag = "1003")]
    label: Option<String>,
    #[prost(uint64, optional, tag = "1004")]
    max_substreams: Option<u64>,
    #[prost(string, optional, tag = "1005")]
    reason: Option<String>,
    #[prost(bool, optional, tag = "1006")]
    draining: Option<bool>,
    #[prost(uint64, optional, tag = "1007")]
    opened: Option<u64>,
}

/// Decodes a body; `None` if prost rejects it. Unknown flags are numbers for prost.
pub(super) fn decode_body(body: Bytes) -> Option<Message> {
    let body = Body::decode(body).ok()?;
    let mut message = Message::default();
    message.flag = match body.flag {
        Some(0) => Some(Flag::Fin),
        Some(1) => Some(Flag::StopSending),
        Some(2) => Some(Flag::ResetStream),
        Some(3) => Some(Flag::FinAck),
        _ => None,
    };
    message.unknown_flag = body.flag.is_some() && message.flag.is_none();
    message.payload = body.message.unwrap_or_default();
    message.error_code = body.error_code;
    message.max_data = body.max_data;
    message.stream = body.stream;
    message.label = body.label;
    message.max_substreams = body.max_substreams;
    message.reason = body.reason;
    message.draining = body.draining.unwrap_or_default();
    message.opened = body.opened;
    Some(message)
}
