//! Every limit of a connection, with the need or the attack it answers (docs/reliability.md).

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use crate::events::Events;
use crate::message::MAX_FRAME;
use crate::substream::INITIAL_CREDIT;

/// How substreams find out which protocol they carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Negotiation {
    /// multistream-select on every substream, as every libp2p peer does.
    #[default]
    MultistreamSelect,
    /// The label of the data channel names the protocol; for peers that are ours. Saves a round
    /// trip.
    ChannelLabel,
    /// None: substreams are handed over as they come. For stacks that negotiate themselves.
    None,
}

/// When FIN is answered with FIN_ACK.
///
/// The specification says SHOULD, and js-libp2p waits for it. rust-libp2p knows no FIN_ACK and fails
/// a read that meets one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum FinAckPolicy {
    /// At once.
    #[default]
    Always,
    /// Only once our own FIN went out: a peer that half-closed and still reads sees none before
    /// the end of what it reads.
    AfterOwnFin,
    /// Never.
    Never,
}

/// What happens when a peer without credit sends more than an application reads.
///
/// Such a peer has one receive window for all of its substreams, so a reader that stalls costs either its own
/// substream or the time of the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum CeilingPolicy {
    /// The substream is reset with [`code::RESOURCE_LIMIT`](crate::substream::code::RESOURCE_LIMIT) and what is unread
    /// is dropped. Its neighbours do not notice. A writer in go-libp2p that does nothing but write does not notice
    /// either, and waits for ever: go processes a reset when somebody reads.
    #[default]
    Reset,
    /// The receive window of the connection shuts: nothing more arrives on any of its substreams,
    /// and none can be opened, until the reader has made room. Nothing is lost. Only over carriers
    /// that can leave data unread, of which the direct engine is one; elsewhere as
    /// [`CeilingPolicy::Reset`].
    Backpressure,
}

/// Limits and timeouts of a connection and its substreams.
///
/// Change the fields of a [`Config::default`]. [`Config::validate`] is called wherever an endpoint, a listener or a
/// dial takes one; [`Connection::over`](crate::Connection::over) leaves that to its caller.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Config {
    /// How long a delivered FIN waits for its FIN_ACK. Default: 10 s, as go-libp2p, js-libp2p and
    /// litep2p wait.
    pub fin_ack_timeout: Duration,
    /// How long a dropped substream, or a closing connection, may take to deliver what was
    /// accepted. Default: 10 s. Answers peers that never read, and so would keep state alive.
    pub teardown_timeout: Duration,
    /// How long opening and negotiating a substream may take, in either direction, not counting the
    /// wait for room at the peer ([`Connection::open`](crate::Connection::open)). Default: 5 s, as
    /// litep2p. Answers peers that open channels and say nothing. A peer that says nothing for as
    /// long counts as one that knows no credit.
    pub open_timeout: Duration,
    /// Payload bytes that a peer may send on a substream before the application reads them, at
    /// first. Default: 1 MiB, 84 Mbit/s at a round trip of 100 ms. At most 2^32 - 1. Until 8 KiB of
    /// a substream were read it is 1/512 of what is left of [`Self::connection_ceiling`] (64 KiB by
    /// default), at least 16 KiB.
    ///
    /// Doubles, up to [`Self::max_receive_window`], when the peer uses up one grant before the next
    /// reaches it although the application keeps up: then the window is shorter than the
    /// bandwidth-delay product of the path. What all substreams of a connection are granted
    /// together is bounded by [`Self::connection_ceiling`].
    pub receive_window: u32,
    /// What [`Self::receive_window`] may grow to. Default: 16 MiB, 1.3 Gbit/s at a round trip of
    /// 100 ms. Without effect if it is smaller.
    pub max_receive_window: u32,
    /// Unread bytes at which a substream is reset whose peer knows no credit (one that does is
    /// bounded by what it was granted). Default: 4 MiB, the
    /// data of a 112 ms pause at 300 Mbit/s. Answers readers that stall.
    pub substream_ceiling: usize,
    /// What happens to a peer without credit whose substream is not read and has reached its ceiling. Default:
    /// [`CeilingPolicy::Reset`].
    pub ceiling_policy: CeilingPolicy,
    /// Unread bytes of all substreams of a connection together. Default: 32 MiB.
    ///
    /// Toward a peer that knows credit this is what the substreams are granted together, beside
    /// 32 KiB that each may always be granted; the more is granted already, the less each new one
    /// gets. Without credit, each substream may hold no more than what is left of it, so that the
    /// largest is reset first.
    pub connection_ceiling: usize,
    /// Payload bytes accepted on a substream that the carrier has not taken. Default: 64 KiB.
    pub send_buffer: usize,
    /// Longest frame sent to a peer that has shown credit. Default and maximum: 16 384 bytes.
    pub max_frame: usize,
    /// Longest frame sent to any other peer. Default: 4 096 bytes: go-libp2p reads a message that
    /// begins with a length prefix into a buffer of that size and resets the substream if it does
    /// not fit; libp2p-webrtc 0.10 reads at most 8 192 bytes. The smaller size costs nothing
    /// measurable.
    pub max_frame_without_credit: usize,
    /// Substreams that the peer may have open at once. Default: 256, as yamux
    /// and go-libp2p. Bounds in the same way those that nobody has accepted, which may have ended meanwhile.
    ///
    /// A peer that knows credit is told how many it may open, and its
    /// [`Connection::open`](crate::Connection::open) waits until there is room, as with MAX_STREAMS of QUIC. What
    /// any other peer opens beyond it is reset with
    /// [`code::RESOURCE_LIMIT`](crate::substream::code::RESOURCE_LIMIT).
    pub max_inbound_substreams: usize,
    /// How long an inbound substream waits for [`Connection::accept`](crate::Connection::accept), once its
    /// protocol is agreed on, before it is reset with
    /// [`code::RESOURCE_LIMIT`](crate::substream::code::RESOURCE_LIMIT). Default: 30 s. Answers
    /// applications that have stopped accepting, and whose peers would wait for ever. One that the
    /// peer has ended meanwhile can be accepted for as long, and read to its end.
    pub accept_timeout: Duration,
    /// Inbound substreams that the peer may reset or close before the application has written anything on them, spoil
    /// by breaking the protocol, or open beyond what it was told, within [`Config::UNUSED_WINDOW`]. Those that are
    /// refused for want of room count one for sixteen, a FIN by itself not at all. With more the
    /// connection is closed with
    /// [`ConnectionError::TooManyUnusedSubstreams`](crate::ConnectionError::TooManyUnusedSubstreams).
    /// Default: 1 000. Answers peers that open and reset in a loop, as the "rapid reset" of HTTP/2
    /// (CVE-2023-44487), which no limit on substreams that are open at once notices.
    pub max_unused_substreams: u32,
    /// Frames without effect that the peer may send on a substream within a second: empty ones, flags that are unknown or
    /// change nothing, limits that raise nothing, data behind FIN. With more the substream is reset with
    /// [`code::RATE_LIMITED`](crate::substream::code::RATE_LIMITED). Four times as many in all, with those of no substream
    /// and without eight that are free on each, or a fifth such substream within [`Config::UNUSED_WINDOW`], end the
    /// connection with
    /// [`ConnectionError::TooManyFramesWithoutEffect`](crate::ConnectionError::TooManyFramesWithoutEffect).
    /// Default: 1 000, at least 16. Answers peers that make this side work with frames of one byte; known peers
    /// send a few on each substream.
    pub max_frames_without_effect: u32,
    /// How long a connection may have no substream before it is closed, as
    /// [`ConnectionError::Idle`](crate::ConnectionError::Idle). Default: `None`, never: a dead peer is
    /// noticed in any case, by its carrier. Answers peers that connect and then want nothing.
    pub idle_timeout: Option<Duration>,
    /// When FIN is answered. Default: always. [`Connection::set_fin_ack`](crate::Connection::set_fin_ack)
    /// changes it later.
    pub fin_ack: FinAckPolicy,
    /// Whether the peer is expected to answer FIN with FIN_ACK. Default: yes, as the specification has it. Where a
    /// peer is known not to (rust-libp2p's `libp2p-webrtc`), [`Substream::finish`](crate::Substream::finish)
    /// succeeds as [`Finished::Delivered`](crate::substream::Finished::Delivered) when the peer's transport has
    /// everything, in place of waiting for `fin_ack_timeout` and failing.
    /// [`Connection::expect_fin_ack`](crate::Connection::expect_fin_ack) changes it later.
    pub expect_fin_ack: bool,
    /// How substreams find out which protocol they carry. Default: multistream-select.
    pub negotiation: Negotiation,
    /// Protocols accepted on substreams that the peer opens, in any order: of several that both
    /// sides speak the opener chooses.
    pub protocols: Vec<String>,
    /// Is told what happens. Default: nobody.
    pub events: Option<Arc<dyn Events>>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            fin_ack_timeout: Duration::from_secs(10),
            teardown_timeout: Duration::from_secs(10),
            open_timeout: Duration::from_secs(5),
            receive_window: 1024 * 1024,
            max_receive_window: 16 * 1024 * 1024,
            substream_ceiling: 4 * 1024 * 1024,
            ceiling_policy: CeilingPolicy::default(),
            connection_ceiling: 32 * 1024 * 1024,
            send_buffer: 64 * 1024,
            max_frame: MAX_FRAME,
            max_frame_without_credit: 4096,
            max_inbound_substreams: 256,
            accept_timeout: Duration::from_secs(30),
            max_unused_substreams: 1000,
            max_frames_without_effect: 1000,
            idle_timeout: None,
            fin_ack: FinAckPolicy::default(),
            expect_fin_ack: true,
            negotiation: Negotiation::default(),
            protocols: Vec::new(),
            events: None,
        }
    }
}

/// A combination of settings that can not work.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A value is outside its range.
    #[error("{name} is {value}, outside of {min} to {max}")]
    OutOfRange {
        /// The field.
        name: &'static str,
        /// Its value.
        value: usize,
        /// Smallest value that works.
        min: usize,
        /// Largest value that works.
        max: usize,
    },
    /// A timeout is zero.
    #[error("{name} is zero")]
    ZeroTimeout {
        /// The field.
        name: &'static str,
    },
}

impl ConfigError {
    pub(crate) fn require_range(
        name: &'static str,
        value: usize,
        range: RangeInclusive<usize>,
    ) -> Result<(), Self> {
        if range.contains(&value) {
            return Ok(());
        }
        let (min, max) = range.into_inner();
        Err(Self::OutOfRange {
            name,
            value,
            min,
            max,
        })
    }

    pub(crate) fn require_time(name: &'static str, value: Duration) -> Result<(), Self> {
        if value.is_zero() {
            return Err(Self::ZeroTimeout { name });
        }
        Ok(())
    }
}

impl Config {
    /// The time over which [`Config::max_unused_substreams`] is counted.
    pub const UNUSED_WINDOW: Duration = Duration::from_secs(10);

    /// Frames without effect that an honest peer may send: flags cross, and peers repeat some.
    const MIN_WITHOUT_EFFECT: usize = 16;

    /// Smallest frame worth its header.
    const MIN_FRAME: usize = 64;

    /// Checks that the settings can work together.
    pub fn validate(&self) -> Result<(), ConfigError> {
        ConfigError::require_time("fin_ack_timeout", self.fin_ack_timeout)?;
        ConfigError::require_time("teardown_timeout", self.teardown_timeout)?;
        ConfigError::require_time("open_timeout", self.open_timeout)?;
        ConfigError::require_time("accept_timeout", self.accept_timeout)?;
        if let Some(idle_timeout) = self.idle_timeout {
            ConfigError::require_time("idle_timeout", idle_timeout)?;
        }
        let window = usize::try_from(self.receive_window).unwrap_or(usize::MAX);
        let credit = window.max(INITIAL_CREDIT as usize);
        // A peer that stays within its credit must never meet the ceiling, however it cuts: the
        // worst are payloads just too long to be copied together, each behind a tiny one.
        let least_ceiling = credit.saturating_add(credit / 4 + 1024);
        for (name, value, range) in [
            ("max_frame", self.max_frame, Self::MIN_FRAME..=MAX_FRAME),
            (
                "max_frame_without_credit",
                self.max_frame_without_credit,
                Self::MIN_FRAME..=MAX_FRAME,
            ),
            (
                "max_frames_without_effect",
                self.max_frames_without_effect as usize,
                Self::MIN_WITHOUT_EFFECT..=usize::MAX,
            ),
            ("receive_window", window, 1024..=usize::MAX),
            (
                "substream_ceiling",
                self.substream_ceiling,
                least_ceiling..=usize::MAX,
            ),
            (
                "connection_ceiling",
                self.connection_ceiling,
                self.substream_ceiling..=usize::MAX,
            ),
            ("send_buffer", self.send_buffer, 1..=usize::MAX),
        ] {
            ConfigError::require_range(name, value, range)?;
        }
        Ok(())
    }
}
