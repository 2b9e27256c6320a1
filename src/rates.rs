//! How often somebody may knock, by address prefix, in constant memory.
//!
//! A table with an entry for each prefix can be filled: by an attacker who forges sources, at the cost of
//! one datagram an entry. Then it either grows, or forgets honest prefixes, or shuts out new ones.
//! This one has no entries. A prefix has one cell in each of two rows, by a keyed hash, and shares
//! it with others; a contact passes if either cell has room (a count-min sketch). So
//! - the size is fixed, and nothing is evicted, because there is nothing to evict;
//! - a cell is one instant, that when it is empty again, and empties by the clock: nothing has to expire;
//! - a prefix is held up by others only if **both** its cells are full of them. Who shares a cell follows from
//!   random keys, so nobody can choose whom to hold up;
//! - a flood that fills every cell holds up everybody new, which is why who is held up is asked for
//!   a proof of its address and not turned away (see [`super`]).

use std::hash::{BuildHasher, Hash, RandomState};
use std::net::IpAddr;
use std::time::Duration;

/// Cells in a row. With the default limits the table passes 400 first contacts a second from as many
/// prefixes before it begins to be too strict.
const CELLS: usize = 2048;

/// How often something may happen: at most `burst` times at once, and then once each `interval`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RateLimit {
    interval: Duration,
    burst: u32,
}

impl RateLimit {
    /// No limit.
    pub const UNLIMITED: Self = Self::new(Duration::ZERO, 1);

    /// At most `burst` times at once (0 counts as 1), and then once each `interval`.
    pub const fn new(interval: Duration, burst: u32) -> Self {
        Self { interval, burst }
    }

    /// The time between two, once the burst is used up.
    pub const fn interval(&self) -> Duration {
        self.interval
    }

    /// How many may come at once.
    pub const fn burst(&self) -> u32 {
        self.burst
    }

    /// What a full cell holds, as time.
    fn capacity(&self) -> u64 {
        nanos(self.interval).saturating_mul(u64::from(self.burst.max(1)))
    }
}

/// The part of an address that one party is taken to own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Prefix {
    V4([u8; 4]),
    /// The first 56 bits: what a home gets.
    V6([u8; 7]),
}

impl Prefix {
    pub(crate) fn of(ip: IpAddr) -> Self {
        match ip.to_canonical() {
            IpAddr::V4(ip) => Self::V4(ip.octets()),
            IpAddr::V6(ip) => {
                let [a, b, c, d, e, f, g, ..] = ip.octets();
                Self::V6([a, b, c, d, e, f, g])
            }
        }
    }

    /// The first 48 bits of an IPv6 prefix: what a site gets, 256 times the above.
    fn site(self) -> Option<[u8; 6]> {
        match self {
            Self::V4(_) => None,
            Self::V6([a, b, c, d, e, f, _]) => Some([a, b, c, d, e, f]),
        }
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// A single limit: the time at which it is empty again.
#[cfg(feature = "webrtc")]
#[derive(Debug, Default)]
pub(crate) struct Bucket(u64);

#[cfg(feature = "webrtc")]
impl Bucket {
    /// Counts one at `now`; `false`, and not counted, if that is too soon.
    pub(crate) fn take(&mut self, now: Duration, limit: RateLimit) -> bool {
        let (now, interval) = (nanos(now), nanos(limit.interval));
        let has_room = self.0.saturating_sub(now) <= limit.capacity() - interval;
        if has_room {
            self.0 = self.0.max(now).saturating_add(interval);
        }
        has_room
    }
}

/// Limits by prefix: by /32 or /56, and for IPv6 by /48 as well.
#[derive(Debug)]
pub(crate) struct Rates {
    prefixes: Sketch,
    sites: Sketch,
}

impl Rates {
    pub(crate) fn new(prefix: RateLimit, site: RateLimit) -> Self {
        Self {
            prefixes: Sketch::new(prefix),
            sites: Sketch::new(site),
        }
    }

    /// Counts one contact at `now`, a time since any fixed instant. `false`, and not counted, if
    /// the prefix has had as many as it may.
    pub(crate) fn take(&mut self, now: Duration, prefix: Prefix) -> bool {
        let now = nanos(now);
        let prefix_cells = self.prefixes.cells_of(&prefix);
        if !self.prefixes.has_room(now, prefix_cells) {
            return false;
        }
        if let Some(site) = prefix.site() {
            let site_cells = self.sites.cells_of(&site);
            if !self.sites.has_room(now, site_cells) {
                return false;
            }
            self.sites.add(now, site_cells);
        }
        self.prefixes.add(now, prefix_cells);
        true
    }
}

/// Two rows of cells. A cell is the time at which it is empty again (the generic cell rate
/// algorithm of ITU-T I.371: a token bucket in one number).
#[derive(Debug)]
struct Sketch {
    limit: RateLimit,
    rows: [Row; 2],
}

#[derive(Debug)]
struct Row {
    keys: RandomState,
    empty_at: Box<[u64]>,
}

impl Sketch {
    fn new(limit: RateLimit) -> Self {
        let row = || Row {
            keys: RandomState::new(),
            empty_at: vec![0; CELLS].into_boxed_slice(),
        };
        Self {
            limit,
            rows: [row(), row()],
        }
    }

    fn cells_of(&self, key: &impl Hash) -> [usize; 2] {
        self.rows
            .each_ref()
            // The remainder is below CELLS, so the cast back loses nothing.
            .map(|row| (row.keys.hash_one(key) % CELLS as u64) as usize)
    }

    fn has_room(&self, now: u64, cells: [usize; 2]) -> bool {
        let most = self.limit.capacity() - nanos(self.limit.interval);
        let filled = |(row, cell): (&Row, usize)| {
            let empty_at = row.empty_at.get(cell).copied().unwrap_or_default();
            empty_at.saturating_sub(now)
        };
        self.rows.iter().zip(cells).any(|cell| filled(cell) <= most)
    }

    fn add(&mut self, now: u64, cells: [usize; 2]) {
        let interval = nanos(self.limit.interval);
        // A cell that is full already, and passed by for the other row, does not overflow.
        let full = now.saturating_add(self.limit.capacity());
        for (row, cell) in self.rows.iter_mut().zip(cells) {
            if let Some(empty_at) = row.empty_at.get_mut(cell) {
                *empty_at = (*empty_at).max(now).saturating_add(interval).min(full);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: RateLimit = RateLimit::new(Duration::from_secs(5), 8);
    const SITE: RateLimit = RateLimit::new(Duration::from_secs(1), 20);

    fn prefix(text: &str) -> Prefix {
        Prefix::of(text.parse().expect("an address"))
    }

    fn passed(rates: &mut Rates, now: u64, key: Prefix, tries: usize) -> usize {
        let now = Duration::from_secs(now);
        (0..tries).filter(|_| rates.take(now, key)).count()
    }

    #[test]
    fn a_burst_passes_and_then_one_each_interval() {
        let mut rates = Rates::new(LIMIT, SITE);
        let key = prefix("10.0.0.1");
        assert_eq!(passed(&mut rates, 100, key, 50), 8);
        assert_eq!(passed(&mut rates, 104, key, 50), 0);
        assert_eq!(passed(&mut rates, 105, key, 50), 1);
        assert_eq!(passed(&mut rates, 120, key, 50), 3);
        assert_eq!(
            passed(&mut rates, 100_000, key, 50),
            8,
            "no more than a burst is saved"
        );
    }

    #[test]
    fn prefixes_of_ipv6_are_limited_together_and_so_are_those_of_a_site() {
        let mut rates = Rates::new(LIMIT, SITE);
        assert_eq!(prefix("2001:db8:1:2::1"), prefix("2001:db8:1:ff:9::"));
        assert_ne!(prefix("2001:db8:1:2::1"), prefix("2001:db8:1:100::1"));
        let sum: usize = (0..40)
            .map(|n| passed(&mut rates, 0, prefix(&format!("2001:db8:1:{n:x}00::1")), 3))
            .sum();
        assert_eq!(sum, 20, "the site has a limit of its own");
        assert_eq!(
            passed(&mut rates, 0, prefix("2001:db8:2::"), 50),
            8,
            "another site"
        );
    }

    #[test]
    fn a_mapped_address_is_the_ipv4_address() {
        assert_eq!(prefix("::ffff:10.0.0.1"), prefix("10.0.0.1"));
    }

    #[test]
    fn a_few_busy_prefixes_hold_up_no_others() {
        let mut rates = Rates::new(LIMIT, SITE);
        for n in 0..20 {
            passed(&mut rates, 0, prefix(&format!("192.0.2.{n}")), 1000);
        }
        let held_up = (0..=255)
            .filter(|n| passed(&mut rates, 0, prefix(&format!("10.0.0.{n}")), 1) == 0)
            .count();
        // Both cells among 20 of 2048: one in 10 000, whatever the keys are.
        assert!(held_up <= 4, "{held_up}");
    }

    #[test]
    fn a_flood_of_prefixes_neither_grows_the_table_nor_lasts() {
        let mut rates = Rates::new(LIMIT, SITE);
        for n in 0..200_000_u32 {
            rates.take(Duration::ZERO, Prefix::V4(n.to_be_bytes()));
        }
        // Those of proven and of unproven addresses are a table each.
        let sketches = [&rates.prefixes, &rates.sites];
        let rows = sketches.into_iter().flat_map(|sketch| &sketch.rows);
        let bytes: usize = rows.map(|row| size_of_val(&*row.empty_at)).sum();
        assert_eq!(2 * bytes, 128 * 1024);
        let honest = prefix("198.51.100.7");
        assert_eq!(passed(&mut rates, 0, honest, 8), 0, "every cell is full");
        // 8 x 5 s later everything has drained.
        assert_eq!(passed(&mut rates, 41, honest, 50), 8);
    }

    #[test]
    fn no_limit_is_none() {
        let mut rates = Rates::new(RateLimit::UNLIMITED, RateLimit::UNLIMITED);
        assert_eq!(passed(&mut rates, 0, prefix("::1"), 10_000), 10_000);
    }
}
