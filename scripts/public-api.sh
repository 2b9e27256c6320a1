#!/usr/bin/env bash
# Lists the public interface of each published crate in docs/public-api, so that a change of it shows
# in a diff; but the adapter for rust-libp2p, whose dependencies take minutes. Needs cargo-public-api
# and a nightly toolchain, whose versions are in the first line.
#
#   scripts/public-api.sh         writes the lists
#   scripts/public-api.sh check   fails if they differ
set -euo pipefail
cd "$(dirname "$0")/.."

crates=(anabranch anabranch-rtc anabranch-sctp)
lists=docs/public-api
export CARGO_TARGET_DIR=${PUBLIC_API_TARGET:-target/public-api}

versions() { printf '# %s, %s\n' "$(cargo public-api --version)" "$(rustc +nightly --version)"; }

# Without the implementations that follow from others: blanket ones, auto traits, derived ones.
list() {
  versions
  cargo +nightly public-api --package "$1" --all-features -sss 2> /dev/null
}

case ${1:-} in
  '')
    mkdir -p "$lists"
    for crate in "${crates[@]}"; do list "$crate" > "$lists/$crate.txt"; done
    ;;
  check)
    if [ "$(head -1 "$lists/anabranch.txt")" != "$(versions)" ]; then
      printf 'other versions than those of the lists: %s\n' "$(versions)"
      exit 2
    fi
    for crate in "${crates[@]}"; do diff -u "$lists/$crate.txt" <(list "$crate"); done
    printf 'the lists of %d crates are those of the code\n' "${#crates[@]}"
    ;;
  *) sed -n '2,7s/^# \{0,1\}//p' "$0"; exit 2 ;;
esac
