"""Experiments: flows through a path, and what the log shows of them."""

import json
import re
import statistics
from dataclasses import dataclass
from pathlib import Path

import environment
from network import RIGHT, Network, Process
from packets import analyse

# `ours` is anabranch. `-down`: the server sends. `requests` and `stall` are what limits the flow.
KINDS = re.compile(r"ours(-requests|-stall)?|tcp-[a-z]+(-down)?|quic-(cubic|newreno)|echo")
FIRST_PORT = 4001
TRANSFERS_LIMIT_S = 280
# What the emulator may add to a delay.
LATE_US = 1000


@dataclass(frozen=True)
class Flow:
    """A flow of this kind, from `start` on and for so many seconds."""

    kind: str
    start: float
    seconds: float

    def __post_init__(self) -> None:
        if not KINDS.fullmatch(self.kind):
            raise SystemExit(f"no kind of flow is called {self.kind!r}")

    @property
    def stack(self) -> str:
        return self.kind.split("-")[0]

    @property
    def is_down(self) -> bool:
        return self.kind.endswith("-down")

    @property
    def end(self) -> float:
        return self.start + self.seconds


def serve(network: Network, stack: str, index: int) -> tuple[str, int]:
    """Starts the server of a flow and returns its address, as its client needs it, and port."""
    port = FIRST_PORT + index
    address = f"{RIGHT}:{port}"
    match stack:
        case "ours":
            listen = ["--addr", f"/ip4/{RIGHT}/udp/{port}/webrtc-direct"]
            arguments = [str(environment.peer()), "listen", *listen]
        case "quic":
            arguments = [str(environment.QUIC_FLOW), "listen", address]
        case "tcp":
            arguments = [*environment.program("tcp_flow.py"), "serve", RIGHT, str(port)]
        case _:
            arguments = [*environment.program("udp_echo.py"), "serve", RIGHT, str(port)]
    return network.spawn(1, arguments).first_line()["listen"], port


def dial(kind: str, address: str, amount: list[str]) -> list[str]:
    """The command of a client; `amount` are the options that limit it."""
    stack, *words = kind.split("-")
    match stack:
        case "ours":
            return [str(environment.peer()), "dial", address, *amount, "--timeout-s", "900"]
        case "quic":
            newreno = ["--newreno"] if "newreno" in words else []
            return [str(environment.QUIC_FLOW), "dial", address, *amount, *newreno]
        case "tcp":
            down = ["--down"] if "down" in words else []
            tcp = environment.program("tcp_flow.py")
            return [*tcp, "dial", *address.split(":"), words[0], *amount, *down]
        case _:
            return [*environment.program("udp_echo.py"), "dial", *address.split(":"), *amount]


def amount(flow: Flow) -> list[str]:
    match flow.kind:
        case "ours":
            # More than any experiment carries.
            return ["--up", "8g"]
        case "ours-requests":
            return ["--echo", "--size", "64k", "--count", "100"]
        case "ours-stall":
            return ["--stall", "--up", "128m", "--hold-ms", "3000"]
        case "echo":
            return ["1000", "10"]
        case _:
            return ["--seconds", str(round(flow.seconds))]


class Bench:
    """Runs the experiments of one scenario and appends a line for each to its record."""

    def __init__(self, record: Path) -> None:
        self.record = record
        self.died: list[str] = []
        self.notes: list[str] = []

    def write(self, line: dict) -> None:
        with self.record.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def run(
        self,
        forth: str,
        back: str,
        flows: list[Flow],
        windows: list[tuple[float, float]],
        total: int,
        seed: int = 1,
        ecn: bool = False,
    ) -> dict:
        """Runs the flows for `total` seconds. `ecn` is for TCP."""
        clients: dict[int, Process] = {}
        with Network(forth, back, total + 10, seed, ecn) as network:
            servers = [serve(network, flow.stack, i) for i, flow in enumerate(flows)]
            begins = [(flow.start, i, True) for i, flow in enumerate(flows)]
            ends = [(flow.end, i, False) for i, flow in enumerate(flows) if flow.end < total]
            for time, i, is_begin in sorted(begins + ends):
                network.sleep_until(time)
                if is_begin:
                    address = servers[i][0]
                    command = dial(flows[i].kind, address, amount(flows[i]))
                    clients[i] = network.spawn(0, command)
                elif flows[i].kind == "ours":
                    self.note_death(flows[i], clients[i])
                    clients[i].stop()
            network.sleep_until(total)
            for i, flow in enumerate(flows):
                if flow.end >= total:
                    self.note_death(flow, clients[i])
            overflows = network.overflows()
            printed = network.end()
            for client in clients.values():
                client.stop()
            rows = [clients[i].rows() for i in range(len(flows))]
            windows_of_it, series = self.analyse(network, printed, flows, servers, windows, total)
        result = {
            "forth": forth,
            "back": back,
            "seed": seed,
            "flows": [vars(flow) for flow in flows],
            "windows": windows_of_it,
            "clients": rows,
            "series": series,
            "udp_overflows": overflows,
            "emulator": printed[-1],
        }
        self.check_machine(result)
        self.write(result)
        return result

    def analyse(
        self,
        network: Network,
        printed: list[dict],
        flows: list[Flow],
        servers: list[tuple[str, int]],
        windows: list[tuple[float, float]],
        total: int,
    ) -> tuple[list[dict], list[dict]]:
        of_port = {port: i for i, (_, port) in enumerate(servers)}
        ports = {row["flow"]: int(row["to"].rsplit(":", 1)[1]) for row in printed if "flow" in row}
        numbers = {number: of_port[port] for number, port in ports.items() if port in of_port}
        return analyse(network.log, numbers, [flow.is_down for flow in flows], windows, total)

    def note_death(self, flow: Flow, client: Process) -> None:
        """Notes a flow that has ended although nothing but its time limits it."""
        if not client.has_ended():
            return
        is_limited = flow.kind != "ours"
        if client.process.returncode != 0 or not is_limited:
            said = client.errors() or client.rows()[-1:]
            self.died.append(f"{flow.kind} ended early: {said}")

    def check_machine(self, result: dict) -> None:
        """Notes what was the fault of the machine rather than of a flow."""
        late = result["emulator"]["late_p99_us"]
        if late > LATE_US:
            self.notes.append(f"the emulator was late: {late / 1e3:.1f} ms at the 99th percentile")
        if result["udp_overflows"]:
            self.notes.append(f"{result['udp_overflows']} datagrams overflowed sockets")

    def transfers(self, path: str, kind: str, size: int, count: int) -> dict:
        """Medians of `count` transfers of `size` bytes, a fresh connection for each."""
        option = "--up" if kind == "ours" else "--bytes"
        limits = [option, str(size), "--repeat", str(count)]
        with Network(path, path, TRANSFERS_LIMIT_S + 10, 1, False) as network:
            address, _ = serve(network, kind.split("-")[0], 0)
            client = network.spawn(0, dial(kind, address, limits))
            succeeded = client.wait(TRANSFERS_LIMIT_S)
            client.stop()
            rows = client.rows()
            if not succeeded or len(rows) != count:
                self.died.append(f"{kind} made {len(rows)} of {count}: {client.errors()}")
            overflows, printed = network.overflows(), network.end()
        times = [
            (row["connect_ms"], row.get("open_ms", 0), row["seconds"] * 1e3)
            for row in rows
            if "seconds" in row
        ]
        names = ("connect_ms", "open_ms", "transfer_ms")
        medians = dict(zip(names, map(median, zip(*times, strict=True)), strict=False))
        result = {
            "forth": path,
            "back": path,
            "kind": kind,
            "bytes": size,
            "count": len(times),
            **medians,
            "total_ms": median(map(sum, times)) if times else None,
            "udp_overflows": overflows,
            "emulator": printed[-1],
        }
        self.check_machine(result)
        self.write(result)
        return result


def median(values: object) -> float:
    return round(statistics.median(values), 1)
