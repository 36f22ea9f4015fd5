"""A diagnosis as JSON: the contract ``finwait/v1`` (docs/reference/diagnosis.schema.json).

Connections are made of columns: each becomes a list of texts, in which what many rows share is encoded once, and a
row is put together from its cells by a template, that of `finwait.report.shape`. `objects` gives the same as values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from finwait.diagnosis import catalogue, outlook
from finwait.diagnosis.finding import Finding
from finwait.errors import Gap
from finwait.report.shape import (
    API_VERSION,
    IDENTITY,
    MORE,
    connection,
    connection_text,
    family_name,
    gap,
    owner,
    protocol_name,
)
from finwait.report.socket_options import as_json
from finwait.report.waiting import waited_on
from finwait.table.sockets import SocketTable, address_text
from finwait.uapi import tcp
from finwait.uapi.observation import UNTOLD_FD
from finwait.uapi.sets import distinct

if TYPE_CHECKING:
    from finwait.diagnosis.select import Narrowed
    from finwait.diagnosis.view import View
    from finwait.report.columns import Cells

__all__ = [
    "addresses",
    "connections",
    "diagnosis",
    "diagnosis_lines",
    "different_addresses",
    "gap_lines",
    "objects",
]

_encode = msgspec.json.encode
_CHUNK = 1 << 16
_PIECE = 1 << 12
"""Connections of a piece of text: some megabytes."""


def addresses(words: NDArray[np.uint64]) -> list[str]:
    """Return addresses of two words a row as text; each different one is formatted once."""
    texts, inverse = different_addresses(words)
    return [texts[k] for k in inverse.tolist()]


def different_addresses(words: NDArray[np.uint64]) -> tuple[list[str], NDArray[np.intp]]:
    """Return the different addresses among those of two words a row, as text, and which each row has."""
    if not len(words):
        return [], np.empty(0, np.intp)
    high, low = words[:, 0], words[:, 1]
    v4 = (high == 0) & (low >> np.uint64(32) == np.uint64(0xFFFF))
    values = distinct(low[v4])
    texts = [address_text(0, v) for v in values.tolist()]
    inverse = np.searchsorted(values, low)
    if not v4.all():
        pairs, others = np.unique(
            np.ascontiguousarray(words[~v4]).view([("h", np.uint64), ("l", np.uint64)])[:, 0],
            return_inverse=True,
        )
        inverse[~v4] = others.reshape(-1) + len(texts)
        texts += [address_text(int(h), int(v)) for h, v in pairs.tolist()]
    return texts, inverse


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
        self._options: dict[int, str] = {}

    def need(self, rows: NDArray[np.int64]) -> None:
        """Make what is missing of some rows, without their closing brace."""
        requested = np.zeros(len(self.view), np.bool_)
        requested[rows] = True
        missing = np.flatnonzero(requested & ~self._known)
        self._known |= requested
        for begin in range(0, len(missing), _CHUNK):
            part = missing[begin : begin + _CHUNK]
            self.of.update(zip(part.tolist(), _objects(self.view, part), strict=True))

    def connections(self, rows: NDArray[np.int64]) -> list[str]:
        """Return rows with their other ends and ages."""
        view, of = self.view, self.of
        other = view.other[rows]
        self.need(np.concatenate([rows, other[other >= 0]]))
        found_by = {
            way: f',"found_by":"{name}"}}' for way, name in ((1, "direct"), (2, "nat"), (3, "client-address"))
        }
        others = [
            of[partner] + found_by[way] if partner >= 0 else "null"
            for partner, way in zip(other.tolist(), view.other_how[rows].tolist(), strict=True)
        ]
        columns = (
            [of[row] for row in rows.tolist()],
            others,
            _seconds(view.at_least_ms[rows]),
            _seconds(view.at_most_ms[rows]),
            [self._waited_on[answer] for answer in self._answer[rows].tolist()],
            self._options_of(view.sockets.inode[rows].tolist()),
            self._forecasts_of(rows),
        )
        return list(map(_CONNECTION.__mod__, zip(*columns, strict=True)))

    @cached_property
    def _waited_on(self) -> list[str]:
        """Each answer to who waits, as text; the last is that of rows that were not asked for."""
        return [*(_encode(waited_on(wait)).decode() for wait, _ in self.view.waits.answers), "null"]

    @cached_property
    def _answer(self) -> NDArray[np.int64]:
        """The place of each row's answer in `_waited_on`."""
        places = np.full(len(self.view), -1, np.int64)
        for place, (_, rows) in enumerate(self.view.waits.answers):
            places[rows] = place
        return places

    def _options_of(self, inodes: list[int]) -> list[str]:
        """Return the options of sockets as text."""
        read, known = self.view.socket_options, self._options
        for inode in read.keys() & set(inodes) - known.keys():
            known[inode] = _encode(as_json(read[inode])).decode()
        return [known.get(inode, "null") for inode in inodes]

    def _forecasts_of(self, rows: NDArray[np.int64]) -> list[str]:
        """Return what will become of rows as text; those that share an answer share the text."""
        prospects = outlook.of_rows(self.view, rows)
        texts: dict[int, str] = {}
        for prospect in prospects:
            if id(prospect) not in texts:
                texts[id(prospect)] = _forecast(prospect)
        return [texts[id(prospect)] for prospect in prospects]


_CONNECTION: Final = (
    '%s,"other_end":%s,"age_s":{"at_least":%s,"at_most":%s},"waited_on":%s,"options":%s,"forecast":%s}'
)


def _seconds(milliseconds: NDArray[np.int64]) -> list[str]:
    """Return times as text in seconds; those that are not known, which are negative, as ``null``."""
    return ["null" if ms < 0 else f"{ms / 1000:.3f}" for ms in milliseconds.tolist()]


_LISTED = ("rqueue", "wqueue", "timer_name", "conntrack", "uid", "shutdown")
"""What a list of connections says of each beside its shape: the columns of these names."""


def listed(cells: Cells) -> Iterator[str]:
    """Return each row as a JSON object, with its other end, its age, who waits for it, and its relay's other leg."""
    values = [cells.column(name) for name in _LISTED]
    texts = connections(cells.view, cells.rows)
    for text, at, row in zip(texts, cells.rows.tolist(), zip(*values, strict=True), strict=True):
        own = dict(zip(_LISTED, row, strict=True))
        more = _encode({**own, "other_leg": _other_leg(cells.view, at)}).decode()
        yield f"{text[:-1]},{more[1:]}"


def _other_leg(view: View, row: int) -> dict[str, Any] | None:
    """Return what is known of the other leg where a row is one of a relay's: which it is, or which it may be."""
    legs = view.relay_legs.of(row)
    if legs is None:
        return None
    candidates = view.relay_legs.candidates(row)
    return {
        "known": legs.known,
        "by": legs.by if legs.known else None,
        "perhaps_none": legs.loose or legs.fits is False,
        "count": len(candidates),
        "candidates": [f"{cookie:#x}" for cookie in view.sockets.cookie[candidates[:_CANDIDATES]].tolist()],
    }


_CANDIDATES = 20
"""So many legs are named of those that may be the other one: each of a set of many would name them all."""


def connection_list(cells: Cells, gaps: Iterable[Gap], more: str = "") -> Iterator[str]:
    """Return rows as one JSON document, in pieces.

    Args:
        cells: the rows.
        gaps: what could not be seen.
        more: another member of the document; empty for none.
    """
    yield f'{{"apiVersion":"{API_VERSION}","kind":"ConnectionList","items":['
    for k, text in enumerate(listed(cells)):
        yield ("," if k else "") + text
    more = f",{more}" if more else ""
    yield f'],"gaps":{_encode([gap(entry) for entry in gaps]).decode()}{more}}}\n'


def _objects(view: View, rows: NDArray[np.int64]) -> list[str]:
    """Return rows as JSON objects without other end, age and closing brace: `objects`, made column by column."""
    s = view.sockets.select(rows)
    columns: dict[str, Iterable[object]] = {
        "netns": s.netns.tolist(),
        "protocol": _named(s.protocol, protocol_name),
        "family": _named(s.family, family_name),
        "src": _quoted_addresses(s.src),
        "sport": s.sport.tolist(),
        "dst": _quoted_addresses(s.dst),
        "dport": s.dport.tolist(),
        "state": _named(s.state, tcp.state_name),
        "cookie": _told(s, "cookie", [f'"{cookie:#x}"' for cookie in s.cookie.tolist()]),
        "ifindex": _told(s, "ifindex", s.ifindex.tolist()),
        "inode": _told(s, "inode", s.inode.tolist()),
        "owners": _owners_text(view, rows),
    }
    names = [
        ("null", "null") if w is None else _workload(w.pod_uid, w.container_id) for w in view.workload_names
    ]
    names.append(("null", "null"))
    of_rows = [names[k] for k in view.workload[rows].tolist()]  # -1 for none: the last
    columns |= {"pod_uid": [pod for pod, _ in of_rows], "container_id": [box for _, box in of_rows]}
    ordered = (columns[name] for name in (*IDENTITY, *MORE))
    texts = list(map(connection_text()[:-1].__mod__, zip(*ordered, strict=True)))
    if not view.names.as_of:
        return texts
    known: dict[object, str] = {}
    return [
        f"{text}{_kubernetes_text(view, row, known)}" for text, row in zip(texts, rows.tolist(), strict=True)
    ]


def _told(sockets: SocketTable, name: str, cells: list[Any]) -> list[Any]:
    """Return the cells of a column as JSON, with null where it is missing."""
    present = sockets.present(name)
    if present.all():
        return cells
    return [cell if known else "null" for cell, known in zip(cells, present.tolist(), strict=True)]


def _kubernetes_text(view: View, row: int, known: dict[object, str]) -> str:
    """Return `_kubernetes` as a member of an object, made once for rows that share it; empty for none."""
    names, work = view.row_names, int(view.workload[row])
    peer = names.peer[row]
    key = id(names.pod[row]), work, peer if isinstance(peer, str) else id(peer), names.service[row]
    if key not in known:
        about = _kubernetes(view, row)
        known[key] = "" if about is None else f',"kubernetes":{_encode(about).decode()}'
    return known[key]


def _kubernetes(view: View, row: int) -> dict[str, Any] | None:
    """Return what a cluster calls a row's ends, and the Service between them; None where nothing has a name."""
    names, work = view.row_names, view.workloads[row]
    pod, peer, service = names.pod[row], names.peer[row], names.service[row]
    if pod is None and peer is None and not service:
        return None
    about: dict[str, Any] = {
        "pod": None,
        "namespace": None,
        "container": None,
        "workload": None,
        "workload_kind": None,
        "node": None,
        "service": service,
        "peer_pod": peer if isinstance(peer, str) or peer is None else peer.path,
        "peer_workload": None if isinstance(peer, str) or peer is None else peer.workload,
    }
    if pod is not None:
        about |= {
            "pod": pod.path,
            "namespace": pod.namespace,
            "container": pod.containers.get(work.container_id) if work is not None else None,
            "workload": pod.workload,
            "workload_kind": pod.kind or "Pod",
            "node": pod.node or None,
        }
    return about


def _text(value: object) -> str:
    return _encode(value).decode()


def _workload(pod: str, container: str) -> tuple[str, str]:
    return _text(pod or None), _text(container or None)


def _named(numbers: NDArray[Any], name: Callable[[int], str | None]) -> list[str]:
    """Return the names of numbers, as JSON."""
    numbers_as_int = numbers.tolist()
    names = {number: _text(name(number)) for number in set(numbers_as_int)}
    return [names[number] for number in numbers_as_int]


def _quoted_addresses(words: NDArray[np.uint64]) -> list[str]:
    texts, inverse = different_addresses(words)
    quoted = [f'"{text}"' for text in texts]
    return [quoted[k] for k in inverse.tolist()]


def _owners_text(view: View, rows: NDArray[np.int64]) -> list[str]:
    """Return `_owners` as text: nearly every connection has one, and there are few programs."""
    holders = view.holders
    result = ["null" if unknown else "[]" for unknown in view.holder_unknown[rows].tolist()]
    count = holders.count[rows]
    plain = np.flatnonzero(count == 1) if not view.close_on_exec else np.empty(0, np.int64)
    first = holders.start[rows[plain]]
    pids, fds = holders.pid[first].tolist(), holders.fd[first].tolist()
    processes = view.processes
    of_pid = {
        pid: _text([owner(pid, _PLACE, processes[pid].comm if pid in processes else None)]).split(
            str(_PLACE), 1
        )
        for pid in set(pids)
    }
    for k, pid, fd in zip(plain.tolist(), pids, fds, strict=True):
        before, after = of_pid[pid]
        result[k] = f"{before}{'null' if fd == UNTOLD_FD else fd}{after}"
    others = np.setdiff1d(np.flatnonzero(count > 0), plain, assume_unique=True)
    for k, owners in zip(others.tolist(), _owners(view, rows[others]), strict=True):
        result[k] = _text(owners)
    return result


_PLACE: Final = 1 << 62
"""Stands for a descriptor's number; no pid is as large, so it is the first such number in the text."""


def objects(view: View, rows: NDArray[np.int64]) -> Iterator[dict[str, Any]]:
    """Return each row as JSON's types, without its other end and its age."""
    s = view.sockets.select(rows)
    states = {number: tcp.state_name(number) for number in distinct(s.state).tolist()}
    names = [None if w is None else (w.pod_uid or None, w.container_id or None) for w in view.workload_names]
    workloads = view.workload[rows].tolist()
    for row, netns, protocol, family, a, sport, b, dport, state, cookie, ifindex, inode, held, work in zip(
        rows.tolist(),
        s.netns.tolist(),
        s.protocol.tolist(),
        s.family.tolist(),
        addresses(s.src),
        s.sport.tolist(),
        addresses(s.dst),
        s.dport.tolist(),
        s.state.tolist(),
        _known(s, "cookie"),
        _known(s, "ifindex"),
        _known(s, "inode"),
        _owners(view, rows),
        workloads,
        strict=True,
    ):
        pod, box = (names[work] if work >= 0 else None) or (None, None)
        about = _kubernetes(view, row) if view.names.as_of else None
        yield connection(
            netns=netns, protocol=protocol, family=family, src=a, sport=sport, dst=b, dport=dport, state=states[state],
            cookie=cookie, ifindex=ifindex, inode=inode, owners=held, pod_uid=pod, container_id=box,
        ) | ({} if about is None else {"kubernetes": about})  # fmt: skip


def _known(sockets: SocketTable, name: str) -> list[int | None]:
    """Return the cells of a column, None where it is missing."""
    cells, present = sockets.column(name).tolist(), sockets.present(name).tolist()
    return [cell if known else None for cell, known in zip(cells, present, strict=True)]


def _owners(view: View, rows: NDArray[np.int64]) -> list[list[dict[str, Any]] | None]:
    """Return the owners of each row; None where they could not be looked for."""
    holders, flags = view.holders, view.close_on_exec
    comm = {pid: p.comm for pid, p in view.processes.items()}

    def one_owner(pid: int, fd: int) -> dict[str, Any]:
        number = None if fd == UNTOLD_FD else fd
        return owner(pid, number, comm.get(pid), close_on_exec=flags.get((pid, fd)))

    count = holders.count[rows]
    single = count == 1
    first = holders.start[rows[single]]
    unknown = view.holder_unknown[rows].tolist()
    result: list[list[dict[str, Any]] | None] = [None if doubtful else [] for doubtful in unknown]
    for k, pid, fd in zip(
        np.flatnonzero(single).tolist(), holders.pid[first].tolist(), holders.fd[first].tolist(), strict=True
    ):
        result[k] = [one_owner(pid, fd)]
    for k in np.flatnonzero(count > 1).tolist():
        result[k] = [one_owner(pid, fd) for pid, fd in holders.of(int(rows[k]))]
    return result


def _forecast(prospect: outlook.Outlook | None) -> str:
    if prospect is None:
        return "null"
    least, most = (None if n is None else round(n, 3) for n in (prospect.earliest_s, prospect.at_most_s))
    return _encode(
        {"ends": prospect.ends, "at_least_s": least, "at_most_s": most, "why": prospect.why}
    ).decode()


def _finding(texts: _Texts, finding: Finding) -> Iterator[str]:
    """Return a finding as a JSON object, in pieces: what says something first, then its connections."""
    view = texts.view
    head: dict[str, Any] = {
        "rule": finding.rule,
        "primary": finding.primary,
        "severity": finding.severity,
        "title": finding.headline,
        "harm": finding.harm,
        "move": {"whose": finding.turn.whose, "act": finding.turn.act},
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
    ends = _forecast(outlook.of_finding(view, finding.rows))
    yield _encode(head).decode()[:-1] + f',"forecast":{ends},"sockets":['
    for begin in range(0, len(rows), _PIECE):
        yield ("," if begin else "") + ",".join(texts.connections(rows[begin : begin + _PIECE]))
    yield "]}"


def _head(
    view: View, facts: dict[str, Any], gaps: Iterable[Gap], narrowed: Narrowed | None
) -> dict[str, Any]:
    connections = view.sockets.state != tcp.LISTEN
    if narrowed is not None:
        connections = connections & narrowed.rows
    spaces = len(view.namespaces if narrowed is None else distinct(view.sockets.netns[connections]))
    return {
        "machine": facts,
        "filter": None if narrowed is None else str(narrowed.filter),
        "totals": {"connections": int(connections.sum()), "namespaces": spaces},
        "established_skipped": view.established_skipped,
        "not_judged": [] if view.holders.searched else list(catalogue.by_owners()),
        "gaps": [gap(entry) for entry in gaps],
    }


def diagnosis(
    view: View,
    findings: Iterable[Finding],
    gaps: Iterable[Gap],
    facts: dict[str, Any],
    narrowed: Narrowed | None = None,
) -> Iterator[str]:
    """Return a diagnosis as one JSON document, in pieces."""
    yield f'{{"apiVersion":"{API_VERSION}","kind":"Diagnosis",'
    yield _encode(_head(view, facts, gaps, narrowed)).decode()[1:-1]
    texts = _Texts(view)
    for name, group in (("findings", findings), ("unjudged", narrowed.unjudged if narrowed else ())):
        yield f',"{name}":['
        for k, finding in enumerate(group):
            if k:
                yield ","
            yield from _finding(texts, finding)
        yield "]"
    yield "}\n"


def diagnosis_lines(
    view: View, findings: Iterable[Finding], gaps: Iterable[Gap], narrowed: Narrowed | None = None
) -> Iterator[str]:
    """Return a diagnosis as JSON lines: one object a finding, one for what the FILTER cannot judge, one a gap."""
    texts = _Texts(view)
    for kind, group in (("Finding", findings), ("Unjudged", narrowed.unjudged if narrowed else ())):
        for finding in group:
            pieces = _finding(texts, finding)
            yield f'{{"kind":"{kind}",' + next(pieces)[1:]
            yield from pieces
            yield "\n"
    yield from gap_lines(gaps)


def gap_lines(gaps: Iterable[Gap]) -> Iterator[str]:
    """Return what could not be seen as JSON lines."""
    for entry in gaps:
        yield _encode({"kind": "Gap", **gap(entry)}).decode() + "\n"
