//! The memory on both sides for a stalled reader over a WebSocket, whose writer waits. Rows J-7,
//! JR-1 and JR-2.

use std::cell::Cell;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicIsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use anabranch::websocket::{WebSocketConfig, carrier_over};
use anabranch::{Config, Connection, ConnectionError, Negotiation, Substream};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

mod allocator;
use allocator::Watched;

/// Live bytes of each side, and their peak since the last mark.
static LIVE: [AtomicIsize; 2] = [const { AtomicIsize::new(0) }; 2];
static PEAK: [AtomicIsize; 2] = [const { AtomicIsize::new(0) }; 2];

thread_local! {
    /// The side whose task runs.
    static SIDE: Cell<Option<usize>> = const { Cell::new(None) };
}

fn record(size: usize, sign: isize) {
    let Ok(Some(side)) = SIDE.try_with(Cell::get) else {
        return;
    };
    let size = sign * size.cast_signed();
    let now = LIVE[side].fetch_add(size, Ordering::Relaxed) + size;
    PEAK[side].fetch_max(now, Ordering::Relaxed);
}

#[global_allocator]
static ALLOCATOR: Watched = Watched {
    allocated: |size| record(size, 1),
    freed: |size| record(size, -1),
};

/// The live bytes of both sides; resets the peaks.
fn mark() -> [isize; 2] {
    let live = [0, 1].map(|side: usize| LIVE[side].load(Ordering::Relaxed));
    for side in [0, 1] {
        PEAK[side].store(live[side], Ordering::Relaxed);
    }
    live
}

fn growth(since: [isize; 2]) -> [isize; 2] {
    [0, 1].map(|side: usize| PEAK[side].load(Ordering::Relaxed) - since[side])
}

/// A future whose allocations count for one side. Nothing is shared over the pipe, so each side
/// frees its own.
struct On<F> {
    side: usize,
    future: Pin<Box<F>>,
}

fn on<F: Future>(side: usize, future: F) -> On<F> {
    let future = Box::pin(future);
    On { side, future }
}

impl<F: Future> Future for On<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let before = SIDE.replace(Some(self.side));
        let polled = self.future.as_mut().poll(cx);
        SIDE.set(before);
        polled
    }
}

fn config() -> Config {
    let mut config = Config::default();
    config.negotiation = Negotiation::None;
    // So that the grants do not depend on the scheduling of the tasks.
    config.max_receive_window = config.receive_window;
    config
}

const LIMIT: Duration = Duration::from_secs(60);
const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|i| (i % 251) as u8).collect()
}

async fn serve(connection: Connection) {
    while let Ok(Some(substream)) = connection.accept().await {
        let (mut read, mut write) = substream.into_split();
        if tokio::io::copy(&mut read, &mut write).await.is_ok() {
            let _ = write.finish().await;
        }
    }
}

async fn echo(connection: &Connection, data: &[u8]) {
    let (mut read, mut write) = connection.open("").await.expect("open").into_split();
    let mut back = Vec::new();
    let (written, read) = tokio::join!(
        async {
            write.write_all(data).await?;
            write.shutdown().await
        },
        read.read_to_end(&mut back)
    );
    written.expect("written");
    read.expect("read");
    assert!(back == data, "{} bytes", back.len());
}

/// Writes until a write waits for a second, which only the reader can end. Returns the accepted
/// bytes.
async fn fill(writer: &mut Substream, data: &[u8], mut at: usize) -> usize {
    let first = at;
    loop {
        let begin = at % 251;
        let writing = pin!(writer.write(&data[begin..begin + 64 * KIB]));
        match timeout(Duration::from_secs(1), writing).await {
            Ok(written) => at += written.expect("it is open"),
            Err(_) => return at,
        }
        assert!(at - first < 16 * MIB, "16 MiB are taken without a reader");
    }
}

/// One end; the first is the client.
async fn connect(side: usize, io: DuplexStream) -> (Connection, JoinHandle<ConnectionError>) {
    on(side, async move {
        let carrier = carrier_over(io, side == 0, WebSocketConfig::default()).await;
        let (connection, driver) = Connection::over(carrier.expect("settings"), Arc::new(config()));
        (connection, tokio::spawn(on(side, driver)))
    })
    .await
}

async fn a_stalled_reader(opener_writes: bool) {
    let (a, b) = duplex(64 * KIB);
    let (a, driver_a) = connect(0, a).await;
    let (b, driver_b) = connect(1, b).await;
    let here = on(0, a.open("")).await.expect("open");
    let there = on(1, b.accept()).await.expect("alive").expect("open");
    let ((writing, mut writer), (reading, mut reader)) = match opener_writes {
        true => ((0, here), (1, there)),
        false => ((1, there), (0, here)),
    };
    let echoing = tokio::spawn(on(1, serve(b.clone())));
    on(0, echo(&a, &pattern(20_000))).await;

    // A reader that keeps up gets a whole window, and then stalls.
    let first = 4 * MIB;
    let data = pattern(first);
    let (sent, received) = tokio::join!(
        on(writing, async { writer.write_all(&data).await }),
        on(reading, async {
            let mut all = vec![0; first];
            reader.read_exact(&mut all).await.map(|_| all)
        })
    );
    sent.expect("written");
    assert!(received.expect("read") == data);
    sleep(Duration::from_secs(1)).await;

    // The written data does not belong to the connection.
    let before = mark();
    let taken = on(writing, fill(&mut writer, &data, first)).await - first;
    let window = reader.stats().receive_window as usize;
    let [at_writer, at_reader] = [writing, reading].map(|side| growth(before)[side]);
    println!("window {window}: {taken} taken, {at_writer} + {at_reader} bytes");
    // JR-2: the unread data, within its grant, and the two queues of the writer.
    let defaults = (config().send_buffer, WebSocketConfig::default().batch);
    assert_eq!(defaults, (64 * KIB, 64 * KIB));
    assert_eq!(window, MIB);
    assert!(
        (window / 2..=window + 128 * KIB).contains(&taken),
        "{taken}"
    );
    assert!(writer.buffered() <= 64 * KIB && reader.unread() <= window);
    // JR-1: the two queues of the writer, and the unread data of the reader with the overhead of
    // its pieces.
    assert!(at_writer <= 192 * KIB as isize, "{at_writer} at the writer");
    let unread = reader.unread() as isize;
    let most = unread + unread / 4 + 64 * KIB as isize;
    assert!(at_reader <= most, "{at_reader} at the reader");

    // J-7: others make progress without a cost in memory, and the stalled writer stays blocked.
    for _ in 0..200 {
        timeout(LIMIT, on(0, echo(&a, &data[..20_000])))
            .await
            .expect("a sibling is served");
    }
    let [at_writer, at_reader] = [writing, reading].map(|side| growth(before)[side]);
    println!("beside siblings {at_writer} + {at_reader} bytes");
    assert!(at_writer <= 256 * KIB as isize, "{at_writer} at the writer");
    let most = most + 128 * KIB as isize;
    assert!(at_reader <= most, "{at_reader} at the reader");
    let again = on(writing, fill(&mut writer, &data, first + taken)).await;
    assert_eq!(again, first + taken, "it waits still");

    // It was delayed, and nothing is lost.
    let mut rest = vec![0; taken];
    timeout(LIMIT, on(reading, reader.read_exact(&mut rest)))
        .await
        .expect("all of it arrives")
        .expect("read");
    assert!(rest == pattern(first + taken)[first..]);
    drop(rest);
    on(writing, async move { drop(writer) }).await;
    on(reading, async move { drop(reader) }).await;
    sleep(Duration::from_secs(1)).await;
    assert_eq!((a.stats().substreams, b.stats().substreams), (0, 0));
    // Only a buffer of the socket may have grown.
    let after = mark();
    for side in [0, 1] {
        let left = after[side] - before[side];
        assert!(
            left <= 128 * KIB as isize,
            "{left} bytes are left on side {side}"
        );
    }
    on(0, a.close()).await;
    on(1, b.closed()).await;
    for task in [driver_a, driver_b] {
        task.await.expect("no panic");
    }
    echoing.await.expect("no panic");
    assert!(a.is_idle() && b.is_idle());
}

#[tokio::test(start_paused = true)]
async fn jr1_a_reader_that_stalls_costs_a_window_and_its_writer_its_queues() {
    for opener_writes in [true, false] {
        a_stalled_reader(opener_writes).await;
    }
}
