"""Which connections a FILTER selects of a look, and which network namespaces a name means.

The part of a FILTER that needs more than columns: names of users, findings, devices. Pure parts are
`finwait.table.filter` and `finwait.diagnosis.context`. Imports happen inside the functions: ``finwait --help`` must
not load numpy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

    from finwait.diagnosis.finding import Finding
    from finwait.errors import Gap
    from finwait.kernel.netns import NetNamespace
    from finwait.session import Diagnosis, Snapshot
    from finwait.table.filter import Filter
    from finwait.uapi.nsfs import NetnsName

__all__ = ["context", "mask_of", "namespaces", "narrowed", "parse_filter", "undecided", "users"]


def parse_filter(words: Iterable[str]) -> Filter:
    """Return the FILTER of a command line.

    Raises:
        FilterError: it does not parse.
    """
    from finwait.diagnosis import catalogue
    from finwait.table.filter import parse

    return parse(list(words), rules=catalogue.NAMES, variants=catalogue.variants)


def namespaces(names: Iterable[NetnsName], *, live: bool) -> frozenset[int]:
    """Return the inodes of the namespaces that were named.

    Args:
        names: how they were named; in a recording, by inodes alone.
        live: whether it is about the running machine.

    Raises:
        FinwaitError: there is none of that name, as far as we may look.
    """
    from finwait.errors import FinwaitError

    result = set()
    for named in names:
        inode, gaps = _live_inode(named) if live else (_recorded_inode(named), [])
        if inode is None:
            error = FinwaitError(f"there is no network namespace `{named}`")
            if gaps:
                error = FinwaitError(f"no network namespace `{named}` was found; {gaps[0]}")
            error.hint = "`finwait netns` lists them"
            if not live and named.form != "inode":
                error = FinwaitError(f"a recording has no network namespace `{named}`")
                error.hint = "name it by its inode; `finwait netns --from FILE` lists them"
            raise error
        result.add(inode)
    return frozenset(result)


def _recorded_inode(named: NetnsName) -> int | None:
    return int(named.text) if named.text.isdecimal() else named.number if named.form == "inode" else None


def _live_inode(named: NetnsName) -> tuple[int | None, list[Gap]]:
    """Return the inode of a namespace of this machine, and where we could not look for it.

    Raises:
        PermissionNeeded: we may not look at the process or the file that was named.
    """
    from finwait.kernel import netns, procfs

    if named.form == "path":
        return netns.inode_of_path(named.text), []
    if named.form == "pid":
        return netns.inode_of_pid(named.number), []
    spaces, _ = netns.discover()
    inode, gaps = _called(spaces, named), list[Any]()
    if inode is None:  # it may be one that only an open descriptor keeps
        spaces, gaps = netns.discover(procfs.descriptors()[1])
        inode = _called(spaces, named)
    return inode, gaps


def _called(spaces: Iterable[NetNamespace], named: NetnsName) -> int | None:
    return next((n.inode for n in spaces if named.text in n.names or named.number == n.inode), None)


def context(shot: Snapshot, findings: Iterable[Finding] | None = None) -> Any:  # noqa: ANN401
    """Return what a FILTER may ask about rows beyond their columns."""
    from finwait.diagnosis.context import ViewContext

    return ViewContext(shot.view, findings, users(shot), shot.machine.devices)


def users(shot: Snapshot) -> dict[int, str] | None:
    """Return the names of users that can be listed or made sockets; None where they are those of another machine."""
    import pwd

    from finwait.kernel import procfs

    boot = shot.observation.facts.boot_id
    if not shot.machine.live and not (boot and boot == procfs.facts().boot_id):
        return None
    names = {p.pw_uid: p.pw_name for p in pwd.getpwall()}
    for uid in set(shot.sockets.uid.tolist()):
        try:
            names[uid] = pwd.getpwuid(uid).pw_name
        except (KeyError, OverflowError):
            names[uid] = str(uid)
    return names


_OF_HOLDERS = frozenset({"pid", "comm", "container", "pod"})
"""What a FILTER may ask that only the holders of a socket answer."""


def undecided(
    row_filter: Filter,
    shot: Snapshot,
    findings: Iterable[Finding] | None,
    selected: Any,  # noqa: ANN401
    *,
    listeners: bool = False,
) -> Gap | None:
    """Return why a FILTER could not be judged on connections that it does not select; None where it could.

    Args:
        row_filter: the FILTER.
        shot: what was looked at.
        findings: of all of it.
        selected: the mask of those that it selects.
        listeners: whether listeners are of interest too.
    """
    import numpy as np

    from finwait.diagnosis import select
    from finwait.errors import Gap
    from finwait.uapi import tcp

    view, s = shot.view, shot.sockets
    if why := select.unowned(row_filter, view):
        return why[0]
    if not row_filter.needs & _OF_HOLDERS:
        return None
    complete = view.holders.complete
    held = (view.holder_in_question if complete else s.inode != 0) | (view.listener >= 0)
    rows = np.flatnonzero(~selected & held & (listeners | (s.state != tcp.LISTEN)))
    n = int(row_filter.possible(s, context(shot, findings), rows).sum())
    noun = "socket" if listeners else "connection"
    amount = f"1 {noun}" if n == 1 else f"{n} {noun}s"
    return (
        Gap(
            amount,
            f"judge `{row_filter.text}` without knowing every holder",
            "a second look, `--for 5s`" if complete else view.holders.wanting,
        )
        if n
        else None
    )


def mask_of(row_filter: Filter, shot: Snapshot, findings: Iterable[Finding] | None = None) -> Any:  # noqa: ANN401
    """Return the mask of rows that a FILTER selects.

    Raises:
        FilterError: the filter asks for something that is not known here.
    """
    from finwait.errors import FilterError

    try:
        return row_filter.mask(shot.sockets, context(shot, findings))
    except ValueError as error:
        raise FilterError(row_filter.text, 0, str(error)) from None


def narrowed(diagnosis: Diagnosis, row_filter: Filter, *, refuse: bool = True) -> Diagnosis:
    """Return what a FILTER leaves of a diagnosis, and what it could not judge.

    Args:
        diagnosis: of all that was looked at.
        row_filter: the FILTER.
        refuse: refuse a FILTER that can match nothing.

    Raises:
        FinwaitError: the filter can match nothing, or asks for what is not known here.
    """
    from msgspec.structs import replace

    from finwait import session
    from finwait.errors import FilterError

    shot = diagnosis.snapshot
    try:
        narrow = session.narrow(diagnosis, row_filter, context(shot, diagnosis.findings), refuse=refuse)
    except ValueError as error:
        raise FilterError(row_filter.text, 0, str(error)) from None
    assert narrow.narrowed is not None
    why = undecided(row_filter, shot, diagnosis.findings, narrow.narrowed.rows)
    return replace(narrow, narrowed=replace(narrow.narrowed, undecided=why))
