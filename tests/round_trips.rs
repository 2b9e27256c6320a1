//! How many round trips connecting and opening take (`docs/connecting.md`), in virtual time, where
//! nothing else takes any.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anabranch::substream::code;
use anabranch::{
    Config, Connection, Endpoint, EndpointConfig, EngineFactory, OpenError, Substream,
    SubstreamError,
};
use anabranch_str0m::STR0M;
use anabranch_testkit::simulator::{Conditions, Network, TappedDatagram, Verdict};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinHandle;
use tokio::time::Instant;

const PROTOCOL: &str = "/echo/1.0.0";
const RTT: Duration = Duration::from_millis(100);

/// Two hosts, [`RTT`] apart: a listener that echoes, and a dialler.
struct World {
    network: Network,
    listener: Endpoint,
    dialler: Endpoint,
    accepting: JoinHandle<()>,
}

async fn answer(mut substream: Substream) {
    let (mut read, mut write) = tokio::io::split(&mut substream);
    let _ = tokio::io::copy(&mut read, &mut write).await;
    let _ = write.shutdown().await;
}

fn with_engine(engine: EngineFactory) -> EndpointConfig {
    let mut config = EndpointConfig::default();
    config.engine = engine;
    config
}

async fn world(listening: EngineFactory, dialling: EngineFactory, connections: Config) -> World {
    let network = Network::new(1);
    network.set_conditions(Conditions::round_trip(RTT));
    let [server, client] = [[10, 0, 0, 1], [10, 0, 0, 2]].map(|ip| network.host(ip));
    let listener = Endpoint::builder()
        .sockets(server)
        .endpoint_config(with_engine(listening))
        .protocol(PROTOCOL)
        .bind("0.0.0.0:4001")
        .await
        .expect("a socket");
    let dialler = Endpoint::builder()
        .sockets(client)
        .endpoint_config(with_engine(dialling))
        .config(connections)
        .dial_only()
        .expect("defaults work");
    let accepting = tokio::spawn({
        let listener = listener.clone();
        async move {
            while let Some(incoming) = listener.accept().await {
                tokio::spawn(async move {
                    let Ok(connection) = incoming.accept().await else {
                        return;
                    };
                    while let Ok(Some(substream)) = connection.accept().await {
                        tokio::spawn(answer(substream));
                    }
                });
            }
        }
    });
    World {
        network,
        listener,
        dialler,
        accepting,
    }
}

async fn two_of_ours() -> World {
    let direct = EngineFactory::DIRECT;
    world(direct, direct, Config::default()).await
}

impl World {
    /// Dials, and returns the round trips that it took.
    async fn connect(&self) -> (Connection, f64) {
        let address = self.listener.addresses().remove(0);
        let begun = Instant::now();
        let connection = self.dialler.connect(&address).await.expect("a listener");
        (connection, round_trips_since(begun))
    }

    async fn close(self) {
        self.dialler.close().await;
        self.listener.close().await;
        self.accepting.await.expect("no panic");
        assert!(self.dialler.is_idle() && self.listener.is_idle());
    }
}

fn round_trips_since(begun: Instant) -> f64 {
    begun.elapsed().as_secs_f64() / RTT.as_secs_f64()
}

#[track_caller]
fn assert_took(round_trips: f64, expected: f64) {
    println!("{round_trips:.2} round trips");
    let slack = 0.05;
    assert!(
        (round_trips - expected).abs() < slack,
        "{round_trips:.2} round trips instead of {expected}"
    );
}

async fn echo(connection: &Connection) {
    let mut substream = connection.open(PROTOCOL).await.expect("it is spoken");
    substream.write_all(&[7; 1024]).await.expect("room");
    let mut back = [0; 1024];
    substream.read_exact(&mut back).await.expect("all came");
    assert_eq!(back, [7; 1024]);
    drop(substream);
}

/// Drops the first datagram for which `is_first` holds.
fn lose_first(network: &Network, is_first: impl Fn(&[u8]) -> bool + Send + 'static) {
    let mut is_lost = false;
    network.set_tap(move |datagram: &mut TappedDatagram| {
        if !is_lost && is_first(&datagram.contents) {
            is_lost = true;
            return Verdict::Drop;
        }
        Verdict::Pass
    });
}

/// A ClientHello in a DTLS record (RFC 9147 section 4).
fn is_client_hello(contents: &[u8]) -> bool {
    contents.first() == Some(&22) && contents.get(13) == Some(&1)
}

#[tokio::test(start_paused = true)]
async fn two_of_ours_connect_in_3_round_trips() {
    let world = two_of_ours().await;
    let (connection, round_trips) = world.connect().await;
    assert_took(round_trips, 3.0);
    connection.close().await;
    world.close().await;
}

/// str0m stands for a stack without our extensions, and one that needs a cookie.
#[tokio::test(start_paused = true)]
async fn a_listener_of_another_stack_is_reached_in_4_round_trips() {
    let world = world(STR0M, EngineFactory::DIRECT, Config::default()).await;
    let (connection, round_trips) = world.connect().await;
    assert_took(round_trips, 4.0);
    connection.close().await;
    world.close().await;
}

#[tokio::test(start_paused = true)]
async fn an_open_and_its_echo_take_one_round_trip() {
    let world = two_of_ours().await;
    let (connection, _) = world.connect().await;
    for _ in 0..3 {
        let begun = Instant::now();
        echo(&connection).await;
        assert_took(round_trips_since(begun), 1.0);
    }
    connection.close().await;
    world.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_negotiated_open_and_its_echo_take_two_round_trips() {
    let mut connections = Config::default();
    connections.lazy_negotiation = false;
    let direct = EngineFactory::DIRECT;
    let world = world(direct, direct, connections).await;
    let (connection, _) = world.connect().await;
    let begun = Instant::now();
    echo(&connection).await;
    assert_took(round_trips_since(begun), 2.0);
    let refused = connection.open("/unknown/1.0.0").await;
    assert!(
        matches!(refused, Err(OpenError::UnsupportedProtocol(_))),
        "{refused:?}"
    );
    connection.close().await;
    world.close().await;
}

/// What was written before the refusal arrived is never lost silently.
#[tokio::test(start_paused = true)]
async fn a_refused_protocol_fails_the_first_read_and_the_finish() {
    let world = two_of_ours().await;
    let (connection, _) = world.connect().await;
    let open = || async {
        let mut substream = connection.open("/unknown/1.0.0").await.expect("lazily");
        substream.write_all(b"request").await.expect("room");
        substream
    };
    let is_refusal = |error: &std::io::Error| {
        let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
        matches!(
            inner,
            Some(SubstreamError::ResetByPeer(Some(code::NEGOTIATION_FAILED)))
        )
    };
    let error = open().await.read(&mut [0]).await.expect_err("refused");
    assert!(is_refusal(&error), "{error:?}");
    let error = open().await.finish().await.expect_err("refused");
    assert_eq!(
        error,
        anabranch::substream::FinishError::ResetByPeer(Some(code::NEGOTIATION_FAILED))
    );
    // And the connection goes on.
    echo(&connection).await;
    connection.close().await;
    world.close().await;
}

/// DTLS alone would repeat it after a second.
#[tokio::test(start_paused = true)]
async fn a_lost_client_hello_costs_one_round_trip_and_a_quarter() {
    let world = two_of_ours().await;
    lose_first(&world.network, is_client_hello);
    let (connection, round_trips) = world.connect().await;
    assert_took(round_trips, 4.25);
    connection.close().await;
    world.close().await;
}

/// The ClientHello arrives first, is dropped as everything from an unknown address is, and follows
/// the repeated check.
#[tokio::test(start_paused = true)]
async fn a_client_hello_without_its_check_follows_the_next_one() {
    let world = two_of_ours().await;
    lose_first(&world.network, |contents| contents.first() == Some(&0));
    let (connection, round_trips) = world.connect().await;
    println!("{round_trips:.2} round trips");
    // The check is repeated after 250 ms.
    assert!(round_trips < 8.0, "{round_trips}");
    connection.close().await;
    world.close().await;
}

/// Whichever datagram of the handshake is lost, it completes within the shortest timeout of the
/// layer that lost it: a second for DTLS, half a second for SCTP and a check.
#[tokio::test(start_paused = true)]
async fn the_loss_of_any_one_datagram_is_made_good() {
    let seen = Arc::new(AtomicU32::new(0));
    for lost in 0.. {
        let world = two_of_ours().await;
        seen.store(0, Ordering::Relaxed);
        world.network.set_tap({
            let seen = Arc::clone(&seen);
            move |_: &mut TappedDatagram| match seen.fetch_add(1, Ordering::Relaxed) {
                number if number == lost => Verdict::Drop,
                _ => Verdict::Pass,
            }
        });
        let (connection, round_trips) = world.connect().await;
        println!("datagram {lost} lost: {round_trips:.2} round trips");
        assert!(round_trips < 16.0, "datagram {lost}: {round_trips}");
        let sent = seen.load(Ordering::Relaxed);
        echo(&connection).await;
        connection.close().await;
        world.close().await;
        if lost >= sent {
            break;
        }
    }
}

/// The listener's limit of substreams comes in the flight of its last Noise message. Lost there, it
/// would be awaited for `Config::open_timeout` after 64 substreams.
#[tokio::test(start_paused = true)]
async fn a_thousand_opens_wait_for_nothing() {
    let world = two_of_ours().await;
    let (connection, _) = world.connect().await;
    let begun = Instant::now();
    for _ in 0..1000 {
        echo(&connection).await;
    }
    assert_took(round_trips_since(begun) / 1000.0, 1.0);
    connection.close().await;
    world.close().await;
}
