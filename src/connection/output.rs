//! What the driver sends, and how substreams and the connection end.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use super::config::FinAckPolicy;
use super::deadlines::{DeadlineKind, deadline_after};
use super::driver::{Core, DriverPhase, Turn};
use super::report;
use super::work::{SERVICES_PER_ROUND, WRITES_PER_ROUND};
use crate::carrier::{Carrier, ChannelId, Class, Written};
use crate::error::ConnectionError;
use crate::events::Initiator;
use crate::message::{DATA_TAILROOM, DataFrameEnds, Flag, Message, max_payload, seal_data_frame};
use crate::substream::code;
use crate::substream::{
    ChannelState, Chunk, Copied, Ended, ReadState, Shared, SubstreamEvent, Usage, WriteState,
};

/// How long a peer may take to learn why it is left.
const ABUSE_CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// Queues shorter than this are not worth clearing of substreams that are gone.
const MIN_QUEUE_TO_CLEAR: usize = 64;

/// Whether a substream of the peer that ends now has been nothing but work: the peer ended it before
/// the application answered it, or it was refused before the application heard of it.
fn was_unused(shared: &Shared) -> bool {
    match (shared.usage(), shared.state().end()) {
        (Usage::Answered, _) => false,
        (_, Some(Ended::ResetByPeer | Ended::Closed)) => true,
        (Usage::Negotiating, Some(Ended::ResetLocally)) => true,
        _ => false,
    }
}

impl<C: Carrier> Core<C> {
    /// The longest frame that the peer can be trusted to read.
    pub(super) fn max_frame(&self) -> usize {
        let config = &self.conn.config;
        let limit = if self.peer_supports_credit {
            config.max_frame
        } else {
            config.max_frame_without_credit
        };
        let limit = limit.min(self.carrier.max_message());
        match self.carrier.packet_payload() {
            Some(packet) if (1..=limit).contains(&packet) => limit - limit % packet,
            _ => limit,
        }
    }

    /// Payload of the longest data frame.
    pub(super) fn max_frame_payload(&self) -> usize {
        max_payload(self.max_frame(), false)
    }
}

impl<C: Carrier> Turn<'_, C> {
    /// Looks at the substreams whose writes were refused, and at those that have something to do.
    pub(super) fn service_ready(&mut self) -> bool {
        let mut left = SERVICES_PER_ROUND;
        while left > 0
            && let Some(channel) = self.core.retrying.pop_front()
        {
            left -= 1;
            if let Some(entry) = self.core.substreams.get_mut(&channel) {
                entry.blocked = false;
                let shared = Arc::clone(&entry.shared);
                self.service(&shared);
            }
        }
        if self.core.batch.is_empty() {
            self.core.conn.siblings.take_ready(&mut self.core.batch);
        }
        while left > 0
            && let Some(shared) = self.core.batch.pop_front()
        {
            left -= 1;
            shared.begin_service();
            self.service(&shared);
        }
        let served = SERVICES_PER_ROUND - left;
        self.core.work.spend(served as u32);
        served > 0
    }

    /// Looks at the state of a substream and does what it owes.
    pub(super) fn service(&mut self, shared: &Arc<Shared>) {
        let channel = shared.id;
        if !self.core.substreams.contains_key(&channel) {
            return;
        }
        if shared.state().end().is_some() {
            return self.finish_reset(shared);
        }
        // Before anything that a busy carrier can stop.
        if shared.is_abandoned() {
            self.start_teardown(shared);
        }
        self.resume_reading(shared);
        if shared.state().end().is_some() {
            // What was read has ended it.
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

    /// Writes FIN_ACK, STOP_SENDING and credit, as far as they are owed. Returns `false` if the
    /// carrier was busy; the substream is then looked at again when it is not.
    fn write_pending_flags(&mut self, shared: &Arc<Shared>) -> bool {
        let state = shared.state();
        if state.read == ReadState::FinReceived {
            let own_fin_sent = matches!(
                state.write,
                WriteState::FinSent | WriteState::FinDelivered | WriteState::Finished(_)
            );
            let written = match self.core.conn.fin_ack() {
                FinAckPolicy::Always => self.write_control(shared, &Message::flag(Flag::FinAck)),
                FinAckPolicy::AfterOwnFin if own_fin_sent => {
                    self.write_control(shared, &Message::flag(Flag::FinAck))
                }
                FinAckPolicy::AfterOwnFin => false,
                FinAckPolicy::Never => true,
            };
            if written {
                shared.apply(SubstreamEvent::FinAckWritten);
            } else if self.is_blocked(shared) {
                return false;
            }
        }
        if shared.state().read == ReadState::StopPending {
            let message = match shared.own_stop_code() {
                Some(code) => Message::stop_sending(code),
                None => Message::flag(Flag::StopSending),
            };
            if !self.write_control(shared, &message) {
                return false;
            }
            shared.apply(SubstreamEvent::StopWritten);
        }
        // Only to a peer that has shown the field: to rust-libp2p a message without payload and
        // flag is the end of the stream (docs/interop.md).
        if self.core.peer_supports_credit
            // Where data can go out, credit rides on it.
            && (self.core.busy || !shared.has_sendable_data())
            && let Some(max_data) = shared.credit_offer(false)
        {
            if !self.write_control(shared, &Message::credit(max_data)) {
                return false;
            }
            self.on_credit_sent(shared, max_data);
        }
        true
    }

    fn is_blocked(&self, shared: &Shared) -> bool {
        self.core
            .substreams
            .get(&shared.id)
            .is_some_and(|entry| entry.blocked)
    }

    /// Ends the writing once everything before was taken by the carrier: with FIN, or with
    /// RESET_STREAM where the close of the connection has cut it off.
    fn end_writing_if_drained(&mut self, shared: &Arc<Shared>) {
        // In front of the buffer: nothing is added to it once this is so.
        let write = shared.state().write;
        let ends = matches!(
            write,
            WriteState::Closing | WriteState::CutOff | WriteState::Stopped
        );
        if !ends || shared.buffered() > 0 {
            return;
        }
        if write == WriteState::CutOff {
            return shared.cut_off_drained();
        }
        // And behind it: a reset stores its state before it empties the buffer, and a FIN that took that for drained
        // would make what was thrown away look delivered.
        if shared.state().end().is_some() {
            return;
        }
        // Alone: some peers lose a payload that shares a message with FIN (docs/interop.md).
        match self.try_control(shared, &Message::flag(Flag::Fin)) {
            Written::Taken => {}
            // Not FinSent: the Closed event is to find that FIN never went out.
            Written::Busy | Written::NotOpen | Written::Closed => return,
        }
        shared.apply(SubstreamEvent::FinWritten);
        self.core.carrier.notify_delivered(shared.id);
        // Left over from the policy to answer after our own FIN.
        if shared.state().read == ReadState::FinReceived {
            shared.request_service();
        }
    }

    /// Writes one control frame; `false` when the carrier is busy, and then it is tried again.
    fn write_control(&mut self, shared: &Arc<Shared>, message: &Message) -> bool {
        match self.try_control(shared, message) {
            // A channel that is gone owes nothing: its Closed event ends the substream.
            Written::Taken | Written::Closed => true,
            Written::Busy | Written::NotOpen => false,
        }
    }

    fn try_control(&mut self, shared: &Arc<Shared>, message: &Message) -> Written {
        self.core.scratch.clear();
        message.encode_into(&mut self.core.scratch);
        let written = self
            .core
            .carrier
            .write(shared.id, &self.core.scratch, Class::Control);
        match written {
            Written::Taken => self.core.conn.counters.frames_sent.add(1),
            Written::Closed => {}
            Written::Busy | Written::NotOpen => self.block(shared.id),
        }
        written
    }

    /// Looks at a substream again when the carrier reports room.
    fn block(&mut self, channel: ChannelId) {
        if let Some(entry) = self.core.substreams.get_mut(&channel)
            && !entry.blocked
        {
            entry.blocked = true;
            self.core.blocked.push_back(channel);
        }
    }

    fn schedule_data(&mut self, shared: &Arc<Shared>) {
        if !shared.has_sendable_data() {
            return self.report_stalled(shared);
        }
        if let Some(entry) = self.core.substreams.get_mut(&shared.id)
            && !entry.active
        {
            entry.active = true;
            self.core.active.push_back(shared.id);
        }
    }

    /// Writes data, one frame a substream and turn, so that a big writer holds up nobody.
    pub(super) fn write_data(&mut self) -> bool {
        let mut frames = 0;
        while !self.core.busy && frames < WRITES_PER_ROUND {
            let Some(channel) = self.core.active.pop_front() else {
                break;
            };
            let Some(entry) = self.core.substreams.get_mut(&channel) else {
                continue;
            };
            let shared = Arc::clone(&entry.shared);
            match self.write_one(&shared) {
                Some(Written::Taken) => {
                    frames += 1;
                    self.core.work.spend(1);
                    if shared.has_sendable_data() {
                        self.core.active.push_back(channel);
                        continue;
                    }
                    self.set_inactive(channel);
                    // The last byte is out, and FIN may follow, or the peer's credit is used up.
                    self.end_writing_if_drained(&shared);
                    self.limit_wait_for_credit(&shared);
                    self.report_stalled(&shared);
                    self.close_if_complete(&shared);
                }
                Some(Written::Busy) => {
                    // Stays first: it was refused, not served.
                    self.core.active.push_front(channel);
                    self.core.busy = true;
                }
                Some(Written::NotOpen) => {
                    self.set_inactive(channel);
                    self.block(channel);
                }
                // The Closed event of a channel that is closed ends the substream.
                Some(Written::Closed) | None => self.set_inactive(channel),
            }
        }
        frames > 0
    }

    fn set_inactive(&mut self, channel: ChannelId) {
        if let Some(entry) = self.core.substreams.get_mut(&channel) {
            entry.active = false;
        }
    }

    /// Writes one data frame; `None` when there is none to write.
    fn write_one(&mut self, shared: &Arc<Shared>) -> Option<Written> {
        let credit_shown = self.core.substreams.get(&shared.id)?.credit_shown;
        let max_frame = self.core.max_frame();
        let (mut chunk, length) = shared.take_data(max_payload(max_frame, false))?;
        // Credit rides on data: always on the first, which shows the peer that we know it, and
        // later if the peer knows it too. It lies behind the payload, where a chunk that is sent
        // in parts still has its rest.
        let mut offer = if !credit_shown || self.core.peer_supports_credit {
            shared.credit_offer(!credit_shown)
        } else {
            None
        };
        let has_room_behind = matches!(chunk, Chunk::Slice(_)) || length == chunk.len();
        let rides = has_room_behind && length <= max_payload(max_frame, true);
        if !rides
            && let Some(max_data) = offer.take()
            && self.core.peer_supports_credit
            && self.write_control(shared, &Message::credit(max_data))
        {
            // A full frame, or a window smaller than the chunk: without this the peer takes us for
            // one that knows no credit.
            self.on_credit_sent(shared, max_data);
        }
        let written = match &mut chunk {
            Chunk::Copied(copied) => self.write_copied(shared.id, copied, length, offer),
            Chunk::Slice(slice) => {
                let ends = DataFrameEnds::new(length, offer);
                let payload = slice.get(..length).unwrap_or_default();
                let pieces = [ends.head(), payload, ends.tail()];
                self.core
                    .carrier
                    .write_vectored(shared.id, &pieces, Class::Data)
            }
        };
        match written {
            Written::Taken => {
                let counters = &self.core.conn.counters;
                counters.frames_sent.add(1);
                counters.payload_sent.add(length as u64);
                shared.data_sent(chunk, length);
                if let Some(max_data) = offer {
                    self.on_credit_sent(shared, max_data);
                }
            }
            Written::Busy | Written::NotOpen | Written::Closed => shared.data_refused(chunk),
        }
        Some(written)
    }

    /// Writes the first `length` bytes of a payload, framed in the buffer that it lies in.
    fn write_copied(
        &mut self,
        channel: ChannelId,
        copied: &mut Copied,
        length: usize,
        max_data: Option<u64>,
    ) -> Written {
        let payload = copied.start..copied.start + length;
        let end = copied.buf.len();
        if max_data.is_some() {
            copied.buf.resize(end + DATA_TAILROOM, 0);
        }
        let written = match seal_data_frame(&mut copied.buf, payload, max_data) {
            Ok(frame) => {
                let frame = copied.buf.get(frame).unwrap_or_default();
                self.core.carrier.write(channel, frame, Class::Data)
            }
            Err(error) => {
                // Every chunk is made with the room a header needs.
                debug_assert!(false, "no room for a frame header: {error}");
                Written::Closed
            }
        };
        copied.buf.truncate(end);
        written
    }

    fn on_credit_sent(&mut self, shared: &Shared, max_data: u64) {
        shared.credit_sent(max_data);
        if let Some(entry) = self.core.substreams.get_mut(&shared.id) {
            entry.credit_shown = true;
        }
    }

    /// A peer that says nothing on a substream gets little data; one that knows no credit may
    /// say nothing for ever.
    fn limit_wait_for_credit(&mut self, shared: &Arc<Shared>) {
        let timeout = self.core.conn.config.open_timeout;
        if !self.core.peer_supports_credit
            && shared.waits_for_first_credit()
            && let Some(entry) = self.core.substreams.get_mut(&shared.id)
            && entry.credit_deadline.is_none()
        {
            let kind = DeadlineKind::Credit;
            entry.credit_deadline = Some(self.deadlines.as_mut().set(shared.id, kind, timeout));
        }
    }

    // The end of a substream.

    /// Bounds the close of a substream whose handles were dropped, or that was reset.
    fn start_teardown(&mut self, shared: &Arc<Shared>) {
        let timeout = self.core.conn.config.teardown_timeout;
        if let Some(entry) = self.core.substreams.get_mut(&shared.id)
            && entry.teardown_deadline.is_none()
        {
            let kind = DeadlineKind::Teardown;
            entry.teardown_deadline = Some(self.deadlines.as_mut().set(shared.id, kind, timeout));
        }
    }

    /// Closes the channel of a substream that was reset, once the peer was told if it has to be.
    fn finish_reset(&mut self, shared: &Arc<Shared>) {
        if shared.state().channel == ChannelState::ResetPending {
            let message = match shared.reset_code() {
                Some(code) => Message::reset(code),
                None => Message::flag(Flag::ResetStream),
            };
            if !self.write_control(shared, &message) {
                return self.start_teardown(shared);
            }
            shared.apply(SubstreamEvent::ResetWritten);
            self.core.carrier.abandon_channel(shared.id);
        } else {
            self.core.carrier.close_channel(shared.id);
        }
        self.remove(shared.id);
    }

    fn close_if_complete(&mut self, shared: &Arc<Shared>) {
        if shared.state().is_complete() && shared.state().end().is_none() {
            // Both FINs and their FIN_ACKs are through, or were waited for long enough.
            self.core.carrier.close_channel(shared.id);
            self.remove(shared.id);
        }
    }

    /// Forgets a substream and all that the driver keeps for it.
    pub(super) fn remove(&mut self, channel: ChannelId) {
        let Some(entry) = self.core.substreams.remove(&channel) else {
            return;
        };
        // What nobody has accepted yet can still be, and waits for that no longer than any other.
        let accept_deadline = match entry.shared.usage() {
            Usage::Waiting => None,
            _ => entry.accept_deadline,
        };
        let deadlines = [
            entry.fin_ack_deadline,
            entry.teardown_deadline,
            entry.credit_deadline,
            accept_deadline,
        ];
        for deadline in deadlines.into_iter().flatten() {
            self.deadlines.as_mut().cancel(deadline);
        }
        if entry.shared.origin == Initiator::Remote {
            debug_assert!(self.core.inbound > 0, "a substream that was not counted");
            self.core.inbound = self.core.inbound.saturating_sub(1);
            if was_unused(&entry.shared) {
                self.core.unused.count();
            }
        }
        if entry.reads_paused {
            self.release_pause();
        }
        report::ended(&self.core.conn, &entry);
        // Its places in the queues are skipped when they come up. A peer that lets nothing through
        // could open and reset meanwhile, so they are cleared once they are the larger part.
        let core = &mut *self.core;
        let known = &core.substreams;
        for queue in [
            &mut core.active,
            &mut core.blocked,
            &mut core.retrying,
            &mut core.reading,
        ] {
            if queue.len() > 2 * known.len() + MIN_QUEUE_TO_CLEAR {
                queue.retain(|id| known.contains_key(id));
            }
        }
    }

    // The end of the connection.

    /// Starts to close when the application asks for it or can not reach the connection any more.
    pub(super) fn begin_closing(&mut self) -> bool {
        if self.core.phase != DriverPhase::Running {
            return false;
        }
        let conn = &self.core.conn;
        let unused = conn.is_unreachable() && self.core.substreams.is_empty();
        if !conn.is_closing() && !unused {
            return false;
        }
        let until = deadline_after(conn.config.teardown_timeout);
        let cause = conn.siblings.closing_cause();
        conn.emit(|events, connection| events.connection_closing(connection, &cause));
        self.core.phase = DriverPhase::Draining { until };
        let stop_code = match cause {
            ConnectionError::ClosedWith { code, .. } => code,
            _ => code::SHUTDOWN,
        };
        self.core
            .carrier
            .begin_close(&self.core.conn.siblings.closing_cause());
        for entry in self.core.substreams.values() {
            entry.shared.close(stop_code);
        }
        // Not before: a drop would end them with FIN.
        self.core.negotiations.clear();
        true
    }

    /// Ends the connection for what the peer did: it is told why, and not waited for long.
    pub(super) fn close_for_abuse(&mut self, cause: ConnectionError) {
        self.core.conn.begin_close_for(cause);
        let until = deadline_after(ABUSE_CLOSE_TIMEOUT.min(self.core.conn.config.teardown_timeout));
        self.core
            .carrier
            .begin_close(&self.core.conn.siblings.closing_cause());
        self.core.phase = DriverPhase::ClosingCarrier { until };
    }

    /// Moves the closing on: from the substreams to the carrier, and from that to the end.
    pub(super) fn advance_closing(
        &mut self,
        expired: bool,
        cx: &mut Context<'_>,
    ) -> Poll<Option<ConnectionError>> {
        match self.core.phase {
            DriverPhase::Running => Poll::Pending,
            DriverPhase::Draining { until } if expired || self.core.substreams.is_empty() => {
                // What is left of the time: the teardown timeout is for the whole close.
                self.core.phase = DriverPhase::ClosingCarrier { until };
                Poll::Ready(None)
            }
            DriverPhase::Draining { .. } => Poll::Pending,
            DriverPhase::ClosingCarrier { .. } => {
                // Asked in any case, so that the peer is told even if the time is over.
                if self.core.carrier.poll_close(cx).is_ready() || expired {
                    return Poll::Ready(Some(self.core.conn.siblings.closing_cause()));
                }
                Poll::Pending
            }
        }
    }

    /// Ends everything: what is left of the substreams learns why.
    pub(super) fn end(&mut self, cause: ConnectionError) -> ConnectionError {
        tracing::debug!(target: "anabranch::connection", %cause, "connection ended");
        self.core.negotiations.clear();
        // First the cause, then the wake-ups: whoever wakes finds it.
        let first = self.core.conn.end(cause.clone());
        self.core.opening.fail(&cause);
        self.core.active.clear();
        self.core.blocked.clear();
        self.core.retrying.clear();
        self.core.reading.clear();
        self.core.batch.clear();
        let channels: Vec<ChannelId> = self.core.substreams.keys().copied().collect();
        for channel in channels {
            self.core.carrier.close_channel(channel);
            if let Some(entry) = self.core.substreams.get(&channel) {
                entry.shared.apply(SubstreamEvent::CarrierLost);
            }
            self.remove(channel);
        }
        self.core.conn.counters.substreams.set(0);
        if first {
            self.core.conn.report_end();
        }
        cause
    }
}
