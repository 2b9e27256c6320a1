//! Peers that violate the protocol, and peers that only seem to.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::Role;
use tokio_tungstenite::tungstenite::{Message as WsMessage, protocol::CloseFrame};

use super::carrier;
use super::connections::plain;
use crate::connection::{Config, Connection, ConnectionError, Negotiation};
use crate::message::mux::{append_flag, append_open, append_routed};
use crate::message::{DecodeError, Flag, FrameDecoder, Message};
use crate::websocket::{WebSocketConfig, WebSocketError};

const LIMIT: Duration = Duration::from_secs(60);

/// A server connection, and a scripted peer.
pub(super) struct Scripted {
    pub(super) ours: Connection,
    pub(super) peer: WebSocketStream<DuplexStream>,
}

impl Scripted {
    pub(super) async fn new() -> Self {
        Self::with(WebSocketConfig::default(), 256 * 1024).await
    }

    pub(super) async fn with(config: WebSocketConfig, pipe: usize) -> Self {
        Self::with_all(config, plain(), pipe).await
    }

    async fn with_all(config: WebSocketConfig, connection: Arc<Config>, pipe: usize) -> Self {
        let (a, b) = duplex(pipe);
        let carrier = carrier(a, false, config).await;
        let (ours, driver) = Connection::over(carrier, connection);
        tokio::spawn(driver);
        let peer = WebSocketStream::from_raw_socket(b, Role::Client, None).await;
        Self { ours, peer }
    }

    pub(super) async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        let message = WsMessage::Binary(Bytes::copy_from_slice(bytes.as_ref()));
        self.peer.send(message).await.unwrap();
    }

    /// Reads the next frames.
    async fn frames(&mut self) -> Vec<Message> {
        loop {
            match timeout(LIMIT, self.peer.next()).await.expect("an answer") {
                Some(Ok(WsMessage::Binary(bytes))) => {
                    let mut decoder = FrameDecoder::new();
                    decoder.push(bytes);
                    return std::iter::from_fn(|| decoder.next_message().unwrap()).collect();
                }
                Some(Ok(WsMessage::Ping(_) | WsMessage::Pong(_))) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    /// Waits for a matching frame.
    async fn until(&mut self, wanted: impl Fn(&Message) -> bool) -> Message {
        loop {
            for message in self.frames().await {
                if wanted(&message) {
                    return message;
                }
            }
        }
    }

    /// Waits for the close frame of the connection under test.
    async fn close_frame(&mut self) -> CloseFrame {
        loop {
            match timeout(LIMIT, self.peer.next()).await.expect("a close") {
                Some(Ok(WsMessage::Close(Some(close)))) => return close,
                Some(Ok(_)) => {}
                other => panic!("{other:?}"),
            }
        }
    }
}

pub(super) fn open(stream: u64) -> BytesMut {
    let mut out = BytesMut::new();
    append_open(&mut out, stream, "");
    out
}

pub(super) fn data(stream: u64, payload: &'static [u8]) -> BytesMut {
    let mut out = BytesMut::new();
    let frame = Message::data(payload.into()).encode();
    append_routed(&mut out, &frame, stream, None);
    out
}

/// Each violation, its close code, and the error that every substream and the connection report.
#[tokio::test(start_paused = true)]
async fn j2_s4_s5_what_can_not_be_repaired_closes_with_a_code_and_a_cause() {
    let unexpected = |stream| WebSocketError::UnexpectedStream { stream };
    let mut no_label = BytesMut::new();
    append_routed(
        &mut no_label,
        &Message::data(Bytes::from("x")).encode(),
        8,
        None,
    );
    let mut labelled = BytesMut::new();
    let frame = Message::data(Bytes::from("x")).encode();
    append_routed(&mut labelled, &frame, 2, Some("again"));
    let on_zero = data(0, b"x");
    let cases = [
        (Bytes::new(), 1002, WebSocketError::EmptyMessage),
        (
            Bytes::from_static(&[0x80, 0x00]),
            1002,
            WebSocketError::Framing(DecodeError::NonMinimalVarint),
        ),
        (
            Bytes::from_static(&[0xff, 0xff, 0x7f]),
            1002,
            WebSocketError::Framing(DecodeError::FrameTooLarge {
                len: 0x1f_ffff,
                max: crate::message::MAX_BODY,
            }),
        ),
        (
            Message::data(Bytes::from("x")).encode(),
            1002,
            WebSocketError::MissingStream,
        ),
        (
            no_label.freeze(),
            1002,
            WebSocketError::MissingLabel { stream: 8 },
        ),
        (
            labelled.freeze(),
            1002,
            WebSocketError::UnexpectedLabel { stream: 2 },
        ),
        // Of the server's parity and not opened, lower than an earlier one, too large, reserved.
        (data(3, b"x").freeze(), 1002, unexpected(3)),
        (open(1).freeze(), 1002, unexpected(1)),
        (open(1 << 40).freeze(), 1002, unexpected(1 << 40)),
        (on_zero.freeze(), 1002, unexpected(0)),
    ];
    for (bytes, code, error) in cases {
        let mut scripted = Scripted::new().await;
        scripted.send([open(2), data(2, b"before")].concat()).await;
        let mut substream = scripted.ours.accept().await.unwrap().unwrap();
        scripted.send(&bytes).await;
        let close = scripted.close_frame().await;
        assert_eq!(
            (u16::from(close.code), close.reason.as_str()),
            (code, &*error.to_string())
        );
        let cause = ConnectionError::WebSocket(error.clone());
        assert_eq!(timeout(LIMIT, scripted.ours.closed()).await.unwrap(), cause);
        // Everything before the violation is delivered, then the cause.
        let mut before = [0; 6];
        substream.read_exact(&mut before).await.unwrap();
        assert_eq!(&before, b"before");
        let end = substream.read_u8().await.unwrap_err();
        assert_eq!(end.kind(), std::io::ErrorKind::UnexpectedEof);
        assert!(end.to_string().contains(&error.to_string()), "{end}");
        drop(substream);
        assert!(scripted.ours.is_idle());
    }
}

#[tokio::test(start_paused = true)]
async fn s5_text_is_closed_with_1003() {
    let mut scripted = Scripted::new().await;
    scripted.peer.send(WsMessage::text("hello")).await.unwrap();
    assert_eq!(u16::from(scripted.close_frame().await.code), 1003);
    let cause = ConnectionError::WebSocket(WebSocketError::Text);
    assert_eq!(scripted.ours.closed().await, cause);
}

#[tokio::test(start_paused = true)]
async fn r7_a_message_that_is_too_long_is_refused_by_its_header_with_both_numbers() {
    let mut config = WebSocketConfig::default();
    config.max_message = 20_000;
    let mut scripted = Scripted::with(config, 256 * 1024).await;
    scripted.send(vec![0; 20_001]).await;
    assert_eq!(u16::from(scripted.close_frame().await.code), 1009);
    let cause = ConnectionError::WebSocket(WebSocketError::MessageTooLong {
        size: 20_001,
        max: 20_000,
    });
    assert_eq!(scripted.ours.closed().await, cause);
}

#[tokio::test(start_paused = true)]
async fn j14_late_frames_are_dropped_and_late_data_is_answered_once() {
    let mut scripted = Scripted::new().await;
    scripted.send(open(2)).await;
    let substream = scripted.ours.accept().await.unwrap().unwrap();
    substream.reset(5);
    let reset = |message: &Message| message.flag == Some(Flag::ResetStream);
    let answer = scripted.until(reset).await;
    assert_eq!((answer.stream, answer.error_code), (Some(2), Some(5)));
    // Each in a message of its own: one RESET_STREAM for all of them.
    let mut fin = BytesMut::new();
    append_flag(&mut fin, 2, Flag::Fin, None);
    scripted.send(&fin).await;
    for _ in 0..3 {
        scripted.send(data(2, b"late")).await;
    }
    scripted.send(open(4)).await;
    let mut resets = 0;
    loop {
        let frames = scripted.frames().await;
        resets += frames.iter().filter(|message| reset(message)).count();
        if frames.iter().any(|message| message.stream == Some(4)) {
            break;
        }
    }
    assert_eq!(resets, 1);
    assert_eq!(scripted.ours.close_reason(), None);
}

#[tokio::test(start_paused = true)]
async fn j17_substreams_beyond_the_limit_are_reset_and_the_others_live() {
    let mut scripted = Scripted::new().await;
    let limit = plain().max_inbound_substreams as u64;
    let mut all = BytesMut::new();
    for index in 1..=limit + 3 {
        all.extend_from_slice(&open(2 * index));
    }
    scripted.send(&all).await;
    let mut refused = Vec::new();
    while refused.len() < 3 {
        for message in scripted.frames().await {
            if message.flag == Some(Flag::ResetStream) {
                assert_eq!(
                    message.error_code,
                    Some(crate::substream::code::RESOURCE_LIMIT)
                );
                refused.push(message.stream.unwrap());
            }
        }
    }
    assert_eq!(refused, [2 * limit + 2, 2 * limit + 4, 2 * limit + 6]);
    assert_eq!(scripted.ours.stats().substreams, limit);
}

#[tokio::test(start_paused = true)]
async fn o11_pongs_overtake_queued_data() {
    // A pipe that one message of data blocks for long.
    let mut scripted = Scripted::with(WebSocketConfig::default(), 1024).await;
    scripted.send(open(2)).await;
    let mut substream = scripted.ours.accept().await.unwrap().unwrap();
    let mut credit = BytesMut::new();
    let grant = Message::credit(10_000_000).encode();
    append_routed(&mut credit, &grant, 2, None);
    scripted.send(&credit).await;
    let writer = tokio::spawn(async move {
        let _ = substream.write_all(&vec![1; 2_000_000]).await;
    });
    // A part of it has arrived, and much more is queued.
    scripted.frames().await;
    scripted
        .peer
        .send(WsMessage::Ping(Bytes::from("?")))
        .await
        .unwrap();
    let mut before = 0;
    loop {
        match timeout(LIMIT, scripted.peer.next())
            .await
            .unwrap()
            .unwrap()
            .unwrap()
        {
            WsMessage::Pong(payload) => {
                assert_eq!(payload, "?");
                break;
            }
            message => before += message.len(),
        }
    }
    // The message that was being written when the ping arrived, and no more.
    assert!(before <= 64 * 1024, "{before} bytes before the pong");
    writer.abort();
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_asks_and_never_reads_is_left() {
    let mut config = WebSocketConfig::default();
    config.control_backlog = 4096;
    let mut connection = Config::default();
    connection.negotiation = Negotiation::None;
    // The idle timeout would end it sooner.
    connection.max_unused_substreams = u32::MAX;
    connection.max_frames_without_effect = u32::MAX;
    let mut scripted = Scripted::with_all(config, Arc::new(connection), 512).await;
    // Late data of a closed substream is answered, and the peer does not read.
    let mut number = 2;
    let cause = 'left: loop {
        let (mut over, mut late) = (BytesMut::new(), BytesMut::new());
        for _ in 0..20 {
            over.extend_from_slice(&open(number));
            append_flag(&mut over, number, Flag::ResetStream, None);
            late.extend_from_slice(&data(number, b"late"));
            number += 2;
        }
        for message in [over, late] {
            let sent = tokio::select! {
                biased;
                cause = scripted.ours.closed() => break 'left cause,
                sent = scripted.peer.send(WsMessage::Binary(message.freeze())) => sent,
            };
            if sent.is_err() {
                break 'left scripted.ours.closed().await;
            }
            // The driver has removed them before their data arrives.
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert!(number < 100_000, "it goes on answering");
    };
    assert!(
        matches!(
            cause,
            ConnectionError::WebSocket(WebSocketError::NotReading { queued }) if queued < 100_000
        ),
        "{cause}"
    );
}

#[tokio::test(start_paused = true)]
async fn j4_the_first_frame_has_label_and_credit_and_both_sides_show_it_at_once() {
    let mut scripted = Scripted::new().await;
    let substream = scripted.ours.open("").await.unwrap();
    let first = scripted.frames().await.remove(0);
    assert_eq!((first.stream, first.label.as_deref()), (Some(1), Some("")));
    assert!(first.max_data >= Some(64 * 1024), "{first:?}");
    scripted.send(open(2)).await;
    let answer = scripted.frames().await.remove(0);
    assert_eq!((answer.stream, &answer.label), (Some(2), &None));
    assert!(answer.max_data >= Some(60 * 1024), "{answer:?}");
    drop(substream);
}

#[tokio::test(start_paused = true)]
async fn j6_more_than_was_granted_resets_that_substream_only() {
    let mut scripted = Scripted::new().await;
    let mut first = BytesMut::new();
    let greedy = Message {
        max_data: Some(1 << 20),
        ..Message::default()
    };
    append_routed(&mut first, &greedy.encode(), 2, Some(""));
    scripted.send(&first).await;
    scripted.send(open(4)).await;
    let granted = scripted
        .until(|message| message.stream == Some(2))
        .await
        .max_data
        .unwrap();
    let payload = Bytes::from(vec![9; 16_000]);
    let mut sent = 0;
    while sent <= granted {
        let mut frame = BytesMut::new();
        append_routed(
            &mut frame,
            &Message::data(payload.clone()).encode(),
            2,
            None,
        );
        scripted.send(&frame).await;
        sent += payload.len() as u64;
    }
    let reset = scripted
        .until(|message| message.flag == Some(Flag::ResetStream))
        .await;
    let code = crate::substream::code::FLOW_CONTROL;
    assert_eq!((reset.stream, reset.error_code), (Some(2), Some(code)));
    assert_eq!(scripted.ours.close_reason(), None);
    assert_eq!(scripted.ours.stats().violations, 1);
}

#[tokio::test(start_paused = true)]
async fn s8_s14_what_is_queued_together_is_one_message_and_counted_as_one() {
    let mut scripted = Scripted::new().await;
    let mut all = BytesMut::new();
    for index in 1..=20 {
        all.extend_from_slice(&open(2 * index));
    }
    scripted.send(&all).await;
    let mut substreams = Vec::new();
    for _ in 0..20 {
        substreams.push(scripted.ours.accept().await.unwrap().unwrap());
    }
    let mut credits = scripted.frames().await;
    credits.retain(|frame| frame.max_substreams.is_none());
    assert_eq!(credits.len(), 20, "the credit of all in one message");
    let before = scripted.ours.stats();
    for substream in &mut substreams {
        substream.write_all(b"one").await.unwrap();
    }
    let frames = scripted.frames().await;
    assert_eq!(frames.len(), 20, "the data of all in one message");
    // Row S-14: frames, messages and each substream are counted apart.
    scripted
        .send([data(2, b"twice"), data(4, b"x")].concat())
        .await;
    scripted.send(data(2, b"twice")).await;
    tokio::time::sleep(Duration::from_millis(1)).await;
    let after = scripted.ours.stats();
    assert_eq!(after.frames_sent - before.frames_sent, 20);
    assert_eq!(after.messages_sent - before.messages_sent, 1);
    assert_eq!(after.frames_received - before.frames_received, 3);
    assert_eq!(after.messages_received - before.messages_received, 2);
    let counts = |substream: &crate::substream::Substream| {
        let stats = substream.stats();
        (stats.sent, stats.received)
    };
    assert_eq!(counts(&substreams[0]), (3, 10));
    assert_eq!(counts(&substreams[1]), (3, 1));
    assert_eq!(counts(&substreams[2]), (3, 0));
}

#[tokio::test(start_paused = true)]
async fn o10_a_slow_message_is_a_sign_of_life() {
    let (a, mut b) = duplex(256 * 1024);
    let carrier = carrier(a, false, WebSocketConfig::default()).await;
    let (ours, driver) = Connection::over(carrier, plain());
    tokio::spawn(driver);
    // A message of 20 bytes, one every ten seconds, masked with zeros (RFC 6455).
    let frame = open(2);
    let mut message = vec![0x82, 0x80 | frame.len() as u8, 0, 0, 0, 0];
    message.extend_from_slice(&frame);
    for byte in message {
        tokio::time::sleep(Duration::from_secs(10)).await;
        b.write_all(&[byte]).await.unwrap();
    }
    timeout(LIMIT, ours.accept())
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    let end = timeout(LIMIT, ours.closed()).await.unwrap();
    assert_eq!(end, ConnectionError::TimedOut);
}

#[tokio::test(start_paused = true)]
async fn pings_whose_pongs_are_never_read_end_the_connection() {
    let mut config = WebSocketConfig::default();
    config.control_backlog = 4096;
    // The peer does not read its end of the pipe.
    let mut scripted = Scripted::with(config, 1024).await;
    let mut pings = 0;
    let cause = loop {
        let sent = tokio::select! {
            biased;
            cause = scripted.ours.closed() => break cause,
            sent = scripted.peer.send(WsMessage::Ping(Bytes::from_static(&[7; 125]))) => sent,
        };
        if sent.is_err() {
            break scripted.ours.closed().await;
        }
        pings += 1;
        tokio::task::yield_now().await;
        assert!(pings < 50_000, "it goes on answering");
    };
    assert!(
        matches!(
            cause,
            ConnectionError::WebSocket(WebSocketError::NotReading { queued }) if queued < 5000
        ),
        "{cause}"
    );
}
