//! No peer can direct data at a third party: an address gets three times what came from it until it
//! has proved to receive what only the peer can read.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anabranch::{Endpoint, WebRtcDirectVersion};
use anabranch_testkit::simulator::{Conditions, Verdict};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, sleep, timeout};

use super::harness::{
    BULK, STUN_REQUEST, STUN_SUCCESS, SeenCheck, check_with_priority, dialler, endpoint_config,
    finish, forged, listen, network, request, serve, sign_challenge, stun_server,
};

/// The behaviour of the victim, at which a connection is directed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Victim {
    Silent,
    /// Answers STUN as any STUN server does.
    StunServer,
    /// Answers checks with the right password, as another listener of webrtc-direct, which derives
    /// it from the USERNAME.
    Listener,
    /// Sends everything back.
    Echo,
}

/// Bytes sent to the victim, and bytes that came, or seemed to come, from there.
async fn reflect(victim_is: Victim, is_optimistic: bool) -> (u64, u64) {
    let (network, server, client) = network(8, 20);
    let (listener, address) = listen(&server, endpoint_config()).await;
    serve(&listener);
    let listening = address.socket_addr();
    let dialler = dialler(&client);
    let seen = SeenCheck::default();
    let victim = forged(1);
    let at_victim = Arc::new(AtomicU64::new(0));
    let from_victim = Arc::new(AtomicU64::new(0));
    network.set_tap({
        let (network, seen) = (network.clone(), seen.clone());
        let (at_victim, from_victim) = (Arc::clone(&at_victim), Arc::clone(&from_victim));
        let mut client_at = None;
        move |datagram| {
            if datagram.source.ip() == client.ip() {
                client_at = Some(datagram.source);
                seen.see(datagram.source, &datagram.contents);
            }
            if datagram.destination != victim {
                return Verdict::Pass;
            }
            at_victim.fetch_add(datagram.contents.len() as u64, Ordering::Relaxed);
            let answer = match victim_is {
                Victim::Silent => None,
                Victim::StunServer => stun_server(&datagram.contents),
                Victim::Listener => sign_challenge(&datagram.contents, listening),
                Victim::Echo => Some(datagram.contents.to_vec()),
            };
            if let Some(answer) = answer {
                from_victim.fetch_add(answer.len() as u64, Ordering::Relaxed);
                network.inject(victim, listening, answer);
            } else if is_optimistic && let Some(client_at) = client_at {
                // Simulates an attacker that acknowledges what it has not received.
                network.inject(listening, client_at, datagram.contents.clone());
            }
            Verdict::Pass
        }
    });
    // v1: the password is the ufrag, which everybody on the path can read.
    let version = WebRtcDirectVersion::V1;
    let connection = dialler.connect_with(&address, version).await;
    let connection = connection.expect("a listener");
    let mut substream = connection.open(BULK).await.expect("a substream");
    let mut buffer = vec![0; 1 << 20];
    substream.read_exact(&mut buffer).await.expect("data");
    let (username, _) = seen.get();
    let (ufrag, _) = username.split_once(':').expect("two halves");
    for n in 0..80 {
        if n % 4 == 0 {
            let check = check_with_priority(&username, ufrag, u32::MAX);
            from_victim.fetch_add(check.len() as u64, Ordering::Relaxed);
            network.inject(victim, listening, check);
        }
        let reading = async { while substream.read_exact(&mut buffer).await.is_ok() {} };
        let _ = timeout(Duration::from_millis(50), reading).await;
    }
    network.clear_tap();
    drop((substream, connection));
    finish([dialler, listener]).await;
    let counts = [at_victim, from_victim].map(|count| count.load(Ordering::Relaxed));
    (counts[0], counts[1])
}

#[tokio::test(start_paused = true)]
async fn a_third_party_gets_three_times_what_came_from_it_whatever_it_answers() {
    for victim in [
        Victim::Silent,
        Victim::StunServer,
        Victim::Listener,
        Victim::Echo,
    ] {
        for is_optimistic in [false, true] {
            let (hit, sent) = reflect(victim, is_optimistic).await;
            println!("{victim:?}, optimistic {is_optimistic}: {hit} bytes for {sent}");
            assert!(hit > 0, "the listener answered");
            assert!(hit <= 3 * sent, "{victim:?}: {hit} bytes for {sent}");
        }
    }
}

/// A malicious listener, or anybody who has read the ufrag, sends a check with the source of
/// another listener.
#[tokio::test(start_paused = true)]
async fn a_dialler_sends_to_the_address_that_it_dialled_only() {
    for version in [WebRtcDirectVersion::V1, WebRtcDirectVersion::V2] {
        let (network, server, client) = network(8, 20);
        let (listener, address) = listen(&server, endpoint_config()).await;
        let other_host = network.host([10, 0, 0, 3]);
        let (other, other_address) = listen(&other_host, endpoint_config()).await;
        serve(&other);
        read_all(&listener);
        let victim = other_address.socket_addr();
        let listening = address.socket_addr();
        let dialler = dialler(&client);
        let seen = SeenCheck::default();
        let at_victim = Arc::new(AtomicU64::new(0));
        network.set_tap({
            let (network, seen, hit) = (network.clone(), seen.clone(), Arc::clone(&at_victim));
            move |datagram| {
                if datagram.destination == victim {
                    hit.fetch_add(datagram.contents.len() as u64, Ordering::Relaxed);
                    // Acknowledgements of the malicious listener for data that it has not received.
                    if datagram.contents.first().is_some_and(|first| *first >= 20) {
                        network.inject(datagram.source, listening, datagram.contents.clone());
                    }
                } else if datagram.destination == listening {
                    seen.see(datagram.source, &datagram.contents);
                }
                Verdict::Pass
            }
        });
        let connection = dialler.connect_with(&address, version).await;
        let connection = connection.expect("a listener");
        let mut substream = connection.open(BULK).await.expect("a substream");
        substream.write_all(&[7; 1 << 16]).await.expect("taken");
        let (username, client_at) = seen.get();
        let (server_ufrag, client_ufrag) = username.split_once(':').expect("two halves");
        let password = match version {
            WebRtcDirectVersion::V1 => client_ufrag,
            _ => server_ufrag
                .strip_prefix("libp2p+webrtc+v2/")
                .expect("of version 2"),
        };
        // The listener is controlled: no USE-CANDIDATE.
        let username = format!("{client_ufrag}:{server_ufrag}");
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_secs(30) {
            let check = request(&username, password, u32::MAX, false);
            network.inject(victim, client_at, check);
            let writing = async { substream.write_all(&[7; 1 << 16]).await };
            timeout(Duration::from_secs(2), writing)
                .await
                .expect("the peer reads on")
                .expect("taken");
            sleep(Duration::from_millis(500)).await;
        }
        assert_eq!(at_victim.load(Ordering::Relaxed), 0, "{version:?}");
        network.clear_tap();
        drop((substream, connection));
        finish([dialler, listener, other]).await;
    }
}

/// An attacker who has read the first check of a dialler has the credentials, and answers
/// challenges at an address of its own.
#[tokio::test(start_paused = true)]
async fn a_handshake_stays_with_the_dialler_whoever_else_nominates_an_address() {
    for version in [WebRtcDirectVersion::V1, WebRtcDirectVersion::V2] {
        for after in [0, 10, 19, 20, 21, 30, 45] {
            let (network, server, client) = network(8, 20);
            let (listener, address) = listen(&server, endpoint_config()).await;
            serve(&listener);
            let listening = address.socket_addr();
            let observer = forged(1);
            let at_observer = Arc::new(AtomicU64::new(0));
            let seen = SeenCheck::default();
            network.set_tap({
                let (network, seen) = (network.clone(), seen.clone());
                let at_observer = Arc::clone(&at_observer);
                move |datagram| {
                    if datagram.destination == listening {
                        seen.see(datagram.source, &datagram.contents);
                    } else if datagram.destination == observer {
                        at_observer.fetch_add(1, Ordering::Relaxed);
                        if let Some(answer) = sign_challenge(&datagram.contents, observer) {
                            network.inject(observer, listening, answer);
                        }
                    }
                    Verdict::Pass
                }
            });
            let forging = tokio::spawn({
                let network = network.clone();
                async move {
                    sleep(Duration::from_millis(1 + after)).await;
                    loop {
                        let (username, _) = seen.get();
                        let (ufrag, _) = username.split_once(':').expect("two halves");
                        let check = check_with_priority(&username, ufrag, u32::MAX);
                        network.inject(observer, listening, check);
                        sleep(Duration::from_millis(5)).await;
                    }
                }
            });
            let dialler = dialler(&client);
            let connection = dialler.connect_with(&address, version).await;
            let connection = connection.unwrap_or_else(|e| panic!("{version:?}, {after}: {e}"));
            sleep(Duration::from_secs(2)).await;
            forging.abort();
            assert!(
                at_observer.load(Ordering::Relaxed) > 1,
                "the listener answered"
            );
            let mut substream = connection.open(BULK).await.expect("a substream");
            let mut buffer = vec![0; 1 << 20];
            let reading = substream.read_exact(&mut buffer);
            timeout(Duration::from_secs(5), reading)
                .await
                .expect("it goes on")
                .expect("data");
            network.clear_tap();
            drop((substream, connection));
            finish([dialler, listener]).await;
        }
    }
}

/// Accepts all peers, and reads everything.
fn read_all(endpoint: &Endpoint) {
    let endpoint = endpoint.clone();
    tokio::spawn(async move {
        while let Some(incoming) = endpoint.accept().await {
            let Ok(connection) = incoming.accept().await else {
                continue;
            };
            tokio::spawn(async move {
                while let Ok(Some(mut substream)) = connection.accept().await {
                    tokio::spawn(async move {
                        let mut buffer = vec![0; 1 << 16];
                        while substream.read(&mut buffer).await.is_ok_and(|n| n > 0) {}
                    });
                }
            });
        }
    });
}

#[tokio::test(start_paused = true)]
async fn junk_from_the_address_of_a_dead_peer_does_not_keep_its_connection() {
    let (network, server, client) = network(8, 20);
    let (listener, address) = listen(&server, endpoint_config()).await;
    serve(&listener);
    let listening = address.socket_addr();
    let dialler = dialler(&client);
    let at = Arc::new(Mutex::new(None));
    network.set_tap({
        let (at, ip) = (Arc::clone(&at), client.ip());
        move |datagram| {
            if datagram.source.ip() == ip {
                *at.lock().expect("no panic") = Some(datagram.source);
            }
            Verdict::Pass
        }
    });
    let connection = dialler.connect(&address).await.expect("a listener");
    let mut substream = connection.open(BULK).await.expect("a substream");
    let mut buffer = vec![0; 1 << 20];
    substream.read_exact(&mut buffer).await.expect("data");
    let from = at.lock().expect("no panic").expect("a datagram");
    network.clear_tap();
    network.set_silent(&client, true);
    let begin = Instant::now();
    while listener.connections() > 0 {
        let after = begin.elapsed();
        assert!(after < Duration::from_secs(20), "alive after {after:?}");
        // Neither STUN nor DTLS; a request without MESSAGE-INTEGRITY; an invalid record; an
        // unsolicited response.
        for junk in [
            vec![0xff],
            STUN_REQUEST.to_vec(),
            vec![23; 100],
            stun_server(&request("a:b", "c", 1, true)).expect("a request"),
        ] {
            // The host itself stays silent.
            network.set_silent(&client, false);
            network.inject(from, listening, junk);
            network.set_silent(&client, true);
        }
        sleep(Duration::from_secs(1)).await;
    }
    network.set_silent(&client, false);
    drop((substream, connection));
    finish([dialler, listener]).await;
}

/// A peer that continues to acknowledge, but does not answer consent checks, may be an attacker
/// whose old address now belongs to somebody else.
#[tokio::test(start_paused = true)]
async fn a_transfer_to_an_address_that_does_not_consent_ends() {
    let (network, server, client) = network(8, 20);
    network.set_conditions(Conditions {
        rate: Some(100_000),
        queue: 20_000,
        ..Conditions::round_trip(Duration::from_millis(20))
    });
    let (listener, address) = listen(&server, endpoint_config()).await;
    serve(&listener);
    let dialler = dialler(&client);
    let connection = dialler.connect(&address).await.expect("a listener");
    let mut substream = connection.open(BULK).await.expect("a substream");
    let mut buffer = vec![0; 1 << 16];
    substream.read_exact(&mut buffer).await.expect("data");
    network.set_tap({
        let from = client.ip();
        move |datagram| {
            let is_answer = datagram.contents.starts_with(&STUN_SUCCESS);
            if datagram.source.ip() == from && is_answer {
                return Verdict::Drop;
            }
            Verdict::Pass
        }
    });
    let begin = Instant::now();
    while listener.connections() > 0 {
        let reading = substream.read_exact(&mut buffer);
        let _ = timeout(Duration::from_secs(1), reading).await;
        assert!(begin.elapsed() < Duration::from_secs(45), "it goes on");
    }
    let after = begin.elapsed();
    println!("ended after {after:?}");
    assert!(after > Duration::from_secs(30), "{after:?}");
    network.clear_tap();
    drop((substream, connection));
    finish([dialler, listener]).await;
}
