//! The memory of an idle substream and of an idle connection.

use std::sync::atomic::{AtomicIsize, Ordering};
use std::time::Duration;

use anabranch::{Config, Connection, Endpoint, Substream};
use anabranch_testkit::simulator::{Conditions, Network};
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
async fn an_idle_substream_keeps_at_most_1_700_bytes_a_side() {
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
    assert!(kept <= 1000 * 2 * 1_700, "{kept}");

    // And the memory is freed.
    drop((first, more));
    ours.close().await;
    theirs.close().await;
    assert!(ours.is_idle() && theirs.is_idle());
    drop((ours, theirs));
    dialler.close().await;
    listener.close().await;
}

/// On a simulated network, where a minute without traffic takes no time. The simulator keeps
/// nothing of its own then.
#[tokio::test(start_paused = true)]
async fn an_idle_connection_keeps_at_most_28_kib_a_side() {
    const CONNECTIONS: usize = 50;
    let network = Network::new(3);
    network.set_conditions(Conditions::round_trip(Duration::from_millis(10)));
    let listener = Endpoint::builder()
        .sockets(network.host([10, 0, 0, 1]))
        .config(config())
        .bind("10.0.0.1:4001")
        .await
        .expect("a socket");
    let dialler = Endpoint::builder()
        .sockets(network.host([10, 0, 0, 2]))
        .config(config())
        .dial_only()
        .expect("defaults work");
    let address = listener.addresses().remove(0);
    let connect = async |n: usize| {
        let mut all = Vec::new();
        for _ in 0..n {
            let (ours, theirs) = tokio::join!(dialler.connect(&address), async {
                let incoming = listener.accept().await.expect("the dialler comes");
                incoming.accept().await.expect("it is authenticated")
            });
            let (ours, theirs) = (ours.expect("the listener answers"), theirs);
            // What a first transfer makes them allocate.
            drop(open(&ours, &theirs, 1).await);
            all.extend([ours, theirs]);
        }
        tokio::time::sleep(Duration::from_secs(60)).await;
        all
    };
    // What endpoints have once.
    let first = connect(10).await;
    let before = BYTES.load(Ordering::Relaxed);
    let more = connect(CONNECTIONS).await;
    let kept = (BYTES.load(Ordering::Relaxed) - before).cast_unsigned();
    let each = kept / CONNECTIONS / 2;
    println!("{each} bytes a side");
    assert!(each <= 28 * 1024, "{each}");

    drop((first, more));
    dialler.close().await;
    listener.close().await;
    assert!(dialler.is_idle() && listener.is_idle());
}
