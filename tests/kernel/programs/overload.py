"""Servers that share an address, each a process, and more clients than they can serve.

    python -m tests.kernel.programs.overload SLOW HUNG

SLOW of them accept a connection every 0.1 s, HUNG of them none. Ends with its standard input.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import time

ADDRESS = ("127.0.0.1", 7300)


def listener() -> socket.socket:
    """Return a listener that shares its address."""
    door = socket.socket()
    door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    door.bind(ADDRESS)
    door.listen(4)
    return door


def serve(hung: bool) -> None:
    """Accept connections one after the other, or none."""
    door = listener()
    while True:
        if hung:
            time.sleep(1)
        else:
            connection, _ = door.accept()
            time.sleep(0.1)
            connection.close()


def ask() -> None:
    """Connect for ever, and wait a while for the end of what is never answered."""
    while True:
        with contextlib.suppress(OSError), socket.socket() as client:
            client.settimeout(1)  # else all of them come to wait for the one that hangs
            client.connect(ADDRESS)
            client.settimeout(60)
            client.recv(1)


def main(slow: int, hung: int) -> None:
    """Start everybody, and wait to be told to end."""
    children = []
    for k in range(slow + hung + 30):
        if not (pid := os.fork()):
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            serve(k >= slow) if k < slow + hung else ask()
        children.append(pid)
    print("ready", flush=True)
    sys.stdin.read()
    for pid in children:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
