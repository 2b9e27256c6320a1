//! What an association has to say, and when (RFC 9260 sections 6, 9 and 4).

use std::time::Instant;

use bytes::{Bytes, BytesMut};

use super::packet::{Packets, kind, put_parameter};
use super::sender::{RTO_INITIAL, RTO_MAX};
use super::{Association, EndReason, PORT, Repeated, SHUTDOWN_ATTEMPTS, State, cause, reset};

impl Association {
    /// The next packets to send, all that the windows allow; `None` when there are none. To be
    /// called after each of the other calls, until it has none.
    pub fn poll_transmit(&mut self, now: Instant) -> Option<Vec<Bytes>> {
        let ports = [PORT, self.peer_port];
        let tag = self.peer.map_or(0, |peer| peer.tag);
        let zero_checksum = self.peer.is_some_and(|peer| peer.zero_checksum);
        let buffer = std::mem::take(&mut self.buffer);
        let mut packets = Packets::new(self.config.max_packet, (ports, tag), zero_checksum, buffer);
        for (kind, value) in self.answers.drain(..) {
            packets.put(kind, 0, &value);
            if kind == kind::INIT_ACK {
                // Alone in its packet (RFC 9260 section 3.3.3).
                packets.finish_packet();
            }
        }
        if self.state != State::Over {
            self.fill(now, &mut packets);
        }
        let (whole, buffer) = packets.finish();
        // With one packet now and then it is not worth keeping.
        self.buffer = if whole.len() > 1 {
            buffer
        } else {
            BytesMut::new()
        };
        (!whole.is_empty()).then_some(whole)
    }

    fn fill(&mut self, now: Instant, packets: &mut Packets) {
        self.begin_end();
        if let Some(repeated) = &mut self.repeated
            && repeated.at.is_none_or(|at| at <= now)
        {
            let timeout = (RTO_INITIAL * (1 << repeated.sent.min(3))).min(RTO_MAX);
            repeated.at = Some(now + timeout);
            repeated.sent += 1;
            let is_end = matches!(repeated.kind, kind::SHUTDOWN | kind::SHUTDOWN_ACK);
            if is_end && repeated.sent > SHUTDOWN_ATTEMPTS {
                return self.end(EndReason::Closed);
            }
            let Repeated { kind, value, .. } = repeated;
            if *kind == kind::SHUTDOWN {
                value.clear();
                value.extend(self.receiver.cumulative_tsn().to_be_bytes());
            }
            if *kind == kind::INIT {
                // Its tag is 0, whatever INIT of the peer's has come.
                let header = ([PORT, self.peer_port], 0);
                let mut alone =
                    Packets::new(self.config.max_packet, header, false, BytesMut::new());
                alone.put(*kind, 0, value);
                packets.append(alone);
            } else {
                if *kind == kind::COOKIE_ECHO {
                    // First in its packet (RFC 9260 section 5.1).
                    packets.finish_packet();
                }
                packets.put(*kind, 0, value);
            }
        }
        if !self.is_up() {
            return;
        }
        let carries_data = self.sender.wants_to_send();
        if self.receiver.is_sack_due(now) || (carries_data && self.receiver.has_news()) {
            let (cumulative_tsn, window, gaps) = self.receiver.sack();
            packets.put_sack(cumulative_tsn, window, gaps);
        }
        if self.sender.has_resets() && self.resets.is_free() {
            let streams = self.sender.take_resets(reset::MAX_STREAMS);
            self.resets.request(streams, self.sender.reached_tsn());
        }
        if let Some(value) = self.resets.poll(now, self.sender.timeout()) {
            packets.put(kind::RE_CONFIG, 0, &value);
        }
        self.sender.fill(now, packets);
    }

    /// Ends the association in order (RFC 9260 section 9.2).
    pub fn shutdown(&mut self) {
        match self.state {
            State::Established => self.state = State::ShuttingDown,
            State::Closed | State::InitSent | State::CookieSent => self.end(EndReason::Closed),
            State::ShuttingDown | State::Answering | State::Over => {}
        }
    }

    /// Ends the association at once. The peer is told with the next `poll_transmit`, the last that has anything.
    pub fn abort(&mut self) {
        if self.state != State::Over {
            self.say_abort(cause::USER_INITIATED_ABORT, &[]);
            self.state = State::Over;
            self.repeated = None;
        }
    }

    pub(super) fn say_abort(&mut self, cause: u16, information: &[u8]) {
        self.answers.clear();
        self.answer_with_cause(kind::ABORT, cause, information);
    }

    /// Answers with an ABORT or an ERROR.
    pub(super) fn answer_with_cause(&mut self, kind: u8, cause: u16, information: &[u8]) {
        let mut value = Vec::new();
        put_parameter(&mut value, cause, information);
        self.answer(kind, value);
    }

    /// Says that it is over as soon as everything is acknowledged.
    fn begin_end(&mut self) {
        let kind = match self.state {
            State::ShuttingDown => kind::SHUTDOWN,
            State::Answering => kind::SHUTDOWN_ACK,
            _ => return,
        };
        let is_said = self
            .repeated
            .as_ref()
            .is_some_and(|repeated| repeated.kind == kind);
        if !is_said && self.sender.is_idle() {
            self.say(kind, Vec::new());
        }
    }

    /// When [`Association::handle_timeout`] is due next, if nothing else happens before.
    pub fn next_timeout(&self) -> Option<Instant> {
        if self.state == State::Over {
            return None;
        }
        [
            self.repeated.as_ref().and_then(|repeated| repeated.at),
            self.receiver.sack_at(),
            self.sender.next_timeout(),
            self.resets.next_timeout(),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Takes the time in. What is due goes out with the next [`Association::poll_transmit`].
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.state == State::Over {
            return;
        }
        self.sender.handle_timeout(now);
        if self.sender.is_stuck(now, self.config.progress_timeout) {
            self.say_abort(cause::USER_INITIATED_ABORT, &[]);
            self.end(EndReason::NoProgress);
        }
    }
}
