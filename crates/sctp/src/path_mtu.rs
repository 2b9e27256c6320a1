//! Discovery of the longest packet that path and peer take (DPLPMTUD, RFC 8899; for SCTP section
//! 6.2).
//!
//! ```text
//! Base ─► (a bulk transfer) Searching ─► (no candidate is left) Complete
//!   ▲          │ ▲                           │   │
//!   │          │ └─── after RAISE_AFTER ─────┘   │
//!   └──────────┴── black hole ───────────────────┘
//! ```
//!
//! A probe is a HEARTBEAT, padded by a PAD chunk (RFC 4820), in a packet of its own, which is not
//! counted as in flight: its loss says nothing about congestion. The HEARTBEAT-ACK is short, so the
//! way back need not carry the same size. An idle connection, and one that carries little, sends no
//! probes.

use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};

use super::bundle::Packets;
use super::heartbeat::{self, Nonce};
use super::packet::{COMMON_HEADER, kind};
use super::{Association, PORT};

/// Bytes that the peer has received before the search begins: connections that carry less gain
/// nothing by it.
const BULK: u64 = 64 * 1024;

/// Probes in flight at once, of different sizes. RFC 8899 section 5.3.1 leaves the order open: the
/// largest candidate first finds loopback and jumbo frames in one round trip.
const PROBES: usize = 3;

/// Transmissions of one size without an answer before it counts as too long (MAX_PROBES, RFC 8899
/// section 5.1.2).
const ATTEMPTS: u32 = 3;

/// Time until the search is repeated upwards (PMTU_RAISE_TIMER, RFC 8899 section 5.1.1).
const RAISE_AFTER: Duration = Duration::from_secs(600);

/// Time after a black hole until the search is repeated: what looks like one may be an outage.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Header of a chunk.
const CHUNK_HEADER: usize = 4;

/// How the path of an association has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PathChange {
    /// Only a port, as when a NAT forgets a mapping: the path itself is most likely the same.
    Port,
    /// The address of either side.
    Address,
}

/// A size that is being probed.
#[derive(Debug)]
struct Probe {
    /// Its index in `sizes`.
    index: usize,
    nonce: Nonce,
    attempts: u32,
    /// When it counts as lost; `None` before it is sent.
    lost_at: Option<Instant>,
}

/// The state of the search.
#[derive(Debug)]
pub(super) struct PathMtu {
    /// The size that every path is assumed to take.
    base: usize,
    /// The candidates above it, ascending.
    sizes: &'static [usize],
    /// The peer takes segments, which repair a black hole.
    is_enabled: bool,
    /// The candidates before this index are known to pass.
    passed: usize,
    /// Those from this index on are known not to.
    failed: usize,
    probes: Vec<Probe>,
    /// No search before this time.
    search_at: Option<Instant>,
}

impl PathMtu {
    pub(super) fn new(base: usize, sizes: &'static [usize]) -> Self {
        Self {
            base,
            sizes,
            is_enabled: false,
            passed: 0,
            failed: sizes.len(),
            probes: Vec::new(),
            search_at: None,
        }
    }

    /// The peer repairs what becomes too long.
    pub(super) fn enable(&mut self) {
        self.is_enabled = true;
    }

    /// The longest packet for user data.
    pub(super) fn current(&self) -> usize {
        let last = self.passed.checked_sub(1);
        let size = last.and_then(|last| self.sizes.get(last)).copied();
        size.unwrap_or(self.base).max(self.base)
    }

    pub(super) fn base(&self) -> usize {
        self.base
    }

    /// Whether a probe is to be sent. `delivered`: bytes that the peer has received.
    fn is_search_due(&self, now: Instant, delivered: u64) -> bool {
        self.is_enabled && delivered >= BULK && self.search_at.is_none_or(|at| at <= now)
    }

    /// Begins probes of further sizes, as far as there are any.
    fn search(&mut self, now: Instant) {
        if self.search_at.is_some() {
            // The path may carry more than it did.
            self.search_at = None;
            self.failed = self.sizes.len();
        }
        // Those that are not longer than the base are known to pass.
        let is_known = |size: &usize| *size <= self.base;
        let known = self.sizes.iter().take_while(|size| is_known(size)).count();
        self.passed = self.passed.max(known);
        if self.passed >= self.failed {
            self.search_at = Some(now + RAISE_AFTER);
            return;
        }
        let last = self.failed - 1;
        for index in [last, self.passed.midpoint(last), self.passed] {
            let is_probed = self.probes.iter().any(|probe| probe.index == index);
            if self.probes.len() < PROBES && !is_probed {
                self.probes.push(Probe {
                    index,
                    nonce: heartbeat::nonce(),
                    attempts: 0,
                    lost_at: None,
                });
            }
        }
    }

    /// The next probe to send now: its size and its nonce.
    fn next_probe(
        &mut self,
        now: Instant,
        delivered: u64,
        timeout: Duration,
    ) -> Option<(usize, Nonce)> {
        if self.probes.is_empty() && self.is_search_due(now, delivered) {
            self.search(now);
        }
        let probe = self
            .probes
            .iter_mut()
            .find(|probe| probe.lost_at.is_none())?;
        probe.attempts += 1;
        probe.lost_at = Some(now + timeout);
        Some((*self.sizes.get(probe.index)?, probe.nonce))
    }

    /// A probe has arrived. Returns whether the size has grown.
    fn on_answer(&mut self, nonce: &Nonce) -> bool {
        let Some(index) = self
            .probes
            .iter()
            .find_map(|probe| (probe.nonce == *nonce).then_some(probe.index))
        else {
            return false;
        };
        let before = self.current();
        self.passed = self.passed.max(index + 1);
        // A larger one may have been reported lost before, by congestion.
        self.failed = self.failed.max(self.passed);
        self.drop_probes(|probe| probe.index <= index);
        self.current() > before
    }

    /// When a probe counts as lost.
    pub(super) fn next_timeout(&self) -> Option<Instant> {
        self.probes.iter().filter_map(|probe| probe.lost_at).min()
    }

    /// Takes probes for lost.
    pub(super) fn handle_timeout(&mut self, now: Instant) {
        for probe in &mut self.probes {
            if probe.lost_at.is_some_and(|at| at <= now) {
                probe.lost_at = None;
                if probe.attempts >= ATTEMPTS {
                    self.failed = self.failed.min(probe.index);
                }
            }
        }
        let failed = self.failed;
        self.drop_probes(|probe| probe.index >= failed);
    }

    /// Drops probes, and the memory of the last one.
    fn drop_probes(&mut self, is_over: impl Fn(&Probe) -> bool) {
        self.probes.retain(|probe| !is_over(probe));
        if self.probes.is_empty() {
            self.probes = Vec::new();
        }
    }

    /// Another path is searched at once.
    fn on_path_change(&mut self) {
        let is_enabled = self.is_enabled;
        *self = Self::new(self.base, self.sizes);
        self.is_enabled = is_enabled;
    }

    /// Packets longer than the base no longer arrive.
    pub(super) fn on_black_hole(&mut self, now: Instant) {
        self.passed = 0;
        self.probes = Vec::new();
        self.search_at = Some(now + RETRY_AFTER);
    }
}

impl Association {
    /// The packets take another path from now on: what is in flight is sent again at once, and at
    /// another address the congestion control and the search for the path MTU begin anew.
    pub fn on_path_change(&mut self, now: Instant, change: PathChange) {
        if self.is_up() {
            if change == PathChange::Address {
                self.path_mtu.on_path_change();
            }
            self.sender.on_path_change(now, change);
        }
    }

    /// The next probe of the path MTU; `None` if there is none. To be called until then. It has to
    /// be sent alone: with others in one system call (GSO) it would take them with it where it is
    /// longer than the path carries. It carries no ECN codepoint.
    pub fn poll_probe(&mut self, now: Instant) -> Option<Bytes> {
        if !self.is_up() || !self.sender.wants_longer_packets() {
            return None;
        }
        let delivered = self.sender.delivered();
        let timeout = self.sender.probe_timeout();
        let (size, nonce) = self.path_mtu.next_probe(now, delivered, timeout)?;
        let peer = self.peer?;
        let header = ([PORT, self.peer_port], peer.tag);
        let mut packets = Packets::new(size, header, peer.zero_checksum, BytesMut::new());
        let value = heartbeat::information(&nonce);
        packets.put(kind::HEARTBEAT, 0, &value);
        let length = COMMON_HEADER + CHUNK_HEADER + value.len();
        let padding = size.saturating_sub(length + CHUNK_HEADER);
        packets.put(kind::PAD, 0, &vec![0; padding]);
        packets.finish().0.pop()
    }

    /// Handles the answer to a probe. Returns `false` if the nonce is that of none.
    pub(super) fn on_mtu_answer(&mut self, nonce: &Nonce) -> bool {
        let is_of_probe = self.path_mtu.probes.iter().any(|p| p.nonce == *nonce);
        if self.path_mtu.on_answer(nonce) {
            self.sender.set_max_packet(self.path_mtu.current());
        }
        is_of_probe
    }

    /// Falls back to packets of the base size if longer ones no longer arrive.
    pub(super) fn check_black_hole(&mut self, now: Instant) {
        if self.sender.take_black_hole() {
            self.path_mtu.on_black_hole(now);
            self.sender.set_max_packet(self.path_mtu.current());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZES: &[usize] = &[1_300, 1_400, 1_450, 9_000, 16_000];
    const TIMEOUT: Duration = Duration::from_millis(100);

    /// Searches on a path that takes packets up to `most`; returns the probes sent, and the time.
    fn search(mtu: &mut PathMtu, now: &mut Instant, most: usize) -> Vec<usize> {
        let mut sent = Vec::new();
        loop {
            while let Some((size, nonce)) = mtu.next_probe(*now, BULK, TIMEOUT) {
                sent.push(size);
                assert!(sent.len() < 100, "the search does not end");
                if size <= most {
                    mtu.on_answer(&nonce);
                }
            }
            let Some(next) = mtu.next_timeout() else {
                return sent;
            };
            *now = next;
            mtu.handle_timeout(*now);
        }
    }

    fn enabled() -> PathMtu {
        let mut mtu = PathMtu::new(1_200, SIZES);
        mtu.enable();
        mtu
    }

    #[test]
    fn the_largest_candidate_that_passes_is_found() {
        for most in [
            1_200, 1_300, 1_399, 1_400, 1_500, 9_000, 15_999, 16_000, 70_000,
        ] {
            let mut mtu = enabled();
            let mut now = Instant::now();
            let sent = search(&mut mtu, &mut now, most);
            let expected = SIZES.iter().rev().find(|size| **size <= most);
            assert_eq!(mtu.current(), *expected.unwrap_or(&1_200), "{sent:?}");
            assert!(sent.len() <= 4 * SIZES.len(), "{sent:?}");
        }
    }

    #[test]
    fn a_path_that_takes_everything_is_known_after_one_probe() {
        let mut mtu = enabled();
        assert_eq!(search(&mut mtu, &mut Instant::now(), 70_000), [16_000]);
    }

    #[test]
    fn a_connection_that_carries_little_sends_no_probes() {
        let now = Instant::now();
        assert!(enabled().next_probe(now, BULK - 1, TIMEOUT).is_none());
        let mut without_segments = PathMtu::new(1_200, SIZES);
        assert!(without_segments.next_probe(now, BULK, TIMEOUT).is_none());
    }

    #[test]
    fn a_finished_search_is_repeated_after_ten_minutes() {
        let mut mtu = enabled();
        let mut now = Instant::now();
        search(&mut mtu, &mut now, 1_400);
        now += RAISE_AFTER;
        search(&mut mtu, &mut now, 9_000);
        assert_eq!(mtu.current(), 9_000);
    }

    #[test]
    fn a_black_hole_leads_to_the_base_and_to_another_search() {
        let mut mtu = enabled();
        let mut now = Instant::now();
        search(&mut mtu, &mut now, 9_000);
        mtu.on_black_hole(now);
        assert_eq!(mtu.current(), 1_200);
        assert!(mtu.next_probe(now, BULK, TIMEOUT).is_none());
        now += RETRY_AFTER;
        search(&mut mtu, &mut now, 1_350);
        assert_eq!(mtu.current(), 1_300);
    }

    #[test]
    fn a_base_above_the_first_candidates_is_never_lowered() {
        let mut mtu = PathMtu::new(1_420, SIZES);
        mtu.enable();
        let sent = search(&mut mtu, &mut Instant::now(), 1_440);
        assert_eq!(mtu.current(), 1_420);
        assert!(sent.iter().all(|size| *size > 1_420), "{sent:?}");
    }
}
