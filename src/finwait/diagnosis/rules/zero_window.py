"""zero-window: the peer answers, and has no room: what we have to say never gets out, the FIN neither.

Seen as       timer 4 (window probes) and snd_wnd 0, with bytes waiting; in FIN_WAIT1 the FIN was never sent.
              Of ESTABLISHED connections only those that were probed three times and more. Between two looks
              nothing was acknowledged, and the other end, where it is here, read nothing.
Why it stays  The peer's program stopped reading and its receive window closed. Probes are answered, so nothing
              is ever given up on a held socket. An orphan is given up, by default after about 329 s.
              Where probes go unanswered (retrans 2 or more, which counts them under timer 4), the peer or the path is
              gone as well, and tcp_retries2 (an orphan: tcp_orphan_retries) is a count that ends it.
Not this      timer 1: no answers at all (data-unanswered, fin-unanswered-*). A peer that reads slowly: its window is
              closed most of the time, and opens again and again. One look with few probes cannot tell it from one
              that stopped; `--for 5s` can.
What ends it  The peer reading again; TCP_USER_TIMEOUT; SOCK_DESTROY.
What does not tcp_retries2 while probes are answered (each answer starts it anew; lower only makes more probes);
              keepalive.
Reproduce     finwait lab run zero-window
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from finwait.diagnosis import forecast
from finwait.diagnosis.finding import Advice, Confidence, Evidence, Remedy, Severity
from finwait.diagnosis.rule import Case, Clue, Rule
from finwait.diagnosis.rules import RECENT_MS, certain, destroy, likely, look_again, orphans, possible
from finwait.diagnosis.rules.data_unanswered import NOT_KEEPALIVE_IN_FLIGHT
from finwait.diagnosis.rules.fin_unanswered_orphan import NOT_FIN_TIMEOUT_HERE
from finwait.diagnosis.view import View
from finwait.uapi import tcp

__all__ = ["RULE", "match"]

_PROBING = 4
"""``idiag_timer``: window probes."""
PROBES = 3
"""So many doublings of the probe timer mean seconds without room, not a hiccup: data that is acknowledged ends them."""


def match(view: View) -> NDArray[np.bool_]:
    """Return which rows this rule explains."""
    s = view.sockets
    closing = view.in_state(tcp.FIN_WAIT1, tcp.CLOSE_WAIT, tcp.LAST_ACK, tcp.CLOSING)
    # Where the kernel does not tell the window, it probes it all the same.
    blocked = (s.timer == 4) & ((s.snd_wnd == 0) | ~s.present("snd_wnd")) & (s.wqueue > 0)
    # An open connection may meet a closed window for a moment: that is flow control, not a fault.
    long = view.in_state(tcp.ESTABLISHED) & (_long(view) | ~s.present("backoff"))
    return (closing | long) & blocked & ~view.sent & ~_read_there(view)


def _long(view: View) -> NDArray[np.bool_]:
    """Return which rows have probed often without a byte being taken."""
    long: NDArray[np.bool_] = view.sockets.backoff >= PROBES
    return long


def _unanswered(view: View) -> NDArray[np.bool_]:
    """Return rows whose last probes nobody answered: under timer 4 `retrans` counts those since the last answer."""
    silent: NDArray[np.bool_] = (view.sockets.timer == _PROBING) & (
        view.sockets.retrans >= view.options.retransmits
    )
    return silent


def _read_there(view: View) -> NDArray[np.bool_]:
    """Return rows whose other end took something out of its queue between two looks: room is being made."""
    return (view.other >= 0) & view.read[np.maximum(view.other, 0)]


def _grade(view: View, rows: NDArray[np.int64]) -> Severity:
    return "notice" if (view.sockets.state[rows] == tcp.ESTABLISHED).all() else "problem"


def _confidence(view: View, rows: NDArray[np.int64]) -> Confidence:
    long = bool(_long(view)[rows].all())
    if _unanswered(view)[rows].all():
        return _silent(view, rows, long)
    if not view.sockets.present("snd_wnd")[rows].all():
        return _guessed(view, rows, long)
    if view.moved_known[rows].all():
        still = f"no byte was acknowledged in {view.watched_ms / 1000:.1f} s of watching, and the window is 0"
        return (
            certain(still)
            if long and view.watched_ms >= RECENT_MS
            else likely(f"{still}; a peer that reads very slowly looks the same")
        )
    if long:
        return likely(
            f"the window is 0 after {PROBES} and more doublings of the probe timer; a peer that reads very slowly "
            "looks the same in a single look, `--for 5s` tells"
        )
    return look_again(
        "the window is 0, but not for long: a peer that reads slowly looks the same; `--for 5s` looks twice and tells"
    )


def _silent(view: View, rows: NDArray[np.int64], long: bool) -> Confidence:
    """Return the confidence where probes go unanswered: a peer answers no more than twice a second."""
    said = f"at least {int(view.sockets.retrans[rows].min())} window probes in a row without answer"
    if long and not view.sockets.present("snd_wnd")[rows].all():
        return likely(
            f"{said}; this kernel does not tell the window (tcpi_snd_wnd, from Linux 5.4), and packets that this "
            "machine drops on their way out look the same"
        )
    if long:
        return certain(said)
    return look_again(f"{said}, in a short time: a peer answers two a second at most; `--for 5s` tells")


def _guessed(view: View, rows: NDArray[np.int64], long: bool) -> Confidence:
    """Return the confidence where the timer alone says that the window is closed."""
    why = "timer 4 probes a window; this kernel does not tell how large it is (tcpi_snd_wnd, from Linux 5.4)"
    still = view.moved_known[rows].all() and view.watched_ms >= RECENT_MS
    if still and long:
        why = f"no byte was acknowledged in {view.watched_ms / 1000:.1f} s of watching; {why}"
    other = view.other[rows]
    if (still or long) and (other >= 0).all() and (view.sockets.rqueue[other] > 0).all():
        return likely(f"{why}; the other end, which is here, leaves bytes unread")
    if still and long:
        return likely(f"{why}; packets that this machine drops on their way out look the same")
    if long:
        return possible(f"{why}; packets that this machine drops on their way out look the same")
    return look_again(f"{why}; a peer that reads slowly looks the same, `--for 5s` looks twice and tells")


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
    Remedy("make the peer's program read, or close it there"),
    Remedy(
        "set TCP_USER_TIMEOUT on the socket (pidfd_getfd, where it is held)",
        "reversible",
        "finwait clear zero-window",
        proofs=("closed-window-limits",),
    ),
    destroy("zero-window"),
)
_TIME = Remedy(
    "time: with the kernel's defaults, while probes go unanswered, it is given up after tcp_retries2 of them "
    f"(about {forecast.span(forecast.zero_window(answered=False))}), an orphan after tcp_orphan_retries "
    f"(about {forecast.span(forecast.zero_window(orphaned=True, answered=False))})",
    "read-only",
    proofs=("closed-window-unanswered",),
)


def _remedies(view: View, rows: NDArray[np.int64]) -> tuple[Remedy, ...]:
    silent = bool(_unanswered(view)[rows].all())
    ends = _ENDS[1:] if silent else _ENDS
    if not silent and view.held[rows].any():
        return ends  # while probes are answered, nothing ends what is held
    proofs = ("closed-window-unanswered",) if silent else ("closed-window-limits",)
    when = f"it ends by itself {forecast.ends_by_itself(view, rows)}"
    return (*ends, Remedy(when, "read-only", proofs=proofs))


_DOES_NOT = (
    Advice(
        "lower `tcp_retries2`",
        "every answered probe starts the count anew; it only makes probes more frequent",
        proofs=("closed-window-unanswered",),
    ),
    NOT_KEEPALIVE_IN_FLIGHT,
)

RULE = Rule(
    name="zero-window",
    title="the peer stopped reading: its window is closed and our FIN cannot get out",
    severity="problem",
    rank=35,
    means="user-timeout",
    beyond_sysctls="each answer to a window probe starts the count again",
    claims=("C12", "X26", "X53"),
    clues=(
        Clue("state", "closing, as far as this end is concerned"),
        Clue("timer", "4: probing a closed window"),
        Clue("snd_wnd", "0: the peer takes nothing"),
        Clue("backoff", "doublings of the probe timer since the peer last took anything"),
        Clue("wqueue", "bytes that wait, the FIN counting 1 behind them"),
        Clue("notsent_bytes", "bytes that were never sent once"),
        Clue(
            "inode",
            "0: an orphan, which settings may bound; else held, and never given up while probes are answered",
        ),
    ),
    ends=_ENDS,
    does_not=(NOT_FIN_TIMEOUT_HERE, *_DOES_NOT),
    confidence=_confidence,
    match=match,
    observe=_observe,
    grade=_grade,
    remedies=_remedies,
    cases=(
        Case(
            title="the peer's window was closed, and now nobody answers the probes: the peer or the path is gone",
            rows=_unanswered,
            clues=(
                Clue("timer", "4: probing a window that was closed"),
                Clue("retrans", "window probes in a row that nobody answered"),
                Clue("snd_wnd", "0: what the peer last said"),
                Clue("backoff", "doublings of the probe timer since the peer last took anything"),
                Clue("wqueue", "bytes that wait, a FIN counting 1 behind them"),
                Clue("last_ack_recv_ms", "since anything was last heard of the peer"),
                Clue("inode", "0: an orphan, bounded by tcp_orphan_retries; else held, by tcp_retries2"),
            ),
            ends=(*_ENDS[1:], _TIME),
            does_not=(
                Advice(
                    "make the peer's program read",
                    "nothing that it does gets here: not even probes are answered",
                ),
                Advice("lower `net.ipv4.tcp_fin_timeout`", "it is about FIN_WAIT2"),
                NOT_KEEPALIVE_IN_FLIGHT,
            ),
        ),
        Case(
            title="the peer stopped reading: its window is closed, and what we send on this open connection waits",
            rows=lambda view: view.in_state(tcp.ESTABLISHED),
            clues=(
                Clue("state", "open: nobody has closed it or shut it down"),
                Clue("timer", "4: probing a closed window"),
                Clue("snd_wnd", "0: the peer takes nothing"),
                Clue("backoff", "doublings of the probe timer since the peer last took anything"),
                Clue("wqueue", "bytes that wait"),
                Clue("notsent_bytes", "bytes that were never sent once"),
            ),
            ends=_ENDS,
            does_not=(
                Advice("lower `net.ipv4.tcp_fin_timeout`", "it is about FIN_WAIT2; this connection is open"),
                *_DOES_NOT,
            ),
        ),
    ),
)
