#!/usr/bin/env python3
"""A flow over the kernel's TCP with a chosen congestion control.

    tcp_flow.py serve HOST PORT
    tcp_flow.py dial HOST PORT CONGESTION (--bytes N [--repeat R] | --seconds S [--down])

Prints a line of JSON for the listener and for each transfer. With --down the server sends.
"""

import argparse
import json
import socket
import struct
import threading
import time

CHUNK = 256 << 10
PAUSE_S = 0.2
# Direction, and the name of the congestion control.
HEADER = struct.Struct("!?15s")


def set_congestion(connection: socket.socket, name: bytes) -> None:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, name)


def read(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = connection.recv(size - len(data))
        if not part:
            raise SystemExit("the peer closed")
        data += part
    return data


def send_until(connection: socket.socket, end: float) -> None:
    chunk = bytes(CHUNK)
    connection.settimeout(1)
    while time.monotonic() < end:
        try:
            connection.send(chunk)
        except TimeoutError:
            # The path may be down for a while.
            continue


def serve_one(connection: socket.socket) -> None:
    try:
        is_down, congestion = HEADER.unpack(read(connection, HEADER.size))
        if is_down:
            set_congestion(connection, congestion.rstrip(b"\0"))
            send_until(connection, float("inf"))
        count = 0
        while data := connection.recv(CHUNK):
            count += len(data)
        connection.sendall(struct.pack("!Q", count))
    except (ConnectionError, SystemExit):
        # Transfers that are limited by time end like this.
        pass
    finally:
        connection.close()


def serve(host: str, port: int) -> None:
    listener = socket.create_server((host, port))
    print(json.dumps({"listen": f"{host}:{port}"}), flush=True)
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=serve_one, args=(connection,), daemon=True).start()


def transfer(connection: socket.socket, args: argparse.Namespace) -> None:
    connection.sendall(HEADER.pack(args.down, args.congestion.encode()))
    if args.bytes is not None:
        connection.sendall(bytes(args.bytes))
        connection.shutdown(socket.SHUT_WR)
        (count,) = struct.unpack("!Q", read(connection, 8))
        if count != args.bytes:
            raise SystemExit(f"the peer has {count} bytes")
        return
    end = time.monotonic() + args.seconds
    if not args.down:
        send_until(connection, end)
        return
    while (left := end - time.monotonic()) > 0:
        connection.settimeout(left)
        try:
            if not connection.recv(CHUNK):
                raise SystemExit("the peer closed")
        except TimeoutError:
            break


def dial(args: argparse.Namespace) -> None:
    for number in range(args.repeat):
        if number > 0:
            time.sleep(PAUSE_S)
        with socket.socket() as connection:
            set_congestion(connection, args.congestion.encode())
            start = time.monotonic()
            connection.connect((args.host, args.port))
            connected = time.monotonic()
            transfer(connection, args)
            end = time.monotonic()
        line = {"connect_ms": round((connected - start) * 1e3, 1)}
        print(json.dumps(line | {"seconds": round(end - connected, 4)}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("serve", "dial"):
        command = commands.add_parser(name)
        command.add_argument("host")
        command.add_argument("port", type=int)
    command.add_argument("congestion")
    command.add_argument("--repeat", type=int, default=1)
    command.add_argument("--down", action="store_true")
    amount = command.add_mutually_exclusive_group(required=True)
    amount.add_argument("--bytes", type=int)
    amount.add_argument("--seconds", type=float)
    args = parser.parse_args()
    if args.command == "serve":
        serve(args.host, args.port)
    else:
        dial(args)


if __name__ == "__main__":
    main()
