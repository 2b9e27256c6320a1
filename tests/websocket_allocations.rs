//! Batching costs nothing for a single frame. Rows SR-1, SR-3 and S-10.

use std::cell::Cell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use anabranch::carrier::{Carrier, Class, Written};
use anabranch::message::Message;
use anabranch::websocket::{WebSocketConfig, carrier_over};
use bytes::Bytes;
use futures_util::SinkExt;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message as WsMessage;
use tokio_tungstenite::tungstenite::protocol::Role;

mod allocator;
use allocator::Watched;

thread_local! {
    /// Of this thread: the harness allocates in its own at any time.
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

#[global_allocator]
static ALLOCATOR: Watched = Watched {
    allocated: |_| {
        let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
    },
    freed: |_| {},
};

/// A socket that accepts everything, and counts it.
#[derive(Default)]
struct Taking {
    bytes: usize,
    writes: usize,
}

impl AsyncRead for Taking {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        _: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Poll::Pending
    }
}

impl AsyncWrite for Taking {
    fn poll_write(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.bytes += buf.len();
        self.writes += 1;
        TAKEN.store(self.bytes, Ordering::Relaxed);
        WRITES.store(self.writes, Ordering::Relaxed);
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

static TAKEN: AtomicUsize = AtomicUsize::new(0);
static WRITES: AtomicUsize = AtomicUsize::new(0);

/// Allocations, bytes and writes of the socket.
fn counts() -> [usize; 3] {
    let [bytes, writes] = [&TAKEN, &WRITES].map(|count| count.load(Ordering::Relaxed));
    [ALLOCATIONS.get(), bytes, writes]
}

const FRAMES: usize = 1000;

#[tokio::test(start_paused = true)]
async fn sr1_a_frame_alone_costs_what_a_bare_message_costs() {
    for size in [64, 1000, 16_000] {
        let frame = Message::data(vec![7; size].into()).encode();
        // As a server: the mask of a client is random, and costs a copy.
        let mut carrier = carrier_over(Taking::default(), false, WebSocketConfig::default())
            .await
            .expect("settings");
        let channel = carrier.open("").expect("a channel is free");
        let mut start = [0; 3];
        for n in 0..FRAMES + 10 {
            if n == 10 {
                // Buffers have found their size, and the channel is announced.
                start = counts();
            }
            assert_eq!(carrier.write(channel, &frame, Class::Data), Written::Taken);
            poll_fn(|cx| {
                assert!(carrier.poll_event(cx).is_pending());
                Poll::Ready(())
            })
            .await;
        }
        let [allocations, bytes, writes] = [0, 1, 2].map(|i: usize| counts()[i] - start[i]);
        assert_eq!(carrier.message_counts().sent as usize, FRAMES + 10);
        drop(carrier);

        // The same bytes on the wire: three more for the number of the substream.
        let same = Bytes::from(vec![7; bytes / FRAMES - header(bytes / FRAMES)]);
        let mut bare =
            WebSocketStream::from_raw_socket(Taking::default(), Role::Server, None).await;
        let mut start = [0; 3];
        for n in 0..FRAMES + 10 {
            if n == 10 {
                start = counts();
            }
            bare.send(WsMessage::Binary(same.clone()))
                .await
                .expect("taken");
        }
        let bare = [0, 1, 2].map(|i: usize| counts()[i] - start[i]);
        println!(
            "{size}: {allocations} allocations, {bytes} bytes, {writes} writes; bare {bare:?}"
        );
        assert_eq!([bytes, writes], [bare[1], bare[2]], "{size}");
        assert_eq!(
            bytes / FRAMES,
            frame.len() + 3 + header(bytes / FRAMES),
            "{size}"
        );
        assert_eq!((allocations, bare[0]), (0, 0), "{size}");
    }
}

/// Length of the header of a WebSocket frame, by the length of the whole frame.
fn header(length: usize) -> usize {
    if length <= 127 { 2 } else { 4 }
}
