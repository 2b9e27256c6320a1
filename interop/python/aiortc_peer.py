"""aiortc as a peer, with webrtc-direct on top: README.md has the command line."""

from interop import command
from interop.responders import Responders
from rawaiortc.connection import AiortcPeer

# aiortc has no layer above data channels.
ABSENT = frozenset({"identify", "ping"})


async def main(options: command.Options) -> int:
    responders = Responders()
    return await command.run(options, AiortcPeer(options.version, responders), responders)


if __name__ == "__main__":
    command.exit_with(main, command.parse(ABSENT, can_listen=False), "asyncio")
