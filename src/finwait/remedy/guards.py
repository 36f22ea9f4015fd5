"""Reasons not to touch a connection, each with a name by which it can be overridden.

A guard looks at one row of a view and says why not, or nothing. Two guards look at the plan as a whole. A
listener is never touched: that guard has no override.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Final

import numpy as np
from msgspec import Struct, field
from msgspec.structs import replace

from finwait.diagnosis import forecast
from finwait.diagnosis.roles import taken_over
from finwait.diagnosis.rules import holder_not_found, inherited_descriptor, may_answer, silence, zero_window
from finwait.table.units import duration_text
from finwait.uapi import tcp

if TYPE_CHECKING:
    from finwait.diagnosis.view import View

__all__ = [
    "AT_OTHER_END",
    "ENTRY_GUARDS",
    "GUARDS",
    "PROTECTED",
    "Abilities",
    "GuardVerdict",
    "Limits",
    "guard_destroy",
    "guard_entry",
    "guard_other_end",
    "guard_rows",
    "guard_well",
]

PROTECTED: Final = frozenset(
    {
        # the operator's way in
        "systemd", "init", "sshd", "sshd-session", "dropbear", "tailscaled",
        # nodes of a cluster; k3s, k0s, rke2 and microk8s have the kubelet in a program of their own
        "kubelet", "kubelite", "k3s", "k3s-server", "k3s-agent", "k0s", "rke2", "hyperkube", "kube-apiserver",
        "kube-controller", "kube-scheduler", "kube-proxy", "etcd",
        # container runtimes
        "containerd", "containerd-shim", "containerd-shim-runc-v2", "dockerd", "docker-proxy", "cri-dockerd",
        "buildkitd", "crio", "conmon", "podman", "runc", "crun", "lxcfs", "lxd", "incusd",
        "finwait", "finwait-relay",
    }
)  # fmt: skip
"""Programs that the machine, or the operator, depends on, by name, where root runs them: any user may call a program of
his so. (Etcd and the API server of some distributions run as users of their own: those are not known by name.)"""
_COMM: Final = 15
"""So much of a name the kernel keeps."""
_MAY_BE_ROOT: Final = (0, -1, 65534)
"""Users: root, one that is not known, and one that our user namespace has no number for."""
_PROTECTED_COMMS: Final = frozenset(name[:_COMM] for name in PROTECTED)


class Limits(Struct, frozen=True):
    """What the caller allows."""

    max_connections: int = 100
    """Refuse a plan that touches more."""
    share: float = 0.9
    """Refuse to touch more than this share of the connections that a process holds (of ten or more)."""
    min_age_ms: int = 0
    """Leave connections alone that are in their state for less, or for an unknown time."""
    answer_ms: int = 0
    """A half-close on which nothing has passed for less is left alone: its answer may still come; 0: no such limit."""
    established_named: bool = False
    """Whether the filter names ESTABLISHED itself, or the cause or identity of connections: `Filter.asks_for`."""
    override: frozenset[str] = frozenset()
    """Names of guards that the caller overrules."""
    own_pid: int = 0
    from_file: bool = False
    """Whether the plan was read from a file, which names no state: nobody knows why a connection is in it."""


class Abilities(Struct, frozen=True):
    """What cannot be done here, found out before anything is tried. Empty: everything can."""

    no_destroy: Mapping[tuple[int, int], str] = field(default_factory=dict)
    """(namespace, protocol) → why SOCK_DESTROY does not work there."""
    no_borrow: Mapping[int, str] = field(default_factory=dict)
    """pid → why its descriptors cannot be borrowed."""
    harms_orphans: str = ""
    """What SOCK_DESTROY does to an orphan on this kernel instead of ending it, or why that is not known."""
    spares_minisockets: bool = False
    """Whether this kernel refuses to destroy minisockets."""


class GuardVerdict(Struct, frozen=True):
    """Why a connection (or the whole plan) is left alone."""

    guard: str
    reason: str
    wait_ms: int = 0
    """After so long it would not speak any more, if nothing changes; 0 where waiting does not help, or for unknown."""


def _listener(view: View, row: int, limits: Limits) -> str | None:  # noqa: ARG001
    if view.sockets.state[row] == tcp.LISTEN:
        return "a listener: destroying it would reset its accept queue and stop the service"
    return None


def _accept_queue(view: View, row: int, limits: Limits) -> str | None:  # noqa: ARG001
    if view.queued[row]:
        return (
            "it waits in an accept queue; destroying it leaves a dead entry that keeps its place until the "
            "program accepts it"
        )
    return None


def _minisocket(view: View, row: int, limits: Limits) -> str | None:  # noqa: ARG001
    if view.sockets.timer[row] == 3:
        remaining_s = int(view.sockets.expires_ms[row]) / 1000
        return (
            f"a minisocket: it ends by itself in {remaining_s:.0f} s; destroying it sends no packet and leaves the "
            "peer stuck"
        )
    return None


def _silent_orphan(view: View, row: int, limits: Limits) -> str | None:  # noqa: ARG001
    state = int(view.sockets.state[row])
    if state in (tcp.LAST_ACK, tcp.CLOSING) and not view.sockets.inode[row]:
        remaining = forecast.left(view, row)
        if remaining is None:
            timed = view.sockets.timer[row] in (1, 4)
            when = "its timer gives nothing up" if timed else "it has no timer to end it"
        elif remaining.most_s == math.inf:
            when = "its timer gives up only if the peer answers no more"
        else:
            when = f"it ends within {duration_text(round(1000 * remaining.most_s))}"
        return f"an orphan in {tcp.state_name(state)}: {when}; destroying it sends no packet"
    return None


def _moving(view: View, row: int, limits: Limits) -> str | None:  # noqa: ARG001
    if view.moved[row] or view.sent[row] or view.read[row]:
        return f"bytes moved within {view.watched_ms / 1000:.1f} s; this would cut off wanted data"
    return None


def _slow_reader(view: View, row: int, limits: Limits) -> str | None:  # noqa: ARG001
    if not view.shut_out[row]:
        return None
    if zero_window.match(view)[row] and zero_window.settled(view, np.array([row], np.int64)).all():
        return None
    return (
        "its peer has no room, and nothing proves that it stopped reading for good: a slow reader looks the same, and "
        "this may cut off wanted data"
    )


def _paused(view: View, row: int, limits: Limits) -> str | None:  # noqa: ARG001
    state = view.sockets.state[row]
    leaves = state == tcp.CLOSE_WAIT or (state == tcp.FIN_WAIT2 and view.sockets.rqueue[row] > 0)
    if not leaves or not view.perhaps_paused[row]:
        return None
    return (
        "its program may be waiting for room on another connection, as a relay with a slow client does, and go on with "
        "this one then"
    )


def _young(view: View, row: int, limits: Limits) -> str | None:
    if not limits.min_age_ms:
        return None
    age = int(view.at_least_ms[row])
    if age < limits.min_age_ms:
        known = "for an unknown time" if age < 0 else f"for at least {age / 1000:.1f} s"
        return (
            f"in this state {known}; --min-age is {limits.min_age_ms / 1000:g} s{_untold(view, row, limits)}"
        )
    return None


def _passed(quiet_ms: int) -> str:
    if quiet_ms < 0:
        return "it is not known when a byte last passed"
    return f"nothing has passed for {duration_text(quiet_ms)}"


def _answer(view: View, row: int, limits: Limits) -> str | None:
    if not limits.answer_ms or not may_answer(view)[row]:
        return None
    quiet = int(silence(view, "last_data_sent_ms", "last_data_recv_ms")[row])
    if quiet >= limits.answer_ms:
        return None
    return (
        f"half-closed, and an answer may still come: {_passed(quiet)}, less than {duration_text(limits.answer_ms)}; "
        "`--min-age` sets another limit"
    )


def _established(view: View, row: int, limits: Limits) -> str | None:
    if view.sockets.state[row] != tcp.ESTABLISHED:
        return None
    if limits.from_file:
        return "ESTABLISHED, which a plan file cannot approve; apply it with `--override established`"
    if not limits.established_named:
        return "ESTABLISHED, and the filter does not name that state"
    return None


def _handed_over(view: View, row: int, limits: Limits) -> str | None:  # noqa: ARG001
    on_its_way = view.holder_missing[row] and not holder_not_found.kernels_own(view)[row]
    if view.sockets.state[row] != tcp.ESTABLISHED or not (
        on_its_way or inherited_descriptor.match(view)[row]
    ):
        return None
    quiet = int(silence(view, "last_data_sent_ms", "last_data_recv_ms")[row])
    if quiet >= view.options.idle_ms:
        return None
    passed = (
        "it is not known when a byte last passed"
        if quiet < 0
        else f"nothing has passed for {duration_text(quiet)}"
    )
    likely_way = (
        "its descriptor may be on its way to a program that will"
        if on_its_way
        else "its holder may have been started to"
    )
    return f"open, and {likely_way} serve it: {passed}, less than {duration_text(view.options.idle_ms)} (`--idle`)"


def _unread(view: View, row: int, limits: Limits) -> str | None:  # noqa: ARG001
    s = view.sockets
    open_ = s.state[row] == tcp.ESTABLISHED and s.rqueue[row] > 0
    if (
        not open_
        or not view.held[row]
        or not view.servers[row]
        or view.halted[row]
        or _never_served(view, row)
    ):
        return None
    return (
        f"open, with {int(s.rqueue[row])} bytes that its program may still read and answer: a program busy with one "
        "long piece of work looks like one that hangs, and the client would be reset"
    )


def _never_served(view: View, row: int) -> bool:
    """Return whether nothing in the holders of a row waits for it, and nothing was sent on it since they were started.

    That another program listens shows only that the connection was inherited or handed over: whom it was handed over
    to may serve it.
    """
    if not view.waits.rows("nobody")[row] or not taken_over(view, row):
        return False
    ages = [view.processes[pid].age_ms for pid, _ in view.holders.of(row) if pid in view.processes]
    sent = int(silence(view, "last_data_sent_ms")[row])
    return bool(ages) and min(ages) >= 0 and sent > max(ages) + inherited_descriptor.SLACK_MS


def _holder_unknown(view: View, row: int, limits: Limits) -> str | None:  # noqa: ARG001
    if view.holder_unknown[row]:
        doubt = view.doubt_of(row) if view.releasers(row) else f"it {view.holder_doubt}"
        why = view.holders.missing or doubt
        return f"its holder is unknown, so it may be a protected program: {why}"
    return None


def _protected(view: View, row: int, limits: Limits) -> str | None:
    for pid, _ in view.holders.of(row):
        process = view.processes.get(pid)
        comm = process.comm if process else "?"
        named = process is not None and process.uid in _MAY_BE_ROOT and comm[:_COMM] in _PROTECTED_COMMS
        if pid in (1, limits.own_pid) or named:
            return f"held by {comm} (pid {pid}), which the machine depends on"
    return None


GUARDS: Final[Mapping[str, tuple[Callable[[View, int, Limits], str | None], str]]] = {
    "listener": (_listener, "listeners, always; cannot be overridden"),
    "accept-queue": (_accept_queue, "connections waiting in an accept queue"),
    "minisocket": (_minisocket, "timewait minisockets, including FIN_WAIT2 orphans"),
    "silent-orphan": (_silent_orphan, "LAST_ACK and CLOSING orphans"),
    "moving": (_moving, "connections that carry data"),
    "slow-reader": (
        _slow_reader,
        "connections whose window is closed, unless their peer is gone or stopped, or it has been closed for --idle",
    ),
    "paused": (
        _paused,
        "connections in CLOSE_WAIT, or in FIN_WAIT2 with unread data, whose program may wait for room on another one",
    ),
    "min-age": (_young, "connections younger than --min-age"),
    "answer": (
        _answer,
        "half-closed connections on which nothing has passed for less than 10 min, unless --min-age is given",
    ),
    "handed-over": (
        _handed_over,
        (
            "open connections of a process that may have inherited them, or whose descriptor is on its way to one, "
            "until nothing has passed for --idle"
        ),
    ),
    "established": (
        _established,
        "ESTABLISHED connections, unless the filter names them (in a plan file: always)",
    ),
    "unread": (
        _unread,
        "open connections of a server on which a request waits to be read, unless all their holders are stopped",
    ),
    "healthy": (
        lambda _view, _row, _limits: None,
        "held connections that the diagnosis considers healthy",
    ),
    "holder-unknown": (
        _holder_unknown,
        (
            "connections whose holder is unknown: not every process could be inspected, or the connection was "
            "opened during the look"
        ),
    ),
    "protected": (
        _protected,
        (
            "connections of pid 1, and those that root runs of the kubelet, container runtimes, sshd and "
            "finwait's relay"
        ),
    ),
    "harmed-orphan": (
        lambda _view, _row, _limits: None,
        (
            "orphans on kernels where SOCK_DESTROY removes their timer instead of ending them (mostly Linux "
            "before 6.12)"
        ),
    ),
    "pair": (
        lambda _view, _row, _limits: None,
        "legs of a relay pair of which another leg is left alone or, where several fit, not selected",
    ),
    "max": (lambda _view, _row, _limits: None, "plans for more than --max connections"),
    "share": (
        lambda _view, _row, _limits: None,
        "plans for more than --share of the connections that a process holds",
    ),
}
"""Name → what it looks at, and in words. ``healthy`` looks at the diagnosis too, see `guard_well`, ``harmed-orphan`` at
the means, see `guard_destroy`, ``pair`` at what belongs together, see `finwait.remedy.units`; ``max`` and ``share`` at
the plan, see `finwait.remedy.making`."""


def guard_rows(view: View, row: int, limits: Limits) -> GuardVerdict | None:
    """Return the first guard that speaks against touching a row, or None."""
    return _first(view, row, limits, GUARDS)


def _first(view: View, row: int, limits: Limits, names: Iterable[str]) -> GuardVerdict | None:
    for name in names:
        if name in limits.override and name != "listener":
            continue
        reason = GUARDS[name][0](view, row, limits)
        if reason is not None:
            return GuardVerdict(name, reason, _wait_ms(view, row, limits) if name == "min-age" else 0)
    return None


def _wait_ms(view: View, row: int, limits: Limits) -> int:
    """Return when a young connection is known to be old enough; 0 where waiting shows nothing."""
    return max(int(view.clock_shows(np.array([row], np.int64), limits.min_age_ms)[0]), 0)


def _untold(view: View, row: int, limits: Limits) -> str:
    """Return why waiting does not show that a young connection is old enough; empty where it does."""
    if _wait_ms(view, row, limits):
        return ""
    if view.ignored[row]:
        return ", and whatever arrives sets the clock of that back"
    if view.clock_ms[row] >= 0:
        return ", and each answered keepalive probe sets the clock of that back"
    return ", and only watching it tells its age"


def guard_well(view: View, row: int, limits: Limits, title: str) -> GuardVerdict | None:
    """Return why a row that was found to be healthy is left alone, or None.

    A rule that is named selects what it has found to be healthy as well. (Of orphans and minisockets other guards say
    more.)

    Args:
        view: the sockets.
        row: which.
        limits: what the caller allows.
        title: of the finding that calls it healthy; empty for none.
    """
    if not title or not view.held[row] or "healthy" in limits.override:
        return None
    return GuardVerdict("healthy", f"nothing is wrong with it: {title}")


def guard_destroy(view: View, row: int, limits: Limits, can: Abilities) -> GuardVerdict | None:
    """Return why SOCK_DESTROY must not be used on a row, or None.

    Where it does not end an orphan it frees the send queue: the FIN is never sent again, no timer runs any more,
    and what would have ended within minutes stays for ever.
    """
    s = view.sockets
    if not can.harms_orphans or "harmed-orphan" in limits.override:
        return None
    if s.inode[row] or s.timer[row] == 3 or view.queued[row]:
        return None
    if s.state[row] not in (tcp.FIN_WAIT1, tcp.FIN_WAIT2, tcp.LAST_ACK, tcp.CLOSING):
        return None
    return GuardVerdict(
        "harmed-orphan", f"an orphan in {tcp.state_name(int(s.state[row]))}: {can.harms_orphans}"
    )


AT_OTHER_END: Final = (
    "accept-queue",
    "moving",
    "slow-reader",
    "paused",
    "min-age",
    "handed-over",
    "unread",
    "holder-unknown",
    "protected",
)
"""Guards that are asked of the other end of a connection too, where it is on this machine: what ends one end reaches
the program at the other. (The rest are about what was named, or about what happens to the socket itself.)"""


def guard_other_end(view: View, row: int, limits: Limits) -> GuardVerdict | None:
    """Return the first guard that speaks against ending a row for the sake of its other end, or None.

    Also where it is only possible that it is the other end. A minisocket has no program that could be hurt.
    """
    other = int(view.other[row])
    certain = other >= 0
    other = other if certain else int(view.other_possible[row])
    if other < 0 or view.sockets.timer[other] == 3:
        return None
    verdict = _first(view, other, limits, AT_OTHER_END)
    if verdict is None:
        return None
    subject = "its other end" if certain else "what may be its other end"
    state = tcp.state_name(int(view.sockets.state[other]))
    return replace(verdict, reason=f"{subject}, in {state} on this machine: {verdict.reason}")


def _live_end(view: View, rows: tuple[int, ...], limits: Limits) -> str | None:  # noqa: ARG001
    for row in rows:
        state = tcp.state_name(int(view.sockets.state[row]))
        if state not in ("TIME_WAIT", "CLOSE"):
            return (
                f"a socket in {state} still uses the entry; without it, the next data may create a new one, "
                "but a FIN is lost and the other end waits for ever"
            )
    return None


def _either_end(name: str) -> Callable[[View, tuple[int, ...], Limits], str | None]:
    """Return a guard of connections as one of both ends."""

    def look(view: View, rows: tuple[int, ...], limits: Limits) -> str | None:
        verdicts = (_first(view, row, limits, (name,)) for row in rows)
        return next((verdict.reason for verdict in verdicts if verdict is not None), None)

    return look


ENTRY_GUARDS: Final[Mapping[str, tuple[Callable[[View, tuple[int, ...], Limits], str | None], str]]] = {
    "live-end": (_live_end, "entries that a socket on this machine still uses"),
    "holder-unknown": (_either_end("holder-unknown"), GUARDS["holder-unknown"][1]),
    "protected": (_either_end("protected"), GUARDS["protected"][1]),
    "max": (lambda _view, _rows, _limits: None, "more than --max entries"),
}
"""Guards of ``finwait conntrack --delete``, by name."""


def guard_entry(
    view: View, rows: tuple[int, ...], limits: Limits, unseen: tuple[str, ...] = ()
) -> GuardVerdict | None:
    """Return the first guard that speaks against deleting a tracking entry, or None.

    Args:
        view: the sockets.
        rows: those at the entry's ends that are on this machine.
        limits: see `Limits`.
        unseen: names of ends that are on another machine, or were not looked at.
    """
    if unseen and "live-end" not in limits.override:
        ends = " and the ".join(unseen)
        return GuardVerdict(
            "live-end", f"the {ends} end was not seen and may still exist; without the entry, its FIN is lost"
        )
    for name, (look, _) in ENTRY_GUARDS.items():
        if name not in limits.override and (reason := look(view, rows, limits)) is not None:
            return GuardVerdict(name, reason)
    return None
