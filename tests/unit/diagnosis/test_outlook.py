"""When a connection ends by itself: which clock runs, and what is said where none does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from finwait import session
from finwait.diagnosis import forecast, outlook
from finwait.diagnosis.outlook import Outlook
from finwait.diagnosis.view import NamespaceView
from finwait.recording import open_recording
from finwait.table.vocabulary import ENDS
from finwait.uapi import tcp
from finwait.uapi.observation import SocketOptions
from tests.unit.diagnosis.views import socket, view

SPACE = {1: NamespaceView(1, ("host",), {"ipv4/tcp_fin_timeout": "60", "ipv4/tcp_retries2": "15"})}
PLAIN = SocketOptions(keepalive=False, keepidle_s=7200, keepintvl_s=75, keepcnt=9, user_timeout_ms=0)


def told(options: SocketOptions | None = None, **cells: Any) -> Outlook:
    row = {"inode": 7, "cookie": 1, "rto_us": 204_000, "backoff": 0, "retrans": 0, "expires_ms": 0} | cells
    built = view(socket(**row), holders={7: [10]} if row["inode"] else {}, namespaces=SPACE)
    return outlook.of_row(replace(built, socket_options={} if options is None else {7: options}), 0)


def test_a_held_half_close_without_a_timer_waits_for_its_peer_for_ever() -> None:
    found = told(PLAIN, state=tcp.FIN_WAIT2)
    assert (found.ends, found.at_least_s, found.at_most_s) == ("peer", None, None)
    assert outlook.text(found).startswith("never by itself: no timer runs")


def test_close_wait_never_ends_by_itself() -> None:
    assert told(PLAIN, state=tcp.CLOSE_WAIT).ends == "never"


def test_keepalive_ends_only_what_is_dead_and_says_when() -> None:
    armed = replace(PLAIN, keepalive=True, keepidle_s=600, keepintvl_s=15, keepcnt=5)
    found = told(armed, state=tcp.FIN_WAIT2, timer=2, expires_ms=400_000)
    assert (found.ends, found.at_least_s) == ("keepalive", 675.0)
    assert found.at_most_s is not None
    assert 675 < found.at_most_s < 675 * 1.13  # timers are late
    assert outlook.text(found).startswith("after about 675 s of silence: ")
    assert "a live peer answers for ever" in found.why
    # The timer is not the armed one while data is in flight, but the option is on.
    assert told(armed, state=tcp.ESTABLISHED).ends == "keepalive"


def test_a_user_timeout_takes_the_place_of_the_count_of_probes() -> None:
    armed = replace(PLAIN, keepalive=True, keepidle_s=5, keepintvl_s=5, keepcnt=5, user_timeout_ms=12_000)
    assert told(armed, state=tcp.ESTABLISHED, timer=2).at_least_s == 15.0


def test_keepalive_whose_times_were_not_read_has_no_bound() -> None:
    found = told(None, state=tcp.FIN_WAIT2, timer=2)
    assert (found.ends, found.at_most_s) == ("keepalive", None)
    assert "not read" in found.why


def test_a_minisocket_leaves_when_its_timer_fires() -> None:
    found = told(None, state=tcp.TIME_WAIT, timer=3, inode=0, expires_ms=43_000)
    assert (found.ends, found.at_least_s) == ("timer", 43.0)
    assert found.at_most_s is not None
    assert 43.5 < found.at_most_s <= 43 + 60 / 7.8  # it was set to 60 s, and may be late by an eighth
    assert outlook.text(found) == "within about 43 s: the timewait timer"


@pytest.mark.parametrize("tries", [0, 2, 5])
def test_retransmissions_end_when_the_forecast_says(tries: int) -> None:
    cells = {"state": tcp.FIN_WAIT1, "timer": 1, "retrans": tries, "backoff": tries}
    cells |= {"rto_us": 204_000 << tries, "expires_ms": 100}
    found = told(PLAIN, **cells)
    built = view(socket(inode=7, cookie=1, **cells), holders={7: [10]}, namespaces=SPACE)
    left = forecast.left(built, 0)
    assert left is not None
    assert found.ends == "retries"
    assert (found.at_least_s, found.at_most_s) == (left.seconds, left.most_s)
    assert "TCP_USER_TIMEOUT" not in found.why
    assert "TCP_USER_TIMEOUT, which was not read" in told(None, **cells).why


def test_a_user_timeout_that_was_read_ends_it_sooner() -> None:
    cells = {
        "state": tcp.FIN_WAIT1,
        "timer": 1,
        "retrans": 3,
        "backoff": 3,
        "rto_us": 204_000 << 3,
        "expires_ms": 900,
    }
    soon = told(replace(PLAIN, user_timeout_ms=10_000), **cells)
    late = told(PLAIN, **cells)
    assert soon.at_most_s is not None
    assert late.at_most_s is not None
    assert soon.at_most_s < 12 < late.at_most_s


SHUT = {"state": tcp.FIN_WAIT1, "timer": 4, "snd_wnd": 0, "backoff": 4, "retrans": 0, "expires_ms": 3000}


def test_a_peer_that_answers_window_probes_is_waited_for_without_end() -> None:
    assert told(PLAIN, **SHUT).ends == "never"


def test_what_only_a_user_timeout_would_end_is_unknown_where_that_cannot_be_known() -> None:
    few = {1: NamespaceView(1, ("host",), {"ipv4/tcp_retries2": "5"})}
    unread = told(None, **SHUT)
    orphan = outlook.of_row(
        view(socket(**SHUT | {"inode": 0, "cookie": 1, "rto_us": 204_000}), namespaces=few), 0
    )
    for found, why in ((unread, "which was not read"), (orphan, "which cannot be read of an orphan")):
        assert (found.ends, found.at_least_s, found.at_most_s) == ("unknown", None, None)
        assert f"TCP_USER_TIMEOUT, {why}" in found.why
        assert "never" not in outlook.text(found)


@pytest.mark.parametrize(
    ("cells", "why"),
    [
        ({"retrans": 1}, "the last window probe is not answered yet"),
        ({"retrans": 0, "backoff": 0}, "no window probe was sent yet"),
    ],
)
@pytest.mark.parametrize("options", [None, PLAIN, replace(PLAIN, user_timeout_ms=60_000)])
@pytest.mark.parametrize("inode", [0, 7])
def test_a_peer_that_has_answered_no_probe_since_is_not_said_to_answer(
    cells: dict[str, int], why: str, options: SocketOptions | None, inode: int
) -> None:
    """Measured: a peer was dropped; 4 s after the first probe that nobody answered, one probe is out."""
    found = told(options if inode else None, **SHUT | cells | {"inode": inode})
    assert why in found.why
    assert "answers window probes" not in outlook.text(found)
    assert "never" not in outlook.text(found)
    bounded = not inode or (options is not None and options.user_timeout_ms)
    assert found.ends == ("retries" if bounded else "unknown")
    assert (found.at_most_s is not None) == bool(bounded)


def test_what_an_unanswered_probe_leaves_open_lies_between_the_two_answers() -> None:
    """An orphan ends either way: the span holds what follows if the peer is gone, and if it lives."""
    orphan = SHUT | {"inode": 0, "rto_us": 204_000}
    open_, gone = told(None, **orphan | {"retrans": 1}), told(None, **orphan | {"retrans": 2})
    lives = told(None, **orphan | {"retrans": 0})
    for found in (open_, gone, lives):
        assert found.at_least_s is not None
        assert found.at_most_s is not None
    assert open_.at_least_s <= lives.at_least_s  # type: ignore[operator]
    assert open_.at_most_s >= lives.at_most_s  # type: ignore[operator]
    assert open_.at_least_s >= gone.at_least_s  # type: ignore[operator]


@pytest.mark.parametrize("timer", [1, 4])
def test_the_user_timeout_of_an_orphan_may_change_what_is_predicted(timer: int) -> None:
    cells = SHUT | {
        "timer": timer,
        "inode": 0,
        "retrans": 4,
        "rto_us": 204_000 << 4 if timer == 1 else 204_000,
    }
    found = told(None, **cells)
    assert found.ends == "retries"
    assert "a TCP_USER_TIMEOUT, which cannot be read of an orphan, would change it" in found.why


@pytest.mark.parametrize("state", [tcp.ESTABLISHED, tcp.FIN_WAIT1, tcp.LAST_ACK])
@pytest.mark.parametrize("options", [None, PLAIN, replace(PLAIN, user_timeout_ms=5000)])
def test_a_timer_that_will_send_what_fits_is_no_silence(state: int, options: SocketOptions | None) -> None:
    """A healthy download to a slow reader: the window is open, and no probe has failed."""
    found = told(options, **SHUT | {"state": state, "snd_wnd": 1500})
    assert (found.ends, found.at_least_s, found.at_most_s) == ("unknown", None, None)
    assert "within 3.0 s" in found.why
    refused = told(options, **SHUT | {"state": state, "snd_wnd": 1500, "retrans": 1})
    assert refused.ends == "retries"


@pytest.mark.parametrize(
    ("state", "sooner"),
    [(tcp.ESTABLISHED, False), (tcp.CLOSE_WAIT, False), (tcp.FIN_WAIT1, False), (tcp.LAST_ACK, True)],
)
def test_an_answer_ends_only_what_waits_for_nothing_else(state: int, sooner: bool) -> None:
    found = told(PLAIN, state=state, timer=1, retrans=1, backoff=1, rto_us=408_000)
    assert found.why.endswith("sooner if the peer answers" if sooner else "unless the peer answers")


def test_where_lateness_decides_between_two_firings_both_are_told() -> None:
    few = {1: NamespaceView(1, ("host",), {"ipv4/tcp_retries2": "4"})}
    row = socket(inode=7, cookie=1, state=tcp.FIN_WAIT1, timer=1, retrans=1, backoff=1, rto_us=400_000)
    found = outlook.of_row(view(row, holders={7: [10]}, namespaces=few), 0)
    assert outlook.text(found).startswith("in about 5.8 s to 13 s: 1 retransmission without")


def test_what_waits_for_accept_has_no_known_end() -> None:
    assert told(None, state=tcp.CLOSE_WAIT, inode=0).ends == "unknown"
    assert "accept" in told(None, state=tcp.ESTABLISHED, inode=0).why


def test_a_syn_ends_with_its_retries() -> None:
    found = told(PLAIN, state=tcp.SYN_SENT, timer=1, retrans=2, backoff=2, expires_ms=4000)
    assert found.ends == "retries"
    assert found.at_least_s is not None
    assert 100 < found.at_least_s < 135
    assert found.why == (
        "SYNs without an answer; unless the peer answers; a TCP_SYNCNT, which was not read, would change it"
    )
    set_ = told(replace(PLAIN, syncnt=3), state=tcp.SYN_SENT, timer=1, retrans=2, backoff=2, expires_ms=4000)
    assert set_.why == "SYNs without an answer; unless the peer answers"
    assert set_.at_least_s is not None
    assert set_.at_least_s < 13


def test_a_syn_ends_with_the_user_timeout_that_was_read() -> None:
    cells = {"state": tcp.SYN_SENT, "timer": 1, "retrans": 4, "backoff": 0, "expires_ms": 700}
    found = told(replace(PLAIN, user_timeout_ms=6000), **cells)
    assert found.at_least_s == 1.7
    assert found.at_most_s is not None
    assert found.at_most_s < 2.1
    assert "TCP_USER_TIMEOUT 6.0 s" in found.why
    assert "TCP_SYNCNT or TCP_USER_TIMEOUT, which was not read, would change it" in told(None, **cells).why


WAITING = (tcp.ESTABLISHED, tcp.FIN_WAIT1, tcp.CLOSE_WAIT, tcp.LAST_ACK, tcp.CLOSING)
MPTCP = 262


def branch(state: int, timer: int, inode: int, protocol: int) -> tuple[str, str]:
    """What a row's end is, and words of the reason, by what its timer does in the kernel."""
    if state == tcp.LISTEN:
        return "never", "it listens"
    if protocol == MPTCP and state == tcp.SYN_SENT:
        return "unknown", "its subflow"
    if protocol == MPTCP and timer:
        why = "close_timeout" if inode else "from when its program closed it"
        return ("timer", why) if timer == 2 else ("unknown", "over its subflows")
    if protocol == MPTCP and state == tcp.CLOSE_WAIT and inode:
        return "unknown", "resets this 60 s later"
    if protocol == MPTCP:
        return idle(state, inode)
    if state == tcp.SYN_SENT:
        return (
            ("retries", "SYNs without an answer") if timer == 1 else ("unknown", "no SYN is being sent again")
        )
    if state in (tcp.SYN_RECV, tcp.NEW_SYN_RECV):
        if timer != 1:
            return "unknown", "not armed"
        return ("unknown", "a socket in SYN_RECV") if inode else ("retries", "tcp_synack_retries is 5")
    if timer == 0:
        return idle(state, inode)
    if timer == 3 and state in (tcp.FIN_WAIT2, tcp.TIME_WAIT):
        return "timer", "the timewait timer"
    if timer == 2 and state == tcp.FIN_WAIT2 and not inode:
        return "timer", "its FIN_WAIT2 timer"
    if timer == 2 and state in (*WAITING, tcp.FIN_WAIT2):
        return "keepalive", "keepalive"
    if timer == 1 and state in WAITING:
        return "retries", "waits for an answer"
    if timer == 4 and state in WAITING:
        orphan = not inode and state not in (tcp.ESTABLISHED, tcp.CLOSE_WAIT)
        return ("retries" if orphan else "unknown"), "window probe"
    return "unknown", f"what timer {timer} does"


def idle(state: int, inode: int) -> tuple[str, str]:
    if not inode and state in (tcp.ESTABLISHED, tcp.CLOSE_WAIT):
        return "unknown", "accept()"
    if inode and state == tcp.CLOSE:
        return "never", "only its program"
    ends = {tcp.FIN_WAIT2: "peer", tcp.CLOSE_WAIT: "never", tcp.ESTABLISHED: "never"}
    return ends.get(state, "unknown"), "no timer"


@pytest.mark.parametrize("protocol", [6, MPTCP])
@pytest.mark.parametrize("inode", [0, 7])
@pytest.mark.parametrize("timer", range(6))
@pytest.mark.parametrize("state", tcp.STATES)
def test_every_state_and_timer_takes_the_branch_of_what_that_timer_does(
    state: int, timer: int, inode: int, protocol: int
) -> None:
    space = {1: NamespaceView(1, ("host",), {"ipv4/tcp_synack_retries": "5"})}
    cells = {"state": state, "timer": timer, "inode": inode, "protocol": protocol, "expires_ms": 900}
    row = socket(cookie=1, retrans=0, backoff=0, **cells)
    built = view(row, holders={7: [10]} if inode else {}, namespaces=space)
    found = outlook.of_row(built, 0)
    ends, words = branch(state, timer, inode, protocol)
    assert (found.ends, words in found.why) == (ends, True), found
    assert found.ends in ENDS
    assert outlook.text(found)
    assert outlook.of_rows(built, np.array([0]))[0] == found


def test_an_mptcp_connection_that_is_being_opened_ends_with_the_syn_of_its_subflow() -> None:
    whole = socket(state=tcp.SYN_SENT, protocol=MPTCP, inode=7, cookie=1)
    part = socket(
        state=tcp.SYN_SENT, inode=7, cookie=2, ulp=b"mptcp", timer=1, retrans=2, backoff=2, expires_ms=4000
    )
    built = view(whole, part, holders={7: [10]}, namespaces=SPACE)
    of_whole, of_part = (outlook.of_row(built, row) for row in (0, 1))
    assert of_whole == of_part
    assert of_whole.ends == "retries"


def test_the_timer_of_an_mptcp_connection_is_as_late_as_its_namespace_has_set_it() -> None:
    whole = socket(state=tcp.FIN_WAIT2, protocol=MPTCP, inode=7, cookie=1, timer=2, expires_ms=1000)
    orphan = socket(state=tcp.FIN_WAIT2, protocol=MPTCP, inode=0, cookie=1, timer=2, expires_ms=1000)
    spaces = [{1: NamespaceView(1, sysctls={"mptcp/close_timeout": text})} for text in ("1", "3600")]
    short, long = (outlook.of_row(view(whole, namespaces=space), 0) for space in spaces)
    assert short.at_least_s == long.at_least_s == 1.0
    assert short.at_most_s is not None
    assert long.at_most_s is not None
    assert short.at_most_s < long.at_most_s, "a timer is later the longer it was set to"
    assert outlook.of_row(view(whole), 0).ends == "timer"
    (alike,) = {outlook.of_row(view(orphan, namespaces=space), 0) for space in spaces}
    assert "close_timeout" not in alike.why, "an orphan's timer is 60 s, whatever is set"


@pytest.mark.parametrize(
    ("inode", "timer", "ends", "why"),
    [
        (0, 2, "timer", "the descriptor stays"),
        (8, 0, "never", "only its program can close it"),
    ],
)
def test_an_mptcp_connection_whose_peer_has_closed_is_kept_by_its_program_or_reset_by_the_other_end(
    inode: int, timer: int, ends: str, why: str
) -> None:
    kept = socket(state=tcp.CLOSE_WAIT, protocol=MPTCP, inode=7, cookie=1)
    other = socket(
        state=tcp.FIN_WAIT2, protocol=MPTCP, inode=inode, cookie=2, timer=timer, expires_ms=57_000,
        src=kept["dst"], dst=kept["src"], sport=kept["dport"], dport=kept["sport"],
    )  # fmt: skip
    built = view(kept, other, holders={7: [10], 8: [11]}, namespaces=SPACE)
    seen = outlook.of_row(built, 0)
    assert built.other[0] == 1
    assert (seen.ends, why in seen.why) == (ends, True)
    assert seen.at_least_s == (57.0 if timer else None)


def test_what_the_kernel_has_given_up_and_a_program_keeps_never_ends_by_itself() -> None:
    given_up = socket(state=tcp.CLOSE, protocol=MPTCP, inode=7, cookie=1)
    assert outlook.of_row(view(given_up, holders={7: [10]}), 0).ends == "never"


def test_a_finding_has_the_most_lasting_end_of_its_rows() -> None:
    rows = [
        socket(inode=7, cookie=1, state=tcp.FIN_WAIT2),
        socket(inode=0, cookie=2, sport=1, state=tcp.FIN_WAIT2, timer=3, expires_ms=5000),
        socket(inode=0, cookie=3, sport=2, state=tcp.FIN_WAIT2, timer=3, expires_ms=9000),
    ]
    built = view(*rows, holders={7: [10]}, namespaces=SPACE)
    whole = outlook.of_finding(built, np.arange(3))
    assert whole is not None
    assert whole.ends == "peer"
    minis = outlook.of_finding(built, np.array([1, 2]))
    assert minis is not None
    assert minis.at_least_s == 5.0
    assert minis.at_most_s is not None
    assert 9.0 < minis.at_most_s < 18.0
    assert outlook.of_finding(built, np.array([], np.int64)) is None


CAPTURES = Path(__file__).parents[2] / "captures/linux-6.18"


@pytest.mark.parametrize(
    "name", ["time-wait-flood", "kube-proxy-userspace", "fin-wait2-orphan", "relay-pair"]
)
def test_what_is_said_of_a_finding_is_what_all_of_its_rows_say_together(name: str) -> None:
    """Of very many minisockets only those that end first and last are asked."""
    diagnosis = session.diagnose(open_recording(str(CAPTURES / f"{name}.finwait")))
    view = diagnosis.view
    for finding in diagnosis.findings:
        every = outlook._together([outlook.of_row(view, row) for row in finding.rows.tolist()])
        assert outlook.of_finding(view, finding.rows) == every
        assert outlook.of_finding(view, finding.rows) is outlook.of_finding(view, finding.rows)


NEWER = {1: NamespaceView(1, ("host",), {"ipv4/tcp_retries2": "15", "ipv4/tcp_rto_max_ms": "120000"})}
"""Of a kernel that knows TCP_RTO_MAX_MS (6.15)."""
UNACKNOWLEDGED: dict[str, Any] = {
    "timer": 1,
    "retrans": 2,
    "backoff": 2,
    "rto_us": 816_000,
    "expires_ms": 300,
}


def of_newer(options: SocketOptions | None, **cells: Any) -> Outlook:
    row = {"inode": 7, "cookie": 1} | UNACKNOWLEDGED | cells
    built = view(socket(**row), holders={7: [10]} if row["inode"] else {}, namespaces=NEWER)
    return outlook.of_row(replace(built, socket_options={} if options is None else {7: options}), 0)


def test_the_maximum_of_the_rto_that_a_program_set_decides_when_it_ends() -> None:
    """The namespace alone says 15 minutes."""
    found = of_newer(replace(PLAIN, rto_max_ms=1000), state=tcp.FIN_WAIT1)
    assert found.at_least_s is not None
    assert found.at_most_s is not None
    assert 13 < found.at_least_s < found.at_most_s < 14.5
    assert (found.earliest_s, "TCP_RTO_MAX_MS" in found.why) == (found.at_least_s, False)
    plain = of_newer(replace(PLAIN, rto_max_ms=120_000), state=tcp.FIN_WAIT1)
    assert plain.at_least_s is not None
    assert plain.at_least_s > 900


def test_it_decides_about_a_syn_too() -> None:
    """Measured with TCP_SYNCNT 5: 5.7 s from the look on."""
    found = of_newer(
        replace(PLAIN, syncnt=5, rto_max_ms=1000),
        state=tcp.SYN_SENT, retrans=0, backoff=0, rto_us=1_000_000, expires_ms=700,
    )  # fmt: skip
    assert found.at_least_s is not None
    assert found.at_most_s is not None
    assert 4 < found.at_least_s <= 5.7 <= found.at_most_s < 12


@pytest.mark.parametrize("state", [tcp.FIN_WAIT1, tcp.LAST_ACK, tcp.SYN_SENT])
@pytest.mark.parametrize("timer", [1, 4])
def test_where_options_cannot_be_read_no_bound_is_later_than_the_timer(state: int, timer: int) -> None:
    """The kernel gives up when a timer fires, whatever a program has set."""
    found = of_newer(None, state=state, timer=1 if state == tcp.SYN_SENT else timer, inode=0, snd_wnd=0)
    assert found.ends == "retries"
    assert found.at_least_s is not None
    assert found.at_least_s > 1
    assert found.earliest_s == 0.3
    assert "TCP_USER_TIMEOUT" in found.why
    assert "TCP_USER_TIMEOUT or TCP_RTO_MAX_MS, which " in found.why


def test_on_a_kernel_without_the_option_nothing_is_said_of_it() -> None:
    found = told(None, state=tcp.FIN_WAIT1, inode=0, **UNACKNOWLEDGED)
    assert "TCP_RTO_MAX_MS" not in found.why
    known = told(PLAIN, state=tcp.FIN_WAIT1, **UNACKNOWLEDGED)
    assert (known.sooner_s, known.earliest_s) == (None, known.at_least_s)


def test_the_earliest_of_several_is_that_of_all() -> None:
    rows = np.arange(2)
    row = {"state": tcp.FIN_WAIT1} | UNACKNOWLEDGED
    built = view(
        socket(inode=7, cookie=1, **row),
        socket(inode=0, cookie=2, sport=2, **row),
        holders={7: [10]},
        namespaces=NEWER,
    )
    built = replace(built, socket_options={7: replace(PLAIN, rto_max_ms=120_000)})
    found = outlook.of_finding(built, rows)
    assert found is not None
    assert found.earliest_s == 0.3
