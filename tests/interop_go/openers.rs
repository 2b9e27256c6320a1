//! The cases on a connection to the pion peer, whoever has dialled.

use std::future::Future;
use std::time::{Duration, Instant};

use anabranch::{Config, Connection, FinishError, Finished, Substream};
use futures_util::future::join_all;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{sleep, timeout};

use crate::identify;
use crate::responders::{
    HALF_CLOSE_BYTES, OPENERS_CODE, PROTOCOLS, RESPONDERS_CODE, STALLED, pattern, reset_code,
};

/// Time limit of each substream.
const LIMIT: Duration = Duration::from_secs(15);

/// How long a reader stalls, and the bytes that it leaves unread: more than the 2.6 MB of the
/// window of pion's association.
const STALL: Duration = Duration::from_secs(2);
const STALL_BYTES: usize = 3 << 20;

/// Maximum duration of an echo while one reader stalls.
const NEIGHBOUR_LIMIT: Duration = Duration::from_secs(1);

async fn open(connection: &Connection, protocol: &str) -> Substream {
    let substream = connection.open(protocol).await;
    substream.unwrap_or_else(|error| panic!("opening {protocol}: {error}"))
}

async fn within<T>(what: &str, case: impl Future<Output = T>) -> T {
    let done = timeout(LIMIT, case).await;
    done.unwrap_or_else(|_| panic!("{what} is not done within {LIMIT:?}"))
}

async fn finish(substream: &mut Substream) {
    let outcome = substream.finish().await.expect("the substream is intact");
    assert_eq!(outcome, Finished::Acked);
}

/// Writes `content` and finishes while it reads to the end. Returns what it read.
async fn exchange(connection: &Connection, protocol: &str, content: &[u8]) -> Vec<u8> {
    let exchange = async {
        let (mut read, mut write) = open(connection, protocol).await.into_split();
        let writing = async {
            write.write_all(content).await.expect("a write");
            let outcome = write.finish().await;
            // Like that of go-libp2p, its close ends reading too, perhaps before it has seen our
            // FIN.
            let was_stopped = matches!(outcome, Err(FinishError::Stopped(_)));
            assert!(
                outcome == Ok(Finished::Acked) || (content.is_empty() && was_stopped),
                "{protocol}: {outcome:?}"
            );
        };
        let reading = async {
            let mut got = Vec::new();
            read.read_to_end(&mut got).await.expect("an orderly end");
            got
        };
        tokio::join!(writing, reading).1
    };
    within(protocol, exchange).await
}

pub(crate) async fn identify(connection: &Connection) {
    let message = exchange(connection, "/ipfs/id/1.0.0", &[]).await;
    let identify = identify::decode(&message);
    assert_eq!(identify.agent, "anabranch-interop-go/pion");
    for protocol in PROTOCOLS {
        let all = &identify.protocols;
        assert!(all.iter().any(|p| p == protocol), "{protocol} is missing");
    }
}

pub(crate) async fn ping(connection: &Connection) {
    for round in 0..5 {
        let case = async {
            let mut substream = open(connection, "/ipfs/ping/1.0.0").await;
            substream.write_all(&[round; 32]).await.expect("a write");
            let mut got = [0; 32];
            substream.read_exact(&mut got).await.expect("a pong");
            assert_eq!(got, [round; 32]);
            finish(&mut substream).await;
        };
        within("ping", case).await;
    }
}

pub(crate) async fn echo(connection: &Connection, length: usize) {
    let content = pattern(length);
    let got = exchange(connection, "/echo/1.0.0", &content).await;
    assert!(got == content, "{} of {length} bytes came back", got.len());
}

/// Runs this many echoes at once.
pub(crate) async fn echoes(connection: &Connection, count: usize, length: usize) {
    join_all((0..count).map(|_| echo(connection, length))).await;
}

/// Runs this many echoes one after another.
pub(crate) async fn sequence(connection: &Connection, count: usize) {
    for length in 0..count {
        echo(connection, 10 + length).await;
    }
}

/// Transfers this many bytes each way on each substream, all at once.
pub(crate) async fn bench(connection: &Connection, substreams: usize, bytes: usize) {
    let content = [header(bytes, bytes), pattern(bytes)].concat();
    let all = (0..substreams).map(|_| exchange(connection, "/bench/1.0.0", &content));
    for got in join_all(all).await {
        assert!(got == pattern(bytes), "{} of {bytes} bytes came", got.len());
    }
}

fn header(first: usize, second: usize) -> Vec<u8> {
    [first, second]
        .iter()
        .flat_map(|number| (*number as u64).to_be_bytes())
        .collect()
}

/// Finishes writing before it receives anything.
pub(crate) async fn read_after_own_end(connection: &Connection) {
    let case = async {
        let mut substream = open(connection, "/half-close/1.0.0").await;
        substream.write_all(&pattern(1000)).await.expect("a write");
        finish(&mut substream).await;
        let mut got = Vec::new();
        substream.read_to_end(&mut got).await.expect("the end");
        assert!(got == pattern(HALF_CLOSE_BYTES), "{} bytes", got.len());
    };
    within("half-close", case).await;
}

/// Reads to the end before it writes anything.
pub(crate) async fn write_after_the_peers_end(connection: &Connection) {
    let case = async {
        let mut substream = open(connection, "/half-close-remote/1.0.0").await;
        let content = pattern(HALF_CLOSE_BYTES);
        let mut got = Vec::new();
        substream.read_to_end(&mut got).await.expect("the end");
        assert!(got == content, "{} bytes", got.len());
        substream.write_all(&content).await.expect("a write");
        finish(&mut substream).await;
    };
    within("half-close-remote", case).await;
    let count = exchange(connection, "/half-close-result/1.0.0", &[]).await;
    assert_eq!(count, (HALF_CLOSE_BYTES as u64).to_be_bytes());
}

pub(crate) async fn reset(connection: &Connection) {
    let case = async {
        let mut substream = open(connection, "/reset-me/1.0.0").await;
        substream.write_all(&pattern(1024)).await.expect("a write");
        substream.read_u8().await.expect("an answer");
        substream.reset(OPENERS_CODE);
    };
    within("reset-me", case).await;
    let seen = exchange(connection, "/reset-result/1.0.0", &[]).await;
    assert_eq!(seen, [1], "the peer saw the reset and its code");
}

pub(crate) async fn be_reset(connection: &Connection) {
    let case = async {
        let mut substream = open(connection, "/reset-you/1.0.0").await;
        substream.write_all(&[1]).await.expect("a write");
        let error = substream.read_u8().await.expect_err("it is no end");
        assert_eq!(reset_code(&error), Some(RESPONDERS_CODE), "{error}");
    };
    within("reset-you", case).await;
}

/// Resets this many substreams that the peer's application never closes, and then uses the
/// connection.
pub(crate) async fn reset_what_is_kept(connection: &Connection, count: usize) {
    for round in 0..count {
        let case = async {
            let mut substream = open(connection, "/keep/1.0.0").await;
            substream.write_all(&[1]).await.expect("a write");
            assert_eq!(substream.read_u8().await.expect("an answer"), 1);
            substream.reset(OPENERS_CODE);
        };
        within(&format!("substream {round}"), case).await;
    }
    echo(connection, 1000).await;
}

/// Echoes, none of which may wait for the other substreams.
async fn neighbours(connection: &Connection, duration: Duration) {
    let began = Instant::now();
    while began.elapsed() < duration {
        let echo_began = Instant::now();
        echo(connection, 10_000).await;
        let took = echo_began.elapsed();
        assert!(took < NEIGHBOUR_LIMIT, "an echo beside it took {took:?}");
        sleep(Duration::from_millis(50)).await;
    }
}

/// The peer does not read for a while; its other substreams continue, and everything arrives in the
/// end.
pub(crate) async fn write_to_a_stalled_reader(connection: &Connection) {
    let stalled = async {
        let mut substream = open(connection, "/stall/1.0.0").await;
        let hold = usize::try_from(STALL.as_millis()).expect("a short time");
        let header = header(STALL_BYTES, hold);
        substream.write_all(&header).await.expect("a write");
        assert_eq!(substream.read_u8().await.expect("an answer"), STALLED);
        substream
            .write_all(&pattern(STALL_BYTES))
            .await
            .expect("a write");
        finish(&mut substream).await;
        let count = substream.read_u64().await.expect("a count");
        assert_eq!(count, STALL_BYTES as u64);
    };
    let neighbours = neighbours(connection, STALL);
    within("stall", async { tokio::join!(stalled, neighbours) }).await;
}

/// This side does not read for a while, with less unread data than the ceiling of a substream;
/// others continue.
pub(crate) async fn stall(connection: &Connection) {
    let stalled = async {
        let mut substream = open(connection, "/bench/1.0.0").await;
        let header = header(0, STALL_BYTES);
        substream.write_all(&header).await.expect("a write");
        finish(&mut substream).await;
        sleep(STALL).await;
        let mut got = Vec::new();
        substream.read_to_end(&mut got).await.expect("the end");
        assert!(got == pattern(STALL_BYTES), "{} bytes came", got.len());
    };
    let neighbours = neighbours(connection, STALL);
    within("bench", async { tokio::join!(stalled, neighbours) }).await;
}

/// This side does not read at all, until the ceiling for a peer without credit resets the
/// substream. Its writer may detect that or not; others continue.
pub(crate) async fn read_nothing_up_to_the_ceiling(connection: &Connection) {
    let ceiling = Config::default().substream_ceiling;
    let mut unread = open(connection, "/bench/1.0.0").await;
    let header = header(0, 4 * ceiling);
    unread.write_all(&header).await.expect("a write");
    finish(&mut unread).await;
    let mut most = 0;
    let reset = async {
        while connection.stats().violations == 0 {
            most = most.max(connection.stats().unread);
            sleep(Duration::from_millis(5)).await;
        }
    };
    let neighbours = neighbours(connection, STALL);
    within("the ceiling", async { tokio::join!(reset, neighbours) }).await;
    let frame = 16 * 1024;
    assert!(most <= (ceiling + frame) as u64, "{most} bytes were unread");
    echo(connection, 100_000).await;
    assert_eq!(connection.stats().violations, 1, "only that one was reset");
}
