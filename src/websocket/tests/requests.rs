//! Requests that are not upgraded, over real sockets: each gets its response, and no connection is
//! reset before it is read.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use super::connections::{client, idle, server};
use crate::certificate::Certificate;
use crate::identity::Identity;
use crate::websocket::*;

const LIMIT: Duration = Duration::from_secs(60);

/// The headers of a valid upgrade without Noise, except Host.
const UPGRADE: &str = "Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\
    Sec-WebSocket-Version: 13\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: chat, anabranch.v1\r\n";

pub(super) async fn listen(config: ServerConfig, limits: ListenerConfig) -> WebSocketListener {
    let any = "127.0.0.1:0".parse().unwrap();
    WebSocketListener::bind(any, config, limits).await.unwrap()
}

/// Accepts connections while `what` runs, holds them, and then waits until nothing is left.
pub(super) async fn while_listening<T>(
    listener: &WebSocketListener,
    what: impl Future<Output = T>,
) -> T {
    let serving = async {
        loop {
            let incoming = listener.accept().await.unwrap();
            tokio::spawn(async move {
                if let Ok(connection) = incoming.accept().await {
                    connection.closed().await;
                }
            });
        }
    };
    let result = tokio::select! {
        () = serving => unreachable!(),
        result = timeout(LIMIT, what) => result.expect("it comes to an end"),
    };
    idle(listener).await;
    result
}

/// The parsed parts of a response.
#[derive(Debug)]
pub(super) struct Answered {
    pub(super) status: u16,
    pub(super) head: String,
    body: String,
}

impl Answered {
    /// Parses a response, and asserts that it is valid.
    fn read(bytes: &[u8]) -> Self {
        let text = String::from_utf8(bytes.to_vec()).unwrap();
        let end = text.find("\r\n\r\n");
        let end = end.unwrap_or_else(|| panic!("no answer: {text:?}")) + 4;
        let (head, body) = text.split_at(end);
        let (head, body) = (head.to_ascii_lowercase(), body.to_owned());
        let status = head.strip_prefix("http/1.1 ").unwrap();
        let status = status.get(..3).unwrap().parse().unwrap();
        Self { status, head, body }
    }

    pub(super) fn body(&self) -> &str {
        &self.body
    }

    fn check(&self) {
        let length = format!("content-length: {}\r\n", self.body.len());
        assert!(self.head.contains(&length), "{self:?}");
        assert!(self.head.contains("\r\nconnection: close"), "{self:?}");
        assert!(!self.body.is_empty(), "{self:?}");
    }
}

/// Sends bytes without a half-close, as browsers do, and reads the response up to an orderly close.
pub(super) async fn ask(to: SocketAddr, bytes: &[u8]) -> Answered {
    let (mut receiving, mut sending) = TcpStream::connect(to).await.unwrap().into_split();
    let mut received = Vec::new();
    let (sent, read) = tokio::join!(
        sending.write_all(bytes),
        receiving.read_to_end(&mut received)
    );
    sent.expect("all of it is read");
    read.expect("no reset");
    let answered = Answered::read(&received);
    answered.check();
    answered
}

#[tokio::test]
async fn every_bad_request_gets_its_answer() {
    let mut config = server(Authentication::DangerNone);
    config.requests.paths = Some(vec!["/".to_owned(), "/a".to_owned()]);
    let listener = listen(config, ListenerConfig::default()).await;
    let to = listener.local_addr();
    let own = format!("Host: {to}\r\n");
    let with = |line: &str, headers: &str| format!("{line}\r\n{own}{headers}\r\n").into_bytes();
    let without = |name: &str| {
        let lines = UPGRADE.split_inclusive("\r\n");
        let kept = lines.filter(|line| !line.to_ascii_lowercase().starts_with(name));
        with("GET / HTTP/1.1", &kept.collect::<String>())
    };
    let and = |more: &str| with("GET / HTTP/1.1", &format!("{UPGRADE}{more}"));
    let key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    let cases: Vec<(&str, Vec<u8>, u16)> = vec![
        (
            "a browser",
            with("GET / HTTP/1.1", "Accept: text/html\r\n"),
            426,
        ),
        ("HTTP/1.0", b"GET / HTTP/1.0\r\n\r\n".to_vec(), 426),
        ("HTTP/1.0 that wants", with("GET / HTTP/1.0", UPGRADE), 426),
        ("HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), 505),
        ("HTTP/3.1", with("GET / HTTP/3.1", UPGRADE), 505),
        ("HTTP/0.9", b"GET /\r\n\r\n".to_vec(), 400),
        ("POST", with("POST / HTTP/1.1", UPGRADE), 405),
        ("OPTIONS", with("OPTIONS / HTTP/1.1", ""), 405),
        ("a path", with("GET /b HTTP/1.1", UPGRADE), 404),
        ("a query is no path", with("GET /a?b HTTP/1.1", ""), 426),
        ("no Connection", without("connection"), 426),
        ("no Upgrade", without("upgrade"), 426),
        ("no version", without("sec-websocket-version"), 426),
        ("no key", without("sec-websocket-key"), 400),
        ("no subprotocol", without("sec-websocket-protocol"), 400),
        ("two keys", and(key), 400),
        ("two versions", and("Sec-WebSocket-Version: 13\r\n"), 400),
        ("two hosts", and(&own), 400),
        (
            "two origins",
            and("Origin: http://a\r\nOrigin: http://a\r\n"),
            400,
        ),
        (
            "no host",
            format!("GET / HTTP/1.1\r\n{UPGRADE}\r\n").into_bytes(),
            400,
        ),
        (
            "a foreign page",
            and("Origin: http://evil.example\r\n"),
            403,
        ),
        ("an opaque page", and("Origin: null\r\n"), 403),
        ("a body", and("Content-Length: 5\r\n"), 400),
        (
            "a body of less than nothing",
            and("Content-Length: -5\r\n"),
            400,
        ),
        (
            "a huge body",
            and("Content-Length: 18446744073709551616\r\n"),
            400,
        ),
        (
            "a body in chunks",
            and("Transfer-Encoding: chunked\r\n"),
            400,
        ),
        ("bytes after", [and(""), b"GET /".to_vec()].concat(), 400),
        (
            "LF",
            String::from_utf8(and(""))
                .unwrap()
                .replace('\r', "")
                .into_bytes(),
            400,
        ),
        ("LF in between", and("X: y\nOrigin: z\r\n"), 400),
        ("CR in between", and("X: y\rOrigin: z\r\n"), 400),
        ("a folded line", and("X: y\r\n z\r\n"), 400),
        ("NUL", and("X: \0\r\n"), 400),
        (
            "TLS",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(),
            400,
        ),
        (
            "PROXY",
            b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n\r\n".to_vec(),
            400,
        ),
        ("101 headers", and(&"a: b\r\n".repeat(101)), 431),
        (
            "1 MiB of header",
            and(&format!("X: {}\r\n", "a".repeat(1 << 20))),
            431,
        ),
    ];
    while_listening(&listener, async {
        for (what, request, status) in cases {
            let answered = ask(to, &request).await;
            assert_eq!(answered.status, status, "{what}: {answered:?}");
            let has = |text: &str| assert!(answered.head.contains(text), "{what}: {answered:?}");
            match status {
                405 => has("\r\nallow: get\r\n"),
                426 => {
                    has("\r\nsec-websocket-version: 13\r\n");
                    has("\r\nupgrade: websocket\r\n");
                    has("\r\nconnection: close, upgrade\r\n");
                }
                _ => {}
            }
        }
        // The response to HEAD has headers and no body.
        let mut stream = TcpStream::connect(to).await.unwrap();
        stream
            .write_all(&with("HEAD / HTTP/1.1", ""))
            .await
            .unwrap();
        let mut received = Vec::new();
        stream.read_to_end(&mut received).await.unwrap();
        let answered = Answered::read(&received);
        assert_eq!((answered.status, answered.body.as_str()), (405, ""));
        drop(stream);
        // Lists may span several lines.
        let good = and(
            "Connection: close\r\nUpgrade: h2c\r\nSec-WebSocket-Protocol: x\r\n\
            Content-Length: 0\r\n",
        );
        let good = [b"\r\n".to_vec(), good].concat();
        let mut stream = TcpStream::connect(to).await.unwrap();
        for byte in good {
            stream.write_all(&[byte]).await.unwrap();
            tokio::task::yield_now().await;
        }
        let mut begin = [0; 12];
        stream.read_exact(&mut begin).await.unwrap();
        assert_eq!(&begin, b"HTTP/1.1 101");
    })
    .await;
}

#[tokio::test]
async fn the_hook_sees_the_request_and_its_answer_is_sent() {
    let mut config = server(Authentication::DangerNone);
    config.requests = RequestPolicy::default().with_hook(|request| {
        let remote = request.remote_address().expect("a socket");
        assert!(remote.ip().is_loopback());
        match (request.path(), request.query(), request.cookie("session")) {
            ("/in", Some("x=1"), Some("secret")) => Ok(()),
            (_, _, None) => Err(UpgradeError::refused(401, "Log in first.")),
            _ => Err(UpgradeError::refused(200, "No.")),
        }
    });
    let listener = listen(config, ListenerConfig::default()).await;
    let to = listener.local_addr();
    while_listening(&listener, async {
        let request = |headers: &str| {
            format!("GET /in?x=1 HTTP/1.1\r\nHost: {to}\r\n{UPGRADE}{headers}\r\n").into_bytes()
        };
        let answered = ask(to, &request("")).await;
        assert_eq!((answered.status, &*answered.body), (401, "Log in first.\n"));
        let answered = ask(to, &request("Cookie: a=b; session=guessed\r\n")).await;
        assert_eq!((answered.status, &*answered.body), (403, "No.\n"));
        // The hook is not called for requests that are refused anyway.
        let answered = ask(to, &request("Origin: http://evil.example\r\n")).await;
        assert_eq!(answered.status, 403);
        let mut config = client(Authentication::DangerNone);
        config.headers = vec![("Cookie".to_owned(), "session=secret".to_owned())];
        let url = format!("ws://{to}/in?x=1");
        let address = crate::address::WebSocketAddress::from_url(&url).unwrap();
        connect(&address, &config).await.unwrap().close().await;
    })
    .await;
}

#[tokio::test]
async fn a_page_of_any_origin_may_connect_where_noise_protects() {
    let listener = listen(
        server(Authentication::noise(Identity::generate())),
        ListenerConfig::default(),
    )
    .await;
    while_listening(&listener, async {
        let mut config = client(Authentication::noise(Identity::generate()));
        for origin in ["https://elsewhere.example", "null"] {
            config.headers = vec![("Origin".to_owned(), origin.to_owned())];
            let connection = connect(&listener.address(), &config).await.unwrap();
            connection.close().await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_request_that_does_not_end_is_answered_and_one_that_does_not_begin_is_not() {
    let mut config = server(Authentication::DangerNone);
    config.websocket.handshake_timeout = Duration::from_millis(300);
    let listener = listen(config, ListenerConfig::default()).await;
    let to = listener.local_addr();
    while_listening(&listener, async {
        let begin = Instant::now();
        let slow = async {
            let (mut receiving, mut sending) = TcpStream::connect(to).await.unwrap().into_split();
            let dripping = async {
                for byte in b"GET / HTTP/1.1\r\nX: "
                    .iter()
                    .chain(std::iter::repeat(&b'a'))
                {
                    if sending.write_all(&[*byte]).await.is_err() {
                        break;
                    }
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            };
            let mut received = Vec::new();
            tokio::select! {
                () = dripping => panic!("it is reset"),
                result = receiving.read_to_end(&mut received) => { result.unwrap(); }
            }
            Answered::read(&received)
        };
        let silent = async {
            let mut stream = TcpStream::connect(to).await.unwrap();
            let mut received = Vec::new();
            stream.read_to_end(&mut received).await.unwrap();
            received
        };
        let (slow, silent) = tokio::join!(slow, silent);
        slow.check();
        assert_eq!(slow.status, 408);
        assert_eq!(silent, b"");
        assert!(begin.elapsed() >= Duration::from_millis(300));
        // Half a request, and an end of input.
        let mut stream = TcpStream::connect(to).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\n").await.unwrap();
        stream.shutdown().await.unwrap();
        let mut received = Vec::new();
        stream.read_to_end(&mut received).await.unwrap();
        assert_eq!(Answered::read(&received).status, 400);
    })
    .await;
}

/// Both limits on what a client sends while it reads the response: 4 MiB, and the close timeout.
#[tokio::test]
async fn a_client_that_reads_nothing_and_never_ends_is_left() {
    let mut config = server(Authentication::DangerNone);
    config.websocket.close_timeout = Duration::from_secs(3600);
    let listener = listen(config, ListenerConfig::default()).await;
    let mut stream = TcpStream::connect(listener.local_addr()).await.unwrap();
    while_listening(&listener, async {
        let bytes = vec![b'a'; 64 * 1024];
        let mut sent = 0;
        while let Ok(written) = stream.write(&bytes).await {
            sent += written;
        }
        // Plus the buffers of two sockets.
        assert!((4 << 20..32 << 20).contains(&sent), "{sent}");
    })
    .await;

    let mut config = server(Authentication::DangerNone);
    config.websocket.close_timeout = Duration::from_millis(300);
    let listener = listen(config, ListenerConfig::default()).await;
    let mut stream = TcpStream::connect(listener.local_addr()).await.unwrap();
    while_listening(&listener, async {
        // A head that is too long, followed by a byte from time to time.
        let begin = Instant::now();
        stream.write_all(&[b'a'; 9000]).await.unwrap();
        while stream.write_all(b"a").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(10)).await;
            assert!(begin.elapsed() < Duration::from_secs(30));
        }
        assert!(begin.elapsed() >= Duration::from_millis(300));
    })
    .await;
}

#[tokio::test]
async fn http_where_tls_is_required_gets_an_answer() {
    let mut config = server(Authentication::Tls);
    let identity = TlsIdentity::from_certificate(&Certificate::generate()).unwrap();
    config.tls = Some(identity);
    let listener = listen(config, ListenerConfig::default()).await;
    let to = listener.local_addr();
    while_listening(&listener, async {
        let answered = ask(to, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert_eq!(answered.status, 400);
        assert!(answered.body.contains("TLS"), "{answered:?}");
    })
    .await;
}

#[tokio::test]
async fn a_thousand_that_find_no_room_are_answered_and_few_are_kept() {
    let mut limits = ListenerConfig::default();
    limits.max_handshakes = 1;
    let listener = listen(server(Authentication::DangerNone), limits).await;
    let to = listener.local_addr();
    let first = TcpStream::connect(to).await.unwrap();
    let waiting = listener.accept().await.unwrap();
    let asking = async {
        for _ in 0..1000 {
            let answered = ask(to, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
            assert_eq!(answered.status, 503);
            assert!(listener.refused() <= 32);
        }
    };
    tokio::select! {
        incoming = listener.accept() => panic!("{incoming:?}"),
        result = timeout(LIMIT, asking) => result.unwrap(),
    }
    drop((first, waiting));
    assert!(listener.is_idle());
}

#[tokio::test]
async fn a_request_that_arrives_after_its_refusal_resets_nothing() {
    let mut limits = ListenerConfig::default();
    limits.max_handshakes = 1;
    let listener = listen(server(Authentication::DangerNone), limits).await;
    let to = listener.local_addr();
    let first = TcpStream::connect(to).await.unwrap();
    let waiting = listener.accept().await.unwrap();
    let mut late = TcpStream::connect(to).await.unwrap();
    let asking = async {
        // The response arrives before any request.
        late.readable().await.unwrap();
        for line in ["GET / HTTP/1.1\r\n", "Host: a\r\n", "\r\n"] {
            late.write_all(line.as_bytes()).await.unwrap();
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let mut received = Vec::new();
        late.read_to_end(&mut received).await.unwrap();
        assert_eq!(Answered::read(&received).status, 503);
    };
    tokio::select! {
        incoming = listener.accept() => panic!("{incoming:?}"),
        result = timeout(LIMIT, asking) => result.unwrap(),
    }
    drop((first, waiting));
    assert!(listener.is_idle());
}
