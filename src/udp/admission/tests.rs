//! Tests of the decisions of admission, and of the state that it keeps.

use super::challenge::{PeerCredentials, success, transaction};
use super::*;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::ufrag::parse_username;

const LIMITS: Limits = Limits {
    max_handshakes: 16,
    max_handshakes_per_prefix: 4,
    rate: RateLimit::new(Duration::from_secs(5), 3),
    site_rate: RateLimit::new(Duration::from_secs(1), 20),
    limit_loopback: true,
};

fn admission(limits: Limits) -> Arc<Admission> {
    Arc::new(Admission::new(limits))
}

/// The password of the peers.
const PWD: &str = "pppppppppppppppppppppp";

/// Port `port` of the `n`-th host.
fn source(n: u16, port: u16) -> SocketAddr {
    let [a, b] = n.to_be_bytes();
    SocketAddr::from(([10, 0, a, b], port))
}

fn admitted(verdict: Verdict) -> Slot {
    match verdict {
        Verdict::Admitted(slot) => slot,
        other => panic!("{other:?}"),
    }
}

/// Answers a challenge, as an honest peer at `source` does.
fn prove(admission: &Admission, now: Instant, source: SocketAddr) {
    answer(admission, now, source, PWD);
}

/// Answers a challenge with another password.
fn answer(admission: &Admission, now: Instant, source: SocketAddr, password: &str) {
    let credentials = parse_username(&format!("libp2p+webrtc+v2/{PWD}:abcd")).expect("well formed");
    let peer = PeerCredentials::from(&credentials);
    let check = admission.key().challenge(now, source, &peer);
    let transaction = transaction(&check).expect("a check");
    assert!(admission.take_answer(now, source, &success(transaction, source, password)));
}

#[tokio::test(start_paused = true)]
async fn forged_sources_take_half_of_the_handshakes_and_proven_peers_the_rest() {
    let admission = admission(LIMITS);
    let now = Instant::now();
    let mut slots = Vec::new();
    for n in 0..1000 {
        match admission.admit(now, source(n, 1), "a:b", PWD) {
            Verdict::Admitted(slot) => slots.push(slot),
            Verdict::Challenged => {}
            Verdict::Dropped => panic!("no contact is dropped without a challenge"),
        }
    }
    assert_eq!(slots.len(), 8);
    for n in 2000..2008 {
        prove(&admission, now, source(n, 1));
        slots.push(admitted(admission.admit(now, source(n, 1), "a:b", PWD)));
    }
    assert_eq!(slots.len(), 16);
    prove(&admission, now, source(3000, 1));
    assert!(matches!(
        admission.admit(now, source(3000, 1), "a:b", PWD),
        Verdict::Dropped
    ));
    slots.clear();
    assert!(admission.is_idle());
    admitted(admission.admit(now, source(4000, 1), "a:b", PWD));
}

#[tokio::test(start_paused = true)]
async fn an_answer_proves_the_address_of_the_peer_who_signed_it_only() {
    let admission = admission(LIMITS);
    let now = Instant::now();
    let _forged: Vec<_> = (0..8)
        .map(|n| admitted(admission.admit(now, source(n, 1), "a:b", PWD)))
        .collect();
    answer(&admission, now, source(100, 1), "that of another listener");
    assert!(matches!(
        admission.admit(now, source(100, 1), "a:b", PWD),
        Verdict::Challenged
    ));
    let own = "that of another listener";
    admitted(admission.admit(now, source(100, 1), "a:b", own));
}

#[tokio::test(start_paused = true)]
async fn one_prefix_gets_its_share_of_the_handshakes_only() {
    let mut limits = LIMITS;
    limits.rate = RateLimit::UNLIMITED;
    let admission = admission(limits);
    let now = Instant::now();
    let slots: Vec<_> = (0..4)
        .map(|port| {
            prove(&admission, now, source(1, port));
            admitted(admission.admit(now, source(1, port), "a:b", PWD))
        })
        .collect();
    prove(&admission, now, source(1, 9));
    assert!(matches!(
        admission.admit(now, source(1, 9), "a:b", PWD),
        Verdict::Dropped
    ));
    let other = admitted(admission.admit(now, source(2, 9), "a:b", PWD));
    drop(slots);
    admitted(admission.admit(now, source(1, 9), "a:b", PWD));
    drop(other);
    assert!(admission.is_idle());
}

/// Found by `strangers::attack`: an attacker could keep one host out by forging its address.
#[tokio::test(start_paused = true)]
async fn a_forger_of_one_prefix_takes_half_of_its_share_and_who_is_there_the_rest() {
    let mut limits = LIMITS;
    limits.rate = RateLimit::UNLIMITED;
    let admission = admission(limits);
    let now = Instant::now();
    let mut slots = Vec::new();
    for port in 0..100 {
        match admission.admit(now, source(1, port), "a:b", PWD) {
            Verdict::Admitted(slot) => slots.push(slot),
            Verdict::Challenged => {}
            Verdict::Dropped => panic!("no contact is dropped without a challenge"),
        }
    }
    assert_eq!(slots.len(), 2);
    for port in 200..202 {
        prove(&admission, now, source(1, port));
        slots.push(admitted(admission.admit(now, source(1, port), "a:b", PWD)));
    }
    prove(&admission, now, source(1, 202));
    assert!(matches!(
        admission.admit(now, source(1, 202), "a:b", PWD),
        Verdict::Dropped
    ));
    slots.clear();
    assert!(admission.is_idle());
}

#[tokio::test(start_paused = true)]
async fn a_forger_who_uses_up_the_rate_of_a_prefix_does_not_shut_it_out() {
    let admission = admission(LIMITS);
    let now = Instant::now();
    for port in 0..3 {
        admitted(admission.admit(now, source(1, port), "a:b", PWD));
    }
    assert!(matches!(
        admission.admit(now, source(1, 3), "a:b", PWD),
        Verdict::Challenged
    ));
    // The real one answers, and has a rate of its own, which ends as well.
    for port in 4..7 {
        assert!(matches!(
            admission.admit(now, source(1, port), "a:b", PWD),
            Verdict::Challenged
        ));
        prove(&admission, now, source(1, port));
        admitted(admission.admit(now, source(1, port), "a:b", PWD));
    }
    prove(&admission, now, source(1, 8));
    assert!(matches!(
        admission.admit(now, source(1, 8), "a:b", PWD),
        Verdict::Dropped
    ));
    let later = now + Duration::from_secs(5);
    prove(&admission, later, source(1, 8));
    admitted(admission.admit(later, source(1, 8), "a:b", PWD));
}

#[tokio::test(start_paused = true)]
async fn loopback_is_exempt_unless_it_is_not_to_be() {
    let loopback = SocketAddr::from(([127, 0, 0, 1], 1));
    for limit_loopback in [false, true] {
        let admission = admission(Limits {
            max_handshakes_per_prefix: 8,
            limit_loopback,
            ..LIMITS
        });
        let now = Instant::now();
        let slots: Vec<_> = (0..7)
            .map(|_| admission.admit(now, loopback, "a:b", PWD))
            .collect();
        let admitted = slots
            .iter()
            .filter(|verdict| matches!(verdict, Verdict::Admitted(_)))
            .count();
        assert_eq!(admitted, if limit_loopback { 3 } else { 7 });
    }
}

#[tokio::test(start_paused = true)]
async fn proofs_are_bounded_and_expire() {
    let admission = admission(LIMITS);
    let now = Instant::now();
    for n in 0..1000 {
        for port in 0..10 {
            prove(&admission, now, source(n, port));
        }
    }
    {
        let book = admission.book();
        assert_eq!(book.proofs.answers.len(), 32);
        assert_eq!(book.proofs.order.len(), 32);
        assert_eq!(book.proofs.by_prefix.len(), 8, "four of each prefix");
    }
    assert!(admission.book().proofs.holds(now, source(0, 0), PWD));
    let later = now + PROOF_LIFETIME;
    assert!(!admission.book().proofs.holds(later, source(0, 0), PWD));
    prove(&admission, later, source(5000, 0));
    let book = admission.book();
    assert_eq!((book.proofs.answers.len(), book.proofs.order.len()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn an_old_answer_proves_nothing() {
    let admission = admission(LIMITS);
    let then = Instant::now();
    let pwd = "p".repeat(22);
    let credentials = parse_username(&format!("libp2p+webrtc+v2/{pwd}:abcd")).expect("well formed");
    let peer = PeerCredentials::from(&credentials);
    let check = admission.key().challenge(then, source(1, 1), &peer);
    let transaction = transaction(&check).expect("a check");
    let answer = success(transaction, source(1, 1), &pwd);
    let later = then + Duration::from_secs(60);
    assert!(!admission.take_answer(later, source(1, 1), &answer));
}

#[tokio::test(start_paused = true)]
async fn a_fast_flood_is_answered_only_where_it_repeats_itself() {
    let admission = admission(LIMITS);
    let now = Instant::now();
    let mut verdicts = Vec::new();
    for n in 0..20_000 {
        verdicts.push(admission.admit(now, source(n, 1), "a:b", PWD));
    }
    let challenged = |verdicts: &[Verdict]| {
        verdicts
            .iter()
            .filter(|verdict| matches!(verdict, Verdict::Challenged))
            .count()
    };
    assert!((1000..1100).contains(&challenged(&verdicts)));
    let newcomer = source(50_000, 1);
    assert!(matches!(
        admission.admit(now, newcomer, "a:b", PWD),
        Verdict::Dropped
    ));
    let again = now + Duration::from_millis(50);
    while admission.book().challenges.take(again - now, CHALLENGES) {}
    assert!(matches!(
        admission.admit(again, newcomer, "a:b", PWD),
        Verdict::Challenged
    ));
}

/// An answer is stored until a check with its user arrives, so its length is bounded too.
#[tokio::test(start_paused = true)]
async fn an_answer_of_more_than_256_bytes_proves_nothing_and_is_not_kept() {
    let admission = admission(LIMITS);
    let now = Instant::now();
    let credentials = parse_username(&format!("libp2p+webrtc+v2/{PWD}:abcd")).expect("well formed");
    let peer = PeerCredentials::from(&credentials);
    for (n, length) in [(1, 256), (2, 260)] {
        let check = admission.key().challenge(now, source(n, 1), &peer);
        let asked = transaction(&check).expect("a check");
        let short = success(asked, source(n, 1), PWD).len();
        let answer = signed_answer(asked, length - short);
        assert_eq!(answer.len(), length);
        assert!(admission.take_answer(now, source(n, 1), &answer));
        let holds = admission.book().proofs.holds(now, source(n, 1), PWD);
        assert_eq!(holds, length == 256);
        assert_eq!(admission.proofs(), 1);
    }
}

/// A success response with `more` bytes in a further attribute, including its header.
fn signed_answer(asked: super::challenge::Transaction, more: usize) -> Vec<u8> {
    super::challenge::success_with_software(asked, source(1, 1), &"s".repeat(more - 4), PWD)
}

#[test]
fn contacts_get_in_as_far_as_their_addresses_are_proven() {
    for seed in crate::random::seeds(5_000) {
        println!("seed {seed}");
        let mut rng = StdRng::seed_from_u64(seed);
        let mut bytes = vec![0; rng.random_range(0..600)];
        rng.fill(&mut bytes[..]);
        super::model::run(&bytes);
    }
}
