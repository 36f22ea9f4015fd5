"""Each rule on the smallest view that it matches, and on the nearest one that it must not match."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from finwait.attribution.process import ProcessView
from finwait.diagnosis import catalogue, engine
from finwait.diagnosis.finding import Finding
from finwait.diagnosis.view import HiddenDescriptor, NamespaceView, Options, View
from finwait.lone_sockets import hidden_before
from finwait.report import text
from finwait.report.groups import groups
from finwait.table.sockets import pack_address
from finwait.uapi import tcp
from finwait.uapi.observation import Descriptors
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


def test_who_holds_a_half_close_up_is_told_by_what_is_unread_and_by_the_other_end() -> None:
    def said(ours: dict[str, Any], other: dict[str, Any] | None = None) -> tuple[str, str]:
        far = socket(src="192.0.2.1", dst="10.0.0.1", sport=80, dport=4000, inode=0, **INFO) | (other or {})
        v = view(HELD | ours, *([far] if other else []), holders=OWNED)
        (found,) = (f for f in engine.diagnose(v, catalogue.rules()) if f.primary and f.rows[0] == 0)
        assert found.rule == "fin-wait2-held"
        return found.title, found.confidence.level

    not_reading, not_closing = "this program does not read", "the peer does not close"
    assert not_closing in said({})[0]
    assert not_reading in said({"rqueue": 9})[0]
    assert said({"rqueue": 9})[1] == "likely"
    assert said({"rqueue": 9, "last_data_recv_ms": 100})[1] == "possible"
    assert not_reading in said({"rqueue": 9}, {"state": LA, "timer": 4, "wqueue": 7})[0]
    assert not_closing in said({"rqueue": 9}, {"state": CW})[0]
    assert not_reading in said({"rqueue": 9}, {"state": CW, "timer": 4, "wqueue": 7})[0]
    assert "its FIN does not get here" in said({}, {"state": LA, "timer": 1})[0]


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

    assert sure(view(one, SUBFLOW, holders=OWNED, earlier=[one, SUBFLOW], watched_ms=500)) == "certain"
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
    assert sure(view(one, holders=OWNED)) == "possible"
    assert sure(view(one | {"backoff": 5}, holders=OWNED)) == "likely"
    long = one | {"backoff": 5}
    assert sure(view(long, holders=OWNED, earlier=[one], watched_ms=5000)) == "certain"
    assert sure(view(long, holders=OWNED, earlier=[one], watched_ms=500)) == "likely"
    assert sure(view(one, holders=OWNED, earlier=[one], watched_ms=5000)) == "likely"


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
    v = view(one, far | {"bytes_received": got}, holders=OWNED)
    found = [f for f in engine.diagnose(v, catalogue.rules()) if "unanswered" in f.rule]
    assert ("the peer has received" in found[0].title) == (lost == "back")
    (seen,) = (e for e in found[0].evidence if e.column == "other end")
    assert seen.value == f"{tcp.STATES[theirs]} ×1"
    assert f"lost on the way {lost}" in seen.says
    looks = [remedy for remedy in found[0].ends_it if "ct state invalid" in remedy.text]
    assert bool(looks) == (lost == "back")
    assert found[0].confidence.level == ("likely" if lost == "back" else "certain")


@pytest.mark.parametrize("grown", [{"bytes_acked": 99}, {"rqueue": 5}], ids=["answers", "reads"])
def test_a_program_that_is_busy_with_what_came_has_not_left_it_unread(grown: dict[str, Any]) -> None:
    one = HELD | {"state": CW, "shutdown": 1, "rqueue": 9}
    assert primary(view(one | grown, holders=OWNED, earlier=[one], watched_ms=500)) == MOVING


def test_whether_the_end_of_file_is_left_unread_takes_two_looks_where_it_may_be_busy() -> None:
    one = HELD | {"state": CW, "shutdown": 1, "rqueue": 1}

    def sure(v: View) -> str:
        (found,) = engine.diagnose(v, catalogue.rules())
        assert found.rule == "close-wait-eof-unread"
        return found.confidence.level

    assert sure(view(one, holders=OWNED)) == "certain"
    assert sure(view(one | {"last_data_sent_ms": 100}, holders=OWNED)) == "possible"
    assert sure(view(one | {"rqueue": 9}, holders=OWNED)) == "likely"
    assert (
        sure(view(one | {"rqueue": 9}, holders=OWNED, earlier=[one | {"rqueue": 9}], watched_ms=500))
        == "certain"
    )


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


def test_nobody_holds_it_is_said_only_when_everybody_was_looked_into() -> None:
    assert primary(view(HELD)) == ["holder-not-found"]
    assert primary(view(HELD, unreadable=(1,))) == ["fin-wait2-held"]
    assert primary(view(HELD, searched=False)) == ["fin-wait2-held"]


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
    assert f"pid {idle} (fd 3) shares the address, and has accepted all" in listeners[1][1]


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


def test_that_nothing_was_accepted_is_certain_where_the_same_are_in_the_queue_or_none_came() -> None:
    rows = [DOOR, *queued(3)]
    assert of_door(view(*rows, earlier=rows, watched_ms=4000))[2] == "certain"
    opened = {"Tcp.PassiveOpens": 7, "TcpExt.ListenOverflows": 5}

    def told(before: int) -> str:
        ns = NamespaceView(
            1, counters=opened, before={"Tcp.PassiveOpens": before, "TcpExt.ListenOverflows": 3}
        )
        v = view(DOOR, earlier=[DOOR], watched_ms=4000, namespaces={1: ns})
        (found,) = engine.diagnose(v, catalogue.rules())
        assert [e.value for e in found.evidence if e.column == "ListenOverflows"] == ["5 (+2 in 4.0 s)"]
        return found.confidence.level

    assert told(7) == "certain"
    assert told(6) == "likely"


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
    v = view(full, empty, *queued(3), earlier=[full, empty], watched_ms=4000)
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
        v = view(*relay(**kwargs), holders={5: [9], 7: [9], 8: [9]})
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
        ("/bin/server", True, "SOCK_CLOEXEC does nothing"),
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
    assert "no process can ever answer" in title
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


def test_a_stopped_program_is_certain_not_to_read() -> None:
    rows = unread(1)
    stopped = {9: ProcessView(9, "worker", state="T")}
    v = view(ROOMY, *rows, holders={50: [9]}, processes=stopped, earlier=[ROOMY, *rows], watched_ms=4000)
    (found,) = (f for f in engine.diagnose(v, catalogue.rules()) if f.rule == "established-unread")
    assert (found.severity, found.confidence.level) == ("problem", "certain")
    assert any("kill -CONT" in e.says for e in found.evidence)


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
    assert cause(fresh, earlier=[fresh], watched_ms=500) == "inherited-descriptor"
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
    for v, told in ((once, ("possible", True)), (replace(once, hidden_twice=True), ("certain", False))):
        (found,) = (f for f in engine.diagnose(v, catalogue.rules()) if f.rule == "hidden-leak")
        assert (found.confidence.level, found.confidence.look_again) == told


def test_only_what_had_no_connection_at_the_first_look_either_was_without_one_before() -> None:
    hidden = tuple(HiddenDescriptor(500, fd, 900 + fd) for fd in (3, 4, 5, 6))
    first = Descriptors(
        np.array([500, 500, 501], np.uint32),
        np.array([3, 4, 5], np.uint32),
        np.array([903, 904, 905], np.uint64),
        (),
        True,
    )
    then = view(HELD | {"inode": 904}).sockets  # it had its connection then
    assert hidden_before(hidden, first, then) == hidden[:1]
    assert hidden_before((), first, then) == ()


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
        for part in ("Seen as", "Why it stays", "Not this", "What ends it", "What does not", "Reproduce"):
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
    still = one_finding(view(one, earlier=[one], watched_ms=3500))
    assert (still.severity, still.confidence.level) == ("problem", "likely")
    open_ = one_finding(view(one | {"state": E, "inode": 7, "retrans": 5, "backoff": 5}, holders=OWNED))
    assert open_.severity == "notice"
    assert "FIN" not in open_.title + " ".join(e.says for e in open_.evidence)


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
    assert engine.diagnose(still, catalogue.rules())[0].confidence.level == "likely"
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
    assert cause(half | aged | {"rqueue": 9}, half | {"rqueue": 5}) == "fin-wait2-streaming"
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
    assert "equal age" not in pair.confidence.reason


def test_segments_in_flight_are_not_asked_for_where_the_kernel_does_not_count_them() -> None:
    one = without(HELD | {"state": E, "shutdown": 0, "timer": 1, "retrans": 3}, "unacked")
    assert primary(view(one, holders=OWNED)) == ["data-unanswered"]


def test_an_open_connection_that_nothing_dates_is_a_gap() -> None:
    one = without(HELD | {"state": E, "shutdown": 0}, *CLOCKS)
    (gap,) = engine.gaps(view(one, holders=OWNED), catalogue.rules())
    assert gap.where == "netns 1"
    assert gap.doing == "tell since when 1 open connection is silent"
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
    assert "this server has not read it" in server
    assert "pool" not in server + means
    for client, means in (said(one, namespaces=ports), said(one, far, far_door)):
        assert "this client has not read it" in client
        assert means.startswith("evict idle connections from the pool")
    for both, means in (said(one), said(one | {"dport": 50000}, namespaces=ports)):
        assert "a stuck reader, or an idle pool" in both
        assert "where it is a pool" in means
        assert "where it is a server" in means
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
    assert "stopped reading" in title
    assert "tcp_retries2" in does_not
    title, sure, ends, does_not = said(retrans=3)
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
        assert "far from the limit" in says
        ((value, says),) = said(one | other, 400, 1000)
        assert "raising it helps" in says
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
        assert "a peer that still waits sees a clean end" in text(unseen)
        assert "a clean end" not in text(gone)


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
    for same in ({"src": "::"}, {"src": "0.0.0.0"}):
        assert told(opening, door | same)[0] == 1


@pytest.mark.parametrize(
    ("state", "threads", "value", "says"),
    [
        ("S", 1, "app, state S", "it sleeps: it waits for something, and not for these connections"),
        ("S", 2, "app, state S (main thread)", "its main thread sleeps; its other thread was not looked at"),
        (
            "S",
            9,
            "app, state S (main thread)",
            "its main thread sleeps; its 8 other threads were not looked at",
        ),
        (
            "R",
            0,
            "app, state R (main thread)",
            "its main thread runs; whether it has other threads is unknown",
        ),
        ("T", 9, "app, state T", "it is stopped by a signal: `kill -CONT` lets it go on"),
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

    assert told({(500, 501): True}, [500, 501]) == [("fin-wait2-held", "certain")]
    assert told({(500, 501): False}, [500, 501]) == [("inherited-descriptor", "certain")]
    assert told({}, [500, 501]) == [("inherited-descriptor", "likely")]
    assert told({(500, 501): True, (500, 502): False}, [500, 501, 502]) == [
        ("inherited-descriptor", "certain")
    ]
