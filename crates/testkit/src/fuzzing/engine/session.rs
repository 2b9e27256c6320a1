//! Two connected engines and their clock.

use std::net::SocketAddr;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use anabranch_rtc::{
    ChannelId, CongestionControl, Datagram, DirectEngine, EndReason, Engine, Event, Role, Setup,
    TransmitQueue,
};
use bytes::Bytes;

use crate::fuzzing::thread_cpu_time;
use anabranch::certificate::Certificate;

/// Largest datagram that the engines may send.
const MTU: usize = 1200;

/// Maximum unacknowledged bytes of one side, control messages excluded.
const MAX_IN_FLIGHT: usize = 256 * 1024;

/// Receive window (a_rwnd): small, so that a session fills it.
const RECEIVE_BUFFER: usize = 128 * 1024;

/// Maximum bytes that an engine may send after one datagram: twice what it may have in flight.
const MAX_OUTPUT: usize = 2 * MAX_IN_FLIGHT;

/// Maximum events after one datagram: about a hundred chunks, each of which may close, open or wake
/// a channel, and events that were queued before.
const MAX_EVENTS: usize = 4096;

/// Maximum consecutive timeouts that may be due at one point in time.
const MAX_DUE: usize = 64;

/// Maximum rounds of an exchange without the clock advancing.
const MAX_ROUNDS: usize = 64;

/// Generated once, to keep a session short.
static CERTIFICATES: LazyLock<[Certificate; 2]> =
    LazyLock::new(|| [Certificate::generate(), Certificate::generate()]);

/// One side of a session.
pub(super) struct End {
    pub(super) engine: DirectEngine,
    pub(super) address: SocketAddr,
    pub(super) out: TransmitQueue,
    timeout: Instant,
    /// Open channels, whichever side opened them.
    pub(super) channels: Vec<ChannelId>,
    /// Whether messages are read as soon as they arrive.
    pub(super) reads: bool,
    /// Messages read, if `records`.
    pub(super) received: Vec<(ChannelId, Bytes)>,
    /// Events of the engine, if `records`.
    pub(super) events: Vec<Event>,
    /// Whether messages and events are recorded.
    pub(super) records: bool,
    /// Bytes that this side has written, where the target counts them.
    pub(super) written: usize,
    zero_open: bool,
    pub(super) ended: Option<EndReason>,
}

impl End {
    fn new(role: Role, now: Instant) -> Self {
        let addresses = [
            SocketAddr::from(([10, 0, 0, 1], 1000)),
            SocketAddr::from(([10, 0, 0, 2], 2000)),
        ];
        let index = usize::from(role == Role::Server);
        let same = "libp2p+webrtc+v1/0123456789abcdefghij".to_owned();
        let setup = Setup {
            role,
            certificate: (&CERTIFICATES[index]).into(),
            local: addresses[index],
            remote: (role == Role::Client).then_some(addresses[1]),
            local_credentials: (same.clone(), same.clone()),
            remote_credentials: (same.clone(), same),
            mtu: MTU,
            max_mtu: MTU,
            max_in_flight: MAX_IN_FLIGHT,
            receive_buffer: RECEIVE_BUFFER,
            progress_timeout: Duration::from_secs(30),
            congestion: CongestionControl::Heed,
            ecn: true,
        };
        Self {
            engine: DirectEngine::new(setup, now).expect("an engine"),
            address: addresses[index],
            out: TransmitQueue::default(),
            timeout: now,
            channels: Vec::new(),
            reads: true,
            received: Vec::new(),
            events: Vec::new(),
            records: false,
            written: 0,
            zero_open: false,
            ended: None,
        }
    }

    pub(super) fn read(&mut self, channel: ChannelId) {
        while let Some(message) = self.engine.read(channel) {
            assert!(!message.is_empty(), "an empty message was read");
            if self.records {
                self.received.push((channel, message));
            }
        }
    }

    pub(super) fn read_all(&mut self) {
        for channel in self.channels.clone() {
            self.read(channel);
        }
    }

    fn take_events(&mut self) {
        let mut events = 0;
        while let Some(event) = self.engine.next_event() {
            events += 1;
            assert!(events <= MAX_EVENTS, "events without end");
            if self.records {
                self.events.push(event.clone());
            }
            match event {
                Event::ChannelZeroOpen => self.zero_open = true,
                Event::Ended(cause) => {
                    assert!(self.ended.is_none(), "a second Ended");
                    self.ended = Some(cause);
                }
                Event::Opened { channel, .. } => {
                    self.channels.push(channel);
                }
                Event::Readable { channel } if self.reads => {
                    self.read(channel);
                }
                Event::Closed { channel } => {
                    self.read(channel);
                    self.channels.retain(|open| *open != channel);
                }
                _ => {}
            }
        }
    }

    /// Polls until no timeout is due.
    fn settle(&mut self, now: Instant) {
        let before = self.out.len();
        for round in 0.. {
            self.timeout = self.engine.poll(now, &mut self.out);
            self.take_events();
            if self.timeout > now {
                break;
            }
            assert!(round < MAX_DUE, "a timeout that stays due");
            self.engine.handle_timeout(now);
        }
        let sent = self.out.len() - before;
        assert!(sent <= MAX_OUTPUT, "{sent} bytes to send at once");
        let held = self.engine.unacknowledged();
        assert!(
            held <= MAX_IN_FLIGHT + 2 * anabranch_rtc::CONTROL_ROOM,
            "{held}"
        );
    }

    /// Takes all datagrams out of the transmit queue.
    fn take_out(&mut self) -> Vec<Vec<u8>> {
        let mut datagrams = Vec::new();
        while let Some(run) = self.out.front(1) {
            let length = run.contents.len();
            assert!(length <= MTU, "a datagram of {length} bytes");
            datagrams.push(run.contents.to_vec());
            self.out.pop(1);
        }
        datagrams
    }
}

/// Two engines.
pub(super) struct Session {
    pub(super) ends: [End; 2],
    pub(super) now: Instant,
    /// CPU time of the slowest step of an engine: one datagram and its consequences.
    pub(super) slowest: Duration,
}

impl Session {
    /// Two engines after their handshake, whose every datagram is passed to `observe` with its
    /// sender.
    pub(super) fn connected(observe: impl FnMut(usize, &[u8])) -> Self {
        Self::new().connect(observe)
    }

    /// Two engines after their handshake, each of which accepts `streams` inbound streams.
    pub(super) fn with_streams(streams: u16) -> Self {
        let mut session = Self::new();
        for end in &mut session.ends {
            end.engine.association().set_inbound_streams(streams);
        }
        session.connect(|_, _| {})
    }

    fn new() -> Self {
        let now = Instant::now();
        Self {
            ends: [Role::Client, Role::Server].map(|role| End::new(role, now)),
            now,
            slowest: Duration::ZERO,
        }
    }

    fn connect(mut self, mut observe: impl FnMut(usize, &[u8])) -> Self {
        let session = &mut self;
        for _ in 0..100 {
            for from in [0, 1] {
                for datagram in session.output(from) {
                    observe(from, &datagram);
                    session.deliver(from, &datagram);
                }
            }
            if session.ends.iter().all(|end| end.zero_open) {
                for end in &mut session.ends {
                    end.engine.authenticated();
                }
                session.exchange();
                session.slowest = Duration::ZERO;
                return self;
            }
            session.advance(Duration::from_millis(1));
        }
        panic!("no handshake in a hundred rounds");
    }

    /// Polls a side and takes its datagrams.
    pub(super) fn output(&mut self, from: usize) -> Vec<Vec<u8>> {
        let now = self.now;
        self.timed(from, |end| end.settle(now));
        self.ends[from].take_out()
    }

    /// Runs a step of an engine and measures its CPU time.
    fn timed<T>(&mut self, side: usize, step: impl FnOnce(&mut End) -> T) -> T {
        let began = thread_cpu_time();
        let result = step(&mut self.ends[side]);
        self.slowest = self.slowest.max(thread_cpu_time().saturating_sub(began));
        result
    }

    /// Delivers a datagram of one side to the other, without delay and from the sender's address.
    pub(super) fn deliver(&mut self, from: usize, datagram: &[u8]) {
        let source = self.ends[from].address;
        self.deliver_from(source, 1 - from, datagram);
    }

    /// Delivers a datagram to a side, from an arbitrary source.
    pub(super) fn deliver_from(&mut self, source: SocketAddr, to: usize, datagram: &[u8]) {
        let now = self.now;
        self.timed(to, |end| {
            let End {
                engine,
                out,
                address,
                ..
            } = end;
            engine.handle_datagram(now, Datagram::new(source, *address, datagram), out);
            end.settle(now);
        });
    }

    /// Delivers the datagrams of both sides, and the replies, until neither sends any.
    pub(super) fn exchange(&mut self) {
        for _ in 0..MAX_ROUNDS {
            let mut moved = false;
            for from in [0, 1] {
                for datagram in self.output(from) {
                    moved = true;
                    self.deliver(from, &datagram);
                }
            }
            if !moved {
                return;
            }
        }
    }

    /// Advances the clock and handles the timeouts that are then due.
    pub(super) fn advance(&mut self, time: Duration) {
        self.now += time;
        let now = self.now;
        for side in [0, 1] {
            if self.ends[side].timeout <= now {
                self.timed(side, |end| end.engine.handle_timeout(now));
            }
        }
    }

    /// Advances the clock by `time`, and delivers meanwhile.
    pub(super) fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            let timeouts = self.ends[0].timeout.min(self.ends[1].timeout);
            // In steps of at least 1 ms, so that this ends if a timeout stays due.
            let next = timeouts.max(self.now + Duration::from_millis(1)).min(end);
            self.advance(next - self.now);
            self.exchange();
        }
    }

    /// Takes the SCTP packets that a side is about to send, before their encryption.
    pub(super) fn packets(&mut self, from: usize) -> Vec<Bytes> {
        let now = self.now;
        let End {
            engine,
            out,
            timeout,
            ..
        } = &mut self.ends[from];
        let Some((packets, next)) = engine.poll_packets(now, out) else {
            return Vec::new();
        };
        *timeout = next;
        self.ends[from].take_events();
        packets
    }

    /// Encrypts SCTP packets of a side, and takes the resulting datagrams.
    pub(super) fn encrypt(&mut self, from: usize, packets: &[Bytes]) -> Vec<Vec<u8>> {
        let now = self.now;
        let End { engine, out, .. } = &mut self.ends[from];
        engine.encrypt_packets(now, packets, out);
        self.ends[from].take_out()
    }
}
