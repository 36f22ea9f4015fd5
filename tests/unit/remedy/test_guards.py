"""Guards and plans: what is never touched, what is left alone and why, and what a plan says of each step."""

from __future__ import annotations

import re
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from finwait.acting.identity import journal_target
from finwait.attribution.owners import HolderRows
from finwait.attribution.process import ProcessView
from finwait.diagnosis import catalogue, engine
from finwait.diagnosis.view import NamespaceView, View
from finwait.errors import FinwaitError, Refused
from finwait.remedy import making, plan_file
from finwait.remedy import plan as plans
from finwait.remedy.guards import GUARDS, PROTECTED, Abilities, Limits, guard_entry, guard_rows
from finwait.remedy.steps import peer_sees
from finwait.report import plan as report_plan
from finwait.report.plan import plan_json, plan_lines
from finwait.uapi import tcp
from tests.unit.diagnosis.test_rules import HELD, INFO
from tests.unit.diagnosis.views import socket, view

OWNED = {7: [500]}
APP = {500: ProcessView(500, "app")}


def make(v: View, limits: Limits | None = None, **more: Any) -> plans.Plan:
    findings = engine.diagnose(v, catalogue.rules())
    return making.make(v, findings, np.ones(len(v), np.bool_), limits or Limits(), **more)


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
    assert all(len(line) <= 100 for line in plan_lines(forced))
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
        (
            HELD
            | {"state": tcp.FIN_WAIT1, "timer": 4, "snd_wnd": 0, "wqueue": 9, "last_data_sent_ms": 600_000},
            "user-timeout",
        ),
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
    sees = peer_sees
    for state in (tcp.LAST_ACK, tcp.CLOSING, tcp.TIME_WAIT, tcp.SYN_SENT, tcp.SYN_RECV):
        assert sees(state, orphan=False, minisocket=False) == "nothing"
    assert sees(tcp.FIN_WAIT2, orphan=True, minisocket=True) == "nothing"
    assert sees(tcp.FIN_WAIT2, orphan=False, minisocket=False) == "reset"
    assert sees(tcp.FIN_WAIT1, orphan=True, minisocket=False) == "reset-if-path"
    assert sees(tcp.FIN_WAIT2, orphan=False, minisocket=False, nat_lost=True) == "nothing-through-nat"


def again(plan: plans.Plan, v: View, limits: Limits | None = None, **more: Any) -> plans.Plan:
    read = plan_file.decode(plan_json(plan))
    found = engine.diagnose(v, catalogue.rules())
    return making.again(read, v, found, limits or Limits(), can=more.pop("can", Abilities()), **more)


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
        left=(plans.Left(making._end_of(plan.steps[0]), "\x1b[2J", "\x1b[2J"),),
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
            plan_file.decode(plan_json(with_(**changed)), "plan")
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
        "selected": plans.End(1, 6, 2, "10.9.9.9", 1, "10.9.9.8", 2, "FIN_WAIT2", "0x7"),
        "note": "safe",
    }
    both = msgspec.structs.replace(plan, steps=(msgspec.structs.replace(step, **lied),))
    assert [one.guard for one in again(both, v).left] == ["plan"]
    only = msgspec.structs.replace(
        plan, steps=(msgspec.structs.replace(step, rule="nat-entry-gone", note="safe"),)
    )
    (fresh,) = again(only, v).steps
    assert (fresh.rule, fresh.sees, fresh.note, fresh.selected) == (step.rule, "reset", "", None)
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


NODE = """
    systemd init sshd sshd-session dropbear tailscaled kubelet kubelite k3s k3s-server k3s-agent k0s rke2 hyperkube
    kube-apiserver kube-controller-manager kube-scheduler kube-proxy etcd containerd containerd-shim
    containerd-shim-runc-v2 dockerd docker-proxy cri-dockerd buildkitd crio conmon podman runc crun lxcfs lxd incusd
    finwait finwait-relay
"""


@pytest.mark.parametrize("name", NODE.split())
def test_every_program_that_a_node_depends_on_is_protected_by_what_the_kernel_keeps_of_its_name(
    name: str,
) -> None:
    for comm in (name, name[:15]):
        v = view(HELD, holders=OWNED, processes={500: ProcessView(500, comm, uid=0)})
        (left,) = make(v).left
        assert (left.guard, f"held by {comm} (pid 500)" in left.reason) == ("protected", True)


def test_the_guard_knows_no_other_program() -> None:
    assert {name[:15] for name in PROTECTED} == {name[:15] for name in NODE.split()}
    for comm in ("sshd2", "my-kubelet", "nginx", ""):
        v = view(HELD, holders=OWNED, processes={500: ProcessView(500, comm, uid=0)})
        assert len(make(v).steps) == 1


def test_any_holder_can_be_the_protected_one() -> None:
    processes = {500: ProcessView(500, "nginx", uid=33), 501: ProcessView(501, "containerd-shim", uid=0)}
    v = view(HELD, holders={7: [500, 501]}, processes=processes)
    assert make(v).left[0].guard == "protected"


@pytest.mark.parametrize("uid", [0, -1, 65534])
def test_a_name_is_believed_of_root_of_an_unknown_user_and_of_one_without_a_number_here(uid: int) -> None:
    v = view(HELD, holders=OWNED, processes={500: ProcessView(500, "dockerd", uid=uid)})
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
    monkeypatch.setattr(report_plan, "_MOST_BYTES", 500)
    with pytest.raises(FinwaitError, match="a plan of 1 steps"):
        plan_json(plan)


def test_reading_a_plan_takes_time_in_proportion_to_its_length(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step's line is looked for only when it is told: once, in the whole of the file."""
    plan = make(view(HELD, holders=OWNED, processes=APP))
    step = plan.steps[0]
    long = msgspec.structs.replace(
        plan, steps=tuple(msgspec.structs.replace(step, cookie=f"{n:#x}") for n in range(1, 5001))
    )
    calls: list[int] = []
    found = plan_file._line_of
    monkeypatch.setattr(plan_file, "_line_of", lambda data, path: calls.append(1) or found(data, path))  # type: ignore[func-returns-value]
    assert len(plan_file.decode(plan_json(long)).steps) == 5000
    assert calls == []
    bad = msgspec.structs.replace(long, steps=(*long.steps, msgspec.structs.replace(plan.steps[0], kind="x")))
    with pytest.raises(FinwaitError, match=r":\d{5,}: "):
        plan_file.decode(plan_json(bad))
    assert calls == [1]


def test_a_plan_is_read_back_as_it_was_written() -> None:
    plan = make(view(HELD, socket(state=tcp.FIN_WAIT2, timer=3), holders=OWNED), boot_id="b", now_unix_ns=5)
    steps = tuple(
        msgspec.structs.replace(step, cost=None) for step in plan.steps
    )  # that is of the look alone
    assert plan_file.decode(plan_json(plan)) == msgspec.structs.replace(plan, steps=steps)


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"{}", b'{"made_unix_ns":0,"boot_id":"","steps":[{}]}', b"\xff"]
)
def test_what_is_no_plan_is_told_so(data: bytes) -> None:
    with pytest.raises(FinwaitError, match="not a plan"):
        plan_file.decode(data)


def test_a_plan_that_somebody_made_to_name_a_listener_is_refused() -> None:
    plan = make(view(HELD, holders=OWNED))
    forged = plan_json(plan).replace(b'"FIN_WAIT2"', b'"LISTEN"')
    with pytest.raises(Refused, match="listener"):
        plan_file.decode(forged)


@pytest.mark.parametrize("means", ["destroy", "reset"])
def test_a_plan_that_names_a_connection_twice_is_refused(means: Any) -> None:
    """It would be counted twice; with another means it would be acted upon twice."""
    plan = make(view(HELD, holders=OWNED))
    step = plan.steps[0]
    again = msgspec.structs.replace(step, means=means, cookie=step.cookie.upper().replace("X", "x"))
    twice = plan_json(msgspec.structs.replace(plan, steps=(step, again)))
    with pytest.raises(FinwaitError, match=r"plan\.json:\d+: names a connection a second time, cookie 0x"):
        plan_file.decode(twice, "plan.json")


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
    assert plan_file.decode(plan_json(plan)).left == plan.left


def test_of_an_unknown_age_two_looks_tell() -> None:
    ageless = {k: v for k, v in HELD.items() if not k.endswith("_ms")}
    plan = make(view(ageless, holders=OWNED, processes=APP), Limits(min_age_ms=10_000))
    assert [(one.guard, one.wait_ms) for one in plan.left] == [("min-age", 0)]
    said = " ".join("".join(plan_lines(plan)).split())
    assert "`--for` with the duration of `--min-age` watches that long" in said
    assert "old enough in" not in said


STUCK = HELD | {"state": tcp.FIN_WAIT1, "inode": 0, "timer": 4, "snd_wnd": 0, "wqueue": 9, "backoff": 9}


@pytest.mark.parametrize(
    ("one", "why"),
    [
        (HELD | {"timer": 2, "expires_ms": 3000, "last_ack_recv_ms": 1000}, "keepalive probe sets the clock"),
        (STUCK | {"last_data_sent_ms": 600_000}, "only watching it tells its age"),
    ],
    ids=["its keepalive is answered", "its window is shut"],
)
@pytest.mark.parametrize("watched_ms", [0, 4000])
def test_nobody_is_told_to_wait_for_an_age_that_waiting_does_not_show(
    one: dict[str, Any], why: str, watched_ms: int
) -> None:
    """However often the command is run, it knows no more: but watching for so long, it does."""

    def said(watched: int) -> str:
        v = view(one, holders=OWNED, processes=APP, earlier=[one], watched_ms=watched)
        plan = make(v, Limits(min_age_ms=10_000, override=frozenset({"slow-reader"})))
        assert all(entry.wait_ms == 0 for entry in plan.left)
        return " ".join("".join(plan_lines(plan)).split())

    text = said(watched_ms)
    assert why in text
    assert "old enough in" not in text
    assert "`--for` with the duration of `--min-age`" in text
    assert "by guard `min-age`" not in said(10_500)


def test_what_comes_to_be_old_enough_before_its_next_probe_is_told_when() -> None:
    one = HELD | {"timer": 2, "expires_ms": 60_000, "last_ack_recv_ms": 4000}
    (left,) = make(view(one, holders=OWNED, processes=APP), Limits(min_age_ms=10_000)).left
    assert left.wait_ms == 6000


def test_the_age_that_retransmissions_tell_grows_in_steps_and_is_waited_for_as_long() -> None:
    """Told are waits that are over, each twice the one before: 10 s are known when up to 20 s have passed."""
    one = HELD | {
        "state": tcp.FIN_WAIT1,
        "timer": 1,
        "wqueue": 1,
        "retrans": 2,
        "backoff": 2,
        "rto_us": 800_000,
    }
    v = view(one, holders=OWNED, processes=APP)
    assert v.at_least_ms[0] == 600
    assert v.clock_shows(np.array([0]), 10_000).tolist() == [19_600]


def test_what_may_be_a_slow_download_is_left_alone_unless_that_is_overruled() -> None:
    slow = HELD | {
        "state": tcp.FIN_WAIT1, "timer": 4, "snd_wnd": 0, "wqueue": 9, "backoff": 4, "last_data_sent_ms": 9000,
    }  # fmt: skip
    left = make(view(slow, holders=OWNED, processes=APP)).left
    assert [one.guard for one in left] == ["slow-reader"]
    anyway = Limits(override=frozenset({"slow-reader"}))
    (step,) = make(view(slow, holders=OWNED, processes=APP), anyway).steps
    assert step.rule == "zero-window"
    stuck = slow | {"last_data_sent_ms": 600_000}
    assert not make(view(stuck, holders=OWNED, processes=APP)).left


# ── the other end ────────────────────────────────────────────────────────────────────────────────────────

PEER = HELD | {
    "state": tcp.CLOSE_WAIT, "shutdown": 1, "inode": 8, "cookie": 2, "src": "192.0.2.1", "sport": 80, "dst": "10.0.0.1",
    "dport": 4000,
}  # fmt: skip
BOTH = {7: [500], 8: [600]}


def two(comm: str = "peer", peer: dict[str, Any] | None = None, **how: Any) -> View:
    processes = APP | {600: ProcessView(600, comm)}
    return view(HELD, PEER | (peer or {}), holders=how.pop("holders", BOTH), processes=processes, **how)


def first(v: View, limits: Limits | None = None, **more: Any) -> plans.Plan:
    """A plan for the end in row 0 alone."""
    findings = engine.diagnose(v, catalogue.rules())
    return making.make(v, findings, np.arange(len(v)) == 0, limits or Limits(), **more)


_MET = HELD | {"bytes_received": 20}
SENDING_PEER = view(
    _MET, PEER | {"bytes_acked": 20}, earlier=[_MET, PEER | {"bytes_acked": 10}], watched_ms=500, holders=BOTH,
    processes=APP | {600: ProcessView(600, "peer")},
)  # fmt: skip
KEPT_THERE: list[tuple[str, View, Limits]] = [
    ("protected", two("sshd"), Limits()),
    ("protected", two(), Limits(own_pid=600)),
    ("min-age", two(peer={"last_ack_recv_ms": 3000, "last_data_recv_ms": 3000}), Limits(min_age_ms=10_000)),
    ("moving", SENDING_PEER, Limits()),
    ("holder-unknown", two(holders={7: [500]}, unreadable=(1,)), Limits()),
    ("accept-queue", two(peer={"inode": 0, "rqueue": 6}, holders={7: [500]}), Limits()),
]


@pytest.mark.parametrize("force", [None, "destroy", "reset"])
@pytest.mark.parametrize(
    ("guard", "v", "limits"), KEPT_THERE, ids=[f"{g}-{k}" for k, (g, _, _) in enumerate(KEPT_THERE)]
)
def test_a_guard_of_the_other_end_keeps_the_connection_also_from_a_reset(
    guard: str, v: View, limits: Limits, force: Any
) -> None:
    """That the gentle means is not allowed there is no reason to take a harder one here."""
    assert int(v.other[0]) == 1
    assert guard_rows(v, 0, limits) is None
    plan = first(v, limits, force=force)
    assert plan.steps == ()
    (left,) = plan.left
    assert left.guard == guard
    assert left.reason.startswith("its other end, in CLOSE_WAIT on this machine: ")
    assert first(v, replace(limits, override=frozenset({guard})), force=force).steps


def test_a_half_close_whose_other_end_is_being_read_is_healthy_and_left_alone() -> None:
    v = two(peer={"rqueue": 1}, earlier=[HELD, PEER | {"rqueue": 9}], watched_ms=500)
    assert [f.rule for f in engine.diagnose(v, catalogue.rules()) if f.primary and 0 in f.rows] == [
        "fin-wait2-streaming"
    ]
    plan = first(v)
    assert plan.steps == ()
    assert [left.guard for left in plan.left] == ["healthy"]


def test_a_program_that_is_not_protected_at_the_other_end_keeps_nothing() -> None:
    (step,) = first(two()).steps
    assert (step.means, step.sport) == ("fin", 80)
    assert [one.means for one in first(two(), force="destroy").steps] == ["destroy"]


def test_a_descriptor_that_may_not_be_borrowed_there_is_no_reason_for_a_reset_from_here() -> None:
    (left,) = first(two(), can=Abilities(no_borrow={600: "pid 600 may not be looked into"})).left
    assert left.guard == "means"
    assert "has to come from its other end" in left.reason
    assert "pid 600 may not be looked into; `--with destroy` would end it" in left.reason
    assert first(two(), can=Abilities(no_borrow={600: "no"}), force="destroy").steps


def test_what_does_not_hurt_a_protected_program_at_the_other_end_is_done() -> None:
    """It sent its FIN and waits for ours: that is no act on it. Nor is a probe, which it answers."""
    waiting = view(
        PEER, HELD, holders=BOTH, processes={500: ProcessView(500, "sshd"), 600: ProcessView(600, "app")}
    )
    assert [one.means for one in first(waiting).steps] == ["fin"]
    assert [one.guard for one in first(waiting, force="destroy").left] == ["protected"]
    open_ = [{"state": tcp.ESTABLISHED, "shutdown": 0}] * 2
    live = view(PEER | open_[0], HELD | open_[1], holders=BOTH, processes=dict(waiting.processes))
    named = Limits(established_named=True)
    assert [one.means for one in first(live, named, force="keepalive").steps] == ["keepalive"]
    for means in ("fin", "reset", "destroy"):
        assert [one.guard for one in first(live, named, force=means).left] == ["protected"]


def test_a_minisocket_at_the_other_end_has_no_program_that_could_be_hurt() -> None:
    gone = HELD | {"timer": 3, "inode": 0, "expires_ms": 9000}
    v = view(PEER, gone, holders={8: [600]}, processes={600: ProcessView(600, "app")}, unreadable=(1,))
    assert first(v, Limits(min_age_ms=1), force="destroy").steps


@pytest.mark.parametrize("means", ["destroy", "reset"])
def test_the_other_end_is_asked_again_of_a_plan_from_a_file(means: Any) -> None:
    plan = first(two(), force=means)
    assert again(plan, two()).steps
    assert [one.guard for one in again(plan, two("sshd")).left] == ["protected"]
    assert again(plan, two("sshd"), Limits(override=frozenset({"protected"}))).steps
    from_there = first(two())
    assert again(from_there, two()).steps
    ours = view(
        HELD, PEER, holders=BOTH, processes={500: ProcessView(500, "sshd"), 600: ProcessView(600, "app")}
    )
    assert [one.guard for one in again(from_there, ours).left] == ["protected"]  # the end that was selected


def test_what_may_be_the_other_end_counts_too() -> None:
    v = two("sshd")
    v = replace(v, other=np.array([-1, -1]), other_possible=np.array([1, 0]))
    (left,) = first(v, force="destroy").left
    assert left.guard == "protected"
    assert left.reason.startswith("what may be its other end, in CLOSE_WAIT on this machine: held by sshd")


def test_of_an_orphan_whose_timer_gives_nothing_up_it_is_not_said_that_it_has_none() -> None:
    probing = HELD | {
        "state": tcp.LAST_ACK,
        "inode": 0,
        "timer": 4,
        "retrans": 0,
        "snd_wnd": 1500,
        "wqueue": 9,
    }
    few = {
        1: NamespaceView(1, sysctls={"ipv4/tcp_retries2": "5"})
    }  # fewer than an orphan has: answers restart them
    for cells, said in (
        (probing, "its timer gives nothing up"),
        (
            probing | {"retrans": 1, "snd_wnd": 0, "backoff": 3},
            "its timer gives up only if the peer answers no more",
        ),
        (probing | {"timer": 0}, "it has no timer to end it"),
    ):
        (left,) = make(view(cells, processes=APP, namespaces=few)).left
        assert said in left.reason


def test_bytes_of_a_connection_of_which_both_ends_are_in_the_plan_are_counted_once() -> None:
    one = HELD | {"state": tcp.ESTABLISHED, "wqueue": 1000, "cookie": 1}
    far = socket(
        state=tcp.ESTABLISHED,
        src="192.0.2.1",
        dst="10.0.0.1",
        sport=80,
        dport=4000,
        inode=8,
        cookie=2,
        wqueue=500,
    )
    v = view(one, far, holders={7: [500], 8: [501]}, processes=APP)
    limits = Limits(override=frozenset({"established", "share", "moving", "healthy", "slow-reader"}))
    for rows, told in (((0, 1), 1500), ((0,), 1500), ((1,), 1500)):
        mask = np.isin(np.arange(2), rows)
        steps = making.make(v, (), mask, limits, force="destroy").steps
        text = " ".join("".join(plan_lines(plans.Plan(0, "", steps))).split())
        assert len(steps) == len(rows)
        found = [int(n.replace(",", "")) for n in re.findall(r"at most ([\d,]+) bytes", text)]
        assert sum(found) == told, text


def test_a_half_close_whose_answer_may_still_come_is_left_alone_for_long() -> None:
    """Its end would cut the answer off, and SIGPIPE end the program that writes it."""
    limits = Limits(min_age_ms=10_000, answer_ms=600_000)
    clocks = ("last_ack_recv_ms", "last_data_recv_ms", "last_data_sent_ms")
    far = socket(
        state=tcp.CLOSE_WAIT,
        src="192.0.2.1",
        dst="10.0.0.1",
        sport=80,
        dport=4000,
        inode=8,
        cookie=2,
        shutdown=1,
    )
    for quiet, guard in ((60_000, "answer"), (700_000, "")):
        rows = [row | dict.fromkeys(clocks, quiet) for row in (HELD, far)]
        v = view(*rows, holders={7: [500], 8: [501]}, processes=APP)
        for row in (0, 1):
            verdict = guard_rows(v, row, limits)
            assert (verdict.guard if verdict else "") == guard
            assert guard_rows(v, row, Limits(min_age_ms=10_000)) is None
            assert guard_rows(v, row, replace(limits, override=frozenset({"answer"}))) is None
    alone = view(HELD | {"state": tcp.FIN_WAIT1}, holders=OWNED, processes=APP)
    assert guard_rows(alone, 0, Limits(answer_ms=600_000)) is None  # nothing is owed to it yet


def both_ends(n: int, **more: Any) -> View:
    """N connections of one server, half-closed by it, each with a client process of its own."""
    rows: list[dict[str, Any]] = []
    holders: dict[int, list[int]] = {}
    processes = {500: ProcessView(500, "app", sigpipe="spares")}
    for k in range(n):
        near = HELD | {"inode": 10 + k, "cookie": 10 + k, "sport": 4000 + k, "dst": "10.0.0.1", "dport": 80}
        far = HELD | {
            "inode": 50 + k, "cookie": 50 + k, "src": "10.0.0.1", "sport": 80, "dst": near["src"],
            "dport": 4000 + k, "state": tcp.CLOSE_WAIT,
        }  # fmt: skip
        rows += [near, far]
        holders |= {10 + k: [500], 50 + k: [600 + k]}
        processes[600 + k] = ProcessView(600 + k, "client", sigpipe="kills" if k else "unknown")
    return view(*rows, holders=holders, processes=processes, **more)


def destroyed(v: View) -> str:
    rows = v.sockets.state == tcp.FIN_WAIT2
    limits = Limits(override=frozenset(GUARDS), share=1.0)
    return " ".join("".join(plan_lines(making.make(v, (), rows, limits, force="destroy"))).split())


def test_every_kind_of_program_that_gets_an_error_is_named_and_the_others_are_counted() -> None:
    shown = destroyed(both_ends(7))
    assert (
        "the other end: client (pid 601), client (pid 602), client (pid 603) and 3 more programs: reads give what has "
        "arrived, then the end of file; the next write gets EPIPE, and SIGPIPE kills the program"
    ) in shown
    assert "client (pid 600): " in shown
    assert "EPIPE, and whether SIGPIPE kills the program is not known" in shown
    assert (
        "this end: app (pid 500) ×7: a write, or a read once what has arrived is read, gets ECONNABORTED; a write "
        "after that EPIPE, and SIGPIPE does not kill the program"
    ) in shown


def test_the_share_is_said_of_every_process_and_only_where_all_its_connections_were_looked_at() -> None:
    v = both_ends(5)
    assert "share: 5 of the 5 connections that pid 500 holds" in destroyed(v)
    several = replace(v, sockets=v.sockets, holders=view_holders_swapped(v))
    assert "pid 601" in destroyed(several)
    assert "and of 2 more processes" in destroyed(several)
    assert "share" not in destroyed(replace(v, whole=False))
    assert "share" not in destroyed(replace(v, all_entered=False))


def view_holders_swapped(v: View) -> HolderRows:
    """The holders of each connection's two ends, exchanged."""
    order = np.arange(len(v)).reshape(-1, 2)[:, ::-1].ravel()
    return replace(v.holders, start=v.holders.start[order], count=v.holders.count[order])


@pytest.mark.parametrize("whole", [True, False])
def test_the_share_guard_says_what_it_counts_and_refuses_rather_than_not(whole: bool) -> None:
    v = replace(both_ends(12), whole=whole)
    plan = making.make(
        v,
        (),
        v.sockets.state == tcp.FIN_WAIT2,
        Limits(override=frozenset(GUARDS) - {"share"}),
        force="destroy",
    )
    (refusal,) = plan.refused
    assert ("that were looked at" in refusal.reason) == (not whole)


@pytest.mark.parametrize("width", [40, 60, 98])
def test_a_plan_is_no_wider_than_the_terminal(width: int) -> None:
    rows = [HELD | {"inode": 7 + k, "cookie": 1 + k, "sport": 4000 + k} for k in range(30)]
    young = HELD | {"inode": 99, "cookie": 99, "sport": 5000, "last_ack_recv_ms": 1, "last_data_recv_ms": 1}
    holders = {row["inode"]: [500] for row in (*rows, young)}
    plan = make(view(*rows, young, holders=holders, processes=APP), Limits(min_age_ms=5_000))
    assert plan.steps
    assert plan.left
    lines = "".join(plan_lines(plan, width=width)).splitlines()
    assert all(len(line) <= width for line in lines), [line for line in lines if len(line) > width]
