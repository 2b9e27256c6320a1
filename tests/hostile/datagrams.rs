//! An attacker on the path without the keys: datagrams that are repeated, delayed, truncated, and
//! replayed long after their connection has ended.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{sleep, timeout};

use super::{CONNECT_TIMEOUT, ENGINES, World, echo, pattern};
use anabranch::connection::Connection;
use anabranch::endpoint::{ConnectError, Endpoint, EndpointConfig};
use anabranch::substream::Finished;
use anabranch_rtc::dtls::forced;
use anabranch_testkit::simulator::Verdict;

const SERVER_PORT: u16 = 4001;

/// Opens another connection of the neighbour and echoes 50 000 bytes over it.
async fn connect_and_exchange(world: &mut World) -> Connection {
    let connecting = world.neighbour.connect(&world.address);
    let connection = timeout(Duration::from_secs(60), connecting)
        .await
        .expect("in time")
        .unwrap_or_else(|error| panic!("{error} on {:?}", world.engine));
    let (theirs, _) = world.outcome().await;
    tokio::spawn(echo(theirs.expect("a connection")));
    let data = pattern(50_000);
    let exchange = async {
        let mut substream = connection.open("").await.expect("a substream");
        let (mut echoed, mut unsent) = (Vec::new(), &data[..]);
        let (read, write) = substream.split();
        let sending = async {
            write.write_all_buf(&mut unsent).await.expect("room");
            write.finish().await.expect("an end")
        };
        let (outcome, read) = tokio::join!(sending, read.read_to_end(&mut echoed));
        read.expect("all");
        assert_eq!(outcome, Finished::Acked);
        assert!(echoed == data, "{} bytes", echoed.len());
    };
    timeout(Duration::from_secs(120), exchange)
        .await
        .expect("in time");
    connection
}

async fn end(world: World, connection: Connection) {
    connection.close().await;
    assert!(connection.is_idle());
    drop(connection);
    world.finish().await;
}

#[tokio::test(start_paused = true)]
async fn every_datagram_comes_three_times_and_again_later() {
    for engine in ENGINES {
        let mut world = World::new(engine).await;
        let network = world.network.clone();
        let mut earlier: Vec<(SocketAddr, SocketAddr, Vec<u8>)> = Vec::new();
        let mut rng = StdRng::seed_from_u64(11);
        world.network.set_tap(move |datagram| {
            let this = (
                datagram.source,
                datagram.destination,
                datagram.contents.clone(),
            );
            earlier.push(this.clone());
            // One of all datagrams, the handshake included, and one of the last hundred.
            let any = rng.random_range(0..earlier.len());
            let recent = rng.random_range(earlier.len().saturating_sub(100)..earlier.len());
            for (from, to, contents) in [
                this.clone(),
                this,
                earlier[any].clone(),
                earlier[recent].clone(),
            ] {
                network.inject(from, to, contents);
            }
            Verdict::Pass
        });
        let connection = connect_and_exchange(&mut world).await;
        world.network.clear_tap();
        end(world, connection).await;
    }
}

#[tokio::test(start_paused = true)]
async fn every_datagram_is_preceded_by_parts_of_itself() {
    for engine in ENGINES {
        let mut world = World::new(engine).await;
        let network = world.network.clone();
        let mut count = 0_usize;
        world.network.set_tap(move |datagram| {
            count += 1;
            let length = datagram.contents.len();
            // Cuts in the headers of STUN, of records of both DTLS versions and of handshake
            // messages; at every length in turn; and before the last bytes.
            for cut in [
                0,
                1,
                5,
                13,
                20,
                25,
                count % length.max(1),
                length.saturating_sub(16),
                length.saturating_sub(1),
            ] {
                if let Some(part) = datagram.contents.get(..cut) {
                    network.inject(datagram.source, datagram.destination, part.to_vec());
                }
            }
            // And with trailing bytes.
            let longer = [&datagram.contents[..], &[0x17; 40]].concat();
            network.inject(datagram.source, datagram.destination, longer);
            Verdict::Pass
        });
        let connection = connect_and_exchange(&mut world).await;
        world.network.clear_tap();
        end(world, connection).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_whole_connection_that_is_replayed_is_not_one() {
    for engine in ENGINES {
        let mut world = World::new(engine).await;
        let recorded = Arc::new(Mutex::new(Vec::new()));
        let recording = Arc::clone(&recorded);
        world.network.set_tap(move |datagram| {
            if datagram.destination.port() == SERVER_PORT {
                let mut recording = recording.lock().expect("no panic");
                recording.push((datagram.source, datagram.contents.clone()));
            }
            Verdict::Pass
        });
        let connection = connect_and_exchange(&mut world).await;
        connection.close().await;
        drop(connection);
        world.network.clear_tap();
        world.assert_only_the_neighbour_is_left().await;

        let recorded = std::mem::take(&mut *recorded.lock().expect("no panic"));
        let stranger = SocketAddr::from(([192, 0, 2, 1], 9));
        for moved in [false, true] {
            for (source, contents) in &recorded {
                let source = if moved { stranger } else { *source };
                let to = world.address.socket_addr();
                world.network.inject(source, to, contents.clone());
                sleep(Duration::from_millis(1)).await;
            }
            // The replayed check is valid, as STUN has no replay protection: it occupies a
            // handshake slot until the handshake times out.
            let (result, after) = world.outcome().await;
            let error = result.expect_err("a replayed handshake");
            assert!(matches!(error, ConnectError::TimedOut { .. }), "{error}");
            assert!(after <= CONNECT_TIMEOUT + Duration::from_millis(50));
            // The recording may contain traffic of the neighbour's connection, which is unharmed.
            world.assert_only_the_neighbour_is_left().await;
        }
        world.finish().await;
    }
}

#[tokio::test(start_paused = true)]
async fn records_of_the_peer_that_come_from_elsewhere_are_dropped() {
    for engine in ENGINES {
        let mut world = World::new(engine).await;
        let network = world.network.clone();
        let stranger = SocketAddr::from(([192, 0, 2, 1], 9));
        world.network.set_tap(move |datagram| {
            if matches!(datagram.contents.first(), Some(20..=63)) {
                // Before the original.
                network.inject(stranger, datagram.destination, datagram.contents.clone());
            }
            Verdict::Pass
        });
        let connection = connect_and_exchange(&mut world).await;
        world.network.clear_tap();
        let (victim, elsewhere) = (world.network.host(super::VICTIM), stranger.ip());
        let elsewhere = world.network.host(elsewhere);
        let answered = world.network.link_counters(&victim, &elsewhere);
        assert_eq!(answered.sent, 0, "on {engine:?}");
        end(world, connection).await;
    }
}

/// Replays another handshake to a dialler that waits for the listener's messages.
#[tokio::test(start_paused = true)]
async fn handshake_messages_from_elsewhere_do_not_end_a_dial() {
    for engine in ENGINES {
        let mut world = World::new(engine).await;
        let recorded = Arc::new(Mutex::new(Vec::new()));
        let recording = Arc::clone(&recorded);
        world.network.set_tap(move |datagram| {
            if datagram.source.port() == SERVER_PORT
                && matches!(datagram.contents.first(), Some(20..=63))
            {
                let mut recording = recording.lock().expect("no panic");
                recording.push(datagram.contents.clone());
            }
            Verdict::Pass
        });
        let connection = connect_and_exchange(&mut world).await;
        connection.close().await;
        drop(connection);
        world.assert_only_the_neighbour_is_left().await;

        let network = world.network.clone();
        let mut recorded = std::mem::take(&mut *recorded.lock().expect("no panic"));
        let stranger = SocketAddr::from(([192, 0, 2, 1], 9));
        world.network.set_tap(move |datagram| {
            // With the ClientHello, so before the listener's answer.
            if datagram.contents.first() == Some(&22) && datagram.destination.port() == SERVER_PORT
            {
                for contents in recorded.drain(..) {
                    network.inject(stranger, datagram.source, contents);
                }
            }
            Verdict::Pass
        });
        let connection = connect_and_exchange(&mut world).await;
        world.network.clear_tap();
        end(world, connection).await;
    }
}

/// In DTLS 1.2 the client's Certificate message is neither encrypted nor authenticated: an attacker
/// with a forged source can send it without having received anything.
#[tokio::test(start_paused = true)]
async fn a_certificate_alone_is_no_proof_of_an_address() {
    const MTU: usize = 1180;
    forced::set_12(MTU);
    // A handshake record with message 1: a certificate list with one certificate of one byte.
    let certificate = [
        &[22, 0xfe, 0xfd, 0, 0, 0, 0, 0, 0, 0, 9, 0, 19][..],
        &[11, 0, 0, 7, 0, 1, 0, 0, 0, 0, 0, 7],
        &[0, 0, 4, 0, 0, 1, 7],
    ]
    .concat();
    for engine in ENGINES {
        let world = World::new(engine).await;
        let listening = world.address.socket_addr();
        let dialler = Endpoint::builder()
            .endpoint_config({
                let mut config = EndpointConfig::default();
                config.engine = engine;
                config.mtu = MTU;
                config
            })
            .sockets(world.attacker.clone())
            .dial_only()
            .expect("an endpoint");
        let attacker = world.attacker.ip();
        let network = world.network.clone();
        let certificate = certificate.clone();
        let bytes = Arc::new(Mutex::new((0, 0)));
        let counted = Arc::clone(&bytes);
        let mut sent_hello = false;
        // As with a forged source: only the responses to the first checks arrive, and nothing is
        // sent after the ClientHello.
        world.network.set_tap(move |datagram| {
            let (to_listener, from_listener) = &mut *counted.lock().expect("no panic");
            let length = datagram.contents.len();
            if datagram.source.ip() == attacker {
                if sent_hello {
                    return Verdict::Drop;
                }
                sent_hello = datagram.contents.first() == Some(&22);
                *to_listener += length;
                if sent_hello {
                    *to_listener += certificate.len();
                    network.inject(datagram.source, listening, certificate.clone());
                }
            } else if datagram.destination.ip() == attacker {
                *from_listener += length;
                if !datagram.contents.starts_with(&[1, 1]) {
                    return Verdict::Drop;
                }
            }
            Verdict::Pass
        });
        dialler.connect(&world.address).await.expect_err("no DTLS");
        world.network.clear_tap();
        let (received, sent) = *bytes.lock().expect("no panic");
        assert!(sent > 600, "{sent} on {engine:?}");
        assert!(
            sent <= 3 * received,
            "{sent} bytes for {received} on {engine:?}"
        );
        dialler.close().await;
        drop(dialler);
        world.finish().await;
    }
    forced::set_12(usize::MAX);
}
