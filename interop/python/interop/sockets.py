"""Receive buffers in the kernel that hold a whole window of a peer.

aiortc loses data after a gap (README.md), and the usual 200 KiB cause a gap as soon as 90 datagrams
wait for Python. The window that it announces fits into this.
"""

import asyncio
import contextlib
import socket

KERNEL_BUFFER = 4 << 20
# Exceeds the system's limit, for root. Python has no name for it.
SO_RCVBUFFORCE = 33


def enlarge() -> None:
    """Enlarges the buffer of every datagram socket that asyncio creates from now on."""
    create = asyncio.BaseEventLoop.create_datagram_endpoint

    async def create_enlarged(self, *arguments, **options):
        transport, protocol = await create(self, *arguments, **options)
        made = transport.get_extra_info("socket")
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, KERNEL_BUFFER)
        with contextlib.suppress(PermissionError):
            made.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, KERNEL_BUFFER)
        return transport, protocol

    asyncio.BaseEventLoop.create_datagram_endpoint = create_enlarged
