//! A carrier in memory, with those faults that a real carrier passes on to the layers above it.
//!
//! [`pair`] creates two connected carriers. Every fault follows from the seed in [`MemoryConfig`],
//! and time is tokio's: on a paused clock every run is the same.
//!
//! ```
//! use std::sync::Arc;
//!
//! use anabranch::{Config, Connection, Negotiation};
//! use anabranch_testkit::memory::{MemoryConfig, pair};
//! use tokio::io::{AsyncReadExt, AsyncWriteExt};
//!
//! # #[tokio::main(flavor = "current_thread", start_paused = true)]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let mut config = Config::default();
//! config.negotiation = Negotiation::None;
//! let config = Arc::new(config);
//! let (a, b, _faults) = pair(MemoryConfig::hostile(7));
//! let (a, driver) = Connection::over(a, Arc::clone(&config));
//! tokio::spawn(driver);
//! let (b, driver) = Connection::over(b, config);
//! tokio::spawn(driver);
//!
//! let mut sender = a.open("").await?;
//! sender.write_all(b"hello").await?;
//! let mut receiver = b.accept().await?.expect("the connection is open");
//! let mut received = [0; 5];
//! receiver.read_exact(&mut received).await?;
//! assert_eq!(&received, b"hello");
//! # Ok(())
//! # }
//! ```

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

mod faults;

pub use faults::Faults;

/// How a [`pair`] of carriers behaves, in both directions.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct MemoryConfig {
    /// Seed of every random choice. Print it when a test fails. Default: 0.
    pub seed: u64,
    /// Delay of a message, drawn from this range for each message. Messages are never reordered.
    /// Default: zero.
    pub delay: std::ops::RangeInclusive<Duration>,
    /// Bytes in flight from which a carrier refuses data with [`Written::Busy`]. Default: 128 KiB.
    pub budget: usize,
    /// Probability (0.0 to 1.0) that a message arrives in two pieces. Default: 0.
    pub split: f64,
    /// Probability (0.0 to 1.0) that a message is merged with an unread one before it. Default: 0.
    pub merge: f64,
    /// What [`Carrier::holds_back_unread`] returns. Default: `false`.
    pub holds_back_unread: bool,
    /// Maximum open channels of each side, beyond which [`Carrier::open`] fails with
    /// [`OpenChannelError::Exhausted`]. Default: 32 768.
    pub max_channels: usize,
    /// What [`Carrier::carries_notices`] returns. Default: `true`.
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
    /// Returns a configuration that splits and merges 40 % of the messages, delays each by up to
    /// 40 ms, and has a budget of 32 KiB.
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

/// Creates two connected carriers, and the handle that injects faults between them.
///
/// # Panics
/// The carriers panic when a message arrives if [`MemoryConfig::split`] or [`MemoryConfig::merge`]
/// is not between 0.0 and 1.0.
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
        messages: MessageCounts::default(),
        // Even and odd ids, as in SCTP: those of the two sides cannot collide.
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

/// State of one carrier.
#[derive(Debug, Default)]
struct Side {
    /// Packets in flight to this side, ordered by arrival time, which the sender makes monotonic.
    inbound: VecDeque<(Instant, Packet)>,
    last_arrival: Option<Instant>,
    channels: BTreeMap<u64, Channel>,
    events: VecDeque<CarrierEvent>,
    /// Bytes sent that have not arrived at the other side.
    in_flight: usize,
    /// A write was refused as busy, so `Writable` is due.
    refused: bool,
    waker: Option<Waker>,
    silent: bool,
    dead: Option<ConnectionError>,
    /// The notice with which the peer explained its close.
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
    /// Messages written that have not arrived at the other side.
    undelivered: usize,
    /// `Delivered` is due when `undelivered` reaches zero.
    notify: bool,
    /// The peer closed the channel; it is removed once it has been read to its end.
    closed_by_peer: bool,
    /// This side closed the channel; the peer has not confirmed it.
    closing: bool,
    /// Decodes written frames, to find flags that are to be dropped.
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
    /// Confirms a close.
    Closed {
        channel: u64,
    },
    /// A frame about the connection itself.
    Notice {
        message: Message,
    },
    /// The peer's carrier was closed or dropped.
    Goodbye,
}

/// One side of a [`pair`]. Implements [`Carrier`] without I/O.
///
/// # Drop
/// Discards what has arrived. What was written before still reaches the peer, whose carrier then
/// fails with [`ConnectionError::ClosedByPeer`].
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

    /// Delivers the packets that have arrived by now. Returns the arrival time of the next one.
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
                self.acknowledge(1 - side, channel, bytes.len());
                self.receive_data(side, channel, bytes);
            }
            Packet::Close { channel } => {
                let this = &mut self.sides[side];
                if let Some(entry) = this.channels.get_mut(&channel) {
                    entry.closed_by_peer = true;
                    if entry.unread.is_empty() {
                        this.channels.remove(&channel);
                    }
                    // If both sides close at once, this also confirms our own close.
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

    /// Releases the budget of a message of `sender` that has arrived, and reports `Writable` and
    /// `Delivered` to it if they are due.
    fn acknowledge(&mut self, sender: usize, channel: u64, bytes: usize) {
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

    /// Whether a frame has a flag of [`Faults::drop_flag`].
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

    /// A budget of one frame: busy after every frame.
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
