//! Negotiation of protocols that differs between the peers of one endpoint.

use anabranch::address::{PeerAddress, WebSocketAddress};
use anabranch::endpoint::{AcceptOptions, DialOptions, ListenerId, WebSocketOptions};
use anabranch::websocket::{RequestHead, UpgradeRequest};
use anabranch::{Config, Connection, Endpoint, Negotiation};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use crate::{ECHO, LIMIT, LOOPBACK, close, echo, echoing, endpoint};

const UNKNOWN: &str = "/unknown/1.0.0";

/// Serves every peer: those of one listener by labels, those of another without protocols.
fn serve(endpoint: &Endpoint, by_label: Vec<ListenerId>, bare: Vec<ListenerId>) {
    let endpoint = endpoint.clone();
    tokio::spawn(async move {
        while let Some(incoming) = endpoint.accept().await {
            let at = incoming.listener();
            let options = if by_label.contains(&at) {
                AcceptOptions::from(Negotiation::ChannelLabel)
            } else if bare.contains(&at) {
                AcceptOptions::from(Negotiation::None)
            } else {
                AcceptOptions::default()
            };
            tokio::spawn(async move {
                if let Ok(connection) = incoming.accept_with(options).await {
                    echoing::echo_all(connection).await;
                }
            });
        }
    });
}

/// Dials with multistream-select on every substream, as other libp2p peers do. Returns whether the
/// peer supports that.
async fn selects(addresses: &[PeerAddress]) -> bool {
    let mut config = Config::default();
    config.lazy_negotiation = false;
    let client = Endpoint::builder()
        .config(config)
        .plaintext_websockets(true)
        .dial_only()
        .expect("valid");
    let connection = dial(&client, addresses, None).await;
    let opening = timeout(LIMIT, connection.open(ECHO));
    let supported = opening.await.expect("the peer answers").is_ok();
    connection.close().await;
    close([client]).await;
    supported
}

async fn dial(
    client: &Endpoint,
    addresses: &[PeerAddress],
    negotiation: Option<Negotiation>,
) -> Connection {
    let mut options = DialOptions::default();
    options.negotiation = negotiation;
    let reached = client.connect_any_with(addresses, options).await;
    reached.expect("it listens").connection
}

/// The protocol of a substream for the first of two that the peer supports, which is closed.
async fn chosen(connection: &Connection) -> Option<String> {
    let substream = connection.open_any(&[UNKNOWN, ECHO]).await;
    let substream = substream.expect("one of them is supported");
    let protocol = substream.protocol().map(str::to_owned);
    drop(substream);
    protocol
}

#[tokio::test]
async fn each_listener_and_each_dial_has_its_negotiation_on_both_carriers() {
    let (server, client) = (endpoint(), endpoint());
    let local = LOOPBACK.parse().expect("an address");
    let udp = || server.listen(local).expect("a free port");
    let websocket = || {
        let listening = server.listen_websocket(local, WebSocketOptions::default());
        listening.expect("a free port")
    };
    let by_label = [udp(), websocket()];
    let bare = [udp(), websocket()];
    let others = [udp(), websocket()];
    let ids = |all: &[anabranch::endpoint::Listening]| all.iter().map(|one| one.id()).collect();
    serve(&server, ids(&by_label), ids(&bare));

    for listening in &others {
        let connection = dial(&client, &listening.addresses(), None).await;
        assert!(selects(&listening.addresses()).await);
        // Which of them the peer supports took a round trip to find out.
        assert_eq!(chosen(&connection).await.as_deref(), Some(ECHO));
        echo(&connection).await;
        connection.close().await;
    }
    for listening in &by_label {
        // The default supports labels too, and also what has none.
        assert!(!selects(&listening.addresses()).await);
        let label = Some(Negotiation::ChannelLabel);
        let connection = dial(&client, &listening.addresses(), label).await;
        // The label names the first, whatever the peer supports.
        assert_eq!(chosen(&connection).await.as_deref(), Some(UNKNOWN));
        echo(&connection).await;
        connection.close().await;
    }
    for listening in &bare {
        let none = Some(Negotiation::None);
        let connection = dial(&client, &listening.addresses(), none).await;
        assert_eq!(chosen(&connection).await, None);
        echo(&connection).await;
        connection.close().await;
    }
    close([server, client]).await;
}

/// An HTTP server of the application: upgrades every request for the endpoint, with these options.
async fn upgrade_all(listener: TcpListener, endpoint: Endpoint, options: AcceptOptions) {
    while let Ok((stream, _)) = listener.accept().await {
        let endpoint = endpoint.clone();
        tokio::spawn(async move {
            let stream = upgraded(stream, &endpoint).await;
            let accepting = endpoint.accept_upgraded_with(stream, options);
            if let Ok(connection) = accepting.await {
                echoing::echo_all(connection).await;
            }
        });
    }
}

async fn upgraded(mut stream: TcpStream, endpoint: &Endpoint) -> TcpStream {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.expect("a request"));
    }
    let request = RequestHead::parse(&head).expect("HTTP");
    let upgrade = UpgradeRequest::check(&request, &endpoint.upgrade_config());
    let mut response = "HTTP/1.1 101 Switching Protocols\r\n".to_owned();
    for (name, value) in upgrade.expect("an upgrade").response_headers() {
        response.extend([name, ": ", value, "\r\n"]);
    }
    response.push_str("\r\n");
    let written = stream.write_all(response.as_bytes()).await;
    written.expect("the client reads");
    stream
}

#[tokio::test]
async fn each_upgraded_stream_has_its_negotiation() {
    let (server, client) = (endpoint(), endpoint());
    for (options, negotiation) in [
        (AcceptOptions::default(), None),
        (
            AcceptOptions::from(Negotiation::ChannelLabel),
            Some(Negotiation::ChannelLabel),
        ),
        (
            AcceptOptions::from(Negotiation::None),
            Some(Negotiation::None),
        ),
    ] {
        let listener = TcpListener::bind(LOOPBACK).await.expect("a free port");
        let port = listener.local_addr().expect("it is bound").port();
        let serving = tokio::spawn(upgrade_all(listener, server.clone(), options));
        let address = format!("/ip4/127.0.0.1/tcp/{port}/ws");
        let address = address.parse::<WebSocketAddress>().expect("an address");
        let address = address.with_peer_id(server.peer_id());
        let addresses = [PeerAddress::WebSocket(address)];

        if negotiation != Some(Negotiation::None) {
            assert_eq!(selects(&addresses).await, negotiation.is_none());
        }
        let connection = dial(&client, &addresses, negotiation).await;
        let expected = match negotiation {
            None => Some(ECHO),
            // The label names the first, whatever the peer supports.
            Some(Negotiation::ChannelLabel) => Some(UNKNOWN),
            Some(_) => None,
        };
        assert_eq!(chosen(&connection).await.as_deref(), expected);
        echo(&connection).await;
        connection.close().await;
        serving.abort();
    }
    close([client, server]).await;
}
