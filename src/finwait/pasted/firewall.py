"""firewall: rules as iptables-save and nft list ruleset print them.

Understood    Lines of -A and -j, and of nft with ct state.
Told          Rules that decide what becomes of packets of no known connection (INVALID), and those that
              answer with a RST: what a FIN meets after its entry is gone.
Not told      Whether a packet reached such a rule.
"""

from __future__ import annotations

import re
from typing import Final

from finwait.pasted.rows import TextPart

__all__ = ["NAME", "read", "starts"]

NAME: Final = "firewall"

_RULE = re.compile(
    r"(?:\[\d+:\d+\] )?-[AI] \S{1,64} .{0,2000}-[jg] \S{1,40}"
    r"|(?:\[\d+:\d+\] )?:[A-Z]\S{0,40} (?:ACCEPT|DROP|-) \[\d+:\d+\]"
)
_NFT = re.compile(
    r"\s+.{0,300}\bct state \S.{0,300}\b(?:accept|drop|reject|jump|goto|counter)\b"
    r"|table (?:ip|ip6|inet|bridge|arp|netdev) \S{1,64} \{"
)
_INVALID = re.compile(r"\b(?:INVALID|invalid)\b")
_NAMED: Final = 5


def starts(line: str) -> bool:
    """Return whether a line is a rule."""
    return _RULE.match(line) is not None or (
        ("ct state" in line or line.startswith("table ")) and _NFT.match(line) is not None
    )


def read(lines: list[str], args: str) -> TextPart:  # noqa: ARG001
    """Name the rules that matter to closing."""
    part = TextPart(NAME)
    matching = [
        line.strip()[:160]
        for line in lines
        if _INVALID.search(line) or "tcp-reset" in line or "reject with tcp reset" in line
    ]
    part.notes += [
        f"a rule that decides about packets of no known connection: `{line}`" for line in matching[:_NAMED]
    ]
    if len(matching) > _NAMED:
        part.notes.append(f"{len(matching) - _NAMED} more such rules")
    return part
