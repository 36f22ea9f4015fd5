"""tcpdump: packets as tcpdump prints them, with -n.

Understood    Lines of TCP with `Flags […]`, IPv4 and IPv6, with or without a time and an interface.
Told          For each connection, which end sent a FIN and which a RST.
Not told      Sequence numbers are not followed: `finwait explain --pcap FILE` reads the capture itself and
              says what closing was like, step by step.
"""

from __future__ import annotations

import re
from typing import Final

from finwait.pasted.rows import TextPart

__all__ = ["NAME", "read", "starts"]

NAME: Final = "tcpdump"

_LINE = re.compile(
    r"\bIP6? ([0-9a-f.:]{3,60})\.(\d{1,5}) > ([0-9a-f.:]{3,60})\.(\d{1,5}): Flags \[([FSRPUEWNe.none]{1,8})\]"
)
_NAMED: Final = 10


def starts(line: str) -> bool:
    """Return whether a line is a packet of TCP."""
    return "Flags [" in line and _LINE.search(line) is not None


def read(lines: list[str], args: str) -> TextPart:  # noqa: ARG001
    """Say which connections closed on one side only."""
    sent: dict[tuple[tuple[str, str], tuple[str, str]], set[tuple[str, str]]] = {}
    for line in lines:
        match = _LINE.search(line)
        if match is None:
            continue
        a, b = (match[1], match[2]), (match[3], match[4])
        flags = sent.setdefault((min(a, b), max(a, b)), set())
        for flag in "FR":
            if flag in match[5]:
                flags.add((":".join(a), flag))
    part = TextPart(NAME)
    halves = []
    for (a, b), flags in sent.items():
        fins = {end for end, flag in flags if flag == "F"}
        if len(fins) == 1 and not any(flag == "R" for _, flag in flags):
            (end,) = fins
            other = ":".join(b if ":".join(a) == end else a)
            halves.append(f"{end} sent a FIN, and none came back from {other} as far as the packets go")
    part.notes += halves[:_NAMED]
    if len(halves) > _NAMED:
        part.notes.append(f"{len(halves) - _NAMED} more connections with a FIN from one end only")
    whole = sum(1 for flags in sent.values() if len({e for e, f in flags if f == "F"}) == 2)
    resets = sum(1 for flags in sent.values() if any(f == "R" for _, f in flags))
    part.notes.append(
        f"tcpdump shows {len(sent)} connection{'s' * (len(sent) != 1)}: "
        f"{whole} with a FIN from both ends, {resets} with a RST"
    )
    return part
