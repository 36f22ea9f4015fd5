"""The sets of descriptors that poll(2) and select(2) leave in a program's memory, and the limits of waits.

Mirrors struct pollfd of include/uapi/asm-generic/poll.h, fd_set of include/uapi/linux/posix_types.h (words of the
machine's own size and order), and struct timespec and timeval of 64-bit programs. Any bytes are a valid set: what is
found there is what the program had there when it was read, so nothing here is trusted to be a descriptor.

Reading a program's memory is `finwait.kernel.waiting`'s.
"""

from __future__ import annotations

import sys
from typing import Final

import numpy as np

__all__ = [
    "FD_WORD",
    "POLLIN",
    "POLLOUT",
    "POLLPRI",
    "POLLRDHUP",
    "poll_set",
    "select_sets",
    "timespec_ms",
    "timeval_ms",
]

POLLIN: Final = 0x1
POLLPRI: Final = 0x2
POLLOUT: Final = 0x4
POLLRDHUP: Final = 0x2000
FD_WORD: Final = 8
"""Bytes of a word of an fd_set: select(2) takes ``(nfds + 63) // 64`` of them from each set."""
_POLLFD: Final = np.dtype([("fd", np.int32), ("events", np.uint16), ("revents", np.uint16)])
_PAIR: Final = np.dtype([("whole", np.int64), ("part", np.int64)])


def poll_set(memory: bytes) -> dict[int, int]:
    """Return descriptor → events of an array of struct pollfd; negative ones are ignored, as the kernel does."""
    entries = np.frombuffer(memory[: len(memory) // _POLLFD.itemsize * _POLLFD.itemsize], _POLLFD)
    entries = entries[entries["fd"] >= 0]
    masks: dict[int, int] = {}
    for fd, events in zip(entries["fd"].tolist(), entries["events"].tolist(), strict=True):
        masks[fd] = masks.get(fd, 0) | events
    return masks


def select_sets(nfds: int, memory: tuple[bytes, bytes, bytes]) -> dict[int, int]:
    """Return descriptor → events of the three sets of select(2): to read, to write, and of exceptional conditions.

    A descriptor with POLLPRI alone, which is in the third set only, is not woken by an error, as it is in poll(2).

    Args:
        nfds: one more than the highest descriptor that counts.
        memory: the sets; empty for one that was not given.
    """
    masks: dict[int, int] = {}
    for data, event in zip(memory, (POLLIN, POLLOUT, POLLPRI), strict=True):
        words = np.frombuffer(data[: len(data) // FD_WORD * FD_WORD], np.uint64)
        if sys.byteorder == "big":
            words = words.byteswap()
        bits = np.unpackbits(words.view(np.uint8), bitorder="little")[: max(nfds, 0)]
        for fd in np.flatnonzero(bits).tolist():
            masks[fd] = masks.get(fd, 0) | event
    return masks


def _milliseconds(memory: bytes, parts: int) -> int | None:
    if len(memory) < _PAIR.itemsize:
        return None
    whole, part = np.frombuffer(memory, _PAIR, 1)[0].tolist()
    if whole < 0 or not 0 <= part < parts:
        return None  # the kernel refuses such a limit: by now the program has put something else there
    return int(whole * 1000 + part * 1000 // parts)


def timespec_ms(memory: bytes) -> int | None:
    """Return a struct timespec in ms; None where it is none."""
    return _milliseconds(memory, 1_000_000_000)


def timeval_ms(memory: bytes) -> int | None:
    """Return a struct timeval in ms; None where it is none."""
    return _milliseconds(memory, 1_000_000)
