//! The engine on `is` (ICE), dimpl (DTLS) and [`anabranch_sctp`], without a stack in between.
//!
//! ```text
//! datagram ─► Path: STUN                                      Path ─► datagram
//!        └──► DTLS ─► plaintext ─► SCTP ─► Channels ─► SCTP ─► DTLS ─► datagram
//! ```

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use dimpl::Output;
use sha2::{Digest, Sha256};

use crate::client_hello::{ClientHelloAssembler, Verdict};
use crate::dtls::{PacedDtls, Versions};
use crate::engine::{
    Certificate, ChannelId, Class, EndReason, Engine, Event, MakeEngine, OpenError, Probe, Role,
    Setup, Written,
};
use crate::limits::{CONTROL_ROOM, MAX_DATAGRAM};
use crate::transmit::TransmitQueue;
use anabranch_sctp as sctp;

mod channels;
mod dcep;
mod first_flight;
mod numbers;
mod path;
#[cfg(feature = "testing")]
pub(crate) mod scripted;
#[cfg(test)]
mod tests;
#[cfg_attr(not(feature = "testing"), expect(unreachable_pub))]
pub(crate) mod validation;

use channels::{Channels, HeldLimits};
use first_flight::FirstFlight;
use path::{Path, PathEvent, Route};

/// See [`Engine::latency_allowance`]. With 256 KiB in flight on loopback in place of 64 KiB, two
/// processes move 560 in place of 280 MB/s.
const LATENCY_ALLOWANCE: Duration = Duration::from_micros(500);

/// Datagrams taken in before SCTP is asked what to send. With more the peer waits longer for its
/// acknowledgements, and less is won with each; DTLS takes 256.
const DATAGRAMS_PER_PUMP: u32 = 24;

/// Room for one output of DTLS: more than any datagram, in or out.
const DTLS_OUTPUT: usize = 2048;

/// Most that DTLS can ask for: its longest record (RFC 6347 section 4.1.1).
const MAX_DTLS_OUTPUT: usize = 32 * 1024;

/// Records encrypted between two drains of DTLS, of those too long to share a datagram.
const RECORDS_PER_DRAIN: usize = 8;

/// Bytes received before the peer is authenticated, repetitions included. Noise needs less than
/// 2 KiB, but a server may send at once while the client's last packet of Noise is lost.
const MAX_EARLY_BYTES: usize = 512 * 1024;

/// How long an engine that has ended sleeps.
const NEVER: Duration = Duration::from_secs(3600);

/// What DTLS adds to a packet at most: header 13, explicit nonce 8, tag 16 (1.2 with AES-GCM).
const DTLS_OVERHEAD: usize = 37;

/// Longest message accepted. libp2p's have 16 KiB at most.
const MAX_MESSAGE: usize = 64 * 1024;

/// An association that is not set up yet.
fn association(mtu: usize, receive_buffer: usize, progress_timeout: Duration) -> sctp::Association {
    let mut config = sctp::Config::default();
    // Chunks are padded to a multiple of four (RFC 9260 section 3.2).
    config.max_packet = mtu.saturating_sub(DTLS_OVERHEAD) & !3;
    config.receive_buffer = receive_buffer;
    config.max_message = MAX_MESSAGE;
    config.progress_timeout = progress_timeout;
    sctp::Association::new(config)
}

/// Makes [`DirectEngine`]s.
#[derive(Debug, Clone, Copy)]
pub struct Direct;

impl MakeEngine for Direct {
    fn name(&self) -> &'static str {
        "direct"
    }

    fn make(&self, setup: Setup, now: Instant) -> Result<Box<dyn Engine>, EndReason> {
        Ok(Box::new(DirectEngine::new(setup, now)?))
    }
}

/// One connection, on ICE, DTLS and SCTP of its own.
pub struct DirectEngine {
    role: Role,
    path: Path,
    certificate: Certificate,
    mtu: usize,
    /// Made when there is a route.
    dtls: Option<PacedDtls>,
    dtls_up: bool,
    /// SHA-256 of the certificate that the peer has shown.
    peer: Option<[u8; 32]>,
    dtls_timeout: Option<Instant>,
    client_hello: ClientHelloAssembler,
    first_flight: FirstFlight,
    channels: Channels,
    /// Datagrams taken in since SCTP was asked what to send.
    fed: u32,
    /// Bytes received before the peer was authenticated.
    early: usize,
    /// Something authentic has come.
    heard: bool,
    /// We are closing, and the peer has to be told.
    closing: bool,
    /// The peer knows that it is over, or can not be told.
    told: bool,
    /// A script takes what SCTP has to send, and decides what becomes of it.
    #[cfg(feature = "testing")]
    is_scripted: bool,
}

impl std::fmt::Debug for DirectEngine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DirectEngine")
            .field("role", &self.role)
            .field("channels", &self.channels.len())
            .field("unacknowledged", &self.channels.unacknowledged())
            .finish_non_exhaustive()
    }
}

impl DirectEngine {
    /// An engine for one connection.
    ///
    /// # Errors
    /// If an address can be no candidate.
    pub fn new(setup: Setup, now: Instant) -> Result<Self, EndReason> {
        let sctp = association(setup.mtu, setup.receive_buffer, setup.progress_timeout);
        // With the entries of the chunks, of which the shortest packets make a tenth.
        let data = setup.max_in_flight.saturating_add(setup.max_in_flight / 4);
        let limits = HeldLimits {
            data,
            all: data.saturating_add(CONTROL_ROOM),
        };
        let path = Path::new(&setup, now)?;
        Ok(Self {
            role: setup.role,
            path,
            certificate: setup.certificate,
            mtu: setup.mtu,
            dtls: None,
            dtls_up: false,
            peer: None,
            dtls_timeout: None,
            client_hello: ClientHelloAssembler::default(),
            first_flight: FirstFlight::default(),
            channels: Channels::new(sctp, setup.role, limits),
            fed: 0,
            early: 0,
            heard: false,
            closing: false,
            told: false,
            #[cfg(feature = "testing")]
            is_scripted: false,
        })
    }

    fn handle_path_event(&mut self, now: Instant) {
        match self.path.next_event() {
            Some(PathEvent::Found) => {
                self.channels.push_event(Event::IceConnected);
                let certificate = self.certificate.clone();
                match PacedDtls::new(certificate, Versions::Both, Some(self.mtu), now) {
                    Ok(mut dtls) => {
                        dtls.set_active(self.role == Role::Client);
                        self.dtls = Some(dtls);
                        self.handle_dtls_timeout(now);
                    }
                    Err(cause) => self.channels.end(cause),
                }
            }
            Some(PathEvent::Lost) => {
                self.told = true;
                self.channels.end(EndReason::TimedOut);
            }
            None => {}
        }
    }

    fn handle_dtls_timeout(&mut self, now: Instant) {
        if let Some(dtls) = &mut self.dtls
            && let Err(error) = dtls.handle_timeout(now)
        {
            self.channels.end(EndReason::Dtls(error.to_string()));
        }
    }

    fn handle_record(&mut self, datagram: &[u8]) {
        let Some(dtls) = &mut self.dtls else {
            return;
        };
        let result = if self.role == Role::Server && !self.dtls_up {
            match self.client_hello.handle(datagram) {
                Verdict::Pass if self.first_flight.take_copy(datagram) => Ok(()),
                Verdict::Pass => {
                    self.first_flight.given(datagram);
                    dtls.handle_packet(datagram)
                }
                Verdict::Held => Ok(()),
            }
        } else {
            dtls.handle_packet(datagram)
        };
        // Errors are those of one datagram, and anybody who can forge the peer's address can cause
        // them: it counts as lost. What really ends the connection shows as an output.
        if let Err(error) = result {
            tracing::debug!(target: "anabranch::webrtc", %error, "DTLS record refused");
        }
    }

    /// The same, from an address whose answer is waited for.
    fn handle_record_of_unproven(
        &mut self,
        now: Instant,
        source: SocketAddr,
        datagram: &[u8],
        out: &mut TransmitQueue,
    ) {
        // What DTLS still holds came from elsewhere.
        self.drain_dtls(now, out);
        let _ = self.channels.sctp.take_heartbeat_ack();
        self.handle_record(datagram);
        self.drain_dtls(now, out);
        if let Some(answer) = self.channels.sctp.take_heartbeat_ack()
            && self.path.confirm(now, source, answer)
        {
            let event = Event::AddressValidated(source);
            self.channels.push_event(event);
        }
    }

    /// Hands the ClientHello to DTLS, once its parts have come.
    fn handle_client_hello(&mut self, now: Instant) {
        if let Some(dtls) = &mut self.dtls
            && let Some(record) = self.client_hello.poll(now)
        {
            self.first_flight.given(&record);
            if let Err(error) = dtls.handle_packet(&record) {
                tracing::debug!(target: "anabranch::webrtc", %error, "ClientHello refused");
            }
        }
    }

    /// Takes out of DTLS what it has: plaintext for SCTP first, then datagrams.
    fn drain_dtls(&mut self, now: Instant, out: &mut TransmitQueue) {
        let mut room = DTLS_OUTPUT;
        while let (Some(dtls), Some(Route { local, remote })) = (&mut self.dtls, self.path.route())
        {
            match dtls.poll_output(out.room(room)) {
                Output::ApplicationData(packet) => {
                    self.heard = true;
                    if !self.channels.is_authenticated() {
                        self.early += packet.len();
                    }
                    self.channels.sctp.handle_packet(now, packet);
                }
                Output::Packet(datagram) => {
                    self.first_flight.sent(datagram);
                    let length = datagram.len();
                    out.commit(length, local.ip(), remote);
                }
                // That it has the key to it, and receives what we send, shows at the end of the handshake.
                Output::PeerCert(certificate) => {
                    self.peer = Some(Sha256::digest(certificate).into());
                }
                Output::Connected => {
                    self.dtls_up = true;
                    self.first_flight = FirstFlight::default();
                    let Some(sha256) = self.peer else {
                        let cause = "no certificate of the peer".to_owned();
                        return self.channels.end(EndReason::Dtls(cause));
                    };
                    self.channels.push_event(Event::DtlsConnected { sha256 });
                    // The server waits for the client.
                    if self.role == Role::Client {
                        self.channels.sctp.start();
                    }
                }
                Output::CloseNotify => {
                    self.told = true;
                    self.channels.end(EndReason::ClosedByPeer);
                }
                Output::BufferTooSmall { needed } if room < MAX_DTLS_OUTPUT => {
                    room = needed.min(MAX_DTLS_OUTPUT);
                }
                Output::BufferTooSmall { .. } => {
                    let cause = "a record without bounds".to_owned();
                    return self.channels.end(EndReason::Dtls(cause));
                }
                Output::Timeout(at) => {
                    self.dtls_timeout = Some(at);
                    for datagram in self.first_flight.drained() {
                        out.push(datagram, local.ip(), remote);
                    }
                    return;
                }
                _ => {}
            }
        }
    }

    /// Brings everything that is due through all layers, to and from the peer.
    fn pump(&mut self, now: Instant, out: &mut TransmitQueue) {
        self.pump_in(now, out);
        if self.channels.sctp.is_up() {
            self.path.guard(now);
        }
        if self.may_transmit()
            && let Some(packets) = self.channels.sctp.poll_transmit(now)
        {
            self.encrypt(now, &packets, out);
            self.channels.handle_events();
        }
        self.channels.relieve();
    }

    /// Brings what came from the peer up to the events.
    fn pump_in(&mut self, now: Instant, out: &mut TransmitQueue) {
        self.fed = 0;
        self.handle_client_hello(now);
        self.drain_dtls(now, out);
        if self.early > MAX_EARLY_BYTES && !self.channels.is_authenticated() {
            let cause = "too much data before the handshake was done";
            self.channels.end(EndReason::Limit(cause));
        }
        self.channels.handle_events();
    }

    fn may_transmit(&self) -> bool {
        #[cfg(feature = "testing")]
        if self.is_scripted {
            return false;
        }
        self.dtls_up
    }

    /// Encrypts packets, each into a datagram of its own.
    ///
    /// dimpl puts records together that fit one datagram. libdatachannel reads the second of them
    /// when the next datagram comes, so that every SACK with DATA behind it cost a retransmission;
    /// and dimpl itself drops a datagram with more than 8.
    fn encrypt(&mut self, now: Instant, packets: &[Bytes], out: &mut TransmitQueue) {
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
                // As good as lost on the way.
                tracing::debug!(target: "anabranch::webrtc", %error, "packet not encrypted");
            }
            waiting += 1;
            if could_share {
                self.drain_dtls(now, out);
                waiting = 0;
            }
        }
        self.drain_dtls(now, out);
    }

    /// Tells the peer that we have ended the connection, once. It would not even find out by its consent checks
    /// (RFC 7675): a listener takes them for those of somebody who dials with the same name.
    fn send_abort(&mut self, now: Instant, out: &mut TransmitQueue) {
        if !self.channels.is_ended() || std::mem::replace(&mut self.told, true) {
            return;
        }
        self.channels.sctp.abort();
        if self.dtls_up
            && let Some(packets) = self.channels.sctp.poll_transmit(now)
        {
            self.encrypt(now, &packets, out);
        }
        self.closing = true;
        self.send_close(now, out);
    }

    /// Tells the peer that it is over, behind everything else.
    fn send_close(&mut self, now: Instant, out: &mut TransmitQueue) {
        if !std::mem::take(&mut self.closing) {
            return;
        }
        if let Some(dtls) = &mut self.dtls
            && let Err(error) = dtls.close()
        {
            tracing::debug!(target: "anabranch::webrtc", %error, "no close_notify");
        }
        self.drain_dtls(now, out);
    }
}

impl Engine for DirectEngine {
    fn handle_datagram(
        &mut self,
        now: Instant,
        source: SocketAddr,
        destination: SocketAddr,
        datagram: &[u8],
        out: &mut TransmitQueue,
    ) {
        if self.channels.is_ended() || datagram.len() > MAX_DATAGRAM {
            return;
        }
        // What is what: RFC 7983. There is no media here.
        match datagram.first() {
            Some(0..=3) => {
                self.heard |= self.path.handle_stun(now, source, destination, datagram);
                self.handle_path_event(now);
            }
            Some(20..=63) if self.path.takes_record(now, source) => {
                if self.path.expects(source) {
                    self.handle_record_of_unproven(now, source, datagram, out);
                } else {
                    self.handle_record(datagram);
                }
            }
            _ => return,
        }
        self.fed += 1;
        if self.fed >= DATAGRAMS_PER_PUMP {
            self.pump(now, out);
        }
    }

    fn take_in(&mut self, now: Instant, out: &mut TransmitQueue) -> bool {
        if !self.channels.is_ended() {
            self.pump_in(now, out);
        }
        // The peer has to be told before the end is reported: nobody polls after that.
        !self.channels.is_ended()
    }

    fn handle_timeout(&mut self, now: Instant) {
        if self.channels.is_ended() {
            return;
        }
        self.path.handle_timeout(now);
        self.handle_path_event(now);
        self.handle_dtls_timeout(now);
        self.channels.sctp.handle_timeout(now);
    }

    fn poll(&mut self, now: Instant, out: &mut TransmitQueue) -> Instant {
        if self.channels.is_ended() {
            self.send_abort(now, out);
            return now + NEVER;
        }
        let path_timeout = self.path.poll(now, out);
        self.handle_path_event(now);
        self.pump(now, out);
        self.send_close(now, out);
        self.send_abort(now, out);
        let timeouts = [
            self.dtls_timeout,
            self.channels.sctp.next_timeout(),
            self.client_hello.timeout(),
        ];
        timeouts
            .into_iter()
            .flatten()
            .fold(path_timeout, Instant::min)
    }

    fn next_event(&mut self) -> Option<Event> {
        self.channels.next_event()
    }

    fn open(&mut self, label: &str) -> Result<ChannelId, OpenError> {
        self.channels.open(label)
    }

    fn write_vectored(&mut self, channel: ChannelId, pieces: &[&[u8]], class: Class) -> Written {
        self.channels.write(channel, pieces, class)
    }

    fn read(&mut self, channel: ChannelId) -> Option<Bytes> {
        self.channels.read(channel)
    }

    fn wants_poll(&self) -> bool {
        self.channels.sctp.wants_transmit()
    }

    fn unacknowledged(&self) -> usize {
        self.channels.unacknowledged()
    }

    fn notify_delivered(&mut self, channel: ChannelId) {
        self.channels.notify_delivered(channel);
    }

    fn close_channel(&mut self, channel: ChannelId) {
        self.channels.close(channel);
    }

    fn ignore_channel(&mut self, channel: ChannelId) {
        self.channels.ignore(channel);
    }

    fn is_own_channel(&self, channel: ChannelId) -> bool {
        self.channels.is_own(channel)
    }

    fn authenticated(&mut self) {
        self.channels.authenticated();
    }

    fn holds_back_unread(&self) -> bool {
        !self.channels.is_relieving()
    }

    fn allow_shut_window(&mut self) {
        self.channels.allow_shut_window();
    }

    fn latency_allowance(&self) -> Duration {
        LATENCY_ALLOWANCE
    }

    fn dtls12_records(&self) -> u64 {
        self.dtls.as_ref().map_or(0, |dtls| dtls.protected().most())
    }

    fn packet_payload(&self) -> Option<usize> {
        Some(self.channels.sctp.packet_payload())
    }

    fn move_to(&mut self, now: Instant, local: SocketAddr) {
        if !self.channels.is_ended() {
            self.path.move_to(now, local);
            self.handle_path_event(now);
        }
    }

    fn take_heard(&mut self, _received: bool) -> bool {
        std::mem::take(&mut self.heard)
    }

    fn validates_addresses(&self) -> bool {
        true
    }

    fn next_probe(&mut self, now: Instant, out: &mut TransmitQueue) -> Option<Probe> {
        if self.channels.is_ended() {
            return None;
        }
        let (Route { local, remote }, nonce) = self.path.next_question(now)?;
        let packet = self.channels.sctp.heartbeat(&nonce)?;
        // What DTLS still holds goes where the rest goes.
        self.drain_dtls(now, out);
        let dtls = self.dtls.as_mut()?;
        dtls.send_application_data(&packet).ok()?;
        let mut buffer = [0; DTLS_OUTPUT];
        let Output::Packet(datagram) = dtls.poll_output(&mut buffer) else {
            return None;
        };
        let contents = datagram.to_vec();
        self.drain_dtls(now, out);
        Some(Probe {
            source: local,
            destination: remote,
            contents,
        })
    }

    fn close(&mut self, _now: Instant) {
        self.channels.sctp.shutdown();
        self.closing = true;
    }
}
