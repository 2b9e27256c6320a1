"""The records of scripts/figures.sh below cargo's target directory."""

import json
import os
import re
import statistics
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
RECORDS = Path(os.environ.get("CARGO_TARGET_DIR") or ROOT / "target") / "figures"


@dataclass(frozen=True)
class About:
    """When and where a section was measured, and of which version."""

    date: str
    commit: str
    quick: bool
    rounds: int
    cores: int
    cpu: str
    kernel: str
    rust: str
    busy: str

    @property
    def short(self) -> str:
        """The note of a picture."""
        return f"{self.date}, commit {self.commit}{', quick run' if self.quick else ''}"


class Section:
    """The records of one section."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.directory = RECORDS / name
        if not self.directory.is_dir():
            raise SystemExit(f"no records in {self.directory}: run scripts/figures.sh {name}")
        facts = dict(line.split("=", 1) for line in self.text("about").splitlines())
        self.about = About(
            facts["date"],
            facts["commit"],
            facts["quick"] == "true",
            int(facts["rounds"]),
            int(facts["cores"]),
            facts["cpu"],
            facts["kernel"],
            facts["rust"],
            facts["busy"],
        )
        self.commands = self.text("commands").splitlines()

    def text(self, file: str) -> str:
        return (self.directory / file).read_text()

    def lines(self, file: str) -> list[dict]:
        """Lines of JSON, except those that only report a failure."""
        lines = [json.loads(line) for line in self.text(file).splitlines()]
        if errors := [line["error"] for line in lines if "error" in line]:
            raise SystemExit(f"{self.name}: {errors}")
        return lines

    def criterion(self) -> dict[tuple[str, str], list[float]]:
        """By group and function: the median of each round, in ns for one iteration."""
        found: dict[tuple[str, str], list[float]] = {}
        for path in sorted(self.directory.glob("round-*/**/new/benchmark.json")):
            of = json.loads(path.read_text())
            estimates = json.loads((path.parent / "estimates.json").read_text())
            name = of["function_id"] + (f"/{of['value_str']}" if of["value_str"] else "")
            median = estimates["median"]["point_estimate"]
            found.setdefault((of["group_id"], name), []).append(median)
        for name, medians in found.items():
            if len(medians) != self.about.rounds:
                raise SystemExit(f"{self.name}: {name} has {len(medians)} rounds")
        return found


@dataclass(frozen=True)
class Spread:
    """The median of what was measured several times, the least and the most."""

    median: float
    least: float
    most: float
    count: int

    @classmethod
    def of(cls, values: list[float]) -> "Spread":
        if not values:
            raise SystemExit("no values")
        return cls(statistics.median(values), min(values), max(values), len(values))

    def times(self, factor: float) -> "Spread":
        return Spread(self.median * factor, self.least * factor, self.most * factor, self.count)

    def inverse(self, amount: float) -> "Spread":
        """For times: how often that many fit into each."""
        return Spread(amount / self.median, amount / self.most, amount / self.least, self.count)

    def __str__(self) -> str:
        if self.count == 1:
            return digits(self.median)
        return f"{digits(self.median)} ({digits(self.least)}-{digits(self.most)})"


def digits(value: float) -> str:
    """Three significant digits."""
    size = abs(value)
    return f"{value:.0f}" if size >= 99.95 else f"{value:.1f}" if size >= 9.995 else f"{value:.2f}"


def first_number(cell: str) -> float:
    """The median at the start of a cell."""
    found = re.match(r"[\d.]+", cell)
    if not found:
        raise SystemExit(f"no number in {cell!r}")
    return float(found[0])


def number(text: str) -> str:
    """With separated thousands, as in the other pages."""
    return f"{int(text):,}".replace(",", " ")
