#!/usr/bin/env bash
# Changes the pure cores (frame codec, substream states and buffers, SCTP) in one place at a time and says which change
# no test of theirs notices. A package of its own, made of copies of these modules, builds in seconds where the whole
# crate needs half a minute. Needs cargo-mutants and cargo-nextest.
#
#   scripts/mutants.sh                       all of them
#   scripts/mutants.sh -f 'src/message/*'    as cargo-mutants takes it; --list, --shard 0/4, --jobs 2 as well
#
# What survives, and why it may, stands in tests/README.md.
set -euo pipefail
cd "$(dirname "$0")/.."

package=${CARGO_TARGET_DIR:-target}/mutants
mkdir -p "$package/src"
package=$(cd "$package" && pwd)
modules=(message sctp tally.rs entropy.rs random.rs substream/state.rs substream/state substream/send.rs substream/send
  substream/recv.rs substream/recv)

rm -rf "$package/src" "$package/proto"
mkdir -p "$package/src/substream"
for module in "${modules[@]}"; do
  cp -r "src/$module" "$package/src/$module"
done
cp -r proto "$package/proto"
cp build.rs Cargo.lock "$package/"

# dependency NAME: the line of the real manifest, so that the versions are the same.
dependency() { grep -m 1 "^$1 = " Cargo.toml; }
cat > "$package/Cargo.toml" <<EOF
[package]
name = "pure-cores"
version = "0.0.0"
edition = "2024"
publish = false

[features]
default = ["websocket"]
websocket = []
testing = []
fuzzing = []

[dependencies]
$(for name in bytes crc prost rand thiserror unsigned-varint; do dependency "$name"; done)

[build-dependencies]
$(for name in prost-build protox; do dependency "$name"; done)

[dev-dependencies]
$(for name in dcsctp proptest; do dependency "$name"; done)

[profile.dev]
debug = false

[workspace]
EOF
cat > "$package/src/lib.rs" <<'EOF'
//! Copies of the modules of anabranch that know neither sockets nor tasks.
#![allow(dead_code, unused_imports, missing_docs)]
mod entropy;
pub mod message;
#[cfg(test)]
mod random;
pub mod sctp;
mod substream {
    mod recv;
    mod send;
    mod state;
    use send::INITIAL_CREDIT;
}
mod tally;
EOF

# Few seeds: a change that only one of hundreds finds is worth a test of its own.
export ANABRANCH_SEEDS=${ANABRANCH_SEEDS:-5}
exec cargo mutants --dir "$package" --output "$package" --test-tool nextest --no-shuffle --exclude '**/tests/**' \
  --exclude '**/tests.rs' --exclude src/sctp/differential.rs --exclude src/random.rs --exclude src/message/oracle.rs \
  --exclude-re 'impl (Display|Debug)' "$@" -- --lib
