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
use std::time::Instant;

use bytes::{BufMut, Bytes, BytesMut};

use super::handshake::STREAMS;
use super::packet::{DataHeader, flag};
use super::{Event, Message, Protocol, Violation};
use crate::tally::lower;

mod forward;
mod sack;
mod streams;

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
/// fills the window and not the memory: an entry of 40 to 56 bytes in a queue or tree that is half empty at worst, and
/// an allocation of 24.
const OVERHEAD: usize = 128;

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
    /// What came ahead of a missing number and is of no whole message yet.
    ahead: BTreeMap<u64, Piece>,
    /// The numbers that came ahead of a missing one, as runs in order.
    runs: Vec<RangeInclusive<u64>>,
    /// The number before which resets wait to be performed.
    hold_after: Option<u64>,
    /// The first piece of the message whose pieces come in now.
    at_hand: Option<DataHeader>,
    assembly: BytesMut,
    streams: HashMap<u16, Inbound>,
    /// The first number that is taken from no peer.
    end_of_streams: u16,
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
            end_of_streams: STREAMS,
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

    /// What comes on streams from this number on is dropped.
    pub(super) fn set_end_of_streams(&mut self, end: u16) {
        self.end_of_streams = end;
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
        if number <= self.cumulative || self.is_ahead(number) {
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
                self.ahead.insert(number, Piece { header, payload });
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
        self.take_runs(None, events)
    }

    /// The same, up to the number that a FORWARD-TSN passes on to: pieces up to there may be of messages that are given
    /// up.
    fn take_runs(
        &mut self,
        forwarded: Option<u64>,
        events: &mut VecDeque<Event>,
    ) -> Result<(), Violation> {
        while let Some(run) = self.runs.first().cloned()
            && *run.start() <= self.cumulative + 1
            && self.hold_after != Some(self.cumulative)
            && forwarded.is_none_or(|number| self.cumulative < number)
        {
            let end = match self.hold_after {
                Some(hold) if run.contains(&hold) => hold,
                _ => *run.end(),
            };
            let end = forwarded.map_or(end, |number| end.min(number));
            while let Some(entry) = self.ahead.first_entry()
                && *entry.key() <= end
            {
                self.cumulative = *entry.key();
                let piece = entry.remove();
                lower(&mut self.held, piece.payload.len() + OVERHEAD);
                if forwarded.is_some() && !self.continues(piece.header) {
                    self.abandon(piece.header.stream, piece.header.sequence)?;
                    continue;
                }
                self.take(piece.header, &piece.payload, events)?;
            }
            // What is left was read already.
            self.cumulative = end;
            self.sack_now = true;
            if end == *run.end() {
                self.runs.remove(0);
            } else if let Some(first) = self.runs.first_mut() {
                *first = end + 1..=*run.end();
            }
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

    /// Whether the number came ahead of a missing one.
    fn is_ahead(&self, number: u64) -> bool {
        let at = self.runs.partition_point(|run| *run.end() < number);
        self.runs.get(at).is_some_and(|run| run.contains(&number))
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
        // In order, which is how most come behind a gap, only the last piece makes it whole.
        if header.flags & flag::END == 0 && !self.ahead.contains_key(&(number + 1)) {
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
            if *at != expected || !is_same(piece) {
                return Ok(());
            }
            let begins = piece.header.flags & flag::BEGIN != 0;
            first = Some((*at, begins));
            if begins {
                break;
            }
        }
        let Some((first, true)) = first else {
            return Ok(());
        };
        let (mut last, mut length) = (None, 0);
        for (expected, (at, piece)) in (first..).zip(self.ahead.range(first..)) {
            if *at != expected || !is_same(piece) || expected >= first + MAX_PIECES {
                return Ok(());
            }
            length += piece.payload.len();
            if piece.header.flags & flag::END != 0 {
                last = Some(expected);
                break;
            }
        }
        let Some(last) = last.filter(|_| length <= self.max_message) else {
            return Ok(());
        };
        let mut message = BytesMut::with_capacity(length);
        for at in first..=last {
            if let Some(piece) = self.ahead.remove(&at) {
                message.put_slice(&piece.payload);
                lower(&mut self.held, piece.payload.len() + OVERHEAD);
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
        if id >= self.end_of_streams {
            return Ok(());
        }
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
            lower(&mut self.held, refused.bytes.len() + OVERHEAD);
        }
        Ok(())
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

    /// Pieces that are kept by number.
    pub(super) fn pieces(&self) -> usize {
        self.ahead.len()
    }

    /// Throws away what came behind a gap, as RFC 9260 section 6.2 allows.
    pub(super) fn renege(&mut self) {
        for piece in std::mem::take(&mut self.ahead).into_values() {
            lower(&mut self.held, piece.payload.len() + OVERHEAD);
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
