"""A program that makes it hard to read what its threads wait for; it prints pid, descriptor and inode as JSON.

It is ended by the end of its input.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import platform
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

POLL, SELECT = 7, 23  # of x86_64
PR_SET_NAME = 15


class PollFd(ctypes.Structure):
    """struct pollfd."""

    _fields_ = (("fd", ctypes.c_int), ("events", ctypes.c_short), ("revents", ctypes.c_short))


def main() -> None:
    """Start the threads."""
    if platform.machine() != "x86_64":
        sys.exit("numbers of system calls are those of x86_64")
    libc = ctypes.CDLL(None)
    wanted, other = socket.socketpair()

    def thread(name: bytes, function: Callable[[], object]) -> None:
        def run() -> None:
            libc.prctl(PR_SET_NAME, name, 0, 0, 0)
            function()

        threading.Thread(target=run, daemon=True).start()

    def poll(entries: object, nfds: int = 1) -> Callable[[], object]:
        return lambda: libc.syscall(ctypes.c_long(POLL), entries, ctypes.c_ulong(nfds), ctypes.c_long(-1))

    def entry(fd: int) -> ctypes.Array[PollFd]:
        return (PollFd * 1)(PollFd(fd, 1, 0))

    ways = sys.argv[1:]
    if "garbage" in ways:  # nfds is an unsigned int: the upper half of the register does not count
        thread(b"\x1b[31m\n\x07", poll(entry(wanted.fileno()), 0xDEADBEEF00000001))
    if "huge" in ways:
        words = (ctypes.c_ulong * (1 << 12))(1 << wanted.fileno())
        thread(
            b"huge",
            lambda: libc.syscall(ctypes.c_long(SELECT), ctypes.c_long(0x7FFFFFFF), words, None, None, None),
        )
    page = mmap.mmap(-1, mmap.PAGESIZE)
    if "unmapped" in ways:
        entries = (PollFd * 1).from_buffer(page)
        entries[0] = PollFd(wanted.fileno(), 1, 0)
        address = ctypes.c_void_p(ctypes.addressof(entries))
        thread(b"unmapped", poll(address))
        while not in_poll():
            time.sleep(0.01)
        libc.munmap(address, ctypes.c_ulong(mmap.PAGESIZE))
    changing = entry(other.fileno())
    if "changing" in ways:  # it waits for one thing, and says another each time
        thread(b"changing", poll(changing))
        threading.Thread(target=change, args=(changing,), daemon=True).start()
    print(json.dumps([os.getpid(), wanted.fileno(), os.fstat(wanted.fileno()).st_ino]), flush=True)
    sys.stdin.read()
    os._exit(0)  # the page that is gone must not be unmapped again


def in_poll() -> bool:
    """Return whether a thread of this program sleeps in poll(2)."""
    files = Path("/proc/self/task").glob("*/syscall")
    return any(file.read_text().startswith(f"{POLL} ") for file in files)


def change(entries: ctypes.Array[PollFd]) -> None:
    """Change a set that a thread waits with."""
    for fd in range(1 << 30):
        entries[0].fd = 100 + fd % 50
        time.sleep(0.0005)


if __name__ == "__main__":
    main()
