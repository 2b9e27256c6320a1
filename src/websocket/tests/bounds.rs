//! The limits of a WebSocket in `docs/reliability.md`, measured.

use std::future::poll_fn;
use std::task::Poll;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncWriteExt, duplex};
use tokio::time::{Instant, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message as WsMessage;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::carrier;
use super::connections::plain;
use super::hostile::{Scripted, data, open};
use crate::carrier::{Carrier, CarrierEvent, Class, OpenChannelError, Written};
use crate::connection::{Connection, ConnectionError};
use crate::message::mux::append_flag;
use crate::message::{DecodeError, Flag, MAX_BODY, Message};
use crate::websocket::{WebSocketConfig, WebSocketError};

const LIMIT: Duration = Duration::from_secs(60);

#[tokio::test(start_paused = true)]
async fn a_label_has_1_024_bytes_at_most() {
    let (a, _b) = duplex(4096);
    let mut carrier = carrier(a, true, WebSocketConfig::default()).await;
    carrier.open(&"l".repeat(1024)).expect("the longest");
    assert_eq!(
        carrier.open(&"l".repeat(1025)),
        Err(OpenChannelError::LabelTooLong {
            len: 1025,
            max: 1024
        })
    );
}

/// A message is split into events one frame at a time: a message of ten thousand frames queues no
/// ten thousand events.
#[tokio::test(start_paused = true)]
async fn a_message_of_many_frames_makes_one_event_at_a_time() {
    let (a, b) = duplex(1 << 20);
    let mut carrier = carrier(a, false, WebSocketConfig::default()).await;
    let mut peer = WebSocketStream::from_raw_socket(b, Role::Client, None).await;
    let mut message = open(2);
    message.extend_from_slice(&open(4));
    // Alternating, so that they form no runs.
    for n in 0..10_000 {
        message.extend_from_slice(&data(2 + 2 * (n % 2), b"x"));
    }
    peer.send(WsMessage::Binary(message.freeze()))
        .await
        .unwrap();
    let (mut events, mut readable) = (0, 0);
    while readable < 10_000 {
        let event = timeout(LIMIT, poll_fn(|cx| carrier.poll_event(cx))).await;
        events += 1;
        if matches!(event.expect("more"), Ok(CarrierEvent::Readable { .. })) {
            readable += 1;
        }
        assert!(carrier.waiting_events() <= 2, "after {events} events");
    }
}

/// Remembered stream numbers that were answered with RESET_STREAM: 256, of which the oldest are
/// removed first.
#[tokio::test(start_paused = true)]
async fn late_data_of_256_substreams_is_remembered_and_the_oldest_forgotten() {
    let (a, b) = duplex(1 << 20);
    let mut carrier = carrier(a, false, WebSocketConfig::default()).await;
    let mut peer = WebSocketStream::from_raw_socket(b, Role::Client, None).await;
    // Streams up to this number are closed.
    let last = 2 * 1000;
    let mut message = open(last);
    append_flag(&mut message, last, Flag::ResetStream, None);
    for n in 1..=300 {
        message.extend_from_slice(&data(2 * n, b"late"));
    }
    // The first 44 are removed, the others remembered.
    for n in (1..=300).rev() {
        message.extend_from_slice(&data(2 * n, b"late"));
    }
    peer.send(WsMessage::Binary(message.freeze()))
        .await
        .unwrap();
    let resets = tokio::spawn(async move {
        let (mut resets, mut decoder) = (0, crate::message::FrameDecoder::new());
        while let Ok(Some(Ok(message))) = timeout(Duration::from_secs(5), peer.next()).await {
            decoder.push(message.into_data());
            while let Some(frame) = decoder.next_message().unwrap() {
                resets += usize::from(frame.flag == Some(Flag::ResetStream));
            }
        }
        resets
    });
    let driving = async { while poll_fn(|cx| carrier.poll_event(cx)).await.is_ok() {} };
    timeout(LIMIT, driving).await.expect("the peer goes");
    assert_eq!(carrier.channels().len().1, 256);
    assert_eq!(resets.await.unwrap(), 300 + 44);
}

/// A peer that does not answer a close, and continues to send: 4 MiB are read at once, then the
/// connection ends.
#[tokio::test(start_paused = true)]
async fn what_comes_after_the_own_close_is_read_up_to_4_mib() {
    let Scripted { ours, mut peer } = Scripted::new().await;
    let io = peer.get_mut();
    // By hand, since tungstenite answers the close.
    let frame = [
        &[0x82, 0xfe, 0x40, 0x00, 0, 0, 0, 0][..],
        &Message::data(vec![7; 16_379].into()).encode(),
    ]
    .concat();
    let begin = Instant::now();
    let closing = tokio::spawn(async move {
        ours.close().await;
        assert!(ours.is_idle());
    });
    tokio::task::yield_now().await;
    let (mut sent, mut in_pipe) = (0, 0);
    while sent < 100 << 20 {
        match timeout(Duration::from_secs(5), io.write_all(&frame)).await {
            Ok(Ok(())) => sent += frame.len(),
            _ => break,
        }
        in_pipe = 256 * 1024;
    }
    closing.await.unwrap();
    assert!(
        begin.elapsed() < Duration::from_secs(1),
        "{:?}",
        begin.elapsed()
    );
    let most = (4 << 20) + in_pipe + 2 * frame.len();
    assert!((4 << 20..=most).contains(&sent), "{sent} of {most}");
}

/// The same with a peer that sends little, for ever: `WebSocketConfig::close_timeout`.
#[tokio::test(start_paused = true)]
async fn what_drips_after_the_own_close_is_read_for_the_close_timeout() {
    let Scripted { ours, mut peer } = Scripted::new().await;
    let begin = Instant::now();
    let closing = tokio::spawn(async move {
        ours.close().await;
        begin.elapsed()
    });
    let io = peer.get_mut();
    // An endless message.
    let mut opcode = 2;
    while !closing.is_finished() {
        let _ = io.write_all(&[opcode, 0x81, 0, 0, 0, 0, 0]).await;
        opcode = 0;
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(begin.elapsed() < Duration::from_secs(60));
    }
    assert_eq!(closing.await.unwrap(), Duration::from_secs(1));
}

/// Queued flags, credit and answers: beyond `control_backlog` control frames are refused, like
/// data.
#[tokio::test(start_paused = true)]
async fn control_frames_are_refused_beyond_the_backlog() {
    let (a, _unread) = duplex(256);
    let mut config = WebSocketConfig::default();
    config.control_backlog = 10_000;
    let batch = config.batch;
    let mut carrier = carrier(a, true, config).await;
    let channel = carrier.open("").unwrap();
    let mut taken = 0;
    for _ in 0..1000 {
        let frame = Message::credit(u64::MAX).encode();
        while carrier.write(channel, &frame, Class::Control) == Written::Taken {
            taken += frame.len();
            assert!(taken < 1 << 20, "it goes on taking");
        }
        poll_fn(|cx| {
            while let Poll::Ready(event) = carrier.poll_event(cx) {
                event.unwrap();
            }
            Poll::Ready(())
        })
        .await;
    }
    // Another message is in tungstenite, and each frame has its stream number.
    let most = 2 * (batch + 10_000);
    assert!((batch..=most).contains(&taken), "{taken} of {most}");
}

/// A frame that is split between messages is buffered until it is complete: 16 KiB.
#[tokio::test(start_paused = true)]
async fn a_frame_that_is_never_finished_keeps_16_kib() {
    let (a, b) = duplex(64 * 1024);
    let carrier = carrier(a, false, WebSocketConfig::default()).await;
    let (ours, driver) = Connection::over(carrier, plain());
    tokio::spawn(driver);
    let mut peer = WebSocketStream::from_raw_socket(b, Role::Client, None).await;
    let mut frame = BytesMut::new();
    let whole = Message::data(vec![7; 16_000].into()).encode();
    crate::message::mux::append_routed(&mut frame, &whole, 2, Some(""));
    let almost = frame.split_to(frame.len() - 1).freeze();
    // Byte by byte, each in a message.
    for byte in almost.iter() {
        let message = WsMessage::Binary(Bytes::copy_from_slice(&[*byte]));
        peer.feed(message).await.unwrap();
    }
    peer.flush().await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(ours.close_reason(), None);
    assert_eq!(ours.stats().substreams, 0);
    peer.send(WsMessage::Binary(frame.freeze())).await.unwrap();
    let substream = timeout(LIMIT, ours.accept()).await.unwrap().unwrap();
    assert_eq!(substream.expect("open").unread(), 16_000);
    // A longer one is rejected by its length alone.
    let too_long = WsMessage::Binary(Bytes::from_static(&[0xff, 0xff, 0x01]));
    peer.send(too_long).await.unwrap();
    let cause = timeout(Duration::from_secs(5), ours.closed())
        .await
        .unwrap();
    let error = DecodeError::FrameTooLarge {
        len: 0x7fff,
        max: MAX_BODY,
    };
    assert_eq!(
        cause,
        ConnectionError::WebSocket(WebSocketError::Framing(error))
    );
}
