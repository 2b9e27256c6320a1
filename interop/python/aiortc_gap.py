"""A limit of aiortc, shown with its own code alone: it holds back what comes after a gap.

Prints a line, and exits with 0 if the limit is there.
"""

import sys

from aiortc.rtcsctptransport import (
    SCTP_DATA_FIRST_FRAG,
    SCTP_DATA_LAST_FRAG,
    DataChunk,
    InboundStream,
)

from interop.report import report


def message(tsn: int, number: int) -> DataChunk:
    chunk = DataChunk(SCTP_DATA_FIRST_FRAG | SCTP_DATA_LAST_FRAG)
    chunk.tsn, chunk.stream_seq, chunk.user_data = tsn, number, b"%d" % number
    return chunk


stream = InboundStream()
delivered = []
# Message 0 was lost and comes last. Between 0 and 1 other streams sent messages.
for chunk in (message(20, 1), message(30, 2), message(10, 0)):
    stream.add_chunk(chunk)
    delivered += [int(data) for _, _, data in stream.pop_messages()]
held = [chunk.stream_seq for chunk in stream.reassembly]
is_there = delivered == [0] and held == [1, 2]
report({"case": "gap", "ok": is_there, "delivered": delivered, "held": held})
sys.exit(0 if is_there else 1)
