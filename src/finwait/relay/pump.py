"""Bytes from one leg of a connection to the other: by read(2) and write(2) while there are few, else by splice(2).

Theory of operation
===================

A read that fills the chunk switches its direction to ``splice`` through a pipe borrowed from `Pipes`, so the bytes
never enter this process; when the source runs dry the pipe goes back. A direction reads only while nothing of it
waits to be written: that is all the back-pressure there is, and it bounds memory to one chunk or one pipe for each
direction.

The pump knows nothing of the life of a connection. It moves what there is and returns why it cannot go on, if
something else than time is needed: a `Stop`, at an end of file or at a socket that failed.

Traps, each of which has a test
===============================

* A short read means "drained" only while the FIN has not arrived. With EPOLLRDHUP seen, read on until 0:
  no further edge will come for the FIN.
* EAGAIN from ``splice`` into a pipe means "source empty" or "pipe full": only an empty pipe is filled.
* ``splice`` never passes the urgent mark: after EPOLLPRI a direction is read. SO_OOBINLINE keeps the urgent byte in
  the stream. With the FIN behind the mark it returns 0 there, so its 0 is no end of file; that of ``read`` is.
* While its bytes wait for the other leg, each segment that a source sends is an edge that nobody can use: twelve of
  thirteen wakes of a bulk transfer. It is muted then. ``ep_modify`` looks again, so no edge is lost by that, but
  EPOLLOUT goes with EPOLLIN (asked for, it would be told at once), so a leg is heard again before the other direction
  waits for it.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from finwait.relay.loop import MASK, MUTED
from finwait.relay.pipes import PIPE_BYTES, Pipes

if TYPE_CHECKING:
    from collections.abc import Callable

    from finwait.relay.connection import Leg

__all__ = ["CHUNK", "Pump", "Stop"]

CHUNK: Final = 16384
_TURN_BYTES: Final = 2 << 20
"""After so many bytes in one go the others get their turn."""
_BULK_TURN: Final = 4 << 20
"""The same for splice, which moves so much in about a millisecond; shorter turns move a fifth less beside 16 others."""
_SPLICE: Final = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK

_read, _write, _splice = os.read, os.write, os.splice


Stop = tuple["Leg", int]
"""Why a direction does not go on: the leg whose end of file was read (0), or that failed, with its errno. That is not
always the leg that bytes were read from. A bare tuple, for each connection has two of them."""


class Pump:
    """Moves the bytes of a worker.

    Args:
        modify: changes what a descriptor is watched for.
        now: the time, for the pool of pipes.
    """

    def __init__(self, modify: Callable[[int, int], None], now: float) -> None:
        self.pipes = Pipes(now)
        self.waiting: list[Leg] = []
        """Legs whose turn was over with bytes left; see `take_waiting`."""
        self._modify = modify

    def move(self, leg: Leg, now: float) -> Stop | None:
        """Move bytes from a leg to the other until it is dry, or the other full, or its turn over."""
        if leg.waiting:
            stop = self._deliver(leg, now)
            if leg.waiting:
                return stop
        if leg.bulk and leg.pipe is None and not self._borrow(leg):
            leg.bulk = False
        conn, other = leg.conn, leg.other
        source, sink = leg.fd, other.fd
        moved = 0
        while not leg.bulk:
            try:
                data = _read(source, CHUNK)
            except BlockingIOError:
                return None
            except OSError as error:
                return (leg, error.errno or 0)
            size = len(data)
            if not size:
                leg.eof = True
                return (leg, 0)
            leg.total += size
            if leg.is_client:
                conn.last_client = now
            else:
                conn.last_server = now
            try:
                sent = _write(sink, data)
            except BlockingIOError:
                sent = 0
            except OSError as error:
                return (other, error.errno or 0)
            if sent < size:
                leg.buf = data[sent:]
                self._wait(leg)
                return None
            if size < CHUNK:
                if not leg.rdhup and not leg.urgent:
                    return None
            elif not leg.urgent and self._borrow(leg):
                break
            moved += size
            if moved >= _TURN_BYTES:
                self._queue(leg)
                return None
        return self._move_bulk(leg, moved, now)

    def _move_bulk(self, leg: Leg, moved: int, now: float) -> Stop | None:
        """As `move`, by splice."""
        conn, source = leg.conn, leg.fd
        assert leg.pipe is not None
        out, into = leg.pipe
        while True:
            try:
                size = _splice(source, into, PIPE_BYTES, flags=_SPLICE)
            except BlockingIOError:
                self._end_bulk(leg)
                if leg.urgent or leg.rdhup:
                    return self.move(leg, now)
                # What moves little is read again the next time: two calls are cheaper than four.
                leg.bulk = moved >= CHUNK
                return None
            except OSError as error:
                return (leg, error.errno or 0)
            if not size:
                # The end of file, or an urgent mark with the FIN behind it: read() tells.
                leg.urgent = True
                self._end_bulk(leg)
                return self.move(leg, now)
            leg.total += size
            moved += size
            if leg.is_client:
                conn.last_client = now
            else:
                conn.last_server = now
            stop = self._empty(leg, out, size)
            if leg.in_pipe:
                return stop
            if leg.urgent:
                self._end_bulk(leg)
                return self.move(leg, now)
            if moved >= _BULK_TURN:
                self._queue(leg)
                return None

    def _empty(self, leg: Leg, out: int, remaining: int) -> Stop | None:
        """Hand on what was spliced into a leg's pipe; what is not taken is left in it."""
        other = leg.other
        sink = other.fd
        while remaining:
            try:
                remaining -= _splice(out, sink, remaining, flags=_SPLICE)
            except BlockingIOError:
                leg.in_pipe = remaining
                self._wait(leg)
                if not leg.muted and not other.waiting:
                    leg.muted = True
                    self._modify(leg.fd, MUTED)
                return None
            except OSError as error:
                leg.in_pipe = remaining
                return (other, error.errno or 0)
        return None

    def _end_bulk(self, leg: Leg) -> None:
        """Go back to reading."""
        if leg.muted:
            self._unmute(leg)
        self.release(leg)
        leg.bulk = False

    def _wait(self, leg: Leg) -> None:
        """Let what was read from a leg wait for the other's EPOLLOUT."""
        leg.waiting = True
        if leg.other.muted:
            self._unmute(leg.other)

    def _unmute(self, leg: Leg) -> None:
        """Watch a leg for everything again; what came meanwhile is told as an edge (``ep_modify``)."""
        leg.muted = False
        self._modify(leg.fd, MASK)

    def _queue(self, leg: Leg) -> None:
        """Give a leg another turn after the others."""
        if not leg.queued:
            leg.queued = True
            self.waiting.append(leg)

    def take_waiting(self) -> list[Leg]:
        """Return the legs that are to be moved though no event will come."""
        waiting, self.waiting = self.waiting, []
        for leg in waiting:
            leg.queued = False
        return waiting

    def _deliver(self, leg: Leg, now: float) -> Stop | None:
        """Hand on what waits; the leg is ``waiting`` no more when all of it went."""
        conn, sink = leg.conn, leg.other.fd
        try:
            while leg.buf or leg.in_pipe:
                if leg.buf:
                    leg.buf = leg.buf[_write(sink, leg.buf) :]
                else:
                    assert leg.pipe is not None
                    leg.in_pipe -= _splice(leg.pipe[0], sink, leg.in_pipe, flags=_SPLICE)
                if leg.is_client:
                    conn.last_client = now
                else:
                    conn.last_server = now
                if leg.buf:
                    return None
        except BlockingIOError:
            return None
        except OSError as error:
            return (leg.other, error.errno or 0)
        leg.waiting = False
        return None

    def flush(self, leg: Leg) -> None:
        """Hand what a failed leg's queue still holds to the other, as far as it takes it at once."""
        sink = leg.other.fd
        try:
            if leg.buf:
                sent = _write(sink, leg.buf)
                leg.buf = leg.buf[sent:]
            while leg.in_pipe and not leg.buf:
                assert leg.pipe is not None
                leg.in_pipe -= _splice(leg.pipe[0], sink, leg.in_pipe, flags=_SPLICE)
            reported = False
            while not leg.buf:
                try:
                    data = _read(leg.fd, CHUNK)
                except ConnectionError:
                    if reported:
                        return
                    reported = True  # The error is reported once; what the queue held can be read after it.
                    continue
                if not data:
                    return
                leg.total += len(data)
                if _write(sink, data) < len(data):
                    return
        except OSError:
            return

    def _borrow(self, leg: Leg) -> bool:
        """Get a pipe for a leg; return whether there was one."""
        leg.pipe = self.pipes.borrow()
        leg.bulk = leg.pipe is not None
        return leg.bulk

    def release(self, leg: Leg) -> None:
        """Give up a leg's pipe, if it has one."""
        pipe = leg.pipe
        if pipe is None:
            return
        leg.pipe = None
        if leg.in_pipe:
            leg.in_pipe = 0
            self.pipes.discard(pipe)
        else:
            self.pipes.give_back(pipe)
