//! Inbound packets, chunk by chunk (RFC 9260 section 3.3).

use std::time::Instant;

use super::ecn::Counts;
use super::handshake::Init;
use super::packet::{self, Chunk, DataHeader, Fields, ForwardTsn, Header, Sack, Segment, kind};
use super::receiver::Receiver;
use super::reset::{ResetOutcome, Resets};
use super::sender::WithholdMode;
use super::{Association, Config, EndReason, Event, PORT, State, Unconfirmed, Violation, cause};

/// Maximum bytes of an unrecognized chunk that its ERROR repeats.
const MAX_REPORTED: usize = 64;

impl Association {
    /// Handles a packet of the peer, which DTLS has authenticated. An invalid packet is dropped. A
    /// protocol violation ends the association with [`EndReason::Violation`](crate::EndReason).
    pub fn handle_packet(&mut self, now: Instant, packet: &[u8]) {
        let Some((header, chunks)) = packet::parse(packet) else {
            return;
        };
        if self.state == State::Ended || header.destination != PORT {
            return;
        }
        let (mut has_data, mut has_sack) = (false, false);
        self.sender.marking_mut().set_pending(None);
        for chunk in chunks {
            // Verification tag rules (RFC 9260 section 8.5).
            if !self.has_valid_tag(header, chunk) {
                return;
            }
            has_data |= matches!(chunk.kind, kind::DATA | kind::SEGMENT);
            // One SACK per packet: each further one could make the sender walk through gaps that
            // the previous one revoked.
            if chunk.kind == kind::SACK && std::mem::replace(&mut has_sack, true) {
                continue;
            }
            match self.handle_chunk(now, header, chunk) {
                Ok(true) => {}
                Ok(false) => break,
                Err(violation) => {
                    self.queue_abort(cause::PROTOCOL_VIOLATION, &[]);
                    return self.end(EndReason::Violation(violation));
                }
            }
        }
        if has_data && self.is_up() {
            self.receiver.on_data_packet(now);
        }
        self.check_black_hole(now);
        self.answer_peer_resets();
    }

    fn has_valid_tag(&self, header: Header, chunk: Chunk<'_>) -> bool {
        match chunk.kind {
            kind::INIT => header.tag == 0,
            // The T bit: the tag is the sender's own (RFC 9260 section 8.5.1).
            kind::ABORT | kind::SHUTDOWN_COMPLETE if chunk.flags & 1 != 0 => {
                self.peer.is_some_and(|peer| peer.tag == header.tag)
            }
            _ => header.tag == self.own.tag,
        }
    }

    /// Returns `false` if the rest of the packet is to be ignored.
    fn handle_chunk(
        &mut self,
        now: Instant,
        header: Header,
        chunk: Chunk<'_>,
    ) -> Result<bool, Violation> {
        // The peer has accepted our cookie; its COOKIE-ACK is lost or late.
        if self.state == State::CookieEchoed && matches!(chunk.kind, kind::DATA | kind::SACK) {
            self.established();
        }
        let is_up = self.is_up();
        // It has our tag, which is in INIT-ACK.
        if !matches!(chunk.kind, kind::INIT | kind::INIT_ACK) {
            self.unconfirmed = None;
        }
        match chunk.kind {
            kind::DATA if is_up => {
                let Some((header, payload)) = DataHeader::parse(chunk) else {
                    return Err(Violation::TruncatedData);
                };
                if payload.is_empty() {
                    // RFC 9260 section 6.2.
                    self.queue_abort(cause::NO_USER_DATA, &header.tsn.to_be_bytes());
                    self.end(EndReason::Violation(Violation::EmptyData));
                    return Ok(false);
                }
                self.on_data(header, payload)?;
            }
            kind::SEGMENT if is_up => {
                let segment = Segment::parse(chunk).ok_or(Violation::TruncatedData)?;
                // One that has arrived is reported as a duplicate, or the sender waits for ever.
                if !self.receiver.is_awaited(segment.header.tsn) {
                    self.on_data(segment.header, segment.payload)?;
                } else if let Some((header, payload)) = self.segments.add(segment)? {
                    self.on_data(header, &payload)?;
                }
            }
            kind::SACK if is_up => {
                if let Some(sack) = Sack::parse(chunk.value) {
                    self.sender.handle_sack(now, sack, &mut self.events)?;
                }
            }
            // Before the SACK that it belongs to.
            kind::ECN_COUNTS if is_up && self.has_ecn() => {
                let counts = Counts::parse(chunk.value);
                self.sender.marking_mut().set_pending(counts);
            }
            kind::INIT => self.on_init(header, chunk.value),
            kind::INIT_ACK => self.on_init_ack(header, chunk.value),
            kind::COOKIE_ECHO => self.on_cookie_echo(chunk.value),
            kind::COOKIE_ACK if self.state == State::CookieEchoed => self.established(),
            kind::HEARTBEAT => self.reply(kind::HEARTBEAT_ACK, chunk.value.to_vec()),
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
                self.state = State::ShutdownReceived;
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
            kind::SHUTDOWN_ACK
                if matches!(self.state, State::ShutdownPending | State::ShutdownReceived) =>
            {
                self.reply(kind::SHUTDOWN_COMPLETE, Vec::new());
                self.end(EndReason::Closed);
            }
            kind::SHUTDOWN_COMPLETE if self.state == State::ShutdownReceived => {
                self.end(EndReason::Closed)
            }
            // Out of place, or not supported (ECNE and CWR belong to an extension that is not
            // offered).
            kind::DATA..=kind::SHUTDOWN_COMPLETE | kind::RE_CONFIG | kind::FORWARD_TSN => {}
            _ => return Ok(self.skip_unrecognized(chunk)),
        }
        Ok(true)
    }

    /// Handles the user data of a chunk.
    fn on_data(&mut self, header: DataHeader, payload: &[u8]) -> Result<(), Violation> {
        if header.stream >= self.own.inbound_streams {
            // Reported, acknowledged and dropped (RFC 9260 section 6.5).
            let [high, low] = header.stream.to_be_bytes();
            self.queue_error(kind::ERROR, cause::INVALID_STREAM, &[high, low, 0, 0]);
        }
        if !self.segments.is_empty() {
            self.segments.forget(header.tsn);
        }
        self.receiver
            .handle_data(header, payload, &mut self.events)?;
        self.perform_deferred_resets()
    }

    /// Handles an unrecognized chunk: its two high bits say whether to process the rest of the
    /// packet and whether to report the chunk (RFC 9260 section 3.2).
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
            self.queue_error(kind::ERROR, cause::UNRECOGNIZED_CHUNK, &start);
        }
        chunk.kind & 0x80 != 0
    }

    fn on_init(&mut self, header: Header, value: &[u8]) {
        let Some((peer, _)) = Init::parse(value) else {
            return;
        };
        // The INIT-ACK was lost.
        if let Some(unconfirmed) = &mut self.unconfirmed
            && self.peer == Some(peer)
        {
            unconfirmed.is_due = true;
            return;
        }
        // Both sides may start at once (RFC 9260 section 5.2.1). A later INIT is old: a peer that
        // restarts does so with DTLS.
        if matches!(
            self.state,
            State::Closed | State::CookieWait | State::CookieEchoed
        ) {
            self.set_peer(header, peer);
            // Only if the peer offered them: pion before 1.8.11 rejects an INIT-ACK with an unknown
            // parameter.
            let answer = Init {
                zero_checksum: self.own.zero_checksum && peer.zero_checksum,
                forward_tsn: self.own.forward_tsn && peer.forward_tsn,
                ecn: self.own.ecn && peer.ecn,
                without_cookie: self.is_without_cookie(),
                segments: self.own.segments && peer.segments,
                ..self.own
            };
            let answer = answer.encode(Some(&self.cookie));
            if self.is_without_cookie() {
                self.unconfirmed = Some(Unconfirmed {
                    init_ack: answer,
                    is_due: true,
                });
                self.established();
            } else {
                self.reply(kind::INIT_ACK, answer);
            }
        }
    }

    /// Whether neither side needs a cookie.
    pub(super) fn is_without_cookie(&self) -> bool {
        self.own.without_cookie && self.peer.is_some_and(|peer| peer.without_cookie)
    }

    fn on_init_ack(&mut self, header: Header, value: &[u8]) {
        if self.state != State::CookieWait {
            return;
        }
        if let Some((peer, Some(cookie))) = Init::parse(value) {
            self.set_peer(header, peer);
            if self.is_without_cookie() {
                return self.established();
            }
            self.state = State::CookieEchoed;
            self.queue_control(kind::COOKIE_ECHO, cookie.to_vec());
        }
    }

    /// Applies the peer's INIT or INIT-ACK.
    fn set_peer(&mut self, header: Header, peer: Init) {
        if self.peer == Some(peer) {
            return;
        }
        self.peer = Some(peer);
        self.peer_port = header.source;
        self.sender.set_peer_window(peer.a_rwnd);
        // No other stack does without a cookie.
        if self.is_without_cookie() {
            self.sender.lift_nearby_limit();
        }
        if self.own.segments && peer.segments {
            self.path_mtu.enable();
        }
        self.sender.set_withhold_mode(match peer {
            Init { prunes: true, .. } => WithholdMode::SkipWhenDrained,
            Init {
                forward_tsn: true, ..
            } => WithholdMode::Skip,
            _ => WithholdMode::Delay,
        });
        let Config {
            receive_buffer,
            max_message,
            ..
        } = self.config;
        self.receiver = Receiver::new(peer.first_tsn, receive_buffer, max_message);
        self.receiver.set_max_streams(self.own.inbound_streams);
        self.resets = Resets::new(self.own.first_tsn, peer.first_tsn);
    }

    fn on_cookie_echo(&mut self, value: &[u8]) {
        if value != self.cookie || self.peer.is_none() {
            return;
        }
        // Acknowledged again: the previous COOKIE-ACK may be lost.
        self.reply(kind::COOKIE_ACK, Vec::new());
        if matches!(
            self.state,
            State::Closed | State::CookieWait | State::CookieEchoed
        ) {
            self.established();
        }
    }

    fn established(&mut self) {
        self.state = State::Established;
        self.control = None;
        if self.has_ecn() {
            self.sender.start_marking();
        }
        self.events.push_back(Event::Connected);
    }

    fn on_re_config(&mut self, value: &[u8]) {
        let mut answer = Vec::new();
        let receiver = &self.receiver;
        let outcomes = self
            .resets
            .handle(value, |tsn| receiver.has_reached(tsn), &mut answer);
        if !answer.is_empty() {
            self.reply(kind::RE_CONFIG, answer);
        }
        if let Some(last_tsn) = self.resets.deferred_until() {
            self.receiver.hold_after(last_tsn);
        }
        for outcome in outcomes {
            self.on_reset_outcome(outcome);
        }
    }

    /// Performs a deferred reset once its last TSN has arrived, and delivers the DATA after it (RFC
    /// 6525 section 5.2.2).
    fn perform_deferred_resets(&mut self) -> Result<(), Violation> {
        let mut answer = Vec::new();
        let receiver = &self.receiver;
        let performed = self
            .resets
            .perform_deferred(|tsn| receiver.has_reached(tsn), &mut answer);
        if let Some(streams) = performed {
            self.reply(kind::RE_CONFIG, answer);
            self.on_reset_outcome(ResetOutcome::PeerReset(streams));
            self.receiver.release(&mut self.events)?;
        }
        Ok(())
    }
}
