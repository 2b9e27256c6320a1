//! The wire, and its timing: headers, subprotocols, pings and timeouts.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::time::Duration;

use futures_util::StreamExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::time::{Instant, sleep, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message as WsMessage;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::connections::{client, connected, plain, server};
use super::{WebSocketConfig, carrier};
use crate::carrier::{Carrier, Class, Written};
use crate::connection::{Config, Connection};
use crate::events::{ConnectionInfo, Events};
use crate::message::{Flag, FrameDecoder, Message};
use crate::substream::FinishError;
use crate::websocket::*;

const LIMIT: Duration = Duration::from_secs(60);

/// Reads the request of a client, and answers it with these subprotocols.
async fn answer(mut stream: DuplexStream, subprotocols: &[&str]) -> (String, DuplexStream) {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        request.push(stream.read_u8().await.unwrap());
    }
    let request = String::from_utf8(request).unwrap();
    let key = request
        .lines()
        .find_map(|line| line.strip_prefix("Sec-WebSocket-Key: "));
    let accept = derive_accept_key(key.unwrap().as_bytes());
    let mut answer = format!(
        "HTTP/1.1 101 S\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
        Sec-WebSocket-Accept: {accept}\r\n"
    );
    for name in subprotocols {
        answer += &format!("Sec-WebSocket-Protocol: {name}\r\n");
    }
    answer += "\r\n";
    stream.write_all(answer.as_bytes()).await.unwrap();
    (request, stream)
}

/// Row J-19: the headers of an application are sent unchanged, once, beside those of the upgrade.
#[tokio::test(start_paused = true)]
async fn j19_headers_of_the_application_are_on_the_wire() {
    let (a, b) = duplex(4096);
    let mut config = client(Authentication::DangerNone);
    config.headers = vec![
        ("Authorization".to_owned(), "Bearer 7f:3e==".to_owned()),
        ("X-Trace".to_owned(), "one".to_owned()),
        ("X-Trace".to_owned(), "two".to_owned()),
    ];
    let address = "/dns4/example.org/tcp/8080/ws".parse().unwrap();
    let (connection, (request, _b)) = tokio::join!(
        connect_over(a, &address, &config),
        answer(b, &[SUBPROTOCOL])
    );
    connection.unwrap();
    let mut lines = request.lines();
    assert_eq!(lines.next(), Some("GET / HTTP/1.1"));
    let headers: Vec<(String, &str)> = lines
        .take_while(|line| !line.is_empty())
        .map(|line| line.split_once(": ").expect("a header"))
        .map(|(name, value)| (name.to_ascii_lowercase(), value))
        .collect();
    let values = |wanted: &str| -> Vec<&str> {
        let of_name = headers.iter().filter(|(name, _)| name == wanted);
        of_name.map(|(_, value)| *value).collect()
    };
    assert_eq!(values("authorization"), ["Bearer 7f:3e=="]);
    assert_eq!(values("x-trace"), ["one", "two"]);
    assert_eq!(values("host"), ["example.org:8080"]);
    assert_eq!(values("sec-websocket-protocol"), [SUBPROTOCOL]);
    assert_eq!(values("sec-websocket-version"), ["13"]);
    assert_eq!(values("sec-websocket-extensions"), [""; 0]);
}

/// Row S-6: a response with anything but the offered subprotocol is an error.
#[tokio::test(start_paused = true)]
async fn s6_subprotocols_that_were_not_offered_are_refused() {
    let cases: [(&[&str], bool); 7] = [
        (&[SUBPROTOCOL], true),
        (&[SUBPROTOCOL_NOISE], false),
        (&["chat"], false),
        (&["anabranch.v1, chat"], false),
        (&[SUBPROTOCOL, "chat"], false),
        (&["Anabranch.v1"], false),
        (&[], false),
    ];
    for (answered, is_good) in cases {
        let (a, b) = duplex(4096);
        let config = client(Authentication::DangerNone);
        let address = "/dns4/example.org/tcp/80/ws".parse().unwrap();
        let (result, _) = tokio::join!(connect_over(a, &address, &config), answer(b, answered));
        match result {
            Ok(_) => assert!(is_good, "{answered:?}"),
            Err(HandshakeError::Upgrade(UpgradeError::SubprotocolMismatch { offered, .. })) => {
                assert!(!is_good && offered == [SUBPROTOCOL], "{answered:?}");
            }
            Err(error) => panic!("{answered:?}: {error}"),
        }
    }
}

#[derive(Debug, Default)]
struct Pings {
    count: AtomicUsize,
    longest: AtomicUsize,
}

impl Events for Pings {
    fn ping(&self, _: &ConnectionInfo, round_trip: Duration) {
        self.count.fetch_add(1, Ordering::Relaxed);
        let millis = usize::try_from(round_trip.as_millis()).unwrap();
        self.longest.fetch_max(millis, Ordering::Relaxed);
    }
}

/// Rows O-16 and J-11.
#[tokio::test(start_paused = true)]
async fn pings_and_their_round_trips_are_told() {
    let pings = Arc::new(Pings::default());
    let mut config = Config::clone(&plain());
    config.events = Some(Arc::clone(&pings) as Arc<dyn Events>);
    let mut asking = client(Authentication::DangerNone);
    asking.connection = Arc::new(config);
    let mut answering = server(Authentication::DangerNone);
    // The server does not ping first.
    answering.websocket.ping_interval = Duration::from_secs(1000);
    answering.websocket.idle_timeout = Duration::from_secs(2000);
    let (a, b) = connected(&asking, &answering).await;
    let (a, b) = (a.unwrap(), b.unwrap());
    assert_eq!(pings.count.load(Ordering::Relaxed), 0);
    sleep(Duration::from_secs(150)).await;
    // One every 15 s, `ping_interval`.
    let count = pings.count.load(Ordering::Relaxed);
    assert!((9..=10).contains(&count), "{count}");
    // The pipe has no delay.
    assert!(pings.longest.load(Ordering::Relaxed) <= 1);
    a.close().await;
    b.closed().await;
}

/// A server connection, and the socket of a peer that sends nothing by itself.
async fn silent(config: WebSocketConfig) -> (Connection, WebSocketStream<DuplexStream>) {
    let (a, b) = duplex(64 * 1024);
    let carrier = carrier(a, false, config).await;
    let (ours, driver) = Connection::over(carrier, plain());
    tokio::spawn(driver);
    let peer = WebSocketStream::from_raw_socket(b, Role::Client, None).await;
    (ours, peer)
}

/// Row J-10: a FIN waits for its FIN_ACK as long as over any other carrier.
#[tokio::test(start_paused = true)]
async fn j10_a_fin_ack_that_does_not_come_is_waited_for_10_s() {
    let (ours, mut peer) = silent(WebSocketConfig::default()).await;
    let mut substream = ours.open("").await.unwrap();
    substream.write_all(b"all").await.unwrap();
    let finishing = tokio::spawn(async move {
        let begin = Instant::now();
        let result = substream.finish().await;
        (result, begin.elapsed(), substream)
    });
    let (mut payload, mut fin) = (Vec::new(), false);
    while !fin {
        let message = timeout(LIMIT, peer.next()).await.unwrap().unwrap().unwrap();
        let WsMessage::Binary(bytes) = message else {
            continue;
        };
        let mut decoder = FrameDecoder::new();
        decoder.push(bytes);
        while let Some(frame) = decoder.next_message().unwrap() {
            fin |= frame.flag == Some(Flag::Fin);
            payload.extend_from_slice(&frame.payload);
        }
    }
    assert_eq!(payload, b"all");
    let (result, waited, substream) = finishing.await.unwrap();
    assert_eq!(result, Err(FinishError::TimedOut));
    assert_eq!(waited, Duration::from_secs(10));
    drop(substream);
}

/// Row O-5: for a peer that does not read, a carrier accepts one message that is being assembled,
/// one in tungstenite and what the pipe holds, however often it is called.
#[tokio::test(start_paused = true)]
async fn o5_a_socket_that_is_not_read_takes_two_messages() {
    const PIPE: usize = 2048;
    for batch in [64 * 1024, 20_000] {
        let (a, unread) = duplex(PIPE);
        let mut config = WebSocketConfig::default();
        config.batch = batch;
        let mut carrier = carrier(a, true, config).await;
        let channel = carrier.open("").unwrap();
        let frame = Message::data(vec![7; 1000].into()).encode();
        let mut taken = 0;
        for _ in 0..100 {
            while carrier.write(channel, &frame, Class::Data) == Written::Taken {
                taken += frame.len();
                assert!(taken < 10 * batch, "it goes on taking");
            }
            poll_fn(|cx| {
                while let Poll::Ready(event) = carrier.poll_event(cx) {
                    event.unwrap();
                }
                Poll::Ready(())
            })
            .await;
        }
        // Each frame has a few more bytes on the wire.
        let most = 2 * batch + PIPE;
        assert!((batch..=most).contains(&taken), "{taken} of {most}");
        drop(unread);
    }
}

/// Row JR-3: an open is one frame and waits for nothing: data goes with it. The peer has sent
/// nothing.
#[tokio::test(start_paused = true)]
async fn jr3_an_open_costs_20_bytes_at_most_and_no_round_trip() {
    let (ours, mut peer) = silent(WebSocketConfig::default()).await;
    let begin = Instant::now();
    let mut substreams = Vec::new();
    for _ in 0..50 {
        let mut substream = ours.open("").await.unwrap();
        substream.write_all(b"request").await.unwrap();
        substreams.push(substream);
    }
    let (mut bytes, mut opened, mut payload) = (0, 0, Vec::new());
    while payload.len() < 50 * 7 {
        let message = timeout(LIMIT, peer.next()).await.unwrap().unwrap().unwrap();
        let WsMessage::Binary(message) = message else {
            panic!("{message:?}");
        };
        bytes += message.len();
        let mut decoder = FrameDecoder::new();
        decoder.push(message);
        while let Some(frame) = decoder.next_message().unwrap() {
            opened += usize::from(frame.label.is_some());
            payload.extend_from_slice(&frame.payload);
        }
    }
    assert_eq!(begin.elapsed(), Duration::ZERO);
    assert_eq!((opened, payload), (50, b"request".repeat(50)));
    // A request is one frame: its length, its stream and its payload.
    let requests = 50 * (7 + 2 + 1 + 3);
    let each = (bytes - requests) / 50;
    assert!((12..=20).contains(&each), "{each} bytes for each open");
}

/// `WebSocketConfig::close_timeout`, to the millisecond, if nobody answers the close frame.
#[tokio::test(start_paused = true)]
async fn a_close_frame_is_waited_for_1_s() {
    let default = WebSocketConfig::default();
    let mut longer = default.clone();
    longer.close_timeout = Duration::from_secs(3);
    for (config, seconds) in [(default, 1), (longer, 3)] {
        let (ours, peer) = silent(config).await;
        let begin = Instant::now();
        timeout(LIMIT, ours.close()).await.unwrap();
        assert_eq!(begin.elapsed(), Duration::from_secs(seconds));
        assert!(ours.is_idle());
        drop(peer);
    }
}

/// A close frame that is answered at once ends the wait.
#[tokio::test(start_paused = true)]
async fn a_close_frame_that_is_answered_ends_at_once() {
    let (ours, mut peer) = silent(WebSocketConfig::default()).await;
    // tungstenite answers when it is polled.
    let reading = tokio::spawn(async move { while let Some(Ok(_)) = peer.next().await {} });
    let begin = Instant::now();
    timeout(LIMIT, ours.close()).await.unwrap();
    assert!(
        begin.elapsed() < Duration::from_millis(10),
        "{:?}",
        begin.elapsed()
    );
    reading.await.unwrap();
}
