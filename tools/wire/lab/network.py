"""Two network namespaces with a TUN device each, the emulator between them, and processes there."""

import json
import os
import re
import select
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Self

import environment

LEFT, RIGHT = "10.81.0.1", "10.81.0.2"
DEVICE = "tun0"
# The emulator starts that much before the first flow.
LEAD_S = 1.0
START_LIMIT_S = 20
STOP_LIMIT_S = 5
PREFIX = "anabranch"

# Windows of TCP for 100 Mbit/s at a second, and no memory of earlier connections. An IPv6 address
# would send packets of its own.
SYSCTLS = (
    "net.ipv4.tcp_no_metrics_save=1",
    "net.ipv4.tcp_wmem=4096 65536 33554432",
    "net.ipv4.tcp_rmem=4096 131072 33554432",
    "net.ipv6.conf.all.disable_ipv6=1",
    "net.ipv6.conf.default.disable_ipv6=1",
)


class Failure(Exception):
    """An experiment could not be made."""


def command(*arguments: str) -> str:
    done = subprocess.run(arguments, capture_output=True, text=True)
    if done.returncode != 0:
        raise Failure(f"{' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout


def remove_namespaces_of_the_dead() -> None:
    """Removes what a laboratory left that was killed: the names contain its process."""
    for line in command("ip", "netns", "list").splitlines():
        found = re.match(rf"{PREFIX}-(\d+)-[lr]\b", line)
        if found and not Path(f"/proc/{found[1]}").exists():
            subprocess.run(["ip", "netns", "del", line.split()[0]], stderr=subprocess.DEVNULL)


def later(options: str) -> str:
    """Options of a direction with times since the first flow, as times since the emulator's."""
    return re.sub(r"@([\d.]+)", lambda found: f"@{float(found[1]) + LEAD_S:g}", options)


class Process:
    """A process in one of the namespaces, which does not outlive this one."""

    def __init__(self, network: "Network", namespace: str | None, arguments: list[str]) -> None:
        self.stderr = tempfile.TemporaryFile("w+")
        inside = ["ip", "netns", "exec", namespace] if namespace else []
        self.name = Path(arguments[0]).name
        self.process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *inside, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self.stderr,
        )
        self.rest = b""
        network.processes.append(self)

    def first_line(self) -> dict:
        """Waits for its first line, of JSON."""
        stdout = self.process.stdout
        end = time.monotonic() + START_LIMIT_S
        while b"\n" not in self.rest:
            left = max(0, end - time.monotonic())
            ready, _, _ = select.select([stdout], [], [], left)
            part = os.read(stdout.fileno(), 1 << 16) if ready else b""
            if not part:
                raise Failure(f"{self.name} does not start: {self.errors()}")
            self.rest += part
        line, self.rest = self.rest.split(b"\n", 1)
        return json.loads(line)

    def rows(self) -> list[dict]:
        """Lines of JSON that it has printed, once it has ended."""
        text = (self.rest + self.process.stdout.read()).decode(errors="replace")
        self.rest = b""
        return [json.loads(line) for line in text.splitlines() if line.startswith("{")]

    def errors(self) -> str:
        self.stderr.seek(0)
        return self.stderr.read()[-400:].strip()

    def has_ended(self) -> bool:
        return self.process.poll() is not None

    def wait(self, seconds: float) -> bool:
        """Waits until it has ended. Returns whether it succeeded in time."""
        try:
            return self.process.wait(seconds) == 0
        except subprocess.TimeoutExpired:
            return False

    def stop(self) -> None:
        """Ends it, by force if need be."""
        if not self.has_ended():
            self.process.terminate()
        try:
            self.process.wait(STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Network:
    """The path between two namespaces. To be used as a context."""

    def __init__(self, forth: str, back: str, seconds: float, seed: int, ecn: bool) -> None:
        self.names = [f"{PREFIX}-{os.getpid()}-{side}" for side in "lr"]
        self.processes: list[Process] = []
        self.options = [later(forth), later(back)]
        self.seconds, self.seed, self.ecn = seconds, seed, ecn

    def __enter__(self) -> Self:
        self.directory = tempfile.TemporaryDirectory(prefix="wire-")
        self.log = Path(self.directory.name) / "log"
        try:
            for name, address in zip(self.names, (LEFT, RIGHT), strict=True):
                self.create(name, address)
            self.start_emulator()
        except BaseException:
            self.remove()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def create(self, name: str, address: str) -> None:
        command("ip", "netns", "add", name)
        ecn = f"net.ipv4.tcp_ecn={int(self.ecn)}"
        command("ip", "netns", "exec", name, "sysctl", "-qw", *SYSCTLS, ecn)
        command("ip", "-n", name, "link", "set", "lo", "up")
        command("ip", "-n", name, "tuntap", "add", "dev", DEVICE, "mode", "tun")
        command("ip", "-n", name, "addr", "add", f"{address}/24", "dev", DEVICE)
        # No queue but that of the emulator may drop.
        command("ip", "-n", name, "link", "set", DEVICE, "txqueuelen", "20000", "up")
        fifo = ("root", "pfifo", "limit", "20000")
        command("tc", "-n", name, "qdisc", "replace", "dev", DEVICE, *fifo)

    def start_emulator(self) -> None:
        devices = [f"{name}:{DEVICE}" for name in self.names]
        limits = ["--seconds", str(self.seconds), "--seed", str(self.seed)]
        arguments = [str(environment.EMULATOR), *devices, *self.options, *limits]
        arguments += ["--log", str(self.log)]
        rank = environment.priority("-f", "20")
        self.emulator = Process(self, None, [*rank, *arguments])
        # It reports the clock that this process reads as well.
        self.start = self.emulator.first_line()["start_ns"] / 1e9 + LEAD_S

    def spawn(self, side: int, arguments: list[str]) -> Process:
        rank = environment.priority("-r", "5")
        return Process(self, self.names[side], [*rank, *arguments])

    def sleep_until(self, seconds: float) -> None:
        """Sleeps until so long after the start of the first flow."""
        time.sleep(max(0, self.start + seconds - time.monotonic()))

    def overflows(self) -> int:
        """Datagrams that found a full socket: the programs are too slow, not the path."""
        total = 0
        for name in self.names:
            text = command("ip", "netns", "exec", name, "cat", "/proc/net/snmp")
            head, values = [line.split() for line in text.splitlines() if line[:4] == "Udp:"]
            total += int(dict(zip(head, values, strict=True))["RcvbufErrors"])
        return total

    def end(self) -> list[dict]:
        """Stops the emulator, whose log is complete then, and returns what it has printed."""
        self.emulator.stop()
        rows = self.emulator.rows()
        if self.emulator.process.returncode != 0:
            raise Failure(f"the emulator failed: {self.emulator.errors()}")
        return rows

    def remove(self) -> None:
        for process in self.processes:
            process.stop()
        for name in self.names:
            subprocess.run(["ip", "netns", "del", name], stderr=subprocess.DEVNULL)
        self.directory.cleanup()
