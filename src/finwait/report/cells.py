"""How many columns of a terminal text takes, and text made to take so many.

A CJK ideograph or an emoji takes two, an accent that is a character of its own none: the length of a string is
neither. Widths are those of Unicode's East Asian Width (UAX 11) of the version that Python has; a terminal may have
another, and may draw some sequences of emoji as one. What has no business in a line at all is escaped before
(`finwait.table.units.printable`).
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from functools import lru_cache

__all__ = ["columns", "cut", "padded", "widest"]


@lru_cache(maxsize=4096)
def _of(character: str) -> int:
    if unicodedata.category(character) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def columns(text: str) -> int:
    """Return how many columns a text takes."""
    return len(text) if text.isascii() else sum(map(_of, text))


def widest(texts: Iterable[str]) -> int:
    """Return how many columns the widest of some texts takes; 0 of none."""
    return max(map(columns, texts), default=0)


def padded(text: str, width: int, *, right: bool = False) -> str:
    """Return a text that takes so many columns at least, with its blanks behind, or with ``right`` before it."""
    blanks = " " * (width - columns(text))
    return blanks + text if right else text + blanks


def cut(text: str, width: int) -> str:
    """Return a text that takes so many columns at most, one at least, with an ellipsis where it was longer."""
    if columns(text) <= width:
        return text
    room, end = width - 1, 0
    while end < len(text) and (room := room - _of(text[end])) >= 0:
        end += 1
    return text[:end] + "…"
