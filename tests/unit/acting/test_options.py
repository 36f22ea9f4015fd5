"""Which options of a socket its program has set since an act did."""

from __future__ import annotations

import pytest

from finwait.acting.options import set_since

BEFORE = {"keepalive": 0, "keepidle": 7200, "keepintvl": 75, "keepcnt": 9}
MADE = {"keepalive": 1, "keepidle": 1, "keepintvl": 1, "keepcnt": 3}


@pytest.mark.parametrize(
    ("changed", "halfway", "own"),
    [
        ({}, False, {}),
        (BEFORE, False, {}),
        ({"keepidle": 60}, False, {"keepidle": 60, "keepalive": 1}),  # who sets its times wants it on
        ({"keepidle": 7200}, False, {}),
        ({"keepcnt": 5, "keepintvl": 75}, False, {"keepcnt": 5, "keepalive": 1}),
        ({"keepidle": 60, "keepalive": 0}, False, {"keepidle": 60}),
    ],
)
def test_what_is_neither_as_before_nor_as_it_was_made_is_the_program_s(
    changed: dict[str, int], halfway: bool, own: dict[str, int]
) -> None:
    assert set_since(MADE | changed, BEFORE, MADE, halfway=halfway) == own


@pytest.mark.parametrize(("halfway", "own"), [(False, {"keepalive": 0}), (True, {})])
def test_that_keepalive_is_off_is_not_the_program_s_where_an_act_was_cut_short(
    halfway: bool, own: dict[str, int]
) -> None:
    """To set its times it is switched off for a moment."""
    on = BEFORE | {"keepalive": 1}
    assert set_since(MADE | {"keepalive": 0}, on, MADE, halfway=halfway) == own


def test_that_keepalive_was_switched_on_is_kept_also_where_an_act_was_cut_short() -> None:
    made = {"keepalive": 0}
    assert set_since({"keepalive": 1}, {"keepalive": 0}, made, halfway=True) == {"keepalive": 1}
    assert set_since(MADE | {"keepidle": 60}, BEFORE, MADE, halfway=True) == {"keepidle": 60, "keepalive": 1}


def test_a_program_that_had_keepalive_on_before_is_not_said_to_have_switched_it_on() -> None:
    on = BEFORE | {"keepalive": 1}
    assert set_since(MADE | {"keepidle": 60}, on, MADE) == {"keepidle": 60}
    timeout = {"user_timeout_ms": 30_000}
    assert set_since({"user_timeout_ms": 5}, {"user_timeout_ms": 0}, timeout) == {"user_timeout_ms": 5}
