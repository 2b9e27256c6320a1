//! Peers that break the rules.

use std::time::{Duration, Instant};

use bytes::Bytes;
use sctp_proto::PayloadProtocolIdentifier as Protocol;

use super::super::channels::Channels;
use super::super::dcep::encode_open;
use super::super::sctp::Sctp;
use super::super::{MAX_EARLY_CHANNELS, MAX_REFUSED, MAX_UNREAD_MESSAGES_OF_ONE};
use super::Direct;
use super::harness::Options;
use crate::connection::ConnectionError;
use crate::webrtc::engine::{CHANNEL_ZERO, Engine, Role};

const SOON: Duration = Duration::from_secs(20);

/// The client's SCTP without its rules.
fn raw(pair: &mut Direct) -> &mut Sctp {
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
        assert!(raw(&mut pair).write(number, open, Protocol::Dcep));
    }
    // Data without OPEN, and a number that is the server's.
    for (number, protocol) in [(200, Protocol::Binary), (201, Protocol::Dcep)] {
        assert!(raw(&mut pair).open_stream(number));
        assert!(raw(&mut pair).write(number, &encode_open(""), protocol));
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
    let mut channels = Channels::new(Sctp::new(1200, 1 << 20), Role::Server, 1 << 20);
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

/// SCTP packets as one side sent them, changed, with a checksum that is right.
struct Fuzzer(u64);

impl Fuzzer {
    fn next(&mut self, below: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 as usize) % below.max(1)
    }

    fn mutate(&mut self, packet: &[u8]) -> Bytes {
        let mut bytes = packet.to_vec();
        for _ in 0..=self.next(4) {
            let at = 12 + self.next(bytes.len().saturating_sub(12).min(48));
            let random = self.next(256) as u8;
            let choice = self.next(4);
            if let Some(byte) = bytes.get_mut(at) {
                *byte = match choice {
                    0 => 0,
                    1 => 0xff,
                    2 => *byte ^ (1 << (random % 8)),
                    _ => random,
                };
            }
        }
        if self.next(8) == 0 {
            let length = 12 + self.next(bytes.len().saturating_sub(12));
            bytes.truncate(length);
        }
        if self.next(6) == 0
            && let Some(kind) = bytes.get_mut(12)
        {
            const KINDS: [u8; 15] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 14, 130, 192];
            *kind = KINDS[self.next(KINDS.len())];
        }
        if bytes.len() >= 12 {
            bytes[8..12].fill(0);
            let crc = crc::Crc::<u32>::new(&crc::CRC_32_ISCSI).checksum(&bytes);
            bytes[8..12].copy_from_slice(&crc.to_le_bytes());
        }
        bytes.into()
    }
}

/// Two SCTP sides without ICE and DTLS, where packets to the server are changed from some time on.
#[test]
fn changed_packets_never_panic_nor_spin() {
    let mut fuzzer = Fuzzer(0x2545_f491_4f6c_dd1d);
    let mut slowest = Duration::ZERO;
    for _ in 0..2000 {
        let mut now = Instant::now();
        let mut sides = [Role::Client, Role::Server].map(|role| {
            let mut channels = Channels::new(Sctp::new(1200, 1 << 20), role, 1 << 20);
            channels.sctp.start(role).expect("SCTP starts");
            channels.authenticated();
            channels
        });
        let honest = fuzzer.next(24);
        let mut packets = 0;
        for round in 0..14 {
            for side in &mut sides {
                if let Ok(channel) = side.open("fuzz") {
                    side.write(channel, &[7; 3000]);
                    if round % 3 == 0 {
                        side.close(channel);
                    }
                }
            }
            for from in [0, 1] {
                let mut wire = Vec::new();
                while let Some(sent) = sides[from].sctp.poll_transmit(now) {
                    wire.extend(sent);
                }
                let to = &mut sides[1 - from];
                for packet in wire {
                    packets += 1;
                    let began = Instant::now();
                    to.sctp.handle_packet(now, packet.clone());
                    if packets > honest {
                        for _ in 0..3 {
                            to.sctp.handle_packet(now, fuzzer.mutate(&packet));
                        }
                    }
                    to.handle_events();
                    slowest = slowest.max(began.elapsed());
                }
                while let Some(event) = to.next_event() {
                    if let crate::webrtc::engine::EngineEvent::Carrier(
                        crate::carrier::CarrierEvent::Readable { channel },
                    ) = event
                    {
                        while to.read(channel).is_some() {}
                    }
                }
                to.count_unacknowledged();
            }
            now += Duration::from_millis(if round % 3 == 2 { 1200 } else { 5 });
            for side in &mut sides {
                side.sctp.handle_timeout(now);
            }
        }
    }
    assert!(slowest < Duration::from_secs(1), "{slowest:?}");
}
