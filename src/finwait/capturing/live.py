"""A running capture: packets and states of the chosen connections until they end, or somebody ends it.

The kernel is asked for each connection when the capture has begun, four times a second, and once more at the
end. What it says goes into the drawing as it is: it is the only witness of what a packet did behind the place of
capture.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Final

from finwait.capturing.chosen import Chosen, note, place_of
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
_GONE: Final = "gone"


@dataclass(slots=True)
class Recorder:
    """What a capture saw."""

    book: Closings = field(default_factory=Closings)
    chosen: tuple[Chosen, ...] = ()
    """With the names of their interfaces, once the capture runs."""
    packets: int = 0
    dropped: int = 0
    changes: list[tuple[int, Chosen, str]] = field(default_factory=list)
    """(Unix ns, connection, what became of it)."""
    over: bool = False
    """Whether every connection had ended."""
    until_ns: int = 0
    """When it ended; 0 while it runs."""

    def gaps(self) -> list[Gap]:
        """Return what could not be captured."""
        if not self.dropped:
            return []
        places = ", ".join(sorted({one.place for one in self.chosen})) or "the capture"
        return [
            Gap(places, f"keep {self.dropped} packets, which came while no block of the ring was free", "")
        ]


def follow(
    chosen: Sequence[Chosen],
    recorder: Recorder,
    *,
    writer: Writer | None,
    deadline: float | None,
    until_closed: bool,
    said: Callable[[str], None],
    snaplen: int = 65535,
    spaces: Mapping[int, netns.NetNamespace] | None = None,
    learn: Callable[[], dict[Chosen, str]] | None = None,
) -> Iterator[None]:
    """Capture until the deadline, the end of every connection, or the caller's; yields after every round.

    However it ends, closing the generator included, what was captured until then is taken in.

    Args:
        chosen: the connections.
        recorder: filled in as the capture goes on.
        writer: where packets go; None to draw only.
        deadline: `time.monotonic` to stop at.
        until_closed: stop a moment after the last connection has left sock_diag (or is a minisocket).
        said: told one line of each change of state.
        snaplen: bytes to keep of each packet.
        spaces: namespaces by inode, where they are known.
        learn: called once the capture runs; what it returns about connections becomes comments too.

    Raises:
        KernelError: the capture could not begin.
        ValueError: too many connections for one socket filter.
    """
    with ExitStack() as stack:
        run = _Run(recorder, writer, said, dict(spaces or {}))
        run.begin(chosen, snaplen, stack)
        try:
            if learn is not None:  # packets gather in the ring meanwhile
                for one, text in learn().items():
                    run.tell(one, f"{one}: {text}")
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
        said: Callable[[str], None],
        spaces: dict[int, netns.NetNamespace],
    ) -> None:
        self.recorder = recorder
        self.writer = writer
        self.said = said
        self.spaces = spaces
        self.captures: list[Capture] = []
        self.states: dict[Chosen, str] = {}
        self.pending: dict[int, list[str]] = {}
        self.scopes: dict[tuple[int, frozenset[tuple[Address, int]]], list[Chosen]] = {}
        self.next_look = 0.0
        self.last_ns = 0

    def begin(self, chosen: Sequence[Chosen], snaplen: int, stack: ExitStack) -> None:
        """Open the captures, name the interfaces, and ask for the states that all packets follow."""
        named = []
        for inode in sorted({one.netns for one in chosen}):
            space = self.spaces.get(inode) or space_of(inode)
            self.spaces[inode] = space
            mine = [one for one in chosen if one.netns == inode]
            tuples = [(form, one.ifindex) for one in mine for form in one.forms or (one.ends,)]
            capture = stack.enter_context(Capture(space, tuples, snaplen=snaplen))
            self.captures.append(capture)
            named += [replace(one, device=capture.interfaces.get(one.ifindex, "")) for one in mine]
        for one in named:
            self.states[one] = tcp.state_name(one.state)
            for form in one.forms or (one.ends,):
                self.scopes.setdefault((one.netns, _sides(form)), []).append(one)
        self.recorder.chosen = tuple(named)
        self.look()
        self.pending.clear()
        for one, state in self.states.items():
            self.pending.setdefault(one.netns, []).append(note(one, state))

    def tell(self, one: Chosen, text: str) -> None:
        """Say something, and note it with the next packet."""
        self.pending.setdefault(one.netns, []).append(text)
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
        self.recorder.over = all(state in (_GONE, "TIME_WAIT") for state in self.states.values())

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
        found = parse_segment(frame)
        return found if isinstance(found, Segment) else None

    def scope(self, capture: Capture, segment: Segment, ifindex: int) -> str:
        """Return the interface that the numbers of a segment belong to."""
        sides = frozenset(((segment.src, segment.sport), (segment.dst, segment.dport)))
        for one in self.scopes.get((capture.netns, sides), ()):
            if one.ifindex and ifindex in capture.reached(one.ifindex):
                return one.scope
        return ""

    def look(self) -> None:
        """Ask for the state of each connection; a change becomes a comment and a line."""
        for inode in list(self.spaces):
            mine = [one for one in self.states if one.netns == inode]
            found = self.ask(inode, mine)
            now = time.time_ns()
            for one in mine if found is not None else ():
                assert found is not None
                self.seen(one, found.get(one, (_GONE, "")), now)

    def ask(self, inode: int, mine: list[Chosen]) -> dict[Chosen, tuple[str, str]] | None:
        """Return state and what to say of it for the connections that are there; None if nobody could be asked."""
        try:
            sockets, gaps = ask([_question(one) for one in mine], [self.spaces[inode]])
        except KernelError:
            return None
        if gaps:  # what led there is gone; something else may
            again = next((space for space in netns.discover()[0] if space.inode == inode), None)
            if again is not None:
                self.spaces[inode] = again
                return None
            for one in mine:
                if self.states[one] != _GONE:
                    self.change(one, _GONE, " with its namespace", time.time_ns())
            return None
        found: dict[Chosen, tuple[str, str]] = {}
        by_ends = {(one.ends, one.ifindex): one for one in mine}
        for a, p, b, q, ifindex, state, timer, left, cookie in zip(
            sockets["src"].tolist(), sockets["sport"].tolist(), sockets["dst"].tolist(),
            sockets["dport"].tolist(), sockets["ifindex"].tolist(), sockets["state"].tolist(),
            sockets["timer"].tolist(), sockets["expires_ms"].tolist(), sockets["cookie"].tolist(), strict=True,
        ):  # fmt: skip
            row = by_ends.get((((a[0], a[1]), int(p), (b[0], b[1]), int(q)), int(ifindex)))
            # A minisocket has a cookie of its own; a full socket with another is another connection.
            if row is None or (int(timer) != 3 and row.cookie and int(cookie) != row.cookie):
                continue
            name = tcp.state_name(int(state))
            until = f", which ends by itself in {int(left) / 1000:.0f} s" if int(timer) == 3 else ""
            mini = " as a minisocket" if int(timer) == 3 and name != "TIME_WAIT" else ""
            found[row] = (name + mini, until)
        return found

    def seen(self, one: Chosen, what: tuple[str, str], now: int) -> None:
        """Take in what the kernel says of a connection."""
        state, more = what
        kernel = CLOSED if state == _GONE else state.removesuffix(" as a minisocket")
        self.recorder.book.state(one.forms or (one.ends,), kernel, now, place=one.place, scope=one.scope)
        if state != self.states[one]:
            self.change(one, state, more, now)

    def change(self, one: Chosen, state: str, more: str, now: int) -> None:
        """Note that a connection has another state."""
        before = self.states[one]
        self.states[one] = state
        text = f"{one} was {before} and is {state}{more}"
        self.recorder.changes.append((now, one, text))
        self.pending.setdefault(one.netns, []).append(note(one, state, before=before))
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
                + [note(one, state) for one, state in self.states.items()]
            )
        )

    def rest(self) -> None:
        """Take the packets that came until now; a block that is not full is handed over a moment later."""
        end = time.monotonic() + 3 * RETIRE_S
        while (left := end - time.monotonic()) > 0:
            for capture in self.captures:
                if capture.wait(left / len(self.captures)):
                    self.take(capture)


def _sides(one: Tuple) -> frozenset[tuple[Address, int]]:
    return frozenset(((one[0], one[1]), (one[2], one[3])))


def _question(one: Chosen) -> Question:
    a, p, b, q = one.ends
    return Question(a, b, p, q, one.ifindex)
