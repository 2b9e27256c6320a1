//! `AsyncBufRead` of a substream: no copy, and the credit of any other read. Row L-20.

#![allow(missing_docs)]

mod common;

use std::future::poll_fn;
use std::io::ErrorKind;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use anabranch::Substream;
use anabranch::message::Flag;
use anabranch_testkit::memory::MemoryConfig;
use common::seeds::seeds;
use common::{CountingWaker, Pair, config, pattern, scripted, settle, within};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};

const KIB: usize = 1024;
const MS: Duration = Duration::from_millis(1);

fn fill(substream: &mut Substream) -> Poll<std::io::Result<&[u8]>> {
    let mut cx = Context::from_waker(Waker::noop());
    Pin::new(substream).poll_fill_buf(&mut cx)
}

fn consume(substream: &mut Substream, length: usize) {
    AsyncBufRead::consume(Pin::new(substream), length);
}

#[tokio::test(start_paused = true)]
async fn l20_fill_buf_returns_payloads_where_the_carrier_put_them() {
    let mut s = scripted(config(), MemoryConfig::default());
    let (mut substream, channel) = s.open().await;
    let data = pattern(5000);
    s.peer.data(channel, &data[..3000]);
    s.peer.data(channel, &data[3000..]);
    settle().await;
    let first = substream.fill_buf().await.unwrap();
    assert!(first == &data[..3000], "{} bytes", first.len());
    assert!(s.sent.was_read(first), "not a slice of a carrier message");
    let place = first.as_ptr();
    // A second `fill_buf` returns the same, and consumed bytes are not returned again.
    assert_eq!(substream.fill_buf().await.unwrap().as_ptr(), place);
    consume(&mut substream, 1000);
    let rest = substream.fill_buf().await.unwrap();
    assert_eq!(rest.as_ptr(), place.wrapping_add(1000));
    assert!(rest == &data[1000..3000], "{} bytes", rest.len());
    consume(&mut substream, 2000);
    let second = substream.fill_buf().await.unwrap();
    assert!(second == &data[3000..] && s.sent.was_read(second));
    consume(&mut substream, 2000);
    s.peer.flag(channel, Flag::Fin);
    assert_eq!(within("the end", substream.fill_buf()).await.unwrap(), b"");
    drop(substream);
    s.finish_after_fin_ack(channel).await;
}

#[tokio::test(start_paused = true)]
async fn l20_what_is_looked_at_stays_unread_until_it_is_consumed() {
    let mut s = scripted(config(), MemoryConfig::default());
    let (mut substream, channel) = s.open().await;
    let data = pattern(4000);
    s.peer.data(channel, &data[..2000]);
    s.peer.data(channel, &data[2000..]);
    settle().await;
    assert_eq!(substream.fill_buf().await.unwrap().len(), 2000);
    assert_eq!((substream.unread(), s.us.stats().unread), (4000, 4128));
    // `consume` of more than was returned consumes all of it, and nothing beyond.
    consume(&mut substream, 3000);
    assert_eq!(substream.unread(), 2000);
    consume(&mut substream, 1);
    assert_eq!(substream.unread(), 2000, "nothing was looked at");
    // Another read takes the bytes of `fill_buf`, which can not be consumed any more.
    assert_eq!(substream.fill_buf().await.unwrap(), &data[2000..]);
    let mut word = [0; 10];
    substream.read_exact(&mut word).await.unwrap();
    assert_eq!(word, data[2000..2010]);
    consume(&mut substream, 5);
    assert_eq!(substream.unread(), 1990);
    assert_eq!(substream.fill_buf().await.unwrap(), &data[2010..]);
    let chunk = substream.read_chunk(20).await.unwrap().unwrap();
    assert_eq!(chunk, data[2010..2030]);
    consume(&mut substream, 5);
    assert_eq!(substream.unread(), 1970);
    drop(substream);
    s.peer.flag(channel, Flag::Fin);
    s.finish().await;
}

/// A way to read 1 KiB of the received data.
#[derive(Debug, Clone, Copy)]
enum Way {
    Read,
    Chunk,
    Tokio,
    Futures,
}

async fn read_kib(substream: &mut Substream, way: Way) {
    match way {
        Way::Read => drop(substream.read_exact(&mut [0; KIB]).await.unwrap()),
        Way::Chunk => drop(substream.read_chunk(KIB).await.unwrap().unwrap()),
        Way::Tokio => {
            assert!(substream.fill_buf().await.unwrap().len() >= KIB);
            consume(substream, KIB);
        }
        Way::Futures => {
            use futures_util::AsyncBufReadExt;
            let filled = AsyncBufReadExt::fill_buf(substream).await.unwrap();
            assert!(filled.len() >= KIB);
            AsyncBufReadExt::consume_unpin(substream, KIB);
        }
    }
}

/// The grants to the peer while 64 KiB are read in one way, each with the bytes read before it.
async fn grants(way: Way) -> Vec<(usize, u64)> {
    let mut config = config();
    config.receive_window = 64 * KIB as u32;
    config.max_receive_window = 64 * KIB as u32;
    let mut s = scripted(config, MemoryConfig::default());
    let (mut substream, channel) = s.open().await;
    let mut first = true;
    let mut grants = Vec::new();
    for round in 0..64 {
        if first {
            s.peer.data_with_credit(channel, &pattern(4 * KIB), 1 << 20);
            first = false;
        } else if round % 4 == 0 {
            s.peer.data(channel, &pattern(4 * KIB));
        }
        if matches!(way, Way::Tokio | Way::Futures) {
            settle().await;
            // `fill_buf` grants no credit.
            assert!(fill(&mut substream).is_ready());
        }
        s.peer.run_for(MS).await;
        let before = s.peer.pending(channel).len();
        read_kib(&mut substream, way).await;
        s.peer.run_for(MS).await;
        let frames = s.peer.pending(channel);
        grants.extend(
            frames[before..]
                .iter()
                .filter_map(|frame| Some(((round + 1) * KIB, frame.max_data?))),
        );
    }
    drop(substream);
    s.peer.flag(channel, Flag::Fin);
    s.finish().await;
    grants
}

/// Credit is independent of the read method: the peer gets the same grants.
#[tokio::test(start_paused = true)]
async fn l20_consume_grants_what_a_read_grants() {
    let by_read = grants(Way::Read).await;
    assert!(by_read.len() >= 2, "{by_read:?}");
    for way in [Way::Chunk, Way::Tokio, Way::Futures] {
        assert_eq!(grants(way).await, by_read, "{way:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_reset_discards_what_was_looked_at() {
    for by_peer in [true, false] {
        let mut s = scripted(config(), MemoryConfig::default());
        let (mut substream, channel) = s.open().await;
        s.peer.data(channel, &pattern(2000));
        settle().await;
        assert_eq!(substream.fill_buf().await.unwrap().len(), 2000);
        if by_peer {
            s.peer.flag(channel, Flag::ResetStream);
            settle().await;
        } else {
            substream.reset(7);
        }
        assert_eq!(s.us.stats().unread, 0);
        consume(&mut substream, 1000);
        let error = substream.fill_buf().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        // And nothing is left to consume.
        consume(&mut substream, 1000);
        assert_eq!((substream.unread(), s.us.stats().unread), (0, 0));
        drop(substream);
        s.finish().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_stop_ends_a_buffered_reader() {
    let mut s = scripted(config(), MemoryConfig::default());
    let (mut substream, channel) = s.open().await;
    s.peer.data(channel, &pattern(2000));
    settle().await;
    assert_eq!(substream.fill_buf().await.unwrap().len(), 2000);
    substream.stop(3);
    consume(&mut substream, 2000);
    assert_eq!(substream.fill_buf().await.unwrap(), b"");
    assert_eq!(s.us.stats().unread, 0);
    drop(substream);
    s.peer.flag(channel, Flag::Fin);
    s.finish().await;
}

#[tokio::test(start_paused = true)]
async fn a_fill_buf_that_waits_is_woken_by_data() {
    let mut s = scripted(config(), MemoryConfig::default());
    let (mut substream, channel) = s.open().await;
    let counter = CountingWaker::new();
    let waker = Waker::from(Arc::clone(&counter));
    let mut cx = Context::from_waker(&waker);
    assert!(Pin::new(&mut substream).poll_fill_buf(&mut cx).is_pending());
    s.peer.run_for(1000 * MS).await;
    assert_eq!(counter.count(), 0);
    s.peer.data(channel, b"word");
    settle().await;
    assert_eq!(counter.count(), 1);
    // The waiting future was dropped, but no data is lost.
    assert_eq!(substream.fill_buf().await.unwrap(), b"word");
    drop(substream);
    s.peer.flag(channel, Flag::Fin);
    s.finish().await;
}

/// The purpose of the traits: lines, and copies between two streams without a further buffer.
#[tokio::test(start_paused = true)]
async fn lines_and_copies_need_no_buffer_of_their_own() {
    let pair = Pair::new();
    let (mut here, there) = pair.substream().await;
    let (reader, mut writer) = there.into_split();
    let echo = tokio::spawn(async move {
        let mut reader = reader;
        let copied = tokio::io::copy_buf(&mut reader, &mut writer).await.unwrap();
        writer.finish().await.unwrap();
        copied
    });
    let text: String = (0..5000).map(|n| format!("line {n}\n")).collect();
    here.write_all(text.as_bytes()).await.unwrap();
    here.shutdown().await.unwrap();
    let mut lines = here.lines();
    let mut count = 0;
    while let Some(line) = within("a line", lines.next_line()).await.unwrap() {
        assert_eq!(line, format!("line {count}"));
        count += 1;
    }
    assert_eq!(count, 5000);
    assert_eq!(echo.await.unwrap(), text.len() as u64);
    drop(lines);
    pair.finish().await;
}

/// Any order of read methods and lengths, over a carrier that splits and merges frames.
#[tokio::test(start_paused = true)]
async fn any_mix_of_reads_returns_every_byte_once() {
    for seed in seeds(60) {
        println!("seed {seed}");
        let mut rng = StdRng::seed_from_u64(seed);
        let mut config = config();
        config.receive_window = rng.random_range(1024..100_000);
        let pair = Pair::with(config.clone(), config, MemoryConfig::hostile(seed));
        let (mut here, mut there) = pair.substream().await;
        let data = pattern(rng.random_range(0..200_000));
        let writing = {
            let data = data.clone();
            let mut lengths = StdRng::seed_from_u64(seed + 1);
            tokio::spawn(async move {
                let mut rest = &data[..];
                while !rest.is_empty() {
                    let (now, later) =
                        rest.split_at(lengths.random_range(1..=rest.len().min(9000)));
                    here.write_all(now).await.unwrap();
                    here.flush().await.unwrap();
                    rest = later;
                }
                here.finish().await.unwrap()
            })
        };
        let mut all = Vec::new();
        loop {
            let max = rng.random_range(1..5000);
            let before = all.len();
            match rng.random_range(0..3) {
                0 => {
                    let mut out = vec![0; max];
                    let read = within("bytes", there.read(&mut out)).await.unwrap();
                    all.extend_from_slice(&out[..read]);
                }
                1 => {
                    let chunk = within("a chunk", there.read_chunk(max)).await.unwrap();
                    all.extend_from_slice(&chunk.unwrap_or_default());
                }
                _ => {
                    let filled = within("a look", there.fill_buf()).await.unwrap();
                    let taken = filled.len().min(max);
                    all.extend_from_slice(&filled[..taken]);
                    consume(&mut there, taken);
                }
            }
            if all.len() == before {
                break;
            }
        }
        assert!(
            all == data,
            "seed {seed}: {} of {} bytes",
            all.len(),
            data.len()
        );
        within("the writer", writing).await.unwrap();
        drop(there);
        pair.finish().await;
    }
}

/// A reader of data that is always available lets other tasks run.
#[tokio::test(start_paused = true)]
async fn buffered_reads_are_cooperative() {
    let mut s = scripted(config(), MemoryConfig::default());
    let (mut substream, channel) = s.open().await;
    s.peer.data(channel, &pattern(10_000));
    settle().await;
    let looks = poll_fn(|cx| {
        let mut looks = 0;
        while Pin::new(&mut substream).poll_fill_buf(cx).is_ready() && looks < 10_000 {
            looks += 1;
        }
        Poll::Ready(looks)
    })
    .await;
    assert!(looks < 1000, "{looks} looks in one poll");
    drop(substream);
    s.peer.flag(channel, Flag::Fin);
    s.finish().await;
}
