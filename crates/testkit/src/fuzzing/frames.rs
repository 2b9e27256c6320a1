//! Compares the frame decoder with a model that decodes the whole stream at once, and with prost.

use bytes::Bytes;

use super::{Input, oracle};
use anabranch::message::{DecodeError, FrameDecoder, MAX_BODY, Message};

/// Maximum bytes of an accepted length prefix.
const MAX_PREFIX: usize = 3;

/// The messages of a stream, and its end: an error, or the bytes of an incomplete frame.
#[derive(Debug, PartialEq)]
struct Decoded {
    messages: Vec<Message>,
    end: Result<usize, DecodeErrorKind>,
}

/// A [`DecodeError`] without the details of an invalid body, which prost words differently.
#[derive(Debug, Clone, Copy, PartialEq)]
enum DecodeErrorKind {
    Exactly(DecodeError),
    Protobuf,
}

impl From<DecodeError> for DecodeErrorKind {
    fn from(error: DecodeError) -> Self {
        match error {
            DecodeError::Protobuf(_) => Self::Protobuf,
            error => Self::Exactly(error),
        }
    }
}

pub(super) fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let cuts: Vec<usize> = (0..input.below(8))
        .map(|_| usize::from(input.u8()) * if input.bool() { 1 } else { 64 })
        .collect();
    let decodes_each_piece = input.bool();
    // Reaches the longest body without long inputs in the corpus.
    let times = input.pick(&[1, 1, 2, 40]);
    let stream = Bytes::from(input.rest().repeat(times));

    let expected = model(&stream);
    assert_eq!(decode([stream.clone()], true), expected);
    assert_eq!(decode(pieces(&stream, &cuts), decodes_each_piece), expected);
}

/// Splits the stream into pieces of these lengths, repeated.
fn pieces(stream: &Bytes, cuts: &[usize]) -> Vec<Bytes> {
    let mut rest = stream.clone();
    let mut pieces = Vec::new();
    for length in cuts.iter().cycle() {
        if rest.is_empty() || cuts.iter().all(|length| *length == 0) {
            break;
        }
        pieces.push(rest.split_to((*length).min(rest.len())));
    }
    pieces.push(rest);
    pieces
}

/// Decodes after every piece, or only after the last.
fn decode(pieces: impl IntoIterator<Item = Bytes>, after_each: bool) -> Decoded {
    let mut decoder = FrameDecoder::new();
    let mut messages = Vec::new();
    for piece in pieces {
        decoder.push(piece);
        if after_each && let Err(end) = drain(&mut decoder, &mut messages) {
            return Decoded {
                messages,
                end: Err(end),
            };
        }
    }
    let end = drain(&mut decoder, &mut messages).map(|()| decoder.buffered());
    Decoded { messages, end }
}

fn drain(decoder: &mut FrameDecoder, messages: &mut Vec<Message>) -> Result<(), DecodeErrorKind> {
    loop {
        match decoder.next_message() {
            Ok(Some(message)) => messages.push(message),
            Ok(None) => {
                assert!(decoder.buffered() < MAX_BODY + MAX_PREFIX);
                assert_eq!(decoder.is_empty(), decoder.buffered() == 0);
                return Ok(());
            }
            Err(error) => {
                assert_eq!(decoder.buffered(), 0, "an error frees the buffer");
                decoder.push(Bytes::from_static(&[0]));
                assert_eq!(decoder.next_message(), Err(error), "an error is final");
                assert_eq!(decoder.buffered(), 0);
                return Err(error.into());
            }
        }
    }
}

/// Decodes the whole stream by the rules of `docs/wire.md` section 1.
fn model(stream: &Bytes) -> Decoded {
    let mut messages = Vec::new();
    let mut at = 0;
    let end = loop {
        let rest = &stream[at..];
        let (prefix, length) = match prefix(rest) {
            Ok(Some(found)) => found,
            Ok(None) => break Ok(rest.len()),
            Err(error) => break Err(error.into()),
        };
        let Some(body) = rest.get(prefix..prefix + length) else {
            break Ok(rest.len());
        };
        match oracle::decode_body(Bytes::copy_from_slice(body)) {
            Some(message) => messages.push(message),
            None => break Err(DecodeErrorKind::Protobuf),
        }
        at += prefix + length;
    };
    Decoded { messages, end }
}

/// The number of bytes of a length prefix and its value, if it is complete.
fn prefix(bytes: &[u8]) -> Result<Option<(usize, usize)>, DecodeError> {
    let mut value = 0;
    for (index, byte) in bytes.iter().take(MAX_PREFIX).enumerate() {
        if *byte == 0 && index > 0 {
            return Err(DecodeError::NonMinimalVarint);
        }
        value |= usize::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            let (len, max) = (value as u64, MAX_BODY);
            return match value <= max {
                true => Ok(Some((index + 1, value))),
                false => Err(DecodeError::FrameTooLarge { len, max }),
            };
        }
    }
    match bytes.len() >= MAX_PREFIX {
        true => Err(DecodeError::OverlongVarint),
        false => Ok(None),
    }
}
