"""What the event loops of a process watch, and which of their descriptors mean the same instance.

``/proc/PID/fdinfo/FD`` of an epoll descriptor lists its registrations, each under the number that the descriptor had
when it was made. A socket is known by its inode all the same; an epoll instance is not, for all anonymous files share
one. Which instance another one watches, and whether two descriptors are copies of one, only ``kcmp(2)`` tells.

What this cannot see: instances of processes that we may not look into, and those that nobody but a thread with a
descriptor table of its own has.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Final

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from finwait.errors import DecodeError
from finwait.kernel import kcmp
from finwait.uapi import eventpoll
from finwait.uapi.eventpoll import READING, Registrations
from finwait.uapi.observation import LoopWatch
from finwait.uapi.sets import distinct, within

__all__ = ["EventLoops", "foreign"]

MOST_REGISTRATIONS: Final = 64 << 20
"""Bytes of fdinfo of epoll instances that are read at most, of one process: half a million registrations."""
MOST_FOREIGN: Final = 8_192
"""Event loops of processes that hold none of the sockets that are looked into at most."""
MOST_FOREIGN_BYTES: Final = 16 << 20
_MOST_COMPARED: Final = 20_000
"""Files that are compared at most for one process: a microsecond each."""
_WATCHED: Final = "read what its event loops watch"


class EventLoops:
    """The epoll instances of one process.

    Args:
        task: a thread of it that goes on.
        fds: all of its descriptors of epoll instances.
        miss: is comparable what could not be read, and the capability that would help.
    """

    def __init__(self, task: int, fds: Sequence[int], miss: Callable[[str, str], None]) -> None:
        self._task = task
        self._miss = miss
        self._groups, self._told = _instances(task, sorted(fds))

    def watched(self, inodes: NDArray[np.int64], numbers: NDArray[np.int64]) -> list[LoopWatch]:
        """Return what they watch, of what is asked for.

        Args:
            inodes: of the sockets that are asked for.
            numbers: descriptors of such sockets, for kernels that do not tell inodes.
        """
        result = []
        ordered = np.sort(inodes)
        remaining = MOST_REGISTRATIONS
        for first, *also in self._groups:
            data = self._info(first, remaining)
            if data is None:
                continue
            if len(data) >= remaining:
                self._miss(f"{_WATCHED}: that is too much", "")
                break
            remaining -= len(data)
            try:
                registrations = eventpoll.parse(data)
            except DecodeError as error:
                self._miss(f"read what its event loop (descriptor {first}) watches: {error}", "")
                continue
            matching = within(registrations.inode, ordered)
            matching |= (registrations.inode < 0) & np.isin(registrations.fd, numbers)
            inner = self._inner(first, registrations)
            columns = (
                registrations.fd[matching],
                registrations.events[matching],
                registrations.inode[matching],
            )
            keep = sorted([*zip(*(column.tolist() for column in columns), strict=True), *inner.found])
            apart = self._told and inner.complete
            result.append(LoopWatch(first, len(registrations), tuple(keep), True, tuple(also), apart))
        if not all(loop.apart for loop in result):  # one of them may be part of any other
            result = [_not_apart(loop) for loop in result]
        return result

    def _inner(self, fd: int, registrations: Registrations) -> _Inner:
        """Return which other instances of the process an instance watches."""
        others = [group[0] for group in self._groups if group[0] != fd]
        if not others:
            return _Inner((), True)
        numbers = np.array([number for group in self._groups for number in group], np.int64)
        anonymous = _inode(self._task, fd)
        candidates = np.flatnonzero(
            registrations.inode == anonymous if anonymous is not None else np.isin(registrations.fd, numbers)
        )
        unnamed = np.flatnonzero((registrations.inode < 0) & np.isin(registrations.fd, numbers))
        candidates = distinct(np.append(candidates, unnamed))
        if len(candidates) * len(others) > _MOST_COMPARED:
            return _Inner(self._by_number(registrations, candidates), False)
        inner: list[tuple[int, int, int]] = []
        complete = True
        for at in candidates.tolist():
            number = int(registrations.fd[at])
            before = int((registrations.fd[:at] == number).sum())
            answers = {other: kcmp.watches(self._task, fd, (number, before), other) for other in others}
            if None in answers.values():
                complete = False
                inner += self._by_number(registrations, np.array([at]))
                continue
            row = int(registrations.events[at]), int(registrations.inode[at])
            inner += [(other, *row) for other, same in answers.items() if same]
        return _Inner(tuple(inner), complete)

    def _by_number(
        self, registrations: Registrations, candidates: NDArray[np.int64]
    ) -> tuple[tuple[int, int, int], ...]:
        """Return what candidates are if their numbers still mean what they did."""
        first_of = {number: group[0] for group in self._groups for number in group}
        return tuple(
            (first_of[number], int(registrations.events[at]), int(registrations.inode[at]))
            for at in candidates.tolist()
            if (number := int(registrations.fd[at])) in first_of
        )

    def _info(self, fd: int, limit: int) -> bytes | None:
        """Return the fdinfo of one of its descriptors; None where there is none (any more), or we may not read it."""
        try:
            return _read(f"/proc/{self._task}/fdinfo/{fd}", limit)
        except PermissionError:
            self._miss(_WATCHED, "CAP_SYS_PTRACE")
        except OSError:
            # Closed since it was listed, or its process ends just now.
            self._miss(f"{_WATCHED}: one was closed meanwhile", "")
        return None

    def shared(self, loops: Sequence[LoopWatch], others: Collection[tuple[int, int]]) -> list[LoopWatch]:
        """Return the instances, with those that another process may have, too, said not to be apart.

        Args:
            loops: those of which it matters who sleeps in them.
            others: ``(pid, fd)`` of the epoll instances of other processes.
        """
        if len(loops) * len(others) > _MOST_COMPARED:
            return [_not_apart(loop) for loop in loops]
        return [_not_apart(loop) if self._shared(loop.fd, others) else loop for loop in loops]

    def _shared(self, fd: int, others: Collection[tuple[int, int]]) -> bool:
        """Return whether another process has an instance, too, or may have."""
        for pid, other in others:
            answer = kcmp.file_order(self._task, fd, pid, other)
            if answer == 0 or (answer is None and not _gone(pid, other)):
                return True
        return False


def _gone(pid: int, fd: int) -> bool:
    """Return whether a descriptor was closed, or its process ended, since it was listed."""
    try:
        os.readlink(f"/proc/{pid}/fd/{fd}")
    except (FileNotFoundError, ProcessLookupError):
        return True
    except OSError:
        return False
    return False


class _Inner(Struct, frozen=True):
    """What an instance watches of other instances."""

    found: tuple[tuple[int, int, int], ...]
    """Its descriptor now, EPOLL bits, inode."""
    complete: bool


def _not_apart(loop: LoopWatch) -> LoopWatch:
    return LoopWatch(loop.fd, loop.total, loop.watched, loop.steady, loop.also, False)


def _instances(task: int, fds: Sequence[int]) -> tuple[list[list[int]], bool]:
    """Return descriptors grouped by instance, the lowest first; and whether all could be compared."""
    groups: list[list[int]] = []
    ordered: list[list[int]] = []
    comparable = True
    for fd in fds:
        low, high = 0, len(ordered)
        group: list[int] | None = None
        while low < high and group is None:
            middle = (low + high) // 2
            answer = kcmp.file_order(task, fd, task, ordered[middle][0])
            if answer is None:
                comparable = False
                break
            if answer == 0:
                group = ordered[middle]
            elif answer == 1:
                high = middle
            else:
                low = middle + 1
        if group is not None:
            group.append(fd)
            continue
        groups.append([fd])
        if low == high:
            ordered.insert(low, groups[-1])
    return groups, comparable


def _inode(task: int, fd: int) -> int | None:
    try:
        return os.stat(f"/proc/{task}/fd/{fd}").st_ino
    except OSError:
        return None


def _read(path: str, limit: int) -> bytes:
    parts, remaining = [], limit
    with open(path, "rb", buffering=0) as file:
        while remaining > 0 and (data := file.read(min(remaining, 1 << 20))):
            parts.append(data)
            remaining -= len(data)
    return b"".join(parts)


def foreign(loops: Iterable[tuple[int, int]], inodes: NDArray[np.int64]) -> tuple[set[tuple[int, int]], bool]:
    """Return which sockets event loops of some processes watch for reading, and whether all loops were read.

    Args:
        loops: ``(pid, fd)`` of epoll instances.
        inodes: of the sockets that are asked for.

    Returns:
        ``(inode, pid)``.
    """
    watched: set[tuple[int, int]] = set()
    ordered = np.sort(inodes)
    remaining = MOST_FOREIGN_BYTES
    for count, (pid, fd) in enumerate(loops):
        if count >= MOST_FOREIGN or remaining <= 0:
            return watched, False
        try:
            data = _read(f"/proc/{pid}/fdinfo/{fd}", remaining)
            registrations = eventpoll.parse(data)
        except (OSError, DecodeError):
            continue  # it has ended; what we may not look into is said elsewhere
        remaining -= len(data)
        matching = within(registrations.inode, ordered) & (registrations.events & READING != 0)
        watched.update((inode, pid) for inode in registrations.inode[matching].tolist())
    return watched, remaining > 0
