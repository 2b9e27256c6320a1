//! First contacts and answers to challenges, of honest and lying hosts, checked against a model of
//! the proofs.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::time::Instant;

use super::challenge::{PeerCredentials, success, transaction};
use super::{Admission, Limits, PROOF_LIFETIME, Slot, Verdict};
use crate::rates::{Prefix, RateLimit};
use crate::ufrag::{ServerCredentials, parse_username};
use anabranch_testkit::fuzzing::Input;

/// Steps of one input.
const MAX_STEPS: usize = 400;

const LIMITS: Limits = Limits {
    max_handshakes: 16,
    max_handshakes_per_prefix: 4,
    rate: RateLimit::new(Duration::from_secs(5), 6),
    site_rate: RateLimit::new(Duration::from_secs(1), 20),
    limit_loopback: true,
};

/// One of a few users with different passwords.
fn user(input: &mut Input<'_>) -> ServerCredentials {
    let letter = input.pick(&["a", "b", "c"]);
    let username = format!("libp2p+webrtc+v2/{}:abcd", letter.repeat(22));
    parse_username(&username).expect("well formed")
}

fn source(input: &mut Input<'_>) -> SocketAddr {
    SocketAddr::from((
        [10, 0, 0, input.u8() % 12],
        1000 + u16::from(input.u8() % 3),
    ))
}

/// A signed answer with the right transaction ID.
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

    fn admitted(&mut self, slot: Slot, source: SocketAddr, is_proven: bool) {
        let prefix = Prefix::of(source.ip());
        let taken = self.slots.len();
        let share = self.slots.iter().filter(|(_, of)| *of == prefix).count();
        let part = if is_proven { 1 } else { 2 };
        assert!(taken < LIMITS.max_handshakes / part, "{taken} are taken");
        let most = LIMITS.max_handshakes_per_prefix / part;
        assert!(share < most, "{share} of its prefix are taken");
        self.slots.push((slot, prefix));
    }
}

/// Runs the steps encoded in `bytes`.
///
/// # Panics
/// If a contact is admitted against the rules, or anything is left at the end.
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
    assert!(admission.is_idle(), "a handshake without a slot");
}

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
            // As from a STUN server: the header, and an address attribute of 12 bytes.
            answer.truncate(32);
            answer[2..4].copy_from_slice(&[0, 12]);
            assert!(admission.take_answer(now, source, &answer), "an answer");
        }
        3 => {
            let mut other = source;
            other.set_port(source.port() + 10);
            assert!(
                !admission.take_answer(now, other, &answer),
                "from elsewhere"
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
            assert!(!taken, "an answer to nothing");
        }
    }
}
