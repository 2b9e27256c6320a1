//! How connections begin and end, and what they leave behind.

#![allow(missing_docs)]

mod common;

use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

use anabranch::carrier::memory::{MemoryConfig, pair};
use anabranch::message::{Flag, Message};
use anabranch::substream::code;
use anabranch::{CloseOutcome, Config, Connection, ConnectionError, Negotiation, OpenError};
use common::{Pair, config, pattern, scripted, settle, within};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, sleep};

fn negotiated() -> Config {
    let mut config = Config::default();
    config.protocols = vec!["/echo/1.0.0".to_owned()];
    config
}

/// A future of `open` can be spawned from a function that borrows the connection.
#[tokio::test(start_paused = true)]
async fn open_is_send_through_a_reference() {
    async fn open(connection: &Connection) -> bool {
        connection.open("/nothing").await.is_ok()
    }
    let pair = Pair::with(negotiated(), negotiated(), MemoryConfig::default());
    let connection = pair.a.clone();
    let opened = tokio::spawn(async move { open(&connection).await })
        .await
        .unwrap();
    assert!(!opened);
    pair.finish().await;
}
