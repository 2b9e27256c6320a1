//! Admission of unknown peers, and the work that they can cause at a listener.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anabranch::endpoint::Phase;
use anabranch::{ConnectError, ConnectionError, Endpoint, RateLimit, WebRtcDirectVersion};
use anabranch_testkit::simulator::Verdict;
use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::io::AsyncReadExt;
use tokio::time::{Instant, sleep, timeout};

use super::harness::{
    BULK, STUN_REQUEST, STUN_SUCCESS, SeenCheck, check, check_with_priority, dialler,
    endpoint_config, finish, first_contact, forged, listen, network, serve,
};

#[tokio::test(start_paused = true)]
async fn a_refused_dial_ends_after_one_round_trip() {
    let (_network, server, client) = network(1, 100);
    let (listener, address) = listen(&server, endpoint_config()).await;
    let refusing = listener.clone();
    tokio::spawn(async move {
        while let Some(incoming) = refusing.accept().await {
            incoming.refuse();
        }
    });
    let dialler = dialler(&client);
    let begin = Instant::now();
    let error = dialler.connect(&address).await.expect_err("refused");
    assert!(matches!(error, ConnectError::Refused), "{error}");
    let after = begin.elapsed();
    assert!(after < Duration::from_millis(110), "{after:?}");
    assert!(listener.is_idle() && dialler.is_idle());
    finish([dialler, listener]).await;
}

#[tokio::test(start_paused = true)]
async fn an_ignored_dial_hears_nothing_and_times_out() {
    let (_network, server, client) = network(2, 100);
    let (listener, address) = listen(&server, endpoint_config()).await;
    let ignoring = listener.clone();
    let seen = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&seen);
    tokio::spawn(async move {
        while let Some(incoming) = ignoring.accept().await {
            count.fetch_add(1, Ordering::Relaxed);
            incoming.ignore();
        }
    });
    let dialler = dialler(&client);
    let error = dialler.connect(&address).await.expect_err("ignored");
    let ice = Phase::Ice;
    assert!(
        matches!(&error, ConnectError::TimedOut { phase, .. } if *phase == ice),
        "{error}"
    );
    assert!(
        seen.load(Ordering::Relaxed) > 1,
        "each check is a new contact"
    );
    finish([dialler, listener]).await;
}

#[tokio::test(start_paused = true)]
async fn beyond_the_most_connections_newcomers_are_refused_and_dials_fail() {
    let (_network, server, client) = network(3, 20);
    let mut config = endpoint_config();
    config.max_connections = 2;
    let (listener, address) = listen(&server, config).await;
    serve(&listener);
    let dialler = dialler(&client);
    let first = dialler.connect(&address).await.expect("room");
    let second = dialler.connect(&address).await.expect("room");
    let error = dialler.connect(&address).await.expect_err("full");
    assert!(matches!(error, ConnectError::Refused), "{error}");
    let error = listener.connect(&address).await.expect_err("full");
    assert!(
        matches!(error, ConnectError::TooManyConnections { max: 2 }),
        "{error}"
    );
    first.close().await;
    sleep(Duration::from_secs(1)).await;
    let third = dialler.connect(&address).await.expect("room again");
    drop((second, third));
    finish([dialler, listener]).await;
}

#[tokio::test(start_paused = true)]
async fn a_first_contact_that_nobody_takes_expires() {
    let (network, server, _client) = network(4, 20);
    let (listener, address) = listen(&server, endpoint_config()).await;
    let mut rng = StdRng::seed_from_u64(4);
    for n in 0..1000 {
        network.inject(forged(n), address.socket_addr(), first_contact(&mut rng));
    }
    sleep(Duration::from_secs(9)).await;
    assert!(!listener.is_idle());
    sleep(Duration::from_millis(1100)).await;
    assert!(listener.is_idle(), "after the connect timeout");
    finish([listener]).await;
}

#[tokio::test(start_paused = true)]
async fn dtls_from_an_address_without_stun_is_dropped() {
    let (network, server, client) = network(5, 20);
    let (listener, address) = listen(&server, endpoint_config()).await;
    serve(&listener);
    // A real ClientHello: the first datagram of DTLS that a dialler sends.
    let hello = Arc::new(Mutex::new(None));
    let seen = Arc::clone(&hello);
    network.set_tap(move |datagram| {
        if datagram.contents.first() == Some(&22) && datagram.destination.port() == 4001 {
            let mut seen = seen.lock().expect("no panic");
            seen.get_or_insert_with(|| datagram.contents.clone());
        }
        Verdict::Pass
    });
    let dialler = dialler(&client);
    drop(dialler.connect(&address).await.expect("a connection"));
    network.clear_tap();
    let hello = hello
        .lock()
        .expect("no panic")
        .take()
        .expect("a ClientHello");
    let stranger = client
        .bind("10.0.0.2:7000".parse().unwrap())
        .expect("a port");
    stranger
        .send_to(&hello, address.socket_addr())
        .expect("sent");
    let answer = timeout(Duration::from_secs(30), stranger.receive()).await;
    assert!(answer.is_err(), "an answer to an unvalidated address");
    finish([dialler, listener]).await;
}

/// The counters of a tap on the traffic of a listener.
#[derive(Debug, Default)]
struct Count {
    to_listener: u64,
    from_listener: u64,
    /// Datagrams from the listener beyond the amplification limit.
    beyond: u64,
}

#[tokio::test(start_paused = true)]
async fn who_never_shows_to_receive_gets_three_times_what_it_sent() {
    let (network, server, client) = network(6, 50);
    let (listener, address) = listen(&server, endpoint_config()).await;
    serve(&listener);
    let listening = address.socket_addr();
    let count = Arc::new(Mutex::new(Count::default()));
    let counted = Arc::clone(&count);
    // As with a forged source: neither DTLS nor challenges of the listener arrive.
    network.set_tap(move |datagram| {
        let mut count = counted.lock().expect("no panic");
        let length = datagram.contents.len() as u64;
        if datagram.destination == listening {
            count.to_listener += length;
            return Verdict::Pass;
        }
        count.from_listener += length;
        count.beyond += u64::from(count.from_listener > 3 * count.to_listener);
        if datagram.contents.starts_with(&STUN_SUCCESS) {
            return Verdict::Pass;
        }
        Verdict::Drop
    });
    let dialler = dialler(&client);
    let error = dialler.connect(&address).await.expect_err("no DTLS");
    assert!(
        matches!(
            error,
            ConnectError::TimedOut {
                phase: Phase::Dtls,
                ..
            }
        ),
        "{error}"
    );
    {
        let count = count.lock().expect("no panic");
        assert!(count.from_listener > 1000, "{count:?}");
        assert_eq!(count.beyond, 0, "{count:?}");
    }
    network.clear_tap();
    finish([dialler, listener]).await;
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_moves_is_challenged_and_served_on() {
    let (network, server, client) = network(7, 50);
    let (listener, address) = listen(&server, endpoint_config()).await;
    serve(&listener);
    let listening = address.socket_addr();
    let challenges = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&challenges);
    network.set_tap(move |datagram| {
        if datagram.source == listening && datagram.contents.starts_with(&STUN_REQUEST) {
            seen.lock().expect("no panic").push(datagram.destination);
        }
        Verdict::Pass
    });
    let dialler = dialler(&client);
    let connection = dialler.connect(&address).await.expect("a listener");
    let mut substream = connection.open(BULK).await.expect("a substream");
    let mut buffer = vec![0; 1 << 20];
    substream.read_exact(&mut buffer).await.expect("data");
    let first = std::mem::take(&mut *challenges.lock().expect("no panic"));
    assert_eq!(first.len(), 1, "the check behind the first response");
    network.rebind(&client);
    let rest = async {
        for _ in 0..3 {
            substream.read_exact(&mut buffer).await.expect("data");
        }
    };
    // ICE lite drops the old address 15 s after its last check, and SCTP has backed off by then.
    timeout(Duration::from_secs(60), rest)
        .await
        .expect("it goes on");
    let challenges = challenges.lock().expect("no panic").clone();
    assert!((1..5).contains(&challenges.len()), "{challenges:?}");
    assert!(
        challenges
            .iter()
            .all(|to| *to == challenges[0] && to.port() < 49_152)
    );
    drop((substream, connection));
    network.clear_tap();
    finish([dialler, listener]).await;
}

#[tokio::test(start_paused = true)]
async fn an_honest_handshake_is_checked_once_after_the_first_response() {
    for version in [WebRtcDirectVersion::V1, WebRtcDirectVersion::V2] {
        let (network, server, client) = network(11, 50);
        let (listener, address) = listen(&server, endpoint_config()).await;
        serve(&listener);
        let listening = address.socket_addr();
        let sent = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&sent);
        network.set_tap(move |datagram| {
            if datagram.source == listening {
                let kind = datagram.contents.get(..2).map(<[u8]>::to_vec);
                seen.lock().expect("no panic").extend(kind);
            }
            Verdict::Pass
        });
        let dialler = dialler(&client);
        let connection = dialler.connect_with(&address, version).await;
        let connection = connection.expect("a listener");
        network.clear_tap();
        let sent = std::mem::take(&mut *sent.lock().expect("no panic"));
        // Success responses to the check and to its nomination, which the direct engine sends at
        // once, then one request, before anything of DTLS.
        let responses = sent.iter().take_while(|kind| **kind == [1, 1]).count();
        assert!((1..=2).contains(&responses), "{sent:x?}");
        assert_eq!(sent[responses], [0, 1], "{sent:x?}");
        let requests = sent.iter().filter(|kind| **kind == STUN_REQUEST);
        assert_eq!(requests.count(), 1, "{sent:x?}");
        connection.close().await;
        finish([dialler, listener]).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_forged_nomination_directs_little_at_somebody_else() {
    let (network, server, client) = network(8, 20);
    let (listener, address) = listen(&server, endpoint_config()).await;
    serve(&listener);
    let listening = address.socket_addr();
    let dialler = dialler(&client);
    let seen = SeenCheck::default();
    let checks = seen.clone();
    let victim = forged(1);
    let at_victim = Arc::new(AtomicU64::new(0));
    let hit = Arc::clone(&at_victim);
    network.set_tap(move |datagram| {
        if datagram.destination == victim {
            hit.fetch_add(datagram.contents.len() as u64, Ordering::Relaxed);
        } else if datagram.destination == listening {
            checks.see(datagram.source, &datagram.contents);
        }
        Verdict::Pass
    });
    let connection = dialler.connect(&address).await.expect("a listener");
    let mut substream = connection.open(BULK).await.expect("a substream");
    let mut buffer = vec![0; 1 << 20];
    substream.read_exact(&mut buffer).await.expect("data");
    // From the peer, which has the credentials, or from an on-path attacker.
    let (username, _) = seen.get();
    let (ufrag, _) = username.split_once(':').expect("two halves");
    let forged = check(&username, ufrag);
    let sent = 20 * forged.len() as u64;
    for _ in 0..20 {
        network.inject(victim, listening, forged.clone());
        let _ = timeout(Duration::from_millis(50), substream.read_exact(&mut buffer)).await;
    }
    let hit = at_victim.load(Ordering::Relaxed);
    assert!(hit > 0, "the listener answered");
    assert!(hit <= 3 * sent, "{hit} bytes for {sent}");
    drop((substream, connection));
    network.clear_tap();
    finish([dialler, listener]).await;
}

#[tokio::test(start_paused = true)]
async fn a_connection_is_answered_at_so_many_addresses_only() {
    let (network, server, client) = network(13, 20);
    let mut config = endpoint_config();
    config.max_addresses = 4;
    let (listener, address) = listen(&server, config).await;
    serve(&listener);
    let listening = address.socket_addr();
    let seen = SeenCheck::default();
    let answered = Arc::new(Mutex::new(BTreeSet::new()));
    let (checks, seen_answers) = (seen.clone(), Arc::clone(&answered));
    network.set_tap(move |datagram| {
        if datagram.source == listening {
            let mut answers = seen_answers.lock().expect("no panic");
            answers.insert(datagram.destination);
        } else {
            checks.see(datagram.source, &datagram.contents);
        }
        Verdict::Pass
    });
    let dialler = dialler(&client);
    let connection = dialler.connect(&address).await.expect("a listener");
    let (username, _) = seen.get();
    let (ufrag, _) = username.split_once(':').expect("two halves");
    for n in 0..100 {
        network.inject(forged(n), listening, check(&username, ufrag));
        sleep(Duration::from_millis(10)).await;
    }
    sleep(Duration::from_secs(1)).await;
    assert_eq!(answered.lock().expect("no panic").len(), 4);
    network.clear_tap();
    connection.close().await;
    finish([dialler, listener]).await;
}

#[tokio::test(start_paused = true)]
async fn a_flood_of_forged_first_contacts_neither_stops_a_transfer_nor_keeps_newcomers_out() {
    let (network, server, client) = network(9, 40);
    let mut config = endpoint_config();
    // The worst case: without rate limits.
    config.first_contacts = RateLimit::UNLIMITED;
    config.first_contacts_of_site = RateLimit::UNLIMITED;
    let (listener, address) = listen(&server, config).await;
    serve(&listener);
    let listening = address.socket_addr();
    let dialler = dialler(&client);
    let connection = dialler.connect(&address).await.expect("a listener");
    let mut substream = connection.open(BULK).await.expect("a substream");
    let mut buffer = vec![0; 1 << 20];
    let begin = Instant::now();
    substream.read_exact(&mut buffer).await.expect("data");
    let calm = begin.elapsed();

    let flood = tokio::spawn({
        let network = network.clone();
        async move {
            let mut rng = StdRng::seed_from_u64(9);
            for n in 0..20_000 {
                network.inject(forged(n), listening, first_contact(&mut rng));
                if n % 20 == 0 {
                    sleep(Duration::from_millis(10)).await;
                }
            }
        }
    });
    sleep(Duration::from_secs(2)).await;
    let mut newcomers = Vec::new();
    for _ in 0..10 {
        let begin = Instant::now();
        newcomers.push(dialler.connect(&address).await.expect("let in"));
        let took = begin.elapsed();
        // STUN, DTLS 1.3, SCTP and Noise, as without load: a challenge costs no round trip.
        assert!(took < Duration::from_millis(320), "{took:?}");
    }
    let begin = Instant::now();
    substream.read_exact(&mut buffer).await.expect("data");
    let flooded = begin.elapsed();
    assert!(!flood.is_finished(), "the flood goes on");
    assert!(flooded < calm * 3 / 2, "{calm:?} became {flooded:?}");
    flood.await.expect("no panic");
    // 64 forged contacts at a time, 10 s each, and the honest ones.
    assert!(listener.connections() == 11, "{}", listener.connections());
    sleep(Duration::from_secs(11)).await;
    drop((substream, connection, newcomers));
    finish([dialler, listener]).await;
}

#[tokio::test(start_paused = true)]
async fn a_host_beyond_its_rate_is_let_in_once_it_answers_and_then_waits_its_turn() {
    let (_network, server, client) = network(10, 20);
    let mut config = endpoint_config();
    config.connect_timeout = Duration::from_secs(2);
    config.first_contacts = RateLimit::new(Duration::from_secs(60), 3);
    let (listener, address) = listen(&server, config).await;
    serve(&listener);
    let dialler = dialler(&client);
    for _ in 0..6 {
        let connection = dialler.connect(&address).await.expect("within the rates");
        connection.close().await;
    }
    let error = dialler.connect(&address).await.expect_err("too many");
    assert!(matches!(error, ConnectError::TimedOut { .. }), "{error}");
    sleep(Duration::from_secs(60)).await;
    let connection = dialler.connect(&address).await.expect("its turn");
    connection.close().await;
    finish([dialler, listener]).await;
}

#[tokio::test(start_paused = true)]
async fn a_dead_peer_is_noticed_in_the_configured_time_by_every_substream() {
    for silenced in [0, 1] {
        let (network, server, client) = network(12, 20);
        let mut config = endpoint_config();
        config.silence_timeout = Duration::from_secs(6);
        let (listener, address) = listen(&server, config.clone()).await;
        let dialler = Endpoint::builder()
            .endpoint_config(config)
            .sockets(client.clone())
            .dial_only()
            .expect("a configuration that works");
        let accepting = listener.clone();
        let accepted = tokio::spawn(async move {
            let incoming = accepting.accept().await.expect("a dialler");
            incoming.accept().await.expect("a handshake")
        });
        let connection = dialler.connect(&address).await.expect("a listener");
        let theirs = accepted.await.expect("no panic");
        let mut substreams = Vec::new();
        for _ in 0..3 {
            substreams.push(connection.open(BULK).await.expect("a substream"));
        }
        // Idle, but alive: checks and consent go on. Less than `Config::accept_timeout`.
        sleep(Duration::from_secs(25)).await;
        assert_eq!(connection.close_reason(), None);
        network.set_silent([&server, &client][silenced], true);
        let begin = Instant::now();
        for mut substream in substreams {
            let error = substream.read_u8().await.expect_err("the peer is dead");
            assert_eq!(error.kind(), std::io::ErrorKind::UnexpectedEof, "{error}");
            assert!(
                error.to_string().contains("does not respond"),
                "the cause: {error}"
            );
        }
        let after = begin.elapsed();
        assert_eq!(connection.closed().await, ConnectionError::TimedOut);
        assert_eq!(theirs.closed().await, ConnectionError::TimedOut);
        assert!(begin.elapsed() <= Duration::from_secs(6), "{after:?}");
        assert!(after > Duration::from_secs(2), "{after:?}");
        drop((connection, theirs));
        finish([dialler, listener]).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_forged_nomination_silences_nobody() {
    let (network, server, client) = network(8, 20);
    let (listener, address) = listen(&server, endpoint_config()).await;
    serve(&listener);
    let listening = address.socket_addr();
    let dialler = dialler(&client);
    let seen = SeenCheck::default();
    let checks = seen.clone();
    network.set_tap(move |datagram| {
        if datagram.destination == listening {
            checks.see(datagram.source, &datagram.contents);
        }
        Verdict::Pass
    });
    let connection = dialler.connect(&address).await.expect("a listener");
    let mut substream = connection.open(BULK).await.expect("a substream");
    let mut buffer = vec![0; 1 << 20];
    substream.read_exact(&mut buffer).await.expect("data");
    let (username, _) = seen.get();
    let (ufrag, _) = username.split_once(':').expect("two halves");
    network.inject(
        forged(1),
        listening,
        check_with_priority(&username, ufrag, u32::MAX),
    );
    for _ in 0..8 {
        // A slow reader has granted credit for little more than it has read.
        sleep(Duration::from_millis(500)).await;
        timeout(Duration::from_secs(2), substream.read_exact(&mut buffer))
            .await
            .expect("the peer is served on")
            .expect("data");
    }
    drop((substream, connection));
    network.clear_tap();
    finish([dialler, listener]).await;
}

#[tokio::test(start_paused = true)]
async fn an_address_that_a_peer_has_left_can_become_another_s() {
    let (network, server, client) = network(14, 50);
    let (listener, address) = listen(&server, endpoint_config()).await;
    serve(&listener);
    let listening = address.socket_addr();
    // The first address of the peer, and the bytes sent there.
    let left = Arc::new(Mutex::new((None, 0)));
    let seen = Arc::clone(&left);
    network.set_tap(move |datagram| {
        let (left, answers) = &mut *seen.lock().expect("no panic");
        if datagram.destination == listening {
            left.get_or_insert(datagram.source);
        } else if *left == Some(datagram.destination) {
            *answers += 1;
        }
        Verdict::Pass
    });
    let dialler = dialler(&client);
    let connection = dialler.connect(&address).await.expect("a listener");
    let (first, _) = *left.lock().expect("no panic");
    let first = first.expect("a check");
    let mut rng = StdRng::seed_from_u64(14);
    let answers = async |contact: Vec<u8>| {
        left.lock().expect("no panic").1 = 0;
        network.inject(first, listening, contact);
        sleep(Duration::from_millis(200)).await;
        left.lock().expect("no panic").1
    };
    sleep(Duration::from_secs(60)).await;
    let contact = first_contact(&mut rng);
    assert_eq!(answers(contact).await, 0, "idle, but in use");
    // The NAT drops the peer, and later assigns its port to another.
    network.rebind(&client);
    sleep(Duration::from_secs(20)).await;
    let contact = first_contact(&mut rng);
    assert_eq!(answers(contact).await, 0, "it might come back");
    sleep(Duration::from_secs(40)).await;
    let contact = first_contact(&mut rng);
    // A response, and the check after it.
    assert_eq!(answers(contact).await, 2, "a first contact like any other");

    // It disappears with its own connection, and the peer is served at its new address.
    sleep(Duration::from_secs(20)).await;
    assert_eq!(listener.connections(), 1);
    let mut substream = connection.open(BULK).await.expect("a substream");
    let mut buffer = vec![0; 1 << 20];
    substream.read_exact(&mut buffer).await.expect("data");
    drop((substream, connection));
    network.clear_tap();
    finish([dialler, listener]).await;
}
