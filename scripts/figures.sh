#!/usr/bin/env bash
# Measures what docs/benchmarks.md shows, and writes its tables, the plots in docs/figures and the
# figures of README.md. Meant for a quiet machine; both processors are busy for up to an hour.
#
#   scripts/figures.sh                          every section, rounds as published
#   scripts/figures.sh peers paths              only these: the others keep figures and commit
#   scripts/figures.sh --quick [SECTION...]     five minutes, as a check; the pages say "quick"
#
# sections: peers paths unified transfer neighbours idle payloads message substream websocket
# unified needs root, /dev/net/tun and Redis from apt; half of the time is its own.
#
# Output of the programs stays in figures/SECTION below cargo's target directory, and
# `python3 scripts/figures [SECTION...]` makes the pages from it again. The failure of a program
# fails its section, whose figures stay unchanged, and the run. CARGO_TARGET_DIR is honoured.
set -euo pipefail
cd "$(dirname "$0")/.."

all=(peers paths unified transfer neighbours idle payloads message substream websocket)
quick=false
sections=()
for argument; do
  case " ${all[*]} --quick " in
    *" $argument "*) ;;
    *) sed -n '2,15s/^# \{0,1\}//p' "$0"; exit 2 ;;
  esac
  if [ "$argument" = --quick ]; then quick=true; else sections+=("$argument"); fi
done
[ ${#sections[@]} -gt 0 ] || sections=("${all[@]}")

# Relative to this directory, also for programs that run in another one.
if [ -n "${CARGO_TARGET_DIR:-}" ]; then
  mkdir -p "$CARGO_TARGET_DIR"
  CARGO_TARGET_DIR=$(cd "$CARGO_TARGET_DIR" && pwd)
  export CARGO_TARGET_DIR
fi
target=${CARGO_TARGET_DIR:-$PWD/target}
peers_target=${CARGO_TARGET_DIR:-$PWD/interop/rust/target}
examples=$target/release/examples
records=$target/figures
mkdir -p "$records"

# of FULL QUICK
of() { if $quick; then printf '%s' "$2"; else printf '%s' "$1"; fi; }

build() {
  local section
  for section in "${sections[@]}"; do
    case $section in
      message | substream | websocket) cargo bench --no-run --bench "$section" ;;
      transfer) cargo bench --no-run --bench transfer ;;
      peers) build_peers ;;
      unified) interop/rust/unified/run build ;;
      *) build_examples ;;
    esac
  done
}

build_examples() {
  cargo build --release --example peer --example neighbours --example transfer
  cargo build --release --example simulated_throughput
}

# One build each, as in compare: in a common one, each would link what only the other one needs.
build_peers() {
  cd interop/rust
  cargo build --release --locked -p compare
  cargo build --release --locked -p libp2p-peers --features quic --bin quic-peer
  cargo build --release --locked -p libp2p-peers --features webrtc --bin webrtc-peer
  cd ../..
}

# The last commit that changed what is measured: a commit of pages makes no other version.
commit() {
  local changes
  local measured=(src crates benches examples interop/rust proto build.rs Cargo.toml Cargo.lock)
  changes=$(git status --porcelain --untracked-files=no -- "${measured[@]}")
  printf '%s%s' "$(git log -1 --format=%h --abbrev=7 -- "${measured[@]}")" \
    "${changes:+ with changes}"
}

# Version and machine of the measurement.
about() {
  printf 'date=%s\n' "$(date -u +%F)"
  printf 'commit=%s\n' "$(commit)"
  printf 'quick=%s\n' "$quick"
  printf 'rounds=%s\n' "$rounds"
  printf 'cores=%s\n' "$(nproc)"
  printf 'cpu=%s\n' "$(sed -n 's/^model name[[:space:]]*: //p' /proc/cpuinfo | head -1)"
  printf 'kernel=%s\n' "$(uname -sr)"
  printf 'rust=%s\n' "$(rustc --version | cut -d' ' -f2)"
  printf 'busy=%s\n' "$(busy)"
}

# Processor time of other programs in percent: the load average would include the last section.
busy() {
  local all_before idle_before all_after idle_after
  read -r all_before idle_before < <(processors)
  sleep 2
  read -r all_after idle_after < <(processors)
  printf '%d' "$((100 - 100 * (idle_after - idle_before) / (all_after - all_before)))"
}

# Processor time in all, and that of idling or waiting for a disk (proc(5)).
processors() {
  awk '/^cpu / { for (i = 2; i <= 9; i++) all += $i; print all, $5 + $6 }' /proc/stat
}

# run FILE COMMAND...: appends the output of the command to a file of the section, and records the
# command.
run() {
  local file=$1 shown
  shift
  shown="$*"
  shown=${shown//$peers_target/interop\/rust\/target}
  shown=${shown//$target/target}
  grep -qxF "$shown" "$out/commands" 2> /dev/null || printf '%s\n' "$shown" >> "$out/commands"
  printf '   %s\n' "$shown" >&2
  # None takes ten minutes; one that hangs must not block the others.
  timeout 1200 "$@" >> "$out/$file"
}

rounds_of() {
  case $1 in
    paths) of 5 1 ;;
    idle | unified) of 1 1 ;;
    websocket) of 9 2 ;;
    peers | neighbours) of 5 1 ;;
    *) of 3 1 ;;
  esac
}

# Two processes of each stack on loopback, in turns.
peers() {
  local sizes='--bytes 256m --webrtc-bytes 8m --limit-s 20 --dials 50 --handshakes 300'
  $quick && sizes='--bytes 64m --webrtc-bytes 2m --limit-s 5 --dials 10 --handshakes 40 --echo 200'
  # shellcheck disable=SC2086
  run compare.jsonl "$peers_target/release/compare" --json --stacks direct,str0m,quic,webrtc \
    --repeat "$rounds" $sizes
}

# Without loss, seeds differ by 0.1 % of the link: one is enough.
paths() {
  local program engine lossless lossy seconds
  seconds=$(of 30 5)
  lossless=(--json --seconds "$seconds" --losses 0)
  lossy=(--json --seconds "$seconds" --seeds "$rounds")
  for engine in direct str0m; do
    program=(env "ANABRANCH_ENGINE=$engine" "$examples/simulated_throughput")
    run 100.jsonl "${program[@]}" "${lossless[@]}" --round-trips 10,20,50,100,200
    run 100.jsonl "${program[@]}" "${lossy[@]}" --round-trips 10,20,50,100,200 --losses 0.01
    run 100.jsonl "${program[@]}" "${lossy[@]}" --round-trips 50 \
      --losses 0.0003,0.001,0.003,0.02,0.03,0.05
    run links.jsonl "${program[@]}" "${lossless[@]}" --round-trips 50
    run links.jsonl "${program[@]}" "${lossless[@]}" --round-trips 50 --queue 0.25
    run links.jsonl "${program[@]}" "${lossless[@]}" --round-trips 50 --mbit 10
  done
  program=(env ANABRANCH_ENGINE=direct "$examples/simulated_throughput")
  run links.jsonl "${program[@]}" "${lossless[@]}" --round-trips 20,50 --mbit 1000
}

# Rounds of all candidates in turns: each run of a bench has one round of each.
criterion() {
  local name=$1 warm_up=$2 time=$3 round
  shift 3
  for ((round = 1; round <= rounds; round++)); do
    CRITERION_HOME="$out/round-$round" run output.txt cargo bench --quiet "$@" --bench "$name" -- \
      --noplot --nresamples 1000 --warm-up-time "$warm_up" --measurement-time "$time"
  done
}

transfer() { criterion transfer "$(of 1 0.1)" "$(of 3 0.3)"; }
message() { criterion message "$(of 0.3 0.02)" "$(of 0.5 0.05)"; }
substream() { criterion substream "$(of 0.5 0.1)" "$(of 1.5 0.1)"; }

websocket() {
  run websocket.jsonl cargo bench --quiet --bench websocket -- --json --rounds "$rounds"
}

# One command for each loss: with a lot of it TCP and QUIC take minutes.
unified() {
  local options=(--no-build --json) loss
  $quick && options+=(--quick)
  run unified.jsonl interop/rust/unified/run cable "${options[@]}"
  for loss in $(of "0 0.001 0.01" "0 0.01"); do
    run unified.jsonl interop/rust/unified/run paths "${options[@]}" --losses "$loss" \
      --round-trips "$(of 0,50,100 0,50)"
  done
}

neighbours() { run neighbours.jsonl "$examples/neighbours" --json "$rounds"; }

# A fresh pair of processes, so that no memory is left from another measurement.
idle() {
  local listener address connections
  connections=$(of 1000 200)
  "$examples/peer" listen > "$out/listener" &
  listener=$!
  # shellcheck disable=SC2064
  trap "kill $listener 2> /dev/null || true" EXIT
  until address=$(sed -n 's/.*"listen":"\([^"]*\)".*/\1/p' "$out/listener") && [ -n "$address" ]; do
    kill -0 "$listener"
    sleep 0.05
  done
  run idle.jsonl "$examples/peer" dial "$address" --peer-pid "$listener" --conns "$connections" \
    --parallel 8 --hold-ms "$(of 30000 5000)"
  # The port and the process differ in each run.
  sed -i "s|$address|ADDRESS|; s|--peer-pid $listener|--peer-pid PID|" "$out/commands"
  kill "$listener"
  wait "$listener" 2> /dev/null || true
}

payloads() {
  local round options size
  size=$(of 1g 64m)
  for ((round = 1; round <= rounds; round++)); do
    for options in '' '--no-hash' '--websocket' '--websocket --no-hash'; do
      # shellcheck disable=SC2086
      run payloads.jsonl "$examples/transfer" --payload --json --size "$size" $options
    done
  done
}

build
begin=$SECONDS
done_ones=() failed=()
for section in "${sections[@]}"; do
  out=$records/$section.part
  rm -rf "$out"
  mkdir -p "$out"
  rounds=$(rounds_of "$section")
  about > "$out/about"
  printf '== %s, round %s, %d s so far\n' "$section" "$rounds" "$((SECONDS - begin))" >&2
  # In a shell of its own, so that `set -e` holds in it; `if` would turn it off.
  set +e
  (set -e; "$section") 2> >(tee "$out/errors" >&2)
  status=$?
  set -e
  if [ "$status" = 0 ]; then
    rm -rf "${records:?}/$section"
    mv "$out" "$records/$section"
    done_ones+=("$section")
  else
    failed+=("$section")
  fi
done
[ ${#done_ones[@]} = 0 ] || python3 -B scripts/figures "${done_ones[@]}" || failed+=("the pages")
printf '%d s of measurements; failed: %s\n' "$((SECONDS - begin))" "${failed[*]:-none}" >&2
[ ${#failed[@]} = 0 ]
