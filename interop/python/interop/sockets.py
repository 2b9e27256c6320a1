"""Room in the kernel for what a peer sends at once.

aiortc loses data behind a gap (README.md), and the usual 200 KiB are a gap as soon as 90 datagrams wait
for Python. What it announces as its window fits into this.
"""

import asyncio
import contextlib
import socket

KERNEL_BUFFER = 4 << 20
# Beyond the system's limit, for root. Python has no name for it.
SO_RCVBUFFORCE = 33


def enlarge() -> None:
    """For every datagram socket that asyncio makes from now on."""
    create = asyncio.BaseEventLoop.create_datagram_endpoint

    async def create_enlarged(self, *arguments, **options):
        transport, protocol = await create(self, *arguments, **options)
        made = transport.get_extra_info("socket")
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, KERNEL_BUFFER)
        with contextlib.suppress(PermissionError):
            made.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, KERNEL_BUFFER)
        return transport, protocol

    asyncio.BaseEventLoop.create_datagram_endpoint = create_enlarged
