"""Addresses of a stack trace → names: of the kernel from /proc/kallsyms, of a process from its maps."""

from __future__ import annotations

import bisect
import os
from collections.abc import Iterable
from typing import Final

from finwait.kernel import procfs
from finwait.table.units import printable

__all__ = ["KernelSymbols", "user_frames"]


_TRACING: Final = ("trace_event_raw_event_", "trace_event_buffer_", "__traceiter_", "__do_trace_")
"""How the functions between the traced one and the recorder begin."""


class KernelSymbols:
    """``/proc/kallsyms``, read once; without CAP_SYSLOG the kernel shows zeros, and names stay unknown."""

    def __init__(self) -> None:
        found: list[tuple[int, str]] = []
        try:
            with open("/proc/kallsyms", "rb") as file:
                for line in file:
                    words = line.split()
                    if len(words) >= 3 and words[1] in (b"t", b"T", b"w", b"W"):
                        found.append((int(words[0], 16), words[2].decode("ascii", "replace")))
        except OSError:
            found = []
        found = [entry for entry in found if entry[0]]
        found.sort()
        self._addresses = [address for address, _ in found]
        self._names = [name for _, name in found]

    @property
    def known(self) -> bool:
        """Whether there are any names to give."""
        return bool(self._names)

    def frames(self, addresses: Iterable[int]) -> list[str]:
        """Return a name (or the address in hex) for each; those of the tracing itself are left out."""
        out = []
        for address in addresses:
            at = bisect.bisect_right(self._addresses, address) - 1
            name = self._names[at] if at >= 0 else f"{address:#x}"
            if not name.startswith(_TRACING):
                out.append(name)
        return out


def user_frames(pid: int, addresses: Iterable[int]) -> list[str]:
    """Return ``file+offset`` for each address by the maps of a process; hex when it is gone."""
    data = procfs.read(f"/proc/{pid}/maps", limit=8 << 20)
    spaces: list[tuple[int, int, int, str]] = []
    for line in (data or b"").splitlines():
        words = line.split(None, 5)
        low, _, high = words[0].partition(b"-")
        name = printable(os.fsdecode(words[5])) if len(words) > 5 else "[anonymous]"
        spaces.append((int(low, 16), int(high, 16), int(words[2], 16), name))
    out = []
    for address in addresses:
        for begin, end, offset, name in spaces:
            if begin <= address < end:
                out.append(f"{name}+{address - begin + offset:#x}")
                break
        else:
            out.append(f"{address:#x}")
    return out
