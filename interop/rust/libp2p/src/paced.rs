//! Writes of a size that a transport can send and its peer can read.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures::{AsyncRead, AsyncWrite};

/// Bytes of a write on the wire beside its content.
const FRAME_OVERHEAD: usize = 5;

/// A substream that is flushed before more than `limit` bytes of frames wait in it.
pub(crate) struct Paced<S> {
    inner: S,
    limit: usize,
    unflushed: usize,
}

impl<S> Paced<S> {
    pub(crate) fn new(inner: S, limit: usize) -> Self {
        Self {
            inner,
            limit: limit.max(2 * FRAME_OVERHEAD),
            unflushed: 0,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Paced<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Paced<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let length = buf.len().min(self.limit - FRAME_OVERHEAD);
        if self.unflushed + length + FRAME_OVERHEAD > self.limit {
            ready!(self.as_mut().poll_flush(cx))?;
        }
        let written = ready!(Pin::new(&mut self.inner).poll_write(cx, &buf[..length]))?;
        self.unflushed += written + FRAME_OVERHEAD;
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.inner).poll_flush(cx))?;
        self.unflushed = 0;
        Poll::Ready(Ok(()))
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_close(cx)
    }
}
