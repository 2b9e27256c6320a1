//! Peers that break the rules. Those that break any of them at random are in `src/fuzzing`.

use std::time::Duration;

use bytes::Bytes;

use crate::sctp::Protocol;

use super::super::channels::Channels;
use super::super::dcep::encode_open;
use super::super::{MAX_EARLY_CHANNELS, MAX_REFUSED, MAX_UNREAD_MESSAGES_OF_ONE};
use super::Direct;
use super::harness::Options;
use crate::connection::ConnectionError;
use crate::sctp::Association;
use crate::webrtc::engine::{CHANNEL_ZERO, Engine, Role};

const SOON: Duration = Duration::from_secs(20);

/// The client's SCTP without its rules.
fn raw(pair: &mut Direct) -> &mut Association {
    &mut pair.client.engine.channels.sctp
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
        assert!(raw(&mut pair).write(number, Bytes::copy_from_slice(open), Protocol::Dcep));
    }
    // Data without OPEN, and a number that is the server's.
    for (number, protocol) in [(200, Protocol::Binary), (201, Protocol::Dcep)] {
        assert!(raw(&mut pair).open_stream(number));
        assert!(raw(&mut pair).write(number, encode_open("").into(), protocol));
    }
    pair.run(Duration::from_secs(2));
    assert_eq!(pair.server.opened, []);
    assert!(pair.server.engine.channels.is_idle());
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
    assert!(pair.server.opened.len() <= MAX_EARLY_CHANNELS);
    assert!(pair.server.ended.is_none());
}

#[test]
fn bytes_are_few_before_the_peer_is_known() {
    let mut pair = Direct::new(Options::default());
    pair.until(SOON, |pair| pair.client.zero_open && pair.server.zero_open);
    for _ in 0..64 {
        pair.client.write(CHANNEL_ZERO, &[0; 16_384]);
    }
    pair.until(SOON, |pair| pair.server.ended.is_some());
    assert!(matches!(
        pair.server.ended,
        Some(ConnectionError::Carrier(_))
    ));
}

#[test]
fn a_peer_that_does_not_close_refused_channels_is_cut_off() {
    let mut channels = Channels::new(
        super::super::association(1200, 1 << 20),
        Role::Server,
        1 << 20,
    );
    channels.authenticated();
    for number in 0..=u16::try_from(MAX_REFUSED).expect("fits") {
        // All of them ours: an odd number each.
        channels.on_stream(number * 2 + 1);
    }
    assert!(channels.is_ended());
}

#[test]
fn a_channel_with_too_many_unread_messages_ends_alone() {
    let mut pair = Direct::connected(Options::default());
    let (ours, theirs) = pair.open("crumbs");
    pair.server.not_read.insert(theirs);
    for _ in 0..=MAX_UNREAD_MESSAGES_OF_ONE + 1 {
        pair.client.write(ours, b"x");
    }
    pair.until(SOON, |pair| {
        pair.server.closed == [theirs] && pair.client.closed == [ours]
    });
    pair.assert_zero_works();
    pair.run(Duration::from_secs(2));
    assert!(pair.server.engine.channels.is_idle());
}
