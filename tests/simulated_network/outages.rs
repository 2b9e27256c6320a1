//! Paths that fall silent, for a while or for ever, or change under the connection.

use std::cell::Cell;
use std::io;
use std::time::Duration;

use anabranch::{ConnectError, ConnectionError, EngineFactory, Finished, OpenError};
use anabranch_testkit::simulator::Conditions;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use crate::world::{
    BULK, ECHO, Failed, World, bulk, echo, endpoint_config, pattern, round_trip, watch_pauses,
};

#[tokio::test(start_paused = true)]
async fn a_blackout_of_three_seconds_is_survived() {
    let mut world = World::new(14, round_trip(50)).await;
    let (ours, theirs) = world.connect().await;
    let start = Instant::now();
    let blackout = async {
        sleep(Duration::from_millis(400)).await;
        world
            .network
            .blackout(&world.hosts[0], &world.hosts[1], Duration::from_secs(3));
    };
    let (outcome, ()) = tokio::join!(bulk(ours.clone(), 3_000_000), blackout);
    assert_eq!(outcome.unwrap(), Finished::Acked);
    println!("3 MB around a blackout of 3 s took {:?}", start.elapsed());
    assert!(world.network.counters().dropped_by_blackout > 0);
    world.finish([ours, theirs]).await;
}

#[tokio::test(start_paused = true)]
async fn permanent_silence_ends_the_connection_and_every_substream_learns_it() {
    for silenced in [0, 1] {
        let mut world = World::new(15, round_trip(50)).await;
        let (ours, theirs) = world.connect().await;
        let mut waiting = JoinSet::new();
        for _ in 0..3 {
            // Receives its first byte, then waits for more that never arrives.
            let mut substream = ours.open(ECHO).await.unwrap();
            substream.write_all(b"x").await.unwrap();
            substream.read_exact(&mut [0]).await.unwrap();
            waiting.spawn(async move { substream.read(&mut [0]).await.unwrap_err().kind() });
        }
        let mut sending = ours.open(BULK).await.unwrap();
        let sending = tokio::spawn(async move {
            let block = pattern(251 * 64);
            loop {
                if let Err(error) = sending.write_all(&block).await {
                    return error.kind();
                }
            }
        });
        sleep(Duration::from_secs(1)).await;
        world.network.set_silent(&world.hosts[silenced], true);
        let start = Instant::now();
        let ended = timeout(Duration::from_secs(60), async {
            let ours = async { (ours.closed().await, start.elapsed()) };
            let theirs = async { (theirs.closed().await, start.elapsed()) };
            tokio::join!(ours, theirs)
        });
        let ((here, after_here), (there, after_there)) = ended.await.expect("both sides end");
        println!("silence noticed after {after_here:?} and {after_there:?}");
        assert_eq!(
            (here, there),
            (ConnectionError::TimedOut, ConnectionError::TimedOut)
        );
        while let Some(kind) = waiting.join_next().await {
            assert_eq!(kind.unwrap(), io::ErrorKind::UnexpectedEof);
        }
        assert_eq!(sending.await.unwrap(), io::ErrorKind::ConnectionAborted);
        assert!(ours.open(ECHO).await.is_err());
        world.finish([ours, theirs]).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_dial_into_silence_times_out() {
    let world = World::new(16, round_trip(50)).await;
    world.network.set_silent(&world.hosts[0], true);
    let start = Instant::now();
    let error = world.client.connect(&world.address).await.unwrap_err();
    assert!(matches!(error, ConnectError::TimedOut { .. }), "{error}");
    assert!(start.elapsed() <= Duration::from_secs(11));
    assert_eq!(world.network.sockets(), 1);
    assert!(world.client.is_idle() && world.server.is_idle());
}

#[tokio::test(start_paused = true)]
async fn a_dialler_whose_nat_drops_the_mapping_continues_from_its_new_port() {
    let mut world = World::new(20, round_trip(50)).await;
    let (ours, theirs) = world.connect().await;
    assert_eq!(echo(ours.clone(), 10_000).await.unwrap(), Finished::Acked);
    world.network.rebind(&world.hosts[1]);
    // str0m keeps its candidate pair until that has been dead for 15 s.
    let most_timed_out = match endpoint_config().engine.name() {
        "str0m" => 5,
        _ => 2,
    };
    // The listener learns the new address from the dialler's next consent check (RFC 7675), and
    // sends to the old one until then: substreams that are opened meanwhile time out.
    let (start, mut timed_out) = (Instant::now(), 0);
    let outcome = loop {
        match echo(ours.clone(), 10_000).await {
            Err(Failed::Open(OpenError::TimedOut)) => timed_out += 1,
            outcome => break outcome.unwrap(),
        }
    };
    println!(
        "works again {:?} after the NAT forgot, {timed_out} opens timed out",
        start.elapsed()
    );
    // Each takes 5 s, the time between two consent checks.
    assert!(timed_out <= most_timed_out, "{timed_out}");
    assert_eq!(outcome, Finished::Acked);
    assert!(world.network.counters().unreachable > 0);
    world.finish([ours, theirs]).await;
}

/// Between two str0m engines the listener keeps its candidate pair until that has been dead for 15
/// s.
async fn world_of_the_direct_engine(seed: u64) -> World {
    let mut config = endpoint_config();
    config.engine = EngineFactory::DIRECT;
    let conditions = Conditions {
        rate: Some(1_000_000),
        queue: 50_000,
        ..round_trip(50)
    };
    World::with(config, seed, conditions).await
}

#[tokio::test(start_paused = true)]
async fn a_transfer_goes_on_soon_when_the_dialler_s_address_changes() {
    for (seed, upload, gap) in [
        (21, true, Duration::ZERO),
        (22, false, Duration::ZERO),
        (23, true, Duration::from_secs(2)),
        (24, false, Duration::from_secs(2)),
    ] {
        let mut world = world_of_the_direct_engine(seed).await;
        let (ours, theirs) = world.connect().await;
        let [server, client] = world.hosts.clone();
        let change = async {
            sleep(Duration::from_secs(2)).await;
            if !gap.is_zero() {
                world.network.unplug(&client);
                sleep(gap).await;
            }
            world.network.renumber(&client, [192, 0, 2, 1]);
        };
        let transfer = async {
            match upload {
                true => bulk(ours.clone(), 5_000_000).await,
                false => echo(ours.clone(), 5_000_000).await,
            }
        };
        let longest = Cell::new(Duration::ZERO);
        let (from, to) = if upload {
            (&client, &server)
        } else {
            (&server, &client)
        };
        let outcome = tokio::select! {
            (outcome, ()) = async { tokio::join!(transfer, change) } => outcome,
            () = watch_pauses(&world.network, from, to, &longest) => unreachable!("never ends"),
        };
        assert_eq!(outcome.unwrap(), Finished::Acked);
        let longest = longest.get();
        println!("upload {upload}, {gap:?} without an address: a pause of {longest:?}");
        assert!(longest > gap, "{longest:?}");
        // SCTP has backed off by as much again.
        let limit = Duration::from_millis(1500) + gap * 2;
        assert!(longest < limit, "{longest:?}");
        world.finish([ours, theirs]).await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_idle_dialler_whose_address_changes_is_served_at_its_next_request() {
    let mut world = world_of_the_direct_engine(25).await;
    let (ours, theirs) = world.connect().await;
    // Also back to an earlier address, to which its peer has given a higher preference.
    for last in [1, 2, 1, 2, 3] {
        sleep(Duration::from_secs(3)).await;
        world.network.renumber(&world.hosts[1], [192, 0, 2, last]);
        let start = Instant::now();
        assert_eq!(echo(ours.clone(), 1000).await.unwrap(), Finished::Acked);
        println!("served after {:?} at .{last}", start.elapsed());
        assert!(
            start.elapsed() < Duration::from_millis(1500),
            "{:?}",
            start.elapsed()
        );
    }
    // The listener switches as well, once it has checked the path.
    sleep(Duration::from_secs(3)).await;
    world.network.renumber(&world.hosts[1], [192, 0, 2, 4]);
    sleep(Duration::from_secs(7)).await;
    let start = Instant::now();
    let mut lazily = theirs.open(ECHO).await.unwrap();
    let refused = lazily.read(&mut [0]).await.unwrap_err();
    println!("{refused} after {:?}", start.elapsed());
    assert!(start.elapsed() < Duration::from_millis(200));
    world.finish([ours, theirs]).await;
}
