//! Send buffer: data that the application has written and the carrier has not taken yet.

use std::collections::VecDeque;

use bytes::{Buf, Bytes};

use crate::message::{DATA_HEADROOM, DATA_TAILROOM};

/// Payload bytes that may be sent on a substream before the peer has sent anything on it.
///
/// js-libp2p closes channels that receive more than 16 KiB before its muxer exists, and a peer that
/// supports credit has not been able to grant any at that point.
pub(crate) const INITIAL_CREDIT: u64 = 12 * 1024;

/// Minimum initial capacity of a chunk: many substreams that write little stay small.
const MIN_CHUNK: usize = 1024;

/// Payload that waits to be sent.
#[derive(Debug)]
pub(crate) enum Chunk {
    /// Copied from the application's buffer; becomes one frame.
    Copied(Copied),
    /// A slice of a buffer that the application handed over. Frames are taken from its front.
    Slice(Bytes),
}

impl Chunk {
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Copied(copied) => copied.len(),
            Self::Slice(slice) => slice.len(),
        }
    }
}

/// Payload of one future frame, with room for the frame header before it.
///
/// The header is written in place when the frame is sent, so that a byte is copied once between the
/// application's buffer and the carrier.
#[derive(Debug)]
pub(crate) struct Copied {
    pub(crate) buf: Vec<u8>,
    /// Start of the unsent payload; the bytes before it are free for a header.
    pub(crate) start: usize,
}

impl Copied {
    fn with_room_for(payload: usize, spare: Option<Vec<u8>>) -> Self {
        let mut buf = spare.unwrap_or_default();
        buf.clear();
        buf.reserve(DATA_HEADROOM + payload + DATA_TAILROOM);
        buf.resize(DATA_HEADROOM, 0);
        Self {
            buf,
            start: DATA_HEADROOM,
        }
    }

    fn len(&self) -> usize {
        self.buf.len().saturating_sub(self.start)
    }
}

/// What the peer allows to be sent; the only record of its credit on this substream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Credit {
    /// It has sent nothing on this substream yet.
    Initial,
    /// Its `max_data`.
    Granted(u64),
    /// It does not support credit.
    Unlimited,
}

/// Bytes accepted from the application, split into frame payloads, and the credit of the peer.
#[derive(Debug)]
pub(crate) struct SendBuffer {
    chunks: VecDeque<Chunk>,
    /// Payload bytes in `chunks` and in the chunk that the driver holds.
    queued: usize,
    /// Maximum of `queued`.
    capacity: usize,
    /// Maximum payload of a new chunk.
    chunk_payload: usize,
    /// Payload bytes handed to the carrier since the substream was opened.
    sent: u64,
    credit: Credit,
    /// A buffer for reuse. Kept only while data is queued: an idle substream keeps no memory.
    spare: Option<Vec<u8>>,
}

impl SendBuffer {
    pub(crate) fn new(capacity: usize, chunk_payload: usize) -> Self {
        Self {
            chunks: VecDeque::new(),
            queued: 0,
            capacity,
            chunk_payload,
            sent: 0,
            credit: Credit::Initial,
            spare: None,
        }
    }

    /// Accepts as much of `data` as fits and returns its length.
    pub(crate) fn write(&mut self, data: &[u8]) -> usize {
        let accepted = data.len().min(self.capacity.saturating_sub(self.queued));
        let mut rest = &data[..accepted];
        while !rest.is_empty() {
            let most = self.largest_chunk();
            let room = self.room_in_last_chunk(most);
            if room == 0 {
                // A writer that fills the buffer gets full chunks. After a small write the chunk
                // stays small and grows if more is written before the driver takes it.
                let payload = rest.len().max(MIN_CHUNK).min(most);
                let chunk = Copied::with_room_for(payload, self.spare.take());
                self.chunks.push_back(Chunk::Copied(chunk));
                continue;
            }
            let (now, later) = rest.split_at(room.min(rest.len()));
            if let Some(Chunk::Copied(chunk)) = self.chunks.back_mut() {
                chunk.buf.extend_from_slice(now);
            }
            rest = later;
        }
        self.queued += accepted;
        accepted
    }

    /// Payload bytes that still fit into the frame of the last chunk.
    fn room_in_last_chunk(&self, most: usize) -> usize {
        match self.chunks.back() {
            // Counted from the start of the buffer: a chunk that is sent in parts while more is
            // appended must not grow with every byte of the stream.
            Some(Chunk::Copied(chunk)) => (DATA_HEADROOM + most).saturating_sub(chunk.buf.len()),
            Some(Chunk::Slice(_)) | None => 0,
        }
    }

    /// Accepts as much from the front of `data` as fits and returns its length.
    ///
    /// Full frames stay slices of `data`. Shorter parts are copied, so that they share a frame with
    /// earlier or later writes. Zero means that only a partial frame fits: more room is free before
    /// the queue is empty.
    pub(crate) fn write_bytes(&mut self, data: &mut Bytes) -> usize {
        let before = data.len();
        let frame = self.chunk_payload.max(1);
        let copied = if before < frame {
            before
        } else {
            self.room_in_last_chunk(self.largest_chunk())
        };
        let copied = self.write(&data[..copied.min(before)]);
        data.advance(copied);
        let room = self.capacity.saturating_sub(self.queued);
        let whole = data.len().min(room);
        let whole = match whole - whole % frame {
            // The send buffer is smaller than a frame.
            0 if self.queued == 0 => whole,
            whole => whole,
        };
        if whole > 0 {
            self.chunks.push_back(Chunk::Slice(data.split_to(whole)));
            self.queued += whole;
        }
        before - data.len()
    }

    /// Maximum length of a new chunk. The first one has to fit into one frame, since our first
    /// credit follows its payload.
    fn largest_chunk(&self) -> usize {
        if self.sent == 0 && self.chunks.len() <= 1 {
            self.first_chunk()
        } else {
            self.chunk_payload
        }
    }

    fn first_chunk(&self) -> usize {
        let with_credit = self.chunk_payload.saturating_sub(DATA_TAILROOM).max(1);
        with_credit.min(INITIAL_CREDIT as usize)
    }

    /// The next payload to send, and how much of it, if the peer's credit allows any.
    ///
    /// The bytes count as queued until [`Self::sent`] or [`Self::put_back`].
    pub(crate) fn take(&mut self, limit: usize) -> Option<(Chunk, usize)> {
        let credit = self.credit();
        let limit = match self.chunks.front()? {
            Chunk::Slice(_) if self.sent == 0 => limit.min(self.first_chunk()),
            _ => limit,
        };
        let length = self.chunks.front()?.len().min(limit);
        let length = usize::try_from(credit).map_or(length, |credit| length.min(credit));
        if length == 0 {
            return None;
        }
        Some((self.chunks.pop_front()?, length))
    }

    /// Payload bytes that the peer still accepts.
    fn credit(&self) -> u64 {
        let limit = match self.credit {
            Credit::Initial => INITIAL_CREDIT,
            Credit::Granted(max_data) => max_data,
            Credit::Unlimited => return u64::MAX,
        };
        limit.saturating_sub(self.sent)
    }

    /// The carrier took `length` bytes of `chunk`; the rest returns to the front of the queue.
    pub(crate) fn sent(&mut self, mut chunk: Chunk, length: usize) {
        self.sent = self.sent.saturating_add(length as u64);
        debug_assert!(self.queued >= length, "{length} of {} bytes", self.queued);
        self.queued = self.queued.saturating_sub(length);
        match &mut chunk {
            Chunk::Copied(copied) => copied.start += length,
            Chunk::Slice(slice) => slice.advance(length),
        }
        if chunk.len() > 0 {
            self.chunks.push_front(chunk);
        } else if self.queued > 0
            && self.spare.is_none()
            && let Chunk::Copied(copied) = chunk
        {
            self.spare = Some(copied.buf);
        }
        if self.queued == 0 {
            self.spare = None;
        }
    }

    /// The carrier was busy: `chunk` returns to the front of the queue.
    pub(crate) fn put_back(&mut self, chunk: Chunk) {
        self.chunks.push_front(chunk);
    }

    /// Applies a `max_data` of the peer, which never lowers the limit (docs/wire.md section 3).
    /// Returns whether it has an effect.
    pub(crate) fn grant(&mut self, max_data: u64) -> bool {
        if matches!(self.credit, Credit::Granted(before) if before >= max_data) {
            return false;
        }
        self.credit = Credit::Granted(max_data);
        true
    }

    /// The peer does not support credit. Returns whether that lifted a limit.
    pub(crate) fn lift_initial_limit(&mut self) -> bool {
        let lifted = self.credit == Credit::Initial;
        if lifted {
            self.credit = Credit::Unlimited;
        }
        lifted
    }

    /// Whether the peer has sent a `max_data`.
    pub(crate) fn has_grant(&self) -> bool {
        matches!(self.credit, Credit::Granted(_))
    }

    /// Sets the maximum payload of new chunks.
    pub(crate) fn set_chunk_payload(&mut self, chunk_payload: usize) {
        self.chunk_payload = chunk_payload;
    }

    /// Drops everything, including the account of a chunk that the driver holds.
    pub(crate) fn discard(&mut self) {
        self.chunks.clear();
        self.spare = None;
        self.queued = 0;
    }

    pub(crate) fn queued(&self) -> usize {
        self.queued
    }

    /// Payload bytes handed to the carrier.
    pub(crate) fn total_sent(&self) -> u64 {
        self.sent
    }

    /// Remaining credit under the peer's `max_data`, if it has sent one.
    pub(crate) fn granted_credit(&self) -> Option<u64> {
        self.has_grant().then(|| self.credit())
    }

    /// Allocated bytes of queued payload.
    #[cfg(test)]
    pub(crate) fn capacity_held(&self) -> usize {
        let held = |chunk: &Chunk| match chunk {
            Chunk::Copied(copied) => copied.buf.capacity(),
            Chunk::Slice(_) => 0,
        };
        self.chunks.iter().map(held).sum()
    }

    pub(crate) fn has_room(&self) -> bool {
        self.queued < self.capacity
    }

    /// Whether enough is free to wake a blocked writer: half of the buffer.
    pub(crate) fn is_half_empty(&self) -> bool {
        self.queued <= self.capacity / 2
    }

    /// Whether data is queued that the peer's credit allows.
    pub(crate) fn is_sendable(&self) -> bool {
        !self.chunks.is_empty() && self.credit() > 0
    }

    /// Whether data waits for credit.
    pub(crate) fn waits_for_credit(&self) -> bool {
        !self.chunks.is_empty() && self.credit() == 0
    }

    /// Whether data waits for a peer that has sent nothing yet.
    pub(crate) fn waits_for_first_credit(&self) -> bool {
        self.credit == Credit::Initial && self.waits_for_credit()
    }
}

#[cfg(test)]
mod tests;
