//! What has arrived and the application has not read yet.

use std::collections::VecDeque;

use bytes::{Buf, Bytes, BytesMut};

use super::send::INITIAL_CREDIT;

/// What a queued payload costs beside its bytes: many small frames must not hide behind a ceiling
/// that counts bytes only (wire.md section 5).
pub(crate) const FRAME_COST: usize = 64;

/// Payloads up to this size are copied together instead of being queued one by one: a sender of
/// tiny frames must not cost more than its bytes, nor keep the carrier's messages alive.
const SMALL: usize = 512;

/// Most bytes to copy together in one chunk.
const TAIL: usize = 4096;

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
    received: u64,
    /// Payload bytes that the application has read, or that were discarded for it.
    consumed: u64,
    /// Payload bytes the peer may send unread.
    window: u64,
    /// The last `max_data` that was sent; zero until the first.
    granted: u64,
}

/// The peer sent more than it was granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Overrun;

impl ReceiveBuffer {
    pub(crate) fn new(window: u64) -> Self {
        Self {
            chunks: VecDeque::new(),
            tail: BytesMut::new(),
            buffered: 0,
            received: 0,
            consumed: 0,
            window,
            granted: 0,
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
        if !keep {
            self.consumed = self.consumed.saturating_add(payload.len() as u64);
            return Ok(());
        }
        self.buffered += payload.len();
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

    fn consume(&mut self, bytes: usize) {
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

    /// Whether half of the window was consumed since the last `max_data`.
    pub(crate) fn credit_due(&self) -> bool {
        let next = self.consumed.saturating_add(self.window);
        next.saturating_sub(self.granted) >= self.window.div_ceil(2).max(1)
    }

    /// What the peer may send in all, if it is told now.
    pub(crate) fn offer(&self) -> u64 {
        self.granted.max(self.consumed.saturating_add(self.window))
    }

    /// The peer was told.
    pub(crate) fn granted(&mut self, max_data: u64) {
        self.granted = self.granted.max(max_data);
    }

    /// Bytes unread, with the fixed cost of each queued chunk.
    pub(crate) fn cost(&self) -> usize {
        self.buffered + self.chunks.len() * FRAME_COST
    }

    pub(crate) fn buffered(&self) -> usize {
        self.buffered
    }
}
