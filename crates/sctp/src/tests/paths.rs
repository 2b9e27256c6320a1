//! Paths that lose, delay, duplicate and reorder packets, and outages.

use super::*;

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
                // Some ids are used by both sides.
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
                .all(|side| side.end_reason() == Some(EndReason::Closed))
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
    // The first DATA packet is lost once.
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
        // The last of three packets.
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
fn what_a_peer_has_thrown_away_behind_a_gap_is_sent_again() {
    let mut pair = Pair::connected(1, CLEAN);
    pair.sides[0].association.open_stream(1);
    for salt in 0..6 {
        pair.write(0, 1, pattern(1100, salt));
    }
    // The receiver discards everything after a gap each time something arrives, and reports that.
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

/// A path that forwards SACKs, HEARTBEATs and resets, but no DATA.
#[test]
fn data_that_is_never_acknowledged_ends_the_association() {
    let mut pair = Pair::connected(1, CLEAN);
    pair.sides[0].association.open_stream(2);
    pair.passes = Box::new(|from, packet| {
        from == 1 || parse(packet).unwrap().1.all(|c| c.kind != kind::DATA)
    });
    let began = pair.now;
    pair.write(0, 2, vec![7; 60_000]);
    pair.until("the end", |pair| pair.sides[0].end_reason().is_some());
    assert_eq!(pair.sides[0].end_reason(), Some(EndReason::NoProgress));
    let took = pair.now - began;
    let limit = CONFIG.progress_timeout;
    assert!(
        (limit..limit + Duration::from_secs(4)).contains(&took),
        "{took:?}"
    );
    pair.until("the peer hears of it", |pair| {
        pair.sides[1].end_reason().is_some()
    });
}
