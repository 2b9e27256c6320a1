//! 100 000 messages on long-lived connections and substreams leave no memory behind. Row FR-11.

use std::sync::Arc;
use std::time::Duration;

use anabranch::payload::{receive, send_bytes};
use anabranch::{Config, Connection, Endpoint, Negotiation, Substream};
use anabranch_testkit::memory::{MemoryConfig, pair};
use anabranch_testkit::simulator::{Conditions, Network};
use bytes::Bytes;
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tokio::time::sleep;

use super::{ALONE, LIMIT, assert_flat, live, many, tasks};

/// Messages in transit at once.
const BURST: usize = 100;

/// Lengths of messages: some that are copied together, one that is not copied, one of several
/// frames.
const LENGTHS: [usize; 4] = [1, 300, 5_000, 20_000];

fn config() -> Config {
    let mut config = Config::default();
    config.negotiation = Negotiation::None;
    config
}

/// Sends `count` messages from `here` to `there`, which reads them in every way.
async fn exchange(here: &mut Substream, there: &mut Substream, count: usize) {
    let message = [7; 20_000];
    for burst in 0..count / BURST {
        let lengths = (0..BURST).map(|n| LENGTHS[(burst + n) % LENGTHS.len()]);
        let all: usize = lengths.clone().sum();
        let (written, ()) = tokio::join!(
            async {
                for length in lengths {
                    here.write_all(&message[..length]).await?;
                }
                here.flush().await
            },
            read(there, all, burst)
        );
        written.expect("it is open");
    }
}

async fn read(there: &mut Substream, mut rest: usize, way: usize) {
    let mut buffer = [0; 4096];
    while rest > 0 {
        rest -= match way % 3 {
            0 => there.read(&mut buffer).await.expect("it is open"),
            1 => {
                let chunk = there.read_chunk(rest).await.expect("it is open");
                chunk.expect("more is to come").len()
            }
            _ => {
                let filled = there.fill_buf().await.expect("it is open").len();
                AsyncBufRead::consume(std::pin::Pin::new(there), filled);
                filled
            }
        };
    }
}

/// Sends a payload on a substream of its own.
async fn payload(a: &Connection, b: &Connection) {
    let (here, there) = tokio::join!(a.open(""), b.accept());
    let here = here.expect("a substream");
    let there = there.expect("alive").expect("open");
    let content = Bytes::from(vec![3; 100_000]);
    let (sent, received) = tokio::join!(send_bytes(here, content.clone()), async {
        receive(there)
            .await
            .expect("a header")
            .assemble(100_000)
            .await
    });
    sent.expect("confirmed");
    assert!(received.expect("all of it") == content);
}

/// Two halves of `count`, after a warm-up that lets buffers reach their size.
async fn run(what: &str, a: &Connection, b: &Connection, count: usize, slack: isize) {
    let (mut here, mut there) = {
        let (here, there) = tokio::join!(a.open(""), b.accept());
        (
            here.expect("a substream"),
            there.expect("alive").expect("open"),
        )
    };
    let mut first = 0;
    let before = b.stats().payload_received;
    for round in 0..3 {
        for _ in 0..10 {
            exchange(&mut here, &mut there, count / 40).await;
            exchange(&mut there, &mut here, count / 40).await;
            payload(a, b).await;
        }
        // After retransmissions of SCTP, and the closes of payload substreams.
        sleep(Duration::from_secs(5)).await;
        if round == 1 {
            first = live();
        }
    }
    assert_flat(what, first, live(), slack);
    // At least half of them arrived at this side, of 6 325 bytes on average.
    let received = b.stats().payload_received - before;
    assert!(received >= count as u64 / 2 * 6325, "{what}: {received}");
    assert_eq!((a.stats().unread, b.stats().unread), (0, 0));
    assert_eq!((a.stats().substreams, b.stats().substreams), (1, 1));
    drop((here, there));
    sleep(Duration::from_secs(1)).await;
    a.close().await;
    b.closed().await;
    assert!(a.is_idle() && b.is_idle());
}

#[tokio::test(start_paused = true)]
async fn of_messages_over_the_memory_carrier_nothing_is_left() {
    let _alone = ALONE.lock().await;
    let (a, b, _faults) = pair(MemoryConfig::default());
    let (a, driver_a) = Connection::over(a, Arc::new(config()));
    let (b, driver_b) = Connection::over(b, Arc::new(config()));
    let drivers = [tokio::spawn(driver_a), tokio::spawn(driver_b)];
    run("memory", &a, &b, many(40_000), 1024).await;
    for driver in drivers {
        driver.await.expect("no panic");
    }
    assert_eq!(tasks(), 0);
}

#[cfg(feature = "websocket")]
#[tokio::test(start_paused = true)]
async fn of_messages_over_a_websocket_nothing_is_left() {
    use anabranch::websocket::{WebSocketConfig, carrier_over};
    let _alone = ALONE.lock().await;
    let (a, b) = tokio::io::duplex(64 * 1024);
    let a = carrier_over(a, true, WebSocketConfig::default()).await;
    let b = carrier_over(b, false, WebSocketConfig::default()).await;
    let (a, driver_a) = Connection::over(a.expect("settings"), Arc::new(config()));
    let (b, driver_b) = Connection::over(b.expect("settings"), Arc::new(config()));
    let drivers = [tokio::spawn(driver_a), tokio::spawn(driver_b)];
    run("WebSocket", &a, &b, many(40_000), 1024).await;
    for driver in drivers {
        driver.await.expect("no panic");
    }
    assert_eq!(tasks(), 0);
}

#[tokio::test(start_paused = true)]
async fn of_messages_over_webrtc_nothing_is_left() {
    let _alone = ALONE.lock().await;
    let network = Network::new(11);
    network.set_conditions(Conditions::round_trip(Duration::from_millis(2)));
    let builder = |ip: [u8; 4]| {
        Endpoint::builder()
            .config(config())
            .sockets(network.host(ip))
    };
    let server = builder([10, 0, 0, 1]).bind("10.0.0.1:4001").await.unwrap();
    let client = builder([10, 0, 0, 2]).dial_only().unwrap();
    let address = server.addresses().remove(0);
    let (a, b) = tokio::join!(client.connect(&address), async {
        server.accept().await.expect("open").accept().await
    });
    let (a, b) = (a.unwrap(), b.unwrap());
    // A search for longer packets may be going on.
    run("WebRTC", &a, &b, many(8_000), 512).await;
    client.close().await;
    server.close().await;
    assert!(client.is_idle() && server.is_idle());
    drop((a, b, client, server));
    sleep(LIMIT).await;
    assert_eq!((network.sockets(), network.in_flight(), tasks()), (0, 0, 0));
}
