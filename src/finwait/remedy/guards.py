"""Reasons not to touch a connection, each with a name by which it can be overridden.

A guard looks at one row of a view and says why not, or nothing. Two guards look at the plan as a whole. A
listener is never touched: that guard has no override.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from finwait.diagnosis import forecast
from finwait.table.units import duration_text
from finwait.uapi import tcp

if TYPE_CHECKING:
    from finwait.diagnosis.view import View

__all__ = [
    "ENTRY_GUARDS",
    "GUARDS",
    "PROTECTED",
    "Abilities",
    "Limits",
    "Verdict",
    "guard_destroy",
    "guard_entry",
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


@dataclass(frozen=True, slots=True)
class Limits:
    """What the caller allows."""

    max_connections: int = 100
    """Refuse a plan that touches more."""
    share: float = 0.9
    """Refuse to touch more than this share of the connections that a process holds (of ten or more)."""
    min_age_ms: int = 0
    """Leave connections alone that are in their state for less, or for an unknown time."""
    established_named: bool = False
    """Whether the filter names ESTABLISHED itself, or the cause or identity of connections: `Filter.asks_for`."""
    override: frozenset[str] = frozenset()
    """Names of guards that the caller overrules."""
    own_pid: int = 0
    from_file: bool = False
    """Whether the plan was read from a file, which names no state: nobody knows why a connection is in it."""


@dataclass(frozen=True, slots=True)
class Abilities:
    """What cannot be done here, found out before anything is tried. Empty: everything can."""

    no_destroy: Mapping[tuple[int, int], str] = field(default_factory=dict)
    """(namespace, protocol) → why SOCK_DESTROY does not work there."""
    no_borrow: Mapping[int, str] = field(default_factory=dict)
    """pid → why its descriptors cannot be borrowed."""
    harms_orphans: str = ""
    """What SOCK_DESTROY does to an orphan on this kernel instead of ending it, or why that is not known."""
    spares_minisockets: bool = False
    """Whether this kernel refuses to destroy minisockets."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Why a connection (or the whole plan) is left alone."""

    guard: str
    reason: str
    wait_ms: int = 0
    """After so long it would not speak any more, if nothing changes; 0 where waiting does not help, or for unknown."""


def _listener(view: View, row: int, limits: Limits) -> str | None:  # noqa: ARG001
    if view.sockets.state[row] == tcp.LISTEN:
        return "a listener: this would reset its accept queue and stop the service"
    return None


def _accept_queue(view: View, row: int, limits: Limits) -> str | None:  # noqa: ARG001
    if view.queued[row]:
        return (
            "it waits in an accept queue: destroying it leaves a dead entry there, which keeps its "
            "place until the program accepts it"
        )
    return None


def _minisocket(view: View, row: int, limits: Limits) -> str | None:  # noqa: ARG001
    if view.sockets.timer[row] == 3:
        left = int(view.sockets.expires_ms[row]) / 1000
        return (
            f"a minisocket: it ends by itself in {left:.0f} s; destroying it sends nothing and leaves the "
            "peer stuck"
        )
    return None


def _silent_orphan(view: View, row: int, limits: Limits) -> str | None:  # noqa: ARG001
    state = int(view.sockets.state[row])
    if state in (tcp.LAST_ACK, tcp.CLOSING) and not view.sockets.inode[row]:
        left = forecast.left_ms(view, row)
        when = (
            "it has no timer that would end it" if left is None else f"it ends within {duration_text(left)}"
        )
        return f"an orphan in {tcp.state_name(state)}: {when}; destroying it sends no packet"
    return None


def _moving(view: View, row: int, limits: Limits) -> str | None:  # noqa: ARG001
    if view.moved[row] or view.sent[row] or view.read[row]:
        return f"bytes moved within {view.watched_ms / 1000:.1f} s: wanted data would be cut off"
    return None


def _young(view: View, row: int, limits: Limits) -> str | None:
    if not limits.min_age_ms:
        return None
    age = int(view.at_least_ms[row])
    if age < limits.min_age_ms:
        known = "for an unknown time" if age < 0 else f"for at least {age / 1000:.1f} s"
        return f"in this state {known}; --min-age is {limits.min_age_ms / 1000:g} s"
    return None


def _established(view: View, row: int, limits: Limits) -> str | None:
    if view.sockets.state[row] != tcp.ESTABLISHED:
        return None
    if limits.from_file:
        return "ESTABLISHED, which a plan file cannot approve: apply it with `--override established`"
    if not limits.established_named:
        return "ESTABLISHED, and the filter does not name that state"
    return None


def _holder_unknown(view: View, row: int, limits: Limits) -> str | None:  # noqa: ARG001
    if view.held[row] and not view.holder_found[row] and not view.holders.complete:
        return f"its holder is unknown, so it may be a protected program: {view.holders.missing}"
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
    "accept-queue": (_accept_queue, "connections that wait in an accept queue"),
    "minisocket": (_minisocket, "timewait minisockets, FIN_WAIT2 orphans among them"),
    "silent-orphan": (_silent_orphan, "LAST_ACK and CLOSING orphans"),
    "moving": (_moving, "connections that carry data"),
    "min-age": (_young, "connections younger than --min-age"),
    "established": (
        _established,
        "ESTABLISHED connections, unless the filter names them (in a plan file: always)",
    ),
    "healthy": (
        lambda _view, _row, _limits: None,
        "held connections that the diagnosis calls healthy",
    ),
    "holder-unknown": (
        _holder_unknown,
        "connections whose holder could not be found because not every process could be inspected",
    ),
    "protected": (
        _protected,
        "connections of pid 1, and, where root runs them, of the kubelet, container runtimes, sshd, finwait's relay",
    ),
    "harmed-orphan": (
        lambda _view, _row, _limits: None,
        "orphans, where SOCK_DESTROY removes their timer instead of ending them (mostly Linux before 6.12)",
    ),
    "max": (lambda _view, _row, _limits: None, "plans for more than --max connections"),
    "share": (lambda _view, _row, _limits: None, "plans for more than --share of what a process holds"),
}
"""Name → what it looks at, and in words. ``healthy`` looks at the diagnosis too, see `guard_well`, ``harmed-orphan`` at
the means, see `guard_destroy`; ``max`` and ``share`` look at the plan, see `finwait.remedy.plan`."""


def guard_rows(view: View, row: int, limits: Limits) -> Verdict | None:
    """Return the first guard that speaks against touching a row, or None."""
    for name, (look, _) in GUARDS.items():
        if name in limits.override and name != "listener":
            continue
        reason = look(view, row, limits)
        if reason is not None:
            return Verdict(name, reason, _wait_ms(view, row, limits) if name == "min-age" else 0)
    return None


def _wait_ms(view: View, row: int, limits: Limits) -> int:
    """Return when a young connection is old enough; 0 where its age is not known."""
    age = int(view.at_least_ms[row])
    return limits.min_age_ms - age if age >= 0 else 0


def guard_well(view: View, row: int, limits: Limits, title: str) -> Verdict | None:
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
    return Verdict("healthy", f"nothing is wrong with it: {title}")


def guard_destroy(view: View, row: int, limits: Limits, can: Abilities) -> Verdict | None:
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
    return Verdict("harmed-orphan", f"an orphan in {tcp.state_name(int(s.state[row]))}: {can.harms_orphans}")


def _live_end(view: View, rows: tuple[int, ...], limits: Limits) -> str | None:  # noqa: ARG001
    for row in rows:
        state = tcp.state_name(int(view.sockets.state[row]))
        if state not in ("TIME_WAIT", "CLOSE"):
            return (
                f"a socket in {state} still uses the entry: without it the next data may create a new "
                "one, but a FIN is lost, and the other end waits for ever"
            )
    return None


def _protected_end(view: View, rows: tuple[int, ...], limits: Limits) -> str | None:
    return next((why for row in rows if (why := _protected(view, row, limits)) is not None), None)


def _unknown_end(view: View, rows: tuple[int, ...], limits: Limits) -> str | None:
    return next((why for row in rows if (why := _holder_unknown(view, row, limits)) is not None), None)


ENTRY_GUARDS: Final[Mapping[str, tuple[Callable[[View, tuple[int, ...], Limits], str | None], str]]] = {
    "live-end": (_live_end, "entries that a socket on this machine still uses"),
    "holder-unknown": (_unknown_end, GUARDS["holder-unknown"][1]),
    "protected": (_protected_end, GUARDS["protected"][1]),
    "max": (lambda _view, _rows, _limits: None, "more than --max entries"),
}
"""Guards of ``finwait conntrack --delete``, by name."""


def guard_entry(
    view: View, rows: tuple[int, ...], limits: Limits, unseen: tuple[str, ...] = ()
) -> Verdict | None:
    """Return the first guard that speaks against deleting a tracking entry, or None.

    Args:
        view: the sockets.
        rows: those at the entry's ends that are on this machine.
        limits: see `Limits`.
        unseen: names of ends that are on another machine, or were not looked at.
    """
    if unseen and "live-end" not in limits.override:
        ends = " and the ".join(unseen)
        return Verdict(
            "live-end", f"the {ends} end was not seen and may still exist: without the entry its FIN is lost"
        )
    for name, (look, _) in ENTRY_GUARDS.items():
        if name not in limits.override and (reason := look(view, rows, limits)) is not None:
            return Verdict(name, reason)
    return None
