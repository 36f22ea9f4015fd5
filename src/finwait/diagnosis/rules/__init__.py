"""One module a rule: its docstring is its page, `RULE` its data, `match` what it sees.

What several rules say in the same words is here once: what people try, and why it does nothing.
"""

from __future__ import annotations

from finwait.diagnosis.finding import Advice, Confidence, Remedy

__all__ = [
    "CLOSE_AT_PEER",
    "NOT_CONNTRACK",
    "NOT_FIN_TIMEOUT",
    "NOT_KEEPALIVE_ALIVE",
    "NOT_USER_TIMEOUT_IDLE",
    "certain",
    "destroy",
    "likely",
    "look_again",
    "possible",
]

NOT_FIN_TIMEOUT = Advice(
    "lower `net.ipv4.tcp_fin_timeout`",
    "it counts from the close() of the last descriptor; a socket that a descriptor still refers to never starts it",
)
NOT_KEEPALIVE_ALIVE = Advice(
    "turn on keepalive",
    "it finds a dead peer; a peer that lives and merely does not close answers every probe, for ever",
)
NOT_USER_TIMEOUT_IDLE = Advice(
    "set TCP_USER_TIMEOUT", "it limits data that is not acknowledged; here nothing is in flight"
)
NOT_CONNTRACK = Advice(
    "lower `nf_conntrack_tcp_timeout_close_wait`",
    "conntrack closes no socket; it forgets the NAT mapping, and then the missing FIN can never arrive",
)
CLOSE_AT_PEER = Remedy("close the connection at the other end: its FIN finishes this end properly")


def certain(reason: str) -> Confidence:
    """Return full confidence, with its reason."""
    return Confidence("certain", reason)


def likely(reason: str) -> Confidence:
    """Return the confidence of a pattern that has another, rarer explanation."""
    return Confidence("likely", reason)


def possible(reason: str) -> Confidence:
    """Return the confidence of a suspicion that only a probe can settle."""
    return Confidence("possible", reason)


def look_again(reason: str) -> Confidence:
    """Return the confidence of what a single look cannot tell from health, and a second one a few seconds on can."""
    return Confidence("possible", reason, look_again=True)


def destroy(rule: str) -> Remedy:
    """Return the remedy that always works on a socket of a rule, and always leaves something behind."""
    return Remedy(
        "destroy this end (SOCK_DESTROY): the peer gets a RST; the descriptor stays open in the process",
        "destructive",
        f"finwait clear --with destroy {rule}",
    )
