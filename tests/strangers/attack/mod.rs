//! An attacker that combines what it can do at random, against a listener and diallers with honest
//! neighbours. Each seed is another one.
//!
//! Promises that every run is held to:
//! - No address gets more than three times what came from it, unless it has shown to receive; a
//!   dialler sends to nobody but whom it dialled.
//! - Dials of honest peers succeed at their first attempt, and what they transfer arrives whole.
//! - Memory stays within what `docs/reliability.md` adds up to, and nothing is left in the end.
//! - A datagram of the attacker costs a bounded amount of work.

mod plan;
mod primitives;
mod story;
mod victims;
mod world;

use std::time::Instant;

use story::Cost;

/// Runs seeds one after the other; `ANABRANCH_SEEDS` says how many, `ANABRANCH_SEED` names one.
#[test]
fn an_attacker_of_random_steps_hits_nobody_and_keeps_nobody_out() {
    let number = |name: &str| std::env::var(name).ok().and_then(|n| n.parse::<u64>().ok());
    let seeds = match number("ANABRANCH_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("ANABRANCH_SEEDS").unwrap_or(30),
    };
    let begun = Instant::now();
    let count = seeds.end - seeds.start;
    let mut worst = Cost::default();
    for seed in seeds {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .expect("a runtime");
        let cost = runtime.block_on(story::run(seed));
        println!("seed {seed}: {cost:?}");
        worst = worst.max(cost);
    }
    println!("{count} seeds in {:?}; worst: {worst:?}", begun.elapsed());
}
