//! What the application has written and the carrier has not taken yet.

use std::collections::VecDeque;

use bytes::{Buf, Bytes};

use crate::message::{DATA_HEADROOM, DATA_TAILROOM};

/// Payload bytes sent on a substream on which the peer has said nothing.
///
/// js-libp2p closes channels that get more than 16 KiB before its muxer exists (docs/interop.md), and our
/// own peers have then not been able to grant anything.
pub(crate) const INITIAL_CREDIT: u64 = 12 * 1024;

/// Smallest buffer a chunk starts with: many substreams that write little stay small.
const MIN_CHUNK: usize = 1024;

/// Payload that waits to go out.
#[derive(Debug)]
pub(crate) enum Chunk {
    /// Copied from what the application wrote; one frame to be.
    Copied(Copied),
    /// A slice of a buffer that the application gave away. A frame is cut from its front.
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

/// Payload of one frame to be, with room in front for the frame's header.
///
/// The header is written in place when the frame goes out, so that a byte is copied once between
/// the application's buffer and the carrier.
#[derive(Debug)]
pub(crate) struct Copied {
    pub(crate) buf: Vec<u8>,
    /// Where the unsent payload begins; what lies in front is free for a header.
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

/// What the peer lets us send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Credit {
    /// It has said nothing on this substream yet.
    Initial,
    /// Its `max_data`.
    Granted(u64),
    /// It knows no credit.
    Unlimited,
}

/// Bytes accepted from the application, cut into payloads of frames, and the credit of the peer.
#[derive(Debug)]
pub(crate) struct SendBuffer {
    chunks: VecDeque<Chunk>,
    /// Payload bytes in `chunks` and in the one the driver holds.
    queued: usize,
    /// Most payload bytes to queue.
    capacity: usize,
    /// Largest payload of a new chunk.
    chunk_payload: usize,
    /// Payload bytes handed to the carrier since the substream was opened.
    sent: u64,
    credit: Credit,
    /// A buffer to use again. Held only while data is queued: an idle substream keeps nothing.
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

    /// Takes as much of `data` as there is room for and returns how much that was.
    pub(crate) fn write(&mut self, data: &[u8]) -> usize {
        let accepted = data.len().min(self.capacity.saturating_sub(self.queued));
        let mut rest = &data[..accepted];
        while !rest.is_empty() {
            let most = self.largest_chunk();
            let room = self.room_in_last_chunk(most);
            if room == 0 {
                // A writer that fills the buffer gets whole chunks, one that writes little does
                // not: its chunk grows if more comes before the driver's turn.
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

    /// Payload bytes that still fit behind the last chunk, in the same frame.
    fn room_in_last_chunk(&self, most: usize) -> usize {
        match self.chunks.back() {
            // Counted from the start of the buffer: a chunk that goes out in parts while more is
            // written behind them must not grow with every byte of the stream.
            Some(Chunk::Copied(chunk)) => (DATA_HEADROOM + most).saturating_sub(chunk.buf.len()),
            Some(Chunk::Slice(_)) | None => 0,
        }
    }

    /// Takes as much from the front of `data` as there is room for and returns how much that was.
    ///
    /// Whole frames stay where they lie; what is shorter is copied, so that it shares its frame with
    /// what was written before or is written next. Zero means that there is room for a part of a
    /// frame only: more is free before the queue is empty.
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
            // The buffer is smaller than a frame.
            0 if self.queued == 0 => whole,
            whole => whole,
        };
        if whole > 0 {
            self.chunks.push_back(Chunk::Slice(data.split_to(whole)));
            self.queued += whole;
        }
        before - data.len()
    }

    /// The first chunk is to go out whole, since our credit rides behind its payload.
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

    /// The next payload to send, if the peer's credit allows a byte of it, and how much of it.
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

    /// The carrier took `length` bytes of `chunk`; the rest of it stays first in the queue.
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

    /// The carrier was busy: `chunk` stays first in the queue.
    pub(crate) fn put_back(&mut self, chunk: Chunk) {
        self.chunks.push_front(chunk);
    }

    /// A `max_data` of the peer. Never lowers what was granted (docs/wire.md section 3). Returns whether it is news.
    pub(crate) fn grant(&mut self, max_data: u64) -> bool {
        if matches!(self.credit, Credit::Granted(before) if before >= max_data) {
            return false;
        }
        self.credit = Credit::Granted(max_data);
        true
    }

    /// The peer knows no credit. Returns whether that changed anything.
    pub(crate) fn lift_initial_limit(&mut self) -> bool {
        let lifted = self.credit == Credit::Initial;
        if lifted {
            self.credit = Credit::Unlimited;
        }
        lifted
    }

    /// Frames may be this long from now on.
    pub(crate) fn set_chunk_payload(&mut self, chunk_payload: usize) {
        self.chunk_payload = chunk_payload;
    }

    /// Drops everything, so that a driver that holds a chunk finds nothing to count.
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

    /// What is left of the peer's `max_data`, if it has sent one.
    pub(crate) fn granted_credit(&self) -> Option<u64> {
        matches!(self.credit, Credit::Granted(_)).then(|| self.credit())
    }

    /// Bytes of memory that queued payload takes.
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

    /// Whether a writer that was refused is worth waking: half of the buffer is free.
    pub(crate) fn is_half_empty(&self) -> bool {
        self.queued <= self.capacity / 2
    }

    /// Whether something is queued that the peer's credit allows.
    pub(crate) fn is_sendable(&self) -> bool {
        !self.chunks.is_empty() && self.credit() > 0
    }

    /// Whether data waits for credit.
    pub(crate) fn waits_for_credit(&self) -> bool {
        !self.chunks.is_empty() && self.credit() == 0
    }

    /// Whether data waits for a peer that has said nothing yet.
    pub(crate) fn waits_for_first_credit(&self) -> bool {
        self.credit == Credit::Initial && self.waits_for_credit()
    }
}

#[cfg(test)]
mod tests;
