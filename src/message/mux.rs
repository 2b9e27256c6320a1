//! Frames that carry their stream id, for carriers whose substreams share one byte stream.
//!
//! A frame is first encoded as for any channel. [`append_routed`] copies it to the output and adds
//! the fields `stream` and, on the first frame of a substream, `label`; [`peek`] reads them without
//! removing the frame from the message that it arrived in.

use bytes::{BufMut, BytesMut};

use super::body::{Body, FLAG_CHANNEL_CLOSED};
use super::{
    DecodeError, FIELD_ERROR_CODE, FIELD_FLAG, FIELD_LABEL, FIELD_STREAM, Flag, MAX_BODY, Message,
    WIRE_BYTES, WIRE_VARINT, varint_len,
};

/// The largest stream id. Bounds the bytes that [`append_routed`] adds to a frame.
pub(crate) const MAX_STREAM: u64 = u32::MAX as u64;

/// Maximum bytes that the field `stream` adds to a frame, with a length prefix that may grow by
/// one.
pub(crate) const STREAM_FIELD_MAX: usize = 2 + 5 + 1;

/// The fields that a carrier needs to deliver a frame.
#[derive(Debug)]
pub(crate) struct Head<'a> {
    /// Length of the frame, with its prefix.
    pub(crate) len: usize,
    pub(crate) flag: Option<Flag>,
    pub(crate) error_code: Option<u32>,
    pub(crate) closes_channel: bool,
    pub(crate) has_payload: bool,
    pub(crate) stream: Option<u64>,
    pub(crate) label: Option<&'a str>,
    pub(crate) notice: Notice,
}

/// The fields of a frame about the connection, but for those of its close.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Notice {
    pub(crate) max_substreams: Option<u64>,
    pub(crate) draining: bool,
    pub(crate) opened: Option<u64>,
}

impl Notice {
    /// Whether the frame has none of these fields.
    pub(crate) fn is_empty(self) -> bool {
        self == Self::default()
    }

    pub(crate) fn into_message(self) -> Message {
        Message {
            max_substreams: self.max_substreams,
            draining: self.draining,
            opened: self.opened,
            ..Message::default()
        }
    }
}

/// Parses the frame at the start of `bytes` without consuming it; `None` if it is incomplete.
///
/// # Errors
/// As for [`FrameDecoder`](super::FrameDecoder): a frame whose announced length is too large is
/// refused before its bytes arrive.
#[inline]
pub(crate) fn peek(bytes: &[u8]) -> Result<Option<Head<'_>>, DecodeError> {
    let Some((body_len, prefix)) = prefix(bytes)? else {
        return Ok(None);
    };
    let len = prefix + body_len;
    let Some(body) = bytes.get(prefix..len) else {
        return Ok(None);
    };
    let body = Body::parse(body).map_err(DecodeError::Protobuf)?;
    Ok(Some(Head {
        len,
        flag: body.flag,
        error_code: body.error_code,
        closes_channel: body.closes_channel,
        has_payload: !body.payload.is_empty(),
        stream: body.stream,
        label: body.label,
        notice: Notice {
            max_substreams: body.max_substreams,
            draining: body.draining,
            opened: body.opened,
        },
    }))
}

/// Length of the longest prefix.
const LONGEST: usize = varint_len(MAX_BODY as u64);

/// The length of a body, and of its prefix.
#[inline]
fn prefix(bytes: &[u8]) -> Result<Option<(usize, usize)>, DecodeError> {
    let mut value = 0_usize;
    for (index, byte) in bytes.iter().enumerate().take(LONGEST) {
        if *byte == 0 && index > 0 {
            return Err(DecodeError::NonMinimalVarint);
        }
        value |= usize::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            return if value <= MAX_BODY {
                Ok(Some((value, index + 1)))
            } else {
                Err(DecodeError::FrameTooLarge {
                    len: value as u64,
                    max: MAX_BODY,
                })
            };
        }
    }
    if bytes.len() >= LONGEST {
        return Err(DecodeError::OverlongVarint);
    }
    Ok(None)
}

/// Lengths of an encoded frame's prefix and body; `None` if the pieces are not exactly one frame.
fn whole_frame(pieces: &[&[u8]]) -> Option<(usize, usize)> {
    let (body, prefix) = match prefix(pieces.first()?).ok()? {
        Some(lengths) => lengths,
        // Our driver splits after the prefix; others may split within it.
        None => {
            let bytes = pieces.iter().copied().flatten().copied();
            prefix(&bytes.take(LONGEST).collect::<Vec<_>>()).ok()??
        }
    };
    let len: usize = pieces.iter().map(|piece| piece.len()).sum();
    (prefix + body == len).then_some((prefix, body))
}

/// Length of a frame with its `stream` and `label` appended; `None` if `pieces` are not one frame.
pub(crate) fn routed_len(pieces: &[&[u8]], stream: u64, label: Option<&str>) -> Option<usize> {
    let (_, body) = whole_frame(pieces)?;
    let body = body + fields_len(stream, label);
    Some(varint_len(body as u64) + body)
}

fn fields_len(stream: u64, label: Option<&str>) -> usize {
    let label = label.map_or(0, |label| 2 + varint_len(label.len() as u64) + label.len());
    2 + varint_len(stream) + label
}

/// Like [`append_pieces`], for a frame in one piece.
pub(crate) fn append_routed(
    out: &mut BytesMut,
    frame: &[u8],
    stream: u64,
    label: Option<&str>,
) -> bool {
    append_pieces(out, &[frame], stream, label)
}

/// Appends a frame to `out` with `stream`, and `label` if given. Returns `false`, with nothing
/// written, if the pieces are not one encoded frame.
pub(crate) fn append_pieces(
    out: &mut BytesMut,
    pieces: &[&[u8]],
    stream: u64,
    label: Option<&str>,
) -> bool {
    let Some((prefix, body)) = whole_frame(pieces) else {
        return false;
    };
    let len = body + fields_len(stream, label);
    // Grows at most once for the whole frame.
    out.reserve(varint_len(len as u64) + len);
    put_varint(out, len as u64);
    let mut skip = prefix;
    for piece in pieces {
        let skipped = skip.min(piece.len());
        out.put_slice(piece.get(skipped..).unwrap_or_default());
        skip -= skipped;
    }
    put_key(out, FIELD_STREAM, WIRE_VARINT);
    put_varint(out, stream);
    if let Some(label) = label {
        put_key(out, FIELD_LABEL, WIRE_BYTES);
        put_varint(out, label.len() as u64);
        out.put_slice(label.as_bytes());
    }
    true
}

/// Appends a frame with `stream` and `label` only.
pub(crate) fn append_open(out: &mut BytesMut, stream: u64, label: &str) {
    append_routed(out, &[0], stream, Some(label));
}

/// Appends a frame that closes a channel.
pub(crate) fn append_channel_closed(out: &mut BytesMut, stream: u64) {
    let body = [(FIELD_FLAG << 3) as u8, FLAG_CHANNEL_CLOSED as u8];
    append_routed(out, &[2, body[0], body[1]], stream, None);
}

/// Appends a frame with a flag, and an error code if given.
pub(crate) fn append_flag(out: &mut BytesMut, stream: u64, flag: Flag, code: Option<u32>) {
    let code_len = code.map_or(0, |code| 1 + varint_len(u64::from(code)));
    let len = 2 + code_len + fields_len(stream, None);
    out.reserve(varint_len(len as u64) + len);
    put_varint(out, len as u64);
    put_key(out, FIELD_FLAG, WIRE_VARINT);
    put_varint(out, flag as u64);
    if let Some(code) = code {
        put_key(out, FIELD_ERROR_CODE, WIRE_VARINT);
        put_varint(out, u64::from(code));
    }
    put_key(out, FIELD_STREAM, WIRE_VARINT);
    put_varint(out, stream);
}

fn put_key(out: &mut BytesMut, field: u32, wire: u32) {
    put_varint(out, u64::from(field << 3 | wire));
}

fn put_varint(out: &mut BytesMut, mut value: u64) {
    let mut bytes = [0; 10];
    let mut len = 0;
    for byte in &mut bytes {
        len += 1;
        *byte = value as u8 & 0x7f;
        value >>= 7;
        if value == 0 {
            break;
        }
        *byte |= 0x80;
    }
    out.put_slice(bytes.get(..len).unwrap_or_default());
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::message::{FrameDecoder, MAX_FRAME, Message};

    fn routed(message: &Message, stream: u64, label: Option<&str>) -> Bytes {
        let mut out = BytesMut::new();
        let frame = message.encode();
        assert!(append_routed(&mut out, &frame, stream, label));
        assert_eq!(routed_len(&[&frame[..]], stream, label), Some(out.len()));
        out.freeze()
    }

    #[test]
    fn routed_frames_are_what_the_codec_would_have_written() {
        for payload in [0, 1, 100, 125, 126, 127, 128, 8000, 16_300] {
            for (stream, label) in [
                (0, None),
                (2, Some("")),
                (0x7f, Some("/echo")),
                (0x80, None),
            ] {
                let message = Message::data(Bytes::from(vec![7; payload]));
                let bytes = routed(&message, stream, label);
                let whole = Message {
                    stream: Some(stream),
                    label: label.map(str::to_owned),
                    ..message
                };
                assert_eq!(bytes, whole.encode());
                let head = peek(&bytes).unwrap().unwrap();
                assert_eq!(
                    (head.len, head.stream, head.label),
                    (bytes.len(), Some(stream), label)
                );
                assert_eq!(head.has_payload, payload > 0);
            }
        }
    }

    #[test]
    fn the_largest_frame_of_a_carrier_stays_within_the_largest_of_all() {
        let most = crate::message::max_payload(MAX_FRAME - STREAM_FIELD_MAX, false);
        let frame = Message::data(Bytes::from(vec![1; most])).encode();
        assert_eq!(frame.len(), MAX_FRAME - STREAM_FIELD_MAX);
        assert!(routed_len(&[&frame[..]], MAX_STREAM, None).unwrap() <= MAX_FRAME);
    }

    #[test]
    fn the_field_stream_adds_at_most_what_is_left_free_for_it() {
        // With the field, the length prefix of this frame needs a second byte.
        let message = Message::data(Bytes::from(vec![1; 121]));
        let bytes = routed(&message, MAX_STREAM, None);
        assert_eq!(bytes.len() - message.encoded_len(), STREAM_FIELD_MAX);
    }

    #[test]
    fn a_notice_keeps_its_fields() {
        assert!(Notice::default().is_empty());
        assert_eq!(Notice::default().into_message(), Message::default());
        let notice = Notice {
            max_substreams: Some(7),
            draining: true,
            opened: Some(9),
        };
        assert!(!notice.is_empty());
        let message = notice.into_message();
        assert_eq!(
            (message.max_substreams, message.draining, message.opened),
            (Some(7), true, Some(9))
        );
        let bytes = message.encode();
        assert_eq!(peek(&bytes).unwrap().unwrap().notice, notice);
    }

    #[test]
    fn flags_and_closes_are_found_again() {
        let mut out = BytesMut::new();
        append_channel_closed(&mut out, 300);
        append_flag(&mut out, 0, Flag::Fin, Some(77));
        append_open(&mut out, 4, "x");
        let head = peek(&out).unwrap().unwrap();
        assert!(head.closes_channel && head.flag.is_none() && head.stream == Some(300));
        let at = head.len;
        let head = peek(&out[at..]).unwrap().unwrap();
        assert_eq!(
            (head.flag, head.error_code, head.stream),
            (Some(Flag::Fin), Some(77), Some(0))
        );
        let at = at + head.len;
        let head = peek(&out[at..]).unwrap().unwrap();
        assert_eq!(
            (head.label, head.stream, head.has_payload),
            (Some("x"), Some(4), false)
        );
        assert_eq!(at + head.len, out.len());
    }

    #[test]
    fn a_frame_may_be_cut_anywhere_even_within_its_prefix() {
        let frame = Message::data(vec![7; 300].into()).encode();
        let mut whole = BytesMut::new();
        assert!(append_routed(&mut whole, &frame, 2, Some("")));
        for cut in 0..=frame.len() {
            let (head, rest) = frame.split_at(cut);
            let mut out = BytesMut::new();
            assert!(append_pieces(&mut out, &[head, &[], rest], 2, Some("")));
            assert_eq!(out, whole, "cut at {cut}");
        }
    }

    #[test]
    fn what_is_not_one_frame_is_not_written() {
        let mut out = BytesMut::new();
        for bytes in [&b""[..], b"?", &[1], &[1, 8, 0], &[0x80, 0]] {
            assert!(!append_routed(&mut out, bytes, 2, None), "{bytes:?}");
        }
        assert!(out.is_empty());
    }

    #[test]
    fn peek_agrees_with_the_decoder_on_prefixes() {
        for bytes in [
            &[0x80, 0x00][..],
            &[0xff, 0xff, 0xff, 0x01],
            &[0x81, 0x80, 0x02],
            &[0xff, 0xff, 0x01],
            &[0x80],
            &[0x03, 0x08],
            &[0x02, 0x08, 0x00],
        ] {
            let mut decoder = FrameDecoder::new();
            decoder.push(Bytes::copy_from_slice(bytes));
            let decoded = decoder.next_message().map(|message| message.is_some());
            assert_eq!(
                peek(bytes).map(|head| head.is_some()),
                decoded,
                "{bytes:x?}"
            );
        }
    }
}
