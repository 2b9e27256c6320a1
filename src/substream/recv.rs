//! What has arrived and the application has not read yet.

use std::collections::VecDeque;

use bytes::{Buf, Bytes, BytesMut};

use super::send::INITIAL_CREDIT;

/// What a queued payload costs beside its bytes: many small frames must not hide behind a ceiling
/// that counts bytes only (docs/reliability.md).
pub(crate) const FRAME_COST: usize = 64;

/// Payloads up to this size are copied together instead of being queued one by one: a sender of
/// tiny frames must not cost more than its bytes, nor keep the carrier's messages alive.
const SMALL: usize = 512;

/// A payload keeps the carrier message alive that it is a slice of. What is less than this part of it is copied,
/// so that unread bytes hold at most this many times the memory that they are accounted for.
const MAX_PINNED: usize = 4;

/// The payload, without a hold on much more memory than it has bytes. `backing` is the length of what it is a
/// slice of.
pub(crate) fn unpinned(payload: Bytes, backing: usize) -> Bytes {
    // Smaller ones are copied when they are queued.
    if payload.len() > SMALL && payload.len().saturating_mul(MAX_PINNED) < backing {
        return Bytes::copy_from_slice(&payload);
    }
    payload
}

/// Payload bytes that a substream may promise however much the connection has promised already.
pub(crate) const MIN_WINDOW: u64 = 32 * 1024;

/// The same for one that little was read from yet, no more than a negotiation: somewhat more than
/// [`INITIAL_CREDIT`], which its sender has in any case.
const MIN_FIRST_WINDOW: u64 = 16 * 1024;

/// Part of what a connection has left to promise that such a substream gets at most. With half of its first window
/// read it gets a whole one, before SCTP's slow start needs that.
const FIRST_SHARE: u64 = 512;

/// Most bytes to copy together in one chunk.
const TAIL: usize = 4096;

/// Windows in a row that the peer used up before the next grant reached it, until the window grows.
/// One alone can be a task that was scheduled late.
const HITS_TO_GROW: u8 = 2;

/// Payloads in the order of their arrival, and the credit that the peer was given for more.
#[derive(Debug)]
pub(crate) struct ReceiveBuffer {
    /// Slices of carrier messages, and full tails.
    chunks: VecDeque<Bytes>,
    /// Small payloads copied together, behind `chunks`.
    tail: BytesMut,
    /// Payload bytes in `chunks` and `tail`.
    buffered: usize,
    /// Payload bytes received since the substream was opened.
    pub(super) received: u64,
    /// Payload bytes that the application has read, or that were discarded for it.
    consumed: u64,
    /// Payload bytes the peer may send unread, where the connection has as much to promise.
    pub(super) window: u64,
    /// `window` grows up to this.
    max_window: u64,
    /// The last `max_data` that was sent; zero until the first.
    pub(super) granted: u64,
    /// The one before that.
    pub(super) granted_before: u64,
    /// Grants in a row that the peer had to wait for.
    hits: u8,
    /// It had to wait for the last one.
    was_hit: bool,
    /// Nothing more will come.
    is_complete: bool,
}

/// The peer sent more than it was granted.
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
            hits: 0,
            was_hit: false,
            is_complete: false,
        }
    }

    /// Takes a payload in, for the reader if `keep` is set and else only into the account.
    ///
    /// `enforce_credit` is set for peers that have shown `max_data` and so know ours.
    pub(crate) fn push(
        &mut self,
        payload: Bytes,
        keep: bool,
        enforce_credit: bool,
    ) -> Result<(), Overrun> {
        self.received = self.received.saturating_add(payload.len() as u64);
        // What may be sent before the first grant may be under way behind it.
        let limit = self.granted.max(INITIAL_CREDIT);
        if enforce_credit && self.granted > 0 && self.received > limit {
            return Err(Overrun);
        }
        self.notice_blocked_sender();
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

    /// Grows the window of a sender that waits for credit although the reader keeps up.
    ///
    /// A sender that has used up one grant exactly, while the next was under way to it, stood still
    /// until that came: the window is shorter than the bandwidth-delay product. No clock is needed
    /// to see it, and no round trip that only the sender could measure. The next grant was due
    /// because half of the window had been read, so a slow reader is never taken for a long path.
    fn notice_blocked_sender(&mut self) {
        if self.received != self.granted_before || self.was_hit {
            return;
        }
        self.was_hit = true;
        self.hits += 1;
        if self.hits >= HITS_TO_GROW {
            self.hits = 0;
            self.window = self.window.saturating_mul(2).min(self.max_window);
        }
    }

    fn finish_tail(&mut self) {
        if !self.tail.is_empty() {
            let tail = std::mem::take(&mut self.tail);
            self.chunks.push_back(tail.freeze());
        }
    }

    /// Reads through `out`, which returns how much of each slice it took, until it takes less.
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

    /// The first payload where it lies. It stays unread until [`Self::skip`].
    pub(crate) fn peek(&mut self) -> Option<Bytes> {
        if self.chunks.is_empty() {
            // Frozen, so that what arrives next is not copied into memory that a reader looks at.
            self.finish_tail();
        }
        self.chunks.front().cloned()
    }

    /// Reads up to `length` bytes that nobody wants a copy of. Returns how many there were.
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

    /// The window, as far as the connection has as much to promise: `room` more than it has.
    ///
    /// Never less than [`MIN_WINDOW`], with which every reader gets on, nor more than half of what is
    /// left, so that something is left for others. A substream that has not shown yet that it is read gets little:
    /// what was promised can not be taken back, and a thousand that are idle would leave the busy ones
    /// nothing (30 % of the goodput was left beside them).
    fn affordable_window(&self, room: u64) -> u64 {
        let affordable = if self.consumed < MIN_FIRST_WINDOW / 2 {
            (room / FIRST_SHARE).max(MIN_FIRST_WINDOW)
        } else {
            self.promised().saturating_add(room / 2).max(MIN_WINDOW)
        };
        self.window.min(affordable)
    }

    /// What the peer may still send, and what is unread: the memory that was promised to it.
    pub(crate) fn promised(&self) -> u64 {
        if self.is_complete {
            return self.buffered as u64;
        }
        self.granted.saturating_sub(self.consumed)
    }

    /// Nothing more will come: what the peer has not used is free for others.
    pub(crate) fn complete(&mut self) {
        self.is_complete = true;
    }

    /// The `max_data` to send now, once half of the window was consumed since the last, or at once
    /// if `first` asks for it. `room` is what the connection has not promised to anybody.
    pub(crate) fn credit_offer(&self, room: u64, first: bool) -> Option<u64> {
        if self.is_complete && !first {
            return None;
        }
        let window = self.affordable_window(room);
        let next = self.granted.max(self.consumed.saturating_add(window));
        let is_due = next.saturating_sub(self.granted) >= window.div_ceil(2).max(1);
        (first || is_due).then_some(next)
    }

    /// The peer was told.
    pub(crate) fn granted(&mut self, max_data: u64) {
        if max_data <= self.granted {
            return;
        }
        self.granted_before = self.granted;
        self.granted = max_data;
        if !std::mem::take(&mut self.was_hit) {
            self.hits = 0;
        }
    }

    /// Whether the peer was told of a limit, which then bounds what is unread.
    pub(crate) fn has_granted(&self) -> bool {
        self.granted > 0
    }

    /// Bytes unread, with the fixed cost of each queued chunk.
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
