//! The end of a connection over a WebSocket, by either side.

use std::pin::Pin;
use std::task::{Context, Poll};

use futures_util::{Sink, Stream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_tungstenite::tungstenite::Message as WsMessage;

use super::super::close;
use super::super::error::WebSocketError;
use super::{STEPS_PER_POLL, State, WebSocketCarrier};
use crate::connection::ConnectionError;

/// Maximum bytes discarded while waiting for the peer's close frame. A peer that sends more does
/// not intend to close.
const MAX_DISCARDED: usize = 4 * 1024 * 1024;

impl<S: AsyncRead + AsyncWrite + Unpin> WebSocketCarrier<S> {
    /// Fails the connection, for a violation by the peer or an error of the socket.
    pub(super) fn fail(&mut self, error: WebSocketError) {
        if matches!(self.state, State::Failing(_) | State::Ended(_)) {
            return;
        }
        tracing::debug!(target: "anabranch::websocket", %error, "failed");
        let code = close::code_for(&error);
        let reason = error.to_string();
        if matches!(self.state, State::Closing) {
            // This side closes already.
            return self.end(ConnectionError::ClosedLocally);
        }
        let Some(code) = code else {
            return self.end(error.into());
        };
        let frame = WsMessage::Close(Some(close::frame(code, &reason)));
        self.state = State::Failing(error.into());
        self.heartbeat.begin_close(self.config.close_timeout);
        // The close frame follows the message that is being written, and precedes all queued ones.
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

    /// Ends with the cause of the current state.
    pub(super) fn settle(&mut self) {
        let state = std::mem::replace(&mut self.state, State::Closing);
        self.state = State::Ended(match state {
            State::Failing(cause) | State::Ended(cause) => cause,
            State::Running | State::Closing => ConnectionError::ClosedLocally,
        });
    }

    /// Flushes the close frame and waits for the peer's, within the close timeout.
    pub(super) fn poll_ending(&mut self, cx: &mut Context<'_>) -> Poll<ConnectionError> {
        for _ in 0..STEPS_PER_POLL {
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
                // Frames that are too late, or follow a violation, are discarded.
                Poll::Ready(Some(Ok(WsMessage::Close(_)))) => self.settle_when_flushed(cx),
                Poll::Ready(None | Some(Err(_))) if self.engine_failed => {
                    if self.poll_discard(cx).is_pending() {
                        return Poll::Pending;
                    }
                    self.settle();
                }
                Poll::Ready(None | Some(Err(_))) => self.settle_when_flushed(cx),
                Poll::Ready(Some(Ok(message))) => {
                    // 64 for the cost of a frame itself.
                    self.discarded = self.discarded.saturating_add(message.len() + 64);
                    // The timeout also applies to a peer that sends all the time.
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
        // Yields to other tasks.
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// tungstenite reads no more, but a socket that is closed with unread bytes resets the
    /// connection (RFC 1122 section 4.2.2.13), which loses the close frame. So they are read here,
    /// up to the same limits.
    fn poll_discard(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut bytes = [0; 4096];
        for _ in 0..STEPS_PER_POLL {
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

    /// The peer has closed: flushes the own answer as far as the socket takes it, and ends.
    fn settle_when_flushed(&mut self, cx: &mut Context<'_>) {
        let _ = Pin::new(&mut self.socket).poll_flush(cx);
        self.settle();
    }
}
