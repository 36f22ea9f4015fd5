"""Demonstrations of the ledger's claims: real sockets in private namespaces, measured values, and a verdict.

A `Proof` builds a small situation, measures, and says for each measurement what the ledger expects and whether it
was so on this kernel (`Measured`). One proof can bear on several claims. Times are made short with the sysctls of the
private namespace, and what takes long by its nature ("stays for ever") is compared with something that ends: the
held socket is still there when the orphan beside it has gone.

The instrument is ``/proc/net/tcp``, not finwait's own decoder, so that a proof does not rest on what it is to support.
Both ends of a connection are sockets of this process on the namespace's loopback unless a proof says otherwise.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import platform
import socket
import struct
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np

from finwait.diagnosis import forecast
from finwait.errors import FinwaitError
from finwait.lab.actor import meet
from finwait.lab.scenario import STATES, NotSettled, scenarios
from finwait.lab.topology import Lab, LabError, unmet

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from finwait.lab.actor import Conn
    from finwait.lab.topology import Netns, Translated

__all__ = ["Measured", "Outcome", "Proof", "proofs", "prove"]

_TICKS = os.sysconf("SC_CLK_TCK")
_TCP_LINGER2, _TCP_USER_TIMEOUT = 8, 18
_TCP_RTO_MAX_MS = 44
_TCP_REPAIR = 19
_DEADLINE_S = 30.0


@dataclass(frozen=True, slots=True)
class Measured:
    """One measurement: what the ledger expects, what was measured, and whether they agree."""

    what: str
    expected: str
    got: str
    held: bool


@dataclass(frozen=True, slots=True)
class Proof:
    """A demonstration and the claims that it bears on."""

    name: str
    claims: tuple[str, ...]
    seconds: float
    """About how long it takes."""
    needs: tuple[str, ...]
    """As for a scenario: see `finwait.lab.topology.unmet`."""
    run: Callable[[Lab], Iterator[Measured]]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a proof measured on this kernel."""

    proof: Proof
    kernel: str
    measured: tuple[Measured, ...]
    seconds: float

    @property
    def held(self) -> bool:
        """Whether everything was as the ledger says."""
        return all(one.held for one in self.measured)


# ── instruments ──────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class _Row:
    """A line of /proc/net/tcp."""

    state: str
    timer: int
    when_s: float
    inode: int
    rqueue: int
    wqueue: int
    retrans: int
    sport: int
    dport: int

    def __str__(self) -> str:
        left = f" {self.when_s:.1f} s" if self.timer else ""
        return f"{self.state} timer {self.timer}{left} inode {self.inode and '≠ 0'}"


def _table(ns: Netns) -> list[_Row]:
    text = ns.call(lambda: Path("/proc/thread-self/net/tcp").read_text(encoding="ascii"))
    found = []
    for line in text.splitlines()[1:]:
        field = line.split()
        timer, _, when = field[5].partition(":")
        wqueue, _, rqueue = field[4].partition(":")
        found.append(
            _Row(
                STATES[int(field[3], 16)],
                int(timer, 16),
                int(when, 16) / _TICKS,
                int(field[9]),
                int(rqueue, 16),
                int(wqueue, 16),
                int(field[6], 16),
                int(field[1].rpartition(":")[2], 16),
                int(field[2].rpartition(":")[2], 16),
            )
        )
    return found


def _row(ns: Netns, sport: int, dport: int) -> _Row | None:
    return next((row for row in _table(ns) if (row.sport, row.dport) == (sport, dport)), None)


def _shown(row: _Row | None) -> str:
    return "gone" if row is None else str(row)


@dataclass(slots=True)
class _Pair:
    """A connection on a namespace's loopback: ``a`` connected, ``b`` was accepted."""

    ns: Netns
    a: socket.socket
    b: socket.socket
    a_port: int
    b_port: int

    def at_a(self) -> _Row | None:
        return _row(self.ns, self.a_port, self.b_port)

    def at_b(self) -> _Row | None:
        return _row(self.ns, self.b_port, self.a_port)


class _Place:
    """A namespace of a lab in which a proof opens connections; closes what is left."""

    def __init__(self, lab: Lab, name: str = "place", **sysctls: int) -> None:
        self.ns = lab.netns(name)
        self.open: list[socket.socket] = []
        for key, value in sysctls.items():
            self.ns.sysctl(f"net.ipv4.{key}", value)

    def fresh(self) -> socket.socket:
        sock = self.ns.call(lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM))
        sock.settimeout(10)
        self.open.append(sock)
        return sock

    def listener(self, backlog: int = 64) -> socket.socket:
        door = self.fresh()
        door.bind(("127.0.0.1", 0))
        door.listen(backlog)
        return door

    def pair(self, door: socket.socket | None = None) -> _Pair:
        if door is None:
            door = self.listener()
        a = self.fresh()
        a.connect(door.getsockname())
        b, _ = door.accept()
        b.settimeout(10)
        self.open.append(b)
        return _Pair(self.ns, a, b, a.getsockname()[1], b.getsockname()[1])

    def half_closed(self) -> _Pair:
        """A pair whose ``a`` has sent its FIN, and has it acknowledged."""
        pair = self.pair()
        pair.a.shutdown(socket.SHUT_WR)
        _until(lambda: _is(pair.at_a(), "FIN_WAIT2"), "the FIN is acknowledged")
        return pair

    def orphan(self) -> _Pair:
        """A pair whose ``a`` is an orphan in FIN_WAIT2."""
        pair = self.half_closed()
        pair.a.close()
        return pair

    def silence(self) -> None:
        """Swallow every packet of the namespace from now on; nobody is told."""
        self.ns.nft(
            "table inet silence {\n chain arriving {\n type filter hook input priority 0\n drop\n }\n}"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for sock in self.open:
            sock.close()


def _is(row: _Row | None, state: str) -> bool:
    return row is not None and row.state == state


def _until(true: Callable[[], bool], what: str, deadline_s: float = _DEADLINE_S) -> float:
    """Wait until something is so; return how long it took, in seconds.

    Raises:
        NotSettled: it was not so in time.
    """
    start = time.monotonic()
    while not true():
        if time.monotonic() - start > deadline_s:
            raise _Late(f"after {deadline_s:.0f} s still not: {what}")
        time.sleep(0.01)
    return time.monotonic() - start


class _Late(FinwaitError):
    """A proof waited in vain: then the claim did not hold, or the machine is overloaded."""


def _seen(
    what: str, row: _Row | None, state: str, timer: int | None = None, held: bool | None = None
) -> Measured:
    good = _is(row, state) and (timer is None or (row is not None and row.timer == timer))
    if held is not None and row is not None:
        good = good and (row.inode != 0) == held
    wanted = state + ("" if timer is None else f" timer {timer}")
    return Measured(what, wanted, _shown(row), good)


def _gone(what: str, row: _Row | None) -> Measured:
    return Measured(what, "gone", _shown(row), row is None)


def _life(what: str, seconds: float, low: float, high: float) -> Measured:
    return Measured(what, f"{low:g} to {high:g} s", f"{seconds:.2f} s", low <= seconds <= high)


_LATE_S = 0.15
"""What a timer of the kernel's may be late by, however short its time (a tick, and its wheel's grain)."""


@dataclass(frozen=True, slots=True)
class _Took:
    """How long something took, as far as looking now and then tells: on a busy machine we look late."""

    least: float
    most: float

    def __str__(self) -> str:
        if self.most - self.least < 0.2:
            return f"{self.most:.2f} s"
        return f"{self.least:.2f} to {self.most:.2f} s"


def _as_forecast(what: str, predicted_s: float, took: _Took) -> Measured:
    """Compare with what `finwait.diagnosis.forecast` predicts: within a tenth, or a timer's tick."""
    held = took.most >= 0.95 * predicted_s - 0.05 and took.least <= 1.1 * predicted_s + _LATE_S
    return Measured(what, f"{predicted_s:.2f} s (forecast)", str(took), held)


class _Race:
    """Connections of which each is to end at its time, watched together."""

    def __init__(self) -> None:
        self._running: dict[str, tuple[_Pair, float, float, float]] = {}

    def start(self, what: str, pair: _Pair, predicted_s: float, begin: Callable[[], object]) -> None:
        """Begin what ends the connection at ``pair.a`` after some seconds."""
        before = time.monotonic()
        begin()
        self._running[what] = pair, predicted_s, before, time.monotonic()

    def results(self, deadline_s: float = _DEADLINE_S) -> Iterator[Measured]:
        """Yield how long each took, as they go."""
        left, seen = dict(self._running), {what: one[3] for what, one in self._running.items()}
        end = time.monotonic() + deadline_s
        while left:
            for what, (pair, predicted_s, before, after) in list(left.items()):
                asked = time.monotonic()
                if pair.at_a() is not None:
                    seen[what] = asked
                    continue
                took = _Took(seen[what] - after, time.monotonic() - before)
                yield _as_forecast(what, predicted_s, took)
                del left[what]
            if left and time.monotonic() > end:
                raise _Late(f"after {deadline_s:.0f} s still there: {', '.join(left)}")
            time.sleep(0.01)


def _rto_ms(sock: socket.socket) -> float:
    return (
        float(struct.unpack_from("=I", sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104), 8)[0])
        / 1000
    )


def _equal(what: str, expected: object, got: object) -> Measured:
    return Measured(what, str(expected), str(got), expected == got)


def _keepalive(sock: socket.socket, idle: int, interval: int, probes: int) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, idle)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, interval)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, probes)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)


def _error_of(sock: socket.socket) -> str:
    number = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    return errno.errorcode.get(number, str(number))


def _packets(ns: Netns) -> int:
    text = ns.call(lambda: Path("/proc/thread-self/net/dev").read_text(encoding="ascii"))
    line = next(line for line in text.splitlines() if line.strip().startswith("lo:"))
    return int(line.partition(":")[2].split()[1])


def _counter(ns: Netns, name: str) -> int:
    rows = ns.call(lambda: Path("/proc/thread-self/net/netstat").read_text(encoding="ascii")).splitlines()
    for names, numbers in zip(rows[::2], rows[1::2], strict=False):
        found = dict(zip(names.split(), numbers.split(), strict=False))
        if name in found:
            return int(found[name])
    return 0


# ── the demonstrations ───────────────────────────────────────────────────────────────────────────────


def _held_and_orphan(lab: Lab) -> Iterator[Measured]:
    with _Place(lab, tcp_fin_timeout=2) as place:
        held, both, orphan = place.half_closed(), place.half_closed(), place.half_closed()
        both.a.shutdown(socket.SHUT_RDWR)
        race = _Race()
        predicted = forecast.fin_wait2_orphan_s(2, _rto_ms(orphan.a))
        race.start("the orphan's life with tcp_fin_timeout=2", orphan, predicted, orphan.a.close)
        yield _seen("the orphan, at first", orphan.at_a(), "FIN_WAIT2", timer=3, held=False)
        before = _packets(place.ns)
        yield from race.results()
        time.sleep(2.5)
        yield _seen("held after shutdown(WR), longer than that", held.at_a(), "FIN_WAIT2", timer=0, held=True)
        yield _seen(
            "held after shutdown(RDWR), longer than that", both.at_a(), "FIN_WAIT2", timer=0, held=True
        )
        yield _seen("the other end of the held one", held.at_b(), "CLOSE_WAIT", timer=0, held=True)
        yield _equal("packets meanwhile", 0, _packets(place.ns) - before)


def _countdown_is_copied(lab: Lab) -> Iterator[Measured]:
    with _Place(lab, tcp_fin_timeout=60) as place:
        early = place.orphan()
        _until(lambda: early.at_a() is not None, "the orphan is there")
        place.ns.sysctl("net.ipv4.tcp_fin_timeout", 1)
        late = place.orphan()
        _until(lambda: late.at_a() is None, "the later orphan is gone")
        row = early.at_a()
        yield _gone("an orphan made after setting tcp_fin_timeout=1", late.at_a())
        yield _seen("the one from before, after that", row, "FIN_WAIT2", timer=3)
        left = row.when_s if row else 0.0
        yield Measured("its time left", "more than 40 s", f"{left:.1f} s", left > 40)


def _time_wait_is_constant(lab: Lab) -> Iterator[Measured]:
    with _Place(lab, tcp_fin_timeout=3) as place:
        pair = place.half_closed()
        pair.b.close()
        _until(lambda: _is(pair.at_a(), "TIME_WAIT"), "TIME_WAIT")
        row = pair.at_a()
        left = row.when_s if row else 0.0
        yield _as_forecast("TIME_WAIT's time with tcp_fin_timeout=3", forecast.TIME_WAIT_S, _Took(left, left))


def _lifetimes_above_sixty(lab: Lab) -> Iterator[Measured]:
    with _Place(lab) as place:
        pair = place.pair()
        pair.a.setsockopt(socket.IPPROTO_TCP, _TCP_LINGER2, 500)
        kept = pair.a.getsockopt(socket.IPPROTO_TCP, _TCP_LINGER2)
        yield _equal("TCP_LINGER2 set to 500 reads", 120, kept)
        yield _equal("which the forecast knows", forecast.LINGER2_MAX_S, kept)
        race = _Race()
        for seconds in (1, 3, 61, 62, 63):
            pair = place.pair()
            pair.a.setsockopt(socket.IPPROTO_TCP, _TCP_LINGER2, seconds)
            pair.a.shutdown(socket.SHUT_WR)
            _until(lambda p=pair: _is(p.at_a(), "FIN_WAIT2"), "the FIN is acknowledged")  # type: ignore[misc]
            predicted = forecast.fin_wait2_orphan_s(seconds, _rto_ms(pair.a))
            race.start(f"an orphan's life with TCP_LINGER2={seconds}", pair, predicted, pair.a.close)
        yield from race.results()
        with _Place(lab, "beyond", tcp_fin_timeout=200) as beyond:
            pair = beyond.orphan()
            row = pair.at_a()
            left = (row.when_s if row else 0.0) + 200 - forecast.TIME_WAIT_S
            yield _as_forecast("an orphan's life with tcp_fin_timeout=200, by its first timer",
                               forecast.fin_wait2_orphan_s(200), _Took(left, left))  # fmt: skip
        pair = place.pair()
        pair.a.setsockopt(socket.IPPROTO_TCP, _TCP_LINGER2, -1)
        pair.a.close()
        _until(lambda: pair.at_b() is None, "the peer was reset")
        error = _error_of(pair.b)
        told = error in ("ECONNRESET", "EPIPE")
        yield Measured("the peer of TCP_LINGER2=-1", "told by a reset", error, told)


def _armed_keepalive(lab: Lab) -> Iterator[Measured]:
    with _Place(lab) as place:
        pair = place.pair()
        pair.a.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        place.ns.sysctl("net.ipv4.tcp_keepalive_time", 3)
        pair.a.sendall(b"x")
        pair.b.recv(1)
        _until(lambda: _timer(pair.at_a(), 2), "the data is acknowledged")
        yield Measured(
            "an armed timer after tcp_keepalive_time=3 and data",
            "more than 7000 s left",
            _shown(pair.at_a()),
            (row := pair.at_a()) is not None and row.when_s > 7000,
        )
        pair.a.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 0)
        pair.a.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        row = pair.at_a()
        yield Measured(
            "after switching SO_KEEPALIVE off and on", "at most 3 s left", _shown(row),
            row is not None and row.timer == 2 and row.when_s <= 3,
        )  # fmt: skip


def _timer(row: _Row | None, timer: int) -> bool:
    return row is not None and row.timer == timer


def _live_peer_answers(lab: Lab) -> Iterator[Measured]:
    with _Place(lab) as place:
        pair, other = place.half_closed(), place.half_closed()
        _keepalive(pair.a, 1, 1, 2)
        _keepalive(other.b, 1, 1, 2)
        before = _packets(place.ns)
        _until(lambda: _packets(place.ns) - before >= 8, "probes and answers on both")
        time.sleep(2)
        yield _seen(
            "FIN_WAIT2 with keepalive 1/1/2, longer than that", pair.at_a(), "FIN_WAIT2", timer=2, held=True
        )
        yield _equal("its unanswered probes", 0, (row := pair.at_a()) and row.retrans)
        yield _seen("its other end", pair.at_b(), "CLOSE_WAIT", timer=0)
        yield _seen(
            "CLOSE_WAIT with keepalive 1/1/2 whose peer waits", other.at_b(), "CLOSE_WAIT", timer=2, held=True
        )


def _half_close_without_a_peer(lab: Lab) -> Iterator[Measured]:
    """What keepalive does to a held FIN_WAIT2 whose peer is gone: without a trace, or with its socket only."""
    with _Place(lab) as place:
        silent, left_alone, forgotten = place.half_closed(), place.half_closed(), place.half_closed()
        forgotten.b.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR, 1)
        forgotten.b.close()  # without a packet
        _keepalive(forgotten.a, 1, 1, 9)
        took = _until(lambda: forgotten.at_a() is None, "the first probe ends it")
        yield _life("FIN_WAIT2 whose peer's socket is gone, keepalive 1/1/9", took, 0.5, 8)
        yield _equal("its error", "ECONNRESET", _error_of(forgotten.a))
        place.silence()
        race = _Race()
        predicted = forecast.keepalive(1, 1, 2).seconds
        what = "FIN_WAIT2 whose peer is silent, keepalive 1/1/2"
        race.start(what, silent, predicted, partial(_keepalive, silent.a, 1, 1, 2))
        yield from race.results()
        yield _equal("its error", "ETIMEDOUT", _error_of(silent.a))
        yield _seen("the same without keepalive, later", left_alone.at_a(), "FIN_WAIT2", timer=0, held=True)


def _dead_peer(lab: Lab) -> Iterator[Measured]:
    with _Place(lab) as place:
        idle, busy, patient, sending, closing, half = (place.pair() for _ in range(6))
        for pair in (idle, busy):
            _keepalive(pair.a, 1, 1, 2)
        for pair in (patient, sending, closing, half):
            pair.a.setsockopt(socket.IPPROTO_TCP, _TCP_USER_TIMEOUT, 2000)
        half.a.shutdown(socket.SHUT_WR)
        _until(lambda: _is(half.at_a(), "FIN_WAIT2"), "the FIN is acknowledged")
        place.silence()
        busy.a.sendall(b"x")
        sending.a.sendall(b"x")
        closing.a.shutdown(socket.SHUT_WR)
        took = _until(lambda: idle.at_a() is None, "keepalive ends the idle one")
        yield _life("keepalive 1/1/2, idle", took, 2, 9)  # a first probe may have been answered
        yield _equal("its error", "ETIMEDOUT", _error_of(idle.a))
        _until(lambda: sending.at_a() is None and closing.at_a() is None, "TCP_USER_TIMEOUT ends two")
        yield _equal("TCP_USER_TIMEOUT=2000 with data on its way", "ETIMEDOUT", _error_of(sending.a))
        yield _equal("TCP_USER_TIMEOUT=2000 with an unanswered FIN", "ETIMEDOUT", _error_of(closing.a))
        time.sleep(2)
        yield _seen("keepalive 1/1/2 with data on its way, later", busy.at_a(), "ESTABLISHED", timer=1)
        yield _seen("TCP_USER_TIMEOUT=2000, idle, later", patient.at_a(), "ESTABLISHED", timer=0)
        yield _seen("TCP_USER_TIMEOUT=2000 in FIN_WAIT2, later", half.at_a(), "FIN_WAIT2", timer=0)


def _user_timeout_replaces_count(lab: Lab) -> Iterator[Measured]:
    wanted = ((1, 1, 3, 0), (1, 1, 9, 2000), (1, 1, 1, 6000), (2, 2, 5, 7000), (2, 2, 5, 1000))
    race = _Race()
    with _Place(lab) as place:
        pairs = [place.pair() for _ in wanted]
        place.silence()
        for pair, (idle, interval, count, limit) in zip(pairs, wanted, strict=True):
            what = f"keepalive {idle}/{interval}/{count}" + (
                f" with TCP_USER_TIMEOUT={limit}" if limit else ""
            )
            pair.a.setsockopt(socket.IPPROTO_TCP, _TCP_USER_TIMEOUT, limit)
            predicted = forecast.keepalive(idle, interval, count, limit).seconds
            race.start(what, pair, predicted, partial(_keepalive, pair.a, idle, interval, count))
        yield from race.results()


def _retransmission_limits(lab: Lab) -> Iterator[Measured]:
    """What decides when data and FINs that nobody acknowledges are given up, each in a namespace of its own."""
    cases: dict[str, tuple[dict[str, int], bool, int]] = {
        "held, tcp_retries2=3": ({"tcp_retries2": 3}, False, 0),
        "orphan, tcp_orphan_retries=3": ({"tcp_orphan_retries": 3}, True, 0),
        "orphan, tcp_orphan_retries=1": ({"tcp_orphan_retries": 1}, True, 0),
        "held, TCP_USER_TIMEOUT=3000": ({}, False, 3000),
        "orphan, TCP_USER_TIMEOUT=5000, tcp_orphan_retries=1": ({"tcp_orphan_retries": 1}, True, 5000),
    }
    if lab.netns("probe").call(lambda: Path("/proc/sys/net/ipv4/tcp_rto_max_ms").exists()):
        cases["orphan, tcp_rto_max_ms=1000"] = ({"tcp_rto_max_ms": 1000}, True, 0)
        cases["orphan, tcp_rto_max_ms=1000, tcp_orphan_retries=3"] = (
            {"tcp_rto_max_ms": 1000, "tcp_orphan_retries": 3}, True, 0,
        )  # fmt: skip
    race = _Race()
    with contextlib.ExitStack() as stack:
        for number, (what, (sysctls, orphaned, limit)) in enumerate(cases.items()):
            place = stack.enter_context(_Place(lab, f"limit-{number}", **sysctls))
            pair = place.pair()
            pair.a.setsockopt(socket.IPPROTO_TCP, _TCP_USER_TIMEOUT, limit)
            place.silence()
            limits = forecast.Limits.of({f"ipv4/{name}": str(value) for name, value in sysctls.items()})
            end = forecast.retransmission(limits, _rto_ms(pair.a), orphaned=orphaned, user_timeout_ms=limit)
            begin = pair.a.close if orphaned else partial(pair.a.shutdown, socket.SHUT_WR)
            race.start(f"an unanswered FIN: {what}", pair, end.seconds, begin)
        yield from race.results()


def _refused_here(lab: Lab) -> Iterator[Measured]:
    """A full queue of this machine refuses retransmissions: they are tried every 0.5 s, and time bounds them."""
    with _Place(lab, tcp_retries2=4) as place:
        pair = place.pair()
        place.silence()
        pair.a.sendall(b"x")
        _until(lambda: _resent(pair.at_a(), 1), "the first retransmission")
        place.ns.run("tc", "qdisc", "replace", "dev", "lo", "root", "pfifo", "limit", "0")
        most = 0
        while (row := pair.at_a()) is not None:
            most = max(most, row.retrans)
            time.sleep(0.01)
        yield Measured("retransmissions with tcp_retries2=4", "more than 8", str(most), most > 8)
        yield _equal("its error", "ETIMEDOUT", _error_of(pair.a))


def _closed_window_unanswered(lab: Lab) -> Iterator[Measured]:
    with _Place(lab, "answered", tcp_retries2=3) as place, _Place(lab, "silent", tcp_retries2=3) as other:
        answered, silent = place.pair(), other.pair()
        for pair in (answered, silent):
            pair.a.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while True:
                    pair.a.send(bytes(65536))
            _until(lambda p=pair: _no_room(p.a), "there is no room left")  # type: ignore[misc]
            _until(lambda p=pair: _timer(p.at_a(), 4), "the window is probed")  # type: ignore[misc]
        other.silence()
        end = forecast.zero_window(forecast.Limits(retries2=3), _rto_ms(silent.a), answered=False)
        assert end is not None
        took = _until(lambda: silent.at_a() is None, "it is given up")
        yield _life("probes without answer, tcp_retries2=3", took, 0.5, 3 * end.seconds)
        yield _equal("its error", "ETIMEDOUT", _error_of(silent.a))
        time.sleep(end.seconds)
        yield _seen("probes with answers, later", answered.at_a(), "ESTABLISHED", timer=4, held=True)


def _retransmissions_tell_time(lab: Lab) -> Iterator[Measured]:
    """A FIN that was sent again so many times has waited for so long, at least."""
    with _Place(lab) as place:
        pair = place.pair()
        place.silence()
        before = time.monotonic()
        pair.a.shutdown(socket.SHUT_WR)
        for n in (1, 2, 3, 4):
            _until(lambda n=n: _retransmits(pair.a)[0] >= n, f"{n} retransmissions")  # type: ignore[misc]
            count, backoff, rto_us = _retransmits(pair.a)
            waited = time.monotonic() - before
            proven = int(forecast.waited_ms(*(np.array([x]) for x in (rto_us, count, backoff)))[0]) / 1000
            yield Measured(
                f"the time that {count} retransmissions prove, at most what it was", f"{waited:.2f} s or less",
                f"{proven:.2f} s", 0 < proven <= waited,
            )  # fmt: skip


def _retransmits(sock: socket.socket) -> tuple[int, int, int]:
    """Return ``tcpi_retransmits``, ``tcpi_backoff`` and ``tcpi_rto``."""
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
    return info[2], info[4], int(struct.unpack_from("=I", info, 8)[0])


def _closed_window_limits(lab: Lab) -> Iterator[Measured]:
    cases: dict[str, tuple[dict[str, int], bool, int]] = {
        "held, TCP_USER_TIMEOUT=4000": ({}, False, 4000),
        "orphan, tcp_orphan_retries=1": ({"tcp_orphan_retries": 1}, True, 0),
    }
    if lab.netns("probe").call(lambda: Path("/proc/sys/net/ipv4/tcp_rto_max_ms").exists()):
        cases["orphan, tcp_rto_max_ms=2000"] = ({"tcp_rto_max_ms": 2000}, True, 0)
    race = _Race()
    with contextlib.ExitStack() as stack:
        for number, (what, (sysctls, orphaned, limit)) in enumerate(cases.items()):
            pair = stack.enter_context(_Place(lab, f"window-{number}", **sysctls)).pair()
            pair.a.setsockopt(socket.IPPROTO_TCP, _TCP_USER_TIMEOUT, limit)
            pair.a.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while True:
                    pair.a.send(bytes(65536))
            # Until the last room is filled the timer of the probes sends data.
            _until(lambda p=pair: _no_room(p.a), "there is no room left")  # type: ignore[misc]
            limits = forecast.Limits.of({f"ipv4/{name}": str(value) for name, value in sysctls.items()})
            end = forecast.zero_window(limits, _rto_ms(pair.a), orphaned=orphaned, user_timeout_ms=limit)
            assert end is not None
            begin = pair.a.close if orphaned else time.monotonic
            race.start(f"a peer that does not read: {what}", pair, end.seconds, begin)
        yield from race.results()


def _no_room(sock: socket.socket) -> bool:
    """Whether the peer's window is shut to the last byte (``tcpi_snd_wnd``), and all that fitted is acknowledged."""
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 232)
    unacked = struct.unpack_from("=I", info, 24)[0]
    return len(info) >= 232 and not unacked and struct.unpack_from("=I", info, 228)[0] == 0


def _orphan_retries(lab: Lab) -> Iterator[Measured]:
    with (
        _Place(lab, "few", tcp_orphan_retries=1, tcp_fin_timeout=1) as few,
        _Place(lab, "default", tcp_fin_timeout=1) as usual,
    ):
        orphan, held, other = few.pair(), few.pair(), usual.pair()
        few.silence()
        usual.silence()
        held.a.shutdown(socket.SHUT_WR)
        other.a.close()
        race = _Race()
        end = forecast.orphan(forecast.Limits(orphan_retries=1), _rto_ms(orphan.a))
        race.start("an unanswered FIN with tcp_orphan_retries=1", orphan, end.seconds, orphan.a.close)
        yield from race.results()
        time.sleep(2)
        yield _seen("the same with the default 0, later", other.at_a(), "FIN_WAIT1", timer=1, held=False)
        yield _seen(
            "a held one with tcp_orphan_retries=1, later", held.at_a(), "FIN_WAIT1", timer=1, held=True
        )


def _fresh_namespace(lab: Lab) -> Iterator[Measured]:
    with _Place(lab, tcp_fin_timeout=7, tcp_keepalive_time=77, tcp_retries2=5) as place:

        def inside() -> str:
            if ctypes.CDLL(None, use_errno=True).unshare(0x40000000) != 0:
                raise OSError(ctypes.get_errno(), "unshare")
            names = ("tcp_fin_timeout", "tcp_keepalive_time", "tcp_retries2")
            return " ".join(Path("/proc/sys/net/ipv4", name).read_text().strip() for name in names)

        yield _equal("fin_timeout, keepalive_time, retries2 of a namespace made from 7, 77, 5", "60 7200 15",
                     place.ns.call(inside))  # fmt: skip
        machine = place.ns.call(lambda: Path("/proc/sys/net/ipv4/tcp_max_orphans").exists())
        yield _equal("tcp_max_orphans exists in a namespace", False, machine)


def _orphans_counted(lab: Lab) -> Iterator[Measured]:
    with _Place(lab) as place:
        place.orphan()

        def tw() -> str:
            text = Path("/proc/thread-self/net/sockstat").read_text(encoding="ascii")
            return next(line for line in text.splitlines() if line.startswith("TCP:")).split()[6]

        yield _equal("sockstat's tw with one orphan in FIN_WAIT2", "1", place.ns.call(tw))


def _spelling_of_states(lab: Lab) -> Iterator[Measured]:
    with _Place(lab) as place:
        place.half_closed()
        proc = place.ns.call(lambda: Path("/proc/thread-self/net/tcp").read_text(encoding="ascii"))
        rows = [line.split()[3] for line in proc.splitlines()[1:]]
        yield _equal("lines of /proc/net/tcp with fin_wait2", 0, proc.lower().count("fin_wait2"))
        yield _equal("lines with state 05", 1, rows.count("05"))
        told = place.ns.run("ss", "-tan")
        yield _equal("lines of ss with FIN_WAIT2", 0, told.count("FIN_WAIT2"))
        yield _equal("lines of ss with FIN-WAIT-2", 1, told.count("FIN-WAIT-2"))


def _linger_zero(lab: Lab) -> Iterator[Measured]:
    with _Place(lab) as place:
        pair = place.pair()
        pair.a.setblocking(False)
        sent = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                sent += pair.a.send(bytes(65536))
        pair.a.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        pair.a.close()
        got, end = 0, "end of file"
        try:
            while data := pair.b.recv(65536):
                got += len(data)
        except OSError as error:
            end = errno.errorcode.get(error.errno or 0, "?")
        yield Measured(
            "bytes written and received with SO_LINGER 0", "fewer received", f"{sent}, {got}", got < sent
        )
        yield _equal("the peer's last word", "ECONNRESET", end)
        yield Measured("what was in the peer's queue", "readable", f"{got} bytes", got > 0)


def _linger_waits(lab: Lab) -> Iterator[Measured]:
    with _Place(lab) as place:
        pair = place.pair()
        pair.a.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 1))
        place.silence()
        start = time.monotonic()
        pair.a.close()
        yield _life("close() with SO_LINGER 1 s and a silent peer", time.monotonic() - start, 0.9, 5)
        yield _seen("what it leaves", pair.at_a(), "FIN_WAIT1", held=False)


def _close_with_unread(lab: Lab) -> Iterator[Measured]:
    with _Place(lab) as place:
        unread, read = place.pair(), place.pair()
        unread.a.sendall(b"x")
        _until(lambda: (row := unread.at_b()) is not None and row.rqueue == 1, "the byte is there")
        unread.b.close()
        _until(lambda: unread.at_a() is None, "a reset")
        yield _equal("the peer of a close() with unread data", "ECONNRESET", _error_of(unread.a))
        for pair, data in ((read, b""), (place.pair(), b"x")):
            if data:
                pair.a.sendall(data)
            pair.a.shutdown(socket.SHUT_WR)
            _until(lambda p=pair: _is(p.at_b(), "CLOSE_WAIT"), "CLOSE_WAIT")  # type: ignore[misc]
            row = pair.at_b()
            yield _equal(
                f"Recv-Q of CLOSE_WAIT with {len(data)} unread bytes", len(data) + 1, row and row.rqueue
            )
            pair.b.close()
            end = ""
            try:
                end = "end of file" if not pair.a.recv(1) else "data"
            except OSError as error:
                end = errno.errorcode.get(error.errno or 0, "?")
            yield _equal("what its peer sees at close()", "ECONNRESET" if data else "end of file", end)


def _holder_ends(lab: Lab) -> Iterator[Measured]:
    with _Place(lab, tcp_fin_timeout=1) as place:
        pair = place.half_closed()
        time.sleep(0.1)  # the last acknowledgement may be on its way
        before = _packets(place.ns)
        pair.a.close()
        _until(lambda: pair.at_a() is None, "the orphan is gone")
        yield _equal("packets from the holder's end until the orphan is gone", 0, _packets(place.ns) - before)
        yield _seen("the peer afterwards", pair.at_b(), "CLOSE_WAIT", timer=0, held=True)
        _keepalive(pair.b, 1, 1, 3)
        _until(lambda: pair.at_b() is None, "keepalive is answered by a reset")
        link = os.readlink(f"/proc/self/fd/{pair.b.fileno()}")
        yield Measured("the peer with keepalive, and its descriptor", "row gone, descriptor open", f"row gone, {link}",
                       link.startswith("socket:"))  # fmt: skip


def _shutdown_read(lab: Lab) -> Iterator[Measured]:
    with _Place(lab) as place:
        pair = place.pair()
        time.sleep(0.1)
        before = _packets(place.ns)
        pair.a.shutdown(socket.SHUT_RD)
        time.sleep(0.3)
        yield _equal("packets after shutdown(RD)", 0, _packets(place.ns) - before)
        pair.b.sendall(b"x")
        _until(lambda: (row := pair.at_b()) is not None and row.wqueue == 0, "the data is acknowledged")
        yield _seen("the peer after sending to it", pair.at_b(), "ESTABLISHED")


def _data_for_the_gone(lab: Lab) -> Iterator[Measured]:
    with _Place(lab) as place:
        both, orphan = place.half_closed(), place.half_closed()
        both.a.shutdown(socket.SHUT_RDWR)
        orphan.a.close()
        for name, pair in (("shut in both directions", both), ("an orphan", orphan)):
            pair.b.sendall(b"x")
            _until(lambda p=pair: p.at_a() is None and p.at_b() is None, "both ends are gone")  # type: ignore[misc]
            error = _error_of(pair.b)
            yield Measured(f"sending to one that is {name}", "both ends gone, ECONNRESET or EPIPE",
                           f"both ends gone, {error}", error in ("ECONNRESET", "EPIPE"))  # fmt: skip


def _inherited(lab: Lab) -> Iterator[Measured]:
    with _Place(lab) as place:
        pair = place.pair()
        child = subprocess.Popen([sys.executable, "-I", "-S", "-c", "import sys; sys.stdin.read()"],
                                 pass_fds=(pair.a.fileno(),), stdin=subprocess.PIPE)  # fmt: skip
        try:
            time.sleep(0.1)
            before = _packets(place.ns)
            pair.a.close()
            time.sleep(0.3)
            yield _equal("packets after the parent's close()", 0, _packets(place.ns) - before)
            yield _seen("the connection", pair.at_a(), "ESTABLISHED", timer=0, held=True)
        finally:
            child.kill()
            child.communicate()
        _until(lambda: not _is(pair.at_b(), "ESTABLISHED"), "the FIN comes")
        yield _seen("the peer after the child's end", pair.at_b(), "CLOSE_WAIT")


def _in_flight(lab: Lab) -> Iterator[Measured]:
    with _Place(lab) as place:
        pair = place.pair()
        left, right = socket.socketpair()
        with left, right:
            inode = os.fstat(pair.a.fileno()).st_ino
            socket.send_fds(left, [b"x"], [pair.a.fileno()])
            pair.a.close()
            holders = [fd for fd in os.listdir("/proc/self/fd") if _link(fd) == f"socket:[{inode}]"]
            row = pair.at_a()
            yield _equal("descriptors that refer to it", [], holders)
            yield _equal("its inode in the table", inode, row.inode if row else None)


def _link(fd: str) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    except OSError:
        return ""


def _accept_queue(lab: Lab) -> Iterator[Measured]:
    with _Place(lab) as place:
        door, a = place.listener(), place.fresh()
        a.connect(door.getsockname())
        here, there = a.getsockname()[1], door.getsockname()[1]
        yield _seen(
            "a connection that waits for accept()", _row(place.ns, there, here), "ESTABLISHED", held=False
        )
        a.close()
        _until(lambda: _is(_row(place.ns, there, here), "CLOSE_WAIT"), "CLOSE_WAIT")
        yield _seen("the same after its client closed", _row(place.ns, there, here), "CLOSE_WAIT", held=False)
        queue = next(
            (row.rqueue for row in _table(place.ns) if row.state == "LISTEN" and row.sport == there), None
        )
        yield _equal("the listener's Recv-Q", 1, queue)


def _bucket_overflow(lab: Lab) -> Iterator[Measured]:
    with _Place(lab, tcp_max_tw_buckets=1) as place:
        pairs = [place.orphan() for _ in range(3)]
        yield _equal("orphans in FIN_WAIT2 with tcp_max_tw_buckets=1", 1,
                     sum(_is(pair.at_a(), "FIN_WAIT2") for pair in pairs))  # fmt: skip
        yield _equal("TCPTimeWaitOverflow", 2, _counter(place.ns, "TCPTimeWaitOverflow"))
        yield _equal("peers in CLOSE_WAIT", 3, sum(_is(pair.at_b(), "CLOSE_WAIT") for pair in pairs))


def _port_reuse(lab: Lab) -> Iterator[Measured]:
    with _Place(lab, tcp_tw_reuse=0) as place:
        place.ns.call(lambda: Path("/proc/sys/net/ipv4/ip_local_port_range").write_text("50000 50003"))
        door = place.fresh()
        door.bind(("127.0.0.1", 8080))
        door.listen(64)

        def more() -> str:
            sock = place.fresh()
            try:
                sock.connect(("127.0.0.1", 8080))
            except OSError as error:
                return errno.errorcode.get(error.errno or 0, "?")
            place.open.append(door.accept()[0])
            return "connected"

        first = [place.pair(door) for _ in range(4)]
        for pair in first:
            pair.a.shutdown(socket.SHUT_WR)
            _until(lambda p=pair: _is(p.at_a(), "FIN_WAIT2"), "FIN_WAIT2")  # type: ignore[misc]
        place.ns.sysctl("net.ipv4.tcp_tw_reuse", 1)
        yield _equal("another connection beside 4 held FIN_WAIT2, tcp_tw_reuse=1", "EADDRNOTAVAIL", more())
        for pair in first:
            pair.b.close()
            _until(lambda p=pair: _is(p.at_a(), "TIME_WAIT"), "TIME_WAIT")  # type: ignore[misc]
        place.ns.sysctl("net.ipv4.tcp_tw_reuse", 0)
        yield _equal("beside 4 TIME_WAIT, tcp_tw_reuse=0", "EADDRNOTAVAIL", more())
        place.ns.sysctl("net.ipv4.tcp_tw_reuse", 1)
        took = _until(lambda: more() == "connected", "a port is reused")
        yield Measured(
            "with tcp_tw_reuse=1", "connected after about a second", f"after {took:.2f} s", took < 6
        )


def _destroyed(lab: Lab) -> Iterator[Measured]:
    with _Place(lab) as place:
        pair = place.half_closed()
        place.ns.run("ss", "-K", "-tn", "state", "fin-wait-2")
        _until(lambda: pair.at_a() is None, "the row is gone")
        link = os.readlink(f"/proc/self/fd/{pair.a.fileno()}")
        yield Measured(
            "after SOCK_DESTROY", "row gone, descriptor open", f"row gone, {link}", link.startswith("socket:")
        )
        _until(lambda: pair.at_b() is None, "the peer was told")
        error = _error_of(pair.b)
        yield Measured("its CLOSE_WAIT peer", "told by a reset", error, error in ("EPIPE", "ECONNRESET"))


def _closed_window(lab: Lab) -> Iterator[Measured]:
    with _Place(lab) as place:
        pair = place.pair()
        pair.a.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                pair.a.send(bytes(65536))
        pair.a.shutdown(socket.SHUT_WR)
        _until(lambda: _timer(pair.at_a(), 4), "the window is closed")
        row = pair.at_a()
        yield _seen("the sender after shutdown(WR)", row, "FIN_WAIT1", timer=4, held=True)
        yield Measured(
            "its Send-Q",
            "more than 100000",
            str(row and row.wqueue),
            row is not None and row.wqueue > 100_000,
        )
        yield _seen("the end that stopped reading: no FIN has come", pair.at_b(), "ESTABLISHED")


def _reject_with_reset(lab: Lab) -> Iterator[Measured]:
    with _Place(lab) as place:
        pair = place.pair()
        rule = f"tcp dport {pair.b_port} reject with tcp reset"
        place.ns.nft(
            f"table inet refuse {{\n chain arriving {{\n type filter hook input priority 0\n {rule}\n }}\n}}"
        )
        pair.a.sendall(b"x")
        _until(lambda: pair.at_a() is None, "the sender was reset")
        yield _equal("the end whose packet met the rule", "ECONNRESET", _error_of(pair.a))
        yield _seen("the other end", pair.at_b(), "ESTABLISHED", held=True)


def _queue_overflow(lab: Lab) -> Iterator[Measured]:
    for flag, resets in ((0, 0), (1, 3)):
        with _Place(lab, f"abort{flag}", tcp_abort_on_overflow=flag) as place:
            beside = place.half_closed()
            door = place.listener(8)
            port = door.getsockname()[1]
            # Handshakes stop before their last packet, the queue shrinks to one, then they may go on.
            rule = f"tcp dport {port} tcp flags & (syn | ack) == ack drop"
            place.ns.nft(
                f"table inet hold {{\n chain in {{\n type filter hook input priority 0\n {rule}\n }}\n}}"
            )
            clients = [place.fresh() for _ in range(4)]
            for client in clients:
                client.connect(("127.0.0.1", port))
            waiting = sum(row.state == "SYN_RECV" and row.sport == port for row in _table(place.ns))
            yield _equal(f"half-open at the listener, tcp_abort_on_overflow={flag}", 4, waiting)
            door.listen(0)
            place.ns.nft("delete table inet hold")
            for client in clients:
                client.sendall(b"x")
            _until(lambda d=place, p=port: _accepted(d.ns, p) == 1, "one is in the queue")  # type: ignore[misc]
            time.sleep(0.5)
            errors = [_error_of(client) for client in clients]
            yield _equal(f"clients reset, tcp_abort_on_overflow={flag}", resets, errors.count("ECONNRESET"))
            yield _seen("the FIN_WAIT2 beside them", beside.at_a(), "FIN_WAIT2", timer=0, held=True)


def _accepted(ns: Netns, port: int) -> int:
    return sum(row.sport == port and row.state == "ESTABLISHED" for row in _table(ns))


def _reset_at(place: _Place, pair: _Pair, listening: socket.socket) -> None:
    """Send ``a`` a RST with exactly the sequence number that it expects, as read from its last packet."""
    expected = 0
    listening.settimeout(0.2)
    with contextlib.suppress(TimeoutError):
        while True:
            packet = listening.recv(65536)
            tcp = packet[(packet[0] & 15) * 4 :]
            if struct.unpack("!HH", tcp[:4]) == (pair.a_port, pair.b_port):
                expected = struct.unpack("!I", tcp[8:12])[0]
    loopback = socket.inet_aton("127.0.0.1")
    segment = struct.pack("!HHIIBBHHH", pair.b_port, pair.a_port, expected, 0, 5 << 4, 4, 0, 0, 0)
    total = (
        sum(struct.unpack("!10H", segment))
        + sum(struct.unpack("!4H", loopback * 2))
        + socket.IPPROTO_TCP
        + 20
    )
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    segment = segment[:16] + struct.pack("!H", ~total & 0xFFFF) + segment[18:]
    raw = place.ns.call(lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP))
    with raw:
        raw.sendto(segment, ("127.0.0.1", 0))


def _reset_in_time_wait(lab: Lab) -> Iterator[Measured]:
    for flag in (0, 1):
        with _Place(lab, f"rfc1337-{flag}", tcp_rfc1337=flag) as place:
            listening = place.ns.call(
                lambda: socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800))
            )
            place.open.append(listening)
            pair = place.half_closed()
            pair.b.close()
            _until(lambda p=pair: _is(p.at_a(), "TIME_WAIT"), "TIME_WAIT")  # type: ignore[misc]
            _reset_at(place, pair, listening)
            time.sleep(0.2)
            after = f"TIME_WAIT after a RST, tcp_rfc1337={flag}"
            yield _seen(after, pair.at_a(), "TIME_WAIT", timer=3) if flag else _gone(after, pair.at_a())
            orphan = place.orphan()
            _until(lambda p=orphan: _timer(p.at_a(), 3), "the orphan is a minisock")  # type: ignore[misc]
            _reset_at(place, orphan, listening)
            time.sleep(0.2)
            yield _gone(f"an orphan in FIN_WAIT2 after a RST, tcp_rfc1337={flag}", orphan.at_a())


def _rto_max(lab: Lab) -> Iterator[Measured]:
    with _Place(lab) as place:
        old = place.fresh()
        place.ns.sysctl("net.ipv4.tcp_rto_max_ms", 5000)
        new = place.fresh()
        yield _equal("TCP_RTO_MAX_MS of a socket from before", 120_000,
                     old.getsockopt(socket.IPPROTO_TCP, _TCP_RTO_MAX_MS))  # fmt: skip
        yield _equal("of one from after", 5000, new.getsockopt(socket.IPPROTO_TCP, _TCP_RTO_MAX_MS))


def _conntrack_locked(lab: Lab) -> Iterator[Measured]:
    with _Place(lab) as place:
        for name in ("nf_conntrack_max", "nf_conntrack_buckets"):
            mode = place.ns.call(lambda n=name: Path("/proc/sys/net/netfilter", n).stat().st_mode & 0o777)  # type: ignore[misc]
            yield _equal(f"mode of {name} in a namespace", "0o444", oct(mode))


def _by_scenario(name: str) -> Callable[[Lab], Iterator[Measured]]:
    """A proof that is a scenario: every connection end that it says must be there, is."""

    def run(lab: Lab) -> Iterator[Measured]:
        situation = scenarios()[name].build(lab)
        missing: tuple[object, ...] = ()
        try:
            situation.settle()
        except NotSettled:
            missing = situation.missing()
        for one in situation.all:
            end = f"{one.state} in {one.rule or 'no rule'}: {one.src}:{one.sport} to {one.dst}:{one.dport}"
            absent = one in missing
            yield Measured(end, one.state, "not there" if absent else one.state, not absent)

    return run


def _end(conn: Conn) -> _Row | None:
    return _row(conn.actor.netns, conn.sport, conn.dport)


def _entry(gateway: Netns, conn: Conn) -> list[str]:
    """The words of a flow's entry in the gateway's conntrack; empty when it has none."""
    return gateway.run("conntrack", "-L", "-p", "tcp", "--sport", str(conn.sport)).split()


def _probe(conn: Conn, *, idle: int = 1) -> None:
    for name, value in ((socket.TCP_KEEPIDLE, idle), (socket.TCP_KEEPINTVL, 1), (socket.TCP_KEEPCNT, 5)):
        conn.actor.setsockopt([conn], socket.IPPROTO_TCP, name, value)
    conn.actor.setsockopt([conn], socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)


def _half_close_through(nat: Translated, count: int) -> tuple[list[Conn], list[Conn]]:
    """Connections of which the backend has sent its FIN and the client has read it."""
    near, far = meet(nat.client, nat.address, nat.backend, nat.door, count)
    nat.backend.shutdown(far, "WR")
    nat.client.read_to_end(near)
    _until(lambda: all(_is(_end(one), "FIN_WAIT2") for one in far), "FIN_WAIT2 at the backend")
    return near, far


def _close_wait_time(nat: Translated, seconds: int) -> None:
    nat.gateway.sysctl("net.netfilter.nf_conntrack_tcp_timeout_close_wait", seconds)


def _flows_are_not_sockets(lab: Lab) -> Iterator[Measured]:
    nat = lab.translated()
    _close_wait_time(nat, 60)
    (near,), (far,) = _half_close_through(nat, 1)
    _close_wait_time(nat, 3)
    words = _entry(nat.gateway, near)
    yield Measured(
        "the flow's state in conntrack", "CLOSE_WAIT", " ".join(words[3:4]), words[3:4] == ["CLOSE_WAIT"]
    )
    yield _seen("the backend's end meanwhile", _end(far), "FIN_WAIT2")
    yield _seen("the client's end meanwhile", _end(near), "CLOSE_WAIT")
    time.sleep(4)
    words = _entry(nat.gateway, near)
    left = int(words[2]) if len(words) > 2 and words[2].isdigit() else 0
    yield Measured(
        "the entry 4 s after lowering its timeout from 60 to 3", "40 s or more left", f"{left} s", left >= 40
    )


def _probes_and_expired_entries(lab: Lab) -> Iterator[Measured]:
    nat = lab.translated()
    _close_wait_time(nat, 2)
    near, far = meet(nat.client, nat.address, nat.backend, nat.door, 4)
    kept, lost, from_server, from_client = zip(near, far, strict=True)
    _probe(kept[0])
    nat.backend.shutdown(far, "WR")
    nat.client.read_to_end(near)
    _until(lambda: not any(_entry(nat.gateway, one) for one in near[1:]), "three entries have expired")
    time.sleep(2)
    yield Measured(
        "the entry of the one probed every second",
        "there",
        "there" if _entry(nat.gateway, kept[0]) else "gone",
        bool(_entry(nat.gateway, kept[0])),
    )
    nat.client.close([kept[0], lost[0]])
    _until(lambda: not _is(_end(kept[1]), "FIN_WAIT2"), "its FIN arrives")
    yield _gone_or("its backend's end after the client's close()", _end(kept[1]), "TIME_WAIT")
    _until(lambda: (row := _end(lost[0])) is not None and row.retrans > 0, "the other's FIN is repeated")
    yield _seen("unprobed: the client's end after close()", _end(lost[0]), "LAST_ACK", timer=1, held=False)
    yield _seen("unprobed: the backend's end", _end(lost[1]), "FIN_WAIT2", timer=0, held=True)
    _probe(from_server[1])
    _until(lambda: _end(from_server[1]) is None, "the backend's probe is answered by a reset")
    yield _gone("probed from the backend after expiry: its end", _end(from_server[1]))
    yield _seen("and the client's end", _end(from_server[0]), "CLOSE_WAIT")
    _probe(from_client[0])
    _until(lambda: bool(_entry(nat.gateway, from_client[0])), "the client's probe makes an entry")
    nat.client.close([from_client[0]])
    _until(lambda: not _is(_end(from_client[1]), "FIN_WAIT2"), "its FIN arrives")
    yield _gone_or(
        "probed from the client after expiry, then closed: the backend's end",
        _end(from_client[1]),
        "TIME_WAIT",
    )


def _gone_or(what: str, row: _Row | None, state: str) -> Measured:
    return Measured(what, f"gone or {state}", _shown(row), row is None or row.state == state)


def _window_rules_do_not_help(lab: Lab) -> Iterator[Measured]:
    nat = lab.translated()
    for name, liberal, drop in (("be_liberal=1", 1, False), ("an INVALID drop rule", 0, True)):
        nat.gateway.sysctl("net.netfilter.nf_conntrack_tcp_be_liberal", liberal)
        if drop:
            nat.gateway.nft(
                "table inet strict {\n chain passing {\n type filter hook forward priority 0\n ct"
                " state invalid drop\n }\n}"
            )
        _close_wait_time(nat, 1)
        (near,), (far,) = _half_close_through(nat, 1)
        nat.await_no_entries()
        nat.client.close([near])
        _until(lambda n=near: (row := _end(n)) is not None and row.retrans > 1, "the FIN is repeated")  # type: ignore[misc]
        yield _seen(f"{name}: the client's end", _end(near), "LAST_ACK", timer=1)
        yield _seen(f"{name}: the backend's end", _end(far), "FIN_WAIT2", timer=0, held=True)


def _deleted_entries(lab: Lab) -> Iterator[Measured]:
    nat = lab.translated()
    near, far = meet(nat.client, nat.address, nat.backend, nat.door, 2)
    for one in near:
        nat.gateway.run("conntrack", "-D", "-p", "tcp", "--sport", str(one.sport))
    nat.client.send([near[0]], "ping")
    yield _equal("bytes that arrive after conntrack -D", 4, nat.backend.recv([far[0]], 4))
    yield Measured(
        "the entry after data",
        "there again",
        "there" if _entry(nat.gateway, near[0]) else "gone",
        bool(_entry(nat.gateway, near[0])),
    )
    nat.client.close([near[1]])
    _until(lambda: (row := _end(near[1])) is not None and row.retrans > 0, "the FIN is repeated")
    yield _seen("closing first after conntrack -D: the client's end", _end(near[1]), "FIN_WAIT1", timer=1)
    yield _seen("the backend's end", _end(far[1]), "ESTABLISHED", timer=0, held=True)


def _server_speaks_first(lab: Lab) -> Iterator[Measured]:
    nat = lab.translated()
    (near,), (far,) = meet(nat.client, nat.address, nat.backend, nat.door)
    nat.gateway.sysctl("net.netfilter.nf_conntrack_tcp_timeout_established", 1)
    nat.client.send([near], "ping")
    nat.backend.recv([far], 4)
    nat.await_no_entries()
    nat.backend.send([far], "pong")
    _until(lambda: _end(far) is None, "the backend is reset")
    yield _gone("the backend's end after it spoke", _end(far))
    yield _seen("the client's end", _end(near), "ESTABLISHED", timer=0, held=True)


def _resent(row: _Row | None, times: int) -> bool:
    return row is not None and row.retrans >= times


def _half_open_heals(lab: Lab) -> Iterator[Measured]:
    for careless in (False, True):
        with _Place(lab, "careless" if careless else "plain") as place:
            door = place.listener()
            old = place.pair(door)
            old.a.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR, 1)
            old.a.close()  # without a packet, as a machine does that loses power
            if careless:
                place.ns.nft(
                    "table inet careless {\n chain arriving {\n type filter hook input priority 0\n"
                    f" tcp sport {old.b_port} tcp flags & (syn | ack) == ack drop\n }}\n}}"
                )
            again = place.fresh()
            again.bind(("127.0.0.1", old.a_port))
            again.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                again.connect(door.getsockname())
            if careless:
                _until(lambda p=old: _resent(p.at_a(), 2), "the SYN is sent again")  # type: ignore[misc]
                yield _seen("behind a filter: the side that forgot", old.at_a(), "SYN_SENT", timer=1)
                yield _seen("behind a filter: the old end", old.at_b(), "ESTABLISHED", timer=0, held=True)
                _keepalive(old.b, 1, 1, 2)
            took = _until(lambda p=old: _is(p.at_a(), "ESTABLISHED"), "the new connection is open")  # type: ignore[misc]
            error = _error_of(old.b)
            what = "after a keepalive 1/1/2 of the old end" if careless else "left alone"
            yield _life(f"{what}: until the new connection is open", took, 0, 12)
            told = error in ("ECONNRESET", "ETIMEDOUT")
            yield Measured(f"{what}: the error of the old end", "ECONNRESET or ETIMEDOUT", error, told)


def _mptcp_without_subflow(lab: Lab) -> Iterator[Measured]:
    with _Place(lab) as place:
        place.ns.sysctl("net.mptcp.enabled", 1)
        if not place.ns.call(lambda: Path("/proc/sys/net/mptcp/close_timeout").exists()):
            raise LabError(
                "this kernel has no net.mptcp.close_timeout", hint="it is in Linux 6.18, and not in 6.1"
            )
        place.ns.sysctl("net.mptcp.close_timeout", 2)

        def fresh() -> socket.socket:
            sock = place.ns.call(
                lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_MPTCP)
            )
            sock.settimeout(10)
            place.open.append(sock)
            return sock

        door, a = fresh(), fresh()
        door.bind(("127.0.0.1", 0))
        door.listen(8)
        a.connect(door.getsockname())
        b, _ = door.accept()
        place.open.append(b)
        for one, other in ((a, b), (b, a)):  # data both ways completes the handshake of MPTCP
            one.sendall(b"hello")
            other.recv(5)
        port = a.getsockname()[1]
        place.ns.run("ss", "-K", "-t", "-n", "state", "established", f"sport = :{port}")
        _until(
            lambda: not any(port in (row.sport, row.dport) for row in _table(place.ns)), "the subflow is gone"
        )
        yield _equal("its MPTCP rows after the last subflow", "ESTAB ESTAB", _mptcp_states(place.ns, port))
        took = _until(lambda: _mptcp_states(place.ns, port) == "UNCONN UNCONN", "the kernel closes it")
        yield _life("until the kernel closes it with close_timeout=2", took, 0.5, 8)
        link = os.readlink(f"/proc/self/fd/{a.fileno()}")
        yield Measured("its descriptor after that", "open", link, link.startswith("socket:"))


def _mptcp_states(ns: Netns, port: int) -> str:
    rows = (line.split() for line in ns.run("ss", "-H", "-M", "-n", "-a", "-O").splitlines())
    return " ".join(sorted(row[0] for row in rows if any(end.endswith(f":{port}") for end in row[3:5])))


_NET = ("netns",)
_NFT = ("netns", "tool:nft")
_SS = ("netns", "tool:ss")
_CT = ("netns", "tool:nft", "tool:conntrack")

_PROOFS: tuple[Proof, ...] = (
    Proof(
        "held-and-orphan", ("S02", "S03", "S12", "S24", "S30", "S40", "X11", "X17"), 5, _NET, _held_and_orphan
    ),
    Proof("countdown-is-copied", ("X02",), 1.5, _NET, _countdown_is_copied),
    Proof("time-wait-is-constant", ("X03",), 0.3, _NET, _time_wait_is_constant),
    Proof("lifetimes-above-sixty", ("X01", "X05", "S25"), 8, _NET, _lifetimes_above_sixty),
    Proof("armed-keepalive", ("S18",), 0.3, _NET, _armed_keepalive),
    Proof("live-peer-answers", ("S05", "S07", "X18", "S39"), 5, _NET, _live_peer_answers),
    Proof("half-close-without-a-peer", ("S07",), 6, _NFT, _half_close_without_a_peer),
    Proof("dead-peer", ("S19", "X20", "X21", "X23", "X24"), 6, _NFT, _dead_peer),
    Proof("user-timeout-replaces-count", ("X22",), 8.5, _NFT, _user_timeout_replaces_count),
    Proof("retransmission-limits", ("X58",), 8, _NFT, _retransmission_limits),
    Proof("refused-here", ("X58",), 7, (*_NFT, "tool:tc"), _refused_here),
    Proof("closed-window-unanswered", ("X53",), 9, _NFT, _closed_window_unanswered),
    Proof("retransmissions-tell-time", (), 4, _NFT, _retransmissions_tell_time),
    Proof("closed-window-limits", ("X59",), 6, _NET, _closed_window_limits),
    Proof("orphan-retries", ("S21", "X04", "X25"), 4, _NFT, _orphan_retries),
    Proof("fresh-namespace", ("S08", "S41", "X43"), 0.1, _NET, _fresh_namespace),
    Proof("orphans-counted", ("S20",), 0.2, _NET, _orphans_counted),
    Proof("spelling-of-states", ("S04", "S16"), 0.2, _SS, _spelling_of_states),
    Proof("linger-zero", ("S38", "X06"), 0.3, _NET, _linger_zero),
    Proof("linger-waits", ("X07",), 1.2, _NFT, _linger_waits),
    Proof("close-with-unread", ("X08", "X09"), 0.4, _NET, _close_with_unread),
    Proof("holder-ends", ("X10", "X19"), 3, _NET, _holder_ends),
    Proof("shutdown-read", ("X12",), 0.6, _NET, _shutdown_read),
    Proof("data-for-the-gone", ("X13",), 0.3, _NET, _data_for_the_gone),
    Proof("inherited", ("X14", "S06"), 0.7, _NET, _inherited),
    Proof("in-flight", ("X15",), 0.1, _NET, _in_flight),
    Proof("accept-queue", ("X16",), 0.2, _NET, _accept_queue),
    Proof("bucket-overflow", ("X40",), 0.4, _NET, _bucket_overflow),
    Proof("port-reuse", ("X41", "X42"), 2, _NET, _port_reuse),
    Proof("destroyed", ("X50",), 0.3, _SS, _destroyed),
    Proof("closed-window", ("X26",), 0.5, _NET, _closed_window),
    Proof("reject-with-reset", ("X39",), 0.3, _NFT, _reject_with_reset),
    Proof("reset-in-time-wait", ("S22",), 2, _NET, _reset_in_time_wait),
    Proof("queue-overflow", ("S11",), 2, _NFT, _queue_overflow),
    Proof("rto-max-of-new-sockets", (), 0.1, (*_NET, "sysctl:net.ipv4.tcp_rto_max_ms"), _rto_max),
    Proof("conntrack-locked", ("S36",), 0.1, _NET, _conntrack_locked),
    Proof("relay-that-waits", ("S01",), 1, _NET, _by_scenario("kube-proxy-userspace")),
    Proof("flows-are-not-sockets", ("S29", "S32"), 5, _CT, _flows_are_not_sockets),
    Proof("probes-and-expired-entries", ("X31", "X32", "X33"), 9, _CT, _probes_and_expired_entries),
    Proof("window-rules-do-not-help", ("X29", "X30"), 5, _CT, _window_rules_do_not_help),
    Proof("deleted-entries", ("X34",), 1, _CT, _deleted_entries),
    Proof("server-speaks-first", ("X35",), 2, _CT, _server_speaks_first),
    Proof("nat-entry-gone", ("S31", "X28"), 8, _CT, _by_scenario("nat-entry-gone")),
    Proof("nat-zombie", ("X38",), 5, ("netns", "tool:nft"), _by_scenario("nat-zombie")),
    Proof("pod-deleted", ("X37",), 1, _NET, _by_scenario("idle-unprobed")),
    Proof("mptcp-without-subflow", ("X57",), 3, ("netns", "mptcp", "tool:ss"), _mptcp_without_subflow),
    Proof("half-open-heals", ("X56",), 9, _NFT, _half_open_heals),
    Proof("mptcp-half-close", ("X49",), 1, ("netns", "mptcp"), _by_scenario("mptcp-half-close")),
)


def proofs() -> dict[str, Proof]:
    """Return the proofs by name."""
    return {proof.name: proof for proof in _PROOFS}


def prove(proof: Proof) -> Outcome:
    """Run a demonstration in namespaces of its own, and remove everything.

    Raises:
        LabError: the machine does not have what it needs.
        PermissionNeeded: without the right to make network namespaces.
    """
    if missing := unmet(proof.needs):
        raise LabError(
            f"`{proof.name}` cannot be run here: {'; '.join(missing)}", hint="run it where they are met"
        )
    measured: list[Measured] = []
    start = time.monotonic()
    with Lab() as lab:
        try:
            measured += proof.run(lab)
        except _Late as late:
            measured.append(Measured("the demonstration as a whole", "to come to its end", str(late), False))
    return Outcome(proof, platform.release(), tuple(measured), time.monotonic() - start)
