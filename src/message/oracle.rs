//! Decodes a body with prost, by the code that it generates from `proto/message.proto`.

use bytes::Bytes;
use prost::Message as _;

use super::{Flag, Message};

// Generated as a public module.
#[allow(missing_docs, unreachable_pub)]
pub(crate) mod generated {
    include!(concat!(env!("OUT_DIR"), "/anabranch.message.rs"));
}

/// The message that prost decodes. prost keeps flags as numbers and distinguishes an empty payload
/// from none.
pub(crate) fn decode_body(body: Bytes) -> Option<Message> {
    let message = generated::Message::decode(body).ok()?;
    let flag = message.flag.and_then(Flag::from_wire);
    Some(Message {
        flag,
        unknown_flag: message.flag.is_some() && flag.is_none(),
        payload: message.message.unwrap_or_default(),
        error_code: message.error_code,
        max_data: message.max_data,
        stream: message.stream,
        label: message.label,
        max_substreams: message.max_substreams,
        reason: message.reason,
        draining: message.draining.unwrap_or_default(),
        opened: message.opened,
    })
}
