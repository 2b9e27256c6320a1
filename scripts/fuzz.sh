#!/usr/bin/env bash
# Runs every fuzz target, one after another, and prints the figures of each run.
#
#   scripts/fuzz.sh [seconds for each target, default 60] [target...]
#
# Needs a nightly toolchain and cargo-fuzz (`cargo install cargo-fuzz --locked`). Findings are in
# fuzz/artifacts. New inputs go to fuzz/target/corpus, which scripts/fuzz_corpus.py minimises;
# fuzz/corpus stays unchanged. FUZZ_FLAGS=-O builds without debug assertions, SANITIZER=address with
# a sanitizer.
set -euo pipefail
cd "$(dirname "$0")/.."

seconds=${1:-60}
shift || true
targets=("$@")
builds=("$@")
if [ ${#targets[@]} -eq 0 ]; then
  # All at once.
  builds=("")
  for target in fuzz/fuzz_targets/*.rs; do
    targets+=("$(basename "$target" .rs)")
  done
fi

# The crate has no unsafe code, and without a sanitizer twice as many inputs run.
flags=(--sanitizer "${SANITIZER:-none}")
[ -z "${FUZZ_FLAGS:-}" ] || flags+=($FUZZ_FLAGS)
for target in "${builds[@]}"; do
  cargo +nightly fuzz build "${flags[@]}" ${target:+"$target"}
done

failed=0
mkdir -p fuzz/target/logs
for target in "${targets[@]}"; do
  corpus=fuzz/target/corpus/$target
  log=fuzz/target/logs/$target.log
  mkdir -p "$corpus"
  cargo +nightly fuzz run "${flags[@]}" "$target" "$corpus" "fuzz/corpus/$target" -- \
    -max_total_time="$seconds" -max_len=2000 -timeout=30 -rss_limit_mb=1500 -print_final_stats=1 \
    >"$log" 2>&1 || { failed=1; printf '%s FAILED, see %s\n' "$target" "$log"; }
  executions=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
  memory=$(sed -n 's/^stat::peak_rss_mb: *//p' "$log")
  coverage=$(grep -o ' cov: [0-9]*' "$log" | tail -1 | tr -dc 0-9 || true)
  slowest=$(sed -n 's/^slowest datagram: //p' "$log" | tail -1)
  printf '%-22s %9s executions, coverage %s, peak %s MiB, slowest datagram %s\n' \
    "$target" "${executions:-?}" "${coverage:-?}" "${memory:-?}" "${slowest:--}"
done
exit $failed
