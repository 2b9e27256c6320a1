//! Substreams under the calls of an application and the arbitrary frames of a peer.
//!
//! Checked against a model of what each reader may read, against the rules of the wire
//! ([`Checked`]), and at the end: acknowledged data was readable, and nothing is left. The reuse of
//! stream ids is up to the engine, see `engine::honest`.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{sleep, timeout};

mod frames;

use super::peer::{Checked, Peer};
use super::{Input, in_virtual_time};
use crate::memory::{Faults, MemoryConfig, pair};
use anabranch::carrier::ChannelId;
use anabranch::connection::{Config, Connection, FinAckPolicy, Negotiation};
use anabranch::message::{Flag, FrameDecoder, Message};
use anabranch::substream::{Finished, Substream};
use frames::{send, send_arbitrary};

/// Maximum steps of a session, which bounds the time of a long input.
const MAX_STEPS: usize = 200;

/// Maximum substreams of a session.
const MAX_SUBSTREAMS: usize = 40;

/// Lengths of bursts: substreams opened at once, or messages of one byte in sequence.
const BURSTS: [usize; 4] = [4, 8, 16, 30];

/// `Config::receive_window`. Small, so that a session exceeds it.
const RECEIVE_WINDOW: u32 = 16 * 1024;

/// `Config::connection_ceiling`.
const CEILING: usize = 6 * RECEIVE_WINDOW as usize;

/// Longer than every timeout of a close.
const LIMIT: Duration = Duration::from_secs(120);

/// How often a session reached the situations that it is meant to reach.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Coverage {
    /// Bursts of messages of one byte, by either side.
    pub(super) small: usize,
    /// Bursts of opens, by either side.
    pub(super) bursts: usize,
    /// Substreams reset by either side with data in flight.
    pub(super) resets_in_flight: usize,
    /// Steps while the peer was paused.
    pub(super) peer_paused: usize,
    /// Substreams whose data was read only at the end of the session.
    pub(super) read_late: usize,
    /// Acknowledged FINs of either side, after data.
    pub(super) acknowledged: usize,
}

pub(super) fn run(bytes: &[u8]) -> Coverage {
    in_virtual_time(session(Input::new(bytes)))
}

/// The byte that a side writes at an offset.
fn byte(id: u64, local: bool, offset: usize) -> u8 {
    (offset * 31 + offset / 251 + usize::from(local) * 101) as u8 ^ id as u8
}

fn content(id: u64, local: bool, from: usize, length: usize) -> Vec<u8> {
    (from..from + length)
        .map(|offset| byte(id, local, offset))
        .collect()
}

/// Model of a substream: the local handle, and what the peer has sent and received.
#[derive(Default)]
struct Model {
    handle: Option<Substream>,
    /// Payload bytes accepted by the handle.
    written: usize,
    /// Payload bytes read from the handle.
    read: usize,
    /// The application has shut down writing, stopped reading, or reset.
    shut: bool,
    stopped: bool,
    reset: bool,
    /// The application has read the end of the stream.
    at_end: bool,
    /// Payload bytes sent by the peer, and their number before its FIN.
    sent: usize,
    fin: Option<usize>,
    /// The peer has sent STOP_SENDING or RESET.
    stopped_by_peer: bool,
    reset_by_peer: bool,
    /// The peer has done something that may end the substream early.
    broken: bool,
    /// Payload bytes sent before an invalid frame, after which anything may be read.
    valid_length: Option<usize>,
    /// Payload bytes received by the peer.
    received: usize,
    /// Flags received by the peer.
    flags: Vec<Flag>,
    decoder: FrameDecoder,
}

struct Session<'a> {
    input: Input<'a>,
    connection: Connection,
    peer: Peer,
    faults: Faults,
    models: HashMap<u64, Model>,
    /// Ids in the order of opening.
    order: Vec<ChannelId>,
    coverage: Coverage,
}

async fn session(mut input: Input<'_>) -> Coverage {
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
    let (connection, driver) = Connection::over(Checked::new(a), Arc::new(config));
    let driver = tokio::spawn(driver);
    let mut session = Session {
        input,
        connection,
        peer: Peer::new(b),
        faults,
        models: HashMap::new(),
        order: Vec::new(),
        coverage: Coverage::default(),
    };
    for _ in 0..MAX_STEPS {
        if session.input.is_empty() {
            break;
        }
        session.step().await;
        session.settle().await;
    }
    let (connection, coverage) = session.finish().await;
    driver.await.expect("no panic");
    assert!(connection.is_idle());
    assert_eq!(connection.stats().unread, 0);
    coverage
}

impl Session<'_> {
    async fn step(&mut self) {
        let choice = self.input.u8();
        // Half of the steps are bursts.
        let burst = (choice >= 128).then(|| BURSTS[usize::from(choice >> 5 & 3)]);
        self.coverage.peer_paused += usize::from(self.peer.is_paused);
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
        let Some(model) = self.models.get_mut(&id) else {
            return;
        };
        let was_reset = model.is_reset();
        match choice & 31 {
            5..=14 => call_application(&mut self.input, choice & 31, id, model),
            choice => send_arbitrary(&mut self.input, choice, &mut self.peer, channel, model),
        }
        if !was_reset
            && model.is_reset()
            && (model.written > model.received || model.sent > model.read)
        {
            self.coverage.resets_in_flight += 1;
        }
        self.check_ceiling();
    }

    /// Marks every substream as broken if the peer has sent more than the connection may have
    /// unread, as any of them may then be reset.
    fn check_ceiling(&mut self) {
        if self.models.values().map(|model| model.sent).sum::<usize>() > CEILING {
            for model in self.models.values_mut() {
                model.broken = true;
            }
        }
    }

    /// Writes and flushes messages of one byte each.
    async fn write_small(&mut self, id: u64, count: usize) {
        self.coverage.small += 1;
        for _ in 0..count {
            let Some(model) = self.models.get_mut(&id) else {
                return;
            };
            write(id, model, 1);
            if let Some(handle) = &mut model.handle {
                let mut cx = Context::from_waker(Waker::noop());
                let _ = AsyncWrite::poll_flush(Pin::new(handle), &mut cx);
            }
            tokio::task::yield_now().await;
        }
    }

    fn send_small(&mut self, channel: ChannelId, count: usize) {
        self.coverage.small += 1;
        if let Some(model) = self.models.get_mut(&channel.get()) {
            for _ in 0..count {
                send(&mut self.peer, channel, model, Message::default(), 1);
            }
        }
        self.check_ceiling();
    }

    async fn open(&mut self, burst: Option<usize>) {
        let room = MAX_SUBSTREAMS.saturating_sub(self.order.len());
        let count = burst.unwrap_or(1).min(room);
        self.coverage.bursts += usize::from(count > 1);
        let connection = self.connection.clone();
        let opening = futures_util::future::join_all((0..count).map(|_| connection.open("")));
        let opened = self.peer.drive(timeout(LIMIT, opening)).await;
        for handle in opened.expect("opening ends") {
            let model = Model {
                handle: Some(handle.expect("a channel is free")),
                ..Model::default()
            };
            self.add(model);
        }
    }

    fn add(&mut self, model: Model) {
        let id = model.handle.as_ref().map(Substream::id);
        let id = id.expect("just opened");
        self.order.push(ChannelId::new(id));
        assert!(
            self.models.insert(id, model).is_none(),
            "{id} is used twice"
        );
    }

    fn open_by_peer(&mut self, burst: Option<usize>) {
        let room = MAX_SUBSTREAMS.saturating_sub(self.order.len());
        let count = burst.unwrap_or(1).min(room);
        self.coverage.bursts += usize::from(count > 1);
        for _ in 0..count {
            let channel = self.peer.open();
            self.order.push(channel);
            self.models.insert(channel.get(), Model::default());
        }
    }

    /// Lets all tasks run, accepts substreams, and checks what the peer has received.
    async fn settle(&mut self) {
        self.peer.settle().await;
        while let Some(accepted) = futures_util::FutureExt::now_or_never(self.connection.accept()) {
            let handle = accepted.expect("no error").expect("the connection is open");
            let model = self.models.get_mut(&handle.id()).expect("it was opened");
            assert!(model.handle.is_none());
            model.handle = Some(handle);
        }
        self.check_received();
    }

    fn check_received(&mut self) {
        for (channel, bytes) in self.peer.received() {
            let id = channel.get();
            let model = self.models.get_mut(&id).expect("it was opened");
            model.decoder.push(bytes);
            while let Some(message) = model.decoder.next_message().expect("valid frames") {
                let expected = content(id, true, model.received, message.payload.len());
                assert!(
                    message.payload == expected,
                    "{id}: other bytes than written"
                );
                model.received += message.payload.len();
                model.flags.extend(message.flag);
            }
            assert!(
                model.received <= model.written,
                "{id}: more than was written"
            );
            let is_complete = model.flags.contains(&Flag::Fin);
            if is_complete && !model.stopped_by_peer && model.valid_length.is_none() {
                assert_eq!(model.received, model.written, "{id}: FIN before all data");
            }
        }
        for channel in std::mem::take(&mut self.peer.closed) {
            if let Some(model) = self.models.get_mut(&channel.get()) {
                model.broken = true;
            }
        }
    }

    /// Drops or finishes every substream, with or without answers of the peer, and closes.
    async fn finish(mut self) -> (Connection, Coverage) {
        // Until everything in flight has arrived.
        self.peer.is_paused = false;
        self.peer.drive(sleep(Duration::from_millis(200))).await;
        self.settle().await;
        self.read_all();
        let cooperative = self.input.bool();
        let finishes = self.input.bool();
        for channel in self.order.clone() {
            let id = channel.get();
            let mut model = self.models.remove(&id).expect("it was opened");
            if let Some(mut handle) = model.handle.take()
                && finishes
            {
                model.shut = true;
                // After an invalid frame no frame of the peer is decoded.
                let cooperative = cooperative && model.valid_length.is_none();
                if cooperative {
                    // Without credit, `finish` would rightly wait for the window to open.
                    let credit = Message::credit(u64::from(u32::MAX)).encode();
                    self.peer.send(channel, &credit);
                }
                let finish = async {
                    if cooperative {
                        handle.finish().await.map(Some)
                    } else {
                        // The peer neither reads nor answers: only the teardown is bounded.
                        Ok(None)
                    }
                };
                let finished = self.peer.drive(timeout(LIMIT, finish)).await;
                let finished = finished.expect("finishing ends");
                model.handle = Some(handle);
                self.models.insert(id, model);
                self.check_received();
                let model = self.models.get_mut(&id).expect("just inserted");
                if let Ok(Some(Finished::Acked)) = finished {
                    self.coverage.acknowledged += usize::from(model.written > 0);
                    assert_eq!(
                        model.received, model.written,
                        "{id}: acknowledged, but not received"
                    );
                    assert!(
                        model.broken || model.stopped_by_peer || model.flags.contains(&Flag::Fin)
                    );
                }
                model.handle = None;
            } else {
                self.models.insert(id, model);
            }
            if cooperative {
                self.peer
                    .send(channel, &Message::flag(Flag::FinAck).encode());
                self.peer.send(channel, &Message::flag(Flag::Fin).encode());
            }
        }
        self.settle().await;
        for model in self.models.values_mut() {
            model.handle = None;
        }
        let connection = self.connection.clone();
        self.peer.drive(sleep(LIMIT)).await;
        self.check_received();
        assert_eq!(connection.stats().substreams, 0, "{:?}", connection.stats());
        self.peer
            .drive(timeout(LIMIT, connection.close()))
            .await
            .expect("closing ends");
        self.peer.settle().await;
        assert_eq!(self.faults.open_channels(), 0, "a channel is left");
        (connection, self.coverage)
    }

    /// Checks that all data sent on an intact substream is readable, above all where its FIN was
    /// acknowledged.
    fn read_all(&mut self) {
        for (&id, model) in &mut self.models {
            let is_intact =
                !model.broken && !model.reset && !model.stopped && model.valid_length.is_none();
            let Some(handle) = model.handle.as_mut().filter(|_| is_intact && !model.at_end) else {
                continue;
            };
            self.coverage.read_late += usize::from(model.read == 0 && model.sent > 0);
            let mut cx = Context::from_waker(Waker::noop());
            let mut buffer = vec![0; 20_000];
            let mut reads = Vec::new();
            loop {
                let mut out = ReadBuf::new(&mut buffer);
                match AsyncRead::poll_read(Pin::new(&mut *handle), &mut cx, &mut out) {
                    Poll::Ready(Ok(())) => reads.push(out.filled().to_vec()),
                    Poll::Ready(Err(error)) => panic!("{id}: {error:?}"),
                    Poll::Pending => break,
                }
                if reads.last().is_some_and(Vec::is_empty) {
                    break;
                }
            }
            for bytes in reads {
                model.check_read(id, &bytes);
            }
            let is_acknowledged = model.flags.contains(&Flag::FinAck);
            assert_eq!(
                model.read, model.sent,
                "{id}: acknowledged: {is_acknowledged}"
            );
            assert_eq!(model.at_end, model.fin.is_some(), "{id}");
            self.coverage.acknowledged += usize::from(is_acknowledged && model.read > 0);
        }
    }
}

/// Writes up to `length` bytes, in one poll.
fn write(id: u64, model: &mut Model, length: usize) {
    let mut cx = Context::from_waker(Waker::noop());
    let Some(handle) = &mut model.handle else {
        return;
    };
    let data = content(id, true, model.written, length);
    match AsyncWrite::poll_write(Pin::new(handle), &mut cx, &data) {
        Poll::Ready(Ok(length)) => {
            assert!(!model.shut, "{id}: written after a shutdown");
            model.written += length;
        }
        Poll::Ready(Err(error)) => {
            let expected = match error.kind() {
                ErrorKind::BrokenPipe => model.shut || model.stopped_by_peer || model.broken,
                ErrorKind::ConnectionReset | ErrorKind::ConnectionAborted => {
                    model.reset || model.broken
                }
                _ => false,
            };
            assert!(expected, "{id}: {error:?}");
        }
        Poll::Pending => {}
    }
}

/// Makes one call of the application, polled once.
fn call_application(input: &mut Input<'_>, choice: u8, id: u64, model: &mut Model) {
    let mut cx = Context::from_waker(Waker::noop());
    if matches!(choice, 5..=7) {
        return write(id, model, input.pick(&[1, 100, 5000, 20_000]));
    }
    let Some(mut handle) = model.handle.take() else {
        return;
    };
    match choice {
        8..=10 => {
            let mut buffer = vec![0; input.pick(&[1, 100, 20_000])];
            let mut out = ReadBuf::new(&mut buffer);
            match AsyncRead::poll_read(Pin::new(&mut handle), &mut cx, &mut out) {
                Poll::Ready(Ok(())) => model.check_read(id, out.filled()),
                Poll::Ready(Err(error)) => {
                    let kinds = [ErrorKind::ConnectionReset, ErrorKind::UnexpectedEof];
                    let expected = kinds.contains(&error.kind()) && (model.reset || model.broken);
                    assert!(expected, "{id}: {error:?}");
                }
                Poll::Pending => {}
            }
        }
        11 => {
            let _ = AsyncWrite::poll_flush(Pin::new(&mut handle), &mut cx);
        }
        12 => {
            model.shut = true;
            let _ = AsyncWrite::poll_shutdown(Pin::new(&mut handle), &mut cx);
        }
        13 => {
            model.stopped = true;
            handle.stop(u32::from(input.u8()));
        }
        _ => {
            if input.bool() {
                model.reset = true;
                handle.reset(u32::from(input.u8()));
            } else {
                (model.shut, model.stopped) = (true, true);
                return drop(handle);
            }
        }
    }
    model.handle = Some(handle);
}

impl Model {
    /// Whether either side has reset the substream.
    fn is_reset(&self) -> bool {
        self.reset || self.reset_by_peer
    }

    /// Records that the peer has sent an invalid frame.
    fn garble(&mut self) {
        self.broken = true;
        self.valid_length.get_or_insert(self.sent);
    }

    /// Checks the bytes of a read; none are the end of the stream.
    fn check_read(&mut self, id: u64, bytes: &[u8]) {
        if bytes.is_empty() {
            let is_complete = self.fin.is_some_and(|length| length == self.read);
            let is_undefined = self.stopped || self.valid_length.is_some();
            assert!(is_complete || is_undefined, "{id}: an early end");
            self.at_end = true;
            return;
        }
        assert!(!self.at_end, "{id}: data after the end");
        assert!(!self.stopped, "{id}: data after a stop");
        let end = self.read + bytes.len();
        let valid = self.valid_length.map_or(end, |length| end.min(length));
        let length = valid.saturating_sub(self.read);
        let expected = content(id, false, self.read, length);
        assert!(bytes[..length] == expected, "{id}: other bytes than sent");
        self.read = end;
        assert!(self.valid_length.is_some() || end <= self.fin.unwrap_or(self.sent));
    }
}
