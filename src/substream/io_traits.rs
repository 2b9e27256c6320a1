//! The `tokio::io` and `futures::io` traits of [`Substream`] and its halves.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use tokio::io::ReadBuf;

use super::{ReadHalf, ReceiveBuffer, Substream, WriteHalf, poll_cooperative};

impl ReadHalf {
    /// Passes all queued payloads that fit to `put`, not one per call.
    fn poll_read_into(
        &mut self,
        cx: &mut Context<'_>,
        mut put: impl FnMut(&[u8]) -> usize,
    ) -> Poll<io::Result<usize>> {
        self.filled = Bytes::new();
        poll_cooperative(cx, |cx| {
            let read = ready!(self.shared.poll_read_with(cx, |receive| {
                let read = receive.read(&mut put);
                (read > 0).then_some(read)
            }))?;
            Poll::Ready(Ok(read.unwrap_or(0)))
        })
    }

    /// The first unread payload, without a copy; empty at the end of the stream.
    fn poll_filled(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<&[u8]>> {
        // Also if a slice is held already: a reset may have discarded it.
        let peeked = ready!(poll_cooperative(cx, |cx| {
            self.shared.poll_read_with(cx, ReceiveBuffer::peek)
        }));
        self.filled = Bytes::new();
        if let Some(chunk) = peeked? {
            self.filled = chunk;
        }
        Poll::Ready(Ok(&self.filled))
    }

    /// At most the held slice: the caller has not seen later data.
    fn consume_filled(&mut self, length: usize) {
        let length = length.min(self.filled.len());
        self.filled.advance(length);
        if self.filled.is_empty() {
            // An empty slice would keep the carrier message alive.
            self.filled = Bytes::new();
        }
        self.shared.consume_received(length);
    }
}

impl tokio::io::AsyncRead for ReadHalf {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if out.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        self.poll_read_into(cx, |chunk| {
            let taken = chunk.len().min(out.remaining());
            out.put_slice(&chunk[..taken]);
            taken
        })
        .map_ok(drop)
    }
}

impl futures_io::AsyncRead for ReadHalf {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        if out.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let mut filled = 0;
        self.poll_read_into(cx, |chunk| {
            let room = &mut out[filled..];
            let taken = chunk.len().min(room.len());
            room[..taken].copy_from_slice(&chunk[..taken]);
            filled += taken;
            taken
        })
    }
}

/// Reads without a copy: `fill_buf` returns the first unread payload in the buffer of the carrier,
/// like [`ReadHalf::read_chunk`], and `consume` reads it.
///
/// The peer gets credit for consumed data only. Data that `fill_buf` has returned stays unread: it
/// counts in [`ReadHalf::unread`], any other read returns it again, and a reset discards it.
///
/// # Errors
/// `fill_buf` returns those of [`ReadHalf::read_chunk`], and an empty slice at the end of the
/// stream.
///
/// # Cancel safety
/// `fill_buf` consumes nothing, so a dropped future loses no data.
impl tokio::io::AsyncBufRead for ReadHalf {
    fn poll_fill_buf(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<&[u8]>> {
        self.get_mut().poll_filled(cx)
    }

    /// A `length` above that of the last `fill_buf` counts as all of it. No effect after another
    /// read.
    fn consume(self: Pin<&mut Self>, length: usize) {
        self.get_mut().consume_filled(length);
    }
}

/// Like the implementation for tokio.
impl futures_io::AsyncBufRead for ReadHalf {
    fn poll_fill_buf(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<&[u8]>> {
        self.get_mut().poll_filled(cx)
    }

    fn consume(self: Pin<&mut Self>, length: usize) {
        self.get_mut().consume_filled(length);
    }
}

impl tokio::io::AsyncWrite for WriteHalf {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        if data.is_empty() {
            return Poll::Ready(Ok(0));
        }
        self.poll_write_bytes(cx, data)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.shared.poll_flush(cx)
    }

    /// Shuts the stream down and waits for FIN_ACK or its timeout.
    ///
    /// `Ok` if the peer's transport has everything and FIN, even after the timeout; over a
    /// WebSocket, which reports nothing about that transport, with FIN_ACK only. An error, with a
    /// [`FinishError`](super::FinishError) inside, if the substream was reset, closed or lost
    /// before, or if the peer stopped reading before everything was sent.
    /// [`WriteHalf::close_outcome`] has the details. Continues if the future is dropped.
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.shared.poll_finish(cx));
        Poll::Ready(self.shared.shutdown_result())
    }
}

impl futures_io::AsyncWrite for WriteHalf {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        tokio::io::AsyncWrite::poll_write(self, cx, data)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        tokio::io::AsyncWrite::poll_flush(self, cx)
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        tokio::io::AsyncWrite::poll_shutdown(self, cx)
    }
}

impl tokio::io::AsyncRead for Substream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        tokio::io::AsyncRead::poll_read(Pin::new(&mut self.read), cx, out)
    }
}

impl futures_io::AsyncRead for Substream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        futures_io::AsyncRead::poll_read(Pin::new(&mut self.read), cx, out)
    }
}

/// See the one of [`ReadHalf`].
impl tokio::io::AsyncBufRead for Substream {
    fn poll_fill_buf(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<&[u8]>> {
        self.get_mut().read.poll_filled(cx)
    }

    fn consume(self: Pin<&mut Self>, length: usize) {
        self.get_mut().read.consume_filled(length);
    }
}

/// See the one of [`ReadHalf`].
impl futures_io::AsyncBufRead for Substream {
    fn poll_fill_buf(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<&[u8]>> {
        self.get_mut().read.poll_filled(cx)
    }

    fn consume(self: Pin<&mut Self>, length: usize) {
        self.get_mut().read.consume_filled(length);
    }
}

impl tokio::io::AsyncWrite for Substream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        tokio::io::AsyncWrite::poll_write(Pin::new(&mut self.write), cx, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        tokio::io::AsyncWrite::poll_flush(Pin::new(&mut self.write), cx)
    }

    /// Like [`WriteHalf`]. [`Substream::close_outcome`] has the details.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        tokio::io::AsyncWrite::poll_shutdown(Pin::new(&mut self.write), cx)
    }
}

impl futures_io::AsyncWrite for Substream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        futures_io::AsyncWrite::poll_write(Pin::new(&mut self.write), cx, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        futures_io::AsyncWrite::poll_flush(Pin::new(&mut self.write), cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        futures_io::AsyncWrite::poll_close(Pin::new(&mut self.write), cx)
    }
}
