"""A small TCP on both sides of a place of capture: whatever happens, what the packets are said to mean is so.

Two ends open, send, close, reset and send again; packets are lost before the place of capture (nobody sees them) or
behind it. The capture is then told as if it had begun at any packet, and from one direction alone. The states that
are said to be possible always have the real one among them.

What no capture can see is left out: an ACK or a RST that is lost behind it, and whatever is lost before it and never
sent again.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finwait.diagnosis.closing import Closing, Ending
from finwait.diagnosis.closings import Closings
from finwait.report.closing import diagram, verdict
from finwait.uapi import pcap
from finwait.uapi.segment import ACK, FIN, RST, SYN, Segment

MASK = 0xFFFFFFFF
A, B = ((0, 0xFFFF << 32 | 1), 40000), ((0, 0xFFFF << 32 | 2), 80)


@dataclass
class End:
    """One TCP; numbers begin shortly before they wrap."""

    nxt: int
    una: int = 0
    rcv: int = 0
    sent: list[tuple[int, int, int]] = field(default_factory=list)
    """What is not acknowledged: number, length, flags."""
    fin_sent: bool = False
    fin_received: bool = False
    first: bool = False
    dead: bool = False

    @property
    def fin_acked(self) -> bool:
        return self.fin_sent and not self.sent

    @property
    def state(self) -> str:
        if self.dead:
            return "CLOSED"
        if not self.fin_sent:
            return "CLOSE_WAIT" if self.fin_received else "ESTABLISHED"
        if not self.fin_received:
            return "FIN_WAIT2" if self.fin_acked else "FIN_WAIT1"
        if self.first:
            return "TIME_WAIT" if self.fin_acked else "CLOSING"
        return "CLOSED" if self.fin_acked else "LAST_ACK"


class World:
    def __init__(self) -> None:
        self.ends = (End(MASK - 40), End(MASK - 400))
        self.seen: list[Segment] = []
        self.now = 1_700_000_000_000_000_000
        for k, flags in ((0, SYN), (1, SYN | ACK), (0, ACK)):
            me, peer = self.ends[k], self.ends[1 - k]
            length = flags & SYN and 1
            self.capture(k, me.nxt, peer.nxt if flags & ACK else 0, flags, 0)
            me.nxt = (me.nxt + (length or 0)) & MASK
        for k in (0, 1):
            self.ends[k].rcv = self.ends[1 - k].nxt

    def capture(self, k: int, seq: int, ack: int, flags: int, payload: int) -> None:
        self.now += 300_000_000
        (src, sport), (dst, dport) = (A, B) if k == 0 else (B, A)
        self.seen.append(Segment(self.now, src, dst, sport, dport, seq, ack, flags, 500, payload))

    def send(self, k: int, seq: int, flags: int, payload: int, lost: str = "") -> None:
        """Send one segment; ``lost`` is before or behind the place of capture."""
        me, peer = self.ends[k], self.ends[1 - k]
        if lost == "before":
            return
        # What would be lost with it behind the place of capture cannot be seen by anybody.
        tells = flags & RST or any((me.rcv - seq_ - length) & MASK < 1 << 31 for seq_, length, _ in peer.sent)
        self.capture(k, seq, me.rcv, flags, payload)
        if lost == "behind" and not tells:
            return
        self.receive(1 - k, seq, me.rcv, flags, payload)

    def receive(self, k: int, seq: int, ack: int, flags: int, payload: int) -> None:
        me = self.ends[k]
        if flags & RST:
            me.dead = me.dead or seq == me.rcv
            return
        if me.state == "CLOSED":
            self.now += 300_000_000
            (src, sport), (dst, dport) = (A, B) if k == 0 else (B, A)
            self.seen.append(Segment(self.now, src, dst, sport, dport, ack, 0, RST, 0, 0))
            self.receive(1 - k, ack, 0, RST, 0)
            return
        me.sent = [one for one in me.sent if not (ack - one[0] - one[1]) & MASK < 1 << 31]
        length = payload + bool(flags & FIN)
        if not length:
            return
        if seq == me.rcv:
            me.rcv = (seq + length) & MASK
            if flags & FIN:
                me.fin_received = True
        if me.state != "CLOSED":
            self.send(k, me.nxt, ACK, 0)

    # -- what may happen ------------------------------------------------------------------------------

    def data(self, k: int, lost: str) -> None:
        me = self.ends[k]
        if me.fin_sent or me.dead:
            return
        me.sent.append((me.nxt, 10, ACK))
        me.nxt = (me.nxt + 10) & MASK
        self.send(k, *me.sent[-1][:1], ACK, 10, lost)

    def close(self, k: int, lost: str) -> None:
        me = self.ends[k]
        if me.fin_sent or me.dead:
            return
        me.fin_sent, me.first = True, not me.fin_received
        me.sent.append((me.nxt, 1, FIN | ACK))
        me.nxt = (me.nxt + 1) & MASK
        self.send(k, me.sent[-1][0], FIN | ACK, 0, lost)

    def again(self, k: int, lost: str) -> None:
        me = self.ends[k]
        for seq, length, flags in list(me.sent):
            if not me.dead and (seq, length, flags) in me.sent:
                self.send(k, seq, flags, length - bool(flags & FIN), lost)

    def reset(self, k: int, _: str) -> None:
        me = self.ends[k]
        # A RST that comes before its data is challenged, and behind both FINs there is no program to send one.
        if me.state in ("CLOSED", "TIME_WAIT") or me.sent:
            return
        me.dead = True
        self.send(k, me.nxt, RST | ACK, 0)


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["data", "close", "close", "again", "again", "reset"]),
        st.integers(0, 1),
        st.sampled_from(["", "", "before", "behind"]),
    ),
    max_size=12,
)


def play(steps: list[tuple[str, int, str]]) -> World:
    world = World()
    for what, k, lost in steps:
        getattr(world, what)(k, lost)
    for k in (0, 1):  # what was lost before the place of capture is sent again
        world.again(k, "behind")
    return world


def told(segments: list[Segment]) -> Closing | None:
    book = Closings()
    for one in segments:
        book.feed(one)
    found = book.told()
    assert len(found) <= 1
    return found[0] if found else None


@given(STEPS)
@settings(max_examples=400, deadline=None)
def test_the_real_state_is_among_the_possible_ones(steps: list[tuple[str, int, str]]) -> None:
    world = play(steps)
    ways = [world.seen, *([s for s in world.seen if s.sport == end[1]] for end in (A, B))]
    for way in ways:
        for begin in range(len(way)):
            closing = told(way[begin:])
            assert closing is not None
            for side in (closing.a, closing.b):
                real = world.ends[0 if side.end == A else 1].state
                assert real in side.states, (begin, real, side.states, *diagram(closing))
            if closing.outcome is Ending.IN_ORDER:
                assert {end.state for end in world.ends} <= {"TIME_WAIT", "CLOSED"}


@given(STEPS)
@settings(max_examples=200, deadline=None)
def test_a_capture_from_the_beginning_leaves_little_open(steps: list[tuple[str, int, str]]) -> None:
    """With every packet and nothing lost, exactly one state is possible."""
    world = play([(what, k, "") for what, k, _ in steps])
    closing = told(world.seen)
    assert closing is not None
    assert closing.a.states == (world.ends[0].state,), diagram(closing)
    assert closing.b.states == (world.ends[1].state,), diagram(closing)


@given(STEPS, st.sampled_from(["", "behind"]))
@settings(max_examples=100, deadline=None)
def test_what_the_kernel_says_is_never_contradicted(steps: list[tuple[str, int, str]], lost: str) -> None:
    world = play([(what, k, lost) for what, k, _ in steps])
    book = Closings()
    for one in world.seen:
        book.feed(one)
    for k, (mine, peer) in enumerate(((A, B), (B, A))):
        book.state([(*mine, *peer)], world.ends[k].state, world.now + 1)
    (closing,) = book.told()
    assert [closing.a.states, closing.b.states] == [(end.state,) for end in world.ends]
    text = verdict(closing)
    if "LAST_ACK" in (end.state for end in world.ends):
        assert "Closed in order" not in text


@pytest.mark.parametrize("order", ["<", ">"])
@given(st.data())
@settings(max_examples=150, deadline=None)
def test_blocks_of_any_length_and_kind_end_in_packets_or_an_error_that_says_where(
    order: str, data: st.DataObject
) -> None:
    import io
    import struct

    from finwait.errors import DecodeError

    raw = b""
    kinds = st.sampled_from([0x0A0D0D0A, 1, 2, 3, 5, 6, 6, 6, 99])
    for kind in data.draw(st.lists(kinds, max_size=8)):
        body = data.draw(st.binary(max_size=60))
        if kind == 0x0A0D0D0A:
            body = struct.pack(f"{order}IHHq", 0x1A2B3C4D, 1, 0, -1) + body
        body = body[: len(body) & ~3]
        length = 12 + len(body) + data.draw(st.sampled_from([0, 0, 0, 0, 4, -4, 1, 1 << 20]))
        raw += struct.pack(f"{order}II", kind, length & MASK) + body + struct.pack(f"{order}I", length & MASK)
    raw = pcap.section_block() * (order == "<") + raw
    reader = pcap.PacketReader(io.BytesIO(raw))
    stopped = 0
    try:
        for frame in reader:
            assert frame.length >= len(frame.data)
            assert frame.data in raw
    except DecodeError as error:
        stopped = error.offset
    assert 0 <= stopped <= len(raw)
    assert reader.dropped >= 0
