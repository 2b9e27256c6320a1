//! Substreams of stacks that have the traits of `futures`.

use std::fmt;
use std::io;

use futures_util::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};

use crate::{Chunk, Finished, Reader, Substream, Writer};

/// Bytes of a reader's buffer until a read fills it. A large one would dominate the memory of idle
/// substreams and the time of short echoes.
const FIRST_BUFFER: usize = 4 << 10;

/// Everything that can be read, written and sent to another thread.
trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// A substream of any stack with the traits of `futures`. Closing it ends the write half; dropping
/// it before that resets it.
pub struct IoSubstream(Box<dyn Io>);

impl IoSubstream {
    /// Makes a substream of one of a stack.
    pub fn new(io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) -> Self {
        Self(Box::new(io))
    }
}

impl fmt::Debug for IoSubstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IoSubstream").finish_non_exhaustive()
    }
}

impl Substream for IoSubstream {
    type Reader = IoReader;
    type Writer = IoWriter;

    fn into_split(self) -> (IoReader, IoWriter) {
        let (read, write) = self.0.split();
        let buffer = Vec::new();
        (IoReader { read, buffer }, IoWriter(write))
    }

    fn reset(reader: IoReader, writer: IoWriter) {
        drop((reader, writer));
    }
}

/// The read half of an [`IoSubstream`].
pub struct IoReader {
    read: ReadHalf<Box<dyn Io>>,
    buffer: Vec<u8>,
}

impl Reader for IoReader {
    async fn read(&mut self, max: usize) -> io::Result<Chunk<'_>> {
        if self.buffer.is_empty() {
            self.buffer.resize(FIRST_BUFFER, 0);
        }
        let room = self.buffer.len().min(max);
        let count = self.read.read(&mut self.buffer[..room]).await?;
        if count == self.buffer.len() && count < max {
            self.buffer.resize(max, 0);
        }
        Ok(Chunk::Borrowed(&self.buffer[..count]))
    }
}

/// The write half of an [`IoSubstream`].
pub struct IoWriter(WriteHalf<Box<dyn Io>>);

impl Writer for IoWriter {
    async fn write(&mut self, chunk: Chunk<'_>) -> io::Result<()> {
        self.0.write_all(&chunk).await
    }

    async fn flush(&mut self) -> io::Result<()> {
        self.0.flush().await
    }

    async fn finish(&mut self) -> io::Result<Finished> {
        self.0.close().await?;
        Ok(Finished::Sent)
    }

    async fn close(mut self) -> io::Result<()> {
        self.0.close().await
    }
}

impl fmt::Debug for IoReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IoReader").finish_non_exhaustive()
    }
}

impl fmt::Debug for IoWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IoWriter").finish_non_exhaustive()
    }
}
