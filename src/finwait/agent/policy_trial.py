"""What a policy would have done over the recorded history. Pure.

Time is gone through in steps, as diagnoses would have come; what is acted on is gone afterwards, and counts against the
budgets. The history knows less than a look: what it cannot tell is said (`TRIAL_GAPS`) and assumed to speak for an act,
so the result is the most that the policy would have done.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from msgspec import Struct

from finwait.agent.episodes import Episode, Instant
from finwait.agent.policy import PastAct, SparedBy, Standing, decide
from finwait.agent.policy_file import Policy
from finwait.agent.telling import chosen, spared_text
from finwait.errors import FilterError, Gap
from finwait.table.units import duration_text, printable
from finwait.uapi import tcp

__all__ = ["TRIAL_GAPS", "PolicyTrial", "TrialAct", "trial", "trial_json", "trial_lines"]

_STEP_NS: Final = 120_000_000_000
_STEPS_MOST: Final = 1440
_STANDING_MOST: Final = 2000
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
    looks: int
    gaps: tuple[Gap, ...]


_BUDGETS: Final[tuple[SparedBy, ...]] = ("look", "ten_minutes", "day", "process", "workload")


def trial(
    policy: Policy,
    episodes: Sequence[Episode],
    *,
    since_ns: int,
    until_ns: int,
    names: Mapping[tuple[str, int], Sequence[str]] | None = None,
) -> PolicyTrial:
    """Return what a policy would have done.

    Args:
        policy: the policy; its mode is not looked at.
        episodes: those that lasted at some time since then.
        since_ns: nanoseconds since 1970.
        until_ns: until when they are known to have lasted, where they have no end.
        names: of network namespaces.
    """
    findings = frozenset[str]().union(*(rule.findings for rule in policy.rules))
    kept = sorted(
        (e for e in episodes if e.cause.rule in findings), key=lambda e: (e.first.wall_ns, e.cookie)
    )
    selected, gaps = _selected(policy, kept, names or {})
    held = {pid: 1 << 30 for e in kept for pid in (e.cause.pid,)}
    step_ns = max(_STEP_NS, (until_ns - since_ns) // _STEPS_MOST)
    acts, past = list[TrialAct](), list[PastAct]()
    done = set[int]()
    last: dict[int, tuple[str, SparedBy]] = {}
    stopped: dict[str, Counter[str]] = {rule.name: Counter() for rule in policy.rules}
    looks = 0
    for now_ns in range(since_ns, until_ns + 1, step_ns):
        looks += 1
        present = [
            k for k, e in enumerate(kept) if k not in done and _lasts(e, now_ns)
        ][:_STANDING_MOST]  # fmt: skip
        standings = {k: _standing(kept[k], k, now_ns, selected[k]) for k in present}
        now = Instant(now_ns, now_ns)
        decision = decide(policy, standings.values(), past, held=held, now=now, boot="trial")
        for choice in decision.chosen:
            k = choice.standing.cookie
            acts.append(TrialAct(now_ns, choice.rule.name, choice.means[0], kept[k], choice.standing.age_s))
            past.append(
                PastAct(
                    choice.rule.name, "trial", now, 0, k, choice.standing.workload, choice.standing.processes,
                    choice.means[0], pod=choice.standing.pod,
                )
            )  # fmt: skip
            done.add(k)
            last.pop(k, None)
        for budget, rule in {(s.by, s.rule) for s in decision.spared}:
            if budget in _BUDGETS:
                stopped[rule][budget] += 1
        last |= {entry.standing.cookie: (entry.rule, entry.by) for entry in decision.spared}
    spared: dict[str, Counter[str]] = {rule.name: Counter() for rule in policy.rules}
    for rule, by in last.values():
        spared[rule][by] += 1
    return PolicyTrial(policy, tuple(acts), spared, stopped, looks, (*gaps, *TRIAL_GAPS))


def _lasts(e: Episode, now_ns: int) -> bool:
    return e.first.wall_ns <= now_ns and (e.ended is None or e.ended.wall_ns > now_ns)


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


def _selected(
    policy: Policy, episodes: Sequence[Episode], names: Mapping[tuple[str, int], Sequence[str]]
) -> tuple[list[frozenset[str]], list[Gap]]:
    """Return which rules let each episode pass, and what the history does not keep of what they ask."""
    passed: list[set[str]] = [set() for _ in episodes]
    place = {id(e): k for k, e in enumerate(episodes)}
    gaps = []
    for rule in policy.rules:
        hits: Iterable[Episode] = episodes
        try:
            for row_filter in rule.filters:
                hits = chosen(row_filter, list(hits), 0, "", names, sole_holder=True)
        except FilterError as error:
            gaps.append(
                Gap(
                    f"rule {rule.name}",
                    f"judge `{error.text}`: {error.message}",
                    "a FILTER that the history can judge",
                )
            )
            continue
        for e in hits:
            passed[place[id(e)]].add(rule.name)
    return [frozenset(several) for several in passed], gaps


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
    noun = "connection" if len(result.acts) == 1 else "connections"
    yield f"policy `{result.policy.name}` would have acted on {len(result.acts)} {noun} in {result.looks} looks\n"
    for rule in result.policy.rules:
        n = sum(act.rule == rule.name for act in result.acts)
        yield f"rule {rule.name}: {n} acted on"
        if spared := spared_text(result.spared[rule.name]):
            yield f"; left alone at the end, {spared}"
        if stopped := ", ".join(
            f"{name} in {n} look{'s'[: n > 1]}" for name, n in sorted(result.stopped[rule.name].items())
        ):
            yield f"; budgets that were used up: {stopped}"
        yield "\n"


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
            }
            for rule in result.policy.rules
        ],
    }
