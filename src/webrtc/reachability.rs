//! How much a listener sends to an address that nobody has shown to receive at.
//!
//! The source of a datagram can be forged, and the answer to a ClientHello, with a certificate and
//! repeated while nobody acknowledges it, is much longer than that. So no address gets more than
//! three times what came from it (RFC 9000 section 8.1 does the same), until it is proven:
//! - it completed the DTLS handshake, which nobody can who does not receive the server's part; or
//! - it answered a challenge (`endpoint/admission/challenge.rs`).
//!
//! An honest handshake stays below the limit and pays nothing for it. Where it does not, as when datagrams were
//! lost, and at every further address of a connection, a challenge is sent: one round trip later
//! there is no limit any more. The further addresses matter: a peer that forges its nomination could
//! direct all that a connection sends at somebody else.
//!
//! And whoever reads a check on its way knows all that a nomination is made of: one that is forged, with a
//! PRIORITY above the real one, would move the connection to where nobody is, and the peer would hear nothing
//! any more. So ICE is not told of checks from a further address before that is proven.
//!
//! The first address is challenged too, once, after the first response to it. pion nominates a pair at its next
//! tick of 200 ms, or at once when a check of the peer arrives after its own has succeeded: without one
//! each dial of pion and go-libp2p took 206 to 221 ms, with it 6 to 14 ms.
//!
//! And the same check asks a peer that has been silent for a while for a sign of life: go-libp2p sends its own only
//! after 15 s without traffic.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::endpoint::admission::challenge::{ChallengeKey, PeerCredentials};

/// What may be sent for each byte received.
const FACTOR: u64 = 3;

/// Time between two challenges of one address.
const CHALLENGE_INTERVAL: Duration = Duration::from_millis(250);

/// Longest check that is kept until its address is proven: those of all known peers are shorter. Beyond it the
/// repetition is waited for.
const MAX_WITHHELD: usize = 256;

/// The addresses of a peer. As many as its router takes at the most.
#[derive(Debug)]
pub(super) struct Reachability {
    key: Arc<ChallengeKey>,
    peer: PeerCredentials,
    addresses: Vec<Remote>,
    /// The proven address that was looked up last; most of the time it is the only one.
    proven: Option<SocketAddr>,
    /// Where the DTLS handshake went.
    handshake_to: HandshakeTo,
    /// An address to challenge.
    wanted: Option<SocketAddr>,
    /// A proven address is to be checked as well, for a sign of life.
    asks: bool,
}

#[derive(Debug)]
struct Remote {
    address: SocketAddr,
    /// Our address that it sends to.
    local: SocketAddr,
    received: u64,
    sent: u64,
    proven: bool,
    challenged: Option<Instant>,
    /// The last check that waits for the proof.
    withheld: Option<Box<[u8]>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum HandshakeTo {
    Nobody,
    One(SocketAddr),
    /// It is not known who of them received it.
    Several,
}

/// A datagram that asks an address for a proof.
#[derive(Debug)]
pub(super) struct Challenge {
    pub(super) source: SocketAddr,
    pub(super) destination: SocketAddr,
    pub(super) contents: Vec<u8>,
}

impl Remote {
    fn room(&self) -> usize {
        if self.proven {
            return usize::MAX;
        }
        let room = (FACTOR.saturating_mul(self.received)).saturating_sub(self.sent);
        usize::try_from(room).unwrap_or(usize::MAX)
    }
}

impl Reachability {
    pub(super) fn new(key: Arc<ChallengeKey>, peer: PeerCredentials) -> Self {
        Self {
            key,
            peer,
            addresses: Vec::new(),
            proven: None,
            handshake_to: HandshakeTo::Nobody,
            wanted: None,
            asks: false,
        }
    }

    fn find(&mut self, address: SocketAddr) -> Option<&mut Remote> {
        self.addresses.iter_mut().find(|a| a.address == address)
    }

    /// Bytes came from `address`, to our address `local`.
    pub(super) fn received(&mut self, address: SocketAddr, local: SocketAddr, bytes: usize) {
        if self.proven == Some(address) {
            return;
        }
        if let Some(remote) = self.find(address) {
            remote.received = remote.received.saturating_add(bytes as u64);
            if remote.proven {
                self.proven = Some(address);
            }
            return;
        }
        if !self.addresses.is_empty() {
            self.wanted = Some(address);
        }
        self.addresses.push(Remote {
            address,
            local,
            received: bytes as u64,
            sent: 0,
            proven: false,
            challenged: None,
            withheld: None,
        });
    }

    /// Whether a datagram is a check that has to wait until the address it comes from is proven, which is then
    /// asked for: see [`Self::take_withheld`].
    pub(super) fn withholds(&mut self, from: SocketAddr, datagram: &[u8]) -> bool {
        // RFC 7983: STUN.
        if self.proven == Some(from) || !matches!(datagram.first(), Some(0..=3)) {
            return false;
        }
        let mut further = self.addresses.iter_mut().skip(1);
        let Some(remote) = further.find(|remote| remote.address == from && !remote.proven) else {
            return false;
        };
        remote.withheld = (datagram.len() <= MAX_WITHHELD).then(|| datagram.into());
        self.wanted = Some(from);
        true
    }

    /// The check that was withheld from an address, if that is proven now. The peer would not repeat it before
    /// its timer runs out, and it may move the connection to where the peer is now.
    pub(super) fn take_withheld(&mut self, from: SocketAddr) -> Option<Box<[u8]>> {
        let remote = self.find(from).filter(|remote| remote.proven)?;
        remote.withheld.take()
    }

    /// Takes in a datagram that may answer a challenge; `true` if it does.
    pub(super) fn take_answer(&mut self, now: Instant, from: SocketAddr, datagram: &[u8]) -> bool {
        let answers = self.key.is_answer(now, from, datagram);
        if answers {
            self.prove(from);
        }
        answers
    }

    /// The DTLS handshake is complete.
    pub(super) fn handshake_completed(&mut self) {
        if let HandshakeTo::One(address) = self.handshake_to {
            self.prove(address);
        }
    }

    fn prove(&mut self, address: SocketAddr) {
        if let Some(remote) = self.find(address) {
            remote.proven = true;
        }
    }

    /// Bytes that may be sent to `address` now.
    pub(super) fn room(&mut self, address: SocketAddr) -> usize {
        if self.proven == Some(address) {
            return usize::MAX;
        }
        let room = self.find(address).map_or(0, |remote| remote.room());
        if room == usize::MAX {
            self.proven = Some(address);
        }
        room
    }

    /// Datagrams went out.
    pub(super) fn sent(&mut self, address: SocketAddr, contents: &[u8]) {
        if self.proven == Some(address) {
            return;
        }
        if let Some(remote) = self.find(address) {
            remote.sent = remote.sent.saturating_add(contents.len() as u64);
        }
        // RFC 7983: STUN. The first is the response to its first check, which ours has to follow.
        if matches!(contents.first(), Some(0..=3)) && self.is_unchecked(address) {
            self.wanted = Some(address);
        }
        // RFC 7983: everything but STUN.
        if matches!(contents.first(), Some(20..)) {
            self.handshake_to = match self.handshake_to {
                HandshakeTo::Nobody => HandshakeTo::One(address),
                HandshakeTo::One(one) if one == address => self.handshake_to,
                HandshakeTo::One(_) | HandshakeTo::Several => HandshakeTo::Several,
            };
        }
    }

    /// Whether the address is the first of the peer and was never challenged.
    fn is_unchecked(&self, address: SocketAddr) -> bool {
        self.addresses.first().is_some_and(|first| {
            first.address == address && !first.proven && first.challenged.is_none()
        })
    }

    /// Something waits for the proof of an address.
    pub(super) fn want(&mut self, address: SocketAddr) {
        self.wanted = Some(address);
    }

    /// Checks the address that is in use, whose answer shows that the peer lives. A lite agent sends no checks
    /// of its own accord, and go-libp2p sends none for up to 17 s.
    pub(super) fn ask(&mut self) {
        self.asks = true;
    }

    /// The challenge to send now, if there is one. Counts it as sent.
    pub(super) fn next_challenge(&mut self, now: Instant) -> Option<Challenge> {
        if std::mem::take(&mut self.asks)
            && let Some(address) = self.proven
            && let Some(remote) = self.find(address)
        {
            let source = remote.local;
            return Some(Challenge {
                source,
                destination: address,
                contents: self.key.challenge(now, address, &self.peer),
            });
        }
        let wanted = self.wanted.take()?;
        let remote = self.addresses.iter_mut().find(|a| a.address == wanted)?;
        if remote.proven
            || remote
                .challenged
                .is_some_and(|at| now < at + CHALLENGE_INTERVAL)
        {
            return None;
        }
        let contents = self.key.challenge(now, wanted, &self.peer);
        if contents.len() > remote.room() {
            return None;
        }
        remote.challenged = Some(now);
        remote.sent = remote.sent.saturating_add(contents.len() as u64);
        Some(Challenge {
            source: remote.local,
            destination: wanted,
            contents,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ufrag::parse_username;

    fn address(port: u16) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, 1], port))
    }

    fn reachability() -> Reachability {
        let pwd = "p".repeat(22);
        let credentials =
            parse_username(&format!("libp2p+webrtc+v2/{pwd}:abcd")).expect("well formed");
        let key = Arc::new(ChallengeKey::generate());
        Reachability::new(key, PeerCredentials::from(&credentials))
    }

    const STUN: [u8; 100] = [0; 100];
    const DTLS: [u8; 100] = [22; 100];

    #[test]
    fn an_address_gets_three_times_what_it_sent() {
        let mut to = reachability();
        assert_eq!(to.room(address(1)), 0, "nothing came from there");
        to.received(address(1), address(9), 100);
        assert_eq!(to.room(address(1)), 300);
        to.sent(address(1), &DTLS);
        to.sent(address(1), &STUN);
        assert_eq!(to.room(address(1)), 100);
        assert_eq!(to.room(address(2)), 0);
        to.received(address(1), address(9), 100);
        assert_eq!(to.room(address(1)), 400);
    }

    #[test]
    fn a_completed_handshake_proves_the_address_it_went_to() {
        let mut to = reachability();
        to.received(address(1), address(9), 100);
        to.sent(address(1), &STUN);
        to.handshake_completed();
        assert_eq!(to.room(address(1)), 200, "no handshake went there");
        to.sent(address(1), &DTLS);
        to.handshake_completed();
        assert_eq!(to.room(address(1)), usize::MAX);
    }

    #[test]
    fn a_handshake_that_went_to_two_addresses_proves_neither() {
        let mut to = reachability();
        for port in [1, 2] {
            to.received(address(port), address(9), 100);
            to.sent(address(port), &DTLS);
        }
        to.handshake_completed();
        assert_eq!([to.room(address(1)), to.room(address(2))], [200, 200]);
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_address_is_checked_once_after_the_first_response_to_it() {
        let mut to = reachability();
        let now = Instant::now();
        to.received(address(1), address(9), 200);
        assert!(to.next_challenge(now).is_none(), "nothing was answered");
        to.sent(address(1), &STUN);
        let check = to.next_challenge(now).expect("a check");
        assert_eq!((check.source, check.destination), (address(9), address(1)));
        to.received(address(1), address(9), 200);
        to.sent(address(1), &STUN);
        assert!(to.next_challenge(now + CHALLENGE_INTERVAL).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_further_address_is_challenged_and_proven_by_its_answer() {
        let mut to = reachability();
        let now = Instant::now();
        to.received(address(1), address(9), 1000);
        assert!(to.next_challenge(now).is_none(), "the first one has DTLS");
        to.received(address(2), address(9), 1000);
        let challenge = to.next_challenge(now).expect("a challenge");
        assert_eq!(challenge.destination, address(2));
        assert_eq!(challenge.source, address(9));
        assert_eq!(to.room(address(2)), 3000 - challenge.contents.len());
        to.want(address(2));
        assert!(to.next_challenge(now).is_none(), "not so soon again");
        to.want(address(2));
        assert!(to.next_challenge(now + CHALLENGE_INTERVAL).is_some());

        let mut answer = challenge.contents;
        answer[..2].copy_from_slice(&[1, 1]);
        assert!(!to.take_answer(now, address(1), &answer), "from elsewhere");
        assert!(to.take_answer(now, address(2), &answer));
        assert_eq!(to.room(address(2)), usize::MAX);
        assert_eq!(to.room(address(1)), 3000);
    }

    #[tokio::test(start_paused = true)]
    async fn checks_from_a_further_address_wait_for_its_proof() {
        let mut to = reachability();
        let now = Instant::now();
        for port in [1, 2] {
            to.received(address(port), address(9), 1000);
        }
        assert!(!to.withholds(address(1), &STUN), "the first one has DTLS");
        assert!(!to.withholds(address(2), &DTLS), "which proves itself");
        assert!(to.withholds(address(2), &STUN));
        let mut answer = to.next_challenge(now).expect("a challenge").contents;
        assert!(to.withholds(address(2), &STUN));
        answer[..2].copy_from_slice(&[1, 1]);
        assert!(to.take_answer(now, address(2), &answer));
        assert!(!to.withholds(address(2), &STUN));
    }

    #[tokio::test(start_paused = true)]
    async fn a_challenge_keeps_to_the_limit_too() {
        let mut to = reachability();
        to.received(address(1), address(9), 20);
        to.want(address(1));
        assert!(to.next_challenge(Instant::now()).is_none());
    }
}
