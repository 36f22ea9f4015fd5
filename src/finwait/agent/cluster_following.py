"""The looker's side of the process that follows a cluster: it runs, what it says is taken by types, names stay.

Theory of operation. A thread starts the process (`finwait.agent.cluster_follower`), reads its messages, and puts the
names in their place as a whole: who asks for them never waits. A process that ends, says what is none of its messages,
or says nothing for minutes is ended and started again, after a pause that grows; the names stay meanwhile, and a gap
says how old they are. With the looker it ends within two seconds: its standard input does.

What it uses of a processor the kernel tells; it is counted as the looker's own.
"""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Final, Self

from finwait.agent import confined
from finwait.agent.cluster_told import (
    FRAME_MOST,
    LENGTH,
    UNCONFINED,
    ClusterStatus,
    FollowRequest,
    Pieces,
    decode_message,
    encode_events,
    encode_request,
    taken,
)
from finwait.errors import DecodeError, Gap
from finwait.uapi.cluster import NO_NAMES, ClusterEvent, ClusterNames

__all__ = ["ClusterFollowing"]

_MODULE: Final = "finwait.agent.cluster_follower"
_FIRST_PAUSE_S: Final = 5.0
_LONGEST_PAUSE_S: Final = 300.0
_HEALTHY_S: Final = 600.0
"""One that ran for so long ended for a new reason."""
_SILENT_S: Final = 180.0
"""It says something every 30 seconds."""
_MESSAGE_S: Final = 60.0
"""For a message, from its first byte to its last."""
_PAUSES: Final = 99.0
"""After a message: this many times the processor time that it took."""
_OUTLIVED_S: Final = 5.0
_PIECE: Final = 1 << 16
_CPUCLOCK_SCHED: Final = 2
_JOIN_S: Final = 3.0
_WHERE: Final = "names from Kubernetes"
_VARIABLES: Final = ("KUBERNETES_", "SSL_CERT_", "NODE_NAME")
"""Beginnings of what it needs of our environment beside what every process does."""


class _Nonsense(Exception):
    """What came is no message, or came too slowly."""


class ClusterFollowing:
    """Follows the names of a cluster while it is entered; a `finwait.agent.loop.ClusterSource`.

    Args:
        kubernetes: ``auto``, or the URL of an API server.
        token_file: as of `FollowRequest`.
        ca_file: as of `FollowRequest`.
        node: name of this node; empty for that in ``NODE_NAME``.
        say: tells a line.
        clock: seconds since 1970.
        module: what the process runs.
        first_pause_s: before it is started again for the first time; twice as long after each further one.
        pace_s: between two messages, at least.
    """

    def __init__(
        self,
        kubernetes: str,
        *,
        token_file: str = "",
        ca_file: str = "",
        node: str = "",
        say: Callable[[str], None] = lambda _: None,
        clock: Callable[[], float] = time.time,
        module: str = _MODULE,
        first_pause_s: float = _FIRST_PAUSE_S,
        pace_s: float = 3.0,
    ) -> None:
        self._request = FollowRequest(
            kubernetes=kubernetes,
            parent=os.getpid(),
            token_file=os.path.abspath(token_file) if token_file else "",
            ca_file=os.path.abspath(ca_file) if ca_file else "",
            node=node,
            pace_s=pace_s,
        )
        self._say = say
        self._clock = clock
        self._module = module
        self._first_pause_s = first_pause_s
        self._names = NO_NAMES
        self._url = kubernetes if kubernetes != "auto" else ""
        self._told: tuple[Gap, ...] = ()
        """By the process that runs."""
        self._spoke = False
        """Whether that has said anything."""
        self._pieces = Pieces()
        self._said = self._needs = ""
        self._restarts = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._past_s = self._used_s = 0.0
        self._ending = threading.Event()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._run, name="finwait-cluster", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        with self._lock:
            process = self._process
        if process is not None and not confined.end(process):
            self._say(
                f"the process that follows the cluster (pid {process.pid}) does not end, and may not be killed "
                "without CAP_KILL"
            )
        if self._thread is not None:
            self._thread.join(_JOIN_S)

    def tell(self, events: Sequence[ClusterEvent]) -> None:
        """Let it tell Events; where it does not run, or takes nothing now, they are lost."""
        if not events:
            return
        line = encode_events(events)
        if len(line) <= select.PIPE_BUF:  # else a part of it might be taken
            with self._lock, contextlib.suppress(OSError, ValueError):  # it has just ended, or is behind
                process = self._process
                if process is not None and process.stdin is not None and self._spoke:
                    os.write(process.stdin.fileno(), line)
            return
        half = len(events) // 2
        if half:
            self.tell(events[:half])
            self.tell(events[half:])

    # ── what is told ─────────────────────────────────────────────────────────────────────────────────────

    @property
    def names(self) -> ClusterNames:
        """What is known now; what is so old that it may be wrong as well."""
        return self._names

    @property
    def gaps(self) -> tuple[Gap, ...]:
        """What is not known, and why."""
        if self._process is not None and self._spoke:
            return self._told
        if self._process is not None and not self._said:
            return (Gap(_WHERE, "list them yet", ""),)
        known = self._names.as_of
        state = f"names are as of {_stamp(min(known.values()))}" if known else "none is known"
        reason = self._said or "the process is being started"
        return (Gap(_WHERE, f"follow them: {reason}; {state}", self._needs),)

    @property
    def cpu_s(self) -> float:
        """Processor time of the process and of those before it, in seconds."""
        process = self._process
        if process is not None:
            self._used_s = max(self._used_s, self._past_s + _used_s(process.pid))
        return self._used_s

    @property
    def status(self) -> ClusterStatus:
        """How it is."""
        names, now = self._names, self._clock()
        running = self._process is not None
        return ClusterStatus(
            url=self._url,
            node=names.node or self._request.node,
            state="following" if running and self._spoke else "starting" if running else "ended",
            pods=sum(not pod.gone_s for pod in names.pods),
            services=len(names.services),
            endpoints=len(names.endpoints),
            as_of={name: _stamp(at) for name, at in sorted(names.as_of.items())},
            ages_s={name: round(max(0.0, now - at), 1) for name, at in sorted(names.as_of.items())},
            cpu_s=round(self.cpu_s, 2),
            restarts=self._restarts,
            said=self._said,
        )

    @property
    def age_s(self) -> float | None:
        """How old the oldest of what was listed is, in seconds; None before anything was."""
        known = self._names.as_of
        return max(0.0, self._clock() - min(known.values())) if known else None

    # ── the thread ───────────────────────────────────────────────────────────────────────────────────────

    def _run(self) -> None:
        failures = 0
        while not self._ending.is_set():
            begun = time.monotonic()
            reason = self._once()
            if self._ending.is_set():
                return
            failures = 1 if time.monotonic() - begun >= _HEALTHY_S else failures + 1
            pause = min(self._first_pause_s * 2 ** min(failures - 1, 20), _LONGEST_PAUSE_S)
            self._said = reason
            self._restarts += 1
            self._say(
                f"the process that follows the cluster {reason}; starting it again in {pause:.0f} s, names stay"
            )
            self._ending.wait(pause)

    def _once(self) -> str:
        """Run one process to its end; return how that came."""
        self._spoke = False
        self._pieces = Pieces()
        with self._lock:
            if self._ending.is_set():
                return ""
            try:
                process = confined.start(
                    self._module, (), answers=True, variables=confined.environment(*_VARIABLES)
                )
            except OSError as error:
                return f"cannot be started: {error.strerror}"
            self._process = process
        assert process.stdin is not None
        assert process.stdout is not None
        reason = ""
        try:
            with contextlib.suppress(OSError):  # nobody else has written into it: it takes all at once
                os.write(process.stdin.fileno(), encode_request(self._request))
            begun = time.thread_time()
            while self._message(process.stdout.fileno()):
                # What comes sooner waits in the pipe, and keeps who writes it waiting: it is paid from what looks.
                spent = time.thread_time() - begun
                self._ending.wait(max(self._request.pace_s / 4, _PAUSES * spent))
                begun = time.thread_time()
        except (_Nonsense, DecodeError) as error:
            reason = f"said what cannot be taken: {error}"[:300]
        finally:
            self._past_s = self.cpu_s
            if not self._ending.is_set():
                with self._lock:  # nobody may write to a descriptor that is somebody else's by now
                    self._process = None
                if not confined.end(process):
                    self._outlived(process)
                unconfined = process.returncode == UNCONFINED
                self._needs = "CAP_SETUID and CAP_SETGID" if unconfined else ""
                ended = (
                    "could not give up its rights" if unconfined else f"ended (status {process.returncode})"
                )
                reason = reason or ended
            process.stdout.close()
        return reason

    def _outlived(self, process: subprocess.Popen[bytes]) -> None:
        """Wait for one that does not end and may not be killed: there is never a second one beside it."""
        self._said = f"does not end (pid {process.pid}), and may not be killed without CAP_KILL"
        self._say(f"the process that follows the cluster {self._said}; no other one is started")
        while not confined.over(process) and not self._ending.wait(_OUTLIVED_S):
            pass

    def _message(self, fd: int) -> bool:
        """Take one message; return whether there was one.

        Raises:
            DecodeError: it is none.
            _Nonsense: it is too long, or came too slowly.
        """
        head = _bytes(fd, LENGTH, _SILENT_S)
        if not head:
            return False
        length = int.from_bytes(head, "big")
        if length > FRAME_MOST:
            raise _Nonsense(f"a message of {length} bytes")
        message = self._pieces.put(decode_message(_bytes(fd, length, _MESSAGE_S)))
        if message is None:
            return True
        self._names = taken(self._names, message, self._clock())
        self._url = message.url or self._url
        self._told = message.reasons
        self._spoke = True
        return True


def _bytes(fd: int, length: int, seconds: float) -> bytearray:
    """Return so many bytes; none at the end of the stream.

    Raises:
        _Nonsense: it ended in the middle, or they did not come in time.
    """
    data = bytearray()
    deadline = time.monotonic() + seconds
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    while len(data) < length:
        rest = deadline - time.monotonic()
        if rest <= 0 or not poll.poll(1000 * rest):
            raise _Nonsense("nothing for minutes" if not data else "a message that does not end")
        piece = os.read(fd, min(_PIECE, length - len(data)))
        if not piece:
            if data:
                raise _Nonsense("a message that was cut off")
            return data
        data += piece
    return data


def _used_s(pid: int) -> float:
    """Return the processor time of a process, in seconds, by its clock (clock_getcpuclockid(3)); 0 once it is over."""
    with contextlib.suppress(OSError):
        return time.clock_gettime(~pid << 3 | _CPUCLOCK_SCHED)
    return 0.0


def _stamp(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
