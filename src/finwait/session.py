"""The one place where edges meet core: look, join, explain.

    snapshot()  one look: every TCP connection of every network namespace, as columns
    diagnose()  one look or two, and what the rules make of it

Both take a *machine*: the running one (`finwait.kernel.observe.RunningMachine`) or a recording
(`finwait.recording.Replay`), which answers the same questions from a file.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, Literal

import numpy as np
from msgspec import Struct, field
from msgspec.structs import replace
from numpy.typing import NDArray

from finwait.attribution import process
from finwait.attribution.services import services
from finwait.diagnosis import catalogue, engine, select
from finwait.diagnosis.assemble import assemble, followed
from finwait.diagnosis.context import ViewContext
from finwait.diagnosis.finding import Finding
from finwait.diagnosis.hint import NOTHING_ASKED, Asked
from finwait.diagnosis.rule import Rule
from finwait.diagnosis.rules.inherited_descriptor import SHARED
from finwait.diagnosis.select import Narrowed
from finwait.diagnosis.view import HiddenDescriptor, NamespaceView, Options, View
from finwait.errors import FinwaitError, Gap
from finwait.kernel import rights
from finwait.kernel.observe import LookPlan
from finwait.lone_sockets import (
    ask_lone_sockets,
    closed_already,
    hidden_before,
    hidden_descriptors,
    may_trace,
    not_entered,
)
from finwait.machine import Machine
from finwait.second_list import completed
from finwait.table import decode
from finwait.table.filter import Filter, parse
from finwait.table.flows import FlowTable
from finwait.table.sockets import SocketTable
from finwait.table.states_then import StatesThen, states_then
from finwait.table.units import printable
from finwait.uapi import tcp
from finwait.uapi.cluster import ClusterNames
from finwait.uapi.observation import (
    Descriptors,
    Facts,
    Namespace,
    Observation,
    ProcessWaits,
)
from finwait.uapi.sets import among, distinct

__all__ = [
    "Diagnosis",
    "Look",
    "Machine",
    "Snapshot",
    "diagnose",
    "findings_of",
    "impossible",
    "live_machine",
    "look",
    "named",
    "narrow",
    "refuse_impossible",
    "regrouped",
    "rules_for",
    "snapshot",
    "who_waits",
]


def live_machine() -> Machine:
    """Return the machine that we run on."""
    from finwait.kernel.observe import RunningMachine as Live

    return Live()


class Look(Struct, frozen=True):
    """How to look and what to make of it."""

    plan: LookPlan = field(default_factory=LookPlan)
    options: Options = field(default_factory=Options)
    watch_ms: int = 0
    """Time from the end of one look to the beginning of another; 0 for one look. Of a recording the first and the last
    are compared in any case."""
    not_holders: frozenset[int] = frozenset()
    """Pids that cannot be inspected, of which the caller knows that they hold none of the sockets."""
    progress: Callable[[str], None] | None = None
    waits: Literal["nothing", "unfinished", "everything"] = "unfinished"
    """Of which connections to find out who waits for them: those that a program is to do something about, or all."""
    ages: (
        Callable[[Sequence[int]], tuple[Mapping[tuple[int, int, int], tuple[int, int]], tuple[Gap, ...]]]
        | None
    ) = None
    """Asked with cookies how long connections have been in their states, as `finwait.diagnosis.assemble.followed`
    takes it, and what of that is not known: by an agent that has followed them."""
    names: Callable[[Collection[str]], tuple[ClusterNames, tuple[Gap, ...]]] | None = None
    """Asked with addresses what a cluster calls them and its pods, and what of that is not known; None for what a
    recording has."""


class Snapshot(Struct, frozen=True, dict=True):
    """Every TCP connection of one look, joined with its owners and other ends.

    ``sockets`` has the columns of the reference page *columns*; ``view`` has the joins, cell by cell.
    """

    observation: Observation
    sockets: SocketTable
    flows: FlowTable | None
    view: View
    gaps: tuple[Gap, ...]
    machine: Machine
    first_states: StatesThen | None = None
    """How many sockets were in which state at the first of several looks; None where there was one look."""

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


class Diagnosis(Struct, frozen=True, dict=True):
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
            ns.island,
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


def _all_states(observation: Observation, plan: LookPlan) -> bool:
    """Whether rows of all states were asked for, but for ESTABLISHED ones of large namespaces."""
    large = any(ns.established_skipped for ns in observation.namespaces)
    every = plan.states & tcp.ALL_STATES == tcp.ALL_STATES
    return (observation.complete or (large and every)) and not plan.bytecode


def _flows_complete(observation: Observation) -> bool:
    """Whether every entry of connection tracking is known, in all namespaces that there are."""
    if any(gap.unentered for gap in observation.gaps):
        return False
    return all(
        ns.files.get("sys/netfilter/nf_conntrack_count", b"0").strip() == b"0"
        or any(dump.kind == "conntrack" for dump in ns.dumps)
        for ns in observation.namespaces
    )


def _unsearched_threads(descriptors: Descriptors) -> list[Gap]:
    if not descriptors.threads:
        return []
    doing = "look for threads with a descriptor table of their own: there are too many threads"
    return [Gap.of_processes(descriptors.threads, doing, "")]


def look(machine: Machine, how: Look) -> Snapshot:
    """Look at a machine once, or twice with a pause, and join what was read.

    Raises:
        DecodeError: the kernel (or a recording) sent bytes that are not what they claim to be.
        KernelError: the look could not even begin.
    """
    if isinstance(machine, (str, bytes)) or hasattr(machine, "__fspath__"):
        raise TypeError("a path is not a machine; use finwait.recording.open_recording(path)")
    return _look(machine.begin(), how, again=True)


class _Watched(Struct, frozen=True):
    """The last look, and what the first one was like where there were several."""

    observation: Observation
    earlier: SocketTable | None = None
    counters: Mapping[int, Mapping[str, int]] = field(default_factory=dict)
    """Namespace → counters of the first look."""
    first_states: StatesThen | None = None
    ms: int = 0
    """Time between the two."""
    first_look_ms: int = 0
    """How long the first one took."""
    ran: Mapping[int, bool] = field(default_factory=dict)
    """As `View.ran`."""
    closed: Mapping[tuple[int, int, int], int] | None = None
    """``(pid, fd, inode)`` whose connection was gone at the first look, with its unread bytes.

    None where there was no such look, or nobody asked.
    """


def _watch(machine: Machine, how: Look, plan: LookPlan) -> _Watched:
    """Look once, or twice with a pause; of a recording at the first and the last look."""
    first = machine.observe(plan)
    begun = time.monotonic()  # what both looks saw is then known for as long as was asked for
    if not machine.again or not (how.watch_ms or not machine.live):
        return _Watched(first)
    earlier = decode.sockets(first)
    closed = _closed(machine, first, plan, earlier)
    counters = {ns.inode: process.counters(ns.files) for ns in first.namespaces}
    unread = earlier.inode[(earlier.state == tcp.ESTABLISHED) & (earlier.rqueue > 0) & (earlier.inode != 0)]
    holding = first.descriptors.of(distinct(unread).astype(np.uint64))
    turns = machine.turns(holding) if machine.live else {}
    if machine.live:
        if how.progress:
            how.progress(f"watching for {how.watch_ms / 1000:g} s")
        time.sleep(max(0.0, how.watch_ms / 1000 - (time.monotonic() - begun)))
    last = machine.observe(plan)
    while not machine.live and machine.again:  # the longer between the first and the last, the surer
        last = machine.observe(plan)
    began_ns = first.facts.boottime_ns
    return _Watched(
        last,
        earlier,
        counters,
        states_then(first.facts.unix_ns, earlier),
        int((last.facts.boottime_ns - began_ns) // 1_000_000),
        max(0, first.facts.boottime_end_ns - began_ns) // 1_000_000,
        {pid: count != turns[pid] for pid, count in machine.turns(turns).items()} if turns else {},
        closed,
    )


def _closed(
    machine: Machine, first: Observation, plan: LookPlan, sockets: SocketTable
) -> Mapping[tuple[int, int, int], int] | None:
    """Ask at the first look which descriptors refer to connections that are gone; None where that is not asked."""
    listed = first.descriptors
    if not listed.searched or not _all_states(first, plan):
        return None
    pids = distinct(listed.pid).tolist() if plan.only is not None else []
    return closed_already(ask_lone_sockets(machine, first, plan, sockets, listed, machine.processes(pids)))


def _holding(sockets: SocketTable, descriptors: Descriptors, plan: LookPlan) -> set[int]:
    """Return the processes that hold sockets of the look, and those that may."""
    of_sockets = among(descriptors.inode, sockets.inode.astype(np.uint64))
    holding = {
        int(p) for p in distinct(descriptors.pid[of_sockets] if plan.only is None else descriptors.pid)
    }
    return holding | {
        pid for pid in descriptors.unreadable if pid
    }  # what they are called tells what they may hold


class _Programs:
    """The processes of a look, their files read once each."""

    def __init__(self, machine: Machine, facts: Facts, holding: Iterable[int]) -> None:
        self._machine = machine
        self._facts = facts
        self.files = machine.processes(sorted(holding))
        """Of the holders."""
        self.views = process.processes(self.files, facts)
        self._add_parents(self.views)

    def add(self, pids: Iterable[int]) -> None:
        """Read what describes further processes."""
        self._add_parents(self._read(pids))

    def _add_parents(self, of: Mapping[int, process.ProcessView]) -> None:
        """What their parents are tells the workers of one server from programs that merely share a name."""
        self._read([p.ppid for p in of.values() if p.ppid > 1])

    def _read(self, pids: Iterable[int]) -> dict[int, process.ProcessView]:
        missing = sorted(set(pids) - self.views.keys())
        views = process.processes(self._machine.processes(missing), self._facts)
        self.views |= views
        return views


def _look(machine: Machine, how: Look, *, again: bool) -> Snapshot:
    """As `look`; ``again`` where sockets lead to namespaces that nothing else leads to."""
    plan = how.plan if how.progress is None else replace(how.plan, progress=how.progress)
    watched = _watch(machine, how, plan)
    observation = watched.observation
    sockets, flows = decode.sockets(observation), decode.flows(observation)
    descriptors = completed(sockets, observation.descriptors, machine.descriptors_again)
    programs = _Programs(machine, observation.facts, _holding(sockets, descriptors, plan))
    gaps = [*observation.gaps, *_unsearched_threads(descriptors)]
    hidden: tuple[HiddenDescriptor, ...] | None = None
    if _all_states(observation, plan) and descriptors.searched:
        lone = ask_lone_sockets(machine, observation, plan, sockets, descriptors, programs.files)
        if lone.spaces and again and machine.live:
            machine.remember(lone.spaces)
            return _look(machine, how, again=False)
        programs.add(pid for pid, _, inode in lone.triples if inode in lone.said)
        hidden, unknown = hidden_descriptors(
            lone, plan.only, how.options.hidden, services(programs.views), may_trace(observation)
        )
        if watched.closed is not None:
            hidden = hidden_before(hidden, watched.closed)
        gaps += [*lone.gaps, *not_entered(lone.spaces, observation), *unknown]
    view = _joined(machine, how, plan, watched, (sockets, flows, descriptors), programs.views, hidden)
    if (unheld := view.holder_missing & sockets.unfinished).any():
        releasing = machine.releasing(distinct(sockets.netns[unheld]).tolist())
        programs.add(thread.pid for thread in releasing)
        view = replace(view, releasing=releasing, processes=programs.views)
    if how.ages is not None:
        closing = view.in_state(*(state for state in tcp.STATES if tcp.CLOSING_STATES >> state & 1))
        followed_ms, unaged = how.ages(sockets.cookie[closing].tolist())
        view = followed(view, followed_ms)
        gaps += unaged
    called, unnamed = observation.names, tuple[Gap, ...]()
    if how.names is not None:
        called, unnamed = how.names(decode.addresses(sockets, flows))
    view = replace(view, names=called, unnamed=unnamed)
    gaps += unnamed
    if how.waits != "nothing" and descriptors.searched:
        mask = view.asked_about if how.waits == "unfinished" else sockets.inode != 0
        view = with_waits(machine, view, descriptors, np.flatnonzero(mask))
        gaps += _unread(view.waits_read)
    reported = tuple(gap for gap in sorted(set(gaps)) if gap.pid not in how.not_holders)
    return Snapshot(observation, sockets, flows, view, reported, machine, watched.first_states)


def _joined(
    machine: Machine,
    how: Look,
    plan: LookPlan,
    watched: _Watched,
    tables: tuple[SocketTable, FlowTable | None, Descriptors],
    processes: Mapping[int, process.ProcessView],
    hidden: tuple[HiddenDescriptor, ...] | None,
) -> View:
    """Join all that was read; ``hidden`` is None where nobody looked for what no dump contains."""
    observation = watched.observation
    sockets, flows, descriptors = tables
    ids = distinct(sockets.cgroup_id).tolist()
    view = assemble(
        sockets,
        flows=flows,
        descriptors=descriptors,
        namespaces=_namespaces(observation, _all_states(observation, plan), watched.counters),
        processes=processes,
        cgroup_paths={number: printable(path) for number, path in machine.cgroups(ids).items()},
        options=how.options,
        earlier=watched.earlier,
        watched_ms=watched.ms,
        first_look_ms=watched.first_look_ms,
        took_ms=max(0, observation.facts.boottime_end_ns - observation.facts.boottime_ns) // 1_000_000,
        not_holders=how.not_holders,
        to_inspect=rights.missing("CAP_SYS_PTRACE", observation.facts.capabilities),
        hidden=hidden or (),
        hidden_known=hidden is not None,
        established_skipped=sum(ns.established_skipped for ns in observation.namespaces),
        flows_complete=_flows_complete(observation),
    )
    gaps = [gap for gap in observation.gaps if gap.pid not in how.not_holders]
    entered = not any(gap.unentered for gap in gaps)
    several = view.holders.compared(np.isin(sockets.state, SHARED))
    return replace(
        view,
        whole=plan.only is None and entered,
        all_entered=entered and (plan.only is not None or not any(gap.unlisted for gap in gaps)),
        one_table=machine.one_table(several),
        ran=watched.ran,
        hidden_twice=watched.closed is not None,
    )


def with_waits(machine: Machine, view: View, descriptors: Descriptors, rows: NDArray[np.int64]) -> View:
    """Return a view that knows who waits for some rows, beside those of which it knows that already."""
    asked = distinct(view.sockets.inode[rows]).astype(np.uint64)
    # What is read of a process takes the place of what was read of it before, so it is about those rows, too.
    also = distinct(view.sockets.inode[view.asked_about]).astype(np.uint64)
    inodes = distinct(np.concatenate([asked[asked != 0], also]))
    fds_of = descriptors.of(asked[asked != 0])
    # How long a handshake lasts is an option of its listener.
    doors = view.sockets.inode[view.sockets.answering].astype(np.uint64)
    options = machine.socket_options(
        descriptors.triples(distinct(np.concatenate([asked[asked != 0], doors])))
    )
    return replace(
        view,
        waits_read={**view.waits_read, **machine.waits(fds_of, descriptors, inodes.tolist())},
        socket_options={**view.socket_options, **options},
    )


def who_waits(diagnosis: Diagnosis, rows: NDArray[np.int64]) -> Diagnosis:
    """Return a diagnosis that knows who waits for some rows, whatever state they are in.

    Args:
        diagnosis: of a look that listed descriptors; without them it is returned as it is.
        rows: of its view.
    """
    shot = diagnosis.snapshot
    descriptors = shot.observation.descriptors
    missing = rows[~shot.view.waits.asked[rows]]
    if not descriptors.searched or not len(missing):
        return diagnosis
    view = with_waits(shot.machine, shot.view, descriptors, missing)
    gaps = tuple(sorted({*diagnosis.gaps, *_unread(view.waits_read)}))
    return replace(diagnosis, snapshot=replace(shot, view=view), gaps=gaps)


def _unread(waits: Mapping[int, ProcessWaits]) -> list[Gap]:
    """Return what could not be read of those who wait, for all processes with the same trouble at once."""
    pids: dict[str, list[int]] = {}
    for pid, process_waits in waits.items():
        for line in process_waits.unread:
            pids.setdefault(line, []).append(pid)
    parts = ((group, *line.partition("\t")) for line, group in pids.items())
    return [Gap.of_processes(group, doing, needs) for group, doing, _, needs in parts]


def snapshot(machine: Machine | None = None, **plan: Any) -> Snapshot:  # noqa: ANN401 - fields of Plan
    """Look once at this machine (or a recording) and return every TCP connection as columns.

    Args:
        machine: where to look; the running machine if not given.
        plan: fields of `finwait.kernel.observe.Plan`, e.g. ``states=…`` or ``descriptors=False``.

    Raises:
        DecodeError: the kernel sent bytes that are not what they claim to be.
    """
    plan.setdefault("established_limit", None)
    return look(machine or live_machine(), Look(plan=LookPlan(**plan), waits="nothing"))


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
    findings = engine.diagnose(shot.view, chosen, mask, plain)
    if descriptors := engine.flags_wanted(shot.view, chosen, findings):
        view = replace(shot.view, close_on_exec=shot.machine.close_on_exec(descriptors))
        shot, findings = replace(shot, view=view), engine.with_flags(view, chosen, findings, plain)
    gaps = tuple(sorted({*shot.gaps, *engine.gaps(shot.view, chosen)}))
    return Diagnosis(shot, findings, gaps, plain)


def impossible(row_filter: Filter, shot: Snapshot, users: Mapping[int, str] | None = None) -> tuple[str, ...]:
    """Return what a FILTER names that is not here, as sentences, where it can match nothing for that reason.

    Args:
        row_filter: the FILTER.
        shot: what was looked at.
        users: uid → name, where names of users are known.
    """
    machine = shot.machine
    known = select.KnownNames(machine.processes, users, machine.devices, recorded=not machine.live)
    return select.nothing_like_it(row_filter, shot.view, known)


def refuse_impossible(row_filter: Filter, shot: Snapshot, users: Mapping[int, str] | None = None) -> None:
    """Raise an error where a FILTER can match nothing, for it names what is not here.

    Args:
        row_filter: the FILTER.
        shot: what was looked at.
        users: uid → name, where names of users are known.

    Raises:
        FinwaitError: it does; that it selects nothing says nothing about connections.
    """
    if why := impossible(row_filter, shot, users):
        error = FinwaitError(f"`{row_filter.text.strip()}` cannot match anything: {'; '.join(why)}")
        error.hint = "`finwait list` shows the connections, `finwait netns` the network namespaces"
        raise error


def narrow(
    diagnosis: Diagnosis, row_filter: Filter, context: ViewContext, *, refuse: bool = True
) -> Diagnosis:
    """Return what a FILTER leaves of a diagnosis, and which of its findings it cannot judge.

    Args:
        diagnosis: of all that was looked at.
        row_filter: the FILTER.
        context: what is known of the rows, and of the findings of the diagnosis.
        refuse: refuse a FILTER that can match nothing; a live view waits for what it names.

    Raises:
        ValueError: the FILTER asks for something that is not known here.
        FinwaitError: it can match nothing, for it names something that is not here.
    """
    view, sockets = diagnosis.view, diagnosis.view.sockets
    mask = row_filter.mask(sockets, context)
    asked = replace(diagnosis.asked, filter=row_filter)
    about_rows = tuple(f for f in engine.diagnose(view, catalogue.rules(), mask, asked) if len(f.rows))
    answers = [
        (f, select.judge(row_filter, f, view, context.users)) for f in diagnosis.findings if not len(f.rows)
    ]
    kept = tuple(f for f, answer in answers if answer)
    worth = np.zeros(len(view), np.bool_)
    for finding in diagnosis.findings:
        if finding.primary and finding.severity != "healthy":
            worth[finding.rows] = True
    rows = np.flatnonzero(worth & ~mask)
    open_ = np.zeros(len(view), np.bool_)
    open_[rows[row_filter.possible(sockets, context, rows)]] = True
    unjudged = [f for f, answer in answers if answer is None and f.severity != "healthy"]
    if open_.any():
        more = engine.diagnose(view, catalogue.rules(), open_, diagnosis.asked)
        unjudged += [f for f in more if len(f.rows) and f.primary and f.severity != "healthy"]
    if refuse and not mask.any() and not kept and not unjudged:
        refuse_impossible(row_filter, diagnosis.snapshot, context.users)
    return replace(
        diagnosis,
        findings=engine.sorted_findings(view, (*kept, *about_rows)),
        asked=asked,
        narrowed=Narrowed(row_filter, mask, tuple(unjudged)),
    )


def regrouped(diagnosis: Diagnosis, rows: NDArray[np.bool_], rule: str, pids: Collection[int]) -> Diagnosis:
    """Return what is said now of connections that were a group before; of what has no rows, by rule and process.

    Args:
        diagnosis: of all that was looked at.
        rows: the connections that are still there.
        rule: the group's.
        pids: the processes of a group that has no rows; empty for one that has.
    """
    view = diagnosis.view
    whole = [f for f in diagnosis.findings if len(f.rows) and rows[f.rows].all()]
    rest = rows.copy()
    for finding in whole:
        if finding.primary:
            rest[finding.rows] = False
    whole += [f for f in diagnosis.findings if not len(f.rows) and f.rule == rule and set(f.pids) & set(pids)]
    if rest.any():
        sockets = view.sockets
        spaces = ",".join(map(str, distinct(sockets.netns[rest]).tolist()))
        cookies = ",".join(f"{cookie:#x}" for cookie in sockets.cookie[rest].tolist())
        asked = replace(diagnosis.asked, filter=parse(f"netns = {spaces} and cookie = {cookies}"))
        parts = engine.diagnose(view, catalogue.rules(), rest, asked)
        whole += [f for f in parts if len(f.rows)]
    return replace(diagnosis, findings=engine.sorted_findings(view, whole))


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
    row_filter = parse(f"netns = {int(s.netns[row])} and cookie = {int(s.cookie[row]):#x}")
    asked = replace(diagnosis.asked, filter=row_filter)
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
