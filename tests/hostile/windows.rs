//! A peer that keeps its SCTP receive window shut for a long time.

use std::time::Duration;

use bytes::Bytes;
use tokio::io::AsyncWriteExt;
use tokio::time::{Instant, sleep, timeout};

use super::peer::{COMMON_HEADER, Peer, PeerEvent};
use super::sctp::connected;
use super::{ENGINES, World, pattern};
use anabranch::message::{Flag, FrameDecoder, Message};
use anabranch::substream::Finished;
use anabranch_rtc::ChannelId;
use anabranch_rtc::Role;
use anabranch_sctp::put_checksum;

const SACK: u8 = 3;

/// Bytes written: more than a connection buffers for a peer with a shut window.
const LENGTH: usize = 12 << 20;

/// Maximum bytes buffered for the peer: `EndpointConfig::max_in_flight`, which the budget is far
/// below, and `Config::send_buffer`.
const MAX_BUFFERED: usize = (8 << 20) + (64 << 10);

/// Sets a_rwnd to zero in every SACK (RFC 9260 section 3.3.4).
fn shut_window(packet: Bytes) -> Vec<Bytes> {
    let mut packet = packet.to_vec();
    if packet.get(COMMON_HEADER) == Some(&SACK)
        && let Some(window) = packet.get_mut(COMMON_HEADER + 8..COMMON_HEADER + 12)
    {
        window.fill(0);
        packet[8..COMMON_HEADER].fill(0);
        put_checksum(&mut packet);
    }
    vec![packet.into()]
}

/// Reads payload until FIN, which it answers with FIN_ACK and FIN.
struct Reader {
    decoder: FrameDecoder,
    payload: Vec<u8>,
    finished: bool,
}

impl Reader {
    fn take(&mut self, peer: &mut Peer, channel: ChannelId) {
        while let Some((from, bytes)) = peer.received.pop_front() {
            assert_eq!(from, channel);
            self.decoder.push(bytes);
        }
        while let Some(message) = self.decoder.next_message().expect("valid") {
            self.payload.extend_from_slice(&message.payload);
            if message.flag == Some(Flag::Fin) {
                self.finished = true;
                peer.write(channel, &Message::flag(Flag::FinAck).encode());
                peer.write(channel, &Message::flag(Flag::Fin).encode());
            }
        }
    }

    /// Runs the peer until `end` or FIN.
    async fn run(&mut self, peer: &mut Peer, channel: ChannelId, end: Instant) {
        while !self.finished
            && let Ok(event) = tokio::time::timeout_at(end, peer.next_event()).await
        {
            assert!(!matches!(event, PeerEvent::Ended(_)), "{event:?}");
            self.take(peer, channel);
        }
    }
}

fn reader() -> Reader {
    Reader {
        decoder: FrameDecoder::new(),
        payload: Vec::new(),
        finished: false,
    }
}

#[tokio::test(start_paused = true)]
async fn a_window_that_is_shut_for_a_minute_loses_nothing_and_holds_up_nobody_else() {
    for engine in ENGINES {
        let mut world = World::without_noise(engine).await;
        let (mut peer, connection) = connected(&mut world, Role::Client).await;
        let substream = connection.open("").await.expect("a substream");
        let (mut read, mut write) = substream.into_split();
        let writing = tokio::spawn(async move {
            write.write_all(&pattern(LENGTH)).await?;
            std::io::Result::Ok(write.finish().await?)
        });
        let channel = peer
            .wait_for(|event| match event {
                PeerEvent::Opened(channel) => Some(*channel),
                _ => None,
            })
            .await;
        let mut reader = reader();
        peer.mangle = Box::new(shut_window);
        let begin = Instant::now();
        for second in 1..=60 {
            let end = begin + Duration::from_secs(second);
            reader.run(&mut peer, channel, end).await;
            // Meanwhile the neighbour is served.
            if second % 20 == 0 {
                world.assert_unharmed().await;
            }
        }
        let context = format!("on {engine:?}, {} bytes in a minute", reader.payload.len());
        assert_eq!(connection.close_reason(), None, "{context}");
        assert!(
            !writing.is_finished(),
            "{context}: the shut window blocks the writer"
        );
        let buffered = connection.stats().payload_sent - reader.payload.len() as u64;
        assert!(
            buffered <= MAX_BUFFERED as u64,
            "{context}: {buffered} bytes buffered"
        );
        // The other direction does not depend on this window.
        peer.write(channel, &Message::data("back".into()).encode());
        peer.run(Duration::from_secs(1)).await;
        let chunk = read.read_chunk(10).await.expect("alive").expect("bytes");
        assert_eq!(&chunk[..], b"back");
        reader.take(&mut peer, channel);

        peer.mangle = Box::new(|packet| vec![packet]);
        let end = Instant::now() + Duration::from_secs(300);
        reader.run(&mut peer, channel, end).await;
        assert!(reader.finished, "{context}: {} bytes", reader.payload.len());
        assert!(reader.payload == pattern(LENGTH), "{context}");
        let peer_task = tokio::spawn(async move { peer.run(Duration::from_secs(60)).await });
        let outcome = timeout(Duration::from_secs(20), writing).await;
        let outcome = outcome.expect("in time").expect("no panic");
        assert_eq!(outcome.expect("an outcome"), Finished::Acked, "{context}");
        assert_eq!(read.read_chunk(10).await.expect("an end"), None);
        drop(read);
        connection.close().await;
        drop(connection);
        peer_task.await.expect("no panic");
        world.finish().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_window_that_stays_shut_ends_a_dropped_substream_and_a_close_in_time() {
    for engine in ENGINES {
        let mut world = World::without_noise(engine).await;
        let (mut peer, connection) = connected(&mut world, Role::Client).await;
        let mut substream = connection.open("").await.expect("a substream");
        peer.mangle = Box::new(shut_window);
        let peer_task = tokio::spawn(async move { peer.run(Duration::from_secs(200)).await });
        let blocked = timeout(Duration::from_secs(30), async {
            loop {
                substream.write_all(&[7; 10_000]).await?;
            }
        });
        let blocked: Result<std::io::Result<()>, _> = blocked.await;
        assert!(blocked.is_err(), "on {engine:?}: {blocked:?}");
        drop(substream);
        // `Config::teardown_timeout`.
        sleep(Duration::from_millis(10_100)).await;
        assert_eq!(connection.stats().substreams, 0, "on {engine:?}");
        assert_eq!(connection.close_reason(), None, "on {engine:?}");
        let begin = Instant::now();
        connection.close().await;
        let after = begin.elapsed();
        assert!(after <= Duration::from_millis(10_100), "{after:?}");
        assert!(connection.is_idle());
        drop(connection);
        peer_task.abort();
        let _ = peer_task.await;
        world.finish().await;
    }
}
