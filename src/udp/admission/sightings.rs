//! Remembers recent first contacts in constant memory.
//!
//! An answer to a flood costs more than its reception: two HMACs and two datagrams for each
//! contact. A dialler without a response repeats its check after 50 to 500 ms, with the same
//! USERNAME; a flood sends each contact once, or has twice the cost. So beyond a rate only a
//! repeated check is answered. Two Bloom filters alternate, so that everything expires by the
//! clock.

use std::hash::{BuildHasher, RandomState};
use std::net::SocketAddr;
use std::time::Duration;

/// How long a filter is written to; after that it is read for as long. Diallers repeat their checks
/// much sooner.
const PERIOD: Duration = Duration::from_secs(2);

/// Size of a filter in 64-bit words: 128 KiB. With 100 000 contacts in one period, 3 % of the
/// others are false positives, and are answered at once.
const WORDS: u64 = 1 << 14;

/// The first contacts of the current and the previous [`PERIOD`].
#[derive(Debug, Default)]
pub(super) struct Sightings {
    keys: RandomState,
    /// The number of the period of `current`.
    period: u64,
    current: Vec<u64>,
    previous: Vec<u64>,
}

impl Sightings {
    /// Records a first contact at `now`, the time since any fixed instant. Returns whether it has
    /// been recorded before.
    pub(super) fn note(&mut self, now: Duration, source: SocketAddr, username: &str) -> bool {
        self.rotate(now);
        if self.current.is_empty() {
            // Allocated with the first flood.
            self.current = vec![0; WORDS as usize];
            self.previous = vec![0; WORDS as usize];
        }
        let hash = self.keys.hash_one((source, username));
        let bits = [hash as u32, (hash >> 32) as u32].map(|half| {
            let word = (u64::from(half) >> 6) % WORDS;
            // Below WORDS, and so below usize::MAX.
            (word as usize, 1_u64 << (half & 63))
        });
        let is_in = |filter: &[u64]| {
            bits.iter()
                .all(|(word, bit)| filter.get(*word).is_some_and(|word| word & bit != 0))
        };
        let seen = is_in(&self.current) || is_in(&self.previous);
        for (word, bit) in bits {
            if let Some(word) = self.current.get_mut(word) {
                *word |= bit;
            }
        }
        seen
    }

    fn rotate(&mut self, now: Duration) {
        let period = now.as_secs() / PERIOD.as_secs();
        if period == self.period {
            return;
        }
        std::mem::swap(&mut self.current, &mut self.previous);
        self.current.fill(0);
        if period != self.period + 1 {
            self.previous.fill(0);
        }
        self.period = period;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(n: u32) -> SocketAddr {
        SocketAddr::from((n.to_be_bytes(), 4001))
    }

    #[test]
    fn a_stranger_is_known_the_second_time_for_a_while() {
        let mut sightings = Sightings::default();
        let at = Duration::from_millis;
        assert!(!sightings.note(at(1900), source(1), "a"));
        assert!(
            !sightings.note(at(1940), source(1), "b"),
            "another user at the same address"
        );
        assert!(sightings.note(at(1950), source(1), "a"));
        assert!(
            sightings.note(at(2200), source(1), "a"),
            "in the next period too"
        );
        assert!(
            !sightings.note(at(9000), source(1), "a"),
            "but not for ever"
        );
    }

    #[test]
    fn a_flood_of_others_makes_few_seem_familiar_and_hides_none() {
        let mut sightings = Sightings::default();
        let now = Duration::from_secs(1);
        let familiar = (0..100_000)
            .filter(|n| sightings.note(now, source(*n), "a"))
            .count();
        assert!(familiar < 3000, "{familiar}");
        assert!((0..100_000).all(|n| sightings.note(now, source(n), "a")));
        assert_eq!(sightings.current.len() + sightings.previous.len(), 2 << 14);
    }
}
