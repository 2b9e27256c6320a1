"""Receive buffers in the kernel that hold a whole window of a peer.

aiortc loses data after a gap (README.md), and the usual 200 KiB cause a gap as soon as 90 datagrams
wait for Python. The window that it announces fits into this.
"""

import asyncio
import contextlib
import socket
import sys
from asyncio.trsock import TransportSocket

KERNEL_BUFFER = 4 << 20
# Exceeds the system's limit, for root. Python has no name for it.
SO_RCVBUFFORCE = 33


def enlarge() -> None:
    """Enlarges the buffer of every datagram socket that asyncio creates from now on.

    Later requests for a size are ignored: aioice makes one for 256 KiB.
    """
    create = asyncio.BaseEventLoop.create_datagram_endpoint
    set_option = TransportSocket.setsockopt

    async def create_enlarged(self, *arguments, **options):
        transport, protocol = await create(self, *arguments, **options)
        made = transport.get_extra_info("socket")
        set_option(made, socket.SOL_SOCKET, socket.SO_RCVBUF, KERNEL_BUFFER)
        with contextlib.suppress(PermissionError):
            set_option(made, socket.SOL_SOCKET, SO_RCVBUFFORCE, KERNEL_BUFFER)
        size = made.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
        if size < KERNEL_BUFFER:
            print(f"the socket buffer has {size} bytes: data may be lost", file=sys.stderr)
        return transport, protocol

    def set_other_option(self, level, option, *value):
        if (level, option) != (socket.SOL_SOCKET, socket.SO_RCVBUF):
            set_option(self, level, option, *value)

    asyncio.BaseEventLoop.create_datagram_endpoint = create_enlarged
    TransportSocket.setsockopt = set_other_option
