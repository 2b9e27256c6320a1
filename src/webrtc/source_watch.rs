//! Which address the system sends a dialler's datagrams from, and when that is looked up.
//!
//! A dialler's socket is bound to a wildcard, and the system chooses the source by its routes, for each datagram: when
//! the address in use disappears, or another route becomes the best one, the next datagram leaves from elsewhere.
//! The listener drops what comes from an address that has not passed a check, so ICE has to check the
//! new one at once, and the system does not say that it is new. A look costs five system calls, so there is one
//! only where something is amiss:
//! - a send failed;
//! - records came from the peer, and then nothing for [`SILENCE`];
//! - something is about to be sent, and the peer was silent for that long: a request on an idle connection, a
//!   retransmission, a consent check (RFC 7675).
//!
//! An idle connection wakes up no more often for it.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::time::Instant;

use crate::udp::wildcard;

/// Silence of the peer after which a look is worth its system calls, and the time between two looks.
const SILENCE: Duration = Duration::from_millis(250);

/// When to look.
#[derive(Debug)]
pub(super) struct SourceWatch {
    remote: SocketAddr,
    /// When something last came from the peer.
    heard: Instant,
    looked: Instant,
    /// When to look next, unless something comes from the peer meanwhile.
    look_at: Option<Instant>,
    /// Whether what comes from the peer makes the look unnecessary.
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

    /// The source of what is sent: the system's choice.
    pub(super) fn unspecified(&self) -> IpAddr {
        wildcard(self.remote)
    }

    /// Datagrams came from the peer.
    pub(super) fn received(&mut self, now: Instant, contents: &[u8]) {
        self.heard = now;
        // RFC 7983: STUN. An idle connection has nothing else, and needs no timer for what follows.
        if !matches!(contents.first(), Some(0..=3)) && self.look_at.is_none() {
            self.look_at = Some(now + SILENCE);
            self.only_if_silent = true;
        }
    }

    /// Something is about to be sent.
    pub(super) fn will_send(&mut self, now: Instant) {
        if now >= self.heard + SILENCE && now >= self.looked + SILENCE {
            self.look_at = Some(now);
        }
    }

    /// The system did not take a datagram.
    pub(super) fn send_failed(&mut self) {
        self.look_soon();
    }

    fn look_soon(&mut self) {
        self.look_at = Some(self.looked + SILENCE);
        self.only_if_silent = false;
    }

    /// When [`Self::is_due`] is to be asked next.
    pub(super) fn look_at(&self) -> Option<Instant> {
        self.look_at
    }

    /// Whether to look now.
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

    /// There was a look. Without a source address there is another one soon.
    pub(super) fn looked(&mut self, now: Instant, found: bool) {
        self.looked = now;
        self.look_at = None;
        if !found {
            self.look_soon();
        }
    }
}
