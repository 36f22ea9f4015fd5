"""half-open: the other end has forgotten this connection and tries to open a new one.

Seen as       ESTABLISHED (or a closing state) whose other end on this machine, with the same
              addresses and ports, is in SYN_SENT and has retransmitted its SYN. Both ends are
              reported. RFC 9293 calls this half-open (3.5.1).
Why it stays  The other end lost its state (a crash, a power failure, a restored snapshot) and came
              back on the same port. The SYN is answered with a challenge ACK (RFC 5961), which
              draws a RST. That RST would end the old end at once, but something drops one of the
              two segments: a filter, or connection tracking that calls it INVALID.
Not this      A handshake in progress: its SYN was not retransmitted. TIME_WAIT against SYN_SENT:
              the SYN is accepted.
What ends it  A keepalive probe from the old end: it draws a RST, or no answer. Either one ends it,
              and the next SYN gets in. SOCK_DESTROY of the old end. Letting the challenge ACK and
              its RST pass.
Won't help    Restarting the side in SYN_SENT, or waiting for it: its next SYN meets the same old
              end.
Reproduce     finwait lab run half-open
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from finwait.diagnosis.finding import Advice, Confidence, Evidence, Remedy, Turn
from finwait.diagnosis.rule import Case, Clue, Rule
from finwait.diagnosis.rules import MOMENT_MS, NOT_FIN_TIMEOUT, certain, destroy, silence
from finwait.diagnosis.view import View
from finwait.uapi import tcp
from finwait.uapi.sets import distinct

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
    return certain("both ends are on this machine, and one of them does not know the other's connection")


def _observe(view: View, rows: NDArray[np.int64]) -> tuple[Evidence, ...]:
    s = view.sockets
    result = []
    other = view.other[rows]
    for state in distinct(s.state[other]).tolist():
        n = int((s.state[other] == state).sum())
        says = "still has the old connection and accepts no SYN for it"
        if state == tcp.SYN_SENT:
            says = "is opening a connection on the same addresses and ports"
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
            "without a usable answer",
        )
    )
    old = np.where(s.state[rows] == tcp.SYN_SENT, other, rows)
    for number in distinct(s.netns[old]).tolist():
        ns = view.namespaces.get(number)
        if ns is not None and (value := ns.counters.get("TcpExt.TCPSYNChallenge")):
            grown = ns.grown("TcpExt.TCPSYNChallenge")
            more = "" if grown is None else f" (+{grown} in {view.watched_ms / 1000:.1f} s)"
            result.append(
                Evidence(
                    "TCPSYNChallenge",
                    f"{value}{more}",
                    f"/proc/net/netstat of {ns.label}",
                    "SYNs for an existing connection, each answered with a challenge ACK",
                )
            )
    return tuple(result)


_LET_PASS = Remedy(
    "let the challenge ACK and the answering RST pass: find the filter or connection tracking that drops one "
    "of them"
)
_CLUES = (
    Clue("state", "the state at this end"),
    Clue("timer", "0: nothing is in flight, and no keepalive would notice"),
    Clue("last_ack_recv_ms", "time since this end last heard from the old connection"),
)
_DOES_NOT = (
    Advice(
        "restart the side in SYN_SENT, or wait for it",
        "its next SYN from this port meets the same old connection",
        proofs=("half-open-heals",),
    ),
    NOT_FIN_TIMEOUT,
)

RULE = Rule(
    name="half-open",
    title="the other end has forgotten this connection, which now blocks its new one",
    severity="problem",
    rank=12,
    harm="outage",
    turn=Turn("you", "end the old one"),
    means="keepalive",
    beyond_sysctls="it makes neither end give up sooner: the old one is idle, and every new SYN meets it",
    claims=("C9b", "X56"),
    clues=_CLUES,
    ends=(
        Remedy(
            "probe this end: a keepalive draws a RST, or no answer; either one ends it, and the next SYN gets in",
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
            title="the other end still has an old connection on this port and answers no SYN",
            rows=_opening,
            clues=(
                Clue("state", "it is opening a connection and gets no usable answer"),
                Clue("timer", "1: the SYN is being retransmitted"),
                Clue("retrans", "SYNs without a usable answer"),
            ),
            ends=(Remedy("end the old connection at its other end (reported next to this one)"), _LET_PASS),
            does_not=_DOES_NOT,
        ),
    ),
)
