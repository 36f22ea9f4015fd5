"""What a rule cannot judge by counters that a kernel does not send is a gap; what never has counters is none."""

from __future__ import annotations

import numpy as np

from finwait.diagnosis.rules import uncounted
from finwait.uapi import tcp
from tests.unit.diagnosis.views import socket, view


def test_connections_without_a_counter_are_a_gap_of_each_namespace() -> None:
    v = view(
        socket(state=tcp.ESTABLISHED, bytes_received=1),
        socket(state=tcp.ESTABLISHED),
        socket(state=tcp.FIN_WAIT1),
        socket(state=tcp.ESTABLISHED, netns=2),
        socket(state=tcp.ESTABLISHED),  # not asked for
        socket(state=tcp.TIME_WAIT, timer=3),
        socket(state=tcp.FIN_WAIT2, timer=3),
        socket(state=tcp.NEW_SYN_RECV),
        socket(state=tcp.ESTABLISHED, protocol=262),
    )
    rows = np.arange(len(v)) != 4
    gaps = uncounted(v, rows, "whether data arrives", "bytes_received")
    assert [(gap.netns, gap.doing) for gap in gaps] == [
        (1, "tell whether data arrives of 2 connections"),
        (2, "tell whether data arrives of 1 connection"),
    ]
    assert {gap.needs for gap in gaps} == {"a kernel, or a text, that reports bytes_received"}
    both = uncounted(v, rows, "whether data arrives", "bytes_received", "snd_wnd")
    assert both[0].doing == "tell whether data arrives of 3 connections"
    assert not uncounted(v, rows & False, "whether data arrives", "bytes_received")
