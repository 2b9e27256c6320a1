#!/usr/bin/env python3
"""Round trips of small UDP datagrams.

    udp_echo.py serve HOST PORT
    udp_echo.py dial HOST PORT COUNT INTERVAL_MS

Prints a line of JSON for the listener, and one with the percentiles of the round trips.
"""

import json
import socket
import struct
import sys
import time

TIMEOUT_S = 2


def serve(host: str, port: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listener:
        listener.bind((host, port))
        print(json.dumps({"listen": f"{host}:{port}"}), flush=True)
        while True:
            data, sender = listener.recvfrom(2048)
            listener.sendto(data, sender)


def dial(host: str, port: int, count: int, interval_s: float) -> None:
    trips = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as connection:
        connection.connect((host, port))
        connection.settimeout(TIMEOUT_S)
        for _ in range(count):
            start = time.monotonic_ns()
            connection.send(struct.pack("!Q", start))
            while struct.unpack("!Q", connection.recv(2048)) != (start,):
                pass
            trips.append((time.monotonic_ns() - start) / 1e6)
            time.sleep(interval_s)
    trips.sort()
    names = {"min": 0, "p50": 0.5, "p95": 0.95, "p99": 0.99, "max": 1}
    line = {
        f"{name}_ms": round(trips[min(count - 1, int(count * share))], 3)
        for name, share in names.items()
    }
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["serve", host, port]:
            serve(host, int(port))
        case ["dial", host, port, count, interval_ms]:
            dial(host, int(port), int(count), float(interval_ms) / 1e3)
        case _:
            raise SystemExit(__doc__)
