"""fin-wait2-held: our FIN is acknowledged, and a process keeps the socket.

Seen as       FIN_WAIT2 with an inode; sending is shut (shutdown bits 2), and no timer is running
              (or keepalive).
Why it stays  A program called shutdown(SHUT_WR), which sent a FIN, and waits for the peer to finish
              too. The peer does not. tcp_fin_timeout starts when the last descriptor is closed.
              Nobody has closed anything here, so it never starts. RFC 9293 allows this state to
              last for ever: the socket can still receive. With bytes in its own receive queue
              (rqueue above 0) the cause is on this side: the program does not read, and a FIN that
              the peer has sent may wait behind data for which there is no room (the other end is
              then in LAST_ACK, on the window probe timer).
Not this      inode 0: an orphan (timer 3), which the kernel ends by itself. Bytes still arriving and
              being read: a streaming half-close (fin-wait2-streaming), which is healthy. A relay
              that waits for room to send on its other leg, where a client is slow, may leave this
              leg unread meanwhile: that is a notice until nothing has passed for --idle (10 minutes).
What ends it  The peer's FIN; close() by the owner (tcp_fin_timeout then applies); SOCK_DESTROY. If
              this program does not read: reading, or closing here; closing at the other end does
              nothing more.
Won't help    A lower tcp_fin_timeout; keepalive while the peer is alive; TCP_USER_TIMEOUT (nothing
              is in flight).
Reproduce     finwait lab run fin-wait2-held
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from finwait.diagnosis.activity import streaming, unattended
from finwait.diagnosis.finding import Advice, Confidence, Evidence, Remedy, Severity, Turn
from finwait.diagnosis.rule import Case, Clue, Rule
from finwait.diagnosis.rules import (
    CLOSE_AT_PEER,
    LONG_WORK,
    NOT_CONNTRACK,
    NOT_FIN_TIMEOUT,
    NOT_KEEPALIVE_ALIVE,
    NOT_USER_TIMEOUT_IDLE,
    PREVENT_SILENCE,
    RECENT_MS,
    certain,
    destroy,
    just_received,
    likely,
    look_again,
    may_answer,
    paused_relay,
    peer_missing,
    peer_unseen,
    possible,
    probe,
    silence,
    watched_long,
)
from finwait.diagnosis.view import PROBING_WINDOW, View
from finwait.uapi import tcp

__all__ = ["RULE", "match"]

"""``idiag_timer``: a closed window is being probed."""
_CLOSED = (tcp.FIN_WAIT1, tcp.LAST_ACK, tcp.CLOSING)
"""States of an end whose program has closed and whose FIN is not acknowledged."""


def match(view: View) -> NDArray[np.bool_]:
    """Return which rows this rule explains."""
    return view.in_state(tcp.FIN_WAIT2) & view.held & (view.sockets.shutdown != 3) & ~streaming(view)


def _unread(view: View) -> NDArray[np.bool_]:
    """Return rows whose own program leaves bytes in the queue, so that a FIN of the peer's may wait behind them."""
    s = view.sockets
    other = np.maximum(view.other, 0)
    # An other end in CLOSE_WAIT has not closed either, unless what it sent first has no room here.
    owes = (view.other >= 0) & (s.state[other] == tcp.CLOSE_WAIT) & (s.timer[other] != PROBING_WINDOW)
    return (s.rqueue > 0) & (~owes | view.ignored)


def _quiet(view: View) -> NDArray[np.int64]:
    """Return how long no data has passed, in ms; −1 where that is not known."""
    return silence(view, "last_data_sent_ms", "last_data_recv_ms")


def _not_arriving(view: View) -> NDArray[np.bool_]:
    """Return rows whose peer has closed, is here, and whose FIN has not come although nothing is unread."""
    closed = np.isin(view.sockets.state[np.maximum(view.other, 0)], _CLOSED)
    return (view.other >= 0) & closed & (view.sockets.rqueue == 0)


def _paused(view: View, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return which of some rows wait for a program that may itself be waiting to send: their peer's, or theirs."""
    other = view.other[rows]
    paused: NDArray[np.bool_] = (other >= 0) & view.perhaps_paused[np.maximum(other, 0)]
    return paused | (_unread(view) & view.perhaps_paused)[rows]


def _grade(view: View, rows: NDArray[np.int64]) -> Severity:
    return "notice" if (_paused(view, rows) | _perhaps_ignored(view)[rows]).all() else "problem"


def _perhaps_ignored(view: View) -> NDArray[np.bool_]:
    """Return rows that receive what nobody has read, where it is not known whether somebody waits for more of it."""
    return view.ignored & ~view.halted & ~unattended(view, view.ignored)


def _confidence(view: View, rows: NDArray[np.int64]) -> Confidence:
    if _paused(view, rows).all():
        own = (_unread(view) & view.perhaps_paused)[rows].all()
        return paused_relay(view, "its program" if own else "the program at its other end")
    s = view.sockets
    watched = watched_long(view)[rows].all()
    seconds = f"{view.watched_ms / 1000:.1f} s of watching"
    if _unread(view)[rows].all():
        ignored = int(view.ignored[rows].sum())
        arrival = "bytes arrived" if ignored == len(rows) else "no byte arrived"
        if 0 < ignored < len(rows):
            arrival = f"bytes arrived on {ignored} of {len(rows)}"
        if watched and view.halted[rows].all():
            return certain(f"{arrival}, and the program, which is stopped, read none in {seconds}")
        if watched and _perhaps_ignored(view)[rows].all():
            return possible(
                f"{arrival}, and the program read none, in {seconds}; it is not known whether it waits for more"
            )
        if watched and (view.ignored[rows].any() or (_quiet(view)[rows] < view.options.idle_ms).any()):
            later = "a program that reads again later looks the same"
            return likely(f"{arrival}, and the program read none, in {seconds}; {later}")
        if watched:
            return certain(f"no byte arrived, and the program read none, in {seconds}")
        if view.ignored[rows].any():
            return look_again("bytes arrive, and the program may still read them; check with `--for 5s`")
        if (s.present("last_data_recv_ms")[rows] & (s.last_data_recv_ms[rows] < RECENT_MS)).any():
            return look_again(
                "data arrived a moment ago, and the program may still read it; check with `--for 5s`"
            )
        return likely("a slow reader looks the same in a single look; check with `--for 5s`")
    if _not_arriving(view)[rows].all() and not watched:
        return look_again("the peer's FIN may be on its way right now; check with `--for 5s`")
    quiet = _quiet(view)[rows]
    slow = f"; {LONG_WORK}" if (may_answer(view)[rows] & (quiet < view.options.idle_ms)).any() else ""
    if watched:
        reason = f"no byte arrived in {seconds}{slow}"
        return likely(reason) if slow else certain(reason)
    if fresh := int(just_received(view)[rows].sum()):
        if not s.present("last_data_recv_ms")[rows].all():
            return look_again(
                "it is not known when data last arrived, so it may be streaming; check with `--for 5s`"
            )
        return look_again(
            f"data arrived on {fresh} of {len(rows)} in the last {RECENT_MS // 1000} s, so it may be "
            "streaming; check with `--for 5s`"
        )
    if (s.rqueue[np.maximum(view.other[rows], 0)][view.other[rows] >= 0] > 1).any() and not watched:
        return look_again("the other end has data to read before our FIN; check with `--for 5s`")
    if not s.present("shutdown")[rows].all():
        return likely("state and inode match; which directions are shut is not known (INET_DIAG_SHUTDOWN)")
    match_all = f"state, inode and shutdown bits match{slow}"
    return likely(match_all) if slow else certain("state, inode and shutdown bits allow no other explanation")


def _observe(view: View, rows: NDArray[np.int64]) -> tuple[Evidence, ...]:
    s = view.sockets
    other = view.other[rows]
    peer_rows = other[other >= 0]
    result: list[Evidence] = []

    def note(value: str, says: str) -> None:
        result.append(Evidence("other end", value, "sock_diag in the other end's namespace", says))

    waiting = peer_rows[s.state[peer_rows] == tcp.CLOSE_WAIT]
    if len(waiting):
        blocked = s.timer[waiting] == PROBING_WINDOW
        says = "the peer has our FIN and has not closed; its program has to act"
        if blocked.all():
            says = "the peer has our FIN, but this end has no room for the data it still has to send"
        note(f"CLOSE_WAIT ×{len(waiting)}", says)
    for state in _CLOSED:
        closed = peer_rows[s.state[peer_rows] == state]
        if not len(closed):
            continue
        says = "the peer has closed, but this end has not acknowledged its FIN"
        if (s.timer[closed] == PROBING_WINDOW).all():
            says = (
                f"the peer has closed; its FIN waits behind {_bytes(s.wqueue[closed])} for which this end has "
                "no room"
            )
        note(f"{tcp.state_name(state)} ×{len(closed)}", says)
    gone = int(peer_missing(view)[rows].sum())
    if gone:
        note(f"absent ×{gone}", "the peer is gone; its kernel has given up, and nothing more will come")
    return tuple(result)


def _bytes(queue: NDArray[np.uint32]) -> str:
    low, high = int(queue.min()), int(queue.max())
    return f"{low} bytes" if low == high else f"{low} … {high} bytes"


_UNREAD = Case(
    title="half-closed and held: this program leaves data unread, and the peer's FIN may be behind it",
    turn=Turn("holder", "read, close()"),
    rows=_unread,
    clues=(
        Clue("state", "our FIN was acknowledged; the peer's has not arrived"),
        Clue("inode", "not 0: a descriptor still refers to it, so tcp_fin_timeout is not running"),
        Clue("rqueue", "bytes that arrived and that this program has not read"),
        Clue("shutdown", "2: the program shut down sending and can still receive"),
        Clue("last_data_recv_ms", "time since the peer last sent data for which there was room"),
    ),
    ends=(
        Remedy("make this program read everything, or close the connection here"),
        Remedy("find out what keeps it from reading: a blocked thread, or a socket in no poll set"),
        destroy("fin-wait2-held"),
    ),
    does_not=(
        Advice(
            "close the connection at the other end",
            "it is already closed there, or its FIN would wait behind the data that is unread here",
        ),
        NOT_FIN_TIMEOUT,
        NOT_KEEPALIVE_ALIVE,
        NOT_USER_TIMEOUT_IDLE,
    ),
)
_LOST = Case(
    title="half-closed and held: the peer has closed, but its FIN does not arrive here",
    turn=Turn("path", "let its FIN pass"),
    rows=_not_arriving,
    clues=(
        Clue("state", "our FIN was acknowledged; the peer's has not arrived"),
        Clue("inode", "not 0: a descriptor still refers to it, so tcp_fin_timeout is not running"),
        Clue("rqueue", "0: this end has room, and no unread data that the FIN could wait behind"),
        Clue("last_data_recv_ms", "time since the peer last sent data"),
    ),
    ends=(
        Remedy(
            "find out where its packets are lost; the other end is on this machine and keeps sending its FIN"
        ),
        Remedy("close() in this program; an orphan is given up after tcp_fin_timeout"),
        destroy("fin-wait2-held"),
    ),
    does_not=(
        Advice(
            "close the connection at the other end", "it is already closed there; its FIN does not arrive"
        ),
        NOT_FIN_TIMEOUT,
        NOT_USER_TIMEOUT_IDLE,
    ),
)

_REMOTE = Case(
    title="half-closed and held: the peer does not close, or is gone; the other end was not found here",
    rows=peer_unseen,
    clues=(
        Clue("state", "our FIN was acknowledged; the peer's has not arrived"),
        Clue("inode", "not 0: a descriptor still refers to it, so tcp_fin_timeout is not running"),
        Clue("timer", "0: nothing will ever fire; 2: keepalive, which ends it if the peer is gone"),
        Clue("shutdown", "2: the program shut down sending and can still receive"),
        Clue("rqueue", "0: everything was read; otherwise unread bytes"),
        Clue("last_data_recv_ms", "time since the peer last sent data"),
    ),
    ends=(
        probe("fin-wait2-held"),
        CLOSE_AT_PEER,
        destroy("fin-wait2-held"),
        PREVENT_SILENCE,
    ),
    does_not=(NOT_FIN_TIMEOUT, NOT_USER_TIMEOUT_IDLE, NOT_CONNTRACK),
)


RULE = Rule(
    name="fin-wait2-held",
    title="half-closed and held: the peer does not close, and a process keeps waiting",
    severity="problem",
    rank=60,
    harm="leak",
    turn=Turn("peer", "close()"),
    means="by-state",
    beyond_sysctls="a descriptor still refers to it, so no kernel timer runs; the peer's FIN, the owner's close() or"
    " SOCK_DESTROY end it",
    claims=("C1", "S02", "S03", "S12"),
    clues=(
        Clue("state", "our FIN was acknowledged; the peer's has not arrived"),
        Clue("inode", "not 0: a descriptor still refers to it, so tcp_fin_timeout is not running"),
        Clue("timer", "0: nothing will ever fire; 2: keepalive, which a live peer answers"),
        Clue("shutdown", "2: the program shut down sending and can still receive"),
        Clue("rqueue", "0: everything was read; otherwise unread bytes"),
        Clue("last_data_recv_ms", "time since the peer last sent data"),
    ),
    ends=(
        CLOSE_AT_PEER,
        Remedy(
            "if the other end is on this machine too, send the FIN that its program owes; otherwise see the "
            "next step",
            "destructive",
            "finwait clear fin-wait2-held",
            proofs=("owed-fin",),
        ),
        destroy("fin-wait2-held"),
    ),
    does_not=(NOT_FIN_TIMEOUT, NOT_KEEPALIVE_ALIVE, NOT_USER_TIMEOUT_IDLE, NOT_CONNTRACK),
    confidence=_confidence,
    match=match,
    waited=True,
    grade=_grade,
    proven=_paused,
    observe=_observe,
    cases=(_UNREAD, _LOST, _REMOTE),
)
