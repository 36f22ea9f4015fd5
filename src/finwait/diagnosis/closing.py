"""How a connection closed, told from its packets: who sent FIN, which ACK answered, what never came.

Theory of operation. Each connection has two ends, *a* (who sent the SYN, or the first packet seen) and *b*.
For each end we keep the sequence number behind its FIN and whether the other has acknowledged up to there;
from these four facts and any RST follow the states that both kernels must be in (RFC 9293 §3.6), as far as
the packets reached them. Sequence numbers are compared modulo 2**32.

What this cannot see: packets that were not captured. "Never came" means "not in this capture": a packet
lost behind the place of capture looks as if it had arrived, one lost before it as if it was never sent. A
copy of a packet on a second interface (a bridge and its port) is recognised and counted once.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Final

from finwait.table.sockets import address_text
from finwait.uapi.pcap import ACK, FIN, RST, SYN, Segment

__all__ = ["Closing", "Step", "closings", "diagram"]

_COPY_NS: Final = 2_000_000  # a bridge hands a packet on within microseconds; the quickest RTO is 200 ms
_WIDTH: Final = 34


@dataclass(frozen=True, slots=True)
class Step:
    """One arrow of the diagram."""

    time_ns: int
    from_a: bool
    label: str
    note: str = ""
    count: int = 1
    """Packets of this kind in a row."""
    payload: int = 0
    """Bytes of data in them."""


@dataclass(frozen=True, slots=True)
class Closing:
    """How one connection closed, as far as the capture shows."""

    a: tuple[tuple[int, int], int]
    """Address and port of the end that opened it (or was seen first)."""
    b: tuple[tuple[int, int], int]
    opened: bool
    """Whether the SYN is in the capture, so that *a* is the client for certain."""
    steps: tuple[Step, ...]
    verdict: str
    """One sentence."""
    missing: tuple[str, ...]
    """What never came, one phrase each; empty when the closing is complete."""
    state_a: str
    """The state that *a*'s kernel should be in by these packets (``FIN_WAIT2``), or ``CLOSED``."""
    state_b: str
    packets: int
    copies: int
    """Packets seen again on another interface, and not counted."""


@dataclass(slots=True)
class _End:
    """What one end has sent."""

    fin: int | None = None
    """Sequence number behind its FIN."""
    fin_ns: int = 0
    fins: int = 0
    fin_acked_ns: int = 0
    reset_ns: int = 0
    reset_seq: int = 0
    highest: int | None = None
    """Behind the last byte that it sent."""
    after_peer_fin: int = 0
    """Bytes sent after the other end's FIN."""
    syn: bool = False
    probes: int = 0


@dataclass(slots=True)
class _Connection:
    a: tuple[tuple[int, int], int]
    b: tuple[tuple[int, int], int]
    opened: bool = False
    ends: tuple[_End, _End] = field(default_factory=lambda: (_End(), _End()))
    steps: list[Step] = field(default_factory=list)
    recent: dict[tuple[int, ...], tuple[int, str]] = field(default_factory=dict)
    packets: int = 0
    copies: int = 0
    last_ns: int = 0


def _behind(a: int, b: int) -> bool:
    """Whether sequence number ``a`` is at or behind (later than) ``b``, modulo 2**32."""
    return (a - b) & 0xFFFFFFFF < 0x80000000


def closings(segments: Iterable[Segment]) -> Iterator[Closing]:
    """Tell of every connection in the packets; connections come in the order of their last packet.

    A SYN on numbers that were used before begins another connection.
    """
    live: dict[tuple[tuple[tuple[int, int], int], ...], _Connection] = {}
    over: list[_Connection] = []
    for one in segments:
        me, peer = (one.src, one.sport), (one.dst, one.dport)
        key = tuple(sorted((me, peer)))
        found = live.get(key)
        opens = one.flags & (SYN | ACK) == SYN
        if found is not None and opens and _ended(found):
            over.append(found)
            found = None
        if found is None:
            # Without a SYN the lower port is taken for the server's: only the layout depends on it.
            first = me if opens or (not one.flags & SYN and one.sport >= one.dport) else peer
            found = live[key] = _Connection(first, peer if first == me else me)
        if not _is_copy(found, one, from_a=me == found.a):
            _feed(found, one, from_a=me == found.a)
    for connection in sorted([*over, *live.values()], key=lambda c: c.last_ns):
        yield _judge(connection)


def _ended(connection: _Connection) -> bool:
    a, b = connection.ends
    return bool(a.reset_ns or b.reset_ns or a.fin is not None or b.fin is not None)


def _is_copy(connection: _Connection, one: Segment, *, from_a: bool) -> bool:
    """Whether this packet was seen a moment ago, on its way through another interface."""
    mark = (from_a, one.seq, one.ack, one.flags, one.payload, one.window)
    before = connection.recent.get(mark)
    connection.recent[mark] = (one.time_ns, one.interface)
    if len(connection.recent) > 64:
        del connection.recent[next(iter(connection.recent))]
    if before is None or abs(one.time_ns - before[0]) > _COPY_NS:
        return False
    connection.copies += 1
    return True


def _feed(c: _Connection, one: Segment, *, from_a: bool) -> None:
    me, peer = c.ends if from_a else c.ends[::-1]
    c.packets += 1
    c.last_ns = one.time_ns
    begins, length = one.seq, one.payload + bool(one.flags & SYN) + bool(one.flags & FIN)
    ends = (begins + length) & 0xFFFFFFFF
    if one.flags & SYN:
        me.syn = True
        c.opened = c.opened or not one.flags & ACK
    if one.flags & RST:
        me.reset_ns = me.reset_ns or one.time_ns
        c.steps.append(Step(one.time_ns, from_a, _flags(one), "reset"))
        return
    closing = c.ends[0].fin is not None or c.ends[1].fin is not None
    if one.flags & FIN:
        again = me.fin is not None
        me.fins += 1
        if not again:
            me.fin, me.fin_ns = ends, one.time_ns
        note = f"sent again ({_ordinal(me.fins)} time)" if again else "done sending"
        if one.payload:
            note += f", with its last {one.payload} bytes"
        c.steps.append(Step(one.time_ns, from_a, _flags(one), note))
    elif closing and one.payload:
        known = me.highest
        if known is None or not _behind(known, ends):
            if peer.fin is not None:
                me.after_peer_fin += one.payload
            _more(c, one, from_a, "data", one.payload)
        else:
            _more(c, one, from_a, "data again", one.payload)
    elif closing and me.highest is not None and one.seq == (me.highest - 1) & 0xFFFFFFFF:
        me.probes += 1  # a keepalive probe: one byte before what was sent last
        _more(c, one, from_a, "keepalive probe", 0)
    if one.flags & ACK and peer.fin is not None and not peer.fin_acked_ns and _behind(one.ack, peer.fin):
        peer.fin_acked_ns = one.time_ns
        note = "acknowledges the FIN"
        if one.flags & FIN or one.payload:
            last = c.steps[-1]
            c.steps[-1] = replace(last, note=f"{last.note}; {note}" if last.note else note)
        else:
            c.steps.append(Step(one.time_ns, from_a, _flags(one), note))
    if length and (me.highest is None or not _behind(me.highest, ends)):
        me.highest = ends


def _more(c: _Connection, one: Segment, from_a: bool, what: str, payload: int) -> None:
    """Add an arrow, or lengthen the last one if it is of the same kind and direction."""
    last = c.steps[-1] if c.steps else None
    if last is not None and last.from_a == from_a and last.label == what and not last.note:
        c.steps[-1] = replace(last, count=last.count + 1, payload=last.payload + payload)
    else:
        c.steps.append(Step(one.time_ns, from_a, what, payload=payload))


def _ordinal(n: int) -> str:
    return f"{n}{ {1: 'st', 2: 'nd', 3: 'rd'}.get(n % 10 if n % 100 not in (11, 12, 13) else 0, 'th') }"


def _flags(one: Segment) -> str:
    names = [
        name for bit, name in ((SYN, "SYN"), (FIN, "FIN"), (RST, "RST"), (ACK, "ACK")) if one.flags & bit
    ]
    return ",".join(names)


def _judge(c: _Connection) -> Closing:
    a, b = c.ends
    names = (f"{_name(c.a)}", f"{_name(c.b)}")
    verdict, missing = _verdict(a, b, names)
    states = _states(a, b)
    return Closing(
        c.a, c.b, c.opened, tuple(c.steps), verdict, missing, states[0], states[1], c.packets, c.copies
    )


def _name(end: tuple[tuple[int, int], int]) -> str:
    text = address_text(*end[0])
    return f"[{text}]:{end[1]}" if ":" in text else f"{text}:{end[1]}"


def _verdict(a: _End, b: _End, names: tuple[str, str]) -> tuple[str, tuple[str, ...]]:
    if a.reset_ns or b.reset_ns:
        who, end = (
            (names[0], a) if a.reset_ns and (not b.reset_ns or a.reset_ns <= b.reset_ns) else (names[1], b)
        )
        rest = b if end is a else a
        before = "after its own FIN" if end.fin is not None else "without a FIN of its own"
        if rest.fin is not None and rest.fin_ns <= end.reset_ns:
            before += ", in answer to the other end's closing"
        return f"{who} reset the connection {before}.", ()
    if a.fin is None and b.fin is None:
        return "No FIN and no RST: neither end has closed in this capture.", ()
    first, second = (a, b) if b.fin is None or (a.fin is not None and a.fin_ns <= b.fin_ns) else (b, a)
    name, other = names if first is a else names[::-1]
    missing: list[str] = []
    if not first.fin_acked_ns:
        missing.append(f"the ACK of the FIN from {name}")
    if second.fin is None:
        missing.append(f"a FIN from {other}")
    elif not second.fin_acked_ns:
        missing.append(f"the ACK of the FIN from {other}")
    if not missing:
        both = second.fin_ns < first.fin_acked_ns
        together = ", both at once" if both else ""
        return (
            f"Closed in order{together}: {name} first, {other} {_span(second.fin_ns - first.fin_ns)} later.",
            (),
        )
    if not first.fin_acked_ns and second.fin is None:
        tries = f" ({first.fins} times)" if first.fins > 1 else ""
        return f"{name} sent a FIN{tries} and nobody acknowledged it.", tuple(missing)
    if second.fin is None:
        sent = f" and went on sending ({second.after_peer_fin} bytes)" if second.after_peer_fin else ""
        return f"Half closed: {name} is done, {other} acknowledged it{sent} and has not closed.", tuple(
            missing
        )
    if not second.fin_acked_ns:
        tries = f" ({second.fins} times)" if second.fins > 1 else ""
        return f"{other} answered the FIN with its own{tries}, and that one was not acknowledged.", tuple(
            missing
        )
    return f"{name} sent the first FIN; it was not acknowledged, although {other} closed too.", tuple(missing)


def _span(ns: int) -> str:
    return f"{ns / 1e6:.1f} ms" if ns < 1_000_000_000 else f"{ns / 1e9:.1f} s"


def _states(a: _End, b: _End) -> tuple[str, str]:
    """Return the states that the packets leave the two ends in."""
    if a.reset_ns or b.reset_ns:
        return "CLOSED", "CLOSED"
    return _state(a, b), _state(b, a)


def _state(me: _End, peer: _End) -> str:
    if me.fin is None:
        if peer.fin is None:
            return "ESTABLISHED"
        # Without its ACK nobody can tell whether the FIN arrived.
        return "CLOSE_WAIT" if peer.fin_acked_ns else "ESTABLISHED or CLOSE_WAIT"
    if peer.fin is None:
        return "FIN_WAIT2" if me.fin_acked_ns else "FIN_WAIT1"
    first = me.fin_ns < peer.fin_ns
    if not me.fin_acked_ns:
        if not first:
            return "LAST_ACK" if peer.fin_acked_ns else "FIN_WAIT1 or LAST_ACK"
        return "CLOSING" if peer.fin_acked_ns else "FIN_WAIT1 or CLOSING"
    if not peer.fin_acked_ns:
        return "FIN_WAIT2 or TIME_WAIT"
    # Both FINs acknowledged: who closed second is done, who closed first keeps TIME_WAIT.
    return "CLOSED" if not first and peer.fin_acked_ns <= me.fin_ns else "TIME_WAIT"


def diagram(closing: Closing, *, most: int = 40, until_ns: int = 0) -> list[str]:
    """Return the sequence diagram of a closing as lines of at most 100 characters.

    Args:
        closing: what to draw.
        most: arrows; of more, the first and the last are drawn.
        until_ns: when the capture ended, as far as is known: what is missing may only not have come *yet*. 0 for
            not known.
    """
    a, b = _name(closing.a), _name(closing.b)
    role = ("client", "server") if closing.opened else ("", "")
    out = [f"{'':12} {a:<{_WIDTH}}  {b}", f"{'':12} {role[0]:<{_WIDTH}}  {role[1]}".rstrip()]
    if not any(role):
        del out[1]
    steps = list(closing.steps)
    skipped = 0
    if len(steps) > most:
        skipped = len(steps) - most
        steps = [*steps[: most // 2], *steps[-(most - most // 2) :]]
    start = steps[0].time_ns if steps else 0
    for number, step in enumerate(steps):
        if skipped and number == most // 2:
            out.append(f"{'':12} :{'… ' + str(skipped) + ' more …':^{_WIDTH}}:")
        ms = (step.time_ns - start) / 1e6
        label = step.label if step.count == 1 else f"{step.label} × {step.count}"
        bar = f" {label} ".center(_WIDTH - 1, "-")
        arrow = f"{bar}>" if step.from_a else f"<{bar}"
        said = "; ".join(filter(None, (f"{step.payload} bytes" if step.payload else "", step.note)))
        out.append(f"{ms:>9.3f} ms |{arrow}| {said}".rstrip())
    for phrase in closing.missing:
        from_b = phrase.startswith("a FIN from") and phrase.endswith(b)
        from_b = from_b or (phrase.startswith("the ACK") and phrase.endswith(a))
        bar = " never came ".center(_WIDTH - 1, ".")
        out.append(f"{'':12} |{'<' + bar if from_b else bar + '>'}| {phrase}")
    if closing.steps:
        out.append(f"{'':12} {closing.state_a:<{_WIDTH}}  {closing.state_b}")
    verdict = closing.verdict
    if closing.missing and closing.steps and until_ns:
        left = until_ns - closing.steps[-1].time_ns
        verdict += f" The capture went on for {_span(left)}." if left > 0 else " The capture ends there."
    return [*out, *textwrap.wrap(verdict, 98, break_long_words=False, break_on_hyphens=False)]
