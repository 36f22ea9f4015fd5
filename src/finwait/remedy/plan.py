"""Findings → steps: for each connection the gentlest means that really ends it.

In this order: a FIN from the CLOSE_WAIT end (the peer sees a proper end), which may be the *other* end of the
connection that was selected; a keepalive whose verdict is awaited (harmless to a live peer); SOCK_DESTROY (a
RST). Where that is unavailable, a RST through the borrowed descriptor, which the peer sees in the same way; a means
of which the peer sees *less* is never taken unasked. "Restart this process" is never a step, only advice: it is
the one thing that a plan cannot take back or aim.

A plan is a value. It can be printed, written to a file, reviewed, and applied later, when everything that it
rests on is read again. Of a file only identities, means and facts are taken: its texts must be those of this module for
those facts, and what is shown before the act is made anew from a look (`again`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from finwait.attribution.other_end import counts_agree
from finwait.diagnosis import catalogue
from finwait.diagnosis.catalogue import NAMES
from finwait.diagnosis.rule import Means
from finwait.errors import FinwaitError, Refused
from finwait.remedy.guards import Abilities, Limits, Verdict, guard_destroy, guard_rows, guard_well
from finwait.table.sockets import address_text, pack_address
from finwait.table.units import endpoint, printable
from finwait.uapi import tcp

if TYPE_CHECKING:
    from finwait.diagnosis.finding import Finding
    from finwait.diagnosis.view import View

__all__ = [
    "MEANS",
    "Abilities",
    "End",
    "Left",
    "Plan",
    "Refusal",
    "Step",
    "again",
    "decode",
    "encode",
    "make",
    "peer_sees",
    "permit",
    "step_of",
]

MEANS: Final[tuple[Means, ...]] = ("fin", "keepalive", "user-timeout", "reset", "destroy")
_CLASS: Final = {
    "fin": "destructive",
    "keepalive": "reversible",
    "user-timeout": "reversible",
    "reset": "destructive",
    "destroy": "destructive",
}


Sees = Literal[
    "fin",
    "fin-then-reset",
    "probe",
    "give-up",
    "reset",
    "reset-if-path",
    "nothing",
    "nothing-through-nat",
    "unknown",
]
_SEES: Final[Mapping[Sees, str]] = {
    "fin": "a FIN (clean close)",
    "fin-then-reset": "a FIN now; a RST when the program closes it with unread data",
    "probe": "a keepalive probe; if it is alive it answers, and nothing else happens",
    "give-up": "nothing new; the connection is dropped if its data stays unacknowledged for the time set",
    "reset": "a RST, once, not repeated",
    "reset-if-path": "a RST, if the path works",
    "nothing": "nothing: no packet is sent in this state",
    "nothing-through-nat": "nothing: the RST cannot cross the translation that is gone",
    "unknown": "unknown",
}
"""What the peer gets to see of an act, and in words."""
_MOST_BYTES: Final = 64 << 20
"""Of a plan as JSON: what `finwait clear --plan` reads. One of 60,000 steps has some 50 MB."""


class End(msgspec.Struct, frozen=True):
    """The other end of a connection, when it is on this machine too."""

    netns: int
    protocol: int
    family: int
    src: str
    sport: int
    dst: str
    dport: int
    state: str
    cookie: str
    ifindex: int = 0


class Step(msgspec.Struct, frozen=True):
    """One act on one connection; the identity is the cookie, in its namespace."""

    means: Means
    kind: str
    """Class of the remedy: ``reversible`` or ``destructive``."""
    rule: str
    netns: int
    protocol: int
    family: int
    src: str
    sport: int
    dst: str
    dport: int
    state: str
    cookie: str
    inode: int
    bytes_received: int
    bytes_acked: int
    holders: tuple[tuple[int, int, str], ...]
    """(pid, fd, comm) of each descriptor that refers to it."""
    sees: Sees
    """What the peer sees of it."""
    peer_told: str
    """The same in words."""
    stays: str = ""
    """What is still there afterwards."""
    ifindex: int = 0
    """Interface that the socket is bound to; 0 for none."""
    other: End | None = None
    """The other end, when it is here: it is looked at afterwards, too."""
    selected: str = ""
    """The end that was selected, when the act is done at its other end."""
    note: str = ""
    """Why it is this means, where another would be expected."""
    gone: bool = False
    """Whether it was not there any more when a plan from a file was looked at again."""
    holders_known: bool = True
    """Whether no holders means that there are none: every process was inspected, or it is an orphan (inode 0)."""


class Left(msgspec.Struct, frozen=True):
    """A connection that the plan leaves alone, and the guard that says so."""

    connection: str
    guard: str
    reason: str
    wait_ms: int = 0
    """After so long the guard would not speak any more, if nothing changes; 0 where that is no help, or not known."""


class Refusal(msgspec.Struct, frozen=True):
    """A guard that speaks against a plan as a whole: it can be read, and not be carried out."""

    guard: str
    reason: str
    override: str
    """What would overrule it."""


class Plan(msgspec.Struct, frozen=True):
    """Steps, and what was left out."""

    made_unix_ns: int
    boot_id: str
    steps: tuple[Step, ...]
    left: tuple[Left, ...] = ()
    advice: tuple[str, ...] = ()
    refused: tuple[Refusal, ...] = ()
    """Why the whole of it may not be carried out, if so."""
    apiVersion: str = "finwait/v1"  # noqa: N815 - the spelling of the contract
    kind: str = "ClearPlan"


def encode(plan: Plan) -> bytes:
    """Return a plan as JSON.

    Raises:
        FinwaitError: it would be larger than what is read again.
    """
    data = msgspec.json.format(msgspec.json.encode(plan), indent=1) + b"\n"
    if len(data) > _MOST_BYTES:
        error = FinwaitError(
            f"a plan of {len(plan.steps)} steps has {len(data) >> 20} MiB, and `--plan` reads {_MOST_BYTES >> 20} MiB"
        )
        error.hint = "narrow the FILTER and make several plans"
        raise error
    return data


def permit(plan: Plan) -> None:
    """Let a plan pass that may be carried out as a whole.

    Raises:
        Refused: guard ``max`` or ``share``.
    """
    for one in plan.refused:
        raise Refused(one.guard, one.reason, override=one.override)


def again(
    plan: Plan,
    view: View,
    findings: Sequence[Finding],
    limits: Limits,
    *,
    can: Abilities,
    unseen: Collection[int] = (),
) -> Plan:
    """Make a plan that was read from a file anew, from a look at its connections now.

    The rule, what the peer sees and every text are made anew, holders are those that are found now, and guards are
    asked again (``min-age`` is not: the file names each connection; ``established`` is, whatever was named when the
    plan was made). What the steps rest on, state and bytes, stays as the file has it, for the act to compare. A
    connection that is not there any more is marked.

    Args:
        plan: the plan.
        view: the sockets, looked at twice.
        findings: what was found among them.
        limits: what the caller allows now; who made the plan may have allowed more.
        can: what cannot be done here.
        unseen: namespaces that could not be inspected: what is in them is not called gone.
    """
    s = view.sockets
    wanted = {(step.netns, int(step.cookie, 16)) for step in plan.steps}
    keys = zip(s.netns.tolist(), s.cookie.tolist(), strict=True)
    rows = {key: row for row, key in enumerate(keys) if key in wanted}
    limits = replace(limits, min_age_ms=0, from_file=True)
    cells = _Cells(view, np.array(sorted(rows.values()), np.int64))
    judged = _judged(findings)
    steps: list[Step] = []
    left: list[Left] = []
    for step in plan.steps:
        row = rows.get((step.netns, int(step.cookie, 16)))
        if row is None and step.netns in unseen:
            left.append(Left(_ends(step), "unseen", "its namespace could not be inspected"))
        elif row is None:
            steps.append(msgspec.structs.replace(step, gone=True, rule="", note="", stays="", selected=""))
        else:
            fresh = _again(view, row, step, judged, limits, can, cells)
            if isinstance(fresh, Verdict):
                left.append(Left(_text(view, row), fresh.guard, fresh.reason, fresh.wait_ms))
            else:
                steps.append(fresh)
    here = [step for step in steps if not step.gone]
    return msgspec.structs.replace(
        plan, steps=tuple(steps), left=tuple(left), advice=_advice(here), refused=_whole(view, here, limits)
    )


def _again(
    view: View, row: int, step: Step, judged: _Judged, limits: Limits, can: Abilities, cells: _Cells
) -> Step | Verdict:
    if (verdict := guard_rows(view, row, limits)) is not None:
        return verdict
    other = int(view.other[row])
    # A FIN may finish the half-close of the other end, which is the one that was selected.
    from_there = (
        bool(step.selected)
        and step.means == "fin"
        and other >= 0
        and view.sockets.state[other] == tcp.FIN_WAIT2
    )
    subject = other if from_there else row
    cause, well = judged
    if (
        subject not in cause
        and (verdict := guard_well(view, subject, limits, well.get(subject, ""))) is not None
    ):
        return verdict
    if step.means == "destroy" and (verdict := guard_destroy(view, row, limits, can)) is not None:
        return verdict
    if (
        why := _possible(view, row, step.means, Abilities())
    ) is not None:  # what we may do is asked of all at once
        return Verdict("means", why)
    fresh = step_of(view, row, cause.get(subject, ""), step.means, cells=cells)
    names = ("family", "src", "sport", "dst", "dport", "ifindex", "protocol")
    if any(getattr(fresh, name) != getattr(step, name) for name in names):
        return Verdict("plan", "in the plan, its cookie belongs to another connection")
    if fresh.sees != step.sees and (fresh.state, fresh.inode) == (step.state, step.inode):
        return Verdict("plan", "the plan is wrong about what its peer sees")
    note = ""
    if step.means == "reset" and (why := can.no_destroy.get((step.netns, step.protocol))) is not None:
        note = f"{why}; the peer sees the same from a reset"
    selected = _text(view, other) if from_there else ""
    return msgspec.structs.replace(
        fresh, note=note, selected=selected, state=step.state, inode=step.inode,
        bytes_received=step.bytes_received, bytes_acked=step.bytes_acked,
    )  # fmt: skip


_Judged = tuple[dict[int, str], dict[int, str]]
"""Rows that have a cause → its rule; rows that are healthy → the title that says so."""


def _judged(findings: Sequence[Finding]) -> _Judged:
    cause: dict[int, str] = {}
    well: dict[int, str] = {}
    for finding in findings:
        if finding.primary:
            known, said = (well, finding.title) if finding.severity == "healthy" else (cause, finding.rule)
            for row in finding.rows.tolist():
                known.setdefault(row, said)
    return cause, well


def _ends(end: Step | End) -> str:
    return f"{endpoint(end.src, end.sport)} → {endpoint(end.dst, end.dport)} {end.state}"


_NO_COOKIE: Final = (1 << 64) - 1
"""INET_DIAG_NOCOOKIE: to the kernel it means *any* socket of that tuple, so no plan may carry it."""


def decode(data: bytes, name: str = "the plan") -> Plan:
    """Read a plan again, perhaps one that somebody edited.

    Args:
        data: the file.
        name: of the file, for errors.

    Raises:
        FinwaitError: it is not one; the message begins with the file and the line.
        Refused: it names a listener.
    """
    try:
        plan = msgspec.json.decode(data, type=Plan)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        line = _line_of_error(data, str(error))
        raise FinwaitError(f"{name}:{line}: not a plan of `finwait clear -o json`: {error}") from None
    if plan.kind != "ClearPlan" or plan.apiVersion != "finwait/v1":
        where = f"{name}:{_line_of(data, ['kind'])}"
        raise FinwaitError(f"{where}: not a plan of this finwait: {plan.apiVersion} {plan.kind}")
    for k, step in enumerate(plan.steps):
        if (wrong := _wrong(step)) is not None:
            where = f"{name}:{_line_of(data, ['steps', k])}"
            if step.state == "LISTEN":
                raise Refused("listener", f"{where}: {wrong}")
            raise FinwaitError(f"{where}: {wrong}")
    return plan


def _wrong(step: Step) -> str | None:
    """Return what is wrong with a step that was read from a file, or None."""
    if step.state == "LISTEN":
        return "the plan names a listener"
    for end in (step, step.other):
        if end is not None and (wrong := _unsound(end)) is not None:
            return wrong
    if not 0 <= step.inode < 1 << 32:
        return f"inode {step.inode}: there is no such socket"
    for pid, fd, _ in step.holders:
        if not (0 < pid < 1 << 31 and 0 <= fd < 1 << 31):
            return f"pid {pid}, descriptor {fd}: no such holder"
    if step.kind != _CLASS[step.means]:
        return f"`{step.means}` is {_CLASS[step.means]}, and the plan calls it something else"
    if step.peer_told != _SEES[step.sees]:
        return (
            f"the description of what the peer sees is not `{_SEES[step.sees]}` (edited, or from another "
            "version)"
        )
    if step.rule and step.rule not in NAMES:
        return "it names an unknown rule"
    return None


def _unsound(end: Step | End) -> str | None:
    """Return what is wrong with an identity, or None. Only what identifies one socket may go to the kernel."""
    try:
        cookie = int(end.cookie, 16)
    except ValueError:
        cookie = -1
    if not 0 < cookie < _NO_COOKIE:
        return f"`{printable(end.cookie)}` is not a cookie"
    if end.family not in (2, 10):
        return f"{end.family} is not an address family of TCP"
    if end.protocol not in (6, 262):
        return f"protocol {end.protocol} is neither TCP nor MPTCP"
    if not (0 <= end.netns < 1 << 32 and 0 <= end.ifindex < 1 << 32):
        return f"{end.netns}, {end.ifindex}: not a namespace and an interface"
    if not (0 <= end.sport < 1 << 16 and 0 <= end.dport < 1 << 16):
        return f"{end.sport}, {end.dport}: not ports"
    if not tcp.is_state_name(end.state):
        return f"`{printable(end.state)}` is not a state"
    for address in (end.src, end.dst):
        if not _canonical(address):  # a scope may hold anything
            return f"`{printable(address)}` is not an address"
        if end.family == 2 and ":" in address:
            return f"`{address}` is not an IPv4 address"
    return None


@lru_cache(maxsize=8192)
def _canonical(address: str) -> bool:
    """Return whether an address is written as we write it."""
    try:
        return address_text(*pack_address(address)) == address
    except ValueError:
        return False


def _line_of_error(data: bytes, said: str) -> int:
    """Return the line that msgspec's message points at, by a byte or by a path."""
    if at := re.search(r"\(byte (\d+)\)", said):
        return data.count(b"\n", 0, int(at[1])) + 1
    if at := re.search(r"`\$(\S*)`", said):
        words = re.findall(r"\[(\d+)\]|\.?([^.\[\]]+)", at[1])
        return _line_of(data, [int(number) if number else word for number, word in words])
    return data.count(b"\n") + 1


_TOKEN: Final = re.compile(rb'"(?:\\.|[^"\\])*"|[{}\[\]:,]', re.DOTALL)


def _line_of(data: bytes, path: Sequence[str | int]) -> int:
    """Return the line (from 1) on which the value at a path of well-formed JSON begins, as far as it is there."""
    wanted, line = list(path), 1
    here: list[str | int] = []
    pending = b""
    for token in _TOKEN.finditer(data):
        word = token[0]
        if word in b"{[":
            if here and here == wanted[: len(here)]:
                line = data.count(b"\n", 0, token.start()) + 1
            here.append("" if word == b"{" else 0)
        elif word in b"}]":
            if here:
                here.pop()
        elif word == b":" and here:
            here[-1] = pending[1:-1].decode("utf-8", "replace")
        elif word == b"," and here and isinstance(here[-1], int):
            here[-1] += 1
        pending = word
        if here == wanted:
            return data.count(b"\n", 0, token.start()) + 1
    return line


def peer_sees(state: int, *, orphan: bool, minisocket: bool, nat_lost: bool = False) -> Sees:
    """Return what the peer sees of SOCK_DESTROY, by the state of this end (measured: the destroy matrix)."""
    if minisocket or state in (tcp.LAST_ACK, tcp.CLOSING, tcp.TIME_WAIT, tcp.SYN_SENT, tcp.SYN_RECV):
        return "nothing"
    if nat_lost:
        return "nothing-through-nat"
    if state in (tcp.ESTABLISHED, tcp.FIN_WAIT1, tcp.FIN_WAIT2, tcp.CLOSE_WAIT):
        return "reset-if-path" if orphan else "reset"
    return "unknown"


def _text(view: View, row: int) -> str:
    src, dst = view.ends(row)
    state = int(view.sockets.state[row])
    return f"{src} → {dst} {tcp.state_name(state)}"


class _Cells:
    """The columns that steps are made of, as lists, for some rows: one numpy cell at a time is slow by the million."""

    NAMES = (
        "netns", "protocol", "family", "sport", "dport", "state", "cookie", "ifindex", "inode", "timer",
        "rqueue", "bytes_received", "bytes_acked",
    )  # fmt: skip

    def __init__(self, view: View, rows: NDArray[np.int64]) -> None:
        other = view.other[rows]
        rows = np.unique(np.concatenate([rows, other[other >= 0]]))
        s = view.sockets
        self.at = {row: k for k, row in enumerate(rows.tolist())}
        self.of = {name: s.column(name)[rows].tolist() for name in self.NAMES}
        self.src, self.dst = s.src[rows].tolist(), s.dst[rows].tolist()
        self.listener: list[int] = view.listener[rows].tolist()

    def end(self, row: int) -> dict[str, Any]:
        """Return the identity of a row."""
        k, of = self.at[row], self.of
        return {
            "netns": of["netns"][k],
            "protocol": of["protocol"][k],
            "family": of["family"][k],
            "src": _address(*self.src[k]),
            "sport": of["sport"][k],
            "dst": _address(*self.dst[k]),
            "dport": of["dport"][k],
            "state": tcp.state_name(of["state"][k]),
            "cookie": f"{of['cookie'][k]:#x}",
            "ifindex": of["ifindex"][k],
        }


_address = lru_cache(maxsize=8192)(address_text)


def _means(view: View, row: int, rule: str) -> Means:
    """Return what the rule states, where a process holds the connection; else what its state allows."""
    means = catalogue.rule(rule).means if rule else None
    held = bool(view.holder_found[row])
    if means in ("destroy", "user-timeout") and (held or means == "destroy"):
        return means  # a FIN would only queue up behind what is not acknowledged
    if int(view.sockets.state[row]) == tcp.CLOSE_WAIT and held:
        return "fin"
    return "keepalive" if means == "keepalive" and held else "destroy"


def _path_lost(rule: str) -> bool:
    return bool(rule) and catalogue.rule(rule).path_lost


def _closer(view: View, row: int, rule: str, limits: Limits, can: Abilities) -> int | None:
    """Return the other end of a half-close of ours, when a FIN from there is possible and finishes both ends."""
    other = int(view.other[row])
    if (
        _path_lost(rule)
        or other < 0
        or view.other_ambiguous[row]
        or int(view.other_how[row]) not in (1, 2)
        or view.sockets.state[row] != tcp.FIN_WAIT2
        or view.sockets.timer[row] == 3
        or view.sockets.state[other] != tcp.CLOSE_WAIT
        # One tuple may be two connections, of networks that are not connected.
        or not counts_agree(view.sockets, np.array([row]), np.array([other]), unknown=True)[0]
        or view.sockets.timer[other] == 4  # its FIN would wait behind what has no room at our end
        or not view.holder_found[other]
        or guard_rows(view, other, limits) is not None
        or _not_borrowed(view, other, can) is not None
    ):
        return None
    return other


def _not_borrowed(view: View, row: int, can: Abilities) -> str | None:
    """Return why no descriptor of a socket can be borrowed, or None when one can."""
    holders = view.holders.of(row)
    if not holders:
        return "no process was found that holds it, and this means needs a descriptor"
    if view.sockets.protocol[row] == 6 and view.sockets.ulp[row] == b"mptcp":
        return (
            "a subflow of MPTCP: its program's descriptor belongs to the whole connection, and would "
            "act on that"
        )
    if all(pid in can.no_borrow for pid, _ in holders):
        return can.no_borrow[holders[0][0]]
    return None


def _possible(view: View, row: int, means: Means, can: Abilities, rule: str = "") -> str | None:
    """Return why a means does nothing here, or None."""
    state = int(view.sockets.state[row])
    if state == tcp.SYN_SENT and rule == "half-open":
        return "the old connection at its other end is in the way; the next connection would meet it too"
    key = (int(view.sockets.netns[row]), int(view.sockets.protocol[row]))
    if means == "destroy":
        if can.spares_minisockets and view.sockets.timer[row] == 3:
            return "this kernel does not destroy minisockets (EOPNOTSUPP); it ends by itself"
        return can.no_destroy.get(key)
    if (why := _not_borrowed(view, row, can)) is not None:
        if not view.holder_found[row] or means == "reset":
            return why
        return why + ("; `--with destroy` would end it" if key not in can.no_destroy else "")
    if means == "fin" and state not in (tcp.CLOSE_WAIT, tcp.ESTABLISHED):
        return "its FIN has already been sent"
    if means == "keepalive" and view.sockets.timer[row] in (1, 4):
        return "keepalive does not run while data (or a FIN) is in flight"
    if means == "user-timeout" and view.sockets.timer[row] not in (1, 4):
        return "nothing is in flight that TCP_USER_TIMEOUT could limit"
    return None


def _planned(
    view: View, row: int, rule: str, force: Means | None, limits: Limits, can: Abilities, cells: _Cells
) -> Step | Verdict:
    """Return the step that ends a connection, or why there is none."""
    if force is None and (other := _closer(view, row, rule, limits, can)) is not None:
        return step_of(view, other, rule, "fin", selected=_text(view, row), cells=cells)
    means = force or _means(view, row, rule)
    if means == "destroy" and (harm := guard_destroy(view, row, limits, can)) is not None:
        return harm
    why_not = _possible(view, row, means, can, rule if force is None else "")
    if why_not is None:
        return step_of(view, row, rule, means, cells=cells)
    if means == "destroy" and _possible(view, row, "reset", can) is None:
        note = f"{why_not}; the peer sees the same from a reset"
        return step_of(view, row, rule, "reset", note=note, cells=cells)
    return Verdict("means", why_not)


def make(
    view: View,
    findings: Sequence[Finding],
    rows: NDArray[np.bool_],
    limits: Limits,
    *,
    force: Means | None = None,
    can: Abilities | None = None,
    now_unix_ns: int = 0,
    boot_id: str = "",
) -> Plan:
    """Make a plan that ends connections which findings call problems (or notices).

    Args:
        view: the sockets.
        findings: what was found.
        rows: which of them may be touched (the FILTER).
        limits: see `Limits`.
        force: use this means for all, at the end that was selected.
        can: what cannot be done here; None for no limits.
        now_unix_ns: when, for the reader of the file.
        boot_id: of the machine; cookies mean nothing on another boot.

    Returns:
        The plan. One that is too large as a whole (guards ``max`` and ``share``) says so, and is not `permit`-ted.
    """
    cause, well = _judged(findings)
    steps: list[Step] = []
    left: list[Left] = []
    seen: set[tuple[int, int]] = set()
    can = can or Abilities()
    chosen = np.flatnonzero(rows)
    cells = _Cells(view, chosen)
    for row in chosen.tolist():
        verdict = guard_rows(view, row, limits)
        if verdict is None and row not in cause:
            verdict = guard_well(view, row, limits, well.get(row, ""))
        if verdict is not None:
            left.append(Left(_text(view, row), verdict.guard, verdict.reason, verdict.wait_ms))
            continue
        step = _planned(view, row, cause.get(row, ""), force, limits, can, cells)
        if isinstance(step, Verdict):
            left.append(Left(_text(view, row), step.guard, step.reason, step.wait_ms))
        elif (key := (step.netns, int(step.cookie, 16))) not in seen:
            seen.add(key)
            steps.append(step)
    refused = _whole(view, steps, limits)
    return Plan(now_unix_ns, boot_id, tuple(steps), tuple(left), _advice(steps), refused)


def step_of(
    view: View,
    row: int,
    rule: str,
    means: Means,
    *,
    selected: str = "",
    note: str = "",
    cells: _Cells | None = None,
) -> Step:
    """Return the step that acts on a row, with the identity that it is checked by."""
    cells = cells or _Cells(view, np.array([row], np.int64))
    k, of = cells.at[row], cells.of
    state, rqueue, inode = of["state"][k], of["rqueue"][k], of["inode"][k]
    processes = view.processes
    holders = tuple(
        (pid, fd, processes[pid].comm if pid in processes else "?") for pid, fd in view.holders.of(row)
    )
    sees: Sees
    if means == "fin":
        sees = "fin-then-reset" if rqueue > 1 else "fin"
    elif means == "keepalive":
        sees = "probe"
    elif means == "user-timeout":
        sees = "give-up"
    else:
        sees = peer_sees(
            state,
            orphan=not inode and cells.listener[k] < 0,
            minisocket=of["timer"][k] == 3,
            nat_lost=_path_lost(rule),
        )
    stays = ""
    if holders and means in ("fin", "reset", "destroy"):
        stays = _descriptors(holders)
    elif not inode and state in (tcp.ESTABLISHED, tcp.CLOSE_WAIT) and cells.listener[k] >= 0:
        stays = "its place in the accept queue stays taken: a later accept() returns a dead socket"
    other = int(view.other[row])
    return Step(
        means=means,
        kind=_CLASS[means],
        rule=rule,
        holders=holders,
        inode=inode,
        bytes_received=of["bytes_received"][k],
        bytes_acked=of["bytes_acked"][k],
        sees=sees,
        peer_told=_SEES[sees],
        stays=stays,
        other=End(**cells.end(other)) if other >= 0 and not view.other_ambiguous[row] else None,
        selected=selected,
        note=note,
        holders_known=bool(holders) or not inode or view.holders.complete,
        **cells.end(row),
    )


def _descriptors(holders: Sequence[tuple[int, int, str]]) -> str:
    first = ", ".join(f"{comm} ({pid}:{fd})" for pid, fd, comm in holders[:3])
    if len(holders) > 3:
        first += f" and {len(holders) - 3} more"
    return ("the descriptor stays" if len(holders) == 1 else "the descriptors stay") + f" open in {first}"


def _whole(view: View, steps: Sequence[Step], limits: Limits) -> tuple[Refusal, ...]:
    """Return what speaks against carrying out all of the steps."""
    found = []
    if len(steps) > limits.max_connections and "max" not in limits.override:
        found.append(
            Refusal(
                "max", f"the plan touches {len(steps)} connections, more than {limits.max_connections}",
                f"--max {len(steps)} or --override max",
            )
        )  # fmt: skip
    if "share" in limits.override:
        return tuple(found)
    touched = Counter(pid for step in steps for pid in {pid for pid, _, _ in step.holders})
    by_pid = view.pid_rows(view.held & (view.sockets.state != tcp.LISTEN)) if touched else {}
    for pid, n in touched.items():
        held = len(by_pid.get(pid, ()))
        if held >= 10 and n > limits.share * held:
            comm = view.processes[pid].comm if pid in view.processes else "?"
            found.append(
                Refusal(
                    "share", f"the plan touches {n} of the {held} connections of {comm} (pid {pid})",
                    "--share 1 or --override share",
                )
            )  # fmt: skip
    return tuple(found)


def _advice(steps: Sequence[Step]) -> tuple[str, ...]:
    leaky = Counter(
        (pid, comm)
        for step in steps
        if step.means in ("fin", "reset", "destroy")
        for pid, _, comm in step.holders
    )
    return tuple(
        f"{'1 descriptor stays' if n == 1 else f'{n} descriptors stay'} open in {comm} (pid {pid}): "
        f"only its close(), or its restart, frees {'it' if n == 1 else 'them'}"
        for (pid, comm), n in leaky.most_common()
    )
