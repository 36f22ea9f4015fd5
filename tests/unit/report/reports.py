"""Accounts out of a few columns, for tests of the formats in which a diagnosis is handed on."""

from __future__ import annotations

from collections.abc import Sequence

from finwait.attribution.process import ProcessView
from finwait.diagnosis import catalogue, engine
from finwait.diagnosis.view import NamespaceView, View
from finwait.errors import Gap
from finwait.report.account import Account, account
from finwait.uapi import tcp
from finwait.uapi.observation import Facts
from tests.unit.diagnosis.views import socket, view

__all__ = ["FACTS", "accounted", "stuck"]

FACTS = Facts(
    kernel="6.12.9", hostname="web-1", boot_id="b00t", unix_ns=1_780_000_000 * 10**9, boottime_ns=10**12
)


def stuck(name: str = "app", place: str = "host", *, count: int = 3, groups: int = 1) -> View:
    """Return a view with half-closed connections that programs hold, some of each."""
    sockets, holders, processes = [], {}, {}
    for group in range(groups):
        pid = 100 + group
        processes[pid] = ProcessView(pid, comm=name if groups == 1 else f"{name}{group}", netns=1)
        for k in range(count):
            inode = 1000 + group * count + k
            sockets.append(
                socket(
                    state=tcp.FIN_WAIT2, inode=inode, cookie=inode, sport=1024 + (inode % 60000), shutdown=2, timer=0,
                    rqueue=0, wqueue=0, last_ack_recv_ms=900_000, last_data_recv_ms=900_000,
                )
            )  # fmt: skip
            holders[inode] = [pid]
    return view(
        *sockets,
        holders=holders,
        processes=processes,
        namespaces={1: NamespaceView(1, (place,), {"ipv4/tcp_fin_timeout": "3600"})},
    )


def accounted(v: View, *, facts: Facts = FACTS, gaps: Sequence[Gap] = (), source: str = "") -> Account:
    """Return what is said of a view."""
    return account(v, engine.diagnose(v, catalogue.rules()), gaps, facts, source=source)
