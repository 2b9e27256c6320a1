"""A connection that aiortc dials, and the substreams on it."""

import asyncio
import itertools
import secrets
import string

from aiortc import RTCDataChannel, RTCPeerConnection, RTCSessionDescription
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from interop import protocols
from interop.report import describe, report
from interop.responders import Responders
from interop.substream import SubstreamBroken

from . import noise
from .address import Address
from .multistream import Negotiated

V1, V2 = "libp2p+webrtc+v1/", "libp2p+webrtc+v2/"
ICE_CHARS = string.ascii_letters + string.digits
NOISE_CHANNEL = 0
CONNECT_S = 15
ENDED = ("failed", "closed")


class AiortcConnection:
    def __init__(self, pc: RTCPeerConnection, responders: Responders) -> None:
        self._pc = pc
        self._responders = responders
        # aiortc would number by the role in ICE, the other way round, and reuse a number at once.
        # The DTLS client has the even numbers, the first of which belongs to channel 0.
        self._numbers = itertools.count(2, 2)
        self._channels: set[RTCDataChannel] = set()
        self._answering: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        pc.on("datachannel", self._on_channel)
        pc.on("connectionstatechange", self._changed.set)

    async def open(self, protocol: str) -> Negotiated:
        channel = self._pc.createDataChannel("", id=next(self._numbers))
        self._hold(channel)
        substream = Negotiated(channel)
        await substream.opened()
        await substream.propose(protocol)
        return substream

    def _hold(self, channel: RTCDataChannel) -> None:
        self._channels.add(channel)

        def closed() -> None:
            self._channels.discard(channel)
            self._changed.set()

        channel.on("close", closed)

    def _on_channel(self, channel: RTCDataChannel) -> None:
        self._hold(channel)
        task = asyncio.create_task(self._answer(Negotiated(channel)))
        self._answering.add(task)
        task.add_done_callback(self._answering.discard)

    async def _answer(self, substream: Negotiated) -> None:
        try:
            protocol = await substream.answer(protocols.ALL)
        except Exception as error:
            self._responders.errors += 1
            report({"responder": "multistream-select", "error": describe(error)})
            await substream.reset()
            await substream.release()
            return
        await self._responders.serve(substream, protocol, self)

    async def identify(self) -> None:
        raise SubstreamBroken("aiortc has no identify")

    async def ping(self, count: int) -> None:
        raise SubstreamBroken("aiortc has no ping")

    async def _wait(self, done) -> None:
        while not done():
            self._changed.clear()
            await self._changed.wait()

    async def connected(self) -> None:
        async with asyncio.timeout(CONNECT_S):
            await self._wait(lambda: self._pc.connectionState in ("connected", *ENDED))
        if self._pc.connectionState != "connected":
            raise SubstreamBroken(f"the connection is {self._pc.connectionState}")

    async def idle(self) -> None:
        await self._wait(lambda: not self._channels)

    async def ended(self) -> None:
        await self._wait(lambda: self._pc.connectionState in ENDED)

    async def close(self) -> None:
        await self._pc.close()


class AiortcPeer:
    def __init__(self, version: int, responders: Responders) -> None:
        self._version = version
        self._responders = responders
        self._key = Ed25519PrivateKey.generate()

    async def dial(self, address: str) -> AiortcConnection:
        server = Address.parse(address)
        pc = RTCPeerConnection()
        connection = AiortcConnection(pc, self._responders)
        try:
            await self._connect(connection, pc, server)
        except BaseException:
            await pc.close()
            raise
        return connection

    async def _connect(
        self, connection: AiortcConnection, pc: RTCPeerConnection, server: Address
    ) -> None:
        channel = pc.createDataChannel("", negotiated=True, id=NOISE_CHANNEL)
        substream = Negotiated(channel)
        dtls = pc.sctp.transport
        ufrag = self._ufrag(dtls.transport)
        await pc.setLocalDescription(await pc.createOffer())
        answer = RTCSessionDescription(server.answer(ufrag), "answer")
        await pc.setRemoteDescription(answer)
        # aiortc compares the server's certificate with the fingerprint in the answer.
        await connection.connected()
        await substream.opened()
        own = next(f for f in dtls.getLocalParameters().fingerprints if f.algorithm == "sha-256")
        own_hash = bytes.fromhex(own.value.replace(":", ""))
        async with asyncio.timeout(CONNECT_S):
            hashes = (own_hash, server.certificate_hash)
            peer = await noise.respond(substream, self._key, *hashes)
        if peer != server.peer_id:
            raise SubstreamBroken(f"the server is {peer}")

    def _ufrag(self, transport) -> str:
        """The server's. In v1 it is also the dialler's, and aiortc has no setting for that."""
        ice = transport._connection
        if self._version == 2:
            return V2 + ice.local_password
        ufrag = V1 + "".join(secrets.choice(ICE_CHARS) for _ in range(32))
        ice._local_username = ufrag
        ice._local_password = ufrag
        return ufrag

    async def listen(self, address: str) -> str:
        raise NotImplementedError("aiortc takes no check before it has the description it is for")
