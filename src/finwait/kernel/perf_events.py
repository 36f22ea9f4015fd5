"""Tracepoints of the whole machine, sampled with user stacks, through ``perf_event_open(2)``.

Theory of operation. On every CPU one event a tracepoint, those with stacks into one ring buffer and those without into
another, and one event that counts nothing and tells of processes (born, another program, code mapped) into a third,
which is never disabled. Each is mapped read and write: the kernel moves ``data_head``, we move ``data_tail``. The
descriptors are all there is: nothing is set in tracefs, and when the process ends, however it does, the kernel closes
them. Of tracefs only the numbers and formats of the tracepoints are read (`finwait.kernel.tracefs.Root`).

The surprise: ``data_head`` is to be read before the records, which no instruction of Python's promises on processors
that reorder reads; a record that was not whole yet fails to decode, which is counted as a loss and not believed.

What this cannot see: what happens on a CPU that is brought up later, and system calls of 32-bit programs.
"""

from __future__ import annotations

import bisect
import ctypes
import errno
import mmap
import os
import platform
import re
import select
import struct
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Final, Self

from msgspec import Struct

from finwait.errors import DecodeError, KernelError, NotSupported, PermissionNeeded
from finwait.kernel import rights
from finwait.kernel.tracefs import Root
from finwait.uapi import perf_event, tracepoint
from finwait.uapi.perf_event import Lost, ProcessRecord, Sample

__all__ = ["Drawn", "Sampling", "unwinds"]

_SYSCALL: Final = {"x86_64": 298, "aarch64": 241, "riscv64": 241}
_FD_CLOEXEC: Final = 8
_ENABLE, _DISABLE, _SET_OUTPUT, _SET_FILTER = 0x2400, 0x2401, 0x2405, 0x40082406
_X86_REGISTERS: Final = (
    1 << 6 | 1 << 7 | 1 << 8
)  # PERF_REG_X86_BP, _SP, _IP of asm/perf_regs.h, in this order
_HEAD, _TAIL = 1024, 1032  # offsets of data_head and data_tail in struct perf_event_mmap_page
_FEWEST_FRAMES: Final = 16
_TOTAL_BUFFER_KB: Final = 64 << 10
_LARGEST_KB: Final = 32 << 10
_PROCESSES_KB: Final = 1 << 10
_MOST_RECORD: Final = 2048
"""Bytes of a record without its stack: 127 frames, and what tells the rest."""
_MOST_PROCESS_RECORD: Final = 4352
"""Bytes of a record of a process: a path of 4096, and what tells the rest."""


def unwinds() -> bool:
    """Whether samples bring the registers and the stack that unwinding by tables needs."""
    return platform.machine() == "x86_64"


class Drawn(Struct, frozen=True):
    """What was in the ring buffers, in the order of time."""

    samples: tuple[Sample, ...]
    """Without those that are later than `horizon_ns`: they come next time."""
    processes: tuple[ProcessRecord, ...]
    lost: int
    """Samples, at least."""
    processes_lost: int
    """Records of processes, at least."""
    horizon_ns: int
    """CLOCK_MONOTONIC: what happened until then is in what was drained so far."""


class _Ring(Struct, frozen=True):
    """A ring buffer of one CPU."""

    memory: mmap.mmap
    bytes: int
    stacks: bool = False
    """Whether its samples have stacks."""
    processes: bool = False
    """Whether it tells of processes, and has no samples."""


class Sampling:
    """Samples some tracepoints on every CPU; a context manager.

    Args:
        events: ``system/event`` → filter in the kernel's language (empty: all). The first is required.
        plain: the same, of events that are wanted without a stack.
        buffer_kb: each ring buffer of records with stacks in KiB, rounded down to a power of two pages; by default
            64 MiB shared out among the CPUs, 1 to 32 MiB each. Those without stacks have an eighth of that.
        stack_bytes: how much of the user stack each sample brings.
    """

    def __init__(
        self,
        events: Mapping[str, str],
        plain: Mapping[str, str] | None = None,
        *,
        buffer_kb: int | None = None,
        stack_bytes: int = 16384,
    ) -> None:
        self._events = dict(events)
        self._plain = dict(plain or {})
        self.cpus = online()
        size_kb = buffer_kb or max(1 << 10, min(_LARGEST_KB, _TOTAL_BUFFER_KB // len(self.cpus)))
        self._registers = _X86_REGISTERS if unwinds() else 0
        self._stack_bytes = stack_bytes if self._registers else 0
        self._ring_bytes = _whole_pages(size_kb // 8)
        self._stack_ring_bytes = max(
            _whole_pages(size_kb), _whole_pages(4 * (self._stack_bytes + _MOST_RECORD) >> 10)
        )
        self._descriptors: list[int] = []
        self._always: list[int] = []
        self._later: list[Sample] = []
        self._later_processes: list[ProcessRecord] = []
        self._rings: list[_Ring] = []
        self._poll = select.poll()
        self._libc = ctypes.CDLL(None, use_errno=True)
        self.formats: dict[int, tracepoint.EventFormat] = {}
        """By the number in ``common_type``."""
        self.missing: tuple[str, ...] = ()
        """Events that this kernel does not have."""

    def __enter__(self) -> Self:
        """Start sampling.

        Raises:
            NotSupported: no such event, or no perf events.
            PermissionNeeded: not ours to use.
            KernelError: the kernel said no to something else.
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
        self.missing = ()
        with Root() as root:
            for event in (*self._events, *self._plain):
                try:
                    event_format = tracepoint.parse_format(root.read(f"events/{event}/format"))
                except NotSupported:
                    if event == next(iter(self._events)):
                        raise
                    self.missing += (event,)
                    continue
                expression = self._events.get(event) or self._plain.get(event) or ""
                if event != next(iter(self._events)) and not _answers(event_format, expression):
                    self.missing += (event,)
                    continue
                self.formats[event_format.id] = event_format
        for cpu in self.cpus:
            self._open_cpu(cpu, self._events, stacks=True)
            self._open_cpu(cpu, self._plain, stacks=False)
            self._open_processes(cpu)
        for fd in self._always:
            self._control(fd, _ENABLE, 0, "enable a perf event")
        self.enable()

    def _open_cpu(self, cpu: int, events: Mapping[str, str], *, stacks: bool) -> None:
        filters = {event.rpartition("/")[2]: expression for event, expression in events.items()}
        leader = -1
        for number, event_format in self.formats.items():
            if event_format.name not in filters:
                continue
            fd = self._event(number, cpu, stacks=stacks)
            self._descriptors.append(fd)
            if expression := filters[event_format.name]:
                text = ctypes.create_string_buffer(expression.encode())
                self._control(fd, _SET_FILTER, text, f"filter `{event_format.name}` by `{expression}`")
            if leader >= 0:
                self._control(fd, _SET_OUTPUT, leader, "share a ring buffer")
                continue
            leader = fd
            size = self._stack_ring_bytes if stacks else self._ring_bytes
            self._rings.append(_Ring(_mapped(fd, size), size, stacks))
            self._poll.register(fd, select.POLLIN)

    def _open_processes(self, cpu: int) -> None:
        """Open what tells of processes; it wakes nobody, and is read with the rest."""
        doing = "follow processes (perf_event_open)"
        if (fd := self._opened(perf_event.process_attribute(), cpu, doing)) < 0:
            raise _refused(-fd, doing)
        self._always.append(fd)
        size = _whole_pages(_PROCESSES_KB)
        self._rings.append(_Ring(_mapped(fd, size), size, processes=True))

    def _opened(self, attribute: bytes, cpu: int, doing: str) -> int:
        """Return a descriptor, or the negative number of what went wrong."""
        machine = platform.machine()
        if machine not in _SYSCALL:
            raise NotSupported(errno.ENOSYS, doing, f"perf events that finwait can use ({machine})")
        ctypes.set_errno(0)
        buffer = ctypes.create_string_buffer(attribute, len(attribute))
        fd: int = self._libc.syscall(_SYSCALL[machine], buffer, -1, cpu, -1, _FD_CLOEXEC)
        return fd if fd >= 0 else -(ctypes.get_errno() or errno.EIO)

    def _event(self, number: int, cpu: int, *, stacks: bool) -> int:
        doing = "sample tracepoints (perf_event_open)"
        frames = 127
        while True:  # `kernel.perf_event_max_stack` may be lower than its default
            attribute = perf_event.attribute(
                number, chain=stacks, registers=self._registers if stacks else 0,
                stack_bytes=self._stack_bytes if stacks else 0, frames=frames,
            )  # fmt: skip
            if (fd := self._opened(attribute, cpu, doing)) >= 0:
                return fd
            code = -fd
            if code not in (errno.EOVERFLOW, errno.EINVAL) or frames <= _FEWEST_FRAMES:
                raise _refused(code, doing)
            frames //= 2

    def _control(self, fd: int, request: int, argument: object, doing: str) -> None:
        ctypes.set_errno(0)
        if self._libc.ioctl(fd, ctypes.c_ulong(request), argument) < 0:
            raise _refused(ctypes.get_errno(), doing)

    def enable(self) -> None:
        """Let the events fire (again)."""
        for fd in self._descriptors:
            self._control(fd, _ENABLE, 0, "enable a perf event")

    def disable(self) -> None:
        """Let no event fire but those that tell of processes; what was recorded stays."""
        for fd in self._descriptors:
            self._control(fd, _DISABLE, 0, "disable a perf event")

    def wait(self, timeout: float) -> bool:
        """Sleep until there is a record or ``timeout`` seconds have passed; return whether there is one."""
        return bool(self._poll.poll(max(timeout, 0) * 1000))

    def drain(self) -> Drawn:
        """Take everything that was recorded up to now; never blocks.

        The kernel tells of a loss with the next record that fits. So a buffer without room for one more record counts
        as a loss at once: there may be none to come.
        """
        horizon_ns = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        samples = self._later
        processes = self._later_processes
        lost = processes_lost = 0
        for ring in self._rings:
            missed = self._read(ring, samples, processes)
            if ring.processes:
                processes_lost += missed
            else:
                lost += missed
        samples.sort(key=lambda sample: sample.time_ns)
        processes.sort(key=lambda record: record.time_ns)
        count = bisect.bisect_right(samples, horizon_ns, key=lambda sample: sample.time_ns)
        number = bisect.bisect_right(processes, horizon_ns, key=lambda record: record.time_ns)
        self._later, self._later_processes = samples[count:], processes[number:]
        return Drawn(tuple(samples[:count]), tuple(processes[:number]), lost, processes_lost, horizon_ns)

    def _read(self, ring: _Ring, samples: list[Sample], processes: list[ProcessRecord]) -> int:
        """Add what is in a ring buffer; return how much was lost, at least."""
        data = self._taken(ring)
        lost = 0
        try:
            for record in perf_event.records(
                data,
                chain=ring.stacks,
                registers=ring.stacks and bool(self._registers),
                stack=ring.stacks and bool(self._stack_bytes),
            ):
                if isinstance(record, Sample):
                    samples.append(record)
                elif isinstance(record, Lost):
                    lost += record.count
                else:
                    processes.append(record)
        except DecodeError:
            lost += 1  # at least: the rest of this piece is not believed
        largest = _MOST_PROCESS_RECORD if ring.processes else _MOST_RECORD
        if not lost and ring.bytes - len(data) < largest + (self._stack_bytes if ring.stacks else 0):
            lost = 1
        return lost

    def _taken(self, ring: _Ring) -> bytes:
        memory, size = ring.memory, ring.bytes
        head, tail = struct.unpack_from("=QQ", memory, _HEAD)
        count = min(head - tail, size)
        begin = mmap.PAGESIZE + tail % size
        first = min(count, mmap.PAGESIZE + size - begin)
        data = memory[begin : begin + first] + memory[mmap.PAGESIZE : mmap.PAGESIZE + count - first]
        struct.pack_into("=Q", memory, _TAIL, head)
        return data

    def close(self) -> None:
        """Stop, and give everything back; idempotent."""
        for ring in self._rings:
            ring.memory.close()
        for fd in (*self._descriptors, *self._always):
            os.close(fd)
        self._rings, self._descriptors, self._always = [], [], []
        self._later, self._later_processes = [], []
        self._poll = select.poll()


def _answers(event_format: tracepoint.EventFormat, expression: str) -> bool:
    """Return whether an event has all fields that a filter asks for: the kernel would refuse it."""
    return set(re.findall(r"[a-z]\w*", expression)) <= event_format.fields.keys()


def _whole_pages(size_kb: int) -> int:
    """Return the bytes of a ring buffer: a power of two pages, at most so large, at least four."""
    pages = max(size_kb * 1024 // mmap.PAGESIZE, 4)
    return mmap.PAGESIZE * (1 << (pages.bit_length() - 1))


def _mapped(fd: int, size: int) -> mmap.mmap:
    try:
        return mmap.mmap(fd, mmap.PAGESIZE + size)
    except OSError as error:
        doing = f"map a ring buffer of {size >> 10} KiB"
        raise _refused(error.errno or errno.EIO, doing) from None


def online() -> tuple[int, ...]:
    """Return the CPUs that run."""
    try:
        with open("/sys/devices/system/cpu/online", encoding="ascii") as file:
            parts = file.read().strip().split(",")
        bounds = [part.partition("-")[::2] for part in parts]
        return tuple(cpu for low, high in bounds for cpu in range(int(low), int(high or low) + 1))
    except (OSError, ValueError):
        return tuple(range(os.cpu_count() or 1))


def _refused(code: int, doing: str) -> KernelError:
    if code in (errno.EPERM, errno.EACCES):
        return PermissionNeeded(code, doing, rights.missing("CAP_SYS_ADMIN"))
    if code in (errno.ENOSYS, errno.ENOENT, errno.ENODEV, errno.EOPNOTSUPP):
        return NotSupported(code, doing, "perf events of tracepoints")
    return KernelError(code, doing)
