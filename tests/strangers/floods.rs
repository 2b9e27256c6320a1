//! Honest peers are admitted during any flood.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anabranch_testkit::simulator::Verdict;
use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::harness::{
    dialler, endpoint_config, finish, first_contact, forged, listen, network, serve, stun_server,
};

/// 1 000 contacts a second, each from the address of one of 1 000 STUN servers, which answer the
/// challenge.
#[tokio::test(start_paused = true)]
async fn dials_succeed_beside_contacts_from_sources_that_answer_stun() {
    let (network, server, client) = network(9, 40);
    let (listener, address) = listen(&server, endpoint_config()).await;
    serve(&listener);
    let listening = address.socket_addr();
    let answering = network.clone();
    network.set_tap(move |datagram| {
        if datagram.destination.port() == 3478
            && let Some(answer) = stun_server(&datagram.contents)
        {
            answering.inject(datagram.destination, listening, answer);
        }
        Verdict::Pass
    });
    let flooding = network.clone();
    let count = Arc::new(AtomicU32::new(0));
    let sent = Arc::clone(&count);
    let flood = tokio::spawn(async move {
        let mut rng = StdRng::seed_from_u64(9);
        let begin = Instant::now();
        for n in 0.. {
            let from = SocketAddr::new(forged(n % 1000).ip(), 3478);
            let contact = first_contact(&mut rng);
            flooding.inject(from, listening, contact.clone());
            let later = flooding.clone();
            tokio::spawn(async move {
                for _ in 0..3 {
                    sleep(Duration::from_millis(50)).await;
                    later.inject(from, listening, contact.clone());
                }
            });
            // The clock of tokio has whole milliseconds, so the rate is kept on average.
            sleep_until(begin + Duration::from_millis(u64::from(n))).await;
            sent.store(n, Ordering::Relaxed);
        }
    });
    sleep(Duration::from_secs(5)).await;
    let begin = Instant::now();
    let before = count.load(Ordering::Relaxed);
    for n in 0..20 {
        let dialler = dialler(&client);
        let connection = timeout(Duration::from_secs(12), dialler.connect(&address))
            .await
            .expect("a dial has a time limit")
            .unwrap_or_else(|error| panic!("dial {n}: {error}"));
        connection.close().await;
        dialler.close().await;
        sleep(Duration::from_millis(200)).await;
    }
    let rate = f64::from(count.load(Ordering::Relaxed) - before) / begin.elapsed().as_secs_f64();
    println!(
        "20 dials in {:?}, {rate:.0} contacts a second",
        begin.elapsed()
    );
    assert!(rate > 950.0, "{rate}");
    flood.abort();
    network.clear_tap();
    sleep(Duration::from_secs(11)).await;
    finish([listener]).await;
}

/// Contacts with the forged source of a host that is about to dial, as many as its prefix may have
/// in progress.
#[tokio::test(start_paused = true)]
async fn a_host_whose_address_is_forged_gets_in_all_the_same() {
    let (network, server, client) = network(9, 40);
    let config = endpoint_config();
    let forged_at_once = config.max_handshakes_per_prefix as u16;
    let (listener, address) = listen(&server, config).await;
    serve(&listener);
    let mut rng = StdRng::seed_from_u64(9);
    let dialler = dialler(&client);
    for round in 0..10 {
        for n in 0..forged_at_once {
            let from = SocketAddr::new(client.ip(), 1024 + round * forged_at_once + n);
            network.inject(from, address.socket_addr(), first_contact(&mut rng));
        }
        sleep(Duration::from_millis(50)).await;
        let begin = Instant::now();
        let connection = dialler.connect(&address).await.expect("let in");
        let took = begin.elapsed();
        assert!(took < Duration::from_millis(320), "{took:?}");
        connection.close().await;
        sleep(Duration::from_secs(2)).await;
    }
    sleep(Duration::from_secs(11)).await;
    finish([dialler, listener]).await;
}
