"""A substream on one of aiortc's data channels."""

import asyncio
import contextlib
from collections import deque

from aiortc import RTCDataChannel

from interop.substream import SubstreamBroken, SubstreamReset

from . import frames
from .frames import Flag

# aiortc accepts any amount. Above this a writer waits until everything has been sent.
MAX_BUFFERED = 64 * 1024
FIN_ACK_S = 10
# How long to wait for a FIN after STOP_SENDING.
FIN_S = 5


class AiortcSubstream:
    def __init__(self, channel: RTCDataChannel) -> None:
        self._channel = channel
        self._decoder = frames.Decoder()
        self._received: deque[bytes] = deque()
        self._news = asyncio.Event()
        self._writable = asyncio.Event()
        self._reset = False
        self._stopped = False
        self._fin_received = False
        self._fin_acked = False
        self._gone = channel.readyState in ("closing", "closed")
        channel.on("message", self._on_message)
        channel.on("close", self._on_close)
        channel.on("open", self._news.set)
        channel.on("bufferedamountlow", self._writable.set)

    def _on_message(self, message: bytes | str) -> None:
        try:
            for payload, flag in self._decoder.decode(message):
                self._on_frame(payload, flag)
        except ValueError:
            self._send(frames.flag(Flag.RESET_STREAM))
            self._reset = True
        self._news.set()

    def _on_frame(self, payload: bytes, flag: Flag | None) -> None:
        if payload and not self._fin_received:
            self._received.append(payload)
        match flag:
            case Flag.FIN:
                self._fin_received = True
                self._send(frames.flag(Flag.FIN_ACK))
            case Flag.FIN_ACK:
                self._fin_acked = True
            case Flag.STOP_SENDING:
                self._stopped = True
            case Flag.RESET_STREAM:
                self._reset = True
                self._writable.set()

    def _on_close(self) -> None:
        self._gone = True
        self._news.set()
        self._writable.set()

    def _send(self, frame: bytes) -> None:
        if self._channel.readyState == "open":
            self._channel.send(frame)

    async def _wait(self, done) -> None:
        while not done():
            self._news.clear()
            await self._news.wait()

    async def opened(self) -> None:
        await self._wait(lambda: self._gone or self._channel.readyState == "open")
        self._fail_if_over()

    def _fail_if_over(self) -> None:
        if self._reset:
            raise SubstreamReset
        if self._gone:
            raise SubstreamBroken("the channel is closed")

    async def write(self, data: bytes) -> None:
        for start in range(0, len(data), frames.MAX_PAYLOAD):
            self._fail_if_over()
            if self._stopped:
                raise SubstreamBroken("the remote reads no more")
            self._send(frames.payload(data[start : start + frames.MAX_PAYLOAD]))
            await self._drained(MAX_BUFFERED)

    async def _drained(self, most: int) -> None:
        while self._channel.bufferedAmount > most and not self._gone:
            self._writable.clear()
            await self._writable.wait()

    async def read(self) -> bytes:
        await self._wait(lambda: self._received or self._reset or self._fin_received or self._gone)
        if self._reset:
            raise SubstreamReset
        if self._received:
            return self._received.popleft()
        if self._fin_received:
            return b""
        raise SubstreamBroken("the channel closed without FIN")

    async def finish(self) -> None:
        self._fail_if_over()
        self._send(frames.flag(Flag.FIN))
        try:
            async with asyncio.timeout(FIN_ACK_S):
                await self._wait(lambda: self._fin_acked or self._reset or self._gone)
        except TimeoutError:
            raise SubstreamBroken(f"no FIN_ACK within {FIN_ACK_S} s") from None
        if not self._fin_acked:
            self._fail_if_over()

    async def reset(self) -> None:
        if not self._reset:
            self._reset = True
            self._send(frames.flag(Flag.RESET_STREAM))
            self._news.set()

    async def closed(self) -> None:
        await self.release()
        await self._wait(lambda: self._gone)

    async def release(self) -> None:
        """Closes the channel, once the remote has ended its half."""
        if not (self._reset or self._fin_received):
            self._send(frames.flag(Flag.STOP_SENDING))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(FIN_S):
                    await self._wait(lambda: self._fin_received or self._reset or self._gone)
        # aiortc resets an SCTP stream at once: data without a TSN yet would follow the reset.
        await self._drained(0)
        self._channel.close()
