//! The seam below the substreams: what carries frames on numbered, ordered, reliable channels.
//!
//! A [`Carrier`] is driven by one task, the driver of a [`Connection`](crate::Connection). It does
//! its input, output and timers inside [`Carrier::poll_event`] and never waits for whoever reads
//! what it delivers.

use std::fmt;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;

use crate::error::ConnectionError;
use crate::message::Message;

/// Name of a channel within one carrier.
///
/// Given by the carrier and never used twice in its life, whatever the numbers on the wire are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChannelId(u64);

impl ChannelId {
    /// Names a channel; for implementations of [`Carrier`].
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

/// What a carrier reports to the driver of its connection.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum CarrierEvent {
    /// The peer opened a channel, with this label.
    Opened {
        /// The new channel.
        channel: ChannelId,
        /// Its label; empty for libp2p substreams.
        label: String,
    },
    /// A channel has something to [`Carrier::read`].
    Readable {
        /// The channel.
        channel: ChannelId,
    },
    /// There is room again: every write that was refused as [`Written::Busy`] may be tried again.
    Writable,
    /// Everything written to a channel has reached the peer's transport, after
    /// [`Carrier::notify_delivered`]. A carrier that hears nothing of the peer's, as a WebSocket,
    /// reports it when its socket has taken everything.
    Delivered {
        /// The channel.
        channel: ChannelId,
    },
    /// The carrier has measured the time to the peer and back.
    RoundTrip {
        /// That time.
        time: Duration,
    },
    /// The carrier can not be used much longer: the connection is to be closed in an orderly way, for
    /// this cause.
    Expiring {
        /// What [`Connection::closed`](crate::Connection::closed) tells.
        cause: ConnectionError,
    },
    /// The peer has sent a frame about the connection itself, by its [`Carrier::write_notice`]. Also any frame that
    /// the carrier has no use for, so that those are counted
    /// ([`Config::max_frames_without_effect`](crate::Config::max_frames_without_effect)).
    Notice {
        /// The frame.
        message: Message,
    },
    /// A channel was closed by the peer, or its closing by [`Carrier::close_channel`] is complete.
    ///
    /// What arrived before stays readable until it was read.
    Closed {
        /// The channel.
        channel: ChannelId,
    },
}

/// What became of a [`Carrier::write`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Written {
    /// The carrier took the frame.
    Taken,
    /// The carrier has no room; [`CarrierEvent::Writable`] follows.
    Busy,
    /// This channel takes nothing yet, because it is still being opened or has used up its part of
    /// the peer's window; [`CarrierEvent::Writable`] follows. Other channels are not affected.
    NotOpen,
    /// The channel is closed: nothing can be written to it any more.
    Closed,
}

/// Which budget a frame is counted against.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Payload: refused when the carrier holds as much as it should.
    Data,
    /// Flags and credit: small, and exempt from the budget of data, so that a close is never stuck
    /// behind the data of others.
    Control,
}

/// Messages of the layer below that a carrier has sent and received; of a WebSocket the binary
/// ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MessageCounts {
    /// Messages handed to the layer below.
    pub sent: u64,
    /// Messages taken from it.
    pub received: u64,
}

/// Why a channel could not be opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OpenChannelError {
    /// No number is free for another channel.
    #[error("no channel number is free")]
    Exhausted,
    /// No number is free before the close of an earlier channel is complete;
    /// [`CarrierEvent::Writable`] follows when one is.
    #[error("every channel number is taken until a channel has closed")]
    NotNow,
    /// The label is longer than the carrier can send.
    #[error("the label of {len} bytes is longer than {max}")]
    LabelTooLong {
        /// Length of the label.
        len: usize,
        /// Longest label.
        max: usize,
    },
    /// The carrier is closing or closed.
    #[error("the carrier is closed")]
    Closed,
    /// The peer closes the connection, and takes no new channels.
    #[error("the peer is closing the connection")]
    GoingAway,
}

/// Carries frames on numbered, ordered, reliable channels.
///
/// # Contract
/// - What is written to a channel arrives complete and in order, or the channel or the carrier
///   ends. The boundaries of messages mean nothing: a carrier may cut and merge.
/// - A channel that one side closes still delivers what was written before.
/// - Calls never block and never wait for a consumer.
/// - [`Carrier::poll_event`] returns `Pending` only after it has sent what was written and has
///   arranged a wake-up for everything that can happen next.
/// - After it returned an error, what has arrived before can still be [read](Carrier::read). Every other call is
///   harmless and does nothing.
pub trait Carrier: Send {
    /// Drives input, output and timers, and returns what happened.
    fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Result<CarrierEvent, ConnectionError>>;

    /// As [`Carrier::poll_event`], of what has come already: a carrier need neither receive nor send
    /// here, and arranges no wake-up. The driver takes the first event of a round from `poll_event`
    /// and the others from here, so that what it writes while it handles them goes out together
    /// with their acknowledgement. By default the same as `poll_event`.
    fn poll_queued_event(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<CarrierEvent, ConnectionError>> {
        self.poll_event(cx)
    }

    /// Opens a channel. It can be written to at once, though it may be [`Written::Busy`] at first.
    fn open(&mut self, label: &str) -> Result<ChannelId, OpenChannelError>;

    /// Hands one encoded frame to the carrier, whole or not at all. It may add fields to it that say which
    /// channel it is of, so `frame` has to be a frame and nothing else.
    fn write(&mut self, channel: ChannelId, frame: &[u8], class: Class) -> Written;

    /// As [`Carrier::write`], with the frame in pieces that follow each other.
    ///
    /// Payload that lies in a buffer of the application comes this way. A carrier that copies what it
    /// takes copies it from the pieces; this default puts them together first.
    fn write_vectored(&mut self, channel: ChannelId, pieces: &[&[u8]], class: Class) -> Written {
        self.write(channel, &pieces.concat(), class)
    }

    /// The next bytes of a channel, cut anywhere; `None` when nothing has arrived.
    fn read(&mut self, channel: ChannelId) -> Option<Bytes>;

    /// Whether [`CarrierEvent::Delivered`] says that the peer's transport has what was written.
    /// Where it only says that a socket of this side has, `shutdown()` succeeds with FIN_ACK alone.
    fn confirms_delivery(&self) -> bool {
        true
    }

    /// Asks for one [`CarrierEvent::Delivered`] when all that was written to the channel so far
    /// has reached the peer, at once if it has.
    fn notify_delivered(&mut self, channel: ChannelId);

    /// Closes a channel after what was written to it; nothing more is read from it.
    fn close_channel(&mut self, channel: ChannelId);

    /// Closes a channel behind a RESET_STREAM. A carrier whose peers lose a message that the
    /// closing follows too closely leaves the closing to the peer for a while.
    fn abandon_channel(&mut self, channel: ChannelId) {
        self.close_channel(channel);
    }

    /// The longest message the carrier can send, in bytes.
    fn max_message(&self) -> usize;

    /// Bytes of a message that one packet carries, where the carrier cuts messages into packets.
    ///
    /// Full frames are then made so long that they fill their packets: packets of one length go
    /// to the kernel in one call (UDP GSO), and a shorter one ends the batch.
    fn packet_payload(&self) -> Option<usize> {
        None
    }

    /// Whether a channel that is not read holds its sender back. Where this is `false` the driver
    /// reads at once, and bounds the unread bytes itself.
    fn holds_back_unread(&self) -> bool {
        false
    }

    /// Lets a channel that is not read stop the sender of all channels, where the carrier can not hold back one
    /// alone any more. By default it then asks for everything to be read.
    fn allow_shut_window(&mut self) {}

    /// Whether both ends of this carrier always know credit, so that nothing has to be found out: every
    /// substream then begins with a `max_data`.
    fn knows_credit(&self) -> bool {
        false
    }

    /// Whether frames about the connection itself reach the peer, which knows them if it knows credit.
    fn carries_notices(&self) -> bool {
        false
    }

    /// Hands over one encoded frame about the connection itself, of no channel: how many substreams are accepted
    /// ([`Message::max_substreams`]). Only to a peer that knows credit.
    fn write_notice(&mut self, _frame: &[u8]) -> Written {
        Written::Closed
    }

    /// Messages sent and received, for [`ConnectionStats`](crate::ConnectionStats). Frames are
    /// counted by the connection: where one message has several there are fewer messages. Zeros
    /// where a carrier does not count.
    fn message_counts(&self) -> MessageCounts {
        MessageCounts::default()
    }

    /// The connection begins to close for this cause: substreams end, and no new ones are taken. A carrier
    /// that can tells the peer, so that it opens none.
    fn begin_close(&mut self, _cause: &ConnectionError) {}

    /// Sends what is queued, tells the peer and ends. Bounded by the caller.
    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<()>;
}
