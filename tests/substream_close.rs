//! The close of a substream: FIN, FIN_ACK, STOP_SENDING, RESET_STREAM and drop, frame by frame.

#![allow(missing_docs)]

mod common;

use std::future::Future;
use std::io::ErrorKind;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use anabranch::message::{Flag, Message};
use anabranch::substream::code;
use anabranch::{CloseOutcome, FinAckPolicy, FinishError, Finished};
use anabranch_testkit::memory::MemoryConfig;
use common::{CountingWaker, Pair, config, pattern, scripted, settle, within};
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, sleep};

const MS: Duration = Duration::from_millis(1);

async fn fin_ack_timeout_to_the_millisecond(wait: Duration) {
    let mut config = config();
    config.fin_ack_timeout = wait;
    let mut s = scripted(config, MemoryConfig::default());
    let (mut substream, channel) = s.open().await;
    substream.write_all(b"hello").await.unwrap();
    let closing = tokio::spawn(async move {
        let result = substream.shutdown().await;
        (substream, result, Instant::now())
    });
    s.peer.expect_data(channel, b"hello").await;
    s.peer.expect_flag(channel, Flag::Fin).await;
    let delivered = Instant::now();
    s.peer
        .expect_quiet(channel, wait + Duration::from_secs(20))
        .await;
    let (mut substream, result, ended) = closing.await.unwrap();
    result.expect("a timeout is no error of shutdown");
    let took = ended - delivered;
    assert!(took >= wait && took <= wait + MS, "{took:?} for {wait:?}");
    assert_eq!(substream.close_outcome(), Some(CloseOutcome::TimedOut));

    // The read half lives on, and ends as usual.
    s.peer.data(channel, b"still here");
    s.peer.flag(channel, Flag::Fin);
    let mut rest = Vec::new();
    within(
        "the end",
        s.peer.drive_while(substream.read_to_end(&mut rest)),
    )
    .await
    .unwrap();
    assert_eq!(rest, b"still here");
    s.peer.expect_flag(channel, Flag::FinAck).await;
    s.peer.expect_closed(channel).await;
    assert_eq!(s.sent.count(Flag::ResetStream), 0);
    s.finish().await;
}

/// Rows L-10, L-12, H-12.
#[tokio::test(start_paused = true)]
async fn l12_fin_ack_timeout_of_5_s() {
    fin_ack_timeout_to_the_millisecond(Duration::from_secs(5)).await;
}

/// Rows L-10, L-12, R-11: the default.
#[tokio::test(start_paused = true)]
async fn l12_fin_ack_timeout_of_10_s() {
    assert_eq!(config().fin_ack_timeout, Duration::from_secs(10));
    fin_ack_timeout_to_the_millisecond(Duration::from_secs(10)).await;
}

/// Row H-16: a slow link is not a silent peer. While the peer does not read, FIN is not delivered
/// and the timeout does not run.
#[tokio::test(start_paused = true)]
async fn h16_fin_ack_timer_starts_when_fin_is_delivered() {
    let mut s = scripted(config(), MemoryConfig::default());
    let (mut substream, channel) = s.open().await;
    let mut closing = tokio::spawn(async move { substream.finish().await });
    sleep(Duration::from_secs(300)).await;
    assert!(!closing.is_finished(), "nothing was delivered yet");
    s.peer.expect_flag(channel, Flag::Fin).await;
    let delivered = Instant::now();
    let outcome = s.peer.drive_while(&mut closing).await.unwrap();
    assert_eq!(outcome, Err(FinishError::TimedOut));
    let took = delivered.elapsed();
    assert!(
        took >= Duration::from_secs(10) && took <= Duration::from_secs(10) + MS,
        "{took:?}"
    );
    s.peer.flag(channel, Flag::Fin);
    s.finish().await;
}

/// Row R-4: the contract of `poll` is to wake the latest waker.
#[tokio::test(start_paused = true)]
async fn r4_the_latest_waker_of_shutdown_is_woken() {
    for by_timeout in [true, false] {
        let mut s = scripted(config(), MemoryConfig::default());
        let (mut substream, channel) = s.open().await;
        let (first, second) = (CountingWaker::new(), CountingWaker::new());
        for counter in [&first, &second] {
            let waker = Waker::from(Arc::clone(counter));
            let mut cx = Context::from_waker(&waker);
            assert!(AsyncWrite::poll_shutdown(Pin::new(&mut substream), &mut cx).is_pending());
        }
        // The first change of state may wake the older waker too; only the latest has to be woken.
        s.peer.expect_flag(channel, Flag::Fin).await;
        let (first_before, second_before) = (first.count(), second.count());
        if by_timeout {
            s.peer.run_for(Duration::from_secs(11)).await;
        } else {
            s.peer.flag(channel, Flag::FinAck);
            settle().await;
        }
        assert_eq!(
            (first.count(), second.count()),
            (first_before, second_before + 1)
        );
        let mut cx = Context::from_waker(Waker::noop());
        assert!(AsyncWrite::poll_shutdown(Pin::new(&mut substream), &mut cx).is_ready());
        s.peer.flag(channel, Flag::Fin);
        s.finish().await;
    }
}

/// Row L-11: any number of polls and wakers sends one FIN.
#[tokio::test(start_paused = true)]
async fn l11_many_polls_of_shutdown_send_one_fin() {
    let mut s = scripted(config(), MemoryConfig::default());
    let (mut substream, channel) = s.open().await;
    substream.write_all(b"x").await.unwrap();
    for _ in 0..50 {
        let waker = Waker::from(CountingWaker::new());
        let mut cx = Context::from_waker(&waker);
        let _ = AsyncWrite::poll_shutdown(Pin::new(&mut substream), &mut cx);
        s.peer.run_for(MS).await;
    }
    s.peer.expect_data(channel, b"x").await;
    s.peer.expect_flag(channel, Flag::Fin).await;
    s.peer.flag(channel, Flag::FinAck);
    assert_eq!(
        s.peer.drive_while(substream.finish()).await.unwrap(),
        Finished::Acked
    );
    substream.shutdown().await.expect("again, at once");
    assert_eq!(s.sent.count(Flag::Fin), 1);
    let error = substream.write(b"late").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::BrokenPipe);
    drop(substream);
    s.peer.flag(channel, Flag::Fin);
    s.finish().await;
}

/// Rows L-13, L-14, R-12.
#[tokio::test(start_paused = true)]
async fn l14_a_second_fin_is_ignored() {
    let mut s = scripted(config(), MemoryConfig::default());
    let (mut substream, channel) = s.open().await;
    s.peer.data(channel, b"end");
    s.peer.flag(channel, Flag::Fin);
    s.peer.expect_flag(channel, Flag::FinAck).await;
    s.peer.flag(channel, Flag::Fin);
    s.peer.expect_quiet(channel, Duration::from_secs(1)).await;
    let mut all = Vec::new();
    substream.read_to_end(&mut all).await.unwrap();
    assert_eq!(all, b"end");
    assert_eq!(s.us.stats().violations, 0);
    drop(substream);
    s.peer.expect_flag(channel, Flag::Fin).await;
    s.peer.flag(channel, Flag::FinAck);
    s.peer.expect_closed(channel).await;
    s.finish().await;
}

/// Row L-15: a protocol error affects only its substream.
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

/// Row L-15.
#[tokio::test(start_paused = true)]
async fn l15_a_second_fin_ack_is_ignored() {
    let mut s = scripted(config(), MemoryConfig::default());
    let (mut substream, channel) = s.open().await;
    let closing = tokio::spawn(async move { (substream.finish().await, substream) });
    s.peer.expect_flag(channel, Flag::Fin).await;
    s.peer.flag(channel, Flag::FinAck);
    s.peer.flag(channel, Flag::FinAck);
    s.peer.data(channel, b"x");
    let (outcome, mut substream) = closing.await.unwrap();
    assert_eq!(outcome.unwrap(), Finished::Acked);
    let mut byte = [0];
    substream.read_exact(&mut byte).await.unwrap();
    assert_eq!(s.us.stats().violations, 0);
    drop(substream);
    s.peer.flag(channel, Flag::Fin);
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
    assert_eq!(substream.finish().await, Err(FinishError::Stopped(Some(9))));
    // Discarded data was not delivered.
    assert_eq!(
        substream.shutdown().await.unwrap_err().kind(),
        ErrorKind::BrokenPipe
    );
    s.peer.expect_flag(channel, Flag::Fin).await;
    // A second one, or another code, has no effect.
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

/// Rows L-16, H-2: a peer that has read a message drops its substream, often before the writer has
/// shut down. Identify of rust-libp2p takes an error of the flush or of the close for a failure.
#[tokio::test(start_paused = true)]
async fn l16_stop_sending_that_discards_nothing_fails_neither_flush_nor_shutdown() {
    let mut s = scripted(config(), MemoryConfig::default());
    let (mut substream, channel) = s.open().await;
    substream.write_all(b"message").await.unwrap();
    s.peer.expect_data(channel, b"message").await;
    s.peer.send(channel, Message::stop_sending(9));
    let outcome = within("the stop", substream.stopped()).await;
    assert_eq!(outcome, CloseOutcome::Stopped(Some(9)));
    substream.flush().await.expect("nothing was discarded");
    substream.shutdown().await.expect("nothing was discarded");
    assert_eq!(substream.finish().await, Err(FinishError::Stopped(Some(9))));
    let refused = substream.write_all(b"more").await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::BrokenPipe);
    s.peer.expect_flag(channel, Flag::Fin).await;
    // After FIN too.
    substream.flush().await.expect("nothing was discarded");
    substream.shutdown().await.expect("nothing was discarded");
    s.peer.flag(channel, Flag::Fin);
    let mut rest = Vec::new();
    substream.read_to_end(&mut rest).await.unwrap();
    s.peer.expect_flag(channel, Flag::FinAck).await;
    s.peer.expect_closed(channel).await;
    s.finish().await;
}

/// Rows L-17, H-3: libp2p-webrtc answers, and resets a substream that is dropped. What it has sent
/// before is complete, and is read although the task here flushes first.
#[tokio::test(start_paused = true)]
async fn l17_a_reset_that_discards_nothing_does_not_fail_a_flush() {
    let mut s = scripted(config(), MemoryConfig::default());
    let (mut substream, channel) = s.open().await;
    substream.write_all(b"request").await.unwrap();
    s.peer.expect_data(channel, b"request").await;
    s.peer.data(channel, b"answer");
    s.peer.flag(channel, Flag::Fin);
    s.peer.flag(channel, Flag::ResetStream);
    let outcome = within("the reset", substream.stopped()).await;
    assert_eq!(outcome, CloseOutcome::Reset(None));
    substream.flush().await.expect("nothing was discarded");
    let mut answer = Vec::new();
    substream
        .read_to_end(&mut answer)
        .await
        .expect("FIN came before");
    assert_eq!(answer, b"answer");
    // The peer may have discarded the request.
    assert_eq!(
        substream.shutdown().await.unwrap_err().kind(),
        ErrorKind::ConnectionReset
    );
    drop(substream);
    s.finish().await;
}

/// Rows L-16, H-2: the peer may never acknowledge a FIN once it has sent STOP_SENDING.
#[tokio::test(start_paused = true)]
async fn l16_stop_sending_after_fin_completes_the_shutdown() {
    let mut s = scripted(config(), MemoryConfig::default());
    let (mut substream, channel) = s.open().await;
    let closing =
        tokio::spawn(async move { (substream.finish().await, substream.shutdown().await) });
    s.peer.expect_flag(channel, Flag::Fin).await;
    s.peer.flag(channel, Flag::StopSending);
    let before = Instant::now();
    let (finished, shut_down) = closing.await.unwrap();
    assert_eq!(finished, Err(FinishError::Stopped(None)));
    shut_down.expect("nothing was discarded");
    assert_eq!(before.elapsed(), Duration::ZERO);
    s.peer.flag(channel, Flag::FinAck);
    s.peer.flag(channel, Flag::Fin);
    s.finish().await;
    // One FIN: checked by the log.
}

/// Rows L-17, R-8: RESET wakes all four roles.
#[tokio::test(start_paused = true)]
async fn l17_reset_wakes_reader_writer_flush_and_shutdown() {
    for role in ["read", "write", "flush", "shutdown"] {
        let mut s = scripted(config(), MemoryConfig::default());
        let (substream, channel) = s.open().await;
        let (mut read, mut write) = substream.into_split();
        let waiting = tokio::spawn(async move {
            let result = match role {
                "read" => read.read(&mut [0; 8]).await.map(drop),
                "write" => write.write_all(&pattern(1 << 20)).await,
                "flush" => {
                    write.write_all(&pattern(60_000)).await.unwrap();
                    write.flush().await
                }
                _ => {
                    write.write_all(&pattern(60_000)).await.unwrap();
                    write.shutdown().await
                }
            };
            (result, write.close_outcome())
        });
        settle().await;
        assert!(!waiting.is_finished(), "{role}");
        s.peer.send(channel, Message::reset(3));
        let (result, outcome) = within(role, waiting).await.unwrap();
        let error = result.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{role}");
        assert_eq!(outcome, Some(CloseOutcome::Reset(Some(3))));
        s.peer.expect_closed(channel).await;
        assert_eq!(
            s.sent.count(Flag::ResetStream),
            0,
            "a RESET is not answered with one"
        );
        s.finish().await;
    }
}

/// Data before FIN is complete: a RESET_STREAM after it does not drop it.
#[tokio::test(start_paused = true)]
async fn l17_reset_after_fin_keeps_received_data() {
    let mut s = scripted(config(), MemoryConfig::default());
    let (mut substream, channel) = s.open().await;
    s.peer.data(channel, b"whole");
    s.peer.flag(channel, Flag::Fin);
    s.peer.flag(channel, Flag::ResetStream);
    settle().await;
    let mut all = Vec::new();
    substream.read_to_end(&mut all).await.unwrap();
    assert_eq!(all, b"whole");
    s.finish().await;
}

/// A local reset drops unread data, which is no clean end of the stream.
#[tokio::test(start_paused = true)]
async fn l17_a_local_reset_after_fin_is_not_the_end_of_the_stream() {
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

/// Row L-18, R-3.
#[tokio::test(start_paused = true)]
async fn l18_fins_that_cross_complete_both_sides() {
    for seed in 0..20 {
        let pair = Pair::with(config(), config(), MemoryConfig::hostile(seed));
        let (mut here, mut there) = pair.substream().await;
        let (ours, theirs) = tokio::join!(here.finish(), there.finish());
        assert_eq!(ours.unwrap(), Finished::Acked, "seed {seed}");
        assert_eq!(theirs.unwrap(), Finished::Acked, "seed {seed}");
        pair.finish().await;
    }
}

/// Row L-18 with a peer that loses every FIN_ACK.
#[tokio::test(start_paused = true)]
async fn l18_fins_that_cross_without_fin_acks_time_out_and_close() {
    let pair = Pair::new();
    pair.faults.drop_flag(Flag::FinAck);
    let (mut here, mut there) = pair.substream().await;
    let (ours, theirs) = tokio::join!(here.finish(), there.finish());
    // The first one closes the channel, which the other may see before its own timeout.
    let outcomes = [ours.unwrap_err(), theirs.unwrap_err()];
    assert!(outcomes.contains(&FinishError::TimedOut), "{outcomes:?}");
    for outcome in outcomes {
        let ended = matches!(outcome, FinishError::TimedOut | FinishError::ChannelClosed);
        assert!(ended, "{outcome:?}");
    }
    pair.idle().await;
    assert_eq!(
        pair.sent[0].count(Flag::ResetStream) + pair.sent[1].count(Flag::ResetStream),
        0
    );
    pair.finish().await;
}

/// Row L-19.
#[tokio::test(start_paused = true)]
async fn l19_the_end_of_a_read_has_a_kind() {
    let mut s = scripted(config(), MemoryConfig::default());
    let mut byte = [0];

    let (mut fin, channel) = s.open().await;
    s.peer.flag(channel, Flag::Fin);
    assert_eq!(fin.read(&mut byte).await.unwrap(), 0);
    assert_eq!(fin.read(&mut byte).await.unwrap(), 0, "and again");
    drop(fin);

    let (mut reset, channel) = s.open().await;
    s.peer.flag(channel, Flag::ResetStream);
    assert_eq!(
        reset.read(&mut byte).await.unwrap_err().kind(),
        ErrorKind::ConnectionReset
    );

    let (mut closed, channel) = s.open().await;
    s.peer.data(channel, b"x");
    s.peer.close(channel);
    assert_eq!(
        closed.read(&mut byte).await.unwrap(),
        1,
        "what arrived before comes first"
    );
    assert_eq!(
        closed.read(&mut byte).await.unwrap_err().kind(),
        ErrorKind::UnexpectedEof
    );
    assert_eq!(
        closed.write(b"x").await.unwrap_err().kind(),
        ErrorKind::BrokenPipe
    );

    let (mut lost, channel) = s.open().await;
    s.peer.data(channel, b"x");
    settle().await;
    s.faults.kill();
    assert_eq!(lost.read(&mut byte).await.unwrap(), 1);
    assert_eq!(
        lost.read(&mut byte).await.unwrap_err().kind(),
        ErrorKind::UnexpectedEof
    );
    assert_eq!(
        lost.write(b"x").await.unwrap_err().kind(),
        ErrorKind::ConnectionAborted
    );
    assert_eq!(
        std::io::Error::from(lost.finish().await.unwrap_err()).kind(),
        ErrorKind::ConnectionAborted
    );
    drop((reset, closed, lost));
    within("the driver ends", s.driver).await.unwrap();
    assert!(s.us.is_idle());
}

/// A FIN that the carrier did not accept was not sent: what the peer has is unknown.
#[tokio::test(start_paused = true)]
async fn l10_a_channel_closed_before_fin_is_lost_and_not_closed_cleanly() {
    let mut s = scripted(config(), MemoryConfig::default());
    let (mut substream, channel) = s.open().await;
    // More events than the driver handles before it writes: the carrier refuses the FIN of a
    // channel whose close has yet to be reported.
    for _ in 0..100 {
        s.peer.data(channel, b"x");
    }
    s.peer.close(channel);
    let error = within("finish", substream.finish()).await.unwrap_err();
    assert_eq!(error, FinishError::ChannelClosed);
    let error = within("shutdown", substream.shutdown()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::BrokenPipe);
    assert_eq!(substream.close_outcome(), Some(CloseOutcome::Lost));
    assert_eq!(s.sent.count(Flag::Fin), 0);
    drop(substream);

    let (mut substream, channel) = s.open().await;
    let closing = tokio::spawn(async move { (substream.finish().await, substream) });
    s.peer.expect_flag(channel, Flag::Fin).await;
    s.peer.close(channel);
    let (finished, mut substream) = closing.await.unwrap();
    assert_eq!(finished, Err(FinishError::ChannelClosed));
    assert_eq!(substream.close_outcome(), Some(CloseOutcome::ChannelClosed));
    substream
        .shutdown()
        .await
        .expect("the peer's transport has it all");
    drop(substream);
    s.finish().await;
}

/// Row L-22.
#[tokio::test(start_paused = true)]
async fn l22_the_channel_closes_when_both_fin_acks_are_through() {
    for ours_first in [true, false] {
        let mut s = scripted(config(), MemoryConfig::default());
        let (mut substream, channel) = s.open().await;
        let closing = tokio::spawn(async move { (substream.finish().await, substream) });
        s.peer.expect_flag(channel, Flag::Fin).await;
        if ours_first {
            s.peer.flag(channel, Flag::FinAck);
        } else {
            s.peer.flag(channel, Flag::Fin);
            s.peer.expect_flag(channel, Flag::FinAck).await;
        }
        s.peer.run_for(Duration::from_secs(1)).await;
        assert!(!s.peer.is_closed(channel), "one direction is still open");
        assert_eq!(s.us.stats().substreams, 1);
        if ours_first {
            s.peer.flag(channel, Flag::Fin);
            s.peer.expect_flag(channel, Flag::FinAck).await;
        } else {
            s.peer.flag(channel, Flag::FinAck);
        }
        s.peer.expect_closed(channel).await;
        let (outcome, _substream) = closing.await.unwrap();
        assert_eq!(outcome.unwrap(), Finished::Acked);
        settle().await;
        assert_eq!((s.us.stats().substreams, s.faults.open_channels()), (0, 0));
        s.finish().await;
    }
}

/// Row H-2, on the wire: no order of flags makes a second FIN, FIN_ACK or RESET.
#[tokio::test(start_paused = true)]
async fn h2_no_order_of_flags_breaks_the_rules() {
    const FLAGS: [Flag; 4] = [
        Flag::Fin,
        Flag::StopSending,
        Flag::ResetStream,
        Flag::FinAck,
    ];
    for order in 0..4_usize.pow(4) {
        let mut s = scripted(config(), MemoryConfig::default());
        let (mut substream, channel) = s.open().await;
        substream.write_all(b"x").await.unwrap();
        let shutdown_first = order % 3 == 0;
        if shutdown_first {
            let mut cx = Context::from_waker(Waker::noop());
            let _ = AsyncWrite::poll_shutdown(Pin::new(&mut substream), &mut cx);
            s.peer.run_for(MS).await;
        }
        for place in 0..4_u32 {
            let flag = FLAGS[order / 4_usize.pow(place) % 4];
            if !s.peer.is_closed(channel) {
                s.peer.flag(channel, flag);
            }
            s.peer.run_for(MS).await;
        }
        drop(substream);
        s.peer.run_for(Duration::from_secs(25)).await;
        assert_eq!(s.us.stats().substreams, 0, "order {order}");
        s.finish().await;
    }
}

/// The number of FIN_ACKs before and after the own FIN, with a policy.
async fn fin_ack_policy(policy: FinAckPolicy) -> (usize, usize) {
    let mut config = config();
    config.fin_ack = policy;
    let mut s = scripted(config, MemoryConfig::default());
    let (mut substream, channel) = s.open().await;
    s.peer.flag(channel, Flag::Fin);
    s.peer.run_for(Duration::from_secs(1)).await;
    let before_own_fin = s.sent.count(Flag::FinAck);
    let closing = tokio::spawn(async move { substream.finish().await });
    s.peer.run_for(Duration::from_secs(1)).await;
    assert_eq!(s.sent.count(Flag::Fin), 1, "{policy:?}");
    let after_own_fin = s.sent.count(Flag::FinAck);
    s.peer.flag(channel, Flag::FinAck);
    assert_eq!(closing.await.unwrap().unwrap(), Finished::Acked);
    s.peer.expect_closed(channel).await;
    s.finish().await;
    (before_own_fin, after_own_fin)
}

#[tokio::test(start_paused = true)]
async fn l13_fin_ack_is_sent_as_the_policy_says() {
    assert_eq!(fin_ack_policy(FinAckPolicy::Always).await, (1, 1));
    assert_eq!(fin_ack_policy(FinAckPolicy::AfterOwnFin).await, (0, 1));
    assert_eq!(fin_ack_policy(FinAckPolicy::Never).await, (0, 0));
}

/// The policy applies when FIN is handled, or at the latest when the own FIN is sent.
#[tokio::test(start_paused = true)]
async fn l13_the_fin_ack_policy_can_change_while_the_connection_lives() {
    let mut config = config();
    config.fin_ack = FinAckPolicy::AfterOwnFin;
    let mut s = scripted(config, MemoryConfig::default());
    let (mut waiting, first) = s.open().await;
    s.peer.flag(first, Flag::Fin);
    s.peer.run_for(Duration::from_secs(1)).await;
    assert_eq!(s.sent.count(Flag::FinAck), 0);

    s.us.set_fin_ack(FinAckPolicy::Always);
    let (mut substream, second) = s.open().await;
    s.peer.flag(second, Flag::Fin);
    s.peer.run_for(Duration::from_secs(1)).await;
    assert_eq!(s.sent.count(Flag::FinAck), 1);

    s.us.set_fin_ack(FinAckPolicy::Never);
    let closing = tokio::spawn(async move { tokio::join!(waiting.finish(), substream.finish()) });
    s.peer.run_for(Duration::from_secs(1)).await;
    assert_eq!(s.sent.count(Flag::Fin), 2);
    assert_eq!(s.sent.count(Flag::FinAck), 1);
    for channel in [first, second] {
        s.peer.flag(channel, Flag::FinAck);
    }
    let (waited, finished) = closing.await.unwrap();
    assert_eq!(waited.unwrap(), Finished::Acked);
    assert_eq!(finished.unwrap(), Finished::Acked);
    for channel in [first, second] {
        s.peer.expect_closed(channel).await;
    }
    s.finish().await;
}

/// Row L-10: dropping the future of `finish` does not revoke the close.
#[tokio::test(start_paused = true)]
async fn l10_a_cancelled_finish_still_closes() {
    let mut s = scripted(config(), MemoryConfig::default());
    let (mut substream, channel) = s.open().await;
    {
        let mut finish = pin!(substream.finish());
        let mut cx = Context::from_waker(Waker::noop());
        assert!(matches!(finish.as_mut().poll(&mut cx), Poll::Pending));
    }
    s.peer.expect_flag(channel, Flag::Fin).await;
    s.peer.flag(channel, Flag::FinAck);
    settle().await;
    assert_eq!(substream.close_outcome(), Some(CloseOutcome::Acked));
    drop(substream);
    s.peer.flag(channel, Flag::Fin);
    s.finish().await;
}
