//! What the server refuses, and the reason that its peer gets.

use anabranch::address::PeerAddress;
use anabranch::payload::{
    PayloadConfig, PayloadError, Receiver, Rejection, SendError, Sender, Sent,
};
use anabranch::websocket::Authentication;
use anabranch::{Connection, Endpoint, Identity};
use tokio::io::AsyncWriteExt;
use tokio::time::timeout;

use crate::processes::{Carrier, Client, Directory, LIMIT, Server, content, names_in, until};

const PUT: &str = "/file-service/put/1.0.0";
const GET: &str = "/file-service/get/1.0.0";

/// Codes of `Refusal` in the example.
const BAD_NAME: u32 = 1;
const EXISTS: u32 = 2;
const NOT_FOUND: u32 = 3;
const BUSY: u32 = 4;
const FULL: u32 = 5;
const BAD_REQUEST: u32 = 7;

/// A peer that is not bound to the manners of the client of the example.
struct Peer {
    endpoint: Endpoint,
    connection: Connection,
}

impl Peer {
    async fn connect(address: &str) -> Self {
        let builder = Endpoint::builder().plaintext_websockets(true);
        let endpoint = builder.dial_only().expect("defaults work");
        let address: PeerAddress = address.parse().expect("an address");
        let reached = endpoint.connect_any(&[address]).await.expect("it listens");
        Self {
            connection: reached.connection,
            endpoint,
        }
    }

    async fn put(&self, name: &[u8], content: Vec<u8>) -> Result<Sent, SendError> {
        let substream = self.connection.open(PUT).await.expect("it is spoken");
        let sender = Sender::new(substream, PayloadConfig::default()).expect("defaults work");
        let sending = sender.metadata(name.to_vec()).send_bytes(content.into());
        timeout(LIMIT, sending).await.expect("an answer in time")
    }

    /// Sends a request of any bytes.
    async fn get(&self, request: &[u8]) -> Result<Vec<u8>, PayloadError> {
        let mut substream = self.connection.open(GET).await.expect("it is spoken");
        substream.write_all(request).await.expect("it is sent");
        let receiving = async {
            let payload = Receiver::default().receive(substream).await?;
            payload.assemble(1 << 20).await
        };
        let received = timeout(LIMIT, receiving).await.expect("an answer in time");
        received.map(Vec::from)
    }

    async fn close(self) {
        self.connection.close().await;
        self.endpoint.close().await;
        assert!(self.endpoint.is_idle());
    }
}

fn request(name: &[u8]) -> Vec<u8> {
    [&[name.len() as u8], name].concat()
}

fn rejection(sent: Result<Sent, SendError>) -> Rejection {
    match sent {
        Err(SendError::Rejected(rejection)) => rejection,
        other => panic!("not refused: {other:?}"),
    }
}

fn ended(received: Result<Vec<u8>, PayloadError>) -> Rejection {
    match received {
        Err(PayloadError::EndedBySender(rejection)) => rejection,
        other => panic!("not refused: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_lead_elsewhere_are_refused_with_the_reason() {
    let directory = Directory::new();
    let server = Server::start(&directory, &[]);
    std::fs::write(directory.path("secret"), "secret").expect("a file");
    let before = names_in(&directory.0);
    let long = [b'a'; 129];
    let names: [&[u8]; 18] = [
        b"../secret",
        b"..",
        b".",
        b"",
        b"/etc/passwd",
        b"a/b",
        b"a\\b",
        b"..\\secret",
        b"C:secret",
        b".hidden",
        b"a\nb",
        b"a\0b",
        b"a\x7f",
        b"\xff\xfe",
        b"name.",
        b"name ",
        b"../parts/a",
        &long,
    ];
    for carrier in [Carrier::WebRtc, Carrier::WebSocket] {
        let peer = Peer::connect(server.address(carrier)).await;
        for name in names {
            let shown = String::from_utf8_lossy(name);
            let sent = peer.put(name, content(1000)).await;
            assert_eq!(rejection(sent), Rejection::Code(BAD_NAME), "{shown:?}");
            let received = peer.get(&request(name)).await;
            assert_eq!(ended(received), Rejection::Code(BAD_NAME), "{shown:?}");
        }
        // The connection lives on, and a name of 128 bytes is one.
        let name = &long[..128];
        let longest = [carrier as u8 + b'0'; 1].repeat(128);
        assert_eq!(
            peer.put(&longest, content(10))
                .await
                .expect("it is stored")
                .total,
            10
        );
        assert_eq!(
            ended(peer.get(&request(name)).await),
            Rejection::Code(NOT_FOUND)
        );
        peer.close().await;
    }
    assert_eq!(names_in(&directory.0), before);
    assert_eq!(names_in(&directory.0.join("store/files")).len(), 2);
    directory.has_no_parts();
    server.until_idle();
    server.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_of_files_are_kept_and_named() {
    let directory = Directory::new();
    let options = ["--max-size", "100000", "--max-files", "3"];
    let server = Server::start(&directory, &options);
    let peer = Peer::connect(server.address(Carrier::WebRtc)).await;
    let too_large = peer.put(b"large", content(100_001)).await;
    assert_eq!(rejection(too_large), Rejection::TooLarge);
    for name in [b"one", b"two"] {
        let sent = peer
            .put(name, content(100_000))
            .await
            .expect("it is stored");
        assert_eq!(sent.total, 100_000);
    }
    let again = peer.put(b"one", content(5)).await;
    assert_eq!(rejection(again), Rejection::Code(EXISTS));
    assert!(
        directory.stored("one") == Some(content(100_000)),
        "it is not overwritten"
    );
    assert_eq!(
        ended(peer.get(&request(b"three")).await),
        Rejection::Code(NOT_FOUND)
    );
    let received = peer.get(&request(b"two")).await.expect("it is there");
    assert!(received == content(100_000));
    // A name that is shorter than its length says.
    let mut substream = peer.connection.open(GET).await.expect("it is spoken");
    substream.write_all(&[9, b'a']).await.expect("it is sent");
    // The reset may come before the confirmation.
    let _ = substream.shutdown().await;
    let received = Receiver::default().receive(substream).await;
    let received = received.map(|payload| payload.metadata().to_vec());
    assert_eq!(ended(received), Rejection::Code(BAD_REQUEST));

    // A part that was left alone makes room; a file does not.
    std::fs::write(directory.path("store/parts/old"), "part").expect("a part");
    assert_eq!(
        peer.put(b"three", content(5))
            .await
            .expect("it is stored")
            .total,
        5
    );
    directory.has_no_parts();
    let full = peer.put(b"four", content(5)).await;
    assert_eq!(rejection(full), Rejection::Code(FULL));
    assert_eq!(
        names_in(&directory.0.join("store/files")),
        ["one", "three", "two"]
    );
    peer.close().await;
    server.until_idle();
    server.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn more_transfers_than_there_are_places_are_refused_as_busy() {
    let directory = Directory::new();
    let options = ["--max-transfers", "2", "--rate", "65536"];
    let server = Server::start(&directory, &options);
    let peer = Peer::connect(server.address(Carrier::WebSocket)).await;
    let mut slow = Vec::new();
    for name in ["one", "two"] {
        let source = directory.write(name, &content(4 << 20));
        slow.push(Client::start(&[
            "put",
            server.address(Carrier::WebRtc),
            &source,
        ]));
    }
    until("both transfers", || {
        let page = server.request("GET / HTTP/1.1", &[]);
        page.body.contains("2 of 2 transfers")
    });
    let busy = peer.put(b"three", content(5)).await;
    assert_eq!(rejection(busy), Rejection::Code(BUSY));
    let source = directory.write("four", &content(5));
    let client = Client::start(&["put", server.address(Carrier::WebRtc), &source]);
    client
        .end()
        .fails(75, "refused: too many transfers are under way");
    for client in slow {
        client.interrupt();
        client.end().fails(130, "cancelled");
    }
    server.until_idle();
    assert_eq!(
        peer.put(b"three", content(5))
            .await
            .expect("it is stored")
            .total,
        5
    );
    peer.close().await;
    server.stop();
}

/// A request that is upgraded.
fn upgrade() -> Vec<String> {
    let subprotocol = Authentication::noise(Identity::generate());
    let subprotocol = subprotocol.subprotocol().to_owned();
    [
        "Connection: Upgrade".to_owned(),
        "Upgrade: websocket".to_owned(),
        "Sec-WebSocket-Version: 13".to_owned(),
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==".to_owned(),
        format!("Sec-WebSocket-Protocol: {subprotocol}"),
    ]
    .to_vec()
}

#[test]
fn an_upgrade_that_is_refused_has_its_status() {
    let directory = Directory::new();
    let server = Server::start(&directory, &[]);
    let send = |line: &str, headers: Vec<String>| {
        // The server closes after an answer that is no upgrade.
        let headers = headers.iter().map(|header| match header.as_str() {
            "Connection: Upgrade" => "Connection: Upgrade, close",
            header => header,
        });
        server.request(line, &headers.collect::<Vec<_>>())
    };
    let changed = |from: &str, to: &str| {
        let headers = upgrade().into_iter().map(|header| header.replace(from, to));
        headers.filter(|header| !header.is_empty()).collect()
    };
    let key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==";
    let cases: [(&str, Vec<String>, u16, &str); 10] = [
        (
            "GET / HTTP/1.1",
            changed("13", "12"),
            426,
            "upgrade: websocket",
        ),
        (
            "GET / HTTP/1.1",
            changed("websocket", "h2c"),
            426,
            "sec-websocket-version: 13",
        ),
        (
            "GET / HTTP/1.1",
            changed("Connection: Upgrade", "Connection: close"),
            426,
            "",
        ),
        ("GET / HTTP/1.1", changed("dGhl", "a"), 400, ""),
        ("GET / HTTP/1.1", changed(key, ""), 400, ""),
        (
            "GET / HTTP/1.1",
            changed("Protocol: ", "Protocol: not-"),
            400,
            "",
        ),
        (
            "GET / HTTP/1.1",
            [upgrade(), vec![key.to_owned()]].concat(),
            400,
            "",
        ),
        ("POST / HTTP/1.1", upgrade(), 405, "allow: get"),
        ("GET / HTTP/1.0", upgrade(), 426, ""),
        ("GET /elsewhere HTTP/1.1", upgrade(), 404, ""),
    ];
    for (line, headers, status, header) in cases {
        let answer = send(line, headers.clone());
        assert_eq!(answer.status, status, "{line} {headers:?}: {}", answer.body);
        assert!(answer.headers.contains(header), "{}", answer.headers);
        assert_eq!(answer.content_type(), "text/plain; charset=utf-8");
        assert_eq!(answer.body.lines().count(), 1, "{}", answer.body);
        // A browser gets a page with the same status.
        let browser = vec!["Accept: text/html,*/*".to_owned()];
        let page = send(line, [headers, browser].concat());
        assert_eq!(page.status, status);
        assert!(page.headers.contains(header), "{}", page.headers);
        assert_eq!(page.content_type(), "text/html; charset=utf-8");
        let text = answer.body.trim_end();
        assert!(
            page.body.contains("<h1>") && page.body.contains(text),
            "{}",
            page.body
        );
    }
    let post = server.request("POST / HTTP/1.1", &["Content-Length: 0"]);
    assert_eq!(post.status, 405);
    // The client of the example says so too.
    let wrong = server.address(Carrier::WebSocket).replace("/ws/", "/wss/");
    let client = Client::start(&["get", &wrong, "name"]).end();
    client.fails(75, "the same command resumes");
    // What is right is upgraded.
    let headers = upgrade();
    let headers: Vec<&str> = headers.iter().map(String::as_str).collect();
    assert_eq!(server.request("GET / HTTP/1.1", &headers).status, 101);
    server.stop();
}
