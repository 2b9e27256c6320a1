//! The memory of an idle substream, both sides together.

use std::sync::atomic::{AtomicIsize, Ordering};

use anabranch::{Config, Connection, Endpoint, Substream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

mod allocator;
use allocator::Watched;

/// Live bytes of all threads.
static BYTES: AtomicIsize = AtomicIsize::new(0);

fn record(size: usize, sign: isize) {
    BYTES.fetch_add(sign * size.cast_signed(), Ordering::Relaxed);
}

#[global_allocator]
static ALLOCATOR: Watched = Watched {
    allocated: |size| record(size, 1),
    freed: |size| record(size, -1),
};

const PROTOCOL: &str = "/echo/1.0.0";

fn config() -> Config {
    let mut config = Config::default();
    config.max_inbound_substreams = 2_000;
    config.protocols = vec![PROTOCOL.to_owned()];
    config
}

/// Opens substreams, sends a few bytes each way on every one, and returns both ends of each.
async fn open(dialler: &Connection, listener: &Connection, n: usize) -> Vec<Substream> {
    let mut all = Vec::with_capacity(2 * n);
    for _ in 0..n {
        let (opened, accepted) = tokio::join!(dialler.open(PROTOCOL), listener.accept());
        let mut opened = opened.expect("the peer speaks it");
        let mut accepted = accepted
            .expect("the connection lives")
            .expect("and is open");
        let mut greeting = [0; 5];
        opened.write_all(b"hello").await.expect("the peer lives");
        accepted.read_exact(&mut greeting).await.expect("all came");
        accepted.write_all(b"hello").await.expect("the peer lives");
        opened.read_exact(&mut greeting).await.expect("all came");
        all.extend([opened, accepted]);
    }
    all
}

#[tokio::test]
async fn an_idle_substream_keeps_at_most_2_kib_a_side() {
    let listener = Endpoint::builder()
        .config(config())
        .bind("127.0.0.1:0")
        .await
        .expect("a socket");
    let address = listener.addresses().remove(0);
    let dialler = Endpoint::builder()
        .config(config())
        .dial_only()
        .expect("defaults work");
    let (ours, theirs) = tokio::join!(dialler.connect(&address), async {
        let incoming = listener.accept().await.expect("the dialler comes");
        incoming.accept().await.expect("it is authenticated")
    });
    let ours = ours.expect("the listener answers");

    // Allocations of the connection itself, and of its initial tables.
    let first = open(&ours, &theirs, 200).await;
    let before = BYTES.load(Ordering::Relaxed);
    let more = open(&ours, &theirs, 1000).await;
    let kept = BYTES.load(Ordering::Relaxed) - before;
    println!("{} bytes each, both sides together", kept / 1000);
    assert!(kept <= 1000 * 2 * 2048, "{kept}");

    // And the memory is freed.
    drop((first, more));
    ours.close().await;
    theirs.close().await;
    assert!(ours.is_idle() && theirs.is_idle());
    drop((ours, theirs));
    dialler.close().await;
    listener.close().await;
}
