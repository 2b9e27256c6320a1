#!/usr/bin/env python3
"""Selects inputs of the fuzz targets by their coverage.

    scripts/fuzz_corpus.py minimise [TARGET...]   fuzz/target/corpus, which is not in git: a smaller
                                                  set of inputs with the same coverage
    scripts/fuzz_corpus.py seeds [TARGET...]      fuzz/corpus, which is in git: at most 20 inputs of
                                                  both corpora with as much coverage as possible

Without a target it is for all of them. Both need the programs that `scripts/fuzz.sh` builds, and
print how much of the coverage of all inputs the selected ones have.

Coverage is that of libFuzzer: a feature is an edge with the magnitude of its count, of which there
are 8. `seeds` keeps every input with a name of its own, because it is a finding or leads to a
certain place; a number or a hash is no such name. After those it takes the input with the most new
edges, of equal ones that with the most new features, of equal ones the shortest, until there are 20
or nothing is new.
"""

import hashlib
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent / "fuzz"
SEEDS, CORPORA = ROOT / "corpus", ROOT / "target/corpus"
MOST_SEEDS = 20
# Of the count of an edge, each a feature.
MAGNITUDES = 8
UNNAMED = re.compile(r"(.*-)?[0-9a-f]{8,40}|.*[-_]\d\d")

Features = dict[Path, set[int]]


def program(target: str) -> Path:
    built = list((ROOT / "target").glob(f"*/release/{target}"))
    if not built:
        sys.exit(f"{target} is not built: run scripts/fuzz.sh first")
    return max(built, key=lambda path: path.stat().st_mtime)


def files(*directories: Path) -> list[Path]:
    """Those with different contents; of equal ones the first, by directory and by name."""
    found: dict[bytes, Path] = {}
    for directory in directories:
        for path in sorted(directory.glob("*")):
            found.setdefault(path.read_bytes(), path)
    return list(found.values())


def features(target: str, inputs: list[Path]) -> Features:
    """The features of each input."""
    with tempfile.TemporaryDirectory() as place:
        control, given, merged = (Path(place) / name for name in ("control", "given", "merged"))
        given.mkdir()
        merged.mkdir()
        for index, path in enumerate(inputs):
            shutil.copy(path, given / str(index))
        # With this merge libFuzzer writes all features of each input, not the new ones only.
        command = [program(target), "-set_cover_merge=1", f"-merge_control_file={control}"]
        command += ["-timeout=60", "-rss_limit_mb=2000", merged, given]
        subprocess.run(command, capture_output=True, check=True)
        lines = control.read_text().splitlines()
    names = [Path(line) for line in lines[2 : 2 + int(lines[0])]]
    found: Features = {path: set() for path in inputs}
    for line in lines:
        if line.startswith("FT "):
            index, *numbers = map(int, line.split()[1:])
            found[inputs[int(names[index].name)]].update(numbers)
    return found


def edges(of: set[int]) -> set[int]:
    return {feature // MAGNITUDES for feature in of}


def union(of: Features, inputs: list[Path]) -> set[int]:
    return set().union(*(of[path] for path in inputs))


def select(of: Features, chosen: list[Path], most: int) -> list[Path]:
    """Adds inputs with new features to those that are chosen."""
    chosen, reached = list(chosen), union(of, chosen)
    left = [path for path in of if path not in chosen]
    while left and len(chosen) < most:
        of_reached = edges(reached)

        def gain(path: Path) -> tuple[int, int, int]:
            new_edges = edges(of[path]) - of_reached
            return len(new_edges), len(of[path] - reached), -path.stat().st_size

        best = max(left, key=gain)
        if not of[best] - reached:
            break
        chosen.append(best)
        reached |= of[best]
        left.remove(best)
    return chosen


def replace(directory: Path, chosen: list[Path]) -> None:
    """Makes these the only inputs in a directory. Inputs without a name get their hash."""
    contents = {}
    for path in chosen:
        content = path.read_bytes()
        is_hash = re.fullmatch(r"[0-9a-f]{8,40}", path.name)
        name = hashlib.sha1(content).hexdigest()[:8] if is_hash else path.name
        contents[name] = content
    for path in directory.glob("*"):
        path.unlink()
    for name, content in contents.items():
        (directory / name).write_bytes(content)


def run(command: str, target: str) -> None:
    directory = CORPORA / target
    directory.mkdir(parents=True, exist_ok=True)
    inputs = files(SEEDS / target, directory)
    of = features(target, inputs)
    if command == "minimise":
        chosen = select(of, [], len(inputs))
        replace(directory, chosen)
    else:
        named = [path for path in files(SEEDS / target) if not UNNAMED.fullmatch(path.name)]
        chosen = select(of, named, MOST_SEEDS)
        replace(SEEDS / target, chosen)

    selected, everything = union(of, chosen), union(of, inputs)
    print(
        f"{target}: {len(chosen)} of {len(inputs)} inputs, "
        f"{len(edges(selected))} of {len(edges(everything))} edges, "
        f"{len(selected)} of {len(everything)} features"
    )


def main(command: str, targets: list[str]) -> None:
    for target in targets or sorted(path.name for path in SEEDS.iterdir()):
        run(command, target)


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in ("minimise", "seeds"):
        sys.exit(__doc__)
    main(sys.argv[1], sys.argv[2:])
