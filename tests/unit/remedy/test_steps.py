"""What a step of a plan says of the connection that it acts on."""

from __future__ import annotations

from typing import Any

import pytest

from finwait.remedy.steps import step_of
from finwait.uapi import tcp
from tests.unit.diagnosis.test_rules import HELD
from tests.unit.diagnosis.views import socket, view

DOOR = socket(state=tcp.LISTEN, inode=5, sport=4000, src="0.0.0.0", dst="0.0.0.0", dport=0, rqueue=1)
QUEUED = HELD | {"state": tcp.CLOSE_WAIT, "inode": 0, "shutdown": 0}


@pytest.mark.parametrize("doors", [0, 1, 2])
def test_a_connection_that_waits_to_be_accepted_is_no_orphan_and_its_peer_sees_a_reset(doors: int) -> None:
    """Its listener may be any row, also the first one."""
    others = [DOOR | {"sport": 4000 + k, "inode": 5 + k} for k in range(doors)]
    for rows in ([*others, QUEUED], [QUEUED, *others]):
        step = step_of(view(*rows), rows.index(QUEUED), "never-accepted", "destroy")
        assert step.sees == ("reset" if doors else "reset-if-path")
        assert bool(step.stays) is bool(doors)


@pytest.mark.parametrize(
    ("means", "cells", "sees"),
    [
        ("fin", {"rqueue": 0}, "fin"),
        ("fin", {"rqueue": 1}, "fin"),
        ("fin", {"rqueue": 2}, "fin-then-reset"),
        ("keepalive", {}, "probe"),
        ("user-timeout", {}, "give-up"),
        ("destroy", {}, "reset"),
        ("destroy", {"inode": 0, "timer": 3}, "nothing"),
        ("destroy", {"inode": 0}, "reset-if-path"),
    ],
)
def test_what_the_peer_sees_of_each_means(means: Any, cells: dict[str, Any], sees: str) -> None:
    v = view(HELD | cells, holders={7: [500]})
    assert step_of(v, 0, "fin-wait2-held", means).sees == sees
