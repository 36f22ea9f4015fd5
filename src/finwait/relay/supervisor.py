"""The process that people talk to: it binds, starts workers, and answers for them.

Theory of operation: the supervisor owns everything that must outlive a worker: the listening sockets, the
configuration, what is known about backends, the admin socket. It never touches a relayed byte, so it may use
asyncio and take its time. Workers are forked; each has one Unix socket to here, over which it
gets its configuration and its listening sockets. A worker that dies is replaced, with the same sockets: connections of
others are not touched, and new ones wait in the kernel's queue meanwhile.

========  =====================================================================================
signal    meaning
========  =====================================================================================
TERM INT  drain: stop accepting, let connections end, cut the rest after ``drain``. Again: stop now
HUP       read the configuration again; connections that live keep what they began with
USR2      start the program anew with the same sockets, and drain when it is ready
USR1      open the access log again (HUP does, too)
========  =====================================================================================

Privileges: with ``user`` the supervisor gives them up after it has bound everything, and before the first worker
starts.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import json
import os
import pwd
import resource
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, NoReturn

import msgspec

from finwait import files
from finwait.errors import FileRefused, FinwaitError, KernelError
from finwait.relay import circles, listeners, metrics, process
from finwait.relay.config.addresses import split_address
from finwait.relay.config.model import ConfigError, parse_duration
from finwait.relay.config.toml import load
from finwait.relay.health import Checker
from finwait.relay.notice import say
from finwait.relay.resolve import Resolver
from finwait.relay.status import show

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from finwait.relay.config.model import Config
    from finwait.relay.listeners import Bound

__all__ = ["Supervisor", "hold_signals", "user_entry"]

_POLL_S: Final = 0.1
_PREDECESSOR: Final = "FINWAIT_RELAY_PREDECESSOR"
_ADMIN, _METRICS = "#admin", "#metrics"
"""Under these names the sockets for questions are handed over; no address begins so."""
_GRACE: Final = 5.0
"""Seconds a worker may take beyond its drain time before it is killed."""
_SPARE_FDS: Final = 256
_SIGNALS: Final = frozenset((signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2))
_WAITING: Final = frozenset((signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2))
_STDOUT: Final = ("-", "/dev/stdout")
"""Names of an access log that is standard output."""


def hold_signals() -> None:
    """Keep what asks a running relay for something waiting until it runs; without that it would end a starting one."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _WAITING)


def _known(path: str) -> tuple[int, int]:
    """Return device and inode of a path that we have just bound; (0, 0) if it is not there any more."""
    try:
        status = os.lstat(path)
    except OSError:
        return 0, 0
    return status.st_dev, status.st_ino


class _Request(msgspec.Struct):
    """What may be asked over the admin socket."""

    do: str
    ids: Annotated[
        list[Annotated[str, msgspec.Meta(pattern=r"^[0-9]{1,9}-[0-9]{1,18}$")]], msgspec.Meta(max_length=9999)
    ] = []  # msgspec copies it
    seconds: float | str | None = None


class _Child:
    """A forked worker.

    Forked, not started anew: after ``user`` the interpreter may be out of reach, and the pages are shared. The child
    never returns into the supervisor's frames, whose objects it must not touch: their descriptors are closed.
    """

    def __init__(self, control: socket.socket) -> None:
        self.returncode: int | None = None
        sys.stdout.flush()
        sys.stderr.flush()
        gc.collect()
        self.pid = os.fork()
        if self.pid == 0:
            self._be_a_worker(control.fileno())

    @staticmethod
    def _be_a_worker(control: int) -> NoReturn:
        status = 1
        try:
            gc.freeze()
            signal.set_wakeup_fd(-1)
            kept = os.dup2(control, 3) if control != 3 else 3
            os.closerange(4, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
            null = os.open(os.devnull, os.O_RDONLY)
            os.dup2(null, 0)
            os.close(null)
            status = process.main(kept)
        except BaseException:  # noqa: BLE001  # the outermost frame of a process
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)

    def poll(self) -> int | None:
        """Return the exit status if it has ended."""
        return self._wait(os.WNOHANG)

    def wait(self) -> int:
        """Wait for its end; minus the signal's number when one ended it."""
        status = self._wait(0)
        assert status is not None
        return status

    def _wait(self, options: int) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, options)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def kill(self) -> None:
        """Send SIGKILL."""
        os.kill(self.pid, signal.SIGKILL)


class _Line:
    """One worker process, and the socket to it."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.known: set[str] = set()
        """Keys of the listeners that it has."""
        self.started = time.monotonic()
        near, far = socket.socketpair()
        with far:
            self.process = _Child(far)
        near.setblocking(False)
        self.sock = near
        self._queue: deque[tuple[bytes, list[int]]] = deque()
        self._received = bytearray()
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._count = 0
        self._loop = asyncio.get_running_loop()
        self._writing = False
        self._loop.add_reader(near.fileno(), self._read)

    def tell(self, order: dict[str, Any], fds: list[int] | None = None) -> None:
        """Send an order; descriptors are duplicated, the caller keeps its own."""
        copies = [os.dup(fd) for fd in fds or []]
        self._queue.append((msgspec.json.encode(order) + b"\n", copies))
        self._write()

    async def ask(self, order: dict[str, Any], seconds: float = 10.0) -> Any:  # noqa: ANN401  # whatever JSON held
        """Send an order and wait for its answer; None when the worker is gone or does not answer."""
        self._count += 1
        future: asyncio.Future[Any] = self._loop.create_future()
        self._waiting[self._count] = future
        self.tell({**order, "n": self._count})
        try:
            return await asyncio.wait_for(future, seconds)
        except TimeoutError:
            return None
        finally:
            self._waiting.pop(self._count, None)

    def _write(self) -> None:
        try:
            while self._queue:
                data, fds = self._queue[0]
                sent = socket.send_fds(self.sock, [data], fds) if fds else self.sock.send(data)
                for fd in fds:
                    os.close(fd)
                if sent < len(data):
                    self._queue[0] = (data[sent:], [])
                else:
                    self._queue.popleft()
        except BlockingIOError:
            if not self._writing:
                self._writing = True
                self._loop.add_writer(self.sock.fileno(), self._write)
            return
        except OSError:
            self._drop_queue()
        if self._writing:
            self._writing = False
            self._loop.remove_writer(self.sock.fileno())

    def _drop_queue(self) -> None:
        for _, fds in self._queue:
            for fd in fds:
                os.close(fd)
        self._queue.clear()

    def _read(self) -> None:
        try:
            data = self.sock.recv(1 << 20)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.close()
            return
        self._received += data
        while (end := self._received.find(b"\n")) >= 0:
            answer = msgspec.json.decode(bytes(self._received[:end]))
            del self._received[: end + 1]
            future = self._waiting.get(answer["re"])
            if future is not None and not future.done():
                future.set_result(answer["ok"])

    def close(self) -> None:
        """Let go of the line; the worker drains when it notices. Safe to call twice."""
        if self.sock.fileno() < 0:
            return
        self._loop.remove_reader(self.sock.fileno())
        if self._writing:
            self._loop.remove_writer(self.sock.fileno())
        self.sock.close()
        self._drop_queue()
        for future in self._waiting.values():
            if not future.done():
                future.set_result(None)


async def _end_of(process: _Child) -> None:
    """Wait until a process has ended; its status is still to be fetched."""
    loop = asyncio.get_running_loop()
    try:
        pidfd = os.pidfd_open(process.pid)
    except OSError as error:
        if error.errno != errno.ENOSYS:
            raise
        while process.poll() is None:  # before Linux 5.3, and in sandboxes that are older than the call
            await asyncio.sleep(_POLL_S)
        return
    ended: asyncio.Future[None] = loop.create_future()
    loop.add_reader(pidfd, lambda: None if ended.done() else ended.set_result(None))
    try:
        await ended
    finally:
        loop.remove_reader(pidfd)
        os.close(pidfd)


class Supervisor:
    """A running relay.

    Args:
        read: returns the configuration; called again on SIGHUP.
        argv: how this program was started, for SIGUSR2.
    """

    def __init__(self, read: Callable[[], Config], argv: list[str]) -> None:
        self.read = read
        self.argv = argv
        self.config = read()
        self.bound: dict[str, Bound] = {}
        self.lines: list[_Line] = []
        self.log_fd = -1
        self.draining = False
        self.stopping = False
        """Whether connections are ended now, not only let end."""
        self.finished: asyncio.Event
        self.reloading: asyncio.Lock
        self.tasks: set[asyncio.Task[Any]] = set()
        self.checker: Checker
        self.resolver: Resolver
        self.admin: socket.socket | None = None
        self.metrics: socket.socket | None = None
        self.servers: list[asyncio.AbstractServer] = []
        self.circles = circles.Circles(())
        self.admin_known = (0, 0)
        """Device and inode of the path of the admin socket."""
        self.places: dict[str, tuple[int, int]] = {}
        """Paths of our Unix listeners, with device and inode."""
        self.restarts = 0
        self.successor: subprocess.Popen[bytes] | None = None

    # ── starting ─────────────────────────────────────────────────────────────────────────────────────────

    def bind(self) -> None:
        """Do what may need privileges, then give them up.

        Raises:
            FinwaitError: an address cannot be bound, a file not opened, or the user is not there.
        """
        passed = listeners.inherited(os.environ, os.getpid())
        predecessor = os.environ.pop(_PREDECESSOR, "")
        self.predecessor = int(predecessor) if predecessor.isdecimal() else 0
        for name in (listeners.HANDED, "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"):
            os.environ.pop(name, None)
        admin, counts = passed.pop(_ADMIN, []), passed.pop(_METRICS, [])
        self.bound = listeners.bind_all(self.config, {}, passed)
        for left in passed.values():
            for sock in left:
                sock.close()
        self._know_places()
        self._raise_limits()
        self._make_log()
        self.admin = self._bind_admin(self.config.admin, admin) if self.config.admin else None
        self.metrics = self._bind_metrics(self.config.metrics, counts) if self.config.metrics else None
        for sock in (*admin, *counts):
            if sock not in (self.admin, self.metrics):
                sock.close()
        if self.config.user:
            _become(self.config.user)
        self._open_log()

    def _know_places(self) -> None:
        """Note what our Unix listeners are in the file system, so that nothing else is removed at the end."""
        for one in self.bound.values():
            for sock in one.sockets:
                name = sock.getsockname() if sock.family == socket.AF_UNIX else ""
                if (
                    isinstance(name, str)
                    and name
                    and name not in self.places
                    and not one.key.startswith("fd:")
                ):
                    self.places[name] = _known(name)

    def _make_log(self) -> None:
        """Make the access log for ``user``, where that user could not; as root, so only a new file, by no link.

        Whatever else there is about the log is done as that user: in a directory of his own he may have put anything.
        """
        path = self.config.access_log
        if not (self.config.user and os.geteuid() == 0 and path not in ("", *_STDOUT)):
            return
        entry = user_entry(self.config.user)
        above, name = os.path.split(path)
        with self._log_errors(path), files.folder(above) as folder:
            if folder.status(name) is None and os.fstat(folder.fd).st_uid != entry.pw_uid:
                fd = folder.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
                try:
                    os.fchmod(fd, 0o640)
                    os.fchown(fd, entry.pw_uid, entry.pw_gid)
                finally:
                    os.close(fd)

    @contextlib.contextmanager
    def _log_errors(self, path: str) -> Iterator[None]:
        try:
            yield
        except FileRefused as error:
            raise ConfigError(f"the access log {error}", hint=error.hint) from None
        except OSError as error:
            who = f"`{self.config.user}`" if self.config.user else "this user"
            raise KernelError(
                error.errno or 0, f"open the access log `{path}`", hint=f"may {who} write there?"
            ) from None

    def _raise_limits(self) -> None:
        """Raise the descriptor limit to what is allowed, and say so when that is too little."""
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        needed = 2 * -(-self.config.max_connections // self.config.workers) + _SPARE_FDS
        if needed > hard:
            say(
                f"max_connections = {self.config.max_connections} needs {needed} descriptors a worker, "
                f"the limit is {hard}; beyond it new connections wait\nhint: raise LimitNOFILE= or `ulimit -n`"
            )

    def _open_log(self) -> None:
        """Open the access log, anew if it is open."""
        path = self.config.access_log
        if not path:
            return
        with self._log_errors(path):
            fd = os.dup(1) if path in _STDOUT else files.append_to(path, 0o640)
        if self.log_fd >= 0:
            os.close(self.log_fd)
        self.log_fd = fd

    def _bind_admin(self, path: str, passed: list[socket.socket]) -> socket.socket:
        for sock in passed:
            # After `user` this process could neither remove the old socket nor make a new one in /run.
            if sock.getsockname() == path:
                self.admin_known = _known(path)
                return sock
        self._check_admin(path)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        mask = os.umask(0o177)
        try:
            listeners.remove_stale(path)
            sock.bind(path)
            self.admin_known = _known(path)
        except OSError as error:
            sock.close()
            raise KernelError(
                error.errno or 0,
                f"bind the admin socket `{path}`",
                hint="another relay may have it, or the path be something else",
            ) from None
        finally:
            os.umask(mask)
        sock.listen(16)
        return sock

    def _check_admin(self, path: str) -> None:
        """Refuse a directory in which others could put a socket of their own in the place of ours."""
        also = [user_entry(self.config.user).pw_uid] if self.config.user else []
        try:
            with files.folder(os.path.dirname(path), also=also) as folder:
                reason = "" if folder.sticky else folder.alone
                reason = reason or folder.way
        except OSError as error:
            raise KernelError(error.errno or 0, f"bind the admin socket `{path}`") from None
        if reason:
            raise FileRefused(path, f"{reason}, who could answer in our place", hint="name another directory")

    def _bind_metrics(self, address: str, passed: list[socket.socket]) -> socket.socket:
        host, port = split_address(address)
        host = "::" if host in ("", "*") else host
        for sock in passed:
            own = {host, listeners.EVERY_IPV4} if host == "::" else {host}
            if sock.getsockname()[0] in own and sock.getsockname()[1] == int(port):
                return sock
        sock, host = listeners.made(host, f"{address} for metrics")
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if host == "::":
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            sock.bind((host, int(port)))
        except OSError as error:
            sock.close()
            raise listeners.refused(error, f"listen on {address} for metrics") from None
        return sock

    def run(self) -> int:
        """Serve until drained; return the exit status.

        Once more SIGTERM while it cleans up changes nothing: asyncio would put back the default, which kills.
        """
        try:
            return asyncio.run(self._run())
        finally:
            for number in _SIGNALS:
                signal.signal(number, signal.SIG_IGN)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)

    async def _run(self) -> int:
        loop = asyncio.get_running_loop()
        self.finished = asyncio.Event()
        self.reloading = asyncio.Lock()
        self.circles = circles.Circles(circles.listening(self.config, self.bound.values()))
        self.resolver = Resolver(self._backends_changed, self._leads_back)
        self.checker = Checker(self._backend_marked)
        self._handle_signals(loop)
        try:
            await self.resolver.use(self.config)
            if (
                not self.draining
            ):  # a signal may come while anything here is awaited, and closes the listeners
                self._refuse_circles()
                for index in range(self.config.workers):
                    self._start_worker(index)
                await asyncio.gather(*(line.ask({"do": "stats"}, 30) for line in self.lines))
            if not self.draining:
                await self._begin_service()
            if not self.draining:
                self._announce()
            await self.finished.wait()
        finally:
            signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
            for server in self.servers:
                server.close()
            for task in list(self.tasks):
                task.cancel()
            await asyncio.gather(*self.tasks, return_exceptions=True)
            self.checker.close()
            await self.resolver.close()
            self._remove_admin()
            self._remove_paths()
            for line in self.lines:
                line.close()
                if line.process.poll() is None:
                    line.process.kill()
                line.process.wait()
            for one in self.bound.values():
                one.close()
        return 0

    async def _begin_service(self) -> None:
        """Check backends, and answer questions and scrapes."""
        self.checker.use(self.config, self.resolver.found)
        if self.admin is not None:
            # From 3.13 on asyncio removes the path at close, also when a successor listens there.
            keep: dict[str, Any] = {"cleanup_socket": False} if sys.version_info >= (3, 13) else {}
            self.servers.append(await asyncio.start_unix_server(self._serve_admin, sock=self.admin, **keep))
        if self.metrics is not None:
            self.servers.append(await asyncio.start_server(self._serve_metrics, sock=self.metrics))

    def _handle_signals(self, loop: asyncio.AbstractEventLoop) -> None:
        """Take signals from now on, those that `hold_signals` kept waiting first."""
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        for number, handler in (
            (signal.SIGTERM, self.on_term),
            (signal.SIGINT, self.on_term),
            (signal.SIGHUP, self.on_hup),
            (signal.SIGUSR1, self.on_usr1),
            (signal.SIGUSR2, self.on_usr2),
        ):
            loop.add_signal_handler(number, handler)
        # More signals than fit into the loop's pipe are no mistake of ours: a traceback would say so.
        signal.set_wakeup_fd(signal.set_wakeup_fd(-1), warn_on_full_buffer=False)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)

    def _leads_back(self, service: str, row: list[Any]) -> str:
        return self.circles.closes(service, row, self.resolver.found)

    def _refuse_circles(self) -> None:
        """Refuse to start with a service whose backends are all left out because they lead back to it."""
        for (service, _), why in self.resolver.left_out.items():
            if not self.resolver.found.get(service):
                raise ConfigError(why, hint="name another backend")

    def _announce(self) -> None:
        """Say that it works; and let a relay that ran before go."""
        for one in self.bound.values():
            service = next(s for s in self.config.service if s.name == one.service)
            where = ", ".join(backend.address for backend in service.backend)
            name = one.sockets[0].getsockname()
            say(f"{show(name[:2] if isinstance(name, tuple) else name)} → {where} ({one.service})")
        _notify(f"READY=1\nMAINPID={os.getpid()}")
        if self.predecessor:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.predecessor, signal.SIGTERM)

    def _remove_admin(self) -> None:
        if self.successor is None and self.config.admin:  # else a successor answers at the same path
            with contextlib.suppress(OSError, FinwaitError):
                files.remove(self.config.admin, self.admin_known)

    def _remove_paths(self) -> None:
        """Remove the paths of our Unix listeners, while they are open and so known to be ours."""
        if self.successor is not None:  # it holds the same sockets, by the same paths
            return
        for one in self.bound.values():
            for sock in one.sockets:
                if sock.fileno() < 0 or sock.family != socket.AF_UNIX or one.key.startswith("fd:"):
                    continue
                name = sock.getsockname()
                if isinstance(name, str) and (known := self.places.pop(name, None)):
                    with contextlib.suppress(OSError, FinwaitError):
                        files.remove(name, known)

    # ── workers ──────────────────────────────────────────────────────────────────────────────────────────

    def _start_worker(self, index: int) -> None:
        line = _Line(index)
        self.lines.append(line)
        self._configure(line)
        self._spawn(self._watch(line))

    def _configure(self, line: _Line, *, log: bool = True) -> None:
        """Give a worker the configuration, the listeners it lacks, and the backends."""
        wanted = {key: one.service for key, one in self.bound.items()}
        new = [key for key in wanted if key not in line.known]
        fds = [self.bound[key].of(line.index).fileno() for key in new]
        with_log = log and self.log_fd >= 0
        # With the configuration, not after it: a listener must never have a service that knows no backend yet.
        backends = {service.name: self.resolver.found[service.name] for service in self.config.service}
        down = [list(which) for which in self.checker.down()]
        # SCM_MAX_FD is 253: a long range of ports goes in several orders.
        while True:
            part, new = new[:200], new[200:]
            known = line.known | set(part)
            line.tell(
                {
                    "do": "apply",
                    "config": msgspec.to_builtins(self.config),
                    "index": line.index,
                    "listeners": {key: name for key, name in wanted.items() if key in known},
                    "new": part,
                    "backends": backends,
                    "down": down,
                    "log": with_log,
                },
                fds[: len(part)] + ([self.log_fd] if with_log else []),
            )
            fds = fds[len(part) :]
            line.known = known & set(wanted)
            with_log, backends, down = False, {}, []
            if not new:
                break

    async def _watch(self, line: _Line) -> None:
        """Wait for a worker's end; replace it unless it was told to go."""
        await _end_of(line.process)
        status = line.process.wait()
        line.close()
        if line in self.lines:
            self.lines.remove(line)
        if self.draining:
            if not self.lines:
                self.finished.set()
            return
        said = f"signal {-status}" if status < 0 else f"status {status}"
        who = f"worker {line.index} (pid {line.process.pid})"
        say(f"{who} ended with {said}; its connections are lost, starting another")
        self.restarts += 1
        if time.monotonic() - line.started < 2:
            await asyncio.sleep(1)
        if not self.draining:
            self._start_worker(line.index)

    def _spawn(self, work: Any) -> None:  # noqa: ANN401  # a coroutine
        task = asyncio.get_running_loop().create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self.tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            say("".join(traceback.format_exception(error)).rstrip())

    def _backends_changed(self, service: str, found: list[list[Any]]) -> None:
        for line in self.lines:
            line.tell({"do": "backends", "service": service, "backends": found})
        self.checker.use(self.config, self.resolver.found)

    def _backend_marked(self, service: str, name: str, up: bool, why: str) -> None:
        say(f"backend {name} of `{service}` is {'up' if up else 'down'}: {why}")
        for line in self.lines:
            line.tell({"do": "mark", "service": service, "backend": name, "up": up})

    # ── signals ──────────────────────────────────────────────────────────────────────────────────────────

    def on_term(self) -> None:
        """Drain; the second time, stop."""
        self.drain(now=self.draining)

    def drain(self, *, seconds: float | None = None, now: bool = False) -> None:
        """Stop accepting and let connections end, or end them all at once."""
        first = not self.draining
        self.draining = True
        _notify("STOPPING=1")
        if first:
            longest = (
                max(service.timeouts.drain for service in self.config.service) if seconds is None else seconds
            )
            say("stopping now" if now else f"draining for up to {longest:g} s; once more to stop now")
            self._remove_paths()
            for one in self.bound.values():
                one.close()
            if self.successor is not None:
                # It answers questions from now on; both hold the same sockets.
                for server in self.servers:
                    server.close()
            for line in self.lines:
                line.tell({"do": "stop"} if now else {"do": "drain", "seconds": seconds})
            self._spawn(self._kill_late(0 if now else longest))
        elif now and not self.stopping:
            for line in self.lines:
                line.tell({"do": "stop"})
            self._spawn(self._kill_late(0))
        self.stopping = self.stopping or now
        if not self.lines:
            self.finished.set()

    async def _kill_late(self, seconds: float) -> None:
        await asyncio.sleep(seconds + _GRACE)
        for line in self.lines:
            say(f"worker {line.index} (pid {line.process.pid}) did not end in time: killed")
            line.process.kill()

    def on_hup(self) -> None:
        """Read the configuration again."""
        self._spawn(self._reload())

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
                    say(f"`{field}` is taken from the old configuration: it needs a new start (SIGUSR2)")
                    new = msgspec.structs.replace(new, **{field: getattr(self.config, field)})
            bound = listeners.bind_all(new, self.bound, {})
        except FinwaitError as error:
            say(
                f"the configuration was not reloaded: {error}\nhint: {error.hint or 'the old one stays in force'}"
            )
            return
        old, self.config = self.config, new
        try:
            self._open_log()
        except FinwaitError as error:
            self.config = msgspec.structs.replace(new, access_log=old.access_log)
            say(f"the access log stays where it was: {error}")
        gone = [one for key, one in self.bound.items() if key not in bound]
        self.bound = bound
        self._know_places()
        self.circles = circles.Circles(circles.listening(new, bound.values()))
        await self.resolver.use(self.config)
        for line in self.lines:
            self._configure(line)
        for one in gone:
            one.close()
        self.checker.use(self.config, self.resolver.found)
        say("configuration reloaded")

    def on_usr1(self) -> None:
        """Open the access log again."""
        try:
            self._open_log()
        except FinwaitError as error:
            say(f"the access log stays where it was: {error}")
            return
        for line in self.lines:
            self._configure(line)

    def on_usr2(self) -> None:
        """Start the program anew with these sockets; it will tell us to drain."""
        if self.draining or (self.successor is not None and self.successor.poll() is None):
            say("an upgrade is under way already")
            return
        own = {name: [s] for name, s in ((_ADMIN, self.admin), (_METRICS, self.metrics)) if s is not None}
        handed, fds = listeners.hand_over(self.bound, own)
        try:
            self.successor = subprocess.Popen(
                self.argv, pass_fds=fds, env={**os.environ, **handed, _PREDECESSOR: str(os.getpid())}
            )
        except OSError as error:
            what = f"could not start `{self.argv[0]}` to take over: {error.strerror}; this process goes on"
            say(f"{what}\nhint: after `user` it must be able to read its own program")
            return
        say(f"started pid {self.successor.pid} to take over")
        self._spawn(self._await_successor(self.successor))

    async def _await_successor(self, successor: subprocess.Popen[bytes]) -> None:
        """Notice when a successor fails before it takes over."""
        while not self.draining:
            if successor.poll() is not None:
                say(f"the new process ended with status {successor.returncode}; this one goes on")
                self.successor = None
                return
            await asyncio.sleep(0.2)

    # ── questions ────────────────────────────────────────────────────────────────────────────────────────

    async def _ask(self, orders: Iterable[tuple[_Line, dict[str, Any]]]) -> tuple[list[Any], list[int]]:
        """Ask workers; return their answers, and the pids of those that did not answer."""
        asked = list(orders)
        answers = await asyncio.gather(*(line.ask(order) for line, order in asked))
        silent = [
            line.process.pid
            for (line, _), answer in zip(asked, answers, strict=True)
            if answer is None and line in self.lines
        ]
        return [answer for answer in answers if answer is not None], silent

    async def stats(self) -> tuple[list[dict[str, Any]], list[int]]:
        """Return the counts of every worker, and the pids of those that did not answer."""
        return await self._ask((line, {"do": "stats"}) for line in self.lines)

    async def _serve_admin(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                try:
                    request = msgspec.json.decode(line, type=_Request)
                    told, silent = await self._admin(request)
                    answer: dict[str, Any] = {"ok": told, "silent": silent} if silent else {"ok": told}
                except (msgspec.DecodeError, ValueError, RecursionError) as error:
                    answer = {"error": f"{type(error).__name__}: {error}"}
                writer.write(json.dumps(answer).encode() + b"\n")
                await writer.drain()
        except (ConnectionError, ValueError):  # ValueError: a line of more than 64 KiB
            pass
        finally:
            writer.close()

    async def _admin(self, request: _Request) -> tuple[Any, list[int]]:
        """Return what was asked for, and the pids of the workers that said nothing to it."""
        do = request.do
        if do == "ls":
            found, silent = await self._ask((line, {"do": "list"}) for line in self.lines)
            return [conn for some in found for conn in some], silent
        if do in ("show", "close"):
            numbers: dict[int, list[int]] = {}
            for text in request.ids:
                index, _, number = text.partition("-")
                numbers.setdefault(int(index), []).append(int(number))
            order = "list" if do == "show" else "close"
            found, silent = await self._ask(
                (line, {"do": order, "numbers": numbers[line.index]})
                for line in self.lines
                if line.index in numbers
            )
            if do == "close":
                return sum(found), silent
            return [conn for some in found for conn in some], silent
        if do == "drain":
            seconds = request.seconds
            self.drain(seconds=None if seconds is None else parse_duration(seconds))
            return None, []
        if do == "stats":
            workers, silent = await self.stats()
            return {"workers": workers, "restarts": self.restarts, "draining": self.draining}, silent
        if do == "metrics":
            workers, silent = await self.stats()
            return metrics.render(workers, self.restarts, len(silent)), silent
        raise ValueError(f"there is no request {do!r}")

    async def _serve_metrics(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
            method, _, rest = head.partition(b" ")
            path = rest.partition(b" ")[0].partition(b"?")[0]
            if method not in (b"GET", b"HEAD"):
                status, said = b"405 Method Not Allowed\r\nAllow: GET, HEAD", "only GET and HEAD\n"
            elif path != b"/metrics":
                status, said = b"404 Not Found", "see /metrics\n"
            else:
                workers, silent = await self.stats()
                status, said = b"200 OK", metrics.render(workers, self.restarts, len(silent))
            body = said.encode()
            writer.write(
                b"HTTP/1.1 %s\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n"
                b"Content-Length: %d\r\nConnection: close\r\n\r\n" % (status, len(body))
            )
            if method != b"HEAD":
                writer.write(body)
            await writer.drain()
        except (TimeoutError, ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass
        finally:
            writer.close()


def user_entry(user: str) -> pwd.struct_passwd:
    """Return what the machine knows of a user.

    Raises:
        ConfigError: there is none of that name.
    """
    try:
        return pwd.getpwnam(user)
    except KeyError:
        raise ConfigError(
            f"there is no user `{user}`", hint="`getent passwd` lists those there are"
        ) from None


def _become(user: str) -> None:
    """Give up root for a user, for good."""
    entry = user_entry(user)
    if os.geteuid() == entry.pw_uid:
        return
    try:
        os.initgroups(user, entry.pw_gid)
        os.setresgid(entry.pw_gid, entry.pw_gid, entry.pw_gid)
        os.setresuid(entry.pw_uid, entry.pw_uid, entry.pw_uid)
    except OSError as error:
        raise KernelError(error.errno or 0, f"become user `{user}`", hint="only root can") from None


def _notify(state: str) -> None:
    """Tell systemd (sd_notify(3)), if it listens."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock, contextlib.suppress(OSError):
        sock.sendto(state.encode(), "\0" + path[1:] if path.startswith("@") else path)


def read_file(path: Path) -> Callable[[], Config]:
    """Return what reads a configuration file, for `Supervisor`."""
    return lambda: load(path)
