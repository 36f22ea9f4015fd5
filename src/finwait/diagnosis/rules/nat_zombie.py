"""nat-zombie: one side was reset behind a NAT, and the other was never notified.

Seen as       ESTABLISHED with a conntrack entry that translates it to an address of this machine,
              where no such connection exists any more. It is a problem if other connections show
              that this address is reached; otherwise a notice, because another network may use the
              same address.
Why it stays  A packet was INVALID to conntrack (out of the window, or after its entry expired) and
              crossed untranslated. The RST that answered it killed only one side. The other side is
              silent, and so is conntrack, whose ESTABLISHED entry lives for five days.
Not this      The other end still exists. A backend on another machine: its state is not visible
              here.
What ends it  A keepalive probe (it draws a RST); SOCK_DESTROY; sending data.
Won't help    conntrack timeouts; tcp_fin_timeout.
Reproduce     finwait lab run nat-zombie
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from finwait.diagnosis.finding import Advice, Confidence, Evidence, Remedy, Severity, Turn
from finwait.diagnosis.rule import Case, Clue, Rule
from finwait.diagnosis.rules import NOT_FIN_TIMEOUT, absence, destroy, peer_absent, possible
from finwait.diagnosis.view import View
from finwait.uapi import tcp

__all__ = ["RULE", "match"]


def match(view: View) -> NDArray[np.bool_]:
    """Return which rows this rule explains."""
    return (
        view.in_state(tcp.ESTABLISHED, tcp.FIN_WAIT2)
        & view.held
        & view.has_flow
        & view.flow_natted
        & peer_absent(view)
    )


def _unreached(view: View) -> NDArray[np.bool_]:
    return ~view.peer_reached


def _grade(view: View, rows: NDArray[np.int64]) -> Severity:
    return "notice" if _unreached(view)[rows].all() else "problem"


def _confidence(view: View, rows: NDArray[np.int64]) -> Confidence:
    if view.peer_reached[rows].all():
        return absence(
            view, "the translated address is on this machine, and no socket there has this connection"
        )
    return possible(
        "a namespace here has the translated address but no such connection; another network may use the "
        "same address"
    )


def _observe(view: View, rows: NDArray[np.int64]) -> tuple[Evidence, ...]:
    result = [
        Evidence(
            "conntrack entry",
            f"{int(view.flow_timeout_s[rows].min())} s left",
            "ctnetlink dump",
            "conntrack still considers the connection open",
        ),
        Evidence(
            "other end",
            f"absent ×{len(rows)}",
            "sock_diag in the backend's namespace",
            "it was reset or destroyed"
            if view.peer_reached[rows].all()
            else "a namespace with that address has no such connection, but nothing shows that it is the peer's",
        ),
    ]
    result += [
        Evidence(
            "conntrack invalid",
            str(ns.counters["conntrack.invalid"]),
            f"/proc/net/stat/nf_conntrack of {ns.label}",
            "packets that crossed untranslated or were dropped",
        )
        for ns in view.namespaces.values()
        if ns.counters.get("conntrack.invalid")
    ]
    return tuple(result)


_CLUES = (
    Clue("state", "this end has not noticed anything"),
    Clue("timer", "0: nothing will notify it"),
    Clue("last_ack_recv_ms", "time since anything was last heard from the peer"),
)
_KEEPALIVE = Remedy(
    "arm keepalive on the socket (pidfd_getfd): a live peer answers; a peer that is gone draws a RST",
    "reversible",
    "finwait clear nat-zombie",
)
_DOES_NOT = (
    Advice("lower `nf_conntrack_tcp_timeout_established`", "the entry goes and the socket stays"),
    NOT_FIN_TIMEOUT,
)

RULE = Rule(
    name="nat-zombie",
    title="the other end behind the NAT is gone, and this end was never notified",
    severity="problem",
    rank=15,
    harm="leak",
    turn=Turn("you", "keepalive"),
    means="keepalive",
    beyond_sysctls="one end is already gone, and nothing asks the other",
    claims=("C14", "X35", "X38"),
    clues=_CLUES,
    ends=(
        Remedy(
            "arm keepalive on the socket (pidfd_getfd): the probe draws a RST",
            "reversible",
            "finwait clear nat-zombie",
        ),
        destroy("nat-zombie"),
        Remedy("drop INVALID packets, or set `nf_conntrack_tcp_be_liberal=1`, to prevent the stray RST"),
    ),
    does_not=_DOES_NOT,
    confidence=_confidence,
    match=match,
    observe=_observe,
    grade=_grade,
    cases=(
        Case(
            title=(
                "the other end behind the NAT may be gone: a namespace here has its address but no such "
                "connection"
            ),
            rows=_unreached,
            clues=_CLUES,
            ends=(_KEEPALIVE,),
            does_not=_DOES_NOT,
        ),
    ),
)
