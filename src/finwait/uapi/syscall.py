"""``/proc/PID/task/TID/syscall``: the system call in which a thread sleeps, with its arguments.

Mirrors fs/proc/base.c, proc_pid_syscall(). The line is ``running``, or ``-1 SP PC`` of a thread that is blocked
outside a system call (a page fault), or the number, six arguments, SP and PC. Numbers are those of the architecture
(arch/x86/entry/syscalls/syscall_64.tbl, include/uapi/asm-generic/unistd.h). What a number means is a row of `CALLS`:
which argument names a descriptor or a set of them, and which one limits the wait.

The one surprise: select(2) and poll(2) leave their sets in the program's memory, so an argument is only an address
there. What is behind it is read by `finwait.kernel.waiting` and decoded by `finwait.uapi.poll`.

This does not know calls of 32-bit programs on a 64-bit kernel, whose numbers are others: `parse` must not be asked
then.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from msgspec import Struct

from finwait.errors import DecodeError

__all__ = ["ARCHITECTURES", "CALLS", "Call", "CallKind", "SleepingIn", "call", "parse"]

CallKind = str
"""``fd`` (waits for a descriptor), ``set`` (for one of several), ``epoll``, ``io_uring`` (io_uring or libaio: what they
wait for no argument tells), ``close`` (of a descriptor), ``restart`` (not known for what), ``other``."""


class Call(Struct, frozen=True):
    """What a system call waits for."""

    name: str
    kind: CallKind = "other"
    fds: tuple[int, ...] = ()
    """Which arguments are descriptors that it waits for."""
    sends: int | None = None
    """Which of them it writes to, of a call that reads from one descriptor and writes to another."""
    timeout: tuple[str, int] | None = None
    """How its wait is limited: ``ms`` (argument *n* is a number, negative for none), ``timespec`` or ``timeval`` (it
    is an address, 0 for none); None where no argument limits it."""


_CALLS: Final = (
    # name, x86_64, aarch64, kind, arguments that are descriptors, limit
    ("read", 0, 63, "fd", (0,), None),
    ("write", 1, 64, "fd", (0,), None),
    ("readv", 19, 65, "fd", (0,), None),
    ("writev", 20, 66, "fd", (0,), None),
    ("recvfrom", 45, 207, "fd", (0,), None),
    ("recvmsg", 47, 212, "fd", (0,), None),
    ("recvmmsg", 299, 243, "fd", (0,), ("timespec", 4)),
    ("sendto", 44, 206, "fd", (0,), None),
    ("sendmsg", 46, 211, "fd", (0,), None),
    ("sendmmsg", 307, 269, "fd", (0,), None),
    ("accept", 43, 202, "fd", (0,), None),
    ("accept4", 288, 242, "fd", (0,), None),
    ("connect", 42, 203, "fd", (0,), None),
    ("preadv2", 327, 286, "fd", (0,), None),
    ("pwritev2", 328, 287, "fd", (0,), None),
    ("splice", 275, 76, "fd", (0, 2), None),
    ("tee", 276, 77, "fd", (0, 1), None),
    ("sendfile", 40, 71, "fd", (0, 1), None),
    ("poll", 7, None, "set", (), ("ms", 2)),
    ("ppoll", 271, 73, "set", (), ("timespec", 2)),
    ("select", 23, None, "set", (), ("timeval", 4)),
    ("pselect6", 270, 72, "set", (), ("timespec", 4)),
    ("epoll_wait", 232, None, "epoll", (0,), ("ms", 3)),
    ("epoll_pwait", 281, 22, "epoll", (0,), ("ms", 3)),
    ("epoll_pwait2", 441, 441, "epoll", (0,), ("timespec", 3)),
    ("io_uring_enter", 426, 426, "io_uring", (0,), None),
    ("io_getevents", 208, 4, "io_uring", (), ("timespec", 4)),
    ("io_pgetevents", 333, 292, "io_uring", (), ("timespec", 4)),
    ("restart_syscall", 219, 128, "restart", (), None),
    ("futex", 202, 98, "other", (), None),
    ("futex_waitv", 449, 449, "other", (), None),
    ("futex_wait", 455, 455, "other", (), None),
    ("nanosleep", 35, 101, "other", (), ("timespec", 0)),
    ("clock_nanosleep", 230, 115, "other", (), None),
    ("wait4", 61, 260, "other", (), None),
    ("waitid", 247, 95, "other", (), None),
    ("pause", 34, None, "other", (), None),
    ("rt_sigsuspend", 130, 133, "other", (), None),
    ("rt_sigtimedwait", 128, 137, "other", (), ("timespec", 2)),
    ("close", 3, 57, "close", (0,), None),
    ("close_range", 436, 436, "other", (), None),
    ("dup2", 33, None, "other", (), None),
    ("dup3", 292, 24, "other", (), None),
    ("shutdown", 48, 210, "fd", (0,), None),
    ("openat", 257, 56, "other", (), None),
    ("open", 2, None, "other", (), None),
    ("flock", 73, 32, "other", (), None),
    ("fcntl", 72, 25, "other", (), None),
    ("ioctl", 16, 29, "other", (), None),
    ("fsync", 74, 82, "other", (), None),
    ("fdatasync", 75, 83, "other", (), None),
    ("sync_file_range", 277, 84, "other", (), None),
    ("semop", 65, 193, "other", (), None),
    ("semtimedop", 220, 192, "other", (), ("timespec", 3)),
    ("msgrcv", 70, 188, "other", (), None),
    ("msgsnd", 69, 189, "other", (), None),
    ("mq_timedreceive", 243, 183, "other", (), None),
    ("sched_yield", 24, 124, "other", (), None),
    ("mmap", 9, 222, "other", (), None),
    ("munmap", 11, 215, "other", (), None),
    ("madvise", 28, 233, "other", (), None),
    ("vfork", 58, None, "other", (), None),
    ("clone", 56, 220, "other", (), None),
    ("getrandom", 318, 278, "other", (), None),
    ("execve", 59, 221, "other", (), None),
    ("execveat", 322, 281, "other", (), None),
)


_SENDS: Final = {"splice": 2, "tee": 1, "sendfile": 0}


def _table(column: int) -> dict[int, Call]:
    return {
        number: Call(row[0], row[3], row[4], _SENDS.get(row[0]), row[5])
        for row in _CALLS
        if isinstance(number := row[column], int)
    }


CALLS: Final[Mapping[str, Mapping[int, Call]]] = {"x86_64": _table(1), "aarch64": _table(2)}
"""Architecture, as ``uname -m`` has it → number → call."""
ARCHITECTURES: Final = frozenset(CALLS)
_X32: Final = 1 << 30
"""__X32_SYSCALL_BIT: numbers of the x32 ABI, whose memory is laid out in another way."""


_WORD: Final = rb"(?: 0x[0-9a-f]{1,16})"
_LINE: Final = re.compile(
    rb"(?:running|-1%b{2}|(?P<number>[0-9]{1,10})(?P<args>%b{6})%b{2})\n?" % (_WORD, _WORD, _WORD)
)


class SleepingIn(Struct, frozen=True):
    """A system call that a thread is in."""

    number: int
    args: tuple[int, int, int, int, int, int]


def parse(line: bytes) -> SleepingIn | None:
    """Decode the line; None where the thread is running, or blocked outside any system call.

    Raises:
        DecodeError: it is not such a line.
    """
    match = _LINE.fullmatch(line)
    if match is None:
        raise DecodeError(
            "/proc/PID/task/TID/syscall", 0, line[:16], "it is neither `running` nor a number and addresses"
        )
    if match["number"] is None:
        return None
    a, b, c, d, e, f = (int(word, 16) for word in match["args"].split())
    return SleepingIn(int(match["number"]), (a, b, c, d, e, f))


def call(machine: str, number: int) -> Call | None:
    """Return what a number means on an architecture; None where that is not known.

    Args:
        machine: as ``uname -m`` has it.
        number: of the system call.
    """
    if number & _X32 and machine == "x86_64":
        return None
    return CALLS.get(machine, {}).get(number)
