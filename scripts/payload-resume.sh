#!/usr/bin/env bash
# Kills both sides of a payload half-way, with SIGKILL, and checks that the next attempt sends only
# the rest and that the result is identical.
#
#     scripts/payload-resume.sh [--websocket] [MEBIBYTES]          default 256
#
# PROFILE=dev in the environment selects a build without optimisations.
set -euo pipefail
cd "$(dirname "$0")/.."

carrier=()
if [ "${1:-}" = --websocket ]; then
  carrier=(--websocket)
  shift
fi
mebibytes=${1:-256}
size=$((mebibytes << 20))
profile=${PROFILE:-release}
cargo build --profile "$profile" --example transfer
case $profile in dev) directory=debug ;; *) directory=$profile ;; esac
transfer=${CARGO_TARGET_DIR:-target}/$directory/examples/transfer

place=$(mktemp -d)
receiver=
sender=
clean() {
  for process in $receiver $sender; do kill -9 "$process" 2>/dev/null || true; done
  rm -rf "$place"
}
trap clean EXIT

head -c "$size" /dev/urandom > "$place/file.bin"

# Starts a receiver and waits for its address.
receive() {
  : > "$place/receiver.log"
  "$transfer" receive "${carrier[@]}" "$@" "$place/received" > "$place/receiver.log" &
  receiver=$!
  until address=$(grep -m1 '^/ip' "$place/receiver.log"); do
    kill -0 "$receiver"
    sleep 0.01
  done
}

receive
"$transfer" send --identity "$place/sender.key" "$address" "$place/file.bin" \
  > "$place/sender.log" 2>&1 &
sender=$!
# Its name depends on the sender.
part() { find "$place/received" -name '.*.part'; }
# Half of it has arrived, or the sender is done: then the machine is too fast for this size.
until [ "$(stat -c %s "$(part)" 2>/dev/null || echo 0)" -ge $((size / 2)) ]; do
  kill -0 "$sender" 2>/dev/null || { echo "too fast for this size: give a larger one" >&2; exit 1; }
done
kill -9 "$receiver" "$sender"
wait "$receiver" "$sender" 2>/dev/null || true
receiver=
sender=
have=$(stat -c %s "$(part)")
echo "killed both; $have of $size bytes are there"

receive --once
"$transfer" send --identity "$place/sender.key" "$address" "$place/file.bin" \
  | tee "$place/sender.log"
wait "$receiver"
receiver=
cat "$place/receiver.log"
cmp "$place/file.bin" "$place/received/file.bin"
grep -q "^sent $((size - have)) of $size bytes, $have were there already" "$place/sender.log"
[ -z "$(part)" ]
echo "identical, and only the rest was sent"
