//! Shared helpers of tests: two connections over the memory carrier, a scripted peer of frames, a
//! tap.

#![allow(dead_code, missing_docs, unreachable_pub)] // Each test binary uses a part of it.

pub mod seeds;

use std::collections::{HashMap, VecDeque};
use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use anabranch::carrier::{Carrier, CarrierEvent, ChannelId, Class, Written};
use anabranch::message::{Flag, FrameDecoder, Message};
use anabranch::{Config, Connection, ConnectionError, Negotiation, Substream};
use anabranch_testkit::memory::{Faults, MemoryCarrier, MemoryConfig, pair};
use bytes::Bytes;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

mod tap;
pub use tap::*;

/// Longer than every timeout of a default configuration.
pub const LIMIT: Duration = Duration::from_secs(120);

pub fn config() -> Config {
    let mut config = Config::default();
    config.negotiation = Negotiation::None;
    config
}

pub fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|i| (i % 251) as u8).collect()
}

pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    match timeout(LIMIT, future).await {
        Ok(value) => value,
        Err(_) => panic!("waited in vain for: {what}"),
    }
}

/// Runs every task that is ready, without advancing the clock.
pub async fn settle() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

/// Two connections over a pair of memory carriers.
pub struct Pair {
    pub a: Connection,
    pub b: Connection,
    pub faults: Faults,
    pub sent: [Log; 2],
    pub gates: [Gate; 2],
    pub drivers: [JoinHandle<ConnectionError>; 2],
}

impl Pair {
    pub fn new() -> Self {
        Self::with(config(), config(), MemoryConfig::default())
    }

    pub fn with(config_a: Config, config_b: Config, memory: MemoryConfig) -> Self {
        let (a, b, faults) = pair(memory);
        let (a, b) = (Tap::new(a), Tap::new(b));
        let sent = [a.log.clone(), b.log.clone()];
        let gates = [a.gate.clone(), b.gate.clone()];
        let (a, driver_a) = Connection::over(a, Arc::new(config_a));
        let (b, driver_b) = Connection::over(b, Arc::new(config_b));
        Self {
            a,
            b,
            faults,
            sent,
            gates,
            drivers: [tokio::spawn(driver_a), tokio::spawn(driver_b)],
        }
    }

    /// A substream, opened by `a`.
    pub async fn substream(&self) -> (Substream, Substream) {
        let here = within("open", self.a.open(""))
            .await
            .expect("a channel is free");
        let there = within("accept", self.b.accept())
            .await
            .expect("the connection lives");
        (here, there.expect("the connection is open"))
    }

    /// Waits until no substream is left.
    pub async fn idle(&self) {
        let idle = async {
            while self.a.stats().substreams + self.b.stats().substreams > 0
                || self.faults.open_channels() > 0
            {
                sleep(Duration::from_millis(1)).await;
            }
        };
        if timeout(LIMIT, idle).await.is_err() {
            panic!(
                "left: {:?} {:?}, {} channels",
                self.a.stats(),
                self.b.stats(),
                self.faults.open_channels()
            );
        }
    }

    /// The end of every test: asserts that nothing is left.
    pub async fn finish(self) {
        self.idle().await;
        within("close", self.a.close()).await;
        within("the peer's end", self.b.closed()).await;
        for driver in self.drivers {
            within("a driver ends", driver).await.expect("no panic");
        }
        assert!(self.a.is_idle() && self.b.is_idle());
        assert_eq!((self.a.stats().unread, self.b.stats().unread), (0, 0));
        assert_eq!(
            (self.a.stats().substreams, self.b.stats().substreams),
            (0, 0)
        );
        assert_eq!(self.faults.open_channels(), 0);
        for log in &self.sent {
            log.check();
        }
    }
}

/// A scripted peer. It receives nothing, and nothing counts as delivered to it, while the test does
/// not await one of its methods.
pub struct Script {
    carrier: MemoryCarrier,
    decoders: HashMap<ChannelId, FrameDecoder>,
    frames: HashMap<ChannelId, VecDeque<Message>>,
    opened: VecDeque<ChannelId>,
    pub labels: Vec<String>,
    closed: Vec<ChannelId>,
    writable: bool,
}

/// A connection under test, and a scripted peer.
pub struct Scripted {
    pub us: Connection,
    pub peer: Script,
    pub faults: Faults,
    pub sent: Log,
    pub gate: Gate,
    pub driver: JoinHandle<ConnectionError>,
}

pub fn scripted(config: Config, memory: MemoryConfig) -> Scripted {
    let (a, b, faults) = pair(memory);
    let tap = Tap::new(a);
    let (sent, gate) = (tap.log.clone(), tap.gate.clone());
    let (us, driver) = Connection::over(tap, Arc::new(config));
    let peer = Script {
        carrier: b,
        decoders: HashMap::new(),
        frames: HashMap::new(),
        opened: VecDeque::new(),
        labels: Vec::new(),
        closed: Vec::new(),
        writable: false,
    };
    Scripted {
        us,
        peer,
        faults,
        sent,
        gate,
        driver: tokio::spawn(driver),
    }
}

impl Scripted {
    /// A substream that the connection under test opens, and the peer's channel of it.
    pub async fn open(&mut self) -> (Substream, ChannelId) {
        let substream = within("open", self.us.open(""))
            .await
            .expect("a channel is free");
        (substream, self.peer.opened().await)
    }

    /// A substream that the peer opens.
    pub async fn accept(&mut self) -> (Substream, ChannelId) {
        let channel = self.peer.open();
        let substream = within("accept", self.us.accept())
            .await
            .expect("the connection lives");
        (substream.expect("the connection is open"), channel)
    }

    /// Waits until no substream is left, and checks everything that was sent.
    pub async fn finish(mut self) {
        let us = self.us.clone();
        let idle = async {
            while us.stats().substreams > 0 {
                sleep(Duration::from_millis(1)).await;
            }
        };
        if timeout(LIMIT, self.peer.drive_while(idle)).await.is_err() {
            panic!("substreams are left: {:?}", self.us.stats());
        }
        let us = self.us.clone();
        within("close", self.peer.drive_while(us.close())).await;
        within("the driver ends", self.driver)
            .await
            .expect("no panic");
        assert!(self.us.is_idle());
        assert_eq!(self.us.stats().unread, 0);
        self.sent.check();
    }
}

impl Script {
    fn poll(&mut self, cx: &mut Context<'_>) -> bool {
        let mut moved = false;
        while let Poll::Ready(Ok(event)) = self.carrier.poll_event(cx) {
            moved = true;
            match event {
                CarrierEvent::Opened { channel, label } => {
                    self.opened.push_back(channel);
                    self.labels.push(label);
                }
                CarrierEvent::Readable { channel } => self.read(channel),
                CarrierEvent::Closed { channel } => {
                    self.read(channel);
                    self.closed.push(channel);
                }
                CarrierEvent::Writable => self.writable = true,
                _ => {}
            }
        }
        moved
    }

    fn read(&mut self, channel: ChannelId) {
        let decoder = self.decoders.entry(channel).or_default();
        while let Some(bytes) = self.carrier.read(channel) {
            decoder.push(bytes);
        }
        while let Some(message) = decoder.next_message().expect("frames are sound") {
            self.frames.entry(channel).or_default().push_back(message);
        }
    }

    async fn until<T>(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> Option<T>) -> T {
        let driven = poll_fn(|cx| {
            loop {
                if let Some(value) = done(self) {
                    return Poll::Ready(value);
                }
                if !self.poll(cx) {
                    return Poll::Pending;
                }
            }
        });
        within(what, driven).await
    }

    /// Receives while `future` runs.
    pub async fn drive_while<T>(&mut self, future: impl Future<Output = T>) -> T {
        tokio::pin!(future);
        poll_fn(|cx| {
            self.poll(cx);
            future.as_mut().poll(cx)
        })
        .await
    }

    /// Receives for this duration.
    pub async fn run_for(&mut self, duration: Duration) {
        self.drive_while(sleep(duration)).await;
    }

    pub async fn opened(&mut self) -> ChannelId {
        self.until("a channel", |script| script.opened.pop_front())
            .await
    }

    pub fn open(&mut self) -> ChannelId {
        self.carrier.open("").expect("a channel is free")
    }

    pub fn send(&mut self, channel: ChannelId, message: Message) {
        self.send_raw(channel, &message.encode());
    }

    pub fn send_raw(&mut self, channel: ChannelId, bytes: &[u8]) {
        let written = self.carrier.write(channel, bytes, Class::Control);
        assert_eq!(written, Written::Taken);
    }

    /// A frame about the connection.
    pub fn notice(&mut self, message: &Message) {
        assert_eq!(self.carrier.write_notice(&message.encode()), Written::Taken);
    }

    pub fn flag(&mut self, channel: ChannelId, flag: Flag) {
        self.send(channel, Message::flag(flag));
    }

    pub fn data(&mut self, channel: ChannelId, bytes: &[u8]) {
        self.send(channel, Message::data(Bytes::copy_from_slice(bytes)));
    }

    pub fn credit(&mut self, channel: ChannelId, max_data: u64) {
        self.send(channel, Message::credit(max_data));
    }

    /// Data with credit, as the first data of a peer of this crate.
    pub fn data_with_credit(&mut self, channel: ChannelId, bytes: &[u8], max_data: u64) {
        let mut message = Message::data(Bytes::copy_from_slice(bytes));
        message.max_data = Some(max_data);
        self.send(channel, message);
    }

    pub async fn next(&mut self, channel: ChannelId) -> Message {
        self.until("a frame", |script| {
            script.frames.get_mut(&channel)?.pop_front()
        })
        .await
    }

    /// Asserts that the next frame is this one.
    pub async fn expect(&mut self, channel: ChannelId, expected: Message) {
        assert_eq!(self.next(channel).await, expected);
    }

    pub async fn expect_flag(&mut self, channel: ChannelId, flag: Flag) {
        self.expect(channel, Message::flag(flag)).await;
    }

    /// Asserts that the next frames have these payload bytes, with or without credit.
    pub async fn expect_data(&mut self, channel: ChannelId, expected: &[u8]) {
        let mut received = Vec::new();
        while received.len() < expected.len() {
            let message = self.next(channel).await;
            assert_eq!(
                message.flag,
                None,
                "{} of {} bytes",
                received.len(),
                expected.len()
            );
            received.extend_from_slice(&message.payload);
        }
        assert!(
            received == expected,
            "{} of {} bytes",
            received.len(),
            expected.len()
        );
    }

    pub async fn expect_closed(&mut self, channel: ChannelId) {
        self.until("the close of the channel", |script| {
            script.closed.contains(&channel).then_some(())
        })
        .await;
    }

    /// Frames that have arrived and were not expected yet; polls nothing.
    pub fn pending(&self, channel: ChannelId) -> Vec<Message> {
        self.frames
            .get(&channel)
            .into_iter()
            .flatten()
            .cloned()
            .collect()
    }

    pub fn is_closed(&self, channel: ChannelId) -> bool {
        self.closed.contains(&channel)
    }

    /// Asserts that nothing arrives on the channel for this duration.
    pub async fn expect_quiet(&mut self, channel: ChannelId, duration: Duration) {
        self.run_for(duration).await;
        assert_eq!(self.pending(channel), [], "nothing was to come");
    }

    pub fn close(&mut self, channel: ChannelId) {
        self.carrier.close_channel(channel);
    }
}

/// A waker that counts.
#[derive(Debug, Default)]
pub struct CountingWaker(std::sync::atomic::AtomicUsize);

impl CountingWaker {
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    pub fn count(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

impl std::task::Wake for CountingWaker {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

impl Scripted {
    /// The rest of the close of a substream that was dropped after the peer's FIN.
    pub async fn finish_after_fin_ack(mut self, channel: ChannelId) {
        self.peer.expect_flag(channel, Flag::FinAck).await;
        self.peer.expect_flag(channel, Flag::Fin).await;
        self.peer.flag(channel, Flag::FinAck);
        self.peer.expect_closed(channel).await;
        self.finish().await;
    }
}
