//! What an association sends, and when (RFC 9260 sections 4, 6 and 9).

use std::time::Instant;

use bytes::{Bytes, BytesMut};

use super::bundle::Packets;
use super::packet::{kind, put_parameter};
use super::sender::{RTO_INITIAL, RTO_MAX};
use super::{Association, ControlChunk, EndReason, PORT, SHUTDOWN_ATTEMPTS, State, cause, reset};

impl Association {
    /// The next packets to send, as many as the windows allow; `None` if there are none. To be
    /// called after every other call until it returns `None`, and then
    /// [`Association::poll_probe`].
    pub fn poll_transmit(&mut self, now: Instant) -> Option<Vec<Bytes>> {
        let ports = [PORT, self.peer_port];
        let tag = self.peer.map_or(0, |peer| peer.tag);
        let zero_checksum = self.peer.is_some_and(|peer| peer.zero_checksum);
        let buffer = std::mem::take(&mut self.buffer);
        let max = self.path_mtu.current();
        let mut packets = Packets::new(max, (ports, tag), zero_checksum, buffer);
        packets.limit_sacks(self.path_mtu.base());
        self.sender.marking_mut().begin_transmit();
        // With DATA in the same packet: without it a peer that has not received it drops the DATA.
        let mut is_for_data = false;
        if let Some(unconfirmed) = &mut self.unconfirmed {
            is_for_data = !std::mem::take(&mut unconfirmed.is_due);
            packets.put(kind::INIT_ACK, 0, &unconfirmed.init_ack);
        }
        let alone = packets.bytes();
        for (kind, value) in self.replies.drain(..) {
            packets.put(kind, 0, &value);
            if kind == kind::INIT_ACK {
                // INIT-ACK must not be bundled (RFC 9260 section 3.3.3).
                packets.finish_packet();
            }
        }
        if self.state != State::Ended {
            self.fill(now, &mut packets);
        }
        if is_for_data && packets.bytes() == alone {
            packets.clear();
        }
        let (whole, buffer) = packets.finish();
        self.sender.marking_mut().on_sent(whole.len());
        // Not worth keeping for single packets.
        self.buffer = if whole.len() > 1 {
            buffer
        } else {
            BytesMut::new()
        };
        (!whole.is_empty()).then_some(whole)
    }

    fn fill(&mut self, now: Instant, packets: &mut Packets) {
        self.begin_shutdown();
        if let Some(control) = &mut self.control
            && control.at.is_none_or(|at| at <= now)
        {
            let timeout = (RTO_INITIAL * (1 << control.sent.min(3))).min(RTO_MAX);
            control.at = Some(now + timeout);
            control.sent += 1;
            let is_end = matches!(control.kind, kind::SHUTDOWN | kind::SHUTDOWN_ACK);
            if is_end && control.sent > SHUTDOWN_ATTEMPTS {
                return self.end(EndReason::Closed);
            }
            let ControlChunk { kind, value, .. } = control;
            if *kind == kind::SHUTDOWN {
                value.clear();
                value.extend(self.receiver.cumulative_tsn().to_be_bytes());
            }
            if *kind == kind::INIT {
                // INIT has tag 0, even if an INIT of the peer has set its tag.
                let header = ([PORT, self.peer_port], 0);
                let mut alone = Packets::new(self.path_mtu.base(), header, false, BytesMut::new());
                alone.put(*kind, 0, value);
                packets.append(alone);
            } else {
                if *kind == kind::COOKIE_ECHO {
                    // COOKIE-ECHO is the first chunk of its packet (RFC 9260 section 5.1).
                    packets.finish_packet();
                }
                packets.put(*kind, 0, value);
            }
        }
        if !self.is_up() {
            return;
        }
        let has_ecn = self.has_ecn();
        let carries_data = self.sender.wants_to_send(now);
        if self.receiver.is_sack_due(now) || (carries_data && self.receiver.has_unacknowledged()) {
            let counts = has_ecn.then(|| self.received_ecn.take_report()).flatten();
            let duplicates = self.receiver.take_duplicates();
            let (cumulative_tsn, window, gaps) = self.receiver.sack();
            packets.put_sack(cumulative_tsn, window, gaps, &duplicates, counts);
        }
        if self.sender.has_resets() && self.resets.is_free() {
            let streams = self.sender.take_resets(reset::MAX_STREAMS);
            self.resets.request(streams, self.sender.acked_tsn());
        }
        if let Some(value) = self.resets.poll(now, self.sender.rto()) {
            packets.put(kind::RE_CONFIG, 0, &value);
        }
        self.sender.fill(now, packets);
    }

    /// Shuts the association down in order (RFC 9260 section 9.2).
    pub fn shutdown(&mut self) {
        match self.state {
            State::Established => self.state = State::ShutdownPending,
            State::Closed | State::CookieWait | State::CookieEchoed => self.end(EndReason::Closed),
            State::ShutdownPending | State::ShutdownReceived | State::Ended => {}
        }
    }

    /// Aborts the association. ABORT is in the next `poll_transmit`, which is the last to return
    /// anything.
    pub fn abort(&mut self) {
        if self.state != State::Ended {
            self.queue_abort(cause::USER_INITIATED_ABORT, &[]);
            self.state = State::Ended;
            self.control = None;
            self.unconfirmed = None;
        }
    }

    pub(super) fn queue_abort(&mut self, cause: u16, information: &[u8]) {
        self.replies.clear();
        self.queue_error(kind::ABORT, cause, information);
    }

    /// Queues an ABORT or ERROR chunk with one cause.
    pub(super) fn queue_error(&mut self, kind: u8, cause: u16, information: &[u8]) {
        let mut value = Vec::new();
        put_parameter(&mut value, cause, information);
        self.reply(kind, value);
    }

    /// Sends SHUTDOWN or SHUTDOWN-ACK as soon as everything is acknowledged.
    fn begin_shutdown(&mut self) {
        let kind = match self.state {
            State::ShutdownPending => kind::SHUTDOWN,
            State::ShutdownReceived => kind::SHUTDOWN_ACK,
            _ => return,
        };
        let is_said = self
            .control
            .as_ref()
            .is_some_and(|control| control.kind == kind);
        if !is_said && self.sender.is_idle() {
            self.queue_control(kind, Vec::new());
        }
    }

    /// When [`Association::handle_timeout`] is due, unless another call comes first.
    pub fn next_timeout(&self) -> Option<Instant> {
        if self.state == State::Ended {
            return None;
        }
        [
            self.control.as_ref().and_then(|control| control.at),
            self.receiver.sack_at(),
            self.sender.next_timeout(),
            self.resets.next_timeout(),
            self.path_mtu.next_timeout(),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Advances the time. What is due is sent by the next [`Association::poll_transmit`].
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.state == State::Ended {
            return;
        }
        self.sender.handle_timeout(now);
        self.path_mtu.handle_timeout(now);
        self.check_black_hole(now);
        if self.sender.has_stalled(now, self.config.progress_timeout) {
            self.queue_abort(cause::USER_INITIATED_ABORT, &[]);
            self.end(EndReason::NoProgress);
        }
    }
}
