"""The policy at work over a machine of values: what is decided is planned, done in portions, and remembered."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from finwait.agent.episodes import Instant
from finwait.agent.loop import Looker
from finwait.agent.metrics import METRICS
from finwait.agent.policing import Policing, PolicyMark, unexpected
from finwait.agent.policy import Chosen, PastAct
from finwait.agent.policy_file import PolicyError
from finwait.agent.protocol import AgentAnswer, decode_answer, encode
from finwait.agent.store import Store
from finwait.agent.telling import status_lines, when_text
from finwait.errors import FinwaitError, KernelError, Refused
from finwait.remedy.outcome import Outcome, Result
from finwait.remedy.plan import SEES, Plan, Refusal, Step
from finwait.uapi import tcp
from tests.agent_world import S, Sock, World

RULE = '[[rule]]\nname = "leak"\nfindings = ["fin-wait2-held"]\nmin_age = "10m"\nshare = 0.5\n'


class Hands:
    """Acts on a world, with a journal in memory."""

    def __init__(self, world: World, text: str) -> None:
        self.world = world
        self.text = text
        self.switch = False
        self.journal: list[PastAct] = []
        self.broken: FinwaitError | None = None
        self.refused: tuple[Refusal, ...] = ()
        self.result: Callable[[Step], Result] = lambda _: "ended"
        self.portions: list[int] = []
        self.planned = 0
        self.alone_now = False
        self.plan_s = 0.0

    def read(self) -> bytes:
        return self.text.encode()

    def watch(self, kill_switch: str) -> None:
        self.kill_switch = kill_switch

    def killed(self) -> bool:
        return self.switch

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        self.alone_now = True
        yield
        self.alone_now = False

    def past(self) -> list[PastAct]:
        if self.broken is not None:
            raise self.broken
        return list(self.journal)

    def plan(
        self, choices: Sequence[Chosen], admit: Callable[[Sequence[Sequence[Step]]], Sequence[Step]]
    ) -> Plan:
        self.planned += 1
        self.world.pass_(self.plan_s)
        steps = [step_of(self.world.socks[c.standing.cookie], c.means[0]) for c in choices]
        return Plan(0, self.world.boot_id, tuple(admit([[step] for step in steps])), refused=self.refused)

    def now(self) -> Instant:
        return self.world.now()

    def act(
        self,
        plan: Plan,
        marks: Mapping[tuple[int, int], PolicyMark],
        into: dict[int, Outcome],
        may: Callable[[PolicyMark, Instant], bool],
    ) -> bool:
        assert self.alone_now
        if not all(may(mark, self.now()) for mark in marks.values()):
            raise Refused("window", "the window has closed")
        self.portions.append(len(plan.steps))
        for k, step in enumerate(plan.steps):
            mark = marks[step.netns, int(step.cookie, 16)]
            result = self.result(step)
            into[k] = Outcome(step, result)
            self.journal.append(
                PastAct(
                    mark.rule, self.world.boot_id, self.world.now(), step.netns, int(step.cookie, 16),
                    mark.workload, mark.processes, step.means, mark.finding,
                    "unexpected" if unexpected(into[k]) else "expected", mark.reached,
                )
            )  # fmt: skip
            if result == "ended":
                del self.world.socks[int(step.cookie, 16)]
        return True


def step_of(sock: Sock, means: Any) -> Step:
    return Step(
        means=means, kind="destructive", rule="fin-wait2-held", netns=sock.netns, protocol=6, family=2,
        src="10.0.0.1", sport=sock.sport, dst="10.0.0.2", dport=sock.dport, state="FIN_WAIT2",
        cookie=f"{sock.cookie:#x}", inode=1, bytes_received=0, bytes_acked=0,
        holders=((sock.pid, 3, "program"),), sees="fin", peer_told=SEES["fin"],
    )  # fmt: skip


class Bench:
    """A world that leaks, and an agent with a policy that may be started anew."""

    def __init__(self, folder: Path, text: str) -> None:
        self.world = World()
        self.hands = Hands(self.world, text)
        self.path = folder / "state" / "history.sqlite"
        self.said: list[str] = []
        self.start()

    def start(self, **more: Any) -> None:
        self.policing = Policing(self.hands, "p.toml", self.world.boot_id, say=self.said.append, **more)
        self.looker = Looker(
            self.world,
            lambda: Store(self.path, clock=self.world.monotonic),
            share=0.5,
            policing=self.policing,
        )

    def run(self, seconds: float) -> None:
        end = self.world.now_ns + int(seconds * S)
        while self.world.now_ns < end:
            rest = self.looker.round()
            self.world.pass_(min(rest, (end - self.world.now_ns) / S + 0.001))
        self.looker.round()

    @property
    def status(self) -> Any:
        assert self.looker.status is not None
        assert self.looker.status.policy is not None
        return self.looker.status.policy

    @property
    def counts(self) -> dict[str, int]:
        return {entry.outcome: entry.total for entry in self.policing.actions}

    def budget(self) -> int:
        assert self.looker.picture is not None
        return self.looker.picture.policy_budgets[0].remaining


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Bench]:
    def made(rule: str = "", above: str = 'mode = "act"\n', n: int = 40) -> Bench:
        bench = Bench(tmp_path, above + RULE + rule)
        for _ in range(n):
            bench.world.add(tcp.FIN_WAIT2, pid=7)
        return bench

    return made


def test_it_waits_for_age_and_verdicts_and_then_acts_within_every_budget(make: Callable[..., Bench]) -> None:
    bench = make('cool_down = "5m"\n', 'mode = "act"\n[budget]\nlook = 4\nten_minutes = 6\nday = 9\n')
    bench.run(590)
    assert bench.hands.journal == []
    assert bench.status.rules[0].spared["young"] == 40
    bench.run(7200)
    assert len(bench.hands.journal) == 9
    assert max(bench.hands.portions) <= 4
    assert bench.counts == {"ended": 9}
    assert bench.budget() == 0
    bench.start()
    bench.run(3600)
    assert len(bench.hands.journal) == 9, "a restart refills nothing"
    bench.world.pass_(86400)
    bench.run(3600)
    assert len(bench.hands.journal) == 18, "a day later there is budget for a day"


def test_large_plans_are_done_in_portions_and_the_kill_switch_ends_them(make: Callable[..., Bench]) -> None:
    above = 'mode = "act"\n[budget]\nlook = 30\nten_minutes = 30\nprocess = 30\nworkload = 30\n'
    bench = make("", above, n=100)
    act = bench.hands.act

    def acted(*words: Any) -> bool:
        bench.hands.switch = len(bench.hands.portions) == 1
        return act(*words)

    bench.hands.act = acted  # type: ignore[method-assign,assignment]
    bench.run(1500)
    assert bench.hands.portions == [10, 10]
    assert bench.status.halted == "kill-switch"
    bench.run(3600)
    assert len(bench.hands.journal) == 20


WIDE = "[budget]\nlook = 50\nten_minutes = 50\nprocess = 50\nworkload = 50\n"


def test_older_connections_that_a_rule_does_not_select_take_nobodys_place(
    make: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("finwait.agent.standings.STANDING_MOST", 5)
    bench = make('where = "comm = small"\n', 'mode = "act"\n' + WIDE, n=40)
    bench.world.pass_(1)
    for _ in range(4):
        bench.world.add(tcp.FIN_WAIT2, pid=8)
    bench.world.selected_pids = {8}
    bench.run(1500)
    assert {act.processes[0][0] for act in bench.hands.journal} == {8}
    assert not bench.policing.gaps(None)


def test_older_connections_of_one_program_do_not_hide_those_of_another_and_the_rest_is_a_gap(
    make: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("finwait.agent.standings.STANDING_MOST", 20)
    bench = make('cool_down = "1m"\n', 'mode = "act"\n' + WIDE.replace("process = 50", "process = 3"), n=40)
    bench.world.pass_(1)
    for _ in range(4):
        bench.world.add(tcp.FIN_WAIT2, pid=8)
    bench.run(1500)
    assert {act.processes[0][0] for act in bench.hands.journal} == {7, 8}
    (gap,) = bench.policing.gaps(None)
    beyond = bench.status.rules[0].spared["unjudged"]
    assert beyond > 10
    assert gap.doing == f"judge {beyond} connections that it selects"
    assert bench.looker.status is not None
    assert f"not judged, too many at a time: {beyond}" in "".join(status_lines(bench.looker.status))


def test_what_plainly_speaks_against_an_act_is_counted_and_not_unjudged(
    make: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("finwait.agent.standings.STANDING_MOST", 5)
    bench = make(n=40)
    bench.run(300)
    assert bench.status.rules[0].spared == {"young": 40}
    assert not bench.policing.gaps(None)


def test_what_other_budgets_and_guards_keep_is_not_planned_in_place_of_the_rest(
    make: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("finwait.agent.policing._PLANNED_MOST", 4)
    bench = make('cool_down = "1m"\n', 'mode = "act"\n' + WIDE.replace("process = 50", "process = 3"), n=40)
    bench.world.pass_(1)
    for _ in range(6):
        bench.world.add(tcp.FIN_WAIT2, pid=8)
    bench.run(3600)
    assert {act.processes[0][0] for act in bench.hands.journal} == {7, 8}


def window(bench: Bench, seconds: float) -> str:
    """Return a window that closes about so long from now."""
    minute = int((bench.world.now().wall_ns / S + seconds) // 60) % 1440
    before = (minute - 120) % 1440
    return f'windows = ["{before // 60:02}:{before % 60:02}-{minute // 60:02}:{minute % 60:02}"]\n'


@pytest.mark.parametrize("mode", ["act", "dry-run"])
def test_a_window_that_closes_while_a_plan_is_made_is_asked_again(
    make: Callable[..., Bench], mode: str
) -> None:
    bench = make('cool_down = "1m"\n', f'mode = "{mode}"\n')
    bench.hands.text += window(bench, 1200)
    bench.start()
    bench.hands.plan_s = 1300.0
    bench.run(1200)
    assert bench.hands.planned > 0, "it was open when that was decided"
    assert bench.hands.journal == []
    assert bench.counts == {}
    assert bench.status.rules[0].chosen == 0


def test_a_window_that_closes_between_portions_ends_them(make: Callable[..., Bench]) -> None:
    bench = make("", 'mode = "act"\n' + WIDE, n=100)
    bench.hands.text = bench.hands.text.replace("share", window(bench, 3000) + "share")
    bench.start()
    act = bench.hands.act

    def acted(*words: Any) -> bool:
        finished = act(*words)
        bench.world.pass_(3600)
        return finished

    bench.hands.act = acted  # type: ignore[method-assign,assignment]
    bench.run(610)
    assert bench.hands.portions == [10]
    assert bench.status.rules[0].spared["window"] == 40


def test_budgets_are_asked_again_before_each_portion(make: Callable[..., Bench]) -> None:
    bench = make("", 'mode = "act"\n' + WIDE, n=100)
    act = bench.hands.act

    def acted(*words: Any) -> bool:
        finished = act(*words)
        bench.hands.journal += [replace(bench.hands.journal[0], cookie=10**6 + k) for k in range(35)]
        return finished

    bench.hands.act = acted  # type: ignore[method-assign,assignment]
    bench.run(1500)
    assert bench.hands.portions == [10, 5]


def test_an_act_counts_from_when_it_was_done(make: Callable[..., Bench]) -> None:
    bench = make('cool_down = "1m"\n')
    bench.hands.plan_s = 30.0
    bench.run(900)
    assert "2023-11-14T" in bench.status.recent[0]
    done = bench.hands.journal[0].at.wall_ns // S
    assert bench.status.recent[-1].startswith(when_text(done * S)), "not when it was decided"


def test_an_unexpected_result_ends_the_portions_and_is_told(make: Callable[..., Bench]) -> None:
    bench = make('cool_down = "1h"\n', 'mode = "act"\n[budget]\nlook = 20\nten_minutes = 20\n', n=100)
    bench.hands.result = lambda _: "failed"
    bench.run(1200)
    assert bench.hands.portions == [10]
    assert bench.counts == {"failed": 10}
    assert bench.status.rules[0].spared["unexpected"] == 100
    assert any("was not expected" in line for line in bench.said)


def test_what_a_guard_says_of_the_whole_is_counted_and_nothing_is_done(make: Callable[..., Bench]) -> None:
    bench = make()
    bench.hands.refused = (Refusal("share", "too many", ""),)
    bench.run(1500)
    assert bench.hands.journal == []
    assert bench.counts["refused"] > 0
    assert "guard `share`" in bench.status.said
    assert bench.status.rules[0].chosen == 0
    assert len(bench.said) == 1


@pytest.mark.parametrize("mode", ["act", "dry-run", "observe"])
def test_where_the_journal_cannot_be_read_nothing_is_done(make: Callable[..., Bench], mode: str) -> None:
    bench = make(above=f'mode = "{mode}"\n')
    bench.hands.broken = KernelError(5, "read the journal")
    bench.run(3000)
    assert (bench.hands.journal, bench.hands.planned, bench.status.halted) == ([], 0, "error")
    assert len(bench.said) == 1, "it is said once"
    bench.hands.broken = None
    bench.run(700)
    assert (bench.status.halted, bench.status.said) == ("", "")
    bench.hands.broken = KernelError(5, "read the journal")
    bench.run(700)
    assert len(bench.said) == 2, "it failed anew"
    assert "read the journal" in bench.status.said


def test_no_act_and_observe_make_no_plan(make: Callable[..., Bench]) -> None:
    bench = make()
    bench.start(no_act=True)
    bench.run(3000)
    assert (bench.hands.planned, bench.status.halted, bench.status.rules[0].chosen) == (0, "no-act", 10)
    bench.hands.text = bench.hands.text.replace("act", "observe", 1)
    bench.start()
    bench.run(3000)
    assert bench.hands.planned == 0
    assert bench.looker.picture is not None
    assert bench.looker.picture.policy_budgets == []


def test_a_dry_run_spends_the_budget_as_acting_would_and_a_restart_refills_nothing(
    make: Callable[..., Bench],
) -> None:
    bench = make('cool_down = "1m"\n', 'mode = "dry-run"\n[budget]\nday = 12\n')
    bench.run(3600)
    assert bench.hands.journal == []
    assert bench.counts == {"would": 12}
    assert len(bench.world.socks) == 40
    with Store(bench.path, read_only=True) as store:
        rows = store.select("SELECT DISTINCT cookie FROM rehearsed", ())
    assert len(rows) == 12, "each connection once"
    bench.start()
    bench.run(3600)
    assert (bench.counts, bench.budget()) == ({}, 0)


def test_a_new_file_that_is_wrong_leaves_the_old_policy_and_says_so(make: Callable[..., Bench]) -> None:
    bench = make()
    before = bench.policing.policy
    bench.hands.text = "mode = 'shoot'"
    bench.policing.reload()
    assert bench.policing.policy == before
    bench.run(30)
    assert "p.toml:1:" in bench.status.said
    assert "the old one stays" in bench.said[-1]
    bench.hands.text = 'mode = "observe"'
    bench.policing.reload()
    bench.run(30)
    assert (bench.status.mode, bench.status.said) == ("observe", "")


@pytest.mark.parametrize("mode", ["act", "dry-run"])
def test_a_file_that_is_gone_stops_acting_until_it_is_back(make: Callable[..., Bench], mode: str) -> None:
    bench = make(above=f'mode = "{mode}"\n')
    read = bench.hands.read

    def gone() -> bytes:
        raise FinwaitError("could not read the policy `p.toml`: No such file or directory")

    bench.hands.read = gone  # type: ignore[method-assign]
    bench.policing.reload()
    bench.run(3000)
    assert (bench.hands.journal, bench.counts, bench.hands.planned) == ([], {}, 0)
    assert bench.status.halted == "error"
    assert "could not read the policy" in bench.status.said
    assert len(bench.said) == 1
    bench.hands.read = read  # type: ignore[method-assign]
    bench.policing.reload()
    bench.run(700)
    assert (bench.status.halted, bench.status.said) == ("", "")
    assert bench.counts


def test_a_wrong_file_at_the_start_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match=r"p.toml:1"):
        Bench(tmp_path, "nothing = 1")


def test_where_the_cure_feeds_the_leak_the_rule_stops_for_a_day(make: Callable[..., Bench]) -> None:
    bench = make('cool_down = "5m"\n[rule.budget]\nlook = 1\n', n=10)
    while not bench.hands.journal:
        bench.run(30)
    for _ in range(60):
        bench.world.add(tcp.FIN_WAIT2, pid=7)
        bench.run(10)
    done = len(bench.hands.journal)
    bench.run(1200)
    assert bench.status.rules[0].stopped == ["program7"]
    assert len(bench.hands.journal) == done <= 3
    assert any("is stopped for 24 h" in line for line in bench.said)
    bench.start()
    bench.run(3600)
    assert bench.status.rules[0].stopped == ["program7"], "a restart does not end it"
    assert len(bench.hands.journal) == done
    bench.world.pass_(86400)
    bench.run(3600)
    assert bench.status.rules[0].stopped == []


def test_a_verdict_that_changes_begins_to_count_anew(make: Callable[..., Bench]) -> None:
    bench = make(n=4)
    bench.run(400)
    for sock in bench.world.socks.values():
        sock.others = (8,)
    bench.run(300)
    assert bench.hands.journal == []
    assert bench.status.rules[0].spared.keys() <= {"looks", "young"}
    bench.run(600)
    assert bench.hands.journal


def test_reading_the_policy_again_and_again_does_not_make_verdicts(make: Callable[..., Bench]) -> None:
    bench = make(n=4)
    bench.run(30)
    for sock in bench.world.socks.values():
        sock.entered_ns = sock.since_ns = 0  # old enough, by its own clocks
    for _ in range(60):
        bench.policing.reload()
        bench.looker.renew()
        bench.run(2)
    assert bench.world.diagnoses >= 50
    assert (bench.hands.journal, bench.status.rules[0].spared.keys() <= {"looks", "young"}) == ([], True)


def test_an_act_at_the_other_end_is_charged_to_the_process_there(make: Callable[..., Bench]) -> None:
    bench = make(above='mode = "act"\n[budget]\nprocess = 3\n')
    plan = bench.hands.plan

    def elsewhere(choices: Sequence[Chosen], admit: Callable[..., Sequence[Step]]) -> Plan:
        def moved(units: Sequence[Sequence[Step]]) -> Sequence[Step]:
            return admit(
                [
                    [msgspec.structs.replace(step, holders=((9, 4, "other"),)) for step in unit]
                    for unit in units
                ]
            )

        return plan(choices, moved)

    bench.hands.plan = elsewhere  # type: ignore[method-assign]
    bench.world.socks |= {1000 + k: Sock(1000 + k, tcp.FIN_WAIT2, sport=5000 + k, pid=9) for k in range(20)}
    bench.run(3600)
    assert {(9, 5)} <= {p for act in bench.hands.journal for p in act.processes}
    both = [act for act in bench.hands.journal if (9, 5) in act.processes]
    assert len(both) == 3
    assert {act.reached for act in both if act.workload == "program7"} <= {("program9",)}


def test_an_act_at_the_other_end_counts_for_the_workload_there(make: Callable[..., Bench]) -> None:
    bench = make(above='mode = "act"\n[budget]\nworkload = 4\n')
    plan = bench.hands.plan

    def elsewhere(choices: Sequence[Chosen], admit: Callable[..., Sequence[Step]]) -> Plan:
        def moved(units: Sequence[Sequence[Step]]) -> Sequence[Step]:
            return admit(
                [
                    [msgspec.structs.replace(s, holders=((20 + s.sport % 9, 4, "other"),)) for s in unit]
                    for unit in units
                ]
            )

        return plan(choices, moved)

    bench.hands.plan = elsewhere  # type: ignore[method-assign]
    for sock in bench.world.socks.values():
        sock.pid = 30 + sock.sport % 5
    for k in range(9 * 20):
        bench.world.add(tcp.ESTABLISHED, pid=20 + k % 9)
    bench.run(7200)
    assert len(bench.hands.journal) == 4
    assert {act.reached for act in bench.hands.journal} == {("other",)}
    assert len({act.workload for act in bench.hands.journal}) > 1


def test_what_is_told_is_typed_and_shown(make: Callable[..., Bench]) -> None:
    bench = make('windows = ["00:00-24:00"]\n')
    bench.run(1500)
    assert bench.looker.status is not None
    assert bench.looker.picture is not None
    for answer in (AgentAnswer(status=bench.looker.status), AgentAnswer(picture=bench.looker.picture)):
        assert decode_answer(encode(answer)) == answer
    text = "".join(status_lines(bench.looker.status))
    assert "policy     `default` of `p.toml`, mode act" in text
    assert "rule leak: " in text
    assert "fin-wait2-held: ended" in text
    samples = {m.name: list(m.samples(bench.looker.picture)) for m in METRICS if "policy" in m.name}
    assert samples["finwait_policy_actions_total"] == [
        (("default", "leak", "ended"), len(bench.hands.journal))
    ]
    assert samples["finwait_policy_budget_remaining"][0][0] == ("default",)


def test_outside_of_all_windows_nothing_is_left(make: Callable[..., Bench]) -> None:
    bench = make('windows = ["00:00-00:01"]\n')
    bench.run(3600)
    wall = bench.world.now().wall_ns
    assert wall // (60 * S) % 1440 > 1
    assert (bench.hands.journal, bench.budget()) == ([], 0)
    assert (
        bench.policing.budgets(Instant(bench.world.now_ns, wall // (86400 * S) * 86400 * S))[0].remaining
        == 10
    )


def test_expected_and_unexpected_results() -> None:
    step = step_of(Sock(1, tcp.FIN_WAIT2, pid=7), "fin")
    asked = replace(Outcome(msgspec.structs.replace(step, means="keepalive"), "still there"))
    results: list[Result] = ["ended", "left before", "changed meanwhile", "set", "still there", "failed"]
    assert [r for r in results if unexpected(Outcome(step, r))] == ["still there", "failed"]
    assert not unexpected(asked), "a peer that answers a probe lives"
