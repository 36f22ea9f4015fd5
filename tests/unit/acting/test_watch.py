"""When an acknowledgement counts as the answer to a probe: a look at many connections takes a while."""

from __future__ import annotations

import pytest

from finwait.acting.watch import _judged, _Watched
from finwait.remedy.steps import step_of
from finwait.uapi import tcp
from tests.unit.diagnosis.test_rules import HELD
from tests.unit.diagnosis.views import view

IDLE = HELD | {"state": tcp.ESTABLISHED, "timer": 2, "retrans": 0, "rtt_us": 100}
FIRST = 100.0
KEEPALIVE = (1, 1, 3)


def looked_at(seen: _Watched, asked: float, read: float, age_ms: int) -> str | None:
    table = view(IDLE | {"last_ack_recv_ms": age_ms}).sockets
    verdict = _judged(seen, table, 0, asked, read, KEEPALIVE)
    return f"{verdict.verdict}: {verdict.detail}" if verdict is not None else None


def watched() -> _Watched:
    return _Watched(step_of(view(IDLE), 0, "", "keepalive"), FIRST, FIRST)


@pytest.mark.parametrize("probes", [0, 1, 3])
def test_without_a_verdict_it_is_said_how_many_probes_were_sent(probes: int) -> None:
    """The peer answered nothing since before the first was due; the kernel may have sent none."""
    seen = watched()
    for asked in (90.0, 103.9, 104.2):
        table = view(IDLE | {"last_ack_recv_ms": 60_000, "retrans": probes if asked < 104 else 0}).sockets
        verdict = _judged(seen, table, 0, asked, asked, KEEPALIVE)
        assert (verdict is None) is (asked < 104)
    assert verdict is not None
    assert (verdict.verdict, verdict.detail) == ("not judged", f"{probes} probes sent, no verdict in 5 s")


def test_an_answer_in_a_long_look_is_not_taken_for_data_that_was_acknowledged_before() -> None:
    """It came at 100.02 and was read at 100.30, some time within the look: that may be before the first was due."""
    seen = watched()
    assert looked_at(seen, 100.05, 100.35, 280) is None
    assert seen.due == FIRST
    # The next look, at the same answer, begins later in its age: it is from after 100.
    assert looked_at(seen, 100.40, 100.70, 400) == "alive: the peer acknowledged a probe"


def test_looks_that_are_always_long_end_with_an_answer_all_the_same() -> None:
    seen = watched()
    for k in range(1, 4):
        asked = FIRST + k
        said = looked_at(seen, asked, asked + 0.9, 1000 * k + 100)
        assert said is None, k
    assert (
        looked_at(seen, 104.1, 105.0, 4200)
        == "alive: the peer acknowledged a probe, or data at the same moment"
    )


def test_what_was_acknowledged_before_the_first_probe_moves_it() -> None:
    seen = watched()
    assert looked_at(seen, 99.50, 99.52, 20) is None  # at 99.49
    assert seen.due > FIRST + 0.45
    assert looked_at(seen, 100.20, 100.22, 50) == (
        "alive: the peer acknowledged data meanwhile, before a probe was due"
    )
