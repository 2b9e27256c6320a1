//! Violations of RFC 6455, frame by frame: the close code for each, and the reported cause.

use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message as WsMessage;
use tokio_tungstenite::tungstenite::error::ProtocolError as P;
use tokio_tungstenite::tungstenite::protocol::frame::coding::Data;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role};

use super::carrier;
use super::connections::plain;
use super::hostile::{data, open};
use crate::connection::{Connection, ConnectionError};
use crate::substream::SubstreamError;
use crate::websocket::{WebSocketConfig, WebSocketError};

const LIMIT: Duration = Duration::from_secs(60);
const FIN: u8 = 0x80;
const CONTINUATION: u8 = 0x0;
const TEXT: u8 = 0x1;
const BINARY: u8 = 0x2;
const CLOSE: u8 = 0x8;
const PING: u8 = 0x9;
const PONG: u8 = 0xa;

/// The header of a frame with a payload of this length, masked with zeros.
fn header(first: u8, masked: bool, len: u64) -> Vec<u8> {
    let mask = if masked { 0x80 } else { 0 };
    let mut out = match len {
        0..126 => vec![first, mask | len as u8],
        126..0x1_0000 => [&[first, mask | 126][..], &(len as u16).to_be_bytes()].concat(),
        _ => [&[first, mask | 127][..], &len.to_be_bytes()].concat(),
    };
    if masked {
        out.extend_from_slice(&[0; 4]);
    }
    out
}

/// A frame of a client.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    [header(first, true, payload.len() as u64), payload.to_vec()].concat()
}

/// Sends a substream with data, then `bytes`, and returns the close frame that answers them.
/// Asserts that everything before was delivered, and that substream and connection report `error`.
async fn answer(is_client: bool, bytes: &[u8], error: &WebSocketError) -> CloseFrame {
    let (a, b) = duplex(256 * 1024);
    let carrier = carrier(a, is_client, WebSocketConfig::default()).await;
    let (ours, driver) = Connection::over(carrier, plain());
    tokio::spawn(driver);
    let role = if is_client {
        Role::Server
    } else {
        Role::Client
    };
    let mut peer: WebSocketStream<DuplexStream> =
        WebSocketStream::from_raw_socket(b, role, None).await;
    // Clients have even numbers.
    let number = if is_client { 1 } else { 2 };
    let before = [open(number), data(number, b"before")].concat();
    let before = [
        header(FIN | BINARY, !is_client, before.len() as u64),
        before,
    ]
    .concat();
    peer.get_mut().write_all(&before).await.unwrap();
    let mut substream = ours.accept().await.unwrap().unwrap();
    peer.get_mut().write_all(bytes).await.unwrap();
    let close = loop {
        match timeout(LIMIT, peer.next()).await.expect("a close") {
            Some(Ok(WsMessage::Close(Some(close)))) => break close,
            Some(Ok(_)) => {}
            other => panic!("{other:?}"),
        }
    };
    let cause = ConnectionError::WebSocket(error.clone());
    assert_eq!(timeout(LIMIT, ours.closed()).await.unwrap(), cause);
    let mut before = [0; 6];
    substream.read_exact(&mut before).await.unwrap();
    assert_eq!(&before, b"before");
    let end = substream.read_u8().await.unwrap_err();
    assert_eq!(end.kind(), std::io::ErrorKind::UnexpectedEof);
    let source = end.get_ref().and_then(|source| source.downcast_ref());
    assert!(
        matches!(source, Some(SubstreamError::ConnectionLost(reported)) if *reported == cause),
        "{end:?}"
    );
    drop(substream);
    assert!(ours.is_idle());
    close
}

/// Row O-3: what RFC 6455 forbids, each with the error of tungstenite.
#[tokio::test(start_paused = true)]
async fn o3_frames_that_break_the_rules_are_answered_with_1002_and_named() {
    let ping = vec![7; 126];
    let cases: [(&str, Vec<u8>, P); 17] = [
        (
            "RSV1",
            frame(FIN | 0x40 | BINARY, b"x"),
            P::NonZeroReservedBits,
        ),
        (
            "RSV2",
            frame(FIN | 0x20 | BINARY, b"x"),
            P::NonZeroReservedBits,
        ),
        (
            "RSV3",
            frame(FIN | 0x10 | PING, b"x"),
            P::NonZeroReservedBits,
        ),
        ("opcode 3", frame(FIN | 3, b"x"), P::InvalidOpcode(3)),
        ("opcode 7", frame(FIN | 7, b""), P::InvalidOpcode(7)),
        ("opcode 11", frame(FIN | 11, b""), P::InvalidOpcode(11)),
        ("opcode 15", frame(FIN | 15, b"x"), P::InvalidOpcode(15)),
        (
            "no mask",
            [header(FIN | BINARY, false, 1), vec![0]].concat(),
            P::UnmaskedFrameFromClient,
        ),
        ("half a ping", frame(PING, b"x"), P::FragmentedControlFrame),
        ("half a pong", frame(PONG, b"x"), P::FragmentedControlFrame),
        (
            "half a close",
            frame(CLOSE, &[3, 232]),
            P::FragmentedControlFrame,
        ),
        (
            "a ping of 126 bytes",
            frame(FIN | PING, &ping),
            P::ControlFrameTooBig,
        ),
        (
            "a pong of 126 bytes",
            frame(FIN | PONG, &ping),
            P::ControlFrameTooBig,
        ),
        (
            "a close of 126 bytes",
            frame(FIN | CLOSE, &[&[3, 232][..], &[b'x'; 124]].concat()),
            P::ControlFrameTooBig,
        ),
        (
            "a message within another",
            [frame(BINARY, b"\x01"), frame(FIN | BINARY, b"x")].concat(),
            P::ExpectedFragment(Data::Binary),
        ),
        (
            "the rest of nothing",
            frame(FIN | CONTINUATION, b"x"),
            P::UnexpectedContinueFrame,
        ),
        (
            "a close of one byte",
            frame(FIN | CLOSE, &[3]),
            P::InvalidCloseSequence,
        ),
    ];
    for (what, bytes, error) in cases {
        println!("{what}");
        let error = WebSocketError::Protocol(error.to_string());
        let close = answer(false, &bytes, &error).await;
        assert_eq!(
            (u16::from(close.code), close.reason.as_str()),
            (1002, &*error.to_string()),
            "{what}"
        );
    }
    // A server must not mask.
    let error = WebSocketError::Protocol(P::MaskedFrameFromServer.to_string());
    let close = answer(true, &frame(FIN | BINARY, b"x"), &error).await;
    assert_eq!(u16::from(close.code), 1002);
}

/// Row O-3: codes that are not allowed in a close frame (RFC 6455 section 7.4) are no orderly
/// close.
#[tokio::test(start_paused = true)]
async fn o3_codes_that_may_not_be_sent_are_answered_with_1002() {
    for code in [0_u16, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65_535] {
        println!("{code}");
        let error = WebSocketError::Closed {
            code: 1002,
            reason: "Protocol violation".to_owned(),
        };
        let close = answer(false, &frame(FIN | CLOSE, &code.to_be_bytes()), &error).await;
        assert_eq!(u16::from(close.code), 1002, "{code}");
    }
}

/// Row O-3: invalid UTF-8, in a message and in the reason of a close.
#[tokio::test(start_paused = true)]
async fn o3_bytes_that_are_not_utf_8_are_answered_with_1007() {
    let invalid = b"\xc3\x28";
    let reason = [&1000_u16.to_be_bytes()[..], invalid].concat();
    for bytes in [frame(FIN | TEXT, invalid), frame(FIN | CLOSE, &reason)] {
        let close = answer(false, &bytes, &WebSocketError::InvalidUtf8).await;
        assert_eq!(u16::from(close.code), 1007);
    }
}

/// Row O-3: a length is checked before the payload arrives, and the sum of the fragments of a
/// message with each of them.
#[tokio::test(start_paused = true)]
async fn o3_what_is_too_long_is_refused_before_it_has_come() {
    let max = WebSocketConfig::default().max_message;
    for size in [max as u64 + 1, 1 << 32, i64::MAX as u64] {
        let error = WebSocketError::MessageTooLong {
            size: usize::try_from(size).unwrap(),
            max,
        };
        let close = answer(false, &header(FIN | BINARY, true, size), &error).await;
        assert_eq!(u16::from(close.code), 1009, "{size}");
    }
    let half = Bytes::from(vec![0; max / 2]);
    let pieces = [
        frame(BINARY, &half),
        frame(CONTINUATION, &half),
        header(FIN | CONTINUATION, true, 1),
        vec![0],
    ]
    .concat();
    let error = WebSocketError::MessageTooLong { size: max + 1, max };
    let close = answer(false, &pieces, &error).await;
    assert_eq!(u16::from(close.code), 1009);
}

/// The opposite: unusual, but allowed.
#[tokio::test(start_paused = true)]
async fn o3_control_frames_between_the_pieces_of_a_message_are_allowed() {
    let (a, b) = duplex(256 * 1024);
    let carrier = carrier(a, false, WebSocketConfig::default()).await;
    let (ours, driver) = Connection::over(carrier, plain());
    tokio::spawn(driver);
    let mut peer: WebSocketStream<DuplexStream> =
        WebSocketStream::from_raw_socket(b, Role::Client, None).await;
    let message = [open(2), data(2, b"all of it")].concat();
    let (head, tail) = message.split_at(5);
    let bytes = [
        frame(BINARY, head),
        frame(FIN | PING, &[7; 125]),
        frame(CONTINUATION, b""),
        frame(FIN | PONG, b"unasked"),
        frame(FIN | CONTINUATION, tail),
    ]
    .concat();
    peer.get_mut().write_all(&bytes).await.unwrap();
    let mut substream = ours.accept().await.unwrap().unwrap();
    let mut all = [0; 9];
    substream.read_exact(&mut all).await.unwrap();
    assert_eq!(&all, b"all of it");
    let pong = loop {
        match timeout(LIMIT, peer.next()).await.expect("a pong") {
            Some(Ok(WsMessage::Pong(payload))) => break payload,
            Some(Ok(WsMessage::Binary(_))) => {}
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(pong, [7; 125][..]);
    assert_eq!(ours.close_reason(), None);
}
