//! An attacker that combines its primitives at random, against a listener and diallers with honest
//! neighbours. Each seed is another attack.
//!
//! Invariants that every run checks:
//! - No address gets more than three times what came from it, unless it has proved to receive; a
//!   dialler sends only to the dialled address.
//! - Dials of honest peers succeed at the first attempt, and their transfers are complete.
//! - Memory stays within the sum of the limits in `docs/reliability.md`, and nothing is left at the
//!   end.
//! - A datagram of the attacker costs a bounded amount of work.

mod plan;
mod primitives;
mod story;
mod victims;
mod world;

use std::time::Instant;

use story::Cost;

/// Runs seeds one after the other; `ANABRANCH_SEEDS` sets their number, `ANABRANCH_SEED` selects
/// one.
#[test]
fn an_attacker_of_random_steps_hits_no_victim_and_keeps_no_peer_out() {
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
