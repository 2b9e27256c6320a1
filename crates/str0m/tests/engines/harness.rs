//! Two engines and the network between them, in memory and in virtual time.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;

use anabranch_rtc::{
    CHANNEL_ZERO, Certificate, ChannelId, Class, CongestionControl, Datagram, DirectEngine,
    EndReason, Engine, Event, Role, Setup, TransmitQueue, Written,
};
use anabranch_str0m::Str0mEngine;
use sha2::{Digest, Sha256};

/// Creates the engine of a side.
pub(super) trait Make: Engine + Sized {
    fn make(setup: Setup, now: Instant) -> Self;
}

impl Make for DirectEngine {
    fn make(setup: Setup, now: Instant) -> Self {
        Self::new(setup, now).expect("an engine")
    }
}

impl Make for Str0mEngine {
    fn make(setup: Setup, now: Instant) -> Self {
        Self::new(setup, now).expect("an engine")
    }
}

/// One end, with an application that reads at once by default.
pub(super) struct Side<E> {
    pub(super) engine: E,
    pub(super) address: SocketAddr,
    out: TransmitQueue,
    timeout: Instant,
    pub(super) fingerprint: Option<[u8; 32]>,
    pub(super) zero_open: bool,
    pub(super) opened: Vec<(ChannelId, String)>,
    pub(super) closed: Vec<ChannelId>,
    pub(super) delivered: Vec<ChannelId>,
    pub(super) received: HashMap<ChannelId, Vec<u8>>,
    pub(super) ended: Option<EndReason>,
    /// Channels that are not read.
    pub(super) not_read: HashSet<ChannelId>,
}

impl<E: Engine> Side<E> {
    fn new(engine: E, address: SocketAddr, now: Instant) -> Self {
        Self {
            engine,
            address,
            out: TransmitQueue::default(),
            timeout: now,
            fingerprint: None,
            zero_open: false,
            opened: Vec::new(),
            closed: Vec::new(),
            delivered: Vec::new(),
            received: HashMap::new(),
            ended: None,
            not_read: HashSet::new(),
        }
    }

    pub(super) fn read(&mut self, channel: ChannelId) -> usize {
        let mut bytes = 0;
        while let Some(message) = self.engine.read(channel) {
            bytes += message.len();
            self.received
                .entry(channel)
                .or_default()
                .extend_from_slice(&message);
        }
        bytes
    }

    pub(super) fn read_one(&mut self, channel: ChannelId) -> Option<Bytes> {
        self.engine.read(channel)
    }

    fn take_events(&mut self) {
        while let Some(event) = self.engine.next_event() {
            match event {
                Event::DtlsConnected { sha256 } => self.fingerprint = Some(sha256),
                Event::ChannelZeroOpen => self.zero_open = true,
                Event::Ended(cause) => self.ended = Some(cause),
                Event::Opened { channel, label } => {
                    self.opened.push((channel, label));
                }
                Event::Readable { channel } if !self.not_read.contains(&channel) => {
                    self.read(channel);
                }
                Event::Closed { channel } => {
                    self.read(channel);
                    self.closed.push(channel);
                }
                Event::Delivered { channel } => {
                    self.delivered.push(channel);
                }
                _ => {}
            }
        }
    }

    pub(super) fn write(&mut self, channel: ChannelId, message: &[u8]) {
        // Like control frames: exempt from the channel's share of the peer's window.
        let written = self
            .engine
            .write_vectored(channel, &[message], Class::Control);
        assert_eq!(written, Written::Taken);
    }
}

/// Whether a datagram is no application data, or a single record of it.
fn is_one_record(datagram: &[u8]) -> bool {
    let field = |at: usize| usize::from(u16::from_be_bytes([datagram[at], datagram[at + 1]]));
    match datagram[0] {
        23 => 13 + field(11) == datagram.len(),
        // The unified header of DTLS 1.3 (RFC 9147 section 4), 16-bit sequence number, with a
        // length.
        first @ 32..=63 if first & 0x1c == 0x0c && first & 3 == 3 => 5 + field(3) == datagram.len(),
        _ => true,
    }
}

/// The network between two engines.
pub(super) struct Link {
    pub(super) delay: Duration,
    /// Lost datagrams per thousand.
    pub(super) loss: u64,
    /// Datagrams per thousand that arrive 20 ms late.
    pub(super) late: u64,
    /// Longer datagrams are lost.
    pub(super) max_datagram: usize,
    seed: u64,
}

impl Link {
    fn random(&mut self) -> u64 {
        self.seed ^= self.seed << 13;
        self.seed ^= self.seed >> 7;
        self.seed ^= self.seed << 17;
        self.seed
    }
}

pub(super) struct Pair<C, S> {
    pub(super) client: Side<C>,
    pub(super) server: Side<S>,
    pub(super) now: Instant,
    pub(super) link: Link,
    wire: BTreeMap<(Instant, u64), (bool, Vec<u8>)>,
    sent: u64,
    /// SHA-256 of the certificates of both sides.
    pub(super) certificates: [[u8; 32]; 2],
}

fn certificate() -> Certificate {
    let made = rcgen::generate_simple_self_signed(["test".to_owned()]).expect("randomness");
    Certificate {
        der: made.cert.der().to_vec(),
        private_key: made.signing_key.serialize_der(),
    }
}

/// Credentials of client and server.
pub(super) type Credentials = [(String, String); 2];

pub(super) fn v1() -> Credentials {
    let same = "libp2p+webrtc+v1/0123456789abcdefghij".to_owned();
    [(same.clone(), same.clone()), (same.clone(), same)]
}

pub(super) fn v2() -> Credentials {
    let password = "0123456789abcdefghijklmn".to_owned();
    let server = format!("libp2p+webrtc+v2/{password}");
    [
        ("clientufrag".to_owned(), password),
        (server.clone(), server),
    ]
}

/// Setup of the two engines of a pair.
pub(super) struct Options {
    pub(super) credentials: Credentials,
    pub(super) receive_buffer: usize,
    pub(super) seed: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            credentials: v1(),
            receive_buffer: 4 * 1024 * 1024,
            seed: 0x9e37_79b9_7f4a_7c15,
        }
    }
}

impl<C: Make, S: Make> Pair<C, S> {
    pub(super) fn new(options: Options) -> Self {
        let now = Instant::now();
        let [client_cert, server_cert] = [0, 1].map(|_| certificate());
        let certificates =
            [&client_cert, &server_cert].map(|cert| Sha256::digest(&cert.der).into());
        let (client, server) = (
            SocketAddr::from(([10, 0, 0, 1], 1000)),
            SocketAddr::from(([10, 0, 0, 2], 2000)),
        );
        let [client_creds, server_creds] = options.credentials;
        let setup = |role| {
            let is_client = role == Role::Client;
            Setup {
                role,
                certificate: if is_client {
                    client_cert.clone()
                } else {
                    server_cert.clone()
                },
                local: if is_client { client } else { server },
                remote: is_client.then_some(server),
                local_credentials: if is_client {
                    &client_creds
                } else {
                    &server_creds
                }
                .clone(),
                remote_credentials: if is_client {
                    &server_creds
                } else {
                    &client_creds
                }
                .clone(),
                mtu: 1200,
                max_mtu: 1200,
                max_in_flight: 4 * 1024 * 1024,
                receive_buffer: options.receive_buffer,
                progress_timeout: Duration::from_secs(30),
                congestion: CongestionControl::Heed,
                ecn: true,
            }
        };
        Self {
            client: Side::new(C::make(setup(Role::Client), now), client, now),
            server: Side::new(S::make(setup(Role::Server), now), server, now),
            now,
            link: Link {
                delay: Duration::from_millis(5),
                loss: 0,
                late: 0,
                max_datagram: usize::MAX,
                seed: options.seed,
            },
            wire: BTreeMap::new(),
            sent: 0,
            certificates,
        }
    }

    /// A pair whose handshake is complete.
    pub(super) fn connected(options: Options) -> Self {
        let mut pair = Self::new(options);
        pair.connect();
        pair
    }

    pub(super) fn connect(&mut self) {
        self.until(Duration::from_secs(9), |pair| {
            pair.client.zero_open && pair.server.zero_open
        });
        let [client, server] = self.certificates;
        assert_eq!(self.client.fingerprint, Some(server));
        assert_eq!(self.server.fingerprint, Some(client));
        self.client.engine.authenticated();
        self.server.engine.authenticated();
    }

    /// Polls both engines and transmits their datagrams.
    fn poll(&mut self) {
        let Self {
            client,
            server,
            now,
            link,
            wire,
            sent,
            ..
        } = self;
        client.take_events();
        server.take_events();
        client.timeout = client.engine.poll(*now, &mut client.out);
        server.timeout = server.engine.poll(*now, &mut server.out);
        client.take_events();
        server.take_events();
        for (to_server, out) in [(true, &mut client.out), (false, &mut server.out)] {
            while let Some(run) = out.front(1) {
                *sent += 1;
                let length = run.contents.len();
                assert!(length <= 1200, "a datagram of {length} bytes");
                assert!(
                    is_one_record(run.contents),
                    "libdatachannel reads one record at a time"
                );
                if link.random() % 1000 >= link.loss && length <= link.max_datagram {
                    let late = u32::from(link.random() % 1000 < link.late);
                    let at = *now + link.delay + late * Duration::from_millis(20);
                    wire.insert((at, *sent), (to_server, run.contents.to_vec()));
                }
                out.pop(1);
            }
        }
    }

    /// The first datagram in transit to the server that begins with this byte.
    pub(super) fn on_its_way(&self, first: u8) -> Option<Vec<u8>> {
        let mut to_server = self.wire.values().filter(|(to_server, _)| *to_server);
        let (_, found) = to_server.find(|(_, datagram)| datagram.first() == Some(&first))?;
        Some(found.clone())
    }

    /// Advances by `time`.
    pub(super) fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while self.step(end) {}
    }

    /// Runs until a condition holds, and fails after `limit`.
    #[track_caller]
    pub(super) fn until(&mut self, limit: Duration, mut done: impl FnMut(&mut Self) -> bool) {
        let end = self.now + limit;
        loop {
            self.poll();
            if done(self) {
                return;
            }
            assert!(self.step(end), "not within {limit:?}");
        }
    }

    fn step(&mut self, end: Instant) -> bool {
        self.poll();
        let timeouts = self.client.timeout.min(self.server.timeout);
        let arrival = self.wire.first_key_value().map(|((at, _), _)| *at);
        // Time always advances: a timeout that stays due would be an endless loop.
        let next = arrival.map_or(timeouts, |at| at.min(timeouts));
        let next = next.max(self.now + Duration::from_micros(10));
        if next >= end {
            self.now = end;
            return false;
        }
        self.now = next;
        let now = self.now;
        while let Some(entry) = self.wire.first_entry().filter(|entry| entry.key().0 <= now) {
            let (to_server, datagram) = entry.remove();
            let (client, server) = (&mut self.client, &mut self.server);
            if to_server {
                server.engine.handle_datagram(
                    now,
                    Datagram::new(client.address, server.address, &datagram),
                    &mut server.out,
                );
            } else {
                client.engine.handle_datagram(
                    now,
                    Datagram::new(server.address, client.address, &datagram),
                    &mut client.out,
                );
            }
        }
        if self.client.timeout <= now {
            self.client.engine.handle_timeout(now);
        }
        if self.server.timeout <= now {
            self.server.engine.handle_timeout(now);
        }
        true
    }

    /// Opens a channel from the client and waits until the server reports it.
    pub(super) fn open(&mut self, label: &str) -> (ChannelId, ChannelId) {
        let ours = self.client.engine.open(label).expect("a channel");
        let before = self.server.opened.len();
        self.until(Duration::from_secs(10), |pair| {
            pair.server.opened.len() > before
        });
        (ours, self.server.opened[before].0)
    }

    pub(super) fn assert_zero_works(&mut self) {
        self.client.write(CHANNEL_ZERO, b"ping");
        self.server.write(CHANNEL_ZERO, b"pong");
        self.until(Duration::from_secs(10), |pair| {
            pair.client
                .received
                .get(&CHANNEL_ZERO)
                .is_some_and(|bytes| bytes == b"pong")
                && pair
                    .server
                    .received
                    .get(&CHANNEL_ZERO)
                    .is_some_and(|bytes| bytes == b"ping")
        });
    }
}
