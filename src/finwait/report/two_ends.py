"""Both ends of the connections of a group, as a picture is made of them: who holds each, which timers run, who waits.

One picture for each of the states that most of the group are in. What passed between the two follows from the state
alone: in FIN_WAIT2 our FIN is acknowledged and the peer's has not come (RFC 9293, 3.3.2). Whether a FIN that is not
acknowledged was sent does not: it may wait behind data.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final, Literal

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from finwait.diagnosis.finding import Finding
from finwait.report.columns import Cells
from finwait.report.detail import comms
from finwait.report.overview import holder
from finwait.report.waiting import waiting_text
from finwait.table.units import duration_text
from finwait.uapi import tcp

if TYPE_CHECKING:
    from finwait.diagnosis.view import View

__all__ = ["EndShown", "FinShown", "TwoEnds", "two_ends"]

_MOST_STATES: Final = 2
_MOST_LINES: Final = 2
_SAMPLE: Final = 20_000
"""Connections of a group that are looked at for its pictures: the first ones."""

Passed = Literal["acknowledged", "open", "none"]


class FinShown(Struct, frozen=True):
    """What is known of the FIN of one end."""

    passed: Passed
    """Acknowledged; not acknowledged, or not all of what was asked for; not there."""
    label: str


class EndShown(Struct, frozen=True):
    """One end."""

    title: str
    state: str
    """Empty where it is not known."""
    lines: tuple[tuple[str, str], ...]
    """What is known of it: label and text."""
    moves: bool
    """Whether it is the move of the program at this end; one that has sent its FIN has made it."""


class TwoEnds(Struct, frozen=True):
    """The two ends of the connections of a group that are in one state."""

    count: int
    of: int
    """Connections of the whole group."""
    here: EndShown
    there: EndShown
    ours: FinShown
    theirs: FinShown

    def sentence(self) -> str:
        """Return the picture in a sentence."""
        peer = f"{self.there.title}{', ' + self.there.state if self.there.state else ''}"
        return f"{self.here.title}, {self.here.state}: {self.ours.label}. {peer}: {self.theirs.label}."


_NO_FIN: Final = FinShown("none", "no FIN from this end")
_NO_FIN_BACK: Final = FinShown("none", "no FIN from the other end")
_FINS: Final[dict[int, tuple[FinShown, FinShown]]] = {
    tcp.ESTABLISHED: (_NO_FIN, _NO_FIN_BACK),
    tcp.FIN_WAIT1: (FinShown("open", "FIN of this end is not acknowledged"), _NO_FIN_BACK),
    tcp.FIN_WAIT2: (FinShown("acknowledged", "FIN of this end is acknowledged"), _NO_FIN_BACK),
    tcp.CLOSE_WAIT: (_NO_FIN, FinShown("acknowledged", "FIN of the other end came")),
    tcp.LAST_ACK: (
        FinShown("open", "FIN of this end is not acknowledged"),
        FinShown("acknowledged", "FIN of the other end came"),
    ),
    tcp.CLOSING: (
        FinShown("open", "FIN of this end is not acknowledged"),
        FinShown("acknowledged", "FIN of the other end came"),
    ),
    tcp.TIME_WAIT: (
        FinShown("acknowledged", "FIN of this end is acknowledged"),
        FinShown("acknowledged", "FIN of the other end came"),
    ),
}
"""State → what passed from this end, and from the other. Handshakes and listeners have no picture."""


def two_ends(view: View, group: Finding) -> list[TwoEnds]:
    """Return a picture for each of the states that most connections of a group are in; none where they have no ends."""
    if not len(group.rows) or group.counted:
        return []
    states = view.sockets.state[group.rows]
    result: list[TwoEnds] = []
    for state, count in Counter(states.tolist()).most_common():
        if state in _FINS and len(result) < _MOST_STATES:
            rows = group.rows[states == state][:_SAMPLE]
            result.append(_picture(view, group, rows, state, count))
    return result


def _picture(view: View, group: Finding, rows: NDArray[np.int64], state: int, count: int) -> TwoEnds:
    own_fin, peer_fin = _FINS[state]
    return TwoEnds(
        count=count,
        of=len(group.rows),
        here=EndShown(
            "this end",
            tcp.state_name(state),
            tuple(_here(view, group, rows)),
            group.turn.whose == "holder",
        ),
        there=_there(view, rows, moves=group.turn.whose in ("peer", "far") and peer_fin.passed == "none"),
        ours=own_fin,
        theirs=peer_fin,
    )


def _here(view: View, group: Finding, rows: NDArray[np.int64]) -> Iterator[tuple[str, str]]:
    yield "held by", holder(view, group)
    cells = Cells(view, rows)
    yield "address", _addresses(cells.column("local"))
    yield "timer", _timers(view, rows)
    if waits := _waits(view, rows):
        yield "waiting", waits
    for label, name in (("unread", "rqueue"), ("unacknowledged", "wqueue")):
        known = view.sockets.column(name)[rows]
        if (n := int((known > 0).sum())) and int(view.sockets.state[rows[0]]) != tcp.LISTEN:
            more = "" if n == len(rows) else f", on {n:,} of {len(rows):,}"
            yield label, f"up to {int(known.max()):,} bytes{more}"


def _there(view: View, rows: NDArray[np.int64], *, moves: bool) -> EndShown:
    others = view.other[rows]
    known = others[others >= 0]
    peers = Cells(view, rows).column("peer")
    if not len(known):
        lines = [("address", _addresses(peers))]
        if names := Counter(_peer_pods(view, rows)):
            lines.append(("pod", _most(names, "pod", "pods")))
        lines.append(("state", "not known: it was not found on this machine"))
        return EndShown("other end", "", tuple(lines), moves)
    states = Counter(view.sockets.state[known].tolist())
    programs = Counter(comms(view, view.holders.first_pid()[known].tolist()))
    lines = [("held by", _most(_holders(view, known, programs), "holder", "holders"))]
    lines.append(("address", _addresses(peers)))
    lines.append(("timer", _timers(view, known)))
    if waits := _waits(view, known):
        lines.append(("waiting", waits))
    if elsewhere := len(rows) - len(known):
        lines.append(("not found", f"the other ends of {elsewhere:,} of {len(rows):,}"))
    shown = ", ".join(tcp.state_name(s) for s, _ in states.most_common(2))
    return EndShown("other end, on this machine", shown, tuple(lines), moves)


def _holders(view: View, rows: NDArray[np.int64], programs: Counter[str]) -> Counter[str]:
    """Return who holds rows, with the doubt where that is not known."""
    unknown = int(view.holder_unknown[rows].sum())
    nobody = int((~view.held[rows]).sum())
    named = Counter({name: n for name, n in programs.items() if name != "?"})
    if unknown or not view.holders.searched:
        named["not known"] = unknown or len(rows)
    elif nobody:
        named["nobody"] = nobody
    return named or Counter({"no process": len(rows)})


def _peer_pods(view: View, rows: NDArray[np.int64]) -> Iterator[str]:
    for row in rows.tolist():
        peer = view.row_names.peer[row]
        if peer is not None:
            yield peer if isinstance(peer, str) else peer.path


def _most(counted: Counter[str], noun: str, plural: str) -> str:
    """Return the most frequent of some names, and how many others there are."""
    (name, _), *others = counted.most_common()
    if not others:
        return name
    return f"{name} and {len(others):,} other {noun if len(others) == 1 else plural}"


def _addresses(texts: Sequence[str]) -> str:
    return _most(Counter(texts), "address", "addresses")


_TIMERS: Final = {
    0: "none runs",
    1: "retransmission",
    2: "keepalive",
    3: "timewait",
    4: "window probes",
}


def _timers(view: View, rows: NDArray[np.int64]) -> str:
    """Return which timers run, and when they fire."""
    timers, expires = view.sockets.timer[rows], view.sockets.expires_ms[rows]
    parts = []
    for timer, count in Counter(timers.tolist()).most_common():
        text = _TIMERS.get(timer, f"timer {timer}")
        if timer:
            when = expires[timers == timer]
            low, high = duration_text(int(when.min())), duration_text(int(when.max()))
            text += f", fires in {low}" if low == high else f", fires in {low} to {high}"
        parts.append(text if count == len(rows) else f"{text} ({count:,})")
    return "; ".join(parts)


def _waits(view: View, rows: NDArray[np.int64]) -> str:
    """Return who waits for rows; empty where that was not asked, as of what no program holds."""
    inside = np.zeros(len(view), np.bool_)
    inside[rows] = True
    counted: Counter[str] = Counter()
    for wait, of in view.waits.answers:
        if n := int(inside[of].sum()):
            counted[waiting_text(wait)] += n
    texts = [text if n == len(rows) else f"{text} ({n:,})" for text, n in counted.most_common(_MOST_LINES)]
    if (more := len(counted) - len(texts)) > 0:
        texts.append(f"and {more:,} more")
    return "; ".join(texts)
