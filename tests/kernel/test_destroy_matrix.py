"""The destroy matrix: what SOCK_DESTROY, and a reset without it, does in each state, asserted at both ends.

The near end is destroyed; "told" is what left the near namespace (``OutRsts``), and what the far program sees.
"""

from __future__ import annotations

import errno
import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import pytest

from finwait.acting.apply import apply
from finwait.kernel import pidfd
from finwait.kernel.journal import SqliteJournal
from finwait.lab.actor import ProgramSocket
from finwait.lab.topology import Lab, unmet
from finwait.remedy import making
from finwait.remedy import plan as plans
from finwait.remedy.guards import GUARDS, Limits
from finwait.remedy.steps import step_of
from finwait.session import Diagnosis
from finwait.uapi import tcp
from tests.kernel.acting_pair import Pair, planned, resets_sent, row_of, settled, state_of
from tests.kernel.needs import missing

pytestmark = pytest.mark.kernel
ALL = frozenset(GUARDS)


@pytest.fixture(autouse=True)
def _needs() -> None:
    if lacking := unmet(("netns", "tool:nft")):
        missing("; ".join(lacking))


def nothing(_: Pair) -> None:
    pass


def half_close(pair: Pair) -> None:
    pair.near.shutdown(pair.ours, "WR")


def be_half_closed(pair: Pair) -> None:
    pair.far.shutdown(pair.theirs, "WR")
    pair.near.read_to_end(pair.ours)


def into_the_void(pair: Pair) -> None:
    pair.link.cut()
    pair.near.shutdown(pair.ours, "WR")


def answer_into_the_void(pair: Pair) -> None:
    be_half_closed(pair)
    settled(pair, pair.theirs, "FIN_WAIT2")  # our acknowledgement of the FIN may be delayed
    pair.link.cut(a=False)
    pair.near.shutdown(pair.ours, "WR")


def both_at_once(pair: Pair) -> None:
    pair.link.cut(a=False)
    pair.near.shutdown(pair.ours, "WR")
    pair.far.shutdown(pair.theirs, "WR")


@dataclass(frozen=True)
class Cell:
    """A state, how to get there, and what destroying it does."""

    state: str
    to: Callable[[Pair], None]
    resets: int
    """RSTs that leave."""
    far_before: str
    far_after: str
    far_errno: int = 0
    near_errno: int = errno.ECONNABORTED

    @property
    def result(self) -> str:
        """What is said of it: a RST that did not arrive has ended one end only."""
        return "still there" if self.resets and self.far_after != "gone" else "ended"


HELD = [
    Cell("ESTABLISHED", nothing, 1, "ESTABLISHED", "gone", errno.ECONNRESET),
    Cell("FIN_WAIT1", into_the_void, 1, "ESTABLISHED", "ESTABLISHED"),
    Cell("FIN_WAIT2", half_close, 1, "CLOSE_WAIT", "gone", errno.EPIPE),
    Cell("CLOSE_WAIT", be_half_closed, 1, "FIN_WAIT2", "gone", errno.ECONNRESET),
    Cell("LAST_ACK", answer_into_the_void, 0, "FIN_WAIT2", "FIN_WAIT2"),
    Cell("CLOSING", both_at_once, 0, "FIN_WAIT1", "FIN_WAIT1"),
]


def error_of(conn: ProgramSocket) -> int:
    """Return SO_ERROR of a program's socket, and clear it."""
    handle = os.pidfd_open(conn.actor.pid)
    try:
        copy = pidfd._syscall(pidfd._SYS_PIDFD_GETFD, handle, conn.fd, 0)
    finally:
        os.close(handle)
    with socket.socket(fileno=copy) as sock:
        return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)


@pytest.mark.parametrize("means", ["destroy", "reset"])
@pytest.mark.parametrize("cell", HELD, ids=lambda c: c.state)
def test_a_held_connection_ends_and_its_peer_is_told_as_the_plan_says(
    journal: SqliteJournal, cell: Cell, means: str
) -> None:
    with Lab() as lab:
        pair = Pair(lab)
        cell.to(pair)
        settled(pair, pair.theirs, cell.far_before)
        diagnosis = settled(pair, pair.ours, cell.state)
        pair.link.cut(
            b=False
        )  # a FIN that is sent again would meet nobody, and be answered by a RST of another kind
        before = resets_sent(pair.a)
        plan = planned(diagnosis, pair.ours, means, override=ALL)
        (outcome,) = apply(plan, journal, boot_id="")
        assert (outcome.result, outcome.step.means) == (cell.result, means)
        assert resets_sent(pair.a) - before == cell.resets
        assert outcome.step.peer_told.startswith("a RST" if cell.resets else "nothing")
        settled(pair, pair.theirs, cell.far_after)
        assert pair.states(pair.ours + pair.theirs) == ["gone", cell.far_after]
        assert outcome.other == cell.far_after
        assert outcome.stays_open == ((*pair.ours[0].owner, "near"),)
        if means == "destroy":
            assert error_of(pair.ours[0]) == cell.near_errno
        if cell.far_errno:
            assert error_of(pair.theirs[0]) == cell.far_errno
        # The descriptor outlives the connection, which is why the plan says so.
        assert Path(f"/proc/{pair.near.pid}/fd/{pair.ours[0].fd}").readlink() == Path(
            f"socket:[{pair.ours[0].inode}]"
        )


def close_into_the_void(pair: Pair) -> None:
    pair.link.cut()
    pair.near.close(pair.ours)


def last_into_the_void(pair: Pair) -> None:
    be_half_closed(pair)
    settled(pair, pair.theirs, "FIN_WAIT2")  # our acknowledgement of the FIN may be delayed
    pair.link.cut(a=False)
    pair.near.close(pair.ours)


def both_orphaned(pair: Pair) -> None:
    pair.link.cut(a=False)
    pair.near.close(pair.ours)
    pair.far.shutdown(pair.theirs, "WR")


def orphan_fin_wait2(pair: Pair) -> None:
    pair.near.leave(pair.ours)


def time_wait(pair: Pair) -> None:
    pair.near.shutdown(pair.ours, "WR")
    settled(pair, pair.ours, "FIN_WAIT2")
    pair.far.close(pair.theirs)


ORPHANS = [
    Cell("FIN_WAIT1", close_into_the_void, 1, "ESTABLISHED", "ESTABLISHED"),
    Cell("LAST_ACK", last_into_the_void, 0, "FIN_WAIT2", "FIN_WAIT2"),
    Cell("CLOSING", both_orphaned, 0, "FIN_WAIT1", "FIN_WAIT1"),
    Cell("FIN_WAIT2", orphan_fin_wait2, 0, "CLOSE_WAIT", "CLOSE_WAIT"),
    Cell("TIME_WAIT", time_wait, 0, "gone", "gone"),
]


def near_rows(diagnosis: Diagnosis, pair: Pair, state: str) -> list[int]:
    s = diagnosis.view.sockets
    number = next(n for n, name in tcp.STATES.items() if name == state)
    mine = (s.netns == pair.a.inode) & (s.state == number) & (s.sport == pair.ours[0].sport)
    return [int(r) for r in np.flatnonzero(mine)]


@pytest.mark.parametrize("cell", ORPHANS, ids=lambda c: c.state)
def test_an_orphan_is_guarded_and_ends_as_the_matrix_says(journal: SqliteJournal, cell: Cell) -> None:
    with Lab() as lab:
        pair = Pair(lab)
        cell.to(pair)
        settled(pair, pair.theirs, cell.far_before)
        diagnosis = pair.look(lambda v: bool((v.sockets.state == STATE[cell.state]).any()))
        (row,) = near_rows(diagnosis, pair, cell.state)
        mask = np.zeros(len(diagnosis.view), np.bool_)
        mask[row] = True
        guarded = making.make(diagnosis.view, diagnosis.findings, mask, Limits())
        wanted = {"LAST_ACK": "silent-orphan", "CLOSING": "silent-orphan"}
        if cell.state != "FIN_WAIT1":
            assert [one.guard for one in guarded.left] == [wanted.get(cell.state, "minisocket")]
            assert guarded.steps == ()
        pair.link.cut(
            b=False
        )  # a FIN that is sent again meets nobody, and that is answered by a RST of another kind
        before = resets_sent(pair.a)
        plan = making.make(diagnosis.view, diagnosis.findings, mask, Limits(override=ALL), force="destroy")
        (outcome,) = apply(plan, journal, boot_id="")
        assert outcome.result == cell.result
        assert resets_sent(pair.a) - before == cell.resets
        assert outcome.step.peer_told.startswith("a RST" if cell.resets else "nothing")
        assert near_rows(pair.look(), pair, cell.state) == []
        assert pair.states(pair.theirs) == [cell.far_after]


STATE = {name: number for number, name in tcp.STATES.items()}


def handshake(pair: Pair) -> tuple[socket.socket, int]:
    """Begin a connection from the far namespace to a new listener of ours; return it and the listener's port."""
    door = pair.near.listen(pair.link.a4, 0)

    def begin() -> socket.socket:
        sock = socket.socket()
        sock.setblocking(False)
        sock.connect_ex((pair.link.a4, door.sport))
        return sock

    return pair.b.call(begin), door.sport


def test_a_handshake_is_ended_at_either_side_in_silence(journal: SqliteJournal) -> None:
    with Lab() as lab:
        pair = Pair(lab)
        pair.link.cut(a=False)  # our SYN-ACK does not arrive: SYN_RECV here, SYN_SENT there
        sock, port = handshake(pair)
        with sock:
            diagnosis = pair.look(
                lambda v: {STATE["SYN_RECV"], STATE["SYN_SENT"]} <= set(v.sockets.state.tolist())
            )
            s = diagnosis.view.sockets
            both = (s.sport == port) | (s.dport == port)
            for state, told in (("SYN_RECV", pair.a), ("SYN_SENT", pair.b)):
                before = resets_sent(told)
                mask = both & (s.state == STATE[state])
                assert mask.sum() == 1
                plan = making.make(diagnosis.view, diagnosis.findings, mask, Limits(override=ALL))
                assert plan.steps[0].peer_told.startswith("nothing")
                (outcome,) = apply(plan, journal, boot_id="")
                assert outcome.result == "ended"
                assert resets_sent(told) == before
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNABORTED


def test_a_listener_is_refused_in_every_plan_even_in_one_that_was_forged(journal: SqliteJournal) -> None:
    with Lab() as lab:
        pair = Pair(lab)
        diagnosis = pair.look()
        view = diagnosis.view
        (row,) = np.flatnonzero((view.sockets.state == tcp.LISTEN) & (view.sockets.netns == pair.b.inode))
        mask = np.zeros(len(view), np.bool_)
        mask[row] = True
        plan = making.make(view, diagnosis.findings, mask, Limits(override=ALL), force="destroy")
        assert plan.steps == ()
        assert [one.guard for one in plan.left] == ["listener"]
        forged = step_of(view, int(row), "", "destroy")
        for state in ("ESTABLISHED", "CLOSE_WAIT"):
            step = msgspec.structs.replace(forged, state=state)
            (outcome,) = apply(plans.Plan(0, "", (step,)), journal, boot_id="")
            assert outcome.result in ("changed meanwhile", "left before")
        client = pair.near.connect(pair.link.b4, int(view.sockets.sport[row]))
        assert state_of(settled(pair, [client], "ESTABLISHED").view, client) == "ESTABLISHED"


def test_a_connection_in_the_accept_queue_is_reset_and_its_place_stays_taken(journal: SqliteJournal) -> None:
    with Lab() as lab:
        pair = Pair(lab)
        door = pair.near.listen(pair.link.a4, 0)
        client = pair.far.connect(pair.link.a4, door.sport)
        pair.far.send([client], "GET /")
        pair.far.shutdown([client], "WR")
        settled(pair, [client], "FIN_WAIT2")
        diagnosis = pair.look()
        s = diagnosis.view.sockets
        mask = (s.netns == pair.a.inode) & (s.sport == door.sport) & (s.state == tcp.CLOSE_WAIT)
        assert s.inode[mask].tolist() == [0]
        spared = making.make(diagnosis.view, diagnosis.findings, mask, Limits())
        assert ([one.guard for one in spared.left], spared.steps) == (["accept-queue"], ())
        allowed = Limits(override=frozenset({"accept-queue"}))
        plan = making.make(diagnosis.view, diagnosis.findings, mask, allowed)
        (step,) = plan.steps
        assert step.means == "destroy"
        assert "accept queue stays taken" in step.stays
        before = resets_sent(pair.a)
        (outcome,) = apply(plan, journal, boot_id="")
        assert (outcome.result, outcome.other) == ("ended", "gone")
        assert resets_sent(pair.a) == before + 1
        assert error_of(client) == errno.ECONNRESET
        after = pair.look().view
        (listener,) = np.flatnonzero(
            (after.sockets.state == tcp.LISTEN) & (after.sockets.sport == door.sport)
        )
        assert int(after.sockets.rqueue[listener]) == 1


@pytest.mark.parametrize("how", ["IPv6", "mapped", "device"])
def test_other_kinds_of_addresses_are_found_again(journal: SqliteJournal, how: str) -> None:
    with Lab() as lab:
        pair = Pair(lab)
        server = "::" if how == "mapped" else pair.link.b6 if how == "IPv6" else pair.link.b4
        to = pair.link.b6 if how == "IPv6" else pair.link.b4
        device = (socket.SOL_SOCKET, 62, 100)  # SO_BINDTOIFINDEX
        index = pair.a.call(lambda: socket.if_nametoindex(pair.link.a_dev))
        options = ((device[0], device[1], index),) if how == "device" else ()
        door = pair.far.listen(server, 0)
        client = pair.near.connect(to, door.sport, options=options)
        accepted = pair.far.accept(door)
        end = accepted if how == "mapped" else client
        diagnosis = settled(pair, [end], "ESTABLISHED")
        row = row_of(diagnosis.view, end)
        assert int(diagnosis.view.sockets.family[row]) == (2 if how == "device" else 10)
        (outcome,) = apply(planned(diagnosis, [end], "destroy"), journal, boot_id="")
        assert (outcome.result, outcome.other) == ("ended", "gone")
        end_s = time.monotonic() + 10
        while pair.states([client, accepted]) != ["gone", "gone"] and time.monotonic() < end_s:
            time.sleep(0.02)
        assert pair.states([client, accepted]) == ["gone", "gone"]
