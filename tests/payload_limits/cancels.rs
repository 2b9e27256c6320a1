//! Payloads that one side cancels, and cancels that come too late.

use std::time::Duration;

use anabranch::message::Message;
use anabranch::payload::{PayloadError, Receiver, Rejection, SendError, code, receive, send_bytes};
use anabranch_testkit::memory::MemoryConfig;
use bytes::Bytes;
use futures_util::StreamExt;
use tokio::time::{Instant, sleep, timeout};

use crate::common::{Pair, config, pattern, scripted, within};
use crate::payloads::{drained, header, peer_sends, sender};

/// Either side can cancel a payload, with a code, while the other waits and while it does not.
#[tokio::test(start_paused = true)]
async fn a_payload_is_cancelled_from_either_side_with_a_code() {
    let pair = Pair::new();
    let big = Bytes::from(pattern(4_000_000));
    // The receiver, by its handle, while the sender waits for room.
    let (here, there) = pair.substream().await;
    let sending = tokio::spawn(send_bytes(here, big.clone()));
    let payload = receive(there).await.unwrap();
    let canceller = payload.canceller();
    let stream = payload.into_stream();
    sleep(Duration::from_secs(1)).await;
    canceller.cancel(77);
    let sent = within("the cancel", sending).await.unwrap();
    assert!(
        matches!(sent, Err(SendError::Rejected(Rejection::Code(77)))),
        "{sent:?}"
    );
    let mut stream = stream;
    let error = stream.next().await.unwrap().unwrap_err();
    assert!(matches!(error, PayloadError::Cancelled(77)), "{error:?}");
    assert!(stream.next().await.is_none());
    // The sender, by its handle, while the receiver waits for more.
    let (here, there) = pair.substream().await;
    let (silent, source) = tokio::io::duplex(10);
    let sender = sender(here);
    let canceller = sender.canceller();
    let sending = tokio::spawn(sender.send_reader(source, Some(10)));
    let payload = receive(there).await.unwrap();
    let receiving = tokio::spawn(drained(payload));
    sleep(Duration::from_secs(1)).await;
    canceller.cancel(78);
    canceller.cancel(79);
    let sent = within("the cancel", sending).await.unwrap();
    assert!(matches!(sent, Err(SendError::Cancelled(78))), "{sent:?}");
    let (_, error) = within("the cancel", receiving).await.unwrap();
    assert!(
        matches!(
            error,
            Some(PayloadError::EndedBySender(Rejection::Code(78)))
        ),
        "{error:?}"
    );
    drop(silent);
    // The receiver refuses the payload by its header.
    let (here, there) = pair.substream().await;
    let sending = tokio::spawn(send_bytes(here, big.clone()));
    receive(there).await.unwrap().cancel(80);
    let sent = within("the cancel", sending).await.unwrap();
    assert!(
        matches!(sent, Err(SendError::Rejected(Rejection::Code(80)))),
        "{sent:?}"
    );
    // Drops.
    let (here, there) = pair.substream().await;
    let sending = tokio::spawn(send_bytes(here, big.clone()));
    drop(receive(there).await.unwrap().into_stream());
    let sent = within("the cancel", sending).await.unwrap();
    assert!(
        matches!(sent, Err(SendError::Rejected(Rejection::Cancelled))),
        "{sent:?}"
    );
    let (here, there) = pair.substream().await;
    let sending = tokio::spawn(send_bytes(here, big.clone()));
    let payload = receive(there).await.unwrap();
    sending.abort();
    let (_, error) = drained(payload).await;
    assert!(
        matches!(
            error,
            Some(PayloadError::EndedBySender(Rejection::Cancelled))
        ),
        "{error:?}"
    );
    pair.finish().await;
}

/// A receiver that stops while the source is silent is detected at once.
#[tokio::test(start_paused = true)]
async fn a_sender_whose_source_is_silent_notices_a_cancel() {
    let pair = Pair::new();
    let (here, there) = pair.substream().await;
    let (silent, source) = tokio::io::duplex(10);
    let sending = tokio::spawn(sender(here).send_reader(source, None));
    let began = Instant::now();
    receive(there).await.unwrap().cancel(5);
    let sent = within("the cancel", sending).await.unwrap();
    assert!(
        matches!(sent, Err(SendError::Rejected(Rejection::Code(5)))),
        "{sent:?}"
    );
    assert!(began.elapsed() < Duration::from_secs(1));
    drop(silent);
    pair.finish().await;
}

/// A cancel that comes too late has no effect.
#[tokio::test(start_paused = true)]
async fn a_complete_payload_can_not_be_cancelled() {
    let pair = Pair::new();
    let (here, there) = pair.substream().await;
    let sender = sender(here);
    let ours = sender.canceller();
    let sending = tokio::spawn(sender.send_bytes(pattern(10).into()));
    let payload = receive(there).await.unwrap();
    let theirs = payload.canceller();
    payload.assemble(10).await.unwrap();
    theirs.cancel(1);
    assert_eq!(
        within("the receipt", sending).await.unwrap().unwrap().total,
        10
    );
    ours.cancel(2);
    pair.finish().await;
    ours.cancel(3);
}

/// Row FR-6: late data for an ended payload creates no state.
#[tokio::test(start_paused = true)]
async fn fr6_late_data_of_a_payload_that_has_ended_is_dropped() {
    let mut s = scripted(config(), MemoryConfig::default());
    let receiver = Receiver::default();
    let (substream, channel) = peer_sends(&mut s, &header(&[(1, 50_000)])).await;
    let payload = receiver.receive(substream).await.unwrap();
    drop(payload);
    for _ in 0..10 {
        s.peer.data(channel, &[1; 1000]);
    }
    s.peer
        .expect(channel, Message::reset(code::CANCELLED))
        .await;
    assert_eq!((s.us.stats().unread, receiver.open()), (0, 0));
    let nothing = timeout(Duration::from_secs(1), s.us.accept()).await;
    assert!(nothing.is_err(), "no substream comes of it");
    s.peer.expect_closed(channel).await;
    s.finish().await;
}
