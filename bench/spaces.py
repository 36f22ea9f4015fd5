"""Many network namespaces, each with a few sockets, held by one process's descriptors alone.

That is the hardest kind to find: no process is in them and nothing is mounted.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import socket
import struct
import subprocess
import sys
from typing import Self

__all__ = ["Namespaces"]

CLONE_NEWNET = 0x40000000
PR_SET_PDEATHSIG = 1
SIOCSIFFLAGS = 0x8914
IFF_UP = 1


class Namespaces:
    """``count`` namespaces with a listener and ``pairs`` connections each; gone on leaving.

    The connections of every ``stuck_every``-th namespace are half-closed, the others ESTABLISHED.
    """

    def __init__(self, count: int, pairs: int = 2, stuck_every: int = 50) -> None:
        self.count, self.pairs, self.stuck_every = count, pairs, stuck_every
        self.pid = 0

    def __enter__(self) -> Self:
        self._child = subprocess.Popen(
            [sys.executable, "-m", "bench.spaces", str(self.count), str(self.pairs), str(self.stuck_every)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=os.path.dirname(os.path.dirname(os.path.abspath(__file__))),
        )
        assert self._child.stdout is not None
        if self._child.stdout.readline().strip() != "ready":
            self._child.kill()
            self._child.wait()
            raise RuntimeError(f"{self.count} network namespaces could not be made: is this root?")
        self.pid = self._child.pid
        return self

    def __exit__(self, *_: object) -> None:
        self._child.communicate("")


def main() -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    parent = os.getppid()
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        return 1
    home = os.open("/proc/self/ns/net", os.O_RDONLY)
    kept: list[object] = []
    count, pairs, stuck_every = (int(word) for word in sys.argv[1:4])
    for number in range(count):
        if libc.unshare(CLONE_NEWNET):
            return 1
        kept.append(os.open("/proc/thread-self/ns/net", os.O_RDONLY))
        with socket.socket() as control:
            fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", IFF_UP))
        listener = socket.create_server(("127.0.0.1", 8080))
        kept.append(listener)
        for _ in range(pairs):
            client = socket.create_connection(listener.getsockname())
            if number % stuck_every == 0:
                client.shutdown(socket.SHUT_WR)
            kept += [client, listener.accept()[0]]
    if libc.setns(home, CLONE_NEWNET):
        return 1
    print("ready", flush=True)
    sys.stdin.read()
    return 0 if kept else 1


if __name__ == "__main__":
    raise SystemExit(main())
