//! Packets as long as the path carries (DPLPMTUD, RFC 8899), between whole endpoints.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anabranch::{EngineFactory, Finished};
use anabranch_testkit::simulator::{Conditions, Verdict};
use tokio::time::sleep;

use crate::world::{World, bulk, endpoint_config, round_trip, watch_pauses};

/// IPv4 and UDP.
const HEADERS: usize = 28;

/// A path of 100 Mbit/s for packets of `mtu` bytes.
fn path(mtu: Option<usize>) -> Conditions {
    Conditions {
        rate: Some(12_500_000),
        mtu,
        ..round_trip(40)
    }
}

async fn world(seed: u64, mtu: Option<usize>) -> World {
    let mut config = endpoint_config();
    config.engine = EngineFactory::DIRECT;
    config.max_mtu = 16_376;
    World::with(config, seed, path(mtu)).await
}

/// Notes the longest datagram that a path of `mtu` bytes carries.
fn watch_lengths(world: &World, mtu: Option<usize>) -> Arc<AtomicUsize> {
    let longest = Arc::new(AtomicUsize::new(0));
    world.network.set_tap({
        let longest = Arc::clone(&longest);
        move |datagram| {
            let length = datagram.contents.len();
            if mtu.is_none_or(|mtu| length + HEADERS <= mtu) {
                longest.fetch_max(length, Ordering::Relaxed);
            }
            Verdict::Pass
        }
    });
    longest
}

#[tokio::test(start_paused = true)]
async fn datagrams_become_as_long_as_the_path_carries() {
    for (mtu, expected) in [
        (Some(1228), 1200),
        (Some(1280), 1232),
        (Some(1420), 1392),
        (Some(1492), 1464),
        (Some(1500), 1472),
        (Some(9000), 8952),
        (None, 16_376),
    ] {
        let mut world = world(70, mtu).await;
        let longest = watch_lengths(&world, mtu);
        let (ours, theirs) = world.connect().await;
        let sent = bulk(ours.clone(), 30_000_000).await;
        assert_eq!(sent.unwrap(), Finished::Acked);
        let longest = longest.load(Ordering::Relaxed);
        println!("{mtu:?}: {longest}, {:?}", world.network.counters());
        // The overhead of DTLS 1.2 is reserved, of which 1.3 uses less. On Ethernet it is used.
        let least = if expected == 1472 {
            1468
        } else {
            expected - 20
        };
        assert!((least..=expected).contains(&longest), "{mtu:?}: {longest}");
        world.finish([ours, theirs]).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_carries_little_sends_no_probes() {
    let mut world = world(71, Some(1280)).await;
    let (ours, theirs) = world.connect().await;
    for _ in 0..20 {
        assert_eq!(bulk(ours.clone(), 2_000).await.unwrap(), Finished::Acked);
    }
    assert_eq!(world.network.counters().dropped_by_mtu, 0);
    world.finish([ours, theirs]).await;
}

/// What was in flight is repeated in segments, and the transfer goes on.
#[tokio::test(start_paused = true)]
async fn a_path_that_begins_to_carry_less_stops_a_transfer_for_less_than_3_seconds() {
    for (seed, before, after) in [(72, 1500, 1300), (73, 9000, 1280), (74, 9000, 1500)] {
        let mut world = world(seed, Some(before)).await;
        let (ours, theirs) = world.connect().await;
        let [server, client] = world.hosts.clone();
        let network = &world.network;
        let longest = Cell::new(Duration::ZERO);
        let watch = async {
            sleep(Duration::from_secs(1)).await;
            network.set_conditions(path(Some(after)));
            watch_pauses(network, &client, &server, &longest).await;
        };
        let sent = tokio::select! {
            sent = bulk(ours.clone(), 30_000_000) => sent,
            () = watch => unreachable!("it never completes"),
        };
        assert_eq!(sent.unwrap(), Finished::Acked);
        let longest = longest.get();
        println!("{before} to {after}: a pause of {longest:?}");
        assert!(longest < Duration::from_secs(3), "{longest:?}");
        world.finish([ours, theirs]).await;
    }
}
