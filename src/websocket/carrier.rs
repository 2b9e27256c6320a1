//! The carrier: one WebSocket, driven by [`Carrier::poll_event`].
//!
//! ```text
//! Running ──► Failing: close frame sent, the peer's is awaited ──► Ended
//!    └──────► Closing: as asked by the connection ───────────────► Ended
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
use super::incoming::{Cut, Incoming};
use super::outgoing::{Outgoing, Overtake, Placed};
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

/// The number that no substream has: Noise runs on it, and after that a FIN on it says that its sender opens and
/// takes no more substreams.
pub(super) const STREAM_ZERO: u64 = 0;

/// Messages that are taken in before the driver has other work.
const TURNS_PER_POLL: usize = 16;

/// Frames without an event that are taken in before the driver has other work: of substreams that are over.
const FRAMES_PER_POLL: usize = 256;

/// Where the carrier is in its life.
#[derive(Debug)]
enum State {
    /// Frames come and go.
    Running,
    /// The close frame is out, for this cause; what comes is thrown away until the peer has closed too. Its close
    /// frame would be lost if the socket were closed with bytes unread.
    Failing(ConnectionError),
    /// As asked by [`Carrier::poll_close`].
    Closing,
    /// Over, for this cause.
    Ended(ConnectionError),
}

/// One WebSocket.
pub(super) struct WebSocketCarrier<S> {
    socket: WebSocketStream<Metered<S>>,
    config: WebSocketConfig,
    channels: Channels,
    incoming: Incoming,
    outgoing: Outgoing,
    heartbeat: Heartbeat,
    /// At most a few: what one frame of the peer, or one call, has caused.
    events: VecDeque<CarrierEvent>,
    /// A message is being written; whom to tell when it is.
    writing: Option<Vec<ChannelId>>,
    /// A write was refused for want of room, and `Writable` is owed.
    refused: bool,
    /// Bytes of pongs that the engine has queued since the socket last took everything.
    pongs: usize,
    /// Why nothing can be written any more. What the peer has sent before is still read.
    write_error: Option<WebSocketError>,
    /// The engine has found an error, after which it reads no more.
    engine_failed: bool,
    /// With which code the peer said goodbye, if it did.
    goodbye: Option<Option<u32>>,
    said_goodbye: bool,
    /// The close frame for the cause that the connection closes with.
    own_close: Option<CloseFrame>,
    state: State,
    /// Bytes that came since this side has sent its close frame.
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
            incoming: Incoming::default(),
            outgoing: Outgoing::new(config.batch),
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

    /// The next frame of the handshake. Before it waits, what was queued is sent.
    pub(super) fn poll_zero(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Bytes, ConnectionError>> {
        loop {
            if !matches!(self.state, State::Running) {
                return self.poll_ending(cx).map(Err);
            }
            match self.incoming.next() {
                Ok(Some(cut)) if cut.stream == STREAM_ZERO => return Poll::Ready(Ok(cut.bytes)),
                Ok(Some(cut)) => {
                    // Nothing may be opened before the peer is known.
                    let stream = cut.stream;
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

    /// Sends what is queued, without waiting for more. For the end of a handshake.
    pub(super) fn poll_sent(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.send(cx);
        let is_sent = self.writing.is_none() && self.outgoing.is_empty();
        if is_sent || !matches!(self.state, State::Running) {
            return Poll::Ready(());
        }
        Poll::Pending
    }

    /// Takes in one message. `false` when there is none, and the wake-up for it is arranged.
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

    /// Fails for what went wrong first: a write whose error waited for the reads to end, or the reads.
    fn reads_ended(&mut self, error: WebSocketError) {
        let first = self.write_error.take();
        self.fail(first.unwrap_or(error));
    }

    /// Looks at the clock, after everything that has come was read.
    fn beat(&mut self, cx: &mut Context<'_>) -> bool {
        match self.heartbeat.poll_beat(cx) {
            Poll::Pending => false,
            Poll::Ready(Beat::Ping) => {
                self.start_send(WsMessage::Ping(Bytes::new()));
                true
            }
            Poll::Ready(Beat::Dead) => {
                // It is told if it still listens, and not waited for.
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
            // The engine has queued the pong, in front of what is not handed to it yet.
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
                // The answer is queued by the engine; it is flushed before the end.
                self.heartbeat.begin_close(self.config.close_timeout);
                self.writing = Some(self.writing.take().unwrap_or_default());
                self.state = State::Failing(cause);
            }
        }
    }

    fn on_frame(&mut self, cut: Cut) -> Result<(), WebSocketError> {
        let stream = cut.stream;
        if stream == STREAM_ZERO {
            if cut.has_payload || cut.label.is_some() {
                return Err(WebSocketError::UnexpectedStream { stream });
            }
            if let Some(max_substreams) = cut.max_substreams {
                let message = Message::substream_limit(max_substreams);
                self.events.push_back(CarrierEvent::Notice { message });
                return Ok(());
            }
            if cut.flag != Some(Flag::Fin) {
                return Err(WebSocketError::UnexpectedStream { stream });
            }
            if self.goodbye.is_some() {
                self.events.push_back(without_effect());
            }
            self.goodbye.get_or_insert(cut.error_code);
            return Ok(());
        }
        let channel = ChannelId::new(stream);
        match self.channels.route(stream, cut.label.as_deref())? {
            Route::Known => {}
            Route::New => {
                let label = cut.label.unwrap_or_default();
                self.events
                    .push_back(CarrierEvent::Opened { channel, label });
            }
            Route::Late => {
                if cut.has_payload && self.channels.resets_late_data(stream) {
                    return self.control(&mut Placed::default(), |out| {
                        let code = Some(code::ABANDONED);
                        append_flag(out, stream, Flag::ResetStream, code);
                    });
                }
                // Payload may have been under way for long; flags are few.
                if !cut.has_payload {
                    self.events.push_back(without_effect());
                }
                return Ok(());
            }
        }
        if cut.closes_channel {
            self.channels.closed_by_peer(stream);
            self.events.push_back(CarrierEvent::Closed { channel });
            return Ok(());
        }
        if let Some(flag) = cut.flag {
            self.channels.received_flag(stream, flag);
        }
        self.channels.received_bytes(stream, cut.bytes);
        self.events.push_back(CarrierEvent::Readable { channel });
        Ok(())
    }
}

/// A frame that changes nothing, which the connection counts.
fn without_effect() -> CarrierEvent {
    let message = Message::default();
    CarrierEvent::Notice { message }
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Carrier for WebSocketCarrier<S> {
    fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Result<CarrierEvent, ConnectionError>> {
        let mut frames = 0;
        for _ in 0..TURNS_PER_POLL {
            while frames < FRAMES_PER_POLL {
                frames += 1;
                if let Some(event) = self.events.pop_front() {
                    return Poll::Ready(Ok(event));
                }
                if !matches!(self.state, State::Running) {
                    return self.poll_ending(cx).map(Err);
                }
                // One frame at a time: a message of thousands makes no queue of thousands.
                let result = match self.incoming.next() {
                    Ok(Some(cut)) => self.on_frame(cut),
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
            // It may have ended with that.
            if matches!(self.state, State::Running) && !self.receive(cx) && self.events.is_empty() {
                return Poll::Pending;
            }
        }
        // More to do, but the driver has other work too.
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
        // Payload has its place, whatever it is counted as.
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
            // Small, and to be looked into.
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
        // What is to be closed has to be open: its first frame goes first.
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
                    // Read on, so that a peer that waits for its own writes gets on; its frames are late.
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

/// The flag of an encoded frame that begins with it, as frames of flags do.
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
