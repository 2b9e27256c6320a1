"""The two applications, the stacks below them, and what they print."""

import hashlib
from dataclasses import dataclass

from places import INTEROP, Cable, Failure, Host, Path100, Process, environment

RELEASE = environment.target(INTEROP) / "release"
V2 = {"WEBRTC_DIRECT_VERSION": "2"}
# Variables of the environment by the name of a stack.
STACKS = {
    "anabranch": {"TRANSPORT": "webrtc-direct"},
    "anabranch-v2": {"TRANSPORT": "webrtc-direct", **V2},
    "quic": {"TRANSPORT": "quic-v1"},
    "tcp": {"TRANSPORT": "tcp", "SECURE_CHANNEL": "noise", "MUXER": "yamux"},
    "libp2p-webrtc": {"TRANSPORT": "webrtc-direct", "WEBRTC_DIRECT_STACK": "libp2p-webrtc"},
}
STATISTICS = (
    *("iterations", "min", "q1", "median", "q3", "max"),
    *("outliers", "samples", "unit"),
)
# What the contract lets an application print.
FIELDS = {
    "transport": {"latency": ("handshake_plus_one_rtt", "ping_rtt", "unit")},
    "perf": {"upload": STATISTICS, "download": STATISTICS, "latency": STATISTICS},
}
# That of the harness, for `perf`.
LIMIT_S = 300

Place = Host | Path100 | Cable


@dataclass(frozen=True)
class Amounts:
    """What `perf` transfers, and how often."""

    size: int
    iterations: int
    latencies: int

    def variables(self) -> dict[str, str]:
        return {
            "UPLOAD_BYTES": str(self.size),
            "DOWNLOAD_BYTES": str(self.size),
            "UPLOAD_ITERATIONS": str(self.iterations),
            "DOWNLOAD_ITERATIONS": str(self.iterations),
            "LATENCY_ITERATIONS": str(self.latencies),
        }


def build() -> None:
    # With swarm-peer, as setup.sh does: what both need is compiled once, with one set of features.
    packages = ("-p", "swarm-peer", "-p", "unified")
    environment.cargo("build", "--release", "--locked", *packages, directory=INTEROP)


def spawn(place: Place, program: str, stack: str, key: str, more: dict[str, str]) -> Process:
    is_dialler = bool(more)
    variables = {
        "IS_DIALER": str(is_dialler).lower(),
        "REDIS_ADDR": place.redis,
        "TEST_KEY": key,
        "LISTENER_IP": "0.0.0.0",
        "DEBUG": "false",
        "TEST_TIMEOUT_SECS": str(LIMIT_S),
        **STACKS[stack],
        **more,
    }
    settings = [f"{name}={value}" for name, value in variables.items()]
    return place.spawn(0 if is_dialler else 1, ["env", *settings, str(RELEASE / program)])


def run(
    place: Place, program: str, dialler: str, listener: str, number: int, amounts: Amounts
) -> dict:
    """Runs a test as the harness does, and returns the results that it has checked."""
    name = f"{program}: {dialler} x {listener}, {number}"
    key = hashlib.sha256(name.encode()).hexdigest()[:8]
    listens = spawn(place, program, listener, key, {})
    dials = spawn(place, program, dialler, key, amounts.variables())
    try:
        if not dials.wait(LIMIT_S):
            raise Failure(f"{name}: {dials.errors() or 'it takes too long'}")
        if listens.has_ended():
            raise Failure(f"{name}: the listener has ended: {listens.errors()}")
    finally:
        dials.stop()
        listens.stop()
    if said := listens.process.stdout.read():
        raise Failure(f"{name}: the listener prints {said!r}")
    return results(program, dials.process.stdout.read().decode(), amounts)


def results(program: str, text: str, amounts: Amounts) -> dict:
    """The sections of the results. Nothing else may be on stdout."""
    sections: dict[str, dict[str, object]] = {}
    for line in text.splitlines():
        if not line.startswith("  "):
            sections[line.removesuffix(":")] = section = {}
            continue
        field, _, value = line.strip().partition(": ")
        section[field] = parsed(value)
    if {name: tuple(section) for name, section in sections.items()} != FIELDS[program]:
        raise Failure(f"{program} prints {text!r}")
    for name, section in sections.items():
        unit = "ms" if name == "latency" else "Gbps"
        counts = {"upload": amounts.iterations, "download": amounts.iterations}
        if program == "perf" and not is_consistent(section, counts.get(name, amounts.latencies)):
            raise Failure(f"{program} prints {name}: {section}")
        if section["unit"] != unit:
            raise Failure(f"{program}: {name} is in {section['unit']}")
    return sections


def parsed(value: str) -> object:
    if value.startswith("["):
        return [float(number) for number in value.strip("[]").split(", ") if number]
    return float(value) if value[:1].isdigit() else value


def is_consistent(section: dict, count: int) -> bool:
    samples = section["samples"]
    return (
        section["iterations"] == len(samples) == count
        and samples == sorted(samples)
        and samples[0] > 0
        and section["q1"] <= section["median"] <= section["q3"]
    )
