//! First contacts and answers to challenges, by honest and hostile hosts, checked against a model
//! of the validated addresses.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::time::Instant;

use super::challenge::{PeerCredentials, success, transaction};
use super::{Admission, Limits, PROOF_LIFETIME, Slot, Verdict};
use crate::rates::{Prefix, RateLimit};
use crate::ufrag::{ServerCredentials, parse_username};
use anabranch_testkit::fuzzing::Input;

/// Maximum steps of an input.
const MAX_STEPS: usize = 400;

const LIMITS: Limits = Limits {
    max_handshakes: 16,
    max_handshakes_per_prefix: 4,
    rate: RateLimit::new(Duration::from_secs(5), 6),
    site_rate: RateLimit::new(Duration::from_secs(1), 20),
    limit_loopback: true,
};

/// Credentials of one of three users.
fn user(input: &mut Input<'_>) -> ServerCredentials {
    let letter = input.pick(&["a", "b", "c"]);
    let username = format!("libp2p+webrtc+v2/{}:abcd", letter.repeat(22));
    parse_username(&username).expect("well formed")
}

/// One of 36 addresses of 12 hosts.
fn source(input: &mut Input<'_>) -> SocketAddr {
    SocketAddr::from((
        [10, 0, 0, input.u8() % 12],
        1000 + u16::from(input.u8() % 3),
    ))
}

/// An accepted answer to a challenge, which validates its source for a user.
struct Proof {
    source: SocketAddr,
    password: String,
    at: Instant,
}

struct Model {
    slots: Vec<(Slot, Prefix)>,
    proofs: Vec<Proof>,
}

impl Model {
    fn has_proof(&self, now: Instant, source: SocketAddr, password: &str) -> bool {
        self.proofs.iter().any(|proof| {
            proof.source == source && proof.password == password && now < proof.at + PROOF_LIFETIME
        })
    }

    /// Records a slot, and checks that it was free: half of the slots are reserved for validated
    /// addresses.
    fn admitted(&mut self, slot: Slot, source: SocketAddr, is_proven: bool) {
        let prefix = Prefix::of(source.ip());
        let taken = self.slots.len();
        let of_prefix = self.slots.iter().filter(|(_, of)| *of == prefix).count();
        let divisor = if is_proven { 1 } else { 2 };
        assert!(
            taken < LIMITS.max_handshakes / divisor,
            "{taken} slots are taken"
        );
        let max = LIMITS.max_handshakes_per_prefix / divisor;
        assert!(of_prefix < max, "{of_prefix} slots of the prefix are taken");
        self.slots.push((slot, prefix));
    }
}

/// Runs the steps encoded in `bytes`.
///
/// # Panics
/// If a contact is admitted beyond the limits, a genuine answer is rejected, a forged one is
/// accepted, or a slot is left at the end.
pub(super) fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let admission = std::sync::Arc::new(Admission::new(LIMITS));
    let mut now = Instant::now();
    let mut model = Model {
        slots: Vec::new(),
        proofs: Vec::new(),
    };
    for _ in 0..MAX_STEPS {
        if input.is_empty() {
            break;
        }
        match input.below(8) {
            0..=2 => {
                let (source, user) = (source(&mut input), user(&mut input));
                let password = &user.remote_pwd;
                let is_proven = model.has_proof(now, source, password);
                if let Verdict::Admitted(slot) = admission.admit(now, source, "a:b", password) {
                    model.admitted(slot, source, is_proven);
                }
            }
            3..=5 => answer(&mut input, &admission, now, &mut model),
            6 => now += Duration::from_millis(input.pick(&[1, 200, 4999, 5000, 14_000, 30_000])),
            _ if !model.slots.is_empty() => {
                let index = input.below(model.slots.len());
                model.slots.swap_remove(index);
            }
            _ => {}
        }
    }
    model.slots.clear();
    assert!(admission.is_idle(), "a slot is left");
}

/// Takes an answer to a challenge, genuine or not.
fn answer(input: &mut Input<'_>, admission: &Admission, now: Instant, model: &mut Model) {
    let (source, asked, signer) = (source(input), user(input), user(input));
    let peer = PeerCredentials::from(&asked);
    let check = admission.key().challenge(now, source, &peer);
    let transaction = transaction(&check).expect("a check");
    let mut answer = success(transaction, source, &signer.remote_pwd);
    match input.below(6) {
        0 | 1 => {
            assert!(admission.take_answer(now, source, &answer), "an answer");
            model.proofs.push(Proof {
                source,
                password: signer.remote_pwd,
                at: now,
            });
        }
        2 => {
            // As of a public STUN server: the header and one address attribute of 12 bytes.
            answer.truncate(32);
            answer[2..4].copy_from_slice(&[0, 12]);
            assert!(admission.take_answer(now, source, &answer), "an answer");
        }
        3 => {
            let mut other = source;
            other.set_port(source.port() + 10);
            assert!(
                !admission.take_answer(now, other, &answer),
                "an answer from another address"
            );
        }
        4 => {
            // Invalidates MESSAGE-INTEGRITY, which does not cover the bytes after it.
            let covered = answer.len() - 32;
            let at = input.below(covered);
            answer[at] ^= input.u8() | 1;
            admission.take_answer(now, source, &answer);
        }
        _ => {
            let length = input.below(64);
            let taken = admission.take_answer(now, source, input.take(length));
            assert!(!taken, "arbitrary bytes are no answer");
        }
    }
}
