"""The stacks of the program that holds a connection, with the frame that matters marked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from finwait.report.cells import cut
from finwait.report.style import wrap
from finwait.uapi.stacks import StackFrame, Stacks

if TYPE_CHECKING:
    from finwait.attribution.waiting import WaitedOn
    from finwait.report.style import Style

__all__ = ["frame_lines", "roles", "stack_lines"]

_MOST_THREADS: Final = 6
_MOST_FRAMES: Final = 12


def roles(wait: WaitedOn) -> dict[int, str]:
    """Return what threads have to do with a connection, by tid, for people; threads that have nothing are not there."""
    result = {loop.thread.tid: _ROLES[loop.asleep] for loop in wait.loops if loop.thread is not None}
    return result | {thread.tid: "waits for this connection" for thread in wait.threads}


_ROLES: Final = {
    True: "sleeps in the event loop that watches this connection",
    False: "elsewhere: it does not sleep in the event loop that watches this connection",
    None: "of the event loop that watches this connection; whether it sleeps in it is not known",
}
"""By `EventLoop.asleep`."""


def stack_lines(stacks: Stacks, comm: str, concerned: Mapping[int, str], style: Style) -> Iterator[str]:
    """Return the stacks of a process as lines for a person.

    Args:
        stacks: of the process.
        comm: its name.
        concerned: the threads that have to do with the connection, and what (`roles`); they are shown first.
        style: width and colour.
    """
    stopped = "" if stacks.why else ", which stopped it for a moment"
    yield from wrap("stacks", f"of {comm} (pid {stacks.pid}), by `{stacks.tool}`{stopped}", style.width)
    if stacks.why:
        hint = f"; {stacks.install}" if stacks.install else ""
        yield from wrap("", f"not read: {stacks.why}{hint}", style.width)
        return
    if stacks.blind:
        yield from wrap("", stacks.blind, style.width)
    first = [thread for thread in stacks.threads if thread.tid in concerned]
    shown = first or stacks.threads[:_MOST_THREADS]
    for thread in shown[:_MOST_THREADS]:
        role = f", {concerned[thread.tid]}" if thread.tid in concerned else ""
        number = f"thread {thread.tid}" if thread.tid else "a thread"
        yield from wrap("", f"{number} ({thread.name or 'no name'}){role}:", style.width)
        yield from frame_lines(thread.frames, thread.matters, style)
    if more := len(stacks.threads) - len(shown[:_MOST_THREADS]):
        yield from wrap("", f"… and {more} more thread{'' if more == 1 else 's'}", style.width)


def frame_lines(frames: Sequence[StackFrame], matters: int, style: Style) -> Iterator[str]:
    """Return frames, innermost first, as far as there is something to learn from them.

    Args:
        frames: of one stack.
        matters: the place of the one that matters; −1 where none does.
        style: width and colour.
    """
    last = min(len(frames), max(_MOST_FRAMES, matters + 3))
    for place, frame in enumerate(frames[:last]):
        mark = "→" if place == matters else " "
        text = f"{mark} {frame.function}" + (f"  {frame.where}" if frame.where else "")
        line = f"{'':16}{text}"
        fitting = cut(line, style.width)
        yield style.paint(fitting, "bold") if mark == "→" else fitting
    if len(frames) > last:
        yield f"{'':18}… {len(frames) - last} more"
    if not frames:
        yield f"{'':18}no frame"
