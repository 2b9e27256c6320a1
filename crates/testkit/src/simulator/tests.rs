use std::collections::BTreeSet;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use super::state::DATAGRAM_COST;
use super::*;

mod ecn;

const MILLISECOND: Duration = Duration::from_millis(1);

/// Two hosts with a socket each.
struct Pair {
    network: Network,
    hosts: [Host; 2],
    a: SimulatedSocket,
    b: SimulatedSocket,
}

impl Pair {
    fn new(seed: u64, conditions: Conditions) -> Self {
        let network = Network::new(seed);
        network.set_conditions(conditions);
        let hosts = [network.host([10, 0, 0, 1]), network.host([10, 0, 0, 2])];
        let socket = |host: &Host| host.bind(SocketAddr::new(host.ip(), 7)).unwrap();
        Self {
            a: socket(&hosts[0]),
            b: socket(&hosts[1]),
            network,
            hosts,
        }
    }

    fn send(&self, number: u32, length: usize) {
        let mut contents = vec![0; length];
        contents[..4].copy_from_slice(&number.to_be_bytes());
        self.a.send_to(&contents, self.b.local_address()).unwrap();
    }

    /// Receives at `b` until nothing is in flight. Returns the numbers of the datagrams, with the
    /// milliseconds since `start`.
    async fn drain(&self, start: Instant) -> Vec<(u32, u128)> {
        let mut arrived = Vec::new();
        while self.network.in_flight() > 0 {
            let Ok((contents, _)) = timeout(Duration::from_secs(60), self.b.receive()).await else {
                break;
            };
            let number = u32::from_be_bytes(contents[..4].try_into().unwrap());
            arrived.push((number, start.elapsed().as_millis()));
        }
        arrived
    }

    /// Sends `count` datagrams a millisecond apart and returns what arrives.
    async fn run(&self, count: u32) -> Vec<(u32, u128)> {
        let start = Instant::now();
        let send = async {
            for number in 0..count {
                self.send(number, 100);
                sleep(MILLISECOND).await;
            }
        };
        // Receives meanwhile, so that the receive buffer is no additional limit.
        let mut arrived = Vec::new();
        tokio::pin!(send);
        loop {
            tokio::select! {
                biased;
                (contents, _) = self.b.receive() => {
                    let number = u32::from_be_bytes(contents[..4].try_into().unwrap());
                    arrived.push((number, start.elapsed().as_millis()));
                }
                () = &mut send => break,
            }
        }
        arrived.extend(self.drain(start).await);
        self.assert_nothing_left();
        arrived
    }

    fn assert_nothing_left(&self) {
        let counters = self.network.counters();
        assert_eq!(self.network.in_flight(), 0);
        assert_eq!(
            counters.sent + counters.duplicated,
            counters.ended(),
            "{counters:?}"
        );
    }
}

async fn run(seed: u64, conditions: Conditions, count: u32) -> (Vec<(u32, u128)>, Counters) {
    let pair = Pair::new(seed, conditions);
    let arrived = pair.run(count).await;
    (arrived, pair.network.counters())
}

fn assert_share(count: u64, of: u64, expected: f64) {
    let share = count as f64 / of as f64;
    assert!(
        (share - expected).abs() < 0.25 * expected,
        "{share} of {of}, expected {expected}"
    );
}

fn numbers(arrived: &[(u32, u128)]) -> Vec<u32> {
    arrived.iter().map(|(number, _)| *number).collect()
}

#[tokio::test(start_paused = true)]
async fn a_perfect_path_delivers_everything_at_once_and_in_order() {
    let (arrived, counters) = run(1, Conditions::default(), 100).await;
    assert_eq!(
        arrived,
        (0..100).map(|n| (n, u128::from(n))).collect::<Vec<_>>()
    );
    assert_eq!(
        (counters.sent, counters.delivered, counters.sent_bytes),
        (100, 100, 10_000)
    );
}

#[tokio::test(start_paused = true)]
async fn latency_delays_every_datagram() {
    let (arrived, _) = run(1, Conditions::round_trip(Duration::from_millis(50)), 10).await;
    for (number, at) in arrived {
        assert_eq!(at, u128::from(number) + 25);
    }
}

#[tokio::test(start_paused = true)]
async fn jitter_spreads_the_delay_and_keeps_the_order() {
    let jitter = Duration::from_millis(40);
    let conditions = Conditions {
        jitter,
        ..Conditions::round_trip(Duration::from_millis(20))
    };
    let (arrived, _) = run(1, conditions, 1000).await;
    assert_eq!(numbers(&arrived), (0..1000).collect::<Vec<_>>());
    let delays: Vec<_> = arrived
        .iter()
        .map(|(number, at)| at - u128::from(*number))
        .collect();
    assert!(delays.iter().all(|delay| (10..=51).contains(delay)));
    assert!(delays.iter().any(|delay| *delay > 40) && delays.iter().any(|delay| *delay < 20));
}

#[tokio::test(start_paused = true)]
async fn loss_takes_its_share_and_the_same_datagrams_for_the_same_seed() {
    let conditions = Conditions {
        loss: 0.05,
        ..Conditions::default()
    };
    let (arrived, counters) = run(3, conditions, 5000).await;
    assert_share(counters.lost, 5000, 0.05);
    assert_eq!(run(3, conditions, 5000).await.0, arrived);
    assert_ne!(run(4, conditions, 5000).await.0, arrived);
}

#[tokio::test(start_paused = true)]
async fn one_condition_does_not_shift_what_another_does() {
    let lossy = Conditions {
        loss: 0.1,
        ..Conditions::default()
    };
    let worse = Conditions {
        duplicate: 0.2,
        corrupt: 0.1,
        jitter: Duration::from_millis(3),
        ..lossy
    };
    let survivors =
        |arrived: Vec<(u32, u128)>| numbers(&arrived).into_iter().collect::<BTreeSet<_>>();
    // Corruption may hit the number in the payload.
    let uncorrupted = |conditions: Conditions| Conditions {
        corrupt: 0.0,
        ..conditions
    };
    let (first, _) = run(5, lossy, 1000).await;
    let (second, _) = run(5, uncorrupted(worse), 1000).await;
    assert_eq!(survivors(first), survivors(second));
    let (_, counters) = run(5, worse, 1000).await;
    assert_eq!(counters.lost, run(5, lossy, 1000).await.1.lost);
}

#[tokio::test(start_paused = true)]
async fn bursts_lose_neighbours() {
    let burst = Burst {
        enter: 0.01,
        leave: 0.2,
        loss: 1.0,
    };
    let conditions = Conditions {
        burst: Some(burst),
        ..Conditions::default()
    };
    let (arrived, counters) = run(6, conditions, 20_000).await;
    assert_share(counters.lost, 20_000, burst.mean_loss());
    let arrived: BTreeSet<u32> = arrived.into_iter().map(|(number, _)| number).collect();
    let lost = |number: &u32| !arrived.contains(number);
    let bursts = (1..20_000).filter(|number| lost(number) && arrived.contains(&(number - 1)));
    assert_share(counters.lost, bursts.count() as u64, 1.0 / burst.leave);
}

#[tokio::test(start_paused = true)]
async fn duplicates_arrive_twice() {
    let conditions = Conditions {
        duplicate: 0.2,
        ..Conditions::default()
    };
    let (arrived, counters) = run(7, conditions, 2000).await;
    assert_share(counters.duplicated, 2000, 0.2);
    assert_eq!(arrived.len() as u64, 2000 + counters.duplicated);
    assert_eq!(
        numbers(&arrived).into_iter().collect::<BTreeSet<_>>().len(),
        2000
    );
}

#[tokio::test(start_paused = true)]
async fn reordered_datagrams_are_overtaken() {
    let conditions = Conditions {
        reorder: 0.1,
        reorder_delay: Duration::from_millis(20),
        ..Conditions::default()
    };
    let (arrived, counters) = run(8, conditions, 2000).await;
    assert_share(counters.reordered, 2000, 0.1);
    assert_eq!(arrived.len(), 2000);
    let late = arrived
        .iter()
        .filter(|(number, at)| at - u128::from(*number) == 20)
        .count();
    assert_eq!(late as u64, counters.reordered);
    assert!(!numbers(&arrived).is_sorted());
}

#[tokio::test(start_paused = true)]
async fn corruption_flips_a_few_bits_unless_the_checksum_finds_out() {
    let conditions = Conditions {
        corrupt: 0.1,
        ..Conditions::default()
    };
    let pair = Pair::new(9, conditions);
    let mut changed = 0;
    for _ in 0..1000 {
        pair.a.send_to(&[0; 100], pair.b.local_address()).unwrap();
        let (contents, _) = pair.b.receive().await;
        let flipped: u32 = contents.iter().map(|byte| byte.count_ones()).sum();
        assert!(flipped <= 4);
        changed += u64::from(flipped > 0);
    }
    assert_share(pair.network.counters().corrupted, 1000, 0.1);
    // Two flips of the same bit cancel out, so `corrupted` may be larger.
    assert_share(changed, 1000, 0.1);
    pair.assert_nothing_left();
    let checked = Conditions {
        checksum: true,
        ..conditions
    };
    let (arrived, counters) = run(9, checked, 1000).await;
    assert_eq!(arrived.len() as u64, 1000 - counters.corrupted);
    assert_eq!(counters.lost, counters.corrupted);
}

#[tokio::test(start_paused = true)]
async fn the_rate_spaces_datagrams_and_the_queue_drops_what_it_can_not_hold() {
    let conditions = Conditions {
        rate: Some(100_000),
        queue: 50_000,
        ..Conditions::default()
    };
    let pair = Pair::new(10, conditions);
    let start = Instant::now();
    for number in 0..100 {
        pair.send(number, 972);
    }
    // 1000 bytes with headers, so 10 ms each; 50 of them fit into the queue.
    let arrived = pair.drain(start).await;
    assert_eq!(arrived.len(), 50);
    for (index, (number, at)) in arrived.iter().enumerate() {
        assert_eq!(*number, index as u32);
        assert!((10 * (index as u128 + 1)).abs_diff(*at) <= 1, "{at}");
    }
    assert_eq!(pair.network.counters().dropped_by_queue, 50);
    pair.assert_nothing_left();
}

#[tokio::test(start_paused = true)]
async fn backpressure_makes_the_sender_wait_in_place_of_dropping() {
    use anabranch::udp::DatagramSocket;

    let conditions = Conditions {
        rate: Some(100_000),
        queue: 20_000,
        backpressure: true,
        ..Conditions::default()
    };
    let pair = Pair::new(11, conditions);
    let start = Instant::now();
    let contents = [1; 972];
    let socket = Arc::new(pair.hosts[0].bind("10.0.0.1:8".parse().unwrap()).unwrap());
    let mut waits = 0;
    for _ in 0..100 {
        while let Err(error) = socket.send_to(&contents, pair.b.local_address()) {
            assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
            waits += 1;
            Arc::clone(&socket).writable().await.unwrap();
        }
    }
    assert!((5..=15).contains(&waits), "{waits}");
    assert_eq!(pair.drain(start).await.len(), 100);
    assert!(
        (990..1010).contains(&start.elapsed().as_millis()),
        "{:?}",
        start.elapsed()
    );
    pair.assert_nothing_left();
}

#[tokio::test(start_paused = true)]
async fn datagrams_above_the_mtu_vanish() {
    let pair = Pair::new(
        12,
        Conditions {
            mtu: Some(1280),
            ..Conditions::default()
        },
    );
    let start = Instant::now();
    pair.send(1, 1252);
    pair.send(2, 1253);
    assert_eq!(numbers(&pair.drain(start).await), [1]);
    assert_eq!(pair.network.counters().dropped_by_mtu, 1);
    pair.assert_nothing_left();
}

#[tokio::test(start_paused = true)]
async fn a_blackout_ends_and_silence_does_not() {
    let pair = Pair::new(13, Conditions::default());
    pair.network
        .blackout(&pair.hosts[0], &pair.hosts[1], Duration::from_millis(100));
    let arrived = pair.run(200).await;
    assert_eq!(numbers(&arrived), (100..200).collect::<Vec<_>>());
    pair.network.set_silent(&pair.hosts[1], true);
    assert_eq!(pair.run(50).await, []);
    pair.network.set_silent(&pair.hosts[1], false);
    assert_eq!(pair.run(50).await.len(), 50);
    assert_eq!(pair.network.counters().dropped_by_blackout, 150);
}

#[tokio::test(start_paused = true)]
async fn silence_swallows_what_is_under_way() {
    let pair = Pair::new(14, Conditions::round_trip(Duration::from_millis(100)));
    pair.send(1, 10);
    pair.network.set_silent(&pair.hosts[1], true);
    assert_eq!(pair.drain(Instant::now()).await, []);
    assert_eq!(pair.network.counters().dropped_by_blackout, 1);
}

#[tokio::test(start_paused = true)]
async fn a_rebound_host_is_seen_at_another_port_and_reached_there_only() {
    let pair = Pair::new(15, Conditions::round_trip(Duration::from_millis(10)));
    let original = pair.a.local_address();
    pair.send(1, 10);
    assert_eq!(pair.b.receive().await.1, original);
    pair.network.rebind(&pair.hosts[0]);
    pair.send(2, 10);
    let rebound = pair.b.receive().await.1;
    assert_eq!(rebound.ip(), original.ip());
    assert_ne!(rebound, original);
    pair.b.send_to(b"answer", rebound).unwrap();
    assert_eq!(&pair.a.receive().await.0[..], b"answer");
    pair.b.send_to(b"to the old port", original).unwrap();
    assert_eq!(pair.network.counters().unreachable, 1);

    // A datagram in flight to a lost mapping does not arrive.
    pair.b.send_to(b"too late", rebound).unwrap();
    pair.network.rebind_to(&pair.hosts[0], [192, 0, 2, 1]);
    sleep(Duration::from_millis(20)).await;
    assert_eq!(pair.network.counters().unreachable, 2);
    pair.send(3, 10);
    let (_, moved) = pair.b.receive().await;
    assert_eq!(moved.ip(), IpAddr::from([192, 0, 2, 1]));
    pair.b.send_to(b"answer", moved).unwrap();
    pair.a.receive().await;
    pair.assert_nothing_left();
}

#[tokio::test(start_paused = true)]
async fn a_tap_sees_changes_drops_and_injects() {
    let pair = Pair::new(16, Conditions::default());
    let network = pair.network.clone();
    let mut seen = 0;
    pair.network.set_tap(move |datagram| {
        seen += 1;
        match seen {
            1 => Verdict::Drop,
            2 => {
                datagram.contents = b"changed".to_vec();
                network.inject(datagram.source, datagram.destination, &b"injected"[..]);
                Verdict::Pass
            }
            _ => Verdict::Pass,
        }
    });
    for number in 0..3 {
        pair.send(number, 4);
    }
    pair.network.clear_tap();
    for expected in [&b"injected"[..], b"changed", &[0, 0, 0, 2]] {
        let (contents, source) = pair.b.receive().await;
        assert_eq!((&contents[..], source), (expected, pair.a.local_address()));
    }
    pair.network.inject(
        "192.0.2.9:9".parse().unwrap(),
        pair.b.local_address(),
        &b"forged"[..],
    );
    assert_eq!(pair.b.receive().await.1, "192.0.2.9:9".parse().unwrap());
    assert_eq!(pair.network.counters().dropped_by_tap, 1);
    pair.assert_nothing_left();
}

#[tokio::test(start_paused = true)]
async fn a_receiver_that_does_not_read_loses_what_its_buffer_can_not_hold() {
    let pair = Pair::new(17, Conditions::default());
    pair.hosts[1].set_receive_buffer(10 * (1000 + DATAGRAM_COST));
    for number in 0..20 {
        pair.send(number, 1000);
    }
    let arrived = pair.drain(Instant::now()).await;
    assert_eq!(numbers(&arrived), (0..10).collect::<Vec<_>>());
    assert_eq!(pair.network.counters().dropped_by_receiver, 10);
    pair.assert_nothing_left();
}

#[tokio::test(start_paused = true)]
async fn segments_are_sent_one_by_one_and_received_together() {
    use anabranch::udp::{DatagramSocket, Transmit};

    let pair = Pair::new(18, Conditions::round_trip(Duration::from_millis(2)));
    let contents = vec![7; 2 * 1200 + 300];
    let outgoing = Transmit::new(pair.b.local_address(), &contents)
        .with_source(pair.hosts[0].ip())
        .with_segment_size(1200);
    let receives = || async {
        let mut receives = Vec::new();
        std::future::poll_fn(|cx| {
            pair.b.poll_receive(cx, &mut |received| {
                receives.push((received.contents.len(), received.stride));
            })
        })
        .await
        .unwrap();
        receives
    };
    pair.a.try_send(&outgoing).unwrap();
    pair.a.try_send(&outgoing).unwrap();
    assert_eq!(pair.network.counters().sent, 6);
    assert_eq!(receives().await, [(2700, 1200), (2700, 1200)]);

    for host in &pair.hosts {
        host.set_offload(false);
    }
    let refused = pair.a.try_send(&outgoing).unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::InvalidInput);
    pair.send(1, 1000);
    pair.send(2, 1000);
    let mut separate = receives().await;
    while pair.network.in_flight() > 0 {
        separate.extend(receives().await);
    }
    assert_eq!(separate, [(1000, 1000), (1000, 1000)]);
    pair.assert_nothing_left();
}

#[tokio::test(start_paused = true)]
async fn an_address_is_bound_once_and_free_after_its_socket() {
    let pair = Pair::new(19, Conditions::round_trip(Duration::from_millis(10)));
    let bind = |address: &str| pair.hosts[0].bind(address.parse().unwrap());
    assert_eq!(
        bind("10.0.0.1:7").unwrap_err().kind(),
        io::ErrorKind::AddrInUse
    );
    assert_eq!(
        bind("10.0.0.2:8").unwrap_err().kind(),
        io::ErrorKind::AddrNotAvailable
    );
    assert_eq!(
        bind("[::]:8").unwrap_err().kind(),
        io::ErrorKind::AddrNotAvailable
    );
    let (any, other) = (bind("0.0.0.0:0").unwrap(), bind("10.0.0.1:0").unwrap());
    assert_ne!(any.local_address().port(), other.local_address().port());
    assert_eq!(pair.network.sockets(), 4);
    let Pair {
        network,
        hosts,
        a,
        b,
    } = pair;
    a.send_to(b"nobody will read this", b.local_address())
        .unwrap();
    drop((a, b, any, other));
    assert_eq!((network.sockets(), network.in_flight()), (0, 0));
    assert_eq!(network.counters().unreachable, 1);
    assert!(hosts[0].bind("10.0.0.1:7".parse().unwrap()).is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_later_datagram_that_overtakes_wakes_the_receiver_in_time() {
    let pair = Pair::new(20, Conditions::round_trip(Duration::from_secs(2)));
    let start = Instant::now();
    pair.send(1, 10);
    let receive = async {
        let (first, _) = pair.b.receive().await;
        (first[3], start.elapsed().as_millis())
    };
    let overtake = async {
        sleep(Duration::from_millis(100)).await;
        // A new link: from another host, with other conditions.
        let near = pair.network.host([10, 0, 0, 3]);
        pair.network
            .set_link(&near, &pair.hosts[1], Conditions::default());
        let socket = near.bind("10.0.0.3:0".parse().unwrap()).unwrap();
        socket
            .send_to(&[0, 0, 0, 2], pair.b.local_address())
            .unwrap();
    };
    let ((first, at), ()) = tokio::join!(receive, overtake);
    assert_eq!((first, at), (2, 100));
    assert_eq!(numbers(&pair.drain(start).await), [1]);
    pair.assert_nothing_left();
}

#[tokio::test(start_paused = true)]
async fn a_renumbered_host_sends_from_its_new_address_by_sockets_on_a_wildcard_only() {
    use anabranch::udp::DatagramSocket;

    let pair = Pair::new(21, Conditions::round_trip(Duration::from_millis(10)));
    let any = pair.hosts[0].bind("0.0.0.0:8".parse().unwrap()).unwrap();
    let remote = pair.b.local_address();
    let source = || any.source_towards(remote);
    assert_eq!(source().unwrap(), IpAddr::from([10, 0, 0, 1]));
    pair.network.unplug(&pair.hosts[0]);
    let unreachable = io::ErrorKind::NetworkUnreachable;
    assert_eq!(source().unwrap_err().kind(), unreachable);
    assert_eq!(
        any.send_to(b"nowhere", remote).unwrap_err().kind(),
        unreachable
    );
    pair.b
        .send_to(b"nobody", "10.0.0.1:8".parse().unwrap())
        .unwrap();
    assert_eq!(pair.network.counters().unreachable, 1);

    pair.network.renumber(&pair.hosts[0], [192, 0, 2, 1]);
    assert_eq!(source().unwrap(), IpAddr::from([192, 0, 2, 1]));
    any.send_to(b"moved", remote).unwrap();
    let (_, moved) = pair.b.receive().await;
    assert_eq!(moved, "192.0.2.1:8".parse().unwrap());
    pair.b.send_to(b"answer", moved).unwrap();
    assert_eq!(&any.receive().await.0[..], b"answer");
    pair.b
        .send_to(b"nobody", "10.0.0.1:8".parse().unwrap())
        .unwrap();
    assert_eq!(pair.network.counters().unreachable, 2);
    let bound = pair.a.send_to(b"bound to what is gone", remote);
    assert_eq!(bound.unwrap_err().kind(), io::ErrorKind::AddrNotAvailable);
    drop(any);
    pair.assert_nothing_left();
}
