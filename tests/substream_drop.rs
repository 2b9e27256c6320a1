//! What becomes of a substream whose handle is dropped without a close.

#![allow(missing_docs)]

mod common;

use std::time::Duration;

use anabranch::carrier::memory::MemoryConfig;
use anabranch::message::{Flag, Message};
use anabranch::substream::code;
use common::{config, pattern, scripted};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::Instant;

const MS: Duration = Duration::from_millis(1);

/// A code given to `stop` reaches the peer, also if the handle is dropped behind it.
#[tokio::test(start_paused = true)]
async fn l16_the_code_of_a_stop_survives_the_drop() {
    let mut s = scripted(config(), MemoryConfig::default());
    let (mut substream, channel) = s.open().await;
    substream.stop(42);
    drop(substream);
    s.peer.expect(channel, Message::stop_sending(42)).await;
    s.peer.flag(channel, Flag::Fin);
    s.peer.expect_flag(channel, Flag::Fin).await;
    s.peer.flag(channel, Flag::FinAck);
    s.finish().await;
}
