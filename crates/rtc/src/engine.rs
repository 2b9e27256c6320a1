//! The seam: what a connection needs of ICE, DTLS, SCTP and data channels, without I/O.
//!
//! Datagrams and time go in; datagrams and events come out. An engine owns no socket, no timer and
//! no task, so that any of them runs on the real network and in a simulator alike.

use std::fmt;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::transmit::TransmitQueue;

/// Addresses of one peer; go-libp2p's limit for one ufrag. More are not taken, and none is evicted.
pub const MAX_ADDRESSES: usize = 32;

/// The channel that both sides open without asking: SCTP stream 0, for Noise.
pub const CHANNEL_ZERO: ChannelId = ChannelId::new(0);

/// The name of a channel, never used twice by one engine, whatever the number of its stream is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChannelId(u64);

impl ChannelId {
    /// Names a channel.
    pub const fn new(id: u64) -> Self {
        Self(id)
    }

    /// The number of this name.
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for ChannelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Which budget a message is counted against.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Payload, which may fill its channel's part of the peer's window.
    Data,
    /// Small messages that end or acknowledge something: exempt from the budget of data.
    Control,
}

/// What became of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Written {
    /// SCTP has it.
    Taken,
    /// There is no room; [`Event::Writable`] follows.
    Busy,
    /// This channel takes nothing yet: it is still being opened, or has used up its part of the
    /// peer's window. [`Event::Writable`] follows.
    NotOpen,
    /// The channel is closed, or the connection has ended.
    Closed,
}

/// Why a channel could not be opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// No number is left.
    #[error("no channel number is free")]
    Exhausted,
    /// No number is free before the close of an earlier channel is complete; [`Event::Writable`]
    /// follows when one is.
    #[error("every channel number is taken until a channel has closed")]
    NotNow,
    /// The label is longer than is sent.
    #[error("the label of {len} bytes is longer than {max}")]
    LabelTooLong {
        /// Length of the label.
        len: usize,
        /// Longest label.
        max: usize,
    },
    /// The connection has ended.
    #[error("the connection has ended")]
    Closed,
}

/// Why a connection has ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EndReason {
    /// The peer has closed it in order.
    #[error("the peer has closed the connection")]
    ClosedByPeer,
    /// The peer does not answer any more.
    #[error("the peer does not answer")]
    TimedOut,
    /// The peer acknowledges nothing, although its window is open.
    #[error("nothing is acknowledged")]
    NoProgress,
    /// The peer has aborted the association.
    #[error("SCTP: aborted by the peer")]
    Aborted,
    /// The peer has broken a rule of SCTP.
    #[error("SCTP: the peer has sent {0}")]
    Violation(anabranch_sctp::Violation),
    /// The peer has exceeded a limit: what it was.
    #[error("{0}")]
    Limit(&'static str),
    /// DTLS has failed.
    #[error("DTLS: {0}")]
    Dtls(String),
    /// Anything else, in the words of the layer that failed.
    #[error("{0}")]
    Failed(String),
}

/// Which end of a connection an engine is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// ICE controlling, DTLS active, even channel numbers.
    Client,
    /// ICE lite and controlled, DTLS passive, odd channel numbers.
    Server,
}

/// What an engine reports.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// A candidate pair works.
    IceConnected,
    /// The peer has shown that it receives at this address, which is another than that of the
    /// handshake.
    AddressValidated(SocketAddr),
    /// DTLS is up. Whose certificate it is has to be compared by whoever knows.
    DtlsConnected {
        /// SHA-256 of the peer's certificate.
        sha256: [u8; 32],
    },
    /// SCTP is up and channel 0 is open.
    ChannelZeroOpen,
    /// The peer has opened a channel.
    Opened {
        /// The new channel.
        channel: ChannelId,
        /// Its label.
        label: String,
    },
    /// A channel has something to read.
    Readable {
        /// The channel.
        channel: ChannelId,
    },
    /// There may be room again for whoever was refused.
    Writable,
    /// Everything written to a channel is acknowledged, after [`Engine::notify_delivered`].
    Delivered {
        /// The channel.
        channel: ChannelId,
    },
    /// A channel was closed by the peer, or its closing is complete. What arrived before stays
    /// readable until it was read.
    Closed {
        /// The channel.
        channel: ChannelId,
    },
    /// The connection is over.
    Ended(EndReason),
}

/// A certificate and its key, as DTLS takes them.
#[derive(Clone)]
pub struct Certificate {
    /// X.509 in DER.
    pub der: Vec<u8>,
    /// The private key in PKCS#8 DER.
    pub private_key: Vec<u8>,
}

impl fmt::Debug for Certificate {
    /// Without the private key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificate").finish_non_exhaustive()
    }
}

/// How one connection is to be made.
#[derive(Debug, Clone)]
pub struct Setup {
    /// Which end this is.
    pub role: Role,
    /// The certificate of this side.
    pub certificate: Certificate,
    /// The address of this side.
    pub local: SocketAddr,
    /// Where the peer is, if that is known before it speaks.
    pub remote: Option<SocketAddr>,
    /// ufrag and password of this side.
    pub local_credentials: (String, String),
    /// ufrag and password of the peer.
    pub remote_credentials: (String, String),
    /// Largest UDP payload to send.
    pub mtu: usize,
    /// Most data that will be unacknowledged.
    pub max_in_flight: usize,
    /// Most data that may be unread in SCTP; for engines that hold back unread data.
    pub receive_buffer: usize,
    /// How long the peer may acknowledge nothing while its window is open; for engines that look.
    pub progress_timeout: Duration,
}

/// A datagram that asks an address for a proof that the peer receives there.
#[derive(Debug)]
pub struct Probe {
    /// The address of this side.
    pub source: SocketAddr,
    /// The address that is asked.
    pub destination: SocketAddr,
    /// The datagram.
    pub contents: Vec<u8>,
}

/// Makes engines of one kind.
pub trait MakeEngine: fmt::Debug + Send + Sync {
    /// What programs call this kind on their command lines.
    fn name(&self) -> &'static str;

    /// An engine for one connection.
    ///
    /// # Errors
    /// If the crypto library fails, or an address can be no candidate.
    fn make(&self, setup: Setup, now: Instant) -> Result<Box<dyn Engine>, EndReason>;
}

/// The engine that connections run on. Two of one name are equal.
#[derive(Debug, Clone, Copy)]
pub struct EngineFactory(&'static dyn MakeEngine);

impl EngineFactory {
    /// The engine of this crate, `direct`.
    pub const DIRECT: Self = Self::new(&super::direct::Direct);

    /// The engine of a crate beside this one.
    pub const fn new(make: &'static dyn MakeEngine) -> Self {
        Self(make)
    }

    /// What this kind is called.
    pub fn name(&self) -> &'static str {
        self.0.name()
    }

    /// An engine for one connection.
    ///
    /// # Errors
    /// See [`MakeEngine::make`].
    pub fn make(&self, setup: Setup, now: Instant) -> Result<Box<dyn Engine>, EndReason> {
        self.0.make(setup, now)
    }
}

impl Default for EngineFactory {
    /// [`EngineFactory::DIRECT`].
    fn default() -> Self {
        Self::DIRECT
    }
}

impl PartialEq for EngineFactory {
    fn eq(&self, other: &Self) -> bool {
        self.name() == other.name()
    }
}

impl Eq for EngineFactory {}

impl fmt::Display for EngineFactory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One WebRTC connection without I/O.
///
/// After any call, [`Engine::poll`] is due before the caller waits; it then says until when.
pub trait Engine: Send {
    /// Takes in one datagram. Never fails: what can not be used is dropped.
    fn handle_datagram(
        &mut self,
        now: Instant,
        source: SocketAddr,
        destination: SocketAddr,
        datagram: &[u8],
        out: &mut TransmitQueue,
    );

    /// Finds the events in what was taken in, and leaves the answers to [`Engine::poll`]. `false`
    /// where they can not wait: the connection has ended, or the engine does both at once.
    fn take_in(&mut self, _now: Instant, _out: &mut TransmitQueue) -> bool {
        false
    }

    /// Takes in the time.
    fn handle_timeout(&mut self, now: Instant);

    /// Does what is due and puts datagrams to send into `out`. Returns when to call
    /// [`Engine::handle_timeout`] next.
    fn poll(&mut self, now: Instant, out: &mut TransmitQueue) -> Instant;

    /// The next event, if there is one.
    fn next_event(&mut self) -> Option<Event>;

    /// Opens a data channel in-band (RFC 8832), ordered and reliable.
    ///
    /// # Errors
    /// [`OpenError`] says what is missing.
    fn open(&mut self, label: &str) -> Result<ChannelId, OpenError>;

    /// Hands a message to SCTP, whole or not at all. It is given in pieces that follow each other.
    fn write_vectored(&mut self, channel: ChannelId, pieces: &[&[u8]], class: Class) -> Written;

    /// The same for a message in one piece.
    fn write(&mut self, channel: ChannelId, message: &[u8]) -> Written {
        self.write_vectored(channel, &[message], Class::Data)
    }

    /// The next message of a channel.
    fn read(&mut self, channel: ChannelId) -> Option<Bytes>;

    /// Whether reads have left something to do for [`Engine::poll`].
    fn wants_poll(&self) -> bool {
        false
    }

    /// Bytes written that the peer's SCTP has not acknowledged, over all channels.
    fn unacknowledged(&self) -> usize;

    /// Asks for one `Delivered` when the peer's SCTP has acknowledged all of a channel.
    fn notify_delivered(&mut self, channel: ChannelId);

    /// Closes a channel after what was written to it (RFC 8831 section 6.7).
    fn close_channel(&mut self, channel: ChannelId);

    /// Drops what a channel has unread, and what still arrives on it.
    fn ignore_channel(&mut self, channel: ChannelId);

    /// Whether this side opened the channel, and so owns its number.
    fn is_own_channel(&self, channel: ChannelId) -> bool;

    /// The peer is who it should be: the limits of an unknown peer are lifted.
    fn authenticated(&mut self);

    /// Whether an unread channel holds back its sender.
    fn holds_back_unread(&self) -> bool;

    /// Lets readers that stall shut the window of the whole connection, where they would have to
    /// be read otherwise.
    fn allow_shut_window(&mut self) {}

    /// Time for which data may wait below, beyond the round trip, for the tasks of both sides to run.
    /// Zero where every byte in flight costs the engine time.
    fn latency_allowance(&self) -> Duration {
        Duration::ZERO
    }

    /// Records under the keys of DTLS 1.2, which live as long as the connection: those sent or those received, whichever
    /// are more. Zero with any other version.
    fn dtls12_records(&self) -> u64;

    /// Bytes of a message that one packet carries, if that is known.
    fn packet_payload(&self) -> Option<usize> {
        None
    }

    /// The system sends from `local` now: makes it the only candidate of this side, and checks it at once.
    ///
    /// For a [`Role::Client`]; a listener stays at its address.
    fn move_to(&mut self, now: Instant, local: SocketAddr);

    /// Whether something authentic has come from the peer since this was last asked. Anybody can forge an address, and
    /// junk from that of a dead peer must not keep its connection.
    ///
    /// An engine that can not tell says yes if anything has been `received`.
    fn take_heard(&mut self, received: bool) -> bool {
        received
    }

    /// Whether the engine finds out by itself that the peer receives at a further address, with
    /// [`Engine::next_probe`], and does not move there before it has.
    fn validates_addresses(&self) -> bool {
        false
    }

    /// A datagram that asks a further address for a proof, if one is due. Lost if it is not sent at once, and repeated.
    /// [`Event::AddressValidated`] follows when it has come back.
    fn next_probe(&mut self, _now: Instant, _out: &mut TransmitQueue) -> Option<Probe> {
        None
    }

    /// Tells the peer that the connection is over.
    fn close(&mut self, now: Instant);
}
