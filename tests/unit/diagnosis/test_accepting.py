"""Whether the program behind a listener accepts, and what is said where nothing tells."""

from __future__ import annotations

import numpy as np
import pytest

from finwait.attribution.process import ProcessView
from finwait.diagnosis import catalogue, engine
from finwait.diagnosis.rules.accept_queue_full import FASTER, stuck
from finwait.diagnosis.view import NamespaceView
from finwait.uapi import tcp
from tests.unit.diagnosis.test_rules import DOOR, INFO, E, of_door, queued
from tests.unit.diagnosis.views import socket, view

DROPS = {1: NamespaceView(1, counters={"TcpExt.ListenOverflows": 9}, before={"TcpExt.ListenOverflows": 5})}
TWO_DOORS = (DOOR, DOOR | {"inode": 6, "cookie": 2})
ITS_OWN = {5: [9], 6: [10]}


@pytest.mark.parametrize("shared", [False, True])
def test_a_queue_in_which_none_of_the_first_look_is_left_was_taken_from(shared: bool) -> None:
    """An overloaded server is full at every look, and accepts all the time."""
    doors = TWO_DOORS if shared else TWO_DOORS[:1]
    old, new = queued(3 * len(doors)), queued(3 * len(doors), first=200)
    v = view(*doors, *new, holders=ITS_OWN, earlier=[*doors, *old], watched_ms=4000, namespaces=DROPS)
    severity, title, certainty, _ = of_door(v)
    assert (severity, certainty) == ("notice", "certain")
    assert "although the program accepts" in title
    assert v.accepting.taken[: len(doors)].all()
    assert v.busy_pids == ({9, 10} if shared else {9}), "its program does something"
    waiting = [f for f in engine.diagnose(v, catalogue.rules()) if f.rule == "never-accepted"]
    assert [(f.severity, f.variant) for f in waiting] == [("notice", 1)]
    advice = [remedy.text for f in waiting for remedy in f.ends_it]
    assert FASTER.text in advice
    assert "restart" not in " ".join(advice)


def test_of_listeners_that_share_an_address_it_is_not_said_which_accepts_where_nothing_tells() -> None:
    stuck, new = queued(3), queued(3, first=200)
    first_look = [*TWO_DOORS, *stuck, *queued(3, first=300)]
    v = view(*TWO_DOORS, *stuck, *new, holders=ITS_OWN, earlier=first_look, watched_ms=4000, namespaces=DROPS)
    severity, title, certainty, again = of_door(v)
    assert (severity, certainty, again) == ("problem", "possible", False)
    assert "one may accept nothing" in title
    assert "accepts nothing;" not in title
    assert v.accepting.perhaps[:2].all()
    waiting = [f for f in engine.diagnose(v, catalogue.rules()) if f.rule == "never-accepted"]
    assert {f.severity for f in waiting} == {"problem"}


def test_a_process_with_a_listener_of_its_own_and_a_new_connection_accepts() -> None:
    stuck, new = queued(3), queued(3, first=200)
    served = socket(state=E, inode=77, sport=80, dport=4999, cookie=400, **INFO) | {"last_data_recv_ms": 10}
    rows, first_look = (*TWO_DOORS, *stuck, *new, served), [*TWO_DOORS, *stuck, *queued(3, first=300)]
    v = view(*rows, holders=ITS_OWN | {77: [10]}, earlier=first_look, watched_ms=4000, namespaces=DROPS)
    assert v.accepting.taken[:2].tolist() == [False, True]
    assert v.accepting.perhaps[:2].tolist() == [True, False]
    assert of_door(v)[0] == "problem"
    # A connection that workers share, or that is older, tells nothing.
    both = view(*rows, holders={5: [9, 10], 6: [9, 10], 77: [10]}, earlier=first_look, watched_ms=4000)
    assert both.accepting.perhaps[:2].all()
    old = view(*rows, holders=ITS_OWN | {77: [10]}, earlier=[*first_look, served], watched_ms=4000)
    assert old.accepting.perhaps[:2].all()


def test_a_row_that_comes_between_two_dumps_of_one_look_is_no_proof_that_another_was_taken() -> None:
    rows = [DOOR, *queued(4)]  # three in the queue when listeners were dumped, four when connections were
    v = view(*rows, holders={5: [9]}, earlier=rows[:4], watched_ms=4000)
    assert not v.accepting.taken.any()
    assert of_door(v)[0] == "problem"


def test_one_look_does_not_tell_a_slow_accept_loop_from_one_that_hangs() -> None:
    waiting = [
        f for f in engine.diagnose(view(DOOR, *queued(3)), catalogue.rules()) if f.rule == "never-accepted"
    ]
    assert [(f.severity, f.confidence.look_again) for f in waiting] == [("problem", True)]
    rows = [DOOR, *queued(3)]
    v = view(*rows, earlier=rows, watched_ms=4000)
    (again,) = (f for f in engine.diagnose(v, catalogue.rules()) if f.rule == "never-accepted")
    assert (again.severity, again.confidence.look_again) == ("problem", False)


def test_who_connects_to_a_full_queue_is_told_whether_its_program_accepts() -> None:
    opening = socket(
        state=tcp.SYN_SENT, timer=1, retrans=3, src="10.0.0.1", dst="10.0.0.1", sport=5000, cookie=500
    )
    opening |= {"expires_ms": 900}
    for left, said in ((queued(3), False), (queued(3, first=200), True)):
        v = view(DOOR, *left, opening, holders={5: [9]}, earlier=[DOOR, *queued(3)], watched_ms=4000)
        (found,) = (f for f in engine.diagnose(v, catalogue.rules()) if f.rule == "syn-unanswered")
        (door,) = (e.says for e in found.evidence if e.column == "full listener")
        assert ("which accepts, but too slowly" in door) == said
        assert not any("accept again" in remedy.text for remedy in found.ends_it)


def test_nothing_is_accepted_only_if_all_that_share_the_address_are_stopped() -> None:
    doors = np.array([0, 1])

    def stopped(*states: str) -> bool:
        processes = {pid: ProcessView(pid, "app", state=s) for pid, s in zip((9, 10), states, strict=True)}
        return stuck(view(*TWO_DOORS, holders=ITS_OWN, processes=processes), doors)

    assert [stopped(*states) for states in ("TT", "TS", "ST", "SS")] == [True, False, False, False]
    assert not stuck(view(*TWO_DOORS), doors), "nobody is known to hold them"
    assert not stuck(view(*TWO_DOORS, holders=ITS_OWN), np.array([], np.int64))
