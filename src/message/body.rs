//! Parser for the protobuf body of one frame.
//!
//! Hand-written, so that the body is parsed in place and the payload is known as a range of it.
//! Tests compare it with prost: it accepts the same bytes, with the same values.

use std::ops::Range;

use super::{
    FIELD_DRAINING, FIELD_ERROR_CODE, FIELD_FLAG, FIELD_LABEL, FIELD_MAX_DATA,
    FIELD_MAX_SUBSTREAMS, FIELD_MESSAGE, FIELD_OPENED, FIELD_REASON, FIELD_STREAM, Flag,
    WIRE_BYTES, WIRE_END_GROUP, WIRE_FIXED32, WIRE_FIXED64, WIRE_START_GROUP, WIRE_VARINT,
};

/// Value of `flag` that closes a channel which the two ends do not already know to be over. Only
/// used on carriers that multiplex channels themselves; other peers ignore it, like every unknown
/// flag.
pub(super) const FLAG_CHANNEL_CLOSED: i32 = 4;

/// Nesting limit of unknown groups, as in prost; it bounds the stack that a peer can use.
const MAX_DEPTH: u32 = 100;

/// Why the body of a frame is malformed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProtobufError {
    /// A field extends past the end of the body.
    #[error("field is truncated")]
    Truncated,
    /// A varint does not fit in 64 bits.
    #[error("varint exceeds 64 bits")]
    Varint,
    /// A field number is zero or does not fit in 29 bits.
    #[error("invalid field number")]
    FieldNumber,
    /// A wire type is undefined, or is not that of the field.
    #[error("wrong wire type")]
    WireType,
    /// An end-group tag without its start.
    #[error("unexpected end of a group")]
    EndGroup,
    /// Groups are nested too deeply.
    #[error("groups are nested too deeply")]
    Depth,
    /// The label, or the reason, is not UTF-8.
    #[error("text is not utf-8")]
    Utf8,
}

/// A parsed body, borrowed.
#[derive(Debug, Default)]
pub(super) struct Body<'a> {
    pub(super) flag: Option<Flag>,
    pub(super) unknown_flag: bool,
    /// The frame closes its channel; on carriers that multiplex channels themselves.
    pub(super) closes_channel: bool,
    /// Range of the payload within the body.
    pub(super) payload: Range<usize>,
    pub(super) error_code: Option<u32>,
    pub(super) max_data: Option<u64>,
    pub(super) stream: Option<u64>,
    pub(super) label: Option<&'a str>,
    pub(super) max_substreams: Option<u64>,
    pub(super) reason: Option<&'a str>,
    pub(super) draining: bool,
    pub(super) opened: Option<u64>,
}

impl<'a> Body<'a> {
    /// Parses a whole body. The last occurrence of a repeated field wins, as protobuf requires.
    #[inline]
    pub(super) fn parse(bytes: &'a [u8]) -> Result<Self, ProtobufError> {
        let mut body = Self::default();
        let mut reader = Reader { rest: bytes };
        while !reader.rest.is_empty() {
            let (field, wire) = reader.key()?;
            match field {
                FIELD_FLAG => {
                    // Protobuf truncates wider enum values to 32 bits.
                    let value = reader.uint(wire)? as i32;
                    body.flag = Flag::from_wire(value);
                    body.unknown_flag = body.flag.is_none();
                    body.closes_channel = value == FLAG_CHANNEL_CLOSED;
                }
                FIELD_MESSAGE => {
                    let payload = reader.delimited(wire)?;
                    let end = bytes.len() - reader.rest.len();
                    body.payload = end - payload.len()..end;
                }
                // Truncated to 32 bits too.
                FIELD_ERROR_CODE => body.error_code = Some(reader.uint(wire)? as u32),
                FIELD_MAX_DATA => body.max_data = Some(reader.uint(wire)?),
                FIELD_STREAM => body.stream = Some(reader.uint(wire)?),
                FIELD_LABEL => body.label = Some(reader.text(wire)?),
                FIELD_MAX_SUBSTREAMS => body.max_substreams = Some(reader.uint(wire)?),
                FIELD_REASON => body.reason = Some(reader.text(wire)?),
                FIELD_DRAINING => body.draining = reader.uint(wire)? != 0,
                FIELD_OPENED => body.opened = Some(reader.uint(wire)?),
                _ => reader.skip(field, wire, MAX_DEPTH)?,
            }
        }
        Ok(body)
    }
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// A protobuf varint: up to 64 bits, not necessarily minimal.
    #[inline]
    fn varint(&mut self) -> Result<u64, ProtobufError> {
        match self.rest {
            [byte, rest @ ..] if *byte < 0x80 => {
                self.rest = rest;
                Ok(u64::from(*byte))
            }
            // Fast path for the length of every payload from 128 bytes up to the largest.
            [low, high, rest @ ..] if *high < 0x80 => {
                self.rest = rest;
                Ok(u64::from(*low & 0x7f) | u64::from(*high) << 7)
            }
            _ => self.long_varint(),
        }
    }

    fn long_varint(&mut self) -> Result<u64, ProtobufError> {
        let mut value = 0_u64;
        for (index, byte) in (0_u32..10).zip(self.rest) {
            // The tenth byte holds the 64th bit; no byte may follow.
            if index == 9 && *byte > 1 {
                return Err(ProtobufError::Varint);
            }
            value |= u64::from(byte & 0x7f) << (7 * index);
            if byte & 0x80 == 0 {
                self.take(index as usize + 1)?;
                return Ok(value);
            }
        }
        Err(ProtobufError::Truncated)
    }

    #[inline]
    fn take(&mut self, len: usize) -> Result<&'a [u8], ProtobufError> {
        let (taken, rest) = self
            .rest
            .split_at_checked(len)
            .ok_or(ProtobufError::Truncated)?;
        self.rest = rest;
        Ok(taken)
    }

    /// Field number and wire type.
    #[inline]
    fn key(&mut self) -> Result<(u32, u32), ProtobufError> {
        let key = u32::try_from(self.varint()?).map_err(|_| ProtobufError::FieldNumber)?;
        let (field, wire) = (key >> 3, key & 7);
        if wire > WIRE_FIXED32 {
            return Err(ProtobufError::WireType);
        }
        if field == 0 {
            return Err(ProtobufError::FieldNumber);
        }
        Ok((field, wire))
    }

    /// Value of an integer field.
    #[inline]
    fn uint(&mut self, wire: u32) -> Result<u64, ProtobufError> {
        if wire != WIRE_VARINT {
            return Err(ProtobufError::WireType);
        }
        self.varint()
    }

    /// Content of a bytes or string field.
    #[inline]
    fn delimited(&mut self, wire: u32) -> Result<&'a [u8], ProtobufError> {
        if wire != WIRE_BYTES {
            return Err(ProtobufError::WireType);
        }
        let len = usize::try_from(self.varint()?).map_err(|_| ProtobufError::Truncated)?;
        self.take(len)
    }

    /// Content of a string field.
    fn text(&mut self, wire: u32) -> Result<&'a str, ProtobufError> {
        str::from_utf8(self.delimited(wire)?).map_err(|_| ProtobufError::Utf8)
    }

    /// Skips the value of an unknown field.
    fn skip(&mut self, field: u32, wire: u32, depth: u32) -> Result<(), ProtobufError> {
        // Plain fields are checked too, as in prost.
        let inner = depth.checked_sub(1).ok_or(ProtobufError::Depth)?;
        match wire {
            WIRE_VARINT => self.varint().map(drop),
            WIRE_FIXED64 => self.take(8).map(drop),
            WIRE_BYTES => self.delimited(wire).map(drop),
            WIRE_FIXED32 => self.take(4).map(drop),
            WIRE_START_GROUP => loop {
                match self.key()? {
                    (end, WIRE_END_GROUP) if end == field => return Ok(()),
                    (_, WIRE_END_GROUP) => return Err(ProtobufError::EndGroup),
                    (field, wire) => self.skip(field, wire, inner)?,
                }
            },
            WIRE_END_GROUP => Err(ProtobufError::EndGroup),
            _ => Err(ProtobufError::WireType),
        }
    }
}
