//! How much a listener sends to an address that nobody has shown to receive at.
//!
//! The source of a datagram can be forged, and the answer to a ClientHello, with a certificate and
//! repeated while nobody acknowledges it, is much longer than that. So no address gets more than
//! three times what came from it (RFC 9000 section 8.1 does the same), until it is proven: what came back from there
//! can be known to nobody but the peer who receives there.
//! - It completed the DTLS handshake, which nobody can who does not receive the server's part.
//! - Or the engine had a nonce back from there that only the peer can read ([`Validation::ByEngine`]).
//! - Or, with an engine that has no such nonce, it answered a challenge (`endpoint/admission/challenge.rs`) with the
//!   password of the peer ([`Validation::ByChallenge`]).
//!
//! An answered challenge alone is not enough where there is a better proof: the password of version 1 is the ufrag, from
//! which every listener of webrtc-direct derives it, so a forger could direct a connection at one of these.
//!
//! An honest handshake stays below the limit and pays nothing for it. The further addresses of a connection matter: a peer
//! that forges its nomination could direct all that a connection sends at somebody else.
//!
//! And whoever reads a check on its way knows all that a nomination is made of: one that is forged, with a
//! PRIORITY above the real one, would move the connection to where nobody is, and the peer would hear nothing
//! any more. So ICE is not told of checks from a further address before that has answered a challenge.
//!
//! The first address is challenged too, once, after the first response to it. pion nominates a pair at its next
//! tick of 200 ms, or at once when a check of the peer arrives after its own has succeeded: without one
//! each dial of pion and go-libp2p took 206 to 221 ms, with it 6 to 14 ms.
//!
//! And the same check asks a peer that has been silent for a while for a sign of life (go-libp2p sends its own only
//! after 15 s without traffic), and the address that is sent to for its consent ([`Consent`]).

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anabranch_rtc::Probe;
use tokio::time::Instant;

use super::consent::Consent;
use crate::udp::admission::challenge::{ChallengeKey, PeerCredentials};

/// What may be sent for each byte received.
const FACTOR: u64 = 3;

/// Time between two challenges of one address.
const CHALLENGE_INTERVAL: Duration = Duration::from_millis(250);

/// Longest check that is kept until its address has answered: those of all known peers are shorter. Beyond it the
/// repetition is waited for.
const MAX_WITHHELD: usize = 256;

/// Who finds out whether the peer receives at an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Validation {
    /// The engine, which says so with [`Reachability::validated`].
    ByEngine,
    /// Nobody does better than a challenge.
    ByChallenge,
}

/// The addresses of a peer. As many as its router takes at the most.
#[derive(Debug)]
pub(super) struct Reachability {
    key: Arc<ChallengeKey>,
    peer: PeerCredentials,
    validation: Validation,
    addresses: Vec<Remote>,
    /// The proven address that was looked up last; most of the time it is the only one.
    proven: Option<SocketAddr>,
    /// Something was sent to that since it was last asked for its consent.
    is_used: bool,
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
    /// It has answered a challenge: ICE may hear of its checks.
    answered: bool,
    /// There is no limit to what it gets, as long as it consents.
    proven: Option<Consent>,
    challenged: Option<Instant>,
    /// The last check that waits for the answer.
    withheld: Option<Box<[u8]>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum HandshakeTo {
    Nobody,
    One(SocketAddr),
    /// It is not known who of them received it.
    Several,
}

/// What is to become of datagrams to an address for which there is no room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Beyond {
    /// They are part of the handshake, and wait until more has come from there.
    Held,
    /// They are as good as lost: the connection is elsewhere.
    Lost,
}

/// What the answer to a challenge was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    /// None.
    No,
    /// One that proves nothing.
    Unsigned,
    /// One of the peer.
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
            is_used: false,
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
            answered: false,
            proven: None,
            challenged: None,
            withheld: None,
        });
    }

    /// Whether a datagram is a check that has to wait until the address it comes from has answered, which is then
    /// asked for: see [`Self::take_withheld`].
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
        self.wanted = Some(from);
        true
    }

    /// The check that was withheld from an address, if that has answered now. The peer would not repeat it before
    /// its timer runs out, and it may move the connection to where the peer is now.
    pub(super) fn take_withheld(&mut self, from: SocketAddr) -> Option<Box<[u8]>> {
        let remote = self.find(from).filter(|remote| remote.answered)?;
        remote.withheld.take()
    }

    /// Takes in a datagram that may answer a challenge.
    pub(super) fn take_answer(
        &mut self,
        now: Instant,
        from: SocketAddr,
        datagram: &[u8],
    ) -> Answer {
        if !self.key.is_answer(now, from, datagram) {
            return Answer::No;
        }
        if !self.peer.have_signed(datagram) {
            return Answer::Unsigned;
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
        Answer::OfPeer
    }

    /// The DTLS handshake is complete.
    pub(super) fn handshake_completed(&mut self, now: Instant) {
        if let HandshakeTo::One(address) = self.handshake_to {
            self.validated(address, now);
        }
    }

    /// The peer receives at this address.
    pub(super) fn validated(&mut self, address: SocketAddr, now: Instant) {
        if let Some(remote) = self.find(address) {
            remote.prove(now);
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
            self.is_used = false;
        }
        room
    }

    /// What becomes of that for which there is no room. Something for an address that a forger has added must not hold up
    /// what goes to where the peer is.
    pub(super) fn beyond(&self) -> Beyond {
        match self.addresses.iter().any(|remote| remote.proven.is_some()) {
            true => Beyond::Lost,
            false => Beyond::Held,
        }
    }

    /// Datagrams went out.
    pub(super) fn sent(&mut self, address: SocketAddr, contents: &[u8]) {
        if self.proven == Some(address) {
            self.is_used = true;
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
            first.address == address && first.proven.is_none() && first.challenged.is_none()
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

    /// Whether the address that is sent to has not consented to it for too long.
    pub(super) fn is_unwanted(&mut self, now: Instant) -> bool {
        let consent = self.proven.and_then(|address| self.consent(address));
        consent.is_some_and(|consent| consent.is_expired(now))
    }

    fn consent(&mut self, address: SocketAddr) -> Option<&mut Consent> {
        self.find(address)?.proven.as_mut()
    }

    /// The challenge to send now, if there is one. Counts it as sent.
    pub(super) fn next_challenge(&mut self, now: Instant) -> Option<Probe> {
        let asks = std::mem::take(&mut self.asks);
        if (asks || self.is_used)
            && let Some(address) = self.proven
            && let Some(consent) = self.consent(address)
            && (asks || consent.is_due(now))
        {
            consent.asked(now);
            self.is_used = false;
            let source = self.find(address)?.local;
            return Some(Probe {
                source,
                destination: address,
                contents: self.key.challenge(now, address, &self.peer),
            });
        }
        let wanted = self.wanted.take()?;
        let remote = self.addresses.iter_mut().find(|a| a.address == wanted)?;
        if remote.answered
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
        Some(Probe {
            source: remote.local,
            destination: wanted,
            contents,
        })
    }

    /// Counts a datagram to `address` that was sent past the queue; `false` if there is no room for it.
    pub(super) fn take_room(&mut self, address: SocketAddr, bytes: usize) -> bool {
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

    /// Of the peer.
    const PWD: &str = "pppppppppppppppppppppp";

    /// What who has this password says to a challenge.
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
        to.want(address(2));
        assert!(to.next_challenge(now).is_none(), "not so soon again");
        to.want(address(2));
        assert!(to.next_challenge(now + CHALLENGE_INTERVAL).is_some());

        let answer = answer_to(&challenge, PWD);
        assert_eq!(to.take_answer(now, address(1), &answer), Answer::No);
        let unsigned = answer_to(&challenge, "that of somebody else");
        assert_eq!(to.take_answer(now, address(2), &unsigned), Answer::Unsigned);
        let room = to.room(address(2));
        assert!(room < 3000);
        assert_eq!(to.take_answer(now, address(2), &answer), Answer::OfPeer);
        if validation == Validation::ByEngine {
            assert_eq!(to.room(address(2)), room, "anybody may have the password");
            to.validated(address(2), now);
        }
        assert_eq!(to.room(address(2)), usize::MAX);
        assert_eq!(to.room(address(1)), 3000);
        assert_eq!(to.beyond(), Beyond::Lost);
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
        assert_eq!(to.take_answer(later, address(1), &answer), Answer::OfPeer);
        let mut asked = 0;
        for second in 0..40 {
            to.sent(address(1), &DTLS);
            let now = later + Duration::from_secs(second);
            assert_eq!(to.is_unwanted(now), second >= 35, "{second}");
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
        assert_eq!(to.take_answer(now, address(2), &answer), Answer::OfPeer);
        assert!(!to.withholds(address(2), &STUN));
    }

    #[tokio::test(start_paused = true)]
    async fn a_challenge_keeps_to_the_limit_too() {
        let mut to = reachability(Validation::ByEngine);
        to.received(address(1), address(9), 20);
        to.want(address(1));
        assert!(to.next_challenge(Instant::now()).is_none());
    }
}
