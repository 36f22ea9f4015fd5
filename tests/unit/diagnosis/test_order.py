"""Every row may be any socket: the first one may be another's other end, too."""

from __future__ import annotations

from typing import Any

import pytest

from finwait.diagnosis import catalogue, engine
from tests.unit.diagnosis.test_rules import CW, F1, F2, HELD, INFO, LA, OWNED, E
from tests.unit.diagnosis.views import socket, view


@pytest.mark.parametrize(
    ("ours", "far"),
    [
        (HELD, {"state": CW}),
        (HELD | {"rqueue": 9}, {"state": CW}),
        (HELD | {"rqueue": 9}, {"state": LA, "timer": 4, "wqueue": 7}),
        (HELD, {"state": LA, "timer": 1}),
        (HELD | {"state": CW, "shutdown": 1, "rqueue": 9}, {"state": F2}),
        (
            HELD | {"state": F1, "timer": 4, "snd_wnd": 0, "wqueue": 99, "backoff": 4},
            {"state": E, "rqueue": 9},
        ),
        (HELD | {"state": LA, "timer": 1, "retrans": 5}, {"state": F2}),
        (HELD | {"state": F1, "timer": 1, "retrans": 2}, {"state": E}),
        (HELD | {"state": F1, "timer": 0}, {"state": E}),
        (HELD | {"state": E, "shutdown": 0}, {"state": F2}),
        (HELD | {"state": E, "shutdown": 0, "timer": 1, "retrans": 3, "unacked": 2}, {"state": E}),
    ],
)
def test_the_order_of_the_sockets_changes_nothing(ours: dict[str, Any], far: dict[str, Any]) -> None:
    here = ours | {"cookie": 1}
    there = (
        socket(src="192.0.2.1", dst="10.0.0.1", sport=80, dport=4000, cookie=2, **INFO) | {"inode": 8} | far
    )

    def said(*sockets: dict[str, Any]) -> list[Any]:
        v = view(*sockets, holders=OWNED | {8: [501]})
        assert (v.other >= 0).all()
        found = engine.diagnose(v, catalogue.rules())
        return sorted(
            (
                sorted(v.sockets.cookie[f.rows]),
                f.rule,
                f.primary,
                f.title,
                f.severity,
                f.confidence,
                f.evidence,
            )
            for f in found
        )

    assert said(here, there) == said(there, here) != []
