//! The cases with this side as the opener.

use std::future::Future;
use std::io;
use std::time::{Duration, Instant};

use anabranch::{Config, Connection, FinishError, Finished, Substream};
use futures_util::future::join_all;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{sleep, timeout};

use crate::identify;
use crate::record::Record;
use crate::responders::{HALF_CLOSE_BYTES, PROTOCOLS, STALLED, pattern};

/// Time limit of a case: Python transfers some 5 MB a second.
const LIMIT: Duration = Duration::from_secs(60);

/// How long a reader stalls.
const STALL: Duration = Duration::from_millis(500);

macro_rules! run {
    ($connection:ident, $record:ident: $($name:literal: $case:ident),* $(,)?) => {$(
        let began = Instant::now();
        within(stringify!($case), $case($connection)).await;
        println!("{}: {:?}", stringify!($case), began.elapsed());
        $record.passed_in($name, began.elapsed());
    )*};
}

/// The cases that all peers support.
pub(crate) async fn run_all(connection: &Connection, record: &Record) {
    run!(
        connection, record:
        "echo-100k": echoes_100_kb,
        "bulk-3x4m": moves_4_mib_both_ways_on_3_substreams,
        "sequential-50": opens_50_substreams_one_after_another,
        "half-close-local": reads_after_its_own_end,
        "half-close-remote": writes_after_the_end_of_the_peer,
        "reset-local": resets,
        "reset-remote": is_reset,
        "echo-200x10k": echoes_10_kb_on_200_substreams_at_once,
        "sequential-500": opens_500_substreams_one_after_another,
        "stall-local": stops_reading_for_a_while,
        "stall-remote": waits_for_a_stalled_reader,
    );
    record.passed("fin-ack");
}

/// The cases that only py-libp2p supports.
pub(crate) async fn identifies_and_pings(connection: &Connection, record: &Record) {
    run!(connection, record: "identify": identifies, "ping": pings);
}

async fn within<T>(what: &str, case: impl Future<Output = T>) -> T {
    let done = timeout(LIMIT, case).await;
    done.unwrap_or_else(|_| panic!("{what} is not done within {LIMIT:?}"))
}

async fn open(connection: &Connection, protocol: &str) -> Substream {
    let substream = connection.open(protocol).await;
    substream.unwrap_or_else(|error| panic!("opening {protocol}: {error}"))
}

async fn finish(substream: &mut Substream) {
    let outcome = substream.finish().await.expect("the substream is intact");
    assert_eq!(outcome, Finished::Acked);
}

async fn read_to_end(substream: &mut Substream) -> Vec<u8> {
    let mut got = Vec::new();
    let end = substream.read_to_end(&mut got).await;
    end.expect("an orderly end");
    got
}

async fn identifies(connection: &Connection) {
    let mut substream = open(connection, "/ipfs/id/1.0.0").await;
    let message = read_to_end(&mut substream).await;
    // py-libp2p reads no more once it has answered.
    let outcome = substream.finish().await;
    assert!(
        matches!(
            outcome,
            Ok(Finished::Acked) | Err(FinishError::Stopped(None))
        ),
        "{outcome:?}"
    );
    let identify = identify::decode(&message);
    assert!(
        identify.agent.contains("py-libp2p"),
        "agent {}",
        identify.agent
    );
    for protocol in PROTOCOLS {
        assert!(
            identify.protocols.iter().any(|p| p == protocol),
            "{protocol} is missing"
        );
    }
}

async fn pings(connection: &Connection) {
    for round in 0..5 {
        let mut substream = open(connection, "/ipfs/ping/1.0.0").await;
        substream.write_all(&[round; 32]).await.expect("a write");
        let mut got = [0; 32];
        substream.read_exact(&mut got).await.expect("a pong");
        assert_eq!(got, [round; 32]);
        finish(&mut substream).await;
    }
}

/// Writes `content` and finishes while it reads to the end. Returns what it read.
async fn exchange(connection: &Connection, protocol: &str, content: &[u8]) -> Vec<u8> {
    let (mut read, mut write) = open(connection, protocol).await.into_split();
    let writing = async {
        write.write_all(content).await.expect("a write");
        write.finish().await.expect("intact")
    };
    let mut got = Vec::new();
    let reading = async { read.read_to_end(&mut got).await.expect("an orderly end") };
    let (outcome, _) = tokio::join!(writing, reading);
    let count = got.len();
    assert_eq!(outcome, Finished::Acked, "{protocol}: {count} bytes");
    got
}

async fn echo(connection: &Connection, length: usize) {
    let content = pattern(length);
    let got = exchange(connection, "/echo/1.0.0", &content).await;
    assert!(got == content, "{} of {length} bytes came back", got.len());
}

pub(crate) async fn echoes_100_kb(connection: &Connection) {
    echo(connection, 100_000).await;
}

async fn opens_50_substreams_one_after_another(connection: &Connection) {
    for length in 0..50 {
        echo(connection, 10 + length).await;
    }
}

async fn opens_500_substreams_one_after_another(connection: &Connection) {
    for length in 0..500 {
        echo(connection, length).await;
    }
}

pub(crate) async fn echoes_10_kb_on_200_substreams_at_once(connection: &Connection) {
    join_all((0..200).map(|_| echo(connection, 10_000))).await;
}

async fn bench(connection: &Connection, up: usize, down: usize) {
    let header = [up, down].map(|length| (length as u64).to_be_bytes());
    let content = [header.concat(), pattern(up)].concat();
    let got = exchange(connection, "/bench/1.0.0", &content).await;
    assert!(got == pattern(down), "{} of {down} bytes came", got.len());
}

async fn moves_4_mib_both_ways_on_3_substreams(connection: &Connection) {
    join_all((0..3).map(|_| bench(connection, 4 << 20, 4 << 20))).await;
}

async fn reads_after_its_own_end(connection: &Connection) {
    let mut substream = open(connection, "/half-close/1.0.0").await;
    substream.write_all(&pattern(1000)).await.expect("a write");
    finish(&mut substream).await;
    assert!(read_to_end(&mut substream).await == pattern(HALF_CLOSE_BYTES));
}

async fn writes_after_the_end_of_the_peer(connection: &Connection) {
    let mut substream = open(connection, "/half-close-remote/1.0.0").await;
    assert!(read_to_end(&mut substream).await == pattern(HALF_CLOSE_BYTES));
    let content = pattern(HALF_CLOSE_BYTES);
    substream.write_all(&content).await.expect("a write");
    finish(&mut substream).await;
    let right = exchange(connection, "/half-close-result/1.0.0", &[]).await;
    assert_eq!(right, (HALF_CLOSE_BYTES as u64).to_be_bytes());
}

async fn resets(connection: &Connection) {
    let mut substream = open(connection, "/reset-me/1.0.0").await;
    substream.write_all(&pattern(1024)).await.expect("a write");
    let answer = substream.read_u8().await.expect("an answer");
    assert_eq!(answer, (1023 % 251) as u8);
    substream.reset(9);
    let seen = exchange(connection, "/reset-result/1.0.0", &[]).await;
    assert_eq!(seen, [1], "the peer saw the reset");
}

async fn is_reset(connection: &Connection) {
    let mut substream = open(connection, "/reset-you/1.0.0").await;
    substream.write_all(&[1]).await.expect("a write");
    let error = substream.read_u8().await.expect_err("it is no end");
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
}

/// Below the ceiling of a substream: everything arrives, and others continue meanwhile.
async fn stops_reading_for_a_while(connection: &Connection) {
    const DOWN: usize = 2 << 20;
    let mut substream = open(connection, "/bench/1.0.0").await;
    let header = [0, DOWN as u64].map(u64::to_be_bytes).concat();
    substream.write_all(&header).await.expect("a write");
    finish(&mut substream).await;
    tokio::join!(sleep(STALL), echo(connection, 1000));
    let got = read_to_end(&mut substream).await;
    assert!(got == pattern(DOWN), "{} of {DOWN} bytes came", got.len());
}

async fn open_stalled(connection: &Connection, up: usize, hold: Duration) -> Substream {
    let mut substream = open(connection, "/stall/1.0.0").await;
    let hold = u64::try_from(hold.as_millis()).expect("a short time");
    let header = [up as u64, hold].map(u64::to_be_bytes).concat();
    substream.write_all(&header).await.expect("a write");
    let answer = substream.read_u8().await.expect("an answer");
    assert_eq!(answer, STALLED);
    substream
}

/// py-libp2p holds 64 unread messages, which have more.
async fn waits_for_a_stalled_reader(connection: &Connection) {
    const UP: usize = 100 * 1024;
    let mut substream = open_stalled(connection, UP, STALL).await;
    substream.write_all(&pattern(UP)).await.expect("a write");
    let outcome = substream.finish();
    let (outcome, ()) = tokio::join!(outcome, echo(connection, 1000));
    assert_eq!(outcome.expect("intact"), Finished::Acked);
    assert_eq!(substream.read_u64().await.expect("a count"), UP as u64);
    assert!(read_to_end(&mut substream).await.is_empty());
}

/// The peer detects missing data, and resets.
pub(crate) async fn overruns_a_stalled_reader(connection: &Connection) {
    const UP: usize = 1 << 20;
    let case = async {
        let mut substream = open_stalled(connection, UP, STALL).await;
        substream.write_all(&pattern(UP)).await.expect("a write");
        finish(&mut substream).await;
        let error = substream.read_u64().await.expect_err("it is no count");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{error}");
    };
    within("a stalled reader", case).await;
}

/// Neither peer supports credit, so STOP_SENDING is the only way to slow it down.
///
/// aiortc has one queue for all channels, into which py-libp2p puts everything that is written:
/// data of another substream follows it.
pub(crate) async fn is_overrun(connection: &Connection) {
    const FRAME: usize = 16 * 1024;
    // More than SCTP's window, which fills first.
    const DOWN: u64 = 16 << 20;
    let ceiling = Config::default().substream_ceiling;
    let mut unread = open(connection, "/bench/1.0.0").await;
    let header = [0, DOWN].map(u64::to_be_bytes).concat();
    let case = async {
        unread.write_all(&header).await.expect("a write");
        finish(&mut unread).await;
        let mut most = 0;
        // Nothing is read here.
        while connection.stats().violations == 0 {
            most = most.max(connection.stats().unread);
            sleep(Duration::from_millis(5)).await;
        }
        most
    };
    let most = within("the ceiling", case).await;
    assert!(most <= (ceiling + FRAME) as u64, "{most} bytes were unread");
    within("an echo", echo(connection, 100_000)).await;
    assert_eq!(connection.stats().violations, 1, "only that one was reset");
}
