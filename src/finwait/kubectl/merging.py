"""Answers of several nodes as one: a document, and the lines of a table. Pure.

What a node says is another machine's: text is made printable. What is not of the shape that is read is no answer and
never comes here (`finwait.kubectl.answers`); should it, it is left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from msgspec import Struct, field

from finwait.errors import Gap
from finwait.report.shape import document
from finwait.table.units import duration_text, printable

__all__ = ["NodeAnswer", "connections", "diagnosis", "gaps_of", "table"]

_WORST_FIRST: Final = {"problem": 0, "notice": 1, "healthy": 2}
_GROUPS: Final = ("NODE", "SEVERITY", "#", "STATE", "CAUSE", "WORKLOAD", "AGE", "WHOSE MOVE")
_LISTED: Final = ("NODE", "STATE", "LOCAL", "PEER", "POD", "SERVICE", "AGE", "OWNER")


class NodeAnswer(Struct, frozen=True):
    """What the agent of a node said."""

    node: str
    document: Mapping[str, Any] | None
    """As its finwait printed it; None where it said nothing."""
    failure: str = ""
    """Why not."""
    gaps: tuple[Gap, ...] = field(default=())


def _texts(value: object, *names: str) -> list[str]:
    """Return members of an object that are text; empty where they are not."""
    members = value if isinstance(value, Mapping) else {}
    return [text if isinstance(text := members.get(name), str) else "" for name in names]


def _objects(value: object) -> list[Mapping[str, Any]]:
    return [item for item in value if isinstance(item, Mapping)] if isinstance(value, list) else []


def gaps_of(answers: Iterable[NodeAnswer]) -> list[Gap]:
    """Return what could not be seen, with the node where that was."""
    gaps: list[Gap] = []
    for answer in answers:
        where = f"node {answer.node}"
        if answer.failure:
            gaps.append(Gap(where, f"ask its agent: {printable(answer.failure)[:300]}", ""))
        gaps += answer.gaps
        if count := sum(map(_count, _objects((answer.document or {}).get("unjudged")))):
            gaps.append(
                Gap(
                    where, f"judge {count:,} connections by the FILTER", "what it asks for is not known there"
                )
            )
        for gap in _objects((answer.document or {}).get("gaps")):
            place, doing, needs = (printable(text)[:300] for text in _texts(gap, "where", "doing", "needs"))
            gaps.append(Gap(f"{where}: {place}", doing, needs))
    return gaps


def diagnosis(answers: Sequence[NodeAnswer], gaps: Iterable[Gap]) -> dict[str, Any]:
    """Return diagnoses as one document."""
    nodes = [{"node": a.node, "diagnosis": a.document} for a in answers if a.document is not None]
    return document("ClusterDiagnosis", {"nodes": nodes}, gaps)


def connections(answers: Sequence[NodeAnswer], gaps: Iterable[Gap]) -> dict[str, Any]:
    """Return lists of connections as one document; each has its node."""
    items = [
        {"node": answer.node} | dict(item) | {"node": answer.node}
        for answer in answers
        for item in _objects((answer.document or {}).get("items"))
    ]
    return document("ClusterConnectionList", {"items": items}, gaps)


def table(answers: Sequence[NodeAnswer], *, listed: bool, scope: str = "") -> Iterator[str]:
    """Return the lines of a table: of connections, or of what is wrong.

    Args:
        answers: of the nodes.
        listed: whether they are lists of connections.
        scope: what was asked about, as the end of a sentence; empty for everything.
    """
    if listed:
        rows = [
            _connection(a.node, item) for a in answers for item in _objects((a.document or {}).get("items"))
        ]
        yield from _lines(_LISTED, rows)
        return
    groups = [
        (answer.node, finding)
        for answer in answers
        for finding in _objects((answer.document or {}).get("findings"))
        if finding.get("primary") is True and finding.get("severity") != "healthy"
    ]
    if not groups:
        asked = sum(answer.document is not None for answer in answers)
        where = f"{printable(scope)[:200]} " if scope else ""
        rest = "; `kubectl finwait -A` asks about everything" if scope else ""
        yield f"nothing {where}is stuck on {asked} node{'s' if asked != 1 else ''} that answered{rest}"
        return
    order = sorted(groups, key=lambda group: (_rank(group[1]), -_count(group[1]), group[0]))
    yield from _lines(_GROUPS, [_group(node, finding) for node, finding in order])


def _rank(finding: Mapping[str, Any]) -> int:
    return _WORST_FIRST.get(_texts(finding, "severity")[0], 3)


def _count(finding: Mapping[str, Any]) -> int:
    count = finding.get("count")
    return count if isinstance(count, int) else 0


def _group(node: str, finding: Mapping[str, Any]) -> tuple[str, ...]:
    severity, rule = _texts(finding, "severity", "rule")
    sockets = _objects(finding.get("sockets"))
    states = {state for end in sockets if (state := _texts(end, "state")[0])}
    workloads = {name for end in sockets if (name := _texts(end.get("kubernetes"), "workload")[0])}
    mover, act = _texts(finding.get("move"), "whose", "act")
    several = "several"
    return (
        node,
        severity.upper(),
        str(_count(finding)),
        states.pop() if len(states) == 1 else several if states else "-",
        rule,
        workloads.pop() if len(workloads) == 1 else several if workloads else "-",
        max((_age(end) for end in sockets), default=(-1.0, "?"))[1],
        f"{mover}: {act}" if act else mover,
    )


def _age(item: Mapping[str, Any]) -> tuple[float, str]:
    span = item.get("age_s")
    least = span.get("at_least") if isinstance(span, Mapping) else None
    if not isinstance(least, int | float) or not 0 <= least < 1e10:
        return -1.0, "?"
    return float(least), duration_text(int(1000 * least))


def _connection(node: str, item: Mapping[str, Any]) -> tuple[str, ...]:
    state, src, dst = _texts(item, "state", "src", "dst")
    pod, service = _texts(item.get("kubernetes"), "pod", "service")
    owners = [
        f"{_texts(holder, 'comm')[0] or '?'}({holder.get('pid')})" for holder in _objects(item.get("owners"))
    ]
    ends = [
        f"[{a}]:{item.get(p)}" if ":" in a else f"{a}:{item.get(p)}"
        for a, p in ((src, "sport"), (dst, "dport"))
    ]
    more = "" if len(owners) < 3 else f" and {len(owners) - 2} more"
    return node, state, *ends, pod or "-", service or "-", _age(item)[1], ", ".join(owners[:2]) + more or "-"


def _lines(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    cells = [head, *(tuple(printable(cell)[:100] for cell in row) for row in rows)]
    widths = [max(len(row[k]) for row in cells) for k in range(len(head))]
    for row in cells:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
