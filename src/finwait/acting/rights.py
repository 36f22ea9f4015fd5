"""What cannot be done here, found out without doing anything to any connection.

SOCK_DESTROY is tried on sockets of our own; a descriptor of each holder is borrowed and given back.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from msgspec.structs import replace

from finwait.acting.identity import leads, namespaces_of
from finwait.errors import FinwaitError, Refused, SubflowOnly, TargetGone
from finwait.kernel import pidfd
from finwait.kernel.destroy import lacking
from finwait.kernel.destroy_trial import Trial, tried
from finwait.remedy.guards import Abilities
from finwait.remedy.plan import Step

if TYPE_CHECKING:
    from finwait.diagnosis.view import View

__all__ = ["abilities"]


def abilities(view: View, rows: Iterable[int]) -> Abilities:
    """Find out what cannot be done to connections, without doing anything to any.

    SOCK_DESTROY is tried on a socket of our own, in each namespace; of each process that holds one of them, one
    descriptor is borrowed and given back. Where orphans are among them, it is tried on an orphan of our own as well.
    """
    s = view.sockets
    row_array = np.fromiter(rows, np.int64)
    other = view.other[row_array]
    row_array = np.concatenate([row_array, other[other >= 0]])
    holders: dict[int, tuple[int, int, int]] = {}
    leads: dict[int, tuple[int, int]] = {}
    for row in row_array[view.holder_found[row_array]].tolist():
        for pid, fd in view.holders.of(row):
            leads.setdefault(int(s.netns[row]), (pid, fd))
            if pid not in holders:
                holders[pid] = (fd, int(s.inode[row]), int(s.cookie[row]))
    requested = set(zip(s.netns[row_array].tolist(), s.protocol[row_array].tolist(), strict=True))
    ways = [(netns, pid, fd) for netns, (pid, fd) in leads.items()]
    result = Abilities(_no_destroy(requested, ways), _no_borrow(holders))
    if bool((s.inode[row_array] == 0).any()):
        return replace(
            result, harms_orphans=_harm(tried()), spares_minisockets=tried().ends_minisockets is False
        )
    return result


def _harm(trial: Trial) -> str:
    """Return why SOCK_DESTROY must not be used on orphans; empty where it ends them."""
    if trial.ends_orphans:
        return ""
    if trial.ends_orphans is None:
        return (
            "SOCK_DESTROY may remove its timer instead of ending it, as on older kernels, and then "
            f"it stays for ever; it is unknown whether this kernel does so: {trial.why_unknown}"
        )
    return (
        "on this kernel SOCK_DESTROY removes its timer instead of ending it, and then it stays for "
        "ever (tried on one of our own)"
    )


def _no_destroy(
    requested: set[tuple[int, int]], leads: Sequence[tuple[int, int, int]]
) -> dict[tuple[int, int], str]:
    errors = lacking(namespaces_of({n for n, _ in requested}, leads), requested) if requested else {}
    return {
        key: f"{error} (needs {error.needs})" if error.needs else str(error) for key, error in errors.items()
    }


def _no_borrow(holders: Mapping[int, tuple[int, int, int]]) -> dict[int, str]:
    reasons: dict[int, str] = {}
    for pid, (fd, inode, cookie) in holders.items():
        try:
            with pidfd.borrowed(pid, fd, inode=inode, cookie=cookie):
                pass
        except (TargetGone, SubflowOnly):  # not a matter of rights
            continue
        except FinwaitError as error:
            reasons[pid] = f"{error} (needs {error.needs})" if error.needs else str(error)
    return reasons


def check_means(steps: Sequence[Step]) -> None:
    """Find out whether a plan can be carried out here, before anything of it is.

    Raises:
        Refused: it cannot, with the substitute that would work.
    """
    requested = {(s.netns, s.protocol) for s in steps if s.means == "destroy"}
    missing = _no_destroy(requested, leads(steps))
    if missing:
        (netns, protocol), why = next(iter(missing.items()))
        lost = [s for s in steps if s.means == "destroy" and (s.netns, s.protocol) == (netns, protocol)]
        held = [s for s in lost if s.holders]
        refusal = Refused("means", f"{why}; {len(lost)} connections of the plan need it; nothing was done")
        refusal.hint = (
            (
                f"plan again with `--with reset`: {len(held)} of them are held by a process whose "
                "descriptor can be used instead"
            )
            if held
            else "no process is known to hold them, so only SOCK_DESTROY can end them"
        )
        raise refusal
    through = [s for s in steps if s.means != "destroy" and s.holders]
    first = {pid: (fd, s.inode, int(s.cookie, 16)) for s in reversed(through) for pid, fd, _ in s.holders}
    unborrowed = _no_borrow(first)
    for step in through:
        if all(pid in unborrowed for pid, _, _ in step.holders):
            refusal = Refused("means", f"{unborrowed[step.holders[0][0]]}; nothing was done")
            if not _no_destroy({(step.netns, step.protocol)}, leads([step])):
                refusal.hint = (
                    "plan again with `--with destroy`, which needs no descriptor: the peer gets a RST"
                )
            raise refusal
