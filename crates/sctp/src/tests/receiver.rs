//! Receiving: order, gaps, streams that end.

use super::*;

#[test]
fn a_number_that_is_used_again_at_once_begins_another_stream() {
    let mut pair = Pair::connected(1, CLEAN);
    pair.sides[1].reads = false;
    for round in 0..3 {
        assert!(pair.sides[0].association.open_stream(1));
        pair.write(0, 1, pattern(10, round));
        pair.sides[0].association.reset_stream(1);
        pair.run(Duration::from_secs(2));
        // As a peer does that does not wait for our response.
        let receiver = &mut pair.sides[0].association.receiver;
        receiver.reset(1, &mut VecDeque::new());
        receiver.retire(1, &mut VecDeque::new());
        receiver.take_ended();
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

#[test]
fn what_comes_ahead_is_bounded_in_bytes_numbers_and_gaps() {
    let mut events = VecDeque::new();
    let mut receiver = receiver();
    // Every other TSN, so that nothing is complete in order.
    for distance in (1..200_000).step_by(2) {
        let header = data(100 + distance, distance as u16, WHOLE);
        receiver
            .handle_data(header, &[1; 200], &mut events)
            .expect("valid");
    }
    assert!(receiver.held() <= CONFIG.receive_buffer);
    assert!(receiver.sack().2.len() <= 1024);
    // The missing TSNs still have room, and release what waited for them.
    for distance in (0..1000).step_by(2) {
        let header = data(100 + distance, distance as u16, WHOLE);
        receiver
            .handle_data(header, &[1; 200], &mut events)
            .expect("valid");
    }
    assert!(receiver.has_reached(100 + 999));
    let mut read = 0;
    while receiver.read(1, &mut events).is_some() {
        read += 1;
    }
    assert!(read >= 1000, "{read}");
}

/// Each bound by itself: the largest offset, the gaps, the bytes.
#[test]
fn what_comes_ahead_is_refused_beyond_each_bound_alone() {
    let mut events = VecDeque::new();
    let mut take = |receiver: &mut crate::receiver::Receiver, distance: u32, length: usize| {
        // The cumulative TSN is 99. First fragments only, so that no message is complete.
        let header = data(99 + distance, 9, flag::BEGIN);
        let before = receiver.held();
        let payload = vec![1; length];
        receiver
            .handle_data(header, &payload, &mut events)
            .expect("valid");
        receiver.held() > before
    };
    let mut numbers = receiver();
    assert!(!take(&mut numbers, 65_536, 10));
    assert!(take(&mut numbers, 65_535, 10));
    let mut gaps = receiver();
    let taken = (1..4000).filter(|n| take(&mut gaps, 2 * n, 10)).count();
    assert_eq!((taken, gaps.sack().2.len()), (1024, 1024));
    // One range after one gap, with the payload of packets.
    let mut bytes = receiver();
    let taken = (2..60_000).filter(|n| take(&mut bytes, *n, 1000)).count();
    let held = bytes.held();
    assert!(
        held <= CONFIG.receive_buffer && held > CONFIG.receive_buffer - 2000,
        "{held}"
    );
    assert!(taken * 1000 <= held, "{taken}");
}

#[test]
fn pieces_that_make_no_message_end_the_association() {
    let rounds: [(&[_], _); 4] = [
        // No beginning, two beginnings, another sequence number, ordered and unordered mixed.
        (&[(100, 0, 0)], Violation::MissingBeginning),
        (
            &[(100, 0, flag::BEGIN), (101, 0, flag::BEGIN)],
            Violation::MissingEnd,
        ),
        (
            &[(100, 0, flag::BEGIN), (101, 1, flag::END)],
            Violation::MixedFragments,
        ),
        (
            &[(100, 0, flag::BEGIN), (101, 0, flag::END | flag::UNORDERED)],
            Violation::MixedFragments,
        ),
    ];
    for (round, expected) in rounds {
        let mut receiver = receiver();
        let mut events = VecDeque::new();
        let mut last = Ok(());
        for (tsn, ssn, flags) in round {
            last = receiver.handle_data(data(*tsn, *ssn, *flags), b"x", &mut events);
        }
        assert_eq!(last, Err(expected), "{round:?}");
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

/// A peer reuses an id after a reset that waits for lost DATA before it.
#[test]
fn what_is_behind_a_reset_waits_for_it() {
    let mut receiver = receiver();
    let mut events = VecDeque::new();
    let mut take = |receiver: &mut Receiver, tsn, sequence| {
        let header = data(tsn, sequence, WHOLE);
        receiver
            .handle_data(header, &[tsn as u8], &mut events)
            .expect("valid");
    };
    take(&mut receiver, 100, 0);
    take(&mut receiver, 102, 2);
    receiver.hold_after(102);
    take(&mut receiver, 103, 0);
    take(&mut receiver, 104, 1);
    take(&mut receiver, 101, 1);
    assert!(receiver.has_reached(102) && !receiver.has_reached(103));
    receiver.reset(1, &mut events);
    receiver.release(&mut events).expect("valid");
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
    // The first stream and 16 successors.
    assert_eq!(ended, Some(117));
}
