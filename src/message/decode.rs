//! Splits a byte stream into frames.

use std::{collections::VecDeque, mem};

use bytes::{Buf, Bytes};

use super::{
    MAX_BODY, Message,
    body::{Body, ProtobufError},
    varint_len,
};

/// Why the bytes of a substream are not frames. The error is final: the start of the next frame can
/// not be found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// A frame length is encoded in more bytes than necessary.
    #[error("frame length is not a minimal varint")]
    NonMinimalVarint,
    /// A frame length has more bytes than the largest accepted length.
    #[error("frame length varint is too long")]
    OverlongVarint,
    /// A frame length exceeds the limit.
    #[error("frame body of {len} bytes exceeds the limit of {max}")]
    FrameTooLarge {
        /// The announced length of the body.
        len: u64,
        /// The limit.
        max: usize,
    },
    /// The body of a frame is not a message.
    #[error("malformed frame body: {0}")]
    Protobuf(ProtobufError),
}

impl Message {
    /// Decodes the body of one frame, without its length prefix.
    ///
    /// The payload is a slice of `body`; only texts are copied.
    ///
    /// # Errors
    ///
    /// [`DecodeError::Protobuf`] if the body is malformed. Unknown fields and flags are not errors.
    pub fn decode_body(mut body: Bytes) -> Result<Self, DecodeError> {
        let parsed = Body::parse(&body).map_err(DecodeError::Protobuf)?;
        let payload = parsed.payload.clone();
        let mut message = parsed.into_message();
        if !payload.is_empty() {
            // Shortened in place, not sliced: free if no field follows the payload.
            body.truncate(payload.end);
            body.advance(payload.start);
            message.payload = body;
        }
        Ok(message)
    }
}

impl Body<'_> {
    /// The message, with an empty payload.
    fn into_message(self) -> Message {
        Message {
            flag: self.flag,
            payload: Bytes::new(),
            error_code: self.error_code,
            max_data: self.max_data,
            stream: self.stream,
            label: self.label.map(str::to_owned),
            max_substreams: self.max_substreams,
            reason: self.reason.map(str::to_owned),
            draining: self.draining,
            opened: self.opened,
            unknown_flag: self.unknown_flag,
        }
    }
}

/// Incremental decoder for the frames of one substream, from carrier messages split and merged
/// anywhere.
///
/// [`push`](Self::push) what the carrier delivers, then take messages with
/// [`next_message`](Self::next_message) until there are none. The decoder then holds one unfinished
/// frame at most, within the limit on bodies plus a length prefix. Its memory has the announced
/// length and is allocated when the first byte of a split body arrives.
///
/// go-libp2p and js-libp2p send the prefix and the body of a frame as two carrier messages; that
/// costs no copy either.
#[derive(Debug)]
pub struct FrameDecoder {
    /// The unread rest of the oldest push.
    current: Bytes,
    /// Later pushes, none of them empty. Used only if the caller pushes before reading.
    queued: VecDeque<Bytes>,
    queued_len: usize,
    /// Original length of the push that `current` is the rest of.
    pushed_len: usize,
    /// Length of the allocation that the last payload is a slice of.
    backing: usize,
    frame: Frame,
    max_body: usize,
    poison: Option<DecodeError>,
}

/// Progress of the frame at the head of the stream.
#[derive(Debug)]
enum Frame {
    /// Within the length prefix.
    Prefix {
        /// Value of its bytes so far.
        value: u64,
        /// Number of its bytes so far.
        read: usize,
    },
    /// Length known; the body may still arrive whole.
    Announced { len: usize },
    /// The body is split: its bytes so far. The capacity is the length of the body.
    Partial { len: usize, bytes: Vec<u8> },
}

impl Frame {
    const START: Self = Self::Prefix { value: 0, read: 0 };

    fn held(&self) -> usize {
        match self {
            Self::Prefix { read, .. } => *read,
            Self::Announced { len } => varint_len(*len as u64),
            Self::Partial { len, bytes } => varint_len(*len as u64) + bytes.len(),
        }
    }
}

impl Default for FrameDecoder {
    fn default() -> Self {
        Self::new()
    }
}

impl FrameDecoder {
    /// A decoder that accepts bodies of up to [`MAX_BODY`] bytes.
    pub fn new() -> Self {
        Self::with_max_body(MAX_BODY)
    }

    /// A decoder that accepts bodies of up to `max_body` bytes.
    ///
    /// A peer can make this side allocate `max_body` bytes for a frame that it never finishes.
    pub fn with_max_body(max_body: usize) -> Self {
        Self {
            current: Bytes::new(),
            queued: VecDeque::new(),
            queued_len: 0,
            pushed_len: 0,
            backing: 0,
            frame: Frame::START,
            max_body,
            poison: None,
        }
    }

    /// Adds the bytes of one carrier message. Frames that it holds entirely are decoded as slices
    /// of it, without a copy.
    ///
    /// Bytes are held until [`next_message`](Self::next_message) has consumed them. After an error
    /// they are dropped at once.
    pub fn push(&mut self, message: Bytes) {
        if self.poison.is_some() || message.is_empty() {
            return;
        }
        if self.current.is_empty() {
            self.pushed_len = message.len();
            self.current = message;
        } else {
            // No overflow: these are bytes in memory.
            self.queued_len += message.len();
            self.queued.push_back(message);
        }
    }

    /// The next message, or `Ok(None)` if its frame is incomplete.
    ///
    /// # Errors
    ///
    /// [`DecodeError`] if the bytes are not frames, after all frames before them were returned. The
    /// error is final: buffered bytes are freed, later pushes are dropped, and every further call
    /// returns the same error.
    pub fn next_message(&mut self) -> Result<Option<Message>, DecodeError> {
        if let Some(error) = self.poison {
            return Err(error);
        }
        self.advance().inspect_err(|error| {
            *self = Self::with_max_body(self.max_body);
            self.poison = Some(*error);
        })
    }

    /// Bytes held: those of the unfinished frame with its length prefix, and those pushed but
    /// unread.
    pub fn buffered(&self) -> usize {
        self.frame.held() + self.current.len() + self.queued_len
    }

    /// Length of the allocation that the payload of the last message is a slice of and keeps alive:
    /// the pushed carrier message, or the body of the frame if it came in parts.
    pub fn backing(&self) -> usize {
        self.backing
    }

    /// Whether nothing is held. After [`next_message`](Self::next_message) has returned `Ok(None)`,
    /// this distinguishes a stream that ended between frames from one that ended within a frame.
    pub fn is_empty(&self) -> bool {
        self.buffered() == 0
    }

    fn advance(&mut self) -> Result<Option<Message>, DecodeError> {
        loop {
            match &mut self.frame {
                Frame::Prefix { value, read } => {
                    let (value, read) = (*value, *read);
                    let Some(len) = self.read_prefix(value, read)? else {
                        return Ok(None);
                    };
                    self.frame = Frame::Announced { len };
                }
                Frame::Announced { len } => {
                    let len = *len;
                    if len > 0 && !self.refill() {
                        return Ok(None);
                    }
                    if self.current.len() >= len {
                        self.frame = Frame::START;
                        self.backing = self.pushed_len;
                        let body = self.split_current(len);
                        return Message::decode_body(body).map(Some);
                    }
                    let bytes = Vec::with_capacity(len);
                    self.frame = Frame::Partial { len, bytes };
                }
                Frame::Partial { len, bytes } => {
                    let missing = *len - bytes.len();
                    let chunk = self.current.len().min(missing);
                    bytes.extend_from_slice(self.current.get(..chunk).unwrap_or_default());
                    if chunk == missing {
                        let body = Bytes::from(mem::take(bytes));
                        self.backing = body.len();
                        self.frame = Frame::START;
                        self.consume(chunk);
                        return Message::decode_body(body).map(Some);
                    }
                    self.consume(chunk);
                    if !self.refill() {
                        return Ok(None);
                    }
                }
            }
        }
    }

    /// Continues a length prefix whose first `read` bytes gave `value`; `None` if it is incomplete.
    fn read_prefix(&mut self, value: u64, read: usize) -> Result<Option<usize>, DecodeError> {
        let (mut value, mut read) = (value, read);
        // Bounded by the largest accepted length: bytes beyond it are refused, not counted.
        let max_read = varint_len(self.max_body as u64);
        while let Some(byte) = self.next_byte() {
            // A trailing zero byte adds nothing: the length was complete without it.
            if byte == 0 && read > 0 {
                return Err(DecodeError::NonMinimalVarint);
            }
            let bits = u64::from(byte & 0x7f);
            let shift = 7 * read as u32;
            // Only possible in a tenth byte, which a limit of 2^63 and more allows.
            if bits.leading_zeros() < shift {
                return Err(DecodeError::OverlongVarint);
            }
            value |= bits << shift;
            read += 1;
            if byte & 0x80 == 0 {
                return match usize::try_from(value) {
                    Ok(len) if len <= self.max_body => Ok(Some(len)),
                    _ => Err(DecodeError::FrameTooLarge {
                        len: value,
                        max: self.max_body,
                    }),
                };
            }
            if read >= max_read {
                return Err(DecodeError::OverlongVarint);
            }
        }
        self.frame = Frame::Prefix { value, read };
        Ok(None)
    }

    fn next_byte(&mut self) -> Option<u8> {
        if !self.refill() {
            return None;
        }
        let byte = self.current.first().copied();
        self.consume(1);
        byte
    }

    /// Makes `current` hold unread bytes; `false` if there are none.
    fn refill(&mut self) -> bool {
        if !self.current.is_empty() {
            return true;
        }
        let Some(next) = self.queued.pop_front() else {
            return false;
        };
        debug_assert!(self.queued_len >= next.len(), "a push that was not counted");
        self.queued_len = self.queued_len.saturating_sub(next.len());
        self.pushed_len = next.len();
        self.current = next;
        true
    }

    /// Drops `len` bytes of `current`, and with the last of them its reference to the carrier
    /// message.
    fn consume(&mut self, len: usize) {
        if len < self.current.len() {
            self.current.advance(len);
        } else {
            self.current = Bytes::new();
        }
    }

    /// Takes `len` bytes from the front of `current`, which has at least as many.
    fn split_current(&mut self, len: usize) -> Bytes {
        if len == self.current.len() {
            // Moves the handle, so that no reference count changes.
            mem::take(&mut self.current)
        } else {
            self.current.split_to(len)
        }
    }
}
