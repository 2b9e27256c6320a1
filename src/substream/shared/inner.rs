//! The part of a substream's shared state that is behind its mutex.

use crate::substream::recv::{ReceiveBuffer, Room};
use crate::substream::send::SendBuffer;
use crate::substream::siblings::Levels;
use crate::substream::state::{
    Effects, FinishedAs, ReadState, State, SubstreamEvent, WritePermit, WriteState,
};

/// What the application has done with a substream that the peer opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Usage {
    /// Not visible to the application yet.
    Negotiating,
    /// Waits to be accepted.
    Waiting,
    /// Accepted.
    Accepted,
    /// Data was read.
    Read,
    /// Data was written.
    Answered,
}

/// State, buffers and error codes, changed together.
#[derive(Debug)]
pub(super) struct Inner {
    pub(super) state: State,
    pub(super) send: SendBuffer,
    pub(super) receive: ReceiveBuffer,
    /// The code of the RESET_STREAM that was received or has to be sent.
    pub(super) reset_code: Option<u32>,
    /// The code of a STOP_SENDING that was received.
    pub(super) stop_code: Option<u32>,
    /// The code of a STOP_SENDING that has to be sent.
    pub(super) own_stop_code: Option<u32>,
    /// Accepted bytes were discarded before the carrier took them.
    pub(super) has_discarded: bool,
    /// The code with which a drop of the writer resets, instead of ending the stream.
    pub(super) reset_on_drop: Option<u32>,
    /// The close of the connection stopped the read half before FIN.
    pub(super) cut_off: bool,
    pub(super) reader_dropped: bool,
    pub(super) writer_dropped: bool,
    pub(super) usage: Usage,
}

impl Inner {
    pub(super) fn new(send: SendBuffer, receive: ReceiveBuffer) -> Self {
        Self {
            state: State::INITIAL,
            send,
            receive,
            reset_code: None,
            stop_code: None,
            own_stop_code: None,
            has_discarded: false,
            reset_on_drop: None,
            cut_off: false,
            reader_dropped: false,
            writer_dropped: false,
            usage: Usage::Negotiating,
        }
    }

    /// Changes the state and carries out the effects on the buffers. The only function that stores
    /// a state.
    pub(super) fn apply(&mut self, event: SubstreamEvent) -> Effects {
        let before = self.state;
        let (after, effects) = before.on(event);
        self.state = after;
        if effects.contains(Effects::DISCARD_SEND) {
            self.has_discarded |= self.send.queued() > 0;
            self.send.discard();
        }
        if effects.contains(Effects::DISCARD_RECEIVED) {
            self.receive.discard();
        }
        if before.keeps_payload() && !after.keeps_payload() {
            self.receive.complete();
        }
        effects
    }

    /// This substream's part of the connection's sums.
    pub(super) fn levels(&self) -> Levels {
        Levels {
            unread: self.receive.cost(),
            queued: self.send.queued(),
            committed: self.receive.committed_beyond_minimum(),
        }
    }

    /// Stores the code of a reset, unless the substream has already ended.
    pub(super) fn set_reset_code(&mut self, code: Option<u32>) {
        if self.state.end().is_none() {
            self.reset_code = code;
        }
    }

    /// Prepares a stop of the read half.
    pub(super) fn stop(&mut self, code: u32) -> SubstreamEvent {
        // The first code wins, even if it was not sent yet.
        if self.state.read == ReadState::Open {
            self.own_stop_code = Some(code);
        }
        SubstreamEvent::Stop
    }

    /// Records a read or write by the application; the negotiation before it does not count.
    pub(super) fn record_usage(&mut self, usage: Usage) {
        if (Usage::Accepted..usage).contains(&self.usage) {
            self.usage = usage;
        }
    }

    /// The `max_data` to send now: if one is due, or if `first` is set.
    pub(super) fn credit_offer(&self, room: Room, first: bool) -> Option<u64> {
        if !self.state.keeps_payload() && !first {
            return None;
        }
        self.receive.credit_offer(room, first)
    }

    /// Whether the carrier has taken every accepted byte; an error only if some were discarded. An
    /// error for a stop or reset after that would hide what the peer has sent before it:
    /// multistream-select flushes its proposal before it reads the answer.
    pub(super) fn flushed(&self) -> Option<Result<(), WritePermit>> {
        if self.send.queued() > 0 {
            return None;
        }
        Some(match (self.state.write, self.state.end()) {
            _ if !self.has_discarded => Ok(()),
            (WriteState::Stopped | WriteState::Finished(FinishedAs::Discarded), _) => {
                Err(WritePermit::Stopped)
            }
            (WriteState::Finished(_), _) | (_, None) => Ok(()),
            (_, Some(end)) => Err(WritePermit::Ended(end)),
        })
    }
}
