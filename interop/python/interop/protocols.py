"""Names and content of the protocols that interop/js/README.md describes."""

ECHO = "/echo/1.0.0"
BENCH = "/bench/1.0.0"
STALL = "/stall/1.0.0"
HALF_CLOSE = "/half-close/1.0.0"
HALF_CLOSE_REMOTE = "/half-close-remote/1.0.0"
HALF_CLOSE_RESULT = "/half-close-result/1.0.0"
RESET_ME = "/reset-me/1.0.0"
RESET_RESULT = "/reset-result/1.0.0"
RESET_YOU = "/reset-you/1.0.0"

ALL = (
    ECHO,
    BENCH,
    STALL,
    HALF_CLOSE,
    HALF_CLOSE_REMOTE,
    HALF_CLOSE_RESULT,
    RESET_ME,
    RESET_RESULT,
    RESET_YOU,
)

HALF_CLOSE_BYTES = 65_536
RESET_ME_BYTES = 1024
NO_RECORD = 2**64 - 1
STALLED = b"S"

# The maximum of one write here.
PIECE = 65_536

_PERIOD = bytes(range(251))


def pattern(length: int) -> bytes:
    """Byte i is i % 251."""
    return (_PERIOD * (length // 251 + 1))[:length]


def number(value: int) -> bytes:
    return value.to_bytes(8, "big")


def right_bytes(got: bytes, length: int) -> int:
    """Number of correct bytes before the end or the first wrong one."""
    expected = pattern(length)
    if got == expected:
        return length
    pairs = zip(got, expected)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(got), length))
