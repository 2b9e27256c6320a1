//! Explicit congestion notification between whole endpoints. Only the direct engine has it.

use anabranch::rtc::CongestionControl;
use anabranch::{EndpointConfig, Finished};
use anabranch_testkit::simulator::{Conditions, Counters};
use tokio::time::Instant;

use super::world::{World, bulk, round_trip};

const LENGTH: usize = 8_000_000;

/// Bytes per second.
const RATE: u64 = 1_250_000;

/// Transfers over a link of 10 Mbit/s and 40 ms. Returns its goodput in bytes per second, and the
/// counters of the path.
async fn transfer(config: EndpointConfig, conditions: Conditions) -> (f64, Counters) {
    let conditions = Conditions {
        rate: Some(RATE),
        ..conditions
    };
    let mut world = World::with(config, 31, conditions).await;
    let (ours, theirs) = world.connect().await;
    let start = Instant::now();
    assert_eq!(bulk(ours.clone(), LENGTH).await.unwrap(), Finished::Acked);
    let goodput = LENGTH as f64 / start.elapsed().as_secs_f64();
    let counters = world
        .network
        .link_counters(&world.hosts[1], &world.hosts[0]);
    world.finish([ours, theirs]).await;
    (goodput, counters)
}

fn config(ecn: bool, congestion: CongestionControl) -> EndpointConfig {
    let mut config = EndpointConfig::default();
    (config.ecn, config.congestion) = (ecn, congestion);
    config
}

#[tokio::test(start_paused = true)]
async fn a_queue_that_marks_loses_nothing_and_is_used_as_well() {
    let conditions = Conditions {
        queue: 200_000,
        mark_above: Some(20_000),
        ..round_trip(40)
    };
    let (without, lossy) = transfer(config(false, CongestionControl::Cubic), conditions).await;
    assert_eq!((lossy.ect, lossy.marked), (0, 0));
    assert!(lossy.dropped_by_queue > 0, "CUBIC fills the queue");
    for control in [CongestionControl::Cubic, CongestionControl::Heed] {
        let (with, counters) = transfer(config(true, control), conditions).await;
        println!("{control:?}: {with:.0} bytes/s, {without:.0} without ECN; {counters:?}");
        assert_eq!(counters.dropped_by_queue, 0);
        assert!(counters.marked > 0);
        assert!(with > 0.8 * RATE as f64, "{with}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_path_that_clears_the_marks_is_used_without_ecn() {
    let conditions = Conditions {
        clears_ecn: true,
        ..round_trip(40)
    };
    for control in [CongestionControl::Cubic, CongestionControl::Heed] {
        let (goodput, counters) = transfer(config(true, control), conditions).await;
        assert!(goodput > 0.8 * RATE as f64, "{goodput}");
        assert!((1..300).contains(&counters.ect), "{counters:?}");
        assert!(counters.sent > 5000);
    }
}

/// As to a peer that does not support it.
#[tokio::test(start_paused = true)]
async fn without_it_nothing_is_marked() {
    let config = config(false, CongestionControl::Heed);
    let (_, counters) = transfer(config, round_trip(40)).await;
    assert_eq!(counters.ect, 0);
}
