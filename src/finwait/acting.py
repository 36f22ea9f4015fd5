"""Acts: a reviewed plan → the journal → the act → a look at what came of it.

*Theory of operation.* Everything that a plan rests on is read again, by cookie, immediately before: a
connection that left is no error, one that moved on (another state, more bytes) is left alone. Then every act is
written to the journal, durably, and only then done. Afterwards the connections are read once more, at both ends
where both are here, and the journal learns what came of each. A process that dies in between leaves entries
without a result, which `finwait journal` shows and `finwait undo` can take back where there is something to
take back.

*What cannot be taken back.* A FIN or a RST that was sent. Socket options can.
"""

from __future__ import annotations

import errno
import os
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol

import msgspec
import numpy as np

from finwait.diagnosis import forecast
from finwait.errors import FinwaitError, KernelError, Refused, SubflowOnly, TargetGone
from finwait.kernel import netns as ns_edge
from finwait.kernel import pidfd, procfs
from finwait.kernel.destroy import GONE, Target, destroy, lacking, read_back
from finwait.kernel.destroy_trial import Trial, tried
from finwait.kernel.journal import Taken
from finwait.kernel.netlink import NETLINK_NETFILTER, netlink_socket, request
from finwait.kernel.observe import Machine
from finwait.remedy.guards import Abilities
from finwait.remedy.journal import Act, Kind, check_undo
from finwait.remedy.plan import End, Plan, Step, permit
from finwait.table import decode
from finwait.table.flows import FlowTable
from finwait.table.sockets import SocketTable, endpoint, pack_address
from finwait.uapi import conntrack, inet_diag, tcp
from finwait.uapi import netlink as nl
from finwait.uapi import observation as obs

if TYPE_CHECKING:
    from finwait.diagnosis.view import View

__all__ = [
    "Outcome",
    "Probe",
    "abilities",
    "apply",
    "arm",
    "delete_entries",
    "options_of",
    "probe",
    "restore",
    "settle",
    "vanished",
]

Result = Literal["ended", "left before", "changed meanwhile", "set", "still there", "failed"]
_SETTLE_S: Final = 3.0

Say = Callable[[str], None]
Holder = tuple[int, int, str]
"""pid, descriptor, name of the program."""


class Journal(Protocol):
    """What is asked of the journal; `finwait.kernel.journal.SqliteJournal` has it."""

    def record_many(self, acts: Sequence[Act]) -> list[int]: ...
    def claim_many(self, acts: Sequence[Act], *, besides: int | None = None) -> list[int | Taken]: ...
    def complete_many(self, results: Mapping[int, Mapping[str, Any]]) -> None: ...
    def get(self, act_id: int) -> Any: ...  # noqa: ANN401 - a JournalEntry
    def is_running(self, entry: Any) -> bool: ...  # noqa: ANN401 - a JournalEntry


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one step."""

    step: Step
    result: Result
    detail: str = ""
    act_id: int = 0
    other: str = ""
    """State of the other end afterwards, or ``gone``; empty when it is not on this machine."""
    stays_open: tuple[tuple[int, int, str], ...] = ()
    """(pid, fd, comm) of each descriptor that still refers to the socket."""


def _quiet(_: str) -> None:
    return


_DUMP_FROM: Final = 20_000
"""So many connections of a namespace are read again by a dump rather than one by one."""


def _reread(ends: Iterable[Step | End]) -> tuple[SocketTable, frozenset[int]]:
    """Read connections again, without owners and files: each by its cookie, or (very many, MPTCP) by a dump.

    Returns:
        The rows that are there, and the namespaces that are there and could not be looked into: what is missing of
        those is not known to be gone.
    """
    by_ns: dict[int, list[Step | End]] = {}
    for end in ends:
        by_ns.setdefault(end.netns, []).append(end)
    dumped = {n for n, mine in by_ns.items() if len(mine) >= _DUMP_FROM or any(e.protocol != 6 for e in mine)}
    if not dumped:
        return _read_each([e for mine in by_ns.values() for e in mine])
    plan = obs.Plan(
        extensions=inet_diag.extension_mask(inet_diag.INFO), only=frozenset(by_ns), conntrack=False, files=False,
        descriptors=False, established_limit=None,
    )  # fmt: skip
    look = Machine().observe(plan)
    missing = by_ns.keys() - {ns.inode for ns in look.namespaces}
    return decode.sockets(look), frozenset(n.inode for n in _namespaces(missing)) if missing else frozenset()


def _read_each(ends: Sequence[Step | End]) -> tuple[SocketTable, frozenset[int]]:
    targets = [_target(end) for end in ends]
    spaces = _namespaces({e.netns for e in ends}, _leads(ends))
    answers, entered = read_back(spaces, targets, inet_diag.extension_mask(inet_diag.INFO))
    closed = frozenset(space.inode for space in spaces) - entered
    if not answers:
        return SocketTable.empty(), closed
    lengths = np.array([len(data) for _, data in answers], np.int64)
    stops = np.cumsum(lengths)
    buffer = np.frombuffer(b"".join(data for _, data in answers), np.uint8)
    rows = inet_diag.find_rows(buffer, nl.walk(buffer, stops - lengths, stops))
    netns = np.array([targets[k].netns for k, _ in answers], np.uint32)
    return SocketTable.from_rows(rows, netns[rows.chain], np.full(len(rows), 6, np.uint16)), closed


def _rows_by_cookie(table: SocketTable) -> dict[tuple[int, int], int]:
    return {
        (n, c): k for k, (n, c) in enumerate(zip(table.netns.tolist(), table.cookie.tolist(), strict=True))
    }


def _leads(ends: Iterable[Step | End]) -> list[tuple[int, int, int]]:
    """Return descriptors of sockets that lead into their namespaces, where nothing else may."""
    return [(e.netns, pid, fd) for e in ends if isinstance(e, Step) for pid, fd, _ in e.holders[:1]]


def _namespaces(
    which: Iterable[int], leads: Sequence[tuple[int, int, int]] = ()
) -> list[ns_edge.NetNamespace]:
    """Return namespaces by inode; descriptors, which may keep one alive, are listed only when they must be."""
    wanted = set(which)
    found = [n for n in ns_edge.discover()[0] if n.inode in wanted]
    # A thread may only be visiting, as ours do: where nothing else leads in, look further.
    if sum(any("/task/" not in path for path in n.paths) for n in found) < len(wanted):
        found = [n for n in ns_edge.discover(procfs.descriptors()[1], leads)[0] if n.inode in wanted]
    return found


@lru_cache(maxsize=4096)
def _address(family: int, text: str) -> bytes:
    high, low = pack_address(text)
    if family == inet_diag.AF_INET:
        return (low & 0xFFFFFFFF).to_bytes(4, "big")
    return high.to_bytes(8, "big") + low.to_bytes(8, "big")


def _target(end: Step | End) -> Target:
    identity = inet_diag.SocketId(
        end.sport, end.dport, _address(end.family, end.src), _address(end.family, end.dst), end.ifindex,
        int(end.cookie, 16),
    )  # fmt: skip
    return Target(end.netns, end.family, end.protocol, identity)


def _identity(step: Step) -> dict[str, Any]:
    return {
        "means": step.means,
        "netns": step.netns,
        "protocol": step.protocol,
        "family": step.family,
        "src": step.src,
        "sport": step.sport,
        "dst": step.dst,
        "dport": step.dport,
        "ifindex": step.ifindex,
        "cookie": step.cookie,
        "inode": step.inode,
        "connection": f"{endpoint(step.src, step.sport)} {endpoint(step.dst, step.dport)}",
        "state": step.state,
        "holders": [[pid, fd, comm] for pid, fd, comm in step.holders],
    }


def vanished(netns: Iterable[int]) -> frozenset[int]:
    """Return those namespaces to which nothing leads any more, and which therefore nobody could look into."""
    wanted = frozenset(netns)
    return wanted - {n.inode for n in _namespaces(wanted)}


def abilities(view: View, rows: Iterable[int]) -> Abilities:
    """Find out what cannot be done to connections, without doing anything to any.

    SOCK_DESTROY is tried on a socket of our own, in each namespace; of each process that holds one of them, one
    descriptor is borrowed and given back. Where orphans are among them, it is tried on an orphan of our own as well.
    """
    s = view.sockets
    which = np.fromiter(rows, np.int64)
    other = view.other[which]
    which = np.concatenate([which, other[other >= 0]])
    holders: dict[int, tuple[int, int, int]] = {}
    leads: dict[int, tuple[int, int]] = {}
    for row in which[view.holder_found[which]].tolist():
        for pid, fd in view.holders.of(row):
            leads.setdefault(int(s.netns[row]), (pid, fd))
            if pid not in holders:
                holders[pid] = (fd, int(s.inode[row]), int(s.cookie[row]))
    wanted = set(zip(s.netns[which].tolist(), s.protocol[which].tolist(), strict=True))
    ways = [(netns, pid, fd) for netns, (pid, fd) in leads.items()]
    found = Abilities(_no_destroy(wanted, ways), _no_borrow(holders))
    if bool((s.inode[which] == 0).any()):
        return replace(
            found, harms_orphans=_harm(tried()), spares_minisockets=tried().ends_minisockets is False
        )
    return found


def _harm(trial: Trial) -> str:
    """Return why SOCK_DESTROY must not be used on orphans; empty where it ends them."""
    if trial.ends_orphans:
        return ""
    if trial.ends_orphans is None:
        return (
            "SOCK_DESTROY may take its timer instead of ending it, as older kernels do, and then it stays for ever; "
            f"whether this one does is not known: {trial.why_unknown}"
        )
    return (
        "on this kernel SOCK_DESTROY takes its timer instead of ending it, and then it stays for ever (tried on one "
        "of our own)"
    )


def _no_destroy(
    wanted: set[tuple[int, int]], leads: Sequence[tuple[int, int, int]]
) -> dict[tuple[int, int], str]:
    found = lacking(_namespaces({n for n, _ in wanted}, leads), wanted) if wanted else {}
    return {key: f"{error} ({error.hint.partition(';')[0]})" for key, error in found.items()}


def _no_borrow(holders: Mapping[int, tuple[int, int, int]]) -> dict[int, str]:
    found: dict[int, str] = {}
    for pid, (fd, inode, cookie) in holders.items():
        try:
            with pidfd.borrowed(pid, fd, inode=inode, cookie=cookie):
                pass
        except (TargetGone, SubflowOnly):  # not a matter of rights
            continue
        except FinwaitError as error:
            found[pid] = f"{error} ({error.hint.partition('; try')[0]})"
    return found


_KIND: Final[Mapping[str, Kind]] = {
    "destroy": "destroy",
    "reset": "destroy",
    "fin": "shutdown",
    "keepalive": "sockopt",
    "user-timeout": "sockopt",
}


def _check(steps: Sequence[Step]) -> None:
    """Find out whether a plan can be carried out here, before anything of it is.

    Raises:
        Refused: it cannot, with the substitute that would work.
    """
    wanted = {(s.netns, s.protocol) for s in steps if s.means == "destroy"}
    missing = _no_destroy(wanted, _leads(steps))
    if missing:
        (netns, protocol), why = next(iter(missing.items()))
        lost = [s for s in steps if s.means == "destroy" and (s.netns, s.protocol) == (netns, protocol)]
        held = [s for s in lost if s.holders]
        refusal = Refused("means", f"{why}; {len(lost)} connections of the plan need it; nothing was done")
        refusal.hint = (
            f"plan again with `--with reset`: {len(held)} of them are held by a process whose descriptor may do"
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
            if not _no_destroy({(step.netns, step.protocol)}, _leads([step])):
                refusal.hint = (
                    "plan again with `--with destroy`, which needs no descriptor: the peer gets a RST"
                )
            raise refusal


def apply(
    plan: Plan,
    journal: Journal,
    *,
    boot_id: str,
    rate: float = 0.0,
    keepalive: tuple[int, int, int] = (1, 1, 3),
    user_timeout_ms: int = 30_000,
    fault: Callable[[str], None] = _quiet,
    say: Say = _quiet,
) -> list[Outcome]:
    """Do what a plan says, connection by connection, and say what came of each.

    Args:
        plan: a plan of `finwait.remedy.plan.make`, perhaps read from a file.
        journal: where acts are written down before they are done.
        boot_id: of this machine now; cookies mean nothing on another boot.
        rate: at most so many connections destroyed a second; 0 for no limit.
        keepalive: idle, interval (seconds) and count for steps of that means.
        user_timeout_ms: for steps of that means.
        fault: called with the name of each stage; a test's way to stop in the middle.
        say: told what is being done.

    Raises:
        Refused: the plan was made on another boot, is too large, or needs what cannot be done here; nothing was done.
        KernelError: the journal could not be written; nothing was done.
    """
    if boot_id and plan.boot_id != boot_id:
        raise Refused("boot", "the plan was made before this machine was started: its connections are gone")
    permit(plan)
    _check([step for step in plan.steps if not step.gone])
    say("reading the connections again")
    fault("before reading")
    now, closed = _reread(plan.steps)
    rows = _rows_by_cookie(now)
    states, inodes = now.state.tolist(), now.inode.tolist()
    known = now.present("bytes_received").tolist()
    moved = list(zip(now.bytes_received.tolist(), now.bytes_acked.tolist(), strict=True))
    outcomes: dict[int, Outcome] = {}
    todo: list[int] = []
    for k, step in enumerate(plan.steps):
        row = rows.get(_key(step))
        if row is None and step.netns in closed:
            outcomes[k] = Outcome(step, "failed", _CLOSED)
        elif row is None:
            outcomes[k] = Outcome(step, "left before", "it was gone when it was looked for again")
        elif (
            changed := _changed(step, states[row], inodes[row], moved[row] if known[row] else None)
        ) is not None:
            outcomes[k] = Outcome(step, "changed meanwhile", changed)
        else:
            todo.append(k)
    if todo:
        _do(plan, todo, journal, outcomes, rate, keepalive, user_timeout_ms, fault, say)
    return [outcomes[k] for k in range(len(plan.steps))]


def _changed(step: Step, number: int, inode: int, moved: tuple[int, int] | None) -> str | None:
    state = tcp.state_name(number)
    if state == "LISTEN":
        return "it is a listener"
    if state != step.state:
        return f"it is in {state} now, not in {step.state}"
    if step.inode and not inode:
        return "its last descriptor was closed since: it is an orphan now, which the kernel ends by itself"
    if inode != step.inode:
        return "a program has accepted it since"
    if moved is not None and moved != (step.bytes_received, step.bytes_acked):
        return "bytes moved since the plan was made"
    return None


def _do(
    plan: Plan,
    todo: Sequence[int],
    journal: Journal,
    outcomes: dict[int, Outcome],
    rate: float,
    keepalive: tuple[int, int, int],
    user_timeout_ms: int,
    fault: Callable[[str], None],
    say: Say,
) -> None:
    steps = {k: plan.steps[k] for k in todo}
    values = {
        "keepalive": {
            "keepidle": keepalive[0],
            "keepintvl": keepalive[1],
            "keepcnt": keepalive[2],
            "keepalive": 1,
        },
        "user-timeout": {"user_timeout_ms": user_timeout_ms},
    }
    say("writing the journal")
    wanted = {k: values[steps[k].means] for k in todo if steps[k].means in values}
    claim = _claim({k: steps[k] for k in wanted}, wanted, journal, lambda step: step.rule)
    for k, error in claim.errors.items():
        outcomes[k] = _failed(steps[k], error)
    others = [k for k in todo if k not in wanted]
    acts = [Act(_KIND[steps[k].means], _identity(steps[k]), why=steps[k].rule) for k in others]
    ids = claim.ids | dict(zip(others, journal.record_many(acts), strict=True))
    todo = [k for k in todo if k in ids]
    before = claim.before
    fault("journaled")
    errors: dict[int, FinwaitError] = {}
    answered: set[int] = set()
    wait = _SETTLE_S
    if any(steps[k].means == "keepalive" for k in todo):
        wait = forecast.keepalive(*keepalive).seconds + 2.0
    try:
        # The gentle means first: a RST on one leg may make its program close the other by itself.
        for k in sorted(todo, key=lambda k: steps[k].means == "reset"):
            if steps[k].means != "destroy":
                try:
                    _through_descriptor(steps[k], values)
                except FinwaitError as error:
                    errors[k] = error
        errors |= _not_gone(steps, errors)
        _destroy([k for k in todo if steps[k].means == "destroy"], steps, rate, errors, answered)
        fault("acted")
        say("looking at what came of it")
        done = [steps[k] for k in todo if k not in errors]
        left = _wait_gone([step for step in done if step.means != "user-timeout"], wait)
        fault("verified")
    except BaseException as error:
        # Interrupted, or the kernel refused in the middle: what was done is done, and written down as it is.
        with _uninterrupted():
            left = _left([end for k in todo for end in (steps[k], steps[k].other) if end is not None])
            why = FinwaitError(f"interrupted: {str(error) or type(error).__name__}")
            for k in todo:
                if _key(steps[k]) in left:  # or not known
                    if steps[k].means != "fin":
                        errors.setdefault(k, why)
                elif steps[k].means == "destroy" and k not in answered:
                    unknown = "it is gone; whether by this act is not known, which was interrupted"
                    errors.setdefault(k, TargetGone(int(steps[k].cookie, 16), unknown))
            _finish(todo, steps, before, errors, left, ids, journal)
        raise
    with _uninterrupted():
        outcomes.update(_finish(todo, steps, before, errors, left, ids, journal))


def _finish(
    todo: Sequence[int],
    steps: Mapping[int, Step],
    before: Mapping[int, dict[str, int]],
    errors: Mapping[int, FinwaitError],
    left: Mapping[Key, _Seen],
    ids: Mapping[int, int],
    journal: Journal,
) -> dict[int, Outcome]:
    """Say what came of each step, put options back that did not end theirs, and write it all down."""
    still_open = _still_open([steps[k] for k in todo if k not in errors])
    outcomes = {k: _outcome(steps[k], errors.get(k), left, still_open, ids[k]) for k in todo}
    answered = [k for k in todo if steps[k].means == "keepalive" and outcomes[k].result != "ended"]
    for k, why in _restored({k: steps[k] for k in answered}, before).items():
        outcomes[k] = replace(outcomes[k], result="failed", detail=why)
    journal.complete_many({ids[k]: _journaled(outcomes[k]) for k in todo})
    return outcomes


def _journaled(o: Outcome) -> dict[str, str]:
    return {"error": o.detail} if o.result == "failed" else {"result": o.result, "detail": o.detail}


@contextmanager
def _borrow(step: Step) -> Iterator[socket.socket]:
    """Borrow the descriptor of whichever holder lets us.

    Raises:
        TargetGone: no process holds the connection any more.
        PermissionNeeded: none of them lets us.
        FinwaitError: none is known.
    """
    if not step.holders:
        raise FinwaitError("no process is known to hold it, and this goes through a descriptor")
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


class _Moved(FinwaitError):
    """A connection that lives, and whose descriptors are not where they were."""

    def __init__(self, unreadable: int, unseen: bool) -> None:
        there = f"whether the connection ended is not known ({_CLOSED})" if unseen else _LIVES
        missing = f"; the descriptors of {unreadable} processes could not be listed" if unreadable else ""
        super().__init__(
            f"{there}: its descriptor was moved, and no process was found that holds it{missing}"
        )
        if unreadable:
            self.hint = "as root, or with CAP_SYS_PTRACE, every process can be searched"


_LIVES: Final = "the connection is still there"


def _elsewhere(ends: Mapping[int, tuple[Step | End, int]]) -> dict[int, tuple[Holder, ...] | _Moved]:
    """Look anew for the holders of connections, none of whose known descriptors is theirs any more.

    A program may move a descriptor (dup2(2)), pass it on or leave it to a child: that is no sign of an end.

    Args:
        ends: each with the inode of its socket.

    Returns:
        Of each that is still there its holders, or that none was found; nothing of those that have ended, or that
        no program holds any more.
    """
    table, closed = _reread([end for end, _ in ends.values()])
    rows = _rows_by_cookie(table)
    unseen = {k for k, (end, _) in ends.items() if _key(end) not in rows and end.netns in closed}
    there = {
        k
        for k, (end, inode) in ends.items()
        if inode and (row := rows.get(_key(end))) is not None and int(table.inode[row]) == inode
    }
    if not there | unseen:
        return {}
    listed = procfs.descriptors()[0]
    mine = np.isin(listed.inode, np.array([ends[k][1] for k in there | unseen], np.uint64))
    by_inode: dict[int, list[Holder]] = {}
    for pid, fd, inode in zip(
        *(column[mine].tolist() for column in (listed.pid, listed.fd, listed.inode)), strict=True
    ):
        name = procfs.read(f"/proc/{pid}/comm") or b"?"
        by_inode.setdefault(inode, []).append((pid, fd, name.decode("utf-8", "replace").rstrip("\n")))
    return {
        k: tuple(by_inode.get(ends[k][1], ())) or _Moved(len(listed.unreadable), k in unseen)
        for k in there | unseen
    }


def _not_gone(steps: Mapping[int, Step], errors: Mapping[int, FinwaitError]) -> dict[int, FinwaitError]:
    """Return other errors for those connections that seemed gone, and whose descriptor was only moved."""
    lost = {k: (steps[k], steps[k].inode) for k, error in errors.items() if isinstance(error, TargetGone)}
    if not lost:
        return {}
    found: dict[int, FinwaitError] = {}
    for k, holders in _elsewhere(lost).items():
        if isinstance(holders, _Moved):
            found[k] = holders
            continue
        pid, fd, comm = holders[0]
        found[k] = FinwaitError(
            f"{_LIVES}: its descriptor was moved since the look, to {fd} of {comm} (pid {pid})"
        )
        found[k].hint = "give the command again"
    return found


@dataclass(frozen=True, slots=True)
class _Claim:
    """Connections whose options are ours to change, and why the others' are not."""

    before: dict[int, dict[str, int]]
    """All their options as they are."""
    ids: dict[int, int]
    """Their acts in the journal."""
    followed: dict[int, tuple[str, ...]]
    """Options that have the value of their sysctl, which the socket may follow as long as it has none of its own."""
    errors: dict[int, FinwaitError]


def _claim(
    steps: Mapping[int, Step],
    wanted: Mapping[int, Mapping[str, int]],
    journal: Journal,
    why: Callable[[Step], str],
) -> _Claim:
    """Write down acts that change options of connections, of those whose options can be put back and are free.

    They are read, written down as a claim that no other act overlaps, and read again: what changed in between was
    another act's, which ended meanwhile, and nothing is known of how it was before. Then each option is set to what
    it is: what can be set so now can be put back later.

    Args:
        steps: the connections.
        wanted: the options that each is to get.
        journal: where acts are written down, and claimed.
        why: what to write down as the reason.

    Raises:
        KernelError: the journal could not be written; nothing was done.
    """
    order = list(steps)
    read, failed = options_of([steps[k] for k in order])
    errors = {order[n]: error for n, error in failed.items()}
    before: dict[int, dict[str, int]] = {}
    for n, options in read.items():
        k = order[n]
        try:
            _in_range({name: options[name] for name in wanted[k]})
            before[k] = options
        except FinwaitError as error:
            errors[k] = error
    sysctls = _followed({steps[k].netns for k in before})
    followed = {
        k: tuple(n for n, v in sysctls.get(steps[k].netns, {}).items() if n in wanted[k] and options[n] == v)
        for k, options in before.items()
    }
    acts = [
        Act(
            "sockopt",
            _identity(steps[k]),
            {"options": {name: options[name] for name in wanted[k]}, "followed": followed[k]},
            {"options": dict(wanted[k])},
            why(steps[k]),
        )
        for k, options in before.items()
    ]
    ids: dict[int, int] = {}
    with _uninterrupted():
        for k, claimed in zip(list(before), journal.claim_many(acts), strict=True):
            if isinstance(claimed, int):
                ids[k] = claimed
            else:
                errors[k] = FinwaitError(f"{claimed}; nothing was set")
        lost: dict[int, FinwaitError] = {}
        for k in ids:
            try:
                _confirm(steps[k], before[k], wanted[k])
            except FinwaitError as error:
                lost[k] = error
        lost |= _not_gone(steps, lost)
        if lost:
            journal.complete_many({ids.pop(k): {"error": str(error)} for k, error in lost.items()})
    return _Claim({k: before[k] for k in ids}, ids, followed, errors | lost)


def options_of(steps: Sequence[Step]) -> tuple[dict[int, dict[str, int]], dict[int, FinwaitError]]:
    """Return the options that connections have now, by index, and why those of others cannot be read."""
    options: dict[int, dict[str, int]] = {}
    errors: dict[int, FinwaitError] = {}
    for k, step in enumerate(steps):
        try:
            with _borrow(step) as sock:
                options[k] = pidfd.get_options(sock)
        except FinwaitError as error:
            errors[k] = error
    return options, errors | _not_gone(dict(enumerate(steps)), errors)


def _in_range(values: Mapping[str, int]) -> None:
    """Refuse options that could not be put back, as their old values are none that setsockopt(2) takes."""
    wrong = pidfd.out_of_range(values)
    if wrong:
        name, value = next(iter(wrong.items()))
        raise FinwaitError(
            f"its {name} of {value} could not be put back: setsockopt(2) takes at most {pidfd.OPTION_RANGES[name][1]} "
            f"(the value of net.ipv4.{_SYSCTLS[name]}, most likely); nothing was set"
        )


_SYSCTLS: Final = {
    "keepidle": "tcp_keepalive_time",
    "keepintvl": "tcp_keepalive_intvl",
    "keepcnt": "tcp_keepalive_probes",
}
"""Option → what a socket follows that has no value of its own."""


def _confirm(step: Step, before: Mapping[str, int], wanted: Mapping[str, int]) -> None:
    with _borrow(step) as sock:
        if pidfd.get_options(sock) != before:
            raise FinwaitError(
                "its options were changed by somebody else at this very moment; nothing was set"
            )
        pidfd.set_options(sock, {name: before[name] for name in wanted if name != "keepalive"})


def _through_descriptor(step: Step, values: Mapping[str, dict[str, int]]) -> None:
    with _borrow(step) as sock:
        if step.means == "reset":
            pidfd.reset(sock)
        elif step.means == "fin":
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError as error:
                if error.errno == errno.ENOTCONN:
                    raise TargetGone(int(step.cookie, 16), "it ended by itself meanwhile") from None
                raise KernelError(error.errno or 0, "shut the connection down") from None
        else:
            pidfd.set_options(sock, values[step.means])


def _destroy(
    mine: Sequence[int],
    steps: Mapping[int, Step],
    rate: float,
    errors: dict[int, FinwaitError],
    answered: set[int],
) -> None:
    """Destroy; ``answered`` learns of whom the kernel said what became of it, also when this is interrupted."""
    if not mine:
        return
    spaces = _namespaces({steps[k].netns for k in mine}, _leads(steps[k] for k in mine))
    results: dict[int, int] = {}
    try:
        _, gaps = destroy(spaces, [_target(steps[k]) for k in mine], rate=rate, results=results)
    finally:
        answered.update(mine[n] for n in list(results))
    for n, k in enumerate(mine):
        code = results.get(n)
        if code is None:
            where = next((str(g) for g in gaps if str(steps[k].netns) in g.where), "its namespace is gone")
            errors[k] = FinwaitError(where)
        elif code == GONE:
            errors[k] = TargetGone(int(steps[k].cookie, 16))
        elif code:
            errors[k] = KernelError(code, "destroy it", netns=steps[k].netns)


Key = tuple[int, int]
"""Namespace and cookie: what names a connection end."""


def _key(end: Step | End) -> Key:
    return end.netns, int(end.cookie, 16)


_CLOSED: Final = "its namespace could not be looked into"


def _told(step: Step) -> bool:
    """Whether the plan says that the other end sees an end of it, so that it should go too."""
    return step.sees in ("fin", "fin-then-reset", "reset", "reset-if-path")


@dataclass(frozen=True, slots=True)
class _Seen:
    """A connection that is still there."""

    state: str
    in_flight: bool
    """Whether data or a FIN waits to be acknowledged, so that no keepalive runs."""
    before_fin: int
    """Bytes before a FIN that is sent or queued (it counts 1 itself) that the peer has not acknowledged."""
    unknown: bool = False
    """Its namespace could not be looked into, so nothing else is known of it."""


def _wait_gone(steps: Sequence[Step], wait_s: float) -> dict[Key, _Seen]:
    """Wait until connections are gone, for a while; return each end that is not.

    Their other ends are waited for too, where they are here and hear of it. LAST_ACK and TIME_WAIT are on their
    way out: the connection is over for both programs.
    """
    if not steps:
        return {}
    end = time.monotonic() + wait_s
    ends: list[Step | End] = [*steps, *(s.other for s in steps if s.other is not None)]
    awaited = {_key(s) for s in steps} | {_key(s.other) for s in steps if s.other is not None and _told(s)}
    pause = 0.02
    while True:
        left = _left(ends)
        if awaited.isdisjoint(k for k, seen in left.items() if not seen.unknown) or time.monotonic() > end:
            return left
        ends = [e for e in ends if _key(e) in left]
        time.sleep(pause)
        pause = min(pause * 1.5, 0.25)


def _left(ends: Sequence[Step | End]) -> dict[Key, _Seen]:
    table, closed = _reread(ends)
    rows = _rows_by_cookie(table)
    states, timers, queued = table.state.tolist(), table.timer.tolist(), table.wqueue.tolist()
    left = {}
    for one in ends:
        row = rows.get(key := _key(one))
        if row is None:
            if one.netns in closed:
                left[key] = _Seen("?", False, 0, unknown=True)
            continue
        state = tcp.state_name(states[row])
        if state not in ("TIME_WAIT", "CLOSE"):
            left[key] = _Seen(state, timers[row] in (1, 4), max(queued[row] - 1, 0))
    return left


def _still_open(steps: Sequence[Step]) -> dict[Key, tuple[tuple[int, int, str], ...]]:
    """Return which descriptors refer to the sockets of the steps still: an ended connection leaves them open."""
    found = {}
    for step in steps:
        here = []
        for pid, fd, comm in step.holders:
            try:
                link = os.readlink(f"/proc/{pid}/fd/{fd}")
            except OSError:
                continue
            if link == f"socket:[{step.inode}]":
                here.append((pid, fd, comm))
        found[_key(step)] = tuple(here)
    return found


def _outcome(
    step: Step,
    error: FinwaitError | None,
    left: Mapping[Key, _Seen],
    still_open: Mapping[Key, tuple[tuple[int, int, str], ...]],
    act_id: int,
) -> Outcome:
    if error is not None:
        return _failed(step, error, act_id)
    if step.means == "user-timeout":
        return Outcome(step, "set", "it ends when nothing is acknowledged for the time set", act_id)
    seen = left.get(_key(step))
    open_ = still_open.get(_key(step), ())
    if seen is not None and seen.unknown:
        return Outcome(step, "failed", f"it was done, and what came of it is not known: {_CLOSED}", act_id)
    other = ""
    if step.other is not None:
        there = left.get(_key(step.other))
        other = "gone" if there is None else "" if there.unknown else there.state
    if seen is not None and step.means == "fin" and seen.before_fin:
        said = f"the FIN waits behind {seen.before_fin} bytes that its peer has not taken; {seen.state}"
        return Outcome(step, "still there", said, act_id, other, open_)
    if seen is None or (step.means == "fin" and seen.state == "LAST_ACK"):
        if seen is not None:
            said = "FIN sent; LAST_ACK until the peer acknowledges it"
        elif step.means == "keepalive":
            said = "it ended while it was probed: no answer, or a RST (or its own program closed it)"
        elif not other:
            unseen = (
                "was not seen" if step.other is None else "is in a namespace that could not be looked into"
            )
            said = f"its other end {unseen}; it sees {step.peer_told}"
        elif other == "gone":
            said = "both ends are gone"
        else:
            why = f"{step.peer_told} did not arrive" if _told(step) else f"it sees {step.peer_told}"
            said = f"the other end is still in {other}: {why}"
        return Outcome(step, "ended", said, act_id, other, open_)
    if step.means == "fin":
        said = f"FIN sent; {seen.state} until the peer closes"
    elif step.means == "keepalive" and seen.in_flight:
        said = "data is in flight, so keepalive did not run; the options are as they were"
    elif step.means == "keepalive":
        said = "its peer answered every probe: it is alive; the options are as they were"
    else:
        said = f"it is in {seen.state}"
    return Outcome(step, "still there", said, act_id, other, open_)


def _said(error: FinwaitError) -> str:
    return f"{error} ({error.hint})" if error.hint else str(error)


def _failed(step: Step, error: FinwaitError, act_id: int = 0) -> Outcome:
    if isinstance(error, TargetGone):
        return Outcome(step, "left before", str(error), act_id)
    return Outcome(step, "failed", _said(error), act_id)


# ── probing ──────────────────────────────────────────────────────────────────────────────────────────────

Verdict = Literal["alive", "reset", "dead", "not judged", "gone"]


@dataclass(frozen=True, slots=True)
class Probe:
    """What a probe of one connection found out."""

    step: Step
    verdict: Verdict
    detail: str = ""
    unrestored: str = ""
    """Why its options are not as they were; empty when they are."""
    pinned: tuple[str, ...] = ()
    """Options that had the value of their sysctl, which the socket may have followed and follows no more."""


def probe(
    steps: Sequence[Step],
    journal: Journal,
    *,
    keepalive: tuple[int, int, int] = (1, 1, 3),
    fault: Callable[[str], None] = _quiet,
    say: Say = _quiet,
    unrestored: dict[int, str] | None = None,
) -> list[Probe]:
    """Ask connections whether their peers live, and leave every option as it was.

    A keepalive is armed through a borrowed descriptor, its outcome watched by sock_diag, and the options are
    put back also when this is interrupted; what a SIGKILL leaves behind, `restore` puts back by the journal. A
    connection whose options could not be put back, or which another act is at, is not touched.

    Args:
        steps: the connections, as a plan names them.
        journal: where acts are written down before they are done.
        keepalive: idle, interval (seconds) and count.
        fault: called with the name of each stage; a test's way to stop in the middle.
        say: told what is being done.
        unrestored: takes, by index, why options are not as they were; also when this raises.

    Raises:
        KernelError: the journal could not be written; nothing was done.
    """
    idle, interval, count = keepalive
    wanted = {"keepidle": idle, "keepintvl": interval, "keepcnt": count, "user_timeout_ms": 0, "keepalive": 1}
    claim = _claim(
        dict(enumerate(steps)), dict.fromkeys(range(len(steps)), wanted), journal, lambda _: "probe"
    )
    found = {k: _unprobed(steps[k], error) for k, error in claim.errors.items()}
    begun: dict[int, float] = {}
    ended: dict[int, str] = {} if unrestored is None else unrestored
    moved: set[int] = set()
    try:
        fault("journaled")
        unarmed: dict[int, FinwaitError] = {}
        for k in claim.ids:
            try:
                with _borrow(steps[k]) as sock:
                    before_arming = time.monotonic()
                    pidfd.set_options(sock, wanted)
                begun[k] = before_arming
            except FinwaitError as error:
                unarmed[k] = error
        unarmed |= _not_gone(dict(enumerate(steps)), unarmed)
        found |= {k: _unprobed(steps[k], error) for k, error in unarmed.items()}
        fault("armed")
        silence = forecast.keepalive(idle, interval, count).seconds
        say(f"probing {len(begun)} connections for up to {silence + 1:.0f} s")
        first = {k: at + idle for k, at in begun.items()}
        _watch({k: steps[k] for k in begun}, first, found, keepalive)
    finally:
        with _uninterrupted():
            ended |= _restored({k: steps[k] for k in claim.ids}, claim.before, moved)
            journal.complete_many(
                {
                    act: {"error": ended[k]}
                    if k in ended
                    else {"result": found[k].verdict if k in found else "interrupted", "restored": True}
                    for k, act in claim.ids.items()
                    if k not in moved
                }
            )
    for k in claim.ids:
        found[k] = replace(found[k], unrestored=ended.get(k, ""), pinned=claim.followed[k])
    return [found[k] for k in range(len(steps))]


def _unprobed(step: Step, error: FinwaitError) -> Probe:
    return Probe(step, "gone" if isinstance(error, TargetGone) else "not judged", _said(error))


def _followed(netns: Iterable[int]) -> dict[int, dict[str, int]]:
    """Return what sockets without keepalive times of their own follow, by namespace: option → value of its sysctl."""

    def inside(_: ns_edge.NetNamespace) -> dict[str, int]:
        read = {n: procfs.read(f"/proc/sys/net/ipv4/{name}") for n, name in _SYSCTLS.items()}
        return {n: int(data) for n, data in read.items() if data and data.strip().isdigit()}

    return ns_edge.visit(_namespaces(netns), inside)[0]


def _restored(
    steps: Mapping[int, Step], before: Mapping[int, dict[str, int]], moved: set[int] | None = None
) -> dict[int, str]:
    """Put options back; return why, of each that could not be.

    Args:
        steps: the connections; their holders are looked for anew where their descriptors were moved.
        before: what to put back.
        moved: takes those that are still there and that no process was found to hold.
    """
    failed: dict[int, str] = {}
    todo = dict(steps)
    for _ in range(3):  # a program may move its descriptor again
        lost: dict[int, tuple[Step | End, int]] = {}
        for k, step in todo.items():
            try:
                if why := _put_back_one(step, before[k]):
                    failed[k] = why
            except TargetGone:
                lost[k] = (step, step.inode)
            except FinwaitError as error:
                failed[k] = f"the options could not be put back: {error}"
        if not lost:  # what has ended is not found again: there is nothing to put back
            return failed
        todo = {}
        for k, holders in _elsewhere(lost).items():
            if isinstance(holders, _Moved):
                failed[k] = f"the options could not be put back: {_said(holders)}"
                if moved is not None:
                    moved.add(k)
            else:
                todo[k] = msgspec.structs.replace(steps[k], holders=holders)
    for k in todo:
        failed[k] = f"the options could not be put back: {_LIVES}, and its descriptor moves all the time"
        if moved is not None:
            moved.add(k)
    return failed


def _put_back_one(step: Step, before: dict[str, int]) -> str:
    """Put the options of one connection back; return what is not as it was."""
    with _borrow(step) as sock:
        pidfd.set_options(sock, before)
        now = pidfd.get_options(sock)
    if now == before:
        return ""
    wrong = ", ".join(f"{n} is {now[n]}, was {v}" for n, v in before.items() if now[n] != v)
    return f"the options are not as they were: {wrong}"


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Hold back SIGINT, SIGTERM and SIGHUP: what is put back is put back whole. They arrive afterwards."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, held)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_JIFFIES_S: Final = 0.02
"""Timers and ages are counted in jiffies, of 10 ms at most: two of them may be missing."""


def _watch(
    steps: Mapping[int, Step],
    first: Mapping[int, float],
    found: dict[int, Probe],
    keepalive: tuple[int, int, int],
) -> None:
    """Poll until each connection is judged: an answer, a row that vanished or moved on, or data in flight.

    Args:
        steps: the connections, all of which are armed.
        first: when the first probe of each is due, CLOCK_MONOTONIC: a whole idle time after it was armed, also where
            keepalive was on before, as `pidfd.set_options` starts the timer anew.
        found: takes the verdicts.
        keepalive: idle, interval (seconds) and count.
    """
    idle_s, interval_s, count = keepalive
    wait_s = forecast.keepalive(*keepalive).seconds + 1.0
    most: dict[int, int] = dict.fromkeys(steps, 0)
    rtt_s: dict[int, float] = dict.fromkeys(steps, 0.0)
    open_ = dict(steps)
    due = dict(first)
    arrived: dict[int, float] = dict.fromkeys(steps, 0.0)
    while open_:
        time.sleep(0.05)
        asked = time.monotonic()
        table, closed = _reread(open_.values())
        read = time.monotonic()
        rows = _rows_by_cookie(table)
        for k, step in list(open_.items()):
            since = read - due[k]
            row = rows.get((step.netns, int(step.cookie, 16)))
            if row is None and step.netns in closed:
                found[k] = Probe(step, "not judged", _CLOSED)
                del open_[k]
                continue
            if row is None:
                found[k] = _vanished(step, since, most[k], rtt_s[k], interval_s, count)
                del open_[k]
                continue
            state = tcp.state_name(int(table.state[row]))
            timer = int(table.timer[row])
            if state != step.state or timer == 3 or int(table.inode[row]) != step.inode:
                found[k] = Probe(step, "gone", f"one of its programs closed it meanwhile: it is in {state}")
                del open_[k]
                continue
            if timer in (1, 4):
                found[k] = Probe(step, "not judged", "data is in flight: keepalive does not run then")
                del open_[k]
                continue
            # Of a keepalive timer it is the probes that no acknowledgement has followed yet.
            unanswered = int(table.retrans[row]) if timer == 2 else 0
            most[k] = max(most[k], unanswered)
            rtt_s[k] = int(table.rtt_us[row]) / 1e6
            # The last acknowledgement came at this time or later: the kernel read its age after we had asked.
            arrived[k] = max(arrived[k], asked - int(table.last_ack_recv_ms[row]) / 1000)
            if not unanswered and arrived[k] >= first[k] - _JIFFIES_S:
                probe_answered = arrived[k] >= due[k] - _JIFFIES_S
                what = "a probe" if probe_answered else "data meanwhile, before a probe was due"
                found[k] = Probe(step, "alive", f"the peer acknowledged {what}")
                del open_[k]
                continue
            if arrived[k] < first[k]:  # then the kernel waits for as long a silence again
                due[k] = max(due[k], arrived[k] + idle_s)
            if since > wait_s - idle_s:
                found[k] = Probe(step, "not judged", f"{most[k]} probes sent, no verdict in {wait_s:.0f} s")
                del open_[k]


def _vanished(
    step: Step, since: float, unanswered: int, rtt_s: float, interval_s: float, count: int
) -> Probe:
    """Judge a connection that the kernel has no more, ``since`` seconds after the first probe was due."""
    if since < 0:
        return Probe(step, "gone", "it ended before a probe was sent")
    if unanswered >= count and since >= interval_s * count:
        return Probe(step, "dead", f"{unanswered} probes went unanswered; the kernel ended it")
    try:
        with _borrow(step):
            return Probe(
                step, "reset", "it ended while its program holds it: a RST, the peer's socket is gone"
            )
    except FinwaitError:
        pass
    # A program closes at once what failed; one that ended it itself did so at any time.
    if since <= interval_s * max(unanswered - 1, 0) + 2 * rtt_s + 0.3:
        return Probe(step, "reset", "it ended with a probe: most likely a RST, the peer's socket is gone")
    return Probe(step, "gone", f"it ended, and its program let go of it, with {unanswered} probes unanswered")


def arm(
    steps: Sequence[Step],
    journal: Journal,
    values: Mapping[str, int],
    *,
    fault: Callable[[str], None] = _quiet,
    say: Say = _quiet,
) -> list[Outcome]:
    """Give live sockets of running programs options that they lack, for good.

    Args:
        steps: the connections, as a plan names them.
        journal: keeps the old values, so that `restore` can put them back.
        values: names of `finwait.kernel.pidfd.KEEPALIVE_OPTIONS`.
        fault: called with the name of each stage; a test's way to stop in the middle.
        say: told what is being done.

    Raises:
        ValueError: a value that no socket takes; nothing was done.
        KernelError: the journal could not be written; nothing was done.
    """
    if wrong := pidfd.out_of_range(values):
        raise ValueError(f"setsockopt(2) does not take {wrong}")
    claim = _claim(dict(enumerate(steps)), dict.fromkeys(range(len(steps)), values), journal, lambda _: "arm")
    outcomes = {k: _failed(steps[k], error) for k, error in claim.errors.items()}
    say(f"setting options of {len(claim.ids)} connections")
    with _uninterrupted():  # it is a matter of milliseconds
        fault("journaled")
        for k, act_id in claim.ids.items():
            outcomes[k] = _armed(steps[k], values, claim.before[k], act_id)
        fault("armed")
        journal.complete_many({act_id: _journaled(outcomes[k]) for k, act_id in claim.ids.items()})
    return [outcomes[k] for k in range(len(steps))]


def _armed(step: Step, values: Mapping[str, int], before: dict[str, int], act_id: int) -> Outcome:
    try:
        with _borrow(step) as sock:
            pidfd.set_options(sock, values)
            now = pidfd.get_options(sock)
    except FinwaitError as error:
        return _taken_back(_failed(step, error, act_id), before)
    if wrong := {n: now[n] for n, v in values.items() if now[n] != v}:
        return _taken_back(Outcome(step, "failed", f"the kernel took {wrong}", act_id), before)
    return Outcome(step, "set", ", ".join(f"{n} {before[n]} → {v}" for n, v in values.items()), act_id)


def _taken_back(outcome: Outcome, before: dict[str, int]) -> Outcome:
    """Put options back after an act that was done by half."""
    if outcome.result == "left before":
        return outcome
    failed = _restored({0: outcome.step}, {0: before})
    return replace(outcome, detail=f"{outcome.detail}; {failed.get(0, 'the options are as they were')}")


def restore(act_id: int, journal: Journal, *, force: bool = False) -> str:
    """Put socket options back as an act found them; return what was done, in words.

    Args:
        act_id: which.
        journal: where it is written down.
        force: also when somebody has set them since.

    Raises:
        ValueError: there is no such act.
        Refused: it cannot be taken back, or was already, or the options were set since (guard ``changed-since``).
        TargetGone: the connection has ended; there is nothing to put back.
        FinwaitError: it is still there, and none of its descriptors was found: they were moved, and the act stays open.
        KernelError: the options could not be set.
    """
    entry = journal.get(act_id)
    check_undo(entry)
    if entry.kind != "sockopt":
        raise Refused("irreversible", f"act {act_id} cannot be taken back: it is a {entry.kind}")
    if entry.result is None and entry.pid != os.getpid() and journal.is_running(entry) and not force:
        raise Refused("under-way", f"act {act_id} is not over: pid {entry.pid} is at it", override="--force")
    target = entry.target
    with _whole_act(act_id):
        options = {name: int(entry.before["options"][name]) for name in entry.before["options"]}
        made = {name: int(value) for name, value in entry.after["options"].items()}
        cookie, inode = int(target["cookie"], 16), int(target["inode"])
        holders = [(int(pid), int(fd), str(comm)) for pid, fd, comm in target["holders"]]
        followed = [str(name) for name in entry.before.get("followed", ())]
        end = End(**{name: target[name] for name in End.__struct_fields__})
        _key(end)
        _target(end)
        if not options.keys() <= pidfd.KEEPALIVE_OPTIONS.keys():
            raise ValueError("an option that is none of ours")
    undo = Act(
        "sockopt", dict(target), dict(entry.after), {"options": options}, f"undo {act_id}", undoes=act_id
    )
    (undo_id,) = journal.claim_many([undo], besides=act_id)
    if not isinstance(undo_id, int):
        raise Refused("taken", f"act {act_id} cannot be taken back now: {undo_id}")
    last: FinwaitError = TargetGone(cookie)
    ways = _ways(end, inode, holders)
    if entry.boot_id != procfs.facts().boot_id:
        last, ways = TargetGone(cookie, "the machine was started again since"), iter(())
    try:
        for pid, fd, comm in ways:
            try:
                with pidfd.borrowed(pid, fd, inode=inode, cookie=cookie) as sock:
                    if entry.result is not None and not force:
                        _unchanged(pidfd.get_options(sock), options, made)
                    pidfd.set_options(sock, pidfd.nearest(options))
            except TargetGone as error:
                last = error
                continue
            _close_open(
                entry, journal, {undo_id: {"result": "restored"}}, f"cut short; act {undo_id} put it back"
            )
            return f"put back {_put_back(options)} in {comm} (pid {pid}, fd {fd}){_pinned(followed)}"
    except FinwaitError as error:
        journal.complete_many({undo_id: {"error": str(error)}})
        raise
    _close_open(entry, journal, {undo_id: {"error": str(last)}}, "cut short; its connection has ended since")
    raise last


def _ways(end: End, inode: int, known: Sequence[Holder]) -> Iterator[Holder]:
    """Give the holders that are known, and then those that are found when it is looked anew.

    Raises:
        FinwaitError: the connection is still there, and no descriptor of it could be found, or kept up with.
    """
    yield from known
    for _ in range(3):
        for found in _elsewhere({0: (end, inode)}).values():
            if isinstance(found, _Moved):
                raise found
            yield from found
            break
        else:
            return
    raise FinwaitError(f"{_LIVES}, and its descriptor moves all the time")


def _put_back(options: Mapping[str, int]) -> str:
    """Say what options are now, and what of it is not as it was."""
    now = pidfd.nearest(options)
    return ", ".join(
        f"{n}={now[n]}" + (f" (it was {v}, more than setsockopt(2) takes)" if now[n] != v else "")
        for n, v in options.items()
    )


def _pinned(followed: Sequence[str]) -> str:
    names = [name for name in followed if name in _SYSCTLS]
    if not names:
        return ""
    return (
        f"; {', '.join(names)}: the socket's own now, and no longer those of the sysctls if it followed them"
    )


def _unchanged(now: Mapping[str, int], before: Mapping[str, int], made: Mapping[str, int]) -> None:
    """Refuse if an option is neither as an act left it nor as it was before."""
    for name, value in made.items():
        if now[name] not in (value, before.get(name)):
            raise Refused(
                "changed-since",
                f"{name} is {now[name]} now, and the act made it {value}: it was set since",
                override="--force",
            )


def _close_open(entry: Any, journal: Journal, results: dict[int, dict[str, str]], said: str) -> None:  # noqa: ANN401
    """Write results down, and that of an act which was cut short: it is told no more."""
    if entry.result is None:
        results = results | {entry.id: {"result": said}}
    journal.complete_many(results)


@contextmanager
def _whole_act(act_id: int) -> Iterator[None]:
    """Say of an act whose record is not what we write that it is damaged."""
    try:
        yield
    except (KeyError, ValueError, TypeError, AttributeError, OverflowError, struct.error) as error:
        raise FinwaitError(f"act {act_id} of the journal is damaged: {error!r}") from None


def settle(act_id: int, journal: Journal) -> str:
    """Find out what came of an act that was cut short and cannot be taken back; write it down and return it.

    Raises:
        ValueError: there is no such act, or it is not one that was cut short.
    """
    entry = journal.get(act_id)
    if entry.result is not None:
        raise ValueError(f"act {act_id} is complete")
    target = entry.target
    if entry.kind == "conntrack-delete":
        said = "whether the entry was deleted is not known; `finwait conntrack` shows what is there"
    elif entry.boot_id != procfs.facts().boot_id:
        said = "the machine was started again since: its connection is gone"
    else:
        with _whole_act(act_id):
            end = End(**{name: target[name] for name in End.__struct_fields__})
            _key(end)
            _target(end)
        seen = _left([end]).get(_key(end))
        said = "its connection is gone" if seen is None else f"its connection is still there, in {seen.state}"
        if seen is not None and seen.unknown:
            said = f"what became of its connection is not known: {_CLOSED}"
    journal.complete_many({act_id: {"result": f"cut short; {said}"}})
    return said


# ── connection tracking ──────────────────────────────────────────────────────────────────────────────────


def delete_entries(
    flows: FlowTable,
    which: Sequence[int],
    journal: Journal,
    described: Sequence[Mapping[str, Any]],
    fault: Callable[[str], None] = _quiet,
) -> list[str]:
    """Delete tracking entries, each by tuple, zone and id, in its namespace; say of each what came of it.

    The id is checked by the kernel: an entry that took over the tuple is not hit.

    Raises:
        KernelError: the journal could not be written; nothing was done.
    """
    acts = [Act("conntrack-delete", dict(one), dict(one), {}, "conntrack --delete") for one in described]
    ids = journal.record_many(acts)
    fault("journaled")
    results = ["failed: its namespace could not be entered"] * len(which)
    by_ns: dict[int, list[int]] = {}
    for k, row in enumerate(which):
        by_ns.setdefault(int(flows.netns[row]), []).append(k)

    def inside(ns: ns_edge.NetNamespace) -> None:
        with netlink_socket(NETLINK_NETFILTER, "open a conntrack socket") as sock:
            for k in by_ns[ns.inode]:
                results[k] = _delete_entry(sock, flows, which[k])

    ns_edge.visit(_namespaces(by_ns), inside)
    fault("acted")
    journal.complete_many(
        {
            act: {"result": said} if said in ("deleted", "gone before") else {"error": said}
            for act, said in zip(ids, results, strict=True)
        }
    )
    return results


def _delete_entry(sock: Any, flows: FlowTable, row: int) -> str:  # noqa: ANN401 - socket.socket
    family = int(flows.family[row])
    ends = []
    for name in ("orig_src", "orig_dst"):
        high, low = (int(x) for x in flows[name][row])
        ends.append(
            (low & 0xFFFFFFFF).to_bytes(4, "big")
            if family == inet_diag.AF_INET
            else high.to_bytes(8, "big") + low.to_bytes(8, "big")
        )
    original = conntrack.FlowTuple(
        family,
        int(flows.protocol[row]),
        ends[0],
        ends[1],
        int(flows.orig_sport[row]),
        int(flows.orig_dport[row]),
    )
    zone = int(flows.zone[row]) if flows.present("zone")[row] else None
    message = conntrack.entry_request(conntrack.CT_DELETE, original, zone=zone, identity=int(flows.id[row]))
    try:
        request(sock, message, "delete a conntrack entry")
    except KernelError as error:
        return "gone before" if error.errno == errno.ENOENT else f"failed: {error}"
    return "deleted"
