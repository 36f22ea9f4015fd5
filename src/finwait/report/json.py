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

from finwait.diagnosis.finding import Finding
from finwait.errors import Gap
from finwait.table.sockets import address_text
from finwait.uapi import tcp

if TYPE_CHECKING:
    from finwait.diagnosis.view import View

__all__ = ["addresses", "connections", "diagnosis", "diagnosis_lines"]

_encode = msgspec.json.encode


def addresses(words: NDArray[np.uint64]) -> list[str]:
    """Return addresses of two words a row as text; each different one is formatted once."""
    if not len(words):
        return []
    high, low = words[:, 0], words[:, 1]
    if bool(((high == 0) & (low >> np.uint64(32) == np.uint64(0xFFFF))).all()):
        values, which = np.unique(low, return_inverse=True)
        texts = [address_text(0, v) for v in values.tolist()]
    else:
        both = np.ascontiguousarray(words).view([("h", np.uint64), ("l", np.uint64)])[:, 0]
        pairs, which = np.unique(both, return_inverse=True)
        texts = [address_text(int(h), int(v)) for h, v in pairs.tolist()]
    return [texts[k] for k in which.reshape(-1).tolist()]


def _text(value: str) -> str:
    return _encode(value).decode()


def connections(view: View, rows: NDArray[np.int64], *, with_other: bool = True) -> list[str]:
    """Return each row as a JSON object, in text."""
    s = view.sockets.select(rows)
    src, dst = addresses(s.src), addresses(s.dst)
    family = ["inet" if f == 2 else "inet6" for f in s.family.tolist()]
    owners = _owners(view, rows)
    workloads = view.workloads
    other = view.other[rows]
    ends = (
        dict(
            zip(
                other[other >= 0].tolist(),
                connections(view, other[other >= 0], with_other=False),
                strict=True,
            )
        )
        if with_other and (other >= 0).any()
        else {}
    )
    how = {1: "direct", 2: "nat", 3: "client-address"}
    result = []
    for row, netns, fam, a, sport, b, dport, state, cookie, inode, held, partner, way, least, most in zip(
        rows.tolist(),
        s.netns.tolist(),
        family,
        src,
        s.sport.tolist(),
        dst,
        s.dport.tolist(),
        s.state.tolist(),
        s.cookie.tolist(),
        s.inode.tolist(),
        owners,
        other.tolist(),
        view.other_how[rows].tolist(),
        view.at_least_ms[rows].tolist(),
        view.at_most_ms[rows].tolist(),
        strict=True,
    ):
        work = workloads[row]
        pod = _text(work.pod_uid) if work and work.pod_uid else "null"
        box = _text(work.container_id) if work and work.container_id else "null"
        name = tcp.STATES.get(state, str(state))
        text = (
            f'{{"netns":{netns},"family":"{fam}","src":"{a}","sport":{sport},"dst":"{b}","dport":{dport},'
            f'"state":"{name}","cookie":"{cookie:#x}","inode":{inode},"owners":{held},'
            f'"pod_uid":{pod},"container_id":{box}'
        )
        if with_other:
            end = ends.get(partner)
            text += f',"other_end":{end[:-1]},"found_by":"{how[way]}"}}' if end else ',"other_end":null'
            low = "null" if least < 0 else f"{least / 1000:.3f}"
            high = "null" if most < 0 else f"{most / 1000:.3f}"
            text += f',"age_s":{{"at_least":{low},"at_most":{high}}}'
        result.append(text + "}")
    return result


def _owners(view: View, rows: NDArray[np.int64]) -> list[str]:
    """Return the owners of each row as JSON; ``null`` where they could not be looked for."""
    holders = view.holders
    comm = {pid: _text(p.comm) for pid, p in view.processes.items()}
    pids, fds = holders.pid.tolist(), holders.fd.tolist()
    unknown = "[]" if holders.complete else "null"
    result = []
    for start, count, inode in zip(
        holders.start[rows].tolist(),
        holders.count[rows].tolist(),
        view.sockets.inode[rows].tolist(),
        strict=True,
    ):
        if count == 1:
            pid = pids[start]
            result.append(f'[{{"pid":{pid},"fd":{fds[start]},"comm":{comm.get(pid, "null")}}}]')
        elif count:
            cells = ",".join(
                f'{{"pid":{pids[k]},"fd":{fds[k]},"comm":{comm.get(pids[k], "null")}}}'
                for k in range(start, start + count)
            )
            result.append(f"[{cells}]")
        else:
            result.append(unknown if inode else "[]")
    return result


def _finding(view: View, finding: Finding) -> str:
    head: dict[str, Any] = {
        "rule": finding.rule,
        "primary": finding.primary,
        "severity": finding.severity,
        "title": finding.title,
        "confidence": {"level": finding.confidence.level, "reason": finding.confidence.reason},
        "netns": finding.netns,
        "netns_names": list(view.namespaces[finding.netns].names) if finding.netns in view.namespaces else [],
        "pids": list(finding.pids),
        "subject": finding.subject,
        "count": finding.count,
        "evidence": [
            {"column": e.column, "value": e.value, "read_from": e.read_from, "says": e.says}
            for e in finding.evidence
        ],
        "ends_it": [{"text": r.text, "class": r.kind, "command": r.command} for r in finding.ends_it],
        "does_not": [{"text": a.text, "reason": a.reason} for a in finding.does_not],
    }
    return _encode(head).decode()[:-1] + ',"sockets":[' + ",".join(connections(view, finding.rows)) + "]}"


def _head(view: View, facts: dict[str, Any], gaps: Iterable[Gap]) -> dict[str, Any]:
    return {
        "machine": facts,
        "established_skipped": view.established_skipped,
        "gaps": [{"where": g.where, "doing": g.doing, "needs": g.needs} for g in gaps],
    }


def diagnosis(
    view: View, findings: Iterable[Finding], gaps: Iterable[Gap], facts: dict[str, Any]
) -> Iterator[str]:
    """Return a diagnosis as one JSON document, in pieces."""
    yield '{"apiVersion":"finwait/v1","kind":"Diagnosis",'
    yield _encode(_head(view, facts, gaps)).decode()[1:-1]
    yield ',"findings":['
    for k, finding in enumerate(findings):
        yield ("," if k else "") + _finding(view, finding)
    yield "]}\n"


def diagnosis_lines(view: View, findings: Iterable[Finding], gaps: Iterable[Gap]) -> Iterator[str]:
    """Return a diagnosis as JSON lines: one object a finding, then one a gap."""
    for finding in findings:
        yield '{"kind":"Finding",' + _finding(view, finding)[1:] + "\n"
    for gap in gaps:
        yield (
            _encode({"kind": "Gap", "where": gap.where, "doing": gap.doing, "needs": gap.needs}).decode()
            + "\n"
        )
