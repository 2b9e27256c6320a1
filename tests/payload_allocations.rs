//! The allocations of a receiver on the strength of a header.
#![allow(missing_docs)]

use std::cell::Cell;
use std::io::Cursor;

use anabranch::payload::{PayloadConfig, PayloadError, Receiver, Sender, send_bytes};
use tokio::io::AsyncWriteExt;

mod allocator;
mod common;
use allocator::Watched;
use common::{Pair, pattern, settle, within};

const MIB: usize = 1024 * 1024;

thread_local! {
    // Measured per thread, since tests run in parallel, each on one thread. Constant and without a
    // destructor, so that its first use does not allocate.
    static LARGEST: Cell<usize> = const { Cell::new(0) };
    static LARGE: Cell<usize> = const { Cell::new(0) };
}

fn record(bytes: usize) {
    LARGEST.with(|largest| largest.set(largest.get().max(bytes)));
    if bytes >= 64 * 1024 {
        LARGE.with(|large| large.set(large.get() + 1));
    }
}

/// Allocations of 64 KiB or more since the last call.
fn large() -> usize {
    LARGE.with(|large| large.replace(0))
}

/// The largest allocation since the last call.
fn largest() -> usize {
    LARGEST.with(|largest| largest.replace(0))
}

#[global_allocator]
static ALLOCATOR: Watched = Watched {
    allocated: record,
    freed: |_| {},
};

/// A length-prefixed header with this payload length.
fn header(mut total: u64) -> Vec<u8> {
    let mut header = vec![0, 0x08];
    while total >= 0x80 {
        header.push(total as u8 | 0x80);
        total >>= 7;
    }
    header.push(total as u8);
    header[0] = header.len() as u8 - 1;
    header
}

/// Row F-5: 1 MiB is allocated in advance, however much is announced and allowed.
#[tokio::test(start_paused = true)]
async fn f5_a_header_that_claims_the_maximum_allocates_a_mebibyte() {
    for claimed in [64 * MIB as u64, u64::MAX] {
        let mut limits = PayloadConfig::default();
        limits.max_total = claimed;
        let receiver = Receiver::new(limits).unwrap();
        let pair = Pair::new();
        let (mut here, there) = pair.substream().await;
        here.write_all(&header(claimed)).await.unwrap();
        here.write_all(&pattern(1000)).await.unwrap();
        settle().await;
        largest();
        let payload = receiver.receive(there).await.unwrap();
        assert_eq!(payload.total(), Some(claimed));
        assert!(largest() < MIB / 4, "nothing for the payload yet");
        let assembling = tokio::spawn(payload.assemble(u64::MAX));
        settle().await;
        assert_eq!(largest(), MIB);
        here.finish().await.unwrap();
        let truncated = within("the end", assembling).await.unwrap();
        assert!(
            matches!(truncated, Err(PayloadError::Truncated { got: 1000, want, .. })
                if want == Some(claimed)),
            "{truncated:?}"
        );
        assert!(largest() < MIB / 4);
        assert_eq!(receiver.open(), 0);
        drop(here);
        pair.finish().await;
    }
}

/// Up to that size a payload is not reallocated, and a longer one never has more capacity than it
/// needs.
#[tokio::test(start_paused = true)]
async fn f5_what_is_allocated_is_what_was_announced() {
    for size in [500_000, MIB, 3 * MIB + 1] {
        let pair = Pair::new();
        let (here, there) = pair.substream().await;
        let data = pattern(size);
        largest();
        let (sent, received) = tokio::join!(send_bytes(here, data.into()), async {
            Receiver::default()
                .receive(there)
                .await?
                .assemble(size as u64)
                .await
        });
        assert_eq!(sent.unwrap().total, size as u64);
        assert_eq!(received.unwrap().len(), size);
        assert_eq!(largest(), size);
        pair.finish().await;
    }
}

/// Without a length the limit is never exceeded, and no more is allocated than has arrived.
#[tokio::test(start_paused = true)]
async fn f5_a_payload_of_unknown_length_is_put_into_no_more_than_the_limit() {
    let size = 3 * MIB;
    let pair = Pair::new();
    let (here, there) = pair.substream().await;
    let sender = Sender::new(here, PayloadConfig::default()).unwrap();
    let source = Cursor::new(pattern(size));
    largest();
    let (sent, received) = tokio::join!(sender.send_reader(source, None), async {
        Receiver::default()
            .receive(there)
            .await?
            .assemble(size as u64 + 1000)
            .await
    });
    assert_eq!(sent.unwrap().total, size as u64);
    assert_eq!(received.unwrap().len(), size);
    assert!(largest() <= size + 1000);
    pair.finish().await;
}

/// A source that returns a few bytes at a time does not need a large buffer for each read.
#[tokio::test(start_paused = true)]
async fn small_reads_of_a_source_share_their_memory() {
    const READS: usize = 1000;
    let pair = Pair::new();
    let (here, there) = pair.substream().await;
    let sender = Sender::new(here, PayloadConfig::default()).unwrap();
    let (mut source, reader) = tokio::io::duplex(10);
    let writing = tokio::spawn(async move {
        let data = pattern(READS * 10);
        source.write_all(&data).await.unwrap();
    });
    large();
    let (sent, received) = tokio::join!(sender.send_reader(reader, None), async {
        Receiver::default()
            .receive(there)
            .await?
            .assemble(READS as u64 * 10)
            .await
    });
    let pieces = large();
    writing.await.unwrap();
    assert_eq!(sent.unwrap().total, READS as u64 * 10);
    assert!(received.unwrap() == pattern(READS * 10));
    assert!(pieces <= 4, "{pieces} allocations of 64 KiB or more");
    pair.finish().await;
}
