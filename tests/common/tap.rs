//! A tap between a driver and its carrier.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use anabranch::ConnectionError;
use anabranch::carrier::{
    Carrier, CarrierEvent, ChannelId, Class, MessageCounts, OpenChannelError, Written,
};
use anabranch::message::{Flag, FrameDecoder, Message};
use bytes::Bytes;
use tokio::time::Instant;

/// A frame as it was passed to the carrier.
#[derive(Debug, Clone)]
pub struct SentFrame {
    pub channel: ChannelId,
    pub class: Class,
    pub length: usize,
    pub message: Message,
    pub at: Instant,
    /// The address ranges of its pieces.
    pub pieces: Vec<Range<usize>>,
}

impl SentFrame {
    /// How many of its bytes were in this buffer, which has to be alive still.
    pub fn bytes_in(&self, buffer: &[u8]) -> usize {
        let buffer = place(buffer);
        let is_inside = |piece: &&Range<usize>| contains(&buffer, piece);
        self.pieces.iter().filter(is_inside).map(Range::len).sum()
    }
}

fn place(bytes: &[u8]) -> Range<usize> {
    let start = bytes.as_ptr().addr();
    start..start + bytes.len()
}

fn contains(outer: &Range<usize>, inner: &Range<usize>) -> bool {
    !inner.is_empty() && outer.start <= inner.start && inner.end <= outer.end
}

/// What a [`Tap`] has recorded.
#[derive(Debug, Clone, Default)]
pub struct Log {
    frames: Arc<Mutex<Vec<SentFrame>>>,
    /// The address ranges of what was read from the carrier.
    read: Arc<Mutex<Vec<Range<usize>>>>,
}

impl Log {
    pub fn frames(&self) -> Vec<SentFrame> {
        self.frames.lock().expect("no panic under the lock").clone()
    }

    /// Whether these bytes are in what was read from the carrier.
    pub fn was_read(&self, bytes: &[u8]) -> bool {
        let read = self.read.lock().expect("no panic under the lock");
        read.iter().any(|message| contains(message, &place(bytes)))
    }

    pub fn count(&self, flag: Flag) -> usize {
        self.frames()
            .iter()
            .filter(|frame| frame.message.flag == Some(flag))
            .count()
    }

    /// Row H-14, the oracle: FIN, FIN_ACK, STOP_SENDING and RESET_STREAM at most once on a channel;
    /// nothing after RESET_STREAM, no data after FIN; FIN in a message of its own; credit never
    /// decreases; frames within the maximum length.
    pub fn check(&self) {
        let mut channels: BTreeMap<ChannelId, Vec<SentFrame>> = BTreeMap::new();
        for frame in self.frames() {
            channels.entry(frame.channel).or_default().push(frame);
        }
        for (channel, frames) in channels {
            let mut seen: HashMap<Flag, usize> = HashMap::new();
            let mut max_data = 0;
            for frame in &frames {
                let context = || format!("{channel}: {frame:?} of {frames:#?}");
                let message = &frame.message;
                assert!(frame.length <= 16_384, "{}", context());
                assert!(
                    !seen.contains_key(&Flag::ResetStream),
                    "behind RESET: {}",
                    context()
                );
                if !message.payload.is_empty() {
                    assert!(!seen.contains_key(&Flag::Fin), "behind FIN: {}", context());
                    assert_eq!(message.flag, None, "flags travel alone: {}", context());
                    assert_eq!(frame.class, Class::Data, "{}", context());
                } else {
                    assert_eq!(frame.class, Class::Control, "{}", context());
                    assert!(message.flag.is_some() || message.max_data.is_some());
                }
                if let Some(credit) = message.max_data {
                    assert!(credit >= max_data, "credit falls: {}", context());
                    max_data = credit;
                }
                if let Some(flag) = message.flag {
                    let times = seen.entry(flag).or_default();
                    *times += 1;
                    assert_eq!(*times, 1, "twice: {}", context());
                }
            }
        }
    }
}

/// A carrier that records what the driver writes, and can refuse it.
pub struct Tap<C> {
    inner: C,
    pub log: Log,
    pub gate: Gate,
}

/// Makes a [`Tap`] busy, for control frames too.
#[derive(Debug, Clone, Default)]
pub struct Gate(Arc<GateState>);

#[derive(Debug, Default)]
struct GateState {
    shut: AtomicBool,
    refused: AtomicBool,
    waker: Mutex<Option<Waker>>,
}

impl Gate {
    pub fn shut(&self) {
        self.0.shut.store(true, Ordering::SeqCst);
    }

    pub fn open(&self) {
        self.0.shut.store(false, Ordering::SeqCst);
        if let Some(waker) = self.0.waker.lock().expect("no panic under the lock").take() {
            waker.wake();
        }
    }
}

impl<C> Tap<C> {
    pub fn new(inner: C) -> Self {
        Self {
            inner,
            log: Log::default(),
            gate: Gate::default(),
        }
    }
}

impl<C: Carrier> Carrier for Tap<C> {
    fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Result<CarrierEvent, ConnectionError>> {
        *self.gate.0.waker.lock().expect("no panic under the lock") = Some(cx.waker().clone());
        if !self.gate.0.shut.load(Ordering::SeqCst)
            && self.gate.0.refused.swap(false, Ordering::SeqCst)
        {
            return Poll::Ready(Ok(CarrierEvent::Writable));
        }
        self.inner.poll_event(cx)
    }

    fn open(&mut self, label: &str) -> Result<ChannelId, OpenChannelError> {
        self.inner.open(label)
    }

    fn write(&mut self, channel: ChannelId, frame: &[u8], class: Class) -> Written {
        self.write_vectored(channel, &[frame], class)
    }

    fn write_vectored(&mut self, channel: ChannelId, pieces: &[&[u8]], class: Class) -> Written {
        if self.gate.0.shut.load(Ordering::SeqCst) {
            self.gate.0.refused.store(true, Ordering::SeqCst);
            return Written::Busy;
        }
        let written = self.inner.write_vectored(channel, pieces, class);
        if written == Written::Taken {
            let frame = Bytes::from(pieces.concat());
            let length = frame.len();
            let mut decoder = FrameDecoder::new();
            decoder.push(frame);
            let message = decoder.next_message().expect("frames are sound");
            assert!(decoder.is_empty(), "one frame a write");
            self.log
                .frames
                .lock()
                .expect("no panic under the lock")
                .push(SentFrame {
                    channel,
                    class,
                    length,
                    message: message.expect("frames are whole"),
                    at: Instant::now(),
                    pieces: pieces.iter().map(|piece| place(piece)).collect(),
                });
        }
        written
    }

    fn read(&mut self, channel: ChannelId) -> Option<Bytes> {
        let bytes = self.inner.read(channel)?;
        let mut read = self.log.read.lock().expect("no panic under the lock");
        read.push(place(&bytes));
        Some(bytes)
    }

    fn notify_delivered(&mut self, channel: ChannelId) {
        self.inner.notify_delivered(channel);
    }

    fn close_channel(&mut self, channel: ChannelId) {
        self.inner.close_channel(channel);
    }

    fn max_message(&self) -> usize {
        self.inner.max_message()
    }

    fn message_counts(&self) -> MessageCounts {
        self.inner.message_counts()
    }

    fn holds_back_unread(&self) -> bool {
        self.inner.holds_back_unread()
    }

    fn allow_shut_window(&mut self) {
        self.inner.allow_shut_window();
    }

    fn carries_notices(&self) -> bool {
        self.inner.carries_notices()
    }

    fn write_notice(&mut self, frame: &[u8]) -> Written {
        self.inner.write_notice(frame)
    }

    fn begin_close(&mut self, cause: &ConnectionError) {
        self.inner.begin_close(cause);
    }

    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.inner.poll_close(cx)
    }
}
