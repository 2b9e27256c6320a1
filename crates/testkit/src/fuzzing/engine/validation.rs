//! Which addresses count as those of the peer, whatever is nominated and whatever comes back from where.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::fuzzing::Input;
use anabranch_rtc::{MAX_ADDRESSES, Validations};
use anabranch_sctp::Nonce;

/// Steps of one input.
const MAX_STEPS: usize = 400;

/// Addresses that there are: more than one peer may have.
const ADDRESSES: u8 = 48;

/// How long a proof counts, and how often and how fast one nomination asks (`docs/reliability.md`).
const LIFETIME: Duration = Duration::from_secs(30);
const MOST_QUESTIONS: u32 = 6;
const LEAST_INTERVAL: Duration = Duration::from_millis(250);

/// What an address was asked last.
struct Asked {
    nonce: Nonce,
    count: u32,
    last: Instant,
}

#[derive(Default)]
struct Model {
    asked: HashMap<SocketAddr, Asked>,
    /// All that went to an address.
    nonces: HashMap<SocketAddr, HashSet<Nonce>>,
    proven: HashMap<SocketAddr, Instant>,
}

/// Runs the steps that `bytes` describe.
///
/// # Panics
/// If an address counts that has not shown to receive, or is asked too often.
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
            4 => model.questions(&mut validations, now),
            5 => model.answer(&mut validations, now, address, address),
            6 => {
                let other = self::address(input.u8() % ADDRESSES);
                model.answer(&mut validations, now, address, other);
            }
            _ => {
                let nonce = std::array::from_fn(|_| input.u8());
                assert_eq!(validations.confirm(now, address, nonce), None, "guessed");
            }
        }
        model.check(&mut validations, now);
    }
}

fn address(number: u8) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, 1], 1000 + u16::from(number)))
}

impl Model {
    fn questions(&mut self, validations: &mut Validations, now: Instant) {
        for questions in 0.. {
            let Some((to, nonce)) = validations.next_challenge(now) else {
                break;
            };
            assert!(questions < MAX_ADDRESSES, "questions without end");
            self.nonces.entry(to).or_default().insert(nonce);
            let asked = self.asked.entry(to).or_insert(Asked {
                nonce,
                count: 0,
                last: now,
            });
            if asked.nonce != nonce {
                *asked = Asked {
                    nonce,
                    count: 0,
                    last: now,
                };
            }
            let is_early = asked.count > 0 && now < asked.last + LEAST_INTERVAL;
            assert!(!is_early, "asked again too soon");
            asked.count += 1;
            asked.last = now;
            assert!(asked.count <= MOST_QUESTIONS, "asked too often");
        }
        assert!(self.nonces.len() <= MAX_ADDRESSES, "asked too many");
        let next = validations.next_timeout(now);
        assert!(
            next.is_none_or(|next| next > now),
            "a question that stays due"
        );
    }

    /// The nonce that `of` was asked for comes back from `from`.
    fn answer(
        &mut self,
        validations: &mut Validations,
        now: Instant,
        of: SocketAddr,
        from: SocketAddr,
    ) {
        let Some(Asked { nonce, .. }) = self.asked.get(&of) else {
            return;
        };
        let (nonce, is_pending) = (*nonce, validations.is_pending(from));
        if validations.confirm(now, from, nonce).is_some() {
            let went_there = self.nonces.get(&from).is_some_and(|of| of.contains(&nonce));
            assert!(went_there, "{from} has answered what it was not asked");
            assert!(is_pending, "nothing was expected");
            assert!(validations.is_valid(now, from), "it has answered");
            self.proven.insert(from, now);
        }
    }

    fn check(&self, validations: &mut Validations, now: Instant) {
        for number in 0..ADDRESSES {
            let address = address(number);
            let since = self.proven.get(&address);
            let is_proven = since.is_some_and(|since| now < *since + LIFETIME);
            let is_valid = validations.is_valid(now, address);
            assert!(is_proven || !is_valid, "{address} has shown nothing");
        }
    }
}
