//! A peer that sends arbitrary frames, and a carrier that checks the frames written to it.

use std::collections::HashMap;
use std::future::poll_fn;
use std::task::{Context, Poll};

use bytes::Bytes;

use crate::memory::MemoryCarrier;
use anabranch::carrier::{
    Carrier, CarrierEvent, ChannelId, Class, MessageCounts, OpenChannelError, Written,
};
use anabranch::connection::ConnectionError;
use anabranch::message::{Flag, FrameDecoder, MAX_FRAME, Message};

/// Rounds in which all other tasks run between two actions of a peer.
const ROUNDS: usize = 8;

/// The remote side of a carrier, which need not follow the protocol.
pub(super) struct Peer {
    carrier: MemoryCarrier,
    opened: Vec<ChannelId>,
    pub(super) closed: Vec<ChannelId>,
    inbound: Vec<(ChannelId, Bytes)>,
    /// Does not poll its carrier, as a process that is not scheduled.
    pub(super) is_paused: bool,
}

impl Peer {
    pub(super) fn new(carrier: MemoryCarrier) -> Self {
        Self {
            carrier,
            opened: Vec::new(),
            closed: Vec::new(),
            inbound: Vec::new(),
            is_paused: false,
        }
    }

    pub(super) fn open(&mut self) -> ChannelId {
        self.carrier.open("").expect("a channel is free")
    }

    /// Writes bytes. Returns `false` if the channel is closed or not known yet.
    pub(super) fn send(&mut self, channel: ChannelId, bytes: &[u8]) -> bool {
        self.carrier.write(channel, bytes, Class::Control) == Written::Taken
    }

    pub(super) fn close(&mut self, channel: ChannelId) {
        self.carrier.close_channel(channel);
    }

    /// Channels opened by the other side since the last call.
    pub(super) fn opened(&mut self) -> Vec<ChannelId> {
        std::mem::take(&mut self.opened)
    }

    /// Bytes received since the last call.
    pub(super) fn received(&mut self) -> Vec<(ChannelId, Bytes)> {
        std::mem::take(&mut self.inbound)
    }

    fn poll(&mut self, cx: &mut Context<'_>) {
        if self.is_paused {
            return;
        }
        while let Poll::Ready(Ok(event)) = self.carrier.poll_event(cx) {
            let channel = match event {
                CarrierEvent::Opened { channel, .. } => {
                    self.opened.push(channel);
                    continue;
                }
                CarrierEvent::Readable { channel } => channel,
                CarrierEvent::Closed { channel } => {
                    self.closed.push(channel);
                    channel
                }
                _ => continue,
            };
            while let Some(bytes) = self.carrier.read(channel) {
                self.inbound.push((channel, bytes));
            }
        }
    }

    /// Lets all tasks run for some rounds, without the clock advancing.
    pub(super) async fn settle(&mut self) {
        for _ in 0..ROUNDS {
            poll_fn(|cx| {
                self.poll(cx);
                Poll::Ready(())
            })
            .await;
            tokio::task::yield_now().await;
        }
    }

    /// Awaits `future` and receives meanwhile.
    pub(super) async fn drive<T>(&mut self, future: impl Future<Output = T>) -> T {
        let mut future = std::pin::pin!(future);
        poll_fn(|cx| {
            self.poll(cx);
            future.as_mut().poll(cx)
        })
        .await
    }
}

/// What was sent on a channel so far.
#[derive(Debug, Default)]
struct Sent {
    fin: bool,
    fin_ack: bool,
    stop: bool,
    reset: bool,
    credit: u64,
}

impl Sent {
    /// Row H-14: FIN, FIN_ACK, STOP_SENDING and RESET at most once, nothing after RESET, no data
    /// after FIN, flags without payload, credit never decreases.
    fn check(&mut self, message: &Message, class: Class) {
        let context = || format!("{message:?} after {self:?}");
        assert!(!self.reset, "a frame after RESET: {}", context());
        assert!(!message.unknown_flag && message.stream.is_none() && message.label.is_none());
        if message.payload.is_empty() {
            assert_eq!(class, Class::Control, "{}", context());
            assert!(message.flag.is_some() || message.max_data.is_some());
        } else {
            assert_eq!(class, Class::Data, "{}", context());
            assert!(!self.fin, "data after FIN: {}", context());
            assert_eq!(message.flag, None, "{}", context());
        }
        if let Some(credit) = message.max_data {
            assert!(credit >= self.credit, "credit decreases: {}", context());
            self.credit = credit;
        }
        let again = match message.flag {
            None => false,
            Some(Flag::Fin) => std::mem::replace(&mut self.fin, true),
            Some(Flag::FinAck) => std::mem::replace(&mut self.fin_ack, true),
            Some(Flag::StopSending) => std::mem::replace(&mut self.stop, true),
            Some(Flag::ResetStream) => std::mem::replace(&mut self.reset, true),
        };
        assert!(!again, "{:?} twice", message.flag);
    }
}

/// A carrier that checks every frame written to it against the rules of the protocol.
pub(super) struct Checked<C> {
    inner: C,
    sent: HashMap<ChannelId, Sent>,
}

impl<C> Checked<C> {
    pub(super) fn new(inner: C) -> Self {
        Self {
            inner,
            sent: HashMap::new(),
        }
    }
}

impl<C: Carrier> Checked<C> {
    fn check(&mut self, channel: ChannelId, frame: &[u8], class: Class) {
        assert!(frame.len() <= MAX_FRAME, "{} bytes", frame.len());
        let mut decoder = FrameDecoder::new();
        decoder.push(Bytes::copy_from_slice(frame));
        let message = decoder.next_message().expect("a valid frame");
        assert!(decoder.is_empty(), "more than one frame in a write");
        let message = message.expect("a whole frame");
        self.sent.entry(channel).or_default().check(&message, class);
    }
}

impl<C: Carrier> Carrier for Checked<C> {
    fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Result<CarrierEvent, ConnectionError>> {
        self.inner.poll_event(cx)
    }

    fn open(&mut self, label: &str) -> Result<ChannelId, OpenChannelError> {
        self.inner.open(label)
    }

    fn write(&mut self, channel: ChannelId, frame: &[u8], class: Class) -> Written {
        let written = self.inner.write(channel, frame, class);
        if written == Written::Taken {
            self.check(channel, frame, class);
        }
        written
    }

    fn write_vectored(&mut self, channel: ChannelId, pieces: &[&[u8]], class: Class) -> Written {
        let written = self.inner.write_vectored(channel, pieces, class);
        if written == Written::Taken {
            self.check(channel, &pieces.concat(), class);
        }
        written
    }

    fn read(&mut self, channel: ChannelId) -> Option<Bytes> {
        self.inner.read(channel)
    }

    fn notify_delivered(&mut self, channel: ChannelId) {
        self.inner.notify_delivered(channel);
    }

    fn close_channel(&mut self, channel: ChannelId) {
        self.inner.close_channel(channel);
    }

    fn abandon_channel(&mut self, channel: ChannelId) {
        self.inner.abandon_channel(channel);
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

    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.inner.poll_close(cx)
    }
}
