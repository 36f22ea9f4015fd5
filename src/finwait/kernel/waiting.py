"""Who in a process waits for its sockets: its threads' system calls, and what its event loops watch.

Theory of operation. A thread that sleeps is in a system call, and ``/proc/PID/task/TID/syscall`` tells which, with
its arguments: a descriptor, or where in the program's memory a set of descriptors is (``/proc/PID/mem``). What an
epoll instance watches is in ``/proc/PID/fdinfo/FD``. Nothing is traced, stopped or changed.

Implementation. A look is racy, so that each thread is read twice, and the registrations of a process's loops in
between. A thread that is in the same call at both readings and was given no processor meanwhile (``schedstat``) slept
in it all the time; what is not so is not `steady`, and nobody may conclude from it. Where threads of a process ran,
its registrations are read twice as well.

What this cannot see: what an io_uring or libaio waits for, which numbers threads with descriptor tables of their own
use in an event loop, and calls of programs whose numbers are not those of the machine (32-bit ones). Each of these is a
word of `ProcessWaits.unlisted`, a thread of its kind, or a line of `ProcessWaits.unread`. Whether it is there is read
of processes of which "nobody" might be said otherwise (`finwait.kernel.unlisted`), and of no other. A thread that
sleeps in a call on a descriptor that another thread closed meanwhile waits for what the number meant before: the number
is looked up now, and only where it means nothing any more, or nothing that the call can be about, that is known.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Collection, Iterable, Mapping
from functools import cached_property
from itertools import islice
from typing import Final

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from finwait.errors import DecodeError
from finwait.kernel import event_loops, kcmp, rights, tasks, unlisted
from finwait.kernel.procfs import read
from finwait.table.units import printable
from finwait.uapi import poll, syscall
from finwait.uapi.eventpoll import READING
from finwait.uapi.observation import LoopWatch, ProcessWaits, ThreadWait
from finwait.uapi.proc import parse_stat

__all__ = ["MOST_PROCESSES", "waits"]

MOST_PROCESSES: Final = 256
"""Processes that are read at most in one look; those that hold most of what is asked for come first."""
MOST_THREADS: Final = 2_000
"""Threads of one process that are read at most."""
MOST_THREADS_IN_ALL: Final = 20_000
MOST_MEMORY: Final = 16 << 20
"""Bytes of programs' memory that are read at most in one look."""
MOST_SET: Final = 1 << 20
"""Bytes of one set of descriptors: 131,072 entries of poll(2), eight million descriptors of select(2)."""
MOST_KEPT: Final = 4_096
"""Members of one thread's set that are kept, beside those that were asked for."""
APART_S: Final = 0.005
"""The least time between the two readings."""
_PTRACE: Final = "CAP_SYS_PTRACE"
_PF_IO_WORKER, _PF_USER_WORKER = 0x10, 0x4000
_ON_SOCKETS: Final = frozenset(
    (
        "recvfrom",
        "recvmsg",
        "recvmmsg",
        "sendto",
        "sendmsg",
        "sendmmsg",
        "accept",
        "accept4",
        "connect",
        "shutdown",
    )
)
_ELF32: Final = b"\x7fELF\x01"


def waits(
    fds_of: Mapping[int, Collection[int]],
    loops: Iterable[tuple[int, int]],
    rings: Iterable[tuple[int, int]],
    inodes: Collection[int] = (),
) -> dict[int, ProcessWaits]:
    """Return who waits for sockets, in each of some processes; one that ended meanwhile is left out.

    Args:
        fds_of: pid → descriptors of sockets that are asked for.
        loops: ``(pid, fd)`` of all epoll instances.
        rings: ``(pid, fd)`` of all io_uring instances.
        inodes: of the sockets that are asked for.
    """
    asked = sorted(fds_of, key=lambda pid: (-len(fds_of[pid]), pid))
    result: dict[int, ProcessWaits] = {
        pid: ProcessWaits(
            unread=(f"read its threads and event loops: only {MOST_PROCESSES} processes are read\t",)
        )
        for pid in asked[MOST_PROCESSES:]
    }
    every_loop = [*loops]
    of_loops, of_rings = _by_pid(every_loop), _by_pid(rings)
    look = _Look(np.array(sorted(inodes), np.int64), every_loop)
    readings = look.readings = {
        pid: _Process(look, pid, frozenset(fds_of[pid]), of_loops.get(pid, []), of_rings.get(pid, []))
        for pid in asked[:MOST_PROCESSES]
    }
    begun = time.monotonic()
    for reading in readings.values():
        reading.first()
    if readings:
        time.sleep(max(0.0, APART_S - (time.monotonic() - begun)))
    for pid, reading in readings.items():
        process_waits = reading.second()
        if process_waits is not None:
            result[pid] = process_waits
    return result


def _by_pid(pairs: Iterable[tuple[int, int]]) -> dict[int, list[int]]:
    result: dict[int, list[int]] = {}
    for pid, fd in pairs:
        result.setdefault(pid, []).append(fd)
    return result


class _Look:
    """What one look may still read, and what all processes of it have in common."""

    def __init__(self, inodes: NDArray[np.int64], loops: list[tuple[int, int]]) -> None:
        self.readings: dict[int, _Process] = {}
        self.inodes = inodes
        self.loops = loops
        self.machine = os.uname().machine
        self.memory_left = MOST_MEMORY
        self.threads_left = MOST_THREADS_IN_ALL
        self.flags_left = unlisted.MOST_FLAGS

    @cached_property
    def watched(self) -> tuple[set[tuple[int, int]], bool]:
        """``(inode, pid)`` of the sockets that event loops watch, of all processes; and whether all loops were read."""
        others = [(pid, fd) for pid, fd in self.loops if pid not in self.readings]
        watched, complete = event_loops.foreign(others, self.inodes)
        for pid, reading in self.readings.items():
            watched |= {(inode, pid) for inode in reading.watched_inodes()}
        return watched, complete


class _Process:
    """One process, read twice."""

    def __init__(
        self, look: _Look, pid: int, fds: frozenset[int], loops: list[int], rings: list[int]
    ) -> None:
        self._look = look
        self._pid = pid
        self._fds = fds
        self._loop_fds = loops
        self._rings = rings
        self._task = pid
        self._threads: dict[int, tuple[bytes | None, bytes, ThreadWait]] = {}
        self._tids: frozenset[int] = frozenset()
        self._loops: list[LoopWatch] = []
        self._unread: dict[str, None] = {}
        self._foreign = False

    def first(self) -> None:
        """Read its threads, and what its loops watch."""
        tids = tasks.of(self._pid)
        self._tids = frozenset(tids)
        self._task = tasks.live_thread(self._pid) or self._pid
        if len(tids) > min(MOST_THREADS, self._look.threads_left):
            self._miss(f"read what its {len(tids)} threads do: there are too many")
            tids = tids[: min(MOST_THREADS, self._look.threads_left)]
        self._look.threads_left -= len(tids)
        self._foreign = self._has_other_numbers()
        memory = -1
        try:
            for tid in tids:
                line, slices = self._line(tid)
                if line is not None and memory < 0 and _needs_memory(self._look.machine, line):
                    memory = self._open_memory()
                thread = self._thread(tid, line, memory)
                if thread is not None:
                    self._threads[tid] = (line, slices, thread)
        finally:
            if memory >= 0:
                os.close(memory)
        self._instances = event_loops.EventLoops(self._task, self._loop_fds, self._miss)
        self._loops = self._watched()

    def _watched(self) -> list[LoopWatch]:
        numbers = np.array(sorted(self._fds), np.int64)
        return self._instances.watched(self._look.inodes, numbers) if self._loop_fds else []

    def watched_inodes(self) -> set[int]:
        """Return the sockets that its loops watch for reading."""
        return {
            inode
            for loop in self._loops
            for _, events, inode in loop.watched
            if inode > 0 and events & READING
        }

    def second(self) -> ProcessWaits | None:
        """Read its threads again; return what both readings say, None of a process that has ended."""
        if not os.path.isdir(f"/proc/{self._pid}/task"):
            return None
        threads: list[ThreadWait] = []
        memory = -1
        try:
            for tid, (line, slices, thread) in self._threads.items():
                again, slices_again = self._line(tid)
                if again is None and line is not None:
                    continue  # it has ended
                if again is not None and memory < 0 and _needs_memory(self._look.machine, again):
                    memory = self._open_memory()
                same = line is not None and again == line and slices == slices_again and bool(thread.call)
                threads.append(self._agreed(thread, again, memory, same=same, slices=slices_again))
        finally:
            if memory >= 0:
                os.close(memory)
        if {*tasks.of(self._pid)} - self._tids:
            self._unread.setdefault("read its threads: some have just begun\t")
        loops = self._loops
        if loops and not all(thread.steady for thread in threads):
            again_loops = {loop.fd: loop for loop in self._watched()}
            loops = [replace(loop, steady=again_loops.get(loop.fd) == loop) for loop in loops]
        words: list[str] = []
        if len(threads) > 1:
            threads, words = self._tables(threads)
        return self._completed(threads, loops, words)

    def _tables(self, threads: list[ThreadWait]) -> tuple[list[ThreadWait], list[str]]:
        """Return the threads by the sockets that they wait for, where they have descriptor tables of their own."""
        orders = {thread.tid: kcmp.order(thread.tid, self._task) for thread in threads}
        ended = {tid for tid in orders if not os.path.exists(self._path(tid, "stat"))}
        words = []
        if any(answer in (1, 2) for tid, answer in orders.items() if tid not in ended):
            words.append("tables")
        elif any(answer is None for tid, answer in orders.items() if tid not in ended):
            words.append("tables-unknown")
        return ([self._by_inode(thread) for thread in threads] if words else threads), words

    def _by_inode(self, thread: ThreadWait) -> ThreadWait:
        """Return a thread with what its numbers mean in its own table."""
        sockets: dict[int, int] = {}
        for fd, events in thread.waits_for:
            inode = _inode(self._path(thread.tid, f"fd/{fd}"))
            if inode and np.isin(inode, self._look.inodes):
                sockets[inode] = sockets.get(inode, 0) | events
        kept = tuple(
            (fd, events)
            for fd, events in thread.waits_for
            if thread.kind == "epoll" and kcmp.file_order(thread.tid, fd, self._task, fd) == 0
        )
        return replace(thread, waits_for=kept, sockets=tuple(sorted(sockets.items())))

    def _asked(self, alone: list[int], threads: list[ThreadWait]) -> tuple[list[int], int]:
        """Return which sockets to ask whether they send signals, and from which on it is not known; −1 if it is."""
        look = self._look
        always = max(0, look.flags_left - unlisted.MOST_FLAGS + unlisted.ALWAYS_FLAGS)
        if len(alone) > always:
            awaited = any(thread.call in ("rt_sigtimedwait", "rt_sigsuspend") for thread in threads)
            if not awaited and unlisted.only_ordinary_signals([thread.tid for thread in threads]):
                look.flags_left -= always
                return alone[:always], -1
        asked = alone[: look.flags_left]
        look.flags_left -= len(asked)
        return asked, alone[len(asked)] if len(asked) < len(alone) else -1

    def _stale(self, thread: ThreadWait) -> bool:
        """Return whether a thread sleeps in a call on a descriptor that was closed meanwhile."""
        if thread.kind not in ("fd", "epoll") or not thread.steady:
            return False
        for fd, _ in thread.waits_for:
            mode = _mode(self._path(thread.tid, f"fd/{fd}"))
            if not mode or (thread.call in _ON_SOCKETS and not stat.S_ISSOCK(mode)):
                return True
            if thread.state == "S" and (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                return True
            if thread.kind == "epoll" and not any(fd in (loop.fd, *loop.also) for loop in self._loops):
                return True
        return False

    def _registered(self, loops: list[LoopWatch]) -> set[int]:
        """Return which of its sockets loops watch for reading, by the number that they still have."""
        registered = set()
        reading = ((fd, inode) for loop in loops for fd, events, inode in loop.watched if events & READING)
        for fd, inode in islice(reading, unlisted.MOST_FLAGS):
            if fd in self._fds and (inode < 0 or _inode(self._path(self._task, f"fd/{fd}")) == inode):
                registered.add(fd)
        return registered

    def _completed(self, threads: list[ThreadWait], loops: list[LoopWatch], words: list[str]) -> ProcessWaits:
        """Return what was read, with what else may wait for the sockets that nothing of it waits for."""
        slept = {fd for thread in threads for fd, _ in thread.waits_for}
        idle = [loop for loop in loops if loop.watched and slept.isdisjoint((loop.fd, *loop.also))]
        alone = sorted(self._fds - slept - self._registered(loops))
        plain = ProcessWaits(tuple(threads), tuple(loops), tuple(self._rings))
        if self._rings or self._unread or not (alone or idle):
            return replace(plain, unread=tuple(self._unread), unlisted=tuple(words))
        words += unlisted.mappings(self._task)
        if len(threads) > 1 and any(self._stale(thread) for thread in threads):
            words.append("stale")
        others = [(pid, fd) for pid, fd in self._look.loops if pid != self._pid]
        if idle and others:
            apart = {loop.fd: loop for loop in self._instances.shared(idle, others)}
            loops = [apart.get(loop.fd, loop) for loop in loops]
        watched, complete = self._look.watched if alone else (set(), True)
        if not complete:
            words.append("loops")
        asked, limit = self._asked(alone, threads)
        return replace(
            plain,
            loops=tuple(loops),
            asynchronous=unlisted.asynchronous(self._task, asked),
            unlisted=tuple(words),
            unasked_from=limit,
            foreign=tuple(sorted((inode, pid) for inode, pid in watched if pid != self._pid)),
        )

    def _agreed(
        self, thread: ThreadWait, again: bytes | None, memory: int, *, same: bool, slices: bytes
    ) -> ThreadWait:
        """Return what both readings of a thread say.

        The set of a thread is in memory that others may change, so it is read twice. One that did not sleep all the
        time may wait for what either reading says.
        """
        if thread.kind == "set" or (again is not None and not same):
            later = self._thread(thread.tid, again, memory)
            if later is None:
                same = False
            elif later.waits_for != thread.waits_for or later.kind != thread.kind:
                same = False
                both = dict(thread.waits_for)
                for fd, events in later.waits_for:
                    both[fd] = both.get(fd, 0) | events
                unknown = "unknown" in (thread.kind, later.kind)
                thread = replace(
                    thread, waits_for=tuple(sorted(both.items())), kind="unknown" if unknown else thread.kind
                )
        count = slices.split()[2:3]
        return replace(thread, steady=same, slices=int(count[0]) if count and count[0].isdigit() else -1)

    def _miss(self, doing: str, capability: str = "") -> None:
        """Remember what could not be read."""
        self._unread.setdefault(f"{doing}\t{rights.missing(capability) if capability else ''}")

    def _path(self, tid: int, name: str) -> str:
        return f"/proc/{self._pid}/task/{tid}/{name}"

    def _line(self, tid: int) -> tuple[bytes | None, bytes]:
        """Return ``syscall`` and ``schedstat`` of a thread; None of one that we may not read, or that has ended."""
        slices = read(self._path(tid, "schedstat"), 128) or b""
        try:
            with open(self._path(tid, "syscall"), "rb", buffering=0) as file:
                return file.read(512), slices
        except PermissionError:
            self._miss("read which system calls its threads are in", _PTRACE)
        except FileNotFoundError:
            if os.path.exists(self._path(tid, "stat")):
                self._miss("read which system calls its threads are in: this kernel does not tell")
        except OSError:
            pass
        return None, slices

    def _thread(self, tid: int, line: bytes | None, memory: int) -> ThreadWait | None:
        data = read(self._path(tid, "stat"), 4096)
        if not data:
            return None
        try:
            fields = parse_stat(data)
        except DecodeError:
            return None
        if fields.state in "ZXx":  # ended, but still listed
            return None
        plain = ThreadWait(tid, printable(fields.comm), fields.state)
        if line is None:
            return replace(plain, kind="unknown")
        if fields.flags & (_PF_IO_WORKER | _PF_USER_WORKER):  # in no system call, whatever its registers say
            kind = "io_uring" if fields.flags & _PF_IO_WORKER else "other"
            return replace(plain, call="a thread of the kernel's own", kind=kind)
        try:
            inside = syscall.parse(line)
        except DecodeError:
            return replace(plain, kind="unknown")
        if inside is None:
            return plain
        wchan = read(self._path(tid, "wchan"), 128) or b""
        plain = replace(plain, wchan="" if wchan == b"0" else printable(wchan.decode("ascii", "replace")))
        call = None if self._foreign else syscall.call(self._look.machine, inside.number)
        if call is None:
            if self._foreign or self._look.machine not in syscall.ARCHITECTURES:
                self._miss(
                    "read which system calls its threads are in: their numbers have other meanings there"
                )
            return replace(plain, call=f"system call {inside.number}", kind="unknown")
        return self._waiting(plain, call, inside, memory)

    def _waiting(
        self, plain: ThreadWait, call: syscall.Call, inside: syscall.SleepingIn, memory: int
    ) -> ThreadWait:
        """Say what a call that a thread is in waits for."""
        named: dict[int, int] = {}
        for k in call.fds:
            fd = _descriptor(inside.args[k])
            way = 0 if call.sends is None else poll.POLLOUT if k == call.sends else poll.POLLIN
            named[fd] = named.get(fd, 0) | way
        events: dict[int, int] | None = named
        if call.kind == "set":
            events = self._set(call.name, inside.args, memory)
        limited, timeout = self._limit(call, inside.args, memory)
        kind = "unknown" if events is None or call.kind == "restart" else call.kind
        return replace(
            plain,
            call=call.name,
            kind=kind,
            waits_for=self._kept(events or {}),
            limited=limited,
            timeout_ms=timeout,
        )

    def _kept(self, events: dict[int, int]) -> tuple[tuple[int, int], ...]:
        """Leave out what nobody asks for, where there is very much of it."""
        if len(events) > MOST_KEPT:
            own = self._fds.union(self._loop_fds)
            kept = {fd: mask for fd, mask in events.items() if fd in own}
            rest = [fd for fd in events if fd not in own][: max(0, MOST_KEPT - len(kept))]
            events = kept | {fd: events[fd] for fd in rest}
        return tuple(sorted(events.items()))

    def _set(self, name: str, args: tuple[int, ...], memory: int) -> dict[int, int] | None:
        """Return descriptor → events of poll(2) or select(2); None where the set cannot be read."""
        if name in ("poll", "ppoll"):
            nfds = args[1] & 0xFFFFFFFF  # an unsigned int: what else is in the register does not count
            if not nfds:
                return {}
            data = self._memory(memory, args[0], nfds * 8)
            return None if data is None else poll.poll_set(data)
        nfds = args[0] & 0x7FFFFFFF
        size = (nfds + 63) // 64 * poll.FD_WORD
        sets = [b"" if not address else self._memory(memory, address, size) for address in args[1:4]]
        first, second, third = sets
        if first is None or second is None or third is None:
            return None
        return poll.select_sets(nfds, (first, second, third))

    def _limit(self, call: syscall.Call, args: tuple[int, ...], memory: int) -> tuple[bool, int | None]:
        """Return whether a wait has a limit, and which, in ms, where it can be read."""
        if call.timeout is None:
            return False, None
        unit, position = call.timeout
        value = args[position]
        if unit == "ms":
            limit = value & 0xFFFFFFFF
            return (False, None) if limit >> 31 else (True, limit)
        if not value:
            return False, None
        data = self._memory(memory, value, 16)
        decode = poll.timeval_ms if unit == "timeval" else poll.timespec_ms
        return True, None if data is None else decode(data)

    def _open_memory(self) -> int:
        try:
            return os.open(f"/proc/{self._task}/mem", os.O_RDONLY | os.O_CLOEXEC)
        except PermissionError:
            self._miss("read the sets of descriptors that its threads wait for", _PTRACE)
        except OSError:
            pass
        return -1

    def _memory(self, memory: int, address: int, size: int) -> bytes | None:
        """Return bytes of the program's memory; None if they cannot be had, or are too many."""
        if not size:
            return b""
        if size > MOST_SET or size > self._look.memory_left:
            self._miss("read the sets of descriptors that its threads wait for: they are too large")
            return None
        if memory < 0 or address + size >= 1 << 63:
            return None
        self._look.memory_left -= size
        try:
            data = os.pread(memory, size, address)
        except OSError:
            return None
        return data if len(data) == size else None

    def _has_other_numbers(self) -> bool:
        """Return whether it is a 32-bit program, whose system calls have other numbers."""
        try:
            with open(f"/proc/{self._task}/exe", "rb") as file:
                return file.read(5) == _ELF32
        except OSError:
            return False


def _mode(path: str) -> int:
    """Return the type of what a descriptor refers to; 0 where there is none (any more)."""
    try:
        return os.stat(path).st_mode
    except OSError:
        return 0


def _inode(path: str) -> int:
    """Return the inode of what a descriptor refers to; 0 where there is none (any more)."""
    try:
        return os.stat(path).st_ino
    except OSError:
        return 0


def _descriptor(argument: int) -> int:
    """Return a descriptor as the kernel takes it from a register: its lower half, with a sign."""
    low = argument & 0xFFFFFFFF
    return low - (1 << 32) if low >> 31 else low


def _needs_memory(machine: str, line: bytes) -> bool:
    try:
        inside = syscall.parse(line)
    except DecodeError:
        return False
    call = None if inside is None else syscall.call(machine, inside.number)
    return call is not None and (call.kind == "set" or call.timeout is not None)
