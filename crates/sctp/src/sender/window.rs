//! The peer's receive window, and how much of it one stream may fill.
//!
//! The window belongs to the association, and a peer without credit (go-libp2p, pion, libp2p-webrtc) leaves in
//! it what its applications do not read. A stream whose reader has stopped would fill all of it, and no
//! other could send any more. So none is given the last eighth of what the others leave:
//!
//! ```text
//! capacity  = the largest a_rwnd that the peer has advertised
//! unread    = capacity - a_rwnd, the sum over all streams
//! allowance = 7/8 (capacity - unread of the other streams), or 16 KiB less, the smaller of both
//! ```
//!
//! Whose bytes are unread, a SACK does not say. What is acknowledged counts as unread on its stream; when the sum
//! exceeds what the peer can hold, the readers of the streams that were acknowledged last have taken the
//! difference: a stream that is read is acknowledged all the time, one that is stalled is not.
//! That can be wrong, so a stream may always send one message when nothing of it is outstanding and
//! its last such probe was read.
//!
//! pion sends no SACK when its application reads. So as long as a writer waits and nothing is outstanding, the peer is
//! asked for one now and then, by DATA that it has (RFC 9260 section 6.2): that takes no room.

use std::collections::HashMap;

use super::Outbound;
use crate::tally::lower;

/// Part of the window that one stream leaves to others, as its inverse.
const RESERVE: usize = 8;

/// The same at least: a few messages of 4 KiB, in the windows of 100 KB that go-libp2p has.
const MIN_RESERVE: usize = 16 * 1024;

/// The receive window of the peer.
#[derive(Debug, Default)]
pub(super) struct PeerWindow {
    /// The largest that was advertised.
    capacity: usize,
    /// The last that was advertised.
    advertised: usize,
    /// What is left of it beyond what is outstanding.
    room: usize,
    /// Sum of the `unread` of all streams.
    unread: usize,
    /// Streams with something unread, in the order in which they were acknowledged last.
    holders: Vec<u16>,
    /// Streams whose writer waits.
    waiting: usize,
}

/// The part of one stream.
#[derive(Debug, Default)]
pub(super) struct Share {
    /// Bytes acknowledged that the peer's application may not have read.
    unread: usize,
    /// `unread` when the last probe was sent.
    probed_at: Option<usize>,
    /// A message was refused, and its writer waits for room.
    waits: bool,
}

impl PeerWindow {
    /// The peer has advertised a window, beyond what `outstanding` says.
    pub(super) fn advertise(&mut self, window: u32, outstanding: usize) {
        self.advertised = window as usize;
        self.capacity = self.capacity.max(self.advertised);
        self.room = self.advertised.saturating_sub(outstanding);
    }

    /// Bytes that may be sent beyond what is outstanding.
    pub(super) fn room(&self) -> usize {
        self.room
    }

    /// Bytes were sent for the first time.
    pub(super) fn sent(&mut self, bytes: usize) {
        self.room = self.room.saturating_sub(bytes);
    }

    /// Whether a writer waits for its part of the window.
    pub(super) fn is_awaited(&self) -> bool {
        self.waiting > 0
    }

    /// Whether the writer of a stream waits; it does not any more.
    fn take_wait(&mut self, share: &mut Share) -> bool {
        let waited = std::mem::take(&mut share.waits);
        lower(&mut self.waiting, usize::from(waited));
        waited
    }

    /// Bytes of a stream were acknowledged. Returns whether its writer had waited, and may have room now.
    pub(super) fn acknowledged(&mut self, id: u16, share: &mut Share, bytes: usize) -> bool {
        share.unread += bytes;
        self.unread += bytes;
        if self.holders.last() != Some(&id) {
            self.holders.retain(|holder| *holder != id);
            self.holders.push(id);
        }
        self.take_wait(share)
    }

    /// Believes as much to be read as the peer can not hold any more. Returns whether a writer that waits may have
    /// room now.
    pub(super) fn settle(&mut self, streams: &mut HashMap<u16, Outbound>) -> bool {
        let held_by_peer = self.capacity.saturating_sub(self.advertised);
        let mut has_room = false;
        while self.unread > held_by_peer {
            let Some(&id) = self.holders.last() else {
                // Of streams that are gone.
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
            has_room |= read > 0 && self.take_wait(share);
            if is_read {
                self.holders.pop();
            }
        }
        has_room
    }

    /// A stream is gone: what its application has not read is nobody's.
    pub(super) fn forget(&mut self, share: &mut Share) {
        self.unread = self.unread.saturating_sub(share.unread);
        self.take_wait(share);
    }

    /// Whether a message fits the part of the window that its stream may fill. If not, its writer waits, and
    /// [`Self::settle`] or the acknowledgement of the stream reports room.
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
        // Probes that are not read do not use the reserve up.
        let is_affordable = length.saturating_mul(4) <= self.room;
        if unacknowledged == 0 && may_probe && is_affordable {
            share.probed_at = Some(share.unread);
            return true;
        }
        self.waiting += usize::from(!std::mem::replace(&mut share.waits, true));
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CAPACITY: usize = 1024 * 1024;
    const MESSAGE: usize = 4096;

    /// A peer whose readers are scripted.
    struct Peer {
        window: PeerWindow,
        streams: HashMap<u16, Outbound>,
        /// What its applications have really not read.
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
            self.window.settle(&mut self.streams)
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
        // Its neighbour is read, and sends as much as it likes.
        for _ in 0..10_000 {
            assert!(peer.send(1));
            peer.read(1);
        }
        assert!(!peer.send(0));
        assert!(peer.read(0), "its writer is told");
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

    /// The attribution is wrong where a stream stalls that was acknowledged after its neighbour.
    #[test]
    fn a_stream_that_is_taken_for_stalled_by_mistake_goes_on() {
        let mut peer = Peer::new();
        while peer.send(1) {}
        peer.send(0);
        // Read, but the other was acknowledged last.
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
