"""foreign-netstat: netstat of macOS, BSD and Windows.

Understood    Their lines of TCP with the state.
Told          How many connections are in each state.
Not told      Causes: they are another system's TCP, with other timers and other rules, and finwait knows
              Linux's. Only what the state means for every TCP is said.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Final

from finwait.pasted.rows import TextPart

__all__ = ["NAME", "read", "starts"]

NAME: Final = "foreign-netstat"

_STATES: Final = (
    "ESTABLISHED|SYN_SENT|SYN_RCVD|SYN_RECEIVED|FIN_WAIT_1|FIN_WAIT_2|TIME_WAIT"
    "|CLOSE_WAIT|LAST_ACK|LISTEN|LISTENING|CLOSING|CLOSED"
)
_BSD = re.compile(
    rf"(?:tcp(?:4|6|46)?)\s+\d{{1,10}}\s+\d{{1,10}}\s+\S{{1,60}}\.(?:\d{{1,5}}|\*)\s+"
    rf"\S{{1,60}}\.(?:\d{{1,5}}|\*)\s+({_STATES})\b"
)
_WINDOWS = re.compile(rf"\s{{1,8}}TCP\s+\S{{1,60}}:\d{{1,5}}\s+\S{{1,60}}:\d{{1,5}}\s+({_STATES})\b")
_HEADS: Final = ("Proto  Local Address", "Proto Recv-Q Send-Q  Local", "Active Connections")
_MEANING: Final = {
    "CLOSE_WAIT": "the peer has closed and a program here has not",
    "FIN_WAIT_2": "this end has closed, its FIN is acknowledged, and the peer has not closed",
    "FIN_WAIT_1": "this end has closed, and nobody has acknowledged its FIN",
    "LAST_ACK": "both have closed, and the last FIN is not acknowledged",
}


def starts(line: str) -> bool:
    """Return whether a line is such a row."""
    if line.startswith("tcp"):
        return _BSD.match(line) is not None
    return line[:1] == " " and "TCP" in line[:12] and _WINDOWS.match(line) is not None


def read(lines: list[str], args: str) -> TextPart:  # noqa: ARG001
    """Count the states."""
    seen: Counter[str] = Counter()
    windows = False
    for line in lines:
        if match := _BSD.match(line) or _WINDOWS.match(line):
            seen[match[1]] += 1
            windows |= line[:1] == " "
    system = "Windows" if windows else "macOS or BSD"
    notes = [f"netstat of {system}: another TCP than Linux's, so causes are not told"]
    notes += [
        f"{n} in {state}{': ' + _MEANING[state] if state in _MEANING else ''}"
        for state, n in seen.most_common()
    ]
    part = TextPart(NAME, notes=notes)
    if stuck := sum(seen[state] for state in _MEANING):
        part.unread["judge connections of another system's TCP"] = stuck
    return part
