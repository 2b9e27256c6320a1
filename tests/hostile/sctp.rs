//! Peers that violate SCTP under valid DTLS.

use std::time::Duration;

use anabranch_sctp::Ppid;
use bytes::{BufMut, Bytes};
use tokio::io::AsyncReadExt;
use tokio::time::{sleep, timeout};

use super::peer::{Observed, Peer, PeerEvent, address, chunk, chunk_with, data};
use super::{CREDENTIALS, ENGINES, TEST_TIMEOUT, World};
use anabranch::connection::{Connection, ConnectionError};
use anabranch::endpoint::EngineFactory;
use anabranch::message::Message;
use anabranch_rtc::encode_open;
use anabranch_rtc::{Engine, Role};
use anabranch_str0m::STR0M;
use anabranch_testkit::fuzzing::thread_cpu_time;

/// Maximum CPU time for the packets of one attack, with room for an unoptimised build.
const MAX_WORK: Duration = Duration::from_secs(2);

const DATA: u8 = 0;
const FORWARD_TSN: u8 = 192;

/// PPID of `DATA_CHANNEL_OPEN` (RFC 8831 section 8).
const DCEP: u32 = 50;

/// A peer in this role after its handshake, and the victim's connection to it.
pub(super) async fn connected(world: &mut World, role: Role) -> (Peer, Connection) {
    let (identity, certificate) = &CREDENTIALS[2];
    if role == Role::Client {
        let mut peer = Peer::dialler(&world.attacker, &world.address, certificate);
        peer.connect().await;
        peer.run(Duration::from_millis(100)).await;
        let (connection, _) = world.outcome().await;
        return (peer, connection.expect("a connection"));
    }
    let address = address(certificate, identity);
    let listening = async {
        let mut peer = Peer::listener(&world.attacker, certificate).await;
        peer.connect().await;
        peer.run(Duration::from_millis(100)).await;
        peer
    };
    // The listener is polled first, so that its port is bound before the dial.
    let (peer, connection) = tokio::join!(listening, world.victim.connect(&address));
    (peer, connection.expect("a connection"))
}

/// Asserts that the connection has ended with a typed cause, or accepts a new substream.
async fn assert_works_or_ended(peer: &mut Peer, connection: &Connection, context: &str) {
    if let Some(cause) = connection.close_reason() {
        let typed = matches!(
            cause,
            ConnectionError::WebRtc(_)
                | ConnectionError::ClosedByPeer
                | ConnectionError::TimedOut
                | ConnectionError::TooManyUnusedSubstreams
        );
        assert!(typed, "{context}: {cause}");
        return;
    }
    let channel = peer.engine.open("").expect("a channel");
    peer.write(channel, &Message::data("still here".into()).encode());
    let serving = async {
        let mut substream = connection.accept().await.expect("no error").expect("open");
        let mut data = [0; 10];
        substream.read_exact(&mut data).await.expect("ten bytes");
        assert_eq!(&data, b"still here");
    };
    tokio::select! {
        served = timeout(Duration::from_secs(30), serving) => {
            assert!(served.is_ok(), "{context}: neither works nor has ended");
        }
        event = until_ended(peer) => panic!("{context}: ended by {event:?}"),
    }
}

async fn until_ended(peer: &mut Peer) -> PeerEvent {
    loop {
        let event = peer.next_event().await;
        if matches!(event, PeerEvent::Ended(_)) {
            return event;
        }
    }
}

/// Closes the victim's side while the peer runs, and asserts that nothing is left.
async fn close(mut peer: Peer, connection: Connection, world: World) {
    let peer_task = tokio::spawn(async move {
        until_ended(&mut peer).await;
    });
    timeout(Duration::from_secs(30), connection.close())
        .await
        .expect("a close has an end");
    assert!(connection.is_idle());
    assert_eq!(connection.stats().unread, 0);
    drop(connection);
    peer_task.abort();
    let _ = peer_task.await;
    world.finish().await;
}

/// A plausible value for a chunk of any type: TSNs and other fields, then zeros.
fn value(
    kind: u8,
    Observed {
        tsn, acknowledged, ..
    }: Observed,
) -> Vec<u8> {
    let mut value = Vec::new();
    match kind {
        // A TSN that was used before, so that the peer's next DATA is still valid.
        DATA => value = data(tsn, 0, 0, 53, b"payload"),
        64 => value.put_u32(tsn),
        3 => {
            value.put_u32(acknowledged);
            value.put_u32(1 << 20);
            // Numbers of gap blocks and duplicates that do not follow.
            value.put_u16(u16::MAX);
            value.put_u16(u16::MAX);
        }
        130 => {
            value.put_u16(13);
            value.put_u16(u16::MAX);
            value.put_u32(tsn);
        }
        _ => value.put_u32(tsn),
    }
    value.resize(value.len().max(36), 0);
    value
}

#[tokio::test(start_paused = true)]
async fn chunks_whose_lengths_lie_harm_nobody() {
    // Chunk types of SCTP, and some that are not assigned.
    let kinds = [
        0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 14, 15, 64, 128, 130, 132, 192, 194, 255,
    ];
    for engine in ENGINES {
        let mut world = World::without_noise(engine).await;
        for kind in kinds {
            let (mut peer, connection) = connected(&mut world, Role::Client).await;
            let value = value(kind, peer.observed);
            let right = u16::try_from(value.len() + 4).expect("short");
            for length in [
                0,
                1,
                3,
                4,
                5,
                8,
                right - 4,
                right - 1,
                right + 1,
                right + 4,
                1200,
                0x7fff,
                u16::MAX,
            ] {
                for flags in [0, 3, 0xff] {
                    let forged = chunk_with(kind, flags, length, &value);
                    // Alone, after an honest chunk, and truncated.
                    let heartbeat = chunk(4, 0, &[0, 1, 0, 8, 1, 2, 3, 4]);
                    let packets = [
                        peer.packet(&forged),
                        peer.packet(&[heartbeat, forged.clone()].concat()),
                        peer.packet(&forged[..forged.len() / 2 + 1]),
                    ];
                    peer.inject(&packets);
                }
            }
            let context = format!("kind {kind} on {engine:?}");
            let before = thread_cpu_time();
            let ended = peer.run(Duration::from_secs(2)).await;
            assert!(
                thread_cpu_time().saturating_sub(before) < MAX_WORK,
                "{context}"
            );
            assert_works_or_ended(&mut peer, &connection, &context).await;
            let closing = connection.close();
            if ended.is_none() {
                tokio::join!(closing, until_ended(&mut peer));
            } else {
                closing.await;
            }
            world.assert_only_the_neighbour_is_left().await;
        }
        world.finish().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_forward_tsn_however_far_costs_nothing_and_harms_nobody() {
    for engine in ENGINES {
        let mut world = World::without_noise(engine).await;
        for role in [Role::Client, Role::Server] {
            for distance in [
                1,
                2,
                1000,
                65_536,
                1 << 24,
                1 << 30,
                (1 << 31) - 1,
                1 << 31,
                (1 << 31) + 1,
                u32::MAX,
            ] {
                let context = format!("{distance} ahead, {role:?} on {engine:?}");
                let (mut peer, connection) = connected(&mut world, role).await;
                let number = peer.observed.tsn.wrapping_add(distance);
                for streams in [0, 1, 280] {
                    let mut value = number.to_be_bytes().to_vec();
                    for stream in 0..streams {
                        value.put_u16(stream);
                        value.put_u16(u16::MAX);
                    }
                    let forward = peer.packet(&chunk(FORWARD_TSN, 0, &value));
                    peer.inject(&[forward]);
                }
                let (work, before) = (thread_cpu_time(), peer.datagrams_received);
                peer.run(Duration::from_secs(5)).await;
                assert!(
                    thread_cpu_time().saturating_sub(work) < MAX_WORK,
                    "{context}"
                );
                let answers = peer.datagrams_received - before;
                assert!(answers < 100, "{context}: {answers} datagrams");
                assert_eq!(connection.stats().unread, 0, "{context}");
                let closing = timeout(Duration::from_secs(30), connection.close());
                let (closed, _) = tokio::join!(closing, peer.run(Duration::from_secs(30)));
                closed.unwrap_or_else(|_| panic!("{context}: a close has an end"));
                drop((peer, connection));
                world.assert_only_the_neighbour_is_left().await;
            }
        }
        world.finish().await;
    }
}

#[tokio::test(start_paused = true)]
async fn channels_that_are_not_ordered_and_reliable_are_no_substreams() {
    for engine in ENGINES {
        for role in [Role::Client, Role::Server] {
            let mut world = World::without_noise(engine).await;
            let (mut peer, connection) = connected(&mut world, role).await;
            // Stream ids of the peer: even for a dialler, odd for a listener.
            let mut number = 100 + u16::from(role == Role::Server);
            // str0m treats undefined channel types as reliable and ordered.
            let undefined: &[u8] = match engine.name() {
                "direct" => &[0x03, 0x7f, 0xff],
                _ => &[],
            };
            for &kind in [0x80, 0x01, 0x81, 0x02, 0x82].iter().chain(undefined) {
                let mut open = encode_open("x");
                open[1] = kind;
                let sctp = peer.engine.association();
                assert!(sctp.open_stream(number));
                assert!(sctp.write(number, open.into(), Ppid::Dcep));
                let frame = Message::data("unordered".into()).encode();
                assert!(sctp.write(number, frame, Ppid::Binary));
                number += 2;
            }
            peer.run(Duration::from_secs(3)).await;
            let context = format!("{role:?} on {engine:?}");
            assert_eq!(connection.stats().accepted, 0, "{context}");
            assert_eq!(connection.stats().substreams, 0, "{context}");
            assert_eq!(connection.close_reason(), None, "{context}");
            assert_works_or_ended(&mut peer, &connection, &context).await;
            close(peer, connection, world).await;
        }
    }
}

/// Opens every `step`th stream id of SCTP, from `first` on.
fn open_all(peer: &Peer, first: u16, step: usize) -> Vec<Bytes> {
    let open = encode_open("");
    let mut tsn = peer.observed.tsn;
    let mut packets = Vec::new();
    let mut chunks = Vec::new();
    for stream in (first..u16::MAX).step_by(step) {
        tsn = tsn.wrapping_add(1);
        chunks.extend(chunk(DATA, 3, &data(tsn, stream, 0, DCEP, &open)));
        if chunks.len() > 1000 {
            packets.push(peer.packet(&std::mem::take(&mut chunks)));
        }
    }
    packets.push(peer.packet(&chunks));
    packets
}

async fn open_every_channel(engine: EngineFactory, role: Role, first: u16, step: usize) {
    // Ends after 960 refused channels instead of 16 000, which take str0m and a debug build long.
    let mut world = World::with_max_unused(engine, 60).await;
    let (mut peer, connection) = connected(&mut world, role).await;
    let context = format!("from {first}, {role:?} on {engine:?}");
    let mut max_open = 0;
    // At the rate of a path of 100 Mbit/s.
    for packets in open_all(&peer, first, step).chunks(100) {
        peer.inject(packets);
        let ended = peer.run(Duration::from_millis(10)).await;
        max_open = max_open.max(connection.stats().substreams);
        if ended.is_some() || connection.close_reason().is_some() {
            break;
        }
    }
    // `Config::max_inbound_substreams`, and channels that are being refused.
    assert!(max_open <= 512, "{context}: {max_open}");
    let (cause, _) = tokio::join!(
        timeout(TEST_TIMEOUT, connection.closed()),
        peer.run(Duration::from_secs(60))
    );
    let cause = cause.unwrap_or_else(|_| panic!("{context}: the connection stays open"));
    println!("{context}: {cause}");
    assert!(
        matches!(
            cause,
            ConnectionError::TooManyUnusedSubstreams | ConnectionError::WebRtc(_)
        ),
        "{context}: {cause}"
    );
    // Substreams that were opened before the end can still be accepted.
    let mut waiting = 0;
    while let Ok(Some(substream)) = connection.accept().await {
        drop(substream);
        waiting += 1;
    }
    assert!(waiting <= 256, "{context}: {waiting}");
    assert!(connection.is_idle(), "{context}");
    drop((peer, connection));
    world.finish().await;
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_opens_all_65_535_channels_ends_its_own_connection_only() {
    for role in [Role::Client, Role::Server] {
        open_every_channel(EngineFactory::DIRECT, role, 1, 1).await;
    }
    // In one role only: str0m does not distinguish them here, and takes seconds.
    open_every_channel(STR0M, Role::Client, 1, 1).await;
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_opens_all_channels_that_are_its_own_ends_its_own_connection_only() {
    open_every_channel(EngineFactory::DIRECT, Role::Client, 2, 2).await;
    open_every_channel(EngineFactory::DIRECT, Role::Server, 1, 2).await;
}

/// ABORT, SHUTDOWN and SHUTDOWN-COMPLETE.
#[tokio::test(start_paused = true)]
async fn an_abort_and_a_shutdown_end_every_substream_with_the_cause() {
    for engine in ENGINES {
        for (kind, value) in [(6, vec![]), (7, vec![0; 4]), (14, vec![])] {
            let mut world = World::without_noise(engine).await;
            let (mut peer, connection) = connected(&mut world, Role::Client).await;
            let channel = peer.engine.open("").expect("a channel");
            peer.write(channel, &Message::data("first".into()).encode());
            peer.run(Duration::from_secs(1)).await;
            let mut substream = connection.accept().await.expect("no error").expect("open");
            let mut value = value;
            if kind == 7 {
                value.copy_from_slice(&peer.observed.acknowledged.to_be_bytes());
            }
            let end = peer.packet(&chunk(kind, 0, &value));
            peer.inject(&[end]);
            // The peer's own association sends nothing more.
            peer.send_filter = Box::new(|datagram| matches!(datagram.first(), Some(0..=3)));
            let peer_task = tokio::spawn(async move {
                peer.run(Duration::from_secs(40)).await;
            });
            let mut all = Vec::new();
            let context = format!("chunk {kind} on {engine:?}");
            let end = timeout(Duration::from_secs(30), substream.read_to_end(&mut all)).await;
            assert_eq!(all, b"first", "{context}");
            if let Ok(result) = end {
                let error = result.expect_err("no FIN was sent");
                assert_eq!(error.kind(), std::io::ErrorKind::UnexpectedEof, "{context}");
            } else {
                // Invalid in this state, and so ignored: the connection is unaffected.
                assert_eq!(connection.close_reason(), None, "{context}");
            }
            drop(substream);
            timeout(Duration::from_secs(30), connection.close())
                .await
                .expect("a close has an end");
            drop(connection);
            peer_task.abort();
            let _ = peer_task.await;
            sleep(Duration::from_secs(1)).await;
            world.finish().await;
        }
    }
}
