"""One end of a captured connection: what it was seen to send, what its kernel said, and what follows.

What may be concluded from packets that are there and from packets that are not:

=====================================  ======================================================================
a FIN of X is here                     X has sent it
a SYN or new data of X is here         X had not sent its FIN before that
neither                                it may have been sent before the capture began: not known
an ACK of X covers the FIN of Y        X has received it
an ACK covers the FIN of X             X has received that ACK, unless X sends the FIN again after it: once
                                       may be a crossing on the way, twice is an ACK that does not arrive
X acknowledges a FIN whose ACK         X has received the ACK of its own FIN
covers its own
the first FIN of X does not cover      X closed first, or both at once; if it covers and was the first
the FIN of Y                           sending, Y closed first
X falls silent for four times the      X has stopped: it was heard at last, or gave up
last interval between its FINs
a RST outside the window, or late      ended nothing (RFC 5961)
X goes on sending after a RST to it    X did not take it
what X's own kernel says               is so, whatever the packets look like
=====================================  ======================================================================
"""

from __future__ import annotations

from typing import Final

from msgspec import Struct, field

from finwait.diagnosis.closing import EndFacts, said_by
from finwait.diagnosis.stream import Sender, at_or_behind
from finwait.uapi.socket_filter import Tuple

__all__ = ["GONE_ON_NS", "Party", "Stated", "facts_of", "has_sent", "stopped"]

GONE_ON_NS: Final = 1_000_000_000
"""Longer than a packet is on its way: what is sent later knows of what was sent before."""
_STOPPED: Final = 4  # retransmission intervals double; after four of the last the next is long overdue


class Stated(Struct):
    """What the kernel of an end said of it, first and last."""

    forms: tuple[Tuple, ...]
    place: str
    scope: str
    began: str
    began_ns: int
    last: str
    last_ns: int
    final: str = ""
    """What it said last, if no packet came after that."""
    seen: bool = False


class Party(Struct):
    """What one end has sent, and what its kernel said."""

    stream: Sender = field(default_factory=Sender)
    fin: int | None = None
    """Sequence number behind its FIN."""
    fin_new: bool = False
    """The first sending of the FIN is in the capture."""
    fin_ack: int = 0
    """What the first FIN acknowledged."""
    fin_ns: int = 0
    fin_last_ns: int = 0
    fin_gap_ns: int = 0
    fins: int = 0
    acked_ns: int = 0
    acked_last_ns: int = 0
    unheard: int = 0
    new_ns: int = 0
    """When it last sent new data, so had not sent its FIN."""
    late_bytes: int = 0
    probes: int = 0
    active_ns: int = 0
    """When it last sent anything but a RST or a bare ACK."""
    any_ns: int = 0
    """When it last sent anything but a RST."""
    stated: Stated | None = None


def has_sent(end: Party) -> bool:
    """Whether the end had closed its side, by its FIN or by its kernel's word."""
    return end.fin is not None or (end.stated is not None and bool(said_by(end.stated.began).sent))


def _sent(x: Party, y: Party) -> bool | None:
    """Whether an end has sent its FIN."""
    if x.fin is not None:
        return True
    for stated, fact in ((x.stated, "sent"), (y.stated, "received")):
        if stated is not None and any(getattr(said_by(s), fact) for s in (stated.began, stated.final)):
            return True
    if x.stream.isn is not None or x.new_ns:
        return False
    if x.stated is not None and (sent := said_by(x.stated.final).sent) is not None:
        return sent
    if y.stated is not None and said_by(y.stated.began).received is False:
        return False  # it had not arrived when the capture began, and did not come by since
    return None


def _acked(x: Party, y: Party, until_ns: int) -> bool | None:
    """Whether an end that has sent its FIN has the ACK of it."""
    if x.stated is not None and (acked := said_by(x.stated.final).acked) is not None:
        return acked
    if x.fin is None:
        return said_by(x.stated.began).acked if x.stated is not None else _heard(x, y)
    if x.acked_ns and x.unheard:
        if stopped(x, until_ns) and x.acked_last_ns > x.fin_last_ns:
            return True
        return None if x.unheard == 1 else False
    if x.acked_ns or _heard(x, y):
        return True
    if y.stated is not None and said_by(y.stated.final).received is False:
        return False
    return None if not y.stream.packets else False


def _heard(x: Party, y: Party) -> bool | None:
    """Whether an end has acknowledged a FIN of the other that in turn acknowledged its own."""
    if y.fin is None or x.stream.ack is None or not at_or_behind(x.stream.ack, y.fin):
        return None
    answered = _first(y, x) is False or (x.fin is not None and at_or_behind(y.fin_ack, x.fin))
    return True if answered else None


def _received(x: Party, y: Party) -> bool | None:
    """Whether an end has received the other's FIN."""
    if x.stated is not None and (received := said_by(x.stated.final).received) is not None:
        return received
    if y.stated is not None and (said_by(y.stated.final).acked or said_by(y.stated.began).acked):
        return True
    if x.stated is not None and said_by(x.stated.began).received:
        return True
    if y.fin is not None:
        if x.stream.ack is not None and at_or_behind(x.stream.ack, y.fin):
            return True
        return None
    return False if _sent(y, x) is False else None


def _first(x: Party, y: Party) -> bool | None:
    """Whether an end that has sent its FIN did so before the other's arrived."""
    if x.stated is not None:
        began, last = said_by(x.stated.began), said_by(x.stated.final)
        if began.sent:
            return began.first
        if last.sent:
            return last.first
        if began.received:
            return False
    if x.fin is not None and y.fin is not None:
        if not at_or_behind(x.fin_ack, y.fin):
            return True
        return False if x.fin_new else None
    if x.fin is not None and x.fin_new and y.stream.packets:
        return False  # one that is not here came before
    if y.fin is not None and y.fin_new and x.stream.packets:
        return True
    if y.stated is not None:
        for claim in (said_by(y.stated.began), said_by(y.stated.final)):
            if claim.received:
                return not claim.first
        if said_by(y.stated.began).sent:
            return False
    return None


def facts_of(x: Party, y: Party, until_ns: int) -> EndFacts:
    """Return what is known of an end.

    Args:
        x: the end.
        y: the other one.
        until_ns: until when there would have been more packets; 0 for not known.
    """
    sent = _sent(x, y)
    acked = False if sent is False else _acked(x, y, until_ns)
    return EndFacts(sent, acked, _received(x, y), _first(x, y) if sent is not False else None)


def stopped(x: Party, until_ns: int) -> bool:
    """Whether an end sent its FIN several times and has been silent for longer than it would have waited."""
    return x.fins > 1 and until_ns - x.fin_last_ns > _STOPPED * max(x.fin_gap_ns, GONE_ON_NS)
