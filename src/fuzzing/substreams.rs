//! Substreams, as their applications and a peer without rules use them.
//!
//! Held against a model of what each reader may see, the rules of the wire (`Watched`), and the end:
//! nothing is left.

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
use crate::carrier::ChannelId;
use crate::carrier::memory::{Faults, MemoryConfig, pair};
use crate::connection::{Config, Connection, FinAckPolicy, Negotiation};
use crate::message::{Flag, FrameDecoder, Message};
use crate::substream::{Finished, Substream};

const MAX_STEPS: usize = 200;

const MAX_SUBSTREAMS: usize = 8;

/// Payload bytes that a peer may send before they are read. Small, so that a session exceeds it.
const RECEIVE_WINDOW: u32 = 16 * 1024;

/// Longer than every timeout of a close.
const LIMIT: Duration = Duration::from_secs(120);

pub(super) fn run(bytes: &[u8]) {
    in_virtual_time(session(Input::new(bytes)));
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
}

async fn session(mut input: Input<'_>) {
    let config = Config {
        negotiation: Negotiation::None,
        receive_window: RECEIVE_WINDOW,
        substream_ceiling: 2 * RECEIVE_WINDOW as usize,
        connection_ceiling: 6 * RECEIVE_WINDOW as usize,
        send_buffer: input.pick(&[65_536, 1, 100, 5000]),
        max_inbound_substreams: input.pick(&[256, 256, 2]),
        fin_ack: input.pick(&[
            FinAckPolicy::Always,
            FinAckPolicy::Always,
            FinAckPolicy::AfterOwnFin,
            FinAckPolicy::Never,
        ]),
        ..Config::default()
    };
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
    };
    for _ in 0..MAX_STEPS {
        if session.input.is_empty() {
            break;
        }
        session.step().await;
        session.look().await;
    }
    let connection = session.wind_down().await;
    driver.await.expect("no panic");
    assert!(connection.is_idle());
    assert_eq!(connection.stats().unread, 0);
}

impl Session<'_> {
    async fn step(&mut self) {
        let choice = self.input.u8();
        match choice & 31 {
            0 | 1 => return self.open().await,
            2 | 3 => return self.open_by_peer(),
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
        let Some(sub) = self.subs.get_mut(&id) else {
            return;
        };
        match choice & 31 {
            5..=14 => act(&mut self.input, choice & 31, id, sub),
            choice => speak(&mut self.input, choice, &mut self.peer, channel, sub),
        }
    }

    async fn open(&mut self) {
        if self.order.len() >= MAX_SUBSTREAMS {
            return;
        }
        let connection = self.connection.clone();
        let opened = self.peer.drive(timeout(LIMIT, connection.open(""))).await;
        let handle = opened.expect("opening ends").expect("a channel is free");
        let sub = Sub {
            handle: Some(handle),
            ..Sub::default()
        };
        self.add(sub);
    }

    fn add(&mut self, sub: Sub) {
        let id = sub.handle.as_ref().map(Substream::id);
        let id = id.expect("just opened");
        self.order.push(ChannelId::new(id));
        assert!(self.subs.insert(id, sub).is_none(), "{id} is used twice");
    }

    fn open_by_peer(&mut self) {
        if self.order.len() < MAX_SUBSTREAMS {
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
    async fn wind_down(mut self) -> Connection {
        // What is under way arrives.
        self.peer.drive(sleep(Duration::from_millis(200))).await;
        self.look().await;
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
        connection
    }
}

/// One call of the application, polled once.
fn act(input: &mut Input<'_>, choice: u8, id: u64, sub: &mut Sub) {
    let mut cx = Context::from_waker(Waker::noop());
    let Some(mut handle) = sub.handle.take() else {
        return;
    };
    match choice {
        5..=7 => {
            let length = input.pick(&[1, 100, 5000, 20_000]);
            let data = content(id, true, sub.written, length);
            match AsyncWrite::poll_write(Pin::new(&mut handle), &mut cx, &data) {
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
    let id = channel.get();
    let mut message = Message::default();
    match choice {
        15..=20 => {
            let length = input.pick(&[1, 100, 5000, 16_000]);
            message.payload = Bytes::from(content(id, false, sub.sent, length));
            if choice == 20 {
                message.flag = Some(input.pick(&FLAGS));
            }
        }
        21..=25 => message.flag = Some(input.pick(&FLAGS)),
        26 | 27 => {
            message.max_data = Some(u64::from(input.u32()) >> input.below(32));
            if choice == 27 {
                message.payload = Bytes::from(content(id, false, sub.sent, 10));
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
        Some(Flag::FinAck | Flag::ResetStream) => sub.broken = true,
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
