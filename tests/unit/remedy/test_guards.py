"""Guards and plans: what is never touched, what is left alone and why, and what a plan says of each step."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finwait.acting.identity import journal_target
from finwait.attribution.process import ProcessView
from finwait.diagnosis import catalogue, engine
from finwait.diagnosis.view import View
from finwait.errors import FinwaitError, Refused
from finwait.remedy import plan as plans
from finwait.remedy.guards import GUARDS, Abilities, Limits, guard_entry, guard_rows
from finwait.report.plan import plan_lines
from finwait.uapi import tcp
from tests.unit.diagnosis.test_rules import HELD, INFO
from tests.unit.diagnosis.views import socket, view

OWNED = {7: [500]}
APP = {500: ProcessView(500, "app")}


def make(v: View, limits: Limits | None = None, **more: Any) -> plans.Plan:
    findings = engine.diagnose(v, catalogue.rules())
    return plans.make(v, findings, np.ones(len(v), np.bool_), limits or Limits(), **more)


@pytest.mark.parametrize(
    ("one", "guard"),
    [
        (socket(state=tcp.LISTEN, inode=7, src="0.0.0.0", dst="0.0.0.0", dport=0), "listener"),
        (socket(state=tcp.FIN_WAIT2, timer=3, expires_ms=9000), "minisocket"),
        (HELD | {"state": tcp.LAST_ACK, "inode": 0, "timer": 1, "retrans": 3}, "silent-orphan"),
        (HELD | {"state": tcp.CLOSING, "inode": 0, "timer": 1, "retrans": 3}, "silent-orphan"),
        (HELD | {"state": tcp.ESTABLISHED}, "established"),
        (HELD | {"state": tcp.CLOSE_WAIT, "inode": 0, "rqueue": 6}, "accept-queue"),
    ],
)
def test_a_guard_speaks_and_can_be_overruled_unless_it_is_that_of_listeners(
    one: dict[str, Any], guard: str
) -> None:
    v = view(one, holders=OWNED, processes=APP)
    verdict = guard_rows(v, 0, Limits())
    assert verdict is not None
    assert verdict.guard == guard
    assert make(v).steps == ()
    overruled = guard_rows(v, 0, Limits(override=frozenset({guard})))
    assert (overruled is None) == (guard != "listener")


def test_a_connection_on_which_bytes_move_is_left_alone() -> None:
    v = view(HELD | {"bytes_received": 11}, holders=OWNED, earlier=[HELD], watched_ms=500)
    assert make(v).left[0].guard == "moving"


def test_a_young_connection_and_one_of_unknown_age_are_left_alone() -> None:
    limits = Limits(min_age_ms=120_000)
    assert make(view(HELD, holders=OWNED), limits).left[0].guard == "min-age"
    assert make(view(HELD | {"last_ack_recv_ms": 130_000}, holders=OWNED), limits).steps
    unknown = HELD | {"state": tcp.FIN_WAIT1, "timer": 1, "retrans": 4}
    assert make(view(unknown, holders=OWNED), limits).left[0].guard == "min-age"


@pytest.mark.parametrize("comm", ["kubelet", "sshd", "containerd"])
def test_what_holds_the_machine_up_is_left_alone(comm: str) -> None:
    v = view(HELD, holders=OWNED, processes={500: ProcessView(500, comm)})
    assert make(v).left[0].guard == "protected"


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"unreadable": (1,)}, "pid 1 could not be inspected (needs CAP_SYS_PTRACE"),
        ({"unreadable": (0,)}, "outside this pid namespace"),
        ({"searched": False}, "--no-owners"),
    ],
)
def test_a_holder_that_could_not_be_looked_for_is_not_nobody(how: dict[str, Any], said: str) -> None:
    v = view(HELD, HELD | {"inode": 8, "cookie": 2, "sport": 4001}, holders={7: [500]}, processes=APP, **how)
    plan = make(v)
    assert [step.inode for step in plan.steps] == [7]
    (left,) = plan.left
    assert left.guard == "holder-unknown"
    assert said in left.reason
    forced = make(v, Limits(override=frozenset({"holder-unknown"})))
    assert [(step.inode, step.holders_known) for step in forced.steps] == [(7, True), (8, False)]
    assert "holder unknown" in "".join(plan_lines(forced))
    assert "no process" not in "".join(plan_lines(forced))
    entry = guard_entry(v, (1,), Limits(override=frozenset({"live-end"})))
    assert entry is not None
    assert entry.guard == "holder-unknown"


def test_that_nobody_holds_it_is_said_when_every_process_was_looked_into() -> None:
    plan = make(view(HELD, processes=APP))
    assert plan.steps[0].holders_known
    assert "held by no process (all were inspected)" in "".join(plan_lines(plan))


ORPHAN_STATES = [tcp.FIN_WAIT1, tcp.FIN_WAIT2, tcp.LAST_ACK, tcp.CLOSING]


@pytest.mark.parametrize("state", ORPHAN_STATES)
@pytest.mark.parametrize(("harm", "kept"), [("", False), ("its timer is taken", True)])
def test_an_orphan_is_not_destroyed_where_that_takes_its_timer(state: int, harm: str, kept: bool) -> None:
    row = HELD | {"state": state, "inode": 0, "timer": 1, "retrans": 3}
    v = view(row, processes=APP)
    silent = frozenset({"silent-orphan"})
    plan = make(v, Limits(override=silent), force="destroy", can=Abilities(harms_orphans=harm))
    assert [one.guard for one in plan.left] == ["harmed-orphan"] * kept
    assert all(harm in one.reason for one in plan.left)
    allowed = Limits(override=silent | {"harmed-orphan"})
    assert len(make(v, allowed, force="destroy", can=Abilities(harms_orphans=harm)).steps) == 1


@pytest.mark.parametrize(
    "row",
    [
        HELD | {"state": tcp.LAST_ACK, "timer": 1},
        HELD | {"state": tcp.CLOSE_WAIT, "inode": 0},
        HELD | {"state": tcp.FIN_WAIT2, "inode": 0, "timer": 3},
    ],
    ids=["held", "queued", "minisocket"],
)
def test_what_is_no_orphan_is_not_kept_by_the_harm_to_orphans(row: dict[str, Any]) -> None:
    limits = Limits(override=frozenset({"minisocket", "accept-queue", "healthy"}))
    can = Abilities(harms_orphans="its timer is taken")
    assert make(view(row, holders=OWNED, processes=APP), limits, force="destroy", can=can).left == ()


def test_what_the_diagnosis_calls_healthy_is_left_alone() -> None:
    """`clear RULE` selects what the rule has found to be healthy, too: here a connection of the kernel's NFS client."""
    nfs = INFO | socket(state=tcp.ESTABLISHED, inode=9, cookie=9, dport=2049, last_ack_recv_ms=9000)
    v = view(HELD, nfs, processes=APP)
    findings = engine.diagnose(v, catalogue.rules())
    assert {f.severity for f in findings if f.primary and 1 in f.rows} == {"healthy"}
    plan = make(v, Limits(established_named=True))
    assert [step.inode for step in plan.steps] == [7]
    assert [(one.guard, "nothing is wrong with it" in one.reason) for one in plan.left] == [("healthy", True)]
    allowed = Limits(established_named=True, override=frozenset({"healthy"}))
    assert len(make(v, allowed).steps) == 2


def test_a_minisocket_is_left_to_its_time_where_the_kernel_cannot_destroy_it() -> None:
    v = view(HELD | {"state": tcp.FIN_WAIT2, "inode": 0, "timer": 3}, processes=APP)
    limits = Limits(override=frozenset({"minisocket"}))
    plan = make(v, limits, force="destroy", can=Abilities(spares_minisockets=True))
    assert [one.guard for one in plan.left] == ["means"]
    assert "EOPNOTSUPP" in plan.left[0].reason


@pytest.mark.parametrize("means", ["fin", "keepalive", "reset"])
def test_nothing_is_done_to_a_subflow_through_the_descriptor_of_its_connection(means: Any) -> None:
    subflow = HELD | {"state": tcp.ESTABLISHED, "ulp": b"mptcp"}
    v = view(subflow, holders=OWNED, processes=APP)
    plan = make(v, Limits(established_named=True), force=means)
    assert plan.steps == ()
    assert "a subflow of MPTCP" in plan.left[0].reason


def test_finwait_s_own_connections_and_those_of_pid_1_are_left_alone() -> None:
    assert (
        make(view(HELD, holders={7: [1]}, processes={1: ProcessView(1, "app")})).left[0].guard == "protected"
    )
    assert make(view(HELD, holders=OWNED, processes=APP), Limits(own_pid=500)).left[0].guard == "protected"


def many(n: int) -> list[dict[str, Any]]:
    return [HELD | {"inode": 100 + k, "cookie": 100 + k, "sport": 4000 + k} for k in range(n)]


def test_a_plan_that_is_too_large_can_be_read_and_is_not_permitted() -> None:
    v = view(*many(9), holders={100 + k: [500 + k] for k in range(9)})
    plan = make(v, Limits(max_connections=8))
    assert len(plan.steps) == 9
    with pytest.raises(Refused, match="9 connections, more than 8"):
        plans.permit(plan)
    plans.permit(make(v, Limits(max_connections=8, override=frozenset({"max"}))))


def test_most_of_what_a_process_holds_is_not_touched_at_once() -> None:
    v = view(*many(10), holders={100 + k: [500] for k in range(10)}, processes=APP)
    with pytest.raises(Refused, match="10 of the 10 connections of app"):
        plans.permit(make(v))
    assert make(v, Limits(share=1.0)).refused == ()
    few = view(*many(9), holders={100 + k: [500] for k in range(9)}, processes=APP)
    assert make(few).refused == ()  # of so few, all may be meant


@pytest.mark.parametrize(
    ("one", "means"),
    [
        (HELD, "destroy"),
        (HELD | {"state": tcp.CLOSE_WAIT, "shutdown": 1}, "fin"),
        (HELD | {"state": tcp.FIN_WAIT1, "timer": 1, "retrans": 3}, "user-timeout"),
        (HELD | {"state": tcp.FIN_WAIT1, "timer": 4, "snd_wnd": 0, "wqueue": 9}, "user-timeout"),
    ],
)
def test_the_gentlest_means_that_ends_it_is_chosen(one: dict[str, Any], means: str) -> None:
    (step,) = make(view(one, holders=OWNED, processes=APP)).steps
    assert step.means == means
    assert step.holders == ((500, 3, "app"),)


def test_without_a_holder_only_destroying_is_left() -> None:
    unknown = view(HELD | {"state": tcp.CLOSE_WAIT, "shutdown": 1}, unreadable=(1,))
    (step,) = make(unknown, Limits(override=frozenset({"holder-unknown"}))).steps
    assert step.means == "destroy"
    (left,) = make(view(HELD), force="keepalive").left
    assert left.guard == "means"


def test_what_the_peer_sees_is_that_of_the_destroy_matrix() -> None:
    sees = plans.peer_sees
    for state in (tcp.LAST_ACK, tcp.CLOSING, tcp.TIME_WAIT, tcp.SYN_SENT, tcp.SYN_RECV):
        assert sees(state, orphan=False, minisocket=False) == "nothing"
    assert sees(tcp.FIN_WAIT2, orphan=True, minisocket=True) == "nothing"
    assert sees(tcp.FIN_WAIT2, orphan=False, minisocket=False) == "reset"
    assert sees(tcp.FIN_WAIT1, orphan=True, minisocket=False) == "reset-if-path"
    assert sees(tcp.FIN_WAIT2, orphan=False, minisocket=False, nat_lost=True) == "nothing-through-nat"


def again(plan: plans.Plan, v: View, limits: Limits | None = None, **more: Any) -> plans.Plan:
    read = plans.decode(plans.encode(plan))
    found = engine.diagnose(v, catalogue.rules())
    return plans.again(read, v, found, limits or Limits(), can=more.pop("can", Abilities()), **more)


def test_a_plan_from_a_file_is_made_anew_from_what_is_seen_now() -> None:
    plan = make(view(*many(3), holders={100 + k: [500] for k in range(3)}, processes=APP))
    lied = msgspec.structs.replace(
        plan,
        steps=tuple(
            msgspec.structs.replace(
                step, holders=((7, 7, "\x1b[31mnobody"),), stays="\x1b[2J", note="\x1b[2J"
            )
            for step in plan.steps
        ),
        left=(plans.Left("\x1b[2J", "\x1b[2J", "\x1b[2J"),),
        advice=("\x1b[2J",),
    )
    now = view(*many(2), holders={100 + k: [600] for k in range(2)}, processes={600: ProcessView(600, "new")})
    fresh = again(lied, now)
    assert [step.gone for step in fresh.steps] == [False, False, True]
    assert {step.holders for step in fresh.steps[:2]} == {((600, 3, "new"),)}
    assert fresh.left == ()
    shown = "".join(plan_lines(fresh, whole=True))
    assert "\x1b" not in shown
    assert "held by new (pid 600)" in shown
    assert "1 connection of the plan has ended since it was made" in shown
    assert [step.bytes_received for step in fresh.steps] == [step.bytes_received for step in plan.steps]


def test_guards_are_asked_again_of_a_plan_from_a_file() -> None:
    """Who made it may have overruled them, or have left the holders out."""
    v = view(HELD, holders=OWNED, processes={500: ProcessView(500, "sshd")})
    forced = make(v, Limits(override=frozenset({"protected"})))
    hidden = msgspec.structs.replace(forced, steps=(msgspec.structs.replace(forced.steps[0], holders=()),))
    for plan in (forced, hidden):
        assert [one.guard for one in again(plan, v).left] == ["protected"]
    unread = view(HELD, unreadable=(1,))
    assert [one.guard for one in again(forced, unread).left] == ["holder-unknown"]
    orphan = view(HELD | {"inode": 0, "state": tcp.FIN_WAIT1, "timer": 1, "retrans": 3})
    plan = make(orphan, force="destroy")
    harm = Abilities(harms_orphans="its timer is taken")
    assert [one.guard for one in again(plan, orphan, can=harm).left] == ["harmed-orphan"]
    young = view(HELD, holders=OWNED, processes=APP)
    assert again(make(young), young, Limits(min_age_ms=10**9)).left == ()  # the file names each of them


def test_a_plan_that_calls_things_otherwise_is_refused_or_left_alone() -> None:
    v = view(HELD, holders=OWNED, processes=APP)
    (step,) = make(v).steps
    plan = make(v)

    def with_(**changed: Any) -> plans.Plan:
        return msgspec.structs.replace(plan, steps=(msgspec.structs.replace(step, **changed),))

    for changed, said in (
        ({"kind": "read-only"}, "`destroy` is destructive"),
        (
            {"peer_told": "nothing at all"},
            "the description of what the peer sees is not `a RST, once, not repeated`",
        ),
        ({"rule": "kind-to-peers"}, "an unknown rule"),
        ({"state": "\x1b[2J"}, r"`\\x1b\[2J` is not a state"),
        ({"src": "fe80::1%\x1b[2J", "family": 10}, r"`fe80::1%\\x1b\[2J` is not an address"),
        ({"src": "010.0.0.1"}, "is not an address"),
        ({"cookie": "\x1b[2J"}, "is not a cookie"),
        ({"inode": -1}, "inode -1: there is no such socket"),
        ({"inode": 2**63 - 1}, "there is no such socket"),
    ):
        with pytest.raises(FinwaitError, match=r"^plan:\d+: .*" + said):
            plans.decode(plans.encode(with_(**changed)), "plan")
    silent = with_(sees="nothing", peer_told="nothing: no packet is sent in this state")
    assert [one.guard for one in again(silent, v).left] == ["plan"]
    other = with_(dport=81)
    assert [one.guard for one in again(other, v).left] == ["plan"]


def test_what_a_file_says_of_causes_and_peers_is_never_shown() -> None:
    """The rule decides what the peer is said to see, so it is found out anew, with what was looked at now."""
    v = view(HELD, holders=OWNED, processes=APP)
    plan = make(v, force="destroy")
    (step,) = plan.steps
    lied = {
        "rule": "nat-entry-gone",
        "sees": "nothing-through-nat",
        "peer_told": "nothing: the RST cannot cross the translation that is gone",
        "selected": "10.9.9.9:1 → 10.9.9.8:2 FIN_WAIT2",
        "note": "safe",
    }
    both = msgspec.structs.replace(plan, steps=(msgspec.structs.replace(step, **lied),))
    assert [one.guard for one in again(both, v).left] == ["plan"]
    only = msgspec.structs.replace(
        plan, steps=(msgspec.structs.replace(step, rule="nat-entry-gone", note="safe"),)
    )
    (fresh,) = again(only, v).steps
    assert (fresh.rule, fresh.sees, fresh.note, fresh.selected) == (step.rule, "reset", "", "")
    (gone,) = again(only, view()).steps
    assert (gone.gone, gone.rule, gone.note) == (True, "", "")


def test_the_guards_healthy_and_moving_are_asked_of_a_plan_file_too() -> None:
    syn = socket(state=tcp.SYN_SENT, inode=7, timer=1, retrans=1, expires_ms=900, cookie=9)
    v = view(syn, holders=OWNED, processes=APP)
    plan = make(v, Limits(override=frozenset({"healthy"})), force="destroy")
    assert len(plan.steps) == 1
    direct = [one.guard for one in make(v, force="destroy").left]
    assert direct == ["healthy"]
    assert [one.guard for one in again(plan, v).left] == direct
    assert len(again(plan, v, Limits(override=frozenset({"healthy"}))).steps) == 1
    still = make(view(HELD, holders=OWNED, processes=APP))
    moving = view(HELD | {"bytes_received": 11}, holders=OWNED, processes=APP, earlier=[HELD], watched_ms=500)
    assert [one.guard for one in again(still, moving).left] == ["moving"]


def test_a_means_that_does_nothing_any_more_is_not_taken_from_a_plan_file() -> None:
    v = view(HELD | {"state": tcp.ESTABLISHED}, holders=OWNED, processes=APP)
    named = Limits(override=frozenset({"established", "healthy"}))
    plan = make(v, named, force="keepalive")
    assert len(plan.steps) == 1
    busy = view(
        HELD | {"state": tcp.ESTABLISHED, "timer": 1, "expires_ms": 200}, holders=OWNED, processes=APP
    )
    assert [one.guard for one in again(plan, busy, named).left] == ["means"]


@pytest.mark.parametrize(
    "comm", ["k3s-server", "k3s", "kubelite", "cri-dockerd", "rke2", "crio", "dockerd", "k0s", "buildkitd"]
)
def test_what_runs_the_containers_of_a_node_is_protected(comm: str) -> None:
    v = view(HELD, holders=OWNED, processes={500: ProcessView(500, comm, uid=0)})
    assert make(v).left[0].guard == "protected"


def test_a_program_that_merely_calls_itself_sshd_is_not_protected() -> None:
    """Any user may give a program that name; of one whose user is not known it is believed."""
    for uid, kept in ((0, True), (-1, True), (1000, False)):
        v = view(HELD, holders=OWNED, processes={500: ProcessView(500, "sshd", uid=uid)})
        assert [one.guard for one in make(v).left] == ["protected"] * kept


def test_what_could_not_be_looked_into_is_not_called_gone() -> None:
    v = view(HELD, holders=OWNED, processes=APP)
    fresh = again(make(v), view(), unseen={1})
    assert fresh.steps == ()
    assert [(one.guard, one.connection) for one in fresh.left] == [
        ("unseen", "10.0.0.1:4000 → 192.0.2.1:80 FIN_WAIT2")
    ]


def test_limits_of_the_whole_are_asked_again() -> None:
    v = view(*many(12), holders={100 + k: [500] for k in range(12)}, processes=APP)
    plan = make(v, Limits(max_connections=1000, share=1.0))
    assert plan.refused == ()
    assert {one.guard for one in again(plan, v, Limits(max_connections=11)).refused} == {"max", "share"}


def test_workers_of_one_program_are_one_group_and_a_long_plan_is_summarised() -> None:
    names = {500 + k: ProcessView(500 + k, "httpd") for k in range(60)}
    workers = make(view(*many(60), holders={100 + k: [500 + k] for k in range(60)}, processes=names))
    shown = plan_lines(workers)
    assert sum("held by httpd (60 processes)" in line for line in shown) == 1
    assert len(shown) < 80
    assert sum("192.0.2.1:80" in line for line in plan_lines(workers, whole=True)) == 60
    each = {500 + k: ProcessView(500 + k, f"p{k}") for k in range(60)}
    programs = make(view(*many(60), holders={100 + k: [500 + k] for k in range(60)}, processes=each))
    assert "… and 30 connections in 30 more groups" in "".join(plan_lines(programs))
    assert sum("192.0.2.1:80" in line for line in plan_lines(programs, whole=True)) == 60


def test_addresses_are_written_as_they_can_be_pasted() -> None:
    six = HELD | {"family": 10, "src": "::1", "dst": "2001:db8::1"}
    plan = make(view(six, six | {"inode": 8, "cookie": 5, "timer": 3}, holders={7: [500]}, processes=APP))
    assert plan.left[0].connection == "[::1]:4000 → [2001:db8::1]:80 FIN_WAIT2"
    assert "[::1]:4000 → [2001:db8::1]:80" in "".join(plan_lines(plan))
    assert journal_target(plan.steps[0])["connection"] == "[::1]:4000 [2001:db8::1]:80"


def test_a_plan_that_could_not_be_read_again_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = make(view(HELD, holders=OWNED, processes=APP))
    monkeypatch.setattr(plans, "_MOST_BYTES", 500)
    with pytest.raises(FinwaitError, match="a plan of 1 steps"):
        plans.encode(plan)


def test_reading_a_plan_takes_time_in_proportion_to_its_length(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step's line is looked for only when it is told: once, in the whole of the file."""
    plan = make(view(HELD, holders=OWNED, processes=APP))
    long = msgspec.structs.replace(plan, steps=plan.steps * 5000)
    calls: list[int] = []
    found = plans._line_of
    monkeypatch.setattr(plans, "_line_of", lambda data, path: calls.append(1) or found(data, path))  # type: ignore[func-returns-value]
    assert len(plans.decode(plans.encode(long)).steps) == 5000
    assert calls == []
    bad = msgspec.structs.replace(long, steps=(*long.steps, msgspec.structs.replace(plan.steps[0], kind="x")))
    with pytest.raises(FinwaitError, match=r":\d{5,}: "):
        plans.decode(plans.encode(bad))
    assert calls == [1]


def test_a_plan_is_read_back_as_it_was_written() -> None:
    plan = make(view(HELD, socket(state=tcp.FIN_WAIT2, timer=3), holders=OWNED), boot_id="b", now_unix_ns=5)
    assert plans.decode(plans.encode(plan)) == plan


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"{}", b'{"made_unix_ns":0,"boot_id":"","steps":[{}]}', b"\xff"]
)
def test_what_is_no_plan_is_told_so(data: bytes) -> None:
    with pytest.raises(FinwaitError, match="not a plan"):
        plans.decode(data)


def test_a_plan_that_somebody_made_to_name_a_listener_is_refused() -> None:
    plan = make(view(HELD, holders=OWNED))
    forged = plans.encode(plan).replace(b'"FIN_WAIT2"', b'"LISTEN"')
    with pytest.raises(Refused, match="listener"):
        plans.decode(forged)


STATES = st.sampled_from([1, 2, 3, 4, 5, 6, 8, 9, 10, 11])
SOCKETS = st.lists(
    st.builds(
        lambda state, inode, timer, shutdown, rqueue, cookie: INFO
        | socket(state=state, inode=inode, timer=timer, shutdown=shutdown, rqueue=rqueue, cookie=cookie, sport=cookie),
        STATES, st.integers(0, 5), st.integers(0, 4), st.integers(0, 3), st.integers(0, 3), st.integers(1, 9),
    ),
    max_size=12,
)  # fmt: skip


@given(
    SOCKETS, st.sets(st.sampled_from([g for g in GUARDS if g not in ("max", "share")])), st.integers(0, 12)
)
def test_no_plan_touches_a_listener_another_cookie_or_more_than_allowed(
    sockets: list[dict[str, Any]], override: set[str], most: int
) -> None:
    v = view(*sockets, holders={k: [500 + k] for k in range(1, 6)})
    limits = Limits(max_connections=most, override=frozenset(override))
    plan = make(v, limits)
    assert len(plan.steps) <= most or "max" in {one.guard for one in plan.refused}
    cookies = {one["cookie"]: set() for one in sockets}  # type: ignore[var-annotated]
    for one in sockets:
        cookies[one["cookie"]].add(tcp.STATES[one["state"]])
    for step in plan.steps:
        assert step.state != "LISTEN"
        assert step.state in cookies[int(step.cookie, 16)]
    assert len({step.cookie for step in plan.steps}) == len(plan.steps)


@pytest.mark.parametrize("means", ["destroy", "reset", "fin"])
def test_a_plan_file_does_not_agree_to_the_end_of_established_connections(means: Any) -> None:
    """Somebody may have pasted the step in: who applies the plan says so, as for a protected program."""
    v = view(HELD | {"state": tcp.ESTABLISHED}, holders=OWNED, processes=APP)
    plan = make(v, Limits(established_named=True), force=means)
    assert len(plan.steps) == 1
    fresh = again(plan, v, Limits(established_named=True))
    assert fresh.steps == ()
    assert [one.guard for one in fresh.left] == ["established"]
    assert "--override established" in fresh.left[0].reason
    assert len(again(plan, v, Limits(override=frozenset({"established"}))).steps) == 1


def test_what_is_too_young_is_told_when_it_will_be_old_enough() -> None:
    aged = HELD | {"last_ack_recv_ms": 4200}
    plan = make(view(aged, holders=OWNED, processes=APP), Limits(min_age_ms=10_000))
    (left,) = plan.left
    assert (left.guard, left.wait_ms) == ("min-age", 5800)
    said = " ".join("".join(plan_lines(plan)).split())
    assert "it is old enough in 6.0 s: run the same command again then" in said
    assert "`--override min-age` overrules that guard" in said
    assert plans.decode(plans.encode(plan)).left == plan.left


def test_of_an_unknown_age_two_looks_tell() -> None:
    ageless = {k: v for k, v in HELD.items() if not k.endswith("_ms")}
    plan = make(view(ageless, holders=OWNED, processes=APP), Limits(min_age_ms=10_000))
    assert [(one.guard, one.wait_ms) for one in plan.left] == [("min-age", 0)]
    said = " ".join("".join(plan_lines(plan)).split())
    assert "`--for` with the duration of `--min-age` looks twice" in said
    assert "old enough" not in said
