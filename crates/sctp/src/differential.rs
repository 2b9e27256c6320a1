//! Runs the same operations over the same lossy path with this crate, with Google's dcSCTP, and
//! with one of each.
//!
//! For every pair, a stream delivers what was written to it, once and in order: all of it if the
//! stream was not reset, and whole messages from the front otherwise. Every reset is performed on
//! both sides, and the stream id then carries another stream.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use bytes::Bytes;
use dcsctp::api::{
    DcSctpSocket, Message as DcMessage, Options, PpId, SendOptions, SocketEvent, SocketTime,
    StreamId, ZERO_CHECKSUM_ALTERNATE_ERROR_DETECTION_METHOD_LOWER_LAYER_DTLS,
};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::{Association, Config, Event, Ppid};

const MAX_PACKET: usize = 1160;
const RECEIVE_BUFFER: usize = 256 * 1024;
const MAX_MESSAGE: usize = 64 * 1024;

/// PPID of a binary message (RFC 8831 section 8).
const BINARY: u32 = 53;

/// Stream ids that are reused. Side 0 opens those at even indices.
const SLOTS: usize = 6;

/// An event of a peer.
#[derive(Debug)]
enum PeerEvent {
    Connected,
    Failed(String),
    Opened(u16),
    Message(u16, Bytes),
    /// The peer has reset its direction.
    PeerReset(u16),
    /// Our direction is reset.
    ResetDone(u16),
}

/// One end of an association.
trait Peer {
    fn advance(&mut self, now: Instant);
    fn connect(&mut self);
    fn open(&mut self, id: u16);
    /// Whether the message was accepted.
    fn write(&mut self, id: u16, message: Bytes) -> bool;
    fn reset(&mut self, id: u16);
    /// Resets the outgoing direction of a stream that the peer has reset, unless the implementation
    /// does that by itself.
    fn answer_reset(&mut self, id: u16);
    fn handle_packet(&mut self, packet: &[u8]);
    fn poll_transmit(&mut self) -> Vec<Bytes>;
    fn next_timeout(&self) -> Option<Instant>;
    /// The events since the last call. Only a peer that reads takes messages, and what follows an
    /// unread message waits.
    fn poll(&mut self, reads: bool) -> Vec<PeerEvent>;
}

struct Ours {
    association: Association,
    now: Instant,
    /// Streams with unread messages, one entry per message.
    unread: VecDeque<u16>,
}

impl Ours {
    fn new(now: Instant) -> Self {
        let config = Config {
            max_packet: MAX_PACKET,
            receive_buffer: RECEIVE_BUFFER,
            max_message: MAX_MESSAGE,
            progress_timeout: Duration::from_secs(120),
            congestion: crate::CongestionControl::Cubic,
            ecn: true,
            ..Config::default()
        };
        Self {
            association: Association::new(config),
            now,
            unread: VecDeque::new(),
        }
    }
}

impl Peer for Ours {
    fn advance(&mut self, now: Instant) {
        self.now = now;
        self.association.handle_timeout(now);
    }

    fn connect(&mut self) {
        self.association.start();
    }

    fn open(&mut self, id: u16) {
        assert!(self.association.open_stream(id), "{id} is free");
    }

    fn write(&mut self, id: u16, message: Bytes) -> bool {
        self.association.write(id, message, Ppid::Binary)
    }

    fn reset(&mut self, id: u16) {
        self.association.reset_stream(id);
    }

    fn answer_reset(&mut self, _: u16) {}

    fn handle_packet(&mut self, packet: &[u8]) {
        self.association.handle_packet(self.now, packet);
    }

    fn poll_transmit(&mut self) -> Vec<Bytes> {
        let mut packets = Vec::new();
        while let Some(more) = self.association.poll_transmit(self.now) {
            packets.extend(more);
        }
        packets
    }

    fn next_timeout(&self) -> Option<Instant> {
        self.association.next_timeout()
    }

    fn poll(&mut self, reads: bool) -> Vec<PeerEvent> {
        let mut events = Vec::new();
        loop {
            while let Some(event) = self.association.next_event() {
                events.push(match event {
                    Event::Connected => PeerEvent::Connected,
                    Event::Ended(reason) => PeerEvent::Failed(format!("{reason:?}")),
                    Event::Opened { id } => PeerEvent::Opened(id),
                    Event::Readable { id } => {
                        self.unread.push_back(id);
                        continue;
                    }
                    Event::Finished { id } => PeerEvent::PeerReset(id),
                    Event::ResetComplete { id } => PeerEvent::ResetDone(id),
                    Event::ResetFailed { id } => PeerEvent::Failed(format!("reset of {id}")),
                    #[allow(unreachable_patterns, reason = "what only a writer asks for")]
                    _ => continue,
                });
            }
            if !reads {
                return events;
            }
            let Some(id) = self.unread.pop_front() else {
                return events;
            };
            // `None` if this side has reset the stream.
            if let Some(message) = self.association.read(id) {
                events.push(PeerEvent::Message(id, message.bytes));
            }
        }
    }
}

struct Dcsctp {
    socket: Box<dyn DcSctpSocket>,
    start: Instant,
    packets: Vec<Bytes>,
    events: Vec<PeerEvent>,
}

impl Dcsctp {
    fn new(start: Instant) -> Self {
        let options = Options {
            mtu: MAX_PACKET,
            max_message_size: MAX_MESSAGE,
            max_receiver_window_buffer_size: RECEIVE_BUFFER,
            // Outages of any length end.
            max_retransmissions: None,
            max_init_retransmits: None,
            zero_checksum_alternate_error_detection_method:
                ZERO_CHECKSUM_ALTERNATE_ERROR_DETECTION_METHOD_LOWER_LAYER_DTLS,
            ..Options::default()
        };
        Self {
            socket: dcsctp::new_socket("dcsctp", &options),
            start,
            packets: Vec::new(),
            events: Vec::new(),
        }
    }

    fn read(&mut self) {
        while let Some(message) = self.socket.get_next_message() {
            assert_eq!(message.ppid, PpId(BINARY));
            let id = message.stream_id.0;
            self.events
                .push(PeerEvent::Message(id, message.payload.into()));
        }
    }

    fn take_events(&mut self) {
        while let Some(event) = self.socket.poll_event() {
            match event {
                SocketEvent::SendPacket(packet) => self.packets.push(packet.into()),
                SocketEvent::OnConnected() => self.events.push(PeerEvent::Connected),
                SocketEvent::OnIncomingStreamReset(ids) => {
                    // Messages and events are not ordered: every available message precedes the
                    // reset.
                    self.read();
                    self.events
                        .extend(ids.iter().map(|id| PeerEvent::PeerReset(id.0)));
                }
                SocketEvent::OnStreamsResetPerformed(ids) => self
                    .events
                    .extend(ids.iter().map(|id| PeerEvent::ResetDone(id.0))),
                SocketEvent::OnBufferedAmountLow(_) | SocketEvent::OnTotalBufferedAmountLow() => {}
                other => self.events.push(PeerEvent::Failed(format!("{other:?}"))),
            }
        }
    }
}

impl Peer for Dcsctp {
    fn advance(&mut self, now: Instant) {
        self.socket
            .advance_time(SocketTime::zero() + (now - self.start));
        self.take_events();
    }

    fn connect(&mut self) {
        self.socket.connect();
    }

    fn open(&mut self, _: u16) {}

    fn write(&mut self, id: u16, message: Bytes) -> bool {
        let message = DcMessage::new(StreamId(id), PpId(BINARY), message.into());
        self.socket.send(message, &SendOptions::default()).is_ok()
    }

    fn reset(&mut self, id: u16) {
        self.socket
            .reset_streams(&[StreamId(id)])
            .expect("an association that can reset streams");
    }

    fn answer_reset(&mut self, id: u16) {
        self.reset(id);
    }

    fn handle_packet(&mut self, packet: &[u8]) {
        self.socket.handle_input(packet);
        self.take_events();
    }

    fn poll_transmit(&mut self) -> Vec<Bytes> {
        self.take_events();
        std::mem::take(&mut self.packets)
    }

    fn next_timeout(&self) -> Option<Instant> {
        let at = self.socket.poll_timeout();
        (at != SocketTime::infinite_future()).then(|| self.start + (at - SocketTime::zero()))
    }

    fn poll(&mut self, reads: bool) -> Vec<PeerEvent> {
        self.take_events();
        if reads {
            self.read();
        }
        std::mem::take(&mut self.events)
    }
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Ours,
    Dcsctp,
}

impl Kind {
    fn peer(self, now: Instant) -> Box<dyn Peer> {
        match self {
            Self::Ours => Box::new(Ours::new(now)),
            Self::Dcsctp => Box::new(Dcsctp::new(now)),
        }
    }
}

#[derive(Debug, Clone, Copy)]
enum Action {
    Write { length: usize, count: usize },
    Reset,
    Pause,
    Resume,
}

#[derive(Debug, Clone, Copy)]
struct Operation {
    after: Duration,
    side: usize,
    slot: usize,
    action: Action,
}

/// Operations, and the conditions of the path.
#[derive(Debug)]
struct Script {
    loss: f64,
    repeat: f64,
    jitter: Duration,
    both_connect: bool,
    operations: Vec<Operation>,
}

impl Script {
    fn new(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let lengths = [1, 2, 700, 1132, 1133, 5000, 16_384, 16_385, 40_000];
        let operation = |rng: &mut StdRng| Operation {
            // Occasionally long enough for resets to complete.
            after: match rng.random_range(0..12) {
                0..=5 => Duration::ZERO,
                6..=10 => Duration::from_millis(rng.random_range(1..80)),
                _ => Duration::from_millis(rng.random_range(500..3000)),
            },
            side: rng.random_range(0..2),
            slot: rng.random_range(0..SLOTS),
            action: match rng.random_range(0..20) {
                0..=9 => Action::Write {
                    length: lengths[rng.random_range(0..lengths.len())],
                    count: 1,
                },
                10..=11 => Action::Write {
                    length: 1,
                    count: rng.random_range(1..300),
                },
                12..=16 => Action::Reset,
                17 => Action::Pause,
                _ => Action::Resume,
            },
        };
        Self {
            loss: rng.random_range(0.0..0.12),
            repeat: rng.random_range(0.0..0.1),
            jitter: Duration::from_millis(rng.random_range(0..40)),
            both_connect: rng.random_bool(0.25),
            operations: (0..rng.random_range(20..100))
                .map(|_| operation(&mut rng))
                .collect(),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sending {
    Idle,
    Open,
    Resetting,
}

/// One side of the streams that use an id one after another.
#[derive(Debug)]
struct Slot {
    sending: Sending,
    /// The peer has used the stream.
    is_opened: bool,
    /// Completed resets of this side's direction and of the peer's: the index of the current
    /// stream.
    own_resets: usize,
    peer_resets: usize,
    sent: BTreeMap<usize, Vec<Bytes>>,
    received: BTreeMap<usize, Vec<Bytes>>,
}

impl Slot {
    fn new() -> Self {
        Self {
            sending: Sending::Idle,
            is_opened: false,
            own_resets: 0,
            peer_resets: 0,
            sent: BTreeMap::new(),
            received: BTreeMap::new(),
        }
    }

    fn is_free(&self) -> bool {
        self.sending == Sending::Idle && self.own_resets == self.peer_resets
    }

    fn sent(&self, stream: usize) -> &[Bytes] {
        self.sent.get(&stream).map_or(&[], Vec::as_slice)
    }

    fn received(&self, stream: usize) -> &[Bytes] {
        self.received.get(&stream).map_or(&[], Vec::as_slice)
    }
}

struct Side {
    peer: Box<dyn Peer>,
    is_connected: bool,
    reads: bool,
    slots: Vec<Slot>,
}

/// What all runs did; no count may be zero.
#[derive(Debug, Default)]
struct Done {
    messages: usize,
    cut_short: usize,
    resets: usize,
    used_again: usize,
}

struct Run<'a> {
    /// For failure messages.
    name: String,
    script: &'a Script,
    rng: StdRng,
    start: Instant,
    now: Instant,
    sides: [Side; 2],
    in_transit: BTreeMap<(Instant, u64), (usize, Bytes)>,
    packets: u64,
    /// Makes every message different.
    salt: usize,
    done: Done,
}

impl<'a> Run<'a> {
    fn new(seed: u64, kinds: [Kind; 2], script: &'a Script) -> Self {
        let now = Instant::now();
        Self {
            name: format!("seed {seed}, {kinds:?}"),
            script,
            rng: StdRng::seed_from_u64(seed),
            start: now,
            now,
            sides: kinds.map(|kind| Side {
                peer: kind.peer(now),
                is_connected: false,
                reads: true,
                slots: (0..SLOTS).map(|_| Slot::new()).collect(),
            }),
            in_transit: BTreeMap::new(),
            packets: 0,
            salt: 0,
            done: Done::default(),
        }
    }

    /// Sends what is due and advances to the next event, at most to `end`.
    fn step(&mut self, end: Instant) {
        for from in 0..2 {
            // Reading may cause packets: the window opens, a reset continues.
            loop {
                self.take(from);
                let packets = self.sides[from].peer.poll_transmit();
                if packets.is_empty() {
                    break;
                }
                for packet in packets {
                    self.send(1 - from, packet);
                }
            }
        }
        let timeouts = self
            .sides
            .iter()
            .filter_map(|side| side.peer.next_timeout());
        let arrivals = self.in_transit.keys().map(|(at, _)| *at).take(1);
        let next = timeouts.chain(arrivals).min().unwrap_or(end);
        self.now = next.clamp(self.now, end);
        for side in 0..2 {
            self.sides[side].peer.advance(self.now);
        }
        while let Some(entry) = self.in_transit.first_entry()
            && entry.key().0 <= self.now
        {
            let (to, packet) = entry.remove();
            self.sides[to].peer.handle_packet(&packet);
            self.take(to);
        }
    }

    fn send(&mut self, to: usize, packet: Bytes) {
        assert!(packet.len() <= MAX_PACKET, "{}", self.name);
        if self.rng.random_bool(self.script.loss) {
            return;
        }
        for _ in 0..1 + usize::from(self.rng.random_bool(self.script.repeat)) {
            let jitter = self
                .rng
                .random_range(0.0..=self.script.jitter.as_secs_f64());
            let at = self.now + Duration::from_millis(10) + Duration::from_secs_f64(jitter);
            self.packets += 1;
            self.in_transit
                .insert((at, self.packets), (to, packet.clone()));
        }
    }

    fn take(&mut self, side: usize) {
        let Side { peer, reads, .. } = &mut self.sides[side];
        for event in peer.poll(*reads) {
            match event {
                PeerEvent::Connected => self.sides[side].is_connected = true,
                PeerEvent::Failed(why) => panic!("{}: {why} at side {side}", self.name),
                PeerEvent::Opened(id) => self.slot(side, id).is_opened = true,
                PeerEvent::Message(id, message) => self.receive(side, id, message),
                PeerEvent::PeerReset(id) => {
                    let slot = self.slot(side, id);
                    slot.is_opened = false;
                    slot.peer_resets += 1;
                    self.answer(side, id);
                }
                PeerEvent::ResetDone(id) => {
                    let slot = self.slot(side, id);
                    slot.own_resets += 1;
                    slot.sending = Sending::Idle;
                    self.done.resets += 1;
                    self.answer(side, id);
                }
            }
        }
    }

    /// Resets this side's direction of a stream that the peer has reset.
    fn answer(&mut self, side: usize, id: u16) {
        let slot = self.slot(side, id);
        if slot.sending != Sending::Resetting && slot.own_resets < slot.peer_resets {
            slot.sending = Sending::Resetting;
            self.sides[side].peer.answer_reset(id);
        }
    }

    fn slot(&mut self, side: usize, id: u16) -> &mut Slot {
        &mut self.sides[side].slots[usize::from(id)]
    }

    fn receive(&mut self, side: usize, id: u16, message: Bytes) {
        let slot = self.slot(side, id);
        slot.is_opened = true;
        let stream = slot.peer_resets;
        let received = slot.received.entry(stream).or_default();
        received.push(message);
        let at = received.len() - 1;
        let sent = self.sides[1 - side].slots[usize::from(id)].sent(stream);
        let got = &self.sides[side].slots[usize::from(id)].received(stream)[at];
        assert!(
            sent.get(at) == Some(got),
            "{}: side {side} got {} bytes as message {at} of stream {stream} on {id}, not {:?}",
            self.name,
            got.len(),
            sent.get(at).map(Bytes::len)
        );
        self.done.messages += 1;
    }

    fn run_operation(&mut self, operation: Operation) {
        let Operation { side, slot, .. } = operation;
        match operation.action {
            Action::Write { length, count } => {
                for _ in 0..count {
                    self.write(side, slot, length);
                }
            }
            Action::Reset => self.reset(side, slot),
            Action::Pause => self.sides[side].reads = false,
            Action::Resume => self.sides[side].reads = true,
        }
    }

    /// Makes the stream of the slot writable for this side, if possible.
    fn begin(&mut self, side: usize, slot: usize) -> bool {
        let opens = slot % 2 == side;
        let Side { peer, slots, .. } = &mut self.sides[side];
        let state = &mut slots[slot];
        if state.is_free() && (opens || state.is_opened) {
            if opens {
                peer.open(slot as u16);
                self.done.used_again += usize::from(state.own_resets > 0);
            }
            state.sending = Sending::Open;
        }
        state.sending == Sending::Open
    }

    fn write(&mut self, side: usize, slot: usize, length: usize) {
        if !self.begin(side, slot) {
            return;
        }
        self.salt += 1;
        let salt = self.salt;
        let message: Bytes = (0..length).map(|at| (at * 7 + salt) as u8).collect();
        let Side { peer, slots, .. } = &mut self.sides[side];
        if peer.write(slot as u16, message.clone()) {
            let state = &mut slots[slot];
            let stream = state.own_resets;
            state.sent.entry(stream).or_default().push(message);
        }
    }

    fn reset(&mut self, side: usize, slot: usize) {
        let [state, other] = [
            &self.sides[side].slots[slot],
            &self.sides[1 - side].slots[slot],
        ];
        // The peers differ on a stream of which nothing has arrived: dcSCTP drops its messages, and
        // then the other side has no stream to reset.
        let is_current = other.sending != Sending::Idle && other.own_resets == state.own_resets;
        let is_known = other.peer_resets == state.own_resets && (other.is_opened || is_current);
        let is_open = state.sending == Sending::Open || (state.is_free() && state.is_opened);
        if is_open && is_known {
            let stream = state.own_resets;
            let left = self.sides[side].slots[slot].sent(stream).len();
            let received = self.sides[1 - side].slots[slot].received(stream).len();
            self.done.cut_short += usize::from(received < left);
            self.sides[side].slots[slot].sending = Sending::Resetting;
            self.sides[side].peer.reset(slot as u16);
        }
    }

    /// Whether nothing is left to send, read or reset.
    fn is_settled(&self) -> bool {
        (0..2).all(|side| {
            let [own, other] = [&self.sides[side], &self.sides[1 - side]];
            own.slots.iter().zip(&other.slots).all(|(from, to)| {
                let stream = from.own_resets;
                from.sending != Sending::Resetting
                    && stream == to.peer_resets
                    && stream == from.peer_resets
                    && from.sent(stream) == to.received(stream)
            })
        })
    }

    fn until(&mut self, what: &str, done: impl Fn(&Self) -> bool) {
        let end = self.now + Duration::from_secs(900);
        while !done(self) {
            if self.now >= end {
                for (side, state) in self.sides.iter().enumerate() {
                    for (id, slot) in state.slots.iter().enumerate() {
                        println!(
                            "side {side}, {id}: {:?}, own {} peer {}, sent {:?}, received {:?}",
                            slot.sending,
                            slot.own_resets,
                            slot.peer_resets,
                            slot.sent(slot.own_resets).len(),
                            slot.received(slot.peer_resets).len()
                        );
                    }
                }
                panic!("{}: waited in vain for {what}", self.name);
            }
            self.step(end);
        }
    }

    fn run(mut self) -> Done {
        self.sides[0].peer.connect();
        if self.script.both_connect {
            self.sides[1].peer.connect();
        }
        self.until("the handshake", |run| {
            run.sides.iter().all(|side| side.is_connected)
        });
        for &operation in &self.script.operations {
            let at = self.now + operation.after;
            while self.now < at {
                self.step(at);
            }
            self.run_operation(operation);
        }
        for side in 0..2 {
            self.sides[side].reads = true;
        }
        self.until("all messages and resets", Self::is_settled);
        // Whatever happened on an id, it can be freed and carry another stream.
        for slot in 0..SLOTS {
            self.reset(slot % 2, slot);
        }
        self.until("the last resets", Self::is_settled);
        for slot in 0..SLOTS {
            self.write(slot % 2, slot, 3000);
        }
        self.until("the messages of the last streams", Self::is_settled);
        for slot in 0..SLOTS {
            self.write(1 - slot % 2, slot, 3000);
        }
        self.until("the answers on the last streams", Self::is_settled);
        for side in &self.sides {
            assert!(
                side.slots
                    .iter()
                    .all(|slot| slot.received(slot.peer_resets).len() == 1),
                "{}",
                self.name
            );
        }
        println!("{}: {:?}", self.name, self.now - self.start);
        self.done
    }
}

#[test]
fn ours_and_dcsctp_deliver_the_same_and_to_each_other() {
    let seeds = std::env::var("ANABRANCH_SEEDS")
        .ok()
        .and_then(|seeds| seeds.parse().ok());
    let pairs = [
        [Kind::Ours, Kind::Ours],
        [Kind::Dcsctp, Kind::Dcsctp],
        [Kind::Ours, Kind::Dcsctp],
        [Kind::Dcsctp, Kind::Ours],
    ];
    let mut totals = pairs.map(|_| Done::default());
    for seed in 0..seeds.unwrap_or(20_u64) {
        let script = Script::new(seed);
        for (pair, total) in pairs.into_iter().zip(&mut totals) {
            let done = Run::new(seed, pair, &script).run();
            total.messages += done.messages;
            total.cut_short += done.cut_short;
            total.resets += done.resets;
            total.used_again += done.used_again;
        }
    }
    for (pair, total) in pairs.iter().zip(&totals) {
        println!("{pair:?}: {total:?}");
        let Done {
            messages,
            cut_short,
            resets,
            used_again,
        } = total;
        assert!(
            [messages, cut_short, resets, used_again]
                .iter()
                .all(|&&count| count > 0)
        );
    }
}
