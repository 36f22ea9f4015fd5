"""hidden-leak: the connection is gone from every list, and the descriptor is still open.

Seen as       5 or more descriptors of TCP (or MPTCP) sockets that are in no dump, in one process or in all
              workers of one service together; `alloc` in sockstat is above `inuse`.
Why it stays  A connection that was reset, timed out or was destroyed loses its state, and
              disappears from ss and sock_diag. The descriptor stays open until the program closes
              it, and counts against the program's limit.
Not this      Descriptors that the program closes a little later, for example after a client
              cancelled its request: a single look says "possible", two looks count only those that
              were closed at both. Sockets of other kinds (Unix, UDP). Sockets that never sent or
              received a segment: they are being created, or were never connected. Sockets in a
              namespace that was not inspected.
What ends it  close() by the owner, or its restart.
Won't help    ss -K or SOCK_DESTROY: there is no connection left to destroy.
Reproduce     finwait lab run hidden-leak
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np

from finwait.diagnosis.finding import Advice, Confidence, Evidence, Remedy, Turn
from finwait.diagnosis.rule import Match, Rule
from finwait.diagnosis.rules import certain, likely, look_again
from finwait.diagnosis.view import View
from finwait.uapi import tcp

__all__ = ["RULE", "matches"]


def matches(view: View) -> list[Match]:
    """Return the processes that hold dead sockets, where they or their service hold enough of them."""
    if not view.hidden_known:
        return []
    by_pid: dict[int, list[int]] = {}
    spaces: dict[int, int] = {}
    ports: dict[int, Counter[int]] = {}
    unread = Counter[int]()
    for item in view.hidden:
        by_pid.setdefault(item.pid, []).append(item.fd)
        unread[item.pid] += item.unread > 0
        spaces.setdefault(item.pid, item.netns)
        ports.setdefault(item.pid, Counter())[item.sport] += 1
    of = view.services
    # Workers that were forked have copies of one socket: it counts once, but for each of them as its own.
    sockets = {(of.get(item.pid, item.pid), item.inode or (item.pid, item.fd)) for item in view.hidden}
    together = Counter(service for service, _ in sockets)
    result = []
    for pid, fds in sorted(by_pid.items()):
        if (whole := together[of.get(pid, pid)]) < view.options.hidden:
            continue
        process = view.processes.get(pid)
        ns = spaces.get(pid) or (process.netns if process and process.netns else 0)
        result.append(
            Match(
                np.empty(0, np.int64),
                netns=ns,
                pid=pid,
                count=len(fds),
                cells={"state": tcp.CLOSE, "protocol": 6},
                ports=() if 0 in ports[pid] else tuple(sorted(ports[pid])),
                evidence=(*_descriptors(pid, fds, whole), *_ports(ports[pid]), *_allocated(view, ns)),
                subject=f"pid {pid} ({process.comm if process else '?'})",
                confidence=_doubt(view, unread[pid], len(fds)),
            )
        )
    return result


def _descriptors(pid: int, fds: list[int], whole: int) -> Iterator[Evidence]:
    """Yield the descriptors of a process, and how many all workers of its service have."""
    yield Evidence(
        "descriptors",
        f"{len(fds)}: fd {', '.join(map(str, fds[:6]))}{' …' if len(fds) > 6 else ''}",
        f"/proc/{pid}/fd, system.sockprotoname, TCP_INFO",
        "TCP sockets that are in no dump: they are in state CLOSE after sending or receiving segments",
    )
    if whole != len(fds):
        yield Evidence(
            "service",
            f"{whole} sockets",
            "/proc/PID/fd of its processes",
            "the total over all its workers; a socket of which several have a copy counts once",
        )


def _ports(ports: Counter[int]) -> Iterator[Evidence]:
    """Yield the local ports that the sockets still have: a port of a listener tells which service leaks."""
    known = [(port, n) for port, n in ports.most_common() if port]
    if known:
        shown = ", ".join(f"{port} ×{n}" for port, n in known[:_SHOWN])
        more = f" and {len(known) - _SHOWN} more" if len(known) > _SHOWN else ""
        yield Evidence(
            "local port",
            shown + more,
            "getsockname(2) of copies of the descriptors",
            "a socket keeps its local port when its connection is gone; the peer's address is lost",
        )


_SHOWN = 3


def _allocated(view: View, netns: int) -> Iterator[Evidence]:
    """Yield what the kernel counts of sockets that exist, where that was read."""
    space = view.namespaces.get(netns)
    if space is not None and "sockstat.TCP.alloc" in space.counters:
        used = sum(
            n.counters.get("sockstat.TCP.inuse", 0) + n.counters.get("sockstat6.TCP6.inuse", 0)
            for n in view.namespaces.values()
        )
        yield Evidence(
            "sockstat",
            f"alloc {space.counters['sockstat.TCP.alloc']}, inuse {used}",
            "/proc/net/sockstat",
            "alloc counts every TCP socket of the machine, including dead ones",
        )


_REPORTED = "the sockets themselves report that they are closed and were in use"


def _doubt(view: View, unread: int, count: int) -> Confidence | None:
    """Return how sure it is where a program may still read from some of its dead sockets; None where it cannot."""
    if not unread or not view.hidden_twice:
        return None
    return likely(
        f"{_REPORTED}, at both of two looks; {unread} of {count} have data that nobody has read: a program that reads "
        "slowly what came before the end looks the same"
    )


def _confidence(view: View, rows: object) -> Confidence:  # noqa: ARG001
    if view.hidden_twice:
        return certain(f"{_REPORTED}, at both of two looks")
    return look_again(f"{_REPORTED}; the program may be about to close them, check with `--for 5s`")


RULE = Rule(
    name="hidden-leak",
    title="descriptors of connections that are gone: still open, but invisible to ss",
    severity="problem",
    rank=50,
    harm="leak",
    turn=Turn("holder", "close()"),
    owners=True,
    means=None,
    beyond_sysctls="the connection is gone; only the descriptor is left in the process",
    claims=("C16", "X50"),
    clues=(),
    ends=(Remedy("fix the program to close() after an error; a restart closes the ones it holds now"),),
    does_not=(
        Advice(
            "`ss -K` or SOCK_DESTROY",
            "there is no connection left to destroy; only close() frees the descriptor",
        ),
    ),
    confidence=_confidence,
    matches=matches,
)
