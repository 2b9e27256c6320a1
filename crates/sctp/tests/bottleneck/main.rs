//! Several flows over one bottleneck, in virtual time: real associations, with the controller of
//! the crate and with models of others.
//!
//! `BOTTLENECK_TRACE=1` prints the state of every flow each second of a run.

mod calibration;
mod codel;
mod flow;
mod gaps;
mod link;
mod models;
mod paths;
mod report;
mod rng;
mod scenarios;
mod world;

use models::OURS;
use scenarios::scenario;

/// Seeds of the scenarios that every run judges.
const SEEDS: std::ops::RangeInclusive<u64> = 1..=3;

/// Seeds that may fall short: of 30 seeds of `reverse-cubic` one or two do, and which ones changes
/// with every packet more or less.
const MAX_SHORT: usize = 1;

#[track_caller]
fn assert_holds(name: &str) {
    let scenario = scenario(name);
    let mut failures = Vec::new();
    for seed in SEEDS {
        let outcome = (scenario.run)(OURS, seed);
        println!(
            "{name} ({}), seed {seed}: {}",
            scenario.bar, outcome.figures
        );
        if !outcome.holds {
            failures.push(format!("seed {seed}: {}", outcome.figures));
        }
    }
    assert!(
        failures.len() <= MAX_SHORT,
        "{name} ({}) falls short with {}",
        scenario.bar,
        failures.join("; ")
    );
}

#[test]
fn cubic_shallow() {
    assert_holds("cubic-shallow");
}

#[test]
fn cubic_1bdp() {
    assert_holds("cubic-1bdp");
}

#[test]
fn cubic_codel() {
    assert_holds("cubic-codel");
}

#[test]
fn two_ours() {
    assert_holds("two-ours");
}

#[test]
fn eight_ours_deep() {
    assert_holds("eight-ours-deep");
}

#[test]
fn loss_2() {
    assert_holds("loss-2");
}

#[test]
fn reverse_cubic() {
    assert_holds("reverse-cubic");
}

#[test]
fn outage() {
    assert_holds("outage");
}

#[test]
fn blackout() {
    assert_holds("blackout");
}
