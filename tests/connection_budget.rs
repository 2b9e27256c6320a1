//! The work of one poll of a driver, in frames and events: a peer that sends much, or very often,
//! gets no more of it than others.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Instant;

use anabranch::carrier::{Carrier, CarrierEvent, ChannelId, Class, OpenChannelError, Written};
use anabranch::connection::Driver;
use anabranch::message::{Flag, Message};
use anabranch::substream::code;
use anabranch::{Config, Connection, ConnectionError, Negotiation};
use bytes::Bytes;
use tokio::io::AsyncWriteExt;

/// Maximum frames that one poll may receive: its units of work, and its last round.
const MOST_PER_POLL: u64 = 512 + 128;

/// What a scripted peer has sent: events, and messages on its channels.
#[derive(Default)]
struct Script {
    events: VecDeque<CarrierEvent>,
    unread: Vec<VecDeque<Bytes>>,
    /// Endless events of this kind.
    endless: Option<CarrierEvent>,
    /// The carrier ends after the events.
    ends: bool,
    holds_back: bool,
    /// The frames that this side has written.
    written: Arc<AtomicUsize>,
    /// Empty reads, each announced again, before there is something.
    misses: Arc<AtomicUsize>,
}

impl Script {
    /// Channels with these messages, all of which have arrived.
    fn of(channels: Vec<Vec<Bytes>>) -> Self {
        let mut script = Self::default();
        for (number, messages) in channels.into_iter().enumerate() {
            let channel = ChannelId::new(number as u64);
            let label = String::new();
            script
                .events
                .push_back(CarrierEvent::Opened { channel, label });
            script.unread.push(messages.into());
        }
        for number in 0..script.unread.len() {
            let channel = ChannelId::new(number as u64);
            script.events.push_back(CarrierEvent::Readable { channel });
        }
        script
    }
}

impl Carrier for Script {
    fn poll_event(&mut self, _: &mut Context<'_>) -> Poll<Result<CarrierEvent, ConnectionError>> {
        match self.events.pop_front().or_else(|| self.endless.clone()) {
            Some(event) => Poll::Ready(Ok(event)),
            None if self.ends => Poll::Ready(Err(ConnectionError::ClosedByPeer)),
            None => Poll::Pending,
        }
    }

    fn open(&mut self, _: &str) -> Result<ChannelId, OpenChannelError> {
        self.unread.push(VecDeque::new());
        Ok(ChannelId::new(self.unread.len() as u64 - 1))
    }

    fn write(&mut self, _: ChannelId, frame: &[u8], _: Class) -> Written {
        self.written.fetch_add(frame.len(), Ordering::Relaxed);
        Written::Taken
    }

    fn read(&mut self, channel: ChannelId) -> Option<Bytes> {
        if self.misses.load(Ordering::Relaxed) > 0 {
            self.misses.fetch_sub(1, Ordering::Relaxed);
            self.events.push_back(CarrierEvent::Readable { channel });
            return None;
        }
        self.unread.get_mut(channel.get() as usize)?.pop_front()
    }

    fn notify_delivered(&mut self, _: ChannelId) {}

    fn close_channel(&mut self, channel: ChannelId) {
        if let Some(unread) = self.unread.get_mut(channel.get() as usize) {
            unread.clear();
        }
    }

    fn max_message(&self) -> usize {
        16_384
    }

    fn holds_back_unread(&self) -> bool {
        self.holds_back
    }

    fn poll_close(&mut self, _: &mut Context<'_>) -> Poll<()> {
        Poll::Ready(())
    }
}

/// Counts how often a driver requests another poll.
#[derive(Default)]
struct Wakes(AtomicUsize);

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// A driver that is polled by hand.
struct ByHand {
    connection: Connection,
    driver: std::pin::Pin<Box<Driver<Script>>>,
    wakes: Arc<Wakes>,
}

impl ByHand {
    fn new(script: Script, change: impl FnOnce(&mut Config)) -> Self {
        let mut config = Config::default();
        config.negotiation = Negotiation::None;
        change(&mut config);
        config.validate().expect("settings that work together");
        let (connection, driver) = Connection::over(script, Arc::new(config));
        Self {
            connection,
            driver: Box::pin(driver),
            wakes: Arc::default(),
        }
    }

    /// Polls once; returns whether the driver requests another poll.
    fn poll(&mut self) -> bool {
        let waker = Waker::from(Arc::clone(&self.wakes));
        let before = self.wakes.0.load(Ordering::Relaxed);
        let polled = self.driver.as_mut().poll(&mut Context::from_waker(&waker));
        polled.is_pending() && self.wakes.0.load(Ordering::Relaxed) > before
    }

    fn frames(&self) -> u64 {
        self.connection.stats().frames_received
    }
}

/// 2 MiB in messages of 16 KiB, filled with this frame.
fn full_of(frame: &[u8]) -> Vec<Bytes> {
    let message: Bytes = frame.repeat(16 * 1024 / frame.len()).into();
    let messages = 2 * 1024 * 1024 / message.len();
    vec![message; messages]
}

#[tokio::test]
async fn two_mebibytes_of_any_frames_are_read_in_polls_of_a_bounded_number_of_frames() {
    let full = Message::data(Bytes::from(vec![7; 16_000])).encode();
    let credit = Message::credit(1 << 20).encode();
    let tiny = Message::data(Bytes::from_static(b"x")).encode();
    for holds_back in [false, true] {
        for (what, frame) in [
            ("empty frames", &[0][..]),
            ("unknown flags", &[2, 8, 9]),
            ("credit that raises nothing", &credit),
            ("payload of one byte", &tiny),
            ("full frames", &full),
        ] {
            let mut script = Script::of(vec![full_of(frame)]);
            script.holds_back = holds_back;
            let mut by_hand = ByHand::new(script, |config| {
                config.max_frames_without_effect = u32::MAX;
                config.receive_window = 8 << 20;
                config.substream_ceiling = 16 << 20;
            });
            let begun = Instant::now();
            let (mut polls, mut longest) = (0, std::time::Duration::ZERO);
            loop {
                let before = by_hand.frames();
                let begin = Instant::now();
                let again = by_hand.poll();
                longest = longest.max(begin.elapsed());
                polls += 1;
                let frames = by_hand.frames() - before;
                assert!(frames <= MOST_PER_POLL, "{what}: {frames} frames in a poll");
                if !again {
                    break;
                }
            }
            let expected = full_of(frame)
                .iter()
                .map(|m| m.len() / frame.len())
                .sum::<usize>();
            assert_eq!(by_hand.frames(), expected as u64, "{what}");
            let mean = begun.elapsed() / polls;
            println!("{what}: {expected} frames in {polls} polls of {mean:?}, at most {longest:?}");
        }
    }
}

/// As the direct engine, when a peer has sent many messages without payload.
#[tokio::test]
async fn a_channel_that_has_nothing_and_is_announced_again_does_not_keep_a_poll() {
    let small = Message::data(Bytes::from_static(b"at last")).encode();
    let script = Script::of(vec![vec![small]]);
    let misses = Arc::clone(&script.misses);
    let many = 100 * MOST_PER_POLL as usize;
    misses.store(many, Ordering::Relaxed);
    let mut by_hand = ByHand::new(script, |_| {});
    let mut before = many;
    while by_hand.poll() {
        let left = misses.load(Ordering::Relaxed);
        assert!(
            before - left <= MOST_PER_POLL as usize,
            "{before} to {left}"
        );
        before = left;
    }
    assert_eq!(before, 0);
    assert_eq!(by_hand.connection.stats().payload_received, 7);
}

#[tokio::test]
async fn a_flood_on_one_channel_holds_up_neither_its_neighbours_nor_writes() {
    for holds_back in [false, true] {
        let small = Message::data(Bytes::from_static(b"neighbour")).encode();
        let mut script = Script::of(vec![
            full_of(&[0]),
            full_of(&[0]),
            full_of(&[0]),
            vec![small],
        ]);
        script.holds_back = holds_back;
        let written = Arc::clone(&script.written);
        let mut by_hand = ByHand::new(script, |config| {
            config.max_frames_without_effect = u32::MAX;
        });
        let connection = by_hand.connection.clone();
        let mut opening = Box::pin(connection.open(""));
        let mut cx = Context::from_waker(Waker::noop());
        assert!(opening.as_mut().poll(&mut cx).is_pending());
        assert!(by_hand.poll(), "there is more to do");
        // The same poll has received the neighbour's bytes, and has opened a channel.
        assert_eq!(by_hand.connection.stats().payload_received, 9);
        let Poll::Ready(Ok(mut ours)) = opening.as_mut().poll(&mut cx) else {
            panic!("not opened");
        };
        ours.write_all(&[1; 500]).await.unwrap();
        let before = written.load(Ordering::Relaxed);
        assert!(by_hand.poll(), "there is more to do");
        assert!(written.load(Ordering::Relaxed) >= before + 500);
    }
}

#[tokio::test]
async fn events_without_end_do_not_keep_a_poll() {
    let channel = ChannelId::new(77);
    let events = [
        CarrierEvent::Writable,
        CarrierEvent::Delivered { channel },
        CarrierEvent::Readable { channel },
        CarrierEvent::Closed { channel },
    ];
    for event in events {
        let script = Script {
            endless: Some(event),
            ..Script::default()
        };
        let mut by_hand = ByHand::new(script, |_| {});
        assert!(by_hand.poll(), "the driver wakes itself");
    }
}

#[tokio::test]
async fn what_arrived_before_the_end_of_the_carrier_is_read_before_it() {
    for holds_back in [false, true] {
        let tiny = Message::data(Bytes::from_static(b"x")).encode();
        let frames = 5000;
        let fin = Message::flag(Flag::Fin).encode();
        let mut script = Script::of(vec![vec![tiny.repeat(frames).into(), fin]]);
        script.holds_back = holds_back;
        script.ends = true;
        let mut by_hand = ByHand::new(script, |_| {});
        while by_hand.poll() {}
        let mut there = by_hand
            .connection
            .accept()
            .await
            .unwrap()
            .expect("it was there before the end");
        let mut all = Vec::new();
        tokio::io::AsyncReadExt::read_to_end(&mut there, &mut all)
            .await
            .unwrap();
        assert_eq!(all.len(), frames);
        drop(there);
        assert!(by_hand.connection.is_idle());
    }
}

#[tokio::test]
async fn a_closed_channel_ends_when_it_is_read() {
    let tiny = Message::data(Bytes::from_static(b"x")).encode();
    let mut script = Script::of(vec![vec![tiny.repeat(5000).into()]]);
    let channel = ChannelId::new(0);
    script.events.push_back(CarrierEvent::Closed { channel });
    let mut by_hand = ByHand::new(script, |_| {});
    while by_hand.poll() {}
    assert_eq!(by_hand.connection.stats().payload_received, 5000);
    assert_eq!(by_hand.connection.stats().substreams, 0);
}

#[tokio::test]
async fn empty_frames_reset_their_substream_and_then_end_the_connection() {
    let channels = (0..4).map(|_| full_of(&[0])).collect();
    let mut by_hand = ByHand::new(Script::of(channels), |config| {
        config.max_frames_without_effect = 100;
    });
    while by_hand.poll() {}
    let stats = by_hand.connection.stats();
    assert!(stats.without_effect <= 1000, "{stats:?}");
    assert!(stats.violations > 0, "{stats:?}");
    assert_eq!(
        by_hand.connection.close_reason(),
        Some(ConnectionError::TooManyFramesWithoutEffect)
    );
}

#[tokio::test]
async fn a_single_flooded_substream_is_reset_with_a_code_and_its_neighbour_lives() {
    let small = Message::data(Bytes::from_static(b"neighbour")).encode();
    let script = Script::of(vec![full_of(&[0]), vec![small]]);
    let mut by_hand = ByHand::new(script, |config| {
        config.max_frames_without_effect = 100;
    });
    while by_hand.poll() {}
    assert_eq!(by_hand.connection.close_reason(), None);
    assert_eq!(by_hand.connection.stats().violations, 1);
    let mut ends = Vec::new();
    for _ in 0..2 {
        let mut substream = by_hand.connection.accept().await.unwrap().unwrap();
        ends.push(
            substream
                .write_all(b"?")
                .await
                .err()
                .map(|error| error.to_string()),
        );
    }
    let code = format!("{:?}", Some(code::RATE_LIMITED));
    assert!(ends[0].as_ref().unwrap().contains(&code), "{ends:?}");
    assert_eq!(ends[1], None);
}
