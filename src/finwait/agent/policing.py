"""The agent's policy at work: after each diagnosis it is asked what it allows, and that is planned, and done.

Theory of operation. `finwait.agent.policy.decide` says which connections may be acted on. A plan is made for those from
another look (`finwait.planning`), with the guards of `finwait clear` and none of them overruled. What the plan touches
is held against the budgets once more, for one act may reach the program at the other end, too. Then it is done in small
portions: before each the kill switch is looked for, and windows and budgets are asked again, for a plan takes its time;
after each its results are looked at, and one that was not expected ends it.

The journal is the only memory of acts. It is read before each decision, and written before each act, durably: where
either fails nothing is done. In a dry run what would be done goes into the history, and counts there as if it had been.

What this cannot do: act in another way, or on anything that `decide` did not choose. How the machine is asked and acted
on is behind `PolicyHands`; `finwait.agent.hands` has those of the running machine.
"""

from __future__ import annotations

import contextlib
import json
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol

import msgspec
from msgspec import Struct

from finwait.agent.called_pods import CalledPods
from finwait.agent.episodes import Book, Instant
from finwait.agent.policy import (
    DAY_S,
    Charge,
    Chosen,
    Decision,
    Ledger,
    OpenedCount,
    PastAct,
    ProcessKey,
    SocketKey,
    SparedBy,
    Standing,
    decide,
    sped_up,
)
from finwait.agent.policy_file import Policy, parse_policy
from finwait.agent.policy_steps import charge_of, in_portions, in_units, only, subject_of
from finwait.agent.policy_told import PolicyActions, PolicyBudget, PolicyRuleStatus, PolicyStatus
from finwait.agent.standings import UNJUDGED, beginnings, standings
from finwait.errors import FinwaitError, Gap, Refused
from finwait.remedy.outcome import Outcome
from finwait.remedy.plan import Plan, Step
from finwait.table.units import endpoint

if TYPE_CHECKING:
    from finwait.agent.store import Store
    from finwait.agent.verdict import DiagnosedLook, Filters
    from finwait.uapi.cluster import ClusterNames

__all__ = ["Policing", "PolicyHands", "PolicyMark", "unexpected"]

_PLANNED_MOST: Final = 400
"""Connections that are planned for at a time: more than a budget allows, for some belong together."""
_RECENT_MOST: Final = 20
_OPENINGS_KEPT_S: Final = 7200.0
_REHEARSED_MOST: Final = 20_000
_SOONER_S: Final = 120.0
_STOP_META: Final = "policy_stops"

_OF_CLUSTER: Final[Mapping[str, tuple[str, ...]]] = {
    "workload": ("pods",),
    "namespace": ("pods",),
    "label": ("pods",),
    "service": ("services", "endpointslices"),
}
"""What a FILTER can ask of a cluster → what must be listed for it."""

Halt = Literal["", "no-act", "kill-switch", "error"]


class PolicyMark(msgspec.Struct, frozen=True):
    """What the journal has of an act that a policy decided, beside the act."""

    name: str
    """Of the policy."""
    rule: str
    finding: str
    workload: str
    processes: tuple[ProcessKey, ...]
    subject: tuple[int, str]
    """Namespace and cookie of what was chosen: the act may be done at the other end."""
    boot_ns: int
    """When it was written down."""
    reached: tuple[str, ...] = ()
    """Other workloads, where it is done at the other end; their pods too, as ``pod/UID``."""
    pod: str = ""
    """The uid of its pod; empty for none."""
    cost: Any = None
    """What it costs, as of `finwait.remedy.cost.Cost`; None of a means that loses nothing."""


class PolicyHands(Protocol):
    """How the machine is asked and acted on."""

    def read(self) -> bytes:
        """Return what the policy file holds.

        Raises:
            FinwaitError: it cannot be read, or somebody else may have written it.
        """

    def killed(self) -> bool:
        """Return whether the kill switch is there, or may be."""

    def watch(self, kill_switch: str) -> None:
        """Look for the kill switch at another path from now on."""

    def alone(self) -> contextlib.AbstractContextManager[object]:
        """Keep other agents from acting meanwhile.

        Raises:
            FinwaitError: another one does, or that cannot be told.
        """

    def past(self) -> list[PastAct]:
        """Return former acts of policies.

        Raises:
            FinwaitError: the journal cannot be read.
        """

    def plan(
        self, choices: Sequence[Chosen], admit: Callable[[Sequence[Sequence[Step]]], Sequence[Step]]
    ) -> Plan:
        """Return a plan for some of these connections.

        Raises:
            FinwaitError: the look failed.
        """

    def now(self) -> Instant:
        """Return the time."""

    def act(
        self,
        plan: Plan,
        marks: Mapping[SocketKey, PolicyMark],
        into: dict[int, Outcome],
        may: Callable[[PolicyMark, Instant], bool],
    ) -> bool:
        """Do what a plan says; ``into`` takes what came of each step. Return whether it came to its end.

        ``may`` is asked when an act is written down; what it forbids is `Refused` by the guard ``window``.

        Raises:
            FinwaitError: the journal could not be written, or something cannot be done here.
        """


def unexpected(outcome: Outcome) -> bool:
    """Return whether an act did not do what it was for."""
    gentle = outcome.step.means in ("keepalive", "user-timeout")
    return outcome.result == "failed" or (outcome.result == "still there" and not gentle)


class _Look(Struct, frozen=True):
    """What one decision rests on."""

    decision: Decision
    acts: Sequence[PastAct]
    held: Mapping[int, int]
    began: Mapping[int, tuple[int, tuple[str, ...]]]
    """Pid → when it began, and its workload; its pod, too."""
    now: Instant


class Policing:
    """Applies a policy after each diagnosis.

    Args:
        hands: how the machine is asked and acted on.
        file: name of the policy file, to be told.
        boot: id of this boot.
        no_act: do nothing, whatever the policy says.
        say: tells a line.

    Raises:
        FinwaitError: the policy cannot be read, or is wrong.
    """

    def __init__(
        self,
        hands: PolicyHands,
        file: str,
        boot: str,
        *,
        no_act: bool = False,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._hands = hands
        self._file = file
        self._boot = boot
        self._no_act = no_act
        self._say = say
        self._policy = parse_policy(hands.read(), file)
        self._acts: Sequence[PastAct] = ()
        self._rehearsed: list[PastAct] = []
        self._counts: Counter[tuple[str, str, str]] = Counter()
        self._recent: deque[str] = deque(maxlen=_RECENT_MOST)
        self._openings: deque[OpenedCount] = deque()
        self._openings_since_s = -1.0
        self._stops: dict[tuple[str, str], float] = {}
        self._decision = Decision((), (), ())
        self._guarded: Counter[tuple[str, str]] = Counter()
        self._kept: frozenset[SocketKey] = frozenset()
        self._beyond: Counter[tuple[str, str]] = Counter()
        self._halted: Halt = "no-act" if no_act else ""
        self._unread = False
        self._said_file = ""
        self._said = ""
        self._trouble = ""
        self._trouble_told = ""
        self._admitted: Counter[str] | None = None
        self._called = CalledPods()
        self._cleared: Counter[tuple[str, str]] = Counter()

    # ── the file ─────────────────────────────────────────────────────────────────────────────────────────

    @property
    def policy(self) -> Policy:
        """The policy that holds."""
        return self._policy

    def reload(self, *, no_act: bool | None = None, kill_switch: str | None = None) -> None:
        """Read the file again; one that is wrong leaves the policy as it was, and says so.

        Where it cannot be read, or is not there any more, nothing is done until it can be.

        Args:
            no_act: do nothing, whatever the policy says; None for as before.
            kill_switch: path of the kill switch; None for as before.
        """
        self._no_act = self._no_act if no_act is None else no_act
        if kill_switch is not None:
            self._hands.watch(kill_switch)
        try:
            data = self._hands.read()
        except FinwaitError as error:
            self._unread = True
            self._said_file = f"nothing is done by the policy: {_one_line(error)}"
            self._say(self._said_file)
            return
        self._unread = False
        try:
            policy = parse_policy(data, self._file)
        except FinwaitError as error:
            self._said_file = f"the new policy is wrong, the old one stays: {_one_line(error)}"
            self._say(self._said_file)
            return
        self._said_file = ""
        if policy != self._policy:
            self._say(f"policy `{policy.name}` was read again, mode {policy.mode}")
        self._policy = policy

    @property
    def filters(self) -> Filters:
        """Rule → its FILTERs; rules without any are not in it."""
        return {rule.name: (rule.where_filters, rule.spared) for rule in self._policy.rules if rule.filters}

    @property
    def diagnosis_s(self) -> float | None:
        """How long a diagnosis may be ago while something is stuck; None where a policy does not care."""
        return None if self._policy.mode == "observe" or not self._policy.rules else _SOONER_S

    # ── what comes in ────────────────────────────────────────────────────────────────────────────────────

    def resume(self, store: Store, now: Instant) -> None:
        """Take up from the history what was done in a dry run, and which rules are stopped."""
        with contextlib.suppress(FinwaitError, ValueError, TypeError):
            self._rehearsed = [
                PastAct(
                    rule=rule, boot=boot, at=Instant(boot_ns, wall_ns), netns=netns, cookie=int(cookie, 16),
                    workload=workload, processes=tuple((pid, began) for pid, began in json.loads(processes)),
                    means=means, finding=finding, result="rehearsed", pod=pod,
                )
                for (
                    rule, boot, boot_ns, wall_ns, netns, cookie, workload, processes, means, finding, pod,
                ) in store.select(
                    "SELECT rule, boot, boot_ns, wall_ns, netns, cookie, workload, processes, means, finding, pod"
                    " FROM rehearsed WHERE boot = ? OR wall_ns > ? ORDER BY id DESC LIMIT ?",
                    (self._boot, now.wall_ns - int(DAY_S * 1e9), _REHEARSED_MOST),
                )
            ]  # fmt: skip
            kept = store.meta(_STOP_META) or {}
            if kept.get("boot") == self._boot:
                self._stops |= {(str(rule), str(work)): float(until) for rule, work, until in kept["stops"]}
        self._called.restore(store)

    def opened(self, counts: Mapping[tuple[str, str], int], now: Instant) -> None:
        """Note how many episodes have opened by (rule of the diagnosis, workload)."""
        now_s = now.boot_ns / 1e9
        if self._openings_since_s < 0:
            self._openings_since_s = now_s
            return  # what was there at the first look did not open now
        self._openings.extend(OpenedCount(rule, workload, now_s, n) for (rule, workload), n in counts.items())
        while self._openings and now_s - self._openings[0].boot_s > _OPENINGS_KEPT_S:
            self._openings.popleft()

    def apply(self, book: Book, look: DiagnosedLook, store: Store | None, now: Instant) -> None:
        """Decide, plan and act after a diagnosis. Nothing is raised: looking goes on."""
        policy = self._policy
        self._halted = "no-act" if self._no_act else "kill-switch" if self._hands.killed() else ""
        self._halted = self._halted or ("error" if self._unread else "")
        self._trouble = ""
        rows, self._beyond = standings(book, look, policy, now)
        began = beginnings(book)
        self._called.learn(book.causes)
        try:
            if policy.mode != "act" or self._halted:
                self._decide(rows, look.held, began, store, now)
                return
            with self._hands.alone():
                seen = self._decide(rows, look.held, began, store, now)
                self._act(seen)
                self._acts = self._hands.past()
        except Refused as error:
            self._halted = "kill-switch" if error.guard == "kill-switch" else "error"
            self._fail(f"nothing is done by the policy: {_one_line(error)}")
        except (FinwaitError, OSError) as error:
            self._halted = "error"
            self._fail(f"nothing is done by the policy: {_one_line(error)}")
        finally:
            self._trouble_told = self._trouble

    def _decide(
        self,
        rows: Sequence[Standing],
        held: Mapping[int, int],
        began: Mapping[int, tuple[int, tuple[str, ...]]],
        store: Store | None,
        now: Instant,
    ) -> _Look:
        policy = self._policy
        self._acts = self._hands.past()
        acts = [*self._acts, *self._rehearsed] if policy.mode == "dry-run" else self._acts
        names = self._called.of(acts, store, self._boot)
        self._stop(policy, now, store)
        decision = decide(
            policy,
            rows,
            acts,
            held=held,
            now=now,
            boot=self._boot,
            stopped=frozenset(self._stops),
            names=names,
        )
        self._decision = decision
        self._guarded.clear()
        self._admitted = None
        seen = _Look(decision, acts, held, began, now)
        if policy.mode == "dry-run" and decision.chosen and not self._unread:
            self._rehearse(seen, store)
        return seen

    def _stop(self, policy: Policy, now: Instant, store: Store | None) -> None:
        """Stop rules where the cure feeds the leak; let go of stops that are over."""
        now_s = now.boot_ns / 1e9
        before = set(self._stops)
        self._stops = {key: until for key, until in self._stops.items() if until > now_s}
        faster = sped_up(
            policy, self._acts, self._openings, since_s=self._openings_since_s, now=now, boot=self._boot,
            names=self._called.names,
        )  # fmt: skip
        for rule, workload in sorted(faster - set(self._stops)):
            self._stops[rule, workload] = now_s + DAY_S
            self._tell(
                f"rule `{rule}` is stopped for 24 h for {workload or '?'}: connections open faster since"
            )
        if set(self._stops) != before and store is not None:
            stops = [[rule, workload, until] for (rule, workload), until in self._stops.items()]
            store.remember({_STOP_META: {"boot": self._boot, "stops": stops}}, self._boot, {})

    # ── planning and acting ──────────────────────────────────────────────────────────────────────────────

    def _planned(self, seen: _Look) -> tuple[Plan, dict[SocketKey, PolicyMark]]:
        """Return a plan within the budgets, and what is written down of each of its steps."""
        ledger = Ledger(self._policy, seen.acts, seen.held, seen.now, self._boot, self._called.names)
        choices = {choice.standing.key: choice for choice in self._turn(seen.decision)}
        marks: dict[SocketKey, PolicyMark] = {}

        def admit(units: Sequence[Sequence[Step]]) -> list[Step]:
            admitted: list[Step] = []
            order = {key: k for k, key in enumerate(choices)}
            for unit in sorted(units, key=lambda unit: min(order[subject_of(step)] for step in unit)):
                charges = [charge_of(step, choices[subject_of(step)], seen.began) for step in unit]
                if ledger.take_whole(charges) is not None:
                    continue
                admitted += unit
                for step, charge in zip(unit, charges, strict=True):
                    marks[step.netns, int(step.cookie, 16)] = self._mark(
                        step, choices[subject_of(step)], charge, seen.now
                    )
            return admitted

        plan = self._hands.plan(list(choices.values()), admit)
        for entry in plan.left:
            choice = choices[entry.end.netns, int(entry.end.cookie, 16)]
            self._guarded[choice.rule.name, entry.guard] += 1
        self._kept = frozenset((entry.end.netns, int(entry.end.cookie, 16)) for entry in plan.left)
        self._admitted = Counter(mark.rule for mark in marks.values())
        return plan, marks

    def _turn(self, decision: Decision) -> list[Chosen]:
        """Return what is planned for: what is within the budgets first, and what guards kept the last time last."""
        within = {choice.standing.key for choice in decision.chosen}
        return sorted(
            decision.eligible,
            key=lambda choice: (choice.standing.key in self._kept, choice.standing.key not in within),
        )[:_PLANNED_MOST]

    def _mark(self, step: Step, choice: Chosen, charge: Charge, now: Instant) -> PolicyMark:
        return PolicyMark(
            name=self._policy.name,
            rule=choice.rule.name,
            finding=choice.standing.finding,
            workload=charge.workload,
            processes=charge.processes,
            subject=(choice.standing.netns, f"{choice.standing.cookie:#x}"),
            boot_ns=now.boot_ns,
            reached=charge.reached,
            pod=charge.pod,
            cost=msgspec.to_builtins(step.cost),
        )

    def _act(self, seen: _Look) -> None:
        if not seen.decision.chosen:
            return
        plan, marks = self._planned(seen)
        if plan.refused:
            self._refused(plan, marks)
            return
        taken: list[Charge] = []
        for part in in_portions(plan.steps):
            if self._hands.killed():
                self._halted = "kill-switch"
                return
            outcomes: dict[int, Outcome] = {}
            portion = only(plan, self._still_allowed(part, marks, seen, taken))
            if not portion.steps:
                continue
            try:
                finished = self._hands.act(portion, marks, outcomes, self._open_at)
            except Refused as error:
                if error.guard != "window":
                    raise
                self._leave(portion.steps, marks, "window")
                continue
            finally:
                self._note(outcomes.values(), marks, self._hands.now())
            if not finished or any(map(unexpected, outcomes.values())):
                return

    def _open_at(self, mark: PolicyMark, now: Instant) -> bool:
        """Return whether a window of an act's rule is open."""
        return any(rule.name == mark.rule and rule.open_at(now.wall_ns) for rule in self._policy.rules)

    def _still_allowed(
        self, part: Sequence[Step], marks: Mapping[SocketKey, PolicyMark], seen: _Look, taken: list[Charge]
    ) -> list[Step]:
        """Return which steps windows and budgets allow now: a plan takes its time. What is a whole stays one.

        Args:
            part: of the plan.
            marks: what is written down of each.
            seen: what was decided.
            taken: what this look has done; what is allowed now is added.
        """
        now = self._hands.now()
        self._acts = self._hands.past()
        ledger = Ledger(self._policy, self._acts, seen.held, now, self._boot, self._called.names)
        ledger.took(taken)
        allowed: list[Step] = []
        for unit in in_units(part):
            own = [marks[step.netns, int(step.cookie, 16)] for step in unit]
            charges = [Charge(m.rule, m.workload, m.processes, m.reached, m.pod) for m in own]
            by: SparedBy | None = None if all(self._open_at(mark, now) for mark in own) else "window"
            by = by or ledger.take_whole(charges)
            if by is not None:
                self._leave(unit, marks, by)
                continue
            allowed += unit
            taken += charges
        return allowed

    def _leave(self, steps: Sequence[Step], marks: Mapping[SocketKey, PolicyMark], by: SparedBy) -> None:
        """Count what was planned and is not allowed any more."""
        for step in steps:
            rule = marks[step.netns, int(step.cookie, 16)].rule
            self._beyond[rule, by] += 1
            if self._admitted is not None:
                self._admitted[rule] -= 1

    def _refused(self, plan: Plan, marks: Mapping[SocketKey, PolicyMark]) -> None:
        for step in plan.steps:
            self._counts[self._policy.name, marks[step.netns, int(step.cookie, 16)].rule, "refused"] += 1
        self._admitted = Counter()
        self._fail(f"guard `{plan.refused[0].guard}`: {plan.refused[0].reason}; nothing was done")

    def _note(self, outcomes: Iterable[Outcome], marks: Mapping[SocketKey, PolicyMark], now: Instant) -> None:
        for outcome in outcomes:
            mark = marks[outcome.step.netns, int(outcome.step.cookie, 16)]
            label = outcome.result.replace(" ", "-")
            self._counts[mark.name, mark.rule, label] += 1
            if outcome.result == "ended":
                self._cleared[mark.finding, mark.workload] += 1
            self._recent.appendleft(_act_text(mark, outcome.step, f"{outcome.result}, {outcome.detail}", now))
            if unexpected(outcome):
                self._tell(
                    f"rule `{mark.rule}` waits for its cool-down, since a result was not expected: "
                    f"{_connection(outcome.step)}: {outcome.result}, {outcome.detail}"
                )

    def _rehearse(self, seen: _Look, store: Store | None) -> None:
        """Plan, and write down what would be done."""
        plan, marks = self._planned(seen)
        if plan.refused:
            self._refused(plan, marks)
            return
        rows, now = [], self._hands.now()
        for step in plan.steps:
            mark = marks[step.netns, int(step.cookie, 16)]
            if not self._open_at(mark, now):
                self._leave([step], marks, "window")
                continue
            subject = subject_of(step)
            self._counts[mark.name, mark.rule, "would"] += 1
            self._recent.appendleft(_act_text(mark, step, "would be done", now))
            self._rehearsed.insert(
                0,
                PastAct(
                    mark.rule, self._boot, now, *subject, mark.workload, mark.processes, step.means, mark.finding,
                    "rehearsed", pod=mark.pod,
                ),
            )  # fmt: skip
            rows.append(
                (
                    self._boot, now.boot_ns, now.wall_ns, mark.name, mark.rule, mark.finding, subject[0],
                    f"{subject[1]:#x}", _connection(step), mark.workload, json.dumps(mark.processes), step.means,
                    json.dumps(mark.cost), mark.pod,
                )
            )  # fmt: skip
        del self._rehearsed[_REHEARSED_MOST:]
        if rows and store is not None:
            store.put(
                "INSERT INTO rehearsed (boot, boot_ns, wall_ns, policy, rule, finding, netns, cookie, connection,"
                " workload, processes, means, cost, pod) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?)",
                rows,
            )

    # ── what is told ─────────────────────────────────────────────────────────────────────────────────────

    def _tell(self, text: str) -> None:
        """Tell what happened."""
        self._say(text)
        self._said = text

    def _fail(self, text: str) -> None:
        """Tell what is so, once until it is over."""
        if text != self._trouble_told:
            self._say(text)
        self._trouble = text

    @property
    def actions(self) -> list[PolicyActions]:
        """How many acts had which outcome, since the agent started."""
        return [
            PolicyActions(policy=policy, rule=rule, outcome=outcome, total=n)
            for (policy, rule, outcome), n in sorted(self._counts.items())
        ]

    def take_cleared(self) -> Counter[tuple[str, str]]:
        """Return how many connections were ended since this was asked last, by rule of the diagnosis and workload."""
        cleared, self._cleared = self._cleared, Counter()
        return cleared

    def budgets(self, now: Instant) -> list[PolicyBudget]:
        """Return what is left of the budget; nothing where the policy only observes."""
        if self._policy.mode == "observe":
            return []
        return [PolicyBudget(policy=self._policy.name, remaining=self._remaining(now))]

    def _remaining(self, now: Instant) -> int:
        policy = self._policy
        if not any(rule.open_at(now.wall_ns) for rule in policy.rules):
            return 0
        acts = [*self._acts, *self._rehearsed] if policy.mode == "dry-run" else self._acts
        return Ledger(policy, acts, {}, now, self._boot).remaining

    def gaps(self, names: ClusterNames | None) -> tuple[Gap, ...]:
        """Return what rules select and do not judge, and which select by unknown names of a cluster: nothing.

        Args:
            names: what is known of the cluster that is followed; None where none is.
        """
        gaps = []
        for rule in self._policy.rules:
            if beyond := self._beyond[rule.name, UNJUDGED]:
                noun = "connection that it selects" if beyond == 1 else "connections that it selects"
                gaps.append(
                    Gap(
                        f"policy rule `{rule.name}`",
                        f"judge {beyond} {noun}",
                        "a narrower `where`, or fewer of them",
                    )
                )
            asked = sorted({name for f in rule.filters for name in f.needs} & _OF_CLUSTER.keys())
            listed = names.as_of.keys() if names is not None else ()
            if missing := [name for name in asked if any(part not in listed for part in _OF_CLUSTER[name])]:
                where, doing = (
                    f"policy rule `{rule.name}`",
                    f"select by {', '.join(missing)}: it selects nothing",
                )
                needs = "`--kubernetes`" if names is None else "names from the Kubernetes API"
                gaps.append(Gap(where, doing, needs))
        return tuple(gaps)

    def status(self, now: Instant) -> PolicyStatus:
        """Return how the policy is."""
        decision, stops = self._decision, self._stops
        spared: Counter[tuple[str, str]] = Counter((entry.rule, entry.by) for entry in decision.spared)
        spared += self._beyond
        chosen = self._admitted  # of a plan, those that guards let pass
        if chosen is None:
            chosen = Counter(choice.rule.name for choice in decision.chosen)
        return PolicyStatus(
            name=self._policy.name,
            file=self._file,
            mode=self._policy.mode,
            halted=self._halted,
            said=self._said_file or self._trouble or self._said,
            remaining=self._remaining(now),
            rules=[
                PolicyRuleStatus(
                    name=rule.name,
                    chosen=chosen[rule.name],
                    spared={by: n for (name, by), n in sorted(spared.items()) if name == rule.name},
                    guarded={g: n for (name, g), n in sorted(self._guarded.items()) if name == rule.name},
                    stopped=sorted(workload for name, workload in stops if name == rule.name),
                )
                for rule in self._policy.rules
            ],
            recent=list(self._recent),
        )


def _connection(step: Step) -> str:
    return f"{endpoint(step.src, step.sport)} {endpoint(step.dst, step.dport)}"


def _act_text(mark: PolicyMark, step: Step, result: str, now: Instant) -> str:
    when = datetime.fromtimestamp(now.wall_ns // 1_000_000_000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return f"{when} {mark.rule}: {step.means} {_connection(step)} {step.state}, {mark.finding}: {result}"[
        :300
    ]


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:500]
