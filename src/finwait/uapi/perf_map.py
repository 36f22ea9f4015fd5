"""``/tmp/perf-PID.map``: the names of functions that were made at run time, as the runtime wrote them.

The format is that of tools/perf/Documentation/jit-interface.txt: ``START SIZE name``, in hexadecimal, a line each; a
later line says anew what an earlier one said. Python (``-X perf``), Node (``--perf-basic-prof``) and agents of the JVM
write such files.

A program can write into it whatever it likes: it names that program's own code, and nothing else. Reading the file is
`finwait.kernel.user_symbols`.
"""

from __future__ import annotations

import bisect
import re
from typing import Final

__all__ = ["PerfMap", "parse_perf_map"]

_LINE: Final = re.compile(
    rb"^(?:0x)?([0-9a-fA-F]{1,16}) +(?:0x)?([0-9a-fA-F]{1,16}) +([^\n]{1,1000})$", re.MULTILINE
)
_MOST_LINES: Final = 1_000_000


class PerfMap:
    """Functions by address."""

    def __init__(self, functions: dict[int, tuple[int, str]]) -> None:
        self._begin = sorted(functions)
        self._functions = functions

    def __len__(self) -> int:
        return len(self._begin)

    def name(self, address: int) -> str:
        """Return the name of the function at an address; empty where there is none."""
        place = bisect.bisect_right(self._begin, address) - 1
        if place < 0:
            return ""
        begin = self._begin[place]
        size, name = self._functions[begin]
        return name if address < begin + size else ""


def parse_perf_map(data: bytes) -> PerfMap:
    """Parse the file; a line that is not one is left out, and so is what follows the millionth."""
    functions: dict[int, tuple[int, str]] = {}
    for count, line in enumerate(_LINE.finditer(data)):
        if count >= _MOST_LINES:
            break
        name = line[3].decode("utf-8", "replace").strip()
        if name and name.isprintable():
            functions[int(line[1], 16)] = int(line[2], 16), name
    return PerfMap(functions)
