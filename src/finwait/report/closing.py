"""The closing of a connection as a sequence diagram and in sentences.

Everything here is read off the fields of a `Closing`; nothing is decided.
"""

from __future__ import annotations

import enum
import textwrap
from typing import Any, Final

from finwait.diagnosis.closing import Arrow, Closing, Ending, Kind, Missing, Reset, Side
from finwait.diagnosis.sightings import Also, Sighting
from finwait.diagnosis.stream import ResetStanding
from finwait.table.sockets import address_text
from finwait.table.units import endpoint, printable
from finwait.uapi.segment import ACK, FIN, RST, SYN

__all__ = ["connection_name", "diagram", "drawing", "end_name", "sighting_json", "verdict"]

_WIDTH: Final = 34
_NOTES: Final = 49
"""Columns to the right of the arrows, of 100."""
_MOST_STATES: Final = 3
_RETRANSMITTING: Final = ("FIN_WAIT1", "CLOSING", "LAST_ACK")

_LABELS: Final = {
    Kind.DATA: "data",
    Kind.DATA_AGAIN: "data again",
    Kind.DATA_LATE: "data, late",
    Kind.DATA_REPAIR: "data again",
    Kind.DATA_EITHER: "data, late or again",
    Kind.KEEPALIVE: "keepalive probe",
    Kind.WINDOW_PROBE: "window probe",
}
_MEANINGS: Final = {
    Kind.FIN: "done sending",
    Kind.DATA_LATE: "overtaken on the way",
    Kind.DATA_REPAIR: "the first copy was lost before this place",
    Kind.WINDOW_PROBE: "asks whether the window is open again",
    Kind.SYN: "asks for a new connection on the same ports",
}
_STANDINGS: Final = {
    ResetStanding.EXACT: "reset",
    ResetStanding.UNKNOWN: "reset, if its number is in the window",
    ResetStanding.WINDOW: "not the expected number: not taken, challenged",
    ResetStanding.OUTSIDE: "outside the window: ignored",
}


def end_name(closing: Closing, side: Side) -> str:
    """Return ``10.0.0.1:80``, or ``[fe80::1%eth0]:80`` where the address needs its interface."""
    text = address_text(*side.end[0])
    if closing.scope:
        text += f"%{printable(closing.scope)}"
    return endpoint(text, side.end[1])


def connection_name(closing: Closing) -> str:
    """Return both ends in a line."""
    return f"{end_name(closing, closing.a)} > {end_name(closing, closing.b)}"


def drawing(sighting: Sighting, *, until_ns: int = 0, lost: int = 0) -> list[str]:
    """Return the diagram of a connection, and of the places where something else of it was seen.

    Args:
        sighting: the connection.
        until_ns: see `diagram`.
        lost: see `diagram`.
    """
    first = sighting.closing
    out = diagram(first, until_ns=until_ns, lost=lost)
    for also in sighting.also:
        why = "conntrack has the translation" if also.tracked else "the sequence numbers are the same"
        where = _elsewhere(first, also.closing)
        if also.alike:
            out += _wrapped(f"Also captured {where}, by the same packets ({why}).")
            continue
        out += ["", *_wrapped(f"The same connection {where} ({why}). {_differences(first, also)}")]
        out += diagram(also.closing, until_ns=until_ns, lost=lost)
    return out


def sighting_json(sighting: Sighting, *, until_ns: int = 0, lost: int = 0) -> dict[str, Any]:
    """Return how a connection closed as JSON's types, with the places where something else of it was seen."""
    also = [
        {
            "closing": _closing_json(place.closing, until_ns, lost),
            "alike": place.alike,
            "found_by": "conntrack" if place.tracked else "sequence-numbers",
        }
        for place in sighting.also
    ]
    return _closing_json(sighting.closing, until_ns, lost) | {"also": also}


def _word(value: enum.Enum) -> str:
    return value.name.lower().replace("_", "-")


def _closing_json(c: Closing, until_ns: int, lost: int) -> dict[str, Any]:
    (a, sport), (b, dport) = c.a.end, c.b.end
    return {
        "place": c.place or None,
        "device": c.scope or None,
        "src": address_text(*a),
        "sport": sport,
        "dst": address_text(*b),
        "dport": dport,
        "opened": c.opened,
        "outcome": _word(c.outcome),
        "said": verdict(c, until_ns=until_ns, lost=lost),
        "closed_first": None if c.a_first is None else "src" if c.a_first else "dst",
        "reset_by": None if c.reset is None else "src" if c.reset.from_a else "dst",
        "src_end": _side_json(c.a),
        "dst_end": _side_json(c.b),
        "missing": [
            {"what": missing.what.value, "from": "src" if missing.from_a else "dst"} for missing in c.missing
        ],
        "packets": c.packets,
        "copies": c.copies,
        "steps": [
            {
                "time_ns": step.time_ns,
                "last_ns": step.last_ns or step.time_ns,
                "from": "src" if step.from_a else "dst",
                "kind": _word(step.kind),
                "flags": _flags(step.flags),
                "count": step.count,
                "bytes": step.payload,
                "acks_fin": step.acks_fin,
            }
            for step in c.steps
        ],
        "steps_left_out": c.left_out,
    }


def _side_json(side: Side) -> dict[str, Any]:
    return {
        "states": list(side.states),
        "kernel_state": side.kernel or None,
        "packets": side.packets,
        "fins": side.fins,
        "late_bytes": side.late_bytes,
        "window_closed": side.window_closed,
        "stopped": side.stopped,
    }


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, 98, break_long_words=False, break_on_hyphens=False)


def _elsewhere(first: Closing, other: Closing) -> str:
    where = []
    if connection_name(first) != connection_name(other):
        where.append(f"as {connection_name(other)}")
    if first.place != other.place:
        where.append(f"in {printable(other.place) or 'another place'}")
    return " ".join(where)


def _differences(first: Closing, also: Also) -> str:
    """Return how often each end's FIN and RST were seen in the two places, where the numbers differ."""
    sentences = []
    for from_a, side in ((True, first.a), (False, first.b)):
        for label, kinds in (("FIN", (Kind.FIN, Kind.FIN_AGAIN)), ("RST", (Kind.RESET,))):
            count, other = (
                sum(s.count for s in c.steps if s.from_a == from_a and s.kind in kinds)
                for c in (first, also.closing)
            )
            if count != other:
                sentences.append(
                    f"{label} from {end_name(first, side)}: {count} as {connection_name(first)}, {other} here."
                )
    return " ".join(sentences)


def diagram(closing: Closing, *, most: int = 40, until_ns: int = 0, lost: int = 0) -> list[str]:
    """Return the sequence diagram of a closing as lines of at most 100 characters.

    Args:
        closing: what to draw.
        most: arrows; of more, the first and the last are drawn.
        until_ns: when the capture ended, as far as is known: what is missing may only not have come *yet*. 0 for
            not known.
        lost: packets that the capture lost, which may be those that are missing.
    """
    a, b = end_name(closing, closing.a), end_name(closing, closing.b)
    out = [f"{'':12} {a:<{_WIDTH}}  {b}"]
    if closing.opened:
        out.append(f"{'':12} {'client':<{_WIDTH}}  server")
    out += _arrows(closing, most)
    for missing in closing.missing:
        bar = (" not captured " if lost else " never came ").center(_WIDTH - 1, ".")
        out.append(f"{'':12} |{bar + '>' if missing.from_a else '<' + bar}| {_missing(closing, missing)}")
    if closing.steps or closing.a.kernel or closing.b.kernel:
        out += _states(closing)
    return [*out, *_wrapped(verdict(closing, until_ns=until_ns, lost=lost))]


def _arrows(closing: Closing, most: int) -> list[str]:
    steps = list(closing.steps)
    skipped = closing.left_out
    half = len(steps)
    if len(steps) > most:
        skipped += len(steps) - most
        half = most // 2
        steps = [*steps[:half], *steps[-(most - half) :]]
    elif skipped:
        half = len(steps) // 2
    start = steps[0].time_ns if steps else 0
    out: list[str] = []
    for number, step in enumerate(steps):
        if skipped and number == half:
            out.append(f"{'':12} :{f'… {skipped} more …':^{_WIDTH}}:")
        out += _arrow(step, start)
    return out


def _arrow(step: Arrow, start: int) -> list[str]:
    ms = (step.time_ns - start) / 1e6
    when = f"{ms:>9.3f} ms" if abs(ms) < 100_000 else f"{ms / 1000:>10.1f} s"
    label = _LABELS.get(step.kind) or _flags(step.flags)
    if step.count > 1:
        label += f" × {step.count}"
    bar = f" {label} ".center(_WIDTH - 1, "-")
    arrow = f"{bar}>" if step.from_a else f"<{bar}"
    notes = textwrap.wrap("; ".join(filter(None, _notes(step))), _NOTES) or [""]
    out = [f"{when} |{arrow}| {notes[0]}".rstrip()]
    return [*out, *(f"{'':12} |{'':{_WIDTH}}| {more}" for more in notes[1:])]


def _notes(step: Arrow) -> list[str]:
    notes = [f"{step.payload} bytes" if step.payload and step.kind not in (Kind.FIN, Kind.FIN_AGAIN) else ""]
    if step.kind is Kind.FIN_AGAIN:
        spread = f", the last after {_span(step.last_ns - step.time_ns)}" if step.count > 1 else ""
        times = f"{step.count} times" if step.count > 1 else f"({_ordinal(step.number)} time)"
        notes.append(f"sent again {times}{spread}")
    elif step.standing is not None:
        notes.append("both ends were done: ended nothing" if step.late else _STANDINGS[step.standing])
    else:
        notes.append(_MEANINGS.get(step.kind, ""))
    if step.payload and step.kind in (Kind.FIN, Kind.FIN_AGAIN):
        notes[-1] += f", with its last {step.payload} bytes"
    if step.acks_fin:
        notes.append("acknowledges the FIN")
    return notes


def _states(closing: Closing) -> list[str]:
    texts = []
    for side in (closing.a, closing.b):
        text = " or ".join(side.states) if len(side.states) <= _MOST_STATES else "not known"
        texts.append(f"{text}, says its kernel" if side.kernel else text)
    if len(texts[0]) <= _WIDTH:
        return [f"{'':12} {texts[0]:<{_WIDTH}}  {texts[1]}"]
    names = (end_name(closing, closing.a), end_name(closing, closing.b))
    return [f"{'':12} {name}: {text}" for name, text in zip(names, texts, strict=True)]


def _missing(closing: Closing, missing: Missing) -> str:
    sender, other = (closing.a, closing.b) if missing.from_a else (closing.b, closing.a)
    if missing.what is Kind.FIN:
        return f"a FIN from {end_name(closing, sender)}"
    return f"the ACK of the FIN from {end_name(closing, other)}"


def _ordinal(n: int) -> str:
    return f"{n}{ {1: 'st', 2: 'nd', 3: 'rd'}.get(n % 10 if n % 100 not in (11, 12, 13) else 0, 'th') }"


def _flags(flags: int) -> str:
    names = [name for bit, name in ((SYN, "SYN"), (FIN, "FIN"), (RST, "RST"), (ACK, "ACK")) if flags & bit]
    return ",".join(names)


def _span(ns: int) -> str:
    return f"{ns / 1e6:.1f} ms" if ns < 1_000_000_000 else f"{ns / 1e9:.1f} s"


# --------------------------------------------------------------------------------------------------------
# Sentences


def verdict(closing: Closing, *, until_ns: int = 0, lost: int = 0) -> str:
    """Return what happened, in sentences; see `diagram` for the arguments."""
    sentences = [_main(closing), *_ignored(closing), *_window(closing)]
    if not closing.packets:
        waits = any(side.kernel in _RETRANSMITTING for side in (closing.a, closing.b))
        why = "the next retransmission was not due yet" if waits else "an idle connection sends nothing"
        sentences.append(f"No packet came or went: {why}.")
    elif closing.missing and closing.steps and until_ns:
        remaining_ns = until_ns - closing.last_ns
        sentences.append(
            f"The capture went on for {_span(remaining_ns)}."
            if remaining_ns > 0
            else "The capture ends there."
        )
    if lost and closing.missing:
        sentences.append(f"The capture lost {lost} packets: what is missing may be among them.")
    return " ".join(filter(None, sentences))


def _main(c: Closing) -> str:
    first, second = (c.b, c.a) if c.a_first is False else (c.a, c.b)
    name, other = end_name(c, first), end_name(c, second)
    match c.outcome:
        case Ending.NOT_OPENED:
            return f"{end_name(c, c.a)} sent a SYN and nobody answered it."
        case Ending.REFUSED:
            return f"{end_name(c, c.b)} refused the connection."
        case Ending.OPEN:
            return "No FIN and no RST: neither end has closed in this capture." if c.packets else ""
        case Ending.UNSEEN:
            return (
                "No FIN and no RST is in this capture. It began after the connection did: it does "
                "not show whether an end had closed before."
            )
        case Ending.RESET:
            return _reset(c)
        case Ending.ONE_SIDED:
            return _one_sided(c)
        case Ending.IN_ORDER:
            return _in_order(first, second, name, other)
        case Ending.UNANSWERED:
            return _unanswered(first, name)
        case Ending.HALF_CLOSED:
            done = f"{name} is done" if first.fins else f"{name} had closed its side before the capture began"
            sent = f" and went on sending ({second.late_bytes} bytes)" if second.late_bytes else ""
            return f"Half closed: {done}, {other} acknowledged it{sent}; a FIN of its own has not come."
        case Ending.HALF_OR_CLOSED:
            return (
                f"{name} sent a FIN and {other} acknowledged it. The capture does not show whether "
                f"{other} had closed before it began."
            )
        case Ending.LAST_UNANSWERED:
            return _last_unanswered(first, second, name, other)
        case Ending.UNHEARD:
            return _unheard(c)


def _times(side: Side) -> str:
    return f" ({side.fins} times)" if side.fins > 1 else ""


def _in_order(first: Side, second: Side, name: str, other: str) -> str:
    if not second.fins:
        return (
            "Closed in order before the capture began."
            if not first.fins
            else f"Closed in order: {name} last."
        )
    if not first.fins:
        return f"Closed in order: {name} before the capture began, {other} during it."
    both = first.facts.first and second.facts.first
    together = ", both at once" if both else ""
    return f"Closed in order{together}: {name} first, {other} {_span(second.fin_ns - first.fin_ns)} later."


def _unanswered(first: Side, name: str) -> str:
    if not first.fins:
        return f"{name} has closed ({first.kernel or first.began}, says its kernel), and no FIN is in the capture."
    text = f"{name} sent a FIN{_times(first)} and nobody acknowledged it."
    return f"{text} It has stopped sending it and gave up." if first.stopped else text


def _last_unanswered(first: Side, second: Side, name: str, other: str) -> str:
    if second.facts.acked is not True:
        if second.fins:
            text = f"{other} answered the FIN with its own{_times(second)}; that FIN was not acknowledged."
            return f"{text} It has stopped sending it and gave up." if second.stopped else text
        return (
            f"{other} answered the FIN with its own before the capture began; that FIN is not acknowledged."
        )
    return f"{name} sent the first FIN{_times(first)}; it was not acknowledged, although {other} closed too."


def _unheard(c: Closing) -> str:
    sentences = []
    both = c.a.facts.sent and c.b.facts.sent
    if both:
        sentences.append("Both ends have closed.")
    for side, peer in ((c.a, c.b), (c.b, c.a)):
        if not side.acked_ns or not (side.unheard or side.facts.acked is False):
            continue
        name, other = end_name(c, side), end_name(c, peer)
        again = (
            f"{name} sent its FIN again {_count(side.unheard)} after {other} had acknowledged it: "
            if side.unheard
            else f"{other} acknowledged the FIN of {name}: "
        )
        if side.kernel in _RETRANSMITTING:
            sentences.append(f"{again}the ACK does not reach it; its kernel still says {side.kernel}.")
        elif side.facts.acked:
            sentences.append(f"{again}these ACKs did not reach it. Then it stopped.")
        elif side.facts.acked is None:
            sentences.append(f"{again}the ACK did not reach it, or the two crossed on the way.")
        else:
            sentences.append(f"{again}the ACK does not reach it.")
        if not both and peer.facts.sent is False:
            sentences.append(f"No FIN from {other} has come.")
    return " ".join(sentences)


def _count(n: int) -> str:
    return "once" if n == 1 else f"{n} times"


def _one_sided(c: Closing) -> str:
    shown, hidden = (c.a, c.b) if c.a.packets else (c.b, c.a)
    name, other = end_name(c, shown), end_name(c, hidden)
    text = f"{name} sent its FIN{_times(shown)}." if shown.fins else ""
    if not hidden.packets:
        return (
            f"Only packets from {name} are in this capture: what {other} sent is not known. {text}".rstrip()
        )
    return f"{text} This capture does not show whether it was acknowledged.".lstrip()


def _reset(c: Closing) -> str:
    assert c.reset is not None
    end, rest = (c.a, c.b) if c.reset.from_a else (c.b, c.a)
    before = "after its own FIN" if end.facts.sent else "without a FIN of its own"
    if rest.fins and rest.fin_ns <= c.reset.time_ns:
        before += ", in answer to the other end's closing"
    elif c.reset.answers and not rest.fins:
        before += ": nobody reads data for it there any more"
    unsure = ""
    if c.reset.standing is ResetStanding.UNKNOWN and not rest.kernel:
        unsure = " Whether the number of the RST was in the window cannot be checked with this capture."
    return f"{end_name(c, end)} reset the connection {before}.{unsure}"


def _ignored(c: Closing) -> list[str]:
    return [f"A RST from {end_name(c, c.a if reset.from_a else c.b)} {_why(reset)}." for reset in c.ignored]


def _why(reset: Reset) -> str:
    if reset.late:
        return "came after both ends had closed and ended nothing"
    if reset.standing is ResetStanding.OUTSIDE:
        return "was outside the window and ended nothing"
    if reset.standing is ResetStanding.WINDOW:
        return "did not have the expected number: kernels answer it with a challenge ACK and go on"
    return "did not end it: the connection went on"


def _window(c: Closing) -> list[str]:
    sentences = []
    for side, peer in ((c.a, c.b), (c.b, c.a)):
        if peer.window_closed and not peer.facts.sent and c.reset is None and side.fins == 0:
            waits = ", also a FIN," if side.facts.acked is not True else ""
            sentences.append(
                f"The receive window of {end_name(c, peer)} is 0: what {end_name(c, side)} still has to "
                f"send{waits} waits."
            )
    return sentences
