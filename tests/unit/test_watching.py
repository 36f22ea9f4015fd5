"""When a look is due, how often states changed, and what the live view says of a picture."""

from __future__ import annotations

import numpy as np
import pytest

from finwait import session
from finwait.errors import KernelError
from finwait.pace import Pace
from finwait.selecting import parse_filter
from finwait.table.filter import Filter
from finwait.table.transitions import TransitionTable
from finwait.tui.note import note
from finwait.watching import Circumstances, Live, Passed, Picture


def rows(*pairs: tuple[int, int]) -> TransitionTable:
    return TransitionTable.from_columns(
        {"oldstate": [a for a, _ in pairs], "newstate": [b for _, b in pairs]}
    )


def picture(seen: Circumstances) -> Picture:
    return Picture({}, None, None, np.empty(0, np.int64), seen)


def test_a_look_is_due_after_the_refresh_or_later_if_it_cost_much() -> None:
    pace = Pace(refresh=2.0, share=0.1)
    assert pace.due == 0.0
    pace.done(100.0, 0.05)
    assert pace.due == 102.0
    pace.done(100.0, 0.5)
    assert pace.due == pytest.approx(105.0)
    pace.at_once()
    assert pace.due == 0.0


def test_rates_are_changes_by_seconds_and_begin_anew_each_time() -> None:
    passed = Passed(10.0)
    passed.add(rows((1, 4), (1, 4), (4, 5)))
    passed.add(rows())
    passed.add(rows((1, 4)))
    assert passed.rates(12.0) == {(1, 4): 1.5, (4, 5): 0.5}
    assert passed.since == 12.0
    assert passed.rates(13.0) == {}
    passed.add(rows((8, 9)))
    assert passed.rates(13.0) == {(8, 9): 1000.0}, "no time is divided by that is too short to be measured"


@pytest.mark.parametrize(
    ("seen", "said"),
    [
        (Circumstances(), "diagnosing …"),
        (Circumstances(lost=1234), "1,234 events lost; flows are too low; diagnosing …"),
        (Circumstances(unjudged=2), "the FILTER could not judge 2 events; flows are too low; diagnosing …"),
        (Circumstances(look=2, looks=5, unix_ns=0), "look 2 of 5, 1970-01-01 00:00:00 UTC"),
    ],
)
def test_a_picture_is_worded_by_the_view(seen: Circumstances, said: str) -> None:
    assert note(picture(seen)) == said


def test_a_look_that_fails_gives_the_picture_before_it_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first one of a FILTER has none before it, and fails."""
    live = Live(None, refresh=0.0)
    diagnoses = iter([None, KernelError(105, "dump sockets"), None])

    def look(self: Live, row_filter: Filter | None, begun: tuple[float, float]) -> Picture:
        if isinstance(error := next(diagnoses), KernelError):
            raise error
        return Picture({8: 3}, None, None, np.empty(0, np.int64), self._circumstances(begun[0], row_filter))

    monkeypatch.setattr(Live, "_look", look)
    monkeypatch.setattr(Live, "_follow", lambda _: None)
    first, failed, again = live.next(), live.next(), live.next()
    assert first is not None
    assert failed is not None
    assert again is not None
    assert failed.counts is first.counts
    assert "dump sockets" in failed.circumstances.failed
    assert first.circumstances.taken_s < failed.circumstances.taken_s < again.circumstances.taken_s
    assert not first.circumstances.failed
    assert not again.circumstances.failed

    diagnoses = iter([KernelError(105, "dump sockets")])
    live.choose(parse_filter(["state close-wait"]))
    with pytest.raises(KernelError):
        live.next()


def test_a_diagnosis_that_fails_is_not_repeated_sooner_than_its_cost_allows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    live = Live(None, refresh=5.0)

    def fail(*_: object, **__: object) -> None:
        raise KernelError(12, "list descriptors")

    monkeypatch.setattr(session, "diagnose", fail)
    with pytest.raises(KernelError):
        live._diagnose()
    assert live._diagnosing.due > 0
    assert live._diagnosis is None
