//! Faults of the simulated network during the load.

use std::time::{Duration, Instant};

use anabranch_testkit::simulator::{Burst, Conditions, Host, Network};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::time::sleep;

/// Changes the paths between `server` and `hosts` until `deadline`.
pub(crate) async fn run(
    network: Network,
    server: Host,
    hosts: Vec<Host>,
    seed: u64,
    deadline: Instant,
) {
    let mut rng = StdRng::seed_from_u64(seed ^ 0x0fa0_17e5);
    for host in &hosts {
        network.set_path(&server, host, conditions(&mut rng));
    }
    while Instant::now() < deadline {
        sleep(Duration::from_millis(rng.random_range(100..3000))).await;
        let host = &hosts[rng.random_range(0..hosts.len())];
        match rng.random_range(0..20) {
            0..=9 => network.set_path(&server, host, conditions(&mut rng)),
            // In one direction only.
            10..=13 => network.set_link(&server, host, conditions(&mut rng)),
            14..=16 => {
                let short = Duration::from_millis(rng.random_range(100..5000));
                network.blackout(&server, host, short);
            }
            17 => {
                // Longer than `EndpointConfig::silence_timeout`.
                network.blackout(&server, host, Duration::from_secs(20));
            }
            _ => network.rebind(host),
        }
    }
}

fn conditions(rng: &mut StdRng) -> Conditions {
    let mut conditions = Conditions::round_trip(Duration::from_millis(rng.random_range(1..150)));
    if rng.random_bool(0.7) {
        conditions.loss = rng.random_range(0.0..0.05);
    }
    if rng.random_bool(0.2) {
        conditions.burst = Some(Burst {
            enter: rng.random_range(0.0..0.01),
            leave: rng.random_range(0.2..0.8),
            loss: rng.random_range(0.3..1.0),
        });
    }
    if rng.random_bool(0.4) {
        conditions.duplicate = rng.random_range(0.0..0.2);
    }
    if rng.random_bool(0.4) {
        conditions.reorder = rng.random_range(0.0..0.2);
        conditions.reorder_delay = Duration::from_millis(rng.random_range(1..60));
    }
    if rng.random_bool(0.2) {
        conditions.corrupt = rng.random_range(0.0..0.02);
    }
    if rng.random_bool(0.4) {
        conditions.jitter = Duration::from_millis(rng.random_range(0..40));
    }
    if rng.random_bool(0.3) {
        conditions.rate = Some(rng.random_range(200_000..10_000_000));
    }
    conditions
}
