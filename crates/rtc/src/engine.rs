//! The engine interface: what a connection needs of ICE, DTLS, SCTP and data channels, without I/O.
//!
//! Datagrams and the time go in; datagrams and events come out. An engine owns no socket, no timer
//! and no task, so it runs on a real network and in a simulator alike.

use std::fmt;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::transmit::TransmitQueue;
use anabranch_sctp::{CongestionControl, Ecn, Violation};

/// Maximum addresses of one peer; go-libp2p's limit for one ufrag. Further ones are rejected, and
/// none is evicted.
pub const MAX_ADDRESSES: usize = 32;

/// The pre-negotiated channel on SCTP stream 0, for Noise.
pub const CHANNEL_ZERO: ChannelId = ChannelId::new(0);

/// Identifies a channel. Never reused by an engine, unlike the id of its stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChannelId(u64);

impl ChannelId {
    /// Creates a channel id.
    pub const fn new(id: u64) -> Self {
        Self(id)
    }

    /// The id as a number.
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for ChannelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The limit that a message counts against.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Payload, which may fill its channel's share of the peer's window.
    Data,
    /// Small messages that end or acknowledge something: exempt from the limit of data.
    Control,
}

/// Result of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Written {
    /// SCTP has the message.
    Taken,
    /// There is no room; [`Event::Writable`] follows.
    Busy,
    /// This channel is not writable: it is being opened, or has used its share of the peer's
    /// window. [`Event::Writable`] follows.
    NotOpen,
    /// The channel is closed, or the connection has ended.
    Closed,
}

/// Why a channel could not be opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// No stream id is left.
    #[error("no stream id is free")]
    Exhausted,
    /// No stream id is free until an earlier channel is completely closed; [`Event::Writable`]
    /// follows.
    #[error("no stream id is free until a channel is closed")]
    NotNow,
    /// The label is too long.
    #[error("the label of {len} bytes exceeds {max}")]
    LabelTooLong {
        /// Length of the label.
        len: usize,
        /// Maximum length.
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
    /// Closed by the peer, in order.
    #[error("closed by the peer")]
    ClosedByPeer,
    /// The peer stopped responding.
    #[error("the peer stopped responding")]
    TimedOut,
    /// The peer acknowledges nothing, although its window is open.
    #[error("the peer stopped acknowledging data")]
    NoProgress,
    /// The peer aborted the association.
    #[error("SCTP association aborted by the peer")]
    Aborted,
    /// The peer violated SCTP.
    #[error("SCTP protocol violation: {0}")]
    Violation(#[source] Violation),
    /// The peer exceeded a limit.
    #[error("limit exceeded: {0}")]
    Limit(#[source] LimitExceeded),
    /// The peer has no certificate.
    #[error("DTLS: the peer has no certificate")]
    NoCertificate,
    /// DTLS failed.
    #[error("DTLS: {0}")]
    Dtls(String),
    /// Another failure, in the words of the layer that failed.
    #[error("{0}")]
    Failed(String),
}

/// A limit that a peer exceeded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LimitExceeded {
    /// Too much data before the handshake was complete.
    #[error("too much data before the handshake was complete")]
    EarlyData,
    /// Too many refused channels that the peer does not close.
    #[error("too many refused channels that the peer does not close")]
    RefusedChannels,
}

/// Which side of a connection an engine is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// ICE controlling, DTLS active, even stream ids.
    Client,
    /// ICE lite and controlled, DTLS passive, odd stream ids.
    Server,
}

/// An event of an engine.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// A candidate pair works.
    IceConnected,
    /// The peer has proven that it receives at this address, which is not that of the handshake.
    AddressValidated(SocketAddr),
    /// The DTLS handshake is complete. The caller has to verify the certificate.
    DtlsConnected {
        /// SHA-256 of the peer's certificate.
        sha256: [u8; 32],
    },
    /// SCTP is established and channel 0 is open.
    ChannelZeroOpen,
    /// The peer opened a channel.
    Opened {
        /// The new channel.
        channel: ChannelId,
        /// Its label.
        label: String,
    },
    /// A channel can be read.
    Readable {
        /// The channel.
        channel: ChannelId,
    },
    /// A write or open that was refused may succeed now.
    Writable,
    /// Everything written to a channel is acknowledged, after [`Engine::notify_delivered`].
    Delivered {
        /// The channel.
        channel: ChannelId,
    },
    /// The peer closed a channel, or our close of it is complete. What arrived before stays
    /// readable.
    Closed {
        /// The channel.
        channel: ChannelId,
    },
    /// The connection has ended.
    Ended(EndReason),
}

/// A certificate and its private key, for DTLS.
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

/// Parameters of one connection.
#[derive(Debug, Clone)]
pub struct Setup {
    /// The end that the engine is.
    pub role: Role,
    /// The certificate of this side.
    pub certificate: Certificate,
    /// The address of this side.
    pub local: SocketAddr,
    /// The address of the peer, if it is known in advance.
    pub remote: Option<SocketAddr>,
    /// ufrag and password of this side.
    pub local_credentials: (String, String),
    /// ufrag and password of the peer.
    pub remote_credentials: (String, String),
    /// Maximum UDP payload to send, on every path.
    pub mtu: usize,
    /// Maximum UDP payload where the path turns out to carry more (DPLPMTUD, RFC 8899), for engines
    /// that find that out.
    pub max_mtu: usize,
    /// Maximum unacknowledged data.
    pub max_in_flight: usize,
    /// Maximum unread data in SCTP, for engines with backpressure.
    pub receive_buffer: usize,
    /// How long the peer may acknowledge nothing while its window is open, for engines that check
    /// that.
    pub progress_timeout: Duration,
    /// The congestion controller, for engines that let it be chosen.
    pub congestion: CongestionControl,
    /// Whether to offer explicit congestion notification (ECN, RFC 3168), for engines that have it.
    pub ecn: bool,
}

/// A received datagram.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Datagram<'a> {
    /// The sender.
    pub source: SocketAddr,
    /// The local address that it was sent to.
    pub destination: SocketAddr,
    /// The UDP payload.
    pub contents: &'a [u8],
    /// Its ECN codepoint; [`Ecn::NotEct`] where it is not known.
    pub ecn: Ecn,
}

impl<'a> Datagram<'a> {
    /// A datagram without an ECN codepoint.
    pub fn new(source: SocketAddr, destination: SocketAddr, contents: &'a [u8]) -> Self {
        Self {
            source,
            destination,
            contents,
            ecn: Ecn::NotEct,
        }
    }

    /// Sets the ECN codepoint.
    #[must_use]
    pub fn with_ecn(mut self, ecn: Ecn) -> Self {
        self.ecn = ecn;
        self
    }
}

/// A datagram that challenges an address to prove that the peer receives there.
#[derive(Debug)]
pub struct Probe {
    /// The address of this side.
    pub source: SocketAddr,
    /// The address to validate.
    pub destination: SocketAddr,
    /// The datagram.
    pub contents: Vec<u8>,
}

/// The path of a connection, and what its SCTP has found out about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct PathState {
    /// The address of this side.
    pub local: SocketAddr,
    /// The address of the peer.
    pub remote: SocketAddr,
    /// Smoothed round-trip time (RFC 6298), once there is a sample.
    pub rtt: Option<Duration>,
    /// Least round-trip time, once there is a sample.
    pub min_rtt: Option<Duration>,
    /// Congestion window, in bytes.
    pub cwnd: usize,
    /// Bytes in flight: sent, and neither acknowledged nor taken for lost.
    pub in_flight: usize,
    /// Longest datagram at the moment, in bytes of UDP payload.
    pub mtu: usize,
    /// Bytes of data that were ever sent, with the headers of their chunks, and retransmissions.
    pub bytes_sent: u64,
    /// Bytes among them that were ever taken for lost, also those that arrived after all.
    pub bytes_lost: u64,
}

/// Creates engines of one kind.
pub trait MakeEngine: fmt::Debug + Send + Sync {
    /// The name of this kind on command lines.
    fn name(&self) -> &'static str;

    /// Creates an engine for one connection.
    ///
    /// # Errors
    /// If the crypto library fails, or an address can not be a candidate.
    fn make(&self, setup: Setup, now: Instant) -> Result<Box<dyn Engine>, EndReason>;
}

/// The kind of engine that connections use. Two with the same name are equal.
#[derive(Debug, Clone, Copy)]
pub struct EngineFactory(&'static dyn MakeEngine);

impl EngineFactory {
    /// The engine of this crate, `direct`.
    pub const DIRECT: Self = Self::new(&super::direct::Direct);

    /// The engine of another crate.
    pub const fn new(make: &'static dyn MakeEngine) -> Self {
        Self(make)
    }

    /// The name of this kind.
    pub fn name(&self) -> &'static str {
        self.0.name()
    }

    /// Creates an engine for one connection.
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
/// After any other call, the caller has to call [`Engine::poll`] before it waits, until the time
/// that `poll` returns.
pub trait Engine: Send {
    /// Handles a datagram. An invalid one is dropped. An engine without ECN ignores its codepoint.
    fn handle_datagram(&mut self, now: Instant, datagram: Datagram<'_>, out: &mut TransmitQueue);

    /// Derives events from the handled datagrams, and leaves the responses to [`Engine::poll`].
    /// Returns `false` if `poll` can not wait: the connection has ended, or the engine does both at
    /// once.
    fn take_in(&mut self, _now: Instant, _out: &mut TransmitQueue) -> bool {
        false
    }

    /// Advances the time.
    fn handle_timeout(&mut self, now: Instant);

    /// Does what is due and puts outgoing datagrams into `out`. Returns when to call
    /// [`Engine::handle_timeout`] next.
    fn poll(&mut self, now: Instant, out: &mut TransmitQueue) -> Instant;

    /// The next event.
    fn next_event(&mut self) -> Option<Event>;

    /// Opens an ordered and reliable data channel in-band (RFC 8832).
    ///
    /// # Errors
    /// See [`OpenError`].
    fn open(&mut self, label: &str) -> Result<ChannelId, OpenError>;

    /// Writes a message, given in consecutive pieces, completely or not at all.
    fn write_vectored(&mut self, channel: ChannelId, pieces: &[&[u8]], class: Class) -> Written;

    /// Writes a message given in one piece.
    fn write(&mut self, channel: ChannelId, message: &[u8]) -> Written {
        self.write_vectored(channel, &[message], Class::Data)
    }

    /// The next message of a channel.
    fn read(&mut self, channel: ChannelId) -> Option<Bytes>;

    /// Whether reads have caused something that [`Engine::poll`] has to send.
    fn wants_poll(&self) -> bool {
        false
    }

    /// Bytes written and not acknowledged by the peer's SCTP, over all channels.
    fn unacknowledged(&self) -> usize;

    /// Requests one `Delivered` event once the peer's SCTP has acknowledged everything on a
    /// channel; never if something was dropped, since the peer has closed the channel.
    fn notify_delivered(&mut self, channel: ChannelId);

    /// Closes a channel after everything written to it (RFC 8831 section 6.7).
    fn close_channel(&mut self, channel: ChannelId);

    /// Drops what is unread on a channel, and what arrives on it from now on.
    fn ignore_channel(&mut self, channel: ChannelId);

    /// Whether this side opened the channel, and so owns its stream id.
    fn is_own_channel(&self, channel: ChannelId) -> bool;

    /// The peer is authenticated: the limits of an unknown peer are lifted.
    fn authenticated(&mut self);

    /// Whether an unread channel holds back its sender.
    fn holds_back_unread(&self) -> bool;

    /// Lets stalled readers close the receive window of the whole connection. Otherwise they have
    /// to be read.
    fn allow_shut_window(&mut self) {}

    /// How many bytes of data may be unacknowledged at the moment: what the congestion window lets
    /// be in flight, and a few messages that wait for it. What is written beyond it delays whatever
    /// is written later, and is not sent any sooner.
    fn write_limit(&self) -> usize {
        usize::MAX
    }

    /// Records under one key of DTLS 1.2, which never changes: the larger count of both directions.
    /// Zero with any other version.
    fn dtls12_records(&self) -> u64;

    /// What the engine knows of the path; `None` before it has a route, and from an engine that
    /// does not report it.
    fn path(&self) -> Option<PathState> {
        None
    }

    /// Maximum payload of a message that fits one packet, if known.
    fn packet_payload(&self) -> Option<usize> {
        None
    }

    /// The system sends from `local` now: makes it the only local candidate and checks it at once.
    ///
    /// For a [`Role::Client`]; a listener never moves.
    fn move_to(&mut self, now: Instant, local: SocketAddr);

    /// The peer is silent although something may be under way: checks the path at once. A NAT may
    /// have forgotten its mapping, and the peer then learns the new address of this side from the
    /// check.
    ///
    /// For a [`Role::Client`].
    fn check_path(&mut self) {}

    /// Whether something authentic has arrived from the peer since the last call. Anybody can forge
    /// an address, and junk from that of a dead peer must not keep its connection alive.
    ///
    /// An engine that can not tell returns `received`: whether anything arrived.
    fn take_heard(&mut self, received: bool) -> bool {
        received
    }

    /// Whether the engine validates further addresses of the peer by itself, with
    /// [`Engine::next_probe`], and does not move to one before.
    fn validates_addresses(&self) -> bool {
        false
    }

    /// A challenge to a further address, if one is due. It is lost unless it is sent at once, and
    /// is retransmitted. [`Event::AddressValidated`] follows the response.
    fn next_probe(&mut self, _now: Instant, _out: &mut TransmitQueue) -> Option<Probe> {
        None
    }

    /// Closes the connection and notifies the peer.
    fn close(&mut self, now: Instant);
}
