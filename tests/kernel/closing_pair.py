"""One connection in a network namespace of its own, closed step by step; run as a program.

Prints the namespace's inode and both endpoints; then does one step for each line on standard input:
``shutdown`` (client), ``data N`` (server sends), ``close-server``, ``close-client``, ``reset`` (client).
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import subprocess
import sys


def main() -> None:
    if ctypes.CDLL(None, use_errno=True).unshare(0x40000000) != 0:
        raise SystemExit(77)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    host = sys.argv[1]
    server = socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    client = socket.create_connection(server.getsockname()[:2])
    accepted, _ = server.accept()
    ends = [
        f"[{s[0]}]:{s[1]}" if ":" in s[0] else f"{s[0]}:{s[1]}"
        for s in (client.getsockname(), server.getsockname())
    ]
    print(os.stat("/proc/thread-self/ns/net").st_ino, *ends, flush=True)
    for line in sys.stdin:
        word, _, number = line.strip().partition(" ")
        if word == "shutdown":
            client.shutdown(socket.SHUT_WR)
        elif word == "data":
            accepted.sendall(bytes(int(number)))
            left = int(number)
            while left:
                left -= len(client.recv(left))
        elif word == "close-server":
            accepted.close()
        elif word == "close-client":
            client.close()
        elif word == "reset":
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.close()
        print("did", word, flush=True)


if __name__ == "__main__":
    main()
