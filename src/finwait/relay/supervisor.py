"""The process that people talk to: it binds, starts workers, and answers for them.

Theory of operation: the supervisor owns everything that must outlive a worker: the listening sockets, the
configuration, what is known about backends, the admin socket. It never touches a relayed byte, so it may use
asyncio and take its time. What it is told by signals is in `finwait.relay.signals`, what it is asked in
`finwait.relay.admin`; its workers are a `finwait.relay.crew.Crew`.

Privileges: with ``user`` the supervisor gives them up after it has bound everything, and before the first worker
starts.

The surprise: a signal may come while anything here is awaited. A SIGTERM closes the listeners at once, so who was
about to start workers has to look again whether there is anything to serve.
"""

from __future__ import annotations

import asyncio
import math
import os
import signal
import time
from typing import TYPE_CHECKING, Any

import msgspec

from finwait.errors import FinwaitError
from finwait.relay import circles, listeners, successor
from finwait.relay.admin import Admin, bind_admin
from finwait.relay.config.model import ConfigError
from finwait.relay.crew import Crew, CrewStanding
from finwait.relay.health import Checker
from finwait.relay.logfile import LogFile
from finwait.relay.notice import notify, say
from finwait.relay.paths import OwnPaths
from finwait.relay.privileges import become, raise_limits
from finwait.relay.resolve import Resolver
from finwait.relay.signals import hold_signals_to_the_end, ignore_signals, take_signals
from finwait.relay.status import show
from finwait.relay.successor import Successor
from finwait.relay.tasks import Tasks

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from finwait.relay.config.model import Config
    from finwait.relay.listeners import Bound

__all__ = ["Supervisor"]

_ADMIN, _METRICS = "#admin", "#metrics"
"""Under these names the sockets for questions are handed over; no address begins so."""


class Supervisor:
    """A running relay.

    Args:
        read: returns the configuration; called again on SIGHUP.
        argv: how this program was started, for SIGUSR2.
    """

    def __init__(self, read: Callable[[], Config], argv: list[str]) -> None:
        self.read = read
        self.config = read()
        self.bound: dict[str, Bound] = {}
        self.draining = False
        self.stopping = False
        """Whether connections are ended now, not only let end."""
        self.cut_at = math.inf
        """When what is left is cut, on the monotonic clock; infinity while nobody drains."""
        self.predecessor = 0
        """The pid of the relay that ran before and waits for us to serve; 0: there is none."""
        self.successor = Successor(argv)
        self.tasks = Tasks()
        self.crew = Crew(self._standing, self.tasks)
        self.log = LogFile()
        self.paths = OwnPaths()
        self.circles = circles.Circles(())
        self.admin = Admin(self.crew, self._drain_as_asked, lambda: self.draining)
        self.admin_socket: socket.socket | None = None
        self.metrics_socket: socket.socket | None = None
        self.reloading: asyncio.Lock
        self.checker: Checker
        self.resolver: Resolver

    # ── starting ─────────────────────────────────────────────────────────────────────────────────────────

    def bind(self) -> None:
        """Do what may need privileges, then give them up.

        Raises:
            FinwaitError: an address cannot be bound, a file not opened, or the user is not there.
        """
        config = self.config
        passed = listeners.inherited(os.environ, os.getpid())
        self.predecessor = successor.take_predecessor(os.environ)
        for name in (listeners.HANDED, "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"):
            os.environ.pop(name, None)
        admin, scrapes = passed.pop(_ADMIN, []), passed.pop(_METRICS, [])
        self.bound = listeners.bind_all(config, {}, passed)
        for unused in passed.values():
            for sock in unused:
                sock.close()
        self.paths.note_listeners(self.bound.values())
        raise_limits(config.max_connections, config.workers)
        self.log.make(config.access_log, config.user)
        if config.admin:
            self.admin_socket = bind_admin(config.admin, admin, config.user)
            self.paths.note(config.admin)
        if config.metrics:
            self.metrics_socket = listeners.bind_metrics(config.metrics, scrapes)
        for sock in (*admin, *scrapes):
            if sock not in (self.admin_socket, self.metrics_socket):
                sock.close()
        if config.user:
            become(config.user)
        self.log.open(config.access_log, config.user)

    def run(self) -> int:
        """Serve until drained; return the exit status.

        Once more SIGTERM while it cleans up changes nothing: asyncio would put back the default, which kills.
        """
        try:
            return asyncio.run(self._run())
        finally:
            ignore_signals()

    async def _run(self) -> int:
        self.reloading = asyncio.Lock()
        self.circles = circles.Circles(circles.listening(self.config, self.bound.values()))
        self.resolver = Resolver(self._backends_changed, self._leads_back)
        self.checker = Checker(self._backend_marked)
        handlers = {
            signal.SIGTERM: self.on_term,
            signal.SIGINT: self.on_term,
            signal.SIGHUP: self.on_hup,
            signal.SIGUSR1: self.on_usr1,
            signal.SIGUSR2: self.on_usr2,
        }
        take_signals(asyncio.get_running_loop(), handlers)
        try:
            await self.resolver.use(self.config)
            if (
                not self.draining
            ):  # a signal may come while anything here is awaited, and closes the listeners
                self._refuse_circles()
                await self.crew.start(self.config.workers)
            if not self.draining:
                self.checker.use(self.config, self.resolver.found)
                await self.admin.serve(self.admin_socket, self.metrics_socket)
            if not self.draining:
                self._announce()
            await self.crew.gone.wait()
        finally:
            hold_signals_to_the_end()
            await self._clean_up()
        return 0

    async def _clean_up(self) -> None:
        self.admin.close()
        await self.tasks.close()
        self.checker.close()
        await self.resolver.close()
        if not self.successor.is_there:  # else it answers at the same path
            self.paths.remove(self.config.admin)
        self._remove_paths()
        self.crew.close()
        for listener in self.bound.values():
            listener.close()

    def _leads_back(self, service: str, row: list[Any]) -> str:
        return self.circles.closes(service, row, self.resolver.found)

    def _refuse_circles(self) -> None:
        """Refuse to start with a service whose backends are all left out because they lead back to it."""
        for (service, _), why in self.resolver.left_out.items():
            if not self.resolver.found.get(service):
                raise ConfigError(why, hint="name another backend")

    def _announce(self) -> None:
        """Say that it works; and let a relay that ran before go."""
        for listener in self.bound.values():
            service = next(s for s in self.config.service if s.name == listener.service)
            where = ", ".join(backend.address for backend in service.backend)
            name = listener.sockets[0].getsockname()
            say(f"{show(name[:2] if isinstance(name, tuple) else name)} → {where} ({listener.service})")
        notify(f"READY=1\nMAINPID={os.getpid()}")
        successor.end_predecessor(self.predecessor)

    def _remove_paths(self) -> None:
        if not self.successor.is_there:  # else it holds the same sockets, by the same paths
            self.paths.remove_listeners(self.bound.values())

    # ── what workers are told ────────────────────────────────────────────────────────────────────────────

    def _standing(self) -> CrewStanding:
        return CrewStanding(
            self.config,
            self.bound,
            {service.name: self.resolver.found[service.name] for service in self.config.service},
            [list(pair) for pair in self.checker.down()],
            self.log.fd,
        )

    def _backends_changed(self, service: str, backends: list[list[Any]]) -> None:
        self.crew.tell({"do": "backends", "service": service, "backends": backends})
        self.checker.use(self.config, self.resolver.found)

    def _backend_marked(self, service: str, name: str, up: bool, why: str) -> None:
        say(f"backend {name} of `{service}` is {'up' if up else 'down'}: {why}")
        self.crew.tell({"do": "mark", "service": service, "backend": name, "up": up})

    # ── signals ──────────────────────────────────────────────────────────────────────────────────────────

    def on_term(self) -> None:
        """Drain; the second time, stop."""
        self.drain(now=self.draining)

    def _drain_as_asked(self, seconds: float | None) -> tuple[float, bool]:
        """Drain, or drain faster; return in how many seconds what is left is cut, and whether that is as asked."""
        before = self.cut_at
        self.drain(seconds=seconds)
        return max(self.cut_at - time.monotonic(), 0.0), seconds is None or self.cut_at != before

    def drain(self, *, seconds: float | None = None, now: bool = False) -> None:
        """Stop accepting and let connections end, or end them all at once.

        While it drains, a shorter time takes effect, and a longer one changes nothing.
        """
        notify("STOPPING=1")
        longest = self._patience(seconds, now)
        cut_at = time.monotonic() + longest
        order = {"do": "stop"} if now else {"do": "drain", "seconds": seconds}
        if not self.draining:
            self.draining = True
            self.cut_at = cut_at
            say(
                "stopping now"
                if now
                else f"draining for up to {longest:g} s; the next SIGTERM or Ctrl-C stops at once"
            )
            self._stop_listening()
            self.crew.leave(order, longest)
        elif now and not self.stopping:
            self.cut_at = cut_at
            self.crew.leave(order, longest)
        elif seconds is not None and cut_at < self.cut_at:
            self.cut_at = cut_at
            say(f"draining for up to {longest:g} s from now, as asked")
            self.crew.leave(order, longest)  # each connection keeps the earlier of its two times
        self.stopping = self.stopping or now

    def _patience(self, seconds: float | None, now: bool) -> float:
        """Return after how many seconds the last connection is cut."""
        if now:
            return 0.0
        return max(s.timeouts.drain for s in self.config.service) if seconds is None else seconds

    def _stop_listening(self) -> None:
        self._remove_paths()
        for listener in self.bound.values():
            listener.close()
        if self.successor.is_there:
            # It answers questions from now on; both hold the same sockets.
            self.admin.close()

    def on_hup(self) -> None:
        """Read the configuration again."""
        self.tasks.spawn(self._reload())

    async def _reload(self) -> None:
        async with self.reloading:  # one after the other
            await self._reload_once()

    async def _reload_once(self) -> None:
        if self.draining:
            return
        try:
            new = self.read()
            for field in ("workers", "user", "admin", "metrics"):
                if getattr(new, field) != getattr(self.config, field):
                    say(f"`{field}` keeps its old value; a change needs a new start (SIGUSR2)")
                    new = msgspec.structs.replace(new, **{field: getattr(self.config, field)})
            bound = listeners.bind_all(new, self.bound, {})
        except FinwaitError as error:
            say(
                f"the configuration was not reloaded: {error}\nhint: {error.hint or 'the old one stays in force'}"
            )
            return
        old, self.config = self.config, new
        if not self._open_log():
            self.config = msgspec.structs.replace(new, access_log=old.access_log)
        gone = [listener for key, listener in self.bound.items() if key not in bound]
        self.bound = bound
        self.paths.note_listeners(bound.values())
        self.circles = circles.Circles(circles.listening(new, bound.values()))
        await self.resolver.use(self.config)
        self.crew.configure()
        for listener in gone:
            listener.close()
        self.checker.use(self.config, self.resolver.found)
        say("configuration reloaded")

    def _open_log(self) -> bool:
        """Open the access log, anew if it is open; return whether that was possible."""
        try:
            self.log.open(self.config.access_log, self.config.user)
        except FinwaitError as error:
            say(f"the access log stays where it was: {error}")
            return False
        return True

    def on_usr1(self) -> None:
        """Open the access log again."""
        if self._open_log():
            self.crew.configure()

    def on_usr2(self) -> None:
        """Start the program anew with these sockets; it will tell us to drain."""
        if self.draining or self.successor.is_running():
            say("an upgrade is already under way")
            return
        own = {_ADMIN: self.admin_socket, _METRICS: self.metrics_socket}
        if self.successor.start(self.bound, {name: [sock] for name, sock in own.items() if sock is not None}):
            self.tasks.spawn(self.successor.watch(lambda: self.draining))
