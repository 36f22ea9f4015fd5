"""How a connection got where it is: steps as values, as JSON's types, as cells of the history, and as lines. Pure.

A step is a change of state that the kernel's trace told, or the header of a packet that a packet socket saw. Each names
its source, and a task only where no packet and no timer can have made the change (`finwait.agent.recorder`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Final, Literal

import msgspec
from numpy.typing import NDArray

from finwait.agent import recorder
from finwait.agent.episode_values import Instant
from finwait.agent.protocol import RecorderStatus, ToldStory
from finwait.report.agent_page import StoryStep
from finwait.report.style import wrap
from finwait.table import transitions as tr
from finwait.table.units import duration_text, printable
from finwait.uapi import segment, tcp

__all__ = [
    "STEPS_MOST",
    "RecordedStep",
    "cell_of",
    "explained_story",
    "merged",
    "step_items",
    "steps_of",
    "story_lines",
    "told_steps",
]

STEPS_MOST: Final = 16
"""Steps that are kept with an episode: of more, the first and the last ones."""
_TRACEPOINT: Final = "sock:inet_sock_set_state"
_RESET_BY: Final[Mapping[int, Literal["received", "sent"]]] = {
    tr.RECEIVE_RESET: "received",
    tr.SEND_RESET: "sent",
}
_RESET_FROM: Final = {"received": "tcp:tcp_receive_reset", "sent": "tcp:tcp_send_reset"}
_WALL_MOST_MS: Final = 253_402_300_800_000
"""The year 10000: a wall clock can be set to anything."""
_EPOCH: Final = datetime.fromtimestamp(0, UTC)
_BY_PROGRAM: Final = frozenset({"TCP_ABORT_ON_CLOSE", "TCP_ABORT_ON_LINGER", "TCP_DISCONNECT_WITH_DATA"})
"""Reasons of resets that a program makes by close() or connect() (enum sk_rst_reason)."""
_FLAGS: Final = ((segment.SYN, "SYN"), (segment.FIN, "FIN"), (segment.RST, "RST"), (segment.ACK, "ACK"))


_Natural = Annotated[int, msgspec.Meta(ge=0)]
_State = Annotated[int, msgspec.Meta(ge=0, le=12)]


class RecordedStep(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One step of a story."""

    boot_ns: Annotated[int, msgspec.Meta(ge=-(1 << 63), le=(1 << 63) - 1)]
    """CLOCK_BOOTTIME."""
    old: _State = 0
    new: _State = 0
    """States; both 0 of a packet."""
    pid: _Natural = 0
    """The process, or where `comm` is empty the task, that made the change; 0 where a packet or a timer may have."""
    comm: str = ""
    reset: Literal["", "received", "sent"] = ""
    """Whether a reset made it."""
    reason: str = ""
    """The kernel's word for why it sent that reset; empty where it has none."""
    late_ms: _Natural = 0
    """It may have been later by this, for the machine slept meanwhile."""
    flags: _Natural = 0
    """Of a packet's TCP header."""
    outgoing: bool = False

    @property
    def packet(self) -> bool:
        """Whether it is a packet."""
        return not self.new


def steps_of(
    rows: NDArray[Any], names: Mapping[int, tuple[int, str]], reasons: Mapping[int, str]
) -> tuple[RecordedStep, ...]:
    """Return rows of the ring as steps.

    Args:
        rows: of `finwait.agent.recorder.ROW`.
        names: number in ``who`` → pid and name of a process.
        reasons: number → word for why a reset was sent.
    """
    steps = []
    for row, by in zip(rows, recorder.by_task(rows).tolist(), strict=True):
        at = int(row["time"]) + int(row["asleep"])
        if row["kind"] == recorder.PACKET:
            steps.append(
                RecordedStep(
                    at, late_ms=int(row["late_ms"]), flags=int(row["old"]), outgoing=bool(row["by_task"])
                )
            )
            continue
        pid, comm = names.get(int(row["who"]), (0, "")) if row["who"] else (0, "")
        reset: Literal["", "received", "sent"] = _RESET_BY.get(int(row["reset"]), "")
        reason = reasons.get(int(row["reason"]), "") if reset == "sent" else ""
        # A task that works off what came meanwhile may send one as well, and then a packet is to blame.
        task_made = by and (not reset or reason in _BY_PROGRAM)
        steps.append(
            RecordedStep(
                boot_ns=at,
                old=int(row["old"]),
                new=int(row["new"]),
                reset=reset,
                reason=reason,
                pid=(pid or int(row["pid"])) if task_made else 0,
                comm=comm[:64] if task_made else "",
                late_ms=int(row["late_ms"]),
            )
        )
    return merged((), steps)


def merged(before: Sequence[RecordedStep], after: Sequence[RecordedStep]) -> tuple[RecordedStep, ...]:
    """Return the steps of both in the order of time, each once, and of too many the first and the last ones."""
    known = {(s.boot_ns, s.old, s.new, s.flags): s for s in (*before, *after)}
    steps = [known[key] for key in sorted(known)]
    half = STEPS_MOST // 2
    return tuple(steps if len(steps) <= STEPS_MOST else [*steps[:half], *steps[-half:]])


# ── in the history ───────────────────────────────────────────────────────────────────────────────────────


def cell_of(steps: Sequence[RecordedStep]) -> str:
    """Return steps as a cell of the history: about 30 bytes each, 50 with a name."""
    rows = []
    for s in steps:
        row = list(msgspec.to_builtins(s))
        while row[-1] in (0, "", False):
            row.pop()
        rows.append(row)
    return msgspec.json.encode(rows).decode()


_STEPS: Final = msgspec.json.Decoder(tuple[RecordedStep, ...])


def told_steps(cell: str) -> tuple[RecordedStep, ...]:
    """Return the steps of a cell of the history.

    Raises:
        ValueError: it is none.
    """
    try:
        return _STEPS.decode(cell)
    except (msgspec.DecodeError, RecursionError) as error:
        raise ValueError(str(error)) from None


# ── for people ───────────────────────────────────────────────────────────────────────────────────────────


def step_items(steps: Sequence[RecordedStep], anchor: Instant, now_boot_ns: int | None) -> list[StoryStep]:
    """Return steps as parts of a document.

    Args:
        steps: in the order of time.
        anchor: a moment of their boot on both clocks, to show them by the wall clock.
        now_boot_ns: CLOCK_BOOTTIME; None where they are of another boot.
    """
    items = []
    for s in steps:
        ago = None if now_boot_ns is None else max(0, now_boot_ns - s.boot_ns) / 1e9
        wall_ms = (anchor.wall_ns + s.boot_ns - anchor.boot_ns) // 1_000_000
        at = datetime.fromtimestamp(wall_ms / 1000, UTC) if 0 <= wall_ms < _WALL_MOST_MS else _EPOCH
        items.append(
            StoryStep(
                at=at.strftime("%Y-%m-%dT%H:%M:%S.") + f"{wall_ms % 1000:03}Z",
                ago_s=None if ago is None else max(0.0, ago - s.late_ms / 1000),
                late_s=s.late_ms / 1000,
                old=tcp.state_name(s.old) if s.new else None,
                new=tcp.state_name(s.new) if s.new else None,
                reset=s.reset or None,
                reason=s.reason or None,
                pid=s.pid or None,
                comm=s.comm or None,
                packet=_packet(s) if s.packet else None,
                outgoing=s.outgoing if s.packet else None,
                meaning=_meaning(s),
                source=_source(s),
            )
        )
    return items


def _packet(s: RecordedStep) -> str:
    return " ".join(name for flag, name in _FLAGS if s.flags & flag)


def _source(s: RecordedStep) -> str:
    if s.packet:
        return "packet socket"
    return f"{_TRACEPOINT}, {_RESET_FROM[s.reset]}" if s.reset in _RESET_FROM else _TRACEPOINT


_MEANING: Final[Mapping[tuple[int, int], str]] = {
    (tcp.ESTABLISHED, tcp.FIN_WAIT1): "this end sent its FIN",
    (tcp.SYN_RECV, tcp.FIN_WAIT1): "this end sent its FIN",
    (tcp.FIN_WAIT1, tcp.FIN_WAIT1): "the program closed it",
    (tcp.FIN_WAIT1, tcp.FIN_WAIT2): "the peer acknowledged the FIN",
    (tcp.FIN_WAIT1, tcp.CLOSING): "the peer's FIN crossed ours",
    (tcp.FIN_WAIT2, tcp.FIN_WAIT2): "the program closed it, after it had shut down sending",
    (tcp.FIN_WAIT2, tcp.CLOSE): "the peer's FIN came, or the kernel kept only a minisocket",
    (tcp.CLOSING, tcp.CLOSE): "the peer acknowledged the FIN, or the kernel gave up",
    (tcp.ESTABLISHED, tcp.CLOSE_WAIT): "the peer sent its FIN",
    (tcp.SYN_RECV, tcp.CLOSE_WAIT): "the peer sent its FIN",
    (tcp.CLOSE_WAIT, tcp.LAST_ACK): "this end sent its FIN",
    (tcp.LAST_ACK, tcp.CLOSE): "the peer acknowledged the FIN, or the kernel gave up",
}


def _meaning(s: RecordedStep) -> str:
    """Return what a step means, as far as it proves anything."""
    if s.packet:
        return "sent" if s.outgoing else "received"
    if s.reset == "received":
        return "the peer reset it"
    if s.reset == "sent":
        return "this end reset it" + (f" ({s.reason})" if s.reason else "")
    meaning = _MEANING.get((s.old, s.new), "")
    if not meaning and s.new == tcp.CLOSE:
        return "no reset was seen: the kernel gave up, or the program disconnected it"
    return meaning


def story_lines(items: Sequence[StoryStep], width: int = 100) -> Iterator[str]:
    """Return a story for people, a line for each step; what others named is made printable."""
    before, indent = "", 18
    for item in items:
        when = _when(item)
        if item.packet is not None:
            text = f"{item.packet} {item.meaning}"
        else:
            moved = item.old if item.old == item.new else f"{item.old} → {item.new}"
            text = f"{moved}: {item.meaning}" if item.meaning else str(moved)
            if item.pid is not None:
                text += f", by {printable(item.comm)}({item.pid})" if item.comm else f", by task {item.pid}"
        yield from (
            line + "\n"
            for line in wrap("" if when == before else when, text, width, max(indent, len(when) + 4))
        )
        before = when


def _when(item: StoryStep) -> str:
    if item.ago_s is None:
        return item.at + (f" or {item.late_s:.0f} s later" if item.late_s else "")
    least, most = duration_text(int(1000 * item.ago_s)), duration_text(int(1000 * (item.ago_s + item.late_s)))
    return f"{most} ago" if least == most else f"{least} to {most} ago"


def explained_story(story: ToldStory, recorder_status: RecorderStatus | None, width: int) -> Iterator[str]:
    """Return how a connection got into its state, or why that is not known.

    Args:
        story: what an agent told.
        recorder_status: how its flight recorder is; None where it has none.
        width: of a line.
    """
    if story.steps:
        yield "\nHow it got there (recorded by the agent):\n"
        yield from story_lines(story.steps, width)
        sources = ", ".join(dict.fromkeys(word for step in story.steps for word in step.source.split(", ")))
        text = (
            f"{sources}. Found by addresses, ports, state and time, for these tracepoints name no namespace."
        )
        yield from (line + "\n" for line in wrap("source", text, width))
        return
    if story.ambiguous:
        reason = "more than one socket fits: the tracepoints name no namespace"
    elif recorder_status is None or recorder_status.state == "off":
        reason = "the agent does not record changes of state"
    elif recorder_status.state == "failed":
        reason = f"the agent cannot record changes of state: {printable(recorder_status.said)}"
    elif recorder_status.state != "on":
        reason = "the agent has stopped recording for now: there are too many events"
    else:
        reason = (
            "the agent has kept nothing of it: it happened before the recorder ran, or was dropped, or the agent has "
            "not looked since"
        )
    yield "\n" + "\n".join(wrap("how it came", f"unknown: {reason}", width)) + "\n"
