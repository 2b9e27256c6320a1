//! Peers that fall silent, or send very slowly.

use std::io::{self, Cursor, SeekFrom};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use anabranch::payload::{
    MessageError, PayloadError, Payloads, Receiver, SendError, Sender, TimeLimit, code, receive,
    send_bytes,
};
use anabranch_testkit::memory::MemoryConfig;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncSeek, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::time::{Instant, Sleep, sleep, timeout};

use crate::common::{Pair, config, pattern, scripted, within};
use crate::payloads::{
    drained, header, payload_config, peer_gets_reset, peer_sends, receiver, sender,
};

/// Row F-11: a slow header delays no other payload, and holds a slot only until its deadline.
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

/// Rows F-6 and FR-3: a sender that falls silent, to the millisecond; data received before is
/// delivered.
#[tokio::test(start_paused = true)]
async fn f6_a_payload_expires_60_s_after_its_last_byte() {
    let mut s = scripted(config(), MemoryConfig::default());
    let mut bytes = header(&[(1, 20_000)]);
    bytes.extend_from_slice(&pattern(10_000));
    let (substream, channel) = peer_sends(&mut s, &bytes).await;
    let receiver = Receiver::default();
    let payload = receiver.receive(substream).await.unwrap();
    // A slow application does not count against the sender.
    sleep(Duration::from_secs(200)).await;
    let began = Instant::now();
    let (all, error) = drained(payload).await;
    assert_eq!(began.elapsed().as_secs(), 60);
    assert!(all == pattern(10_000));
    let Some(PayloadError::Expired {
        limit: TimeLimit::Idle,
        received: 10_000,
        after,
    }) = error
    else {
        panic!("{error:?}");
    };
    assert_eq!(after, Duration::from_secs(60));
    peer_gets_reset(&mut s, channel, code::EXPIRED).await;
    assert_eq!(receiver.open(), 0);
    s.finish().await;
}

/// Row F-6: a byte from time to time does not keep a payload alive for ever.
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

/// Row FR-3: slots of silent senders are released.
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

/// A sender expires too, when the receiver accepts nothing for as long.
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
    // A receiver that reads, and does not confirm.
    let (here, mut there) = pair.substream().await;
    let sending = tokio::spawn(send_bytes(here, pattern(10).into()));
    let mut all = Vec::new();
    there.read_to_end(&mut all).await.unwrap();
    let sent = within("the deadline", sending).await.unwrap();
    assert!(matches!(sent, Err(SendError::Expired { .. })), "{sent:?}");
    // A receiver that ends without a receipt.
    let (here, mut there) = pair.substream().await;
    let sending = tokio::spawn(send_bytes(here, pattern(10).into()));
    there.read_to_end(&mut all).await.unwrap();
    there.finish().await.unwrap();
    let sent = within("the end", sending).await.unwrap();
    assert!(matches!(sent, Err(SendError::Unconfirmed(_))), "{sent:?}");
    // A receiver that confirms a wrong length.
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

/// The duration of reads of a prefix.
struct SlowDisk {
    data: Cursor<Vec<u8>>,
    wait: Pin<Box<Sleep>>,
}

const SLOW: Duration = Duration::from_secs(59);

impl SlowDisk {
    fn new(data: Vec<u8>) -> Self {
        Self {
            data: Cursor::new(data),
            wait: Box::pin(sleep(SLOW)),
        }
    }
}

impl AsyncRead for SlowDisk {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        ready!(self.wait.as_mut().poll(cx));
        self.wait.as_mut().reset(Instant::now() + SLOW);
        Pin::new(&mut self.data).poll_read(cx, buf)
    }
}

impl AsyncSeek for SlowDisk {
    fn start_seek(mut self: Pin<&mut Self>, position: SeekFrom) -> io::Result<()> {
        Pin::new(&mut self.data).start_seek(position)
    }

    fn poll_complete(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<u64>> {
        Pin::new(&mut self.data).poll_complete(cx)
    }
}

/// While one side hashes the skipped part, nothing is sent, for longer than the idle timeout.
#[tokio::test(start_paused = true)]
async fn a_prefix_that_takes_long_to_hash_can_be_resumed() {
    let pair = Pair::new();
    let (here, there) = pair.substream().await;
    let data = pattern(600_000);
    let sending = tokio::spawn(sender(here).send_resumable(SlowDisk::new(data.clone())));
    let began = Instant::now();
    let mut payload = receive(there).await.unwrap();
    let mut prefix = SlowDisk::new(data[..500_000].to_vec());
    let offset = payload.resume(500_000, &mut prefix).await.unwrap();
    assert_eq!(offset, 500_000);
    assert!(
        began.elapsed() > 4 * SLOW,
        "longer than the idle timeout, each"
    );
    let mut rest = Vec::new();
    payload.copy_to(&mut rest).await.unwrap();
    assert!(rest == data[500_000..]);
    let sent = within("the receipt", sending).await.unwrap().unwrap();
    assert_eq!(sent.resumed_from, 500_000);
    pair.finish().await;
}

/// Buffers what is written, and needs some time for a flush.
struct SlowWriter {
    pending: Vec<u8>,
    written: Arc<Mutex<Vec<u8>>>,
    wait: Option<Pin<Box<Sleep>>>,
    flush_takes: Duration,
}

impl AsyncWrite for SlowWriter {
    fn poll_write(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.pending.extend_from_slice(data);
        Poll::Ready(Ok(data.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let takes = self.flush_takes;
        let wait = self.wait.get_or_insert_with(|| Box::pin(sleep(takes)));
        ready!(wait.as_mut().poll(cx));
        let pending = std::mem::take(&mut self.pending);
        self.written.lock().unwrap().extend_from_slice(&pending);
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_flush(cx)
    }
}

/// Data from before a cancel or an expiry is flushed, within the idle timeout.
#[tokio::test(start_paused = true)]
async fn what_came_of_a_payload_that_ended_is_flushed_in_a_time_of_its_own() {
    for (cancelled, takes) in [(true, 10), (false, 10), (true, 1000)] {
        let pair = Pair::new();
        let (mut here, there) = pair.substream().await;
        here.write_all(&header(&[(1, 1000)])).await.unwrap();
        here.write_all(&pattern(500)).await.unwrap();
        let limits = receiver(|config| config.time_limit = Duration::from_secs(30));
        let began = Instant::now();
        let payload = limits.receive(there).await.unwrap();
        let (canceller, progress) = (payload.canceller(), payload.progress());
        let written = Arc::new(Mutex::new(Vec::new()));
        let mut writer = SlowWriter {
            pending: Vec::new(),
            written: Arc::clone(&written),
            wait: None,
            flush_takes: Duration::from_secs(takes),
        };
        let copying = tokio::spawn(async move { payload.copy_to(&mut writer).await });
        sleep(Duration::from_secs(1)).await;
        if cancelled {
            canceller.cancel(9);
        }
        let copied = within("its end", copying).await.unwrap();
        assert!(
            matches!(
                (&copied, cancelled),
                (Err(PayloadError::Cancelled(9)), true)
                    | (Err(PayloadError::Expired { received: 500, .. }), false)
            ),
            "{copied:?}"
        );
        assert_eq!(progress.transferred(), 500);
        let ended = if cancelled { 1 } else { 30 };
        assert_eq!(began.elapsed().as_secs(), ended + takes.min(60));
        let flushed = written.lock().unwrap().len();
        assert_eq!(flushed, if takes < 60 { 500 } else { 0 });
        assert_eq!(limits.open(), 0);
        drop(here);
        pair.finish().await;
    }
}

/// Data that the writer has not accepted is not counted as received.
#[tokio::test(start_paused = true)]
async fn progress_counts_what_the_writer_has_taken() {
    let pair = Pair::new();
    let (here, there) = pair.substream().await;
    let sending = tokio::spawn(send_bytes(here, pattern(1000).into()));
    let payload = receive(there).await.unwrap();
    let progress = payload.progress();
    let (mut full, mut reader) = tokio::io::duplex(10);
    let copying = tokio::spawn(async move { payload.copy_to(&mut full).await });
    sleep(Duration::from_secs(1)).await;
    assert_eq!(progress.transferred(), 0);
    let mut all = vec![0; 1000];
    reader.read_exact(&mut all).await.unwrap();
    within("the end", copying).await.unwrap().unwrap();
    assert_eq!(progress.transferred(), 1000);
    within("the receipt", sending).await.unwrap().unwrap();
    pair.finish().await;
}

/// Hashing has a limit too: a peer that never answers expires.
#[tokio::test(start_paused = true)]
async fn a_peer_that_never_answers_to_a_resume_is_given_up() {
    let limit = Duration::from_secs(600);
    let config = payload_config(|config| config.time_limit = limit);
    let pair = Pair::new();
    let (here, there) = pair.substream().await;
    let began = Instant::now();
    let sender = Sender::new(here, config.clone()).unwrap();
    let sent = timeout(2 * limit, sender.send_resumable(Cursor::new(pattern(10)))).await;
    assert!(
        matches!(
            sent,
            Ok(Err(SendError::Expired {
                limit: TimeLimit::Total,
                ..
            }))
        ),
        "{sent:?}"
    );
    assert_eq!(began.elapsed(), limit);
    drop(there);
    let (mut here, there) = pair.substream().await;
    here.write_all(&header(&[(1, 1000), (3, 1), (4, 1)]))
        .await
        .unwrap();
    let receiver = Receiver::new(config).unwrap();
    let mut payload = receiver.receive(there).await.unwrap();
    let data = pattern(10);
    let resumed = timeout(2 * limit, payload.resume(10, &mut &data[..])).await;
    assert!(
        matches!(
            resumed,
            Ok(Err(PayloadError::Expired {
                limit: TimeLimit::Total,
                ..
            }))
        ),
        "{resumed:?}"
    );
    drop((here, payload));
    pair.finish().await;
}

/// Row F-11: a payload that is not polled holds its slot only until the time limit, if others need
/// it.
#[tokio::test(start_paused = true)]
async fn f11_payloads_that_nobody_polls_release_their_slots_when_they_expire() {
    let pair = Pair::new();
    let receiver = receiver(|config| config.time_limit = Duration::from_secs(600));
    let mut idle = Vec::new();
    for _ in 0..8 {
        let (mut here, there) = pair.substream().await;
        here.write_all(&header(&[(1, 1000)])).await.unwrap();
        idle.push((here, receiver.receive(there).await.unwrap()));
    }
    sleep(Duration::from_secs(599)).await;
    let (_refused, there) = pair.substream().await;
    let refused = receiver.receive(there).await.unwrap_err();
    assert!(matches!(refused, PayloadError::TooMany { open: 8, max: 8 }));
    sleep(Duration::from_secs(2)).await;
    let (here, there) = pair.substream().await;
    let sending = tokio::spawn(send_bytes(here, pattern(10).into()));
    let payload = receiver.receive(there).await.unwrap();
    assert_eq!(receiver.open(), 1);
    payload.assemble(10).await.unwrap();
    within("its receipt", sending).await.unwrap().unwrap();
    for (mut here, payload) in idle {
        let mut end = Vec::new();
        let told = within("the sender", here.read_to_end(&mut end)).await;
        let told = told.unwrap_err().to_string();
        assert!(told.contains(&code::EXPIRED.to_string()), "{told}");
        let (all, error) = drained(payload).await;
        assert!(all.is_empty());
        assert!(
            matches!(
                error,
                Some(PayloadError::Expired {
                    limit: TimeLimit::Total,
                    received: 0,
                    ..
                })
            ),
            "{error:?}"
        );
    }
    assert_eq!(receiver.open(), 0);
    pair.finish().await;
}
