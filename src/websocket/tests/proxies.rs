//! Listeners behind proxies: only trusted ones can report the address of a client.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use super::connections::{client, server};
use super::requests::{ask, listen, while_listening};
use crate::connection::{Config, Negotiation};
use crate::events::{ConnectionInfo, Events};
use crate::websocket::*;

const UPGRADE: &str = "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
    Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
    Sec-WebSocket-Protocol: anabranch.v1\r\n";

fn trusted(network: &str, header: ProxyHeader) -> ListenerConfig {
    let mut limits = ListenerConfig::default();
    limits.limit_loopback = true;
    limits.proxies = Some(TrustedProxies::new([network.parse().unwrap()], header));
    limits
}

/// Reports how attempts end, and the address of the client.
#[derive(Debug)]
struct Sink(mpsc::UnboundedSender<(&'static str, Option<SocketAddr>)>);

impl Events for Sink {
    fn connect_failed(
        &self,
        connection: &ConnectionInfo,
        _: Option<&(dyn std::error::Error + 'static)>,
    ) {
        let _ = self.0.send(("failed", connection.remote));
    }

    fn connection_open(&self, connection: &ConnectionInfo) {
        let _ = self.0.send(("open", connection.remote));
    }
}

type Seen = mpsc::UnboundedReceiver<(&'static str, Option<SocketAddr>)>;

fn watched() -> (ServerConfig, Seen) {
    let (sink, seen) = mpsc::unbounded_channel();
    let mut connection = Config::default();
    connection.negotiation = Negotiation::None;
    connection.events = Some(Arc::new(Sink(sink)));
    let mut config = server(Authentication::DangerNone);
    config.connection = Arc::new(connection);
    config.requests = RequestPolicy::default().with_hook(|request| {
        let text = request.remote_address().map(|remote| remote.to_string());
        Err::<(), _>(UpgradeError::refused(499, text.unwrap_or_default()))
    });
    (config, seen)
}

/// The address of the client in the hook and in the events of a refused request.
async fn seen_as(
    to: SocketAddr,
    seen: &mut Seen,
    preamble: &str,
    headers: &str,
) -> Result<String, u16> {
    let request = format!("{preamble}{UPGRADE}{headers}\r\n");
    let answered = ask(to, request.as_bytes()).await;
    let Some(("failed", Some(remote))) = seen.recv().await else {
        panic!("no client");
    };
    if answered.status != 499 {
        return Err(answered.status);
    }
    assert_eq!(answered.body().trim_end(), remote.to_string());
    Ok(remote.to_string())
}

#[tokio::test]
async fn headers_of_a_trusted_proxy_name_the_client() {
    let (config, mut seen) = watched();
    for (header, name, good, bad) in [
        (
            ProxyHeader::XForwardedFor,
            "X-Forwarded-For",
            "203.0.113.9, 192.0.2.7:81, 127.0.0.5",
            "192.0.2.7, nonsense",
        ),
        (
            ProxyHeader::Forwarded,
            "Forwarded",
            "for=203.0.113.9, for=\"192.0.2.7:81\";proto=https, for=127.0.0.5",
            "for=\"192.0.2.7",
        ),
    ] {
        let listener = listen(config.clone(), trusted("127.0.0.0/8", header)).await;
        let to = listener.local_addr();
        while_listening(&listener, async {
            let mut with = async |value: &str| {
                seen_as(to, &mut seen, "", &format!("{name}: {value}\r\n")).await
            };
            assert_eq!(with(good).await.as_deref(), Ok("192.0.2.7:81"));
            assert_eq!(with(bad).await, Err(400));
            // Without the header the proxy counts as the client.
            let own = seen_as(to, &mut seen, "", "").await.unwrap();
            assert!(own.starts_with("127.0.0.1:"), "{own}");
            // The other headers are ignored.
            let line = "PROXY TCP4 192.0.2.7 192.0.2.8 1 2\r\n";
            assert_eq!(seen_as(to, &mut seen, line, "").await, Err(400));
        })
        .await;
    }
}

#[tokio::test]
async fn the_proxy_protocol_names_the_client_in_front_of_everything() {
    let (config, mut seen) = watched();
    let trust = || trusted("127.0.0.1", ProxyHeader::ProxyProtocol);
    let listener = listen(config.clone(), trust()).await;
    let to = listener.local_addr();
    while_listening(&listener, async {
        let line = "PROXY TCP4 192.0.2.7 192.0.2.8 81 443\r\n";
        let got = seen_as(to, &mut seen, line, "X-Forwarded-For: 198.51.100.1\r\n").await;
        assert_eq!(got.as_deref(), Ok("192.0.2.7:81"));
        let own = seen_as(to, &mut seen, "PROXY UNKNOWN\r\n", "")
            .await
            .unwrap();
        assert!(own.starts_with("127.0.0.1:"), "{own}");
        let line = "PROXY TCP4 192.0.2.7 192.0.2.8 81\r\n";
        assert_eq!(seen_as(to, &mut seen, line, "").await, Err(400));
        assert_eq!(
            seen_as(to, &mut seen, "", "").await,
            Err(400),
            "it has to be there"
        );
        // Version 2, followed by a connection.
        let mut stream = TcpStream::connect(to).await.unwrap();
        let mut header = b"\r\n\r\n\0\r\nQUIT\n\x21\x21\0\x24".to_vec();
        header.extend_from_slice(&[0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7]);
        header.resize(header.len() + 16, 0);
        header.extend_from_slice(&[0, 81, 1, 187]);
        stream.write_all(&header).await.unwrap();
        stream.write_all(UPGRADE.as_bytes()).await.unwrap();
        stream.write_all(b"\r\n").await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.ends_with("[2001:db8::7]:81\n"), "{answer}");
        drop(stream);
        let client = Some("[2001:db8::7]:81".parse().unwrap());
        assert_eq!(seen.recv().await, Some(("failed", client)));
    })
    .await;

    // Before TLS, whose handshake does not see it.
    let certificate = crate::certificate::Certificate::generate();
    let mut config = config;
    config.tls = Some(TlsIdentity::from_certificate(&certificate).unwrap());
    config.authentication = Authentication::Tls;
    config.requests = RequestPolicy::default();
    let listener = listen(config, trust()).await;
    let mut dialling = client(Authentication::Tls);
    dialling.trust = TlsTrust::Certificates(vec![certificate.fingerprint()]);
    // A proxy between client and listener.
    let proxy = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = crate::address::WebSocketAddress::new(proxy.local_addr().unwrap(), true);
    let to = listener.local_addr();
    let passing = tokio::spawn(async move {
        let (mut inside, _) = proxy.accept().await.unwrap();
        let mut outside = TcpStream::connect(to).await.unwrap();
        let line = b"PROXY TCP6 2001:db8::7 ::1 81 443\r\n";
        outside.write_all(line).await.unwrap();
        let _ = tokio::io::copy_bidirectional(&mut inside, &mut outside).await;
    });
    while_listening(&listener, async {
        connect(&address, &dialling).await.unwrap().close().await;
        passing.await.unwrap();
    })
    .await;
    let client = Some("[2001:db8::7]:81".parse().unwrap());
    assert_eq!(seen.recv().await, Some(("open", client)));
}

#[tokio::test]
async fn headers_from_untrusted_addresses_are_ignored() {
    let (config, mut seen) = watched();
    for header in [
        ProxyHeader::XForwardedFor,
        ProxyHeader::Forwarded,
        ProxyHeader::ProxyProtocol,
    ] {
        for limits in [ListenerConfig::default(), trusted("10.0.0.0/8", header)] {
            let listener = listen(config.clone(), limits).await;
            let to = listener.local_addr();
            while_listening(&listener, async {
                let headers = "X-Forwarded-For: 192.0.2.7\r\nForwarded: for=192.0.2.7\r\n";
                let own = seen_as(to, &mut seen, "", headers).await.unwrap();
                assert!(own.starts_with("127.0.0.1:"), "{own}");
                // Only the configured header can be malformed.
                let own = seen_as(to, &mut seen, "", "X-Forwarded-For: ?\r\n").await;
                assert!(own.is_ok());
                let line = "PROXY TCP4 192.0.2.7 192.0.2.8 1 2\r\n";
                assert_eq!(seen_as(to, &mut seen, line, "").await, Err(400));
            })
            .await;
        }
    }
}

#[tokio::test]
async fn limits_count_the_client_and_not_its_proxy() {
    for header in [ProxyHeader::XForwardedFor, ProxyHeader::ProxyProtocol] {
        let (config, mut seen) = watched();
        let mut limits = trusted("127.0.0.0/8", header);
        limits.connections = crate::RateLimit::new(Duration::from_secs(3600), 2);
        let listener = listen(config, limits).await;
        let to = listener.local_addr();
        while_listening(&listener, async {
            let mut from = async |client: &str| match header {
                ProxyHeader::XForwardedFor => {
                    seen_as(to, &mut seen, "", &format!("X-Forwarded-For: {client}\r\n")).await
                }
                _ => {
                    let line = format!("PROXY TCP4 {client} 192.0.2.8 1 2\r\n");
                    seen_as(to, &mut seen, &line, "").await
                }
            };
            for client in ["192.0.2.7", "192.0.2.7", "192.0.2.8"] {
                from(client).await.expect("there is room");
            }
            assert_eq!(from("192.0.2.7").await, Err(503));
            from("192.0.2.8").await.expect("there is room");
            from("192.0.2.9").await.expect("there is room");
        })
        .await;
    }
}
