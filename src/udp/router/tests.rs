//! Garbage leaves no state at a listener.

use std::net::IpAddr;

use futures_util::FutureExt;

use is::stun::TransId;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::super::admission::Limits;
use super::super::admission::challenge::refusal;
use super::*;
use crate::rates::RateLimit;

const MOST: usize = 32;

fn router() -> Arc<Router> {
    let limits = Limits {
        max_handshakes: MOST,
        max_handshakes_per_prefix: 8,
        rate: RateLimit::UNLIMITED,
        site_rate: RateLimit::UNLIMITED,
        limit_loopback: true,
    };
    Arc::new(Router::new(Arc::new(Admission::new(limits)), 32))
}

fn local() -> SocketAddr {
    SocketAddr::from(([192, 0, 2, 1], 4001))
}

/// The `n`-th host of the network 10 or 11.
fn host(network: u8, n: u16) -> SocketAddr {
    let [a, b] = n.to_be_bytes();
    SocketAddr::from(([network, 0, a, b], 5000))
}

fn ufrag(rng: &mut StdRng) -> String {
    let letters: String = (0..32)
        .map(|_| char::from(rng.random_range(b'a'..=b'z')))
        .collect();
    format!("libp2p+webrtc+v1/{letters}")
}

/// A connectivity check as a dialler sends it.
fn check(ufrag: &str) -> Vec<u8> {
    let username = format!("{ufrag}:{ufrag}");
    let request = StunMessage::binding_request(&username, TransId::new(), true, 1, 1, false);
    let mut bytes = vec![0; 700];
    let length = request
        .to_bytes(Some(ufrag.as_bytes()), &mut bytes, sha1_hmac)
        .expect("room enough");
    bytes.truncate(length);
    bytes
}

fn arrives(
    router: &Arc<Router>,
    now: Instant,
    source: SocketAddr,
    contents: &[u8],
) -> Option<Stranger> {
    let received = Received {
        source,
        destination: None::<IpAddr>,
        contents,
        stride: contents.len(),
        ecn: anabranch_rtc::Ecn::NotEct,
    };
    router.route(now, received, local())
}

/// Datagrams that no honest peer sends: noise, messages of other exchanges, and modified valid
/// ones.
fn garbage(rng: &mut StdRng, router: &Router, now: Instant, source: SocketAddr) -> Vec<u8> {
    let noise = |rng: &mut StdRng, most: usize| -> Vec<u8> {
        (0..rng.random_range(0..most))
            .map(|_| rng.random())
            .collect()
    };
    let ufrag = ufrag(rng);
    let mut good = check(&ufrag);
    let transaction: Transaction = rng.random();
    match rng.random_range(0..10) {
        0 => noise(rng, 1500),
        // A STUN header, followed by noise.
        1 => {
            let mut bytes = good[..20].to_vec();
            bytes.extend(noise(rng, 200));
            bytes[3] = (bytes.len() - 20) as u8;
            bytes
        }
        // A bit flip in what MESSAGE-INTEGRITY covers, or in itself.
        2 | 3 => {
            let at = rng.random_range(0..good.len() - 8);
            good[at] ^= 1 << rng.random_range(0..8);
            good
        }
        4 => {
            let length = rng.random_range(0..good.len());
            good.truncate(length);
            good
        }
        // Responses without a request.
        5 => success(transaction, source, &ufrag),
        6 => refusal(transaction, &ufrag),
        // The answer to a challenge that was sent to another address.
        7 => {
            let elsewhere = host(12, rng.random());
            let peer = PeerCredentials::from(
                &parse_username(&format!("{ufrag}:{ufrag}")).expect("well formed"),
            );
            let challenge = router.admission.key().challenge(now, elsewhere, &peer);
            let asked = super::transaction(&challenge).expect("a check");
            success(asked, source, &ufrag)
        }
        // A challenge of another listener, which must not be answered.
        8 => {
            let peer = PeerCredentials::from(
                &parse_username(&format!("{ufrag}:{ufrag}")).expect("well formed"),
            );
            ChallengeKey::generate().challenge(now, source, &peer)
        }
        // DTLS records from an address without a STUN check.
        _ => {
            let mut bytes = vec![22, 254, 253];
            bytes.extend(noise(rng, 1400));
            bytes
        }
    }
}

/// Sends garbage from 10 000 hosts, one each millisecond, and asserts that it is neither answered
/// nor stored.
fn pour(rng: &mut StdRng, router: &Arc<Router>, now: &mut Instant, connections: usize) {
    for n in 0..10_000 {
        *now += Duration::from_millis(1);
        let source = host(11, n);
        let datagram = garbage(rng, router, *now, source);
        let answer = arrives(router, *now, source, &datagram);
        assert!(answer.is_none(), "{datagram:02x?} is answered: {answer:?}");
        let table = router.lock();
        let kept = (table.by_address.len(), table.by_ufrag.len());
        assert_eq!(kept, (connections, connections), "{datagram:02x?}");
        assert_eq!(router.admission.proofs(), 0, "{datagram:02x?}");
    }
}

/// Row H-13: with and without load, garbage leaves no state, takes no slot, and proves nothing;
/// honest peers are still admitted.
#[tokio::test(start_paused = true)]
async fn h13_garbage_leaves_nothing_and_keeps_nobody_out() {
    for seed in crate::random::seeds(2) {
        println!("seed {seed}");
        let mut rng = StdRng::seed_from_u64(seed);
        let router = router();
        let mut now = Instant::now();
        pour(&mut rng, &router, &mut now, 0);
        assert!(router.is_empty() && router.admission.is_idle());

        // Half of the handshakes are taken: from now on first contacts are challenged.
        let mut contacts = Vec::new();
        for n in 0..MOST / 2 {
            let ufrag = ufrag(&mut rng);
            match arrives(&router, now, host(10, n as u16), &check(&ufrag)) {
                Some(Stranger::Admitted(contact)) => contacts.push(contact),
                other => panic!("{n}: {other:?}"),
            }
        }
        pour(&mut rng, &router, &mut now, MOST / 2);
        for n in MOST / 2..MOST {
            let (source, ufrag) = (host(10, n as u16), ufrag(&mut rng));
            let datagrams = match arrives(&router, now, source, &check(&ufrag)) {
                Some(Stranger::Answered { datagrams, .. }) => datagrams,
                other => panic!("{n}: {other:?}"),
            };
            assert!(matches!(datagrams.len(), 1 | 2));
            let asked = transaction(&datagrams[0]).expect("a check");
            let answer = success(asked, source, &ufrag);
            assert!(arrives(&router, now, source, &answer).is_none());
            assert_eq!(router.admission.proofs(), 1);
            match arrives(&router, now, source, &check(&ufrag)) {
                Some(Stranger::Admitted(contact)) => contacts.push(contact),
                other => panic!("{n}: {other:?}"),
            }
        }
        // All slots are taken.
        pour(&mut rng, &router, &mut now, MOST);
        contacts.clear();
        assert!(router.is_empty() && router.admission.is_idle());
    }
}

/// The ufrag of a dial of the peer, above or below that of every other.
fn extreme(letter: char) -> String {
    let letters: String = std::iter::repeat_n(letter, 40).collect();
    format!("libp2p+webrtc+v1/{letters}")
}

fn dial(router: &Arc<Router>, remote: SocketAddr) -> Result<(RouteGuard, Dialling), Unshared> {
    let credentials = ClientCredentials::generate(crate::ufrag::Version::V1);
    router.dial(Instant::now(), remote, &credentials)
}

fn waits_in(route: &RouteGuard) -> usize {
    let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    let mut count = 0;
    route
        .inbox
        .poll_receive(&mut cx, |_, _, _, _, _| count += 1);
    count
}

fn is_displaced(dialling: &mut Dialling) -> bool {
    dialling.displaced().now_or_never().is_some()
}

#[tokio::test(start_paused = true)]
async fn a_dial_has_its_pair_of_addresses_alone_until_it_is_dropped() {
    let router = router();
    let (route, mut dialling) = dial(&router, host(10, 1)).unwrap();
    assert_eq!(dial(&router, host(10, 1)).unwrap_err(), Unshared::Taken);
    let other = dial(&router, host(10, 2)).unwrap();
    tokio::time::advance(Duration::from_secs(1)).await;
    assert!(arrives(&router, Instant::now(), host(10, 1), &[22; 100]).is_none());
    assert_eq!((waits_in(&route), waits_in(&other.0)), (1, 0));
    assert!(!is_displaced(&mut dialling));
    drop(route);
    drop(dial(&router, host(10, 1)).unwrap());
    drop(other);
    assert!(router.is_empty());
}

#[tokio::test(start_paused = true)]
async fn of_two_dials_that_meet_the_one_with_the_lesser_ufrag_yields_also_after_a_challenge() {
    let router = router();
    // Half of the handshakes are taken: first contacts are challenged.
    let mut contacts = Vec::new();
    for n in 0..MOST / 2 {
        let ufrag = ufrag(&mut StdRng::seed_from_u64(n as u64));
        match arrives(&router, Instant::now(), host(11, n as u16), &check(&ufrag)) {
            Some(Stranger::Admitted(contact)) => contacts.push(contact),
            other => panic!("{n}: {other:?}"),
        }
    }
    let (remote, now) = (host(10, 1), Instant::now());
    let (route, mut dialling) = dial(&router, remote).unwrap();
    // The peer yields to this one.
    assert!(arrives(&router, now, remote, &check(&extreme('0'))).is_none());
    assert_eq!(waits_in(&route), 1, "its engine ignores it");
    let ufrag = extreme('z');
    let challenged = arrives(&router, now, remote, &check(&ufrag));
    let Some(Stranger::Answered { datagrams, .. }) = challenged else {
        panic!("{challenged:?}");
    };
    assert!(!is_displaced(&mut dialling));
    let asked = super::transaction(&datagrams[0]).unwrap();
    let answer = success(asked, remote, &ufrag);
    assert!(arrives(&router, now, remote, &answer).is_none());
    let admitted = arrives(&router, now, remote, &check(&ufrag));
    let Some(Stranger::Admitted(contact)) = admitted else {
        panic!("{admitted:?}");
    };
    assert!(is_displaced(&mut dialling));
    // What the dial leaves does not touch the address of the other.
    drop(route);
    assert!(arrives(&router, now, remote, &[22; 100]).is_none());
    assert_eq!(waits_in(&contact.route), 2);
    drop((contact, contacts));
    assert!(router.is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_established_dial_keeps_its_address_while_it_is_used() {
    let router = router();
    let remote = host(10, 1);
    let (route, dialling) = dial(&router, remote).unwrap();
    drop(dialling);
    assert!(arrives(&router, Instant::now(), remote, &check(&extreme('z'))).is_none());
    assert_eq!(waits_in(&route), 1);
    drop(route);
    assert!(router.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_closed_port_refuses_peers_and_ends_with_its_last_connection() {
    let router = router();
    let now = Instant::now();
    let (route, mut dialling) = dial(&router, host(10, 1)).unwrap();
    assert!(router.ended().now_or_never().is_none());
    router.end_when_empty();
    assert!(router.ended().now_or_never().is_none());
    for source in [host(10, 1), host(10, 2)] {
        let ufrag = extreme('z');
        let check = check(&ufrag);
        let expected = refusal(super::transaction(&check).unwrap(), &ufrag);
        match arrives(&router, now, source, &check) {
            // A dial has no reason to yield where nobody is accepted.
            None => assert_eq!(source, host(10, 1)),
            Some(Stranger::Answered { datagrams, .. }) => assert_eq!(datagrams, [expected]),
            other => panic!("{other:?}"),
        }
    }
    assert!(!is_displaced(&mut dialling));
    let ended = tokio::spawn({
        let router = Arc::clone(&router);
        async move { router.ended().await }
    });
    tokio::task::yield_now().await;
    drop(route);
    ended.await.unwrap();
    assert_eq!(dial(&router, host(10, 3)).unwrap_err(), Unshared::Over);
    assert!(router.is_empty());
}
