//! Reading, writing and flushing a substream.

#![allow(missing_docs)]

mod common;

use std::future::poll_fn;
use std::io::ErrorKind;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use anabranch::message::{Flag, Message};
use anabranch::substream::code;
use anabranch::{CloseOutcome, Config, Finished};
use anabranch_testkit::memory::MemoryConfig;
use bytes::Bytes;
use common::seeds::seeds;
use common::{Pair, config, pattern, scripted, settle, within};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};

/// Row L-20.
#[tokio::test(start_paused = true)]
async fn l20_one_read_drains_many_queued_messages() {
    let mut s = scripted(config(), MemoryConfig::default());
    let (mut substream, channel) = s.open().await;
    let data = pattern(30_000);
    for part in data.chunks(1000) {
        s.peer.data(channel, part);
    }
    settle().await;
    assert_eq!(substream.unread(), 30_000);
    let mut buffer = vec![0; 40_000];
    let mut out = ReadBuf::new(&mut buffer);
    let mut cx = Context::from_waker(Waker::noop());
    let polled = AsyncRead::poll_read(Pin::new(&mut substream), &mut cx, &mut out);
    assert!(matches!(polled, Poll::Ready(Ok(()))));
    assert!(
        out.filled() == data,
        "{} bytes in one poll",
        out.filled().len()
    );
    assert_eq!(substream.unread(), 0);
    drop(substream);
    s.peer.flag(channel, Flag::Fin);
    s.finish().await;
}

#[tokio::test(start_paused = true)]
async fn l20_chunks_are_read_without_a_copy_and_cut_to_measure() {
    let mut s = scripted(config(), MemoryConfig::default());
    let (mut substream, channel) = s.open().await;
    let data = pattern(2000);
    s.peer.data(channel, &data);
    s.peer.flag(channel, Flag::Fin);
    let first = substream.read_chunk(1500).await.unwrap().unwrap();
    let second = substream.read_chunk(1500).await.unwrap().unwrap();
    assert!(first == data[..1500] && second == data[1500..]);
    // Slices of the message that the carrier yielded.
    assert!(s.sent.was_read(&first) && s.sent.was_read(&second));
    assert!(!s.sent.was_read(&data));
    assert_eq!(substream.read_chunk(1500).await.unwrap(), None);
    assert_eq!(substream.read_chunk(0).await.unwrap(), Some(Bytes::new()));
    drop(substream);
    s.finish_after_fin_ack(channel).await;
}

/// Row L-24: data before invalid framing is read, only that substream ends, and what follows is not
/// buffered.
#[tokio::test(start_paused = true)]
async fn a_stop_discards_what_a_channel_that_has_ended_left_unread() {
    for ends_by_reset in [false, true] {
        let mut s = scripted(config(), MemoryConfig::default());
        let (substream, channel) = s.open().await;
        s.peer.data(channel, b"unread");
        if ends_by_reset {
            s.peer.send_raw(channel, &[2, 0xff, 0xff]);
            s.peer
                .expect(channel, Message::reset(code::PROTOCOL_VIOLATION))
                .await;
        } else {
            s.peer.close(channel);
            s.peer.run_for(Duration::from_millis(1)).await;
        }
        assert_ne!(s.us.stats().unread, 0);
        let (mut reader, writer) = substream.into_split();
        reader.stop(5);
        assert_eq!(s.us.stats().unread, 0, "nobody reads it any more");
        assert!(reader.read(&mut [0]).await.is_err());
        drop((reader, writer));
        s.finish().await;
    }
}

#[tokio::test(start_paused = true)]
async fn l24_bad_framing_resets_only_its_substream_after_the_frames_before_it() {
    let overlong: &[u8] = &[0x80, 0x80, 0x80, 0x80, 1];
    let non_minimal: &[u8] = &[0x85, 0x00, 1, 2, 3];
    let oversize: &[u8] = &[0x8d, 0x80, 0x01, 1, 2, 3];
    let not_protobuf: &[u8] = &[2, 0xff, 0xff];
    for bad in [overlong, non_minimal, oversize, not_protobuf] {
        let mut s = scripted(config(), MemoryConfig::default());
        let (mut good, good_channel) = s.open().await;
        let (mut substream, channel) = s.open().await;
        let mut bytes = Message::data(Bytes::from_static(b"before"))
            .encode()
            .to_vec();
        bytes.extend_from_slice(bad);
        s.peer.send_raw(channel, &bytes);
        for _ in 0..10 {
            s.peer.send_raw(channel, &[0; 1000]);
        }
        s.peer
            .expect(channel, Message::reset(code::PROTOCOL_VIOLATION))
            .await;
        s.peer.expect_closed(channel).await;
        let mut all = Vec::new();
        let error = substream.read_to_end(&mut all).await.unwrap_err();
        assert_eq!(all, b"before", "{bad:?}");
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        assert_eq!(s.us.stats().unread, 0, "nothing is kept of what follows");
        good.write_all(b"alive").await.unwrap();
        s.peer.expect_data(good_channel, b"alive").await;
        drop(good);
        s.peer.flag(good_channel, Flag::Fin);
        s.finish().await;
    }
}

/// Row L-9: flush is not a formality.
#[tokio::test(start_paused = true)]
async fn data_behind_fin_is_dropped() {
    let mut s = scripted(config(), MemoryConfig::default());
    let (mut substream, channel) = s.open().await;
    s.peer.data(channel, b"before");
    s.peer.flag(channel, Flag::Fin);
    for _ in 0..1000 {
        s.peer.data(channel, &[9; 1000]);
    }
    let mut all = Vec::new();
    within("the end", substream.read_to_end(&mut all))
        .await
        .unwrap();
    assert_eq!(all, b"before");
    s.peer.run_for(Duration::from_secs(1)).await;
    assert_eq!(s.us.stats().unread, 0);
    drop(substream);
    s.finish_after_fin_ack(channel).await;
}

#[tokio::test(start_paused = true)]
async fn l9_flush_waits_until_the_carrier_has_taken_all() {
    let mut s = scripted(config(), MemoryConfig::default());
    let (mut substream, channel) = s.open().await;
    s.gate.shut();
    substream.write_all(b"hello").await.unwrap();
    let flushing = tokio::spawn(async move {
        substream.flush().await.unwrap();
        substream
    });
    s.peer.run_for(Duration::from_secs(60)).await;
    assert!(!flushing.is_finished(), "the carrier has taken nothing");
    s.gate.open();
    let substream = within("flush", flushing).await.unwrap();
    assert_eq!(substream.buffered(), 0);
    s.peer.expect_data(channel, b"hello").await;
    drop(substream);
    s.peer.flag(channel, Flag::Fin);
    s.finish().await;
}

/// Row R-3: half-close, followed by a response of any length.
#[tokio::test(start_paused = true)]
async fn r3_a_substream_is_read_to_its_end_after_it_was_shut_for_writing() {
    let pair = Pair::new();
    let (mut here, mut there) = pair.substream().await;
    here.write_all(b"request").await.unwrap();
    assert_eq!(here.finish().await.unwrap(), Finished::Acked);
    let mut request = Vec::new();
    there.read_to_end(&mut request).await.unwrap();
    assert_eq!(request, b"request");
    let answering = tokio::spawn(async move {
        there.write_all(&pattern(3_000_000)).await.unwrap();
        there.finish().await.unwrap()
    });
    let mut response = Vec::new();
    here.read_to_end(&mut response).await.unwrap();
    assert!(response == pattern(3_000_000));
    assert_eq!(answering.await.unwrap(), Finished::Acked);
    pair.finish().await;
}

/// Row R-9: for every order of write, flush and shutdown, all bytes precede FIN.
#[tokio::test(start_paused = true)]
async fn r9_any_interleaving_delivers_all_bytes_before_fin() {
    for seed in seeds(60) {
        println!("seed {seed}");
        let mut rng = StdRng::seed_from_u64(seed);
        let mut config = Config::clone(&config());
        config.send_buffer = rng.random_range(1..20_000);
        config.receive_window = rng.random_range(1024..100_000);
        let pair = Pair::with(config.clone(), config, MemoryConfig::hostile(seed));
        let (mut here, mut there) = pair.substream().await;
        let reading = tokio::spawn(async move {
            let mut all = Vec::new();
            there.read_to_end(&mut all).await.map(|_| all)
        });
        let mut written = Vec::new();
        let mut next = 0_u8;
        let mut cx = Context::from_waker(Waker::noop());
        for _ in 0..rng.random_range(0..40) {
            match rng.random_range(0..5) {
                0 | 1 => {
                    let data: Vec<u8> = (0..rng.random_range(1..9000))
                        .map(|_| {
                            next = next.wrapping_add(1);
                            next
                        })
                        .collect();
                    let length = if rng.random_bool(0.5) {
                        here.write_all(&data).await.unwrap();
                        data.len()
                    } else {
                        match AsyncWrite::poll_write(Pin::new(&mut here), &mut cx, &data) {
                            Poll::Ready(length) => length.unwrap(),
                            Poll::Pending => 0,
                        }
                    };
                    next = next.wrapping_sub((data.len() - length) as u8);
                    written.extend_from_slice(&data[..length]);
                }
                2 => here.flush().await.unwrap(),
                3 => drop(AsyncWrite::poll_flush(Pin::new(&mut here), &mut cx)),
                _ => settle().await,
            }
        }
        if rng.random_bool(0.5) {
            assert_eq!(here.finish().await.unwrap(), Finished::Acked, "seed {seed}");
        }
        drop(here);
        let read = within("the reader", reading).await.unwrap().unwrap();
        assert!(
            read == written,
            "seed {seed}: {} of {} bytes",
            read.len(),
            written.len()
        );
        pair.finish().await;
    }
}

/// Row O-13: dropping one half keeps the other.
#[tokio::test(start_paused = true)]
async fn halves_live_without_each_other() {
    let pair = Pair::new();
    let (here, there) = pair.substream().await;
    let (read, mut write) = here.into_split();
    let (mut there_read, there_write) = there.into_split();
    drop(read);
    drop(there_write);
    write.write_all(&pattern(50_000)).await.unwrap();
    assert_eq!(write.finish().await.unwrap(), Finished::Acked);
    let mut all = Vec::new();
    there_read.read_to_end(&mut all).await.unwrap();
    assert!(all == pattern(50_000));
    pair.finish().await;
}

#[tokio::test(start_paused = true)]
async fn empty_reads_and_writes_do_nothing() {
    let pair = Pair::new();
    let (mut here, there) = pair.substream().await;
    assert_eq!(here.write(&[]).await.unwrap(), 0);
    assert_eq!(here.read(&mut []).await.unwrap(), 0);
    here.write_chunk(Bytes::new()).await.unwrap();
    here.flush().await.unwrap();
    drop((here, there));
    pair.finish().await;
}

/// A stream that is always ready lets other tasks run.
#[tokio::test(start_paused = true)]
async fn reads_and_writes_are_cooperative() {
    let pair = Pair::new();
    let (here, there) = pair.substream().await;
    let (mut read, mut write) = here.into_split();
    let echo = tokio::spawn(async move {
        let (mut read, mut write) = there.into_split();
        tokio::io::copy(&mut read, &mut write).await.unwrap();
    });
    write.write_all(&pattern(60_000)).await.unwrap();
    let mut all = vec![0; 60_000];
    read.read_exact(&mut all).await.unwrap();
    let mut yields = 0;
    poll_fn(|cx| {
        for _ in 0..10_000 {
            match AsyncWrite::poll_write(Pin::new(&mut write), cx, b"x") {
                Poll::Ready(result) => drop(result.unwrap()),
                Poll::Pending => {
                    yields += 1;
                    break;
                }
            }
        }
        Poll::Ready(())
    })
    .await;
    assert_eq!(yields, 1, "ten thousand writes in one poll");
    drop((read, write));
    echo.abort();
    let _ = echo.await;
    pair.finish().await;
}

/// Row L-20, for writes: whole frames are passed to the carrier without a copy, in order.
#[tokio::test(start_paused = true)]
async fn chunks_reach_the_carrier_where_they_lie() {
    let pair = Pair::new();
    let (mut here, mut there) = pair.substream().await;
    let chunks = [1, 100_000, 20, 16_384, 300_000].map(|length| Bytes::from(pattern(length)));
    let writing = {
        let chunks = chunks.clone();
        tokio::spawn(async move {
            for chunk in chunks {
                here.write_chunk(chunk).await?;
            }
            here.finish().await.map_err(std::io::Error::from)
        })
    };
    let mut all = Vec::new();
    within("the reader", there.read_to_end(&mut all))
        .await
        .unwrap();
    assert!(all == chunks.concat(), "{} bytes", all.len());
    drop(there);
    within("the writer", writing).await.unwrap().unwrap();
    let frames = pair.sent[0].frames();
    for chunk in &chunks {
        let in_place: usize = frames.iter().map(|frame| frame.bytes_in(chunk)).sum();
        // Partial frames at either end are copied.
        let copied = chunk.len() - in_place;
        assert!(copied <= 2 * 16_384, "{copied} of {} copied", chunk.len());
    }
    pair.finish().await;
}

/// Row S-14: frames and messages are counted apart. Over this carrier each sent frame is a message,
/// and several frames of the peer can share one.
#[tokio::test(start_paused = true)]
async fn s14_messages_are_counted_beside_frames() {
    let mut s = scripted(config(), MemoryConfig::default());
    let (mut substream, channel) = s.open().await;
    let frame = Message::data(Bytes::from_static(b"x")).encode();
    s.peer.send_raw(channel, &frame.repeat(5));
    s.peer.send_raw(channel, &frame);
    substream.read_exact(&mut [0; 6]).await.unwrap();
    substream.write_all(b"answer").await.unwrap();
    s.peer.expect_data(channel, b"answer").await;
    let stats = s.us.stats();
    assert_eq!((stats.frames_received, stats.messages_received), (6, 2));
    assert_eq!(stats.messages_sent, s.sent.frames().len() as u64);
    assert_eq!(stats.messages_sent, stats.frames_sent);
    drop(substream);
    s.peer.flag(channel, Flag::Fin);
    s.finish().await;
}

#[tokio::test(start_paused = true)]
async fn a_stream_is_read_as_a_whole_up_to_a_limit() {
    let pair = Pair::new();
    for length in [0, 1, 5000, 100_000] {
        let (mut a, mut b) = pair.substream().await;
        let sending = tokio::spawn(async move {
            a.write_all(&pattern(length)).await?;
            Ok::<_, std::io::Error>(a.finish().await?)
        });
        let all = within("the end", b.read_all(100_000)).await.unwrap();
        assert!(all == pattern(length), "{} of {length}", all.len());
        drop(b);
        sending.await.unwrap().unwrap();
    }
    let (mut a, mut b) = pair.substream().await;
    a.write_all(&pattern(20_000)).await.unwrap();
    let error = within("an error", b.read_all(10_000)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidData);
    // The writer learns of it, though it has not ended its stream.
    let outcome = within("the stop", a.stopped()).await;
    assert_eq!(outcome, CloseOutcome::Stopped(Some(code::RESOURCE_LIMIT)));
    drop((a, b));
    pair.finish().await;
}
