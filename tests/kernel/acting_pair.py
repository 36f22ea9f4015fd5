"""Two namespaces with a program in each and connections between them, looked at and planned for."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from finwait import session
from finwait.diagnosis.view import View
from finwait.lab.actor import Actor, ProgramSocket, meet
from finwait.lab.topology import Lab, Netns
from finwait.remedy import making
from finwait.remedy import plan as plans
from finwait.remedy.guards import Limits
from finwait.session import Diagnosis, Look
from finwait.uapi import tcp
from finwait.uapi.observation import LookPlan

__all__ = ["Pair", "cookie_of", "planned", "resets_sent", "row_of", "settled", "state_of"]


class Pair:
    """Two namespaces, a program in each, and connections between them."""

    def __init__(self, lab: Lab, n: int = 1, cgroups: Sequence[Path | None] = (None, None)) -> None:
        self.lab = lab
        self.a, self.b = lab.netns("near"), lab.netns("far")
        self.link = lab.link(self.a, self.b)
        self.near: Actor = lab.actor(self.a, "near", cgroup=cgroups[0])
        self.far: Actor = lab.actor(self.b, "far", cgroup=cgroups[1])
        self.ours, self.theirs = meet(
            self.near, self.link.b4, self.far, self.far.listen(self.link.b4, 8080), n
        )

    def look(self, until: Callable[[View], bool] = lambda _: True) -> Diagnosis:
        end = time.monotonic() + 20
        while True:
            plan = LookPlan(only=frozenset({self.a.inode, self.b.inode}), established_limit=None)
            diagnosis = session.diagnose(how=Look(plan=plan))
            if until(diagnosis.view) or time.monotonic() > end:
                return diagnosis
            time.sleep(0.02)

    def states(self, conns: list[ProgramSocket]) -> list[str]:
        view = self.look().view
        return [state_of(view, conn) for conn in conns]


def row_of(view: View, conn: ProgramSocket) -> int:
    s = view.sockets
    hit = np.flatnonzero((s.inode == conn.inode) & (s.state != tcp.LISTEN))
    return int(hit[0]) if len(hit) else -1


def state_of(view: View, conn: ProgramSocket) -> str:
    row = row_of(view, conn)
    return tcp.STATES[int(view.sockets.state[row])] if row >= 0 else "gone"


def planned(
    diagnosis: Diagnosis, conns: list[ProgramSocket], means: str | None = None, **limits: object
) -> plans.Plan:
    mask = np.zeros(len(diagnosis.view), np.bool_)
    mask[[row_of(diagnosis.view, c) for c in conns]] = True
    allowed = Limits(share=1.0, established_named=True, **limits)  # type: ignore[arg-type]
    return making.make(diagnosis.view, diagnosis.findings, mask, allowed, force=means)  # type: ignore[arg-type]


def settled(pair: Pair, conns: list[ProgramSocket], state: str) -> Diagnosis:
    return pair.look(lambda view: all(state_of(view, c) == state for c in conns))


def cookie_of(view: View, conn: ProgramSocket) -> int:
    return int(view.sockets.cookie[row_of(view, conn)])


def resets_sent(netns: Netns) -> int:
    """Return how many RSTs were sent there (``Tcp: OutRsts`` of /proc/net/snmp)."""
    text = netns.call(lambda: Path("/proc/thread-self/net/snmp").read_text())
    names, values = (line.split() for line in text.splitlines() if line.startswith("Tcp:"))
    return int(dict(zip(names, values, strict=True))["OutRsts"])
