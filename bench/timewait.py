"""As many real TIME_WAIT minisockets as can be made in some seconds (each lives for sixty).

with TimeWait(seconds=12) as load:
    ...                     # load.netns is the inode of their namespace
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from typing import Self

from bench.load import CLONE_NEWNET, PR_SET_PDEATHSIG

__all__ = ["TimeWait"]

A_DESTINATION = 20_000


class TimeWait:
    """A private namespace full of TIME_WAIT; they end with it."""

    def __init__(self, for_seconds: float, processes: int = 2) -> None:
        self.for_seconds, self.processes = for_seconds, processes
        self.pid = self.netns = 0

    def __enter__(self) -> Self:
        self._child = subprocess.Popen(
            [sys.executable, "-m", "bench.timewait", str(self.for_seconds), str(self.processes)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=os.path.dirname(os.path.dirname(os.path.abspath(__file__))),
        )
        assert self._child.stdout is not None
        if self._child.stdout.readline().strip() != "ready":
            self._child.kill()
            self._child.wait()
            raise RuntimeError("the namespace could not be made: is this root?")
        self.pid = self._child.pid
        self.netns = os.stat(f"/proc/{self.pid}/ns/net").st_ino
        return self

    def __exit__(self, *_: object) -> None:
        self._child.communicate("")


def _closing(number: int, end: float) -> None:
    listener = socket.create_server(("0.0.0.0", 9000 + number))
    made = 0
    while time.monotonic() < end:
        to = made // A_DESTINATION
        client = socket.socket()
        client.connect((f"127.{1 + number}.{to // 250}.{1 + to % 250}", 9000 + number))
        server = listener.accept()[0]
        client.close()
        server.close()
        made += 1


def main() -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    parent = os.getppid()
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent or libc.unshare(CLONE_NEWNET):
        return 1
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    for name, value in (("ip_local_port_range", "10000 65000"), ("tcp_max_tw_buckets", "4000000")):
        with open(f"/proc/sys/net/ipv4/{name}", "w", encoding="ascii") as file:
            file.write(value)
    end = time.monotonic() + float(sys.argv[1])
    children = []
    for number in range(int(sys.argv[2])):
        pid = os.fork()
        if pid == 0:
            _closing(number, end)
            os._exit(0)
        children.append(pid)
    failed = any(os.waitpid(pid, 0)[1] for pid in children)
    if failed:
        return 1
    print("ready", flush=True)
    sys.stdin.read()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
