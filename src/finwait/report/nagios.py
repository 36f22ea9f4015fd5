"""Thresholds as monitoring plugins write them, and performance data that says exactly what is alerted on.

A threshold is a *range*, ``[@][START:][END]``: one alerts outside of it, or with ``@`` inside. ``~`` is minus infinity,
a missing END infinity; both ends belong to the range. The one surprise is a bare ``N``: here it is "N or more", where
the plugins' convention makes it "more than N". An alert that comes one connection early is better than one that comes
late.
`Threshold.range_text` is always the convention's form, so performance data can be read by anything that knows ranges.

Pure: numbers in, verdicts and text out. The command is `finwait.cli.check`.
"""

from __future__ import annotations

import re

from msgspec import Struct

__all__ = ["Threshold", "perfdata"]

_RANGE = re.compile(
    r"(?P<inside>@)?(?:(?P<start>~|-?[0-9]{1,15})?(?P<colon>:))?(?P<end>-?[0-9]{1,15})?", re.ASCII
)


class Threshold(Struct, frozen=True):
    """The numbers that are alerted on: those outside of a range, or inside."""

    text: str
    """As it was written."""
    start: int | None
    """The first number of the range; None without a lower end."""
    end: int | None
    """The last number of the range; None without an upper end."""
    inside: bool = False

    @classmethod
    def parse(cls, text: str) -> Threshold:
        """Read ``10`` (10 or more), ``10:``, ``10:20``, ``~:5``, ``@5:10``.

        Raises:
            ValueError: it is none of these, or its start is above its end.
        """
        match = _RANGE.fullmatch(text)
        if not match or text in ("", "@", ":", "@:"):
            raise ValueError(
                f"`{text[:60]}` is not a threshold: write 10 (10 or more), 10:, 10:20, ~:5 or @5:10"
            )
        first, last = match["start"], match["end"]
        end = None if last is None else int(last)
        if not match["colon"] and not match["inside"]:
            assert end is not None, "an empty text was refused"
            if end < 0:
                raise ValueError(f"`{text}` is not a threshold: a count is never negative")
            return cls(text, 0, end - 1) if end else cls(text, 0, None, inside=True)
        start = None if first == "~" else int(first or 0)
        if start is not None and end is not None and start > end:
            raise ValueError(f"`{text}` is not a threshold: {start} is above {end}")
        return cls(text, start, end, match["inside"] is not None)

    @property
    def maximum(self) -> int | None:
        """The largest count that is not alerted on, where that is all there is to it; else None."""
        return self.end if not self.inside and (self.start is None or self.start <= 0) else None

    def alerts(self, count: int) -> bool:
        """Return whether this count is alerted on."""
        within = (self.start is None or count >= self.start) and (self.end is None or count <= self.end)
        return within is self.inside

    def alerts_from(self, count: int) -> bool:
        """Return whether this count and every larger one is alerted on."""
        if self.inside:
            return self.end is None and self.alerts(count)
        return self.end is not None and count > self.end

    def range_text(self) -> str:
        """Return it as the plugins' convention writes a range: a bare number is then the largest good one."""
        end = "" if self.end is None else str(self.end)
        if self.inside:
            return f"@{'~' if self.start is None else self.start}:{end}"
        if self.start == 0 and end:
            return end
        return f"{'~' if self.start is None else self.start}:{end}"


def perfdata(
    label: str, value: int, warning: Threshold | None = None, critical: Threshold | None = None
) -> str:
    """Return one value as ``'label'=value;warning;critical;minimum``."""
    quoted = label if re.fullmatch(r"[a-z0-9]+", label) else "'" + label.replace("'", "''") + "'"
    ranges = (threshold.range_text() if threshold is not None else "" for threshold in (warning, critical))
    return ";".join((f"{quoted}={value}", *ranges, "0"))
