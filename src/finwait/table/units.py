"""Values as people read them: durations, counts, states, addresses, and names that others chose."""

from __future__ import annotations

import re
from functools import lru_cache
from random import SystemRandom
from typing import Any

from finwait.uapi import tcp

__all__ = [
    "cell_text",
    "csv_cells",
    "csv_text",
    "duration_text",
    "endpoint",
    "ink",
    "parse_duration",
    "parse_duration_ms",
    "printable",
    "span_text",
]


_INK = chr(0xF0000 + SystemRandom().randrange(0xFFFE))
"""Begins and ends a colour of ours until it is printed: a character that nobody else can know, not an escape."""
_LINES = re.compile(rf"({_INK}(?:0|1|2|3[1-3](?:;1)?){_INK}|\r\n|[\t\n])")
"""What a whole text of ours holds beside printable characters: our colours, tabs, line ends."""
_SHORT = {"\t": "\\t", "\n": "\\n", "\r": "\\r"}
_UNSEEN = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)
"""Letters and marks that show nothing (Default_Ignorable_Code_Point, and the empty Braille pattern)."""


def _escape(c: str) -> str:
    """Return one character as Python writes it in a literal (without a codec, which would be imported late)."""
    code = ord(c)
    if short := _SHORT.get(c):
        return short
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is no UTF-8, as `surrogateescape` keeps it
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _escaped(text: str) -> str:
    if not text.isprintable():
        text = "".join(c if c.isprintable() else _escape(c) for c in text)
    return text if text.isascii() else _UNSEEN.sub(lambda match: _escape(match[0]), text)


def ink(code: str) -> str:
    """Return what `printable` turns into the colour of this SGR code."""
    return f"{_INK}{code}{_INK}"


def printable(text: str, *, lines: bool = False) -> str:
    r"""Return text with everything escaped that a terminal would act upon; the one place that decides this.

    A process may call itself ``\x1b[2J`` (prctl(2) takes any bytes), and so may a cgroup or a mount point; a
    recording comes from strangers. Control characters (C0, DEL and C1, which some terminals obey as UTF-8 too),
    what turns the direction of writing, line and paragraph separators, what has no width or shows nothing, and bytes
    that are no UTF-8 (surrogates here) become escapes. A colour is one of ours only if it was made with `ink`.

    Args:
        text: a name that somebody else chose, or with ``lines`` a whole text that we are about to print.
        lines: leave tabs and line ends as they are, and make colours of ours (`ink`) colours.
    """
    if not lines:
        return _escaped(text)
    # Megabytes of a list go through here: nearly all of them are plain, which bytes tell fastest.
    if text.isascii() and not text.encode().replace(b"\r\n", b"\n").translate(None, _PLAIN):
        return text
    parts = _LINES.split(text)
    parts[::2] = map(_escaped, parts[::2])
    parts[1::2] = [f"\x1b[{part[1:-1]}m" if part[0] == _INK else part for part in parts[1::2]]
    return "".join(parts)


_PLAIN = bytes({*range(0x20, 0x7F), *b"\t\n"})


_FORMULA = re.compile("[=+\\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")
_BEGINS_FORMULA = re.compile(f"^{_FORMULA.pattern}", re.MULTILINE)
_NUMBER = re.compile(r"[+-]?(?:\d+(?:\.\d*)?)?", re.ASCII)


def csv_text(text: str) -> str:
    """Return a text for a cell of CSV: a spreadsheet takes what begins with ``=``, ``+``, ``-`` or ``@`` for a formula.

    An apostrophe before it makes it text (OWASP, "CSV injection"). Numbers stay numbers.
    """
    if _FORMULA.match(text) and not _NUMBER.fullmatch(text):
        return f"'{text}"
    return text


def csv_cells(values: list[Any]) -> list[Any]:
    """Return a column for CSV: its texts as `csv_text` has them, all else as it is.

    Few columns have a text that begins like a formula, which one search tells.
    """
    kinds = set(map(type, values))
    if str not in kinds:
        return values
    if kinds <= {str, type(None)} and not _BEGINS_FORMULA.search("\n".join(filter(None, values))):
        return values
    return [csv_text(value) if isinstance(value, str) else value for value in values]


_STEPS = ((86_400_000, "d"), (3_600_000, "h"), (60_000, "min"), (1_000, "s"))


@lru_cache(maxsize=1 << 16)  # a quarter of a million rows have some thousand different ages
def duration_text(ms: int) -> str:
    """Return a duration in the unit that a person would use: ``40 ms``, ``0.4 s``, ``12 s``, ``119 min``, ``3.2 h``.

    Minutes go on to 120 and hours to 48, as people say them.
    """
    if ms < 0:
        return "?"
    if 0 < ms < 100:
        return f"{ms} ms"
    for unit, name in _STEPS:
        if ms >= 2 * unit or (name == "s"):
            value = ms / unit
            return f"{value:.1f} {name}" if value < 10 else f"{value:.0f} {name}"
    raise AssertionError("seconds take everything")


def span_text(at_least_ms: int, at_most_ms: int) -> str:
    """Return an age that is known within bounds: ``at least 119 min``, ``12 s to 3 min``, ``unknown``."""
    if at_least_ms < 0 and at_most_ms < 0:
        return "unknown"
    if at_most_ms < 0:
        return f"at least {duration_text(at_least_ms)}"
    if at_least_ms < 0:
        return f"at most {duration_text(at_most_ms)}"
    low, high = duration_text(at_least_ms), duration_text(at_most_ms)
    return f"about {low}" if low == high else f"{low} to {high}"


_LONGEST_MS = 36_525 * 86_400_000


_UNITS_MS = {"ms": 1, "s": 1000, "": 1000, "m": 60_000, "min": 60_000, "h": 3_600_000, "d": 86_400_000}
_DURATION = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,12})?) *(ms|s|min|m|h|d|)", re.ASCII)


def parse_duration(text: str) -> float:
    """Return milliseconds from ``500ms``, ``5s``, ``10m``, ``2h``, ``1d`` (a bare number is seconds), unrounded.

    Raises:
        ValueError: not a duration.
    """
    match = _DURATION.fullmatch(text.strip())
    if not match:
        raise ValueError(f"`{text[:60]}` is not a duration: write 500ms, 5s, 10m, 2h or 1d")
    return float(match[1]) * _UNITS_MS[match[2]]


def parse_duration_ms(text: str) -> int:
    """Return whole milliseconds, as `parse_duration` reads them.

    Raises:
        ValueError: not a duration, or longer than a century.
    """
    ms = parse_duration(text)
    if ms > _LONGEST_MS:
        raise ValueError(f"`{text[:60]}` is longer than a century")
    return int(ms)


def cell_text(column: str, value: object) -> str:
    """Return one cell as text: states by name, milliseconds as durations, text without its padding."""
    if value is None:
        return "-"
    if column == "state" and isinstance(value, int):
        return tcp.state_name(value)
    if column.endswith("_ms") and isinstance(value, int):
        return duration_text(value)
    if isinstance(value, bytes):
        return value.decode("ascii", "replace")
    return str(value)


def endpoint(address: str, port: int | str) -> str:
    """Return an address and a port as one word; IPv6 in brackets (RFC 5952, section 6)."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
