"""Makes the figures of the pages from the records of scripts/figures.sh.

    python3 scripts/figures [SECTION...]        all sections of which there are records, or these

Writes the blocks between the markers in docs/benchmarks.md, the pictures in docs/figures, and what
README.md says of both. A block whose section is not named stays as it is, with its date and commit;
the first block says whether all are of one commit.
"""

import re
import sys
import textwrap

from records import RECORDS, ROOT, About, Section, first_number
from tables import BLOCKS

PAGE = ROOT / "docs/benchmarks.md"
README = ROOT / "README.md"
END = "<!-- end of figures -->"


def begin(name: str) -> str:
    return f"<!-- figures: {name} -->"


def replace(page: str, name: str, content: str) -> str:
    before, found, rest = page.partition(begin(name))
    if not found or END not in rest:
        raise SystemExit(f"no place for the figures: {begin(name)} ... {END}")
    _, after = rest.split(END, 1)
    return before + begin(name) + content + END + after


def block(page: str, name: str) -> str:
    return page.split(begin(name), 1)[1].split(END, 1)[0]


def head(section: Section) -> list[str]:
    about: About = section.about
    quick = "--quick " if about.quick else ""
    rounds = f"{about.rounds} round{'' if about.rounds == 1 else 's'}"
    return [
        f"{about.date}, commit {about.commit}{', **quick run**' if about.quick else ''}, {rounds}. "
        f"{about.cores} cores ({about.cpu}), {about.kernel}, Rust {about.rust}, "
        f"{about.busy} % busy before. "
        f"Made by `scripts/figures.sh {quick}{section.name}`, which ran:",
        "",
        "```text",
        *section.commands,
        "```",
        "",
    ]


HEAD = re.compile(
    r"^(\d{4}-\d\d-\d\d), commit ([0-9a-f]{7,}(?: with changes)?)(, \*\*quick run\*\*)?, ", re.M
)


def summary(page: str) -> str:
    """Whether all blocks are of one version of the code."""
    versions: dict[tuple[str, bool], list[str]] = {}
    for name in BLOCKS:
        if found := HEAD.search(block(page, name)):
            _, commit, quick = found.groups()
            versions.setdefault((commit, bool(quick)), []).append(name)

    def named(version: tuple[str, bool]) -> str:
        return f"commit {version[0]}{', a quick run' if version[1] else ''}"

    if len(versions) == 1:
        return f"All figures of this page are of {named(next(iter(versions)))}."
    each = "; ".join(
        f"{named(version)}: {', '.join(sorted(names))}" for version, names in versions.items()
    )
    return f"The figures of this page are of {len(versions)} versions of the code: {each}."


def rows(text: str) -> dict[str, list[str]]:
    """The rows of tables by the text of their first cells, if that is unique."""
    found = {}
    for line in text.splitlines():
        if line.startswith("| "):
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            found.setdefault(cells[0], cells)
    return found


def claims(page: str) -> str:
    """The sentence of README.md on throughput and paths: figures of the tables, rounded."""
    peers = block(page, "peers")
    named = rows(peers)
    head = next(line for line in peers.splitlines() if line.startswith("| |"))
    columns = [cell.strip() for cell in head.strip("|").split("|")]
    bulk = [
        named[f"{what}, MB/s"]
        for what in ("1 substream up", "1 substream down", "10 substreams up", "10 substreams down")
    ]

    def column(title: str) -> list[float]:
        at = next(i for i, column in enumerate(columns) if column.startswith(title))
        return sorted(first_number(row[at]) for row in bulk if row[at][0].isdigit())

    own, quic, webrtc = column("anabranch"), column(": libp2p-quic"), column(": libp2p-webrtc")
    cores = re.search(r"(\d+) cores", peers)[1]
    paths = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in block(page, "paths").splitlines()
    ]
    [gigabit] = [
        row[4] for row in paths if row[0] == "1 Gbit/s" and row[2:4] == ["50 ms", "direct"]
    ]
    head = next(row for row in paths if row[0] == "loss")
    [lossy] = [row[head.index("50 ms")] for row in paths if row[:2] == ["1 %", "direct"]]
    quick = " (quick runs)" if "**quick run**" in peers + block(page, "paths") else ""
    return (
        f"{own[0]:.0f} to {own[-1]:.0f} MB/s between two processes on {cores} cores, "
        f"{webrtc[0]:.0f} to {webrtc[-1]:.0f} times libp2p-webrtc and {quic[0]:.1f} to "
        f"{quic[-1]:.1f} times libp2p-quic in the same run; on a simulated path, in virtual time, "
        f"{first_number(gigabit):.0f} % of 1 Gbit/s at 50 ms, and "
        f"{first_number(lossy):.0f} % of 100 Mbit/s there with 1 % of loss{quick}"
    )


def main(names: list[str]) -> int:
    if unknown := set(names) - set(BLOCKS):
        raise SystemExit(f"no such section: {', '.join(unknown)}\n{__doc__}")
    names = names or [name for name in BLOCKS if (RECORDS / name).is_dir()]
    page = PAGE.read_text()
    failed = False
    for name in names:
        try:
            section = Section(name)
            lines = ["", *head(section), *BLOCKS[name](section)]
        except SystemExit as error:
            print(f"{name} stays as it is: {error}", file=sys.stderr)
            failed = True
            continue
        page = replace(page, name, "\n".join(lines))
    page = replace(page, "summary", f"\n{summary(page)}\n")
    PAGE.write_text(page)
    if all(HEAD.search(block(page, name)) for name in ("peers", "paths")):
        wrapped = "\n  ".join(textwrap.wrap(claims(page), 140))
        README.write_text(replace(README.read_text(), "claims", f"\n  {wrapped}\n  "))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
