"""How text is laid out for a person: the width, the colours, labelled paragraphs."""

from __future__ import annotations

import textwrap
from typing import Final

from msgspec import Struct

from finwait.table.units import ink

__all__ = ["PLAIN", "Style", "wrap"]

_COLORS = {"problem": "31;1", "notice": "33", "healthy": "32", "bold": "1", "dim": "2"}


class Style(Struct, frozen=True):
    """How to print: width in columns, and whether ANSI colours are wanted."""

    width: int = 100
    color: bool = False

    def paint(self, text: str, role: str) -> str:
        """Return text in the colour of a role (made by `finwait.table.units.printable`), or as it is."""
        return f"{ink(_COLORS[role])}{text}{ink('0')}" if self.color else text


PLAIN: Final = Style()


def wrap(label: str, text: str, width: int, indent: int = 14, hang: int = 0) -> list[str]:
    """Return a labelled paragraph; lines after the first are indented by ``hang`` more."""
    lines = textwrap.wrap(
        text,
        max(width - indent, 20),
        subsequent_indent=" " * hang,
        break_long_words=False,
        break_on_hyphens=False,
    ) or [""]
    pad = " " * indent
    return [f"  {label:<{indent - 2}}{lines[0]}", *(pad + line for line in lines[1:])]
