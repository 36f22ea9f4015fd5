"""Two diagnoses compared, as text and as JSON."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from typing import Any, Final

from finwait.diagnosis.comparison import Compared, GroupChange, Side
from finwait.report.account import when
from finwait.report.cells import cut, padded, widest
from finwait.report.shape import document
from finwait.report.style import PLAIN, Style
from finwait.report.text import not_seen
from finwait.table.units import duration_text

__all__ = ["comparison_json", "comparison_text"]

_HEADS: Final = ("", "A", "B", "change", "per hour", "in both", "cause", "held by", "where")
_RIGHT: Final = frozenset({"A", "B", "change", "per hour", "in both"})
_OPTIONAL: Final = frozenset({"per hour", "in both", "held by", "where"})
_WIDEST: Final = {"cause": 22, "held by": 18, "where": 24}


def comparison_text(compared: Compared, style: Style = PLAIN) -> Iterator[str]:
    """Yield the lines: the verdict, the two sides, a line for each group that changed, what differs in looking."""
    for line in textwrap.wrap(_verdict(compared), style.width, break_on_hyphens=False):
        yield style.paint(line, "bold") + "\n"
    yield "\n"
    for name, side in (("A", compared.before), ("B", compared.after)):
        yield from _wrapped(f"{name}: {_side(side)}", style.width)
    yield from _wrapped(_between(compared), style.width)
    if not compared.by_name:
        yield from _wrapped("   Names are pseudonyms, so groups are those of a cause.", style.width)
    changed = [group for group in compared.groups if group.change != "same" or group.worse]
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


def _gaps(compared: Compared, style: Style) -> Iterator[str]:
    """Yield what could not be seen, once where it is the same of both."""
    a, b = compared.before.gaps, compared.after.gaps
    parts = [("A and B", a)] if a == b else [("A", a), ("B", b)]
    for name, gaps in parts:
        if gaps:
            title, *lines = not_seen(gaps, style)
            yield title.replace("Not seen:", f"Not seen in {name}:")
            yield from lines


def _wrapped(text: str, width: int) -> Iterator[str]:
    for line in textwrap.wrap(
        text, width, subsequent_indent="   ", break_long_words=False, break_on_hyphens=False
    ):
        yield line + "\n"


def _verdict(compared: Compared) -> str:
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


def _side(side: Side) -> str:
    host = f"{side.hostname or 'a machine'} (Linux {side.kernel})"
    spaces = len(side.view.namespaces)
    places = f"{spaces} network namespace{'' if spaces == 1 else 's'}"
    return f"{side.label}: {host}, {when(side.unix_ns)}, {side.connections:,} connections in {places}"


def _between(compared: Compared) -> str:
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
    columns = list(zip(*map(_cells, groups), strict=True))
    keep = [k for k, head in enumerate(_HEADS) if head not in _OPTIONAL or any(columns[k])]
    texts = {k: [cut(text, _WIDEST.get(_HEADS[k], 20)) for text in columns[k]] for k in keep}
    widths = {k: widest([_HEADS[k], *texts[k]]) for k in keep}
    yield style.paint(_line([_HEADS[k] for k in keep], keep, widths), "dim") + "\n"
    for n, group in enumerate(groups):
        line = _line([texts[k][n] for k in keep], keep, widths)
        yield (style.paint(line, group.severity) if group.worse else line) + "\n"


def _line(texts: Sequence[str], keep: Sequence[int], widths: dict[int, int]) -> str:
    cells = (padded(text, widths[k], right=_HEADS[k] in _RIGHT) for text, k in zip(texts, keep, strict=True))
    return "  ".join(cells).rstrip()


def _cells(group: GroupChange) -> tuple[str, ...]:
    mark = "worse" if group.worse and group.known else "worse?" if group.worse else group.severity
    rate = "" if group.per_hour is None or not group.per_hour else _rate(group.per_hour)
    stayed = "" if group.stayed is None else f"{group.stayed:,}"
    change = f"{group.after - group.before:+,}"
    name = group.name
    return (
        mark, f"{group.before:,}", f"{group.after:,}", change, rate, stayed, name.rule, name.program, name.place
    )  # fmt: skip


def _rate(per_hour: float) -> str:
    """Return a rate in three figures; what is not 0 is never "0"."""
    size = abs(per_hour)
    text = f"{size:,.0f}" if size >= 100 else f"{size:.1f}" if size >= 0.1 else "<0.1"
    return f"{'+' if per_hour > 0 else '-'}{text}"


def comparison_json(compared: Compared) -> dict[str, Any]:
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


def _side_json(side: Side) -> dict[str, Any]:
    return {
        "label": side.label,
        "hostname": side.hostname,
        "kernel": side.kernel,
        "boot_id": side.boot_id,
        "time": when(side.unix_ns) if side.unix_ns > 0 else None,
        "connections": side.connections,
        "namespaces": len(side.view.namespaces),
        "gaps": len(side.gaps),
        "unjudged": side.unjudged,
    }


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
