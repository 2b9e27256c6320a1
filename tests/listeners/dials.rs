//! Dials from the ports of listeners, and through NATs.

use std::collections::HashSet;
use std::time::Duration;

use anabranch::endpoint::{DialOptions, PortUse, PunchError};
use anabranch::{ConnectError, Endpoint, WebRtcDirectVersion};
use anabranch_testkit::simulator::{Conditions, Host, Network, Verdict};
use tokio::time::timeout;

use crate::{ECHO, LIMIT, close, echo, endpoint, listen, serve};

fn reuse() -> DialOptions {
    DialOptions::default().with_port(PortUse::Reuse)
}

#[tokio::test]
async fn a_dial_from_the_port_of_a_listener_shows_the_peer_where_this_side_listens() {
    let (server, client) = (endpoint(), endpoint());
    let mut arrivals = serve(&server);
    let (_listening, address) = listen(&server);
    let (own, own_address) = listen(&client);
    let _accepting = serve(&client);
    let first = client
        .connect_with(&address, reuse())
        .await
        .expect("it listens");
    echo(&first).await;
    let seen = arrivals.recv().await.expect("a peer");
    assert_eq!(seen.remote, own.local_address());
    // One pair of addresses has one connection, in either direction.
    let second = client
        .connect_with(&address, reuse())
        .await
        .expect("it listens");
    echo(&second).await;
    let seen = arrivals.recv().await.expect("a peer");
    assert_ne!(seen.remote, own.local_address());
    let back = server
        .connect_with(&own_address, reuse())
        .await
        .expect("it listens");
    echo(&back).await;
    echo(&first).await;
    // The port outlives its listener as long as a connection needs it.
    own.close();
    echo(&first).await;
    first.close().await;
    back.close().await;
    timeout(LIMIT, own.closed()).await.expect("none needs it");
    echo(&second).await;
    close([server, client]).await;
}

#[tokio::test]
async fn a_closed_listener_is_not_kept_open_by_dials_from_its_port() {
    let (server, client) = (endpoint(), endpoint());
    let mut arrivals = serve(&server);
    let addresses = [listen(&server).1, listen(&server).1];
    let (own, _) = listen(&client);
    let [first, second] = addresses.map(|address| {
        let client = client.clone();
        move || async move {
            client
                .connect_with(&address, reuse())
                .await
                .expect("it listens")
        }
    });
    let first = first().await;
    let from = arrivals.recv().await.expect("a peer").remote;
    assert_eq!(from, own.local_address());
    own.close();
    let second = second().await;
    let from = arrivals.recv().await.expect("a peer").remote;
    assert_ne!(from, own.local_address());
    first.close().await;
    timeout(LIMIT, own.closed()).await.expect("none needs it");
    echo(&second).await;
    close([client, server]).await;
}

#[tokio::test]
async fn an_endpoint_dials_its_own_listener() {
    let endpoint = endpoint();
    let _accepting = serve(&endpoint);
    let (_, address) = listen(&endpoint);
    for options in [reuse(), DialOptions::default()] {
        let connection = endpoint.connect_with(&address, options).await;
        echo(&connection.expect("it listens")).await;
    }
    close([endpoint]).await;
}

/// The peer keeps the connection until its silence timeout, and with it the pair of addresses.
#[tokio::test(start_paused = true)]
async fn a_program_that_starts_again_on_its_port_is_connected_before_its_old_connection_expires() {
    let network = Network::new(6);
    network.set_conditions(Conditions::round_trip(Duration::from_millis(80)));
    let hosts = [[192, 0, 2, 1], [192, 0, 2, 2]].map(|ip| network.host(ip));
    let start = |host: &Host| {
        let builder = Endpoint::builder().protocol(ECHO).sockets(host.clone());
        let any = "0.0.0.0:4001".parse().expect("an address");
        builder.bind_now(&[any]).expect("a free port")
    };
    let [server, client] = [&hosts[0], &hosts[1]].map(start);
    let mut arrivals = serve(&server);
    let address = server.addresses().remove(0);
    let connection = client.connect_with(&address, reuse()).await;
    let connection = connection.expect("it listens");
    echo(&connection).await;
    // It ends without a word.
    network.set_silent(&hosts[1], true);
    drop(connection);
    client.close().await;
    network.set_silent(&hosts[1], false);
    let again = start(&hosts[1]);
    let began = tokio::time::Instant::now();
    let connection = again.connect_with(&address, reuse()).await;
    let connection = connection.expect("it listens");
    let took = began.elapsed();
    assert!(took < Duration::from_secs(3), "{took:?}");
    echo(&connection).await;
    let ports = [(); 2].map(|()| arrivals.try_recv().expect("a peer").remote.port());
    assert!(ports[0] == 4001 && ports[1] != 4001, "{ports:?}");
    close([again, server]).await;
}

#[tokio::test]
async fn dials_without_a_listener_share_one_port_that_goes_with_the_last_of_them() {
    const LISTENERS: usize = 20;
    let (server, client) = (endpoint(), endpoint());
    let mut arrivals = serve(&server);
    let mut connections = Vec::new();
    let mut ports = HashSet::new();
    for _ in 0..LISTENERS {
        let (_, address) = listen(&server);
        connections.push(
            client
                .connect_with(&address, reuse())
                .await
                .expect("it listens"),
        );
        ports.insert(arrivals.recv().await.expect("a peer").remote);
    }
    assert_eq!(ports.len(), 1, "{ports:?}");
    assert_eq!(client.local_addresses(), [], "it is no listener");
    for connection in &connections {
        echo(connection).await;
    }
    for connection in connections {
        connection.close().await;
    }
    client.wait_idle().await;
    let port = ports.into_iter().next().expect("one");
    let free = async {
        while std::net::UdpSocket::bind(port).is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(LIMIT, free).await.expect("the socket is closed");
    close([server, client]).await;
}

/// One pair of addresses, and two dials: one gets it, the other begins again from another port.
#[tokio::test]
async fn two_endpoints_that_dial_each_other_from_their_ports_at_once_are_both_connected() {
    for round in 0..20 {
        let (a, b) = (endpoint(), endpoint());
        let (mut at_a, mut at_b) = (serve(&a), serve(&b));
        let (_, address_a) = listen(&a);
        let (_, address_b) = listen(&b);
        let (to_b, to_a) = tokio::join!(
            timeout(LIMIT, a.connect_with(&address_b, reuse())),
            timeout(LIMIT, b.connect_with(&address_a, reuse())),
        );
        for connection in [to_b, to_a] {
            let connection = connection.expect("in time").expect("both listen");
            echo(&connection).await;
        }
        let seen_a = at_a.recv().await.expect("the dial of b");
        let seen_b = at_b.recv().await.expect("the dial of a");
        let from_ports = [
            seen_a.remote == address_b.socket_addr(),
            seen_b.remote == address_a.socket_addr(),
        ];
        assert!(from_ports.contains(&true), "round {round}: {from_ports:?}");
        // Nothing else has arrived that would never be completed.
        assert!(
            at_a.try_recv().is_err() && at_b.try_recv().is_err(),
            "round {round}"
        );
        close([a, b]).await;
    }
}

/// The first checks cross on the way, with some of them lost.
#[tokio::test(start_paused = true)]
async fn dials_that_cross_on_the_way_are_both_connected_whichever_checks_are_lost() {
    for seed in 0..40 {
        let network = Network::new(seed);
        let mut conditions = Conditions::round_trip(Duration::from_millis(80));
        conditions.loss = if seed % 2 == 0 { 0.0 } else { 0.05 };
        network.set_conditions(conditions);
        let hosts = [[192, 0, 2, 1], [192, 0, 2, 2]].map(|ip| network.host(ip));
        let [a, b] = hosts.map(|host| {
            let builder = Endpoint::builder().protocol(ECHO).sockets(host);
            let any = "0.0.0.0:4001".parse().expect("an address");
            builder.bind_now(&[any]).expect("a free port")
        });
        let (mut at_a, mut at_b) = (serve(&a), serve(&b));
        let [to_a, to_b] = [&a, &b].map(|endpoint| endpoint.addresses().remove(0));
        let version = |v2: bool| match v2 {
            true => WebRtcDirectVersion::V2,
            false => WebRtcDirectVersion::V1,
        };
        let [by_a, by_b] = [seed & 2, seed & 4].map(|bit| reuse().with_version(version(bit > 0)));
        let (from_a, from_b) =
            tokio::join!(a.connect_with(&to_b, by_a), b.connect_with(&to_a, by_b));
        let connections = [from_a, from_b].map(|connection| connection.expect("both listen"));
        for connection in &connections {
            echo(connection).await;
        }
        let seen = [&mut at_a, &mut at_b].map(|arrivals| arrivals.try_recv().expect("a peer"));
        // The pair of ports has one connection.
        let shared = seen.iter().filter(|seen| seen.remote.port() == 4001);
        assert_eq!(shared.count(), 1, "{seen:?}");
        assert!(at_a.try_recv().is_err() && at_b.try_recv().is_err());
        // A lost notice of the end would leave the other side to its timeouts.
        network.set_conditions(Conditions::round_trip(Duration::from_millis(80)));
        close([a, b]).await;
        assert_eq!(network.sockets(), 0);
    }
}

/// A NAT that keeps the port and lets in what comes from where something has been sent.
fn filtered(network: &Network) {
    let mut holes = HashSet::new();
    network.set_tap(move |datagram| {
        holes.insert((datagram.source, datagram.destination));
        match holes.contains(&(datagram.destination, datagram.source)) {
            true => Verdict::Pass,
            false => Verdict::Drop,
        }
    });
}

#[tokio::test(start_paused = true)]
async fn a_dial_reaches_a_listener_behind_a_nat_that_punches_a_hole_for_it() {
    let network = Network::new(5);
    network.set_conditions(Conditions::round_trip(Duration::from_millis(80)));
    let hosts = [[192, 0, 2, 1], [192, 0, 2, 2]].map(|ip| network.host(ip));
    let endpoints = hosts.clone().map(|host| {
        let builder = Endpoint::builder().protocol(ECHO).sockets(host);
        let any = "0.0.0.0:4001".parse().expect("an address");
        builder.bind_now(&[any]).expect("a free port")
    });
    let [listener, dialler] = endpoints;
    let mut arrivals = serve(&listener);
    filtered(&network);
    let address = listener.addresses().remove(0);
    let blocked = dialler.connect_with(&address, reuse()).await;
    assert!(
        matches!(blocked, Err(ConnectError::TimedOut { .. })),
        "{blocked:?}"
    );
    let remote = dialler.addresses().remove(0).socket_addr();
    let punching = async {
        loop {
            listener.punch(remote).expect("it listens");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let dial = dialler.connect_with(&address, reuse());
    let connection = tokio::select! {
        () = punching => unreachable!("it goes on"),
        connection = dial => connection.expect("the hole is open"),
    };
    let seen = arrivals.recv().await.expect("the dial");
    assert_eq!(seen.remote, remote);
    echo(&connection).await;
    let stranger = "[2001:db8::1]:4001".parse().expect("an address");
    let error = listener.punch(stranger);
    assert!(
        matches!(error, Err(PunchError::NoListener { .. })),
        "{error:?}"
    );
    drop(connection);
    close([dialler, listener]).await;
}
