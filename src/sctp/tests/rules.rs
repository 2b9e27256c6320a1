//! What a peer may do, and what it is told.

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
    assert_eq!(association.answers.len(), MAX_ANSWERS);
    let answers = association.poll_transmit(pair.now).expect("answers");
    assert_eq!(answers.len(), 1);
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
    assert!(matches!(pair.sides[0].lost(), Some(Lost::Violation(_))));
    // The peer is told.
    pair.until("the end", |pair| {
        pair.sides[1].lost() == Some(Lost::Aborted)
    });
}

#[test]
fn data_in_front_of_the_handshake_arms_no_timer() {
    let mut server = Association::new(CONFIG);
    let peer = Init {
        tag: 7,
        window: 1 << 20,
        first_tsn: 100,
        inbound_streams: u16::MAX,
        zero_checksum: true,
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

/// pion before 1.8.11, which go-libp2p had before v0.34, takes no INIT-ACK with a parameter that it does not know.
#[test]
fn an_init_ack_offers_zero_checksums_only_to_who_knows_them() {
    for zero_checksum in [false, true] {
        let mut server = Association::new(CONFIG);
        let peer = Init {
            tag: 7,
            window: 1 << 20,
            first_tsn: 100,
            inbound_streams: u16::MAX,
            zero_checksum,
        };
        let now = Instant::now();
        let mut packets = Packets::new(1160, ([PORT, PORT], 0), false, BytesMut::new());
        packets.put(kind::INIT, 0, &peer.encode(None));
        server.handle_packet(now, &packets.finish().0.remove(0));
        let answer = server.poll_transmit(now).expect("an answer").remove(0);
        let (_, mut chunks) = parse(&answer).expect("sound");
        let chunk = chunks.next().expect("a chunk");
        assert_eq!(chunk.kind, kind::INIT_ACK);
        let (own, _) = Init::parse(chunk.value).expect("sound");
        assert_eq!(own.zero_checksum, zero_checksum);
    }
}
