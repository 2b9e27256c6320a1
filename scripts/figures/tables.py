"""The blocks of docs/benchmarks.md and the pictures, each from the records of one section."""

import re
from collections.abc import Callable
from pathlib import Path

import plots
from records import ROOT, Section, Spread, digits, number

PICTURES = ROOT / "docs/figures"
MIB = 1 << 20


def table(head: list[str], rows: list[list[object]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    joined = ("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)
    return [line.replace("|  |", "| |") for line in joined] + [""]


def size(count: int) -> str:
    return f"{number(count)} B" if count % 1024 else f"{count // 1024} KiB"


# The stacks of the pictures in their order, with their names.
SHOWN = {
    "direct": ("anabranch", plots.BLUE),
    "quic": ("libp2p-quic", plots.ORANGE),
    "webrtc": ("libp2p-webrtc", plots.GREY),
}


def peers(section: Section) -> list[str]:
    lines = section.lines("compare.jsonl")
    run = lines[0]
    rows = [line for line in lines if "quantity" in line]
    if ours := {
        row["metric"] for row in rows if row["stack"] in ("direct", "str0m") and row["failed"]
    }:
        raise SystemExit(f"anabranch failed: {'; '.join(sorted(ours))}")
    titles = {row["stack"]: row["title"] for row in rows}
    others = [stack for stack in titles if stack not in ("direct", "str0m")]
    spreads = {
        (row["metric"], row["quantity"], row["stack"]): Spread.of(row["values"])
        for row in rows
        if row["values"]
    }
    cells = []
    for metric, quantity in dict.fromkeys((row["metric"], row["quantity"]) for row in rows):
        of = {
            row["stack"]: row
            for row in rows
            if (row["metric"], row["quantity"]) == (metric, quantity)
        }
        own = spreads[metric, quantity, "direct"]
        line: list[object] = [quantity]
        for stack in titles:
            failed = f", {of[stack]['failed']} failed" if of[stack]["failed"] else ""
            line.append(f"{spreads.get((metric, quantity, stack), 'none')}{failed}")
        for stack in others:
            other = spreads.get((metric, quantity, stack))
            line.append("-" if other is None else ratio(own, other, of["direct"]["more_is_better"]))
        cells.append(line)
    out = [
        f"Bulk: {run['bytes'] // MIB} MiB in all for each figure, "
        f"{run['webrtc_bytes'] // MIB} MiB for libp2p-webrtc; with 10 substreams a tenth on each. "
        "The last columns: how many times better the first stack is.",
        "",
        *table(["", *titles.values(), *(f": {titles[stack]}" for stack in others)], cells),
        *syscalls(lines, list(titles.values())),
    ]

    def bars(metric: str, quantity: str) -> list[plots.Bar]:
        return [
            (name, spreads.get((metric, quantity, stack)), colour)
            for stack, (name, colour) in SHOWN.items()
        ]

    transfers = [
        f"{streams} {way}" for streams in ("1 substream", "10 substreams") for way in ("up", "down")
    ]
    groups = [
        (name, bars(", ".join(reversed(name.rsplit(" ", 1))), f"{name}, MB/s"))
        for name in transfers
    ]
    plots.throughput(PICTURES / "throughput.svg", groups, section.about)
    halves = [
        [
            ("listener", bars(f"idle {what}s", f"KiB for each idle {what}: listener")),
            ("dialler", bars(f"idle {what}s", "the same: dialler")),
        ]
        for what in ("connection", "substream")
    ]
    plots.memory(PICTURES / "memory.svg", *halves, section.about)
    return out


def ratio(own: Spread, other: Spread, more_is_better: bool) -> str:
    above, below = (own, other) if more_is_better else (other, own)
    return digits(above.median / below.median) if below.median > 0 and above.median > 0 else "-"


def syscalls(lines: list[dict], titles: list[str]) -> list[str]:
    if notes := [line["note"] for line in lines if "note" in line]:
        return [*notes, ""]
    counts: dict[str, list[object]] = {}
    for line in lines:
        if "syscalls_per_MB" in line:
            calls = line["syscalls_per_MB"]
            shown = "failed" if calls is None else f"{calls:.0f}"
            counts.setdefault(line["transfer"], [line["transfer"]]).append(shown)
    return [
        "System calls per MB, both sides, connecting and closing included; one run each:",
        "",
        *table(["", *titles], list(counts.values())),
    ]


ENGINES = {"direct": "direct", "str0m": "str0m"}


def paths(section: Section) -> list[str]:
    lines = section.lines("100.jsonl")
    seconds = lines[0]["seconds"]
    shares: dict[tuple[str, float, int], Spread] = {}
    for key in dict.fromkeys(
        (line["engine"], line["loss"], line["round_trip_ms"]) for line in lines
    ):
        values = [
            line["goodput_mbit"] / line["mbit"]
            for line in lines
            if (line["engine"], line["loss"], line["round_trip_ms"]) == key
        ]
        shares[key] = Spread.of(values)
    round_trips = sorted({round_trip for _, loss, round_trip in shares if loss == 0})
    losses = sorted({loss for _, loss, round_trip in shares if round_trip == 50})

    def cell(engine: str, loss: float, round_trip: int) -> str:
        return str(shares[engine, loss, round_trip].times(100))

    seeds = "one seed" if section.about.rounds == 1 else f"{section.about.rounds} seeds"
    out = [
        f"Virtual time: {seconds} s each on the simulated network, one substream, default "
        f"settings; where datagrams "
        f"are lost, medians (least-most) of {seeds}. Share of the link in %, of 100 Mbit/s with a "
        "queue of one round trip:",
        "",
    ]
    rows = [
        [
            f"{loss * 100:g} %",
            engine,
            *(cell(engine, loss, round_trip) for round_trip in round_trips),
        ]
        for loss in (0, 0.01)
        for engine in ENGINES
    ]
    out += table(["loss", "engine", *(f"{round_trip} ms" for round_trip in round_trips)], rows)
    rows = [[engine, *(cell(engine, loss, 50) for loss in losses)] for engine in ENGINES]
    out += ["The same at 50 ms, over loss:", ""]
    out += table(["engine", *(f"{loss * 100:g} %" for loss in losses)], rows)
    rows = []
    for line in sorted(section.lines("links.jsonl"), key=lambda line: -line["mbit"]):
        link = (
            f"{line['mbit'] // 1000} Gbit/s" if line["mbit"] >= 1000 else f"{line['mbit']} Mbit/s"
        )
        share = digits(line["goodput_mbit"] / line["mbit"] * 100)
        shown = [
            link,
            line["queue"],
            f"{line['round_trip_ms']} ms",
            line["engine"],
            share,
            digits(line["cpu_s"]),
        ]
        rows.append(shown)
    out += [
        f"Other links, without loss. CPU: seconds of one thread that runs both sides and the "
        f"simulator for {seconds} s, "
        "so that half of it bounds a side from above:",
        "",
        *table(["link", "queue, round trips", "round trip", "engine", "share, %", "CPU, s"], rows),
    ]

    def line(title: str, engine: str, dashed: bool, points: list[tuple[float, int]]) -> plots.Line:
        colour = plots.BLUE if engine == "direct" else plots.ORANGE
        return (
            title,
            colour,
            dashed,
            [shares[engine, loss, round_trip] for loss, round_trip in points],
        )

    names = {"direct": "anabranch", "str0m": "on str0m"}
    over_loss = [
        line(names[engine], engine, False, [(loss, 50) for loss in losses]) for engine in ENGINES
    ]
    over_round_trip = [
        line(
            f"{names[engine]}{what}",
            engine,
            loss > 0,
            [(loss, round_trip) for round_trip in round_trips],
        )
        for loss, what in ((0, ""), (0.01, ", 1 % loss"))
        for engine in ENGINES
    ]
    plots.goodput(
        PICTURES / "goodput.svg",
        ([f"{loss * 100:g}" for loss in losses], over_loss),
        ([str(round_trip) for round_trip in round_trips], over_round_trip),
        section.about,
        seconds,
    )
    return out


# Columns by the names that interop/rust/unified/lab gives.
UNIFIED = {
    "anabranch": "webrtc-direct of anabranch",
    "anabranch-v2": "the same, version 2",
    "quic": "libp2p-quic",
    "tcp": "TCP, Noise, Yamux",
    "libp2p-webrtc": "libp2p-webrtc",
}


def unified(section: Section) -> list[str]:
    lines = section.lines("unified.jsonl")
    if ours := [
        line["failed"] for line in lines if "failed" in line and line["dialler"] != "libp2p-webrtc"
    ]:
        raise SystemExit(f"unified: {ours}")
    of_path: dict[tuple, dict[str, dict]] = {}
    for line in lines:
        path = (line["mbit"], line["loss"], line["round_trip_ms"])
        of_path.setdefault(path, {})[line["dialler"]] = line

    def rows(quantities: dict[str, str], factor: float) -> list[list[object]]:
        found = []
        for (mbit, loss, round_trip), stacks in of_path.items():
            link = f"{mbit} Mbit/s" if mbit else "no limit"
            for name, title in quantities.items():
                cells = [
                    Spread.of(stacks[stack][name]).times(factor)
                    if name in stacks[stack]
                    else "failed"
                    for stack in UNIFIED
                ]
                found.append([link, f"{round_trip:g} ms", f"{loss * 100:g} %", title, *cells])
        return found

    sizes = {
        f"{mbit} Mbit/s with {loss * 100:g} % of loss" if mbit else "no limit": stacks
        for (mbit, loss, _), stacks in of_path.items()
    }
    volumes = "; ".join(
        f"{link}: {stacks['quic']['size'] // MIB} and {stacks['libp2p-webrtc']['size'] // MIB}"
        for link, stacks in sizes.items()
    )
    head = ["link", "round trip", "loss each way", "", *UNIFIED.values()]
    return [
        "`perf`, Mbit/s: medians (least-most) of transfers one after another on one connection. "
        f"MiB for each transfer, and of libp2p-webrtc: {volumes}.",
        "",
        *table(head, rows({"upload": "up", "download": "down"}, 1e3)),
        "Milliseconds. `transport`: from the dial to the answer of the first ping, on a fresh "
        "connection; and the round trip that ping reports. `perf`: a byte there and back on a "
        "fresh substream.",
        "",
        *table(
            head,
            rows(
                {
                    "handshake_plus_one_rtt": "handshake and ping",
                    "ping_rtt": "ping",
                    "latency": "a byte on a substream",
                },
                1,
            ),
        ),
    ]


def transfer(section: Section) -> list[str]:
    found = section.criterion()
    volume = 32e9  # 32 MiB, and ns

    def rate(group: str, name: str) -> Spread:
        return Spread.of(found[group, name]).inverse(volume)

    rows = [
        [name.replace("1 substreams", "1 substream"), rate(group, name)]
        for group, name in found
        if group == "transfer"
    ]
    out = ["32 MiB from one endpoint to another, both in one process:", ""]
    out += table(["", "MiB/s"], [[name, cell] for name, cell in rows])
    used: dict[str, list[tuple[float, float]]] = {}
    pattern = r"^(\w+, \w+): (\d+) allocations a MB, ([\d.]+) CPU seconds a GB"
    for name, allocations, cpu in re.findall(pattern, section.text("output.txt"), re.M):
        used.setdefault(name, []).append((float(allocations), float(cpu)))
    rows = []
    for engine in ("direct", "str0m"):
        bare, above = (rate("layers", f"{engine}, {what}") for what in ("bare", "substream"))
        cost = f"{(1 - above.median / bare.median) * 100:.0f} %"
        uses = []
        for i in range(2):
            both = (used[f"{engine}, {what}"] for what in ("bare", "substream"))
            uses.append(
                " / ".join(digits(Spread.of([use[i] for use in one]).median) for one in both)
            )
        rows.append([engine, bare, above, cost, *uses])
    out += ["The same carriers on the same sockets, bare and below one substream:", ""]
    head = ["engine", "bare, MiB/s", "substream, MiB/s", "cost of the layer"]
    return out + table([*head, "allocations a MB, bare / substream", "CPU s a GB"], rows)


def neighbours(section: Section) -> list[str]:
    lines = section.lines("neighbours.jsonl")
    alone = {line["beside"]: Spread.of(line["MBps"]).median for line in lines if line["count"] == 0}
    rows = []
    for line in lines:
        rate = Spread.of(line["MBps"])
        what = f"{number(line['count'])} {line['beside']}"
        share = f"{rate.median / alone[line['beside']] * 100:.0f} %"
        rows.append([what, rate, Spread.of(line["cpu_s_per_GB"]), share])
    out = ["One busy substream over loopback, both endpoints in one process:", ""]
    return out + table(
        ["beside so many others", "MB/s", "CPU s a GB, both sides", "of that without"], rows
    )


def idle(section: Section) -> list[str]:
    [line] = section.lines("idle.jsonl")
    hold = line["hold_s"]

    def share(key: str) -> str:
        return digits(line[key] / hold * 100)

    rows = [
        ["listener", share("peer_hold_cpu_s"), digits(line["rss_kib_per_conn"])],
        ["dialler", share("hold_cpu_s"), digits(line["own_rss_kib_per_conn"])],
    ]
    out = [f"{number(line['conns'])} connections between two processes, idle for {hold:.0f} s:", ""]
    return out + table(["", "CPU, % of a core", "KiB for each"], rows)


def payloads(section: Section) -> list[str]:
    lines = section.lines("payloads.jsonl")
    rows = []
    for websocket in (False, True):
        for hashed in (True, False):
            of = [
                line for line in lines if (line["websocket"], line["hash"]) == (websocket, hashed)
            ]
            hash_name = "with SHA-256" if hashed else "without a hash"
            name = f"{'WebSocket' if websocket else 'WebRTC'}, {hash_name}"
            rate = Spread.of([line["bytes"] / 1e6 / line["seconds"] for line in of])
            peaks = [
                Spread.of([line[f"{who}_peak_kB"] / 1e3 for line in of])
                for who in ("sender", "receiver")
            ]
            rows.append([name, rate, *peaks])
    out = [
        f"A file of {number(lines[0]['bytes'] // MIB)} MiB from one process to another "
        "over loopback:",
        "",
    ]
    return out + table(
        ["", "MB/s", "most resident memory of the sender, MB", "of the receiver, MB"], rows
    )


MESSAGE_ROWS = {
    "encode/memcpy": "memcpy of the payload",
    "encode/encode_into": "`encode_into` a warm buffer (no allocation)",
    "encode/encode": "`encode` (one allocation)",
    "encode/prost_two_allocations": "prost, two allocations",
    "encode/seal_data_frame": "`seal_data_frame` in place",
    "encode/seal_data_frame_credit": "the same, with credit in the frame",
    "decode/whole": "decode a frame that arrived whole (no copy)",
    "decode/cut": "decode a frame that was cut in two",
    "decode/prost_slice": "prost decode, slicing",
    "decode/prost_copy": "prost decode, copying",
}


def message(section: Section) -> list[str]:
    found = section.criterion()
    sizes = ("64", "1024", "16379")
    rows = []
    for key, title in MESSAGE_ROWS.items():
        group, name = key.split("/")
        rows.append([title, *(Spread.of(found[group, f"{name}/{size}"]) for size in sizes)])
    return ["ns for one frame:", "", *table(["payload", *(size(int(one)) for one in sizes)], rows)]


def substream(section: Section) -> list[str]:
    found = section.criterion()
    rows = []
    for write in (64, 1024, 16384):
        gib = (MIB << 4) / (8 if write < 1024 else 1) / (1 << 30)
        cells = []
        for name in ("carrier", "carrier + codec", "carrier + substream"):
            cells.append(Spread.of(found["substream", f"{name}/{write}"]).inverse(gib * 1e9))
        rows.append([size(write), *cells])
    return [
        "GiB/s, one thread:",
        "",
        *table(["write", "carrier", "carrier + codec", "carrier + substream"], rows),
    ]


def websocket(section: Section) -> list[str]:
    lines = section.lines("websocket.jsonl")
    out = []
    for over in dict.fromkeys(line["over"] for line in lines if "over" in line):
        rows = []
        for line in lines:
            if line.get("over") != over:
                continue
            names = ("bare", "carrier", "codec", "substream", "slices")
            spreads = {name: Spread.of(line[name]) for name in names}
            carrier = spreads["carrier"].median
            costs = (
                f"{(1 - spreads[name].median / carrier) * 100:.0f} %"
                for name in ("substream", "slices")
            )
            rows.append([size(line["size"]), *spreads.values(), *costs])
        out += [f"One channel, {over}, MB/s, both ends on one thread:", ""]
        head = [
            "message",
            "bare messages",
            "carrier",
            "carrier + codec",
            "carrier + substream",
            "the same, of slices",
        ]
        out += table([*head, "cost over the carrier", "of slices"], rows)
    [batching] = [line for line in lines if "batched" in line]
    spreads = [Spread.of(batching[name]) for name in ("bare", "flushed", "batched")]
    factors = ", ".join(digits(spreads[2].median / one.median) for one in spreads[:2])
    out += ["64-byte messages over loopback TCP, thousands a second:", ""]
    head = ["bare, one message each", "one substream, one message each", "100 substreams, batched"]
    return out + table([*head, "factors over the two"], [[*spreads, factors]])


BLOCKS: dict[str, Callable[[Section], list[str]]] = {
    function.__name__: function
    for function in (
        peers,
        paths,
        unified,
        transfer,
        neighbours,
        idle,
        payloads,
        message,
        substream,
        websocket,
    )
}
