//! Dials of several addresses of one peer: WebRTC first, a WebSocket where UDP is blocked.

use std::net::UdpSocket;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anabranch::address::PeerAddress;
use anabranch::endpoint::{AttemptError, LostReason};
use anabranch::websocket::{
    Authentication, ChannelBinding, HandshakeError, ListenerConfig, ServerConfig, TlsClientTrust,
    TlsIdentity, TlsTrust, WebSocketListener,
};
use anabranch::{
    Certificate, Config, ConnectAnyError, ConnectError, Connection, Endpoint, EndpointConfig,
    Fingerprint, Identity, PeerId, Security,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const ECHO: &str = "/echo/1.0.0";

fn config() -> Config {
    let mut config = Config::default();
    config.protocols = vec![ECHO.to_owned()];
    config
}

async fn serve(connection: Connection) {
    while let Ok(Some(mut substream)) = connection.accept().await {
        let (reader, writer) = substream.split();
        let _ = tokio::io::copy(reader, writer).await;
        let _ = writer.finish().await;
    }
}

/// A peer that listens on both.
struct Server {
    endpoint: Endpoint,
    websocket: Arc<WebSocketListener>,
    webrtc_address: PeerAddress,
    websocket_address: PeerAddress,
}

impl Server {
    async fn new() -> Self {
        let identity = Identity::generate();
        let endpoint = Endpoint::builder()
            .identity(identity.clone())
            .config(config())
            .bind("127.0.0.1:0")
            .await
            .unwrap();
        let mut server = ServerConfig::new(Authentication::noise(identity));
        server.connection = Arc::new(config());
        let any = "127.0.0.1:0".parse().unwrap();
        let websocket = WebSocketListener::bind(any, server, ListenerConfig::default())
            .await
            .unwrap();
        let websocket = Arc::new(websocket);
        let webrtc_address = PeerAddress::WebRtcDirect(endpoint.addresses().remove(0));
        let websocket_address = PeerAddress::WebSocket(websocket.address());
        let (incoming, listener) = (endpoint.clone(), Arc::clone(&websocket));
        tokio::spawn(async move {
            while let Some(incoming) = incoming.accept().await {
                // The dialler cancels an attempt when another one was faster.
                if let Ok(connection) = incoming.accept().await {
                    tokio::spawn(serve(connection));
                }
            }
        });
        tokio::spawn(async move {
            while let Ok(incoming) = listener.accept().await {
                if let Ok(connection) = incoming.accept().await {
                    tokio::spawn(serve(connection));
                }
            }
        });
        Self {
            endpoint,
            websocket,
            webrtc_address,
            websocket_address,
        }
    }

    fn peer(&self) -> PeerId {
        self.websocket_address.peer_id().expect("it has Noise")
    }

    fn addresses(&self) -> [PeerAddress; 2] {
        // The WebSocket first: the kinds are ordered by the endpoint, not by the caller.
        [self.websocket_address.clone(), self.webrtc_address.clone()]
    }
}

fn dialler(limits: EndpointConfig) -> Endpoint {
    Endpoint::builder()
        .config(config())
        .endpoint_config(limits)
        .plaintext_websockets(true)
        .dial_only()
        .unwrap()
}

/// A webrtc-direct address of this peer at which nothing answers, as if UDP were blocked.
fn silent(peer: PeerId) -> (UdpSocket, PeerAddress) {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = socket.local_addr().unwrap().port();
    let hash = Certificate::generate().fingerprint().to_certhash();
    let address = format!("/ip4/127.0.0.1/udp/{port}/webrtc-direct/certhash/{hash}/p2p/{peer}");
    (socket, address.parse().unwrap())
}

/// The application, independent of the carrier.
async fn echo(connection: &Connection) {
    let mut substream = connection.open(ECHO).await.unwrap();
    substream.write_all(b"hello").await.unwrap();
    substream.shutdown().await.unwrap();
    let mut answer = Vec::new();
    substream.read_to_end(&mut answer).await.unwrap();
    assert_eq!(answer, b"hello");
}

async fn finish(dialler: Endpoint, server: Server) {
    dialler.close().await;
    assert!(dialler.is_idle());
    server.endpoint.close().await;
    let idle = async {
        while !server.websocket.is_idle() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(15), idle)
        .await
        .expect("its connections end with their peers");
}

#[tokio::test]
async fn webrtc_wins_where_udp_gets_through() {
    let server = Server::new().await;
    // However slow the machine is, the WebSocket must not be tried.
    let mut limits = EndpointConfig::default();
    limits.websocket_head_start = Duration::from_secs(5);
    let dialler = dialler(limits);
    let reached = dialler.connect_any(&server.addresses()).await.unwrap();
    assert_eq!(reached.address, server.webrtc_address);
    let [lost] = &reached.others[..] else {
        panic!("{:?}", reached.others);
    };
    assert_eq!(lost.address, server.websocket_address);
    assert!(matches!(lost.reason, LostReason::NotTried), "{lost}");
    echo(&reached.connection).await;
    assert_eq!(dialler.connections(), 1);
    finish(dialler, server).await;
}

#[tokio::test]
async fn the_websocket_wins_where_udp_is_blocked_and_the_application_is_the_same() {
    let server = Server::new().await;
    let dialler = dialler(EndpointConfig::default());
    let (_blocked, address) = silent(server.peer());
    let addresses = [address, server.websocket_address.clone()];
    let began = Instant::now();
    let reached = dialler.connect_any(&addresses).await.unwrap();
    println!("reached after {:?}", began.elapsed());
    assert_eq!(reached.address, server.websocket_address);
    assert!(matches!(reached.others[0].reason, LostReason::Slower));
    let expected = server.websocket_address.peer_id();
    assert!(expected.is_some());
    assert_eq!(reached.connection.peer_id(), expected);
    echo(&reached.connection).await;
    assert_eq!(dialler.connections(), 1);
    finish(dialler, server).await;
}

#[tokio::test]
async fn an_attempt_that_fails_at_once_delays_no_other() {
    let server = Server::new().await;
    let mut limits = EndpointConfig::default();
    limits.websocket_head_start = Duration::from_secs(60);
    let dialler = dialler(limits);
    // Without a certhash the peer can not be authenticated, so nothing is sent.
    let hopeless: PeerAddress = "/ip4/127.0.0.1/udp/9/webrtc-direct".parse().unwrap();
    let hopeless = hopeless.with_peer_id(server.peer());
    let addresses = [hopeless, server.websocket_address.clone()];
    let reached = dialler.connect_any(&addresses).await.unwrap();
    assert_eq!(reached.address, server.websocket_address);
    let LostReason::Failed(AttemptError::WebRtc(error)) = &reached.others[0].reason else {
        panic!("{}", reached.others[0]);
    };
    assert!(matches!(error, ConnectError::MissingCerthash), "{error}");
    finish(dialler, server).await;
}

#[tokio::test]
async fn a_port_where_nobody_listens_fails_at_once_with_the_error() {
    let server = Server::new().await;
    let mut limits = EndpointConfig::default();
    limits.websocket_head_start = Duration::from_secs(60);
    let dialler = dialler(limits);
    let (socket, dead) = silent(server.peer());
    drop(socket);
    let addresses = [dead.clone(), server.websocket_address.clone()];
    let began = Instant::now();
    let reached = dialler.connect_any(&addresses).await.unwrap();
    assert!(
        began.elapsed() < Duration::from_secs(2),
        "{:?}",
        began.elapsed()
    );
    assert_eq!(reached.address, server.websocket_address);
    let [lost] = &reached.others[..] else {
        panic!("{:?}", reached.others);
    };
    assert_eq!(lost.address, dead);
    let LostReason::Failed(AttemptError::WebRtc(error)) = &lost.reason else {
        panic!("{lost}");
    };
    let ConnectError::Unreachable { source, .. } = error else {
        panic!("{error}");
    };
    assert_eq!(source.kind(), std::io::ErrorKind::ConnectionRefused);
    finish(dialler, server).await;
}

#[tokio::test]
async fn when_nothing_works_each_address_has_its_reason() {
    let mut limits = EndpointConfig::default();
    limits.connect_timeout = Duration::from_millis(400);
    let dialler = dialler(limits);
    let peer = Identity::generate().peer_id();
    let (_blocked, silent) = silent(peer);
    // A port that has just been free.
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = closed.local_addr().unwrap().port();
    drop(closed);
    let refused: PeerAddress = format!("/ip4/127.0.0.1/tcp/{port}/ws/p2p/{peer}")
        .parse()
        .unwrap();
    let error = dialler.connect_any(&[silent, refused]).await.unwrap_err();
    let ConnectAnyError::AllFailed(lost) = &error else {
        panic!("{error}");
    };
    let failures: Vec<_> = lost.iter().map(|lost| &lost.reason).collect();
    assert_eq!(failures.len(), 2);
    let is_webrtc = |reason: &&&LostReason| {
        matches!(
            reason,
            LostReason::Failed(AttemptError::WebRtc(ConnectError::TimedOut { .. }))
        )
    };
    let is_websocket =
        |reason: &&&LostReason| matches!(reason, LostReason::Failed(AttemptError::WebSocket(_)));
    assert_eq!(failures.iter().filter(is_webrtc).count(), 1, "{error}");
    assert_eq!(failures.iter().filter(is_websocket).count(), 1, "{error}");
    dialler.close().await;
    assert!(dialler.is_idle());
}

#[tokio::test]
async fn another_peer_at_the_websocket_does_not_win() {
    let (server, other) = (Server::new().await, Server::new().await);
    let mut limits = EndpointConfig::default();
    limits.connect_timeout = Duration::from_secs(3);
    let dialler = dialler(limits);
    let PeerAddress::WebSocket(address) = other.websocket_address.clone() else {
        unreachable!("it is one");
    };
    let wrong = address.with_peer_id(server.websocket_address.peer_id().unwrap());
    let (_blocked, silent) = silent(server.peer());
    let addresses = [silent, PeerAddress::WebSocket(wrong)];
    let error = dialler.connect_any(&addresses).await.unwrap_err();
    assert!(matches!(error, ConnectAnyError::AllFailed(_)), "{error}");
    server.endpoint.close().await;
    finish(dialler, other).await;
}

/// An attacker who blocks UDP can not force a fallback to plaintext.
#[tokio::test]
async fn a_websocket_without_tls_is_dialled_only_if_that_was_chosen() {
    let server = Server::new().await;
    let cautious = Endpoint::builder().dial_only().unwrap();
    let addresses = [server.websocket_address.clone()];
    let error = cautious.connect_any(&addresses).await.unwrap_err();
    let ConnectAnyError::AllFailed(lost) = &error else {
        panic!("{error}");
    };
    let LostReason::Failed(reason) = &lost[0].reason else {
        panic!("{error}");
    };
    assert!(matches!(reason, AttemptError::Plaintext), "{error}");
    finish(cautious, server).await;
}

/// The strongest setting: the listener terminates TLS, and Noise is bound to it.
#[tokio::test]
async fn a_wss_address_is_reached_with_noise_bound_to_its_tls() {
    let identity = Identity::generate();
    let certificate = Certificate::generate();
    let authentication = Authentication::Noise {
        identity,
        binding: ChannelBinding::TlsExporter,
    };
    let mut settings = ServerConfig::new(authentication);
    settings.connection = Arc::new(config());
    settings.tls = Some(TlsIdentity::from_certificate(&certificate).unwrap());
    let any = "127.0.0.1:0".parse().unwrap();
    let listener = WebSocketListener::bind(any, settings, ListenerConfig::default())
        .await
        .unwrap();
    let address = PeerAddress::WebSocket(listener.address());
    assert!(address.to_string().contains("/wss"), "{address}");
    let dialler = Endpoint::builder()
        .config(config())
        .tls_trust(TlsTrust::Certificates(vec![certificate.fingerprint()]))
        .websocket_binding(ChannelBinding::TlsExporter)
        .dial_only()
        .unwrap();
    let addresses = [address.clone()];
    let (reached, accepted) = tokio::join!(dialler.connect_any(&addresses), async {
        listener.accept().await.unwrap().accept().await.unwrap()
    });
    let reached = reached.unwrap();
    assert_eq!(reached.connection.peer_id(), address.peer_id());
    assert!(address.peer_id().is_some());
    tokio::spawn(serve(accepted));
    echo(&reached.connection).await;
    dialler.close().await;
    assert!(dialler.is_idle());
}

#[tokio::test]
async fn a_listener_that_requires_a_client_certificate_is_reached_with_that_of_the_endpoint() {
    let certificate = Certificate::generate();
    let own = Certificate::generate();
    let trust = TlsClientTrust::Certificates(vec![own.fingerprint()]);
    let tls = TlsIdentity::from_certificate(&certificate).unwrap();
    let mut settings = ServerConfig::new(Authentication::noise(Identity::generate()));
    settings.connection = Arc::new(config());
    settings.tls = Some(tls.with_client_trust(&trust).unwrap());
    let any = "127.0.0.1:0".parse().unwrap();
    let listener = WebSocketListener::bind(any, settings, ListenerConfig::default())
        .await
        .unwrap();
    let addresses = [PeerAddress::WebSocket(listener.address())];
    let accept = async || listener.accept().await.unwrap().accept().await;
    let dialler = |own: Option<TlsIdentity>| {
        let builder = Endpoint::builder().config(config());
        let builder = builder.tls_trust(TlsTrust::Certificates(vec![certificate.fingerprint()]));
        match own {
            Some(own) => builder.client_certificate(own),
            None => builder,
        }
        .dial_only()
        .unwrap()
    };

    let without = dialler(None);
    let (reached, accepted) = tokio::join!(without.connect_any(&addresses), accept());
    let ConnectAnyError::AllFailed(lost) = reached.unwrap_err() else {
        panic!("it was dialled");
    };
    let LostReason::Failed(AttemptError::WebSocket(error)) = &lost[0].reason else {
        panic!("{lost:?}");
    };
    for error in [error, &accepted.unwrap_err()] {
        let is_missing = matches!(error, HandshakeError::ClientCertificateMissing);
        assert!(is_missing, "{error:?}");
    }
    let with = dialler(Some(TlsIdentity::from_certificate(&own).unwrap()));
    let (reached, accepted) = tokio::join!(with.connect_any(&addresses), accept());
    let (reached, accepted) = (reached.unwrap(), accepted.unwrap());
    let seen = |connection: &Connection| connection.peer_certificate().map(Fingerprint::of);
    assert_eq!(seen(&accepted), Some(own.fingerprint()));
    assert_eq!(seen(&reached.connection), Some(certificate.fingerprint()));
    tokio::spawn(serve(accepted));
    echo(&reached.connection).await;
    for endpoint in [without, with] {
        endpoint.close().await;
        assert!(endpoint.is_idle());
    }
}

#[tokio::test]
async fn too_many_addresses_and_none_are_refused() {
    let dialler = dialler(EndpointConfig::default());
    let error = dialler.connect_any(&[]).await.unwrap_err();
    assert!(matches!(error, ConnectAnyError::NoAddresses));
    let (_socket, address) = silent(Identity::generate().peer_id());
    let error = dialler.connect_any(&vec![address; 17]).await.unwrap_err();
    assert!(matches!(
        error,
        ConnectAnyError::TooManyAddresses { given: 17 }
    ));
    assert!(dialler.is_idle());
}

#[tokio::test]
async fn a_dropped_call_and_a_closed_endpoint_leave_no_attempt() {
    let dialler = dialler(EndpointConfig::default());
    let (_blocked, address) = silent(Identity::generate().peer_id());
    let addresses = [address];
    let dropped = tokio::time::timeout(Duration::from_millis(50), dialler.connect_any(&addresses));
    dropped.await.unwrap_err();
    assert!(dialler.is_idle());
    let (result, ()) = tokio::join!(dialler.connect_any(&addresses), async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        dialler.close().await;
    });
    let error = result.unwrap_err();
    assert!(matches!(error, ConnectAnyError::EndpointClosed), "{error}");
    assert!(dialler.is_idle());
}

/// The same address without the peer id.
fn unnamed(address: &PeerAddress) -> PeerAddress {
    let text = address.to_string();
    let (place, _) = text.split_once("/p2p/").expect("it names one");
    place.parse().unwrap()
}

/// The address of another peer in an address book must not win by being faster.
#[tokio::test]
async fn addresses_of_two_peers_are_refused_before_anything_is_sent() {
    let (server, other) = (Server::new().await, Server::new().await);
    let dialler = dialler(EndpointConfig::default());
    let mixed = [
        server.websocket_address.clone(),
        other.webrtc_address.clone(),
    ];
    let expected = server.peer();
    for error in [
        dialler.connect_any(&mixed).await.unwrap_err(),
        dialler.connect_peer(expected, &mixed).await.unwrap_err(),
        // Also with an address without a peer id before them.
        dialler
            .connect_any(&[&[unnamed(&mixed[0])][..], &mixed].concat())
            .await
            .unwrap_err(),
        dialler
            .connect_peer(expected, &mixed[1..])
            .await
            .unwrap_err(),
    ] {
        let ConnectAnyError::AnotherPeer {
            address,
            expected: wanted,
        } = &error
        else {
            panic!("{error}");
        };
        assert_eq!((&**address, *wanted), (&other.webrtc_address, expected));
    }
    assert!(dialler.is_idle());
    other.endpoint.close().await;
    finish(dialler, server).await;
}

#[tokio::test]
async fn an_address_without_a_peer_needs_one_that_is_named() {
    let (server, other) = (Server::new().await, Server::new().await);
    let dialler = dialler(EndpointConfig::default());
    let [named, hidden] = server.addresses().map(|address| {
        let unnamed = unnamed(&address);
        (address, unnamed)
    });
    for addresses in [
        vec![hidden.1.clone()],
        vec![named.0, hidden.1.clone()],
        vec![named.1.clone(), hidden.1.clone()],
    ] {
        let error = dialler.connect_any(&addresses).await.unwrap_err();
        assert!(
            matches!(&error, ConnectAnyError::MissingPeer { .. }),
            "{error}"
        );
        let reached = dialler.connect_peer(server.peer(), &addresses).await;
        let reached = reached.unwrap();
        assert_eq!(reached.connection.peer_id(), Some(server.peer()));
        assert_eq!(reached.address.peer_id(), Some(server.peer()));
        echo(&reached.connection).await;
        reached.connection.close().await;
    }
    // The answering peer has to be the expected one.
    let places = [
        unnamed(&other.webrtc_address),
        unnamed(&other.websocket_address),
    ];
    let error = dialler
        .connect_peer(server.peer(), &places)
        .await
        .unwrap_err();
    let ConnectAnyError::AllFailed(lost) = &error else {
        panic!("{error}");
    };
    assert_eq!(lost.len(), 2, "{error}");
    other.endpoint.close().await;
    finish(dialler, server).await;
}

/// Without Noise there are certificates, but no peer ids.
#[tokio::test]
async fn an_endpoint_without_identities_takes_addresses_as_they_are_and_promises_no_peer() {
    let build = || {
        Endpoint::builder()
            .config(config())
            .security(Security::CertificateHash)
    };
    let listener = build().bind("127.0.0.1:0").await.unwrap();
    let dialler = build().dial_only().unwrap();
    let address = PeerAddress::WebRtcDirect(listener.addresses().remove(0));
    assert_eq!(address.peer_id(), None);
    let addresses = [address];
    let (reached, accepted) = tokio::join!(dialler.connect_any(&addresses), async {
        listener.accept().await.unwrap().accept().await.unwrap()
    });
    tokio::spawn(serve(accepted));
    echo(&reached.unwrap().connection).await;
    let peer = Identity::generate().peer_id();
    let error = dialler.connect_peer(peer, &addresses).await.unwrap_err();
    assert!(
        matches!(error, ConnectAnyError::NoIdentities { expected } if expected == peer),
        "{error}"
    );
    dialler.close().await;
    listener.close().await;
    assert!(dialler.is_idle() && listener.is_idle());
}
