//! No healthy substream stalls, whatever its neighbours do: cases from the field, and random
//! operations on bad paths.

use std::time::Duration;

use anabranch::connection::Negotiation;
use anabranch::{Config, Connection, Endpoint, Finished};
use anabranch_testkit::conformance::storm;
use anabranch_testkit::simulator::{Conditions, Network, Verdict};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, sleep, timeout};

use super::world::{BULK, FOREVER, World, pattern, round_trip};

/// Longer than any progress takes, with all delays.
const LIMIT: Duration = Duration::from_secs(20);

/// Flushed messages of 20 bytes, as fast as possible, over a clean path and over one that loses a
/// packet in a thousand. On the first the stream stalled after 79 142 messages, on the second after
/// 41 169.
#[tokio::test(start_paused = true)]
async fn small_flushed_messages_all_arrive_on_a_long_path() {
    for (milliseconds, loss) in [(50, 0.0), (20, 0.001)] {
        let conditions = Conditions {
            loss,
            rate: Some(12_500_000),
            queue: 1_000_000,
            ..round_trip(milliseconds)
        };
        let mut world = World::new(7, conditions).await;
        let (ours, theirs) = world.connect().await;
        let mut substream = ours.open(BULK).await.unwrap();
        let content = pattern(20 * 100_000);
        let transfer = async {
            for message in content.chunks(20) {
                substream.write_all(message).await.unwrap();
                substream.flush().await.unwrap();
            }
            assert_eq!(substream.finish().await, Ok(Finished::Acked));
            substream.read_u64().await.unwrap()
        };
        let count = timeout(FOREVER, transfer).await.expect("it goes on");
        assert_eq!(count, content.len() as u64);
        drop(substream);
        world.finish([ours, theirs]).await;
    }
}

/// The peer resets a stream at full rate, with a round trip of data unacknowledged. Data of a
/// neighbour that begins to write at that moment arrives within one round trip.
#[tokio::test(start_paused = true)]
async fn a_reset_by_the_peer_lets_the_neighbour_through_within_a_round_trip() {
    const ROUND_TRIP: Duration = Duration::from_millis(400);
    let network = Network::new(8);
    network.set_conditions(Conditions::round_trip(ROUND_TRIP));
    let (reading, writing, endpoints) = pair(&network).await;
    let mut neighbour = writing.open("").await.unwrap();
    neighbour.write_all(b"!").await.unwrap();
    let mut heard = reading.accept().await.unwrap().unwrap();
    heard.read_exact(&mut [0]).await.unwrap();
    let mut pouring = writing.open("").await.unwrap();
    let pour = tokio::spawn(async move {
        let block = pattern(4096);
        while pouring.write_all(&block).await.is_ok() {}
    });
    let mut poured = reading.accept().await.unwrap().unwrap();
    // Long enough that its writer has been refused, and continues with each acknowledgement.
    let mut first = vec![0; 200_000];
    let read = timeout(LIMIT, poured.read_exact(&mut first)).await;
    read.expect("it pours").unwrap();
    assert!(first == pattern(4096).repeat(50)[..200_000]);
    let began = Instant::now();
    poured.reset(7);
    neighbour.write_all(&pattern(1000)).await.unwrap();
    let mut message = vec![0; 1000];
    let read = timeout(LIMIT, heard.read_exact(&mut message)).await;
    read.expect("it goes on").unwrap();
    assert!(message == pattern(1000));
    let took = began.elapsed();
    println!("heard after {took:?}");
    assert!(took <= ROUND_TRIP, "{took:?}");
    timeout(LIMIT, pour).await.expect("it ends").unwrap();
    drop((neighbour, heard, poured));
    finish((reading, writing, endpoints)).await;
}

/// The same after half a second without DATA: SCTP has backed off, and the first DATA to pass is
/// what the next timeout sends.
#[tokio::test(start_paused = true)]
async fn a_reset_of_what_was_lost_lets_the_neighbour_through_within_one_timeout() {
    /// The longest timeout of SCTP.
    const TIMEOUT: Duration = Duration::from_secs(3);
    const ROUND_TRIP: Duration = Duration::from_millis(20);
    // Before and after the channel has closed, which takes 2 s.
    for pause in [100, 2600] {
        let mut world = World::new(8, Conditions::round_trip(ROUND_TRIP)).await;
        let (ours, theirs) = world.connect().await;
        let (echoed, echo) = ours.open("/echo/1").await.unwrap().into_split();
        let (mut poured, mut pouring) = ours.open("/echo/1").await.unwrap().into_split();
        let mut neighbour = ours.open(BULK).await.unwrap();
        let pour = tokio::spawn(async move {
            let block = pattern(4096);
            while pouring.write_all(&block).await.is_ok() {}
        });
        let mut first = [0; 20_000];
        let read = timeout(LIMIT, poured.read_exact(&mut first)).await;
        read.expect("it pours").unwrap();
        // Drops large packets with DATA for a while; SACKs and checks pass.
        world.network.set_tap(|datagram| {
            if datagram.contents.len() > 500 {
                Verdict::Drop
            } else {
                Verdict::Pass
            }
        });
        sleep(Duration::from_millis(500)).await;
        poured.stop(7);
        drop(poured);
        pour.abort();
        sleep(Duration::from_millis(pause)).await;
        world.network.clear_tap();
        let began = Instant::now();
        let writing = async {
            neighbour.write_all(&pattern(300_000)).await.unwrap();
            neighbour.finish().await
        };
        let closed = timeout(LIMIT, writing).await;
        assert_eq!(closed.expect("it goes on"), Ok(Finished::Acked));
        let took = began.elapsed();
        println!("pause {pause}: whole after {took:?}");
        // Retransmissions first, and then 300 KB from a window of one packet.
        assert!(took < TIMEOUT + 20 * ROUND_TRIP, "{took:?}");
        drop((neighbour, echoed, echo));
        world.finish([ours, theirs]).await;
    }
}

type Ends = (Connection, Connection, [Endpoint; 2]);

async fn finish((ours, theirs, endpoints): Ends) {
    drop((ours, theirs));
    for endpoint in endpoints {
        endpoint.close().await;
        assert!(endpoint.is_idle());
    }
}

async fn pair(network: &Network) -> Ends {
    let hosts = [network.host([10, 0, 0, 1]), network.host([10, 0, 0, 2])];
    let mut config = Config::default();
    config.negotiation = Negotiation::None;
    config.max_inbound_substreams = 64;
    let builder = || Endpoint::builder().config(config.clone());
    let listener = builder()
        .sockets(hosts[0].clone())
        .bind("0.0.0.0:4001")
        .await
        .unwrap();
    let dialler = builder().sockets(hosts[1].clone()).dial_only().unwrap();
    let address = listener.addresses().remove(0);
    let (ours, theirs) = tokio::join!(dialler.connect(&address), async {
        listener.accept().await.expect("open").accept().await
    });
    (ours.unwrap(), theirs.unwrap(), [listener, dialler])
}

/// `ANABRANCH_SEEDS=2000` for more; each is 100 substreams with some ten thousand operations.
#[tokio::test(start_paused = true)]
async fn random_operations_lose_nothing_on_bad_paths() {
    let seeds = std::env::var("ANABRANCH_SEEDS").ok();
    let seeds: u64 = seeds.and_then(|seeds| seeds.parse().ok()).unwrap_or(10);
    for seed in 0..seeds {
        let mut rng = StdRng::seed_from_u64(seed);
        let network = Network::new(seed);
        network.set_conditions(Conditions {
            loss: [0.0, 0.001, 0.01, 0.03][rng.random_range(0..4)],
            jitter: Duration::from_millis(rng.random_range(0..10)),
            ..round_trip(rng.random_range(1..60))
        });
        let (ours, theirs, endpoints) = pair(&network).await;
        let (a, b) = if rng.random() {
            (&ours, &theirs)
        } else {
            (&theirs, &ours)
        };
        timeout(FOREVER, storm(seed, a, b))
            .await
            .unwrap_or_else(|_| panic!("seed {seed} hangs"));
        drop((ours, theirs));
        for endpoint in endpoints {
            endpoint.close().await;
            assert!(endpoint.is_idle(), "seed {seed}");
        }
    }
}
