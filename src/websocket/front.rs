//! The stream under a server's TLS: checks the first byte, and limits what TLS may buffer.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use pin_project_lite::pin_project;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};

/// Maximum bytes from a client until the TLS handshake is complete. A ClientHello with post-quantum
/// key shares has 2 KiB; rustls would buffer 64 KiB for one.
const MAX_HELLO: usize = 10 * 1024;

/// The same where clients have to present a certificate: a chain of three takes 6 KiB. It can make
/// rustls buffer 32 KiB, and the chain that it keeps afterwards.
const MAX_HELLO_WITH_CERTIFICATE: usize = 24 * 1024;

/// Maximum bytes from then on until the client is authenticated: a request of 8 KiB, Noise of 2
/// KiB, and the overhead of TLS. For a larger record rustls would grow its buffer to 32 KiB.
const MAX_UNPROVEN: usize = 12 * 1024;

/// A handle of the limit of a [`Front`].
#[derive(Debug, Clone)]
pub(super) struct Bound(Arc<AtomicUsize>);

impl Bound {
    /// The TLS handshake is complete; the peer is not authenticated yet.
    pub(super) fn begin_request(&self) {
        self.0.store(MAX_UNPROVEN, Ordering::Relaxed);
    }

    /// The peer is authenticated: removes the limit.
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
    /// A stream under TLS.
    #[derive(Debug)]
    pub(super) struct Front<S> {
        #[pin]
        io: S,
        // The byte that was read ahead.
        first: Option<u8>,
        bound: Bound,
    }
}

impl<S: AsyncRead + Unpin> Front<S> {
    pub(super) fn new(io: S, expects_certificate: bool) -> Self {
        let limit = match expects_certificate {
            true => MAX_HELLO_WITH_CERTIFICATE,
            false => MAX_HELLO,
        };
        Self {
            io,
            first: None,
            bound: Bound(Arc::new(AtomicUsize::new(limit))),
        }
    }

    pub(super) fn bound(&self) -> Bound {
        self.bound.clone()
    }

    /// Whether the client sends plain HTTP in place of TLS.
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
            let text = "too many bytes before authentication";
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
