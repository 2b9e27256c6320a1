//! Peers that fall silent, or drip.

use std::time::Duration;

use anabranch::carrier::memory::MemoryConfig;
use anabranch::payload::{
    MessageError, PayloadError, Payloads, Receiver, SendError, TimeLimit, code, send_bytes,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, sleep, timeout};

use crate::common::{Pair, config, pattern, scripted, within};
use crate::payloads::{drained, header, peer_is_told, peer_sends, receiver};

/// Row F-11: who is slow with the header delays nobody, and has a place only as long as a deadline.
#[tokio::test(start_paused = true)]
async fn f11_a_header_that_does_not_come_delays_no_other() {
    let pair = Pair::new();
    let receiver = Receiver::default();
    let mut payloads = Payloads::new(&pair.b, "", &receiver);
    let mut silent = pair.a.open("").await.unwrap();
    silent.write_all(&[200]).await.unwrap();
    let substream = pair.a.open("").await.unwrap();
    let sending = tokio::spawn(send_bytes(substream, pattern(10).into()));
    let payload = within("the other", payloads.accept())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(receiver.open(), 2);
    payload.assemble(10).await.unwrap();
    within("its receipt", sending).await.unwrap().unwrap();
    let expired = within("the deadline", payloads.accept())
        .await
        .unwrap()
        .unwrap_err();
    assert!(
        matches!(
            expired,
            PayloadError::Expired {
                limit: TimeLimit::Idle,
                received: 0,
                ..
            }
        ),
        "{expired:?}"
    );
    assert_eq!(receiver.open(), 0);
    drop((payloads, silent));
    pair.finish().await;
}

/// Rows F-6 and FR-3: a sender that falls silent, to the millisecond; what came before is handed over.
#[tokio::test(start_paused = true)]
async fn f6_a_payload_expires_60_s_after_its_last_byte() {
    let mut s = scripted(config(), MemoryConfig::default());
    let mut bytes = header(&[(1, 20_000)]);
    bytes.extend_from_slice(&pattern(10_000));
    let (substream, channel) = peer_sends(&mut s, &bytes).await;
    let receiver = Receiver::default();
    let payload = receiver.receive(substream).await.unwrap();
    // That the application takes its time is not the sender's fault.
    sleep(Duration::from_secs(200)).await;
    let began = Instant::now();
    let (all, error) = drained(payload).await;
    assert_eq!(began.elapsed().as_secs(), 60);
    assert!(all == pattern(10_000));
    assert!(
        matches!(error, Some(PayloadError::Expired { limit: TimeLimit::Idle, received: 10_000, after })
            if after == Duration::from_secs(60)),
        "{error:?}"
    );
    peer_is_told(&mut s, channel, code::EXPIRED).await;
    assert_eq!(receiver.open(), 0);
    s.finish().await;
}

/// Row F-6: a byte now and then does not keep a payload alive for ever.
#[tokio::test(start_paused = true)]
async fn f6_a_payload_that_drips_expires_as_a_whole() {
    let pair = Pair::new();
    let (mut here, there) = pair.substream().await;
    let receiver = receiver(|config| config.time_limit = Duration::from_secs(600));
    let began = Instant::now();
    let dripping = tokio::spawn(async move {
        here.write_all(&header(&[(1, 1000)])).await.unwrap();
        let mut dripped = 0;
        while here.write_all(&[dripped as u8]).await.is_ok() {
            dripped += 1;
            sleep(Duration::from_secs(50)).await;
        }
        dripped
    });
    let payload = receiver.receive(there).await.unwrap();
    let receiving = async {
        let (all, error) = drained(payload).await;
        (all.len(), error)
    };
    let (got, error) = timeout(Duration::from_secs(700), receiving).await.unwrap();
    assert_eq!((got, began.elapsed().as_secs()), (12, 600));
    assert!(
        matches!(
            error,
            Some(PayloadError::Expired {
                limit: TimeLimit::Total,
                received: 12,
                ..
            })
        ),
        "{error:?}"
    );
    assert!(within("the sender", dripping).await.unwrap() >= 12);
    pair.finish().await;
}

/// Row FR-3: places of senders that have fallen silent are free again.
#[tokio::test(start_paused = true)]
async fn fr3_abandoned_payloads_give_their_places_back() {
    let pair = Pair::new();
    let receiver = Receiver::default();
    let mut abandoned = Vec::new();
    let mut reading = Vec::new();
    for _ in 0..8 {
        let (mut here, there) = pair.substream().await;
        here.write_all(&header(&[(1, 1000)])).await.unwrap();
        let payload = receiver.receive(there).await.unwrap();
        reading.push(tokio::spawn(drained(payload)));
        abandoned.push(here);
    }
    assert_eq!(receiver.open(), 8);
    for reading in reading {
        let (_, error) = within("the deadline", reading).await.unwrap();
        assert!(
            matches!(error, Some(PayloadError::Expired { .. })),
            "{error:?}"
        );
    }
    assert_eq!(receiver.open(), 0);
    drop(abandoned);
    pair.finish().await;
}

/// A sender gives up too, when the receiver takes nothing for as long.
#[tokio::test(start_paused = true)]
async fn f6_a_sender_expires_when_nothing_moves() {
    let pair = Pair::new();
    let (here, there) = pair.substream().await;
    let began = Instant::now();
    let sent = within("the deadline", send_bytes(here, pattern(4_000_000).into())).await;
    assert!(
        matches!(sent, Err(SendError::Expired { limit: TimeLimit::Idle, sent, .. }) if sent > 0),
        "{sent:?}"
    );
    assert_eq!(began.elapsed().as_secs(), 60);
    drop(there);
    // A receiver that reads, and confirms nothing.
    let (here, mut there) = pair.substream().await;
    let sending = tokio::spawn(send_bytes(here, pattern(10).into()));
    let mut all = Vec::new();
    there.read_to_end(&mut all).await.unwrap();
    let sent = within("the deadline", sending).await.unwrap();
    assert!(matches!(sent, Err(SendError::Expired { .. })), "{sent:?}");
    // One that ends without a word.
    let (here, mut there) = pair.substream().await;
    let sending = tokio::spawn(send_bytes(here, pattern(10).into()));
    there.read_to_end(&mut all).await.unwrap();
    there.finish().await.unwrap();
    let sent = within("the end", sending).await.unwrap();
    assert!(matches!(sent, Err(SendError::Unconfirmed(_))), "{sent:?}");
    // And one that confirms something else.
    let (here, mut there) = pair.substream().await;
    let sending = tokio::spawn(send_bytes(here, pattern(10).into()));
    there.read_to_end(&mut all).await.unwrap();
    there.write_all(&header(&[(1, 9)])).await.unwrap();
    let sent = within("the end", sending).await.unwrap();
    assert!(
        matches!(
            sent,
            Err(SendError::BadAnswer(MessageError::BadReceipt {
                confirmed: 9,
                total: 10
            }))
        ),
        "{sent:?}"
    );
    drop(there);
    pair.finish().await;
}
