"""No connection in a closing state passes for healthy because nobody has a word for it.

Whatever the kernel may say of a row (any state, timer, queue, and any column missing), a diagnosis has a finding that
holds it, also where a FILTER narrows it and where the caller chose the rules.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from finwait.diagnosis import catalogue, engine
from finwait.diagnosis.context import ViewContext
from finwait.diagnosis.view import View
from finwait.session import rules_for
from finwait.table.filter import parse
from finwait.uapi import tcp
from tests.unit.diagnosis.views import socket, view

OPEN = (tcp.ESTABLISHED, tcp.LISTEN, tcp.BOUND_INACTIVE)
STATES = [s for s in range(16) if s not in OPEN]
SMALL = st.sampled_from([0, 0, 1, 2, 3, 9, 70_000])
COLUMNS: dict[str, st.SearchStrategy[Any]] = {
    "timer": st.integers(0, 5), "inode": st.sampled_from([0, 0, 7, 8]), "retrans": st.integers(0, 9),
    "expires_ms": SMALL, "rqueue": SMALL, "wqueue": SMALL, "uid": st.sampled_from([0, 1000]),
    "shutdown": st.integers(0, 3), "snd_wnd": SMALL, "notsent_bytes": SMALL, "unacked": SMALL,
    "backoff": st.integers(0, 9), "last_ack_recv_ms": SMALL, "last_data_recv_ms": SMALL, "last_data_sent_ms": SMALL,
    "bytes_received": SMALL, "bytes_acked": SMALL, "ulp": st.sampled_from([b"", b"mptcp", b"tls"]),
    "cgroup_id": st.integers(0, 2), "mptcp_token": st.integers(1, 3), "mptcp_token_local": st.integers(1, 3),
    "protocol": st.sampled_from([6, 6, 6, 262]),
}  # fmt: skip


@st.composite
def tables(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Draw rows that all have, or all lack, each column, as of one kernel; some are the two ends of a connection."""
    there = [name for name in COLUMNS if draw(st.booleans())]
    rows: list[dict[str, Any]] = []
    for k in range(draw(st.integers(1, 5))):

        def cells() -> dict[str, Any]:
            return {name: draw(COLUMNS[name]) for name in there}

        state = draw(st.sampled_from([*STATES, *STATES, *OPEN]))
        one = socket(state=state, cookie=1 + k, sport=4000 + k, netns=draw(st.integers(1, 2)), **cells())
        rows.append(one)
        if draw(st.booleans()):
            ends = {"src": one["dst"], "dst": one["src"], "sport": one["dport"], "dport": one["sport"]}
            other = one | cells() | ends
            rows.append(other | {"state": draw(st.sampled_from([*STATES, *OPEN])), "cookie": 100 + k})
    return rows


def built(draw: st.DrawFn, rows: list[dict[str, Any]]) -> View:
    earlier, watched = None, 0
    if draw(st.booleans()):
        earlier = [
            row | ({"bytes_acked": 5} if "bytes_acked" in row and draw(st.booleans()) else {}) for row in rows
        ]
        watched = draw(st.sampled_from([500, 3500]))
    holders = draw(st.sampled_from([{}, {7: [500]}, {7: [500, 501], 8: [500]}]))
    unreadable = (1,) if draw(st.booleans()) else ()
    return view(*rows, holders=holders, unreadable=unreadable, earlier=earlier, watched_ms=watched)


@st.composite
def views(draw: st.DrawFn) -> View:
    return built(draw, draw(tables()))


def told(v: View, findings: tuple[Any, ...]) -> np.ndarray[Any, Any]:
    """Return which rows have a primary finding; none has two."""
    count = np.zeros(len(v), np.int64)
    for finding in findings:
        if finding.primary:
            count[finding.rows] += 1
    assert count.max(initial=0) <= 1
    return count > 0


def wanted(v: View) -> np.ndarray[Any, Any]:
    return ~np.isin(v.sockets.state, OPEN)


@given(views())
def test_every_row_that_is_neither_open_nor_listening_has_one_primary_finding(v: View) -> None:
    assert told(v, engine.diagnose(v, catalogue.rules()))[wanted(v)].all()


@given(views(), st.lists(st.sampled_from(catalogue.NAMES), max_size=4))
def test_so_it_is_whatever_rules_the_caller_chose(v: View, names: list[str]) -> None:
    assert told(v, engine.diagnose(v, rules_for(names)))[wanted(v)].all()


FILTERS = [
    "state connected", "held", "orphan", "timer = 0", "retrans > 0", "rqueue > 0 or wqueue > 0", "netns = 2",
    "pid = 500", "snd_wnd > 0", "not snd_wnd > 0", "shutdown != 3", "age > 1s", "comm != sshd",
    "rule = unexplained", "severity != problem",
]  # fmt: skip


@given(views(), st.sampled_from(FILTERS))
def test_what_a_filter_selects_is_told_and_nothing_else(v: View, text: str) -> None:
    findings = engine.diagnose(v, catalogue.rules())
    mask = parse(text).mask(v.sockets, ViewContext(v, findings))
    narrowed = engine.diagnose(v, catalogue.rules(), mask)
    assert told(v, narrowed)[wanted(v) & mask].all()
    assert not told(v, narrowed)[~mask].any()
    for finding in narrowed:
        assert mask[finding.rows].all()


@given(views())
def test_what_no_rule_explains_is_never_called_healthy_and_never_said_to_end_by_itself(v: View) -> None:
    for finding in engine.diagnose(v, catalogue.rules()):
        if finding.rule == "unexplained":
            assert finding.severity in ("notice", "problem")
            old = v.at_least_ms[finding.rows] >= 3000
            assert (finding.severity == "problem") == old.all() == old.any()
            assert finding.confidence.look_again == (finding.severity == "notice")
