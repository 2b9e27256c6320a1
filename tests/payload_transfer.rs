//! Successful payloads: in one piece, as a stream, into a writer, resumed.

#![allow(missing_docs)]

mod common;

use std::future::poll_fn;
use std::io::Cursor;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use anabranch::payload::{
    MessageError, Payload, PayloadConfig, PayloadError, Payloads, Progress, Received, Receiver,
    Rejection, SendError, Sender, Sent, receive, send_bytes,
};
use anabranch_testkit::memory::MemoryConfig;
use bytes::Bytes;
use common::seeds::seeds;
use common::{Pair, config, pattern, settle, within};
use futures_util::{Stream, StreamExt};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, ReadBuf};

fn content(length: usize) -> Bytes {
    pattern(length).into()
}

fn sender(substream: anabranch::Substream) -> Sender {
    Sender::new(substream, PayloadConfig::default()).expect("the default is valid")
}

async fn all_of(payload: Payload) -> Result<Vec<u8>, PayloadError> {
    let mut stream = payload.into_stream();
    let mut all = Vec::new();
    while let Some(chunk) = stream.next().await {
        all.extend_from_slice(&chunk?);
    }
    assert!(stream.next().await.is_none(), "it stays at its end");
    Ok(all)
}

/// Rows F-2 and F-10, and the empty payload.
#[tokio::test(start_paused = true)]
async fn f2_a_payload_arrives_with_its_metadata_and_is_confirmed() {
    for length in [0, 1, 100_000] {
        for hashed in [false, true] {
            let pair = Pair::new();
            let (here, there) = pair.substream().await;
            let mut sender = sender(here).metadata("what it is");
            if hashed {
                sender = sender.hashed();
            }
            let sent_progress = sender.progress();
            let receiving = async {
                let payload = receive(there).await.expect("a good header");
                assert_eq!(payload.total(), Some(length as u64));
                assert_eq!(&payload.metadata()[..], b"what it is");
                assert_eq!(payload.is_hashed(), hashed);
                assert!(!payload.is_resumable());
                let progress = payload.progress();
                assert_eq!(progress.transferred(), 0);
                let all = payload.assemble(100_000).await.expect("all of it");
                assert_eq!(progress.transferred(), length as u64);
                assert_eq!(progress.total(), Some(length as u64));
                all
            };
            let (sent, received) = within("both", async {
                tokio::join!(sender.send_bytes(content(length)), receiving)
            })
            .await;
            assert!(received == content(length));
            let sent = sent.expect("it was confirmed");
            assert_eq!((sent.total, sent.resumed_from), (length as u64, 0));
            assert_eq!(sent.hash.is_some(), hashed);
            assert_eq!(sent_progress.transferred(), length as u64);
            pair.finish().await;
        }
    }
}

/// The receipt is sent only when the application has the last byte.
#[tokio::test(start_paused = true)]
async fn a_payload_is_confirmed_when_it_was_handed_over() {
    let pair = Pair::new();
    let (here, there) = pair.substream().await;
    let mut sending = tokio::spawn(send_bytes(here, content(1000)));
    let payload = receive(there).await.unwrap();
    let mut stream = payload.into_stream();
    let chunk = stream.next().await.unwrap().unwrap();
    assert_eq!(chunk.len(), 1000);
    let early = tokio::time::timeout(Duration::from_secs(30), &mut sending).await;
    assert!(early.is_err(), "nothing was confirmed yet");
    assert!(stream.next().await.is_none());
    assert_eq!(
        within("the receipt", sending).await.unwrap().unwrap().total,
        1000
    );
    pair.finish().await;
}

/// Row F-7: a source of unknown length ends at its end.
#[tokio::test(start_paused = true)]
async fn f7_a_payload_of_unknown_length_ends_where_its_source_does() {
    for length in [0, 31, 32, 33, 5000, 300_000] {
        for hashed in [false, true] {
            let pair = Pair::new();
            let (here, there) = pair.substream().await;
            let data = content(length);
            let mut sender = sender(here);
            if hashed {
                sender = sender.hashed();
            }
            let sending = sender.send_reader(Cursor::new(data.clone()), None);
            let receiving = async {
                let payload = receive(there).await.unwrap();
                assert_eq!(payload.total(), None);
                let progress = payload.progress();
                let mut written = Vec::new();
                let received = payload.copy_to(&mut written).await.unwrap();
                assert_eq!(progress.total(), Some(length as u64));
                (written, received)
            };
            let (sent, (written, received)) = tokio::join!(sending, receiving);
            let Sent { total, hash, .. } = sent.unwrap();
            assert_eq!(total, length as u64);
            assert!(written == data);
            assert_eq!((received.total, received.hash), (total, hash));
            pair.finish().await;
        }
    }
}

/// Reads at most a few bytes at a time, and is not always ready.
struct Trickle<R> {
    inner: R,
    rng: StdRng,
}

impl<R: AsyncRead + Unpin> AsyncRead for Trickle<R> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        if self.rng.random_bool(0.2) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let most = self.rng.random_range(1..20_000).min(out.remaining());
        let mut part = vec![0; most];
        let mut part = ReadBuf::new(&mut part);
        let read = Pin::new(&mut self.inner).poll_read(cx, &mut part);
        out.put_slice(part.filled());
        read
    }
}

/// Row F-1: all sizes around the boundaries of frames, however the carrier splits messages.
#[tokio::test(start_paused = true)]
async fn f1_every_size_arrives_over_a_hostile_carrier() {
    for seed in seeds(60) {
        let mut rng = StdRng::seed_from_u64(seed);
        let frames = rng.random_range(0..8);
        let frame = [8_186, 16_379, 16_384, 65_536][rng.random_range(0..4)];
        let length: usize = (frames * frame + rng.random_range(0..5_usize)).saturating_sub(2);
        let hashed = rng.random_bool(0.5);
        let source = rng.random_range(0..3);
        let mut ours = config();
        ours.send_buffer = [1, 4000, 64 * 1024][rng.random_range(0..3)];
        if ours.send_buffer == 1 && length > 20_000 {
            ours.send_buffer = 100;
        }
        let mut theirs = config();
        theirs.receive_window = [2048, 40_000, 1 << 20][rng.random_range(0..3)];
        let context = format!("seed {seed}: {length} bytes, source {source}, hashed {hashed}");
        let pair = Pair::with(ours, theirs, MemoryConfig::hostile(seed));
        let (here, there) = pair.substream().await;
        let mut sender = sender(here);
        if hashed {
            sender = sender.hashed();
        }
        let data = content(length);
        let reader = Trickle {
            inner: Cursor::new(data.clone()),
            rng: StdRng::seed_from_u64(seed),
        };
        let sending = async {
            match source {
                0 => sender.send_bytes(data.clone()).await,
                1 => sender.send_reader(reader, Some(length as u64)).await,
                _ => sender.send_reader(reader, None).await,
            }
        };
        let receiving = async { all_of(receive(there).await?).await };
        let both = async { tokio::join!(sending, receiving) };
        // With the smallest buffer every frame takes time.
        let both = tokio::time::timeout(Duration::from_secs(3600), both).await;
        let (sent, received) = both.unwrap_or_else(|_| panic!("{context}: it hangs"));
        let sent = sent.unwrap_or_else(|error| panic!("{context}: {error}"));
        let received = received.unwrap_or_else(|error| panic!("{context}: {error}"));
        assert!(received == data, "{context}");
        assert_eq!(sent.total, length as u64, "{context}");
        pair.finish().await;
    }
}

/// Row F-3: the sender's bytes are referenced, not copied, and released when they have been sent.
#[tokio::test(start_paused = true)]
async fn f3_bytes_are_held_while_they_are_sent_and_then_free() {
    let pair = Pair::new();
    let (here, there) = pair.substream().await;
    let data = content(2_000_000);
    let sending = tokio::spawn(send_bytes(here, data.clone()));
    let payload = receive(there).await.unwrap();
    let all = payload.assemble(2_000_000).await.unwrap();
    assert!(all == data);
    within("the receipt", sending).await.unwrap().unwrap();
    assert!(data.is_unique(), "nothing holds them any more");
    // The only copy is that of the carrier: it got slices of them.
    let frames = pair.sent[0].frames();
    let in_place: usize = frames.iter().map(|frame| frame.bytes_in(&data)).sum();
    let copied = data.len() - in_place;
    assert!(copied <= 2 * 16_384, "{copied} bytes were copied");
    pair.finish().await;
}

/// Row F-8: unread bytes exert backpressure on the sender.
#[tokio::test(start_paused = true)]
async fn f8_a_stream_that_is_not_read_is_bounded_by_credit() {
    let mut theirs = config();
    theirs.receive_window = 64 * 1024;
    theirs.max_receive_window = 64 * 1024;
    let pair = Pair::with(config(), theirs, MemoryConfig::default());
    let (here, there) = pair.substream().await;
    let sender = sender(here);
    let progress = sender.progress();
    let sending = tokio::spawn(sender.send_bytes(content(4_000_000)));
    let mut stream = receive(there).await.unwrap().into_stream();
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert!(pair.b.stats().unread <= 80 * 1024);
    assert!(progress.transferred() <= 128 * 1024 + 20, "{progress:?}");
    let mut got = 0;
    while let Some(chunk) = stream.next().await {
        got += chunk.unwrap().len();
        assert_eq!(stream.progress().transferred(), got as u64);
    }
    assert_eq!(got, 4_000_000);
    within("the receipt", sending).await.unwrap().unwrap();
    pair.finish().await;
}

/// Row F-17: concurrent payloads alternate, one frame each, and a request between them waits for
/// one frame of each.
#[tokio::test(start_paused = true)]
async fn f17_payloads_take_turns_frame_by_frame() {
    let pair = Pair::new();
    let mut senders = Vec::new();
    let mut receivers = Vec::new();
    for _ in 0..4 {
        let (mut here, mut there) = pair.substream().await;
        // Each has a whole window to send in.
        here.write_all(&[1; 20_000]).await.unwrap();
        there.read_exact(&mut [0; 20_000]).await.unwrap();
        receivers.push(there);
        senders.push(here);
    }
    let (mut small, mut at_peer) = pair.substream().await;
    settle().await;
    pair.gates[0].shut();
    let sending: Vec<_> = senders
        .into_iter()
        .map(|here| tokio::spawn(sender(here).send_bytes(content(500_000))))
        .collect();
    settle().await;
    small.write_all(b"small").await.unwrap();
    let before = pair.sent[0].frames().len();
    pair.gates[0].open();
    settle().await;
    let frames = pair.sent[0].frames();
    let data = frames[before..]
        .iter()
        .filter(|frame| !frame.message.payload.is_empty());
    let order: Vec<_> = data.map(|frame| frame.channel.get()).collect();
    // The order does not matter. Each has 64 KiB queued, four frames.
    let turn: Vec<_> = order[..5].to_vec();
    let is_small = |channel: &u64| *channel == small.id();
    assert_eq!(
        turn.iter().filter(|channel| is_small(channel)).count(),
        1,
        "{order:?}"
    );
    let big: Vec<_> = turn
        .iter()
        .copied()
        .filter(|channel| !is_small(channel))
        .collect();
    for (index, channel) in order[5..13].iter().enumerate() {
        assert_eq!(*channel, big[index % 4], "{order:?}");
    }
    let receiving: Vec<_> = receivers
        .into_iter()
        .map(|there| tokio::spawn(async { all_of(receive(there).await.expect("a header")).await }))
        .collect();
    for receiving in receiving {
        let received = within("a payload", receiving).await.unwrap();
        assert!(received.expect("all of it") == content(500_000));
    }
    for sending in sending {
        within("a receipt", sending)
            .await
            .unwrap()
            .expect("confirmed");
    }
    let mut word = [0; 5];
    at_peer.read_exact(&mut word).await.unwrap();
    assert_eq!(&word, b"small");
    drop((small, at_peer));
    pair.finish().await;
}

/// Rows F-11 and FR-8: payloads of one connection are independent, however they are read.
#[tokio::test(start_paused = true)]
async fn f11_payloads_of_one_connection_arrive_independently() {
    let pair = Pair::with(config(), config(), MemoryConfig::hostile(7));
    let receiver = Receiver::default();
    let mut payloads = Payloads::new(&pair.b, "", &receiver);
    let mut sending = tokio::task::JoinSet::new();
    for index in 0..8_u8 {
        let substream = pair.a.open("").await.unwrap();
        let sender = sender(substream).metadata(vec![index]).hashed();
        let length = usize::from(index) * 50_000;
        sending.spawn(async move { sender.send_bytes(content(length)).await.unwrap() });
    }
    let mut receiving = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let payload = within("a payload", payloads.accept())
            .await
            .unwrap()
            .unwrap();
        receiving.spawn(async move {
            let index = payload.metadata()[0];
            let all = match index % 3 {
                0 => payload.assemble(1 << 20).await.unwrap().to_vec(),
                1 => all_of(payload).await.unwrap(),
                _ => {
                    let mut written = Vec::new();
                    payload.copy_to(&mut written).await.unwrap();
                    written
                }
            };
            assert!(all == pattern(usize::from(index) * 50_000), "{index}");
        });
    }
    while let Some(done) = receiving.join_next().await {
        done.unwrap();
    }
    while let Some(done) = sending.join_next().await {
        done.unwrap();
    }
    assert_eq!(receiver.open(), 0);
    drop(payloads);
    pair.finish().await;
}

#[tokio::test(start_paused = true)]
async fn payloads_end_with_the_connection() {
    let pair = Pair::new();
    let receiver = Receiver::default();
    let mut payloads = Payloads::new(&pair.b, "", &receiver);
    let closing = pair.a.clone();
    let (ended, ()) = tokio::join!(payloads.accept(), async move { closing.close().await });
    assert!(ended.is_none());
    assert!(payloads.accept().await.is_none());
    pair.finish().await;

    let pair = Pair::new();
    let mut payloads = Payloads::new(&pair.a, "", &receiver);
    pair.faults.kill();
    let failed = within("the failure", payloads.accept()).await;
    assert!(
        matches!(failed, Some(Err(PayloadError::Connection(_)))),
        "{failed:?}"
    );
    assert!(payloads.accept().await.is_none());
}

async fn resumed(
    pair: &Pair,
    theirs: &Bytes,
    have: &[u8],
) -> (
    Result<Sent, SendError>,
    Result<(Received, Vec<u8>), PayloadError>,
) {
    let (here, there) = pair.substream().await;
    let sending = sender(here).send_resumable(Cursor::new(theirs.clone()));
    let receiving = async {
        let mut payload = receive(there).await?;
        assert!(payload.is_resumable() && payload.is_hashed());
        let offset = payload.resume(have.len() as u64, &mut &have[..]).await?;
        assert_eq!(payload.progress().transferred(), offset);
        let mut file = have[..offset as usize].to_vec();
        let received = payload.copy_to(&mut file).await?;
        Ok((received, file))
    };
    within("both", async { tokio::join!(sending, receiving) }).await
}

/// Only the missing part is sent, and the hash covers the whole payload.
#[tokio::test(start_paused = true)]
async fn a_payload_is_resumed_where_it_was_left() {
    let data = content(500_000);
    for have in [0, 1, 128 * 1024, 499_999, 500_000] {
        let pair = Pair::new();
        let (sent, received) = resumed(&pair, &data, &data[..have]).await;
        let (received, file) = received.unwrap();
        let sent = sent.unwrap();
        assert!(file == data);
        assert_eq!((sent.total, sent.resumed_from), (500_000, have as u64));
        assert_eq!(
            (received.total, received.resumed_from),
            (500_000, have as u64)
        );
        assert_eq!(received.hash, sent.hash);
        let bytes = pair.a.stats().payload_sent;
        assert!(bytes < 500_000 - have as u64 + 200, "{bytes} for {have}");
        pair.finish().await;
    }
}

/// The receiver has the prefix of another payload, or of another version: it gets the whole.
#[tokio::test(start_paused = true)]
async fn a_payload_that_has_changed_is_sent_from_the_beginning() {
    let data = content(500_000);
    let mut other = data[..200_000].to_vec();
    other[100] ^= 1;
    let longer = pattern(500_001);
    for have in [&other, &longer] {
        let pair = Pair::new();
        let (sent, received) = resumed(&pair, &data, have).await;
        let (received, file) = received.unwrap();
        assert!(file == data);
        assert_eq!((sent.unwrap().resumed_from, received.resumed_from), (0, 0));
        pair.finish().await;
    }
}

/// A receiver that does not resume gets everything, and so does one with a wrong prefix hash.
#[tokio::test(start_paused = true)]
async fn resuming_is_up_to_the_receiver() {
    let pair = Pair::new();
    let (here, there) = pair.substream().await;
    let data = content(100_000);
    let sending = sender(here).send_resumable(Cursor::new(data.clone()));
    let receiving = async { receive(there).await?.assemble(100_000).await };
    let (sent, received) = tokio::join!(sending, receiving);
    assert!(received.unwrap() == data);
    assert_eq!(sent.unwrap().resumed_from, 0);
    // A prefix that ends early is a local error.
    let (here, there) = pair.substream().await;
    let sending = sender(here).send_resumable(Cursor::new(data.clone()));
    let receiving = async { receive(there).await?.resume(5000, &mut &data[..10]).await };
    let (sent, received) = tokio::join!(sending, receiving);
    assert!(
        matches!(received, Err(PayloadError::Local(_))),
        "{received:?}"
    );
    assert!(
        matches!(sent, Err(SendError::Rejected(Rejection::LocalFailure))),
        "{sent:?}"
    );
    // More than the payload has.
    let (here, mut there) = pair.substream().await;
    let sending = sender(here).send_resumable(Cursor::new(data.clone()));
    let lying = async {
        let _ = there.read_u8().await.unwrap();
        // Field 1, 1 000 000.
        there.write_all(&[4, 0x08, 0xc0, 0x84, 0x3d]).await.unwrap();
        let mut rest = Vec::new();
        let _ = there.read_to_end(&mut rest).await;
    };
    let (sent, ()) = tokio::join!(sending, lying);
    let offset = 1_000_000;
    let Err(SendError::BadAnswer(MessageError::BadOffset { offset: got })) = sent else {
        panic!("{sent:?}");
    };
    assert_eq!(got, offset);
    drop(there);
    pair.finish().await;
}

/// The purpose of the progress handle: another task that watches.
#[tokio::test(start_paused = true)]
async fn f10_progress_is_seen_from_another_task() {
    let pair = Pair::with(config(), config(), MemoryConfig::hostile(3));
    let (here, there) = pair.substream().await;
    let sending = tokio::spawn(send_bytes(here, content(3_000_000)));
    let payload = receive(there).await.unwrap();
    let progress: Progress = payload.progress();
    let watching = tokio::spawn(async move {
        let mut seen = vec![];
        while progress.transferred() < 3_000_000 {
            seen.push(progress.transferred());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        seen
    });
    payload.copy_to(&mut tokio::io::sink()).await.unwrap();
    let seen = within("the watcher", watching).await.unwrap();
    assert!(seen.len() > 3 && seen.is_sorted(), "{seen:?}");
    within("the sender", sending).await.unwrap().unwrap();
    pair.finish().await;
}

/// Polled after every step, by a task that runs only when it is woken.
#[tokio::test(start_paused = true)]
async fn a_stream_wakes_whoever_polled_it_last() {
    let pair = Pair::new();
    let (here, there) = pair.substream().await;
    let (mut input, output) = tokio::io::duplex(16);
    let sending = tokio::spawn(sender(here).send_reader(output, Some(20)));
    let mut stream = receive(there).await.unwrap().into_stream();
    let pending = poll_fn(|cx| Poll::Ready(Pin::new(&mut stream).poll_next(cx).is_pending())).await;
    assert!(pending);
    let reading = tokio::spawn(async move {
        let mut all = Vec::new();
        while let Some(chunk) = stream.next().await {
            all.extend_from_slice(&chunk.unwrap());
        }
        all
    });
    for byte in 0..20 {
        input.write_all(&[byte]).await.unwrap();
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert!(within("the reader", reading).await.unwrap() == pattern(20));
    within("the sender", sending).await.unwrap().unwrap();
    pair.finish().await;
}
