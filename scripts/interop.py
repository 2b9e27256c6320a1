#!/usr/bin/env python3
"""Makes the tables of docs/interop.md from the assertions of the interop tests, or compares them.

    scripts/interop.py write     writes the tables between the markers
    scripts/interop.py check     fails if they claim more than this run has shown; prints what they
                                 lack

The tests append a line for each case that passes to `interop` in cargo's directory for them;
`scripts/test.sh` empties it, runs them, and calls this. Figures, releases, date and commit are of
the run that wrote the tables, and not compared.
"""

import json
import os
import re
import subprocess
import sys
from collections import defaultdict
from datetime import date
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs/interop.md"
RECORDS = Path(os.environ.get("CARGO_TARGET_DIR") or ROOT / "target") / "tmp/interop"
BEGIN, END = "<!-- written by scripts/interop.py -->", "<!-- end -->"

DIRECTIONS = ["it dials us", "we dial it", "it dials us, we open", "between two of theirs"]
# The column of a case in the overview. A limit of a peer has none.
FAMILIES = {
    "connects": r"connect|dials-\d+|v2",
    "identify, ping": r"identify|ping",
    "echo": r"echo-[^ ]*|sequential-\d+|substreams are echoed",
    "bulk": r"bulk-.*",
    "half-close": r"half-close-(local|remote)",
    "reset": r"reset-(local|remote)",
    "a reader stalls": r"stall-(local|remote)",
    "ceiling": r"ceiling",
    "FIN_ACK": r"fin-ack",
    "a side is killed": r"(it is|we are) killed, (we notice|it notices)",
}


def records() -> list[dict[str, str]]:
    lines = [line for path in sorted(RECORDS.glob("*.jsonl")) for line in path.open()]
    if not lines:
        sys.exit(f"no records in {RECORDS}: run the interop tests, or scripts/test.sh")
    return [json.loads(line) for line in lines]


def commit() -> str:
    def git(*arguments: str) -> str:
        command = ["git", "-C", str(ROOT), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", "src", "tests", "interop")
    return git("rev-parse", "--short", "HEAD") + (" with changes" if changed else "")


def in_order(values: set[str], order: list[str]) -> str:
    known = [value for value in order if value in values]
    return ", ".join(known + sorted(values - set(order)))


def shown(case: str, figure: str) -> str:
    """A case with its figure. Most milliseconds depend more on the machine than on a peer."""
    if not figure or re.fullmatch(r"\d+ ms", figure) and case != "connect":
        return case
    return f"{case} ({figure})"


def cell(family: str, rows: list[dict[str, str]]) -> str:
    met = [row for row in rows if re.fullmatch(FAMILIES[family], row["case"])]
    if family == "connects" and not met:
        met = rows
    if any(not row["conditions"] for row in met):
        return "yes"
    return "under conditions" if met else ""


def overview(all_rows: list[dict[str, str]]) -> list[str]:
    peers = defaultdict(list)
    for row in all_rows:
        if row["direction"] != DIRECTIONS[-1]:
            peers[row["peer"], row["direction"]].append(row)
    lines = ["| peer | | " + " | ".join(FAMILIES) + " |", "|---|---|" + "---|" * len(FAMILIES)]
    for (peer, direction), rows in sorted(peers.items(), key=place):
        cells = [cell(family, rows) for family in FAMILIES]
        lines.append(f"| {peer} | {direction} | " + " | ".join(cells) + " |")
    return lines


def place(item: tuple[tuple[str, str], object]) -> tuple[str, int]:
    (peer, direction), _ = item
    return peer, DIRECTIONS.index(direction)


def peer_table(rows: list[dict[str, str]]) -> list[str]:
    """A line for each set of cases with the same direction, conditions, transports and engines."""
    met = defaultdict(lambda: {"transport": set(), "engine": set(), "test": set()})
    figures: dict[tuple[str, str, str], str] = {}
    # For a case that ran with both, the figure is that of v1 on the direct engine.
    for row in sorted(rows, key=lambda row: (row["engine"], row["transport"])):
        key = row["direction"], row["conditions"], row["case"]
        for fact, values in met[key].items():
            values.add(row[fact])
        figures.setdefault(key, row["figure"])
    lines = defaultdict(lambda: ([], set()))
    for (direction, conditions, case), facts in met.items():
        transports = in_order(facts["transport"], ["v1", "v2", "WebSocket"])
        engines = in_order(facts["engine"], ["direct", "str0m"])
        cases, tests = lines[direction, conditions, transports, engines]
        cases.append(case)
        tests |= facts["test"]
    out = [
        "| who dials and opens | over | cases | default settings | otherwise | engines | tests |"
    ]
    out.append("|---|---|---|---|---|---|---|")
    ordered = sorted(lines.items(), key=lambda item: (DIRECTIONS.index(item[0][0]), item[0]))
    for (direction, conditions, transports, engines), (cases, tests) in ordered:
        named = "; ".join(
            shown(case, figures[direction, conditions, case]) for case in sorted(cases)
        )
        names = ", ".join(f"`{test}`" for test in sorted(tests))
        default = "no" if conditions else "yes"
        cells = [direction, transports, named, default, conditions, engines, names]
        out.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return out


def tables() -> str:
    rows = records()
    cases = {(row["peer"], row["direction"], row["case"], row["conditions"]) for row in rows}
    tests = {row["test"] for row in rows}
    head = f"{date.today()}, commit {commit()}: {len(cases)} cases in {len(tests)} tests."
    out = [BEGIN, head, "", *overview(rows), ""]
    peers = defaultdict(list)
    for row in rows:
        peers[row["peer"]].append(row)
    for peer, of_peer in sorted(peers.items()):
        releases = ", ".join(sorted({row["release"] for row in of_peer}))
        out += [f"### {peer}", "", f"Release {releases}.", "", *peer_table(of_peer), ""]
    return "\n".join([*out, END])


Claim = tuple[str, str, str, str, str, str]


def claims(text: str) -> set[Claim]:
    """The claims of tables: peer, direction, conditions, transport, engine and case, one by one."""
    found = set()
    peer = ""
    for line in text.splitlines():
        if line.startswith("### "):
            peer = line[4:]
        cells = [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if not peer or len(cells) != 7 or cells[0] in ("who dials and opens", "---"):
            continue
        direction, transports, cases, _, conditions, engines, _ = cells
        for case in cases.split("; "):
            case = re.sub(r" \([^()]*\)$", "", case)
            for transport in transports.split(", "):
                for engine in engines.split(", "):
                    found.add((peer, direction, conditions, transport, engine, case))
    return found


def check(old: set[Claim], new: set[Claim]) -> int:
    for what, some in (("says, and this run has not shown", old - new), ("misses", new - old)):
        for claim in sorted(some):
            print(f"docs/interop.md {what}: {' / '.join(part for part in claim if part)}")
    print(f"{len(old & new)} of {len(old)} claims shown")
    return bool(old - new)


def main(command: str) -> int:
    page = PAGE.read_text()
    before, rest = page.split(BEGIN)
    old, after = rest.split(END)
    new = tables()
    if command == "check":
        return check(claims(old), claims(new))
    if missed := claims(new) ^ {claim_of(row) for row in records()}:
        sys.exit(f"these do not survive the table: {missed}")
    PAGE.write_text(before + new + after)
    return 0


def claim_of(row: dict[str, str]) -> Claim:
    keys = ("peer", "direction", "conditions", "transport", "engine", "case")
    return tuple(row[key] for key in keys)


if __name__ == "__main__":
    if sys.argv[1:] not in (["write"], ["check"]):
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1]))
