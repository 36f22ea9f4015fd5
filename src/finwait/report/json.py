"""A diagnosis as JSON: the contract ``finwait/v1`` (docs/reference/diagnosis.schema.json).

Rows become text column by column: each field of every connection is formatted in one pass, and the objects
are put together at the end. A hundred thousand connections are a hundred thousand small strings, not a
hundred thousand dictionaries.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from finwait.diagnosis import catalogue
from finwait.diagnosis.finding import Finding
from finwait.errors import Gap
from finwait.table.sockets import address_text
from finwait.uapi import tcp

if TYPE_CHECKING:
    from finwait.diagnosis.select import Narrowed
    from finwait.diagnosis.view import View

__all__ = ["addresses", "connections", "diagnosis", "diagnosis_lines", "different_addresses"]

_encode = msgspec.json.encode
_CHUNK = 1 << 16


def addresses(words: NDArray[np.uint64]) -> list[str]:
    """Return addresses of two words a row as text; each different one is formatted once."""
    texts, which = different_addresses(words)
    return [texts[k] for k in which.tolist()]


def different_addresses(words: NDArray[np.uint64]) -> tuple[list[str], NDArray[np.intp]]:
    """Return the different addresses among those of two words a row, as text, and which each row has."""
    if not len(words):
        return [], np.empty(0, np.intp)
    high, low = words[:, 0], words[:, 1]
    v4 = (high == 0) & (low >> np.uint64(32) == np.uint64(0xFFFF))
    values = _different(low[v4])
    texts = [address_text(0, v) for v in values.tolist()]
    which = np.searchsorted(values, low)
    if not v4.all():
        pairs, others = np.unique(
            np.ascontiguousarray(words[~v4]).view([("h", np.uint64), ("l", np.uint64)])[:, 0],
            return_inverse=True,
        )
        which[~v4] = others.reshape(-1) + len(texts)
        texts += [address_text(int(h), int(v)) for h, v in pairs.tolist()]
    return texts, which


def _different(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return the values without repetitions, in order (np.unique goes through a hash table, and slowly)."""
    values = np.sort(values)
    return values[np.concatenate([[True], values[1:] != values[:-1]])] if len(values) else values


def _text(value: str) -> str:
    return _encode(value).decode()


def connections(view: View, rows: NDArray[np.int64], *, with_other: bool = True) -> list[str]:
    """Return each row as a JSON object, in text."""
    texts = _Texts(view)
    if not with_other:
        texts.need(rows)
        return [texts.of[row] + "}" for row in rows.tolist()]
    return texts.connections(rows)


class _Texts:
    """Rows as JSON objects, each made once however many findings and other ends refer to it."""

    def __init__(self, view: View) -> None:
        self.view = view
        self.of: dict[int, str] = {}
        self._known = np.zeros(len(view), np.bool_)

    def need(self, rows: NDArray[np.int64]) -> None:
        """Make what is missing of some rows, without their closing brace."""
        wanted = np.zeros(len(self.view), np.bool_)
        wanted[rows] = True
        missing = np.flatnonzero(wanted & ~self._known)
        self._known |= wanted
        for begin in range(0, len(missing), _CHUNK):
            part = missing[begin : begin + _CHUNK]
            self.of.update(zip(part.tolist(), _objects(self.view, part), strict=True))

    def connections(self, rows: NDArray[np.int64]) -> list[str]:
        """Return rows with their other ends and ages."""
        view, of = self.view, self.of
        other = view.other[rows]
        self.need(np.concatenate([rows, other[other >= 0]]))
        how = {1: "direct", 2: "nat", 3: "client-address"}
        result = []
        for row, partner, way, least, most in zip(
            rows.tolist(),
            other.tolist(),
            view.other_how[rows].tolist(),
            view.at_least_ms[rows].tolist(),
            view.at_most_ms[rows].tolist(),
            strict=True,
        ):
            end = f'{of[partner]},"found_by":"{how[way]}"}}' if partner >= 0 else "null"
            low = "null" if least < 0 else f"{least / 1000:.3f}"
            high = "null" if most < 0 else f"{most / 1000:.3f}"
            result.append(f'{of[row]},"other_end":{end},"age_s":{{"at_least":{low},"at_most":{high}}}}}')
        return result


def _objects(view: View, rows: NDArray[np.int64]) -> list[str]:
    """Return rows as JSON objects without other end, age and closing brace."""
    s = view.sockets.select(rows)
    states = {number: tcp.state_name(number) for number in np.unique(s.state).tolist()}
    return [
        f'{{"netns":{netns},"family":"{"inet" if family == 2 else "inet6"}","src":"{a}","sport":{sport},'
        f'"dst":"{b}","dport":{dport},"state":"{states[state]}","cookie":"{cookie:#x}","inode":{inode},'
        f'"owners":{held},{workload}'
        for netns, family, a, sport, b, dport, state, cookie, inode, held, workload in zip(
            s.netns.tolist(),
            s.family.tolist(),
            addresses(s.src),
            s.sport.tolist(),
            addresses(s.dst),
            s.dport.tolist(),
            s.state.tolist(),
            s.cookie.tolist(),
            s.inode.tolist(),
            _owners(view, rows),
            _workloads(view, rows),
            strict=True,
        )
    ]


def _workloads(view: View, rows: NDArray[np.int64]) -> list[str]:
    """Return the pod and container of each row as members of a JSON object."""
    which = view.workload[rows]
    texts = {}
    for number in np.unique(which).tolist():
        work = view.workload_names[number] if number >= 0 else None
        pod = _text(work.pod_uid) if work and work.pod_uid else "null"
        box = _text(work.container_id) if work and work.container_id else "null"
        texts[number] = f'"pod_uid":{pod},"container_id":{box}'
    return [texts[number] for number in which.tolist()]


def _owners(view: View, rows: NDArray[np.int64]) -> list[str]:
    """Return the owners of each row as JSON; ``null`` where they could not be looked for."""
    holders, flags = view.holders, view.close_on_exec

    def owner(pid: int, fd: int) -> str:
        known = "" if (pid, fd) not in flags else f',"close_on_exec":{"true" if flags[pid, fd] else "false"}'
        return f'{{"pid":{pid},"fd":{fd},"comm":{comm.get(pid, "null")}{known}}}'

    comm = {pid: _text(p.comm) for pid, p in view.processes.items()}
    count = holders.count[rows]
    one = count == 1
    first = holders.start[rows[one]]
    inode = view.sockets.inode[rows]
    result: list[str] = np.where(inode == 0, "[]", "[]" if holders.complete else "null").tolist()
    for k, pid, fd in zip(
        np.flatnonzero(one).tolist(), holders.pid[first].tolist(), holders.fd[first].tolist(), strict=True
    ):
        result[k] = f"[{owner(pid, fd)}]"
    for k in np.flatnonzero(count > 1).tolist():
        cells = (owner(pid, fd) for pid, fd in holders.of(int(rows[k])))
        result[k] = f"[{','.join(cells)}]"
    return result


def _finding(texts: _Texts, finding: Finding) -> str:
    view = texts.view
    head: dict[str, Any] = {
        "rule": finding.rule,
        "primary": finding.primary,
        "severity": finding.severity,
        "title": finding.title,
        "confidence": {"level": finding.confidence.level, "reason": finding.confidence.reason},
        "netns": finding.netns,
        "netns_names": list(view.namespaces[finding.netns].names) if finding.netns in view.namespaces else [],
        "pids": list(finding.pids),
        "filter": finding.select,
        "subject": finding.subject,
        "count": finding.count,
        "counted": finding.counted,
        "evidence": [
            {"column": e.column, "value": e.value, "read_from": e.read_from, "says": e.says}
            for e in finding.evidence
        ],
        "ends_it": [{"text": r.text, "class": r.kind, "command": r.command} for r in finding.ends_it],
        "does_not": [{"text": a.text, "reason": a.reason} for a in finding.does_not],
    }
    rows = finding.rows[:0] if finding.counted else finding.rows
    return _encode(head).decode()[:-1] + ',"sockets":[' + ",".join(texts.connections(rows)) + "]}"


def _head(
    view: View, facts: dict[str, Any], gaps: Iterable[Gap], narrowed: Narrowed | None
) -> dict[str, Any]:
    connections = view.sockets.state != tcp.LISTEN
    if narrowed is not None:
        connections = connections & narrowed.rows
    spaces = len(view.namespaces if narrowed is None else np.unique(view.sockets.netns[connections]))
    return {
        "machine": facts,
        "filter": None if narrowed is None else str(narrowed.filter),
        "totals": {"connections": int(connections.sum()), "namespaces": spaces},
        "established_skipped": view.established_skipped,
        "not_judged": [] if view.holders.searched else list(catalogue.by_owners()),
        "gaps": [{"where": g.where, "doing": g.doing, "needs": g.needs} for g in gaps],
    }


def diagnosis(
    view: View,
    findings: Iterable[Finding],
    gaps: Iterable[Gap],
    facts: dict[str, Any],
    narrowed: Narrowed | None = None,
) -> Iterator[str]:
    """Return a diagnosis as one JSON document, in pieces."""
    yield '{"apiVersion":"finwait/v1","kind":"Diagnosis",'
    yield _encode(_head(view, facts, gaps, narrowed)).decode()[1:-1]
    texts = _Texts(view)
    for name, some in (("findings", findings), ("unjudged", narrowed.unjudged if narrowed else ())):
        yield f',"{name}":['
        for k, finding in enumerate(some):
            yield ("," if k else "") + _finding(texts, finding)
        yield "]"
    yield "}\n"


def diagnosis_lines(
    view: View, findings: Iterable[Finding], gaps: Iterable[Gap], narrowed: Narrowed | None = None
) -> Iterator[str]:
    """Return a diagnosis as JSON lines: one object a finding, one for what the FILTER cannot judge, one a gap."""
    texts = _Texts(view)
    for kind, some in (("Finding", findings), ("Unjudged", narrowed.unjudged if narrowed else ())):
        for finding in some:
            yield f'{{"kind":"{kind}",' + _finding(texts, finding)[1:] + "\n"
    for gap in gaps:
        yield (
            _encode({"kind": "Gap", "where": gap.where, "doing": gap.doing, "needs": gap.needs}).decode()
            + "\n"
        )
