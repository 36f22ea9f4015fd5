"""What the demonstrations measure with: rows of ``/proc/net/tcp``, pairs of sockets, places to build, and clocks.

The instrument is the kernel's own text, not finwait's decoder, so that a proof does not rest on what it is to
support. Both ends of a connection are sockets of this process on the namespace's loopback unless a proof says
otherwise.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self

from msgspec import Struct

from finwait.diagnosis.forecast import Expiry
from finwait.errors import FinwaitError
from finwait.lab.scenario import STATES, NotSettled, scenarios
from finwait.lab.topology import Lab

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from finwait.lab.topology import Netns

__all__ = [
    "CT",
    "NET",
    "NFT",
    "SS",
    "TCP_LINGER2",
    "TCP_REPAIR",
    "TCP_USER_TIMEOUT",
    "Late",
    "Measured",
    "Pair",
    "Place",
    "ProcRow",
    "Proof",
    "ProofOutcome",
    "Race",
    "Took",
    "as_forecast",
    "by_scenario",
    "counter",
    "error_of",
    "keepalive",
    "link",
    "packets",
    "retransmits",
    "rto_ms",
    "shown",
    "timer",
]

_TICKS = os.sysconf("SC_CLK_TCK")

TCP_LINGER2, TCP_USER_TIMEOUT = 8, 18

TCP_REPAIR = 19

_DEADLINE_S = 30.0


class Measured(Struct, frozen=True):
    """One measurement: what the ledger expects, what was measured, and whether they agree."""

    what: str
    expected: str
    got: str
    held: bool


class Proof(Struct, frozen=True):
    """A demonstration and the claims that it bears on."""

    name: str
    claims: tuple[str, ...]
    seconds: float
    """About how long it takes."""
    needs: tuple[str, ...]
    """As for a scenario: see `finwait.lab.topology.unmet`."""
    run: Callable[[Lab], Iterator[Measured]]


class ProofOutcome(Struct, frozen=True):
    """What a proof measured on this kernel."""

    proof: Proof
    kernel: str
    measured: tuple[Measured, ...]
    seconds: float

    @property
    def held(self) -> bool:
        """Whether everything was as the ledger says."""
        return all(measurement.held for measurement in self.measured)


class ProcRow(Struct, frozen=True):
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
        expiry = f" {self.when_s:.1f} s" if self.timer else ""
        return f"{self.state} timer {self.timer}{expiry} inode {self.inode and '≠ 0'}"


def rows(ns: Netns) -> list[ProcRow]:
    """Return the TCP sockets of a namespace, as ``/proc/net/tcp`` has them."""
    text = ns.call(lambda: Path("/proc/thread-self/net/tcp").read_text(encoding="ascii"))
    result = []
    for line in text.splitlines()[1:]:
        field = line.split()
        timer, _, when = field[5].partition(":")
        wqueue, _, rqueue = field[4].partition(":")
        result.append(
            ProcRow(
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
    return result


def row_of(ns: Netns, sport: int, dport: int) -> ProcRow | None:
    """Return the socket with these ports; None when there is none."""
    return next((row for row in rows(ns) if (row.sport, row.dport) == (sport, dport)), None)


def shown(row: ProcRow | None) -> str:
    """Return a row in words."""
    return "gone" if row is None else str(row)


class Pair(Struct):
    """A connection on a namespace's loopback: ``a`` connected, ``b`` was accepted."""

    ns: Netns
    a: socket.socket
    b: socket.socket
    a_port: int
    b_port: int

    def at_a(self) -> ProcRow | None:
        """Return the row of ``a``; None when the kernel has it no more."""
        return row_of(self.ns, self.a_port, self.b_port)

    def at_b(self) -> ProcRow | None:
        """Return the row of ``b``; None when the kernel has it no more."""
        return row_of(self.ns, self.b_port, self.a_port)


class Place:
    """A namespace of a lab in which a proof opens connections; closes what is left."""

    def __init__(self, lab: Lab, name: str = "place", **sysctls: int) -> None:
        self.ns = lab.netns(name)
        self.open: list[socket.socket] = []
        for key, value in sysctls.items():
            self.ns.sysctl(f"net.ipv4.{key}", value)

    def fresh(self) -> socket.socket:
        """Return a socket in the namespace, closed with it."""
        sock = self.ns.call(lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM))
        sock.settimeout(10)
        self.open.append(sock)
        return sock

    def listener(self, backlog: int = 64) -> socket.socket:
        """Return a listening socket on a free port of the loopback."""
        door = self.fresh()
        door.bind(("127.0.0.1", 0))
        door.listen(backlog)
        return door

    def pair(self, door: socket.socket | None = None) -> Pair:
        """Return a new connection, to a listener if one is given."""
        if door is None:
            door = self.listener()
        a = self.fresh()
        a.connect(door.getsockname())
        b, _ = door.accept()
        b.settimeout(10)
        self.open.append(b)
        return Pair(self.ns, a, b, a.getsockname()[1], b.getsockname()[1])

    def half_closed(self) -> Pair:
        """A pair whose ``a`` has sent its FIN, and has it acknowledged."""
        pair = self.pair()
        pair.a.shutdown(socket.SHUT_WR)
        until(lambda: in_state(pair.at_a(), "FIN_WAIT2"), "the FIN is acknowledged")
        return pair

    def orphan(self) -> Pair:
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


def in_state(row: ProcRow | None, state: str) -> bool:
    """Whether a socket is there, and in this state."""
    return row is not None and row.state == state


def until(true: Callable[[], bool], condition: str, deadline_s: float = _DEADLINE_S) -> float:
    """Wait until something is so; return how long it took, in seconds.

    Raises:
        NotSettled: it was not so in time.
    """
    start = time.monotonic()
    while not true():
        if time.monotonic() - start > deadline_s:
            raise Late(f"after {deadline_s:.0f} s still not: {condition}")
        time.sleep(0.01)
    return time.monotonic() - start


class Late(FinwaitError):
    """A proof waited in vain: then the claim did not hold, or the machine is overloaded."""


def seen(
    subject: str, row: ProcRow | None, state: str, timer: int | None = None, held: bool | None = None
) -> Measured:
    """Return the measurement that a socket is in a state, with this timer, held or not."""
    good = in_state(row, state) and (timer is None or (row is not None and row.timer == timer))
    if held is not None and row is not None:
        good = good and (row.inode != 0) == held
    expected = state + ("" if timer is None else f" timer {timer}")
    return Measured(subject, expected, shown(row), good)


def gone(subject: str, row: ProcRow | None) -> Measured:
    """Return the measurement that the kernel has a socket no more."""
    return Measured(subject, "gone", shown(row), row is None)


def life(subject: str, seconds: float, low: float, high: float) -> Measured:
    """Return the measurement that something took so many seconds."""
    return Measured(subject, f"{low:g} to {high:g} s", f"{seconds:.2f} s", low <= seconds <= high)


_LATE_S = 0.15
"""What a timer of the kernel's may be late by, however short its time (a tick, and its wheel's grain)."""


class Took(Struct, frozen=True):
    """How long something took, as far as looking now and then tells: on a busy machine we look late."""

    least: float
    most: float

    def __str__(self) -> str:
        if self.most - self.least < 0.2:
            return f"{self.most:.2f} s"
        return f"{self.least:.2f} to {self.most:.2f} s"


def as_forecast(subject: str, predicted: float | Expiry, took: Took) -> Measured:
    """Compare with what `finwait.diagnosis.forecast` predicts.

    It is one time, which the kernel meets within a tenth or a timer's tick, or from when to when it ends.
    """
    if isinstance(predicted, Expiry):
        held = took.most >= predicted.seconds - 0.05 and took.least <= predicted.most_s + _LATE_S
        expected = f"{predicted.seconds:.2f} to {predicted.most_s:.2f} s (forecast)"
        return Measured(subject, expected, str(took), held)
    held = took.most >= 0.95 * predicted - 0.05 and took.least <= 1.1 * predicted + _LATE_S
    return Measured(subject, f"{predicted:.2f} s (forecast)", str(took), held)


class Race:
    """Connections of which each is to end at its time, watched together."""

    def __init__(self) -> None:
        self._running: dict[str, tuple[Pair, float | Expiry, float, float]] = {}

    def start(self, subject: str, pair: Pair, predicted: float | Expiry, begin: Callable[[], object]) -> None:
        """Begin what ends the connection at ``pair.a`` after some seconds."""
        before = time.monotonic()
        begin()
        self._running[subject] = pair, predicted, before, time.monotonic()

    def results(self, deadline_s: float = _DEADLINE_S) -> Iterator[Measured]:
        """Yield how long each took, as they go."""
        running, seen = dict(self._running), {subject: entry[3] for subject, entry in self._running.items()}
        end = time.monotonic() + deadline_s
        while running:
            for subject, (pair, predicted, before, after) in list(running.items()):
                asked = time.monotonic()
                if pair.at_a() is not None:
                    seen[subject] = asked
                    continue
                took = Took(seen[subject] - after, time.monotonic() - before)
                yield as_forecast(subject, predicted, took)
                del running[subject]
            if running and time.monotonic() > end:
                raise Late(f"after {deadline_s:.0f} s still there: {', '.join(running)}")
            time.sleep(0.01)


def rto_ms(sock: socket.socket) -> float:
    """Return ``tcpi_rto`` of a socket, in milliseconds."""
    return (
        float(struct.unpack_from("=I", sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104), 8)[0])
        / 1000
    )


def equal(subject: str, expected: object, actual: object) -> Measured:
    """Return the measurement that two values are the same."""
    return Measured(subject, str(expected), str(actual), expected == actual)


def keepalive(sock: socket.socket, idle: int, interval: int, probes: int) -> None:
    """Switch keepalive on with these times in seconds."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, idle)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, interval)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, probes)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)


def error_of(sock: socket.socket) -> str:
    """Return the name of the error that waits in a socket (SO_ERROR); ``0`` for none."""
    number = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    return errno.errorcode.get(number, str(number))


def packets(ns: Netns) -> int:
    """Return how many packets the loopback of a namespace has received."""
    text = ns.call(lambda: Path("/proc/thread-self/net/dev").read_text(encoding="ascii"))
    line = next(line for line in text.splitlines() if line.strip().startswith("lo:"))
    return int(line.partition(":")[2].split()[1])


def counter(ns: Netns, name: str) -> int:
    """Return a counter of ``/proc/net/netstat``; 0 when the kernel does not have it."""
    rows = ns.call(lambda: Path("/proc/thread-self/net/netstat").read_text(encoding="ascii")).splitlines()
    for names, numbers in zip(rows[::2], rows[1::2], strict=False):
        counters = dict(zip(names.split(), numbers.split(), strict=False))
        if name in counters:
            return int(counters[name])
    return 0


def timer(row: ProcRow | None, timer: int) -> bool:
    """Whether a socket is there, and this timer runs."""
    return row is not None and row.timer == timer


def retransmits(sock: socket.socket) -> tuple[int, int, int]:
    """Return ``tcpi_retransmits``, ``tcpi_backoff`` and ``tcpi_rto``."""
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
    return info[2], info[4], int(struct.unpack_from("=I", info, 8)[0])


def link(fd: str) -> str:
    """Return what a descriptor of this process leads to; empty when it is closed."""
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    except OSError:
        return ""


def by_scenario(name: str) -> Callable[[Lab], Iterator[Measured]]:
    """A proof that is a scenario: every connection end that it says must be there, is."""

    def run(lab: Lab) -> Iterator[Measured]:
        situation = scenarios()[name].build(lab)
        missing: tuple[object, ...] = ()
        try:
            situation.settle()
        except NotSettled:
            missing = situation.missing()
        for row in situation.all:
            end = f"{row.state} in {row.rule or 'no rule'}: {row.src}:{row.sport} to {row.dst}:{row.dport}"
            absent = row in missing
            yield Measured(end, row.state, "not there" if absent else row.state, not absent)

    return run


NET = ("netns",)

NFT = ("netns", "tool:nft")

SS = ("netns", "tool:ss")

CT = ("netns", "tool:nft", "tool:conntrack")
