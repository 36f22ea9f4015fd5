"""half-open: this end believes in a connection that its other end has forgotten, and tries to open anew.

Seen as       ESTABLISHED (or a closing state) whose other end on this machine, the same addresses and ports, is in
              SYN_SENT and has sent its SYN again. Both are told. RFC 9293 calls this half-open (3.5.1).
Why it stays  The other end lost its state (a crash, a power failure, a restored snapshot) and came back on the same
              port. The SYN is answered with a challenge ACK (RFC 5961), and the RST that this draws would end the old
              end at once. Something drops one of the two: a filter, or connection tracking that calls it INVALID.
Not this      A handshake in progress: its SYN was not sent again. TIME_WAIT against SYN_SENT: the SYN is taken.
What ends it  A keepalive probe of the old end: it draws a RST, or nobody answers; either ends it, and the next SYN
              gets in. SOCK_DESTROY of the old end. Letting the challenge ACK and its RST pass.
What does not Restarting the side in SYN_SENT, or waiting for it: its next SYN meets the same old end.
Reproduce     finwait lab run half-open
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from finwait.diagnosis.finding import Advice, Confidence, Evidence, Remedy
from finwait.diagnosis.rule import Case, Clue, Rule
from finwait.diagnosis.rules import MOMENT_MS, NOT_FIN_TIMEOUT, certain, destroy, silence
from finwait.diagnosis.view import View
from finwait.uapi import tcp

__all__ = ["RULE", "match"]


def match(view: View) -> NDArray[np.bool_]:
    """Return which rows this rule explains: both ends."""
    old = _old(view)
    mask = old.copy()
    mask[view.other[old]] = True
    return mask


def _old(view: View) -> NDArray[np.bool_]:
    """Return the ends that are of a connection which their other end does not know any more."""
    s = view.sockets
    other = np.maximum(view.other, 0)
    opens = (view.other >= 0) & np.isin(view.other_how, (1, 2)) & (s.state[other] == tcp.SYN_SENT)
    known = view.in_state(
        tcp.ESTABLISHED, tcp.FIN_WAIT1, tcp.FIN_WAIT2, tcp.CLOSE_WAIT, tcp.LAST_ACK, tcp.CLOSING
    )
    quiet = silence(view, "last_data_sent_ms", "last_data_recv_ms", "last_ack_recv_ms")
    # Namespaces are dumped one after the other: a handshake may have been completed in between.
    late = np.where(quiet < 0, s.retrans[other] >= 2, (s.retrans[other] >= 1) & (quiet >= MOMENT_MS))
    old: NDArray[np.bool_] = opens & known & (s.timer != 3) & late
    return old


def _opening(view: View) -> NDArray[np.bool_]:
    return view.in_state(tcp.SYN_SENT)


def _confidence(view: View, rows: NDArray[np.int64]) -> Confidence:  # noqa: ARG001
    return certain("both ends are on this machine, and one of them knows nothing of the other's connection")


def _observe(view: View, rows: NDArray[np.int64]) -> tuple[Evidence, ...]:
    s = view.sockets
    result = []
    other = view.other[rows]
    for state in np.unique(s.state[other]).tolist():
        n = int((s.state[other] == state).sum())
        says = "still has the old connection, and takes no SYN for it"
        if state == tcp.SYN_SENT:
            says = "opens a connection on the same addresses and ports"
        where = "sock_diag in the other end's namespace"
        result.append(Evidence("other end", f"{tcp.state_name(state)} ×{n}", where, says))
    opening = np.where(s.state[rows] == tcp.SYN_SENT, rows, other)
    tries = s.retrans[opening]
    low, high = int(tries.min()), int(tries.max())
    result.append(
        Evidence(
            "SYN sent again",
            f"{low} times" if low == high else f"{low} … {high} times",
            "inet_diag_msg.idiag_retrans of the end in SYN_SENT",
            "without an answer that it could use",
        )
    )
    old = np.where(s.state[rows] == tcp.SYN_SENT, other, rows)
    for number in np.unique(s.netns[old]).tolist():
        ns = view.namespaces.get(number)
        if ns is not None and (value := ns.counters.get("TcpExt.TCPSYNChallenge")):
            grown = ns.grown("TcpExt.TCPSYNChallenge")
            more = "" if grown is None else f" (+{grown} in {view.watched_ms / 1000:.1f} s)"
            result.append(
                Evidence(
                    "TCPSYNChallenge",
                    f"{value}{more}",
                    f"/proc/net/netstat of {ns.label}",
                    "SYNs for a connection that is there, each answered with a challenge ACK",
                )
            )
    return tuple(result)


_LET_PASS = Remedy(
    "let the challenge ACK and the RST that answers it pass: find the filter or the connection tracking that drops one"
)
_CLUES = (
    Clue("state", "what this end believes"),
    Clue("timer", "0: nothing is in flight, and no keepalive would notice"),
    Clue("last_ack_recv_ms", "since this end heard of the old connection"),
)
_DOES_NOT = (
    Advice(
        "restart the side in SYN_SENT, or wait for it",
        "its next SYN from this port meets the same old end",
        proofs=("half-open-heals",),
    ),
    NOT_FIN_TIMEOUT,
)

RULE = Rule(
    name="half-open",
    title="the other end has forgotten this connection, and cannot open a new one because of it",
    severity="problem",
    rank=12,
    means="keepalive",
    beyond_sysctls="neither end gives up sooner by it: the old one is idle, and every new SYN meets it",
    claims=("C9b", "X56"),
    clues=_CLUES,
    ends=(
        Remedy(
            "probe this end: a keepalive draws a RST, or no answer at all; both end it, and the next SYN gets in",
            "reversible",
            "finwait probe rule = half-open and not state syn-sent",
            proofs=("half-open-heals",),
        ),
        destroy("half-open"),
        _LET_PASS,
    ),
    does_not=_DOES_NOT,
    confidence=_confidence,
    match=match,
    observe=_observe,
    cases=(
        Case(
            title="the other end still has an old connection on this port, and answers no SYN",
            rows=_opening,
            clues=(
                Clue("state", "it opens a connection, and nothing that it can use comes back"),
                Clue("timer", "1: the SYN is being sent again"),
                Clue("retrans", "SYNs without an answer"),
            ),
            ends=(Remedy("end the old connection at its other end, which is told beside this"), _LET_PASS),
            does_not=_DOES_NOT,
        ),
    ),
)
