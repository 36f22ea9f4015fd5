"""Numbers as a few characters: the last minutes of one as a sparkline, one among others as a bar.

The lowest block is 0, also where every number is large: what looks twice as high is twice as much. A moment whose look
failed is ``×``, so that it is not taken for a 0; one at which nobody counted, as before the first look, is a dot.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isnan
from typing import Final

__all__ = ["BEFORE", "FAILED", "bar", "graph", "sparkline"]

BEFORE: Final = "·"
FAILED: Final = "×"
_BLOCKS: Final = "▁▂▃▄▅▆▇█"


def sparkline(levels: Sequence[float | None], width: int, top: float = 0.0) -> str:
    """Return numbers as blocks, the last one at the right.

    Args:
        levels: the numbers, None for each whose look failed, not a number where nobody counted.
        width: characters; what is before the first number is dotted.
        top: what the highest block stands for, if no number is higher.
    """
    shown = list(levels)[-width:] if width > 0 else []
    highest = max([top, *(n for n in shown if n is not None and not isnan(n))])
    blocks = ""
    for number in shown:
        if number is None:
            blocks += FAILED
        elif isnan(number):
            blocks += BEFORE
        elif number <= 0 or highest <= 0:
            blocks += _BLOCKS[0]
        else:  # what is more than 0 never looks like 0
            blocks += _BLOCKS[max(1, min(round(7 * number / highest), 7))]
    return blocks.rjust(max(width, 0), BEFORE)


def graph(levels: Sequence[float | None], width: int, height: int) -> list[str]:
    """Return numbers as columns of several lines, the last one at the right; as `sparkline`, but finer.

    Args:
        levels: the numbers, None for each whose look failed, not a number where nobody counted.
        width: characters; what is before the first number is dotted.
        height: lines; the highest number fills them.
    """
    shown = list(levels)[-width:] if width > 0 else []
    highest = max((n for n in shown if n is not None and not isnan(n)), default=0.0)
    columns = [BEFORE.ljust(height)] * (width - len(shown))
    for number in shown:
        if number is None or isnan(number):
            columns.append((FAILED if number is None else BEFORE).ljust(height))
            continue
        eighths = max(1, round(8 * height * number / highest)) if number > 0 else 1
        full, rest = divmod(eighths, 8)
        columns.append((_BLOCKS[-1] * full + (_BLOCKS[rest - 1] if rest else "")).ljust(height))
    return ["".join(column[row] for column in columns) for row in reversed(range(height))]


def bar(number: float, most: float, width: int) -> str:
    """Return a bar that is ``width`` characters long where a number is the largest; what is not 0 is never empty."""
    if number <= 0 or most <= 0 or width < 1:
        return " " * max(width, 0)
    halves = max(1, min(round(2 * width * number / most), 2 * width))
    return ("━" * (halves // 2) + "╸" * (halves % 2)).ljust(width)
