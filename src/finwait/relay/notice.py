"""What the relay tells its operator, on standard error."""

from __future__ import annotations

import sys

from finwait.table.units import printable

__all__ = ["say"]


def say(text: str) -> None:
    """Write a line (and a hint below it); names in it may be from a file or from the network, and are escaped."""
    sys.stderr.write("".join(f"{printable(line)}\n" for line in f"finwait relay: {text}".split("\n")))
    sys.stderr.flush()
