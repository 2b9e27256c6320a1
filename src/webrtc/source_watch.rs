//! Detects that the system sends a dialler's datagrams from a new source address.
//!
//! A dialler's socket is bound to a wildcard, and the system selects the source of each datagram by
//! its routes: when the address in use disappears, or another route becomes the best one, the next
//! datagram has another source. The listener drops datagrams from an address that has not passed a
//! check, so ICE has to check the new one at once, and the system does not report the change. A
//! lookup costs five system calls, so it happens only on signs of a change:
//! - a send failed;
//! - DTLS records came from the peer, and then nothing for [`SILENCE`];
//! - something is about to be sent, and the peer was silent for that long: a request on an idle
//!   connection, a retransmission, a consent check (RFC 7675).
//!
//! Where the source is the same, the path is checked all the same: a NAT may have forgotten its
//! mapping, and then the listener learns the new port from the check.
//!
//! It adds no wake-ups to an idle connection.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::time::Instant;

use crate::udp::wildcard;

/// Silence of the peer after which a lookup is worth its system calls, and the interval of lookups.
const SILENCE: Duration = Duration::from_millis(250);

/// Schedules the lookups of the source address.
#[derive(Debug)]
pub(super) struct SourceWatch {
    remote: SocketAddr,
    /// When something last came from the peer.
    heard: Instant,
    looked: Instant,
    /// When the next lookup is due, if one is.
    look_at: Option<Instant>,
    /// Whether a datagram from the peer cancels the lookup.
    only_if_silent: bool,
}

impl SourceWatch {
    pub(super) fn new(remote: SocketAddr, now: Instant) -> Self {
        Self {
            remote,
            heard: now,
            looked: now,
            look_at: None,
            only_if_silent: true,
        }
    }

    pub(super) fn remote(&self) -> SocketAddr {
        self.remote
    }

    /// The unspecified address, which leaves the source to the system.
    pub(super) fn unspecified(&self) -> IpAddr {
        wildcard(self.remote)
    }

    /// Datagrams came from the peer.
    pub(super) fn received(&mut self, now: Instant, contents: &[u8]) {
        self.heard = now;
        // RFC 7983: STUN. An idle connection has nothing else, and needs no timer.
        if !matches!(contents.first(), Some(0..=3)) && self.look_at.is_none() {
            self.look_at = Some(now + SILENCE);
            self.only_if_silent = true;
        }
    }

    /// Something is about to be sent.
    pub(super) fn will_send(&mut self, now: Instant) {
        if now >= self.heard + SILENCE && now >= self.looked + SILENCE {
            self.look_at = Some(now);
            self.only_if_silent = true;
        }
    }

    /// The system rejected a datagram.
    pub(super) fn send_failed(&mut self) {
        self.look_soon();
    }

    fn look_soon(&mut self) {
        self.look_at = Some(self.looked + SILENCE);
        self.only_if_silent = false;
    }

    /// When [`Self::is_due`] has to be called next.
    pub(super) fn look_at(&self) -> Option<Instant> {
        self.look_at
    }

    /// Whether a lookup is due.
    pub(super) fn is_due(&mut self, now: Instant) -> bool {
        if self.look_at.is_none_or(|at| now < at) {
            return false;
        }
        let silent_at = self.heard + SILENCE;
        if self.only_if_silent && now < silent_at {
            self.look_at = Some(silent_at);
            return false;
        }
        true
    }

    /// Whether the lookup that is due follows a failed send, and not silence.
    pub(super) fn follows_failure(&self) -> bool {
        !self.only_if_silent
    }

    /// A lookup took place. Without a result another one follows soon.
    pub(super) fn looked(&mut self, now: Instant, found: bool) {
        self.looked = now;
        self.look_at = None;
        if !found {
            self.look_soon();
        }
    }
}
