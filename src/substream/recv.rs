//! Receive buffer: data that has arrived and the application has not read yet.

use std::collections::VecDeque;

use bytes::{Buf, Bytes, BytesMut};

use super::send::INITIAL_CREDIT;

/// Overhead of a queued payload: many small frames must not evade a ceiling that counts bytes only
/// (docs/reliability.md).
pub(crate) const FRAME_COST: usize = 64;

/// Payloads up to this size are coalesced instead of queued one by one: a sender of tiny frames
/// must not cost more than its bytes, nor keep the carrier's messages alive.
const SMALL: usize = 512;

/// A payload keeps the carrier message alive that it is a slice of. A payload that is less than
/// this fraction of it is copied, so that unread bytes pin at most this many times the memory that
/// they are accounted for.
const MAX_PINNED: usize = 4;

/// The payload, copied if it would pin much more memory than its length. `backing` is the length of
/// the allocation that it is a slice of.
pub(crate) fn unpinned(payload: Bytes, backing: usize) -> Bytes {
    // Smaller payloads are copied when they are queued.
    if payload.len() > SMALL && payload.len().saturating_mul(MAX_PINNED) < backing {
        return Bytes::copy_from_slice(&payload);
    }
    payload
}

/// Window that a substream may always grant, however much the connection has committed. It does not
/// count against the connection's ceiling: credit can not be revoked, and thousands of idle
/// substreams would leave the busy ones nothing else.
pub(crate) const MIN_WINDOW: u64 = 32 * 1024;

/// The same for a substream of which little was read, such as during negotiation: slightly more
/// than [`INITIAL_CREDIT`], which its sender has in any case.
const MIN_FIRST_WINDOW: u64 = 16 * 1024;

/// Such a substream gets at most this fraction of the room that it has. Once half of its first
/// window is read it gets a full window, before SCTP's slow start needs it.
const FIRST_SHARE: u64 = 256;

/// Maximum bytes to coalesce in one chunk.
const TAIL: usize = 4096;

/// The window grows after this many consecutive windows that the peer used up before the next grant
/// arrived. A single one can be a task that was scheduled late.
const STALLS_TO_GROW: u8 = 2;

/// The part of the connection's ceiling that no substream has committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Room {
    pub(crate) uncommitted: u64,
    pub(crate) ceiling: u64,
}

impl Room {
    /// What a substream may commit of it, of which `consumed` bytes were read.
    ///
    /// The less was read, the more is left to others: half of the ceiling below 1/32 of it, and
    /// half of that for each 16 times as much. Substreams that carry a little each and then idle
    /// with their last grant can not, in any number, take everything from one that carries much.
    fn for_substream(self, consumed: u64) -> u64 {
        let read = consumed.saturating_mul(512) / self.ceiling.max(1);
        let halvings = 1 + read.max(1).ilog2() / 4;
        let left_to_others = self.ceiling.checked_shr(halvings).unwrap_or(0);
        self.uncommitted.saturating_sub(left_to_others)
    }
}

/// Payloads in order of arrival, and the credit granted to the peer.
#[derive(Debug)]
pub(crate) struct ReceiveBuffer {
    /// Slices of carrier messages, and full tails.
    chunks: VecDeque<Bytes>,
    /// Small payloads, coalesced; they follow `chunks`.
    tail: BytesMut,
    /// Payload bytes in `chunks` and `tail`.
    buffered: usize,
    /// Payload bytes received since the substream was opened.
    pub(super) received: u64,
    /// Payload bytes that the application has read, or that were discarded.
    consumed: u64,
    /// Target for the unread bytes that the peer may send, subject to the connection's ceiling.
    pub(super) window: u64,
    /// Maximum of `window`.
    max_window: u64,
    /// The last `max_data` that was sent; zero before the first.
    pub(super) granted: u64,
    /// The one before that.
    pub(super) granted_before: u64,
    /// Consecutive grants that the peer had to wait for.
    stalls: u8,
    /// The peer had to wait for the last grant.
    was_stalled: bool,
    /// No more payload will arrive.
    is_complete: bool,
}

/// The peer exceeded its credit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Overrun;

impl ReceiveBuffer {
    pub(crate) fn new(window: u64, max_window: u64) -> Self {
        Self {
            chunks: VecDeque::new(),
            tail: BytesMut::new(),
            buffered: 0,
            received: 0,
            consumed: 0,
            window,
            max_window: max_window.max(window),
            granted: 0,
            granted_before: 0,
            stalls: 0,
            was_stalled: false,
            is_complete: false,
        }
    }

    /// Accounts for a payload, and queues it for the reader if `keep` is set.
    ///
    /// `enforce_credit` is set for peers that have sent `max_data` and so support ours.
    pub(crate) fn push(
        &mut self,
        payload: Bytes,
        keep: bool,
        enforce_credit: bool,
    ) -> Result<(), Overrun> {
        self.received = self.received.saturating_add(payload.len() as u64);
        // Initial data may arrive after the first grant was sent.
        let limit = self.granted.max(INITIAL_CREDIT);
        if enforce_credit && self.granted > 0 && self.received > limit {
            return Err(Overrun);
        }
        self.detect_stalled_sender();
        if !keep {
            self.consumed = self.consumed.saturating_add(payload.len() as u64);
            return Ok(());
        }
        self.buffered = self.buffered.saturating_add(payload.len());
        if payload.len() <= SMALL {
            if self.tail.len() + payload.len() > TAIL {
                self.finish_tail();
            }
            self.tail.extend_from_slice(&payload);
        } else {
            self.finish_tail();
            self.chunks.push_back(payload);
        }
        Ok(())
    }

    /// Doubles the window of a sender that waits for credit although the reader keeps up.
    ///
    /// A sender that has used up one grant exactly, while the next was in flight to it, stalled
    /// until that arrived: the window is shorter than the bandwidth-delay product. This needs
    /// neither a clock nor a round-trip time that only the sender could measure. The next grant was
    /// due because half of the window had been read, so a slow reader is never mistaken for a long
    /// path.
    fn detect_stalled_sender(&mut self) {
        if self.received != self.granted_before || self.was_stalled {
            return;
        }
        self.was_stalled = true;
        self.stalls += 1;
        if self.stalls >= STALLS_TO_GROW {
            self.stalls = 0;
            self.window = self.window.saturating_mul(2).min(self.max_window);
        }
    }

    fn finish_tail(&mut self) {
        if !self.tail.is_empty() {
            let tail = std::mem::take(&mut self.tail);
            self.chunks.push_back(tail.freeze());
        }
    }

    /// Reads through `out`, which returns how much of each slice it took, until it takes less than
    /// all.
    pub(crate) fn read(&mut self, mut out: impl FnMut(&[u8]) -> usize) -> usize {
        let mut total = 0;
        while let Some(chunk) = self.chunks.front_mut() {
            let taken = out(chunk);
            total += taken;
            if taken < chunk.len() {
                chunk.advance(taken);
                self.consume(total);
                return total;
            }
            self.chunks.pop_front();
        }
        if !self.tail.is_empty() {
            let taken = out(&self.tail);
            total += taken;
            self.tail.advance(taken);
        }
        self.consume(total);
        total
    }

    /// The first payload, at most `max` bytes of it, without a copy.
    pub(crate) fn read_chunk(&mut self, max: usize) -> Option<Bytes> {
        let out = match self.chunks.front_mut() {
            Some(chunk) if chunk.len() > max => chunk.split_to(max),
            Some(_) => self.chunks.pop_front()?,
            None if self.tail.is_empty() => return None,
            None => self.tail.split_to(max.min(self.tail.len())).freeze(),
        };
        self.consume(out.len());
        Some(out)
    }

    /// The first payload, without removing it. It stays unread until [`Self::skip`].
    pub(crate) fn peek(&mut self) -> Option<Bytes> {
        if self.chunks.is_empty() {
            // Frozen, so that later payloads are not appended to memory that a reader holds.
            self.finish_tail();
        }
        self.chunks.front().cloned()
    }

    /// Consumes up to `length` bytes without a copy. Returns how many there were.
    pub(crate) fn skip(&mut self, mut length: usize) -> usize {
        self.read(|chunk| {
            let taken = chunk.len().min(length);
            length -= taken;
            taken
        })
    }

    fn consume(&mut self, bytes: usize) {
        debug_assert!(self.buffered >= bytes, "{bytes} of {} bytes", self.buffered);
        self.buffered = self.buffered.saturating_sub(bytes);
        self.consumed = self.consumed.saturating_add(bytes as u64);
        if self.buffered == 0 {
            // An idle substream keeps no memory.
            self.tail = BytesMut::new();
            if self.chunks.capacity() > 16 {
                self.chunks = VecDeque::new();
            }
        }
    }

    /// Drops what is unread; it counts as read.
    pub(crate) fn discard(&mut self) {
        self.chunks = VecDeque::new();
        self.tail = BytesMut::new();
        self.consume(self.buffered);
    }

    /// The window, limited by what the connection can afford.
    ///
    /// At least [`Self::min_window`], with which every reader makes progress, and at most half of
    /// the room beyond that, so that something is left for others. A substream of which little was
    /// read gets little: a thousand idle substreams would leave the busy ones nothing (measured:
    /// 30 % of the goodput was left).
    fn affordable_window(&self, room: Room) -> u64 {
        let room = room.for_substream(self.consumed);
        let affordable = if self.is_hardly_read() {
            (room / FIRST_SHARE).max(MIN_FIRST_WINDOW)
        } else {
            self.committed().max(MIN_WINDOW).saturating_add(room / 2)
        };
        self.window.min(affordable)
    }

    fn is_hardly_read(&self) -> bool {
        self.consumed < MIN_FIRST_WINDOW / 2
    }

    /// The window that is granted whatever the connection has committed.
    fn min_window(&self) -> u64 {
        match self.is_hardly_read() {
            true => MIN_FIRST_WINDOW,
            false => MIN_WINDOW,
        }
    }

    /// The part of [`Self::committed`] that counts against the connection's ceiling.
    pub(crate) fn committed_beyond_minimum(&self) -> u64 {
        self.committed().saturating_sub(self.min_window())
    }

    /// Bytes committed to the peer: what it may still send, and what is unread.
    fn committed(&self) -> u64 {
        if self.is_complete {
            return self.buffered as u64;
        }
        self.granted.saturating_sub(self.consumed)
    }

    /// No more payload will arrive: unused credit is free for other substreams.
    pub(crate) fn complete(&mut self) {
        self.is_complete = true;
    }

    /// The `max_data` to send now, once half of the window was consumed since the last, or at once
    /// if `first` is set.
    pub(crate) fn credit_offer(&self, room: Room, first: bool) -> Option<u64> {
        if self.is_complete && !first {
            return None;
        }
        let window = self.affordable_window(room);
        let next = self.granted.max(self.consumed.saturating_add(window));
        let is_due = next.saturating_sub(self.granted) >= window.div_ceil(2).max(1);
        (first || is_due).then_some(next)
    }

    /// The carrier took this `max_data`.
    pub(crate) fn granted(&mut self, max_data: u64) {
        if max_data <= self.granted {
            return;
        }
        self.granted_before = self.granted;
        self.granted = max_data;
        if !std::mem::take(&mut self.was_stalled) {
            self.stalls = 0;
        }
    }

    /// Whether a limit was sent to the peer, which then bounds what is unread.
    pub(crate) fn has_granted(&self) -> bool {
        self.granted > 0
    }

    /// Unread bytes, with the fixed overhead of each queued chunk.
    pub(crate) fn cost(&self) -> usize {
        self.buffered
            .saturating_add(self.chunks.len().saturating_mul(FRAME_COST))
    }

    pub(crate) fn buffered(&self) -> usize {
        self.buffered
    }
}

#[cfg(test)]
mod tests;
