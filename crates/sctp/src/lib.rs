#![doc = include_str!("../README.md")]
//!
//! ## Inside
//!
//! ```text
//! handle_packet ─► Receiver: numbers, gaps, messages ─► streams ─► read
//!       │ SACK          │ what to acknowledge
//!       ▼               ▼
//!    Sender: messages, what is in flight, loss ─► Packets ─► poll_transmit
//!       ▲               └ Congestion
//!     write
//! ```

#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};

mod congestion;
#[cfg(test)]
mod differential;
mod entropy;
mod handshake;
mod heartbeat;
mod inbound;
mod outbound;
mod packet;
mod receiver;
mod reset;
mod sender;
mod tally;
#[cfg(test)]
mod tests;

pub use heartbeat::Nonce;
pub use packet::put_checksum;

use handshake::Init;
use packet::{COMMON_HEADER, DATA_HEADER, kind};
use receiver::Receiver;
use reset::{Outcome, Resets};
use sender::Sender;

/// WebRTC's port (RFC 8831 section 6.2 leaves it open, and all stacks use this one).
const PORT: u16 = 5000;

/// Answers that may wait to be sent: what a peer asks for beyond that, it may ask for again.
const MAX_ANSWERS: usize = 64;

/// Bytes of a cookie. It only says that the peer hears us: DTLS has shown who it is.
const COOKIE: usize = 16;

/// Times that the end of an association is said before it is over in any case.
const SHUTDOWN_ATTEMPTS: u32 = 6;

/// Causes of an ABORT or ERROR (RFC 9260 section 3.3.10).
mod cause {
    pub(super) const INVALID_STREAM: u16 = 1;
    pub(super) const UNRECOGNIZED_CHUNK: u16 = 6;
    pub(super) const NO_USER_DATA: u16 = 9;
    pub(super) const USER_INITIATED_ABORT: u16 = 12;
    pub(super) const PROTOCOL_VIOLATION: u16 = 13;
}

/// What a message is: its payload protocol identifier (PPID, RFC 8831 section 8).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// A message of the data channel establishment protocol (RFC 8832), 50.
    Dcep,
    /// Text, 51.
    String,
    /// Bytes, 53.
    Binary,
    /// Text of no length, 56: SCTP carries no empty message, so one byte is sent that means
    /// nothing.
    StringEmpty,
    /// The same for bytes, 57.
    BinaryEmpty,
    /// Any other number.
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
pub struct Message {
    /// The PPID of its first chunk.
    pub protocol: Protocol,
    /// Its user data; a slice of the packet where it came in one chunk.
    pub bytes: Bytes,
}

/// What has happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// Messages can go out.
    Connected,
    /// The association is over.
    Ended(EndReason),
    /// The peer uses a stream that there was not.
    Opened {
        /// The stream.
        id: u16,
    },
    /// A message can be read, one for each of these.
    Readable {
        /// The stream.
        id: u16,
    },
    /// The peer has reset the stream, and all that came before that was read. Our own direction is being reset
    /// now, if it was not before; `ResetComplete` follows, once for each of these.
    Finished {
        /// The stream.
        id: u16,
    },
    /// Our direction was reset, and the number can be used again.
    ResetComplete {
        /// The stream.
        id: u16,
    },
    /// The peer refuses to reset our direction.
    ResetFailed {
        /// The stream.
        id: u16,
    },
    /// Everything that was written to the stream has been acknowledged, or dropped.
    Acknowledged {
        /// The stream.
        id: u16,
    },
    /// What holds writers back has become less.
    Room,
}

/// Why an association is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndReason {
    /// In order, or by an abort that the peer's user wanted.
    Closed,
    /// The peer found something wrong.
    Aborted,
    /// The peer broke a rule.
    Violation(Violation),
    /// The peer acknowledges nothing, although its window is open.
    NoProgress,
}

/// The rule that a peer has broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Violation(pub(crate) &'static str);

/// What the peer has sent.
impl std::fmt::Display for Violation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0)
    }
}

/// Sizes of an association.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Config {
    /// Longest packet that fits a datagram; a multiple of four.
    pub max_packet: usize,
    /// Bytes that may be received and not read.
    pub receive_buffer: usize,
    /// Longest message that is accepted.
    pub max_message: usize,
    /// How long the peer may acknowledge nothing while its window is open. RFC 9260 section 8.1 counts ten timeouts
    /// instead, 300 s with those of its own.
    pub progress_timeout: Duration,
}

impl Default for Config {
    /// Packets of 1 200 bytes, 1 MiB unread, messages of 256 KiB (what Chromium accepts), 30 s
    /// without progress.
    fn default() -> Self {
        Self {
            max_packet: 1_200,
            receive_buffer: 1 << 20,
            max_message: 256 * 1024,
            progress_timeout: Duration::from_secs(30),
        }
    }
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
pub struct Association {
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
    /// What the last HEARTBEAT-ACK brought back.
    heartbeat_ack: Option<Nonce>,
    receiver: Receiver,
    sender: Sender,
    resets: Resets,
    events: VecDeque<Event>,
    /// Memory for packets.
    buffer: BytesMut,
}

impl Association {
    /// An association that does nothing until [`Association::start`], or until the peer starts it.
    pub fn new(config: Config) -> Self {
        let own = Init {
            tag: rand::random_range(1..=u32::MAX),
            window: u32::try_from(config.receive_buffer).unwrap_or(u32::MAX),
            first_tsn: rand::random(),
            inbound_streams: handshake::STREAMS,
            zero_checksum: true,
            forward_tsn: true,
            prunes: false,
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
            heartbeat_ack: None,
            receiver: Receiver::new(0, config.receive_buffer, config.max_message),
            sender: Sender::new(own.first_tsn, config.max_packet),
            resets: Resets::new(0, 0),
            events: VecDeque::new(),
            buffer: BytesMut::new(),
        }
    }

    /// Sets the association up; otherwise the peer has to.
    pub fn start(&mut self) {
        if self.state == State::Closed {
            self.state = State::InitSent;
            self.say(kind::INIT, self.own.encode(None));
        }
    }

    /// Whether DATA goes to and fro.
    pub fn is_up(&self) -> bool {
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

    fn end(&mut self, reason: EndReason) {
        if self.state != State::Over {
            self.state = State::Over;
            self.repeated = None;
            self.events.push_back(Event::Ended(reason));
        }
    }

    /// What has happened since this was called last.
    pub fn next_event(&mut self) -> Option<Event> {
        let event = self.events.pop_front()?;
        match event {
            // Only now: until its end is known, nothing of the next stream on its number can be read.
            Event::Finished { id } => {
                self.receiver.retire(id, &mut self.events);
                self.answer_resets();
            }
            Event::Room => self.sender.room_taken(),
            _ => {}
        }
        Some(event)
    }
}

/// Streams.
impl Association {
    /// Makes a stream; `false` if the number is in use, in either direction, or beyond what the peer takes.
    pub fn open_stream(&mut self, id: u16) -> bool {
        if !self.is_taken_by_peer(id) {
            return false;
        }
        // A peer may be first, and have used it.
        if !self.sender.open(id) {
            return false;
        }
        self.receiver.open(id);
        true
    }

    /// Queues a message, which must not be empty; `false` if the stream can not be written to.
    pub fn write(&mut self, id: u16, message: Bytes, protocol: Protocol) -> bool {
        if !self.receiver.is_open(id) || self.state == State::Over || !self.is_taken_by_peer(id) {
            return false;
        }
        // A stream that the peer has opened.
        self.sender.open(id);
        self.sender.write(id, protocol.into(), message)
    }

    /// Whether the peer takes this number (MIS, RFC 9260 section 3.3.2), as far as it is known.
    fn is_taken_by_peer(&self, id: u16) -> bool {
        self.peer.is_none_or(|peer| id < peer.inbound_streams)
    }

    /// The next whole message of a stream.
    pub fn read(&mut self, id: u16) -> Option<Message> {
        let message = self.receiver.read(id, &mut self.events);
        self.answer_resets();
        message
    }

    /// Bytes of a stream that the peer has not acknowledged.
    pub fn unacknowledged(&self, id: u16) -> usize {
        self.sender.unacknowledged(id)
    }

    /// Bytes of all streams that the peer has not acknowledged.
    pub fn all_unacknowledged(&self) -> usize {
        self.sender.totals().0
    }

    /// Memory held for what was written, entries included, until SCTP needs it no more.
    pub fn held(&self) -> usize {
        self.sender.totals().1
    }

    /// Whether a message fits the part of the peer's window that its stream may fill; if not, [`Event::Room`]
    /// follows.
    pub fn has_share(&mut self, id: u16, length: usize) -> bool {
        self.sender.has_share(id, length)
    }

    /// Streams that the peer takes, once it is known.
    pub fn max_streams(&self) -> u16 {
        self.peer.map_or(0, |peer| peer.inbound_streams)
    }

    /// Resets our direction of a stream once what was written to it is acknowledged. Nothing can be read from it
    /// any more.
    pub fn reset_stream(&mut self, id: u16) {
        self.sender.reset(id);
        self.receiver.ignore(id, &mut self.events);
        self.answer_resets();
    }

    /// Whether the peer believes in a window much smaller than it is.
    pub fn is_window_update_due(&self) -> bool {
        self.receiver.is_window_update_due()
    }

    /// Whether the peer was told of less than a quarter of the window.
    pub fn is_window_tight(&self) -> bool {
        self.receiver.is_window_tight()
    }

    /// Whether there is something to send that came up between two packets of the peer.
    pub fn wants_transmit(&self) -> bool {
        self.is_window_update_due() || (self.sender.has_resets() && self.resets.is_free())
    }

    fn answer_resets(&mut self) {
        for id in self.receiver.take_unanswered() {
            self.sender.owe_reset(id);
        }
    }

    fn on_reset_outcome(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::PeerReset(streams) => {
                for id in streams {
                    self.sender.discard_unbegun(id, &mut self.events);
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

/// Makes the choices of associations on this thread follow from a seed, for simulations.
#[cfg(feature = "testing")]
pub fn fix_entropy(seed: u64) {
    entropy::fix(seed);
}

/// The TSNs of the DATA chunks in a packet, for programs that look at packets on their way.
pub fn data_tsns(packet: &[u8]) -> Vec<u32> {
    let chunks = packet::parse(packet)
        .into_iter()
        .flat_map(|(_, chunks)| chunks);
    let data = chunks.filter(|chunk| chunk.kind == kind::DATA);
    data.filter_map(|chunk| Some(packet::DataHeader::parse(chunk)?.0.tsn))
        .collect()
}

/// Sizes.
impl Association {
    /// Announces how many streams this side takes (MIS, RFC 9260 section 3.3.2), 65 535 if this is
    /// not called. Has no effect after the handshake has begun.
    pub fn set_inbound_streams(&mut self, streams: u16) {
        self.own.inbound_streams = streams;
    }

    /// Bytes of a message in a packet that carries nothing else.
    pub fn packet_payload(&self) -> usize {
        self.config
            .max_packet
            .saturating_sub(COMMON_HEADER + DATA_HEADER)
    }
}
