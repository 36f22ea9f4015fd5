"""What a scenario is: a story, a way to build it, and exactly which rows must then be there.

A `Situation` accounts for *every* connection in its namespaces: the rows that the scenario's rule must
report, the rows that another rule explains (mostly their other ends, and the near misses), and the rows
that are healthy. Whatever is diagnosed beyond that, or not, is a mistake of the diagnosis.

Rows are read from ``/proc/net/tcp{,6}`` here and MPTCP's from `ss`, never with finwait's own decoders: the
lab is what those are tested against.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import signal
import socket
import struct
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct, field
from msgspec.structs import replace

from finwait.errors import FinwaitError
from finwait.lab.actor import has_ipv6
from finwait.lab.topology import Lab, LabError, unmet

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from finwait.lab.actor import Actor, ProgramSocket
    from finwait.lab.topology import Netns

__all__ = [
    "Expected",
    "NotSettled",
    "Scenario",
    "ScenarioRow",
    "Situation",
    "expect",
    "leaked",
    "list_scenarios",
    "listening",
    "orphan",
    "queued",
    "read_rows",
    "run",
    "scenarios",
]

STATES = (
    "",
    "ESTABLISHED",
    "SYN_SENT",
    "SYN_RECV",
    "FIN_WAIT1",
    "FIN_WAIT2",
    "TIME_WAIT",
    "CLOSE",
    "CLOSE_WAIT",
    "LAST_ACK",
    "LISTEN",
    "CLOSING",
    "NEW_SYN_RECV",
)
"""The spelling and the numbers of include/net/tcp_states.h."""

_ADDRESS_BYTES = {int(socket.AF_INET): 4, int(socket.AF_INET6): 16}
_SS_STATES = {"ESTAB": "ESTABLISHED", "FIN-WAIT-1": "FIN_WAIT1", "FIN-WAIT-2": "FIN_WAIT2", "UNCONN": "CLOSE"}


class NotSettled(FinwaitError):  # names the condition, as TargetGone does
    """A scenario did not reach its situation in time; the message has the rows that are missing."""

    hint = "is the machine very busy? try again"


class ScenarioRow(Struct, frozen=True):
    """One line of ``/proc/net/tcp{,6}``, or an MPTCP connection as `ss` shows it."""

    netns: int
    protocol: int
    family: int
    state: str
    src: str
    sport: int
    dst: str
    dport: int
    inode: int
    timer: int
    rqueue: int
    wqueue: int
    retrans: int
    probes: int = 0
    """Probes without answer: of the timers 2 and 4."""


class Expected(Struct, frozen=True):
    """A connection end that must be there, and the name of the rule that explains it.

    ``rule`` is "" for a row that no rule may mention. ``state`` is ``CLOSE`` for a descriptor whose socket
    is in no table any more (then there is no row, the addresses are empty, and ``inode`` and ``owners`` say
    which). ``timer``, ``rqueue``, ``retrans`` and ``probes`` (minima) are waited for when they are not None.
    """

    rule: str
    netns: int
    family: int
    state: str
    src: str
    sport: int
    dst: str
    dport: int
    owners: tuple[tuple[int, int], ...]
    inode: int = 0
    protocol: int = socket.IPPROTO_TCP
    timer: int | None = None
    rqueue: int | None = None
    retrans: int | None = None
    probes: int | None = None
    also: tuple[str, ...] = ()
    """Rules that match the row too, without being its primary cause."""
    move: str | None = None
    """What in its program waits for it, as `finwait.diagnosis.moves.Move`; None where the scenario does not say."""

    @property
    def key(self) -> tuple[int, int, int, str, int, str, int]:
        """What identifies the row: netns, protocol, family, both addresses with their ports."""
        return (self.netns, self.protocol, self.family, self.src, self.sport, self.dst, self.dport)

    def shown_by(self, row: ScenarioRow) -> bool:
        """Return whether a row of the same key shows what is expected."""
        return (
            row.state == self.state
            and row.inode == self.inode
            and (self.timer is None or row.timer == self.timer)
            and (self.rqueue is None or row.rqueue == self.rqueue)
            and (self.retrans is None or row.retrans >= self.retrans)
            and (self.probes is None or row.probes >= self.probes)
        )


class Situation(Struct):
    """What a scenario has built; valid while its lab lives.

    Attributes:
        story: what happened here, for the reader.
        expected: the rows that the scenario's rule must report, all of them and nothing else.
        others: rows that another rule (named in each) explains: other ends and near misses.
        healthy: rows of healthy patterns; ``rule`` has the healthy pattern's name, or "" for plain traffic.
        namespaces: name → inode of every namespace.
    """

    lab: Lab
    story: str
    expected: tuple[Expected, ...]
    others: tuple[Expected, ...] = ()
    healthy: tuple[Expected, ...] = ()
    namespaces: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.namespaces = {name: netns.inode for name, netns in self.lab.namespaces.items()}

    @property
    def all(self) -> tuple[Expected, ...]:
        """Every row of the situation."""
        return self.expected + self.others + self.healthy

    def rows(self) -> dict[tuple[int, int, int, str, int, str, int], ScenarioRow]:
        """Read every connection of every namespace of the lab now, and the listeners that are expected, by key."""
        rows = {}
        mptcp = any(expected.protocol == socket.IPPROTO_MPTCP for expected in self.all)
        doors = {expected.key for expected in self.all if expected.state == "LISTEN"}
        for netns in self.lab.namespaces.values():
            for row in read_rows(netns, mptcp=mptcp, listeners=bool(doors)):
                key = (row.netns, row.protocol, row.family, row.src, row.sport, row.dst, row.dport)
                if row.state != "LISTEN" or key in doors:
                    rows[key] = row
        return rows

    def missing(self) -> tuple[Expected, ...]:
        """Return what is not (yet) as expected."""
        rows = self.rows()
        inodes = {row.inode for row in rows.values()}
        missing = []
        for expected in self.all:
            if expected.state == "CLOSE":
                if expected.inode in inodes or not all(
                    _links_to(pid, fd, expected.inode) for pid, fd in expected.owners
                ):
                    missing.append(expected)
            elif (row := rows.get(expected.key)) is None or not expected.shown_by(row):
                missing.append(expected)
        return tuple(missing)

    def settle(self, deadline_s: float = 20.0) -> Situation:
        """Wait until every row is in its state; return the situation itself.

        Raises:
            NotSettled: not within ``deadline_s`` seconds.
        """
        end = time.monotonic() + deadline_s
        while missing := self.missing():
            if time.monotonic() > end:
                rows = self.rows()
                lines = [
                    f"  wanted {expected}\n  found  {rows.get(expected.key, 'nothing')}"
                    for expected in missing[:3]
                ]
                raise NotSettled(f"{len(missing)} of {len(self.all)} rows are missing:\n" + "\n".join(lines))
            time.sleep(0.02)
        return self


class Scenario(Struct, frozen=True):
    """A failure on demand.

    Attributes:
        name: the rule that must see it, or a name of its own.
        title: one line.
        story: what a reader should know before running it.
        claims: ids of the ledger of claims that it demonstrates.
        needs: what the machine must have; see `finwait.lab.topology.unmet`.
        seconds: how long it takes to build and settle, roughly.
        build: makes the situation inside a lab.
        watch_ms: time between two looks that it takes to see it; 0 when one look is enough.
        idle_ms: what must count as long silence to see it; None for the usual.
    """

    name: str
    title: str
    story: str
    claims: tuple[str, ...]
    needs: tuple[str, ...]
    seconds: float
    build: Callable[[Lab], Situation]
    watch_ms: int = 0
    idle_ms: int | None = None


def expect(
    rule: str,
    conns: Iterable[ProgramSocket],
    state: str,
    *,
    owners: tuple[tuple[int, int], ...] | None = None,
    protocol: int = socket.IPPROTO_TCP,
    timer: int | None = None,
    rqueue: int | None = None,
    retrans: int | None = None,
    probes: int | None = None,
    also: tuple[str, ...] = (),
    move: str | None = None,
) -> tuple[Expected, ...]:
    """Return a row for each held socket; its owner is the program unless ``owners`` says otherwise."""
    return tuple(
        Expected(
            rule,
            conn.actor.netns.inode,
            conn.family,
            state,
            conn.src,
            conn.sport,
            conn.dst,
            conn.dport,
            (conn.owner,) if owners is None else owners,
            inode=conn.inode,
            protocol=protocol,
            timer=timer,
            rqueue=rqueue,
            retrans=retrans,
            probes=probes,
            also=also,
            move=move,
        )
        for conn in conns
    )


def leaked(rule: str, conns: Iterable[ProgramSocket]) -> tuple[Expected, ...]:
    """Return what must be found of sockets that are in no table any more: their descriptors."""
    return tuple(
        Expected(
            rule, conn.actor.netns.inode, conn.family, "CLOSE", "", 0, "", 0, (conn.owner,), inode=conn.inode
        )
        for conn in conns
    )


def orphan(
    rule: str,
    conns: Iterable[ProgramSocket],
    state: str,
    *,
    timer: int | None = None,
    rqueue: int | None = None,
    retrans: int | None = None,
    probes: int | None = None,
) -> tuple[Expected, ...]:
    """Return a row for each socket that nobody has a descriptor of any more (or yet): inode 0."""
    rows = expect(rule, conns, state, owners=(), timer=timer, rqueue=rqueue, retrans=retrans, probes=probes)
    return tuple(replace(row, inode=0) for row in rows)


def queued(
    rule: str, listener: Actor, clients: Iterable[ProgramSocket], state: str, rqueue: int
) -> tuple[Expected, ...]:
    """Return the rows of connections that wait in an accept queue: their clients' tuples, turned round."""
    return tuple(
        Expected(
            rule,
            listener.netns.inode,
            conn.family,
            state,
            conn.dst,
            conn.dport,
            conn.src,
            conn.sport,
            (),
            rqueue=rqueue,
        )
        for conn in clients
    )


def listening(rule: str, doors: Iterable[ProgramSocket], rqueue: int) -> tuple[Expected, ...]:
    """Return the row of each listener, with so many connections in its queue."""
    nowhere = {family: socket.inet_ntop(family, bytes(n)) for family, n in _ADDRESS_BYTES.items()}
    return tuple(
        Expected(
            rule,
            door.actor.netns.inode,
            door.family,
            "LISTEN",
            door.src,
            door.sport,
            nowhere[door.family],
            0,
            (door.owner,),
            inode=door.inode,
            rqueue=rqueue,
        )
        for door in doors
    )


# ── reading what is there ────────────────────────────────────────────────────────────────────────────────


def read_rows(netns: Netns, *, mptcp: bool = False, listeners: bool = False) -> list[ScenarioRow]:
    """Read the TCP connections of a namespace; ``mptcp`` adds MPTCP's (needs `ss`), ``listeners`` those of TCP."""
    rows: list[ScenarioRow] = []
    for family, text in netns.call(_read_tables).items():
        for line in text.splitlines()[1:]:
            row = _parse(netns.inode, family, line.split())
            if listeners or row.state != "LISTEN":
                rows.append(row)
    return rows + _mptcp_rows(netns) if mptcp else rows


def _read_tables() -> dict[int, str]:
    """Read the tables of the calling thread's namespace (``/proc/net`` would be the main thread's)."""
    files = {int(socket.AF_INET): "tcp", int(socket.AF_INET6): "tcp6"}
    if not has_ipv6():  # then there is no tcp6
        del files[int(socket.AF_INET6)]
    return {family: Path("/proc/thread-self/net", name).read_text() for family, name in files.items()}


def _parse(netns: int, family: int, fields: list[str]) -> ScenarioRow:
    """Decode one line; see get_tcp4_sock() in net/ipv4/tcp_ipv4.c for the columns."""
    src, sport = _endpoint(fields[1])
    dst, dport = _endpoint(fields[2])
    wqueue, rqueue = (int(part, 16) for part in fields[4].split(":"))
    return ScenarioRow(
        netns,
        int(socket.IPPROTO_TCP),
        family,
        STATES[int(fields[3], 16)],
        src,
        sport,
        dst,
        dport,
        int(fields[9]),
        int(fields[5].split(":")[0], 16),
        rqueue,
        wqueue,
        int(fields[6], 16),
        int(fields[8]),
    )


def _endpoint(text: str) -> tuple[str, int]:
    """Decode ``0100007F:1F90``: words of the address in the machine's own order, the port in hex."""
    address, port = text.split(":")
    words = [int(address[at : at + 8], 16) for at in range(0, len(address), 8)]
    packed = struct.pack(f"={len(words)}I", *words)
    return socket.inet_ntop(socket.AF_INET if len(words) == 1 else socket.AF_INET6, packed), int(port, 16)


def _mptcp_rows(netns: Netns) -> list[ScenarioRow]:
    """Read MPTCP connections; /proc has none, so `ss` is asked."""
    rows = []
    for line in netns.run("ss", "-H", "-M", "-n", "-a", "-e", "-O").splitlines():
        state, rqueue, wqueue, local, peer, *rest = line.split()
        if state == "LISTEN":
            continue
        src, _, sport = local.rpartition(":")
        dst, _, dport = peer.rpartition(":")
        family = socket.AF_INET6 if src.startswith("[") else socket.AF_INET
        inode = next((int(word[4:]) for word in rest if word.startswith("ino:")), 0)
        rows.append(
            ScenarioRow(
                netns.inode,
                socket.IPPROTO_MPTCP,
                int(family),
                _SS_STATES.get(state, state.replace("-", "_")),
                src.strip("[]"),
                int(sport),
                dst.strip("[]"),
                int(dport),
                inode,
                0,
                int(rqueue),
                int(wqueue),
                0,
            )
        )
    return rows


def _links_to(pid: int, fd: int, inode: int) -> bool:
    """Return whether a process's descriptor is this socket."""
    try:
        return Path(f"/proc/{pid}/fd/{fd}").readlink() == Path(f"socket:[{inode}]")
    except OSError:
        return False


# ── finding and running ──────────────────────────────────────────────────────────────────────────────────


def scenarios() -> dict[str, Scenario]:
    """Return all scenarios by name, in alphabetical order. Their modules are imported by the first call."""
    if not _FOUND:
        package = importlib.import_module("finwait.lab.scenarios")
        names = sorted(module.name for module in pkgutil.iter_modules(package.__path__))
        for name in names:
            scenario: Scenario = importlib.import_module(f"{package.__name__}.{name}").SCENARIO
            _FOUND[scenario.name] = scenario
    return dict(_FOUND)


_FOUND: dict[str, Scenario] = {}


def list_scenarios() -> tuple[Scenario, ...]:
    """Return all scenarios in alphabetical order."""
    return tuple(scenarios().values())


def run(name: str, keep: bool, action: Callable[[Situation], int]) -> int:
    """Build a scenario, wait until it has settled, hand it to ``action``, and remove it.

    Args:
        name: of the scenario.
        keep: wait for Ctrl-C (or SIGTERM) before removing it.
        action: what to do with it; its result is returned.

    Raises:
        ValueError: there is no such scenario.
        LabError: this machine lacks something that the scenario needs.
        NotSettled: the kernel did not come to the expected state in time.
    """
    scenario = scenarios().get(name)
    if scenario is None:
        raise ValueError(f"there is no scenario {name!r}")
    if missing := unmet(scenario.needs):
        raise LabError(
            f"cannot run `{name}`: {'; '.join(missing)}", hint="`finwait lab list` shows the others"
        )
    with Lab() as lab:
        situation = scenario.build(lab).settle()
        status = action(situation)
        if keep:
            sys.stderr.write("The situation stays until you press Ctrl-C.\n")
            for netns in lab.namespaces.values():
                sys.stderr.write(
                    f"  {netns.name:<12} netns {netns.inode}   "
                    f"sudo nsenter --net=/proc/{os.getpid()}/fd/{netns.fd} ss -tanoe\n"
                )
            sys.stderr.flush()
            try:
                signal.pause()
            except KeyboardInterrupt:
                sys.stderr.write("removed.\n")
    return status
