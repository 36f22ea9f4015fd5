"""When a look is due, how often states changed, and what the live view says of a picture."""

from __future__ import annotations

import numpy as np
import pytest

from finwait.table.transitions import TransitionTable
from finwait.tui.note import note
from finwait.watching import Circumstances, Pace, Passed, Picture


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
        (Circumstances(lost=1234), "1,234 events lost, flows are too low; diagnosing …"),
        (Circumstances(unjudged=2), "2 events the FILTER could not judge, flows are too low; diagnosing …"),
        (Circumstances(look=2, looks=5, unix_ns=0), "look 2 of 5, 1970-01-01 00:00:00 UTC"),
    ],
)
def test_a_picture_is_worded_by_the_view(seen: Circumstances, said: str) -> None:
    assert note(picture(seen)) == said
