//! Limits what a listener sends to an address that has not proved to receive it.
//!
//! The source of a datagram can be forged, and the answer to a ClientHello, with a certificate and
//! retransmitted while nobody acknowledges it, is much longer than the ClientHello. So no address
//! gets more than three times what came from it (as RFC 9000 section 8.1), until it is proven by
//! something that only a peer that receives there can send:
//! - It completed the DTLS handshake, which is impossible without the server's flight.
//! - Or it returned a nonce of the engine that only the peer can read ([`Validation::ByEngine`]).
//! - Or, with an engine that has no such nonce, it answered a challenge
//!   (`udp/admission/challenge.rs`) with the password of the peer ([`Validation::ByChallenge`]).
//!
//! An answered challenge is not enough where the engine has a better proof: the password of version
//! 1 is the ufrag, from which every listener of webrtc-direct derives it, so an attacker could
//! direct a connection at another listener.
//!
//! An honest handshake stays below the limit and pays nothing for it. Further addresses of a
//! connection need it: a peer that forges the source of its nomination could direct everything that
//! a connection sends at somebody else.
//!
//! An attacker who can read a check has all that a nomination needs: a forged one, with a PRIORITY
//! above the real one, would move the connection to an address where nobody receives, and cut off
//! the peer. So checks from a further address are withheld from ICE until it has answered a
//! challenge.
//!
//! The first address is challenged too, once, after the first response to it. pion nominates a pair
//! at its next tick of 200 ms, or at once when a check of the peer arrives after its own has
//! succeeded: without a challenge each dial of pion and go-libp2p took 206 to 221 ms, with it 6 to
//! 14 ms.
//!
//! The same check tests the liveness of a silent peer (go-libp2p sends checks only after 15 s
//! without traffic), and the consent of the address in use ([`Consent`]).

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anabranch_rtc::Probe;
use tokio::time::Instant;

use super::consent::Consent;
use crate::udp::admission::challenge::{ChallengeKey, PeerCredentials};

/// Bytes that may be sent for each byte received.
const FACTOR: u64 = 3;

/// Minimum interval of challenges to one address.
const CHALLENGE_INTERVAL: Duration = Duration::from_millis(250);

/// Maximum length of a withheld check, in bytes: those of all known peers are shorter. A longer one
/// is dropped, and the peer repeats it.
const MAX_WITHHELD: usize = 256;

/// What proves that the peer receives at an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Validation {
    /// The engine, which reports it by [`Reachability::validated`].
    ByEngine,
    /// An answered challenge.
    ByChallenge,
}

/// The addresses of a peer. The router limits their number.
#[derive(Debug)]
pub(super) struct Reachability {
    key: Arc<ChallengeKey>,
    peer: PeerCredentials,
    validation: Validation,
    addresses: Vec<Remote>,
    /// The proven address that was used last; usually the only one.
    proven: Option<SocketAddr>,
    /// Something was sent to it since its consent was last checked.
    used_since_check: bool,
    /// The address to which the DTLS handshake was sent.
    handshake_to: HandshakeTo,
    /// The address to challenge next.
    challenge_next: Option<SocketAddr>,
    /// A liveness check of the address in use is requested.
    check_requested: bool,
}

#[derive(Debug)]
struct Remote {
    address: SocketAddr,
    /// The local address to which it sends.
    local: SocketAddr,
    received: u64,
    sent: u64,
    /// It has answered a challenge: its checks are passed to ICE.
    answered: bool,
    /// Proven addresses have no limit while they consent.
    proven: Option<Consent>,
    challenged: Option<Instant>,
    /// The last check, withheld until the address answers a challenge.
    withheld: Option<Box<[u8]>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum HandshakeTo {
    Nobody,
    One(SocketAddr),
    /// It is unknown which of them received it.
    Several,
}

/// What to do with datagrams beyond the limit of an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Excess {
    /// Hold them until more has arrived from there: they are part of the handshake.
    Hold,
    /// Drop them: the connection uses another address.
    Drop,
}

/// Whether a datagram answers a challenge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ChallengeAnswer {
    /// It does not.
    No,
    /// An answer without a valid signature, which proves nothing.
    Unsigned,
    /// An answer of the peer.
    OfPeer,
}

impl Remote {
    fn room(&self) -> usize {
        if self.proven.is_some() {
            return usize::MAX;
        }
        let room = (FACTOR.saturating_mul(self.received)).saturating_sub(self.sent);
        usize::try_from(room).unwrap_or(usize::MAX)
    }

    fn prove(&mut self, now: Instant) {
        self.answered = true;
        match &mut self.proven {
            Some(consent) => consent.renew(now),
            None => self.proven = Some(Consent::new(now)),
        }
    }
}

impl Reachability {
    pub(super) fn new(
        key: Arc<ChallengeKey>,
        peer: PeerCredentials,
        validation: Validation,
    ) -> Self {
        Self {
            key,
            peer,
            validation,
            addresses: Vec::new(),
            proven: None,
            used_since_check: false,
            handshake_to: HandshakeTo::Nobody,
            challenge_next: None,
            check_requested: false,
        }
    }

    fn find(&mut self, address: SocketAddr) -> Option<&mut Remote> {
        self.addresses.iter_mut().find(|a| a.address == address)
    }

    /// Bytes were received from `address` at the local address `local`.
    pub(super) fn received(&mut self, address: SocketAddr, local: SocketAddr, bytes: usize) {
        if self.proven == Some(address) {
            return;
        }
        if let Some(remote) = self.find(address) {
            remote.received = remote.received.saturating_add(bytes as u64);
            return;
        }
        if !self.addresses.is_empty() {
            self.challenge_next = Some(address);
        }
        self.addresses.push(Remote {
            address,
            local,
            received: bytes as u64,
            sent: 0,
            answered: false,
            proven: None,
            challenged: None,
            withheld: None,
        });
    }

    /// Whether a datagram is a check from an address that has not answered a challenge. If so,
    /// withholds it and requests a challenge: see [`Self::take_withheld`].
    pub(super) fn withholds(&mut self, from: SocketAddr, datagram: &[u8]) -> bool {
        // RFC 7983: STUN.
        if self.proven == Some(from) || !matches!(datagram.first(), Some(0..=3)) {
            return false;
        }
        let mut further = self.addresses.iter_mut().skip(1);
        let Some(remote) = further.find(|remote| remote.address == from && !remote.answered) else {
            return false;
        };
        remote.withheld = (datagram.len() <= MAX_WITHHELD).then(|| datagram.into());
        self.challenge_next = Some(from);
        true
    }

    /// Takes the withheld check of an address that has answered a challenge. The peer would repeat
    /// it only when its timer expires, and it may move the connection to the peer's new address.
    pub(super) fn take_withheld(&mut self, from: SocketAddr) -> Option<Box<[u8]>> {
        let remote = self.find(from).filter(|remote| remote.answered)?;
        remote.withheld.take()
    }

    /// Handles a datagram that may answer a challenge.
    pub(super) fn take_answer(
        &mut self,
        now: Instant,
        from: SocketAddr,
        datagram: &[u8],
    ) -> ChallengeAnswer {
        if !self.key.is_answer(now, from, datagram) {
            return ChallengeAnswer::No;
        }
        if !self.peer.have_signed(datagram) {
            return ChallengeAnswer::Unsigned;
        }
        let proves = self.validation == Validation::ByChallenge;
        if let Some(remote) = self.find(from) {
            remote.answered = true;
            match &mut remote.proven {
                Some(consent) => consent.renew(now),
                None if proves => remote.prove(now),
                None => {}
            }
        }
        ChallengeAnswer::OfPeer
    }

    /// The DTLS handshake is complete, which proves the address that it was sent to.
    pub(super) fn handshake_completed(&mut self, now: Instant) {
        if let HandshakeTo::One(address) = self.handshake_to {
            self.validated(address, now);
        }
    }

    /// The peer has proved that it receives at this address.
    pub(super) fn validated(&mut self, address: SocketAddr, now: Instant) {
        if let Some(remote) = self.find(address) {
            remote.prove(now);
            // Nothing may be sent there for long, and its liveness has to be checked all the same.
            self.proven.get_or_insert(address);
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
            self.used_since_check = false;
        }
        room
    }

    /// What to do with datagrams beyond the limit. Those to an address that an attacker has added
    /// must not hold up those to the peer.
    pub(super) fn excess(&self) -> Excess {
        match self.addresses.iter().any(|remote| remote.proven.is_some()) {
            true => Excess::Drop,
            false => Excess::Hold,
        }
    }

    /// Datagrams were sent.
    pub(super) fn sent(&mut self, address: SocketAddr, contents: &[u8]) {
        if self.proven == Some(address) {
            self.used_since_check = true;
            return;
        }
        if let Some(remote) = self.find(address) {
            remote.sent = remote.sent.saturating_add(contents.len() as u64);
        }
        // RFC 7983: STUN. The first is the response to the peer's first check, after which the
        // challenge follows.
        if matches!(contents.first(), Some(0..=3)) && self.is_unchecked(address) {
            self.challenge_next = Some(address);
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

    /// Whether the address is the first of the peer and has never been challenged.
    fn is_unchecked(&self, address: SocketAddr) -> bool {
        self.addresses.first().is_some_and(|first| {
            first.address == address && first.proven.is_none() && first.challenged.is_none()
        })
    }

    /// Requests a challenge: datagrams wait for the proof of this address.
    pub(super) fn request_challenge(&mut self, address: SocketAddr) {
        self.challenge_next = Some(address);
    }

    /// Requests a check of the address in use, to test the liveness of the peer. A lite agent sends
    /// no checks of its own, and go-libp2p sends none for up to 17 s.
    pub(super) fn request_check(&mut self) {
        self.check_requested = true;
    }

    /// Whether the consent of the address in use has expired.
    pub(super) fn is_consent_expired(&mut self, now: Instant) -> bool {
        let consent = self.proven.and_then(|address| self.consent(address));
        consent.is_some_and(|consent| consent.is_expired(now))
    }

    fn consent(&mut self, address: SocketAddr) -> Option<&mut Consent> {
        self.find(address)?.proven.as_mut()
    }

    /// The next challenge to send, if one is due. Counts it as sent.
    pub(super) fn next_challenge(&mut self, now: Instant) -> Option<Probe> {
        let check_requested = std::mem::take(&mut self.check_requested);
        if (check_requested || self.used_since_check)
            && let Some(address) = self.proven
            && let Some(consent) = self.consent(address)
            && (check_requested || consent.is_due(now))
        {
            consent.checked(now);
            self.used_since_check = false;
            let source = self.find(address)?.local;
            return Some(Probe {
                source,
                destination: address,
                contents: self.key.challenge(now, address, &self.peer),
            });
        }
        let challenge_next = self.challenge_next.take()?;
        let remote = self
            .addresses
            .iter_mut()
            .find(|a| a.address == challenge_next)?;
        if remote.answered
            || remote
                .challenged
                .is_some_and(|at| now < at + CHALLENGE_INTERVAL)
        {
            return None;
        }
        let contents = self.key.challenge(now, challenge_next, &self.peer);
        if contents.len() > remote.room() {
            return None;
        }
        remote.challenged = Some(now);
        remote.sent = remote.sent.saturating_add(contents.len() as u64);
        Some(Probe {
            source: remote.local,
            destination: challenge_next,
            contents,
        })
    }

    /// Counts a datagram to `address` that bypasses the queue. Returns `false` if it is beyond the
    /// limit.
    pub(super) fn reserve(&mut self, address: SocketAddr, bytes: usize) -> bool {
        if self.room(address) < bytes {
            return false;
        }
        if let Some(remote) = self.find(address) {
            remote.sent = remote.sent.saturating_add(bytes as u64);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::udp::admission::challenge::{success, transaction};
    use crate::ufrag::parse_username;

    fn address(port: u16) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, 1], port))
    }

    fn reachability(validation: Validation) -> Reachability {
        let username = format!("libp2p+webrtc+v2/{PWD}:abcd");
        let credentials = parse_username(&username).expect("well formed");
        let key = Arc::new(ChallengeKey::generate());
        Reachability::new(key, PeerCredentials::from(&credentials), validation)
    }

    /// The password of the peer.
    const PWD: &str = "pppppppppppppppppppppp";

    /// The answer to a challenge, signed with `password`.
    fn answer_to(challenge: &Probe, password: &str) -> Vec<u8> {
        let request = transaction(&challenge.contents).expect("a check");
        success(request, challenge.source, password)
    }

    const STUN: [u8; 100] = [0; 100];
    const DTLS: [u8; 100] = [22; 100];

    #[test]
    fn an_address_gets_three_times_what_it_sent() {
        let mut to = reachability(Validation::ByEngine);
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

    #[tokio::test(start_paused = true)]
    async fn a_completed_handshake_proves_the_address_it_went_to() {
        let mut to = reachability(Validation::ByEngine);
        to.received(address(1), address(9), 100);
        to.sent(address(1), &STUN);
        to.handshake_completed(Instant::now());
        assert_eq!(to.room(address(1)), 200, "no handshake went there");
        to.sent(address(1), &DTLS);
        to.handshake_completed(Instant::now());
        assert_eq!(to.room(address(1)), usize::MAX);
    }

    #[tokio::test(start_paused = true)]
    async fn a_handshake_that_went_to_two_addresses_proves_neither() {
        let mut to = reachability(Validation::ByEngine);
        for port in [1, 2] {
            to.received(address(port), address(9), 100);
            to.sent(address(port), &DTLS);
        }
        to.handshake_completed(Instant::now());
        assert_eq!([to.room(address(1)), to.room(address(2))], [200, 200]);
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_address_is_checked_once_after_the_first_response_to_it() {
        let mut to = reachability(Validation::ByEngine);
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
        for validation in [Validation::ByEngine, Validation::ByChallenge] {
            is_proven_further(validation);
        }
    }

    fn is_proven_further(validation: Validation) {
        let mut to = reachability(validation);
        let now = Instant::now();
        to.received(address(1), address(9), 1000);
        assert!(to.next_challenge(now).is_none(), "the first one has DTLS");
        to.received(address(2), address(9), 1000);
        let challenge = to.next_challenge(now).expect("a challenge");
        assert_eq!(challenge.destination, address(2));
        assert_eq!(challenge.source, address(9));
        assert_eq!(to.room(address(2)), 3000 - challenge.contents.len());
        to.request_challenge(address(2));
        assert!(to.next_challenge(now).is_none(), "not so soon again");
        to.request_challenge(address(2));
        assert!(to.next_challenge(now + CHALLENGE_INTERVAL).is_some());

        let answer = answer_to(&challenge, PWD);
        assert_eq!(
            to.take_answer(now, address(1), &answer),
            ChallengeAnswer::No
        );
        let unsigned = answer_to(&challenge, "that of somebody else");
        assert_eq!(
            to.take_answer(now, address(2), &unsigned),
            ChallengeAnswer::Unsigned
        );
        let room = to.room(address(2));
        assert!(room < 3000);
        assert_eq!(
            to.take_answer(now, address(2), &answer),
            ChallengeAnswer::OfPeer
        );
        if validation == Validation::ByEngine {
            assert_eq!(to.room(address(2)), room, "anybody may have the password");
            to.validated(address(2), now);
        }
        assert_eq!(to.room(address(2)), usize::MAX);
        assert_eq!(to.room(address(1)), 3000);
        assert_eq!(to.excess(), Excess::Drop);
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_that_is_sent_to_is_asked_for_its_consent() {
        let mut to = reachability(Validation::ByEngine);
        let start = Instant::now();
        to.received(address(1), address(9), 1000);
        to.sent(address(1), &DTLS);
        to.handshake_completed(start);
        assert_eq!(to.room(address(1)), usize::MAX);
        let later = start + Duration::from_secs(3600);
        assert!(to.next_challenge(later).is_none(), "nothing was sent");
        to.sent(address(1), &DTLS);
        let challenge = to.next_challenge(later).expect("a question");
        assert_eq!(challenge.destination, address(1));
        let answer = answer_to(&challenge, PWD);
        assert_eq!(
            to.take_answer(later, address(1), &answer),
            ChallengeAnswer::OfPeer
        );
        let mut asked = 0;
        for second in 0..40 {
            to.sent(address(1), &DTLS);
            let now = later + Duration::from_secs(second);
            assert_eq!(to.is_consent_expired(now), second >= 35, "{second}");
            asked += usize::from(to.next_challenge(now).is_some());
        }
        assert_eq!(asked, 35);
    }

    #[tokio::test(start_paused = true)]
    async fn checks_from_a_further_address_wait_for_its_proof() {
        let mut to = reachability(Validation::ByEngine);
        let now = Instant::now();
        for port in [1, 2] {
            to.received(address(port), address(9), 1000);
        }
        assert!(!to.withholds(address(1), &STUN), "the first one has DTLS");
        assert!(!to.withholds(address(2), &DTLS), "which proves itself");
        assert!(to.withholds(address(2), &STUN));
        let challenge = to.next_challenge(now).expect("a challenge");
        assert!(to.withholds(address(2), &STUN));
        let answer = answer_to(&challenge, PWD);
        assert_eq!(
            to.take_answer(now, address(2), &answer),
            ChallengeAnswer::OfPeer
        );
        assert!(!to.withholds(address(2), &STUN));
    }

    #[tokio::test(start_paused = true)]
    async fn a_challenge_keeps_to_the_limit_too() {
        let mut to = reachability(Validation::ByEngine);
        to.received(address(1), address(9), 20);
        to.request_challenge(address(1));
        assert!(to.next_challenge(Instant::now()).is_none());
    }
}
