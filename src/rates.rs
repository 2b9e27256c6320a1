//! Limits the rate of first contacts and of connections by address prefix, in constant memory.
//!
//! An attacker who forges sources can fill a table with an entry for each prefix, at the cost of
//! one datagram for each entry. Such a table either grows, or evicts honest prefixes, or rejects
//! new ones. This one has no entries. A keyed hash assigns a prefix one cell in each of two rows,
//! shared with other prefixes; a contact passes if either cell has room (a count-min sketch). So
//! - the size is fixed, and nothing is evicted;
//! - a cell is one instant, at which it is empty again: it drains by the clock, and nothing has to
//!   expire;
//! - other prefixes block a prefix only if they fill **both** its cells. The keys are random, so an
//!   attacker cannot choose whom to block; - a flood that fills every cell blocks all new prefixes.
//!   Over UDP, where sources can be forged, a contact beyond the rate is therefore challenged and
//!   not rejected (see `udp::admission`).

use std::hash::{BuildHasher, Hash, RandomState};
use std::net::IpAddr;
use std::time::Duration;

/// Cells in a row. With the default limits the table passes 400 first contacts a second, from as
/// many prefixes, before collisions make it too strict.
const CELLS: usize = 2048;

/// A rate limit: at most `burst` events at once, then one every `interval`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RateLimit {
    interval: Duration,
    burst: u32,
}

impl RateLimit {
    /// No limit: every event passes.
    pub const UNLIMITED: Self = Self::new(Duration::ZERO, 1);

    /// A limit of `burst` events at once (0 counts as 1), then one every `interval`. With an
    /// interval of zero there is no limit.
    pub const fn new(interval: Duration, burst: u32) -> Self {
        Self { interval, burst }
    }

    /// The time between two events after the burst.
    pub const fn interval(&self) -> Duration {
        self.interval
    }

    /// The maximum number of events at once, as passed to [`RateLimit::new`].
    pub const fn burst(&self) -> u32 {
        self.burst
    }

    /// How long a full cell takes to drain, in nanoseconds.
    fn capacity(&self) -> u64 {
        nanos(self.interval).saturating_mul(u64::from(self.burst.max(1)))
    }
}

/// The part of an address that is assumed to belong to one host or household.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Prefix {
    V4([u8; 4]),
    /// The first 56 bits: the usual assignment to a household.
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

    /// The first 48 bits of an IPv6 prefix: the assignment to a site, 256 times a /56.
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

/// A single token bucket: the time at which it is empty again, in nanoseconds.
#[cfg(feature = "webrtc")]
#[derive(Debug, Default)]
pub(crate) struct Bucket(u64);

#[cfg(feature = "webrtc")]
impl Bucket {
    /// Counts an event at `now`. Returns `false`, and does not count it, beyond the limit.
    pub(crate) fn take(&mut self, now: Duration, limit: RateLimit) -> bool {
        let (now, interval) = (nanos(now), nanos(limit.interval));
        let has_room = self.0.saturating_sub(now) <= limit.capacity() - interval;
        if has_room {
            self.0 = self.0.max(now).saturating_add(interval);
        }
        has_room
    }
}

/// Rate limits by prefix: by /32 or /56, and for IPv6 by /48 as well.
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

    /// Counts a contact at `now`, the time since any fixed instant. Returns `false`, and does not
    /// count it, beyond the limit of the prefix.
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

    /// Whether either cell has room for another event.
    fn has_room(&self, now: u64, cells: [usize; 2]) -> bool {
        let max = self.limit.capacity() - nanos(self.limit.interval);
        let filled = |(row, cell): (&Row, usize)| {
            let empty_at = row.empty_at.get(cell).copied().unwrap_or_default();
            empty_at.saturating_sub(now)
        };
        self.rows.iter().zip(cells).any(|cell| filled(cell) <= max)
    }

    /// Adds an event to both cells.
    fn add(&mut self, now: u64, cells: [usize; 2]) {
        let interval = nanos(self.limit.interval);
        // A cell that was full already, while the cell of the other row had room, does not
        // overflow.
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
        // The chance that both cells are among 20 of 2048 is 1 in 10 000, for random keys.
        assert!(held_up <= 4, "{held_up}");
    }

    #[test]
    fn a_flood_of_prefixes_neither_grows_the_table_nor_lasts() {
        let mut rates = Rates::new(LIMIT, SITE);
        for n in 0..200_000_u32 {
            rates.take(Duration::ZERO, Prefix::V4(n.to_be_bytes()));
        }
        // Validated and other addresses have a table each.
        let sketches = [&rates.prefixes, &rates.sites];
        let rows = sketches.into_iter().flat_map(|sketch| &sketch.rows);
        let bytes: usize = rows.map(|row| size_of_val(&*row.empty_at)).sum();
        assert_eq!(2 * bytes, 128 * 1024);
        let honest = prefix("198.51.100.7");
        assert_eq!(passed(&mut rates, 0, honest, 8), 0, "every cell is full");
        // After 8 x 5 s every cell has drained.
        assert_eq!(passed(&mut rates, 41, honest, 50), 8);
    }

    #[test]
    fn no_limit_is_none() {
        let mut rates = Rates::new(RateLimit::UNLIMITED, RateLimit::UNLIMITED);
        assert_eq!(passed(&mut rates, 0, prefix("::1"), 10_000), 10_000);
    }
}
