//! Peers that violate the rules. Random violations are in `crates/testkit/src/fuzzing`.

use std::time::Duration;

use bytes::Bytes;

use anabranch_sctp::Ppid;

use anabranch_rtc::{
    CHANNEL_ZERO, Datagram, EndReason, Engine, LimitExceeded, MAX_EARLY_CHANNELS, TransmitQueue,
    encode_open,
};
use anabranch_sctp::Association;

use super::Direct;
use super::harness::Options;

const SOON: Duration = Duration::from_secs(20);

/// The client's SCTP without the rules of channels.
fn raw(pair: &mut Direct) -> &mut Association {
    pair.client.engine.association()
}

#[test]
fn channels_that_do_not_fit_are_reset() {
    let mut pair = Direct::connected(Options::default());
    let mut unordered = encode_open("u");
    unordered[1] = 0x80;
    let mut unreliable = encode_open("r");
    unreliable[1] = 0x01;
    let long = encode_open(&"x".repeat(2000));
    let foreign: &[&[u8]] = &[&unordered, &unreliable, &long, &[9], &[3, 0]];
    for (index, open) in foreign.iter().enumerate() {
        let number = 100 + 2 * u16::try_from(index).expect("few");
        assert!(raw(&mut pair).open_stream(number));
        assert!(raw(&mut pair).write(number, Bytes::copy_from_slice(open), Ppid::Dcep));
    }
    // Data without OPEN, and a stream id that the server owns.
    for (number, ppid) in [(200, Ppid::Binary), (201, Ppid::Dcep)] {
        assert!(raw(&mut pair).open_stream(number));
        assert!(raw(&mut pair).write(number, encode_open("").into(), ppid));
    }
    pair.run(Duration::from_secs(2));
    assert_eq!(pair.server.opened, []);
    assert!(pair.server.engine.is_idle());
    pair.assert_zero_works();
}

/// Found by seed 762 of the random attackers (`tests/strangers/attack`): one copied a dial, got the
/// responses, and after four of them DTLS sent no more.
#[test]
fn copies_of_a_client_hello_do_not_use_up_the_answers_to_it() {
    let mut pair = Direct::new(Options::default());
    let mut hello = None;
    pair.until(SOON, |pair| {
        hello = pair.on_its_way(22);
        hello.is_some()
    });
    let hello = hello.expect("a handshake record");
    // It is sent beside the first check. Once both have arrived, the server answers.
    pair.run(pair.link.delay + Duration::from_millis(1));
    let (now, from, to) = (pair.now, pair.client.address, pair.server.address);
    // Responses to the copies reach nobody.
    let mut lost = TransmitQueue::default();
    for copy in 0..100 {
        let server = &mut pair.server.engine;
        server.handle_datagram(now, Datagram::new(from, to, &hello), &mut lost);
        server.poll(now, &mut lost);
        assert!(!lost.is_empty(), "copy {copy} is answered");
        while let Some(run) = lost.front(1) {
            assert!(run.contents.len() <= 1200);
            lost.pop(1);
        }
    }
    pair.connect();
    pair.assert_zero_works();
}

#[test]
fn channels_are_few_before_the_peer_is_known() {
    let mut pair = Direct::new(Options::default());
    pair.until(SOON, |pair| pair.client.zero_open && pair.server.zero_open);
    for _ in 0..40 {
        pair.client.engine.open("early").expect("a channel");
    }
    pair.run(Duration::from_secs(2));
    assert_eq!(MAX_EARLY_CHANNELS, 16);
    assert!((1..=16).contains(&pair.server.opened.len()));
    assert!(pair.server.ended.is_none());
}

#[test]
fn bytes_are_few_before_the_peer_is_known() {
    let mut pair = Direct::new(Options::default());
    pair.until(SOON, |pair| pair.client.zero_open && pair.server.zero_open);
    // One message at a time, which arrives before the next is written.
    let mut sent = 0;
    while pair.server.ended.is_none() && sent < 4 << 20 {
        pair.client.write(CHANNEL_ZERO, &[0; 16_384]);
        sent += 16_384;
        pair.run(Duration::from_millis(200));
    }
    assert!((128 << 10..=560 << 10).contains(&sent), "{sent}");
    assert!(matches!(
        pair.server.ended,
        Some(EndReason::Limit(LimitExceeded::EarlyData))
    ));
}

/// A writer that flushes each byte, and a slow reader: nothing ends, and nothing is lost.
#[test]
fn a_channel_with_many_tiny_unread_messages_is_held_back_and_loses_none() {
    let mut pair = Direct::connected(Options {
        receive_buffer: 1 << 20,
        ..Options::default()
    });
    let (ours, theirs) = pair.open("crumbs");
    pair.server.not_read.insert(theirs);
    const MESSAGES: usize = 40_000;
    for _ in 0..MESSAGES {
        pair.client.write(ours, b"x");
    }
    pair.run(Duration::from_secs(30));
    assert!(pair.client.engine.unacknowledged() > 0, "held back");
    let mut read = 0;
    pair.until(SOON, |pair| {
        read += pair.server.read(theirs);
        read == MESSAGES
    });
    assert_eq!(
        (&pair.server.closed, &pair.client.closed),
        (&vec![], &vec![])
    );
    pair.assert_zero_works();
}
