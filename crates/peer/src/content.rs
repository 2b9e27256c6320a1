//! The content of the streams: the byte at offset i is `i % 251`, in each direction.
//!
//! A prime period that is no power of two, so that the check detects a block that is lost,
//! duplicated or swapped. Both sides use slices of one table: checking is one `memcmp` for each
//! chunk, and costs every stack the same.

use std::io;
use std::sync::LazyLock;

use bytes::{BufMut, Bytes, BytesMut};

use crate::{Chunk, Reader, Writer};

/// Default of the bytes that a write hands over at once: the send buffer of a substream of
/// anabranch.
pub(crate) const DEFAULT_CHUNK: usize = 64 << 10;

/// Maximum of the bytes that a write hands over at once.
pub(crate) const MAX_CHUNK: usize = 1 << 20;

/// Maximum of the bytes that a read takes at once.
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

/// Sends `total` bytes of content and flushes. Calls `accepted` after each chunk with the number of
/// bytes that the stack has accepted.
pub(crate) async fn send(
    writer: &mut impl Writer,
    total: u64,
    chunk: usize,
    mut accepted: impl FnMut(u64),
) -> io::Result<()> {
    let mut offset = 0;
    while offset < total {
        let len = chunk.min(usize::try_from(total - offset).unwrap_or(chunk));
        let content = Bytes::from_static(at(offset, len));
        writer.write(content.into()).await?;
        offset += len as u64;
        accepted(offset);
    }
    writer.flush().await
}

/// Sends a few bytes and flushes.
pub(crate) async fn send_bytes(writer: &mut impl Writer, bytes: &[u8]) -> io::Result<()> {
    writer.write(Chunk::Borrowed(bytes)).await?;
    writer.flush().await
}

/// Reads content and checks it.
#[derive(Debug, Default)]
pub(crate) struct Checker {
    offset: u64,
}

impl Checker {
    /// Number of correct bytes so far.
    pub(crate) fn received(&self) -> u64 {
        self.offset
    }

    /// Reads until there are `total` bytes, and no byte more.
    pub(crate) async fn receive(&mut self, reader: &mut impl Reader, total: u64) -> io::Result<()> {
        while self.offset < total {
            if !self.receive_some(reader, total).await? {
                let offset = self.offset;
                return Err(invalid(format!("ended after {offset} of {total} bytes")));
            }
        }
        Ok(())
    }

    /// Reads `total` bytes and then the end of the stream.
    pub(crate) async fn receive_all(
        &mut self,
        reader: &mut impl Reader,
        total: u64,
    ) -> io::Result<()> {
        self.receive(reader, total).await?;
        end(reader).await
    }

    /// Reads and checks one chunk, up to the offset `total`; `false` at the end of the stream.
    pub(crate) async fn receive_some(
        &mut self,
        reader: &mut impl Reader,
        total: u64,
    ) -> io::Result<bool> {
        let left = total - self.offset;
        let max = usize::try_from(left).map_or(READ_CHUNK, |left| left.min(READ_CHUNK));
        let chunk = reader.read(max).await?;
        let expected = at(self.offset, chunk.len());
        if *chunk != *expected {
            let pairs = chunk.iter().zip(expected);
            let correct = pairs.take_while(|(got, right)| got == right).count();
            let offset = self.offset + correct as u64;
            return Err(invalid(format!("wrong byte at offset {offset}")));
        }
        self.offset += chunk.len() as u64;
        Ok(!chunk.is_empty())
    }
}

/// Reads the end of the stream, and nothing before it.
pub(crate) async fn end(reader: &mut impl Reader) -> io::Result<()> {
    match reader.read(1).await?.is_empty() {
        true => Ok(()),
        false => Err(invalid("more bytes than announced".to_owned())),
    }
}

/// Reads `N` bytes.
pub(crate) async fn read_bytes<const N: usize>(reader: &mut impl Reader) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    let mut filled = 0;
    while filled < N {
        let chunk = reader.read(N - filled).await?;
        if chunk.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        bytes[filled..][..chunk.len()].copy_from_slice(&chunk);
        filled += chunk.len();
    }
    Ok(bytes)
}

/// Reads a big-endian integer.
pub(crate) async fn read_u64(reader: &mut impl Reader) -> io::Result<u64> {
    read_bytes(reader).await.map(u64::from_be_bytes)
}

/// Reads to the end and returns whether that was a reset. In libp2p-webrtc a reset looks like an
/// orderly end to the read that meets it, and like a reset to the next one.
pub(crate) async fn ended_by_reset(reader: &mut impl Reader) -> bool {
    let is_reset = |error: io::Error| error.kind() == io::ErrorKind::ConnectionReset;
    loop {
        match reader.read(READ_CHUNK).await {
            Err(error) => return is_reset(error),
            Ok(chunk) if chunk.is_empty() => break,
            Ok(_) => {}
        }
    }
    reader.read(1).await.is_err_and(is_reset)
}

/// The first bytes of the opener of bench and stall.
pub(crate) fn header(first: u64, second: u64) -> Bytes {
    let mut header = BytesMut::with_capacity(16);
    header.put_u64(first);
    header.put_u64(second);
    header.freeze()
}

/// The error for content that is wrong or missing.
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
