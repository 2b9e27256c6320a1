"""The interface of a peer for the cases and the responders."""

from typing import Protocol


class SubstreamReset(Exception):
    """The remote has reset the substream."""


class SubstreamBroken(Exception):
    """The substream ended in a way that its protocol does not have."""


class Substream(Protocol):
    """One substream, after its protocol has been negotiated."""

    async def write(self, data: bytes) -> None: ...

    async def read(self) -> bytes:
        """The next bytes; none at the end. Raises SubstreamReset and SubstreamBroken."""

    async def finish(self) -> None:
        """Sends FIN and waits for FIN_ACK; raises SubstreamBroken if that does not come."""

    async def reset(self) -> None: ...

    async def closed(self) -> None:
        """Returns once the data channel is closed."""

    async def release(self) -> None:
        """Releases what the stack holds for it. The last call."""


class Connection(Protocol):
    """One connection to a remote peer."""

    async def open(self, protocol: str) -> Substream: ...

    async def identify(self) -> None:
        """Raises unless the remote's identify lists every protocol."""

    async def ping(self, count: int) -> None: ...

    async def idle(self) -> None:
        """Returns once no data channel is left."""

    async def ended(self) -> None:
        """Returns once the stack has detected the end of the connection."""

    async def close(self) -> None: ...


class Peer(Protocol):
    """A running stack. It serves every protocol on each of its connections."""

    async def dial(self, address: str) -> Connection: ...

    async def listen(self, address: str) -> str:
        """Returns the address with certhash and p2p."""


async def read_to_end(substream: Substream) -> bytes:
    got = bytearray()
    while data := await substream.read():
        got += data
    return bytes(got)


class Reader:
    """Reads by count, and keeps the bytes that come after it."""

    def __init__(self, substream: Substream) -> None:
        self._substream = substream
        self._rest = b""

    async def exactly(self, length: int) -> bytes:
        while len(self._rest) < length:
            data = await self._substream.read()
            if not data:
                raise SubstreamBroken(f"an end after {len(self._rest)} of {length} bytes")
            self._rest += data
        got, self._rest = self._rest[:length], self._rest[length:]
        return got

    def take(self) -> bytes:
        rest, self._rest = self._rest, b""
        return rest

    async def to_end(self) -> bytes:
        return self.take() + await read_to_end(self._substream)
