//! The cases of `interop/js/README.md`, with this side as the dialler.

use std::io;
use std::time::{Duration, Instant};

use anabranch::{Config, Connection, Finished, Substream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use crate::identify;
use crate::record::Record;
use crate::responders::{HALF_CLOSE_BYTES, PROTOCOLS, pattern};

const LIMIT: Duration = Duration::from_secs(15);

/// Runs every case, one after another.
pub(crate) async fn run_all(connection: &Connection, record: &Record) {
    macro_rules! run {
        ($($name:literal: $case:ident),* $(,)?) => {$(
            let began = Instant::now();
            timeout(LIMIT, $case(connection)).await.expect(stringify!($case finishes));
            println!("{}: {:?}", stringify!($case), began.elapsed());
            record.passed_in($name, began.elapsed());
        )*};
    }
    run!(
        "identify": identifies,
        "ping": pings,
        "echo-100k": echoes_100_kb,
        "bulk-3x4m": moves_4_mib_both_ways_on_3_substreams,
        "sequential-50": opens_50_substreams_one_after_another,
        "half-close-local": reads_after_its_own_end,
        "half-close-remote": writes_after_the_end_of_the_peer,
        "reset-local": resets,
        "reset-remote": is_reset,
        "ceiling": an_unread_substream_is_reset_at_the_ceiling_and_harms_no_other,
    );
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
    substream
        .read_to_end(&mut got)
        .await
        .expect("an orderly end");
    got
}

async fn identifies(connection: &Connection) {
    let mut substream = open(connection, "/ipfs/id/1.0.0").await;
    let message = read_to_end(&mut substream).await;
    finish(&mut substream).await;
    let identify = identify::decode(&message);
    assert!(
        identify.agent.starts_with("js-libp2p/"),
        "{}",
        identify.agent
    );
    // Its responders do not stall.
    for protocol in PROTOCOLS
        .iter()
        .filter(|protocol| **protocol != "/stall/1.0.0")
    {
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

async fn echo(connection: &Connection, length: usize) {
    let (mut read, mut write) = open(connection, "/echo/1.0.0").await.into_split();
    let content = pattern(length);
    let writing = async {
        write.write_all(&content).await.expect("a write");
        assert_eq!(write.finish().await.expect("intact"), Finished::Acked);
    };
    let reading = async {
        let mut got = Vec::new();
        read.read_to_end(&mut got).await.expect("an orderly end");
        got
    };
    let ((), got) = tokio::join!(writing, reading);
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

async fn bench(connection: &Connection, up: usize, down: usize) {
    let (mut read, mut write) = open(connection, "/bench/1.0.0").await.into_split();
    let writing = async {
        write.write_u64(up as u64).await.expect("a write");
        write.write_u64(down as u64).await.expect("a write");
        write.write_all(&pattern(up)).await.expect("a write");
        assert_eq!(write.finish().await.expect("intact"), Finished::Acked);
    };
    // At the same time: js does not support credit, so its unread data counts against the ceiling
    // of a substream, which the whole answer would reach.
    let reading = async {
        let mut got = Vec::new();
        read.read_to_end(&mut got).await.expect("an orderly end");
        got
    };
    let ((), got) = tokio::join!(writing, reading);
    assert!(got == pattern(down), "{} of {down} bytes came", got.len());
}

async fn moves_4_mib_both_ways_on_3_substreams(connection: &Connection) {
    const BYTES: usize = 4 * 1024 * 1024;
    tokio::join!(
        bench(connection, BYTES, BYTES),
        bench(connection, BYTES, BYTES),
        bench(connection, BYTES, BYTES)
    );
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
    substream
        .write_all(&pattern(HALF_CLOSE_BYTES))
        .await
        .expect("a write");
    finish(&mut substream).await;

    let mut result = open(connection, "/half-close-result/1.0.0").await;
    assert_eq!(
        result.read_u64().await.expect("a record"),
        HALF_CLOSE_BYTES as u64
    );
    finish(&mut result).await;
}

async fn resets(connection: &Connection) {
    let mut substream = open(connection, "/reset-me/1.0.0").await;
    substream.write_all(&pattern(1024)).await.expect("a write");
    assert_eq!(
        substream.read_u8().await.expect("an answer"),
        (1023 % 251) as u8
    );
    substream.reset(9);
    let error = substream.read_u8().await.expect_err("it was reset");
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);

    let mut result = open(connection, "/reset-result/1.0.0").await;
    assert_eq!(
        result.read_u8().await.expect("a record"),
        1,
        "js saw the reset"
    );
    finish(&mut result).await;
}

async fn is_reset(connection: &Connection) {
    let mut substream = open(connection, "/reset-you/1.0.0").await;
    substream.write_all(&[1]).await.expect("a write");
    let error = substream.read_u8().await.expect_err("js resets it");
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
}

/// js does not support credit: STOP_SENDING is the only way to slow it down.
async fn an_unread_substream_is_reset_at_the_ceiling_and_harms_no_other(connection: &Connection) {
    let limits = Config::default();
    let mut unread = open(connection, "/bench/1.0.0").await;
    unread.write_u64(0).await.expect("a write");
    unread.write_u64(64 << 20).await.expect("a write");
    finish(&mut unread).await;
    let mut most = 0;
    let reset = async {
        let (_read, mut write) = unread.into_split();
        // Nothing is read here. The reset is for both halves, and this one has ended already.
        while connection.stats().violations == 0 {
            most = most.max(connection.stats().unread);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        write.stopped().await
    };
    let neighbours = async {
        for _ in 0..20 {
            echo(connection, 100_000).await;
        }
    };
    tokio::join!(reset, neighbours);
    let frame = 16 * 1024;
    assert!(
        most <= (limits.substream_ceiling + frame) as u64,
        "{most} bytes were unread"
    );
    echo(connection, 100_000).await;
    assert_eq!(connection.stats().violations, 1, "only that one was reset");
}
