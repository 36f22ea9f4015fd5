"""A known load: loopback connections in a private network namespace, spread over processes.

Twelve processes with 9,000 pairs each are 108,000 connections, 216,000 rows and 216,000 descriptors (a
process may have 20,000 at most here). The namespace has no name and no mount: it ends with the processes,
and the processes end with whoever started them (PR_SET_PDEATHSIG), whatever happens.

    with Load(processes=12, pairs=9000, half_closed=54_000) as load:
        ...                     # load.pid is a process in the namespace, load.netns its inode

Half-closed means that the client called ``shutdown(SHUT_WR)``: FIN_WAIT2 on its side, CLOSE_WAIT on the other.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from typing import Self

__all__ = ["Load"]

CLONE_NEWNET = 0x40000000
PR_SET_PDEATHSIG = 1
BATCH = 500
PAIRS_A_PROCESS = 9000


@dataclass
class Load:
    """Loopback connections; made on entering, gone on leaving."""

    processes: int = 12
    pairs: int = PAIRS_A_PROCESS
    half_closed: int = 54_000
    """How many of the connections are half-closed, spread evenly over the processes."""
    _child: subprocess.Popen[str] | None = field(default=None, init=False)
    pid: int = field(default=0, init=False)
    netns: int = field(default=0, init=False)

    def __enter__(self) -> Self:
        numbers = [str(n) for n in (self.processes, self.pairs, self.half_closed)]
        self._child = subprocess.Popen(
            [sys.executable, "-m", "bench.load", *numbers],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=os.path.dirname(os.path.dirname(os.path.abspath(__file__))),
        )
        assert self._child.stdout is not None
        line = self._child.stdout.readline().split()
        if line[:1] != ["ready"]:
            self.__exit__()
            raise RuntimeError("the load could not be made: is this root, with 20,000 descriptors a process?")
        self.pid = self._child.pid
        self.netns = os.stat(f"/proc/{self.pid}/ns/net").st_ino
        return self

    def __exit__(self, *_: object) -> None:
        child = self._child
        if child is None:
            return
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.close()
        child.wait()
        child.stdout.close()
        self._child = None
        namespace_is_gone(self.netns)

    def inside(self, *command: str) -> list[str]:
        """Return a command line that runs a command in the namespace."""
        return ["nsenter", f"--net=/proc/{self.pid}/ns/net", *command]


def namespace_is_gone(inode: int) -> None:
    """Wait until no process is left in a namespace (its sockets are then being freed)."""
    deadline = time.monotonic() + 60
    while inode and time.monotonic() < deadline:
        held = False
        for name in filter(str.isdigit, os.listdir("/proc")):
            try:
                held = held or os.stat(f"/proc/{name}/ns/net").st_ino == inode
            except OSError:
                continue
        if not held:
            return
        time.sleep(0.05)


def _die_with_parent(parent: int) -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died before we asked
        os._exit(1)


def _worker(number: int, pairs: int, half_closed: int) -> list[socket.socket]:
    """Make the pairs of one process; return every socket, so that they stay open."""
    listener = socket.create_server((f"127.0.{1 + number}.1", 9000), backlog=BATCH + 16)
    kept: list[socket.socket] = [listener]
    done = 0
    for begin in range(0, pairs, BATCH):
        clients = []
        for _ in range(min(BATCH, pairs - begin)):
            client = socket.socket()
            client.connect(listener.getsockname())
            clients.append(client)
        kept += clients
        for _ in clients:
            kept.append(listener.accept()[0])
        for client in clients:
            if done < half_closed:
                client.shutdown(socket.SHUT_WR)
                done += 1
    kept.remove(listener)
    listener.close()
    return kept


def _count(state: str) -> int:
    """Count rows of /proc/net/tcp in a state (hexadecimal, as the file has it)."""
    with open("/proc/net/tcp", encoding="ascii") as file:
        return sum(line.split(None, 4)[3] == state for line in file)


def main() -> int:
    parent = os.getppid()
    _die_with_parent(parent)
    processes, pairs, half_closed = (int(word) for word in sys.argv[1:4])
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET):
        return 1
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    for name, value in (("ip_local_port_range", "1024 65000"), ("tcp_syncookies", "0")):
        with open(f"/proc/sys/net/ipv4/{name}", "w", encoding="ascii") as file:
            file.write(value)
    me = os.getpid()
    pipes = []
    children = []
    for number in range(processes):
        share = half_closed * (number + 1) // processes - half_closed * number // processes
        told, tell = os.pipe()
        pid = os.fork()
        if pid == 0:
            _die_with_parent(me)
            os.close(told)
            kept = _worker(number, pairs, share)
            os.write(tell, b"1")
            os.close(tell)
            signal.pause()
            os._exit(len(kept) > 0)
        os.close(tell)
        pipes.append(told)
        children.append(pid)
    if any(os.read(told, 1) != b"1" for told in pipes):
        return 1
    if half_closed:  # every FIN has to be acknowledged, which may take a delayed ACK's 40 ms
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and _count("04"):
            time.sleep(0.1)
    print("ready", flush=True)
    sys.stdin.read()
    for pid in children:
        os.kill(pid, signal.SIGKILL)
    for pid in children:
        os.waitpid(pid, 0)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
