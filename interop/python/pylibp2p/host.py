"""A py-libp2p host with WebRTC only, and its connections."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio
from libp2p import new_host
from libp2p.abc import IHost, INetStream
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.host.ping import PingService
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import info_from_p2p_addr
from libp2p.transport.webrtc.config import WebRTCTransportConfig
from libp2p.transport.webrtc.connection import WebRTCConnection
from libp2p.transport.webrtc.transport import WebRTCDirectTransport
from multiaddr import Multiaddr

from interop import protocols
from interop.responders import Responders
from interop.substream import SubstreamBroken

from .substream import LibP2PSubstream

IDENTIFY_S = 10
POLL_S = 0.005
OPEN_AT_ONCE = 224


class LibP2PConnection:
    def __init__(self, host: IHost, peer: ID) -> None:
        self._host = host
        self._peer = peer
        self._muxed: WebRTCConnection = host.get_network().connections[peer][0].muxed_conn

    async def open(self, protocol: str) -> LibP2PSubstream:
        # It fails at once at its own limit of 256 channels, which only the remote closes.
        while len(self._muxed._streams) >= OPEN_AT_ONCE:
            await trio.sleep(POLL_S)
        return LibP2PSubstream(await self._host.new_stream(self._peer, [protocol]))

    async def identify(self) -> None:
        """The result of the exchange that py-libp2p starts by itself, from its peer store."""
        store = self._host.get_peerstore()
        with trio.move_on_after(IDENTIFY_S):
            while not store.get_protocols(self._peer):
                await trio.sleep(POLL_S)
        listed = store.get_protocols(self._peer)
        if missing := [protocol for protocol in protocols.ALL if protocol not in listed]:
            raise SubstreamBroken(f"identify lacks {', '.join(missing)}")
        # py-libp2p keeps the key and the protocols, no agent.
        if store.pubkey(self._peer) is None:
            raise SubstreamBroken("identify had no key")

    async def ping(self, count: int) -> None:
        times = await PingService(self._host).ping(self._peer, ping_amt=count)
        if len(times) != count:
            raise SubstreamBroken(f"{len(times)} pongs of {count}")

    async def idle(self) -> None:
        while self._muxed._streams:
            await trio.sleep(POLL_S)

    async def ended(self) -> None:
        while not self._muxed.is_closed:
            await trio.sleep(POLL_S)

    async def close(self) -> None:
        await self._host.disconnect(self._peer)


class LibP2PPeer:
    def __init__(self, host: IHost) -> None:
        self._host = host

    async def dial(self, address: str) -> LibP2PConnection:
        info = info_from_p2p_addr(Multiaddr(address))
        await self._host.connect(info)
        return LibP2PConnection(self._host, info.peer_id)

    async def listen(self, address: str) -> str:
        if not await self._host.get_network().listen(Multiaddr(address)):
            raise OSError(f"py-libp2p does not listen on {address}")
        return str(self._host.get_addrs()[0])


@asynccontextmanager
async def running(version: int, responders: Responders) -> AsyncIterator[LibP2PPeer]:
    """A host whose dialler uses `version`; a listener accepts both."""
    key = create_new_key_pair()
    config = WebRTCTransportConfig(webrtc_direct_dial_version=version)
    host = new_host(key_pair=key, transports=[WebRTCDirectTransport(key.private_key, config)])
    for protocol in protocols.ALL:
        host.set_stream_handler(protocol, _handler(protocol, responders))
    async with host.run(listen_addrs=[]):
        yield LibP2PPeer(host)


def _handler(protocol: str, responders: Responders):
    async def handle(stream: INetStream) -> None:
        await responders.serve(LibP2PSubstream(stream), protocol, stream.muxed_conn)

    return handle
