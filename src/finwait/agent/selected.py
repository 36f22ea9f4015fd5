"""Which connections of a diagnosis the FILTERs of a policy let pass, at one end and at both; which are left alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from finwait.agent.cluster_told import known_pods
from finwait.attribution.join import matches
from finwait.diagnosis.context import ViewContext
from finwait.selecting import users
from finwait.uapi.cluster import Pod

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from finwait import session
    from finwait.table.filter import Filter

__all__ = ["left_alone", "passing", "passing_both"]


def passing(filters: Sequence[Filter], made: session.Diagnosis) -> NDArray[np.bool_]:
    """Return which rows all FILTERs let pass, as far as that is known; one that cannot be judged lets none."""
    shot = made.snapshot
    rows = np.ones(len(made.view), np.bool_)
    # Names of users are listed where a FILTER asks for one only: a directory service may be slow.
    names = users(shot) if any(row_filter.needs & {"user"} for row_filter in filters) else None
    context = ViewContext(made.view, made.findings, names, shot.machine.devices)
    for row_filter in filters:
        try:
            rows &= row_filter.mask(shot.sockets, context)
        except ValueError:
            rows[:] = False
    return rows


def passing_both(filters: Sequence[Filter], made: session.Diagnosis) -> NDArray[np.bool_]:
    """Return which rows all FILTERs let pass, and their other ends on this machine, too, as far as that is known.

    An act at one end reaches the program at the other. What may be the other end must pass as well. Where
    several fit, or a namespace could not be entered and none was found, a row does not pass.
    """
    one_end = passing(filters, made)
    return _at_both_ends(one_end, made) if filters else one_end


def left_alone(made: session.Diagnosis, now_s: float) -> dict[str, NDArray[np.bool_]]:
    """Return which rows no policy may act on, on a node of a cluster that is followed.

    Args:
        made: the diagnosis, with what is known of the cluster.
        now_s: seconds since 1970.

    Returns:
        ``excluded``: a pod or its namespace has the annotation ``finwait.io/exclude``, at an end that is on this
        node. ``unnamed``: that is not known, for it is a pod without a name or with one of long ago, or may be one.
    """
    view = made.view
    names, known = view.row_names, known_pods(view.names, now_s)
    n = len(view)
    excluded, unnamed = np.zeros(n, np.bool_), np.zeros(n, np.bool_)
    ends = zip(names.pod, names.peer, view.workloads, view.placed.tolist(), strict=True)
    for row, (pod, peer, work, known_place) in enumerate(ends):
        excluded[row] = (pod is not None and pod.excluded) or (isinstance(peer, Pod) and peer.excluded)
        in_pod = pod is not None or not known_place or (work is not None and work.pod_uid != "")
        unnamed[row] = in_pod and (pod is None or not known)
    for other in (view.other, view.other_possible):
        rows = np.flatnonzero(other >= 0)
        excluded[rows] |= excluded[other[rows]]
    allowed = _at_both_ends(~excluded & ~unnamed, made)
    return {"excluded": excluded, "unnamed": ~allowed & ~excluded}


def _at_both_ends(one_end: NDArray[np.bool_], made: session.Diagnosis) -> NDArray[np.bool_]:
    """Return of which rows something is known to be true at both ends, where both are on this machine."""
    both = one_end.copy()
    view, s = made.view, made.view.sockets
    for other in (view.other, view.other_possible):
        rows = np.flatnonzero(other >= 0)
        both[rows] &= one_end[other[rows]]
    both &= ~view.other_ambiguous
    lone, kept = np.flatnonzero(both & (view.other < 0)), np.flatnonzero(~one_end)
    hits, _ = matches(
        (s.src[lone, 0], s.src[lone, 1], s.sport[lone], s.dst[lone, 0], s.dst[lone, 1], s.dport[lone]),
        (s.dst[kept, 0], s.dst[kept, 1], s.dport[kept], s.src[kept, 0], s.src[kept, 1], s.sport[kept]),
    )
    both[lone[hits]] = False
    if any(gap.unentered for gap in made.gaps):
        both &= view.other >= 0
    return both
