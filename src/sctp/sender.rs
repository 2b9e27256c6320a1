//! What goes out: messages cut into DATA chunks, their acknowledgement and repetition.
//!
//! ```text
//!             put into a packet            acknowledged
//! queued ────────────────────────► in flight ─────────► gone
//!                                   │     ▲
//!                              lost │     │ put into another packet
//!                                   ▼     │
//!                                  to repeat
//! ```
//!
//! Loss is found as in QUIC (RFC 9002 section 6.1), which is RACK (RFC 8985) by packet numbers: a chunk is lost
//! when a packet sent well after its own was acknowledged, well being a few packets or an eighth of a round
//! trip. So a repetition that is lost as well is found without a timeout, and a gap is not walked through
//! for each SACK that reports it.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::Event;
use super::congestion::Congestion;
use super::packet::{DATA_HEADER, DataHeader, Packets, flag};

/// Before a round trip was measured: RFC 9260 says 1 s, but DTLS has just shown that the path is
/// no slower than this.
pub(super) const RTO_INITIAL: Duration = Duration::from_millis(500);

/// RFC 9260 says 60 s. This is how long an outage can go on when it is over, and a window that was
/// shut when it is open.
pub(super) const RTO_MAX: Duration = Duration::from_secs(3);

/// Packets by which one may be overtaken before it counts as lost (RFC 9002 section 6.1.1); doubled each time that
/// one turns out to have been late, up to the other figure.
const REORDERING: u64 = 3;
/// Payload that is not worth a chunk of its own, in front of more of the same message.
const MIN_PIECE: usize = 64;

/// What a queued message, or a chunk that was sent, costs beside its bytes: its entry, and the slack of the queue
/// that this lies in.
const ENTRY: usize = 128;

mod recovery;
mod window;

use window::{PeerWindow, Share};

/// A message, or the rest of one, that was not sent yet.
#[derive(Debug)]
struct Queued {
    stream: u16,
    protocol: u32,
    rest: Bytes,
    begun: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    InFlight,
    ToRepeat,
    Acknowledged,
}

/// A chunk that has a number.
#[derive(Debug)]
struct Sent {
    header: DataHeader,
    payload: Bytes,
    state: State,
    /// Number of the packet that carried it last.
    packet: u64,
    at: Instant,
    repeated: bool,
    /// Its stream has been told that it arrived.
    counted: bool,
}

impl Sent {
    /// Bytes of the chunk in its packet.
    fn size(&self) -> usize {
        chunk_size(self.payload.len())
    }
}

/// Bytes of a DATA chunk in its packet, with header and padding. The windows count these: a flight of messages of
/// one byte is 20 times as long as its payload.
fn chunk_size(payload: usize) -> usize {
    (DATA_HEADER + payload).next_multiple_of(4)
}

/// Where our reset of a stream is (RFC 6525).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Reset {
    #[default]
    None,
    /// As soon as everything is acknowledged.
    Wanted,
    /// About to be asked for.
    Requested,
    /// Asked for.
    Sent,
    /// The peer refuses.
    Failed,
}

/// Our direction of a stream.
#[derive(Debug, Default)]
struct Outbound {
    /// Sequence number of the next message.
    next: u16,
    /// Bytes written and not acknowledged.
    unacknowledged: usize,
    /// Messages in the queue of which nothing was sent.
    unbegun: usize,
    share: Share,
    reset: Reset,
    /// Streams of the peer's on this number that have ended since and wait for it.
    owed: u32,
    /// Those that wait for the reset after it: the peer may have performed the one that was sent, and have used the
    /// number again since. Its answer was lost, or is on its way.
    owed_later: u32,
}

/// The sending side of an association.
#[derive(Debug)]
pub(super) struct Sender {
    next_tsn: u32,
    queue: VecDeque<Queued>,
    /// Without those at the front that are acknowledged; consecutive, the last has `next_tsn - 1`.
    sent: VecDeque<Sent>,
    /// Index in `sent` up to which every first transmission was acknowledged or lost.
    judged: usize,
    /// Repetitions in the order they were sent: number and packet.
    repeated: VecDeque<(u32, u64)>,
    to_repeat: VecDeque<u32>,
    /// Ranges of numbers that the last SACK told of, as distances from the front of `sent`.
    known_gaps: Vec<(u32, u32)>,
    /// Bytes of chunks in flight.
    in_flight: usize,
    /// Bytes of all chunks in `sent` that are not acknowledged.
    outstanding: usize,
    /// Payload bytes written and not acknowledged, of all streams, those included that are gone.
    unacknowledged: usize,
    /// Memory of `queue` and `sent`. More than what is not acknowledged: what arrived behind a gap is kept until
    /// the gap is closed.
    held: usize,
    /// `Event::Room` was reported and not taken.
    room_reported: bool,
    /// When the peer has last acknowledged the first that was outstanding, or had its window shut.
    progress_at: Option<Instant>,
    streams: HashMap<u16, Outbound>,
    /// Streams with nothing unacknowledged that wait for their reset, with the number that the peer has to reach
    /// before it is asked. Some dcSCTP that had to say "in progress" never say anything else.
    to_reset: VecDeque<(u16, u32)>,
    congestion: Congestion,
    /// The window had kept something from being sent when it was last tried.
    limited: bool,
    next_packet: u64,
    /// The highest packet that is known to have arrived.
    arrived: Option<u64>,
    /// The packet whose arrival ends the round.
    round_end: u64,
    reordering: u64,
    peer_window: PeerWindow,
    smoothed: Option<Duration>,
    variation: Duration,
    latest: Duration,
    shortest: Duration,
    /// Doublings of the timeout.
    backoff: u32,
    timeout_at: Option<Instant>,
    /// When a packet is lost that was overtaken by fewer than `reordering`.
    loss_at: Option<Instant>,
    /// When the last packet is sent again in case it was lost, with nothing behind it to show that.
    probe_at: Option<Instant>,
    probe_due: bool,
    /// When the peer is asked for its window, as a writer waits for a part of it; and times that it was asked since
    /// one did not have to wait.
    ask_at: Option<Instant>,
    asked: u32,
    /// One for each time that something new is acknowledged.
    probed: bool,
}

/// Streams and messages.
impl Sender {
    pub(super) fn new(first_tsn: u32, max_packet: usize) -> Self {
        Self {
            next_tsn: first_tsn,
            queue: VecDeque::new(),
            sent: VecDeque::new(),
            judged: 0,
            repeated: VecDeque::new(),
            to_repeat: VecDeque::new(),
            known_gaps: Vec::new(),
            in_flight: 0,
            outstanding: 0,
            unacknowledged: 0,
            held: 0,
            room_reported: false,
            progress_at: None,
            streams: HashMap::new(),
            to_reset: VecDeque::new(),
            congestion: Congestion::new(max_packet),
            limited: false,
            next_packet: 0,
            arrived: None,
            round_end: 0,
            reordering: REORDERING,
            peer_window: PeerWindow::default(),
            smoothed: None,
            variation: Duration::ZERO,
            latest: Duration::ZERO,
            shortest: Duration::MAX,
            backoff: 0,
            timeout_at: None,
            loss_at: None,
            probe_at: None,
            probe_due: false,
            ask_at: None,
            asked: 0,
            probed: false,
        }
    }

    /// The peer has told of its window, in INIT or INIT-ACK.
    pub(super) fn set_peer_window(&mut self, window: u32) {
        self.peer_window.advertise(window, self.outstanding);
    }

    /// The number that the peer has reached.
    pub(super) fn reached_tsn(&self) -> u32 {
        self.first_tsn().wrapping_sub(1)
    }

    /// Makes a stream; `false` if there is one that is not reset.
    pub(super) fn open(&mut self, id: u16) -> bool {
        if self.streams.contains_key(&id) {
            return false;
        }
        self.streams.insert(id, Outbound::default());
        true
    }

    /// Queues a message, which must not be empty: there is no such DATA (RFC 9260 section 3.3.1). `false` if the
    /// stream can not be written to.
    pub(super) fn write(&mut self, id: u16, protocol: u32, message: Bytes) -> bool {
        let Some(stream) = self.streams.get_mut(&id) else {
            return false;
        };
        if stream.reset != Reset::None || message.is_empty() {
            return false;
        }
        stream.unacknowledged += message.len();
        stream.unbegun += 1;
        self.unacknowledged += message.len();
        self.held += message.len() + ENTRY;
        self.queue.push_back(Queued {
            stream: id,
            protocol,
            rest: message,
            begun: false,
        });
        true
    }

    /// Bytes of a stream that are not acknowledged.
    pub(super) fn unacknowledged(&self, id: u16) -> usize {
        self.streams
            .get(&id)
            .map_or(0, |stream| stream.unacknowledged)
    }

    /// The same of all streams, and the memory that is held for them.
    pub(super) fn totals(&self) -> (usize, usize) {
        (self.unacknowledged, self.held)
    }

    /// Whether a message fits the part of the peer's window that its stream may fill. If not, `Event::Room`
    /// follows.
    pub(super) fn has_share(&mut self, id: u16, length: usize) -> bool {
        let Some(stream) = self.streams.get_mut(&id) else {
            return true;
        };
        self.peer_window
            .admits(&mut stream.share, stream.unacknowledged, length)
    }

    /// Lowers what holds writers back, which wakes them. Nothing else does.
    fn release(&mut self, unacknowledged: usize, held: usize, events: &mut VecDeque<Event>) {
        debug_assert!(unacknowledged <= self.unacknowledged && held <= self.held);
        self.unacknowledged = self.unacknowledged.saturating_sub(unacknowledged);
        self.held = self.held.saturating_sub(held);
        if unacknowledged + held > 0 {
            self.report_room(events);
        }
    }

    fn report_room(&mut self, events: &mut VecDeque<Event>) {
        if !std::mem::replace(&mut self.room_reported, true) {
            events.push_back(Event::Room);
        }
    }

    /// `Event::Room` was taken: what comes up from now on is reported again.
    pub(super) fn room_taken(&mut self) {
        self.room_reported = false;
    }

    /// Drops what is queued on a stream that the peer has reset: RFC 8831 section 6.7 makes that the end of the
    /// channel, and nobody reads it. A message that has begun goes on to its end.
    pub(super) fn discard_unbegun(&mut self, id: u16, events: &mut VecDeque<Event>) {
        let Some(stream) = self.streams.get_mut(&id) else {
            return;
        };
        if std::mem::take(&mut stream.unbegun) == 0 {
            return;
        }
        // The queue is no longer than the writers' budget, and only a stream with something in it looks through it.
        let (mut bytes, mut entries) = (0, 0);
        self.queue.retain(|queued| {
            let is_kept = queued.stream != id || queued.begun;
            if !is_kept {
                bytes += queued.rest.len();
                entries += 1;
            }
            is_kept
        });
        stream.unacknowledged = stream.unacknowledged.saturating_sub(bytes);
        let is_empty = stream.unacknowledged == 0;
        self.release(bytes, bytes + entries * ENTRY, events);
        if is_empty {
            self.on_stream_acknowledged(id, events);
        }
    }

    /// Everything that was written to a stream is acknowledged, or dropped.
    fn on_stream_acknowledged(&mut self, id: u16, events: &mut VecDeque<Event>) {
        events.push_back(Event::Acknowledged { id });
        self.reset_if_acknowledged(id);
    }

    /// Whether there may be something to send now.
    pub(super) fn wants_to_send(&self) -> bool {
        self.probe_due
            || ((!self.to_repeat.is_empty() || !self.queue.is_empty()) && self.may_send(1))
    }

    /// Whether everything was acknowledged.
    pub(super) fn is_idle(&self) -> bool {
        self.queue.is_empty() && self.sent.is_empty()
    }

    /// Resets a stream when everything on it is acknowledged. Nothing more can be written.
    pub(super) fn reset(&mut self, id: u16) {
        // A stream that only the peer has used is reset too: it waits for that.
        self.open(id);
        if let Some(stream) = self.streams.get_mut(&id)
            && stream.reset == Reset::None
        {
            stream.reset = Reset::Wanted;
            self.reset_if_acknowledged(id);
        }
    }

    /// The peer waits for the reset of our direction, since its own stream has ended.
    pub(super) fn owe_reset(&mut self, id: u16) {
        self.reset(id);
        if let Some(stream) = self.streams.get_mut(&id) {
            // The first end belongs to the reset that was sent, whoever began; a further one does not.
            if stream.reset == Reset::Sent && stream.owed > 0 {
                stream.owed_later += 1;
            } else {
                stream.owed += 1;
            }
        }
    }

    fn reset_if_acknowledged(&mut self, id: u16) {
        if let Some(stream) = self.streams.get_mut(&id)
            && stream.reset == Reset::Wanted
            && stream.unacknowledged == 0
        {
            stream.reset = Reset::Requested;
            self.to_reset.push_back((id, self.next_tsn.wrapping_sub(1)));
        }
    }

    /// Whether there are streams to ask the peer to reset now.
    pub(super) fn has_resets(&self) -> bool {
        self.to_reset.front().is_some_and(|(_, last)| {
            let missing = last.wrapping_sub(self.reached_tsn()).cast_signed();
            missing <= 0
        })
    }

    /// These streams, at most `max`.
    pub(super) fn take_resets(&mut self, max: usize) -> Vec<u16> {
        let mut streams = Vec::new();
        while streams.len() < max && self.has_resets() {
            let Some((id, _)) = self.to_reset.pop_front() else {
                break;
            };
            if let Some(stream) = self.streams.get_mut(&id) {
                stream.reset = Reset::Sent;
            }
            streams.push(id);
        }
        streams
    }

    /// Our direction of a stream was reset, and the number can be used again. Returns how many streams of the
    /// peer's have waited for it.
    pub(super) fn reset_done(&mut self, id: u16) -> Option<u32> {
        let mut stream = self.streams.remove(&id)?;
        self.peer_window.forget(&mut stream.share);
        if stream.owed_later > 0 {
            self.open(id);
            self.reset(id);
            if let Some(next) = self.streams.get_mut(&id) {
                next.owed = stream.owed_later;
            }
        }
        Some(stream.owed)
    }

    /// The peer refuses to reset our direction of a stream.
    pub(super) fn reset_failed(&mut self, id: u16) {
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.reset = Reset::Failed;
        }
    }
}

/// Packets.
impl Sender {
    /// Puts what the windows allow into packets: first what was lost, then what is new.
    pub(super) fn fill(&mut self, now: Instant, packets: &mut Packets) {
        let before = self.next_packet;
        let whole_before = packets.len();
        self.limited = false;
        if std::mem::take(&mut self.probe_due) {
            self.probe(now, packets, before, whole_before);
        }
        while let Some(&tsn) = self.to_repeat.front() {
            let Some(sent) = self.entry(tsn).filter(|sent| sent.state == State::ToRepeat) else {
                self.to_repeat.pop_front();
                continue;
            };
            let size = sent.size();
            if !self.may_send(size) {
                self.limited = true;
                break;
            }
            self.to_repeat.pop_front();
            self.repeat(tsn, now, packets, before, whole_before);
        }
        if !self.limited {
            self.fill_new(now, packets, before, whole_before);
        }
        if !self.sent.is_empty() && self.timeout_at.is_none() {
            self.timeout_at = Some(now + self.timeout());
        }
        self.ask_for_window(now, packets);
        if self.next_packet > before {
            self.arm_probe(now);
        }
    }

    /// Asks for a SACK by DATA that the peer has, as long as a writer waits and no other SACK is on its way.
    fn ask_for_window(&mut self, now: Instant, packets: &mut Packets) {
        if !self.peer_window.is_awaited() {
            (self.ask_at, self.asked) = (None, 0);
            return;
        }
        if !self.sent.is_empty() {
            self.ask_at = None;
            return;
        }
        if self.ask_at.is_some_and(|at| at <= now) {
            self.ask_at = None;
            self.asked += 1;
            let header = DataHeader {
                flags: flag::BEGIN | flag::END | flag::IMMEDIATE,
                tsn: self.reached_tsn(),
                stream: 0,
                sequence: 0,
                protocol: 0,
            };
            packets.put_data(header, &[0]);
            self.next_packet += 1;
        }
        let patience = self.timeout().saturating_mul(1 << self.asked.min(8));
        if self.ask_at.is_none() {
            self.ask_at = Some(now + patience.min(RTO_MAX));
        }
    }

    /// Whether the congestion window has room. An empty path always takes a packet.
    fn may_send(&self, size: usize) -> bool {
        self.in_flight == 0 || self.in_flight + size <= self.congestion.window()
    }

    /// The number of the packet that the next chunk of `length` bytes goes into.
    fn packet_number(
        &mut self,
        length: usize,
        packets: &Packets,
        before: u64,
        whole_before: usize,
    ) -> u64 {
        let starts_another = chunk_size(length) > packets.room();
        let index = packets.len() - whole_before + usize::from(starts_another);
        let number = before + index as u64;
        self.next_packet = self.next_packet.max(number + 1);
        number
    }

    fn repeat(
        &mut self,
        tsn: u32,
        now: Instant,
        packets: &mut Packets,
        before: u64,
        whole_before: usize,
    ) {
        let Some(length) = self.entry(tsn).map(|sent| sent.payload.len()) else {
            return;
        };
        let packet = self.packet_number(length, packets, before, whole_before);
        let Some(sent) = self.entry(tsn) else {
            return;
        };
        let was_in_flight = sent.state == State::InFlight;
        sent.state = State::InFlight;
        sent.repeated = true;
        sent.packet = packet;
        sent.at = now;
        packets.put_data(sent.header, &sent.payload);
        if !was_in_flight {
            self.in_flight += chunk_size(length);
        }
        self.repeated.push_back((tsn, packet));
    }

    /// Sends the last packet again, whatever the window says (RFC 9002 section 6.2.4).
    fn probe(&mut self, now: Instant, packets: &mut Packets, before: u64, whole_before: usize) {
        let last = self
            .sent
            .iter()
            .rposition(|sent| sent.state == State::InFlight);
        if let Some(index) = last {
            let tsn = self.tsn_at(index);
            self.repeat(tsn, now, packets, before, whole_before);
        }
    }

    fn fill_new(&mut self, now: Instant, packets: &mut Packets, before: u64, whole_before: usize) {
        loop {
            let is_last = self.queue.len() == 1;
            let Some(queued) = self.queue.front() else {
                return;
            };
            let mut room = packets.room().saturating_sub(DATA_HEADER);
            if room < queued.rest.len().min(MIN_PIECE) {
                packets.finish_packet();
                room = packets.room().saturating_sub(DATA_HEADER);
            }
            let length = queued.rest.len().min(room);
            let size = chunk_size(length);
            if !self.may_send(size) {
                self.limited = true;
                return;
            }
            // With a window that is shut, one packet asks whether it still is (RFC 9260 section 6.1).
            if length > self.peer_window.room() && self.outstanding > 0 {
                return;
            }
            let Some(queued) = self.queue.front_mut() else {
                return;
            };
            let payload = queued.rest.split_to(length);
            let ends = queued.rest.is_empty();
            let mut flags = 0;
            let begins = !std::mem::replace(&mut queued.begun, true);
            if begins {
                flags |= flag::BEGIN;
            }
            if ends {
                flags |= flag::END;
            }
            // The end of several packets is acknowledged without delay (RFC 7053), and so is missed early. What
            // is sent alone is likely to be answered by the application, and the acknowledgement goes along.
            // And before a reset, which waits for it: pion delays its SACK by 200 ms.
            let is_awaited = (self.streams.get(&queued.stream))
                .is_some_and(|stream| stream.reset == Reset::Wanted);
            if ends && is_last && (!self.sent.is_empty() || is_awaited) {
                flags |= flag::IMMEDIATE;
            }
            let (stream, protocol) = (queued.stream, queued.protocol);
            // Of the entry of the message, that of its last chunk is left.
            self.held += ENTRY;
            if ends {
                self.queue.pop_front();
                self.held -= ENTRY;
            }
            let mut sequence = 0;
            if let Some(stream) = self.streams.get_mut(&stream) {
                sequence = stream.next;
                stream.unbegun -= usize::from(begins);
                if ends {
                    stream.next = stream.next.wrapping_add(1);
                }
            }
            let header = DataHeader {
                flags,
                tsn: self.next_tsn,
                stream,
                sequence,
                protocol,
            };
            let packet = self.packet_number(length, packets, before, whole_before);
            packets.put_data(header, &payload);
            self.next_tsn = self.next_tsn.wrapping_add(1);
            self.in_flight += size;
            self.outstanding += size;
            self.peer_window.sent(size);
            if self.sent.is_empty() {
                self.progress_at = Some(now);
            }
            self.sent.push_back(Sent {
                header,
                payload,
                state: State::InFlight,
                packet,
                at: now,
                repeated: false,
                counted: false,
            });
        }
    }

    fn first_tsn(&self) -> u32 {
        self.next_tsn.wrapping_sub(self.sent.len() as u32)
    }

    fn tsn_at(&self, index: usize) -> u32 {
        self.first_tsn().wrapping_add(index as u32)
    }

    fn entry(&mut self, tsn: u32) -> Option<&mut Sent> {
        let index = tsn.wrapping_sub(self.first_tsn());
        self.sent.get_mut(index as usize)
    }
}
