//! Two connected carriers, driven step by step by a case.

use std::collections::HashMap;
use std::future::poll_fn;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::timeout;

use super::TIMEOUT;
use anabranch::carrier::{Carrier, CarrierEvent, ChannelId, Class, Written};
use anabranch::connection::ConnectionError;
use anabranch::message::{FrameDecoder, Message, max_payload};

/// Maximum bytes that a carrier may accept before it is busy.
const MAX_TAKEN: usize = 8 * 1024 * 1024;

/// One side: a carrier, and what it has reported.
pub(super) struct End<C> {
    pub(super) carrier: C,
    pub(super) opened: Vec<(ChannelId, String)>,
    pub(super) closed: Vec<ChannelId>,
    pub(super) delivered: Vec<ChannelId>,
    pub(super) writable: usize,
    /// Payloads, not frames: carriers may add fields to a frame.
    pub(super) received: HashMap<ChannelId, Vec<u8>>,
    decoders: HashMap<ChannelId, FrameDecoder>,
    pub(super) notices: Vec<Message>,
    pub(super) ended: Option<ConnectionError>,
}

impl<C: Carrier> End<C> {
    fn new(carrier: C) -> Self {
        Self {
            carrier,
            opened: Vec::new(),
            closed: Vec::new(),
            delivered: Vec::new(),
            writable: 0,
            received: HashMap::new(),
            decoders: HashMap::new(),
            ended: None,
            notices: Vec::new(),
        }
    }

    /// Handles all events of the carrier. Returns whether there were any.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> bool {
        let mut moved = false;
        while self.ended.is_none() {
            let Poll::Ready(event) = self.carrier.poll_event(cx) else {
                break;
            };
            moved = true;
            match event {
                Ok(CarrierEvent::Opened { channel, label }) => self.opened.push((channel, label)),
                Ok(CarrierEvent::Readable { channel }) => self.read(channel),
                Ok(CarrierEvent::Writable) => self.writable += 1,
                Ok(CarrierEvent::Delivered { channel }) => self.delivered.push(channel),
                Ok(CarrierEvent::Closed { channel }) => {
                    self.read(channel);
                    self.closed.push(channel);
                }
                Ok(CarrierEvent::Notice { message }) => self.notices.push(message),
                Ok(CarrierEvent::RoundTrip { .. }) => {}
                Ok(CarrierEvent::Expiring { cause }) => panic!("{cause}"),
                Ok(event) => panic!("{event:?}"),
                Err(cause) => self.ended = Some(cause),
            }
        }
        moved
    }

    fn read(&mut self, channel: ChannelId) {
        let received = self.received.entry(channel).or_default();
        let decoder = self.decoders.entry(channel).or_default();
        while let Some(bytes) = self.carrier.read(channel) {
            assert!(!bytes.is_empty(), "an empty read");
            decoder.push(bytes);
            while let Some(message) = decoder.next_message().expect("valid frames") {
                received.extend_from_slice(&message.payload);
            }
        }
    }

    /// Writes a frame with a payload.
    pub(super) fn write(&mut self, channel: ChannelId, payload: &[u8], class: Class) -> Written {
        let frame = Message::data(Bytes::copy_from_slice(payload)).encode();
        self.carrier.write(channel, &frame, class)
    }

    /// Payload length of the longest frame.
    pub(super) fn max_payload(&self) -> usize {
        max_payload(self.carrier.max_message(), false)
    }

    /// The payload that has arrived on a channel.
    pub(super) fn received(&self, channel: ChannelId) -> &[u8] {
        self.received.get(&channel).map_or(&[], |bytes| bytes)
    }

    pub(super) fn open(&mut self, label: &str) -> ChannelId {
        self.carrier.open(label).expect("a channel is free")
    }

    /// Writes data frames of `size` bytes until the carrier is busy. Returns the bytes it accepted.
    ///
    /// Of anabranch's carriers WebRTC has the longest queue: its `max_in_flight` is 8 MiB.
    pub(super) fn fill(&mut self, channel: ChannelId, size: usize) -> usize {
        let payload = vec![7; size];
        for taken in 0..MAX_TAKEN / size {
            match self.write(channel, &payload, Class::Data) {
                Written::Taken => {}
                Written::Busy | Written::NotOpen => return taken * size,
                Written::Closed => panic!("the channel was closed"),
            }
        }
        panic!("{MAX_TAKEN} bytes were accepted, and the carrier is not busy");
    }
}

/// Both sides.
pub(super) struct Ends<A, B> {
    pub(super) a: End<A>,
    pub(super) b: End<B>,
}

impl<A: Carrier, B: Carrier> Ends<A, B> {
    pub(super) async fn connect<F, Fut>(factory: F) -> Self
    where
        F: Fn() -> Fut,
        Fut: Future<Output = (A, B)>,
    {
        let (a, b) = timeout(TIMEOUT, factory())
            .await
            .expect("the carriers connect in time");
        Self {
            a: End::new(a),
            b: End::new(b),
        }
    }

    /// Drives both sides until `done` returns `true`. It may also call the carriers.
    ///
    /// `what` names the awaited condition in the panic message.
    pub(super) async fn until(
        &mut self,
        what: &str,
        mut done: impl FnMut(&mut End<A>, &mut End<B>) -> bool,
    ) {
        let driven = poll_fn(|cx| {
            loop {
                if done(&mut self.a, &mut self.b) {
                    return Poll::Ready(());
                }
                let moved = self.a.poll(cx) | self.b.poll(cx);
                if !moved {
                    return Poll::Pending;
                }
            }
        });
        if timeout(TIMEOUT, driven).await.is_err() {
            panic!("timed out waiting for: {what}");
        }
    }

    /// Drives side `a`, and `b` too if `with_b`, for `duration`.
    pub(super) async fn drive_for(&mut self, duration: Duration, with_b: bool) {
        let driven = poll_fn(|cx| {
            while self.a.poll(cx) | (with_b && self.b.poll(cx)) {}
            Poll::<()>::Pending
        });
        let _ = timeout(duration, driven).await;
    }

    /// Opens a channel from `a` and waits until both sides can use it. Returns its id on each side.
    pub(super) async fn channel(&mut self) -> (ChannelId, ChannelId) {
        let before = self.b.opened.len();
        let here = self.a.open("");
        self.until("the peer's channel", |_, b| b.opened.len() > before)
            .await;
        let (there, _) = self.b.opened[before];
        // Some carriers accept nothing on a channel before the peer has confirmed its opening.
        self.until("an open channel", |a, _| {
            a.write(here, b"?", Class::Control) == Written::Taken
        })
        .await;
        self.until("the first byte", |_, b| !b.received(there).is_empty())
            .await;
        self.b.received.remove(&there);
        (here, there)
    }
}
