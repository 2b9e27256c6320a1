//! Payloads that are stored before they are confirmed.

use std::time::Duration;

use anabranch::payload::{
    PayloadError, Rejection, SendError, Sender, TimeLimit, receive, send_bytes,
};
use bytes::Bytes;
use tokio::time::{sleep, timeout};

use crate::common::{Pair, pattern, within};
use crate::payloads::{payload_config, receiver};

#[tokio::test(start_paused = true)]
async fn the_receipt_waits_until_the_receiver_has_stored_the_payload() {
    let pair = Pair::new();
    let (here, there) = pair.substream().await;
    let content = Bytes::from(pattern(100_000));
    let mut sending = tokio::spawn(send_bytes(here, content.clone()));
    let payload = receive(there).await.unwrap();
    let late = payload.canceller();
    let mut stored = Vec::new();
    let complete = within("all of it", payload.copy_unconfirmed(&mut stored)).await;
    let complete = complete.unwrap();
    assert!(stored == content);
    assert_eq!(complete.received().total, 100_000);
    let early = timeout(Duration::from_secs(30), &mut sending).await;
    assert!(early.is_err(), "nothing was confirmed yet");
    let received = complete.confirm().await.unwrap();
    assert_eq!(received.total, 100_000);
    late.cancel(1);
    let sent = within("the receipt", sending).await.unwrap().unwrap();
    assert_eq!(sent.total, 100_000);
    pair.finish().await;
}

#[tokio::test(start_paused = true)]
async fn a_payload_that_could_not_be_stored_is_not_confirmed() {
    let pair = Pair::new();
    for (code, rejection) in [
        (Some(81), Rejection::Code(81)),
        // It was dropped.
        (None, Rejection::Cancelled),
    ] {
        let (here, there) = pair.substream().await;
        let sending = tokio::spawn(send_bytes(here, pattern(1000).into()));
        let payload = receive(there).await.unwrap();
        let complete = payload.copy_unconfirmed(&mut Vec::new()).await.unwrap();
        match code {
            Some(code) => complete.cancel(code),
            None => drop(complete),
        }
        let sent = within("the cancel", sending).await.unwrap();
        assert!(
            matches!(sent, Err(SendError::Rejected(got)) if got == rejection),
            "{sent:?}"
        );
    }
    // From another task.
    let (here, there) = pair.substream().await;
    let sending = tokio::spawn(send_bytes(here, pattern(1000).into()));
    let payload = receive(there).await.unwrap();
    let canceller = payload.canceller();
    let complete = payload.copy_unconfirmed(&mut Vec::new()).await.unwrap();
    canceller.cancel(82);
    let confirmed = complete.confirm().await;
    assert!(
        matches!(confirmed, Err(PayloadError::Cancelled(82))),
        "{confirmed:?}"
    );
    let sent = within("the cancel", sending).await.unwrap();
    assert!(
        matches!(sent, Err(SendError::Rejected(Rejection::Code(82)))),
        "{sent:?}"
    );
    pair.finish().await;
}

/// One that takes too long to store loses its slot to the next, and is not confirmed after that.
#[tokio::test(start_paused = true)]
async fn a_payload_that_expires_while_it_is_stored_is_not_confirmed() {
    let pair = Pair::new();
    let receiver = receiver(|config| {
        config.time_limit = Duration::from_secs(600);
        config.max_open = 1;
    });
    let (here, there) = pair.substream().await;
    let patient = payload_config(|config| config.idle_timeout = Duration::from_secs(3000));
    let sender = Sender::new(here, patient).unwrap();
    let sending = tokio::spawn(sender.send_bytes(pattern(1000).into()));
    let payload = receiver.receive(there).await.unwrap();
    let complete = payload.copy_unconfirmed(&mut Vec::new()).await.unwrap();
    sleep(Duration::from_secs(601)).await;
    let (next, there) = pair.substream().await;
    let next = tokio::spawn(send_bytes(next, pattern(10).into()));
    let payload = receiver.receive(there).await.unwrap();
    payload.assemble(10).await.unwrap();
    within("its receipt", next).await.unwrap().unwrap();
    let confirmed = complete.confirm().await;
    assert!(
        matches!(
            confirmed,
            Err(PayloadError::Expired {
                limit: TimeLimit::Total,
                received: 1000,
                ..
            })
        ),
        "{confirmed:?}"
    );
    let sent = within("the end", sending).await.unwrap();
    assert!(
        matches!(sent, Err(SendError::Rejected(Rejection::Expired))),
        "{sent:?}"
    );
    assert_eq!(receiver.open(), 0);
    pair.finish().await;
}

/// Also if nobody needs its slot: the receipt would not be sent any more.
#[tokio::test(start_paused = true)]
async fn a_payload_that_is_stored_too_late_is_not_reported_as_received() {
    let pair = Pair::new();
    let receiver = receiver(|config| config.time_limit = Duration::from_secs(600));
    let (here, there) = pair.substream().await;
    let patient = payload_config(|config| config.idle_timeout = Duration::from_secs(3000));
    let sender = Sender::new(here, patient).unwrap();
    let sending = tokio::spawn(sender.send_bytes(pattern(1000).into()));
    let payload = receiver.receive(there).await.unwrap();
    let complete = payload.copy_unconfirmed(&mut Vec::new()).await.unwrap();
    sleep(Duration::from_secs(601)).await;
    let confirmed = complete.confirm().await;
    assert!(
        matches!(
            confirmed,
            Err(PayloadError::Expired {
                limit: TimeLimit::Total,
                ..
            })
        ),
        "{confirmed:?}"
    );
    let sent = within("the end", sending).await.unwrap();
    assert!(matches!(sent, Err(SendError::Rejected(_))), "{sent:?}");
    assert_eq!(receiver.open(), 0);
    pair.finish().await;
}
