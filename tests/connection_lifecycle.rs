//! How connections begin and end, and what they leave behind.

#![allow(missing_docs)]

mod common;

use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

use anabranch::carrier::memory::{MemoryConfig, pair};
use anabranch::message::{Flag, Message};
use anabranch::substream::code;
use anabranch::{CloseOutcome, Config, Connection, ConnectionError, Negotiation, OpenError};
use common::{Pair, config, pattern, scripted, settle, within};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, sleep};

fn negotiated() -> Config {
    let mut config = Config::default();
    config.protocols = vec!["/echo/1.0.0".to_owned()];
    config
}

/// A future of `open` can be spawned from a function that borrows the connection.
#[tokio::test(start_paused = true)]
async fn open_is_send_through_a_reference() {
    async fn open(connection: &Connection) -> bool {
        connection.open("/nothing").await.is_ok()
    }
    let pair = Pair::with(negotiated(), negotiated(), MemoryConfig::default());
    let connection = pair.a.clone();
    let opened = tokio::spawn(async move { open(&connection).await })
        .await
        .unwrap();
    assert!(!opened);
    pair.finish().await;
}

/// A request that arrived whole is not lost because its sender closed before anybody accepted it.
#[tokio::test(start_paused = true)]
async fn what_arrived_before_the_end_can_still_be_accepted() {
    let pair = Pair::new();
    let mut request = pair.a.open("").await.unwrap();
    request.write_all(b"request").await.unwrap();
    assert_eq!(
        request.finish().await.unwrap(),
        CloseOutcome::Acked,
        "the peer has it all"
    );
    drop(request);
    pair.a.close().await;
    pair.b.closed().await;
    let mut late = pair
        .b
        .accept()
        .await
        .unwrap()
        .expect("the request is there");
    let mut all = Vec::new();
    late.read_to_end(&mut all).await.unwrap();
    assert_eq!(all, b"request");
    drop(late);
    assert!(pair.b.accept().await.unwrap().is_none());
    pair.finish().await;
}

/// A close towards a peer that does nothing is bounded, with any timeout that can be set.
#[tokio::test(start_paused = true)]
async fn a_close_is_bounded_though_the_peer_is_silent() {
    let pair = Pair::new();
    let (mut here, there) = pair.substream().await;
    here.write_all(b"x").await.unwrap();
    pair.faults.silence();
    let before = Instant::now();
    within("close", pair.a.close()).await;
    assert!(
        before.elapsed() <= Duration::from_secs(21),
        "{:?}",
        before.elapsed()
    );
    let error = here.read(&mut [0]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::UnexpectedEof);
    assert_eq!(here.close_outcome(), Some(CloseOutcome::Lost));
    within("close", pair.b.close()).await;
    drop((here, there));
    assert!(pair.a.is_idle() && pair.b.is_idle());

    let mut endless = config();
    endless.teardown_timeout = Duration::MAX;
    endless.fin_ack_timeout = Duration::MAX;
    endless.open_timeout = Duration::MAX;
    let pair = Pair::with(endless.clone(), endless, MemoryConfig::default());
    let (here, there) = pair.substream().await;
    drop((here, there));
    pair.finish().await;
}

/// Substreams that nobody can accept any more do not keep the connection alive.
#[tokio::test(start_paused = true)]
async fn unaccepted_substreams_end_with_the_last_handle() {
    let pair = Pair::new();
    let mut waiting = pair.b.open("").await.unwrap();
    waiting.write_all(b"anybody?").await.unwrap();
    settle().await;
    let [driver, _] = pair.drivers;
    drop(pair.a);
    // The read half ends by itself, the write half is stopped.
    assert_eq!(within("the end", waiting.read(&mut [0])).await.unwrap(), 0);
    assert_eq!(
        within("the stop", waiting.stopped()).await,
        CloseOutcome::Stopped(None)
    );
    drop(waiting);
    within("the driver ends", driver).await.unwrap();
    within("the peer", pair.b.closed()).await;
}

/// A driver that is dropped leaves nobody waiting, and no handle keeps the rest alive.
#[tokio::test(start_paused = true)]
async fn a_dropped_driver_ends_everything() {
    let pair = Pair::new();
    let (mut here, _there) = pair.substream().await;
    let unaccepted = pair.b.open("").await.unwrap();
    settle().await;
    let a = pair.a.clone();
    let opening = tokio::spawn({
        let a = a.clone();
        async move { a.closed().await }
    });
    let [driver, _] = &pair.drivers;
    driver.abort();
    assert_eq!(
        within("closed", opening).await.unwrap(),
        ConnectionError::ClosedLocally
    );
    let error = within("the reader", here.read(&mut [0])).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::UnexpectedEof);
    assert_eq!(
        here.write(b"x").await.unwrap_err().kind(),
        ErrorKind::ConnectionAborted
    );
    let before = Instant::now();
    assert!(matches!(a.open("").await, Err(OpenError::Connection(_))));
    assert_eq!(
        before.elapsed(),
        Duration::ZERO,
        "not after the open timeout"
    );
    assert!(a.accept().await.unwrap().is_some(), "what had come before");
    assert!(a.accept().await.unwrap().is_none());
    drop((here, unaccepted));
    assert!(a.is_idle());
    assert_eq!(a.stats().substreams, 0);
}
