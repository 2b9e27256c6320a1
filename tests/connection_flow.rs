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
