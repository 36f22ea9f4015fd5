"""`check` counts what stays: a busy server has connections in FIN_WAIT2 and CLOSE_WAIT at every moment."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from msgspec.structs import replace

from finwait.cli import check
from finwait.diagnosis import catalogue, engine
from finwait.diagnosis.select import Narrowed
from finwait.selecting import parse_filter
from finwait.uapi import tcp
from tests.unit.diagnosis.views import socket, view

NOW = socket(state=tcp.CLOSE_WAIT, inode=7, cookie=1, last_ack_recv_ms=4)


def passing(**looked: Any) -> bool:
    diagnosis: Any = SimpleNamespace(view=view(NOW, **looked))
    (one,) = check._passing(diagnosis).tolist()
    return bool(one)


def test_after_one_look_what_is_not_known_to_be_old_may_pass() -> None:
    assert passing()


def test_after_two_looks_only_what_the_first_did_not_see_passes() -> None:
    assert passing(earlier=[NOW | {"cookie": 2}], watched_ms=3_500)
    assert not passing(earlier=[NOW], watched_ms=3_500)


def test_what_the_first_look_did_not_see_and_is_old_all_the_same_stays() -> None:
    diagnosis: Any = SimpleNamespace(
        view=view(NOW | {"last_ack_recv_ms": 60_000}, earlier=[NOW | {"cookie": 2}], watched_ms=3_500)
    )
    assert check._passing(diagnosis).tolist() == [False]


def counted(*earlier: dict[str, Any]) -> check._Counted:
    """What is counted of a connection in a state that no rule explains, and of one that a FILTER cannot judge."""
    strange = NOW | {"state": 14, "cookie": 3}
    v = view(NOW, strange, holders={7: [9]}, earlier=list(earlier), watched_ms=3_500)
    found = engine.diagnose(v, catalogue.rules())
    (whole,) = (f for f in found if f.rule == "close-wait-eof-read" or f.rule == "close-wait-eof-unread")
    some = [replace(f, severity="notice") for f in found if f.rule == "unexplained"]
    narrowed = Narrowed(parse_filter(["comm = app"]), v.held, (replace(whole, severity="problem"),))
    diagnosis: Any = SimpleNamespace(view=v, findings=some, gaps=(), narrowed=narrowed)
    args: Any = SimpleNamespace(recording=None, severity="problem", min_age=0, filter=[], established="auto")
    return check._counted(args, check._Looks(diagnosis, diagnosis))


def test_what_just_passes_is_neither_unexplained_nor_unjudged() -> None:
    strange = NOW | {"state": 14, "cookie": 3}
    stays = counted(NOW, strange)
    assert stays.unexplained == 1
    assert len(stays.not_seen) == 1
    passes = counted(NOW | {"cookie": 8}, strange | {"cookie": 9})
    assert passes.unexplained == 0
    assert not passes.not_seen
