"""``/proc/PID/maps``: which file, or nothing, is behind each range of addresses.

Mirrors fs/proc/task_mmu.c. A line that is not one is left out: a process that ends while it is read leaves half a file.
The name of a file is the process's own choice, and may end in `` (deleted)`` whether it is or not.
"""

from __future__ import annotations

import bisect
import re
from typing import Final

from msgspec import Struct

__all__ = ["Mapping", "Maps", "parse_maps"]

_LINE: Final = re.compile(
    rb"^([0-9a-f]{1,16})-([0-9a-f]{1,16}) ([r-][w-][x-][ps]) ([0-9a-f]{1,16}) [0-9a-f]+:[0-9a-f]+ (\d{1,20}) *"
    rb"([^\n]*)$",
    re.MULTILINE,
)


class Mapping(Struct, frozen=True):
    """One range of addresses."""

    begin: int
    end: int
    code: bool
    """Whether it may be executed."""
    offset: int
    """In the file."""
    inode: int
    """Of the file; 0 where there is none."""
    name: bytes
    """Path of the file, ``[heap]``, ``[vdso]``, or empty."""


class Maps:
    """The address space of a process."""

    def __init__(self, mappings: tuple[Mapping, ...]) -> None:
        self._mappings = sorted(mappings, key=lambda mapping: mapping.begin)
        self._begin = [mapping.begin for mapping in self._mappings]

    def __len__(self) -> int:
        return len(self._mappings)

    def at(self, address: int) -> Mapping | None:
        """Return the mapping of an address."""
        place = bisect.bisect_right(self._begin, address) - 1
        if place < 0 or address >= self._mappings[place].end:
            return None
        return self._mappings[place]


def parse_maps(data: bytes, *, code: bool = False) -> Maps:
    """Parse the file.

    Args:
        data: of it.
        code: whether mappings that may not be executed are left out.
    """
    return Maps(
        tuple(
            Mapping(int(m[1], 16), int(m[2], 16), m[3][2:3] == b"x", int(m[4], 16), int(m[5]), m[6])
            for m in _LINE.finditer(data)
            if not code or m[3][2:3] == b"x"
        )
    )
