//! Restores the boundaries of messages.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use futures_util::stream::Stream;

use super::MessageReadError;
use crate::error::code;
use crate::substream::ReadHalf;

/// Reads length-delimited messages.
///
/// # Drop
/// As of [`ReadHalf`]: the peer is asked to send no more.
#[derive(Debug)]
pub struct MessageReader {
    half: ReadHalf,
    max: usize,
    /// Payload of the substream that follows what was returned.
    unread: Bytes,
    progress: Progress,
}

#[derive(Debug)]
enum Progress {
    /// Bits of the length that have arrived, and how many bytes they took.
    Length { value: u64, bytes: u32 },
    /// The beginning of a message of `length` bytes.
    Message { length: usize, begun: BytesMut },
    /// An error was returned, or the end.
    Ended,
}

impl Progress {
    const BEGIN: Self = Self::Length { value: 0, bytes: 0 };
}

/// Bytes of a varint of 64 bits.
const MAX_PREFIX: u32 = 10;

impl MessageReader {
    /// Reads messages of at most `max` bytes each.
    pub fn new(half: ReadHalf, max: usize) -> Self {
        Self {
            half,
            max,
            unread: Bytes::new(),
            progress: Progress::BEGIN,
        }
    }

    /// The next message; `None` at the end of the stream, and after an error.
    ///
    /// A message that has arrived in one piece is a slice of the buffer in which it arrived, with
    /// its neighbours: copy what is kept for long.
    ///
    /// # Errors
    /// [`MessageReadError`]. The peer is asked to send no more, with
    /// [`code::PROTOCOL_VIOLATION`](crate::substream::code::PROTOCOL_VIOLATION) where it is at
    /// fault. Messages before the bad one were returned.
    ///
    /// # Cancel safety
    /// No message is lost if the future is dropped.
    pub async fn read(&mut self) -> Result<Option<Bytes>, MessageReadError> {
        poll_fn(|cx| self.poll_read(cx)).await
    }

    /// Poll form of [`MessageReader::read`].
    ///
    /// # Errors
    /// As of [`MessageReader::read`].
    pub fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<Bytes>, MessageReadError>> {
        loop {
            match self.next_in_unread() {
                Ok(None) => {}
                Ok(message) => return Poll::Ready(Ok(message)),
                Err(error) => {
                    self.half.stop(code::PROTOCOL_VIOLATION);
                    return Poll::Ready(Err(self.ended(error)));
                }
            }
            if matches!(self.progress, Progress::Ended) {
                return Poll::Ready(Ok(None));
            }
            match ready!(self.half.poll_read_chunk(cx, usize::MAX)) {
                Ok(Some(chunk)) => self.unread = chunk,
                Ok(None) => {
                    let is_between = matches!(self.progress, Progress::Length { bytes: 0, .. });
                    if is_between {
                        self.progress = Progress::Ended;
                        return Poll::Ready(Ok(None));
                    }
                    return Poll::Ready(Err(self.ended(MessageReadError::Truncated)));
                }
                Err(source) => {
                    return Poll::Ready(
                        Err(self.ended(MessageReadError::Substream(source.into()))),
                    );
                }
            }
        }
    }

    /// The substream of the messages.
    pub fn half(&self) -> &ReadHalf {
        &self.half
    }

    fn ended(&mut self, error: MessageReadError) -> MessageReadError {
        self.progress = Progress::Ended;
        self.unread = Bytes::new();
        error
    }

    /// The next message if the rest of it is in `unread`; otherwise takes all of that.
    fn next_in_unread(&mut self) -> Result<Option<Bytes>, MessageReadError> {
        loop {
            match &mut self.progress {
                Progress::Ended => return Ok(None),
                Progress::Length { value, bytes } => {
                    if self.unread.is_empty() {
                        return Ok(None);
                    }
                    let byte = self.unread.get_u8();
                    let bits = u64::from(byte & 0x7f);
                    // The tenth byte has only the 64th bit; a last byte of 0 says nothing.
                    if *bytes + 1 >= MAX_PREFIX && byte > 1 || *bytes > 0 && byte == 0 {
                        return Err(MessageReadError::Length);
                    }
                    *value |= bits << (7 * *bytes);
                    *bytes += 1;
                    if byte & 0x80 == 0 {
                        let length = *value;
                        let fits = usize::try_from(length).ok().filter(|n| *n <= self.max);
                        let Some(length) = fits else {
                            let max = self.max;
                            return Err(MessageReadError::TooLong { length, max });
                        };
                        let begun = BytesMut::new();
                        self.progress = Progress::Message { length, begun };
                    }
                }
                Progress::Message { length, begun } => {
                    let rest = *length - begun.len();
                    let is_complete = rest <= self.unread.len();
                    if is_complete && begun.is_empty() {
                        self.progress = Progress::BEGIN;
                        return Ok(Some(self.take(rest)));
                    }
                    let part = self.unread.len().min(rest);
                    let filled = begun.len() + part;
                    if begun.capacity() < filled {
                        // Doubles as the bytes arrive, and never beyond the message.
                        let mut larger = BytesMut::with_capacity((2 * filled).min(*length));
                        larger.extend_from_slice(begun);
                        *begun = larger;
                    }
                    begun.extend_from_slice(&self.unread[..part]);
                    let whole = is_complete.then(|| std::mem::take(begun).freeze());
                    if whole.is_some() {
                        self.progress = Progress::BEGIN;
                    }
                    let _ = self.take(part);
                    return Ok(whole);
                }
            }
        }
    }

    /// The first `length` bytes of `unread`. What is left of it when it is empty would keep the
    /// buffer alive.
    fn take(&mut self, length: usize) -> Bytes {
        let taken = self.unread.split_to(length);
        if self.unread.is_empty() {
            self.unread = Bytes::new();
        }
        taken
    }
}

impl Stream for MessageReader {
    type Item = Result<Bytes, MessageReadError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.poll_read(cx).map(Result::transpose)
    }
}
