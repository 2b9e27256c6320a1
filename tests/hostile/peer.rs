//! A peer that is in nobody's hands but the script's: the direct engine with a socket, of which the
//! script decides what goes out.

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
use anabranch_rtc::{CHANNEL_ZERO, ChannelId, EndReason, Engine, Event, Role, Written};
use anabranch_sctp::put_checksum;
use anabranch_testkit::simulator::{Host, SimulatedSocket};

pub(super) const COMMON_HEADER: usize = 12;

/// Other than that of the victim, by which [`forced::set_12`](anabranch_rtc::dtls::forced::set_12) tells
/// them apart.
pub(super) const MTU: usize = 1180;

type Filter = Box<dyn FnMut(&[u8]) -> bool + Send>;

type Mangle = Box<dyn FnMut(Bytes) -> Vec<Bytes> + Send>;

/// What a script hears of its own engine.
#[derive(Debug)]
pub(super) enum Heard {
    DtlsConnected(Fingerprint),
    ChannelZeroOpen,
    Opened(ChannelId),
    /// Something was read and is in [`Peer::received`].
    Data(ChannelId),
    Ended(EndReason),
}

/// Numbers of the association, which a forgery needs to get anywhere.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Numbers {
    /// Ports and verification tag of what the peer sends.
    pub(super) header: [u8; 8],
    /// Of its last DATA chunk.
    pub(super) tsn: u32,
    /// Of the victim, the last that was acknowledged.
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

    /// From USERNAME of the victim's first check.
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
    own_print: Fingerprint,
    /// Which datagrams go out.
    pub(super) sends: Filter,
    /// Whether its SCTP says anything.
    pub(super) speaks_sctp: bool,
    /// What becomes of each of its SCTP packets.
    pub(super) mangle: Mangle,
    pub(super) numbers: Numbers,
    /// Messages of the victim, whole ones of SCTP.
    pub(super) received: VecDeque<(ChannelId, Bytes)>,
    /// Datagrams that came from the victim.
    pub(super) datagrams: usize,
    heard: VecDeque<Heard>,
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
            max_in_flight: 8 << 20,
            receive_buffer: 8 << 20,
            progress_timeout: Duration::from_secs(30),
        };
        Self::new(setup, socket, certificate.fingerprint())
    }

    /// A peer that waits at port 4001 until the victim dials it.
    pub(super) async fn listener(host: &Host, certificate: &Certificate) -> Self {
        let socket = host.bind(listening()).expect("a free port");
        let (first, _) = socket.receive().await;
        // It is lost, and will be repeated.
        let request = StunMessage::parse(&first).expect("a STUN check comes first");
        let username = request.username().expect("it has one");
        let credentials = Credentials::of_listener(username);
        let setup = Setup {
            role: Role::Server,
            certificate: certificate.into(),
            local: socket.local_address(),
            remote: None,
            local_credentials: credentials.own,
            remote_credentials: credentials.victim,
            mtu: MTU,
            max_in_flight: 8 << 20,
            receive_buffer: 8 << 20,
            progress_timeout: Duration::from_secs(30),
        };
        Self::new(setup, socket, certificate.fingerprint())
    }

    fn new(setup: Setup, socket: SimulatedSocket, own_print: Fingerprint) -> Self {
        let role = setup.role;
        let now = tokio::time::Instant::now().into_std();
        let mut engine = DirectEngine::new(setup, now).expect("an engine");
        // Its own limits are for honest peers.
        engine.authenticated();
        Self {
            engine,
            role,
            socket,
            out: TransmitQueue::default(),
            own_print,
            sends: Box::new(|_| true),
            speaks_sctp: true,
            mangle: Box::new(|packet| vec![packet]),
            numbers: Numbers::default(),
            received: VecDeque::new(),
            datagrams: 0,
            heard: VecDeque::new(),
        }
    }

    /// Goes on until there is something to tell of.
    pub(super) async fn next(&mut self) -> Heard {
        loop {
            if let Some(heard) = self.heard.pop_front() {
                return heard;
            }
            let timeout = self.pump();
            if !self.heard.is_empty() {
                continue;
            }
            tokio::select! {
                biased;
                (datagram, source) = self.socket.receive() => {
                    self.datagrams += 1;
                    let now = tokio::time::Instant::now().into_std();
                    let to = self.socket.local_address();
                    self.engine.handle_datagram(now, source, to, &datagram, &mut self.out);
                }
                () = sleep_until(tokio::time::Instant::from_std(timeout)) => {
                    let now = tokio::time::Instant::now().into_std();
                    self.engine.handle_timeout(now);
                }
            }
        }
    }

    /// Goes on for a time, or until it is cut off.
    pub(super) async fn run(&mut self, time: Duration) -> Option<EndReason> {
        let end = tokio::time::Instant::now() + time;
        while let Ok(heard) = tokio::time::timeout_at(end, self.next()).await {
            if let Heard::Ended(cause) = heard {
                return Some(cause);
            }
        }
        None
    }

    /// Goes on until something was heard.
    pub(super) async fn until<T>(&mut self, mut wanted: impl FnMut(&Heard) -> Option<T>) -> T {
        let waiting = async {
            loop {
                let heard = self.next().await;
                if let Some(value) = wanted(&heard) {
                    return value;
                }
                assert!(!matches!(heard, Heard::Ended(_)), "{heard:?}");
            }
        };
        tokio::time::timeout(Duration::from_secs(30), waiting)
            .await
            .expect("it comes")
    }

    /// The handshake up to channel 0; returns the fingerprint of the victim.
    pub(super) async fn connect(&mut self) -> Fingerprint {
        let print = self
            .until(|heard| match heard {
                Heard::DtlsConnected(print) => Some(*print),
                _ => None,
            })
            .await;
        self.until(|heard| matches!(heard, Heard::ChannelZeroOpen).then_some(()))
            .await;
        print
    }

    /// Our side of Noise, with a prologue that names `own` as our certificate.
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

    pub(super) fn own_print(&self) -> Fingerprint {
        self.own_print
    }

    /// Runs Noise to its end as it should be; returns who the victim is.
    pub(super) async fn authenticate(&mut self, mut noise: Handshake) -> PeerId {
        let mut decoder = FrameDecoder::new();
        loop {
            while let Some(bytes) = noise.poll_send() {
                self.say(&bytes);
            }
            if let Some(remote) = noise.finished() {
                let peer = remote.peer_id;
                // What was said last has to go out.
                self.pump();
                return peer;
            }
            let bytes = self.message(CHANNEL_ZERO).await;
            decoder.push(bytes);
            while let Some(message) = decoder.next_message().expect("sound") {
                noise.receive(&message.payload).expect("sound");
            }
        }
    }

    /// Sends bytes on channel 0 in a frame, as Noise does.
    pub(super) fn say(&mut self, bytes: &[u8]) {
        let frame = Message::data(Bytes::copy_from_slice(bytes)).encode();
        self.write(CHANNEL_ZERO, &frame);
    }

    pub(super) fn write(&mut self, channel: ChannelId, message: &[u8]) {
        assert_eq!(self.engine.write(channel, message), Written::Taken);
    }

    /// The next message of the victim on a channel.
    pub(super) async fn message(&mut self, channel: ChannelId) -> Bytes {
        loop {
            let at = self.received.iter().position(|(from, _)| *from == channel);
            if let Some((_, bytes)) = at.and_then(|at| self.received.remove(at)) {
                return bytes;
            }
            self.until(|heard| {
                matches!(heard, Heard::Data(from) if *from == channel).then_some(())
            })
            .await;
        }
    }

    /// Brings what is due through the engine, and sends it.
    pub(super) fn pump(&mut self) -> Instant {
        let now = tokio::time::Instant::now().into_std();
        // SCTP says only what passes through here.
        self.engine.script();
        let mut timeout = self.engine.poll(now, &mut self.out);
        self.take_events();
        if self.speaks_sctp && self.engine.is_dtls_up() {
            let packets = self.engine.take_packets(now);
            let mut mangled = Vec::new();
            for packet in packets {
                self.learn(&packet);
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
            if (self.sends)(run.contents) {
                let sent = self.socket.send_to(run.contents, run.destination);
                sent.expect("a network without limits");
            }
            self.out.pop(1);
        }
    }

    /// Encrypts forged packets of SCTP and sends them.
    pub(super) fn inject(&mut self, packets: &[Bytes]) {
        let now = tokio::time::Instant::now().into_std();
        for packet in packets {
            let packet = std::slice::from_ref(packet);
            self.engine.encrypt_packets(now, packet, &mut self.out);
        }
        self.send();
    }

    /// A packet with these chunks, and a checksum that is right.
    pub(super) fn packet(&self, chunks: &[u8]) -> Bytes {
        let mut packet = BytesMut::new();
        packet.put_slice(&self.numbers.header);
        packet.put_bytes(0, 4);
        packet.put_slice(chunks);
        put_checksum(&mut packet);
        packet.freeze()
    }

    fn learn(&mut self, packet: &Bytes) {
        if let Some(header) = packet.first_chunk() {
            self.numbers.header = *header;
        }
        let mut rest = packet.get(COMMON_HEADER..).unwrap_or_default();
        while let Some(&[kind, _, high, low, a, b, c, d]) = rest.first_chunk() {
            let number = u32::from_be_bytes([a, b, c, d]);
            match kind {
                0 => self.numbers.tsn = number,
                // The first number of an INIT or INIT-ACK is the one behind.
                1 | 2 => {
                    if let Some(first) = rest.get(16..).and_then(<[u8]>::first_chunk) {
                        self.numbers.tsn = u32::from_be_bytes(*first).wrapping_sub(1);
                    }
                }
                3 => self.numbers.acknowledged = number,
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
                    let print = Fingerprint::from_bytes(sha256);
                    self.heard.push_back(Heard::DtlsConnected(print));
                }
                Event::ChannelZeroOpen => self.heard.push_back(Heard::ChannelZeroOpen),
                Event::Ended(cause) => self.heard.push_back(Heard::Ended(cause)),
                Event::Opened { channel, .. } => {
                    self.heard.push_back(Heard::Opened(channel));
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
            self.heard.push_back(Heard::Data(channel));
        }
    }
}

/// Where a hostile listener waits.
pub(super) fn listening() -> SocketAddr {
    SocketAddr::from((ATTACKER, 4001))
}

/// The address that a victim is to dial.
pub(super) fn address(certificate: &Certificate, identity: &Identity) -> Address {
    Address::new(listening())
        .with_certhash(certificate.fingerprint())
        .with_peer_id(identity.peer_id())
}

/// A chunk of SCTP (RFC 9260 section 3.2) that says it is `length` long.
pub(super) fn chunk_with(kind: u8, flags: u8, length: u16, value: &[u8]) -> Vec<u8> {
    let mut chunk = vec![kind, flags];
    chunk.put_u16(length);
    chunk.extend_from_slice(value);
    chunk.resize(chunk.len().next_multiple_of(4), 0);
    chunk
}

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
