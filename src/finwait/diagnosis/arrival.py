"""What the other end shows of a segment that this end sends again and again: whether it has arrived.

Where both ends are on this machine, two readings of "no acknowledgment came" can be told apart. The FIN has arrived
if the other end is in a state that only our FIN leads to (CLOSE_WAIT, LAST_ACK, CLOSING, TIME_WAIT), data has if the
other end received more than this end has had acknowledged: then the acknowledgment is lost on its way back. If it
received no more, what we send is lost on its way there.

The end that opened the connection counts its SYN as a byte acknowledged, the other one does not; so one byte more is
told from none only where it is known which end opened it (`syn_counted`). Where that or the counters are not known,
neither is said. This says nothing of other ends that are elsewhere.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from finwait.diagnosis.finding import Advice, Evidence, Remedy
from finwait.diagnosis.view import View
from finwait.uapi import tcp
from finwait.uapi.sets import distinct

__all__ = [
    "FIND_THE_LOSS",
    "NOT_AT_PEER",
    "WAY_BACK",
    "arrived",
    "fin_arrived",
    "looks",
    "lost",
    "observed",
    "syn_counted",
]

_HAS_OUR_FIN: Final = (tcp.CLOSE_WAIT, tcp.LAST_ACK, tcp.CLOSING, tcp.TIME_WAIT)
_CLOSING: Final = (tcp.FIN_WAIT1, tcp.LAST_ACK, tcp.CLOSING)
_OPEN: Final = (tcp.ESTABLISHED, tcp.FIN_WAIT1, tcp.FIN_WAIT2)
"""States of an other end that our FIN has not reached."""

FIND_THE_LOSS: Final = Remedy(
    "find where the acknowledgments are lost: check for rules that drop on the way back, or in INPUT here "
    "(`nft list ruleset`, `iptables-save -c`), above all `ct state invalid drop`",
    "read-only",
)
WAY_BACK: Final = Remedy(
    "check for asymmetric routing: compare `ip route get` at both ends, and the reverse path filter "
    "(`sysctl -ar '\\.rp_filter'`, `nstat -az TcpExtIPReversePathFilter`)",
    "read-only",
)
_WAY_THERE: Final = Remedy(
    "both ends are on this machine; find what drops packets on the way there: rules in OUTPUT and FORWARD, "
    "or in INPUT of the other end's namespace (`nft list ruleset`, `iptables-save -c`), and routes "
    "(`ip route get PEER`)",
    "read-only",
)
NOT_AT_PEER: Final = Advice(
    "close or restart the program at the other end",
    "the other end has received everything; only its acknowledgment does not arrive here",
)


def fin_arrived(view: View) -> NDArray[np.bool_]:
    """Return rows whose other end is in a state that only their FIN leads to."""
    state = view.sockets.state[np.maximum(view.other, 0)]
    has_fin: NDArray[np.bool_] = (view.other >= 0) & np.isin(state, _HAS_OUR_FIN)
    return has_fin


def syn_counted(view: View) -> NDArray[np.int64]:
    """Return how much of each row's `bytes_acked` is its SYN: 1 (it opened), 0 (it was accepted); −1 where unknown.

    What was acknowledged and what is in flight is what was sent, but for the SYN and the FIN.
    """
    s = view.sockets
    flying = s.wqueue.astype(np.int64) - s.notsent_bytes
    data = s.bytes_sent.astype(np.int64) - s.bytes_retrans.astype(np.int64)
    fin_sent = view.in_state(*_CLOSING) & (s.notsent_bytes == 0) | view.in_state(tcp.FIN_WAIT2)
    syn = s.bytes_acked.astype(np.int64) + flying - data - fin_sent
    known = np.isin(syn, (0, 1))
    for name in ("bytes_acked", "notsent_bytes", "bytes_sent", "bytes_retrans"):
        known &= s.present(name)
    return np.where(known, syn, -1)


def _more_there(view: View) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return which rows' other end received more than they have had acknowledged, and of which that is known."""
    s = view.sockets
    other = np.maximum(view.other, 0)
    counted = (view.other >= 0) & s.present("bytes_acked") & s.present("bytes_received")[other]
    ahead = s.bytes_received[other].astype(np.int64) - s.bytes_acked.astype(np.int64)
    syn = syn_counted(view)
    more = ahead + np.maximum(syn, 0) > 0
    return counted & more, counted & ((ahead != 0) | (syn >= 0))


def arrived(view: View) -> NDArray[np.bool_]:
    """Return rows of which something has arrived, FIN or data, that this end has had no acknowledgment of."""
    more, known = _more_there(view)
    result: NDArray[np.bool_] = (view.in_state(*_CLOSING) & fin_arrived(view)) | (more & known)
    return result


def lost(view: View) -> NDArray[np.bool_]:
    """Return rows of which nothing that is unacknowledged has arrived; rows that are neither are unknown."""
    more, known = _more_there(view)
    # A FIN that is all that is unacknowledged shows in the state.
    state = view.sockets.state[np.maximum(view.other, 0)]
    fin_alone = (
        view.in_state(*_CLOSING) & (view.sockets.wqueue == 1) & (view.other >= 0) & np.isin(state, _OPEN)
    )
    result: NDArray[np.bool_] = ~arrived(view) & ((known & ~more) | fin_alone)
    return result


def looks(view: View, rows: NDArray[np.int64]) -> tuple[Remedy, ...]:
    """Return what to look at first where the other ends are here, and packets are lost on the way."""
    if arrived(view)[rows].all():
        return (FIND_THE_LOSS, WAY_BACK)
    if not (view.other[rows] >= 0).all():
        return ()
    return (_WAY_THERE,) if lost(view)[rows].all() else (_WAY_THERE, FIND_THE_LOSS, WAY_BACK)


def observed(view: View, rows: NDArray[np.int64]) -> tuple[Evidence, ...]:
    """Return what the other ends show, and what counts losses on the way back where such was counted."""
    s = view.sockets
    paired = rows[view.other[rows] >= 0]
    received, missed = arrived(view)[paired], lost(view)[paired]
    result: list[Evidence] = []
    for shown, says in (
        (received, "it has received what was sent; its acknowledgment is lost on the way back"),
        (missed, "it has not received what is being retransmitted; that is lost on the way there"),
        (
            ~received & ~missed,
            "its counters do not show whether what is being retransmitted has arrived there",
        ),
    ):
        states, counts = np.unique(s.state[view.other[paired[shown]]], return_counts=True)
        seen = ", ".join(
            f"{tcp.state_name(k)} ×{n}" for k, n in zip(states.tolist(), counts.tolist(), strict=True)
        )
        if seen:
            result.append(Evidence("other end", seen, "sock_diag in the other end's namespace", says))
    return (*result, *_losses(view, paired[~missed]))


def _losses(view: View, rows: NDArray[np.int64]) -> tuple[Evidence, ...]:
    """Return the counters of the namespaces of both ends that rise where acknowledgments are dropped."""
    result = []
    both = np.concatenate([view.sockets.netns[rows], view.sockets.netns[view.other[rows]]])
    for number in distinct(both).tolist():
        namespace = view.namespaces.get(number)
        counted = namespace.counters if namespace is not None else {}
        for name, source, says in (
            (
                "conntrack.invalid",
                "/proc/net/stat/nf_conntrack",
                "packets that conntrack classified as INVALID",
            ),
            (
                "TcpExt.IPReversePathFilter",
                "/proc/net/netstat",
                "packets dropped by the reverse path filter",
            ),
        ):
            if counted.get(name):
                label = namespace.label if namespace is not None else ""
                result.append(Evidence(name, str(counted[name]), source, f"{says}, for all of {label}"))
    return tuple(result)
