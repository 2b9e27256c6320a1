//! The number of random cases of a test.

/// The seeds of a test, as many as `ANABRANCH_SEEDS` asks for.
pub fn seeds(default: u64) -> std::ops::Range<u64> {
    let count = std::env::var("ANABRANCH_SEEDS").ok();
    0..count.map_or(default, |count| count.parse().expect("a number"))
}
