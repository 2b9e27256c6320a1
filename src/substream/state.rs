//! The states of a substream as pure transitions: a [`SubstreamEvent`] gives the next [`State`] and
//! the [`Effects`] to carry out. No I/O, no clock, no wakers.
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
//!   StopPending ────────► StopSent
//! ```
//!
//! Channel, above both halves:
//!
//! ```text
//!     Reset, Violation         ResetWritten
//!   Open ──────────► ResetPending ──────────► ResetLocally
//!    ├─ CutOffDrained ► ResetPending         (only while the write half is CutOff)
//!    ├─ ResetStream, CutOffByPeer ► ResetByPeer
//!    ├─ ChannelClosed ► Closed            (both halves complete, or the peer left early)
//!    └─ CarrierLost ──► Lost
//! ```

/// Write half of a substream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WriteState {
    /// Writes are accepted.
    Open,
    /// Shut down: new writes are refused, accepted data drains, then FIN is sent.
    Closing,
    /// The connection closes before the application has ended the stream: new writes are refused,
    /// accepted data drains, then RESET_STREAM is sent. FIN would make a part look complete.
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

/// How a write half ended after its FIN was sent.
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
    /// The peer sent STOP_SENDING before that, and the rest, if there was any, was discarded.
    Discarded,
}

/// Read half of a substream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ReadState {
    /// The peer may send.
    Open,
    /// The application stopped reading; STOP_SENDING has to be sent.
    StopPending,
    /// STOP_SENDING was sent; data that still arrives is discarded until FIN.
    StopSent,
    /// FIN arrived; FIN_ACK has to be sent: by `connection::service`, which derives that from the
    /// state, so that it can not be lost to a full queue.
    FinReceived,
    /// Complete: FIN arrived and was acknowledged.
    FinAcked,
}

/// State of the data channel as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ChannelState {
    /// Usable.
    Open,
    /// Reset by the application or for a protocol error; RESET_STREAM has to be sent.
    ResetPending,
    /// Reset by this side; RESET_STREAM was sent.
    ResetLocally,
    /// The peer sent RESET_STREAM.
    ResetByPeer,
    /// The channel was closed.
    Closed,
    /// The carrier failed.
    Lost,
}

/// The state of a substream: three bytes, changed together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct State {
    pub(crate) write: WriteState,
    pub(crate) read: ReadState,
    pub(crate) channel: ChannelState,
}

/// Input of the state machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SubstreamEvent {
    // Local operations.
    /// The application shut the write half down, or dropped it.
    Shutdown,
    /// The application stops reading.
    Stop,
    /// The application, or a limit, ends both halves at once.
    Reset,
    /// The peer violated the framing or the order of flags: like [`SubstreamEvent::Reset`], but
    /// data received before stays readable.
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
    /// RESET_STREAM because the peer closes the connection: data that it sent before stays
    /// readable.
    CutOffByPeer,
    /// The data channel was closed, by either side.
    ChannelClosed,
    // Actions and observations of the driver.
    /// The carrier took everything that was accepted before the connection began to close.
    CutOffDrained,
    /// The carrier took our FIN.
    FinWritten,
    /// The peer's transport has our FIN.
    FinDelivered,
    /// The peer is known not to send FIN_ACK.
    NoFinAckExpected,
    /// The carrier took our FIN_ACK, or policy is to send none.
    FinAckWritten,
    /// The carrier took our STOP_SENDING.
    StopWritten,
    /// The carrier took our RESET_STREAM, or can no longer take it.
    ResetWritten,
    /// The FIN_ACK wait is over.
    FinAckTimeout,
    /// The carrier failed.
    CarrierLost,
}

/// Actions to carry out after a transition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Effects(u8);

impl Effects {
    pub(crate) const NONE: Self = Self(0);
    /// Wake the reader.
    pub(crate) const WAKE_READER: Self = Self(1);
    /// Wake the tasks that wait to write, flush or finish.
    pub(crate) const WAKE_WRITERS: Self = Self(1 << 1);
    /// Drop data that was accepted but not handed to the carrier.
    pub(crate) const DISCARD_SEND: Self = Self(1 << 2);
    /// Drop data that was received but not read.
    pub(crate) const DISCARD_RECEIVED: Self = Self(1 << 3);
    /// The driver has something to send or to clean up.
    pub(crate) const SERVICE: Self = Self(1 << 4);
    /// The peer violated the protocol: reset this substream.
    pub(crate) const PROTOCOL_ERROR: Self = Self(1 << 5);

    const WAKE_ALL: Self = Self(Self::WAKE_READER.0 | Self::WAKE_WRITERS.0);

    /// Whether all effects in `other` are set.
    pub(crate) fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// Whether a write is allowed, or why not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WritePermit {
    /// Bytes are accepted.
    Allowed,
    /// The write half was shut down.
    ShutDown,
    /// The connection closes.
    CutOff,
    /// The peer stopped reading.
    Stopped,
    /// The channel has ended.
    Ended(Ended),
}

/// Meaning of an empty receive buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ReadPermit {
    /// More data may arrive.
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

    /// The only function that changes the state of a substream.
    pub(crate) fn on(self, event: SubstreamEvent) -> (Self, Effects) {
        // A channel that has ended accepts no more events, except for the RESET_STREAM that is
        // still pending.
        match (self.channel, event) {
            (ChannelState::Open, _) => {}
            // Data from before the end stays readable, but the application does not want it any
            // more.
            (_, SubstreamEvent::Stop) => return (self, Effects::DISCARD_RECEIVED),
            (ChannelState::ResetPending, SubstreamEvent::ResetWritten) => {
                return (self.ended(ChannelState::ResetLocally), Effects::NONE);
            }
            (
                ChannelState::ResetPending,
                SubstreamEvent::ResetStream
                | SubstreamEvent::CutOffByPeer
                | SubstreamEvent::ChannelClosed
                | SubstreamEvent::CarrierLost,
            ) => {
                // The peer, or the carrier, was faster: RESET_STREAM is no longer pending.
                return (self.ended(ChannelState::ResetLocally), Effects::SERVICE);
            }
            _ => return (self, Effects::NONE),
        }
        match event {
            SubstreamEvent::Shutdown
            | SubstreamEvent::ConnectionClosing
            | SubstreamEvent::FinAck
            | SubstreamEvent::StopSending
            | SubstreamEvent::FinWritten
            | SubstreamEvent::FinDelivered
            | SubstreamEvent::NoFinAckExpected
            | SubstreamEvent::FinAckTimeout => {
                let (write, effects) = self.write.on(event);
                (Self { write, ..self }, effects)
            }
            SubstreamEvent::Stop
            | SubstreamEvent::Fin
            | SubstreamEvent::FinAckWritten
            | SubstreamEvent::StopWritten => {
                let (read, effects) = self.read.on(event);
                (Self { read, ..self }, effects)
            }
            SubstreamEvent::Reset => (
                self.reset_here(),
                Effects::WAKE_ALL
                    .and(Effects::DISCARD_SEND)
                    .and(Effects::DISCARD_RECEIVED)
                    .and(Effects::SERVICE),
            ),
            SubstreamEvent::CutOffDrained if self.write == WriteState::CutOff => (
                self.ended(ChannelState::ResetPending),
                Effects::WAKE_ALL.and(Effects::SERVICE),
            ),
            SubstreamEvent::Violation => (
                self.reset_here(),
                Effects::WAKE_ALL
                    .and(Effects::DISCARD_SEND)
                    .and(Effects::SERVICE),
            ),
            SubstreamEvent::ResetStream => {
                let effects = Effects::WAKE_ALL
                    .and(Effects::DISCARD_SEND)
                    .and(Effects::SERVICE);
                // Data before a FIN is complete: a later RESET_STREAM does not discard it.
                let effects = if self.read.has_fin() {
                    effects
                } else {
                    effects.and(Effects::DISCARD_RECEIVED)
                };
                (self.ended(ChannelState::ResetByPeer), effects)
            }
            SubstreamEvent::CutOffByPeer => (
                self.ended(ChannelState::ResetByPeer),
                Effects::WAKE_ALL
                    .and(Effects::DISCARD_SEND)
                    .and(Effects::SERVICE),
            ),
            SubstreamEvent::ChannelClosed => (
                self.ended(ChannelState::Closed),
                Effects::WAKE_ALL
                    .and(Effects::DISCARD_SEND)
                    .and(Effects::SERVICE),
            ),
            SubstreamEvent::CarrierLost => (
                self.ended(ChannelState::Lost),
                Effects::WAKE_ALL
                    .and(Effects::DISCARD_SEND)
                    .and(Effects::SERVICE),
            ),
            SubstreamEvent::ResetWritten | SubstreamEvent::CutOffDrained => (self, Effects::NONE),
        }
    }

    /// A reset for any cause but the close of the connection.
    fn reset_here(self) -> Self {
        let write = match self.write {
            WriteState::CutOff => WriteState::Closing,
            write => write,
        };
        Self {
            write,
            channel: ChannelState::ResetPending,
            ..self
        }
    }

    /// Whether the close of the connection has reset this substream, or is about to.
    pub(crate) fn is_cut_off(self) -> bool {
        self.write == WriteState::CutOff
    }

    fn ended(self, channel: ChannelState) -> Self {
        Self { channel, ..self }
    }

    /// Whether both halves are complete, so that the channel can be closed.
    pub(crate) fn is_complete(self) -> bool {
        matches!(self.write, WriteState::Finished(_)) && self.read == ReadState::FinAcked
    }

    /// How the channel ended, if it did.
    pub(crate) fn end(self) -> Option<Ended> {
        match self.channel {
            ChannelState::Open => None,
            ChannelState::ResetPending | ChannelState::ResetLocally => Some(Ended::ResetLocally),
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

    /// The meaning of an empty receive buffer for a reader.
    pub(crate) fn read_permit(self) -> ReadPermit {
        match (self.read, self.end()) {
            // Our reset has dropped unread data: it must not look like the end of the stream. The
            // reset of a close drops nothing that came before FIN.
            (_, Some(Ended::ResetLocally)) if !self.is_cut_off() => {
                ReadPermit::Ended(Ended::ResetLocally)
            }
            (ReadState::FinReceived | ReadState::FinAcked, _) => ReadPermit::EndOfStream,
            (_, Some(end)) => ReadPermit::Ended(end),
            (ReadState::StopPending | ReadState::StopSent, None) => ReadPermit::EndOfStream,
            (ReadState::Open, None) => ReadPermit::Wait,
        }
    }

    /// Whether written data still has to be sent.
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
    fn on(self, event: SubstreamEvent) -> (Self, Effects) {
        let finished = |how| {
            (
                Self::Finished(how),
                Effects::WAKE_WRITERS.and(Effects::SERVICE),
            )
        };
        match (event, self) {
            (SubstreamEvent::Shutdown, Self::Open) => {
                (Self::Closing, Effects::WAKE_WRITERS.and(Effects::SERVICE))
            }
            (SubstreamEvent::ConnectionClosing, Self::Open) => {
                (Self::CutOff, Effects::WAKE_WRITERS.and(Effects::SERVICE))
            }
            (SubstreamEvent::StopSending, Self::Open | Self::Closing | Self::CutOff) => (
                Self::Stopped,
                Effects::WAKE_WRITERS
                    .and(Effects::DISCARD_SEND)
                    .and(Effects::SERVICE),
            ),
            // A peer that has stopped reading may never acknowledge FIN, as go-libp2p.
            (SubstreamEvent::StopSending, Self::FinSent | Self::FinDelivered) => {
                finished(FinishedAs::Stopped)
            }
            (SubstreamEvent::FinWritten, Self::Closing) => (Self::FinSent, Effects::NONE),
            (SubstreamEvent::FinWritten, Self::Stopped) => finished(FinishedAs::Discarded),
            (SubstreamEvent::FinDelivered, Self::FinSent) => (Self::FinDelivered, Effects::NONE),
            (SubstreamEvent::NoFinAckExpected, Self::FinDelivered) => {
                finished(FinishedAs::Delivered)
            }
            (SubstreamEvent::FinAck, Self::FinSent | Self::FinDelivered) => {
                finished(FinishedAs::Acked)
            }
            (SubstreamEvent::FinAck, Self::Open | Self::Closing | Self::CutOff | Self::Stopped) => {
                (self, Effects::PROTOCOL_ERROR)
            }
            (SubstreamEvent::FinAckTimeout, Self::FinSent | Self::FinDelivered) => {
                finished(FinishedAs::TimedOut)
            }
            _ => (self, Effects::NONE),
        }
    }
}

impl ReadState {
    /// Whether FIN has arrived; data after it is ignored.
    pub(crate) fn has_fin(self) -> bool {
        matches!(self, Self::FinReceived | Self::FinAcked)
    }

    fn on(self, event: SubstreamEvent) -> (Self, Effects) {
        match (event, self) {
            (SubstreamEvent::Fin, Self::Open | Self::StopPending | Self::StopSent) => (
                Self::FinReceived,
                Effects::WAKE_READER.and(Effects::SERVICE),
            ),
            (SubstreamEvent::FinAckWritten, Self::FinReceived) => {
                (Self::FinAcked, Effects::SERVICE)
            }
            (SubstreamEvent::Stop, Self::Open) => (
                Self::StopPending,
                Effects::WAKE_READER
                    .and(Effects::DISCARD_RECEIVED)
                    .and(Effects::SERVICE),
            ),
            // Nothing is left to stop, but received data will not be read.
            (SubstreamEvent::Stop, Self::FinReceived | Self::FinAcked) => {
                (self, Effects::DISCARD_RECEIVED)
            }
            (SubstreamEvent::StopWritten, Self::StopPending) => (Self::StopSent, Effects::NONE),
            _ => (self, Effects::NONE),
        }
    }
}

#[cfg(test)]
mod diagrams;
#[cfg(test)]
mod tests;
