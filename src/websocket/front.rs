//! What stands in front of TLS: a look at the first byte, and a bound of what TLS is given to keep.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use pin_project_lite::pin_project;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};

/// Most bytes that a client may send before TLS stands. A ClientHello has 2 KiB with keys against quantum computers;
/// TLS itself would collect 64 KiB for one.
const MAX_HELLO: usize = 10 * 1024;

/// Most bytes that it may send from then on until it is authenticated: a request of 8 KiB, Noise of 2 KiB, and what TLS
/// adds. With more of one record rustls would grow its buffer to 32 KiB.
const MAX_UNPROVEN: usize = 12 * 1024;

/// The bound of a [`Front`], to lift it.
#[derive(Debug, Clone)]
pub(super) struct Bound(Arc<AtomicUsize>);

impl Bound {
    /// TLS stands, and the peer is not authenticated.
    pub(super) fn begin_request(&self) {
        self.0.store(MAX_UNPROVEN, Ordering::Relaxed);
    }

    /// The peer is authenticated: it may send as much as it likes.
    pub(super) fn lift(&self) {
        self.0.store(usize::MAX, Ordering::Relaxed);
    }

    fn left(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    fn take(&self, len: usize) {
        let left = self.left();
        if left != usize::MAX {
            self.0.store(left.saturating_sub(len), Ordering::Relaxed);
        }
    }
}

pin_project! {
    /// A stream that TLS runs over.
    #[derive(Debug)]
    pub(super) struct Front<S> {
        #[pin]
        io: S,
        // The byte that was looked at.
        first: Option<u8>,
        bound: Bound,
    }
}

impl<S: AsyncRead + Unpin> Front<S> {
    pub(super) fn new(io: S) -> Self {
        Self {
            io,
            first: None,
            bound: Bound(Arc::new(AtomicUsize::new(MAX_HELLO))),
        }
    }

    pub(super) fn bound(&self) -> Bound {
        self.bound.clone()
    }

    /// Whether the client begins with the method of an HTTP request, in place of TLS.
    pub(super) async fn begins_with_http(&mut self) -> io::Result<bool> {
        let first = self.io.read_u8().await?;
        self.first = Some(first);
        Ok(first.is_ascii_alphabetic())
    }
}

impl<S: AsyncRead> AsyncRead for Front<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.project();
        if buf.remaining() > 0
            && let Some(first) = this.first.take()
        {
            buf.put_slice(&[first]);
            return Poll::Ready(Ok(()));
        }
        let left = this.bound.left();
        if left == usize::MAX {
            return this.io.poll_read(cx, buf);
        }
        if left == 0 {
            let text = "too much before authentication";
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, text)));
        }
        let len = left.min(buf.remaining());
        let mut part = ReadBuf::new(buf.initialize_unfilled_to(len));
        let result = this.io.poll_read(cx, &mut part);
        let len = part.filled().len();
        this.bound.take(len);
        buf.advance(len);
        result
    }
}

impl<S: AsyncWrite> AsyncWrite for Front<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.project().io.poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.project().io.poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.project().io.poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.project().io.poll_shutdown(cx)
    }
}
