"""What is predicted is what was measured on Linux 6.18; `finwait lab prove` measures it again."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finwait.diagnosis import catalogue, engine, forecast, wheel, window_probes
from finwait.diagnosis.forecast import NamespaceLimits
from finwait.diagnosis.peer_gone import user_timeout_for
from finwait.diagnosis.view import NamespaceView, View
from finwait.diagnosis.wheel import late_ms
from finwait.relay.config.model import SideOptions
from finwait.uapi import tcp
from tests.unit.diagnosis.test_rules import HELD
from tests.unit.diagnosis.views import view

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("options", "measured"),
    [
        ((1, 1, 3, 0), 4.1),
        ((1, 1, 9, 3000), 3.07),
        ((1, 1, 2, 8000), 8.13),
        ((2, 2, 5, 7000), 8.01),
        ((2, 2, 5, 1000), 4.0),
        ((2, 2, 5, 8000), 8.03),
        ((5, 5, 5, 12_000), 15.1),
        ((60, 15, 5, 30_000), 75.0),
        ((60, 15, 5, 130_000), 135.0),
    ],
)
def test_keepalive_ends_when_a_probe_is_due_and_the_user_timeout_has_passed(
    options: tuple[int, int, int, int], measured: float
) -> None:
    assert forecast.keepalive(*options).seconds == pytest.approx(measured, rel=0.05)


@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 127))
def test_a_user_timeout_that_is_recommended_waits_for_every_probe(
    idle: int, interval: int, count: int
) -> None:
    plain = forecast.keepalive(idle, interval, count)
    assert (plain.seconds, plain.tries) == (idle + interval * count, count)
    assert plain.seconds < plain.most_s < 1.13 * plain.seconds + 0.1 * (count + 1)
    least, most = user_timeout_for(idle, interval, count)
    assert least <= most
    for limit in (least, most):
        assert forecast.keepalive(idle, interval, count, limit).tries >= count
    # However late the timers are, it has not passed when the last probe is due.
    late = late_ms(1000 * idle, *([1000 * interval] * (count - 1)))
    assert least > 1000 * (idle + interval * (count - 1)) + late
    assert most <= max(1000 * (idle + interval * count), least)
    assert forecast.keepalive(idle, interval, count, 1).tries == 1  # and one lost probe is then the end


def test_the_relay_s_own_options_wait_for_as_many_probes_as_they_say() -> None:
    side = SideOptions()
    options = (round(side.keepalive_idle), round(side.keepalive_interval), side.keepalive_count)
    assert forecast.keepalive(*options, int(1000 * side.user_timeout)) == forecast.keepalive(*options)


@pytest.mark.parametrize(
    ("limits", "orphaned", "user_timeout_ms", "measured"),
    [
        (NamespaceLimits(orphan_retries=1), True, 0, 1.70),
        (NamespaceLimits(orphan_retries=2), True, 0, 3.34),
        (NamespaceLimits(orphan_retries=3), True, 0, 6.73),
        (NamespaceLimits(orphan_retries=7), True, 0, 53.8),
        (NamespaceLimits(), True, 0, 107.3),
        (NamespaceLimits(rto_max_ms=1000), True, 0, 2.72),
        (NamespaceLimits(rto_max_ms=1000, orphan_retries=3), True, 0, 3.73),
        (NamespaceLimits(retries2=3), False, 0, 6.74),
        (NamespaceLimits(), False, 3000, 3.42),
        (NamespaceLimits(orphan_retries=1), True, 5000, 5.52),
    ],
)
def test_what_is_not_acknowledged_is_given_up_as_it_was_measured(
    limits: NamespaceLimits, orphaned: bool, user_timeout_ms: int, measured: float
) -> None:
    end = forecast.retransmission(limits, orphaned=orphaned, user_timeout_ms=user_timeout_ms)
    assert end.seconds == pytest.approx(measured, rel=0.05)
    assert end.seconds <= measured <= end.most_s


def test_a_count_stands_for_a_time_whatever_the_path() -> None:
    """tcp_model_timeout() counts with 200 ms; a path with a longer RTO reaches the time with fewer, later."""
    fast, slow = forecast.orphan(rto_ms=204), forecast.orphan(rto_ms=1000)
    assert (fast.tries, slow.tries) == (8, 6)
    assert slow.seconds > fast.seconds > 102.2
    assert forecast.retransmission().seconds == pytest.approx(924.6, rel=0.01)


@pytest.mark.parametrize(
    ("limits", "measured"),
    [
        (NamespaceLimits(), 340.6),
        (NamespaceLimits(orphan_retries=1), 1.52),
        (NamespaceLimits(orphan_retries=2), 340.7),
        (NamespaceLimits(orphan_retries=3), 340.6),
        (NamespaceLimits(rto_max_ms=1000), 2.6),
        (NamespaceLimits(rto_max_ms=2000), 5.23),
        (NamespaceLimits(rto_max_ms=3000), 6.3),
    ],
)
def test_an_orphan_before_a_shut_window_ends_as_it_was_measured(
    limits: NamespaceLimits, measured: float
) -> None:
    end = forecast.zero_window(limits, 208, orphaned=True)
    assert end is not None
    assert end.seconds == pytest.approx(measured, rel=0.07)


def test_a_held_socket_before_a_shut_window_waits_for_ever_unless_something_limits_it() -> None:
    assert forecast.zero_window() is None
    assert forecast.span(forecast.zero_window()) == "never"
    limited = forecast.zero_window(rto_ms=208, user_timeout_ms=4000)
    assert limited is not None
    assert limited.seconds == pytest.approx(4.26, rel=0.05)
    unanswered = forecast.zero_window(answered=False)
    assert unanswered is not None
    assert (unanswered.tries, forecast.text(unanswered.seconds)) == (15, "15 min")


@pytest.mark.parametrize(
    ("timeout", "measured"),
    [(1, 1.03), (2, 2.1), (60, 60), (61, 2.05), (62, 4.14), (65, 10.3), (80, 40.8), (120, 120), (200, 280)],
)
def test_an_orphan_in_fin_wait2_lives_as_it_was_measured(timeout: int, measured: float) -> None:
    assert forecast.fin_wait2_orphan_s(timeout) == pytest.approx(measured, rel=0.05)


def test_no_orphan_in_fin_wait2_lives_shorter_than_three_and_a_half_timeouts() -> None:
    assert forecast.fin_wait2_orphan_s(1, rto_ms=2000) == 7.0
    assert forecast.fin_wait2_orphan_s(61, rto_ms=2000) == 1 + 7.0


def waited(rto_us: int, retransmits: int, backoff: int) -> int:
    return int(forecast.waited_ms(*(np.array([n]) for n in (rto_us, retransmits, backoff)))[0])


@given(st.integers(100, 3000), st.integers(1, 20), st.sampled_from([1000, 5000, 120_000]))
def test_retransmissions_prove_no_more_than_they_took(rto_ms: int, n: int, rto_max: int) -> None:
    rto = min(rto_ms, rto_max)
    elapsed = 0
    for _ in range(n):
        elapsed += rto
        rto = min(2 * rto, rto_max)
    assert 0 <= waited(1000 * rto, n, n) <= elapsed


def test_retransmissions_prove_most_of_what_they_took_and_nothing_where_the_counts_differ() -> None:
    assert waited(6_528_000, 5, 5) == 6324  # 0.204 s, doubled five times
    assert waited(6_528_000, 6, 5) == -1  # an ICMP error took a doubling back
    assert waited(204_000, 0, 0) == -1
    assert waited(0, 3, 3) == -1


FIN = HELD | {
    "state": tcp.FIN_WAIT1,
    "timer": 1,
    "wqueue": 1,
    "retrans": 5,
    "backoff": 5,
    "rto_us": 6_528_000,
}


@pytest.mark.parametrize(
    ("changed", "age"),
    [
        ({}, 6324),
        ({"state": tcp.LAST_ACK}, 6324),
        ({"state": tcp.CLOSING}, -1),  # it became that when the peer's FIN came
        ({"wqueue": 1000}, -1),  # the data may have been sent again before the program closed
        ({"timer": 4}, -1),
        ({"backoff": 4}, -1),
    ],
)
def test_a_fin_that_was_sent_again_has_been_there_for_as_long(changed: dict[str, int], age: int) -> None:
    v = view(FIN | changed)
    assert int(v.at_least_ms[0]) == age
    assert int(v.age_source[0]) == (4 if age >= 0 else 0)


def soonest(v: View, row: int = 0) -> int | None:
    end = forecast.left(v, row)
    return None if end is None else round(1000 * end.seconds)


def test_a_row_is_judged_by_the_settings_of_its_namespace_and_its_own_path() -> None:
    spaces = {1: NamespaceView(1, sysctls={"ipv4/tcp_orphan_retries": "3"}), 2: NamespaceView(2)}
    orphan = FIN | {"inode": 0, "retrans": 1, "backoff": 1, "rto_us": 408_000, "expires_ms": 300}
    v = view(orphan, orphan | {"netns": 2, "cookie": 2}, FIN | {"cookie": 3}, namespaces=spaces)
    assert [soonest(v, k) for k in range(3)] == [300 + 6528 - 816, 300 + 104_448 - 816, 928_896 - 2 * 6528]
    blocked = FIN | {"inode": 0, "timer": 4, "snd_wnd": 5000, "rto_us": 204_000, "expires_ms": 408}
    blocked |= {"retrans": 1, "backoff": 1}
    silent = blocked | {"snd_wnd": 0, "retrans": 2, "backoff": 2, "expires_ms": 816}
    shut = blocked | {"snd_wnd": 0, "retrans": 0}
    ends = [soonest(view(row, namespaces={1: NamespaceView(1)})) for row in (blocked, silent, shut)]
    unanswered, answered = (forecast.zero_window(orphaned=True, answered=a) for a in (False, True))
    assert unanswered is not None
    assert answered is not None
    assert ends == [
        round(1000 * unanswered.seconds) - 204,
        round(1000 * unanswered.seconds) - 204 - 408,
        round(1000 * answered.seconds) - 204,
    ]
    assert forecast.left(view(FIN | {"timer": 0}), 0) is None


def test_of_a_timer_that_only_sends_what_fits_nothing_is_predicted() -> None:
    """The peer has room for less than a segment, and no attempt has failed: measured, and healthy."""
    little = FIN | {"timer": 4, "snd_wnd": 1500, "retrans": 0, "backoff": 7, "rto_us": 201_000}
    for inode in (0, 7):
        v = view(little | {"inode": inode}, little | {"inode": inode, "retrans": 1, "cookie": 2})
        assert [window_probes.sends_next(v, row) for row in (0, 1)] == [True, False]
        assert forecast.left(v, 0) is None
        assert forecast.left(v, 1) is not None


class _Timer:
    """The retransmission timer of the kernel, one moment after the other (net/ipv4/tcp_timer.c, kernel/time/timer.c).

    It counts in ticks, from a tick that the wheel is at when the first timer is set.
    """

    def __init__(
        self, settings: NamespaceLimits, rto_ticks: int, *, orphaned: bool, hz: int = 1000, at: int = 0
    ) -> None:
        self.settings, self.orphaned, self.hz = settings, orphaned, hz
        self.most = settings.rto_max_ms * hz // 1000
        self.rto, self.retransmits, self.backoff = min(rto_ticks, self.most), 0, 0
        self.now, self.stamp = at, at
        self.due = self.fires = at
        self._set()

    def _set(self) -> None:
        """As `calc_index` of the wheel: the bucket after the one in which it is due."""
        self.due, width = self.now + self.rto, 1
        while self.rto >= 63 * width:
            width *= 8
        self.fires = (self.due // width + 1) * width

    def fire(self) -> bool:
        """As `tcp_retransmit_timer`; return whether it gives the connection up."""
        self.now = self.fires
        until = self.settings.retries2
        if self.orphaned:
            alive = self.rto < self.most
            until = self.settings.orphan_retries or (8 if alive else 0)
        passed_ms = (self.now - self.stamp) * 1000 / self.hz
        if self.retransmits and passed_ms >= self._model(until):
            return True
        if not self.retransmits:
            self.stamp = self.now
        self.retransmits, self.backoff = self.retransmits + 1, self.backoff + 1
        self.rto = min(2 * self.rto, self.most)
        self._set()
        return False

    def _model(self, boundary: int) -> int:
        linear = (
            math.floor(math.log2(self.settings.rto_max_ms / 200)) if self.settings.rto_max_ms >= 200 else 0
        )
        if boundary <= linear:
            return ((2 << boundary) - 1) * 200
        return ((2 << linear) - 1) * 200 + (boundary - linear) * self.settings.rto_max_ms

    def row(self, before: int) -> dict[str, Any]:
        """What sock_diag says so many ticks before the timer is due."""
        return FIN | {
            "retrans": self.retransmits, "backoff": self.backoff, "rto_us": 1_000_000 * self.rto // self.hz,
            "expires_ms": 1000 * before // self.hz, "rtt_us": 4000, "inode": 0 if self.orphaned else 7,
        }  # fmt: skip


LIMITS = st.builds(
    NamespaceLimits,
    retries2=st.integers(0, 20),
    orphan_retries=st.integers(0, 12),
    rto_max_ms=st.sampled_from([1000, 1500, 3000, 10_000, 120_000]),
)


@given(
    LIMITS, st.booleans(), st.sampled_from([100, 250, 300, 1000]), st.sampled_from([200, 204, 210, 240, 980]),
    st.integers(0, 30), st.floats(0, 1), st.integers(0, 8**5),
)  # fmt: skip
def test_the_kernel_s_timer_gives_up_within_what_is_predicted(
    settings: NamespaceLimits, orphaned: bool, hz: int, rto_ms: int, at: int, part: float, phase: int
) -> None:
    """Whatever a tick is and wherever the wheel stands: late timers reach a limit with a firing fewer."""
    if rto_ms * hz % 1000:
        return
    timer = _Timer(settings, rto_ms * hz // 1000, orphaned=orphaned, hz=hz, at=phase)
    for _ in range(at + 1):
        if timer.fire():
            return
    if timer.rto == timer.most and rto_ms != 204:
        return  # what was before its doublings is guessed then
    before = round(part * timer.rto)
    row, looked = timer.row(before), timer.due - before
    said = {
        "ipv4/tcp_retries2": str(settings.retries2),
        "ipv4/tcp_orphan_retries": str(settings.orphan_retries),
        "ipv4/tcp_rto_max_ms": str(settings.rto_max_ms),
    }
    predicted = forecast.left(view(row, namespaces={1: NamespaceView(1, sysctls=said)}), 0)
    while not timer.fire():
        pass
    assert predicted is not None
    took = (timer.now - looked) / hz
    assert predicted.seconds - 0.01 <= took <= predicted.most_s + 0.01, (predicted, took)


@pytest.mark.parametrize(
    ("limits", "orphaned", "measured"),
    [
        (NamespaceLimits(), True, 106.7),
        (NamespaceLimits(retries2=5), False, 13.6),
        (NamespaceLimits(retries2=6), False, 26.3),
        (NamespaceLimits(orphan_retries=5), True, 13.5),
    ],
)
def test_doublings_of_200_ms_reach_their_limit_because_timers_are_late(
    limits: NamespaceLimits, orphaned: bool, measured: float
) -> None:
    """Measured: their sum is 200 ms short of what tcp_model_timeout() makes of the count; the wheel makes up for it."""
    end = forecast.retransmission(limits, 200, orphaned=orphaned)
    assert end.seconds <= measured <= end.most_s < 1.2 * measured
    assert end.seconds > 0.9 * measured
    assert forecast.span(end) == forecast.text(end.seconds)
    timer = _Timer(limits, 50, orphaned=orphaned, hz=250)
    for _ in range(3):
        assert not timer.fire()
    said = {"ipv4/tcp_retries2": str(limits.retries2), "ipv4/tcp_orphan_retries": str(limits.orphan_retries)}
    v = view(timer.row(0), namespaces={1: NamespaceView(1, sysctls=said)})
    assert forecast.ends_by_itself(v, np.array([0])) == (
        f"it ends by itself in about {forecast.span(forecast.left(v, 0))}"
    )
    left = forecast.left(v, 0)
    assert left is not None
    assert left.most_s < measured


def test_where_lateness_decides_both_firings_are_told() -> None:
    """With tcp_retries2=4 the fourth wait would end 200 ms before the limit; it may be as late as that, or less."""
    end = forecast.retransmission(NamespaceLimits(retries2=4), 200)
    assert forecast.span(end) == "6.6 s to 14 s"


@given(st.sampled_from([100, 250, 300, 1000]), st.lists(st.integers(1, 120_000), min_size=1, max_size=12),
       st.integers(0, 8**5))  # fmt: skip
def test_timers_are_as_late_as_the_wheel_makes_them(hz: int, waits: list[int], phase: int) -> None:
    now = phase
    chain = wheel.Chain(hz)
    for ms in waits:
        chain.wait(ms)
        ticks, width = max(math.ceil(ms * hz / 1000 - 0.05), 1), 1
        while ticks >= 63 * width:
            width *= 8
        assert width <= ticks * 8 / 63 + 1
        now = ((now + ticks) // width + 1) * width
    late = (now - phase - sum(max(math.ceil(ms * hz / 1000 - 0.05), 1) for ms in waits)) * 1000 / hz
    assert chain.least_ms <= late <= chain.most_ms
    assert chain.most_ms <= wheel.late_ms(*waits)


def test_a_tick_is_told_by_an_rto() -> None:
    assert wheel.tick_rates(200) == (100, 250, 300, 1000)
    assert wheel.tick_rates(204) == (250, 1000)
    assert wheel.tick_rates(201) == (1000,)
    assert wheel.tick_rates(203.333) == (300,)
    assert wheel.tick_rates(200.7) == (100, 250, 300, 1000)


def test_probes_that_nobody_answers_are_counted_from_the_last_answer() -> None:
    few = {1: NamespaceView(1, sysctls={"ipv4/tcp_retries2": "4", "ipv4/tcp_rto_max_ms": "3000"})}
    probing = FIN | {"timer": 4, "snd_wnd": 0, "rto_us": 200_000, "backoff": 3, "expires_ms": 100}
    left = [soonest(view(probing | {"retrans": n}, namespaces=few)) for n in (4, 3, 2, 1, 0)]
    assert left == [100, 100 + 3000, 100 + 6000, 100 + 9000, None]


def test_what_a_full_queue_refuses_is_tried_every_half_second_and_counted() -> None:
    spaces = {
        1: NamespaceView(1),
        2: NamespaceView(2, sysctls={"ipv4/tcp_retries2": "5"}),
        3: NamespaceView(3, sysctls={"ipv4/tcp_orphan_retries": "12"}),
    }
    refused = FIN | {
        "timer": 4,
        "snd_wnd": 500,
        "rto_us": 204_000,
        "backoff": 0,
        "retrans": 8,
        "expires_ms": 300,
    }

    def left(**cells: Any) -> int | None:
        return soonest(view(refused | cells, namespaces=spaces))

    assert left() == 300 + 7 * 500
    assert left(netns=2, retrans=4) == 300 + 500
    assert left(inode=0) == 300
    assert left(inode=0, netns=3) == 300 + 4 * 500
    # What a filter refuses is doubled, and so is what a full queue did not take once or twice.
    assert left(netns=2, retrans=3, backoff=3) == 300 + 3264 + 6528
    assert left(netns=2, retrans=3, backoff=2, expires_ms=700) == 700 + 1632 + 3264


def test_an_orphan_before_a_shut_window_has_what_is_left_of_its_time() -> None:
    short = {1: NamespaceView(1, sysctls={"ipv4/tcp_rto_max_ms": "10000"})}
    shut = FIN | {
        "inode": 0,
        "retrans": 0,
        "timer": 4,
        "snd_wnd": 0,
        "rto_us": 200_000,
        "backoff": 4,
        "expires_ms": 100,
    }
    assert soonest(view(shut, namespaces=short)) == 100 + 6400 + 10_000
    assert soonest(view(shut | {"inode": 7}, namespaces=short)) is None


def test_rules_tell_times_by_the_settings_of_the_namespace() -> None:
    """No number of theirs is the default's where another is set, in evidence or in what ends it."""
    said = {
        "ipv4/tcp_retries2": "6", "ipv4/tcp_orphan_retries": "3", "ipv4/tcp_rto_max_ms": "10000",
        "ipv4/tcp_fin_timeout": "7",
    }  # fmt: skip
    base = FIN | {"unacked": 1, "retrans": 3, "backoff": 3, "rto_us": 1_632_000, "wqueue": 1, "snd_wnd": 5000}
    base |= {"last_ack_recv_ms": 9000, "notsent_bytes": 0}
    rows = [
        base | {"timer": timer, "inode": inode, "state": state, "snd_wnd": window, "unacked": int(timer == 1)}
        for timer in (1, 4)
        for inode in (0, 7)
        for state in (tcp.ESTABLISHED, tcp.FIN_WAIT1, tcp.CLOSE_WAIT, tcp.LAST_ACK)
        for window in (0, 5000)
    ]
    defaults = re.compile(r"\b(104|15|329|924|928) (s|min)\b")
    seen = set()
    for row in rows:
        v = view(row, namespaces={1: NamespaceView(1, sysctls=said)}, holders={7: [500]})
        for finding in engine.diagnose(v, catalogue.rules()):
            seen.add(finding.rule)
            for text in [
                *(r.text for r in finding.ends_it),
                *(e.says for e in finding.evidence),
                finding.title,
            ]:
                assert not defaults.search(text), (finding.rule, text)
    assert {
        "egress-blocked",
        "zero-window",
        "fin-unanswered-held",
        "fin-unanswered-orphan",
        "data-unanswered",
    } <= seen


def test_settings_that_are_not_there_or_no_numbers_are_the_kernel_s_defaults() -> None:
    assert NamespaceLimits.of({}) == NamespaceLimits() == forecast.DEFAULTS
    assert NamespaceLimits.of({"ipv4/tcp_retries2": "", "ipv4/tcp_orphan_retries": "x"}) == NamespaceLimits()
    assert NamespaceLimits.of({"ipv4/tcp_retries2": "8\n", "ipv4/tcp_rto_max_ms": "5000"}) == NamespaceLimits(
        8, 0, 5000
    )


@given(
    st.integers(0, 255), st.integers(0, 255), st.integers(1, 200_000), st.floats(1, 200_000), st.booleans(),
    st.booleans(), st.integers(0, 2**31 - 1),
)  # fmt: skip
def test_every_setting_gives_an_answer(
    retries2: int, orphans: int, rto_max: int, rto: float, orphaned: bool, answered: bool, limit: int
) -> None:
    limits = NamespaceLimits(retries2, orphans, rto_max)
    end = forecast.retransmission(limits, rto, orphaned=orphaned, user_timeout_ms=limit)
    assert end.seconds > 0
    assert end.tries >= 1
    shut = forecast.zero_window(limits, rto, orphaned=orphaned, answered=answered, user_timeout_ms=limit)
    assert shut is None or (shut.seconds > 0 and math.isfinite(shut.seconds))
    assert forecast.span(end)
    assert forecast.span(shut)


PREDICTED = {
    forecast.span(forecast.orphan()),
    forecast.span(forecast.orphan(NamespaceLimits(orphan_retries=3))),
    forecast.span(forecast.retransmission()),
    forecast.span(forecast.retransmission(NamespaceLimits(retries2=8))),
    forecast.span(forecast.zero_window(orphaned=True)),
}
"""What prose that no program writes may say of orphans and of unanswered data."""


def test_the_help_of_probe_says_what_is_predicted() -> None:
    predicted = forecast.text(forecast.keepalive(1, 1, 3).seconds)
    page = (ROOT / "docs/reference/cli.md").read_text(encoding="utf-8")
    assert f"default 1/1/3, which takes up to {predicted}" in page


def test_prose_says_what_is_predicted() -> None:
    """Numbers in docstrings of rules, in profiles and in pages cannot be computed; they are compared."""
    places = [
        *(ROOT / "src/finwait/diagnosis/rules").glob("*.py"),
        *(ROOT / "src/finwait/remedy/profiles").glob("*.toml"),
        *(ROOT / "src/finwait/lab").rglob("*.py"),
        *(ROOT / "docs/explanation").glob("*.md"),
        *(ROOT / "docs/how-to").glob("*.md"),
    ]
    said = re.compile(
        r"(?:about|some|after|instead of|the) (\d+(?:\.\d+)?) ?(s|min)(?:utes)?\b(?![^.\n]*probe)"
    )
    near = re.compile(r"orphan|tcp_retries2|acknowledg")
    found = []
    for path in places:
        for line in path.read_text(encoding="utf-8").splitlines():
            for number, unit in said.findall(line):
                if near.search(line) and f"{number} {unit}" not in PREDICTED and float(number) > 6:
                    found.append(f"{path.name}: {line.strip()}")
    assert found == []


BUSY = {"state": tcp.ESTABLISHED, "inode": 7}


def test_a_user_timeout_that_is_set_late_is_looked_at_when_the_armed_timer_fires() -> None:
    """Measured: of data in flight for 34 s with a timer of 19 s left, 3 s of user timeout ended it 19 s later."""
    late = BUSY | {"timer": 1, "backoff": 7, "retrans": 7, "rto_us": 204_000 << 7, "expires_ms": 19_000}
    fresh = BUSY | {"timer": 1, "backoff": 0, "retrans": 0, "rto_us": 204_000, "expires_ms": 150}
    v = view(late, fresh, BUSY | {"timer": 2, "expires_ms": 5})
    one = forecast.under_way(v, 0, 3000)
    assert one is not None
    assert (one.window_shut, one.ends_s, one.late_s) == (False, 19.0, None)
    assert 30 < one.waited_s < 34
    # 25.9 s + 26.1 s have passed since the first retransmission when the timer fires: 8 s are left of a minute.
    long = forecast.under_way(v, 0, 60_000)
    assert long is not None
    nominal = 19.0 + 60.0 - 0.204 * (2**8 - 2)
    assert long.ends_s is not None
    assert long.most_s is not None
    assert long.ends_s < nominal < long.most_s  # the timers so far were late, and so will be the next
    assert long.most_s - long.ends_s < 60 / 8 + 1
    new = forecast.under_way(v, 1, 3000)
    assert new is not None
    assert new.ends_s == pytest.approx(3.15)
    assert forecast.under_way(v, 2, 3000) is None
    kept = forecast.under_way(v, 0, 0)
    assert kept is not None
    assert kept.ends_s is not None
    assert kept.ends_s > 800  # tcp_retries2


def test_a_window_that_is_shut_ends_a_peer_that_lives() -> None:
    """Measured: 3 s of user timeout, set while the window was shut for 5 s, ended it with the next probe."""
    shut = BUSY | {"timer": 4, "backoff": 4, "retrans": 0, "rto_us": 204_000, "expires_ms": 900, "snd_wnd": 0}
    silent = shut | {"retrans": 3, "expires_ms": 60_000}
    v = view(shut, silent)
    one, other = (forecast.under_way(v, row, 3000) for row in (0, 1))
    assert one is not None
    assert other is not None
    assert (one.window_shut, one.lives, one.ends_s) == (True, True, 0.9)
    assert one.late_s == pytest.approx(
        0.9 + 0.204 * 32
    )  # were it set after that probe, it would end with the next
    assert (other.lives, other.late_s) == (False, None)


def test_a_peer_whose_last_probe_is_not_answered_neither_lives_nor_is_gone() -> None:
    shut = BUSY | {"timer": 4, "backoff": 4, "retrans": 1, "rto_us": 204_000, "expires_ms": 900, "snd_wnd": 0}
    v = view(shut, shut | {"retrans": 2}, namespaces={1: NamespaceView(1)}, holders={7: [500]})
    open_, silent = (forecast.under_way(v, row, 0) for row in (0, 1))
    assert open_ is not None
    assert silent is not None
    assert (open_.lives, open_.most_s, silent.lives) == (None, None, False)
    assert open_.ends_s is not None
    assert silent.ends_s is not None
    assert open_.ends_s > silent.ends_s  # one more probe is to go unanswered
    assert silent.most_s is not None
    assert forecast.left(v, 0).most_s == math.inf  # type: ignore[union-attr]
    assert "does not end" not in forecast.ends_by_itself(v, np.array([0]))
    assert "some do not" in forecast.ends_by_itself(v, np.array([0, 1]))


def test_a_socket_may_have_another_maximum_of_its_rto_than_its_namespace() -> None:
    """It keeps that of when it was made, or has TCP_RTO_MAX_MS: its timer shows it, and its clocks bound a proof."""
    low = {1: NamespaceView(1, sysctls={"ipv4/tcp_rto_max_ms": "1000"})}
    shut = FIN | {
        "timer": 4,
        "snd_wnd": 0,
        "rto_us": 204_000,
        "backoff": 12,
        "retrans": 0,
        "expires_ms": 90_000,
    }
    assert forecast.limits_of(view(shut, namespaces=low), 0).rto_max_ms == 120_000
    assert forecast.limits_of(view(shut | {"expires_ms": 900}, namespaces=low), 0).rto_max_ms == 1000
    cut = FIN | {"timer": 1, "rto_us": 1_000_000, "backoff": 8, "retrans": 8, "expires_ms": 500}
    space = {1: NamespaceView(1)}
    assert forecast.limits_of(view(cut, namespaces=space), 0).rto_max_ms == 1000
    assert (
        forecast.limits_of(view(cut | {"backoff": 2, "retrans": 2}, namespaces=space), 0) == forecast.DEFAULTS
    )
    for clock in ("last_data_sent_ms", "last_ack_recv_ms"):
        probing = shut | {"retrans": 12, "expires_ms": 100, clock: 11_000}
        v = view(probing, namespaces=space)
        assert forecast.probed_ms(v, 0, unanswered=clock == "last_ack_recv_ms") == 11_000


@pytest.mark.parametrize(("expires_ms", "counted_on"), [(9_999, True), (10_000, False), (19_000, False)])
def test_a_timer_that_fires_ten_seconds_after_the_look_is_not_expected_to_fire_before_the_act(
    expires_ms: int, counted_on: bool
) -> None:
    one = BUSY | {"timer": 1, "backoff": 7, "retrans": 7, "rto_us": 204_000 << 7, "expires_ms": expires_ms}
    found = forecast.under_way(view(one), 0, 3000)
    assert found is not None
    assert (found.late_s is not None) is counted_on


def test_how_long_a_full_queue_refused_is_known_to_an_eighth() -> None:
    """Every 0.5 s it was tried again, and each time a little late: 800 s of that may have been 900."""
    limits = NamespaceLimits()  # tcp_retries2 of 15 stands for 924.6 s
    plain = forecast.retransmissions_left(limits, 204.0, 0)
    refused = forecast.retransmissions_left(limits, 204.0, 1600, (), 800_000.0)
    assert plain.seconds == pytest.approx(928, abs=1)
    # Doublings of 204 ms add up to 25.7 s when 900 s may have passed, and are past what is left of 124.6 s at 208.7 s.
    assert refused.seconds == pytest.approx(25.7, abs=0.1)
    assert 208.7 < refused.most_s < 208.7 * 9 / 8


def test_where_no_setting_is_known_those_of_the_kernel_are_meant() -> None:
    """include/net/tcp.h and tcp_sk_init(); how many SYNs are not doubled depends on the version."""
    known = NamespaceLimits(15, 0, 120_000, 60, 6, None)
    assert NamespaceLimits() == NamespaceLimits.of({}) == forecast.DEFAULTS == known
    assert NamespaceLimits.of({"ipv4/tcp_rto_max_ms": "0", "ipv4/tcp_retries2": "x"}).rto_max_ms == 1


@pytest.mark.parametrize(
    ("expires_ms", "least"),
    [(3264, 204 + 408 + 816 + 1632), (3000, 204 + 408 + 816 + 1632 + 264), (4000, 204 + 408 + 816 + 1632)],
)
def test_how_long_probes_were_not_answered_is_counted_to_the_millisecond_by_their_waits(
    expires_ms: int, least: int
) -> None:
    """Of four that went unanswered each waited twice as long as the one before, and the armed timer runs."""
    probed = {"timer": 4, "snd_wnd": 0, "rto_us": 204_000, "backoff": 4, "retrans": 4, "wqueue": 9}
    v = view(HELD | probed | {"state": tcp.FIN_WAIT1, "expires_ms": expires_ms})
    assert forecast.probed_ms(v, 0, unanswered=True) == least


def test_what_may_end_only_if_its_peer_is_gone_is_said_as_such_beside_what_never_ends() -> None:
    shut = BUSY | {"timer": 4, "backoff": 4, "retrans": 1, "rto_us": 204_000, "expires_ms": 900, "snd_wnd": 0}
    v = view(shut, shut | {"retrans": 0}, holders={7: [500]})
    assert [left is None for left in (forecast.left(v, 0), forecast.left(v, 1))] == [False, True]
    for rows, said in (
        ([0], "only if its peer is gone"),
        ([1], "it does not end"),
        ([0, 1], "only if its peer"),
    ):
        assert said in forecast.ends_by_itself(v, np.array(rows))


@pytest.mark.parametrize("rto", [{}, {"rto_us": 0}])
def test_without_an_rto_that_of_a_quick_path_is_meant(rto: dict[str, int]) -> None:
    waiting = BUSY | {"timer": 1, "backoff": 3, "retrans": 3, "expires_ms": 100}
    known = forecast.left(view(waiting | {"rto_us": 204_000 << 3}), 0)
    assert known is not None
    assert forecast.left(view(waiting | rto), 0) == known


@pytest.mark.parametrize("tries", [3, 7])
def test_how_late_timers_were_that_have_fired_makes_the_end_no_later(tries: int) -> None:
    """Only the armed timer and those to come may still be late."""
    waits = tuple(204.0 * 2**n for n in range(1, tries + 1))
    end = forecast.retransmissions_left(NamespaceLimits(), waits[-1], tries, waits)
    to_come = [min(204.0 * 2**n, 120_000.0) for n in range(tries + 1, 16)]
    assert end.seconds == pytest.approx(sum(to_come) / 1000)
    assert end.seconds < end.most_s <= end.seconds + late_ms(waits[-1], *to_come, rto_ms=204) / 1000
