//! The direct engine against itself and against str0m.

use std::time::Duration;

use anabranch_rtc::{Datagram, DirectEngine, EndReason, Engine, TransmitQueue, Written};
use anabranch_str0m::Str0mEngine;

mod channels;
mod harness;
mod hostile;
mod throughput;

use harness::{Make, Options, Pair, v1, v2};

type Direct = Pair<DirectEngine, DirectEngine>;

/// Bytes that depend on their position.
fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|index| (index % 251) as u8).collect()
}

/// Handshake, channels opened by either side with data right after OPEN, and an orderly end.
fn exercise<C: Make, S: Make>(mut pair: Pair<C, S>) {
    pair.connect();
    pair.assert_zero_works();
    let (ours, theirs) = pair.open("label");
    assert_eq!(pair.server.opened, [(theirs, "label".to_owned())]);
    let data = pattern(300_000);
    pair.run(Duration::from_millis(50));
    for chunk in data.chunks(16_384) {
        pair.client.write(ours, chunk);
        pair.server.write(theirs, chunk);
    }
    pair.client.engine.notify_delivered(ours);
    pair.until(Duration::from_secs(60), |pair| {
        pair.client.received.get(&ours).map_or(0, Vec::len) == data.len()
            && pair.server.received.get(&theirs).map_or(0, Vec::len) == data.len()
            && pair.client.delivered == [ours]
    });
    assert!(pair.client.received[&ours] == data);
    assert!(pair.server.received[&theirs] == data);

    let back = pair.server.engine.open("").expect("a channel");
    pair.until(Duration::from_secs(10), |pair| {
        pair.client.opened.len() == 1
    });
    pair.run(Duration::from_millis(100));
    pair.server.write(back, b"from the server");
    pair.server.engine.close_channel(back);
    let there = pair.client.opened[0].0;
    pair.until(Duration::from_secs(10), |pair| {
        pair.client.closed == [there] && pair.server.closed == [back]
    });
    assert_eq!(pair.client.received[&there], b"from the server");

    pair.until(Duration::from_secs(10), |pair| {
        pair.client.engine.unacknowledged() + pair.server.engine.unacknowledged() == 0
    });
    let now = pair.now;
    pair.client.engine.close(now);
    pair.until(Duration::from_secs(1), |pair| pair.server.ended.is_some());
    assert!(matches!(pair.server.ended, Some(EndReason::ClosedByPeer)));
}

fn with(credentials: harness::Credentials) -> Options {
    Options {
        credentials,
        ..Options::default()
    }
}

#[test]
fn direct_to_direct_v1() {
    exercise(Direct::new(with(v1())));
}

#[test]
fn direct_to_direct_v2() {
    exercise(Direct::new(with(v2())));
}

#[test]
fn direct_dials_str0m() {
    exercise(Pair::<DirectEngine, Str0mEngine>::new(with(v1())));
    exercise(Pair::<DirectEngine, Str0mEngine>::new(with(v2())));
}

#[test]
fn str0m_dials_direct() {
    exercise(Pair::<Str0mEngine, DirectEngine>::new(with(v1())));
    exercise(Pair::<Str0mEngine, DirectEngine>::new(with(v2())));
}

#[test]
fn every_tenth_datagram_is_lost_and_others_come_late() {
    for seed in 1..6 {
        let mut pair = Direct::new(Options {
            seed: seed * 0x1234_5678_9abc_def1,
            ..Options::default()
        });
        pair.connect();
        pair.link.loss = 100;
        pair.link.late = 100;
        exercise_lossy(pair);
    }
}

fn exercise_lossy(mut pair: Direct) {
    let (ours, theirs) = pair.open("lossy");
    let data = pattern(100_000);
    for chunk in data.chunks(8192) {
        pair.client.write(ours, chunk);
        pair.server.write(theirs, chunk);
    }
    pair.client.engine.close_channel(ours);
    pair.until(Duration::from_secs(120), |pair| {
        pair.server.closed == [theirs]
    });
    assert!(pair.server.received[&theirs] == data);
    pair.until(Duration::from_secs(60), |pair| {
        pair.client.engine.is_idle() && pair.server.engine.is_idle()
    });
}

#[test]
fn the_handshake_survives_loss() {
    for seed in 1..9 {
        let mut pair = Direct::new(Options {
            seed: seed * 0x0fed_cba9_8765_4321,
            ..Options::default()
        });
        pair.link.loss = 100;
        pair.until(Duration::from_secs(60), |pair| {
            pair.client.zero_open && pair.server.zero_open
        });
    }
}

/// A listener is a lite agent, which sends no checks: the timeout above the engine ends its
/// connections.
#[test]
fn a_dialler_notices_that_the_listener_is_gone() {
    let mut pair = Direct::connected(Options::default());
    pair.link.loss = 1000;
    pair.until(Duration::from_secs(60), |pair| pair.client.ended.is_some());
    assert!(matches!(pair.client.ended, Some(EndReason::TimedOut)));
    assert!(pair.server.ended.is_none());
}

#[test]
fn an_idle_connection_stays_for_minutes_and_rests() {
    let mut pair = Direct::connected(Options::default());
    pair.run(Duration::from_secs(300));
    assert!(pair.client.ended.is_none() && pair.server.ended.is_none());
    pair.assert_zero_works();
}

#[test]
fn dtls_from_an_address_that_ice_does_not_know_is_dropped() {
    let mut pair = Direct::new(Options::default());
    let (now, to) = (pair.now, pair.server.address);
    let mut out = TransmitQueue::default();
    let record = [22, 0xfe, 0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0];
    let stranger = "10.9.9.9:9".parse().expect("an address");
    pair.server
        .engine
        .handle_datagram(now, Datagram::new(stranger, to, &record), &mut out);
    pair.server.engine.poll(now, &mut out);
    assert!(out.is_empty() && !pair.server.engine.has_dtls());
    pair.connect();
}

#[test]
fn an_ended_engine_does_nothing() {
    let mut pair = Direct::connected(Options::default());
    let (ours, _) = pair.open("");
    let now = pair.now;
    pair.server.engine.close(now);
    pair.until(Duration::from_secs(1), |pair| pair.client.ended.is_some());
    assert_eq!(pair.client.engine.write(ours, b"late"), Written::Closed);
    assert!(pair.client.engine.open("late").is_err());
    pair.run(Duration::from_secs(10));
}
