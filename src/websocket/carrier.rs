//! The carrier over one WebSocket, driven by [`Carrier::poll_event`].
//!
//! ```text
//! Running ──► Failing: close frame sent, waits for the peer's ────► Ended
//!    └──────► Closing: close frame sent for poll_close ────────────► Ended
//! ```

use std::collections::VecDeque;
use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::{Sink, Stream};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message as WsMessage;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;

use super::channels::{Channels, Route};
use super::close;
use super::config::WebSocketConfig;
use super::error::WebSocketError;
use super::heartbeat::{Beat, Heartbeat, Metered};
use super::incoming::{Frame, IncomingFrames};
use super::outgoing::{OutgoingFrames, Overtake, Placed};
use crate::carrier::{
    Carrier, CarrierEvent, ChannelId, Class, MessageCounts, OpenChannelError, Written,
};
use crate::connection::ConnectionError;
use crate::message::mux::{
    STREAM_FIELD_MAX, append_channel_closed, append_flag, append_routed, peek,
};
use crate::message::{Flag, MAX_FRAME, Message};
use crate::substream::code;

mod ending;
mod proof;
mod sending;

/// The stream of Noise and of notices, which is no substream. A FIN on it means that its sender
/// opens and accepts no more substreams.
pub(super) const STREAM_ZERO: u64 = 0;

/// Maximum messages received in one poll.
const STEPS_PER_POLL: usize = 16;

/// Maximum frames processed in one poll without an event: those of closed substreams.
const FRAMES_PER_POLL: usize = 256;

/// The state of the carrier.
#[derive(Debug)]
enum State {
    /// Frames are sent and received.
    Running,
    /// The close frame is sent, for this cause. Received data is discarded until the peer has
    /// closed too: closing the socket with unread bytes would lose the close frame.
    Failing(ConnectionError),
    /// The close frame of [`Carrier::poll_close`] is sent.
    Closing,
    /// The WebSocket has ended, for this cause.
    Ended(ConnectionError),
}

/// A carrier over one WebSocket.
pub(super) struct WebSocketCarrier<S> {
    socket: WebSocketStream<Metered<S>>,
    config: WebSocketConfig,
    channels: Channels,
    incoming: IncomingFrames,
    outgoing: OutgoingFrames,
    heartbeat: Heartbeat,
    /// The events of one frame of the peer, or of one call: only a few.
    events: VecDeque<CarrierEvent>,
    /// The channels to notify when the message that is being written has been flushed.
    writing: Option<Vec<ChannelId>>,
    /// A write was refused, and `Writable` is owed.
    refused: bool,
    /// Bytes of pongs that tungstenite has queued since the last complete flush.
    pongs: usize,
    /// The error after which nothing is written. What the peer has sent before is still read.
    write_error: Option<WebSocketError>,
    /// tungstenite has failed, and reads no more.
    engine_failed: bool,
    /// The code of the FIN that the peer has sent on stream 0, if it has.
    goodbye: Option<Option<u32>>,
    said_goodbye: bool,
    /// The close frame for the cause of the close.
    own_close: Option<CloseFrame>,
    state: State,
    /// Bytes received since this side has sent its close frame.
    discarded: usize,
    messages: MessageCounts,
}

impl<S> fmt::Debug for WebSocketCarrier<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WebSocketCarrier")
            .field("state", &self.state)
            .field("queued", &self.outgoing.len())
            .finish_non_exhaustive()
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> WebSocketCarrier<S> {
    pub(super) fn new(
        socket: WebSocketStream<Metered<S>>,
        is_client: bool,
        config: WebSocketConfig,
    ) -> Self {
        let heartbeat = Heartbeat::new(
            socket.get_ref().counter(),
            config.ping_interval,
            config.idle_timeout,
        );
        Self {
            socket,
            channels: Channels::new(is_client),
            incoming: IncomingFrames::default(),
            outgoing: OutgoingFrames::new(config.batch),
            heartbeat,
            config,
            events: VecDeque::new(),
            writing: None,
            refused: false,
            pongs: 0,
            write_error: None,
            engine_failed: false,
            goodbye: None,
            said_goodbye: false,
            own_close: None,
            state: State::Running,
            discarded: 0,
            messages: MessageCounts::default(),
        }
    }

    #[cfg(test)]
    pub(super) fn channels(&self) -> &Channels {
        &self.channels
    }

    #[cfg(test)]
    pub(super) fn waiting_events(&self) -> usize {
        self.events.len()
    }

    /// Queues a frame of the handshake.
    pub(super) fn send_on_zero(&mut self, frame: &[u8]) {
        let out = self
            .outgoing
            .for_frame(Overtake::Nothing, false, &mut Placed::default());
        append_routed(out, frame, STREAM_ZERO, None);
    }

    /// Receives the next frame of the handshake. Sends queued frames before it waits.
    pub(super) fn poll_zero(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Bytes, ConnectionError>> {
        loop {
            if !matches!(self.state, State::Running) {
                return self.poll_ending(cx).map(Err);
            }
            match self.incoming.next() {
                Ok(Some(frame)) if frame.stream == STREAM_ZERO => {
                    return Poll::Ready(Ok(frame.bytes));
                }
                Ok(Some(frame)) => {
                    // No substream may be opened before the peer is authenticated.
                    let stream = frame.stream;
                    self.fail(WebSocketError::UnexpectedStream { stream });
                    continue;
                }
                Ok(None) => {}
                Err(error) => {
                    self.fail(error);
                    continue;
                }
            }
            self.send(cx);
            if matches!(self.state, State::Running) && !self.receive(cx) {
                return Poll::Pending;
            }
        }
    }

    /// Flushes queued frames, at the end of a handshake.
    pub(super) fn poll_sent(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.send(cx);
        let is_sent = self.writing.is_none() && self.outgoing.is_empty();
        if is_sent || !matches!(self.state, State::Running) {
            return Poll::Ready(());
        }
        Poll::Pending
    }

    /// Receives one message. Returns `false` when there is none; then the waker is registered.
    fn receive(&mut self, cx: &mut Context<'_>) -> bool {
        match Pin::new(&mut self.socket).poll_next(cx) {
            Poll::Ready(Some(Ok(message))) => {
                self.on_message(message);
                true
            }
            Poll::Ready(Some(Err(error))) => {
                self.engine_failed = true;
                self.reads_ended(close::engine_error(error));
                true
            }
            Poll::Ready(None) => {
                self.reads_ended(WebSocketError::Lost);
                true
            }
            Poll::Pending if self.write_error.is_some() => {
                if self.heartbeat.poll_close(cx).is_pending() {
                    return false;
                }
                self.reads_ended(WebSocketError::Lost);
                true
            }
            Poll::Pending => self.beat(cx),
        }
    }

    /// Fails with the first error: that of a write, which was held back until the reads ended, or
    /// this one.
    fn reads_ended(&mut self, error: WebSocketError) {
        let first = self.write_error.take();
        self.fail(first.unwrap_or(error));
    }

    /// Handles the heartbeat, after everything received has been read.
    fn beat(&mut self, cx: &mut Context<'_>) -> bool {
        match self.heartbeat.poll_beat(cx) {
            Poll::Pending => false,
            Poll::Ready(Beat::Ping) => {
                self.start_send(WsMessage::Ping(Bytes::new()));
                true
            }
            Poll::Ready(Beat::Dead) => {
                // Best effort: the close frame is not waited for.
                let _ = Pin::new(&mut self.socket)
                    .start_send(WsMessage::Close(Some(close::frame(1011, "ping timeout"))));
                let _ = Pin::new(&mut self.socket).poll_flush(cx);
                self.end(ConnectionError::TimedOut);
                true
            }
        }
    }

    fn on_message(&mut self, message: WsMessage) {
        match message {
            WsMessage::Binary(bytes) if bytes.is_empty() => self.fail(WebSocketError::EmptyMessage),
            WsMessage::Binary(bytes) => {
                self.messages.received += 1;
                self.incoming.push(bytes);
            }
            WsMessage::Text(_) => self.fail(WebSocketError::Text),
            // tungstenite has queued the pong, before everything that has not been passed to it.
            WsMessage::Ping(payload) => {
                self.writing = Some(self.writing.take().unwrap_or_default());
                // Header and mask.
                self.pongs = self.pongs.saturating_add(payload.len() + 6);
                if self.pongs > self.config.control_backlog {
                    let queued = self.pongs;
                    self.fail(WebSocketError::NotReading { queued });
                }
            }
            WsMessage::Pong(_) => {
                let round_trip = self.heartbeat.pong();
                let event = round_trip.map(|time| CarrierEvent::RoundTrip { time });
                self.events.extend(event);
            }
            WsMessage::Frame(_) => {}
            WsMessage::Close(close) => {
                let goodbye = self.goodbye.flatten();
                let cause = close::cause_of(close.as_ref(), goodbye);
                // tungstenite has queued the answer, which is flushed before the end.
                self.heartbeat.begin_close(self.config.close_timeout);
                self.writing = Some(self.writing.take().unwrap_or_default());
                self.state = State::Failing(cause);
            }
        }
    }

    fn on_frame(&mut self, frame: Frame) -> Result<(), WebSocketError> {
        let stream = frame.stream;
        if stream == STREAM_ZERO {
            if frame.has_payload || frame.label.is_some() {
                return Err(WebSocketError::UnexpectedStream { stream });
            }
            if !frame.notice.is_empty() {
                let message = frame.notice.into_message();
                self.events.push_back(CarrierEvent::Notice { message });
                return Ok(());
            }
            if frame.flag != Some(Flag::Fin) {
                return Err(WebSocketError::UnexpectedStream { stream });
            }
            if self.goodbye.is_some() {
                self.events.push_back(without_effect());
            }
            self.goodbye.get_or_insert(frame.error_code);
            return Ok(());
        }
        let channel = ChannelId::new(stream);
        match self.channels.route(stream, frame.label.as_deref())? {
            Route::Known => {}
            Route::New => {
                let label = frame.label.unwrap_or_default();
                self.events
                    .push_back(CarrierEvent::Opened { channel, label });
            }
            Route::Late => {
                if frame.has_payload && self.channels.resets_late_data(stream) {
                    return self.control(&mut Placed::default(), |out| {
                        let code = Some(code::ABANDONED);
                        append_flag(out, stream, Flag::ResetStream, code);
                    });
                }
                // Late payload is legitimate, in any number. Late flags are few.
                if !frame.has_payload {
                    self.events.push_back(without_effect());
                }
                return Ok(());
            }
        }
        if frame.closes_channel {
            self.channels.closed_by_peer(stream);
            self.events.push_back(CarrierEvent::Closed { channel });
            return Ok(());
        }
        if let Some(flag) = frame.flag {
            self.channels.received_flag(stream, flag);
        }
        self.channels.received_bytes(stream, frame.bytes);
        self.events.push_back(CarrierEvent::Readable { channel });
        Ok(())
    }
}

/// The event for a frame without effect, which the connection counts.
fn without_effect() -> CarrierEvent {
    let message = Message::default();
    CarrierEvent::Notice { message }
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Carrier for WebSocketCarrier<S> {
    fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Result<CarrierEvent, ConnectionError>> {
        let mut frames = 0;
        for _ in 0..STEPS_PER_POLL {
            while frames < FRAMES_PER_POLL {
                frames += 1;
                if let Some(event) = self.events.pop_front() {
                    return Poll::Ready(Ok(event));
                }
                if !matches!(self.state, State::Running) {
                    return self.poll_ending(cx).map(Err);
                }
                // One frame at a time, so that a message of thousands of frames does not queue
                // thousands of events.
                let result = match self.incoming.next() {
                    Ok(Some(frame)) => self.on_frame(frame),
                    Ok(None) => break,
                    Err(error) => Err(error),
                };
                if let Err(error) = result {
                    self.fail(error);
                }
            }
            if frames >= FRAMES_PER_POLL {
                break;
            }
            self.send(cx);
            // `send` may have ended it.
            if matches!(self.state, State::Running) && !self.receive(cx) && self.events.is_empty() {
                return Poll::Pending;
            }
        }
        // Yields to the driver's other work.
        cx.waker().wake_by_ref();
        match self.events.pop_front() {
            Some(event) => Poll::Ready(Ok(event)),
            None => Poll::Pending,
        }
    }

    fn open(&mut self, label: &str) -> Result<ChannelId, OpenChannelError> {
        if !matches!(self.state, State::Running) {
            return Err(OpenChannelError::Closed);
        }
        if self.goodbye.is_some() {
            return Err(OpenChannelError::GoingAway);
        }
        self.channels.open(label)
    }

    fn write(&mut self, channel: ChannelId, frame: &[u8], class: Class) -> Written {
        let flag = if class == Class::Control {
            flag_of(frame)
        } else {
            None
        };
        // Payload never overtakes payload of its channel, whatever its class.
        let overtake = match (class, flag) {
            (Class::Data, _) => Overtake::Nothing,
            (Class::Control, Some(Flag::Fin | Flag::ResetStream)) => Overtake::Others,
            (Class::Control, None) if has_payload(frame) => Overtake::Others,
            (Class::Control, _) => Overtake::Own,
        };
        self.write_pieces(channel, &[frame], class, flag, overtake)
    }

    fn write_vectored(&mut self, channel: ChannelId, pieces: &[&[u8]], class: Class) -> Written {
        match class {
            Class::Data => self.write_pieces(channel, pieces, class, None, Overtake::Nothing),
            // Control frames are small, and `write` has to parse them.
            Class::Control => self.write(channel, &pieces.concat(), class),
        }
    }

    fn read(&mut self, channel: ChannelId) -> Option<Bytes> {
        self.channels.read(channel)
    }

    fn confirms_delivery(&self) -> bool {
        false
    }

    fn notify_delivered(&mut self, channel: ChannelId) {
        if self.channels.get_mut(channel).is_none() || matches!(self.state, State::Ended(_)) {
            return;
        }
        if self.outgoing.notify(channel) {
            return;
        }
        match &mut self.writing {
            Some(notify) => notify.push(channel),
            None => self.events.push_back(CarrierEvent::Delivered { channel }),
        }
    }

    fn close_channel(&mut self, channel: ChannelId) {
        // The first frame of a channel precedes its close.
        if self.channels.has_unannounced() {
            self.announce(channel.get());
        }
        let Some(mut entry) = self.channels.remove(channel) else {
            return;
        };
        if !matches!(self.state, State::Running) {
            return;
        }
        if entry.is_open() {
            self.events.push_back(CarrierEvent::Closed { channel });
        }
        if entry.needs_close() {
            let stream = channel.get();
            let queued = self.control(&mut entry.placed, |out| append_channel_closed(out, stream));
            if let Err(error) = queued {
                self.fail(error);
            }
        }
    }

    fn max_message(&self) -> usize {
        MAX_FRAME - STREAM_FIELD_MAX
    }

    fn knows_credit(&self) -> bool {
        true
    }

    fn message_counts(&self) -> MessageCounts {
        self.messages
    }

    fn carries_notices(&self) -> bool {
        true
    }

    fn write_notice(&mut self, frame: &[u8]) -> Written {
        if !matches!(self.state, State::Running) {
            return Written::Closed;
        }
        let queued = self.control(&mut Placed::default(), |out| {
            append_routed(out, frame, STREAM_ZERO, None);
        });
        match queued {
            Ok(()) => Written::Taken,
            Err(error) => {
                self.fail(error);
                Written::Closed
            }
        }
    }

    fn begin_close(&mut self, cause: &ConnectionError) {
        if !matches!(self.state, State::Running) || self.said_goodbye {
            return;
        }
        self.said_goodbye = true;
        self.own_close = Some(close::frame_for(cause));
        let code = match cause {
            ConnectionError::ClosedWith { code, .. } => Some(*code),
            _ => None,
        };
        let queued = self.control(&mut Placed::default(), |out| {
            append_flag(out, STREAM_ZERO, Flag::Fin, code)
        });
        if let Err(error) = queued {
            self.fail(error);
        }
    }

    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if matches!(self.state, State::Running) {
            self.send(cx);
            if matches!(self.state, State::Running) {
                if self.writing.is_some() || !self.outgoing.is_empty() {
                    // Reads on, and discards, so that a peer that is blocked in its own writes
                    // continues.
                    if let Poll::Ready(message) = Pin::new(&mut self.socket).poll_next(cx) {
                        match message {
                            Some(Ok(WsMessage::Close(_)) | Err(_)) | None => self.settle(),
                            Some(Ok(_)) => cx.waker().wake_by_ref(),
                        }
                    }
                    return match self.state {
                        State::Ended(_) => Poll::Ready(()),
                        _ => Poll::Pending,
                    };
                }
                let frame = self
                    .own_close
                    .take()
                    .unwrap_or_else(|| close::frame(close::NORMAL, ""));
                self.state = State::Closing;
                self.heartbeat.begin_close(self.config.close_timeout);
                match Pin::new(&mut self.socket).start_send(WsMessage::Close(Some(frame))) {
                    Ok(()) => self.writing = Some(Vec::new()),
                    Err(_) => self.settle(),
                }
            }
        }
        self.poll_ending(cx).map(drop)
    }
}

fn has_payload(frame: &[u8]) -> bool {
    peek(frame).is_ok_and(|head| head.is_none_or(|head| head.has_payload))
}

/// The flag of an encoded frame. Frames of flags begin with it.
fn flag_of(frame: &[u8]) -> Option<Flag> {
    match frame {
        [_, 0x08, value, ..] => [
            Flag::Fin,
            Flag::StopSending,
            Flag::ResetStream,
            Flag::FinAck,
        ]
        .into_iter()
        .find(|flag| *flag as u8 == *value),
        _ => None,
    }
}
