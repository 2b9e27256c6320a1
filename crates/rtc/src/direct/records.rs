//! DTLS records: those of the peer, and those of this side.

use std::time::Instant;

use anabranch_sctp::Ecn;
use bytes::Bytes;
use dimpl::Output;
use sha2::{Digest, Sha256};

use super::channels::Channels;
use super::marked::Marked;
use super::path::Route;
use super::{DTLS_OUTPUT, DirectEngine, DtlsState, FirstFlight};
use crate::client_hello::Verdict;
use crate::dtls::{PacedDtls, Versions};
use crate::engine::{Datagram, EndReason, Event, Role};
use crate::transmit::TransmitQueue;

/// Maximum records encrypted between two drains of DTLS, if they are too long to share a datagram.
const RECORDS_PER_DRAIN: usize = 8;

/// Maximum buffer that DTLS can ask for: its longest record (RFC 6347 section 4.1.1).
const MAX_DTLS_OUTPUT: usize = 32 * 1024;

/// Handles a packet of the peer that DTLS has opened.
fn handle_opened(
    channels: &mut Channels,
    marked: &mut Marked,
    early_bytes: &mut usize,
    now: Instant,
    packet: &[u8],
) {
    marked.on_opened();
    if !channels.is_authenticated() {
        *early_bytes += packet.len();
    }
    channels.sctp.handle_packet(now, packet);
}

impl DirectEngine {
    pub(super) fn start_dtls(&mut self, now: Instant) -> Result<(), EndReason> {
        let certificate = self.certificate.clone();
        let mut dtls = PacedDtls::new(certificate, Versions::Both, Some(self.mtu), now)?;
        dtls.set_active(self.role == Role::Client);
        self.dtls = Some(dtls);
        self.handle_dtls_timeout(now);
        Ok(())
    }

    pub(super) fn handle_dtls_timeout(&mut self, now: Instant) {
        if let Some(dtls) = &mut self.dtls
            && let Err(error) = dtls.handle_timeout(now)
        {
            self.channels.end(EndReason::Dtls(error.to_string()));
        }
    }

    pub(super) fn handle_record(&mut self, now: Instant, datagram: &[u8]) {
        let is_established = self.is_dtls_established();
        let is_first_contact = self.role == Role::Server && !is_established;
        let Some(dtls) = &mut self.dtls else {
            return;
        };
        self.early_hello.on_record();
        let result = if is_first_contact {
            match self.client_hello.handle(datagram) {
                Verdict::Pass if self.first_flight.take_copy(datagram) => Ok(()),
                Verdict::Pass => {
                    self.first_flight.on_input(datagram);
                    dtls.handle_packet(datagram)
                }
                Verdict::Held => Ok(()),
            }
        } else if is_established {
            dtls.open_packet(datagram, |packet| {
                self.has_authentic = true;
                let early_bytes = &mut self.early_bytes;
                handle_opened(
                    &mut self.channels,
                    &mut self.marked,
                    early_bytes,
                    now,
                    packet,
                );
            })
        } else {
            dtls.handle_packet(datagram)
        };
        // Errors concern one datagram, and anybody who can forge the peer's address can cause them:
        // it counts as lost. What ends the connection is reported as an output.
        if let Err(error) = result {
            tracing::debug!(target: "anabranch::webrtc", %error, "DTLS record refused");
        }
    }

    /// Handles a record from an address that is being validated.
    pub(super) fn handle_record_of_unvalidated(
        &mut self,
        now: Instant,
        datagram: Datagram<'_>,
        out: &mut TransmitQueue,
    ) {
        let source = datagram.source;
        // The pending output of DTLS came from elsewhere.
        self.drain_dtls(now, out);
        let _ = self.channels.sctp.take_heartbeat_ack();
        self.handle_record_alone(now, datagram, out);
        if let Some(answer) = self.channels.sctp.take_heartbeat_ack()
            && self.path.confirm(now, source, answer)
        {
            let event = Event::AddressValidated(source);
            self.channels.push_event(event);
        }
    }

    /// Passes the ClientHello to DTLS once it is complete.
    pub(super) fn handle_client_hello(&mut self, now: Instant) {
        if let Some(dtls) = &mut self.dtls
            && let Some(record) = self.client_hello.poll(now)
        {
            self.first_flight.on_input(&record);
            if let Err(error) = dtls.handle_packet(&record) {
                tracing::debug!(target: "anabranch::webrtc", %error, "ClientHello refused");
            }
        }
    }

    /// Drains DTLS: plaintext to SCTP first, then datagrams.
    pub(super) fn drain_dtls(&mut self, now: Instant, out: &mut TransmitQueue) {
        let mut room = DTLS_OUTPUT;
        while let (Some(dtls), Some(Route { local, remote })) = (&mut self.dtls, self.path.route())
        {
            match dtls.poll_output(out.room(room)) {
                Output::ApplicationData(packet) => {
                    self.has_authentic = true;
                    let early_bytes = &mut self.early_bytes;
                    handle_opened(
                        &mut self.channels,
                        &mut self.marked,
                        early_bytes,
                        now,
                        packet,
                    );
                }
                Output::Packet(datagram) => {
                    self.first_flight.on_output(datagram);
                    self.early_hello.on_output(datagram);
                    let length = datagram.len();
                    out.commit_with_ecn(length, local.ip(), remote, self.codepoint);
                }
                // The end of the handshake proves that the peer has the key and receives our
                // packets.
                Output::PeerCert(certificate) => {
                    if let DtlsState::Handshaking { peer_sha256 } = &mut self.dtls_state {
                        *peer_sha256 = Some(Sha256::digest(certificate).into());
                    }
                }
                Output::Connected => {
                    self.first_flight = FirstFlight::default();
                    match std::mem::replace(&mut self.dtls_state, DtlsState::Established) {
                        DtlsState::Handshaking {
                            peer_sha256: Some(sha256),
                        } => self.channels.push_event(Event::DtlsConnected { sha256 }),
                        DtlsState::Handshaking { peer_sha256: None } => {
                            return self.channels.end(EndReason::NoCertificate);
                        }
                        DtlsState::Established => {}
                    }
                    // The server waits for the client.
                    if self.role == Role::Client {
                        self.channels.sctp.start();
                    }
                }
                Output::CloseNotify => {
                    self.is_peer_informed = true;
                    self.channels.end(EndReason::ClosedByPeer);
                }
                Output::BufferTooSmall { needed } if room < MAX_DTLS_OUTPUT => {
                    room = needed.min(MAX_DTLS_OUTPUT);
                }
                Output::BufferTooSmall { .. } => {
                    let cause = "record too long".to_owned();
                    return self.channels.end(EndReason::Dtls(cause));
                }
                Output::Timeout(at) => {
                    self.dtls_timeout = Some(at);
                    for datagram in self.first_flight.take_resend() {
                        out.push(datagram, local.ip(), remote);
                    }
                    self.early_hello.on_drained();
                    for datagram in self.early_hello.take_resend(now) {
                        out.push(&datagram, local.ip(), remote);
                    }
                    self.count_marked();
                    return;
                }
                _ => {}
            }
        }
    }

    /// Sends probes of the path MTU, each by a system call of its own.
    pub(super) fn send_mtu_probes(&mut self, now: Instant, out: &mut TransmitQueue) {
        while self.may_transmit()
            && let Some(probe) = self.channels.sctp.poll_probe(now)
        {
            out.end_run();
            if let Some(dtls) = &mut self.dtls
                && let Err(error) = dtls.send_application_data(&probe)
            {
                tracing::debug!(target: "anabranch::webrtc", %error, "probe not encrypted");
            }
            self.drain_dtls(now, out);
            out.end_run();
        }
    }

    /// Encrypts packets, each into a datagram of its own.
    ///
    /// dimpl bundles records that fit one datagram. libdatachannel reads the second record only
    /// when the next datagram arrives, so that every SACK bundled with DATA caused a
    /// retransmission. And dimpl itself drops a datagram with more than 8 records.
    pub(super) fn encrypt(&mut self, now: Instant, packets: &[Bytes], out: &mut TransmitQueue) {
        // What DTLS had to send by itself is in `out`: all callers have drained it.
        self.codepoint = self.channels.sctp.codepoint();
        let mut waiting = 0;
        for packet in packets {
            let could_share = packet.len() <= self.mtu / 2;
            if waiting == RECORDS_PER_DRAIN || (could_share && waiting > 0) {
                self.drain_dtls(now, out);
                waiting = 0;
            }
            if let Some(dtls) = &mut self.dtls
                && let Err(error) = dtls.send_application_data(packet)
            {
                // Equivalent to a lost packet.
                tracing::debug!(target: "anabranch::webrtc", %error, "packet not encrypted");
            }
            waiting += 1;
            if could_share {
                self.drain_dtls(now, out);
                waiting = 0;
            }
        }
        self.drain_dtls(now, out);
        self.codepoint = Ecn::NotEct;
    }
}
