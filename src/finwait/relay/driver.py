"""Drives the machines: what happens at sockets becomes events, and commands become what is done to sockets.

Every decision about the life of a connection is `machine.RelayMachine`'s, and every byte is `Pump`'s. A `Driver` stands
between: it takes the batch of events of a turn, says to the machine what they mean, and does the commands that come
back, in order, down to the last one, after which nothing of the connection is left.

Traps, each of which has a test
===============================

* EPOLLHUP says that both directions are shut, not that something failed: bytes may still be unread. Only
  EPOLLERR, or a failing call, is a failure.
* A failing call clears the socket's error; the next read then returns 0 and looks like an honest FIN. Once a
  leg has failed, nothing read from it counts as EOF.
* A mistake of ours ends the connection that it happened to; the worker's other thousands go on.

What this cannot see
====================

Unix sockets know no RST: where one leg is a Unix socket, an abort reaches it as EOF.
"""

from __future__ import annotations

import os
import random
import sys
import traceback
from typing import TYPE_CHECKING, Final

from finwait.errors import DecodeError
from finwait.relay import proxy_protocol, sockets
from finwait.relay.connection import Conn, Leg
from finwait.relay.liveness import gone_reader, keep_alive, let_readers_linger
from finwait.relay.loop import ERR, HUP, MASK, OUT, PRI, RDHUP, READABLE
from finwait.relay.machine import Command, Event, Reason, RelayState
from finwait.relay.pump import CHUNK

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from finwait.relay.dialer import Dialer
    from finwait.relay.loop import Loop
    from finwait.relay.pump import Pump, Stop
    from finwait.relay.route import Route
    from finwait.relay.wheel import Wheel

__all__ = ["Driver"]

_CONNECTING, _HEADER, _OPEN, _CLOSED = (
    RelayState.CONNECTING,
    RelayState.HEADER,
    RelayState.OPEN,
    RelayState.CLOSED,
)
assert max(_HEADER, _CONNECTING) < _OPEN
_RARE: Final = ERR | RDHUP | PRI


class Driver:
    """The connections of a worker.

    Args:
        loop: watches their sockets.
        pump: moves their bytes.
        dialer: finds them a server.
        wheel: holds them until their deadlines.

    Attributes:
        index: which worker this is, for people.
        count: connections that live.
        ended: connections that have ended.
        log: is told of each that ended, before its sockets are closed; or None.
    """

    def __init__(self, loop: Loop, pump: Pump, dialer: Dialer, wheel: Wheel[Conn]) -> None:
        self.index = 0
        self.count = 0
        self.ended = 0
        self.log: Callable[[Conn], None] | None = None
        self._number = 0
        self._loop = loop
        self._pump = pump
        self._dialer = dialer
        self._wheel = wheel
        do: dict[Command, Callable[[Conn], None]] = {
            Command.CONNECT: self._connect,
            Command.PUMP: self._start,
            Command.SHUT_SERVER: self._shut_server,
            Command.SHUT_CLIENT: self._shut_client,
            Command.FLUSH_CLIENT: self._flush_client,
            Command.FLUSH_SERVER: self._flush_server,
            Command.CLOSE: self._close,
            Command.ABORT: self._abort,
        }
        self._do = tuple(do[command] for command in Command)

    def conns(self) -> Iterator[Conn]:
        """Yield every connection that lives."""
        for leg in list(self._loop.table):
            if type(leg) is Leg and leg.is_client and leg.fd >= 0 and leg.conn.state is not _CLOSED:
                yield leg.conn

    # ── what a turn brings ───────────────────────────────────────────────────────────────────────────────

    def handle(self, events: Iterable[tuple[int, int]]) -> None:
        """Take what happened in a turn; what happened to other descriptors is given to their handlers."""
        table, move, now = self._loop.table, self._pump.move, self._loop.now
        todo = iter(events)
        while True:
            leg = None
            try:
                for fd, mask in todo:
                    leg = table[fd]
                    if type(leg) is not Leg:
                        if leg is not None:
                            leg(mask)
                        continue
                    if mask & _RARE:
                        if mask & ERR:
                            self._failed(leg)
                            continue
                        if mask & RDHUP:
                            leg.rdhup = True
                        if mask & PRI:
                            leg.urgent = True
                    if leg.conn.state < _OPEN:
                        self._early(leg, mask)
                        continue
                    if mask & OUT and leg.other.waiting:
                        stop = move(leg.other, now)
                        if stop is not None:
                            self._stopped(stop)
                            if leg.fd < 0:
                                continue
                    if mask & READABLE and not leg.waiting and not leg.eof:
                        stop = move(leg, now)
                        if stop is not None:
                            self._stopped(stop)
                    if leg.rdhup and not leg.eof and not leg.told and leg.fd >= 0:
                        self._tell_fin(leg)
                return
            except Exception:  # the outermost loop of a worker
                if type(leg) is not Leg:
                    raise
                self._our_mistake(leg)

    def give_turns(self) -> None:
        """Go on with those whose turn was over before all their bytes were moved."""
        for leg in self._pump.take_waiting():
            if leg.fd >= 0 and not leg.waiting and not leg.eof:
                try:
                    self._move(leg)
                except Exception:  # noqa: BLE001  # the outermost loop of a worker
                    self._our_mistake(leg)

    def visit_due(self) -> None:
        """Look after the connections whose time has come."""
        for conn in self._wheel.due(self._loop.now):
            if conn.state is not _CLOSED:
                try:
                    self._visit(conn)
                except Exception:  # noqa: BLE001  # the outermost loop of a worker
                    self._our_mistake(conn.client)

    # ── before the connection is open ────────────────────────────────────────────────────────────────────

    def admit(self, route: Route, fd: int, peer: object, source: str, *, is_tcp: bool) -> None:
        """Take in a connection that was accepted: wait for its header, or connect.

        Args:
            route: where it is counted.
            fd: its socket.
            peer: the other end's address.
            source: the address that it counts for; empty: for none.
            is_tcp: whether it came by TCP.
        """
        self._number += 1
        now = self._loop.now
        conn = Conn(route, peer, self._number, now, is_tcp=is_tcp)
        conn.client = leg = Leg(fd, conn, True)
        self._loop.own(fd, leg)
        self.count += 1
        route.count += 1
        route.accepted += 1
        if source:
            route.count_source(conn, source)
        self._wheel.put(conn, now + route.young, now)
        if conn.state is _HEADER:
            self._arm(leg)
        else:
            self._connect(conn)

    def _arm(self, leg: Leg) -> None:
        leg.armed = True
        self._loop.epoll.register(leg.fd, MASK)

    def _early(self, leg: Leg, mask: int) -> None:
        """Handle an event of a connection without a server."""
        conn = leg.conn
        if conn.state is _HEADER:
            self._read_header(conn)
        elif not leg.is_client and mask & (OUT | HUP):
            self.step(conn, self._dialer.succeeded(conn))
            if mask & READABLE and leg.fd >= 0:
                self._move(leg)
        # The client's bytes wait in its socket until there is a server; `_start` reads them.

    def _read_header(self, conn: Conn) -> None:
        leg = conn.client
        header = None
        while header is None:
            try:
                data = os.read(leg.fd, CHUNK)
            except BlockingIOError:
                return
            except OSError as error:
                self._failed(leg, error.errno or 0)
                return
            leg.buf += data
            leg.total += len(data)
            try:
                header = proxy_protocol.parse(leg.buf) if data else None
            except DecodeError:
                data = b""
            if not data:
                self.step(conn, Event.HEADER_BAD)
                return
        conn.source, conn.destination = header.source, header.destination
        leg.buf = leg.buf[header.size :]
        leg.total = len(leg.buf)
        leg.waiting = bool(leg.buf)
        if leg.buf:
            conn.last_client = self._loop.now
        route = conn.route
        if route.max_per_source and conn.source is not None:
            if route.is_crowded(conn.source[0]):
                route.reject("per_source")
                self.step(conn, Event.UNWANTED)
                return
            route.count_source(conn, conn.source[0])
        self.step(conn, Event.HEADER_READ)

    def _connect(self, conn: Conn) -> None:
        """Start the next try. Command CONNECT."""
        event = self._dialer.dial(conn)
        if event is not None:
            self.step(conn, event)

    def _start(self, conn: Conn) -> None:
        """Both ends are there. Command PUMP."""
        client = conn.client
        send_proxy = conn.route.service.send_proxy
        if not conn.young:  # its first second went by with connecting
            keep_alive(conn)
        if send_proxy:
            client.buf = proxy_protocol.encode(send_proxy, *conn.ends()) + client.buf
            client.waiting = True
        if not client.armed:
            self._arm(client)
            if client.waiting:
                self._move(client)
        else:
            # It was watched for errors meanwhile: its edge has been taken already.
            self._move(client)
            if client.fd >= 0 and client.rdhup and not client.eof:
                self._tell_fin(client)

    # ── events ───────────────────────────────────────────────────────────────────────────────────────────

    def step(self, conn: Conn, event: Event) -> None:
        """Feed the machine, and do what it says."""
        before, now = conn.state, self._loop.now
        for command in conn.feed(event, now):
            self._do[command](conn)
        # A young connection is visited within its first second anyway.
        if not conn.young and conn.state is not before and conn.state is not _CLOSED:
            self._wheel.put(conn, min(conn.next_deadline(), now + conn.route.watch), now)

    def _move(self, leg: Leg) -> None:
        """Move the bytes of a leg."""
        stop = self._pump.move(leg, self._loop.now)
        if stop is not None:
            self._stopped(stop)

    def _stopped(self, stop: Stop) -> None:
        """Take it that a direction does not go on."""
        leg, number = stop
        if number:
            self._failed(leg, number)
        else:
            self.step(leg.conn, Event.CLIENT_DONE if leg.is_client else Event.SERVER_DONE)

    def _tell_fin(self, leg: Leg) -> None:
        """Say that a FIN has arrived before all bytes are delivered."""
        if not leg.told:
            leg.told = True
            self.step(leg.conn, Event.CLIENT_EOF if leg.is_client else Event.SERVER_EOF)

    def _failed(self, leg: Leg, number: int = 0) -> None:
        """Take it that a socket failed, with an errno or the one it holds."""
        if leg.fd < 0 or leg.conn.state is _CLOSED:
            return
        conn = leg.conn
        if not number:
            number = sockets.error_of(leg.fd)
        vanished = number in sockets.VANISHED
        if leg.is_client:
            event = Event.CLIENT_VANISHED if vanished else Event.CLIENT_RESET
        elif conn.state is _CONNECTING:
            event = self._dialer.failed(conn, number)
        else:
            event = Event.SERVER_VANISHED if vanished else Event.SERVER_RESET
        self.step(conn, event)

    def _our_mistake(self, leg: Leg) -> None:
        """End the connection at which the code failed, by RST, and say so."""
        sys.stderr.write(f"finwait relay: a bug in finwait ends a connection of worker {self.index}:\n")
        traceback.print_exc()
        if leg.fd < 0:
            return
        conn = leg.conn
        try:
            if conn.state is not _CLOSED:
                self.step(conn, Event.KILL)
                return
            # It fell between the transition and the last command.
            conn.reason = conn.reason or Reason.KILLED
            self._abort(conn)
        except Exception:  # noqa: BLE001  # told above; this one would be the same
            traceback.print_exc()

    # ── time ─────────────────────────────────────────────────────────────────────────────────────────────

    def _visit(self, conn: Conn) -> None:
        """Look after a connection: its deadlines, its first second, its slow readers."""
        now = self._loop.now
        if conn.young:
            conn.young = False
            self._settle(conn)
        last = conn.last_client + conn.last_server
        # Once for each visit: with nine thousand idle connections this is most of what the relay does.
        deadline = conn.next_deadline()
        if deadline <= now:
            connect = conn.limits.connect
            if conn.state is _CONNECTING and connect and now >= conn.since + connect:
                self._dialer.blame(conn)
            self.step(conn, Event.TICK)
            if conn.state is _CLOSED:
                return
            deadline = conn.next_deadline()
        server = conn.server
        if server is not None and (last != conn.checked or conn.client.relaxed or server.relaxed):
            gone = gone_reader(conn, last)
            if gone is not None:
                self.step(conn, Event.CLIENT_VANISHED if gone.is_client else Event.SERVER_VANISHED)
        if conn.state is not _CLOSED:
            self._wheel.put(conn, min(deadline, now + conn.route.watch), now)

    def _settle(self, conn: Conn) -> None:
        """Do for a connection that lasts what a short one need not pay for."""
        if not conn.client.armed:
            # Still connecting: from now on a client that gives up is noticed.
            self._arm(conn.client)
        if conn.state is not _CONNECTING:
            keep_alive(conn)

    def drain(self, seconds: float | None) -> None:
        """Have every connection end within its service's ``drain``, or in so many seconds."""
        now = self._loop.now
        for conn in list(self.conns()):
            timeouts = conn.route.service.timeouts
            patience = timeouts.drain if seconds is None else seconds
            patience *= 1 - random.random() * timeouts.drain_spread  # noqa: S311  # spreading, not secrecy
            conn.drain(now, now + patience)
            self._wheel.put(conn, conn.next_deadline(), now)

    # ── the end ──────────────────────────────────────────────────────────────────────────────────────────

    def kill(self, numbers: Iterable[int]) -> int:
        """End connections by RST; return how many there were."""
        requested = set(numbers)
        doomed = [conn for conn in self.conns() if conn.number in requested]
        for conn in doomed:
            self.step(conn, Event.KILL)
        return len(doomed)

    def cut(self) -> None:
        """End every connection now, by RST, because the relay stops."""
        now = self._loop.now
        for conn in list(self.conns()):
            conn.drain(now, now)
            self.step(conn, Event.TICK)

    def close(self) -> None:
        """Let go of every connection; what still lives ends by RST, also when a mistake of ours ends the worker."""
        for leg in self._loop.table:
            if type(leg) is Leg and leg.fd >= 0:
                sockets.abort_on_close(leg.fd)
        for conn in list(self.conns()):
            self.step(conn, Event.KILL)

    def _shut_server(self, conn: Conn) -> None:
        assert conn.server is not None
        self._shut(conn.server)

    def _shut_client(self, conn: Conn) -> None:
        self._shut(conn.client)

    def _shut(self, leg: Leg) -> None:
        try:
            sockets.shut_write(leg.fd)
        except OSError as error:
            self._failed(leg, error.errno or 0)

    def _flush_client(self, conn: Conn) -> None:
        self._pump.flush(conn.client)

    def _flush_server(self, conn: Conn) -> None:
        if conn.server is not None:
            self._pump.flush(conn.server)

    def _close(self, conn: Conn) -> None:
        """Close both; FINs go out. Command CLOSE."""
        let_readers_linger(conn)
        self._finish(conn)

    def _abort(self, conn: Conn) -> None:
        """Close what there is by RST. Command ABORT."""
        sockets.abort_on_close(conn.client.fd)
        if conn.server is not None:
            sockets.abort_on_close(conn.server.fd)
        self._finish(conn)

    def _finish(self, conn: Conn) -> None:
        """Tell, count and forget a connection."""
        try:
            if self.log is not None:
                self.log(conn)
        finally:
            self._forget(conn)

    def _forget(self, conn: Conn) -> None:
        """Count a connection that ended, and let go of all that it has."""
        self.count -= 1
        self.ended += 1
        loop = self._loop
        table, buried = loop.table, loop.buried
        conn.route.count_end(conn, loop.now)
        if conn.slot:
            self._wheel.remove(conn)
        for leg in (conn.client, conn.server):
            if leg is None:
                break
            if leg.pipe is not None:
                self._pump.release(leg)
            table[leg.fd] = None
            buried.append(leg.fd)
            leg.fd = -1
            # Without cycles nothing is left to the collector.
            del leg.other, leg.conn
