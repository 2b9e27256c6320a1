"""A substream of py-libp2p.

It is used below `INetStream`, which can not read on after its own end nor write after the remote's:
see README.md.
"""

from libp2p.abc import INetStream
from libp2p.transport.webrtc.exceptions import WebRTCStreamError
from libp2p.transport.webrtc.stream import WebRTCStream

from interop.substream import SubstreamBroken, SubstreamReset


class LibP2PSubstream:
    def __init__(self, stream: INetStream) -> None:
        self._net = stream
        self._stream: WebRTCStream = stream.muxed_stream

    async def write(self, data: bytes) -> None:
        try:
            await self._stream.write(data)
        except WebRTCStreamError as error:
            raise _kind(error) from error

    async def read(self) -> bytes:
        try:
            return await self._stream.read()
        except WebRTCStreamError as error:
            first = error
        # A reset wakes a reader as an end does. The next read shows which it was.
        try:
            return await self._stream.read()
        except WebRTCStreamError as error:
            if "reset" in str(error):
                raise SubstreamReset from first
            return b""

    async def finish(self) -> None:
        try:
            # The only way to end one half: `close` also stops reading.
            await self._stream._close_write()
        except WebRTCStreamError as error:
            raise _kind(error) from error
        # It waits for 5 s, and does not report whether FIN_ACK came.
        if not self._stream._fin_ack_received.is_set():
            raise SubstreamBroken("no FIN_ACK")

    async def reset(self) -> None:
        await self._stream.reset()

    async def closed(self) -> None:
        """Does not wait: py-libp2p never closes a channel, and leaves that to its remote."""

    async def release(self) -> None:
        await self._net.close()


def _kind(error: WebRTCStreamError) -> Exception:
    return (SubstreamReset if "reset" in str(error) else SubstreamBroken)(str(error))
