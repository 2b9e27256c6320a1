//! Codec of the frames that substreams exchange.
//!
//! A channel carries a byte stream of frames. A frame is a length as an unsigned varint, followed
//! by a body: the protobuf message of `proto/message.proto`. This module has no clock, runtime or
//! carrier.
//!
//! - [`Message`] is one decoded frame. [`Message::encode`] costs one allocation of exactly the
//!   right size, [`Message::encode_into`] none if the buffer has room.
//! - [`seal_data_frame`] frames a payload in place.
//! - [`FrameDecoder`] extracts frames from carrier messages, however those were split or merged on
//!   the way. The payload of a frame that arrived in one carrier message is a slice of it.
//!
//! ```
//! use anabranch::message::{Flag, FrameDecoder, Message};
//! use bytes::Bytes;
//!
//! # fn main() -> Result<(), anabranch::message::DecodeError> {
//! let mut decoder = FrameDecoder::new();
//! decoder.push(Message::data(Bytes::from_static(b"hello")).encode());
//! decoder.push(Message::flag(Flag::Fin).encode());
//!
//! let data = decoder.next_message()?.unwrap_or_default();
//! assert_eq!(&data.payload[..], b"hello");
//! let fin = decoder.next_message()?.unwrap_or_default();
//! assert_eq!(fin.flag, Some(Flag::Fin));
//! assert_eq!(decoder.next_message()?, None);
//! # Ok(())
//! # }
//! ```

use bytes::Bytes;

mod body;
mod decode;
mod encode;
#[cfg(feature = "websocket")]
pub(crate) mod mux;
#[cfg(test)]
pub(crate) mod oracle;
#[cfg(test)]
mod tests;

pub use body::ProtobufError;
pub use decode::{DecodeError, FrameDecoder};
pub(crate) use encode::DataFrameEnds;
pub use encode::{DATA_HEADROOM, DATA_TAILROOM, SealError, max_payload, seal_data_frame};

/// Length of the largest frame to send, length prefix included.
///
/// The libp2p webrtc specification sets this limit. Encoding does not enforce it, because a message
/// can not be split at that point: split payloads with [`max_payload`] or [`Message::max_payload`].
pub const MAX_FRAME: usize = 16_384;

/// Length of the largest body that [`FrameDecoder::new`] accepts, without the length prefix.
///
/// A payload of 16 384 bytes with a flag and an error code, which with its length prefix is 15
/// bytes more than the specification allows: litep2p up to 0.16 counts the payload alone and sends
/// such frames in every bulk transfer. The limit bounds the memory that a peer can occupy with one
/// unfinished frame.
pub const MAX_BODY: usize = 16_396;

// Field numbers of proto/message.proto.
const FIELD_FLAG: u32 = 1;
const FIELD_MESSAGE: u32 = 2;
const FIELD_ERROR_CODE: u32 = 3;
const FIELD_MAX_DATA: u32 = 1001;
const FIELD_STREAM: u32 = 1002;
const FIELD_LABEL: u32 = 1003;
const FIELD_MAX_SUBSTREAMS: u32 = 1004;
const FIELD_REASON: u32 = 1005;
const FIELD_DRAINING: u32 = 1006;
const FIELD_OPENED: u32 = 1007;

// Wire types of the protobuf encoding.
const WIRE_VARINT: u32 = 0;
const WIRE_FIXED64: u32 = 1;
const WIRE_BYTES: u32 = 2;
const WIRE_START_GROUP: u32 = 3;
const WIRE_END_GROUP: u32 = 4;
const WIRE_FIXED32: u32 = 5;

/// State change that a frame signals for its substream.
///
/// Exhaustive, because every flag has to be handled; other values are reported by
/// [`Message::unknown_flag`]. Compare by equality: the values are numbers, not bits. `FinAck` is 3,
/// which has the bits of `StopSending` and `ResetStream`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Flag {
    /// The sender writes no more.
    Fin = 0,
    /// The sender reads no more.
    StopSending = 1,
    /// Both directions end at once.
    ResetStream = 2,
    /// Answer to [`Fin`](Self::Fin): everything before it has arrived.
    FinAck = 3,
}

impl Flag {
    /// The flag with this number on the wire, if there is one.
    const fn from_wire(value: i32) -> Option<Self> {
        match value {
            0 => Some(Self::Fin),
            1 => Some(Self::StopSending),
            2 => Some(Self::ResetStream),
            3 => Some(Self::FinAck),
            _ => None,
        }
    }
}

/// One frame of a substream.
///
/// Make one with a constructor and set further fields. The payload takes effect before the flag of
/// the same message.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Message {
    /// The state change that the frame signals.
    pub flag: Option<Flag>,
    /// Payload bytes; empty and absent are the same on the wire.
    ///
    /// In a decoded message this is usually a slice of the carrier message, and keeps all of it
    /// alive. Copy small payloads before queueing them for a slow reader: otherwise a payload of
    /// one byte pins 16 KiB.
    pub payload: Bytes,
    /// Application-defined error code of [`Flag::ResetStream`] and [`Flag::StopSending`].
    pub error_code: Option<u32>,
    /// Total payload bytes that the sender of the frame accepts on this substream, counted from its
    /// opening.
    pub max_data: Option<u64>,
    /// The substream of this frame; only where the carrier has no channels of its own.
    pub stream: Option<u64>,
    /// Label of a new substream; only beside [`stream`](Self::stream), on its first frame.
    pub label: Option<String>,
    /// Total number of substreams that the sender of the frame accepts on its connection, counted
    /// from the start, like QUIC's MAX_STREAMS (RFC 9000 section 19.11). Only in frames about the
    /// connection.
    pub max_substreams: Option<u64>,
    /// Why the sender of the frame closes the connection; accompanies [`Flag::Fin`]. Only in frames
    /// about the connection.
    pub reason: Option<String>,
    /// The sender of the frame wants no new substreams on its connection; those that are open go
    /// on. Answered by [`opened`](Self::opened). Only in frames about the connection.
    pub draining: bool,
    /// The answer to [`draining`](Self::draining): total number of substreams that the sender of
    /// the frame has opened on its connection. It opens no more. Only in frames about the
    /// connection.
    pub opened: Option<u64>,
    /// The frame had a flag whose value is unknown to this version.
    ///
    /// Not an error, so that flags can be added later: [`flag`](Self::flag) is then `None` and the
    /// payload is delivered. Never encoded.
    pub unknown_flag: bool,
}

impl Message {
    /// A frame with payload only.
    pub fn data(payload: Bytes) -> Self {
        Self {
            payload,
            ..Self::default()
        }
    }

    /// A frame with a flag only.
    pub fn flag(flag: Flag) -> Self {
        Self {
            flag: Some(flag),
            ..Self::default()
        }
    }

    /// [`Flag::ResetStream`] with an error code.
    pub fn reset(code: u32) -> Self {
        Self {
            error_code: Some(code),
            ..Self::flag(Flag::ResetStream)
        }
    }

    /// [`Flag::StopSending`] with an error code.
    pub fn stop_sending(code: u32) -> Self {
        Self {
            error_code: Some(code),
            ..Self::flag(Flag::StopSending)
        }
    }

    /// A frame about the connection: the total number of accepted substreams.
    pub fn substream_limit(max_substreams: u64) -> Self {
        Self {
            max_substreams: Some(max_substreams),
            ..Self::default()
        }
    }

    /// A frame about the connection: the sender wants no new substreams.
    pub fn draining() -> Self {
        Self {
            draining: true,
            ..Self::default()
        }
    }

    /// A frame about the connection, the answer to [`Message::draining`]: the sender has opened so
    /// many substreams, and opens no more.
    pub fn opened(opened: u64) -> Self {
        Self {
            opened: Some(opened),
            ..Self::default()
        }
    }

    /// A frame about the connection: the sender closes it, with this code, if any, and this reason.
    pub fn goodbye(code: Option<u32>, reason: impl Into<String>) -> Self {
        Self {
            error_code: code,
            reason: Some(reason.into()),
            ..Self::flag(Flag::Fin)
        }
    }

    /// A credit frame without payload: `max_data` bytes are accepted in total.
    ///
    /// Only for peers that have sent the field themselves: rust-libp2p takes a frame with neither
    /// payload nor flag for the end of the stream.
    pub fn credit(max_data: u64) -> Self {
        Self {
            max_data: Some(max_data),
            ..Self::default()
        }
    }
}

/// Length of `value` as an unsigned varint.
const fn varint_len(value: u64) -> usize {
    (u64::BITS - (value | 1).leading_zeros()).div_ceil(7) as usize
}
