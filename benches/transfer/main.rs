//! Goodput over UDP loopback: anabranch compared with a bare str0m loop with the same settings, and
//! the substream layer compared with the bare engine.
//!
//!     cargo bench --bench transfer
//!
//! The bare loop is the upper bound for a program that uses str0m directly: two threads that only
//! move the messages of one channel between two sockets. The difference is the cost of anabranch:
//! framing, substreams, scheduling, tasks and the listener's routing.

use std::time::{Duration, Instant};

use anabranch::{Connection, Endpoint, EndpointConfig, EngineFactory, Finished};
use anabranch_str0m::STR0M;
use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use resources::Usage;
use tokio::runtime::Runtime;

mod bare_str0m;
mod layers;
mod resources;

/// Bytes of one measured transfer.
const BYTES: usize = 32 * 1024 * 1024;

/// Bytes of one write.
const WRITE: usize = 16 * 1024;

fn transfer(c: &mut Criterion) {
    let mut group = c.benchmark_group("transfer");
    group.throughput(Throughput::Bytes(BYTES as u64));
    for budget in [64 * 1024, 128 * 1024] {
        let pair = bare_str0m::Pair::connect(budget);
        group.bench_function(
            format!("bare str0m, {} KiB in flight", budget / 1024),
            |b| {
                b.iter_custom(|rounds| (0..rounds).map(|_| pair.transfer(BYTES, WRITE)).sum());
            },
        );
    }
    let runtime = Runtime::new().expect("a runtime");
    for engine in [STR0M, EngineFactory::DIRECT] {
        let (_listener, connection) = runtime.block_on(connect(engine));
        for substreams in [1, 10] {
            let name = format!("anabranch on {engine}, {substreams} substreams");
            group.bench_function(name, |b| {
                b.iter_custom(|rounds| {
                    (0..rounds)
                        .map(|_| runtime.block_on(send(&connection, substreams)))
                        .sum()
                });
            });
        }
    }
    group.finish();
}

/// The cost of the substream layer: both rows of an engine differ in nothing else.
fn layers(c: &mut Criterion) {
    let mut group = c.benchmark_group("layers");
    group.throughput(Throughput::Bytes(BYTES as u64));
    let runtime = Runtime::new().expect("a runtime");
    for engine in [STR0M, EngineFactory::DIRECT] {
        let bare = runtime.block_on(layers::Pair::bare(engine));
        let substream = runtime.block_on(layers::Pair::substream(engine));
        for (name, mut pair) in [("bare", bare), ("substream", substream)] {
            let name = format!("{engine}, {name}");
            let before = Usage::now();
            let mut moved = 0;
            group.bench_function(&name, |b| {
                b.iter_custom(|rounds| {
                    moved += BYTES * rounds as usize;
                    let run = async {
                        let mut time = Duration::ZERO;
                        for _ in 0..rounds {
                            time += pair.transfer(BYTES).await;
                        }
                        time
                    };
                    runtime.block_on(run)
                });
            });
            // Nothing was transferred if the name was filtered out.
            if moved > 0 {
                before.report(&name, moved);
            }
        }
    }
    group.finish();
}

/// A dialler connected to a listener that reads and drops.
async fn connect(engine: EngineFactory) -> (Endpoint, Connection) {
    let mut config = EndpointConfig::default();
    config.engine = engine;
    let listener = Endpoint::builder()
        .endpoint_config(config.clone())
        .protocol("/sink")
        .bind("127.0.0.1:0")
        .await
        .expect("a socket");
    let address = listener.addresses().remove(0);
    let accepting = listener.clone();
    tokio::spawn(async move {
        while let Some(incoming) = accepting.accept().await {
            let connection = incoming.accept().await.expect("a handshake");
            while let Ok(Some(mut substream)) = connection.accept().await {
                tokio::spawn(async move {
                    while let Ok(Some(_)) = substream.read_chunk(usize::MAX).await {}
                });
            }
        }
    });
    let dialler = Endpoint::builder()
        .endpoint_config(config)
        .dial_only()
        .expect("defaults");
    let connection = dialler.connect(&address).await.expect("a listener");
    (listener, connection)
}

/// Time from the first byte written to the last FIN_ACK.
async fn send(connection: &Connection, substreams: usize) -> Duration {
    let mut open = Vec::new();
    for _ in 0..substreams {
        open.push(connection.open("/sink").await.expect("a substream"));
    }
    let began = Instant::now();
    let tasks: Vec<_> = open
        .into_iter()
        .map(|mut substream| {
            let chunk = Bytes::from(vec![5; WRITE]);
            tokio::spawn(async move {
                for _ in 0..BYTES / WRITE / substreams {
                    substream.write_chunk(chunk.clone()).await.expect("a write");
                }
                let outcome = substream.finish().await.expect("a close");
                assert_eq!(outcome, Finished::Acked);
            })
        })
        .collect();
    for task in tasks {
        task.await.expect("the task ends");
    }
    began.elapsed()
}

// The command line overrides what is set here, but not what a group sets.
criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_secs(1))
        .measurement_time(Duration::from_secs(8));
    targets = transfer, layers
}
criterion_main!(benches);
