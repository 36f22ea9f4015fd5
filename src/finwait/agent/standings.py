"""The connections that rules of a policy are about, as the last diagnosis saw them. Pure.

Only so many are judged at a time. So a rule selects first, with its findings and its FILTERs; what it does not select
takes nobody's place. Of what is too much even then, those come first of which nothing is known that speaks against an
act; each cause in turn has its oldest one judged, so that one of thousands does not hide one of twenty. The rest is
counted: by what speaks against it, and else as not judged.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from finwait.agent.episodes import Book, Cause, Instant
from finwait.agent.policy import SocketKey, SparedBy, Standing
from finwait.agent.policy_file import Policy, PolicyRule
from finwait.uapi import tcp

if TYPE_CHECKING:
    from finwait.agent.verdict import DiagnosedLook

__all__ = ["STANDING_MOST", "UNJUDGED", "beginnings", "first_in_turn", "standings"]

STANDING_MOST: Final = 5000
"""Connections that are judged at a time, of each rule."""
UNJUDGED: Final = "unjudged"
_REASONS: Final[Sequence[SparedBy]] = (
    "state", "excluded", "unnamed", "not-certain", "holder-unknown", "young", "looks",
)  # fmt: skip

_COLUMNS: Final = (
    "cookie", "netns", "state", "latest", "cause", "verdicts", "diagnosed", "missing", "restored",
)  # fmt: skip


def first_in_turn(groups: NDArray[Any], last: NDArray[np.bool_], most: int) -> NDArray[np.bool_]:
    """Return which rows are taken where there is no room for all.

    Args:
        groups: a number for each row, the oldest row first; each group has a turn.
        last: rows that come after all others.
        most: how many.
    """
    n = len(groups)
    if n <= most:
        return np.ones(n, np.bool_)
    by_group = np.lexsort((last, groups))
    ordered = groups[by_group]
    starts = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1])))
    turn = np.empty(n, np.int64)
    turn[by_group] = np.arange(n) - np.repeat(starts, np.diff(np.append(starts, n)))
    taken = np.zeros(n, np.bool_)
    taken[np.lexsort((turn, last))[:most]] = True
    return taken


def standings(
    book: Book, look: DiagnosedLook, policy: Policy, now: Instant
) -> tuple[list[Standing], Counter[tuple[str, str]]]:
    """Return the connections that rules of a policy are about, the oldest first, and how many more there are.

    Those are counted by rule and by what speaks against them: a `SparedBy`, or ``unjudged`` where nothing plainly does.
    """
    causes, columns = book.causes, dict(zip(_COLUMNS, book.columns(*_COLUMNS), strict=True))
    number, latest = columns["cause"], columns["latest"]
    rows = np.flatnonzero(columns["diagnosed"] & ~columns["missing"] & ~columns["restored"])
    rows = rows[np.argsort(latest[rows], kind="stable")]
    taken, beyond = [], Counter[tuple[str, str]]()
    for rule in policy.rules:
        named = np.array([cause.rule in rule.findings for cause in causes], np.bool_)
        own = rows[named[number[rows]]]
        if rule.filters:
            own = own[_among(look.selected.get(rule.name, ()), columns, own)]
        rows = rows[~np.isin(rows, own)]
        if len(own) <= STANDING_MOST:
            taken.append(own)
            continue
        against = _against(rule, causes, columns, look, own, now)
        kept = first_in_turn(number[own], against >= 0, STANDING_MOST)
        taken.append(own[kept])
        for k, n in Counter(against[~kept].tolist()).items():
            beyond[rule.name, UNJUDGED if k < 0 else _REASONS[k]] += n
    if not taken:
        return [], beyond
    every = np.concatenate(taken)
    every = every[np.argsort(latest[every], kind="stable")]
    return [_standing(book, columns, k, look, policy, now) for k in every.tolist()], beyond


def _against(
    rule: PolicyRule,
    causes: Sequence[Cause],
    columns: Mapping[str, NDArray[Any]],
    look: DiagnosedLook,
    rows: NDArray[Any],
    now: Instant,
) -> NDArray[np.int64]:
    """Return for each row which of `_REASONS` speaks against an act, as `finwait.agent.policy` says; −1 for none."""
    certain = np.array([c.confidence == "certain" and c.severity != "healthy" for c in causes], np.bool_)
    known = np.array([c.holder != "?" and c.others is not None for c in causes], np.bool_)
    number = columns["cause"][rows]
    several = [
        tcp.CLOSING_STATES >> columns["state"][rows].astype(np.int64) & 1 == 0,
        _among(look.left_alone.get("excluded", ()), columns, rows),
        _among(look.left_alone.get("unnamed", ()), columns, rows),
        ~certain[number],
        ~known[number],
        now.boot_ns - columns["latest"][rows] < int(rule.min_age_s * 1e9),
        columns["verdicts"][rows] < rule.looks,
    ]
    return np.select(several, list(range(len(_REASONS))), -1).astype(np.int64)


def _among(
    keys: Collection[SocketKey], columns: Mapping[str, NDArray[Any]], rows: NDArray[Any]
) -> NDArray[np.bool_]:
    """Return which rows are of these connections."""
    netns, cookie = columns["netns"][rows].tolist(), columns["cookie"][rows].tolist()
    return np.fromiter((key in keys for key in zip(netns, cookie, strict=True)), np.bool_, len(rows))


def _standing(
    book: Book,
    columns: Mapping[str, NDArray[Any]],
    k: int,
    look: DiagnosedLook,
    policy: Policy,
    now: Instant,
) -> Standing:
    key = (int(columns["netns"][k]), int(columns["cookie"][k]))
    cause = book.causes[int(columns["cause"][k])]
    return Standing(
        netns=key[0],
        cookie=key[1],
        state=int(columns["state"][k]),
        finding=cause.rule,
        certain=cause.confidence == "certain" and cause.severity != "healthy",
        age_s=max(0, now.boot_ns - int(columns["latest"][k])) / 1e9,
        verdicts=int(columns["verdicts"][k]),
        workload=cause.workload,
        processes=((cause.pid, cause.started_ms), *(cause.others or ())) if cause.pid else (),
        holders_known=cause.holder != "?" and cause.others is not None,
        selected=frozenset(
            rule.name for rule in policy.rules if not rule.filters or key in look.selected.get(rule.name, ())
        ),
        pod=cause.pod,
        left_alone="excluded"
        if key in look.left_alone.get("excluded", ())
        else "unnamed"
        if key in look.left_alone.get("unnamed", ())
        else "",
    )


def beginnings(book: Book) -> dict[int, tuple[int, tuple[str, ...]]]:
    """Return when processes that hold connections began, and what their workload and their pod are called."""
    began: dict[int, tuple[int, tuple[str, ...]]] = {}
    for cause in book.causes:
        for pid, started_ms in cause.others or ():
            began.setdefault(pid, (started_ms, ()))
    for cause in book.causes:
        if cause.pid:
            pod = (f"pod/{cause.pod}",) if cause.pod else ()
            began[cause.pid] = cause.started_ms, (*filter(None, (cause.workload,)), *pod)
    return began
