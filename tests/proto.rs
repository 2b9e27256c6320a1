//! `proto/descriptors.bin`, which the build reads, matches the sources beside it.

use std::path::Path;

use prost::Message;

const PROTOS: [&str; 3] = ["message.proto", "noise.proto", "payload.proto"];

/// `ANABRANCH_WRITE_DESCRIPTORS=1 cargo test --test proto` regenerates it.
#[test]
fn the_descriptors_are_those_of_the_sources() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("proto");
    let path = directory.join("descriptors.bin");
    let compiled = protox::compile(PROTOS, [&directory]).expect("sound sources");
    let compiled = compiled.encode_to_vec();
    if std::env::var_os("ANABRANCH_WRITE_DESCRIPTORS").is_some() {
        std::fs::write(&path, &compiled).expect("a place to write");
    }
    let written = std::fs::read(&path).expect("it is there");
    assert!(
        written == compiled,
        "proto/ has changed: write the descriptors anew"
    );
}
