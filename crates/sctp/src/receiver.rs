//! The receiving side: TSNs, gaps and reassembly (RFC 9260 section 6).
//!
//! ```text
//! DATA ─► next TSN ────► the partial message ─► its stream, in order ─► read
//!    └──► after a gap ─► kept by TSN ─► complete message? ──┘
//! ```
//!
//! Without interleaving (RFC 8260) the fragments of a message have consecutive TSNs. So in TSN
//! order there is at most one partial message, whatever the number of streams.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::RangeInclusive;
use std::time::Instant;

use bytes::{BufMut, Bytes, BytesMut};

use super::handshake::STREAMS;
use super::packet::{DataHeader, flag};
use super::{Event, Message, Ppid, Violation};
use crate::tally::lower;

mod forward;
mod sack;
mod streams;

/// Maximum offset from the cumulative TSN: a SACK can not report more (RFC 9260 section 3.3.4).
const MAX_AHEAD: u64 = u16::MAX as u64;

/// Maximum duplicate TSNs that a SACK reports.
const MAX_DUPLICATES: usize = 32;

/// Maximum gap ack blocks. A SACK holds about 280.
const MAX_GAPS: usize = 1024;

/// Fragments searched on either side of a TSN for a complete message after a gap. A frame of 16 KiB
/// has 15; longer messages wait until the gap is closed.
const MAX_FRAGMENTS: u64 = 64;

/// Maximum ended but unread streams per stream id.
const MAX_SUCCESSORS: usize = 16;

/// Overhead counted for each message and fragment, so that a peer that sends many tiny ones fills
/// the window and not the memory: an entry of 40 to 56 bytes in a queue or tree that is half empty
/// at worst, and an allocation of 24 bytes.
const OVERHEAD: usize = 128;

/// Initial capacity for reassembly. Most messages have at most 16 KiB.
const REASSEMBLY_CAPACITY: usize = 17 * 1024;

/// A fragment received after a gap.
#[derive(Debug)]
struct Fragment {
    header: DataHeader,
    payload: Bytes,
}

/// State of an incoming stream.
///
/// ```text
/// Open ─► (the peer's reset) Reset ─► (everything is read) Finished ─► (the event is taken) gone
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum InboundState {
    #[default]
    Open,
    Reset,
    /// `Event::Finished` was emitted.
    Finished,
}

/// An incoming stream.
#[derive(Debug, Default)]
struct Inbound {
    /// Stream sequence number of the next message.
    next: u16,
    ready: VecDeque<Message>,
    /// Complete messages that wait for an earlier one, by stream sequence number.
    waiting: BTreeMap<u16, Message>,
    /// Nobody reads the stream: its messages are dropped.
    ignored: bool,
    state: InboundState,
    /// The outgoing direction was reset before.
    outgoing_reset: bool,
}

impl Inbound {
    fn is_open(&self) -> bool {
        self.state == InboundState::Open
    }

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
    /// The cumulative TSN, extended to 64 bits so that it never wraps.
    cumulative_tsn: u64,
    /// Fragments received after a gap whose messages are incomplete.
    ahead: BTreeMap<u64, Fragment>,
    /// TSNs received after a gap, as ordered ranges.
    gap_blocks: Vec<RangeInclusive<u64>>,
    /// DATA after this TSN is held until the pending stream reset is performed.
    hold_after: Option<u64>,
    /// The first fragment of the partial message.
    partial: Option<DataHeader>,
    reassembly: BytesMut,
    streams: HashMap<u16, Inbound>,
    /// Messages on this stream id and above are dropped.
    max_streams: u16,
    /// Messages on the id of a stream that the peer has reset and that is not read to its end: they
    /// belong to later streams, each of which begins when the previous one has ended. Some peers
    /// reuse an id without waiting for the response to their reset.
    successors: HashMap<u16, VecDeque<Inbound>>,
    /// Ended streams whose peer waits for the reset of our direction (RFC 8831 section 6.7).
    ended_streams: Vec<u16>,
    /// Maximum bytes held.
    capacity: usize,
    /// Bytes held, including [`OVERHEAD`].
    held: usize,
    max_message: usize,
    /// Packets with DATA since the last SACK.
    unacknowledged_packets: u32,
    sack_now: bool,
    /// TSNs that arrived again since then.
    duplicates: Vec<u32>,
    sack_at: Option<Instant>,
    /// The a_rwnd of the last SACK.
    advertised_window: usize,
}

impl Receiver {
    pub(super) fn new(first_tsn: u32, capacity: usize, max_message: usize) -> Self {
        Self {
            cumulative_tsn: (1 << 32) + u64::from(first_tsn) - 1,
            ahead: BTreeMap::new(),
            gap_blocks: Vec::new(),
            hold_after: None,
            partial: None,
            reassembly: BytesMut::new(),
            streams: HashMap::new(),
            max_streams: STREAMS,
            successors: HashMap::new(),
            ended_streams: Vec::new(),
            capacity,
            held: 0,
            max_message,
            unacknowledged_packets: 0,
            sack_now: false,
            duplicates: Vec::new(),
            sack_at: None,
            advertised_window: capacity,
        }
    }

    /// Sets the number of accepted streams; messages on other ids are dropped.
    pub(super) fn set_max_streams(&mut self, end: u16) {
        self.max_streams = end;
    }

    /// The TSN up to which everything has arrived.
    pub(super) fn cumulative_tsn(&self) -> u32 {
        self.cumulative_tsn as u32
    }

    /// Extends a 32-bit TSN to the 64-bit value nearest the cumulative TSN.
    fn extend(&self, tsn: u32) -> u64 {
        let distance = tsn.wrapping_sub(self.cumulative_tsn as u32).cast_signed();
        self.cumulative_tsn.wrapping_add_signed(distance.into())
    }

    /// Whether everything up to `tsn` has arrived (RFC 6525 section 5.2.2).
    pub(super) fn has_reached(&self, tsn: u32) -> bool {
        self.extend(tsn) <= self.cumulative_tsn
    }

    /// Whether DATA with this TSN would be new.
    pub(super) fn is_awaited(&self, tsn: u32) -> bool {
        let tsn = self.extend(tsn);
        let is_near = tsn.saturating_sub(self.cumulative_tsn) <= MAX_AHEAD;
        tsn > self.cumulative_tsn && is_near && !self.is_ahead(tsn)
    }

    /// Handles a DATA chunk.
    pub(super) fn handle_data(
        &mut self,
        header: DataHeader,
        payload: &[u8],
        events: &mut VecDeque<Event>,
    ) -> Result<(), Violation> {
        if header.flags & flag::IMMEDIATE != 0 {
            self.sack_now = true;
        }
        let tsn = self.extend(header.tsn);
        if tsn <= self.cumulative_tsn || self.is_ahead(tsn) {
            // The SACK for it was lost, or the sender took it for lost (RFC 9260 section 6.2).
            self.sack_now = true;
            if self.duplicates.len() < MAX_DUPLICATES {
                self.duplicates.push(header.tsn);
            }
            return Ok(());
        }
        let cost = payload.len() + OVERHEAD;
        if tsn > self.cumulative_tsn + 1 {
            self.sack_now = true;
            if tsn - self.cumulative_tsn <= MAX_AHEAD
                && self.held + cost <= self.capacity
                && self.record_ahead(tsn)
            {
                self.held += cost;
                // Copied: a long-lived slice would keep a whole packet alive.
                let payload = Bytes::copy_from_slice(payload);
                self.ahead.insert(tsn, Fragment { header, payload });
                self.reassemble_ahead(tsn, header, events)?;
            }
            return Ok(());
        }
        // Up to twice the window: the next TSN releases everything held after it.
        if self.held + self.reassembly.len() + cost > self.capacity.saturating_mul(2) {
            // Only the reader can make room. The SACK reports the window.
            self.sack_now = true;
            return Ok(());
        }
        self.take_in_order(header, payload, events)?;
        self.cumulative_tsn = tsn;
        self.take_buffered(events)
    }

    /// Takes buffered fragments that are next in TSN order.
    fn take_buffered(&mut self, events: &mut VecDeque<Event>) -> Result<(), Violation> {
        self.take_buffered_until(None, events)
    }

    /// The same up to the new cumulative TSN of a FORWARD-TSN: fragments up to there may belong to
    /// abandoned messages.
    fn take_buffered_until(
        &mut self,
        forwarded: Option<u64>,
        events: &mut VecDeque<Event>,
    ) -> Result<(), Violation> {
        while let Some(run) = self.gap_blocks.first().cloned()
            && *run.start() <= self.cumulative_tsn + 1
            && self.hold_after != Some(self.cumulative_tsn)
            && forwarded.is_none_or(|tsn| self.cumulative_tsn < tsn)
        {
            let end = match self.hold_after {
                Some(hold) if run.contains(&hold) => hold,
                _ => *run.end(),
            };
            let end = forwarded.map_or(end, |tsn| end.min(tsn));
            while let Some(entry) = self.ahead.first_entry()
                && *entry.key() <= end
            {
                self.cumulative_tsn = *entry.key();
                let fragment = entry.remove();
                lower(&mut self.held, fragment.payload.len() + OVERHEAD);
                if forwarded.is_some() && !self.continues(fragment.header) {
                    self.abandon(fragment.header.stream, fragment.header.ssn)?;
                    continue;
                }
                self.take_in_order(fragment.header, &fragment.payload, events)?;
            }
            // The rest of the range was delivered before.
            self.cumulative_tsn = end;
            self.sack_now = true;
            if end == *run.end() {
                self.gap_blocks.remove(0);
            } else if let Some(first) = self.gap_blocks.first_mut() {
                *first = end + 1..=*run.end();
            }
        }
        // Every packet is acknowledged while there are gaps (RFC 9260 section 6.7).
        self.sack_now |= !self.gap_blocks.is_empty();
        Ok(())
    }

    /// Holds DATA after `tsn` until the pending stream reset is performed.
    pub(super) fn hold_after(&mut self, tsn: u32) {
        self.hold_after = Some(self.extend(tsn));
    }

    /// Delivers the held DATA: the reset is performed.
    pub(super) fn release(&mut self, events: &mut VecDeque<Event>) -> Result<(), Violation> {
        self.hold_after = None;
        self.take_buffered(events)
    }

    /// Whether the TSN was received after a gap.
    fn is_ahead(&self, tsn: u64) -> bool {
        let at = self.gap_blocks.partition_point(|run| *run.end() < tsn);
        self.gap_blocks
            .get(at)
            .is_some_and(|run| run.contains(&tsn))
    }

    /// Adds a TSN to the gap ack blocks; `false` if there would be too many.
    fn record_ahead(&mut self, tsn: u64) -> bool {
        let behind = self.gap_blocks.partition_point(|run| *run.end() < tsn);
        let joins_before = behind.checked_sub(1).filter(|before| {
            self.gap_blocks
                .get(*before)
                .is_some_and(|run| run.end() + 1 == tsn)
        });
        let joins_after = self
            .gap_blocks
            .get(behind)
            .is_some_and(|run| *run.start() == tsn + 1);
        match (joins_before, joins_after) {
            (Some(before), true) => {
                let end = *self.gap_blocks.remove(behind).end();
                if let Some(run) = self.gap_blocks.get_mut(before) {
                    *run = *run.start()..=end;
                }
            }
            (Some(before), false) => {
                if let Some(run) = self.gap_blocks.get_mut(before) {
                    *run = *run.start()..=tsn;
                }
            }
            (None, true) => {
                if let Some(run) = self.gap_blocks.get_mut(behind) {
                    *run = tsn..=*run.end();
                }
            }
            (None, false) if self.gap_blocks.len() >= MAX_GAPS => return false,
            (None, false) => self.gap_blocks.insert(behind, tsn..=tsn),
        }
        true
    }

    /// Takes the next fragment in TSN order.
    fn take_in_order(
        &mut self,
        header: DataHeader,
        payload: &[u8],
        events: &mut VecDeque<Event>,
    ) -> Result<(), Violation> {
        let (begins, ends) = (
            header.flags & flag::BEGIN != 0,
            header.flags & flag::END != 0,
        );
        match self.partial {
            Some(_) if begins => return Err(Violation::MissingEnd),
            None if !begins => return Err(Violation::MissingBeginning),
            Some(first)
                if (first.stream, first.ssn) != (header.stream, header.ssn)
                    || (first.flags ^ header.flags) & flag::UNORDERED != 0 =>
            {
                return Err(Violation::MixedFragments);
            }
            _ => {}
        }
        if begins && ends {
            return self.deliver(header, Bytes::copy_from_slice(payload), events);
        }
        if begins {
            self.reassembly = BytesMut::with_capacity(REASSEMBLY_CAPACITY);
            self.partial = Some(header);
        }
        self.reassembly.put_slice(payload);
        if self.reassembly.len() > self.max_message {
            return Err(Violation::MessageTooLong);
        }
        if ends && let Some(header) = self.partial.take() {
            let message = assembled(&mut self.reassembly);
            return self.deliver(header, message, events);
        }
        Ok(())
    }

    /// Delivers the message of a fragment received after a gap, if it is complete: a lost packet
    /// blocks only its own stream.
    fn reassemble_ahead(
        &mut self,
        tsn: u64,
        header: DataHeader,
        events: &mut VecDeque<Event>,
    ) -> Result<(), Violation> {
        if self.hold_after.is_some_and(|last| last < tsn) {
            return Ok(());
        }
        // Fragments after a gap mostly arrive in order, and then only the last can complete the
        // message.
        if header.flags & flag::END == 0 && !self.ahead.contains_key(&(tsn + 1)) {
            return Ok(());
        }
        let is_same = |fragment: &Fragment| {
            (fragment.header.stream, fragment.header.ssn) == (header.stream, header.ssn)
                && (fragment.header.flags ^ header.flags) & flag::UNORDERED == 0
        };
        let mut first = None;
        for (at, fragment) in self
            .ahead
            .range(tsn.saturating_sub(MAX_FRAGMENTS)..=tsn)
            .rev()
        {
            let expected = first.map_or(tsn, |(first, _)| first - 1);
            if *at != expected || !is_same(fragment) {
                return Ok(());
            }
            let begins = fragment.header.flags & flag::BEGIN != 0;
            first = Some((*at, begins));
            if begins {
                break;
            }
        }
        let Some((first, true)) = first else {
            return Ok(());
        };
        let (mut last, mut length) = (None, 0);
        for (expected, (at, fragment)) in (first..).zip(self.ahead.range(first..)) {
            if *at != expected || !is_same(fragment) || expected >= first + MAX_FRAGMENTS {
                return Ok(());
            }
            length += fragment.payload.len();
            if fragment.header.flags & flag::END != 0 {
                last = Some(expected);
                break;
            }
        }
        let Some(last) = last.filter(|_| length <= self.max_message) else {
            return Ok(());
        };
        let mut message = BytesMut::with_capacity(length);
        for at in first..=last {
            if let Some(fragment) = self.ahead.remove(&at) {
                message.put_slice(&fragment.payload);
                lower(&mut self.held, fragment.payload.len() + OVERHEAD);
            }
        }
        self.deliver(header, message.freeze(), events)
    }

    /// Delivers a complete message to its stream.
    fn deliver(
        &mut self,
        header: DataHeader,
        bytes: Bytes,
        events: &mut VecDeque<Event>,
    ) -> Result<(), Violation> {
        let id = header.stream;
        if id >= self.max_streams {
            return Ok(());
        }
        let first = self.streams.entry(id).or_insert_with(|| {
            events.push_back(Event::Opened { id });
            Inbound::default()
        });
        let is_first = first.is_open();
        let stream = if is_first {
            first
        } else {
            let successors = self.successors.entry(id).or_default();
            if !successors.back().is_some_and(Inbound::is_open) {
                if successors.len() == MAX_SUCCESSORS {
                    return Err(Violation::TooManyResets);
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
            ppid: Ppid::from(header.ppid),
            bytes,
        };
        if header.flags & flag::UNORDERED != 0 {
            stream.push(id, message, is_first, events);
            return Ok(());
        }
        let duplicate = if header.ssn == stream.next {
            stream.push(id, message, is_first, events);
            stream.next = stream.next.wrapping_add(1);
            while let Some(message) = stream.waiting.remove(&stream.next) {
                stream.push(id, message, is_first, events);
                stream.next = stream.next.wrapping_add(1);
            }
            None
        } else if header.ssn.wrapping_sub(stream.next) < 1 << 15 {
            stream.waiting.insert(header.ssn, message)
        } else {
            Some(message)
        };
        // The stream sequence number was received before.
        if let Some(duplicate) = duplicate {
            lower(&mut self.held, duplicate.bytes.len() + OVERHEAD);
        }
        Ok(())
    }
}

#[cfg(test)]
impl Receiver {
    /// Ids of all streams.
    pub(super) fn stream_ids(&self) -> impl Iterator<Item = u16> + '_ {
        self.streams.keys().copied()
    }

    /// Bytes held, including overhead.
    pub(super) fn held(&self) -> usize {
        self.held
    }

    /// Number of buffered fragments.
    pub(super) fn fragments(&self) -> usize {
        self.ahead.len()
    }

    /// Discards everything received after a gap, as RFC 9260 section 6.2 allows.
    pub(super) fn renege(&mut self) {
        for fragment in std::mem::take(&mut self.ahead).into_values() {
            lower(&mut self.held, fragment.payload.len() + OVERHEAD);
        }
        self.gap_blocks.clear();
    }
}

/// The reassembled message, in an allocation of about its size. An idle association holds no
/// reassembly buffer.
fn assembled(reassembly: &mut BytesMut) -> Bytes {
    let message = std::mem::take(reassembly);
    if message.len() < message.capacity() / 2 {
        return Bytes::copy_from_slice(&message);
    }
    message.freeze()
}
