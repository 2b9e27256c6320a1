//! The models on the paths on which Linux and quinn were measured: what the scenarios say is worth
//! no more than this.
//!
//! Measured: TCP of Linux 6.18 and quinn 0.11 over a bottleneck between two network namespaces, one
//! run each. The means of the models are within a fifth of that, unless a row says why not.

use super::flow::{Contender, FlowConfig};
use super::link::LinkConfig;
use super::models::{QUIC_CUBIC, TCP_BBR, TCP_CUBIC};
use super::paths::{BDP, back, bottleneck, ms, seconds};
use super::scenarios::{codel, pair, policer};
use super::world::World;

/// The relative error that is usual.
const TOLERANCE: f64 = 0.2;

/// Runs per row: their mean counts.
const SEEDS: std::ops::RangeInclusive<u64> = 1..=3;

/// Runs of a row with two states.
const BISTABLE_SEEDS: std::ops::RangeInclusive<u64> = 1..=6;

/// Mean over the seeds.
fn mean<const N: usize>(run: impl Fn(u64) -> [f64; N]) -> [f64; N] {
    let mut sums = [0.0; N];
    for seed in SEEDS {
        for (sum, value) in sums.iter_mut().zip(run(seed)) {
            *sum += value;
        }
    }
    sums.map(|sum| sum / SEEDS.count() as f64)
}

#[track_caller]
fn assert_near(what: &str, model: f64, measured: f64, tolerance: f64) {
    println!("{what}: measured {measured}, model {model:.2}");
    assert!(
        (model - measured).abs() <= tolerance * measured,
        "{what}: {model:.2}, but measured {measured}"
    );
}

/// Mbit/s from 5 to 25 s, and the median of the queue in milliseconds.
fn alone(contender: Contender, link: &LinkConfig) -> [f64; 2] {
    mean(|seed| alone_with(seed, contender, link))
}

fn alone_with(seed: u64, contender: Contender, link: &LinkConfig) -> [f64; 2] {
    let mut world = World::new(seed, [link.clone(), back()]);
    world.add(FlowConfig::new(contender, ms(0)));
    world.run(seconds(25));
    let (since, until) = (seconds(5), seconds(25));
    [world.rates(since, until)[0], world.queue(since, until, 0.5)]
}

fn duel(first: Contender, second: Contender, link: &LinkConfig) -> [f64; 2] {
    mean(|seed| pair(first, second, link.clone(), seed).0)
}

#[test]
fn quic_shares_with_cubic() {
    let shallow = duel(QUIC_CUBIC, TCP_CUBIC, &bottleneck(BDP / 4));
    assert_near("QUIC beside CUBIC, 0.25 BDP", shallow[0], 25.0, TOLERANCE);
    assert_near("CUBIC beside QUIC, 0.25 BDP", shallow[1], 24.8, TOLERANCE);
    let codel = duel(QUIC_CUBIC, TCP_CUBIC, &codel());
    assert_near("QUIC beside CUBIC, CoDel", codel[0], 23.0, TOLERANCE);
    assert_near("CUBIC beside QUIC, CoDel", codel[1], 26.4, TOLERANCE);
}

#[test]
fn bbr_beside_cubic() {
    let shallow = duel(TCP_BBR, TCP_CUBIC, &bottleneck(BDP / 4));
    assert_near("BBR beside CUBIC, 0.25 BDP", shallow[0], 45.9, TOLERANCE);
    // What BBR leaves of 50 Mbit/s: 0.8 Mbit/s too little, for a reason that is not known.
    assert_near("CUBIC beside BBR, 0.25 BDP", shallow[1], 2.9, 0.3);
}

/// By the moment at which BBR probes the round trip, it takes CUBIC's queue for the path or not:
/// two states, at about 9 and 19 Mbit/s. The one run that was measured lies between them.
#[test]
fn bbr_beside_cubic_in_a_deep_queue() {
    let runs = BISTABLE_SEEDS.map(|seed| pair(TCP_BBR, TCP_CUBIC, bottleneck(4 * BDP), seed).0);
    let runs: Vec<[f64; 2]> = runs.collect();
    let bbr = runs.iter().map(|[bbr, _]| *bbr);
    let (least, most) = bbr.fold((f64::MAX, 0.0_f64), |(least, most), rate| {
        (least.min(rate), most.max(rate))
    });
    println!("BBR beside CUBIC, 4 BDP: measured 12.3, model {least:.1} to {most:.1}");
    assert!(least <= 12.3 && 12.3 <= most, "{least:.1} to {most:.1}");
    let cubic = runs.iter().map(|[_, cubic]| cubic).sum::<f64>() / runs.len() as f64;
    assert_near("CUBIC beside BBR, 4 BDP", cubic, 37.7, TOLERANCE);
}

#[test]
fn loss_limits_cubic() {
    for (percent, measured, tolerance) in [
        (0.5, 4.0, TOLERANCE),
        (1.0, 2.7, TOLERANCE),
        (2.0, 1.7, TOLERANCE),
        (5.0, 0.9, TOLERANCE),
        // With windows of two packets Linux often waits for its RTO. Our sender probes earlier.
        (10.0, 0.5, 0.4),
    ] {
        let link = bottleneck(BDP).loss(percent / 100.0);
        let what = format!("CUBIC at a loss of {percent} %");
        assert_near(&what, alone(TCP_CUBIC, &link)[0], measured, tolerance);
    }
}

#[test]
fn loss_does_not_limit_bbr() {
    for (percent, measured) in [
        (0.5, 48.1),
        (1.0, 47.8),
        (2.0, 46.7),
        (5.0, 44.4),
        (10.0, 40.1),
    ] {
        let link = bottleneck(BDP).loss(percent / 100.0);
        let what = format!("BBR at a loss of {percent} %");
        assert_near(&what, alone(TCP_BBR, &link)[0], measured, TOLERANCE);
    }
}

#[test]
fn a_tenth_of_a_bdp_is_nearly_enough() {
    let link = bottleneck(BDP / 10);
    let cubic = alone(TCP_CUBIC, &link)[0];
    assert_near("CUBIC alone, 0.1 BDP", cubic, 45.8, TOLERANCE);
    let bbr = alone(TCP_BBR, &link)[0];
    assert_near("BBR alone, 0.1 BDP", bbr, 47.3, TOLERANCE);
}

#[test]
fn codel_keeps_the_queue_short() {
    let cubic = alone(TCP_CUBIC, &codel())[0];
    assert_near("CUBIC alone, CoDel", cubic, 47.3, TOLERANCE);
    let bbr = alone(TCP_BBR, &codel())[0];
    assert_near("BBR alone, CoDel", bbr, 49.1, TOLERANCE);
}

#[test]
fn bursts_of_loss_limit_cubic() {
    let link = bottleneck(BDP).bursts(seconds(1), ms(5));
    // The bursts are few and random: from 13 to 29 by seed. The median is that of a usual run.
    let mut rates: Vec<_> = (1..=9)
        .map(|seed| alone_with(seed, TCP_CUBIC, &link)[0])
        .collect();
    rates.sort_unstable_by(f64::total_cmp);
    assert_near("CUBIC, 5 ms lost each second", rates[4], 13.7, TOLERANCE);
    let bbr = alone(TCP_BBR, &link)[0];
    assert_near("BBR, 5 ms lost each second", bbr, 48.7, TOLERANCE);
}

#[test]
fn a_policer_limits_cubic() {
    let cubic = alone(TCP_CUBIC, &policer())[0];
    assert_near("CUBIC, policer", cubic, 18.1, TOLERANCE);
}

#[test]
fn cubic_fills_the_queue_of_a_slow_link() {
    let [rate, queue] = alone(TCP_CUBIC, &LinkConfig::new(1.0, ms(25), 125_000));
    assert_near("CUBIC at 1 Mbit/s, rate", rate, 1.0, TOLERANCE);
    assert_near("CUBIC at 1 Mbit/s, queue of 1 s", queue, 765.0, TOLERANCE);
}
