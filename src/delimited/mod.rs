//! Messages as a unit on a substream: each has its length before it, as an unsigned varint, as in
//! the protocols of libp2p and in delimited protobuf.
//!
//! A substream is a stream of bytes: frames have no meaning, and a message may arrive in parts or
//! with its neighbours. [`Messages`] restores the boundaries. It is a [`Stream`] and a [`Sink`] of
//! [`Bytes`], with methods of its own for programs without those traits.
//!
//! ```
//! # async fn echo(substream: anabranch::Substream) -> Result<(), Box<dyn std::error::Error>> {
//! use anabranch::delimited::Messages;
//!
//! let mut messages = Messages::new(substream, 64 * 1024);
//! while let Some(message) = messages.read().await? {
//!     messages.write(message).await?;
//! }
//! messages.finish().await?;
//! # Ok(())
//! # }
//! ```
//!
//! # Batches
//! Nothing waits for more to come: a message is on its way as soon as it is written. Messages
//! written before the connection takes them share frames and packets.
//!
//! # Memory
//! A reader holds at most one message of the limit beside what the substream holds
//! ([`Config::receive_window`](crate::Config::receive_window)), and allocates as the bytes arrive,
//! not on the peer's word. The peer gets credit for what was read, so one that nobody reads sends
//! no more.

mod error;
mod read;
mod write;

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::sink::Sink;
use futures_util::stream::Stream;

pub use error::{MessageReadError, MessageWriteError};
pub use read::MessageReader;
pub use write::MessageWriter;

use crate::error::{FinishError, Finished};
use crate::substream::Substream;

/// A substream of length-delimited messages.
///
/// # Drop
/// As of [`MessageReader`] and [`MessageWriter`].
#[derive(Debug)]
pub struct Messages {
    reader: MessageReader,
    writer: MessageWriter,
}

impl Messages {
    /// Reads and writes messages of at most `max` bytes each, without their length prefix.
    pub fn new(substream: Substream, max: usize) -> Self {
        let (read, write) = substream.into_split();
        Self {
            reader: MessageReader::new(read, max),
            writer: MessageWriter::new(write, max),
        }
    }

    /// Splits it into halves that can move to different tasks.
    pub fn into_split(self) -> (MessageReader, MessageWriter) {
        (self.reader, self.writer)
    }

    /// The next message: see [`MessageReader::read`].
    ///
    /// # Errors
    /// As of [`MessageReader::read`].
    ///
    /// # Cancel safety
    /// No message is lost if the future is dropped.
    pub async fn read(&mut self) -> Result<Option<Bytes>, MessageReadError> {
        self.reader.read().await
    }

    /// Writes a message: see [`MessageWriter::write`].
    ///
    /// # Errors
    /// As of [`MessageWriter::write`].
    ///
    /// # Cancel safety
    /// As of [`MessageWriter::write`].
    pub async fn write(&mut self, message: Bytes) -> Result<(), MessageWriteError> {
        self.writer.write(message).await
    }

    /// Ends the stream to the peer: see [`MessageWriter::finish`].
    ///
    /// # Errors
    /// As of [`MessageWriter::finish`].
    ///
    /// # Cancel safety
    /// As of [`MessageWriter::finish`].
    pub async fn finish(&mut self) -> Result<Finished, FinishError> {
        self.writer.finish().await
    }
}

impl Stream for Messages {
    type Item = Result<Bytes, MessageReadError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.reader.poll_read(cx).map(Result::transpose)
    }
}

impl Sink<Bytes> for Messages {
    type Error = MessageWriteError;

    fn poll_ready(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Pin::new(&mut self.writer).poll_ready(cx)
    }

    fn start_send(mut self: Pin<&mut Self>, message: Bytes) -> Result<(), Self::Error> {
        Pin::new(&mut self.writer).start_send(message)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Pin::new(&mut self.writer).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Pin::new(&mut self.writer).poll_close(cx)
    }
}
