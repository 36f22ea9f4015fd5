"""`finwait clear` as it is typed: every guard refuses and can be overruled by name, and says what it lacks."""

from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from finwait.lab.actor import Actor, meet
from finwait.lab.topology import Lab, unmet
from tests.kernel.acting_pair import Pair, resets_sent, settled
from tests.kernel.fewer_rights import PIDFD_GETFD
from tests.kernel.needs import missing, root_and

pytestmark = pytest.mark.kernel
ROOT = Path(__file__).parents[2]
GATE = [sys.executable, "-m", "finwait"]


@pytest.fixture(autouse=True)
def _needs() -> None:
    if lacking := unmet(("netns", "tool:nft")):
        missing("; ".join(lacking))


class Command:
    """The command, with a state directory of its own, looking into the namespaces of a lab."""

    def __init__(self, lab: Lab, state: Path, prefix: tuple[str, ...] = ()) -> None:
        self.where = [w for ns in lab.namespaces.values() for w in ("--netns", str(ns.inode))]
        self.environment = {**os.environ, "FINWAIT_STATE_DIR": str(state), "COLUMNS": "100"}
        self.prefix = prefix

    def __call__(self, *words: str, command: str = "clear", code: int | None = None) -> str:
        where = self.where if command in LOOKING and "--plan" not in words else ()
        done = subprocess.run(
            [*self.prefix, *GATE, command, *words, *where],
            capture_output=True, text=True, env=self.environment, stdin=subprocess.DEVNULL, cwd=ROOT,
        )  # fmt: skip
        self.status, self.errors = done.returncode, done.stderr
        assert "Traceback" not in done.stderr, done.stderr
        if not done.stdout.startswith("{"):
            assert all(len(line) <= 100 for line in done.stdout.splitlines()), done.stdout
        if code is not None:
            assert done.returncode == code, done.stdout + done.stderr
        return done.stdout

    def plan(self, *words: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self(*words, "-o", "json"))
        return found


LOOKING = ("clear", "probe", "arm", "conntrack")


def guards_of(plan: dict[str, Any]) -> set[str]:
    return {one["guard"] for one in plan["left"]}


def refused_then_done(command: Command, guard: str, words: list[str], override: list[str]) -> None:
    """The guard keeps the connection from harm; named, it is overruled and the connection ends."""
    shown = command("--yes", *words, code=4)
    assert f"by guard `{guard}`" in shown
    assert f"--override {guard}" in shown
    assert guards_of(command.plan(*words)) == {guard}
    done = command("--yes", *words, *override)
    assert " ended" in done, done + command.errors


def test_the_guard_of_minisockets(tmp_path: Path) -> None:
    with Lab() as lab:
        pair, command = Pair(lab), Command(lab, tmp_path)
        pair.near.leave(pair.ours)
        settled(pair, pair.theirs, "CLOSE_WAIT")
        words = [f"sport = :{pair.ours[0].sport} and state fin-wait-2", "--min-age", "0"]
        refused_then_done(command, "minisocket", words, ["--override", "minisocket"])
        assert pair.states(pair.theirs) == ["CLOSE_WAIT"]


def test_the_guard_of_orphans_that_end_in_silence(tmp_path: Path) -> None:
    with Lab() as lab:
        pair, command = Pair(lab), Command(lab, tmp_path)
        pair.far.shutdown(pair.theirs, "WR")
        pair.near.read_to_end(pair.ours)
        settled(pair, pair.theirs, "FIN_WAIT2")
        pair.link.cut(a=False)
        pair.near.close(pair.ours)
        pair.look(lambda v: 9 in v.sockets.state.tolist())
        words = ["state last-ack", "--min-age", "0"]
        refused_then_done(command, "silent-orphan", words, ["--override", "silent-orphan"])
        assert pair.states(pair.theirs) == ["FIN_WAIT2"]


def test_the_guard_of_connections_on_which_bytes_move(tmp_path: Path) -> None:
    with Lab() as lab:
        pair, command = Pair(lab), Command(lab, tmp_path)
        pair.near.shutdown(pair.ours, "WR")
        pair.near.absorb(pair.ours)
        pair.far.trickle(pair.theirs, "still streaming", 0.002)  # faster than a plan is carried out
        settled(pair, pair.ours, "FIN_WAIT2")
        words = [f"sport = :{pair.ours[0].sport}", "--with", "destroy", "--min-age", "0"]
        shown = command("--yes", *words, code=4)
        assert "by guard `moving`" in shown
        assert "by guard `healthy`" in command("--yes", *words, "--override", "moving", code=4)
        # Overruled, it is planned, and still left alone: its bytes moved between the plan and the act.
        both = ("--override", "moving", "--override", "healthy")
        assert "changed meanwhile" in command("--yes", *words, *both, code=4)
        assert pair.states(pair.ours) == ["FIN_WAIT2"]


def test_the_guard_of_young_connections(tmp_path: Path) -> None:
    with Lab() as lab:
        pair, command = Pair(lab), Command(lab, tmp_path)
        pair.near.shutdown(pair.ours, "WR")
        settled(pair, pair.ours, "FIN_WAIT2")
        words = [f"sport = :{pair.ours[0].sport}", "--min-age", "1h"]
        refused_then_done(command, "min-age", words, ["--override", "min-age"])
        assert pair.states([*pair.ours, *pair.theirs]) == ["gone", "gone"]


def test_an_age_that_waiting_does_not_show_is_watched_for(tmp_path: Path) -> None:
    """Its peer answers each keepalive probe: however often the command is run, it knows of no more than a second."""
    with Lab() as lab:
        pair, command = Pair(lab), Command(lab, tmp_path)
        for name, value in ((socket.TCP_KEEPIDLE, 1), (socket.TCP_KEEPINTVL, 1)):
            pair.near.setsockopt(pair.ours, socket.IPPROTO_TCP, name, value)
        pair.near.setsockopt(pair.ours, socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        pair.near.shutdown(pair.ours, "WR")
        settled(pair, pair.ours, "FIN_WAIT2")
        words = [f"sport = :{pair.ours[0].sport}", "--min-age", "3s", "--dry-run"]
        shown = command(*words, code=4)
        assert "old enough in" not in shown
        assert "waiting does not show it to be old enough" in " ".join(shown.split())
        assert "1 connection to end" in command(*words, "--for", "3s")


def test_the_guard_of_established_connections_unless_they_are_named(tmp_path: Path) -> None:
    with Lab() as lab:
        pair, command = Pair(lab, 2), Command(lab, tmp_path)
        one, two = (f"sport = :{c.sport}" for c in pair.ours)
        refused_then_done(command, "established", [one, "--min-age", "0"], ["--override", "established"])
        named = command("--yes", f"{two} and state established", "--min-age", "0", code=0)
        assert "both ends are gone" in named
        assert pair.states([*pair.ours, *pair.theirs]) == ["gone"] * 4


@pytest.mark.parametrize(
    "also", ["held", "inode != 0", "cookie != 0x1", "rule != relay-pair", "state != fin-wait-2", "rule = *"]
)
def test_what_merely_does_not_exclude_established_does_not_name_it(tmp_path: Path, also: str) -> None:
    with Lab() as lab:
        pair, command = Pair(lab), Command(lab, tmp_path)
        plan = command.plan(f"{also} and sport = :{pair.ours[0].sport}", "--min-age", "0")
        assert plan["steps"] == []
        assert guards_of(plan) <= {"established"}


def test_a_held_one_that_became_an_orphan_since_the_plan_is_left_to_the_kernel(tmp_path: Path) -> None:
    """It keeps its cookie and state, and would strand its peer if it were destroyed now."""
    with Lab() as lab:
        pair, command = Pair(lab), Command(lab, tmp_path)
        pair.near.shutdown(pair.ours, "WR")
        settled(pair, pair.ours, "FIN_WAIT2")
        plan = tmp_path / "plan.json"
        plan.write_text(command("--with", "destroy", "state fin-wait-2", "--min-age", "0", "-o", "json"))
        pair.near.close(pair.ours)
        done = command("--plan", str(plan), "--yes", code=4)
        assert "by guard `minisocket`" in done, done
        assert pair.states(pair.theirs) == ["CLOSE_WAIT"]
        assert len(pair.a.run("ss", "-Htan", "state", "fin-wait-2").splitlines()) == 1


def test_a_reviewed_plan_takes_no_filter_beside_it(tmp_path: Path) -> None:
    with Lab() as lab:
        pair, command = Pair(lab), Command(lab, tmp_path)
        pair.near.shutdown(pair.ours, "WR")
        settled(pair, pair.ours, "FIN_WAIT2")
        plan = tmp_path / "plan.json"
        plan.write_text(command("--with", "destroy", "state fin-wait-2", "--min-age", "0", "-o", "json"))
        command("sport = :1", "--plan", str(plan), "--yes", code=2)
        assert "applies a whole plan" in command.errors
        assert pair.states(pair.ours) == ["FIN_WAIT2"]


def test_with_nothing_to_do_the_answer_is_json_all_the_same(tmp_path: Path) -> None:
    with Lab() as lab:
        pair, command = Pair(lab), Command(lab, tmp_path)
        words = [f"sport = :{pair.ours[0].sport}", "-o", "json", "--yes"]
        assert json.loads(command(*words))["items"] == []
        assert json.loads(command(*words, "--dry-run"))["kind"] == "ClearPlan"


@pytest.mark.parametrize("comm", ["kubelet", "sshd", "containerd-shim", "finwait", "finwait-relay"])
def test_the_guard_of_what_holds_the_machine_up(tmp_path: Path, comm: str) -> None:
    with Lab() as lab:
        pair, command = Pair(lab), Command(lab, tmp_path)
        guarded: Actor = lab.actor(pair.a, comm)
        ours, theirs = meet(guarded, pair.link.b4, pair.far, pair.far.listen(pair.link.b4, 8081), 1)
        guarded.shutdown(ours, "WR")
        settled(pair, ours, "FIN_WAIT2")
        words = [f"sport = :{ours[0].sport}", "--with", "destroy", "--min-age", "0"]
        refused_then_done(command, "protected", words, ["--override", "protected"])
        assert pair.states(theirs) == ["gone"]


def test_a_protected_program_at_the_other_end_gets_no_reset(tmp_path: Path) -> None:
    """A FIN from its end is not allowed; to destroy this end instead would send it a RST."""
    with Lab() as lab:
        pair, command = Pair(lab), Command(lab, tmp_path)
        guarded: Actor = lab.actor(pair.b, "sshd")
        ours, theirs = meet(pair.near, pair.link.b4, guarded, guarded.listen(pair.link.b4, 8081), 1)
        pair.near.shutdown(ours, "WR")
        guarded.read_to_end(theirs)
        settled(pair, theirs, "CLOSE_WAIT")
        settled(pair, ours, "FIN_WAIT2")
        words = [f"sport = :{ours[0].sport}", "--min-age", "0"]
        before = resets_sent(pair.a)
        for means in ([], ["--with", "destroy"], ["--with", "reset"]):
            shown = " ".join(command("--yes", *words, *means, code=4).split())
            assert "its other end, in CLOSE_WAIT on this machine: held by sshd" in shown
        plan = tmp_path / "plan"
        plan.write_text(command(*words, "--with", "destroy", "--override", "protected", "-o", "json"))
        command("--plan", str(plan), "--yes", code=4)
        assert pair.states([*ours, *theirs]) == ["FIN_WAIT2", "CLOSE_WAIT"]
        assert resets_sent(pair.a) == before
        refused_then_done(command, "protected", words, ["--override", "protected"])
        assert pair.states([*ours, *theirs]) == ["gone", "gone"]


def test_a_descriptor_at_the_other_end_that_may_not_be_borrowed_is_no_reason_for_a_reset(
    tmp_path: Path,
) -> None:
    with Lab() as lab:
        pair = Pair(lab)
        gate = (sys.executable, "-m", "tests.kernel.fewer_rights", str(errno.EPERM), str(PIDFD_GETFD), "--")
        command = Command(lab, tmp_path, gate)
        pair.near.shutdown(pair.ours, "WR")
        pair.far.read_to_end(pair.theirs)
        settled(pair, pair.theirs, "CLOSE_WAIT")
        words = [f"sport = :{pair.ours[0].sport}", "--min-age", "0"]
        shown = " ".join(command("--yes", *words, code=4).split())
        assert "the FIN has to come from its other end" in shown
        assert "`--with destroy` would end it" in shown
        assert pair.states([*pair.ours, *pair.theirs]) == ["FIN_WAIT2", "CLOSE_WAIT"]
        assert "1 ended." in command("--yes", "--with", "destroy", *words)


def test_the_guards_of_the_plan_as_a_whole(tmp_path: Path) -> None:
    with Lab() as lab:
        pair, command = Pair(lab, 12), Command(lab, tmp_path)
        pair.near.shutdown(pair.ours, "WR")
        settled(pair, pair.ours, "FIN_WAIT2")
        words = ["--yes", "--with", "destroy", "fin-wait2-held", "--min-age", "0"]
        command(*words, "--max", "11", code=4)
        assert "refused by guard `max`" in command.errors
        assert "--max 12 or --override max" in command.errors
        command(*words, code=4)
        assert "refused by guard `share`" in command.errors
        assert "--share 1 or --override share" in command.errors
        assert set(pair.states(pair.ours)) == {"FIN_WAIT2"}
        done = command(*words, "--max", "11", "--override", "max", "--override", "share", code=0)
        assert "12 ended." in done
        assert set(pair.states([*pair.ours, *pair.theirs])) == {"gone"}


def test_a_reviewed_plan_is_held_to_the_guards_again(tmp_path: Path) -> None:
    with Lab() as lab:
        pair, command = Pair(lab, 3), Command(lab, tmp_path)
        guarded = lab.actor(pair.a, "kubelet")
        ours, _ = meet(guarded, pair.link.b4, pair.far, pair.far.listen(pair.link.b4, 8081), 1)
        pair.near.shutdown(pair.ours, "WR")
        guarded.shutdown(ours, "WR")
        settled(pair, [*pair.ours, *ours], "FIN_WAIT2")
        words = ["--with", "destroy", "fin-wait2-held", "--min-age", "0", "--share", "1", "-o", "json"]
        plan = command(*words, "--override", "protected")
        forged = tmp_path / "plan.json"
        forged.write_text(plan.replace('"kubelet"', '"innocent"'))
        shown = command("--plan", str(forged), "--dry-run")
        assert "3 connections to end (3 destructive), 1 left alone" in shown
        assert "left alone ×1 by guard `protected`" in shown
        assert "held by kubelet" in shown
        command("--plan", str(forged), "--yes", "--max", "2", code=4)
        assert "guard `max`" in command.errors
        assert set(pair.states([*pair.ours, *ours])) == {"FIN_WAIT2"}
        assert "3 ended." in command("--plan", str(forged), "--yes", code=0)
        assert pair.states([*pair.ours, *ours]) == ["gone", "gone", "gone", "FIN_WAIT2"]


def test_what_a_plan_file_says_never_reaches_the_terminal(tmp_path: Path) -> None:
    with Lab() as lab:
        pair, command = Pair(lab), Command(lab, tmp_path)
        pair.near.shutdown(pair.ours, "WR")
        settled(pair, pair.ours, "FIN_WAIT2")
        words = ["--with", "destroy", "fin-wait2-held", "--min-age", "0"]
        plan = command.plan(*words)
        (step,) = plan["steps"]
        step["owners"][0]["comm"] = step["stays"] = step["note"] = "\x1b[31mharmless\x1b[0m"
        plan["left"] = [step | dict.fromkeys(("guard", "reason"), "\x1b[31mharmless\x1b[0m")]
        plan["advice"] = ["\x1b[31mharmless\x1b[0m"]
        file = tmp_path / "plan.json"
        file.write_text(json.dumps(plan))
        shown = command("--plan", str(file), "--dry-run")
        assert "harmless" not in shown
        assert f"held by near (pid {pair.near.pid})" in shown
        for name, said in (("class", "destroy` is destructive"), ("peer_told", "what the peer sees is not")):
            file.write_text(json.dumps(plan | {"steps": [step | {name: "\x1b[31mharmless\x1b[0m"}]}))
            command("--plan", str(file), "--dry-run", code=1)
            assert said in command.errors
            assert "\x1b" not in command.errors
        assert pair.states(pair.ours) == ["FIN_WAIT2"]


def test_a_plan_that_is_too_large_is_shown_and_not_done(tmp_path: Path) -> None:
    with Lab() as lab:
        pair, command = Pair(lab, 24), Command(lab, tmp_path)
        pair.near.shutdown(pair.ours, "WR")
        settled(pair, pair.ours, "FIN_WAIT2")
        words = ["--with", "destroy", "fin-wait2-held", "--min-age", "0", "--max", "20", "--share", "1"]
        shown = command("--dry-run", *words)
        assert "24 connections to end (24 destructive)" in shown
        assert "… and 4 more; `--all` shows them" in shown
        assert "guard `max` would refuse this" in command.errors
        assert "--max 24 or --override max" in command.errors
        whole = command("--dry-run", "--all", *words)
        assert all(f":{conn.sport} " in whole for conn in pair.ours)
        assert [one["guard"] for one in command.plan(*words)["refused"]] == ["max"]
        assert "24 connections to end" in command(*words, code=4)
        assert "refused by guard `max`" in command.errors
        command("--yes", *words, code=4)
        assert set(pair.states(pair.ours)) == {"FIN_WAIT2"}


WRONG = [("--max", "-1"), ("--rate", "nan"), ("--rate", "-5"), ("--share", "x"), ("--min-age", "soon")]


@pytest.mark.parametrize("words", WRONG, ids=" ".join)
def test_a_limit_that_is_none_is_wrong_usage(tmp_path: Path, words: tuple[str, str]) -> None:
    with Lab() as lab:
        command = Command(lab, tmp_path)
        command(f"{words[0]}={words[1]}", code=2)
        assert words[0] in command.errors


def test_the_guard_of_listeners_has_no_override(tmp_path: Path) -> None:
    with Lab() as lab:
        _, command = Pair(lab), Command(lab, tmp_path)
        command("--yes", "state listening", "--override", "listener", code=2)
        assert "cannot be overridden" in command.errors
        everything = ["--override=" + g for g in ("established", "min-age", "share", "protected")]
        assert "by guard `listener`" in command("--yes", "state listening", *everything, code=4)


def test_a_plan_is_shown_once_and_what_came_of_it_once(tmp_path: Path) -> None:
    with Lab() as lab:
        pair, command = Pair(lab, 3), Command(lab, tmp_path)
        pair.near.shutdown(pair.ours, "WR")
        settled(pair, pair.ours, "FIN_WAIT2")
        words = ["--with", "destroy", "fin-wait2-held", "--min-age", "0", "--override", "share"]
        plan = command(*words)
        assert "3 connections to end (3 destructive), 0 left alone." in plan
        assert "the descriptors stay open" in plan
        assert "3 descriptors stay open in near" in plan
        done = command("--yes", *words)
        for conn in pair.ours:
            assert plan.count(f":{conn.sport} → ") == 1
            assert done.count(f":{conn.sport} → ") == 1
        assert "3 descriptors are still open in near" in done


def test_without_cap_net_admin_a_reset_through_the_descriptor_is_planned_and_works(tmp_path: Path) -> None:
    root_and("setpriv")
    with Lab() as lab:
        pair = Pair(lab, 2)
        command = Command(lab, tmp_path, ("setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin"))
        pair.near.shutdown(pair.ours[:1], "WR")
        settled(pair, pair.ours[:1], "FIN_WAIT2")
        words = ["--with", "destroy", "fin-wait2-held", "--min-age", "0"]
        shown = command(*words)
        assert "reset [destructive] ×1" in shown
        assert "CAP_NET_ADMIN" in shown
        assert pair.states(pair.ours) == ["FIN_WAIT2", "ESTABLISHED"]
        before = resets_sent(pair.a)
        assert "both ends are gone" in command("--yes", *words)
        assert resets_sent(pair.a) == before + 1
        assert pair.states([*pair.ours, *pair.theirs]) == ["gone", "ESTABLISHED", "gone", "ESTABLISHED"]


def test_a_reviewed_plan_that_needs_more_rights_is_refused_with_what_would_work(tmp_path: Path) -> None:
    root_and("setpriv")
    with Lab() as lab:
        pair, mighty = Pair(lab), Command(lab, tmp_path)
        weak = Command(lab, tmp_path, ("setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin"))
        pair.near.shutdown(pair.ours, "WR")
        settled(pair, pair.ours, "FIN_WAIT2")
        words = ["--with", "destroy", "fin-wait2-held", "--min-age", "0", "-o", "json"]
        (tmp_path / "plan").write_text(mighty(*words))
        weak("--plan", str(tmp_path / "plan"), "--yes", code=4)
        assert "nothing was done" in weak.errors
        assert "`--with reset`" in weak.errors
        assert pair.states(pair.ours) == ["FIN_WAIT2"]
        assert not (tmp_path / "journal.sqlite").exists() or "destroy" not in mighty(command="journal")


@pytest.mark.parametrize(("code", "said"), [(errno.EPERM, "CAP_SYS_PTRACE"), (errno.ENOSYS, "Linux 5.6")])
def test_a_descriptor_that_may_not_be_borrowed_is_told_before_anything_is_tried(
    tmp_path: Path, code: int, said: str
) -> None:
    with Lab() as lab:
        pair = Pair(lab)
        gate = (sys.executable, "-m", "tests.kernel.fewer_rights", str(code), str(PIDFD_GETFD), "--")
        command = Command(lab, tmp_path, gate)
        pair.far.shutdown(pair.theirs, "WR")
        pair.near.read_to_end(pair.ours)
        settled(pair, pair.ours, "CLOSE_WAIT")
        words = ["close-wait-eof-read", "--min-age", "0"]
        shown = " ".join(command("--yes", *words, code=4).split())
        assert said in shown
        assert "`--with destroy` would end it" in shown
        assert pair.states([*pair.ours, *pair.theirs]) == ["CLOSE_WAIT", "FIN_WAIT2"]
        assert "1 ended." in command("--yes", "--with", "destroy", *words)
        assert pair.states([*pair.ours, *pair.theirs]) == ["gone", "gone"]


def test_where_nothing_can_be_done_that_is_said_and_nothing_is_done(tmp_path: Path) -> None:
    root_and("setpriv")
    with Lab(f"finwait-{os.getpid()}") as lab:  # named: without CAP_SYS_PTRACE no process leads to it
        pair = Pair(lab)
        drop = "-net_admin,-sys_ptrace"
        command = Command(lab, tmp_path, ("setpriv", f"--bounding-set={drop}", f"--inh-caps={drop}"))
        pair.near.shutdown(pair.ours, "WR")
        settled(pair, pair.ours, "FIN_WAIT2")
        words = [f"sport = :{pair.ours[0].sport} and state fin-wait-2", "--min-age", "0"]
        shown = command("--yes", *words, code=4)
        assert "by guard `holder-unknown`" in shown
        assert "CAP_SYS_PTRACE" in shown
        shown = command("--yes", "--override", "holder-unknown", *words, code=4)
        assert "by guard `means`" in shown
        assert "CAP_NET_ADMIN" in shown
        assert pair.states(pair.ours) == ["FIN_WAIT2"]


def test_with_cap_net_admin_alone_what_a_protected_program_may_hold_is_left_alone(tmp_path: Path) -> None:
    """Whoever may end sockets but not look into processes cannot tell sshd's from others'."""
    root_and("setpriv")
    with Lab(f"finwait-{os.getpid()}") as lab:
        pair = Pair(lab)
        few, inside = "-all,+net_admin", f"--net=/run/netns/{lab.prefix}-near"
        prefix = ("nsenter", inside, "setpriv", f"--bounding-set={few}", f"--inh-caps={few}")
        weak = Command(lab, tmp_path, prefix)
        pair.near.shutdown(pair.ours, "WR")
        settled(pair, pair.ours, "FIN_WAIT2")
        words = [f"sport = :{pair.ours[0].sport} and state fin-wait-2", "--min-age", "0"]
        assert guards_of(shown := weak.plan(*words, "--dry-run")) == {"holder-unknown"}
        assert shown["steps"] == []
        assert "holder unknown" in weak(*words, "--dry-run", "--override", "holder-unknown")
        assert pair.states(pair.ours) == ["FIN_WAIT2"]


def test_mptcp_which_cannot_be_destroyed_is_ended_by_fin_and_by_reset(tmp_path: Path) -> None:
    if lacking := unmet(("mptcp",)):
        missing("; ".join(lacking))
    from finwait.lab.scenario import scenarios

    with Lab() as lab:
        situation = scenarios()["mptcp-half-close"].build(lab).settle()
        command = Command(lab, tmp_path)
        words = ["mptcp-half-close", "--min-age", "0"]
        plan = command.plan(*words)
        assert {(s["means"], s["state"]) for s in plan["steps"]} == {("fin", "CLOSE_WAIT")}
        assert len(plan["steps"]) == 2
        forced = command.plan("--with", "destroy", "state fin-wait-2", "--min-age", "0")
        mptcp = [s for s in forced["steps"] if s["protocol"] == "mptcp"]
        assert {s["means"] for s in mptcp} == {"reset"}
        assert all("MPTCP" in s["note"] for s in mptcp)
        gone = {(e.netns, e.sport, e.dport) for e in situation.expected}
        assert "2 ended." in command("--yes", *words)
        left = {
            (r.netns, r.src, r.sport)
            for r in situation.rows().values()
            if r.protocol == 262 and r.state != "CLOSE"
        }
        assert not gone & left
        assert len(left) == 2  # the one that is in use
