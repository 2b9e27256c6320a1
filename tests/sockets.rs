//! A listener with several sockets on one address.
#![cfg(unix)]

use std::net::SocketAddr;
use std::time::Duration;

use anabranch::{ConnectError, Endpoint, EndpointConfig};
use tokio::task::JoinSet;
use tokio::time::timeout;

use echoing::{echo, echo_all};

#[path = "common/echoing.rs"]
mod echoing;

const ECHO: &str = "/echo/1";
const SOCKETS: usize = 4;
const CONNECTIONS: usize = 32;

async fn listen(sockets: usize) -> Endpoint {
    let mut config = EndpointConfig::default();
    config.sockets = sockets;
    let endpoint = Endpoint::builder()
        .endpoint_config(config)
        .protocol(ECHO)
        .bind("127.0.0.1:0")
        .await
        .expect("sockets");
    let accepting = endpoint.clone();
    tokio::spawn(async move {
        while let Some(incoming) = accepting.accept().await {
            tokio::spawn(
                async move { echo_all(incoming.accept().await.expect("a handshake")).await },
            );
        }
    });
    endpoint
}

/// UDP sockets of this machine bound to an IPv4 address.
#[cfg(target_os = "linux")]
fn bound(address: SocketAddr) -> usize {
    let port = format!(":{:04X}", address.port());
    std::fs::read_to_string("/proc/net/udp")
        .expect("a list of sockets")
        .lines()
        .filter_map(|line| line.split_whitespace().nth(1))
        .filter(|local| local.ends_with(&port))
        .count()
}

#[tokio::test(flavor = "multi_thread")]
async fn thirty_two_connections_over_four_sockets_work_both_ways_and_leave_nothing() {
    let listener = listen(SOCKETS).await;
    let addresses = listener.addresses();
    assert_eq!(addresses.len(), 1, "one address, however many sockets");
    let address = addresses[0].clone();
    let socket = address.socket_addr();
    #[cfg(target_os = "linux")]
    assert_eq!(bound(socket), SOCKETS);
    let dialler = Endpoint::builder().dial_only().expect("defaults");
    let mut tasks = JoinSet::new();
    for n in 0..CONNECTIONS {
        let (dialler, address) = (dialler.clone(), address.clone());
        tasks.spawn(async move {
            let connection = dialler.connect(&address).await.expect("a listener");
            let content: Vec<u8> = (0..200_000 + n).map(|i| (i * n % 251) as u8).collect();
            echo(&connection, ECHO, &content).await;
            connection
        });
    }
    let connections = tasks.join_all().await;
    assert_eq!(listener.connections(), CONNECTIONS);
    for connection in connections {
        connection.close().await;
        assert!(connection.is_idle());
    }
    for endpoint in [dialler, listener] {
        timeout(Duration::from_secs(5), endpoint.close())
            .await
            .expect("it closes");
        assert!(endpoint.is_idle());
        #[cfg(target_os = "linux")]
        if endpoint.addresses() == addresses {
            assert_eq!(bound(socket), 0, "a closed endpoint keeps no socket");
        }
    }
}

#[tokio::test]
async fn a_closed_endpoint_frees_its_port_whoever_still_holds_something_of_it() {
    let listener = Endpoint::builder()
        .bind("127.0.0.1:0")
        .await
        .expect("a socket");
    let address = listener.addresses().remove(0);
    let dialler = Endpoint::builder().dial_only().expect("defaults");
    let dialling = dialler.clone();
    let to = address.clone();
    let dial = tokio::spawn(async move { dialling.connect(&to).await });
    let incoming = listener.accept().await.expect("a dial");
    let (first, second) = (listener.clone(), listener.clone());
    tokio::join!(first.close(), second.close());
    // The same port, without SO_REUSEPORT.
    let again = Endpoint::builder()
        .bind(address.socket_addr())
        .await
        .expect("the port is free");
    let error = incoming.accept().await.expect_err("closed");
    assert!(matches!(error, ConnectError::EndpointClosed), "{error}");
    dialler.close().await;
    assert!(dial.await.expect("no panic").is_err());
    again.close().await;
}
