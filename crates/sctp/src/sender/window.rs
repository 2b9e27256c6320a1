//! The peer's receive window, and the share of it that one stream may fill.
//!
//! The window belongs to the association. A peer without per-stream credit (go-libp2p, pion,
//! libp2p-webrtc) leaves unread data in it. A stream whose reader has stopped would fill it and
//! block all others. So no stream may use the last eighth of what the others leave:
//!
//! ```text
//! capacity  = the largest a_rwnd that the peer has advertised
//! unread    = capacity - a_rwnd, the sum over all streams
//! allowance = 7/8 (capacity - unread of the other streams), or 16 KiB less, the smaller of both
//! ```
//!
//! A SACK does not report which stream is unread. Acknowledged bytes count as unread on their
//! stream. When the sum exceeds what the peer can hold, the difference was read on the streams that
//! were acknowledged last: a stream that is read is acknowledged all the time, a stalled one is
//! not. The attribution can be wrong. So a stream may always send one message while nothing of it
//! is outstanding and its previous such probe was read.
//!
//! pion sends no SACK when its application reads. So while a writer waits and nothing is
//! outstanding, a SACK is elicited from time to time by DATA that the peer already has (RFC 9260
//! section 6.2), which uses no window.

use std::collections::HashMap;

use super::Outbound;
use crate::tally::lower;

/// Part of the window that one stream leaves to others, as a divisor.
const RESERVE: usize = 8;

/// Minimum reserve: a few messages of 4 KiB in the 100 KB windows of go-libp2p.
const MIN_RESERVE: usize = 16 * 1024;

/// The receive window of the peer.
#[derive(Debug, Default)]
pub(super) struct PeerWindow {
    /// Largest advertised window.
    capacity: usize,
    /// Last advertised window.
    advertised: usize,
    /// What the advertised window leaves beyond the outstanding bytes.
    room: usize,
    /// Sum of the `unread` of all streams.
    unread: usize,
    /// Streams with unread bytes, in the order of their last acknowledgement.
    holders: Vec<u16>,
    /// Number of streams whose writer waits.
    waiting: usize,
}

/// The share of one stream.
#[derive(Debug, Default)]
pub(super) struct Share {
    /// Acknowledged bytes that the peer's application may not have read.
    unread: usize,
    /// `unread` when the last probe was sent.
    probed_at: Option<usize>,
    /// A message was refused, and its writer waits for room.
    is_waiting: bool,
}

impl PeerWindow {
    /// Applies an advertised window, of which `outstanding` bytes are in use.
    pub(super) fn advertise(&mut self, window: u32, outstanding: usize) {
        self.advertised = window as usize;
        self.capacity = self.capacity.max(self.advertised);
        self.room = self.advertised.saturating_sub(outstanding);
    }

    /// Bytes that may be sent beyond the outstanding ones.
    pub(super) fn room(&self) -> usize {
        self.room
    }

    /// Counts bytes that were sent for the first time.
    pub(super) fn sent(&mut self, bytes: usize) {
        self.room = self.room.saturating_sub(bytes);
    }

    /// Whether a writer waits for its share of the window.
    pub(super) fn has_waiting(&self) -> bool {
        self.waiting > 0
    }

    /// Clears and returns whether the writer of a stream waits.
    fn clear_wait(&mut self, share: &mut Share) -> bool {
        let waited = std::mem::take(&mut share.is_waiting);
        lower(&mut self.waiting, usize::from(waited));
        waited
    }

    /// Attributes acknowledged bytes to a stream. Returns whether its writer waited and may have
    /// room now.
    pub(super) fn acknowledged(&mut self, id: u16, share: &mut Share, bytes: usize) -> bool {
        share.unread += bytes;
        self.unread += bytes;
        if self.holders.last() != Some(&id) {
            self.holders.retain(|holder| *holder != id);
            self.holders.push(id);
        }
        self.clear_wait(share)
    }

    /// Infers reads from the advertised window: what the peer can not hold any more was read.
    /// Returns whether a waiting writer may have room now.
    pub(super) fn infer_reads(&mut self, streams: &mut HashMap<u16, Outbound>) -> bool {
        let held_by_peer = self.capacity.saturating_sub(self.advertised);
        let mut has_room = false;
        while self.unread > held_by_peer {
            let Some(&id) = self.holders.last() else {
                // The rest belonged to streams that are gone.
                self.unread = 0;
                break;
            };
            let Some(share) = streams.get_mut(&id).map(|stream| &mut stream.share) else {
                self.holders.pop();
                continue;
            };
            let read = share.unread.min(self.unread - held_by_peer);
            lower(&mut share.unread, read);
            lower(&mut self.unread, read);
            let is_read = share.unread == 0;
            has_room |= read > 0 && self.clear_wait(share);
            if is_read {
                self.holders.pop();
            }
        }
        has_room
    }

    /// Forgets a stream, and what its application has not read.
    pub(super) fn forget(&mut self, share: &mut Share) {
        self.unread = self.unread.saturating_sub(share.unread);
        self.clear_wait(share);
    }

    /// Whether a message fits its stream's share of the window. If not, the writer waits until
    /// [`Self::infer_reads`] or an acknowledgement of the stream reports room.
    pub(super) fn admits(
        &mut self,
        share: &mut Share,
        unacknowledged: usize,
        length: usize,
    ) -> bool {
        let left = self
            .capacity
            .saturating_sub(self.unread.saturating_sub(share.unread));
        let reserve = (left / RESERVE).max(MIN_RESERVE.min(left / 2));
        let holds = share.unread + unacknowledged;
        if holds == 0 || holds + length <= left - reserve {
            share.probed_at = None;
            return true;
        }
        let may_probe = share.probed_at.is_none_or(|unread| share.unread <= unread);
        // Unread probes must not use up the reserve.
        let is_affordable = length.saturating_mul(4) <= self.room;
        if unacknowledged == 0 && may_probe && is_affordable {
            share.probed_at = Some(share.unread);
            return true;
        }
        self.waiting += usize::from(!std::mem::replace(&mut share.is_waiting, true));
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CAPACITY: usize = 1024 * 1024;
    const MESSAGE: usize = 4096;

    /// A peer with scripted readers.
    struct Peer {
        window: PeerWindow,
        streams: HashMap<u16, Outbound>,
        /// What its applications have actually not read.
        unread: HashMap<u16, usize>,
    }

    impl Peer {
        fn new() -> Self {
            let mut window = PeerWindow::default();
            window.advertise(CAPACITY as u32, 0);
            let streams = (0..8).map(|id| (id, Outbound::default())).collect();
            let unread = HashMap::new();
            Self {
                window,
                streams,
                unread,
            }
        }

        /// Sends one message, which is acknowledged at once; `false` if it is not admitted.
        fn send(&mut self, id: u16) -> bool {
            let share = &mut self.streams.get_mut(&id).unwrap().share;
            if !self.window.admits(share, 0, MESSAGE) {
                return false;
            }
            self.window.acknowledged(id, share, MESSAGE);
            *self.unread.entry(id).or_default() += MESSAGE;
            self.sack();
            true
        }

        fn read(&mut self, id: u16) -> bool {
            self.unread.remove(&id);
            self.sack()
        }

        fn sack(&mut self) -> bool {
            let unread: usize = self.unread.values().sum();
            assert!(unread <= CAPACITY, "beyond the window");
            let window = CAPACITY - unread;
            self.window.advertise(window as u32, 0);
            self.window.infer_reads(&mut self.streams)
        }
    }

    #[test]
    fn a_stream_that_is_not_read_leaves_room_for_others_and_goes_on_when_it_is() {
        let mut peer = Peer::new();
        let mut sent = 0;
        while peer.send(0) {
            sent += MESSAGE;
        }
        assert!((CAPACITY * 3 / 4..=CAPACITY * 7 / 8 + MESSAGE).contains(&sent));
        // Another stream is read, and sends without limit.
        for _ in 0..10_000 {
            assert!(peer.send(1));
            peer.read(1);
        }
        assert!(!peer.send(0));
        assert!(peer.read(0), "its writer is woken");
        assert!(peer.send(0));
    }

    #[test]
    fn each_further_stream_that_is_not_read_leaves_a_part_of_what_is_left() {
        let mut peer = Peer::new();
        for id in 0..3 {
            while peer.send(id) {}
        }
        for _ in 0..1000 {
            assert!(peer.send(7));
            peer.read(7);
        }
    }

    /// The attribution is wrong if the stalled stream was acknowledged after the one that is read.
    #[test]
    fn a_stream_that_is_taken_for_stalled_by_mistake_goes_on() {
        let mut peer = Peer::new();
        while peer.send(1) {}
        peer.send(0);
        // Read, although the other stream was acknowledged last.
        peer.read(1);
        while peer.send(0) {}
        for _ in 0..1000 {
            assert!(peer.send(1), "a probe was read");
            peer.read(1);
        }
    }

    #[test]
    fn a_window_that_is_read_limits_nobody() {
        let mut peer = Peer::new();
        for n in 0..10_000 {
            let id = n % 8;
            let share = &mut peer.streams.get_mut(&id).unwrap().share;
            assert!(peer.window.admits(share, CAPACITY * 3 / 4, MESSAGE));
            assert!(peer.send(id));
            peer.read(id);
        }
        assert_eq!((peer.window.unread, peer.window.holders.len()), (0, 0));
    }
}
