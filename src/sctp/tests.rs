//! Two associations and a network between them that loses, delays, repeats and reorders.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::packet::{DataHeader, Packets, flag, parse};
use super::*;

const CONFIG: Config = Config {
    max_packet: 1160,
    receive_buffer: 256 * 1024,
    max_message: 64 * 1024,
    progress_timeout: Duration::from_secs(30),
};

/// What a path does to a packet.
#[derive(Debug, Clone, Copy)]
struct Faults {
    loss: f64,
    repeat: f64,
    /// Longest extra delay.
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
    /// Reads what comes.
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

    fn lost(&self) -> Option<Lost> {
        self.events.iter().find_map(|event| match event {
            Event::Lost(lost) => Some(*lost),
            _ => None,
        })
    }
}

type Filter = Box<dyn FnMut(usize, &[u8]) -> bool>;

struct Pair {
    now: Instant,
    rng: StdRng,
    faults: Faults,
    sides: [Side; 2],
    under_way: BTreeMap<(Instant, u64), (usize, Bytes)>,
    sent: u64,
    /// Which packets the path lets through.
    passes: Filter,
}

impl Pair {
    fn new(seed: u64, faults: Faults) -> Self {
        Self {
            now: Instant::now(),
            rng: StdRng::seed_from_u64(seed),
            faults,
            sides: [Side::new(), Side::new()],
            under_way: BTreeMap::new(),
            sent: 0,
            passes: Box::new(|_, _| true),
        }
    }

    fn connected(seed: u64, faults: Faults) -> Self {
        let mut pair = Self::new(seed, faults);
        pair.sides[0].association.start();
        pair.until("the handshake", |pair| {
            pair.sides
                .iter()
                .all(|side| side.events.contains(&Event::Connected))
        });
        pair
    }

    fn step(&mut self) {
        for from in 0..2 {
            let packets = self.sides[from].association.poll_transmit(self.now);
            for packet in packets.into_iter().flatten() {
                assert!(packet.len() <= CONFIG.max_packet);
                let Faults {
                    loss,
                    repeat,
                    jitter,
                } = self.faults;
                if !(self.passes)(from, &packet) || self.rng.random_bool(loss) {
                    continue;
                }
                for _ in 0..1 + usize::from(self.rng.random_bool(repeat)) {
                    let extra = self.rng.random_range(0.0..=jitter.as_secs_f64());
                    let at = self.now + Duration::from_millis(10) + Duration::from_secs_f64(extra);
                    self.sent += 1;
                    let to = 1 - from;
                    self.under_way.insert((at, self.sent), (to, packet.clone()));
                }
            }
            self.sides[from].take_events();
        }
        let timeouts = self
            .sides
            .iter()
            .filter_map(|side| side.association.next_timeout());
        let next = timeouts
            .chain(self.under_way.keys().map(|(at, _)| *at).take(1))
            .min();
        self.now = self
            .now
            .max(next.unwrap_or(self.now + Duration::from_secs(1)));
        while let Some(entry) = self.under_way.first_entry()
            && entry.key().0 <= self.now
        {
            let (to, packet) = entry.remove();
            self.sides[to].association.handle_packet(self.now, &packet);
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
        assert!(association.write(id, message.into(), Protocol::Binary));
    }

    /// Nothing is held for anybody.
    #[track_caller]
    fn assert_idle(&self) {
        for side in &self.sides {
            assert!(side.association.sender.is_idle());
            assert!(side.association.resets.is_idle());
            assert_eq!(side.association.receiver.held(), 0);
            assert_eq!(side.association.next_timeout(), None);
            assert!(side.association.answers.is_empty());
        }
    }
}

fn pattern(length: usize, salt: usize) -> Vec<u8> {
    (0..length).map(|at| (at + salt) as u8).collect()
}

#[test]
fn whatever_the_path_does_messages_arrive_once_and_in_order() {
    let seeds = std::env::var("ANABRANCH_SEEDS")
        .ok()
        .and_then(|seeds| seeds.parse().ok());
    for seed in 0..seeds.unwrap_or(200_u64) {
        let mut rng = StdRng::seed_from_u64(seed ^ 0xabcd);
        let faults = Faults {
            loss: rng.random_range(0.0..0.15),
            repeat: rng.random_range(0.0..0.1),
            jitter: Duration::from_millis(rng.random_range(0..30)),
        };
        println!("seed {seed}: {faults:?}");
        let mut pair = Pair::connected(seed, faults);
        let mut expected = [BTreeMap::new(), BTreeMap::new()];
        for (side, expected) in expected.iter_mut().enumerate() {
            for _ in 0..rng.random_range(1..5) {
                // Both use some of the numbers.
                let id = rng.random_range(1..8);
                pair.sides[side].association.open_stream(id);
                for _ in 0..rng.random_range(1..20) {
                    let length =
                        [1, 3, 700, 1132, 1133, 5000, 16_384, 60_000][rng.random_range(0..8)];
                    let message = pattern(length, rng.random_range(0..256));
                    let list: &mut Vec<_> = expected.entry(id).or_default();
                    list.push(Bytes::from(message.clone()));
                    pair.write(side, id, message);
                }
            }
        }
        pair.until("all messages", |pair| {
            pair.sides[1].received == expected[0] && pair.sides[0].received == expected[1]
        });
        let mut ids: Vec<_> = expected.iter().flat_map(BTreeMap::keys).copied().collect();
        ids.sort_unstable();
        ids.dedup();
        // One side closes, and the other answers.
        for (index, id) in ids.iter().enumerate() {
            let side = [0, 1][index % 2];
            pair.sides[side].association.reset_stream(*id);
        }
        pair.until("all resets", |pair| {
            pair.sides.iter().all(|side| {
                let (mut finished, mut reset) = (side.finished.clone(), side.reset.clone());
                finished.sort_unstable();
                reset.sort_unstable();
                finished == ids && reset == ids
            })
        });
        pair.faults = CLEAN;
        pair.run(Duration::from_secs(5));
        pair.assert_idle();
        for side in &pair.sides {
            assert_eq!(side.association.receiver.stream_ids().count(), 0);
        }
        pair.sides[0].association.shutdown();
        pair.until("the end", |pair| {
            pair.sides
                .iter()
                .all(|side| side.lost() == Some(Lost::Closed))
        });
    }
}

#[test]
fn both_sides_may_begin_at_once() {
    for seed in 0..50 {
        let faults = Faults {
            loss: 0.2,
            jitter: Duration::from_millis(20),
            ..CLEAN
        };
        let mut pair = Pair::new(seed, faults);
        for side in &mut pair.sides {
            side.association.start();
        }
        pair.until("the handshake", |pair| {
            pair.sides
                .iter()
                .all(|side| side.events.contains(&Event::Connected))
        });
        pair.sides[0].association.open_stream(1);
        pair.write(0, 1, pattern(5000, 0));
        pair.until("a message", |pair| pair.sides[1].received.len() == 1);
        let connected = |side: &Side| {
            let is_connected = |event: &&Event| **event == Event::Connected;
            side.events.iter().filter(is_connected).count()
        };
        assert!(pair.sides.iter().all(|side| connected(side) == 1));
    }
}

#[test]
fn a_lost_packet_holds_back_its_own_stream_only() {
    let mut pair = Pair::connected(1, CLEAN);
    for id in 1..=3 {
        pair.sides[0].association.open_stream(id);
        pair.write(0, id, pattern(3000, 0));
    }
    // The first DATA packet is lost, once.
    let mut lost = false;
    pair.passes = Box::new(move |from, packet| {
        let is_data = parse(packet)
            .is_some_and(|(_, mut chunks)| chunks.any(|chunk| chunk.kind == kind::DATA));
        !(from == 0 && is_data && !std::mem::replace(&mut lost, true))
    });
    pair.until("the others", |pair| pair.sides[1].received.len() == 2);
    assert!(!pair.sides[1].received.contains_key(&1));
    pair.until("all", |pair| pair.sides[1].received.len() == 3);
}

#[test]
fn a_lost_tail_does_not_wait_for_the_timeout() {
    let mut pair = Pair::connected(1, CLEAN);
    pair.sides[0].association.open_stream(1);
    pair.write(0, 1, pattern(20_000, 0));
    pair.until("the first", |pair| !pair.sides[1].received.is_empty());
    pair.run(Duration::from_millis(500));
    let began = pair.now;
    pair.write(0, 1, pattern(3000, 0));
    let mut packets = 0;
    pair.passes = Box::new(move |from, _| {
        packets += usize::from(from == 0);
        // The last of three.
        from != 0 || packets != 3
    });
    pair.until("the second", |pair| pair.sides[1].received[&1].len() == 2);
    let took = pair.now - began;
    assert!(took < Duration::from_millis(150), "{took:?}");
}

#[test]
fn an_outage_is_survived_and_over_when_it_is() {
    let mut pair = Pair::connected(1, CLEAN);
    pair.sides[0].association.config.progress_timeout = Duration::from_secs(120);
    pair.sides[0].association.open_stream(1);
    for salt in 0..20 {
        pair.write(0, 1, pattern(16_384, salt));
    }
    let begin = pair.now + Duration::from_millis(25);
    pair.until("the outage", |pair| pair.now >= begin);
    pair.passes = Box::new(|_, _| false);
    pair.run(Duration::from_secs(60));
    pair.passes = Box::new(|_, _| true);
    let back = pair.now;
    pair.until("all", |pair| {
        pair.sides[1]
            .received
            .get(&1)
            .is_some_and(|messages| messages.len() == 20)
    });
    assert!(
        pair.now - back < Duration::from_secs(5),
        "{:?}",
        pair.now - back
    );
    pair.run(Duration::from_secs(2));
    pair.assert_idle();
}

#[test]
fn what_is_not_read_fills_the_window_and_no_more_and_goes_on_when_it_is() {
    for length in [1, 100, 16_384] {
        let mut pair = Pair::connected(1, CLEAN);
        pair.sides[0].association.open_stream(1);
        pair.sides[1].reads = false;
        let count = 2 * 1024 * 1024 / length.max(64);
        for salt in 0..count {
            pair.write(0, 1, pattern(length, salt));
        }
        pair.run(Duration::from_secs(30));
        let held = pair.sides[1].association.receiver.held();
        assert!(held <= 2 * CONFIG.receive_buffer + 1024, "{held}");
        assert!(held >= CONFIG.receive_buffer / 2, "{held}");
        assert!(pair.sides[1].association.is_window_tight());
        pair.sides[1].reads = true;
        pair.sides[1].read(1);
        assert!(pair.sides[1].association.wants_transmit(), "the peer waits");
        pair.until("all", |pair| pair.sides[1].received[&1].len() == count);
        for (salt, message) in pair.sides[1].received[&1].iter().enumerate() {
            assert_eq!(*message, pattern(length, salt));
        }
        pair.run(Duration::from_secs(2));
        pair.assert_idle();
    }
}

#[test]
fn a_number_that_is_used_again_at_once_begins_another_stream() {
    let mut pair = Pair::connected(1, CLEAN);
    pair.sides[1].reads = false;
    for round in 0..3 {
        assert!(pair.sides[0].association.open_stream(1));
        pair.write(0, 1, pattern(10, round));
        pair.sides[0].association.reset_stream(1);
        pair.run(Duration::from_secs(2));
        // As a peer does that does not wait for our answer.
        let receiver = &mut pair.sides[0].association.receiver;
        receiver.reset(1, &mut VecDeque::new());
        receiver.retire(1, &mut VecDeque::new());
        receiver.take_unanswered();
    }
    let opened = |side: &Side| {
        let is_opened = |event: &&Event| matches!(event, Event::Opened { .. });
        side.events.iter().filter(is_opened).count()
    };
    assert_eq!(opened(&pair.sides[1]), 1);
    pair.sides[1].reads = true;
    pair.sides[1].read(1);
    pair.sides[1].take_events();
    assert_eq!(opened(&pair.sides[1]), 3);
    assert_eq!(pair.sides[1].received[&1].len(), 3);
    assert_eq!(pair.sides[1].finished, [1, 1, 1]);
    pair.run(Duration::from_secs(2));
    assert_eq!(pair.sides[1].reset, [1, 1, 1]);
    assert_eq!(pair.sides[1].association.receiver.held(), 0);
}

/// A side whose peer sends these DATA chunks.
fn receiver() -> Receiver {
    Receiver::new(100, CONFIG.receive_buffer, CONFIG.max_message)
}

fn data(tsn: u32, sequence: u16, flags: u8) -> DataHeader {
    DataHeader {
        flags,
        tsn,
        stream: 1,
        sequence,
        protocol: 53,
    }
}

const WHOLE: u8 = flag::BEGIN | flag::END;

#[test]
fn what_comes_ahead_is_bounded_in_bytes_numbers_and_gaps() {
    let mut events = VecDeque::new();
    let mut receiver = receiver();
    // Every other number, so that nothing is ever whole in order.
    for distance in (1..200_000).step_by(2) {
        let header = data(100 + distance, distance as u16, WHOLE);
        receiver
            .handle_data(header, &[1; 200], &mut events)
            .expect("sound");
    }
    assert!(receiver.held() <= CONFIG.receive_buffer);
    assert!(receiver.sack().2.len() <= 1024);
    // What is missing still has its place, and what waited for it follows.
    for distance in (0..1000).step_by(2) {
        let header = data(100 + distance, distance as u16, WHOLE);
        receiver
            .handle_data(header, &[1; 200], &mut events)
            .expect("sound");
    }
    assert!(receiver.has_reached(100 + 999));
    let mut read = 0;
    while receiver.read(1, &mut events).is_some() {
        read += 1;
    }
    assert!(read >= 1000, "{read}");
}

#[test]
fn pieces_that_make_no_message_end_the_association() {
    let rounds: [&[(u32, u16, u8)]; 4] = [
        // No beginning, two beginnings, another sequence number, another kind of order.
        &[(100, 0, 0)],
        &[(100, 0, flag::BEGIN), (101, 0, flag::BEGIN)],
        &[(100, 0, flag::BEGIN), (101, 1, flag::END)],
        &[(100, 0, flag::BEGIN), (101, 0, flag::END | flag::UNORDERED)],
    ];
    for round in rounds {
        let mut receiver = receiver();
        let mut events = VecDeque::new();
        let mut last = Ok(());
        for (tsn, sequence, flags) in round {
            last = receiver.handle_data(data(*tsn, *sequence, *flags), b"x", &mut events);
        }
        assert!(last.is_err(), "{round:?}");
    }
    let mut receiver = receiver();
    let mut events = VecDeque::new();
    let too_long = (100..).find(|tsn| {
        let flags = if *tsn == 100 { flag::BEGIN } else { 0 };
        receiver
            .handle_data(data(*tsn, 0, flags), &[0; 1000], &mut events)
            .is_err()
    });
    assert_eq!(too_long, Some(100 + CONFIG.max_message as u32 / 1000));
}

#[test]
fn answers_are_few_whatever_is_asked() {
    let mut pair = Pair::connected(1, CLEAN);
    let association = &mut pair.sides[0].association;
    let header = ([PORT, PORT], association.own.tag);
    for _ in 0..100 {
        let mut packets = Packets::new(1160, header, false, BytesMut::new());
        for _ in 0..100 {
            packets.put(kind::HEARTBEAT, 0, &[0, 1, 0, 8, 1, 2, 3, 4]);
        }
        for packet in packets.finish().0 {
            association.handle_packet(pair.now, &packet);
        }
    }
    assert_eq!(association.answers.len(), MAX_ANSWERS);
    let answers = association.poll_transmit(pair.now).expect("answers");
    assert_eq!(answers.len(), 1);
    pair.run(Duration::from_secs(1));
    pair.assert_idle();
}

#[test]
fn a_peer_that_acknowledges_what_was_not_sent_is_left() {
    let mut pair = Pair::connected(1, CLEAN);
    pair.sides[0].association.open_stream(1);
    pair.write(0, 1, pattern(5000, 0));
    pair.step();
    let mut value = Vec::new();
    value.put_u32(pair.sides[0].association.own.first_tsn.wrapping_add(1000));
    value.put_u32(1 << 20);
    value.put_u32(0);
    let tag = pair.sides[0].association.own.tag;
    let mut packets = Packets::new(1160, ([PORT, PORT], tag), false, BytesMut::new());
    packets.put(kind::SACK, 0, &value);
    let now = pair.now;
    for packet in packets.finish().0 {
        pair.sides[0].association.handle_packet(now, &packet);
    }
    pair.sides[0].take_events();
    assert!(matches!(pair.sides[0].lost(), Some(Lost::Violation(_))));
    // The peer is told.
    pair.until("the end", |pair| {
        pair.sides[1].lost() == Some(Lost::Aborted)
    });
}

#[test]
fn what_a_peer_has_thrown_away_behind_a_gap_is_sent_again() {
    let mut pair = Pair::connected(1, CLEAN);
    pair.sides[0].association.open_stream(1);
    for salt in 0..6 {
        pair.write(0, 1, pattern(1100, salt));
    }
    // Its receiver forgets all but the next number each time that something came, and says so.
    let end = pair.now + Duration::from_secs(60);
    let mut lost = 0;
    pair.passes = Box::new(move |from, packet| {
        let has_data = parse(packet)
            .is_some_and(|(_, mut chunks)| chunks.any(|chunk| chunk.kind == kind::DATA));
        lost += usize::from(from == 0 && has_data);
        !(from == 0 && has_data && lost == 1)
    });
    while pair.now < end
        && pair.sides[1]
            .received
            .get(&1)
            .is_none_or(|all| all.len() < 6)
    {
        pair.step();
        pair.sides[1].association.receiver.renege();
    }
    assert_eq!(pair.sides[1].received[&1].len(), 6);
}

#[test]
fn data_in_front_of_the_handshake_arms_no_timer() {
    let mut server = Association::new(CONFIG);
    let peer = Init {
        tag: 7,
        window: 1 << 20,
        first_tsn: 100,
        inbound_streams: u16::MAX,
        zero_checksum: true,
    };
    let now = Instant::now();
    let mut packets = Packets::new(1160, ([PORT, PORT], 0), false, BytesMut::new());
    packets.put(kind::INIT, 0, &peer.encode(None));
    let init = packets.finish().0.remove(0);
    server.handle_packet(now, &init);
    let header = ([PORT, PORT], server.own.tag);
    let mut packets = Packets::new(1160, header, false, BytesMut::new());
    packets.put_data(data(100, 0, WHOLE), b"early");
    let early = packets.finish().0.remove(0);
    server.handle_packet(now, &early);
    assert!(server.poll_transmit(now).is_some(), "an INIT-ACK");
    assert_eq!(server.next_timeout(), None);
    assert_eq!(server.next_event(), None);
}

/// pion before 1.8.11, which go-libp2p had before v0.34, takes no INIT-ACK with a parameter that it does not know.
#[test]
fn an_init_ack_offers_zero_checksums_only_to_who_knows_them() {
    for zero_checksum in [false, true] {
        let mut server = Association::new(CONFIG);
        let peer = Init {
            tag: 7,
            window: 1 << 20,
            first_tsn: 100,
            inbound_streams: u16::MAX,
            zero_checksum,
        };
        let now = Instant::now();
        let mut packets = Packets::new(1160, ([PORT, PORT], 0), false, BytesMut::new());
        packets.put(kind::INIT, 0, &peer.encode(None));
        server.handle_packet(now, &packets.finish().0.remove(0));
        let answer = server.poll_transmit(now).expect("an answer").remove(0);
        let (_, mut chunks) = parse(&answer).expect("sound");
        let chunk = chunks.next().expect("a chunk");
        assert_eq!(chunk.kind, kind::INIT_ACK);
        let (own, _) = Init::parse(chunk.value).expect("sound");
        assert_eq!(own.zero_checksum, zero_checksum);
    }
}

/// A peer uses a number again behind a reset that has to wait for what was lost in front of it.
#[test]
fn what_is_behind_a_reset_waits_for_it() {
    let mut receiver = receiver();
    let mut events = VecDeque::new();
    let mut take = |receiver: &mut Receiver, tsn, sequence| {
        let header = data(tsn, sequence, WHOLE);
        receiver
            .handle_data(header, &[tsn as u8], &mut events)
            .expect("sound");
    };
    take(&mut receiver, 100, 0);
    take(&mut receiver, 102, 2);
    receiver.hold_after(102);
    take(&mut receiver, 103, 0);
    take(&mut receiver, 104, 1);
    take(&mut receiver, 101, 1);
    assert!(receiver.has_reached(102) && !receiver.has_reached(103));
    receiver.reset(1, &mut events);
    receiver.release(&mut events).expect("sound");
    assert!(receiver.has_reached(104));
    let mut read = |receiver: &mut Receiver| {
        std::iter::from_fn(|| Some(receiver.read(1, &mut events)?.bytes[0])).collect::<Vec<_>>()
    };
    assert_eq!(read(&mut receiver), [100, 101, 102]);
    assert_eq!(read(&mut receiver), [0; 0], "its end is not known yet");
    receiver.retire(1, &mut VecDeque::new());
    assert_eq!(read(&mut receiver), [103, 104]);
    let finished = |event: &&Event| matches!(event, Event::Finished { .. });
    assert_eq!(events.iter().filter(finished).count(), 1);
    assert_eq!(receiver.held(), 0);
}

#[test]
fn a_number_that_is_reset_and_used_without_end_ends_the_association() {
    let mut receiver = receiver();
    let mut events = VecDeque::new();
    let ended = (100..200).find(|tsn| {
        let header = data(*tsn, 0, WHOLE);
        let taken = receiver.handle_data(header, b"x", &mut events);
        receiver.reset(1, &mut events);
        taken.is_err()
    });
    // The first, and 16 behind it.
    assert_eq!(ended, Some(117));
}

/// A path that carries SACKs, HEARTBEATs and resets, and no DATA.
#[test]
fn data_that_is_never_acknowledged_ends_the_association() {
    let mut pair = Pair::connected(1, CLEAN);
    pair.sides[0].association.open_stream(2);
    pair.passes = Box::new(|from, packet| {
        from == 1 || parse(packet).unwrap().1.all(|c| c.kind != kind::DATA)
    });
    let began = pair.now;
    pair.write(0, 2, vec![7; 60_000]);
    pair.until("the end", |pair| pair.sides[0].lost().is_some());
    assert_eq!(pair.sides[0].lost(), Some(Lost::NoProgress));
    let took = pair.now - began;
    let limit = CONFIG.progress_timeout;
    assert!(
        (limit..limit + Duration::from_secs(4)).contains(&took),
        "{took:?}"
    );
    pair.until("the peer hears of it", |pair| {
        pair.sides[1].lost().is_some()
    });
}

/// A reader that takes its time is not a peer that has died.
#[test]
fn a_window_that_is_shut_for_an_hour_ends_nothing() {
    let mut pair = Pair::connected(1, CLEAN);
    pair.sides[0].association.open_stream(2);
    pair.sides[1].reads = false;
    for _ in 0..40 {
        pair.write(0, 2, vec![7; 16_000]);
    }
    pair.run(Duration::from_secs(3600));
    assert_eq!(pair.sides[0].lost(), None);
    pair.sides[1].reads = true;
    pair.sides[1].read(2);
    pair.until("all of it", |pair| pair.sides[1].received[&2].len() == 40);
    pair.until("the last SACK", |pair| {
        pair.sides[0].association.held() == 0
    });
}

/// What the application has queued on a stream that the peer resets reaches nobody any more.
#[test]
fn what_has_not_begun_on_a_stream_that_the_peer_resets_is_dropped_and_its_writers_are_told() {
    let mut pair = Pair::connected(1, CLEAN);
    for id in [2, 4] {
        pair.sides[0].association.open_stream(id);
        pair.write(0, id, vec![1; 100]);
    }
    pair.run(Duration::from_secs(1));
    for _ in 0..100 {
        pair.write(0, 2, vec![7; 16_000]);
    }
    pair.step();
    pair.sides[1].association.reset_stream(2);
    pair.sides[0].events.clear();
    let before = pair.sides[0].association.held();
    pair.until("the reset", |pair| pair.sides[0].finished.contains(&2));
    let after = pair.sides[0].association.held();
    assert!(after < before / 4, "{before} bytes held, then {after}");
    assert!(pair.sides[0].events.contains(&Event::Room));
    pair.write(0, 4, vec![9; 5000]);
    let began = pair.now;
    pair.until("the neighbour", |pair| {
        pair.sides[1].received[&4].len() == 2
    });
    assert!(pair.now - began < Duration::from_millis(500));
    pair.until("both resets", |pair| pair.sides[0].reset.contains(&2));
    pair.run(Duration::from_secs(1));
    assert_eq!(pair.sides[0].association.held(), 0);
    assert_eq!(pair.sides[0].association.all_unacknowledged(), 0);
}

/// A peer that acknowledges all but the first makes this side keep everything: that counts.
#[test]
fn what_arrived_behind_a_gap_is_held_until_the_gap_is_closed() {
    let mut sender = super::sender::Sender::new(1000, 1160);
    sender.set_peer_window(u32::MAX);
    sender.open(1);
    let now = Instant::now();
    let mut events = VecDeque::new();
    // One fills a packet.
    for _ in 0..10 {
        sender.write(1, 53, Bytes::from(vec![7; 1132]));
    }
    let held = sender.totals().1;
    assert!((11_320..13_000).contains(&held), "{held}");
    let mut out = Packets::new(1160, ([5000, 5000], 7), true, BytesMut::new());
    sender.fill(now, &mut out);
    let sack = |cumulative: u32, gaps: &[(u16, u16)]| {
        let mut value = cumulative.to_be_bytes().to_vec();
        value.extend(u32::MAX.to_be_bytes());
        value.extend((gaps.len() as u16).to_be_bytes());
        value.extend([0; 2]);
        for (first, last) in gaps {
            value.extend(first.to_be_bytes());
            value.extend(last.to_be_bytes());
        }
        value
    };
    let mut take = |sender: &mut super::sender::Sender, value: &[u8]| {
        let sack = packet::Sack::parse(value).unwrap();
        sender.handle_sack(now, sack, &mut events).unwrap();
    };
    take(&mut sender, &sack(999, &[(2, 10)]));
    assert_eq!(sender.totals(), (1132, held));
    // Takes back, and gives again: counted once.
    take(&mut sender, &sack(999, &[]));
    take(&mut sender, &sack(999, &[(2, 10)]));
    assert_eq!(sender.totals(), (1132, held));
    take(&mut sender, &sack(1009, &[]));
    assert_eq!(sender.totals(), (0, 0));
    assert_eq!(events, [Event::Room, Event::Acknowledged { id: 1 }]);
}

/// Windows count the chunk with its header: messages of one byte are mostly that.
#[test]
fn a_first_flight_of_tiny_messages_is_no_longer_than_one_of_large_ones() {
    let flight = |size: usize| {
        let mut sender = super::sender::Sender::new(1000, 1160);
        sender.set_peer_window(u32::MAX);
        sender.open(1);
        for _ in 0..100_000 / size {
            sender.write(1, 53, Bytes::from(vec![7; size]));
        }
        let mut out = Packets::new(1160, ([5000, 5000], 7), true, BytesMut::new());
        sender.fill(Instant::now(), &mut out);
        out.finish().0.iter().map(Bytes::len).sum::<usize>()
    };
    let (tiny, large) = (flight(1), flight(10_000));
    assert!(tiny <= 12_000 && large <= 12_000, "{tiny} {large}");
}

/// pion sends no SACK when its application reads: whoever waits for a part of its window has to ask.
#[test]
fn a_writer_that_waits_for_its_part_of_a_window_hears_that_it_was_read() {
    let mut pair = Pair::connected(1, CLEAN);
    pair.sides[0].association.open_stream(2);
    pair.sides[1].reads = false;
    let mut messages = 0;
    while pair.sides[0].association.has_share(2, 16_000) {
        pair.write(0, 2, vec![7; 16_000]);
        messages += 1;
        pair.run(Duration::from_millis(100));
    }
    assert!(
        (10..17).contains(&messages),
        "{messages} of 16 that the window has"
    );
    // Everything is acknowledged, and what the reader makes of it is lost.
    pair.run(Duration::from_secs(5));
    assert_eq!(pair.sides[0].association.held(), 0);
    pair.passes = Box::new(|from, _| from == 0);
    pair.sides[1].read(2);
    assert_eq!(pair.sides[1].received[&2].len(), messages);
    pair.run(Duration::from_millis(200));
    pair.passes = Box::new(|_, _| true);
    pair.sides[0].events.clear();
    let began = pair.now;
    pair.until("room", |pair| pair.sides[0].events.contains(&Event::Room));
    assert!(
        pair.now - began < Duration::from_secs(4),
        "{:?}",
        pair.now - began
    );
    assert!(pair.sides[0].association.has_share(2, 16_000));
    assert_eq!(
        pair.sides[1].received[&2].len(),
        messages,
        "nothing came twice"
    );
}

/// The peer has performed our reset and uses the number again, but its answer was lost: the end of the second
/// stream needs a reset of its own.
#[test]
fn a_number_that_was_used_again_before_the_answer_to_our_reset_is_reset_again() {
    let mut sender = super::sender::Sender::new(1000, 1160);
    sender.open(1);
    sender.owe_reset(1);
    assert_eq!(sender.take_resets(10), [1]);
    sender.owe_reset(1);
    assert!(sender.take_resets(10).is_empty());
    assert_eq!(sender.reset_done(1), Some(1));
    assert_eq!(sender.take_resets(10), [1], "for the second stream");
    assert_eq!(sender.reset_done(1), Some(1));
    assert!(sender.take_resets(10).is_empty());
    // One that we began is answered by the peer's own: that is no second stream.
    sender.reset(3);
    assert_eq!(sender.take_resets(10), [3]);
    sender.owe_reset(3);
    assert_eq!(sender.reset_done(3), Some(1));
    assert!(sender.take_resets(10).is_empty());
}
