//! Messages as a unit on a substream. Rows S-2, S-3, S-8.

#![allow(missing_docs)]

use std::cell::Cell;
use std::future::poll_fn;
use std::io::{self, ErrorKind};
use std::pin::Pin;
use std::task::{Context, Waker};
use std::time::Duration;

use anabranch::delimited::{MessageReadError, MessageReader, MessageWriteError, Messages};
use anabranch::message::{Flag, Message};
use anabranch::substream::code;
use anabranch::{CloseOutcome, Finished};
use anabranch_testkit::memory::MemoryConfig;
use bytes::Bytes;
use futures_util::{SinkExt, StreamExt, stream};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::io::AsyncWriteExt;

mod allocator;
mod common;
use allocator::Watched;
use common::seeds::seeds;
use common::{Pair, config, pattern, scripted, settle, within};

const KIB: usize = 1024;
const MAX: usize = 1024 * KIB;

thread_local! {
    // Of the thread: tests run in parallel, each on one. Constant and without a destructor, so that
    // its first use does not allocate.
    static LARGEST: Cell<usize> = const { Cell::new(0) };
}

#[global_allocator]
static ALLOCATOR: Watched = Watched {
    allocated: |bytes| LARGEST.with(|largest| largest.set(largest.get().max(bytes))),
    freed: |_| {},
};

fn encode(messages: &[Vec<u8>]) -> Vec<u8> {
    let mut out = Vec::new();
    for message in messages {
        let mut prefix = unsigned_varint::encode::usize_buffer();
        out.extend_from_slice(unsigned_varint::encode::usize(message.len(), &mut prefix));
        out.extend_from_slice(message);
    }
    out
}

/// Lengths around what changes how a message is written, cut and counted.
fn lengths(rng: &mut StdRng) -> Vec<Vec<u8>> {
    let edges = [
        0,
        1,
        127,
        128,
        4096,
        4097,
        16 * KIB - 1,
        16 * KIB,
        16 * KIB + 1,
        200 * KIB,
    ];
    (0..rng.random_range(1..20))
        .map(|_| {
            let edge = edges[rng.random_range(0..edges.len())];
            pattern(edge.saturating_sub(rng.random_range(0..3)))
        })
        .collect()
}

async fn read_all(mut reader: MessageReader) -> Vec<Vec<u8>> {
    let mut messages = Vec::new();
    while let Some(message) = within("a message", reader.read()).await.unwrap() {
        messages.push(message.to_vec());
    }
    messages
}

#[tokio::test(start_paused = true)]
async fn messages_of_every_length_arrive_as_they_were_written() {
    for seed in seeds(20) {
        let mut rng = StdRng::seed_from_u64(seed);
        let pair = Pair::new();
        let (a, b) = pair.substream().await;
        let wanted = lengths(&mut rng);
        let (reader_a, mut writer) = Messages::new(a, MAX).into_split();
        let (reader, writer_b) = Messages::new(b, MAX).into_split();
        let reading = tokio::spawn(read_all(reader));
        for message in &wanted {
            within("room", writer.write(message.clone().into()))
                .await
                .unwrap();
        }
        assert_eq!(
            within("FIN_ACK", writer.finish()).await,
            Ok(Finished::Acked)
        );
        assert!(reading.await.unwrap() == wanted, "seed {seed}");
        drop((reader_a, writer_b, writer));
        pair.finish().await;
    }
}

/// Row S-3: whatever the frames, whatever the credit.
#[tokio::test(start_paused = true)]
async fn messages_cut_and_joined_in_any_way_keep_their_boundaries() {
    for seed in seeds(50) {
        let mut rng = StdRng::seed_from_u64(seed);
        let wanted = lengths(&mut rng);
        let bytes = encode(&wanted);
        let pair = Pair::new();
        let (mut a, b) = pair.substream().await;
        let (reader, _writer) = Messages::new(b, MAX).into_split();
        let reading = tokio::spawn(read_all(reader));
        let longest = [1, 3, 100, 5000, 70_000][rng.random_range(0..5)];
        let longest = if bytes.len() > 20 * KIB {
            longest.max(100)
        } else {
            longest
        };
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let (now, later) = rest.split_at(rng.random_range(1..=longest.min(rest.len())));
            within("room", a.write_all(now)).await.unwrap();
            a.flush().await.unwrap();
            rest = later;
        }
        within("FIN_ACK", a.finish()).await.unwrap();
        assert!(reading.await.unwrap() == wanted, "seed {seed}");
        drop((a, _writer));
        pair.finish().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_message_within_a_frame_is_read_without_a_copy() {
    let mut s = scripted(config(), MemoryConfig::default());
    let (substream, channel) = s.open().await;
    let (mut reader, writer) = Messages::new(substream, MAX).into_split();
    s.peer
        .data(channel, &encode(&[pattern(3000), pattern(100)]));
    for length in [3000, 100] {
        let message = within("a message", reader.read()).await.unwrap().unwrap();
        assert!(message == pattern(length) && s.sent.was_read(&message));
    }
    s.peer.flag(channel, Flag::Fin);
    assert_eq!(within("the end", reader.read()).await.unwrap(), None);
    drop((reader, writer));
    s.finish_after_fin_ack(channel).await;
}

/// Row S-8.
#[tokio::test(start_paused = true)]
async fn messages_written_together_share_a_frame_and_none_waits_for_more() {
    let mut s = scripted(config(), MemoryConfig::default());
    let (substream, channel) = s.open().await;
    let mut messages = Messages::new(substream, MAX);
    let wanted: Vec<_> = (0..50).map(|_| pattern(100)).collect();
    for message in &wanted {
        messages.write(message.clone().into()).await.unwrap();
    }
    // Of 50 messages with their lengths, in frames of up to 4 KiB.
    let (mut payload, mut frames) = (Vec::new(), 0);
    while payload.len() < 50 * 101 {
        payload.extend_from_slice(&s.peer.next(channel).await.payload);
        frames += 1;
    }
    assert!(payload == encode(&wanted) && frames == 2, "{frames} frames");
    // Without a flush.
    messages.write(Bytes::from_static(b"alone")).await.unwrap();
    assert_eq!(s.peer.next(channel).await.payload, &b"\x05alone"[..]);
    s.peer.flag(channel, Flag::Fin);
    assert_eq!(within("the end", messages.read()).await.unwrap(), None);
    drop(messages);
    s.finish_after_fin_ack(channel).await;
}

/// The peer announces, and is asked to send no more; its neighbour does not notice.
#[tokio::test(start_paused = true)]
async fn a_bad_length_ends_the_messages_after_those_before_it() {
    const TEN: [u8; 10] = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01];
    const ELEVEN: [u8; 10] = [0x80; 10];
    const TOO_GREAT: [u8; 10] = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02];
    let cases: [(&[u8], Option<u64>); 6] = [
        (&[0x81, 0x80, 0x40], Some(MAX as u64 + 1)),
        (&TEN, Some(u64::MAX)),
        (&TOO_GREAT, None),
        (&ELEVEN, None),
        (&[0x80, 0x00], None),
        (&[0x85, 0x80, 0x00], None),
    ];
    for (prefix, announced) in cases {
        let mut s = scripted(config(), MemoryConfig::default());
        let (substream, channel) = s.open().await;
        let (mut neighbour, other) = s.open().await;
        let (mut reader, writer) = Messages::new(substream, MAX).into_split();
        s.peer.data(channel, b"\x02ok");
        // Byte by byte: what is wrong is seen as soon as it can be.
        for byte in prefix {
            s.peer.data(channel, &[*byte]);
        }
        let first = within("a message", reader.read()).await.unwrap().unwrap();
        assert_eq!(first, &b"ok"[..]);
        let error = within("an error", reader.read()).await.unwrap_err();
        match (&error, announced) {
            (MessageReadError::TooLong { length, max: MAX }, Some(wanted)) => {
                assert_eq!(*length, wanted);
            }
            (MessageReadError::Length, None) => {}
            _ => panic!("{error:?} for {prefix:02x?}"),
        }
        assert_eq!(io::Error::from(error).kind(), ErrorKind::InvalidData);
        assert_eq!(reader.read().await.unwrap(), None);
        let mut stop = Message::flag(Flag::StopSending);
        stop.error_code = Some(code::PROTOCOL_VIOLATION);
        s.peer.expect(channel, stop).await;
        s.peer.flag(channel, Flag::Fin);
        neighbour.write_all(b"unharmed").await.unwrap();
        s.peer.expect_data(other, b"unharmed").await;
        s.peer.flag(other, Flag::Fin);
        drop((reader, writer, neighbour));
        for channel in [channel, other] {
            s.peer.expect_flag(channel, Flag::FinAck).await;
            s.peer.expect_flag(channel, Flag::Fin).await;
            s.peer.flag(channel, Flag::FinAck);
            s.peer.expect_closed(channel).await;
        }
        s.finish().await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_end_within_a_message_is_an_error() {
    for part in [&b"\x80"[..], b"\x05", b"\x05hell"] {
        let mut s = scripted(config(), MemoryConfig::default());
        let (substream, channel) = s.open().await;
        let (mut reader, writer) = Messages::new(substream, MAX).into_split();
        s.peer.data(channel, part);
        s.peer.flag(channel, Flag::Fin);
        let error = within("an error", reader.read()).await.unwrap_err();
        assert!(matches!(error, MessageReadError::Truncated), "{error:?}");
        assert_eq!(io::Error::from(error).kind(), ErrorKind::UnexpectedEof);
        assert_eq!(reader.read().await.unwrap(), None);
        drop((reader, writer));
        s.finish_after_fin_ack(channel).await;
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_is_allocated_on_the_word_of_the_peer() {
    let mut s = scripted(config(), MemoryConfig::default());
    let (substream, channel) = s.open().await;
    let (mut reader, writer) = Messages::new(substream, 1 << 30).into_split();
    // 512 MiB announced, 600 bytes sent.
    s.peer.data(
        channel,
        &[&[0x80, 0x80, 0x80, 0x80, 0x02][..], &[0; 600]].concat(),
    );
    let mut reading = Box::pin(reader.read());
    LARGEST.set(0);
    s.peer
        .drive_while(async {
            tokio::select! {
                message = &mut reading => panic!("{message:?}"),
                () = tokio::time::sleep(Duration::from_secs(1)) => {}
            }
        })
        .await;
    assert!(LARGEST.get() < 64 * KIB, "{} bytes at once", LARGEST.get());
    drop(reading);
    s.peer.flag(channel, Flag::Fin);
    assert!(within("an error", reader.read()).await.is_err());
    drop((reader, writer));
    s.finish_after_fin_ack(channel).await;
}

#[tokio::test(start_paused = true)]
async fn a_message_above_the_limit_is_not_begun_and_others_follow() {
    let pair = Pair::new();
    let (a, b) = pair.substream().await;
    let mut a = Messages::new(a, 10);
    let error = a
        .write(Bytes::from_static(b"eleven byte"))
        .await
        .unwrap_err();
    assert!(matches!(
        error,
        MessageWriteError::TooLong {
            length: 11,
            max: 10
        }
    ));
    assert_eq!(io::Error::from(error).kind(), ErrorKind::InvalidInput);
    a.write(Bytes::from_static(b"ten  bytes")).await.unwrap();
    a.finish().await.unwrap();
    let (reader, writer) = Messages::new(b, 10).into_split();
    assert_eq!(read_all(reader).await, [b"ten  bytes".to_vec()]);
    drop((a, writer));
    pair.finish().await;
}

/// A part must not look like the whole: no FIN follows it.
#[tokio::test(start_paused = true)]
async fn a_writer_that_is_dropped_within_a_message_resets_the_substream() {
    let pair = Pair::new();
    let (a, b) = pair.substream().await;
    let (reader_a, mut writer) = Messages::new(a, 100 * MAX).into_split();
    let (mut reader, writer_b) = Messages::new(b, 100 * MAX).into_split();
    // More than all windows take, and nobody reads.
    let mut writing = Box::pin(writer.write(pattern(64 * MAX).into()));
    let mut cx = Context::from_waker(Waker::noop());
    assert!(writing.as_mut().poll(&mut cx).is_pending());
    drop(writing);
    settle().await;
    drop(writer);
    let error = within("the reset", reader.read()).await.unwrap_err();
    assert!(matches!(error, MessageReadError::Substream(_)), "{error:?}");
    assert_eq!(io::Error::from(error).kind(), ErrorKind::ConnectionReset);
    let outcome = writer_b.half().close_outcome();
    assert_eq!(outcome, Some(CloseOutcome::Reset(Some(code::ABANDONED))));
    drop((reader_a, reader, writer_b));
    pair.finish().await;
}

/// A close delivers what was written. A message that waits for room then is not a part of it, and
/// must not take the rest with it.
#[tokio::test(start_paused = true)]
async fn a_writer_that_waits_while_the_connection_closes_loses_only_its_own_message() {
    let pair = Pair::new();
    let (a, b) = pair.substream().await;
    let (reader_a, mut writer) = Messages::new(a, MAX).into_split();
    let (mut reader, writer_b) = Messages::new(b, MAX).into_split();
    let message = Bytes::from(pattern(10 * KIB));
    let mut written = 0;
    let mut cx = Context::from_waker(Waker::noop());
    loop {
        let mut writing = Box::pin(writer.write(message.clone()));
        if writing.as_mut().poll(&mut cx).is_pending() {
            break;
        }
        written += 1;
    }
    let closing = tokio::spawn({
        let a = pair.a.clone();
        async move { a.close().await }
    });
    settle().await;
    drop(writer);
    let mut read = 0;
    let error = loop {
        match within("a message", reader.read()).await {
            Ok(Some(message)) => assert_eq!(message.len(), 10 * KIB),
            Ok(None) => panic!("the stream was not finished"),
            Err(error) => break error,
        }
        read += 1;
    };
    assert!(
        written > 1 && read == written,
        "{read} of {written}: {error}"
    );
    drop((reader_a, reader, writer_b));
    within("the close", closing).await.unwrap();
    pair.finish().await;
}

/// The close that a dropped `finish` leaves behind goes on, whatever is tried afterwards.
#[tokio::test(start_paused = true)]
async fn a_message_after_the_end_fails_and_leaves_the_end_as_it_is() {
    let pair = Pair::new();
    let (a, b) = pair.substream().await;
    let (reader_a, mut writer) = Messages::new(a, MAX).into_split();
    let (reader, writer_b) = Messages::new(b, MAX).into_split();
    writer.write(pattern(50 * KIB).into()).await.unwrap();
    let mut cx = Context::from_waker(Waker::noop());
    assert!(
        Box::pin(writer.finish())
            .as_mut()
            .poll(&mut cx)
            .is_pending()
    );
    let error = writer.write(Bytes::from_static(b"late")).await.unwrap_err();
    assert_eq!(io::Error::from(error).kind(), ErrorKind::BrokenPipe);
    drop(writer);
    assert!(read_all(reader).await == [pattern(50 * KIB)]);
    drop((reader_a, writer_b));
    pair.finish().await;
}

#[tokio::test(start_paused = true)]
async fn a_dropped_write_goes_on_with_the_next() {
    let pair = Pair::new();
    let (a, b) = pair.substream().await;
    let (reader_a, mut writer) = Messages::new(a, 4 * MAX).into_split();
    let (reader, writer_b) = Messages::new(b, 4 * MAX).into_split();
    let mut cx = Context::from_waker(Waker::noop());
    let long = pattern(2 * MAX);
    // Taken as a whole, though the buffer has room for a part; the second waits for room.
    assert!(
        Box::pin(writer.write(long.clone().into()))
            .as_mut()
            .poll(&mut cx)
            .is_pending()
    );
    let never = Bytes::from_static(b"not taken");
    assert!(
        Box::pin(writer.write(never))
            .as_mut()
            .poll(&mut cx)
            .is_pending()
    );
    let reading = tokio::spawn(read_all(reader));
    within("room", writer.write(Bytes::from_static(b"last")))
        .await
        .unwrap();
    within("FIN_ACK", writer.finish()).await.unwrap();
    assert!(reading.await.unwrap() == [long, b"last".to_vec()]);
    drop((reader_a, writer, writer_b));
    pair.finish().await;
}

#[tokio::test(start_paused = true)]
async fn generic_code_takes_it_as_a_stream_and_a_sink() {
    let pair = Pair::new();
    let (a, b) = pair.substream().await;
    let (mut sink, stream) = Messages::new(a, MAX).split();
    let (echo_sink, echo_stream) = Messages::new(b, MAX).split();
    let echo = tokio::spawn(async move {
        let messages = echo_stream.map(|message| message.map_err(io::Error::from));
        messages
            .forward(echo_sink.sink_map_err(io::Error::from))
            .await
    });
    let wanted: Vec<_> = (0..100).map(|i| pattern(i * 300)).collect();
    let sent = wanted.clone();
    let sending = tokio::spawn(async move {
        sink.send_all(&mut stream::iter(sent).map(|message| Ok(message.into())))
            .await?;
        sink.close().await
    });
    let received: Vec<_> = within("the echo", stream.collect()).await;
    let received: Vec<_> = received.into_iter().map(|m| m.unwrap().to_vec()).collect();
    assert!(received == wanted);
    sending.await.unwrap().unwrap();
    echo.await.unwrap().unwrap();
    pair.finish().await;
}

/// A reader that stops takes no more than the window from the writer.
#[tokio::test(start_paused = true)]
async fn a_reader_that_reads_nothing_holds_the_writer_up() {
    let pair = Pair::new();
    let (a, b) = pair.substream().await;
    let (reader_a, mut writer) = Messages::new(a, MAX).into_split();
    let (mut reader, writer_b) = Messages::new(b, MAX).into_split();
    let message = Bytes::from(pattern(50 * KIB));
    let mut written = 0;
    while tokio::time::timeout(Duration::from_secs(1), writer.write(message.clone()))
        .await
        .is_ok()
    {
        written += message.len();
    }
    assert!((50 * KIB..2 * MAX).contains(&written), "{written} bytes");
    // The one that was cut short goes on.
    let rest = tokio::spawn(async move {
        let mut count = 0;
        while let Some(message) = reader.read().await.unwrap() {
            assert_eq!(message.len(), 50 * KIB);
            count += 1;
        }
        count
    });
    within("FIN_ACK", writer.finish()).await.unwrap();
    assert_eq!(rest.await.unwrap(), written / (50 * KIB) + 1);
    drop((reader_a, writer, writer_b));
    pair.finish().await;
}

#[tokio::test(start_paused = true)]
#[should_panic = "before `poll_ready`"]
async fn a_second_message_before_poll_ready_is_refused_loudly() {
    let pair = Pair::new();
    let (a, _b) = pair.substream().await;
    let mut messages = Messages::new(a, MAX);
    let sink = &mut Pin::new(&mut messages);
    poll_fn(|cx| sink.poll_ready_unpin(cx)).await.unwrap();
    sink.start_send_unpin(Bytes::from_static(b"one")).unwrap();
    let _ = sink.start_send_unpin(Bytes::from_static(b"two"));
}
