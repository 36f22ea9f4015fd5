"""Views out of a few columns, for tests of rules and of the engine."""

from __future__ import annotations

from typing import Any

import numpy as np
from msgspec.structs import replace

from finwait.attribution.process import ProcessView
from finwait.diagnosis import catalogue, engine
from finwait.diagnosis.assemble import assemble
from finwait.diagnosis.view import HiddenDescriptor, NamespaceView, Options, View
from finwait.table.sockets import SocketTable, pack_address
from finwait.uapi.observation import Descriptors, ProcessWaits

__all__ = ["primary", "socket", "view"]


def socket(**cells: Any) -> dict[str, Any]:
    """One socket; what is not given is missing or 0."""
    base = {
        "netns": 1,
        "protocol": 6,
        "family": 2,
        "src": "10.0.0.1",
        "dst": "192.0.2.1",
        "sport": 4000,
        "dport": 80,
    }
    return base | cells


def view(
    *sockets: dict[str, Any],
    holders: dict[int, list[int]] | None = None,
    unreadable: tuple[int, ...] = (),
    searched: bool = True,
    processes: dict[int, ProcessView] | None = None,
    namespaces: dict[int, NamespaceView] | None = None,
    options: Options | None = None,
    earlier: list[dict[str, Any]] | None = None,
    watched_ms: int = 0,
    first_look_ms: int = 0,
    took_ms: int = 0,
    hidden: tuple[HiddenDescriptor, ...] = (),
    hidden_known: bool = True,
    cgroup_paths: dict[int, str] | None = None,
    one_table: dict[tuple[int, int], bool] | None = None,
    waits: dict[int, ProcessWaits] | None = None,
) -> View:
    """Build a view; ``holders`` is inode → pids."""
    rows = [(pid, 3 + k, inode) for inode, pids in (holders or {}).items() for k, pid in enumerate(pids)]
    built = assemble(
        _table(list(sockets)),
        flows=None,
        descriptors=Descriptors(
            np.array([r[0] for r in rows], np.uint32),
            np.array([r[1] for r in rows], np.uint32),
            np.array([r[2] for r in rows], np.uint64),
            unreadable,
            searched,
        ),
        namespaces=namespaces or {1: NamespaceView(1, ("host",))},
        processes=processes or {},
        cgroup_paths=cgroup_paths or {},
        options=options or Options(),
        earlier=_table(earlier) if earlier else None,
        watched_ms=watched_ms,
        first_look_ms=first_look_ms,
        took_ms=took_ms,
        hidden=hidden,
        hidden_known=hidden_known,
    )
    return replace(built, one_table=one_table or {}, waits_read=waits or {})


def _table(sockets: list[dict[str, Any]]) -> SocketTable:
    """A table in which a column is there if any socket has it, and missing where a socket has not."""
    names = {name for one in sockets for name in one}
    columns: dict[str, Any] = {}
    for name in names:
        cells = [one.get(name, "::" if name in ("src", "dst") else 0) for one in sockets]
        if name in ("src", "dst"):
            columns[name] = np.array([pack_address(c) for c in cells], np.uint64).reshape(-1, 2)
        else:
            columns[name] = cells
    return SocketTable.from_columns(columns, {name: [name in one for one in sockets] for name in names})


def primary(v: View) -> list[str]:
    """The rule that is the primary cause of each row; nothing where none is."""
    out = [""] * len(v)
    for f in engine.diagnose(v, catalogue.rules()):
        if f.primary:
            for row in f.rows.tolist():
                out[row] = f.rule
    return out
