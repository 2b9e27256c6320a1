//! Random choices that a peer must not predict and a test can repeat.

use std::ops::RangeInclusive;

/// A random number in `range`.
pub(crate) fn choose(range: RangeInclusive<u32>) -> u32 {
    #[cfg(any(test, feature = "testing"))]
    if let Some(number) = fixed::next() {
        let count = u64::from(range.end() - range.start()) + 1;
        return range.start() + (number % count) as u32;
    }
    rand::random_range(range)
}

/// Derives the choices of this thread from a seed.
#[cfg(any(test, feature = "testing"))]
pub(crate) fn fix(seed: u64) {
    fixed::STATE.set(Some(seed));
}

#[cfg(any(test, feature = "testing"))]
mod fixed {
    use std::cell::Cell;

    thread_local! {
        pub(super) static STATE: Cell<Option<u64>> = const { Cell::new(None) };
    }

    /// SplitMix64.
    pub(super) fn next() -> Option<u64> {
        let state = STATE.get()?.wrapping_add(0x9e37_79b9_7f4a_7c15);
        STATE.set(Some(state));
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        Some(mixed ^ (mixed >> 31))
    }
}
