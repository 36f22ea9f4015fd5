"""What the plan says a step costs is what real programs at both ends find after it."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, Literal

import pytest

from finwait import session
from finwait.acting.apply import apply
from finwait.diagnosis.rule import Means
from finwait.kernel.journal import SqliteJournal
from finwait.lab.topology import Lab, Netns, unmet
from finwait.remedy.cost import Cost
from finwait.remedy.plan import Plan, Step
from finwait.remedy.steps import step_of
from finwait.report.plan import plan_lines
from finwait.session import Look, Snapshot
from finwait.uapi import tcp
from finwait.uapi.observation import LookPlan
from tests.kernel.needs import missing

pytestmark = pytest.mark.kernel


@pytest.fixture
def netns() -> Iterator[Netns]:
    if lacking := unmet(("netns", "tool:nft")):
        missing("; ".join(lacking))
    with Lab() as lab:
        yield lab.netns("place")


def connection(netns: Netns) -> tuple[socket.socket, socket.socket]:
    with netns.call(socket.socket) as door:
        door.bind(("127.0.0.1", 0))
        door.listen()
        near = netns.call(socket.socket)
        near.connect(door.getsockname())
        far, _ = door.accept()
    return near, far


def looked(netns: Netns, near: socket.socket, state: int) -> tuple[Snapshot, int]:
    """Return a look in which the near end is in a state, with nothing on its way."""
    end = time.monotonic() + 20
    while True:
        plan = LookPlan(only=frozenset({netns.inode}), established_limit=None)
        shot = session.look(session.live_machine(), Look(plan=plan))
        inode = os.fstat(near.fileno()).st_ino
        (row,) = [k for k in range(len(shot)) if int(shot.sockets.inode[k]) == inode]
        if int(shot.sockets.state[row]) == state:
            return shot, row
        assert time.monotonic() < end
        time.sleep(0.02)


def told(shot: Snapshot, row: int, means: Means) -> Cost:
    cost = step_of(shot.view, row, "", means).cost
    assert cost is not None
    return cost


def outcome(sock: socket.socket, do: str) -> bytes | int | str:
    try:
        return sock.recv(100) if do == "read" else sock.send(b"x")
    except OSError as error:
        return errno.errorcode[error.errno or 0]


@pytest.mark.parametrize("means", ["destroy", "reset"])
@pytest.mark.parametrize("half_closed", [False, True])
def test_what_is_lost_kept_and_noticed_is_so(
    netns: Netns, means: Means, half_closed: bool, tmp_path: Path
) -> None:
    near, far = connection(netns)
    with near, far:
        far.sendall(b"hello")
        if half_closed:
            near.shutdown(socket.SHUT_WR)
            assert far.recv(1) == b""
        shot, row = looked(netns, near, tcp.FIN_WAIT2 if half_closed else tcp.ESTABLISHED)
        cost = told(shot, row, means)
        assert (cost.unread, cost.unread_lost) == (5, means == "reset")
        assert cost.unacknowledged == cost.far_unacknowledged == 0
        assert [one.pid for one in cost.far_holders] == [os.getpid()]
        assert cost.held_by_process == ()  # only one namespace was looked at
        carry_out(step_of(shot.view, row, "", means), tmp_path)
        first = outcome(near, "read")
        assert (first == b"hello") == (not cost.unread_lost)


def fill(sock: socket.socket) -> None:
    sock.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            sock.send(b"x" * 65536)
    sock.setblocking(True)


def half_close(near: socket.socket, far: socket.socket) -> None:
    near.shutdown(socket.SHUT_WR)
    assert far.recv(10) == b""


def be_half_closed(near: socket.socket, far: socket.socket) -> None:
    half_close(far, near)


def fin_behind_data(near: socket.socket, far: socket.socket) -> None:
    del far
    fill(near)
    near.shutdown(socket.SHUT_WR)


def answered_behind_data(near: socket.socket, far: socket.socket) -> None:
    be_half_closed(near, far)
    fin_behind_data(near, far)


def call(sock: socket.socket, do: str) -> tuple[str, bool]:
    """Return what a call gives once what has arrived was read, and whether it drew SIGPIPE."""
    sock.setblocking(False)
    if do == "write":
        found = outcome(sock, "write")
    else:
        while isinstance(found := outcome(sock, "read"), bytes) and found:
            pass
    return (
        "EOF" if found == b"" else str(found),
        signal.sigtimedwait([signal.SIGPIPE], 0) is not None,
    )


@pytest.mark.parametrize("first", ["read", "write"])
@pytest.mark.parametrize("means", ["destroy", "reset"])
@pytest.mark.parametrize(
    ("state", "to"),
    [
        ("ESTABLISHED", lambda _near, _far: None),
        ("FIN_WAIT2", half_close),
        ("CLOSE_WAIT", be_half_closed),
        ("FIN_WAIT1", fin_behind_data),
        ("LAST_ACK", answered_behind_data),
    ],
)
def test_the_calls_after_it_give_what_is_said_at_both_ends(
    netns: Netns,
    state: str,
    to: Callable[[socket.socket, socket.socket], None],
    means: Means,
    first: Literal["read", "write"],
    tmp_path: Path,
) -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGPIPE])
    handler = signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # an ignored signal is not kept for anybody
    near, far = connection(netns)
    try:
        with near, far:
            to(near, far)
            shot, row = looked(netns, near, getattr(tcp, state))
            while state in ("FIN_WAIT1", "LAST_ACK") and not shot.view.shut_out[row]:
                shot, row = looked(netns, near, getattr(tcp, state))  # until the far end has no room
            cost = told(shot, row, means)
            carry_out(step_of(shot.view, row, "", means), tmp_path)
            assert (cost.far_error is None) == (state == "LAST_ACK" and means == "destroy")
            for sock, error in ((near, cost.error), (far, cost.far_error)):
                if error is None:
                    continue
                expected = getattr(error, first)
                if sock is far:
                    poller = select.poll()
                    poller.register(far, 0)
                    assert poller.poll(20_000)  # the RST has arrived
                assert call(sock, first) == (expected, expected == "EPIPE")
                if expected == "EOF":
                    assert call(sock, "write") == (error.write, error.write == "EPIPE")
                assert call(sock, "write") == ("EPIPE", True)
    finally:
        signal.signal(signal.SIGPIPE, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_FAR: Final = """
import select, signal, socket, sys
{disposition}
far = socket.socket(fileno=int(sys.argv[1]))
assert far.recv(10) == b""
print("read", flush=True)
poller = select.poll()
poller.register(far, 0)
poller.poll()
try:
    far.send(b"x")
except BrokenPipeError:
    sys.exit(7)
"""


@pytest.mark.parametrize(
    ("disposition", "sigpipe", "status"),
    [
        ("signal.signal(signal.SIGPIPE, signal.SIG_DFL)", "kills", -signal.SIGPIPE),
        ("signal.signal(signal.SIGPIPE, signal.SIG_IGN)", "spares", 7),
        ("signal.signal(signal.SIGPIPE, lambda *_: None)", "spares", 7),
    ],
)
def test_the_program_at_the_other_end_is_woken_and_killed_as_is_said(
    netns: Netns, disposition: str, sigpipe: str, status: int, tmp_path: Path
) -> None:
    near, far = connection(netns)
    with near, far:
        near.shutdown(socket.SHUT_WR)
        with subprocess.Popen(
            [sys.executable, "-c", _FAR.format(disposition=disposition), str(far.fileno())],
            pass_fds=[far.fileno()], stdout=subprocess.PIPE,
        ) as program:  # fmt: skip
            os.close(far.detach())
            try:
                assert program.stdout is not None
                assert program.stdout.readline() == b"read\n"
                end = time.monotonic() + 20
                while True:
                    shot, row = looked(netns, near, tcp.FIN_WAIT2)
                    step = step_of(shot.view, row, "", "destroy")
                    assert step.cost is not None
                    if step.cost.far_notice == "at once":
                        break
                    assert time.monotonic() < end, step.cost
                assert [(one.pid, one.sigpipe) for one in step.cost.far_holders] == [(program.pid, sigpipe)]
                text = "".join(plan_lines(Plan(0, "", (step,))))
                assert ("SIGPIPE kills the program" in " ".join(text.split())) == (sigpipe == "kills")
                carry_out(step, tmp_path)
                assert program.wait(20) == status
            finally:
                program.kill()


def carry_out(step: Step, folder: Path) -> None:
    with SqliteJournal(folder / "journal.sqlite") as journal:
        (result,) = apply(Plan(0, "", (step,)), journal, boot_id="")
    assert result.result == "ended", result


def test_what_is_not_acknowledged_is_counted_at_both_ends(netns: Netns) -> None:
    near, far = connection(netns)
    with near, far:
        near.setblocking(False)
        sent = 0
        while True:
            try:
                sent += near.send(b"x" * 65536)
            except BlockingIOError:
                break
        end = time.monotonic() + 20
        while True:
            shot, row = looked(netns, near, tcp.ESTABLISHED)
            other = int(shot.view.other[row])
            if int(shot.sockets.wqueue[row]) + int(shot.sockets.rqueue[other]) == sent:
                break
            assert time.monotonic() < end
        cost = told(shot, row, "destroy")
        assert cost.unacknowledged == sent - int(shot.sockets.rqueue[other]) > 0
        there = told(shot, other, "destroy")
        assert (there.unread, there.far_unacknowledged) == (sent - cost.unacknowledged, cost.unacknowledged)


def test_a_fin_at_an_open_connection_leaves_its_other_direction_open(netns: Netns, tmp_path: Path) -> None:
    """With shutdown(SHUT_RDWR) what the peer sends afterwards would draw a RST, and be lost."""
    near, far = connection(netns)
    with near, far:
        shot, row = looked(netns, near, tcp.ESTABLISHED)
        with SqliteJournal(tmp_path / "journal.sqlite") as journal:
            apply(Plan(0, "", (step_of(shot.view, row, "", "fin"),)), journal, boot_id="")
        assert outcome(far, "read") == b""
        assert outcome(far, "write") == 1
        assert outcome(near, "read") == b"x"
        far.close()
        assert outcome(near, "read") == b""


def test_what_waits_in_an_accept_queue_is_kept_and_a_syn_is_no_byte(netns: Netns, tmp_path: Path) -> None:
    with (
        netns.call(socket.socket) as door,
        netns.call(socket.socket) as near,
        netns.call(socket.socket) as opening,
    ):
        door.bind(("127.0.0.1", 0))
        door.listen()
        near.connect(door.getsockname())
        near.sendall(b"hello")
        end = time.monotonic() + 20
        while True:
            plan = LookPlan(only=frozenset({netns.inode}), established_limit=None)
            shot = session.look(session.live_machine(), Look(plan=plan))
            s = shot.sockets
            waiting = [k for k in range(len(shot)) if not s.inode[k] and s.rqueue[k] == 5]
            if waiting:
                break
            assert time.monotonic() < end
        cost = told(shot, waiting[0], "destroy")
        assert (cost.unread, cost.unread_lost) == (5, False)
        carry_out(step_of(shot.view, waiting[0], "", "destroy"), tmp_path)
        dead, _ = door.accept()
        with dead:
            assert dead.recv(10) == b"hello"
        opening.setblocking(False)
        netns.nft("table inet silence {\n chain out {\n type filter hook output priority 0\n drop\n }\n}")
        with contextlib.suppress(BlockingIOError):
            opening.connect(("127.0.0.1", 9))
        shot, row = looked(netns, opening, tcp.SYN_SENT)
        cost = told(shot, row, "destroy")
        assert (cost.unacknowledged, cost.far_unacknowledged) == (0, 0)


@pytest.mark.parametrize("spent", [False, True])
def test_a_one_shot_registration_that_has_fired_wakes_nobody(netns: Netns, spent: bool) -> None:
    """An error is told to whoever watches, whatever for; but not by a registration that is disarmed."""
    near, far = connection(netns)
    code = "import select, sys\nselect.epoll.fromfd(int(sys.argv[1])).poll()\n"
    with near, far, select.epoll() as loop:
        loop.register(near, select.EPOLLIN | select.EPOLLONESHOT)
        if spent:
            far.sendall(b"x")
            assert loop.poll(10)
        fds = (near.fileno(), loop.fileno())
        with subprocess.Popen([sys.executable, "-c", code, str(fds[1])], pass_fds=fds) as program:
            mine = near.detach()
            os.close(mine)
            try:
                end = time.monotonic() + 20
                while True:
                    plan = LookPlan(only=frozenset({netns.inode}), established_limit=None)
                    shot = session.look(session.live_machine(), Look(plan=plan, waits="everything"))
                    rows = [
                        k
                        for k in range(len(shot))
                        if {pid for pid, _ in shot.view.holders.of(k)} == {program.pid}
                    ]
                    ends = [told(shot, k, "destroy").notice for k in rows]
                    if ends and ends[0] == ("when it comes back" if spent else "at once"):
                        break
                    assert time.monotonic() < end, ends
            finally:
                program.kill()


@pytest.mark.parametrize(
    ("sets", "notice"), [("[], [], [fd]", "when it comes back"), ("[fd], [], [fd]", "at once")]
)
def test_a_select_of_exceptional_conditions_alone_is_not_woken(
    netns: Netns, sets: str, notice: str, tmp_path: Path
) -> None:
    near, far = connection(netns)
    code = f"import select, sys\nfd = int(sys.argv[1])\nselect.select({sets})\n"
    with near, far:
        number = near.fileno()
        with subprocess.Popen([sys.executable, "-c", code, str(number)], pass_fds=[number]) as program:
            os.close(near.detach())
            try:
                end = time.monotonic() + 20
                while True:
                    plan = LookPlan(only=frozenset({netns.inode}), established_limit=None)
                    shot = session.look(session.live_machine(), Look(plan=plan, waits="everything"))
                    held = [{pid for pid, _ in shot.view.holders.of(k)} for k in range(len(shot))]
                    rows = [k for k, pids in enumerate(held) if pids == {program.pid}]
                    if rows and told(shot, rows[0], "destroy").notice == notice:
                        break
                    assert time.monotonic() < end, held
                carry_out(step_of(shot.view, rows[0], "", "destroy"), tmp_path)
                if notice == "at once":
                    assert program.wait(20) == 0
                else:
                    assert program.poll() is None
            finally:
                program.kill()
