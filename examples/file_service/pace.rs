//! A limit on the rate of one transfer.

use std::io::{self, SeekFrom};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncSeek, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

/// Reads and writes a file at a limited rate. The other side of the transfer waits meanwhile, by
/// the flow control of its substream, and no other transfer does.
///
/// What is read of a file to compare its beginning counts too: the limit protects the disk as well.
pub(crate) struct Paced<T> {
    inner: T,
    /// Bytes a second; `None` is without a limit.
    rate: Option<u64>,
    /// When the bytes that have moved have taken their time.
    due: Pin<Box<Sleep>>,
}

impl<T> Paced<T> {
    pub(crate) fn new(inner: T, rate: Option<u64>) -> Self {
        Self {
            inner,
            rate: rate.filter(|rate| *rate > 0),
            due: Box::pin(sleep_until(Instant::now())),
        }
    }

    fn moved(&mut self, bytes: usize) {
        let Some(rate) = self.rate else {
            return;
        };
        let takes = Duration::from_secs_f64(bytes as f64 / rate as f64);
        // From now, if it was slower by itself: a pause earns no burst.
        let due = self.due.deadline().max(Instant::now()) + takes;
        self.due.as_mut().reset(due);
    }

    fn poll_due(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match self.rate {
            Some(_) => self.due.as_mut().poll(cx),
            None => Poll::Ready(()),
        }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Paced<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        ready!(self.poll_due(cx));
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.inner).poll_read(cx, buffer))?;
        self.moved(buffer.filled().len() - before);
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncSeek + Unpin> AsyncSeek for Paced<T> {
    fn start_seek(mut self: Pin<&mut Self>, position: SeekFrom) -> io::Result<()> {
        Pin::new(&mut self.inner).start_seek(position)
    }

    fn poll_complete(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<u64>> {
        Pin::new(&mut self.inner).poll_complete(cx)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Paced<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_due(cx));
        let written = ready!(Pin::new(&mut self.inner).poll_write(cx, bytes))?;
        self.moved(written);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}
