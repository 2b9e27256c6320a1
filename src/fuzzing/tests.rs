//! The corpora of the fuzz targets, and random bytes where there is no corpus.

use std::time::Instant;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::*;

type Target = fn(&[u8]);

/// Runs what the fuzzer has kept, and fails if there is nothing.
fn replay(target: &str, run: Target) {
    let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/corpus/");
    let mut count = 0;
    for entry in std::fs::read_dir(format!("{corpus}{target}")).expect("a corpus") {
        let path = entry.expect("an entry").path();
        println!("{}", path.display());
        run(&std::fs::read(path).expect("a file"));
        count += 1;
    }
    assert!(count > 0, "no corpus for {target}");
}

/// Runs random bytes; a seed names its bytes completely.
fn random(seeds: u64, max_length: usize, run: Target) {
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
    let targets: [(&str, Target); 6] = [
        ("established_datagrams", established_datagrams),
        ("established_engine", established_engine),
        ("first_contact", first_contact),
        ("frame_decoder", frame_decoder),
        ("noise_and_multistream", noise_and_multistream),
        ("substream_states", substream_states),
    ];
    for (target, run) in targets {
        replay(target, run);
    }
}

/// Found by `established_engine`: a SACK with all the gaps that a peer had left.
#[test]
fn no_datagram_is_longer_than_the_mtu_however_many_gaps_a_peer_leaves() {
    for _ in 0..20 {
        established_engine(include_bytes!(
            "../../fuzz/corpus/established_engine/sack_with_many_gaps"
        ));
    }
}

/// Found by `established_engine`: DATA without user data, which sctp-proto lets pass.
#[test]
fn data_without_user_data_reaches_no_reader() {
    for _ in 0..20 {
        established_engine(include_bytes!(
            "../../fuzz/corpus/established_engine/data_without_user_data"
        ));
    }
}

/// Found by `first_contact`.
#[test]
fn an_empty_datagram_ends_no_listener() {
    first_contact(&[0, 0, 0, 0]);
    first_contact(include_bytes!(
        "../../fuzz/corpus/first_contact/empty_datagram"
    ));
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
fn bytes_in_place_of_a_negotiation_end_in_a_typed_error() {
    random(1000, 300, noise_and_multistream);
}

#[test]
fn substreams_keep_the_rules_whatever_the_peer_says() {
    random(500, 400, substream_states);
}
