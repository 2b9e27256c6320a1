//! What a frame of the peer does.

use std::sync::Arc;

use super::driver::Turn;
use super::ineffective::Penalty;
use crate::carrier::{Carrier, ChannelId};
use crate::events::Initiator;
use crate::message::{Flag, Message};
use crate::substream::code;
use crate::substream::{Effects, Shared, SubstreamEvent, Usage};

impl<C: Carrier> Turn<'_, C> {
    /// The peer broke the protocol: what it sent before that stays readable.
    pub(super) fn violation(&mut self, shared: &Arc<Shared>) {
        self.reset_for_violation(shared, code::PROTOCOL_VIOLATION);
    }

    fn reset_for_violation(&mut self, shared: &Arc<Shared>, code: u32) {
        if shared.state().end().is_none() {
            self.core.conn.counters.violations.add(1);
            self.count_violation(shared);
            shared.violated(code);
        }
    }

    /// The peer sent more than it may: what is unread goes too, to free its memory.
    fn reset_for_overrun(&mut self, shared: &Arc<Shared>, code: u32) {
        if shared.state().end().is_none() {
            self.core.conn.counters.violations.add(1);
            if code == code::FLOW_CONTROL {
                self.count_violation(shared);
            }
            shared.reset(code);
        }
    }

    /// Counts a substream as unused that the peer has made us reset before the application used it.
    fn count_violation(&mut self, shared: &Shared) {
        // One that is still negotiated counts when it is removed.
        if shared.origin == Initiator::Remote
            && matches!(shared.usage(), Usage::Waiting | Usage::Accepted)
        {
            self.core.unused.count();
        }
    }

    /// One message is one step: first credit and payload, then the flag.
    pub(super) fn on_message(&mut self, channel: ChannelId, message: Message) {
        let Some(entry) = self.core.substreams.get_mut(&channel) else {
            return;
        };
        let shared = Arc::clone(&entry.shared);
        entry.peer_credit |= message.max_data.is_some();
        let (peer_spoke, peer_credit) = (entry.peer_spoke, entry.peer_credit);
        entry.peer_spoke |= !message.payload.is_empty();
        let counters = &self.core.conn.counters;
        counters.frames_received.add(1);
        if message.unknown_flag {
            counters.unknown_flags.add(1);
        }
        let mut has_effect = false;
        if let Some(max_data) = message.max_data {
            self.core.peer_supports_credit = true;
            if shared.granted(max_data, self.core.max_frame_payload()) {
                has_effect = true;
                self.report_resumed(channel);
            }
        }
        if !message.payload.is_empty() {
            // What comes behind FIN is dropped.
            has_effect |= !shared.state().read.has_fin();
            if !peer_spoke && !peer_credit {
                // Its first data would have carried credit: this peer knows none.
                shared.credit_unsupported();
                if !self.core.peer_supports_credit {
                    self.core.opening.on_no_limit();
                }
                self.report_resumed(channel);
            }
            let counters = &self.core.conn.counters;
            counters.payload_received.add(message.payload.len() as u64);
            if let Err(code) = shared.receive_payload(message.payload, peer_credit) {
                return self.reset_for_overrun(&shared, code);
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
            self.violation(&shared);
        } else if !has_effect && (message.flag.is_none() || shared.state() == before) {
            self.on_ineffective(&shared);
        }
    }

    /// A frame has changed nothing.
    fn on_ineffective(&mut self, shared: &Arc<Shared>) {
        let core = &mut *self.core;
        let Some(entry) = core.substreams.get_mut(&shared.id) else {
            return;
        };
        core.conn.counters.ineffective.add(1);
        let counts = &mut core.ineffective;
        match counts.on_frame(&mut entry.ineffective, &core.conn.config) {
            Penalty::None => {}
            Penalty::ResetSubstream => self.reset_for_violation(shared, code::RATE_LIMITED),
            Penalty::CloseConnection => core.too_many_ineffective = true,
        }
    }

    /// A frame about the connection itself.
    pub(super) fn on_notice(&mut self, notice: &Message) {
        let core = &mut *self.core;
        if let Some(max_substreams) = notice.max_substreams {
            core.peer_supports_credit = true;
            if core.opening.on_limit(max_substreams) {
                return;
            }
        }
        core.conn.counters.ineffective.add(1);
        if core.ineffective.on_notice(&core.conn.config) == Penalty::CloseConnection {
            core.too_many_ineffective = true;
        }
    }
}
