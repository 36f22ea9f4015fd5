"""Whatever happens to the machine, a policy never goes above a budget.

Random life stories: connections come, age, go and reuse cookies on other boots; the agent is killed and started anew,
which leaves it the journal alone; acts fail, are cut short, or do nothing; the wall clock is set back and forth; the
machine is restarted. What was done is counted by a model that knows the real time, which nobody sets.

`FINWAIT_POLICY_DECISIONS` sets how many connections are decided on.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from msgspec.structs import replace

from finwait.agent.episodes import Instant
from finwait.agent.policy import DAY_S, Decision, PastAct, PastResult, Standing, decide
from finwait.agent.policy_file import Policy, parse_policy
from finwait.uapi import tcp

S = 1_000_000_000
DECISIONS = int(os.environ.get("FINWAIT_POLICY_DECISIONS", "1000000"))
EPOCH_S = 1_764_000_000
RESULTS: tuple[PastResult, ...] = ("expected", "expected", "expected", "nothing", "open", "unexpected")
FINDINGS = ("fin-wait2-held", "close-wait-eof-read", "zero-window")


def random_policy(rng: random.Random) -> Policy:
    """Small budgets, so that they are reached."""

    def budget() -> str:
        names = {"look": 6, "ten_minutes": 8, "day": 30, "process": 9, "workload": 14}
        return "".join(
            f"{name} = {rng.randint(0, most)}\n" for name, most in names.items() if rng.random() < 0.8
        )

    text = f"[budget]\n{budget()}"
    for k in range(rng.randint(1, 3)):
        findings = rng.sample(FINDINGS, rng.randint(1, 2))
        text += f'[[rule]]\nname = "r{k}"\nfindings = {findings}\n'.replace("'", '"')
        text += f'min_age = "{rng.choice((10, 20, 60))}m"\ncool_down = "{rng.choice((60, 300, 3600))}s"\n'
        text += f"share = {rng.choice((0.1, 0.3, 0.5))}\nlooks = {rng.randint(3, 5)}\n"
        if rng.random() < 0.3:
            text += f'windows = ["{rng.choice(("22:00-04:00", "sat 23:30-12:00", "06:00-18:00"))}"]\n'
        text += f"with = {rng.choice((['fin'], ['fin', 'keepalive'], ['keepalive', 'destroy']))}\n".replace(
            "'", '"'
        )
        text += f"[rule.budget]\n{budget()}"
    return parse_policy(text.encode(), "random")


@dataclass
class Life:
    """A machine, its real time, and what was done to it."""

    rng: random.Random
    policy: Policy
    backwards: bool
    """Whether machines are restarted: then the clock is only set back, for nothing tells the time between two boots."""
    real_s: float = 0.0
    boot: int = 0
    booted_s: float = 0.0
    off_s: float = 0.0
    alive: dict[int, Standing] = field(default_factory=dict)
    since_s: dict[int, float] = field(default_factory=dict)
    journal: list[PastAct] = field(default_factory=list)
    done: list[tuple[float, PastAct]] = field(default_factory=list)
    decided: int = 0

    @property
    def now(self) -> Instant:
        return Instant(
            int((self.real_s - self.booted_s + 1) * S), int((EPOCH_S + self.real_s + self.off_s) * S)
        )

    @property
    def boot_id(self) -> str:
        return f"boot-{self.boot}"

    def happen(self) -> None:
        rng = self.rng
        self.real_s += rng.choice((15, 120, 120, 600, 3600, 30_000)) * rng.random()
        for _ in range(rng.randint(0, 6)):
            cookie = rng.randint(1, 60)  # few, so that they come again
            pid = rng.randint(1, 4)
            self.alive[cookie] = Standing(
                netns=1, cookie=cookie, state=rng.choice((tcp.FIN_WAIT2, tcp.CLOSE_WAIT)),
                finding=rng.choice(FINDINGS), certain=rng.random() < 0.9, age_s=0.0, verdicts=rng.randint(1, 8),
                workload=f"w{pid % 3}", processes=((pid, 5), (9, 5)) if rng.random() < 0.2 else ((pid, 5),),
                selected=frozenset(r.name for r in self.policy.rules if rng.random() < 0.9),
            )  # fmt: skip
            self.since_s[cookie] = self.real_s - rng.random() * 7200
        if self.alive and rng.random() < 0.3:
            del self.alive[rng.choice(list(self.alive))]
        if rng.random() < 0.1:
            jump = rng.choice((-90_000, -700, 700, 90_000)) * rng.random()
            self.off_s += -abs(jump) if self.backwards else jump
        if self.backwards and rng.random() < 0.03:
            self.boot += 1
            self.booted_s = self.real_s
            self.alive.clear()

    def look(self) -> None:
        """Decide, and write down what is chosen, as whoever acts does before acting."""
        rng, now = self.rng, self.now
        rows = [replace(s, age_s=max(0.0, self.real_s - self.since_s[c])) for c, s in self.alive.items()]
        held = {pid: rng.randint(0, 12) for pid in (*range(1, 5), 9)}
        decision = decide(self.policy, rows, tuple(self.journal), held=held, now=now, boot=self.boot_id)
        self.decided += len(rows)
        self.check_one(decision, held, now)
        for choice in decision.chosen:
            if rng.random() < 0.05:
                break  # killed: the rest was never written down
            s = choice.standing
            result = rng.choice(RESULTS)
            made = PastAct(
                choice.rule.name, self.boot_id, now, s.netns, s.cookie, s.workload, s.processes,
                choice.means[0], s.finding, result,
            )  # fmt: skip
            self.journal.append(made)
            self.done.append((self.real_s, made))
            if result == "expected" and rng.random() < 0.8:
                self.alive.pop(s.cookie, None)
        if len(self.journal) > 600:  # all that is older is older than a day, whatever the clocks say
            recent = [(at, a) for at, a in self.done if self.real_s - at <= 2 * DAY_S]
            kept = {id(a) for _, a in recent}
            self.journal = [a for a in self.journal if id(a) in kept]
            self.done = recent

    def check_one(self, decision: Decision, held: dict[int, int], now: Instant) -> None:
        chosen = decision.chosen
        by_rule = Counter(choice.rule.name for choice in chosen)
        assert len(chosen) <= self.policy.budget.look
        shares: Counter[int] = Counter(pid for c in chosen for pid, _ in c.standing.processes)
        for choice in chosen:
            rule, s = choice.rule, choice.standing
            assert by_rule[rule.name] <= rule.budget.look
            assert s.certain
            assert s.age_s >= rule.min_age_s
            assert s.verdicts >= rule.looks
            assert s.finding in rule.findings
            assert rule.open_at(now.wall_ns)
            for pid, _ in s.processes:
                assert shares[pid] <= 0.5 * held[pid]
        assert len(chosen) + len(decision.spared) + decision.unnamed == len(self.alive)

    def check_all(self) -> None:
        """Count what was done in every span of real time that ends with an act."""
        policy, acts = self.policy, self.done
        scopes = [("", policy.budget), *((rule.name, rule.budget) for rule in policy.rules)]
        for name, budget in scopes:
            mine = [(at, a) for at, a in acts if name in ("", a.rule)]
            assert most_within(mine, 600) <= budget.ten_minutes
            assert most_within(mine, DAY_S) <= budget.day
            for workload in {a.workload for _, a in mine}:
                assert most_within([e for e in mine if e[1].workload == workload], DAY_S) <= budget.workload
            for key in {(a.boot, p) for _, a in mine for p in a.processes}:
                own = [e for e in mine if e[1].boot == key[0] and key[1] in e[1].processes]
                assert most_within(own, DAY_S) <= budget.process


def most_within(acts: Sequence[tuple[float, PastAct]], span_s: float) -> int:
    """The most acts in any span of that length; acts are in the order of time."""
    most = first = 0
    for k, (at, _) in enumerate(acts):
        # CLOCK_BOOTTIME counts whole nanoseconds, the model fractions.
        while at - acts[first][0] >= span_s - 1e-6:
            first += 1
        most = max(most, k - first + 1)
    return most


@pytest.mark.parametrize("backwards", [False, True], ids=["clock jumps", "restarts of the machine"])
def test_no_history_goes_above_any_budget(backwards: bool) -> None:
    rng = random.Random(20261129 + backwards)
    decided = acted = 0
    while decided < DECISIONS // 2:
        life = Life(rng, random_policy(rng), backwards)
        for _ in range(rng.randint(20, 150)):
            life.happen()
            life.look()
        life.check_all()
        decided += life.decided
        acted += len(life.done)
    assert acted > decided / 1000, "budgets that are never used prove nothing"


def test_the_model_sees_a_budget_that_is_forgotten() -> None:
    policy = parse_policy(
        b'[budget]\nten_minutes = 1\n[[rule]]\nname = "r0"\nfindings = ["zero-window"]', "p"
    )
    life = Life(random.Random(1), policy, backwards=False)
    act = PastAct("r0", "boot-0", Instant(0, 0), 1, 1, "w", ((1, 5),), "fin")
    life.done = [(0.0, act), (599.0, act)]
    with pytest.raises(AssertionError):
        life.check_all()
    life.done = [(0.0, act), (601.0, act)]
    life.check_all()
