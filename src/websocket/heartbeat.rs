//! Whether the peer is still there: any byte of it counts.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use pin_project_lite::pin_project;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

use super::cutter::Cutter;

pin_project! {
    /// A socket that counts the bytes that come from the peer, below TLS's back but above its records: a message of
    /// 1 MiB on a slow path is heard long before it is complete.
    #[derive(Debug)]
    pub(super) struct Metered<S> {
        #[pin]
        io: S,
        received: Arc<AtomicU64>,
        // While it is there no read goes beyond the end of a frame.
        cutter: Option<Cutter>,
    }
}

impl<S> Metered<S> {
    pub(super) fn new(io: S) -> Self {
        Self {
            io,
            received: Arc::new(AtomicU64::new(0)),
            cutter: None,
        }
    }

    /// From here on, where a frame begins, reads end with the frame.
    pub(super) fn frame_by_frame(mut self) -> Self {
        self.cutter = Some(Cutter::default());
        self
    }

    /// Lets reads be as long as they may. `false` in the middle of a frame, of which the reader keeps a part.
    pub(super) fn read_ahead(&mut self) -> bool {
        self.cutter
            .take()
            .is_none_or(|cutter| cutter.is_between_frames())
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
        let result = match this.cutter {
            None => this.io.poll_read(cx, buf),
            Some(cutter) => {
                let len = cutter.wanted().min(buf.remaining());
                let mut part = ReadBuf::new(buf.initialize_unfilled_to(len));
                let result = this.io.poll_read(cx, &mut part);
                cutter.read(part.filled());
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

/// What is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Beat {
    /// The peer has been silent for the ping interval.
    Ping,
    /// It has been silent for too long.
    Dead,
}

/// The one timer of a carrier: for pings and the idle timeout, and for the close once that has begun.
#[derive(Debug)]
pub(super) struct Heartbeat {
    received: Arc<AtomicU64>,
    seen: u64,
    heard_at: Instant,
    pinged_at: Option<Instant>,
    /// When the ping went out whose pong is missing.
    pong_since: Option<Instant>,
    ping_interval: Duration,
    idle_timeout: Duration,
    /// While the connection closes only this counts.
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

    /// A pong has come: the time since the ping it answers, unless nobody asked.
    pub(super) fn pong(&mut self) -> Option<Duration> {
        self.pong_since.take().map(|since| since.elapsed())
    }

    /// What is due, after the socket was read. `Pending` arranges a wake-up for the next.
    pub(super) fn poll_beat(&mut self, cx: &mut Context<'_>) -> Poll<Beat> {
        let received = self.received.load(Ordering::Relaxed);
        if received != self.seen {
            self.seen = received;
            self.heard_at = Instant::now();
            self.pinged_at = None;
        }
        loop {
            // The timer is let run out and then set anew: resetting it with every byte would cost more.
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

    /// From now on the peer has this long to close. The first one counts.
    pub(super) fn begin_close(&mut self, timeout: Duration) {
        if self.close_at.is_none() {
            let at = Instant::now() + timeout;
            self.close_at = Some(at);
            self.sleep.as_mut().reset(at);
        }
    }

    /// Whether the time for closing is over.
    pub(super) fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.sleep.as_mut().poll(cx)
    }
}
