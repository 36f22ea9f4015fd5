"""Text with roles: what a screen draws in colours of its own, and what reads the same without them.

A `Span` is a piece of a line and its role: one of "problem", "notice", "healthy" (how bad), "bold", "dim", "accent"
(titles, commands), or "" for plain text. No meaning is carried by the role alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby

__all__ = ["Canvas", "Line", "Span", "plain"]

Span = tuple[str, str]
Line = list[Span]


def plain(line: Iterable[Span]) -> str:
    """Return a line without its roles."""
    return "".join(text for text, _ in line)


class Canvas:
    """A grid of characters, written in any order; what is outside of it is left out."""

    def __init__(self, width: int, height: int) -> None:
        self._cells = [[(" ", "")] * width for _ in range(height)]

    def put(self, x: int, y: int, text: str, role: str = "") -> None:
        """Write text to the right from a place on; every character takes one cell."""
        if 0 <= y < len(self._cells):
            row = self._cells[y]
            for k, character in enumerate(text, x):
                if 0 <= k < len(row):
                    row[k] = (character, role)

    def down(self, x: int, top: int, bottom: int, role: str = "") -> None:
        """Draw a line downwards, both ends included."""
        for y in range(top, bottom + 1):
            self.put(x, y, "│", role)

    def lines(self) -> list[Line]:
        """Return the lines, each in as few spans as its roles allow."""
        return [
            [("".join(c for c, _ in cells), role) for role, cells in groupby(row, lambda cell: cell[1])]
            for row in self._cells
        ]
