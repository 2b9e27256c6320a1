//! Limits that are changed while a connection runs.

#![allow(missing_docs)]

mod common;

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use anabranch::message::{Flag, Message};
use anabranch::substream::code;
use anabranch::{ConfigError, Connection, ConnectionError, Substream};
use anabranch_testkit::memory::{MemoryConfig, pair};
use common::{Pair, config, pattern, scripted, settle, within};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinHandle;
use tokio::time::{Instant, advance, sleep};

fn limited(max: usize) -> Pair {
    let mut limited = config();
    limited.max_inbound_substreams = max;
    Pair::with(config(), limited, MemoryConfig::default())
}

/// Opens a substream as soon as the peer lets it, and uses it, so that the peer's credit is known.
fn open(pair: &Pair) -> JoinHandle<Substream> {
    let a = pair.a.clone();
    tokio::spawn(async move {
        let mut substream = a.open("").await.expect("it lives");
        substream.write_all(b"!").await.expect("room");
        substream
    })
}

async fn opened(pair: &Pair) -> [Substream; 2] {
    let here = within("open", open(pair)).await.expect("no panic");
    let there = within("accept", pair.b.accept()).await.expect("it lives");
    [here, there.expect("it is open")]
}

fn reset(both: [Substream; 2]) {
    both.iter().for_each(|substream| substream.reset(1));
}

fn is_out_of_range(result: Result<(), ConfigError>, field: &str) -> bool {
    matches!(result, Err(ConfigError::OutOfRange { name, .. }) if name == field)
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_waits_opens_as_soon_as_the_limit_of_substreams_is_raised() {
    let pair = limited(2);
    let held = [opened(&pair).await, opened(&pair).await];
    let waiting = open(&pair);
    settle().await;
    assert!(!waiting.is_finished(), "there is no room");
    pair.b.set_max_inbound_substreams(3);
    let third = within("room", waiting).await.expect("no panic");
    third.reset(1);
    held.into_iter().for_each(reset);
    let there = within("accept", pair.b.accept()).await.expect("it lives");
    there.expect("it is open").reset(1);
    pair.finish().await;
}

#[tokio::test(start_paused = true)]
async fn a_lowered_limit_of_substreams_takes_nothing_back_that_was_announced() {
    const MAX: usize = 8;
    let pair = limited(MAX);
    let mut held = vec![opened(&pair).await];
    pair.b.set_max_inbound_substreams(1);
    for _ in 1..MAX {
        held.push(opened(&pair).await);
    }
    assert_eq!(pair.b.stats().refused, 0);
    let waiting = open(&pair);
    let last = held.pop().expect("eight");
    held.into_iter().for_each(reset);
    sleep(Duration::from_secs(1)).await;
    assert!(!waiting.is_finished(), "one is open, and no more may be");
    reset(last);
    let next = within("room", waiting).await.expect("no panic");
    let there = within("accept", pair.b.accept()).await.expect("it lives");
    reset([next, there.expect("it is open")]);
    assert_eq!(pair.b.stats().refused, 0);
    pair.finish().await;
}

#[tokio::test(start_paused = true)]
async fn a_peer_without_credit_is_held_to_a_lowered_limit_of_substreams_at_once() {
    let mut s = scripted(config(), MemoryConfig::default());
    let (mut held, channel) = s.accept().await;
    s.us.set_max_inbound_substreams(1);
    let refused = s.peer.open();
    let reset = Message::reset(code::RESOURCE_LIMIT);
    s.peer.expect(refused, reset).await;
    s.peer.expect_closed(refused).await;
    s.peer.data(channel, b"alive");
    s.peer.flag(channel, Flag::Fin);
    let mut all = Vec::new();
    let reading = held.read_to_end(&mut all);
    s.peer.drive_while(reading).await.expect("it goes on");
    assert_eq!(all, b"alive");
    drop(held);
    s.finish().await;
}

/// A substream whose writer never pauses and whose reader has read `READ` bytes.
async fn stalled(pair: &Pair) -> (JoinHandle<()>, Substream) {
    const READ: usize = 64 * 1024;
    let (mut here, mut there) = pair.substream().await;
    let writing =
        tokio::spawn(async move { while here.write_all(&pattern(16 * 1024)).await.is_ok() {} });
    let mut read = vec![0; READ];
    within("data", there.read_exact(&mut read))
        .await
        .expect("it comes");
    sleep(Duration::from_secs(1)).await;
    (writing, there)
}

async fn end(stalled: Vec<(JoinHandle<()>, Substream)>) {
    for (writing, there) in stalled {
        there.reset(1);
        within("the writer ends", writing).await.expect("no panic");
    }
}

#[tokio::test(start_paused = true)]
async fn a_receive_window_holds_for_substreams_that_are_opened_from_then_on() {
    let pair = Pair::new();
    let before = stalled(&pair).await;
    let wide = pair.b.stats().unread;
    assert!(wide > 512 * 1024, "{wide}");
    pair.b.set_receive_window(32 * 1024).expect("in range");
    let after = stalled(&pair).await;
    let narrow = pair.b.stats().unread - wide;
    assert!((16 * 1024..40 * 1024).contains(&narrow), "{narrow}");

    assert!(is_out_of_range(
        pair.b.set_receive_window(1023),
        "receive_window"
    ));
    let too_wide = pair.b.set_receive_window(4 * 1024 * 1024);
    assert!(is_out_of_range(too_wide, "substream_ceiling"));
    end(vec![before, after]).await;
    pair.finish().await;
}

#[tokio::test(start_paused = true)]
async fn a_receive_window_holds_for_new_substreams_of_a_peer_without_credit_too() {
    const WINDOW: u32 = 16 * 1024;
    let mut memory = MemoryConfig::default();
    memory.holds_back_unread = true;
    let mut s = scripted(config(), memory);
    let mut held = Vec::new();
    for window in [None, Some(WINDOW)] {
        if let Some(window) = window {
            s.us.set_receive_window(window).expect("in range");
        }
        let before = s.us.stats().unread;
        let (substream, channel) = s.accept().await;
        for _ in 0..16 {
            s.peer.data(channel, &pattern(8 * 1024));
        }
        s.peer.run_for(Duration::from_secs(1)).await;
        let unread = s.us.stats().unread - before;
        let most = u64::from(WINDOW) + 9 * 1024;
        assert_eq!(unread <= most, window.is_some(), "{unread}");
        held.push(substream);
    }
    for substream in held {
        substream.reset(1);
    }
    s.finish().await;
}

#[tokio::test(start_paused = true)]
async fn a_lowered_ceiling_bounds_what_is_granted_from_then_on() {
    const SUBSTREAMS: usize = 16;
    const CEILING: usize = 4 * 1024 * 1024;
    for ceiling in [None, Some(CEILING)] {
        let pair = Pair::new();
        if let Some(ceiling) = ceiling {
            pair.b.set_connection_ceiling(ceiling).expect("in range");
        }
        let mut all = Vec::new();
        for _ in 0..SUBSTREAMS {
            all.push(stalled(&pair).await);
        }
        let unread = pair.b.stats().unread;
        let most = CEILING + SUBSTREAMS * 36 * 1024;
        assert_eq!(unread <= most as u64, ceiling.is_some(), "{unread}");
        end(all).await;
        pair.finish().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_lowered_ceiling_resets_nothing_that_was_within_the_old_one() {
    let mut config = config();
    config.receive_window = 20_000;
    config.substream_ceiling = 100_000;
    config.connection_ceiling = 1_000_000;
    let mut s = scripted(config, MemoryConfig::default());
    let (mut substream, channel) = s.accept().await;
    s.peer.data(channel, &pattern(16_000));
    for _ in 0..4 {
        s.peer.data(channel, &pattern(16_000));
    }
    s.peer.run_for(Duration::from_millis(1)).await;
    let too_low = s.us.set_connection_ceiling(99_999);
    assert!(is_out_of_range(too_low, "connection_ceiling"));
    s.us.set_connection_ceiling(100_000).expect("in range");
    s.peer.data(channel, b"!");
    s.peer.flag(channel, Flag::Fin);
    let mut all = Vec::new();
    let reading = substream.read_to_end(&mut all);
    s.peer.drive_while(reading).await.expect("it was accepted");
    assert_eq!(all.len(), 5 * 16_000 + 1);
    drop(substream);
    s.finish().await;
}

#[tokio::test(start_paused = true)]
async fn the_time_for_idleness_begins_anew_when_it_is_changed() {
    const TIMEOUT: Duration = Duration::from_secs(60);
    let mut idle = config();
    idle.idle_timeout = Some(TIMEOUT);
    let pair = Pair::with(idle, config(), MemoryConfig::default());
    sleep(TIMEOUT / 2).await;
    pair.a.set_idle_timeout(None).expect("no limit");
    sleep(TIMEOUT * 10).await;
    assert_eq!(pair.a.close_reason(), None);
    let zero = pair.a.set_idle_timeout(Some(Duration::ZERO));
    assert!(matches!(zero, Err(ConfigError::ZeroTimeout { .. })));
    pair.a.set_idle_timeout(Some(TIMEOUT)).expect("in range");
    let begun = Instant::now();
    sleep(TIMEOUT / 2).await;
    pair.a.set_idle_timeout(Some(TIMEOUT)).expect("in range");
    let cause = within("the end", pair.a.closed()).await;
    assert_eq!(cause, ConnectionError::Idle);
    assert_eq!(begun.elapsed().as_secs(), 90);
    within("its end", pair.b.closed()).await;
    for driver in pair.drivers {
        driver.await.expect("no panic");
    }
}

#[tokio::test(start_paused = true)]
async fn idleness_that_no_longer_ends_the_connection_does_not_when_its_time_is_over() {
    const TIMEOUT: Duration = Duration::from_secs(60);
    let mut idle = config();
    idle.idle_timeout = Some(TIMEOUT);
    let (carrier, _peer, _faults) = pair(MemoryConfig::default());
    let (connection, driver) = Connection::over(carrier, Arc::new(idle));
    let mut driver = pin!(driver);
    let mut poll = async || poll_fn(|cx| Poll::Ready(driver.as_mut().poll(cx))).await;
    assert!(poll().await.is_pending());
    // Nobody polls the driver between these two.
    advance(TIMEOUT * 2).await;
    connection.set_idle_timeout(None).expect("no limit");
    assert!(poll().await.is_pending());
    assert_eq!(connection.close_reason(), None);
}
