//! Random conditions, one scenario for each seed.

use std::cell::RefCell;
use std::time::Duration;

use anabranch::endpoint::Phase;
use anabranch::{ConnectError, EndpointConfig, EngineFactory, WebRtcDirectVersion};
use anabranch_str0m::STR0M;
use anabranch_testkit::simulator::{Burst, Conditions};
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::time::{Instant, sleep, timeout};
use tracing_subscriber::EnvFilter;

use crate::tally::{Path, Tally};
use crate::world::{FOREVER, World, bulk, echo};

/// Conditions that a connection survives, drawn from a seed.
fn random_conditions(rng: &mut StdRng, mark: u8) -> Conditions {
    let mut often = |probability: f64| rng.random_bool(probability);
    let (lossy, bursty, doubling, mixing, jittery, flipping, slow, narrow) = (
        often(0.6),
        often(0.3),
        often(0.4),
        often(0.4),
        often(0.5),
        often(0.3),
        often(0.4),
        often(0.2),
    );
    Conditions {
        latency: Duration::from_millis(rng.random_range(0..120)),
        jitter: Duration::from_millis(if jittery { rng.random_range(0..60) } else { 0 }),
        loss: if lossy {
            rng.random_range(0.0..0.08)
        } else {
            0.0
        },
        burst: bursty.then(|| Burst {
            enter: rng.random_range(0.0..0.01),
            leave: rng.random_range(0.2..0.8),
            loss: rng.random_range(0.3..1.0),
        }),
        duplicate: if doubling {
            rng.random_range(0.0..0.3)
        } else {
            0.0
        },
        reorder: if mixing {
            rng.random_range(0.0..0.3)
        } else {
            0.0
        },
        reorder_delay: Duration::from_millis(rng.random_range(1..60)),
        corrupt: if flipping {
            rng.random_range(0.0..0.02)
        } else {
            0.0
        },
        checksum: rng.random_bool(0.5),
        rate: slow.then(|| rng.random_range(50_000..5_000_000)),
        queue: rng.random_range(16_000..200_000),
        backpressure: rng.random_bool(0.3),
        mtu: narrow.then_some(1280),
        // Not drawn from the sequence of the others, which would change what each seed is.
        mark_above: [None, Some(3_000), Some(20_000)][usize::from(mark % 3)],
        clears_ecn: mark % 8 == 7,
    }
}

/// A transfer that is to be made.
#[derive(Clone, Copy)]
struct Planned {
    length: usize,
    echoed: bool,
}

/// Connects, transfers on several substreams while the path changes, closes.
async fn run_seed(seed: u64, engine: EngineFactory, tally: &RefCell<Tally>) {
    let mut rng = StdRng::seed_from_u64(seed);
    let conditions = random_conditions(&mut rng, seed as u8);
    println!("seed {seed}: {conditions:?}");
    let mut config = EndpointConfig::default();
    config.engine = engine;
    let mut world = World::with(config, seed, conditions).await;
    let [server, client] = world.hosts.clone();
    let mut back = conditions;
    if rng.random_bool(0.3) {
        // The return path has other conditions.
        back = random_conditions(&mut rng, (seed / 3) as u8);
        world.network.set_link(&server, &client, back);
    }
    for host in &world.hosts {
        host.set_offload(rng.random_bool(0.8));
    }
    let version = [WebRtcDirectVersion::V1, WebRtcDirectVersion::V2][rng.random_range(0..2)];
    let planned: Vec<_> = (0..rng.random_range(1..6))
        .map(|_| Planned {
            length: [0, 1, 1000, 20_000, 60_000][rng.random_range(0..5)],
            echoed: rng.random_bool(0.5),
        })
        .collect();
    let milliseconds = |rng: &mut StdRng, most| Duration::from_millis(rng.random_range(0..most));
    let blackout = (rng.random_bool(0.3))
        .then(|| (milliseconds(&mut rng, 1000), milliseconds(&mut rng, 2500)));
    let path = Path::of([&conditions, &back], blackout.is_some());

    tally.borrow_mut().connect(path, planned.len());
    let connected = timeout(FOREVER, world.client.connect_with(&world.address, version)).await;
    let ours = match connected.expect("connecting ends") {
        Ok(ours) => ours,
        Err(error) => {
            println!("seed {seed}: {error}");
            match error {
                ConnectError::TimedOut { .. } => tally.borrow_mut().timed_out(path),
                // DTLS has received an unexpected record (seed 13454).
                ConnectError::Ended {
                    phase: Phase::Dtls, ..
                } if path == Path::Forged => tally.borrow_mut().ended_in_dtls(path),
                error => panic!("no {path:?} path causes {error:?}"),
            }
            sleep(Duration::from_secs(60)).await;
            assert!(world.server.is_idle() && world.client.is_idle());
            assert_eq!((world.network.sockets(), world.network.in_flight()), (1, 0));
            return;
        }
    };
    let theirs = timeout(FOREVER, world.served.recv())
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    let mut transfers: FuturesUnordered<_> = planned
        .iter()
        .map(|planned| match planned.echoed {
            true => echo(ours.clone(), planned.length).boxed_local(),
            false => bulk(ours.clone(), planned.length).boxed_local(),
        })
        .collect();
    let transfers = async {
        while let Some(transfer) = transfers.next().await {
            if transfer.is_err() {
                println!("seed {seed}: {transfer:?}, {:?}", ours.close_reason());
            }
            tally.borrow_mut().transferred(path, &transfer);
        }
    };
    let blackout = async {
        if let Some((begin, length)) = blackout {
            sleep(begin).await;
            world.network.blackout(&server, &client, length);
        }
    };
    timeout(FOREVER, async { tokio::join!(transfers, blackout) })
        .await
        .expect("every transfer ends");
    world.finish([ours, theirs]).await;
}

/// Prints how to run a failed seed.
struct SeedGuard(u64);

impl Drop for SeedGuard {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!(
                "failed with seed {0}: ANABRANCH_SEED={0} runs it alone",
                self.0
            );
        }
    }
}

/// Runs all seeds, or those that the environment selects.
fn run_seeds(engine: EngineFactory) {
    let number = |name: &str| Some(std::env::var(name).ok()?.parse().expect(name));
    let seeds = match number("ANABRANCH_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("ANABRANCH_SEEDS").unwrap_or(500),
    };
    let count = seeds.end - seeds.start;
    // For RUST_LOG=anabranch=trace and one seed. Fails if another test has set a subscriber.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::from_default_env())
        .with_test_writer()
        .try_init();
    let begin = std::time::Instant::now();
    let tally = RefCell::default();
    for seed in seeds {
        let _guard = SeedGuard(seed);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .unwrap();
        let start = std::time::Instant::now();
        runtime.block_on(async {
            let start = Instant::now();
            run_seed(seed, engine, &tally).await;
            println!("seed {seed}: {:?} of virtual time", start.elapsed());
        });
        println!("seed {seed}: {:?} of real time", start.elapsed());
    }
    let tally = tally.into_inner();
    println!(
        "{count} seeds on {engine} in {:?}\n{tally}",
        begin.elapsed()
    );
    tally.judge(engine);
}

#[test]
fn whatever_the_path_does_transfers_are_whole_or_end_with_an_error_on_the_direct_engine() {
    run_seeds(EngineFactory::DIRECT);
}

#[test]
fn whatever_the_path_does_transfers_are_whole_or_end_with_an_error_on_str0m() {
    run_seeds(STR0M);
}
