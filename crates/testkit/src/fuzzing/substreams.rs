//! Substreams, as their applications and a peer without rules use them.
//!
//! Held against a model of what each reader may see, the rules of the wire (`Watched`), and the end: what was
//! acknowledged was readable, and nothing is left. Numbers that are used again are a matter of the engine:
//! `webrtc::direct::fuzzing::honest`.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{sleep, timeout};

use super::peer::{Peer, Watched};
use super::{Input, in_virtual_time};
use crate::memory::{Faults, MemoryConfig, pair};
use anabranch::carrier::ChannelId;
use anabranch::connection::{Config, Connection, FinAckPolicy, Negotiation};
use anabranch::message::{Flag, FrameDecoder, Message};
use anabranch::substream::{Finished, Substream};

const MAX_STEPS: usize = 200;

const MAX_SUBSTREAMS: usize = 40;

/// Substreams that are opened at once, and messages of one byte that are written in a row.
const BURSTS: [usize; 4] = [4, 8, 16, 30];

/// Payload bytes that a peer may send before they are read. Small, so that a session exceeds it.
const RECEIVE_WINDOW: u32 = 16 * 1024;

/// The same of all substreams.
const CEILING: usize = 6 * RECEIVE_WINDOW as usize;

/// Longer than every timeout of a close.
const LIMIT: Duration = Duration::from_secs(120);

/// How often a session came to what it is for.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Reached {
    /// Bursts of messages of one byte, of either side.
    pub(super) small: usize,
    /// Bursts of opens, of either side.
    pub(super) bursts: usize,
    /// Substreams that either side reset while the peer did not have all that was written.
    pub(super) resets_in_flight: usize,
    /// Steps while the peer took nothing in.
    pub(super) peer_paused: usize,
    /// Substreams whose bytes all waited for the end before they were read.
    pub(super) read_late: usize,
    /// FINs of either side that were acknowledged, with data in front of them.
    pub(super) acknowledged: usize,
}

pub(super) fn run(bytes: &[u8]) -> Reached {
    in_virtual_time(session(Input::new(bytes)))
}

/// What a side writes at an offset.
fn byte(id: u64, ours: bool, offset: usize) -> u8 {
    (offset * 31 + offset / 251 + usize::from(ours) * 101) as u8 ^ id as u8
}

fn content(id: u64, ours: bool, from: usize, length: usize) -> Vec<u8> {
    (from..from + length)
        .map(|offset| byte(id, ours, offset))
        .collect()
}

/// A substream: our end of it, and what the peer has said and heard.
#[derive(Default)]
struct Sub {
    handle: Option<Substream>,
    /// Bytes that were accepted for sending, and that were read.
    written: usize,
    read: usize,
    shut: bool,
    stopped: bool,
    reset: bool,
    at_end: bool,
    /// Payload bytes of the peer, and how many came before its FIN.
    sent: usize,
    fin: Option<usize>,
    asked_to_stop: bool,
    reset_by_peer: bool,
    /// It has done something that ends the substream early, or may.
    broken: bool,
    /// Payload bytes that were sent before what is no frame: behind it, anything may be read.
    garbled: Option<usize>,
    /// Payload bytes that reached the peer.
    received: usize,
    heard: Vec<Flag>,
    decoder: FrameDecoder,
}

struct Session<'a> {
    input: Input<'a>,
    connection: Connection,
    peer: Peer,
    faults: Faults,
    subs: HashMap<u64, Sub>,
    /// In the order in which they were opened.
    order: Vec<ChannelId>,
    reached: Reached,
}

async fn session(mut input: Input<'_>) -> Reached {
    let mut config = Config::default();
    config.negotiation = Negotiation::None;
    config.receive_window = RECEIVE_WINDOW;
    config.substream_ceiling = 2 * RECEIVE_WINDOW as usize;
    config.connection_ceiling = CEILING;
    config.send_buffer = input.pick(&[65_536, 1, 100, 5000]);
    config.max_inbound_substreams = input.pick(&[256, 256, 2]);
    config.fin_ack = input.pick(&[
        FinAckPolicy::Always,
        FinAckPolicy::Always,
        FinAckPolicy::AfterOwnFin,
        FinAckPolicy::Never,
    ]);
    let mut memory = match input.bool() {
        true => MemoryConfig::hostile(u64::from(input.u8())),
        false => MemoryConfig::default(),
    };
    memory.holds_back_unread = input.bool();
    memory.budget = input.pick(&[32_768, 100, 131_072]);
    let (a, b, faults) = pair(memory);
    let (connection, driver) = Connection::over(Watched::new(a), Arc::new(config));
    let driver = tokio::spawn(driver);
    let mut session = Session {
        input,
        connection,
        peer: Peer::new(b),
        faults,
        subs: HashMap::new(),
        order: Vec::new(),
        reached: Reached::default(),
    };
    for _ in 0..MAX_STEPS {
        if session.input.is_empty() {
            break;
        }
        session.step().await;
        session.look().await;
    }
    let (connection, reached) = session.wind_down().await;
    driver.await.expect("no panic");
    assert!(connection.is_idle());
    assert_eq!(connection.stats().unread, 0);
    reached
}

impl Session<'_> {
    async fn step(&mut self) {
        let choice = self.input.u8();
        // Half of the steps are done many times over.
        let burst = (choice >= 128).then(|| BURSTS[usize::from(choice >> 5 & 3)]);
        self.reached.peer_paused += usize::from(self.peer.is_paused);
        match choice & 31 {
            0 | 1 => return self.open(burst).await,
            2 | 3 => return self.open_by_peer(burst),
            4 if burst.is_some() => {
                self.peer.is_paused = !self.peer.is_paused;
                return;
            }
            4 => {
                let time = self.input.pick(&[1, 40, 1000, 5000, 11_000]);
                let time = Duration::from_millis(time);
                return self.peer.drive(sleep(time)).await;
            }
            _ => {}
        }
        let index = self.input.u8();
        let Some(&channel) = usize::from(index)
            .checked_rem(self.order.len())
            .and_then(|index| self.order.get(index))
        else {
            return;
        };
        let id = channel.get();
        match (choice & 31, burst) {
            (5..=7, Some(count)) => return self.write_small(id, count).await,
            (15..=19, Some(count)) => return self.send_small(channel, count),
            _ => {}
        }
        let Some(sub) = self.subs.get_mut(&id) else {
            return;
        };
        let was_reset = sub.is_reset();
        match choice & 31 {
            5..=14 => act(&mut self.input, choice & 31, id, sub),
            choice => speak(&mut self.input, choice, &mut self.peer, channel, sub),
        }
        if !was_reset && sub.is_reset() && (sub.written > sub.received || sub.sent > sub.read) {
            self.reached.resets_in_flight += 1;
        }
        self.limit();
    }

    /// With more than all substreams may have unread, any may be reset.
    fn limit(&mut self) {
        if self.subs.values().map(|sub| sub.sent).sum::<usize>() > CEILING {
            for sub in self.subs.values_mut() {
                sub.broken = true;
            }
        }
    }

    /// Messages of one byte each, as they are flushed.
    async fn write_small(&mut self, id: u64, count: usize) {
        self.reached.small += 1;
        for _ in 0..count {
            let Some(sub) = self.subs.get_mut(&id) else {
                return;
            };
            write(id, sub, 1);
            if let Some(handle) = &mut sub.handle {
                let mut cx = Context::from_waker(Waker::noop());
                let _ = AsyncWrite::poll_flush(Pin::new(handle), &mut cx);
            }
            tokio::task::yield_now().await;
        }
    }

    fn send_small(&mut self, channel: ChannelId, count: usize) {
        self.reached.small += 1;
        if let Some(sub) = self.subs.get_mut(&channel.get()) {
            for _ in 0..count {
                send(&mut self.peer, channel, sub, Message::default(), 1);
            }
        }
        self.limit();
    }

    async fn open(&mut self, burst: Option<usize>) {
        let room = MAX_SUBSTREAMS.saturating_sub(self.order.len());
        let count = burst.unwrap_or(1).min(room);
        self.reached.bursts += usize::from(count > 1);
        let connection = self.connection.clone();
        let opening = futures_util::future::join_all((0..count).map(|_| connection.open("")));
        let opened = self.peer.drive(timeout(LIMIT, opening)).await;
        for handle in opened.expect("opening ends") {
            let sub = Sub {
                handle: Some(handle.expect("a channel is free")),
                ..Sub::default()
            };
            self.add(sub);
        }
    }

    fn add(&mut self, sub: Sub) {
        let id = sub.handle.as_ref().map(Substream::id);
        let id = id.expect("just opened");
        self.order.push(ChannelId::new(id));
        assert!(self.subs.insert(id, sub).is_none(), "{id} is used twice");
    }

    fn open_by_peer(&mut self, burst: Option<usize>) {
        let room = MAX_SUBSTREAMS.saturating_sub(self.order.len());
        let count = burst.unwrap_or(1).min(room);
        self.reached.bursts += usize::from(count > 1);
        for _ in 0..count {
            let channel = self.peer.open();
            self.order.push(channel);
            self.subs.insert(channel.get(), Sub::default());
        }
    }

    /// Lets everything run, takes what the peer opened, and looks at what reached the peer.
    async fn look(&mut self) {
        self.peer.settle().await;
        while let Some(accepted) = futures_util::FutureExt::now_or_never(self.connection.accept()) {
            let handle = accepted.expect("the connection lives").expect("open");
            let sub = self.subs.get_mut(&handle.id()).expect("it was opened");
            assert!(sub.handle.is_none());
            sub.handle = Some(handle);
        }
        self.hear();
    }

    fn hear(&mut self) {
        for (channel, bytes) in self.peer.received() {
            let id = channel.get();
            let sub = self.subs.get_mut(&id).expect("it was opened");
            sub.decoder.push(bytes);
            while let Some(message) = sub.decoder.next_message().expect("our frames are sound") {
                let expected = content(id, true, sub.received, message.payload.len());
                assert!(
                    message.payload == expected,
                    "{id}: other bytes than written"
                );
                sub.received += message.payload.len();
                sub.heard.extend(message.flag);
            }
            assert!(sub.received <= sub.written, "{id}: more than was written");
            if sub.heard.contains(&Flag::Fin) && !sub.asked_to_stop && sub.garbled.is_none() {
                assert_eq!(sub.received, sub.written, "{id}: FIN without all in front");
            }
        }
        for channel in std::mem::take(&mut self.peer.closed) {
            if let Some(sub) = self.subs.get_mut(&channel.get()) {
                sub.broken = true;
            }
        }
    }

    /// Everything is dropped or finished, the peer answers or says nothing more, and it ends.
    async fn wind_down(mut self) -> (Connection, Reached) {
        // What is under way arrives.
        self.peer.is_paused = false;
        self.peer.drive(sleep(Duration::from_millis(200))).await;
        self.look().await;
        self.read_all();
        let polite = self.input.bool();
        let finishes = self.input.bool();
        for channel in self.order.clone() {
            let id = channel.get();
            let mut sub = self.subs.remove(&id).expect("it was opened");
            if let Some(mut handle) = sub.handle.take()
                && finishes
            {
                sub.shut = true;
                // Behind half a frame of garbage the peer says nothing that is understood.
                let polite = polite && sub.garbled.is_none();
                if polite {
                    // Data behind a window that nobody opens would be waited for, and rightly so.
                    let credit = Message::credit(u64::from(u32::MAX)).encode();
                    self.peer.send(channel, &credit);
                }
                let finish = async {
                    if polite {
                        handle.finish().await.map(Some)
                    } else {
                        // Nobody reads, nor answers: only the teardown is bounded.
                        Ok(None)
                    }
                };
                let finished = self.peer.drive(timeout(LIMIT, finish)).await;
                let finished = finished.expect("finishing ends");
                sub.handle = Some(handle);
                self.subs.insert(id, sub);
                self.hear();
                let sub = self.subs.get_mut(&id).expect("just inserted");
                if let Ok(Some(Finished::Acked)) = finished {
                    self.reached.acknowledged += usize::from(sub.written > 0);
                    assert_eq!(
                        sub.received, sub.written,
                        "{id}: acknowledged, but not there"
                    );
                    assert!(sub.broken || sub.asked_to_stop || sub.heard.contains(&Flag::Fin));
                }
                sub.handle = None;
            } else {
                self.subs.insert(id, sub);
            }
            if polite {
                self.peer
                    .send(channel, &Message::flag(Flag::FinAck).encode());
                self.peer.send(channel, &Message::flag(Flag::Fin).encode());
            }
        }
        self.look().await;
        for sub in self.subs.values_mut() {
            sub.handle = None;
        }
        let connection = self.connection.clone();
        self.peer.drive(sleep(LIMIT)).await;
        self.hear();
        assert_eq!(connection.stats().substreams, 0, "{:?}", connection.stats());
        self.peer
            .drive(timeout(LIMIT, connection.close()))
            .await
            .expect("closing ends");
        self.peer.settle().await;
        assert_eq!(self.faults.open_channels(), 0, "a channel is left");
        (connection, self.reached)
    }

    /// What a sound substream was sent can be read, all the more where its FIN was acknowledged.
    fn read_all(&mut self) {
        for (&id, sub) in &mut self.subs {
            let is_sound = !sub.broken && !sub.reset && !sub.stopped && sub.garbled.is_none();
            let Some(handle) = sub.handle.as_mut().filter(|_| is_sound && !sub.at_end) else {
                continue;
            };
            self.reached.read_late += usize::from(sub.read == 0 && sub.sent > 0);
            let mut cx = Context::from_waker(Waker::noop());
            let mut buffer = vec![0; 20_000];
            let mut taken = Vec::new();
            loop {
                let mut out = ReadBuf::new(&mut buffer);
                match AsyncRead::poll_read(Pin::new(&mut *handle), &mut cx, &mut out) {
                    Poll::Ready(Ok(())) => taken.push(out.filled().to_vec()),
                    Poll::Ready(Err(error)) => panic!("{id}: {error:?}"),
                    Poll::Pending => break,
                }
                if taken.last().is_some_and(Vec::is_empty) {
                    break;
                }
            }
            for bytes in taken {
                sub.took(id, &bytes);
            }
            let is_acknowledged = sub.heard.contains(&Flag::FinAck);
            assert_eq!(sub.read, sub.sent, "{id}: acknowledged: {is_acknowledged}");
            assert_eq!(sub.at_end, sub.fin.is_some(), "{id}");
            self.reached.acknowledged += usize::from(is_acknowledged && sub.read > 0);
        }
    }
}

/// Writes so many bytes, as far as they are taken.
fn write(id: u64, sub: &mut Sub, length: usize) {
    let mut cx = Context::from_waker(Waker::noop());
    let Some(handle) = &mut sub.handle else {
        return;
    };
    let data = content(id, true, sub.written, length);
    match AsyncWrite::poll_write(Pin::new(handle), &mut cx, &data) {
        Poll::Ready(Ok(length)) => {
            assert!(!sub.shut, "{id}: written behind a shutdown");
            sub.written += length;
        }
        Poll::Ready(Err(error)) => {
            let expected = match error.kind() {
                ErrorKind::BrokenPipe => sub.shut || sub.asked_to_stop || sub.broken,
                ErrorKind::ConnectionReset | ErrorKind::ConnectionAborted => {
                    sub.reset || sub.broken
                }
                _ => false,
            };
            assert!(expected, "{id}: {error:?}");
        }
        Poll::Pending => {}
    }
}

/// One call of the application, polled once.
fn act(input: &mut Input<'_>, choice: u8, id: u64, sub: &mut Sub) {
    let mut cx = Context::from_waker(Waker::noop());
    if matches!(choice, 5..=7) {
        return write(id, sub, input.pick(&[1, 100, 5000, 20_000]));
    }
    let Some(mut handle) = sub.handle.take() else {
        return;
    };
    match choice {
        8..=10 => {
            let mut buffer = vec![0; input.pick(&[1, 100, 20_000])];
            let mut out = ReadBuf::new(&mut buffer);
            match AsyncRead::poll_read(Pin::new(&mut handle), &mut cx, &mut out) {
                Poll::Ready(Ok(())) => sub.took(id, out.filled()),
                Poll::Ready(Err(error)) => {
                    let kinds = [ErrorKind::ConnectionReset, ErrorKind::UnexpectedEof];
                    let expected = kinds.contains(&error.kind()) && (sub.reset || sub.broken);
                    assert!(expected, "{id}: {error:?}");
                }
                Poll::Pending => {}
            }
        }
        11 => {
            let _ = AsyncWrite::poll_flush(Pin::new(&mut handle), &mut cx);
        }
        12 => {
            sub.shut = true;
            let _ = AsyncWrite::poll_shutdown(Pin::new(&mut handle), &mut cx);
        }
        13 => {
            sub.stopped = true;
            handle.stop(u32::from(input.u8()));
        }
        _ => {
            if input.bool() {
                sub.reset = true;
                handle.reset(u32::from(input.u8()));
            } else {
                (sub.shut, sub.stopped) = (true, true);
                return drop(handle);
            }
        }
    }
    sub.handle = Some(handle);
}

impl Sub {
    /// Either side has reset it.
    fn is_reset(&self) -> bool {
        self.reset || self.reset_by_peer
    }

    fn garble(&mut self) {
        self.broken = true;
        self.garbled.get_or_insert(self.sent);
    }

    fn took(&mut self, id: u64, bytes: &[u8]) {
        if bytes.is_empty() {
            let whole = self.fin.is_some_and(|length| length == self.read);
            let any = self.stopped || self.garbled.is_some();
            assert!(whole || any, "{id}: an end in the middle");
            self.at_end = true;
            return;
        }
        assert!(!self.at_end, "{id}: data behind the end");
        assert!(!self.stopped, "{id}: data behind a stop");
        let end = self.read + bytes.len();
        let sound = self.garbled.map_or(end, |garbled| end.min(garbled));
        let length = sound.saturating_sub(self.read);
        let expected = content(id, false, self.read, length);
        assert!(bytes[..length] == expected, "{id}: other bytes than sent");
        self.read = end;
        assert!(self.garbled.is_some() || end <= self.fin.unwrap_or(self.sent));
    }
}

/// Something that the peer says, in order or not.
fn speak(input: &mut Input<'_>, choice: u8, peer: &mut Peer, channel: ChannelId, sub: &mut Sub) {
    let mut message = Message::default();
    let mut length = 0;
    match choice {
        15..=20 => {
            length = input.pick(&[1, 100, 5000, 16_000]);
            if choice == 20 {
                message.flag = Some(input.pick(&FLAGS));
            }
        }
        21..=25 => message.flag = Some(input.pick(&FLAGS)),
        26 | 27 => {
            message.max_data = Some(u64::from(input.u32()) >> input.below(32));
            if choice == 27 {
                length = 10;
            }
        }
        28 => {
            // An unknown flag, or nothing at all.
            let unknown = input.u8() | 4;
            let frame = [2, 8, unknown & 0x7f];
            peer.send(channel, input.pick(&[&frame[..], &[0]]));
            return;
        }
        29 => {
            let length = input.below(16);
            if peer.send(channel, input.take(length)) {
                sub.garble();
            }
            return;
        }
        30 => {
            sub.broken = true;
            return peer.close(channel);
        }
        // A frame that never ends, or takes in what comes next.
        _ => {
            if peer.send(channel, &[0x80, 0x02, 0x12]) {
                sub.garble();
            }
            return;
        }
    }
    if let Some(code) = input.pick(&[None, None, Some(7)]) {
        message.error_code = Some(code);
    }
    send(peer, channel, sub, message, length);
}

/// The peer says this, with so many bytes of payload.
fn send(peer: &mut Peer, channel: ChannelId, sub: &mut Sub, mut message: Message, length: usize) {
    message.payload = Bytes::from(content(channel.get(), false, sub.sent, length));
    if !peer.send(channel, &message.encode()) {
        return;
    }
    sub.sent += message.payload.len();
    // What is behind FIN is nobody's, and more than the window may be too much. FIN_ACK is in order
    // only behind our FIN, which may be on its way.
    sub.broken |= sub.fin.is_some() && !message.payload.is_empty();
    sub.broken |= sub.sent > RECEIVE_WINDOW as usize;
    match message.flag {
        Some(Flag::Fin) => sub.fin = sub.fin.or(Some(sub.sent)),
        Some(Flag::FinAck) => sub.broken = true,
        Some(Flag::ResetStream) => (sub.broken, sub.reset_by_peer) = (true, true),
        Some(Flag::StopSending) => sub.asked_to_stop = true,
        None => {}
    }
}

const FLAGS: [Flag; 4] = [
    Flag::Fin,
    Flag::StopSending,
    Flag::ResetStream,
    Flag::FinAck,
];
