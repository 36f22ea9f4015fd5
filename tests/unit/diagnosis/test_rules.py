"""Each rule on the smallest view that it matches, and on the nearest one that it must not match."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from finwait.attribution.process import ProcessView
from finwait.diagnosis import catalogue, engine, outlook
from finwait.diagnosis.finding import Finding
from finwait.diagnosis.rules import closing_in_progress, holder_names
from finwait.diagnosis.view import HiddenDescriptor, NamespaceView, Options, View
from finwait.errors import Gap
from finwait.lone_sockets import LoneSockets, closed_already, hidden_before
from finwait.remedy.steps import step_of
from finwait.report import json, text
from finwait.report.columns import Cells
from finwait.report.connection import connection
from finwait.report.groups import groups
from finwait.table.sockets import pack_address
from finwait.uapi import tcp
from finwait.uapi.eventpoll import EPOLLERR, EPOLLET, EPOLLHUP, EPOLLIN, EPOLLRDHUP
from finwait.uapi.observation import LoneSocket, LoopWatch, ProcessWaits, ThreadWait
from tests.unit.diagnosis.views import primary, socket, view

E, F1, F2, CW, LA, TW, CL = (
    tcp.ESTABLISHED, tcp.FIN_WAIT1, tcp.FIN_WAIT2, tcp.CLOSE_WAIT, tcp.LAST_ACK, tcp.TIME_WAIT, tcp.CLOSING,
)  # fmt: skip
INFO: dict[str, Any] = {
    "last_ack_recv_ms": 60_000, "last_data_recv_ms": 60_000, "last_data_sent_ms": 60_000, "bytes_received": 10,
    "bytes_acked": 10, "snd_wnd": 65535, "backoff": 0, "unacked": 0,
}  # fmt: skip
HELD = socket(state=F2, inode=7, shutdown=2, cookie=1, **INFO)
OWNED = {7: [500]}
MOVING = ["closing-in-progress"]


def rules_of(v: View) -> dict[int, set[str]]:
    found: dict[int, set[str]] = {k: set() for k in range(len(v))}
    for f in engine.diagnose(v, catalogue.rules()):
        for row in f.rows.tolist():
            found[row].add(f.rule)
    return found


@pytest.mark.parametrize(
    ("one", "rule"),
    [
        (HELD, "fin-wait2-held"),
        (HELD | {"shutdown": 3}, "fin-wait2-shut-both"),
        (socket(state=F2, timer=3, expires_ms=9000), "fin-wait2-orphan"),
        (socket(state=F2, timer=2, expires_ms=9000, shutdown=3, **INFO), "fin-wait2-orphan-long"),
        (HELD | {"state": CW, "shutdown": 1}, "close-wait-eof-read"),
        (HELD | {"state": CW, "shutdown": 1, "rqueue": 1}, "close-wait-eof-unread"),
        (HELD | {"state": CW, "shutdown": 1, "rqueue": 9}, "close-wait-eof-unread"),
        (HELD | {"state": F1, "timer": 1, "retrans": 2}, "fin-unanswered-held"),
        (HELD | {"state": F1, "timer": 1, "retrans": 1}, "closing-in-progress"),
        (HELD | {"state": CL, "timer": 1, "retrans": 0}, "closing-in-progress"),
        (HELD | {"state": LA, "inode": 0, "timer": 1, "retrans": 1}, "closing-in-progress"),
        (HELD | {"state": LA, "timer": 1, "retrans": 5}, "fin-unanswered-held"),
        (HELD | {"state": F1, "inode": 0, "timer": 1, "retrans": 2}, "fin-unanswered-orphan"),
        (HELD | {"state": E, "shutdown": 0, "timer": 1, "retrans": 3, "unacked": 2}, "data-unanswered"),
        (HELD | {"state": E, "shutdown": 0, "timer": 1, "retrans": 1, "unacked": 2}, ""),
        (HELD | {"state": F1, "timer": 4, "snd_wnd": 0, "wqueue": 99}, "zero-window"),
        (HELD | {"state": F1, "timer": 4, "snd_wnd": 5, "wqueue": 99}, "closing-in-progress"),
        (HELD | {"state": F1, "timer": 4, "snd_wnd": 5, "wqueue": 99, "retrans": 1}, "egress-blocked"),
        (HELD | {"state": CL, "timer": 4, "snd_wnd": 5, "wqueue": 1, "retrans": 1, "inode": 0}, "egress-blocked"),
        (HELD | {"state": LA, "timer": 4, "snd_wnd": 5, "wqueue": 1, "retrans": 1, "unacked": 1}, "unexplained"),
        (HELD | {"state": E, "shutdown": 0, "timer": 4, "snd_wnd": 5, "wqueue": 9, "retrans": 1}, "egress-blocked"),
        (HELD | {"state": E, "shutdown": 0, "timer": 4, "snd_wnd": 5, "wqueue": 9}, ""),
        (HELD | {"state": F1, "timer": 0}, "unexplained"),
        (HELD | {"state": F1, "timer": 2}, "unexplained"),
        (HELD | {"state": F2, "inode": 0, "timer": 0}, "unexplained"),
        (socket(state=F1, timer=0, wqueue=1, **INFO), "fin-unanswered-orphan"),
        (socket(state=LA, timer=0, **INFO), "fin-unanswered-orphan"),
        (socket(state=CL, timer=0), "fin-unanswered-orphan"),
        (socket(state=F1, timer=2), "unexplained"),
        (socket(state=CW, inode=0, last_ack_recv_ms=10), "closing-in-progress"),
        (socket(state=tcp.SYN_SENT, inode=7, timer=1, retrans=1), "handshake"),
        (socket(state=tcp.SYN_SENT, inode=7, timer=1, retrans=2), "syn-unanswered"),
        (socket(state=tcp.SYN_SENT, inode=7, timer=1, retrans=2, protocol=262), "handshake"),
        (socket(state=tcp.SYN_SENT, inode=7, timer=0), "unexplained"),
        (socket(state=tcp.NEW_SYN_RECV, timer=1), "handshake"),
        (socket(state=tcp.CLOSE, inode=7), "unexplained"),
        (socket(state=tcp.BOUND_INACTIVE, inode=7), ""),
        (socket(state=tcp.LISTEN, inode=7), ""),
        (socket(state=F2, protocol=262, timer=2), "closing-in-progress"),
        (socket(state=F2, protocol=262, timer=0), "unexplained"),
        (HELD | {"state": E, "shutdown": 0, "timer": 4, "snd_wnd": 0, "wqueue": 99, "backoff": 1}, ""),
        (HELD | {"state": E, "shutdown": 0, "timer": 4, "snd_wnd": 0, "wqueue": 99, "backoff": 4}, "zero-window"),
        (HELD | {"protocol": 262}, "mptcp-no-subflow"),
        (HELD | {"protocol": 262, "state": E}, "mptcp-no-subflow"),
        (HELD | {"state": E, "shutdown": 0}, ""),
        (socket(state=TW, timer=3, expires_ms=30_000), "time-wait"),
        (socket(state=TW, timer=0), "unexplained"),
    ],
)  # fmt: skip
def test_one_socket_and_its_cause(one: dict[str, Any], rule: str) -> None:
    assert primary(view(one, holders=OWNED)) == [rule]


def test_bytes_that_arrive_between_two_looks_make_a_half_close_a_streaming_one() -> None:
    v = view(HELD | {"bytes_received": 11}, holders=OWNED, earlier=[HELD], watched_ms=500)
    assert primary(v) == ["fin-wait2-streaming"]
    still = view(HELD, holders=OWNED, earlier=[HELD], watched_ms=500)
    assert primary(still) == ["fin-wait2-held"]


@pytest.mark.parametrize(
    ("one", "clock", "rule"),
    [
        (HELD, "last_data_recv_ms", "fin-wait2-held"),
        (HELD | {"state": CW, "bytes_acked": 90}, "last_data_sent_ms", "close-wait-eof-read"),
    ],
)
def test_two_looks_that_are_closer_than_a_slow_stream_rests_tell_no_more_than_one(
    one: dict[str, Any], clock: str, rule: str
) -> None:
    def sure(last_ms: int, watched_ms: int) -> str:
        now, before = one | {clock: last_ms}, one | {clock: max(0, last_ms - watched_ms)}
        v = view(now, holders=OWNED, earlier=[before], watched_ms=watched_ms)
        (found,) = (f for f in engine.diagnose(v, catalogue.rules()) if f.primary)
        assert found.rule == rule
        return found.confidence.level

    assert sure(2400, 1000) == "possible"  # a byte every 2.5 s
    assert sure(2400, 5000) != "possible"
    assert sure(9000, 1000) != "possible"


def test_who_holds_a_half_close_up_is_told_by_what_is_unread_and_by_the_other_end() -> None:
    def said(ours: dict[str, Any], other: dict[str, Any] | None = None) -> tuple[str, str]:
        far = socket(src="192.0.2.1", dst="10.0.0.1", sport=80, dport=4000, inode=0, **INFO) | (other or {})
        v = view(HELD | ours, *([far] if other else []), holders=OWNED)
        (found,) = (f for f in engine.diagnose(v, catalogue.rules()) if f.primary and f.rows[0] == 0)
        assert found.rule == "fin-wait2-held"
        return found.title, found.confidence.level

    not_reading, not_closing = "this program leaves data unread", "the peer does not close"
    assert not_closing in said({})[0]
    assert not_reading in said({"rqueue": 9})[0]
    assert said({"rqueue": 9})[1] == "likely"
    assert said({"rqueue": 9, "last_data_recv_ms": 100})[1] == "possible"
    assert not_reading in said({"rqueue": 9}, {"state": LA, "timer": 4, "wqueue": 7})[0]
    assert not_closing in said({"rqueue": 9}, {"state": CW})[0]
    assert not_reading in said({"rqueue": 9}, {"state": CW, "timer": 4, "wqueue": 7})[0]
    assert "its FIN does not arrive here" in said({}, {"state": LA, "timer": 1})[0]


def test_a_half_close_whose_queue_is_being_read_is_a_streaming_one() -> None:
    slow = HELD | {"bytes_received": 1000, "rqueue": 900}
    v = view(slow | {"rqueue": 800}, holders=OWNED, earlier=[slow], watched_ms=500)
    assert primary(v) == ["fin-wait2-streaming"]


def test_a_half_close_that_is_not_read_waits_for_its_program_and_not_for_a_peer_that_is_gone() -> None:
    here = {1: NamespaceView(1, ("host",), addresses=frozenset({(0, 0xFFFF << 32 | 0xC0000201)}))}
    v = view(HELD | {"rqueue": 9}, holders=OWNED, namespaces=here)
    assert primary(v) == ["fin-wait2-held"]
    (finding,) = [f for f in engine.diagnose(v, catalogue.rules()) if f.primary]
    assert any(e.value == "absent ×1" for e in finding.evidence)


@pytest.mark.parametrize(
    "name", ["mptcp_bytes_received", "mptcp_bytes_acked", "mptcp_rcv_nxt", "mptcp_snd_una"]
)
def test_an_mptcp_half_close_on_which_something_moves_is_no_finding(name: str) -> None:
    one = socket(protocol=262, state=F2, inode=7, cookie=1, mptcp_token=9, **{name: 10})
    v = view(one | {name: 11}, SUBFLOW, holders=OWNED, earlier=[one], watched_ms=500)
    assert primary(v)[:1] == MOVING


SUBFLOW = socket(state=E, inode=7, cookie=2, ulp=b"mptcp", **INFO)
"""Its token is told to CAP_NET_ADMIN alone; its inode is that of the connection."""


def test_an_mptcp_half_close_is_certain_only_if_it_is_known_to_be_still() -> None:
    one = socket(protocol=262, state=F2, inode=7, cookie=1, mptcp_token=9, mptcp_bytes_received=10)
    named = SUBFLOW | {"mptcp_token_local": 9}

    def sure(v: View) -> str:
        (found,) = engine.diagnose(v, catalogue.rules())
        assert found.rule == "mptcp-half-close"
        return found.confidence.level

    assert sure(view(one, SUBFLOW, holders=OWNED, earlier=[one, SUBFLOW], watched_ms=5000)) == "certain"
    assert sure(view(one, SUBFLOW, holders=OWNED, earlier=[one, SUBFLOW], watched_ms=500)) == "possible"
    assert sure(view(one, SUBFLOW, holders=OWNED)) == "possible"
    assert sure(view(one, named, holders=OWNED)) == "certain"
    assert sure(view(one, named | {"last_data_recv_ms": 100}, holders=OWNED)) == "possible"
    assert sure(view(one, SUBFLOW | {"mptcp_token_local": 8}, holders=OWNED)) == "possible"


def test_an_answer_that_goes_out_makes_close_wait_no_leak() -> None:
    one = HELD | {"state": CW, "shutdown": 1}
    v = view(one | {"bytes_acked": 99}, holders=OWNED, earlier=[one], watched_ms=500)
    assert primary(v) == MOVING


def test_a_window_that_opens_now_and_then_is_no_peer_that_stopped_reading() -> None:
    one = HELD | {"state": F1, "timer": 4, "snd_wnd": 0, "wqueue": 99}

    def sure(v: View) -> str:
        return next(
            f.confidence.level for f in engine.diagnose(v, catalogue.rules()) if f.rule == "zero-window"
        )

    moved = view(one | {"bytes_acked": 99}, holders=OWNED, earlier=[one], watched_ms=500)
    assert primary(moved) == MOVING
    far = socket(
        src="192.0.2.1", dst="10.0.0.1", sport=80, dport=4000, state=CW, inode=8, rqueue=90, cookie=2
    )
    far |= INFO | {"bytes_received": 100}
    read = view(one, far | {"rqueue": 80}, holders={7: [5], 8: [6]}, earlier=[one, far], watched_ms=500)
    assert primary(read)[0] == MOVING[0]
    for cells in ({}, {"backoff": 5}, {"backoff": 9}):
        long = one | cells
        for v in (
            view(long, holders=OWNED),
            view(long, holders=OWNED, earlier=[long], watched_ms=500),
            view(long, holders=OWNED, earlier=[long], watched_ms=8000),
        ):
            found = one_finding(v)
            assert (found.rule, found.severity, found.confidence.level) == (
                "zero-window",
                "notice",
                "possible",
            )
            assert "slowly" in found.confidence.reason
            assert "stopped" not in found.title
            assert not any(r.clears and "--override slow-reader" not in r.command for r in found.ends_it)
    assert one_finding(view(one, holders=OWNED)).confidence.look_again
    assert not one_finding(v).confidence.look_again, "some seconds more tell nothing more"
    old = one | {"last_data_sent_ms": 600_000, "last_ack_recv_ms": 100}
    assert sure(view(old, holders=OWNED)) == "likely"
    assert one_finding(view(old, holders=OWNED)).severity == "problem"
    assert "let nothing through for 10 min" in one_finding(view(old, holders=OWNED)).confidence.reason


def test_a_program_here_that_reads_nothing_proves_more_than_a_peer_elsewhere() -> None:
    one = HELD | {"state": F1, "timer": 4, "snd_wnd": 0, "wqueue": 99, "backoff": 4}
    far = INFO | socket(
        src="192.0.2.1", dst="10.0.0.1", sport=80, dport=4000, state=E, inode=8, rqueue=90, cookie=2
    )
    owned = {7: [5], 8: [6]}

    def told(v: View) -> tuple[str, str, bool]:
        found = next(f for f in engine.diagnose(v, catalogue.rules()) if f.rule == "zero-window")
        return found.severity, found.confidence.level, found.confidence.look_again

    def brief(ms: int) -> View:
        return view(one, far, holders=owned, earlier=[one, far], watched_ms=ms)

    # A second look settles it, which `check` always takes.
    for v in (view(one, far, holders=owned), brief(500)):
        assert told(v) == ("notice", "possible", True)
    assert told(brief(3500)) == ("problem", "likely", False)
    is_open = one | {"state": E, "shutdown": 0}
    v = view(is_open, far, holders=owned, earlier=[is_open, far], watched_ms=3500)
    assert told(v)[0] == "notice"


@pytest.mark.parametrize("state", [E, F1])
@pytest.mark.parametrize("unread", [0, 90])
def test_a_shut_window_says_nothing_of_a_program_here_that_was_looked_at_once(
    state: int, unread: int
) -> None:
    """Measured: a program that reads 2 kB/s all the time keeps its window shut for longer than a short `--idle`."""
    one = HELD | {"state": state, "timer": 4, "snd_wnd": 0, "wqueue": 99, "backoff": 6}
    one |= {"last_data_sent_ms": 700_000, "shutdown": 0 if state == E else 2}
    far = INFO | socket(
        src="192.0.2.1", dst="10.0.0.1", sport=80, dport=4000, state=E, inode=8, rqueue=unread, cookie=2
    )
    owned = {7: [5], 8: [6]}

    def told(v: View) -> tuple[str, bool, str]:
        found = next(f for f in engine.diagnose(v, catalogue.rules()) if f.rule == "zero-window")
        for said in (found.confidence.reason, *(e.says for e in found.evidence)):
            assert "has taken nothing" not in said
        return found.severity, found.confidence.look_again, found.confidence.level

    for v in (
        view(one, far, holders=owned),
        view(one, far, holders=owned, earlier=[one, far], watched_ms=500),
    ):
        assert told(v) == ("notice", True, "possible")
    still = view(one, far, holders=owned, earlier=[one, far], watched_ms=5000)
    assert told(still) == (("problem", False, "likely") if unread else ("notice", False, "possible"))
    reads = view(one, far | {"rqueue": 40}, holders=owned, earlier=[one, far], watched_ms=5000)
    assert unread == 0 or not any(f.rule == "zero-window" for f in engine.diagnose(reads, catalogue.rules()))
    assert told(view(one, holders=OWNED))[::2] == (
        "problem",
        "likely",
    )  # of a peer elsewhere only this is known


def test_no_rule_says_that_the_retransmission_timer_runs_where_windows_are_probed() -> None:
    one = HELD | {"timer": 4, "snd_wnd": 0, "wqueue": 99, "backoff": 5}
    for cells in ({"state": F1}, {"state": E, "shutdown": 0}, {"state": F1, "retrans": 4}):
        (found,) = (
            f for f in engine.diagnose(view(one | cells, holders=OWNED), catalogue.rules()) if f.primary
        )
        said = [a.reason for a in found.does_not if "keepalive" in a.text]
        assert said == ["it does not run while data waits; the timer of window probes is running instead"]


@pytest.mark.parametrize("backoff", [0, 1, 7])
def test_a_little_room_at_the_peer_is_no_fin_that_was_sent_moments_ago(backoff: int) -> None:
    """The kernel waits for room for a segment, with doublings, and then sends what fits."""
    one = HELD | {"state": F1, "timer": 4, "retrans": 0, "wqueue": 99, "backoff": backoff, "expires_ms": 9000}
    (little,) = engine.diagnose(view(one | {"snd_wnd": 1500}, holders=OWNED), catalogue.rules())
    assert (little.rule, little.severity) == ("closing-in-progress", "healthy")
    assert ("moments ago" in little.title) == (backoff == 0)
    assert ("little room" in little.title) == (backoff > 0)
    # Answered probes leave `retrans` at 0: no health, however that looks.
    shut = view(one | {"snd_wnd": 0}, holders=OWNED)
    assert bool(closing_in_progress.match(shut)[0]) == (backoff == 0)
    assert primary(shut) == ["zero-window"]
    refused = view(one | {"snd_wnd": 1500, "retrans": 1}, holders=OWNED)
    assert primary(refused) == ["egress-blocked"]


def test_one_row_that_is_proven_makes_no_problem_of_the_others() -> None:
    """Neither of those that paused a moment ago, nor by the commands, which act on what is proven alone."""
    paused = HELD | {
        "state": E,
        "shutdown": 0,
        "timer": 4,
        "snd_wnd": 0,
        "wqueue": 9,
        "backoff": 3,
        "retrans": 0,
    }
    many = [paused | {"cookie": 10 + k, "sport": 5000 + k, "inode": 7 + k} for k in range(120)]
    owned = {row["inode"]: [500] for row in many} | {900: [500]}
    for cells, variant in (({"retrans": 6, "backoff": 6}, 1), ({"last_data_sent_ms": 900_000}, 2)):
        stuck = paused | {"cookie": 3, "inode": 900} | cells
        found = engine.diagnose(view(stuck, *many, holders=owned), catalogue.rules())
        assert [(f.severity, f.count, f.variant) for f in found] == [
            ("problem", 1, variant),
            ("notice", 120, 2),
        ]
        assert found[0].select != found[1].select
    assert found[0].select == "rule = zero-window and severity = problem"
    assert found[1].select == "rule = zero-window and severity = notice"
    blocked = paused | {"snd_wnd": 5000}
    refused = [blocked | {"cookie": 10 + k, "inode": 7 + k, "retrans": 1, "backoff": 1} for k in range(120)]
    long = blocked | {"cookie": 3, "inode": 900, "retrans": 6, "backoff": 6}
    found = engine.diagnose(view(long, *refused, holders=owned), catalogue.rules())
    assert [(f.rule, f.severity, f.count) for f in found] == [
        ("egress-blocked", "problem", 1), ("egress-blocked", "notice", 120),
    ]  # fmt: skip


def test_no_more_is_proven_than_the_clocks_of_the_socket_say() -> None:
    """A socket may have a smaller maximum of its RTO than its namespace: many doublings are then a short time."""
    one = HELD | {
        "state": E,
        "shutdown": 0,
        "timer": 4,
        "snd_wnd": 0,
        "wqueue": 9,
        "backoff": 20,
        "retrans": 0,
    }
    assert one_finding(view(one | {"last_data_sent_ms": 20_000}, holders=OWNED)).severity == "notice"
    # And where tcp_retries2 keeps the doublings few, the clock proves what they never would.
    few = {1: NamespaceView(1, sysctls={"ipv4/tcp_retries2": "5"})}
    days = one | {"backoff": 5, "last_data_sent_ms": 86_400_000}
    assert one_finding(view(days, holders=OWNED, namespaces=few)).severity == "problem"
    silent = one | {"retrans": 4, "backoff": 9, "last_ack_recv_ms": 900}
    assert one_finding(view(silent, holders=OWNED)).severity == "notice"


@pytest.mark.parametrize("inode", [0, 7])
def test_what_is_retransmitted_is_told_by_what_is_before_the_fin(inode: int) -> None:
    one = HELD | {"state": F1, "inode": inode, "timer": 1, "retrans": 5, "wqueue": 1, "notsent_bytes": 0}

    def said(v: View) -> str:
        (found,) = (f for f in engine.diagnose(v, catalogue.rules()) if f.primary)
        return f"{found.title}: {found.confidence.reason}"

    assert "5 retransmissions of the FIN" in said(view(one, holders=OWNED))
    unsent = said(view(one | {"wqueue": 5001, "notsent_bytes": 4000}, holders=OWNED))
    assert "5 retransmissions of data" in unsent
    assert "behind 5000 bytes and was never sent" in unsent
    sent = said(view(one | {"wqueue": 5001}, holders=OWNED))
    assert "behind 5000 bytes that nobody acknowledged" in sent


@pytest.mark.parametrize("inode", [0, 7])
@pytest.mark.parametrize(
    ("ours", "theirs", "got", "lost"),
    [
        (F1, CW, 10, "back"),
        (F1, E, 10, "there"),
        (F1, E, 500, "back"),
        (LA, TW, 10, "back"),
        (LA, F2, 10, "there"),
        (CL, CL, 10, "back"),
        (CL, F1, 10, "there"),
        (E, E, 500, "back"),
        (E, E, 10, "there"),
    ],
)
def test_where_the_other_end_is_here_it_says_which_way_packets_are_lost(
    inode: int, ours: int, theirs: int, got: int, lost: str
) -> None:
    one = HELD | {"state": ours, "inode": inode, "timer": 1, "retrans": 4, "wqueue": 500, "unacked": 1}
    far = socket(
        src="192.0.2.1", dst="10.0.0.1", sport=80, dport=4000, state=theirs, inode=8, cookie=2, **INFO
    )
    one |= counted(one, syn=0)
    v = view(one, far | {"bytes_received": got}, holders=OWNED)
    found = [f for f in engine.diagnose(v, catalogue.rules()) if "unanswered" in f.rule]
    assert ("the peer has received" in found[0].title) == (lost == "back")
    (seen,) = (e for e in found[0].evidence if e.column == "other end")
    assert seen.value == f"{tcp.STATES[theirs]} ×1"
    assert f"lost on the way {lost}" in seen.says
    looks = [remedy for remedy in found[0].ends_it if "ct state invalid" in remedy.text]
    assert bool(looks) == (lost == "back")
    assert found[0].confidence.level == ("likely" if lost == "back" else "certain")


def counted(one: dict[str, Any], syn: int) -> dict[str, int]:
    """What an end has sent that counts its SYN among its `bytes_acked`, or does not."""
    fin = one["state"] in (F1, LA, CL)
    return {
        "bytes_sent": one["bytes_acked"] + one["wqueue"] - syn - fin,
        "bytes_retrans": 0,
        "notsent_bytes": 0,
        "data_segs_out": 2,
    }


@pytest.mark.parametrize(
    ("syn", "got", "says"),
    [
        (1, 9, "lost on the way there"),
        (1, 10, "lost on the way back"),  # of its 10 one is the SYN
        (0, 10, "lost on the way there"),
        (0, 11, "lost on the way back"),
        (None, 9, "lost on the way there"),
        (None, 10, "do not show whether"),
        (None, 11, "lost on the way back"),
        (0, None, "do not show whether"),
    ],
)
def test_one_byte_that_arrived_is_told_from_none_where_it_is_known_who_opened(
    syn: int | None, got: int | None, says: str
) -> None:
    one = HELD | {"state": E, "shutdown": 0, "timer": 1, "retrans": 4, "wqueue": 1, "unacked": 1}
    far = socket(src="192.0.2.1", dst="10.0.0.1", sport=80, dport=4000, state=E, inode=8, cookie=2, **INFO)
    far = without(far, "bytes_received") if got is None else far | {"bytes_received": got}
    if syn is not None:
        one |= counted(one, syn)
    diagnosed = engine.diagnose(view(one, far, holders=OWNED), catalogue.rules())
    (found,) = (f for f in diagnosed if f.rule == "data-unanswered")
    (seen,) = (e for e in found.evidence if e.column == "other end")
    assert says in seen.says
    assert ("the peer has received" in found.title) == ("back" in says)
    ways = sum("way there" in r.text or "ct state invalid" in r.text for r in found.ends_it)
    assert ways == (1 if "lost" in says else 2)


@pytest.mark.parametrize(("waiting", "named"), [(9, True), (8, False)])
def test_data_that_waits_behind_a_full_accept_queue_names_the_listener(waiting: int, named: bool) -> None:
    one = HELD | {"state": E, "shutdown": 0, "timer": 1, "retrans": 4, "wqueue": 1, "unacked": 1}
    far = socket(
        src="192.0.2.1",
        dst="10.0.0.1",
        sport=80,
        dport=4000,
        state=tcp.NEW_SYN_RECV,
        inode=0,
        cookie=2,
        timer=1,
    )
    door = socket(
        src="192.0.2.1",
        dst="0.0.0.0",
        sport=80,
        dport=0,
        state=tcp.LISTEN,
        inode=8,
        cookie=3,
        rqueue=waiting,
        wqueue=8,
    )
    v = view(one, far, door, holders=OWNED | {8: [700]}, processes={700: ProcessView(700, "billing")})
    (found,) = (f for f in engine.diagnose(v, catalogue.rules()) if f.rule == "data-unanswered")
    listeners = [e for e in found.evidence if e.column == "full listener"]
    assert bool(listeners) is named
    if named:
        assert "billing" in listeners[0].says
        assert "9 of 8 waiting" in listeners[0].value
        assert (found.turn.whose, found.turn.act) == ("peer", "accept()")
        assert found.ends_it[0].text.startswith("the program of that listener has to accept")
        assert found.confidence.level == "likely"
    else:
        assert found.turn.whose == "far"


@pytest.mark.parametrize(
    ("cells", "level"),
    [
        ({"bytes_acked": 1, "data_segs_out": 1}, "possible"),  # it accepted, and sent one byte
        ({"bytes_acked": 1, "data_segs_out": 0}, "likely"),  # its SYN
        ({"bytes_acked": 0, "data_segs_out": 0}, "likely"),
        ({"bytes_acked": 0, "data_segs_out": 1, "wqueue": 1}, "possible"),  # not acknowledged yet
        ({"bytes_acked": 1}, "possible"),  # before Linux 4.6
        ({"bytes_acked": 0}, "likely"),
        ({"bytes_acked": 0, "wqueue": 1}, "possible"),
    ],
)
def test_one_byte_that_was_sent_a_moment_ago_leaves_open_whether_more_is_coming(
    cells: dict[str, int], level: str
) -> None:
    one = HELD | {"state": CW, "shutdown": 1, "last_data_sent_ms": 100} | cells
    found = one_finding(view(one, holders=OWNED))
    assert (found.rule, found.confidence.level) == ("close-wait-eof-read", level)


@pytest.mark.parametrize(
    ("client", "server", "level"),
    [
        ((2, 1), (1, 1), "possible"),  # none: the SYN, and FINs
        ((3, 1), (0, 2), "possible"),  # two bytes: a server end without any, but for a FIN, would agree too
        ((4, 0), (0, 3), "likely"),
        ((1, 1), (1, 0), "possible"),  # one byte of the end that accepted
    ],
)
@pytest.mark.parametrize("row", [0, 1])
def test_ends_that_are_told_apart_by_their_counts_alone_need_bytes_at_both(
    client: tuple[int, int], server: tuple[int, int], level: str, row: int
) -> None:
    rows = [
        HELD | {"state": state, "cookie": k, "bytes_acked": acked, "bytes_received": received}
        for k, (state, (acked, received)) in enumerate(((LA, client), (F2, server)), 1)
    ]
    v = replace(view(*rows), other=np.array([1, 0]), other_how=np.array([3, 3], np.uint8))
    rule = next(rule for rule in catalogue.rules() if rule.name == "nat-entry-gone")
    assert rule.confidence(v, np.array([row])).level == level


@pytest.mark.parametrize("grown", [{"bytes_acked": 99}, {"rqueue": 5}], ids=["answers", "reads"])
def test_a_program_that_is_busy_with_what_came_has_not_left_it_unread(grown: dict[str, Any]) -> None:
    one = HELD | {"state": CW, "shutdown": 1, "rqueue": 9}
    assert primary(view(one | grown, holders=OWNED, earlier=[one], watched_ms=500)) == MOVING


def test_whether_the_end_of_file_is_left_unread_takes_two_looks_where_it_may_be_busy() -> None:
    one = HELD | {"state": CW, "shutdown": 1, "rqueue": 1}

    def sure(v: View) -> str:
        (found,) = (f for f in engine.diagnose(v, catalogue.rules()) if f.rule == "close-wait-eof-unread")
        return found.confidence.level

    closed = socket(
        state=F2, sport=80, dport=4000, src="192.0.2.1", dst="10.0.0.1", inode=0, timer=3, cookie=9
    )
    assert sure(view(one, closed, holders=OWNED)) == "certain"  # nobody waits for an answer any more
    assert (
        sure(view(one, holders=OWNED)) == "likely"
    )  # the peer may: it may wait for its answer, as the server may
    assert sure(view(one | {"last_data_sent_ms": 100}, holders=OWNED)) == "possible"
    assert sure(view(one | {"rqueue": 9}, holders=OWNED)) == "likely"
    twice: dict[str, Any] = {"earlier": [one | {"rqueue": 9}], "watched_ms": 500}
    assert sure(view(one | {"rqueue": 9}, holders=OWNED, **twice)) == "likely"


def test_a_loop_that_was_told_may_wait_for_a_backend_until_nothing_has_passed_for_long() -> None:
    """Nginx with ``proxy_ignore_client_abort``: the client half-closed, and its answer is being made."""
    edge = EPOLLIN | EPOLLRDHUP | EPOLLET | EPOLLERR | EPOLLHUP
    asleep = ThreadWait(500, "nginx", "S", "epoll_wait", "epoll", ((4, 0),), steady=True)
    waits = {500: ProcessWaits((asleep,), (LoopWatch(4, 1, ((3, edge, 7),), steady=True),))}
    for quiet_ms, severity in ((5_000, "notice"), (700_000, "problem")):
        clocks = dict.fromkeys(("last_ack_recv_ms", "last_data_recv_ms", "last_data_sent_ms"), quiet_ms)
        one = HELD | {"state": CW, "shutdown": 1, "rqueue": 1} | clocks
        (finding,) = engine.diagnose(view(one, holders=OWNED, waits=waits), catalogue.rules())
        assert (finding.rule, finding.severity) == ("close-wait-eof-unread", severity)
        assert ("backend" in finding.confidence.reason) == (severity == "notice")


@pytest.mark.parametrize(
    "one",
    [
        HELD | {"state": E, "shutdown": 0, "timer": 1, "retrans": 3, "unacked": 2},
        HELD | {"state": F1, "timer": 1, "retrans": 3, "wqueue": 99},
        HELD | {"state": F1, "timer": 1, "retrans": 3, "wqueue": 99, "inode": 0},
    ],
    ids=["data", "held", "orphan"],
)
def test_what_gets_through_between_two_looks_is_answered(one: dict[str, Any]) -> None:
    assert primary(view(one, holders=OWNED, earlier=[one], watched_ms=500)) != [""]
    moved = primary(view(one | {"bytes_acked": 99}, holders=OWNED, earlier=[one], watched_ms=500))
    assert moved == ([""] if one["state"] == E else MOVING)


def test_what_nobody_is_seen_to_hold_and_still_moves_finishes_by_itself() -> None:
    one = HELD | {"state": CW, "shutdown": 1}
    assert primary(view(one, earlier=[one], watched_ms=500)) == ["holder-not-found"]
    assert primary(view(one | {"bytes_acked": 99}, earlier=[one], watched_ms=500)) == MOVING


@pytest.mark.parametrize("state", [tcp.FIN_WAIT2, tcp.CLOSE_WAIT, tcp.LAST_ACK])
def test_what_was_accepted_and_closed_between_two_lists_of_descriptors_has_lost_no_holder(state: int) -> None:
    """A short connection is in neither list; that it was used a moment ago tells, or that it was not there before."""
    quick = HELD | {"state": state, "last_data_sent_ms": 4, "last_data_recv_ms": 4}
    assert "holder-not-found" not in primary(view(quick))
    other = quick | {"cookie": 2}
    assert "holder-not-found" not in primary(view(quick, earlier=[other], watched_ms=500))
    assert primary(view(quick, earlier=[quick], watched_ms=500)) == ["holder-not-found"]
    silent = quick | {"last_data_sent_ms": 2_000, "last_data_recv_ms": 2_000}
    assert primary(view(silent)) == ["holder-not-found"]


def test_the_holder_of_what_may_have_been_opened_during_the_look_is_unknown_everywhere() -> None:
    quick = HELD | {"state": tcp.CLOSE_WAIT, "last_data_sent_ms": 4, "last_data_recv_ms": 4, "cookie": 1}
    opening = HELD | {
        "state": tcp.SYN_SENT,
        "timer": 1,
        "retrans": 0,
        "cookie": 2,
        "last_data_sent_ms": 99_999,
    }
    listener = HELD | {"state": tcp.LISTEN, "last_data_sent_ms": 0, "last_data_recv_ms": 0, "cookie": 3}
    silent = quick | {"last_data_sent_ms": 2_000, "last_data_recv_ms": 2_000, "cookie": 4}
    v = view(quick, opening, listener, silent)
    assert v.holder_unknown.tolist() == [True, True, False, False]
    assert v.holder_missing.tolist() == [False, False, True, True]
    rows = np.arange(4)
    assert Cells(v, rows).column("owner") == ["?", "?", "-", "-"]
    assert [one["owners"] for one in json.objects(v, rows)] == [None, None, [], []]
    assert [one.holders_known for one in (step_of(v, row, "", "destroy") for row in range(4))] == [
        False, False, True, True,
    ]  # fmt: skip
    assert "may have been opened" in holder_names(v, 0)
    assert holder_names(v, 3) == "no process"
    said = "".join(connection(v, 0, []))
    assert "no process" not in said
    assert "unknown (may have been opened while processes were being inspected)" in said
    assert "no process (all were inspected)" in "".join(connection(v, 3, []))
    told = "".join(text.diagnosis(v, engine.diagnose(v, catalogue.rules()), (), "vm"))
    assert "unknown (may have been opened while processes were being inspected)" in told
    again = view(quick, earlier=[quick], watched_ms=3_500)
    assert again.holder_missing.all()
    assert not view(quick, holders={7: [9]}).holder_unknown.any()


FLOWING = socket(
    state=E, inode=7, cookie=1, sport=80, dport=4000, rqueue=9, last_data_recv_ms=200, last_data_sent_ms=9_000,
    last_ack_recv_ms=200, bytes_received=9, bytes_acked=1,
)  # fmt: skip


def test_a_connection_without_a_holder_to_which_data_flows_is_in_question_until_a_second_look() -> None:
    """Its descriptor is in flight, and its peer sends: for one look it may have been accepted a moment ago."""
    once = view(FLOWING)
    assert once.holder_unknown.all()
    assert once.holder_in_question.all()
    assert primary(once) == [""]
    (gap,) = engine.gaps(once, catalogue.rules())
    assert (gap.where, gap.needs) == ("1 connection", "a second look, `--for 5s`")
    assert "not everything could be seen" in text.headline(once, (), "vm", (gap,))
    later = FLOWING | {"rqueue": 18, "bytes_received": 18}
    twice = view(later, earlier=[FLOWING], watched_ms=4_000)
    assert twice.moved.all()
    assert twice.holder_missing.all()
    assert engine.gaps(twice, catalogue.rules()) == ()
    found = {f.rule: f for f in engine.diagnose(twice, catalogue.rules())}
    assert found["holder-not-found"].primary
    assert found["holder-not-found"].severity == "notice"
    assert "no process has a descriptor of" in found["established-unread"].title
    for said in (f"{f.title} {[e.says for e in f.evidence]} {f.ends_it}" for f in found.values()):
        assert "restart the program" not in said
        assert "the program that accepted" not in said
    # What is read, or sent, shows that something holds it.
    for more in ({"rqueue": 0}, {"bytes_acked": 9}):
        assert primary(view(later | more, earlier=[FLOWING], watched_ms=4_000)) == [""]


def test_what_is_younger_than_the_look_is_not_in_question() -> None:
    young = FLOWING | {"last_data_sent_ms": 900}
    assert view(young).holder_unknown.all()
    assert not view(young).holder_in_question.any()
    assert not view(FLOWING, took_ms=20_000).holder_in_question.any()
    assert not view(FLOWING, holders={7: [9]}).holder_in_question.any()
    assert not view(FLOWING, unreadable=(3,)).holder_in_question.any(), "a second look would not tell either"


@pytest.mark.parametrize("state", [E, CW])
def test_what_waited_to_be_accepted_has_lost_no_holder_by_being_accepted_during_the_look(state: int) -> None:
    """It is older than its descriptor, which may have been opened and closed between two lists."""
    silent = {"last_data_recv_ms": 5_000, "last_data_sent_ms": 5_000, "last_ack_recv_ms": 5_000}
    served = FLOWING | silent | {"cookie": 70, "state": state, "shutdown": state == CW}
    assert primary(view(served)) == ["holder-not-found"]
    assert "holder-not-found" not in primary(view(DOOR, served, holders={5: [9]}))
    quiet = DOOR | {"rqueue": 0}
    assert "holder-not-found" in primary(view(quiet, served, holders={5: [9]}))
    before = [quiet, served | {"inode": 0}]
    v = view(quiet, served, holders={5: [9]}, earlier=before, watched_ms=4_000)
    assert v.holder_unknown.tolist() == [False, True]
    assert "holder-not-found" not in primary(v)
    held = view(quiet, served, holders={5: [9]}, earlier=[quiet, served], watched_ms=4_000)
    assert held.holder_missing.tolist() == [False, True]


def test_holders_that_nobody_looked_for_are_not_said_to_be_hidden() -> None:
    for more, said in (
        ({"searched": False}, "not looked for (`--no-owners`)"),
        ({"unreadable": (1,)}, "unknown (not every process could be inspected)"),
    ):
        v = view(HELD | {"cookie": 1}, **more)
        found = engine.diagnose(v, catalogue.rules())
        whole = "".join(text.diagnosis(v, found, (), "vm"))
        one = "".join(connection(v, 0, found))
        for page in (whole, one):
            assert said in " ".join(page.split())
            assert ("could be inspected" in page) == ("unreadable" in more)
    assert holder_names(view(HELD, searched=False), 0) == "an unknown program (not looked for: `--no-owners`)"


def test_nobody_holds_it_is_said_only_when_everybody_was_looked_into() -> None:
    assert primary(view(HELD)) == ["holder-not-found"]
    assert primary(view(HELD, unreadable=(1,))) == ["fin-wait2-held"]
    assert primary(view(HELD, searched=False)) == ["fin-wait2-held"]


def test_what_only_the_second_look_saw_is_no_problem_yet() -> None:
    """Measured: on an overloaded server a row of age 0.0 s was a problem for certain, after two looks."""
    old = socket(state=CW, inode=7, cookie=1, rqueue=1, **INFO)
    unread = old | {"inode": 8, "cookie": 2, "sport": 5002}
    data = [
        unread,
        unread | {"rqueue": 9},
        socket(state=F2, inode=8, cookie=2, sport=5002, shutdown=2, **INFO),
        socket(
            state=tcp.FIN_WAIT1,
            inode=8,
            cookie=2,
            sport=5002,
            timer=1,
            retrans=5,
            backoff=5,
            rto_us=6_528_000,
            wqueue=1,
        ),
    ]
    for row in data:
        for age, known in ((100, False), (100, True), (60_000, False)):
            new = row | {"last_ack_recv_ms": age, "last_data_recv_ms": 60_000, "last_data_sent_ms": 60_000}
            earlier = [old, *([new] if known else [])]
            v = view(old, new, holders={7: [9], 8: [9]}, earlier=earlier, watched_ms=4000)
            found = [f for f in engine.diagnose(v, catalogue.rules()) if f.primary]
            (about,) = (f for f in found if 1 in f.rows)
            fresh = 0 <= int(v.at_least_ms[1]) < 3000 and not known
            if fresh:
                assert about.rows.tolist() == [1]
                assert about.severity == "notice"
                assert (about.confidence.level, about.confidence.look_again) == ("possible", True)
            else:
                assert "second of two looks" not in about.confidence.reason
            (before,) = (f for f in found if 0 in f.rows)
            assert (before.rule, before.severity) == ("close-wait-eof-unread", "problem")
            assert not before.confidence.look_again


ROOMY = socket(
    state=tcp.LISTEN, inode=5, sport=80, src="0.0.0.0", dst="0.0.0.0", dport=0, rqueue=1, wqueue=128
)


def test_a_waiting_connection_is_never_accepted_only_if_its_listener_has_a_queue() -> None:
    listener = ROOMY
    waiting = socket(state=CW, inode=0, sport=80, dport=4000, rqueue=6, shutdown=1, **INFO)
    assert primary(view(listener, waiting, holders={5: [9]}))[1] == "never-accepted"
    open_ = waiting | {"state": E}
    assert primary(view(listener, open_))[1] == "never-accepted"
    assert primary(view(listener | {"rqueue": 0}, open_))[1] == ""
    assert primary(view(listener | {"src": "10.0.0.9"}, open_))[1] == ""
    assert primary(view(listener | {"netns": 2}, open_))[1] == ""
    assert primary(view(listener | {"ifindex": 3}, open_))[1] == ""
    for fresh in (waiting, open_):
        young = primary(view(listener, fresh | {"last_ack_recv_ms": 10}))[1]
        assert young == ("" if fresh is open_ else MOVING[0])


def test_close_wait_without_an_inode_needs_no_listener_to_be_certain() -> None:
    waiting = socket(state=CW, inode=0, sport=80, dport=4000, rqueue=6, shutdown=1, **INFO)
    (found,) = engine.diagnose(view(waiting), catalogue.rules())
    assert (found.rule, found.confidence.level) == ("never-accepted", "certain")


@pytest.mark.parametrize("queues", [(0, 2), (2, 0)])
def test_listeners_that_share_a_port_are_all_named_with_their_queues(queues: tuple[int, int]) -> None:
    door = socket(state=tcp.LISTEN, sport=80, src="0.0.0.0", dst="0.0.0.0", dport=0, wqueue=128)
    doors = [door | {"inode": 5 + k, "rqueue": queue} for k, queue in enumerate(queues)]
    less_exact = door | {"family": 10, "src": "::", "dst": "::", "inode": 9, "rqueue": 7}
    rows = [socket(state=E, inode=0, sport=80, dport=4000 + k, cookie=k, **INFO) for k in range(2)]
    v = view(*doors, less_exact, *rows, holders={5: [50], 6: [60], 9: [90]})
    assert primary(v)[3:] == ["never-accepted", "never-accepted"]
    (found,) = (f for f in engine.diagnose(v, catalogue.rules()) if f.rule == "never-accepted")
    listeners = [(e.value, e.says) for e in found.evidence if e.column == "listener :80"]
    assert [value for value, _ in listeners] == ["2 of 128 waiting", "0 of 128 waiting"]
    behind, idle = (50, 60) if queues[0] else (60, 50)
    assert f"pid {behind} (fd 3) has not accepted; 2 listeners share the address" in listeners[0][1]
    assert f"pid {idle} (fd 3) shares the address and has accepted everything" in listeners[1][1]


def test_who_does_not_accept_is_told_by_name_and_unit() -> None:
    waiting = socket(state=CW, inode=0, sport=80, dport=4000, rqueue=6, shutdown=1, **INFO)

    def says(**more: Any) -> str:
        (found,) = engine.diagnose(view(ROOMY, waiting, **more), catalogue.rules())
        return next(e.says for e in found.evidence if e.column == "listener :80")

    unit = {9: ProcessView(9, "httpd", cgroup="/system.slice/web.service")}
    assert "httpd (pid 9, fd 3, web.service) has not accepted" in says(holders={5: [9]}, processes=unit)
    pod = {
        9: ProcessView(
            9, "httpd", cgroup=f"/kubepods/burstable/pod{'7b2d1c5e-0000-4000-8000-000000000001'}/abc"
        )
    }
    assert "httpd (pid 9, 2 descriptors, pod 7b2d1c5e-" in says(holders={5: [9, 9]}, processes=pod)
    assert "no process has not accepted" in says()
    assert "an unknown program (not every process could be inspected) has not" in says(unreadable=(1,))


DOOR = ROOMY | {"rqueue": 3, "wqueue": 2, "cookie": 1}


def queued(n: int, first: int = 100, **cells: Any) -> list[dict[str, Any]]:
    one = socket(state=E, inode=0, sport=80, **INFO)
    return [one | {"dport": 4000 + k, "cookie": first + k} | cells for k in range(n)]


def of_door(v: View) -> tuple[str, str, str, bool]:
    """Severity, title, certainty of what is said of the first row, and whether another look is asked for."""
    for f in engine.diagnose(v, catalogue.rules()):
        if f.primary and 0 in f.rows.tolist():
            assert f.rule == "accept-queue-full"
            return f.severity, f.title, f.confidence.level, f.confidence.look_again
    return "", "", "", False


def test_a_full_queue_of_the_dead_is_seen_at_its_listener() -> None:
    severity, title, _, again = of_door(view(DOOR, holders={5: [9]}))
    assert (severity, again) == ("problem", True)
    assert "new clients time out" in title
    still = view(DOOR, holders={5: [9]}, earlier=[DOOR], watched_ms=4000)
    assert of_door(still)[0::2] == ("problem", "likely")
    assert of_door(view(DOOR | {"wqueue": 3}))[0] == "notice"


def test_that_a_program_accepts_nothing_is_certain_only_of_one_that_is_stopped() -> None:
    """Workers that are all busy for longer than two looks are apart look the same; a stopped program does not."""
    rows = [DOOR, *queued(3)]
    still: dict[str, Any] = {"earlier": rows, "watched_ms": 4000, "holders": {5: [9, 10]}}

    def queues(**more: Any) -> list[Finding]:
        found = [f for f in engine.diagnose(view(*rows, **(still | more)), catalogue.rules()) if f.primary]
        assert {f.rule for f in found} == {"accept-queue-full", "never-accepted"}
        return found

    for f in queues(processes={9: ProcessView(9, "app"), 10: ProcessView(10, "app", state="T")}):
        assert (f.severity, f.confidence.level) == ("problem", "likely")
        assert "busy with long work" in f.confidence.reason
    halted = {pid: ProcessView(pid, "app", state="T") for pid in (9, 10)}
    for f in queues(processes=halted):
        assert "its program is stopped" in f.confidence.reason
        assert f.confidence.level == ("certain" if f.rule == "accept-queue-full" else "likely")
    assert all("stopped" not in f.confidence.reason for f in queues(processes=halted, unreadable=(1,)))
    v = view(*rows, **still)
    assert {outlook.of_row(v, row).ends for row in range(len(rows))} == {"unknown"}


def test_that_nothing_was_accepted_is_said_where_the_same_are_in_the_queue_or_none_came() -> None:
    opened = {"Tcp.PassiveOpens": 7, "TcpExt.ListenOverflows": 5}

    def told(before: int) -> str:
        ns = NamespaceView(
            1, counters=opened, before={"Tcp.PassiveOpens": before, "TcpExt.ListenOverflows": 3}
        )
        v = view(DOOR, earlier=[DOOR], watched_ms=4000, namespaces={1: ns})
        (found,) = engine.diagnose(v, catalogue.rules())
        assert [e.value for e in found.evidence if e.column == "ListenOverflows"] == ["5 (+2 in 4.0 s)"]
        assert found.confidence.level == "likely"
        return found.confidence.reason

    assert "none was accepted" in told(7)
    assert "are not visible" in told(6)


def test_a_full_queue_that_moves_is_a_notice_only_while_handshakes_are_dropped() -> None:
    old, new = queued(3), queued(3, first=200)
    quiet = NamespaceView(1, counters={"TcpExt.ListenOverflows": 5}, before={"TcpExt.ListenOverflows": 5})
    drops = NamespaceView(1, counters={"TcpExt.ListenOverflows": 9}, before={"TcpExt.ListenOverflows": 5})
    taken = [one | {"inode": 50 + k, "last_data_recv_ms": 10} for k, one in enumerate(old)]
    for ns, severity in ((quiet, ""), (drops, "notice")):
        v = view(DOOR, *new, *taken, holders={5: [9], 50: [9], 51: [9], 52: [9]},
                 earlier=[DOOR, *old], watched_ms=4000, namespaces={1: ns})  # fmt: skip
        assert of_door(v)[0] == severity
    shrunk = view(DOOR, earlier=[DOOR | {"rqueue": 4}], watched_ms=4000)
    assert of_door(shrunk)[0] == ""


def test_below_its_backlog_only_the_dead_in_a_queue_that_stands_still_deserve_a_look() -> None:
    room = DOOR | {"wqueue": 128}
    assert of_door(view(room))[0::3] == ("notice", True)
    assert of_door(view(room, earlier=[room], watched_ms=4000))[0::3] == ("notice", False)
    assert of_door(view(room, earlier=[room | {"rqueue": 4}], watched_ms=4000))[0] == ""
    assert of_door(view(room, *queued(3)))[0] == ""  # alive: never-accepted has them
    assert of_door(view(room | {"rqueue": 0}))[0] == ""
    busy = socket(state=E, inode=70, sport=80, dport=9000, cookie=70, **INFO) | {"last_ack_recv_ms": 5}
    assert of_door(view(room, busy, holders={70: [9]}))[0] == ""
    unlisted = {1: NamespaceView(1, dumped=False)}
    assert of_door(view(room, namespaces=unlisted))[0] == ""


def test_listeners_that_share_a_port_are_judged_by_their_own_queues() -> None:
    full, empty = DOOR, DOOR | {"inode": 6, "cookie": 2, "rqueue": 0}
    old = queued(3)
    v = view(full, empty, *old, earlier=[full, empty, *old], watched_ms=4000)
    assert of_door(v)[0::2] == ("problem", "likely")
    v = view(full, empty, earlier=[full, empty], watched_ms=4000)  # those in it are dead, and in it still
    assert of_door(v)[0::2] == ("problem", "likely")


def test_a_listener_of_mptcp_is_told_once() -> None:
    inner, whole = DOOR | {"ulp": b"mptcp"}, DOOR | {"protocol": 262, "cookie": 2}
    assert primary(view(inner, whole, holders={5: [9]})) == ["", "accept-queue-full"]
    assert primary(view(inner, holders={5: [9]})) == ["accept-queue-full"]
    waiting = [one | {"protocol": 262} for one in queued(3)]
    assert primary(view(inner, whole, *waiting))[2:] == ["never-accepted"] * 3


def relay(**changes: Any) -> list[dict[str, Any]]:
    door = socket(state=tcp.LISTEN, inode=5, sport=80, src="0.0.0.0", dst="0.0.0.0", dport=0)
    wait = socket(state=CW, inode=7, sport=80, dport=4000, shutdown=1, **INFO)
    half = socket(state=F2, inode=8, sport=5000, dport=8080, dst="192.0.2.9", shutdown=2, **INFO) | changes
    return [door, wait, half]


def test_two_legs_of_one_process_and_age_are_a_relay_pair() -> None:
    one = {5: [9], 7: [9], 8: [9]}
    assert primary(view(*relay(), holders=one)) == ["", "relay-pair", "relay-pair"]
    assert "relay-pair" not in primary(view(*relay(), holders={5: [9], 7: [9], 8: [10]}))
    assert "relay-pair" not in primary(view(*relay(last_ack_recv_ms=20_000), holders=one))
    assert "relay-pair" not in primary(view(*relay(sport=80), holders=one))  # both accepted: a server
    assert primary(view(*relay(last_ack_recv_ms=9, timer=2), holders=one))[2] == "relay-pair"  # keepalive


def test_a_relay_whose_server_said_its_fin_first_is_a_pair_with_its_legs_turned_round() -> None:
    """The leg that the relay opened is in CLOSE_WAIT, the one that it accepted in FIN_WAIT2."""
    door = relay()[0]
    wait = socket(state=CW, inode=7, sport=5000, dport=8080, dst="192.0.2.9", shutdown=1, **INFO)
    half = socket(state=F2, inode=8, sport=80, dport=4000, shutdown=2, **INFO)
    one = {5: [9], 7: [9], 8: [9]}
    assert primary(view(door, wait, half, holders=one)) == ["", "relay-pair", "relay-pair"]
    # Client-first and server-first pairs of one relay are not mixed up.
    v = view(*relay(), wait | {"inode": 10}, half | {"inode": 11}, holders=one | {10: [9], 11: [9]})
    assert [(one.wait.tolist(), one.half.tolist(), one.by) for one in v.relay_legs.sets] == [
        ([1], [2], "age"),
        ([3], [4], "age"),
    ]
    # Two legs that the process opened itself are those of a client.
    assert "relay-pair" not in primary(view(door, wait, half | {"sport": 5001}, holders=one))


def test_pairs_are_counted_per_process() -> None:
    """A relay that forks a child for each connection has one pair in each: not two pairs in one process."""

    def said(**pids: list[int]) -> tuple[str, list[str]]:
        rows = relay()
        rows += [row | {"inode": row["inode"] + 20, "dport": row["dport"] + 1} for row in rows[1:]]
        held = {5: [9], 7: pids["one"], 8: pids["one"], 27: pids["two"], 28: pids["two"]}
        children = {
            pid: ProcessView(pid, "socat", "socat -d", ppid=9, exe="/bin/socat", netns=1) for pid in (10, 11)
        }
        server = {9: ProcessView(9, "socat", "socat -d", ppid=1, exe="/bin/socat", netns=1)}
        v = view(*rows, holders=held, processes=server | children)
        found = [f for f in engine.diagnose(v, catalogue.rules()) if f.rule == "relay-pair"]
        legs = {e.value for f in found for e in f.evidence if e.column == "legs"}
        assert legs == {"CLOSE_WAIT ×2, FIN_WAIT2 ×2"}
        (reason,) = {f.confidence.reason.partition(";")[0] for f in found}
        return reason, [f.rule for f in found]

    assert said(one=[10], two=[10]) == ("2 pairs in one process", ["relay-pair"])
    assert said(one=[10], two=[11]) == ("1 pair in each of 2 processes", ["relay-pair"])
    # What a child has inherited as well is the same pair.
    assert said(one=[9, 10], two=[9, 10]) == ("2 pairs in one process", ["relay-pair"])


def test_the_two_ends_of_one_connection_are_no_relay_whoever_else_holds_them() -> None:
    """A child holds both; of one of them its parent has a descriptor too, and the lower pid."""
    near = {"src": "10.0.0.1", "dst": "10.0.0.1"}
    door, wait, half = relay(sport=5000, dport=80, **near)
    rows = [door, wait | near | {"dport": 5000}, half]
    v = view(*rows, holders={5: [9], 7: [9], 8: [8, 9]})
    assert v.other[1:].tolist() == [2, 1]
    assert "relay-pair" not in [f.rule for f in engine.diagnose(v, catalogue.rules())]


def test_a_relay_on_which_data_has_just_passed_is_only_possibly_stuck() -> None:
    def sure(**kwargs: Any) -> str:
        door, wait, half = relay(**kwargs)
        wait["bytes_acked"] = half["bytes_received"]  # what came in was passed on
        v = view(door, wait, half, holders={5: [9], 7: [9], 8: [9]})
        (found,) = (f for f in engine.diagnose(v, catalogue.rules()) if f.rule == "relay-pair")
        return found.confidence.level

    assert sure() == "likely"
    assert sure(last_data_recv_ms=200) == "possible"
    assert sure(last_data_recv_ms=200, bytes_received=0) == "likely"


def test_a_relay_that_does_not_read_what_the_far_side_said_is_no_pair_that_waits_for_it() -> None:
    found = primary(view(*relay(rqueue=9), holders={5: [9], 7: [9], 8: [9]}))
    assert found == ["", "close-wait-eof-read", "fin-wait2-held"]


@pytest.mark.parametrize(
    ("comm", "timer", "severity"),
    [("finwait-relay", 2, "notice"), ("finwait-relay", 0, "problem"), ("kube-proxy", 2, "problem")],
)
def test_a_pair_of_our_own_relay_is_a_notice_while_it_probes(comm: str, timer: int, severity: str) -> None:
    sockets = relay(timer=timer)
    sockets[1] |= {"timer": timer}
    seen = view(*sockets, holders={5: [9], 7: [9], 8: [9]}, processes={9: ProcessView(9, comm)})
    (pair,) = [one for one in engine.diagnose(seen, catalogue.rules()) if one.rule == "relay-pair"]
    assert pair.severity == severity
    assert any(e.value == comm for e in pair.evidence) == (comm == "finwait-relay")


def test_two_processes_on_one_stuck_socket_are_an_inherited_descriptor() -> None:
    assert primary(view(HELD, holders={7: [500, 501]})) == ["inherited-descriptor"]
    threads = view(HELD, holders={7: [500, 500]})
    assert primary(threads) == ["fin-wait2-held"]


def test_each_set_of_holders_is_a_group_of_its_own() -> None:
    sockets = [HELD | {"inode": k, "sport": 4000 + k, "cookie": k} for k in (7, 8, 9)]
    v = view(*sockets, holders={7: [500, 501], 8: [500, 502], 9: [500]})
    found = [(f.rule, f.pids, f.rows.tolist()) for f in engine.diagnose(v, catalogue.rules()) if f.primary]
    assert sorted(found) == [
        ("fin-wait2-held", (500,), [2]),
        ("inherited-descriptor", (500, 501), [0]),
        ("inherited-descriptor", (500, 502), [1]),
    ]


def test_a_holder_younger_than_the_last_byte_has_inherited_it() -> None:
    one = HELD | {"state": E, "shutdown": 0}
    young = {500: ProcessView(500, "sleep", age_ms=1000)}
    old = {500: ProcessView(500, "sshd", age_ms=100_000)}
    assert primary(view(one, holders=OWNED, processes=young)) == ["inherited-descriptor"]
    assert primary(view(one, holders=OWNED, processes=old)) == [""]
    assert primary(view(one | {"last_data_recv_ms": 500}, holders=OWNED, processes=young)) == [""]
    assert primary(view(one, holders=OWNED)) == [""]  # nothing is known of the process


@pytest.mark.parametrize(
    ("ages", "inherited"),
    [
        ((1000, 1000), True),
        ((1000, 100_000), False),  # the second one may have used it
        ((100_000, 1000), False),
        ((1000, -1), False),  # nothing is known of the second
        ((1000, None), False),
        ((1000, 59_979), True),
        ((1000, 59_980), False),  # as old as the last byte, by clocks that tick every 20 ms
    ],
)
def test_of_several_holders_each_must_be_younger_than_the_last_byte(
    ages: tuple[int, int | None], inherited: bool
) -> None:
    one = HELD | {"state": E, "shutdown": 0}
    processes = {
        pid: ProcessView(pid, "app", age_ms=age)
        for pid, age in zip((500, 501), ages, strict=True)
        if age is not None
    }
    v = view(one, holders={7: [500, 501]}, processes=processes)
    assert primary(v) == (["inherited-descriptor"] if inherited else [""])


def test_a_younger_holder_that_serves_the_connection_has_not_inherited_it() -> None:
    def found(state: int, exe: str, fd: int = 3, **more: Any) -> tuple[str, str, str]:
        one = HELD | {"state": state, "shutdown": 0, "rqueue": int(state == CW)}
        parent = ProcessView(400, "server", exe="/bin/server", age_ms=200_000)
        child = ProcessView(500, "child", exe=exe, ppid=more.get("ppid", 400), age_ms=1000)
        other = socket(state=tcp.LISTEN, inode=9)
        rows = {9: [400, 400, 400], 7: [500]}
        v = view(one, other, holders=rows, processes={400: parent, 500: child})
        v.holders.fd[v.holders.pid == 500] = fd
        told = [f for f in engine.diagnose(v, catalogue.rules()) if f.primary]
        return (told[0].rule, told[0].severity, told[0].confidence.level) if told else ("", "", "")

    assert found(E, "/bin/server") == ("", "", "")  # a server that forks for each connection
    assert found(E, "/bin/handler", fd=0) == ("", "", "")  # one that starts a program on it
    assert found(E, "/bin/sleep") == ("inherited-descriptor", "notice", "possible")
    assert found(E, "/bin/server", ppid=1) == ("inherited-descriptor", "notice", "possible")
    assert found(CW, "/bin/server")[0] == "close-wait-eof-unread"
    assert found(CW, "/bin/sleep") == ("inherited-descriptor", "problem", "likely")


@pytest.mark.parametrize(
    ("child", "listening", "fd", "call", "rule"),
    [
        ("/bin/sleep", "/bin/server", 3, "clock_nanosleep", "inherited-descriptor"),
        (
            "/bin/sleep",
            "/bin/sleep",
            3,
            "clock_nanosleep",
            "fin-wait2-held",
        ),  # what listens there may have opened it
        ("/bin/sleep", "", 3, "clock_nanosleep", "fin-wait2-held"),
        ("", "/bin/server", 3, "clock_nanosleep", "fin-wait2-held"),
        (
            "/bin/handler",
            "/bin/server",
            0,
            "clock_nanosleep",
            "fin-wait2-held",
        ),  # it was started for this connection
        ("/bin/handler", "/bin/server", 3, "read", "fin-wait2-held"),  # it waits for what the peer sends
    ],
)
def test_a_program_that_did_not_accept_a_connection_and_does_not_wait_for_it_has_inherited_it(
    child: str, listening: str, fd: int, call: str, rule: str
) -> None:
    server = ProcessView(400, "server", exe=listening, age_ms=200_000)
    other = ProcessView(500, "child", exe=child, ppid=1, age_ms=100_000)  # older than the last byte
    door = socket(state=tcp.LISTEN, inode=9)
    kind, waits_for = ("fd", ((fd, 0),)) if call == "read" else ("other", ())
    wait = ThreadWait(500, "child", "S", call, kind, waits_for, steady=True)
    waits = {500: ProcessWaits((wait,))}
    v = view(HELD, door, holders={9: [400], 7: [500]}, processes={400: server, 500: other}, waits=waits)
    v.holders.fd[v.holders.pid == 500] = fd
    assert primary(v) == [rule, ""]


def test_an_answer_that_streams_from_a_shared_socket_may_be_healthy() -> None:
    one = HELD | {"state": CW, "shutdown": 1, "last_data_sent_ms": 100}
    shared = {7: [500, 501]}
    (found,) = (f for f in engine.diagnose(view(one, holders=shared), catalogue.rules()) if f.primary)
    assert (found.rule, found.confidence.look_again) == ("inherited-descriptor", True)
    moved = view(one | {"bytes_acked": 99}, holders=shared, earlier=[one], watched_ms=500)
    assert primary(moved) == MOVING


@pytest.mark.parametrize(
    ("exe", "flag", "prevention"),
    [
        ("/bin/server", True, "SOCK_CLOEXEC has no effect"),
        ("/bin/sleep", False, "open sockets with SOCK_CLOEXEC"),
        ("/bin/sleep", None, "open sockets with SOCK_CLOEXEC"),
        ("/bin/server", False, "after a plain fork()"),
        ("", None, "after a plain fork()"),
    ],
)
def test_the_prevention_is_the_one_that_acts_on_how_the_copy_was_made(
    exe: str, flag: bool | None, prevention: str
) -> None:
    parent = ProcessView(500, "server", exe="/bin/server", age_ms=90_000)
    child = ProcessView(501, "child", exe=exe, ppid=500, age_ms=1000)
    v = view(HELD, holders={7: [500, 501]}, processes={500: parent, 501: child})
    found = engine.diagnose(v, catalogue.rules())
    assert set(engine.flags_wanted(v, catalogue.rules(), found)) == {(500, 3), (501, 4)}
    knows = replace(v, close_on_exec={} if flag is None else {(500, 3): True, (501, 4): flag})
    (shared,) = (f for f in engine.with_flags(knows, catalogue.rules(), found) if f.primary)
    assert any(prevention in remedy.text for remedy in shared.ends_it)
    says = [e.says for e in shared.evidence if e.column == "holder pid 501"]
    word = {True: ", FD_CLOEXEC set", False: ", FD_CLOEXEC not set", None: ""}[flag]
    assert says == [f"holds a descriptor of it{word}"]


def test_an_end_that_its_other_end_forgot_is_half_open() -> None:
    old = HELD | {"state": E, "shutdown": 0}
    again = socket(
        src="192.0.2.1", dst="10.0.0.1", sport=80, dport=4000, state=tcp.SYN_SENT, inode=8, timer=1, retrans=1,
        cookie=2, **INFO,
    )  # fmt: skip

    def causes(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
        return primary(view(a, b, holders={7: [5], 8: [6]}))

    assert causes(old, again) == ["half-open", "half-open"]
    for state in (F2, CW, LA, F1):
        assert causes(old | {"state": state}, again) == ["half-open", "half-open"]
    assert causes(old | {"last_ack_recv_ms": 20}, again) == [
        "",
        "handshake",
    ]  # the end that this SYN has made
    assert causes(old, again | {"retrans": 0}) == ["", "handshake"]  # on its way
    undated = [without(one, *CLOCKS) for one in (old, again)]
    assert causes(*undated) == ["", "handshake"]
    assert causes(undated[0], undated[1] | {"retrans": 2}) == ["half-open", "half-open"]
    assert causes(socket(state=TW, timer=3, expires_ms=9000), again) == ["time-wait", "handshake"]
    assert causes(old, again | {"dport": 4001}) == ["", "handshake"]
    found = engine.diagnose(view(old, again, holders={7: [5], 8: [6]}), catalogue.rules())
    titles = {int(f.rows[0]): f.title for f in found if f.rule == "half-open"}
    assert "has forgotten this connection" in titles[0]
    assert "still has an old connection" in titles[1]


def test_an_open_connection_without_a_holder_deserves_a_look_unless_it_is_the_kernel_s_own() -> None:
    one = HELD | {"state": E, "shutdown": 0}

    def told(row: dict[str, Any], **more: Any) -> tuple[str, str]:
        found = [
            f for f in engine.diagnose(view(row, **more), catalogue.rules()) if f.rule == "holder-not-found"
        ]
        return (found[0].severity, found[0].title) if found else ("", "")

    severity, title = told(one)
    assert severity == "notice"
    assert "no process has a descriptor to answer" in title
    assert told(one, unreadable=(1,)) == ("", "")
    assert told(one, holders=OWNED) == ("", "")
    assert told(one | {"last_data_recv_ms": 20}) == ("", "")  # on its way between two processes
    assert told(one | {"ulp": b"mptcp"}) == ("", "")
    assert told(one | {"dport": 2049})[0] == "healthy"
    assert told(one | {"state": CW, "dport": 2049})[0] == "problem"
    made, served = (
        one | {"cgroup_id": 1, "uid": 0},
        HELD | {"inode": 8, "cookie": 2, "cgroup_id": 70, "sport": 9},
    )
    paths = {1: "/", 70: "/system.slice/web.service"}

    def beside(kept: dict[str, Any], row: dict[str, Any]) -> str:
        v = view(row, kept, holders={8: [9]}, cgroup_paths=paths)
        found = engine.diagnose(v, catalogue.rules())
        return next(f.severity for f in found if f.rule == "holder-not-found")

    assert beside(served, made) == "healthy"
    assert beside(served, made | {"uid": 5}) == "notice"
    assert beside(served | {"cgroup_id": 1}, made) == "notice"  # here programs are in the root cgroup, too


WHOLE = socket(
    protocol=262, state=E, inode=7, cookie=1, mptcp_token=9, timer=2, expires_ms=50_000, mptcp_flags=2
)


def test_an_mptcp_connection_without_a_subflow_is_told_and_one_with_any_is_not() -> None:
    def told(*rows: dict[str, Any], **more: Any) -> tuple[str, str, bool]:
        for f in engine.diagnose(view(*rows, holders=OWNED, **more), catalogue.rules()):
            if f.primary and 0 in f.rows.tolist():
                return f.rule, f.severity, f.confidence.look_again
        return "", "", False

    subflow = socket(state=E, inode=50, cookie=2, ulp=b"mptcp", **INFO)
    assert told(WHOLE) == ("mptcp-no-subflow", "notice", False)
    assert told(WHOLE, subflow | {"mptcp_token_local": 8}) == ("mptcp-no-subflow", "notice", False)
    assert told(WHOLE, subflow | {"mptcp_token_local": 9}) == ("", "", False)
    assert told(WHOLE, subflow | {"inode": 7}) == ("", "", False)  # its token is told to CAP_NET_ADMIN alone
    assert told(WHOLE | {"mptcp_flags": 3}) == ("", "", False)
    assert told(WHOLE, namespaces={1: NamespaceView(1, dumped=False)}) == ("", "", False)
    untimed = WHOLE | {"timer": 0}
    assert told(untimed) == ("mptcp-no-subflow", "problem", True)
    assert told(untimed, earlier=[untimed], watched_ms=500) == ("mptcp-no-subflow", "problem", False)
    assert told(WHOLE | {"state": tcp.CLOSE, "timer": 0})[:2] == ("mptcp-no-subflow", "problem")
    assert told(WHOLE | {"state": CW})[0] == "mptcp-no-subflow"


def unread(n: int, **cells: Any) -> list[dict[str, Any]]:
    one = HELD | {"state": E, "shutdown": 0, "sport": 80, "rqueue": 27, "bytes_received": 27}
    return [one | {"dport": 4000 + k, "cookie": 100 + k, "inode": 50 + k} | cells for k in range(n)]


def test_requests_that_nobody_reads_are_a_problem_of_a_program_that_moves_nothing() -> None:
    held = {5: [9]} | {50 + k: [9] for k in range(4)}
    door = ROOMY | {"rqueue": 0}

    def told(rows: list[dict[str, Any]], *more: dict[str, Any], **how: Any) -> tuple[str, bool]:
        if how.get("watched_ms"):
            how.setdefault("earlier", [door, *rows, *more])
        v = view(door, *rows, *more, holders=held | {90: [9]}, **how)
        for f in engine.diagnose(v, catalogue.rules()):
            if f.rule == "established-unread" and f.primary and 1 in f.rows.tolist():
                return f.severity, f.confidence.look_again
        return "", False

    assert told(unread(4)) == ("notice", True)
    assert told(unread(4), watched_ms=4000) == ("problem", False)
    assert told(unread(2), watched_ms=4000) == ("notice", False)
    assert told(unread(4), watched_ms=500) == ("notice", True)  # too short to tell
    assert told(unread(4, last_data_recv_ms=100)) == ("", False)
    assert told(unread(4, last_data_sent_ms=100)) == ("", False)
    assert told(unread(4, rqueue=0), watched_ms=4000) == ("", False)
    assert told(unread(4, sport=81), watched_ms=4000) == (
        "notice",
        False,
    )  # no listener: the program opened them
    assert told(unread(4, sport=81)) == ("", False)
    slow = [door, *unread(4, rqueue=50)]
    assert told(unread(4), watched_ms=4000, earlier=slow) == ("", False)  # it reads
    elsewhere = HELD | {"state": E, "shutdown": 0, "inode": 90, "cookie": 90, "sport": 9000}
    for busy, before in (
        ({"bytes_acked": 99}, {}),
        ({"bytes_received": 99}, {}),
        ({"timer": 4, "snd_wnd": 0, "wqueue": 9}, {"timer": 4, "snd_wnd": 0, "wqueue": 9}),
    ):
        earlier = [door, *unread(4), elsewhere | before]
        assert told(unread(4), elsewhere | busy, watched_ms=4000, earlier=earlier) == ("notice", False)


def test_a_program_that_nobody_looked_for_may_be_busy_elsewhere() -> None:
    door, rows = ROOMY | {"rqueue": 0}, unread(3)

    def sure(**more: Any) -> str:
        v = view(door, *rows, earlier=[door, *rows], watched_ms=4000, **more)
        (found,) = (f for f in engine.diagnose(v, catalogue.rules()) if f.rule == "established-unread")
        return found.confidence.level

    assert sure(holders={50 + k: [9] for k in range(3)}) == "likely"
    assert sure(searched=False) == "possible"
    assert sure(unreadable=(1,)) == "possible"


def test_a_stopped_program_is_certain_not_to_read() -> None:
    rows = unread(1)
    stopped = {9: ProcessView(9, "worker", state="T")}
    twice: dict[str, Any] = {"earlier": [ROOMY, *rows], "watched_ms": 4000}
    for looks in ({}, twice):
        v = view(ROOMY, *rows, holders={50: [9]}, processes=stopped, **looks)
        (found,) = (f for f in engine.diagnose(v, catalogue.rules()) if f.rule == "established-unread")
        assert (found.severity, found.confidence.level) == ("problem", "certain")
        assert any("kill -CONT" in e.says for e in found.evidence)


def test_requests_that_keep_coming_show_no_life_of_the_program_that_should_read_them() -> None:
    from finwait.diagnosis.rules.established_unread import undecided

    rows = [one | {"last_data_recv_ms": 300} for one in unread(4)]
    held: dict[str, Any] = {"holders": {50 + k: [9] for k in range(4)}}

    def told(state: str, **looks: Any) -> tuple[list[str], list[bool]]:
        v = view(ROOMY, *rows, processes={9: ProcessView(9, "worker", state=state)}, **held, **looks)
        found: list[str] = [
            f.severity for f in engine.diagnose(v, catalogue.rules()) if f.rule == "established-unread"
        ]
        return found, undecided(v)[1:].tolist()

    before = [one | {"rqueue": one["rqueue"] - 1} for one in rows]
    twice: dict[str, Any] = {"earlier": [ROOMY, *before], "watched_ms": 4000}
    soon: dict[str, Any] = {"earlier": [ROOMY, *before], "watched_ms": 1000}
    assert told("T") == (["notice"], [False] * 4)  # it may be stopped for a moment: `check` looks again
    assert told("T", **twice) == (["problem"], [False] * 4)
    assert told("S") == ([], [True] * 4)  # `check` looks again
    assert told("S", **soon) == ([], [True] * 4)
    assert told("S", **twice) == (["problem"], [False] * 4)
    v = view(ROOMY, *rows, processes={9: ProcessView(9, "worker", state="S")}, **held)
    headline = text.headline(v, engine.diagnose(v, catalogue.rules()), "vm")
    assert "nothing is wrong" not in headline
    assert "On 4 connections data is not read yet" in headline
    gap = Gap("pid 1", "list its descriptors", "")
    assert "On 4 connections data" in text.headline(v, engine.diagnose(v, catalogue.rules()), "vm", (gap,))


def test_unread_requests_that_nothing_dates_are_a_gap() -> None:
    rows = [without(one, *CLOCKS) for one in unread(1)]
    assert len(engine.gaps(view(ROOMY, *rows, holders={50: [9]}), catalogue.rules())) == 1


def test_data_that_nobody_reads_shows_no_use_by_a_stray_child() -> None:
    deaf = HELD | {
        "state": E,
        "shutdown": 0,
        "rqueue": 3,
        "last_data_recv_ms": 4000,
        "last_data_sent_ms": 60_000,
    }
    child = {500: ProcessView(500, "sleep", exe="/bin/sleep", age_ms=10_000)}

    def cause(row: dict[str, Any], **more: Any) -> str:
        return primary(view(row, holders=OWNED, processes=child, **more))[0]

    assert cause(deaf) == "inherited-descriptor"
    assert cause(deaf | {"last_data_sent_ms": 5000}) == ""  # it answered something
    assert cause(deaf | {"last_data_recv_ms": 100}) == ""  # it may be about to read
    fresh = deaf | {"last_data_recv_ms": 100}
    assert cause(fresh, earlier=[fresh], watched_ms=500) == ""  # as above
    assert cause(fresh, earlier=[fresh], watched_ms=5000) == "inherited-descriptor"
    assert cause(fresh | {"rqueue": 1}, earlier=[fresh], watched_ms=500) == ""  # it reads
    assert cause(deaf | {"rqueue": 0}) == ""
    over = deaf | {"state": CW, "shutdown": 1}
    assert cause(over | {"rqueue": 4}) == "inherited-descriptor"


def test_a_long_silence_is_worth_a_probe_unless_keepalive_runs() -> None:
    one = HELD | {"state": E, "shutdown": 0}
    soon = Options(idle_ms=1000)
    assert primary(view(one, holders=OWNED, options=soon)) == ["idle-unprobed"]
    assert primary(view(one, holders=OWNED)) == [""]
    assert primary(view(one | {"timer": 2}, holders=OWNED, options=soon)) == [""]


def test_a_peer_that_should_be_here_and_is_not_is_evidence() -> None:
    here = {1: NamespaceView(1, ("host",), addresses=frozenset({(0, 0xFFFF << 32 | 0xC0000201)}))}
    v = view(HELD, holders=OWNED, namespaces=here)
    assert primary(v) == ["idle-unprobed"]
    (finding,) = [f for f in engine.diagnose(v, catalogue.rules()) if f.primary]
    assert finding.severity == "problem"
    unseen = {1: NamespaceView(1, ("host",), addresses=here[1].addresses, dumped=False)}
    assert primary(view(HELD, holders=OWNED, namespaces=unseen)) == ["fin-wait2-held"]


_PEER_HERE = {1: NamespaceView(1, ("host",), addresses=frozenset({(0, 0xFFFF << 32 | 0xC0000201)}))}


def _heard(ms: int, **cells: Any) -> dict[str, Any]:
    """An open connection without another end, heard of so long ago."""
    clocks = {f"last_{what}_ms": ms for what in ("data_recv", "data_sent", "ack_recv")}
    return HELD | {"state": E, "shutdown": 0, "cookie": 5} | clocks | cells


def test_an_end_that_was_heard_of_while_the_dumps_were_taken_has_lost_no_peer() -> None:
    """The peer's namespace was dumped before the connection was opened."""

    def found(ms: int, **more: Any) -> list[tuple[str, str, bool]]:
        v = view(_heard(ms), holders=OWNED, namespaces=_PEER_HERE, **more)
        return [
            (f.severity, f.confidence.level, f.confidence.look_again)
            for f in engine.diagnose(v, catalogue.rules())
            if f.rule == "idle-unprobed"
        ]

    assert found(20) == found(999) == []
    assert found(1000) == [("problem", "possible", True)]
    assert found(1000, took_ms=1001) == []  # a large machine


def test_after_two_looks_a_peer_is_gone_only_if_it_was_so_at_both() -> None:
    def found(now: dict[str, Any], *before: dict[str, Any], **more: Any) -> list[tuple[str, str]]:
        v = view(
            now,
            holders=OWNED,
            namespaces=_PEER_HERE,
            earlier=list(before),
            watched_ms=4000,
            first_look_ms=50,
            **more,
        )
        rows = [f for f in engine.diagnose(v, catalogue.rules()) if f.rule == "idle-unprobed"]
        return [(f.severity, f.confidence.level) for f in rows if 0 in f.rows]

    assert found(_heard(9000), _heard(5000)) == [("problem", "likely")]
    assert found(_heard(9000), _heard(5000, cookie=6)) == []  # it was not there then
    peer = socket(src="192.0.2.1", dst="10.0.0.1", sport=80, dport=4000, state=E, inode=6, cookie=7)
    assert found(_heard(9000), _heard(5000), peer) == []  # closed while this look dumped
    # Opened while the first look dumped, and closed while the second one did.
    assert found(_heard(4020), _heard(20)) == []


def test_a_peer_is_gone_only_from_an_address_where_others_of_its_namespace_end() -> None:
    """The routes of the namespace may lead to another one with that address, a remote one."""
    two = {
        1: NamespaceView(1),
        2: NamespaceView(2, addresses=_PEER_HERE[1].addresses | {(0, 0xFFFF << 32 | 9)}),
    }

    def severity(address: str) -> list[str]:
        whole = {"state": E, "shutdown": 0, "sport": 4001, "dport": 81}
        near = socket(**whole | {"dst": address, "inode": 8, "cookie": 8})
        far = socket(
            **whole | {"src": address, "dst": "10.0.0.1", "sport": 81, "dport": 4001, "netns": 2, "inode": 9}
        )
        v = view(_heard(5000), near, far, holders=OWNED, namespaces=two)
        assert v.other[1] == 2
        return [f.severity for f in engine.diagnose(v, catalogue.rules()) if 0 in f.rows and f.primary]

    assert severity("192.0.2.1") == ["problem"]
    assert severity("0.0.0.9") == ["notice"]


def test_time_wait_is_a_flood_only_where_something_may_run_out() -> None:
    many = [socket(state=TW, timer=3, expires_ms=30_000, sport=1000 + k) for k in range(60)]
    few_ports = {1: NamespaceView(1, sysctls={"ipv4/ip_local_port_range": "1000 1099"})}
    wide = {1: NamespaceView(1, sysctls={"ipv4/ip_local_port_range": "1000 60999"})}
    assert set(primary(view(*many, namespaces=few_ports))) == {"time-wait-flood"}
    assert set(primary(view(*many, namespaces=wide))) == {"time-wait"}
    spread = [one | {"dport": k} for k, one in enumerate(many)]
    assert set(primary(view(*spread, namespaces=few_ports))) == {"time-wait"}
    buckets = {1: NamespaceView(1, sysctls={"ipv4/tcp_max_tw_buckets": "100"})}
    assert set(primary(view(*many, namespaces=buckets))) == {"time-wait-flood"}


def test_dead_descriptors_are_a_leak_from_five_on_and_only_if_they_were_looked_for() -> None:
    hidden = tuple(HiddenDescriptor(500, fd, 900 + fd) for fd in range(5))

    def leaks(v: View) -> list[int]:
        return [f.count for f in engine.diagnose(v, catalogue.rules()) if f.rule == "hidden-leak"]

    assert leaks(view(HELD, holders=OWNED, hidden=hidden)) == [5]
    assert leaks(view(HELD, holders=OWNED, hidden=hidden[:4])) == []
    assert leaks(view(HELD, holders=OWNED, hidden=hidden, hidden_known=False)) == []


def test_dead_descriptors_are_certain_only_after_two_looks() -> None:
    hidden = tuple(HiddenDescriptor(500, fd, 900 + fd) for fd in range(5))
    once = view(HELD, holders=OWNED, hidden=hidden)
    slow = (replace(hidden[0], unread=10), *hidden[1:])
    for v, told in (
        (once, ("possible", True)),
        (replace(once, hidden_twice=True), ("certain", False)),
        (replace(once, hidden_twice=True, hidden=slow), ("likely", False)),
    ):
        (found,) = (f for f in engine.diagnose(v, catalogue.rules()) if f.rule == "hidden-leak")
        assert (found.confidence.level, found.confidence.look_again) == told


def test_only_what_had_no_connection_at_the_first_look_either_was_without_one_before() -> None:
    hidden = tuple(HiddenDescriptor(500, fd, 900 + fd) for fd in range(3, 9))
    said = {
        903: LoneSocket(1, tcp.CLOSE, used=True),
        904: LoneSocket(1, tcp.ESTABLISHED, used=True),  # its dump was over when it was made
        905: LoneSocket(1, tcp.CLOSE, used=False),  # not connected yet
        906: LoneSocket(0, 0, used=False, errno=1),  # nobody may ask
    }  # 907 was gone when it was asked, 908 not there
    asked = LoneSockets([(500, fd, 900 + fd) for fd in range(3, 8)], said, [], [])
    assert [item.fd for item in hidden_before(hidden, closed_already(asked))] == [3, 6]
    assert hidden_before((), closed_already(asked)) == ()


def test_dead_sockets_of_the_workers_of_one_service_are_counted_together() -> None:
    hidden = tuple(HiddenDescriptor(500 + k, fd, 900 + 10 * k + fd) for k in range(3) for fd in range(4))
    workers = {
        pid: ProcessView(pid, f"wrk-{pid}", "app", ppid=400, exe="/bin/app", netns=1)
        for pid in (500, 501, 502)
    }

    def leaks(v: View) -> list[tuple[tuple[int, ...], int]]:
        found = engine.diagnose(v, catalogue.rules())
        return sorted((f.pids, f.count) for f in found if f.rule == "hidden-leak")

    assert leaks(view(hidden=hidden, processes=workers)) == [((500,), 4), ((501,), 4), ((502,), 4)]
    others = {pid: replace(p, cmdline=f"app {pid}") for pid, p in workers.items()}
    assert leaks(view(hidden=hidden, processes=others)) == []


def test_a_secondary_cause_is_told_as_one() -> None:
    found = {(f.rule, f.primary) for f in engine.diagnose(view(HELD), catalogue.rules())}
    assert found == {("holder-not-found", True), ("fin-wait2-held", False)}


def test_evidence_names_its_value_and_where_it_was_read() -> None:
    (finding,) = engine.diagnose(view(HELD, holders=OWNED), catalogue.rules())
    first = finding.evidence[0]
    assert (first.column, first.value, first.read_from) == ("state", "FIN_WAIT2", "inet_diag_msg.idiag_state")


def test_every_rule_names_what_ends_it_and_what_does_not() -> None:
    for rule in catalogue.rules():
        assert rule.ends, rule.name
        assert rule.does_not, rule.name
        assert catalogue.page(rule.name).startswith(f"{rule.name}: ")
        for part in ("Seen as", "Why it stays", "Not this", "What ends it", "Won't help", "Reproduce"):
            assert part in catalogue.page(rule.name), (rule.name, part)


def one_finding(v: View) -> Finding:
    (found,) = (f for f in engine.diagnose(v, catalogue.rules()) if f.primary)
    return found


def test_what_no_rule_explains_is_a_notice_at_first_and_a_problem_once_it_stays() -> None:
    one = HELD | {"state": F1, "timer": 2, "rqueue": 3, "expires_ms": 77}
    passing, staying = (
        one_finding(v)
        for v in (
            view(one, holders=OWNED),
            view(one, holders=OWNED, earlier=[one], watched_ms=3500),
        )
    )
    assert passing.rule == staying.rule == "unexplained"
    assert (passing.severity, passing.confidence.look_again) == ("notice", True)
    assert (staying.severity, staying.confidence.look_again) == ("problem", False)
    told = {e.column: e.value for e in staying.evidence}
    assert {"state": "FIN_WAIT1", "inode": "≠ 0", "timer": "2", "expires_ms": "77 ms"}.items() <= told.items()
    assert {"retrans", "backoff", "rqueue", "wqueue", "unacked", "snd_wnd", "shutdown"} <= told.keys()
    assert staying.pids == (500,)
    short = view(one, holders=OWNED, earlier=[one], watched_ms=500)
    assert one_finding(short).severity == "notice"


def test_an_orphan_without_a_timer_is_told_as_what_nothing_will_end() -> None:
    one = socket(state=F1, cookie=5, wqueue=1, **INFO)
    look, two = one_finding(view(one)), one_finding(view(one, earlier=[one], watched_ms=3500))
    assert "nothing here will ever end it" in look.title
    assert (look.severity, look.confidence.level, look.confidence.look_again) == ("problem", "possible", True)
    assert (two.severity, two.confidence.level) == ("problem", "certain")
    assert not any("by itself" in r.text for r in two.ends_it)
    timed = one_finding(view(one | {"timer": 1, "retrans": 3}))
    assert (timed.rule, timed.severity) == (look.rule, "notice")


def test_what_cannot_leave_this_machine_is_a_problem_once_it_was_refused_for_seconds() -> None:
    one = socket(state=F1, cookie=5, timer=4, retrans=1, wqueue=4, **INFO)
    young = one_finding(view(one))
    assert (young.rule, young.severity, young.confidence.look_again) == ("egress-blocked", "notice", True)
    for long in ({"retrans": 4, "backoff": 4}, {"retrans": 7}):
        found = one_finding(view(one | long))
        assert (found.severity, found.confidence.level) == ("problem", "certain")
    # Nothing sent at two looks: what is refused may have been written a moment before the second.
    short = one_finding(view(one, earlier=[one], watched_ms=3500))
    assert (short.severity, short.confidence.look_again) == ("notice", True)


@pytest.mark.parametrize(
    ("cells", "severity"),
    [
        ({"retrans": 4, "backoff": 4}, "problem"),
        ({"retrans": 3, "backoff": 3, "expires_ms": 10}, "problem"),  # the armed wait is over but for 10 ms
        ({"retrans": 3, "backoff": 3, "expires_ms": 300}, "notice"),
        ({"retrans": 7}, "problem"),  # a full queue: every 0.5 s
        ({"retrans": 6}, "notice"),
        ({"retrans": 1, "backoff": 9, "expires_ms": 104_000}, "notice"),  # answered a moment ago
        ({"retrans": 1, "backoff": 9, "expires_ms": 90_000}, "problem"),  # 14 s ago
        ({"retrans": 2, "backoff": 2, "rto_us": 1_200_000}, "problem"),  # a slow path: each wait is longer
    ],
)
def test_an_open_connection_whose_data_is_refused_here_is_a_problem_once_probes_prove_seconds(
    cells: dict[str, int], severity: str
) -> None:
    one = HELD | {"state": E, "shutdown": 0, "timer": 4, "wqueue": 4} | cells
    found = one_finding(view(one, holders=OWNED))
    assert (found.rule, found.severity) == ("egress-blocked", severity)
    assert found.confidence.look_again == (severity == "notice")
    assert "FIN" not in found.title + " ".join(e.says for e in found.evidence)
    # The nearest things: a peer that takes something (slow), one without room, and one that was just written to.
    slow = view(one, holders=OWNED, earlier=[one | {"bytes_acked": 5}], watched_ms=4000)
    assert primary(slow) == [""]
    shut = engine.diagnose(view(one | {"snd_wnd": 0}, holders=OWNED), catalogue.rules())
    assert "egress-blocked" not in {f.rule for f in shut}
    assert primary(view(one | {"retrans": 0}, holders=OWNED)) == [""]


@pytest.mark.parametrize(
    ("cells", "severity"),
    [
        ({"backoff": 4, "retrans": 0}, "notice"),
        ({"backoff": 13, "retrans": 0, "last_data_sent_ms": 588_000}, "notice"),
        ({"backoff": 14, "retrans": 0, "last_data_sent_ms": 700_000}, "problem"),
        ({"backoff": 13, "retrans": 0, "last_data_sent_ms": 600_000}, "problem"),
        ({"backoff": 15, "retrans": 1, "last_data_sent_ms": 900_000}, "problem"),
        ({"backoff": 15, "retrans": 0, "last_data_sent_ms": 60_000}, "notice"),  # TCP_RTO_MAX_MS is small
        ({"backoff": 3, "retrans": 3, "expires_ms": 300}, "notice"),
        ({"backoff": 4, "retrans": 4}, "problem"),  # nobody answers: as data-unanswered
    ],
)
def test_a_shut_window_of_an_open_connection_is_a_problem_when_its_peer_is_gone_or_reads_nothing_for_long(
    cells: dict[str, int], severity: str
) -> None:
    one = HELD | {"state": E, "shutdown": 0, "timer": 4, "snd_wnd": 0, "wqueue": 9} | cells
    found = one_finding(view(one, holders=OWNED))
    assert (found.rule, found.severity) == ("zero-window", severity)
    patient = view(one, holders=OWNED, options=Options(idle_ms=3_600_000))
    assert one_finding(patient).severity == ("problem" if cells["retrans"] > 3 else "notice")


def test_a_healthy_pattern_that_another_rule_tells_better_is_not_told_a_second_time() -> None:
    many = [socket(state=TW, timer=3, expires_ms=30_000, sport=1000 + k) for k in range(20)]
    found = engine.diagnose(view(*many, options=Options(flood=10)), catalogue.rules())
    assert [(f.rule, f.primary, f.count) for f in found] == [("time-wait-flood", True, 20)]


def test_healthy_rows_of_a_kind_are_one_finding_a_namespace_that_is_only_counted() -> None:
    many = [socket(state=TW, timer=3, sport=1000 + k, netns=1 + k % 2) for k in range(20)]
    opening = [socket(state=tcp.SYN_SENT, timer=1, inode=7 + k, sport=k) for k in range(4)]
    v = view(*many, *opening, holders={7: [500], 8: [501]})
    found = {(f.rule, f.netns): f for f in engine.diagnose(v, catalogue.rules())}
    assert {key: f.count for key, f in found.items()} == {
        ("time-wait", 1): 10, ("time-wait", 2): 10, ("handshake", 1): 4,
    }  # fmt: skip
    assert all(f.counted and not f.pids for f in found.values())


def without(one: dict[str, Any], *columns: str) -> dict[str, Any]:
    return {name: cell for name, cell in one.items() if name not in columns}


CLOCKS = ("last_data_sent_ms", "last_data_recv_ms", "last_ack_recv_ms")


def test_a_window_that_the_kernel_does_not_tell_is_judged_by_its_timer() -> None:
    one = without(HELD | {"state": F1, "timer": 4, "wqueue": 99, "backoff": 4}, "snd_wnd")
    (found,) = engine.diagnose(view(one, holders=OWNED), catalogue.rules())
    assert (found.rule, found.confidence.level) == ("zero-window", "possible")
    assert "tcpi_snd_wnd" in found.confidence.reason
    brief = view(one | {"backoff": 1}, holders=OWNED)
    assert engine.diagnose(brief, catalogue.rules())[0].confidence.look_again
    still = view(one, holders=OWNED, earlier=[one], watched_ms=4000)
    assert one_finding(still).confidence.level == "possible"
    long = one | {"backoff": 14, "last_data_sent_ms": 700_000}
    found = one_finding(view(long, holders=OWNED))
    assert (found.severity, found.confidence.level) == ("problem", "likely")
    moving = view(one, holders=OWNED, earlier=[one | {"bytes_acked": 5}], watched_ms=4000)
    assert primary(moving) == MOVING
    assert primary(view(without(one, "backoff") | {"state": E}, holders=OWNED)) == ["zero-window"]


def test_what_moves_is_seen_by_clocks_and_queues_where_there_are_no_counters() -> None:
    half = without(HELD, "bytes_received", "bytes_acked")
    aged = {name: half[name] + 4000 for name in CLOCKS}

    def cause(now: dict[str, Any], before: dict[str, Any] = half) -> str:
        return primary(view(now, holders=OWNED, earlier=[before], watched_ms=4000))[0]

    assert cause(half | aged) == "fin-wait2-held"
    assert cause(half | aged | {"last_data_recv_ms": 300}) == "fin-wait2-streaming"
    assert cause(half | aged | {"rqueue": 5}, half | {"rqueue": 9}) == "fin-wait2-streaming"
    assert cause(half | aged | {"rqueue": 9}, half | {"rqueue": 0}) == "fin-wait2-streaming"
    assert (
        cause(half | aged | {"rqueue": 9}, half | {"rqueue": 5}) == "fin-wait2-held"
    )  # nobody reads what comes
    leak = half | {"state": CW, "shutdown": 1}
    assert cause(leak | aged, leak) == "close-wait-eof-read"
    assert cause(leak | aged | {"last_data_sent_ms": 300}, leak) == MOVING[0]
    assert cause(leak | aged | {"wqueue": 5}, leak | {"wqueue": 9}) == MOVING[0]
    lost = half | {"state": E, "shutdown": 0, "timer": 1, "retrans": 3, "unacked": 2, "wqueue": 9}
    assert (
        cause(lost | aged | {"last_data_sent_ms": 300}, lost) == "data-unanswered"
    )  # sent again, not answered


def test_a_first_look_that_took_long_does_not_make_a_silent_connection_move() -> None:
    half = without(HELD, "bytes_received", "bytes_acked") | {"state": CW, "shutdown": 1}
    half |= dict.fromkeys(CLOCKS, 700)
    aged = {
        name: half[name] + 508 for name in CLOCKS
    }  # of 703 ms, 195 were over when the first dump came to it

    def found(now: dict[str, Any], first_look_ms: int) -> Finding:
        seen = view(now, holders=OWNED, earlier=[half], watched_ms=703, first_look_ms=first_look_ms)
        return engine.diagnose(seen, catalogue.rules())[0]

    slow = found(half | aged, 259)
    assert (slow.rule, slow.confidence.look_again) == ("close-wait-eof-read", True)
    assert found(half | aged | {"last_data_sent_ms": 300}, 259).rule == MOVING[0]
    anew = half | {name: half[name] - 1 for name in CLOCKS}
    assert found(anew, 5000).rule == MOVING[0]  # its clock went back: it was set, however long the look took


def test_what_two_looks_saw_is_no_longer_than_the_shortest_time_between_them() -> None:
    one = without(HELD, *CLOCKS)
    seen = view(one, holders=OWNED, earlier=[one], watched_ms=703, first_look_ms=259)
    assert seen.at_least_ms.tolist() == [444]


def test_one_look_is_not_certain_of_what_nothing_dates() -> None:
    for one, rule in (
        (HELD, "fin-wait2-held"),
        (HELD | {"state": CW, "shutdown": 1}, "close-wait-eof-read"),
        (HELD | {"state": CW, "shutdown": 1, "rqueue": 1}, "close-wait-eof-unread"),
        (socket(state=CW, inode=0, sport=80, rqueue=6, shutdown=1, **INFO), "never-accepted"),
    ):
        (found,) = engine.diagnose(view(without(one, *CLOCKS), holders=OWNED), catalogue.rules())
        assert (found.rule, found.confidence.look_again) == (rule, True)


def test_legs_are_not_called_of_equal_age_where_nothing_dates_them() -> None:
    door, *legs = relay()
    rows = [door, *(without(leg, *CLOCKS, "shutdown") for leg in legs)]
    found = engine.diagnose(view(*rows, holders={5: [9], 7: [9], 8: [9]}), catalogue.rules())
    (pair,) = (f for f in found if f.rule == "relay-pair")
    assert "ages of the legs agree" not in pair.confidence.reason


def test_segments_in_flight_are_not_asked_for_where_the_kernel_does_not_count_them() -> None:
    one = without(HELD | {"state": E, "shutdown": 0, "timer": 1, "retrans": 3}, "unacked")
    assert primary(view(one, holders=OWNED)) == ["data-unanswered"]


def test_an_open_connection_that_nothing_dates_is_a_gap() -> None:
    one = without(HELD | {"state": E, "shutdown": 0}, *CLOCKS)
    (gap,) = engine.gaps(view(one, holders=OWNED), catalogue.rules())
    assert gap.where == "netns 1"
    assert gap.doing == "tell how long 1 open connection has been silent"
    assert engine.gaps(view(one | {"last_data_recv_ms": 5}, holders=OWNED), catalogue.rules()) == ()
    assert engine.gaps(view(HELD, holders=OWNED), catalogue.rules()) == ()


def test_subflows_without_their_mptcp_connections_are_a_gap() -> None:
    subflow = socket(state=E, inode=7, ulp=b"mptcp", **INFO)
    whole = socket(protocol=262, state=E, inode=7)
    assert [g.where for g in engine.gaps(view(subflow), catalogue.rules())] == ["netns 1"]
    assert engine.gaps(view(subflow, whole), catalogue.rules()) == ()


def workers(count: int, each: int = 1) -> View:
    """Workers of one server, the k-th of which holds ``each`` or more connections, and a stranger of their name."""
    rows: list[dict[str, Any]] = []
    holders: dict[int, list[int]] = {}
    processes = {499: ProcessView(499, "app", "app -D", ppid=1)}
    for k in range(count):
        processes[500 + k] = ProcessView(500 + k, "app", f"app: worker {k}", ppid=499)
        for _ in range(each if k else 1):
            inode = 1000 + len(rows)
            rows.append(HELD | {"state": CW, "shutdown": 1, "inode": inode, "cookie": inode, "sport": inode})
            holders[inode] = [500 + k]
    rows.append(HELD | {"state": CW, "shutdown": 1, "inode": 7, "cookie": 9, "sport": 9})
    holders[7] = [900]
    processes[900] = ProcessView(900, "app", "app: other", ppid=1)
    return view(*rows, holders=holders, processes=processes)


def test_the_workers_of_one_server_are_one_finding_that_names_them_all() -> None:
    v = workers(60)
    found = [f for f in engine.diagnose(v, catalogue.rules()) if f.primary]
    assert sorted((f.count, len(f.pids)) for f in found) == [(1, 1), (60, 60)]
    (many,) = (f for f in found if f.count == 60)
    assert many.pids == tuple(range(500, 560))
    said = "".join(text.diagnosis(v, found, (), "vm"))
    assert "app ×60 (pids 500…559; 1 connection each)" in said
    assert len(re.findall(r"^PROBLEM", said, re.MULTILINE)) == 2
    assert all(len(line) <= 100 for line in said.splitlines())


def test_what_each_worker_holds_is_told_where_it_differs() -> None:
    v = workers(3, each=4)
    said = "".join(text.diagnosis(v, engine.diagnose(v, catalogue.rules()), (), "vm"))
    assert "1 to 4 connections each, most: pid 501 4, pid 502 4, pid 500 1" in " ".join(said.split())


def test_workers_that_share_each_socket_with_their_parent_are_one_finding() -> None:
    processes = {pid: ProcessView(pid, "app", f"app {pid}", ppid=499) for pid in range(500, 520)}
    processes[499] = ProcessView(499, "app", "app", ppid=1)
    rows = [
        HELD | {"state": CW, "shutdown": 1, "inode": 1000 + k, "cookie": 1 + k, "sport": k} for k in range(20)
    ]
    v = view(*rows, holders={1000 + k: [499, 500 + k] for k in range(20)}, processes=processes)
    found = [f for f in engine.diagnose(v, catalogue.rules()) if f.primary]
    assert [(f.rule, f.count, len(f.pids)) for f in found] == [("inherited-descriptor", 20, 21)]


def test_leaks_of_the_workers_of_one_server_are_shown_as_one_and_stay_apart_in_json() -> None:
    processes = {pid: ProcessView(pid, "app", f"app {pid}", ppid=499) for pid in range(500, 504)}
    processes[499] = ProcessView(499, "app", "app", ppid=1)
    hidden = tuple(
        HiddenDescriptor(pid, 3 + k, 10 * pid + k, 1) for pid in range(500, 504) for k in range(pid - 490)
    )
    v = view(processes=processes, hidden=hidden)
    found = engine.diagnose(v, catalogue.rules())
    assert sorted(f.pids for f in found) == [(500,), (501,), (502,), (503,)]
    said = "".join(text.diagnosis(v, found, (), "vm"))
    assert len(re.findall(r"^PROBLEM", said, re.MULTILINE)) == 1
    told = " ".join(said.split())
    assert "46 × descriptor hidden-leak" in told
    assert (
        "app ×4 (pids 500…503; 10 to 13 descriptors each, most: pid 503 13, pid 502 12, pid 501 11)" in told
    )


def test_groups_by_process_have_the_workers_of_one_server_together() -> None:
    v = workers(60)
    made = groups(v, (), np.arange(len(v)), "process")
    assert dict(zip(made.labels, made.counts.tolist(), strict=True)) == {
        "app ×60 (500…559)": 60,
        "app (900)": 1,
    }


def test_an_empty_machine_has_no_findings() -> None:
    assert engine.diagnose(view(), catalogue.rules()) == ()


def test_keepalive_is_no_idle_cure_where_nobody_knows_whether_the_peer_lives() -> None:
    (far,) = (f for f in engine.diagnose(view(HELD, holders=OWNED), catalogue.rules()) if f.primary)
    assert any("finwait probe" in remedy.command for remedy in far.ends_it)
    assert not any("keepalive" in advice.text for advice in far.does_not)
    for name in ("fin-wait2-held", "fin-wait2-shut-both", "relay-pair"):
        rule = catalogue.rule(name)
        texts = [
            a.text for advice in (rule.does_not, *(case.does_not for case in rule.cases)) for a in advice
        ]
        assert "turn on keepalive" not in texts, name


def test_an_open_connection_before_a_closed_window_has_no_fin() -> None:
    one = HELD | {"state": E, "shutdown": 0, "timer": 4, "snd_wnd": 0, "wqueue": 99, "backoff": 4}
    (found,) = (f for f in engine.diagnose(view(one, holders=OWNED), catalogue.rules()) if f.primary)
    said = [found.title, *(e.says for e in found.evidence), *(a.reason for a in found.does_not)]
    assert not any("FIN " in text or "our FIN" in text or "closing" in text for text in said)


def test_what_a_server_does_not_read_is_no_idle_pool() -> None:
    one = HELD | {"state": CW, "shutdown": 1, "rqueue": 1, "sport": 40000}
    door = socket(state=tcp.LISTEN, inode=9, src="0.0.0.0", dst="0.0.0.0", sport=40000, dport=0)
    far = socket(src="192.0.2.1", dst="10.0.0.1", sport=80, dport=40000, state=F2, timer=3)
    far_door = socket(state=tcp.LISTEN, inode=8, src="192.0.2.1", dst="0.0.0.0", sport=80, dport=0)
    ports = {1: NamespaceView(1, ("host",), {"ipv4/ip_local_port_range": "32768\t60999"})}

    def said(*sockets: dict[str, Any], **more: Any) -> tuple[str, str]:
        v = view(*sockets, holders=OWNED, **more)
        (found,) = (f for f in engine.diagnose(v, catalogue.rules()) if f.primary and (f.rows == 0).any())
        assert found.rule == "close-wait-eof-unread"
        return found.title, " ".join(remedy.text for remedy in found.ends_it)

    server, means = said(one, door, namespaces=ports)
    assert "this server has not read that" in server
    assert "pool" not in server + means
    for client, means in (said(one, namespaces=ports), said(one, far, far_door)):
        assert "this client has not read that" in client
        assert means.startswith("evict idle connections from the pool")
    for both, means in (said(one), said(one | {"dport": 50000}, namespaces=ports)):
        assert "a stuck reader or an idle pool" in both
        assert "if it is a pool" in means
        assert "if it is a server" in means
    stopped = {500: ProcessView(500, "web", state="T")}
    v = view(one, door, holders=OWNED, processes=stopped)
    (found,) = (f for f in engine.diagnose(v, catalogue.rules()) if f.primary and (f.rows == 0).any())
    assert "stopped" in found.confidence.reason
    assert any("kill -CONT" in e.says for e in found.evidence)


@pytest.mark.parametrize("state", [E, F1])
@pytest.mark.parametrize("inode", [0, 7])
def test_window_probes_that_nobody_answers_are_no_peer_that_answers(state: int, inode: int) -> None:
    if state == E and not inode:
        return  # in an accept queue
    one = HELD | {"state": state, "inode": inode, "timer": 4, "snd_wnd": 0, "wqueue": 99, "backoff": 5}
    one |= {"rto_us": 204_000, "expires_ms": 6000}

    def said(**more: Any) -> tuple[str, str, str, str]:
        v = view(one | more, holders=OWNED)
        (found,) = (f for f in engine.diagnose(v, catalogue.rules()) if f.primary)
        assert found.rule == "zero-window"
        ends, does_not = (" ".join(a.text for a in part) for part in (found.ends_it, found.does_not))
        return found.title, found.confidence.level, ends, does_not

    title, _, ends, does_not = said(retrans=1)
    assert "until it reads" in title
    assert "tcp_retries2" in does_not
    title, sure, ends, does_not = said(retrans=4)
    assert "nobody answers the probes" in title
    assert sure == "certain"
    assert "ends by itself in about" in ends
    assert "tcp_retries2" not in does_not
    if state != E:
        assert said(retrans=3, backoff=2)[1] == "possible"


def test_orphans_are_told_beside_the_limit_of_the_machine() -> None:
    one = HELD | {"state": F1, "inode": 0, "timer": 1, "retrans": 4, "wqueue": 1}

    def said(one: dict[str, Any], count: int, limit: int | None) -> list[tuple[str, str]]:
        sysctls = {} if limit is None else {"ipv4/tcp_max_orphans": str(limit)}
        here = {
            1: NamespaceView(1, ("pod",), counters={"sockstat.TCP.orphan": count}),
            2: NamespaceView(2, ("host",), sysctls, {"sockstat.TCP.orphan": count}),
        }
        (found,) = (f for f in engine.diagnose(view(one, namespaces=here, holders=OWNED), catalogue.rules()))
        return [(e.value, e.says) for e in found.evidence if e.column == "orphans"]

    blocked = {"timer": 4, "snd_wnd": 9, "retrans": 5}
    for other in ({}, blocked, blocked | {"snd_wnd": 0, "backoff": 5}):
        ((value, says),) = said(one | other, 5, 1000)
        assert value == "5 of 1000"
        assert "far below the limit" in says
        ((value, says),) = said(one | other, 400, 1000)
        assert "a higher limit helps" in says
        ((value, says),) = said(one | other, 5, None)
        assert value == "5, limit unknown"
        assert "initial network namespace" in says
        assert said(one | other | {"inode": 7}, 400, 1000) == []


_LOCAL = {1: NamespaceView(1, ("host",), addresses=frozenset({(0, 0xFFFF << 32 | 0xC0000201)}))}
_READ_TO_END = HELD | {"state": CW, "shutdown": 1}
_WHOLE = {"protocol": 262, "mptcp_token": 9}


@pytest.mark.parametrize(
    ("rule", "one", "theirs"),
    [
        ("fin-wait2-held", HELD, CW),
        ("fin-wait2-shut-both", HELD | {"shutdown": 3}, CW),
        ("close-wait-eof-read", _READ_TO_END, F2),
        ("close-wait-eof-unread", _READ_TO_END | {"rqueue": 1}, F2),
        ("mptcp-half-close", HELD | _WHOLE, CW),
    ],
)
def test_what_ends_it_and_what_does_not_follow_from_what_is_known_of_the_peer(
    rule: str, one: dict[str, Any], theirs: int
) -> None:
    far = one | {"src": "192.0.2.1", "dst": "10.0.0.1", "sport": 80, "dport": 4000, "state": theirs}
    far |= {"inode": 8, "cookie": 2, "rqueue": 0}

    def said(*sockets: dict[str, Any], **more: Any) -> Finding:
        subflow = [SUBFLOW | {"mptcp_token_local": 9}] if rule == "mptcp-half-close" else []
        v = view(*sockets, *subflow, holders={7: [500], 8: [600]}, **more)
        named = {"fin-wait2-held", "idle-unprobed"} if rule == "fin-wait2-held" else {rule}
        (found,) = (f for f in engine.diagnose(v, catalogue.rules()) if f.primary and (f.rows == 0).any())
        assert found.rule in named
        return found

    def probes(found: Finding) -> bool:
        return any("finwait probe" in remedy.command for remedy in found.ends_it)

    def text(found: Finding) -> str:
        return " ".join([*(r.text for r in found.ends_it), *(f"{a.text} {a.reason}" for a in found.does_not)])

    alive, unseen, gone = said(one, far), said(one), said(one, namespaces=_LOCAL)
    assert not probes(alive)
    assert probes(gone) or rule == "mptcp-half-close"  # it can be reset at once
    assert "at the other end" not in text(gone)
    if one["state"] == F2:
        if rule == "mptcp-half-close":  # options of a whole MPTCP connection cannot be set for a moment
            assert "keepalive" in unseen.ends_it[0].text
        else:
            assert "finwait probe" in unseen.ends_it[0].command
        assert "shortest idle limit on the path" in text(unseen)
        assert "turn on keepalive" not in text(unseen) + text(gone)
        if rule != "mptcp-half-close":
            assert "turn on keepalive while the peer lives" in text(alive)
    else:
        assert "a peer that still waits sees a clean close" in text(unseen)
        assert "a clean close" not in text(gone)


def test_what_ends_a_relay_pair_follows_from_what_is_known_of_the_far_server() -> None:
    wait = _READ_TO_END | {"sport": 9000, "dport": 5000, "inode": 8, "cookie": 2}
    door = socket(state=tcp.LISTEN, inode=9, src="0.0.0.0", dst="0.0.0.0", sport=9000, dport=0)
    far = socket(src="192.0.2.1", dst="10.0.0.1", sport=80, dport=4000, state=CW, inode=10, **INFO)

    def ends(*more: dict[str, Any], **view_of: Any) -> list[str]:
        v = view(HELD, wait, door, *more, holders={7: [500], 8: [500], 9: [500], 10: [600]}, **view_of)
        (found,) = (f for f in engine.diagnose(v, catalogue.rules()) if f.rule == "relay-pair")
        return [remedy.text for remedy in found.ends_it]

    assert ends()[0].startswith("probe it")
    assert any("at the far server" in text for text in ends())
    assert not any("probe it" in text for text in ends(far))
    gone = ends(namespaces=_LOCAL)
    assert gone[0].startswith("probe it")
    assert not any("at the far server" in text for text in gone)


_STRANGER = {
    1: NamespaceView(1, ("host",)),
    9: NamespaceView(9, ("stranger",), addresses=_LOCAL[1].addresses),
}


@pytest.mark.parametrize(
    ("one", "rule"),
    [
        (HELD, "fin-wait2-held"),
        (HELD | {"shutdown": 3}, "fin-wait2-shut-both"),
        (_READ_TO_END, "close-wait-eof-read"),
        (_READ_TO_END | {"rqueue": 1}, "close-wait-eof-unread"),
        (HELD | _WHOLE, "mptcp-half-close"),
    ],
)
def test_an_address_that_a_stranger_has_says_nothing_of_the_peer(one: dict[str, Any], rule: str) -> None:
    subflow = [SUBFLOW | {"mptcp_token_local": 9}] if rule == "mptcp-half-close" else []

    def told(namespaces: dict[int, NamespaceView]) -> list[tuple[object, ...]]:
        v = view(one, *subflow, holders=OWNED, namespaces=namespaces)
        return [
            (f.rule, f.title, f.severity, f.primary, f.confidence, f.evidence, f.ends_it, f.does_not)
            for f in engine.diagnose(v, catalogue.rules())
            if (f.rows == 0).any()
        ]

    assert told(_STRANGER) == told({1: _STRANGER[1]})
    assert [(name, grade) for name, _, grade, primary, *_ in told(_STRANGER) if primary] == [
        (rule, "problem")
    ]


def test_a_server_that_reads_nothing_stays_a_problem_when_its_clients_have_been_silent_for_long() -> None:
    quiet = {"last_data_recv_ms": 700_000, "last_data_sent_ms": 700_000, "last_ack_recv_ms": 700_000}
    rows = [ROOMY | {"rqueue": 0}, *unread(4, **quiet)]
    held = {5: [9]} | {50 + k: [9] for k in range(4)}
    v = view(*rows, holders=held, earlier=rows, watched_ms=4000)
    found = [(f.rule, f.severity) for f in engine.diagnose(v, catalogue.rules()) if f.primary]
    assert found == [("established-unread", "problem")]


def test_a_full_listener_on_this_machine_is_named_to_who_connects_to_it() -> None:
    opening = socket(
        state=tcp.SYN_SENT,
        inode=7,
        timer=1,
        retrans=3,
        backoff=3,
        expires_ms=3000,
        dst="10.0.0.9",
        dport=80,
        cookie=1,
    )
    door = socket(
        state=tcp.LISTEN,
        src="10.0.0.9",
        dst="0.0.0.0",
        sport=80,
        dport=0,
        netns=2,
        rqueue=6,
        wqueue=5,
        cookie=2,
    )
    spaces = {
        1: NamespaceView(1, ("host",), {"ipv4/tcp_syn_retries": "6", "ipv4/tcp_syn_linear_timeouts": "0"}),
        2: NamespaceView(2, ("blue",), addresses=frozenset({pack_address("10.0.0.9")})),
    }

    def told(*rows: dict[str, Any]) -> tuple[int, str, dict[str, str]]:
        found = engine.diagnose(view(*rows, namespaces=spaces), catalogue.rules())
        (one,) = (f for f in found if f.rule == "syn-unanswered")
        return one.variant, one.severity, {e.column: e.value for e in one.evidence}

    variant, severity, cells = told(opening, door)
    assert (variant, severity) == (1, "notice")
    assert cells["full listener"] == "10.0.0.9:80 in blue, 6 of 5 waiting"
    assert cells["waits since"] == "12 s"  # 1 + 2 + 4 + 8 s, less 3 s
    assert cells["gives up in"] == "115 s"  # at 127 s
    for near in ({"rqueue": 5}, {"sport": 81}, {"src": "10.0.0.8"}, {"netns": 3}):
        variant, _, cells = told(opening, door | near)
        assert variant == 0
        assert "full listener" not in cells
    for same in ({"src": "::", "family": 10}, {"src": "0.0.0.0"}):
        assert told(opening, door | same)[0] == 1
    # Connected namespaces, also over a third, and the same address in one that no interface leads to.
    for island, variant in ((7, 1), (8, 0), (None, 0)):
        spaces = {1: replace(spaces[1], island=7), 2: replace(spaces[2], island=island)}
        assert told(opening, door)[0] == variant
        assert told(opening, door | {"src": "::"})[0] == variant


@pytest.mark.parametrize(
    ("dst", "bound", "where", "variant"),
    [
        ("10.0.0.1", "::", 1, 1),
        ("10.0.0.1", "0.0.0.0", 1, 1),
        (
            "192.0.2.9",
            "::",
            1,
            0,
        ),  # another machine's: our own service of that port has nothing to do with it
        ("192.0.2.9", "0.0.0.0", 1, 0),
        ("192.0.2.9", "192.0.2.9", 1, 1),
        ("127.0.0.1", "0.0.0.0", 1, 1),
        ("127.0.0.1", "127.0.0.1", 2, 0),  # everybody has such an address
        ("127.0.0.1", "0.0.0.0", 2, 0),
        ("::1", "::", 1, 1),
        ("::1", "::1", 2, 0),
    ],
)
def test_a_full_listener_is_named_only_where_it_can_be_the_one(
    dst: str, bound: str, where: int, variant: int
) -> None:
    opening = socket(
        state=tcp.SYN_SENT, inode=7, timer=1, retrans=3, backoff=3, expires_ms=3000, dst=dst, dport=80, cookie=1
    )  # fmt: skip
    door = socket(
        state=tcp.LISTEN, src=bound, dst="::", sport=80, dport=0, netns=where, rqueue=6, wqueue=5, cookie=2
    )  # fmt: skip
    local = {pack_address("127.0.0.1"), pack_address("::1")}
    spaces = {
        1: NamespaceView(1, ("host",), addresses=frozenset({pack_address("10.0.0.1"), *local}), island=1),
        2: NamespaceView(2, ("blue",), addresses=frozenset({pack_address("10.0.0.2"), *local}), island=1),
    }
    found = engine.diagnose(view(opening, door, namespaces=spaces), catalogue.rules())
    (one,) = (f for f in found if f.rule == "syn-unanswered")
    assert one.variant == variant


OPENING = socket(
    state=tcp.SYN_SENT, inode=7, timer=1, retrans=3, backoff=3, expires_ms=3000, dst="10.0.0.9", dport=80, cookie=1
)  # fmt: skip
FULL_DOOR = socket(
    state=tcp.LISTEN, src="0.0.0.0", dst="::", sport=80, dport=0, netns=2, rqueue=6, wqueue=5, cookie=2
)  # fmt: skip
SIX = {"family": 10, "dst": "fd00::9"}
BOTH = frozenset({pack_address("10.0.0.9"), pack_address("fd00::9")})


def unanswered(*rows: dict[str, Any], further: tuple[int, ...] = (), natted: bool = False) -> Finding:
    spaces = {
        n: NamespaceView(n, addresses=BOTH if n != 1 else frozenset(), island=1) for n in (1, 2, *further)
    }
    v = view(*rows, namespaces=spaces)
    if natted:
        v = replace(v, flow_natted=v.sockets.state == tcp.SYN_SENT)
    (one,) = (f for f in engine.diagnose(v, catalogue.rules()) if f.rule == "syn-unanswered")
    return one


@pytest.mark.parametrize(
    ("row", "door", "variant"),
    [
        ({}, {}, 1),
        (SIX, {}, 0),
        (SIX, {"src": "::", "family": 10}, 1),
        (SIX, {"src": "::", "family": 10, "v6only": 1}, 1),
        ({}, {"src": "::", "family": 10}, 1),
        ({}, {"src": "::", "family": 10, "v6only": 1}, 0),
        ({}, {"ifindex": 1}, 0),  # nothing that comes from another namespace comes from `lo`
        ({}, {"ifindex": 5}, 1),
        ({"netns": 2}, {"ifindex": 1}, 1),
        ({"netns": 2}, {"ifindex": 5}, 0),
        ({"netns": 2, "ifindex": 5}, {"ifindex": 5}, 1),
        ({"netns": 2, "ifindex": 5}, {"ifindex": 1}, 0),
        ({"netns": 2, "ifindex": 5}, {}, 1),
    ],
)
def test_a_full_listener_that_cannot_take_the_connection_is_not_named(
    row: dict[str, Any], door: dict[str, Any], variant: int
) -> None:
    assert unanswered(OPENING | row, FULL_DOOR | door).variant == variant


def test_a_full_listener_may_be_the_one_and_is_never_certainly_it() -> None:
    one = unanswered(OPENING, FULL_DOOR)
    assert "may be" in one.title
    assert one.confidence.level == "likely"
    assert unanswered(OPENING).confidence.level == "certain"
    for doubtful in (
        unanswered(OPENING, FULL_DOOR, further=(3,)),
        unanswered(OPENING, FULL_DOOR, natted=True),
    ):
        assert doubtful.confidence.level == "possible"
    (said,) = (
        e.says for e in unanswered(OPENING, FULL_DOOR, further=(3,)).evidence if e.column == "full listener"
    )
    assert "2 namespaces have this address" in said


def test_of_many_full_listeners_the_rest_is_counted() -> None:
    doors = [FULL_DOOR | {"cookie": 10 + k, "inode": 10 + k} for k in range(5)]
    told = [e.value for e in unanswered(OPENING, *doors).evidence if e.column == "full listener"]
    assert len(told) == 4
    assert told[-1] == "and 2 more"
    told = [e.value for e in unanswered(OPENING, *doors[:3]).evidence if e.column == "full listener"]
    assert len(told) == 3


@pytest.mark.parametrize(
    ("state", "threads", "value", "says"),
    [
        ("S", 1, "app, state S", "it sleeps in a system call"),
        ("S", 2, "app, state S (main thread)", "its main thread sleeps; its other thread was not inspected"),
        (
            "S",
            9,
            "app, state S (main thread)",
            "its main thread sleeps; its 8 other threads were not inspected",
        ),
        (
            "R",
            0,
            "app, state R (main thread)",
            "its main thread runs; it is unknown whether it has other threads",
        ),
        ("T", 9, "app, state T", "it was stopped by a signal; `kill -CONT` resumes it"),
    ],
)
def test_what_a_main_thread_does_says_nothing_of_the_thread_that_should_read(
    state: str, threads: int, value: str, says: str
) -> None:
    rows = [ROOMY | {"rqueue": 0}, *unread(4)]
    app = {9: ProcessView(9, "app", state=state, threads=threads)}
    v = view(
        *rows,
        holders={5: [9]} | {50 + k: [9] for k in range(4)},
        earlier=rows,
        watched_ms=4000,
        processes=app,
    )
    (found,) = (f for f in engine.diagnose(v, catalogue.rules()) if f.rule == "established-unread")
    assert [(e.value, e.says) for e in found.evidence if e.column == "process 9"] == [(value, says)]


def test_a_tracer_that_stopped_one_thread_has_not_stopped_a_program() -> None:
    rows = [ROOMY | {"rqueue": 0}, *unread(1)]
    for threads, level in ((1, "certain"), (2, "likely")):
        app = {9: ProcessView(9, "app", state="t", threads=threads)}
        v = view(*rows, holders={5: [9], 50: [9]}, earlier=rows, watched_ms=4000, processes=app)
        (found,) = (f for f in engine.diagnose(v, catalogue.rules()) if f.rule == "established-unread")
        assert found.confidence.level == level


def test_processes_with_one_descriptor_table_inherited_nothing() -> None:
    def told(one_table: dict[tuple[int, int], bool], pids: list[int]) -> list[tuple[str, str]]:
        v = view(HELD, holders={7: pids}, one_table=one_table)
        return [(f.rule, f.confidence.level) for f in engine.diagnose(v, catalogue.rules()) if f.primary]

    assert told({(500, 501): True}, [500, 501]) == [("fin-wait2-held", "likely")]
    assert told({(500, 501): False}, [500, 501]) == [("inherited-descriptor", "certain")]
    assert told({}, [500, 501]) == [("inherited-descriptor", "likely")]
    assert told({(500, 501): True, (500, 502): False}, [500, 501, 502]) == [
        ("inherited-descriptor", "certain")
    ]


def test_long_work_on_an_answer_is_never_certain_to_be_a_leak() -> None:
    """A client that half-closed waits, and a backend works for long: neither end is known to be forgotten."""
    quiet = dict.fromkeys(("last_ack_recv_ms", "last_data_recv_ms", "last_data_sent_ms"), 30_000)
    client = HELD | quiet
    server = HELD | quiet | {
        "state": CW, "shutdown": 1, "src": "192.0.2.1", "dst": "10.0.0.1", "sport": 80, "dport": 4000, "inode": 8,
        "cookie": 2,
    }  # fmt: skip
    for ms, level in ((30_000, "likely"), (700_000, "certain")):
        rows = [row | dict.fromkeys(quiet, ms) for row in (client, server)]
        v = view(*rows, holders={7: [500], 8: [501]})
        levels = {f.rule: f.confidence.level for f in engine.diagnose(v, catalogue.rules()) if f.primary}
        assert levels == {"fin-wait2-held": level, "close-wait-eof-read": level}


@pytest.mark.parametrize(
    ("rule", "one"),
    [
        (
            "zero-window",
            {"state": tcp.FIN_WAIT1, "timer": 4, "snd_wnd": 0, "wqueue": 9, "backoff": 9, "retrans": 0},
        ),
        (
            "zero-window",
            {"state": tcp.FIN_WAIT1, "timer": 4, "snd_wnd": 0, "wqueue": 9, "backoff": 9, "retrans": 9},
        ),
        ("data-unanswered", {"state": tcp.CLOSE_WAIT, "timer": 1, "retrans": 9, "unacked": 1, "backoff": 9}),
    ],
)
def test_no_remedy_acts_through_a_descriptor_of_what_no_process_holds(rule: str, one: dict[str, Any]) -> None:
    def ends(inode: int) -> str:
        v = view(HELD | one | {"inode": inode}, holders=OWNED if inode else {})
        (found,) = [f for f in engine.diagnose(v, catalogue.rules()) if f.rule == rule]
        return " ".join(remedy.text for remedy in found.ends_it)

    held, orphaned = ends(7), ends(0)
    assert "pidfd_getfd" in held
    assert "the descriptor stays open in the process" in held or "destroy this end" in held
    assert "descriptor" not in orphaned
    assert "pidfd_getfd" not in orphaned
    assert "destroy this end (SOCK_DESTROY)" in orphaned
