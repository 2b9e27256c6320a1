//! Writes messages with their lengths.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use futures_util::sink::Sink;
use tokio::io::AsyncWrite;

use super::MessageWriteError;
use crate::error::{FinishError, Finished, code};
use crate::substream::WriteHalf;

/// Messages up to this length are copied behind their length, as `write` of a substream does: many
/// of them share a frame. A longer one stays a slice of its buffer.
const COPIED: usize = 4096;

/// Writes length-delimited messages.
///
/// # Drop
/// As of [`WriteHalf`]: what was written is delivered, followed by FIN. If a message was taken and
/// not written to its end, the substream is reset with
/// [`code::ABANDONED`](crate::substream::code::ABANDONED), unless it has ended before: the peer
/// must not take a part for the whole.
#[derive(Debug)]
pub struct MessageWriter {
    half: WriteHalf,
    max: usize,
    /// What the substream has not taken yet of the last message.
    prefix: Prefix,
    message: Bytes,
}

/// A length as a varint; the part of it that waits.
#[derive(Debug, Clone, Copy, Default)]
struct Prefix {
    bytes: [u8; 10],
    begin: usize,
    end: usize,
}

impl Prefix {
    fn new(length: usize) -> Self {
        let mut bytes = unsigned_varint::encode::u64_buffer();
        let end = unsigned_varint::encode::u64(length as u64, &mut bytes).len();
        Self {
            bytes,
            begin: 0,
            end,
        }
    }

    fn rest(&self) -> &[u8] {
        self.bytes.get(self.begin..self.end).unwrap_or_default()
    }
}

impl MessageWriter {
    /// Writes messages of at most `max` bytes each.
    pub fn new(half: WriteHalf, max: usize) -> Self {
        Self {
            half,
            max,
            prefix: Prefix::default(),
            message: Bytes::new(),
        }
    }

    /// Writes a message. It waits while the buffer of the substream is full
    /// ([`Config::send_buffer`](crate::Config::send_buffer)), and not until the message was sent.
    ///
    /// # Errors
    /// [`MessageWriteError`].
    ///
    /// # Cancel safety
    /// If the future is dropped, the message was either not taken, or taken as a whole: then the
    /// next call writes the rest of it first.
    pub async fn write(&mut self, message: Bytes) -> Result<(), MessageWriteError> {
        self.check(&message)?;
        poll_fn(|cx| self.poll_pending(cx)).await?;
        self.begin(message);
        poll_fn(|cx| self.poll_pending(cx)).await
    }

    /// Delivers what was written, sends FIN, and waits until the peer has confirmed everything: see
    /// [`WriteHalf::finish`].
    ///
    /// # Errors
    /// Those of [`WriteHalf::finish`].
    ///
    /// # Cancel safety
    /// If the future is dropped, the close continues once every message was taken by the substream;
    /// before that nothing has happened yet.
    pub async fn finish(&mut self) -> Result<Finished, FinishError> {
        // An error is one of the substream, which `finish` returns as well.
        let _ = poll_fn(|cx| self.poll_pending(cx)).await;
        self.half.finish().await
    }

    /// The substream of the messages.
    pub fn half(&self) -> &WriteHalf {
        &self.half
    }

    fn check(&self, message: &Bytes) -> Result<(), MessageWriteError> {
        let (length, max) = (message.len(), self.max);
        if length > max {
            return Err(MessageWriteError::TooLong { length, max });
        }
        Ok(())
    }

    fn begin(&mut self, message: Bytes) {
        self.prefix = Prefix::new(message.len());
        self.message = message;
    }

    fn is_pending(&self) -> bool {
        !self.prefix.rest().is_empty() || !self.message.is_empty()
    }

    /// Hands the pending message to the substream.
    fn poll_pending(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), MessageWriteError>> {
        let handed_over = self.poll_hand_over(cx);
        if matches!(handed_over, Poll::Ready(Err(_))) {
            // The stream has ended, and its end is not changed by a message that came too late.
            self.begin_nothing();
        }
        handed_over.map_err(MessageWriteError::substream)
    }

    fn begin_nothing(&mut self) {
        self.prefix = Prefix::default();
        self.message = Bytes::new();
    }

    fn poll_hand_over(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.prefix.rest().is_empty() {
            let written = ready!(Pin::new(&mut self.half).poll_write(cx, self.prefix.rest()))?;
            self.prefix.begin += written;
        }
        if self.message.len() > COPIED {
            ready!(self.half.poll_write_chunk(cx, &mut self.message))?;
        }
        while !self.message.is_empty() {
            let written = ready!(Pin::new(&mut self.half).poll_write(cx, &self.message))?;
            self.message.advance(written);
        }
        // An empty slice would keep the buffer alive.
        self.message = Bytes::new();
        Poll::Ready(Ok(()))
    }
}

impl Drop for MessageWriter {
    fn drop(&mut self) {
        if self.is_pending() {
            // By the drop of the half, which leaves alone what is closing already.
            self.half.reset_on_drop(code::ABANDONED);
        }
    }
}

/// `start_send` takes one message, which the next call of `poll_ready` or `poll_flush` writes. It
/// panics if `poll_ready` has not returned `Ready` before it, as `Sink` has it.
/// `poll_close` is `poll_shutdown` of [`WriteHalf`]; [`MessageWriter::finish`] is stricter.
impl Sink<Bytes> for MessageWriter {
    type Error = MessageWriteError;

    fn poll_ready(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.poll_pending(cx)
    }

    fn start_send(mut self: Pin<&mut Self>, message: Bytes) -> Result<(), Self::Error> {
        self.check(&message)?;
        assert!(!self.is_pending(), "`start_send` before `poll_ready`");
        self.begin(message);
        Ok(())
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        ready!(self.poll_pending(cx))?;
        Pin::new(&mut self.half)
            .poll_flush(cx)
            .map_err(MessageWriteError::substream)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        ready!(self.poll_pending(cx))?;
        Pin::new(&mut self.half)
            .poll_shutdown(cx)
            .map_err(MessageWriteError::substream)
    }
}
