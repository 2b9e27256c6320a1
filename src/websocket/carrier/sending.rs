//! Sending: frames into the queue, and the queue into the socket.

use std::pin::Pin;
use std::task::{Context, Poll};

use futures_util::Sink;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_tungstenite::tungstenite::Message as WsMessage;

use super::super::close;
use super::super::error::WebSocketError;
use super::super::outgoing::{Overtake, Placed};
use super::{State, WebSocketCarrier};
use crate::carrier::{CarrierEvent, ChannelId, Class, Written};
use crate::message::mux::{STREAM_FIELD_MAX, append_open, append_pieces, routed_len};
use crate::message::{Flag, MAX_FRAME};

impl<S: AsyncRead + AsyncWrite + Unpin> WebSocketCarrier<S> {
    /// Queues a control frame of the carrier. An error if the peer does not read and too much has
    /// queued up.
    pub(super) fn control(
        &mut self,
        placed: &mut Placed,
        append: impl FnOnce(&mut bytes::BytesMut),
    ) -> Result<(), WebSocketError> {
        let queued = self.outgoing.len();
        if queued > self.config.batch + 4 * self.config.control_backlog {
            return Err(WebSocketError::NotReading { queued });
        }
        let overtake = self.overtake(Overtake::Others);
        append(self.outgoing.for_frame(overtake, false, placed));
        Ok(())
    }

    /// Queues the first frames of opened channels, up to the number `up_to`.
    pub(super) fn announce(&mut self, up_to: u64) {
        while let Some((number, label)) = self.channels.next_unannounced(up_to) {
            let overtake = self.overtake(Overtake::Others);
            let mut unknown = Placed::default();
            let placed = match self.channels.get_mut(ChannelId::new(number)) {
                Some(channel) => &mut channel.placed,
                None => &mut unknown,
            };
            let out = self.outgoing.for_frame(overtake, true, placed);
            append_open(out, number, &label);
        }
    }

    /// What a frame may overtake now: nothing while the socket is not blocked, since then nothing
    /// waits long.
    pub(super) fn overtake(&self, most: Overtake) -> Overtake {
        if self.writing.is_some() {
            most
        } else {
            Overtake::Nothing
        }
    }

    pub(super) fn start_send(&mut self, message: WsMessage) {
        let notify = self.writing.take().unwrap_or_default();
        match Pin::new(&mut self.socket).start_send(message) {
            Ok(()) => self.writing = Some(notify),
            Err(error) => self.write_failed(close::engine_error(error)),
        }
    }

    /// The socket accepts no more. What the peer sent before, and its close frame, may still be
    /// unread.
    fn write_failed(&mut self, error: WebSocketError) {
        self.writing = None;
        if !matches!(self.state, State::Running) || !matches!(error, WebSocketError::Io { .. }) {
            return self.fail(error);
        }
        self.heartbeat.begin_close(self.config.close_timeout);
        self.write_error.get_or_insert(error);
    }

    /// Writes to the socket until the queue is empty or the socket is full.
    pub(super) fn send(&mut self, cx: &mut Context<'_>) {
        if self.write_error.is_some() {
            return;
        }
        if self.channels.has_unannounced() {
            self.announce(u64::MAX);
        }
        loop {
            if self.writing.is_some() {
                match Pin::new(&mut self.socket).poll_flush(cx) {
                    Poll::Pending => return,
                    Poll::Ready(Err(error)) => {
                        if matches!(self.state, State::Running) {
                            self.write_failed(close::engine_error(error));
                        }
                        return;
                    }
                    Poll::Ready(Ok(())) => {
                        self.pongs = 0;
                        for channel in self.writing.take().into_iter().flatten() {
                            self.events.push_back(CarrierEvent::Delivered { channel });
                        }
                    }
                }
            }
            let Some((message, notify)) = self.outgoing.take() else {
                return;
            };
            self.writing = Some(notify);
            if !message.is_empty() {
                self.messages.sent += 1;
                self.start_send(WsMessage::Binary(message));
                if self.write_error.is_some() {
                    return;
                }
            }
            if std::mem::take(&mut self.refused) {
                self.events.push_back(CarrierEvent::Writable);
            }
        }
    }

    /// Queues one frame, which may overtake at most what `overtake` allows.
    pub(super) fn write_pieces(
        &mut self,
        channel: ChannelId,
        pieces: &[&[u8]],
        class: Class,
        flag: Option<Flag>,
        overtake: Overtake,
    ) -> Written {
        if !matches!(self.state, State::Running) {
            return Written::Closed;
        }
        let stream = channel.get();
        if self
            .channels
            .get_mut(channel)
            .is_none_or(|entry| !entry.is_open())
        {
            return Written::Closed;
        }
        let has_room = match class {
            Class::Data => {
                let len: usize = pieces.iter().map(|piece| piece.len()).sum();
                self.outgoing.has_room(len + STREAM_FIELD_MAX)
            }
            Class::Control => {
                self.outgoing.len() <= self.config.batch + self.config.control_backlog
            }
        };
        if !has_room {
            self.refused = true;
            return Written::Busy;
        }
        // First frames are sent in the order of their numbers; this may be one.
        let mut label = None;
        if self.channels.has_unannounced() {
            self.announce(stream.saturating_sub(1));
            label = self
                .channels
                .next_unannounced(stream)
                .map(|(_, label)| label);
        }
        // A first frame does not overtake those of its own channel.
        let most = match overtake {
            Overtake::Own if label.is_some() => Overtake::Others,
            most => most,
        };
        let overtake = self.overtake(most);
        let Some(entry) = self.channels.get_mut(channel) else {
            return Written::Closed;
        };
        if let Some(text) = &label
            && routed_len(pieces, stream, Some(text)).is_some_and(|len| len > MAX_FRAME)
        {
            let out = self.outgoing.for_frame(overtake, true, &mut entry.placed);
            append_open(out, stream, text);
            label = None;
        }
        let out = self
            .outgoing
            .for_frame(overtake, label.is_some(), &mut entry.placed);
        if !append_pieces(out, pieces, stream, label.as_deref()) {
            debug_assert!(false, "a write is one frame");
            return Written::Closed;
        }
        if let Some(flag) = flag {
            entry.sent(flag);
        }
        Written::Taken
    }
}
