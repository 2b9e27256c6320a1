//! Two associations and a network that loses, delays, duplicates and reorders packets.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::bundle::Packets;
use super::packet::{DataHeader, flag, parse};
use super::*;

mod ecn;
mod establishing;
mod lies;
mod path_mtu;
mod paths;
mod receiver;
mod recovery;
mod rules;
mod sender;
mod withholding;

const CONFIG: Config = Config {
    max_packet: 1160,
    packet_sizes: &[],
    receive_buffer: 256 * 1024,
    max_message: 64 * 1024,
    progress_timeout: Duration::from_secs(30),
    congestion: CongestionControl::Cubic,
    ecn: true,
    without_cookie: true,
};

/// Conditions of a path.
#[derive(Debug, Clone, Copy)]
struct Faults {
    loss: f64,
    repeat: f64,
    /// Maximum extra delay.
    jitter: Duration,
}

const CLEAN: Faults = Faults {
    loss: 0.0,
    repeat: 0.0,
    jitter: Duration::ZERO,
};

#[derive(Debug)]
struct Side {
    association: Association,
    events: Vec<Event>,
    received: BTreeMap<u16, Vec<Bytes>>,
    finished: Vec<u16>,
    reset: Vec<u16>,
    /// Whether it reads what arrives.
    reads: bool,
}

impl Side {
    fn new() -> Self {
        Self {
            association: Association::new(CONFIG),
            events: Vec::new(),
            received: BTreeMap::new(),
            finished: Vec::new(),
            reset: Vec::new(),
            reads: true,
        }
    }

    fn take_events(&mut self) {
        while let Some(event) = self.association.next_event() {
            self.events.push(event);
            match event {
                Event::Readable { id } if self.reads => self.read(id),
                Event::Finished { id } => self.finished.push(id),
                Event::ResetComplete { id } => self.reset.push(id),
                _ => {}
            }
        }
    }

    fn read(&mut self, id: u16) {
        while let Some(message) = self.association.read(id) {
            self.received.entry(id).or_default().push(message.bytes);
        }
    }

    fn end_reason(&self) -> Option<EndReason> {
        self.events.iter().find_map(|event| match event {
            Event::Ended(reason) => Some(*reason),
            _ => None,
        })
    }
}

type Filter = Box<dyn FnMut(usize, &[u8]) -> bool>;
type Marks = Box<dyn FnMut(usize, Ecn) -> Ecn>;

struct Pair {
    now: Instant,
    rng: StdRng,
    faults: Faults,
    sides: [Side; 2],
    in_transit: BTreeMap<(Instant, u64), (usize, Bytes, Ecn)>,
    sent: u64,
    /// Longest packet that a side may send.
    max_packet: usize,
    /// Which packets the path forwards.
    passes: Filter,
    is_ect_dropped: bool,
    /// What the path makes of the codepoints of each side.
    marks: Marks,
}

impl Pair {
    fn new(seed: u64, faults: Faults) -> Self {
        Self {
            now: Instant::now(),
            rng: StdRng::seed_from_u64(seed),
            faults,
            sides: [Side::new(), Side::new()],
            in_transit: BTreeMap::new(),
            sent: 0,
            max_packet: CONFIG.max_packet,
            passes: Box::new(|_, _| true),
            is_ect_dropped: false,
            marks: Box::new(|_, codepoint| codepoint),
        }
    }

    fn connected(seed: u64, faults: Faults) -> Self {
        Self::new(seed, faults).handshake()
    }

    /// Both sides with `control`, on a clean path.
    fn controlled(control: CongestionControl) -> Self {
        let mut pair = Self::new(1, CLEAN);
        for side in &mut pair.sides {
            side.association = Association::new(Config {
                congestion: control,
                ..CONFIG
            });
        }
        pair.handshake()
    }

    fn handshake(mut self) -> Self {
        let pair = &mut self;
        pair.sides[0].association.start();
        pair.until("the handshake", |pair| {
            pair.sides
                .iter()
                .all(|side| side.events.contains(&Event::Connected))
        });
        self
    }

    fn step(&mut self) {
        for from in 0..2 {
            let packets = self.sides[from].association.poll_transmit(self.now);
            let codepoint = self.sides[from].association.codepoint();
            let mut packets = packets.unwrap_or_default();
            while let Some(probe) = self.sides[from].association.poll_probe(self.now) {
                packets.push(probe);
            }
            for packet in packets {
                assert!(packet.len() <= self.max_packet);
                let Faults {
                    loss,
                    repeat,
                    jitter,
                } = self.faults;
                if self.is_ect_dropped && codepoint == Ecn::Ect0 {
                    continue;
                }
                if !(self.passes)(from, &packet) || self.rng.random_bool(loss) {
                    continue;
                }
                let codepoint = (self.marks)(from, codepoint);
                for copy in 0..1 + usize::from(self.rng.random_bool(repeat)) {
                    let extra = self.rng.random_range(0.0..=jitter.as_secs_f64());
                    let at = self.now + Duration::from_millis(10) + Duration::from_secs_f64(extra);
                    self.sent += 1;
                    let to = 1 - from;
                    // DTLS drops a copy before it is counted.
                    let arrives = if copy == 0 { codepoint } else { Ecn::NotEct };
                    self.in_transit
                        .insert((at, self.sent), (to, packet.clone(), arrives));
                }
            }
            self.sides[from].take_events();
        }
        let timeouts = self
            .sides
            .iter()
            .filter_map(|side| side.association.next_timeout());
        let next = timeouts
            .chain(self.in_transit.keys().map(|(at, _)| *at).take(1))
            .min();
        self.now = self
            .now
            .max(next.unwrap_or(self.now + Duration::from_secs(1)));
        while let Some(entry) = self.in_transit.first_entry()
            && entry.key().0 <= self.now
        {
            let (to, packet, codepoint) = entry.remove();
            let association = &mut self.sides[to].association;
            association.handle_packet(self.now, &packet);
            association.count_ecn(codepoint, 1);
        }
        for side in &mut self.sides {
            side.association.handle_timeout(self.now);
            side.take_events();
        }
    }

    #[track_caller]
    fn until(&mut self, what: &str, mut done: impl FnMut(&Self) -> bool) {
        let end = self.now + Duration::from_secs(600);
        while !done(self) {
            assert!(self.now < end, "waited in vain for {what}");
            self.step();
        }
    }

    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.step();
        }
    }

    fn write(&mut self, side: usize, id: u16, message: Vec<u8>) {
        let association = &mut self.sides[side].association;
        assert!(association.write(id, message.into(), Ppid::Binary));
    }

    /// Asserts that nothing is held.
    #[track_caller]
    fn assert_idle(&self) {
        for side in &self.sides {
            assert!(side.association.sender.is_idle());
            assert!(side.association.resets.is_idle());
            assert_eq!(side.association.receiver.held(), 0);
            assert_eq!(side.association.next_timeout(), None);
            assert!(side.association.replies.is_empty());
        }
    }
}

fn pattern(length: usize, salt: usize) -> Vec<u8> {
    (0..length).map(|at| (at + salt) as u8).collect()
}

/// A receiver whose peer starts at TSN 100.
fn receiver() -> Receiver {
    Receiver::new(100, CONFIG.receive_buffer, CONFIG.max_message)
}

fn data(tsn: u32, ssn: u16, flags: u8) -> DataHeader {
    DataHeader {
        flags,
        tsn,
        stream: 1,
        ssn,
        ppid: 53,
    }
}

const WHOLE: u8 = flag::BEGIN | flag::END;
