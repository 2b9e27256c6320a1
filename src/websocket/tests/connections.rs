//! Whole connections with their handshakes.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
use tokio::time::{Instant, timeout};

use crate::address::WebSocketAddress;
use crate::certificate::{Certificate, Fingerprint};
use crate::connection::{Config, Connection, ConnectionError, Negotiation, OpenError};
use crate::identity::Identity;
use crate::substream::{FinishError, Finished};
use crate::websocket::*;

const LIMIT: Duration = Duration::from_secs(60);

pub(super) fn plain() -> Arc<Config> {
    let mut config = Config::default();
    config.negotiation = Negotiation::None;
    Arc::new(config)
}

pub(super) fn client(authentication: Authentication) -> ClientConfig {
    let mut config = ClientConfig::new(authentication);
    config.connection = plain();
    config
}

pub(super) fn server(authentication: Authentication) -> ServerConfig {
    let mut config = ServerConfig::new(authentication);
    config.connection = plain();
    config
}

fn somewhere() -> WebSocketAddress {
    "/dns4/example.org/tcp/80/ws".parse().unwrap()
}

/// Connects both ends in memory.
pub(super) async fn connected(
    client: &ClientConfig,
    server: &ServerConfig,
) -> (
    Result<Connection, HandshakeError>,
    Result<Connection, HandshakeError>,
) {
    let (a, b) = duplex(64 * 1024);
    let address = somewhere();
    tokio::join!(connect_over(a, &address, client), accept(b, server))
}

pub(super) async fn pair() -> (Connection, Connection) {
    let (a, b) = connected(
        &client(Authentication::DangerNone),
        &server(Authentication::DangerNone),
    )
    .await;
    (a.unwrap(), b.unwrap())
}

/// Echoes every substream.
fn serve(connection: Connection) {
    tokio::spawn(async move {
        while let Ok(Some(substream)) = connection.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = substream.into_split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
                let _ = write.finish().await;
            });
        }
    });
}

async fn echo(connection: &Connection, size: usize) {
    let data: Vec<u8> = (0..size).map(|i| (i % 251) as u8).collect();
    let substream = connection.open("").await.unwrap();
    let (mut read, mut write) = substream.into_split();
    let sending = async {
        write.write_all(&data).await.unwrap();
        write.finish().await.unwrap()
    };
    let receiving = async {
        let mut got = Vec::new();
        read.read_to_end(&mut got).await.unwrap();
        got
    };
    let (outcome, got) = timeout(LIMIT, async { tokio::join!(sending, receiving) })
        .await
        .expect("an echo");
    assert_eq!(outcome, Finished::Acked);
    assert!(got == data);
}

async fn closed(connections: [Connection; 2]) {
    let [a, b] = connections;
    timeout(LIMIT, a.close()).await.expect("a close");
    assert_eq!(
        timeout(LIMIT, b.closed()).await.unwrap(),
        ConnectionError::ClosedByPeer
    );
    assert!(a.is_idle() && b.is_idle());
    assert_eq!(a.stats().substreams + b.stats().substreams, 0);
}

#[tokio::test(start_paused = true)]
async fn an_echo_over_a_plain_websocket() {
    let (a, b) = pair().await;
    serve(b.clone());
    echo(&a, 300_000).await;
    closed([a, b]).await;
}

#[tokio::test(start_paused = true)]
async fn noise_proves_both_identities() {
    let identities = [Identity::generate(), Identity::generate()];
    let [a, b] = identities.clone().map(Authentication::noise);
    let (a, b) = connected(&client(a), &server(b)).await;
    let (a, b) = (a.unwrap(), b.unwrap());
    assert_eq!(a.peer_id(), Some(identities[1].peer_id()));
    assert_eq!(b.peer_id(), Some(identities[0].peer_id()));
    serve(b.clone());
    echo(&a, 10_000).await;
    closed([a, b]).await;
}

#[tokio::test(start_paused = true)]
async fn another_identity_than_that_in_the_address_is_refused() {
    let [own, there, wanted] = [(); 3].map(|()| Identity::generate());
    let (a, b) = duplex(4096);
    let address = somewhere().with_peer_id(wanted.peer_id());
    let client = client(Authentication::noise(own));
    let server = server(Authentication::noise(there.clone()));
    let (a, b) = tokio::join!(connect_over(a, &address, &client), accept(b, &server));
    match a {
        Err(HandshakeError::UnexpectedPeer { expected, got }) => {
            assert_eq!((expected, got), (wanted.peer_id(), there.peer_id()));
        }
        other => panic!("{other:?}"),
    }
    // The server has sent everything, and finds that the client is gone.
    let b = b.unwrap();
    assert!(!timeout(LIMIT, b.closed()).await.unwrap().is_orderly());
}

#[tokio::test(start_paused = true)]
async fn a_mismatch_of_authentication_is_an_error_of_the_upgrade_on_both_sides() {
    let noise = Authentication::noise(Identity::generate());
    for (ours, theirs) in [
        (noise.clone(), Authentication::Tls),
        (Authentication::DangerNone, noise),
    ] {
        let offered = vec![ours.subprotocol().to_owned()];
        let (a, b) = connected(&client(ours), &server(theirs)).await;
        assert_eq!(a.unwrap_err().status(), Some(400));
        match b {
            Err(HandshakeError::Upgrade(error)) => assert_eq!(
                error,
                UpgradeError::SubprotocolMismatch {
                    offered,
                    returned: None
                }
            ),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_can_not_be_proven_is_refused_before_anything_is_sent() {
    let (a, _b) = duplex(4096);
    let address = somewhere();
    let error = connect_over(a, &address, &client(Authentication::Tls)).await;
    assert!(matches!(error, Err(HandshakeError::PlaintextServer)));
    let (a, _b) = duplex(4096);
    let address = address.with_peer_id(Identity::generate().peer_id());
    let error = connect_over(a, &address, &client(Authentication::DangerNone)).await;
    assert!(matches!(error, Err(HandshakeError::PeerNeedsNoise(_))));
    let mut bound = client(Authentication::Noise {
        identity: Identity::generate(),
        binding: ChannelBinding::TlsExporter,
    });
    bound.websocket.handshake_timeout = Duration::from_secs(1);
    let server = server(Authentication::noise(Identity::generate()));
    let (a, b) = connected(&bound, &server).await;
    assert!(matches!(a, Err(HandshakeError::NoTlsToBind)), "{a:?}");
    assert!(b.is_err());
}

#[tokio::test(start_paused = true)]
async fn o14_one_deadline_covers_the_whole_handshake() {
    let begin = Instant::now();
    // A server that accepts and sends nothing.
    let (a, _b) = duplex(4096);
    let config = client(Authentication::DangerNone);
    let error = connect_over(a, &somewhere(), &config).await.unwrap_err();
    assert!(matches!(
        error,
        HandshakeError::TimedOut {
            phase: HandshakePhase::Upgrade,
            after
        } if after == Duration::from_secs(10)
    ));
    assert_eq!(begin.elapsed(), Duration::from_secs(10));
    // A server that upgrades and then sends nothing.
    let (a, b) = duplex(4096);
    let plain = server(Authentication::DangerNone);
    let mut config = client(Authentication::noise(Identity::generate()));
    config.websocket.handshake_timeout = Duration::from_secs(3);
    let silent = async {
        use tokio_tungstenite::tungstenite::http;
        let callback = |_: &http::Request<()>, mut response: http::Response<()>| {
            let value = http::HeaderValue::from_static(SUBPROTOCOL_NOISE);
            let name = http::header::SEC_WEBSOCKET_PROTOCOL;
            response.headers_mut().insert(name, value);
            Ok(response)
        };
        let socket = tokio_tungstenite::accept_hdr_async(b, callback).await;
        std::future::pending::<()>().await;
        drop((socket, plain));
    };
    let address = somewhere();
    let begin = Instant::now();
    let error = tokio::select! {
        result = connect_over(a, &address, &config) => result.unwrap_err(),
        () = silent => unreachable!(),
    };
    assert!(matches!(
        error,
        HandshakeError::TimedOut {
            phase: HandshakePhase::Noise,
            ..
        }
    ));
    assert_eq!(begin.elapsed(), Duration::from_secs(3));
    // A client that sends nothing.
    let (_a, b) = duplex(4096);
    let begin = Instant::now();
    let error = accept(b, &server(Authentication::DangerNone)).await;
    assert!(matches!(error, Err(HandshakeError::TimedOut { .. })));
    assert_eq!(begin.elapsed(), Duration::from_secs(10));
}

#[tokio::test(start_paused = true)]
async fn o14_o15_answers_of_http_servers_are_checked() {
    // The accept value of the key replaces `{}`.
    let cases: [(&str, fn(&HandshakeError) -> bool); 7] = [
        (
            "HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n",
            |error| error.status() == Some(403),
        ),
        ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", |error| {
            error.status() == Some(200)
        }),
        (
            "HTTP/1.1 101 S\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {}\r\n\
            Sec-WebSocket-Protocol: anabranch.v1\r\n\r\n",
            |error| matches!(error, HandshakeError::Upgrade(UpgradeError::MissingUpgrade)),
        ),
        (
            "HTTP/1.1 101 S\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: {}\r\n\
            Sec-WebSocket-Protocol: anabranch.v1\r\n\r\n",
            |error| {
                matches!(
                    error,
                    HandshakeError::Upgrade(UpgradeError::MissingConnection)
                )
            },
        ),
        (
            "HTTP/1.1 101 S\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
            Sec-WebSocket-Accept: x\r\nSec-WebSocket-Protocol: anabranch.v1\r\n\r\n",
            |error| matches!(error, HandshakeError::Upgrade(UpgradeError::InvalidAccept)),
        ),
        (
            "HTTP/1.1 101 S\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
            Sec-WebSocket-Accept: {}\r\n\r\n",
            |error| {
                matches!(
                    error,
                    HandshakeError::Upgrade(UpgradeError::SubprotocolMismatch {
                        returned: None,
                        ..
                    })
                )
            },
        ),
        (
            "HTTP/1.1 101 S\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
            Sec-WebSocket-Accept: {}\r\nSec-WebSocket-Protocol: anabranch.v1\r\n\
            Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n",
            |error| {
                let HandshakeError::Upgrade(UpgradeError::UnsupportedExtension(name)) = error
                else {
                    return false;
                };
                name == "permessage-deflate"
            },
        ),
    ];
    for (answer, expected) in cases {
        let (a, mut b) = duplex(4096);
        let serving = async move {
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                request.push(b.read_u8().await.unwrap());
            }
            let request = String::from_utf8(request).unwrap();
            let key = request
                .lines()
                .find_map(|line| line.strip_prefix("Sec-WebSocket-Key: "))
                .unwrap();
            let accept =
                tokio_tungstenite::tungstenite::handshake::derive_accept_key(key.as_bytes());
            b.write_all(answer.replace("{}", &accept).as_bytes())
                .await
                .unwrap();
            b
        };
        let address = somewhere();
        let config = client(Authentication::DangerNone);
        let (result, _b) = tokio::join!(connect_over(a, &address, &config), serving);
        let error = result.unwrap_err();
        assert!(expected(&error), "{answer}: {error}");
    }
}

async fn tls_listener(identity: TlsIdentity, authentication: Authentication) -> WebSocketListener {
    let mut config = server(authentication);
    config.tls = Some(identity);
    let any = "127.0.0.1:0".parse().unwrap();
    WebSocketListener::bind(any, config, ListenerConfig::default())
        .await
        .unwrap()
}

async fn both(
    listener: &WebSocketListener,
    address: &WebSocketAddress,
    config: &ClientConfig,
) -> (
    Result<Connection, HandshakeError>,
    Result<Connection, HandshakeError>,
) {
    let accepting = async { listener.accept().await.unwrap().accept().await };
    timeout(LIMIT, async {
        tokio::join!(connect(address, config), accepting)
    })
    .await
    .expect("both sides come to an end")
}

#[tokio::test]
async fn wss_with_a_certificate_that_is_known_by_its_hash() {
    let certificate = Certificate::generate();
    let identity = TlsIdentity::from_certificate(&certificate).unwrap();
    let listener = tls_listener(identity, Authentication::Tls).await;
    let mut config = client(Authentication::Tls);
    config.trust = TlsTrust::Certificates(vec![certificate.fingerprint()]);
    let (a, b) = both(&listener, &listener.address(), &config).await;
    let (a, b) = (a.unwrap(), b.unwrap());
    serve(b.clone());
    echo(&a, 300_000).await;
    closed([a, b]).await;
    config.trust = TlsTrust::Certificates(vec![Fingerprint::from_bytes([0; 32])]);
    let (a, b) = both(&listener, &listener.address(), &config).await;
    assert!(matches!(a, Err(HandshakeError::Tls(_))), "{a:?}");
    assert!(matches!(b, Err(HandshakeError::Tls(_))), "{b:?}");
    config.trust = TlsTrust::WebPki;
    let (a, _) = both(&listener, &listener.address(), &config).await;
    assert!(matches!(a, Err(HandshakeError::Tls(_))), "{a:?}");
    idle(&listener).await;
}

#[tokio::test]
async fn wss_with_a_root_of_ones_own_and_noise_that_is_bound_to_it() {
    let ca_key = rcgen::KeyPair::generate().unwrap();
    let mut ca = rcgen::CertificateParams::new(Vec::new()).unwrap();
    ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca_cert = ca.self_signed(&ca_key).unwrap();
    let issuer = rcgen::Issuer::new(ca, ca_key);
    let key = rcgen::KeyPair::generate().unwrap();
    let leaf = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    let leaf = leaf.signed_by(&key, &issuer).unwrap();
    let identity = TlsIdentity::from_pem(&leaf.pem(), &key.serialize_pem()).unwrap();
    let noise = |binding| Authentication::Noise {
        identity: Identity::generate(),
        binding,
    };
    let listener = tls_listener(identity, noise(ChannelBinding::TlsExporter)).await;
    let mut config = client(noise(ChannelBinding::TlsExporter));
    config.trust = TlsTrust::Roots(vec![ca_cert.der().to_vec()]);
    let (a, b) = both(&listener, &listener.address(), &config).await;
    let (a, b) = (a.unwrap(), b.unwrap());
    assert!(a.peer_id().is_some() && b.peer_id().is_some());
    serve(b.clone());
    echo(&a, 1000).await;
    closed([a, b]).await;
    // With different bindings the handshake fails, as with a man in the middle.
    config.authentication = noise(ChannelBinding::None);
    let (a, b) = both(&listener, &listener.address(), &config).await;
    assert!(a.is_err(), "{a:?}");
    assert!(b.is_err(), "{b:?}");
    idle(&listener).await;
}

pub(super) async fn idle(listener: &WebSocketListener) {
    let idle = async {
        while !listener.is_idle() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(LIMIT, idle).await.expect("nothing is left");
}

#[tokio::test]
async fn a_listener_holds_its_limits() {
    let mut limits = ListenerConfig::default();
    limits.max_connections = 2;
    let config = server(Authentication::DangerNone);
    let any = "127.0.0.1:0".parse().unwrap();
    let listener = WebSocketListener::bind(any, config, limits).await.unwrap();
    let address = listener.address();
    let config = client(Authentication::DangerNone);
    let mut open = Vec::new();
    for _ in 0..2 {
        let (a, b) = both(&listener, &address, &config).await;
        open.push((a.unwrap(), b.unwrap()));
    }
    // A further connection is closed at once, and the listener waits for the next.
    let refused = tokio::select! {
        result = connect(&address, &config) => result,
        incoming = listener.accept() => panic!("{incoming:?}"),
    };
    assert_eq!(refused.unwrap_err().status(), Some(503));
    let (a, b) = open.pop().unwrap();
    a.close().await;
    b.closed().await;
    drop((a, b));
    // Its place is free when its driver has ended, a moment later.
    let (a, b) = loop {
        let dialling = connect(&address, &config);
        tokio::pin!(dialling);
        tokio::select! {
            result = &mut dialling => { result.unwrap_err(); }
            incoming = listener.accept() => {
                let (a, b) = tokio::join!(dialling, incoming.unwrap().accept());
                break (a.unwrap(), b.unwrap());
            }
        }
    };
    closed([a, b]).await;
    for (a, b) in open {
        closed([a, b]).await;
    }
    idle(&listener).await;
}

#[tokio::test]
async fn a_listener_limits_handshakes_and_their_rate() {
    let config = server(Authentication::DangerNone);
    let any = "127.0.0.1:0".parse().unwrap();
    let mut limits = ListenerConfig::default();
    limits.limit_loopback = true;
    limits.max_handshakes_per_prefix = 2;
    let listener = WebSocketListener::bind(any, config.clone(), limits)
        .await
        .unwrap();
    let mut sockets = Vec::new();
    let mut waiting = Vec::new();
    for _ in 0..3 {
        sockets.push(
            tokio::net::TcpStream::connect(listener.local_addr())
                .await
                .unwrap(),
        );
    }
    for _ in 0..2 {
        waiting.push(listener.accept().await.unwrap());
    }
    // The third is refused.
    refused(&listener, &mut sockets[2]).await;
    drop(waiting);
    assert!(listener.is_idle());
    let mut limits = ListenerConfig::default();
    limits.limit_loopback = true;
    limits.connections = crate::RateLimit::new(Duration::from_secs(3600), 1);
    let listener = WebSocketListener::bind(any, config, limits).await.unwrap();
    let _first = tokio::net::TcpStream::connect(listener.local_addr())
        .await
        .unwrap();
    listener.accept().await.unwrap().refuse();
    let mut second = tokio::net::TcpStream::connect(listener.local_addr())
        .await
        .unwrap();
    refused(&listener, &mut second).await;
    assert!(listener.is_idle());
    // Connections that linger to read the response expire.
    assert_eq!(listener.refused(), 2);
    let gone = async {
        while listener.refused() > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::select! {
        incoming = listener.accept() => panic!("{incoming:?}"),
        result = timeout(LIMIT, gone) => result.unwrap(),
    }
}

/// Waits for the response to a client beyond the limit, while the listener waits for others.
async fn refused(listener: &WebSocketListener, socket: &mut tokio::net::TcpStream) {
    let mut answer = String::new();
    tokio::select! {
        incoming = listener.accept() => panic!("{incoming:?}"),
        result = socket.read_to_string(&mut answer) => { result.unwrap(); }
    }
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    assert!(answer.contains("retry-after: 1\r\n"), "{answer}");
}

#[tokio::test]
async fn nobody_listens() {
    let socket = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = WebSocketAddress::new(socket.local_addr().unwrap(), false);
    drop(socket);
    let error = connect(&address, &client(Authentication::DangerNone))
        .await
        .unwrap_err();
    assert!(matches!(error, HandshakeError::Connect { .. }));
    let kind = std::io::Error::from(error).kind();
    assert_eq!(kind, std::io::ErrorKind::ConnectionRefused);
}

#[tokio::test(start_paused = true)]
async fn o8_j15_a_close_drains_and_tells_code_and_reason() {
    let (a, b) = pair().await;
    let mut to_b = a.open("").await.unwrap();
    let mut from_a = b.accept().await.unwrap().unwrap();
    // More than the initial window: the close has to wait for the reader.
    const SIZE: usize = 64 * 1024 + 50_000;
    to_b.write_all(&vec![7; SIZE]).await.unwrap();
    let closing = tokio::spawn({
        let a = a.clone();
        async move { a.close_with(70_000, "update").await }
    });
    tokio::time::sleep(Duration::from_secs(1)).await;
    // Neither side opens substreams any more, and existing ones continue.
    let refused = b.open("").await;
    assert!(
        matches!(
            refused,
            Err(OpenError::Channel(
                crate::carrier::OpenChannelError::GoingAway
            ))
        ),
        "{refused:?}"
    );
    assert!(a.open("").await.is_err());
    assert_eq!((a.close_reason(), b.close_reason()), (None, None));
    // What was written arrives, and is not reported as complete.
    let mut got = Vec::new();
    let error = from_a.read_to_end(&mut got).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    assert_eq!(got.len(), SIZE);
    drop(from_a);
    timeout(LIMIT, closing).await.unwrap().unwrap();
    let cause = timeout(LIMIT, b.closed()).await.unwrap();
    let reported = ConnectionError::ClosedByPeerWith {
        code: 70_000,
        reason: "update".to_owned(),
    };
    assert_eq!(cause, reported);
    assert!(cause.is_orderly());
    drop(to_b);
    assert!(a.is_idle() && b.is_idle());
}

/// FIN in the local socket is no confirmation by the peer.
#[tokio::test(start_paused = true)]
async fn a_shutdown_toward_a_silent_peer_fails() {
    let config = client(Authentication::DangerNone);
    let (a, _silent) = to_a_silent_peer(&config).await;
    let mut substream = a.open("").await.unwrap();
    substream.write_all(b"into the void").await.unwrap();
    let begin = Instant::now();
    let error = substream.shutdown().await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::TimedOut, "{error}");
    assert_eq!(begin.elapsed().as_secs(), 10, "the wait for FIN_ACK");
    assert_eq!(substream.finish().await, Err(FinishError::TimedOut));
}

/// A client whose server upgrades, and then neither reads nor writes.
async fn to_a_silent_peer(config: &ClientConfig) -> (Connection, impl Sized) {
    let (a, b) = duplex(64 * 1024);
    let silent = async {
        use tokio_tungstenite::tungstenite::http;
        let callback = |_: &http::Request<()>, mut response: http::Response<()>| {
            let value = http::HeaderValue::from_static(SUBPROTOCOL);
            let name = http::header::SEC_WEBSOCKET_PROTOCOL;
            response.headers_mut().insert(name, value);
            Ok(response)
        };
        tokio_tungstenite::accept_hdr_async(b, callback)
            .await
            .unwrap()
    };
    let address = somewhere();
    let (a, silent) = tokio::join!(connect_over(a, &address, config), silent);
    (a.unwrap(), silent)
}

#[tokio::test(start_paused = true)]
async fn o10_r4_a_silent_peer_is_pinged_and_then_given_up_with_a_cause() {
    let (a, b) = duplex(64 * 1024);
    let config = client(Authentication::DangerNone);
    let address = somewhere();
    let server = server(Authentication::DangerNone);
    let (a, b) = tokio::join!(connect_over(a, &address, &config), accept(b, &server));
    let (a, b) = (a.unwrap(), b.unwrap());
    // Both stay alive while the other answers.
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!((a.close_reason(), b.close_reason()), (None, None));
    closed([a, b]).await;

    let (a, _silent) = to_a_silent_peer(&config).await;
    let begin = Instant::now();
    let mut substream = a.open("").await.unwrap();
    let error = substream.read_u8().await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::UnexpectedEof);
    assert!(error.to_string().contains("does not respond"), "{error}");
    assert_eq!(a.closed().await, ConnectionError::TimedOut);
    assert_eq!(begin.elapsed().as_secs(), 30);
}
