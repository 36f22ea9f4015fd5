"""One connection → the step that ends it: the gentlest means that really does.

In this order: a FIN from the CLOSE_WAIT end (the peer sees a proper end), which may be the *other* end of the
connection that was selected; a keepalive whose verdict is awaited (harmless to a live peer); SOCK_DESTROY (a
RST). Where that is unavailable, a RST through the borrowed descriptor, which the peer sees in the same way; a means
of which the peer sees *less* is never taken unasked. "Restart this process" is never a step, only advice: it is
the one thing that a plan cannot take back or aim.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from finwait.attribution.other_end import counts_agree
from finwait.diagnosis import catalogue
from finwait.diagnosis.rule import Means
from finwait.remedy.cost import cost_of
from finwait.remedy.guards import Abilities, GuardVerdict, Limits, guard_destroy, guard_other_end
from finwait.remedy.plan import CLASS, SEES, End, Sees, Step
from finwait.table.sockets import address_text
from finwait.uapi import tcp
from finwait.uapi.sets import distinct

if TYPE_CHECKING:
    from finwait.diagnosis.view import View

__all__ = ["StepColumns", "guard_act", "peer_sees", "planned", "step_of", "why_not"]


def peer_sees(state: int, *, orphan: bool, minisocket: bool, nat_lost: bool = False) -> Sees:
    """Return what the peer sees of SOCK_DESTROY, by the state of this end (measured: the destroy matrix)."""
    if minisocket or state in (tcp.LAST_ACK, tcp.CLOSING, tcp.TIME_WAIT, tcp.SYN_SENT, tcp.SYN_RECV):
        return "nothing"
    if nat_lost:
        return "nothing-through-nat"
    if state in (tcp.ESTABLISHED, tcp.FIN_WAIT1, tcp.FIN_WAIT2, tcp.CLOSE_WAIT):
        return "reset-if-path" if orphan else "reset"
    return "unknown"


class StepColumns:
    """The columns that steps are made of, as lists, for some rows: one numpy cell at a time is slow by the million."""

    NAMES = (
        "netns", "protocol", "family", "sport", "dport", "state", "cookie", "ifindex", "inode", "timer",
        "rqueue", "bytes_received", "bytes_acked", "notsent_bytes",
    )  # fmt: skip

    def __init__(self, view: View, rows: NDArray[np.int64]) -> None:
        other = view.other[rows]
        rows = distinct(np.concatenate([rows, other[other >= 0]]))
        s = view.sockets
        self.at = {row: k for k, row in enumerate(rows.tolist())}
        self.of = {name: s.column(name)[rows].tolist() for name in self.NAMES}
        self.src, self.dst = s.src[rows].tolist(), s.dst[rows].tolist()
        self.listener: list[int] = view.listener[rows].tolist()
        connections = np.flatnonzero(view.sockets.state != tcp.LISTEN)
        self.held: dict[int, int] = view.holders.counted(connections) if view.every_connection else {}

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

    def identity(self, row: int) -> End:
        """Return the identity of a row as a value of its own."""
        return End(**self.end(row))


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


def _closer(view: View, row: int, rule: str) -> int | None:
    """Return the other end of a half-close of ours, when a FIN from there finishes both ends.

    Whether that may be done is another question; if not, a RST from here is no substitute.
    """
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
    ):
        return None
    return other


def _not_borrowed(view: View, row: int, can: Abilities) -> str | None:
    """Return why no descriptor of a socket can be borrowed, or None when one can."""
    holders = view.holders.of(row)
    if not holders:
        return "no process was found that holds it, and this method needs a descriptor"
    if view.sockets.protocol[row] == 6 and view.sockets.ulp[row] == b"mptcp":
        return (
            "a subflow of MPTCP: its program's descriptor belongs to the whole connection, so this would act "
            "on all of it"
        )
    if all(pid in can.no_borrow for pid, _ in holders):
        return can.no_borrow[holders[0][0]]
    return None


def why_not(view: View, row: int, means: Means, can: Abilities, rule: str = "") -> str | None:
    """Return why a means does nothing here, or None."""
    state = int(view.sockets.state[row])
    if state == tcp.SYN_SENT and rule == "half-open":
        return "the old connection at its other end is in the way, and would block the next connection too"
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


def guard_act(view: View, row: int, means: Means, limits: Limits) -> GuardVerdict | None:
    """Return the guard of the other end that speaks against an act on a row, or None.

    A FIN from a CLOSE_WAIT end is what its peer, which has sent its own, waits for; and neither keepalive nor a user
    timeout ends a connection whose peer answers.
    """
    if means in ("keepalive", "user-timeout"):
        return None
    if means == "fin" and view.sockets.state[row] == tcp.CLOSE_WAIT:
        return None
    return guard_other_end(view, row, limits)


def planned(
    view: View, row: int, rule: str, force: Means | None, limits: Limits, can: Abilities, cells: StepColumns
) -> Step | GuardVerdict:
    """Return the step that ends a connection, or why there is none."""
    other = _closer(view, row, rule) if force is None else None
    means = "fin" if other is not None else force or _means(view, row, rule)
    if (verdict := guard_act(view, row, means, limits)) is not None:
        return verdict
    if other is not None:
        if (obstacle := why_not(view, other, "fin", can)) is not None:
            return GuardVerdict("means", f"the FIN has to come from its other end, and there: {obstacle}")
        return step_of(view, other, rule, "fin", selected=cells.identity(row), cells=cells)
    if means == "destroy" and (harm := guard_destroy(view, row, limits, can)) is not None:
        return harm
    obstacle = why_not(view, row, means, can, rule if force is None else "")
    if obstacle is None:
        return step_of(view, row, rule, means, cells=cells)
    if means == "destroy" and why_not(view, row, "reset", can) is None:
        note = f"{obstacle}; the peer sees the same from a reset"
        return step_of(view, row, rule, "reset", note=note, cells=cells)
    return GuardVerdict("means", obstacle)


def _sees(cells: StepColumns, k: int, means: Means, rule: str) -> Sees:
    """Return what the peer sees of a means; ``k`` is the place of the row among the cells."""
    of = cells.of
    if means == "fin":
        return "fin-then-reset" if of["rqueue"][k] > 1 else "fin"
    if means == "keepalive":
        return "probe"
    if means == "user-timeout":
        return "give-up"
    if means == "reset" and of["state"][k] in (tcp.LAST_ACK, tcp.CLOSING) and of["notsent_bytes"][k]:
        return "reset"  # tcp_disconnect() sends one where the FIN waits behind data
    return peer_sees(
        of["state"][k],
        orphan=not of["inode"][k] and cells.listener[k] < 0,
        minisocket=of["timer"][k] == 3,
        nat_lost=_path_lost(rule),
    )


def step_of(
    view: View,
    row: int,
    rule: str,
    means: Means,
    *,
    selected: End | None = None,
    note: str = "",
    cells: StepColumns | None = None,
) -> Step:
    """Return the step that acts on a row, with the identity that it is checked by."""
    cells = cells or StepColumns(view, np.array([row], np.int64))
    k, of = cells.at[row], cells.of
    state, inode = of["state"][k], of["inode"][k]
    processes = view.processes
    holders = tuple(
        (pid, fd, processes[pid].comm if pid in processes else "?") for pid, fd in view.holders.of(row)
    )
    sees = _sees(cells, k, means, rule)
    stays = ""
    if holders and means in ("fin", "reset", "destroy"):
        stays = _descriptors(holders)
    elif not inode and state in (tcp.ESTABLISHED, tcp.CLOSE_WAIT) and cells.listener[k] >= 0:
        stays = "its place in the accept queue stays taken; a later accept() returns a dead socket"
    other = int(view.other[row])
    return Step(
        means=means,
        kind=CLASS[means],
        rule=rule,
        holders=holders,
        inode=inode,
        bytes_received=of["bytes_received"][k],
        bytes_acked=of["bytes_acked"][k],
        sees=sees,
        peer_told=SEES[sees],
        stays=stays,
        other=cells.identity(other) if other >= 0 and not view.other_ambiguous[row] else None,
        selected=selected,
        note=note,
        holders_known=not view.holder_unknown[row],
        holder_doubt=view.doubt_of(row) if view.holder_unknown[row] else "",
        cost=(
            cost_of(view, row, cells.held, resets=sees in _RESETS, purges=means == "reset")
            if means in ("destroy", "reset")
            else None
        ),
        **cells.end(row),
    )


_RESETS: Final = frozenset(("reset", "reset-if-path"))


def _descriptors(holders: Sequence[tuple[int, int, str]]) -> str:
    first = ", ".join(f"{comm} ({pid}:{fd})" for pid, fd, comm in holders[:3])
    if len(holders) > 3:
        first += f" and {len(holders) - 3} more"
    return ("the descriptor stays" if len(holders) == 1 else "the descriptors stay") + f" open in {first}"
