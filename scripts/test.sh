#!/usr/bin/env bash
# Installs what the tests need, then runs all of them. Meant for a fresh machine with a Rust
# toolchain and Node.js 20: the browser, Go and pion come from apt, the JavaScript peers from npm.
#
#   scripts/test.sh          everything
#   scripts/test.sh --fast   without foreign peers
set -euo pipefail
cd "$(dirname "$0")/.."

fast=false
[ "${1:-}" = "--fast" ] && fast=true
features=testing,metrics
$fast || features=$features,interop

step() { printf '\n== %s\n' "$*"; }

step "formatting"
cargo fmt --all --check

if ! command -v ip > /dev/null && [ "$(id -u)" = 0 ] && command -v apt-get > /dev/null; then
  step "network namespaces for the tests of roaming"
  apt-get update -qq
  apt-get install -y -qq --no-install-recommends iproute2 > /dev/null
fi

if ! $fast; then
  step "JavaScript peers and browser"
  interop/js/setup.sh
  step "Rust peers"
  interop/rust/setup.sh
  step "pion peer"
  interop/go/setup.sh
  step "Python peers"
  interop/python/setup.sh
fi

step "lints"
cargo clippy --all-targets --features "$features" -- -D warnings

step "features"
# What the tests turn on must not be what the library needs.
cargo check --lib --no-default-features
cargo check --lib

step "tests"
export RUST_BACKTRACE=1
if command -v cargo-nextest >/dev/null 2>&1; then
  cargo nextest run --features "$features"
else
  cargo test --features "$features" --tests --lib -- --test-threads=2
fi
cargo test --features "$features" --doc

step "documentation"
RUSTDOCFLAGS="-D warnings" cargo doc --no-deps --features testing,metrics
