//! Receivers, senders, and scripted peers that write the bytes of a payload.

use anabranch::Substream;
use anabranch::carrier::ChannelId;
use anabranch::message::Message;
use anabranch::payload::{Payload, PayloadConfig, PayloadError, Receiver, Sender, receive};
use futures_util::StreamExt;

use crate::common::{Scripted, settle, within};

pub(crate) fn header(fields: &[(u8, u64)]) -> Vec<u8> {
    let mut body = Vec::new();
    for (field, mut value) in fields.iter().copied() {
        body.push(field << 3);
        while value >= 0x80 {
            body.push(value as u8 | 0x80);
            value >>= 7;
        }
        body.push(value as u8);
    }
    body.insert(0, body.len() as u8);
    body
}

pub(crate) fn payload_config(change: impl FnOnce(&mut PayloadConfig)) -> PayloadConfig {
    let mut config = PayloadConfig::default();
    change(&mut config);
    config
}

pub(crate) fn receiver(change: impl FnOnce(&mut PayloadConfig)) -> Receiver {
    Receiver::new(payload_config(change)).expect("it can work")
}

pub(crate) fn sender(substream: Substream) -> Sender {
    Sender::new(substream, PayloadConfig::default()).expect("the default is valid")
}

/// All bytes, and what followed them.
pub(crate) async fn drained(payload: Payload) -> (Vec<u8>, Option<PayloadError>) {
    let mut stream = payload.into_stream();
    let mut all = Vec::new();
    while let Some(chunk) = within("a chunk", stream.next()).await {
        match chunk {
            Ok(chunk) => all.extend_from_slice(&chunk),
            Err(error) => {
                assert!(stream.next().await.is_none(), "nothing follows an error");
                return (all, Some(error));
            }
        }
    }
    (all, None)
}

/// The same including the header, which a reset can overtake.
pub(crate) async fn received(substream: Substream) -> (Vec<u8>, Option<PayloadError>) {
    match receive(substream).await {
        Ok(payload) => drained(payload).await,
        Err(error) => (Vec::new(), Some(error)),
    }
}

/// A substream that the scripted peer has opened, with these bytes on it.
pub(crate) async fn peer_sends(s: &mut Scripted, bytes: &[u8]) -> (Substream, ChannelId) {
    let (substream, channel) = s.accept().await;
    for part in bytes.chunks(4000) {
        s.peer.data(channel, part);
    }
    settle().await;
    (substream, channel)
}

/// The end of a payload as the peer sees it.
pub(crate) async fn peer_gets_reset(s: &mut Scripted, channel: ChannelId, code: u32) {
    s.peer.expect(channel, Message::reset(code)).await;
    s.peer.expect_closed(channel).await;
}
