//! Transfers whose dialler changes its address or port five times.

use std::cell::Cell;
use std::time::Duration;

use anabranch::{EngineFactory, Finished};
use anabranch_testkit::simulator::Conditions;
use tokio::time::sleep;

use crate::world::{World, bulk, echo, endpoint_config, round_trip, watch_pauses};

/// 64 MiB take 6 s.
const LENGTH: usize = 64 << 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    /// The dialler's NAT forgets its mapping. Nothing tells the dialler.
    Port,
    /// The dialler gets another address, as between Wi-Fi and a mobile network.
    Address,
}

async fn five(seed: u64, change: Change, upload: bool) {
    let mut config = endpoint_config();
    config.engine = EngineFactory::DIRECT;
    let conditions = Conditions {
        rate: Some(12_500_000),
        queue: 500_000,
        ..round_trip(50)
    };
    let mut world = World::with(config, seed, conditions).await;
    let (ours, theirs) = world.connect().await;
    let [server, client] = world.hosts.clone();
    let changes = async {
        for last in 1..=5 {
            sleep(Duration::from_secs(1)).await;
            match change {
                Change::Port => world.network.rebind(&client),
                Change::Address => world.network.renumber(&client, [192, 0, 2, last]),
            }
        }
    };
    let transfer = async {
        match upload {
            true => bulk(ours.clone(), LENGTH).await,
            false => echo(ours.clone(), LENGTH).await,
        }
    };
    let longest = Cell::new(Duration::ZERO);
    let (from, to) = match upload {
        true => (&client, &server),
        false => (&server, &client),
    };
    let outcome = tokio::select! {
        (outcome, ()) = async { tokio::join!(transfer, changes) } => outcome,
        () = watch_pauses(&world.network, from, to, &longest) => unreachable!("never completes"),
    };
    assert_eq!(outcome.unwrap(), Finished::Acked);
    let longest = longest.get();
    println!("{change:?}, upload {upload}: a pause of {longest:?}");
    assert!(
        longest < Duration::from_secs(2),
        "{change:?}, upload {upload}: {longest:?}"
    );
    world.finish([ours, theirs]).await;
}

#[tokio::test(start_paused = true)]
async fn an_upload_crosses_five_changes_of_the_port() {
    five(81, Change::Port, true).await;
}

#[tokio::test(start_paused = true)]
async fn a_download_crosses_five_changes_of_the_port() {
    five(82, Change::Port, false).await;
}

#[tokio::test(start_paused = true)]
async fn an_upload_crosses_five_changes_of_the_address() {
    five(83, Change::Address, true).await;
}

#[tokio::test(start_paused = true)]
async fn a_download_crosses_five_changes_of_the_address() {
    five(84, Change::Address, false).await;
}
