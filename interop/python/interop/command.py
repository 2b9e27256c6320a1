"""The command line of both peers."""

import argparse
import logging
import os
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import anyio

from . import cases, sockets
from .ends import stdin_ends
from .report import report
from .responders import Responders
from .substream import Peer


@dataclass
class Options:
    command: str
    address: str
    version: int
    timeout_s: float
    cases: list[str]


def parse(absent: frozenset[str] = frozenset(), can_listen: bool = True) -> Options:
    """`absent` are the cases that a peer does not have."""
    # The cases may follow the options, which subcommands of argparse cannot parse.
    parser = argparse.ArgumentParser()
    commands = ["listen", "dial"] if can_listen else ["dial"]
    parser.add_argument("command", choices=commands)
    parser.add_argument("address", nargs="?")
    parser.add_argument("cases", nargs="*", metavar="CASE")
    parser.add_argument("--v2", dest="version", action="store_const", const=2, default=1)
    parser.add_argument("--timeout-s", type=float, default=180)
    options = Options(**vars(parser.parse_intermixed_args()))
    if options.address is None:
        if options.command == "dial":
            parser.error("dial needs an address")
        options.address = "/ip4/127.0.0.1/udp/0/webrtc-direct"
    known = [name for name in cases.CASES | cases.MORE if name not in absent]
    if unknown := [name for name in options.cases if name not in known]:
        parser.error(f"no such case: {', '.join(unknown)}; there are {', '.join(known)}")
    wanted = options.cases or [name for name in known if name in cases.CASES]
    options.cases = [name for name in known if name in wanted]
    return options


def log() -> None:
    logging.basicConfig(stream=sys.stderr, level=os.environ.get("LOGLEVEL", "WARNING").upper())


async def run(options: Options, peer: Peer, responders: Responders) -> int:
    """The whole program, on a running peer. Returns its exit status."""
    if options.command == "listen":
        report({"listen": await peer.listen(options.address), "pid": os.getpid()})
        await stdin_ends()
        return 1 if responders.errors else 0
    try:
        with anyio.fail_after(options.timeout_s):
            passed = await cases.run(peer, options.address, options.cases)
    except TimeoutError:
        report({"case": "deadline", "ok": False, "error": f"not done in {options.timeout_s} s"})
        return 1
    return 0 if passed and not responders.errors else 1


Main = Callable[[Options], Awaitable[int]]


def exit_with(main: Main, options: Options, backend: str) -> None:
    log()
    sockets.enlarge()
    status = anyio.run(main, options, backend=backend)
    sys.stdout.flush()
    # The stacks leave threads and tasks, some of which wait for ever.
    os._exit(status)
