"""Two diagnoses compared: what got worse, what is not known, and what a group is known again by."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from finwait.attribution.process import ProcessView
from finwait.diagnosis import catalogue, engine
from finwait.diagnosis.comparison import ComparedSide, Comparison, compared
from finwait.diagnosis.view import NamespaceView, View
from finwait.errors import Gap
from finwait.report.compare import comparison_text
from finwait.uapi import tcp
from tests.unit.diagnosis.views import socket, view

HOUR_NS = 3600 * 10**9
GAP = Gap("pid 812", "list its descriptors", "CAP_SYS_PTRACE")


def held(
    *cookies: int, pid: int = 10, comm: str = "app", place: str = "host", state: int = tcp.CLOSE_WAIT
) -> View:
    """Connections that a process holds, in one namespace; the cookie is the inode, too."""
    return view(
        *(
            socket(
                state=state, inode=c, cookie=c, sport=1000 + c, rqueue=0, wqueue=0, timer=0,
                last_ack_recv_ms=900_000, last_data_recv_ms=900_000,
            )
            for c in cookies
        ),
        holders={c: [pid] for c in cookies},
        processes={pid: ProcessView(pid, comm=comm, netns=1)},
        namespaces={1: NamespaceView(1, (place,))},
    )  # fmt: skip


def side(v: View, *, at_h: float = 0, **more: Any) -> ComparedSide:
    facts: dict[str, Any] = {
        "label": "x", "hostname": "web-1", "kernel": "6.12", "boot_id": "b", "unix_ns": int(10**18 + at_h * HOUR_NS),
        "boottime_ns": int(10**12 + at_h * HOUR_NS), "view": v, "findings": engine.diagnose(v, catalogue.rules()),
        "gaps": (),
    }  # fmt: skip
    return ComparedSide(**(facts | more))


def text(both: Comparison) -> str:
    return "".join(comparison_text(both))


def test_a_group_that_grew_is_worse_with_its_rate_and_what_stayed() -> None:
    both = compared(side(held(1, 2, 3)), side(held(2, 3, 4, 5, 6, pid=77), at_h=2))
    (group,) = both.groups
    assert (group.change, group.before, group.after, group.stayed) == ("grew", 3, 5, 2)
    assert group.per_hour == pytest.approx(1.0)
    assert (group.worse, both.verdict) == (True, "worse")
    assert "Worse: 1 group of problems appeared or grew, by 2 together." in text(both)
    assert "B is 2.0 h later; same boot." in text(both)


def test_a_pid_is_no_identity_but_program_and_place_are() -> None:
    assert [g.change for g in compared(side(held(1)), side(held(1, pid=999))).groups] == ["same"]
    for other in (held(1, comm="other"), held(1, place="pod-2")):
        both = compared(side(held(1)), side(other))
        assert sorted(g.change for g in both.groups) == ["appeared", "vanished"]
        assert both.verdict == "worse"


def test_less_is_not_worse() -> None:
    both = compared(side(held(1, 2, 3)), side(held(3)))
    assert ([g.change for g in both.groups], both.verdict) == (["shrank"], "not worse")
    assert text(both).startswith("Not worse: no problem appeared or grew.")


def test_what_is_healthy_is_no_group() -> None:
    quiet = view(socket(state=tcp.TIME_WAIT, timer=3, expires_ms=50_000, inode=0, cookie=1))
    both = compared(side(quiet), side(quiet))
    assert (both.groups, both.verdict) == ((), "not worse")


@pytest.mark.parametrize(("gaps_a", "gaps_b"), [((GAP,), ()), ((), (GAP,)), ((GAP,), (GAP,))])
def test_a_gap_is_never_an_all_clear(gaps_a: tuple[Gap, ...], gaps_b: tuple[Gap, ...]) -> None:
    both = compared(side(held(1, 2), gaps=gaps_a), side(held(1), gaps=gaps_b))
    assert both.verdict == "unknown"
    assert text(both).startswith("Not known: no problem grew among what was seen")
    assert "list its descriptors" in text(both)


def test_growth_is_known_only_where_both_have_the_same_gaps() -> None:
    a, b = held(1), held(1, 2)
    assert compared(side(a, gaps=(GAP,)), side(b, gaps=(GAP,))).verdict == "worse"
    for gaps_a, gaps_b in (((GAP,), ()), ((), (GAP,))):
        both = compared(side(a, gaps=gaps_a), side(b, gaps=gaps_b))
        assert both.verdict == "unknown"
        assert [g.worse for g in both.groups] == [True]
        assert "worse?" in text(both)
        assert "may be a difference of looking: 1 part of " in text(both)


def test_owners_that_were_looked_for_on_one_side_only_make_it_unknown() -> None:
    blind = view(socket(state=tcp.CLOSE_WAIT, inode=1, cookie=1), searched=False)
    both = compared(side(blind), side(held(1)))
    assert both.verdict == "unknown"
    assert both.unequal == ("owners were looked for in B only",)


def test_of_another_boot_no_connection_is_followed_and_there_is_no_rate() -> None:
    both = compared(side(held(1)), side(held(1, 2), at_h=2, boot_id="c"))
    (group,) = both.groups
    assert (group.stayed, group.per_hour, both.same_boot) == (None, None, False)
    assert both.verdict == "worse"
    unknown = compared(side(held(1), boot_id=""), side(held(1)))
    assert unknown.same_boot is None
    assert "whether it was the same boot is not known" in text(unknown)


def test_looks_a_moment_apart_have_no_rate() -> None:
    assert compared(side(held(1)), side(held(1, 2), at_h=0.001)).groups[0].per_hour is None


def test_an_earlier_b_is_said() -> None:
    assert "B is 60 min earlier than A" in text(compared(side(held(1), at_h=1), side(held(1))))


def test_pseudonyms_are_no_identity() -> None:
    both = compared(
        side(held(1, comm="name-1a2b3c"), redacted=True), side(held(1, 2, comm="name-ffffff"), redacted=True)
    )
    (group,) = both.groups
    assert (group.name.program, group.name.place, group.change) == ("", "", "grew")
    assert both.same_boot is None
    assert "Names are pseudonyms" in text(both)


def test_a_notice_that_became_a_problem_is_worse() -> None:
    a, b = side(held(1)), side(held(1))
    softer = tuple(replace(f, severity="notice") for f in a.findings)
    both = compared(replace(a, findings=softer), b)
    assert (both.verdict, both.groups[0].change) == ("worse", "same")
    assert "close-wait" in text(both)
    assert compared(b, replace(a, findings=softer)).verdict == "not worse"


def test_what_the_filter_could_not_judge_is_unknown() -> None:
    assert compared(side(held(1)), side(held(1), unjudged=1)).verdict == "unknown"
