"""The applications of libp2p's unified-testing against each other, with a Redis of their own.

    interop/rust/unified/run                    every pair of stacks on this machine
    interop/rust/unified/run --small            only anabranch's, for a build without the others
    interop/rust/unified/run cable              each stack between two namespaces; as root
    interop/rust/unified/run paths [--losses P,...] [--round-trips MS,...]
                                                the same over 100 Mbit/s with delay and loss
    interop/rust/unified/run build              the programs for all that

Prints a line for each test: the handshake with one ping, the ping, medians of upload, download and
latency. A test has failed if its dialler has, if its listener has ended, or if it prints what the
contract does not have; then the status is 1, except for libp2p-webrtc on paths. `--json` prints
lines of JSON, `--quick` moves less, `--no-build` takes the programs that are there.
CARGO_TARGET_DIR is honoured.
"""

import argparse
import json
import signal
import sys
from collections.abc import Iterator

from applications import Amounts, Place, build, run
from places import (
    Cable,
    Failure,
    Host,
    Path100,
    environment,
    remove_namespaces_of_the_dead,
    require_redis,
)

MIB = 1 << 20
OURS = [("anabranch", "anabranch"), ("anabranch-v2", "anabranch")]
SAME = [*OURS, ("quic", "quic"), ("tcp", "tcp"), ("libp2p-webrtc", "libp2p-webrtc")]
PAIRS = [*SAME, ("anabranch", "libp2p-webrtc"), ("libp2p-webrtc", "anabranch")]
# Of `transport` on a path: a lost packet of a handshake costs a timeout.
HANDSHAKES = 5


def amounts(place: Place, stacks: tuple[str, str], quick: bool) -> tuple[Amounts, int]:
    """What `perf` moves, and how often `transport` runs. It is enough for slow start to end, and
    little enough for TCP at 1.4 Mbit/s."""
    if isinstance(place, Host):
        return Amounts(MIB, 2, 5), 1
    if "libp2p-webrtc" in stacks:
        size = 8 if isinstance(place, Cable) else 1
    elif isinstance(place, Cable):
        size = 256
    else:
        size = {0: 32, 0.001: 8}.get(place.loss, 4)
    if quick:
        return Amounts(max(size // 4, 1) * MIB, 1, 3), 1
    return Amounts(size * MIB, 3, 10), HANDSHAKES


def places(options: argparse.Namespace) -> Iterator[Place]:
    match options.what:
        case "pairs":
            yield Host()
        case "cable":
            yield Cable()
        case _:
            for loss in options.losses:
                for round_trip in options.round_trips:
                    yield Path100(round_trip, loss, seed=1)


def about(place: Place, stacks: tuple[str, str], amount: Amounts) -> dict:
    return {
        "dialler": stacks[0],
        "listener": stacks[1],
        "mbit": place.mbit,
        "round_trip_ms": place.round_trip_ms,
        "loss": place.loss,
        "size": amount.size,
    }


def test(place: Place, stacks: tuple[str, str], amount: Amounts, handshakes: int) -> dict:
    """Runs both applications between two stacks."""
    latencies = [run(place, "transport", *stacks, i, amount) for i in range(handshakes)]
    perf = run(place, "perf", *stacks, 0, amount)
    return {
        "handshake_plus_one_rtt": [run["latency"]["handshake_plus_one_rtt"] for run in latencies],
        "ping_rtt": [run["latency"]["ping_rtt"] for run in latencies],
        **{name: section["samples"] for name, section in perf.items()},
    }


def median(samples: list[float]) -> float:
    samples = sorted(samples)
    middle = len(samples) // 2
    return (samples[middle] + samples[~middle]) / 2


def path(row: dict) -> str:
    link = f"{row['mbit']} Mbit/s" if row["mbit"] else "no limit"
    return f"{link}, {row['round_trip_ms']:g} ms, {row['loss'] * 100:g} %"


COLUMNS = "{:<26} {:<30} {:>12} {:>9} {:>12} {:>12} {:>11}"


def show(row: dict) -> str:
    stacks = f"{row['dialler']} x {row['listener']}"
    if "failed" in row:
        return f"{path(row):<26} {stacks:<30} FAILED {row['failed']}"
    ms = [median(row[name]) for name in ("handshake_plus_one_rtt", "ping_rtt", "latency")]
    up, down = (f"{median(row[name]) * 1e3:.4g} Mbit/s" for name in ("upload", "download"))
    handshake, ping, latency = (f"{value:.2f} ms" for value in ms)
    return COLUMNS.format(path(row), stacks, handshake, ping, up, down, latency)


def numbers(text: str) -> list[float]:
    return [float(number) for number in text.split(",")]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    choices = ["pairs", "cable", "paths", "build"]
    parser.add_argument("what", nargs="?", choices=choices, default="pairs")
    parser.add_argument("--losses", type=numbers, default=[0, 0.001, 0.01])
    parser.add_argument("--round-trips", type=numbers, default=[0, 50, 100])
    for option in ("--small", "--quick", "--json", "--no-build"):
        parser.add_argument(option, action="store_true")
    return parser.parse_args()


def prepare(options: argparse.Namespace) -> None:
    # So that whatever was started is ended.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    require_redis()
    if options.what in ("cable", "paths"):
        environment.require()
        remove_namespaces_of_the_dead()
    if not options.no_build:
        build()
        if options.what in ("paths", "build"):
            emulator = ("build", "--release", "--locked", "-p", "wire")
            environment.cargo(*emulator, directory=environment.WIRE)


def main() -> int:
    options = parse()
    prepare(options)
    if options.what == "build":
        return 0
    if not options.json:
        heads = ("handshake+1", "ping", "upload", "download", "latency")
        print(COLUMNS.format("path", "dialler x listener", *heads), flush=True)
    pairs = OURS if options.small else PAIRS if options.what == "pairs" else SAME
    failed = False
    for place in places(options):
        with place:
            for stacks in pairs:
                amount, handshakes = amounts(place, stacks, options.quick)
                row = about(place, stacks, amount)
                try:
                    row |= test(place, stacks, amount, handshakes)
                except Failure as failure:
                    # It is known to lose dials and transfers, and the others can be measured.
                    failed |= options.what == "pairs" or "libp2p-webrtc" not in stacks
                    row["failed"] = str(failure)
                print(json.dumps(row) if options.json else show(row), flush=True)
    return int(failed)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Failure as failure:
        sys.exit(str(failure))
