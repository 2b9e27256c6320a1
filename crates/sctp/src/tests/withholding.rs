//! Withheld TSNs: lying peers are detected, honest ones are not suspected, and no byte is delayed
//! or lost.

use super::*;
use crate::entropy;
use crate::sender::{Sender, WithholdMode};

pub(super) fn seeds(default: u64) -> u64 {
    let seeds = std::env::var("ANABRANCH_SEEDS").ok();
    seeds
        .and_then(|seeds| seeds.parse().ok())
        .unwrap_or(default)
}

/// The value of a SACK chunk.
pub(super) fn sack(cumulative: u32, gaps: &[(u16, u16)]) -> Vec<u8> {
    let mut value = cumulative.to_be_bytes().to_vec();
    value.extend((64_u32 << 20).to_be_bytes());
    value.extend((gaps.len() as u16).to_be_bytes());
    value.extend([0; 2]);
    for (first, last) in gaps {
        value.extend(first.to_be_bytes());
        value.extend(last.to_be_bytes());
    }
    value
}

/// Counts FORWARD-TSN chunks that a side sends, and DATA that follows DATA with a higher TSN.
fn count_withheld(pair: &mut Pair) -> std::rc::Rc<std::cell::Cell<(u32, u32)>> {
    let counts = std::rc::Rc::new(std::cell::Cell::new((0, 0)));
    let (shared, mut highest) = (counts.clone(), None);
    pair.passes = Box::new(move |from, packet| {
        if from == 0
            && let Some((_, chunks)) = parse(packet)
        {
            let (mut forwards, mut late) = shared.get();
            for chunk in chunks {
                forwards += u32::from(chunk.kind == kind::FORWARD_TSN);
                if chunk.kind == kind::DATA
                    && let Some((header, _)) = DataHeader::parse(chunk)
                {
                    late += u32::from(highest.is_some_and(|highest| header.tsn < highest));
                    highest = highest.max(Some(header.tsn));
                }
            }
            shared.set((forwards, late));
        }
        true
    });
    counts
}

fn connected(seed: u64, faults: Faults, forward_tsn: bool) -> Pair {
    entropy::fix(seed);
    let mut pair = Pair::new(seed, faults);
    for side in &mut pair.sides {
        // Fixed, so that no TSN wraps in the filter that counts.
        side.association = Association::new(CONFIG);
        side.association.own.first_tsn >>= 1;
        let first = side.association.own.first_tsn;
        side.association.sender = Sender::new(first, CONFIG.max_packet, CONFIG.congestion);
    }
    pair.sides[1].association.own.forward_tsn = forward_tsn;
    pair.sides[0].association.start();
    pair.until("the handshake", |pair| {
        (pair.sides.iter()).all(|side| side.events.contains(&Event::Connected))
    });
    pair
}

/// Writes messages of two streams in turns, `bytes` in total.
fn write_bulk(pair: &mut Pair, bytes: usize) -> usize {
    for id in [1, 2] {
        pair.sides[0].association.open_stream(id);
    }
    let count = bytes / 5000;
    for at in 0..count {
        pair.write(0, 1 + (at % 2) as u16, pattern(5000, at));
    }
    count
}

fn assert_bulk(pair: &Pair, count: usize) {
    for at in 0..count {
        let messages = &pair.sides[1].received[&(1 + (at % 2) as u16)];
        assert_eq!(messages[at / 2], pattern(5000, at), "message {at}");
    }
}

fn has_all(count: usize) -> impl FnMut(&Pair) -> bool {
    move |pair| pair.sides[1].received.values().map(Vec::len).sum::<usize>() == count
}

#[test]
fn a_peer_that_acknowledges_what_it_has_is_never_suspected() {
    for seed in 0..seeds(60) {
        let mut rng = StdRng::seed_from_u64(seed ^ 0x717e);
        let faults = Faults {
            loss: rng.random_range(0.0..0.1),
            repeat: rng.random_range(0.0..0.1),
            jitter: Duration::from_millis(rng.random_range(0..30)),
        };
        let forward_tsn = rng.random_bool(0.5);
        println!("seed {seed}: {faults:?}, FORWARD-TSN {forward_tsn}");
        let mut pair = connected(seed, faults, forward_tsn);
        let counts = count_withheld(&mut pair);
        let count = write_bulk(&mut pair, 1_500_000);
        pair.until("all messages", has_all(count));
        assert_bulk(&pair, count);
        pair.faults = CLEAN;
        pair.run(Duration::from_secs(5));
        pair.assert_idle();
        assert_eq!(pair.sides[0].end_reason(), None);
        let (forwards, _) = counts.get();
        assert_eq!(forwards > 0, forward_tsn, "{forwards} FORWARD-TSN");
    }
}

#[test]
fn what_is_withheld_from_a_peer_without_forward_tsn_is_a_chunk_that_comes_a_round_trip_late() {
    let mut pair = connected(1, CLEAN, false);
    let counts = count_withheld(&mut pair);
    let count = write_bulk(&mut pair, 1_500_000);
    pair.until("all messages", has_all(count));
    assert_bulk(&pair, count);
    let (forwards, late) = counts.get();
    assert_eq!(forwards, 0);
    assert!((1..=3).contains(&late), "{late} late chunks");
}

/// aiortc drops the fragments of an incomplete message on FORWARD-TSN.
#[test]
fn forward_tsn_is_sent_while_no_message_is_under_way_to_a_peer_that_would_drop_its_pieces() {
    for seed in 0..20 {
        let faults = Faults {
            loss: 0.01,
            jitter: Duration::from_millis(10),
            ..CLEAN
        };
        let mut pair = connected(seed, faults, true);
        pair.sides[0]
            .association
            .sender
            .set_withhold_mode(WithholdMode::SkipWhenDrained);
        let counts = count_withheld(&mut pair);
        let count = write_bulk(&mut pair, 1_500_000);
        let mut seen = 0;
        while !has_all(count)(&pair) {
            pair.step();
            let (forwards, _) = counts.get();
            if forwards > seen {
                // It was sent in this step, with what starts after it.
                let received = &pair.sides[1].association.receiver;
                assert_eq!(received.fragments(), 0, "seed {seed}");
            }
            seen = forwards;
        }
        assert!(seen > 0, "seed {seed}");
        assert_bulk(&pair, count);
    }
}

/// TSNs are skipped between messages: none waits for FORWARD-TSN, whatever becomes of it.
#[test]
fn messages_after_skipped_tsns_are_read_while_forward_tsn_is_lost() {
    let mut pair = connected(1, CLEAN, true);
    let lost = std::rc::Rc::new(std::cell::Cell::new(0));
    let shared = lost.clone();
    pair.passes = Box::new(move |from, packet| {
        let has_forward = from == 0
            && parse(packet)
                .is_some_and(|(_, mut chunks)| chunks.any(|chunk| chunk.kind == kind::FORWARD_TSN));
        // Drops the chunk from the packet, which it always begins.
        if has_forward && shared.get() < 3 {
            shared.set(shared.get() + 1);
            return false;
        }
        true
    });
    let count = write_bulk(&mut pair, 1_500_000);
    pair.until("all messages", has_all(count));
    assert_bulk(&pair, count);
    assert_eq!(lost.get(), 3);
    pair.run(Duration::from_secs(5));
    pair.assert_idle();
}

/// A reset waits until the peer has passed the TSNs skipped before it: the end of a substream must
/// not wait for the retransmission timeout.
#[test]
fn a_stream_ends_at_once_after_a_transfer_with_skipped_tsns() {
    for seed in 0..20 {
        let mut pair = connected(seed, CLEAN, true);
        let count = write_bulk(&mut pair, 400_000);
        pair.until("all messages", has_all(count));
        let began = pair.now;
        pair.sides[0].association.reset_stream(1);
        pair.until("the reset", |pair| pair.sides[0].reset.contains(&1));
        let took = pair.now - began;
        assert!(took <= Duration::from_millis(150), "seed {seed}: {took:?}");
    }
}

/// It never reports a gap, so that the run is given up after two timeouts.
#[test]
fn a_receiver_that_drops_what_comes_out_of_order_receives_everything() {
    for forward_tsn in [false, true] {
        println!("FORWARD-TSN {forward_tsn}");
        let mut pair = connected(3, CLEAN, forward_tsn);
        let counts = count_withheld(&mut pair);
        let count = write_bulk(&mut pair, 2_000_000);
        let end = pair.now + Duration::from_secs(120);
        while !has_all(count)(&pair) {
            assert!(pair.now < end, "waited in vain");
            pair.step();
            // Before it has reported them.
            pair.sides[1].association.receiver.renege();
        }
        assert_eq!(counts.get().0 > 0, forward_tsn);
        assert_bulk(&pair, count);
        assert_eq!(pair.sides[0].end_reason(), None);
    }
}

#[test]
fn a_request_now_and_then_skips_nothing() {
    let mut pair = connected(1, CLEAN, true);
    let counts = count_withheld(&mut pair);
    pair.sides[0].association.open_stream(1);
    for salt in 0..100 {
        pair.write(0, 1, pattern(500, salt));
        pair.run(Duration::from_millis(100));
    }
    assert_eq!(pair.sides[1].received[&1].len(), 100);
    assert_eq!(counts.get(), (0, 0));
}

/// A FORWARD-TSN to a receiver whose cumulative TSN is 99.
fn forward(
    receiver: &mut Receiver,
    to: u32,
    streams: &[(u16, u16)],
) -> Result<VecDeque<Event>, Violation> {
    let mut value = to.to_be_bytes().to_vec();
    for (id, sequence) in streams {
        value.extend(id.to_be_bytes());
        value.extend(sequence.to_be_bytes());
    }
    let mut events = VecDeque::new();
    let forward = packet::ForwardTsn::parse(&value).unwrap();
    receiver.forward(forward, &mut events).map(|()| events)
}

fn take(receiver: &mut Receiver, tsn: u32, sequence: u16, flags: u8) {
    let mut events = VecDeque::new();
    receiver
        .handle_data(data(tsn, sequence, flags), &[tsn as u8], &mut events)
        .expect("valid");
}

#[test]
fn forward_tsn_passes_over_what_is_missing_and_takes_what_is_there() {
    let mut receiver = receiver();
    for (tsn, sequence) in [(100, 0), (103, 1), (104, 2), (107, 3)] {
        take(&mut receiver, tsn, sequence, WHOLE);
    }
    forward(&mut receiver, 102, &[]).expect("nothing is given up");
    assert!(receiver.has_reached(104) && !receiver.has_reached(105));
    // An old one, and one too far ahead.
    forward(&mut receiver, 90, &[]).expect("old");
    forward(&mut receiver, 100 + 70_000, &[]).expect("ignored");
    assert!(!receiver.has_reached(105));
    forward(&mut receiver, 110, &[]).expect("nothing is given up");
    assert!(receiver.has_reached(110) && !receiver.has_reached(111));
    assert_eq!(receiver.sack().2.len(), 0);
    let mut events = VecDeque::new();
    let read = std::iter::from_fn(|| receiver.read(1, &mut events)).count();
    assert_eq!((read, receiver.held()), (4, 0));
}

#[test]
fn a_message_of_a_stream_that_is_read_can_not_be_given_up() {
    // By stream sequence number: no fragment is missing.
    let mut one = receiver();
    take(&mut one, 100, 0, WHOLE);
    assert!(forward(&mut one, 101, &[(1, 1)]).is_err());
    // The first half has arrived.
    let mut half = receiver();
    take(&mut half, 100, 0, WHOLE);
    take(&mut half, 101, 1, flag::BEGIN);
    assert!(forward(&mut half, 103, &[]).is_err());
    // Only the end has arrived.
    let mut end = receiver();
    take(&mut end, 100, 0, WHOLE);
    take(&mut end, 102, 1, flag::END);
    assert!(forward(&mut end, 102, &[]).is_err());
    // Nothing has arrived on the stream, or it is gone.
    assert!(forward(&mut receiver(), 100, &[(7, 0)]).is_ok());
    // It was delivered before.
    let mut delivered = receiver();
    take(&mut delivered, 100, 0, WHOLE);
    assert!(forward(&mut delivered, 101, &[(1, 0)]).is_ok());
}

#[test]
fn a_message_of_a_stream_that_is_ignored_can_be_given_up() {
    let mut receiver = receiver();
    let mut events = VecDeque::new();
    take(&mut receiver, 100, 0, WHOLE);
    receiver.ignore(1, &mut events);
    take(&mut receiver, 101, 1, flag::BEGIN);
    take(&mut receiver, 104, 3, WHOLE);
    forward(&mut receiver, 103, &[(1, 2)]).expect("nobody reads it");
    assert!(receiver.has_reached(104));
    assert_eq!(receiver.held(), 0);
}

/// dcSCTP abandons fragments that were acknowledged together with those that were lost.
#[test]
fn pieces_of_a_message_that_is_given_up_are_dropped_with_it() {
    for there in [&[101, 103][..], &[102, 103], &[101, 102], &[103], &[102]] {
        let mut receiver = receiver();
        let mut events = VecDeque::new();
        take(&mut receiver, 100, 0, WHOLE);
        receiver.ignore(1, &mut events);
        // A message of TSNs 101 to 103, of which a part has arrived.
        for tsn in there {
            let flags = match tsn {
                101 => flag::BEGIN,
                103 => flag::END,
                _ => 0,
            };
            take(&mut receiver, *tsn, 1, flags);
        }
        let mut other = data(104, 0, WHOLE);
        other.stream = 2;
        receiver
            .handle_data(other, b"x", &mut events)
            .expect("valid");
        forward(&mut receiver, 103, &[(1, 1)]).expect("nobody reads it");
        assert!(receiver.has_reached(104), "{there:?}");
        assert_eq!(receiver.read(2, &mut events).expect("one").bytes, "x");
        assert_eq!((receiver.held(), receiver.fragments()), (0, 0));
    }
}

/// After messages received past a gap are read, only the gap is kept.
#[test]
fn messages_that_were_read_from_behind_a_gap_leave_one_entry() {
    let mut receiver = receiver();
    let mut events = VecDeque::new();
    for distance in 1..60_000_u32 {
        let header = data(100 + distance, distance as u16 - 1, WHOLE);
        receiver
            .handle_data(header, b"x", &mut events)
            .expect("valid");
        receiver.read(1, &mut events).expect("a message");
    }
    assert_eq!((receiver.held(), receiver.fragments()), (0, 0));
    assert_eq!(receiver.sack().2.collect::<Vec<_>>(), [(2, 60_000)]);
    // A duplicate is ignored, and the missing TSN closes the gap.
    take(&mut receiver, 100 + 17, 16, WHOLE);
    assert!(receiver.read(1, &mut events).is_none());
    let mut other = data(100, 0, WHOLE);
    other.stream = 2;
    receiver
        .handle_data(other, b"x", &mut events)
        .expect("valid");
    assert!(receiver.has_reached(100 + 59_999));
}

/// A SACK may revoke what the previous one reported: that must not cost a walk through the whole
/// flight each time.
#[test]
fn gaps_that_are_taken_back_and_given_again_are_walked_through_in_parts() {
    let mut sender = Sender::new(1000, 1160, CongestionControl::Cubic);
    sender.set_peer_window(64 << 20);
    sender.withhold_nothing();
    sender.open(1);
    let (mut now, mut events) = (Instant::now(), VecDeque::new());
    let mut first = 1000_u32;
    let mut take = |sender: &mut Sender, now, cumulative, gaps: &[(u16, u16)]| {
        let value = sack(cumulative, gaps);
        let sack = packet::Sack::parse(&value).expect("valid");
        sender.handle_sack(now, sack, &mut events)
    };
    // Until the window admits 6 000 tiny messages.
    let flight = loop {
        // More than a window, which pacing spreads over the round trip.
        while sender.totals().0 < 40_000 {
            sender.write(1, 53, Bytes::from_static(b"x"));
        }
        let mut out = Packets::new(1160, ([5000, 5000], 7), true, BytesMut::new());
        sender.fill(now, &mut out);
        now += Duration::from_millis(10);
        let packets = out.finish().0;
        let tsns: Vec<_> = packets
            .iter()
            .flat_map(|packet| data_tsns(packet))
            .collect();
        let flight = tsns.last().unwrap() - first + 1;
        if flight > 6000 {
            break flight as u16;
        }
        first += flight;
        take(&mut sender, now, first - 1, &[]).expect("honest");
    };
    take(&mut sender, now, first - 1, &[(2, flight)]).expect("honest");
    assert_eq!(sender.known_gaps(), [(2, u32::from(flight))]);
    for round in 1..=3_u32 {
        take(&mut sender, now, first - 1, &[]).expect("allowed");
        take(&mut sender, now, first - 1, &[(2, flight)]).expect("allowed");
        assert_eq!(sender.known_gaps(), [(2, 1025)], "round {round}");
    }
    // A stable report is accepted in full eventually.
    for _ in 0..flight / 1024 {
        take(&mut sender, now, first - 1, &[(2, flight)]).expect("honest");
    }
    assert_eq!(sender.known_gaps(), [(2, u32::from(flight))]);
    take(&mut sender, now, first + u32::from(flight) - 1, &[]).expect("honest");
    assert_eq!(sender.totals().0, 40_000 - usize::from(flight));
}
