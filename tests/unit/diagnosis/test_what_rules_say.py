"""What rules say beside their names: reasons, evidence, and when something else is the cause."""

from __future__ import annotations

from typing import Any

import pytest

from finwait.diagnosis import catalogue, engine
from finwait.diagnosis.finding import Finding
from finwait.diagnosis.view import NamespaceView, View
from finwait.table.sockets import pack_address
from finwait.uapi import tcp
from tests.unit.diagnosis.test_rules import HELD, INFO, OWNED, relay
from tests.unit.diagnosis.views import primary, socket, view


def cause(v: View, row: int = 0) -> Finding:
    (found,) = (f for f in engine.diagnose(v, catalogue.rules()) if f.primary and row in f.rows)
    return found


@pytest.mark.parametrize(
    ("one", "before", "reason"),
    [
        ({"timer": 1, "retrans": 1}, None, "its timer is running and has fired at most once"),
        ({"timer": 4, "snd_wnd": 5, "backoff": 3}, None, "the window is open and no attempt has failed"),
        ({"timer": 1, "retrans": 1, "bytes_acked": 11}, {"bytes_acked": 10}, "bytes moved within 2.0 s"),
        ({"timer": 4, "snd_wnd": 5, "backoff": 3, "bytes_acked": 11}, {"bytes_acked": 10}, "bytes moved"),
    ],
)
def test_why_a_closing_is_called_healthy_is_what_was_seen_of_it(
    one: dict[str, Any], before: dict[str, Any] | None, reason: str
) -> None:
    row = HELD | {"state": tcp.FIN_WAIT1, "wqueue": 9} | one
    earlier = None if before is None else [row | before]
    found = cause(view(row, holders=OWNED, earlier=earlier, watched_ms=2000 if before else 0))
    assert found.rule == "closing-in-progress"
    assert found.confidence.level == "certain"
    assert found.confidence.reason.startswith(reason)


def test_that_a_connection_came_into_an_accept_queue_just_now_is_said_as_such() -> None:
    found = cause(view(socket(state=tcp.CLOSE_WAIT, inode=0, last_ack_recv_ms=10)))
    assert (found.rule, found.confidence.reason) == (
        "closing-in-progress",
        "it is that young, or its timer is running",
    )


@pytest.mark.parametrize("timer", [1, 4])
def test_who_waits_for_a_reader_at_the_other_end_that_reads_is_not_stuck(timer: int) -> None:
    """That reader makes room between two looks. It is no answer to what is sent again and again."""
    near = HELD | {
        "state": tcp.FIN_WAIT1,
        "timer": timer,
        "snd_wnd": 0,
        "wqueue": 99,
        "backoff": 5,
        "retrans": 5,
    }
    far = INFO | {"bytes_received": 100, "rqueue": 90, "cookie": 2, "inode": 8, "state": tcp.CLOSE_WAIT}
    far = socket(src="192.0.2.1", dst="10.0.0.1", sport=80, dport=4000) | far
    holders = {7: [5], 8: [6]}
    for unread, moves in ((80, True), (90, False)):
        v = view(near, far | {"rqueue": unread}, holders=holders, earlier=[near, far], watched_ms=5000)
        assert (primary(v)[0] == "closing-in-progress") is (moves and timer == 4)


@pytest.mark.parametrize(
    ("count", "said"),
    [
        (0, None),
        (1, "/a"),
        (3, "/a, /b, /c"),
        (4, "/a, /b, /c and 1 more"),
        (6, "/a, /b, /c and 3 more"),
    ],
)
def test_where_orphans_were_made_names_three_cgroups_and_counts_the_others(
    count: int, said: str | None
) -> None:
    paths = {k: f"/{chr(96 + k)}" for k in range(1, count + 1)}
    rows = [
        socket(state=tcp.FIN_WAIT1, sport=k, cookie=k, timer=1, retrans=3, cgroup_id=k, **INFO)
        for k in range(1, 8)
    ]
    found = cause(view(*rows, cgroup_paths=paths))
    assert found.rule == "fin-unanswered-orphan"
    told = [e.value for e in found.evidence if e.column == "cgroup"]
    assert told == ([] if said is None else [said])


@pytest.mark.parametrize(("holders", "read"), [(2, 2), (1000, 1000), (1001, 1000)])
def test_the_flags_of_a_thousand_descriptors_of_a_finding_are_read_and_of_no_more(
    holders: int, read: int
) -> None:
    """Each is a file in /proc; whether any more of them are close-on-exec is not said."""
    v = view(HELD, holders={7: list(range(500, 500 + holders))})
    found = engine.diagnose(v, catalogue.rules())
    assert [f.rule for f in found if f.primary] == ["inherited-descriptor"]
    assert len(engine.flags_wanted(v, catalogue.rules(), found)) == read


def test_no_column_is_told_twice_of_one_cause() -> None:
    for rule in catalogue.rules():
        for telling in rule.tellings:
            columns = [clue.column for clue in telling.clues]
            assert len(columns) == len(set(columns)), (rule.name, telling.title)


@pytest.mark.parametrize(
    ("service", "port"),
    [
        ("SMB over NetBIOS", 139),
        ("SMB", 445),
        ("9P", 564),
        ("iSCSI", 860),
        ("NFS", 2049),
        ("iSCSI", 3260),
        ("Ceph, messenger 2", 3300),
        ("NVMe over TCP", 4420),
        ("Ceph, messenger 1", 6789),
        ("DRBD", 7788),
        ("DRBD", 7789),
        ("NBD", 10809),
        ("NFS over RDMA", 20049),
        ("DLM", 21064),
    ],
)
def test_an_open_connection_of_a_service_of_the_kernel_s_own_needs_no_holder(service: str, port: int) -> None:
    """Either end may be the kernel's: what it mounts, and what it serves."""
    one = HELD | {"state": tcp.ESTABLISHED, "shutdown": 0}
    for end in ("sport", "dport"):
        assert cause(view(one | {end: port})).severity == "healthy", service
    for near in (port - 1, port + 1):
        if near not in (7788, 7789):
            assert cause(view(one | {"dport": near})).severity == "notice"


@pytest.mark.parametrize(
    ("heard_ms", "tries", "old"), [(0, 3, False), (1, 3, False), (60_000, 1, True), (None, 2, True)]
)
def test_an_end_that_was_heard_of_during_the_look_is_not_one_that_the_other_forgot(
    heard_ms: int | None, tries: int, old: bool
) -> None:
    """Namespaces are dumped one after the other: the handshake may have been completed in between."""
    clocks = {} if heard_ms is None else {"last_ack_recv_ms": heard_ms}
    one = socket(state=tcp.ESTABLISHED, inode=7, cookie=1, **clocks)
    again = socket(src="192.0.2.1", dst="10.0.0.1", sport=80, dport=4000, state=tcp.SYN_SENT, inode=8)
    again |= {"timer": 1, "retrans": tries, "cookie": 2}
    found = primary(view(one, again, holders={7: [5], 8: [6]}))
    assert (found[0] == "half-open") is old


@pytest.mark.parametrize(("unread", "severity"), [(0, "notice"), (1, "problem"), (90, "problem")])
def test_one_byte_that_the_program_at_the_other_end_leaves_unread_proves_that_it_does_not_read(
    unread: int, severity: str
) -> None:
    near = HELD | {"state": tcp.FIN_WAIT1, "timer": 4, "snd_wnd": 0, "wqueue": 99, "backoff": 5, "retrans": 0}
    far = INFO | {"bytes_received": 100, "rqueue": unread, "cookie": 2, "inode": 8, "state": tcp.ESTABLISHED}
    far = socket(src="192.0.2.1", dst="10.0.0.1", sport=80, dport=4000) | far
    v = view(near, far, holders={7: [5], 8: [6]}, earlier=[near, far], watched_ms=5000)
    found = cause(v)
    assert (found.rule, found.severity) == ("zero-window", severity)


@pytest.mark.parametrize(
    ("watched_ms", "level", "reason"),
    [
        (0, "likely", "in a single look an acknowledgment may be on its way, check with `--for 5s`"),
        (500, "likely", "in a single look an acknowledgment may be on its way, check with `--for 5s`"),
        (5000, "certain", "no acknowledgment came in 5.0 s"),
    ],
)
def test_that_only_the_acknowledgment_is_lost_is_certain_once_none_came_while_watching(
    watched_ms: int, level: str, reason: str
) -> None:
    near = socket(state=tcp.FIN_WAIT1, inode=0, cookie=1, timer=1, retrans=3, wqueue=1, **INFO)
    far = socket(src="192.0.2.1", dst="10.0.0.1", sport=80, dport=4000, state=tcp.CLOSE_WAIT, inode=8, **INFO)
    far |= {"cookie": 2}
    earlier = [near, far] if watched_ms else None
    found = cause(view(near, far, holders={8: [6]}, earlier=earlier, watched_ms=watched_ms))
    assert (found.rule, found.confidence.level) == ("fin-unanswered-orphan", level)
    shown = "at least 3 retransmissions, and only our FIN can have put the other end in its state"
    assert found.confidence.reason == f"{shown}; {reason}"


def test_that_bytes_still_arrive_is_certain_once_they_were_seen_to() -> None:
    v = view(HELD | {"bytes_received": 11}, holders=OWNED, earlier=[HELD], watched_ms=2000)
    found = cause(v)
    assert (found.rule, found.confidence.level) == ("fin-wait2-streaming", "certain")
    assert found.confidence.reason == "bytes arrived, or were read, within 2.0 s of watching"


@pytest.mark.parametrize(
    ("one_table", "level", "reason"),
    [
        ({}, "likely", "it is unknown whether they share one descriptor table (kcmp)"),
        ({(500, 501): False}, "certain", "each in its own descriptor table"),
    ],
)
def test_whether_two_processes_hold_two_descriptors_or_one_is_said(
    one_table: dict[tuple[int, int], bool], level: str, reason: str
) -> None:
    found = cause(view(HELD, holders={7: [500, 501]}, one_table=one_table))
    assert (found.rule, found.confidence.level) == ("inherited-descriptor", level)
    assert found.confidence.reason.startswith("two or more processes hold the same socket")
    assert found.confidence.reason.endswith(reason)


@pytest.mark.parametrize("doors", [1, 2])
def test_listeners_are_said_to_share_an_address_only_where_there_are_several(doors: int) -> None:
    door = socket(state=tcp.LISTEN, sport=4000, src="0.0.0.0", dst="0.0.0.0", dport=0, rqueue=3, wqueue=128)
    waiting = INFO | socket(state=tcp.CLOSE_WAIT, inode=0, cookie=9)
    listeners = [door | {"inode": 20 + k, "cookie": 20 + k} for k in range(doors)]
    v = view(waiting, *listeners, holders={20 + k: [500 + k] for k in range(doors)})
    found = cause(v)
    assert found.rule == "never-accepted"
    said = [e.says for e in found.evidence if e.column == "listener :4000"]
    assert len(said) == doors
    assert all(("2 listeners share the address" in says) is (doors == 2) for says in said)
    assert all(("share" in says) is (doors == 2) for says in said)


def test_the_lowest_rank_is_the_cause_in_whatever_order_rules_are_given() -> None:
    """Both are problems of that row: who passes nothing on says more than that it is half-closed."""
    rows, holders = relay(), {5: [9], 7: [9], 8: [9]}
    for rules in (catalogue.rules(), catalogue.rules()[::-1]):
        found = engine.diagnose(view(*rows, holders=holders), rules)
        assert {f.rule for f in found if f.primary} == {"relay-pair"}
        assert {f.rule for f in found if not f.primary} == {"close-wait-eof-read", "fin-wait2-held"}


@pytest.mark.parametrize(
    ("cells", "reason"),
    [
        ({"bytes_acked": 1}, "it is not known when data was last sent"),  # that may be the SYN
        ({"bytes_acked": 2}, "data was sent on 1 of 1 in the last 3 s"),
        ({"bytes_acked": 1, "data_segs_out": 1}, "data was sent on 1 of 1 in the last 3 s"),
    ],
)
def test_when_an_answer_was_last_sent_is_said_where_one_was_sent_at_all(
    cells: dict[str, Any], reason: str
) -> None:
    one = socket(state=tcp.CLOSE_WAIT, inode=7, cookie=1, shutdown=1, last_data_sent_ms=100)
    one |= {"last_data_recv_ms": 5000, "last_ack_recv_ms": 5000, "bytes_received": 9} | cells
    found = cause(view(one, holders=OWNED))
    assert found.rule == "close-wait-eof-read"
    assert found.confidence.reason.startswith(reason)


@pytest.mark.parametrize("first", [True, False])
def test_unread_bytes_at_the_other_end_are_worth_a_second_look_whichever_row_it_is(first: bool) -> None:
    near = HELD | {"state": tcp.FIN_WAIT1, "timer": 4, "snd_wnd": 0, "wqueue": 99, "backoff": 5, "retrans": 0}
    far = INFO | {"bytes_received": 100, "rqueue": 90, "cookie": 2, "inode": 8, "state": tcp.ESTABLISHED}
    far = socket(src="192.0.2.1", dst="10.0.0.1", sport=80, dport=4000) | far
    v = view(*((far, near) if first else (near, far)), holders={7: [5], 8: [6]})
    found = cause(v, int(first))
    assert (found.rule, found.confidence.level, found.confidence.look_again) == (
        "zero-window",
        "possible",
        True,
    )
    assert "the program behind it, on this machine, has unread bytes" in found.confidence.reason


@pytest.mark.parametrize(("second", "level"), [("10.0.0.9", "possible"), ("10.0.0.8", "likely")])
def test_one_address_that_several_namespaces_have_leaves_open_which_listener_is_meant(
    second: str, level: str
) -> None:
    """Two programs connect, each to an address of its own; one of these may be in two namespaces."""
    targets = ["10.0.0.7", "10.0.0.9"]
    spaces = {
        1: NamespaceView(1, island=1),
        2: NamespaceView(2, addresses=frozenset(map(pack_address, targets)), island=1),
        3: NamespaceView(3, addresses=frozenset({pack_address(second)}), island=1),
    }
    door = socket(state=tcp.LISTEN, src="0.0.0.0", dst="::", sport=80, dport=0, netns=2, rqueue=6, wqueue=5)
    opening = {"state": tcp.SYN_SENT, "timer": 1, "retrans": 3, "backoff": 3, "expires_ms": 3000}
    rows = [
        socket(**opening, inode=7 + k, cookie=1 + k, sport=5000 + k, dst=dst) for k, dst in enumerate(targets)
    ]
    found = cause(view(*rows, door | {"cookie": 9, "inode": 9}, namespaces=spaces))
    assert (found.rule, found.count, found.confidence.level) == ("syn-unanswered", 2, level)
