//! Transfers over paths that drop, delay, reorder, duplicate, corrupt and hold back datagrams.

use std::time::Duration;

use anabranch::{Finished, WebRtcDirectVersion};
use anabranch_testkit::simulator::{Burst, Conditions};
use tokio::time::Instant;

use crate::world::{World, bulk, echo, round_trip, transfer_under};

#[tokio::test(start_paused = true)]
async fn a_clean_path_takes_a_few_round_trips() {
    let mut world = World::new(1, round_trip(50)).await;
    let start = Instant::now();
    let (ours, theirs) = world.connect().await;
    let connected = start.elapsed();
    assert!(connected <= Duration::from_millis(600), "{connected:?}");
    let start = Instant::now();
    assert_eq!(echo(ours.clone(), 1000).await.unwrap(), Finished::Acked);
    let echoed = start.elapsed();
    assert!(echoed <= Duration::from_millis(400), "{echoed:?}");
    println!("connected in {connected:?}, echoed in {echoed:?}");
    world.finish([ours, theirs]).await;
}

#[tokio::test(start_paused = true)]
async fn a_clean_path_carries_both_versions() {
    for version in [WebRtcDirectVersion::V1, WebRtcDirectVersion::V2] {
        let mut world = World::new(1, round_trip(50)).await;
        let ours = world
            .client
            .connect_with(&world.address, version)
            .await
            .unwrap();
        let theirs = world.served.recv().await.unwrap().unwrap();
        assert_eq!(ours.peer_id(), Some(world.server.peer_id()));
        assert_eq!(theirs.peer_id(), Some(world.client.peer_id()));
        assert_eq!(echo(ours.clone(), 10_000).await.unwrap(), Finished::Acked);
        world.finish([ours, theirs]).await;
    }
}

#[tokio::test(start_paused = true)]
async fn one_percent_of_loss_costs_nothing_but_time() {
    let conditions = Conditions {
        loss: 0.01,
        ..round_trip(50)
    };
    transfer_under(2, conditions).await;
}

#[tokio::test(start_paused = true)]
async fn five_percent_of_loss_cost_nothing_but_time() {
    let conditions = Conditions {
        loss: 0.05,
        ..round_trip(50)
    };
    transfer_under(3, conditions).await;
}

#[tokio::test(start_paused = true)]
async fn ten_percent_of_loss_cost_nothing_but_time() {
    let conditions = Conditions {
        loss: 0.1,
        ..round_trip(50)
    };
    transfer_under(4, conditions).await;
}

#[tokio::test(start_paused = true)]
async fn bursts_of_loss_cost_nothing_but_time() {
    let conditions = Conditions {
        burst: Some(Burst {
            enter: 0.005,
            leave: 0.2,
            loss: 0.8,
        }),
        ..round_trip(50)
    };
    transfer_under(5, conditions).await;
}

#[tokio::test(start_paused = true)]
async fn reordering_does_no_harm() {
    let conditions = Conditions {
        reorder: 0.2,
        reorder_delay: Duration::from_millis(30),
        ..round_trip(50)
    };
    transfer_under(6, conditions).await;
}

#[tokio::test(start_paused = true)]
async fn duplicates_do_no_harm() {
    let conditions = Conditions {
        duplicate: 0.2,
        ..round_trip(50)
    };
    transfer_under(7, conditions).await;
}

#[tokio::test(start_paused = true)]
async fn jitter_does_no_harm() {
    let conditions = Conditions {
        jitter: Duration::from_millis(100),
        ..round_trip(50)
    };
    transfer_under(8, conditions).await;
}

#[tokio::test(start_paused = true)]
async fn flipped_bits_do_no_harm() {
    let conditions = Conditions {
        corrupt: 0.01,
        ..round_trip(50)
    };
    transfer_under(9, conditions).await;
}

#[tokio::test(start_paused = true)]
async fn a_path_of_1280_bytes_is_wide_enough() {
    let conditions = Conditions {
        mtu: Some(1280),
        ..round_trip(50)
    };
    let mut world = World::new(10, conditions).await;
    let (ours, theirs) = world.connect().await;
    assert_eq!(echo(ours.clone(), 100_000).await.unwrap(), Finished::Acked);
    // Probes of longer packets, and nothing else.
    let dropped = world.network.counters().dropped_by_mtu;
    assert!(dropped < 30, "{dropped}");
    world.finish([ours, theirs]).await;
}

#[tokio::test(start_paused = true)]
async fn a_slow_link_with_a_short_queue_is_shared_and_not_flooded() {
    let conditions = Conditions {
        rate: Some(125_000),
        queue: 20_000,
        ..round_trip(50)
    };
    let mut world = World::new(11, conditions).await;
    let (ours, theirs) = world.connect().await;
    let start = Instant::now();
    assert_eq!(bulk(ours.clone(), 500_000).await.unwrap(), Finished::Acked);
    let goodput = 500_000.0 / start.elapsed().as_secs_f64();
    println!(
        "{goodput:.0} of 125 000 bytes/s, {:?}",
        world.network.counters()
    );
    assert!(goodput > 40_000.0, "{goodput}");
    world.finish([ours, theirs]).await;
}

#[tokio::test(start_paused = true)]
async fn a_slow_network_card_makes_the_sender_wait() {
    let conditions = Conditions {
        rate: Some(500_000),
        queue: 40_000,
        backpressure: true,
        ..round_trip(20)
    };
    let mut world = World::new(12, conditions).await;
    let (ours, theirs) = world.connect().await;
    assert_eq!(
        bulk(ours.clone(), 1_000_000).await.unwrap(),
        Finished::Acked
    );
    assert_eq!(world.network.counters().dropped_by_queue, 0);
    world.finish([ours, theirs]).await;
}

#[tokio::test(start_paused = true)]
async fn hosts_without_offload_send_datagram_by_datagram() {
    let mut world = World::new(13, round_trip(20)).await;
    for host in &world.hosts {
        host.set_offload(false);
    }
    let (ours, theirs) = world.connect().await;
    assert_eq!(echo(ours.clone(), 100_000).await.unwrap(), Finished::Acked);
    world.finish([ours, theirs]).await;
}

/// What `stats` says of the path is what the network is.
#[tokio::test(start_paused = true)]
async fn the_statistics_of_a_path_are_those_of_the_network() {
    let mut world = World::new(4, round_trip(50)).await;
    let (ours, theirs) = world.connect().await;
    assert_eq!(bulk(ours.clone(), 1 << 20).await.unwrap(), Finished::Acked);
    let clean = ours.stats().path.expect("it is known");
    assert_eq!(Some(clean.remote), ours.remote_address());
    assert_eq!(Some(clean.local), theirs.remote_address());
    let (rtt, least) = (clean.rtt.unwrap(), clean.min_rtt.unwrap());
    let of_path = Duration::from_millis(50)..Duration::from_millis(75);
    assert!(
        of_path.contains(&rtt) && of_path.contains(&least),
        "{clean:?}"
    );
    assert!(least <= rtt && clean.cwnd > 10_000, "{clean:?}");
    assert!((1190..=1200).contains(&clean.mtu), "{clean:?}");
    // What follows the echo, such as credit.
    assert!(clean.in_flight < 100, "{clean:?}");
    assert_eq!(clean.bytes_lost, 0, "{clean:?}");
    assert!(clean.bytes_sent > 1 << 20, "{clean:?}");
    // The other side has received.
    let other = theirs.stats().path.expect("it is known");
    assert_eq!((other.local, other.remote), (clean.remote, clean.local));
    world.network.set_conditions(Conditions {
        loss: 0.05,
        ..round_trip(50)
    });
    assert_eq!(bulk(ours.clone(), 4 << 20).await.unwrap(), Finished::Acked);
    let lossy = ours.stats().path.expect("it is known");
    let lost = lossy.bytes_lost as f64 / (lossy.bytes_sent - clean.bytes_sent) as f64;
    assert!((0.03..0.08).contains(&lost), "{lost}: {lossy:?}");
    world.network.set_conditions(round_trip(50));
    world.finish([ours, theirs]).await;
}
