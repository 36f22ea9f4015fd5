"""Which end of a connection opened it, as far as rows tell: no kernel keeps it.

A listener on the local port shows who accepted, while it is there. Ports show the rest: connect() takes one of
``ip_local_port_range`` unless a program chooses another, and few services listen in that range.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from finwait.table.schema import Mask
from finwait.table.sockets import MAPPED
from finwait.uapi import tcp

if TYPE_CHECKING:
    from finwait.diagnosis.view import View

__all__ = [
    "Listening",
    "another_program",
    "arrived",
    "clients",
    "given_ports",
    "left_without_listener",
    "listening",
    "programs_at_door",
    "runs_what_its_parent_runs",
    "servers",
    "strangers",
    "strays",
    "taken_over",
]


def given_ports(view: View) -> tuple[Mask, Mask]:
    """Return on which rows the local port is one that the kernel gives to clients, and on which the remote one is."""
    s = view.sockets
    ranges = dict.fromkeys(view.namespaces, (1, 0))  # none: not known, or not all rows are
    for number, namespace in view.namespaces.items():
        words = namespace.sysctls.get("ipv4/ip_local_port_range", "").split()
        if namespace.dumped and len(words) == 2 and all(word.isdecimal() for word in words):
            ranges[number] = int(words[0]), int(words[1])
    numbers, place = np.unique(s.netns, return_inverse=True)
    of_each = np.array([ranges.get(number, (1, 0)) for number in numbers.tolist()], np.int64).reshape(-1, 2)
    low, high = of_each[place].T
    return (s.sport >= low) & (s.sport <= high), (s.dport >= low) & (s.dport <= high)


def clients(view: View) -> Mask:
    """Return rows that their program opened itself, as far as that can be known.

    No listener has the local port, and the other end's port has one; or, where the other end is elsewhere, the local
    port is one that the kernel gives to clients, and the other one is not.
    """
    local, remote = view.given_ports
    other = np.maximum(view.other, 0)
    peer_accepted = (view.other >= 0) & view.accepted[other]
    opened: Mask = ~view.accepted & (peer_accepted | ((view.other < 0) & local & ~remote))
    return opened


def servers(view: View) -> Mask:
    """Return rows that their program accepted, as far as that can be known.

    A listener has the local port; or it is gone, and the remote port is one that the kernel gives to clients, while
    the local one is not.
    """
    local, remote = view.given_ports
    other = np.maximum(view.other, 0)
    peer_accepted = (view.other >= 0) & view.accepted[other]
    accepted: Mask = view.accepted | ((view.sockets.state != tcp.LISTEN) & ~peer_accepted & remote & ~local)
    return accepted


Door = tuple[int, int, int, int, bool]
"""Network namespace, port and address (two words) of a listener, and whether it is on ``::`` for IPv6 only."""
_EVERY_IPV4: Final = (0, MAPPED)
"""``0.0.0.0``."""
_EVERY_ADDRESS: Final = (0, 0)
"""``::``."""


class Listening(NamedTuple):
    """Who listens."""

    programs: dict[Door, frozenset[str]]
    """By door; empty where one of them is not known.

    There are several where a supervisor keeps the listener that it has handed over (socket activation).
    """
    pids: dict[tuple[int, int], frozenset[int]]
    """By network namespace and port the processes that have a listener there."""


def listening(view: View) -> Listening:
    """Return who listens."""
    s = view.sockets
    programs: dict[Door, set[str]] = {}
    pids: dict[tuple[int, int], set[int]] = {}
    for row in np.flatnonzero(s.state == tcp.LISTEN).tolist():
        holders = {pid for pid, _ in view.holders.of(row)}
        names = {
            _current(view.processes[pid].exe) if pid in view.processes else "" for pid in holders or {-1}
        }
        programs.setdefault(_door_of(view, row), set()).update(names)
        pids.setdefault((int(s.netns[row]), int(s.sport[row])), set()).update(holders)
    return Listening(
        {door: frozenset(() if "" in names else names) for door, names in programs.items()},
        {place: frozenset(holders) for place, holders in pids.items()},
    )


def _door_of(view: View, row: int) -> Door:
    """Return the door of a listener."""
    s = view.sockets
    high, low = s.src[row].tolist()
    only = (high, low) == _EVERY_ADDRESS and bool(s.v6only[row] == 1)
    return int(s.netns[row]), int(s.sport[row]), high, low, only


def listening_door(view: View, row: int) -> Door | None:
    """Return the door by which a connection came, as far as listeners are there; None for none.

    A listener on its own address comes before one on all addresses (``compute_score``, net/ipv4/inet_hashtables.c);
    one on ``::`` accepts IPv4 as well, unless IPV6_V6ONLY is set, but one on ``0.0.0.0`` no IPv6.
    """
    s = view.sockets
    place = int(s.netns[row]), int(s.sport[row])
    high, low = s.src[row].tolist()
    ipv4 = high == 0 and low >> 32 == 0xFFFF
    every: tuple[tuple[int, int, bool], ...] = (
        ((*_EVERY_IPV4, False), (*_EVERY_ADDRESS, False))
        if ipv4
        else ((*_EVERY_ADDRESS, True), (*_EVERY_ADDRESS, False))
    )
    for address in ((high, low, False), *every):
        if (door := (*place, *address)) in view.listening.programs:
            return door
    return None


def programs_at_door(view: View, row: int) -> frozenset[str]:
    """Return the programs that listen where a connection was accepted; empty where that is not known."""
    door = listening_door(view, row)
    return frozenset() if door is None else view.listening.programs[door]


def arrived(view: View) -> Mask:
    """Return which rows a listener may have accepted: one on their port, at their address or at all."""
    out = np.zeros(len(view), np.bool_)
    out[view.arrived_at(np.flatnonzero(view.accepted & (view.sockets.state != tcp.LISTEN)))[0]] = True
    return out


def taken_over(view: View, row: int) -> bool:
    """Return whether none of the programs that hold a row is the one that listens on its port: another accepted it.

    A holder that is older than those that listen now may have accepted it when it was itself that listened: a server
    that was upgraded, or handed its port over.
    """
    if not another_program(view, row):
        return False
    s = view.sockets
    pids = {pid for pid, _ in view.holders.of(row)}
    place = (s.state == tcp.LISTEN) & (s.netns == s.netns[row]) & (s.sport == s.sport[row])
    door = listening_door(view, row)
    doors = np.array([k for k in np.flatnonzero(place).tolist() if _door_of(view, k) == door], np.int64)
    ages = [view.processes[pid].age_ms for pid in view.holders.pids(doors)]
    return max(view.processes[pid].age_ms for pid in pids) <= max(ages)


def another_program(view: View, row: int) -> bool:
    """Return whether none of those that hold a row runs a program that listens on its port, where all are known.

    One that has a listener on that port itself, on whatever address or device, may have accepted it.
    """
    programs = programs_at_door(view, row)
    pids = {pid for pid, _ in view.holders.of(row)}
    names = {_current(view.processes[pid].exe) if pid in view.processes else "" for pid in pids}
    if not programs or not names or names & (programs | {""}):
        return False
    s = view.sockets
    return not pids & view.listening.pids.get((int(s.netns[row]), int(s.sport[row])), frozenset())


def _current(exe: str) -> str:
    """Return the path of a program, also of one that an update has replaced."""
    return exe.removesuffix(" (deleted)")


def strays(view: View) -> Mask:
    """Return open connections that those who hold them neither opened nor accepted, as far as that is known.

    Another program listens on their port: it handed them over, or it started the holder, which inherited them. Or
    nobody listens there any more, and the holder is not of the program that started it.
    """
    s = view.sockets
    open_ = (s.state == tcp.ESTABLISHED) & view.holder_found
    single = open_ & ~view.holders.several_processes()
    out = np.zeros(len(view), np.bool_)
    several = np.flatnonzero(open_ & ~single & view.accepted)
    out[several] = [another_program(view, row) for row in several.tolist()]
    for rows in view.pid_rows(single & view.accepted).values():
        out[rows] = _by_door(view, rows)
    closed = single & left_without_listener(view)
    if closed.any():
        listening = set(view.holders.pids(np.flatnonzero(s.state == tcp.LISTEN)))
        for pid, rows in view.pid_rows(closed).items():
            out[rows] = pid not in listening and runs_what_its_parent_runs(view, pid) is not True
    return out


def strangers(view: View) -> Mask:
    """Return connections in CLOSE_WAIT that a program holds which does not listen where they were accepted.

    It listened there before, or was started by what did.
    """
    s = view.sockets
    out = np.zeros(len(view), np.bool_)
    for rows in view.pid_rows((s.state == tcp.CLOSE_WAIT) & view.accepted).values():
        out[rows] = _by_door(view, rows)
    return out


def _by_door(view: View, rows: NDArray[np.int64]) -> Mask:
    """Return `another_program` of rows that the same processes hold, asked once for each door."""
    s = view.sockets
    ports = np.column_stack([s.netns[rows].astype(np.uint64) << np.uint64(16) | s.sport[rows], s.src[rows]])
    _, first, place = np.unique(ports, axis=0, return_index=True, return_inverse=True)
    answers = np.array([another_program(view, row) for row in rows[first].tolist()], np.bool_)
    return answers[place.reshape(-1)]


def left_without_listener(view: View) -> Mask:
    """Return open connections that some program accepted whose listener is gone."""
    return (view.sockets.state == tcp.ESTABLISHED) & view.servers & ~view.accepted


def runs_what_its_parent_runs(view: View, pid: int) -> bool | None:
    """Return whether a process runs the program of its parent: a plain fork() does. None: not known."""
    process = view.processes.get(pid)
    # Pid 1 adopts what has lost its parent.
    parent = view.processes.get(process.ppid) if process is not None and process.ppid > 1 else None
    if process is None or parent is None or not process.exe or not parent.exe:
        return None
    return _current(process.exe) == _current(parent.exe)
