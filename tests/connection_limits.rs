//! Limits on what a peer, or an idle application, can do to a connection.

#![allow(missing_docs)]

mod common;

use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use anabranch::carrier::{Carrier, CarrierEvent, ChannelId, Class, OpenChannelError, Written};
use anabranch::message::{Flag, Message};
use anabranch::substream::code;
use anabranch::{
    CloseOutcome, Config, ConfigError, Connection, ConnectionError, FinishError, Finished,
    Negotiation, SubstreamError,
};
use anabranch_testkit::memory::{MemoryCarrier, MemoryConfig, pair};
use atomic_waker::AtomicWaker;
use bytes::Bytes;
use common::{Pair, config, pattern, scripted, settle, within};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, sleep};

/// A peer that opens `count` substreams and resets each.
async fn open_and_reset(s: &mut common::Scripted, count: u32) {
    for _ in 0..count {
        let channel = s.peer.open();
        s.peer.send(channel, Message::reset(7));
        s.peer.run_for(Duration::from_millis(1)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_opens_and_resets_in_a_loop_loses_its_connection() {
    let mut config = config();
    config.max_unused_substreams = 50;
    let mut s = scripted(config, MemoryConfig::default());
    open_and_reset(&mut s, 50).await;
    assert_eq!(s.us.close_reason(), None);
    open_and_reset(&mut s, 1).await;
    let cause = within("the end", s.us.closed()).await;
    assert_eq!(cause, ConnectionError::TooManyUnusedSubstreams);
    assert!(!cause.is_orderly());
    within("the driver ends", s.driver).await.expect("no panic");
    while let Ok(Some(unused)) = s.us.accept().await {
        drop(unused);
    }
    settle().await;
    assert!(s.us.is_idle());
    assert_eq!(s.us.stats().substreams, 0);
}

#[tokio::test(start_paused = true)]
async fn resets_over_a_longer_time_are_forgiven() {
    let mut config = config();
    config.max_unused_substreams = 50;
    let mut s = scripted(config, MemoryConfig::default());
    for _ in 0..4 {
        open_and_reset(&mut s, 40).await;
        s.peer.run_for(Config::UNUSED_WINDOW).await;
    }
    assert_eq!(s.us.close_reason(), None);
    while s.us.stats().accepted > 0 {
        let Ok(accepted) = tokio::time::timeout(Duration::from_millis(1), s.us.accept()).await
        else {
            break;
        };
        drop(accepted);
    }
    s.finish().await;
}

#[tokio::test(start_paused = true)]
async fn substreams_that_were_answered_may_be_reset_as_often_as_the_peer_likes() {
    let mut config = config();
    config.max_unused_substreams = 5;
    let mut s = scripted(config, MemoryConfig::default());
    for _ in 0..50 {
        let channel = s.peer.open();
        s.peer.data(channel, b"hello");
        let us = s.us.clone();
        let accepted = s.peer.drive_while(us.accept()).await;
        let mut substream = accepted.expect("alive").expect("a substream");
        let mut got = [0; 5];
        s.peer
            .drive_while(substream.read_exact(&mut got))
            .await
            .expect("data");
        substream.write_all(b"answer").await.expect("room");
        s.peer.send(channel, Message::reset(7));
        s.peer.run_for(Duration::from_millis(1)).await;
    }
    assert_eq!(s.us.close_reason(), None);
    s.finish().await;
}

#[tokio::test(start_paused = true)]
async fn a_request_that_is_reset_before_its_answer_counts_as_unused() {
    let mut config = config();
    config.max_unused_substreams = 5;
    let mut s = scripted(config, MemoryConfig::default());
    for _ in 0..6 {
        let channel = s.peer.open();
        s.peer.data(channel, b"hello");
        let us = s.us.clone();
        let accepted = s.peer.drive_while(us.accept()).await;
        let mut substream = accepted.expect("alive").expect("a substream");
        s.peer
            .drive_while(substream.read_exact(&mut [0; 5]))
            .await
            .expect("data");
        assert_eq!(us.close_reason(), None);
        s.peer.send(channel, Message::reset(7));
        s.peer.run_for(Duration::from_millis(1)).await;
    }
    let cause = within("the end", s.us.closed()).await;
    assert_eq!(cause, ConnectionError::TooManyUnusedSubstreams);
    within("the driver ends", s.driver).await.expect("no panic");
}

/// A burst from a peer without limits is legitimate, an endless number of channels is not.
#[tokio::test(start_paused = true)]
async fn refused_substreams_count_one_for_sixteen() {
    let mut config = config();
    config.max_inbound_substreams = 2;
    config.max_unused_substreams = 10;
    let mut s = scripted(config, MemoryConfig::default());
    for refused in 0..2 + 16 * 11 {
        let alive = refused < 2 + 16 * 10;
        assert!(!alive || s.us.close_reason().is_none(), "{refused}");
        s.peer.open();
        s.peer.run_for(Duration::from_millis(1)).await;
    }
    let cause = within("the end", s.us.closed()).await;
    assert_eq!(cause, ConnectionError::TooManyUnusedSubstreams);
    within("the driver ends", s.driver).await.expect("no panic");
}

#[tokio::test(start_paused = true)]
async fn a_substream_that_nobody_accepts_is_reset_and_no_longer_counts() {
    let mut config = config();
    config.accept_timeout = Duration::from_secs(3);
    config.max_inbound_substreams = 1;
    let mut s = scripted(config, MemoryConfig::default());
    let channel = s.peer.open();
    s.peer
        .expect_quiet(channel, Duration::from_millis(2990))
        .await;
    s.peer
        .expect(channel, Message::reset(code::RESOURCE_LIMIT))
        .await;
    s.peer.expect_closed(channel).await;
    // There is nothing left to accept, and room for another substream.
    let us = s.us.clone();
    let second = s.peer.open();
    s.peer.data(second, b"hello");
    let accepted = s.peer.drive_while(us.accept()).await;
    let mut accepted = accepted.expect("alive").expect("the second one");
    let mut got = [0; 5];
    accepted.read_exact(&mut got).await.expect("data");
    // Once accepted it may take its time.
    s.peer.expect_quiet(second, Duration::from_secs(10)).await;
    accepted.reset(1);
    s.peer.expect(second, Message::reset(1)).await;
    drop((us, accepted));
    s.peer.expect_closed(second).await;
    s.finish().await;
}

/// Substreams that can be accepted at once; they are dropped.
async fn accept_all(us: &Connection) -> usize {
    let mut count = 0;
    while let Ok(accepted) = tokio::time::timeout(Duration::from_millis(1), us.accept()).await {
        drop(accepted.expect("alive").expect("a substream"));
        count += 1;
    }
    count
}

#[tokio::test(start_paused = true)]
async fn substreams_that_end_before_anybody_accepts_them_keep_their_place_until_the_accept_timeout()
{
    let mut config = config();
    config.max_inbound_substreams = 4;
    let mut s = scripted(config, MemoryConfig::default());
    for _ in 0..20 {
        let channel = s.peer.open();
        s.peer.data(channel, b"hello");
        s.peer.flag(channel, Flag::Fin);
        s.peer.close(channel);
        s.peer.run_for(Duration::from_millis(100)).await;
    }
    assert_eq!(s.us.stats().substreams, 0);
    assert_eq!(s.us.stats().refused, 16);
    assert_eq!(accept_all(&s.us).await, 4);
    // They no longer count.
    for _ in 0..3 {
        let channel = s.peer.open();
        s.peer.data(channel, b"hello");
        s.peer.send(channel, Message::reset(7));
        s.peer.run_for(Duration::from_millis(100)).await;
    }
    assert_eq!(s.us.stats().refused, 16);
    s.peer.run_for(Duration::from_secs(31)).await;
    assert!(s.us.is_idle(), "the accept timeout is over");
    assert_eq!(accept_all(&s.us).await, 0);
    s.finish().await;
}

/// They can not be accepted: everything that a peer opens while the last substream is used is
/// useless work.
#[tokio::test(start_paused = true)]
async fn substreams_that_nobody_can_accept_count_as_unused() {
    let mut config = config();
    config.max_unused_substreams = 10;
    let mut s = scripted(config, MemoryConfig::default());
    let (substream, _channel) = s.open().await;
    let us = s.us;
    drop(us);
    for _ in 0..16 * 11 {
        s.peer.open();
        s.peer.run_for(Duration::from_millis(1)).await;
    }
    let cause = within("the driver ends", s.driver).await.expect("no panic");
    assert_eq!(cause, ConnectionError::TooManyUnusedSubstreams);
    drop(substream);
}

#[tokio::test(start_paused = true)]
async fn substreams_that_the_peer_spoils_count_as_unused() {
    let mut config = config();
    config.max_unused_substreams = 10;
    let mut s = scripted(config, MemoryConfig::default());
    for i in 0..11 {
        let channel = s.peer.open();
        match i % 2 {
            0 => s.peer.send_raw(channel, &[0xff; 8]),
            _ => s.peer.flag(channel, Flag::FinAck),
        }
        s.peer.run_for(Duration::from_millis(1)).await;
    }
    let cause = within("the end", s.us.closed()).await;
    assert_eq!(cause, ConnectionError::TooManyUnusedSubstreams);
    within("the driver ends", s.driver).await.expect("no panic");
    drop(s.us);
}

/// A close resets substreams that the peer has opened and the application has not accepted; that
/// does not abort the close.
#[tokio::test(start_paused = true)]
async fn substreams_that_end_unused_in_a_close_do_not_count() {
    let mut config = config();
    config.max_unused_substreams = 2;
    config.negotiation = Negotiation::MultistreamSelect;
    config.protocols = vec!["/p".to_owned()];
    let mut s = scripted(config, MemoryConfig::default());
    let channel = s.peer.open();
    s.peer.data(channel, b"\x13/multistream/1.0.0\n\x03/p\n");
    let accepted = within("accept", s.us.accept()).await.expect("alive");
    let mut substream = accepted.expect("a substream");
    let unused: Vec<_> = (0..5).map(|_| s.peer.open()).collect();
    s.peer.run_for(Duration::from_millis(1)).await;
    substream.write_all(b"hello").await.expect("a write");
    let finishing = tokio::spawn(async move { substream.finish().await });
    settle().await;
    let closing = s.us.clone();
    let close = tokio::spawn(async move { closing.close().await });
    for unused in unused {
        while s.peer.next(unused).await.flag != Some(Flag::ResetStream) {}
    }
    let ours = b"\x13/multistream/1.0.0\n\x03/p\nhello";
    s.peer.expect_data(channel, ours).await;
    assert_eq!(s.peer.next(channel).await.flag, Some(Flag::Fin));
    // Longer than the wait for a peer that is being disconnected.
    s.peer.run_for(Duration::from_secs(3)).await;
    assert!(!close.is_finished(), "FIN is not confirmed yet");
    s.peer.flag(channel, Flag::FinAck);
    s.peer.flag(channel, Flag::Fin);
    s.peer
        .drive_while(within("the close", close))
        .await
        .expect("no panic");
    let finished = within("FIN_ACK", finishing).await.expect("no panic");
    assert_eq!(finished, Ok(Finished::Acked));
    assert_eq!(s.us.close_reason(), Some(ConnectionError::ClosedLocally));
    s.finish().await;
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_never_had_a_substream_is_idle_too() {
    let mut idle = config();
    idle.idle_timeout = Some(Duration::from_secs(60));
    let pair = Pair::with(idle, config(), MemoryConfig::default());
    let begin = Instant::now();
    let cause = within("the end", pair.a.closed()).await;
    assert_eq!(cause, ConnectionError::Idle);
    assert_eq!(begin.elapsed().as_secs(), 60);
    within("its end", pair.b.closed()).await;
    for driver in pair.drivers {
        driver.await.expect("no panic");
    }
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_a_substream_reaches_at_the_last_moment_is_not_idle() {
    let mut idle = config();
    idle.idle_timeout = Some(Duration::from_secs(60));
    let mut s = scripted(idle, MemoryConfig::default());
    s.peer.run_for(Duration::from_secs(1)).await;
    let channel = s.peer.open();
    s.peer.data(channel, b"hello");
    // Both have arrived at the next poll of the driver.
    tokio::time::advance(Duration::from_secs(60)).await;
    let us = s.us.clone();
    let accepted = s.peer.drive_while(us.accept()).await;
    let mut substream = accepted.expect("alive").expect("a substream");
    let mut got = [0; 5];
    substream.read_exact(&mut got).await.expect("data");
    drop((substream, us));
    s.peer.flag(channel, Flag::Fin);
    s.peer.expect_flag(channel, Flag::FinAck).await;
    s.finish().await;
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_is_closed_and_a_used_one_is_not() {
    let mut idle = config();
    idle.idle_timeout = Some(Duration::from_secs(60));
    let pair = Pair::with(idle, config(), MemoryConfig::default());
    let begin = Instant::now();
    let (here, there) = pair.substream().await;
    sleep(Duration::from_secs(600)).await;
    assert_eq!(pair.a.close_reason(), None, "a substream is use");
    drop((here, there));
    pair.idle().await;
    let last = Instant::now();
    let (here, there) = pair.substream().await;
    drop((here, there));
    let cause = within("the end", pair.a.closed()).await;
    assert_eq!(cause, ConnectionError::Idle);
    assert!(cause.is_orderly());
    assert!(
        last.elapsed() >= Duration::from_secs(60),
        "{:?}",
        begin.elapsed()
    );
    assert!(last.elapsed() < Duration::from_secs(61));
    assert!(pair.a.accept().await.expect("orderly").is_none());
    assert_eq!(
        within("its end", pair.b.closed()).await,
        ConnectionError::ClosedByPeer
    );
    for driver in pair.drivers {
        driver.await.expect("no panic");
    }
}

#[tokio::test(start_paused = true)]
async fn close_with_delivers_written_data_and_reports_the_cause() {
    let pair = Pair::new();
    let (mut here, mut there) = pair.substream().await;
    let content = pattern(50_000);
    here.write_all(&content).await.expect("a write");
    let closing = pair.a.clone();
    let close = tokio::spawn(async move { closing.close_with(42, "maintenance").await });
    let mut got = Vec::new();
    let error = within("the content", there.read_to_end(&mut got))
        .await
        .expect_err("its writer has not ended it");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    assert!(got == content, "{} bytes", got.len());
    assert_eq!(
        there.stopped().await,
        CloseOutcome::Stopped(Some(42)),
        "the peer gets the code with STOP_SENDING"
    );
    within("the close", close).await.expect("no panic");
    let cause = ConnectionError::ClosedWith {
        code: 42,
        reason: "maintenance".to_owned(),
    };
    assert_eq!(pair.a.closed().await, cause);
    assert_eq!(pair.a.close_reason(), Some(cause));
    drop((here, there));
    pair.finish().await;
}

/// The peer answers STOP_SENDING with FIN after a part of its data, which is not the end of the
/// data.
#[tokio::test(start_paused = true)]
async fn a_stream_that_our_own_close_cuts_off_does_not_look_complete() {
    let pair = Pair::new();
    let (mut here, mut there) = pair.substream().await;
    let (mut complete, mut finished) = pair.substream().await;
    finished.write_all(b"all of it").await.expect("a write");
    // FIN is confirmed while the bytes before it are unread, and the other direction is open.
    let outcome = within("FIN_ACK", finished.finish()).await.expect("an end");
    assert_eq!(outcome, Finished::Acked);
    let writing = tokio::spawn(async move { there.write_all(&pattern(3_000_000)).await });
    let mut part = vec![0; 100_000];
    here.read_exact(&mut part).await.expect("a part");
    assert_eq!(part, pattern(100_000));
    pair.a.close_with(5, "enough").await;
    let error = here.read(&mut part).await.expect_err("more was to come");
    assert_eq!(error.kind(), ErrorKind::UnexpectedEof);
    let source = error
        .into_inner()
        .and_then(|source| source.downcast::<SubstreamError>().ok())
        .expect("ours");
    assert!(
        matches!(
            &*source,
            SubstreamError::ConnectionLost(ConnectionError::ClosedWith { code: 5, .. })
        ),
        "{source:?}"
    );
    within("the writer", writing)
        .await
        .expect("no panic")
        .expect_err("it is stopped");
    // A substream that had ended before stays complete.
    let mut all = Vec::new();
    complete.read_to_end(&mut all).await.expect("the end");
    assert_eq!(all, b"all of it");
    drop((here, complete, finished));
    pair.finish().await;
}

#[tokio::test(start_paused = true)]
async fn substreams_that_did_not_close_in_time_learn_the_reason_too() {
    let mut s = scripted(config(), MemoryConfig::default());
    let (mut substream, _channel) = s.open().await;
    let us = s.us.clone();
    let close = us.close_with(9, "bye");
    s.peer.drive_while(close).await;
    let error = substream.read_u8().await.expect_err("no FIN came");
    assert_eq!(error.kind(), ErrorKind::UnexpectedEof);
    let source = error
        .into_inner()
        .and_then(|source| source.downcast::<SubstreamError>().ok())
        .expect("ours");
    let SubstreamError::ConnectionLost(ConnectionError::ClosedWith { code: 9, reason }) = &*source
    else {
        panic!("{source:?}");
    };
    assert_eq!(reason, "bye");
    within("the driver ends", s.driver).await.expect("no panic");
}

#[tokio::test(start_paused = true)]
async fn a_close_is_over_in_time_although_the_peer_acknowledges_nothing() {
    let mut config = config();
    config.teardown_timeout = Duration::from_secs(2);
    let mut s = scripted(config, MemoryConfig::default());
    let (mut substream, channel) = s.open().await;
    substream.write_all(b"hello").await.expect("a write");
    let finishing = tokio::spawn(async move { substream.finish().await });
    settle().await;
    let begin = Instant::now();
    let us = s.us.clone();
    s.peer.drive_while(us.close()).await;
    assert!(
        begin.elapsed() <= Duration::from_millis(2002),
        "{:?}",
        begin.elapsed()
    );
    let sent = s.peer.pending(channel);
    assert!(sent.iter().any(|m| m.flag == Some(Flag::Fin)), "{sent:?}");
    within("the driver ends", s.driver).await.expect("no panic");
    let finished = within("the end", finishing).await.expect("no panic");
    let cause = ConnectionError::ClosedLocally;
    assert_eq!(finished, Err(FinishError::ConnectionLost(cause)));
    assert!(s.us.is_idle());
}

/// A carrier that expires when the test requests it.
struct Worn {
    inner: MemoryCarrier,
    worn: Arc<AtomicBool>,
    waker: Arc<AtomicWaker>,
    /// The peer does not accept a goodbye.
    never_closes: bool,
}

impl Carrier for Worn {
    fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Result<CarrierEvent, ConnectionError>> {
        self.waker.register(cx.waker());
        if self.worn.swap(false, Ordering::SeqCst) {
            let cause = ConnectionError::KeysUsedUp;
            return Poll::Ready(Ok(CarrierEvent::Expiring { cause }));
        }
        self.inner.poll_event(cx)
    }

    fn open(&mut self, label: &str) -> Result<ChannelId, OpenChannelError> {
        self.inner.open(label)
    }

    fn write(&mut self, channel: ChannelId, frame: &[u8], class: Class) -> Written {
        self.inner.write(channel, frame, class)
    }

    fn read(&mut self, channel: ChannelId) -> Option<Bytes> {
        self.inner.read(channel)
    }

    fn notify_delivered(&mut self, channel: ChannelId) {
        self.inner.notify_delivered(channel);
    }

    fn close_channel(&mut self, channel: ChannelId) {
        self.inner.close_channel(channel);
    }

    fn max_message(&self) -> usize {
        self.inner.max_message()
    }

    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.never_closes {
            return Poll::Pending;
        }
        self.inner.poll_close(cx)
    }
}

#[tokio::test(start_paused = true)]
async fn a_carrier_that_is_used_up_is_closed_in_order_and_says_why() {
    let (a, b, _faults) = pair(MemoryConfig::default());
    let (worn, waker) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicWaker::new()),
    );
    let a = Worn {
        inner: a,
        worn: Arc::clone(&worn),
        waker: Arc::clone(&waker),
        never_closes: false,
    };
    let (a, driver_a) = Connection::over(a, Arc::new(config()));
    let (b, driver_b) = Connection::over(b, Arc::new(config()));
    let drivers = [tokio::spawn(driver_a), tokio::spawn(driver_b)];
    let mut here = within("open", a.open("")).await.expect("a channel");
    let content = pattern(50_000);
    here.write_all(&content).await.expect("a write");
    worn.store(true, Ordering::SeqCst);
    waker.wake();
    let there = within("accept", b.accept()).await.expect("alive");
    let mut there = there.expect("a substream");
    let mut got = Vec::new();
    let error = within("the content", there.read_to_end(&mut got))
        .await
        .expect_err("its writer has not ended it");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    assert!(got == content, "{} bytes", got.len());
    drop(there);
    let cause = within("the end", a.closed()).await;
    assert_eq!(cause, ConnectionError::KeysUsedUp);
    assert!(!cause.is_orderly());
    within("its end", b.closed()).await;
    for driver in drivers {
        driver.await.expect("no panic");
    }
    drop(here);
    assert!(a.is_idle() && b.is_idle());
}

/// The wait for a peer that does not read the reason of the close is one second.
#[tokio::test(start_paused = true)]
async fn a_peer_that_is_left_has_a_second_to_learn_why() {
    let (a, mut peer, _faults) = pair(MemoryConfig::default());
    let a = Worn {
        inner: a,
        worn: Arc::default(),
        waker: Arc::default(),
        never_closes: true,
    };
    let mut config = config();
    config.max_unused_substreams = 0;
    let (a, driver) = Connection::over(a, Arc::new(config));
    let driver = tokio::spawn(driver);
    let channel = peer.open("").expect("a channel");
    peer.write(channel, &Message::reset(7).encode(), Class::Control);
    let begin = Instant::now();
    let cause = within("the end", a.closed()).await;
    assert_eq!(cause, ConnectionError::TooManyUnusedSubstreams);
    assert_eq!(begin.elapsed().as_millis() / 10, 100, "a second");
    driver.await.expect("no panic");
    while let Ok(Some(unused)) = a.accept().await {
        drop(unused);
    }
    assert!(a.is_idle());
}

/// A carrier whose peer never becomes idle.
struct Restless {
    inner: MemoryCarrier,
}

impl Carrier for Restless {
    fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Result<CarrierEvent, ConnectionError>> {
        match self.inner.poll_event(cx) {
            Poll::Pending => Poll::Ready(Ok(CarrierEvent::RoundTrip {
                time: Duration::from_millis(1),
            })),
            ready => ready,
        }
    }

    fn open(&mut self, label: &str) -> Result<ChannelId, OpenChannelError> {
        self.inner.open(label)
    }

    fn write(&mut self, channel: ChannelId, frame: &[u8], class: Class) -> Written {
        self.inner.write(channel, frame, class)
    }

    fn read(&mut self, channel: ChannelId) -> Option<Bytes> {
        self.inner.read(channel)
    }

    fn notify_delivered(&mut self, channel: ChannelId) {
        self.inner.notify_delivered(channel);
    }

    fn close_channel(&mut self, channel: ChannelId) {
        self.inner.close_channel(channel);
    }

    fn max_message(&self) -> usize {
        self.inner.max_message()
    }

    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.inner.poll_close(cx)
    }
}

/// Fewer polls than in [`settle`]: each of them is thousands of events.
async fn let_the_driver_run() {
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_close_is_over_in_time_although_the_peer_keeps_the_driver_busy() {
    for open in [false, true] {
        let (a, _peer, _faults) = pair(MemoryConfig::default());
        let (a, driver) = Connection::over(Restless { inner: a }, Arc::new(config()));
        let driver = tokio::spawn(driver);
        if open {
            let mut substream = within("open", a.open("")).await.expect("a channel");
            // FIN goes out and is never acknowledged.
            tokio::spawn(async move { substream.finish().await });
            let_the_driver_run().await;
        }
        let closing = a.clone();
        let close = tokio::spawn(async move { closing.close().await });
        let_the_driver_run().await;
        assert_eq!(close.is_finished(), !open, "the peer does not answer");
        // A paused clock does not advance while a task has work.
        tokio::time::advance(Config::default().teardown_timeout).await;
        let_the_driver_run().await;
        assert!(close.is_finished());
        assert_eq!(
            driver.await.expect("no panic"),
            ConnectionError::ClosedLocally
        );
        let_the_driver_run().await;
        assert!(a.is_idle());
    }
}

#[test]
fn timeouts_of_zero_are_refused() {
    for change in [
        (|c: &mut Config| c.accept_timeout = Duration::ZERO) as fn(&mut Config),
        |c| c.idle_timeout = Some(Duration::ZERO),
    ] {
        let mut config = Config::default();
        change(&mut config);
        let error = config.validate().expect_err("zero");
        assert!(matches!(error, ConfigError::ZeroTimeout { .. }), "{error}");
    }
}
