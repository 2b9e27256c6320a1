//! How an association is established: with the cookie of RFC 9260, and between two of ours without.

use std::cell::Cell;
use std::rc::Rc;

use super::*;
use crate::sender::RTO_INITIAL;

/// One way of the path takes 10 ms.
const RTT: Duration = Duration::from_millis(20);

/// A pair in which these sides do without a cookie.
fn pair(without_cookie: [bool; 2]) -> Pair {
    let mut pair = Pair::new(1, CLEAN);
    for (side, without_cookie) in pair.sides.iter_mut().zip(without_cookie) {
        side.association = Association::new(Config {
            without_cookie,
            ..CONFIG
        });
    }
    pair
}

fn has_connected(pair: &Pair, side: usize) -> bool {
    pair.sides[side].events.contains(&Event::Connected)
}

/// Side 0 starts, and side 1 writes once it is connected; the time until that is delivered.
fn first_message(pair: &mut Pair) -> Duration {
    let begun = pair.now;
    pair.sides[0].association.start();
    pair.until("the responder", |pair| has_connected(pair, 1));
    assert!(pair.sides[1].association.open_stream(0));
    pair.write(1, 0, pattern(100, 0));
    pair.until("the message", |pair| !pair.sides[0].received.is_empty());
    assert!(has_connected(pair, 0));
    let took = pair.now - begun;
    assert!(pair.sides[0].association.open_stream(1));
    pair.write(0, 1, pattern(30_000, 1));
    pair.until("the answer", |pair| !pair.sides[1].received.is_empty());
    pair.run(Duration::from_secs(1));
    assert_eq!(pair.sides[0].received[&0], [pattern(100, 0)]);
    assert_eq!(pair.sides[1].received[&1], [pattern(30_000, 1)]);
    pair.assert_idle();
    assert!(
        pair.sides
            .iter()
            .all(|side| side.association.unconfirmed.is_none())
    );
    took
}

#[test]
fn without_a_cookie_the_first_message_arrives_a_round_trip_sooner() {
    for without_cookie in [[true, true], [true, false], [false, true], [false, false]] {
        let round_trips = match without_cookie {
            [true, true] => 1,
            _ => 2,
        };
        let mut pair = pair(without_cookie);
        assert_eq!(first_message(&mut pair), RTT * round_trips);
    }
}

/// INIT-ACK goes with DATA until the peer has shown that it has it.
#[test]
fn a_lost_init_ack_costs_one_timeout() {
    for losses in 1..4 {
        let mut pair = pair([true, true]);
        let left = Cell::new(losses);
        pair.passes =
            Box::new(move |from, _| from == 0 || left.replace(left.get().max(1) - 1) == 0);
        let took = first_message(&mut pair);
        let most = RTT + RTO_INITIAL * ((1 << losses) - 1);
        assert!(took <= most + RTT, "{losses} lost: {took:?}");
    }
}

#[test]
fn a_lost_init_is_repeated() {
    let mut pair = pair([true, true]);
    let is_lost = Cell::new(false);
    pair.passes = Box::new(move |from, _| from == 1 || is_lost.replace(true));
    assert_eq!(first_message(&mut pair), RTT + RTO_INITIAL);
}

#[test]
fn both_sides_may_start_at_once() {
    for without_cookie in [[true, true], [true, false], [false, false]] {
        let mut pair = pair(without_cookie);
        for side in &mut pair.sides {
            side.association.start();
        }
        first_message(&mut pair);
    }
}

#[test]
fn an_init_ack_does_without_a_cookie_only_if_the_init_did() {
    for asked in [false, true] {
        let pair = &mut pair([asked, true]);
        let now = pair.now;
        let [client, server] = &mut pair.sides;
        client.association.start();
        let init = client.association.poll_transmit(now).expect("an INIT");
        server.association.handle_packet(now, &init[0]);
        let answer = server.association.poll_transmit(now).expect("an INIT-ACK");
        let chunk = parse(&answer[0]).expect("valid").1.next();
        let (own, cookie) = Init::parse(chunk.expect("a chunk").value).expect("valid");
        assert_eq!(own.without_cookie, asked);
        // A mandatory parameter, whether it is returned or not.
        assert!(cookie.is_some());
        assert_eq!(server.association.is_up(), asked);
    }
}

/// Another INIT neither moves the association to other numbers nor makes it answer.
#[test]
fn only_the_same_init_is_answered_again() {
    let mut pair = pair([true, true]);
    let now = pair.now;
    let [client, server] = &mut pair.sides;
    client.association.start();
    let init = client.association.poll_transmit(now).expect("an INIT");
    server.association.handle_packet(now, &init[0]);
    let first = server.association.poll_transmit(now).expect("an INIT-ACK");
    let peer = server.association.peer;

    let mut other = Association::new(CONFIG);
    other.start();
    let init_of_other = other.poll_transmit(now).expect("an INIT");
    server.association.handle_packet(now, &init_of_other[0]);
    assert_eq!(server.association.poll_transmit(now), None);
    assert_eq!(server.association.peer, peer);

    server.association.handle_packet(now, &init[0]);
    assert_eq!(server.association.poll_transmit(now), Some(first));
    pair.until("the client", |pair| has_connected(pair, 0));
}

/// The peer has INIT-ACK once anything carries the tag that it announces.
#[test]
fn init_ack_is_not_repeated_once_anything_has_arrived() {
    let mut pair = pair([true, true]);
    let answers = Rc::new(Cell::new(0));
    pair.passes = Box::new({
        let answers = Rc::clone(&answers);
        move |_, packet| {
            let chunks = parse(packet).expect("valid").1;
            let count = chunks.filter(|chunk| chunk.kind == kind::INIT_ACK).count();
            answers.set(answers.get() + count);
            true
        }
    });
    first_message(&mut pair);
    // With the message.
    assert_eq!(answers.get(), 1);
}

/// More was written than the peer's window takes, and the window is full: there is no packet to
/// send, and so no INIT-ACK either.
#[test]
fn an_unconfirmed_init_ack_is_not_sent_for_data_that_waits() {
    let mut pair = pair([true, true]);
    let now = pair.now;
    let [client, server] = &mut pair.sides;
    client.association.start();
    let init = client.association.poll_transmit(now).expect("an INIT");
    server.association.handle_packet(now, &init[0]);
    server.association.open_stream(0);
    for _ in 0..20 {
        let message = pattern(20_000, 0).into();
        assert!(server.association.write(0, message, Ppid::Binary));
    }
    let mut calls = 0;
    while server.association.poll_transmit(now).is_some() {
        calls += 1;
        assert!(calls < 100);
    }
    // With nothing to say there is no packet.
    assert!(server.association.unconfirmed.is_some());
}
