//! Reads channels in turns and applies the frames of the peer.

use std::sync::Arc;

use bytes::Bytes;

use super::driver::Driver;
use super::entry::ReadProgress;
use super::ineffective::Penalty;
use super::reader::ReadStep;
use super::work::STEPS_PER_TURN;
use crate::carrier::{Carrier, ChannelId};
use crate::error::ConnectionError;
use crate::events::Initiator;
use crate::message::{Flag, Message};
use crate::substream::{Effects, Shared, SubstreamEvent, Usage, code};

impl<C: Carrier> Driver<C> {
    /// A channel has data. It is read at once, for one turn, if the round allows.
    pub(super) fn on_readable(&mut self, channel: ChannelId) {
        let entry = self.substreams.get(channel);
        if entry.is_some_and(|entry| entry.reading == ReadProgress::Queued) {
            return;
        }
        match self.work.reads_at_once() {
            true => self.read_turn(channel),
            false => self.reader.enqueue(&mut self.substreams, channel),
        }
    }

    /// The peer has closed a channel, or its close is complete: the substream ends when the channel
    /// is read to its end.
    pub(super) fn on_channel_closed(&mut self, channel: ChannelId) {
        if let Some(entry) = self.substreams.get_mut(channel) {
            entry.is_channel_closed = true;
        }
        self.on_readable(channel);
    }

    /// Reads the queued channels, as far as the round allows. Returns whether there was any.
    pub(super) fn read_queued(&mut self) -> bool {
        let has_any = !self.reader.is_idle();
        while !self.work.round_is_read()
            && let Some(channel) = self.reader.next_channel()
        {
            self.read_turn(channel);
        }
        has_any
    }

    /// Gives a channel one turn, and queues it for another if that was not enough.
    fn read_turn(&mut self, channel: ChannelId) {
        self.reader.begin_turn(&mut self.substreams, channel);
        for _ in 0..STEPS_PER_TURN {
            if !self.work.step() {
                break;
            }
            match self
                .reader
                .step(&mut self.carrier, &mut self.substreams, channel)
            {
                ReadStep::Frame(message) => self.on_frame(channel, message),
                ReadStep::BadFraming(error) => {
                    tracing::debug!(
                        target: "anabranch::connection", id = channel.get(), %error, "bad framing"
                    );
                    self.on_violation(channel, code::PROTOCOL_VIOLATION);
                }
                ReadStep::Advanced => {}
                ReadStep::Done => return self.finish_turn(channel),
            }
        }
        self.reader.enqueue(&mut self.substreams, channel);
    }

    /// Everything that has arrived was read.
    fn finish_turn(&mut self, channel: ChannelId) {
        if let Some(entry) = self.substreams.get(channel)
            && entry.is_channel_closed
        {
            entry.shared.apply(SubstreamEvent::ChannelClosed);
            self.forget(channel);
        }
    }

    /// Reads on if the reader has made room.
    pub(super) fn resume_reading(&mut self, channel: ChannelId) {
        let entry = self.substreams.get(channel);
        if entry.is_some_and(|entry| self.reader.can_resume(entry)) {
            self.substreams.resume(channel);
            self.on_readable(channel);
        }
    }

    /// Applies one frame: first its credit and payload, then its flag.
    fn on_frame(&mut self, channel: ChannelId, message: Message) {
        let Some(entry) = self.substreams.get(channel) else {
            return;
        };
        let shared = Arc::clone(&entry.shared);
        let counters = &self.conn.counters;
        counters.frames_received.add(1);
        if message.unknown_flag {
            counters.unknown_flags.add(1);
        }
        let mut has_effect = false;
        if let Some(max_data) = message.max_data {
            self.credit.on_max_data();
            if shared.granted(max_data, self.max_frame_payload()) {
                has_effect = true;
                self.substreams.report_resumed(channel);
            }
        }
        if !message.payload.is_empty() {
            // Data after FIN is dropped.
            has_effect |= !shared.state().read.has_fin();
            if let Err(code) = self.on_payload(&shared, message.payload) {
                return self.on_overrun(&shared, code);
            }
        }
        let before = shared.state();
        let effects = match message.flag {
            None => Effects::NONE,
            Some(Flag::Fin) => shared.apply(SubstreamEvent::Fin),
            Some(Flag::FinAck) => shared.apply(SubstreamEvent::FinAck),
            Some(Flag::StopSending) => shared.received_stop(message.error_code),
            Some(Flag::ResetStream) => shared.received_reset(message.error_code),
        };
        if effects.contains(Effects::PROTOCOL_ERROR) {
            self.on_violation(channel, code::PROTOCOL_VIOLATION);
        } else if !has_effect && (message.flag.is_none() || shared.state() == before) {
            self.on_ineffective(channel);
        }
    }

    /// Hands payload to its substream. An error is the code to reset the substream with.
    fn on_payload(&mut self, shared: &Arc<Shared>, payload: Bytes) -> Result<(), u32> {
        self.conn
            .counters
            .payload_received
            .add(payload.len() as u64);
        let receipt = shared.receive_payload(payload);
        if !receipt.has_credit {
            // A peer that supports credit sends it with its first data.
            self.credit.on_payload_without_credit();
            if shared.credit_unsupported() {
                self.substreams.report_resumed(shared.id);
            }
        }
        receipt.result
    }

    /// The peer violated the protocol: the substream is reset, but data received before stays
    /// readable.
    fn on_violation(&mut self, channel: ChannelId, code: u32) {
        if let Some(entry) = self.substreams.get(channel)
            && entry.shared.state().end().is_none()
        {
            let shared = Arc::clone(&entry.shared);
            self.conn.counters.violations.add(1);
            self.count_violation(&shared);
            shared.violated(code);
        }
    }

    /// The peer sent more than it may: unread data is dropped too, to free its memory.
    fn on_overrun(&mut self, shared: &Arc<Shared>, code: u32) {
        if shared.state().end().is_none() {
            self.conn.counters.violations.add(1);
            if code == code::FLOW_CONTROL {
                self.count_violation(shared);
            }
            shared.reset(code);
        }
    }

    /// Counts a substream as unused if a violation resets it before the application used it.
    fn count_violation(&mut self, shared: &Shared) {
        // A substream that is still being negotiated is counted when it is forgotten.
        if shared.origin == Initiator::Remote
            && matches!(shared.usage(), Usage::Waiting | Usage::Accepted)
        {
            self.substreams.unused.count();
        }
    }

    /// A frame on a substream had no effect.
    fn on_ineffective(&mut self, channel: ChannelId) {
        let Some(entry) = self.substreams.get_mut(channel) else {
            return;
        };
        self.conn.counters.ineffective.add(1);
        let config = &self.conn.config;
        match self.ineffective.on_frame(&mut entry.ineffective, config) {
            Penalty::None => {}
            Penalty::ResetSubstream => self.on_violation(channel, code::RATE_LIMITED),
            Penalty::CloseConnection => {
                self.abuse = Some(ConnectionError::TooManyFramesWithoutEffect);
            }
        }
    }

    /// A frame about the connection itself.
    pub(super) fn on_notice(&mut self, notice: &Message) {
        let limit = notice.max_substreams;
        let mut is_news = limit.is_some_and(|limit| self.credit.on_max_substreams(limit));
        is_news |= self.on_draining_notice(notice);
        if is_news {
            return;
        }
        self.conn.counters.ineffective.add(1);
        if self.ineffective.on_notice(&self.conn.config) == Penalty::CloseConnection {
            self.abuse = Some(ConnectionError::TooManyFramesWithoutEffect);
        }
    }
}
