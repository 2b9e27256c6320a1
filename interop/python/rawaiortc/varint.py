"""Unsigned varints, and fields of protobuf messages."""

VARINT, BYTES = 0, 2


def encode(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def decode(data: bytes | bytearray, at: int = 0) -> tuple[int, int] | None:
    """The value and where it ends, or None if it is incomplete."""
    value = 0
    for i in range(at, len(data)):
        value |= (data[i] & 0x7F) << 7 * (i - at)
        if data[i] < 0x80:
            return value, i + 1
    return None


def field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, int):
        return encode(number << 3 | VARINT) + encode(value)
    return encode(number << 3 | BYTES) + encode(len(value)) + value


def fields(message: bytes) -> dict[int, int | bytes]:
    """Every field; of repeated ones, the last."""
    found: dict[int, int | bytes] = {}
    at = 0
    while at < len(message):
        key, at = _whole(message, at)
        value, at = _whole(message, at)
        if key & 7 == BYTES:
            end = at + value
            if end > len(message):
                raise ValueError("a field ends behind its message")
            found[key >> 3], at = message[at:end], end
        elif key & 7 == VARINT:
            found[key >> 3] = value
        else:
            raise ValueError(f"wire type {key & 7}")
    return found


def _whole(message: bytes, at: int) -> tuple[int, int]:
    read = decode(message, at)
    if read is None:
        raise ValueError("a varint without its end")
    return read
