//! SCTP (RFC 9260) over DTLS (RFC 8261), as much of it as data channels need (RFC 8831 section 5): one association, reliable
//! messages on streams, resets of streams (RFC 6525). Without sockets, clocks and tasks of its own.
//!
//! ```text
//! handle_packet ─► Receiver: numbers, gaps, messages ─► streams ─► read
//!       │ SACK          │ what to acknowledge
//!       ▼               ▼
//!    Sender: messages, what is in flight, loss ─► Packets ─► poll_transmit
//!       ▲               └ Congestion
//!     write
//! ```
//!
//! Every event costs the same, however much is in flight, however many streams there are. What a peer can make
//! it hold is bounded by the receive buffer, in which tiny messages count with their cost.

use std::collections::VecDeque;
use std::time::Instant;

use bytes::{Bytes, BytesMut};

mod congestion;
mod handshake;
mod packet;
mod receiver;
mod reset;
mod sender;
#[cfg(test)]
mod tests;

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use packet::put_checksum;
pub(crate) use packet::{COMMON_HEADER, DATA_HEADER};

use handshake::Init;
use packet::{Chunk, DataHeader, Fields, Header, Packets, Sack, kind, put_parameter};
use receiver::Receiver;
use reset::{Outcome, Resets};
use sender::{RTO_INITIAL, RTO_MAX, Sender};

/// WebRTC's port (RFC 8831 section 6.2 leaves it open, and all stacks use this one).
const PORT: u16 = 5000;

/// Answers that may wait to be sent: what a peer asks for beyond that, it may ask for again.
const MAX_ANSWERS: usize = 64;

/// Bytes of a cookie. It only says that the peer hears us: DTLS has shown who it is.
const COOKIE: usize = 16;

/// Times that the end of an association is said before it is over in any case.
const SHUTDOWN_ATTEMPTS: u32 = 6;

/// Causes of an ABORT (RFC 9260 sections 3.3.10.12 and 3.3.10.13).
const USER_INITIATED_ABORT: u16 = 12;
const PROTOCOL_VIOLATION: u16 = 13;

/// What a message is (RFC 8831 section 8).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// Of the data channel establishment protocol.
    Dcep,
    String,
    Binary,
    StringEmpty,
    BinaryEmpty,
    Other(u32),
}

impl From<u32> for Protocol {
    fn from(number: u32) -> Self {
        match number {
            50 => Self::Dcep,
            51 => Self::String,
            53 => Self::Binary,
            56 => Self::StringEmpty,
            57 => Self::BinaryEmpty,
            other => Self::Other(other),
        }
    }
}

impl From<Protocol> for u32 {
    fn from(protocol: Protocol) -> Self {
        match protocol {
            Protocol::Dcep => 50,
            Protocol::String => 51,
            Protocol::Binary => 53,
            Protocol::StringEmpty => 56,
            Protocol::BinaryEmpty => 57,
            Protocol::Other(other) => other,
        }
    }
}

/// A whole message.
#[derive(Debug)]
pub(crate) struct Message {
    pub(crate) protocol: Protocol,
    pub(crate) bytes: Bytes,
}

/// What has happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Event {
    /// Messages can go out.
    Connected,
    /// The association is over.
    Lost(Lost),
    /// The peer uses a stream that there was not.
    Opened { id: u16 },
    /// A message can be read, one for each of these.
    Readable { id: u16 },
    /// The peer has reset the stream, and all that came before that was read. Our own direction is being reset
    /// now, if it was not before; `ResetComplete` follows, once for each of these.
    Finished { id: u16 },
    /// Our direction was reset, and the number can be used again.
    ResetComplete { id: u16 },
    /// The peer refuses to reset our direction.
    ResetFailed { id: u16 },
}

/// Why an association is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lost {
    /// In order, or by an abort that the peer's user wanted.
    Closed,
    /// The peer found something wrong.
    Aborted,
    /// The peer broke a rule.
    Violation(Violation),
}

/// The rule that a peer has broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Violation(pub(crate) &'static str);

/// Sizes of an association.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Config {
    /// Longest packet that fits a datagram; a multiple of four.
    pub(crate) max_packet: usize,
    /// Bytes that may be received and not read.
    pub(crate) receive_buffer: usize,
    /// Longest message that is accepted.
    pub(crate) max_message: usize,
}

/// Where an association is in its life (RFC 9260 section 4).
///
/// ```text
/// Closed ─► (start) InitSent ─► (INIT-ACK) CookieSent ─► (COOKIE-ACK) ┐
///    └────────────────────────────────────────────► (COOKIE-ECHO) Established
/// Established ─► (shutdown) ShuttingDown: all acknowledged, SHUTDOWN ─► (SHUTDOWN-ACK) Over
///        └─────► (SHUTDOWN) Answering: all acknowledged, SHUTDOWN-ACK ─► (SHUTDOWN-COMPLETE) Over
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Closed,
    InitSent,
    CookieSent,
    Established,
    ShuttingDown,
    Answering,
    Over,
}

/// A chunk that is said again until it is answered.
#[derive(Debug)]
struct Repeated {
    kind: u8,
    value: Vec<u8>,
    at: Option<Instant>,
    sent: u32,
}

/// An association.
#[derive(Debug)]
pub(crate) struct Association {
    config: Config,
    state: State,
    own: Init,
    peer: Option<Init>,
    peer_port: u16,
    /// What an INIT of the peer is answered with, and its COOKIE-ECHO has to bring back.
    cookie: [u8; COOKIE],
    /// The handshake, or the end.
    repeated: Option<Repeated>,
    /// Chunks that go out next, each once.
    answers: VecDeque<(u8, Vec<u8>)>,
    receiver: Receiver,
    sender: Sender,
    resets: Resets,
    events: VecDeque<Event>,
    /// Memory for packets.
    buffer: BytesMut,
}

impl Association {
    pub(crate) fn new(config: Config) -> Self {
        let own = Init {
            tag: rand::random_range(1..=u32::MAX),
            window: u32::try_from(config.receive_buffer).unwrap_or(u32::MAX),
            first_tsn: rand::random(),
            zero_checksum: true,
        };
        Self {
            config,
            state: State::Closed,
            own,
            peer: None,
            peer_port: PORT,
            cookie: rand::random(),
            repeated: None,
            answers: VecDeque::new(),
            receiver: Receiver::new(0, config.receive_buffer, config.max_message),
            sender: Sender::new(own.first_tsn, config.max_packet),
            resets: Resets::new(0, 0),
            events: VecDeque::new(),
            buffer: BytesMut::new(),
        }
    }

    /// Sets the association up; otherwise the peer has to.
    pub(crate) fn start(&mut self) {
        if self.state == State::Closed {
            self.state = State::InitSent;
            self.say(kind::INIT, self.own.encode(None));
        }
    }

    /// Whether DATA goes to and fro.
    fn is_up(&self) -> bool {
        matches!(
            self.state,
            State::Established | State::ShuttingDown | State::Answering
        )
    }

    fn say(&mut self, kind: u8, value: Vec<u8>) {
        self.repeated = Some(Repeated {
            kind,
            value,
            at: None,
            sent: 0,
        });
    }

    fn answer(&mut self, kind: u8, value: Vec<u8>) {
        if self.answers.len() < MAX_ANSWERS {
            self.answers.push_back((kind, value));
        }
    }

    fn lose(&mut self, lost: Lost) {
        if self.state != State::Over {
            self.state = State::Over;
            self.repeated = None;
            self.events.push_back(Event::Lost(lost));
        }
    }

    /// What has happened since this was called last.
    pub(crate) fn next_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }
}

/// Streams.
impl Association {
    /// Makes a stream; `false` if the number is in use, in either direction.
    pub(crate) fn open_stream(&mut self, id: u16) -> bool {
        // A peer may be first, and have used it.
        if !self.sender.open(id) {
            return false;
        }
        self.receiver.open(id);
        true
    }

    /// Queues a message, which must not be empty; `false` if the stream can not be written to.
    pub(crate) fn write(&mut self, id: u16, message: Bytes, protocol: Protocol) -> bool {
        if !self.receiver.is_open(id) || self.state == State::Over {
            return false;
        }
        // A stream that the peer has opened.
        self.sender.open(id);
        self.sender.write(id, protocol.into(), message)
    }

    /// The next whole message of a stream.
    pub(crate) fn read(&mut self, id: u16) -> Option<Message> {
        let message = self.receiver.read(id, &mut self.events);
        self.answer_resets();
        message
    }

    /// Bytes of a stream that the peer has not acknowledged.
    pub(crate) fn unacknowledged(&self, id: u16) -> usize {
        self.sender.unacknowledged(id)
    }

    /// Resets our direction of a stream once what was written to it is acknowledged. Nothing can be read from it
    /// any more.
    pub(crate) fn reset_stream(&mut self, id: u16) {
        self.sender.reset(id);
        self.receiver.ignore(id, &mut self.events);
        self.answer_resets();
    }

    /// Whether the peer believes in a window much smaller than it is.
    pub(crate) fn is_window_update_due(&self) -> bool {
        self.receiver.is_window_update_due()
    }

    /// Whether the peer was told of less than a quarter of the window.
    pub(crate) fn is_window_tight(&self) -> bool {
        self.receiver.is_window_tight()
    }

    /// Whether there is something to send that came up between two packets of the peer.
    pub(crate) fn wants_transmit(&self) -> bool {
        self.is_window_update_due() || (self.sender.has_resets() && self.resets.is_free())
    }

    fn answer_resets(&mut self) {
        for id in self.receiver.take_unanswered() {
            self.sender.owe_reset(id);
        }
    }

    fn on_reset_outcome(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::PeerReset(streams) if streams.is_empty() => {
                for id in self.receiver.stream_ids().collect::<Vec<_>>() {
                    self.receiver.reset(id, &mut self.events);
                }
            }
            Outcome::PeerReset(streams) => {
                for id in streams {
                    self.receiver.reset(id, &mut self.events);
                }
            }
            Outcome::Done(streams) => {
                for id in streams {
                    match self.sender.reset_done(id) {
                        Some(0) => self.receiver.answered(id),
                        owed => {
                            for _ in 0..owed.unwrap_or(0) {
                                self.events.push_back(Event::ResetComplete { id });
                            }
                        }
                    }
                }
            }
            Outcome::Failed(streams) => {
                for id in streams {
                    self.sender.reset_failed(id);
                    self.events.push_back(Event::ResetFailed { id });
                }
            }
        }
        self.answer_resets();
    }
}

/// Packets in.
impl Association {
    /// Takes in a packet.
    pub(crate) fn handle_packet(&mut self, now: Instant, packet: &[u8]) {
        let Some((header, chunks)) = packet::parse(packet) else {
            return;
        };
        if self.state == State::Over || header.destination != PORT {
            return;
        }
        let mut has_data = false;
        for chunk in chunks {
            // The tag shows that the peer knows of this association (RFC 9260 section 8.5).
            if !self.is_of_this(header, chunk) {
                return;
            }
            has_data |= chunk.kind == kind::DATA;
            match self.handle_chunk(now, header, chunk) {
                Ok(true) => {}
                Ok(false) => break,
                Err(violation) => {
                    self.say_abort(PROTOCOL_VIOLATION);
                    return self.lose(Lost::Violation(violation));
                }
            }
        }
        if has_data && self.peer.is_some() {
            self.receiver.note_packet(now);
            self.perform_deferred_resets();
        }
        self.answer_resets();
    }

    fn is_of_this(&self, header: Header, chunk: Chunk<'_>) -> bool {
        match chunk.kind {
            kind::INIT => header.tag == 0,
            // It may bring our own tag back, where the peer has none (RFC 9260 section 8.5.1).
            kind::ABORT | kind::SHUTDOWN_COMPLETE if chunk.flags & 1 != 0 => {
                self.peer.is_some_and(|peer| peer.tag == header.tag)
            }
            _ => header.tag == self.own.tag,
        }
    }

    /// `false` ends the packet.
    fn handle_chunk(
        &mut self,
        now: Instant,
        header: Header,
        chunk: Chunk<'_>,
    ) -> Result<bool, Violation> {
        // A peer that sends these has our cookie, though its COOKIE-ACK was lost or is late.
        if self.state == State::CookieSent && matches!(chunk.kind, kind::DATA | kind::SACK) {
            self.established();
        }
        let is_up = self.is_up();
        match chunk.kind {
            kind::DATA if is_up => {
                // Too short to be one.
                let Some((header, payload)) = DataHeader::parse(chunk) else {
                    return Err(Violation("DATA without a header"));
                };
                self.receiver
                    .handle_data(header, payload, &mut self.events)?;
            }
            kind::SACK if is_up => {
                if let Some(sack) = Sack::parse(chunk.value) {
                    self.sender.handle_sack(now, sack)?;
                }
            }
            kind::INIT => self.on_init(header, chunk.value),
            kind::INIT_ACK => self.on_init_ack(header, chunk.value),
            kind::COOKIE_ECHO => self.on_cookie_echo(chunk.value),
            kind::COOKIE_ACK if self.state == State::CookieSent => self.established(),
            kind::HEARTBEAT => self.answer(kind::HEARTBEAT_ACK, chunk.value.to_vec()),
            kind::RE_CONFIG if is_up => self.on_re_config(chunk.value),
            kind::ABORT => {
                let cause = Fields(chunk.value).u16();
                self.lose(if cause.is_none_or(|cause| cause == USER_INITIATED_ABORT) {
                    Lost::Closed
                } else {
                    Lost::Aborted
                });
                return Ok(false);
            }
            kind::SHUTDOWN if is_up => self.state = State::Answering,
            kind::SHUTDOWN_ACK if matches!(self.state, State::ShuttingDown | State::Answering) => {
                self.answer(kind::SHUTDOWN_COMPLETE, Vec::new());
                self.lose(Lost::Closed);
            }
            kind::SHUTDOWN_COMPLETE if self.state == State::Answering => self.lose(Lost::Closed),
            // What is not known says by its first bits whether to go on (RFC 9260 section 3.2). What is known and
            // comes at the wrong time is none of that.
            unknown if unknown >= 0x40 => return Ok(unknown >= 0x80),
            _ => {}
        }
        Ok(true)
    }

    fn on_init(&mut self, header: Header, value: &[u8]) {
        // Both may begin at once (RFC 9260 section 5.2.1). Later ones are old: a peer that begins anew does so with
        // DTLS.
        if !matches!(
            self.state,
            State::Closed | State::InitSent | State::CookieSent
        ) {
            return;
        }
        if let Some((peer, _)) = Init::parse(value) {
            self.meet(header, peer);
            let answer = self.own.encode(Some(&self.cookie));
            self.answer(kind::INIT_ACK, answer);
        }
    }

    fn on_init_ack(&mut self, header: Header, value: &[u8]) {
        if self.state != State::InitSent {
            return;
        }
        if let Some((peer, Some(cookie))) = Init::parse(value) {
            self.meet(header, peer);
            self.state = State::CookieSent;
            self.say(kind::COOKIE_ECHO, cookie.to_vec());
        }
    }

    /// Takes note of who the peer is.
    fn meet(&mut self, header: Header, peer: Init) {
        if self.peer == Some(peer) {
            return;
        }
        self.peer = Some(peer);
        self.peer_port = header.source;
        self.sender.set_peer_window(peer.window);
        let Config {
            receive_buffer,
            max_message,
            ..
        } = self.config;
        self.receiver = Receiver::new(peer.first_tsn, receive_buffer, max_message);
        self.resets = Resets::new(self.own.first_tsn, peer.first_tsn);
    }

    fn on_cookie_echo(&mut self, value: &[u8]) {
        if value != self.cookie || self.peer.is_none() {
            return;
        }
        // The first answer may have been lost.
        self.answer(kind::COOKIE_ACK, Vec::new());
        if matches!(
            self.state,
            State::Closed | State::InitSent | State::CookieSent
        ) {
            self.established();
        }
    }

    fn established(&mut self) {
        self.state = State::Established;
        self.repeated = None;
        self.events.push_back(Event::Connected);
    }

    fn on_re_config(&mut self, value: &[u8]) {
        let mut answer = Vec::new();
        let receiver = &self.receiver;
        let outcomes = self
            .resets
            .handle(value, |tsn| receiver.has_reached(tsn), &mut answer);
        if !answer.is_empty() {
            self.answer(kind::RE_CONFIG, answer);
        }
        for outcome in outcomes {
            self.on_reset_outcome(outcome);
        }
    }

    fn perform_deferred_resets(&mut self) {
        let mut answer = Vec::new();
        let receiver = &self.receiver;
        let performed = self
            .resets
            .perform_deferred(|tsn| receiver.has_reached(tsn), &mut answer);
        if let Some(streams) = performed {
            self.answer(kind::RE_CONFIG, answer);
            self.on_reset_outcome(Outcome::PeerReset(streams));
        }
    }
}

/// Packets out, and time.
impl Association {
    /// The next packets to send: all that the windows allow.
    pub(crate) fn poll_transmit(&mut self, now: Instant) -> Option<Vec<Bytes>> {
        let ports = [PORT, self.peer_port];
        let tag = self.peer.map_or(0, |peer| peer.tag);
        let zero_checksum = self.peer.is_some_and(|peer| peer.zero_checksum);
        let buffer = std::mem::take(&mut self.buffer);
        let mut packets = Packets::new(self.config.max_packet, (ports, tag), zero_checksum, buffer);
        for (kind, value) in self.answers.drain(..) {
            packets.put(kind, 0, &value);
            if kind == kind::INIT_ACK {
                // Alone in its packet (RFC 9260 section 3.3.3).
                packets.finish_packet();
            }
        }
        if self.state != State::Over {
            self.fill(now, &mut packets);
        }
        let (whole, buffer) = packets.finish();
        self.buffer = buffer;
        (!whole.is_empty()).then_some(whole)
    }

    fn fill(&mut self, now: Instant, packets: &mut Packets) {
        self.begin_end();
        if let Some(repeated) = &mut self.repeated
            && repeated.at.is_none_or(|at| at <= now)
        {
            let timeout = (RTO_INITIAL * (1 << repeated.sent.min(3))).min(RTO_MAX);
            repeated.at = Some(now + timeout);
            repeated.sent += 1;
            let is_end = matches!(repeated.kind, kind::SHUTDOWN | kind::SHUTDOWN_ACK);
            if is_end && repeated.sent > SHUTDOWN_ATTEMPTS {
                return self.lose(Lost::Closed);
            }
            let Repeated { kind, value, .. } = repeated;
            if *kind == kind::SHUTDOWN {
                value.clear();
                value.extend(self.receiver.cumulative_tsn().to_be_bytes());
            }
            if *kind == kind::INIT {
                // Its tag is 0, whatever INIT of the peer's has come.
                let header = ([PORT, self.peer_port], 0);
                let mut alone =
                    Packets::new(self.config.max_packet, header, false, BytesMut::new());
                alone.put(*kind, 0, value);
                packets.append(alone);
            } else {
                packets.put(*kind, 0, value);
            }
        }
        if !self.is_up() {
            return;
        }
        let carries_data = self.sender.wants_to_send();
        if self.receiver.is_sack_due(now) || (carries_data && self.receiver.has_news()) {
            let (cumulative_tsn, window, gaps) = self.receiver.sack();
            packets.put_sack(cumulative_tsn, window, gaps);
        }
        if self.sender.has_resets() && self.resets.is_free() {
            let streams = self.sender.take_resets(reset::MAX_STREAMS);
            let last_tsn = self.sender.last_tsn_of_acknowledged();
            self.resets.request(streams, last_tsn);
        }
        if let Some(value) = self.resets.poll(now, self.sender.timeout()) {
            packets.put(kind::RE_CONFIG, 0, &value);
        }
        self.sender.fill(now, packets);
    }

    /// Ends the association in order (RFC 9260 section 9.2).
    pub(crate) fn shutdown(&mut self) {
        match self.state {
            State::Established => self.state = State::ShuttingDown,
            State::Closed | State::InitSent | State::CookieSent => self.lose(Lost::Closed),
            State::ShuttingDown | State::Answering | State::Over => {}
        }
    }

    /// Ends the association at once. The peer is told with the next `poll_transmit`, the last that has anything.
    pub(crate) fn abort(&mut self) {
        if self.state != State::Over {
            self.say_abort(USER_INITIATED_ABORT);
            self.state = State::Over;
            self.repeated = None;
        }
    }

    fn say_abort(&mut self, cause: u16) {
        self.answers.clear();
        let mut value = Vec::new();
        put_parameter(&mut value, cause, &[]);
        self.answer(kind::ABORT, value);
    }

    /// Says that it is over as soon as everything is acknowledged.
    fn begin_end(&mut self) {
        let kind = match self.state {
            State::ShuttingDown => kind::SHUTDOWN,
            State::Answering => kind::SHUTDOWN_ACK,
            _ => return,
        };
        let is_said = self
            .repeated
            .as_ref()
            .is_some_and(|repeated| repeated.kind == kind);
        if !is_said && self.sender.is_idle() {
            self.say(kind, Vec::new());
        }
    }

    pub(crate) fn next_timeout(&self) -> Option<Instant> {
        if self.state == State::Over {
            return None;
        }
        [
            self.repeated.as_ref().and_then(|repeated| repeated.at),
            self.receiver.sack_at(),
            self.sender.next_timeout(),
            self.resets.next_timeout(),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Takes note of the time. What is due goes out with the next `poll_transmit`.
    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        if self.state != State::Over {
            self.sender.handle_timeout(now);
        }
    }
}

/// For tests and the sizes of frames.
impl Association {
    /// Bytes of a message in a packet that carries nothing else.
    pub(crate) fn packet_payload(&self) -> usize {
        self.config
            .max_packet
            .saturating_sub(COMMON_HEADER + DATA_HEADER)
    }
}
