"""`check` counts what stays: a busy server has connections in FIN_WAIT2 and CLOSE_WAIT at every moment."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from finwait.cli import check
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
