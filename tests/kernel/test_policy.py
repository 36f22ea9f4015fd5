"""The agent's policy with real sockets in namespaces of their own: it acts within its budget, and on nothing else."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from finwait import planning
from finwait.agent import loop, policing, policy_steps
from finwait.agent.episodes import Book
from finwait.agent.hands import RunningHands
from finwait.agent.loop import ClusterSource, Looker
from finwait.agent.policing import Policing
from finwait.agent.policy_file import Policy, parse_policy
from finwait.agent.protocol import Status
from finwait.agent.store import Store
from finwait.diagnosis.view import Options
from finwait.kernel.journal import JournalEntry, SqliteJournal
from finwait.lab.actor import ProgramSocket
from finwait.lab.topology import Lab, unmet
from finwait.remedy.guards import Limits
from finwait.remedy.plan import Plan
from finwait.session import Diagnosis, Look
from tests.kernel import needs
from tests.kernel.acting_pair import Pair, row_of, settled
from tests.kernel.needs import missing
from tests.kernel.prompt_machine import Prompt
from tests.kernel.test_agent import ADDRESS, tell, until
from tests.kernel.test_agent import Scene as AgentScene
from tests.kernel.test_relay_pairs import Relayed

pytestmark = pytest.mark.kernel

AGE_S = 0.3
"""In place of the ten minutes that a policy asks for at least."""


def young(data: bytes, name: str) -> Policy:
    """Read a policy as the agent does, and let it act on what is young."""
    policy = parse_policy(data, name)
    rules = (replace(rule, min_age_s=AGE_S, cool_down_s=0.0) for rule in policy.rules)
    return replace(policy, rules=tuple(rules))


class Scene:
    """Half-closed connections between two programs, and an agent with a policy that is about those only."""

    def __init__(
        self,
        lab: Lab,
        folder: Path,
        n: int = 8,
        *,
        cgroups: Sequence[Path | None] = (None, None),
        cluster: ClusterSource | None = None,
    ) -> None:
        self.folder = folder
        self.cluster = cluster
        self.pair = Pair(lab, n, cgroups)
        self.kill = folder / "no-act"
        self.said: list[str] = []
        self.spaces = ",".join(str(ns.inode) for ns in lab.namespaces.values())

    def leak(self) -> None:
        self.pair.near.shutdown(self.pair.ours, "WR")
        self.pair.far.read_to_end(self.pair.theirs)
        settled(self.pair, self.pair.ours, "FIN_WAIT2")

    def agent(
        self,
        mode: str,
        *,
        rule: str = "",
        above: str = "",
        no_act: bool = False,
        findings: str = '["fin-wait2-held", "close-wait-eof-read"]',
    ) -> None:
        path = self.folder / "policy.toml"
        path.write_text(
            f'name = "node"\nmode = "{mode}"\n{above}\n[[rule]]\nname = "leak"\n'
            f'findings = {findings}\nwhere = "netns = {self.spaces}"\n{rule}\n'
        )
        path.chmod(0o600)
        self.machine = Prompt(Options(idle_ms=1))
        self.hands = RunningHands(
            str(path),
            self.machine.looked_at,
            self.machine.boot(),
            kill_switch=str(self.kill),
            options=Options(idle_ms=1),
            answer_ms=1,
            watch_ms=0,
            cluster=None if (cluster := self.cluster) is None else (lambda: cluster.names),
        )
        self.policing = Policing(
            self.hands, "policy.toml", self.machine.boot(), no_act=no_act, say=self.said.append
        )
        self.looker = Looker(
            self.machine,
            lambda: Store(self.folder / "state" / "history.sqlite"),
            share=1.0,
            tick_s=0.05,
            policing=self.policing,
            cluster=self.cluster,
        )

    def look(self, times: int = 1) -> Status:
        """Diagnose so often; the first diagnoses of a connection only count its verdicts."""
        before = self._diagnoses()
        end = time.monotonic() + 60
        while self._diagnoses() < before + times:
            assert time.monotonic() < end
            self.looker.renew()
            self.looker.round()
        assert self.looker.status is not None
        return self.looker.status

    def _diagnoses(self) -> int:
        picture = self.looker.picture
        return sum(sum(h.counts) for h in picture.looks if h.label == "diagnosis") if picture else 0

    def until(self, label: str, holds: Callable[[], Any], seconds: float = 60) -> None:
        end = time.monotonic() + seconds
        self.look()
        while not holds():
            assert time.monotonic() < end, (label, self.status)
            self.look()

    @property
    def status(self) -> Any:
        assert self.looker.status is not None
        assert self.looker.status.policy is not None
        return self.looker.status.policy

    @property
    def count(self) -> dict[str, int]:
        assert self.looker.picture is not None
        return {entry.outcome: entry.total for entry in self.looker.picture.policy_actions}

    @property
    def stuck(self) -> int:
        return self.pair.states(self.pair.ours).count("FIN_WAIT2")

    def acts(self) -> list[JournalEntry]:
        path = self.folder / "journal" / "journal.sqlite"
        if not path.exists():
            return []
        with SqliteJournal(read_only=True) as journal:
            return journal.of_policies(1000)


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    if lacking := unmet(("netns",)):
        missing("; ".join(lacking))
    monkeypatch.setenv("FINWAIT_STATE_DIR", str(tmp_path / "journal"))
    monkeypatch.setattr(policing, "parse_policy", young)
    monkeypatch.setattr(planning, "MIN_AGE_MS", 100)
    monkeypatch.setattr(loop, "Book", functools.partial(Book, grace_ns=100_000_000, verdict_ns=0))
    with Lab() as lab:
        yield Scene(lab, tmp_path)


def test_it_acts_within_its_budget_on_what_is_old_and_certain_and_the_journal_says_who(scene: Scene) -> None:
    scene.leak()
    scene.agent("act", above="[budget]\nlook = 3\nday = 5")
    scene.until("the budget of a day is spent", lambda: scene.status.remaining == 0)
    scene.look(3)
    acts = scene.acts()
    assert len(acts) == 5
    assert scene.stuck == 3
    assert scene.count == {"ended": 5}
    assert {(act.user, act.kind, act.result is None) for act in acts} == {("policy node", "shutdown", False)}
    target = acts[0].target
    assert (target["policy"]["name"], target["policy"]["rule"]) == ("node", "leak")
    assert {"cost", "workload", "processes", "boot_ns"} <= target["policy"].keys()
    by_look: dict[int, int] = {}
    for act in acts:
        by_look[act.target["policy"]["boot_ns"]] = by_look.get(act.target["policy"]["boot_ns"], 0) + 1
    assert sorted(by_look.values()) == [2, 3]
    assert scene.status.rules[0].spared["day"] >= 1
    listed = subprocess.run(
        [sys.executable, "-m", "finwait", "journal"], capture_output=True, text=True, env=os.environ.copy()
    )
    assert listed.stdout.count("policy node") == 5, listed.stderr
    assert "(rule leak): ended" in listed.stdout
    # Started anew, it has no more budget than before.
    scene.looker.end()
    scene.agent("act", above="[budget]\nlook = 3\nday = 5")
    scene.look(5)
    assert (scene.stuck, len(scene.acts()), scene.status.remaining) == (3, 5, 0)


def test_observe_does_nothing_and_says_how_many_there_are(scene: Scene) -> None:
    scene.leak()
    scene.agent("observe")
    scene.until("it counts them", lambda: scene.status.rules[0].chosen > 0)
    scene.look(2)
    assert (scene.stuck, scene.acts(), scene.count) == (8, [], {})
    assert scene.looker.picture is not None
    assert scene.looker.picture.policy_budgets == []
    assert not (scene.folder / "journal").exists()


def test_a_dry_run_does_nothing_and_remembers_what_it_would_have_done(scene: Scene) -> None:
    scene.leak()
    above = "[budget]\nlook = 2\nday = 3"
    scene.agent("dry-run", above=above)
    scene.until("its budget is spent", lambda: scene.status.remaining == 0)
    scene.look(2)
    assert scene.count == {"would": 3}
    assert (scene.stuck, scene.acts()) == (8, [])
    assert len(scene.status.recent) == 3
    assert "would be done" in scene.status.recent[0]
    scene.looker.end()
    with Store(scene.folder / "state" / "history.sqlite", read_only=True) as store:
        assert store.select("SELECT policy, rule, means FROM rehearsed", ()) == [("node", "leak", "fin")] * 3
    scene.agent("dry-run", above=above)
    scene.look(4)
    assert (scene.status.remaining, scene.count) == (0, {}), "a restart refills nothing"


def test_filters_of_a_rule_choose_and_spare(scene: Scene) -> None:
    scene.leak()
    scene.agent("act", rule='except = "comm = near or comm = far"')
    scene.look(6)
    assert (scene.stuck, scene.acts(), scene.status.rules[0].chosen) == (8, [], 0)
    scene.agent("act", above='except = "sport = :8080 or dport = :8080"')
    scene.look(6)
    assert (scene.stuck, scene.acts()) == (8, [])
    scene.agent("act", rule='except = "sport = :1"')
    scene.until("it acts on the others", scene.acts)


@pytest.mark.parametrize("means", ['["fin"]', '["destroy"]', '["keepalive"]', '["fin", "reset"]'])
@pytest.mark.parametrize("excepted", ["comm = far", "sport = :8080", "netns = {far}"])
@pytest.mark.parametrize("whose", ["rule", "above"])
def test_what_is_excepted_at_the_other_end_is_left_alone(
    scene: Scene, excepted: str, means: str, whose: str
) -> None:
    """Only the FIN_WAIT2 end is chosen; what ends it is done at the other one, or reaches the program there."""
    scene.leak()
    scene.spaces = str(scene.pair.a.inode)
    text = f'except = "{excepted.format(far=scene.pair.b.inode)}"'
    rule = f"with = {means}" + (f"\n{text}" if whose == "rule" else "")
    scene.agent("act", rule=rule, above=text if whose == "above" else "")
    scene.look(4)
    assert (scene.stuck, scene.acts(), scene.status.rules[0].chosen) == (8, [], 0)


def test_an_act_at_the_other_end_counts_for_both_workloads_and_the_journal_names_both(scene: Scene) -> None:
    scene.leak()
    scene.spaces = str(scene.pair.a.inode)
    scene.agent("act", above='except = "comm = nobody"\n[budget]\nworkload = 3')
    scene.until("it acts", scene.acts)
    scene.look(3)
    marks = [act.target["policy"] for act in scene.acts()]
    assert len(marks) == 3
    assert {act.target["netns"] for act in scene.acts()} == {scene.pair.b.inode}
    assert {(mark["workload"], *mark["reached"]) for mark in marks} == {("near", "far")}
    pids = {pid for mark in marks for pid, _ in mark["processes"]}
    assert pids == {scene.pair.near.pid, scene.pair.far.pid}


def test_an_excepted_program_keeps_only_what_it_has_an_end_of(scene: Scene) -> None:
    scene.leak()
    scene.spaces = str(scene.pair.a.inode)
    ports = [conn.sport for conn in scene.pair.ours[:5]]
    text = " or ".join(f"dport = :{port}" for port in ports)
    scene.agent("act", rule=f'except = "{text}"')
    scene.until("the others are ended", lambda: scene.stuck == 5)
    scene.look(3)
    assert scene.stuck == 5
    assert not {act.target["dport"] for act in scene.acts()} & set(ports)


def test_relay_pairs_are_never_certain_and_so_are_left_alone(scene: Scene) -> None:
    with Lab() as lab:
        relayed = Relayed(lab, [10, 400, 90, 7])
        relayed.look()
        scene.spaces = ",".join(str(inode) for inode in relayed.spaces)
        scene.agent("act", rule='with = ["fin", "destroy"]', findings='["relay-pair"]')
        scene.until("they are seen", lambda: scene.status.rules[0].spared)
        scene.look(4)
        assert scene.status.rules[0].spared == {"not-certain": 8}
        assert scene.acts() == []
        assert relayed.states() == relayed.states_stuck


def test_a_plan_for_chosen_connections_has_both_legs_of_a_pair_or_none(scene: Scene) -> None:
    units: list[list[str]] = []

    def admit(offered: Any) -> Any:
        units[:] = [[f"{step.means} {step.state}" for step in unit] for unit in offered]
        return [step for unit in offered for step in unit]

    with Lab() as lab:
        relayed = Relayed(lab, [10, 400, 90, 7])
        relayed.look()

        def planned(legs: list[ProgramSocket], *means: Any) -> Plan:
            def wishes(made: Diagnosis) -> dict[int, Any]:
                return {row_of(made.view, leg): means for leg in legs}

            allowed = Limits(max_connections=3, share=0.5)
            return planning.plan_chosen(scene.machine.looked_at, Look(), wishes, admit, allowed).plan

        scene.agent("observe")
        pair = [relayed.fronts[1], relayed.backs[1]]
        plan = planned(pair, "fin", "destroy")
        assert [sorted(unit) for unit in units] == [["fin CLOSE_WAIT", "fin CLOSE_WAIT"]]
        assert ({step.pair for step in plan.steps}, plan.refused) == ({1}, ())
        assert planned(pair[:1], "fin", "destroy").steps == ()
        planned(pair, "destroy")
        assert [sorted(unit) for unit in units] == [["destroy CLOSE_WAIT", "destroy FIN_WAIT2"]]
        plan = planned([*relayed.fronts, *relayed.backs], "fin", "destroy")
        assert [len(unit) for unit in units] == [2, 2, 2, 2]
        assert [refusal.guard for refusal in plan.refused] == ["max"]
        assert relayed.states() == relayed.states_stuck


def test_no_act_wins(scene: Scene) -> None:
    scene.leak()
    scene.agent("act", no_act=True)
    scene.look(5)
    assert (scene.stuck, scene.acts(), scene.status.halted) == (8, [], "no-act")


def test_the_kill_switch_wins_before_and_in_the_middle(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    scene.leak()
    scene.kill.touch()
    scene.agent("act", above="[budget]\nlook = 4")
    scene.look(5)
    assert (scene.stuck, scene.acts(), scene.status.halted) == (8, [], "kill-switch")
    scene.kill.unlink()
    monkeypatch.setattr(policy_steps, "_PORTION", 1)
    act = scene.hands.act

    def acted(*words: Any) -> bool:
        try:
            return act(*words)
        finally:
            scene.kill.touch()

    monkeypatch.setattr(scene.hands, "act", acted)
    scene.until("one was done", scene.acts)
    scene.look(2)
    assert (len(scene.acts()), scene.stuck, scene.status.halted) == (1, 7, "kill-switch")


def test_a_kill_switch_that_comes_behind_the_plan_wins(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is looked for once more where acts are written down, right before they are done."""
    scene.leak()
    scene.agent("act")
    plan = scene.hands.plan
    answers = iter([False, False])  # before the decision, and before the portion
    monkeypatch.setattr(scene.hands, "killed", lambda: next(answers, True))
    planned = []

    def planning_once(*words: Any) -> Any:
        planned.append(words)
        return plan(*words)

    monkeypatch.setattr(scene.hands, "plan", planning_once)
    while not planned:
        answers = iter([False, False])
        scene.look()
    assert (scene.stuck, scene.acts(), scene.status.halted) == (8, [], "kill-switch")


def test_what_guards_protect_stays(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    scene.leak()
    scene.agent("act", rule='with = ["fin", "destroy"]')
    ours = scene.pair.far.pid  # a guard protects our own process
    monkeypatch.setattr("finwait.agent.hands.os.getpid", lambda: ours)
    scene.until("a plan was made", lambda: scene.status.rules[0].guarded)
    scene.look(2)
    assert scene.status.rules[0].guarded == {"protected": 16}
    assert scene.status.rules[0].chosen == 0, "what guards keep is not chosen"
    assert (scene.stuck, scene.acts()) == (8, [])


def test_what_carries_data_is_left_alone(scene: Scene) -> None:
    scene.pair.near.shutdown(scene.pair.ours, "WR")
    scene.pair.near.absorb(scene.pair.ours)
    scene.pair.far.trickle(scene.pair.theirs, "still streaming", 0.002)
    settled(scene.pair, scene.pair.ours, "FIN_WAIT2")
    scene.agent("act")
    scene.look(6)
    assert (scene.stuck, scene.acts()) == (8, [])


def test_established_connections_are_never_touched(scene: Scene) -> None:
    scene.agent("act")
    scene.look(5)
    assert scene.acts() == []
    assert set(scene.pair.states(scene.pair.ours)) == {"ESTABLISHED"}


def test_where_the_journal_cannot_be_written_nothing_is_done(scene: Scene) -> None:
    disk = scene.folder / "journal"
    disk.mkdir(mode=0o700)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m,mode=0700", "none", str(disk)], check=True)
    try:
        SqliteJournal().close()
        with (disk / "full").open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while file.write(b"x" * 4096):
                pass
        scene.leak()
        scene.agent("act")
        scene.until("it says that nothing is done", lambda: scene.status.halted == "error")
        assert scene.stuck == 8
        assert "journal" in scene.status.said
        assert len([line for line in scene.said if "nothing is done" in line]) == 1, "it is said once"
        (disk / "full").unlink()
        assert scene.acts() == []
        scene.until("it acts when there is room", scene.acts)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("replaced", [False, True])
def test_without_its_journal_a_running_agent_does_nothing(scene: Scene, replaced: bool) -> None:
    scene.leak()
    scene.agent("act", above="[budget]\nlook = 2\nday = 2")
    scene.until("its budget is spent", lambda: scene.status.remaining == 0)
    assert scene.stuck == 6
    away = (scene.folder / "journal").rename(scene.folder / "away")
    if replaced:
        SqliteJournal().close()
    scene.look(4)
    assert (scene.stuck, scene.acts(), scene.status.halted) == (6, [], "error")
    assert "the journal no longer has 2 acts of the last 24 hours" in scene.status.said
    assert any("no longer has 2 acts" in line for line in scene.said)
    (scene.folder / "journal").rename(scene.folder / "other")  # with the lock at least
    away.rename(scene.folder / "journal")
    scene.look(2)
    assert (scene.stuck, len(scene.acts()), scene.status.halted, scene.status.remaining) == (6, 2, "", 0)


def test_an_unexpected_result_ends_the_portions_and_the_rule_waits(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policy_steps, "_PORTION", 1)
    monkeypatch.setattr(
        policing,
        "parse_policy",
        lambda data, name: replace(
            young(data, name),
            rules=tuple(replace(r, cool_down_s=3600.0) for r in young(data, name).rules),
        ),
    )
    scene.leak()
    scene.agent("act", rule='with = ["destroy"]')
    monkeypatch.setattr("finwait.acting.apply.destroy", lambda *_, **__: ([], []))
    scene.until("it acted", scene.acts)
    scene.look(2)
    assert scene.count == {"failed": 1}
    assert (scene.stuck, len(scene.acts())) == (8, 1)
    assert "was not expected" in scene.status.said
    assert scene.status.rules[0].spared.keys() == {"unexpected", "tried"}


SCRIPT = """
import os, signal, sys
from pathlib import Path
from finwait.acting import apply as acts
from finwait.agent import service
from tests.kernel.test_policy import *

signals = service._Signals()


def fault(name):
    if name == sys.argv[4]:
        os.kill(os.getpid(), int(sys.argv[5]))


acts.apply.__wrapped__.__kwdefaults__["fault"] = fault
planning.MIN_AGE_MS = 100
policing.parse_policy = young
loop.Book = functools.partial(Book, grace_ns=100_000_000, verdict_ns=0)
machine, path = Prompt(Options(idle_ms=1)), sys.argv[1]
hands = RunningHands(path, machine.looked_at, machine.boot(), kill_switch=sys.argv[2], acting=signals.acting,
                     options=Options(idle_ms=1), answer_ms=1, watch_ms=0)
rules = Policing(hands, path, machine.boot())
looker = Looker(machine, lambda: Store(Path(sys.argv[3])), share=1.0, tick_s=0.05, policing=rules)
while not (rules.actions or signals.ending):
    with signals.looking():
        looker.renew()
        looker.round()
looker.end()
"""


def run_until(scene: Scene, stage: str, number: int) -> subprocess.CompletedProcess[str]:
    """Run an agent as a process of its own that gets a signal at a stage of its first acts."""
    words = (scene.folder / "policy.toml", scene.kill, scene.folder / "other" / "history.sqlite")
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, *map(str, words), stage, str(number)],
        capture_output=True, text=True, cwd=Path(__file__).parents[2], timeout=100,
    )  # fmt: skip


@pytest.mark.parametrize("stage", ["before reading", "journaled", "acted", "verified"])
def test_killed_at_any_step_it_leaves_a_journal_that_tells_what_to_do(scene: Scene, stage: str) -> None:
    scene.leak()
    scene.agent("act", above="[budget]\nlook = 2", rule='with = ["destroy"]')
    done = run_until(scene, stage, signal.SIGKILL)
    assert done.returncode == -9, done.stderr
    acts = scene.acts()
    with SqliteJournal() as journal:
        cut = {entry.id for entry in journal.incomplete()}
    assert len(acts) == (0 if stage == "before reading" else 2)
    assert cut == {act.id for act in acts}, "each act is there, without a result"
    ended = 2 if stage in ("acted", "verified") else 0
    assert scene.stuck == 8 - ended
    undone = subprocess.run(
        [sys.executable, "-m", "finwait", "undo", "--incomplete", "--yes"], capture_output=True, text=True
    )
    assert undone.returncode == 0, undone.stderr
    # What was cut short counts against the budget of the agent that comes next, and stops the rule.
    scene.agent("act", above="[budget]\nday = 2", rule='with = ["destroy"]')
    scene.until("it has decided", lambda: scene.look() and sum(scene.status.rules[0].spared.values()) > 0)
    if acts:
        assert len(scene.acts()) == 2


def test_a_signal_in_the_middle_ends_the_acts_tidily(scene: Scene) -> None:
    """Between the journal and the act: nothing is done, and the journal says so."""
    scene.leak()
    scene.agent("act", above="[budget]\nlook = 2", rule='with = ["destroy"]')
    done = run_until(scene, "journaled", signal.SIGTERM)
    assert done.returncode == 0, done.stderr
    acts = scene.acts()
    assert [act.result for act in acts] == [{"error": "interrupted before it was done"}] * 2
    with SqliteJournal() as journal:
        assert journal.incomplete() == []
    assert scene.stuck == 8


def test_a_signal_for_the_policy_lets_acts_go_on(scene: Scene) -> None:
    scene.leak()
    scene.agent("act", above="[budget]\nlook = 2", rule='with = ["destroy"]')
    done = run_until(scene, "journaled", signal.SIGHUP)
    assert done.returncode == 0, done.stderr
    assert [(act.result or {}).get("result") for act in scene.acts()] == ["ended"] * 2
    cost = scene.acts()[0].target["policy"]["cost"]
    assert (cost["unread"], cost["unacknowledged"]) == (0, 0)
    assert {holder["comm"] for holder in (*cost["holders"], *cost["far_holders"])} == {"near", "far"}


@pytest.fixture
def service_scene(tmp_path: Path) -> Iterator[AgentScene]:
    needs.root_and("unshare", "nsenter", "ip")
    made = AgentScene(tmp_path)
    try:
        yield made
    finally:
        made.end()


def written(scene: AgentScene, text: str) -> str:
    path = scene.folder / "policy.toml"
    path.write_text(text)
    path.chmod(0o600)
    return str(path)


RULE = '[[rule]]\nname = "leak"\nfindings = ["fin-wait2-held"]\n'


def test_the_agent_refuses_a_policy_that_is_wrong_or_not_its_own(service_scene: AgentScene) -> None:
    path = written(service_scene, "mod = 'act'")
    agent = service_scene.agent("--policy", path)
    _, said = agent.communicate(timeout=60)
    assert agent.returncode == 2
    assert f"{path}:1: this key does not exist here (`mod`)" in said
    Path(written(service_scene, "")).chmod(0o666)
    agent = service_scene.agent("--policy", path)
    _, said = agent.communicate(timeout=60)
    assert agent.returncode == 1
    assert "others can write to it" in said


def test_the_running_agent_says_how_its_policy_is_and_takes_a_new_one(service_scene: AgentScene) -> None:
    scene = service_scene
    program = scene.leaking()
    tell(program, "3")
    path = written(scene, RULE)
    agent = scene.agent("--policy", path, "--kill-switch", str(scene.folder / "no-act"))

    def policy() -> dict[str, Any]:
        status = scene.status() or {}
        return dict(status.get("policy") or {})

    until("it is there", lambda: policy().get("mode") == "observe")
    assert policy()["rules"][0]["name"] == "leak"
    written(scene, "mode = 7")
    os.kill(scene.inner(agent), signal.SIGHUP)
    until("the new one is refused", lambda: "the old one stays" in policy()["said"])
    assert policy()["mode"] == "observe"
    written(scene, 'name = "second"\nmode = "act"\n' + RULE)
    (scene.folder / "no-act").touch()
    os.kill(scene.inner(agent), signal.SIGHUP)
    until("it is taken", lambda: (policy()["name"], policy()["mode"]) == ("second", "act"))
    until("it is halted", lambda: policy()["halted"] == "kill-switch")
    shown = scene.do(*scene.finwait("agent", "status", "--socket", scene.socket), check=False).stdout
    assert "nothing is done: the kill switch is there" in shown
    assert "rule leak: 0 chosen" in shown


def test_what_is_left_of_the_budget_is_a_metric(service_scene: AgentScene) -> None:
    pytest.importorskip("prometheus_client")
    scene = service_scene
    path = written(scene, 'mode = "dry-run"\n[budget]\nday = 7\nlook = 9\n' + RULE)
    scene.agent("--policy", path, "--listen", ADDRESS)
    until("it is served", lambda: scene.metric("finwait_policy_budget_remaining") == 7)
