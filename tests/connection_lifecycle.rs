//! The beginning and the end of connections, and that they leave nothing behind.

#![allow(missing_docs)]

mod common;

use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

use anabranch::message::{Flag, Message};
use anabranch::substream::code;
use anabranch::{
    CloseOutcome, Config, Connection, ConnectionError, FinishError, Finished, Negotiation,
    OpenError,
};
use anabranch_testkit::memory::{MemoryConfig, pair};
use common::{Pair, config, pattern, scripted, settle, within};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, sleep, timeout};

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

/// Rows L-27, H-10: the opener gives up after 5 s, once, and tells the peer.
#[tokio::test(start_paused = true)]
async fn l27_an_open_that_is_not_answered_times_out() {
    let mut s = scripted(negotiated(), MemoryConfig::default());
    let us = s.us.clone();
    let before = Instant::now();
    let opening = tokio::spawn(async move { us.open("/echo/1.0.0").await });
    let channel = s.peer.opened().await;
    let opened = s.peer.drive_while(opening).await.unwrap();
    assert!(matches!(opened, Err(OpenError::TimedOut)), "{opened:?}");
    let took = before.elapsed();
    assert!(
        took >= Duration::from_secs(5) && took < Duration::from_millis(5002),
        "{took:?}"
    );
    let _offer = s.peer.next(channel).await;
    s.peer
        .expect(channel, Message::reset(code::NEGOTIATION_FAILED))
        .await;
    s.peer.expect_closed(channel).await;
    s.finish().await;
}

/// Rows L-27, H-10: a peer that opens and sends nothing is reset after 5 s, and the application
/// does not see it.
#[tokio::test(start_paused = true)]
async fn l27_an_inbound_substream_that_chooses_nothing_is_reset() {
    let mut s = scripted(negotiated(), MemoryConfig::default());
    let before = Instant::now();
    let channel = s.peer.open();
    loop {
        if s.peer.next(channel).await == Message::reset(code::NEGOTIATION_FAILED) {
            break;
        }
    }
    let took = before.elapsed();
    assert!(
        took >= Duration::from_secs(5) && took < Duration::from_millis(5002),
        "{took:?}"
    );
    s.peer.expect_closed(channel).await;
    let us = s.us.clone();
    let accepted = tokio::time::timeout(Duration::from_secs(1), us.accept()).await;
    assert!(accepted.is_err(), "nothing to accept");
    s.finish().await;
}

/// Its data follows the offer at once, and it ignores the answer.
#[tokio::test(start_paused = true)]
async fn an_inbound_substream_whose_opener_reads_no_answer_is_accepted() {
    for chunks in [1, 3] {
        let mut s = scripted(negotiated(), MemoryConfig::default());
        let channel = s.peer.open();
        let bytes = b"\x13/multistream/1.0.0\n\x0c/echo/1.0.0\nhello";
        for (index, chunk) in bytes.chunks(bytes.len().div_ceil(chunks)).enumerate() {
            s.peer.data(channel, chunk);
            if index == 0 {
                s.peer.flag(channel, Flag::StopSending);
            }
            settle().await;
        }
        s.peer.flag(channel, Flag::Fin);
        let us = s.us.clone();
        let accepted = s.peer.drive_while(within("accept", us.accept())).await;
        let mut substream = accepted.expect("alive").expect("a substream");
        assert_eq!(substream.protocol(), Some("/echo/1.0.0"));
        let mut got = Vec::new();
        within("the data", substream.read_to_end(&mut got))
            .await
            .expect("its end");
        assert_eq!(got, b"hello");
        let error = substream.write(b"x").await.expect_err("nobody reads it");
        assert_eq!(error.kind(), ErrorKind::BrokenPipe);
        drop((us, substream));
        s.finish().await;
    }
}

/// As handlers of go-libp2p without a request: they answer, end, and read no more, before this side
/// is polled again.
#[tokio::test(start_paused = true)]
async fn an_open_whose_responder_answers_all_and_reads_no_more_succeeds() {
    let mut s = scripted(negotiated(), MemoryConfig::default());
    let us = s.us.clone();
    let mut opening = Box::pin(us.open("/echo/1.0.0"));
    // Polled by hand, so that the whole answer has arrived at the next poll.
    assert!(futures_util::poll!(&mut opening).is_pending());
    let channel = s.peer.opened().await;
    s.peer
        .data(channel, b"\x13/multistream/1.0.0\n\x0c/echo/1.0.0\nhello");
    s.peer.flag(channel, Flag::StopSending);
    s.peer.flag(channel, Flag::Fin);
    s.peer.run_for(Duration::from_millis(100)).await;
    let mut substream = within("open", opening).await.expect("an answer");
    let mut got = Vec::new();
    within("the data", substream.read_to_end(&mut got))
        .await
        .expect("its end");
    assert_eq!(got, b"hello");
    let error = substream.write(b"x").await.expect_err("nobody reads it");
    assert_eq!(error.kind(), ErrorKind::BrokenPipe);
    drop((us, substream));
    s.finish().await;
}

/// Row H-9: a flag in the middle of a negotiation ends it, for that channel only.
#[tokio::test(start_paused = true)]
async fn h9_flags_while_negotiating_fail_once() {
    for flag in [Flag::Fin, Flag::ResetStream, Flag::FinAck] {
        let mut s = scripted(negotiated(), MemoryConfig::default());
        let us = s.us.clone();
        let opening = tokio::spawn(async move { us.open("/echo/1.0.0").await });
        let channel = s.peer.opened().await;
        s.peer.flag(channel, flag);
        let opened = within("open", s.peer.drive_while(opening)).await.unwrap();
        // An end of stream in the middle of it is how libp2p peers refuse.
        let failed = matches!(
            opened,
            Err(OpenError::Negotiation(_) | OpenError::UnsupportedProtocol(_))
        );
        assert!(failed, "{flag:?}: {opened:?}");
        assert_eq!(s.us.stats().substreams, 0, "{flag:?}: reported, and gone");
        let inbound = s.peer.open();
        s.peer.flag(inbound, flag);
        s.peer.expect_closed(inbound).await;
        // The application does not see a substream without a protocol.
        assert!(timeout(Duration::ZERO, s.us.accept()).await.is_err());
        assert_eq!(s.us.stats().substreams, 0);
        s.finish().await;
    }
}

/// Row L-27: labels in place of a negotiation.
#[tokio::test(start_paused = true)]
async fn l27_labels_name_protocols() {
    let mut config = negotiated();
    config.negotiation = Negotiation::ChannelLabel;
    let pair = Pair::with(config.clone(), config, MemoryConfig::default());
    let here = pair.a.open("/echo/1.0.0").await.unwrap();
    let there = pair.b.accept().await.unwrap().unwrap();
    assert_eq!(
        (here.protocol(), there.protocol()),
        (Some("/echo/1.0.0"), Some("/echo/1.0.0"))
    );
    let mut unknown = pair.a.open("/nothing").await.unwrap();
    let error = unknown.read(&mut [0]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    assert_eq!(
        unknown.close_outcome(),
        Some(CloseOutcome::Reset(Some(code::NEGOTIATION_FAILED)))
    );
    drop((here, there, unknown));
    pair.finish().await;
}

/// A complete request is not lost when its sender closes before it is accepted.
#[tokio::test(start_paused = true)]
async fn what_arrived_before_the_end_can_still_be_accepted() {
    let pair = Pair::new();
    let mut request = pair.a.open("").await.unwrap();
    request.write_all(b"request").await.unwrap();
    assert_eq!(
        request.finish().await.unwrap(),
        Finished::Acked,
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

#[tokio::test(start_paused = true)]
async fn accept_and_open_end_with_the_connection() {
    let pair = Pair::new();
    let b = pair.b.clone();
    let accepting = tokio::spawn(async move { b.accept().await });
    settle().await;
    pair.a.close().await;
    assert!(
        within("accept", accepting)
            .await
            .unwrap()
            .unwrap()
            .is_none()
    );
    for connection in [&pair.a, &pair.b] {
        assert!(connection.accept().await.unwrap().is_none());
        assert!(matches!(
            connection.open("").await,
            Err(OpenError::Connection(_))
        ));
        connection.close().await;
    }
    assert_eq!(pair.a.close_reason(), Some(ConnectionError::ClosedLocally));
    assert_eq!(pair.b.close_reason(), Some(ConnectionError::ClosedByPeer));
    pair.finish().await;
}

#[tokio::test(start_paused = true)]
async fn opens_during_a_close_are_refused_by_both_sides() {
    let mut memory = MemoryConfig::default();
    memory.delay = Duration::from_millis(50)..=Duration::from_millis(50);
    let pair = Pair::with(config(), config(), memory);
    let (mut here, there) = pair.substream().await;
    here.write_all(&pattern(60_000)).await.unwrap();
    let a = pair.a.clone();
    let closing = tokio::spawn(async move { a.close().await });
    settle().await;
    assert!(!closing.is_finished(), "the peer is 50 ms away");
    assert!(matches!(
        pair.a.open("").await,
        Err(OpenError::Connection(_))
    ));
    let mut refused = pair.b.open("").await.unwrap();
    let error = refused.read(&mut [0]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    assert_eq!(pair.a.stats().refused, 1);
    let mut there = there;
    let mut all = Vec::new();
    let error = there.read_to_end(&mut all).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    assert!(all == pattern(60_000));
    drop((there, refused));
    within("close", closing).await.unwrap();
    drop(here);
    pair.finish().await;
}

/// A close towards an inactive peer is bounded, with every valid timeout.
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

/// The driver ends when there is no handle and no substream left.
#[tokio::test(start_paused = true)]
async fn a_connection_that_nobody_can_reach_closes() {
    let pair = Pair::new();
    let (here, mut there) = pair.substream().await;
    let [driver, _] = pair.drivers;
    drop(pair.a);
    sleep(Duration::from_secs(60)).await;
    assert!(!driver.is_finished(), "a substream is still in use");
    there.write_all(b"x").await.unwrap();
    drop(here);
    drop(there);
    assert_eq!(
        within("the driver ends", driver).await.unwrap(),
        ConnectionError::ClosedLocally
    );
    assert_eq!(
        within("the peer", pair.b.closed()).await,
        ConnectionError::ClosedByPeer
    );
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

/// A dropped driver wakes all waiting tasks, and no handle keeps the rest alive.
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

/// Row O-R4: the cause reaches every substream.
#[tokio::test(start_paused = true)]
async fn a_carrier_that_fails_ends_every_operation_with_its_cause() {
    let pair = Pair::new();
    let (mut here, there) = pair.substream().await;
    pair.faults.kill();
    let cause = within("the end", pair.a.closed()).await;
    assert!(matches!(cause, ConnectionError::Carrier(_)), "{cause:?}");
    assert_eq!(pair.a.accept().await.unwrap_err(), cause);
    let error = here.write(b"x").await.unwrap_err();
    assert!(error.to_string().contains("killed by the test"), "{error}");
    assert_eq!(
        std::io::Error::from(here.finish().await.unwrap_err()).kind(),
        ErrorKind::ConnectionAborted
    );
    drop((here, there));
    for driver in pair.drivers {
        within("a driver ends", driver).await.unwrap();
    }
    assert!(pair.a.is_idle() && pair.b.is_idle());
}

#[tokio::test(start_paused = true)]
async fn both_sides_may_close_at_once() {
    let pair = Pair::with(config(), config(), MemoryConfig::hostile(3));
    let (here, there) = pair.substream().await;
    within("close", async {
        tokio::join!(pair.a.close(), pair.b.close())
    })
    .await;
    drop((here, there));
    pair.finish().await;
}

/// Rows H-11, L-22: nothing is left of 10 000 substreams.
#[tokio::test(start_paused = true)]
async fn h11_ten_thousand_substreams_leave_nothing() {
    let pair = Pair::new();
    let b = pair.b.clone();
    let echo = tokio::spawn(async move {
        while let Some(mut substream) = b.accept().await.unwrap() {
            tokio::spawn(async move {
                let mut word = [0; 5];
                substream.read_exact(&mut word).await.unwrap();
                substream.write_all(&word).await.unwrap();
                // Dropped: FIN follows by itself.
            });
        }
    });
    for round in 0..10_000 {
        let mut substream = pair.a.open("").await.unwrap();
        substream.write_all(b"hello").await.unwrap();
        let mut word = Vec::new();
        substream.read_to_end(&mut word).await.unwrap();
        assert_eq!(word, b"hello", "round {round}");
        if round % 2 == 0 {
            assert_ne!(substream.finish().await, Err(FinishError::TimedOut));
        }
    }
    pair.idle().await;
    assert_eq!(pair.a.stats().opened, 10_000);
    assert_eq!(pair.b.stats().accepted, 10_000);
    pair.finish().await;
    within("the echo", echo).await.unwrap();
}

/// Row H-11: nothing keeps the shared parts alive in a circle.
#[tokio::test(start_paused = true)]
async fn h11_handles_and_drivers_free_their_configuration() {
    let (a, b, _faults) = pair(MemoryConfig::default());
    let shared = Arc::new(config());
    let (a, driver_a) = Connection::over(a, Arc::clone(&shared));
    let (b, driver_b) = Connection::over(b, Arc::clone(&shared));
    let (driver_a, driver_b) = (tokio::spawn(driver_a), tokio::spawn(driver_b));
    for _ in 0..10 {
        let mut here = a.open("").await.unwrap();
        here.write_all(b"never accepted").await.unwrap();
        here.reset(1);
        std::mem::drop(here);
        drop(a.open("").await.unwrap());
    }
    settle().await;
    drop(a);
    drop(b);
    within("a driver", driver_a).await.unwrap();
    within("a driver", driver_b).await.unwrap();
    assert_eq!(Arc::strong_count(&shared), 1);
}

/// docs/wire.md: the data channel of a libp2p substream has the label "". Empty frames during the
/// open have no effect.
#[tokio::test(start_paused = true)]
async fn l27_the_label_of_a_libp2p_substream_is_empty_and_empty_frames_do_not_end_its_opening() {
    for negotiation in [Negotiation::MultistreamSelect, Negotiation::None] {
        let mut config = negotiated();
        config.negotiation = negotiation;
        let mut s = scripted(config, MemoryConfig::default());
        let us = s.us.clone();
        let opening = tokio::spawn(async move { us.open("/echo/1.0.0").await });
        let channel = s.peer.opened().await;
        assert_eq!(s.peer.labels, [""], "{negotiation:?}");
        if negotiation == Negotiation::MultistreamSelect {
            s.peer.send_raw(channel, &[0]);
            s.peer.data(channel, b"\x13/multistream/1.0.0\n");
            s.peer.send_raw(channel, &[0]);
            s.peer.data(channel, b"\x0c/echo/1.0.0\n");
        }
        let opened = within("open", s.peer.drive_while(opening)).await.unwrap();
        let substream = opened.unwrap();
        assert_eq!(
            substream.protocol(),
            (negotiation != Negotiation::None).then_some("/echo/1.0.0")
        );
        s.peer.flag(channel, Flag::ResetStream);
        s.peer.expect_closed(channel).await;
        drop(substream);
        s.finish().await;
    }
}

/// 64 substreams are opened before the first frame of the peer; more wait for that, or for the open
/// timeout, after which a silent peer has no limits.
#[tokio::test(start_paused = true)]
async fn substreams_beyond_64_wait_until_a_silent_peer_is_known_or_the_open_timeout() {
    let mut s = scripted(config(), MemoryConfig::default());
    let begin = Instant::now();
    let mut substreams = Vec::new();
    for _ in 0..64 {
        substreams.push(s.us.open("").await.expect("a channel is free"));
    }
    assert_eq!(begin.elapsed(), Duration::ZERO);
    let us = s.us.clone();
    let waiting = tokio::spawn(async move { us.open("").await });
    s.peer.run_for(Duration::from_millis(4990)).await;
    assert!(!waiting.is_finished(), "the 65th");
    s.peer.run_for(Duration::from_millis(20)).await;
    substreams.push(waiting.await.expect("no panic").expect("a channel is free"));
    for _ in 0..100 {
        substreams.push(s.us.open("").await.expect("a channel is free"));
    }
    for substream in &substreams {
        substream.reset(1);
    }
    drop(substreams);
    s.finish().await;
}

/// Each substream counts once, whether it waits to be accepted or not: one that ends makes room for
/// one more. Those that end unaccepted keep their place until they are accepted.
#[tokio::test(start_paused = true)]
async fn a_substream_that_ends_makes_room_although_others_wait_to_be_accepted() {
    const MAX: usize = 8;
    let mut limited = config();
    limited.max_inbound_substreams = MAX;
    let pair = Pair::with(config(), limited, MemoryConfig::default());
    let mut opened = Vec::new();
    for _ in 0..MAX {
        let mut substream = within("open", pair.a.open("")).await.expect("room");
        substream.write_all(b"!").await.expect("room");
        opened.push(substream);
    }
    settle().await;
    let another = {
        let a = pair.a.clone();
        tokio::spawn(async move { a.open("").await })
    };
    settle().await;
    assert!(!another.is_finished(), "there is no room");
    // One that nobody has accepted ends, and keeps its place.
    opened.pop().expect("eight").reset(1);
    settle().await;
    assert!(!another.is_finished(), "it waits to be accepted");
    // One that was accepted ends, and makes room.
    let first = within("accept", pair.b.accept()).await;
    first.expect("it lives").expect("it is open").reset(1);
    drop(opened.remove(0));
    let another = within("room", another).await.expect("no panic");
    opened.push(another.expect("it lives"));
    // The ended one is accepted, which makes room too.
    for _ in 0..MAX - 1 {
        let next = within("accept", pair.b.accept()).await;
        next.expect("it lives").expect("it is open").reset(1);
    }
    for substream in opened {
        substream.reset(1);
    }
    for _ in 0..MAX {
        let substream = within("open", pair.a.open("")).await.expect("room");
        substream.reset(1);
    }
    settle().await;
    while let Ok(left) = timeout(Duration::from_millis(1), pair.b.accept()).await {
        left.expect("it lives").expect("it is open").reset(1);
    }
    pair.finish().await;
}
