"""Where the two sides of a test run: on this machine, or on both ends of a path."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Self

INTEROP = Path(__file__).resolve().parent.parent.parent
ROOT = INTEROP.parent.parent
# The laboratory of tools/wire has namespaces and emulator.
sys.path.insert(0, str(ROOT / "tools/wire/lab"))

import environment  # noqa: E402
from network import (  # noqa: E402
    LEFT,
    RIGHT,
    Failure,
    Network,
    Process,
    command,
    remove_namespaces_of_the_dead,  # noqa: F401
)

REDIS = "redis-server"
# Nobody else listens in a namespace of its own.
REDIS_PORT = 6379
START_LIMIT_S = 10
# An experiment ends long before: the emulator must not.
PATH_LIMIT_S = 3600


def require_redis() -> None:
    """Installs Redis from apt as root, or names what is missing."""
    if shutil.which(REDIS):
        return
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise SystemExit(f"{REDIS} is missing: apt-get install -y {REDIS}")
    environ = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    install = ["install", "-y", "-qq", "--no-install-recommends", REDIS]
    for arguments in (["update", "-qq"], install):
        words = ["apt-get", *arguments]
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL, env=environ)


def redis(address: str, port: int, directory: str) -> list[str]:
    """The command of a server that keeps nothing."""
    settings = {
        "--bind": address,
        "--port": port,
        "--dir": directory,
        "--save": "",
        "--appendonly": "no",
        "--protected-mode": "no",
        "--daemonize": "no",
    }
    return [REDIS, *(str(word) for setting in settings.items() for word in setting)]


class Host:
    """This machine. To be used as a context."""

    mbit, round_trip_ms, loss = None, 0, 0

    def __enter__(self) -> Self:
        self.processes: list[Process] = []
        self.directory = tempfile.TemporaryDirectory(prefix="unified-")
        try:
            self.redis = self.start_redis()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            process.stop()
        self.directory.cleanup()

    def spawn(self, _: int, arguments: list[str]) -> Process:
        return Process(self, None, arguments)

    def start_redis(self) -> str:
        """Starts it on a port that the system chooses, and returns its address."""
        for _ in range(5):
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port = probe.getsockname()[1]
            # Another program may take the port meanwhile: then Redis ends.
            server = self.spawn(1, redis("127.0.0.1", port, self.directory.name))
            if answers(server, port):
                return f"127.0.0.1:{port}"
        raise Failure(f"{REDIS} does not start: {server.errors()}")


def answers(server: Process, port: int) -> bool:
    """Waits until the server answers, or has ended."""
    end = time.monotonic() + START_LIMIT_S
    while time.monotonic() < end and not server.has_ended():
        try:
            with socket.create_connection(("127.0.0.1", port), 1) as connection:
                connection.sendall(b"PING\r\n")
                if connection.recv(16) == b"+PONG\r\n":
                    return not server.has_ended()
        except OSError:
            pass
        time.sleep(0.02)
    return False


class Path100(Network):
    """A path of 100 Mbit/s with a queue of a round trip, 10 ms at least."""

    mbit = 100

    def __init__(self, round_trip_ms: float, loss: float, seed: int) -> None:
        self.round_trip_ms, self.loss = round_trip_ms, loss
        queue = round(self.mbit * 1e6 / 8 * max(round_trip_ms, 10) / 1e3)
        path = f"rate={self.mbit}m,delay={round_trip_ms / 2:g},queue={queue},loss={loss:g}"
        super().__init__(path, path, PATH_LIMIT_S, seed, False)
        self.redis = f"{RIGHT}:{REDIS_PORT}"

    def __enter__(self) -> Self:
        super().__enter__()
        try:
            self.spawn(1, redis(RIGHT, REDIS_PORT, self.directory.name))
        except BaseException:
            self.remove()
            raise
        return self


class Cable(Path100):
    """Two namespaces joined by the kernel: no limit, no delay, no loss."""

    mbit = None

    def __init__(self) -> None:
        self.round_trip_ms, self.loss = 0, 0
        Network.__init__(self, "", "", 0, 0, False)
        self.redis = f"{RIGHT}:{REDIS_PORT}"

    def create(self, name: str, address: str) -> None:
        command("ip", "netns", "add", name)
        command("ip", "-n", name, "link", "set", "lo", "up")

    def start_emulator(self) -> None:
        left, right = self.names
        peer = ("peer", "name", "veth0", "netns", right)
        command("ip", "-n", left, "link", "add", "veth0", "type", "veth", *peer)
        for name, address in ((left, LEFT), (right, RIGHT)):
            command("ip", "-n", name, "addr", "add", f"{address}/24", "dev", "veth0")
            command("ip", "-n", name, "link", "set", "veth0", "up")
