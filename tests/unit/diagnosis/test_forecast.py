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

from finwait.diagnosis import catalogue, engine, forecast
from finwait.diagnosis.forecast import End, Limits
from finwait.diagnosis.view import NamespaceView
from finwait.relay.config.model import SideOptions
from finwait.uapi import tcp
from tests.unit.diagnosis.test_rules import HELD
from tests.unit.diagnosis.views import socket, view

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
    assert plain == End(idle + interval * count, count)
    for limit in forecast.user_timeout_for(idle, interval, count):
        assert forecast.keepalive(idle, interval, count, limit) == plain
    assert forecast.keepalive(idle, interval, count, 1).tries == 1  # and one lost probe is then the end


def test_the_relay_s_own_options_wait_for_as_many_probes_as_they_say() -> None:
    side = SideOptions()
    options = (round(side.keepalive_idle), round(side.keepalive_interval), side.keepalive_count)
    assert forecast.keepalive(*options, int(1000 * side.user_timeout)) == forecast.keepalive(*options)


@pytest.mark.parametrize(
    ("limits", "orphaned", "user_timeout_ms", "measured"),
    [
        (Limits(orphan_retries=1), True, 0, 1.70),
        (Limits(orphan_retries=2), True, 0, 3.34),
        (Limits(orphan_retries=3), True, 0, 6.73),
        (Limits(orphan_retries=7), True, 0, 53.8),
        (Limits(), True, 0, 107.3),
        (Limits(rto_max_ms=1000), True, 0, 2.72),
        (Limits(rto_max_ms=1000, orphan_retries=3), True, 0, 3.73),
        (Limits(retries2=3), False, 0, 6.74),
        (Limits(), False, 3000, 3.42),
        (Limits(orphan_retries=1), True, 5000, 5.52),
    ],
)
def test_what_is_not_acknowledged_is_given_up_as_it_was_measured(
    limits: Limits, orphaned: bool, user_timeout_ms: int, measured: float
) -> None:
    end = forecast.retransmission(limits, orphaned=orphaned, user_timeout_ms=user_timeout_ms)
    assert end.seconds == pytest.approx(measured, rel=0.05)


def test_a_count_stands_for_a_time_whatever_the_path() -> None:
    """tcp_model_timeout() counts with 200 ms; a path with a longer RTO reaches the time with fewer, later."""
    fast, slow = forecast.orphan(rto_ms=204), forecast.orphan(rto_ms=1000)
    assert (fast.tries, slow.tries) == (8, 6)
    assert slow.seconds > fast.seconds > 102.2
    assert forecast.retransmission().seconds == pytest.approx(924.6, rel=0.01)


@pytest.mark.parametrize(
    ("limits", "measured"),
    [
        (Limits(), 340.6),
        (Limits(orphan_retries=1), 1.52),
        (Limits(orphan_retries=2), 340.7),
        (Limits(orphan_retries=3), 340.6),
        (Limits(rto_max_ms=1000), 2.6),
        (Limits(rto_max_ms=2000), 5.23),
        (Limits(rto_max_ms=3000), 6.3),
    ],
)
def test_an_orphan_before_a_shut_window_ends_as_it_was_measured(limits: Limits, measured: float) -> None:
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


def test_a_row_is_judged_by_the_settings_of_its_namespace_and_its_own_path() -> None:
    spaces = {1: NamespaceView(1, sysctls={"ipv4/tcp_orphan_retries": "3"}), 2: NamespaceView(2)}
    orphan = FIN | {"inode": 0, "retrans": 1, "backoff": 1, "rto_us": 408_000, "expires_ms": 300}
    v = view(orphan, orphan | {"netns": 2, "cookie": 2}, FIN | {"cookie": 3}, namespaces=spaces)
    left = [forecast.left_ms(v, k) for k in range(3)]
    assert left == [6528 - 204, 104_448 - 204, 928_896 - 6324]
    slow = view(orphan | {"rto_us": 2_000_000}, namespaces={1: NamespaceView(1)})
    assert forecast.of_row(slow, 0) == forecast.orphan(rto_ms=1000)
    blocked = FIN | {"inode": 0, "timer": 4, "snd_wnd": 5000, "rto_us": 204_000}
    silent = blocked | {"snd_wnd": 0, "retrans": 2}
    shut = silent | {"retrans": 1}
    ends = [
        forecast.of_row(view(row, namespaces={1: NamespaceView(1)}), 0) for row in (blocked, silent, shut)
    ]
    assert ends == [
        forecast.zero_window(orphaned=True, answered=False),
        forecast.zero_window(orphaned=True, answered=False),
        forecast.zero_window(orphaned=True),
    ]
    assert forecast.left_ms(view(FIN | {"timer": 0}), 0) is None


def test_probes_that_nobody_answers_are_counted_from_the_last_answer() -> None:
    few = {1: NamespaceView(1, sysctls={"ipv4/tcp_retries2": "4", "ipv4/tcp_rto_max_ms": "3000"})}
    probing = FIN | {"timer": 4, "snd_wnd": 0, "rto_us": 200_000, "backoff": 3, "expires_ms": 100}
    left = [forecast.left_ms(view(probing | {"retrans": n}, namespaces=few), 0) for n in (4, 3, 2, 1)]
    assert left == [100, 100 + 3000, 100 + 6000, None]


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
        return forecast.left_ms(view(refused | cells, namespaces=spaces), 0)

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
    assert forecast.left_ms(view(shut, namespaces=short), 0) == 100 + 6400 + 10_000
    assert forecast.left_ms(view(shut | {"inode": 7}, namespaces=short), 0) is None


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
    assert Limits.of({}) == Limits() == forecast.DEFAULTS
    assert Limits.of({"ipv4/tcp_retries2": "", "ipv4/tcp_orphan_retries": "x"}) == Limits()
    assert Limits.of({"ipv4/tcp_retries2": "8\n", "ipv4/tcp_rto_max_ms": "5000"}) == Limits(8, 0, 5000)


@given(
    st.integers(0, 255), st.integers(0, 255), st.integers(1, 200_000), st.floats(1, 200_000), st.booleans(),
    st.booleans(), st.integers(0, 2**31 - 1),
)  # fmt: skip
def test_every_setting_gives_an_answer(
    retries2: int, orphans: int, rto_max: int, rto: float, orphaned: bool, answered: bool, limit: int
) -> None:
    limits = Limits(retries2, orphans, rto_max)
    end = forecast.retransmission(limits, rto, orphaned=orphaned, user_timeout_ms=limit)
    assert end.seconds > 0
    assert end.tries >= 1
    shut = forecast.zero_window(limits, rto, orphaned=orphaned, answered=answered, user_timeout_ms=limit)
    assert shut is None or (shut.seconds > 0 and math.isfinite(shut.seconds))
    assert forecast.span(end)
    assert forecast.span(shut)


PREDICTED = {
    forecast.span(forecast.orphan()),
    forecast.span(forecast.orphan(Limits(orphan_retries=3))),
    forecast.span(forecast.retransmission()),
    forecast.span(forecast.retransmission(Limits(retries2=8))),
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
    assert long.ends_s == pytest.approx(19.0 + 60.0 - 0.204 * (2**8 - 2))
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


@pytest.mark.parametrize(
    ("retries", "linear", "seconds", "tries"),
    [(6, 0, 127, 6), (6, 4, 131, 10), (1, 0, 3, 1), (2, 0, 7, 2), (0, 0, 1, 0), (1, 3, 3, 2), (5, 4, 67, 9)],
)
def test_how_long_connect_tries(retries: int, linear: int, seconds: int, tries: int) -> None:
    limits = forecast.Limits(syn_retries=retries, syn_linear=linear)
    assert forecast.opening(limits) == forecast.End(float(seconds), tries)


def test_without_the_setting_a_kernel_shows_that_it_sends_syns_again_without_doubling() -> None:
    one = {"state": tcp.SYN_SENT, "timer": 1, "retrans": 3, "expires_ms": 500}
    plain = view(socket(**one, backoff=3))
    assert forecast.opening_of(plain, 0) == (14_500, 112_500)
    linear = view(socket(**one, backoff=0))
    assert forecast.opening_of(linear, 0) == (3500, 127_500)
