//! The states of a substream as pure transitions: an [`Event`] in, the next [`State`] and the
//! [`Effects`] to carry out next. No I/O, no clock, no wakers.
//!
//! Write half (docs/wire.md section 2):
//!
//! ```text
//!         Shutdown         FinWritten         FinDelivered
//!   Open ─────────► Closing ────────► FinSent ────────────► FinDelivered
//!    │                 │                 │ FinAck               │ FinAck
//!    │ StopSending     │ StopSending     ├──────────────────────┴───────► Finished(Acked)
//!    │                 │                 │ StopSending          │ StopSending
//!    │                 │                 ├──────────────────────┴───────► Finished(Stopped)
//!    │                 │                 │ FinAckTimeout        │ FinAckTimeout
//!    │                 ▼                 └──────────────────────┴───────► Finished(TimedOut)
//!    ├─────────────► Stopped                                    │ NoFinAckExpected
//!    │                 ▲ │ FinWritten                           └───────► Finished(Delivered)
//!    │     StopSending │ └──────────────────────────────────────────────► Finished(Discarded)
//!    └─────────────► CutOff
//!  ConnectionClosing
//! ```
//!
//! Read half:
//!
//! ```text
//!            Fin                     FinAckWritten
//!   Open ───────────► FinReceived ─────────────────► FinAcked
//!    │ Stop                ▲
//!    ▼        StopWritten  │ Fin
//!   StopOwed ───────────► StopSent
//! ```
//!
//! Channel, above both halves:
//!
//! ```text
//!     Reset, Violation         ResetWritten
//!   Open ──────────► ResetOwed ─────────────► ResetLocally
//!    ├─ CutOffDrained ► ResetOwed         (only while the write half is CutOff)
//!    ├─ ResetStream, CutOffByPeer ► ResetByPeer
//!    ├─ ChannelClosed ► Closed            (both halves complete, or the peer left early)
//!    └─ CarrierLost ──► Lost
//! ```

/// Write half of a substream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WriteState {
    /// Writes are accepted.
    Open,
    /// Shut down: new writes are refused, what was accepted drains, then FIN goes out.
    Closing,
    /// The connection closes before the application has ended the stream: new writes are refused,
    /// what was accepted drains, then RESET_STREAM goes out. FIN would make a part look like the
    /// whole.
    CutOff,
    /// The peer sent STOP_SENDING before our FIN: the queue is discarded, FIN still follows.
    Stopped,
    /// The carrier took the FIN.
    FinSent,
    /// The peer's transport has the FIN and everything before it; FIN_ACK is awaited.
    FinDelivered,
    /// Complete.
    Finished(FinishedAs),
}

/// How a write half ended that sent its FIN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FinishedAs {
    /// FIN_ACK arrived.
    Acked,
    /// The peer's transport has everything, and the peer is known to send no FIN_ACK.
    Delivered,
    /// No FIN_ACK within the configured time.
    TimedOut,
    /// The peer sent STOP_SENDING after everything had gone out.
    Stopped,
    /// The peer sent STOP_SENDING before that, and the rest was discarded.
    Discarded,
}

/// Read half of a substream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ReadState {
    /// The peer may send.
    Open,
    /// The application stopped reading; STOP_SENDING has yet to go out.
    StopOwed,
    /// STOP_SENDING went out; what still arrives is discarded until FIN.
    StopSent,
    /// FIN arrived; FIN_ACK has yet to go out. Derived from here by the driver, so that it can not
    /// be lost to a full queue.
    FinReceived,
    /// Complete: FIN arrived and was acknowledged.
    FinAcked,
}

/// What became of the data channel as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ChannelState {
    /// Usable.
    Open,
    /// Reset by the application or by a protocol error; RESET_STREAM has yet to go out.
    ResetOwed,
    /// Reset by us, and told to the peer.
    ResetLocally,
    /// The peer sent RESET_STREAM.
    ResetByPeer,
    /// The channel was closed.
    Closed,
    /// The carrier died.
    Lost,
}

/// The whole state of a substream: three bytes, changed as one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct State {
    pub(crate) write: WriteState,
    pub(crate) read: ReadState,
    pub(crate) channel: ChannelState,
}

/// What happens to a substream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Event {
    // Local operations.
    /// The application shut the write half down, or dropped it.
    Shutdown,
    /// The application reads no more.
    Stop,
    /// The application, or a limit, ends both halves at once.
    Reset,
    /// The peer broke the framing or the order of flags: as [`Event::Reset`], but what was received
    /// before stays readable.
    Violation,
    /// The application closes the connection.
    ConnectionClosing,
    // What the peer sent.
    /// FIN.
    Fin,
    /// FIN_ACK.
    FinAck,
    /// STOP_SENDING.
    StopSending,
    /// RESET_STREAM.
    ResetStream,
    /// RESET_STREAM because the peer closes the connection: what it sent before stays readable.
    CutOffByPeer,
    /// The data channel was closed, by either side.
    ChannelClosed,
    // What the driver did or saw.
    /// The carrier took all that was accepted before the connection began to close.
    CutOffDrained,
    /// The carrier took our FIN.
    FinWritten,
    /// The peer's transport has our FIN.
    FinDelivered,
    /// A peer is known to send no FIN_ACK.
    NoFinAckExpected,
    /// The carrier took our FIN_ACK, or the policy of the connection is to send none.
    FinAckWritten,
    /// The carrier took our STOP_SENDING.
    StopWritten,
    /// The carrier took our RESET_STREAM, or can not take it any more.
    ResetWritten,
    /// The FIN_ACK wait is over.
    FinAckTimeout,
    /// The carrier died.
    CarrierLost,
}

/// What to do after a transition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Effects(u8);

impl Effects {
    pub(crate) const NONE: Self = Self(0);
    /// Wake whoever waits to read.
    pub(crate) const WAKE_READER: Self = Self(1);
    /// Wake whoever waits to write, flush or finish.
    pub(crate) const WAKE_WRITERS: Self = Self(1 << 1);
    /// Drop what was accepted for sending but not handed to the carrier.
    pub(crate) const DISCARD_SEND: Self = Self(1 << 2);
    /// Drop what was received but not read.
    pub(crate) const DISCARD_RECEIVED: Self = Self(1 << 3);
    /// The driver has something to send or to tear down.
    pub(crate) const SERVICE: Self = Self(1 << 4);
    /// The peer broke the protocol: reset this substream.
    pub(crate) const PROTOCOL_ERROR: Self = Self(1 << 5);

    const WAKE_ALL: Self = Self(Self::WAKE_READER.0 | Self::WAKE_WRITERS.0);

    /// Whether all of `other` is in here.
    pub(crate) fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// What a write may do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WritePermit {
    /// Bytes are accepted.
    Allowed,
    /// The write half was shut down here.
    ShutDown,
    /// The connection closes.
    CutOff,
    /// The peer reads no more.
    Stopped,
    /// The channel has ended.
    Ended(Ended),
}

/// What a read of an empty buffer means now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ReadPermit {
    /// More may come.
    Wait,
    /// End of stream: FIN arrived, or the application itself stopped reading.
    EndOfStream,
    /// The channel has ended without FIN.
    Ended(Ended),
}

/// Why a channel has ended before its halves were complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    ResetLocally,
    ResetByPeer,
    Closed,
    Lost,
}

impl State {
    pub(crate) const INITIAL: Self = Self {
        write: WriteState::Open,
        read: ReadState::Open,
        channel: ChannelState::Open,
    };

    /// The one place where a substream changes its state.
    pub(crate) fn on(self, event: Event) -> (Self, Effects) {
        // A channel that has ended takes no more events, but for the RESET that it still owes.
        match (self.channel, event) {
            (ChannelState::Open, _) => {}
            // What came before the end stays readable, but nobody wants it any more.
            (_, Event::Stop) => return (self, Effects::DISCARD_RECEIVED),
            (ChannelState::ResetOwed, Event::ResetWritten) => {
                return (self.ended(ChannelState::ResetLocally), Effects::NONE);
            }
            (
                ChannelState::ResetOwed,
                Event::ResetStream
                | Event::CutOffByPeer
                | Event::ChannelClosed
                | Event::CarrierLost,
            ) => {
                // The peer, or the carrier, was faster: nothing is owed any more.
                return (self.ended(ChannelState::ResetLocally), Effects::SERVICE);
            }
            _ => return (self, Effects::NONE),
        }
        match event {
            Event::Shutdown
            | Event::ConnectionClosing
            | Event::FinAck
            | Event::StopSending
            | Event::FinWritten
            | Event::FinDelivered
            | Event::NoFinAckExpected
            | Event::FinAckTimeout => {
                let (write, effects) = self.write.on(event);
                (Self { write, ..self }, effects)
            }
            Event::Stop | Event::Fin | Event::FinAckWritten | Event::StopWritten => {
                let (read, effects) = self.read.on(event);
                (Self { read, ..self }, effects)
            }
            Event::Reset => (
                self.reset_here(),
                Effects::WAKE_ALL
                    .and(Effects::DISCARD_SEND)
                    .and(Effects::DISCARD_RECEIVED)
                    .and(Effects::SERVICE),
            ),
            Event::CutOffDrained if self.write == WriteState::CutOff => (
                self.ended(ChannelState::ResetOwed),
                Effects::WAKE_ALL.and(Effects::SERVICE),
            ),
            Event::Violation => (
                self.reset_here(),
                Effects::WAKE_ALL
                    .and(Effects::DISCARD_SEND)
                    .and(Effects::SERVICE),
            ),
            Event::ResetStream => {
                let effects = Effects::WAKE_ALL
                    .and(Effects::DISCARD_SEND)
                    .and(Effects::SERVICE);
                // What arrived in front of a FIN is complete: RESET takes it from nobody.
                let effects = if self.read.has_fin() {
                    effects
                } else {
                    effects.and(Effects::DISCARD_RECEIVED)
                };
                (self.ended(ChannelState::ResetByPeer), effects)
            }
            Event::CutOffByPeer => (
                self.ended(ChannelState::ResetByPeer),
                Effects::WAKE_ALL
                    .and(Effects::DISCARD_SEND)
                    .and(Effects::SERVICE),
            ),
            Event::ChannelClosed => (
                self.ended(ChannelState::Closed),
                Effects::WAKE_ALL
                    .and(Effects::DISCARD_SEND)
                    .and(Effects::SERVICE),
            ),
            Event::CarrierLost => (
                self.ended(ChannelState::Lost),
                Effects::WAKE_ALL
                    .and(Effects::DISCARD_SEND)
                    .and(Effects::SERVICE),
            ),
            Event::ResetWritten | Event::CutOffDrained => (self, Effects::NONE),
        }
    }

    /// A reset that the close of the connection is not the cause of.
    fn reset_here(self) -> Self {
        let write = match self.write {
            WriteState::CutOff => WriteState::Closing,
            write => write,
        };
        Self {
            write,
            channel: ChannelState::ResetOwed,
            ..self
        }
    }

    /// Whether the close of the connection has ended this with RESET_STREAM, or is about to.
    pub(crate) fn is_cut_off(self) -> bool {
        self.write == WriteState::CutOff
    }

    fn ended(self, channel: ChannelState) -> Self {
        Self { channel, ..self }
    }

    /// Whether both halves are complete, so that the channel is to be closed.
    pub(crate) fn is_complete(self) -> bool {
        matches!(self.write, WriteState::Finished(_)) && self.read == ReadState::FinAcked
    }

    /// How the channel ended, if it did.
    pub(crate) fn end(self) -> Option<Ended> {
        match self.channel {
            ChannelState::Open => None,
            ChannelState::ResetOwed | ChannelState::ResetLocally => Some(Ended::ResetLocally),
            ChannelState::ResetByPeer => Some(Ended::ResetByPeer),
            ChannelState::Closed => Some(Ended::Closed),
            ChannelState::Lost => Some(Ended::Lost),
        }
    }

    pub(crate) fn write_permit(self) -> WritePermit {
        match (self.write, self.end()) {
            (
                WriteState::Stopped
                | WriteState::Finished(FinishedAs::Stopped | FinishedAs::Discarded),
                _,
            ) => WritePermit::Stopped,
            (WriteState::Finished(_), _) => WritePermit::ShutDown,
            (_, Some(end)) => WritePermit::Ended(end),
            (WriteState::Open, None) => WritePermit::Allowed,
            (WriteState::CutOff, None) => WritePermit::CutOff,
            (WriteState::Closing | WriteState::FinSent | WriteState::FinDelivered, None) => {
                WritePermit::ShutDown
            }
        }
    }

    /// What a reader is told that finds nothing buffered.
    pub(crate) fn read_permit(self) -> ReadPermit {
        match (self.read, self.end()) {
            // Our reset has dropped what was unread: it must not look like the end of the stream.
            // That of a close drops nothing that came before FIN.
            (_, Some(Ended::ResetLocally)) if !self.is_cut_off() => {
                ReadPermit::Ended(Ended::ResetLocally)
            }
            (ReadState::FinReceived | ReadState::FinAcked, _) => ReadPermit::EndOfStream,
            (_, Some(end)) => ReadPermit::Ended(end),
            (ReadState::StopOwed | ReadState::StopSent, None) => ReadPermit::EndOfStream,
            (ReadState::Open, None) => ReadPermit::Wait,
        }
    }

    /// Whether what the application wrote is still to be sent.
    pub(crate) fn sends_data(self) -> bool {
        matches!(
            self.write,
            WriteState::Open | WriteState::Closing | WriteState::CutOff
        ) && self.channel == ChannelState::Open
    }

    /// Whether payload that arrives now is kept for the reader.
    pub(crate) fn keeps_payload(self) -> bool {
        self.read == ReadState::Open && self.channel == ChannelState::Open
    }
}

impl WriteState {
    fn on(self, event: Event) -> (Self, Effects) {
        let finished = |how| {
            (
                Self::Finished(how),
                Effects::WAKE_WRITERS.and(Effects::SERVICE),
            )
        };
        match (event, self) {
            (Event::Shutdown, Self::Open) => {
                (Self::Closing, Effects::WAKE_WRITERS.and(Effects::SERVICE))
            }
            (Event::ConnectionClosing, Self::Open) => {
                (Self::CutOff, Effects::WAKE_WRITERS.and(Effects::SERVICE))
            }
            (Event::StopSending, Self::Open | Self::Closing | Self::CutOff) => (
                Self::Stopped,
                Effects::WAKE_WRITERS
                    .and(Effects::DISCARD_SEND)
                    .and(Effects::SERVICE),
            ),
            // go-libp2p may never acknowledge a FIN once it has sent STOP_SENDING (row L-17).
            (Event::StopSending, Self::FinSent | Self::FinDelivered) => {
                finished(FinishedAs::Stopped)
            }
            (Event::FinWritten, Self::Closing) => (Self::FinSent, Effects::NONE),
            (Event::FinWritten, Self::Stopped) => finished(FinishedAs::Discarded),
            (Event::FinDelivered, Self::FinSent) => (Self::FinDelivered, Effects::NONE),
            (Event::NoFinAckExpected, Self::FinDelivered) => finished(FinishedAs::Delivered),
            (Event::FinAck, Self::FinSent | Self::FinDelivered) => finished(FinishedAs::Acked),
            (Event::FinAck, Self::Open | Self::Closing | Self::CutOff | Self::Stopped) => {
                (self, Effects::PROTOCOL_ERROR)
            }
            (Event::FinAckTimeout, Self::FinSent | Self::FinDelivered) => {
                finished(FinishedAs::TimedOut)
            }
            _ => (self, Effects::NONE),
        }
    }
}

impl ReadState {
    /// Whether FIN has come, behind which nothing counts.
    pub(crate) fn has_fin(self) -> bool {
        matches!(self, Self::FinReceived | Self::FinAcked)
    }

    fn on(self, event: Event) -> (Self, Effects) {
        match (event, self) {
            (Event::Fin, Self::Open | Self::StopOwed | Self::StopSent) => (
                Self::FinReceived,
                Effects::WAKE_READER.and(Effects::SERVICE),
            ),
            (Event::FinAckWritten, Self::FinReceived) => (Self::FinAcked, Effects::SERVICE),
            (Event::Stop, Self::Open) => (
                Self::StopOwed,
                Effects::WAKE_READER
                    .and(Effects::DISCARD_RECEIVED)
                    .and(Effects::SERVICE),
            ),
            // Nothing is left to stop, but what was received will not be read.
            (Event::Stop, Self::FinReceived | Self::FinAcked) => (self, Effects::DISCARD_RECEIVED),
            (Event::StopWritten, Self::StopOwed) => (Self::StopSent, Effects::NONE),
            _ => (self, Effects::NONE),
        }
    }
}

/// Packing into one word, so that a state is read and changed atomically.
impl State {
    pub(crate) fn pack(self) -> u32 {
        let write = match self.write {
            WriteState::Open => 0,
            WriteState::Closing => 1,
            WriteState::Stopped => 2,
            WriteState::FinSent => 3,
            WriteState::FinDelivered => 4,
            WriteState::Finished(FinishedAs::Acked) => 5,
            WriteState::Finished(FinishedAs::Delivered) => 6,
            WriteState::Finished(FinishedAs::TimedOut) => 7,
            WriteState::Finished(FinishedAs::Stopped) => 8,
            WriteState::Finished(FinishedAs::Discarded) => 9,
            WriteState::CutOff => 10,
        };
        let read = match self.read {
            ReadState::Open => 0,
            ReadState::StopOwed => 1,
            ReadState::StopSent => 2,
            ReadState::FinReceived => 3,
            ReadState::FinAcked => 4,
        };
        let channel = match self.channel {
            ChannelState::Open => 0,
            ChannelState::ResetOwed => 1,
            ChannelState::ResetLocally => 2,
            ChannelState::ResetByPeer => 3,
            ChannelState::Closed => 4,
            ChannelState::Lost => 5,
        };
        write | read << 8 | channel << 16
    }

    pub(crate) fn unpack(word: u32) -> Self {
        let [write, read, channel, _] = word.to_le_bytes();
        Self {
            write: match write {
                0 => WriteState::Open,
                1 => WriteState::Closing,
                2 => WriteState::Stopped,
                3 => WriteState::FinSent,
                4 => WriteState::FinDelivered,
                5 => WriteState::Finished(FinishedAs::Acked),
                6 => WriteState::Finished(FinishedAs::Delivered),
                7 => WriteState::Finished(FinishedAs::TimedOut),
                8 => WriteState::Finished(FinishedAs::Stopped),
                9 => WriteState::Finished(FinishedAs::Discarded),
                _ => WriteState::CutOff,
            },
            read: match read {
                0 => ReadState::Open,
                1 => ReadState::StopOwed,
                2 => ReadState::StopSent,
                3 => ReadState::FinReceived,
                _ => ReadState::FinAcked,
            },
            channel: match channel {
                0 => ChannelState::Open,
                1 => ChannelState::ResetOwed,
                2 => ChannelState::ResetLocally,
                3 => ChannelState::ResetByPeer,
                4 => ChannelState::Closed,
                _ => ChannelState::Lost,
            },
        }
    }
}

#[cfg(test)]
mod diagrams;
#[cfg(test)]
mod tests;
