"""``/proc/PID/fdinfo/FD`` of an epoll descriptor: what it watches, and for what.

Mirrors fs/eventpoll.c, ep_show_fdinfo(): a line for each registration, ``tfd: N events: MASK data: DATA pos:P ino:INODE
sdev:DEVICE``; ``pos`` to ``sdev`` since Linux 4.13. ``tfd`` is the number under which it was registered, ``ino`` is
what is watched still, whatever has that number by now.

The one surprise: a registration with EPOLLONESHOT that has fired keeps only its flags (EP_PRIVATE_BITS); nothing is
reported for it until it is armed again. A mask that the program gave always has EPOLLERR and EPOLLHUP, which the
kernel adds.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from finwait.errors import DecodeError

__all__ = [
    "DATA",
    "EPOLLERR",
    "EPOLLET",
    "EPOLLEXCLUSIVE",
    "EPOLLHUP",
    "EPOLLIN",
    "EPOLLONESHOT",
    "EPOLLOUT",
    "EPOLLPRI",
    "EPOLLRDHUP",
    "EPOLLWAKEUP",
    "PRIVATE",
    "READING",
    "Registrations",
    "event_names",
    "parse",
]

EPOLLIN: Final = 0x1
EPOLLPRI: Final = 0x2
EPOLLOUT: Final = 0x4
EPOLLERR: Final = 0x8
EPOLLHUP: Final = 0x10
EPOLLRDNORM: Final = 0x40
EPOLLWRNORM: Final = 0x100
EPOLLRDHUP: Final = 0x2000
EPOLLEXCLUSIVE: Final = 1 << 28
EPOLLWAKEUP: Final = 1 << 29
EPOLLONESHOT: Final = 1 << 30
EPOLLET: Final = 1 << 31
DATA: Final = EPOLLIN | EPOLLRDNORM
"""What reports that there is something to read."""
READING: Final = DATA | EPOLLRDHUP
"""What reports that there is something to read, if only the peer's FIN."""
PRIVATE: Final = EPOLLWAKEUP | EPOLLONESHOT | EPOLLET | EPOLLEXCLUSIVE
"""EP_PRIVATE_BITS: what is left of the mask of a one-shot registration that has fired."""
_NAMES: Final = (
    (EPOLLIN, "IN"), (EPOLLPRI, "PRI"), (EPOLLOUT, "OUT"), (EPOLLERR, "ERR"), (EPOLLHUP, "HUP"),
    (EPOLLRDNORM, "RDNORM"), (EPOLLWRNORM, "WRNORM"), (EPOLLRDHUP, "RDHUP"), (EPOLLEXCLUSIVE, "EXCLUSIVE"),
    (EPOLLWAKEUP, "WAKEUP"), (EPOLLONESHOT, "ONESHOT"), (EPOLLET, "ET"),
)  # fmt: skip
_WHAT: Final = "/proc/PID/fdinfo of an epoll descriptor"


class Registrations(Struct, frozen=True):
    """What one epoll instance watches: columns of equal length."""

    fd: NDArray[np.int64]
    """The number under which it was registered."""
    events: NDArray[np.int64]
    """EPOLL* bits."""
    inode: NDArray[np.int64]
    """Of what is watched; −1 where the kernel does not say (before 4.13), and for one beyond 63 bits."""

    def __len__(self) -> int:
        return len(self.fd)


_LINE: Final = re.compile(
    rb"^tfd: *(\d{1,10}) events: *([0-9a-f]{1,8}) data: *[0-9a-f]{1,16}"
    rb"(?:  pos:-?\d{1,20} ino:([0-9a-f]{1,16}) sdev:[0-9a-f]{1,8})?$",
    re.MULTILINE,
)


def parse(data: bytes) -> Registrations:
    """Decode the file; other lines (``pos:``, ``flags:``, ``mnt_id:``, ``ino:``) are skipped.

    Raises:
        DecodeError: a line begins as that of a registration and is none.
    """
    rows = _LINE.findall(data)
    lines = data.count(b"\ntfd:") + data.startswith(b"tfd:")
    if len(rows) != lines:
        at = next(
            m.start() for m in re.finditer(rb"^tfd:.*$", data, re.MULTILINE) if not _LINE.fullmatch(m[0])
        )
        raise DecodeError(_WHAT, at, data[at : at + 16], "this is no registration")
    fds, masks, inodes = zip(*rows, strict=True) if rows else ((), (), ())
    # Whole columns at once: a program may have half a million of these.
    inode = _hexadecimal([text or _ALL_ONES for text in inodes])
    return Registrations(
        np.fromiter(map(int, fds), np.int64, len(rows)),
        _hexadecimal(masks),
        np.where(inode < 0, np.int64(-1), inode),
    )


_ALL_ONES: Final = b"f" * 16


def _hexadecimal(texts: Iterable[bytes]) -> NDArray[np.int64]:
    digits = b"".join([text.rjust(16, b"0") for text in texts])
    return np.frombuffer(bytes.fromhex(digits.decode("ascii")), ">i8").astype(np.int64)


def event_names(mask: int) -> tuple[str, ...]:
    """Return the names of the bits of a mask, without the prefix EPOLL; others in hexadecimal."""
    names = [name for bit, name in _NAMES if mask & bit]
    rest = mask & ~sum(bit for bit, _ in _NAMES)
    return (*names, *([f"{rest:#x}"] if rest else []))
