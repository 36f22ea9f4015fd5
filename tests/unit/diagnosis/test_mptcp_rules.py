"""Rules of open connections on MPTCP: the row of the connection is judged, once, by its subflows where those tell."""

from __future__ import annotations

from typing import Any

import numpy as np

from finwait.attribution.mptcp import subflows
from finwait.attribution.process import ProcessView
from finwait.diagnosis import catalogue, engine
from finwait.diagnosis.finding import Finding
from finwait.diagnosis.view import NamespaceView, Options, View
from finwait.table.sockets import pack_address
from finwait.uapi import tcp
from tests.unit.diagnosis.views import socket, view

E, CW = tcp.ESTABLISHED, tcp.CLOSE_WAIT
INFO: dict[str, Any] = {
    "last_ack_recv_ms": 60_000, "last_data_recv_ms": 60_000, "last_data_sent_ms": 60_000, "bytes_received": 160,
    "bytes_acked": 1, "snd_wnd": 65535, "backoff": 0, "unacked": 0,
}  # fmt: skip
OWNED = {7: [500]}
DOOR = socket(state=tcp.LISTEN, sport=4000, dst="0.0.0.0", dport=0, inode=9, cookie=99)


def pair(n: int, **whole: Any) -> list[dict[str, Any]]:
    """An MPTCP connection and its subflow."""
    at = {"dport": 80 + n, "inode": 7 + 10 * n}
    base = {"mptcp_bytes_received": 160, "mptcp_bytes_acked": 0, "state": E}
    return [
        socket(protocol=262, mptcp_token=n + 1, cookie=10 * n + 1, **(base | at | whole)),
        socket(state=E, ulp=b"mptcp", mptcp_token_local=n + 1, cookie=10 * n + 2, **INFO, **at),
    ]


def found(v: View, rule: str) -> list[Finding]:
    return [f for f in engine.diagnose(v, catalogue.rules()) if f.rule == rule]


def three(**whole: Any) -> list[dict[str, Any]]:
    return [row for n in range(3) for row in pair(n, **whole)]


HELD = {7 + 10 * n: [500] for n in range(3)}


def test_a_connection_and_its_subflow_are_joined_by_token_or_by_inode_where_no_token_is_told() -> None:
    rows = pair(0) + pair(1)
    assert [a.tolist() for a in subflows(view(*rows).sockets)] == [[0, 2], [1, 3]]
    del rows[1]["mptcp_token_local"]
    assert [a.tolist() for a in subflows(view(*rows).sockets)] == [[0, 2], [1, 3]]
    rows[1]["mptcp_token_local"] = 77
    assert [a.tolist() for a in subflows(view(*rows).sockets)] == [[2], [3]]


def test_unread_requests_on_mptcp_are_told_once_and_are_a_problem_where_nothing_is_read() -> None:
    rows = [DOOR, *three(rqueue=992)]
    (one,) = found(view(*rows, holders=HELD), "established-unread")
    assert one.severity == "notice"
    assert one.rows.tolist() == [1, 3, 5]
    (one,) = found(view(*rows, holders=HELD, earlier=rows, watched_ms=4000), "established-unread")
    assert one.severity == "problem"
    assert one.count == 3
    assert "memory" in next(e.says for e in one.evidence if e.column == "MPTCP connections")


def test_mptcp_connections_that_are_read_are_not_told() -> None:
    rows = [DOOR, *three(rqueue=992)]
    fuller = [DOOR, *three(rqueue=1500)]
    assert not found(view(*rows, holders=HELD, earlier=fuller, watched_ms=4000), "established-unread")
    fewer = [DOOR, *three(rqueue=992, mptcp_bytes_received=100)]  # more came, and no more lies there
    assert not found(view(*rows, holders=HELD, earlier=fewer, watched_ms=4000), "established-unread")


def test_where_more_came_on_mptcp_whether_some_was_read_is_not_known() -> None:
    rows = [DOOR, *three(rqueue=992)]
    less = [DOOR, *three(rqueue=500, mptcp_bytes_received=100)]
    (one,) = found(view(*rows, holders=HELD, earlier=less, watched_ms=4000), "established-unread")
    assert one.severity == "notice"


def test_what_the_kernel_takes_out_of_a_subflow_no_program_has_read() -> None:
    rows = pair(0)
    before = [rows[0], rows[1] | {"bytes_received": 10}]
    v = view(*rows, holders=OWNED, earlier=before, watched_ms=4000)
    assert not v.read.any()
    assert not v.busy_pids


def test_an_mptcp_connection_without_a_holder_is_told_once_open_or_closing() -> None:
    (one,) = found(view(*pair(0)), "holder-not-found")
    assert one.rows.tolist() == [0]
    assert one.severity == "notice"
    assert not any(remedy.command for remedy in one.ends_it)  # SOCK_DESTROY does not know MPTCP
    (one,) = found(view(*pair(0, state=CW)), "holder-not-found")
    assert one.severity == "problem"
    assert not found(view(*pair(0), holders=OWNED), "holder-not-found")
    fresh = pair(0)
    fresh[1]["last_data_recv_ms"] = 20
    assert not found(view(*fresh), "holder-not-found")


def test_a_silent_mptcp_connection_is_told_once_unless_a_subflow_is_probed() -> None:
    options = Options(idle_ms=30_000)
    (one,) = found(view(*pair(0), holders=OWNED, options=options), "idle-unprobed")
    assert one.rows.tolist() == [0]
    assert "MPTCP" in one.title
    assert not any(remedy.command for remedy in one.ends_it)  # `finwait probe` acts on single TCP connections
    probed = pair(0)
    probed[1]["timer"] = 2
    assert not found(view(*probed, holders=OWNED, options=options), "idle-unprobed")
    busy = pair(0)
    busy[1]["last_ack_recv_ms"] = 100
    assert not found(view(*busy, holders=OWNED, options=options), "idle-unprobed")


def test_an_mptcp_connection_whose_every_subflow_has_lost_its_peer_is_a_problem() -> None:
    peer = {1: NamespaceView(1, addresses=frozenset({pack_address("192.0.2.1")}))}
    (one,) = found(view(*pair(0), holders=OWNED, namespaces=peer), "idle-unprobed")
    assert (one.severity, one.rows.tolist()) == ("problem", [0])
    far = socket(
        state=E, ulp=b"mptcp", mptcp_token_local=1, cookie=3, dst="198.51.100.9", sport=4001, inode=50, **INFO
    )
    assert not found(view(*pair(0), far, holders=OWNED, namespaces=peer), "idle-unprobed")


def test_an_mptcp_connection_that_a_younger_child_keeps_is_inherited() -> None:
    processes = {500: ProcessView(500, "worker", ppid=400, age_ms=10_000, exe="/bin/worker")}
    processes[400] = ProcessView(400, "server", age_ms=900_000, exe="/bin/server")
    (one,) = found(view(*pair(0), holders=OWNED, processes=processes), "inherited-descriptor")
    assert one.rows.tolist() == [0]
    (one,) = found(
        view(*pair(0, state=CW), holders={7: [400, 500]}, processes=processes), "inherited-descriptor"
    )
    assert (one.severity, one.rows.tolist()) == ("problem", [0])


def test_a_subflow_whose_connection_no_kernel_lists_is_judged_itself() -> None:
    v = view(pair(0)[1], holders=OWNED, options=Options(idle_ms=30_000))
    assert found(v, "idle-unprobed")[0].rows.tolist() == [0]
    assert np.array_equal(v.own, [True])
