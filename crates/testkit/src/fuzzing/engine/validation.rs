//! Path validation, while addresses are nominated and nonces come back from arbitrary addresses.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::fuzzing::Input;
use anabranch_rtc::{MAX_ADDRESSES, Validations};
use anabranch_sctp::Nonce;

/// Maximum steps of an input.
const MAX_STEPS: usize = 400;

/// Number of addresses: more than one peer may have.
const ADDRESSES: u8 = 48;

/// How long an address stays validated (`docs/reliability.md`).
const LIFETIME: Duration = Duration::from_secs(30);

/// Maximum challenges for one nomination (`docs/reliability.md`).
const MAX_CHALLENGES: u32 = 6;

/// Minimum time between two challenges to one address (`docs/reliability.md`).
const MIN_INTERVAL: Duration = Duration::from_millis(250);

/// The latest challenge to an address.
struct Challenge {
    nonce: Nonce,
    count: u32,
    last: Instant,
}

#[derive(Default)]
struct Model {
    challenges: HashMap<SocketAddr, Challenge>,
    /// Every nonce sent to an address.
    nonces: HashMap<SocketAddr, HashSet<Nonce>>,
    /// When an address was validated last.
    validated: HashMap<SocketAddr, Instant>,
}

/// Runs the steps encoded in `bytes`.
///
/// # Panics
/// If an address counts as validated that has not returned its nonce, or is challenged too often.
pub(crate) fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let mut now = Instant::now();
    let mut validations = Validations::default();
    let mut model = Model::default();
    for _ in 0..MAX_STEPS {
        if input.is_empty() {
            break;
        }
        let address = address(input.u8() % ADDRESSES);
        match input.below(8) {
            0..=2 => validations.challenge(now, address, input.u32()),
            3 => now += Duration::from_millis(input.pick(&[1, 249, 250, 8000, 29_999, 30_000])),
            4 => model.send_challenges(&mut validations, now),
            5 => model.answer(&mut validations, now, address, address),
            6 => {
                let other = self::address(input.u8() % ADDRESSES);
                model.answer(&mut validations, now, address, other);
            }
            _ => {
                let nonce = std::array::from_fn(|_| input.u8());
                let confirmed = validations.confirm(now, address, nonce);
                assert_eq!(confirmed, None, "a guessed nonce");
            }
        }
        model.check(&mut validations, now);
    }
}

fn address(number: u8) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, 1], 1000 + u16::from(number)))
}

impl Model {
    fn send_challenges(&mut self, validations: &mut Validations, now: Instant) {
        for sent in 0.. {
            let Some((to, nonce)) = validations.next_challenge(now) else {
                break;
            };
            assert!(sent < MAX_ADDRESSES, "challenges without end");
            self.nonces.entry(to).or_default().insert(nonce);
            let challenge = self.challenges.entry(to).or_insert(Challenge {
                nonce,
                count: 0,
                last: now,
            });
            if challenge.nonce != nonce {
                *challenge = Challenge {
                    nonce,
                    count: 0,
                    last: now,
                };
            }
            let is_early = challenge.count > 0 && now < challenge.last + MIN_INTERVAL;
            assert!(!is_early, "repeated too soon");
            challenge.count += 1;
            challenge.last = now;
            assert!(challenge.count <= MAX_CHALLENGES, "repeated too often");
        }
        assert!(self.nonces.len() <= MAX_ADDRESSES, "too many addresses");
        let next = validations.next_timeout(now);
        assert!(
            next.is_none_or(|next| next > now),
            "a challenge that stays due"
        );
    }

    /// The nonce of the challenge to `of` comes back from `from`.
    fn answer(
        &mut self,
        validations: &mut Validations,
        now: Instant,
        of: SocketAddr,
        from: SocketAddr,
    ) {
        let Some(Challenge { nonce, .. }) = self.challenges.get(&of) else {
            return;
        };
        let (nonce, is_pending) = (*nonce, validations.is_pending(from));
        if validations.confirm(now, from, nonce).is_some() {
            let was_sent = self.nonces.get(&from).is_some_and(|of| of.contains(&nonce));
            assert!(was_sent, "{from} returned the nonce of another address");
            assert!(is_pending, "no answer was expected of {from}");
            assert!(validations.is_valid(now, from), "{from} is not validated");
            self.validated.insert(from, now);
        }
    }

    fn check(&self, validations: &mut Validations, now: Instant) {
        for number in 0..ADDRESSES {
            let address = address(number);
            let since = self.validated.get(&address);
            let may_be_valid = since.is_some_and(|since| now < *since + LIFETIME);
            let is_valid = validations.is_valid(now, address);
            assert!(may_be_valid || !is_valid, "{address} returned no nonce");
        }
    }
}
