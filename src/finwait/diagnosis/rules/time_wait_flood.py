"""time-wait-flood: so many TIME_WAIT that ports or buckets may run out.

Seen as       TIME_WAIT sockets of one namespace that fill half of the ephemeral ports to one
              destination, or half of tcp_max_tw_buckets, or number more than `--flood` (10,000).
Why it stays  The side that closes first keeps TIME_WAIT for 60 s, a constant of the kernel. If this
              side closes many short connections, it has many of them. Each costs little and goes
              away by itself.
Not this      TIME_WAIT in normal numbers, which is healthy.
What ends it  Time. Keeping connections open, or letting the other side close first, makes fewer.
Won't help    tcp_fin_timeout (the 60 s are compiled in); tcp_rfc1337; tcp_tw_recycle (removed in
              4.12); linger 0.
Reproduce     finwait lab run time-wait-flood
"""

from __future__ import annotations

import numpy as np

from finwait.attribution.join import largest_group
from finwait.diagnosis.finding import Advice, Confidence, Evidence, Remedy, Turn
from finwait.diagnosis.rule import Clue, Match, Rule
from finwait.diagnosis.rules import certain
from finwait.diagnosis.view import NamespaceView, View
from finwait.uapi import tcp
from finwait.uapi.sets import distinct

__all__ = ["RULE", "matches"]


def _ports(ns: NamespaceView) -> int:
    words = ns.sysctls.get("ipv4/ip_local_port_range", "").split()
    if len(words) == 2 and all(w.isdigit() for w in words):
        return max(int(words[1]) - int(words[0]) + 1, 1)
    return 0


def matches(view: View) -> list[Match]:
    """Return the namespaces that have too many."""
    s = view.sockets
    waiting = np.flatnonzero(view.in_state(tcp.TIME_WAIT))
    result: list[Match] = []
    if not len(waiting):
        return result
    for number in distinct(s.netns[waiting]).tolist():
        rows = waiting[s.netns[waiting] == number]
        ns = view.namespaces.get(number, NamespaceView(number))
        evidence = [
            Evidence(
                "TIME_WAIT", str(len(rows)), "sock_diag", f"of netns {ns.names[0] if ns.names else number}"
            ),
        ]
        # Towards one destination every connection needs a local port of its own.
        worst = largest_group((s.src[rows, 1], s.dst[rows, 0], s.dst[rows, 1], s.dport[rows]))
        ports = _ports(ns)
        buckets = ns.sysctl("ipv4/tcp_max_tw_buckets")
        bad = len(rows) >= view.options.flood
        if ports and worst * 2 >= ports:
            bad = True
            evidence.append(
                Evidence(
                    "ip_local_port_range",
                    f"{worst} of {ports} ports",
                    "/proc/sys/net/ipv4/ip_local_port_range",
                    "in TIME_WAIT to one destination; new connections there may fail (EADDRNOTAVAIL)",
                )
            )
        if buckets and len(rows) * 2 >= buckets:
            bad = True
            evidence.append(
                Evidence(
                    "tcp_max_tw_buckets",
                    f"{len(rows)} of {buckets}",
                    "/proc/sys/net/ipv4/tcp_max_tw_buckets",
                    "above this limit, sockets close at once without TIME_WAIT, and orphans without FIN_WAIT2",
                )
            )
        overflow = ns.counters.get("TcpExt.TCPTimeWaitOverflow", 0)
        if overflow:
            evidence.append(
                Evidence(
                    "TCPTimeWaitOverflow",
                    str(overflow),
                    "/proc/net/netstat",
                    "how often the limit was hit since boot",
                )
            )
        if bad:
            result.append(Match(rows, netns=number, count=len(rows), evidence=tuple(evidence)))
    return result


def _confidence(view: View, rows: object) -> Confidence:  # noqa: ARG001
    return certain("counted")


RULE = Rule(
    name="time-wait-flood",
    title="very many TIME_WAIT; they go away by themselves, but ports or buckets may run out",
    severity="notice",
    rank=50,
    harm="residue",
    turn=Turn("kernel"),
    means=None,
    beyond_sysctls="TIME_WAIT lasts 60 s, a constant compiled into the kernel",
    claims=("C15", "X03", "X41", "S22"),
    clues=(Clue("timer", "3: each counts down from 60 s"), Clue("expires_ms", "time left")),
    ends=(
        Remedy("reuse connections (pools, keep-alive), or let the other side close first"),
        Remedy(
            "set `tcp_tw_reuse=1` for outgoing connections (reuse after 1 s, with timestamps)",
            "reversible",
            proofs=("port-reuse",),
        ),
        Remedy("use a wider `ip_local_port_range`, or more source addresses", "reversible"),
    ),
    does_not=(
        Advice(
            "lower `net.ipv4.tcp_fin_timeout`",
            "TIME_WAIT lasts 60 s, compiled in; that sysctl applies to FIN_WAIT2",
            proofs=("time-wait-is-constant",),
        ),
        Advice(
            "`tcp_rfc1337`",
            "it makes TIME_WAIT ignore a RST, so TIME_WAIT lasts longer if anything",
            proofs=("reset-in-time-wait",),
        ),
        Advice(
            "SO_LINGER with 0 seconds",
            "it avoids TIME_WAIT by sending a RST, and discards unsent data",
            proofs=("linger-zero",),
        ),
        Advice("`tcp_tw_recycle`", "it was removed in Linux 4.12, and it broke clients behind NAT"),
    ),
    confidence=_confidence,
    matches=matches,
)
