//! Packets of the peer, chunk by chunk (RFC 9260 section 3.3).

use std::time::Instant;

use super::handshake::Init;
use super::packet::{self, Chunk, DataHeader, Fields, ForwardTsn, Header, Sack, kind};
use super::receiver::Receiver;
use super::reset::{Outcome, Resets};
use super::sender::Means;
use super::{Association, Config, EndReason, Event, PORT, State, Violation, cause};

/// Bytes of an unrecognized chunk that its report repeats.
const MAX_REPORTED: usize = 64;

impl Association {
    /// Takes in a packet of the peer, which DTLS has authenticated. One that is not sound is
    /// dropped; a peer that breaks a rule ends the association with
    /// [`EndReason::Violation`](crate::EndReason).
    pub fn handle_packet(&mut self, now: Instant, packet: &[u8]) {
        let Some((header, chunks)) = packet::parse(packet) else {
            return;
        };
        if self.state == State::Over || header.destination != PORT {
            return;
        }
        let (mut has_data, mut has_sack) = (false, false);
        for chunk in chunks {
            // The tag shows that the peer knows of this association (RFC 9260 section 8.5).
            if !self.is_of_this(header, chunk) {
                return;
            }
            has_data |= chunk.kind == kind::DATA;
            // One says it all; a peer that sends many makes each walk through what the last has taken back.
            if chunk.kind == kind::SACK && std::mem::replace(&mut has_sack, true) {
                continue;
            }
            match self.handle_chunk(now, header, chunk) {
                Ok(true) => {}
                Ok(false) => break,
                Err(violation) => {
                    self.say_abort(cause::PROTOCOL_VIOLATION, &[]);
                    return self.end(EndReason::Violation(violation));
                }
            }
        }
        if has_data && self.is_up() {
            self.receiver.note_packet(now);
        }
        self.answer_resets();
    }

    fn is_of_this(&self, header: Header, chunk: Chunk<'_>) -> bool {
        match chunk.kind {
            kind::INIT => header.tag == 0,
            // It may bring our own tag back, where the peer has none (RFC 9260 section 8.5.1).
            kind::ABORT | kind::SHUTDOWN_COMPLETE if chunk.flags & 1 != 0 => {
                self.peer.is_some_and(|peer| peer.tag == header.tag)
            }
            _ => header.tag == self.own.tag,
        }
    }

    /// `false` ends the packet.
    fn handle_chunk(
        &mut self,
        now: Instant,
        header: Header,
        chunk: Chunk<'_>,
    ) -> Result<bool, Violation> {
        // A peer that sends these has our cookie, though its COOKIE-ACK was lost or is late.
        if self.state == State::CookieSent && matches!(chunk.kind, kind::DATA | kind::SACK) {
            self.established();
        }
        let is_up = self.is_up();
        match chunk.kind {
            kind::DATA if is_up => {
                // Too short to be one.
                let Some((header, payload)) = DataHeader::parse(chunk) else {
                    return Err(Violation("DATA without a header"));
                };
                if payload.is_empty() {
                    // RFC 9260 section 6.2.
                    self.say_abort(cause::NO_USER_DATA, &header.tsn.to_be_bytes());
                    self.end(EndReason::Violation(Violation("DATA without user data")));
                    return Ok(false);
                }
                if header.stream >= self.own.inbound_streams {
                    // Acknowledged and dropped (RFC 9260 section 6.5).
                    let [high, low] = header.stream.to_be_bytes();
                    self.answer_with_cause(kind::ERROR, cause::INVALID_STREAM, &[high, low, 0, 0]);
                }
                self.receiver
                    .handle_data(header, payload, &mut self.events)?;
                self.perform_deferred_resets()?;
            }
            kind::SACK if is_up => {
                if let Some(sack) = Sack::parse(chunk.value) {
                    self.sender.handle_sack(now, sack, &mut self.events)?;
                }
            }
            kind::INIT => self.on_init(header, chunk.value),
            kind::INIT_ACK => self.on_init_ack(header, chunk.value),
            kind::COOKIE_ECHO => self.on_cookie_echo(chunk.value),
            kind::COOKIE_ACK if self.state == State::CookieSent => self.established(),
            kind::HEARTBEAT => self.answer(kind::HEARTBEAT_ACK, chunk.value.to_vec()),
            kind::HEARTBEAT_ACK if is_up => self.on_heartbeat_ack(chunk.value),
            kind::RE_CONFIG if is_up => self.on_re_config(chunk.value),
            kind::ABORT => {
                let code = Fields(chunk.value).u16();
                self.end(
                    if code.is_none_or(|code| code == cause::USER_INITIATED_ABORT) {
                        EndReason::Closed
                    } else {
                        EndReason::Aborted
                    },
                );
                return Ok(false);
            }
            kind::SHUTDOWN if is_up => {
                self.state = State::Answering;
                if let Some(cumulative_tsn) = Fields(chunk.value).u32() {
                    self.sender
                        .handle_shutdown(now, cumulative_tsn, &mut self.events)?;
                }
            }
            kind::FORWARD_TSN if is_up => {
                if let Some(forward) = ForwardTsn::parse(chunk.value) {
                    self.receiver.forward(forward, &mut self.events)?;
                    self.perform_deferred_resets()?;
                }
            }
            kind::SHUTDOWN_ACK if matches!(self.state, State::ShuttingDown | State::Answering) => {
                self.answer(kind::SHUTDOWN_COMPLETE, Vec::new());
                self.end(EndReason::Closed);
            }
            kind::SHUTDOWN_COMPLETE if self.state == State::Answering => {
                self.end(EndReason::Closed)
            }
            // At the wrong time, or of no interest (ECNE and CWR belong to an extension that is not offered).
            kind::DATA..=kind::SHUTDOWN_COMPLETE | kind::RE_CONFIG | kind::FORWARD_TSN => {}
            _ => return Ok(self.skip_unrecognized(chunk)),
        }
        Ok(true)
    }

    /// What is not known says by its first two bits whether to go on and whether the peer is told (RFC 9260
    /// section 3.2).
    fn skip_unrecognized(&mut self, chunk: Chunk<'_>) -> bool {
        if chunk.kind & 0x40 != 0 && self.peer.is_some() {
            let length = chunk.value.len().min(MAX_REPORTED);
            let mut start = vec![chunk.kind, chunk.flags, 0, 0];
            start.extend_from_slice(chunk.value.get(..length).unwrap_or_default());
            if let Ok(field) = u16::try_from(length + 4)
                && let Some(place) = start.get_mut(2..4)
            {
                place.copy_from_slice(&field.to_be_bytes());
            }
            self.answer_with_cause(kind::ERROR, cause::UNRECOGNIZED_CHUNK, &start);
        }
        chunk.kind & 0x80 != 0
    }

    fn on_init(&mut self, header: Header, value: &[u8]) {
        // Both may begin at once (RFC 9260 section 5.2.1). Later ones are old: a peer that begins anew does so with
        // DTLS.
        if !matches!(
            self.state,
            State::Closed | State::InitSent | State::CookieSent
        ) {
            return;
        }
        if let Some((peer, _)) = Init::parse(value) {
            self.meet(header, peer);
            // Only in answer to the same: pion before 1.8.11 takes no INIT-ACK with a parameter that it does not
            // know.
            let answer = Init {
                zero_checksum: self.own.zero_checksum && peer.zero_checksum,
                forward_tsn: self.own.forward_tsn && peer.forward_tsn,
                ..self.own
            };
            let answer = answer.encode(Some(&self.cookie));
            self.answer(kind::INIT_ACK, answer);
        }
    }

    fn on_init_ack(&mut self, header: Header, value: &[u8]) {
        if self.state != State::InitSent {
            return;
        }
        if let Some((peer, Some(cookie))) = Init::parse(value) {
            self.meet(header, peer);
            self.state = State::CookieSent;
            self.say(kind::COOKIE_ECHO, cookie.to_vec());
        }
    }

    /// Takes note of who the peer is.
    fn meet(&mut self, header: Header, peer: Init) {
        if self.peer == Some(peer) {
            return;
        }
        self.peer = Some(peer);
        self.peer_port = header.source;
        self.sender.set_peer_window(peer.window);
        self.sender.set_means(match peer {
            Init { prunes: true, .. } => Means::SkipAndDrain,
            Init {
                forward_tsn: true, ..
            } => Means::Skip,
            _ => Means::Delay,
        });
        let Config {
            receive_buffer,
            max_message,
            ..
        } = self.config;
        self.receiver = Receiver::new(peer.first_tsn, receive_buffer, max_message);
        self.receiver.set_end_of_streams(self.own.inbound_streams);
        self.resets = Resets::new(self.own.first_tsn, peer.first_tsn);
    }

    fn on_cookie_echo(&mut self, value: &[u8]) {
        if value != self.cookie || self.peer.is_none() {
            return;
        }
        // The first answer may have been lost.
        self.answer(kind::COOKIE_ACK, Vec::new());
        if matches!(
            self.state,
            State::Closed | State::InitSent | State::CookieSent
        ) {
            self.established();
        }
    }

    fn established(&mut self) {
        self.state = State::Established;
        self.repeated = None;
        self.events.push_back(Event::Connected);
    }

    fn on_re_config(&mut self, value: &[u8]) {
        let mut answer = Vec::new();
        let receiver = &self.receiver;
        let outcomes = self
            .resets
            .handle(value, |tsn| receiver.has_reached(tsn), &mut answer);
        if !answer.is_empty() {
            self.answer(kind::RE_CONFIG, answer);
        }
        if let Some(last_tsn) = self.resets.deferred_until() {
            self.receiver.hold_after(last_tsn);
        }
        for outcome in outcomes {
            self.on_reset_outcome(outcome);
        }
    }

    /// Performs a reset that had to wait for DATA, and goes on with what came behind that (RFC 6525 section 5.2.2).
    fn perform_deferred_resets(&mut self) -> Result<(), Violation> {
        let mut answer = Vec::new();
        let receiver = &self.receiver;
        let performed = self
            .resets
            .perform_deferred(|tsn| receiver.has_reached(tsn), &mut answer);
        if let Some(streams) = performed {
            self.answer(kind::RE_CONFIG, answer);
            self.on_reset_outcome(Outcome::PeerReset(streams));
            self.receiver.release(&mut self.events)?;
        }
        Ok(())
    }
}
