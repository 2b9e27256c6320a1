//! Counters of a connection.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::carrier::PathStats;

/// Counters of a connection since it was made; a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct ConnectionStats {
    /// Frames handed to the carrier.
    pub frames_sent: u64,
    /// Frames received.
    pub frames_received: u64,
    /// Messages that the carrier sent: over a WebSocket one message holds the frames of many
    /// substreams. Zero where a carrier does not count
    /// ([`Carrier::message_counts`](crate::carrier::Carrier::message_counts)).
    pub messages_sent: u64,
    /// Messages that the carrier received, counted the same way.
    pub messages_received: u64,
    /// Payload bytes handed to the carrier.
    pub payload_sent: u64,
    /// Payload bytes received.
    pub payload_received: u64,
    /// Substreams opened by this side.
    pub opened: u64,
    /// Substreams opened by the peer and accepted by the driver.
    pub accepted: u64,
    /// Substreams opened by the peer and refused: over the limit, or because the connection is
    /// closing.
    pub refused: u64,
    /// Flags with an unknown value; ignored.
    pub unknown_flags: u64,
    /// Frames without effect: empty frames, repeated flags and limits, data after FIN; ignored. See
    /// [`Config::max_frames_without_effect`](crate::Config::max_frames_without_effect).
    pub without_effect: u64,
    /// Substreams reset because the peer violated the framing, the order of flags, its credit or
    /// [`Config::max_frames_without_effect`](crate::Config::max_frames_without_effect), or because
    /// its data stayed unread and reached a ceiling.
    pub violations: u64,
    /// Unread bytes of all substreams, with the overhead of their frames.
    pub unread: u64,
    /// Bytes accepted from writers that the carrier has not taken, for all substreams: they wait
    /// for credit or for the path. At most [`Config::send_buffer`](crate::Config::send_buffer) for
    /// each.
    pub queued: u64,
    /// Substreams that exist now.
    pub substreams: u64,
    /// The path when the connection last did something; `None` over a WebSocket, and on carriers
    /// that know nothing of it.
    pub path: Option<PathStats>,
}

/// One counter.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    pub(crate) fn set(&self, n: u64) {
        self.0.store(n, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The live counters behind [`ConnectionStats`]. Written by the driver alone.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) frames_sent: Counter,
    pub(crate) frames_received: Counter,
    pub(crate) messages_sent: Counter,
    pub(crate) messages_received: Counter,
    pub(crate) payload_sent: Counter,
    pub(crate) payload_received: Counter,
    pub(crate) opened: Counter,
    pub(crate) accepted: Counter,
    pub(crate) refused: Counter,
    pub(crate) unknown_flags: Counter,
    pub(crate) ineffective: Counter,
    pub(crate) violations: Counter,
    pub(crate) substreams: Counter,
    path: Mutex<Option<PathStats>>,
}

impl Counters {
    fn path(&self) -> MutexGuard<'_, Option<PathStats>> {
        // Replaced as a whole.
        self.path.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn set_path(&self, path: Option<PathStats>) {
        *self.path() = path;
    }

    pub(crate) fn snapshot(&self, unread: usize, queued: usize) -> ConnectionStats {
        ConnectionStats {
            frames_sent: self.frames_sent.get(),
            frames_received: self.frames_received.get(),
            messages_sent: self.messages_sent.get(),
            messages_received: self.messages_received.get(),
            payload_sent: self.payload_sent.get(),
            payload_received: self.payload_received.get(),
            opened: self.opened.get(),
            accepted: self.accepted.get(),
            refused: self.refused.get(),
            unknown_flags: self.unknown_flags.get(),
            without_effect: self.ineffective.get(),
            violations: self.violations.get(),
            unread: unread as u64,
            queued: queued as u64,
            substreams: self.substreams.get(),
            path: *self.path(),
        }
    }
}
