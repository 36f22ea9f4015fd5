"""Samples of ``perf_event_open(2)``: what is asked for, and what the ring buffer holds.

Mirrors include/uapi/linux/perf_event.h: ``struct perf_event_attr`` (the 136 bytes that every kernel since 5.13 knows;
the kernel takes a longer or shorter one) and the records SAMPLE, LOST, LOST_SAMPLES, COMM, EXIT, FORK and MMAP2.

Why not a tracefs instance, as for changes of state: its ``userstacktrace`` keeps eight frames and walks frame
pointers alone, so that the function that calls the C library's ``accept()`` is missing from it. A sample has up to
127 frames, the registers, and the top of the stack (`finwait.uapi.unwinding`).

This module touches bytes only. Opening the events is `finwait.kernel.perf_events`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

from msgspec import Struct

from finwait.errors import DecodeError

__all__ = [
    "Ended", "Executed", "Forked", "Lost", "Mapped", "ProcessRecord", "Registers", "Renamed", "Sample", "attribute",
    "process_attribute", "records",
]  # fmt: skip

_SOFTWARE, _TRACEPOINT = 1, 2
_DUMMY: Final = 9
"""``PERF_COUNT_SW_DUMMY``: counts nothing, and lets the kernel tell of processes."""
_SIZE: Final = 136
_TID, _TIME, _CALLCHAIN, _RAW, _REGS, _STACK = 1 << 1, 1 << 2, 1 << 5, 1 << 10, 1 << 12, 1 << 13
_DISABLED, _MMAP, _COMM, _TASK, _WATERMARK = 1 << 0, 1 << 8, 1 << 9, 1 << 13, 1 << 14
_SAMPLE_ID_ALL, _NO_KERNEL_CHAIN, _MMAP2, _COMM_EXEC, _USE_CLOCKID = (
    1 << 18,
    1 << 21,
    1 << 23,
    1 << 24,
    1 << 25,
)
_CLOCK_MONOTONIC: Final = 1
_ATTRIBUTE: Final = struct.Struct("=IIQQQQQIIQQQQIiQIHHIIQQ")

_RECORD_LOST, _RECORD_COMM, _RECORD_EXIT, _RECORD_FORK = 2, 3, 4, 7
_RECORD_SAMPLE, _RECORD_MMAP2, _RECORD_LOST_SAMPLES = 9, 10, 13
_MISC_COMM_EXEC: Final = 1 << 13
_CONTEXT_MAX: Final = (1 << 64) - 4095
"""From here on an entry of a callchain says whose frames follow, and is no address."""
_MOST_CHAIN: Final = 1024
_WORD: Final = struct.Struct("=Q")


class Registers(Struct, frozen=True):
    """Of x86-64, as the thread entered the kernel."""

    ip: int
    sp: int
    bp: int


class Sample(Struct, frozen=True):
    """A tracepoint fired."""

    pid: int
    """Of the process, in our pid namespace; 0 where it is not in it, −1 where it is ending."""
    tid: int
    time_ns: int
    """CLOCK_MONOTONIC."""
    chain: tuple[int, ...]
    """Where the thread is in user space, innermost first, by frame pointers."""
    raw: bytes
    """The tracepoint's record, laid out as its format says."""
    registers: Registers | None = None
    stack: bytes = b""
    """The user stack from the stack pointer on, as far as it was copied."""


class Executed(Struct, frozen=True):
    """A process runs another program from now on."""

    pid: int
    time_ns: int
    name: bytes = b""
    """What it is called from now on."""


class Renamed(Struct, frozen=True):
    """A process gave itself another name (``PR_SET_NAME`` in its main thread) and runs the same program."""

    pid: int
    time_ns: int
    name: bytes


class Ended(Struct, frozen=True):
    """A thread ended; the process if it was its last."""

    pid: int
    tid: int
    time_ns: int


class Forked(Struct, frozen=True):
    """A new process; new threads are left out."""

    pid: int
    parent: int
    time_ns: int
    by: int = 0
    """The thread of the parent that made it."""


class Mapped(Struct, frozen=True):
    """A process maps code, or makes what it has mapped executable."""

    pid: int
    time_ns: int
    begin: int
    end: int
    offset: int
    """In the file."""
    inode: int
    """Of the file; 0 where there is none."""
    name: bytes
    """Path of the file, or how the kernel calls what is no file (``//anon``)."""


ProcessRecord = Executed | Ended | Forked | Mapped | Renamed
"""What the kernel tells of processes."""


class Lost(Struct, frozen=True):
    """Records for which the ring buffer had no room."""

    count: int


def attribute(
    tracepoint: int,
    *,
    chain: bool = True,
    registers: int = 0,
    stack_bytes: int = 0,
    frames: int = 127,
    watermark: int = 1,
) -> bytes:
    """Return ``struct perf_event_attr``: every time that a tracepoint fires, disabled at first.

    Args:
        tracepoint: its number, ``events/*/*/id``.
        chain: whether to walk the user stack by frame pointers.
        registers: which user registers, ``PERF_REG_*`` of the architecture as bits.
        stack_bytes: how much of the user stack to copy; a multiple of eight.
        frames: how many frames at most.
        watermark: bytes in the ring buffer that wake a reader.
    """
    sample = _TID | _TIME | _RAW | (_CALLCHAIN if chain else 0)
    if registers:
        sample |= _REGS | (_STACK if stack_bytes else 0)
    flags = _DISABLED | _WATERMARK | _SAMPLE_ID_ALL | _NO_KERNEL_CHAIN | _USE_CLOCKID
    return _ATTRIBUTE.pack(
        _TRACEPOINT, _SIZE, tracepoint, 1, sample, 0, flags, watermark, 0, 0, 0, 0, registers,
        stack_bytes if registers else 0, _CLOCK_MONOTONIC, 0, 0, frames, 0, 0, 0, 0, 0,
    )  # fmt: skip


def process_attribute() -> bytes:
    """Return ``struct perf_event_attr`` of what tells of processes: born, another program, code mapped, ended."""
    flags = (
        _DISABLED | _WATERMARK | _SAMPLE_ID_ALL | _USE_CLOCKID | _COMM | _COMM_EXEC | _TASK | _MMAP | _MMAP2
    )
    return _ATTRIBUTE.pack(
        _SOFTWARE, _SIZE, _DUMMY, 0, _TID | _TIME, 0, flags, 1, 0, 0, 0, 0, 0, 0, _CLOCK_MONOTONIC, 0, 0, 0,
        0, 0, 0, 0, 0,
    )  # fmt: skip


def records(
    data: bytes, *, chain: bool = True, registers: bool, stack: bool
) -> Iterator[Sample | ProcessRecord | Lost]:
    """Yield the records in the bytes between tail and head of a ring buffer; kinds that nobody asked for are left out.

    Args:
        data: whole records, one behind the other.
        chain: whether samples have a callchain.
        registers: whether samples have the three registers of `Registers`.
        stack: whether they have a piece of the stack.

    Raises:
        DecodeError: a record is shorter than its header or than what it says it holds.
    """
    at = 0
    while at < len(data):
        if len(data) - at < 8:
            raise DecodeError("perf record", at, data[at : at + 16], "shorter than its header")
        kind, misc, size = struct.unpack_from("=IHH", data, at)
        if size < 8 or at + size > len(data):
            raise DecodeError(
                "perf record", at, data[at : at + 16], f"of {size} bytes where {len(data) - at} are left"
            )
        reader = _Reader(data, at + 8, at + size)
        if kind == _RECORD_SAMPLE:
            yield _sample(reader, chain=chain, registers=registers, stack=stack)
        elif kind == _RECORD_LOST:
            reader.words(1)
            yield Lost(reader.words(1)[0])
        elif kind == _RECORD_LOST_SAMPLES:
            yield Lost(reader.words(1)[0])
        elif kind == _RECORD_EXIT:
            pid, _, tid, _ = reader.unpack("=iiii")
            yield Ended(pid, tid, reader.words(1)[0])
        elif kind == _RECORD_FORK:
            pid, parent, _, by = reader.unpack("=iiii")
            if pid != parent:
                yield Forked(pid, parent, reader.words(1)[0], by)
        elif kind == _RECORD_MMAP2:
            yield _mapped(reader)
        elif kind == _RECORD_COMM and (renamed := _named(reader, executed=bool(misc & _MISC_COMM_EXEC))):
            yield renamed
        at += size


def _named(reader: _Reader, *, executed: bool) -> Executed | Renamed | None:
    """Return what a record of a name says; None where it is that of a thread."""
    pid, tid = reader.unpack("=ii")
    name, time_ns = reader.text_and_time()
    if executed:
        return Executed(pid, time_ns, name)
    return Renamed(pid, time_ns, name) if pid == tid else None


def _mapped(reader: _Reader) -> Mapped:
    pid, _ = reader.unpack("=ii")
    begin, size, offset = reader.words(3)
    _, _, inode, _ = reader.unpack("=IIQQ")
    reader.unpack("=II")  # the protection, which is executable: nobody asked for other mappings
    name, time_ns = reader.text_and_time()
    return Mapped(pid, time_ns, begin, begin + size, offset, inode, name)


def _sample(reader: _Reader, *, chain: bool, registers: bool, stack: bool) -> Sample:
    pid, tid = reader.unpack("=ii")
    time_ns = reader.words(1)[0]
    length = reader.words(1)[0] if chain else 0
    if length > _MOST_CHAIN:
        raise reader.error(f"a callchain of {length} entries")
    addresses = tuple(address for address in reader.words(length) if address < _CONTEXT_MAX)
    raw = reader.take(reader.unpack("=I")[0])
    known: Registers | None = None
    dump = b""
    if registers and reader.words(1)[0]:  # the ABI; 0 of a kernel thread, which has no registers there
        bp, sp, ip = reader.words(3)
        known = Registers(ip, sp, bp)
    if stack:
        size = reader.words(1)[0]
        if size:
            dump = reader.take(size)
            dump = dump[: reader.words(1)[0]]
    return Sample(pid, tid, time_ns, addresses, raw, known, dump)


class _Reader:
    """Takes one record apart and never goes beyond its end."""

    def __init__(self, data: bytes, at: int, end: int) -> None:
        self._data = data
        self._at = at
        self._end = end

    def error(self, reason: str) -> DecodeError:
        return DecodeError("perf record", self._at, self._data[self._at : self._at + 16], reason)

    def take(self, size: int) -> bytes:
        if size > self._end - self._at:
            raise self.error(f"{size} bytes where {self._end - self._at} are left")
        self._at += size
        return self._data[self._at - size : self._at]

    def unpack(self, form: str) -> tuple[int, ...]:
        return struct.unpack(form, self.take(struct.calcsize(form)))

    def words(self, count: int) -> tuple[int, ...]:
        return struct.unpack(f"={count}Q", self.take(8 * count))

    def text_and_time(self) -> tuple[bytes, int]:
        """Return the text that is left, of any length, and the time in the ``struct sample_id`` behind it."""
        rest = self.take(self._end - self._at)
        if len(rest) < 16:  # pid, tid, time
            raise self.error("no time")
        time_ns: int = _WORD.unpack(rest[-8:])[0]
        return rest[:-16].partition(b"\0")[0], time_ns
