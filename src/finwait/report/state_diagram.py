"""The TCP state diagram as text, with how many connections are in each state and how many pass each second.

The picture that says where things pile up: a state whose inflow is larger than its outflow grows. Made for
80 columns and no colour.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finwait.report.json import addresses
from finwait.table.sockets import SocketTable
from finwait.uapi import tcp

__all__ = ["GROUPINGS", "diagram", "groups"]

GROUPINGS = ("state", "peer", "local port", "netns", "cgroup")
"""What connections can be grouped by."""


def _count(counts: Mapping[int, int], state: int) -> str:
    return f"{tcp.STATES[state]} {counts.get(state, 0):,}"


def _rate(flows: Mapping[tuple[int, int], float] | None, *edges: tuple[int, int]) -> str:
    if flows is None:
        return ""
    rate = sum(flows.get(edge, 0.0) for edge in edges)
    if rate == 0:
        return "-"
    return f"{rate:.1f}/s" if rate < 100 else f"{rate:,.0f}/s"


def diagram(counts: Mapping[int, int], flows: Mapping[tuple[int, int], float] | None) -> list[str]:
    """Return the diagram as lines of at most 79 characters.

    Args:
        counts: state → connections in it.
        flows: (old, new) → transitions a second; None when they are not known (polling).
    """

    def c(state: int) -> str:
        return _count(counts, state)

    def r(*edges: tuple[int, int]) -> str:
        return _rate(flows, *edges)

    e, w1, w2, tw, cl = tcp.ESTABLISHED, tcp.FIN_WAIT1, tcp.FIN_WAIT2, tcp.TIME_WAIT, tcp.CLOSE
    cw, la, cg, sr, ss, li = tcp.CLOSE_WAIT, tcp.LAST_ACK, tcp.CLOSING, tcp.SYN_RECV, tcp.SYN_SENT, tcp.LISTEN
    left = f"{c(li):<18}--{r((li, sr)):-^10}-> {c(sr)}"
    lines = [
        left,
        f"{'(connect)':<18}--{r((cl, ss)):-^10}-> {c(ss)}",
        f"{'':18}  accepted {r((sr, e)):>10}   connected {r((ss, e)):>10}",
        f"{'':30}{c(e):^20}",
        f"{'we close first':>30}{r((e, w1)):>10} /  \\ {r((e, cw)):<10}the peer closes first",
        f"{'':8}{c(w1):<31}     {c(cw)}",
        f"{'':8}{'FIN acknowledged ' + r((w1, w2)):<36}{'we close too ' + r((cw, la))}",
        f"{'':8}{c(w2):<18}{c(cg):<18}{c(la)}",
        f"{'':8}{'done ' + r((w2, cl)):<18}{'done ' + r((cg, cl)):<18}{'done ' + r((la, cl))}",
        f"{'':8}{c(tw):<36}(closed)",
        f"reset or destroyed: {r((e, cl), (w1, cl), (cw, cl), (ss, cl), (sr, cl)) or 'not known'}",
    ]
    return [line.rstrip() for line in lines]


def groups(
    sockets: SocketTable,
    by: str,
    names: Mapping[int, Sequence[str]],
    paths: Mapping[int, str],
    *,
    most: int = 200,
) -> list[tuple[str, int, dict[int, int]]]:
    """Return the largest groups: (label, connections, state → connections).

    Args:
        sockets: connections, listeners left out by the caller.
        by: one of `GROUPINGS`.
        names: namespace → what people call it.
        paths: cgroup id → path.
        most: groups to return.

    Raises:
        ValueError: no such grouping.
    """
    key: NDArray[Any]
    if by == "state":
        key = sockets["state"].astype(np.uint64)
    elif by == "peer":
        key = sockets["dst"][:, 0] * np.uint64(0x9E3779B97F4A7C15) ^ sockets["dst"][:, 1]
    elif by == "local port":
        key = sockets["sport"].astype(np.uint64)
    elif by == "netns":
        key = sockets["netns"].astype(np.uint64)
    elif by == "cgroup":
        key = sockets["cgroup_id"].astype(np.uint64)
    else:
        raise ValueError(f"connections cannot be grouped by {by}")
    if not len(key):
        return []
    values, first, inverse, counts = np.unique(
        key, return_index=True, return_inverse=True, return_counts=True
    )
    state = sockets["state"].astype(np.int64)
    matrix = np.bincount(inverse.reshape(-1) * 16 + state, minlength=len(values) * 16).reshape(-1, 16)
    order = np.argsort(-counts, kind="stable")[:most]
    peers = addresses(sockets["dst"][first[order]]) if by == "peer" else []
    out = []
    for place, group in enumerate(order.tolist()):
        value = int(values[group])
        if by == "state":
            label = tcp.STATES.get(value, str(value))
        elif by == "peer":
            label = peers[place]
        elif by == "netns":
            label = next(iter(names.get(value, ())), str(value))
        elif by == "cgroup":
            label = paths.get(value, "removed" if value else "unknown (minisockets have none)")
        else:
            label = str(value)
        states = {s: int(n) for s, n in enumerate(matrix[group].tolist()) if n}
        out.append((label, int(counts[group]), states))
    return out
