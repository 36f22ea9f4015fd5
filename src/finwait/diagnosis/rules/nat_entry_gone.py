"""nat-entry-gone: conntrack forgot the address translation while the connection was half-closed.

Seen as       A client retransmits its FIN (LAST_ACK or FIN_WAIT1, timer 1) to a service address. A
              server end with the same client address and port, but another local address, waits in
              FIN_WAIT2 or ESTABLISHED. No conntrack entry joins the two although all entries were
              read; a namespace here has counted packets without an entry; and each end has received
              what the other had acknowledged.
Why it stays  The entry expired: 60 s after a half-close with the kernel's default, sooner if
              somebody lowered nf_conntrack_tcp_timeout_close_wait. A FIN cannot create a new entry
              (it is INVALID), so it is never translated and never reaches the server.
Not this      An entry that still exists: it then joins the two ends.
What ends it  Destroying *both* ends: the RST of one does not reach the other either.
Won't help    Lower conntrack timeouts (they are the cause); tcp_fin_timeout;
              nf_conntrack_tcp_be_liberal.
Reproduce     finwait lab run nat-entry-gone
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from finwait.diagnosis.finding import Advice, Confidence, Evidence, Remedy, Turn
from finwait.diagnosis.rule import Clue, Rule
from finwait.diagnosis.rules import NOT_FIN_TIMEOUT, likely, possible
from finwait.diagnosis.view import NamespaceView, View
from finwait.uapi import tcp

__all__ = ["RULE", "match"]

_SYN_AND_FIN = 2
"""What `bytes_acked` of an end that opened a connection reaches without a byte of data."""


def match(view: View) -> NDArray[np.bool_]:
    """Return which rows this rule explains: both ends."""
    paired = (view.other_how == 3) & (view.other >= 0)
    states = view.in_state(
        tcp.FIN_WAIT1, tcp.FIN_WAIT2, tcp.LAST_ACK, tcp.CLOSE_WAIT, tcp.CLOSING, tcp.ESTABLISHED
    )
    return paired & states


def _confidence(view: View, rows: NDArray[np.int64]) -> Confidence:
    s = view.sockets
    most = np.maximum(s.bytes_acked, s.bytes_received)
    # An end that never exchanged a byte counts up to 2, its SYN and its FIN, and the counts of two ends agree within 2.
    if (np.minimum(most[rows], most[view.other[rows]]) <= _SYN_AND_FIN).any():
        return possible(
            "one client address and port, two service addresses, and no conntrack entry that joins them; but "
            "too few bytes were exchanged to tell them from ends of different connections"
        )
    return likely(
        "one client address and port, two service addresses, byte counts that agree in both directions, and no "
        "conntrack entry that joins them"
    )


def _translating(view: View, rows: NDArray[np.int64]) -> list[NamespaceView]:
    """Return the namespaces that may have lost the entry: those of the ends, or else any."""
    lost = [ns for ns in view.namespaces.values() if ns.counters.get("conntrack.invalid")]
    own = set(view.sockets.netns[rows].tolist())
    return [ns for ns in lost if ns.inode in own] or lost


def _observe(view: View, rows: NDArray[np.int64]) -> tuple[Evidence, ...]:
    result = []
    for ns in _translating(view, rows):
        invalid = ns.counters["conntrack.invalid"]
        timeout = ns.sysctl("netfilter/nf_conntrack_tcp_timeout_close_wait")
        result.append(
            Evidence(
                "conntrack invalid",
                str(invalid),
                f"/proc/net/stat/nf_conntrack of {ns.label}",
                "packets without an entry; an untranslated FIN counts as one",
            )
        )
        if timeout is not None:
            result.append(
                Evidence(
                    "nf_conntrack_tcp_timeout_close_wait",
                    f"{timeout} s",
                    f"/proc/sys/net/netfilter of {ns.label}",
                    "a half-closed connection that is silent for longer loses its translation",
                )
            )
    states = sorted({tcp.state_name(int(x)) for x in view.sockets.state[rows]})
    result.append(
        Evidence("ends", " and ".join(states), "sock_diag in both namespaces", "each end waits for the other")
    )
    return tuple(result)


RULE = Rule(
    name="nat-entry-gone",
    title="conntrack forgot the address translation; neither end can reach the other any more",
    severity="problem",
    rank=15,
    harm="stall",
    turn=Turn("you", "end both"),
    means="destroy",
    path_lost=True,
    beyond_sysctls="the address translation is gone; packets no longer reach the other end",
    claims=("C13", "S31", "X28", "X29", "X30"),
    clues=(
        Clue("state", "one end retransmits its FIN, the other waits for it"),
        Clue("timer", "1 on the client: nobody acknowledges its FIN"),
        Clue("retrans", "unanswered retransmissions in a row"),
    ),
    ends=(
        Remedy(
            "destroy both ends, because no RST crosses either; this command ends the ones below, and the "
            "other ends are a separate finding",
            "destructive",
            "finwait clear nat-entry-gone --override silent-orphan",
        ),
        Remedy(
            "enable keepalive at either end, more frequent than the conntrack timeout, to prevent the next one",
            proofs=("probes-and-expired-entries",),
        ),
        Remedy("set `nf_conntrack_tcp_timeout_close_wait` to kube-proxy's 1 h instead of 60 s", "reversible"),
    ),
    does_not=(
        Advice(
            "lower conntrack timeouts",
            "this causes the problem: the entry goes and the sockets stay",
            proofs=("nat-entry-gone",),
        ),
        Advice(
            "`nf_conntrack_tcp_be_liberal=1`",
            "it tolerates sequence numbers outside the window; a FIN without an entry stays INVALID",
            proofs=("window-rules-do-not-help",),
        ),
        NOT_FIN_TIMEOUT,
    ),
    confidence=_confidence,
    match=match,
    observe=_observe,
)
