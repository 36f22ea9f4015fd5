"""What a policy allows now: a function of values. Pure.

    (policy, connections with ages and verdicts, former acts, now) → what to act on, and why the rest is left alone

Theory of operation. A connection is *eligible* when nothing about itself speaks against it: one rule of the policy is
about it, the finding is certain and was the same in enough looks, it is old enough, its holders are known, and what is
tried next has not been tried. Then the `Ledger` says whether there is budget left. It counts former acts, which come
from the journal: a restart refills nothing, and what was written down and not done counts as well.

Workloads. What a pod is called may become known later, or be forgotten: ``pod/UID`` and ``shop/cart`` are then one
workload, and its budget is one. So an act is charged to the pod as well as to the name, and what was charged to a pod
counts for every name that it has had (`names_of_pods`).

Time. Acts of this boot are as old as CLOCK_BOOTTIME says, whatever somebody does to the wall clock. Of an act of
another boot only the wall clock tells; one that seems to come from the future happened just now. Windows are of the
wall clock, in UTC.

The surprise: nothing here decides whether to act. Mode, kill switch and guards come after, in
`finwait.agent.policing`; they can only take away.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Final, Literal

from msgspec import Struct

from finwait.agent.episodes import Instant
from finwait.agent.policy_file import Policy, PolicyRule
from finwait.diagnosis.rule import Means
from finwait.uapi import tcp

__all__ = [
    "DAY_S",
    "BudgetName",
    "Charge",
    "Chosen",
    "Decision",
    "Ledger",
    "NamesOfPods",
    "OpenedCount",
    "PastAct",
    "PastResult",
    "Spared",
    "SparedBy",
    "Standing",
    "decide",
    "names_of_pods",
    "sped_up",
]

DAY_S: Final = 86_400.0
_TEN_MINUTES_S: Final = 600.0
_AROUND_S: Final = 1800.0
"""Before an act and after it: the time in which openings are counted."""
_AFTER_LEAST_S: Final = 120.0
_BEFORE_LEAST_S: Final = 300.0
_OPENINGS_LEAST: Final = 5

SocketKey = tuple[int, int]
"""Network namespace and cookie."""
ProcessKey = tuple[int, int]
"""Pid, and when it began in ms since boot."""

PastResult = Literal["expected", "unexpected", "open", "nothing", "rehearsed"]
"""What came of an act; *open*: that is not written down, for it was cut short; *nothing*: the connection was not as
planned any more, and was left alone; *rehearsed*: in a dry run."""
BudgetName = Literal["look", "ten_minutes", "day", "process", "workload", "share"]
SparedBy = Literal[
    "not-certain", "state", "excluded", "unnamed", "holder-unknown", "young", "looks", "tried", "rehearsed", "window",
    "cool-down", "unexpected", "opening", "look", "ten_minutes", "day", "process", "workload", "share",
]  # fmt: skip
"""Why a connection is left alone; the last six are budgets."""


class Standing(Struct, frozen=True):
    """A connection in a closing state, as the agent knows it."""

    netns: int
    cookie: int
    state: int
    finding: str
    """Name of the rule of the diagnosis."""
    certain: bool
    age_s: float
    """In its state for this long, for sure."""
    verdicts: int
    """Diagnoses in a row that said the same."""
    workload: str = ""
    processes: tuple[ProcessKey, ...] = ()
    """All that hold it."""
    holders_known: bool = True
    selected: frozenset[str] = frozenset()
    """Rules of the policy whose FILTERs let it pass."""
    pod: str = ""
    """The uid of its pod; empty for none."""
    left_alone: Literal["", "excluded", "unnamed"] = ""
    """Whether it, or its other end, is of a pod that is never acted on, or of which that is not known."""

    @property
    def key(self) -> SocketKey:
        """What names it on this boot."""
        return self.netns, self.cookie


class PastAct(Struct, frozen=True):
    """An act of a policy, as the journal has it."""

    rule: str
    """Of the policy."""
    boot: str
    at: Instant
    """When; ``boot_ns`` −1 where that is not known."""
    netns: int
    cookie: int
    workload: str
    processes: tuple[ProcessKey, ...]
    means: str
    finding: str = ""
    result: PastResult = "expected"
    reached: tuple[str, ...] = ()
    """Other workloads, where it was done at the other end; their pods too, as ``pod/UID``."""
    pod: str = ""
    """The uid of its pod; empty for none."""

    def age_s(self, now: Instant, boot: str) -> float:
        """Return how long ago it was, in seconds; never less than 0."""
        if self.boot == boot and self.at.boot_ns >= 0:
            return max(0, now.boot_ns - self.at.boot_ns) / 1e9
        return max(0, now.wall_ns - self.at.wall_ns) / 1e9


class Charge(Struct, frozen=True):
    """What an act on one connection takes from budgets."""

    rule: str
    workload: str
    processes: tuple[ProcessKey, ...]
    reached: tuple[str, ...] = ()
    """Other workloads, where it is done at the other end; their pods too, as ``pod/UID``."""
    pod: str = ""
    """The uid of its pod; empty for none."""

    def workloads(self, names: NamesOfPods) -> frozenset[str]:
        """Return all workloads whose budget it takes from, by every name."""
        return called((self.workload, *self.reached, *_of_pod(self.pod)), names)


class Chosen(Struct, frozen=True):
    """A connection that may be acted on."""

    standing: Standing
    rule: PolicyRule
    means: tuple[Means, ...]
    """Those that are left to try, the gentlest first."""

    @property
    def charge(self) -> Charge:
        """What it takes from budgets."""
        standing = self.standing
        return Charge(self.rule.name, standing.workload, standing.processes, pod=standing.pod)


class Spared(Struct, frozen=True):
    """A connection that is left alone, and why."""

    standing: Standing
    rule: str
    """Of the policy."""
    by: SparedBy


class Decision(Struct, frozen=True):
    """What a policy allows."""

    chosen: tuple[Chosen, ...]
    """Within the budget."""
    eligible: tuple[Chosen, ...]
    """Those, and the others that only a budget speaks against."""
    spared: tuple[Spared, ...]
    unnamed: int = 0
    """Connections that no rule is about."""


class OpenedCount(Struct, frozen=True):
    """Episodes that opened at about one time."""

    finding: str
    workload: str
    boot_s: float
    count: int


NamesOfPods = Mapping[str, frozenset[str]]
"""``pod/UID`` → the workloads that it is, or was."""


def _of_pod(uid: str) -> tuple[str, ...]:
    return (f"pod/{uid}",) if uid else ()


def called(workloads: Iterable[str], names: NamesOfPods) -> frozenset[str]:
    """Return workloads, and the names of those that are pods."""
    several = frozenset(workloads)
    return several.union(*(names[workload] for workload in several if workload in names))


def names_of_pods(pairs: Iterable[tuple[str, str]]) -> dict[str, frozenset[str]]:
    """Return what pods are called, of (uid, workload), as they were told and as acts have it."""
    names: dict[str, frozenset[str]] = {}
    for uid, workload in pairs:
        if uid and workload and (pod := f"pod/{uid}") != workload:
            names[pod] = names.get(pod, frozenset()) | {workload}
    return names


class Ledger:
    """What is left of the budgets; of several that speak of a connection the strictest wins.

    Args:
        policy: whose.
        acts: former acts of policies, whatever they were called.
        held: pid → connections that it holds.
        now: the time.
        boot: id of this boot.
        names: what pods are called.
    """

    def __init__(
        self,
        policy: Policy,
        acts: Iterable[PastAct],
        held: Mapping[int, int],
        now: Instant,
        boot: str,
        names: NamesOfPods | None = None,
    ) -> None:
        self._names: NamesOfPods = names or {}
        self._policy = policy
        self._rules = {rule.name: rule for rule in policy.rules}
        self._held = held
        self._boot = boot
        self._recent: Counter[str] = Counter()
        self._day: Counter[str] = Counter()
        self._process: Counter[tuple[str, str, ProcessKey]] = Counter()
        self._workload: Counter[tuple[str, str]] = Counter()
        self._look: Counter[str] = Counter()
        self._taken: Counter[int] = Counter()
        for act in acts:
            age_s = act.age_s(now, boot)
            if age_s < DAY_S:
                charge = Charge(act.rule, act.workload, act.processes, act.reached, act.pod)
                self._enter(charge, _heirs(policy, act), act.boot, age_s < _TEN_MINUTES_S)

    def _enter(self, charge: Charge, rules: Iterable[str], boot: str, recent: bool, n: int = 1) -> None:
        workloads = charge.workloads(self._names)
        for scope in ("", *rules):
            self._day[scope] += n
            if recent:
                self._recent[scope] += n
            for workload in workloads:
                self._workload[scope, workload] += n
            for process in charge.processes:
                self._process[scope, boot, process] += n

    def refuses(self, charge: Charge) -> BudgetName | None:
        """Return the budget that has nothing left for an act, or None."""
        rule = self._rules[charge.rule]
        workloads = charge.workloads(self._names)
        for scope, budget in (("", self._policy.budget), (rule.name, rule.budget)):
            if self._look[scope] >= budget.look:
                return "look"
            if self._recent[scope] >= budget.ten_minutes:
                return "ten_minutes"
            if self._day[scope] >= budget.day:
                return "day"
            if any(self._workload[scope, w] >= budget.workload for w in workloads):
                return "workload"
            if any(self._process[scope, self._boot, p] >= budget.process for p in charge.processes):
                return "process"
        for pid, _ in charge.processes:
            if self._taken[pid] + 1 > math.floor(rule.share * self._held.get(pid, 0)):
                return "share"
        return None

    def take(self, charge: Charge, n: int = 1) -> None:
        """Enter an act; ``n`` −1 takes it back."""
        self._enter(charge, (charge.rule,), self._boot, recent=True, n=n)
        for scope in ("", charge.rule):
            self._look[scope] += n
        for pid, _ in charge.processes:
            self._taken[pid] += n

    def took(self, charges: Iterable[Charge]) -> None:
        """Note what this look has done already, where the former acts have it too."""
        for charge in charges:
            for scope in ("", charge.rule):
                self._look[scope] += 1
            for pid, _ in charge.processes:
                self._taken[pid] += 1

    def take_whole(self, charges: Sequence[Charge]) -> BudgetName | None:
        """Enter several acts, or none; return the budget that refuses one of them, or None."""
        for k, charge in enumerate(charges):
            if (budget := self.refuses(charge)) is not None:
                for entered in charges[:k]:
                    self.take(entered, -1)
                return budget
            self.take(charge)
        return None

    @property
    def remaining(self) -> int:
        """How many connections all rules together may still act on in this look."""
        budget = self._policy.budget
        rest = (
            budget.look - self._look[""],
            budget.ten_minutes - self._recent[""],
            budget.day - self._day[""],
        )
        return max(0, min(rest))


def decide(
    policy: Policy,
    standings: Iterable[Standing],
    acts: Sequence[PastAct],
    *,
    held: Mapping[int, int],
    now: Instant,
    boot: str,
    stopped: Collection[tuple[str, str]] = (),
    names: NamesOfPods | None = None,
) -> Decision:
    """Return what a policy allows, the oldest connections first.

    Args:
        policy: the policy; its mode is not looked at.
        standings: the connections that are stuck.
        acts: former acts of policies.
        held: pid → connections that it holds; a process that is not there holds none that may be touched.
        now: the time.
        boot: id of this boot.
        stopped: (rule, workload) that are stopped because openings sped up; those of a rule that has another name now
            are for all rules.
        names: what pods are called.
    """
    names = names or {}
    ledger = Ledger(policy, acts, held, now, boot, names)
    stopped = _stopped(policy, stopped)
    resting = _resting(policy, acts, now, boot)
    tried, rehearsed = _tried(acts, boot)
    chosen, eligible, spared = list[Chosen](), list[Chosen](), list[Spared]()
    unnamed = 0
    for standing in sorted(standings, key=lambda entry: (-entry.age_s, entry.netns, entry.cookie)):
        rule = _rule_of(policy, standing)
        if rule is None:
            unnamed += 1
            continue
        means = _untried(rule, tried.get(standing.key, frozenset()))
        by = _against(standing, rule) or ("rehearsed" if standing.key in rehearsed else None)
        if by is None and not means:
            by = "tried"
        if by is None:
            by = _against_now(rule, standing, now, resting, stopped, names)
        if by is None:
            choice = Chosen(standing, rule, means)
            eligible.append(choice)
            by = ledger.refuses(choice.charge)
            if by is None:
                ledger.take(choice.charge)
                chosen.append(choice)
                continue
        spared.append(Spared(standing, rule.name, by))
    return Decision(tuple(chosen), tuple(eligible), tuple(spared), unnamed)


def _rule_of(policy: Policy, standing: Standing) -> PolicyRule | None:
    for rule in policy.rules:
        if standing.finding in rule.findings and rule.name in standing.selected:
            return rule
    return None


def _against(standing: Standing, rule: PolicyRule) -> SparedBy | None:
    """Return what about a connection speaks against acting on it, whenever that is."""
    if not tcp.CLOSING_STATES >> standing.state & 1:
        return "state"
    if standing.left_alone:
        return standing.left_alone
    if not standing.certain:
        return "not-certain"
    if not standing.holders_known:
        return "holder-unknown"
    if not standing.age_s >= rule.min_age_s:
        return "young"
    return "looks" if standing.verdicts < rule.looks else None


def _stopped(policy: Policy, stopped: Collection[tuple[str, str]]) -> set[tuple[str, str]]:
    names = {rule.name for rule in policy.rules}
    return {(name, work) for rule, work in stopped for name in ({rule} if rule in names else names)}


def _against_now(
    rule: PolicyRule,
    standing: Standing,
    now: Instant,
    resting: Mapping[str, SparedBy],
    stopped: Collection[tuple[str, str]],
    names: NamesOfPods,
) -> SparedBy | None:
    """Return what keeps a rule from acting at this time."""
    if not rule.open_at(now.wall_ns):
        return "window"
    own = called((standing.workload, *_of_pod(standing.pod)), names)
    if any(rule.name == name and own & called((workload,), names) for name, workload in stopped):
        return "opening"
    return resting.get(rule.name)


def _resting(policy: Policy, acts: Iterable[PastAct], now: Instant, boot: str) -> dict[str, SparedBy]:
    """Return rules that acted so short ago that they wait; what was not expected comes first."""
    rules = {rule.name: rule for rule in policy.rules}
    resting: dict[str, SparedBy] = {}
    for act in acts:
        age_s = act.age_s(now, boot)
        for name in _heirs(policy, act):
            if age_s >= rules[name].cool_down_s:
                continue
            if act.result in ("unexpected", "open"):
                resting[name] = "unexpected"
            else:
                resting.setdefault(name, "cool-down")
    return resting


def _heirs(policy: Policy, act: PastAct) -> list[str]:
    """Return the rules that an act counts for: its own, or if that has another name now, those of its finding."""
    names = [rule.name for rule in policy.rules]
    if act.rule in names:
        return [act.rule]
    return [rule.name for rule in policy.rules if not act.finding or act.finding in rule.findings]


def _tried(acts: Iterable[PastAct], boot: str) -> tuple[dict[SocketKey, frozenset[str]], set[SocketKey]]:
    """Return which means were tried on connections of this boot, and which were ended in a dry run."""
    tried: dict[SocketKey, frozenset[str]] = {}
    rehearsed = set()
    for act in acts:
        if act.boot != boot:
            continue
        key = act.netns, act.cookie
        if act.result == "rehearsed":
            rehearsed.add(key)
        elif act.result != "nothing":
            tried[key] = tried.get(key, frozenset()) | {act.means}
    return tried, rehearsed


def _untried(rule: PolicyRule, tried: Collection[str]) -> tuple[Means, ...]:
    """Return the means that are harsher than all that was tried."""
    last = max((k for k, means in enumerate(rule.means) if means in tried), default=-1)
    return rule.means[last + 1 :]


def sped_up(
    policy: Policy,
    acts: Iterable[PastAct],
    openings: Sequence[OpenedCount],
    *,
    since_s: float,
    now: Instant,
    boot: str,
    names: NamesOfPods | None = None,
) -> set[tuple[str, str]]:
    """Return (rule, workload) where connections open faster since an act than before it: the cure feeds the leak.

    Args:
        policy: the policy.
        acts: former acts.
        openings: when episodes opened, on CLOCK_BOOTTIME.
        since_s: from when on openings are known.
        now: the time.
        boot: id of this boot.
        names: what pods are called.
    """
    names = names or {}
    rules = {rule.name: rule for rule in policy.rules}
    now_s = now.boot_ns / 1e9
    times: dict[tuple[str, str, str], set[float]] = {}
    for act in acts:
        at_s = act.at.boot_ns / 1e9
        if act.boot == boot and act.result != "rehearsed" and now_s - at_s <= _AROUND_S:
            for name in _heirs(policy, act):
                times.setdefault((name, act.workload, act.finding), set()).add(at_s)
    faster = set()
    for (name, workload, finding), several in times.items():
        own = called((workload,), names)
        counts = [
            (o.boot_s, o.count)
            for o in openings
            if o.finding == finding and own & called((o.workload,), names)
        ]
        first_s = min(several)
        before_s = min(_AROUND_S, first_s - since_s)
        if before_s < _BEFORE_LEAST_S:
            continue
        before = sum(n for when, n in counts if first_s - before_s <= when < first_s)
        # The rate before the first of them, and since each: what came before the last one must not hide what it did.
        for at_s in several:
            after = sum(n for when, n in counts if when >= at_s)
            expected = before / before_s * (now_s - at_s) * rules[name].opening_factor
            enough = now_s - at_s >= _AFTER_LEAST_S and after >= _OPENINGS_LEAST
            if enough and after > expected + 3 * math.sqrt(expected):
                faster.add((name, workload))
    return faster
