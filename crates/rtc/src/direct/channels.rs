//! Data channels on the streams of an SCTP association (RFC 8831).
//!
//! ```text
//! we open        Open ───────────────────────────────► (close_channel) Closing ─► gone
//! the peer opens AwaitOpen ─► (DATA_CHANNEL_OPEN) Open ─► (its reset) gone
//!                         └─► (anything else) Refused ─► gone
//! ```
//!
//! A channel is gone when the peer has reset its stream and everything before the reset was read.
//! Its stream id is free when our own reset is acknowledged as well (RFC 8831 section 6.7).

use std::collections::{HashMap, VecDeque};

use bytes::Bytes;

use super::dcep::{self, Dcep};
use super::stream_ids::StreamIds;
use crate::engine::{
    CHANNEL_ZERO, ChannelId, Class, EndReason, Event, LimitExceeded, OpenError, Role, Written,
};
use crate::limits::{MAX_CHANNELS, MAX_EARLY_CHANNELS, MAX_LABEL};
use anabranch_sctp::{self as sctp, Association, Ppid};

mod delivery;

/// Maximum messages without payload to skip in one call. A peer may have sent a hundred thousand of
/// them: the reader returns for the rest, and its driver counts each time (`connection/work.rs`).
const SKIPPED_PER_LOOK: usize = 16;

/// Maximum refused channels that the peer has not closed.
pub(super) const MAX_REFUSED: usize = 1024;

/// State of a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// The peer uses the stream, and has not sent DATA_CHANNEL_OPEN.
    AwaitOpen,
    /// Open on our side; data may follow our own OPEN at once (RFC 8832 section 6).
    Open,
    /// Our direction is reset, the peer's is not yet.
    Closing,
    /// As `Closing`, but the channel was never reported.
    Refused,
}

#[derive(Debug)]
struct Channel {
    id: ChannelId,
    stage: Stage,
    own: bool,
    /// The peer's OPEN is not acknowledged, because the reset of the previous channel on this
    /// stream is not complete. libdatachannel reuses a stream id without waiting for that, and does
    /// not consider its channel open before it has the acknowledgement.
    is_ack_pending: bool,
    /// A message taken from SCTP before it is read.
    unread: Option<Bytes>,
    /// `Readable` was emitted, and not everything has been read since.
    is_readable_reported: bool,
    /// Nobody reads the channel any more.
    ignored: bool,
    /// What `Association::written` was when `Delivered` was asked for.
    notify_delivered: Option<u32>,
}

/// Result of [`Channels::fill`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FillOutcome {
    /// There is payload for the reader.
    Payload,
    /// There is none, and nothing is left to read.
    Nothing,
    /// There is none, but more may follow the skipped messages.
    Partial,
}

/// Maximum memory that SCTP may hold for written messages, overhead included, before writes have to
/// wait.
#[derive(Debug, Clone, Copy)]
pub(super) struct HeldLimits {
    /// For data.
    pub(super) data: usize,
    /// For data and control frames together.
    pub(super) all: usize,
}

/// State of the association below the channels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Connecting,
    Established,
    Ended,
}

/// The channels of a connection.
pub(super) struct Channels {
    pub(super) sctp: Association,
    stream_ids: StreamIds,
    limits: HeldLimits,
    /// By stream id.
    table: HashMap<u16, Channel>,
    /// Channel ids are never reused, stream ids are: a channel id is a generation above a stream
    /// id.
    generation: u64,
    /// Last messages of closed channels, until they are read.
    final_messages: HashMap<ChannelId, Bytes>,
    /// See [`delivery`].
    awaited: HashMap<u16, ChannelId>,
    /// Channels opened by the peer, and those of them that were refused.
    inbound: usize,
    refused: usize,
    /// The receive window is nearly closed: every channel has to be read, so that none blocks the
    /// others.
    is_window_tight: bool,
    /// The receive window may close: the peer then waits with all of its channels until a reader
    /// has made room.
    allows_zero_window: bool,
    authenticated: bool,
    state: State,
    events: VecDeque<Event>,
}

impl Channels {
    pub(super) fn new(sctp: Association, role: Role, limits: HeldLimits) -> Self {
        Self {
            sctp,
            stream_ids: StreamIds::new(role),
            limits,
            table: HashMap::new(),
            generation: 0,
            final_messages: HashMap::new(),
            awaited: HashMap::new(),
            inbound: 0,
            refused: 0,
            is_window_tight: false,
            allows_zero_window: false,
            authenticated: false,
            state: State::Connecting,
            events: VecDeque::new(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.table.len()
    }

    pub(super) fn is_ended(&self) -> bool {
        self.state == State::Ended
    }

    pub(super) fn authenticated(&mut self) {
        self.authenticated = true;
    }

    pub(super) fn is_authenticated(&self) -> bool {
        self.authenticated
    }

    pub(super) fn next_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    pub(super) fn push_event(&mut self, event: Event) {
        self.events.push_back(event);
    }

    /// Ends the connection; the first reason counts.
    pub(super) fn end(&mut self, cause: EndReason) {
        if std::mem::replace(&mut self.state, State::Ended) != State::Ended {
            self.events.push_back(Event::Ended(cause));
        }
    }

    /// Handles the events of SCTP.
    pub(super) fn handle_events(&mut self) {
        while !self.is_ended()
            && let Some(event) = self.sctp.next_event()
        {
            match event {
                sctp::Event::Connected => self.on_established(),
                sctp::Event::Ended(reason) => self.end(match reason {
                    sctp::EndReason::Closed => EndReason::ClosedByPeer,
                    sctp::EndReason::Aborted => EndReason::Aborted,
                    sctp::EndReason::Violation(violation) => EndReason::Violation(violation),
                    sctp::EndReason::NoProgress => EndReason::NoProgress,
                }),
                sctp::Event::Opened { id } => self.on_stream(id),
                sctp::Event::Readable { id } => self.on_readable(id),
                sctp::Event::Finished { id } => self.on_finished(id),
                sctp::Event::ResetComplete { id } => self.on_reset_complete(id),
                sctp::Event::ResetFailed { id } => self.on_reset_failed(id),
                sctp::Event::Acknowledged { id } => self.on_acknowledged(id),
                sctp::Event::Writable => self.events.push_back(Event::Writable),
            }
        }
    }

    fn on_established(&mut self) {
        self.state = State::Established;
        // May fail: data of the peer may have created the stream.
        self.sctp.open_stream(0);
        self.insert(0, CHANNEL_ZERO, Stage::Open, true);
        self.events.push_back(Event::ChannelZeroOpen);
    }

    fn new_id(&mut self, stream: u16) -> ChannelId {
        self.generation += 1;
        ChannelId::new(self.generation << 16 | u64::from(stream))
    }

    fn insert(&mut self, stream: u16, id: ChannelId, stage: Stage, own: bool) {
        self.table.insert(
            stream,
            Channel {
                id,
                stage,
                own,
                is_ack_pending: false,
                unread: None,
                is_readable_reported: false,
                ignored: false,
                notify_delivered: None,
            },
        );
    }

    fn get(&mut self, id: ChannelId) -> Option<&mut Channel> {
        self.table
            .get_mut(&stream_of(id))
            .filter(|channel| channel.id == id)
    }

    /// The peer uses a stream that did not exist.
    pub(super) fn on_stream(&mut self, stream: u16) {
        if self.table.contains_key(&stream) {
            // Channel 0, whose stream both sides create.
            return;
        }
        let id = self.new_id(stream);
        self.insert(stream, id, Stage::AwaitOpen, false);
        self.inbound += 1;
        let max = if self.authenticated {
            MAX_CHANNELS
        } else {
            MAX_EARLY_CHANNELS
        };
        if self.stream_ids.owns(stream) || self.table.len() > max {
            self.refuse(stream);
        }
    }

    /// Closes a channel that was never reported. SCTP can not keep the peer from using a stream.
    fn refuse(&mut self, stream: u16) {
        tracing::debug!(target: "anabranch::webrtc", stream, "inbound channel refused");
        if let Some(channel) = self.table.get_mut(&stream) {
            let before = std::mem::replace(&mut channel.stage, Stage::Refused);
            self.refused += usize::from(before != Stage::Refused);
        }
        if self.refused > MAX_REFUSED {
            return self.end(EndReason::Limit(LimitExceeded::RefusedChannels));
        }
        self.sctp.reset_stream(stream);
    }

    fn on_readable(&mut self, stream: u16) {
        let is_announced = |channel: &Channel| channel.is_readable_reported;
        if self.table.get(&stream).is_some_and(is_announced) {
            // SCTP reports each message, and one datagram can complete thousands.
            return;
        }
        if self.fill(stream) != FillOutcome::Nothing {
            self.report_readable(stream);
        }
    }

    /// Emits `Readable` for a channel.
    fn report_readable(&mut self, stream: u16) {
        if let Some(channel) = self.table.get_mut(&stream) {
            channel.is_readable_reported = true;
            let channel = channel.id;
            self.events.push_back(Event::Readable { channel });
        }
    }

    /// Keeps unread channels from blocking all others, as the receive window belongs to the
    /// association: once it is nearly closed, every channel is reported readable, and the limits of
    /// the reader apply. That includes a single channel, since the next one could not even be
    /// opened.
    pub(super) fn update_backpressure(&mut self) {
        let tight = !self.allows_zero_window && self.sctp.is_window_tight();
        if tight && !self.is_window_tight {
            for channel in self
                .table
                .values()
                .filter(|channel| channel.is_readable_reported)
            {
                let event = Event::Readable {
                    channel: channel.id,
                };
                self.events.push_back(event);
            }
        }
        self.is_window_tight = tight;
    }

    /// Lets the receive window close instead.
    pub(super) fn allow_shut_window(&mut self) {
        self.allows_zero_window = true;
    }

    pub(super) fn is_window_tight(&self) -> bool {
        self.is_window_tight
    }

    /// Takes messages from SCTP until there is payload for the reader, or enough were skipped.
    fn fill(&mut self, stream: u16) -> FillOutcome {
        for _ in 0..=SKIPPED_PER_LOOK {
            let Some(channel) = self.table.get_mut(&stream) else {
                return FillOutcome::Nothing;
            };
            if channel.unread.is_some() {
                return FillOutcome::Payload;
            }
            if matches!(channel.stage, Stage::Closing | Stage::Refused) {
                return FillOutcome::Nothing;
            }
            let Some(message) = self.sctp.read(stream) else {
                return FillOutcome::Nothing;
            };
            match message.ppid {
                Ppid::Dcep => self.on_dcep(stream, Dcep::parse(&message.bytes)),
                // Data before OPEN is not allowed (RFC 8832 section 6).
                _ if channel.stage == Stage::AwaitOpen => self.refuse(stream),
                Ppid::Binary | Ppid::String if !channel.ignored && !message.bytes.is_empty() => {
                    channel.unread = Some(message.bytes);
                }
                // An empty message, sent as one byte (RFC 8831 section 6.6) or, wrongly but
                // harmlessly, as none; or an unknown PPID.
                _ => {}
            }
        }
        FillOutcome::Partial
    }

    fn on_dcep(&mut self, stream: u16, message: Option<Dcep>) {
        let Some(channel) = self.table.get_mut(&stream) else {
            return;
        };
        if channel.stage != Stage::AwaitOpen {
            // The acknowledgement of our own OPEN, for which nothing waits.
            return;
        }
        // An unordered or partially reliable channel can not carry a byte stream (docs/wire.md
        // section 4).
        let Some(Dcep::Open { label, fit: true }) = message else {
            return self.refuse(stream);
        };
        channel.stage = Stage::Open;
        channel.is_ack_pending = true;
        let channel = channel.id;
        self.send_ack(stream);
        self.events.push_back(Event::Opened { channel, label });
    }

    fn send_ack(&mut self, stream: u16) {
        if let Some(channel) = self.table.get_mut(&stream)
            && channel.is_ack_pending
            && self
                .sctp
                .write(stream, Bytes::from_static(&dcep::ACK), Ppid::Dcep)
        {
            channel.is_ack_pending = false;
        }
    }

    /// The peer has reset its direction, and everything before that was read. SCTP has answered
    /// with our reset.
    fn on_finished(&mut self, stream: u16) {
        self.stream_ids.begin_reset(stream);
        let Some(mut channel) = self.remove(stream) else {
            return;
        };
        let id = channel.id;
        if let Some(unread) = channel.unread.take() {
            self.final_messages.insert(id, unread);
        }
        if self.await_delivery(stream, &channel) {
            return;
        }
        // Channel 0 carried the Noise handshake, which is over: js-libp2p may close it without
        // harm.
        if matches!(channel.stage, Stage::Open | Stage::Closing) && id != CHANNEL_ZERO {
            self.events.push_back(Event::Closed { channel: id });
        }
    }

    fn remove(&mut self, stream: u16) -> Option<Channel> {
        let channel = self.table.remove(&stream)?;
        let (inbound, refused) = (!channel.own, channel.stage == Stage::Refused);
        debug_assert!(
            self.inbound >= usize::from(inbound),
            "an inbound channel uncounted"
        );
        debug_assert!(
            self.refused >= usize::from(refused),
            "a refused channel uncounted"
        );
        self.inbound = self.inbound.saturating_sub(usize::from(inbound));
        self.refused = self.refused.saturating_sub(usize::from(refused));
        Some(channel)
    }

    fn on_reset_complete(&mut self, stream: u16) {
        let used = self.table.contains_key(&stream);
        if self.stream_ids.complete_reset(stream, used) {
            // The peer may have opened the next channel on this stream, which was not writable.
            self.send_ack(stream);
            // Or somebody waits for the stream id.
            self.events.push_back(Event::Writable);
        }
    }

    /// The peer denied the reset: the stream id is lost, and a channel on it unusable.
    fn on_reset_failed(&mut self, stream: u16) {
        self.stream_ids.begin_reset(stream);
        // Nobody reads what arrives on it.
        self.sctp.reset_stream(stream);
        if let Some(channel) = self.remove(stream)
            && matches!(channel.stage, Stage::Open | Stage::Closing)
        {
            self.events.push_back(Event::Closed {
                channel: channel.id,
            });
        }
    }

    pub(super) fn open(&mut self, label: &str) -> Result<ChannelId, OpenError> {
        if self.state != State::Established {
            return Err(OpenError::Closed);
        }
        if label.len() > MAX_LABEL {
            return Err(OpenError::LabelTooLong {
                len: label.len(),
                max: MAX_LABEL,
            });
        }
        if self.table.len() >= MAX_CHANNELS {
            return Err(OpenError::Exhausted);
        }
        // A stream id fails if the peer uses it although it is ours: it was refused, and closes.
        for _ in 0..=MAX_REFUSED {
            let stream = self.stream_ids.take(self.sctp.max_streams())?;
            if self.table.contains_key(&stream) || !self.sctp.open_stream(stream) {
                continue;
            }
            let id = self.new_id(stream);
            self.insert(stream, id, Stage::Open, true);
            let open = dcep::encode_open(label);
            if !self.sctp.write(stream, open.into(), Ppid::Dcep) {
                self.remove(stream);
                return Err(OpenError::Closed);
            }
            return Ok(id);
        }
        Err(OpenError::Exhausted)
    }

    pub(super) fn write(&mut self, id: ChannelId, pieces: &[&[u8]], class: Class) -> Written {
        let length = pieces.iter().map(|piece| piece.len()).sum::<usize>();
        let ended = self.is_ended();
        let Some(channel) = self.get(id) else {
            return Written::Closed;
        };
        if ended || channel.stage != Stage::Open {
            return Written::Closed;
        }
        if length == 0 {
            return Written::Taken;
        }
        let stream = stream_of(id);
        // This channel only: others are writable.
        if channel.is_ack_pending || self.stream_ids.is_resetting(stream) {
            return Written::NotOpen;
        }
        let held = self.sctp.held();
        let max = match class {
            Class::Data => self.limits.data,
            Class::Control => self.limits.all,
        };
        if held > 0 && held.saturating_add(length) > max {
            return Written::Busy;
        }
        if class == Class::Data && !self.sctp.has_share(stream, length) {
            return Written::NotOpen;
        }
        // SCTP keeps the message until it is acknowledged: this is the only copy.
        let message = Bytes::from(pieces.concat());
        if !self.sctp.write(stream, message, Ppid::Binary) {
            // The peer has reset its direction, and what precedes the reset is not read yet.
            return Written::Closed;
        }
        Written::Taken
    }

    pub(super) fn read(&mut self, id: ChannelId) -> Option<Bytes> {
        if let Some(final_message) = self.final_messages.remove(&id) {
            return Some(final_message);
        }
        self.get(id)?;
        let filled = self.fill(stream_of(id));
        let channel = self.get(id)?;
        let message = channel.unread.take();
        match filled {
            FillOutcome::Payload => {}
            FillOutcome::Nothing => {
                channel.is_readable_reported = false;
                // That may have been everything before the peer's reset.
                self.handle_events();
            }
            FillOutcome::Partial => self.report_readable(stream_of(id)),
        }
        message
    }

    pub(super) fn unacknowledged(&self) -> usize {
        self.sctp.total_unacknowledged()
    }

    pub(super) fn close(&mut self, id: ChannelId) {
        self.final_messages.remove(&id);
        self.forget_delivery(id);
        let Some(channel) = self.get(id) else {
            return;
        };
        if channel.stage != Stage::Open {
            return;
        }
        channel.stage = Stage::Closing;
        channel.unread = None;
        channel.notify_delivered = None;
        self.sctp.reset_stream(stream_of(id));
        self.handle_events();
    }

    pub(super) fn ignore(&mut self, id: ChannelId) {
        self.final_messages.remove(&id);
        if let Some(channel) = self.get(id) {
            channel.ignored = true;
            channel.unread = None;
            channel.is_readable_reported = false;
            // A reader that continues because of the event reads nothing.
            self.on_readable(stream_of(id));
            self.handle_events();
        }
    }

    pub(super) fn is_own(&self, id: ChannelId) -> bool {
        self.table
            .get(&stream_of(id))
            .is_some_and(|channel| channel.id == id && channel.own)
    }

    /// Whether nothing is left of any channel but channel 0. Checked at the end of tests.
    #[cfg(feature = "testing")]
    pub(super) fn is_idle(&self) -> bool {
        self.table.keys().all(|stream| *stream == 0)
            && self.inbound == 0
            && self.refused == 0
            && self.stream_ids.is_idle()
            && self.final_messages.is_empty()
            && self.awaited.is_empty()
            && self.sctp.held() == 0
    }
}

/// The stream id of a channel.
fn stream_of(id: ChannelId) -> u16 {
    (id.get() & 0xffff) as u16
}
