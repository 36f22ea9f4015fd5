"""fin-wait2-held: our FIN is acknowledged and a process keeps the socket.

Seen as       FIN_WAIT2 with an inode; sending is shut (shutdown bits 2), no timer (or keepalive).
Why it stays  A program called shutdown(SHUT_WR), said FIN, and waits for the peer to finish too. The peer
              does not. tcp_fin_timeout counts from the close() of the last descriptor; here nobody has closed
              anything, so it never starts. RFC 9293 allows this state to last for ever: it can still receive.
              With bytes in its own receive queue (rqueue above 0) the cause is on this side: the program does
              not read, and a FIN that the peer has sent may wait behind what there is no room for (the other
              end is then in LAST_ACK, on the window probe).
Not this      inode 0: an orphan (timer 3), which the kernel ends by itself. Bytes still arriving or being read: a
              streaming half-close (fin-wait2-streaming), which is healthy.
What ends it  The peer's FIN; close() by the owner (then tcp_fin_timeout applies); SOCK_DESTROY. Where this program
              does not read: reading, or closing here; closing at the other end does nothing more.
What does not A lower tcp_fin_timeout; keepalive while the peer lives; TCP_USER_TIMEOUT (nothing is in flight).
Reproduce     finwait lab run fin-wait2-held
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from finwait.diagnosis.finding import Advice, Confidence, Evidence, Remedy
from finwait.diagnosis.rule import Case, Clue, Rule
from finwait.diagnosis.rules import (
    CLOSE_AT_PEER,
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
    peer_missing,
    peer_unseen,
    probe,
)
from finwait.diagnosis.view import View
from finwait.uapi import tcp

__all__ = ["RULE", "match"]

_PROBING_WINDOW = 4
"""``idiag_timer``: a closed window is being probed."""
_CLOSED = (tcp.FIN_WAIT1, tcp.LAST_ACK, tcp.CLOSING)
"""States of an end whose program has closed and whose FIN is not acknowledged."""


def match(view: View) -> NDArray[np.bool_]:
    """Return which rows this rule explains."""
    return view.in_state(tcp.FIN_WAIT2) & view.held & (view.sockets.shutdown != 3) & ~view.moved & ~view.read


def _unread(view: View) -> NDArray[np.bool_]:
    """Return rows whose own program leaves bytes in the queue, so that a FIN of the peer's may wait behind them."""
    s = view.sockets
    other = np.maximum(view.other, 0)
    # An other end in CLOSE_WAIT has not closed either, unless what it sent first has no room here.
    owes = (view.other >= 0) & (s.state[other] == tcp.CLOSE_WAIT) & (s.timer[other] != _PROBING_WINDOW)
    return (s.rqueue > 0) & ~owes


def _not_arriving(view: View) -> NDArray[np.bool_]:
    """Return rows whose peer has closed, is here, and whose FIN has not come although nothing is unread."""
    closed = np.isin(view.sockets.state[np.maximum(view.other, 0)], _CLOSED)
    return (view.other >= 0) & closed & (view.sockets.rqueue == 0)


def _confidence(view: View, rows: NDArray[np.int64]) -> Confidence:
    s = view.sockets
    watched = view.moved_known[rows].all()
    seconds = f"{view.watched_ms / 1000:.1f} s of watching"
    if _unread(view)[rows].all():
        if watched:
            return certain(f"no byte arrived and the program read none in {seconds}")
        if (s.present("last_data_recv_ms")[rows] & (s.last_data_recv_ms[rows] < RECENT_MS)).any():
            return look_again("data arrived a moment ago: the program may yet read it; `--for 5s` tells")
        return likely("a program that reads slowly looks the same in a single look; `--for 5s` tells")
    if _not_arriving(view)[rows].all() and not watched:
        return look_again("the peer's FIN may be on its way this moment; `--for 5s` looks twice and tells")
    if watched:
        return certain(f"no byte arrived in {seconds}")
    if fresh := int(just_received(view)[rows].sum()):
        if not s.present("last_data_recv_ms")[rows].all():
            return look_again(
                "nothing says when data last came: it may be streaming; `--for 5s` looks twice and tells"
            )
        return look_again(
            f"on {fresh} of {len(rows)} data arrived in the last {RECENT_MS // 1000} s: it may be streaming; "
            "`--for 5s` looks twice and tells"
        )
    if not s.present("shutdown")[rows].all():
        return likely(
            "state and inode; this kernel does not tell which directions are shut (INET_DIAG_SHUTDOWN)"
        )
    return certain("state, inode and shutdown bits leave no other reading")


def _observe(view: View, rows: NDArray[np.int64]) -> tuple[Evidence, ...]:
    s = view.sockets
    other = view.other[rows]
    here = other[other >= 0]
    result: list[Evidence] = []

    def told(value: str, says: str) -> None:
        result.append(Evidence("other end", value, "sock_diag in the other end's namespace", says))

    waiting = here[s.state[here] == tcp.CLOSE_WAIT]
    if len(waiting):
        blocked = s.timer[waiting] == _PROBING_WINDOW
        says = "the peer has our FIN and has not closed: the wait is for its program"
        if blocked.all():
            says = "the peer has our FIN, and has more to say than there is room for here"
        told(f"CLOSE_WAIT ×{len(waiting)}", says)
    for state in _CLOSED:
        closed = here[s.state[here] == state]
        if not len(closed):
            continue
        says = "the peer has closed: its FIN is not acknowledged by this end"
        if (s.timer[closed] == _PROBING_WINDOW).all():
            says = (
                f"the peer has closed: its FIN waits behind {_bytes(s.wqueue[closed])} that has no room here"
            )
        told(f"{tcp.state_name(state)} ×{len(closed)}", says)
    gone = int(peer_missing(view)[rows].sum())
    if gone:
        told(f"absent ×{gone}", "the peer is gone: its kernel has given up, and nothing more will come")
    return tuple(result)


def _bytes(queue: NDArray[np.uint32]) -> str:
    low, high = int(queue.min()), int(queue.max())
    return f"{low} bytes" if low == high else f"{low} … {high} bytes"


_UNREAD = Case(
    title="half-closed and held: this program does not read what is there, and the peer's FIN may be behind it",
    rows=_unread,
    clues=(
        Clue("state", "our FIN was acknowledged; the peer's has not come"),
        Clue("inode", "not 0: a descriptor still refers to it, so tcp_fin_timeout is not running"),
        Clue("rqueue", "bytes that came and that this program has not read"),
        Clue("shutdown", "2: the program shut down sending and can still receive"),
        Clue("last_data_recv_ms", "since the peer last sent data that there was room for"),
    ),
    ends=(
        Remedy("have this program read what is there, to the end; or close the connection here"),
        Remedy("find out what keeps it from reading: a blocked thread, a socket that is in no poll set"),
        destroy("fin-wait2-held"),
    ),
    does_not=(
        Advice(
            "close the connection at the other end",
            "it is closed there already, or its FIN would wait behind what is not read here",
        ),
        NOT_FIN_TIMEOUT,
        NOT_KEEPALIVE_ALIVE,
        NOT_USER_TIMEOUT_IDLE,
    ),
)
_LOST = Case(
    title="half-closed and held: the peer has closed, and its FIN does not get here",
    rows=_not_arriving,
    clues=(
        Clue("state", "our FIN was acknowledged; the peer's has not come"),
        Clue("inode", "not 0: a descriptor still refers to it, so tcp_fin_timeout is not running"),
        Clue("rqueue", "0: there is room here, and nothing that the FIN could wait behind"),
        Clue("last_data_recv_ms", "since the peer last sent data"),
    ),
    ends=(
        Remedy(
            "find out where its packets are lost: the other end is here, and sends its FIN again and again"
        ),
        Remedy("close() in this program: an orphan is given up after tcp_fin_timeout"),
        destroy("fin-wait2-held"),
    ),
    does_not=(
        Advice("close the connection at the other end", "it is closed there; its FIN does not arrive"),
        NOT_FIN_TIMEOUT,
        NOT_USER_TIMEOUT_IDLE,
    ),
)

_REMOTE = Case(
    title="half-closed and held: the peer does not close, or is gone; its end was not found here",
    rows=peer_unseen,
    clues=(
        Clue("state", "our FIN was acknowledged; the peer's has not come"),
        Clue("inode", "not 0: a descriptor still refers to it, so tcp_fin_timeout is not running"),
        Clue("timer", "0: nothing will ever fire; 2: keepalive, which ends it if the peer is gone"),
        Clue("shutdown", "2: the program shut down sending and can still receive"),
        Clue("rqueue", "0: all that came was read; else so much was not"),
        Clue("last_data_recv_ms", "since the peer last sent data"),
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
    means="by-state",
    beyond_sysctls="a descriptor still refers to it, so no kernel timer runs; the peer's FIN, the owner's close() or"
    " SOCK_DESTROY end it",
    claims=("C1", "S02", "S03", "S12"),
    clues=(
        Clue("state", "our FIN was acknowledged; the peer's has not come"),
        Clue("inode", "not 0: a descriptor still refers to it, so tcp_fin_timeout is not running"),
        Clue("timer", "0: nothing will ever fire; 2: keepalive, which a live peer answers"),
        Clue("shutdown", "2: the program shut down sending and can still receive"),
        Clue("rqueue", "0: all that came was read; else so much was not"),
        Clue("last_data_recv_ms", "since the peer last sent data"),
    ),
    ends=(
        CLOSE_AT_PEER,
        Remedy(
            "where the other end is on this machine too: send the FIN that its program owes; else as below",
            "destructive",
            "finwait clear fin-wait2-held",
        ),
        destroy("fin-wait2-held"),
    ),
    does_not=(NOT_FIN_TIMEOUT, NOT_KEEPALIVE_ALIVE, NOT_USER_TIMEOUT_IDLE, NOT_CONNTRACK),
    confidence=_confidence,
    match=match,
    observe=_observe,
    cases=(_UNREAD, _LOST, _REMOTE),
)
