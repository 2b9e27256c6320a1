//! The number of random cases of a test.

use std::ops::Range;

use proptest::prelude::ProptestConfig;

fn asked_for() -> Option<u64> {
    let count = std::env::var("ANABRANCH_SEEDS").ok()?;
    Some(count.parse().expect("ANABRANCH_SEEDS is a number"))
}

/// The seeds of a test, as many as `ANABRANCH_SEEDS` asks for.
#[allow(dead_code)] // Without `websocket` no test has seeds.
pub(crate) fn seeds(default: u64) -> Range<u64> {
    0..asked_for().unwrap_or(default)
}

/// The configuration of a property, with as many cases as `ANABRANCH_SEEDS` asks for.
pub(crate) fn cases(default: u32) -> ProptestConfig {
    let cases = asked_for().map_or(default, |count| u32::try_from(count).unwrap_or(u32::MAX));
    ProptestConfig::with_cases(cases)
}
