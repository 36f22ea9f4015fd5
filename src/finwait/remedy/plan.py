"""Findings → steps: for each connection the gentlest means that really ends it.

In this order: a FIN from the CLOSE_WAIT end (the peer sees a proper end), a keepalive whose verdict is awaited
(harmless to a live peer), SOCK_DESTROY (a RST). "Restart this process" is never a step, only advice: it is the
one thing that a plan cannot take back or aim.

A plan is a value. It can be printed, written to a file, reviewed, and applied later, when everything that it
rests on is read again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from finwait.errors import FinwaitError, Refused
from finwait.remedy.guards import Limits, guard_rows
from finwait.table.sockets import address_text
from finwait.uapi import tcp

if TYPE_CHECKING:
    from finwait.diagnosis.finding import Finding
    from finwait.diagnosis.view import View

__all__ = ["MEANS", "Left", "Plan", "Step", "decode", "encode", "make", "peer_told", "step_of"]

Means = Literal["fin", "keepalive", "user-timeout", "destroy"]
MEANS: Final[tuple[Means, ...]] = ("fin", "keepalive", "user-timeout", "destroy")
_CLASS: Final = {
    "fin": "destructive",
    "keepalive": "reversible",
    "user-timeout": "reversible",
    "destroy": "destructive",
}


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
    peer_told: str
    """What the other end gets to know."""
    stays: str = ""
    """What is still there afterwards."""


class Left(msgspec.Struct, frozen=True):
    """A connection that the plan leaves alone, and the guard that says so."""

    connection: str
    guard: str
    reason: str


class Plan(msgspec.Struct, frozen=True):
    """Steps, and what was left out."""

    made_unix_ns: int
    boot_id: str
    steps: tuple[Step, ...]
    left: tuple[Left, ...] = ()
    advice: tuple[str, ...] = ()
    apiVersion: str = "finwait/v1"  # noqa: N815 - the spelling of the contract
    kind: str = "ClearPlan"


def encode(plan: Plan) -> bytes:
    """Return a plan as JSON."""
    return msgspec.json.format(msgspec.json.encode(plan), indent=1) + b"\n"


def decode(data: bytes) -> Plan:
    """Read a plan again.

    Raises:
        FinwaitError: it is not one.
    """
    try:
        plan = msgspec.json.decode(data, type=Plan)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise FinwaitError(f"not a plan of `finwait clear -o json`: {error}") from None
    if plan.kind != "ClearPlan" or plan.apiVersion != "finwait/v1":
        raise FinwaitError(f"not a plan of this finwait: {plan.apiVersion} {plan.kind}")
    for step in plan.steps:
        if step.state == "LISTEN":
            raise Refused("listener", f"the plan names the listener {step.src}:{step.sport}")
        try:
            int(step.cookie, 16)
        except ValueError:
            raise FinwaitError(f"`{step.cookie}` is not a cookie") from None
    return plan


def peer_told(state: int, *, orphan: bool, minisocket: bool, nat_lost: bool = False) -> str:
    """Return what SOCK_DESTROY tells the peer, by the state of this end (measured, docs: destroy matrix)."""
    if minisocket or state in (tcp.LAST_ACK, tcp.CLOSING, tcp.TIME_WAIT, tcp.SYN_SENT, tcp.SYN_RECV):
        return "nothing: no packet is sent in this state"
    if nat_lost:
        return "nothing: its RST does not get through the translation that is gone"
    if state in (tcp.ESTABLISHED, tcp.FIN_WAIT1, tcp.FIN_WAIT2, tcp.CLOSE_WAIT):
        return "a RST, once, not repeated" if not orphan else "a RST, if the path works"
    return "unknown"


def _text(view: View, row: int) -> str:
    s = view.sockets
    src, dst = (address_text(*(int(x) for x in s[name][row])) for name in ("src", "dst"))
    return f"{src}:{int(s.sport[row])} → {dst}:{int(s.dport[row])} {tcp.STATES.get(int(s.state[row]), '?')}"


def _means(view: View, row: int, rule: str) -> Means:
    state = int(view.sockets.state[row])
    held = bool(view.holder_found[row])
    if rule == "nat-entry-gone":
        return "destroy"
    if state == tcp.CLOSE_WAIT and held:
        return "fin"
    if rule in ("idle-unprobed", "nat-zombie") and held:
        return "keepalive"
    if rule in ("data-unanswered", "fin-unanswered-held", "zero-window") and held:
        return "user-timeout"
    return "destroy"


def _possible(view: View, row: int, means: Means) -> str | None:
    """Return why a forced means does nothing here, or None."""
    state = int(view.sockets.state[row])
    if means != "destroy" and not view.holder_found[row]:
        return "no process was found that holds it, and this means goes through its descriptor"
    if means == "fin" and state not in (tcp.CLOSE_WAIT, tcp.ESTABLISHED):
        return "its FIN is sent already"
    if means == "keepalive" and view.sockets.timer[row] in (1, 4):
        return "keepalive does not run while data (or a FIN) is in flight"
    if means == "user-timeout" and view.sockets.timer[row] not in (1, 4):
        return "nothing is in flight that TCP_USER_TIMEOUT could limit"
    return None


def make(
    view: View,
    findings: Sequence[Finding],
    rows: NDArray[np.bool_],
    limits: Limits,
    *,
    force: Means | None = None,
    now_unix_ns: int = 0,
    boot_id: str = "",
) -> Plan:
    """Make a plan that ends connections which findings call problems (or notices).

    Args:
        view: the sockets.
        findings: what was found.
        rows: which of them may be touched (the FILTER).
        limits: see `Limits`.
        force: use this means for all.
        now_unix_ns: when, for the reader of the file.
        boot_id: of the machine; cookies mean nothing on another boot.

    Raises:
        Refused: the plan as a whole is too large (guards ``max`` and ``share``).
    """
    cause: dict[int, str] = {}
    for finding in findings:
        if finding.primary and finding.severity != "healthy":
            for row in finding.rows.tolist():
                cause.setdefault(row, finding.rule)
    steps: list[Step] = []
    left: list[Left] = []
    seen: set[tuple[int, int]] = set()
    for row in np.flatnonzero(rows).tolist():
        verdict = guard_rows(view, row, limits)
        if verdict is not None:
            left.append(Left(_text(view, row), verdict.guard, verdict.reason))
            continue
        rule = cause.get(row, "")
        means = force or _means(view, row, rule)
        why_not = _possible(view, row, means)
        if why_not is not None:
            left.append(Left(_text(view, row), "means", why_not))
            continue
        step = step_of(view, row, rule, means)
        if (key := (step.netns, int(step.cookie, 16))) not in seen:
            seen.add(key)
            steps.append(step)
    _whole(view, steps, limits)
    return Plan(now_unix_ns, boot_id, tuple(steps), tuple(left), _advice(steps))


def step_of(view: View, row: int, rule: str, means: Means) -> Step:
    """Return the step that acts on a row, with the identity that it is checked by."""
    s = view.sockets
    state = int(s.state[row])
    holders = tuple(
        (pid, fd, view.processes[pid].comm if pid in view.processes else "?")
        for pid, fd in view.holders.of(row)
    )
    orphan = not s.inode[row]
    told = {
        "fin": "a FIN: it sees a proper end"
        + (" (a RST if data is unread here)" if int(s.rqueue[row]) > 1 else ""),
        "keepalive": "a probe: a live peer answers it and nothing else happens",
        "user-timeout": "nothing new: what is in flight is given up after the time set",
        "destroy": peer_told(
            state, orphan=bool(orphan), minisocket=int(s.timer[row]) == 3, nat_lost=rule == "nat-entry-gone"
        ),
    }[means]
    if means == "fin" and int(s.rqueue[row]) > 1:
        told = "a FIN now; a RST when the program closes it with data unread"
    stays = ""
    if holders and means in ("fin", "destroy"):
        stays = "the descriptor stays open in " + ", ".join(
            f"{comm} ({pid}:{fd})" for pid, fd, comm in holders[:3]
        )
    return Step(
        means=means,
        kind=_CLASS[means],
        rule=rule,
        netns=int(s.netns[row]),
        protocol=int(s.protocol[row]),
        family=int(s.family[row]),
        src=address_text(*(int(x) for x in s.src[row])),
        sport=int(s.sport[row]),
        dst=address_text(*(int(x) for x in s.dst[row])),
        dport=int(s.dport[row]),
        state=tcp.STATES.get(state, str(state)),
        cookie=f"{int(s.cookie[row]):#x}",
        inode=int(s.inode[row]),
        bytes_received=int(s.bytes_received[row]),
        bytes_acked=int(s.bytes_acked[row]),
        holders=holders,
        peer_told=told,
        stays=stays,
    )


def _whole(view: View, steps: Sequence[Step], limits: Limits) -> None:
    if len(steps) > limits.max_connections and "max" not in limits.override:
        raise Refused(
            "max", f"the plan touches {len(steps)} connections, more than {limits.max_connections}",
            override=f"--max {len(steps)} or --override max",
        )  # fmt: skip
    if "share" in limits.override:
        return
    touched = Counter(pid for step in steps for pid in {pid for pid, _, _ in step.holders})
    for pid, n in touched.items():
        held = int(np.isin(view.sockets.inode, _inodes(view, pid)).sum())
        if held >= 10 and n > limits.share * held:
            comm = view.processes[pid].comm if pid in view.processes else "?"
            raise Refused(
                "share", f"the plan touches {n} of the {held} connections of {comm} (pid {pid})",
                override="--share 1 or --override share",
            )  # fmt: skip


def _inodes(view: View, pid: int) -> NDArray[np.uint32]:
    rows = view.pid_rows(view.held & (view.sockets.state != tcp.LISTEN)).get(pid)
    return view.sockets.inode[rows] if rows is not None else np.empty(0, np.uint32)


def _advice(steps: Sequence[Step]) -> tuple[str, ...]:
    leaky = Counter(
        (pid, comm) for step in steps if step.means in ("fin", "destroy") for pid, _, comm in step.holders
    )
    return tuple(
        f"{n} descriptors stay open in {comm} (pid {pid}): only its close(), or its restart, frees them"
        for (pid, comm), n in leaky.most_common()
    )
