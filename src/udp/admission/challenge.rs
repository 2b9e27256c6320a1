//! The STUN messages that a listener sends without state.
//!
//! A challenge is a connectivity check (RFC 8445 section 7.2) whose transaction ID is a keyed hash
//! of its destination. Every dialler is a full ICE agent and answers it. The answer returns the
//! transaction ID, and so proves that its sender receives at the address. It is to ICE what a SYN
//! cookie is to TCP, but adds no round trip.
//!
//! Any STUN server answers such a request too. So an answer counts only if it is a success response
//! whose MESSAGE-INTEGRITY has the key of the peer's password.

use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crc::{CRC_32_ISO_HDLC, Crc};
use is::stun::StunMessage;
use tokio::time::Instant;

use crate::ufrag::ServerCredentials;
use anabranch_rtc::sha1_hmac;

/// An answer is valid in the period of its challenge and in the next.
const PERIOD: Duration = Duration::from_secs(15);

/// Length of a STUN header, and the magic cookie (RFC 8489 section 5).
const HEADER: usize = 20;
const MAGIC_COOKIE: [u8; 4] = [0x21, 0x12, 0xa4, 0x42];

const BINDING_REQUEST: [u8; 2] = [0x00, 0x01];
const BINDING_SUCCESS: [u8; 2] = [0x01, 0x01];
const BINDING_ERROR: [u8; 2] = [0x01, 0x11];

// Attributes (RFC 8489 section 18.3, RFC 8445 section 16.1).
const USERNAME: u16 = 0x0006;
const MESSAGE_INTEGRITY: u16 = 0x0008;
const ERROR_CODE: u16 = 0x0009;
const XOR_MAPPED_ADDRESS: u16 = 0x0020;
const PRIORITY: u16 = 0x0024;
const FINGERPRINT: u16 = 0x8028;
const ICE_CONTROLLED: u16 = 0x8029;

/// The value with which a FINGERPRINT is XORed (RFC 8489 section 14.7).
const FINGERPRINT_XOR: u32 = 0x5354_554e;

/// Built once. The crate `is`, which parses STUN here, builds the table for each message, which
/// takes longer than all the rest.
static CRC: Crc<u32> = Crc::<u32>::new(&CRC_32_ISO_HDLC);

/// A STUN transaction ID.
pub(crate) type Transaction = [u8; 12];

/// The error code of a refusal. RFC 8489 has none for it; this is the one of TURN for a policy (RFC
/// 8656). Not 401, 420 or 500, after which libwebrtc tries again.
const FORBIDDEN: u16 = 403;

/// Loses every role conflict: a peer that is controlled too keeps its role. Not 0, which libjuice,
/// used by js-libp2p in Node, takes for a missing attribute and answers with 400.
const TIE_BREAKER: [u8; 8] = [0, 0, 0, 0, 0, 0, 0, 1];

/// The PRIORITY of a challenge. Any value will do: it adds no candidate.
const CHECK_PRIORITY: [u8; 4] = [0, 0, 0, 1];

/// Creates challenges and recognizes their answers.
pub(crate) struct ChallengeKey {
    /// SipHash with random keys: without them a transaction ID can not be predicted. It costs a
    /// tenth of an HMAC, which matters in a flood.
    keys: [RandomState; 2],
    start: Instant,
}

impl std::fmt::Debug for ChallengeKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ChallengeKey")
    }
}

impl ChallengeKey {
    pub(crate) fn generate() -> Self {
        Self {
            keys: [RandomState::new(), RandomState::new()],
            start: Instant::now(),
        }
    }

    fn period(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.start).as_secs() / PERIOD.as_secs()
    }

    fn transaction(&self, address: SocketAddr, period: u64) -> Transaction {
        let [first, second] = self
            .keys
            .each_ref()
            .map(|key| key.hash_one((address, period)).to_be_bytes());
        let mut transaction = [0; 12];
        transaction[..8].copy_from_slice(&first);
        transaction[8..].copy_from_slice(&second[..4]);
        transaction
    }

    /// Creates a challenge for the peer at `address`.
    pub(crate) fn challenge(
        &self,
        now: Instant,
        address: SocketAddr,
        credentials: &PeerCredentials,
    ) -> Vec<u8> {
        let transaction = self.transaction(address, self.period(now));
        Writer::new(BINDING_REQUEST, transaction)
            .attribute(USERNAME, credentials.username.as_bytes())
            .attribute(PRIORITY, &CHECK_PRIORITY)
            .attribute(ICE_CONTROLLED, &TIE_BREAKER)
            .finish(&credentials.password)
    }

    /// Whether `datagram`, received from `address`, answers a challenge that was sent there. It
    /// proves the address only if [`PeerCredentials::have_signed`] holds too.
    pub(crate) fn is_answer(&self, now: Instant, address: SocketAddr, datagram: &[u8]) -> bool {
        let answers = [BINDING_SUCCESS, BINDING_ERROR];
        let Some(transaction) = answers
            .into_iter()
            .find_map(|answer| transaction_of(datagram, answer))
        else {
            return false;
        };
        let period = self.period(now);
        [Some(period), period.checked_sub(1)]
            .into_iter()
            .flatten()
            .any(|period| self.transaction(address, period) == transaction)
    }
}

/// The credentials of a check towards a dialler.
#[derive(Clone)]
pub(crate) struct PeerCredentials {
    username: String,
    password: String,
}

impl PeerCredentials {
    /// Whether this peer has signed the answer `datagram`: see [`has_signed`].
    pub(crate) fn have_signed(&self, datagram: &[u8]) -> bool {
        has_signed(datagram, &self.password)
    }
}

// Without the password, which must not be logged.
impl std::fmt::Debug for PeerCredentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PeerCredentials")
    }
}

impl From<&ServerCredentials> for PeerCredentials {
    fn from(credentials: &ServerCredentials) -> Self {
        Self {
            username: format!("{}:{}", credentials.remote_ufrag, credentials.local_ufrag),
            password: credentials.remote_pwd.clone(),
        }
    }
}

/// The success response to a binding request from `source`.
pub(crate) fn success(request: Transaction, source: SocketAddr, password: &str) -> Vec<u8> {
    // The address XORed with the cookie and the transaction ID (RFC 8489 section 14.2).
    let mut mask = [0; 16];
    mask[..4].copy_from_slice(&MAGIC_COOKIE);
    mask[4..].copy_from_slice(&request);
    let [high, low] = source.port().to_be_bytes();
    let mut value = vec![0, 0, high ^ MAGIC_COOKIE[0], low ^ MAGIC_COOKIE[1]];
    match source.ip() {
        IpAddr::V4(ip) => {
            value[1] = 1;
            value.extend(ip.octets().iter().zip(mask).map(|(byte, mask)| byte ^ mask));
        }
        IpAddr::V6(ip) => {
            value[1] = 2;
            value.extend(ip.octets().iter().zip(mask).map(|(byte, mask)| byte ^ mask));
        }
    }
    Writer::new(BINDING_SUCCESS, request)
        .attribute(XOR_MAPPED_ADDRESS, &value)
        .finish(password)
}

/// The same with a SOFTWARE attribute (RFC 8489 section 14.14).
#[cfg(test)]
pub(super) fn success_with_software(
    request: Transaction,
    source: SocketAddr,
    software: &str,
    password: &str,
) -> Vec<u8> {
    const SOFTWARE: u16 = 0x8022;
    let mut value = vec![0, 1];
    value.extend_from_slice(&source.port().to_be_bytes());
    value.extend_from_slice(&[10, 0, 0, 1]);
    Writer::new(BINDING_SUCCESS, request)
        .attribute(XOR_MAPPED_ADDRESS, &value)
        .attribute(SOFTWARE, software.as_bytes())
        .finish(password)
}

/// The error response with which a listener refuses a connection.
pub(crate) fn refusal(request: Transaction, password: &str) -> Vec<u8> {
    // The hundreds and the rest of the code have a byte each (RFC 8489 section 14.8).
    let mut value = vec![0, 0, (FORBIDDEN / 100) as u8, (FORBIDDEN % 100) as u8];
    value.extend_from_slice(b"Forbidden");
    Writer::new(BINDING_ERROR, request)
        .attribute(ERROR_CODE, &value)
        .finish(password)
}

/// Whether `datagram` is a success response to a check, signed with `password` (RFC 8445 section
/// 7.2.5).
pub(super) fn has_signed(datagram: &[u8], password: &str) -> bool {
    transaction_of(datagram, BINDING_SUCCESS).is_some()
        && StunMessage::parse(datagram)
            .is_ok_and(|message| message.verify(password.as_bytes(), sha1_hmac))
}

/// Whether `datagram` is a success response with MESSAGE-INTEGRITY. Those of a STUN server have
/// none.
pub(super) fn is_signed_success(datagram: &[u8]) -> bool {
    // `StunMessage::parse` rejects a response without MESSAGE-INTEGRITY (RFC 8445 section 7.2.2).
    transaction_of(datagram, BINDING_SUCCESS).is_some() && StunMessage::parse(datagram).is_ok()
}

/// The transaction ID of a STUN message.
pub(crate) fn transaction(datagram: &[u8]) -> Option<Transaction> {
    datagram.get(8..HEADER)?.try_into().ok()
}

/// Whether `datagram` is a [`refusal`], signed with `password`.
pub(crate) fn is_refusal(datagram: &[u8], password: &str) -> bool {
    transaction_of(datagram, BINDING_ERROR).is_some()
        && StunMessage::parse(datagram).is_ok_and(|message| {
            message
                .error_code()
                .is_some_and(|(code, _)| code == FORBIDDEN)
                && message.verify(password.as_bytes(), sha1_hmac)
        })
}

/// The transaction ID of a message of this type.
fn transaction_of(datagram: &[u8], message_type: [u8; 2]) -> Option<Transaction> {
    let header = datagram.get(..HEADER)?;
    (header.starts_with(&message_type) && header.get(4..8)? == MAGIC_COOKIE)
        .then(|| transaction(header))
        .flatten()
}

/// Writes a STUN message.
struct Writer(Vec<u8>);

impl Writer {
    fn new(message_type: [u8; 2], transaction: Transaction) -> Self {
        let mut bytes = Vec::with_capacity(256);
        bytes.extend_from_slice(&message_type);
        // The length; see `announce`.
        bytes.extend_from_slice(&[0, 0]);
        bytes.extend_from_slice(&MAGIC_COOKIE);
        bytes.extend_from_slice(&transaction);
        Self(bytes)
    }

    fn attribute(mut self, name: u16, value: &[u8]) -> Self {
        // No value is longer than 65 535 bytes: a USERNAME has two ufrags of at most 256.
        let length = u16::try_from(value.len()).unwrap_or_default();
        self.0.extend_from_slice(&name.to_be_bytes());
        self.0.extend_from_slice(&length.to_be_bytes());
        self.0.extend_from_slice(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    /// Sets the length in the header, including an attribute of `next` bytes that follows.
    fn announce(&mut self, next: usize) {
        const ATTRIBUTE_HEADER: usize = 4;
        let length = self.0.len() - HEADER + ATTRIBUTE_HEADER + next;
        let length = u16::try_from(length).unwrap_or_default().to_be_bytes();
        if let Some(field) = self.0.get_mut(2..4) {
            field.copy_from_slice(&length);
        }
    }

    /// Adds MESSAGE-INTEGRITY and FINGERPRINT.
    fn finish(mut self, password: &str) -> Vec<u8> {
        self.announce(20);
        let mac = sha1_hmac(password.as_bytes(), &[&self.0]);
        self = self.attribute(MESSAGE_INTEGRITY, &mac);
        self.announce(4);
        let crc = CRC.checksum(&self.0) ^ FINGERPRINT_XOR;
        self.attribute(FINGERPRINT, &crc.to_be_bytes()).0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ufrag::parse_username;

    const PEER: &str = "10.0.0.1:4001";

    fn credentials() -> ServerCredentials {
        let server = format!("libp2p+webrtc+v2/{}", "p".repeat(22));
        parse_username(&format!("{server}:abcd")).expect("well formed")
    }

    fn address(text: &str) -> SocketAddr {
        text.parse().expect("an address")
    }

    /// The answer of a dialler to a check: a success response with the same transaction ID.
    fn answer(check: &[u8], from: SocketAddr) -> Vec<u8> {
        let request = StunMessage::parse(check).expect("a message");
        assert!(request.is_binding_request());
        assert!(request.verify(b"pppppppppppppppppppppp", sha1_hmac));
        let (to, by) = request.split_username().expect("a username");
        assert_eq!((to, by.len()), ("abcd", 39));
        assert!(request.ice_controlled().is_some() && !request.use_candidate());
        success(
            transaction(check).expect("a header"),
            from,
            "pppppppppppppppppppppp",
        )
    }

    #[tokio::test(start_paused = true)]
    async fn the_answer_to_a_challenge_proves_the_address_it_went_to_for_a_while() {
        let key = ChallengeKey::generate();
        let peer = PeerCredentials::from(&credentials());
        let now = Instant::now();
        let check = key.challenge(now, address(PEER), &peer);
        let answer = answer(&check, address(PEER));
        assert!(key.is_answer(now, address(PEER), &answer));
        assert!(key.is_answer(now + PERIOD, address(PEER), &answer));
        assert!(
            !key.is_answer(now + PERIOD * 2, address(PEER), &answer),
            "too late"
        );
        for other in ["10.0.0.1:4002", "10.0.0.2:4001", "[::ffff:10.0.0.2]:4001"] {
            assert!(!key.is_answer(now, address(other), &answer), "{other}");
        }
        assert!(!ChallengeKey::generate().is_answer(now, address(PEER), &answer));
        for length in 0..HEADER {
            assert!(!key.is_answer(now, address(PEER), &answer[..length]));
        }
        assert!(
            !key.is_answer(now, address(PEER), &check),
            "a check is no answer"
        );
        let error = refusal(transaction(&answer).expect("a header"), "any");
        assert!(key.is_answer(now, address(PEER), &error), "an error is");
    }

    #[test]
    fn an_answer_proves_something_if_the_peer_s_password_has_signed_it() {
        let peer = PeerCredentials::from(&credentials());
        let pwd = "p".repeat(22);
        assert!(peer.have_signed(&success([7; 12], address(PEER), &pwd)));
        assert!(!peer.have_signed(&success([7; 12], address(PEER), "another")));
        assert!(!peer.have_signed(&refusal([7; 12], &pwd)), "no success");
        // The response of a STUN server, which has no password.
        let bare = Writer::new(BINDING_SUCCESS, [7; 12])
            .attribute(XOR_MAPPED_ADDRESS, &[0, 1, 1, 2, 3, 4, 5, 6]);
        let mut bare = bare.0;
        bare[3] = 12;
        assert!(!peer.have_signed(&bare) && !is_signed_success(&bare));
        let signed = success([7; 12], address(PEER), "another");
        assert!(is_signed_success(&signed), "the signer is checked later");
        assert!(!is_signed_success(&refusal([7; 12], &pwd)));
    }

    #[test]
    fn what_is_written_is_what_another_implementation_writes() {
        let hmac = |key: &[u8], parts: &[&[u8]]| sha1_hmac(key, parts);
        for from in ["10.0.0.1:4001", "[2001:db8::7:1]:65535"] {
            let ours = success([7; 12], address(from), "password");
            let message = StunMessage::parse(&ours).expect("a message");
            assert_eq!(message.mapped_address(), Some(address(from)));
            let mut theirs = vec![0; 200];
            let length = StunMessage::binding_reply(message.trans_id(), address(from))
                .to_bytes(Some(b"password"), &mut theirs, hmac)
                .expect("room");
            assert_eq!(ours, theirs[..length]);
        }
        let check = ChallengeKey::generate().challenge(
            Instant::now(),
            address(PEER),
            &PeerCredentials::from(&credentials()),
        );
        let message = StunMessage::parse(&check).expect("a message");
        let mut theirs = vec![0; 700];
        let length = message
            .to_bytes(Some(b"pppppppppppppppppppppp"), &mut theirs, hmac)
            .expect("room");
        assert_eq!(check.len(), length);
        assert!(message.verify(b"pppppppppppppppppppppp", sha1_hmac));
    }

    #[test]
    fn a_refusal_is_known_by_the_password() {
        let refused = refusal([7; 12], "a password of the dial");
        assert!(is_refusal(&refused, "a password of the dial"));
        assert!(!is_refusal(&refused, "another"));
        let success = success([7; 12], address(PEER), "a password of the dial");
        assert!(!is_refusal(&success, "a password of the dial"));
        let conflict = Writer::new(BINDING_ERROR, [7; 12])
            .attribute(ERROR_CODE, &[0, 0, 4, 87])
            .finish("a password of the dial");
        assert!(!is_refusal(&conflict, "a password of the dial"));
    }

    #[test]
    fn the_answers_to_a_stranger_are_together_no_longer_than_three_times_its_request() {
        let credentials = credentials();
        let username = format!("{}:abcd", credentials.local_ufrag);
        let request = Writer::new(BINDING_REQUEST, [7; 12])
            .attribute(USERNAME, username.as_bytes())
            .attribute(PRIORITY, &CHECK_PRIORITY)
            .attribute(ICE_CONTROLLED, &TIE_BREAKER)
            .finish(&credentials.local_pwd)
            .len();
        let from = address("[2001:db8::1]:4001");
        let peer = PeerCredentials::from(&credentials);
        let check = ChallengeKey::generate().challenge(Instant::now(), from, &peer);
        let response = success([7; 12], from, &credentials.local_pwd);
        let answers = check.len() + response.len();
        assert!(answers <= 3 * request, "{answers} to {request}");
        let refusal = refusal([7; 12], &credentials.local_pwd);
        assert!(refusal.len() <= request);
    }
}
