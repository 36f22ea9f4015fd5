"""kernel-log: lines of dmesg and journalctl -k that speak of TCP.

Understood    Too many orphans, out of TCP memory, SYN flooding, an overflow of the TIME_WAIT table, a
              full connection tracking table.
Told          That it happened, and how often the text has it.
Not told      To which connections.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Final

from finwait.pasted.rows import TextPart

__all__ = ["NAME", "read", "starts"]

NAME: Final = "kernel-log"

_MEANINGS: Final = (
    (
        re.compile(r"too many (?:orphaned sockets|of orphaned sockets)"),
        "the kernel destroyed orphans with a RST: there were more than `net.ipv4.tcp_max_orphans`",
    ),
    (
        re.compile(r"TCP: out of memory"),
        "TCP was out of memory (`net.ipv4.tcp_mem`): the kernel destroyed orphans, and refused buffers",
    ),
    (
        re.compile(r"[Pp]ossible SYN flooding on port"),
        "the queue of handshakes of a listener was full: a flood, or a program that does not accept",
    ),
    (
        re.compile(r"time wait bucket table overflow"),
        "there were more TIME_WAIT than `net.ipv4.tcp_max_tw_buckets`: further ones were left out",
    ),
    (
        re.compile(r"nf_conntrack: (?:nf_conntrack: )?table full"),
        "the connection tracking table was full: packets of new connections were dropped",
    ),
)


def starts(line: str) -> bool:
    """Return whether a line is one of those."""
    return ("TCP" in line or "conntrack" in line) and any(form.search(line) for form, _ in _MEANINGS)


def read(lines: list[str], args: str) -> TextPart:  # noqa: ARG001
    """Count what the lines say."""
    seen = Counter(says for line in lines for form, says in _MEANINGS if form.search(line))
    return TextPart(NAME, notes=[f"kernel log, {n} line{'s' * (n > 1)}: {says}" for says, n in seen.items()])
