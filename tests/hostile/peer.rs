//! A hostile peer: the direct engine on a socket of its own, whose output a script filters, changes
//! and forges.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes, BytesMut};
use is::stun::StunMessage;
use rand::RngExt;
use rand::distr::Alphanumeric;
use tokio::time::sleep_until;

use super::ATTACKER;
use anabranch::WebRtcDirectVersion as Version;
use anabranch::address::Address;
use anabranch::certificate::{Certificate, Fingerprint};
use anabranch::identity::{Identity, PeerId};
use anabranch::message::{FrameDecoder, Message};
use anabranch::noise::Handshake;
use anabranch_rtc::DirectEngine;
use anabranch_rtc::Setup;
use anabranch_rtc::TransmitQueue;
use anabranch_rtc::{
    CHANNEL_ZERO, ChannelId, CongestionControl, Datagram, EndReason, Engine, Event, Role, Written,
};
use anabranch_sctp::put_checksum;
use anabranch_testkit::simulator::{Host, SimulatedSocket};

pub(super) const COMMON_HEADER: usize = 12;

/// Different from the victim's MTU, by which
/// [`forced::set_12`](anabranch_rtc::dtls::forced::set_12) distinguishes the two.
pub(super) const MTU: usize = 1180;

type Filter = Box<dyn FnMut(&[u8]) -> bool + Send>;

type Mangle = Box<dyn FnMut(Bytes) -> Vec<Bytes> + Send>;

/// An event of the peer's engine.
#[derive(Debug)]
pub(super) enum PeerEvent {
    DtlsConnected(Fingerprint),
    ChannelZeroOpen,
    Opened(ChannelId),
    /// Messages were added to [`Peer::received`].
    Data(ChannelId),
    Ended(EndReason),
}

/// Association state that a plausible forgery needs, as seen in the peer's own packets.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Observed {
    /// Ports and verification tag.
    pub(super) header: [u8; 8],
    /// TSN of the last DATA chunk.
    pub(super) tsn: u32,
    /// Last cumulative TSN acknowledged to the victim.
    pub(super) acknowledged: u32,
}

/// ICE ufrags and passwords of both sides (`docs/wire.md` section 4).
struct Credentials {
    own: (String, String),
    victim: (String, String),
}

impl Credentials {
    fn of_dialler(version: Version) -> Self {
        let random = || -> String {
            rand::rng()
                .sample_iter(Alphanumeric)
                .take(32)
                .map(char::from)
                .collect()
        };
        match version {
            Version::V2 => {
                let own = (random(), random());
                let victim = format!("libp2p+webrtc+v2/{}", own.1);
                Self {
                    own,
                    victim: (victim.clone(), victim),
                }
            }
            _ => {
                let both = format!("libp2p+webrtc+v1/{}", random());
                Self {
                    own: (both.clone(), both.clone()),
                    victim: (both.clone(), both),
                }
            }
        }
    }

    /// From the USERNAME of the victim's first check.
    fn of_listener(username: &str) -> Self {
        let (own, victim) = username.split_once(':').expect("two ufrags");
        let password = own.strip_prefix("libp2p+webrtc+v2/").unwrap_or(victim);
        Self {
            own: (own.to_owned(), own.to_owned()),
            victim: (victim.to_owned(), password.to_owned()),
        }
    }
}

/// A hostile peer.
pub(super) struct Peer {
    pub(super) engine: DirectEngine,
    pub(super) role: Role,
    socket: SimulatedSocket,
    out: TransmitQueue,
    own_fingerprint: Fingerprint,
    /// Selects the datagrams that are sent.
    pub(super) send_filter: Filter,
    /// Whether SCTP packets are sent.
    pub(super) sctp_enabled: bool,
    /// Returns the packets that are sent instead of an SCTP packet.
    pub(super) mangle: Mangle,
    pub(super) observed: Observed,
    /// SCTP messages of the victim.
    pub(super) received: VecDeque<(ChannelId, Bytes)>,
    /// Number of datagrams received from the victim.
    pub(super) datagrams_received: usize,
    events: VecDeque<PeerEvent>,
}

impl Peer {
    /// A peer that dials the victim.
    pub(super) fn dialler(host: &Host, victim: &Address, certificate: &Certificate) -> Self {
        Self::dialler_with(host, victim, certificate, Version::V1)
    }

    pub(super) fn dialler_with(
        host: &Host,
        victim: &Address,
        certificate: &Certificate,
        version: Version,
    ) -> Self {
        let socket = host
            .bind(SocketAddr::from((ATTACKER, 0)))
            .expect("a free port");
        let credentials = Credentials::of_dialler(version);
        let setup = Setup {
            role: Role::Client,
            certificate: certificate.into(),
            local: socket.local_address(),
            remote: Some(victim.socket_addr()),
            local_credentials: credentials.own,
            remote_credentials: credentials.victim,
            mtu: MTU,
            max_mtu: MTU,
            max_in_flight: 8 << 20,
            receive_buffer: 8 << 20,
            progress_timeout: Duration::from_secs(30),
            congestion: CongestionControl::Heed,
            ecn: true,
        };
        Self::new(setup, socket, certificate.fingerprint())
    }

    /// A peer that waits at port 4001 until the victim dials it.
    pub(super) async fn listener(host: &Host, certificate: &Certificate) -> Self {
        let socket = host.bind(listener_address()).expect("a free port");
        // This check is lost for the engine; the victim retransmits it.
        let (first, _) = socket.receive().await;
        let request = StunMessage::parse(&first).expect("a STUN check comes first");
        let username = request.username().expect("a check has a USERNAME");
        let credentials = Credentials::of_listener(username);
        let setup = Setup {
            role: Role::Server,
            certificate: certificate.into(),
            local: socket.local_address(),
            remote: None,
            local_credentials: credentials.own,
            remote_credentials: credentials.victim,
            mtu: MTU,
            max_mtu: MTU,
            max_in_flight: 8 << 20,
            receive_buffer: 8 << 20,
            progress_timeout: Duration::from_secs(30),
            congestion: CongestionControl::Heed,
            ecn: true,
        };
        Self::new(setup, socket, certificate.fingerprint())
    }

    fn new(setup: Setup, socket: SimulatedSocket, own_fingerprint: Fingerprint) -> Self {
        let role = setup.role;
        let now = tokio::time::Instant::now().into_std();
        let mut engine = DirectEngine::new(setup, now).expect("an engine");
        // Lifts the limits before authentication, which are for honest peers.
        engine.authenticated();
        Self {
            engine,
            role,
            socket,
            out: TransmitQueue::default(),
            own_fingerprint,
            send_filter: Box::new(|_| true),
            sctp_enabled: true,
            mangle: Box::new(|packet| vec![packet]),
            observed: Observed::default(),
            received: VecDeque::new(),
            datagrams_received: 0,
            events: VecDeque::new(),
        }
    }

    /// Runs until the next event.
    pub(super) async fn next_event(&mut self) -> PeerEvent {
        loop {
            if let Some(event) = self.events.pop_front() {
                return event;
            }
            let timeout = self.pump();
            if !self.events.is_empty() {
                continue;
            }
            tokio::select! {
                biased;
                (datagram, source) = self.socket.receive() => {
                    self.datagrams_received += 1;
                    let now = tokio::time::Instant::now().into_std();
                    let to = self.socket.local_address();
                    let datagram = Datagram::new(source, to, &datagram);
                    self.engine.handle_datagram(now, datagram, &mut self.out);
                }
                () = sleep_until(tokio::time::Instant::from_std(timeout)) => {
                    let now = tokio::time::Instant::now().into_std();
                    self.engine.handle_timeout(now);
                }
            }
        }
    }

    /// Runs for `time`, or until the connection ends, of which it returns the reason.
    pub(super) async fn run(&mut self, time: Duration) -> Option<EndReason> {
        let end = tokio::time::Instant::now() + time;
        while let Ok(event) = tokio::time::timeout_at(end, self.next_event()).await {
            if let PeerEvent::Ended(cause) = event {
                return Some(cause);
            }
        }
        None
    }

    /// Runs until an event for which `wanted` returns a value. Panics if the connection ends.
    pub(super) async fn wait_for<T>(
        &mut self,
        mut wanted: impl FnMut(&PeerEvent) -> Option<T>,
    ) -> T {
        let waiting = async {
            loop {
                let event = self.next_event().await;
                if let Some(value) = wanted(&event) {
                    return value;
                }
                assert!(!matches!(event, PeerEvent::Ended(_)), "{event:?}");
            }
        };
        tokio::time::timeout(Duration::from_secs(30), waiting)
            .await
            .expect("the event comes in time")
    }

    /// Runs the handshake up to channel 0. Returns the victim's fingerprint.
    pub(super) async fn connect(&mut self) -> Fingerprint {
        let fingerprint = self
            .wait_for(|event| match event {
                PeerEvent::DtlsConnected(fingerprint) => Some(*fingerprint),
                _ => None,
            })
            .await;
        self.wait_for(|event| matches!(event, PeerEvent::ChannelZeroOpen).then_some(()))
            .await;
        // A dialler has sent nothing but INIT, which has no tag.
        if let Some(packet) = self.engine.association().heartbeat(&[0; 16]) {
            self.observe(&packet);
        }
        fingerprint
    }

    /// The peer's side of Noise, with `own` as its fingerprint in the prologue.
    pub(super) fn noise(
        &self,
        identity: &Identity,
        own: &Fingerprint,
        victim: &Fingerprint,
    ) -> Handshake {
        match self.role {
            Role::Client => Handshake::client(identity, own, victim),
            Role::Server => Handshake::server(identity, victim, own),
        }
        .expect("a handshake")
    }

    pub(super) fn own_fingerprint(&self) -> Fingerprint {
        self.own_fingerprint
    }

    /// Runs Noise honestly to its end. Returns the victim's peer id.
    pub(super) async fn authenticate(&mut self, mut noise: Handshake) -> PeerId {
        let mut decoder = FrameDecoder::new();
        loop {
            while let Some(bytes) = noise.poll_send() {
                self.send_noise(&bytes);
            }
            if let Some(remote) = noise.finished() {
                let peer = remote.peer_id;
                // Sends the last message.
                self.pump();
                return peer;
            }
            let bytes = self.message(CHANNEL_ZERO).await;
            decoder.push(bytes);
            while let Some(message) = decoder.next_message().expect("valid") {
                noise.receive(&message.payload).expect("valid");
            }
        }
    }

    /// Sends bytes in a frame on channel 0, which is that of Noise.
    pub(super) fn send_noise(&mut self, bytes: &[u8]) {
        let frame = Message::data(Bytes::copy_from_slice(bytes)).encode();
        self.write(CHANNEL_ZERO, &frame);
    }

    pub(super) fn write(&mut self, channel: ChannelId, message: &[u8]) {
        assert_eq!(self.engine.write(channel, message), Written::Taken);
    }

    /// Runs until a message of the victim on this channel, and returns it.
    pub(super) async fn message(&mut self, channel: ChannelId) -> Bytes {
        loop {
            let at = self.received.iter().position(|(from, _)| *from == channel);
            if let Some((_, bytes)) = at.and_then(|at| self.received.remove(at)) {
                return bytes;
            }
            self.wait_for(|event| {
                matches!(event, PeerEvent::Data(from) if *from == channel).then_some(())
            })
            .await;
        }
    }

    /// Polls the engine and sends its output. Returns the next timeout.
    pub(super) fn pump(&mut self) -> Instant {
        let now = tokio::time::Instant::now().into_std();
        // The engine then leaves SCTP packets to `take_packets`.
        self.engine.script();
        let mut timeout = self.engine.poll(now, &mut self.out);
        self.take_events();
        if self.sctp_enabled && self.engine.is_dtls_up() {
            let packets = self.engine.take_packets(now);
            let mut mangled = Vec::new();
            for packet in packets {
                self.observe(&packet);
                mangled.extend((self.mangle)(packet));
            }
            self.engine.encrypt_packets(now, &mangled, &mut self.out);
            self.take_events();
            if let Some(next) = self.engine.association().next_timeout() {
                timeout = timeout.min(next);
            }
        }
        self.send();
        timeout
    }

    fn send(&mut self) {
        while let Some(run) = self.out.front(1) {
            if (self.send_filter)(run.contents) {
                let sent = self.socket.send_to(run.contents, run.destination);
                sent.expect("a network without limits");
            }
            self.out.pop(1);
        }
    }

    /// Encrypts forged SCTP packets and sends them, one in each datagram.
    pub(super) fn inject(&mut self, packets: &[Bytes]) {
        let now = tokio::time::Instant::now().into_std();
        for packet in packets {
            let packet = std::slice::from_ref(packet);
            self.engine.encrypt_packets(now, packet, &mut self.out);
        }
        self.send();
    }

    /// A packet with these chunks and a valid checksum.
    pub(super) fn packet(&self, chunks: &[u8]) -> Bytes {
        let mut packet = BytesMut::new();
        packet.put_slice(&self.observed.header);
        packet.put_bytes(0, 4);
        packet.put_slice(chunks);
        put_checksum(&mut packet);
        packet.freeze()
    }

    /// Updates [`Self::observed`] by a packet of this peer.
    fn observe(&mut self, packet: &Bytes) {
        if let Some(header) = packet.first_chunk() {
            self.observed.header = *header;
        }
        let mut rest = packet.get(COMMON_HEADER..).unwrap_or_default();
        while let Some(&[kind, _, high, low, a, b, c, d]) = rest.first_chunk() {
            let number = u32::from_be_bytes([a, b, c, d]);
            match kind {
                0 => self.observed.tsn = number,
                // INIT and INIT-ACK: the initial TSN is that of the first DATA chunk.
                1 | 2 => {
                    if let Some(first) = rest.get(16..).and_then(<[u8]>::first_chunk) {
                        self.observed.tsn = u32::from_be_bytes(*first).wrapping_sub(1);
                    }
                }
                3 => self.observed.acknowledged = number,
                _ => {}
            }
            let length = usize::from(u16::from_be_bytes([high, low])).next_multiple_of(4);
            rest = rest.get(length.max(4)..).unwrap_or_default();
        }
    }

    fn take_events(&mut self) {
        while let Some(event) = self.engine.next_event() {
            match event {
                Event::DtlsConnected { sha256 } => {
                    let fingerprint = Fingerprint::from_bytes(sha256);
                    self.events.push_back(PeerEvent::DtlsConnected(fingerprint));
                }
                Event::ChannelZeroOpen => self.events.push_back(PeerEvent::ChannelZeroOpen),
                Event::Ended(cause) => self.events.push_back(PeerEvent::Ended(cause)),
                Event::Opened { channel, .. } => {
                    self.events.push_back(PeerEvent::Opened(channel));
                }
                Event::Readable { channel } => self.read(channel),
                Event::Closed { channel } => self.read(channel),
                _ => {}
            }
        }
    }

    fn read(&mut self, channel: ChannelId) {
        let before = self.received.len();
        while let Some(message) = self.engine.read(channel) {
            self.received.push_back((channel, message));
        }
        if self.received.len() > before {
            self.events.push_back(PeerEvent::Data(channel));
        }
    }
}

/// The socket address of a hostile listener.
pub(super) fn listener_address() -> SocketAddr {
    SocketAddr::from((ATTACKER, 4001))
}

/// The address by which a victim dials a hostile listener.
pub(super) fn address(certificate: &Certificate, identity: &Identity) -> Address {
    Address::new(listener_address())
        .with_certhash(certificate.fingerprint())
        .with_peer_id(identity.peer_id())
}

/// An SCTP chunk (RFC 9260 section 3.2) whose length field is `length`.
pub(super) fn chunk_with(kind: u8, flags: u8, length: u16, value: &[u8]) -> Vec<u8> {
    let mut chunk = vec![kind, flags];
    chunk.put_u16(length);
    chunk.extend_from_slice(value);
    chunk.resize(chunk.len().next_multiple_of(4), 0);
    chunk
}

/// An SCTP chunk with its correct length.
pub(super) fn chunk(kind: u8, flags: u8, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(value.len() + 4).expect("short");
    chunk_with(kind, flags, length, value)
}

/// The value of a DATA chunk (RFC 9260 section 3.3.1).
pub(super) fn data(tsn: u32, stream: u16, sequence: u16, protocol: u32, bytes: &[u8]) -> Vec<u8> {
    let mut value = tsn.to_be_bytes().to_vec();
    value.put_u16(stream);
    value.put_u16(sequence);
    value.put_u32(protocol);
    value.extend_from_slice(bytes);
    value
}
