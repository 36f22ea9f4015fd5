"""nat-entry-gone: conntrack forgot the translation while the connection was half-closed.

Seen as       A client retransmits its FIN (LAST_ACK or FIN_WAIT1, timer 1) to a service address, and a server
              end with the same client address and port waits in FIN_WAIT2 or ESTABLISHED, but with another
              local address; no conntrack entry joins the two, all entries were read, a namespace here has
              counted packets without an entry, and what each end has received the other had acknowledged.
Why it stays  The entry expired: 60 s after a half-close by the kernel's default, sooner where somebody lowered
              nf_conntrack_tcp_timeout_close_wait. A FIN cannot make a new entry (it is INVALID), so it is
              never translated and never reaches the server.
Not this      An entry that still exists: then the two ends are joined by it.
What ends it  Destroying *both* ends: the RST of one does not reach the other either.
What does not Lower conntrack timeouts (the cause); tcp_fin_timeout; nf_conntrack_tcp_be_liberal.
Reproduce     finwait lab run nat-entry-gone
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from finwait.diagnosis.finding import Advice, Confidence, Evidence, Remedy
from finwait.diagnosis.rule import Clue, Rule
from finwait.diagnosis.rules import NOT_FIN_TIMEOUT, likely, possible
from finwait.diagnosis.view import NamespaceView, View
from finwait.uapi import tcp

__all__ = ["RULE", "match"]


def match(view: View) -> NDArray[np.bool_]:
    """Return which rows this rule explains: both ends."""
    paired = (view.other_how == 3) & (view.other >= 0)
    states = view.in_state(
        tcp.FIN_WAIT1, tcp.FIN_WAIT2, tcp.LAST_ACK, tcp.CLOSE_WAIT, tcp.CLOSING, tcp.ESTABLISHED
    )
    return paired & states


def _confidence(view: View, rows: NDArray[np.int64]) -> Confidence:
    s = view.sockets
    if (np.maximum(s.bytes_acked, s.bytes_received)[rows] <= 2).any():
        return possible(
            "one client address and port, two service addresses, no conntrack entry that joins them; but no byte was "
            "exchanged by which the two could be told from ends of different connections"
        )
    return likely(
        "one client address and port, two service addresses, the same number of bytes each way, and no conntrack "
        "entry that joins them"
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
                "packets that matched no entry: an untranslated FIN is one of them",
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
    title="conntrack forgot the translation: neither end can reach the other any more",
    severity="problem",
    rank=15,
    means="destroy",
    path_lost=True,
    beyond_sysctls="the address translation is already forgotten; packets no longer reach the other end",
    claims=("C13", "S31", "X28", "X29", "X30"),
    clues=(
        Clue("state", "one end retransmits its FIN, the other waits for it"),
        Clue("timer", "1 on the client: nobody acknowledges"),
        Clue("retrans", "retransmissions in a row without answer"),
    ),
    ends=(
        Remedy(
            "destroy both ends, for no RST crosses either: this command ends those below, and the other ends are a "
            "finding of their own",
            "destructive",
            "finwait clear nat-entry-gone --override silent-orphan",
        ),
        Remedy(
            "keepalive more often than the conntrack timeout, on either end, prevents the next one",
            proofs=("probes-and-expired-entries",),
        ),
        Remedy("`nf_conntrack_tcp_timeout_close_wait` at kube-proxy's 1 h instead of 60 s", "reversible"),
    ),
    does_not=(
        Advice(
            "lower conntrack timeouts",
            "that is what makes this: the entry goes and the sockets stay",
            proofs=("nat-entry-gone",),
        ),
        Advice(
            "`nf_conntrack_tcp_be_liberal=1`",
            "it forgives sequence numbers; a FIN without an entry stays INVALID",
            proofs=("window-rules-do-not-help",),
        ),
        NOT_FIN_TIMEOUT,
    ),
    confidence=_confidence,
    match=match,
    observe=_observe,
)
