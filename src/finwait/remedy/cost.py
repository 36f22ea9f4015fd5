"""What ending a connection costs: the bytes that are lost, who gets an error, and who will not even notice.

A FIN loses nothing. SOCK_DESTROY and a reset throw away what this end has sent and not got acknowledged, and the
peer's kernel, which is sent a RST, what *it* has (tcp_done_with_error() and tcp_reset(), net/ipv4). What has
arrived and was not read stays readable for a program that holds the socket after SOCK_DESTROY; after a reset
through its descriptor (tcp_disconnect()) it is gone, and so is what nobody holds.

The programs at both ends get an error, once, from their next call; after it a write gets EPIPE, and SIGPIPE with it.
The exceptions: where a FIN had come from the other side, reads give what has arrived and then the end of file, and
never the error; and a RST that finds its end in CLOSE_WAIT leaves EPIPE itself, so that the *first* write draws
SIGPIPE, whose default action ends the program. A thread that waits is woken at once, at either end; one that does not
wait notices when it uses the descriptor again, perhaps never. All of this was measured (tests/kernel/test_cost.py).

What this cannot see: the other end of a connection that leaves this machine, what programs have buffered, and whether
a program asks its calls for no signal (MSG_NOSIGNAL).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

import msgspec

from finwait.attribution.process import Sigpipe
from finwait.diagnosis.moves import Move
from finwait.uapi import tcp

if TYPE_CHECKING:
    from collections.abc import Mapping

    from finwait.diagnosis.view import View

__all__ = ["Cost", "EndHolder", "Failure", "Notice", "after_destroy", "after_rst", "cost_of"]

Notice = Literal["at once", "when it comes back", "unknown", "nobody holds it"]
"""When the program that holds the connection will notice that it was ended."""


class EndHolder(msgspec.Struct, frozen=True):
    """A process that holds an end."""

    pid: int
    comm: str
    sigpipe: Sigpipe
    """What SIGPIPE does to it."""


class Failure(msgspec.Struct, frozen=True):
    """What the next call on an end gives whose connection was ended, once what has arrived is read."""

    read: Literal["ECONNABORTED", "ECONNRESET", "EOF"]
    write: Literal["ECONNABORTED", "ECONNRESET", "EPIPE"]
    """A write after this one gets EPIPE in any case. With EPIPE comes SIGPIPE."""


def after_destroy(state: int, *, purges: bool) -> Failure:
    """Return what the program here gets after its connection was destroyed in a state, or, with ``purges``, reset."""
    if purges:
        return Failure("ECONNRESET", "ECONNRESET")
    return Failure("EOF" if state in _WITH_PEERS_FIN else "ECONNABORTED", "ECONNABORTED")


def after_rst(state: int) -> Failure:
    """Return what a program gets whose end a RST finds in a state (tcp_reset(), net/ipv4/tcp_input.c)."""
    if state == tcp.CLOSE_WAIT:
        return Failure("EOF", "EPIPE")
    return Failure("EOF" if state in _WITH_PEERS_FIN else "ECONNRESET", "ECONNRESET")


class Cost(msgspec.Struct, frozen=True):
    """What one destructive step costs."""

    unread: int
    """Bytes that have arrived here and that no program has read."""
    unread_lost: bool
    """Whether those are lost as well; else the program that holds the socket can still read them."""
    unacknowledged: int
    """Bytes that this end has taken from its program and that the peer has not acknowledged: so many at most are lost,
    for an acknowledgement may be on its way."""
    far_unacknowledged: int | None
    """The same at the other end; None where that is not on this machine."""
    error: Failure | None
    """What the program here gets; None where nobody holds it."""
    holders: tuple[EndHolder, ...]
    """The programs here."""
    notice: Notice
    far_error: Failure | None
    """What the program at the other end gets if the RST arrives; None without a RST, and of an end that nobody holds or
    that is not on this machine."""
    far_holders: tuple[EndHolder, ...]
    """The programs at the other end, as far as they were found."""
    far_notice: Notice | None
    """When those notice, if the RST arrives; None as above."""
    held_by_process: tuple[tuple[int, int], ...]
    """(pid, connections that it holds in all, this one among them) of the holders here; none where that is not known.
    """


_WITH_PEERS_FIN: Final = frozenset((tcp.CLOSE_WAIT, tcp.LAST_ACK, tcp.CLOSING))
_WITH_OUR_FIN: Final = frozenset((tcp.FIN_WAIT1, tcp.LAST_ACK, tcp.CLOSING))
_OPENING: Final = frozenset((tcp.SYN_SENT, tcp.SYN_RECV, tcp.NEW_SYN_RECV))
"""States whose send queue counts a SYN, and in which nothing is on its way from the other end."""
_WAKES: Final = frozenset(
    (Move.WAITS, Move.WAITS_FOR_EVER, Move.WAITS_LIMITED, Move.LOOP_WATCHES, Move.TOLD_ONCE)
)
"""With these somebody is woken by an error: poll(2) and epoll(7) report EPOLLERR and EPOLLHUP unasked."""
_MOVES: Final = (*Move,)


def _queued(view: View, row: int) -> tuple[int, int]:
    """Return the bytes unread and unacknowledged at a row; a FIN counts one in the kernel's queues, and is no byte."""
    s = view.sockets
    state = int(s.state[row])
    unread, waiting = int(s.rqueue[row]), int(s.wqueue[row])
    if state == tcp.LISTEN or state in _OPENING:
        return 0, 0
    return (
        max(0, unread - (state in _WITH_PEERS_FIN and unread > 0)),
        max(0, waiting - (state in _WITH_OUR_FIN and waiting > 0)),
    )


def cost_of(view: View, row: int, held: Mapping[int, int], *, resets: bool, purges: bool) -> Cost:
    """Return what destroying a row costs.

    Args:
        view: the sockets.
        row: which of them.
        held: pid → connections that it holds; empty where not all of them were looked at.
        resets: whether a RST is sent to its peer.
        purges: whether what is unread goes, too, although a program holds it.
    """
    unread, unacknowledged = _queued(view, row)
    other = int(view.other[row])
    known = other >= 0 and not view.other_ambiguous[row]
    state = int(view.sockets.state[row])
    reset_there = known and resets and bool(view.held[other])
    holders = _programs(view, row)
    return Cost(
        unread=unread,
        unread_lost=purges or not (view.held[row] or view.queued[row]),
        unacknowledged=unacknowledged,
        far_unacknowledged=_queued(view, other)[1] if known else 0 if state in _OPENING else None,
        error=after_destroy(state, purges=purges) if view.held[row] else None,
        holders=holders,
        notice=_notice(view, row),
        far_error=after_rst(int(view.sockets.state[other])) if reset_there else None,
        far_holders=_programs(view, other) if known else (),
        far_notice=_notice(view, other) if reset_there else None,
        held_by_process=tuple((holder.pid, held[holder.pid]) for holder in holders if holder.pid in held),
    )


def _programs(view: View, row: int) -> tuple[EndHolder, ...]:
    """Return who holds a row."""
    pids = dict.fromkeys(pid for pid, _ in view.holders.of(row))
    known = ((pid, view.processes.get(pid)) for pid in pids)
    return tuple(
        EndHolder(pid, "?", "unknown") if process is None else EndHolder(pid, process.comm, process.sigpipe)
        for pid, process in known
    )


def _notice(view: View, row: int) -> Notice:
    if not view.held[row]:
        return "nobody holds it"
    move = _MOVES[int(view.moves[row])]
    if move in _WAKES:
        wait = view.waits.of(row)
        deaf = bool(wait.threads) and not wait.loops and all(waiter.only_urgent for waiter in wait.threads)
        return "when it comes back" if deaf else "at once"
    if (
        move is Move.PAUSED
    ):  # an error is told whatever a registration asks for, but not to one that has fired
        loops = view.waits.of(row).loops
        return "at once" if any(loop.asleep and not loop.spent for loop in loops) else "when it comes back"
    return "when it comes back" if move in (Move.FORGOTTEN, Move.LOOP_ELSEWHERE) else "unknown"
