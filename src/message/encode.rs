//! Encoder of frames.

use std::ops::Range;

use bytes::{BufMut, Bytes, BytesMut};

use super::{
    FIELD_DRAINING, FIELD_ERROR_CODE, FIELD_FLAG, FIELD_LABEL, FIELD_MAX_DATA,
    FIELD_MAX_SUBSTREAMS, FIELD_MESSAGE, FIELD_OPENED, FIELD_REASON, FIELD_STREAM, Message,
    WIRE_BYTES, WIRE_VARINT, varint_len,
};

/// Bytes to leave free before a payload for [`seal_data_frame`]: a length prefix of 3, the key of
/// the payload field, and its length of 3.
///
/// Enough for payloads below 2^21 bytes - 4.
pub const DATA_HEADROOM: usize = 3 + 1 + 3;

/// Bytes to leave free after a payload for [`seal_data_frame`], if credit may be added: the key of
/// the `max_data` field and the longest varint.
pub const DATA_TAILROOM: usize = MAX_DATA_KEY_LEN + 10;

const MAX_DATA_KEY_LEN: usize = key_len(FIELD_MAX_DATA);

// Prefix, flag, key and length of the payload.
const HEAD_MAX: usize = 10 + 2 + 1 + 10;
// error_code, max_data, stream, max_substreams, key and length of the reason; or of the label,
// which comes before the last two. Or without both, draining and opened after the first four.
const TAIL_MAX: usize = (1 + 5) + (2 + 10) + (2 + 10) + (2 + 10) + (2 + 1) + (2 + 10);

/// Why a payload could not be framed in place.
///
/// Each is an error of the caller; the buffer is unchanged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SealError {
    /// The payload range is reversed or extends past the buffer.
    #[error("payload range {start}..{end} is not within the buffer of {len} bytes")]
    OutOfRange {
        /// Start of the payload.
        start: usize,
        /// End of the payload.
        end: usize,
        /// Length of the buffer.
        len: usize,
    },
    /// The header does not fit before the payload.
    #[error("frame header needs {needed} bytes before the payload, but {available} are free")]
    NoHeadroom {
        /// Bytes that the header takes; at most [`DATA_HEADROOM`] for payloads within the limit.
        needed: usize,
        /// Bytes before the payload.
        available: usize,
    },
    /// The `max_data` field does not fit after the payload.
    #[error("max_data field needs {needed} bytes after the payload, but {available} are free")]
    NoTailroom {
        /// Bytes that the field takes; at most [`DATA_TAILROOM`].
        needed: usize,
        /// Bytes after the payload.
        available: usize,
    },
}

/// Length of the largest payload whose data frame, length prefix included, fits in `limit` bytes.
///
/// With `with_max_data`, [`DATA_TAILROOM`] bytes stay free for any value of `max_data`;
/// [`Message::max_payload`] counts the actual value. Zero if no payload fits.
pub const fn max_payload(limit: usize, with_max_data: bool) -> usize {
    max_payload_beside(limit, if with_max_data { DATA_TAILROOM } else { 0 })
}

/// Frames `buf[payload]` in place: writes the header directly before it and `max_data`, if given,
/// directly after it, over whatever is there.
///
/// Returns the range of the whole frame in `buf`. The payload is neither moved nor copied, and
/// bytes outside the frame are not touched. The room needed never exceeds [`DATA_HEADROOM`] and
/// [`DATA_TAILROOM`] for payloads that [`max_payload`] allows.
///
/// # Errors
///
/// [`SealError`] if the range is not in the buffer, or the room before or after it does not
/// suffice; `buf` is then unchanged.
pub fn seal_data_frame(
    buf: &mut [u8],
    payload: Range<usize>,
    max_data: Option<u64>,
) -> Result<Range<usize>, SealError> {
    let Range { start, end } = payload;
    if start > end || end > buf.len() {
        return Err(SealError::OutOfRange {
            start,
            end,
            len: buf.len(),
        });
    }
    let ends = DataFrameEnds::new(end - start, max_data);
    let (head, tail) = (ends.head(), ends.tail());

    // Both checks precede the first write: a refused buffer stays unchanged.
    let frame_start = start.checked_sub(head.len()).ok_or(SealError::NoHeadroom {
        needed: head.len(),
        available: start,
    })?;
    let available = buf.len() - end;
    if tail.len() > available {
        return Err(SealError::NoTailroom {
            needed: tail.len(),
            available,
        });
    }
    let frame_end = end + tail.len();
    buf[frame_start..start].copy_from_slice(head);
    buf[end..frame_end].copy_from_slice(tail);
    Ok(frame_start..frame_end)
}

/// The bytes before and after the payload of a data frame, for a payload that is not copied.
pub(crate) struct DataFrameEnds {
    head: Scratch<HEAD_MAX>,
    tail: Scratch<DATA_TAILROOM>,
}

impl DataFrameEnds {
    #[inline]
    pub(crate) fn new(payload_len: usize, max_data: Option<u64>) -> Self {
        let mut tail = Scratch::new();
        if let Some(max_data) = max_data {
            tail.uint_field(FIELD_MAX_DATA, max_data);
        }
        let mut head = Scratch::new();
        head.varint((payload_field_len(payload_len) + tail.len) as u64);
        if payload_len > 0 {
            head.bytes_field(FIELD_MESSAGE, payload_len);
        }
        Self { head, tail }
    }

    pub(crate) fn head(&self) -> &[u8] {
        self.head.written()
    }

    pub(crate) fn tail(&self) -> &[u8] {
        self.tail.written()
    }
}

impl Message {
    /// Length of the encoded frame, length prefix included.
    pub fn encoded_len(&self) -> usize {
        let body = self.body_len();
        varint_len(body as u64) + body
    }

    /// Encodes the frame into one allocation of exactly [`encoded_len`](Self::encoded_len) bytes.
    ///
    /// Does not check the frame against [`MAX_FRAME`](super::MAX_FRAME).
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(self.encoded_len());
        self.encode_into(&mut out);
        out.freeze()
    }

    /// Appends the encoded frame to `out`; allocates nothing if `out` has room for it.
    ///
    /// Does not check the frame against [`MAX_FRAME`](super::MAX_FRAME).
    pub fn encode_into(&self, out: &mut BytesMut) {
        let body = self.body_len();
        let mut head = Scratch::<HEAD_MAX>::new();
        head.varint(body as u64);
        if let Some(flag) = self.flag {
            head.uint_field(FIELD_FLAG, flag as u64);
        }
        if !self.payload.is_empty() {
            head.bytes_field(FIELD_MESSAGE, self.payload.len());
        }

        // Grows at most once, and not at all in `encode`, which allocates the exact size.
        out.reserve(varint_len(body as u64) + body);
        out.put_slice(head.written());
        out.put_slice(&self.payload);
        if self.has_tail() {
            self.put_tail(out);
        }
    }

    /// Length of the largest payload that this message can carry in a frame of `limit` bytes, which
    /// include the length prefix and the other fields. The present payload does not count.
    ///
    /// Zero if no payload fits, even if the other fields alone are more than `limit`.
    pub fn max_payload(&self, limit: usize) -> usize {
        max_payload_beside(limit, self.other_fields_len())
    }

    fn body_len(&self) -> usize {
        payload_field_len(self.payload.len()) + self.other_fields_len()
    }

    /// Length of every field but the payload.
    fn other_fields_len(&self) -> usize {
        // A flag takes one byte of key and, below 128, one of value.
        let flag = if self.flag.is_some() { 2 } else { 0 };
        if !self.has_tail() {
            return flag;
        }
        let uint =
            |field, value: Option<u64>| value.map_or(0, |value| key_len(field) + varint_len(value));
        let text = |field, value: &Option<String>| {
            value.as_ref().map_or(0, |text| {
                key_len(field) + varint_len(text.len() as u64) + text.len()
            })
        };
        flag + uint(FIELD_ERROR_CODE, self.error_code.map(u64::from))
            + uint(FIELD_MAX_DATA, self.max_data)
            + uint(FIELD_STREAM, self.stream)
            + uint(FIELD_MAX_SUBSTREAMS, self.max_substreams)
            + uint(FIELD_DRAINING, self.draining.then_some(1))
            + uint(FIELD_OPENED, self.opened)
            + text(FIELD_LABEL, &self.label)
            + text(FIELD_REASON, &self.reason)
    }

    /// Whether any field follows the payload. Most frames have none.
    fn has_tail(&self) -> bool {
        self.error_code.is_some()
            || self.max_data.is_some()
            || self.stream.is_some()
            || self.label.is_some()
            || self.max_substreams.is_some()
            || self.draining
            || self.opened.is_some()
            || self.reason.is_some()
    }

    fn put_tail(&self, out: &mut BytesMut) {
        let mut tail = Scratch::<TAIL_MAX>::new();
        if let Some(code) = self.error_code {
            tail.uint_field(FIELD_ERROR_CODE, u64::from(code));
        }
        if let Some(max_data) = self.max_data {
            tail.uint_field(FIELD_MAX_DATA, max_data);
        }
        if let Some(stream) = self.stream {
            tail.uint_field(FIELD_STREAM, stream);
        }
        if let Some(label) = &self.label {
            tail.bytes_field(FIELD_LABEL, label.len());
            out.put_slice(tail.written());
            out.put_slice(label.as_bytes());
            tail = Scratch::new();
        }
        if let Some(max_substreams) = self.max_substreams {
            tail.uint_field(FIELD_MAX_SUBSTREAMS, max_substreams);
        }
        if let Some(reason) = &self.reason {
            tail.bytes_field(FIELD_REASON, reason.len());
            out.put_slice(tail.written());
            out.put_slice(reason.as_bytes());
            tail = Scratch::new();
        }
        if self.draining {
            tail.uint_field(FIELD_DRAINING, 1);
        }
        if let Some(opened) = self.opened {
            tail.uint_field(FIELD_OPENED, opened);
        }
        out.put_slice(tail.written());
    }
}

const fn key_len(field: u32) -> usize {
    varint_len((field as u64) << 3)
}

/// Length of the payload field; an empty payload is omitted.
const fn payload_field_len(payload: usize) -> usize {
    if payload == 0 {
        0
    } else {
        key_len(FIELD_MESSAGE) + varint_len(payload as u64) + payload
    }
}

/// Like [`max_payload`], with `others` bytes of other fields.
const fn max_payload_beside(limit: usize, others: usize) -> usize {
    let body = largest_delimited(limit);
    match body.checked_sub(others + key_len(FIELD_MESSAGE)) {
        Some(room) => largest_delimited(room),
        None => 0,
    }
}

/// The largest `n` such that `n` bytes and their length as a varint fit in `room` bytes, or zero.
const fn largest_delimited(room: usize) -> usize {
    let mut prefix = 1;
    while prefix < room {
        let n = room - prefix;
        // A prefix longer than `n` needs leaves a byte unused: with one byte more, `n` would need
        // that prefix and no longer fit.
        if varint_len(n as u64) <= prefix {
            return n;
        }
        prefix += 1;
    }
    0
}

/// A few bytes on the stack, so that `out` is grown and bounds-checked once, not once per byte.
///
/// Callers choose `N` for the longest encoding of their fields.
struct Scratch<const N: usize> {
    bytes: [u8; N],
    len: usize,
}

impl<const N: usize> Scratch<N> {
    const fn new() -> Self {
        Self {
            bytes: [0; N],
            len: 0,
        }
    }

    fn written(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    fn byte(&mut self, byte: u8) {
        self.bytes[self.len] = byte;
        self.len += 1;
    }

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.byte(value as u8 | 0x80);
            value >>= 7;
        }
        self.byte(value as u8);
    }

    fn uint_field(&mut self, field: u32, value: u64) {
        self.varint(u64::from(field << 3 | WIRE_VARINT));
        self.varint(value);
    }

    /// Key and length; the caller writes the content.
    fn bytes_field(&mut self, field: u32, len: usize) {
        self.varint(u64::from(field << 3 | WIRE_BYTES));
        self.varint(len as u64);
    }
}
