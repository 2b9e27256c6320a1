//! Substreams whose handle is dropped without a close.

#![allow(missing_docs)]

mod common;

use std::time::Duration;

use anabranch::FinishError;
use anabranch::message::{Flag, Message};
use anabranch::substream::code;
use anabranch_testkit::memory::MemoryConfig;
use common::{Pair, config, pattern, scripted, within};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::Instant;

const MS: Duration = Duration::from_millis(1);

/// Rows L-21, H-7: nothing else wakes the driver.
#[tokio::test(start_paused = true)]
async fn l21_a_drop_wakes_the_driver() {
    let mut s = scripted(config(), MemoryConfig::default());
    let (substream, channel) = s.open().await;
    s.peer.expect_quiet(channel, Duration::from_secs(1)).await;
    let before = Instant::now();
    drop(substream);
    s.peer.expect_flag(channel, Flag::StopSending).await;
    s.peer.expect_flag(channel, Flag::Fin).await;
    assert_eq!(before.elapsed(), Duration::ZERO);
    s.peer.flag(channel, Flag::FinAck);
    s.peer.flag(channel, Flag::Fin);
    s.peer.expect_flag(channel, Flag::FinAck).await;
    s.peer.expect_closed(channel).await;
    s.finish().await;
}

/// Rows L-28, H-3: what was written, then FIN; STOP_SENDING for the read half.
#[tokio::test(start_paused = true)]
async fn l28_a_dropped_substream_closes_gracefully() {
    let mut s = scripted(config(), MemoryConfig::default());
    let (mut substream, channel) = s.open().await;
    substream.write_all(b"request").await.unwrap();
    drop(substream);
    s.peer.expect_flag(channel, Flag::StopSending).await;
    s.peer.expect_data(channel, b"request").await;
    s.peer.expect_flag(channel, Flag::Fin).await;
    s.peer.flag(channel, Flag::FinAck);
    s.peer.data(channel, b"nobody reads this");
    s.peer.flag(channel, Flag::Fin);
    s.peer.expect_flag(channel, Flag::FinAck).await;
    s.peer.expect_closed(channel).await;
    s.finish().await;
}

/// Rows L-28, H-3, H-7: data that can not be delivered to the peer ends in RESET_STREAM after
/// `teardown_timeout`.
#[tokio::test(start_paused = true)]
async fn l28_a_drop_that_can_not_deliver_ends_in_reset() {
    let mut config = config();
    config.teardown_timeout = Duration::from_secs(3);
    let mut s = scripted(config, MemoryConfig::default());
    let (mut substream, channel) = s.open().await;
    s.peer.data_with_credit(channel, b"x", 1000);
    substream.read_exact(&mut [0]).await.unwrap();
    substream.write_all(&pattern(5000)).await.unwrap();
    let dropped = Instant::now();
    drop(substream);
    loop {
        let message = s.peer.next(channel).await;
        if message.flag == Some(Flag::ResetStream) {
            assert_eq!(message.error_code, Some(code::ABANDONED));
            break;
        }
    }
    let took = dropped.elapsed();
    assert!(
        took >= Duration::from_secs(3) && took <= Duration::from_secs(3) + MS,
        "{took:?}"
    );
    s.peer.expect_closed(channel).await;
    assert_eq!(s.sent.count(Flag::Fin), 0);
    s.finish().await;
}

/// docs/wire.md 2: RESET_STREAM is only for a FIN that could not be delivered. A peer that has FIN,
/// and does not end its own direction, loses the channel, not its unread data.
#[tokio::test(start_paused = true)]
async fn l28_a_drop_whose_fin_was_delivered_is_bounded_without_reset() {
    let mut s = scripted(config(), MemoryConfig::default());
    let (mut substream, channel) = s.open().await;
    substream.write_all(b"response").await.unwrap();
    let dropped = Instant::now();
    drop(substream);
    s.peer.expect_closed(channel).await;
    assert_eq!(dropped.elapsed().as_secs(), 10);
    assert_eq!(
        (s.sent.count(Flag::Fin), s.sent.count(Flag::ResetStream)),
        (1, 0)
    );
    s.finish().await;
}

/// Row H-7: a carrier that refuses even control frames does not keep a dropped substream alive.
#[tokio::test(start_paused = true)]
async fn h7_teardown_is_bounded_while_the_carrier_refuses_everything() {
    let mut s = scripted(config(), MemoryConfig::default());
    let (substream, channel) = s.open().await;
    s.gate.shut();
    drop(substream);
    // `Config::teardown_timeout` for the written data, and again for RESET_STREAM, which finds no
    // room either.
    s.peer.run_for(Duration::from_millis(19_990)).await;
    assert_eq!(s.us.stats().substreams, 1);
    s.peer.run_for(Duration::from_millis(20)).await;
    assert_eq!(s.us.stats().substreams, 0);
    s.gate.open();
    s.peer.expect_closed(channel).await;
    s.finish().await;
}

/// The code of `stop` reaches the peer, also if the handle is dropped right after.
#[tokio::test(start_paused = true)]
async fn l16_the_code_of_a_stop_survives_the_drop() {
    let mut s = scripted(config(), MemoryConfig::default());
    let (mut substream, channel) = s.open().await;
    substream.stop(42);
    drop(substream);
    s.peer.expect(channel, Message::stop_sending(42)).await;
    s.peer.flag(channel, Flag::Fin);
    s.peer.expect_flag(channel, Flag::Fin).await;
    s.peer.flag(channel, Flag::FinAck);
    s.finish().await;
}

/// Row O-R5: without a reader the peer's writer is stopped. Its data in flight is discarded, and
/// the other direction lives on.
#[tokio::test(start_paused = true)]
async fn r5_a_dropped_reader_stops_the_peers_writer_and_keeps_nothing() {
    let mut s = scripted(config(), MemoryConfig::default());
    let (substream, channel) = s.open().await;
    s.peer.data(channel, &pattern(3000));
    s.peer.run_for(MS).await;
    assert_ne!(s.us.stats().unread, 0);
    let (reader, mut writer) = substream.into_split();
    drop(reader);
    s.peer.expect_flag(channel, Flag::StopSending).await;
    for _ in 0..100 {
        s.peer.data(channel, &pattern(3000));
        s.peer.run_for(MS).await;
        assert_eq!(s.us.stats().unread, 0, "nobody reads it");
    }
    writer.write_all(b"still here").await.unwrap();
    s.peer.expect_data(channel, b"still here").await;
    s.peer.flag(channel, Flag::Fin);
    s.peer.expect_flag(channel, Flag::FinAck).await;
    assert_eq!(s.sent.count(Flag::StopSending), 1);
    drop(writer);
    s.peer.expect_flag(channel, Flag::Fin).await;
    s.peer.flag(channel, Flag::FinAck);
    s.peer.expect_closed(channel).await;
    s.finish().await;
}

/// The same between two connections: an endless writer gets the error at once.
#[tokio::test(start_paused = true)]
async fn r5_a_writer_without_an_end_fails_where_the_reader_is_dropped() {
    let pair = Pair::new();
    let (mut here, there) = pair.substream().await;
    let writing = tokio::spawn(async move {
        let mut written = 0_usize;
        loop {
            match here.write(&pattern(10_000)).await {
                Ok(length) => written += length,
                Err(error) => return (written, error.kind(), here.finish().await),
            }
        }
    });
    let (mut reader, writer) = there.into_split();
    reader.read_exact(&mut [0; 5000]).await.unwrap();
    drop(reader);
    let (written, kind, finish) = within("the writer is told", writing).await.unwrap();
    assert!(written < 3 << 20, "{written}");
    assert_eq!(kind, std::io::ErrorKind::BrokenPipe);
    assert_eq!(finish, Err(FinishError::Stopped(None)));
    drop(writer);
    pair.finish().await;
}
