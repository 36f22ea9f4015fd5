"""Episodes as JSON's types and as lines, and which of them a FILTER selects. Pure.

A FILTER over the history means what it means over a look, as far as an episode knows it: its state, addresses, ports,
cookie, namespace, holder, rule and age. What an episode does not keep (queues, timers, users) cannot be asked of it,
and asking is an error rather than an empty answer.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from finwait.agent.cluster_told import ClusterStatus
from finwait.agent.episodes import Cause, Episode, Instant
from finwait.agent.policy_told import PolicyStatus
from finwait.agent.protocol import ConfigStatus, RecorderStatus, Status
from finwait.agent.stories import RecordedStep, step_items, story_lines
from finwait.agent.workload_names import placed_in_cluster, split_workload
from finwait.errors import FilterError, Gap
from finwait.report.agent_page import StoryStep
from finwait.report.shape import connection
from finwait.table.filter import Filter
from finwait.table.sockets import SocketTable, address_text
from finwait.table.units import csv_text, duration_text, printable, span_text
from finwait.uapi import tcp

__all__ = [
    "COLUMNS", "chosen", "columns", "csv_lines", "episode_json", "kept_mask", "looker_gaps", "nobody_since", "picked",
    "seen_until", "series_of", "shortened", "spared_text", "status_lines", "story_of", "text_lines", "when_text",
]  # fmt: skip

Names = Mapping[tuple[str, int], Sequence[str]]
"""(Boot, inode) → what a network namespace was called."""
Stories = Mapping[tuple[str, int, int, int], Sequence[RecordedStep]]
"""Boot, cookie, state and first sight of an episode → its story."""
_INTERVAL_S: Final = 15.0
_ROUNDS_S: Final = 60.0
"""How often the looker writes down that it looks, where its interval is not longer."""

_KNOWN: Final = frozenset(
    {
        "age_at_least_s",
        "age_at_most_s",
        "netns",
        "pid",
        "comm",
        "pod",
        "workload",
        "namespace",
        "rule",
        "severity",
    }
)
_COLUMNS: Final = frozenset(
    {"cookie", "sport", "dport", "src", "dst", "state", "netns", "ifindex", "protocol", "family"}
)


def when_text(ns: int) -> str:
    """Return a wall clock time as RFC 3339."""
    return datetime.fromtimestamp(ns // 1_000_000_000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _ages(e: Episode, now_boot_ns: int, boot: str, seen_ns: int = -1) -> tuple[int, int]:
    """Return how long it lasted, at least and at most, in ms; −1 for unknown.

    Without an end it lasted until the last look at least, and until now at most.
    """
    now, seen = now_boot_ns, now_boot_ns if seen_ns < 0 else seen_ns
    most = e.at_most_ns(now)
    if e.boot != boot:
        now = seen = e.last.boot_ns
        if e.ended is None or e.how == "unknown":  # nobody saw its end, or it was that of another boot
            most = -1
    return e.at_least_ns(max(seen, e.last.boot_ns)) // 1_000_000, most // 1_000_000 if most >= 0 else -1


def seen_until(last: Mapping[str, Any] | None, now: Instant, boot: str) -> int:
    """Return until when (CLOCK_BOOTTIME, ns) what has no end is known to have lasted: the agent's last look.

    Args:
        last: ``round`` of the history's ``meta``.
        now: the time.
        boot: id of this boot.
    """
    if last is None or last.get("boot") != boot:
        return 0
    return min(int(last["boot_ns"]), now.boot_ns)


def looker_gaps(looker: Mapping[str, Any] | None) -> list[Gap]:
    """Return what the agent could not see.

    Args:
        looker: ``looker`` of the history's ``meta``.
    """
    return [Gap(str(where), str(doing), str(needs)) for where, doing, needs in (looker or {}).get("gaps", ())]


def nobody_since(
    last: Mapping[str, Any] | None,
    looker: Mapping[str, Any] | None,
    now: Instant,
    boot: str,
    *,
    runs: bool | None = None,
) -> Gap | None:
    """Return that later looks are not in the history; None while an agent writes them there.

    Args:
        last: ``round`` of the history's ``meta``: when the agent looked last, as far as it could write that.
        looker: ``looker`` of it: its interval in seconds.
        now: the time.
        boot: id of this boot.
        runs: whether an agent runs; None where that cannot be told. One that runs may hang, or be unable to write.
    """
    looker, start = looker or {}, "`finwait agent` running"
    if runs:
        start = "what `finwait agent status` says of the history"
    if last is None:
        doing = (
            "an agent runs, and has written nothing" if runs else "when an agent looked last is not written"
        )
        return Gap("this machine", f"tell when an agent looked last: {doing}", start)
    when = when_text(int(last["wall_ns"]))
    if last.get("boot") != boot:
        ago = "before the machine was started"
    else:
        ago_ms = max(0, now.boot_ns - int(last["boot_ns"])) // 1_000_000
        if runs is not False and ago_ms <= 1000 * (
            _ROUNDS_S + 3 * float(looker.get("interval_s", _INTERVAL_S))
        ):
            return None
        ago = f"{duration_text(ago_ms)} ago"
    phrase = {
        True: "an agent runs, but has written nothing since {}: it has just started, hangs, or cannot write",
        False: "nobody has looked since {}",
        None: "no look is written down since {}, and whether an agent runs is unknown",
    }[runs]
    return Gap("this machine", "see what came later: " + phrase.format(f"{when}, {ago}"), start)


def story_of(e: Episode, stories: Stories, now_boot_ns: int, boot: str) -> list[StoryStep] | None:
    """Return the story of an episode; None where nothing of it was recorded.

    Args:
        e: the episode.
        stories: those that are kept.
        now_boot_ns: CLOCK_BOOTTIME.
        boot: id of this boot.
    """
    steps = stories.get((e.boot, e.cookie, e.state, e.first.boot_ns))
    return step_items(steps, e.first, now_boot_ns if e.boot == boot else None) if steps else None


def episode_json(
    e: Episode, now_boot_ns: int, boot: str, *, seen_ns: int = -1, stories: Stories | None = None
) -> dict[str, Any]:
    """Return an episode in JSON's types.

    Args:
        e: the episode.
        now_boot_ns: CLOCK_BOOTTIME.
        boot: id of this boot.
        seen_ns: until when one without an end is known to have lasted; −1 for now.
        stories: those that are kept; None where nobody asked.
    """
    least, most = _ages(e, now_boot_ns, boot, seen_ns)
    other, w = e.other, e.words
    story = story_of(e, stories or {}, now_boot_ns, boot)
    return {
        **connection(
            netns=e.netns, protocol=6, family=None, src=address_text(w[0], w[1]), sport=w[4],
            dst=address_text(w[2], w[3]), dport=w[5], state=tcp.state_name(e.state), cookie=e.cookie, ifindex=w[6],
        ),
        "boot_id": e.boot,
        "rule": e.cause.rule or None,
        "severity": e.cause.severity or None,
        "confidence": e.cause.confidence or None,
        "workload": e.cause.workload or None,
        "holder": None if e.cause.holder == "?" or not e.cause.rule else e.cause.holder,
        "first_seen": when_text(e.first.wall_ns),
        "last_seen": when_text(e.last.wall_ns),
        "age_s": {"at_least": least / 1000, "at_most": most / 1000 if most >= 0 else None},
        "ended": when_text(e.ended.wall_ns) if e.ended is not None else None,
        "how": e.how,
        "other_end": (
            {"cookie": f"{other.cookie:#x}", "netns": other.netns, "holder": other.holder} if other.cookie else None
        ),
        "translated": (
            {"local": other.translated[0], "peer": other.translated[1]} if other.translated is not None else None
        ),
        "story": None if story is None else msgspec.to_builtins(story),
    }  # fmt: skip


class _Kept(SocketTable):
    """Sockets of which only what an episode keeps can be asked."""

    __slots__ = ()

    def column(self, name: str) -> NDArray[Any]:
        """Return a column.

        Raises:
            ValueError: an episode does not keep it.
        """
        if name not in _COLUMNS:
            raise ValueError(f"the history does not keep {name}")
        return super().column(name)


def picked(
    row_filter: Filter,
    batches: Iterable[Sequence[Episode]],
    now_boot_ns: int,
    boot: str,
    *,
    seen_ns: int,
    names: Names,
    most: int,
) -> tuple[list[Episode], list[Gap]]:
    """Return the first episodes that a FILTER selects, and what it could not judge or was too much.

    Args:
        row_filter: the FILTER.
        batches: the episodes, some at a time; read only as far as is needed.
        now_boot_ns: CLOCK_BOOTTIME, for the ages of those that last.
        boot: id of this boot.
        seen_ns: until when those without an end are known to have lasted; −1 for now.
        names: of network namespaces.
        most: how many to return.

    Raises:
        FilterError: it asks for something that an episode does not know.
    """
    hits: list[Episode] = []
    nameless: set[tuple[str, int]] = set()
    by_name = _names_asked(row_filter)
    chosen(row_filter, (), now_boot_ns, boot)
    for batch in batches:
        if by_name:
            nameless |= {(e.boot, e.netns) for e in batch} - names.keys()
        hits += chosen(row_filter, batch, now_boot_ns, boot, names, seen_ns=seen_ns)
        if len(hits) > most:
            break
    gaps = [
        Gap.of_namespace(inode, "tell its name, which the history does not keep", "its inode in the FILTER")
        for inode in sorted({inode for _, inode in nameless})[:20]
    ]
    if len(hits) > most:
        gaps.append(Gap("the history", f"show more than {most} episodes", "a larger `--limit`, or a FILTER"))
    return hits[:most], gaps


def _names_asked(row_filter: Filter) -> bool:
    """Return whether a FILTER asks for a network namespace by its name."""
    return any(
        "netns" in leaf.reads()[1] and not str(leaf).split()[-1].strip("\"'").isdecimal()
        for leaf in row_filter.leaves
    )


def chosen(
    row_filter: Filter,
    episodes: Sequence[Episode],
    now_boot_ns: int,
    boot: str,
    names: Names | None = None,
    *,
    seen_ns: int = -1,
    sole_holder: bool = False,
) -> list[Episode]:
    """Return the episodes that a FILTER selects.

    Args:
        row_filter: the FILTER.
        episodes: which.
        now_boot_ns: CLOCK_BOOTTIME, for the ages of those that last.
        boot: id of this boot.
        seen_ns: until when those without an end are known to have lasted; −1 for now.
        names: of network namespaces; a namespace that is not among them has its inode only.
        sole_holder: take the holder that is kept for the only one.

    Raises:
        FilterError: it asks for something that an episode does not know.
    """
    words = np.array([e.words for e in episodes], np.uint64).reshape(-1, 7)
    spans = [_ages(e, now_boot_ns, boot, seen_ns) for e in episodes]
    mask = kept_mask(
        row_filter,
        {
            "netns": [e.netns for e in episodes],
            "state": [e.state for e in episodes],
            "src": words[:, 0:2],
            "dst": words[:, 2:4],
            "sport": words[:, 4],
            "dport": words[:, 5],
            "ifindex": words[:, 6],
            "cookie": [e.cookie for e in episodes],
        },
        [e.cause for e in episodes],
        [(e.boot, e.netns) for e in episodes],
        np.array([least / 1000 if least >= 0 else np.nan for least, _ in spans]),
        np.array([most / 1000 if most >= 0 else np.nan for _, most in spans]),
        names or {},
        sole_holder=sole_holder,
    )
    return [e for e, yes in zip(episodes, mask.tolist(), strict=True) if yes]


def kept_mask(
    row_filter: Filter,
    columns: Mapping[str, Any],
    causes: Sequence[Cause],
    spaces: Sequence[tuple[str, int]],
    at_least_s: NDArray[np.float64],
    at_most_s: NDArray[np.float64],
    names: Names,
    *,
    sole_holder: bool = False,
) -> NDArray[np.bool_]:
    """Return which rows a FILTER selects, of which only what an episode keeps is known.

    Args:
        row_filter: the FILTER.
        columns: cookie, state, netns, src, dst, sport, dport and ifindex.
        causes: of each row.
        spaces: boot and inode of each row's network namespace.
        at_least_s: how long each row has lasted; NaN for unknown.
        at_most_s: as at_least_s.
        names: of network namespaces.
        sole_holder: take the holder that is kept for the only one.

    Raises:
        FilterError: it asks for something that an episode does not know.
    """
    if asked := sorted(row_filter.needs - _KNOWN):
        raise FilterError(row_filter.text, 0, f"the history does not keep {', '.join(asked)}")
    src = np.asarray(columns["src"], np.uint64).reshape(-1, 2)
    mapped = (src[:, 0] == 0) & (src[:, 1] >> np.uint64(32) == np.uint64(0xFFFF))
    table = _Kept.from_columns(
        {**columns, "protocol": [6] * len(causes), "family": np.where(mapped, 2, 10)},
    )
    context: dict[str, Any] = {
        "age_at_least_s": at_least_s,
        "age_at_most_s": at_most_s,
        "netns": [(str(inode), *names.get((boot, inode), ())) for boot, inode in spaces],
        "pid": [_holder(cause, cause.pid) for cause in causes],
        "comm": [_holder(cause, cause.holder.partition("(")[0]) for cause in causes],
        "pod": [_pod(cause) for cause in causes],
        "workload": [_in_cluster(cause, cause.workload) for cause in causes],
        "namespace": [_in_cluster(cause, split_workload(cause.workload)[0]) for cause in causes],
        "rule": [(cause.rule,) if cause.rule else (None,) for cause in causes],
        "severity": [(cause.severity,) if cause.severity else (None,) for cause in causes],
    }
    if sole_holder:
        for name in ("pid", "comm", "pod"):
            context[name] = [cells if cells == (None,) else cells[:1] for cells in context[name]]
    try:
        return row_filter.mask(table, context)
    except ValueError as error:
        raise FilterError(row_filter.text, 0, str(error)) from None


def series_of(row_filter: Filter, series: Mapping[int, tuple[str, str, str]]) -> list[int]:
    """Return the numbers of the series that a FILTER selects, of which rule, severity, workload and pod are known.

    Args:
        row_filter: the FILTER.
        series: number → rule, severity, workload.

    Raises:
        FilterError: it asks for something else.
    """
    reads_columns = any(leaf.reads()[0] for leaf in row_filter.leaves)
    if reads_columns or row_filter.needs - {"rule", "severity", "pod", "workload", "namespace"}:
        raise FilterError(
            row_filter.text, 0, "counts over time are kept by rule, severity, workload and pod only",
            hint="episodes can be filtered by the rest",
        )  # fmt: skip
    causes = [
        Cause(rule=rule, severity=severity, workload=workload) for rule, severity, workload in series.values()
    ]
    nothing = dict.fromkeys(("netns", "state", "sport", "dport", "ifindex", "cookie"), [0] * len(causes))
    pairs = np.zeros((len(causes), 2), np.uint64)
    unknown = np.full(len(causes), np.nan)
    mask = kept_mask(
        row_filter,
        {**nothing, "src": pairs, "dst": pairs},
        causes,
        [("", 0)] * len(causes),
        unknown,
        unknown,
        {},
    )
    return [number for number, yes in zip(series, mask.tolist(), strict=True) if yes]


def _holder(cause: Cause, value: object) -> tuple[object, ...]:
    """Return the holder as it was seen; others may have held it, too."""
    if cause.pid:
        return (value, None)
    return (None,) if cause.holder == "?" or not cause.rule else ()


def _pod(cause: Cause) -> tuple[str | None, ...]:
    """Return its uid, and that its name is not kept."""
    if cause.pod:
        return cause.pod, None
    if placed_in_cluster(cause.workload) or not cause.workload:
        return (None,)
    return (cause.workload.removeprefix("pod/"), None) if cause.workload.startswith("pod/") else ()


def _in_cluster(cause: Cause, text: str) -> tuple[str | None, ...]:
    """Return what a cluster calls it; nothing for what is in none, None for a pod that has no name."""
    if placed_in_cluster(cause.workload):
        return (text,)
    return (None,) if cause.pod or not cause.workload or cause.workload.startswith("pod/") else ()


COLUMNS: Final = (
    "first_seen", "ended", "how", "at_least_s", "at_most_s", "state", "local", "peer", "netns", "rule", "severity",
    "workload", "holder", "cookie", "boot",
)  # fmt: skip


def csv_lines(
    episodes: Iterable[Episode], now_boot_ns: int, boot: str, *, seen_ns: int = -1
) -> Iterator[str]:
    """Return episodes as CSV, with a line of names first."""
    for row in (COLUMNS, *(_cells(e, now_boot_ns, boot, seen_ns) for e in episodes)):
        out = io.StringIO()
        csv.writer(out, lineterminator="\n").writerow([csv_text(str(cell)) for cell in row])
        yield out.getvalue()


def columns(
    episodes: Iterable[Episode], now_boot_ns: int, boot: str, *, seen_ns: int = -1
) -> dict[str, tuple[list[Any], str]]:
    """Return episodes by columns: name → cells, None for what is not known, and the type of `finwait.report.arrow`."""
    rows = [_cells(e, now_boot_ns, boot, seen_ns) for e in episodes]
    kinds = {"at_least_s": "float64", "at_most_s": "float64", "netns": "int64"}
    return {
        name: ([None if row[k] == "" else row[k] for row in rows], kinds.get(name, "utf8"))
        for k, name in enumerate(COLUMNS)
    }


def _cells(e: Episode, now_boot_ns: int, boot: str, seen_ns: int) -> tuple[object, ...]:
    least, most = _ages(e, now_boot_ns, boot, seen_ns)
    return (
        when_text(e.first.wall_ns), when_text(e.ended.wall_ns) if e.ended is not None else "", e.how or "",
        least / 1000, most / 1000 if most >= 0 else "", tcp.state_name(e.state), e.local, e.peer, e.netns,
        e.cause.rule, e.cause.severity, e.cause.workload, e.cause.holder, f"{e.cookie:#x}", e.boot,
    )  # fmt: skip


def episode_row(
    e: Episode, now_boot_ns: int, boot: str, *, seen_ns: int = -1, looked_at: bool = True
) -> tuple[str, str, str, str, str, str, str, str]:
    """Return an episode as texts: first seen, lasted, ended, state, both ends, rule, holder; see `text_lines`."""
    least, most = _ages(e, now_boot_ns, boot, seen_ns)
    lasted = (
        span_text(least, most)
        if most < 0 or duration_text(least) == duration_text(most)
        else f"{duration_text(least)} to {duration_text(most)}"
    )
    return (
        when_text(e.first.wall_ns), lasted, e.how or ("lasts" if looked_at and e.boot == boot else "not known"),
        tcp.state_name(e.state), e.local, e.peer, e.cause.rule or "-", printable(e.cause.holder) or "-",
    )  # fmt: skip


def text_lines(
    episodes: Sequence[Episode],
    now_boot_ns: int,
    boot: str,
    *,
    seen_ns: int = -1,
    looked_at: bool = True,
    stories: Stories | None = None,
) -> Iterator[str]:
    """Return episodes as a table, with a line of names first.

    Args:
        episodes: which.
        now_boot_ns: CLOCK_BOOTTIME, for the ages of those that last.
        boot: id of this boot.
        seen_ns: until when those without an end are known to have lasted; −1 for now.
        looked_at: whether an agent still looks: else what has no end may have one.
        stories: how each got there, in lines below it; None where nobody asked.
    """
    heads = ("FIRST SEEN", "LASTED", "ENDED", "STATE", "LOCAL", "PEER", "RULE", "HOLDER")
    rows = [heads]
    rows += [episode_row(e, now_boot_ns, boot, seen_ns=seen_ns, looked_at=looked_at) for e in episodes]
    widths = [max(len(row[k]) for row in rows) for k in range(len(heads))]
    for k, row in enumerate(rows):
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() + "\n"
        if k and stories is not None:
            story = story_of(episodes[k - 1], stories, now_boot_ns, boot)
            yield from ("  " + line for line in story_lines(story or ()))
            if not story:
                yield "    how it got there is not kept: it was not recorded, or more than one connection fitted\n"


def status_lines(status: Status) -> Iterator[str]:
    """Return how the agent is, for people, each on a line, whatever it is called."""
    for line in _status_parts(status):
        yield f"{printable(line.removesuffix(_END))}\n"


_END: Final = "\n"


def _status_parts(status: Status) -> Iterator[str]:
    used = status.cpu_s / max(status.up_s, 1e-3)
    up = duration_text(int(1000 * status.up_s))
    yield f"agent      pid {status.pid}, version {status.version}, up {up}\n"
    yield f"processor  {used:.2%} of one since the start, {status.cpu_s:.1f} s; share {status.share:.2%}\n"
    spaces = "namespace" if status.namespaces == 1 else "namespaces"
    yield (
        f"looks      {status.rounds} rounds, {status.namespaces} network {spaces}, "
        f"the longest unseen for {duration_text(int(status.unseen_s * 1000))}\n"
    )
    more = f", {status.undiagnosed} not diagnosed yet" if status.undiagnosed else ""
    more += f", {status.untracked} more than it can keep" if status.untracked else ""
    yield f"episodes   {status.open} open{more}\n"
    where = f"`{status.store}`, {status.store_bytes / 1e6:.1f} MB" if status.store else "none"
    yield f"history    {where}, {status.store_errors} failed writes\n"
    if status.store_said:
        yield f"           {status.store_said}\n"
    if status.recorder is not None:
        yield from _recorder_lines(status.recorder)
    if status.cluster is not None:
        yield from _cluster_lines(status.cluster)
    if status.config is not None:
        yield from _config_lines(status.config)
    if status.policy is not None:
        yield from _policy_lines(status.policy)
    for gap in status.gaps:
        yield f"gap        {gap}\n"


_RECORDER_OFF: Final = {
    "rate": "off by itself: too many events; it goes on when there are fewer",
    "cost": "off by itself: it took too much of the processor; it goes on when there are fewer events",
    "off": "off (`--no-record-states`)",
}


def _recorder_lines(recorder: RecorderStatus) -> Iterator[str]:
    """Return how the flight recorder is, for people."""
    how = _RECORDER_OFF.get(recorder.state, recorder.state)
    if recorder.state == "failed":
        how = f"does not work: {printable(recorder.said)}"
    yield f"recorder   {how}\n"
    yield (
        f"           {recorder.rate:.0f} events a second of {recorder.rate_most:.0f} at most, {recorder.events} read, "
        f"{recorder.lost} lost, {recorder.cpu_s:.1f} s of the processor\n"
    )
    more = f", {recorder.ambiguous} not told: more than one socket fitted" if recorder.ambiguous else ""
    yield (
        f"           {recorder.kept} rows in {recorder.kept_bytes / 1e6:.1f} MB, {recorder.dropped} dropped unasked, "
        f"{recorder.stories} stories kept{more}\n"
    )
    if recorder.packets:
        yield f"           headers of packets in {', '.join(map(printable, recorder.packets))}\n"


_FOLLOWED: Final = {"starting": "not answered yet", "following": "followed", "ended": "not followed now"}


def _cluster_lines(cluster: ClusterStatus) -> Iterator[str]:
    """Return how a cluster is followed, for people."""
    place = f"`{printable(cluster.url)}`, " if cluster.url else ""
    node = f", node {printable(cluster.node)}" if cluster.node else ""
    yield f"cluster    {place}{_FOLLOWED.get(cluster.state, cluster.state)}{node}\n"
    if cluster.ages_s:
        oldest = max(cluster.ages_s, key=lambda name: cluster.ages_s[name])
        missing = [
            name
            for name in ("pods", "services", "endpointslices", "namespaces")
            if name not in cluster.ages_s
        ]
        never = f"; never listed: {', '.join(missing)}" if missing else ""
        yield (
            f"           {cluster.pods} pods of this node, {cluster.services} Services, {cluster.endpoints} endpoints; "
            f"the oldest of it, {oldest}, is {duration_text(int(1000 * cluster.ages_s[oldest]))} old{never}\n"
        )
    times = "time" if cluster.restarts == 1 else "times"
    again = f", started again {cluster.restarts} {times}" if cluster.restarts else ""
    yield f"           {cluster.cpu_s:.1f} s of the processor{again}\n"
    if cluster.said:
        yield f"           last time the process that follows it {printable(cluster.said)}\n"


_HALTED: Final = {"no-act": "`--no-act`", "kill-switch": "the kill switch is there", "error": "it failed"}
_SPARED: Final = {
    "not-certain": "not certain", "state": "in another state", "excluded": "`finwait.io/exclude`",
    "unnamed": "names not known", "holder-unknown": "holder unknown", "young": "too young",
    "looks": "not enough looks", "tried": "all means were tried", "rehearsed": "done in the dry run",
    "window": "outside its windows", "cool-down": "cool-down", "unexpected": "cool-down after an unexpected result",
    "opening": "stopped, connections open faster", "look": "budget of a look", "ten_minutes": "budget of ten minutes",
    "day": "budget of a day", "process": "budget of the process", "workload": "budget of the workload",
    "share": "share of the process", "unjudged": "not judged, too many at a time",
}  # fmt: skip


def spared_text(counts: Mapping[str, int]) -> str:
    """Return why connections are left alone, and how many."""
    return ", ".join(f"{_SPARED.get(by, by)}: {n}" for by, n in counts.items() if n)


def _config_lines(config: ConfigStatus) -> Iterator[str]:
    """Return how the configuration is, for people."""
    if config.file:
        yield f"config     `{printable(config.file)}`\n"
    elif config.said or config.restart:
        yield "config     the command line\n"
    if config.said:
        yield f"           {printable(config.said)}\n"
    if config.restart:
        yield f"           in force after a restart: {', '.join(config.restart)}\n"


def _policy_lines(policy: PolicyStatus) -> Iterator[str]:
    """Return how the policy is, for people."""
    halted = f"; nothing is done: {_HALTED.get(policy.halted, policy.halted)}" if policy.halted else ""
    yield (
        f"policy     `{policy.name}` of `{printable(policy.file)}`, mode {policy.mode}, "
        f"{policy.remaining} left of its budget{halted}\n"
    )
    if policy.said:
        yield f"           {printable(policy.said)}\n"
    for rule in policy.rules:
        spared = spared_text(rule.spared)
        yield (
            f"           rule {rule.name}: {rule.chosen} chosen"
            + (f"; left alone, {spared}" if spared else "")
            + "\n"
        )
        if rule.guarded:
            kept = ", ".join(f"`{guard}`: {n}" for guard, n in rule.guarded.items())
            yield f"           rule {rule.name}, left alone by guards, {kept}\n"
        for workload in rule.stopped:
            yield f"           rule {rule.name} is stopped for {printable(workload) or '?'}: connections open faster\n"
    for line in policy.recent:
        yield f"           {printable(line)}\n"


def shortened(gaps: Sequence[Gap], most: int) -> list[Gap]:
    """Return the first gaps, and how many more there are."""
    rest = len(gaps) - most
    more = [Gap(f"{rest} other parts of the machine", "be looked at", "")] if rest > 0 else []
    return [*gaps[:most], *more]
