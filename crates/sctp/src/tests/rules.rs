//! Protocol rules: what a peer may send, and what is reported to it.

use super::*;

#[test]
fn answers_are_few_whatever_is_asked() {
    let mut pair = Pair::connected(1, CLEAN);
    let association = &mut pair.sides[0].association;
    let header = ([PORT, PORT], association.own.tag);
    for _ in 0..100 {
        let mut packets = Packets::new(1160, header, false, BytesMut::new());
        for _ in 0..100 {
            packets.put(kind::HEARTBEAT, 0, &[0, 1, 0, 8, 1, 2, 3, 4]);
        }
        for packet in packets.finish().0 {
            association.handle_packet(pair.now, &packet);
        }
    }
    assert_eq!(association.replies.len(), MAX_REPLIES);
    let replies = association.poll_transmit(pair.now).expect("answers");
    assert_eq!(replies.len(), 1);
    pair.run(Duration::from_secs(1));
    pair.assert_idle();
}

#[test]
fn a_peer_that_acknowledges_what_was_not_sent_is_left() {
    let mut pair = Pair::connected(1, CLEAN);
    pair.sides[0].association.open_stream(1);
    pair.write(0, 1, pattern(5000, 0));
    pair.step();
    let mut value = Vec::new();
    value.put_u32(pair.sides[0].association.own.first_tsn.wrapping_add(1000));
    value.put_u32(1 << 20);
    value.put_u32(0);
    let tag = pair.sides[0].association.own.tag;
    let mut packets = Packets::new(1160, ([PORT, PORT], tag), false, BytesMut::new());
    packets.put(kind::SACK, 0, &value);
    let now = pair.now;
    for packet in packets.finish().0 {
        pair.sides[0].association.handle_packet(now, &packet);
    }
    pair.sides[0].take_events();
    assert_eq!(
        pair.sides[0].end_reason(),
        Some(EndReason::Violation(Violation::AcknowledgedUnsent))
    );
    // The peer receives the ABORT.
    pair.until("the end", |pair| {
        pair.sides[1].end_reason() == Some(EndReason::Aborted)
    });
}

#[test]
fn data_in_front_of_the_handshake_arms_no_timer() {
    let mut server = Association::new(CONFIG);
    let peer = Init {
        tag: 7,
        a_rwnd: 1 << 20,
        first_tsn: 100,
        inbound_streams: u16::MAX,
        zero_checksum: true,
        forward_tsn: true,
        prunes: false,
        ecn: false,
        without_cookie: false,
        segments: false,
    };
    let now = Instant::now();
    let mut packets = Packets::new(1160, ([PORT, PORT], 0), false, BytesMut::new());
    packets.put(kind::INIT, 0, &peer.encode(None));
    let init = packets.finish().0.remove(0);
    server.handle_packet(now, &init);
    let header = ([PORT, PORT], server.own.tag);
    let mut packets = Packets::new(1160, header, false, BytesMut::new());
    packets.put_data(data(100, 0, WHOLE), b"early");
    let early = packets.finish().0.remove(0);
    server.handle_packet(now, &early);
    assert!(server.poll_transmit(now).is_some(), "an INIT-ACK");
    assert_eq!(server.next_timeout(), None);
    assert_eq!(server.next_event(), None);
}

/// pion before 1.8.11, which go-libp2p used before v0.34, rejects an INIT-ACK with an unknown
/// parameter.
#[test]
fn an_init_ack_offers_zero_checksums_only_to_who_knows_them() {
    for zero_checksum in [false, true] {
        let mut server = Association::new(CONFIG);
        let peer = Init {
            tag: 7,
            a_rwnd: 1 << 20,
            first_tsn: 100,
            inbound_streams: u16::MAX,
            zero_checksum,
            forward_tsn: false,
            prunes: false,
            ecn: false,
            without_cookie: false,
            segments: false,
        };
        let now = Instant::now();
        let mut packets = Packets::new(1160, ([PORT, PORT], 0), false, BytesMut::new());
        packets.put(kind::INIT, 0, &peer.encode(None));
        server.handle_packet(now, &packets.finish().0.remove(0));
        let answer = server.poll_transmit(now).expect("an answer").remove(0);
        let (_, mut chunks) = parse(&answer).expect("valid");
        let chunk = chunks.next().expect("a chunk");
        assert_eq!(chunk.kind, kind::INIT_ACK);
        let (own, _) = Init::parse(chunk.value).expect("valid");
        assert_eq!(own.zero_checksum, zero_checksum);
    }
}

/// Delivers chunks to a side, bundled in one packet of its peer.
fn hand(pair: &mut Pair, side: usize, chunks: &[(u8, &[u8])]) {
    let header = ([PORT, PORT], pair.sides[side].association.own.tag);
    let mut packets = Packets::new(1160, header, false, BytesMut::new());
    for (kind, value) in chunks {
        let flags = if *kind == kind::DATA { WHOLE } else { 0 };
        packets.put(*kind, flags, value);
    }
    let now = pair.now;
    for packet in packets.finish().0 {
        pair.sides[side].association.handle_packet(now, &packet);
    }
}

/// Types and values of the chunks that a side sends now.
fn sent(pair: &mut Pair, side: usize) -> Vec<(u8, Vec<u8>)> {
    let packets = pair.sides[side].association.poll_transmit(pair.now);
    let packets = packets.unwrap_or_default();
    let chunks = packets.iter().flat_map(|packet| parse(packet).unwrap().1);
    chunks
        .map(|chunk| (chunk.kind, chunk.value.to_vec()))
        .collect()
}

const HEARTBEAT: (u8, &[u8]) = (kind::HEARTBEAT, &[0, 1, 0, 8, 1, 2, 3, 4]);

/// RFC 9260 section 3.2: the first bit says whether to process the rest of the packet, the second
/// whether to report the chunk.
#[test]
fn what_is_not_recognized_says_what_becomes_of_it() {
    let rounds = [
        (0x0f, false, false),
        (0x10, false, false),
        (0x3f, false, false),
        (0x40, false, true),
        (0x7f, false, true),
        (0x80, true, false),
        (0xbf, true, false),
        (0xc1, true, true),
        (0xff, true, true),
        // Known, but ignored.
        (9, true, false),
        (12, true, false),
        (13, true, false),
    ];
    for (unknown, goes_on, tells) in rounds {
        let mut pair = Pair::connected(1, CLEAN);
        hand(&mut pair, 0, &[(unknown, b"what"), HEARTBEAT]);
        let replies = sent(&mut pair, 0);
        let has = |kind| replies.iter().any(|(sent, _)| *sent == kind);
        assert_eq!(has(kind::HEARTBEAT_ACK), goes_on, "{unknown:#x}");
        let errors = replies.iter().filter(|(sent, _)| *sent == kind::ERROR);
        let errors: Vec<_> = errors.map(|(_, value)| value.clone()).collect();
        // Cause 6 with the chunk.
        let expected = [0, 6, 0, 12, unknown, 0, 0, 8, b'w', b'h', b'a', b't'];
        let expected: &[Vec<u8>] = if tells { &[expected.to_vec()] } else { &[] };
        assert_eq!(errors, expected, "{unknown:#x}");
        assert_eq!(pair.sides[0].end_reason(), None);
    }
}

#[test]
fn reports_of_what_is_not_recognized_are_few_and_short() {
    let mut pair = Pair::connected(1, CLEAN);
    let long = [7; 1000];
    for _ in 0..1000 {
        hand(&mut pair, 0, &[(0xff, &long)]);
    }
    let replies = sent(&mut pair, 0);
    assert_eq!(replies.len(), MAX_REPLIES);
    assert!(replies.iter().all(|(_, value)| value.len() <= 4 + 4 + 64));
}

/// RFC 9260 section 6.2.
#[test]
fn data_without_user_data_ends_the_association_and_the_peer_is_told_which() {
    let mut pair = Pair::connected(1, CLEAN);
    let tsn = pair.sides[1].association.own.first_tsn.to_be_bytes();
    let mut value = tsn.to_vec();
    value.extend([0, 1, 0, 0, 0, 0, 0, 53]);
    hand(&mut pair, 0, &[(kind::DATA, &value), HEARTBEAT]);
    let mut expected = vec![0, 9, 0, 8];
    expected.extend(tsn);
    assert_eq!(sent(&mut pair, 0), [(kind::ABORT, expected)]);
    pair.sides[0].take_events();
    assert_eq!(
        pair.sides[0].end_reason(),
        Some(EndReason::Violation(Violation::EmptyData))
    );
}

/// RFC 9260 section 6.5: acknowledged, reported and dropped.
#[test]
fn data_on_a_stream_beyond_those_that_are_taken_is_reported_and_dropped() {
    let mut pair = Pair::new(1, CLEAN);
    pair.sides[0].association.set_inbound_streams(10);
    pair.sides[0].association.start();
    pair.until("the handshake", |pair| {
        (pair.sides.iter()).all(|side| side.events.contains(&Event::Connected))
    });
    // The peer's own side knows the limit.
    let peer = &mut pair.sides[1].association;
    assert!(!peer.open_stream(10) && peer.open_stream(9));
    assert!(!peer.write(10, Bytes::from_static(b"x"), Ppid::Binary));
    let mut value = peer.own.first_tsn.to_be_bytes().to_vec();
    value.extend([0, 10, 0, 0, 0, 0, 0, 53, b'x']);
    hand(&mut pair, 0, &[(kind::DATA, &value)]);
    pair.run(Duration::from_millis(1));
    let receiver = &pair.sides[0].association.receiver;
    assert_eq!(receiver.stream_ids().count(), 0);
    assert_eq!(receiver.held(), 0);
    let first = pair.sides[1].association.own.first_tsn;
    assert!(receiver.has_reached(first), "it is acknowledged");
    hand(&mut pair, 0, &[(kind::DATA, &value)]);
    let replies = sent(&mut pair, 0);
    let error = (kind::ERROR, vec![0, 1, 0, 8, 0, 10, 0, 0]);
    assert!(replies.contains(&error), "{replies:?}");
}

/// RFC 9260 section 9.2. The SACK of the last DATA was lost, and the peer sends nothing more.
#[test]
fn a_shutdown_acknowledges_what_its_cumulative_tsn_says() {
    let mut pair = Pair::connected(1, CLEAN);
    pair.sides[0].association.open_stream(1);
    pair.write(0, 1, pattern(100, 0));
    sent(&mut pair, 0);
    let first = pair.sides[0].association.own.first_tsn;
    hand(&mut pair, 0, &[(kind::SHUTDOWN, &first.to_be_bytes())]);
    pair.sides[0].take_events();
    assert!(
        pair.sides[0]
            .events
            .contains(&Event::Acknowledged { id: 1 })
    );
    assert_eq!(pair.sides[0].association.held(), 0);
    let replies = sent(&mut pair, 0);
    assert_eq!(replies, [(kind::SHUTDOWN_ACK, Vec::new())]);
}

/// pion, sctp-proto and webrtc-sctp put the TSN of their own DATA into the field.
#[test]
fn a_shutdown_with_a_number_of_the_other_direction_ends_the_association_in_order() {
    for ahead in [5, 1 << 20, 1 << 31, u32::MAX] {
        let mut pair = Pair::connected(1, CLEAN);
        let other = pair.sides[0].association.own.first_tsn.wrapping_add(ahead);
        hand(&mut pair, 0, &[(kind::SHUTDOWN, &other.to_be_bytes())]);
        let replies = sent(&mut pair, 0);
        assert_eq!(replies, [(kind::SHUTDOWN_ACK, Vec::new())], "{ahead}");
        assert_eq!(pair.sides[0].end_reason(), None);
    }
}
