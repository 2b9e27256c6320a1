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

use super::Violation;
use super::congestion::Congestion;
use super::packet::{DATA_HEADER, DataHeader, Packets, Sack, flag};

/// Before a round trip was measured: RFC 9260 says 1 s, but DTLS has just shown that the path is
/// no slower than this.
pub(super) const RTO_INITIAL: Duration = Duration::from_millis(500);

/// RFC 9260 says 1 s. It has to be above the 200 ms that peers delay an acknowledgement for.
const RTO_MIN: Duration = Duration::from_millis(300);

/// RFC 9260 says 60 s. This is how long an outage can go on when it is over, and a window that was
/// shut when it is open.
pub(super) const RTO_MAX: Duration = Duration::from_secs(3);

/// How long a peer may wait with the acknowledgement of a lone packet (RFC 9260 section 6.2).
const PEER_SACK_DELAY: Duration = Duration::from_millis(200);

/// Packets by which one may be overtaken before it counts as lost (RFC 9002 section 6.1.1); doubled each time that
/// one turns out to have been late, up to the other figure.
const REORDERING: u64 = 3;
const MAX_REORDERING: u64 = 96;

/// Shortest time for the same (RFC 9002 section 6.1.2).
const GRANULARITY: Duration = Duration::from_millis(1);

/// Payload that is not worth a chunk of its own, in front of more of the same message.
const MIN_PIECE: usize = 64;

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

/// Where our reset of a stream is (RFC 6525).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reset {
    None,
    /// As soon as everything is acknowledged.
    Wanted,
    /// Asked for, or about to be.
    Requested,
    /// The peer refuses.
    Failed,
}

/// Our direction of a stream.
#[derive(Debug)]
struct Outbound {
    /// Sequence number of the next message.
    next: u16,
    /// Bytes written and not acknowledged.
    unacknowledged: usize,
    reset: Reset,
    /// Streams of the peer's on this number that have ended since and wait for it.
    owed: u32,
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
    /// Payload bytes in flight.
    in_flight: usize,
    /// Payload bytes of all in `sent` that are not acknowledged.
    outstanding: usize,
    streams: HashMap<u16, Outbound>,
    /// Streams with nothing unacknowledged that wait for their reset.
    to_reset: VecDeque<u16>,
    congestion: Congestion,
    /// The window had kept something from being sent when it was last tried.
    limited: bool,
    next_packet: u64,
    /// The highest packet that is known to have arrived.
    arrived: Option<u64>,
    /// The packet whose arrival ends the round.
    round_end: u64,
    reordering: u64,
    /// What the peer has room for beyond what it was sent.
    peer_window: usize,
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
            streams: HashMap::new(),
            to_reset: VecDeque::new(),
            congestion: Congestion::new(max_packet),
            limited: false,
            next_packet: 0,
            arrived: None,
            round_end: 0,
            reordering: REORDERING,
            peer_window: 0,
            smoothed: None,
            variation: Duration::ZERO,
            latest: Duration::ZERO,
            shortest: Duration::MAX,
            backoff: 0,
            timeout_at: None,
            loss_at: None,
            probe_at: None,
            probe_due: false,
            probed: false,
        }
    }

    /// The peer has told of its window, in INIT or INIT-ACK.
    pub(super) fn set_peer_window(&mut self, window: u32) {
        self.peer_window = window as usize;
    }

    /// The number that the peer must have reached before it resets streams of which everything is acknowledged. That
    /// is never more than the last one that was given out (RFC 6525 section 4.1), and without gaps it has been
    /// reached: the peer does not have to wait for the DATA of other streams.
    pub(super) fn last_tsn_of_acknowledged(&self) -> u32 {
        if self.known_gaps.is_empty() {
            self.first_tsn().wrapping_sub(1)
        } else {
            self.next_tsn.wrapping_sub(1)
        }
    }

    /// Makes a stream; `false` if there is one that is not reset.
    pub(super) fn open(&mut self, id: u16) -> bool {
        if self.streams.contains_key(&id) {
            return false;
        }
        self.streams.insert(
            id,
            Outbound {
                next: 0,
                unacknowledged: 0,
                reset: Reset::None,
                owed: 0,
            },
        );
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
        self.queue.push_back(Queued {
            stream: id,
            protocol,
            rest: message,
            begun: false,
        });
        true
    }

    pub(super) fn unacknowledged(&self, id: u16) -> usize {
        self.streams
            .get(&id)
            .map_or(0, |stream| stream.unacknowledged)
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
            stream.owed += 1;
        }
    }

    fn reset_if_acknowledged(&mut self, id: u16) {
        if let Some(stream) = self.streams.get_mut(&id)
            && stream.reset == Reset::Wanted
            && stream.unacknowledged == 0
        {
            stream.reset = Reset::Requested;
            self.to_reset.push_back(id);
        }
    }

    pub(super) fn has_resets(&self) -> bool {
        !self.to_reset.is_empty()
    }

    /// Streams to ask the peer to reset now, at most `max`.
    pub(super) fn take_resets(&mut self, max: usize) -> Vec<u16> {
        let count = self.to_reset.len().min(max);
        self.to_reset.drain(..count).collect()
    }

    /// Our direction of a stream was reset, and the number can be used again. Returns how many streams of the
    /// peer's have waited for it.
    pub(super) fn reset_done(&mut self, id: u16) -> Option<u32> {
        self.streams.remove(&id).map(|stream| stream.owed)
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
            let length = sent.payload.len();
            if !self.may_send(length) {
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
        if self.next_packet > before {
            self.arm_probe(now);
        }
    }

    /// Whether the congestion window has room. An empty path always takes a packet.
    fn may_send(&self, length: usize) -> bool {
        self.in_flight == 0 || self.in_flight + length <= self.congestion.window()
    }

    /// The number of the packet that the next chunk of `length` bytes goes into.
    fn packet_number(
        &mut self,
        length: usize,
        packets: &Packets,
        before: u64,
        whole_before: usize,
    ) -> u64 {
        let starts_another = (DATA_HEADER + length).next_multiple_of(4) > packets.room();
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
            self.in_flight += length;
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
            let Some(queued) = self.queue.front_mut() else {
                return;
            };
            let mut room = packets.room().saturating_sub(DATA_HEADER);
            if room < queued.rest.len().min(MIN_PIECE) {
                packets.finish_packet();
                room = packets.room().saturating_sub(DATA_HEADER);
            }
            let length = queued.rest.len().min(room);
            let has_room =
                self.in_flight == 0 || self.in_flight + length <= self.congestion.window();
            if !has_room {
                self.limited = true;
                return;
            }
            // With a window that is shut, one packet asks whether it still is (RFC 9260 section 6.1).
            if length > self.peer_window && self.outstanding > 0 {
                return;
            }
            let payload = queued.rest.split_to(length);
            let ends = queued.rest.is_empty();
            let mut flags = 0;
            if !std::mem::replace(&mut queued.begun, true) {
                flags |= flag::BEGIN;
            }
            if ends {
                flags |= flag::END;
            }
            // The end of several packets is acknowledged without delay (RFC 7053), and so is missed early. What
            // is sent alone is likely to be answered by the application, and the acknowledgement goes along.
            if ends && is_last && !self.sent.is_empty() {
                flags |= flag::IMMEDIATE;
            }
            let (stream, protocol) = (queued.stream, queued.protocol);
            if ends {
                self.queue.pop_front();
            }
            let mut sequence = 0;
            if let Some(stream) = self.streams.get_mut(&stream) {
                sequence = stream.next;
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
            self.in_flight += length;
            self.outstanding += length;
            self.peer_window = self.peer_window.saturating_sub(length);
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

/// Acknowledgements and loss.
impl Sender {
    /// Takes in a SACK.
    pub(super) fn handle_sack(&mut self, now: Instant, sack: Sack<'_>) -> Result<(), Violation> {
        let distance = sack
            .cumulative_tsn
            .wrapping_sub(self.first_tsn().wrapping_sub(1));
        if distance.cast_signed() < 0 {
            // An old one.
            return Ok(());
        }
        if distance as usize > self.sent.len() {
            return Err(Violation("an acknowledgement of what was not sent"));
        }
        let mut news = News::default();
        for index in 0..distance as usize {
            self.acknowledge(index, now, &mut news);
        }
        self.sent.drain(..distance as usize);
        self.judged = self.judged.saturating_sub(distance as usize);
        self.handle_gaps(now, sack, distance, &mut news);
        if let Some(at) = news.round_trip {
            self.note_round_trip(now.saturating_duration_since(at));
        }
        self.arrived = self.arrived.max(news.packet);
        if news.bytes > 0 {
            self.congestion.on_acknowledged(news.bytes, self.limited);
            self.backoff = 0;
            self.probed = false;
        }
        self.find_losses(now);
        if self
            .arrived
            .is_some_and(|arrived| arrived >= self.round_end)
        {
            self.round_end = self.next_packet;
            self.congestion.on_round();
        }
        self.peer_window = (sack.window as usize).saturating_sub(self.outstanding);
        if self.sent.is_empty() {
            self.timeout_at = None;
            self.probe_at = None;
            self.loss_at = None;
        } else if distance > 0 || news.bytes > 0 {
            self.timeout_at = Some(now + self.timeout());
            self.arm_probe(now);
        }
        for id in news.acknowledged {
            self.reset_if_acknowledged(id);
        }
        Ok(())
    }

    /// Looks at what was acknowledged behind gaps, and not in the last SACK already.
    fn handle_gaps(&mut self, now: Instant, sack: Sack<'_>, distance: u32, news: &mut News) {
        let mut known = std::mem::take(&mut self.known_gaps);
        for (first, last) in &mut known {
            *first = first.saturating_sub(distance);
            *last = last.saturating_sub(distance);
        }
        let mut gaps = Vec::new();
        let mut earlier = known.iter().copied().peekable();
        let mut least = 1;
        for (first, last) in sack.gaps() {
            let (first, last) = (u32::from(first), u32::from(last));
            // They come in order and do not meet; one that does not ends what can be believed.
            if first <= least || last < first || last as usize > self.sent.len() {
                break;
            }
            least = last + 1;
            gaps.push((first, last));
            let mut next = first;
            while next <= last {
                while earlier
                    .peek()
                    .is_some_and(|(_, known_last)| *known_last < next)
                {
                    earlier.next();
                }
                match earlier.peek() {
                    Some((known_first, known_last)) if *known_first <= next => {
                        next = known_last + 1;
                        continue;
                    }
                    _ => {}
                }
                let index = next as usize - 1;
                next += 1;
                self.acknowledge(index, now, news);
            }
        }
        self.known_gaps = gaps;
    }

    /// Counts a chunk that has arrived, if it is news. It is kept until the cumulative number has reached it: a
    /// peer may throw away what came behind a gap (RFC 9260 section 6.2).
    fn acknowledge(&mut self, index: usize, now: Instant, news: &mut News) {
        let Some(sent) = self.sent.get_mut(index) else {
            return;
        };
        if sent.state == State::Acknowledged {
            return;
        }
        let length = sent.payload.len();
        self.outstanding -= length;
        if sent.state == State::InFlight {
            self.in_flight -= length;
        }
        sent.state = State::Acknowledged;
        news.bytes += length;
        // Of one that was sent twice it may have been the first that arrived.
        let is_late = sent.repeated
            && self.smoothed.is_some()
            && now.saturating_duration_since(sent.at) < self.shortest;
        if is_late {
            self.reordering = (self.reordering * 2).min(MAX_REORDERING);
        } else {
            news.packet = news.packet.max(Some(sent.packet));
            if !sent.repeated {
                news.round_trip = news.round_trip.max(Some(sent.at));
            }
        }
        if std::mem::replace(&mut sent.counted, true) {
            return;
        }
        let id = sent.header.stream;
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.unacknowledged -= length;
            if stream.unacknowledged == 0 && stream.reset == Reset::Wanted {
                news.acknowledged.push(id);
            }
        }
    }

    /// Finds what is lost, first among what was sent once, then among repetitions.
    fn find_losses(&mut self, now: Instant) {
        self.loss_at = None;
        let Some(arrived) = self.arrived else {
            return;
        };
        let patience = self.latest.max(self.smoothed.unwrap_or_default());
        let patience = (patience + patience / 8).max(GRANULARITY);
        while let Some(sent) = self.sent.get(self.judged) {
            if sent.state == State::InFlight && !sent.repeated {
                if sent.packet > arrived {
                    break;
                }
                if sent.packet + self.reordering > arrived && sent.at + patience > now {
                    self.loss_at = Some(sent.at + patience);
                    break;
                }
                let tsn = self.tsn_at(self.judged);
                self.lose(tsn);
            }
            self.judged += 1;
        }
        while let Some(&(tsn, packet)) = self.repeated.front() {
            let reordering = self.reordering;
            let sent = self.entry(tsn);
            if let Some(sent) = sent
                && sent.state == State::InFlight
                && sent.packet == packet
            {
                if packet > arrived {
                    break;
                }
                let at = sent.at + patience;
                if packet + reordering > arrived && at > now {
                    self.loss_at = Some(self.loss_at.map_or(at, |other| other.min(at)));
                    break;
                }
                self.lose(tsn);
            }
            self.repeated.pop_front();
        }
    }

    fn lose(&mut self, tsn: u32) {
        let Some(sent) = self.entry(tsn) else {
            return;
        };
        sent.state = State::ToRepeat;
        let length = sent.payload.len();
        self.in_flight -= length;
        self.to_repeat.push_back(tsn);
        if self.congestion.on_lost(length) {
            self.round_end = self.next_packet;
        }
    }

    fn note_round_trip(&mut self, sample: Duration) {
        self.latest = sample;
        self.shortest = self.shortest.min(sample);
        match self.smoothed {
            None => {
                self.smoothed = Some(sample);
                self.variation = sample / 2;
            }
            Some(smoothed) => {
                let difference = smoothed.abs_diff(sample);
                self.variation = (self.variation * 3 + difference) / 4;
                self.smoothed = Some((smoothed * 7 + sample) / 8);
            }
        }
    }

    /// The retransmission timeout (RFC 9260 section 6.3.1), with its doublings.
    pub(super) fn timeout(&self) -> Duration {
        let timeout = match self.smoothed {
            None => RTO_INITIAL,
            Some(smoothed) => smoothed + self.variation * 4,
        };
        let timeout = timeout.clamp(RTO_MIN, RTO_MAX);
        timeout
            .saturating_mul(1 << self.backoff.min(8))
            .min(RTO_MAX)
    }

    fn arm_probe(&mut self, now: Instant) {
        self.probe_at = None;
        let Some(smoothed) = self.smoothed.filter(|_| !self.probed) else {
            return;
        };
        let mut patience = smoothed * 2 + GRANULARITY;
        let is_hasty = |sent: &Sent| sent.header.flags & flag::IMMEDIATE != 0;
        if self.sent.len() == 1 && !self.sent.back().is_some_and(is_hasty) {
            patience += PEER_SACK_DELAY;
        }
        let at = now + patience;
        if self.timeout_at.is_none_or(|timeout| at < timeout) {
            self.probe_at = Some(at);
        }
    }

    pub(super) fn next_timeout(&self) -> Option<Instant> {
        [self.timeout_at, self.loss_at, self.probe_at]
            .into_iter()
            .flatten()
            .min()
    }

    pub(super) fn handle_timeout(&mut self, now: Instant) {
        if self.loss_at.is_some_and(|at| at <= now) {
            self.find_losses(now);
        }
        if self.probe_at.is_some_and(|at| at <= now) {
            self.probe_at = None;
            self.probed = true;
            self.probe_due = true;
        }
        if self.timeout_at.is_some_and(|at| at <= now) {
            self.on_timeout(now);
        }
    }

    /// Everything that is not acknowledged is sent again, beginning with one packet.
    fn on_timeout(&mut self, now: Instant) {
        let first = self.first_tsn();
        self.to_repeat.clear();
        self.repeated.clear();
        let mut gaps = self.known_gaps.iter().peekable();
        for (tsn, (distance, sent)) in (first..=u32::MAX)
            .chain(0..)
            .zip((1_u32..).zip(&mut self.sent))
        {
            while gaps.next_if(|(_, last)| *last < distance).is_some() {}
            if gaps.peek().is_some_and(|(first, _)| *first <= distance) {
                continue;
            }
            if sent.state == State::Acknowledged {
                // The peer has it no more, or told of too many gaps.
                self.outstanding += sent.payload.len();
            }
            sent.state = State::ToRepeat;
            self.to_repeat.push_back(tsn);
        }
        self.judged = self.sent.len();
        self.in_flight = 0;
        self.probe_at = None;
        self.loss_at = None;
        self.probe_due = false;
        // A peer with its window shut has said so, and has lost nothing.
        if self.peer_window > 0 || self.sent.len() > 1 {
            self.congestion.on_timeout();
        }
        self.round_end = self.next_packet;
        self.backoff += 1;
        self.timeout_at = (!self.sent.is_empty()).then(|| now + self.timeout());
    }
}

/// What a SACK has told.
#[derive(Debug, Default)]
struct News {
    bytes: usize,
    /// The highest packet that has arrived.
    packet: Option<u64>,
    /// When the latest of what has arrived was sent, of what was sent once.
    round_trip: Option<Instant>,
    /// Streams that wait for their reset and have nothing unacknowledged any more.
    acknowledged: Vec<u16>,
}
