//! Pings and timeouts. Any byte from the peer counts as a sign of life.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use pin_project_lite::pin_project;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

use super::boundaries::FrameBoundaries;

pin_project! {
    /// A stream that counts received bytes, after TLS: on a slow path a message of 1 MiB counts
    /// long before it is complete.
    #[derive(Debug)]
    pub(super) struct Metered<S> {
        #[pin]
        io: S,
        received: Arc<AtomicU64>,
        // While set, no read goes beyond the end of a frame.
        boundaries: Option<FrameBoundaries>,
    }
}

impl<S> Metered<S> {
    pub(super) fn new(io: S) -> Self {
        Self {
            io,
            received: Arc::new(AtomicU64::new(0)),
            boundaries: None,
        }
    }

    /// Limits reads to one frame, from here on. The stream has to be at a frame boundary.
    pub(super) fn frame_by_frame(mut self) -> Self {
        self.boundaries = Some(FrameBoundaries::default());
        self
    }

    /// Removes the limit. Returns `false` in the middle of a frame, of which the reader holds a
    /// part.
    pub(super) fn read_ahead(&mut self) -> bool {
        self.boundaries
            .take()
            .is_none_or(|boundaries| boundaries.is_between_frames())
    }

    pub(super) fn counter(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.received)
    }
}

impl<S: AsyncRead> AsyncRead for Metered<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let this = self.project();
        let before = buf.filled().len();
        let result = match this.boundaries {
            None => this.io.poll_read(cx, buf),
            Some(boundaries) => {
                let len = boundaries.wanted().min(buf.remaining());
                let mut part = ReadBuf::new(buf.initialize_unfilled_to(len));
                let result = this.io.poll_read(cx, &mut part);
                boundaries.read(part.filled());
                let len = part.filled().len();
                buf.advance(len);
                result
            }
        };
        let received = buf.filled().len().saturating_sub(before);
        if received > 0 {
            this.received.fetch_add(received as u64, Ordering::Relaxed);
        }
        result
    }
}

impl<S: AsyncWrite> AsyncWrite for Metered<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        self.project().io.poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        self.project().io.poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        self.project().io.poll_shutdown(cx)
    }
}

/// What the heartbeat requires.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Beat {
    /// Send a ping: the peer has been silent for the ping interval.
    Ping,
    /// End the connection: the idle timeout has expired.
    Dead,
}

/// The timer of a carrier: for pings and the idle timeout, and for the close timeout once the close
/// has begun.
#[derive(Debug)]
pub(super) struct Heartbeat {
    received: Arc<AtomicU64>,
    seen: u64,
    heard_at: Instant,
    pinged_at: Option<Instant>,
    /// When the first ping without a pong was sent.
    pong_since: Option<Instant>,
    ping_interval: Duration,
    idle_timeout: Duration,
    /// The close timeout, which replaces the other two.
    close_at: Option<Instant>,
    sleep: Pin<Box<Sleep>>,
}

impl Heartbeat {
    pub(super) fn new(
        received: Arc<AtomicU64>,
        ping_interval: Duration,
        idle_timeout: Duration,
    ) -> Self {
        let now = Instant::now();
        Self {
            seen: received.load(Ordering::Relaxed),
            received,
            heard_at: now,
            pinged_at: None,
            pong_since: None,
            ping_interval,
            idle_timeout,
            close_at: None,
            sleep: Box::pin(sleep_until(now + ping_interval)),
        }
    }

    /// Handles a pong. Returns the time since its ping, or `None` for an unsolicited one.
    pub(super) fn pong(&mut self) -> Option<Duration> {
        self.pong_since.take().map(|since| since.elapsed())
    }

    /// Returns what is due, after the socket has been read. `Pending` registers the waker for the
    /// next.
    pub(super) fn poll_beat(&mut self, cx: &mut Context<'_>) -> Poll<Beat> {
        let received = self.received.load(Ordering::Relaxed);
        if received != self.seen {
            self.seen = received;
            self.heard_at = Instant::now();
            self.pinged_at = None;
        }
        loop {
            // The timer is reset only when it has fired: a reset with every byte would cost more.
            if self.sleep.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            let now = Instant::now();
            let dead_at = self.heard_at + self.idle_timeout;
            if now >= dead_at {
                return Poll::Ready(Beat::Dead);
            }
            let ping_at = self.pinged_at.unwrap_or(self.heard_at) + self.ping_interval;
            if now >= ping_at {
                self.pinged_at = Some(now);
                self.pong_since.get_or_insert(now);
                self.sleep
                    .as_mut()
                    .reset(dead_at.min(now + self.ping_interval));
                return Poll::Ready(Beat::Ping);
            }
            self.sleep.as_mut().reset(dead_at.min(ping_at));
        }
    }

    /// Starts the close timeout. Later calls have no effect.
    pub(super) fn begin_close(&mut self, timeout: Duration) {
        if self.close_at.is_none() {
            let at = Instant::now() + timeout;
            self.close_at = Some(at);
            self.sleep.as_mut().reset(at);
        }
    }

    /// Completes when the close timeout expires.
    pub(super) fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.sleep.as_mut().poll(cx)
    }
}
