"""What the congestion control has to hold on a real bottleneck.

50 Mbit/s and a round trip of 50 ms unless a scenario says otherwise; the BDP is 312 500 bytes. The
first window of two flows begins 8 s after the second one.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from experiment import Bench, Flow

BDP = 312_500
BACK = "rate=50m,delay=25,queue=1000000"


@dataclass(frozen=True)
class Check:
    """A figure and its bar."""

    what: str
    value: float | None
    limit: float
    unit: str = " Mbit/s"
    at_most: bool = False

    @property
    def holds(self) -> bool:
        if self.value is None:
            return False
        return self.value <= self.limit if self.at_most else self.value >= self.limit

    @property
    def measured(self) -> str:
        value = "none" if self.value is None else f"{round(self.value, 2):g}{self.unit}"
        return f"{self.what} {value}"

    @property
    def bar(self) -> str:
        return f"{self.what} {'<=' if self.at_most else '>='} {self.limit:g}{self.unit}"


@dataclass
class Outcome:
    """What a scenario has shown. Without checks it is a measurement."""

    checks: list[Check] = field(default_factory=list)
    figures: list[str] = field(default_factory=list)
    # For tables.
    data: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Scenario:
    """A test and its description for the table."""

    what: str
    test: Callable[[Bench], Outcome]


def link(rate: str = "50m", delay: float = 25, queue: int = BDP, **more: object) -> str:
    """Options of the direction with the data. `True` is for an option without value."""
    items = {"rate": rate, "delay": delay, "queue": queue} | more
    return ",".join(name if value is True else f"{name}={value}" for name, value in items.items())


def queue(value: float, limit: float, what: str = "queue p50") -> Check:
    return Check(what, value, limit, " ms", at_most=True)


def rates(flows: list[str], window: dict) -> str:
    each = ", ".join(f"{k} {rate}" for k, rate in zip(flows, window["mbit"], strict=True))
    p50, p95 = window["queue_p50_ms"], window["queue_p95_ms"]
    total, index = window["sum"], window["jain"]
    return f"{each} (sum {total}, Jain {index:.2f}), queue {p50:.0f}/{p95:.0f} ms"


def duel(
    what: str,
    other: str,
    size: int,
    share: float = 0.30,
    ours_first: bool = True,
    tcp_ecn: bool = False,
    first: str = "ours",
    **more: object,
) -> Scenario:
    """Each side gets at least `share` of what both get."""

    def test(bench: Bench) -> Outcome:
        order = [first, other] if ours_first else [other, first]
        flows = [Flow(order[0], 0, 50), Flow(order[1], 6, 44)]
        path = link(queue=size, **more)
        [window] = bench.run(path, BACK, flows, [(14, 50)], 50, ecn=tcp_ecn)["windows"]
        least = min(window["mbit"]) / max(window["sum"], 1)
        marked = [f"marked {window['marked_pct']} %"] if tcp_ecn else []
        checks = [Check("smaller share", round(least, 3), share, "")]
        return Outcome(checks, [rates(order, window), *marked])

    return Scenario(what, test)


def several(
    what: str,
    count: int,
    size: int,
    fair: float,
    queue_ms: float,
    gap: int = 3,
    total: int = 75,
) -> Scenario:
    """So many of ours, one after another: fair in the end, and a queue that does not grow."""

    def test(bench: Bench) -> Outcome:
        windows = [(total - 40, total - 20), (total - 20, total)]
        flows = [Flow("ours", gap * i, total - gap * i) for i in range(count)]
        before, last = bench.run(link(queue=size), BACK, flows, windows, total)["windows"]
        growth = before["queue_p50_ms"] * 1.25 + 5
        checks = [
            Check("Jain", last["jain"], fair, ""),
            queue(last["queue_p50_ms"], min(queue_ms, round(growth, 1))),
        ]
        earlier = f"queue p50 {before['queue_p50_ms']:.0f} ms in the 20 s before"
        return Outcome(checks, [rates(["ours"] * count, last), earlier])

    return Scenario(what, test)


def alone(
    what: str,
    least: float,
    forth: str,
    back: str = BACK,
    seconds: int = 25,
    since: int = 5,
    queue_ms: float | None = None,
    seeds: tuple[int, ...] = (1,),
) -> Scenario:
    """A single flow of ours."""

    def test(bench: Bench) -> Outcome:
        found = []
        for seed in seeds:
            flows = [Flow("ours", 0, seconds)]
            result = bench.run(forth, back, flows, [(since, seconds)], seconds, seed=seed)
            found += result["windows"]
        each = [window["mbit"][0] for window in found]
        longest = max(window["queue_p50_ms"] for window in found)
        checks = [Check("rate" if len(seeds) == 1 else "lowest rate", min(each), least)]
        figures = [f"dropped {max(window['dropped_pct'][0] for window in found)} %"]
        if marked := max(window["marked_pct"][0] for window in found):
            figures.append(f"marked {marked} %")
        if len(seeds) > 1:
            figures.append(f"rates {each}")
        if queue_ms is None:
            figures.append(f"queue p50 {longest:.0f} ms")
        else:
            checks.append(queue(longest, queue_ms))
        return Outcome(checks, figures)

    return Scenario(what, test)


def changing(
    what: str,
    forth: str,
    back: str,
    total: int,
    bars: list[tuple[float, float, float, float | None]],
    kind: str = "ours",
) -> Scenario:
    """A flow of ours over a path that changes: bars are begin, end, Mbit/s and queue in ms."""

    def test(bench: Bench) -> Outcome:
        windows = [(begin, end) for begin, end, _, _ in bars]
        found = bench.run(forth, back, [Flow(kind, 0, total)], windows, total)["windows"]
        checks = []
        for window, (begin, end, least, queue_ms) in zip(found, bars, strict=True):
            checks.append(Check(f"{begin:g}-{end:g} s", window["mbit"][0], least))
            if queue_ms is not None:
                what = f"{begin:g}-{end:g} s queue p50"
                checks.append(queue(window["queue_p50_ms"], queue_ms, what))
        return Outcome(checks)

    return Scenario(what, test)


def reverse_cubic(bench: Bench) -> Outcome:
    flows = [Flow("ours", 0, 40), Flow("tcp-cubic-down", 8, 32)]
    [window] = bench.run(link(), link(), flows, [(15, 40)], 40)["windows"]
    checks = [Check("rate", window["mbit"][0], 40)]
    return Outcome(checks, [f"download {window['mbit'][1]} Mbit/s"])


def beside_bbr(bench: Bench) -> Outcome:
    """BBRv1 does not yield to CUBIC either."""
    got = []
    for kind in ("ours", "tcp-cubic"):
        flows = [Flow(kind, 0, 50), Flow("tcp-bbr", 6, 44)]
        [window] = bench.run(link(), BACK, flows, [(14, 50)], 50)["windows"]
        got.append(window["mbit"][0])
    ours, cubic = got
    checks = [Check("part of CUBIC's rate", round(ours / max(cubic, 0.01), 2), 0.8, "")]
    return Outcome(checks, [f"ours {ours}, CUBIC in our place {cubic} Mbit/s"])


def three_cubics(bench: Bench) -> Outcome:
    cubics = [Flow("tcp-cubic", i, 50 - i) for i in range(3)]
    flows = [*cubics, Flow("ours", 5, 45)]
    [window] = bench.run(link(queue=BDP // 4), BACK, flows, [(14, 50)], 50)["windows"]
    *others, ours = window["mbit"]
    checks = [
        Check("ours", ours, 20, at_most=True),
        Check("slowest CUBIC", min(others), 5),
    ]
    return Outcome(checks, [rates([flow.kind for flow in flows], window)])


def short(what: str, delay: int, size: int, factor: float, with_connect: bool) -> Scenario:
    """A short transfer beside QUIC, on the same path."""

    def test(bench: Bench) -> Outcome:
        path = link(delay=delay, queue=12_500 * delay)
        ours, quic = (bench.transfers(path, kind, size, 6) for kind in ("ours", "quic-cubic"))
        key = "total_ms" if with_connect else "transfer_ms"
        both = ours.get(key), quic.get(key)
        ratio = round(both[0] / both[1], 2) if all(both) else None
        checks = [Check("part of QUIC's time", ratio, factor, "", at_most=True)]
        names = ("connect_ms", "open_ms", "transfer_ms", "total_ms")
        figures = [f"{name} {ours.get(name)} : {quic.get(name)}" for name in names]
        return Outcome(checks, figures)

    return Scenario(what, test)


def app_limited(bench: Bench) -> Outcome:
    """64 KiB there and back, one after another, each on a substream of its own."""
    flows = [Flow("ours-requests", 0, 30)]
    result = bench.run(link(), BACK, flows, [(0, 30)], 30)
    [window] = result["windows"]
    [row] = result["clients"][0] or [{}]
    # Open and negotiate, there and back, close: three round trips of 50 ms, and 2 x 10.5 ms.
    limit = {"unit": " ms", "at_most": True}
    checks = [
        Check("request p50", row.get("p50_ms"), 200, **limit),
        Check("request p95", row.get("p95_ms"), 250, **limit),
        Check("dropped", window["dropped_pct"][0], 0, " %", at_most=True),
    ]
    return Outcome(checks, [f"queue p95 {window['queue_p95_ms']:.0f} ms"])


# Where a path changes, by time since the flow began.
OUTAGE = "rate=50m/0@6/50m@8,delay=100,queue=1250000"
LONG = "rate=50m,delay=100,queue={},loss=0/1@6/0@8"
SLOW = "rate=1m,delay=25,queue=125000"
CAPACITY = "rate=100m/10m@10/100m@20,delay=25,queue=625000"
CODEL = {"queue": 10 * BDP, "codel": "5:100"}
ECN = CODEL | {"ecn": True}

SCENARIOS = {
    "cubic-shallow": duel("CUBIC, 0.25 BDP", "tcp-cubic", BDP // 4),
    "cubic-1bdp": duel("CUBIC, 1 BDP", "tcp-cubic", BDP),
    "cubic-deep": duel("CUBIC, 4 BDP", "tcp-cubic", 4 * BDP, share=0.20),
    "cubic-first-shallow": duel(
        "CUBIC first, 0.25 BDP", "tcp-cubic", BDP // 4, ours_first=False
    ),
    "cubic-codel": duel("CUBIC, CoDel", "tcp-cubic", 10 * BDP, codel="5:100"),
    "quic-shallow": duel("QUIC CUBIC, 0.25 BDP", "quic-cubic", BDP // 4),
    "quic-1bdp": duel("QUIC CUBIC, 1 BDP", "quic-cubic", BDP),
    "bbr-1bdp": Scenario("BBR, 1 BDP", beside_bbr),
    "three-cubics": Scenario("three CUBIC, 0.25 BDP", three_cubics),
    "two-ours": several("two of ours, 1 BDP", 2, BDP, 0.90, 50),
    "four-ours": several("four of ours, 1 BDP", 4, BDP, 0.90, 50),
    "eight-ours-deep": several("eight of ours, 10 BDP", 8, 10 * BDP, 0.85, 75, total=90),
    "loss-1": alone("1 % loss", 45, link(loss=0.01)),
    "loss-2": alone("2 % loss, three seeds", 35, link(loss=0.02), seeds=(1, 2, 3)),
    "loss-5": alone("5 % loss", 10, link(loss=0.05)),
    "clean": alone("clean, 1 BDP", 48, link(), queue_ms=25),
    "shallow": alone("0.1 BDP", 42, link(queue=BDP // 10)),
    "codel-alone": alone("CoDel", 45, link(**CODEL), queue_ms=10),
    "policer": alone(
        "policer of 20 Mbit/s", 16, "rate=200m,delay=25,queue=1000000,police=20m:60000"
    ),
    "slow": alone(
        "1 Mbit/s, queue of 1 s", 0.9, SLOW, SLOW, seconds=40, since=10, queue_ms=150
    ),
    "reordering": alone("5 % late by 20 ms", 35, link(reorder="0.05:20")),
    "ack-loss": alone("30 % of the ACKs lost", 45, link(), BACK + ",loss=0.3"),
    "longer-path": alone(
        "one way from 25 to 50 ms",
        35,
        "rate=50m,delay=25/50@12,queue=625000",
        seconds=24,
        since=14,
    ),
    "reverse-cubic": Scenario("CUBIC download on the way back", reverse_cubic),
    "outage": changing(
        "2 s without service at 200 ms",
        OUTAGE,
        "rate=50m,delay=100,queue=1000000",
        20,
        [(10, 12, 25, None), (12, 20, 45, None)],
    ),
    "short-1m-50ms": short("1 MiB at 50 ms, once connected", 25, 1 << 20, 1.1, False),
    "short-1m-100ms": short("1 MiB at 100 ms, once connected", 50, 1 << 20, 1.1, False),
    "first-100k-100ms": short("100 KiB at 100 ms, with connecting", 50, 100 << 10, 1.6, True),
    "blackout": changing(
        "2 s with all packets lost at 200 ms",
        LONG.format(1_250_000),
        LONG.format(1_000_000),
        20,
        [(8, 10, 10, None)],
    ),
    "jitter": alone("jitter of 10 ms both ways", 45, link(jitter=10), BACK + ",jitter=10"),
    "ack-bursts": alone("ACKs in bursts of 20 ms", 45, link(), BACK + ",batch=20"),
    "capacity": changing(
        "100, 10 and 100 Mbit/s",
        CAPACITY,
        BACK,
        30,
        [(5, 10, 90, None), (15, 20, 9, 100), (22, 30, 85, None)],
    ),
    "app-limited": Scenario("requests of 64 KiB", app_limited),
    "reader-stalls": changing(
        "a receiver that stops for 3 s", link(), BACK, 20, [(12, 20, 45, 25)], "ours-stall"
    ),
    "ecn-codel": alone("CoDel that marks", 45, link(**ECN), queue_ms=10),
    "ecn-cubic": duel(
        "CUBIC with ECN, CoDel that marks", "tcp-cubic", 10 * BDP, tcp_ecn=True, codel="5:100,ecn"
    ),
    "ecn-step": alone("marks above 12.5 ms", 42, link(mark=12.5), queue_ms=25),
    "ecn-bleached": alone(
        "ECN cleared before CoDel that marks", 45, link(**ECN, bleach=True), queue_ms=10
    ),
    "ecn-marks-bleached": alone(
        "ECN cleared after CoDel that marks", 45, link(**ECN, bleach="after"), queue_ms=10
    ),
}

QUICK = [
    "cubic-shallow",
    "cubic-1bdp",
    "two-ours",
    "loss-2",
    "reverse-cubic",
    "outage",
    "short-1m-100ms",
]


def check_echo(bench: Bench) -> Outcome:
    result = bench.run("delay=25", "delay=25", [Flow("echo", 0, 65)], [(0, 65)], 65)
    [row] = result["clients"][0] or [{}]
    limit = {"unit": " ms", "at_most": True}
    checks = [
        Check("min", row.get("min_ms"), 50, " ms"),
        Check("p50", row.get("p50_ms"), 51, **limit),
        Check("p99", row.get("p99_ms"), 52, **limit),
    ]
    late = result["emulator"]
    figures = [
        f"p95 {row.get('p95_ms')} ms, max {row.get('max_ms')} ms",
        f"late p50 {late['late_p50_us']} us, p99 {late['late_p99_us']} us",
    ]
    return Outcome(checks, figures)


def check_fast(bench: Bench) -> Outcome:
    path, back = "rate=100m,delay=25,queue=625000", "rate=100m,delay=25"
    result = bench.run(path, back, [Flow("tcp-cubic", 0, 25)], [(5, 25)], 25)
    late = result["emulator"]
    checks = [
        Check("rate", result["windows"][0]["mbit"][0], 99.5),
        Check("late p99", late["late_p99_us"] / 1e3, 1, " ms", at_most=True),
    ]
    return Outcome(checks, [f"late p50 {late['late_p50_us']} us, max {late['late_max_us']} us"])


def check_tcp(kind: str, least: float, check: Callable[[dict], Check]) -> Scenario:
    def test(bench: Bench) -> Outcome:
        [window] = bench.run(link(), BACK, [Flow(kind, 0, 25)], [(5, 25)], 25)["windows"]
        return Outcome([Check("rate", window["mbit"][0], least), check(window)])

    return Scenario(f"{kind} alone", test)


# Whether the laboratory is sound: what is known of TCP and QUIC.
CHECKS = {
    "check-echo": Scenario("round trips of datagrams over 2 x 25 ms", check_echo),
    "check-fast": Scenario("100 Mbit/s", check_fast),
    "check-cubic": check_tcp(
        "tcp-cubic", 49.5, lambda w: Check("queue p95", w["queue_p95_ms"], 45, " ms")
    ),
    "check-bbr": check_tcp("tcp-bbr", 47, lambda w: queue(w["queue_p50_ms"], 5)),
    # In this order: the kernel's CUBIC needs half a minute to take its share from a flow that
    # was there before.
    "check-quic-cubic": duel(
        "QUIC CUBIC beside an earlier TCP CUBIC, 0.25 BDP",
        "quic-cubic",
        BDP // 4,
        share=0.40,
        first="tcp-cubic",
    ),
}

KINDS = ["ours", "tcp-cubic", "tcp-bbr", "quic-cubic"]
LOSSES = [0, 0.005, 0.01, 0.02, 0.03, 0.05]
# Alone on these paths: there and back.
PATHS = {f"loss-{100 * loss:g}": (link(loss=loss), BACK) for loss in LOSSES} | {
    "shallow": (link(queue=BDP // 4), BACK),
    "codel": (link(**CODEL), BACK),
    "ack-loss": (link(), BACK + ",loss=0.3"),
    "reordering-1": (link(reorder="0.01:5"), BACK),
    "reordering-5": (link(reorder="0.05:20"), BACK),
}


def compare(forth: str, back: str) -> Callable[[Bench], Outcome]:
    def test(bench: Bench) -> Outcome:
        data, figures = {}, []
        for kind in KINDS:
            [window] = bench.run(forth, back, [Flow(kind, 0, 25)], [(5, 25)], 25)["windows"]
            data[kind] = window
            figures.append(f"{kind} {window['mbit'][0]} Mbit/s")
        return Outcome(figures=figures, data=data)

    return test


COMPARISON = {
    f"compare-{name}": Scenario(f"each alone: {forth}", compare(forth, back))
    for name, (forth, back) in PATHS.items()
}

ALL = SCENARIOS | COMPARISON | CHECKS
GROUPS = {
    "scenarios": list(SCENARIOS),
    "quick": QUICK,
    "ecn": [name for name in SCENARIOS if name.startswith("ecn-")],
    "compare": list(COMPARISON),
    "checks": list(CHECKS),
}
