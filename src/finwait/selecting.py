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
    from finwait.session import Snapshot
    from finwait.table.filter import Filter

__all__ = ["context", "mask_of", "namespaces", "parse_filter", "users"]


def parse_filter(words: Iterable[str]) -> Filter:
    """Return the FILTER of a command line.

    Raises:
        FilterError: it does not parse.
    """
    from finwait.diagnosis import catalogue
    from finwait.table.filter import parse

    return parse(list(words), rules=catalogue.NAMES, variants=catalogue.variants)


def namespaces(wanted: list[str], *, live: bool) -> frozenset[int]:
    """Return the inodes of namespaces that are named by name, inode or pid.

    Raises:
        FinwaitError: there is none of that name.
    """
    from finwait.errors import FinwaitError
    from finwait.kernel import netns, procfs

    found, _ = netns.discover() if live else ([], [])
    everywhere = False
    result = set()
    for text in wanted:
        matching = _called(found, text)
        if not matching and live and not everywhere:  # it may be one that only an open descriptor keeps
            everywhere = True
            found, _ = netns.discover(procfs.descriptors()[1])
            matching = _called(found, text)
        if not matching and _is_number(text):
            inode = netns.inode_of_pid(int(text)) if live else int(text)
            matching = [] if inode is None else [inode]
        if not matching:
            error = FinwaitError(f"there is no network namespace `{text}`")
            error.hint = "`finwait netns` lists them"
            raise error
        result.update(matching)
    return frozenset(result)


def _called(found: Iterable[Any], text: str) -> list[int]:
    return [n.inode for n in found if text in n.names or text == str(n.inode) or _has_pid(n, text)]


def _has_pid(namespace: Any, text: str) -> bool:  # noqa: ANN401 - kernel.netns.NetNamespace, imported lazily
    return _is_number(text) and int(text) in namespace.pids


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 20


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


def mask_of(found: Filter, shot: Snapshot, findings: Iterable[Finding] | None = None) -> Any:  # noqa: ANN401
    """Return the mask of rows that a FILTER selects.

    Raises:
        FilterError: the filter asks for something that is not known here.
    """
    from finwait.errors import FilterError

    try:
        return found.mask(shot.sockets, context(shot, findings))
    except ValueError as error:
        raise FilterError(found.text, 0, str(error)) from None
