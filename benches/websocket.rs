//! The cost of the layers over a WebSocket, compared with bare tokio-tungstenite messages in one
//! run, and the gain of batching.
//!
//!     cargo bench --bench websocket
//!
//! Both ends run on one thread, so these are figures per core of both sides together. The rounds of
//! all candidates are interleaved, and the table shows their medians. `--rounds N`, default 9.
//! `--json` prints all values.

use std::future::poll_fn;
use std::io::Write;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use anabranch::carrier::{Carrier, CarrierEvent, ChannelId, Class, Written};
use anabranch::message::{FrameDecoder, Message, max_payload};
use anabranch::websocket::{WebSocketConfig, carrier_over};
use anabranch::{Config, Connection, Negotiation};
use bytes::{Bytes, BytesMut};
use futures_util::future::join_all;
use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, DuplexStream};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message as WsMessage;
use tokio_tungstenite::tungstenite::protocol::Role;

/// Bytes of one measured transfer.
const BYTES: usize = 32 * 1024 * 1024;
/// Messages of one measurement of batching.
const SMALL_MESSAGES: usize = 100_000;
const SUBSTREAMS: usize = 100;

fn main() {
    let rounds = std::env::args()
        .skip_while(|argument| argument != "--rounds")
        .nth(1)
        .map_or(9, |rounds| rounds.parse().expect("a number"));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let json = std::env::args().any(|argument| argument == "--json");
    let over = "in memory (duplex of 256 KiB)";
    layers(&runtime, rounds, json, over, async || memory());
    layers(&runtime, rounds, json, "over loopback TCP", tcp);
    let mut times = [const { Vec::new() }; 3];
    for _ in 0..rounds {
        let pair = runtime.block_on(tcp());
        times[0].push(runtime.block_on(flushed_messages(pair)));
        let pair = runtime.block_on(tcp());
        times[1].push(runtime.block_on(flushed_substream(pair)));
        let pair = runtime.block_on(tcp());
        times[2].push(runtime.block_on(batched(pair)));
    }
    if json {
        let names = ["bare", "flushed", "batched"].into_iter().zip(&times);
        let fields = names.map(|(name, times)| rates(name, times, SMALL_MESSAGES as f64 / 1e3));
        println!("{{{}}}", fields.collect::<Vec<_>>().join(","));
        return;
    }
    println!("64-byte messages over loopback TCP, thousands a second, median of {rounds}\n");
    let [bare, flushed, batched] = times.map(|times| SMALL_MESSAGES as f64 / 1e3 / median(times));
    println!(
        "| bare, one message each | one substream, one message each \
         | {SUBSTREAMS} substreams, batched | factors |"
    );
    println!("|---|---|---|---|");
    println!(
        "| {bare:.0} | {flushed:.0} | {batched:.0} | {:.1}, {:.1} |",
        batched / bare,
        batched / flushed
    );
}

/// Transfers over one channel on the streams of `connect`, with each layer.
fn layers<I: Io>(
    runtime: &tokio::runtime::Runtime,
    rounds: usize,
    json: bool,
    over: &str,
    connect: impl AsyncFn() -> (I, I),
) {
    if !json {
        println!("one channel, {over}, MB/s, median of {rounds}\n");
        println!(
            "| size | bare messages | carrier | carrier + codec | carrier + substream \
             | over the carrier | the same, of slices | over the carrier |"
        );
        println!("|---|---|---|---|---|---|---|---|");
    }
    for size in [64, 1024, 16 * 1024] {
        let bytes = if size < 1024 { BYTES / 8 } else { BYTES };
        let mut times = [const { Vec::new() }; 5];
        for _ in 0..rounds {
            times[0].push(runtime.block_on(async { bare(connect().await, size, bytes).await }));
            for codec in [false, true] {
                let time = async { carrier(connect().await, size, bytes, codec).await };
                times[1 + usize::from(codec)].push(runtime.block_on(time));
            }
            for copied in [true, false] {
                let time = async { substream(connect().await, size, bytes, copied).await };
                times[4 - usize::from(copied)].push(runtime.block_on(time));
            }
        }
        if json {
            let names = ["bare", "carrier", "codec", "substream", "slices"];
            let names = names.into_iter().zip(&times);
            let fields = names.map(|(name, times)| rates(name, times, bytes as f64 / 1e6));
            let fields = fields.collect::<Vec<_>>().join(",");
            println!("{{\"over\":\"{over}\",\"size\":{size},{fields}}}");
            continue;
        }
        let [bare, carrier, codec, copied, slices] =
            times.map(|times| bytes as f64 / 1e6 / median(times));
        let cost = |substream: f64| (1.0 - substream / carrier) * 100.0;
        println!(
            "| {size} | {bare:.0} | {carrier:.0} | {codec:.0} | {copied:.0} | {:+.0} % \
             | {slices:.0} | {:+.0} % |",
            cost(copied),
            cost(slices)
        );
        let _ = std::io::stdout().flush();
    }
    if !json {
        println!();
    }
}

/// A field of JSON: `amount` per second in each round.
fn rates(name: &str, times: &[Duration], amount: f64) -> String {
    let rates = times.iter().map(|time| amount / time.as_secs_f64());
    format!("\"{name}\":{:.1?}", rates.collect::<Vec<_>>())
}

fn median(mut times: Vec<Duration>) -> f64 {
    times.sort();
    times[times.len() / 2].as_secs_f64()
}

trait Io: AsyncRead + AsyncWrite + Send + Unpin + 'static {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Io for T {}

fn memory() -> (DuplexStream, DuplexStream) {
    tokio::io::duplex(256 * 1024)
}

async fn tcp() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a socket");
    let address = listener.local_addr().expect("an address");
    let (client, server) = tokio::join!(TcpStream::connect(address), listener.accept());
    let (client, server) = (client.expect("a socket"), server.expect("a socket").0);
    client.set_nodelay(true).expect("an option");
    server.set_nodelay(true).expect("an option");
    (client, server)
}

/// Messages of `size`, fed as long as the WebSocket accepts them and flushed at the end.
async fn bare((a, b): (impl Io, impl Io), size: usize, bytes: usize) -> Duration {
    let mut sender = WebSocketStream::from_raw_socket(a, Role::Client, None).await;
    let mut receiver = WebSocketStream::from_raw_socket(b, Role::Server, None).await;
    let payload = Bytes::from(vec![5; size]);
    let began = Instant::now();
    let sending = async {
        for _ in 0..bytes / size {
            let message = WsMessage::Binary(payload.clone());
            sender.feed(message).await.expect("a message");
        }
        sender.flush().await.expect("a flush");
    };
    let receiving = async {
        let mut got = 0;
        while got < bytes {
            got += receiver
                .next()
                .await
                .expect("more")
                .expect("a message")
                .len();
        }
    };
    tokio::join!(sending, receiving);
    began.elapsed()
}

/// Frames with payloads of `size` over one channel, each encoded and decoded, or not.
async fn carrier((a, b): (impl Io, impl Io), size: usize, bytes: usize, codec: bool) -> Duration {
    let config = WebSocketConfig::default();
    let mut sender = carrier_over(a, true, config.clone())
        .await
        .expect("settings");
    let mut receiver = carrier_over(b, false, config).await.expect("settings");
    let channel = sender.open("").expect("a channel");
    let payload = Bytes::from(vec![5; size.min(max_payload(sender.max_message(), false))]);
    let count = bytes.div_ceil(payload.len());
    let ready = Message::data(payload.clone()).encode();
    let began = Instant::now();
    let sending = async {
        let mut frame = BytesMut::with_capacity(16_384);
        for _ in 0..count {
            let message: &[u8] = if codec {
                frame.clear();
                Message::data(payload.clone()).encode_into(&mut frame);
                &frame
            } else {
                &ready
            };
            while sender.write(channel, message, Class::Data) == Written::Busy {
                until(&mut sender, |event| *event == CarrierEvent::Writable).await;
            }
        }
        // Continues to send until it is stopped.
        until(&mut sender, |_| false).await;
    };
    let receiving = async {
        let mut decoder = FrameDecoder::new();
        let (mut got, mut raw) = (0, 0);
        let whole = count * payload.len();
        // Each frame has the field `stream`, and the first an empty label: three bytes each.
        let whole_raw = count * (ready.len() + 3) + 3;
        while got < whole && raw < whole_raw {
            let channel = until_readable(&mut receiver).await;
            while let Some(message) = receiver.read(channel) {
                if !codec {
                    raw += message.len();
                    continue;
                }
                decoder.push(message);
                while let Some(message) = decoder.next_message().expect("good frames") {
                    got += message.payload.len();
                }
            }
        }
    };
    let mut sending = pin!(sending);
    tokio::select! {
        biased;
        () = receiving => {}
        () = &mut sending => {}
    }
    began.elapsed()
}

async fn until(carrier: &mut impl Carrier, wanted: impl Fn(&CarrierEvent) -> bool) {
    poll_fn(|cx| {
        loop {
            match carrier.poll_event(cx) {
                Poll::Ready(event) if wanted(event.as_ref().expect("the carrier lives")) => {
                    return Poll::Ready(());
                }
                Poll::Ready(_) => {}
                Poll::Pending => return Poll::Pending,
            }
        }
    })
    .await;
}

async fn until_readable(carrier: &mut impl Carrier) -> ChannelId {
    poll_fn(|cx| {
        loop {
            match carrier.poll_event(cx) {
                Poll::Ready(Ok(CarrierEvent::Readable { channel })) => return Poll::Ready(channel),
                Poll::Ready(event) => drop(event.expect("the carrier lives")),
                Poll::Pending => return Poll::Pending,
            }
        }
    })
    .await
}

async fn connections((a, b): (impl Io, impl Io)) -> (Connection, Connection) {
    let websocket = WebSocketConfig::default();
    let mut config = Config::default();
    config.negotiation = Negotiation::None;
    let config = Arc::new(config);
    let a = carrier_over(a, true, websocket.clone())
        .await
        .expect("settings");
    let b = carrier_over(b, false, websocket).await.expect("settings");
    let (opener, driver) = Connection::over(a, Arc::clone(&config));
    tokio::spawn(driver);
    let (acceptor, driver) = Connection::over(b, config);
    tokio::spawn(driver);
    (opener, acceptor)
}

async fn pair(
    opener: &Connection,
    acceptor: &Connection,
) -> (anabranch::Substream, anabranch::Substream) {
    let (here, there) = tokio::join!(opener.open(""), acceptor.accept());
    let there = there.expect("a connection").expect("a substream");
    (here.expect("a substream"), there)
}

/// Writes of `size` over one substream, copied from a buffer or as slices of it.
async fn substream(io: (impl Io, impl Io), size: usize, bytes: usize, copied: bool) -> Duration {
    let (opener, acceptor) = connections(io).await;
    let (mut write, mut read) = pair(&opener, &acceptor).await;
    let message = Bytes::from(vec![5; size]);
    let began = Instant::now();
    let sending = async {
        for _ in 0..bytes / size {
            if copied {
                write.write_all(&message).await.expect("a write");
            } else {
                let chunk = message.clone();
                write.write_chunk(chunk).await.expect("a write");
            }
        }
    };
    let receiving = async {
        let mut got = 0;
        while got < bytes {
            let chunk = read.read_chunk(usize::MAX).await.expect("a read");
            got += chunk.expect("more to come").len();
        }
    };
    tokio::join!(sending, receiving);
    began.elapsed()
}

/// Bare messages, each flushed before the next.
async fn flushed_messages((a, b): (TcpStream, TcpStream)) -> Duration {
    let mut sender = WebSocketStream::from_raw_socket(a, Role::Client, None).await;
    let mut receiver = WebSocketStream::from_raw_socket(b, Role::Server, None).await;
    let payload = Bytes::from(vec![5; 64]);
    let began = Instant::now();
    let sending = async {
        for _ in 0..SMALL_MESSAGES {
            let message = WsMessage::Binary(payload.clone());
            sender.send(message).await.expect("a message");
            tokio::task::yield_now().await;
        }
    };
    let receiving = async {
        for _ in 0..SMALL_MESSAGES {
            receiver.next().await.expect("more").expect("a message");
        }
    };
    tokio::join!(sending, receiving);
    began.elapsed()
}

/// Writes on one substream, each flushed before the next.
async fn flushed_substream(io: (TcpStream, TcpStream)) -> Duration {
    let (opener, acceptor) = connections(io).await;
    let (mut write, mut read) = pair(&opener, &acceptor).await;
    let began = Instant::now();
    let sending = async {
        for _ in 0..SMALL_MESSAGES {
            write.write_all(&[5; 64]).await.expect("a write");
            write.flush().await.expect("a flush");
        }
    };
    let receiving = async {
        let mut got = 0;
        while got < SMALL_MESSAGES * 64 {
            let chunk = read.read_chunk(usize::MAX).await.expect("a read");
            got += chunk.expect("more to come").len();
        }
    };
    tokio::join!(sending, receiving);
    began.elapsed()
}

/// One write on each of many substreams, again and again. Each round is flushed before the next, so
/// that a batch merges the frames of different substreams, not the writes of one.
async fn batched(io: (TcpStream, TcpStream)) -> Duration {
    let (opener, acceptor) = connections(io).await;
    let (mut writers, mut readers) = (Vec::new(), Vec::new());
    for _ in 0..SUBSTREAMS {
        let (write, read) = pair(&opener, &acceptor).await;
        writers.push(write);
        readers.push(read);
    }
    let began = Instant::now();
    let sending = async {
        for _ in 0..SMALL_MESSAGES / SUBSTREAMS {
            for write in &mut writers {
                write.write_all(&[5; 64]).await.expect("a write");
            }
            for write in &mut writers {
                write.flush().await.expect("a flush");
            }
        }
    };
    let receiving = async {
        // All at once: the later substreams have small windows, and their writers would wait.
        let reading = readers.iter_mut().map(|read| async {
            let mut got = 0;
            while got < SMALL_MESSAGES / SUBSTREAMS * 64 {
                let chunk = read.read_chunk(usize::MAX).await.expect("a read");
                got += chunk.expect("more to come").len();
            }
        });
        join_all(reading).await;
    };
    tokio::join!(sending, receiving);
    began.elapsed()
}
