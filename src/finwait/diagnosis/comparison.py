"""Two diagnoses compared: which groups appeared, vanished, grew or shrank, and whether anything got worse.

A group is known again by what outlives a process: its rule, the program that holds it, and where that runs (the
workload of its pod, its systemd unit, the name of its network namespace). Never by a pid, which is another's tomorrow.
Where names are pseudonyms, which no two recordings share, a group is all of a rule.
Connections are known again by their cookie, and only within one boot: the kernel counts cookies from boot to boot.

*Worse* is a problem with more connections, or descriptors, than before. Whether that is known depends on both looks:
what one of them could not see may have been there, or may have another holder there. So growth is `known` only where
both have the same gaps, looked for owners alike, and left out the same; otherwise it may be a difference of looking.

What this cannot see: that a recording was made of some namespaces only, for no recording says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final, Literal

from msgspec import Struct

from finwait.attribution.services import name_of
from finwait.diagnosis.finding import Finding, Severity
from finwait.uapi import tcp

if TYPE_CHECKING:
    from finwait.diagnosis.view import View
    from finwait.errors import Gap

__all__ = ["ComparedSide", "Comparison", "GroupChange", "GroupName", "Verdict", "compared"]

Change = Literal["appeared", "grew", "same", "shrank", "vanished"]
Verdict = Literal["worse", "not worse", "unknown"]
_LEAST_S: Final = 60.0
"""Of two looks that are nearer than this there is no rate: it would be more of a guess."""
_ORDER: Final[dict[Severity, int]] = {"problem": 0, "notice": 1, "healthy": 2}


class ComparedSide(Struct, frozen=True):
    """One of the two that are compared."""

    label: str
    hostname: str
    kernel: str
    boot_id: str
    unix_ns: int
    boottime_ns: int
    view: View
    findings: tuple[Finding, ...]
    gaps: tuple[Gap, ...]
    redacted: bool = False
    """Whether its names are pseudonyms, which stand for other names on the other side."""
    unjudged: int = 0
    """Findings that a FILTER could not judge."""

    @property
    def connections(self) -> int:
        """Connections that were looked at."""
        return int((self.view.sockets.state != tcp.LISTEN).sum())


class GroupName(Struct, frozen=True, order=True):
    """What a group is known again by."""

    rule: str
    program: str
    place: str


class GroupChange(Struct, frozen=True):
    """A group, before and after."""

    name: GroupName
    severity: Severity
    title: str
    before: int
    after: int
    stayed: int | None
    """Connections that are in both; None where that is not known, and of what has none."""
    per_hour: float | None
    """By how much it grew, or shrank; None where no rate is known."""
    worse: bool
    known: bool
    """Whether the change is one of the machine, and cannot be a difference of looking."""

    @property
    def change(self) -> Change:
        """What became of it."""
        if not self.before:
            return "appeared"
        if not self.after:
            return "vanished"
        return "grew" if self.after > self.before else "shrank" if self.after < self.before else "same"


class Comparison(Struct, frozen=True):
    """Two diagnoses, compared."""

    before: ComparedSide
    after: ComparedSide
    by_name: bool
    """Whether names tell groups apart; where they are pseudonyms, groups are those of a cause."""
    same_boot: bool | None
    """None where a boot id is not known."""
    elapsed_s: float | None
    """From the one to the other, below 0 where the second is the earlier one; None where that is not known."""
    groups: tuple[GroupChange, ...]
    """What got worse first, then problems before notices."""
    unequal: tuple[str, ...]
    """In what the two looks differ, as sentences: what is said of growth is not known because of these."""

    @property
    def worse(self) -> tuple[GroupChange, ...]:
        """The groups that got worse."""
        return tuple(group for group in self.groups if group.worse)

    @property
    def verdict(self) -> Verdict:
        """Whether something got worse; a part that was not seen is never an all-clear."""
        if any(group.known for group in self.worse):
            return "worse"
        blind = any(side.gaps or side.unjudged for side in (self.before, self.after))
        return "unknown" if self.worse or blind or self.unequal else "not worse"


class _Members(Struct):
    """What a group is on one side."""

    severity: Severity = "healthy"
    title: str = ""
    count: int = 0
    cookies: set[tuple[int, int]] = set()
    """Namespace and cookie of each connection."""
    rows: bool = True


def compared(before: ComparedSide, after: ComparedSide) -> Comparison:
    """Compare two diagnoses."""
    by_name = not before.redacted and not after.redacted
    known_boots = by_name and before.boot_id and after.boot_id  # redaction replaces boot ids, too
    same_boot = before.boot_id == after.boot_id if known_boots else None
    elapsed_s = _elapsed_s(before, after, same_boot=same_boot)
    unequal = tuple(_unequal(before, after))
    first, second = (_named(side, one_boot=bool(same_boot), by_name=by_name) for side in (before, after))
    rated = bool(same_boot) and elapsed_s is not None and elapsed_s >= _LEAST_S
    groups = [
        _change(
            name,
            first.get(name, _Members()),
            second.get(name, _Members()),
            same_boot=bool(same_boot),
            hours=elapsed_s / 3600 if rated and elapsed_s is not None else None,
            known=not unequal,
        )
        for name in {*first, *second}
    ]
    groups.sort(key=lambda g: (not g.worse, _ORDER[g.severity], -abs(g.after - g.before), -g.after, g.name))
    return Comparison(before, after, by_name, same_boot, elapsed_s, tuple(groups), unequal)


def _elapsed_s(before: ComparedSide, after: ComparedSide, *, same_boot: bool | None) -> float | None:
    if same_boot and before.boottime_ns and after.boottime_ns:
        return (after.boottime_ns - before.boottime_ns) / 1e9
    if before.unix_ns and after.unix_ns:
        return (after.unix_ns - before.unix_ns) / 1e9
    return None


def _unequal(before: ComparedSide, after: ComparedSide) -> Iterator[str]:
    """Yield in what the two looks differ, so that a group may seem to have changed."""
    a, b = ({(gap.where, gap.doing) for gap in side.gaps} for side in (before, after))
    if only := len(a - b):
        yield f"{only} part{'' if only == 1 else 's'} of A could not be seen, and could in B"
    if only := len(b - a):
        yield f"{only} part{'' if only == 1 else 's'} of B could not be seen, and could in A"
    if before.view.holders.searched != after.view.holders.searched:
        yield f"owners were looked for in {'A' if before.view.holders.searched else 'B'} only"
    if bool(before.view.established_skipped) != bool(after.view.established_skipped):
        yield f"ESTABLISHED connections were left out in {'A' if before.view.established_skipped else 'B'} only"


def _named(side: ComparedSide, *, one_boot: bool, by_name: bool) -> dict[GroupName, _Members]:
    """Return the groups of a side; those that cannot be told apart without pids are one."""
    result: dict[GroupName, _Members] = {}
    for finding in side.findings:
        if not finding.primary or finding.severity == "healthy":
            continue
        name = GroupName(finding.rule, "", "")
        if by_name:
            place = _place(side.view, finding, one_boot=one_boot)
            name = GroupName(finding.rule, _program(side.view, finding), place)
        members = result.setdefault(name, _Members())
        if _ORDER[finding.severity] < _ORDER[members.severity]:
            members.severity, members.title = finding.severity, finding.headline
        members.count += finding.count
        sockets = side.view.sockets
        rows = finding.rows[:0] if finding.counted else finding.rows
        pairs = zip(sockets.netns[rows].tolist(), sockets.cookie[rows].tolist(), strict=True)
        members.cookies = members.cookies | set(pairs)
        members.rows = members.rows and bool(len(rows))
    return result


def _change(
    name: GroupName, first: _Members, second: _Members, *, same_boot: bool, hours: float | None, known: bool
) -> GroupChange:
    latest = second if second.count else first
    follow = same_boot and first.rows and second.rows
    return GroupChange(
        name=name,
        severity=latest.severity,
        title=latest.title,
        before=first.count,
        after=second.count,
        stayed=len(first.cookies & second.cookies) if follow else None,
        per_hour=(second.count - first.count) / hours if hours else None,
        worse=second.severity == "problem" and second.count > _as_problem(first),
        known=known,
    )


def _as_problem(members: _Members) -> int:
    """Return how many there were as a problem: what was a notice and is a problem now got worse."""
    return members.count if members.severity == "problem" else 0


def _program(view: View, group: Finding) -> str:
    """Return who holds a group, by name."""
    if group.pids:
        return name_of(view.processes[pid].comm if pid in view.processes else "?" for pid in group.pids)
    held = group.rows[view.held[group.rows]]
    if not len(held):
        return "not accepted" if len(group.rows) and view.queued[group.rows].any() else "nobody"
    if not view.holders.searched:
        return "not looked for"
    return "unknown" if view.holder_unknown[held].any() else "no process"


def _place(view: View, group: Finding, *, one_boot: bool) -> str:
    """Return where a group is, by what is the same after a restart; a namespace without a name only within a boot."""
    for row in group.rows[:1].tolist():
        pod, work = view.row_names.pod[row], view.workloads[row]
        if pod is not None:
            return pod.workload
        if work is not None and work.pod_uid:
            return f"pod {work.pod_uid}" if one_boot else "a pod"
        if work is not None and work.unit.endswith(".service"):
            return work.unit
        if work is not None and work.container_id:
            return f"container {work.container_id[:12]}" if one_boot else "a container"
    space = view.namespaces.get(group.netns)
    if space is not None and space.names:
        return space.names[0]
    return f"netns {group.netns}" if one_boot else "a network namespace"
