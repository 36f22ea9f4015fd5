"""not-told: what was read does not say what decides about it; one command would.

Seen as       Rows of a pasted text (`finwait read`) that lack a column: FIN_WAIT1, FIN_WAIT2,
              CLOSING or LAST_ACK without inode or PID; a connection that may still wait for
              accept(); a closing or opening connection whose timer is not shown; CLOSE_WAIT whose
              receive queue is not shown. A look at the running machine has none.
Why it stays  Unknown: held by a process, and left to itself by one, look alike here. One ends when
              a program acts, the other by a timer.
Not this      A row whose PID column names a process: it is held. A timewait timer, or inode 0: an
              orphan. TIME_WAIT is always on its way out.
What ends it  What ends the pattern that it is. The finding names the command that shows which.
Won't help    Choosing a cure before that is known: those of held connections and of orphans are
              different ones.
Reproduce     `netstat -tan | finwait read -` while a connection is in FIN_WAIT2
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from finwait.diagnosis.finding import Advice, Confidence, Evidence, Remedy, Turn
from finwait.diagnosis.rule import Case, Clue, Rule
from finwait.diagnosis.rules import by_namespace, certain
from finwait.diagnosis.view import View
from finwait.errors import Gap
from finwait.uapi import tcp
from finwait.uapi.sets import distinct

__all__ = ["RULE", "command", "match"]

_SILENT = (tcp.ESTABLISHED, tcp.LISTEN, tcp.BOUND_INACTIVE)
"""Open connections need no explanation: that they are not judged is a gap."""
_OPENING = (tcp.SYN_SENT, tcp.SYN_RECV, tcp.NEW_SYN_RECV)


def match(view: View) -> NDArray[np.bool_]:
    """Return which rows want an explanation and lack what decides which."""
    return view.undecided & ~np.isin(view.sockets.state, _SILENT)


def _opening(view: View) -> NDArray[np.bool_]:
    return np.isin(view.sockets.state, _OPENING)


def _queued_or_held(view: View) -> NDArray[np.bool_]:
    return (view.sockets.state == tcp.CLOSE_WAIT) & view.held_untold


def _unread(view: View) -> NDArray[np.bool_]:
    return (view.sockets.state == tcp.CLOSE_WAIT) & view.held


def _orphan(view: View) -> NDArray[np.bool_]:
    """Return which rows nobody holds: they end by a timer that is not shown."""
    return ~view.held & ~view.held_untold & ~_opening(view)


def _held(view: View) -> NDArray[np.bool_]:
    return view.held


def command(states: list[int]) -> str:
    """Return the command that shows what decides, of connections in some states."""
    names = [tcp.ss_name(state).lower() for state in states]
    names = ["syn-recv" if name == "new-syn-recv" else name for name in names]
    return "ss -tanoe" + "".join(f" state {name}" for name in dict.fromkeys(names))


def _remedies(view: View, rows: NDArray[np.int64]) -> tuple[Remedy, ...]:
    words = command(distinct(view.sockets.state[rows]).tolist())
    return (Remedy(f"run `{words}` there, and paste what it prints; it shows what decides", "read-only"),)


def _confidence(view: View, rows: NDArray[np.int64]) -> Confidence:  # noqa: ARG001
    return certain("the column that decides is not in what was read")


def _observe(view: View, rows: NDArray[np.int64]) -> tuple[Evidence, ...]:
    """Return which of the columns that decide are missing."""
    s = view.sockets
    missing = [
        text
        for name, text in (("inode", "inode"), ("timer", "timer"), ("rqueue", "receive queue"))
        if not s.present(name)[rows].all()
    ]
    return (Evidence("not told", ", ".join(missing), "the text", "without it the cause cannot be told"),)


def _unjudged(view: View) -> list[Gap]:
    """Return a gap for open connections and for those that are reported: neither is known to be well."""
    waiting = match(view)
    open_ = view.undecided & (view.sockets.state == tcp.ESTABLISHED)
    states = distinct(view.sockets.state[waiting]).tolist()
    doors = view.undecided & (view.sockets.state == tcp.LISTEN) & (view.sockets.rqueue > 0)
    gaps = by_namespace(
        view,
        doors,
        lambda n: (
            f"tell whether the accept queue{'s' * (n > 1)} of {n} listener{'s are' if n > 1 else ' is'} full"
        ),
        "the output of `ss -tln`",
    )
    gaps += by_namespace(
        view,
        waiting,
        lambda n: f"tell why {n} connection{'s do' if n > 1 else ' does'} not finish closing, or opening",
        f"the output of `{command(states)}`" if states else "",
    )
    return gaps + by_namespace(
        view,
        open_,
        lambda n: f"judge {n} open connection{'s' * (n > 1)}: what was read has too few columns",
        "the output of `ss -tanoei state established`",
    )


_CLUES = (
    Clue("state", "the state that was read"),
    Clue("rqueue", "bytes that the program has not read; a FIN counts as 1"),
    Clue("wqueue", "bytes that the peer has not acknowledged; a FIN counts as 1"),
    Clue("timer", "1 retransmission, 2 keepalive or FIN, 4 probe"),
)
_ENDS = (Remedy("run `ss -tanoe` there, and paste what it prints; it shows what decides", "read-only"),)
_DOES_NOT = (
    Advice(
        "choose a cure now",
        "what ends a connection that a process holds does nothing to one that nobody holds, and the reverse",
    ),
)


def _case(title: str, rows: object, turn: Turn) -> Case:
    assert callable(rows)
    return Case(title=title, rows=rows, clues=_CLUES, ends=_ENDS, does_not=_DOES_NOT, turn=turn)


RULE = Rule(
    name="not-told",
    title="closing; what was read does not say whether a process still holds it",
    severity="notice",
    rank=990,
    harm="stall",
    turn=Turn("unknown"),
    means=None,
    beyond_sysctls="what it waits for is not told, so no setting is known to act on it",
    claims=("C0",),
    clues=_CLUES,
    ends=_ENDS,
    does_not=_DOES_NOT,
    confidence=_confidence,
    match=match,
    observe=_observe,
    remedies=_remedies,
    unjudged=_unjudged,
    untold=True,
    rest=True,
    cases=(
        _case("opening; what was read does not say how often it has tried", _opening, Turn("unknown")),
        _case(
            "the peer has closed; held by a program, or still waiting for accept(): that is not told",
            _queued_or_held,
            Turn("unknown"),
        ),
        _case("the peer has closed; whether the program has read that is not told", _unread, Turn("unknown")),
        _case(
            "closed by its program; what was read does not show the timer that ends it",
            _orphan,
            Turn("unknown"),
        ),
        _case("held and closing; what was read does not show which timer runs", _held, Turn("unknown")),
    ),
)
