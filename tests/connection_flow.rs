//! Credit, ceilings, limits and fairness of the substreams of a connection.

#![allow(missing_docs)]

mod common;

use std::io::ErrorKind;
use std::time::Duration;

use anabranch::CloseOutcome;
use anabranch::carrier::Class;
use anabranch::carrier::memory::MemoryConfig;
use anabranch::message::{Flag, Message};
use anabranch::substream::code;
use bytes::Bytes;
use common::{Pair, config, pattern, scripted, settle, within};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, sleep};

const MIB: usize = 1024 * 1024;

/// wire.md 3, peers.md: before the peer has spoken, 12 KiB and no more.
#[tokio::test(start_paused = true)]
async fn a_silent_peer_gets_12_kib_and_after_the_open_timeout_the_rest() {
    let mut s = scripted(config(), MemoryConfig::default());
    let (mut substream, channel) = s.open().await;
    let before = Instant::now();
    let writing = tokio::spawn(async move {
        substream.write_all(&pattern(60_000)).await.unwrap();
        substream
    });
    s.peer.expect_data(channel, &pattern(12 * 1024)).await;
    s.peer
        .expect_quiet(channel, Duration::from_millis(4900))
        .await;
    // A peer that knows no credit may have nothing to say: it is not waited for for ever.
    let first = s.peer.next(channel).await;
    assert_eq!(before.elapsed().as_secs(), 5);
    s.peer
        .expect_data(channel, &pattern(60_000)[12 * 1024 + first.payload.len()..])
        .await;
    let substream = within("the writer", writing).await.unwrap();
    drop(substream);
    s.peer.flag(channel, Flag::Fin);
    s.finish().await;
}

/// A window smaller than a frame: credit can not ride on data that goes out in parts.
#[tokio::test(start_paused = true)]
async fn small_windows_neither_stall_nor_overrun() {
    for (window_a, window_b) in [(1024, 1024), (1024, 1 << 20), (1 << 20, 1024), (5000, 3000)] {
        let (mut a, mut b) = (config(), config());
        a.receive_window = window_a;
        b.receive_window = window_b;
        let pair = Pair::with(a, b, MemoryConfig::hostile(u64::from(window_a)));
        let (here, there) = pair.substream().await;
        let (mut here_read, mut here_write) = here.into_split();
        let (mut there_read, mut there_write) = there.into_split();
        let (mut up, mut down) = (Vec::new(), Vec::new());
        let data = pattern(200_000);
        let all = async {
            tokio::join!(
                async {
                    here_write.write_all(&data).await.unwrap();
                    here_write.finish().await.unwrap()
                },
                async {
                    there_write.write_all(&data).await.unwrap();
                    there_write.finish().await.unwrap()
                },
                here_read.read_to_end(&mut down),
                there_read.read_to_end(&mut up),
            )
        };
        let (ours, theirs, ..) = within("both directions", all).await;
        assert_eq!((ours, theirs), (CloseOutcome::Acked, CloseOutcome::Acked));
        assert!(up == data && down == data, "{window_a} {window_b}");
        assert_eq!(
            (pair.a.stats().violations, pair.b.stats().violations),
            (0, 0)
        );
        pair.finish().await;
    }
}

/// Credit is a control frame too: it does not wait for a busy carrier to take data again.
#[tokio::test(start_paused = true)]
async fn h8_credit_passes_while_data_is_busy() {
    let mut config = config();
    config.receive_window = 20_000;
    let mut memory = MemoryConfig::default();
    memory.budget = 10_000;
    let mut s = scripted(config, memory);
    let (substream, channel) = s.open().await;
    let (mut read, mut write) = substream.into_split();
    s.peer
        .data_with_credit(channel, &pattern(10_000), 10_000_000);
    let writing = tokio::spawn(async move {
        write.write_all(&pattern(200_000)).await.unwrap();
        write
    });
    settle().await;
    let before = s.sent.frames().len();
    read.read_exact(&mut [0; 10_000]).await.unwrap();
    settle().await;
    let frames = s.sent.frames();
    let credit = frames[before..]
        .iter()
        .find_map(|frame| frame.message.max_data);
    assert_eq!(credit, Some(30_000), "{:?}", &frames[before..]);
    s.peer.expect_data(channel, &pattern(200_000)).await;
    drop((read, writing.await.unwrap()));
    s.peer.flag(channel, Flag::Fin);
    s.finish().await;
}
