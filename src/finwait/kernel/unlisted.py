"""Ways to wait for a socket of which no file lists what they wait for.

An io_uring may go on without any descriptor (IORING_REGISTER_RING_FDS, then close()), and libaio never has one; both
leave a mapping that ``/proc/PID/maps`` names. A socket with O_ASYNC sends a signal of any number (F_SETSIG), which a
handler, sigwait() or a signalfd takes, in its own process or in another (F_SETOWN): only the flag on the socket tells.

What this cannot see: an io_uring without a descriptor whose rings are memory of the program (IORING_SETUP_NO_MMAP),
while no thread is in ``io_uring_enter``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Final

from finwait.errors import DecodeError
from finwait.kernel.procfs import read
from finwait.uapi.proc import parse_status

__all__ = ["ALWAYS_FLAGS", "MOST_FLAGS", "asynchronous", "mappings", "only_ordinary_signals"]

MOST_MAPS: Final = 8 << 20
"""Bytes of one memory map that are read at most: about 80,000 mappings."""
ALWAYS_FLAGS: Final = 2_000
"""Sockets of which is read in any case whether they send signals, in one look: 11 µs each."""
MOST_FLAGS: Final = 20_000
"""… and at most, where a program handles, blocks or awaits signals that programs use in this way."""
_ORDINARY: Final = frozenset((*range(1, 10), 11, *range(13, 23), *range(24, 29), *range(30, 34)))
"""All but SIGUSR1, SIGUSR2, SIGURG, SIGIO and the real-time ones: nobody lets sockets send SIGTERM or SIGCHLD."""
_MOST_THREADS: Final = 64
_NAMES: Final = ((b"anon_inode:[io_uring]", "io_uring"), (b" /[aio]", "aio"))
_O_ASYNC: Final = 0o20000
_FLAGS: Final = re.compile(rb"^flags:\s*([0-7]{1,20})$", re.MULTILINE)


def mappings(task: int) -> tuple[str, ...]:
    """Return which ways to wait the memory of a program shows: words of `UNLISTED`.

    Args:
        task: a thread of it that goes on.
    """
    data = read(f"/proc/{task}/maps", MOST_MAPS)
    if not data or len(data) >= MOST_MAPS:
        return ("maps",)
    return tuple(word for name, word in _NAMES if name in data)


def only_ordinary_signals(threads: Sequence[int]) -> bool:
    """Return whether threads handle and block only signals that no program lets its sockets send.

    Args:
        threads: all of a process.
    """
    if len(threads) > _MOST_THREADS:
        return False
    for tid in threads:
        try:
            status = parse_status(read(f"/proc/{tid}/status") or b"")
        except DecodeError:
            return False
        if status.signals is None or any(
            status.signals >> n - 1 & 1 for n in range(1, 65) if n not in _ORDINARY
        ):
            return False
    return True


def asynchronous(task: int, fds: Sequence[int]) -> tuple[int, ...]:
    """Return which sockets of a process send a signal when something happens (O_ASYNC)."""
    result = []
    try:
        directory = os.open(f"/proc/{task}/fdinfo", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return tuple(fds)  # what cannot be read may
    try:
        for fd in fds:
            try:
                file = os.open(str(fd), os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
            except OSError:
                continue  # closed since it was listed
            try:
                data = os.read(file, 4096)
            except OSError:
                data = b""
            finally:
                os.close(file)
            if _flags(data) & _O_ASYNC:
                result.append(fd)
    finally:
        os.close(directory)
    return tuple(result)


def _flags(data: bytes) -> int:
    """Return the flags of a descriptor, of tens of thousands; what cannot be told may be set."""
    match = _FLAGS.search(data)
    return _O_ASYNC if match is None else int(match[1], 8)
