"""The frames on a data channel: a length, and a message with a flag or a payload."""

from collections.abc import Iterator
from enum import IntEnum

from . import varint

MAX_FRAME = 16_384
# After two lengths of 3 bytes each, and a tag.
MAX_PAYLOAD = MAX_FRAME - 7

FLAG, PAYLOAD = 1, 2


class Flag(IntEnum):
    FIN = 0
    STOP_SENDING = 1
    RESET_STREAM = 2
    FIN_ACK = 3


def flag(value: Flag) -> bytes:
    return _frame(varint.field(FLAG, int(value)))


def payload(data: bytes) -> bytes:
    return _frame(varint.field(PAYLOAD, data))


def _frame(message: bytes) -> bytes:
    return varint.encode(len(message)) + message


class Decoder:
    """Extracts frames from a stream of bytes, however it is cut."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def decode(self, data: bytes) -> Iterator[tuple[bytes, Flag | None]]:
        self._bytes += data
        while (length := varint.decode(self._bytes)) is not None:
            size, begin = length
            if size > MAX_FRAME:
                raise ValueError(f"a frame of {size} bytes")
            if len(self._bytes) < begin + size:
                return
            message = varint.fields(bytes(self._bytes[begin : begin + size]))
            del self._bytes[: begin + size]
            value = message.get(FLAG)
            yield message.get(PAYLOAD, b""), None if value is None else Flag(value)
