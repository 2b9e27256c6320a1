//! The frame decoder against a reading of the whole stream at once, and against prost.

use bytes::Bytes;

use super::{Input, oracle};
use anabranch::message::{DecodeError, FrameDecoder, MAX_BODY, Message};

/// Bytes of the longest length prefix that is accepted.
const MAX_PREFIX: usize = 3;

/// Messages, then the error that ends the stream or the bytes of an unfinished frame.
#[derive(Debug, PartialEq)]
struct Decoded {
    messages: Vec<Message>,
    end: Result<usize, DecodeErrorKind>,
}

/// A [`DecodeError`], but for what is wrong with a body.
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
    let reads_ahead = input.bool();
    // Long enough for the longest body, without a corpus of long inputs.
    let times = input.pick(&[1, 1, 2, 40]);
    let stream = Bytes::from(input.rest().repeat(times));

    let expected = model(&stream);
    assert_eq!(decode([stream.clone()], true), expected);
    assert_eq!(decode(pieces(&stream, &cuts), reads_ahead), expected);
}

/// Pieces of these lengths, over and over.
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

fn decode(pieces: impl IntoIterator<Item = Bytes>, reads: bool) -> Decoded {
    let mut decoder = FrameDecoder::new();
    let mut messages = Vec::new();
    for piece in pieces {
        decoder.push(piece);
        if reads && let Err(end) = drain(&mut decoder, &mut messages) {
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
                assert_eq!(decoder.buffered(), 0, "what is useless is freed");
                decoder.push(Bytes::from_static(&[0]));
                assert_eq!(decoder.next_message(), Err(error), "for ever");
                assert_eq!(decoder.buffered(), 0);
                return Err(error.into());
            }
        }
    }
}

/// The rules of docs/wire.md section 1, read off the whole stream.
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

/// Bytes of a length and its value, if it is complete.
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
