"""The process around `finwait.relay.server.Worker`: orders come over a Unix socket, descriptors with them.

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
import time
from typing import Any, Final

import msgspec

from finwait.relay import sockets
from finwait.relay.accesslog import AccessLog
from finwait.relay.balance import Backend
from finwait.relay.config.model import Config, Pool
from finwait.relay.notice import say
from finwait.relay.server import IN, OUT, PIPES, Route, Worker

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


class Process:
    """A worker and its line to the supervisor."""

    def __init__(self, control: socket.socket) -> None:
        self.control = control
        control.setblocking(False)
        self.worker = Worker(log=None)
        self.received = bytearray()
        self.fds: list[int] = []
        self.unsent = bytearray()
        self.access_log: AccessLog | None = None
        self.log_lines: list[bytes] = []
        self.log_size = 0
        self.log_flushed = 0.0
        self.configured = False
        self.worker.watch(control.fileno(), self.on_control)
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
                self.worker.unwatch(self.control.fileno())
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
        self.worker.epoll.modify(self.control.fileno(), IN | OUT if self.unsent else IN)

    # ── orders ───────────────────────────────────────────────────────────────────────────────────────────

    def do_apply(self, order: dict[str, Any]) -> None:
        """Take a configuration; the descriptors are new listeners and, if named, the access log."""
        worker = self.worker
        config = msgspec.convert(order["config"], Config)
        worker.index, worker.share = order["index"], config.workers
        worker.max_connections = min(
            -(-config.max_connections // config.workers), _room(len(order["listeners"]))
        )
        routes = {}
        for service in config.service:
            route = worker.routes.get(service.name)
            if route is None:
                route = Route(service, config.workers)
            else:
                route.set(service, config.workers)
            routes[service.name] = route
        wanted: dict[str, str] = order["listeners"]
        for key in [key for key in worker.listeners if key not in wanted]:
            worker.unlisten(key)
        for name, route in worker.routes.items():
            if name not in routes:  # it lives on for its connections alone, and opens none in advance
                route.service = msgspec.structs.replace(route.service, pool=Pool())
                for idle in [idle for backend in route.balancer.backends for idle in backend.idle]:
                    worker.drop_idle(idle)
        worker.routes = {**worker.routes, **routes}
        for name in [name for name, route in worker.routes.items() if name not in routes and not route.count]:
            del worker.routes[name]
        for name, rows in order["backends"].items():
            self.take_backends(routes[name], rows)
        for name, backend in order["down"]:
            if name in routes:
                routes[name].balancer.mark(backend, False, time.monotonic())
        for key, name in wanted.items():
            if key in worker.listeners:
                worker.listeners[key].route = routes[name]
        for key in order["new"]:
            if not self.fds:  # the kernel drops descriptors for which the receiver has no room (MSG_CTRUNC)
                say(f"no descriptor left to take over the listener {key}")
                break
            sock = socket.socket(fileno=self.fds.pop(0))
            worker.listen(key, sock, routes[wanted[key]])
        if order["log"] and self.fds:
            self.flush_log()
            if self.access_log is not None:
                self.access_log.close()
            self.access_log = AccessLog(self.fds.pop(0))
        worker.log = self.log if self.access_log is not None else None

    def do_backends(self, order: dict[str, Any]) -> None:
        """Take the backends of a service, which changed."""
        route = self.worker.routes.get(order["service"])
        if route is not None:
            self.take_backends(route, order["backends"])

    def take_backends(self, route: Route, rows: list[list[Any]]) -> None:
        """Take what is said of each: name, family, address, weight, most connections."""
        found = [
            Backend(name, family, tuple(address) if isinstance(address, list) else address, weight, most)
            for name, family, address, weight, most in rows
        ]
        for gone in route.balancer.update(found, time.monotonic()):
            for idle in list(gone.idle):
                self.worker.drop_idle(idle)

    def do_mark(self, order: dict[str, Any]) -> None:
        """Take what a check says about a backend."""
        route = self.worker.routes.get(order["service"])
        if route is not None:
            route.balancer.mark(order["backend"], order["up"], time.monotonic())

    def do_list(self, order: dict[str, Any]) -> list[dict[str, Any]]:
        """Describe all connections, or those whose numbers are asked for."""
        self.worker.now = time.monotonic()
        numbers = order.get("numbers")
        return [
            self.worker.describe(conn)
            for conn in self.worker.conns()
            if numbers is None or conn.number in numbers
        ]

    def do_stats(self, order: dict[str, Any]) -> dict[str, Any]:  # noqa: ARG002  # the form of every order
        """Return the counts."""
        self.worker.now = time.monotonic()
        dropped = self.access_log.dropped if self.access_log is not None else 0
        told = {"pid": os.getpid(), "index": self.worker.index, "access_log_dropped": dropped}
        return {**self.worker.stats(), **told}

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

    def log(self, entry: dict[str, Any]) -> None:
        """Queue a line; lines go out together, at the latest a second later."""
        line = msgspec.json.encode(entry) + b"\n"
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
        if self.log_lines and self.worker.now - self.log_flushed >= 0.5:
            self.log_flushed = self.worker.now
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
