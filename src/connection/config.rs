//! Every limit of a connection, with its purpose or the attack that it answers
//! (docs/reliability.md).

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use crate::events::Events;
use crate::message::MAX_FRAME;
use crate::substream::INITIAL_CREDIT;

/// How the protocol of a substream is negotiated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Negotiation {
    /// multistream-select on every substream, as every libp2p peer does; with a peer that runs this
    /// library, labels take its place where [`Config::lazy_negotiation`] allows it.
    #[default]
    MultistreamSelect,
    /// The label of the data channel names the protocol; for peers that run this library. Saves a
    /// round trip.
    ChannelLabel,
    /// None: substreams are handed over as they are. For stacks with their own negotiation.
    None,
}

/// When FIN is answered with FIN_ACK.
///
/// The specification says SHOULD, and js-libp2p waits for FIN_ACK. rust-libp2p does not support it
/// and fails a read that receives one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum FinAckPolicy {
    /// At once.
    #[default]
    Always,
    /// Only once our own FIN was sent: a peer that has half-closed and still reads receives no
    /// FIN_ACK before the end of its stream.
    AfterOwnFin,
    /// Never.
    Never,
}

/// What happens when a peer without support for credit sends more than the application reads.
///
/// Such a peer has one receive window for all of its substreams, so a stalled reader costs either
/// its own substream or the progress of the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum CeilingPolicy {
    /// The substream is reset with [`code::RESOURCE_LIMIT`](crate::substream::code::RESOURCE_LIMIT)
    /// and its unread data is dropped. Other substreams are not affected. A go-libp2p writer that
    /// only writes does not notice and waits forever: go-libp2p processes a reset when the stream
    /// is read.
    #[default]
    Reset,
    /// The receive window of the connection closes: nothing more arrives on any of its substreams,
    /// and none can be opened, until the reader has made room. No data is lost. Requires a carrier
    /// that can leave data unread, such as the direct engine; other carriers behave as with
    /// [`CeilingPolicy::Reset`].
    Backpressure,
}

/// Limits and timeouts of a connection and its substreams.
///
/// Change the fields of a [`Config::default`]. Endpoints, listeners and dials call
/// [`Config::validate`]; callers of [`Connection::over`](crate::Connection::over) have to do it
/// themselves.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Config {
    /// Time that a delivered FIN waits for its FIN_ACK. Default: 10 s, as in go-libp2p, js-libp2p
    /// and litep2p.
    pub fin_ack_timeout: Duration,
    /// Time that a dropped substream, or a closing connection, has to deliver accepted data.
    /// Default: 10 s. Bounds the state kept for peers that never read.
    pub teardown_timeout: Duration,
    /// Time for opening and negotiating a substream, in either direction, without the wait for room
    /// at the peer ([`Connection::open`](crate::Connection::open)). Default: 5 s, as in litep2p.
    /// Bounds the state kept for peers that open channels and stay silent. A peer that is silent
    /// for as long is assumed not to support credit.
    pub open_timeout: Duration,
    /// Payload bytes that a peer may initially send on a substream before the application reads
    /// them. Default: 1 MiB, 84 Mbit/s at a round-trip time of 100 ms. At most 2^32 - 1. Until 8
    /// KiB of a substream were read, the window is 1/256 of what
    /// [`Self::connection_ceiling`] leaves to it (64 KiB by default), at least 16 KiB.
    ///
    /// Doubles, up to [`Self::max_receive_window`], when the peer uses up one grant before the next
    /// arrives although the application keeps up: the window is then shorter than the
    /// bandwidth-delay product of the path. [`Self::connection_ceiling`] bounds the sum over all
    /// substreams of a connection.
    pub receive_window: u32,
    /// Upper bound of the growth of [`Self::receive_window`]. Default: 16 MiB, 1.3 Gbit/s at a
    /// round-trip time of 100 ms. No effect if it is smaller.
    pub max_receive_window: u32,
    /// Unread bytes at which a substream is reset if its peer does not support credit (other peers
    /// are bounded by their grants). Default: 4 MiB, the data of a pause of 112 ms at 300 Mbit/s.
    /// Bounds the memory of stalled readers.
    pub substream_ceiling: usize,
    /// What happens when the unread bytes of a peer without credit reach the ceiling. Default:
    /// [`CeilingPolicy::Reset`].
    pub ceiling_policy: CeilingPolicy,
    /// Unread bytes of all substreams of a connection together. Default: 32 MiB.
    ///
    /// For a peer that supports credit this bounds the sum of the grants, except for what each
    /// substream may always be granted, which is not counted: 16 KiB until 8 KiB of it were read,
    /// then 32 KiB. Beyond that a grant takes at most half of what is left to the substream. One of
    /// which less than 1/32 of the ceiling was read leaves half of the ceiling to others, and half
    /// of that for each 16 times as much: credit can not be revoked, and substreams that idle with
    /// their last grant must not take everything from those that carry data.
    ///
    /// Without credit, a substream may hold no more than what is left of this ceiling, so that the
    /// largest is reset first.
    pub connection_ceiling: usize,
    /// Payload bytes accepted on a substream that the carrier has not taken yet. Default: 64 KiB.
    pub send_buffer: usize,
    /// Length of the longest frame sent to a peer that has sent credit. Default and maximum: 16 384
    /// bytes.
    pub max_frame: usize,
    /// Length of the longest frame sent to any other peer. Default: 4 096 bytes: go-libp2p reads a
    /// message that begins with a length prefix into a buffer of that size and resets the substream
    /// if it does not fit; libp2p-webrtc 0.10 reads at most 8 192 bytes. The smaller size has no
    /// measurable cost.
    pub max_frame_without_credit: usize,
    /// Substreams that the peer may have open at once. Default: 256, as in yamux and go-libp2p.
    /// Also bounds the unaccepted substreams, which may have ended meanwhile.
    ///
    /// A peer that supports credit receives this limit, and its
    /// [`Connection::open`](crate::Connection::open) waits until there is room, as with QUIC's
    /// MAX_STREAMS. Substreams that any other peer opens beyond it are reset with
    /// [`code::RESOURCE_LIMIT`](crate::substream::code::RESOURCE_LIMIT).
    pub max_inbound_substreams: usize,
    /// Time that an inbound substream waits for [`Connection::accept`](crate::Connection::accept),
    /// once its protocol is negotiated, before it is reset with
    /// [`code::RESOURCE_LIMIT`](crate::substream::code::RESOURCE_LIMIT). Default: 30 s. Answers
    /// applications that have stopped accepting and whose peers would wait forever. A substream
    /// that the peer has ended meanwhile can be accepted for as long, and read to its end.
    pub accept_timeout: Duration,
    /// Inbound substreams that the peer may, within [`Config::UNUSED_WINDOW`], reset or close
    /// before the application has written to them, break by a protocol violation, or open beyond
    /// the announced limit. Sixteen substreams refused for lack of room count as one; a FIN alone
    /// does not count. Above this number the connection is closed with
    /// [`TooManyUnusedSubstreams`](crate::ConnectionError::TooManyUnusedSubstreams).
    /// Default: 1 000. Answers peers that open and reset in a loop, like the "rapid reset" of
    /// HTTP/2 (CVE-2023-44487), which no limit on concurrent substreams detects.
    pub max_unused_substreams: u32,
    /// Frames without effect that the peer may send on a substream within a second: empty frames,
    /// unknown or repeated flags, limits that raise nothing, data after FIN. Above this number the
    /// substream is reset with [`code::RATE_LIMITED`](crate::substream::code::RATE_LIMITED). The
    /// connection is closed with
    /// [`TooManyFramesWithoutEffect`](crate::ConnectionError::TooManyFramesWithoutEffect)
    /// by four times as many in all (counting those about the connection, and not the eight that
    /// are free on each substream), or by a fifth such substream within [`Config::UNUSED_WINDOW`].
    /// Default: 1 000, at least 16. Answers peers that make this side work with frames of one byte;
    /// known peers send a few on each substream.
    pub max_frames_without_effect: u32,
    /// Time that a connection may have no substreams before it is closed with
    /// [`ConnectionError::Idle`](crate::ConnectionError::Idle). Default: `None`, unlimited: the
    /// carrier detects a dead peer in any case. Answers peers that connect and then do nothing.
    pub idle_timeout: Option<Duration>,
    /// When FIN is answered with FIN_ACK. Default: always.
    /// [`Connection::set_fin_ack`](crate::Connection::set_fin_ack) changes it later.
    pub fin_ack: FinAckPolicy,
    /// Whether the peer is expected to answer FIN with FIN_ACK. Default: yes, as the specification
    /// requires. Where a peer is known not to (rust-libp2p's `libp2p-webrtc`),
    /// [`Substream::finish`](crate::Substream::finish) succeeds with
    /// [`Finished::Delivered`](crate::substream::Finished::Delivered) once the peer's transport has
    /// everything, instead of waiting for `fin_ack_timeout` and failing.
    /// [`Connection::expect_fin_ack`](crate::Connection::expect_fin_ack) changes it later.
    pub expect_fin_ack: bool,
    /// How the protocol of a substream is negotiated. Default: multistream-select.
    /// [`DialOptions`](crate::endpoint::DialOptions) and
    /// [`AcceptOptions`](crate::endpoint::AcceptOptions) may replace it for one connection.
    pub negotiation: Negotiation,
    /// With [`Negotiation::MultistreamSelect`]: whether this side names a single protocol in the
    /// label of the channel instead, with a peer that has announced in Noise that it takes that, as
    /// only this library does. It saves a round trip for each substream; a refused protocol is then
    /// an error of the first read instead of one of the open. Default: yes.
    pub lazy_negotiation: bool,
    /// Protocols accepted on substreams that the peer opens, in any order: the opener chooses among
    /// those that both sides support.
    pub protocols: Vec<String>,
    /// Receives the events of the connection. Default: none.
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
            lazy_negotiation: true,
            protocols: Vec::new(),
            events: None,
        }
    }
}

/// An invalid combination of settings.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A value is outside its range.
    #[error("{name} is {value}, not in the range {min} to {max}")]
    OutOfRange {
        /// The field.
        name: &'static str,
        /// Its value.
        value: usize,
        /// The smallest valid value.
        min: usize,
        /// The largest valid value.
        max: usize,
    },
    /// A timeout is zero.
    #[error("{name} must not be zero")]
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
    /// The window over which [`Config::max_unused_substreams`] counts.
    pub const UNUSED_WINDOW: Duration = Duration::from_secs(10);

    /// Frames without effect that an honest peer sends: flags cross, and peers repeat some.
    const MIN_WITHOUT_EFFECT: usize = 16;

    /// The smallest frame that is worth its header.
    const MIN_FRAME: usize = 64;

    /// Whether the label of a channel may name the protocol.
    pub(crate) fn takes_labels(&self) -> bool {
        self.negotiation != Negotiation::None
    }

    /// Checks a receive window against the other settings.
    pub(super) fn check_receive_window(&self, window: u32) -> Result<(), ConfigError> {
        let window = usize::try_from(window).unwrap_or(usize::MAX);
        ConfigError::require_range("receive_window", window, 1024..=usize::MAX)?;
        let credit = window.max(INITIAL_CREDIT as usize);
        // A peer within its credit must never reach the ceiling, however it frames its data. The
        // worst case is payloads just too long to be coalesced, each after a tiny one.
        let least_ceiling = credit.saturating_add(credit / 4 + 1024);
        let range = least_ceiling..=usize::MAX;
        ConfigError::require_range("substream_ceiling", self.substream_ceiling, range)
    }

    /// Checks a ceiling of the connection against the other settings.
    pub(super) fn check_connection_ceiling(&self, ceiling: usize) -> Result<(), ConfigError> {
        let range = self.substream_ceiling..=usize::MAX;
        ConfigError::require_range("connection_ceiling", ceiling, range)
    }

    /// Checks that the settings are consistent.
    pub fn validate(&self) -> Result<(), ConfigError> {
        ConfigError::require_time("fin_ack_timeout", self.fin_ack_timeout)?;
        ConfigError::require_time("teardown_timeout", self.teardown_timeout)?;
        ConfigError::require_time("open_timeout", self.open_timeout)?;
        ConfigError::require_time("accept_timeout", self.accept_timeout)?;
        if let Some(idle_timeout) = self.idle_timeout {
            ConfigError::require_time("idle_timeout", idle_timeout)?;
        }
        self.check_receive_window(self.receive_window)?;
        self.check_connection_ceiling(self.connection_ceiling)?;
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
            ("send_buffer", self.send_buffer, 1..=usize::MAX),
        ] {
            ConfigError::require_range(name, value, range)?;
        }
        Ok(())
    }
}
