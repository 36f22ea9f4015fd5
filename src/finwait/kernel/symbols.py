"""Addresses of a stack trace → names: of the kernel from /proc/kallsyms, of a process from its maps."""

from __future__ import annotations

import bisect
import os
from collections.abc import Iterable
from typing import Final

from finwait.kernel.user_symbols import read_maps
from finwait.table.units import printable

__all__ = ["KernelSymbols", "user_frames"]


_TRACING: Final = ("trace_event_raw_event_", "trace_event_buffer_", "__traceiter_", "__do_trace_")
"""How the functions between the traced one and the recorder begin."""


class KernelSymbols:
    """``/proc/kallsyms``, read once; without CAP_SYSLOG the kernel shows zeros, and names stay unknown."""

    def __init__(self) -> None:
        symbols: list[tuple[int, str]] = []
        try:
            with open("/proc/kallsyms", "rb") as file:
                for line in file:
                    words = line.split()
                    if len(words) >= 3 and words[1] in (b"t", b"T", b"w", b"W"):
                        symbols.append((int(words[0], 16), words[2].decode("ascii", "replace")))
        except OSError:
            symbols = []
        symbols = [entry for entry in symbols if entry[0]]
        symbols.sort()
        self._addresses = [address for address, _ in symbols]
        self._names = [name for _, name in symbols]

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
    maps = read_maps(pid)
    out = []
    for address in addresses:
        mapping = maps.at(address)
        if mapping is None:
            out.append(f"{address:#x}")
            continue
        name = printable(os.fsdecode(mapping.name)) or "[anonymous]"
        out.append(f"{name}+{address - mapping.begin + mapping.offset:#x}")
    return out
