#!/usr/bin/env bash
# Changes the pure cores in one place at a time and reports the changes that none of their tests
# detects. Needs cargo-mutants and cargo-nextest.
#
#   scripts/mutants.sh sctp ARGUMENT...      crates/sctp
#   scripts/mutants.sh cores ARGUMENT...     frame codec, states and buffers of a substream
#
# Arguments are those of cargo-mutants: --list, --shard 0/4, --file 'src/message/*', --jobs 2.
# tests/README.md lists the survivors and their reasons.
set -euo pipefail
cd "$(dirname "$0")/.."

core=${1:-}
# Few seeds: a change that only one of hundreds detects deserves a test of its own.
export ANABRANCH_SEEDS=${ANABRANCH_SEEDS:-5}
output=${CARGO_TARGET_DIR:-target}/mutants
# With `--jobs 2` each job needs a directory of its own: one would run the tests of the other.
unset CARGO_TARGET_DIR
common=(--test-tool nextest --no-shuffle --exclude '**/tests/**' --exclude '**/tests.rs'
  --exclude-re 'impl (Display|Debug)')
case $core in
  sctp)
    mkdir -p "$output/sctp"
    # Compiled without optimisation: 5 s a change instead of 11, although its tests take longer.
    exec cargo mutants --package anabranch-sctp --output "$output/sctp" "${common[@]}" \
      --cargo-arg=--config=profile.dev.package.anabranch-sctp.opt-level=0 \
      --cargo-arg=--config=profile.dev.debug=0 \
      --exclude '**/differential.rs' "${@:2}" -- --lib
    ;;
  cores) ;;
  *) sed -n '2,9s/^# \{0,1\}//p' "$0"; exit 2 ;;
esac

# A package of copies of these modules builds in seconds; the whole crate takes half a minute.
package=$output/cores
mkdir -p "$package/src"
package=$(cd "$package" && pwd)
modules=(message random.rs substream/state.rs substream/state substream/send.rs substream/send substream/recv.rs
  substream/recv)

rm -rf "$package/src" "$package/proto"
mkdir -p "$package/src/substream"
for module in "${modules[@]}"; do
  cp -r "src/$module" "$package/src/$module"
done
cp -r proto "$package/proto"
# A test compares the state diagrams of the page.
cp build.rs Cargo.lock ARCHITECTURE.md "$package/"

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

[dependencies]
$(for name in bytes prost thiserror unsigned-varint; do dependency "$name"; done)

[build-dependencies]
$(for name in prost prost-build prost-types; do dependency "$name"; done)

[dev-dependencies]
$(for name in proptest; do dependency "$name"; done)

[profile.dev]
debug = false

[workspace]
EOF
cat > "$package/src/lib.rs" <<'EOF'
//! Copies of the modules of anabranch that know neither sockets nor tasks.
#![allow(dead_code, unused_imports, missing_docs)]
pub mod message;
#[cfg(test)]
mod random;
mod substream {
    mod recv;
    mod send;
    mod state;
    use send::INITIAL_CREDIT;
}
EOF

exec cargo mutants --dir "$package" --output "$package" "${common[@]}" --exclude src/random.rs \
  --exclude src/message/oracle.rs "${@:2}" -- --lib
