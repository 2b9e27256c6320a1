//! A carrier in memory, with the faults of a network that the layers below would not hide.
//!
//! [`pair`] makes two connected carriers. All faults come from the seed in [`MemoryConfig`], and all
//! time is tokio's: on a paused clock a run is the same every time.

use std::collections::{BTreeMap, VecDeque};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::time::{Instant, Sleep, sleep_until};

use anabranch::ConnectionError;
use anabranch::carrier::{
    Carrier, CarrierEvent, ChannelId, Class, MessageCounts, OpenChannelError, Written,
};
use anabranch::message::{Flag, FrameDecoder, MAX_FRAME, Message};

/// How a [`pair`] of carriers behaves. Both directions are alike.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct MemoryConfig {
    /// Seed of every random choice. Print it when a test fails.
    pub seed: u64,
    /// Time a message takes, chosen anew for each message from this range. Order is kept.
    pub delay: std::ops::RangeInclusive<Duration>,
    /// Bytes of data that a carrier takes before its writes are refused as busy.
    pub budget: usize,
    /// Probability that a message arrives cut in two.
    pub split: f64,
    /// Probability that a message is merged with the one behind it, if they arrive together.
    pub merge: f64,
    /// Whether a channel that is not read holds its sender back, see
    /// [`Carrier::holds_back_unread`].
    pub holds_back_unread: bool,
    /// Channels that either side may have open.
    pub max_channels: usize,
    /// Whether frames about the connection itself reach the peer, see [`Carrier::carries_notices`].
    pub carries_notices: bool,
}

impl Default for MemoryConfig {
    fn default() -> Self {
        Self {
            seed: 0,
            delay: Duration::ZERO..=Duration::ZERO,
            budget: 128 * 1024,
            split: 0.0,
            merge: 0.0,
            holds_back_unread: false,
            max_channels: 32_768,
            carries_notices: true,
        }
    }
}

impl MemoryConfig {
    /// A configuration that cuts, merges and delays at random.
    pub fn hostile(seed: u64) -> Self {
        Self {
            seed,
            delay: Duration::ZERO..=Duration::from_millis(40),
            budget: 32 * 1024,
            split: 0.4,
            merge: 0.4,
            ..Self::default()
        }
    }
}

/// Two carriers, each connected to the other, and the hand that breaks things between them.
pub fn pair(config: MemoryConfig) -> (MemoryCarrier, MemoryCarrier, Faults) {
    let wire = Arc::new(Mutex::new(Wire {
        rng: StdRng::seed_from_u64(config.seed),
        config,
        sides: [Side::default(), Side::default()],
        drop_flags: Vec::new(),
    }));
    let carrier = |side: usize| MemoryCarrier {
        side,
        wire: Arc::clone(&wire),
        // Like SCTP: the numbers of the two sides can not collide.
        messages: MessageCounts::default(),
        next_channel: side as u64,
        timer: Box::pin(sleep_until(Instant::now())),
    };
    (
        carrier(0),
        carrier(1),
        Faults {
            wire: Arc::clone(&wire),
        },
    )
}

/// Breaks things between a [`pair`] of carriers.
#[derive(Debug, Clone)]
pub struct Faults {
    wire: Arc<Mutex<Wire>>,
}

impl Faults {
    /// From now on nothing arrives at either side, and nobody is told.
    pub fn silence(&self) {
        let mut wire = lock(&self.wire);
        for side in &mut wire.sides {
            side.silent = true;
        }
    }

    /// Both carriers fail, once what is already under way has been delivered.
    pub fn kill(&self) {
        let mut wire = lock(&self.wire);
        for side in &mut wire.sides {
            side.dead = Some(ConnectionError::Carrier("killed by the test".to_owned()));
            side.wake();
        }
    }

    /// From now on frames with this flag disappear, in both directions.
    pub fn drop_flag(&self, flag: Flag) {
        lock(&self.wire).drop_flags.push(flag);
    }

    /// Messages under way or unread, of both sides. Zero when all is quiet.
    pub fn in_flight(&self) -> usize {
        let wire = lock(&self.wire);
        let count = |side: &Side| {
            side.inbound.len()
                + side
                    .channels
                    .values()
                    .map(|c| c.unread.len())
                    .sum::<usize>()
        };
        wire.sides.iter().map(count).sum()
    }

    /// Channels open on either side.
    pub fn open_channels(&self) -> usize {
        lock(&self.wire)
            .sides
            .iter()
            .map(|side| side.channels.len())
            .sum()
    }
}

fn lock(wire: &Mutex<Wire>) -> MutexGuard<'_, Wire> {
    wire.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Debug)]
struct Wire {
    config: MemoryConfig,
    rng: StdRng,
    sides: [Side; 2],
    drop_flags: Vec<Flag>,
}

/// What arrives at one carrier, and what it knows of its channels.
#[derive(Debug, Default)]
struct Side {
    /// In the order of their arrival; the sender has already put them in order.
    inbound: VecDeque<(Instant, Packet)>,
    last_arrival: Option<Instant>,
    channels: BTreeMap<u64, Channel>,
    events: VecDeque<CarrierEvent>,
    /// Bytes of data sent and not yet arrived at the other side.
    in_flight: usize,
    /// A write was refused for want of budget.
    refused: bool,
    waker: Option<Waker>,
    silent: bool,
    dead: Option<ConnectionError>,
    /// Why the peer closes, if it has told.
    goodbye: Option<Message>,
    closed: bool,
}

impl Side {
    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

#[derive(Debug, Default)]
struct Channel {
    unread: VecDeque<Bytes>,
    /// Messages written and not yet arrived at the other side.
    undelivered: usize,
    notify: bool,
    /// The peer closed it; it goes once it was read.
    closed_by_peer: bool,
    /// We closed it; the peer has yet to learn of that.
    closing: bool,
    /// Sees through the cuts of earlier carriers, to find flags that are to be dropped.
    decoder: Option<FrameDecoder>,
}

#[derive(Debug)]
enum Packet {
    Open {
        channel: u64,
        label: String,
    },
    Data {
        channel: u64,
        bytes: Bytes,
    },
    Close {
        channel: u64,
    },
    /// The answer to a close: the number is free on both sides.
    Closed {
        channel: u64,
    },
    /// A frame about the connection itself.
    Notice {
        message: Message,
    },
    Goodbye,
}

/// One end of a [`pair`].
#[derive(Debug)]
pub struct MemoryCarrier {
    side: usize,
    wire: Arc<Mutex<Wire>>,
    next_channel: u64,
    timer: Pin<Box<Sleep>>,
    messages: MessageCounts,
}

impl Wire {
    fn send(&mut self, from: usize, packet: Packet) {
        let config = &self.config;
        let delay = if config.delay.is_empty() || config.delay.start() == config.delay.end() {
            *config.delay.start()
        } else {
            self.rng.random_range(config.delay.clone())
        };
        let to = &mut self.sides[1 - from];
        let mut arrival = Instant::now() + delay;
        if let Some(last) = to.last_arrival {
            arrival = arrival.max(last);
        }
        to.last_arrival = Some(arrival);
        to.inbound.push_back((arrival, packet));
        to.wake();
    }

    /// Takes in what has arrived by now; returns when the next message arrives.
    fn receive(&mut self, side: usize) -> Option<Instant> {
        loop {
            let this = &mut self.sides[side];
            let (arrival, _) = this.inbound.front()?;
            if this.silent {
                this.inbound.clear();
                return None;
            }
            if *arrival > Instant::now() {
                return Some(*arrival);
            }
            let (_, packet) = this.inbound.pop_front()?;
            self.deliver(side, packet);
        }
    }

    fn deliver(&mut self, side: usize, packet: Packet) {
        match packet {
            Packet::Open { channel, label } => {
                let this = &mut self.sides[side];
                this.channels.insert(channel, Channel::default());
                let channel = ChannelId::new(channel);
                this.events
                    .push_back(CarrierEvent::Opened { channel, label });
            }
            Packet::Data { channel, bytes } => {
                self.arrived(1 - side, channel, bytes.len());
                self.receive_data(side, channel, bytes);
            }
            Packet::Close { channel } => {
                let this = &mut self.sides[side];
                if let Some(entry) = this.channels.get_mut(&channel) {
                    entry.closed_by_peer = true;
                    if entry.unread.is_empty() {
                        this.channels.remove(&channel);
                    }
                    // If both close at once this is the answer to our own, too.
                    let channel = ChannelId::new(channel);
                    this.events.push_back(CarrierEvent::Closed { channel });
                }
                self.send(side, Packet::Closed { channel });
            }
            Packet::Closed { channel } => {
                let this = &mut self.sides[side];
                if this.channels.remove(&channel).is_some() {
                    let channel = ChannelId::new(channel);
                    this.events.push_back(CarrierEvent::Closed { channel });
                }
            }
            Packet::Notice { message }
                if message.reason.is_some() && self.sides[side].goodbye.is_none() =>
            {
                self.sides[side].goodbye = Some(message);
            }
            Packet::Notice { message } => {
                let notice = CarrierEvent::Notice { message };
                self.sides[side].events.push_back(notice);
            }
            Packet::Goodbye => {
                let this = &mut self.sides[side];
                let goodbye = this.goodbye.take();
                this.dead = Some(ConnectionError::ClosedByPeer.explained(goodbye));
            }
        }
    }

    fn receive_data(&mut self, side: usize, channel: u64, bytes: Bytes) {
        let merge = self.rng.random_bool(self.config.merge);
        let cut = (bytes.len() > 1 && self.rng.random_bool(self.config.split))
            .then(|| self.rng.random_range(1..bytes.len()));
        let this = &mut self.sides[side];
        let Some(entry) = this.channels.get_mut(&channel).filter(|c| !c.closing) else {
            return;
        };
        match entry.unread.back_mut() {
            Some(last) if merge => {
                let mut both = BytesMut::from(&last[..]);
                both.extend_from_slice(&bytes);
                *last = both.freeze();
            }
            _ => match cut {
                Some(at) => {
                    entry.unread.push_back(bytes.slice(..at));
                    entry.unread.push_back(bytes.slice(at..));
                }
                None => entry.unread.push_back(bytes),
            },
        }
        let channel = ChannelId::new(channel);
        this.events.push_back(CarrierEvent::Readable { channel });
    }

    /// A message of `sender` has arrived: its budget and its wish to know are served.
    fn arrived(&mut self, sender: usize, channel: u64, bytes: usize) {
        let budget = self.config.budget;
        let side = &mut self.sides[sender];
        side.in_flight = side.in_flight.saturating_sub(bytes);
        let mut woken = false;
        if side.refused && side.in_flight <= budget / 2 {
            side.refused = false;
            side.events.push_back(CarrierEvent::Writable);
            woken = true;
        }
        if let Some(entry) = side.channels.get_mut(&channel) {
            entry.undelivered = entry.undelivered.saturating_sub(1);
            if entry.undelivered == 0 && std::mem::take(&mut entry.notify) {
                let channel = ChannelId::new(channel);
                side.events.push_back(CarrierEvent::Delivered { channel });
                woken = true;
            }
        }
        if woken {
            side.wake();
        }
    }

    /// Whether a frame carries a flag that the test wants to lose.
    fn is_dropped(&mut self, side: usize, channel: u64, frame: &Bytes) -> bool {
        if self.drop_flags.is_empty() {
            return false;
        }
        let Some(entry) = self.sides[side].channels.get_mut(&channel) else {
            return false;
        };
        let decoder = entry.decoder.get_or_insert_with(FrameDecoder::new);
        decoder.push(frame.clone());
        match decoder.next_message() {
            Ok(Some(message)) => message
                .flag
                .is_some_and(|flag| self.drop_flags.contains(&flag)),
            _ => false,
        }
    }
}

impl Carrier for MemoryCarrier {
    fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Result<CarrierEvent, ConnectionError>> {
        loop {
            let next = {
                let mut wire = lock(&self.wire);
                let next = wire.receive(self.side);
                let side = &mut wire.sides[self.side];
                if let Some(event) = side.events.pop_front() {
                    return Poll::Ready(Ok(event));
                }
                if let Some(cause) = side.dead.clone().filter(|_| next.is_none()) {
                    return Poll::Ready(Err(cause));
                }
                side.waker = Some(cx.waker().clone());
                next
            };
            let Some(at) = next else {
                return Poll::Pending;
            };
            if self.timer.deadline() != at {
                self.timer.as_mut().reset(at);
            }
            std::task::ready!(self.timer.as_mut().poll(cx));
        }
    }

    fn open(&mut self, label: &str) -> Result<ChannelId, OpenChannelError> {
        let mut wire = lock(&self.wire);
        let max_channels = wire.config.max_channels;
        let side = &mut wire.sides[self.side];
        if side.dead.is_some() || side.closed {
            return Err(OpenChannelError::Closed);
        }
        if side.channels.len() >= max_channels {
            return Err(OpenChannelError::Exhausted);
        }
        let channel = self.next_channel;
        self.next_channel += 2;
        side.channels.insert(channel, Channel::default());
        let label = label.to_owned();
        wire.send(self.side, Packet::Open { channel, label });
        Ok(ChannelId::new(channel))
    }

    fn write(&mut self, channel: ChannelId, frame: &[u8], class: Class) -> Written {
        self.write_vectored(channel, &[frame], class)
    }

    fn write_vectored(&mut self, channel: ChannelId, pieces: &[&[u8]], class: Class) -> Written {
        let mut wire = lock(&self.wire);
        let budget = wire.config.budget;
        let side = &mut wire.sides[self.side];
        if side.dead.is_some() || side.closed {
            return Written::Closed;
        }
        let Some(entry) = side.channels.get_mut(&channel.get()) else {
            return Written::Closed;
        };
        if entry.closing || entry.closed_by_peer {
            return Written::Closed;
        }
        if class == Class::Data && side.in_flight >= budget {
            side.refused = true;
            return Written::Busy;
        }
        let bytes = Bytes::from(pieces.concat());
        if wire.is_dropped(self.side, channel.get(), &bytes) {
            return Written::Taken;
        }
        let side = &mut wire.sides[self.side];
        side.in_flight += bytes.len();
        if let Some(entry) = side.channels.get_mut(&channel.get()) {
            entry.undelivered += 1;
        }
        let channel = channel.get();
        wire.send(self.side, Packet::Data { channel, bytes });
        self.messages.sent += 1;
        Written::Taken
    }

    fn read(&mut self, channel: ChannelId) -> Option<Bytes> {
        let mut wire = lock(&self.wire);
        let side = &mut wire.sides[self.side];
        let entry = side.channels.get_mut(&channel.get())?;
        let bytes = entry.unread.pop_front();
        if entry.closed_by_peer && entry.unread.is_empty() {
            side.channels.remove(&channel.get());
        }
        self.messages.received += u64::from(bytes.is_some());
        bytes
    }

    fn message_counts(&self) -> MessageCounts {
        self.messages
    }

    fn notify_delivered(&mut self, channel: ChannelId) {
        let mut wire = lock(&self.wire);
        let side = &mut wire.sides[self.side];
        if let Some(entry) = side.channels.get_mut(&channel.get()) {
            if entry.undelivered == 0 {
                side.events.push_back(CarrierEvent::Delivered { channel });
                side.wake();
            } else {
                entry.notify = true;
            }
        }
    }

    fn close_channel(&mut self, channel: ChannelId) {
        let mut wire = lock(&self.wire);
        let side = &mut wire.sides[self.side];
        let Some(entry) = side.channels.get_mut(&channel.get()) else {
            return;
        };
        entry.unread.clear();
        if entry.closed_by_peer {
            side.channels.remove(&channel.get());
        } else if !std::mem::replace(&mut entry.closing, true) {
            let channel = channel.get();
            wire.send(self.side, Packet::Close { channel });
        }
    }

    fn max_message(&self) -> usize {
        MAX_FRAME
    }

    fn holds_back_unread(&self) -> bool {
        lock(&self.wire).config.holds_back_unread
    }

    fn carries_notices(&self) -> bool {
        lock(&self.wire).config.carries_notices
    }

    fn write_notice(&mut self, frame: &[u8]) -> Written {
        let mut decoder = FrameDecoder::new();
        decoder.push(Bytes::copy_from_slice(frame));
        if let Ok(Some(message)) = decoder.next_message() {
            lock(&self.wire).send(self.side, Packet::Notice { message });
        }
        Written::Taken
    }

    fn begin_close(&mut self, cause: &ConnectionError) {
        if self.carries_notices() {
            let message = cause.goodbye();
            lock(&self.wire).send(self.side, Packet::Notice { message });
        }
    }

    fn poll_close(&mut self, _cx: &mut Context<'_>) -> Poll<()> {
        let mut wire = lock(&self.wire);
        if !std::mem::replace(&mut wire.sides[self.side].closed, true) {
            wire.send(self.side, Packet::Goodbye);
        }
        Poll::Ready(())
    }
}

impl Drop for MemoryCarrier {
    fn drop(&mut self) {
        let mut wire = lock(&self.wire);
        wire.sides[self.side].channels.clear();
        wire.sides[self.side].inbound.clear();
        if !std::mem::replace(&mut wire.sides[self.side].closed, true) {
            wire.send(self.side, Packet::Goodbye);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{MemoryCarrier, MemoryConfig, pair};

    async fn plain() -> (MemoryCarrier, MemoryCarrier) {
        let (a, b, _) = pair(MemoryConfig::default());
        (a, b)
    }

    async fn hostile() -> (MemoryCarrier, MemoryCarrier) {
        let (a, b, _) = pair(MemoryConfig::hostile(7));
        (a, b)
    }

    /// A budget of one frame: busy after each.
    async fn narrow() -> (MemoryCarrier, MemoryCarrier) {
        let mut config = MemoryConfig::hostile(8);
        config.budget = 1;
        config.delay = Duration::from_millis(1)..=Duration::from_millis(2);
        let (a, b, _) = pair(config);
        (a, b)
    }

    crate::carrier_conformance!(paused plainly, plain);
    crate::carrier_conformance!(paused hostilely, hostile);
    crate::carrier_conformance!(paused narrowly, narrow);
}
