//! Cases where one end is a peer that sends frames by hand: many, and of no use.

use std::collections::HashMap;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use bytes::Bytes;

use super::connections::within;
use anabranch::carrier::{Carrier, CarrierEvent, ChannelId, Class, OpenChannelError, Written};
use anabranch::connection::Negotiation;
use anabranch::message::{Flag, FrameDecoder, Message};
use anabranch::substream::code;
use anabranch::{Config, Connection, ConnectionError};

/// Frames without effect that are allowed here, within a second.
const LIMIT: u32 = 40;

/// A peer that sends what it wants.
struct Peer<C> {
    carrier: C,
    decoders: HashMap<ChannelId, FrameDecoder>,
    /// Codes of the RESET_STREAMs that came.
    resets: Vec<(ChannelId, Option<u32>)>,
    ended: Option<ConnectionError>,
}

impl<C: Carrier> Peer<C> {
    fn new(carrier: C) -> Self {
        Self {
            carrier,
            decoders: HashMap::new(),
            resets: Vec::new(),
            ended: None,
        }
    }

    /// Drives the carrier until `done`, which is asked again whenever something has happened.
    async fn until(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        let driven = poll_fn(|cx| {
            loop {
                if done(self) {
                    return Poll::Ready(());
                }
                if self.ended.is_some() {
                    return Poll::Pending;
                }
                match std::task::ready!(self.carrier.poll_event(cx)) {
                    Ok(CarrierEvent::Readable { channel } | CarrierEvent::Closed { channel }) => {
                        self.read(channel);
                    }
                    Ok(_) => {}
                    Err(cause) => self.ended = Some(cause),
                }
            }
        });
        within(what, driven).await;
    }

    /// Drives the carrier until the other end has done this.
    async fn while_waiting<T>(&mut self, what: &str, future: impl Future<Output = T>) -> T {
        let mut future = pin!(future);
        let mut done = None;
        poll_fn(|cx| {
            if let Poll::Ready(value) = future.as_mut().poll(cx) {
                done = Some(value);
                return Poll::Ready(());
            }
            let mut driven = pin!(self.until(what, |_| false));
            driven.as_mut().poll(cx)
        })
        .await;
        done.expect("ready")
    }

    fn read(&mut self, channel: ChannelId) {
        let decoder = self.decoders.entry(channel).or_default();
        while let Some(bytes) = self.carrier.read(channel) {
            decoder.push(bytes);
            while let Ok(Some(message)) = decoder.next_message() {
                if message.flag == Some(Flag::ResetStream) {
                    self.resets.push((channel, message.error_code));
                }
            }
        }
    }

    /// Opens a channel and sends these frames on it, as long as it is open.
    async fn send(&mut self, frames: impl Iterator<Item = Message>) -> Option<ChannelId> {
        let channel = match self.carrier.open("") {
            Ok(channel) => channel,
            Err(OpenChannelError::Closed | OpenChannelError::GoingAway) => return None,
            Err(error) => panic!("{error}"),
        };
        let mut frames = frames.peekable();
        self.until("room", |peer| {
            while let Some(frame) = frames.peek() {
                match peer.carrier.write(channel, &frame.encode(), Class::Control) {
                    Written::Taken => drop(frames.next()),
                    Written::Busy | Written::NotOpen => return peer.ended.is_some(),
                    Written::Closed => return true,
                }
            }
            true
        })
        .await;
        Some(channel)
    }
}

fn config() -> Config {
    let mut config = Config::default();
    config.negotiation = Negotiation::None;
    config.max_frames_without_effect = LIMIT;
    config
}

/// What a peer can send that changes nothing, behind what it may have to send first.
fn useless() -> Vec<(&'static str, Option<Message>, Message)> {
    let mut unknown = Message::default();
    unknown.error_code = Some(7);
    vec![
        ("empty frames", None, Message::default()),
        ("a code alone", None, unknown),
        (
            "credit that raises nothing",
            Some(Message::credit(5000)),
            Message::credit(4000),
        ),
        (
            "FIN again and again",
            Some(Message::flag(Flag::Fin)),
            Message::flag(Flag::Fin),
        ),
        (
            "data behind FIN",
            Some(Message::flag(Flag::Fin)),
            Message::data(Bytes::from_static(b"more")),
        ),
        (
            "STOP_SENDING again and again",
            Some(Message::stop_sending(1)),
            Message::stop_sending(1),
        ),
    ]
}

/// A substream on which too many frames change nothing is reset with a code, and its neighbour lives. A peer that goes
/// on is left, and told why.
pub async fn frames_without_effect_reset_their_substream<F, Fut, A, B>(factory: F)
where
    F: Fn() -> Fut,
    Fut: Future<Output = (A, B)>,
    A: Carrier + 'static,
    B: Carrier + 'static,
{
    for (what, first, frame) in useless() {
        let (a, b) = within("the carriers connect", factory()).await;
        let mut peer = Peer::new(a);
        let (connection, driver) = Connection::over(b, Arc::new(config()));
        let driver = tokio::spawn(driver);
        // As many as it may send, with credit, so that the peer is one that can be told things.
        let mut honest = Message::data(Bytes::from_static(b"hello"));
        honest.max_data = Some(1 << 20);
        let few = (0..LIMIT / 2).map(|_| Message::default());
        let neighbour = peer.send([honest].into_iter().chain(few)).await;
        let mut there = peer
            .while_waiting("accept", connection.accept())
            .await
            .unwrap()
            .expect("it lives");
        let flooded = peer
            .send(
                first
                    .into_iter()
                    .chain((0..2 * LIMIT).map(|_| frame.clone())),
            )
            .await;
        peer.until(what, |peer| !peer.resets.is_empty()).await;
        assert_eq!(
            peer.resets,
            [(flooded.unwrap(), Some(code::RATE_LIMITED))],
            "{what}"
        );
        assert_eq!(connection.close_reason(), None, "{what}");
        let hello = within("the neighbour", there.read_chunk(100))
            .await
            .unwrap();
        assert_eq!(hello.as_deref(), Some(&b"hello"[..]), "{what}");
        assert_ne!(neighbour, flooded);
        for _ in 0..20 {
            let empty = (0..2 * LIMIT).map(|_| Message::default());
            if peer.send(empty).await.is_none() {
                break;
            }
        }
        peer.until("the end", |peer| peer.ended.is_some()).await;
        let cause = within("the end here", connection.closed()).await;
        let left = ConnectionError::TooManyFramesWithoutEffect;
        assert_eq!(cause, left, "{what}");
        let told = peer.ended.take().expect("it has ended").to_string();
        assert!(told.contains(&cause.to_string()), "{what}: {told}");
        drop(there);
        within("the driver ends", driver).await.unwrap();
        assert_eq!(connection.stats().substreams, 0, "{what}");
    }
}

/// A peer that repeats what it has said of the connection is left as well.
pub async fn notices_that_repeat_end_the_connection<F, Fut, A, B>(factory: F)
where
    F: Fn() -> Fut,
    Fut: Future<Output = (A, B)>,
    A: Carrier + 'static,
    B: Carrier + 'static,
{
    let (a, b) = within("the carriers connect", factory()).await;
    if !a.carries_notices() {
        return;
    }
    let mut peer = Peer::new(a);
    let (connection, driver) = Connection::over(b, Arc::new(config()));
    let driver = tokio::spawn(driver);
    let notice = Message::substream_limit(100).encode();
    let mut left = 1000;
    peer.until("the end", |peer| {
        while left > 0 && peer.carrier.write_notice(&notice) == Written::Taken {
            left -= 1;
        }
        peer.ended.is_some()
    })
    .await;
    let cause = within("the end here", connection.closed()).await;
    assert_eq!(cause, ConnectionError::TooManyFramesWithoutEffect);
    let told = peer.ended.take().expect("it has ended").to_string();
    assert!(told.contains(&cause.to_string()), "{told}");
    within("the driver ends", driver).await.unwrap();
    assert!(connection.is_idle());
}
