//! Explicit congestion notification between two associations.

use std::cell::RefCell;
use std::rc::Rc;

use super::*;
use crate::ecn::State;

fn state(pair: &Pair, side: usize) -> State {
    pair.sides[side].association.sender.marking().state()
}

/// Writes a megabyte from side 0, in messages of 1 000 bytes, and waits until it has arrived.
fn transfer(pair: &mut Pair) {
    pair.sides[0].association.open_stream(1);
    let received = |pair: &Pair| pair.sides[1].received.get(&1).map_or(0, Vec::len);
    let before = received(pair);
    for message in 0..1000 {
        pair.write(0, 1, pattern(1000, message));
    }
    pair.until("a megabyte", |pair| received(pair) == before + 1000);
    pair.run(Duration::from_secs(1));
}

/// Counts chunks of a kind that a side sends.
fn count(pair: &mut Pair, kind: u8) -> Rc<RefCell<[u64; 2]>> {
    let counts = Rc::new(RefCell::new([0; 2]));
    let shared = Rc::clone(&counts);
    pair.passes = Box::new(move |from, packet| {
        let chunks = parse(packet).expect("valid").1;
        shared.borrow_mut()[from] += chunks.filter(|chunk| chunk.kind == kind).count() as u64;
        true
    });
    counts
}

/// A pair of which only side 0, or neither or both, has ECN.
fn connected(has_ecn: [bool; 2]) -> Pair {
    let mut pair = Pair::new(1, CLEAN);
    for (side, ecn) in pair.sides.iter_mut().zip(has_ecn) {
        side.association = Association::new(Config { ecn, ..CONFIG });
    }
    pair.handshake()
}

#[test]
fn it_is_used_only_if_both_sides_list_it() {
    for has_ecn in [[true, true], [true, false], [false, true], [false, false]] {
        let mut pair = connected(has_ecn);
        let chunks = count(&mut pair, kind::ECN_COUNTS);
        let marks = Rc::new(RefCell::new(Vec::new()));
        let shared = Rc::clone(&marks);
        pair.marks = Box::new(move |from, codepoint| {
            shared.borrow_mut().push((from, codepoint));
            codepoint
        });
        transfer(&mut pair);
        let is_marked = |(_, mark): &&(usize, Ecn)| *mark == Ecn::Ect0;
        let marked = marks.borrow().iter().filter(is_marked).count();
        if has_ecn == [true, true] {
            // Those with DATA, which are all but a FORWARD-TSN now and then.
            let sent = marks.borrow().iter().filter(|(from, _)| *from == 0).count();
            assert!(marked + 10 > sent, "{marked} of {sent}");
            let is_of_receiver = |(from, mark): &(usize, Ecn)| *from == 1 && *mark == Ecn::Ect0;
            assert!(!marks.borrow().iter().any(is_of_receiver), "a lone SACK");
            assert!(chunks.borrow()[1] > 0);
            assert_eq!(state(&pair, 0), State::Capable);
        } else {
            assert_eq!((marked, *chunks.borrow()), (0, [0; 2]), "{has_ecn:?}");
            assert_eq!(state(&pair, 0), State::Off);
        }
    }
}

#[test]
fn an_init_ack_lists_the_chunk_only_to_who_lists_it() {
    for ecn in [false, true] {
        let mut peer = Association::new(Config { ecn, ..CONFIG });
        let mut server = Association::new(CONFIG);
        let now = Instant::now();
        peer.start();
        let init = peer.poll_transmit(now).expect("an INIT").remove(0);
        server.handle_packet(now, &init);
        let answer = server.poll_transmit(now).expect("an answer").remove(0);
        let chunk = parse(&answer).expect("valid").1.next().expect("a chunk");
        assert_eq!(chunk.kind, kind::INIT_ACK);
        let (own, _) = handshake::Init::parse(chunk.value).expect("valid");
        assert_eq!(own.ecn, ecn);
    }
}

#[test]
fn a_mark_reduces_the_window_once_a_round_trip_and_nothing_is_retransmitted() {
    for control in [CongestionControl::Heed, CongestionControl::Cubic] {
        let mut pair = Pair::controlled(control);
        transfer(&mut pair);
        let tsns = Rc::new(RefCell::new(Vec::new()));
        let shared = Rc::clone(&tsns);
        pair.passes = Box::new(move |from, packet| {
            if from == 0 {
                shared.borrow_mut().extend(data_tsns(packet));
            }
            true
        });
        // Every packet of four round trips is marked.
        let until = pair.now + Duration::from_millis(80);
        let now = Rc::new(RefCell::new(pair.now));
        let clock = Rc::clone(&now);
        pair.marks = Box::new(move |from, codepoint| {
            let is_marked = from == 0 && codepoint == Ecn::Ect0 && *clock.borrow() < until;
            if is_marked { Ecn::Ce } else { codepoint }
        });
        for message in 0..1000 {
            pair.write(0, 1, pattern(1000, message));
        }
        let begin = pair.now;
        let mut reductions = Vec::new();
        let cwnd = |pair: &Pair| pair.sides[0].association.congestion().cwnd();
        let mut before = cwnd(&pair);
        while pair.sides[1].received[&1].len() < 2000 {
            *now.borrow_mut() = pair.now;
            pair.step();
            let cwnd = cwnd(&pair);
            if cwnd < before {
                reductions.push((pair.now - begin, before, cwnd));
            }
            before = cwnd;
        }
        println!("{control:?}: {reductions:?}");
        let (first, from, to) = reductions[0];
        assert!(first <= Duration::from_millis(21), "{first:?}");
        assert!(
            (0.65..0.75).contains(&(to as f64 / from as f64)),
            "{from} to {to}"
        );
        assert!((2..=5).contains(&reductions.len()), "{}", reductions.len());
        for pair in reductions.windows(2) {
            assert!(
                pair[1].0 - pair[0].0 >= Duration::from_millis(20),
                "{pair:?}"
            );
        }
        let tsns = tsns.borrow();
        let distinct: std::collections::BTreeSet<_> = tsns.iter().collect();
        assert_eq!(distinct.len(), tsns.len(), "nothing is sent twice");
        assert_eq!(state(&pair, 0), State::Capable);
    }
}

#[test]
fn a_path_that_clears_the_marks_is_not_marked_any_more() {
    let mut pair = Pair::new(1, CLEAN);
    let marked = Rc::new(RefCell::new(0));
    let shared = Rc::clone(&marked);
    pair.marks = Box::new(move |_, codepoint| {
        *shared.borrow_mut() += u64::from(codepoint == Ecn::Ect0);
        Ecn::NotEct
    });
    pair.sides[0].association.start();
    let chunks = count(&mut pair, kind::ECN_COUNTS);
    pair.until("the handshake", |pair| {
        (pair.sides.iter()).all(|side| side.events.contains(&Event::Connected))
    });
    transfer(&mut pair);
    assert_eq!(state(&pair, 0), State::Failed);
    let before = *marked.borrow();
    transfer(&mut pair);
    assert_eq!(*marked.borrow(), before);
    assert_eq!(*chunks.borrow(), [0; 2]);
}

#[test]
fn a_path_that_drops_marked_packets_is_used_without_marks() {
    let mut pair = Pair::connected(1, CLEAN);
    pair.is_ect_dropped = true;
    pair.sides[0].association.open_stream(1);
    for message in 0..1000 {
        pair.write(0, 1, pattern(1000, message));
    }
    let begin = pair.now;
    while pair.sides[1].received.get(&1).map_or(0, Vec::len) < 1000 {
        pair.step();
        assert!(pair.now - begin < Duration::from_secs(5));
    }
    assert_eq!(state(&pair, 0), State::Failed);
}

/// A receiver has no DATA in flight that would reveal it.
#[test]
fn a_path_back_that_drops_marked_packets_does_not_end_an_upload() {
    let mut pair = Pair::connected(1, CLEAN);
    transfer(&mut pair);
    pair.is_ect_dropped = true;
    let begin = pair.now;
    transfer(&mut pair);
    assert!(pair.now - begin < Duration::from_secs(6));
    assert_eq!(pair.sides[0].end_reason(), None);
}

#[test]
fn an_outage_does_not_end_marking() {
    let mut pair = Pair::connected(1, CLEAN);
    transfer(&mut pair);
    assert_eq!(state(&pair, 0), State::Capable);
    let end = pair.now + Duration::from_secs(3);
    let now = Rc::new(RefCell::new(pair.now));
    let clock = Rc::clone(&now);
    pair.passes = Box::new(move |_, _| *clock.borrow() >= end);
    pair.write(0, 1, pattern(1000, 0));
    let mut was_suspended = false;
    while pair.now < end {
        *now.borrow_mut() = pair.now;
        pair.step();
        was_suspended |= state(&pair, 0) == State::Suspended;
    }
    *now.borrow_mut() = end;
    assert!(was_suspended);
    pair.until("the message", |pair| {
        pair.sides[1].received[&1].len() == 1001
    });
    transfer(&mut pair);
    assert_eq!(state(&pair, 0), State::Capable);
}

#[test]
fn a_bad_path_does_not_end_marking() {
    let faults = Faults {
        loss: 0.05,
        repeat: 0.1,
        jitter: Duration::from_millis(15),
    };
    for seed in 0..super::withholding::seeds(20) {
        let mut pair = Pair::connected(seed, faults);
        let mut random = StdRng::seed_from_u64(seed);
        pair.marks = Box::new(move |_, codepoint| match codepoint {
            Ecn::Ect0 if random.random_bool(0.02) => Ecn::Ce,
            other => other,
        });
        transfer(&mut pair);
        assert_ne!(state(&pair, 0), State::Failed, "seed {seed}");
    }
}

/// A peer whose packets have any counts before their SACKs.
#[test]
fn counts_that_lie_end_marking_and_nothing_else() {
    for seed in 0..50 {
        let mut random = StdRng::seed_from_u64(seed);
        let mut pair = Pair::connected(seed, CLEAN);
        let lies = Rc::new(RefCell::new(Vec::new()));
        let shared = Rc::clone(&lies);
        pair.passes = Box::new(move |from, packet| {
            if from == 0 {
                return true;
            }
            // Held back, and replaced by a packet with other counts.
            let (header, chunks) = parse(packet).expect("valid");
            let ports = [header.source, header.destination];
            let mut out = Packets::new(1160, (ports, header.tag), true, BytesMut::new());
            for chunk in chunks {
                if chunk.kind == kind::SACK {
                    let length = random.random_range(0..=20);
                    let value: Vec<u8> = (0..length).map(|_| random.random()).collect();
                    out.put(kind::ECN_COUNTS, 0, &value);
                }
                if chunk.kind != kind::ECN_COUNTS {
                    out.put(chunk.kind, chunk.flags, chunk.value);
                }
            }
            shared.borrow_mut().extend(out.finish().0);
            false
        });
        pair.sides[0].association.open_stream(1);
        for message in 0..200 {
            pair.write(0, 1, pattern(1000, message));
        }
        let begin = pair.now;
        while pair.sides[0].association.total_unacknowledged() > 0 {
            pair.step();
            for packet in lies.borrow_mut().drain(..) {
                pair.sides[0].association.handle_packet(pair.now, &packet);
            }
            assert!(pair.now - begin < Duration::from_secs(60), "seed {seed}");
        }
        assert_eq!(state(&pair, 0), State::Failed, "seed {seed}");
        assert_eq!(pair.sides[0].end_reason(), None);
    }
}
