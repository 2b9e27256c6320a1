"""The dialler's side of every case."""

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial

import anyio

from . import protocols
from .ends import stdin_ends
from .report import describe, report
from .substream import Connection, Peer, Reader, Substream, SubstreamBroken, SubstreamReset
from .substream import read_to_end

# Limits of one wait, and of a case that transfers much.
STEP_S = 15
CASE_S = 90

# aioice gives up after 6 checks without an answer, one every 4 to 6 s.
KILLED_S = 45
OVER_S = 5

# They end with stdin, or take longer: 200 dials of py-libp2p 72 s, each of which has STEP_S.
WITHOUT_CASE_S = ("serve", "killed", "dials-200")

PINGS = 5


class WrongResult(Exception):
    """Something came that must not come."""


@dataclass
class Context:
    peer: Peer
    address: str
    connection: Connection


def expect(what: str, actual: object, expected: object) -> None:
    if actual != expected:
        raise WrongResult(f"{what}: {actual!r}, not {expected!r}")


@asynccontextmanager
async def opened(connection: Connection, protocol: str) -> AsyncIterator[Substream]:
    """A substream that is released afterwards, whatever happens."""
    with anyio.fail_after(STEP_S):
        substream = await connection.open(protocol)
    try:
        yield substream
    except BaseException:
        with anyio.CancelScope(shield=True), anyio.move_on_after(STEP_S):
            await substream.reset()
        raise
    finally:
        with anyio.CancelScope(shield=True), anyio.move_on_after(STEP_S):
            await substream.release()


async def exchange(connection: Connection, protocol: str, content: bytes) -> bytes:
    """Writes and finishes while it reads to the end. Both halves have to end in order."""
    got = b""
    async with opened(connection, protocol) as substream:

        async def read() -> None:
            nonlocal got
            got = await read_to_end(substream)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(read)
            for start in range(0, len(content), protocols.PIECE):
                await substream.write(content[start : start + protocols.PIECE])
            await substream.finish()
        with anyio.fail_after(STEP_S):
            await substream.closed()
    return got


async def echo(connection: Connection, length: int) -> None:
    got = await exchange(connection, protocols.ECHO, protocols.pattern(length))
    expect("bytes that came back right", protocols.right_bytes(got, length), length)
    expect("length of the echo", len(got), length)


async def bench(connection: Connection, up: int, down: int) -> None:
    header = protocols.number(up) + protocols.number(down)
    got = await exchange(connection, protocols.BENCH, header + protocols.pattern(up))
    expect("bytes that came down right", protocols.right_bytes(got, down), down)
    expect("length of the answer", len(got), down)


async def at_once(count: int, run: Callable[[], Awaitable[None]]) -> None:
    async with anyio.create_task_group() as tasks:
        for _ in range(count):
            tasks.start_soon(run)


async def identify(context: Context) -> None:
    await context.connection.identify()


async def ping(context: Context) -> None:
    await context.connection.ping(PINGS)


async def echo_100k(context: Context) -> None:
    await echo(context.connection, 100_000)


async def echo_200_at_once(context: Context) -> None:
    await at_once(200, lambda: echo(context.connection, 10_000))


async def bulk(context: Context) -> None:
    await at_once(3, lambda: bench(context.connection, 4 << 20, 4 << 20))


async def sequential_50(context: Context) -> None:
    for i in range(50):
        await echo(context.connection, 10 + i)


async def sequential_500(context: Context) -> None:
    for i in range(500):
        await echo(context.connection, 10 + i)


async def half_close_local(context: Context) -> None:
    async with opened(context.connection, protocols.HALF_CLOSE) as substream:
        await substream.write(protocols.pattern(1000))
        await substream.finish()
        got = await read_to_end(substream)
        right = protocols.right_bytes(got, protocols.HALF_CLOSE_BYTES)
        expect("bytes after the own end", right, protocols.HALF_CLOSE_BYTES)
        with anyio.fail_after(STEP_S):
            await substream.closed()


async def half_close_remote(context: Context) -> None:
    async with opened(context.connection, protocols.HALF_CLOSE_REMOTE) as substream:
        got = await read_to_end(substream)
        right = protocols.right_bytes(got, protocols.HALF_CLOSE_BYTES)
        expect("bytes before the remote's end", right, protocols.HALF_CLOSE_BYTES)
        await substream.write(protocols.pattern(protocols.HALF_CLOSE_BYTES))
        await substream.finish()
        with anyio.fail_after(STEP_S):
            await substream.closed()
    answer = await exchange(context.connection, protocols.HALF_CLOSE_RESULT, b"")
    expect("count at the responder", answer, protocols.number(protocols.HALF_CLOSE_BYTES))


async def reset_local(context: Context) -> None:
    async with opened(context.connection, protocols.RESET_ME) as substream:
        content = protocols.pattern(protocols.RESET_ME_BYTES)
        await substream.write(content)
        expect("answer", await Reader(substream).exactly(1), content[-1:])
        await substream.reset()
    answer = await exchange(context.connection, protocols.RESET_RESULT, b"")
    expect("sight of the reset at the responder", answer, b"\x01")


async def reset_remote(context: Context) -> None:
    async with opened(context.connection, protocols.RESET_YOU) as substream:
        await substream.write(b"\x00")
        try:
            await read_to_end(substream)
        except SubstreamReset:
            return
        raise WrongResult("a clean end, where a reset was expected")


async def _stalled(context: Context, up: int, hold_ms: int) -> None:
    async with opened(context.connection, protocols.STALL) as substream:
        reader = Reader(substream)
        await substream.write(protocols.number(up) + protocols.number(hold_ms))
        expect("answer", await reader.exactly(1), protocols.STALLED)
        content = protocols.pattern(up)
        for start in range(0, up, protocols.PIECE):
            await substream.write(content[start : start + protocols.PIECE])
        await substream.finish()
        expect("count", await reader.exactly(8), protocols.number(up))
        expect("rest", await reader.to_end(), b"")


async def stall_up(context: Context) -> None:
    """The remote pauses its reading; another substream works meanwhile."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_stalled, context, 2 << 20, 500)
        await echo(context.connection, 1000)


async def close(context: Context) -> None:
    with anyio.fail_after(STEP_S):
        await context.connection.idle()
    with anyio.fail_after(STEP_S):
        await context.connection.close()


async def dials(context: Context, count: int) -> None:
    """Connections one after another, a substream on each. That of the other cases ends here."""
    await context.connection.close()
    for _ in range(count):
        with anyio.fail_after(STEP_S):
            connection = await context.peer.dial(context.address)
        # After a reset nothing is in flight that the close could overtake.
        await reset_remote(replace(context, connection=connection))
        await connection.close()


async def serve(_: Context) -> None:
    """Answers the remote's substreams until stdin ends."""
    await stdin_ends()


async def killed(context: Context) -> None:
    """The remote dies while a substream waits for it, which must end. Does the connection end?"""
    async with opened(context.connection, protocols.ECHO) as substream:
        await substream.write(b"x")
        expect("echo", await Reader(substream).exactly(1), b"x")
        report({"case": "killed", "phase": "waiting", "ok": True})
        began = time.monotonic()
        with anyio.fail_after(KILLED_S):
            try:
                data = await substream.read()
                expect("what a dead peer sends", data, b"")
            except SubstreamBroken:
                pass
        report({"case": "killed", "phase": "read", "ok": True, "ms": _ms(began)})
        over = False
        with anyio.move_on_after(OVER_S):
            await context.connection.ended()
            over = True
        report({"case": "killed", "phase": "connection", "ok": True, "over": over})


Case = Callable[[Context], Awaitable[None]]

# In the order in which they run.
CASES: dict[str, Case] = {
    "identify": identify,
    "ping": ping,
    "echo-100k": echo_100k,
    "bulk-3x4m": bulk,
    "sequential-50": sequential_50,
    "half-close-local": half_close_local,
    "half-close-remote": half_close_remote,
    "reset-local": reset_local,
    "reset-remote": reset_remote,
    "echo-200x10k": echo_200_at_once,
    "sequential-500": sequential_500,
    "stall-up": stall_up,
    "close": close,
}

# Only if they are named: they leave no connection, or wait for the remote.
MORE: dict[str, Case] = {
    "dials-10": partial(dials, count=10),
    "dials-200": partial(dials, count=200),
    "serve": serve,
    "killed": killed,
}


async def run(peer: Peer, address: str, names: Sequence[str]) -> bool:
    """Dials and runs the cases, each with a line of its own. Returns whether all passed."""
    connection: Connection | None = None

    async def connect(_: object) -> None:
        nonlocal connection
        connection = await peer.dial(address)

    if not await _reported("connect", connect, STEP_S, None) or connection is None:
        return False
    context = Context(peer, address, connection)
    passed = True
    for name in names:
        limit = CASE_S if name not in WITHOUT_CASE_S else None
        case = (CASES | MORE)[name]
        passed = await _reported(name, case, limit, context) and passed
    return passed


async def _reported(name: str, case: Case, limit: float | None, context: Context | None) -> bool:
    began = time.monotonic()
    try:
        with anyio.fail_after(limit):
            await case(context)
    except Exception as error:
        report({"case": name, "ok": False, "ms": _ms(began), "error": describe(error)})
        return False
    report({"case": name, "ok": True, "ms": _ms(began)})
    return True


def _ms(began: float) -> int:
    return round((time.monotonic() - began) * 1000)
