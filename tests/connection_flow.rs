//! Credit, ceilings, limits and fairness of the substreams of a connection.

#![allow(missing_docs)]

mod common;

use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

use anabranch::CeilingPolicy;
use anabranch::Finished;
use anabranch::carrier::Class;
use anabranch::message::{Flag, Message};
use anabranch::substream::code;
use anabranch_testkit::memory::MemoryConfig;
use bytes::Bytes;
use common::{Pair, config, pattern, scripted, settle, within};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, sleep};

const MIB: usize = 1024 * 1024;

/// docs/wire.md 3, docs/interop.md: before the first frame of the peer, 12 KiB and no more.
#[tokio::test(start_paused = true)]
async fn a_silent_peer_gets_12_kib_and_after_the_open_timeout_the_rest() {
    let mut s = scripted(config(), MemoryConfig::default());
    let (mut substream, channel) = s.open().await;
    let before = Instant::now();
    let writing = tokio::spawn(async move {
        substream.write_all(&pattern(60_000)).await.unwrap();
        substream
    });
    s.peer.expect_data(channel, &pattern(12 * 1024)).await;
    s.peer
        .expect_quiet(channel, Duration::from_millis(4900))
        .await;
    // A peer without credit may have nothing to send: it is not waited for for ever.
    let first = s.peer.next(channel).await;
    assert_eq!(before.elapsed().as_secs(), 5);
    s.peer
        .expect_data(channel, &pattern(60_000)[12 * 1024 + first.payload.len()..])
        .await;
    let substream = within("the writer", writing).await.unwrap();
    drop(substream);
    s.peer.flag(channel, Flag::Fin);
    s.finish().await;
}

/// The connection counts the queued bytes of all substreams, and none are left however these end.
#[tokio::test(start_paused = true)]
async fn what_writers_have_queued_is_counted_until_it_is_sent_or_thrown_away() {
    let mut s = scripted(config(), MemoryConfig::default());
    let mut substreams = Vec::new();
    for _ in 0..3 {
        let (mut substream, channel) = s.open().await;
        substream.write_all(&pattern(20_000)).await.unwrap();
        // As much as is sent before the first frame of the peer.
        s.peer.expect_data(channel, &pattern(12 * 1024)).await;
        substreams.push((substream, channel));
    }
    let waits = 20_000 - 12 * 1024;
    assert_eq!(s.us.stats().queued, 3 * waits);
    let (sent, channel) = substreams.remove(0);
    s.peer.credit(channel, 1 << 20);
    let rest = &pattern(20_000)[12 * 1024..];
    s.peer.expect_data(channel, rest).await;
    assert_eq!(s.us.stats().queued, 2 * waits);
    sent.reset(9);
    let (reset, _) = substreams.remove(0);
    reset.reset(7);
    assert_eq!(s.us.stats().queued, waits);
    let (stopped, channel) = substreams.remove(0);
    s.peer.flag(channel, Flag::StopSending);
    settle().await;
    assert_eq!(s.us.stats().queued, 0);
    stopped.reset(8);
    drop((sent, reset, stopped));
    s.finish().await;
}

/// docs/wire.md 3: the first data has credit; a peer that answers without credit does not support
/// it.
#[tokio::test(start_paused = true)]
async fn a_peer_that_knows_no_credit_is_not_limited() {
    let mut s = scripted(config(), MemoryConfig::default());
    let (mut substream, channel) = s.open().await;
    substream.write_all(b"hello").await.unwrap();
    let first = s.peer.next(channel).await;
    assert_eq!(
        (&first.payload[..], first.max_data),
        (&b"hello"[..], Some(64 * 1024))
    );
    s.peer.data(channel, b"hi");
    let writing = tokio::spawn(async move {
        substream.write_all(&pattern(3 * MIB)).await.unwrap();
        substream
    });
    s.peer.expect_data(channel, &pattern(3 * MIB)).await;
    let mut substream = within("the writer", writing).await.unwrap();
    // A frame with neither payload nor flag is the end of the stream to rust-libp2p.
    let mut block = vec![0; 16_000];
    for _ in 0..100 {
        s.peer.data(channel, &pattern(16_000));
        within("data", s.peer.drive_while(substream.read_exact(&mut block)))
            .await
            .unwrap();
    }
    let alone = s
        .sent
        .frames()
        .iter()
        .any(|frame| frame.message.payload.is_empty() && frame.message.flag.is_none());
    assert!(!alone, "credit alone to a peer that has not shown it");
    drop(substream);
    s.peer.flag(channel, Flag::Fin);
    s.finish().await;
}

/// docs/wire.md 3: a peer with credit stops the writer at the window, and then lets it continue.
#[tokio::test(start_paused = true)]
async fn a_writer_stops_at_the_window_and_goes_on_with_the_next_grant() {
    let mut s = scripted(config(), MemoryConfig::default());
    let (mut substream, channel) = s.open().await;
    s.peer.credit(channel, 100_000);
    let writing = tokio::spawn(async move {
        substream.write_all(&pattern(300_000)).await.unwrap();
        substream.finish().await.unwrap()
    });
    s.peer
        .expect_data(channel, &pattern(300_000)[..100_000])
        .await;
    s.peer.expect_quiet(channel, Duration::from_secs(60)).await;
    // A lower or equal grant has no effect.
    s.peer.credit(channel, 50_000);
    s.peer.credit(channel, 100_000);
    s.peer.expect_quiet(channel, Duration::from_secs(1)).await;
    s.peer.credit(channel, 1_000_000);
    s.peer
        .expect_data(channel, &pattern(300_000)[100_000..])
        .await;
    s.peer.expect_flag(channel, Flag::Fin).await;
    s.peer.flag(channel, Flag::FinAck);
    assert_eq!(writing.await.unwrap(), Finished::Acked);
    s.peer.flag(channel, Flag::Fin);
    s.finish().await;
}

/// Flags are never blocked by credit.
#[tokio::test(start_paused = true)]
async fn flags_pass_without_credit() {
    let mut s = scripted(config(), MemoryConfig::default());
    let (mut substream, channel) = s.open().await;
    s.peer.credit(channel, 0);
    s.peer.flag(channel, Flag::Fin);
    substream.read_to_end(&mut Vec::new()).await.unwrap();
    loop {
        let message = s.peer.next(channel).await;
        if message.flag == Some(Flag::FinAck) {
            break;
        }
        assert!(message.max_data.is_some());
    }
    let closing = tokio::spawn(async move { substream.finish().await });
    s.peer.expect_flag(channel, Flag::Fin).await;
    s.peer.flag(channel, Flag::FinAck);
    assert_eq!(closing.await.unwrap().unwrap(), Finished::Acked);
    s.finish().await;
}

/// docs/wire.md 3, row J-6.
#[tokio::test(start_paused = true)]
async fn more_than_granted_is_a_flow_control_reset() {
    let mut config = config();
    config.receive_window = 50_000;
    let mut s = scripted(config, MemoryConfig::default());
    let (mut substream, channel) = s.open().await;
    s.peer.data_with_credit(channel, b"x", MIB as u64);
    substream.read_exact(&mut [0]).await.unwrap();
    let credit = s.peer.next(channel).await;
    assert!(
        credit.max_data.is_some_and(|max| max <= 50_001),
        "{credit:?}"
    );
    for part in pattern(50_010).chunks(10_000) {
        s.peer.data(channel, part);
    }
    s.peer
        .expect(channel, Message::reset(code::FLOW_CONTROL))
        .await;
    s.peer.expect_closed(channel).await;
    let error = substream.read(&mut [0]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    assert_eq!(s.us.stats().unread, 0);
    s.finish().await;
}

/// A window smaller than a frame: credit can not be added to data that is sent in parts.
#[tokio::test(start_paused = true)]
async fn small_windows_neither_stall_nor_overrun() {
    for (window_a, window_b) in [(1024, 1024), (1024, 1 << 20), (1 << 20, 1024), (5000, 3000)] {
        let (mut a, mut b) = (config(), config());
        a.receive_window = window_a;
        b.receive_window = window_b;
        let pair = Pair::with(a, b, MemoryConfig::hostile(u64::from(window_a)));
        let (here, there) = pair.substream().await;
        let (mut here_read, mut here_write) = here.into_split();
        let (mut there_read, mut there_write) = there.into_split();
        let (mut up, mut down) = (Vec::new(), Vec::new());
        let data = pattern(200_000);
        let all = async {
            tokio::join!(
                async {
                    here_write.write_all(&data).await.unwrap();
                    here_write.finish().await.unwrap()
                },
                async {
                    there_write.write_all(&data).await.unwrap();
                    there_write.finish().await.unwrap()
                },
                here_read.read_to_end(&mut down),
                there_read.read_to_end(&mut up),
            )
        };
        let (ours, theirs, ..) = within("both directions", all).await;
        assert_eq!((ours, theirs), (Finished::Acked, Finished::Acked));
        assert!(up == data && down == data, "{window_a} {window_b}");
        assert_eq!(
            (pair.a.stats().violations, pair.b.stats().violations),
            (0, 0)
        );
        pair.finish().await;
    }
}

/// 200 windows of 1 MiB exceed the ceiling of the connection: none is granted that much, so that no
/// peer within its credit is reset, and a neighbour that is read makes progress.
#[tokio::test(start_paused = true)]
async fn many_readers_that_stall_share_the_ceiling_and_stop_no_other() {
    const EACH: usize = 1 << 20;
    let limits = config();
    let pair = Pair::new();
    let content = Arc::new(pattern(EACH));
    let mut stalled = Vec::new();
    let mut writers = Vec::new();
    for _ in 0..200 {
        let (mut here, there) = pair.substream().await;
        // The answer shows the peer that this side supports credit.
        let content = Arc::clone(&content);
        writers.push(tokio::spawn(async move {
            here.write_all(&content).await.unwrap();
            (here.finish().await.unwrap(), here)
        }));
        let mut there = there;
        let mut first = [0];
        within("a first byte", there.read_exact(&mut first))
            .await
            .unwrap();
        there.write_all(b"!").await.unwrap();
        stalled.push(there);
    }
    sleep(Duration::from_secs(1)).await;
    let unread = pair.b.stats().unread as usize;
    // Each has an initial window of at least 16 KiB: only one byte of each was read.
    assert!(unread > 200 * 16 * 1024, "{unread} is not much");
    let most = limits.connection_ceiling + 201 * 32 * 1024;
    // The overhead of a frame.
    assert!(unread < most + most / 100, "{unread}");

    let (mut here, mut there) = pair.substream().await;
    let busy = pattern(20 << 20);
    let (sent, got) = tokio::join!(
        async {
            here.write_all(&busy).await.unwrap();
            here.finish().await.unwrap()
        },
        async {
            there.write_all(b"!").await.unwrap();
            there.shutdown().await.unwrap();
            let mut got = Vec::new();
            within("the busy one", there.read_to_end(&mut got))
                .await
                .unwrap();
            got
        }
    );
    assert_eq!(sent, Finished::Acked);
    assert!(got == busy, "{} bytes came", got.len());
    drop((here, there));

    for (mut there, writer) in stalled.into_iter().zip(writers) {
        let mut got = vec![0];
        within("the rest", there.read_to_end(&mut got))
            .await
            .unwrap();
        assert!(got == *content, "{} bytes came", got.len());
        let (outcome, _here) = within("FIN_ACK", writer).await.unwrap();
        assert_eq!(outcome, Finished::Acked);
    }
    assert_eq!(pair.b.stats().violations, 0);
    pair.finish().await;
}

/// Substreams that are idle, after a little data or none, take nothing from a busy one but a part
/// of the ceiling: its window is as long as beside none. Most of 1 000 have only what every
/// substream may always be granted.
#[tokio::test(start_paused = true)]
async fn a_window_grows_beside_any_number_of_idle_substreams() {
    let mut limits = config();
    limits.max_inbound_substreams = 2_000;
    let pair = Pair::with(config(), limits, MemoryConfig::default());
    let little = pattern(50_000);
    let mut idle = Vec::new();
    for i in 0..1_000 {
        let (mut here, mut there) = pair.substream().await;
        // The answer shows the peer that this side supports credit.
        let length = if i % 2 == 0 { 1 } else { little.len() };
        let mut got = vec![0; length];
        let both = tokio::join!(
            here.write_all(&little[..length]),
            there.read_exact(&mut got)
        );
        assert!(both.0.is_ok() && both.1.is_ok());
        there.write_all(b"!").await.unwrap();
        here.read_exact(&mut [0]).await.unwrap();
        idle.push((here, there));
    }
    settle().await;

    let (mut here, mut there) = pair.substream().await;
    let mut credit = 0;
    let mut got = vec![0; 16 << 10];
    let block = pattern(got.len());
    for _ in 0..(4 << 20) / got.len() {
        let both = tokio::join!(here.write_all(&block), there.read_exact(&mut got));
        assert!(both.0.is_ok() && both.1.is_ok() && got == block);
        credit = credit.max(here.stats().credit.unwrap_or_default());
    }
    assert!(credit >= 900 << 10, "{credit}");
    drop((here, there, idle));
    pair.finish().await;
}

/// Row L-26: bytes are counted for peers without credit, and only the offender is reset.
#[tokio::test(start_paused = true)]
async fn l26_the_ceiling_resets_the_offender_only() {
    for frame in [1, 600, 16_000] {
        let mut config = config();
        config.receive_window = 20_000;
        config.substream_ceiling = 100_000;
        config.connection_ceiling = 1_000_000;
        let mut s = scripted(config, MemoryConfig::default());
        let (mut offender, channel) = s.open().await;
        let (mut other, other_channel) = s.open().await;
        s.peer.data(other_channel, b"innocent");
        let mut sent = 0;
        while !s.peer.is_closed(channel) && sent < 400_000 {
            for _ in 0..16_000_usize.div_ceil(frame).min(1000) {
                s.peer.data(channel, &pattern(frame));
                sent += frame;
            }
            s.peer.run_for(Duration::from_millis(1)).await;
            assert!(s.us.stats().unread <= 120_000, "{:?}", s.us.stats());
        }
        assert!(
            sent > 60_000 && sent < 140_000,
            "{frame}: reset after {sent} bytes"
        );
        s.peer
            .expect(channel, Message::reset(code::RESOURCE_LIMIT))
            .await;
        let error = offender.read(&mut [0]).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        let mut word = [0; 8];
        other.read_exact(&mut word).await.unwrap();
        assert_eq!(&word, b"innocent");
        drop((offender, other));
        s.peer.flag(other_channel, Flag::Fin);
        s.finish().await;
    }
}

#[tokio::test(start_paused = true)]
async fn substreams_beyond_the_limit_are_refused() {
    let mut config = config();
    config.max_inbound_substreams = 3;
    let mut s = scripted(config, MemoryConfig::default());
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(s.accept().await);
    }
    let refused = s.peer.open();
    s.peer
        .expect(refused, Message::reset(code::RESOURCE_LIMIT))
        .await;
    s.peer.expect_closed(refused).await;
    assert_eq!(s.us.stats().refused, 1);
    // A substream that ends makes room.
    let (substream, channel) = held.pop().unwrap();
    substream.reset(1);
    s.peer.expect_closed(channel).await;
    let next = s.accept().await;
    // Outbound substreams do not count.
    let own = s.open().await;
    held.extend([next, own]);
    for (substream, channel) in held {
        drop(substream);
        s.peer.flag(channel, Flag::Fin);
    }
    s.finish().await;
}

/// Row H-15: frames of 4 096 bytes to a peer without credit, the limit of go-libp2p; 16 384 to
/// others.
#[tokio::test(start_paused = true)]
async fn h15_frames_fit_what_the_peer_can_read() {
    let mut s = scripted(config(), MemoryConfig::default());
    let (mut substream, channel) = s.open().await;
    s.peer.data(channel, b"no credit");
    let writing = tokio::spawn(async move {
        substream.write_all(&pattern(500_000)).await.unwrap();
        substream
    });
    s.peer.expect_data(channel, &pattern(500_000)).await;
    let longest = s
        .sent
        .frames()
        .iter()
        .map(|frame| frame.length)
        .max()
        .unwrap();
    assert!((4000..=4096).contains(&longest), "{longest}");
    let mut substream = writing.await.unwrap();

    s.peer.credit(channel, 10_000_000);
    settle().await;
    let before = s.sent.frames().len();
    let writing = tokio::spawn(async move {
        substream.write_all(&pattern(500_000)).await.unwrap();
        substream
    });
    s.peer.expect_data(channel, &pattern(500_000)).await;
    let frames = &s.sent.frames()[before..];
    let longest = frames.iter().map(|frame| frame.length).max().unwrap();
    assert!((16_000..=16_384).contains(&longest), "{longest}");
    drop(writing.await.unwrap());
    s.peer.flag(channel, Flag::Fin);
    s.finish().await;
}

/// Rows L-25, H-6: with a budget of one small frame every substream gets a share of it.
#[tokio::test(start_paused = true)]
async fn l25_h6_all_substreams_progress_on_a_tiny_budget() {
    let mut memory = MemoryConfig::default();
    memory.budget = 1000;
    memory.delay = Duration::from_millis(5)..=Duration::from_millis(5);
    let pair = Pair::with(config(), config(), memory);
    let (mut readers, mut writers) = (Vec::new(), Vec::new());
    for _ in 0..50 {
        let (here, there) = pair.substream().await;
        writers.push(tokio::spawn(async move {
            let mut here = here;
            here.write_all(&pattern(60_000)).await.unwrap();
            here.finish().await.unwrap()
        }));
        readers.push(there);
    }
    // Far less than everything: a starved substream would have nothing by now.
    sleep(Duration::from_millis(2000)).await;
    let progress: Vec<usize> = readers.iter().map(anabranch::Substream::unread).collect();
    let (least, most) = (
        progress.iter().min().unwrap(),
        progress.iter().max().unwrap(),
    );
    assert!(*least > 0 && most - least <= 2 * 16_384, "{progress:?}");
    for mut reader in readers {
        let mut all = Vec::new();
        within("a reader", reader.read_to_end(&mut all))
            .await
            .unwrap();
        assert!(all == pattern(60_000));
    }
    for writer in writers {
        assert_eq!(writer.await.unwrap(), Finished::Acked);
    }
    pair.finish().await;
}

/// Row H-5.
#[tokio::test(start_paused = true)]
async fn h5_a_reader_that_never_reads_stalls_no_sibling() {
    for holds_back in [false, true] {
        let mut memory = MemoryConfig::default();
        memory.holds_back_unread = holds_back;
        let pair = Pair::with(config(), config(), memory);
        let (mut stalled, unread) = pair.substream().await;
        let writing = tokio::spawn(async move {
            let _ = stalled.write_all(&pattern(8 * MIB)).await;
        });
        for round in 0..50 {
            let (mut here, mut there) = pair.substream().await;
            here.write_all(&pattern(50_000)).await.unwrap();
            let mut all = vec![0; 50_000];
            within("a sibling", there.read_exact(&mut all))
                .await
                .unwrap();
            assert!(all == pattern(50_000), "round {round}");
            drop((here, there));
        }
        assert!(!writing.is_finished());
        assert!(unread.unread() <= MIB, "{} bytes held", unread.unread());
        drop(unread);
        within("the writer is told", writing).await.unwrap();
        pair.finish().await;
    }
}

/// Row H-8: FIN_ACK, RESET and FIN do not wait for the data of others.
#[tokio::test(start_paused = true)]
async fn h8_control_frames_pass_the_queued_data_of_others() {
    let mut memory = MemoryConfig::default();
    memory.budget = 10_000;
    let mut s = scripted(config(), memory);
    let (mut big, big_channel) = s.open().await;
    s.peer.credit(big_channel, 10_000_000);
    s.peer.run_for(Duration::from_millis(1)).await;
    let (mut closed_by_peer, peers) = s.open().await;
    let (reset, resets) = s.open().await;
    let (mut finished, fins) = s.open().await;
    let writing = tokio::spawn(async move {
        big.write_all(&pattern(200_000)).await.unwrap();
        big
    });
    // The peer does not read: the carrier stays busy.
    settle().await;
    let queued = s.sent.frames().len();
    s.peer.flag(peers, Flag::Fin);
    reset.reset(8);
    let finishing = tokio::spawn(async move { finished.finish().await });
    settle().await;
    let frames = s.sent.frames();
    let flags: Vec<_> = frames[queued..]
        .iter()
        .filter_map(|frame| frame.message.flag)
        .collect();
    for flag in [Flag::FinAck, Flag::ResetStream, Flag::Fin] {
        assert!(flags.contains(&flag), "{flag:?} is stuck: {flags:?}");
    }
    let no_data = frames[queued..]
        .iter()
        .all(|frame| frame.class == Class::Control);
    assert!(no_data, "the carrier was to be busy");
    s.peer.expect_data(big_channel, &pattern(200_000)).await;
    s.peer.flag(fins, Flag::FinAck);
    assert_eq!(finishing.await.unwrap().unwrap(), Finished::Acked);
    closed_by_peer.read_to_end(&mut Vec::new()).await.unwrap();
    drop((writing.await.unwrap(), closed_by_peer));
    for channel in [big_channel, fins] {
        s.peer.flag(channel, Flag::Fin);
    }
    s.peer.flag(peers, Flag::FinAck);
    s.peer.expect_closed(resets).await;
    s.finish().await;
}

/// Credit is a control frame too: it does not wait until a busy carrier accepts data again.
#[tokio::test(start_paused = true)]
async fn h8_credit_passes_while_data_is_busy() {
    let mut config = config();
    config.receive_window = 20_000;
    let mut memory = MemoryConfig::default();
    memory.budget = 10_000;
    let mut s = scripted(config, memory);
    let (substream, channel) = s.open().await;
    let (mut read, mut write) = substream.into_split();
    s.peer
        .data_with_credit(channel, &pattern(10_000), 10_000_000);
    let writing = tokio::spawn(async move {
        write.write_all(&pattern(200_000)).await.unwrap();
        write
    });
    settle().await;
    let before = s.sent.frames().len();
    read.read_exact(&mut [0; 10_000]).await.unwrap();
    settle().await;
    let frames = s.sent.frames();
    let credit = frames[before..]
        .iter()
        .find_map(|frame| frame.message.max_data);
    assert_eq!(credit, Some(30_000), "{:?}", &frames[before..]);
    s.peer.expect_data(channel, &pattern(200_000)).await;
    drop((read, writing.await.unwrap()));
    s.peer.flag(channel, Flag::Fin);
    s.finish().await;
}

/// Row H-5: the driver continues to read by itself when a reader has made room.
#[tokio::test(start_paused = true)]
async fn a_channel_that_was_held_back_is_read_on() {
    let mut memory = MemoryConfig::default();
    memory.holds_back_unread = true;
    let mut s = scripted(config(), memory);
    let (mut substream, channel) = s.open().await;
    for _ in 0..300 {
        s.peer
            .send(channel, Message::data(Bytes::from(pattern(16_000))));
    }
    s.peer.flag(channel, Flag::Fin);
    settle().await;
    assert!(substream.unread() < MIB + 20_000, "{}", substream.unread());
    let mut all = Vec::new();
    within("all of it", substream.read_to_end(&mut all))
        .await
        .unwrap();
    assert_eq!(all.len(), 300 * 16_000);
    drop(substream);
    s.finish_after_fin_ack(channel).await;
}

/// `CeilingPolicy::Backpressure`: data of a peer without credit beyond the ceilings stays in the
/// carrier.
#[tokio::test(start_paused = true)]
async fn a_full_reader_without_credit_is_not_reset_where_the_window_may_shut() {
    let mut memory = MemoryConfig::default();
    memory.holds_back_unread = true;
    let mut config = config();
    config.ceiling_policy = CeilingPolicy::Backpressure;
    config.receive_window = 40_000;
    config.substream_ceiling = 64_000;
    config.connection_ceiling = 64_000;
    let mut s = scripted(config, memory);
    let mut readers = Vec::new();
    for _ in 0..4 {
        let (substream, channel) = s.open().await;
        for _ in 0..60 {
            s.peer
                .send(channel, Message::data(Bytes::from(pattern(16_000))));
        }
        s.peer.flag(channel, Flag::Fin);
        readers.push((substream, channel));
    }
    settle().await;
    let unread = s.us.stats().unread;
    assert!((64_000..4 * 64_000).contains(&unread), "{unread}");
    for (mut substream, channel) in readers {
        let mut all = Vec::new();
        within("all of it", substream.read_to_end(&mut all))
            .await
            .unwrap();
        assert_eq!(all.len(), 60 * 16_000);
        drop(substream);
        s.peer.expect_flag(channel, Flag::FinAck).await;
        s.peer.expect_flag(channel, Flag::Fin).await;
        s.peer.flag(channel, Flag::FinAck);
    }
    assert_eq!(s.us.stats().violations, 0);
    s.finish().await;
}

/// Row L-4: an unknown flag is counted, and its payload delivered.
#[tokio::test(start_paused = true)]
async fn l4_an_unknown_flag_is_counted_and_its_payload_delivered() {
    let mut s = scripted(config(), MemoryConfig::default());
    let (mut substream, channel) = s.open().await;
    s.peer.send_raw(channel, &[6, 0x08, 9, 0x12, 2, b'h', b'i']);
    let mut word = [0; 2];
    substream.read_exact(&mut word).await.unwrap();
    assert_eq!(&word, b"hi");
    assert_eq!(s.us.stats().unknown_flags, 1);
    // Row L-6: payload acts before the flag of the same message.
    let mut last = Message::data(Bytes::from_static(b"bye"));
    last.flag = Some(Flag::Fin);
    s.peer.send(channel, last);
    let mut rest = Vec::new();
    substream.read_to_end(&mut rest).await.unwrap();
    assert_eq!(rest, b"bye");
    drop(substream);
    s.finish_after_fin_ack(channel).await;
}
