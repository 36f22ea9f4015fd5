"""A program that leaks connections, run as one.

Each line ``N`` on standard input leaks N, ``close`` closes them, ``talk`` sends a byte from each server to its client,
``again`` disconnects each client and connects and leaks it again, from the same port.

The client side shuts down and is never closed; the server side never reads the end. Prints a line when it is done.
"""

from __future__ import annotations

import ctypes
import os
import socket
import sys


def disconnect(sock: socket.socket) -> None:
    """connect(2) to an address of AF_UNSPEC."""
    if ctypes.CDLL(None, use_errno=True).connect(sock.fileno(), bytes(16), 16) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def main() -> None:
    server = socket.create_server(("127.0.0.1", 0), backlog=512)
    kept: list[socket.socket] = []
    print(server.getsockname()[1], flush=True)
    for line in sys.stdin:
        if line.strip() == "close":
            for sock in kept:
                sock.close()
            kept.clear()
        elif line.strip() == "talk":
            for accepted in kept[1::2]:
                accepted.send(b"x")
        elif line.strip() == "again":
            for k in range(0, len(kept), 2):
                disconnect(kept[k])
                kept[k].connect(server.getsockname())
                kept[k + 1].close()
                kept[k + 1], _ = server.accept()
                kept[k].shutdown(socket.SHUT_WR)
        else:
            for _ in range(int(line)):
                with socket.socket() as chosen:
                    chosen.bind(("127.0.0.1", 0))
                    port = chosen.getsockname()[1]
                client = socket.socket()
                client.bind(("127.0.0.1", port))  # only a port that was asked for outlives a disconnect
                client.connect(server.getsockname())
                accepted, _ = server.accept()
                client.shutdown(socket.SHUT_WR)
                kept += [client, accepted]
        print("done", flush=True)


if __name__ == "__main__":
    main()
