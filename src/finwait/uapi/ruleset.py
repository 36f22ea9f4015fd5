"""Firewall rules that bear on connection tracking, found in what ``nft list ruleset`` and ``iptables-save`` print.

Two kinds matter here. *notrack*: packets that connection tracking never sees, so a socket without an entry is
no mismatch. *drop-invalid*: packets that match no entry are dropped (kube-proxy's rule), so a FIN after the entry
expired is lost, and a stray RST too.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

__all__ = ["TrackingRule", "tracking_rules"]

_NFT_INVALID = re.compile(r"\bct state\b[^\n]*\binvalid\b[^\n]*\bdrop\b")
_NFT_NOTRACK = re.compile(r"(?:^|\s)notrack\b")
_IPT_INVALID = re.compile(r"--(?:ct)?state\s+\S*INVALID\S*.*-j\s+DROP")
_IPT_NOTRACK = re.compile(r"-j\s+(?:NOTRACK\b|CT\s+--notrack)")


@dataclass(frozen=True, slots=True)
class TrackingRule:
    """One rule and where it stands."""

    kind: Literal["notrack", "drop-invalid"]
    where: str
    """Table and chain."""
    rule: str


def tracking_rules(text: str) -> tuple[TrackingRule, ...]:
    """Find the rules in either tool's output; anything else in it is passed over."""
    found: list[TrackingRule] = []
    table = chain = ""
    for raw in text.splitlines():
        line = raw.strip()
        if m := re.match(r"table (\S+ \S+) \{", line):
            table = m[1]
        elif m := re.match(r"chain (\S+) \{", line):
            chain = m[1]
        elif line.startswith("*"):  # iptables-save: the table
            table = f"iptables {line[1:]}"
        elif line.startswith("-A "):
            where = f"{table} {line.split()[1]}"
            if _IPT_NOTRACK.search(line):
                found.append(TrackingRule("notrack", where, line))
            elif _IPT_INVALID.search(line):
                found.append(TrackingRule("drop-invalid", where, line))
        elif _NFT_NOTRACK.search(line):
            found.append(TrackingRule("notrack", f"{table} {chain}", line))
        elif _NFT_INVALID.search(line):
            found.append(TrackingRule("drop-invalid", f"{table} {chain}", line))
    return tuple(dict.fromkeys(found))
