//! The content of the streams: the byte at offset i is `i % 251`, in each direction. Both sides work
//! on slices of one table, as `examples/peer` does, so that making and checking it costs the same.

use std::io;
use std::sync::LazyLock;

use futures::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Bytes a write hands over at once if nothing else is said.
pub(crate) const DEFAULT_CHUNK: usize = 64 << 10;

/// Most bytes that a write hands over at once.
pub(crate) const MAX_CHUNK: usize = 1 << 20;

/// Most bytes that a read takes at once.
const READ_CHUNK: usize = 256 << 10;

const PERIOD: u64 = 251;

static TABLE: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let period = 0..PERIOD as u8;
    period.cycle().take(MAX_CHUNK + PERIOD as usize).collect()
});

/// The `len` bytes of content at `offset`; at most [`MAX_CHUNK`].
pub(crate) fn at(offset: u64, len: usize) -> &'static [u8] {
    let start = (offset % PERIOD) as usize;
    &TABLE[start..start + len]
}

/// Sends `total` bytes of content and flushes. `accepted` hears after each chunk how many were
/// taken.
pub(crate) async fn send<W: AsyncWrite + Unpin>(
    writer: &mut W,
    total: u64,
    chunk: usize,
    mut accepted: impl FnMut(u64),
) -> io::Result<()> {
    let mut offset = 0;
    while offset < total {
        let len = chunk.min(usize::try_from(total - offset).unwrap_or(chunk));
        writer.write_all(at(offset, len)).await?;
        offset += len as u64;
        accepted(offset);
    }
    writer.flush().await
}

/// Reads content and checks it.
#[derive(Debug)]
pub(crate) struct Checker {
    offset: u64,
    buffer: Vec<u8>,
}

impl Checker {
    pub(crate) fn new() -> Self {
        Self {
            offset: 0,
            buffer: vec![0; READ_CHUNK],
        }
    }

    /// For so little content that a large buffer would be what is measured.
    pub(crate) fn small() -> Self {
        Self {
            offset: 0,
            buffer: vec![0; 4 << 10],
        }
    }

    /// Right bytes so far.
    pub(crate) fn received(&self) -> u64 {
        self.offset
    }

    /// Reads until there are `total` bytes, and not one more.
    pub(crate) async fn receive<R: AsyncRead + Unpin>(
        &mut self,
        reader: &mut R,
        total: u64,
    ) -> io::Result<()> {
        while self.offset < total {
            if !self.receive_some(reader, total).await? {
                let offset = self.offset;
                return Err(invalid(format!("ended after {offset} of {total} bytes")));
            }
        }
        Ok(())
    }

    /// Reads `total` bytes, and then the end of the stream.
    pub(crate) async fn receive_all<R: AsyncRead + Unpin>(
        &mut self,
        reader: &mut R,
        total: u64,
    ) -> io::Result<()> {
        self.receive(reader, total).await?;
        end(reader).await
    }

    /// Reads and checks one chunk, up to the offset `total`; `false` at the end of the stream.
    pub(crate) async fn receive_some<R: AsyncRead + Unpin>(
        &mut self,
        reader: &mut R,
        total: u64,
    ) -> io::Result<bool> {
        let max = usize::try_from(total - self.offset).unwrap_or(READ_CHUNK);
        let room = self.buffer.len().min(max);
        let count = reader.read(&mut self.buffer[..room]).await?;
        if self.buffer[..count] != *at(self.offset, count) {
            let offset = self.offset;
            return Err(invalid(format!(
                "a wrong byte among the {count} at offset {offset}"
            )));
        }
        self.offset += count as u64;
        Ok(count > 0)
    }
}

/// Reads the end of the stream, and nothing before it.
pub(crate) async fn end<R: AsyncRead + Unpin>(reader: &mut R) -> io::Result<()> {
    match reader.read(&mut [0]).await? {
        0 => Ok(()),
        _ => Err(invalid("more bytes than announced".to_owned())),
    }
}

pub(crate) async fn read_u64<R: AsyncRead + Unpin>(reader: &mut R) -> io::Result<u64> {
    let mut bytes = [0; 8];
    reader.read_exact(&mut bytes).await?;
    Ok(u64::from_be_bytes(bytes))
}

/// What the opener of bench and stall sends first.
pub(crate) fn header(first: u64, second: u64) -> [u8; 16] {
    (u128::from(first) << 64 | u128::from(second)).to_be_bytes()
}

/// The error for content that is not what it should be.
pub(crate) fn invalid(message: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message)
}
