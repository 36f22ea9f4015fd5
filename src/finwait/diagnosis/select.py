"""What a FILTER says of what has no row, and which of its names nothing here has.

A finding about something that is in no dump (the descriptors that a process leaks) is asked the same questions as
rows are, of what is known about it. A question that it cannot answer is neither true nor false: `pid = 812 and
dport = :443` is false of another process, and stays open of that one. What stays open is told and never dropped, for
it may be just what was asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from msgspec import Struct
from msgspec.structs import replace
from numpy.typing import NDArray

from finwait.attribution.container import Workload, workload_of_path
from finwait.diagnosis import catalogue
from finwait.diagnosis.finding import Finding
from finwait.diagnosis.view import View
from finwait.errors import Gap
from finwait.table.filter import Filter
from finwait.table.patterns import glob
from finwait.table.predicates import Known, Leaf, Number, RowFacts
from finwait.table.sockets import SocketTable

__all__ = ["KnownNames", "Narrowed", "by_owners", "judge", "nothing_like_it", "unjudged", "unowned"]

_FIRST = np.zeros(1, np.intp)


class Narrowed(Struct, frozen=True):
    """What a FILTER left of a diagnosis."""

    filter: Filter
    rows: NDArray[np.bool_]
    """The connections and listeners that it selects."""
    unjudged: tuple[Finding, ...] = ()
    """Problems and notices of which it cannot tell whether it selects them."""
    undecided: Gap | None = None
    """Why it could not be judged on connections that it does not select, whatever is wrong with them; else None."""


def judge(
    row_filter: Filter, finding: Finding, view: View, users: Mapping[int, str] | None = None
) -> bool | None:
    """Return whether a FILTER selects a finding that has no rows; None where that cannot be told.

    Args:
        row_filter: the FILTER.
        finding: about something without rows.
        view: where it was found.
        users: uid → name, where names of users are known.
    """
    cells = {"netns": finding.netns} if finding.netns else {}
    cells |= finding.cells
    uids = {p.uid for pid in finding.pids if (p := view.processes.get(pid)) is not None}
    if len(uids) == 1 and min(uids) >= 0:
        cells |= {"uid": min(uids), "timer": 0}
    if "sport" not in cells and finding.ports:  # what is true of each of its ports is true of it
        each = {
            judge(row_filter, replace(finding, cells={**finding.cells, "sport": port}), view, users)
            for port in finding.ports
        }
        return each.pop() if len(each) == 1 else None
    # Its inode is not known; that it is not 0 is, and decides whether its uid is.
    table = SocketTable.from_columns({name: [cell] for name, cell in (cells | {"inode": 1}).items()})
    facts = RowFacts(table, _Answers(finding, view, users or {}), {})

    def by(leaf: Leaf) -> bool | None:
        if isinstance(leaf, Number) and leaf.column == "inode" and not leaf.value and finding.pids:
            return leaf.op == "!="  # `held`, `orphan`: a descriptor refers to it
        reads = leaf.reads()[0]
        if reads - cells.keys() - ({"inode"} if "uid" in reads else set()):
            return None
        if leaf.test(facts, _FIRST)[0]:
            return True
        return False if leaf.negated().test(facts, _FIRST)[0] else None

    return row_filter.judge(by)


class _Answers:
    """What is known of a finding without rows, as the context of a table of one row."""

    def __init__(self, finding: Finding, view: View, users: Mapping[int, str]) -> None:
        self._finding, self._view, self._users = finding, view, users

    def values(self, name: str) -> list[Any]:
        """Return one value; None where it is not known."""
        finding, view = self._finding, self._view
        known = [p for pid in finding.pids if (p := view.processes.get(pid)) is not None]
        if name == "rule":
            return [(finding.rule,)]
        if name == "severity":
            return [(finding.severity,)]
        if name == "variant":
            return [(str(finding.variant),)]
        if name == "also":
            return [()]
        if name == "pid":
            return [finding.pids or None]
        if name == "comm":
            return [tuple(None if p.comm == "?" else p.comm for p in known) or None]
        if name == "netns":
            space = view.namespaces.get(finding.netns)
            return [(*space.names, str(finding.netns)) if space is not None else None]
        if name in ("container", "pod"):
            if not known or not all(p.cgroup for p in known):
                return [None]
            words = tuple(word for p in known if (word := _word(workload_of_path(p.cgroup), name)))
            return [(*words, None) if words else ()]  # what people call it is not known here
        if name == "user":
            uid = known[0].uid if len({p.uid for p in known}) == 1 else -1
            return [self._users.get(uid, str(uid)) if uid >= 0 else None]
        if name.startswith("age_"):
            return [np.nan]
        return [None]


def _word(work: Workload, name: str) -> str:
    return work.container_id if name == "container" else work.pod_uid


class KnownNames(Struct, frozen=True):
    """What there is on a machine that a FILTER may name, beyond what a view holds."""

    alive: Callable[[Iterable[int]], Iterable[int]]
    """Gives the pids, among those given, of processes that are there."""
    users: Mapping[int, str] | None = None
    """uid → name; None where names of users are not known, as in a recording."""
    devices: Callable[[Iterable[int]], Mapping[tuple[int, int], str]] | None = None
    """Gives (netns, ifindex) → name for the interfaces of namespaces; nothing where they are not known."""
    recorded: bool = False
    """Whether it is a recording, which has no other processes than those of its sockets."""


def nothing_like_it(row_filter: Filter, view: View, names: KnownNames) -> tuple[str, ...]:
    """Return what a FILTER names that is not here, where it can match nothing for that reason; else nothing."""
    reasons: dict[str, None] = {}

    def by(leaf: Leaf) -> bool | None:
        why = _not_here(leaf, view, names)
        if why:
            reasons[why] = None
        return False if why else None

    return tuple(reasons) if row_filter.judge(by) is False else ()


def by_owners(row_filter: Filter) -> tuple[str, ...]:
    """Return the rules that a FILTER names, of those that cannot judge where nobody looked who holds what."""

    def named(rule: str) -> bool:
        met = []

        def by(leaf: Leaf) -> bool | None:
            if not isinstance(leaf, Known) or leaf.name not in ("rule", "also"):
                return None
            hit = bool(glob(leaf.pattern)(rule))
            met.append(hit and leaf.op == "=")
            return hit == (leaf.op == "=")

        return row_filter.judge(by) is not False and any(met)

    return tuple(rule for rule in catalogue.by_owners() if named(rule))


def unowned(row_filter: Filter, view: View) -> tuple[Gap, ...]:
    """Return which rules that a FILTER names were not judged because owners were not looked for; else nothing."""
    return () if view.holders.searched else unjudged(by_owners(row_filter))


def unjudged(rules: tuple[str, ...]) -> tuple[Gap, ...]:
    """Return what is not known of rules that were not judged because owners were not looked for; none of no rules."""
    subject = f"rule{'s' if len(rules) > 1 else ''} {', '.join(rules)}"
    doing, needs = "judge, because owners were not looked for", "a look without `--no-owners`"
    return (Gap(subject, doing, needs),) if rules else ()


def _not_here(leaf: Leaf, view: View, names: KnownNames) -> str:
    """Return what a predicate names that is not here, as a sentence; nothing where it is here, or may be.

    What could not be seen may be just what is named: a namespace that could not be entered, or a process that holds
    sockets in one, or is hidden from us.
    """
    if getattr(leaf, "op", "=") != "=":
        return ""
    if isinstance(leaf, Number) and leaf.column == "netns":
        exists = leaf.value in view.namespaces or not view.all_entered
        return "" if exists else f"there is no network namespace {leaf.value} among the inspected ones"
    if not isinstance(leaf, Known):
        return ""
    word = leaf.pattern
    if leaf.name == "pid":
        if (word.isdigit() and list(names.alive([int(word)]))) or 0 in view.holders.unreadable:
            return ""
        if names.recorded:
            return f"the recording has no process {word} that holds a socket of it, or may hold one"
        return f"there is no process {word}"
    if leaf.name == "netns":
        called = [name for n, space in view.namespaces.items() for name in (*space.names, str(n))]
        exists = leaf.matches_any(called) or not view.all_entered
        return "" if exists else f"there is no network namespace `{word}` among the inspected ones"
    if leaf.name == "comm":
        holders, known = view.holders, view.processes
        all_known = _all_holders(view) and all(
            pid in known and known[pid].comm != "?" for pid in (*holders.unreadable, *holders.threads)
        )
        exists = not all_known or leaf.matches_any([p.comm for p in known.values()])
        return "" if exists else f"no process that holds a TCP socket is named `{word}`"
    if leaf.name == "user":
        exists = names.users is None or word.isdigit() or leaf.matches_any(names.users.values())
        return (
            "" if exists else f"no user that this machine can list is named `{word}`; a number always works"
        )
    if leaf.name == "dev":
        devices = names.devices(view.namespaces) if names.devices is not None and view.whole else {}
        exists = not devices or leaf.matches_any(devices.values())
        return "" if exists else f"no network interface is named `{word}`"
    if leaf.name in ("container", "pod"):
        exists = not _all_outside(view, leaf.name)
        return "" if exists else f"nothing that was inspected belongs to a {leaf.name}"
    return ""


def _all_holders(view: View) -> bool:
    """Return whether every process that holds a TCP socket is among those of a view, or may be by what is unreadable.

    Those that hold only ESTABLISHED sockets are not where these were counted and not listed; nor are those that hold
    sockets of a namespace that could not be entered, although they themselves may be open to us.
    """
    return view.hidden_known and not view.established_skipped and view.all_entered


def _all_outside(view: View, kind: str) -> bool:
    """Return whether every holder, and every row that tells its cgroup, is known to be in no container or pod."""
    holders, known = view.holders, view.processes
    if not _all_holders(view) or not all(
        pid in known and known[pid].cgroup for pid in (*holders.unreadable, *holders.threads)
    ):
        return False
    works = {workload_of_path(p.cgroup) for p in known.values() if p.cgroup} | set(view.workload_names)
    return not any(_word(work, kind) for work in works)
