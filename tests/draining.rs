//! A connection, and a server, that end in peace.

use std::sync::Arc;
use std::time::Duration;

use anabranch::message::Message;
use anabranch::substream::code;
use anabranch::websocket::{WebSocketConfig, carrier_over};
use anabranch::{
    Config, ConnectError, Connection, ConnectionError, Drained, Endpoint, EndpointConfig,
    EngineFactory, Finished, Negotiation, OpenError, Substream,
};
use anabranch_str0m::STR0M;
use anabranch_testkit::memory::MemoryConfig;
use anabranch_testkit::simulator::{Conditions, Host, Network, TappedDatagram, Verdict};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

mod common;

const PROTOCOL: &str = "/echo/1.0.0";
const RTT: Duration = Duration::from_millis(50);

/// Longer than anything that is waited for, without a limit of its own.
const LIMIT: Duration = Duration::from_secs(60);

fn config() -> Config {
    let mut config = Config::default();
    config.protocols = vec![PROTOCOL.to_owned()];
    config
}

fn with_engine(engine: EngineFactory) -> EndpointConfig {
    let mut config = EndpointConfig::default();
    config.engine = engine;
    config
}

async fn listen(host: Host, engine: EngineFactory) -> Endpoint {
    let builder = Endpoint::builder().sockets(host).config(config());
    let builder = builder.endpoint_config(with_engine(engine));
    builder.bind("0.0.0.0:4001").await.expect("a socket")
}

fn dialler(host: Host, engine: EngineFactory) -> Endpoint {
    let builder = Endpoint::builder().sockets(host).config(config());
    let builder = builder.endpoint_config(with_engine(engine));
    builder.dial_only().expect("defaults work")
}

/// Answers with what has come, once all of it has.
async fn answer(mut substream: Substream) {
    let mut all = Vec::new();
    substream.read_to_end(&mut all).await.expect("all comes");
    substream.write_all(&all).await.expect("the peer reads");
    substream.finish().await.expect("the peer has it");
}

/// Serves a connection until it ends, and every substream to its end.
async fn serve(connection: Connection) -> usize {
    let mut answers = JoinSet::new();
    while let Ok(Some(substream)) = connection.accept().await {
        answers.spawn(answer(substream));
    }
    answers.join_all().await.len()
}

/// Serves every peer until the endpoint accepts no more. Returns the number of answers.
async fn serve_all(endpoint: Endpoint) -> usize {
    let mut connections = JoinSet::new();
    while let Some(incoming) = endpoint.accept().await {
        connections.spawn(async { serve(incoming.await.expect("it is honest")).await });
    }
    connections.join_all().await.into_iter().sum()
}

/// Sends `size` bytes, and expects them back.
async fn exchange(mut substream: Substream, size: usize) {
    let sent: Vec<u8> = (0..size).map(|i| (i % 251) as u8).collect();
    let (read, write) = substream.split();
    let mut back = Vec::new();
    let (finished, _) = tokio::join!(
        async {
            write.write_all(&sent).await.expect("the server reads");
            write.finish().await.expect("the server has it")
        },
        async { read.read_to_end(&mut back).await.expect("all comes back") }
    );
    assert_eq!(finished, Finished::Acked);
    assert!(back == sent, "the bytes are the same");
}

async fn a_busy_server_is_drained(engine: EngineFactory) {
    const CLIENTS: u8 = 10;
    const TRANSFERS: usize = 20;
    let network = Network::new(7);
    network.set_conditions(Conditions {
        loss: 0.01,
        ..Conditions::round_trip(RTT)
    });
    let server = listen(network.host([10, 0, 0, 1]), engine).await;
    let address = server.addresses().remove(0);
    let serving = tokio::spawn(serve_all(server.clone()));
    let mut clients = Vec::new();
    let mut transfers = JoinSet::new();
    for n in 0..CLIENTS {
        let client = dialler(network.host([10, 0, 1, n]), engine);
        let connection = client.connect(&address).await.expect("it listens");
        clients.push((client, connection));
    }
    for (_, connection) in &clients {
        for _ in 0..TRANSFERS {
            let substream = connection.open(PROTOCOL).await.expect("it is spoken");
            transfers.spawn(exchange(substream, 64 << 10));
        }
    }
    sleep(RTT / 2).await;
    assert!(transfers.try_join_next().is_none(), "all are under way");
    let is_known = |connection: &Connection| connection.is_draining();
    assert!(!server.is_draining() && !clients.iter().any(|(_, connection)| is_known(connection)));
    let draining = tokio::spawn({
        let server = server.clone();
        async move { server.drain(LIMIT).await }
    });

    // Some of these go out before the drain is known: they are served. The others fail at once.
    let mut late = 0;
    for (_, connection) in &clients {
        let refused = loop {
            match connection.open(PROTOCOL).await {
                Ok(substream) => {
                    late += 1;
                    transfers.spawn(exchange(substream, 1000));
                    sleep(RTT / 5).await;
                }
                Err(error) => break error,
            }
        };
        assert!(matches!(refused, OpenError::Draining), "{refused}");
        assert!(is_known(connection) && server.is_draining());
        let begun = Instant::now();
        let again = connection.open(PROTOCOL).await.expect_err("from now on");
        assert!(matches!(again, OpenError::Draining), "{again}");
        assert_eq!(begun.elapsed(), Duration::ZERO);
    }
    let newcomer = dialler(network.host([10, 0, 2, 1]), engine);
    let refused = newcomer.connect(&address).await.expect_err("it is going");
    assert!(matches!(refused, ConnectError::Refused), "{refused}");

    let served = usize::from(CLIENTS) * TRANSFERS + late;
    assert_eq!(transfers.join_all().await.len(), served);
    assert_eq!(draining.await.expect("no panic"), Drained::default());
    assert_eq!(serving.await.expect("no panic"), served);
    for (client, connection) in clients {
        let cause = connection.closed().await;
        assert!(matches!(cause, ConnectionError::ClosedByPeer), "{cause}");
        assert!(connection.is_idle());
        client.close().await;
        assert!(client.is_idle());
    }
    newcomer.close().await;
    assert!(server.is_idle() && newcomer.is_idle());
}

#[tokio::test(start_paused = true)]
async fn a_server_under_200_transfers_that_is_drained_loses_none() {
    a_busy_server_is_drained(EngineFactory::DIRECT).await;
}

#[tokio::test(start_paused = true)]
async fn a_server_under_200_transfers_that_is_drained_loses_none_on_str0m() {
    a_busy_server_is_drained(STR0M).await;
}

/// The packet with its open is lost, and repeated when the peer has long been told of the drain.
#[tokio::test(start_paused = true)]
async fn a_substream_that_was_opened_before_the_peer_knew_is_served() {
    let network = Network::new(1);
    network.set_conditions(Conditions::round_trip(RTT));
    let (near, far) = (network.host([10, 0, 0, 1]), network.host([10, 0, 0, 2]));
    let server = listen(near, EngineFactory::DIRECT).await;
    let client = dialler(far.clone(), EngineFactory::DIRECT);
    let address = server.addresses().remove(0);
    let serving = tokio::spawn(serve_all(server.clone()));
    let connection = client.connect(&address).await.expect("it listens");
    let warm_up = connection.open(PROTOCOL).await.expect("it is spoken");
    exchange(warm_up, 1000).await;
    sleep(LIMIT).await;

    let client_ip = far.ip();
    let until = Instant::now() + RTT / 5;
    network.set_tap(move |datagram: &mut TappedDatagram| {
        let is_lost = datagram.source.ip() == client_ip && Instant::now() < until;
        match is_lost {
            true => Verdict::Drop,
            false => Verdict::Pass,
        }
    });
    let substream = connection.open(PROTOCOL).await.expect("it is spoken");
    let exchanging = tokio::spawn(exchange(substream, 100));
    sleep(RTT / 4).await;
    assert_eq!(server.drain(LIMIT).await, Drained::default());
    exchanging.await.expect("it is answered");
    assert_eq!(serving.await.expect("no panic"), 2);
    client.close().await;
    assert!(client.is_idle() && server.is_idle());
}

#[tokio::test(start_paused = true)]
async fn a_drain_that_exceeds_its_limit_says_what_was_cut() {
    let network = Network::new(1);
    network.set_conditions(Conditions::round_trip(RTT));
    let mut impatient = config();
    impatient.teardown_timeout = Duration::from_secs(1);
    let builder = Endpoint::builder().config(impatient);
    let builder = builder.sockets(network.host([10, 0, 0, 1]));
    let server = builder.bind("0.0.0.0:4001").await.expect("a socket");
    let client = dialler(network.host([10, 0, 0, 2]), EngineFactory::DIRECT);
    let address = server.addresses().remove(0);
    let serving = tokio::spawn({
        let server = server.clone();
        async move {
            let incoming = server.accept().await.expect("a peer");
            let connection = incoming.await.expect("it is honest");
            let mut held = Vec::new();
            while let Ok(Some(substream)) = connection.accept().await {
                held.push(substream);
            }
            held.len()
        }
    });
    let connection = client.connect(&address).await.expect("it listens");
    let mut held = Vec::new();
    for _ in 0..3 {
        let mut substream = connection.open(PROTOCOL).await.expect("it is spoken");
        substream.write_all(b"and then?").await.expect("room");
        held.push(substream);
    }
    sleep(RTT).await;
    let begun = Instant::now();
    let limit = Duration::from_secs(3);
    let drained = server.drain(limit).await;
    assert_eq!((drained.cut_connections, drained.cut_substreams), (1, 3));
    assert!((limit..2 * limit).contains(&begun.elapsed()));
    assert_eq!(serving.await.expect("no panic"), 3);
    drop(held);
    client.close().await;
    assert!(client.is_idle() && server.is_idle());
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_that_accepts_no_more_serves_its_peers_and_dials() {
    let network = Network::new(1);
    network.set_conditions(Conditions::round_trip(RTT));
    let host = |last| network.host([10, 0, 0, last]);
    let first = listen(host(1), EngineFactory::DIRECT).await;
    let second = listen(host(2), EngineFactory::DIRECT).await;
    let serving = [&first, &second].map(|endpoint| tokio::spawn(serve_all(endpoint.clone())));
    let [to_first, to_second] = [&first, &second].map(|endpoint| endpoint.addresses().remove(0));
    let before = second.connect(&to_first).await.expect("it listens");
    first.stop_accepting();
    let refused = second.connect(&to_first).await.expect_err("no more");
    assert!(matches!(refused, ConnectError::Refused), "{refused}");
    let after = first.connect(&to_second).await.expect("it may dial");
    for connection in [&before, &after] {
        let substream = connection.open(PROTOCOL).await.expect("it is spoken");
        exchange(substream, 1000).await;
    }
    timeout(LIMIT, first.wait_idle())
        .await
        .expect_err("two are left");
    drop((before, after));
    timeout(LIMIT, first.wait_idle())
        .await
        .expect("none is left");
    let ends = tokio::join!(first.drain(LIMIT), second.drain(LIMIT));
    assert_eq!(ends, (Drained::default(), Drained::default()));
    for serving in serving {
        assert_eq!(serving.await.expect("no panic"), 1);
    }
}

/// Nothing is known of the peer before its first frame, where nothing is negotiated: its first
/// substream is taken all the same, and a drain waits for the answer.
#[tokio::test(start_paused = true)]
async fn a_first_substream_crosses_the_drain_of_a_connection_of_which_nothing_is_known() {
    let network = Network::new(1);
    network.set_conditions(Conditions::round_trip(RTT));
    let mut plain = Config::default();
    plain.negotiation = Negotiation::None;
    let builder = |host: [u8; 4]| {
        let sockets = Endpoint::builder().sockets(network.host(host));
        sockets.config(plain.clone())
    };
    let server = builder([10, 0, 0, 1]).bind("0.0.0.0:4001").await;
    let server = server.expect("a socket");
    let client = builder([10, 0, 0, 2]).dial_only().expect("defaults work");
    let address = server.addresses().remove(0);
    let serving = tokio::spawn(serve_all(server.clone()));
    let connection = client.connect(&address).await.expect("it listens");
    sleep(RTT).await;
    let exchanging = tokio::spawn(exchange(connection.open("").await.expect("room"), 100));
    sleep(RTT / 4).await;
    assert_eq!(server.drain(LIMIT).await, Drained::default());
    exchanging.await.expect("it is answered");
    assert_eq!(serving.await.expect("no panic"), 1);
    client.close().await;
    assert!(client.is_idle() && server.is_idle());
}

/// A peer that counts substreams that never come delays the drain, and does not stop it; one that
/// opens more than it has counted is refused.
#[tokio::test(start_paused = true)]
async fn a_peer_that_lies_about_its_substreams_delays_a_drain_for_a_while() {
    let patience = Config::default().open_timeout;
    for (counted, waits) in [(u64::MAX, true), (1, false)] {
        let mut s = common::scripted(common::config(), MemoryConfig::default());
        let (first, channel) = s.accept().await;
        s.peer.data_with_credit(channel, b"!", 1000);
        common::settle().await;
        let begun = Instant::now();
        let us = s.us.clone();
        let draining = tokio::spawn(async move { us.drain(LIMIT).await });
        common::settle().await;
        s.peer.notice(&Message::opened(counted));
        common::settle().await;
        if counted == 1 {
            let refused = s.peer.open();
            let reset = Message::reset(code::SHUTDOWN);
            s.peer.expect(refused, reset).await;
        }
        first.reset(1);
        assert_eq!(draining.await.expect("no panic"), 0);
        let took = begun.elapsed();
        assert_eq!(took >= patience, waits, "{took:?}");
        assert!(took < 3 * patience, "{took:?}");
    }
}

/// Two connections over a WebSocket, with their drivers.
async fn over_a_websocket() -> [Connection; 2] {
    let (near, far) = tokio::io::duplex(1 << 16);
    let mut config = config();
    config.negotiation = Negotiation::ChannelLabel;
    let config = Arc::new(config);
    let (near, far) = tokio::join!(
        carrier_over(near, true, WebSocketConfig::default()),
        carrier_over(far, false, WebSocketConfig::default())
    );
    [near, far].map(|carrier| {
        let (connection, driver) =
            Connection::over(carrier.expect("settings"), Arc::clone(&config));
        tokio::spawn(driver);
        connection
    })
}

#[tokio::test(start_paused = true)]
async fn a_websocket_is_drained_by_either_side_and_by_both_at_once() {
    for drains in [[true, false], [false, true], [true, true]] {
        let [near, far] = over_a_websocket().await;
        let serving = tokio::spawn(serve(far.clone()));
        let substream = near.open(PROTOCOL).await.expect("room");
        let exchanging = tokio::spawn(async move {
            sleep(Duration::from_secs(5)).await;
            exchange(substream, 100_000).await;
        });
        sleep(Duration::from_secs(1)).await;
        let drain = async |connection: &Connection, drains: bool| {
            if drains {
                assert_eq!(connection.drain(LIMIT).await, 0);
            }
        };
        let refused = async {
            sleep(Duration::from_secs(1)).await;
            for connection in [&near, &far] {
                let refused = connection.open(PROTOCOL).await;
                assert!(matches!(refused, Err(OpenError::Draining)), "{refused:?}");
            }
        };
        tokio::join!(drain(&near, drains[0]), drain(&far, drains[1]), refused);
        exchanging.await.expect("it is answered");
        assert_eq!(serving.await.expect("no panic"), 1);
        for connection in [near, far] {
            assert!(connection.closed().await.is_orderly());
            assert!(connection.is_idle());
        }
    }
}
