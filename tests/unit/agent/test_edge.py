"""The running machine, as far as it can be asked without any right."""

from __future__ import annotations

import os

from finwait.agent import edge
from finwait.kernel import netns
from finwait.kernel.closing import Counters


def test_a_way_to_a_namespace_is_none_once_its_descriptor_is_another_file() -> None:
    running = edge.Running()
    own, elsewhere = netns.own_netns(), 5
    fd = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        running._ways = (
            [(own, os.getpid(), fd), (elsewhere, os.getpid(), fd)],
            [(elsewhere + 1, os.getpid(), fd)],
        )
        found = {space.inode for space in running.namespaces()[0]}
    finally:
        os.close(fd)
    assert own in found
    assert not found & {elsewhere, elsewhere + 1}


def test_limits_of_the_machine_are_those_of_the_namespace_that_shows_them() -> None:
    def entry(**settings: int) -> Counters:
        return Counters(1, 0, 0, 7, 9, settings=settings)

    counters = {5: entry(), 4: entry(max_orphans=70, max_pages=90), 6: entry()}
    assert [(used.limit, used.used, used.most) for used in edge.of_machine(counters, {})] == [
        ("orphans", 7, 70),
        ("tcp-mem", 9, 90),
    ]
    assert list(edge.of_machine({5: entry()}, {})) == []
