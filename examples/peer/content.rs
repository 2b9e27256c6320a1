//! The content of the streams: the byte at offset i is `i % 251`, in each direction.
//!
//! A prime period that is no power of two, so that a block that is lost, doubled or swapped is
//! noticed. Both sides work on slices of one table: checking is one `memcmp` a chunk.

use std::io;
use std::sync::LazyLock;

use anabranch::{ReadHalf, WriteHalf};
use bytes::Bytes;

/// Bytes a write hands over at once if nothing else is said: the send buffer of a substream.
pub(crate) const DEFAULT_CHUNK: usize = 64 << 10;

/// Most bytes that a write hands over at once.
pub(crate) const MAX_CHUNK: usize = 1 << 20;

/// Most bytes that a read takes at once.
const READ_CHUNK: u64 = 256 << 10;

const PERIOD: u64 = 251;

static TABLE: LazyLock<Bytes> = LazyLock::new(|| {
    let period = 0..PERIOD as u8;
    period.cycle().take(MAX_CHUNK + PERIOD as usize).collect()
});

/// The `len` bytes of content at `offset`; at most [`MAX_CHUNK`].
pub(crate) fn at(offset: u64, len: usize) -> Bytes {
    let start = (offset % PERIOD) as usize;
    TABLE.slice(start..start + len)
}

/// Sends `total` bytes of content. `accepted` hears after each chunk how many were taken.
pub(crate) async fn send(
    writer: &mut WriteHalf,
    total: u64,
    chunk: usize,
    mut accepted: impl FnMut(u64),
) -> io::Result<()> {
    let mut offset = 0;
    while offset < total {
        let len = chunk.min(usize::try_from(total - offset).unwrap_or(chunk));
        writer.write_chunk(at(offset, len)).await?;
        offset += len as u64;
        accepted(offset);
    }
    Ok(())
}

/// Reads content and checks it.
#[derive(Debug, Default)]
pub(crate) struct Checker {
    offset: u64,
}

impl Checker {
    /// Right bytes so far.
    pub(crate) fn received(&self) -> u64 {
        self.offset
    }

    /// Reads until there are `total` bytes, and not one more.
    pub(crate) async fn receive(&mut self, reader: &mut ReadHalf, total: u64) -> io::Result<()> {
        while self.offset < total {
            if !self.receive_some(reader, total).await? {
                return Err(invalid(format!(
                    "ended after {} of {total} bytes",
                    self.offset
                )));
            }
        }
        Ok(())
    }

    /// Reads `total` bytes, and then the end of the stream.
    pub(crate) async fn receive_all(
        &mut self,
        reader: &mut ReadHalf,
        total: u64,
    ) -> io::Result<()> {
        self.receive(reader, total).await?;
        end(reader).await
    }

    /// Reads and checks one chunk, up to the offset `total`; `false` at the end of the stream.
    pub(crate) async fn receive_some(
        &mut self,
        reader: &mut ReadHalf,
        total: u64,
    ) -> io::Result<bool> {
        let max = READ_CHUNK.min(total - self.offset) as usize;
        let Some(chunk) = reader.read_chunk(max).await? else {
            return Ok(false);
        };
        let start = (self.offset % PERIOD) as usize;
        if chunk[..] != TABLE[start..start + chunk.len()] {
            let expected = at(self.offset, chunk.len());
            let wrong = chunk
                .iter()
                .zip(expected)
                .take_while(|(got, right)| *got == right)
                .count();
            return Err(invalid(format!(
                "wrong byte at offset {}",
                self.offset + wrong as u64
            )));
        }
        self.offset += chunk.len() as u64;
        Ok(true)
    }
}

/// Reads the end of the stream, and nothing before it.
pub(crate) async fn end(reader: &mut ReadHalf) -> io::Result<()> {
    match reader.read_chunk(1).await? {
        None => Ok(()),
        Some(_) => Err(invalid("more bytes than announced".to_owned())),
    }
}

/// The error for content that is not what it should be.
pub(crate) fn invalid(message: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_repeats_with_its_period() {
        for offset in [0, 1, 250, 251, 252, 1 << 40] {
            let expected: Vec<u8> = (offset..offset + 600).map(|i| (i % 251) as u8).collect();
            assert_eq!(at(offset, 600), expected);
        }
        assert_eq!(at(250, MAX_CHUNK).len(), MAX_CHUNK);
    }
}
