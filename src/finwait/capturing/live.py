"""A running capture: packets and states of the chosen connections until they end, or somebody ends it.

The kernel is asked for each connection when the capture has begun, four times a second, and once more at the
end. What it says goes into the drawing as it is: it is the only witness of what a packet did behind the place of
capture.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Final

from msgspec import Struct, field
from msgspec.structs import replace

from finwait.capturing.chosen import CaptureTarget, note, place_of
from finwait.capturing.file import Writer
from finwait.diagnosis.closing import CLOSED
from finwait.diagnosis.closings import Closings
from finwait.errors import Gap, KernelError
from finwait.kernel import netns
from finwait.kernel.capture import RETIRE_S, Capture, Packet, space_of
from finwait.kernel.lookup import Question, ask
from finwait.uapi import pcap, tcp
from finwait.uapi.segment import LINKTYPE_LINUX_SLL2, Segment, parse_segment
from finwait.uapi.socket_filter import Address, Tuple

__all__ = ["Recorder", "follow"]

_LOOK_S: Final = 0.25
_GRACE_S: Final = 0.5  # the last ACK may still be on its way to us
_LAST_LOOKS: Final = 3  # a connection on which there is always something is left as its packets show it


class _State(Struct, frozen=True):
    """What the kernel says of a connection's state."""

    name: str
    """As in `tcp.STATES`; `CLOSED` once it is gone."""
    minisocket: bool = False
    """Whether a minisocket has it that is in another state than TIME_WAIT."""

    def __str__(self) -> str:
        if self.name == CLOSED:
            return "gone"
        return f"{self.name} as a minisocket" if self.minisocket else self.name


_GONE: Final = _State(CLOSED)


class Recorder(Struct):
    """What a capture saw."""

    book: Closings = field(default_factory=Closings)
    chosen: tuple[CaptureTarget, ...] = ()
    """With the names of their interfaces, once the capture runs."""
    packets: int = 0
    dropped: int = 0
    changes: list[tuple[int, CaptureTarget, str]] = field(default_factory=list)
    """(Unix ns, connection, what became of it)."""
    over: bool = False
    """Whether every connection had ended."""
    until_ns: int = 0
    """When it ended; 0 while it runs."""

    def gaps(self) -> list[Gap]:
        """Return what could not be captured."""
        if not self.dropped:
            return []
        places = ", ".join(sorted({target.place for target in self.chosen})) or "the capture"
        return [
            Gap(places, f"keep {self.dropped} packets, which came while no block of the ring was free", "")
        ]


def follow(
    chosen: Sequence[CaptureTarget],
    recorder: Recorder,
    *,
    writer: Writer | None,
    deadline: float | None,
    until_closed: bool,
    say: Callable[[str], None],
    snaplen: int = 65535,
    spaces: Mapping[int, netns.NetNamespace] | None = None,
    learn: Callable[[], dict[CaptureTarget, str]] | None = None,
) -> Iterator[None]:
    """Capture until the deadline, the end of every connection, or the caller's; yields after every round.

    However it ends, closing the generator included, what was captured until then is taken in.

    Args:
        chosen: the connections.
        recorder: filled in as the capture goes on.
        writer: where packets go; None to draw only.
        deadline: `time.monotonic` to stop at.
        until_closed: stop a moment after the last connection has left sock_diag (or is a minisocket).
        say: told one line of each change of state.
        snaplen: bytes to keep of each packet.
        spaces: namespaces by inode, where they are known.
        learn: called once the capture runs; what it returns about connections becomes comments too.

    Raises:
        KernelError: the capture could not begin.
        ValueError: too many connections for one socket filter.
    """
    with ExitStack() as stack:
        run = _Run(recorder, writer, say, dict(spaces or {}))
        run.begin(chosen, snaplen, stack)
        try:
            if learn is not None:  # packets gather in the ring meanwhile
                for target, text in learn().items():
                    run.tell(target, f"{target}: {text}")
            grace: float | None = None
            while True:
                run.round()
                now = time.monotonic()
                if until_closed and recorder.over and grace is None:
                    grace = now + _GRACE_S
                if (deadline is not None and now >= deadline) or (grace is not None and now >= grace):
                    break
                yield
        finally:
            run.finish()
        yield


class _Run:
    """The captures of one run, and what is known of the connections."""

    def __init__(
        self,
        recorder: Recorder,
        writer: Writer | None,
        say: Callable[[str], None],
        spaces: dict[int, netns.NetNamespace],
    ) -> None:
        self.recorder = recorder
        self.writer = writer
        self.said = say
        self.spaces = spaces
        self.captures: list[Capture] = []
        self.states: dict[CaptureTarget, _State] = {}
        self.pending: dict[int, list[str]] = {}
        self.scopes: dict[tuple[int, frozenset[tuple[Address, int]]], list[CaptureTarget]] = {}
        self.next_look = 0.0
        self.last_ns = 0

    def begin(self, chosen: Sequence[CaptureTarget], snaplen: int, stack: ExitStack) -> None:
        """Open the captures, name the interfaces, and ask for the states that all packets follow."""
        named = []
        for inode in sorted({target.netns for target in chosen}):
            space = self.spaces.get(inode) or space_of(inode)
            self.spaces[inode] = space
            targets = [target for target in chosen if target.netns == inode]
            tuples = [(form, target.ifindex) for target in targets for form in target.forms or (target.ends,)]
            capture = stack.enter_context(Capture(space, tuples, snaplen=snaplen))
            self.captures.append(capture)
            named += [
                replace(target, device=capture.interfaces.get(target.ifindex, "")) for target in targets
            ]
        for target in named:
            self.states[target] = _State(tcp.state_name(target.state))
            for form in target.forms or (target.ends,):
                self.scopes.setdefault((target.netns, _sides(form)), []).append(target)
        self.recorder.chosen = tuple(named)
        self.look()
        self.pending.clear()
        for target, state in self.states.items():
            self.pending.setdefault(target.netns, []).append(note(target, str(state)))

    def tell(self, target: CaptureTarget, text: str) -> None:
        """Say something, and note it with the next packet."""
        self.pending.setdefault(target.netns, []).append(text)
        self.said(text)

    def round(self) -> None:
        """Take the packets that are there, and ask for the states when it is time."""
        for capture in self.captures:
            if capture.wait(0.05 / len(self.captures)):
                self.take(capture)
        if time.monotonic() < self.next_look:
            return
        self.look()
        self.next_look = time.monotonic() + _LOOK_S
        if self.writer is not None:
            self.writer.flush()
        self.recorder.dropped = sum(capture.dropped() for capture in self.captures)
        self.recorder.over = all(state.name in (CLOSED, "TIME_WAIT") for state in self.states.values())

    def take(self, capture: Capture) -> None:
        """Write down and take in the packets that are there."""
        recorder = self.recorder
        for packet in capture.drain():
            recorder.packets += 1
            if self.writer is not None:
                comment = "\n".join(self.pending.pop(capture.netns, []))
                self.writer.packet(place_of(capture.netns), capture.interfaces, packet, comment)
            segment = self.segment(capture, packet)
            self.last_ns = max(self.last_ns, packet.time_ns)
            if segment is not None:
                recorder.book.feed(segment, self.scope(capture, segment, packet.ifindex))

    def segment(self, capture: Capture, packet: Packet) -> Segment | None:
        """Return the segment of a packet."""
        name = capture.interfaces.get(packet.ifindex, f"if{packet.ifindex}")
        frame = pcap.Frame(
            packet.time_ns, LINKTYPE_LINUX_SLL2, packet.data, packet.length, name, place_of(capture.netns)
        )
        segment = parse_segment(frame)
        return segment if isinstance(segment, Segment) else None

    def scope(self, capture: Capture, segment: Segment, ifindex: int) -> str:
        """Return the interface that the numbers of a segment belong to."""
        sides = frozenset(((segment.src, segment.sport), (segment.dst, segment.dport)))
        for target in self.scopes.get((capture.netns, sides), ()):
            if target.ifindex and ifindex in capture.reached(target.ifindex):
                return target.scope
        return ""

    def look(self) -> None:
        """Ask for the state of each connection; a change becomes a comment and a line."""
        for inode in list(self.spaces):
            targets = [target for target in self.states if target.netns == inode]
            states = self.ask(inode, targets)
            now = time.time_ns()
            for target in targets if states is not None else ():
                assert states is not None
                state, more = states.get(target, (_GONE, ""))
                self.seen(target, state, more, now)

    def ask(self, inode: int, targets: list[CaptureTarget]) -> dict[CaptureTarget, tuple[_State, str]] | None:
        """Return state and what to say of it for the connections that are there; None if nobody could be asked."""
        try:
            sockets, gaps = ask([_question(target) for target in targets], [self.spaces[inode]])
        except KernelError:
            return None
        if gaps:  # what led there is gone; something else may
            again = next((space for space in netns.discover()[0] if space.inode == inode), None)
            if again is not None:
                self.spaces[inode] = again
                return None
            for target in targets:
                if self.states[target] != _GONE:
                    self.change(target, _GONE, " with its namespace", time.time_ns())
            return None
        states: dict[CaptureTarget, tuple[_State, str]] = {}
        by_ends = {(target.ends, target.ifindex): target for target in targets}
        for a, p, b, q, ifindex, state, timer, remaining_ms, cookie in zip(
            sockets["src"].tolist(), sockets["sport"].tolist(), sockets["dst"].tolist(),
            sockets["dport"].tolist(), sockets["ifindex"].tolist(), sockets["state"].tolist(),
            sockets["timer"].tolist(), sockets["expires_ms"].tolist(), sockets["cookie"].tolist(), strict=True,
        ):  # fmt: skip
            row = by_ends.get((((a[0], a[1]), int(p), (b[0], b[1]), int(q)), int(ifindex)))
            # A minisocket has a cookie of its own; a full socket with another is another connection.
            if row is None or (int(timer) != 3 and row.cookie and int(cookie) != row.cookie):
                continue
            name = tcp.state_name(int(state))
            until = f", which ends by itself in {int(remaining_ms) / 1000:.0f} s" if int(timer) == 3 else ""
            states[row] = (_State(name, minisocket=int(timer) == 3 and name != "TIME_WAIT"), until)
        return states

    def seen(self, target: CaptureTarget, state: _State, more: str, now: int) -> None:
        """Take in what the kernel says of a connection."""
        self.recorder.book.state(
            target.forms or (target.ends,), state.name, now, place=target.place, scope=target.scope
        )
        if state != self.states[target]:
            self.change(target, state, more, now)

    def change(self, target: CaptureTarget, state: _State, more: str, now: int) -> None:
        """Note that a connection has another state."""
        before = self.states[target]
        self.states[target] = state
        text = f"{target} was {before} and is {state}{more}"
        self.recorder.changes.append((now, target, text))
        self.pending.setdefault(target.netns, []).append(note(target, str(state), before=str(before)))
        self.said(text)

    def finish(self) -> None:
        """Take in what was captured, with the states after the last packet, and close the account."""
        recorder = self.recorder
        for _ in range(_LAST_LOOKS):
            recorder.until_ns = time.time_ns()
            self.look()
            self.rest()
            if self.last_ns < recorder.until_ns:
                break
        recorder.until_ns = max(recorder.until_ns, self.last_ns)
        recorder.dropped = sum(capture.dropped() for capture in self.captures)
        if self.writer is None:
            return
        for capture in self.captures:
            place = place_of(capture.netns)
            self.writer.statistics(place, recorder.until_ns, recorder.packets, capture.dropped())
        self.writer.comment(
            "\n".join(
                [text for texts in self.pending.values() for text in texts]
                + [note(target, str(state)) for target, state in self.states.items()]
            )
        )

    def rest(self) -> None:
        """Take the packets that came until now; a block that is not full is handed over a moment later."""
        end = time.monotonic() + 3 * RETIRE_S
        while (remaining := end - time.monotonic()) > 0:
            for capture in self.captures:
                if capture.wait(remaining / len(self.captures)):
                    self.take(capture)


def _sides(ends: Tuple) -> frozenset[tuple[Address, int]]:
    return frozenset(((ends[0], ends[1]), (ends[2], ends[3])))


def _question(target: CaptureTarget) -> Question:
    a, p, b, q = target.ends
    return Question(a, b, p, q, target.ifindex)
