"""What a policy would have done over the recorded history. Pure.

Time is gone through in steps, as diagnoses would have come; what is acted on is gone afterwards, and counts against the
budgets. The history knows less than a look: what it cannot tell is said (`TRIAL_GAPS`) and assumed to speak for an act,
so the result is the most that the policy would have done, among what was judged. What a rule does not select takes
nobody's place; what it selects and is too much to be judged is counted, and the result says so first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from finwait.agent.episodes import Episode, Instant
from finwait.agent.policy import PastAct, SparedBy, Standing, decide
from finwait.agent.policy_file import Policy, PolicyRule
from finwait.agent.standings import first_in_turn
from finwait.agent.telling import chosen, spared_text
from finwait.errors import FilterError, Gap
from finwait.table.units import duration_text, printable
from finwait.uapi import tcp

__all__ = [
    "TRIAL_GAPS", "PolicyTrial", "Selection", "TrialAct", "selected", "trial", "trial_json", "trial_lines",
]  # fmt: skip

_STEP_NS: Final = 120_000_000_000
_STEPS_MOST: Final = 1440
_STANDING_MOST: Final = 2000
"""Connections that are judged at a time, of each rule."""
_SELECTED_MOST: Final = 100_000
_FOREVER: Final = 1 << 62
_JUDGED: Final = -2
_UNJUDGED: Final = -1
_REASONS: Final[Sequence[SparedBy]] = ("state", "not-certain", "holder-unknown", "young")
_HISTORY: Final = "the history"
_DRY_RUN: Final = '`mode = "dry-run"`'
TRIAL_GAPS: Final = (
    Gap(_HISTORY, "ask the guards, which may leave more alone", _DRY_RUN),
    Gap(_HISTORY, "ask `except` about the other end, or charge its workload", _DRY_RUN),
    Gap(_HISTORY, "tell which pods had the annotation `finwait.io/exclude`", _DRY_RUN),
    Gap(
        _HISTORY,
        "tell which part of a process's connections these are: `share` limits nothing here",
        _DRY_RUN,
    ),
    Gap(_HISTORY, "tell how often a verdict was given: the last one is taken for all of them", _DRY_RUN),
    Gap(
        _HISTORY, "tell what an act leads to: `stop_if` stops nothing, and the first means ends all", _DRY_RUN
    ),
)


class TrialAct(Struct, frozen=True):
    """An act that would have been done."""

    wall_ns: int
    rule: str
    means: str
    """The first one that would have been tried."""
    episode: Episode
    age_s: float


class PolicyTrial(Struct, frozen=True):
    """What a policy would have done."""

    policy: Policy
    acts: tuple[TrialAct, ...]
    spared: Mapping[str, Mapping[str, int]]
    """Rule → what kept it at the end from connections that it is about → how many."""
    stopped: Mapping[str, Mapping[str, int]]
    """Rule → budget → in how many looks it had nothing left."""
    unjudged: Mapping[str, int]
    """Rule → connections that it selects and that were not judged in some look, for they were too many."""
    looks: int
    gaps: tuple[Gap, ...]
    untried: tuple[str, ...] = ()
    """Rules that were not judged at all: the history does not keep what their FILTERs ask for."""


_BUDGETS: Final[tuple[SparedBy, ...]] = ("look", "ten_minutes", "day", "process", "workload")


class Selection(Struct, frozen=True):
    """The episodes that a policy is about."""

    episodes: tuple[Episode, ...]
    """Those that were seen first come first."""
    rules: tuple[int, ...]
    """Which rule each is of, by its place in the policy."""
    beyond: Mapping[str, int]
    """Rule → how many more there are."""
    gaps: tuple[Gap, ...]
    """What the history cannot judge."""
    untried: tuple[str, ...] = ()
    """The rules that it cannot judge."""


def selected(
    policy: Policy,
    batches: Iterable[Sequence[Episode]],
    names: Mapping[tuple[str, int], Sequence[str]] | None = None,
    *,
    most: int = _SELECTED_MOST,
) -> Selection:
    """Return the episodes that rules of a policy select.

    Args:
        policy: the policy.
        batches: episodes, some at a time; those that may be too many come last.
        names: of network namespaces.
        most: how many to keep.
    """
    rules, gaps = _judgeable(policy)
    kept = list[tuple[Episode, int]]()
    beyond = Counter[str]()
    for batch in batches:
        rest: Sequence[Episode] = batch
        for k, rule in rules:
            hits: Sequence[Episode] = [e for e in rest if e.cause.rule in rule.findings]
            for row_filter in rule.filters:
                hits = chosen(row_filter, hits, 0, "", names or {}, sole_holder=True)
            own = set(map(id, hits))
            rest = [e for e in rest if id(e) not in own]
            room = max(0, most - len(kept))
            kept += [(e, k) for e in hits[:room]]
            if len(hits) > room:
                beyond[rule.name] += len(hits) - room
    kept.sort(key=lambda entry: (entry[0].first.wall_ns, entry[0].cookie))
    tried = {k for k, _ in rules}
    untried = tuple(rule.name for k, rule in enumerate(policy.rules) if k not in tried)
    return Selection(tuple(e for e, _ in kept), tuple(k for _, k in kept), beyond, tuple(gaps), untried)


def _judgeable(policy: Policy) -> tuple[list[tuple[int, PolicyRule]], list[Gap]]:
    """Return the rules whose FILTERs the history can judge, and what of the others it does not keep."""
    rules, gaps = [], []
    for k, rule in enumerate(policy.rules):
        try:
            for row_filter in rule.filters:
                chosen(row_filter, (), 0, "")
        except FilterError as error:
            gaps.append(
                Gap(
                    f"rule {rule.name}",
                    f"judge `{error.text}`: {error.message}",
                    "a FILTER that the history can judge",
                )
            )
            continue
        rules.append((k, rule))
    return rules, gaps


def trial(policy: Policy, about: Selection, *, since_ns: int, until_ns: int) -> PolicyTrial:
    """Return what a policy would have done.

    Args:
        policy: the policy; its mode is not looked at.
        about: the episodes that it is about and that lasted at some time since then.
        since_ns: nanoseconds since 1970.
        until_ns: until when they are known to have lasted, where they have no end.
    """
    kept = about.episodes
    held = {e.cause.pid: 1 << 30 for e in kept}
    step_ns = max(_STEP_NS, (until_ns - since_ns) // _STEPS_MOST)
    acts, past = list[TrialAct](), list[PastAct]()
    present = _Present(policy, about)
    last: dict[int, tuple[str, SparedBy]] = {}
    stopped: dict[str, Counter[str]] = {rule.name: Counter() for rule in policy.rules}
    looks = 0
    for now_ns in range(since_ns, until_ns + 1, step_ns):
        looks += 1
        standings = [
            _standing(kept[k], k, now_ns, frozenset({policy.rules[about.rules[k]].name}))
            for k in present.at(now_ns)
        ]
        now = Instant(now_ns, now_ns)
        decision = decide(policy, standings, past, held=held, now=now, boot="trial")
        for choice in decision.chosen:
            k = choice.standing.cookie
            acts.append(TrialAct(now_ns, choice.rule.name, choice.means[0], kept[k], choice.standing.age_s))
            past.append(
                PastAct(
                    choice.rule.name, "trial", now, 0, k, choice.standing.workload, choice.standing.processes,
                    choice.means[0], pod=choice.standing.pod,
                )
            )  # fmt: skip
            last.pop(k, None)
        present.over([choice.standing.cookie for choice in decision.chosen])
        for budget, rule in {(s.by, s.rule) for s in decision.spared}:
            if budget in _BUDGETS:
                stopped[rule][budget] += 1
        last |= {entry.standing.cookie: (entry.rule, entry.by) for entry in decision.spared}
    spared: dict[str, Counter[str]] = {rule.name: Counter() for rule in policy.rules}
    for rule, by in (*last.values(), *present.spared(last)):
        spared[rule][by] += 1
    unjudged = present.unjudged(about.beyond)
    gaps = (*about.gaps, *_unjudged_gaps(unjudged), *TRIAL_GAPS)
    return PolicyTrial(policy, tuple(acts), spared, stopped, unjudged, looks, gaps, about.untried)


class _Present:
    """Which episodes are judged at a time.

    Args:
        policy: the policy.
        about: the episodes.
    """

    def __init__(self, policy: Policy, about: Selection) -> None:
        kept = about.episodes
        self._policy = policy
        self._first = np.array([e.first.wall_ns for e in kept], np.int64)
        self._known_ns = np.array([max(0, e.first.boot_ns - e.latest_ns) for e in kept], np.int64)
        self._until = np.array([_FOREVER if e.ended is None else e.ended.wall_ns for e in kept], np.int64)
        self._rule = np.array(about.rules, np.int64)
        numbers: dict[object, int] = {}
        self._cause = np.array([numbers.setdefault(e.cause, len(numbers)) for e in kept], np.int64)
        never = [
            [not tcp.CLOSING_STATES >> e.state & 1 for e in kept],
            [e.cause.confidence != "certain" or e.cause.severity == "healthy" for e in kept],
            [e.cause.holder == "?" for e in kept],
        ]
        self._never = np.array(never, np.bool_)
        self._left_out = np.full(len(kept), _JUDGED, np.int64)

    def at(self, now_ns: int) -> list[int]:
        """Return those that are judged at a time; of the others it is noted what speaks against them."""
        rows = np.flatnonzero((self._first <= now_ns) & (self._until > now_ns))
        judged = list[NDArray[np.int64]]()
        for k, rule in enumerate(self._policy.rules):
            own = rows[self._rule[rows] == k]
            young = now_ns - self._first[own] + self._known_ns[own] < int(rule.min_age_s * 1e9)
            against = np.select([*self._never[:, own], young], list(range(len(_REASONS))), _UNJUDGED)
            kept = first_in_turn(self._cause[own], against != _UNJUDGED, _STANDING_MOST)
            judged.append(own[kept])
            out, why = own[~kept], against[~kept]
            self._left_out[out] = np.where(self._left_out[out] == _UNJUDGED, _UNJUDGED, why)
        return [k for part in judged for k in part.tolist()]

    def over(self, places: Collection[int]) -> None:
        """Take what was acted on for ended."""
        self._until[list(places)] = 0

    def spared(self, counted: Collection[int]) -> Iterator[tuple[str, SparedBy]]:
        """Give the rule of each that was always left out, but for those that are told already, and why."""
        for k in np.flatnonzero((self._left_out >= 0) & (self._until > 0)).tolist():
            if k not in counted:
                yield self._policy.rules[int(self._rule[k])].name, _REASONS[int(self._left_out[k])]

    def unjudged(self, beyond: Mapping[str, int]) -> dict[str, int]:
        """Return by rule how many of them were not judged at some time, and what there was beyond them."""
        out = (self._left_out == _UNJUDGED) & (self._until > 0)
        counts = {
            rule.name: int(np.count_nonzero(out & (self._rule == k))) + beyond.get(rule.name, 0)
            for k, rule in enumerate(self._policy.rules)
        }
        return {name: n for name, n in counts.items() if n}


def _unjudged_gaps(unjudged: Mapping[str, int]) -> list[Gap]:
    doing = "judge in each look all that it selects: {}, too many at a time"
    needs = "a shorter `--since`, or a narrower `where`"
    return [
        Gap(
            f"rule {name}",
            doing.format(_connections(n) + (" was" if n == 1 else " were") + " left out"),
            needs,
        )
        for name, n in unjudged.items()
    ]


def _connections(n: int) -> str:
    return f"{n} connection" if n == 1 else f"{n} connections"


def _standing(e: Episode, number: int, now_ns: int, selected: frozenset[str]) -> Standing:
    """Return an episode as it was at a time; its number stands for its cookie, for boots have the same ones."""
    cause = e.cause
    return Standing(
        netns=0,
        cookie=number,
        state=e.state,
        finding=cause.rule,
        certain=cause.confidence == "certain" and cause.severity != "healthy",
        age_s=(now_ns - e.first.wall_ns + max(0, e.first.boot_ns - e.latest_ns)) / 1e9,
        verdicts=1 << 30,
        workload=cause.workload,
        processes=((cause.pid, cause.started_ms),) if cause.pid else (),
        holders_known=cause.holder != "?",
        selected=selected,
        pod=cause.pod,
    )


def _when(ns: int) -> str:
    return datetime.fromtimestamp(ns // 1_000_000_000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def trial_lines(result: PolicyTrial) -> Iterator[str]:
    """Return what a policy would have done, for people."""
    rows = [("WHEN", "RULE", "FIRST MEANS", "AGE", "STATE", "LOCAL", "PEER", "FINDING", "WORKLOAD")]
    rows += [
        (
            _when(act.wall_ns), act.rule, act.means, duration_text(int(act.age_s * 1000)),
            tcp.state_name(act.episode.state), act.episode.local, act.episode.peer, act.episode.cause.rule,
            printable(act.episode.cause.workload) or "-",
        )
        for act in result.acts
    ]  # fmt: skip
    if result.acts:
        widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
        for row in rows:
            yield (
                "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() + "\n"
            )
    yield _headline(result)
    for rule in result.policy.rules:
        if rule.name in result.untried:
            yield f"rule {rule.name}: not judged: the history does not keep what its FILTER asks for\n"
            continue
        n = sum(act.rule == rule.name for act in result.acts)
        yield f"rule {rule.name}: {n} acted on"
        if beyond := result.unjudged.get(rule.name, 0):
            yield f"; not judged in some looks: {beyond}"
        if spared := spared_text(result.spared[rule.name]):
            yield f"; left alone at the end, {spared}"
        if stopped := ", ".join(
            f"{name} in {n} look{'s'[: n > 1]}" for name, n in sorted(result.stopped[rule.name].items())
        ):
            yield f"; budgets that were used up: {stopped}"
        yield "\n"


def _headline(result: PolicyTrial) -> str:
    """Return the total; where not everything was judged, none is no result."""
    name, n = result.policy.name, sum(result.unjudged.values())
    beyond = f"{_connections(n)} {'was' if n == 1 else 'were'} not judged in some looks"
    if result.untried:
        rules = f"rule{'s'[: len(result.untried) > 1]} {', '.join(result.untried)} could not be judged"
        beyond, n = f"{beyond}, and {rules}" if n else rules, n + 1
    if n and not result.acts:
        return f"policy `{name}`: whether it would have acted is unknown: {beyond}\n"
    among = f", among those that were judged; {beyond}" if n else ""
    return f"policy `{name}` would have acted on {_connections(len(result.acts))} in {result.looks} looks{among}\n"


def trial_json(result: PolicyTrial) -> dict[str, Any]:
    """Return what a policy would have done, as JSON's types."""
    return {
        "policy": result.policy.name,
        "mode": result.policy.mode,
        "looks": result.looks,
        "items": [
            {
                "at": _when(act.wall_ns),
                "rule": act.rule,
                "means": act.means,
                "age_s": act.age_s,
                "state": tcp.state_name(act.episode.state),
                "local": act.episode.local,
                "peer": act.episode.peer,
                "cookie": f"{act.episode.cookie:#x}",
                "netns": act.episode.netns,
                "boot_id": act.episode.boot,
                "finding": act.episode.cause.rule,
                "workload": act.episode.cause.workload or None,
            }
            for act in result.acts
        ],
        "rules": [
            {
                "name": rule.name,
                "acted": sum(act.rule == rule.name for act in result.acts),
                "spared": dict(result.spared[rule.name]),
                "budgets_used_up": dict(result.stopped[rule.name]),
                "unjudged": None if rule.name in result.untried else result.unjudged.get(rule.name, 0),
            }
            for rule in result.policy.rules
        ],
    }
