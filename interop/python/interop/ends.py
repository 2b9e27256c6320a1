"""How long a program runs that only answers."""

import sys

import anyio.to_thread


async def stdin_ends() -> None:
    await anyio.to_thread.run_sync(sys.stdin.buffer.read, abandon_on_cancel=True)
