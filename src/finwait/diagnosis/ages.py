"""How long connections have been in their states, by what one look reads of them."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from finwait.diagnosis import forecast
from finwait.table.sockets import SocketTable
from finwait.uapi import tcp

__all__ = ["FOLLOWED", "OF_OTHER_END", "ages", "bound_by_other_end"]

FOLLOWED: Final = 5
"""`View.age_source` of what an agent has followed."""
OF_OTHER_END: Final = 6
"""`View.age_source` of what the other end's clock tells."""
_TIME_WAIT_MS: Final = int(1000 * forecast.TIME_WAIT_S)


def ages(
    sockets: SocketTable,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.uint8]]:
    """Return how long each row has been in its state, at least and at most, and what says so.

    Nothing in sock_diag says since when. The FIN that made CLOSE_WAIT and the ACK that made FIN_WAIT2 both
    count as an ACK received, so the state is at least as old as `last_ack_recv`; it cannot be older than the
    last data that had to come before it. ESTABLISHED began with a handshake that set all three clocks.
    TIME_WAIT lasts 60 s from its beginning, but a FIN that comes again starts them again
    (``tcp_timewait_state_process``): what is over of them is the least. A FIN that is all that is unacknowledged has
    waited for as long as its retransmissions took (`forecast.waited_ms`); CLOSING may have begun after it was sent.
    """
    n = len(sockets)
    least = np.full(n, -1, np.int64)
    most = np.full(n, -1, np.int64)
    source = np.zeros(n, np.uint8)
    s = sockets
    informed = s.present("last_ack_recv_ms")
    ack = s.last_ack_recv_ms.astype(np.int64)
    sent, received = s.last_data_sent_ms.astype(np.int64), s.last_data_recv_ms.astype(np.int64)
    waiting = informed & ((s.state == tcp.FIN_WAIT2) | (s.state == tcp.CLOSE_WAIT))
    least[waiting] = ack[waiting]
    half = informed & (s.state == tcp.FIN_WAIT2)
    most[half] = np.maximum(sent, ack)[half]
    shut = informed & (s.state == tcp.CLOSE_WAIT)
    most[shut] = np.maximum(received, ack)[shut]
    open_ = informed & (s.state == tcp.ESTABLISHED)
    least[open_] = np.maximum(np.maximum(sent, received), ack)[open_]
    source[informed & (least >= 0)] = 1
    timewait = (s.state == tcp.TIME_WAIT) & (s.timer == 3)
    past = np.maximum(_TIME_WAIT_MS - s.expires_ms.astype(np.int64), 0)
    least[timewait] = past[timewait]
    source[timewait] = 2
    alone = ((s.state == tcp.FIN_WAIT1) | (s.state == tcp.LAST_ACK)) & (s.timer == 1) & (s.wqueue == 1)
    alone &= s.present("rto_us")
    waited = forecast.waited_ms(s.rto_us[alone], s.retrans[alone], s.backoff[alone])
    least[alone], source[alone] = waited, np.where(waited >= 0, 4, 0)
    return least, most, source


def bound_by_other_end(
    least: NDArray[np.int64],
    most: NDArray[np.int64],
    source: NDArray[np.uint8],
    sockets: SocketTable,
    other: NDArray[np.int64],
    took_ms: int,
) -> None:
    """Bound the ages of half-closes by both ends: the FIN that made CLOSE_WAIT came before the ACK made FIN_WAIT2.

    So CLOSE_WAIT is at least as old as the FIN_WAIT2 that belongs to it, and FIN_WAIT2 no older. An end whose keepalive
    probes are answered has a clock that each answer sets back; the other end's goes on, for a probe is not acceptable
    and sets nothing (``tcp_validate_incoming``). Ends in two namespaces are read up to a whole look apart.
    """
    s = sockets
    closed = np.flatnonzero((s.state == tcp.CLOSE_WAIT) & (other >= 0))
    half = other[closed]
    matching = s.state[half] == tcp.FIN_WAIT2
    closed, half = closed[matching], half[matching]
    apart = np.where(s.netns[closed] == s.netns[half], 0, took_ms)
    at_least = least[half] - apart
    older = (least[half] >= 0) & (at_least > least[closed])
    older &= (most[closed] < 0) | (at_least <= most[closed])
    least[closed[older]], source[closed[older]] = at_least[older], OF_OTHER_END
    at_most = most[closed] + apart
    younger = (most[closed] >= 0) & (at_most >= least[half]) & ((most[half] < 0) | (at_most < most[half]))
    most[half[younger]] = at_most[younger]
