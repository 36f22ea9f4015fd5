"""A known script of connections in a network namespace of its own; run as a program.

``traffic.py CONNECTIONS HOST MODE`` prints its namespace's inode and listening port, waits for a line on
standard input, makes the connections, prints ``done``, and waits for another line before it ends.

``once``: the client closes first, the server reads EOF and closes. ``orphan``: the client closes and the
server never does. ``half``: the client shuts down its sending side and keeps the socket. ``refused``: to a
port where nobody listens.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys


def main() -> None:
    count, host, mode = int(sys.argv[1]), sys.argv[2], sys.argv[3]
    os.unshare(0x40000000) if hasattr(os, "unshare") else _unshare()
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    server = socket.create_server((host, 0), backlog=128)
    port = server.getsockname()[1]
    print(os.stat("/proc/thread-self/ns/net").st_ino, port, flush=True)
    sys.stdin.readline()
    kept: list[socket.socket] = []
    for _ in range(count):
        if mode == "refused":
            try:
                socket.create_connection((host, 1), source_address=(host, 0)).close()
            except ConnectionRefusedError:
                continue
            raise SystemExit("port 1 answered")
        client = socket.create_connection((host, port), source_address=(host, 0))
        accepted, _ = server.accept()
        if mode == "half":
            client.shutdown(socket.SHUT_WR)
            kept += [client, accepted]
        else:
            client.close()
        while accepted.recv(100):
            pass
        if mode == "once":
            accepted.close()
        else:
            kept.append(accepted)
    print("done", flush=True)
    sys.stdin.readline()


def _unshare() -> None:
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(0x40000000) != 0:
        print(os.strerror(ctypes.get_errno()), file=sys.stderr)
        raise SystemExit(77)


if __name__ == "__main__":
    main()
