//! Who may make a listener keep state.
//!
//! ```text
//! first contact ── handshakes full, or the share of its prefix ──────────► dropped
//!      │
//!      ├─ its address is proven ── within the rate of its prefix ────────► admitted
//!      │
//!      └─ not proven ── calm, and within the rate of its prefix ─────────► admitted
//!                  └─── half of the handshakes, or of the share of its
//!                       prefix, taken, or beyond the rate ───────────────► challenged
//! ```
//!
//! In calm times a first contact is admitted at once. The source of a datagram can be forged, so
//! - at most half of the handshakes, and half of the share of a prefix, are for contacts whose address is not
//!   proven; what nobody answers to can not take the other half;
//! - who would be one too many, or too fast, is not turned away but challenged: it gets the response to its
//!   check and a check of ours, and nothing is remembered. An honest peer answers within a round trip,
//!   and its next check is admitted: the nomination, or, where it nominates with its first check as Firefox does
//!   and gets no response to that, the repetition. A forger sees neither.
//!
//! The answer names no user, so it is kept until a check does, whose credentials it must have been signed with: else any
//! STUN server, which answers whoever asks, would prove its address for a forger.
//!
//! So a flood of forged sources costs work, but neither memory nor honest peers their turn: the rates of proven
//! addresses are counted apart from those that a forger can use up. Beyond some thousand challenges
//! a second only who repeats its check is challenged (see [`sightings`]), so that a flood costs little
//! more than its reception. What real addresses can take is
//! limited by the rate and the share of each prefix. Nobody who was admitted is ever evicted.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::rates::{Bucket, Prefix, RateLimit, Rates};

pub(crate) mod challenge;
mod sightings;

use challenge::{ChallengeKey, has_signed, is_signed_success};
use sightings::Sightings;

/// How long an answered challenge is remembered: the next checks of the peer are much closer.
const PROOF_LIFETIME: Duration = Duration::from_secs(5);

/// Longest answer that is kept until a check names its user. With an IPv6 address and a SOFTWARE attribute those of the
/// known peers have less than half of it.
const MAX_ANSWER: usize = 256;

/// Challenges of strangers that were never heard of. Honest ones are far fewer; answering these takes
/// about a twentieth of a core.
const CHALLENGES: RateLimit = RateLimit::new(Duration::from_micros(200), 1000);

/// The limits, as configured.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) max_handshakes: usize,
    pub(crate) max_handshakes_per_prefix: usize,
    pub(crate) rate: RateLimit,
    pub(crate) site_rate: RateLimit,
    pub(crate) limit_loopback: bool,
}

/// What happens to a first contact.
#[derive(Debug)]
pub(crate) enum Verdict {
    /// It may have state, as long as it keeps this.
    Admitted(Slot),
    /// It has to show that it receives at its address.
    Challenged,
    /// There is no room for it, or it has to ask again.
    Dropped,
}

/// Decides about first contacts. Of constant size, but for what `max_handshakes` bounds.
#[derive(Debug)]
pub(crate) struct Admission {
    limits: Limits,
    key: Arc<ChallengeKey>,
    start: Instant,
    book: Mutex<Book>,
}

#[derive(Debug)]
struct Book {
    /// Handshakes under way.
    taken: usize,
    /// The same by prefix. No entry is zero, so there are at most `max_handshakes`.
    by_prefix: HashMap<Prefix, usize>,
    unproven_rates: Rates,
    proven_rates: Rates,
    proofs: Proofs,
    challenges: Bucket,
    sightings: Sightings,
}

impl Admission {
    pub(crate) fn new(limits: Limits) -> Self {
        let rates = || Rates::new(limits.rate, limits.site_rate);
        Self {
            limits,
            key: Arc::new(ChallengeKey::generate()),
            start: Instant::now(),
            book: Mutex::new(Book {
                taken: 0,
                by_prefix: HashMap::new(),
                unproven_rates: rates(),
                proven_rates: rates(),
                proofs: Proofs::default(),
                challenges: Bucket::default(),
                sightings: Sightings::default(),
            }),
        }
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        // Counters and whole entries; nothing under this lock panics.
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes challenges, and knows their answers.
    pub(crate) fn key(&self) -> &Arc<ChallengeKey> {
        &self.key
    }

    fn is_exempt(&self, ip: IpAddr) -> bool {
        ip.to_canonical().is_loopback() && !self.limits.limit_loopback
    }

    /// Decides about a first contact from `source` with this USERNAME, whose sender answers checks with this password.
    pub(crate) fn admit(
        self: &Arc<Self>,
        now: Instant,
        source: SocketAddr,
        username: &str,
        password: &str,
    ) -> Verdict {
        let limits = &self.limits;
        let exempt = self.is_exempt(source.ip());
        let prefix = Prefix::of(source.ip());
        let time = now.saturating_duration_since(self.start);
        let mut book = self.book();
        let share = book.by_prefix.get(&prefix).copied().unwrap_or_default();
        if book.taken >= limits.max_handshakes
            || (!exempt && share >= limits.max_handshakes_per_prefix)
        {
            return Verdict::Dropped;
        }
        if book.proofs.holds(now, source, password) {
            if !exempt && !book.proven_rates.take(time, prefix) {
                return Verdict::Dropped;
            }
            book.proofs.forget(source);
        } else if book.taken >= limits.max_handshakes.div_ceil(2)
            || (!exempt && share >= limits.max_handshakes_per_prefix.div_ceil(2))
            || (!exempt && !book.unproven_rates.take(time, prefix))
        {
            let book = &mut *book;
            if book.challenges.take(time, CHALLENGES) || book.sightings.note(time, source, username)
            {
                return Verdict::Challenged;
            }
            return Verdict::Dropped;
        }
        book.taken += 1;
        *book.by_prefix.entry(prefix).or_default() += 1;
        Verdict::Admitted(Slot {
            admission: Arc::clone(self),
            prefix,
        })
    }

    /// Takes in what may be the answer of a stranger to a challenge; `true` if it is.
    pub(crate) fn take_answer(&self, now: Instant, source: SocketAddr, datagram: &[u8]) -> bool {
        if !self.key.is_answer(now, source, datagram) {
            return false;
        }
        if datagram.len() > MAX_ANSWER || !is_signed_success(datagram) {
            return true;
        }
        let most_of_prefix = if self.is_exempt(source.ip()) {
            usize::MAX
        } else {
            self.limits.max_handshakes_per_prefix
        };
        // Enough for as many as can be admitted, twice.
        let most = self.limits.max_handshakes.saturating_mul(2);
        let mut book = self.book();
        book.proofs
            .insert(now, source, datagram, most, most_of_prefix);
        true
    }

    /// Answers to challenges that are kept.
    #[cfg(test)]
    pub(crate) fn proofs(&self) -> usize {
        self.book().proofs.answers.len()
    }

    /// Whether nothing is under way.
    pub(crate) fn is_idle(&self) -> bool {
        let book = self.book();
        book.taken == 0 && book.by_prefix.is_empty()
    }
}

/// One of the handshakes that may be under way, until it is dropped.
#[derive(Debug)]
pub(crate) struct Slot {
    admission: Arc<Admission>,
    prefix: Prefix,
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut book = self.admission.book();
        book.taken -= 1;
        if let Some(share) = book.by_prefix.get_mut(&self.prefix) {
            *share -= 1;
            if *share == 0 {
                book.by_prefix.remove(&self.prefix);
            }
        }
    }
}

/// Addresses that have answered a challenge and have no state yet.
///
/// Only who receives at an address can enter it, each prefix has a share, and an entry lives for
/// [`PROOF_LIFETIME`]. With the table full no more enter; their next check is challenged again.
#[derive(Debug, Default)]
struct Proofs {
    answers: HashMap<SocketAddr, Answer>,
    by_prefix: HashMap<Prefix, usize>,
    /// Every entry of `answers`, oldest first, and some that were forgotten since.
    order: VecDeque<(Instant, SocketAddr)>,
}

/// An answer to a challenge, of at most [`MAX_ANSWER`] bytes.
#[derive(Debug)]
struct Answer {
    until: Instant,
    datagram: Box<[u8]>,
}

impl Proofs {
    fn insert(
        &mut self,
        now: Instant,
        address: SocketAddr,
        datagram: &[u8],
        most: usize,
        most_of_prefix: usize,
    ) {
        self.expire(now);
        let prefix = Prefix::of(address.ip());
        let share = self.by_prefix.get(&prefix).copied().unwrap_or_default();
        // An address that answers again and again is entered once.
        if self.answers.contains_key(&address)
            || self.answers.len() >= most
            || share >= most_of_prefix
        {
            return;
        }
        // Those that were admitted leave their place in `order` behind.
        if self.order.len() > 2 * most {
            let known = &self.answers;
            self.order.retain(|(until, address)| {
                known
                    .get(address)
                    .is_some_and(|answer| answer.until == *until)
            });
        }
        let until = now + PROOF_LIFETIME;
        let datagram = datagram.into();
        self.answers.insert(address, Answer { until, datagram });
        *self.by_prefix.entry(prefix).or_default() += 1;
        self.order.push_back((until, address));
    }

    fn expire(&mut self, now: Instant) {
        while let Some(&(until, address)) = self.order.front() {
            if until > now {
                break;
            }
            self.order.pop_front();
            // It may have been forgotten, and entered again later.
            let known = self.answers.get(&address);
            if known.is_some_and(|answer| answer.until == until) {
                self.forget(address);
            }
        }
    }

    /// Whether who has this password has answered at this address.
    fn holds(&self, now: Instant, address: SocketAddr, password: &str) -> bool {
        self.answers
            .get(&address)
            .is_some_and(|answer| answer.until > now && has_signed(&answer.datagram, password))
    }

    fn forget(&mut self, address: SocketAddr) {
        let prefix = Prefix::of(address.ip());
        if self.answers.remove(&address).is_some()
            && let Some(share) = self.by_prefix.get_mut(&prefix)
        {
            *share -= 1;
            if *share == 0 {
                self.by_prefix.remove(&prefix);
            }
        }
    }
}

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;
