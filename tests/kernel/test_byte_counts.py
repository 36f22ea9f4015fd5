"""What the byte counters of two real ends count besides bytes, and what is said of an end that exchanged one byte."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pytest

from finwait import session
from finwait.diagnosis.arrival import syn_counted
from finwait.diagnosis.rules import just_sent
from finwait.diagnosis.view import View
from finwait.lab.topology import Lab, unmet
from finwait.session import Diagnosis, Look
from finwait.uapi.observation import LookPlan
from tests.kernel.acting_pair import Pair, row_of
from tests.kernel.needs import missing

pytestmark = pytest.mark.kernel


@pytest.fixture(autouse=True)
def _needs() -> None:
    if lacking := unmet(("netns", "tool:nft")):
        missing("; ".join(lacking))


def until(lab: Lab, done: Callable[[View], bool]) -> Diagnosis:
    plan = LookPlan(only=frozenset(ns.inode for ns in lab.namespaces.values()), established_limit=None)
    end = time.monotonic() + 20
    while True:
        diagnosis = session.diagnose(how=Look(plan=plan))
        if done(diagnosis.view):
            return diagnosis
        assert time.monotonic() < end, "it never came to that"
        time.sleep(0.02)


def counts(view: View, pair: Pair) -> list[tuple[int, int]]:
    """`bytes_acked` and `bytes_received` of the end that opened and of the one that accepted."""
    s = view.sockets
    return [
        (int(s.bytes_acked[row]), int(s.bytes_received[row]))
        for row in (row_of(view, pair.ours[0]), row_of(view, pair.theirs[0]))
    ]


def roles(view: View, pair: Pair) -> list[int]:
    syn = syn_counted(view)
    return [int(syn[row_of(view, end[0])]) for end in (pair.ours, pair.theirs)]


def test_a_syn_counts_where_the_connection_was_opened_and_a_fin_at_both_ends() -> None:
    with Lab() as lab:
        pair = Pair(lab)
        steps: list[tuple[Callable[[], object], list[tuple[int, int]]]] = [
            (lambda: None, [(1, 0), (0, 0)]),
            (lambda: pair.far.send(pair.theirs, "x"), [(1, 1), (1, 0)]),
            (lambda: pair.near.send(pair.ours, "abc"), [(4, 1), (1, 3)]),
            (lambda: pair.near.shutdown(pair.ours, "WR"), [(5, 1), (1, 4)]),
            (lambda: pair.far.send(pair.theirs, "y"), [(5, 2), (2, 4)]),
        ]
        for step, wanted in steps:
            step()
            seen = until(lab, lambda view, wanted=wanted: counts(view, pair) == wanted)  # type: ignore[misc]
            assert roles(seen.view, pair) == [1, 0]


def test_an_end_that_accepted_and_answered_with_one_byte_may_still_be_answering() -> None:
    with Lab() as lab:
        pair = Pair(lab, 2)
        pair.near.shutdown(pair.ours, "WR")
        pair.far.read_to_end(pair.theirs)
        pair.far.send(pair.theirs[:1], "x")
        both = until(lab, lambda view: counts(view, pair)[1] == (1, 1)).view
        answers, silent = (row_of(both, end) for end in pair.theirs)
        assert just_sent(both)[[answers, silent]].tolist() == [True, False]


@pytest.mark.parametrize("accepted", [False, True], ids=["opened", "accepted"])
@pytest.mark.parametrize("back", [False, True], ids=["there", "back"])
def test_of_one_byte_it_is_told_which_way_packets_are_lost(accepted: bool, back: bool) -> None:
    with Lab() as lab:
        pair = Pair(lab)
        program, end = (pair.far, pair.theirs) if accepted else (pair.near, pair.ours)
        pair.link.cut(a=accepted != back, b=accepted == back)
        program.send(end, "x")

        def repeated(view: View) -> bool:
            return bool(view.sockets.retrans[row_of(view, end[0])] >= 2)

        diagnosis = until(lab, repeated)
        row = row_of(diagnosis.view, end[0])
        (finding,) = (f for f in diagnosis.findings if f.primary and np.isin(row, f.rows))
        (seen,) = (e for e in finding.evidence if e.column == "other end")
        assert f"lost on the way {'back' if back else 'there'}" in seen.says
        assert ("the peer has received" in finding.title) is back
        assert roles(diagnosis.view, pair) == [1, 0]
