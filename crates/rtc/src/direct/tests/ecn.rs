//! Explicit congestion notification between two engines.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anabranch_sctp::{CongestionControl, Ecn};

use super::super::DirectEngine;
use crate::engine::{CHANNEL_ZERO, Certificate, Datagram, Engine, Event, Role, Setup, Written};
use crate::transmit::TransmitQueue;

/// Delay of a datagram.
const DELAY: Duration = Duration::from_millis(5);

/// A datagram on its way: when it arrives, to which side, its codepoint and contents.
type InTransit = (Instant, usize, Ecn, Vec<u8>);

struct Pair {
    now: Instant,
    engines: [DirectEngine; 2],
    timeouts: [Instant; 2],
    in_transit: VecDeque<InTransit>,
    is_open: [bool; 2],
    /// What the path makes of the codepoint of a datagram of the client.
    mark: fn(Ecn) -> Ecn,
    /// Codepoints that were sent, with the first byte of each datagram.
    sent: Vec<(Ecn, u8)>,
    /// The last datagram of the client.
    last: Vec<u8>,
}

fn address(side: usize) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, side as u8 + 1], 4000))
}

fn engine(side: usize, ecn: bool, now: Instant) -> DirectEngine {
    let made = rcgen::generate_simple_self_signed(vec!["test".into()]).unwrap();
    let credentials = |side: usize| (format!("ufrag{side}"), "password".repeat(4));
    let setup = Setup {
        role: [Role::Client, Role::Server][side],
        certificate: Certificate {
            der: made.cert.der().to_vec(),
            private_key: made.signing_key.serialize_der(),
        },
        local: address(side),
        remote: (side == 0).then(|| address(1)),
        local_credentials: credentials(side),
        remote_credentials: credentials(1 - side),
        mtu: 1200,
        max_mtu: 1200,
        max_in_flight: 8 << 20,
        receive_buffer: 8 << 20,
        progress_timeout: Duration::from_secs(30),
        congestion: CongestionControl::Cubic,
        ecn,
    };
    DirectEngine::new(setup, now).unwrap()
}

impl Pair {
    fn connected(ecn: [bool; 2]) -> Self {
        let now = Instant::now();
        let mut pair = Self {
            now,
            engines: [0, 1].map(|side| engine(side, ecn[side], now)),
            timeouts: [now; 2],
            in_transit: VecDeque::new(),
            is_open: [false; 2],
            mark: |codepoint| codepoint,
            sent: Vec::new(),
            last: Vec::new(),
        };
        for _ in 0..10_000 {
            if pair.is_open == [true; 2] {
                pair.engines.iter_mut().for_each(Engine::authenticated);
                return pair;
            }
            pair.step();
        }
        panic!("no connection");
    }

    fn step(&mut self) {
        for (side, engine) in self.engines.iter_mut().enumerate() {
            let mut out = TransmitQueue::default();
            self.timeouts[side] = engine.poll(self.now, &mut out);
            while let Some(run) = out.front(1) {
                self.sent.push((run.ecn, run.contents[0]));
                let codepoint = if side == 0 {
                    (self.mark)(run.ecn)
                } else {
                    run.ecn
                };
                if side == 0 {
                    self.last = run.contents.to_vec();
                }
                let contents = run.contents.to_vec();
                (self.in_transit).push_back((self.now + DELAY, 1 - side, codepoint, contents));
                out.pop(1);
            }
            while let Some(event) = engine.next_event() {
                self.is_open[side] |= event == Event::ChannelZeroOpen;
                if let Event::Readable { channel } = event {
                    while engine.read(channel).is_some() {}
                }
            }
        }
        let arrival = self.in_transit.front().map(|(at, ..)| *at);
        let next = self.timeouts.into_iter().chain(arrival).min();
        self.now = next
            .unwrap_or(self.now)
            .max(self.now + Duration::from_micros(10));
        while let Some((at, ..)) = self.in_transit.front()
            && *at <= self.now
        {
            let (_, to, codepoint, contents) = self.in_transit.pop_front().unwrap();
            self.arrive(to, &contents, codepoint);
        }
        for (engine, timeout) in self.engines.iter_mut().zip(self.timeouts) {
            if timeout <= self.now {
                engine.handle_timeout(self.now);
            }
        }
    }

    fn arrive(&mut self, to: usize, contents: &[u8], codepoint: Ecn) {
        let datagram = Datagram::new(address(1 - to), address(to), contents).with_ecn(codepoint);
        let mut out = TransmitQueue::default();
        self.engines[to].handle_datagram(self.now, datagram, &mut out);
        while let Some(run) = out.front(1) {
            let contents = run.contents.to_vec();
            self.in_transit
                .push_back((self.now + DELAY, 1 - to, run.ecn, contents));
            out.pop(1);
        }
    }

    /// Transfers from the client to the server, and calls `meanwhile` in each step.
    fn transfer(&mut self, messages: usize, mut meanwhile: impl FnMut(&mut Self)) {
        let mut written = 0;
        while written < messages || self.engines[0].unacknowledged() > 0 {
            while written < messages && self.has_room() {
                let taken = self.engines[0].write(CHANNEL_ZERO, &[7; 1000]);
                if taken != Written::Taken {
                    break;
                }
                written += 1;
            }
            self.step();
            meanwhile(self);
        }
    }

    fn has_room(&self) -> bool {
        self.engines[0].unacknowledged() < self.engines[0].write_limit()
    }

    fn cwnd(&self) -> usize {
        self.engines[0].channels.sctp.congestion().cwnd()
    }

    /// Whether the last transfer was marked to its end.
    fn marks_data(&mut self) -> bool {
        self.sent.clear();
        self.transfer(1, |_| {});
        let is_ect0 = |(codepoint, _): &(Ecn, u8)| *codepoint == Ecn::Ect0;
        self.sent.iter().any(is_ect0)
    }
}

#[test]
fn only_packets_of_sctp_are_marked_and_only_between_two_that_want_it() {
    for ecn in [[true, true], [true, false], [false, true]] {
        let mut pair = Pair::connected(ecn);
        let is_stun = |first: u8| first < 4;
        for (codepoint, first) in &pair.sent {
            assert!(*codepoint == Ecn::NotEct || !is_stun(*first));
        }
        pair.sent.clear();
        pair.transfer(100, |_| {});
        let records: Vec<_> = pair
            .sent
            .iter()
            .filter(|(_, first)| !is_stun(*first))
            .collect();
        let marked = records
            .iter()
            .filter(|(codepoint, _)| *codepoint == Ecn::Ect0)
            .count();
        if ecn == [true, true] {
            // All but lone SACKs and FORWARD-TSN.
            assert!(marked > 50 && marked < records.len(), "{marked}");
        } else {
            assert_eq!(marked, 0, "{ecn:?}");
        }
    }
}

#[test]
fn marks_reach_the_congestion_controller() {
    let mut pair = Pair::connected([true, true]);
    pair.transfer(500, |_| {});
    let before = pair.cwnd();
    pair.mark = |codepoint| match codepoint {
        Ecn::Ect0 => Ecn::Ce,
        other => other,
    };
    pair.transfer(10, |_| {});
    let share = pair.cwnd() as f64 / before as f64;
    assert!(share < 0.75, "{share}");
}

/// From the address of the peer: junk, records that DTLS can not decrypt, and replayed ones.
#[test]
fn forged_marks_do_not_count() {
    let mut pair = Pair::connected([true, true]);
    pair.transfer(500, |_| {});
    let mut before = pair.cwnd();
    pair.transfer(500, |pair| {
        let mut changed = pair.last.clone();
        if let Some(byte) = changed.last_mut() {
            *byte ^= 1;
        }
        let is_record = |datagram: &[u8]| datagram.first().is_some_and(|first| *first > 3);
        for codepoint in [Ecn::Ce, Ecn::Ect1] {
            pair.arrive(
                1,
                &[23, 254, 253, 0, 1, 0, 0, 0, 0, 0, 9, 0, 4, 1, 2, 3, 4],
                codepoint,
            );
            pair.arrive(1, &[0x2f; 60], codepoint);
            if is_record(&changed) {
                pair.arrive(1, &changed, codepoint);
            }
        }
        assert!(pair.cwnd() >= before, "a reduction");
        before = pair.cwnd();
    });
    assert!(pair.marks_data());
    // Replays: the originals have arrived.
    let last = pair.last.clone();
    for _ in 0..100 {
        pair.arrive(1, &last, Ecn::Ce);
    }
    pair.transfer(100, |pair| assert!(pair.cwnd() >= before));
    assert!(pair.marks_data());
}
