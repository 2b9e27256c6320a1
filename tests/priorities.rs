//! Priorities of substreams, on a simulated path of 10 Mbit/s and 50 ms.

use std::time::Duration;

use anabranch::{Connection, Endpoint, WriteHalf};
use anabranch_testkit::simulator::{Conditions, Network};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

const ECHO: &str = "/echo/1.0.0";
const SINK: &str = "/sink/1.0.0";
const SOURCE: &str = "/source/1.0.0";
const BULK: usize = 20;

struct Path {
    network: Network,
    server: Endpoint,
    client: Endpoint,
    connection: Connection,
}

async fn path() -> Path {
    let network = Network::new(9);
    network.set_conditions(Conditions {
        rate: Some(10_000_000 / 8),
        ..Conditions::round_trip(Duration::from_millis(50))
    });
    let server = Endpoint::builder()
        .sockets(network.host([192, 0, 2, 1]))
        .protocol(ECHO)
        .protocol(SINK)
        .protocol(SOURCE)
        .bind("0.0.0.0:4001")
        .await
        .expect("a free port");
    let client = Endpoint::builder()
        .sockets(network.host([192, 0, 2, 2]))
        .dial_only()
        .expect("defaults work");
    let accepting = server.clone();
    tokio::spawn(async move {
        let incoming = accepting.accept().await.expect("the client");
        let connection = incoming.await.expect("a handshake");
        while let Ok(Some(substream)) = connection.accept().await {
            let protocol = substream.protocol().map(str::to_owned);
            let (mut read, mut write) = substream.into_split();
            tokio::spawn(async move {
                let _ = match protocol.as_deref() {
                    Some(ECHO) => tokio::io::copy(&mut read, &mut write).await,
                    Some(SOURCE) => {
                        let endless = tokio::io::repeat(7);
                        tokio::io::copy(&mut endless.take(8 << 20), &mut write).await
                    }
                    _ => tokio::io::copy(&mut read, &mut tokio::io::sink()).await,
                };
            });
        }
    });
    let address = server.addresses().remove(0);
    let connection = client.connect(&address).await.expect("it listens");
    Path {
        network,
        server,
        client,
        connection,
    }
}

/// Writes without an end.
async fn bulk(connection: &Connection) -> JoinHandle<()> {
    let substream = connection.open(SINK).await.expect("a substream");
    let mut write: WriteHalf = substream.into_split().1;
    tokio::spawn(async move {
        let content = vec![7; 64 * 1024];
        while write.write_all(&content).await.is_ok() {}
    })
}

/// The 95th percentile of the time of an echo of 1 KiB.
async fn latency(connection: &Connection, priority: i32) -> Duration {
    let mut substream = connection.open(ECHO).await.expect("a substream");
    substream.set_priority(priority);
    assert_eq!(substream.priority(), priority);
    let mut times = Vec::new();
    for n in 0..100 {
        let began = Instant::now();
        substream.write_all(&[n; 1024]).await.expect("it reads");
        let mut answer = [0; 1024];
        substream.read_exact(&mut answer).await.expect("it answers");
        assert_eq!(answer, [n; 1024]);
        times.push(began.elapsed());
        sleep(Duration::from_millis(30)).await;
    }
    times.sort();
    times[94]
}

async fn end(path: Path, writers: Vec<JoinHandle<()>>) {
    // What is written would still be delivered.
    writers.iter().for_each(JoinHandle::abort);
    drop(path.connection);
    for endpoint in [&path.client, &path.server] {
        let limit = Duration::from_secs(60);
        timeout(limit, endpoint.close()).await.expect("it closes");
        assert!(endpoint.is_idle());
    }
    assert_eq!(path.network.sockets(), 0);
}

#[tokio::test(start_paused = true)]
async fn an_urgent_substream_beside_twenty_bulk_ones_keeps_its_latency() {
    let path = path().await;
    let idle = latency(&path.connection, 0).await;
    let mut writers = Vec::new();
    for _ in 0..BULK {
        writers.push(bulk(&path.connection).await);
    }
    sleep(Duration::from_secs(5)).await;
    let equal = latency(&path.connection, 0).await;
    let urgent = latency(&path.connection, 1).await;
    println!("idle {idle:?}, equal {equal:?}, urgent {urgent:?}");
    assert!(urgent <= 2 * idle, "{urgent:?}, idle {idle:?}");
    assert!(equal > 2 * urgent, "{equal:?}: the path was not busy");
    end(path, writers).await;
}

/// Strict between priorities, and a change takes effect on what waits.
#[tokio::test(start_paused = true)]
async fn a_substream_of_a_lesser_priority_waits_and_goes_on_once_it_is_raised() {
    let path = path().await;
    let mut writers = Vec::new();
    for _ in 0..4 {
        writers.push(bulk(&path.connection).await);
    }
    let mut lesser = path.connection.open(ECHO).await.expect("a substream");
    sleep(Duration::from_secs(1)).await;
    lesser.set_priority(-1);
    lesser.write_all(b"late").await.expect("room");
    // More changes than the order keeps.
    for priority in (-200..0).rev().chain([i32::MIN, -1]) {
        lesser.set_priority(priority);
        sleep(Duration::from_millis(1)).await;
    }
    let mut answer = [0; 4];
    let waiting = timeout(Duration::from_secs(10), lesser.read_exact(&mut answer)).await;
    assert!(waiting.is_err(), "the others have data all the time");
    lesser.set_priority(0);
    let answered = timeout(Duration::from_secs(1), lesser.read_exact(&mut answer)).await;
    answered.expect("it has its turn").expect("it answers");
    assert_eq!(&answer, b"late");
    lesser.shutdown().await.expect("it answers");
    let mut rest = Vec::new();
    lesser.read_to_end(&mut rest).await.expect("an end");
    assert!(rest.is_empty(), "nothing came twice");
    drop(lesser);
    end(path, writers).await;
}

/// What a substream of a lesser priority receives does not wait for what it sends.
#[tokio::test(start_paused = true)]
async fn the_credit_of_a_substream_whose_data_waits_does_not_wait() {
    const LENGTH: usize = 4 << 20;
    let path = path().await;
    let mut writers = Vec::new();
    let substream = path.connection.open(SOURCE).await.expect("a substream");
    substream.set_priority(-1);
    let (mut read, mut write) = substream.into_split();
    write.write_all(b"!").await.expect("room");
    let mut first = [0; 1024];
    read.read_exact(&mut first).await.expect("it begins");
    for _ in 0..4 {
        writers.push(bulk(&path.connection).await);
    }
    sleep(Duration::from_secs(1)).await;
    // It waits from now on.
    write.write_all(&[1; 1024]).await.expect("room");
    let reading = async {
        let mut got = first.len();
        let mut buffer = vec![0; 64 * 1024];
        while got < LENGTH {
            got += read.read(&mut buffer).await.expect("it goes on");
        }
    };
    // 3.4 s at the rate of the path.
    let read = timeout(Duration::from_secs(20), reading).await;
    read.expect("more than its first credit");
    drop(write);
    end(path, writers).await;
}
