//! Path validation of a peer's further addresses (RFC 9000 section 8.2).
//!
//! A nonce goes to the address in a HEARTBEAT under DTLS, and has to be returned from there. With
//! less proof a connection could be directed at somebody else: at any STUN server, which answers a
//! check, or at a listener of webrtc-direct, which derives the password of a check from its
//! USERNAME.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::engine::MAX_ADDRESSES;
use anabranch_sctp::Nonce;

/// Interval of the first two HEARTBEATs to an address. It doubles each time, as the peer may still
/// be choosing the path of its response.
const INTERVAL: Duration = Duration::from_millis(250);

/// HEARTBEATs per nomination, sent within 8 s.
const ATTEMPTS: u32 = 6;

/// How long an address that is not in use stays validated. Afterwards it may belong to somebody
/// else.
const LIFETIME: Duration = Duration::from_secs(30);

/// Addresses nominated by a peer, at most [`MAX_ADDRESSES`].
#[derive(Debug, Default)]
pub struct Validations {
    entries: Vec<Validation>,
    /// Challenged addresses without a response: mostly none.
    pending: usize,
}

#[derive(Debug)]
struct Validation {
    address: SocketAddr,
    state: State,
}

#[derive(Debug, Clone, Copy)]
enum State {
    Pending {
        nonce: Nonce,
        /// The peer's priority of the address.
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
        self.entries
            .iter_mut()
            .find(|known| known.address == address)
    }

    fn set(&mut self, address: SocketAddr, state: State) {
        let is_full = self.entries.len() >= MAX_ADDRESSES;
        match self.find(address) {
            Some(known) => known.state = state,
            // The router accepts as many from one peer, and no more.
            None if is_full => return,
            None => self.entries.push(Validation { address, state }),
        }
        let is_pending = |known: &&Validation| matches!(known.state, State::Pending { .. });
        self.pending = self.entries.iter().filter(is_pending).count();
    }

    /// Marks `address` as validated.
    pub fn set_valid(&mut self, now: Instant, address: SocketAddr) {
        self.set(address, State::Valid { since: now });
    }

    /// Whether `address` was validated recently.
    pub fn is_valid(&mut self, now: Instant, address: SocketAddr) -> bool {
        self.find(address).is_some_and(|known| match known.state {
            State::Valid { since } => now < since + LIFETIME,
            State::Pending { .. } => false,
        })
    }

    /// Starts to challenge the nominated `address`, unless that is under way.
    pub fn challenge(&mut self, now: Instant, address: SocketAddr, priority: u32) {
        let mut state = State::Pending {
            nonce: rand::random(),
            priority,
            attempts: 0,
            next: now,
        };
        if let Some(known) = self.find(address)
            && let State::Pending {
                nonce,
                attempts,
                next,
                ..
            } = known.state
            && attempts < ATTEMPTS
        {
            state = State::Pending {
                nonce,
                priority,
                attempts,
                next,
            };
        }
        self.set(address, state);
    }

    /// Whether a challenge to `address` is pending.
    pub fn is_pending(&self, address: SocketAddr) -> bool {
        self.pending > 0
            && self.entries.iter().any(|known| {
                known.address == address && matches!(known.state, State::Pending { .. })
            })
    }

    /// Handles a response from `address`. Returns the priority of its nomination if the nonce is
    /// right.
    pub fn confirm(&mut self, now: Instant, address: SocketAddr, answer: Nonce) -> Option<u32> {
        let State::Pending {
            nonce, priority, ..
        } = self.find(address)?.state
        else {
            return None;
        };
        if nonce != answer {
            return None;
        }
        self.set_valid(now, address);
        Some(priority)
    }

    /// Takes the next challenge that is due.
    pub fn next_challenge(&mut self, now: Instant) -> Option<(SocketAddr, Nonce)> {
        if self.pending == 0 {
            return None;
        }
        for known in &mut self.entries {
            if let State::Pending {
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

    /// When the next challenge becomes due.
    pub fn next_timeout(&self, now: Instant) -> Option<Instant> {
        if self.pending == 0 {
            return None;
        }
        let times = self.entries.iter().filter_map(|known| match known.state {
            State::Pending { attempts, next, .. } if attempts < ATTEMPTS && next > now => {
                Some(next)
            }
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
        let mut entries = Validations::default();
        assert!(entries.next_challenge(now).is_none());
        entries.challenge(now, address(1), 7);
        entries.challenge(now, address(2), 8);
        let (first, nonce) = entries.next_challenge(now).expect("a question");
        assert_eq!(first, address(1));
        let (second, other) = entries.next_challenge(now).expect("another");
        assert_eq!(second, address(2));
        assert_ne!(nonce, other);
        assert_eq!(
            entries.confirm(now, address(2), nonce),
            None,
            "from elsewhere"
        );
        assert_eq!(entries.confirm(now, address(3), nonce), None, "never asked");
        assert!(entries.is_pending(address(1)) && !entries.is_valid(now, address(1)));
        assert_eq!(entries.confirm(now, address(1), nonce), Some(7));
        assert!(!entries.is_pending(address(1)) && entries.is_valid(now, address(1)));
        assert_eq!(
            entries.confirm(now, address(1), nonce),
            None,
            "said already"
        );
        assert!(!entries.is_valid(now + LIFETIME, address(1)), "long ago");
    }

    #[test]
    fn a_question_is_repeated_and_given_up_until_the_address_is_nominated_again() {
        let start = Instant::now();
        let mut entries = Validations::default();
        entries.challenge(start, address(1), 7);
        let (mut now, mut challenged) = (start, Vec::new());
        loop {
            while let Some((_, nonce)) = entries.next_challenge(now) {
                challenged.push(((now - start).as_millis(), nonce));
            }
            // Further nominations change nothing.
            entries.challenge(now, address(1), 7);
            let Some(next) = entries.next_timeout(now) else {
                break;
            };
            now = next;
            if challenged.len() == 6 {
                break;
            }
        }
        let times: Vec<_> = challenged.iter().map(|(at, _)| *at).collect();
        assert_eq!(times, [0, 250, 750, 1750, 3750, 7750]);
        assert!(
            challenged
                .iter()
                .all(|(_, nonce)| *nonce == challenged[0].1)
        );
        entries.challenge(now, address(1), 7);
        let (_, nonce) = entries.next_challenge(now).expect("asked anew");
        assert_ne!(nonce, challenged[0].1);
    }

    #[test]
    fn no_more_addresses_are_asked_than_a_connection_has() {
        let now = Instant::now();
        let mut entries = Validations::default();
        for port in 0..1000 {
            entries.challenge(now, address(port), 1);
        }
        let challenged = std::iter::from_fn(|| entries.next_challenge(now)).count();
        assert_eq!(challenged, MAX_ADDRESSES);
    }
}
