//! How a connection over a WebSocket ends, by either side.

use std::pin::Pin;
use std::task::{Context, Poll};

use futures_util::{Sink, Stream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_tungstenite::tungstenite::Message as WsMessage;

use super::super::close;
use super::super::error::WebSocketError;
use super::{State, TURNS_PER_POLL, WebSocketCarrier};
use crate::connection::ConnectionError;

/// Bytes that are thrown away while the peer's close frame is awaited. Who sends more does not mean to close.
const MAX_DISCARDED: usize = 4 * 1024 * 1024;

impl<S: AsyncRead + AsyncWrite + Unpin> WebSocketCarrier<S> {
    /// Breaks the connection off for what the peer did, or for the socket's sake.
    pub(super) fn fail(&mut self, error: WebSocketError) {
        if matches!(self.state, State::Failing(_) | State::Ended(_)) {
            return;
        }
        tracing::debug!(target: "anabranch::websocket", %error, "the WebSocket failed");
        let code = close::code_for(&error);
        let reason = error.to_string();
        if matches!(self.state, State::Closing) {
            // The cause is this side's own.
            return self.end(ConnectionError::ClosedLocally);
        }
        let Some(code) = code else {
            return self.end(error.into());
        };
        let frame = WsMessage::Close(Some(close::frame(code, &reason)));
        self.state = State::Failing(error.into());
        self.heartbeat.begin_close(self.config.close_timeout);
        // Close comes behind the message that is being written, and in front of all others.
        match Pin::new(&mut self.socket).start_send(frame) {
            Ok(()) => self.writing = Some(Vec::new()),
            Err(_) => self.settle(),
        }
    }

    pub(super) fn end(&mut self, cause: ConnectionError) {
        if !matches!(self.state, State::Ended(_)) {
            self.state = State::Ended(cause);
        }
    }

    /// Ends with the cause that is known already.
    pub(super) fn settle(&mut self) {
        let state = std::mem::replace(&mut self.state, State::Closing);
        self.state = State::Ended(match state {
            State::Failing(cause) | State::Ended(cause) => cause,
            State::Running | State::Closing => ConnectionError::ClosedLocally,
        });
    }

    /// Flushes the close frame and waits for the peer's, for as long as it may take.
    pub(super) fn poll_ending(&mut self, cx: &mut Context<'_>) -> Poll<ConnectionError> {
        for _ in 0..TURNS_PER_POLL {
            if let State::Ended(cause) = &self.state {
                return Poll::Ready(cause.clone());
            }
            if self.writing.is_some() {
                match Pin::new(&mut self.socket).poll_flush(cx) {
                    Poll::Pending => {}
                    Poll::Ready(Ok(())) => self.writing = None,
                    Poll::Ready(Err(_)) => {
                        self.settle();
                        continue;
                    }
                }
            }
            match Pin::new(&mut self.socket).poll_next(cx) {
                // Its frames came too late, or behind what broke the rules.
                Poll::Ready(Some(Ok(WsMessage::Close(_)))) => self.settle_when_flushed(cx),
                Poll::Ready(None | Some(Err(_))) if self.engine_failed => {
                    if self.poll_discard(cx).is_pending() {
                        return Poll::Pending;
                    }
                    self.settle();
                }
                Poll::Ready(None | Some(Err(_))) => self.settle_when_flushed(cx),
                Poll::Ready(Some(Ok(message))) => {
                    // A frame costs more than its bytes.
                    self.discarded = self.discarded.saturating_add(message.len() + 64);
                    // A peer that sends all the time does not keep the clock from being looked at.
                    if self.discarded > MAX_DISCARDED || self.heartbeat.poll_close(cx).is_ready() {
                        self.settle();
                    }
                }
                Poll::Pending => {
                    if self.heartbeat.poll_close(cx).is_pending() {
                        return Poll::Pending;
                    }
                    self.settle();
                }
            }
        }
        // More to throw away, but other tasks have waited long enough.
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// The engine reads no more, but a socket that is closed with bytes unread resets the connection (RFC 1122 section
    /// 4.2.2.13), and the close frame is lost on its way. So they are read, up to the same limits.
    fn poll_discard(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut bytes = [0; 4096];
        for _ in 0..TURNS_PER_POLL {
            if self.heartbeat.poll_close(cx).is_ready() || self.discarded > MAX_DISCARDED {
                return Poll::Ready(());
            }
            let mut buf = ReadBuf::new(&mut bytes);
            match Pin::new(self.socket.get_mut()).poll_read(cx, &mut buf) {
                Poll::Ready(Ok(())) if !buf.filled().is_empty() => {
                    self.discarded = self.discarded.saturating_add(buf.filled().len());
                }
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending => return Poll::Pending,
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// The peer has closed: nothing more is to be waited for but the own answer, if it fits.
    fn settle_when_flushed(&mut self, cx: &mut Context<'_>) {
        let _ = Pin::new(&mut self.socket).poll_flush(cx);
        self.settle();
    }
}
