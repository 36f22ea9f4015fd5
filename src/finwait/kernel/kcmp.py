"""Whether two tasks share one descriptor table, or two descriptors mean one open file: kcmp(2).

clone(CLONE_FILES) without CLONE_THREAD makes two processes whose descriptors are the same ones: what one closes is
closed in both. /proc shows them like copies. In the same way it does not tell whether two descriptors of epoll
instances are copies of one, nor which instance another one watches, once its number has changed. The number of the
system call differs between architectures; where it is not known here, or the kernel was built without CONFIG_KCMP,
nothing is told.
"""

from __future__ import annotations

import ctypes
import platform
import struct
from collections.abc import Iterable
from typing import Final

__all__ = ["file_order", "one_table", "order", "watches"]

_NUMBER: Final = {
    "x86_64": 312, "aarch64": 272, "riscv64": 272, "loongarch64": 272, "ppc64le": 354, "ppc64": 354, "s390x": 343,
    "i386": 349, "i686": 349, "armv7l": 378, "armv6l": 378,
}.get(platform.machine(), -1)  # fmt: skip
"""Of the system call: older than the unified table."""
_KCMP_FILE: Final = 0
_KCMP_FILES: Final = 2
_KCMP_EPOLL_TFD: Final = 7
_libc = ctypes.CDLL(None, use_errno=True)


def order(task: int, other: int) -> int | None:
    """Return how the descriptor tables of two tasks compare (0: it is one); None where the kernel does not tell."""
    return _asked(task, other, _KCMP_FILES, 0, 0)


def file_order(task: int, fd: int, other: int, other_fd: int) -> int | None:
    """Return how the open files of two descriptors compare (0: it is one); None where that cannot be told."""
    return _asked(task, other, _KCMP_FILE, fd, other_fd)


def watches(task: int, epoll_fd: int, registration: tuple[int, int], fd: int) -> bool | None:
    """Return whether an epoll instance watches the open file of a descriptor; None where that cannot be told.

    Args:
        task: whose descriptors both are.
        epoll_fd: of the instance.
        registration: the number as registered, and how many registrations of that number are before it.
        fd: what it may be.
    """
    slot = ctypes.create_string_buffer(struct.pack("=III", epoll_fd, *registration), 12)
    answer = _asked(task, task, _KCMP_EPOLL_TFD, fd, ctypes.addressof(slot))
    return None if answer is None else answer == 0


def _asked(task: int, other: int, kind: int, first: int, second: int) -> int | None:
    if _NUMBER < 0:
        return None
    answer = int(_libc.syscall(_NUMBER, task, other, kind, ctypes.c_ulong(first), ctypes.c_ulong(second)))
    return answer if answer in (0, 1, 2) else None


def one_table(pairs: Iterable[tuple[int, int]]) -> dict[tuple[int, int], bool]:
    """Return for each pair of pids whether they share one descriptor table; without what cannot be told."""
    orders = {pair: order(*pair) for pair in pairs}
    return {pair: answer == 0 for pair, answer in orders.items() if answer is not None}
