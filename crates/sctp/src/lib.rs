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

mod bundle;
mod congestion;
#[cfg(test)]
mod differential;
mod ecn;
mod entropy;
mod figures;
mod handshake;
mod heartbeat;
mod inbound;
mod outbound;
mod packet;
mod path_mtu;
mod receiver;
mod reset;
mod segments;
mod sender;
mod tally;
#[cfg(test)]
mod tests;
mod violation;

pub use congestion::{Ack, CongestionControl, Controller, Cubic, Heed, Lost};
pub use ecn::Ecn;
pub use heartbeat::Nonce;
pub use packet::put_checksum;
pub use path_mtu::PathChange;
pub use violation::Violation;

use handshake::Init;
use packet::{COMMON_HEADER, DATA_HEADER, kind};
use path_mtu::PathMtu;
use receiver::Receiver;
use reset::{ResetOutcome, Resets};
use segments::Segments;
use sender::Sender;

/// The port that every WebRTC stack uses; RFC 8831 section 6.2 leaves it open.
const PORT: u16 = 5000;

/// Maximum queued reply chunks. Excess requests are dropped and retransmitted by the peer.
const MAX_REPLIES: usize = 64;

/// Length of a state cookie. It only proves that the peer receives our packets: DTLS has
/// authenticated the peer.
const COOKIE: usize = 16;

/// SHUTDOWN or SHUTDOWN-ACK transmissions before the association ends without an answer.
const SHUTDOWN_ATTEMPTS: u32 = 6;

/// Error causes of ABORT and ERROR chunks (RFC 9260 section 3.3.10).
mod cause {
    pub(super) const INVALID_STREAM: u16 = 1;
    pub(super) const UNRECOGNIZED_CHUNK: u16 = 6;
    pub(super) const NO_USER_DATA: u16 = 9;
    pub(super) const USER_INITIATED_ABORT: u16 = 12;
    pub(super) const PROTOCOL_VIOLATION: u16 = 13;
}

/// Payload protocol identifier of a message (PPID, RFC 8831 section 8).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ppid {
    /// Data channel establishment protocol (RFC 8832), 50.
    Dcep,
    /// Text, 51.
    String,
    /// Binary, 53.
    Binary,
    /// Empty text, 56. SCTP has no empty messages, so the user data is one byte without meaning.
    StringEmpty,
    /// Empty binary, 57; as [`Ppid::StringEmpty`].
    BinaryEmpty,
    /// Any other value.
    Other(u32),
}

impl From<u32> for Ppid {
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

impl From<Ppid> for u32 {
    fn from(ppid: Ppid) -> Self {
        match ppid {
            Ppid::Dcep => 50,
            Ppid::String => 51,
            Ppid::Binary => 53,
            Ppid::StringEmpty => 56,
            Ppid::BinaryEmpty => 57,
            Ppid::Other(other) => other,
        }
    }
}

/// A complete message.
#[derive(Debug)]
pub struct Message {
    /// PPID of the first chunk.
    pub ppid: Ppid,
    /// User data; a slice of the packet if the message arrived in one chunk.
    pub bytes: Bytes,
}

/// An event of an association.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// The association is established and can send messages.
    Connected,
    /// The association has ended.
    Ended(EndReason),
    /// The peer used a stream that did not exist.
    Opened {
        /// The stream.
        id: u16,
    },
    /// A message can be read. Emitted once for each message.
    Readable {
        /// The stream.
        id: u16,
    },
    /// The peer has reset the stream, and everything that preceded the reset has been read. The
    /// outgoing direction is reset now, unless it was reset before. One `ResetComplete` follows for
    /// each `Finished`.
    Finished {
        /// The stream.
        id: u16,
    },
    /// The outgoing direction is reset, and the stream id can be used again.
    ResetComplete {
        /// The stream.
        id: u16,
    },
    /// The peer denied the reset of the outgoing direction.
    ResetFailed {
        /// The stream.
        id: u16,
    },
    /// Everything written to the stream is acknowledged or dropped, see
    /// [`Association::has_dropped`].
    Acknowledged {
        /// The stream.
        id: u16,
    },
    /// Memory, unacknowledged bytes or a share of the peer's window was freed: a writer that was
    /// refused may try again.
    Writable,
}

/// Why an association has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndReason {
    /// Shut down in order, or aborted on request of the peer's user.
    Closed,
    /// Aborted by the peer because of an error.
    Aborted,
    /// The peer violated the protocol.
    Violation(Violation),
    /// The peer acknowledged nothing for `Config::progress_timeout` while its window was open.
    NoProgress,
}

/// Limits of an association.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Config {
    /// Longest packet that every path is assumed to take, in bytes; a multiple of four.
    pub max_packet: usize,
    /// Longer packets to look for once data flows, by probes (DPLPMTUD, RFC 8899), in bytes,
    /// ascending and multiples of four; none turns that off. Used only with a peer that takes DATA
    /// chunks in segments, which only this crate does: a chunk that is in flight when the path
    /// begins to carry less can not be sent again otherwise.
    pub packet_sizes: &'static [usize],
    /// Maximum bytes received and not read.
    pub receive_buffer: usize,
    /// Longest message that is accepted.
    pub max_message: usize,
    /// How long the peer may acknowledge nothing while its window is open. RFC 9260 section 8.1
    /// counts ten timeouts instead, which take 300 s with its RTO parameters.
    pub progress_timeout: Duration,
    /// The congestion controller.
    pub congestion: CongestionControl,
    /// Whether to offer explicit congestion notification (ECN, RFC 3168). It is used only if the
    /// peer lists its chunk as well, which only this crate does, and as long as the path delivers
    /// the marks (RFC 9000 section 13.4.2). A router can then mark packets instead of dropping
    /// them.
    pub ecn: bool,
    /// Whether to offer to establish the association with INIT and INIT-ACK alone, a round trip
    /// sooner. It is used only if the peer offers it as well, which only this crate does. The
    /// cookie of RFC 9260 section 5.1 keeps a listener from allocating state for a forged address;
    /// below DTLS there is no association before the peer has answered. Without it each side takes
    /// the other for another stack, and keeps less in flight where the RTT is below 3 ms
    /// ([`Association::send_window`]).
    pub without_cookie: bool,
}

impl Default for Config {
    /// Packets of 1 200 bytes and no longer ones, a receive buffer of 1 MiB, messages of 256 KiB
    /// (the limit of Chromium), 30 s without progress, ECN, and no cookie.
    fn default() -> Self {
        Self {
            max_packet: 1_200,
            packet_sizes: &[],
            receive_buffer: 1 << 20,
            max_message: 256 * 1024,
            progress_timeout: Duration::from_secs(30),
            congestion: CongestionControl::default(),
            ecn: true,
            without_cookie: true,
        }
    }
}

/// State of an association (RFC 9260 section 4). `ShutdownPending` includes SHUTDOWN-SENT, and
/// `ShutdownReceived` includes SHUTDOWN-ACK-SENT.
///
/// ```text
/// Closed ─► (start) CookieWait ─► (INIT-ACK) CookieEchoed ─► (COOKIE-ACK) ┐
///    └──────────────────────────────────────────────► (COOKIE-ECHO) Established
/// Closed, CookieWait ─► (INIT or INIT-ACK, neither side needs a cookie) Established
/// Established ─► (shutdown) ShutdownPending: all acknowledged, SHUTDOWN ─► (SHUTDOWN-ACK) Ended
///        └─────► (SHUTDOWN) ShutdownReceived: all acknowledged, SHUTDOWN-ACK
///                                                      ─► (SHUTDOWN-COMPLETE) Ended
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Closed,
    CookieWait,
    CookieEchoed,
    Established,
    ShutdownPending,
    ShutdownReceived,
    Ended,
}

/// A control chunk that is retransmitted until the peer answers it.
#[derive(Debug)]
struct ControlChunk {
    kind: u8,
    value: Vec<u8>,
    at: Option<Instant>,
    sent: u32,
}

/// The INIT-ACK of an association without cookie, until the peer shows that it has it.
#[derive(Debug)]
struct Unconfirmed {
    init_ack: Vec<u8>,
    /// The peer's INIT is not answered yet.
    is_due: bool,
}

/// An SCTP association.
#[derive(Debug)]
pub struct Association {
    config: Config,
    state: State,
    own: Init,
    peer: Option<Init>,
    peer_port: u16,
    /// State cookie of INIT-ACK, which the peer's COOKIE-ECHO has to return.
    cookie: [u8; COOKIE],
    /// The chunk of the handshake or of the shutdown that awaits its answer.
    control: Option<ControlChunk>,
    unconfirmed: Option<Unconfirmed>,
    /// Chunks to send once, with the next packet.
    replies: VecDeque<(u8, Vec<u8>)>,
    /// Nonce of the last HEARTBEAT-ACK.
    heartbeat_ack: Option<Nonce>,
    receiver: Receiver,
    segments: Segments,
    sender: Sender,
    path_mtu: PathMtu,
    /// Packets received by their ECN codepoint.
    received_ecn: ecn::Received,
    resets: Resets,
    events: VecDeque<Event>,
    /// Memory for outgoing packets.
    buffer: BytesMut,
}

impl Association {
    /// Creates an association that is idle until [`Association::start`] is called or the peer
    /// starts the handshake.
    pub fn new(config: Config) -> Self {
        let own = Init {
            tag: rand::random_range(1..=u32::MAX),
            a_rwnd: u32::try_from(config.receive_buffer).unwrap_or(u32::MAX),
            first_tsn: rand::random(),
            inbound_streams: handshake::STREAMS,
            zero_checksum: true,
            forward_tsn: true,
            prunes: false,
            ecn: config.ecn,
            without_cookie: config.without_cookie,
            segments: true,
        };
        Self {
            config,
            state: State::Closed,
            own,
            peer: None,
            peer_port: PORT,
            cookie: rand::random(),
            control: None,
            unconfirmed: None,
            replies: VecDeque::new(),
            heartbeat_ack: None,
            receiver: Receiver::new(0, config.receive_buffer, config.max_message),
            segments: Segments::default(),
            path_mtu: PathMtu::new(config.max_packet, config.packet_sizes),
            sender: Sender::new(own.first_tsn, config.max_packet, config.congestion),
            received_ecn: ecn::Received::default(),
            resets: Resets::new(0, 0),
            events: VecDeque::new(),
            buffer: BytesMut::new(),
        }
    }

    /// Starts the handshake. Without this call the peer has to start it.
    pub fn start(&mut self) {
        if self.state == State::Closed {
            self.state = State::CookieWait;
            self.queue_control(kind::INIT, self.own.encode(None));
        }
    }

    /// Whether DATA is sent and accepted.
    pub fn is_up(&self) -> bool {
        matches!(
            self.state,
            State::Established | State::ShutdownPending | State::ShutdownReceived
        )
    }

    fn queue_control(&mut self, kind: u8, value: Vec<u8>) {
        self.control = Some(ControlChunk {
            kind,
            value,
            at: None,
            sent: 0,
        });
    }

    fn reply(&mut self, kind: u8, value: Vec<u8>) {
        if self.replies.len() < MAX_REPLIES {
            self.replies.push_back((kind, value));
        }
    }

    fn end(&mut self, reason: EndReason) {
        if self.state != State::Ended {
            self.state = State::Ended;
            self.control = None;
            self.unconfirmed = None;
            self.events.push_back(Event::Ended(reason));
        }
    }

    /// The oldest event that was not taken.
    pub fn next_event(&mut self) -> Option<Event> {
        let event = self.events.pop_front()?;
        match event {
            // Only now: nothing of the next stream on this id may be read before its end is
            // reported.
            Event::Finished { id } => {
                self.receiver.retire(id, &mut self.events);
                self.answer_peer_resets();
            }
            Event::Writable => self.sender.writable_taken(),
            _ => {}
        }
        Some(event)
    }
}

/// Streams.
impl Association {
    /// Creates a stream. Returns `false` if the id is in use in either direction, or above the
    /// peer's limit.
    pub fn open_stream(&mut self, id: u16) -> bool {
        if !self.is_within_peer_limit(id) {
            return false;
        }
        // The peer may have used the stream before.
        if !self.sender.open(id) {
            return false;
        }
        self.receiver.open(id);
        true
    }

    /// Queues a message, which must not be empty. Returns `false` if the stream is not writable.
    pub fn write(&mut self, id: u16, message: Bytes, ppid: Ppid) -> bool {
        if !self.receiver.is_open(id)
            || self.state == State::Ended
            || !self.is_within_peer_limit(id)
        {
            return false;
        }
        // The peer may have opened the stream.
        self.sender.open(id);
        self.sender.write(id, ppid.into(), message)
    }

    /// Whether the id is within the peer's limit (MIS, RFC 9260 section 3.3.2). True until the
    /// limit is known.
    fn is_within_peer_limit(&self, id: u16) -> bool {
        self.peer.is_none_or(|peer| id < peer.inbound_streams)
    }

    /// The next complete message of a stream.
    pub fn read(&mut self, id: u16) -> Option<Message> {
        let message = self.receiver.read(id, &mut self.events);
        self.answer_peer_resets();
        message
    }

    /// Unacknowledged bytes of a stream.
    pub fn unacknowledged(&self, id: u16) -> usize {
        self.sender.unacknowledged(id)
    }

    /// Messages written to a stream since it was opened, as a number that wraps.
    pub fn written(&self, id: u16) -> u32 {
        self.sender.written(id)
    }

    /// Whether any message written to a stream up to `written`, what [`Association::written`]
    /// returned then, was dropped, because the peer had reset the stream before it was sent: nobody
    /// reads it (RFC 8831 section 6.7).
    pub fn has_dropped(&self, id: u16, written: u32) -> bool {
        self.sender.has_dropped(id, written)
    }

    /// Unacknowledged bytes of all streams.
    pub fn total_unacknowledged(&self) -> usize {
        self.sender.totals().0
    }

    /// Memory of all written messages, per-entry overhead included, until they are freed.
    pub fn held(&self) -> usize {
        self.sender.totals().1
    }

    /// The congestion controller: its window and its pacing rate, and for humans its state.
    pub fn congestion(&self) -> &dyn Controller {
        self.sender.congestion()
    }

    /// Maximum bytes of DATA chunks in flight at the moment: cwnd, or what the path holds and 24
    /// packets if that is less, the RTT below 3 ms and the peer another stack, whose buffers may
    /// hold no more.
    pub fn send_window(&self) -> usize {
        self.sender.send_window()
    }

    /// Whether a message fits its stream's share of the peer's window. If not, [`Event::Writable`]
    /// follows.
    pub fn has_share(&mut self, id: u16, length: usize) -> bool {
        self.sender.has_share(id, length)
    }

    /// Maximum streams of the peer (MIS); 0 until it is known.
    pub fn max_streams(&self) -> u16 {
        self.peer.map_or(0, |peer| peer.inbound_streams)
    }

    /// Resets the outgoing direction once everything written is acknowledged. Nothing can be read
    /// from the stream any more.
    pub fn reset_stream(&mut self, id: u16) {
        self.sender.reset(id);
        self.receiver.ignore(id, &mut self.events);
        self.answer_peer_resets();
    }

    /// Whether the peer has to learn that the window has opened.
    pub fn is_window_update_due(&self) -> bool {
        self.receiver.is_window_update_due()
    }

    /// Whether the last advertised window is less than a quarter of the buffer.
    pub fn is_window_tight(&self) -> bool {
        self.receiver.is_window_tight()
    }

    /// Whether a read or a reset left something to transmit, without a packet of the peer.
    pub fn wants_transmit(&self) -> bool {
        self.is_window_update_due() || (self.sender.has_resets() && self.resets.is_free())
    }

    fn answer_peer_resets(&mut self) {
        for id in self.receiver.take_ended() {
            self.sender.answer_reset(id);
        }
    }

    fn on_reset_outcome(&mut self, outcome: ResetOutcome) {
        match outcome {
            ResetOutcome::PeerReset(streams) => {
                for id in streams {
                    self.sender.discard_unstarted(id, &mut self.events);
                    self.receiver.reset(id, &mut self.events);
                }
            }
            ResetOutcome::Done(streams) => {
                for id in streams {
                    match self.sender.reset_done(id) {
                        Some(0) => self.receiver.on_outgoing_reset(id),
                        answers => {
                            for _ in 0..answers.unwrap_or(0) {
                                self.events.push_back(Event::ResetComplete { id });
                            }
                        }
                    }
                }
            }
            ResetOutcome::Failed(streams) => {
                for id in streams {
                    self.sender.reset_failed(id);
                    self.events.push_back(Event::ResetFailed { id });
                }
            }
        }
        self.answer_peer_resets();
    }
}

/// Derives all random choices of associations on this thread from a seed, for simulations.
#[cfg(feature = "testing")]
pub fn fix_entropy(seed: u64) {
    entropy::fix(seed);
}

/// TSNs of the DATA chunks in a packet, for programs that inspect packets in transit.
pub fn data_tsns(packet: &[u8]) -> Vec<u32> {
    let chunks = packet::parse(packet)
        .into_iter()
        .flat_map(|(_, chunks)| chunks);
    let data = chunks.filter(|chunk| chunk.kind == kind::DATA);
    data.filter_map(|chunk| Some(packet::DataHeader::parse(chunk)?.0.tsn))
        .collect()
}

impl Association {
    /// Sets the number of inbound streams to announce (MIS, RFC 9260 section 3.3.2); the default is
    /// 65 535. Has no effect once the handshake has begun.
    pub fn set_inbound_streams(&mut self, streams: u16) {
        self.own.inbound_streams = streams;
    }

    /// Longest payload of a DATA chunk that is alone in its packet. It changes with what is known
    /// of the path.
    pub fn packet_payload(&self) -> usize {
        self.max_packet()
            .saturating_sub(COMMON_HEADER + DATA_HEADER)
    }
}
