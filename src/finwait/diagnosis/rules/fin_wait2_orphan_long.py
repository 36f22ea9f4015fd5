"""fin-wait2-orphan-long: an orphan kept as a full socket, mostly by a FIN timeout above 60 s.

Seen as       FIN_WAIT2 with inode 0, timer 2 and shutdown bits 3; all attributes are present.
Why it stays  tcp_fin_timeout or TCP_LINGER2 is above 60 s. The kernel then keeps the full socket on
              the keepalive timer for (T - 60) s, and a minisocket for another (T - 60) s. So above
              60 an orphan lives 2·(T - 60) s, not T: 62 gives 4 s, 200 gives 280 s
              (tcp_rcv_state_process and tcp_keepalive_timer in net/ipv4). Rarely it happens with T
              of 60 or below: the ACK of the FIN arrived while close() had the socket locked. The
              timer then runs for T s and ends the socket with a RST.
Not this      timer 3: the ordinary orphan. An inode with timer 2: keepalive on a held socket.
What ends it  Time. Values up to 60 mean what they say.
Won't help    Lowering tcp_fin_timeout now: it ends these only when their timer next fires.
Reproduce     finwait lab run fin-wait2-orphan-long
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from finwait.diagnosis import forecast
from finwait.diagnosis.finding import Advice, Confidence, Evidence, Remedy, Turn
from finwait.diagnosis.rule import Clue, Rule
from finwait.diagnosis.rules import certain, likely
from finwait.diagnosis.view import View
from finwait.uapi import tcp

__all__ = ["RULE", "match"]


def match(view: View) -> NDArray[np.bool_]:
    """Return which rows this rule explains."""
    return view.in_state(tcp.FIN_WAIT2) & ~view.held & (view.sockets.timer == 2)


def _timeout(view: View, rows: NDArray[np.int64]) -> tuple[int, int | None]:
    ns = view.namespaces.get(int(view.sockets.netns[rows[0]]))
    return (ns.inode, ns.sysctl("ipv4/tcp_fin_timeout")) if ns else (0, None)


def _confidence(view: View, rows: NDArray[np.int64]) -> Confidence:
    _, value = _timeout(view, rows)
    if value is not None and value > 60:
        return certain(
            "an orphan is on the keepalive timer, and tcp_fin_timeout of its namespace is above 60 s"
        )
    return likely(
        "either the program set TCP_LINGER2 above 60, or (about one close in thousands) the ACK of the FIN "
        "arrived while close() had the socket locked; both end by themselves"
    )


def _observe(view: View, rows: NDArray[np.int64]) -> tuple[Evidence, ...]:
    inode, value = _timeout(view, rows)
    if value is None:
        return ()
    says = (
        "above 60: every orphan of this namespace is kept this way"
        if value > 60
        else "60 or less: not the cause"
    )
    return (
        Evidence(
            "tcp_fin_timeout", f"{value} s", f"/proc/sys/net/ipv4/tcp_fin_timeout of netns {inode}", says
        ),
    )


RULE = Rule(
    name="fin-wait2-orphan-long",
    title="closed by its program and kept as a full socket for longer; goes away by itself",
    severity="notice",
    rank=20,
    harm="residue",
    turn=Turn("kernel"),
    means="by-state",
    beyond_sysctls="it goes away when its own timer fires",
    claims=("C2b", "X01", "X02"),
    clues=(
        Clue("state", "our FIN was acknowledged"),
        Clue("inode", "0: no descriptor refers to it any more"),
        Clue("timer", "2: the FIN timer uses the keepalive timer's field"),
        Clue("expires_ms", "time until it becomes a minisocket, which then lives as long again"),
        Clue("shutdown", "3: both directions are shut"),
    ),
    ends=(
        Remedy("it goes away by itself; keep tcp_fin_timeout and TCP_LINGER2 at 60 or below", "read-only"),
    ),
    does_not=(
        Advice(
            "set `tcp_fin_timeout` above 60",
            f"an orphan then lives 2·(T − 60) s: 61 means {forecast.text(forecast.fin_wait2_orphan_s(61))}, "
            f"200 means {forecast.text(forecast.fin_wait2_orphan_s(200))}",
            proofs=("lifetimes-above-sixty",),
        ),
    ),
    confidence=_confidence,
    match=match,
    observe=_observe,
)
