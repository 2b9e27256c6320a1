//! Which further addresses of a peer it has shown to receive at (path validation, RFC 9000 section 8.2).
//!
//! A nonce goes there in a HEARTBEAT below DTLS, and has to come back from there. A connection that moved on less could be
//! directed at somebody else: at any STUN server, which answers a check, or at a listener of webrtc-direct, which derives
//! the password of a check from its USERNAME.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::engine::MAX_ADDRESSES;
use anabranch_sctp::Nonce;

/// Time between the first two HEARTBEATs to an address; doubled each time, as the peer may still be about to choose
/// the path by which it answers.
const INTERVAL: Duration = Duration::from_millis(250);

/// HEARTBEATs to an address for one nomination: within 8 s.
const ATTEMPTS: u32 = 6;

/// How long an address that is not in use counts as validated. Later it may be another's.
const LIFETIME: Duration = Duration::from_secs(30);

/// The addresses that a peer has nominated, [`MAX_ADDRESSES`] at the most.
#[derive(Debug, Default)]
pub struct Validations {
    of: Vec<Validation>,
    /// Addresses that were asked and have not answered: none, most of the time.
    pending: usize,
}

#[derive(Debug)]
struct Validation {
    address: SocketAddr,
    state: State,
}

#[derive(Debug, Clone, Copy)]
enum State {
    Asked {
        nonce: Nonce,
        /// How much the peer prefers the address.
        priority: u32,
        attempts: u32,
        next: Instant,
    },
    Valid {
        since: Instant,
    },
}

impl Validations {
    fn find(&mut self, address: SocketAddr) -> Option<&mut Validation> {
        self.of.iter_mut().find(|known| known.address == address)
    }

    fn set(&mut self, address: SocketAddr, state: State) {
        let is_full = self.of.len() >= MAX_ADDRESSES;
        match self.find(address) {
            Some(known) => known.state = state,
            // The router takes as many from one peer, and no more.
            None if is_full => return,
            None => self.of.push(Validation { address, state }),
        }
        let is_pending = |known: &&Validation| matches!(known.state, State::Asked { .. });
        self.pending = self.of.iter().filter(is_pending).count();
    }

    /// The peer receives at `address`.
    pub fn prove(&mut self, now: Instant, address: SocketAddr) {
        self.set(address, State::Valid { since: now });
    }

    /// Whether the peer has shown lately that it receives at `address`.
    pub fn is_valid(&mut self, now: Instant, address: SocketAddr) -> bool {
        self.find(address).is_some_and(|known| match known.state {
            State::Valid { since } => now < since + LIFETIME,
            State::Asked { .. } => false,
        })
    }

    /// Asks `address`, which the peer has nominated, unless that is being done.
    pub fn ask(&mut self, now: Instant, address: SocketAddr, priority: u32) {
        let mut state = State::Asked {
            nonce: rand::random(),
            priority,
            attempts: 0,
            next: now,
        };
        if let Some(known) = self.find(address)
            && let State::Asked {
                nonce,
                attempts,
                next,
                ..
            } = known.state
            && attempts < ATTEMPTS
        {
            state = State::Asked {
                nonce,
                priority,
                attempts,
                next,
            };
        }
        self.set(address, state);
    }

    /// Whether an answer of `address` is waited for.
    pub fn expects(&self, address: SocketAddr) -> bool {
        self.pending > 0
            && self
                .of
                .iter()
                .any(|known| known.address == address && matches!(known.state, State::Asked { .. }))
    }

    /// `answer` came from `address`. The priority of its nomination, if that was asked for.
    pub fn confirm(&mut self, now: Instant, address: SocketAddr, answer: Nonce) -> Option<u32> {
        let State::Asked {
            nonce, priority, ..
        } = self.find(address)?.state
        else {
            return None;
        };
        if nonce != answer {
            return None;
        }
        self.prove(now, address);
        Some(priority)
    }

    /// The next question, if one is due. Counts it as put.
    pub fn next_question(&mut self, now: Instant) -> Option<(SocketAddr, Nonce)> {
        if self.pending == 0 {
            return None;
        }
        for known in &mut self.of {
            if let State::Asked {
                nonce,
                attempts,
                next,
                ..
            } = &mut known.state
                && *attempts < ATTEMPTS
                && *next <= now
            {
                *next = now + INTERVAL * (1 << *attempts);
                *attempts += 1;
                return Some((known.address, *nonce));
            }
        }
        None
    }

    /// When the next question is due that is not yet.
    pub fn next_timeout(&self, now: Instant) -> Option<Instant> {
        if self.pending == 0 {
            return None;
        }
        let times = self.of.iter().filter_map(|known| match known.state {
            State::Asked { attempts, next, .. } if attempts < ATTEMPTS && next > now => Some(next),
            _ => None,
        });
        times.min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(port: u16) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, 1], port))
    }

    #[test]
    fn an_address_is_valid_once_its_nonce_has_come_back_from_there() {
        let now = Instant::now();
        let mut of = Validations::default();
        assert!(of.next_question(now).is_none());
        of.ask(now, address(1), 7);
        of.ask(now, address(2), 8);
        let (first, nonce) = of.next_question(now).expect("a question");
        assert_eq!(first, address(1));
        let (second, other) = of.next_question(now).expect("another");
        assert_eq!(second, address(2));
        assert_ne!(nonce, other);
        assert_eq!(of.confirm(now, address(2), nonce), None, "from elsewhere");
        assert_eq!(of.confirm(now, address(3), nonce), None, "never asked");
        assert!(of.expects(address(1)) && !of.is_valid(now, address(1)));
        assert_eq!(of.confirm(now, address(1), nonce), Some(7));
        assert!(!of.expects(address(1)) && of.is_valid(now, address(1)));
        assert_eq!(of.confirm(now, address(1), nonce), None, "said already");
        assert!(!of.is_valid(now + LIFETIME, address(1)), "long ago");
    }

    #[test]
    fn a_question_is_repeated_and_given_up_until_the_address_is_nominated_again() {
        let start = Instant::now();
        let mut of = Validations::default();
        of.ask(start, address(1), 7);
        let (mut now, mut asked) = (start, Vec::new());
        loop {
            while let Some((_, nonce)) = of.next_question(now) {
                asked.push(((now - start).as_millis(), nonce));
            }
            // Further nominations change nothing.
            of.ask(now, address(1), 7);
            let Some(next) = of.next_timeout(now) else {
                break;
            };
            now = next;
            if asked.len() == 6 {
                break;
            }
        }
        let times: Vec<_> = asked.iter().map(|(at, _)| *at).collect();
        assert_eq!(times, [0, 250, 750, 1750, 3750, 7750]);
        assert!(asked.iter().all(|(_, nonce)| *nonce == asked[0].1));
        of.ask(now, address(1), 7);
        let (_, nonce) = of.next_question(now).expect("asked anew");
        assert_ne!(nonce, asked[0].1);
    }

    #[test]
    fn no_more_addresses_are_asked_than_a_connection_has() {
        let now = Instant::now();
        let mut of = Validations::default();
        for port in 0..1000 {
            of.ask(now, address(port), 1);
        }
        let asked = std::iter::from_fn(|| of.next_question(now)).count();
        assert_eq!(asked, MAX_ADDRESSES);
    }
}
