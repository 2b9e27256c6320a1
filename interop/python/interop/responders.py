"""The responder's side of every protocol. Every violation of a protocol resets the substream."""

import anyio

from . import protocols
from .report import describe, report
from .substream import Reader, Substream, SubstreamBroken, SubstreamReset, read_to_end

RECORD_S = 2


class Record:
    """What one substream observes and another one asks for, once."""

    def __init__(self) -> None:
        self._put, self._take = anyio.create_memory_object_stream(16)

    def put(self, value: int) -> None:
        self._put.send_nowait(value)

    async def take(self, otherwise: int) -> int:
        with anyio.move_on_after(RECORD_S):
            return await self._take.receive()
        return otherwise


class Responders:
    """Answers substreams. Each error is reported as a line, and recorded."""

    def __init__(self) -> None:
        self.errors = 0
        self._records: dict[object, tuple[Record, Record]] = {}

    async def serve(self, substream: Substream, protocol: str, connection: object) -> None:
        half_close, reset = self._records.setdefault(connection, (Record(), Record()))
        try:
            await _respond(substream, protocol, half_close, reset)
        except Exception as error:
            self.errors += 1
            report({"responder": protocol, "error": describe(error)})
            await substream.reset()
        finally:
            await substream.release()


async def _respond(substream: Substream, protocol: str, half_close: Record, reset: Record) -> None:
    match protocol:
        case protocols.ECHO:
            while data := await substream.read():
                await substream.write(data)
            await substream.finish()
        case protocols.BENCH:
            await _bench(substream)
        case protocols.STALL:
            await _stall(substream)
        case protocols.HALF_CLOSE:
            await read_to_end(substream)
            await substream.write(protocols.pattern(protocols.HALF_CLOSE_BYTES))
            await substream.finish()
        case protocols.HALF_CLOSE_REMOTE:
            await substream.write(protocols.pattern(protocols.HALF_CLOSE_BYTES))
            await substream.finish()
            got = await read_to_end(substream)
            half_close.put(protocols.right_bytes(got, protocols.HALF_CLOSE_BYTES))
        case protocols.HALF_CLOSE_RESULT:
            await _receive(Reader(substream), 0)
            right = await half_close.take(protocols.NO_RECORD)
            await _answer(substream, protocols.number(right))
        case protocols.RESET_ME:
            await _be_reset(substream, reset)
        case protocols.RESET_RESULT:
            await _receive(Reader(substream), 0)
            await _answer(substream, bytes([await reset.take(0)]))
        case protocols.RESET_YOU:
            await Reader(substream).exactly(1)
            await substream.reset()
        case _:
            raise SubstreamBroken(f"nobody negotiated {protocol}")


async def _answer(substream: Substream, answer: bytes) -> None:
    await substream.write(answer)
    await substream.finish()


async def _receive(reader: Reader, length: int) -> None:
    got = await reader.to_end()
    right = protocols.right_bytes(got, length)
    if len(got) != length or right != length:
        raise SubstreamBroken(f"{len(got)} bytes came of {length}, {right} of them right")


async def _bench(substream: Substream) -> None:
    reader = Reader(substream)
    header = await reader.exactly(16)
    up, down = int.from_bytes(header[:8], "big"), int.from_bytes(header[8:], "big")
    await _receive(reader, up)
    await substream.write(protocols.pattern(down))
    await substream.finish()


async def _stall(substream: Substream) -> None:
    reader = Reader(substream)
    header = await reader.exactly(16)
    up, hold_ms = int.from_bytes(header[:8], "big"), int.from_bytes(header[8:], "big")
    await substream.write(protocols.STALLED)
    await anyio.sleep(hold_ms / 1000)
    await _receive(reader, up)
    await _answer(substream, protocols.number(up))


async def _be_reset(substream: Substream, reset: Record) -> None:
    got = await Reader(substream).exactly(protocols.RESET_ME_BYTES)
    await substream.write(got[-1:])
    try:
        await read_to_end(substream)
    except SubstreamReset:
        reset.put(1)
    else:
        reset.put(0)
