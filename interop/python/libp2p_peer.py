"""py-libp2p as a peer: README.md has the command line."""

from interop import command
from interop.responders import Responders
from pylibp2p.host import running


async def main(options: command.Options) -> int:
    responders = Responders()
    async with running(options.version, responders) as peer:
        return await command.run(options, peer, responders)


if __name__ == "__main__":
    command.exit_with(main, command.parse(), "trio")
