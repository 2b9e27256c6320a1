//! Listeners on wildcards, as for WebRTC.

use std::net::{IpAddr, SocketAddr};

use super::connections::{client, server};
use super::requests::while_listening;
use crate::identity::Identity;
use crate::websocket::*;

async fn listen(address: SocketAddr) -> Result<WebSocketListener, ListenError> {
    let config = server(Authentication::noise(Identity::generate()));
    WebSocketListener::bind(address, config, ListenerConfig::default()).await
}

#[tokio::test]
async fn the_addresses_of_a_wildcard_can_be_dialled() {
    let listener = listen("0.0.0.0:0".parse().unwrap()).await.unwrap();
    let addresses = listener.addresses();
    assert!(addresses.contains(&listener.address()));
    while_listening(&listener, async {
        for address in &addresses {
            let text = address.to_string();
            assert!(!text.contains("/0.0.0.0/"), "{text}");
            assert!(address.peer_id().is_some());
            let config = client(Authentication::noise(Identity::generate()));
            let connection = connect(address, &config).await.unwrap();
            connection.close().await;
        }
    })
    .await;
    // Any other address stands for itself.
    let listener = listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
    assert_eq!(listener.addresses(), [listener.address()]);
}

#[tokio::test]
async fn the_wildcards_of_both_families_share_a_port() {
    // Machines without IPv6 have only one of them.
    let Ok(v6) = listen("[::]:0".parse().unwrap()).await else {
        return;
    };
    let port = v6.local_addr().port();
    let v4 = listen(SocketAddr::new(IpAddr::from([0, 0, 0, 0]), port)).await;
    let v4 = v4.expect("its own family is free");
    // Each accepts its own family.
    for (listener, ip) in [(&v4, "127.0.0.1"), (&v6, "::1")] {
        let to = SocketAddr::new(ip.parse().unwrap(), port);
        let (stream, incoming) =
            tokio::join!(tokio::net::TcpStream::connect(to), listener.accept());
        let incoming = incoming.unwrap();
        assert_eq!(
            incoming.remote_address(),
            stream.unwrap().local_addr().unwrap()
        );
        incoming.refuse();
    }
}

#[test]
fn mapped_addresses_are_ipv4_addresses() {
    let canonical = |text: &str| proxy::canonical(text.parse().unwrap()).to_string();
    assert_eq!(canonical("[::ffff:192.0.2.1]:80"), "192.0.2.1:80");
    assert_eq!(canonical("[2001:db8::1]:80"), "[2001:db8::1]:80");
    assert_eq!(canonical("[fe80::1%3]:80"), "[fe80::1%3]:80");
}
