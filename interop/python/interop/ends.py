"""The end of stdin, which ends a program that only responds."""

import sys

import anyio.to_thread


async def stdin_ends() -> None:
    await anyio.to_thread.run_sync(sys.stdin.buffer.read, abandon_on_cancel=True)
