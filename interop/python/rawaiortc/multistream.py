"""multistream-select on a substream."""

from interop.substream import Reader, SubstreamBroken

from . import varint
from .substream import AiortcSubstream

HEADER = "/multistream/1.0.0"
NOT_AVAILABLE = "na"
MAX_LINE = 1024


def _line(text: str) -> bytes:
    return varint.encode(len(text) + 1) + text.encode() + b"\n"


async def _read(reader: Reader) -> str:
    prefix = b""
    while (length := varint.decode(prefix)) is None:
        prefix += await reader.exactly(1)
    if not 0 < length[0] <= MAX_LINE:
        raise SubstreamBroken(f"a line of {length[0]} bytes")
    return (await reader.exactly(length[0])).decode().removesuffix("\n")


class Negotiated(AiortcSubstream):
    """A substream that keeps the bytes that came after the negotiation."""

    async def propose(self, protocol: str) -> None:
        reader = Reader(self)
        await self.write(_line(HEADER) + _line(protocol))
        for expected in (HEADER, protocol):
            if (got := await _read(reader)) != expected:
                raise SubstreamBroken(f"{got!r} for {protocol}")
        self._keep(reader)

    async def answer(self, served: tuple[str, ...]) -> str:
        reader = Reader(self)
        if (got := await _read(reader)) != HEADER:
            raise SubstreamBroken(f"{got!r} in place of multistream-select")
        await self.write(_line(HEADER))
        while (protocol := await _read(reader)) not in served:
            await self.write(_line(NOT_AVAILABLE))
        await self.write(_line(protocol))
        self._keep(reader)
        return protocol

    def _keep(self, reader: Reader) -> None:
        if rest := reader.take():
            self._received.appendleft(rest)
