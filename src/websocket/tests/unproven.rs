//! The limits before Noise has succeeded, and data that was sent before it had.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::protocol::Role;
use tokio_tungstenite::tungstenite::{Message as WsMessage, handshake::client::generate_key};
use tokio_tungstenite::{WebSocketStream, client_async};

use super::connections::server;
use crate::connection::{Connection, ConnectionError};
use crate::identity::Identity;
use crate::message::mux::{append_open, append_routed};
use crate::message::{FrameDecoder, Message};
use crate::noise::Handshake;
use crate::websocket::*;

const LIMIT: Duration = Duration::from_secs(60);

type Peer = WebSocketStream<DuplexStream>;

/// A scripted client, after its upgrade.
async fn upgraded(
    pipe: usize,
) -> (
    Peer,
    tokio::task::JoinHandle<Result<Connection, HandshakeError>>,
) {
    let (a, b) = duplex(pipe);
    let accepting = tokio::spawn(async move {
        let config = server(Authentication::noise(Identity::generate()));
        accept(b, &config).await
    });
    let request = tokio_tungstenite::tungstenite::http::Request::builder()
        .uri("ws://localhost/")
        .header("Host", "localhost")
        .header("Connection", "Upgrade")
        .header("Upgrade", "websocket")
        .header("Sec-WebSocket-Version", "13")
        .header("Sec-WebSocket-Key", generate_key())
        .header("Sec-WebSocket-Protocol", SUBPROTOCOL_NOISE)
        .body(())
        .unwrap();
    let (peer, _) = client_async(request, a).await.unwrap();
    (peer, accepting)
}

/// The Noise frame in a message.
fn frame_of(message: WsMessage) -> Bytes {
    let mut decoder = FrameDecoder::new();
    decoder.push(message.into_data());
    decoder.next_message().unwrap().expect("a frame").payload
}

fn on_zero(payload: Vec<u8>) -> BytesMut {
    let mut out = BytesMut::new();
    append_routed(&mut out, &Message::data(payload.into()).encode(), 0, None);
    out
}

/// Answers the first Noise message.
async fn answer(peer: &mut Peer, noise: &mut Handshake) -> BytesMut {
    let first = timeout(LIMIT, peer.next()).await.unwrap().unwrap().unwrap();
    noise.receive(&frame_of(first)).unwrap();
    on_zero(noise.poll_send().expect("an answer"))
}

/// A substream with as much data as it may send at once.
fn early() -> (BytesMut, Vec<u8>) {
    let mut out = BytesMut::new();
    append_open(&mut out, 2, "");
    let data: Vec<u8> = (0..60_000).map(|i| (i % 251) as u8).collect();
    for part in data.chunks(10_000) {
        let frame = Message::data(Bytes::copy_from_slice(part)).encode();
        append_routed(&mut out, &frame, 2, None);
    }
    (out, data)
}

/// A client that does not wait for the server's last message, and sends data after its own Noise
/// message: in one long message, between pings, in fragments, and beginning in the Noise message
/// itself.
#[tokio::test(start_paused = true)]
async fn data_sent_right_after_noise_arrives() {
    for (joined, parts) in [(0, 1), (0, 7), (1500, 1), (1500, 5)] {
        let (mut peer, accepting) = upgraded(256 * 1024).await;
        let mut noise =
            Handshake::client_with(&Identity::generate(), b"anabranch-websocket-noise:").unwrap();
        let mut last = answer(&mut peer, &mut noise).await;
        let (mut data, expected) = early();
        last.extend_from_slice(&data.split_to(joined));
        peer.feed(WsMessage::Binary(last.freeze())).await.unwrap();
        peer.feed(WsMessage::Ping(Bytes::from("?"))).await.unwrap();
        let len = data.len().div_ceil(parts);
        for part in data.chunks(len) {
            let part = Bytes::copy_from_slice(part);
            peer.feed(WsMessage::Binary(part)).await.unwrap();
        }
        peer.flush().await.unwrap();
        let ours = timeout(LIMIT, accepting).await.unwrap().unwrap().unwrap();
        let mut substream = ours.accept().await.unwrap().unwrap();
        let mut got = vec![0; expected.len()];
        timeout(LIMIT, substream.read_exact(&mut got))
            .await
            .unwrap()
            .unwrap();
        assert!(got == expected, "{joined} {parts}");
        // The ping after Noise was not lost either.
        let pong = async {
            loop {
                match peer.next().await.unwrap().unwrap() {
                    WsMessage::Pong(payload) => return payload,
                    _ => continue,
                }
            }
        };
        assert_eq!(timeout(LIMIT, pong).await.unwrap(), "?");
        drop(substream);
        let end = async { while peer.next().await.is_some_and(|message| message.is_ok()) {} };
        tokio::join!(ours.close(), end);
        assert!(ours.is_idle());
    }
}

async fn cause(
    accepting: tokio::task::JoinHandle<Result<Connection, HandshakeError>>,
) -> ConnectionError {
    match timeout(LIMIT, accepting).await.unwrap().unwrap() {
        Err(HandshakeError::Ended {
            phase: HandshakePhase::Noise,
            cause,
        }) => cause,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn long_messages_are_refused_until_noise_has_succeeded() {
    let too_long =
        |size| ConnectionError::WebSocket(WebSocketError::MessageTooLong { size, max: 4224 });
    // Rejected by its header.
    let (mut peer, accepting) = upgraded(64 * 1024).await;
    let io = peer.get_mut();
    io.write_all(&[0x82, 0xff, 0, 0, 0, 0, 0, 16, 0, 0, 0, 0, 0, 0])
        .await
        .unwrap();
    io.write_all(&[0; 100]).await.unwrap();
    assert_eq!(cause(accepting).await, too_long(1 << 20));
    // In fragments.
    let (mut peer, accepting) = upgraded(64 * 1024).await;
    let io = peer.get_mut();
    for opcode in [2, 0, 0] {
        io.write_all(&[opcode, 0x80 | 126, 8, 0, 0, 0, 0, 0])
            .await
            .unwrap();
        io.write_all(&[0; 2048]).await.unwrap();
    }
    let end = cause(accepting).await;
    assert!(
        matches!(
            end,
            ConnectionError::WebSocket(WebSocketError::MessageTooLong { max: 4224, .. })
        ),
        "{end}"
    );
    // A Noise frame in several messages.
    let (mut peer, accepting) = upgraded(64 * 1024).await;
    let frame = on_zero(vec![0; 10_000]);
    let len = frame.len();
    let begin = frame.freeze().slice(..100);
    peer.send(WsMessage::Binary(begin)).await.unwrap();
    assert_eq!(cause(accepting).await, too_long(len));
}

#[tokio::test(start_paused = true)]
async fn few_pongs_wait_for_a_peer_that_has_proven_nothing() {
    let (mut peer, accepting) = upgraded(1024).await;
    // The pipe holds some pongs, and data beyond the limit is discarded.
    for _ in 0..100 {
        let ping = peer.send(WsMessage::Ping(Bytes::from_static(&[7; 125])));
        let _ = timeout(Duration::from_millis(10), ping).await;
    }
    match cause(accepting).await {
        ConnectionError::WebSocket(WebSocketError::NotReading { queued }) => {
            // One pong exceeded 1 KiB.
            assert!((1025..=1024 + 131).contains(&queued), "{queued}");
        }
        cause => panic!("{cause}"),
    }
}

/// A connection that an HTTP server has upgraded has the same limits.
#[tokio::test(start_paused = true)]
async fn upgraded_streams_are_read_frame_by_frame_as_well() {
    let (a, b) = duplex(256 * 1024);
    let accepting = tokio::spawn(async move {
        let config = server(Authentication::noise(Identity::generate()));
        accept_upgraded(b, &config).await
    });
    let mut peer = WebSocketStream::from_raw_socket(a, Role::Client, None).await;
    let mut noise =
        Handshake::client_with(&Identity::generate(), b"anabranch-websocket-noise:").unwrap();
    let last = answer(&mut peer, &mut noise).await;
    let (data, expected) = early();
    peer.feed(WsMessage::Binary(last.freeze())).await.unwrap();
    peer.feed(WsMessage::Binary(data.freeze())).await.unwrap();
    peer.flush().await.unwrap();
    let ours = timeout(LIMIT, accepting).await.unwrap().unwrap().unwrap();
    let mut substream = ours.accept().await.unwrap().unwrap();
    let mut got = vec![0; expected.len()];
    timeout(LIMIT, substream.read_exact(&mut got))
        .await
        .unwrap()
        .unwrap();
    assert!(got == expected);
}
