//! Endpoints over real UDP on loopback: accepted and refused peers, and that nothing is left
//! behind.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anabranch::endpoint::Phase;
use anabranch::{
    Address, Certificate, Config, ConnectError, ConnectionError, Endpoint, EndpointBuilder,
    EndpointConfig, Fingerprint, Identity, Negotiation, Security, WebRtcDirectVersion,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use echoing::{echo, echo_all};

#[path = "common/echoing.rs"]
mod echoing;

const ECHO: &str = "/echo/1.0.0";

/// A listener that echoes until it is closed.
async fn echo_server(builder: EndpointBuilder, bind: &str) -> Endpoint {
    let endpoint = builder.protocol(ECHO).bind(bind).await.expect("a socket");
    let accepting = endpoint.clone();
    tokio::spawn(async move {
        while let Some(incoming) = accepting.accept().await {
            tokio::spawn(async move {
                // Refused diallers fail here.
                if let Ok(connection) = incoming.accept().await {
                    echo_all(connection).await;
                }
            });
        }
    });
    endpoint
}

fn dialler() -> Endpoint {
    Endpoint::builder().dial_only().expect("defaults work")
}

/// Closes both and asserts that nothing is left.
async fn close(listener: Endpoint, dialler: Endpoint) {
    let limit = Duration::from_secs(5);
    timeout(limit, dialler.close())
        .await
        .expect("the dialler closes");
    timeout(limit, listener.close())
        .await
        .expect("the listener closes");
    assert!(dialler.is_idle() && listener.is_idle());
}

#[tokio::test]
async fn v1_and_v2_connect_to_one_port_at_the_same_time() {
    let listener = echo_server(Endpoint::builder(), "127.0.0.1:0").await;
    let address = listener.addresses().remove(0);
    let dialler = dialler();
    let (v1, v2) = tokio::join!(
        dialler.connect_with(&address, WebRtcDirectVersion::V1),
        dialler.connect_with(&address, WebRtcDirectVersion::V2)
    );
    for connection in [v1.expect("v1"), v2.expect("v2")] {
        assert_eq!(connection.peer_id(), Some(listener.peer_id()));
        echo(&connection, ECHO, b"hello").await;
        connection.close().await;
        assert_eq!(
            connection.close_reason(),
            Some(ConnectionError::ClosedLocally)
        );
    }
    close(listener, dialler).await;
}

#[tokio::test]
async fn ipv6_and_wildcards_are_listened_on() {
    for bind in ["[::1]:0", "[::]:0", "0.0.0.0:0"] {
        let listener = echo_server(Endpoint::builder(), bind).await;
        let dialler = dialler();
        for address in listener.addresses() {
            assert!(!address.socket_addr().ip().is_unspecified(), "{address}");
            let connection = dialler.connect(&address).await.expect("a listener");
            echo(&connection, ECHO, b"hello").await;
        }
        close(listener, dialler).await;
    }
}

#[tokio::test]
async fn a_wildcard_answers_from_the_address_that_was_asked() {
    let listener = echo_server(Endpoint::builder(), "0.0.0.0:0").await;
    let port = listener.addresses()[0].socket_addr().port();
    let dialler = dialler();
    // All of 127/8 is this machine; ICE accepts an answer only from the address that it checked.
    let address = Address::new(([127, 0, 0, 7], port).into())
        .with_certhash(listener.certificate().fingerprint());
    let connection = dialler.connect(&address).await.expect("a listener");
    echo(&connection, ECHO, b"hello").await;
    close(listener, dialler).await;
}

#[tokio::test]
async fn the_address_of_an_identity_survives_a_restart() {
    let identity = Identity::from_ed25519_seed([7; 32]);
    let start = || {
        echo_server(
            Endpoint::builder().identity(identity.clone()),
            "127.0.0.1:0",
        )
    };
    let (first, second) = (start().await, start().await);
    let [before, after] = [&first, &second].map(|e| e.addresses().remove(0));
    assert_eq!(before.certhash(), after.certhash());
    assert_eq!(before.peer_id(), after.peer_id());
}

#[tokio::test]
async fn a_dial_to_nobody_fails_in_time_and_says_that_ice_found_no_path() {
    let silent = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    let mut config = EndpointConfig::default();
    config.connect_timeout = Duration::from_millis(300);
    let dialler = Endpoint::builder()
        .endpoint_config(config)
        .dial_only()
        .expect("defaults");
    let address = Address::new(silent.local_addr().expect("an address"))
        .with_certhash(Certificate::generate().fingerprint());
    let error = dialler.connect(&address).await.expect_err("nobody answers");
    assert!(
        matches!(
            error,
            ConnectError::TimedOut {
                phase: Phase::Ice,
                ..
            }
        ),
        "{error}"
    );
    assert!(dialler.is_idle());
}

/// A loopback address at whose port nobody listens, except this test later.
fn dead(host: &str, fingerprint: Fingerprint) -> Address {
    let socket = UdpSocket::bind((host, 0)).expect("a socket");
    Address::new(socket.local_addr().expect("an address")).with_certhash(fingerprint)
}

#[tokio::test]
async fn a_dial_to_a_port_where_nobody_listens_ends_with_what_the_system_says() {
    for host in ["127.0.0.1", "::1"] {
        let address = dead(host, Certificate::generate().fingerprint());
        let dialler = dialler();
        let began = Instant::now();
        let error = dialler.connect(&address).await.expect_err("nobody listens");
        let took = began.elapsed();
        println!("{host}: {error} after {took:?}");
        let ConnectError::Unreachable { remote, source } = &error else {
            panic!("{error}");
        };
        assert_eq!(*remote, address.socket_addr());
        assert_eq!(source.kind(), io::ErrorKind::ConnectionRefused);
        assert_eq!(
            io::Error::from(error).kind(),
            io::ErrorKind::ConnectionRefused
        );
        // A single error may be of a listener that restarts.
        assert!(took >= Duration::from_millis(400), "{took:?}");
        assert!(took < Duration::from_secs(2), "{took:?}");
        assert!(dialler.is_idle());
    }
}

#[tokio::test]
async fn a_listener_that_comes_up_during_the_dial_is_reached() {
    let certificate = Certificate::generate();
    let address = dead("127.0.0.1", certificate.fingerprint());
    let dialler = dialler();
    let bind = address.socket_addr().to_string();
    let listen = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let builder = Endpoint::builder().certificate(certificate);
        echo_server(builder, &bind).await
    };
    let (connection, listener) = tokio::join!(dialler.connect(&address), listen);
    echo(&connection.expect("a listener"), ECHO, b"late").await;
    close(listener, dialler).await;
}

#[tokio::test]
async fn an_established_connection_outlives_errors_of_its_port() {
    // The listener's socket closes silently: the ICMP errors of its port do not end the connection,
    // the silence timeout does.
    let mut config = EndpointConfig::default();
    config.silence_timeout = Duration::from_secs(2);
    let dialler = Endpoint::builder()
        .endpoint_config(config.clone())
        .dial_only()
        .expect("defaults");
    let relay = Relay::new().await;
    let builder = Endpoint::builder().endpoint_config(config);
    let listener = echo_server(builder, "127.0.0.1:0").await;
    let real = listener.addresses().remove(0);
    let address = Address::new(relay.address).with_certhash(listener.certificate().fingerprint());
    let relaying = tokio::spawn(relay.run(real.socket_addr()));
    let connection = dialler.connect(&address).await.expect("a listener");
    echo(&connection, ECHO, b"all is well").await;
    let began = Instant::now();
    relaying.abort();
    relaying.await.expect_err("aborted, and its socket closed");
    let mut lazily = connection.open(ECHO).await.expect("lazily");
    let error = lazily.read(&mut [0]).await.expect_err("nobody is there");
    println!("{error} after {:?}", began.elapsed());
    assert_eq!(connection.closed().await, ConnectionError::TimedOut);
    // Since the last datagram of the peer.
    assert!(began.elapsed() >= Duration::from_millis(1500));
    close(listener, dialler).await;
}

/// Forwards between a dialler and a listener, on a socket that a test can close.
struct Relay {
    socket: tokio::net::UdpSocket,
    address: SocketAddr,
}

impl Relay {
    async fn new() -> Self {
        let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await;
        let socket = socket.expect("a socket");
        let address = socket.local_addr().expect("an address");
        Self { socket, address }
    }

    async fn run(self, listener: SocketAddr) {
        let mut dialler = None;
        let mut buffer = vec![0; 2048];
        loop {
            let received = self.socket.recv_from(&mut buffer).await;
            let (length, from) = received.expect("no error on an unconnected socket");
            let to = if from == listener {
                dialler
            } else {
                dialler = Some(from);
                Some(listener)
            };
            if let Some(to) = to {
                let datagram = &buffer[..length];
                self.socket.send_to(datagram, to).await.expect("loopback");
            }
        }
    }
}

#[tokio::test]
async fn an_address_without_certhash_is_not_dialled() {
    let address = Address::new(([127, 0, 0, 1], 1).into());
    let error = dialler().connect(&address).await.expect_err("no certhash");
    assert!(matches!(error, ConnectError::MissingCerthash), "{error}");
}

#[tokio::test]
async fn a_listener_with_another_certificate_is_refused() {
    let listener = echo_server(Endpoint::builder(), "127.0.0.1:0").await;
    let real = listener.addresses().remove(0);
    let dialler = dialler();
    let wrong = Address::new(real.socket_addr()).with_certhash(Fingerprint::of(b"another"));
    let error = dialler
        .connect(&wrong)
        .await
        .expect_err("the wrong certificate");
    assert!(
        matches!(error, ConnectError::CertificateMismatch { got } if Some(got) == real.certhash()),
        "{error}"
    );
    // One of several hashes is enough: a listener may be changing its certificate.
    let several = wrong.with_certhash(listener.certificate().fingerprint());
    let connection = dialler.connect(&several).await.expect("one hash matches");
    echo(&connection, ECHO, b"hello").await;
    close(listener, dialler).await;
}

#[tokio::test]
async fn a_listener_with_another_identity_is_refused() {
    let listener = echo_server(Endpoint::builder(), "127.0.0.1:0").await;
    let real = listener.addresses().remove(0);
    let expected = Identity::generate().peer_id();
    let wrong = Address::new(real.socket_addr())
        .with_certhash(listener.certificate().fingerprint())
        .with_peer_id(expected);
    let dialler = dialler();
    let error = dialler
        .connect(&wrong)
        .await
        .expect_err("the wrong identity");
    match error {
        ConnectError::UnexpectedPeer { expected: e, got } => {
            assert_eq!((e, got), (expected, listener.peer_id()));
        }
        other => panic!("{other}"),
    }
    close(listener, dialler).await;
}

#[tokio::test]
async fn without_noise_the_certificate_hash_is_enough() {
    let mut config = Config::default();
    config.negotiation = Negotiation::ChannelLabel;
    let builder = || {
        Endpoint::builder()
            .config(config.clone())
            .security(Security::CertificateHash)
    };
    let listener = echo_server(builder(), "127.0.0.1:0").await;
    let address = listener.addresses().remove(0);
    assert_eq!(address.peer_id(), None, "nobody proves an identity");
    let dialler = builder().dial_only().expect("defaults");
    let connection = dialler.connect(&address).await.expect("a listener");
    assert_eq!(connection.peer_id(), None);
    echo(&connection, ECHO, &[5; 100_000]).await;
    close(listener, dialler).await;
}

#[tokio::test]
async fn an_unknown_protocol_is_refused_and_the_connection_lives_on() {
    let listener = echo_server(Endpoint::builder(), "127.0.0.1:0").await;
    let dialler = dialler();
    let connection = dialler
        .connect(&listener.addresses()[0])
        .await
        .expect("a listener");
    // Of more than one protocol the open waits for an answer.
    let error = connection
        .open_any(&["/unknown/1.0.0", "/unknown/2.0.0"])
        .await
        .expect_err("nobody speaks them");
    assert!(
        matches!(&error, anabranch::OpenError::UnsupportedProtocol(p) if p.contains("/unknown/1")),
        "{error}"
    );
    let lazily = connection.open("/unknown/1.0.0").await.expect("lazily");
    lazily
        .into_split()
        .0
        .read(&mut [0])
        .await
        .expect_err("nobody speaks it");
    echo(&connection, ECHO, b"hello").await;
    let agreed = connection
        .open_any(&["/unknown/1.0.0", ECHO])
        .await
        .expect("the second one");
    assert_eq!(agreed.protocol(), Some(ECHO));
    drop(agreed);
    close(listener, dialler).await;
}

#[tokio::test]
async fn closing_a_connection_delivers_what_was_written() {
    let listener = Endpoint::builder()
        .protocol(ECHO)
        .bind("127.0.0.1:0")
        .await
        .expect("a socket");
    let address = listener.addresses().remove(0);
    let accepting = listener.clone();
    let reader = tokio::spawn(async move {
        let incoming = accepting.accept().await.expect("a dialler");
        let connection = incoming.accept().await.expect("a handshake");
        let mut substream = connection
            .accept()
            .await
            .expect("alive")
            .expect("a substream");
        let mut got = Vec::new();
        let end = substream.read_to_end(&mut got).await;
        (got, end.expect_err("its writer has not ended it"))
    });
    let dialler = dialler();
    let connection = dialler.connect(&address).await.expect("a listener");
    let mut substream = connection.open(ECHO).await.expect("a substream");
    let content: Vec<u8> = (0..1_000_000_u32).map(|i| (i % 251) as u8).collect();
    substream.write_all(&content).await.expect("a write");
    connection.close().await;
    let (got, error) = reader.await.expect("the task ends");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    assert!(
        got == content,
        "{} of {} bytes arrived",
        got.len(),
        content.len()
    );
    drop((substream, connection));
    close(listener, dialler).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_substreams_one_after_another_leave_nothing_behind() {
    let listener = echo_server(Endpoint::builder(), "127.0.0.1:0").await;
    let dialler = dialler();
    let connection = dialler
        .connect(&listener.addresses()[0])
        .await
        .expect("a listener");
    for round in 0..10_000_u32 {
        echo(&connection, ECHO, &round.to_be_bytes()).await;
    }
    let stats = connection.stats();
    assert_eq!(
        (stats.opened, stats.violations, stats.unread),
        (10_000, 0, 0)
    );
    // The last substream is dropped, and the driver may still be closing it.
    timeout(Duration::from_secs(5), async {
        while connection.stats().substreams > 0 || !connection.is_idle() {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("the driver forgets every substream");
    drop(connection);
    close(listener, dialler).await;
}

#[tokio::test]
async fn garbage_makes_no_state_and_hinders_nobody() {
    let listener = echo_server(Endpoint::builder(), "127.0.0.1:0").await;
    let address = listener.addresses().remove(0);
    let attacker = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    let mut datagrams: Vec<Vec<u8>> = vec![vec![], vec![0], vec![0; 20], vec![22; 1400]];
    // A STUN header with a length beyond the datagram, and an attribute with one.
    datagrams.push(vec![
        0, 1, 255, 252, 0x21, 0x12, 0xa4, 0x42, 1, 2, 3, 4, 5, 6, 7, 8, 9,
    ]);
    datagrams.push(
        [
            &[0, 1, 0, 8, 0x21, 0x12, 0xa4, 0x42][..],
            &[0; 12],
            &[0, 6, 255, 255, 1, 2, 3, 4],
        ]
        .concat(),
    );
    datagrams.extend((0..=255).map(|first| vec![first; 64]));
    for datagram in &datagrams {
        attacker
            .send_to(datagram, address.socket_addr())
            .expect("sent");
    }
    let dialler = dialler();
    let connection = dialler.connect(&address).await.expect("a listener");
    echo(&connection, ECHO, b"hello").await;
    assert_eq!(listener.connections(), 1);
    drop(connection);
    close(listener, dialler).await;
}

#[tokio::test]
async fn dropping_every_handle_closes_the_connection_on_both_sides() {
    let listener = echo_server(Endpoint::builder(), "127.0.0.1:0").await;
    let dialler = dialler();
    let connection = dialler
        .connect(&listener.addresses()[0])
        .await
        .expect("a listener");
    echo(&connection, ECHO, b"hello").await;
    drop(connection);
    timeout(Duration::from_secs(5), async {
        while dialler.connections() + listener.connections() > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .expect("both forget the connection");
    assert!(listener.is_idle() && dialler.is_idle());
}

#[tokio::test]
async fn a_closed_endpoint_neither_accepts_nor_dials() {
    let listener = Endpoint::builder()
        .bind("127.0.0.1:0")
        .await
        .expect("a socket");
    let address = listener.addresses().remove(0);
    listener.close().await;
    assert!(listener.accept().await.is_none());
    let error = listener.connect(&address).await.expect_err("closed");
    assert!(matches!(error, ConnectError::EndpointClosed), "{error}");
}
