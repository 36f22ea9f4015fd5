"""The groups that the page shows, made of the book of episodes: one for each cause and workload.

A connection counts once, though both its ends are here; it belongs to the end that speaks for it. A FILTER selects
ends, and a connection is shown where one of its ends is selected. The name of a group is made of rule and workload and
of nothing that changes, so that a link to it holds after a restart.

Columns only: 100,000 connections take some ten milliseconds. Pure.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from finwait.agent.causes import HEALTHY
from finwait.agent.episodes import Book, Episode, Instant, once
from finwait.agent.tally import PENDING
from finwait.agent.telling import kept_mask, when_text
from finwait.report.agent_page import (
    ENDS_MOST,
    GROUPS_MOST,
    AgeSpan,
    GroupDetail,
    GroupItem,
    OtherEndItem,
    PageEnd,
    TranslatedEnds,
)
from finwait.uapi import tcp

if TYPE_CHECKING:
    from finwait.agent.episodes import Cause
    from finwait.agent.protocol import LimitUse
    from finwait.report.agent_page import SaidCause
    from finwait.table.filter import Filter

__all__ = ["PageSource", "by_urgency", "group_detail", "group_id", "page_groups"]

_HARM: Final = {"outage": 3, "stall": 2, "leak": 1}
_SEVERE: Final = {"problem": 2, "notice": 1}
_HOLDERS: Final = 3
_SURE: Final = ("certain", "likely", "possible")

I64 = NDArray[np.int64]


def group_id(rule: str, workload: str) -> str:
    """Return the name of a group in links."""
    import hashlib  # not before a page is read

    return hashlib.sha256(f"{rule}\0{workload}".encode("utf-8", "surrogatepass")).hexdigest()[:16]


class PageSource(Struct, frozen=True):
    """What groups are made of."""

    book: Book
    now: Instant
    said: Mapping[tuple[str, str], SaidCause]
    """Rule and workload → what the last diagnosis said."""
    rates: Mapping[tuple[str, str], float]
    limits: Sequence[LimitUse]
    names: Mapping[tuple[str, int], Sequence[str]]
    """(Boot, inode) → what a network namespace is called."""
    row_filter: Filter | None = None


class _Grouped(Struct, frozen=True):
    """The ends that are shown, and which group each is in."""

    places: I64
    """Among the open episodes of the book."""
    code: I64
    """Index into `keys`."""
    speaks: NDArray[np.bool_]
    cause: NDArray[np.int32]
    state: NDArray[np.uint8]
    latest: I64
    keys: list[tuple[str, str]]


def _key(cause: Cause) -> tuple[str, str]:
    return cause.rule or PENDING, cause.workload


def _grouped(source: PageSource) -> _Grouped:
    """Return the ends of every connection that is shown.

    Raises:
        FilterError: the FILTER asks for something that an episode does not know.
    """
    book = source.book
    cookie, cause, other, latest, state = book.columns("cookie", "cause", "other", "latest", "state")
    selected = _selected(source) if source.row_filter is not None else np.ones(len(cookie), np.bool_)
    kept = np.array([entry.severity != HEALTHY for entry in book.causes], np.bool_)[cause]
    places = np.flatnonzero(kept)
    cookie, cause, other, latest, state = (a[places] for a in (cookie, cause, other, latest, state))
    rank = np.array([entry.rank for entry in book.causes], np.int8)[cause]
    speaks = once(cookie, other, rank)
    leader = np.arange(len(cookie))
    if len(cookie):
        partner = np.minimum(np.searchsorted(cookie, other), len(cookie) - 1)
        leader = np.where(speaks, leader, partner)
    shown = np.zeros(len(cookie), np.bool_)
    shown[leader[selected[places]]] = True
    shown = shown[leader]
    numbers: dict[tuple[str, str], int] = {}
    of_cause = np.array([numbers.setdefault(_key(entry), len(numbers)) for entry in book.causes], np.int64)
    code = of_cause[cause[leader]]
    return _Grouped(
        places[shown], code[shown], speaks[shown], cause[shown], state[shown], latest[shown], list(numbers)
    )


def _selected(source: PageSource) -> NDArray[np.bool_]:
    assert source.row_filter is not None
    book = source.book
    names = ("cookie", "state", "netns", "src", "dst", "sport", "dport", "ifindex")
    columns = dict(zip(names, book.columns(*names), strict=True))
    cause, latest, earliest = book.columns("cause", "latest", "earliest")
    now = source.now.boot_ns
    return kept_mask(
        source.row_filter,
        columns,
        [book.causes[k] for k in cause.tolist()],
        [(book.boot, inode) for inode in columns["netns"].tolist()],
        np.maximum(0, now - latest) / 1e9,
        np.where(earliest >= 0, np.maximum(0, now - earliest) / 1e9, np.nan),
        source.names,
    )


def page_groups(source: PageSource) -> tuple[list[GroupItem], int, int, int, int]:
    """Return the groups by harm and age, how many were left out, and the connections in all and in problems.

    The last number is that of ends of these connections that no diagnosis has seen.

    Raises:
        FilterError: the FILTER asks for something that an episode does not know.
    """
    hits = _grouped(source)
    items = _items(source, hits)
    stuck = sum(item.count for item in items)
    problems = sum(item.count for item in items if item.severity == "problem")
    (diagnosed,) = source.book.columns("diagnosed")
    undiagnosed = int((~diagnosed[hits.places]).sum())
    return items[:GROUPS_MOST], max(0, len(items) - GROUPS_MOST), stuck, problems, undiagnosed


def _items(source: PageSource, hits: _Grouped) -> list[GroupItem]:
    size = len(hits.keys)
    count = np.bincount(hits.code[hits.speaks], minlength=size)
    oldest = np.full(size, source.now.boot_ns, np.int64)
    np.minimum.at(oldest, hits.code[hits.speaks], hits.latest[hits.speaks])
    states = np.bincount(hits.code * 256 + hits.state, minlength=size * 256).reshape(size, 256)
    causes = _causes_of(source.book, hits)
    items = []
    for k in np.flatnonzero(count).tolist():
        rule, workload = hits.keys[k]
        several = causes[k]
        worst = max(several, key=lambda cause: (_SEVERE.get(cause.severity, 0), several[cause]))
        reached = min(
            (limit for limit in source.limits if workload and limit.called == workload and limit.reached_s),
            key=lambda limit: limit.reached_s or 0.0,
            default=None,
        )
        items.append(
            _item(
                rule=rule,
                workload=workload,
                worst=worst,
                count=int(count[k]),
                oldest_s=max(0, source.now.boot_ns - int(oldest[k])) / 1e9,
                rate=source.rates.get((rule, workload), 0.0),
                reached=reached,
                states={tcp.state_name(s): int(states[k, s]) for s in np.flatnonzero(states[k]).tolist()},
                holders=_holders(several),
                confidences=_confidences(several),
                text=source.said.get((rule, workload)),
            )
        )
    items.sort(key=lambda g: (-_SEVERE.get(g.severity, 0), -_HARM.get(g.harm, 0), -g.oldest_s, g.id))
    return items


def _causes_of(book: Book, hits: _Grouped) -> dict[int, Counter[Cause]]:
    """Return the causes of the connections of each group, by how many have them."""
    pairs, n = np.unique(
        hits.code[hits.speaks] << 32 | hits.cause[hits.speaks].astype(np.int64), return_counts=True
    )
    causes: dict[int, Counter[Cause]] = {}
    for pair, several in zip(pairs.tolist(), n.tolist(), strict=True):
        causes.setdefault(pair >> 32, Counter())[book.causes[pair & 0xFFFFFFFF]] += several
    return causes


def _confidences(causes: Counter[Cause]) -> dict[str, int]:
    """Return how sure the last diagnosis was of how many connections, the surest first."""
    counts: Counter[str] = Counter()
    for cause, n in causes.items():
        if cause.confidence:
            counts[cause.confidence] += n
    order = sorted(counts, key=lambda level: (_SURE.index(level) if level in _SURE else len(_SURE), level))
    return {level: counts[level] for level in order}


def _holders(causes: Counter[Cause]) -> list[str]:
    names = [cause.holder for cause, _ in causes.most_common() if cause.holder and cause.holder != "?"]
    different = list(dict.fromkeys(names))
    more = len(different) - _HOLDERS
    return different[:_HOLDERS] + ([f"{more} more"] if more > 0 else [])


def _item(
    *,
    rule: str,
    workload: str,
    worst: Cause,
    count: int,
    oldest_s: float,
    rate: float,
    reached: LimitUse | None,
    states: dict[str, int],
    holders: list[str],
    confidences: dict[str, int],
    text: SaidCause | None,
) -> GroupItem:
    remedy = text.ends_it[0] if text is not None and text.ends_it else None
    if text is not None:  # the first that can be typed
        remedy = next((r for r in text.ends_it if r.command), remedy)
    return GroupItem(
        id=group_id(rule, workload),
        rule=rule,
        severity=worst.severity or "notice",
        workload=workload,
        count=count,
        oldest_s=round(oldest_s, 3),
        rate=rate,
        reached_s=reached.reached_s if reached is not None else None,
        limit=reached.limit if reached is not None else "",
        states=states,
        holders=holders,
        title=text.title if text is not None else "",
        harm=text.harm if text is not None else "",
        confidence=worst.confidence,
        whose=worst.whose or "unknown",
        act=text.act if text is not None else "",
        ends_it=remedy.text if remedy is not None else "",
        command=remedy.command if remedy is not None else "",
        confidences=confidences,
    )


def group_detail(source: PageSource, name: str) -> GroupDetail | None:
    """Return a group by its name, with the oldest of its connections; None where there is none.

    Raises:
        FilterError: the FILTER asks for something that an episode does not know.
    """
    hits = _grouped(source)
    number = next((k for k, key in enumerate(hits.keys) if group_id(*key) == name), None)
    if number is None:
        return None
    inside = np.flatnonzero(hits.code == number)
    alone = _Grouped(
        hits.places[inside],
        hits.code[inside],
        hits.speaks[inside],
        hits.cause[inside],
        hits.state[inside],
        hits.latest[inside],
        hits.keys,
    )
    items = _items(source, alone)
    if not items:
        return None
    order = np.lexsort((alone.places, alone.latest, ~alone.speaks))[:ENDS_MOST]
    episodes = source.book.at(alone.places[order])
    rule, workload = hits.keys[number]
    return GroupDetail(
        group=items[0],
        cause=source.said.get((rule, workload)),
        ends=[_end(source, e) for e in episodes],
        more=len(inside) - len(episodes),
    )


def _end(source: PageSource, e: Episode) -> PageEnd:
    now, other = source.now.boot_ns, e.other
    most = e.at_most_ns(now)
    state = source.book.state_of(other.cookie) if other.cookie else None
    translated = other.translated
    holder: str | None = e.cause.holder
    return PageEnd(
        state=tcp.state_name(e.state),
        local=e.local,
        peer=e.peer,
        netns=e.netns,
        netns_names=list(source.names.get((e.boot, e.netns), ()))[:3],
        cookie=f"{e.cookie:#x}",
        holder=None if holder == "?" or not e.cause.rule else holder,
        first_seen=when_text(e.first.wall_ns),
        age_s=AgeSpan(at_least=e.at_least_ns(now) / 1e9, at_most=most / 1e9 if most >= 0 else None),
        other_end=OtherEndItem(
            cookie=f"{other.cookie:#x}",
            netns=other.netns,
            holder=other.holder,
            state=tcp.state_name(state) if state is not None else None,
        )
        if other.cookie
        else None,
        translated=TranslatedEnds(local=translated[0], peer=translated[1])
        if translated is not None
        else None,
    )


def by_urgency(limits: Sequence[LimitUse]) -> list[LimitUse]:
    """Return limits in order: the soonest reached, then the fullest."""
    return sorted(
        limits,
        key=lambda limit: (
            limit.reached_s if limit.reached_s is not None else float("inf"),
            -limit.used / max(1, limit.most),
        ),
    )
