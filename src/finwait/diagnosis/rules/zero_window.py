"""zero-window: the peer answers but has no room: data cannot get out, and neither can the FIN.

Seen as       timer 4 (window probes) and snd_wnd 0, with bytes waiting; in FIN_WAIT1 the FIN was
              never sent. ESTABLISHED connections count only after three or more probes. Between two
              looks nothing was acknowledged, and the other end, if it is on this machine, read
              nothing. It is a notice until more is proven. It is a problem once the window let
              nothing through for as long as `--idle` says (10 min), or once probes stayed unanswered
              for 3 s. If the other end is on this machine, a single look never makes it a problem:
              its program may read all the time. Two looks 3 s or more apart tell. If that program
              left its bytes unread between them, and this end is closing or `--idle` has passed, it is
              a problem.
Why it stays  The peer's program does not read, or reads slowly, and its receive window is closed.
              The peer answers the probes, so a held socket is never given up. An orphan is given up
              after about 329 s by default. If probes stay unanswered (retrans 2 or more, which
              counts them under timer 4), the peer or the path is gone as well, and tcp_retries2
              (for an orphan: tcp_orphan_retries) is a count that ends it.
Not this      timer 1: no answers at all (data-unanswered, fin-unanswered-*). A peer that reads
              slowly: its kernel opens the window only when a fair part of the buffer is free, so
              the window of a healthy download can stay closed for many seconds, or minutes. Of a
              peer on this machine, two looks show whether its program reads. Of any other peer,
              only the window is known: one that opens within every `--idle` is never a problem
              here, and a peer that stopped reading stays a notice for that long.
What ends it  The peer reads again; TCP_USER_TIMEOUT; SOCK_DESTROY.
Won't help    tcp_retries2 while probes are answered (each answer restarts the count; a lower value
              only makes more probes); keepalive.
Reproduce     finwait lab run zero-window
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from finwait.diagnosis import forecast
from finwait.diagnosis.finding import Advice, Confidence, Evidence, Remedy, Severity, Turn
from finwait.diagnosis.rule import Case, Clue, Rule
from finwait.diagnosis.rules import (
    RECENT_MS,
    UNLESS_SET,
    certain,
    destroy,
    likely,
    look_again,
    orphans,
    possible,
    watched_long,
)
from finwait.diagnosis.rules.fin_unanswered_orphan import NOT_FIN_TIMEOUT_HERE
from finwait.diagnosis.view import PROBING_WINDOW, View
from finwait.table.units import duration_text
from finwait.uapi import tcp

__all__ = ["RULE", "match", "proven"]

PROBES = 3
"""So many doublings of the probe timer mean seconds without room, not a hiccup: data that is acknowledged ends them."""


def match(view: View) -> NDArray[np.bool_]:
    """Return which rows this rule explains."""
    s = view.sockets
    closing = view.in_state(tcp.FIN_WAIT1, tcp.CLOSE_WAIT, tcp.LAST_ACK, tcp.CLOSING)
    # An open connection may meet a closed window for a moment: that is flow control, not a fault.
    long = view.in_state(tcp.ESTABLISHED) & (_long(view) | ~s.present("backoff"))
    return (closing | long) & view.shut_out & ~view.sent & ~view.other_reads


def _long(view: View) -> NDArray[np.bool_]:
    """Return which rows have probed often without a byte being taken."""
    long: NDArray[np.bool_] = view.sockets.backoff >= PROBES
    return long


def _unanswered(view: View) -> NDArray[np.bool_]:
    """Return rows whose last probes nobody answered: under timer 4 `retrans` counts those since the last answer."""
    silent: NDArray[np.bool_] = (view.sockets.timer == PROBING_WINDOW) & (
        view.sockets.retrans >= view.options.retransmits
    )
    return silent


def _shut_ms(view: View, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return for how long at least the windows of some rows have let nothing through.

    Where the window is 0 and data waits, it let nothing through since data was last sent. This holds whatever
    tcp_retries2 makes of the doublings. Where the kernel does not tell the window, the doublings of the timer have to
    tell it: what this machine itself refuses to send counts as sent.

    That is the peer's kernel, not its program: the window stays shut until a fair part of the buffer is free.
    """
    s = view.sockets
    still = np.where(view.moved_known, view.watched_ms, 0)[rows]
    sent = np.where(s.present("last_data_sent_ms"), s.last_data_sent_ms, -1)[rows].astype(np.int64)
    reported = s.present("snd_wnd")[rows]
    out: NDArray[np.int64] = np.maximum(still, np.where(reported, sent, 0))
    # No more can be proven by doublings than the clock says.
    for k in np.flatnonzero((sent < 0) | (~reported & (sent > out))).tolist():
        out[k] = max(int(out[k]), forecast.probed_ms(view, int(rows[k]), unanswered=False))
    return out


def _gone(view: View, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return which of some rows have sent window probes for three seconds and more that nobody answered."""
    s = view.sockets
    heard = np.where(s.present("last_ack_recv_ms"), s.last_ack_recv_ms, RECENT_MS)[rows]
    out = _unanswered(view)[rows] & (heard >= RECENT_MS)
    for k in np.flatnonzero(out).tolist():
        out[k] = forecast.probed_ms(view, int(rows[k]), unanswered=True) >= RECENT_MS
    return out


def _left_there(view: View, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return which of some rows have an other end here whose program left its bytes unread between two looks."""
    other = np.maximum(view.other, 0)
    watched = watched_long(view) & view.moved_known[other]
    unread: NDArray[np.bool_] = (
        (view.other >= 0) & watched & (view.sockets.rqueue[other] > 0) & ~view.read[other]
    )
    unread &= ~view.perhaps_paused[other]  # a relay whose own client is slow
    return unread[rows]


def proven(view: View, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return which of some rows are stuck: nobody answers, or the window has been shut for as long as is idle.

    A program that reads nothing for a while (a pager, a paused download), or slowly, is flow control. Where the
    program that does not read is here to be seen, it has to be seen: a shut window alone proves nothing of it. Then
    some seconds are enough of what is closing.
    """
    closing = view.sockets.state[rows] != tcp.ESTABLISHED
    idle = ~_unanswered(view)[rows] & (_shut_ms(view, rows) >= view.options.idle_ms)
    elsewhere = view.other[rows] < 0
    return _gone(view, rows) | (idle & elsewhere) | ((closing | idle) & _left_there(view, rows))


def settled(view: View, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return which of some rows are so surely stuck that they may be ended without a word.

    Some seconds show that a program here does not read; that it reads again later, as a slow reader does, they do not
    rule out. Being stopped does, and so does a window that was shut for as long as is idle.
    """
    stopped = (view.other >= 0) & view.halted[np.maximum(view.other, 0)]
    idle = _shut_ms(view, rows) >= view.options.idle_ms
    return _gone(view, rows) | (proven(view, rows) & (idle | stopped[rows]))


def _suspect(view: View, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return which of some rows have an other end here with unread bytes: a second look settles it.

    Of those that are open only once they are idle: until then a second look settles nothing.
    """
    unread_there = (view.other >= 0) & (view.sockets.rqueue[np.maximum(view.other, 0)] > 0)
    closing = view.sockets.state != tcp.ESTABLISHED
    suspect: NDArray[np.bool_] = (unread_there & ~_unanswered(view))[rows]
    return suspect & (closing[rows] | (_shut_ms(view, rows) >= view.options.idle_ms))


def _strength(view: View, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return how much some rows show: 2 that they are stuck, 1 that a second look will tell, 0 for neither."""
    return np.where(proven(view, rows), 2, _suspect(view, rows)).astype(np.int64)


def _grade(view: View, rows: NDArray[np.int64]) -> Severity:
    return "problem" if proven(view, rows).all() else "notice"


def _confidence(view: View, rows: NDArray[np.int64]) -> Confidence:
    stuck = bool(proven(view, rows).all())
    if _unanswered(view)[rows].all():
        return _silent(view, rows, stuck)
    if not view.sockets.present("snd_wnd")[rows].all():
        return _guessed(view, rows, stuck)
    if stuck and (view.other[rows] < 0).all():
        return likely(f"{_shut_for(view, rows)}; a program that reads very slowly looks the same")
    if stuck and _left_there(view, rows).all():
        return likely(f"the window is 0; {_unread_there(view)}")
    if stuck:
        return likely(
            f"the window is 0 and let nothing through for {duration_text(view.options.idle_ms)}, or the program "
            f"behind it, on this machine, read nothing in {view.watched_ms / 1000:.1f} s of watching"
        )
    slow = "a peer that reads slowly looks the same, and its window may stay closed for minutes"
    if not _may_settle(view, rows):
        return possible(f"{_shut_for(view, rows)}; {slow}")
    if _suspect(view, rows).all():
        unread = "the program behind it, on this machine, has unread bytes, and may be reading them"
        return look_again(f"{_shut_for(view, rows)}; {unread}; check with `--for 5s`")
    shut = _shut_for(view, rows) if _long(view)[rows].all() else "the window is 0, but only for a short time"
    return look_again(f"{shut}; {slow}; check with `--for 5s`")


def _shut_for(view: View, rows: NDArray[np.int64]) -> str:
    return f"the window is 0 and let nothing through for {duration_text(int(_shut_ms(view, rows).min()))}"


def _may_settle(view: View, rows: NDArray[np.int64]) -> bool:
    """Return whether a second look some seconds later may tell more of some rows than this one."""
    if view.watched_ms >= RECENT_MS:
        return False
    return bool((view.other[rows] >= 0).any() or not _long(view)[rows].all())


def _unread_there(view: View) -> str:
    return (
        f"the other end, on this machine, read none of the bytes in its queue in {view.watched_ms / 1000:.1f} s "
        "of watching; a program that reads again later looks the same"
    )


def _silent(view: View, rows: NDArray[np.int64], stuck: bool) -> Confidence:
    """Return the confidence where probes go unanswered: a peer answers no more than twice a second."""
    reason = f"at least {int(view.sockets.retrans[rows].min())} window probes in a row without an answer"
    if stuck and not view.sockets.present("snd_wnd")[rows].all():
        return likely(
            f"{reason}; the window is not known (tcpi_snd_wnd, from Linux 5.4), and packets that "
            "this machine drops on their way out look the same"
        )
    if stuck:
        return certain(reason)
    return look_again(
        f"{reason}, but in a short time; a peer answers at most two probes a second, check with `--for 5s`"
    )


def _guessed(view: View, rows: NDArray[np.int64], stuck: bool) -> Confidence:
    """Return the confidence where the timer alone says that the window is closed."""
    why = "timer 4 probes a window; its size is not known (tcpi_snd_wnd, from Linux 5.4)"
    if stuck and _left_there(view, rows).all():
        return likely(f"{why}; {_unread_there(view)}")
    if stuck:
        shut = duration_text(int(_shut_ms(view, rows).min()))
        return likely(
            f"nothing got through for {shut}; {why}; packets that this machine drops on their way out look the same"
        )
    slow = "a peer that reads slowly, and packets that this machine drops on their way out, look the same"
    if _may_settle(view, rows):
        return look_again(f"{why}; {slow}; check with `--for 5s`")
    return possible(f"{why}; {slow}")


def _observe(view: View, rows: NDArray[np.int64]) -> tuple[Evidence, ...]:
    other = view.other[rows]
    other = other[other >= 0]
    if not len(other):
        return orphans(view, rows)
    return (
        *orphans(view, rows),
        Evidence(
            "other end's rqueue",
            f"{int(view.sockets.rqueue[other].min())}…{int(view.sockets.rqueue[other].max())} B",
            "inet_diag_msg.idiag_rqueue of the other end",
            "bytes that the peer's program has not read",
        ),
    )


_ENDS = (
    Remedy("make the peer's program read, or close the connection there"),
    Remedy(
        "set TCP_USER_TIMEOUT on the socket (pidfd_getfd, if a process holds it)",
        "reversible",
        "finwait clear zero-window",
        proofs=("closed-window-limits",),
        descriptor=True,
    ),
    destroy("zero-window"),
)
_SLOW = (
    Remedy("make the peer's program read, or close the connection there"),
    Remedy("wait and look again: if the peer reads slowly, it takes more data within minutes", "read-only"),
    Remedy(
        "set a TCP_USER_TIMEOUT that is longer than the pauses of the slowest reader (pidfd_getfd, if a process holds "
        "it)",
        "reversible",
        proofs=("closed-window-limits",),
        descriptor=True,
    ),
    Remedy(
        "destroy this end (SOCK_DESTROY) only if nobody waits for the rest of the data; a slow reader loses it",
        "destructive",
        "finwait clear --override slow-reader --with destroy zero-window",
        proofs=("destroyed",),
    ),
)
"""Of what is not proven to be stuck."""
_TIME = Remedy(
    "wait: with the kernel's defaults, while probes stay unanswered, it is given up after tcp_retries2 of "
    f"them (about {forecast.span(forecast.zero_window(answered=False))}), an orphan after tcp_orphan_retries "
    f"(about {forecast.span(forecast.zero_window(orphaned=True, answered=False))})",
    "read-only",
    proofs=("closed-window-unanswered",),
)


def _remedies(view: View, rows: NDArray[np.int64]) -> tuple[Remedy, ...]:
    silent = bool(_unanswered(view)[rows].all())
    ends: tuple[Remedy, ...] = _ENDS if settled(view, rows).all() else _SLOW
    if silent:
        ends = ends[1:]
    if not silent and view.held[rows].any():
        return ends  # while probes are answered, nothing ends what is held
    proofs = ("closed-window-unanswered",) if silent else ("closed-window-limits",)
    when = f"{forecast.ends_by_itself(view, rows)}, {UNLESS_SET}"
    return (*ends, Remedy(when, "read-only", proofs=proofs))


_NOT_KEEPALIVE = Advice(
    "turn on keepalive now",
    "it does not run while data waits; the timer of window probes is running instead",
    proofs=("closed-window",),
)
_DOES_NOT = (
    Advice(
        "lower `tcp_retries2`",
        "every answered probe restarts the count; a lower value only makes probes more frequent",
        proofs=("closed-window-unanswered",),
    ),
    _NOT_KEEPALIVE,
)

RULE = Rule(
    name="zero-window",
    title="the peer's window is closed; data waits until it reads, and our FIN cannot get out",
    severity="problem",
    rank=35,
    harm="stall",
    turn=Turn("peer", "read"),
    means="user-timeout",
    beyond_sysctls="each answer to a window probe restarts the count",
    claims=("C12", "X26", "X53"),
    clues=(
        Clue("state", "closing, as far as this end is concerned"),
        Clue("timer", "4: probing a closed window"),
        Clue("snd_wnd", "0: the peer has no room"),
        Clue("backoff", "how often the probe timer was doubled since the window was last open"),
        Clue("last_data_sent_ms", "time since data was last sent; the window let nothing through since"),
        Clue("wqueue", "bytes waiting; the FIN behind them counts as 1"),
        Clue("notsent_bytes", "bytes that were never sent"),
        Clue(
            "inode",
            "0: an orphan, which settings can limit; else held, and never given up while probes are answered",
        ),
    ),
    ends=_ENDS,
    does_not=(NOT_FIN_TIMEOUT_HERE, *_DOES_NOT),
    confidence=_confidence,
    match=match,
    observe=_observe,
    grade=_grade,
    proven=_strength,
    remedies=_remedies,
    cases=(
        Case(
            title="the peer's window was closed, and now nobody answers the probes; the peer or the path is gone",
            turn=Turn("far", "answer"),
            rows=_unanswered,
            clues=(
                Clue("timer", "4: probing a window that was closed"),
                Clue("retrans", "unanswered window probes in a row"),
                Clue("snd_wnd", "0: the window that the peer last announced"),
                Clue("backoff", "how often the probe timer was doubled since the window was last open"),
                Clue("wqueue", "bytes waiting; a FIN behind them counts as 1"),
                Clue("last_ack_recv_ms", "time since anything was last heard from the peer"),
                Clue(
                    "inode", "0: an orphan, limited by tcp_orphan_retries; else held, limited by tcp_retries2"
                ),
            ),
            ends=(*_ENDS[1:], _TIME),
            does_not=(
                Advice(
                    "make the peer's program read",
                    "even probes get no answer, so nothing it does reaches this end",
                ),
                Advice("lower `net.ipv4.tcp_fin_timeout`", "it applies to FIN_WAIT2"),
                _NOT_KEEPALIVE,
            ),
        ),
        Case(
            title="the peer's window is closed; data on this open connection waits until it reads",
            rows=lambda view: view.in_state(tcp.ESTABLISHED),
            clues=(
                Clue("state", "open; nobody has closed it or shut it down"),
                Clue("timer", "4: probing a closed window"),
                Clue("snd_wnd", "0: the peer has no room"),
                Clue("backoff", "how often the probe timer was doubled since the window was last open"),
                Clue(
                    "last_data_sent_ms", "time since data was last sent; the window let nothing through since"
                ),
                Clue("wqueue", "bytes waiting"),
                Clue("notsent_bytes", "bytes that were never sent"),
            ),
            ends=_ENDS,
            does_not=(
                Advice(
                    "lower `net.ipv4.tcp_fin_timeout`", "it applies to FIN_WAIT2; this connection is open"
                ),
                *_DOES_NOT,
            ),
        ),
    ),
)
