//! What comes in: numbers, gaps, and messages put together again (RFC 9260 section 6).
//!
//! ```text
//! DATA ─► number is next ─► the message at hand ─► its stream, in order ─► read
//!    └──► behind a gap ──► kept by number ──► a whole message? ──┘
//! ```
//!
//! Without interleaving (RFC 8260) the pieces of a message have consecutive numbers. So in the order of
//! numbers there is one message at hand at most, whatever the number of streams.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes, BytesMut};

use super::packet::{DataHeader, flag};
use super::{Event, Message, Protocol, Violation};

/// How long an acknowledgement may wait for another packet. RFC 9260 section 6.2 allows 500 ms; this is long
/// enough for an answer to go along, and short enough to keep the end of a burst from waiting.
const SACK_DELAY: Duration = Duration::from_millis(20);

/// Packets that are acknowledged together at most, unless a batch of them comes at once.
const PACKETS_PER_SACK: u32 = 2;

/// Numbers ahead of the first that is missing: a SACK can tell of no more (RFC 9260 section 3.3.4).
const MAX_AHEAD: u64 = u16::MAX as u64;

/// Gaps at a time. A SACK tells of about 280.
const MAX_GAPS: usize = 1024;

/// Pieces on either side of a number that are looked at for a whole message behind a gap. A frame of
/// 16 KiB has 15; longer messages wait until the gap is closed.
const MAX_PIECES: u64 = 64;

/// Streams on one number that are over and not read to their end.
const MAX_SUCCESSORS: usize = 16;

/// What a message or a piece costs beside its bytes, counted so that a peer that sends many tiny ones
/// fills the window and not the memory.
const OVERHEAD: usize = 64;

/// Memory that a message is put together in, at first. Most have at most 16 KiB.
const ASSEMBLY: usize = 17 * 1024;

/// A piece behind a gap.
#[derive(Debug)]
struct Piece {
    header: DataHeader,
    payload: Bytes,
}

/// A stream of the peer's.
#[derive(Debug, Default)]
struct Inbound {
    /// Sequence number of the next message.
    next: u16,
    ready: VecDeque<Message>,
    /// Whole messages that came before an earlier one, by sequence number.
    waiting: BTreeMap<u16, Message>,
    /// Nobody reads it.
    ignored: bool,
    /// The peer has reset it: it ends when everything is read.
    ended: bool,
    /// `Event::Finished` was reported: it is there only until that is taken.
    finished: bool,
    /// Our own direction was reset before.
    answered: bool,
}

impl Inbound {
    fn push(&mut self, id: u16, message: Message, is_first: bool, events: &mut VecDeque<Event>) {
        self.ready.push_back(message);
        if is_first {
            events.push_back(Event::Readable { id });
        }
    }
}

/// The receiving side of an association.
#[derive(Debug)]
pub(super) struct Receiver {
    /// The highest number up to which nothing is missing. Extended to 64 bits, so that it never wraps.
    cumulative: u64,
    /// What came ahead of a missing number; `None` where it was read already.
    ahead: BTreeMap<u64, Option<Piece>>,
    /// The numbers in `ahead`, as runs in order.
    runs: Vec<RangeInclusive<u64>>,
    /// The number before which resets wait to be performed.
    hold_after: Option<u64>,
    /// The first piece of the message whose pieces come in now.
    at_hand: Option<DataHeader>,
    assembly: BytesMut,
    streams: HashMap<u16, Inbound>,
    /// What came on the number of a stream that the peer has reset and that is not read to its end: others,
    /// each of which begins when the one before has ended. Some peers use a number again without waiting
    /// for the answer to their reset.
    successors: HashMap<u16, VecDeque<Inbound>>,
    /// Streams that have ended and whose peer waits for our own reset (RFC 8831 section 6.7).
    unanswered: Vec<u16>,
    /// Bytes that may be held.
    capacity: usize,
    /// Bytes held, with [`OVERHEAD`].
    held: usize,
    max_message: usize,
    /// Packets with DATA since the last SACK.
    packets: u32,
    sack_now: bool,
    sack_at: Option<Instant>,
    /// The window in the last SACK.
    told: usize,
}

impl Receiver {
    pub(super) fn new(first_tsn: u32, capacity: usize, max_message: usize) -> Self {
        Self {
            cumulative: (1 << 32) + u64::from(first_tsn) - 1,
            ahead: BTreeMap::new(),
            runs: Vec::new(),
            hold_after: None,
            at_hand: None,
            assembly: BytesMut::new(),
            streams: HashMap::new(),
            successors: HashMap::new(),
            unanswered: Vec::new(),
            capacity,
            held: 0,
            max_message,
            packets: 0,
            sack_now: false,
            sack_at: None,
            told: capacity,
        }
    }

    /// The highest number up to which nothing is missing.
    pub(super) fn cumulative_tsn(&self) -> u32 {
        self.cumulative as u32
    }

    /// The number that is nearest to what comes next, of those that look like this.
    fn extend(&self, tsn: u32) -> u64 {
        let distance = tsn.wrapping_sub(self.cumulative as u32).cast_signed();
        self.cumulative.wrapping_add_signed(distance.into())
    }

    /// Whether the number was reached (RFC 6525 section 5.2.2).
    pub(super) fn has_reached(&self, tsn: u32) -> bool {
        self.extend(tsn) <= self.cumulative
    }

    /// Takes in a DATA chunk.
    pub(super) fn handle_data(
        &mut self,
        header: DataHeader,
        payload: &[u8],
        events: &mut VecDeque<Event>,
    ) -> Result<(), Violation> {
        if header.flags & flag::IMMEDIATE != 0 {
            self.sack_now = true;
        }
        let number = self.extend(header.tsn);
        if number <= self.cumulative || self.ahead.contains_key(&number) {
            // The peer has not heard of it (RFC 9260 section 6.2).
            self.sack_now = true;
            return Ok(());
        }
        let cost = payload.len() + OVERHEAD;
        if number > self.cumulative + 1 {
            self.sack_now = true;
            if number - self.cumulative <= MAX_AHEAD
                && self.held + cost <= self.capacity
                && self.note_ahead(number)
            {
                self.held += cost;
                // A copy: it may lie long, in a packet that is much longer.
                let payload = Bytes::copy_from_slice(payload);
                self.ahead.insert(number, Some(Piece { header, payload }));
                self.take_whole(number, header, events)?;
            }
            return Ok(());
        }
        // Twice the window: what is next lets everything behind it be read.
        if self.held + self.assembly.len() + cost > self.capacity.saturating_mul(2) {
            // It is the reader who has to make room. What the peer wants to know is the window.
            self.sack_now = true;
            return Ok(());
        }
        self.take(header, payload, events)?;
        self.cumulative = number;
        self.take_ahead(events)
    }

    /// Takes what came ahead and is next now.
    fn take_ahead(&mut self, events: &mut VecDeque<Event>) -> Result<(), Violation> {
        while self.hold_after != Some(self.cumulative)
            && let Some(entry) = self.ahead.first_entry()
            && *entry.key() == self.cumulative + 1
        {
            self.cumulative += 1;
            if let Some(piece) = entry.remove() {
                self.held -= piece.payload.len() + OVERHEAD;
                self.take(piece.header, &piece.payload, events)?;
            }
        }
        if let Some(first) = self.runs.first()
            && *first.end() <= self.cumulative
        {
            self.runs.remove(0);
            self.sack_now = true;
        }
        // As long as there are gaps (RFC 9260 section 6.7).
        self.sack_now |= !self.runs.is_empty();
        Ok(())
    }

    /// What comes behind this number is of streams that are reset when it is reached: it waits for that.
    pub(super) fn hold_after(&mut self, tsn: u32) {
        self.hold_after = Some(self.extend(tsn));
    }

    /// The reset is performed.
    pub(super) fn release(&mut self, events: &mut VecDeque<Event>) -> Result<(), Violation> {
        self.hold_after = None;
        self.take_ahead(events)
    }

    /// Adds a number to the runs; `false` if there would be too many.
    fn note_ahead(&mut self, number: u64) -> bool {
        let behind = self.runs.partition_point(|run| *run.end() < number);
        let joins_before = behind.checked_sub(1).filter(|before| {
            self.runs
                .get(*before)
                .is_some_and(|run| run.end() + 1 == number)
        });
        let joins_after = self
            .runs
            .get(behind)
            .is_some_and(|run| *run.start() == number + 1);
        match (joins_before, joins_after) {
            (Some(before), true) => {
                let end = *self.runs.remove(behind).end();
                if let Some(run) = self.runs.get_mut(before) {
                    *run = *run.start()..=end;
                }
            }
            (Some(before), false) => {
                if let Some(run) = self.runs.get_mut(before) {
                    *run = *run.start()..=number;
                }
            }
            (None, true) => {
                if let Some(run) = self.runs.get_mut(behind) {
                    *run = number..=*run.end();
                }
            }
            (None, false) if self.runs.len() >= MAX_GAPS => return false,
            (None, false) => self.runs.insert(behind, number..=number),
        }
        true
    }

    /// Takes the next piece in the order of numbers.
    fn take(
        &mut self,
        header: DataHeader,
        payload: &[u8],
        events: &mut VecDeque<Event>,
    ) -> Result<(), Violation> {
        let (begins, ends) = (
            header.flags & flag::BEGIN != 0,
            header.flags & flag::END != 0,
        );
        match self.at_hand {
            Some(_) if begins => return Err(Violation("a message that does not end")),
            None if !begins => return Err(Violation("a message that does not begin")),
            Some(first)
                if (first.stream, first.sequence) != (header.stream, header.sequence)
                    || (first.flags ^ header.flags) & flag::UNORDERED != 0 =>
            {
                return Err(Violation("a message in pieces of several"));
            }
            _ => {}
        }
        if begins && ends {
            return self.deliver(header, Bytes::copy_from_slice(payload), events);
        }
        if begins {
            self.assembly = BytesMut::with_capacity(ASSEMBLY);
            self.at_hand = Some(header);
        }
        self.assembly.put_slice(payload);
        if self.assembly.len() > self.max_message {
            return Err(Violation("a message longer than any"));
        }
        if ends && let Some(header) = self.at_hand.take() {
            let message = assembled(&mut self.assembly);
            return self.deliver(header, message, events);
        }
        Ok(())
    }

    /// Takes the message out that this piece behind a gap is of, if all of it is there. So a packet that is
    /// lost holds back no stream but its own.
    fn take_whole(
        &mut self,
        number: u64,
        header: DataHeader,
        events: &mut VecDeque<Event>,
    ) -> Result<(), Violation> {
        if self.hold_after.is_some_and(|last| last < number) {
            return Ok(());
        }
        let is_same = |piece: &Piece| {
            (piece.header.stream, piece.header.sequence) == (header.stream, header.sequence)
                && (piece.header.flags ^ header.flags) & flag::UNORDERED == 0
        };
        let mut first = None;
        for (at, piece) in self
            .ahead
            .range(number.saturating_sub(MAX_PIECES)..=number)
            .rev()
        {
            let expected = first.map_or(number, |(first, _)| first - 1);
            match piece {
                Some(piece) if *at == expected && is_same(piece) => {
                    let begins = piece.header.flags & flag::BEGIN != 0;
                    first = Some((*at, begins));
                    if begins {
                        break;
                    }
                }
                _ => return Ok(()),
            }
        }
        let Some((first, true)) = first else {
            return Ok(());
        };
        let (mut last, mut length) = (None, 0);
        for (expected, (at, piece)) in (first..).zip(self.ahead.range(first..)) {
            match piece {
                Some(piece)
                    if *at == expected && is_same(piece) && expected < first + MAX_PIECES =>
                {
                    length += piece.payload.len();
                    if piece.header.flags & flag::END != 0 {
                        last = Some(expected);
                        break;
                    }
                }
                _ => return Ok(()),
            }
        }
        let Some(last) = last.filter(|_| length <= self.max_message) else {
            return Ok(());
        };
        let mut message = BytesMut::with_capacity(length);
        for (_, piece) in self.ahead.range_mut(first..=last) {
            if let Some(piece) = piece.take() {
                message.put_slice(&piece.payload);
                self.held -= piece.payload.len() + OVERHEAD;
            }
        }
        self.deliver(header, message.freeze(), events)
    }

    /// Puts a whole message into its stream.
    fn deliver(
        &mut self,
        header: DataHeader,
        bytes: Bytes,
        events: &mut VecDeque<Event>,
    ) -> Result<(), Violation> {
        let id = header.stream;
        let first = self.streams.entry(id).or_insert_with(|| {
            events.push_back(Event::Opened { id });
            Inbound::default()
        });
        let is_first = !first.ended;
        let stream = if is_first {
            first
        } else {
            let successors = self.successors.entry(id).or_default();
            if successors.back().is_none_or(|last| last.ended) {
                if successors.len() == MAX_SUCCESSORS {
                    return Err(Violation("resets without end"));
                }
                successors.push_back(Inbound::default());
            }
            match successors.back_mut() {
                Some(last) => last,
                None => return Ok(()),
            }
        };
        if stream.ignored {
            return Ok(());
        }
        self.held += bytes.len() + OVERHEAD;
        let message = Message {
            protocol: Protocol::from(header.protocol),
            bytes,
        };
        if header.flags & flag::UNORDERED != 0 {
            stream.push(id, message, is_first, events);
            return Ok(());
        }
        let refused = if header.sequence == stream.next {
            stream.push(id, message, is_first, events);
            stream.next = stream.next.wrapping_add(1);
            while let Some(message) = stream.waiting.remove(&stream.next) {
                stream.push(id, message, is_first, events);
                stream.next = stream.next.wrapping_add(1);
            }
            None
        } else if header.sequence.wrapping_sub(stream.next) < 1 << 15 {
            stream.waiting.insert(header.sequence, message)
        } else {
            Some(message)
        };
        // A number that was there before.
        if let Some(refused) = refused {
            self.held -= refused.bytes.len() + OVERHEAD;
        }
        Ok(())
    }

    /// Makes a stream that nothing has come on yet; `false` if there is one.
    pub(super) fn open(&mut self, id: u16) -> bool {
        let is_new = !self.streams.contains_key(&id);
        if is_new {
            self.streams.insert(id, Inbound::default());
        }
        is_new
    }

    /// Whether there is such a stream, and the peer has not reset it.
    pub(super) fn is_open(&self, id: u16) -> bool {
        self.streams.get(&id).is_some_and(|stream| !stream.ended)
    }

    /// The next message of a stream.
    pub(super) fn read(&mut self, id: u16, events: &mut VecDeque<Event>) -> Option<Message> {
        let message = self.streams.get_mut(&id)?.ready.pop_front();
        if let Some(message) = &message {
            self.held -= message.bytes.len() + OVERHEAD;
        }
        self.end_if_read(id, events);
        message
    }

    /// Throws away what the stream holds, and what still comes on it.
    pub(super) fn ignore(&mut self, id: u16, events: &mut VecDeque<Event>) {
        let Some(stream) = self.streams.get_mut(&id) else {
            return;
        };
        stream.ignored = true;
        let waiting = std::mem::take(&mut stream.waiting);
        let ready = std::mem::take(&mut stream.ready);
        for message in ready.into_iter().chain(waiting.into_values()) {
            self.held -= message.bytes.len() + OVERHEAD;
        }
        self.end_if_read(id, events);
    }

    /// Our own direction of a stream was reset.
    pub(super) fn answered(&mut self, id: u16) {
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.answered = true;
        }
    }

    /// The peer has reset a stream: what comes now is of another, with the same number.
    pub(super) fn reset(&mut self, id: u16, events: &mut VecDeque<Event>) {
        let stream = match self.successors.get_mut(&id).and_then(VecDeque::back_mut) {
            Some(last) => Some(last),
            None => self.streams.get_mut(&id),
        };
        let Some(stream) = stream else {
            return;
        };
        stream.ended = true;
        // Messages that wait for one which the peer has never sent.
        for message in std::mem::take(&mut stream.waiting).into_values() {
            self.held -= message.bytes.len() + OVERHEAD;
        }
        self.end_if_read(id, events);
    }

    /// Ends a stream that was reset and has nothing left to read.
    fn end_if_read(&mut self, id: u16, events: &mut VecDeque<Event>) {
        if let Some(stream) = self.streams.get_mut(&id)
            && stream.ended
            && stream.ready.is_empty()
            && !std::mem::replace(&mut stream.finished, true)
        {
            events.push_back(Event::Finished { id });
        }
    }

    /// The end of a stream is known: the next one on its number takes its place. What was read before belongs to
    /// the one, and what is read from now on to the other.
    pub(super) fn retire(&mut self, id: u16, events: &mut VecDeque<Event>) {
        let Some(stream) = self.streams.remove(&id) else {
            return;
        };
        if stream.answered {
            events.push_back(Event::ResetComplete { id });
        } else {
            self.unanswered.push(id);
        }
        let Some(successors) = self.successors.get_mut(&id) else {
            return;
        };
        let next = successors.pop_front();
        if successors.is_empty() {
            self.successors.remove(&id);
        }
        if let Some(next) = next {
            events.push_back(Event::Opened { id });
            events.extend(next.ready.iter().map(|_| Event::Readable { id }));
            self.streams.insert(id, next);
            self.end_if_read(id, events);
        }
    }

    /// Streams that have ended since this was asked last, and that are to be reset on our side too.
    pub(super) fn take_unanswered(&mut self) -> Vec<u16> {
        std::mem::take(&mut self.unanswered)
    }
}

#[cfg(test)]
impl Receiver {
    /// Streams that there are.
    pub(super) fn stream_ids(&self) -> impl Iterator<Item = u16> + '_ {
        self.streams.keys().copied()
    }

    /// Bytes held, with what they cost.
    pub(super) fn held(&self) -> usize {
        self.held
    }

    /// Throws away what came behind a gap, as RFC 9260 section 6.2 allows.
    pub(super) fn renege(&mut self) {
        for piece in std::mem::take(&mut self.ahead).into_values().flatten() {
            self.held -= piece.payload.len() + OVERHEAD;
        }
        self.runs.clear();
    }
}

/// What was put together, in memory of about its own size. None of it stays: a connection that is idle keeps no
/// more than it needs.
fn assembled(assembly: &mut BytesMut) -> Bytes {
    let message = std::mem::take(assembly);
    if message.len() < message.capacity() / 2 {
        return Bytes::copy_from_slice(&message);
    }
    message.freeze()
}

/// Acknowledgements.
impl Receiver {
    /// A packet with DATA was taken in.
    pub(super) fn note_packet(&mut self, now: Instant) {
        self.packets += 1;
        if self.packets >= PACKETS_PER_SACK {
            self.sack_now = true;
        }
        self.sack_at.get_or_insert(now + SACK_DELAY);
    }

    pub(super) fn is_sack_due(&self, now: Instant) -> bool {
        self.sack_now || self.sack_at.is_some_and(|at| at <= now) || self.is_window_update_due()
    }

    /// Whether there is something to acknowledge, at once or later: it can go along with DATA.
    pub(super) fn has_news(&self) -> bool {
        self.sack_now || self.sack_at.is_some()
    }

    pub(super) fn sack_at(&self) -> Option<Instant> {
        self.sack_at
    }

    /// Number, window and gaps of a SACK that is sent now.
    pub(super) fn sack(&mut self) -> (u32, u32, impl ExactSizeIterator<Item = (u16, u16)> + '_) {
        self.packets = 0;
        self.sack_now = false;
        self.sack_at = None;
        self.told = self.window();
        let cumulative = self.cumulative;
        // All are within `MAX_AHEAD`.
        let distance = move |number: u64| (number - cumulative) as u16;
        let gaps = self
            .runs
            .iter()
            .map(move |run| (distance(*run.start()), distance(*run.end())));
        (
            self.cumulative as u32,
            u32::try_from(self.told).unwrap_or(u32::MAX),
            gaps,
        )
    }

    fn window(&self) -> usize {
        self.capacity.saturating_sub(self.held)
    }

    /// Whether the peer believes in a window much smaller than it is, and has to be told: it may be waiting. An
    /// update for every read would be an update for every packet.
    pub(super) fn is_window_update_due(&self) -> bool {
        self.told < self.capacity / 2 && self.window() >= self.told + self.capacity / 4
    }

    /// Whether the peer was told of less than a quarter of the window.
    pub(super) fn is_window_tight(&self) -> bool {
        self.told < self.capacity / 4
    }
}
