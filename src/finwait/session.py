"""The one place where edges meet core: look, join, explain.

    snapshot()  one look: every TCP connection of every network namespace, as columns
    diagnose()  one look or two, and what the rules make of it

Both take a *machine*: the running one (`finwait.kernel.observe.Machine`) or a recording
(`finwait.recording.Replay`), which answers the same questions from a file.
"""

from __future__ import annotations

import errno
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from finwait.attribution import process
from finwait.attribution.process import ProcessView
from finwait.attribution.services import services
from finwait.diagnosis import catalogue, engine, select
from finwait.diagnosis.assemble import assemble
from finwait.diagnosis.context import ViewContext
from finwait.diagnosis.finding import Finding
from finwait.diagnosis.hint import NOTHING_ASKED, Asked
from finwait.diagnosis.rule import Rule
from finwait.diagnosis.rules.holder_not_found import suspects
from finwait.diagnosis.select import Narrowed
from finwait.diagnosis.view import HiddenDescriptor, NamespaceView, Options, View
from finwait.errors import FinwaitError, Gap
from finwait.kernel import procfs
from finwait.kernel.observe import Plan
from finwait.table import decode
from finwait.table.filter import Filter, parse
from finwait.table.flows import FlowTable
from finwait.table.sockets import SocketTable
from finwait.table.units import printable
from finwait.uapi import tcp
from finwait.uapi.observation import (
    Descriptors,
    Facts,
    LoneSocket,
    Namespace,
    Observation,
    ProcessFiles,
    unseen,
)

__all__ = [
    "Diagnosis",
    "Look",
    "Machine",
    "Snapshot",
    "diagnose",
    "findings_of",
    "live_machine",
    "look",
    "named",
    "narrow",
    "refuse_impossible",
    "rules_for",
    "snapshot",
]


class Machine(Protocol):
    """What answers a look: the running kernel or a recording."""

    @property
    def live(self) -> bool:
        """Whether it is the machine that we run on."""

    @property
    def again(self) -> bool:
        """Whether a second look can show something new; False where a recording has no further look."""

    def begin(self) -> Machine:
        """Return what a look uses: a recording, whatever was asked of it before, from its first look on."""

    def observe(self, plan: Plan) -> Observation:
        """Look once (a recording: give its next look)."""

    def descriptors_again(self) -> Descriptors:
        """List all socket descriptors once more."""

    def processes(self, which: Iterable[int]) -> dict[int, ProcessFiles]:
        """Read the files that describe processes."""

    def cgroups(self, ids: Iterable[int]) -> dict[int, str]:
        """Return the paths of cgroups by id."""

    def close_on_exec(self, pairs: Iterable[tuple[int, int]]) -> dict[tuple[int, int], bool]:
        """Return which descriptors an executed program would not inherit."""

    def lone_sockets(self, triples: Iterable[tuple[int, int, int]]) -> dict[int, LoneSocket]:
        """Return what TCP sockets that no dump contains say of themselves, by inode."""

    def remember(self, spaces: Iterable[tuple[int, int, int]]) -> None:
        """Look into further namespaces from now on: ``(netns, pid, fd)`` of sockets that lead there."""

    def devices(self, spaces: Iterable[int]) -> Mapping[tuple[int, int], str]:
        """Return the names of the interfaces of namespaces, by (netns, ifindex); none of a recording."""

    def socket_protocols(self, triples: Iterable[tuple[int, int, int]]) -> dict[int, str]:
        """Return the protocol names of sockets by inode."""


def live_machine() -> Machine:
    """Return the machine that we run on."""
    from finwait.kernel.observe import Machine as Live

    return Live()


@dataclass(frozen=True, slots=True)
class Look:
    """How to look and what to make of it."""

    plan: Plan = field(default_factory=Plan)
    options: Options = field(default_factory=Options)
    watch_ms: int = 0
    """Time between two looks; 0 for one look. Of a recording the first and the last are compared in any case."""
    not_holders: frozenset[int] = frozenset()
    """Pids that cannot be looked into, of which the caller knows that they hold none of the sockets."""
    progress: Callable[[str], None] | None = None


@dataclass(frozen=True)
class Snapshot:
    """Every TCP connection of one look, joined with its owners and other ends.

    ``sockets`` has the columns of the reference page *columns*; ``view`` has the joins, cell by cell.
    """

    observation: Observation
    sockets: SocketTable
    flows: FlowTable | None
    view: View
    gaps: tuple[Gap, ...]
    machine: Machine = field(repr=False)

    def __len__(self) -> int:
        return len(self.sockets)

    @cached_property
    def first_pid(self) -> NDArray[np.int64]:
        """The lowest holding pid of each row, −1 where none was found."""
        return self.view.holders.first_pid()

    def to_arrow(self) -> Any:  # noqa: ANN401 - arro3 is an optional dependency
        """Return the rows as an Arrow table (needs the ``export`` extra).

        Raises:
            ImportError: arro3 is not installed.
        """
        from finwait.report.arrow import table

        return table(self.view, list(SocketTable.schema.names))


@dataclass(frozen=True)
class Diagnosis:
    """What is wrong, what is healthy, and what could not be seen."""

    snapshot: Snapshot
    findings: tuple[Finding, ...]
    gaps: tuple[Gap, ...]
    asked: Asked = NOTHING_ASKED
    """The FILTER that it was narrowed to, and the options of the look, which its commands repeat."""
    narrowed: Narrowed | None = None
    """What the FILTER selects, and what it cannot judge; None where there is none."""

    @property
    def view(self) -> View:
        """The sockets with all that was joined to them; ``Finding.rows`` index it."""
        return self.snapshot.view

    @property
    def problems(self) -> tuple[Finding, ...]:
        """The primary findings that are problems."""
        return tuple(f for f in self.findings if f.primary and f.severity == "problem")


def _namespaces(
    observation: Observation, complete: bool, before: Mapping[int, Mapping[str, int]]
) -> dict[int, NamespaceView]:
    addresses = decode.local_addresses(observation)
    result = {}
    for ns in observation.namespaces:
        sysctls = {
            name[4:]: data.decode("ascii", "replace").strip()
            for name, data in ns.files.items()
            if name.startswith("sys/")
        }
        result[ns.inode] = NamespaceView(
            ns.inode,
            tuple(printable(name) for name in ns.names),
            sysctls,
            process.counters(ns.files),
            before.get(ns.inode, {}),
            addresses.get(ns.inode, frozenset()),
            complete and not ns.established_skipped and _dumped(ns),
        )
    return result


def _dumped(ns: Namespace) -> bool:
    """Whether all sockets of a namespace were dumped, in the states that were asked for, or it has none."""
    dumps = [dump for dump in ns.dumps if dump.kind == "tcp"]
    if dumps:
        return not any(dump.interrupted for dump in dumps)
    counted = process.counters(ns.files)
    in_use = sum(counted.get(f"{name}.inuse", 0) for name in ("sockstat.TCP", "sockstat6.TCP6"))
    return not in_use and counted.get("sockstat.TCP.tw") == 0


def _all_states(observation: Observation, plan: Plan) -> bool:
    """Whether rows of all states were asked for, but for ESTABLISHED ones of large namespaces."""
    large = any(ns.established_skipped for ns in observation.namespaces)
    every = plan.states & tcp.ALL_STATES == tcp.ALL_STATES
    return (observation.complete or (large and every)) and not plan.bytecode


def _flows_complete(observation: Observation) -> bool:
    """Whether every entry of connection tracking is known, in all namespaces that there are."""
    if any(gap.doing == "enter it" for gap in observation.gaps):
        return False
    return all(
        ns.files.get("sys/netfilter/nf_conntrack_count", b"0").strip() == b"0"
        or any(dump.kind == "conntrack" for dump in ns.dumps)
        for ns in observation.namespaces
    )


def _unheld(sockets: SocketTable, found: Descriptors) -> bool:
    """Whether rows that deserve a word without a holder have an inode that no listed descriptor names."""
    inodes = sockets.inode[suspects(sockets)]
    return bool(len(inodes)) and not np.isin(inodes.astype(np.uint64), found.inode).all()


def _unsearched_threads(found: Descriptors) -> list[Gap]:
    if not found.threads:
        return []
    n = len(found.threads)
    who = f"pid {found.threads[0]}" if n == 1 else f"{n} processes"
    return [Gap(who, "look for threads with a descriptor table of their own: there are too many threads", "")]


def _both(a: Descriptors, b: Descriptors) -> Descriptors:
    return Descriptors(
        np.concatenate([a.pid, b.pid]),
        np.concatenate([a.fd, b.fd]),
        np.concatenate([a.inode, b.inode]),
        tuple(sorted({*a.unreadable, *b.unreadable})),
        threads=b.threads,
    )


_CAP_SYS_PTRACE: Final = 19
_MOST_LONE: Final = 20_000
"""Sockets without a row to ask at most; some 10 µs each."""


def _lost(
    machine: Machine,
    listed: NDArray[np.uint64],
    found: Descriptors,
    only: frozenset[int] | None,
    files: Mapping[int, ProcessFiles],
) -> list[tuple[int, int, int]]:
    """Return ``(pid, fd, inode)`` of TCP sockets that are not among those that some dump has listed."""
    lost = ~np.isin(found.inode, listed)
    if only is not None:  # its process's namespace is the best lead, but a process may hold sockets of others
        mine = [pid for pid, one in files.items() if one.netns in only]
        lost &= np.isin(found.pid, np.array(mine, np.uint32))
    triples = list(
        zip(found.pid[lost].tolist(), found.fd[lost].tolist(), found.inode[lost].tolist(), strict=True)
    )
    names = machine.socket_protocols(triples)
    return [triple for triple in triples if names.get(triple[2]) in ("TCP", "TCPv6")]


def _hidden(
    lost: Iterable[tuple[int, int, int]],
    lone: Mapping[int, LoneSocket],
    only: frozenset[int] | None,
    enough: int,
    service: Mapping[int, int],
    capable: bool,
) -> tuple[tuple[HiddenDescriptor, ...], list[Gap]]:
    """Say which descriptors refer to connections that are gone, and of which processes nobody knows.

    Before Linux 5.6 no socket can be asked. There a service that has fewer of both together than ``enough`` is no gap:
    it would be no finding whatever they are, and every machine with a socket not yet connected had a gap for ever.

    A socket that no dump contains may also be one that was never connected, one that was made since, or one that lives
    in a namespace that was not looked into.
    """
    hidden: list[HiddenDescriptor] = []
    unknown: dict[int, list[int]] = {}
    for pid, fd, inode in lost:
        one = lone.get(inode)
        if one is None:  # it is gone by now
            continue
        if not one.state:
            unknown.setdefault(pid, []).append(one.errno)
        elif one.state == tcp.CLOSE and one.used and (only is None or not one.netns or one.netns in only):
            hidden.append(HiddenDescriptor(pid, fd, inode, one.netns))
    perhaps = Counter(service.get(one.pid, one.pid) for one in hidden)
    for pid, numbers in unknown.items():
        perhaps[service.get(pid, pid)] += len(numbers)
    why = {
        pid: numbers
        for pid, numbers in unknown.items()
        if perhaps[service.get(pid, pid)] >= enough or errno.ENOSYS not in numbers
    }
    if not why:
        return tuple(hidden), []
    who = f"pid {min(why)}" if len(why) == 1 else f"{len(why)} processes"
    doing = "ask the TCP sockets that no dump contains for their state"
    met = {number for some in why.values() for number in some}
    return tuple(hidden), [Gap(who, doing, _right_to_ask(met, capable=capable))]


def _with_parents(
    machine: Machine, pids: Iterable[int], known: Mapping[int, ProcessView], facts: Facts
) -> dict[int, ProcessView]:
    found = process.processes(machine.processes(sorted(pids)), facts)
    return found | _parents(machine, found, known, facts)


def _parents(
    machine: Machine, of: Mapping[int, ProcessView], known: Mapping[int, ProcessView], facts: Facts
) -> dict[int, ProcessView]:
    """What their parents are tells the workers of one server from programs that merely share a name."""
    parents = {p.ppid for p in of.values() if p.ppid > 1} - of.keys() - known.keys()
    return process.processes(machine.processes(sorted(parents)), facts)


def _may_trace(look: Observation) -> bool:
    """Return whether the looker had CAP_SYS_PTRACE."""
    return bool(look.facts.capabilities >> _CAP_SYS_PTRACE & 1)


def _right_to_ask(numbers: set[int], *, capable: bool) -> str:
    """Return what would let us ask a socket that only a descriptor names, by why we could not."""
    if errno.ENOSYS in numbers:
        return "pidfd_getfd, which came with Linux 5.6"
    if errno.EINVAL in numbers:
        return "pidfd_open() of a thread, which came with Linux 6.9"
    if not numbers & {errno.EPERM, errno.EACCES}:
        return ""
    if capable:
        return "a policy that allows it (yama's ptrace_scope below 3, a security module); CAP_SYS_PTRACE is not enough"
    return "CAP_SYS_PTRACE"


_MANY: Final = 2_000
"""Of more descriptors without a row, those of ESTABLISHED sockets are told apart by a dump of their inodes alone."""


def _left_out(
    machine: Machine, observation: Observation, plan: Plan, found: Descriptors
) -> NDArray[np.uint64]:
    """Return the inodes of ESTABLISHED sockets that were left out of the dumps, where there are many descriptors.

    A dump without attributes takes less than a microsecond a socket; asking each descriptor takes ten and more.
    """
    spaces = frozenset(ns.inode for ns in observation.namespaces if ns.established_skipped)
    if not spaces or not machine.live or len(found.inode) < _MANY:
        return np.empty(0, np.uint64)
    bare = replace(
        plan, states=1 << tcp.ESTABLISHED, extensions=0, conntrack=False, files=False, descriptors=False,
        established_limit=None, only=spaces, mptcp=False,
    )  # fmt: skip
    return decode.sockets(machine.observe(bare)).inode.astype(np.uint64)


def _few_of_each(
    triples: list[tuple[int, int, int]],
) -> tuple[list[tuple[int, int, int]], list[tuple[int, int, int]]]:
    """Return as many as can be asked, the same number of each process as far as they go round; and the others."""
    if len(triples) <= _MOST_LONE:
        return triples, []
    ranked = _fairly(triples)
    return ranked[:_MOST_LONE], ranked[_MOST_LONE:]


def _fairly(triples: list[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """Return the first of each process, then the second of each, and so on."""
    count: Counter[int] = Counter()
    ranked = []
    for triple in triples:
        ranked.append((count[triple[0]], *triple))
        count[triple[0]] += 1
    return [(pid, fd, inode) for _, pid, fd, inode in sorted(ranked)]


def look(machine: Machine, how: Look) -> Snapshot:
    """Look at a machine once, or twice with a pause, and join what was read.

    Raises:
        DecodeError: the kernel (or a recording) sent bytes that are not what they claim to be.
        KernelError: the look could not even begin.
    """
    if isinstance(machine, (str, bytes)) or hasattr(machine, "__fspath__"):
        raise TypeError("a path is no machine; finwait.recording.open_recording(path) is one")
    return _look(machine.begin(), how, again=True)


def _look(machine: Machine, how: Look, *, again: bool) -> Snapshot:
    """As `look`; ``again`` where sockets lead to namespaces that nothing else leads to."""
    plan = how.plan if how.progress is None else replace(how.plan, progress=how.progress)
    earlier: SocketTable | None = None
    watched = first_look_ms = 0
    before: dict[int, Mapping[str, int]] = {}
    begun = time.monotonic()
    observation = machine.observe(plan)
    if machine.again and (how.watch_ms or not machine.live):
        earlier = decode.sockets(observation)
        first_ns, first_end_ns = observation.facts.boottime_ns, observation.facts.boottime_end_ns
        first_look_ms = max(0, first_end_ns - first_ns) // 1_000_000
        before = {ns.inode: process.counters(ns.files) for ns in observation.namespaces}
        if machine.live:
            if how.progress:
                how.progress(f"watching for {how.watch_ms / 1000:g} s")
            time.sleep(max(0.0, how.watch_ms / 1000 - (time.monotonic() - begun)))
        observation = machine.observe(plan)
        while not machine.live and machine.again:  # the longer between the first and the last, the surer
            observation = machine.observe(plan)
        watched = (observation.facts.boottime_ns - first_ns) // 1_000_000
    sockets = decode.sockets(observation)
    flows = decode.flows(observation)
    found = observation.descriptors
    if found.searched and _unheld(sockets, found):
        # Made after the descriptors were listed, or held by none of them: only a second list tells.
        found = procfs.unique(_both(found, machine.descriptors_again()))
    here = np.isin(found.inode, sockets.inode.astype(np.uint64))
    holding = {int(p) for p in np.unique(found.pid[here] if plan.only is None else found.pid)}
    holding |= {pid for pid in found.unreadable if pid}  # what they are called tells what they may hold
    files = machine.processes(sorted(holding))
    processes = process.processes(files, observation.facts)
    processes |= _parents(machine, processes, {}, observation.facts)
    complete = _all_states(observation, plan)
    hidden: tuple[HiddenDescriptor, ...] = ()
    more = _unsearched_threads(found)
    if complete and found.searched:
        listed = np.concatenate(
            [sockets.inode.astype(np.uint64), _left_out(machine, observation, plan, found)]
        )
        lost, unasked = _few_of_each(_lost(machine, listed, found, plan.only, files))
        if unasked:
            pids = {pid for pid, _, _ in unasked}
            who = f"pid {min(pids)}" if len(pids) == 1 else f"{len(pids)} processes"
            doing = f"ask {len(unasked)} more TCP sockets that no dump contains for their state"
            more.append(Gap(who, doing, ""))
        lone = machine.lone_sockets(lost)
        if plan.only is None and (spaces := unseen(observation, lone, lost)):
            if again and machine.live:
                machine.remember(spaces)
                return _look(machine, how, again=False)
            entering = {gap.where.partition(" (")[0] for gap in observation.gaps if gap.doing == "enter it"}
            doing = "look into it: only sockets lead there"
            spaces = [space for space in spaces if f"netns {space[0]}" not in entering]
            more += [Gap(f"netns {netns}", doing, "CAP_SYS_ADMIN") for netns, _, _ in spaces]
        asked = {pid for pid, _, inode in lost if inode in lone}
        processes |= _with_parents(machine, asked - processes.keys(), processes, observation.facts)
        hidden, unknown = _hidden(
            lost, lone, plan.only, how.options.hidden, services(processes), _may_trace(observation)
        )
        more += unknown
    ids = np.unique(sockets.cgroup_id).tolist() if len(sockets) else []
    paths = {number: printable(path) for number, path in machine.cgroups(ids).items()}
    skipped = sum(ns.established_skipped for ns in observation.namespaces)
    entered = not any(gap.doing == "enter it" for gap in observation.gaps)
    view = assemble(
        sockets,
        flows=flows,
        descriptors=found,
        namespaces=_namespaces(observation, complete, before),
        processes=processes,
        cgroup_paths=paths,
        options=how.options,
        earlier=earlier,
        watched_ms=int(watched),
        first_look_ms=first_look_ms,
        not_holders=how.not_holders,
        hidden=hidden,
        hidden_known=complete and found.searched,
        established_skipped=skipped,
        flows_complete=_flows_complete(observation),
    )
    view = replace(view, whole=plan.only is None and entered)
    gaps = tuple(
        g
        for g in sorted({*observation.gaps, *more})
        if not any(g.where == f"pid {pid}" for pid in how.not_holders)
    )
    return Snapshot(observation, sockets, flows, view, gaps, machine)


def snapshot(machine: Machine | None = None, **plan: Any) -> Snapshot:  # noqa: ANN401 - fields of Plan
    """Look once at this machine (or a recording) and return every TCP connection as columns.

    Args:
        machine: where to look; the running machine if not given.
        plan: fields of `finwait.kernel.observe.Plan`, e.g. ``states=…`` or ``descriptors=False``.

    Raises:
        DecodeError: the kernel sent bytes that are not what they claim to be.
    """
    plan.setdefault("established_limit", None)
    return look(machine or live_machine(), Look(plan=Plan(**plan)))


def diagnose(
    machine: Machine | None = None,
    *,
    how: Look | None = None,
    rules: Iterable[str] | None = None,
    only: Callable[[Snapshot], NDArray[np.bool_]] | None = None,
    asked: Asked = NOTHING_ASKED,
) -> Diagnosis:
    """Look, and say which connections do not finish closing, and why.

    Args:
        machine: where to look; the running machine if not given.
        how: how to look (two looks, thresholds, namespaces).
        rules: names of the rules to apply, beside those of healthy patterns; all if not given. Rows in a closing
            state that none of them explains are found ``unexplained``.
        only: gives the mask of rows to report on; the other rows still serve as other ends.
        asked: options of a command line for the commands that findings suggest. A FILTER is applied by `narrow`.

    Raises:
        ValueError: there is no rule of that name.
        DecodeError: the kernel sent bytes that are not what they claim to be.
    """
    try:
        chosen = catalogue.rules() if rules is None else rules_for(rules)
    except KeyError as error:
        raise ValueError(f"there is no rule {error}; the rules are {', '.join(catalogue.NAMES)}") from None
    shot = look(machine or live_machine(), how or Look())
    mask = only(shot) if only is not None else None
    plain = replace(asked, filter=None)
    found = engine.diagnose(shot.view, chosen, mask, plain)
    if wanted := engine.flags_wanted(shot.view, chosen, found):
        view = replace(shot.view, close_on_exec=shot.machine.close_on_exec(wanted))
        shot, found = replace(shot, view=view), engine.with_flags(view, chosen, found, plain)
    gaps = tuple(sorted({*shot.gaps, *engine.gaps(shot.view, chosen)}))
    return Diagnosis(shot, found, gaps, plain)


def refuse_impossible(found: Filter, shot: Snapshot, users: Mapping[int, str] | None = None) -> None:
    """Raise an error where a FILTER can match nothing, for it names what is not here.

    Args:
        found: the FILTER.
        shot: what was looked at.
        users: uid → name, where names of users are known.

    Raises:
        FinwaitError: it does; that it selects nothing says nothing about connections.
    """
    here = select.Names(shot.machine.processes, users, shot.machine.devices)
    if why := select.nothing_like_it(found, shot.view, here):
        error = FinwaitError(f"`{found.text.strip()}` can match nothing: {'; '.join(why)}")
        error.hint = "`finwait list` shows what is there, `finwait netns` the network namespaces"
        raise error


def narrow(diagnosis: Diagnosis, found: Filter, context: ViewContext) -> Diagnosis:
    """Return what a FILTER leaves of a diagnosis, and which of its findings it cannot judge.

    Args:
        diagnosis: of all that was looked at.
        found: the FILTER.
        context: what is known of the rows, and of the findings of the diagnosis.

    Raises:
        ValueError: the FILTER asks for something that is not known here.
        FinwaitError: it can match nothing, for it names something that is not here.
    """
    view, sockets = diagnosis.view, diagnosis.view.sockets
    mask = found.mask(sockets, context)
    asked = replace(diagnosis.asked, filter=found)
    about_rows = tuple(f for f in engine.diagnose(view, catalogue.rules(), mask, asked) if len(f.rows))
    answers = [
        (f, select.judge(found, f, view, context.users)) for f in diagnosis.findings if not len(f.rows)
    ]
    kept = tuple(f for f, answer in answers if answer)
    worth = np.zeros(len(view), np.bool_)
    for finding in diagnosis.findings:
        if finding.primary and finding.severity != "healthy":
            worth[finding.rows] = True
    rows = np.flatnonzero(worth & ~mask)
    open_ = np.zeros(len(view), np.bool_)
    open_[rows[found.possible(sockets, context, rows)]] = True
    unjudged = [f for f, answer in answers if answer is None and f.severity != "healthy"]
    if open_.any():
        more = engine.diagnose(view, catalogue.rules(), open_, diagnosis.asked)
        unjudged += [f for f in more if len(f.rows) and f.primary and f.severity != "healthy"]
    if not mask.any() and not kept and not unjudged:
        refuse_impossible(found, diagnosis.snapshot, context.users)
    return replace(
        diagnosis,
        findings=engine.sorted_findings(view, (*kept, *about_rows)),
        asked=asked,
        narrowed=Narrowed(found, mask, tuple(unjudged)),
    )


def rules_for(names: Iterable[str]) -> tuple[Rule, ...]:
    """Return rules by name, and those without which a row that none of them explains would pass for healthy.

    Raises:
        KeyError: there is none of a name.
    """
    return tuple(dict.fromkeys([*(catalogue.rule(name) for name in names), *catalogue.indispensable()]))


def findings_of(diagnosis: Diagnosis, row: int) -> tuple[Finding, ...]:
    """Return what the rules say about one connection; the other rows still serve as other ends."""
    alone = np.zeros(len(diagnosis.view), np.bool_)
    alone[row] = True
    s = diagnosis.view.sockets
    one = parse(f"netns = {int(s.netns[row])} and cookie = {int(s.cookie[row]):#x}")
    asked = replace(diagnosis.asked, filter=one)
    return tuple(f for f in engine.diagnose(diagnosis.view, catalogue.rules(), alone, asked) if len(f.rows))


def named(diagnosis: Diagnosis, names: Mapping[int, str]) -> Diagnosis:
    """Return a diagnosis in which namespaces have (further) names, first in their list."""
    view = diagnosis.view
    renamed = {
        inode: replace(ns, names=(names[inode], *ns.names)) if inode in names else ns
        for inode, ns in view.namespaces.items()
    }
    shot = replace(diagnosis.snapshot, view=replace(view, namespaces=renamed))
    return replace(diagnosis, snapshot=shot)
