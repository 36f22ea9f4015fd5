"""What a FILTER makes of a diagnosis: also of findings without rows, and of what it cannot judge."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterable
from typing import Any, cast

import pytest
from msgspec.structs import replace

from finwait import session
from finwait.attribution.process import ProcessView
from finwait.cli import check
from finwait.diagnosis import catalogue, engine
from finwait.diagnosis.context import ViewContext
from finwait.diagnosis.view import HiddenDescriptor, NamespaceView, Options, View
from finwait.errors import FinwaitError, Gap
from finwait.report import json as json_report
from finwait.report import text
from finwait.session import Diagnosis, Snapshot
from finwait.table.filter import parse
from finwait.uapi import tcp
from tests.unit.diagnosis.test_rules import HELD, INFO
from tests.unit.diagnosis.views import socket, view

POD = "0b5a2f3c-1111-2222-3333-444455556666"
PROCESSES = {
    500: ProcessView(500, "leaky", uid=33, netns=1, cgroup=f"/kubepods/burstable/pod{POD}/abc123abc123"),
    501: ProcessView(501, "server", uid=0, netns=2),
}
SPACES = {1: NamespaceView(1, ("web",)), 2: NamespaceView(2, ("db",)), 3: NamespaceView(3, ("empty",))}
LEAK = tuple(HiddenDescriptor(500, 10 + k, 900 + k, 1) for k in range(9))
HALF = HELD | {"netns": 2, "cookie": 7}


class Machine:
    """A machine on which two processes run, and a third that holds nothing."""

    live = True

    def processes(self, which: Iterable[int]) -> dict[int, object]:
        return {pid: None for pid in which if pid in (500, 501, 502)}

    def devices(self, spaces: Iterable[int]) -> dict[tuple[int, int], str]:
        return {(space, 1): "lo" for space in spaces}


def looked(v: View) -> Diagnosis:
    shot = Snapshot(cast(Any, None), v.sockets, None, v, (), cast(Any, Machine()))
    return Diagnosis(shot, engine.diagnose(v, catalogue.rules()), ())


def scene(**more: Any) -> View:
    rows = (
        HALF,
        socket(state=tcp.TIME_WAIT, timer=3, sport=9, netns=1, cookie=8),
        socket(state=tcp.LISTEN, inode=5),
    )
    return view(*rows, holders={7: [501]}, processes=PROCESSES, namespaces=SPACES, hidden=LEAK, **more)


def narrowed(words: str, v: View | None = None) -> Diagnosis:
    whole = looked(scene() if v is None else v)
    context = ViewContext(whole.view, whole.findings, {0: "root", 33: "www-data"})
    return session.narrow(whole, parse(words, rules=catalogue.NAMES), context)


def rules(diagnosis: Diagnosis) -> set[str]:
    return {f.rule for f in diagnosis.findings}


@pytest.mark.parametrize(
    "words",
    [
        "pid = 500", "comm = leaky", "comm = l*", "user = 33", "user = www-data", "netns = 1", "netns = web",
        "rule = hidden-leak", "severity = problem", "pod = " + POD, "container = abc123", "held", "state close",
        "not pid = 501", "not state fin-wait-2", "pid = 500 and not comm = server", "pid = 500 or dport = :80",
        "rule = hidden-leak or dport = :443", "not ( pid = 501 and dport = :443 )", "state != fin-wait-2", "",
        "protocol = tcp", "uid = 33",
    ],
)  # fmt: skip
def test_a_leak_without_rows_is_told_where_the_filter_asks_for_it(words: str) -> None:
    found = narrowed(words)
    assert "hidden-leak" in rules(found)
    assert found.narrowed is not None
    assert "hidden-leak" not in {f.rule for f in found.narrowed.unjudged}


@pytest.mark.parametrize(
    "words",
    [
        "pid = 501", "comm != leaky", "user = root", "netns = db", "netns != 1", "rule = fin-wait2-held",
        "severity = healthy", "orphan", "state fin-wait-2", "rule != hidden-leak", "not rule = hidden-leak",
        "state fin-wait-2 and dport = :80", "pid = 501 and dport = :443", "also = hidden-leak", "variant = 3",
        "protocol = mptcp", f"pod != {POD} and held",
    ],
)  # fmt: skip
def test_and_not_where_it_does_not(words: str) -> None:
    found = narrowed(words)
    assert "hidden-leak" not in rules(found)
    assert found.narrowed is not None
    assert "hidden-leak" not in {f.rule for f in found.narrowed.unjudged}


@pytest.mark.parametrize(
    "words",
    [
        "dport = :80", "src 10.0.0.0/8", "pid = 500 and dport = :443", "rtt_us > 1ms", "age > 10m", "inode = 900",
        "not sport = :22", "pod = shop/web-0", "fwmark = 1", "cookie = 0x5", "dev lo", "cgroup = /",
    ],
)  # fmt: skip
def test_where_the_filter_asks_for_what_it_has_not_that_is_said(words: str) -> None:
    found = narrowed(words)
    assert found.narrowed is not None
    assert "hidden-leak" not in rules(found)
    assert [f.count for f in found.narrowed.unjudged if f.rule == "hidden-leak"] == [9]
    said = "".join(text.diagnosis(found.view, found.findings, (), "vm", narrowed=found.narrowed))
    assert "nothing is wrong" not in said
    assert "9 × descriptor  hidden-leak  pid 500 (leaky)" in said
    assert re.search(r"`finwait rule = \S*hidden-leak` shows them", said)
    body = json.loads("".join(json_report.diagnosis(found.view, found.findings, (), {}, found.narrowed)))
    assert "hidden-leak" in {f["rule"] for f in body["unjudged"]}
    lines = [
        json.loads(line)
        for line in "".join(
            json_report.diagnosis_lines(found.view, found.findings, (), found.narrowed)
        ).splitlines()
    ]
    assert ("Unjudged", "hidden-leak") in {(one["kind"], one.get("rule")) for one in lines}


def test_a_row_that_a_filter_can_neither_take_nor_leave_is_said() -> None:
    hidden_holder = view(HALF, processes=PROCESSES, namespaces=SPACES, unreadable=(501,))
    found = narrowed("pid = 501", hidden_holder)
    assert found.narrowed is not None
    assert (rules(found), [f.rule for f in found.narrowed.unjudged]) == (set(), ["fin-wait2-held"])
    other = narrowed("pid = 502", hidden_holder)
    assert other.narrowed is not None
    assert not other.narrowed.unjudged  # that process was inspected
    dead = socket(state=tcp.FIN_WAIT1, inode=7, timer=1, retrans=5, cookie=3, **INFO)
    old = narrowed("age > 10m", view(dead, holders={7: [501]}))
    assert old.narrowed is not None
    assert [f.rule for f in old.narrowed.unjudged] == ["fin-unanswered-held"]
    young = narrowed("age > 10m", view(HALF, holders={7: [501]}, namespaces=SPACES))
    assert young.narrowed is not None
    assert not young.narrowed.unjudged  # a minute for certain: not certainly older than ten


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ("netns = nosuch", "no network namespace `nosuch`"),
        ("netns = 77", "no network namespace 77"),
        ("pid = 999", "no process 999"),
        ("comm = nginx", "no process that holds a TCP socket is named `nginx`"),
        ("pid = 999 and rule = hidden-leak", "no process 999"),
        ("pid = 998,999", "no process 998; there is no process 999"),
        ("netns = nosuch or comm = ngin*", "`nosuch` among the inspected ones; no process"),
        ("state fin-wait-2 and not ( pid != 999 )", "no process 999"),
        ("user = nosuch", "no user that this machine can list is named `nosuch`"),
        ("dev = nosuch and state fin-wait-2", "no network interface is named `nosuch`"),
    ],
)
def test_a_filter_that_names_what_is_not_here_is_no_all_clear(words: str, why: str) -> None:
    with pytest.raises(FinwaitError, match="cannot match anything") as caught:
        narrowed(words)
    assert why in str(caught.value)
    assert caught.value.hint


@pytest.mark.parametrize("words", ["comm = nginx", "pod = web"])
def test_who_holds_only_sockets_that_were_counted_may_be_here(words: str) -> None:
    """Holders of none but ESTABLISHED sockets are not known where those were not listed."""
    outside = view(HALF, holders={7: [501]}, processes={501: replace(PROCESSES[501], cgroup="/")})
    found = parse(words)
    assert session.impossible(found, looked(outside).snapshot)
    assert not session.impossible(found, looked(replace(outside, established_skipped=3)).snapshot)


@pytest.mark.parametrize(
    "words",
    ["pid = 502", "netns = empty", "netns = 3", "rule = zero-window", "state last-ack", "pid != 999 and state last-ack",
     "dport = :9 and rule = zero-window"],
)  # fmt: skip
def test_a_filter_that_selects_nothing_now_says_just_that(words: str) -> None:
    found = narrowed(words)
    assert found.findings == ()
    said = text.headline(found.view, found.findings, "vm", (), found.narrowed)
    assert said == "vm: the FILTER selects no connection. Looked at: 2 connections in 3 network namespaces."


def test_totals_and_what_is_healthy_are_those_of_the_filter() -> None:
    whole, part = looked(scene()), narrowed("netns = web")
    text_of = {
        name: " ".join("".join(text.diagnosis(d.view, d.findings, (), "vm", narrowed=d.narrowed)).split())
        for name, d in (("whole", whole), ("part", part), ("other", narrowed("netns = db")))
    }
    assert "1 of 2 connections in 3 network namespaces does not finish closing" in text_of["whole"]
    assert "Healthy 1 × time-wait" in text_of["whole"]
    assert "found among 1 connection that the FILTER selects, in one network namespace." in text_of["part"]
    assert "Healthy 1 × time-wait" in text_of["part"]
    assert "1 of 1 connection that the FILTER selects, in one network namespace, does not" in text_of["other"]
    assert "time-wait" not in text_of["other"]
    body = json.loads("".join(json_report.diagnosis(part.view, part.findings, (), {}, part.narrowed)))
    assert body["filter"] == "netns = web"
    assert body["totals"] == {"connections": 1, "namespaces": 1}
    body = json.loads("".join(json_report.diagnosis(whole.view, whole.findings, (), {})))
    assert (body["filter"], body["totals"]) == (None, {"connections": 2, "namespaces": 3})


def test_names_of_users_are_not_known_in_a_recording() -> None:
    whole = looked(scene())
    with pytest.raises(ValueError, match="compare with a number"):
        session.narrow(whole, parse("user = www-data"), ViewContext(whole.view, whole.findings))
    assert session.narrow(whole, parse("user = root"), ViewContext(whole.view, whole.findings))


def test_what_is_known_of_a_row_in_part_or_not_at_all_excludes_nothing() -> None:
    bound = socket(state=tcp.FIN_WAIT2, inode=7, ifindex=3, cookie=1, cgroup_id=5, uid=33, **INFO)
    mini = socket(state=tcp.TIME_WAIT, timer=3, cookie=2)
    v = view(bound, mini, holders={7: [500]}, processes=PROCESSES)
    users = {0: "root", 33: "www-data"}
    context = ViewContext(v, (), users, lambda spaces: {(1, 3): "eth0"} if list(spaces) == [1] else {})
    blind = ViewContext(v, (), users)

    def found(words: str, known: ViewContext = context) -> list[bool]:
        return parse(words).mask(v.sockets, known).tolist()

    assert found("dev = eth0") == [True, False]
    assert found("dev != eth0") == [False, True]
    assert found("dev != eth0", blind) == [False, True]
    assert found("user != www-data") == [False, False]  # the kernel reports uid 0 of every minisocket
    assert found("user = root") == [False, False]
    assert found(f"pod = {POD}") == [True, False]
    assert found(f"pod != {POD}") == [False, False]
    assert found("pod != shop/web-0") == [False, False]  # its name is known to the API server alone
    assert found("container != web") == [False, False]
    assert found("container != fff") == [True, False]
    assert found("cgroup != /a") == [False, False]


OUTSIDE = {
    500: ProcessView(500, "leaky", uid=33, netns=1, cgroup="/system.slice/leaky.service"),
    501: ProcessView(501, "server", uid=0, netns=2, cgroup="/init.scope"),
}


def outside(**more: Any) -> View:
    return view(HALF, holders={7: [501]}, processes=OUTSIDE, namespaces=SPACES, hidden=LEAK, **more)


@pytest.mark.parametrize("kind", ["pod", "container"])
def test_a_leak_of_a_process_outside_of_containers_is_told_as_that(kind: str) -> None:
    assert "hidden-leak" in rules(narrowed(f"not {kind} = *", outside()))
    assert "hidden-leak" in rules(narrowed(f"{kind} != abc", outside()))
    assert "hidden-leak" not in rules(narrowed(f"{kind} = * or state fin-wait-2", outside()))


@pytest.mark.parametrize("words", ["pod = *", "container = abc", "container = web", "pod = shop/web-0"])
def test_where_nothing_is_in_a_container_a_filter_for_one_is_no_all_clear(words: str) -> None:
    with pytest.raises(FinwaitError, match="nothing that was inspected belongs to a"):
        narrowed(words, outside())


def test_what_was_not_swept_is_not_said_to_be_absent() -> None:
    part = view(HALF, holders={7: [501]}, processes=OUTSIDE, namespaces=SPACES, hidden_known=False)
    for words in ("comm = nginx", "container = abc", "pod = *"):
        assert narrowed(words, part).findings == ()


def first_line(*sockets: dict[str, Any], words: str = "", gaps: tuple[Gap, ...] = (), **more: Any) -> str:
    v = view(*sockets, namespaces=SPACES, processes=PROCESSES, **more)
    if not words:
        return text.headline(v, engine.diagnose(v, catalogue.rules()), "vm", gaps)
    found = narrowed(words, v)
    return text.headline(v, found.findings, "vm", gaps, found.narrowed)


def test_a_listener_is_not_counted_among_connections_that_do_not_finish_closing() -> None:
    full = socket(state=tcp.LISTEN, inode=5, rqueue=4, wqueue=3, sport=9, dport=0, cookie=9)
    alone = first_line(full, holders={5: [501]}, watched_ms=4000, earlier=[full])
    assert alone == "vm: 1 listener has a full accept queue."
    both = first_line(full, HALF, holders={5: [501], 7: [501]}, watched_ms=4000, earlier=[full, HALF])
    assert (
        "1 of 1 connection in 3 network namespaces does not finish closing; 1 listener has a full accept queue."
        in both
    )


def test_an_open_connection_is_not_said_to_be_closing() -> None:
    quiet = INFO | {"last_data_recv_ms": 60_000, "last_data_sent_ms": 60_000, "last_ack_recv_ms": 60_000}
    door = socket(state=tcp.LISTEN, inode=5, sport=4000, dport=0, cookie=9, wqueue=9)
    hung = [
        socket(state=tcp.ESTABLISHED, inode=20 + k, rqueue=5, dport=80 + k, cookie=20 + k, netns=1, **quiet)
        for k in range(3)
    ]
    held = {5: [501], **{20 + k: [501] for k in range(3)}}
    said = first_line(door, *hung, holders=held, watched_ms=4000, earlier=[door, *hung])
    assert said == "vm: 3 of 3 connections in 3 network namespaces are open and stuck."
    said = first_line(
        door, *hung, HALF, holders=held | {7: [501]}, watched_ms=4000, earlier=[door, *hung, HALF]
    )
    assert "4 of 4 connections in 3 network namespaces do not finish closing, or are open and stuck." in said


def test_beside_a_gap_nobody_says_that_nothing_is_stuck() -> None:
    gap = Gap("3 processes", "list their descriptors", "CAP_SYS_PTRACE")
    flood = [
        socket(state=tcp.TIME_WAIT, timer=3, sport=9, dport=k, netns=1, cookie=100 + k) for k in range(12)
    ]
    whole = first_line(*flood, options=Options(flood=10))
    assert "nothing is stuck among 12" in whole
    partly = first_line(*flood, options=Options(flood=10), gaps=(gap,))
    assert "nothing is stuck" not in partly
    assert "nothing stuck was seen among 12" in partly


def test_a_peer_that_was_not_found_may_be_where_nobody_looked() -> None:
    (found,) = (f for f in narrowed("rule = fin-wait2-held", outside()).findings if f.primary)
    assert "not on this machine" not in found.title


def test_check_says_that_a_filter_selects_nothing() -> None:
    asked = argparse.Namespace(
        recording=None, min_age=0, severity="problem", established="auto", filter=["state last-ack"]
    )

    def said(row_filter: str) -> str:
        asked.filter = [row_filter]
        diagnosis = narrowed(row_filter)
        return check._text(check._counted(asked, check._Looks(diagnosis, diagnosis)))

    assert said("state last-ack") == "the FILTER selects no connection"
    assert "nothing fails" in said("state time-wait")


@pytest.mark.parametrize(
    ("ports", "words", "selects"),
    [
        ((80,), "sport = :80", True),
        ((80,), "sport = :443", False),
        ((80,), "pid = 500 and not sport = :80", False),
        ((80, 443), "sport = :443", None),
        ((40001, 40002), "sport = :443", False),
        ((40001, 40002), "not sport = :443", True),
        ((80, 0), "sport = :443", None),
        ((80,), "dport = :443", None),
        ((80,), "sport = :443 and dport = :443", False),
    ],
)
def test_a_dead_descriptor_keeps_its_local_port_and_a_filter_asks_for_it(
    ports: tuple[int, ...], words: str, selects: bool | None
) -> None:
    hidden = tuple(replace(one, sport=ports[k % len(ports)]) for k, one in enumerate(LEAK))
    found = narrowed(words, replace(scene(), hidden=hidden))
    assert found.narrowed is not None
    assert ("hidden-leak" in rules(found)) == (selects is True)
    assert ("hidden-leak" in {f.rule for f in found.narrowed.unjudged}) == (selects is None)
