//! The engine on `is` (ICE), dimpl (DTLS) and [`anabranch_sctp`].
//!
//! ```text
//! datagram ─► Path: STUN                                      Path ─► datagram
//!        └──► DTLS ─► plaintext ─► SCTP ─► Channels ─► SCTP ─► DTLS ─► datagram
//! ```

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anabranch_sctp::Ecn;
use bytes::Bytes;
use dimpl::Output;

use crate::client_hello::ClientHelloAssembler;
use crate::dtls::PacedDtls;
use crate::engine::{
    Certificate, ChannelId, Class, Datagram, EndReason, Engine, Event, LimitExceeded, MakeEngine,
    OpenError, PathState, Probe, Role, Setup, Written,
};
use crate::limits::{CONTROL_ROOM, MAX_DATAGRAM};
use crate::transmit::TransmitQueue;

mod association;
mod channels;
mod dcep;
mod early_hello;
mod first_flight;
mod marked;
mod path;
mod records;
#[cfg(feature = "testing")]
pub(crate) mod scripted;
mod stream_ids;
#[cfg(test)]
mod tests;
#[cfg_attr(not(feature = "testing"), expect(unreachable_pub))]
pub(crate) mod validation;

use association::{association, datagram_of, write_limit};
use channels::{Channels, HeldLimits};
use early_hello::EarlyHello;
use first_flight::FirstFlight;
use marked::Marked;
use path::{Path, PathEvent, Route};

/// Inbound datagrams per call of SCTP's transmit. More would delay acknowledgements, with
/// diminishing gains; DTLS queues up to 256.
const DATAGRAMS_PER_PUMP: u32 = 24;

/// Buffer for one output of DTLS: longer than any datagram in either direction.
const DTLS_OUTPUT: usize = 2048;

/// Maximum bytes received before the peer is authenticated, retransmissions included. Noise needs
/// less than 2 KiB, but a server may send at once while the client's last Noise packet is lost.
const MAX_EARLY_BYTES: usize = 512 * 1024;

/// Timeout of an engine that has ended.
const NEVER: Duration = Duration::from_secs(3600);

/// Creates [`DirectEngine`]s.
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

/// State of the DTLS handshake.
#[derive(Debug, Clone, Copy)]
enum DtlsState {
    Handshaking {
        /// SHA-256 of the peer's certificate.
        peer_sha256: Option<[u8; 32]>,
    },
    Established,
}

/// One connection on ICE, DTLS and SCTP.
pub struct DirectEngine {
    role: Role,
    path: Path,
    certificate: Certificate,
    mtu: usize,
    /// Created once there is an address to send to.
    dtls: Option<PacedDtls>,
    dtls_state: DtlsState,
    dtls_timeout: Option<Instant>,
    client_hello: ClientHelloAssembler,
    first_flight: FirstFlight,
    early_hello: EarlyHello,
    channels: Channels,
    /// Datagrams handled since SCTP last transmitted.
    datagrams_since_pump: u32,
    /// Bytes received before the peer was authenticated.
    early_bytes: usize,
    marked: Marked,
    /// The codepoint of what DTLS puts out.
    codepoint: Ecn,
    /// Something authentic arrived since [`Engine::take_heard`] was called.
    has_authentic: bool,
    /// close_notify is to be sent.
    is_close_due: bool,
    /// The peer knows that the connection is over, or can not be reached.
    is_peer_informed: bool,
    /// A script takes the packets of SCTP, and decides what is sent.
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
    /// Creates an engine for one connection.
    ///
    /// # Errors
    /// If an address can not be a candidate.
    pub fn new(setup: Setup, now: Instant) -> Result<Self, EndReason> {
        let sctp = association(
            [setup.mtu, setup.max_mtu],
            setup.receive_buffer,
            setup.progress_timeout,
            setup.congestion,
            setup.ecn,
        );
        // Includes the entries of the chunks, which are a tenth of the shortest packets.
        let data = setup.max_in_flight.saturating_add(setup.max_in_flight / 4);
        let limits = HeldLimits {
            data,
            all: data.saturating_add(CONTROL_ROOM),
        };
        let path = Path::new(&setup, now)?;
        let mut engine = Self {
            role: setup.role,
            path,
            certificate: setup.certificate,
            mtu: setup.mtu,
            dtls: None,
            dtls_state: DtlsState::Handshaking { peer_sha256: None },
            dtls_timeout: None,
            client_hello: ClientHelloAssembler::default(),
            first_flight: FirstFlight::default(),
            early_hello: EarlyHello::default(),
            channels: Channels::new(sctp, setup.role, limits),
            datagrams_since_pump: 0,
            early_bytes: 0,
            marked: Marked::default(),
            codepoint: Ecn::NotEct,
            has_authentic: false,
            is_close_due: false,
            is_peer_informed: false,
            #[cfg(feature = "testing")]
            is_scripted: false,
        };
        if engine.role == Role::Client && engine.path.route().is_some() {
            engine.early_hello = EarlyHello::new(now);
            engine.start_dtls(now)?;
        }
        Ok(engine)
    }

    fn handle_path_event(&mut self, now: Instant) {
        if let Some(change) = self.path.take_change() {
            self.channels.sctp.on_path_change(now, change);
        }
        match self.path.next_event() {
            Some(PathEvent::Found) => {
                self.channels.push_event(Event::IceConnected);
                self.early_hello.on_path_found(now);
                if self.dtls.is_none()
                    && let Err(cause) = self.start_dtls(now)
                {
                    self.channels.end(cause);
                }
            }
            Some(PathEvent::Lost) => {
                self.is_peer_informed = true;
                self.channels.end(EndReason::TimedOut);
            }
            None => {}
        }
    }

    /// Moves everything that is due through all layers in both directions.
    fn pump(&mut self, now: Instant, out: &mut TransmitQueue) {
        self.pump_inbound(now, out);
        if self.channels.sctp.is_up() {
            self.path.require_validation(now);
        }
        if self.may_transmit()
            && let Some(packets) = self.channels.sctp.poll_transmit(now)
        {
            self.encrypt(now, &packets, out);
            self.channels.handle_events();
        }
        self.send_mtu_probes(now, out);
        self.channels.update_backpressure();
    }

    /// Moves what was received up to the events.
    fn pump_inbound(&mut self, now: Instant, out: &mut TransmitQueue) {
        self.datagrams_since_pump = 0;
        self.handle_client_hello(now);
        self.drain_dtls(now, out);
        if self.early_bytes > MAX_EARLY_BYTES && !self.channels.is_authenticated() {
            let cause = EndReason::Limit(LimitExceeded::EarlyData);
            self.channels.end(cause);
        }
        self.channels.handle_events();
    }

    fn is_dtls_established(&self) -> bool {
        matches!(self.dtls_state, DtlsState::Established)
    }

    fn may_transmit(&self) -> bool {
        #[cfg(feature = "testing")]
        if self.is_scripted {
            return false;
        }
        self.is_dtls_established()
    }

    /// Aborts the association towards the peer once the connection has ended here. The peer's
    /// consent checks (RFC 7675) would not reveal the end: a listener takes them for those of
    /// another dial with the same ufrag.
    fn send_abort(&mut self, now: Instant, out: &mut TransmitQueue) {
        if !self.channels.is_ended() || std::mem::replace(&mut self.is_peer_informed, true) {
            return;
        }
        self.channels.sctp.abort();
        if self.is_dtls_established()
            && let Some(packets) = self.channels.sctp.poll_transmit(now)
        {
            self.encrypt(now, &packets, out);
        }
        self.is_close_due = true;
        self.send_close(now, out);
    }

    /// Sends close_notify after everything else.
    fn send_close(&mut self, now: Instant, out: &mut TransmitQueue) {
        if !std::mem::take(&mut self.is_close_due) {
            return;
        }
        if let Some(dtls) = &mut self.dtls
            && let Err(error) = dtls.close()
        {
            tracing::debug!(target: "anabranch::webrtc", %error, "close_notify failed");
        }
        self.drain_dtls(now, out);
    }
}

impl Engine for DirectEngine {
    fn handle_datagram(&mut self, now: Instant, datagram: Datagram<'_>, out: &mut TransmitQueue) {
        let (source, to, contents) = (datagram.source, datagram.destination, datagram.contents);
        if self.channels.is_ended() || contents.len() > MAX_DATAGRAM {
            return;
        }
        // Demultiplexing: RFC 7983. There is no media.
        match contents.first() {
            Some(0..=3) => {
                self.has_authentic |= self.path.handle_stun(now, source, to, contents);
                self.handle_path_event(now);
            }
            Some(20..=63) if self.path.accepts_record(now, source) => {
                if self.path.is_validating(source) {
                    self.handle_record_of_unvalidated(now, datagram, out);
                } else if datagram.ecn != Ecn::NotEct {
                    self.handle_marked_record(now, datagram, out);
                } else {
                    self.handle_record(now, contents);
                }
            }
            _ => return,
        }
        self.datagrams_since_pump += 1;
        if self.datagrams_since_pump >= DATAGRAMS_PER_PUMP {
            self.pump(now, out);
        }
    }

    fn take_in(&mut self, now: Instant, out: &mut TransmitQueue) -> bool {
        if !self.channels.is_ended() {
            self.pump_inbound(now, out);
        }
        // ABORT is sent before the end is reported: nobody polls afterwards.
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
            self.early_hello.timeout(),
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
        !self.channels.is_window_tight()
    }

    fn allow_shut_window(&mut self) {
        self.channels.allow_shut_window();
    }

    fn write_limit(&self) -> usize {
        write_limit(&self.channels.sctp)
    }

    fn dtls12_records(&self) -> u64 {
        self.dtls.as_ref().map_or(0, |dtls| dtls.protected().most())
    }

    fn path(&self) -> Option<PathState> {
        let route = self.path.route()?;
        let sctp = &self.channels.sctp;
        Some(PathState {
            local: route.local,
            remote: route.remote,
            rtt: sctp.srtt(),
            min_rtt: sctp.min_rtt(),
            cwnd: sctp.congestion().cwnd(),
            in_flight: sctp.in_flight(),
            mtu: datagram_of(sctp.max_packet()),
            bytes_sent: sctp.bytes_sent(),
            bytes_lost: sctp.bytes_lost(),
        })
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

    fn check_path(&mut self) {
        if self.is_dtls_established() && !self.channels.is_ended() {
            self.path.check_at_once();
        }
    }

    fn take_heard(&mut self, _received: bool) -> bool {
        std::mem::take(&mut self.has_authentic)
    }

    fn validates_addresses(&self) -> bool {
        true
    }

    fn next_probe(&mut self, now: Instant, out: &mut TransmitQueue) -> Option<Probe> {
        if self.channels.is_ended() {
            return None;
        }
        let (Route { local, remote }, nonce) = self.path.next_challenge(now)?;
        let packet = self.channels.sctp.heartbeat(&nonce)?;
        // The pending output of DTLS goes to the current route.
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
        self.is_close_due = true;
    }
}
