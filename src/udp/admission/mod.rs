//! Decides for which first contacts a listener allocates state.
//!
//! ```text
//! first contact ── handshakes full, or the share of its prefix ──────────► dropped
//!      │
//!      ├─ its address is proven ── within the rate of its prefix ────────► admitted
//!      │
//!      └─ not proven ── below half, and within the rate of its prefix ──► admitted
//!                  └─── half of the handshakes, or of the share of its
//!                       prefix, taken, or beyond the rate ───────────────► challenged
//! ```
//!
//! Below these limits a first contact is admitted at once. The source of a datagram can be forged,
//! so
//! - at most half of the handshakes, and half of the share of a prefix, are for unproven addresses:
//!   forged sources can not take the other half;
//! - a contact beyond that half, or beyond the rate, is not rejected but challenged: it gets the
//!   response to its check and a check of the listener, and no state is kept. An honest peer
//!   answers within a round trip, and its next check is admitted: the nomination, or the repetition
//!   if its first check nominates, as Firefox's does, and is not answered. A forger sees neither
//!   datagram.
//!
//! The answer has no USERNAME. So it is stored until a check arrives that has one, and it has to be
//! signed with the password of that check. Otherwise a STUN server, which answers everybody, would
//! prove its own address for a forger.
//!
//! A flood of forged sources thus costs work, but no memory, and keeps no honest peer out: proven
//! addresses have rate limits of their own. Beyond some thousand challenges a second only a
//! repeated check is challenged (see [`sightings`]), so that a flood costs little more than its
//! reception. The rate and the share of its prefix limit what real addresses can take. An admitted
//! contact is never evicted.

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

/// Lifetime of an answered challenge. The next check of the peer follows much sooner.
const PROOF_LIFETIME: Duration = Duration::from_secs(5);

/// Maximum length of a stored answer, in bytes. Answers of the known peers have less than half of
/// it, with an IPv6 address and a SOFTWARE attribute.
const MAX_ANSWER: usize = 256;

/// Rate of challenges for peers that have not been seen before. Honest ones are far fewer; this
/// many take about a twentieth of a core.
const CHALLENGES: RateLimit = RateLimit::new(Duration::from_micros(200), 1000);

/// The configured limits.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) max_handshakes: usize,
    pub(crate) max_handshakes_per_prefix: usize,
    pub(crate) rate: RateLimit,
    pub(crate) site_rate: RateLimit,
    pub(crate) limit_loopback: bool,
}

/// The decision about a first contact.
#[derive(Debug)]
pub(crate) enum Verdict {
    /// State may be allocated for it while the slot is held.
    Admitted(Slot),
    /// It has to prove its address.
    Challenged,
    /// There is no room for it, or it has to repeat its check first.
    Dropped,
}

/// Decides about first contacts. Its size is constant, except for what `max_handshakes` bounds.
#[derive(Debug)]
pub(crate) struct Admission {
    limits: Limits,
    key: Arc<ChallengeKey>,
    start: Instant,
    book: Mutex<Book>,
}

#[derive(Debug)]
struct Book {
    /// Handshakes in progress.
    taken: usize,
    /// The same by prefix. No count is zero, so there are at most `max_handshakes` entries.
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
        // Nothing under this lock panics.
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The key that creates challenges and recognizes their answers.
    pub(crate) fn key(&self) -> &Arc<ChallengeKey> {
        &self.key
    }

    fn is_exempt(&self, ip: IpAddr) -> bool {
        ip.to_canonical().is_loopback() && !self.limits.limit_loopback
    }

    /// Decides about a first contact. `password` is the one with which the peer signs answers to
    /// checks.
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

    /// Stores the answer to a challenge. Returns whether `datagram` is one.
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
        // Twice as many as can be admitted.
        let most = self.limits.max_handshakes.saturating_mul(2);
        let mut book = self.book();
        book.proofs
            .insert(now, source, datagram, most, most_of_prefix);
        true
    }

    /// Number of stored answers to challenges.
    #[cfg(test)]
    pub(crate) fn proofs(&self) -> usize {
        self.book().proofs.answers.len()
    }

    /// Whether no handshake is in progress.
    pub(crate) fn is_idle(&self) -> bool {
        let book = self.book();
        book.taken == 0 && book.by_prefix.is_empty()
    }
}

/// The place of one handshake, released on drop.
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

/// Answers to challenges from addresses that have no connection yet.
///
/// An entry requires that its address receives. Each prefix has a share, and an entry expires after
/// [`PROOF_LIFETIME`]. A full table takes no more; those peers are challenged again.
#[derive(Debug, Default)]
struct Proofs {
    answers: HashMap<SocketAddr, Answer>,
    by_prefix: HashMap<Prefix, usize>,
    /// Every entry of `answers`, oldest first, and some that have been removed since.
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
        // A repeated answer does not extend the entry.
        if self.answers.contains_key(&address)
            || self.answers.len() >= most
            || share >= most_of_prefix
        {
            return;
        }
        // Removed entries stay in `order`.
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
            // The entry may have been removed, and inserted again later.
            let known = self.answers.get(&address);
            if known.is_some_and(|answer| answer.until == until) {
                self.forget(address);
            }
        }
    }

    /// Whether the owner of `password` has answered from `address`.
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
