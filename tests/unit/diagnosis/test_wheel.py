"""How late timers fire: worked out by hand for wheels of each kind."""

from __future__ import annotations

import pytest

from finwait.diagnosis.wheel import Chain, late_ms, tick_rates


@pytest.mark.parametrize(
    ("hz", "waits", "least", "most"),
    [
        (1000, (), 0, 0),
        (1000, (1,), 0, 2),
        (1000, (62,), 0, 2),
        (1000, (63,), 0, 9),  # a bucket of the next level is eight ticks wide
        (1000, (503,), 0, 9),
        (1000, (504,), 0, 65),
        (100, (10,), 0, 20),
        (100, (630,), 0, 90),
        (250, (200,), 0, 8),  # 50 ticks of 4 ms
        # What is set by a firing begins at the edge of a bucket: 8 ticks after it where it is a whole number of them.
        (1000, (200, 400), 8, 18),
        (1000, (200, 401), 7, 17),
        (1000, (200, 200, 200), 16, 27),
        (1000, (600, 64), 8, 74),
        (1000, (64, 10), 1, 11),
    ],
)
def test_how_late_timers_are_together(hz: int, waits: tuple[int, ...], least: float, most: float) -> None:
    chain = Chain(hz)
    for ms in waits:
        chain.wait(ms)
    assert (chain.least_ms, chain.most_ms) == (least, most)


@pytest.mark.parametrize(
    ("rto_ms", "rates"),
    [
        (200, (100, 250, 300, 1000)),
        (204, (250, 1000)),
        (201, (1000,)),
        (210, (100, 300, 1000)),
        (203.33, (300,)),
        (200.5, (100, 250, 300, 1000)),  # of none: then nothing is known
    ],
)
def test_an_rto_is_a_whole_number_of_ticks(rto_ms: float, rates: tuple[int, ...]) -> None:
    assert tick_rates(rto_ms) == rates


def test_what_the_tick_may_be_bounds_how_late_they_are() -> None:
    assert late_ms(200, rto_ms=201) == 9
    assert late_ms(200, rto_ms=204) == 9
    assert late_ms(200) == 20
    assert late_ms() == 0
