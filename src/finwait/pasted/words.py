"""Words of the form ``KEY:NUMBER`` in many rows at once.

`ss -i` prints some thirty of them a row. They are looked for in the bytes of all rows together: a loop over words, or
rows, would take ten times as long.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["RowBytes", "numbers_of"]

I64 = NDArray[np.int64]
Mask = NDArray[np.bool_]

_KEY: Final = 16
"""Characters of a key at most."""
_DIGITS: Final = 14
_SPACE: Final = np.uint8(32)
_PADDING: Final = 32
_COLON, _SLASH, _DOT, _DASH = b":/.-"
_BLANK = np.zeros(256, np.bool_)
_BLANK[[9, 10, 32]] = True
_HEX = np.full(256, 255, np.uint8)
_HEX[list(b"0123456789abcdef")] = range(16)


class RowBytes:
    """The bytes of some rows, and where each ends."""

    def __init__(self, rows: Sequence[str]) -> None:
        text = "\n".join(rows).encode("ascii", "replace")
        self.count = len(rows)
        self.bytes = np.frombuffer(b"\n" * _PADDING + text + b"\n" * _PADDING, np.uint8)
        lengths = np.fromiter((len(row) + 1 for row in rows), np.int64, len(rows))
        self._ends = _PADDING + np.cumsum(lengths) - 1
        self.colons = np.flatnonzero(self.bytes == _COLON)
        self._keys = self._before(self.colons)

    def _before(self, colons: I64) -> NDArray[np.uint64]:
        """Return the key before each colon as two numbers; what begins behind a blank only."""
        cells = np.lib.stride_tricks.sliding_window_view(self.bytes, _KEY)[colons - _KEY]
        # All bytes up to the last blank are none of the key; of a longer word nothing is.
        last = (cells[:, ::-1] <= _SPACE).argmax(axis=1).astype(np.uint8)
        cells *= np.arange(_KEY, dtype=np.uint8) >= np.uint8(_KEY) - last[:, None]
        return cells.view(np.uint64).reshape(-1, 2)

    def row_of(self, places: I64) -> I64:
        """Return the row in which each place is."""
        return np.searchsorted(self._ends, places)

    def values(self, key: str) -> I64:
        """Return where the values of a key begin, each place once."""
        number = np.frombuffer(key.encode().rjust(_KEY, b"\0"), np.uint64)
        return self.colons[(self._keys[:, 0] == number[0]) & (self._keys[:, 1] == number[1])] + 1

    def integers(self, places: I64) -> tuple[I64, I64]:
        """Return the whole numbers at places, −1 where there is none, and the places behind them."""
        number, at, going = np.zeros(len(places), np.int64), places.copy(), np.ones(len(places), np.bool_)
        for _ in range(_DIGITS):
            digit = self.bytes[at] - np.uint8(48)
            going = going & (digit < 10)
            if not going.any():
                break
            number = np.where(going, number * 10 + digit, number)
            at += going
        return np.where(at > places, number, -1), at

    def thousandths(self, places: I64) -> I64:
        """Return the numbers at places times 1000, rounded down; −1 where there is none."""
        number, at = self.integers(places)
        number = np.where(number >= 0, number * 1000, -1)
        factor = 100
        going = (self.bytes[at] == _DOT) & (number >= 0)
        for _ in range(3):
            at = at + going
            digit = self.bytes[at] - np.uint8(48)
            going = going & (digit < 10)
            number = np.where(going, number + digit.astype(np.int64) * factor, number)
            factor //= 10
        return number

    def hexadecimal(self, places: I64) -> I64:
        """Return the numbers at places, the highest bit left out; −1 where there is none."""
        number, at = np.zeros(len(places), np.uint64), places.copy()
        going = np.ones(len(places), np.bool_)
        for _ in range(16):
            digit = _HEX[self.bytes[at]]
            going = going & (digit < 16)
            number = np.where(going, number << np.uint64(4) | digit, number)
            at += going
        whole = (number & np.uint64((1 << 63) - 1)).astype(np.int64)
        return np.where((at > places) & _BLANK[self.bytes[at]], whole, -1)

    def column(self, places: I64, values: I64) -> I64:
        """Return one value a row, −1 where it has none."""
        result = np.full(self.count, -1, np.int64)
        result[self.row_of(places)] = values
        return result

    def arrows(self, meanings: Mapping[bytes, int]) -> I64:
        """Return what the word of three characters means that each row has, with a dash in its middle; −1 for none."""
        middle = np.flatnonzero(self.bytes == _DASH)
        apart = _BLANK[self.bytes[middle - 2]] & _BLANK[self.bytes[middle + 2]]
        middle = middle[apart]
        before, after = self.bytes[middle - 1], self.bytes[middle + 1]
        result = np.full(self.count, -1, np.int64)
        for word, meaning in meanings.items():
            result[self.row_of(middle[(before == word[0]) & (after == word[2])])] = meaning
        return result


def numbers_of(rows: RowBytes, whole: Mapping[str, str], thousandths: Mapping[str, str]) -> dict[str, I64]:
    """Return the columns of keys that some row has, −1 where a row does not have it.

    Args:
        rows: where to look.
        whole: key → column, of whole numbers.
        thousandths: key → column, of numbers with a fraction, in thousandths.
    """
    columns: dict[str, I64] = {}
    for key, name in whole.items():
        if len(places := rows.values(key)):
            columns[name] = rows.column(places, rows.integers(places)[0])
    for key, name in thousandths.items():
        if len(places := rows.values(key)):
            columns[name] = rows.column(places, rows.thousandths(places))
    if len(places := rows.values("retrans")):
        now, at = rows.integers(places)
        total = np.where(rows.bytes[at] == _SLASH, rows.integers(at + 1)[0], -1)
        columns["retrans_out"], columns["total_retrans"] = (
            rows.column(places, now),
            rows.column(places, total),
        )
    if len(places := rows.values("sk")):
        columns["cookie"] = rows.column(places, rows.hexadecimal(places))
    return columns
