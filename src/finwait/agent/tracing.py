"""The flight recorder's edge: a private tracing instance, packet sockets, and the thread that reads both.

The thread sleeps until the kernel has a record, lets two seconds' worth come, and takes it all: on an idle machine it
costs nothing. It runs in the looker, so that its processor time is paid from the looker's share; what `Governor` says
is too much is not recorded. Then the probes are taken out of the kernel, so that it costs the programs of the machine
nothing either, and from time to time put back for a tenth of a second, to count.

What fails is a gap, and is tried again: a trace that was taken away, a namespace that is not there yet. What a killed
agent left in tracefs is removed at the start (`finwait.kernel.tracefs.remove_leavings`).
"""

from __future__ import annotations

import contextlib
import os
import select
import sys
import threading
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Final, Self

import msgspec
import numpy as np
from numpy.typing import NDArray

from finwait.agent import recorder
from finwait.agent.option_texts import RECORD_RATE
from finwait.agent.protocol import RecorderStatus
from finwait.agent.recorder import Found, Governor, Ring, StoryQuery
from finwait.agent.stories import RecordedStep, steps_of
from finwait.errors import DecodeError, FinwaitError, Gap, KernelError
from finwait.kernel import procfs
from finwait.kernel.capture import Capture, space_of
from finwait.kernel.holders import task
from finwait.kernel.netns import NetNamespace
from finwait.kernel.tracefs import Tracing
from finwait.uapi import tracepoint
from finwait.uapi.nsfs import parse_netns_name
from finwait.uapi.pcap import Frame
from finwait.uapi.segment import LINKTYPE_LINUX_SLL2, Segment, parse_segment
from finwait.uapi.socket_filter import closing_filter

__all__ = ["RATE", "TraceRecorder", "space_called"]

RATE: Final = float(RECORD_RATE)
"""Events a second from which on it is off: 1,300 connections that close, with both ends on this machine."""
_SHARE: Final = 0.7
"""Of the agent's share of a processor."""
_GATHER_S: Final = 2.0
_HURRY_S: Final = 0.2
"""Where half of a ring buffer fills sooner."""
_HOLD_NS: Final = 20_000_000
"""What is younger waits for the next drain: the reset that belongs to an end may be still to come."""
_RETRY_S: Final = 60.0
_PROBE_S: Final = 0.1
_TOTAL_BUFFER_KB: Final = 16 << 10
_NAMES_PER_DRAIN: Final = 20
_NAMES_MOST: Final = 4096
_NAME_S: Final = 1.0
_LOST_S: Final = 3600.0
"""For so long lost records are a gap."""
_SLEPT_NS: Final = 100_000_000
_SNAPLEN: Final = 96
"""Of a packet, from its IP header on: both headers with options."""
_BLOCK: Final = 1 << 16
_BLOCKS: Final = 2
_LOOPBACK: Final = 1  # its index in every namespace; a packet is seen there once, as it comes
_TRACE: Final = "the kernel's trace"
_RECORD: Final = "record how connections get into closing states"


class _Names:
    """What the tasks are called that changed a state; as many as fit."""

    def __init__(self) -> None:
        self.told: dict[int, tuple[int, str]] = {}
        """Number → pid and name of a process."""
        self._number: dict[tuple[int, str], int] = {}
        self._met: dict[int, tuple[float, int, int]] = {}
        self._named = procfs.sees_all_processes()
        self._tick_ns = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
        self._next = 1

    def enter(self, rows: NDArray[Any]) -> None:
        """Write the number of each row's task into it; what is not known stays 0."""
        if not self._named:  # the numbers of the trace are those of the first pid namespace
            return
        now = time.monotonic()
        unasked = _NAMES_PER_DRAIN
        made = np.flatnonzero(recorder.by_task(rows))
        at = rows["time"][made] + rows["asleep"][made]
        tids, of = np.unique(rows["pid"][made], return_inverse=True)
        numbers, begun = np.zeros(len(tids), np.uint32), np.zeros(len(tids), np.int64)
        for k, tid in enumerate(tids.tolist()):
            met = self._met.get(tid)
            if (met is None or now - met[0] > _NAME_S) and unasked:
                unasked -= 1
                met = self._meet(tid, now)
            if met is not None:
                begun[k], numbers[k] = met[1], met[2]
        # It may be another task by now that has the number.
        rows["who"][made] = np.where(begun[of] <= at + self._tick_ns, numbers[of], 0)

    def _meet(self, tid: int, now: float) -> tuple[float, int, int] | None:
        mover = task(tid)
        if mover is None:
            return self._met.get(tid)
        if len(self._met) >= _NAMES_MOST or len(self.told) >= _NAMES_MOST:
            for mapping in (self._met, self.told):
                for key in list(mapping)[: _NAMES_MOST // 4]:
                    del mapping[key]
            self._number = {process: number for number, process in self.told.items()}
        process = mover.pid, mover.comm
        number = self._number.get(process)
        if number is None:
            number = self._number[process] = self._next
            self.told[number] = process
            self._next = self._next % 0xFFFFFFFF + 1
        self._met[tid] = now, mover.start_ticks * self._tick_ns, number
        return self._met[tid]


class TraceRecorder:
    """Records; a context manager that begins and ends it. Other threads may ask it at any time.

    Args:
        states: whether to follow changes of state.
        rate: events a second from which on it is off.
        share: of one processor that the whole agent may take.
        packets: the network namespaces whose packets' headers are wanted, as `space_called` takes them.
    """

    def __init__(
        self,
        *,
        states: bool = True,
        rate: float = RATE,
        share: float = 0.01,
        packets: Sequence[str] = (),
    ) -> None:
        self._states = states
        self._rate = rate
        self._governor = Governor(rate, share * _SHARE)
        self._wanted = tuple(packets)
        self._captures: dict[str, Capture] = {}
        self._tracing: Tracing | None = None
        self._names = _Names()
        self._ring = Ring()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._woken, self._waker = -1, -1
        self._thread: threading.Thread | None = None
        self._cpu_s = 0.0
        self._said = ""
        self._gap: Gap | None = None
        self._packet_gaps: dict[str, Gap] = {}
        self._retry_at = self._packets_at = float("-inf")
        self._gather_s = _GATHER_S
        self._drained_at = float("-inf")
        self._buffer_kb = max(256, min(1 << 10, _TOTAL_BUFFER_KB // max(os.cpu_count() or 1, 1)))
        self._events = self._lost = self._packets_lost = 0
        self._lost_at = float("-inf")
        self._missed: dict[str, int] = {}
        self._asleep_ns = _asleep()
        self._wall_ns = _wall()
        self._reasons: dict[int, str] = {}

    def __enter__(self) -> Self:
        """Begin; what cannot be had is a gap."""
        self._woken, self._waker = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        with self._lock:
            self._open()
        self._thread = threading.Thread(target=self._run, name="finwait-recorder", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._wake()
        if self._thread is not None:
            self._thread.join(5.0)
        with self._lock:
            self._close_trace()
            for capture in self._captures.values():
                capture.close()
            self._captures = {}
        for fd in (self._woken, self._waker):
            os.close(fd)

    # ── the thread ───────────────────────────────────────────────────────────────────────────────────────

    def _run(self) -> None:
        while not self._stop.is_set():
            begun = time.thread_time()
            with self._lock:
                self._open()
                waits, pause = self._waits(), self._pause_s()
            self._cpu_s += time.thread_time() - begun
            poll = select.poll()
            for fd in (self._woken, *waits):
                poll.register(fd, select.POLLIN)
            ready = poll.poll(None if pause is None else 1000 * pause)
            if self._stop.is_set():
                return
            if any(fd == self._woken for fd, _ in ready):
                with contextlib.suppress(BlockingIOError):
                    os.read(self._woken, 64)
                continue
            begun = time.thread_time()
            if not ready:
                with self._lock:
                    self._probe_if_due()
            else:
                self._stop.wait(self._gather_s)
                with self._lock:
                    self._drain()
            self._cpu_s += time.thread_time() - begun

    def _wake(self) -> None:
        """Have the thread see anew what it waits for: another thread has changed it."""
        with contextlib.suppress(OSError):
            os.write(self._waker, b"x")

    def _waits(self) -> list[int]:
        """Return the descriptors that are readable when there is something; while it is off, nothing is waited for."""
        if self._governor.off:
            return []
        sources = [*self._captures.values(), *((self._tracing,) if self._tracing is not None else ())]
        return [source.fileno() for source in sources]

    def _pause_s(self) -> float | None:
        """Return after how many seconds something is due though nothing was recorded; None for never."""
        now, due = time.monotonic(), list[float]()
        if self._governor.off:
            due.append(self._governor.probe_in_s(now))
        if self._states and self._tracing is None:
            due.append(self._retry_at - now)
        if set(self._wanted) - self._captures.keys():
            due.append(self._packets_at - now)
        return max(0.05, min(due)) if due else None

    def _open(self) -> None:
        now = time.monotonic()
        if self._states and self._tracing is None and now >= self._retry_at:
            self._retry_at = now + _RETRY_S
            self._open_trace()
        if now >= self._packets_at:
            for name in set(self._wanted) - self._captures.keys():
                self._packets_at = now + _RETRY_S
                self._open_packets(name)

    def _open_trace(self) -> None:
        tracing = Tracing(recorder.EVENTS, filters=recorder.FILTERS, buffer_kb=self._buffer_kb)
        try:
            tracing.__enter__()
        except (FinwaitError, OSError) as error:
            self._failed(error)
            return
        self._tracing, self._said, self._gap = tracing, "", None
        self._missed = {}
        self._reasons = next(
            (f.symbols["reason"] for f in tracing.formats.values() if "reason" in f.symbols), {}
        )

    def _failed(self, error: FinwaitError | OSError) -> None:
        self._close_trace()
        hint = getattr(error, "hint", "")
        self._said = f"{error}" + (f" ({hint})" if hint else "")
        needs = getattr(error, "needs", "") or "tracefs"
        self._gap = Gap(_TRACE, f"{_RECORD}: {error}", f"{needs}, or `--no-record-states`")
        self._retry_at = time.monotonic() + _RETRY_S

    def _close_trace(self) -> None:
        if self._tracing is not None:
            self._tracing.close()
            self._tracing = None

    def _open_packets(self, name: str) -> None:
        try:
            capture = Capture(
                space_called(name), (), program=closing_filter(_SNAPLEN), block=_BLOCK, blocks=_BLOCKS
            )
            capture.__enter__()
        except (FinwaitError, OSError) as error:
            needs = getattr(error, "needs", "")
            self._packet_gaps[name] = _no_packets(name, error, needs)
            return
        self._packet_gaps.pop(name, None)
        self._captures[name] = capture

    # ── reading ──────────────────────────────────────────────────────────────────────────────────────────

    def _drain(self) -> None:
        """Take in what there is; the caller has the lock."""
        begun = time.thread_time()
        asleep, wall = _asleep(), _wall()
        slept = max(0, asleep - self._asleep_ns) if asleep - self._asleep_ns > _SLEPT_NS else 0
        events = 0
        if self._tracing is not None and not self._governor.off:
            try:
                events = self._drain_trace(self._tracing, slept)
            except (DecodeError, FinwaitError, OSError) as error:
                self._failed(error)
        rows = recorder.packet_rows(self._packets(slept, wall))
        if len(rows):
            rows["asleep"], rows["late_ms"] = self._asleep_ns, min(slept // 1_000_000, 0xFFFFFFFF)
            self._ring.append(rows)
        self._asleep_ns, self._wall_ns = asleep, wall
        now = time.monotonic()
        if not self._governor.drained(now, events + len(rows), time.thread_time() - begun):
            self._switch_off()

    def _drain_trace(self, tracing: Tracing, slept_ns: int) -> int:
        """Read the trace; return how many events there were, with those that were lost."""
        drained = tracing.drain()
        fullest = int(np.bincount(drained.cpu).max()) if len(drained.cpu) else 0
        now, pages = time.monotonic(), 1024 * self._buffer_kb // tracing.layout.page_size
        each_s = (now - self._drained_at) / max(fullest, 1)
        self._drained_at = now
        self._gather_s = min(_GATHER_S, max(_HURRY_S, each_s * pages / 2))
        records = tracepoint.walk(drained.buffer, drained.starts, drained.lengths, tracing.layout)
        lost = int(np.abs(records.missed).sum())  # −1: some, and the kernel does not say how many
        if lost:
            self._lost += lost
            self._lost_at = time.monotonic()
        order: tracepoint.ByteOrder = "little" if sys.byteorder == "little" else "big"
        rows, resets = recorder.decode(records, tracing.formats, byteorder=order)
        rows["asleep"], rows["late_ms"] = self._asleep_ns, min(slept_ns // 1_000_000, 0xFFFFFFFF)
        kept = self._ring.sift(rows, resets, drained.horizon - _HOLD_NS)
        if len(kept):
            self._names.enter(kept)
            self._ring.append(kept)
        self._events += len(records)
        return len(records) + lost

    def _packets(self, slept_ns: int, wall_ns: int) -> list[tuple[int, int, Segment]]:
        """Return the headers that packet sockets have, with CLOCK_MONOTONIC: packets carry the wall clock's time.

        Where that was set or the machine slept since the last drain, a packet's time is that of the drain.
        """
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        steady = not slept_ns and abs(wall_ns - self._wall_ns) < _SLEPT_NS
        segments = []
        for name, capture in list(self._captures.items()):
            try:
                for packet in capture.drain():
                    frame = Frame(packet.time_ns, LINKTYPE_LINUX_SLL2, packet.data, packet.length)
                    segment = parse_segment(frame)
                    if isinstance(segment, Segment):
                        at = packet.time_ns - wall_ns if steady else now
                        segments.append((min(at, now), capture.netns, segment))
                        if (
                            packet.ifindex == _LOOPBACK and not packet.outgoing
                        ):  # its other end is here as well
                            sent = msgspec.structs.replace(segment, outgoing=True)
                            segments.append((min(at, now), capture.netns, sent))
                dropped = capture.dropped()
            except (FinwaitError, OSError) as error:
                capture.close()
                del self._captures[name]
                self._packet_gaps[name] = _no_packets(name, error, "")
                continue
            new = dropped - self._missed.get(name, 0)
            self._missed[name] = dropped
            if new > 0:
                self._packets_lost += new
                self._lost_at = time.monotonic()
        segments.sort(key=lambda entry: entry[0])
        return segments

    # ── too much ─────────────────────────────────────────────────────────────────────────────────────────

    def _switch_off(self) -> None:
        if self._tracing is not None:
            with contextlib.suppress(KernelError):
                self._tracing.pause()

    def _probe_if_due(self) -> None:
        """Count for a tenth of a second, where it is off, whether it may begin again; the caller has the lock."""
        tracing, governor = self._tracing, self._governor
        if not governor.off or governor.probe_in_s(time.monotonic()) > 0:
            return
        if tracing is None:
            governor.probed(time.monotonic(), 0, 1.0)
            return
        try:
            tracing.drain()
            before, begun = tracing.statistics(), time.monotonic()
            tracing.resume()
            self._stop.wait(_PROBE_S)
            after, lasted = tracing.statistics(), time.monotonic() - begun
            events = (after.read + after.waiting + after.lost) - (before.read + before.waiting + before.lost)
            tracing.drain()
            if not governor.probed(time.monotonic(), max(0, events), lasted):
                tracing.pause()
        except (FinwaitError, OSError) as error:
            self._failed(error)

    # ── what others ask ──────────────────────────────────────────────────────────────────────────────────

    @property
    def resets(self) -> bool:
        """Whether resets are recorded, so that a missing one says something."""
        tracing = self._tracing
        return (
            tracing is not None
            and not set(tracing.missing) & set(recorder.RESET_EVENTS)
            and not self._recently_lost
        )

    @property
    def _recently_lost(self) -> bool:
        return time.monotonic() - self._lost_at < _LOST_S

    @property
    def gaps(self) -> tuple[Gap, ...]:
        """What it could not record."""
        gaps = list(self._packet_gaps.values())
        if self._gap is not None:
            gaps.append(self._gap)
        if self._governor.off == "rate":
            gaps.append(Gap(_TRACE, f"{_RECORD}: there are too many at once", "a larger `--record-rate`"))
        elif self._governor.off:
            gaps.append(Gap(_TRACE, f"{_RECORD}: it takes too much of the processor", "a larger `--share`"))
        if self._recently_lost:
            gaps.append(Gap(_TRACE, f"{_RECORD}: records were lost within the last hour", ""))
        tracing = self._tracing
        if tracing is not None and tracing.missing:
            names = ", ".join(f"`{event}`" for event in tracing.missing)
            gaps.append(Gap(_TRACE, "tell which connections a reset ended", f"a kernel with {names}"))
        return tuple(gaps)

    def catch_up(self) -> None:
        """Take in what has happened up to now, but for the last hundredths of a second."""
        if self._governor.off or (self._tracing is None and not self._captures):
            return
        time.sleep(1.2 * _HOLD_NS / 1e9)
        with self._lock:
            before = self._tracing, self._governor.off
            begun = time.thread_time()
            self._drain()
            self._cpu_s += time.thread_time() - begun
            if before != (self._tracing, self._governor.off):
                self._wake()

    def known(self, ports: NDArray[np.uint32]) -> NDArray[np.bool_]:
        """Return for which pairs of ports there is anything."""
        with self._lock:
            return self._ring.known(ports)

    def find(self, queries: Sequence[StoryQuery]) -> list[Found]:
        """Return what there is of connections."""
        with self._lock:
            return self._ring.find(queries)

    def steps(self, story: Found) -> tuple[RecordedStep, ...]:
        """Return it as steps."""
        with self._lock:
            return steps_of(story.rows, self._names.told, self._reasons)

    def status(self, stories: int, ambiguous: int) -> RecorderStatus:
        """Return how it is."""
        governor, ring = self._governor, self._ring
        off = governor.off if governor.off in ("rate", "cost") else ""
        state = "off" if not self._states else "failed" if self._tracing is None else off or "on"
        return RecorderStatus(
            state=state,  # type: ignore[arg-type]  # one of these five
            said=self._said[:500],
            rate=round(governor.rate, 1),
            rate_most=self._rate,
            events=self._events,
            kept=len(ring),
            kept_bytes=ring.nbytes,
            passed=ring.passed,
            lost=self._lost + self._packets_lost,
            dropped=ring.dropped,
            offs=governor.offs,
            stories=stories,
            ambiguous=ambiguous,
            cpu_s=round(self._cpu_s, 3),
            packets=sorted(self._captures),
        )


def _no_packets(name: str, error: FinwaitError | OSError, needs: str) -> Gap:
    return Gap(f"`--packets {name}`", f"see the headers of its packets: {error}", needs)


def space_called(name: str) -> NetNamespace:
    """Return the network namespace that an operator means.

    Args:
        name: ``self`` for the agent's own, or as `finwait.uapi.nsfs` reads it.

    Raises:
        FinwaitError: there is none.
    """
    if name == "self":
        return space_of(os.stat("/proc/self/ns/net").st_ino)
    from finwait.selecting import namespaces  # which an agent without packets need not load

    (inode,) = namespaces([parse_netns_name(name)], live=True)
    return space_of(inode)


def _asleep() -> int:
    """Return by how much CLOCK_BOOTTIME is ahead of CLOCK_MONOTONIC: what the machine has slept, ns."""
    awake = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    return max(0, time.clock_gettime_ns(time.CLOCK_BOOTTIME) - awake)


def _wall() -> int:
    """Return by how much the wall clock is ahead of CLOCK_MONOTONIC, ns."""
    return time.time_ns() - time.clock_gettime_ns(time.CLOCK_MONOTONIC)
