//! Sending: windows, held memory, streams that are reset.

use super::*;

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

/// A slow reader is not a dead peer.
#[test]
fn a_window_that_is_shut_for_an_hour_ends_nothing() {
    let mut pair = Pair::connected(1, CLEAN);
    pair.sides[0].association.open_stream(2);
    pair.sides[1].reads = false;
    for _ in 0..40 {
        pair.write(0, 2, vec![7; 16_000]);
    }
    pair.run(Duration::from_secs(3600));
    assert_eq!(pair.sides[0].end_reason(), None);
    pair.sides[1].reads = true;
    pair.sides[1].read(2);
    pair.until("all of it", |pair| pair.sides[1].received[&2].len() == 40);
    pair.until("the last SACK", |pair| {
        pair.sides[0].association.held() == 0
    });
}

/// What is queued on a stream that the peer resets can not reach anybody.
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
    assert!(pair.sides[0].events.contains(&Event::Writable));
    pair.write(0, 4, vec![9; 5000]);
    let began = pair.now;
    pair.until("the neighbour", |pair| {
        pair.sides[1].received[&4].len() == 2
    });
    assert!(pair.now - began < Duration::from_millis(500));
    pair.until("both resets", |pair| pair.sides[0].reset.contains(&2));
    pair.run(Duration::from_secs(1));
    assert_eq!(pair.sides[0].association.held(), 0);
    assert_eq!(pair.sides[0].association.total_unacknowledged(), 0);
}

/// A peer that acknowledges all but the first chunk makes this side keep everything: that is
/// counted.
#[test]
fn what_arrived_behind_a_gap_is_held_until_the_gap_is_closed() {
    let mut sender = crate::sender::Sender::new(1000, 1160, CongestionControl::Cubic);
    sender.set_peer_window(u32::MAX);
    sender.open(1);
    let now = Instant::now();
    let mut events = VecDeque::new();
    // One message fills a packet.
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
    let mut take = |sender: &mut crate::sender::Sender, value: &[u8]| {
        let sack = packet::Sack::parse(value).unwrap();
        sender.handle_sack(now, sack, &mut events).unwrap();
    };
    take(&mut sender, &sack(999, &[(2, 10)]));
    assert_eq!(sender.totals(), (1132, held));
    // Revoked and reported again: counted once.
    take(&mut sender, &sack(999, &[]));
    take(&mut sender, &sack(999, &[(2, 10)]));
    assert_eq!(sender.totals(), (1132, held));
    take(&mut sender, &sack(1009, &[]));
    assert_eq!(sender.totals(), (0, 0));
    assert_eq!(events, [Event::Writable, Event::Acknowledged { id: 1 }]);
}

/// Windows count chunks with their header, which is most of a one-byte message.
#[test]
fn a_first_flight_of_tiny_messages_is_no_longer_than_one_of_large_ones() {
    let flight = |size: usize| {
        let mut sender = crate::sender::Sender::new(1000, 1160, CongestionControl::Cubic);
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

/// pion sends no SACK when its application reads: a writer that waits for its share of the window
/// has to elicit one.
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
    // Everything is acknowledged, and the window update of the reader is lost.
    pair.run(Duration::from_secs(5));
    assert_eq!(pair.sides[0].association.held(), 0);
    pair.passes = Box::new(|from, _| from == 0);
    pair.sides[1].read(2);
    assert_eq!(pair.sides[1].received[&2].len(), messages);
    pair.run(Duration::from_millis(200));
    pair.passes = Box::new(|_, _| true);
    pair.sides[0].events.clear();
    let began = pair.now;
    pair.until("room", |pair| {
        pair.sides[0].events.contains(&Event::Writable)
    });
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

/// The peer has performed our reset and reuses the id, but its response was lost: the end of the
/// second stream needs a reset of its own.
#[test]
fn a_number_that_was_used_again_before_the_answer_to_our_reset_is_reset_again() {
    let mut sender = crate::sender::Sender::new(1000, 1160, CongestionControl::Cubic);
    sender.open(1);
    sender.answer_reset(1);
    assert_eq!(sender.take_resets(10), [1]);
    sender.answer_reset(1);
    assert!(sender.take_resets(10).is_empty());
    assert_eq!(sender.reset_done(1), Some(1));
    assert_eq!(sender.take_resets(10), [1], "for the second stream");
    assert_eq!(sender.reset_done(1), Some(1));
    assert!(sender.take_resets(10).is_empty());
    // The peer's own reset answers ours: that is no second stream.
    sender.reset(3);
    assert_eq!(sender.take_resets(10), [3]);
    sender.answer_reset(3);
    assert_eq!(sender.reset_done(3), Some(1));
    assert!(sender.take_resets(10).is_empty());
}
