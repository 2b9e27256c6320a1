//! STUN messages of a listener that remembers nothing.
//!
//! A challenge is a connectivity check (RFC 8445 section 7.2) whose transaction ID is a keyed hash of the
//! address it goes to. Every dialler is a full ICE agent and answers it, and the answer carries
//! the transaction ID back: so the address is that of somebody who receives there. It is to ICE what a
//! SYN cookie is to TCP, but rides beside the exchange that takes place in any case.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use is::stun::{StunMessage, StunMessageBuilder, TransId};
use rand::RngExt;
use tokio::time::Instant;

use crate::ufrag::ServerCredentials;
use crate::webrtc::sha1_hmac;

/// Two of these is how long an answer is good for.
const PERIOD: Duration = Duration::from_secs(15);

/// Header and magic cookie of a STUN message (RFC 8489 section 5).
const HEADER: usize = 20;
const MAGIC_COOKIE: [u8; 4] = [0x21, 0x12, 0xa4, 0x42];

const BINDING_SUCCESS: [u8; 2] = [0x01, 0x01];
const BINDING_INDICATION: [u8; 2] = [0x00, 0x11];
const BINDING_ERROR: [u8; 2] = [0x01, 0x11];

/// Longest message made here: two ufrags of 256 characters, and the rest.
const MAX_MESSAGE: usize = 700;

/// RFC 8489 has no code for "not now"; that of TURN for "by policy" says it. Not 401, 420 or 500, after
/// which libwebrtc tries again.
const FORBIDDEN: u16 = 403;

/// Loses every conflict of roles: a peer that thinks to be controlled too stays as it is.
const TIE_BREAKER: u64 = 0;

/// The PRIORITY of a check; any will do, since no candidate comes of it.
const PRIORITY: u32 = 1;

/// Makes challenges, and knows their answers.
pub(crate) struct ChallengeKey {
    key: [u8; 20],
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
            key: rand::rng().random(),
            start: Instant::now(),
        }
    }

    fn period(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.start).as_secs() / PERIOD.as_secs()
    }

    fn transaction(&self, address: SocketAddr, period: u64) -> [u8; 12] {
        let octets = match address.ip() {
            IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
            IpAddr::V6(ip) => ip.octets(),
        };
        let parts = [
            &octets[..],
            &address.port().to_be_bytes(),
            &period.to_be_bytes(),
        ];
        let mac = sha1_hmac(&self.key, &parts);
        let mut transaction = [0; 12];
        transaction.copy_from_slice(&mac[..12]);
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
        let check = StunMessage::binding_request(
            &credentials.username,
            transaction_id(transaction),
            false,
            TIE_BREAKER,
            PRIORITY,
            false,
        );
        to_bytes(check, &credentials.password)
    }

    /// Whether `datagram`, which came from `address`, answers a challenge that went there. It
    /// needs no password: the transaction ID is the secret.
    pub(crate) fn is_answer(&self, now: Instant, address: SocketAddr, datagram: &[u8]) -> bool {
        let Some(transaction) = transaction_of(datagram, BINDING_SUCCESS) else {
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
pub(crate) fn success(request: TransId, source: SocketAddr, password: &str) -> Vec<u8> {
    to_bytes(StunMessage::binding_reply(request, source), password)
}

/// The error response that says that the listener does not want this peer.
pub(crate) fn refusal(request: TransId, password: &str) -> Vec<u8> {
    let message = StunMessageBuilder::new()
        .binding()
        .failure()
        .error_code(FORBIDDEN, "Forbidden")
        .build(request);
    to_bytes(message, password)
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
fn transaction_of(datagram: &[u8], message_type: [u8; 2]) -> Option<[u8; 12]> {
    let header = datagram.get(..HEADER)?;
    (header.starts_with(&message_type) && header.get(4..8)? == MAGIC_COOKIE)
        .then(|| header.get(8..)?.try_into().ok())
        .flatten()
}

/// The crate makes only random ones itself, but reads any.
fn transaction_id(transaction: [u8; 12]) -> TransId {
    let mut header = [0; HEADER];
    header[..2].copy_from_slice(&BINDING_INDICATION);
    header[4..8].copy_from_slice(&MAGIC_COOKIE);
    header[8..].copy_from_slice(&transaction);
    StunMessage::parse(&header).map_or_else(|_| TransId::new(), |message| message.trans_id())
}

fn to_bytes(message: StunMessage<'_>, password: &str) -> Vec<u8> {
    let mut bytes = vec![0; MAX_MESSAGE];
    // Fails only where the buffer is too small, and the parts of a USERNAME were measured.
    let length = message
        .to_bytes(Some(password.as_bytes()), &mut bytes, sha1_hmac)
        .unwrap_or_default();
    bytes.truncate(length);
    bytes
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
        success(request.trans_id(), from, "pppppppppppppppppppppp")
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
    }

    #[test]
    fn a_refusal_is_known_by_the_password() {
        let refused = refusal(TransId::new(), "a password of the dial");
        assert!(is_refusal(&refused, "a password of the dial"));
        assert!(!is_refusal(&refused, "another"));
        let success = success(TransId::new(), address(PEER), "a password of the dial");
        assert!(!is_refusal(&success, "a password of the dial"));
        let conflict = StunMessage::binding_role_conflict_reply(TransId::new());
        assert!(!is_refusal(
            &to_bytes(conflict, "a password of the dial"),
            "a password of the dial"
        ));
    }

    #[test]
    fn the_answers_to_a_stranger_are_together_no_longer_than_three_times_its_request() {
        let credentials = credentials();
        let username = format!("{}:abcd", credentials.local_ufrag);
        let request = StunMessage::binding_request(&username, TransId::new(), true, 1, 1, false);
        let request = to_bytes(request, &credentials.local_pwd).len();
        let from = address("[2001:db8::1]:4001");
        let peer = PeerCredentials::from(&credentials);
        let check = ChallengeKey::generate().challenge(Instant::now(), from, &peer);
        let response = success(TransId::new(), from, &credentials.local_pwd);
        let answers = check.len() + response.len();
        assert!(answers <= 3 * request, "{answers} to {request}");
        let refusal = refusal(TransId::new(), &credentials.local_pwd);
        assert!(refusal.len() <= request);
    }
}
