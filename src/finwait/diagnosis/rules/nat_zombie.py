"""nat-zombie: one side was reset behind a NAT, and the other was never told.

Seen as       ESTABLISHED with a conntrack entry that translates it to an address of this machine, where no
              such connection exists any more. A problem where other connections show that this address is reached;
              else a notice, for another network may have the same address.
Why it stays  A packet was INVALID to conntrack (out of the window, or after its entry expired) and crossed
              untranslated; the RST that answered it killed one side only. The other is silent, and so is
              conntrack, whose ESTABLISHED entry lives for five days.
Not this      An other end that is there. A backend on another machine: what became of it cannot be seen.
What ends it  A keepalive probe (it draws a RST); SOCK_DESTROY; sending data.
What does not conntrack timeouts; tcp_fin_timeout.
Reproduce     finwait lab run nat-zombie
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from finwait.diagnosis.finding import Advice, Confidence, Evidence, Remedy, Severity
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
        "a namespace here has the translated address and no such connection, but another network may have it too"
    )


def _observe(view: View, rows: NDArray[np.int64]) -> tuple[Evidence, ...]:
    result = [
        Evidence(
            "conntrack entry",
            f"{int(view.flow_timeout_s[rows].min())} s left",
            "ctnetlink dump",
            "conntrack still believes in the connection",
        ),
        Evidence(
            "other end",
            f"absent ×{len(rows)}",
            "sock_diag in the backend's namespace",
            "it was reset or destroyed"
            if view.peer_reached[rows].all()
            else "no such connection in a namespace with that address; nothing shows that it is the peer's",
        ),
    ]
    result += [
        Evidence(
            "conntrack invalid",
            str(ns.counters["conntrack.invalid"]),
            f"/proc/net/stat/nf_conntrack of {ns.label}",
            "packets that crossed untranslated, or were dropped",
        )
        for ns in view.namespaces.values()
        if ns.counters.get("conntrack.invalid")
    ]
    return tuple(result)


_CLUES = (
    Clue("state", "this end knows of nothing"),
    Clue("timer", "0: and nothing will tell it"),
    Clue("last_ack_recv_ms", "since anything was last heard of the peer"),
)
_KEEPALIVE = Remedy(
    "arm a keepalive on the socket (pidfd_getfd): a live peer answers, and one that is gone draws a RST",
    "reversible",
    "finwait clear nat-zombie",
)
_DOES_NOT = (
    Advice("lower `nf_conntrack_tcp_timeout_established`", "the entry goes, the socket stays"),
    NOT_FIN_TIMEOUT,
)

RULE = Rule(
    name="nat-zombie",
    title="the other end behind the NAT is gone, and this end was never told",
    severity="problem",
    rank=15,
    means="keepalive",
    beyond_sysctls="one end is already gone and nothing asks the other",
    claims=("C14", "X35", "X38"),
    clues=_CLUES,
    ends=(
        Remedy(
            "arm a keepalive on the socket (pidfd_getfd): the probe draws a RST",
            "reversible",
            "finwait clear nat-zombie",
        ),
        destroy("nat-zombie"),
        Remedy("drop INVALID packets, or `nf_conntrack_tcp_be_liberal=1`, prevents the stray RST"),
    ),
    does_not=_DOES_NOT,
    confidence=_confidence,
    match=match,
    observe=_observe,
    grade=_grade,
    cases=(
        Case(
            title="the other end behind the NAT may be gone: a namespace here has its address, and no such connection",
            rows=_unreached,
            clues=_CLUES,
            ends=(_KEEPALIVE,),
            does_not=_DOES_NOT,
        ),
    ),
)
