//! Either side dies at any step of a transfer and its close: accepted data either arrives, or an
//! error reports that it may not have.
//!
//! A step is one call of a driver to its carrier. In each run one side dies one step later, from
//! the first step to the one after the last.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use anabranch::carrier::{
    Carrier, CarrierEvent, ChannelId, Class, MessageCounts, OpenChannelError, Written,
};
use anabranch::{Connection, ConnectionError, Driver, Finished, ReadHalf, WriteHalf};
use anabranch_testkit::memory::{MemoryConfig, pair};
use bytes::Bytes;
use tokio::io::AsyncWriteExt;

mod common;
use common::{config, pattern, within};

/// The remaining steps of a driver.
#[derive(Debug, Clone)]
struct Life(Arc<AtomicUsize>);

impl Life {
    fn of(steps: usize) -> Self {
        Self(Arc::new(AtomicUsize::new(steps)))
    }

    /// Counts one step; `false` when none is left.
    fn step(&self) -> bool {
        let left = self.0.load(Ordering::SeqCst);
        self.0.store(left.saturating_sub(1), Ordering::SeqCst);
        left > 1
    }

    fn is_over(&self) -> bool {
        self.0.load(Ordering::SeqCst) == 0
    }
}

/// A carrier that does nothing once its side is dead.
struct Mortal<C> {
    inner: C,
    life: Life,
}

impl<C: Carrier> Carrier for Mortal<C> {
    fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Result<CarrierEvent, ConnectionError>> {
        if !self.life.step() {
            return Poll::Pending;
        }
        self.inner.poll_event(cx)
    }

    fn open(&mut self, label: &str) -> Result<ChannelId, OpenChannelError> {
        if !self.life.step() {
            return Err(OpenChannelError::Closed);
        }
        self.inner.open(label)
    }

    fn write(&mut self, channel: ChannelId, frame: &[u8], class: Class) -> Written {
        self.write_vectored(channel, &[frame], class)
    }

    fn write_vectored(&mut self, channel: ChannelId, pieces: &[&[u8]], class: Class) -> Written {
        if !self.life.step() {
            return Written::Busy;
        }
        self.inner.write_vectored(channel, pieces, class)
    }

    fn read(&mut self, channel: ChannelId) -> Option<Bytes> {
        if !self.life.step() {
            return None;
        }
        self.inner.read(channel)
    }

    fn notify_delivered(&mut self, channel: ChannelId) {
        if self.life.step() {
            self.inner.notify_delivered(channel);
        }
    }

    fn close_channel(&mut self, channel: ChannelId) {
        if self.life.step() {
            self.inner.close_channel(channel);
        }
    }

    fn max_message(&self) -> usize {
        self.inner.max_message()
    }

    fn message_counts(&self) -> MessageCounts {
        self.inner.message_counts()
    }

    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.life.step() {
            return Poll::Pending;
        }
        self.inner.poll_close(cx)
    }
}

/// Runs a driver until its side is dead, and then drops it with everything that it owns.
async fn drive<C: Carrier>(driver: Driver<C>, life: Life) {
    let mut driver = Box::pin(driver);
    std::future::poll_fn(|cx| {
        let polled = driver.as_mut().poll(cx);
        if life.is_over() {
            return Poll::Ready(());
        }
        polled.map(|_| ())
    })
    .await;
}

/// How one direction of a transfer ended for its writer.
#[derive(Debug)]
enum Sent {
    Confirmed,
    /// The outcome, or the error, reports that data may not have arrived.
    Unconfirmed,
}

async fn send(mut write: WriteHalf, content: &[u8]) -> Sent {
    for piece in content.chunks(7000) {
        if write.write_all(piece).await.is_err() {
            return Sent::Unconfirmed;
        }
    }
    match write.finish().await {
        Ok(Finished::Acked) => Sent::Confirmed,
        Ok(_) | Err(_) => Sent::Unconfirmed,
    }
}

/// What a reader received, and whether its stream ended in an orderly way.
async fn receive(mut read: ReadHalf) -> (Vec<u8>, bool) {
    let mut got = Vec::new();
    loop {
        match read.read_chunk(3000).await {
            Ok(Some(chunk)) => got.extend_from_slice(&chunk),
            Ok(None) => return (got, true),
            Err(_) => return (got, false),
        }
    }
}

fn check(sent: &Sent, received: &(Vec<u8>, bool), content: &[u8], story: &str) {
    let (got, orderly) = received;
    assert!(
        content.starts_with(got),
        "{story}: {} bytes, out of order or made up",
        got.len()
    );
    if *orderly {
        assert_eq!(got.len(), content.len(), "{story}: an end before the end");
    }
    if matches!(sent, Sent::Confirmed) {
        assert!(
            *orderly && got.len() == content.len(),
            "{story}: confirmed, and {} of {} bytes are there",
            got.len(),
            content.len()
        );
    }
}

/// Both sides write and finish; side `victim` dies at step `steps`. Returns whether it did.
async fn run(memory: MemoryConfig, victim: usize, steps: usize, length: usize) -> bool {
    let story = format!(
        "seed {}, side {victim} dies at step {steps}, {length} bytes",
        memory.seed
    );
    let lives = [0, 1].map(|side| Life::of(if side == victim { steps } else { usize::MAX }));
    let (a, b, _faults) = pair(memory);
    let mortal = |inner, life: &Life| Mortal {
        inner,
        life: life.clone(),
    };
    let (a, driver_a) = Connection::over(mortal(a, &lives[0]), Arc::new(config()));
    let (b, driver_b) = Connection::over(mortal(b, &lives[1]), Arc::new(config()));
    let drivers = [
        tokio::spawn(drive(driver_a, lives[0].clone())),
        tokio::spawn(drive(driver_b, lives[1].clone())),
    ];
    let (there, back) = (pattern(length), pattern(length / 2));
    let opener = async {
        let (read, write) = a.open("").await.ok()?.into_split();
        Some(tokio::join!(send(write, &there), receive(read)))
    };
    let acceptor = async {
        let (read, write) = b.accept().await.ok()??.into_split();
        Some(tokio::join!(send(write, &back), receive(read)))
    };
    let ends = async {
        let opened = async {
            let ends = opener.await;
            if ends.is_none() {
                // Nothing is opened: the other side must not wait for it.
                a.close().await;
            }
            ends
        };
        tokio::join!(opened, acceptor)
    };
    let (opened, accepted) = within(&story, ends).await;
    let nothing = (Sent::Unconfirmed, (Vec::new(), false));
    let (sent_there, got_back) = opened.unwrap_or((nothing.0, nothing.1));
    let nothing = (Sent::Unconfirmed, (Vec::new(), false));
    let (sent_back, got_there) = accepted.unwrap_or((nothing.0, nothing.1));
    check(&sent_there, &got_there, &there, &story);
    check(&sent_back, &got_back, &back, &story);
    let died = lives[victim].is_over();
    within(&story, async { tokio::join!(a.close(), b.close()) }).await;
    for driver in drivers {
        within(&story, driver).await.expect("no panic");
    }
    assert!(a.is_idle() && b.is_idle(), "{story}");
    died
}

async fn run_every_step(memory: &MemoryConfig, length: usize) {
    for victim in [0, 1] {
        let mut steps = 1;
        while run(memory.clone(), victim, steps, length).await {
            steps += 1;
            assert!(steps < 100_000, "a transfer has an end");
        }
        assert!(steps > 10, "it died before it had done anything");
    }
}

#[tokio::test(start_paused = true)]
async fn on_a_plain_carrier() {
    let mut memory = MemoryConfig::default();
    memory.delay = Duration::from_millis(1)..=Duration::from_millis(3);
    for length in [0, 1, 20_000, 100_000] {
        run_every_step(&memory, length).await;
    }
}

#[tokio::test(start_paused = true)]
async fn on_a_carrier_that_cuts_merges_delays_and_is_busy() {
    for seed in 0..10 {
        for length in [0, 30_000] {
            run_every_step(&MemoryConfig::hostile(seed), length).await;
        }
    }
}
