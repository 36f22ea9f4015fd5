"""What a diagnosis says of connections: who else holds them."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from finwait.agent import causes
from finwait.agent.leak import Used
from finwait.attribution.owners import HolderRows


def test_processes_beside_the_lowest_that_hold_a_connection_are_told_once_each() -> None:
    holders = HolderRows(
        start=np.array([0, 1, 4, 4, 6], np.int64),
        count=np.array([1, 3, 0, 2, 3], np.int64),
        pid=np.array([5, 5, 6, 6, 7, 7, 5, 5, 6], np.uint32),
        fd=np.array([3, 3, 3, 4, 3, 4, 8, 9, 8], np.uint32),
    )
    sets, which = causes._other_pids(SimpleNamespace(holders=holders), np.arange(5))  # type: ignore[arg-type]
    assert [sets[k] for k in which.tolist()] == [(), (6,), (), (), (6,)]


def test_one_workload_with_many_full_queues_hides_no_other() -> None:
    many = [Used("ports", f"to {k}", 900 - k, 1000, workload="proxy") for k in range(300)]
    one = Used("ports", "to db", 10, 1000, workload="web")
    queue = Used("accept-queue", "at web", 1, 1000, workload="web")
    told = causes.fullest([*many, one, queue], 100)
    assert len(told) == 100
    assert {one, queue, many[0], many[50]} <= set(told)
