"""The process around a `Worker`: orders come over a Unix socket, descriptors with them.

One order or answer is one line of JSON. Listening sockets and the access log travel beside an order as
SCM_RIGHTS, in the order in which it names them. Answers are queued and never block the data path. When the
supervisor's end closes, whatever the reason, the worker drains: it never serves without somebody who
can be asked about it.
"""

from __future__ import annotations

import os
import resource
import signal
import socket
from typing import TYPE_CHECKING, Any, Final

import msgspec

from finwait.relay import sockets
from finwait.relay.accesslog import AccessLog, LostLines
from finwait.relay.balance import Backend
from finwait.relay.config.model import Config
from finwait.relay.loop import IN, OUT
from finwait.relay.notice import say
from finwait.relay.pipes import PIPES
from finwait.relay.worker import Worker

if TYPE_CHECKING:
    from finwait.relay.connection import Conn

__all__ = ["Process", "main"]

_LOG_BYTES: Final = 32768
_LOG_PATIENCE: Final = 2.0
"""Seconds that a worker waits at its end for a log that nobody takes up."""
_MAX_FDS: Final = 250
"""SCM_MAX_FD is 253 (include/net/scm.h)."""


_SPARE_FDS: Final = 2 * PIPES + 32


def _room(listeners: int) -> int:
    """Return how many connections the descriptor limit leaves room for: two sockets each, and our own things."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(1, (limit - _SPARE_FDS - listeners) // 2)


def _backend(row: list[Any]) -> Backend:
    """Return the backend that the supervisor describes: name, family, address, weight, most connections."""
    name, family, address, weight, most = row
    return Backend(name, family, tuple(address) if isinstance(address, list) else address, weight, most)


class Process:
    """A worker and its line to the supervisor."""

    def __init__(self, control: socket.socket) -> None:
        self.control = control
        control.setblocking(False)
        self.worker = Worker()
        self.received = bytearray()
        self.fds: list[int] = []
        self.unsent = bytearray()
        self.access_log: AccessLog | None = None
        self.lost_lines = LostLines()
        self.log_lines: list[bytes] = []
        self.log_size = 0
        self.log_flushed = 0.0
        self.configured = False
        self.worker.loop.watch(control.fileno(), self.on_control)
        self.told_to_drain = False
        signal.signal(signal.SIGTERM, self.on_term)
        for ignored in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR2, signal.SIGPIPE):
            signal.signal(ignored, signal.SIG_IGN)

    # ── the line ─────────────────────────────────────────────────────────────────────────────────────────

    def on_control(self, mask: int) -> None:
        """Take what the supervisor sent, and send what waits for it."""
        if mask & OUT:
            self.send_unsent()
        if not mask & ~OUT:
            return
        while True:
            try:
                data, fds, _, _ = socket.recv_fds(self.control, 65536, _MAX_FDS)
            except BlockingIOError:
                break
            except OSError:
                data, fds = b"", []
            self.fds += fds
            if not data:
                self.worker.loop.unwatch(self.control.fileno())
                self.control.close()
                self.worker.drain()
                return
            self.received += data
        while (end := self.received.find(b"\n")) >= 0:
            order = msgspec.json.decode(bytes(self.received[:end]))
            del self.received[: end + 1]
            answer = getattr(self, f"do_{order['do']}")(order)
            if "n" in order:
                self.send({"re": order["n"], "ok": answer})

    def send(self, message: dict[str, Any]) -> None:
        """Queue a message."""
        self.unsent += msgspec.json.encode(message) + b"\n"
        self.send_unsent()

    def send_unsent(self) -> None:
        """Send as much as goes."""
        try:
            while self.unsent:
                sent = self.control.send(self.unsent[:262144])
                del self.unsent[:sent]
        except BlockingIOError:
            pass
        except OSError:
            self.unsent.clear()
        self.worker.loop.epoll.modify(self.control.fileno(), IN | OUT if self.unsent else IN)

    # ── orders ───────────────────────────────────────────────────────────────────────────────────────────

    def do_apply(self, order: dict[str, Any]) -> None:
        """Take a configuration; the descriptors are new listeners and, if named, the access log."""
        worker = self.worker
        listeners: dict[str, str] = order["listeners"]
        config = msgspec.convert(order["config"], Config)
        worker.configure(config, order["index"], listeners, _room(len(listeners)))
        for name, rows in order["backends"].items():
            worker.use_backends(name, map(_backend, rows))
        for name, backend in order["down"]:
            worker.mark_backend(name, backend, False)
        for key, name in listeners.items():
            if key in worker.acceptor.listeners:
                worker.acceptor.listeners[key].route = worker.routes[name]
        for key in order["new"]:
            if not self.fds:  # the kernel drops descriptors for which the receiver has no room (MSG_CTRUNC)
                say(f"no descriptor left to take over the listener {key}")
                break
            sock = socket.socket(fileno=self.fds.pop(0))
            worker.acceptor.listen(key, sock, worker.routes[listeners[key]])
        if order["log"] and self.fds:
            self.flush_log()
            if self.access_log is not None:
                self.access_log.close()
            self.access_log = AccessLog(self.fds.pop(0), self.lost_lines)
        worker.driver.log = self.log if self.access_log is not None else None

    def do_backends(self, order: dict[str, Any]) -> None:
        """Take the backends of a service, which changed."""
        self.worker.use_backends(order["service"], map(_backend, order["backends"]))

    def do_mark(self, order: dict[str, Any]) -> None:
        """Take what a check says about a backend."""
        self.worker.mark_backend(order["service"], order["backend"], order["up"])

    def do_list(self, order: dict[str, Any]) -> list[dict[str, Any]]:
        """Describe all connections, or those whose numbers are asked for."""
        return self.worker.list_connections(order.get("numbers"))

    def do_stats(self, order: dict[str, Any]) -> dict[str, Any]:  # noqa: ARG002  # the form of every order
        """Return the counts."""
        return {**self.worker.stats(), "pid": os.getpid(), "access_log_dropped": self.lost_lines.count}

    def do_close(self, order: dict[str, Any]) -> int:
        """End connections by RST."""
        return self.worker.kill(order["numbers"])

    def do_drain(self, order: dict[str, Any]) -> None:
        """Begin to shut down."""
        self.worker.drain(order.get("seconds"))

    def do_stop(self, order: dict[str, Any]) -> None:  # noqa: ARG002
        """End everything now."""
        self.worker.stop()

    # ── the access log ───────────────────────────────────────────────────────────────────────────────────

    def log(self, conn: Conn) -> None:
        """Queue the line of a connection that ended; lines go out together, at the latest a second later."""
        line = msgspec.json.encode(self.worker.describe(conn)) + b"\n"
        self.log_lines.append(line)
        self.log_size += len(line)
        if self.log_size >= _LOG_BYTES:
            self.flush_log()

    def flush_log(self) -> None:
        """Hand the queued lines on together."""
        if self.log_lines and self.access_log is not None:
            self.access_log.write(self.log_lines)
        self.log_lines.clear()
        self.log_size = 0

    def run(self) -> None:
        """Work until drained or stopped."""
        try:
            self.worker.run(self.tend)
        finally:
            self.flush_log()
            if self.access_log is not None:
                self.access_log.close(_LOG_PATIENCE)

    def on_term(self, *_: object) -> None:
        """Note that somebody wants this worker to go. Handlers run between any two steps, so nothing more here."""
        self.told_to_drain = True

    def tend(self) -> None:
        """Do what is due after a turn: drain when told so by a signal, write out the log."""
        if self.told_to_drain and not self.worker.draining:
            self.worker.drain()
        if self.log_lines and self.worker.loop.now - self.log_flushed >= 0.5:
            self.log_flushed = self.worker.loop.now
            self.flush_log()


def main(control: int) -> int:
    """Run a worker whose line to the supervisor is this descriptor; return the exit status."""
    sockets.set_name("finwait-relay")
    for number in (signal.SIGUSR1, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    sock = socket.socket(fileno=control)
    sock.set_inheritable(False)
    Process(sock).run()
    return 0
