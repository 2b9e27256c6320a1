//! The interface below the substreams: ordered, reliable channels that carry frames.
//!
//! A [`Carrier`] is driven by one task, the driver of a [`Connection`](crate::Connection). It does
//! its input, output and timers inside [`Carrier::poll_event`] and never waits for the reader of
//! what it delivers.

use std::fmt;
use std::net::SocketAddr;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;

use crate::error::ConnectionError;
use crate::message::Message;

/// Identifier of a channel within one carrier.
///
/// Assigned by the carrier and never reused during its life, whatever the stream ids on the wire
/// are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChannelId(u64);

impl ChannelId {
    /// Makes an identifier; for implementations of [`Carrier`].
    pub const fn new(id: u64) -> Self {
        Self(id)
    }

    /// The identifier as a number.
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for ChannelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a carrier reports to the driver of its connection.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum CarrierEvent {
    /// The peer opened a channel with this label.
    Opened {
        /// The new channel.
        channel: ChannelId,
        /// Its label; empty for libp2p substreams.
        label: String,
    },
    /// A channel has data for [`Carrier::read`].
    Readable {
        /// The channel.
        channel: ChannelId,
    },
    /// The carrier has room again: every write that returned [`Written::Busy`] may be retried.
    Writable,
    /// Everything written to a channel has reached the peer's transport; the answer to
    /// [`Carrier::notify_delivered`]. A carrier without feedback from the peer's transport, such as
    /// a WebSocket, reports it once its socket has taken everything.
    Delivered {
        /// The channel.
        channel: ChannelId,
    },
    /// The carrier has measured the round-trip time.
    RoundTrip {
        /// The round-trip time.
        time: Duration,
    },
    /// The carrier nears the end of its life: close the connection in an orderly way, for this
    /// cause.
    Expiring {
        /// What [`Connection::closed`](crate::Connection::closed) returns.
        cause: ConnectionError,
    },
    /// The peer has sent a frame about the connection itself, by [`Carrier::write_notice`]. Also
    /// reports frames that the carrier discards, so that they are counted
    /// ([`Config::max_frames_without_effect`](crate::Config::max_frames_without_effect)).
    Notice {
        /// The frame.
        message: Message,
    },
    /// The peer closed a channel, or the close that [`Carrier::close_channel`] began is complete.
    ///
    /// Data that arrived before stays readable.
    Closed {
        /// The channel.
        channel: ChannelId,
    },
}

/// Result of a [`Carrier::write`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Written {
    /// The carrier took the frame.
    Taken,
    /// The carrier has no room; [`CarrierEvent::Writable`] follows.
    Busy,
    /// The channel is still being opened or has used up its part of the peer's window;
    /// [`CarrierEvent::Writable`] follows. Other channels are not affected.
    NotOpen,
    /// The channel is closed; no write can succeed any more.
    Closed,
}

/// The budget that a frame counts against.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Payload: refused while the carrier's send budget is used up.
    Data,
    /// Flags and credit: small and exempt from the data budget, so that a close never waits for the
    /// data of other channels.
    Control,
}

/// Messages that a carrier has exchanged with the layer below; for a WebSocket, binary messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MessageCounts {
    /// Messages handed to the layer below.
    pub sent: u64,
    /// Messages received from it.
    pub received: u64,
}

/// The path of a connection, and what the layer below has found out about it: a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct PathStats {
    /// The address of this side, as the system selects it.
    pub local: SocketAddr,
    /// The address of the peer now; it may have moved since the connection was made.
    pub remote: SocketAddr,
    /// Smoothed round-trip time (RFC 6298), once there is a sample.
    pub rtt: Option<Duration>,
    /// Least round-trip time, once there is a sample.
    pub min_rtt: Option<Duration>,
    /// Congestion window, in bytes.
    pub cwnd: u64,
    /// Bytes in flight: sent, and neither acknowledged nor taken for lost.
    pub in_flight: u64,
    /// Longest datagram that is sent at the moment, in bytes of UDP payload.
    pub mtu: u64,
    /// Bytes of data that were ever sent, with the headers of their chunks, and retransmissions.
    pub bytes_sent: u64,
    /// Bytes among them that were ever taken for lost, also those that arrived after all.
    pub bytes_lost: u64,
}

impl PathStats {
    /// A path of which only the addresses are known.
    pub fn new(local: SocketAddr, remote: SocketAddr) -> Self {
        Self {
            local,
            remote,
            rtt: None,
            min_rtt: None,
            cwnd: 0,
            in_flight: 0,
            mtu: 0,
            bytes_sent: 0,
            bytes_lost: 0,
        }
    }
}

/// Why a channel could not be opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OpenChannelError {
    /// No stream id is free.
    #[error("no stream id is free")]
    Exhausted,
    /// No stream id is free until the close of an earlier channel completes;
    /// [`CarrierEvent::Writable`] follows when one is.
    #[error("no stream id is free until a channel has closed")]
    NotNow,
    /// The label is longer than the carrier can send.
    #[error("the label of {len} bytes exceeds the limit of {max}")]
    LabelTooLong {
        /// Length of the label.
        len: usize,
        /// Length of the longest label.
        max: usize,
    },
    /// The carrier is closing or closed.
    #[error("the carrier is closed")]
    Closed,
    /// The peer is closing the connection and accepts no new channels.
    #[error("the peer is closing the connection")]
    GoingAway,
}

/// Carries frames on ordered, reliable channels.
///
/// # Contract
/// - What is written to a channel arrives complete and in order, or the channel or the carrier
///   ends. Message boundaries carry no meaning: a carrier may split and merge messages.
/// - A channel that one side closes still delivers what was written before the close.
/// - Calls never block and never wait for a consumer.
/// - [`Carrier::poll_event`] returns `Pending` only after it has sent what was written and has
///   arranged a wake-up for everything that can happen next.
/// - After it has returned an error, data that arrived before can still be [read](Carrier::read).
///   Every other call is harmless and does nothing.
pub trait Carrier: Send {
    /// Drives input, output and timers, and returns the next event.
    fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Result<CarrierEvent, ConnectionError>>;

    /// Like [`Carrier::poll_event`], but for events that are queued already: a carrier need neither
    /// receive nor send here, and arranges no wake-up. The driver takes the first event of a round
    /// from `poll_event` and the others from here, so that the frames it writes while handling them
    /// leave together with their acknowledgement. Defaults to `poll_event`.
    fn poll_queued_event(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<CarrierEvent, ConnectionError>> {
        self.poll_event(cx)
    }

    /// Opens a channel. It can be written to at once; writes may return [`Written::NotOpen`] at
    /// first.
    fn open(&mut self, label: &str) -> Result<ChannelId, OpenChannelError>;

    /// Hands one encoded frame to the carrier, entirely or not at all. The carrier may add fields
    /// that identify the channel, so `frame` has to be exactly one frame.
    fn write(&mut self, channel: ChannelId, frame: &[u8], class: Class) -> Written;

    /// Like [`Carrier::write`], with the frame in consecutive pieces.
    ///
    /// Used for payload in a buffer that the application owns. A carrier that copies frames can
    /// copy the pieces directly; this default joins them first.
    fn write_vectored(&mut self, channel: ChannelId, pieces: &[&[u8]], class: Class) -> Written {
        self.write(channel, &pieces.concat(), class)
    }

    /// The next bytes of a channel, split anywhere; `None` if none have arrived.
    fn read(&mut self, channel: ChannelId) -> Option<Bytes>;

    /// Whether [`CarrierEvent::Delivered`] means that the peer's transport has received the data.
    /// Where it only means that the local socket has taken it, `shutdown()` succeeds with FIN_ACK
    /// alone.
    fn confirms_delivery(&self) -> bool {
        true
    }

    /// Requests one [`CarrierEvent::Delivered`] for the time when everything written to the channel
    /// so far has reached the peer; at once if it has. If the peer closes the channel meanwhile,
    /// [`CarrierEvent::Closed`] comes after the answer, or without one if something was dropped.
    fn notify_delivered(&mut self, channel: ChannelId);

    /// Closes a channel after everything written to it has been sent; nothing more is read from it.
    fn close_channel(&mut self, channel: ChannelId);

    /// Closes a channel after a RESET_STREAM. Some peers lose a message that the close of its
    /// channel follows too closely; a carrier to such peers leaves the close to the peer for a
    /// while.
    fn abandon_channel(&mut self, channel: ChannelId) {
        self.close_channel(channel);
    }

    /// Length of the longest message that the carrier can send, in bytes.
    fn max_message(&self) -> usize;

    /// Message bytes per packet, where the carrier fragments messages into packets.
    ///
    /// Full frames then have a length that fills their packets: packets of equal length go to the
    /// kernel in one call (UDP GSO), and a shorter one ends the batch.
    fn packet_payload(&self) -> Option<usize> {
        None
    }

    /// Whether an unread channel applies backpressure to its sender. Where this is `false` the
    /// driver reads at once and bounds the unread bytes itself.
    fn holds_back_unread(&self) -> bool {
        false
    }

    /// Lets an unread channel close the receive window of all channels, where the carrier can not
    /// apply backpressure to that channel alone any more. By default the carrier then requires
    /// everything to be read.
    fn allow_shut_window(&mut self) {}

    /// Whether both ends of this carrier always support credit, so that it need not be detected:
    /// every substream then begins with a `max_data`.
    fn knows_credit(&self) -> bool {
        false
    }

    /// Whether frames about the connection itself reach the peer. A peer that supports credit
    /// understands them.
    fn carries_notices(&self) -> bool {
        false
    }

    /// Hands over one encoded frame about the connection itself, which belongs to no channel, such
    /// as the substream limit ([`Message::max_substreams`]). Only for peers that support credit.
    fn write_notice(&mut self, _frame: &[u8]) -> Written {
        Written::Closed
    }

    /// Messages sent and received, for [`ConnectionStats`](crate::ConnectionStats). The connection
    /// counts frames itself; one message can hold several. Zeros where a carrier does not count.
    fn message_counts(&self) -> MessageCounts {
        MessageCounts::default()
    }

    /// The path, for [`ConnectionStats`](crate::ConnectionStats). Called often: it has to be cheap.
    /// Default: `None`, for carriers that know nothing of it.
    fn path(&self) -> Option<PathStats> {
        None
    }

    /// The connection begins to close for this cause: existing substreams end and new ones are
    /// refused. A carrier that can announces this to the peer, so that the peer opens none.
    fn begin_close(&mut self, _cause: &ConnectionError) {}

    /// Sends what is queued, notifies the peer and ends. The caller bounds the time.
    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<()>;
}
