"""What the other end shows of a segment that this end sends again and again: whether it has arrived.

Where both ends are on this machine, two readings of "no acknowledgment came" can be told apart. The FIN has arrived
if the other end is in a state that only our FIN leads to (CLOSE_WAIT, LAST_ACK, CLOSING, TIME_WAIT), data has if the
other end received more than this end has had acknowledged: then the acknowledgment is lost on its way back. Otherwise
what we send is lost on its way there.

This says nothing of other ends that are elsewhere, or of which the counters are not known.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from finwait.diagnosis.finding import Advice, Evidence, Remedy
from finwait.diagnosis.view import View
from finwait.uapi import tcp

__all__ = ["FIND_THE_LOSS", "NOT_AT_PEER", "WAY_BACK", "arrived", "fin_arrived", "looks", "observed"]

_HAS_OUR_FIN: Final = (tcp.CLOSE_WAIT, tcp.LAST_ACK, tcp.CLOSING, tcp.TIME_WAIT)
_SYN_AND_FIN: Final = 2
"""By how much the counters of two ends may differ without a byte of data: the kernel counts these as well."""

FIND_THE_LOSS: Final = Remedy(
    "find where the acknowledgments are lost: rules that drop on the way back or in INPUT here "
    "(`nft list ruleset`, `iptables-save -c`), above all `ct state invalid drop`",
    "read-only",
)
WAY_BACK: Final = Remedy(
    "asymmetric routing: compare `ip route get` at both ends, and the reverse path filter "
    "(`sysctl -ar '\\.rp_filter'`, `nstat -az TcpExtIPReversePathFilter`)",
    "read-only",
)
_WAY_THERE: Final = Remedy(
    "both ends are here: find what drops packets on the way there, rules in OUTPUT and FORWARD, or in INPUT of the "
    "other end's namespace (`nft list ruleset`, `iptables-save -c`), and routes (`ip route get PEER`)",
    "read-only",
)
NOT_AT_PEER: Final = Advice(
    "close or restart the program at the other end",
    "the other end has received what was sent; only its acknowledgment does not get here",
)


def fin_arrived(view: View) -> NDArray[np.bool_]:
    """Return rows whose other end is in a state that only their FIN leads to."""
    state = view.sockets.state[np.maximum(view.other, 0)]
    there: NDArray[np.bool_] = (view.other >= 0) & np.isin(state, _HAS_OUR_FIN)
    return there


def arrived(view: View) -> NDArray[np.bool_]:
    """Return rows of which something has arrived, FIN or data, that this end has had no acknowledgment of."""
    s = view.sockets
    other = np.maximum(view.other, 0)
    counted = (view.other >= 0) & s.present("bytes_acked") & s.present("bytes_received")[other]
    ahead = s.bytes_received[other].astype(np.int64) - s.bytes_acked.astype(np.int64)
    ours = view.in_state(tcp.FIN_WAIT1, tcp.LAST_ACK, tcp.CLOSING)
    there: NDArray[np.bool_] = (ours & fin_arrived(view)) | (counted & (ahead > _SYN_AND_FIN))
    return there


def looks(view: View, rows: NDArray[np.int64]) -> tuple[Remedy, ...]:
    """Return what to look at first where the other ends are here, and packets are lost on the way."""
    if arrived(view)[rows].all():
        return (FIND_THE_LOSS, WAY_BACK)
    return (_WAY_THERE,) if (view.other[rows] >= 0).all() else ()


def observed(view: View, rows: NDArray[np.int64]) -> tuple[Evidence, ...]:
    """Return what the other ends show, and what counts losses on the way back where such was counted."""
    s = view.sockets
    here = rows[view.other[rows] >= 0]
    got = arrived(view)[here]
    result: list[Evidence] = []
    for there, says in (
        (True, "it has received what was sent: its acknowledgment is lost on the way back"),
        (False, "it has not received what is sent again: that is lost on the way there"),
    ):
        states, counts = np.unique(s.state[view.other[here[got == there]]], return_counts=True)
        seen = ", ".join(
            f"{tcp.state_name(k)} ×{n}" for k, n in zip(states.tolist(), counts.tolist(), strict=True)
        )
        if seen:
            result.append(Evidence("other end", seen, "sock_diag in the other end's namespace", says))
    return (*result, *_losses(view, here[got]))


def _losses(view: View, rows: NDArray[np.int64]) -> tuple[Evidence, ...]:
    """Return the counters of the namespaces of both ends that rise where acknowledgments are dropped."""
    result = []
    both = np.concatenate([view.sockets.netns[rows], view.sockets.netns[view.other[rows]]])
    for number in np.unique(both).tolist():
        namespace = view.namespaces.get(number)
        counted = namespace.counters if namespace is not None else {}
        for name, source, says in (
            ("conntrack.invalid", "/proc/net/stat/nf_conntrack", "packets that conntrack calls INVALID"),
            (
                "TcpExt.IPReversePathFilter",
                "/proc/net/netstat",
                "packets that the reverse path filter dropped",
            ),
        ):
            if counted.get(name):
                label = namespace.label if namespace is not None else ""
                result.append(Evidence(name, str(counted[name]), source, f"{says}, in all of {label}"))
    return tuple(result)
