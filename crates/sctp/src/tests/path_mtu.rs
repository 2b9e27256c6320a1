//! Packets as long as the path carries, and paths that begin to carry less.

use std::cell::Cell;
use std::rc::Rc;

use super::*;

const SIZES: &[usize] = &[1_300, 1_400, 8_900, 16_336];

/// A pair on a path that carries packets up to `most` bytes, which may change, and the longest one
/// that was sent with DATA.
fn pair(most: &Rc<Cell<usize>>) -> (Pair, Rc<Cell<usize>>) {
    let mut pair = Pair::new(1, CLEAN);
    for side in &mut pair.sides {
        side.association = Association::new(Config {
            packet_sizes: SIZES,
            congestion: CongestionControl::Heed,
            ..CONFIG
        });
    }
    let longest = Rc::new(Cell::new(0));
    pair.max_packet = usize::MAX;
    pair.passes = Box::new({
        let (most, longest) = (Rc::clone(most), Rc::clone(&longest));
        move |_, packet| {
            if !data_tsns(packet).is_empty() {
                longest.set(longest.get().max(packet.len()));
            }
            packet.len() <= most.get()
        }
    });
    let mut pair = pair.handshake();
    for side in &mut pair.sides {
        side.association.open_stream(1);
    }
    (pair, longest)
}

/// Sends `count` messages of 16 000 bytes, and returns how long it took.
fn transfer(pair: &mut Pair, count: usize) -> Duration {
    let begun = pair.now;
    let already = pair.sides[1].received.get(&1).map_or(0, Vec::len);
    for salt in already..already + count {
        pair.write(0, 1, pattern(16_000, salt));
    }
    pair.until("the messages", |pair| {
        pair.sides[1].received.get(&1).map_or(0, Vec::len) == already + count
    });
    pair.now - begun
}

fn assert_all_came(pair: &mut Pair) {
    pair.run(Duration::from_secs(10));
    for (salt, message) in pair.sides[1].received[&1].iter().enumerate() {
        assert_eq!(*message, pattern(16_000, salt), "message {salt}");
    }
    pair.assert_idle();
    assert!(pair.sides[1].association.segments.is_empty());
}

#[test]
fn packets_become_as_long_as_the_path_carries() {
    for (most, expected) in [
        (1_160, 1_160),
        (1_399, 1_300),
        (9_000, 8_900),
        (65_535, 16_336),
    ] {
        let most = Rc::new(Cell::new(most));
        let (mut pair, _) = pair(&most);
        transfer(&mut pair, 200);
        let found = pair.sides[0].association.path_mtu.current();
        assert_eq!(found, expected);
        let payload = pair.sides[0].association.packet_payload();
        assert_eq!(payload, expected - COMMON_HEADER - DATA_HEADER);
        // Nothing is retransmitted for the sake of probes.
        assert_all_came(&mut pair);
    }
}

/// RFC 8899 section 4.3. What was in flight is repeated in segments.
#[test]
fn a_black_hole_stops_a_transfer_for_less_than_three_seconds() {
    for (before, after) in [
        (1_400, 1_300),
        (1_400, 1_200),
        (9_000, 1_250),
        (65_535, 1_399),
    ] {
        let most = Rc::new(Cell::new(before));
        let (mut pair, _) = pair(&most);
        transfer(&mut pair, 100);
        let quiet = transfer(&mut pair, 100);
        for salt in 200..300 {
            pair.write(0, 1, pattern(16_000, salt));
        }
        pair.run(Duration::from_millis(30));
        most.set(after);
        let took = transfer_rest(&mut pair, 300);
        assert!(
            took < quiet + Duration::from_secs(3),
            "{before} to {after}: {took:?} instead of {quiet:?}"
        );
        assert_all_came(&mut pair);
        // And longer ones are looked for again.
        pair.run(Duration::from_secs(1));
        transfer(&mut pair, 200);
        let expected = SIZES.iter().rev().find(|size| **size <= after);
        let found = pair.sides[0].association.path_mtu.current();
        assert_eq!(found, *expected.unwrap_or(&CONFIG.max_packet));
    }
}

fn transfer_rest(pair: &mut Pair, count: usize) -> Duration {
    let begun = pair.now;
    pair.until("the rest", |pair| pair.sides[1].received[&1].len() == count);
    pair.now - begun
}

/// Small messages of a neighbour keep arriving, so that no timeout ever expires.
#[test]
fn a_black_hole_is_noticed_beside_short_packets_that_arrive() {
    let most = Rc::new(Cell::new(9_000));
    let (mut pair, _) = pair(&most);
    pair.sides[0].association.open_stream(3);
    transfer(&mut pair, 100);
    for salt in 100..160 {
        pair.write(0, 1, pattern(16_000, salt));
    }
    most.set(1_250);
    let begun = pair.now;
    while pair.sides[1].received[&1].len() < 160 {
        pair.write(0, 3, vec![7; 10]);
        pair.run(Duration::from_millis(20));
        assert!(pair.now < begun + Duration::from_secs(5));
    }
    assert_all_came(&mut pair);
}

#[test]
fn whatever_the_path_carries_from_moment_to_moment_everything_arrives() {
    for seed in 0..40 {
        let most = Rc::new(Cell::new(65_535));
        let (mut pair, _) = pair(&most);
        pair.rng = StdRng::seed_from_u64(seed);
        pair.faults = Faults {
            loss: 0.02,
            repeat: 0.02,
            jitter: Duration::from_millis(5),
        };
        for salt in 0..60 {
            pair.write(0, 1, pattern(16_000, salt));
            let sizes = [1_160, 1_250, 1_350, 1_500, 9_000, 65_535];
            if salt % 6 == 0 {
                most.set(sizes[pair.rng.random_range(0..sizes.len())]);
            }
            pair.run(Duration::from_millis(100));
        }
        println!("seed {seed}");
        let _ = transfer_rest(&mut pair, 60);
        pair.faults = CLEAN;
        assert_all_came(&mut pair);
    }
}

#[test]
fn a_peer_that_takes_no_segments_gets_no_longer_packets() {
    let most = Rc::new(Cell::new(65_535));
    let (mut pair, longest) = pair(&most);
    for side in &mut pair.sides {
        side.association = Association::new(Config {
            packet_sizes: SIZES,
            ..CONFIG
        });
        side.association.own.segments = false;
        side.events.clear();
    }
    let mut pair = pair.handshake();
    for side in &mut pair.sides {
        side.association.open_stream(1);
    }
    transfer(&mut pair, 100);
    assert!(longest.get() <= CONFIG.max_packet, "{}", longest.get());
    assert_all_came(&mut pair);
}
