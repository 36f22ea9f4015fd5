"""hidden-leak: the connection is gone from every list, and the descriptor is still open.

Seen as       5 or more descriptors of TCP sockets that no dump contains, in one process or in the workers of one
              service together; sockstat's `alloc` above `inuse`.
Why it stays  A connection that was reset, timed out or was destroyed leaves its state, and with it ss and
              sock_diag. The descriptor stays open until the program closes it, and counts against its limit.
Not this      Sockets of other kinds (Unix, UDP). Sockets that never sent nor received a segment: they are
              being made, or were never connected. Sockets that live in a namespace that was not inspected.
What ends it  close() by the owner, or its restart.
What does not ss -K or SOCK_DESTROY: there is no connection any more to destroy.
Reproduce     finwait lab run hidden-leak
"""

from __future__ import annotations

from collections import Counter

import numpy as np

from finwait.diagnosis.finding import Advice, Confidence, Evidence, Remedy
from finwait.diagnosis.rule import Match, Rule
from finwait.diagnosis.rules import certain
from finwait.diagnosis.view import View
from finwait.uapi import tcp

__all__ = ["RULE", "matches"]


def matches(view: View) -> list[Match]:
    """Return the processes that hold dead sockets, where they or their service hold enough of them."""
    if not view.hidden_known:
        return []
    by_pid: dict[int, list[int]] = {}
    spaces: dict[int, int] = {}
    for item in view.hidden:
        by_pid.setdefault(item.pid, []).append(item.fd)
        spaces.setdefault(item.pid, item.netns)
    of = view.services
    together = Counter(of.get(item.pid, item.pid) for item in view.hidden)
    result = []
    for pid, fds in sorted(by_pid.items()):
        if (whole := together[of.get(pid, pid)]) < view.options.hidden:
            continue
        process = view.processes.get(pid)
        ns = spaces.get(pid) or (process.netns if process and process.netns else 0)
        evidence = [
            Evidence(
                "descriptors",
                f"{len(fds)}: fd {', '.join(map(str, fds[:6]))}{' …' if len(fds) > 6 else ''}",
                f"/proc/{pid}/fd, system.sockprotoname, TCP_INFO",
                "TCP sockets that no dump contains: in state CLOSE, after segments went in or out",
            )
        ]
        if whole > len(fds):
            evidence.append(
                Evidence(
                    "service",
                    f"{whole} descriptors",
                    "/proc/PID/fd of its processes",
                    "the same in all its workers",
                )
            )
        here = view.namespaces.get(ns)
        if here is not None and "sockstat.TCP.alloc" in here.counters:
            alloc = here.counters["sockstat.TCP.alloc"]
            used = sum(
                n.counters.get("sockstat.TCP.inuse", 0) + n.counters.get("sockstat6.TCP6.inuse", 0)
                for n in view.namespaces.values()
            )
            evidence.append(
                Evidence(
                    "sockstat",
                    f"alloc {alloc}, inuse {used}",
                    "/proc/net/sockstat",
                    "alloc counts every TCP socket of the machine, dead ones too",
                )
            )
        result.append(
            Match(
                np.empty(0, np.int64),
                netns=ns,
                pid=pid,
                count=len(fds),
                cells={"state": tcp.CLOSE, "protocol": 6},
                evidence=tuple(evidence),
                subject=f"pid {pid} ({process.comm if process else '?'})",
            )
        )
    return result


def _confidence(view: View, rows: object) -> Confidence:  # noqa: ARG001
    return certain("the sockets themselves say that they are closed, and that they have been in use")


RULE = Rule(
    name="hidden-leak",
    title="descriptors of connections that are gone: invisible to ss, still open",
    severity="problem",
    rank=50,
    owners=True,
    means=None,
    beyond_sysctls="the connection is gone; only the descriptor is left in the process",
    claims=("C16", "X50"),
    clues=(),
    ends=(Remedy("fix the program to close() after an error; restarting it closes what it holds now"),),
    does_not=(
        Advice(
            "`ss -K` or SOCK_DESTROY",
            "there is no connection left to destroy; only close() frees the descriptor",
        ),
    ),
    confidence=_confidence,
    matches=matches,
)
