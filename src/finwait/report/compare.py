"""Two diagnoses compared, as text and as JSON."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from msgspec import Struct

from finwait.diagnosis.comparison import ComparedSide, Comparison, GroupChange
from finwait.report.account import when
from finwait.report.cells import cut, padded, widest
from finwait.report.shape import document
from finwait.report.style import PLAIN, Style
from finwait.report.text import not_seen
from finwait.table.units import duration_text

__all__ = ["comparison_json", "comparison_text"]


class _Column(Struct, frozen=True):
    """A column of the table."""

    title: str
    text: Callable[[GroupChange], str]
    right: bool = False
    optional: bool = False
    """Whether it is left out where it has nothing to say."""
    widest: int = 24


def comparison_text(compared: Comparison, style: Style = PLAIN) -> Iterator[str]:
    """Yield the lines: the verdict, the two sides, a line for each group that changed, what differs in looking."""
    for line in textwrap.wrap(_verdict(compared), style.width, break_on_hyphens=False):
        yield style.paint(line, "bold") + "\n"
    yield "\n"
    for name, side in (("A", compared.before), ("B", compared.after)):
        yield from _wrapped(f"{name}: {_side(side)}", style.width)
    yield from _wrapped(_between(compared), style.width)
    if not compared.by_name:
        yield from _wrapped("   Names are pseudonyms, so groups are those of a cause.", style.width)
    changed = [group for group in compared.groups if group.before != group.after or group.worse]
    if changed:
        yield "\n"
        yield from _table(changed, style)
    if same := len(compared.groups) - len(changed):
        yield f"\n{same} group{'' if same == 1 else 's'} did not change.\n"
    if compared.unequal:
        yield "\n"
        why = "; ".join(compared.unequal)
        text = f"A and B were not looked at alike, so a change may be a difference of looking: {why}."
        yield from _wrapped(text, style.width)
    for name, side in (("A", compared.before), ("B", compared.after)):
        if side.unjudged:
            yield f"\nOf {name} the FILTER could not judge {side.unjudged} group{'' if side.unjudged == 1 else 's'}.\n"
    yield from _gaps(compared, style)


def _gaps(compared: Comparison, style: Style) -> Iterator[str]:
    """Yield what could not be seen, once where it is the same of both."""
    a, b = compared.before.gaps, compared.after.gaps
    parts = [("A and B", a)] if a == b else [("A", a), ("B", b)]
    for name, gaps in parts:
        if gaps:
            yield from not_seen(gaps, style, f"Not seen in {name}:")


def _wrapped(text: str, width: int) -> Iterator[str]:
    for line in textwrap.wrap(
        text, width, subsequent_indent="   ", break_long_words=False, break_on_hyphens=False
    ):
        yield line + "\n"


def _verdict(compared: Comparison) -> str:
    worse = compared.worse
    groups = f"{len(worse)} group{'' if len(worse) == 1 else 's'}"
    more = sum(group.after - group.before for group in worse)
    if compared.verdict == "worse":
        return f"Worse: {groups} of problems appeared or grew, by {more:,} together."
    if worse:
        grew = f"{groups} of problems appeared or grew, by {more:,} together"
        return f"Not known: {grew}, but A and B were not looked at alike."
    if compared.verdict == "unknown":
        return "Not known: no problem grew among what was seen, but not everything could be seen."
    return "Not worse: no problem appeared or grew."


def _side(side: ComparedSide) -> str:
    host = f"{side.hostname or 'a machine'} (Linux {side.kernel})"
    spaces = len(side.view.namespaces)
    places = f"{spaces} network namespace{'' if spaces == 1 else 's'}"
    return f"{side.label}: {host}, {when(side.unix_ns)}, {side.connections:,} connections in {places}"


def _between(compared: Comparison) -> str:
    """Say what lies between the two."""
    if compared.same_boot is None:
        boot = "whether it was the same boot is not known"
    else:
        boot = (
            "same boot"
            if compared.same_boot
            else "another boot, or another machine: connections cannot be followed"
        )
    if compared.elapsed_s is None:
        return f"   Between them: time not known; {boot}."
    span = duration_text(round(abs(compared.elapsed_s) * 1000))
    order = f"B is {span} later" if compared.elapsed_s >= 0 else f"B is {span} earlier than A"
    return f"   {order}; {boot}."


def _table(groups: Sequence[GroupChange], style: Style) -> Iterator[str]:
    texts = {
        column.title: [cut(column.text(group), column.widest) for group in groups] for column in _COLUMNS
    }
    columns = [column for column in _COLUMNS if not column.optional or any(texts[column.title])]
    widths = {column.title: widest([column.title, *texts[column.title]]) for column in columns}

    def line(cells: Mapping[str, str]) -> str:
        return "  ".join(padded(cells[c.title], widths[c.title], right=c.right) for c in columns).rstrip()

    yield style.paint(line({column.title: column.title for column in columns}), "dim") + "\n"
    for n, group in enumerate(groups):
        text = line({title: cells[n] for title, cells in texts.items()})
        yield (style.paint(text, group.severity) if group.worse else text) + "\n"


def _mark(group: GroupChange) -> str:
    return "worse" if group.worse and group.known else "worse?" if group.worse else group.severity


def _rate(per_hour: float) -> str:
    """Return a rate in three figures; what is not 0 is never "0"."""
    size = abs(per_hour)
    text = f"{size:,.0f}" if size >= 100 else f"{size:.1f}" if size >= 0.1 else "<0.1"
    return f"{'+' if per_hour > 0 else '-'}{text}"


_COLUMNS: Final = (
    _Column("", _mark),
    _Column("A", lambda g: f"{g.before:,}", right=True),
    _Column("B", lambda g: f"{g.after:,}", right=True),
    _Column("change", lambda g: f"{g.after - g.before:+,}", right=True),
    _Column("per hour", lambda g: _rate(g.per_hour) if g.per_hour else "", right=True, optional=True),
    _Column("in both", lambda g: "" if g.stayed is None else f"{g.stayed:,}", right=True, optional=True),
    _Column("cause", lambda g: g.name.rule),
    _Column("held by", lambda g: g.name.program, optional=True, widest=18),
    _Column("where", lambda g: g.name.place, optional=True),
)


def comparison_json(compared: Comparison) -> dict[str, Any]:
    """Return the comparison as a document of kind ``Comparison``."""
    members = {
        "by_name": compared.by_name,
        "verdict": compared.verdict.replace(" ", "_"),
        "same_boot": compared.same_boot,
        "elapsed_s": compared.elapsed_s,
        "a": _side_json(compared.before),
        "b": _side_json(compared.after),
        "unequal": list(compared.unequal),
        "groups": [_group_json(group) for group in compared.groups],
    }
    return document("Comparison", members, (*compared.before.gaps, *compared.after.gaps))


def _side_json(side: ComparedSide) -> dict[str, Any]:
    return {
        "label": side.label,
        "hostname": side.hostname,
        "kernel": side.kernel,
        "boot_id": side.boot_id,
        "time": _instant(side.unix_ns),
        "connections": side.connections,
        "namespaces": len(side.view.namespaces),
        "gaps": len(side.gaps),
        "unjudged": side.unjudged,
    }


def _instant(unix_ns: int) -> str | None:
    """Return a moment as RFC 3339 has it; None where it is not known."""
    if unix_ns <= 0:
        return None
    text = datetime.fromtimestamp(unix_ns / 1e9, UTC).isoformat(timespec="milliseconds")
    return text.replace("+00:00", "Z")


def _group_json(group: GroupChange) -> dict[str, Any]:
    return {
        "rule": group.name.rule,
        "program": group.name.program,
        "place": group.name.place,
        "severity": group.severity,
        "title": group.title,
        "a": group.before,
        "b": group.after,
        "change": group.change,
        "in_both": group.stayed,
        "per_hour": group.per_hour,
        "worse": group.worse,
        "known": group.known,
    }
