//! The ends of connections, by either side: close frames, sockets that end without one, dropped
//! handles.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use tokio::io::{
    AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf, duplex,
};
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::Role;
use tokio_tungstenite::tungstenite::{Message as WsMessage, protocol::CloseFrame};

use super::carrier;
use super::connections::plain;
use super::hostile::{Scripted, data, open};
use crate::carrier::Carrier;
use crate::connection::{Connection, ConnectionError, OpenError};
use crate::message::mux::{append_flag, append_routed};
use crate::message::{Flag, FrameDecoder, Message};
use crate::substream::{FinishError, SubstreamError};
use crate::websocket::{WebSocketConfig, WebSocketError};

const LIMIT: Duration = Duration::from_secs(60);

/// Row O-9: pending operations, and later ones, fail with the peer's code and reason.
#[tokio::test(start_paused = true)]
async fn o9_closes_of_the_peer_reach_everybody() {
    let crash = WebSocketError::Closed {
        code: 1011,
        reason: "crash".to_owned(),
    };
    let logout = ConnectionError::ClosedByPeerWith {
        code: 4001,
        reason: "logout".to_owned(),
    };
    for (code, reason, cause) in [
        (4001_u16, "logout", logout),
        (1011, "crash", ConnectionError::WebSocket(crash)),
        (1001, "", ConnectionError::ClosedByPeer),
    ] {
        let mut scripted = Scripted::new().await;
        scripted.send(open(2)).await;
        let substream = scripted.ours.accept().await.unwrap().unwrap();
        let (mut read, mut write) = substream.into_split();
        let reading = tokio::spawn(async move { read.read_u8().await.unwrap_err() });
        let writing = tokio::spawn(async move {
            let error = write.write_all(&[1; 1_000_000]).await.unwrap_err();
            let finish = write.finish().await;
            (error, finish)
        });
        let accepting = tokio::spawn({
            let ours = scripted.ours.clone();
            async move { ours.accept().await }
        });
        tokio::time::sleep(Duration::from_millis(10)).await;
        let close = CloseFrame {
            code: code.into(),
            reason: reason.into(),
        };
        scripted.peer.close(Some(close)).await.unwrap();
        assert_eq!(timeout(LIMIT, scripted.ours.closed()).await.unwrap(), cause);
        assert_eq!(scripted.ours.close_reason(), Some(cause.clone()));
        let reported = |error: &io::Error| {
            let source = error.get_ref().and_then(|source| source.downcast_ref());
            matches!(source, Some(SubstreamError::ConnectionLost(reported)) if *reported == cause)
        };
        let end = timeout(LIMIT, reading).await.unwrap().unwrap();
        assert!(
            end.kind() == io::ErrorKind::UnexpectedEof && reported(&end),
            "{end:?}"
        );
        let (end, finish) = timeout(LIMIT, writing).await.unwrap().unwrap();
        assert!(
            end.kind() == io::ErrorKind::ConnectionAborted && reported(&end),
            "{end:?}"
        );
        assert_eq!(finish, Err(FinishError::ConnectionLost(cause.clone())));
        let accepted = timeout(LIMIT, accepting).await.unwrap().unwrap();
        match accepted {
            Ok(None) => assert!(cause.is_orderly()),
            Err(error) => assert!(error == cause && !cause.is_orderly(), "{error}"),
            Ok(Some(substream)) => panic!("{substream:?}"),
        }
        match scripted.ours.open("").await {
            Err(OpenError::Connection(error)) => assert_eq!(error, cause),
            other => panic!("{other:?}"),
        }
        assert!(scripted.ours.is_idle());
    }
}

/// Rows O-12 and O-R3: after the drop of the last handle accepted data is still sent, however full
/// the queue, and then an orderly close frame.
#[tokio::test(start_paused = true)]
async fn o12_the_last_handle_that_is_dropped_drains_and_closes_with_1000() {
    // A pipe that is full at once, to a peer that does not read yet.
    let mut scripted = Scripted::with(WebSocketConfig::default(), 256).await;
    let mut opening = open(2);
    append_routed(&mut opening, &Message::credit(1 << 20).encode(), 2, None);
    scripted.send(&opening).await;
    let mut substream = scripted.ours.accept().await.unwrap().unwrap();
    let written = loop {
        let filling = substream.write_all(&[9; 3_000]);
        if timeout(Duration::from_millis(10), filling).await.is_err() {
            break substream.stats().sent + substream.buffered() as u64;
        }
    };
    assert!(written > 10_000, "{written}");
    let Scripted { ours, mut peer } = scripted;
    drop((substream, ours));
    let (mut payload, mut fins, mut decoder) = (0, 0, FrameDecoder::new());
    let close = loop {
        match timeout(LIMIT, peer.next()).await.expect("a close") {
            Some(Ok(WsMessage::Binary(bytes))) => {
                decoder.push(bytes);
                while let Some(frame) = decoder.next_message().unwrap() {
                    payload += frame.payload.len() as u64;
                    fins += usize::from(frame.flag == Some(Flag::Fin));
                    assert_ne!(frame.flag, Some(Flag::ResetStream));
                }
            }
            Some(Ok(WsMessage::Close(close))) => break close,
            Some(Ok(_)) => {}
            other => panic!("{other:?}"),
        }
    };
    // FIN of the substream, and the one on stream 0.
    assert_eq!((payload, fins), (written, 2));
    assert_eq!(close.map(|close| u16::from(close.code)), Some(1000));
}

/// Row O-12, for the carrier alone: it sends no close frame, and the peer reports that.
#[tokio::test(start_paused = true)]
async fn o12_a_carrier_that_is_dropped_is_a_lost_socket_to_its_peer() {
    let (a, b) = duplex(4096);
    let dropped = carrier(a, true, WebSocketConfig::default()).await;
    let mut left = carrier(b, false, WebSocketConfig::default()).await;
    drop(dropped);
    let event = timeout(LIMIT, poll_fn(|cx| left.poll_event(cx))).await;
    let cause = event.expect("the end is noticed").unwrap_err();
    assert_eq!(cause, ConnectionError::WebSocket(WebSocketError::Lost));
}

#[tokio::test(start_paused = true)]
async fn a_socket_that_ends_without_a_close_is_no_orderly_end() {
    let scripted = Scripted::new().await;
    drop(scripted.peer);
    let cause = ConnectionError::WebSocket(WebSocketError::Lost);
    assert_eq!(timeout(LIMIT, scripted.ours.closed()).await.unwrap(), cause);
}

/// A pipe whose writes fail from some time on.
struct Halved {
    io: DuplexStream,
    is_broken: Arc<AtomicBool>,
}

impl AsyncRead for Halved {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for Halved {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.is_broken.load(Ordering::Relaxed) {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[tokio::test(start_paused = true)]
async fn what_the_peer_said_last_is_read_though_nothing_can_be_written_any_more() {
    let (a, b) = duplex(256 * 1024);
    let is_broken = Arc::new(AtomicBool::new(false));
    let io = Halved {
        io: a,
        is_broken: Arc::clone(&is_broken),
    };
    let carrier = carrier(io, false, WebSocketConfig::default()).await;
    let (ours, driver) = Connection::over(carrier, plain());
    tokio::spawn(driver);
    let mut peer = WebSocketStream::from_raw_socket(b, Role::Client, None).await;
    let mut opening = open(2);
    opening.extend_from_slice(&data(2, b"hello"));
    peer.send(WsMessage::Binary(opening.freeze()))
        .await
        .unwrap();
    let mut substream = timeout(LIMIT, ours.accept())
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    let mut hello = [0; 5];
    substream.read_exact(&mut hello).await.unwrap();

    // It writes to a socket that is closed already, and fails before it has read the rest.
    is_broken.store(true, Ordering::Relaxed);
    substream.write_all(b"too late").await.unwrap();
    tokio::time::sleep(Duration::from_millis(10)).await;
    let mut last = data(2, b" and goodbye");
    append_flag(&mut last, 2, Flag::Fin, None);
    peer.send(WsMessage::Binary(last.freeze())).await.unwrap();
    let close = CloseFrame {
        code: 4007.into(),
        reason: "done".into(),
    };
    peer.send(WsMessage::Close(Some(close))).await.unwrap();
    let mut rest = Vec::new();
    substream.read_to_end(&mut rest).await.unwrap();
    assert_eq!(rest, b" and goodbye");
    let cause = timeout(LIMIT, ours.closed()).await.unwrap();
    assert_eq!(
        cause,
        ConnectionError::ClosedByPeerWith {
            code: 4007,
            reason: "done".to_owned()
        }
    );
    drop(substream);
    assert!(ours.is_idle());
}
