"""Commands of other tools by which a group can be checked by hand, so that nobody need believe us.

They are made of numbers and of names that a shell takes as they are; where a namespace has no such name, it is said in
words. They are about the moment of the look: what ended since is not there any more.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

import numpy as np
from msgspec import Struct

from finwait.diagnosis.finding import Finding
from finwait.uapi import tcp
from finwait.uapi.sets import distinct

if TYPE_CHECKING:
    from finwait.diagnosis.view import View

__all__ = ["ByHand", "by_hand"]

_PLAIN: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_MOST_PORTS: Final = 3
_STATES: Final = {
    tcp.ESTABLISHED: "established",
    tcp.SYN_SENT: "syn-sent",
    tcp.SYN_RECV: "syn-recv",
    tcp.FIN_WAIT1: "fin-wait-1",
    tcp.FIN_WAIT2: "fin-wait-2",
    tcp.TIME_WAIT: "time-wait",
    tcp.CLOSE_WAIT: "close-wait",
    tcp.LAST_ACK: "last-ack",
    tcp.LISTEN: "listening",
    tcp.CLOSING: "closing",
}
"""State → what ss(8) calls it."""


class ByHand(Struct, frozen=True):
    """A command, and what it shows."""

    command: str
    shows: str


def by_hand(view: View, group: Finding) -> list[ByHand]:
    """Return commands that show a group without finwait."""
    return [*_listing(view, group), *_descriptor(view, group), *_at_the_peer(view, group)]


def _inside(view: View, group: Finding) -> tuple[str, str]:
    """Return what comes before a command to run it in the namespace of a group, and what is to be said of that."""
    space = view.namespaces.get(group.netns)
    names = space.names if space is not None else ()
    if "host" in names:
        return "", ""
    for pid in group.pids:
        process = view.processes.get(pid)
        if process is not None and process.netns == group.netns:
            return f"nsenter -t {pid} -n ", ""
    name = next((name for name in names if _PLAIN.fullmatch(name)), "")
    if name:
        return f"ip netns exec {name} ", ""
    return "", f", in network namespace {group.netns}"


def _ports(view: View, group: Finding) -> str:
    """Return the FILTER of ss(8) for the ports of a group; empty where there are many."""
    for side, name in ((view.sockets.sport, "sport"), (view.sockets.dport, "dport")):
        ports = distinct(side[group.rows]).tolist()
        if len(ports) <= _MOST_PORTS and 0 not in ports:
            return " or ".join(f"{name} = :{port}" for port in ports)
    return ""


def _listing(view: View, group: Finding) -> Iterator[ByHand]:
    if not len(group.rows):
        return
    states = [_STATES[s] for s in distinct(view.sockets.state[group.rows]).tolist() if s in _STATES]
    if not states:
        return
    inside, place = _inside(view, group)
    chosen = " ".join(f"state {state}" for state in states)
    ports = _ports(view, group)
    ports = f" '( {ports} )'" if ports else ""
    yield ByHand(
        f"{inside}ss -tanoep {chosen}{ports}",
        f"the connections with timer, inode and holder{place}; others in the same state may be among them",
    )


def _descriptor(view: View, group: Finding) -> Iterator[ByHand]:
    for row in group.rows[:1].tolist():
        for pid, fd in view.holders.of(row)[:1]:
            yield ByHand(
                f"ls -l /proc/{pid}/fd/{fd}",
                f"`socket:[{int(view.sockets.inode[row])}]`: the process holds one of them",
            )


def _at_the_peer(view: View, group: Finding) -> Iterator[ByHand]:
    rows = group.rows[:1]
    if not len(rows) or view.other[rows[0]] >= 0 or int(view.sockets.state[rows[0]]) == tcp.LISTEN:
        return
    s, row = view.sockets, rows[0]
    if np.any(view.flow_natted[rows]):  # the other end has other ports, or another address
        return
    yield ByHand(
        f"ss -tanoep 'sport = :{int(s.dport[row])} and dport = :{int(s.sport[row])}'",
        "on the machine of the peer: the state of the other end of one of them, unless something between translates",
    )
