"""Descriptors of other programs, borrowed for an act, also when they have moved since the look.

A program may move a descriptor (dup2(2)), pass it on or leave it to a child: that is no sign of an end, and who
holds the connection is looked for anew.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Final

import numpy as np

from finwait.acting.identity import NOT_ENTERED, Holder, key_of, reread, rows_by_cookie
from finwait.errors import FinwaitError, TargetGone
from finwait.kernel import pidfd, procfs, rights
from finwait.remedy.plan import End, Step

__all__ = ["borrow", "not_gone"]


@contextmanager
def borrow(step: Step) -> Iterator[socket.socket]:
    """Borrow the descriptor of whichever holder lets us.

    Raises:
        TargetGone: no process holds the connection any more.
        PermissionNeeded: none of them lets us.
        FinwaitError: none is known.
    """
    if not step.holders:
        raise FinwaitError("no process is known to hold it, and this needs a descriptor")
    cookie = int(step.cookie, 16)
    last: FinwaitError = TargetGone(cookie)
    with ExitStack() as stack:
        for pid, fd, _ in step.holders:
            try:
                sock = stack.enter_context(pidfd.borrowed(pid, fd, inode=step.inode, cookie=cookie))
            except FinwaitError as error:
                last = error
                continue
            yield sock
            return
    raise last


class DescriptorMoved(FinwaitError):
    """A connection that lives, and whose descriptors are not where they were."""

    def __init__(self, unreadable: int, unseen: bool) -> None:
        reason = f"it is unknown whether the connection ended ({NOT_ENTERED})" if unseen else STILL_THERE
        missing = f"; the descriptors of {unreadable} processes could not be listed" if unreadable else ""
        super().__init__(
            f"{reason}: its descriptor was moved, and no process was found that holds it{missing}"
        )
        if unreadable:
            needs = rights.missing("CAP_SYS_PTRACE")
            self.hint = f"to search every process needs {needs}" + (
                "; try with sudo" if needs.isidentifier() else ""
            )


STILL_THERE: Final = "the connection is still there"


def holders_elsewhere(
    ends: Mapping[int, tuple[Step | End, int]],
) -> dict[int, tuple[Holder, ...] | DescriptorMoved]:
    """Look anew for the holders of connections, none of whose known descriptors is theirs any more.

    A program may move a descriptor (dup2(2)), pass it on or leave it to a child: that is no sign of an end.

    Args:
        ends: each with the inode of its socket.

    Returns:
        Of each that is still there its holders, or that none was found; nothing of those that have ended, or that
        no program holds any more.
    """
    table, closed = reread([end for end, _ in ends.values()])
    rows = rows_by_cookie(table)
    unseen = {k for k, (end, _) in ends.items() if key_of(end) not in rows and end.netns in closed}
    survivors = {
        k
        for k, (end, inode) in ends.items()
        if inode and (row := rows.get(key_of(end))) is not None and int(table.inode[row]) == inode
    }
    if not survivors | unseen:
        return {}
    listed = procfs.descriptors(threads=True)[0]
    matching = np.isin(listed.inode, np.array([ends[k][1] for k in survivors | unseen], np.uint64))
    by_inode: dict[int, list[Holder]] = {}
    for pid, fd, inode in zip(
        *(column[matching].tolist() for column in (listed.pid, listed.fd, listed.inode)), strict=True
    ):
        name = procfs.read(f"/proc/{pid}/comm") or b"?"
        by_inode.setdefault(inode, []).append((pid, fd, name.decode("utf-8", "replace").rstrip("\n")))
    return {
        k: tuple(by_inode.get(ends[k][1], ())) or DescriptorMoved(len(listed.unreadable), k in unseen)
        for k in survivors | unseen
    }


def not_gone(steps: Mapping[int, Step], errors: Mapping[int, FinwaitError]) -> dict[int, FinwaitError]:
    """Return other errors for those connections that seemed gone, and whose descriptor was only moved."""
    lost = {k: (steps[k], steps[k].inode) for k, error in errors.items() if isinstance(error, TargetGone)}
    if not lost:
        return {}
    moved: dict[int, FinwaitError] = {}
    for k, holders in holders_elsewhere(lost).items():
        if isinstance(holders, DescriptorMoved):
            moved[k] = holders
            continue
        pid, fd, comm = holders[0]
        moved[k] = FinwaitError(
            f"{STILL_THERE}: its descriptor was moved since the look, to {fd} of {comm} (pid {pid})"
        )
        moved[k].hint = "run the command again"
    return moved
