"""Flows of anabranch, TCP and QUIC through a real bottleneck on one machine.

    tools/wire/run [NAME | GROUP]...    the scenarios and the comparison, or these; needs root
    tools/wire/run list                 their names
    tools/wire/run table                tables in Markdown from the last records
    tools/wire/run try FLOW...          one experiment as JSON; `try --help` lists its options

groups: scenarios compare quick ecn checks

Prints a line for each; the exit status is 1 if one falls short. Records are in `wire` below
cargo's target directory. PEER in the environment is the program `peer` to measure, which is built
otherwise; CARGO_TARGET_DIR is honoured.
"""

import argparse
import json
import os
import signal
import sys
import tempfile
from pathlib import Path

import environment
from experiment import Bench, Flow
from network import Failure, remove_namespaces_of_the_dead
from scenarios import ALL, BACK, GROUPS, Outcome, link
from tables import markdown


def names(arguments: list[str]) -> list[str]:
    """Scenarios of names and groups, each once."""
    found: list[str] = []
    for argument in arguments or ["scenarios", "compare"]:
        if argument not in GROUPS and argument not in ALL:
            raise SystemExit(f"no scenario is called {argument!r}\n\n{__doc__}")
        found += GROUPS.get(argument, [argument])
    return list(dict.fromkeys(found))


def prepare() -> None:
    environment.require()
    environment.build()
    # So that whatever was started is ended.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    remove_namespaces_of_the_dead()
    if not environment.priority("-f", "20"):
        print("real-time priority is not allowed: figures are less exact", file=sys.stderr)


def measure(name: str, about: dict) -> bool:
    """Runs a scenario, prints its line, and returns whether it holds."""
    environment.RECORDS.mkdir(parents=True, exist_ok=True)
    # Another laboratory may measure the same.
    part = environment.RECORDS / f"{name}.{os.getpid()}.part"
    part.unlink(missing_ok=True)
    bench = Bench(part)
    scenario = ALL[name]
    try:
        try:
            outcome = scenario.test(bench)
        except Failure as failure:
            # The others may still be measured.
            bench.died.append(str(failure))
            outcome = Outcome()
        holds = all(check.holds for check in outcome.checks) and not bench.died
        bars = [check.bar for check in outcome.checks]
        measured = [check.measured for check in outcome.checks]
        notes = bench.died + bench.notes
        line = {"scenario": name, "what": scenario.what, "holds": holds, "bars": bars}
        line |= {"measured": measured, "figures": outcome.figures, "notes": notes}
        bench.write(line | {"data": outcome.data, "about": about})
        part.rename(environment.RECORDS / f"{name}.jsonl")
    finally:
        part.unlink(missing_ok=True)
    word = ("holds" if outcome.checks else "measured") if holds else "FALLS SHORT"
    with_bars = [
        f"{check.measured} ({check.bar.removeprefix(check.what).strip()})"
        for check in outcome.checks
    ]
    text = "; ".join(with_bars + outcome.figures + notes)
    print(f"{word:<11} {name}: {text}", flush=True)
    return holds


def run(arguments: list[str]) -> int:
    chosen = names(arguments)
    prepare()
    about = environment.about()
    short_of = sum(not measure(name, about) for name in chosen)
    print(f"{len(chosen) - short_of} of {len(chosen)} hold; records in {environment.RECORDS}")
    return int(short_of > 0)


def attempt(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="tools/wire/run try", description="Flows through a path of one's own, as JSON."
    )
    flow = "KIND[@START[:SECONDS]]; ours, tcp-cubic, tcp-bbr, tcp-cubic-down, quic-cubic, ..."
    parser.add_argument("flows", nargs="+", metavar="FLOW", help=flow)
    parser.add_argument("--forth", default=link(), help="options of wire; default: %(default)s")
    parser.add_argument("--back", default=BACK, help="default: %(default)s")
    parser.add_argument("--seconds", type=int, default=25)
    parser.add_argument("--from", type=float, default=5, dest="since", help="of the window")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--ecn", action="store_true", help="of TCP")
    args = parser.parse_args(arguments)
    flows = []
    for text in args.flows:
        kind, _, when = text.partition("@")
        start, _, seconds = when.partition(":")
        begin = float(start or 0)
        flows.append(Flow(kind, begin, float(seconds or args.seconds - begin)))
    prepare()
    with tempfile.TemporaryDirectory() as directory:
        bench = Bench(Path(directory) / "record")
        windows = [(args.since, args.seconds)]
        result = bench.run(
            args.forth, args.back, flows, windows, args.seconds, args.seed, args.ecn
        )
    print(json.dumps(result | {"notes": bench.died + bench.notes}, indent=1))
    return int(bool(bench.died))


def main(arguments: list[str]) -> int:
    match arguments:
        case ["-h" | "--help" | "help", *_]:
            print(__doc__)
        case ["list"]:
            for group in ("scenarios", "compare", "checks"):
                print(f"{group}\n" + "".join(f"  {n:<22}{ALL[n].what}\n" for n in GROUPS[group]))
        case ["table"]:
            print(markdown())
        case ["try", *rest]:
            return attempt(rest)
        case _:
            return run(arguments)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (Failure, KeyboardInterrupt) as error:
        sys.exit(f"stopped: {str(error) or 'by the keyboard'}")
