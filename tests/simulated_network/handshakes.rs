//! Handshakes with loss, and with garbage between their datagrams.

use std::time::Duration;

use anabranch::Finished;
use anabranch_testkit::simulator::{Conditions, TappedDatagram, Verdict};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::time::{Instant, timeout};

use crate::world::{FOREVER, World, echo, round_trip};

fn is_dtls(datagram: &TappedDatagram) -> bool {
    matches!(datagram.contents.first(), Some(20..=63))
}

#[tokio::test(start_paused = true)]
async fn lost_first_flights_of_dtls_are_sent_again() {
    // From the dialler, from the listener, from both.
    for (lost_up, lost_down) in [(2, 0), (0, 2), (1, 1), (3, 0), (0, 3)] {
        let mut world = World::new(17, round_trip(50)).await;
        let server = world.hosts[0].ip();
        let (mut up, mut down) = (lost_up, lost_down);
        world.network.set_tap(move |datagram| {
            let left = if datagram.destination.ip() == server {
                &mut up
            } else {
                &mut down
            };
            if *left > 0 && is_dtls(datagram) {
                *left -= 1;
                return Verdict::Drop;
            }
            Verdict::Pass
        });
        let start = Instant::now();
        let connected = timeout(FOREVER, world.connect()).await;
        println!(
            "{lost_up} and {lost_down} lost: connected after {:?}",
            start.elapsed()
        );
        let (ours, theirs) = connected.unwrap();
        assert_eq!(world.network.counters().dropped_by_tap, lost_up + lost_down);
        assert_eq!(echo(ours.clone(), 1000).await.unwrap(), Finished::Acked);
        world.finish([ours, theirs]).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_handshake_with_a_hole_is_acknowledged_without_a_flood() {
    // These losses make dimpl send acknowledgements; without a pause between those the dialler
    // never returned from `Rtc::poll_output`.
    let conditions = Conditions {
        loss: 0.055_355_384_035_063_78,
        jitter: Duration::from_millis(3),
        ..round_trip(182)
    };
    let mut world = World::new(209, conditions).await;
    let (ours, theirs) = timeout(FOREVER, world.connect()).await.unwrap();
    let sent = world.network.counters().sent;
    assert!(sent < 400, "{sent}");
    world.finish([ours, theirs]).await;
}

#[tokio::test(start_paused = true)]
async fn the_first_stun_requests_may_get_lost() {
    let mut world = World::new(18, round_trip(50)).await;
    let mut left = 3;
    world.network.set_tap(move |_| {
        let drop = left > 0;
        left -= u64::from(drop);
        if drop { Verdict::Drop } else { Verdict::Pass }
    });
    let (ours, theirs) = world.connect().await;
    assert_eq!(echo(ours.clone(), 1000).await.unwrap(), Finished::Acked);
    world.finish([ours, theirs]).await;
}

#[tokio::test(start_paused = true)]
async fn garbage_from_the_peers_address_and_from_strangers_changes_nothing() {
    let mut world = World::new(19, round_trip(20)).await;
    let network = world.network.clone();
    let mut rng = StdRng::seed_from_u64(19);
    let mut count = 0_u32;
    world.network.set_tap(move |datagram| {
        count += 1;
        let mut garbage = vec![0; rng.random_range(0..1300)];
        rng.fill(&mut garbage[..]);
        // Each kind of first byte, and the datagram itself, truncated or modified.
        match count % 4 {
            0 => {}
            1 => garbage.first_mut().into_iter().for_each(|byte| *byte = 22),
            2 => {
                let cut = rng.random_range(0..=datagram.contents.len());
                garbage = datagram.contents[..cut].to_vec();
            }
            _ => {
                garbage.clone_from(&datagram.contents);
                let at = rng.random_range(0..garbage.len());
                garbage[at] ^= 1 << rng.random_range(0..8);
            }
        }
        let stranger = "192.0.2.1:9".parse().unwrap();
        let source = if count % 8 < 6 {
            datagram.source
        } else {
            stranger
        };
        network.inject(source, datagram.destination, garbage);
        Verdict::Pass
    });
    let (ours, theirs) = timeout(FOREVER, world.connect()).await.unwrap();
    assert_eq!(echo(ours.clone(), 50_000).await.unwrap(), Finished::Acked);
    world.network.clear_tap();
    world.finish([ours, theirs]).await;
}
