//! Runs the fuzz targets on their corpora and on random bytes.

use std::time::Instant;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::*;

type Target = fn(&[u8]);

/// Runs the corpus of a target; fails if it is empty. `ANABRANCH_CORPUS` names a directory with
/// other corpora; those of the repository are not in the published package.
fn replay(target: &str, run: Target) {
    let own = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fuzz/corpus").to_owned();
    let corpora = std::env::var("ANABRANCH_CORPUS").unwrap_or(own);
    let mut count = 0;
    for entry in std::fs::read_dir(format!("{corpora}/{target}")).expect("a corpus") {
        let path = entry.expect("an entry").path();
        println!("{}", path.display());
        run(&std::fs::read(path).expect("a file"));
        count += 1;
    }
    assert!(count > 0, "no corpus for {target}");
    let slowest = SLOWEST.swap(0, Ordering::Relaxed);
    println!("{target}: {count} inputs, slowest datagram {slowest} us");
}

/// Runs inputs of random bytes, each determined by its seed. `ANABRANCH_SEEDS` sets how many.
fn random(seeds: u64, max_length: usize, run: Target) {
    let more = std::env::var("ANABRANCH_SEEDS").ok();
    let seeds = more.and_then(|seeds| seeds.parse().ok()).unwrap_or(seeds);
    let start = Instant::now();
    for seed in 0..seeds {
        println!("seed {seed}");
        let mut rng = StdRng::seed_from_u64(seed);
        let mut bytes = vec![0; rng.random_range(0..max_length)];
        rng.fill(&mut bytes[..]);
        run(&bytes);
    }
    println!("{seeds} seeds in {:?}", start.elapsed());
}

#[test]
fn the_corpora_run_through() {
    let targets: [(&str, Target); 8] = [
        ("established_datagrams", established_datagrams),
        ("established_engine", established_engine),
        ("first_contact", first_contact),
        ("frame_decoder", frame_decoder),
        ("noise_and_multistream", noise_and_multistream),
        ("path_validation", path_validation),
        ("payload", payload),
        ("substream_states", substream_states),
    ];
    for (target, run) in targets {
        replay(target, run);
    }
    #[cfg(feature = "websocket")]
    replay("websocket_request", websocket_request);
}

/// Found by `established_engine`: a SACK that reported every gap a peer had left.
#[test]
fn no_datagram_is_longer_than_the_mtu_however_many_gaps_a_peer_leaves() {
    // Three bursts of DATA with every second TSN, from different TSNs on.
    let burst = |from: u8| [12, from, 1, 3, 0, 2, 0, 63, 1, 1, 1, 1, 1, 1, 1, 1];
    let input = [&[0][..], &burst(3), &burst(7), &burst(9), &[7; 3]].concat();
    // SCTP draws its TSNs at random in each session.
    for _ in 0..20 {
        established_engine(&input);
    }
}

/// Found by `established_engine`: DATA without user data, which an earlier SCTP accepted.
#[test]
fn data_without_user_data_reaches_no_reader() {
    for _ in 0..20 {
        established_engine(&[0, 12, 1, 0, 0x27]);
    }
}

/// Found by `first_contact`: an empty datagram stopped the listener.
#[test]
fn an_empty_datagram_ends_no_listener() {
    first_contact(&[0, 0, 0, 0]);
}

#[test]
fn changed_packets_under_valid_dtls_never_panic_nor_spin() {
    random(1000, 1500, established_engine);
}

#[test]
fn changed_datagrams_end_no_connection_and_change_no_byte() {
    random(100, 1500, established_datagrams);
}

#[test]
fn streams_of_frames_are_read_as_the_model_reads_them() {
    random(20_000, 100, frame_decoder);
}

#[test]
fn strangers_get_no_state_and_little_answer() {
    random(100, 400, first_contact);
}

#[test]
fn addresses_count_once_their_own_nonce_has_come_back() {
    random(5_000, 600, path_validation);
}

#[test]
fn bytes_in_place_of_a_negotiation_end_in_a_typed_error() {
    random(1000, 300, noise_and_multistream);
}

#[test]
fn substreams_keep_the_rules_whatever_the_peer_says() {
    random(500, 400, substream_states);
}

/// Random inputs, for tests that sum up the coverage of their sessions.
fn inputs(seeds: u64, length: usize) -> impl Iterator<Item = Vec<u8>> {
    (0..seeds).map(move |seed| {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut bytes = vec![0; rng.random_range(1..length)];
        rng.fill(&mut bytes[..]);
        bytes
    })
}

/// A target whose sessions do not reach a situation cannot find a bug in it.
#[test]
fn sessions_of_substreams_come_to_what_they_are_for() {
    let mut sum = [0; 6];
    for input in inputs(300, 400) {
        let coverage = super::substreams::run(&input);
        for (sum, more) in sum.iter_mut().zip([
            coverage.small,
            coverage.bursts,
            coverage.resets_in_flight,
            coverage.peer_paused,
            coverage.read_late,
            coverage.acknowledged,
        ]) {
            *sum += more;
        }
    }
    println!(
        "small, bursts, resets in flight, steps of a paused peer, read late, acknowledged: {sum:?}"
    );
    assert!(sum.iter().all(|count| *count >= 20), "{sum:?}");
}

/// Honest engines on a bad network, and the situations that their sessions reach.
#[test]
fn what_engines_acknowledge_is_readable_and_sessions_come_to_what_they_are_for() {
    let mut sum = [0; 8];
    for (seed, input) in inputs(60, 400).enumerate() {
        println!("seed {seed}");
        let (_, coverage) = engine::honest(Input::new(&input));
        for (sum, more) in sum.iter_mut().zip([
            coverage.small,
            coverage.resets_in_flight,
            coverage.read_late,
            coverage.no_free_id,
            coverage.reused,
            coverage.impaired,
            coverage.refused,
            coverage.delivered,
        ]) {
            *sum += more;
        }
    }
    println!(
        "small, resets in flight, read late, no free id, ids reused, datagrams impaired, \
         writes refused, bytes delivered: {sum:?}"
    );
    assert!(sum.iter().all(|count| *count >= 50), "{sum:?}");
}

#[test]
fn payloads_are_whole_or_an_error_whatever_the_peer_says() {
    random(500, 300, payload);
}

/// A target whose payloads all fail early cannot find a bug after the first message.
#[test]
fn payloads_of_a_cooperative_peer_are_complete() {
    let inputs: [&[u8]; 5] = [
        // With length and hash; without either; resumed.
        &[
            1, 0, 0, 0, 0, 0, 0, 2, 0, 1, 0, 0, 0, 2, 1, 0, 5, 0, 10, 0, 0, 0,
        ],
        &[
            1, 1, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 3, 2, 1, 4, 2, 2, 0, 10, 0, 0, 0,
        ],
        &[
            1, 4, 3, 0, 0, 0, 0, 2, 0, 1, 1, 0, 0, 6, 1, 0, 0, 2, 4, 2, 5, 0, 10, 0, 0, 0,
        ],
        // To a peer that sends a receipt; an answer and a receipt.
        &[0, 2, 0, 0, 0, 0, 0, 8, 0, 10, 0, 0, 0],
        &[0, 3, 3, 0, 1, 0, 0, 7, 1, 0, 0, 0, 8, 2, 10, 0, 0, 0],
    ];
    for input in inputs {
        assert!(super::payload::run(input), "{input:?}");
    }
    assert!(!super::payload::run(&[]));
}

#[cfg(feature = "websocket")]
#[test]
fn requests_are_upgraded_only_if_they_keep_every_rule() {
    random(200_000, 40, websocket_request);
}

/// A target whose requests all fail early cannot find a bug after the first check.
#[cfg(feature = "websocket")]
#[test]
fn good_requests_are_upgraded() {
    // GET /a?b, Host, Connection, Upgrade, version, key, both subprotocols, an Origin of the same
    // host, the empty line.
    let lines = [1, 6, 12, 14, 16, 18, 20, 21, 22, 32];
    // With and without Noise; a public address; all hosts and paths, or listed ones; each policy
    // of origins.
    for has_noise in [0, 1] {
        for listed in [0, 1] {
            for origins in 0..3 {
                let settings = [has_noise, 0, listed, listed, origins];
                let input = [&settings[..], &lines].concat();
                assert!(super::requests::run(&input), "{input:?}");
            }
        }
    }
    assert!(!super::requests::run(&[]));
}
