"""The destroy matrix of the running kernel: what SOCK_DESTROY does in each state, held and orphaned.

No guard and no plan stands before it: this measures the kernel, so that what the plans say can be held against it.
"""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from finwait.diagnosis.view import View
from finwait.kernel import netns
from finwait.kernel.destroy import GONE, Target, destroy
from finwait.lab.topology import Lab
from finwait.uapi import inet_diag, tcp
from tests.kernel.acting_pair import Pair, resets_sent
from tests.kernel.test_destroy_matrix import HELD, ORPHANS, Cell

__all__ = ["Measured", "cells", "measure"]

TIMERS = {0: "no timer", 1: "retransmit", 2: "keepalive", 3: "time-wait", 4: "persist"}


@dataclass(frozen=True, slots=True)
class Measured:
    """What one request did."""

    answer: str
    """``done``, or the name of the errno."""
    after: str
    """``gone``, or the state and the timer that are left."""
    resets: int
    """RSTs that left."""

    def __str__(self) -> str:
        if self.answer != "done":
            return self.answer
        told = f"{self.resets} RST" if self.resets else "silent"
        return f"{self.after}, {told}"


def cells() -> Iterator[tuple[str, Cell]]:
    """Yield each cell with its name."""
    for kind, some in (("held", HELD), ("orphan", ORPHANS)):
        for cell in some:
            yield f"{cell.state} {kind}", cell


def measure(cell: Cell, patience_s: float = 60.0) -> Measured:
    """Bring a connection of our own into the state, destroy its near end, and look."""
    with Lab() as lab:
        pair = Pair(lab)
        near, port = pair.a.inode, pair.ours[0].sport
        cell.to(pair)
        row = _until(pair, lambda view: _row(view, near, port, cell.state), patience_s)
        if row is None:
            state = _left(pair.look().view, near, port)
            return Measured("not made", state, 0)
        view, at = row
        s = view.sockets
        here, there = (socket.inet_aton(a) for a in (pair.link.a4, pair.link.b4))
        identity = inet_diag.SocketId(port, int(s.dport[at]), here, there, 0, int(s.cookie[at]))
        pair.link.cut(b=False)  # the far end's answer to a FIN that is sent again is a RST of another kind
        before = resets_sent(pair.a)
        spaces = [n for n in netns.discover()[0] if n.inode == near]
        results, _ = destroy(spaces, [Target(near, int(s.family[at]), int(s.protocol[at]), identity)])
        code = results.get(0, errno.EIO)
        if code:
            # Linux has one number for both, and this is the name that it goes by here.
            names = {**errno.errorcode, errno.EOPNOTSUPP: "EOPNOTSUPP", GONE: "gone before"}
            name = names.get(code, str(code))
            return Measured(name, _left(pair.look().view, near, port), 0)
        time.sleep(0.5)  # what is to be seen is that nothing more happens
        return Measured("done", _left(pair.look().view, near, port), resets_sent(pair.a) - before)


def _row(view: View, near: int, port: int, state: str) -> int | None:
    s = view.sockets
    number = next(n for n, name in tcp.STATES.items() if name == state)
    hit = np.flatnonzero((s.netns == near) & (s.sport == port) & (s.state == number))
    return int(hit[0]) if len(hit) else None


def _until(pair: Pair, found: Callable[[View], int | None], patience_s: float) -> tuple[View, int] | None:
    end = time.monotonic() + patience_s
    while True:
        view = pair.look().view
        at = found(view)
        if at is not None:
            return view, at
        if time.monotonic() > end:
            return None
        time.sleep(0.05)


def _left(view: View, near: int, port: int) -> str:
    s = view.sockets
    hit = np.flatnonzero((s.netns == near) & (s.sport == port) & (s.state != tcp.LISTEN))
    if not len(hit):
        return "gone"
    at = int(hit[0])
    return f"{tcp.STATES[int(s.state[at])]} with {TIMERS.get(int(s.timer[at]), '?')}"
