"""Both ends of a group: what a state says of either FIN, whose move it is, and commands that no name can get into."""

from __future__ import annotations

import pytest

from finwait.attribution.process import ProcessView
from finwait.diagnosis import catalogue, engine
from finwait.diagnosis.finding import Finding
from finwait.diagnosis.view import NamespaceView, View
from finwait.report.by_hand import by_hand
from finwait.report.two_ends import two_ends
from finwait.uapi import tcp
from tests.unit.diagnosis.views import socket, view


def group_of(v: View) -> Finding:
    return next(f for f in engine.diagnose(v, catalogue.rules()) if f.primary)


def held(state: int, *, name: str = "host", netns: int | None = 1, **more: int) -> View:
    cells = {
        "state": state, "inode": 5, "cookie": 5, "shutdown": 2, "timer": 0, "rqueue": 0, "wqueue": 0,
        "last_ack_recv_ms": 900_000, "last_data_recv_ms": 900_000,
    }  # fmt: skip
    return view(
        socket(**(cells | more)),
        holders={5: [10]},
        processes={10: ProcessView(10, comm="app", netns=netns)},
        namespaces={1: NamespaceView(1, (name,) if name else ())},
    )


@pytest.mark.parametrize(
    ("state", "ours", "theirs"),
    [
        (tcp.FIN_WAIT1, "open", "none"),
        (tcp.FIN_WAIT2, "acknowledged", "none"),
        (tcp.CLOSE_WAIT, "none", "acknowledged"),
        (tcp.LAST_ACK, "open", "acknowledged"),
        (tcp.CLOSING, "open", "acknowledged"),
    ],
)
def test_a_state_says_which_fin_passed(state: int, ours: str, theirs: str) -> None:
    v = held(state)
    (picture,) = two_ends(v, group_of(v))
    assert (picture.ours.passed, picture.theirs.passed) == (ours, theirs)
    assert picture.here.state == tcp.state_name(state)
    assert ("held by", "app (10)") in picture.here.lines


def test_of_a_peer_elsewhere_nothing_is_known_but_its_address() -> None:
    v = held(tcp.FIN_WAIT2)
    (picture,) = two_ends(v, group_of(v))
    assert picture.there.state == ""
    assert dict(picture.there.lines) == {
        "address": "192.0.2.1:80",
        "state": "not known: it was not found on this machine",
    }
    assert (picture.here.moves, picture.there.moves) == (False, True)


def test_it_is_not_the_move_of_an_end_that_has_sent_its_fin() -> None:
    v = held(tcp.CLOSE_WAIT)
    (picture,) = two_ends(v, group_of(v))
    assert (picture.here.moves, picture.there.moves) == (True, False)


def test_a_timer_is_told_with_when_it_fires() -> None:
    v = held(tcp.FIN_WAIT2, timer=2, expires_ms=58_000)
    (picture,) = two_ends(v, group_of(v))
    assert dict(picture.here.lines)["timer"] == "keepalive, fires in 58 s"


def test_commands_run_in_the_namespace_of_the_group() -> None:
    def first(v: View) -> tuple[str, str]:
        command = by_hand(v, group_of(v))[0]
        return command.command, command.shows

    ask = "ss -tanoep state fin-wait-2 '( sport = :4000 )'"
    assert first(held(tcp.FIN_WAIT2))[0] == ask
    assert first(held(tcp.FIN_WAIT2, name="blue"))[0] == f"nsenter -t 10 -n {ask}"
    assert first(held(tcp.FIN_WAIT2, name="blue", netns=2))[0] == f"ip netns exec blue {ask}"
    command, shows = first(held(tcp.FIN_WAIT2, name="", netns=2))
    assert command == ask
    assert "in network namespace 1" in shows


@pytest.mark.parametrize("name", ["x; reboot", "$(reboot)", "`reboot`", "-x", "a b", "a\nb", "x'y", "../x"])
def test_no_name_gets_into_a_command(name: str) -> None:
    v = held(tcp.FIN_WAIT2, name=name, netns=2)
    for each in by_hand(v, group_of(v)):
        assert name not in each.command
        assert "ip netns" not in each.command
