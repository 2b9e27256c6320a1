//! 100 000 substreams.

use std::sync::Arc;
use std::time::Duration;

use anabranch::{
    Config, Connection, ConnectionError, Endpoint, EndpointConfig, EngineFactory, Negotiation,
    Substream,
};
use anabranch_str0m::STR0M;
use anabranch_testkit::memory::{Faults, MemoryConfig, pair};
use anabranch_testkit::simulator::{Conditions, Network};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{sleep, timeout};

use super::{ALONE, LIMIT, assert_flat, live, many, tasks, until};

const PROTOCOL: &str = "/leak/1";

/// Concurrent substreams.
const AT_ONCE: usize = 64;

/// How one side ends its part of a substream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// Writes, finishes, and reads to the end.
    Finish,
    /// Writes and drops it.
    Drop,
    /// Drops it unused.
    DropUnused,
    Reset,
    /// Stops reading, and finishes.
    Stop,
    /// Stops reading, and drops it.
    StopAndDrop,
    /// Drops the read half, and finishes.
    DropReadHalf,
    /// Drops the write half, and reads to the end.
    DropWriteHalf,
    /// Drops one half after the other, with a pause.
    DropBothHalves,
    /// Writes until it blocks, and drops it.
    Backpressured,
    /// The same, then resets it.
    BackpressuredReset,
    /// The same, during a pending write.
    BackpressuredHalf,
    /// Drops the future of `finish`.
    CancelledFinish,
    /// Reads nothing for a while, then drops it.
    StallAndDrop,
}

const ENDS: [End; 14] = [
    End::Finish,
    End::Drop,
    End::DropUnused,
    End::Reset,
    End::Stop,
    End::StopAndDrop,
    End::DropReadHalf,
    End::DropWriteHalf,
    End::DropBothHalves,
    End::Backpressured,
    End::BackpressuredReset,
    End::BackpressuredHalf,
    End::CancelledFinish,
    End::StallAndDrop,
];

/// Small windows, so that a writer is soon blocked.
fn config(negotiation: Negotiation) -> Config {
    let mut config = Config::default();
    config.negotiation = negotiation;
    config.protocols = vec![PROTOCOL.to_owned()];
    config.receive_window = 4096;
    config.max_receive_window = 16_384;
    config.send_buffer = 4096;
    config.open_timeout = Duration::from_secs(5);
    // Disables limits, since the traffic of this test looks like an attack.
    config.max_unused_substreams = u32::MAX;
    config.max_inbound_substreams = 4 * AT_ONCE;
    config
}

/// Ends one side. Errors are caused by the other side.
async fn end(mut substream: Substream, how: End) {
    let words = [7; 300];
    let pause = Duration::from_millis(20);
    match how {
        End::Finish => {
            let _ = substream.write_all(&words).await;
            let _ = substream.finish().await;
            let _ = substream.read_to_end(&mut Vec::new()).await;
        }
        End::Drop => {
            let _ = substream.write_all(&words).await;
        }
        End::DropUnused => {}
        End::Reset => {
            let _ = substream.write_all(&words).await;
            substream.reset(9);
        }
        End::Stop => {
            substream.stop(9);
            let _ = substream.write_all(&words).await;
            let _ = substream.finish().await;
        }
        End::StopAndDrop => substream.stop(9),
        End::DropReadHalf => {
            let (read, mut write) = substream.into_split();
            drop(read);
            let _ = write.write_all(&words).await;
            let _ = write.finish().await;
        }
        End::DropWriteHalf => {
            let (mut read, write) = substream.into_split();
            drop(write);
            let _ = timeout(Duration::from_secs(20), read.read_to_end(&mut Vec::new())).await;
        }
        End::DropBothHalves => {
            let (read, mut write) = substream.into_split();
            let _ = write.write_all(&words).await;
            drop(write);
            sleep(pause).await;
            drop(read);
        }
        End::Backpressured => block(&mut substream).await,
        End::BackpressuredReset => {
            block(&mut substream).await;
            substream.reset(9);
        }
        End::BackpressuredHalf => {
            let (read, mut write) = substream.into_split();
            let _ = timeout(pause, write.write_all(&[7; 100_000])).await;
            drop(write);
            sleep(pause).await;
            drop(read);
        }
        End::CancelledFinish => {
            let _ = substream.write_all(&words).await;
            let _ = timeout(Duration::ZERO, substream.finish()).await;
        }
        End::StallAndDrop => sleep(Duration::from_secs(1)).await,
    }
}

/// Writes until it blocks.
async fn block(substream: &mut Substream) {
    let _ = timeout(
        Duration::from_millis(20),
        substream.write_all(&[7; 100_000]),
    )
    .await;
}

/// Opens `count` substreams from `a` to `b` that end in every combination of ways, `AT_ONCE` at a
/// time.
async fn run(a: &Connection, b: &Connection, count: usize) {
    let accepting = {
        let b = b.clone();
        tokio::spawn(async move {
            let mut ends = ENDS.iter().copied().cycle();
            let mut here = JoinSet::new();
            let mut turn = 0_usize;
            while let Ok(Ok(Some(substream))) = timeout(Duration::from_secs(30), b.accept()).await {
                // Another one in each round of the openers, so that all combinations come.
                turn += 1;
                if turn.is_multiple_of(ENDS.len()) {
                    ends.next();
                }
                here.spawn(end(substream, ends.next().expect("a cycle")));
                while here.len() > 2 * AT_ONCE {
                    here.join_next().await;
                }
            }
            here.join_all().await;
        })
    };
    let mut there = JoinSet::new();
    for index in 0..count {
        let a = a.clone();
        let how = ENDS[index % ENDS.len()];
        there.spawn(async move {
            if index % 10 == 9 {
                // During the open: at once, or during the negotiation.
                let limit = Duration::from_millis((index % 30) as u64 / 10);
                if let Ok(Ok(substream)) = timeout(limit, a.open(PROTOCOL)).await {
                    end(substream, how).await;
                }
                return;
            }
            if let Ok(substream) = a.open(PROTOCOL).await {
                end(substream, how).await;
            }
        });
        if there.len() >= AT_ONCE {
            there.join_next().await;
        }
    }
    there.join_all().await;
    accepting.await.expect("no panic");
    until("the end of every substream", || {
        a.stats().substreams + b.stats().substreams == 0
    })
    .await;
    // After retransmissions and stream resets of SCTP.
    sleep(Duration::from_secs(5)).await;
    for side in [a, b] {
        assert_eq!((side.stats().unread, side.close_reason()), (0, None));
    }
}

/// Two halves of `count`, after a warm-up that lets maps and buffers reach their size.
async fn run_halves(what: &str, a: &Connection, b: &Connection, count: usize, slack: isize) {
    run(a, b, count / 10).await;
    run(a, b, count / 2).await;
    let (first, had) = (live(), tasks());
    run(a, b, count / 2).await;
    assert_eq!(tasks(), had, "{what}: tasks are left");
    assert_flat(what, first, live(), slack);
    assert!(a.stats().opened >= (count - count / 10) as u64, "{what}");
}

struct OverMemory {
    ends: [Connection; 2],
    drivers: [JoinHandle<ConnectionError>; 2],
    faults: Faults,
}

fn over_memory(negotiation: Negotiation) -> OverMemory {
    let mut memory = MemoryConfig::default();
    memory.delay = Duration::from_millis(1)..=Duration::from_millis(3);
    let (a, b, faults) = pair(memory);
    let (a, driver_a) = Connection::over(a, Arc::new(config(negotiation)));
    let (b, driver_b) = Connection::over(b, Arc::new(config(negotiation)));
    OverMemory {
        ends: [a, b],
        drivers: [tokio::spawn(driver_a), tokio::spawn(driver_b)],
        faults,
    }
}

async fn memory_carrier(what: &str, negotiation: Negotiation, count: usize) {
    let _alone = ALONE.lock().await;
    let OverMemory {
        ends: [a, b],
        drivers,
        faults,
    } = over_memory(negotiation);
    // A map grows once, by 78 KB, in either half; three times as many substreams leave nothing at
    // all.
    run_halves(what, &a, &b, count, 96 * 1024).await;
    assert_eq!((faults.open_channels(), faults.in_flight()), (0, 0));
    a.close().await;
    b.close().await;
    assert!(a.is_idle() && b.is_idle());
    for driver in drivers {
        driver.await.expect("no panic");
    }
    assert_eq!(tasks(), 0);
}

#[tokio::test(start_paused = true)]
async fn of_70_000_substreams_nothing_is_left() {
    memory_carrier("without negotiation", Negotiation::None, many(70_000)).await;
}

#[tokio::test(start_paused = true)]
async fn of_30_000_negotiated_substreams_nothing_is_left() {
    let select = Negotiation::MultistreamSelect;
    memory_carrier("multistream-select", select, many(30_000)).await;
}

async fn simulated(engine: EngineFactory, count: usize) {
    let _alone = ALONE.lock().await;
    let network = Network::new(5);
    network.set_conditions(Conditions::round_trip(Duration::from_millis(10)));
    let mut settings = EndpointConfig::default();
    settings.engine = engine;
    let builder = |ip: [u8; 4]| {
        Endpoint::builder()
            .config(config(Negotiation::MultistreamSelect))
            .endpoint_config(settings.clone())
            .sockets(network.host(ip))
    };
    let server = builder([10, 0, 0, 1]).bind("10.0.0.1:4001").await.unwrap();
    let client = builder([10, 0, 0, 2]).dial_only().unwrap();
    let accepting = {
        let server = server.clone();
        tokio::spawn(async move { server.accept().await.unwrap().accept().await.unwrap() })
    };
    let a = client.connect(&server.addresses()[0]).await.unwrap();
    let b = accepting.await.unwrap();
    // An empty map of str0m varies by 140 KB between runs, after 2 000 substreams as after 50 000.
    let slack = match engine.name() {
        "str0m" => 256 * 1024,
        // Substreams open without a round trip, and as many as end within 2 s are in the maps of
        // channels that wait for their close: 50 to 170 KB more, after 4 000 as after 32 000.
        _ => 256 * 1024,
    };
    run_halves(&format!("{engine}"), &a, &b, count, slack).await;
    a.close().await;
    b.close().await;
    client.close().await;
    server.close().await;
    assert!(a.is_idle() && b.is_idle() && client.is_idle() && server.is_idle());
    drop((a, b, client, server));
    sleep(LIMIT).await;
    assert_eq!((network.sockets(), network.in_flight(), tasks()), (0, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn of_8_000_substreams_on_the_direct_engine_nothing_is_left() {
    simulated(EngineFactory::DIRECT, many(8000)).await;
}

#[tokio::test(start_paused = true)]
async fn of_8_000_substreams_on_str0m_nothing_is_left() {
    simulated(STR0M, many(8000)).await;
}
