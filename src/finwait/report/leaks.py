"""What ``finwait trace --leaks`` found, for a person and as JSON: a group a code path, the largest first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from finwait.diagnosis.leaks import CallName, CallStack, LeakGroup, Matching, UnwoundBy
from finwait.report.json import objects
from finwait.report.shape import document
from finwait.report.stacks import frame_lines
from finwait.report.style import wrap
from finwait.table.sockets import endpoint_text
from finwait.table.units import duration_text
from finwait.uapi import tcp

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from finwait.diagnosis.view import View
    from finwait.errors import Gap
    from finwait.report.style import Style

__all__ = ["leak_document", "leak_lines"]

_MOST_PIDS: Final = 5
_SHORT_NS: Final = 1_000_000_000
_NEARLY: Final = 1.05
"""Looks that add less to the time than this are not mentioned."""


def leak_lines(
    groups: Sequence[LeakGroup],
    matching: Matching,
    view: View,
    *,
    for_ns: int,
    window_ns: int,
    ended_ns: int,
    unheld: int,
    style: Style,
) -> Iterator[str]:
    """Return the groups as lines for a person.

    Args:
        groups: the largest first.
        matching: of all connections that are there at the end.
        view: of the last look.
        for_ns: how long was waited between the two looks.
        window_ns: within which all that is counted was opened: with the looks.
        ended_ns: the end of that time (CLOCK_MONOTONIC).
        unheld: connections without a socket of a program.
        style: width and colour.
    """
    count, unmatched = len(matching.still), sum(matching.unmatched.values())
    traced = _traced(for_ns, window_ns)
    if count:
        paths = f"{len(groups)} code path{'' if len(groups) == 1 else 's'}"
        yield f"{_connections(count)} opened during the trace {_are(count)} still there, from {paths} ({traced})"
        yield "A connection in use is still there too. A leak is a path whose number only grows."
    elif unmatched:
        code = f"the code that opened {_them(unmatched)} is not known"
        yield f"{_connections(unmatched)} opened during the trace {_are(unmatched)} still there ({traced}); {code}"
    elif for_ns < _SHORT_NS:
        yield f"Too short to find a leak: {traced}; nothing opened in that time is known to be still there"
    else:
        yield f"No connection was found that was opened during the trace and is still there ({traced})"
    if count and unmatched:
        code = f"the code that opened {_them(unmatched)} is not known"
        yield f"{_connections(unmatched)} more {_are(unmatched)} there; {code}"
    if matching.before:
        yield f"{_connections(matching.before)} {_were(matching.before)} there before the trace began"
    if unheld:
        yield f"{_connections(unheld)} {_are(unheld)} there that no program holds: not accepted yet, or closed by it"
    for group in groups:
        yield ""
        yield from _group(group, view, ended_ns, style)


def _traced(for_ns: int, window_ns: int) -> str:
    """Return within which time all that is counted was opened; a rate is by that, not by what was asked for."""
    asked, whole = (duration_text(ns // 1_000_000) for ns in (for_ns, max(window_ns, for_ns)))
    if window_ns <= _NEARLY * for_ns:
        return f"traced for {whole}"
    return f"traced for {whole}: {asked}, and two looks at the sockets"


def _connections(count: int) -> str:
    return "1 connection" if count == 1 else f"{count} connections"


def _are(count: int) -> str:
    return "is" if count == 1 else "are"


def _were(count: int) -> str:
    return "was" if count == 1 else "were"


def _them(count: int) -> str:
    return "it" if count == 1 else "them"


def _group(group: LeakGroup, view: View, ended_ns: int, style: Style) -> Iterator[str]:
    states = ", ".join(
        f"{count} × {_state(state)}" for state, count in sorted(group.states.items(), key=_by_count)
    )
    yield style.paint(f"{states}  opened by {group.call}() in {group.comm}", "bold")
    oldest, newest = (duration_text(ms) for ms in _ages_ms(group, ended_ns))
    yield from wrap(
        "opened", f"{oldest} ago" if oldest == newest else f"from {oldest} ago to {newest} ago", style.width
    )
    example = group.still[0]
    place = f"fd {example.opening.fd} of pid {example.opening.pid}"
    row = example.connection.row
    if row < 0:
        yield from wrap(
            "example", f"no connection any more: it was reset, and {place} is still open", style.width
        )
    else:
        s = view.sockets
        ends = [
            endpoint_text(int(words[row, 0]), int(words[row, 1]), int(port[row]))
            for words, port in ((s.src, s.sport), (s.dst, s.dport))
        ]
        yield from wrap("example", f"{ends[0]} > {ends[1]}  {place}", style.width)
    pids = [str(pid) for pid in group.pids[:_MOST_PIDS]]
    more = f" and {len(group.pids) - _MOST_PIDS} more" if len(group.pids) > _MOST_PIDS else ""
    names = _holders(group, view)
    since = "" if names == [group.comm] else " (another program since the call)"
    yield from wrap("holder", f"{' or '.join(names)}, pid {', '.join(pids)}{more}{since}", style.width)
    yield from _stack("opened by", group.opened, style)
    if group.half_closed is not None:
        yield from _stack("half-closed by", group.half_closed, style)


def _holders(group: LeakGroup, view: View) -> list[str]:
    """Return what the processes that hold them are called now."""
    processes = view.processes
    return sorted({processes[pid].comm if pid in processes else "?" for pid in group.pids})


def _by_count(entry: tuple[int, int]) -> tuple[int, int]:
    return -entry[1], entry[0]


def _state(state: int) -> str:
    return tcp.state_name(state)


def _ages_ms(group: LeakGroup, ended_ns: int) -> tuple[int, int]:
    """Return for how long the oldest and the newest are open, in ms."""
    times = [member.opening.sample.time_ns for member in group.still]
    return max(ended_ns - times[0], 0) // 1_000_000, max(ended_ns - times[-1], 0) // 1_000_000


def _stack(label: str, stack: CallStack, style: Style) -> Iterator[str]:
    yield f"  {label}"
    yield from frame_lines(stack.frames, stack.matters, style)
    if stack.cut:
        yield from wrap("", _CUT, style.width)
    if not stack.frames or stack.matters >= 0:
        return
    if any(frame.own for frame in stack.frames):
        yield from wrap("", _UNCLEAR, style.width)
    elif not stack.cut:
        yield from wrap("", _NO_OWN_FRAME, style.width)


_CUT: Final = (
    "stack cut: it goes on, and the callers are not known: only its top is copied and the code there keeps no frame "
    "pointers, a signal handler was called, or the code has no unwinding tables"
)
_UNCLEAR: Final = (
    "the caller is not known: the code there has neither unwinding tables nor, for certain, frame pointers, so that a "
    "function may be missing before the first one of the program"
)
_NO_OWN_FRAME: Final = (
    "which frame is of the program's own code is not known: interpreters name functions only if told to (`python -X "
    "perf`, `node --perf-basic-prof`), and a stripped program names none"
)


def leak_document(
    groups: Sequence[LeakGroup], matching: Matching, view: View, gaps: Iterable[Gap], *, for_ns: int,
    window_ns: int, ended_ns: int, unheld: int, calls: Mapping[CallName, int],
) -> dict[str, Any]:  # fmt: skip
    """Return one JSON document.

    Args:
        groups: the largest first.
        matching: of all connections that are there at the end.
        view: of the last look.
        gaps: what was not seen.
        for_ns: how long was waited between the two looks.
        window_ns: within which all that is counted was opened: with the looks.
        ended_ns: the end of that time (CLOCK_MONOTONIC).
        unheld: connections without a socket of a program.
        calls: how many calls were seen, by name.
    """
    members = {
        "for_s": round(for_ns / 1e9, 3),
        "window_s": round(window_ns / 1e9, 3),
        "unwound_by": _unwound_by(groups),
        "calls": {name: calls.get(name, 0) for name in ("accept", "connect", "shutdown")},
        "still": len(matching.still),
        "before": matching.before,
        "unheld": unheld,
        "unmatched": {reason.name.lower(): count for reason, count in matching.unmatched.items()},
        "groups": [_group_json(group, view, ended_ns) for group in groups],
    }
    return document("Leaks", members, gaps)


def _group_json(group: LeakGroup, view: View, ended_ns: int) -> dict[str, Any]:
    oldest, newest = _ages_ms(group, ended_ns)
    example = group.still[0]
    row = example.connection.row
    return {
        "count": len(group.still),
        "states": {_state(state): count for state, count in group.states.items()},
        "call": group.call,
        "comm": group.comm,
        "pids": list(group.pids),
        "holder_comms": _holders(group, view),
        "oldest_s": oldest / 1000,
        "newest_s": newest / 1000,
        "example": {
            "pid": example.opening.pid,
            "fd": example.opening.fd,
            "tid": example.opening.sample.tid,
            "connection": None if row < 0 else next(objects(view, np.array([row]))),
        },
        "opened": _stack_json(group.opened),
        "half_closed": None if group.half_closed is None else _stack_json(group.half_closed),
    }


def _unwound_by(groups: Sequence[LeakGroup]) -> UnwoundBy | None:
    """Return how all stacks were unwound; None where there are none."""
    stacks = [stack for group in groups for stack in (group.opened, group.half_closed) if stack is not None]
    if not stacks:
        return None
    return "tables" if all(stack.unwound_by == "tables" for stack in stacks) else "frame pointers"


def _stack_json(stack: CallStack) -> dict[str, Any]:
    return {
        "matters": stack.matters if stack.matters >= 0 else None,
        "unwound_by": stack.unwound_by,
        "unclear": stack.unclear if stack.unclear >= 0 else None,
        "cut": stack.cut,
        "frames": [
            {"function": frame.function, "where": frame.where or None, "own": frame.own}
            for frame in stack.frames
        ],
    }
