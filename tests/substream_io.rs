//! Reading, writing and flushing a substream.

#![allow(missing_docs)]

mod common;

use std::future::poll_fn;
use std::io::ErrorKind;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use anabranch::carrier::memory::MemoryConfig;
use anabranch::message::{Flag, Message};
use anabranch::substream::code;
use anabranch::{CloseOutcome, Config};
use bytes::Bytes;
use common::{Pair, config, pattern, scripted, settle, within};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};

/// Row L-24: what came before bad framing is read, only that substream ends, and what follows is
/// not buffered.
#[tokio::test(start_paused = true)]
async fn l24_bad_framing_resets_only_its_substream_after_the_frames_before_it() {
    let overlong: &[u8] = &[0x80, 0x80, 0x80, 0x80, 1];
    let non_minimal: &[u8] = &[0x85, 0x00, 1, 2, 3];
    let oversize: &[u8] = &[0x81, 0x80, 0x01, 1, 2, 3];
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
