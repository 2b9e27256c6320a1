//! Listeners that come and go on a running endpoint, on both carriers.

mod addresses;
mod dials;
#[path = "../common/echoing.rs"]
mod echoing;
mod negotiation;

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use anabranch::address::PeerAddress;
use anabranch::endpoint::{Listening, WebSocketOptions};
use anabranch::udp::{DatagramSocket, Received, Transmit};
use anabranch::{
    Address, BindError, Config, ConfigError, ConnectError, Connection, ConnectionError, Endpoint,
    EndpointConfig, Incoming, udp,
};
use tokio::io::AsyncReadExt;
use tokio::time::timeout;

const ECHO: &str = "/echo/1.0.0";
const LIMIT: Duration = Duration::from_secs(10);
const LOOPBACK: &str = "127.0.0.1:0";

fn endpoint() -> Endpoint {
    Endpoint::builder()
        .protocol(ECHO)
        .plaintext_websockets(true)
        .dial_only()
        .expect("defaults work")
}

fn listen(endpoint: &Endpoint) -> (Listening, Address) {
    let address = LOOPBACK.parse().expect("an address");
    let listening = endpoint.listen(address).expect("a free port");
    let address = dialled(&listening);
    (listening, address)
}

fn dialled(listening: &Listening) -> Address {
    match listening.addresses().as_slice() {
        [PeerAddress::WebRtcDirect(address)] => address.clone(),
        others => panic!("{others:?}"),
    }
}

/// Serves every peer. The sender gets what is known of it before it is accepted.
fn serve(endpoint: &Endpoint) -> tokio::sync::mpsc::UnboundedReceiver<Seen> {
    let (seen, arrivals) = tokio::sync::mpsc::unbounded_channel();
    let endpoint = endpoint.clone();
    tokio::spawn(async move {
        while let Some(incoming) = endpoint.accept().await {
            let _ = seen.send(Seen::of(&incoming));
            tokio::spawn(async move {
                if let Ok(connection) = incoming.await {
                    echoing::echo_all(connection).await;
                }
            });
        }
    });
    arrivals
}

#[derive(Debug)]
struct Seen {
    listener: anabranch::endpoint::ListenerId,
    remote: SocketAddr,
    local: SocketAddr,
    is_websocket: bool,
}

impl Seen {
    fn of(incoming: &Incoming) -> Self {
        Self {
            listener: incoming.listener(),
            remote: incoming.remote_address(),
            local: incoming.local_address(),
            is_websocket: incoming.version().is_none(),
        }
    }
}

async fn echo(connection: &Connection) {
    let content: Vec<u8> = (0..100_000).map(|i| (i % 251) as u8).collect();
    echoing::echo(connection, ECHO, &content).await;
}

async fn close<const N: usize>(endpoints: [Endpoint; N]) {
    for endpoint in &endpoints {
        timeout(LIMIT, endpoint.close()).await.expect("it closes");
    }
    for endpoint in &endpoints {
        assert!(endpoint.is_idle(), "{endpoint:?}");
    }
}

#[test]
fn an_endpoint_that_only_dials_can_fail_for_a_setting_alone() {
    let mut config = Config::default();
    config.send_buffer = 0;
    // Outside of a runtime: nothing is bound.
    let failed: ConfigError = Endpoint::builder().config(config).dial_only().unwrap_err();
    assert!(matches!(
        failed,
        ConfigError::OutOfRange {
            name: "send_buffer",
            ..
        }
    ));
    assert!(Endpoint::builder().dial_only().is_ok());
}

#[tokio::test]
async fn listeners_come_and_go_while_the_endpoint_runs() {
    let (server, client) = (endpoint(), endpoint());
    let mut arrivals = serve(&server);
    assert_eq!(server.local_addresses(), []);
    let (first, first_address) = listen(&server);
    let early = client.connect(&first_address).await.expect("it listens");
    // The endpoint accepts already.
    let (second, second_address) = listen(&server);
    assert_ne!(first.id(), second.id());
    assert_eq!(
        server.addresses(),
        [first_address.clone(), second_address.clone()]
    );
    let late = client.connect(&second_address).await.expect("it listens");
    for listening in [&first, &second] {
        let seen = arrivals.recv().await.expect("a peer");
        assert_eq!(seen.listener, listening.id());
        assert_eq!(seen.local, listening.local_address());
    }
    first.close();
    assert_eq!(first.addresses(), []);
    assert_eq!(server.addresses(), [second_address]);
    // Its connection needs the socket.
    let refused = client.connect(&first_address).await;
    assert!(matches!(refused, Err(ConnectError::Refused)), "{refused:?}");
    echo(&early).await;
    echo(&late).await;
    assert!(
        timeout(Duration::from_millis(50), first.closed())
            .await
            .is_err()
    );
    early.close().await;
    timeout(LIMIT, first.closed())
        .await
        .expect("no connection is left");
    // The port is free, and the other listener has not noticed.
    let again = server.listen(first.local_address()).expect("it is free");
    let connection = client.connect(&dialled(&again)).await.expect("it listens");
    echo(&connection).await;
    echo(&late).await;
    close([client, server]).await;
    timeout(LIMIT, again.closed())
        .await
        .expect("by the end of the endpoint");
}

#[tokio::test]
async fn peers_that_wait_at_a_closed_listener_are_refused_and_those_of_others_are_not() {
    let (server, client) = (endpoint(), endpoint());
    let (closing, closed_address) = listen(&server);
    let (_staying, address) = listen(&server);
    let waiting = |address: Address| {
        let client = client.clone();
        tokio::spawn(async move { client.connect(&address).await })
    };
    let refused = waiting(closed_address);
    // It has arrived: the other comes second.
    let first = timeout(LIMIT, server.accept())
        .await
        .expect("in time")
        .expect("a peer");
    assert_eq!(first.listener(), closing.id());
    drop(first);
    let accepted = waiting(address);
    tokio::time::sleep(Duration::from_millis(300)).await;
    closing.close();
    let error = refused
        .await
        .expect("no panic")
        .expect_err("its listener is closed");
    assert!(matches!(error, ConnectError::Refused), "{error}");
    let incoming = timeout(LIMIT, server.accept())
        .await
        .expect("in time")
        .expect("a peer");
    let (ours, theirs) = tokio::join!(incoming.accept(), accepted);
    drop((
        ours.expect("a handshake"),
        theirs.expect("no panic").expect("a handshake"),
    ));
    close([client, server]).await;
}

#[tokio::test]
async fn an_endpoint_listens_on_a_socket_that_the_application_has_bound() {
    let (server, client) = (endpoint(), endpoint());
    let _arrivals = serve(&server);
    let socket = std::net::UdpSocket::bind(LOOPBACK).expect("a free port");
    let local = socket.local_addr().expect("it is bound");
    let socket = udp::from_std(socket).expect("it is usable");
    let listening = server.listen_on_socket(socket).expect("it is open");
    assert_eq!(listening.local_address(), local);
    let connection = client
        .connect(&dialled(&listening))
        .await
        .expect("it listens");
    echo(&connection).await;
    close([client, server]).await;
}

/// A socket of another network: its address is not the machine's.
#[derive(Debug)]
struct Elsewhere(Arc<dyn DatagramSocket>);

const ELSEWHERE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), 4001);

impl DatagramSocket for Elsewhere {
    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.0.try_send(transmit)
    }

    fn writable(self: Arc<Self>) -> Pin<Box<dyn Future<Output = io::Result<()>> + Send>> {
        Arc::clone(&self.0).writable()
    }

    fn poll_receive(
        &self,
        cx: &mut Context<'_>,
        sink: &mut dyn FnMut(Received<'_>),
    ) -> Poll<io::Result<()>> {
        self.0.poll_receive(cx, sink)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(ELSEWHERE)
    }

    fn source_towards(&self, remote: SocketAddr) -> io::Result<IpAddr> {
        self.0.source_towards(remote)
    }
}

#[tokio::test]
async fn the_address_of_a_supplied_socket_need_not_be_the_machine_s() {
    let server = endpoint();
    let socket = std::net::UdpSocket::bind(LOOPBACK).expect("a free port");
    let socket = Elsewhere(udp::from_std(socket).expect("it is usable"));
    let listening = server.listen_on_socket(Arc::new(socket));
    let address = dialled(&listening.expect("it is open"));
    assert_eq!(address.socket_addr(), ELSEWHERE);
    close([server]).await;
}

#[tokio::test]
async fn a_closed_endpoint_listens_no_more_and_a_taken_port_is_an_error() {
    let server = endpoint();
    let (listening, _) = listen(&server);
    let taken = server.listen(listening.local_address());
    assert!(matches!(taken, Err(BindError::Socket { .. })), "{taken:?}");
    server.close().await;
    let address = LOOPBACK.parse().expect("an address");
    let closed = server.listen(address);
    assert!(
        matches!(closed, Err(BindError::EndpointClosed)),
        "{closed:?}"
    );
    let options = WebSocketOptions::default();
    let closed = server.listen_websocket(address, options);
    assert!(
        matches!(closed, Err(BindError::EndpointClosed)),
        "{closed:?}"
    );
    assert_eq!(listening.addresses(), []);
    close([server]).await;
}

#[tokio::test]
async fn peers_of_both_carriers_arrive_in_one_loop_and_one_close_ends_them() {
    let (server, client) = (endpoint(), endpoint());
    let mut arrivals = serve(&server);
    let (udp, _) = listen(&server);
    let address = LOOPBACK.parse().expect("an address");
    let options = WebSocketOptions::default();
    let tcp = server
        .listen_websocket(address, options)
        .expect("a free port");
    assert_eq!(server.addresses().len(), 1, "those of webrtc-direct");
    let addresses = server.peer_addresses();
    assert_eq!(addresses.len(), 2);
    let mut connections = Vec::new();
    for (address, listening) in addresses.iter().zip([&udp, &tcp]) {
        let reached = client.connect_any(std::slice::from_ref(address)).await;
        let connection = reached.expect("it listens").connection;
        assert_eq!(connection.peer_id(), Some(server.peer_id()));
        echo(&connection).await;
        connections.push(connection);
        let seen = arrivals.recv().await.expect("a peer");
        assert_eq!(seen.listener, listening.id());
        assert_eq!(seen.is_websocket, listening.id() == tcp.id());
        assert_eq!(seen.local, listening.local_address());
    }
    assert_eq!(server.connections(), 2);
    // A closed WebSocket listener frees its port at once, and its connection lives on.
    tcp.close();
    timeout(LIMIT, tcp.closed())
        .await
        .expect("nothing shares its socket");
    assert_eq!(server.peer_addresses().len(), 1);
    echo(&connections[1]).await;
    close([server, client]).await;
    for connection in connections {
        let cause = connection.closed().await;
        assert!(matches!(cause, ConnectionError::ClosedByPeer), "{cause}");
    }
}

#[tokio::test]
async fn a_server_that_accepts_no_more_answers_websockets_with_503() {
    let (server, client) = (endpoint(), endpoint());
    let address = LOOPBACK.parse().expect("an address");
    let options = WebSocketOptions::default();
    let tcp = server
        .listen_websocket(address, options)
        .expect("a free port");
    let addresses = tcp.addresses();
    server.stop_accepting();
    assert!(server.accept().await.is_none());
    let error = client
        .connect_any(&addresses)
        .await
        .expect_err("it is stopped");
    assert!(error.to_string().contains("503"), "{error}");
    close([server, client]).await;
}

/// The limit of the endpoint holds for both carriers together.
#[tokio::test]
async fn websockets_count_against_the_connections_of_the_endpoint() {
    let mut config = EndpointConfig::default();
    config.max_connections = 1;
    let server = Endpoint::builder().endpoint_config(config);
    let server = server.protocol(ECHO).dial_only().expect("valid");
    let client = endpoint();
    let _arrivals = serve(&server);
    let (_udp, webrtc) = listen(&server);
    let address = LOOPBACK.parse().expect("an address");
    let options = WebSocketOptions::default();
    let tcp = server
        .listen_websocket(address, options)
        .expect("a free port");
    let only = client.connect(&webrtc).await.expect("it has room");
    let error = client
        .connect_any(&tcp.addresses())
        .await
        .expect_err("it is full");
    assert!(error.to_string().contains("503"), "{error}");
    only.close().await;
    server.wait_idle().await;
    let reached = client
        .connect_any(&tcp.addresses())
        .await
        .expect("it has room again");
    echo(&reached.connection).await;
    close([client, server]).await;
}

#[tokio::test]
async fn nobody_accepts_a_websocket_that_then_expires_and_leaves_nothing() {
    let mut config = EndpointConfig::default();
    config.connect_timeout = Duration::from_millis(200);
    let server = Endpoint::builder().endpoint_config(config);
    let server = server.dial_only().expect("valid");
    let address = LOOPBACK.parse().expect("an address");
    let options = WebSocketOptions::default();
    let tcp = server
        .listen_websocket(address, options)
        .expect("a free port");
    let mut peer = tokio::net::TcpStream::connect(tcp.local_address())
        .await
        .expect("it listens");
    let mut answer = Vec::new();
    let end = timeout(LIMIT, peer.read_to_end(&mut answer)).await;
    assert_eq!(end.expect("it expires").expect("a close"), 0);
    assert!(server.is_idle());
    close([server]).await;
}
