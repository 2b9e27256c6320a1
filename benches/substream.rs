//! The substream layer over the memory carrier, compared with the bare carrier and with carrier
//! plus codec.
//!
//!     cargo bench --bench substream

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use anabranch::carrier::{Carrier, CarrierEvent, ChannelId, Class, Written};
use anabranch::message::{FrameDecoder, Message};
use anabranch::{Config, Connection, Negotiation};
use anabranch_testkit::memory::{MemoryCarrier, MemoryConfig, pair};
use bytes::{Bytes, BytesMut};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use tokio::io::AsyncWriteExt;

/// Bytes of one measured transfer.
const BYTES: usize = 16 * 1024 * 1024;

fn layers(c: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .expect("a runtime");
    // Handles and drivers contend for the locks of a substream.
    let threads = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_time()
        .build()
        .expect("a runtime");
    let mut group = c.benchmark_group("substream");
    for size in [64, 1024, 16 * 1024] {
        let bytes = if size < 1024 { BYTES / 8 } else { BYTES };
        group.throughput(Throughput::Bytes(bytes as u64));
        for codec in [false, true] {
            let name = if codec { "carrier + codec" } else { "carrier" };
            group.bench_function(BenchmarkId::new(name, size), |b| {
                b.iter_custom(|rounds| {
                    (0..rounds)
                        .map(|_| runtime.block_on(bare(size, bytes, codec)))
                        .sum()
                });
            });
        }
        for (name, runtime) in [
            ("carrier + substream", &runtime),
            ("carrier + substream, threads", &threads),
        ] {
            group.bench_function(BenchmarkId::new(name, size), |b| {
                b.iter_custom(|rounds| {
                    (0..rounds)
                        .map(|_| runtime.block_on(substream(size, bytes)))
                        .sum()
                });
            });
        }
    }
    group.finish();
}

fn config() -> MemoryConfig {
    MemoryConfig::default()
}

/// Messages of `size` over one channel, with or without frames.
async fn bare(size: usize, bytes: usize, codec: bool) -> Duration {
    let (mut sender, mut receiver, _) = pair(config());
    let channel = sender.open("").expect("a channel");
    let payload = Bytes::from(vec![5; size.min(16_379)]);
    let began = Instant::now();
    let sending = async {
        let mut frame = BytesMut::with_capacity(16_384);
        let mut left = bytes;
        while left > 0 {
            let now = payload.slice(..left.min(payload.len()));
            left -= now.len();
            if codec {
                frame.clear();
                Message::data(now).encode_into(&mut frame);
            }
            let message: &[u8] = if codec { &frame } else { &payload };
            while sender.write(channel, message, Class::Data) == Written::Busy {
                until_writable(&mut sender).await;
            }
        }
        // Keeps the carrier alive until every message has arrived.
        sender
    };
    let receiving = async {
        let mut decoder = FrameDecoder::new();
        let mut got = 0;
        while got < bytes {
            let channel = until_readable(&mut receiver).await;
            while let Some(message) = receiver.read(channel) {
                if !codec {
                    got += message.len();
                    continue;
                }
                decoder.push(message);
                while let Some(message) = decoder.next_message().expect("good frames") {
                    got += message.payload.len();
                }
            }
        }
    };
    let _ = tokio::join!(sending, receiving);
    began.elapsed()
}

async fn until_writable(carrier: &mut MemoryCarrier) {
    poll_fn(|cx| {
        loop {
            match carrier.poll_event(cx) {
                Poll::Ready(Ok(CarrierEvent::Writable)) => return Poll::Ready(()),
                Poll::Ready(event) => drop(event.expect("the carrier lives")),
                Poll::Pending => return Poll::Pending,
            }
        }
    })
    .await;
}

async fn until_readable(carrier: &mut MemoryCarrier) -> ChannelId {
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

/// Writes of `size` over one substream.
async fn substream(size: usize, bytes: usize) -> Duration {
    let (a, b, _) = pair(config());
    let mut config = Config::default();
    config.negotiation = Negotiation::None;
    let config = Arc::new(config);
    let (opener, driver) = Connection::over(a, Arc::clone(&config));
    tokio::spawn(driver);
    let (acceptor, driver) = Connection::over(b, config);
    tokio::spawn(driver);
    let mut write = opener.open("").await.expect("a substream");
    let mut read = acceptor
        .accept()
        .await
        .expect("a connection")
        .expect("a substream");
    let message = vec![5; size];
    let began = Instant::now();
    let sending = async {
        for _ in 0..bytes / size {
            write.write_all(&message).await.expect("a write");
        }
        write.flush().await.expect("a flush");
    };
    let receiving = async {
        // The first answer, which announces to the opener what this side accepts.
        read.write_all(b"!").await.expect("a write");
        let mut got = 0;
        while got < bytes {
            let chunk = read.read_chunk(usize::MAX).await.expect("a read");
            got += chunk.expect("more to come").len();
        }
    };
    tokio::join!(sending, receiving);
    began.elapsed()
}

// The command line overrides what is set here, but not what a group sets.
criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(3));
    targets = layers
}
criterion_main!(benches);
