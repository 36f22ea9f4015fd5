"""What a captured connection has come to: from what is kept of it to a `Closing`."""

from __future__ import annotations

from finwait.diagnosis.closing import CLOSED, Closing, EndFacts, Ending, Kind, Missing, Reset, Side, possible
from finwait.diagnosis.conversation import Conversation
from finwait.diagnosis.party import GONE_ON_NS, facts_of, stopped
from finwait.diagnosis.stream import ResetStanding, at_or_behind

__all__ = ["judge"]


def _effective(c: Conversation) -> tuple[Reset, int] | None:
    """Return the first RST that ended something, by what came after it."""
    for reset, seq in c.resets:
        sender, peer = c.ends if reset.from_a else c.ends[::-1]
        if any(end.stated is not None and end.stated.final not in ("", CLOSED) for end in (sender, peer)):
            continue  # one of the two kernels still has it
        last = max(other.time_ns for other, _ in c.resets if other.from_a == reset.from_a)
        went_on = peer.active_ns > last + GONE_ON_NS
        alive = sender.any_ns > last + GONE_ON_NS or (
            sender.any_ns > reset.time_ns
            and sender.stream.highest is not None
            and not at_or_behind(seq, sender.stream.highest)
        )
        if not (went_on or alive):
            return reset, seq
    return None


def judge(c: Conversation, until_ns: int) -> Closing:
    """Return how a connection closed.

    Args:
        c: the connection.
        until_ns: when the capture ended; 0 for not known.
    """
    a, b = c.ends
    for end in c.ends:
        if end.stated is not None:
            end.stated.final = end.stated.last if end.stated.last_ns >= c.last_ns else ""
    facts = facts_of(a, b, until_ns), facts_of(b, a, until_ns)
    effective = _effective(c)
    reset = None if effective is None else effective[0]
    outcome = _outcome(c, facts, reset)
    sides = (_side(c, 0, facts[0], until_ns, reset), _side(c, 1, facts[1], until_ns, reset))
    ignored = list(c.ignored.values())
    ignored += [entry for entry, _ in c.resets if reset is None and entry not in ignored]
    return Closing(
        sides[0], sides[1], c.opened, c.place, c.scope, outcome, _who_first(c, facts), reset,
        tuple(ignored), _missing(sides, outcome), (*c.first, *c.last), c.left_out, c.packets, c.copies,
        c.last_ns, frozenset(c.marks),
    )  # fmt: skip


def _side(c: Conversation, index: int, facts: EndFacts, until_ns: int, reset: Reset | None) -> Side:
    party = c.ends[index]
    stated = party.stated
    kernel = "" if stated is None else stated.final
    states = possible(facts)
    if kernel:
        states = (kernel,)
    elif reset is not None:
        sender = reset.from_a == (index == 0)
        known = sender or reset.standing is ResetStanding.EXACT
        states = (CLOSED,) if known else (*(s for s in states if s != CLOSED), CLOSED)
    elif any(entry.late for entry in c.ignored.values()):
        states = _after_a_late_reset(c, index, states)
    elif stopped(party, until_ns) and facts.acked is not True:
        states = (CLOSED,)
    elif c.packets and not all(end.stream.packets for end in c.ends) and CLOSED not in states:
        states = (*states, CLOSED)  # a RST of the end that is out of sight
    return Side(
        c.a if index == 0 else c.b, states, kernel, "" if stated is None else stated.began, facts,
        party.stream.packets, party.fins, party.fin_ns, party.acked_ns, party.unheard,
        stopped(party, until_ns), party.late_bytes, party.stream.ack is not None and not party.stream.window,
        party.probes,
    )  # fmt: skip


def _after_a_late_reset(c: Conversation, index: int, states: tuple[str, ...]) -> tuple[str, ...]:
    """A RST says that its sender remembers nothing, not even TIME_WAIT; it may end that of the other."""
    for reset in c.ignored.values():
        if reset.late and reset.from_a == (index == 0):
            return (CLOSED,)
    return states if CLOSED in states else (*states, CLOSED)


def _outcome(c: Conversation, facts: tuple[EndFacts, EndFacts], reset: Reset | None) -> Ending:
    b = c.ends[1]
    if reset is not None:
        unanswered = c.opened and b.stream.isn is None and not reset.from_a
        return Ending.REFUSED if unanswered else Ending.RESET
    sent = [end.sent for end in facts]
    if True not in sent:
        if c.opened and not b.stream.packets and c.ends[0].stream.ack is None:
            return Ending.NOT_OPENED
        return Ending.OPEN if None not in sent else Ending.UNSEEN
    if any(x.unheard or (x.acked_ns and f.acked is False) for x, f in zip(c.ends, facts, strict=True)):
        return Ending.UNHEARD
    if sent == [True, True]:
        acked = [end.acked for end in facts]
        if acked == [True, True]:
            return Ending.IN_ORDER
        return Ending.LAST_UNANSWERED if False in acked else Ending.ONE_SIDED
    sender = facts[0] if sent[0] else facts[1]
    other = facts[1] if sent[0] else facts[0]
    if sender.acked is None and not other.received:
        return Ending.ONE_SIDED
    if sender.acked is False:
        return Ending.UNANSWERED
    return Ending.HALF_CLOSED if other.sent is False else Ending.HALF_OR_CLOSED


def _who_first(c: Conversation, facts: tuple[EndFacts, EndFacts]) -> bool | None:
    """Return whether *a* closed first; of two at once, whose FIN was captured first."""
    a, b = facts
    if a.sent and not b.sent:
        return True
    if b.sent and not a.sent:
        return False
    if not (a.sent and b.sent):
        return None
    if a.first is not b.first and None not in (a.first, b.first):
        return a.first
    if a.first is False or b.first is False:
        return b.first is False
    party, other = c.ends
    if party.fin_ns and other.fin_ns:
        return party.fin_ns <= other.fin_ns
    return None


def _missing(sides: tuple[Side, Side], outcome: Ending) -> tuple[Missing, ...]:
    if outcome in (Ending.RESET, Ending.REFUSED, Ending.IN_ORDER, Ending.ONE_SIDED):
        return ()
    missing = []
    for index, (side, other) in enumerate((sides, sides[::-1])):
        from_a = index == 0
        if side.facts.sent and side.facts.acked is False and not side.acked_ns and side.fins:
            missing.append(Missing(Kind.ACK, not from_a))
        if side.facts.sent and other.facts.sent is False:
            missing.append(Missing(Kind.FIN, not from_a))
    return tuple(missing)
