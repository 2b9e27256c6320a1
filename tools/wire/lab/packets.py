"""Rates and queueing delays from the log of the emulator."""

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from network import LEAD_S

RECORD = struct.Struct("<QIHBB")
DELIVERED, QUEUE_FULL, LOST, CODEL, POLICED = range(5)
FATE, MARKED, SECOND = 0b111, 1 << 3, 1 << 4


def percentile(ordered: list[int], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else 0


def jain(rates: list[float]) -> float:
    """Jain's index: 1 if all are equal, 1/n if one has all."""
    squares = sum(rate * rate for rate in rates)
    return sum(rates) ** 2 / (len(rates) * squares) if squares else 0


@dataclass
class Window:
    """Sums over some seconds; one entry for each flow."""

    begin: float
    end: float
    flows: int
    bytes: list[int] = field(init=False)
    packets: list[int] = field(init=False)
    dropped: list[int] = field(init=False)
    lost: list[int] = field(init=False)
    marked: list[int] = field(init=False)
    waited: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        for name in ("bytes", "packets", "dropped", "lost", "marked"):
            setattr(self, name, [0] * self.flows)

    def add(self, flow: int, waited: int, length: int, event: int) -> None:
        fate = event & FATE
        self.packets[flow] += 1
        self.marked[flow] += bool(event & MARKED)
        if fate == DELIVERED:
            self.bytes[flow] += length
            if not event & SECOND:
                self.waited.append(waited)
        elif fate == LOST:
            self.lost[flow] += 1
        else:
            self.dropped[flow] += 1

    def percent(self, counts: list[int]) -> list[float]:
        pairs = zip(counts, self.packets, strict=True)
        return [round(100 * count / max(1, packets), 3) for count, packets in pairs]

    def summary(self) -> dict:
        rates = [count * 8e-6 / (self.end - self.begin) for count in self.bytes]
        waited = sorted(self.waited)
        return {
            "begin": self.begin,
            "end": self.end,
            "mbit": [round(rate, 2) for rate in rates],
            "sum": round(sum(rates), 2),
            "jain": round(jain(rates), 3),
            "queue_p50_ms": percentile(waited, 0.5) / 1e3,
            "queue_p95_ms": percentile(waited, 0.95) / 1e3,
            "dropped_pct": self.percent(self.dropped),
            "lost_pct": self.percent(self.lost),
            "marked_pct": self.percent(self.marked),
        }


def records(log: Path) -> Iterator[tuple[int, int, int, int, int]]:
    data = log.read_bytes()
    return RECORD.iter_unpack(data[: len(data) // RECORD.size * RECORD.size])


def analyse(
    log: Path,
    numbers: dict[int, int],
    is_down: list[bool],
    windows: Iterable[tuple[float, float]],
    seconds: int,
) -> tuple[list[dict], list[dict]]:
    """Sums over the windows and over each second.

    `numbers` has the flow of the experiment for each flow of the log. A flow counts in the
    direction in which its data go. Queueing delay is that of the first direction.
    """
    sums = [Window(begin, end, len(is_down)) for begin, end in windows]
    series = [Window(second, second + 1, len(is_down)) for second in range(seconds)]
    for nanoseconds, waited, length, number, event in records(log):
        flow = numbers.get(number)
        if flow is None or bool(event & SECOND) != is_down[flow]:
            continue
        time = nanoseconds / 1e9 - LEAD_S
        for window in sums:
            if window.begin <= time < window.end:
                window.add(flow, waited, length, event)
        if 0 <= time < seconds:
            series[int(time)].add(flow, waited, length, event)
    seconds_of_it = [window.summary() for window in series]
    short = ("begin", "mbit", "queue_p50_ms")
    each = [{name: second[name] for name in short} for second in seconds_of_it]
    return [window.summary() for window in sums], each
