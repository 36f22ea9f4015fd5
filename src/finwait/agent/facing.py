"""The looker's side of the process that faces the network: where it listens, what it is told, and that it runs.

The address is bound here, by the process that may bind it; the other one gets the socket, and the next one another. It
is told who may read on its standard input, a line now and one after each change, for a command line can be read by
everybody.

Where the two run in two containers the looker cannot start the other process. Then `finwait agent serve` becomes it
(`become_face`), and asks at a Unix socket that is for it alone (`ServeSocket`).
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Final, NoReturn, Self

from finwait import files
from finwait.agent import confined
from finwait.agent.client import not_bound
from finwait.errors import DecodeError, FileRefused, FinwaitError, Gap, KernelError
from finwait.kernel import procfs
from finwait.relay.listeners import bind_metrics, remove_stale
from finwait.table.units import printable
from finwait.uapi.proc import parse_stat

__all__ = ["UNIX", "FaceProcess", "Pulse", "ServeSocket", "become_face", "bound", "say"]

UNIX: Final = "unix:"
"""How an address begins that is a path."""
_FACE: Final = (
    sys.executable,
    "-P",  # else a module that somebody left in the working directory runs with our rights
    "-m",
    "finwait.agent.face",
)
_FACE_PAUSE_S: Final = 5.0
_LONGEST_PAUSE_S: Final = 300.0
_HEALTHY_S: Final = 60.0
"""One that was seen to run for so long ended for a new reason."""
_WELL_S: Final = 10.0
"""One that runs for so long serves."""
_SILENT_S: Final = 60.0
"""One that asks nothing for so long hangs, for by itself it asks every five seconds …"""
_STARTING_S: Final = 180.0
"""… once it has begun."""
_CHECK_MOST_S: Final = 20.0
"""What one check adds to that: between two the machine may have stood still, and both processes with it."""


def say(text: str) -> None:
    """Write lines to standard error."""
    sys.stderr.write("".join(f"{printable(line)}\n" for line in f"finwait agent: {text}".split("\n")))
    sys.stderr.flush()


def bound(path: str, option: str = "--socket", *, shared: bool = False) -> socket.socket:
    """Return a Unix socket that listens, which only root and its group can open.

    Args:
        path: where.
        option: which names it.
        shared: whether others may write to the folder, as who asks there sees for itself who answers.

    Raises:
        FileRefused: others could put a socket of their own in its place.
        KernelError: it cannot be bound.
    """
    above = os.path.dirname(path) or "."
    with files.folder(above, make=True) as folder:
        reason = "" if folder.sticky or shared else folder.alone
        if reason := reason or folder.way:
            raise FileRefused(
                path, f"{reason}, who could answer in place of the agent", hint=f"name another `{option}`"
            )
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    mask = os.umask(0o117)
    try:
        remove_stale(path)
        sock.bind(path)
        sock.listen(16)
    except OSError as error:
        sock.close()
        raise not_bound(error, path) from None
    finally:
        os.umask(mask)
    return sock


def _end_old_face(fd: int) -> None:
    """End the process that an agent which was killed has left behind, which holds its address.

    Raises:
        KernelError: we may not.
    """
    words = os.pread(fd, 200, 0).split() if fd >= 0 else []
    if len(words) != 2 or not all(word.isdigit() for word in words):
        return
    pid = int(words[0])
    end = time.monotonic() + 2.0
    number = signal.SIGTERM
    while _began(pid) == int(words[1]) and b"finwait.agent.face" in (
        procfs.read(f"/proc/{pid}/cmdline") or b""
    ):
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return
        except PermissionError:  # it has another user: an agent without CAP_KILL may not
            raise KernelError(
                errno.EPERM,
                f"end pid {pid}, which an agent that was killed has left and which still serves the page",
                hint=f"`kill {pid}`, or give the agent CAP_KILL; by itself it ends after ten minutes",
            ) from None
        if time.monotonic() > end:
            number = signal.SIGKILL
        time.sleep(0.02)


def _began(pid: int) -> int:
    """Return when a process began, in ticks since boot: with the pid it names one; −1 where it is over."""
    try:
        stat = parse_stat(procfs.read(f"/proc/{pid}/stat") or b"")
    except DecodeError:
        return -1
    return -1 if stat.state in ("Z", "X", "x") else stat.start_ticks


class ServeSocket:
    """A Unix socket for a process that faces the network and that somebody else has started; a context manager.

    One is served at a time: what is answered costs a share of the looking. One that asks nothing any more hangs: it is
    let go, so that the next one can be served.

    Args:
        serve: answers its questions until it goes; it is called in a thread.
        path: of the socket.
    """

    def __init__(self, serve: Callable[[socket.socket, Pulse], None], path: str) -> None:
        self._serve = serve
        self._path = path
        self._listener: socket.socket | None = None
        self._served: tuple[socket.socket, Pulse] | None = None
        self._heard: tuple[Pulse, int] | None = None
        self._silent_s = self._checked = 0.0
        self._hangs = False

    def __enter__(self) -> Self:
        """Bind it.

        Raises:
            FileRefused: others could put another folder in the place of its own.
            KernelError: it cannot be bound.
        """
        self._listener = bound(self._path, "--serve-socket", shared=True)
        threading.Thread(
            target=self._accept, args=(self._listener,), name="finwait-serve", daemon=True
        ).start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None
            with contextlib.suppress(OSError):
                os.unlink(self._path)

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            pulse = Pulse()
            self._served = client, pulse
            try:
                self._serve(client, pulse)
            finally:
                self._served = None

    def check(self) -> None:
        """Let one go that asks nothing any more."""
        now, served = time.monotonic(), self._served
        elapsed_s, self._checked = min(now - self._checked, _CHECK_MOST_S), now
        heard = None if served is None else (served[1], served[1].questions)
        if served is None or served[1].waits or heard != self._heard:
            self._hangs = self._hangs and not (heard is not None and heard[1])
            self._heard, self._silent_s = heard, 0.0
            return
        self._silent_s += elapsed_s
        if self._silent_s >= _SILENT_S:
            if not self._hangs:
                say(f"the process that serves the page at `{self._path}` asks nothing, and hangs")
            self._hangs = True
            with contextlib.suppress(OSError):
                served[0].shutdown(socket.SHUT_RDWR)

    @property
    def gaps(self) -> tuple[Gap, ...]:
        """What says that nothing is served: the process hangs, and no other one has asked since."""
        if not self._hangs:
            return ()
        doing = f"serve it: the process that asks at `{self._path}` asks nothing, and hangs"
        return (Gap("the page and the metrics", doing, "`finwait agent serve` started again"),)


def become_face(
    path: str, listen: str, token: str, interval_s: float, tls: tuple[str, str] | None
) -> NoReturn:
    """Become the process that faces the network, which asks at a Unix socket; return never.

    Args:
        path: of the looker's `ServeSocket`. It may come and go.
        listen: where it listens.
        token: what who reads the page must show; empty for nothing.
        interval_s: seconds between two looks.
        tls: certificate and key in PEM; None for no TLS.

    Raises:
        KernelError: the address cannot be bound.
    """
    FaceProcess(lambda end, _: end.close(), listen, token, interval_s, -1, tls=tls).become(path)


class Pulse:
    """When a process asks, told by the thread that answers it.

    Attributes:
        questions: how many it has asked.
        waits: whether it waits for an answer.
    """

    def __init__(self) -> None:
        self.questions = 0
        self.waits = False

    def asked(self) -> None:
        """Enter a question."""
        self.questions += 1
        self.waits = True

    def answered(self) -> None:
        """Enter that it has the answer."""
        self.waits = False


class _Conversation:
    """Our end of the socket pair of one process, and the thread that answers there.

    Args:
        serve: answers until the process goes, or we let go; it closes the socket.
        own_end: of the pair.
    """

    def __init__(self, serve: Callable[[socket.socket, Pulse], None], own_end: socket.socket) -> None:
        self._own_end = own_end
        self._pulse = Pulse()
        self._known = 0
        self._silent_s = 0.0
        self._thread = threading.Thread(
            target=serve, args=(own_end, self._pulse), name="finwait-face", daemon=True
        )
        self._thread.start()

    @property
    def runs(self) -> bool:
        """Whether the thread does: it ends within a moment of `let_go`, or after the answer that it is making."""
        return self._thread.is_alive()

    def let_go(self) -> None:
        """Answer no more, whoever still holds the other end."""
        with contextlib.suppress(OSError):
            self._own_end.shutdown(socket.SHUT_RDWR)

    def silent_s(self, elapsed_s: float) -> float:
        """Return for how long nothing was asked while nothing waited for an answer of ours.

        Args:
            elapsed_s: since this was asked last.
        """
        pulse = self._pulse
        if pulse.questions != self._known or (pulse.waits and self.runs):
            self._known, self._silent_s = pulse.questions, 0.0
        else:
            self._silent_s += min(elapsed_s, _CHECK_MOST_S)
        return self._silent_s

    @property
    def begun(self) -> bool:
        """Whether anything was asked."""
        return self._pulse.questions > 0


class FaceProcess:
    """The process that faces the network, started again when it ends, or asks nothing any more.

    Each has a listening socket of its own: what one that was taken over does to it ends with it. There is never a
    second one beside it: before the next one starts, the socket of the one before is let go, and the thread that
    answered there has ended.

    Args:
        serve: answers its questions, on our end of a socket pair, until it goes; it is called in a thread.
        listen: where it listens.
        token: what who reads the page must show; empty for nothing.
        interval_s: seconds between two looks.
        lock: descriptor of the file that the running agent holds, which names it for the next agent; −1 for none.
        tls: certificate and key in PEM; None for no TLS.
    """

    def __init__(
        self,
        serve: Callable[[socket.socket, Pulse], None],
        listen: str,
        token: str,
        interval_s: float,
        lock: int,
        tls: tuple[str, str] | None = None,
    ) -> None:
        self._tls = tls
        self._serve = serve
        self._lock = lock
        self._interval_s = interval_s
        self._listen = self._where = listen
        self._token = token
        self._process: subprocess.Popen[bytes] | None = None
        self._conversation: _Conversation | None = None
        self._due = self._begun = self._lasted_s = self._checked = 0.0
        self._failures = 0
        self._status: int | None = None
        self._hung = 0
        """Pid of the last one, where that hung; the next one may run already."""
        self._hanging: subprocess.Popen[bytes] | None = None
        self._refused = False
        """Whether it may not be ended by us."""
        self._listener: socket.socket | None = None
        self._guarded = False
        """Whether not everybody who reaches the network can reach it."""
        self._serves = False
        self._unbound = ""
        """Why the address could not be bound again."""

    def start(self) -> None:
        """Bind, and start it.

        Raises:
            KernelError: the address cannot be bound.
        """
        _end_old_face(self._lock)
        self._bind()
        self._serves = True
        self.check()

    def become(self, path: str) -> NoReturn:
        """Bind, and turn this process into it, which asks at a Unix socket; return never.

        Raises:
            KernelError: the address cannot be bound, or the interpreter not be started.
        """
        self._bind()
        assert self._listener is not None
        with os.fdopen(os.memfd_create("options"), "wb", buffering=0) as file:
            file.write(self._options())
            file.seek(0)
            os.dup2(file.fileno(), 0)
        os.set_inheritable(self._listener.fileno(), True)
        try:
            os.execv(sys.executable, [*_FACE, path, str(self._listener.fileno())])  # noqa: S606 - no shell is meant
        except OSError as error:
            raise KernelError(error.errno or 0, f"start `{sys.executable}`, which serves the page") from None

    def _bind(self) -> None:
        self._listen_at(self._listen)
        assert self._listener is not None
        if self._listener.family == socket.AF_UNIX:
            self._guarded = True
            return
        host, port = self._listener.getsockname()[:2]
        self._guarded = ipaddress.ip_address(host).is_loopback
        self._where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        if self._listen.endswith(":0"):
            say(f"serving at {self._url}")
        self._say_who_reads()

    def _listen_at(self, where: str) -> None:
        if where.startswith(UNIX):
            self._listener = bound(where.removeprefix(UNIX), "--listen")
        else:
            self._listener = bind_metrics(where, [])
            self._listener.listen(64)

    def _bind_again(self) -> bool:
        """Listen anew, for the process before had the socket and may have changed it; return whether that went well."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        try:
            self._listen_at(self._where)
        except (OSError, FinwaitError) as error:
            if not self._unbound:
                say(f"the page is not served: {error}")
            self._unbound = str(error)
            return False
        self._unbound = ""
        return True

    @property
    def _url(self) -> str:
        return f"{'https' if self._tls else 'http'}://{self._where}/"

    def _say_who_reads(self) -> None:
        if not (self._guarded or self._tls):
            token = "the token and " if self._token else ""
            say(
                f"no TLS at {self._where}: who can listen to that network can read {token}all that is served there; "
                "`--tls-cert` and `--tls-key` prevent it"
            )
        if self._token:
            return
        say(
            f"every user of this machine can read the page at {self._url}; `--token-file` limits it"
            if self._guarded
            else f"{self._where} serves only /metrics and /healthz: the page needs `--token-file` there"
        )

    def _options(self) -> bytes:
        """Return what the process is told; of the token only its hash, and on no command line."""
        hashed = ""
        if self._token:
            import hashlib

            hashed = hashlib.sha256(self._token.encode()).hexdigest()
        served = self._guarded or bool(self._token)
        members = {"interval_s": self._interval_s, "token": hashed, "served": served}
        if self._tls is not None:
            members |= {"certificate": self._tls[0], "key": self._tls[1]}
        return json.dumps(members).encode() + b"\n"

    def change(self, token: str, tls: tuple[str, str] | None = None) -> None:
        """Tell it who may read from now on, and with which certificate; who reads already goes on."""
        opened = bool(self._token) and not token
        self._token = token
        self._tls = tls
        if opened and not self._listen.startswith(UNIX):
            self._say_who_reads()
        process = self._process
        if process is None or process.stdin is None or confined.over(process):
            return
        try:
            if os.write(process.stdin.fileno(), self._options()) != len(self._options()):
                raise BlockingIOError
        except OSError:  # it does not take it: `check` starts another one, which does
            confined.send_signal(process, signal.SIGKILL)

    @property
    def gaps(self) -> tuple[Gap, ...]:
        """What says that nothing is served: it hangs, or ended again and again."""
        process = self._process
        if process is None:
            return ()
        if self._unbound:
            return (
                Gap(
                    "the page and the metrics", f"serve them again: {self._unbound}", f"`{self._where}`, free"
                ),
            )
        hangs = self._hanging is process
        if not hangs and process.returncode is None and self._lasted_s >= _WELL_S:
            return ()
        needs = "what it wrote to standard error says"
        if self._hung:
            doing = f"serve it: its process (pid {self._hung}) asks nothing, and hangs"
            needs = "CAP_KILL" if hangs and self._refused else needs
        elif self._failures < 2:
            return ()
        else:
            doing = f"serve it: its process ended {self._failures} times in a row (status {self._status})"
        return (Gap("the page and the metrics", doing, needs),)

    def check(self) -> None:
        """Start it where it does not run, and end it where it hangs."""
        process, now = self._process, time.monotonic()
        if process is not None and not confined.over(process):
            self._lasted_s = now - self._begun
            self._end_hanging(process, now)
            return
        if self._conversation is not None:
            self._conversation.let_go()
        if process is not None:
            self._status = process.returncode
        if not self._serves or now < self._due:
            return
        if self._conversation is not None and self._conversation.runs:  # it is in the middle of an answer
            return
        if process is not None and not self._bind_again():
            self._due = now + _FACE_PAUSE_S
            return
        pause = _FACE_PAUSE_S
        if process is not None:
            self._failures = 1 if self._lasted_s >= _HEALTHY_S else self._failures + 1
            pause = min(_FACE_PAUSE_S * 2 ** min(self._failures - 1, 10), _LONGEST_PAUSE_S)
            say(f"the process that serves the page ended (status {self._status}); starting it again")
            if self._hanging is not process:
                self._hung = 0
        self._begun = self._checked = now
        self._lasted_s = 0.0
        self._due = now + pause
        assert self._listener is not None
        self._start(self._listener)

    def _end_hanging(self, process: subprocess.Popen[bytes], now: float) -> None:
        """End it where it asks nothing any more."""
        assert self._conversation is not None
        silent_s = self._conversation.silent_s(now - self._checked)
        self._checked = now
        if silent_s < (_SILENT_S if self._conversation.begun else _STARTING_S):
            if self._hanging is process:  # it goes on, before it could be ended
                self._hanging, self._hung = None, 0
            return
        if self._hanging is not process:
            self._hanging, self._hung = process, process.pid
            say(f"the process that serves the page (pid {process.pid}) asks nothing, and hangs; ending it")
        self._refused = not confined.send_signal(process, signal.SIGKILL)

    def _start(self, listener: socket.socket) -> None:
        """Start one."""
        before = self._process
        if before is not None and before.stdin is not None:
            before.stdin.close()
        own_end, other_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with other_end:
            descriptors = other_end.fileno(), listener.fileno()
            try:
                process = self._process = confined.start(
                    "finwait.agent.face", tuple(map(str, descriptors)), pass_fds=descriptors
                )
            except OSError:
                own_end.close()
                raise
            assert process.stdin is not None
            with contextlib.suppress(OSError):  # nobody else has written into it: it takes all at once
                os.write(process.stdin.fileno(), self._options())
        if self._lock >= 0:
            with contextlib.suppress(OSError):
                os.ftruncate(self._lock, 0)
                os.pwrite(self._lock, f"{process.pid} {_began(process.pid)}\n".encode(), 0)
        self._conversation = _Conversation(self._serve, own_end)

    def end(self) -> None:
        """End it."""
        self._serves = False
        if self._listener is not None:
            self._listener.close()
            if self._listen.startswith(UNIX):
                with contextlib.suppress(OSError):
                    os.unlink(self._listen.removeprefix(UNIX))
        process = self._process
        if process is None or process.stdin is None:
            return
        with contextlib.suppress(OSError):
            os.write(process.stdin.fileno(), b'{"end":true}\n')
        ended = confined.end(process)
        if self._conversation is not None:
            self._conversation.let_go()
        if ended:
            return
        say(
            f"the process that serves the page (pid {process.pid}) does not end, and may not be killed without CAP_KILL"
        )
