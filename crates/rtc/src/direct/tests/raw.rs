//! A byte-level peer: chunks in packets without a checksum (RFC 9653), as no stack would send them.

use anabranch_sctp::CongestionControl;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::super::channels::{Channels, HeldLimits};
use super::super::dcep;
use crate::engine::{ChannelId, Class, Role, Written};

const LIMIT: usize = 8 << 20;
const CONTROL_ROOM: usize = 1 << 20;

const DCEP: u32 = 50;
const BINARY: u32 = 53;
const BINARY_EMPTY: u32 = 57;

/// The channels of a listener, and its byte-level peer.
struct Raw {
    channels: Channels,
    tag: u32,
    tsn: u32,
    request: u32,
    now: Instant,
}

fn chunk(kind: u8, flags: u8, value: &[u8]) -> Vec<u8> {
    let mut out = vec![kind, flags];
    out.extend((value.len() as u16 + 4).to_be_bytes());
    out.extend(value);
    out.resize(out.len().next_multiple_of(4), 0);
    out
}

/// TSN and stream id of each DATA chunk that we sent.
fn sent_data(packets: &[Vec<u8>]) -> Vec<(u32, u16)> {
    let mut data = Vec::new();
    for packet in packets {
        let mut rest = &packet[12..];
        while let [kind, _, high, low, ..] = *rest {
            let length = usize::from(u16::from_be_bytes([high, low]));
            if kind == 0 {
                let tsn = u32::from_be_bytes(rest[4..8].try_into().unwrap());
                data.push((tsn, u16::from_be_bytes([rest[8], rest[9]])));
            }
            rest = &rest[length.next_multiple_of(4).min(rest.len())..];
        }
    }
    data
}

/// Id of the nth channel that the peer opens, on this stream.
fn channel_id(nth: u64, stream: u16) -> ChannelId {
    ChannelId::new(nth << 16 | u64::from(stream))
}

impl Raw {
    fn new() -> Self {
        let sctp = super::super::association(
            [1200; 2],
            8 << 20,
            Duration::from_secs(30),
            CongestionControl::Heed,
            false,
        );
        let limits = HeldLimits {
            data: LIMIT,
            all: LIMIT + CONTROL_ROOM,
        };
        let mut raw = Self {
            channels: Channels::new(sctp, Role::Server, limits),
            tag: 0,
            tsn: 100,
            request: 100,
            now: Instant::now(),
        };
        let mut init = 7_u32.to_be_bytes().to_vec();
        init.extend((1_u32 << 30).to_be_bytes());
        init.extend([0xff, 0xff, 0xff, 0xff]);
        init.extend(100_u32.to_be_bytes());
        init.extend([0x80, 0x01, 0, 8, 0, 0, 0, 1]);
        raw.send(0, &[chunk(1, 0, &init)]);
        let answer = raw.pump().remove(0);
        raw.tag = u32::from_be_bytes(answer[16..20].try_into().unwrap());
        // The cookie is the first parameter.
        let cookie = answer[36..52].to_vec();
        raw.send(raw.tag, &[chunk(10, 0, &cookie)]);
        raw.pump();
        raw.channels.authenticated();
        raw.events();
        raw
    }

    fn send(&mut self, tag: u32, chunks: &[Vec<u8>]) {
        let mut packet = vec![0x13, 0x88, 0x13, 0x88];
        packet.extend(tag.to_be_bytes());
        packet.extend([0; 4]);
        packet.extend(chunks.concat());
        self.channels.sctp.handle_packet(self.now, &packet);
    }

    fn pump(&mut self) -> Vec<Vec<u8>> {
        self.channels.handle_events();
        let sent = self.channels.sctp.poll_transmit(self.now);
        self.channels.handle_events();
        sent.iter()
            .flatten()
            .map(|packet| packet.to_vec())
            .collect()
    }

    fn data(&mut self, stream: u16, sequence: u16, protocol: u32, payload: &[u8]) -> Vec<u8> {
        let mut value = self.tsn.to_be_bytes().to_vec();
        self.tsn += 1;
        value.extend(stream.to_be_bytes());
        value.extend(sequence.to_be_bytes());
        value.extend(protocol.to_be_bytes());
        value.extend(payload);
        chunk(0, 3, &value)
    }

    fn reset(&mut self, stream: u16) -> Vec<u8> {
        let mut value = self.request.to_be_bytes().to_vec();
        self.request += 1;
        value.extend([0; 4]);
        value.extend((self.tsn - 1).to_be_bytes());
        value.extend(stream.to_be_bytes());
        let length = value.len() as u16 + 4;
        let parameter = [&[0, 13][..], &length.to_be_bytes(), &value].concat();
        chunk(130, 0, &parameter)
    }

    /// Acknowledges everything up to a TSN, with an open window.
    fn sack(&mut self, cumulative: u32) {
        let mut value = cumulative.to_be_bytes().to_vec();
        value.extend((1_u32 << 30).to_be_bytes());
        value.extend([0; 4]);
        self.send(self.tag, &[chunk(3, 0, &value)]);
    }

    /// A channel that the peer has opened on this stream.
    fn opened(&mut self, stream: u16) -> ChannelId {
        let open = self.data(stream, 0, DCEP, &dcep::encode_open(""));
        self.send(self.tag, &[open]);
        // OPEN is acknowledged, and that as well.
        let sent = sent_data(&self.pump());
        self.sack(sent.last().expect("ACK").0);
        self.pump();
        self.events();
        channel_id(u64::from(stream) / 2, stream)
    }

    fn events(&mut self) -> Vec<String> {
        let events = std::iter::from_fn(|| self.channels.next_event());
        events.map(|event| format!("{event:?}")).collect()
    }
}

/// OPEN, data and reset, then OPEN and data on the same stream id, all in one datagram.
#[test]
fn a_number_that_is_used_again_is_never_read_as_the_channel_before() {
    for messages in 0..4_u16 {
        let mut raw = Raw::new();
        let mut chunks = Vec::new();
        for label in ["first", "second"] {
            chunks.push(raw.data(2, 0, DCEP, &dcep::encode_open(label)));
            for sequence in 1..=messages {
                chunks.push(raw.data(2, sequence, BINARY, label.as_bytes()));
            }
            chunks.push(raw.reset(2));
        }
        raw.send(raw.tag, &chunks);
        raw.pump();
        let mut events = raw.events();
        for (nth, label) in [(1, "first"), (2, "second")] {
            let opened = format!("label: \"{label}\"");
            assert_eq!(
                events
                    .iter()
                    .filter(|event| event.contains(&opened))
                    .count(),
                1
            );
            for _ in 0..messages {
                let message = raw.channels.read(channel_id(nth, 2)).expect("a message");
                assert_eq!(message, label.as_bytes());
            }
            assert_eq!(
                raw.channels.read(channel_id(nth, 2)),
                None,
                "{messages} of {label}"
            );
            events.extend(raw.events());
        }
        let closed = events.iter().filter(|event| event.contains("Closed"));
        assert_eq!(closed.count(), 2);
    }
}

/// Repeatedly opens a channel, lets us write, acknowledges nothing, and resets.
#[test]
fn what_was_written_to_channels_that_the_peer_has_reset_counts_until_it_is_freed() {
    let mut raw = Raw::new();
    let frame = [&[7; 16 * 1024][..]];
    let mut written = 0;
    let mut refused = false;
    for nth in 1..=400_u16 {
        let stream = 2 * nth;
        let open = raw.data(stream, 0, DCEP, &dcep::encode_open(""));
        raw.send(raw.tag, &[open]);
        raw.pump();
        let channel = channel_id(nth.into(), stream);
        for _ in 0..4 {
            match raw.channels.write(channel, &frame, Class::Data) {
                Written::Taken => written += frame[0].len(),
                Written::Busy => refused = true,
                other => panic!("{other:?}"),
            }
        }
        raw.now += Duration::from_millis(10);
        raw.pump();
        let reset = raw.reset(stream);
        raw.send(raw.tag, &[reset]);
        raw.pump();
        raw.events();
        assert!(raw.channels.sctp.held() <= LIMIT + CONTROL_ROOM);
    }
    // Messages that were not started are dropped with their channel; those in flight are held,
    // which is little.
    assert!(!raw.channels.is_ended());
    assert!(written >= 400 * 4 * 16 * 1024 || refused);
    assert!(
        raw.channels.sctp.held() < 128 * 1024,
        "{}",
        raw.channels.sctp.held()
    );
}

/// The association counts what is held, whatever becomes of the channel that it was written to.
#[test]
fn data_of_a_channel_that_is_gone_is_in_the_sum_and_its_acknowledgement_makes_room() {
    let mut raw = Raw::new();
    let open = raw.data(2, 0, DCEP, &dcep::encode_open(""));
    raw.send(raw.tag, &[open]);
    raw.pump();
    let frame = [&[7; 1000][..]];
    assert_eq!(
        raw.channels.write(channel_id(1, 2), &frame, Class::Data),
        Written::Taken
    );
    let sent = raw.pump();
    let reset = raw.reset(2);
    raw.send(raw.tag, &[reset]);
    raw.pump();
    assert_eq!(raw.channels.len(), 1, "channel 0");
    assert!(raw.channels.unacknowledged() >= 1000);
    raw.events();
    // The TSN of the last DATA that was sent.
    let chunks = sent
        .iter()
        .flat_map(|packet| anabranch_sctp::data_tsns(packet));
    raw.sack(chunks.max().expect("data"));
    raw.pump();
    assert_eq!(
        (raw.channels.unacknowledged(), raw.channels.sctp.held()),
        (0, 0)
    );
    assert!(raw.events().iter().any(|event| event.contains("Writable")));
}

/// webrtc-rs resets its stream up to 200 ms before it acknowledges what it has read.
#[test]
fn a_close_that_overtakes_the_acknowledgement_waits_for_it() {
    let mut raw = Raw::new();
    let channel = raw.opened(2);
    let frame = [&[7; 1000][..]];
    let taken = raw.channels.write(channel, &frame, Class::Data);
    assert_eq!(taken, Written::Taken);
    raw.channels.notify_delivered(channel);
    let last = sent_data(&raw.pump()).last().expect("it is sent").0;
    let reset = raw.reset(2);
    raw.send(raw.tag, &[reset]);
    raw.pump();
    assert_eq!(raw.events(), Vec::<String>::new());
    raw.sack(last);
    raw.pump();
    let events = raw.events().join(" ");
    let delivered = events.find("Delivered").expect("delivered");
    assert!(delivered < events.find("Closed").expect("closed"));
    assert_eq!(raw.channels.len(), 1, "channel 0");
}

/// As above, but its reader has gone meanwhile.
#[test]
fn a_channel_that_is_closed_while_its_acknowledgement_is_awaited_reports_nothing() {
    let mut raw = Raw::new();
    let channel = raw.opened(2);
    let frame = [&[7; 1000][..]];
    raw.channels.write(channel, &frame, Class::Data);
    raw.channels.notify_delivered(channel);
    let last = sent_data(&raw.pump()).last().expect("it is sent").0;
    let reset = raw.reset(2);
    raw.send(raw.tag, &[reset]);
    raw.pump();
    raw.channels.close(channel);
    raw.sack(last);
    raw.pump();
    assert_eq!(raw.events(), ["Writable"]);
}

/// The reset drops what was not sent, which is not delivered by that: neither at once nor when the
/// part that was sent is acknowledged.
#[test]
fn what_a_close_of_the_peer_drops_is_not_reported_as_delivered() {
    for in_flight in [false, true] {
        let mut raw = Raw::new();
        let (other, channel) = (raw.opened(2), raw.opened(4));
        let frame = [&[7; 16 * 1024][..]];
        let mut last = None;
        if in_flight {
            raw.channels.write(channel, &[&[7; 100]], Class::Data);
            last = sent_data(&raw.pump()).last().map(|sent| sent.0);
        }
        // More than the congestion window.
        for _ in 0..20 {
            raw.channels.write(other, &frame, Class::Data);
        }
        raw.pump();
        let taken = raw.channels.write(channel, &[&[7; 100]], Class::Data);
        assert_eq!(taken, Written::Taken);
        raw.channels.notify_delivered(channel);
        let reset = raw.reset(4);
        raw.send(raw.tag, &[reset]);
        raw.pump();
        let mut events = raw.events();
        if let Some(last) = last {
            raw.sack(last);
            raw.pump();
            events.extend(raw.events());
        }
        let events = events.join(" ");
        assert!(!events.contains("Delivered"), "{in_flight}: {events}");
        assert!(events.contains("Closed"), "{in_flight}: {events}");
    }
}

/// A FIN_ACK of ours, written after our FIN, waits for the congestion window when the peer closes.
#[test]
fn what_is_written_after_the_last_data_and_dropped_does_not_undo_its_delivery() {
    let mut raw = Raw::new();
    let (other, channel) = (raw.opened(2), raw.opened(4));
    raw.channels.write(channel, &[&[7; 100]], Class::Data);
    raw.channels.notify_delivered(channel);
    let last = sent_data(&raw.pump()).last().expect("it is sent").0;
    // More than the congestion window.
    for _ in 0..20 {
        raw.channels.write(other, &[&[7; 16 * 1024]], Class::Data);
    }
    raw.pump();
    let taken = raw.channels.write(channel, &[&[7; 3]], Class::Control);
    assert_eq!(taken, Written::Taken);
    let reset = raw.reset(4);
    raw.send(raw.tag, &[reset]);
    raw.pump();
    raw.sack(last);
    raw.pump();
    let events = raw.events().join(" ");
    let delivered = events.find("Delivered").expect("delivered");
    assert!(delivered < events.find("Closed").expect("closed"));
}

/// Messages without payload in one test: their sequence numbers do not wrap.
const EMPTIES: u16 = 20_000;

impl Raw {
    /// A channel with one unread message, followed by that many without payload and one with.
    fn with_empties(&mut self) -> ChannelId {
        let open = self.data(2, 0, DCEP, &dcep::encode_open(""));
        let first = self.data(2, 1, BINARY, b"first");
        self.send(self.tag, &[open, first]);
        self.pump();
        self.send_empties();
        let last = self.data(2, EMPTIES + 2, BINARY, b"last");
        self.send(self.tag, &[last]);
        self.pump();
        self.events();
        channel_id(1, 2)
    }

    /// Stream sequence numbers 2 to `EMPTIES + 1`, on stream 2.
    fn send_empties(&mut self) {
        for from in (2..EMPTIES + 2).step_by(50) {
            let to = (from + 50).min(EMPTIES + 2);
            let chunks: Vec<_> = (from..to)
                .map(|sequence| self.data(2, sequence, BINARY_EMPTY, &[0]))
                .collect();
            self.send(self.tag, &chunks);
            self.pump();
        }
    }

    /// Reads until there is a message; returns it, and the number of reads without one.
    fn read_on(&mut self, channel: ChannelId) -> (Option<Bytes>, usize) {
        for misses in 0.. {
            let message = self.channels.read(channel);
            let is_announced = self.events().iter().any(|e| e.contains("Readable"));
            if message.is_some() || !is_announced {
                return (message, misses);
            }
        }
        unreachable!("a hundred thousand at the most are there");
    }
}

/// Otherwise one read would skip a hundred thousand messages, which no limit counts.
#[test]
fn a_reader_comes_again_for_what_is_behind_many_messages_without_payload() {
    let least = usize::from(EMPTIES) / 20;
    let mut raw = Raw::new();
    let channel = raw.with_empties();
    assert_eq!(raw.read_on(channel), (Some("first".into()), 0));
    let (last, misses) = raw.read_on(channel);
    assert_eq!(last, Some("last".into()));
    assert!(misses >= least, "{misses} looks for {EMPTIES} messages");
    assert_eq!(raw.read_on(channel), (None, 0));
    let reset = raw.reset(2);
    raw.send(raw.tag, &[reset]);
    raw.pump();
    assert!(raw.events().iter().any(|event| event.contains("Closed")));
}

#[test]
fn a_channel_that_nobody_reads_any_more_is_emptied_a_few_messages_at_a_time() {
    let least = usize::from(EMPTIES) / 20;
    let mut raw = Raw::new();
    let channel = raw.with_empties();
    raw.channels.ignore(channel);
    assert!(raw.events().iter().any(|event| event.contains("Readable")));
    let (message, misses) = raw.read_on(channel);
    assert_eq!(message, None);
    assert!(misses >= least, "{misses} looks for {EMPTIES} messages");
    // What arrives later is dropped at once.
    let late = raw.data(2, EMPTIES + 3, BINARY, b"late");
    raw.send(raw.tag, &[late]);
    raw.pump();
    assert!(raw.events().is_empty());
    assert_eq!(raw.read_on(channel), (None, 0));
}

#[test]
fn a_datagram_that_completes_thousands_of_messages_is_read_a_few_at_a_time() {
    let least = usize::from(EMPTIES) / 20;
    let mut raw = Raw::new();
    let open = raw.data(2, 0, DCEP, &dcep::encode_open(""));
    raw.send(raw.tag, &[open]);
    raw.send_empties();
    raw.events();
    let missing = raw.data(2, 1, BINARY_EMPTY, &[0]);
    raw.send(raw.tag, &[missing]);
    raw.pump();
    let announced = raw.events();
    assert_eq!(announced.len(), 1, "{announced:?}");
    let (message, misses) = raw.read_on(channel_id(1, 2));
    assert_eq!(message, None);
    assert!(misses >= least, "{misses} looks for {EMPTIES} messages");
}

/// The peer resets a stream of which it has acknowledged nothing, while a write on another stream
/// is refused. The writer is woken in the same round, and sends in the round trip after the first
/// acknowledgement: no timeout.
#[test]
fn a_reset_of_unacknowledged_data_lets_the_other_stream_send_within_a_round_trip() {
    let mut raw = Raw::new();
    for stream in [2, 4] {
        let open = raw.data(stream, 0, DCEP, &dcep::encode_open(""));
        raw.send(raw.tag, &[open]);
    }
    raw.pump();
    let (pour, other) = (channel_id(1, 2), channel_id(2, 4));
    let frame = [&[7; 16 * 1024][..]];
    while raw.channels.write(pour, &frame, Class::Data) == Written::Taken {}
    assert_eq!(
        raw.channels.write(other, &frame, Class::Data),
        Written::Busy
    );
    let under_way = sent_data(&raw.pump());
    assert!(under_way.iter().any(|(_, stream)| *stream == 2));
    raw.events();
    // Nothing is acknowledged, and no timeout has expired.
    raw.now += Duration::from_millis(50);
    let reset = raw.reset(2);
    raw.send(raw.tag, &[reset]);
    let mut sent = sent_data(&raw.pump());
    let events = raw.events();
    assert!(
        events.iter().any(|event| event.contains("Writable")),
        "{events:?}"
    );
    assert_eq!(
        raw.channels.write(other, &frame, Class::Data),
        Written::Taken
    );
    sent.extend(sent_data(&raw.pump()));
    // The response of the peer, a round trip later.
    raw.now += Duration::from_millis(50);
    let last = under_way.iter().chain(&sent).map(|(tsn, _)| *tsn).max();
    raw.sack(last.expect("data"));
    // Paced over the next round trip.
    for _ in 0..50 {
        sent.extend(sent_data(&raw.pump()));
        raw.now += Duration::from_millis(1);
    }
    assert!(
        sent.iter().any(|(_, stream)| *stream == 4),
        "{} chunks",
        sent.len()
    );
}
