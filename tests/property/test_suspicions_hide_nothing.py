"""No cause hides a graver one, and nothing that a stranger has makes a connection look better.

A namespace that is connected with nothing here may have any address: that of a peer on another machine as well.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from finwait.diagnosis import catalogue, engine
from finwait.diagnosis.finding import Finding
from finwait.diagnosis.view import NamespaceView, Options, View
from finwait.table.sockets import pack_address
from finwait.uapi import tcp
from tests.property.test_nothing_is_silently_fine import tables
from tests.unit.diagnosis.views import socket, view

ANY = [
    tcp.ESTABLISHED,
    tcp.FIN_WAIT1,
    tcp.FIN_WAIT2,
    tcp.CLOSE_WAIT,
    tcp.LAST_ACK,
    tcp.SYN_SENT,
    tcp.TIME_WAIT,
]
GRAVITY = {"healthy": 1, "notice": 2, "problem": 3}
RULES = catalogue.rules()
SOFTENS = {rule.name: rule.softens for rule in RULES}


def made(
    draw: st.DrawFn, rows: list[dict[str, Any]], namespaces: dict[int, NamespaceView]
) -> tuple[View, View]:
    """The same view twice, once with a namespace in which no connection of theirs ends."""
    addresses = {pack_address(row["dst"]) for row in rows} | {pack_address("192.0.2.1")}
    stranger = {99: NamespaceView(99, ("stranger",), addresses=frozenset(addresses), island=99)}
    fits = [
        row | {
            "netns": 99, "src": row["dst"], "dst": row["src"], "sport": row["dport"], "dport": row["sport"],
            "state": draw(st.sampled_from(ANY)), "cookie": 900 + k, "inode": draw(st.sampled_from([0, 900])),
        }
        for k, row in enumerate(rows)
        if row["state"] != tcp.LISTEN and draw(st.booleans())
    ]  # fmt: skip
    watched = draw(st.sampled_from([0, 3500]))
    before = [row | ({"rqueue": 90_000} if "rqueue" in row else {}) for row in fits]  # strangers read
    holders = draw(st.sampled_from([{}, {7: [500]}, {7: [500, 501], 8: [500]}])) | {900: [900]}
    unreadable = (1,) if draw(st.booleans()) else ()
    options = Options(idle_ms=draw(st.sampled_from([1, 600_000])))
    plain, with_stranger = (
        view(
            *rows, *more, holders=holders, unreadable=unreadable, earlier=[*rows, *then] if watched else None,
            watched_ms=watched, options=options, namespaces=spaces,
        )
        for more, then, spaces in (([], [], namespaces), (fits, before, namespaces | stranger))
    )  # fmt: skip
    return plain, with_stranger


STUCK = [
    {"state": state, "inode": 7, "timer": timer, "shutdown": shut, "rqueue": 0, "wqueue": 0, "retrans": 0}
    for state, shut in ((tcp.FIN_WAIT2, 2), (tcp.FIN_WAIT2, 3), (tcp.CLOSE_WAIT, 1), (tcp.ESTABLISHED, 0))
    for timer in (0, 2)
]


@st.composite
def pairs(draw: st.DrawFn) -> tuple[View, View]:
    stuck = [
        socket(**cells, sport=5000 + k)
        for k, cells in enumerate(draw(st.lists(st.sampled_from(STUCK), max_size=3)))
    ]
    return made(
        draw,
        draw(tables()) + stuck,
        {n: NamespaceView(n, dumped=draw(st.booleans()), island=1) for n in (1, 2)},
    )


def gravity(v: View, findings: tuple[Finding, ...]) -> np.ndarray[Any, Any]:
    out = np.zeros(len(v), np.int64)
    for finding in findings:
        if finding.primary:
            out[finding.rows] = GRAVITY[finding.severity]
    return out


@given(pairs())
def test_an_address_that_a_stranger_has_makes_no_connection_look_better(both: tuple[View, View]) -> None:
    before, after = (gravity(v, engine.diagnose(v, RULES)) for v in both)
    assert (after[: len(before)] >= before).all()


@given(pairs())
def test_what_a_stranger_has_says_nothing_of_a_peer(both: tuple[View, View]) -> None:
    said = [
        {
            (f.rule, f.title, f.primary, tuple(f.rows.tolist()), tuple(e.value for e in f.evidence))
            for f in engine.diagnose(v, RULES)
            if f.netns != 99
            and f.rule not in ("idle-unprobed", "nat-zombie")  # which ask for a probe of what is open
        }
        for v in both
    ]
    assert said[0] == said[1]


@given(pairs())
def test_no_cause_hides_a_graver_one(both: tuple[View, View]) -> None:
    for v in both:
        findings = engine.diagnose(v, RULES)
        primary = {row: f for f in findings if f.primary for row in f.rows.tolist()}
        for other in findings:
            for row in () if other.primary else other.rows.tolist():
                main = primary[row]
                if other.rule not in SOFTENS[main.rule]:
                    assert GRAVITY[main.severity] >= GRAVITY[other.severity], (main.rule, other.rule)


@given(pairs(), st.integers(0, 2**10 - 1))
def test_the_cause_of_a_connection_is_the_same_in_any_filter(both: tuple[View, View], chosen: int) -> None:
    v = both[0]
    whole = gravity(v, engine.diagnose(v, RULES))
    only = np.array([bool(chosen >> (k % 10) & 1) for k in range(len(v))], np.bool_)
    assert (gravity(v, engine.diagnose(v, RULES, only)) == np.where(only, whole, 0)).all()


def test_every_rule_that_softens_others_names_rules_that_there_are() -> None:
    for rule in RULES:
        assert set(rule.softens) <= set(SOFTENS)
        assert not rule.softens or rule.grade is not None
        assert rule.name not in rule.softens
