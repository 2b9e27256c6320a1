//! Cases in which the peer floods a connection with frames that have no effect.

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

/// `Config::max_frames_without_effect` of the cases, per second.
const MAX_WITHOUT_EFFECT: u32 = 40;

/// A peer whose frames the case writes itself.
struct Peer<C> {
    carrier: C,
    decoders: HashMap<ChannelId, FrameDecoder>,
    /// Error codes of the RESET_STREAM frames received.
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

    /// Drives the carrier until `done` returns `true`; it is called again after every event.
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

    /// Drives the carrier until `future` is ready.
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

    /// Opens a channel and sends `frames` on it while it is open. Returns `None` if the carrier is
    /// closed.
    async fn send(&mut self, frames: impl Iterator<Item = Message>) -> Option<ChannelId> {
        let channel = match self.carrier.open("") {
            Ok(channel) => channel,
            Err(OpenChannelError::Closed | OpenChannelError::GoingAway) => return None,
            Err(error) => panic!("{error}"),
        };
        let mut frames = frames.peekable();
        self.until("room for the frames", |peer| {
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
    config.max_frames_without_effect = MAX_WITHOUT_EFFECT;
    config
}

/// Frames without effect: a description, a frame to send once before them, and the frame to repeat.
fn frames_without_effect() -> Vec<(&'static str, Option<Message>, Message)> {
    let mut unknown = Message::default();
    unknown.error_code = Some(7);
    vec![
        ("empty frames", None, Message::default()),
        ("an error code without a flag", None, unknown),
        (
            "credit below the current limit",
            Some(Message::credit(5000)),
            Message::credit(4000),
        ),
        (
            "repeated FIN",
            Some(Message::flag(Flag::Fin)),
            Message::flag(Flag::Fin),
        ),
        (
            "data after FIN",
            Some(Message::flag(Flag::Fin)),
            Message::data(Bytes::from_static(b"more")),
        ),
        (
            "repeated STOP_SENDING",
            Some(Message::stop_sending(1)),
            Message::stop_sending(1),
        ),
    ]
}

/// A substream with too many frames without effect is reset with RATE_LIMITED; other substreams
/// stay open. A peer that continues is disconnected and receives the cause.
pub async fn frames_without_effect_reset_their_substream<F, Fut, A, B>(factory: F)
where
    F: Fn() -> Fut,
    Fut: Future<Output = (A, B)>,
    A: Carrier + 'static,
    B: Carrier + 'static,
{
    for (what, first, frame) in frames_without_effect() {
        let (a, b) = within("the carriers connect", factory()).await;
        let mut peer = Peer::new(a);
        let (connection, driver) = Connection::over(b, Arc::new(config()));
        let driver = tokio::spawn(driver);
        // With credit, which marks the peer as one that understands notices; below the limit.
        let mut honest = Message::data(Bytes::from_static(b"hello"));
        honest.max_data = Some(1 << 20);
        let few = (0..MAX_WITHOUT_EFFECT / 2).map(|_| Message::default());
        let neighbour = peer.send([honest].into_iter().chain(few)).await;
        let mut there = peer
            .while_waiting("accept", connection.accept())
            .await
            .unwrap()
            .expect("the connection is open");
        let flooded = peer
            .send(
                first
                    .into_iter()
                    .chain((0..2 * MAX_WITHOUT_EFFECT).map(|_| frame.clone())),
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
            let empty = (0..2 * MAX_WITHOUT_EFFECT).map(|_| Message::default());
            if peer.send(empty).await.is_none() {
                break;
            }
        }
        peer.until("the disconnect", |peer| peer.ended.is_some())
            .await;
        let cause = within("the cause", connection.closed()).await;
        let expected = ConnectionError::TooManyFramesWithoutEffect;
        assert_eq!(cause, expected, "{what}");
        let reported = peer.ended.take().expect("it has ended").to_string();
        assert!(reported.contains(&cause.to_string()), "{what}: {reported}");
        drop(there);
        within("the driver ends", driver).await.unwrap();
        assert_eq!(connection.stats().substreams, 0, "{what}");
    }
}

/// A peer that repeats a notice without a change is disconnected and receives the cause. Skipped if
/// the carrier has no notices.
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
    let mut remaining = 1000;
    peer.until("the disconnect", |peer| {
        while remaining > 0 && peer.carrier.write_notice(&notice) == Written::Taken {
            remaining -= 1;
        }
        peer.ended.is_some()
    })
    .await;
    let cause = within("the cause", connection.closed()).await;
    assert_eq!(cause, ConnectionError::TooManyFramesWithoutEffect);
    let reported = peer.ended.take().expect("it has ended").to_string();
    assert!(reported.contains(&cause.to_string()), "{reported}");
    within("the driver ends", driver).await.unwrap();
    assert!(connection.is_idle());
}
