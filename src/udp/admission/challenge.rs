//! STUN messages of a listener that remembers nothing.
//!
//! A challenge is a connectivity check (RFC 8445 section 7.2) whose transaction ID is a keyed hash of the
//! address it goes to. Every dialler is a full ICE agent and answers it, and the answer carries
//! the transaction ID back: so the address is that of somebody who receives there. It is to ICE what a
//! SYN cookie is to TCP, but rides beside the exchange that takes place in any case.
//!
//! That alone would make a peer of every STUN server, each of which answers whoever asks: so an answer counts if it
//! is a success response whose MESSAGE-INTEGRITY was made with the password of the peer.

use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crc::{CRC_32_ISO_HDLC, Crc};
use is::stun::StunMessage;
use tokio::time::Instant;

use crate::ufrag::ServerCredentials;
use anabranch_rtc::sha1_hmac;

/// Two of these is how long an answer is good for.
const PERIOD: Duration = Duration::from_secs(15);

/// Header and magic cookie of a STUN message (RFC 8489 section 5).
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

/// What a FINGERPRINT is XORed with (RFC 8489 section 14.7).
const FINGERPRINT_XOR: u32 = 0x5354_554e;

/// Made once. The crate that reads STUN here makes the table for each message, which takes longer than all
/// the rest.
static CRC: Crc<u32> = Crc::<u32>::new(&CRC_32_ISO_HDLC);

/// Names one exchange; chosen by who asks.
pub(crate) type Transaction = [u8; 12];

/// RFC 8489 has no code for "not now"; that of TURN for "by policy" says it. Not 401, 420 or 500, after
/// which libwebrtc tries again.
const FORBIDDEN: u16 = 403;

/// Loses every conflict of roles: a peer that thinks to be controlled too stays as it is. Not 0, which libjuice,
/// below js-libp2p in Node, takes for none and answers with 400.
const TIE_BREAKER: [u8; 8] = [0, 0, 0, 0, 0, 0, 0, 1];

/// The PRIORITY of a check; any will do, since no candidate comes of it.
const CHECK_PRIORITY: [u8; 4] = [0, 0, 0, 1];

/// Makes challenges, and knows their answers.
pub(crate) struct ChallengeKey {
    /// SipHash with random keys: a transaction ID can not be told without them, and it costs a tenth of
    /// an HMAC, which counts when it is made for a flood.
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

    /// A challenge for the peer at `address`.
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

    /// Whether `datagram`, which came from `address`, answers a challenge that went there. What it proves
    /// [`PeerCredentials::have_signed`] tells.
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

/// What a check towards a dialler is made with.
#[derive(Clone)]
pub(crate) struct PeerCredentials {
    username: String,
    password: String,
}

impl PeerCredentials {
    /// Whether `datagram` is an answer of this peer to a challenge: see [`has_signed`].
    pub(crate) fn have_signed(&self, datagram: &[u8]) -> bool {
        has_signed(datagram, &self.password)
    }
}

// The passwords stay out of logs.
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

/// The error response that says that the listener does not want this peer.
pub(crate) fn refusal(request: Transaction, password: &str) -> Vec<u8> {
    // The hundreds and the rest of the code have a byte each (RFC 8489 section 14.8).
    let mut value = vec![0, 0, (FORBIDDEN / 100) as u8, (FORBIDDEN % 100) as u8];
    value.extend_from_slice(b"Forbidden");
    Writer::new(BINDING_ERROR, request)
        .attribute(ERROR_CODE, &value)
        .finish(password)
}

/// Whether `datagram` is a success response to a check, made with this password (RFC 8445 section 7.2.5).
pub(super) fn has_signed(datagram: &[u8], password: &str) -> bool {
    transaction_of(datagram, BINDING_SUCCESS).is_some()
        && StunMessage::parse(datagram)
            .is_ok_and(|message| message.verify(password.as_bytes(), sha1_hmac))
}

/// Whether `datagram` is a success response that anybody can have signed at all. A STUN server signs none.
pub(super) fn is_signed_success(datagram: &[u8]) -> bool {
    // Without MESSAGE-INTEGRITY a response is not read (RFC 8445 section 7.2.2).
    transaction_of(datagram, BINDING_SUCCESS).is_some() && StunMessage::parse(datagram).is_ok()
}

/// The transaction ID of a STUN message.
pub(crate) fn transaction(datagram: &[u8]) -> Option<Transaction> {
    datagram.get(8..HEADER)?.try_into().ok()
}

/// Whether `datagram` is such a refusal, from somebody who knows the password.
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
        // Longer than 65 535 bytes is none: a USERNAME has two ufrags of 256 at the most.
        let length = u16::try_from(value.len()).unwrap_or_default();
        self.0.extend_from_slice(&name.to_be_bytes());
        self.0.extend_from_slice(&length.to_be_bytes());
        self.0.extend_from_slice(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    /// Announces the length up to and with an attribute of `next` bytes that follows.
    fn announce(&mut self, next: usize) {
        const ATTRIBUTE_HEADER: usize = 4;
        let length = self.0.len() - HEADER + ATTRIBUTE_HEADER + next;
        let length = u16::try_from(length).unwrap_or_default().to_be_bytes();
        if let Some(field) = self.0.get_mut(2..4) {
            field.copy_from_slice(&length);
        }
    }

    /// Adds integrity and fingerprint.
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

    /// What a dialler makes of a check: a success response with the same transaction ID.
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
        // What a STUN server says, which knows no password.
        let bare = Writer::new(BINDING_SUCCESS, [7; 12])
            .attribute(XOR_MAPPED_ADDRESS, &[0, 1, 1, 2, 3, 4, 5, 6]);
        let mut bare = bare.0;
        bare[3] = 12;
        assert!(!peer.have_signed(&bare) && !is_signed_success(&bare));
        let signed = success([7; 12], address(PEER), "another");
        assert!(is_signed_success(&signed), "whose it is shows later");
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
