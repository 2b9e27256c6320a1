//! Channels: opening, closing, stream ids, windows.

use std::time::Duration;

use bytes::Bytes;

use anabranch_rtc::{Class, Engine, OpenError, Written};
use anabranch_sctp::Ppid;

use super::harness::Options;
use super::{Direct, pattern};

const SOON: Duration = Duration::from_secs(20);

#[track_caller]
fn until_idle(pair: &mut Direct) {
    pair.until(SOON, |pair| {
        pair.client.engine.is_idle() && pair.server.engine.is_idle()
    });
}

#[test]
fn data_follows_open_without_a_round_trip() {
    let mut pair = Direct::connected(Options::default());
    let began = pair.now;
    let ours = pair.client.engine.open("fast").expect("a channel");
    pair.client.write(ours, b"at once");
    pair.until(SOON, |pair| !pair.server.received.is_empty());
    assert!(
        pair.now - began < Duration::from_millis(7),
        "{:?}",
        pair.now - began
    );
}

#[test]
fn many_channels_both_ways() {
    let mut pair = Direct::connected(Options::default());
    for index in 0..500_usize {
        let ours = pair
            .client
            .engine
            .open(&format!("c{index}"))
            .expect("a channel");
        pair.client.write(ours, &pattern(index + 1));
        let theirs = pair
            .server
            .engine
            .open(&format!("s{index}"))
            .expect("a channel");
        pair.server.write(theirs, &pattern(index + 1));
    }
    pair.until(SOON, |pair| {
        pair.client.received.len() == 500 && pair.server.received.len() == 500
    });
    pair.run(Duration::from_secs(1));
    for side in [&pair.client.opened, &pair.server.opened] {
        assert_eq!(side.len(), 500);
    }
    for (channel, label) in &pair.server.opened {
        let index: usize = label[1..].parse().expect("a number");
        assert_eq!(pair.server.received[channel], pattern(index + 1));
    }
    // The opener closes.
    for (channel, _) in pair.server.opened.clone() {
        pair.server.engine.ignore_channel(channel);
    }
    let own: Vec<_> = pair
        .client
        .opened
        .iter()
        .map(|(channel, _)| *channel)
        .collect();
    for channel in own {
        pair.client.engine.close_channel(channel);
    }
    pair.until(SOON, |pair| pair.server.closed.len() == 500);
}

#[test]
fn numbers_are_used_again_when_both_sides_have_reset() {
    let mut pair = Direct::new(Options::default());
    let sctp = pair.server.engine.association();
    sctp.set_inbound_streams(128);
    pair.connect();
    let mut numbers = std::collections::HashSet::new();
    for round in 0..1000_usize {
        let (ours, theirs) = pair.open("again");
        numbers.insert(ours.get() & 0xffff);
        pair.client.write(ours, &pattern(round + 1));
        pair.client.engine.close_channel(ours);
        pair.until(SOON, |pair| {
            pair.server.closed.last() == Some(&theirs) && pair.client.closed.last() == Some(&ours)
        });
        assert_eq!(
            pair.server.received.remove(&theirs),
            Some(pattern(round + 1))
        );
    }
    until_idle(&mut pair);
    // Towards a peer that accepts this many streams; one that accepts all would see each id once.
    assert!(numbers.len() <= 64, "{}", numbers.len());
    assert!(!numbers.contains(&0) && numbers.iter().all(|number| *number < 128));
}

#[test]
fn both_close_at_once() {
    let mut pair = Direct::connected(Options::default());
    for _ in 0..100 {
        let (ours, theirs) = pair.open("both");
        pair.client.write(ours, b"last words");
        pair.client.engine.close_channel(ours);
        pair.server.engine.close_channel(theirs);
        pair.until(SOON, |pair| {
            pair.server.closed.last() == Some(&theirs) && pair.client.closed.last() == Some(&ours)
        });
    }
    until_idle(&mut pair);
}

#[test]
fn the_acceptor_closes() {
    let mut pair = Direct::connected(Options::default());
    let (ours, theirs) = pair.open("");
    pair.server.write(theirs, b"and out");
    pair.server.engine.close_channel(theirs);
    assert_eq!(
        pair.server.engine.write(theirs, b"too late"),
        Written::Closed
    );
    pair.until(SOON, |pair| {
        pair.client.closed == [ours] && pair.server.closed == [theirs]
    });
    assert_eq!(pair.client.received[&ours], b"and out");
    assert_eq!(pair.client.engine.write(ours, b"too late"), Written::Closed);
    until_idle(&mut pair);
}

#[test]
fn what_was_received_before_a_reset_is_read_first() {
    let mut pair = Direct::connected(Options::default());
    let (ours, theirs) = pair.open("");
    pair.server.not_read.insert(theirs);
    for _ in 0..10 {
        pair.client.write(ours, &pattern(5000));
    }
    pair.client.engine.close_channel(ours);
    pair.run(Duration::from_secs(5));
    assert_eq!(pair.server.closed, []);
    for _ in 0..10 {
        assert_eq!(
            pair.server.read_one(theirs).expect("a message"),
            pattern(5000)
        );
    }
    assert_eq!(pair.server.read_one(theirs), None);
    pair.until(SOON, |pair| {
        pair.server.closed == [theirs] && pair.client.closed == [ours]
    });
    until_idle(&mut pair);
}

#[test]
fn an_ignored_channel_takes_no_room() {
    let mut pair = Direct::connected(Options {
        receive_buffer: 256 * 1024,
        ..Options::default()
    });
    let (ours, theirs) = pair.open("");
    pair.server.engine.ignore_channel(theirs);
    for _ in 0..100 {
        pair.client.write(ours, &pattern(16_384));
    }
    pair.until(SOON, |pair| pair.client.engine.unacknowledged() == 0);
    assert!(!pair.server.received.contains_key(&theirs));
    pair.client.engine.close_channel(ours);
    until_idle(&mut pair);
}

#[test]
fn an_unread_channel_does_not_stop_the_others() {
    let mut pair = Direct::connected(Options::default());
    let (lazy, unread) = pair.open("unread");
    pair.server.not_read.insert(unread);
    for _ in 0..64 {
        pair.client.write(lazy, &pattern(16_384));
    }
    let (busy, read) = pair.open("read");
    for _ in 0..200 {
        pair.client.write(busy, &pattern(16_384));
    }
    pair.until(SOON, |pair| {
        pair.server.received.get(&read).map_or(0, Vec::len) == 200 * 16_384
    });
    assert!(!pair.server.received.contains_key(&unread));
    assert_eq!(pair.server.read(unread), 64 * 16_384);
}

#[test]
fn a_reader_that_was_slow_gets_the_rest_at_once() {
    let mut pair = Direct::connected(Options {
        receive_buffer: 256 * 1024,
        ..Options::default()
    });
    let (ours, theirs) = pair.open("slow");
    pair.server.not_read.insert(theirs);
    for _ in 0..128 {
        pair.client.write(ours, &pattern(8192));
    }
    // The window stays closed for long, and the sender's probes are 3 s apart.
    pair.run(Duration::from_secs(60));
    let began = pair.now;
    let mut got = 0;
    pair.until(SOON, |pair| {
        got += pair.server.read(theirs);
        got == 128 * 8192
    });
    assert!(
        pair.now - began < Duration::from_millis(3500),
        "{:?}",
        pair.now - began
    );
}

#[test]
fn writes_are_refused_when_too_much_is_below() {
    let mut pair = Direct::connected(Options::default());
    let (ours, _) = pair.open("");
    let (other, _) = pair.open("");
    let mut taken = 0;
    // One channel leaves a part of the peer's window to others.
    while pair.client.engine.write(ours, &pattern(16_384)) == Written::Taken {
        taken += 16_384;
    }
    assert!((3 << 20..4 << 20).contains(&taken), "{taken}");
    let refused = pair.client.engine.write(ours, &pattern(16_384));
    assert_eq!(refused, Written::NotOpen, "this one alone");
    let refused = loop {
        match pair.client.engine.write(other, &pattern(16_384)) {
            Written::Taken => taken += 16_384,
            refused => break refused,
        }
    };
    assert!((4 << 20..=6 << 20).contains(&taken), "{taken}");
    assert!(matches!(refused, Written::Busy | Written::NotOpen));
    let fin = [&b"fin"[..]];
    assert_eq!(
        pair.client
            .engine
            .write_vectored(ours, &fin, Class::Control),
        Written::Taken,
        "control frames have room of their own"
    );
    pair.until(Duration::from_secs(60), |pair| {
        pair.client.engine.unacknowledged() == 0
    });
    assert_eq!(
        pair.client.engine.write(ours, &pattern(16_384)),
        Written::Taken
    );
}

#[test]
fn empty_messages_stop_nothing() {
    let mut pair = Direct::connected(Options::default());
    let (ours, theirs) = pair.open("");
    pair.client.write(ours, b"");
    let number = (ours.get() & 0xffff) as u16;
    // As browsers send them (RFC 8831 section 6.6).
    assert!(pair.client.engine.association().write(
        number,
        Bytes::from_static(&[0]),
        Ppid::BinaryEmpty
    ));
    assert!(pair.client.engine.association().write(
        number,
        Bytes::from_static(&[0]),
        Ppid::StringEmpty
    ));
    assert!(pair.client.engine.association().write(
        number,
        Bytes::from_static(b"text "),
        Ppid::String
    ));
    pair.client.write(ours, b"bytes");
    pair.until(SOON, |pair| {
        pair.server
            .received
            .get(&theirs)
            .is_some_and(|bytes| bytes == b"text bytes")
    });
}

#[test]
fn labels_have_a_limit() {
    let mut pair = Direct::connected(Options::default());
    let error = pair
        .client
        .engine
        .open(&"x".repeat(1025))
        .expect_err("too long");
    assert_eq!(
        error,
        OpenError::LabelTooLong {
            len: 1025,
            max: 1024
        }
    );
    let (_, _) = pair.open(&"x".repeat(1024));
    assert_eq!(pair.server.opened[0].1.len(), 1024);
}

#[test]
fn an_unread_channel_does_not_keep_the_window_shut() {
    let mut pair = Direct::connected(Options {
        receive_buffer: 256 * 1024,
        ..Options::default()
    });
    let (lazy, unread) = pair.open("unread");
    assert!(pair.server.engine.holds_back_unread());
    pair.server.not_read.insert(unread);
    for _ in 0..64 {
        pair.client.write(lazy, &pattern(16_384));
    }
    pair.run(Duration::from_secs(5));
    let busy = pair.client.engine.open("read").expect("a channel");
    pair.client.write(busy, &pattern(16_384));
    // As the driver does without backpressure of the engine: it reads, and has its own limits.
    pair.until(SOON, |pair| {
        if !pair.server.engine.holds_back_unread() {
            pair.server.read(unread);
        }
        pair.server
            .received
            .values()
            .any(|bytes| bytes.len() == 16_384)
    });
}

#[test]
fn an_unread_channel_may_keep_the_window_shut_where_that_is_asked_for() {
    let mut pair = Direct::connected(Options {
        receive_buffer: 256 * 1024,
        ..Options::default()
    });
    pair.server.engine.allow_shut_window();
    let (lazy, unread) = pair.open("unread");
    pair.server.not_read.insert(unread);
    for _ in 0..64 {
        pair.client.write(lazy, &pattern(16_384));
    }
    pair.run(Duration::from_secs(60));
    assert!(pair.server.engine.holds_back_unread());
    assert!(pair.client.engine.unacknowledged() > 256 * 1024);
    let mut got = 0;
    pair.until(SOON, |pair| {
        got += pair.server.read(unread);
        got == 64 * 16_384
    });
}
