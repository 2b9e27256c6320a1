//! Carries out what a substream has pending: flags, credit, data, its end.
//!
//! All of it is derived from the state of the substream each time, so nothing that has to be sent
//! (FIN, FIN_ACK, STOP_SENDING, RESET_STREAM, credit) needs a place in a queue that could be full.

use std::sync::Arc;

use super::config::FinAckPolicy;
use super::deadlines::DeadlineKind;
use super::driver::Driver;
use super::work::{SERVICES_PER_ROUND, WRITES_PER_ROUND};
use crate::carrier::{Carrier, ChannelId, Written};
use crate::message::{Flag, Message, max_payload};
use crate::substream::{ChannelState, ReadState, Shared, SubstreamEvent, WriteState};

impl<C: Carrier> Driver<C> {
    /// Services the substreams whose writes were refused, and those that have requested it.
    pub(super) fn service_ready(&mut self) -> bool {
        let mut left = SERVICES_PER_ROUND;
        while left > 0
            && let Some(channel) = self.writer.next_retry()
        {
            left -= 1;
            if let Some(entry) = self.substreams.get_mut(channel) {
                entry.is_blocked = false;
                let shared = Arc::clone(&entry.shared);
                self.service(&shared);
            }
        }
        if self.ready.is_empty() {
            self.conn.siblings.take_ready(&mut self.ready);
        }
        while left > 0
            && let Some(shared) = self.ready.pop_front()
        {
            left -= 1;
            shared.begin_service();
            self.service(&shared);
        }
        let served = SERVICES_PER_ROUND - left;
        self.work.spend(served as u32);
        served > 0
    }

    /// Does what the state of a substream requires.
    fn service(&mut self, shared: &Arc<Shared>) {
        if !self.substreams.contains(shared.id) {
            return;
        }
        if shared.state().end().is_some() {
            return self.finish_reset(shared);
        }
        // Before anything that a busy carrier can stop.
        if shared.is_abandoned() {
            self.start_teardown(shared.id);
        }
        self.resume_reading(shared.id);
        if shared.state().end().is_some() {
            // The frames read have ended it.
            return self.finish_reset(shared);
        }
        if !self.write_pending_flags(shared) {
            return;
        }
        self.end_writing_if_drained(shared);
        self.schedule_data(shared);
        self.limit_wait_for_credit(shared);
        self.close_if_complete(shared);
    }

    /// Writes the pending FIN_ACK, STOP_SENDING and credit. Returns `false` if the carrier was
    /// busy; the substream is then serviced again when it has room.
    fn write_pending_flags(&mut self, shared: &Arc<Shared>) -> bool {
        let state = shared.state();
        if state.read == ReadState::FinReceived {
            let own_fin_sent = matches!(
                state.write,
                WriteState::FinSent | WriteState::FinDelivered | WriteState::Finished(_)
            );
            let is_acked = match self.conn.fin_ack() {
                FinAckPolicy::AfterOwnFin if !own_fin_sent => false,
                FinAckPolicy::Always | FinAckPolicy::AfterOwnFin => {
                    if !self.write_control(shared.id, &Message::flag(Flag::FinAck)) {
                        return false;
                    }
                    true
                }
                FinAckPolicy::Never => true,
            };
            if is_acked {
                shared.apply(SubstreamEvent::FinAckWritten);
            } else if self.is_blocked(shared.id) {
                return false;
            }
        }
        if shared.state().read == ReadState::StopPending {
            let message = match shared.own_stop_code() {
                Some(code) => Message::stop_sending(code),
                None => Message::flag(Flag::StopSending),
            };
            if !self.write_control(shared.id, &message) {
                return false;
            }
            shared.apply(SubstreamEvent::StopWritten);
        }
        // Only to a peer that has sent the field: rust-libp2p takes a message without payload and
        // flag for the end of the stream (docs/wire.md section 1).
        if self.credit.is_supported()
            && let Some(max_data) = shared.credit_offer()
            && let Some(entry) = self.substreams.get_mut(shared.id)
        {
            if self.writer.is_busy() || !shared.has_sendable_data() {
                return self.writer.write_credit(&mut self.carrier, entry, max_data);
            }
            self.writer.owe(entry);
        }
        true
    }

    fn is_blocked(&self, channel: ChannelId) -> bool {
        let entry = self.substreams.get(channel);
        entry.is_some_and(|entry| entry.is_blocked)
    }

    /// Writes one control frame; `false` if the carrier is busy, and then it is retried.
    fn write_control(&mut self, channel: ChannelId, message: &Message) -> bool {
        match self.try_control(channel, message) {
            // Nothing is pending on a closed channel: its Closed event ends the substream.
            Written::Taken | Written::Closed => true,
            Written::Busy | Written::NotOpen => false,
        }
    }

    fn try_control(&mut self, channel: ChannelId, message: &Message) -> Written {
        match self.substreams.get_mut(channel) {
            Some(entry) => self.writer.write_control(&mut self.carrier, entry, message),
            None => Written::Closed,
        }
    }

    /// Ends the write half once the carrier has taken all data: with FIN, or with RESET_STREAM if
    /// the close of the connection has cut it off.
    fn end_writing_if_drained(&mut self, shared: &Arc<Shared>) {
        match shared.drained() {
            None => return,
            Some(WriteState::CutOff) => return shared.cut_off_drained(),
            Some(_) => {}
        }
        // In a message of its own: some peers lose a payload that shares a message with FIN
        // (docs/wire.md section 1).
        match self.try_control(shared.id, &Message::flag(Flag::Fin)) {
            Written::Taken => {}
            // Not FinSent: the Closed event has to find that FIN was never sent.
            Written::Busy | Written::NotOpen | Written::Closed => return,
        }
        shared.apply(SubstreamEvent::FinWritten);
        self.carrier.notify_delivered(shared.id);
        // A FIN_ACK may have waited for our own FIN.
        if shared.state().read == ReadState::FinReceived {
            shared.request_service();
        }
    }

    fn schedule_data(&mut self, shared: &Shared) {
        if !shared.has_sendable_data() {
            return self.substreams.report_stalled(shared);
        }
        if let Some(entry) = self.substreams.get_mut(shared.id) {
            self.writer.schedule(entry);
            self.writer.prune_turns(&self.substreams);
        }
    }

    /// Writes data, one frame per substream and turn.
    pub(super) fn write_data(&mut self) -> bool {
        let mut frames = 0;
        while frames < WRITES_PER_ROUND
            && let Some((channel, turn)) = self.writer.next_scheduled()
        {
            let Some(entry) = self.substreams.get_mut(channel) else {
                continue;
            };
            if entry.turn != Some(turn) {
                // It has another priority since, and another turn.
                continue;
            }
            let shared = Arc::clone(&entry.shared);
            let supports_credit = self.credit.is_supported();
            let written = self
                .writer
                .write_data(&mut self.carrier, entry, supports_credit);
            match written {
                Some(Written::Taken) => {
                    frames += 1;
                    self.work.spend(1);
                    if shared.has_sendable_data() {
                        self.writer.reschedule(entry);
                        continue;
                    }
                    entry.turn = None;
                    // All data was sent, and FIN may follow, or the peer's credit is used up.
                    self.end_writing_if_drained(&shared);
                    self.limit_wait_for_credit(&shared);
                    self.substreams.report_stalled(&shared);
                    self.close_if_complete(&shared);
                }
                Some(Written::Busy) => self.writer.on_busy(channel, turn),
                Some(Written::NotOpen) => {
                    entry.turn = None;
                    self.writer.block(entry);
                }
                // The Closed event of a closed channel ends its substream.
                Some(Written::Closed) | None => entry.turn = None,
            }
        }
        self.write_owed_credit();
        frames > 0
    }

    /// Writes the credit that data does not carry in time.
    fn write_owed_credit(&mut self) {
        while let Some(channel) = self.writer.next_owed() {
            if let Some(entry) = self.substreams.get_mut(channel) {
                entry.is_owed = false;
                if let Some(max_data) = entry.shared.credit_offer() {
                    self.writer.write_credit(&mut self.carrier, entry, max_data);
                }
            }
        }
    }

    /// Payload of the longest data frame.
    pub(super) fn max_frame_payload(&self) -> usize {
        let supports_credit = self.credit.is_supported();
        max_payload(self.writer.max_frame(&self.carrier, supports_credit), false)
    }

    /// Bounds the wait for the first credit on a substream. A peer that has sent nothing gets
    /// little data, and one without support for credit may never send anything.
    fn limit_wait_for_credit(&mut self, shared: &Shared) {
        if !self.credit.is_supported() && shared.waits_for_first_credit() {
            let timeout = self.conn.config.open_timeout;
            self.deadlines.set(shared.id, DeadlineKind::Credit, timeout);
        }
    }

    /// Bounds the close of a substream whose handles were dropped, or that was reset.
    fn start_teardown(&mut self, channel: ChannelId) {
        let timeout = self.conn.config.teardown_timeout;
        self.deadlines.set(channel, DeadlineKind::Teardown, timeout);
    }

    /// Closes the channel of a substream that was reset, after RESET_STREAM if that is pending.
    fn finish_reset(&mut self, shared: &Arc<Shared>) {
        if shared.state().channel == ChannelState::ResetPending {
            let message = match shared.reset_code() {
                Some(code) => Message::reset(code),
                None => Message::flag(Flag::ResetStream),
            };
            if !self.write_control(shared.id, &message) {
                return self.start_teardown(shared.id);
            }
            shared.apply(SubstreamEvent::ResetWritten);
            self.carrier.abandon_channel(shared.id);
        } else {
            self.carrier.close_channel(shared.id);
        }
        self.forget(shared.id);
    }

    fn close_if_complete(&mut self, shared: &Shared) {
        let state = shared.state();
        if state.is_complete() && state.end().is_none() {
            // Both FINs and their FIN_ACKs were exchanged, or have timed out.
            self.carrier.close_channel(shared.id);
            self.forget(shared.id);
        }
    }

    /// Forgets a substream and everything that the driver keeps for it.
    pub(super) fn forget(&mut self, channel: ChannelId) {
        if self.substreams.forget(channel, &mut self.deadlines) {
            self.reader.prune(&self.substreams);
            self.writer.prune(&self.substreams);
        }
    }
}
