"""What debuggers print of the threads of a process → frames: ``py-spy dump --json``, ``jcmd Thread.print``, ``gdb``.

Formats: py-spy 0.3 and later (`src/dump.rs`), HotSpot's thread dump (JDK 11 and later), ``thread apply all backtrace``
of GDB. A line that is not understood is left out; a text without any thread gives none.

This module reads text only. Running the tools is `finwait.kernel.stacks`.
"""

from __future__ import annotations

import re
from typing import Any, Final, Literal

import msgspec
from msgspec import Struct

__all__ = [
    "Runtime",
    "StackFrame",
    "Stacks",
    "ThreadStack",
    "is_python_library",
    "parse_gdb",
    "parse_jcmd",
    "parse_py_spy",
]

Runtime = Literal["python", "java", "go", "node", "native"]

_MOST_FRAMES: Final = 200


class StackFrame(Struct, frozen=True):
    """A call, innermost first."""

    function: str
    where: str = ""
    """File and line as far as they are known: ``/srv/app.py:42``, ``App.java:7``, a library; else empty."""
    own: bool = True
    """Whether it is of the program itself, not of its runtime or of a system library."""


class ThreadStack(Struct, frozen=True):
    """A thread and what it is in."""

    tid: int
    """As the kernel numbers threads; 0 where the tool does not tell."""
    name: str
    frames: tuple[StackFrame, ...]

    @property
    def matters(self) -> int:
        """The place of the frame that matters: the innermost of the program itself; −1 where none is."""
        return next((place for place, frame in enumerate(self.frames) if frame.own), -1)


_BLIND: Final[dict[Runtime, str]] = {
    "go": "goroutines that are parked are not seen, only threads; net/http/pprof shows goroutines",
    "node": "JavaScript frames are not seen, only threads; `kill -USR1 PID` opens Node's inspector",
}


class Stacks(Struct, frozen=True):
    """The stacks of a process, or why there are none."""

    pid: int
    runtime: Runtime
    tool: str
    threads: tuple[ThreadStack, ...] = ()
    why: str = ""
    """Why they could not be read; empty where they were."""
    install: str = ""
    """How to get the tool, where it is missing."""

    @property
    def blind(self) -> str:
        """What the tool does not show of this runtime; empty where that is nothing."""
        return _BLIND.get(self.runtime, "")


_PYTHON_LIBRARY: Final = re.compile(
    r"/(lib|lib64)/python\d|^<frozen |/site-packages/|/dist-packages/|^<built-in"
)


def is_python_library(path: str) -> bool:
    """Whether a Python file is not the program's own: the standard library's, an installed package's, or no file."""
    return bool(_PYTHON_LIBRARY.search(path))


def parse_py_spy(text: str) -> tuple[ThreadStack, ...]:
    """Return the threads of ``py-spy dump --json``; none where it is something else."""
    try:
        threads = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return ()
    result = []
    for thread in threads if isinstance(threads, list) else []:
        if not isinstance(thread, dict):
            continue
        frames = thread.get("frames")
        result.append(
            ThreadStack(
                _number(thread.get("os_thread_id")),
                str(thread.get("thread_name") or ""),
                tuple(
                    _python(frame) for frame in (frames if isinstance(frames, list) else [])[:_MOST_FRAMES]
                ),
            )
        )
    return tuple(result)


def _python(frame: Any) -> StackFrame:  # noqa: ANN401 - whatever JSON held
    cells = frame if isinstance(frame, dict) else {}
    file = str(cells.get("filename") or "")
    line = _number(cells.get("line"))
    return StackFrame(
        str(cells.get("name") or "?"), f"{file}:{line}" if file else "", own=not is_python_library(file)
    )


def _number(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 32 else 0


_JAVA_THREAD: Final = re.compile(r'^"(?P<name>.*?)"(?: .*)? nid=(?P<nid>0x[0-9a-f]{1,8}|\d{1,10})\b')
_JAVA_FRAME: Final = re.compile(r"^\s+at (?P<function>[^\s(]+)\((?P<where>[^)]*)\)")
_JAVA_RUNTIME: Final = re.compile(r"^(java\.base(@[^/]*)?/|java\.|javax\.|jdk\.|sun\.|com\.sun\.)")


def parse_jcmd(text: str) -> tuple[ThreadStack, ...]:
    """Return the threads of HotSpot's ``Thread.print``; ``nid`` is the kernel's number of a thread."""
    result: list[ThreadStack] = []
    frames: list[StackFrame] = []
    head: tuple[int, str] | None = None
    for line in [*text.splitlines(), '"" nid=0']:
        if (thread := _JAVA_THREAD.match(line)) is not None:
            if head is not None:
                result.append(ThreadStack(*head, tuple(frames)))
            nid = thread["nid"]
            head, frames = (int(nid, 16 if nid.startswith("0x") else 10), thread["name"]), []
        elif (frame := _JAVA_FRAME.match(line)) is not None and len(frames) < _MOST_FRAMES:
            own = not _JAVA_RUNTIME.match(frame["function"])
            where = frame["where"].rpartition("@")[2] if "@" in frame["where"] else frame["where"]
            frames.append(StackFrame(frame["function"], where.rpartition("/")[2], own))
    return tuple(result)


_GDB_THREAD: Final = re.compile(
    r"^Thread \d+ \((?:Thread 0x[0-9a-f]+ )?\(?(?:LWP|process) (?P<tid>\d{1,10})\)?.*$"
)
_GDB_NAME: Final = re.compile(r'"([^"]*)"')
_GDB_FRAME: Final = re.compile(
    r"^#\d+\s+(?:0x[0-9a-f]+ in )?(?P<function>\S+)\s*\(.*?\)(?: at (?P<at>\S+)| from (?P<lib>\S+))?\s*$"
)
_LIBRARIES: Final = (
    "/lib",
    "/usr/lib",
    "../sysdeps/",
    "../csu/",
    "./nptl/",
    "./csu/",
    "./io/",
    "./misc/",
    "./socket/",
)
"""Paths of system libraries, and of the sources of glibc as its debug symbols have them."""
_RESERVED: Final = re.compile(r"^(_*(pthread|lll)_|_+(libc|syscall|futex|GI)_|_start$|runtime\.)")
"""Names that a program has no right to: those of libc's own inside, and of Go's runtime."""
_PLAIN: Final = re.compile(
    r"^(?:__GI_)?_{0,3}(?:libc_|internal_)?(?P<name>\w+?)(?:_nocancel|_cancel|_time64|_internal|64)?(?:@.*)?$",
    re.ASCII,
)
"""What libc calls its variants of one function: ``__read``, ``__GI___libc_read``, ``read@plt``, ``__poll_nocancel``."""
_NATIVE_RUNTIME: Final = frozenset(
    {
        "accept", "accept4", "clock_nanosleep", "clone", "clone3", "connect", "cp_end", "dup",
        "epoll_pwait", "epoll_pwait2", "epoll_wait", "fdatasync", "flock", "fsync", "futex",
        "futex_abstimed_wait", "futex_abstimed_wait_cancelable", "futex_wait", "io_getevents", "ioctl",
        "kevent", "lockf", "msgrcv", "msgsnd", "nanosleep", "open", "openat", "pause", "poll", "ppoll",
        "pread", "preadv", "preadv2", "pselect", "pselect6", "pwrite", "pwritev", "pwritev2", "read",
        "readv", "recv", "recvfrom", "recvmmsg", "recvmsg", "select", "sem_clockwait", "sem_timedwait",
        "sem_wait", "semop", "semtimedop", "send", "sendfile", "sendmmsg", "sendmsg", "sendto",
        "sigsuspend", "sigtimedwait", "sigwait", "sigwaitinfo", "sleep", "splice", "start_thread",
        "syscall", "tcdrain", "timedwait", "timedwait_cp", "usleep", "wait", "wait3", "wait4", "waitid",
        "waitpid", "write", "writev",
    }
)  # fmt: skip
"""Functions of libc in which a thread waits or begins, by their whole plain names: a program may well have a
``read_request`` of its own."""


def _of_libc(function: str) -> bool:
    """Whether a function has a name of libc or of a runtime, in one of its variants."""
    if _RESERVED.match(function):
        return True
    plain = _PLAIN.match(function)
    return plain is not None and plain["name"] in _NATIVE_RUNTIME


def parse_gdb(text: str) -> tuple[ThreadStack, ...]:
    """Return the threads of GDB's ``thread apply all backtrace``."""
    result: list[ThreadStack] = []
    frames: list[StackFrame] = []
    head: tuple[int, str] | None = None
    for line in text.splitlines():
        if (thread := _GDB_THREAD.match(line)) is not None:
            if head is not None:
                result.append(ThreadStack(*head, tuple(frames)))
            name = _GDB_NAME.search(line)
            head, frames = (int(thread["tid"]), name[1] if name else ""), []
        elif (
            head is not None and len(frames) < _MOST_FRAMES and (frame := _GDB_FRAME.match(line)) is not None
        ):
            function, library = frame["function"], frame["lib"] or ""
            own = not (frame["at"] or library).startswith(_LIBRARIES) and not _of_libc(function)
            frames.append(StackFrame(function, frame["at"] or library, own and function != "??"))
    if head is not None:
        result.append(ThreadStack(*head, tuple(frames)))
    return tuple(result)
