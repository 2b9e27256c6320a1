//! How a substream closes: FIN, FIN_ACK, STOP_SENDING, RESET and drop, frame by frame.

#![allow(missing_docs)]

mod common;

use std::future::Future;
use std::io::ErrorKind;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use anabranch::carrier::memory::MemoryConfig;
use anabranch::message::{Flag, Message};
use anabranch::substream::code;
use anabranch::{CloseOutcome, FinAckPolicy};
use common::{CountingWaker, Pair, config, pattern, scripted, settle, within};
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, sleep};

const MS: Duration = Duration::from_millis(1);

/// Row L-15: a protocol error of one substream is its own.
#[tokio::test(start_paused = true)]
async fn l15_fin_ack_before_fin_resets_only_that_substream() {
    let mut s = scripted(config(), MemoryConfig::default());
    let (mut good, good_channel) = s.open().await;
    let (mut bad, channel) = s.open().await;
    s.peer.data(channel, b"kept");
    s.peer.flag(channel, Flag::FinAck);
    s.peer
        .expect(channel, Message::reset(code::PROTOCOL_VIOLATION))
        .await;
    s.peer.expect_closed(channel).await;
    let mut word = [0; 4];
    bad.read_exact(&mut word)
        .await
        .expect("what came before stays readable");
    assert_eq!(&word, b"kept");
    assert_eq!(
        bad.read(&mut word).await.unwrap_err().kind(),
        ErrorKind::ConnectionReset
    );
    assert_eq!(
        bad.write(b"x").await.unwrap_err().kind(),
        ErrorKind::ConnectionReset
    );
    assert_eq!(s.us.stats().violations, 1);
    good.write_all(b"alive").await.unwrap();
    s.peer.expect_data(good_channel, b"alive").await;
    drop(good);
    s.peer.flag(good_channel, Flag::Fin);
    s.finish().await;
}

/// Rows L-16, R-7: a writer that waits for room wakes, and FIN still follows.
#[tokio::test(start_paused = true)]
async fn l16_stop_sending_wakes_a_blocked_writer_and_fin_follows() {
    let mut s = scripted(config(), MemoryConfig::default());
    let (mut substream, channel) = s.open().await;
    let writing =
        tokio::spawn(async move { (substream.write_all(&pattern(1 << 20)).await, substream) });
    s.peer.expect_data(channel, &pattern(12 * 1024)).await;
    assert!(!writing.is_finished());
    s.peer.send(channel, Message::stop_sending(9));
    let (result, mut substream) = within("the writer", writing).await.unwrap();
    assert_eq!(result.unwrap_err().kind(), ErrorKind::BrokenPipe);
    assert_eq!(
        substream.flush().await.unwrap_err().kind(),
        ErrorKind::BrokenPipe
    );
    assert_eq!(
        substream.finish().await.unwrap(),
        CloseOutcome::Stopped(Some(9))
    );
    s.peer.expect_flag(channel, Flag::Fin).await;
    // A second one changes nothing, nor its code.
    s.peer.send(channel, Message::stop_sending(10));
    s.peer.data(channel, b"answer");
    s.peer.flag(channel, Flag::Fin);
    let mut answer = Vec::new();
    within("the read half", substream.read_to_end(&mut answer))
        .await
        .unwrap();
    assert_eq!(answer, b"answer");
    assert_eq!(
        substream.close_outcome(),
        Some(CloseOutcome::Stopped(Some(9)))
    );
    s.peer.expect_flag(channel, Flag::FinAck).await;
    s.peer.expect_closed(channel).await;
    s.finish().await;
}

/// A reset here drops what is unread: that is no clean end of the stream.
#[tokio::test(start_paused = true)]
async fn l17_our_own_reset_behind_fin_is_not_the_end_of_the_stream() {
    let mut s = scripted(config(), MemoryConfig::default());
    let (mut substream, channel) = s.open().await;
    s.peer.data(channel, b"unread");
    s.peer.flag(channel, Flag::Fin);
    settle().await;
    substream.reset(1);
    let error = substream.read(&mut [0; 10]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    s.peer.expect_flag(channel, Flag::FinAck).await;
    s.peer.expect(channel, Message::reset(1)).await;
    s.finish().await;
}

/// A FIN that the carrier did not take was not sent: what the peer has is not known.
#[tokio::test(start_paused = true)]
async fn l10_a_channel_closed_before_fin_is_lost_and_not_closed_cleanly() {
    let mut s = scripted(config(), MemoryConfig::default());
    let (mut substream, channel) = s.open().await;
    s.peer.close(channel);
    let error = within("finish", substream.finish()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::BrokenPipe);
    assert_eq!(substream.close_outcome(), Some(CloseOutcome::Lost));
    assert_eq!(s.sent.count(Flag::Fin), 0);

    let (mut substream, channel) = s.open().await;
    let closing = tokio::spawn(async move { substream.finish().await });
    s.peer.expect_flag(channel, Flag::Fin).await;
    s.peer.close(channel);
    assert_eq!(closing.await.unwrap().unwrap(), CloseOutcome::ChannelClosed);
    s.finish().await;
}
