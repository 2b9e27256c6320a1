//! WebRTC between two peers that have exchanged credentials by signalling of their own.

use std::net::SocketAddr;
use std::sync::Arc;

use anabranch::endpoint::{IceCredentials, Signalling, connect_signalled};
use anabranch::rtc::Role;
use anabranch::udp::{DatagramSocket, Sockets, SystemSockets};
use anabranch::{Certificate, Config, ConnectError, Connection, EndpointConfig, Negotiation};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

struct Side {
    role: Role,
    socket: Arc<dyn DatagramSocket>,
    address: SocketAddr,
    certificate: Certificate,
    credentials: IceCredentials,
}

impl Side {
    fn new(role: Role, bind: &str, name: &str) -> Self {
        let bind: SocketAddr = bind.parse().expect("an address");
        let socket = SystemSockets::new().bind(bind).expect("a socket");
        let mut address = socket.local_addr().expect("it is bound");
        address.set_ip("127.0.0.1".parse().expect("an address"));
        Self {
            role,
            socket,
            address,
            certificate: Certificate::generate(),
            credentials: IceCredentials::new(name.repeat(4), name.repeat(24)),
        }
    }

    fn to(&self, other: &Self) -> Signalling {
        Signalling::new(
            self.role,
            self.certificate.clone(),
            self.credentials.clone(),
            other.address,
            other.certificate.fingerprint(),
            other.credentials.clone(),
        )
    }
}

#[tokio::test]
async fn peers_with_a_signalling_of_their_own_connect_even_from_wildcards() {
    let client = Side::new(Role::Client, "0.0.0.0:0", "a");
    let server = Side::new(Role::Server, "0.0.0.0:0", "b");
    let config = EndpointConfig::default();
    let (a, b) = tokio::join!(
        connect_signalled(&config, client.socket.clone(), client.to(&server)),
        connect_signalled(&config, server.socket.clone(), server.to(&client)),
    );
    let mut settings = Config::default();
    settings.negotiation = Negotiation::None;
    let settings = Arc::new(settings);
    let (a, driver) = Connection::over(a.expect("it connects"), Arc::clone(&settings));
    let driver_a = tokio::spawn(driver);
    let (b, driver) = Connection::over(b.expect("it connects"), settings);
    let driver_b = tokio::spawn(driver);

    let mut sender = a.open("").await.expect("a substream");
    sender.write_all(b"signalled").await.expect("a write");
    let mut receiver = b.accept().await.expect("it lives").expect("a substream");
    let mut got = [0; 9];
    receiver.read_exact(&mut got).await.expect("all of it");
    assert_eq!(&got, b"signalled");

    drop((sender, receiver));
    tokio::join!(a.close(), b.close());
    assert!(a.is_idle() && b.is_idle());
    driver_a.await.expect("no panic");
    driver_b.await.expect("no panic");
}

#[tokio::test]
async fn another_certificate_than_that_signalled_is_refused() {
    let client = Side::new(Role::Client, "127.0.0.1:0", "a");
    let server = Side::new(Role::Server, "127.0.0.1:0", "b");
    let mut signalling = client.to(&server);
    signalling.fingerprint = Certificate::generate().fingerprint();
    let config = EndpointConfig::default();
    let (refused, ended) = tokio::join!(
        connect_signalled(&config, client.socket.clone(), signalling),
        connect_signalled(&config, server.socket.clone(), server.to(&client)),
    );
    let got = server.certificate.fingerprint();
    let mismatch = matches!(
        refused.err(),
        Some(ConnectError::CertificateMismatch { got: shown }) if shown == got
    );
    assert!(mismatch);
    // The other side has completed DTLS; it waits for SCTP, or hears of the end.
    assert!(ended.is_err());
}

#[test]
fn debug_does_not_show_the_passwords_of_ice() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let _guard = runtime.enter();
    let [client, server] = [Role::Client, Role::Server].map(|role| {
        Side::new(
            role,
            "127.0.0.1:0",
            if role == Role::Client { "a" } else { "b" },
        )
    });
    let shown = format!("{:?}", client.to(&server));
    assert!(shown.contains("aaaa") && shown.contains("bbbb"), "{shown}");
    let shows = |side: &Side| shown.contains(&side.credentials.password);
    assert!(!shows(&client) && !shows(&server), "{shown}");
}
