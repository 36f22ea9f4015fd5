"""A private tracefs instance: tracepoints enabled for us alone, and gone when we are.

Theory of operation. A directory made under ``instances/`` is a ring buffer of its own: events, filters and
options set in it touch no other tracer. It is named ``finwait-<pid>-<starttime>-p<pid namespace>``, so that
after a SIGKILL the next start knows the leavings of a dead predecessor from the instance of a living neighbour.
Whether a process of another pid namespace lives cannot be seen: its instance is a leaving when it is a minute
old and nobody has a file of it open (the kernel answers EBUSY otherwise; a living one has its
``trace_pipe_raw`` open, soon after it is made).

Where tracefs is not mounted we do not mount it for everybody: ``fsopen``/``fsmount`` (Linux 5.2) give a
mount that only our descriptor leads to.

Reading is by whole pages of ``trace_pipe_raw``, one file a CPU. `Tracing.wait` sleeps until the first
record; `Tracing.drain` then takes all there is. Its *horizon* is the clock before the first read: every
record up to it is in what was drained so far, whatever CPU it came from, so records up to the horizon can be
put in order for good.

What this cannot see: records that were overwritten before we came (`Tracing.statistics` counts them), and
anything at all where the kernel is locked down (``lockdown=confidentiality``) or we lack CAP_SYS_ADMIN.
"""

from __future__ import annotations

import ctypes
import errno
import itertools
import os
import re
import select
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from finwait.errors import KernelError, NotSupported, PermissionNeeded
from finwait.kernel import rights
from finwait.uapi import tracepoint

__all__ = ["PREFIX", "Drained", "RingStatistics", "Root", "Tracing", "leavings", "remove_leavings"]

LOCKDOWN: Final = Path("/sys/kernel/security/lockdown")

PREFIX: Final = "finwait-"
_NAME = re.compile(r"finwait-(\d{1,10})-(\d{1,20})-p(\d{1,20})(?:-\d+)?")
_MADE_S: Final = 60.0  # so long after it was made, an instance has a file open or nobody who uses it
_CLOCK: Final = (
    "mono"  # what the kernel calls CLOCK_MONOTONIC; the one clock of both tracefs and clock_gettime
)
_TOTAL_BUFFER_KB: Final = 64 << 10
_SYS_FSOPEN, _SYS_FSCONFIG, _SYS_FSMOUNT = 430, 431, 432  # the same number on every architecture but alpha
_FSCONFIG_CMD_CREATE: Final = 6
_CLOEXEC: Final = 1
_serial = itertools.count(1)


class RingStatistics(Struct, frozen=True):
    """``per_cpu/*/stats`` added up: what the ring buffer took, gave, and lost."""

    overrun: int
    """Records overwritten before they were read."""
    commit_overrun: int
    dropped: int
    read: int
    """Records read."""
    waiting: int
    """Records not read yet."""

    @property
    def lost(self) -> int:
        """Records that were written, or should have been, and that nobody can read any more."""
        return self.overrun + self.commit_overrun + self.dropped


class Drained(Struct, frozen=True):
    """Pages as read, and what they hold everything up to."""

    buffer: NDArray[np.uint8]
    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]
    cpu: NDArray[np.int64]
    horizon: int
    """CLOCK_MONOTONIC, ns: no record with a smaller time is still to come."""


class Root:
    """Where tracefs is: a mount that everybody sees, or one that only this object's descriptor leads to."""

    def __init__(self) -> None:
        self._fd = -1
        self.private = False
        """Whether tracefs is mounted for us alone."""
        mounted = _mounted()
        if mounted is not None:
            try:
                # A descriptor, not the path: if it is unmounted (lazily) meanwhile, we still find our instance.
                self._fd = os.open(mounted, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            except OSError:
                mounted = None
        if mounted is None:
            self._fd = _detached_mount()
            self.private = True
        self.path = f"/proc/self/fd/{self._fd}"

    def read(self, name: str) -> bytes:
        """Return a file below the root.

        Raises:
            KernelError: it is not there, or we may not.
        """
        return _read(f"{self.path}/{name}", f"read `{name}` of tracefs")

    def close(self) -> None:
        """Give the mount back; idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _mounted() -> str | None:
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
            lines = file.read().splitlines()
    except OSError:
        return None
    for line in lines:
        words = line.split(" ")
        if "-" in words[6:] and words[words.index("-", 6) + 1] == "tracefs" and words[3] == "/":
            return re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), words[4])
    return None


def _detached_mount() -> int:
    doing = "open tracefs (it is not mounted)"
    libc = ctypes.CDLL(None, use_errno=True)

    def call(*args: object) -> int:
        ctypes.set_errno(0)
        result: int = libc.syscall(*args)
        if result < 0:
            code = ctypes.get_errno()
            if code in (errno.EPERM, errno.EACCES):
                raise PermissionNeeded(code, doing, rights.missing("CAP_SYS_ADMIN"))
            raise NotSupported(
                code, doing, "a tracefs that finwait can open itself (fsopen, since Linux 5.2)"
            )
        return result

    context = call(_SYS_FSOPEN, b"tracefs", _CLOEXEC)
    try:
        call(_SYS_FSCONFIG, context, _FSCONFIG_CMD_CREATE, None, None, 0)
        return call(_SYS_FSMOUNT, context, _CLOEXEC, 0)
    finally:
        os.close(context)


def locked_down() -> bool:
    """Return whether the kernel is locked down for confidentiality: then tracefs is empty, or opens nothing."""
    try:
        return "[confidentiality]" in LOCKDOWN.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError):
        return False


def _explain(error: OSError, doing: str) -> KernelError:
    code = error.errno or errno.EIO
    if code in (errno.EPERM, errno.EACCES, errno.ENOENT, errno.ENODEV) and locked_down():
        refused = PermissionNeeded(code, doing, "a kernel that is not locked down")
        refused.hint = f"`{LOCKDOWN}` is set to `confidentiality`, which forbids tracing"
        return refused
    if code in (errno.EPERM, errno.EACCES):
        refused = PermissionNeeded(code, doing, rights.missing("CAP_SYS_ADMIN"))
        if os.geteuid() == 0:
            refused.hint = (
                "needs CAP_SYS_ADMIN in the initial user namespace, and a kernel that is not locked down"
            )
        return refused
    if code in (errno.ENOENT, errno.ENODEV):
        return NotSupported(code, doing, "such tracepoint or tracefs file")
    return KernelError(code, doing)


def _read(path: str, doing: str) -> bytes:
    try:
        return _bytes_of(path)
    except OSError as error:
        raise _explain(error, doing) from None


def _bytes_of(path: str) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        parts = []
        while part := os.read(fd, 1 << 16):
            parts.append(part)
        return b"".join(parts)
    finally:
        os.close(fd)


def _write(path: str, value: str, doing: str) -> None:
    try:
        fd = os.open(path, os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC)
        try:
            os.write(fd, value.encode())
        finally:
            os.close(fd)
    except OSError as error:
        raise _explain(error, doing) from None


def _start_time(pid: int) -> int | None:
    """Return field 22 of ``/proc/PID/stat``, or None when there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[19])
    except (OSError, IndexError, ValueError):
        return None


def _pid_namespace() -> int:
    """Return the inode of our pid namespace; 0 when it cannot be told."""
    try:
        return os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return 0


def leavings(root: Root) -> list[str]:
    """Return the instances that a finwait made whose process is gone, or that are old and of another pid namespace."""
    instances = f"{root.path}/instances"
    try:
        names = os.listdir(instances)
    except OSError as error:
        raise _explain(error, "list the tracing instances") from None
    own, now, stale = _pid_namespace(), time.time(), []
    for name in sorted(names):
        match = _NAME.fullmatch(name)
        if match is None:
            continue
        if own and int(match[3]) == own:
            if _start_time(int(match[1])) == int(match[2]):
                continue
        else:
            try:
                if now - os.stat(f"{instances}/{name}").st_mtime < _MADE_S:
                    continue
            except OSError:
                continue
        stale.append(name)
    return stale


def remove_leavings(root: Root) -> list[str]:
    """Remove the instances of dead predecessors; return the names of those removed.

    One that is in use (by a finwait in another pid namespace, whose process we cannot see) stays: EBUSY.
    """
    removed = []
    for name in leavings(root):
        try:
            os.rmdir(f"{root.path}/instances/{name}")
        except OSError:
            continue
        removed.append(name)
    return removed


class Tracing:
    """One private instance with some events enabled; a context manager that always removes it.

    Args:
        events: ``system/event``, the first one required, the others left out where the kernel lacks them.
        filters: event → filter in the kernel's language (empty: all).
        buffer_kb: ring buffer of each CPU in KiB; by default 64 MiB shared out, 1 to 8 MiB each.
        stacks: record the kernel stack (and the user stack, where the kernel can) of every event.
    """

    def __init__(
        self,
        events: Sequence[str],
        *,
        filters: Mapping[str, str] | None = None,
        buffer_kb: int | None = None,
        stacks: bool = False,
    ) -> None:
        self._events = tuple(events)
        self._filters = dict(filters or {})
        self._buffer_kb = buffer_kb
        self._stacks = stacks
        self._root: Root | None = None
        self._path = ""
        self._files: dict[int, int] = {}
        self._epoll: select.epoll | None = None
        self._arena = np.empty(0, np.uint8)
        self.name = ""
        self.formats: dict[int, tracepoint.EventFormat] = {}
        """By the number in ``common_type``; the stacks' formats too when they are asked for."""
        self.missing: tuple[str, ...] = ()
        """Events that were asked for and that this kernel does not have."""
        self.user_stacks = False
        self.layout = tracepoint.PageLayout()
        self.removed: tuple[str, ...] = ()
        """Leavings of dead predecessors that were removed on the way in."""

    def __enter__(self) -> Self:
        """Make the instance and start recording.

        Raises:
            NotSupported: no tracefs, no such event, no ``mono`` trace clock.
            PermissionNeeded: not ours to use.
            KernelError: the kernel said no to something else (a filter, the buffer).
        """
        try:
            self._open()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open(self) -> None:
        root = self._root = Root()
        try:
            os.stat(f"{root.path}/events")
        except PermissionError as error:  # mounted for root alone
            raise _explain(error, "trace") from None
        except OSError:
            empty = _explain(OSError(errno.ENOENT, ""), "trace: tracefs is empty")
            empty.hint = (
                empty.hint if locked_down() else "the kernel is locked down, or built without tracepoints"
            )
            raise empty from None
        self.removed = tuple(remove_leavings(root))
        order: tracepoint.ByteOrder = "little" if sys.byteorder == "little" else "big"
        layout = tracepoint.parse_header_page(root.read("events/header_page"), byteorder=order)
        self.layout = tracepoint.parse_header_event(root.read("events/header_event"), layout)
        present = []
        for event in self._events:
            try:
                event_format = tracepoint.parse_format(root.read(f"events/{event}/format"))
            except NotSupported:
                if event == self._events[0]:
                    raise
                self.missing += (event,)
                continue
            self.formats[event_format.id] = event_format
            present.append(event)

        pid = os.getpid()
        serial = next(_serial)
        self.name = f"{PREFIX}{pid}-{_start_time(pid)}-p{_pid_namespace()}" + (
            f"-{serial}" if serial > 1 else ""
        )
        path = f"{root.path}/instances/{self.name}"
        try:
            os.mkdir(path)
        except OSError as error:
            raise _explain(error, "make a tracing instance") from None
        self._path = path
        clocks = _read(f"{path}/trace_clock", "read the trace clocks").decode().split()
        if _CLOCK not in clocks and f"[{_CLOCK}]" not in clocks:
            raise NotSupported(errno.EINVAL, "choose the trace clock", f"trace clock `{_CLOCK}`")
        _write(f"{path}/trace_clock", _CLOCK, "choose the trace clock")
        size = self._buffer_kb or max(1 << 10, min(8 << 10, _TOTAL_BUFFER_KB // max(os.cpu_count() or 1, 1)))
        _write(f"{path}/buffer_size_kb", str(size), f"allocate {size} KiB of ring buffer per CPU")
        if os.path.exists(f"{path}/buffer_percent"):  # since 5.0; before, a waiter wakes at the first record
            _write(f"{path}/buffer_percent", "0", "wake up at the first record")
        self._open_pipes()  # after buffer_percent: epoll asks once, and is told by that percentage
        if self._stacks:
            self._enable_stacks()
        for event in present:
            if expression := self._filters.get(event):
                try:
                    _write(f"{path}/events/{event}/filter", expression, f"filter `{event}` by `{expression}`")
                except KernelError as error:
                    error.hint = error.hint or self._why()
                    raise
        self._enable("1")

    def _open_pipes(self) -> None:
        self._epoll = select.epoll()
        for entry in sorted(os.listdir(f"{self._path}/per_cpu")):
            cpu = int(entry.removeprefix("cpu"))
            pipe = f"{self._path}/per_cpu/{entry}/trace_pipe_raw"
            try:
                fd = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            except OSError as error:
                raise _explain(error, f"open the ring buffer of cpu {cpu}") from None
            self._files[fd] = cpu
            self._epoll.register(fd, select.EPOLLIN)

    def _enable_stacks(self) -> None:
        assert self._root is not None
        for kind, option in (("kernel_stack", "stacktrace"), ("user_stack", "userstacktrace")):
            try:
                event_format = tracepoint.parse_format(self._root.read(f"events/ftrace/{kind}/format"))
                _write(f"{self._path}/trace_options", option, f"record stacks (`{option}`)")
            except KernelError:
                if kind == "kernel_stack":
                    raise
                continue  # user stacks in an instance are newer than instances
            self.formats[event_format.id] = event_format
            self.user_stacks = self.user_stacks or kind == "user_stack"

    def _why(self) -> str:
        """Return what the instance's ``error_log`` says last, in one line."""
        try:
            lines = _read(f"{self._path}/error_log", "read the error log").decode("utf-8", "replace")
        except KernelError:
            return ""
        return " ".join(lines.split())[:90]

    def fileno(self) -> int:
        """Return a descriptor that is readable when there are records."""
        assert self._epoll is not None
        return self._epoll.fileno()

    def wait(self, timeout: float) -> bool:
        """Sleep until there is a record or ``timeout`` seconds have passed; return whether there is one."""
        assert self._epoll is not None
        return bool(self._epoll.poll(max(timeout, 0), 1))

    def drain(self) -> Drained:
        """Take everything that was recorded up to now; never blocks.

        The buffer of the result is used again by the next call.

        Raises:
            KernelError: the instance was taken away under us (tracefs unmounted by force, rmdir by another).
        """
        assert self._epoll is not None
        horizon = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        # Every CPU is read, also those that epoll did not name: it learns of a record only by an interrupt
        # after the commit, and the horizon would then be a lie.
        page = self.layout.page_size
        stamp_at = self.layout.timestamp
        starts: list[int] = []
        lengths: list[int] = []
        cpus: list[int] = []
        used = 0
        for fd in self._files:
            while True:
                if used + page > len(self._arena):
                    grown = np.empty(max(2 * len(self._arena), 256 * page), np.uint8)
                    grown[:used] = self._arena[:used]
                    self._arena = grown
                try:
                    length = os.readv(fd, [self._arena[used : used + page].data])
                except BlockingIOError:
                    break
                except OSError as error:
                    raise _explain(error, "read the ring buffer") from None
                if length < self.layout.data:
                    break
                starts.append(used)
                lengths.append(length)
                cpus.append(self._files[fd])
                begun = int(self._arena[used + stamp_at : used + stamp_at + 8].view(np.uint64)[0])
                used += length
                if begun > horizon:  # all that follows on this CPU is later than what we promise
                    break
        return Drained(
            self._arena[:used],
            np.array(starts, np.int64),
            np.array(lengths, np.int64),
            np.array(cpus, np.int64),
            horizon,
        )

    def pause(self) -> None:
        """Take the probes out again: nothing is recorded, and nothing costs anybody anything, until `resume`.

        Raises:
            KernelError: the instance was taken away under us.
        """
        self._enable("0")

    def resume(self) -> None:
        """Record again.

        Raises:
            KernelError: the instance was taken away under us.
        """
        self._enable("1")

    def _enable(self, value: str) -> None:
        doing = "enable" if value == "1" else "disable"
        for event in self._events:
            if event not in self.missing:
                _write(f"{self._path}/events/{event}/enable", value, f"{doing} the tracepoint `{event}`")

    def statistics(self) -> RingStatistics:
        """Return what the ring buffers of all CPUs took, gave and lost so far."""
        totals: dict[str, int] = {}
        for cpu in self._files.values():
            text = _read(f"{self._path}/per_cpu/cpu{cpu}/stats", "read the statistics").decode()
            for line in text.splitlines():
                key, _, value = line.partition(":")
                if value.strip().isdigit():
                    totals[key] = totals.get(key, 0) + int(value)
        return RingStatistics(
            totals.get("overrun", 0),
            totals.get("commit overrun", 0),
            totals.get("dropped events", 0),
            totals.get("read events", 0),
            totals.get("entries", 0),
        )

    def task_names(self, pids: Iterable[int]) -> dict[int, str]:
        """Return what tracefs remembers of the names of tasks that may be gone by now (best effort)."""
        assert self._root is not None
        requested = set(pids)
        try:
            text = self._root.read("saved_cmdlines").decode("utf-8", "surrogateescape")
        except KernelError:
            return {}
        names = {}
        for line in text.split("\n"):  # a name may hold what splitlines() takes for an end
            number, _, name = line.partition(" ")
            if number.isdigit() and int(number) in requested:
                names[int(number)] = name
        return names

    def close(self) -> None:
        """Stop recording and remove the instance; idempotent, and never raises for what is gone already."""
        for fd in self._files:
            os.close(fd)
        self._files = {}
        if self._epoll is not None:
            self._epoll.close()
            self._epoll = None
        if self._path:
            _remove(self._path)
            self._path = ""
        if self._root is not None:
            self._root.close()
            self._root = None


def _remove(path: str) -> None:
    """Remove an instance; a reader that looks into it just now makes the kernel say EBUSY for a moment."""
    deadline = time.monotonic() + 2
    while True:
        try:
            os.rmdir(path)
            return
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > deadline:
                return
            time.sleep(0.01)
