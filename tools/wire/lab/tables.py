"""The tables in Markdown, from the last records."""

import json
from pathlib import Path

from environment import RECORDS
from scenarios import ALL, COMPARISON, KINDS, PATHS, SCENARIOS

NAMES = {
    "ours": "anabranch",
    "tcp-cubic": "TCP CUBIC",
    "tcp-bbr": "TCP BBR",
    "quic-cubic": "QUIC CUBIC",
}
ROWS = {
    "shallow": "queue of 0.25 BDP",
    "codel": "CoDel 5/100",
    "ack-loss": "30 % of the ACKs lost",
    "reordering-1": "1 % late by 5 ms",
    "reordering-5": "5 % late by 20 ms",
}


def verdict(record: Path) -> dict | None:
    """The last line of a record, which has what the scenario has shown."""
    if not record.exists():
        return None
    return json.loads(record.read_text().splitlines()[-1])


def row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    return [row(head), "|" + "---|" * len(head), *map(row, rows), ""]


def about(verdicts: list[dict]) -> list[str]:
    """A line for each version and machine that figures are of."""
    found: dict[str, list[str]] = {}
    for one in verdicts:
        of = one["about"]
        priority = "" if of["real_time"] else ", without real-time priority"
        line = (
            f"{of['date']}, commit {of['commit']}, {of['cores']} cores ({of['cpu']}), "
            f"{of['kernel']}{priority}"
        )
        found.setdefault(line, []).append(one["scenario"])
    if len(found) == 1:
        return [*found, ""]
    return [f"- {line}: {', '.join(names)}" for line, names in found.items()] + [""]


def scenarios(verdicts: dict[str, dict]) -> list[str]:
    rows = []
    for name in SCENARIOS:
        if one := verdicts.get(name):
            measured = "; ".join(one["measured"] + one["figures"] + one["notes"])
            holds = "holds" if one["holds"] else "**falls short**"
            rows.append([f"`{name}`", one["what"], "; ".join(one["bars"]), measured, holds])
    return table(["scenario", "path", "bar", "measured", ""], rows) if rows else []


def cell(one: dict | None, kind: str, detailed: bool) -> str:
    if one is None or kind not in one["data"]:
        return ""
    window = one["data"][kind]
    rate = f"{window['mbit'][0]:.1f}"
    if not detailed:
        return rate
    p50, p95 = window["queue_p50_ms"], window["queue_p95_ms"]
    return f"{rate} ({p50:.1f}/{p95:.1f}), {window['dropped_pct'][0]:.2f} %"


def comparison(verdicts: dict[str, dict]) -> list[str]:
    if not any(name in verdicts for name in COMPARISON):
        return []
    of = {path: verdicts.get(f"compare-{path}") for path in PATHS}
    losses = [path for path in PATHS if path.startswith("loss-")]
    head = ["Mbit/s at a loss of", *(f"{path.removeprefix('loss-')} %" for path in losses)]
    rows = [[NAMES[kind], *(cell(of[path], kind, False) for path in losses)] for kind in KINDS]
    lines = table(head, rows)
    head = ["Mbit/s (queue p50/p95, ms), dropped", *(NAMES[kind] for kind in KINDS)]
    described = {"loss-0": "clean, queue of 1 BDP"} | ROWS
    rows = [
        [what, *(cell(of[path], kind, True) for kind in KINDS)]
        for path, what in described.items()
    ]
    return lines + table(head, rows)


def markdown() -> str:
    records = {name: verdict(RECORDS / f"{name}.jsonl") for name in ALL}
    verdicts = {name: one for name, one in records.items() if one is not None}
    shown = [one for name, one in verdicts.items() if name in SCENARIOS | COMPARISON]
    if not shown:
        raise SystemExit(f"no records in {RECORDS}: run tools/wire/run")
    return "\n".join(about(shown) + scenarios(verdicts) + comparison(verdicts)).rstrip()
