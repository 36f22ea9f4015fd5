"""When a program notices that its connection was destroyed."""

from __future__ import annotations

from typing import Any

import pytest

from finwait.remedy.cost import cost_of
from finwait.uapi import tcp
from finwait.uapi.eventpoll import EPOLLIN, EPOLLONESHOT, EPOLLOUT
from finwait.uapi.observation import LoopWatch, ProcessWaits
from tests.unit.diagnosis.test_moves import BUSY, CLOSE_WAIT, FIN_WAIT2, asleep, inside, watched
from tests.unit.diagnosis.views import socket, view

SPENT = (LoopWatch(9, 1, ((3, EPOLLONESHOT, 7),)),)


@pytest.mark.parametrize(
    ("state", "waits", "notice"),
    [
        (FIN_WAIT2, ProcessWaits((inside("recvfrom"),)), "at once"),
        (FIN_WAIT2, ProcessWaits((inside("poll", "set", 1, limited=True, timeout_ms=9),)), "at once"),
        (FIN_WAIT2, ProcessWaits((asleep(9),), watched(EPOLLIN)), "at once"),
        (FIN_WAIT2, ProcessWaits((asleep(9),), watched(EPOLLOUT)), "at once"),
        (CLOSE_WAIT, ProcessWaits((asleep(9),), watched(0)), "at once"),  # an error is told unasked
        (CLOSE_WAIT, ProcessWaits((asleep(9),), SPENT), "when it comes back"),
        (CLOSE_WAIT, ProcessWaits((asleep(4),), watched(EPOLLOUT)), "when it comes back"),
        (FIN_WAIT2, ProcessWaits((BUSY,)), "when it comes back"),
        (CLOSE_WAIT, ProcessWaits((BUSY,), watched(EPOLLIN)), "when it comes back"),
        (FIN_WAIT2, ProcessWaits((BUSY,), rings=(4,)), "unknown"),
    ],
)
def test_who_waits_for_it_notices_at_once(state: dict[str, Any], waits: ProcessWaits, notice: str) -> None:
    v = view(socket(inode=7, cookie=1, **state), holders={7: [10]}, waits={10: waits})
    assert cost_of(v, 0, {}, resets=True, purges=False).notice == notice


def test_what_nobody_holds_nobody_notices() -> None:
    v = view(socket(state=tcp.FIN_WAIT1, cookie=1))
    assert cost_of(v, 0, {}, resets=True, purges=False).notice == "nobody holds it"
