"""A socket whose last descriptor is gone while a thread still waits in close() for it (SO_LINGER)."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import numpy as np
import pytest

from finwait import session
from finwait.kernel import releasing
from finwait.lab.topology import Lab, Netns, unmet
from finwait.report.columns import Cells
from finwait.report.overview import holder
from finwait.session import Look, Snapshot
from finwait.uapi import tcp
from finwait.uapi.observation import UNSEEN_THREADS, LookPlan
from tests.captures.make import walled_off
from tests.kernel.needs import missing

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(120)]
DEADLINE_S = 30
PROGRAM = """
import ctypes, os, socket, struct, sys, threading
sock, way = socket.socket(fileno=int(sys.argv[1])), sys.argv[2]
sock.set_inheritable(False)
sock.setblocking(False)
try:
    while True:
        sock.send(bytes(65536))
except BlockingIOError:
    pass
sock.setblocking(True)
sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 3600))
null, fd = os.open("/dev/null", os.O_RDONLY), sock.fileno()
left, right = socket.socketpair()

def discard():
    socket.send_fds(left, [b"x"], [fd])
    sock.close()
    right.recv(1)

ways = {
    "close": sock.close,
    "dup2": lambda: os.dup2(null, fd),
    "dup3": lambda: os.dup2(null, fd, False),
    "close_range": lambda: ctypes.CDLL(None).syscall(436, fd, fd, 0),
    "recvfrom": discard,
}
print("closing", flush=True)
if way == "execve":
    os.execvp("sleep", ["sleep", "1000"])
threading.Thread(target=ways[way], daemon=True).start()
sys.stdin.read()
"""
WAYS = (
    "close",
    "dup3",
    "close_range",
    "recvfrom",
    "execve",
    *(["dup2"] if os.uname().machine == "x86_64" else []),
)


@pytest.fixture
def netns() -> Iterator[Netns]:
    if lacking := unmet(("netns",)):
        missing("; ".join(lacking))
    with Lab() as lab:
        yield lab.netns("releasing")


@pytest.fixture
def elsewhere() -> Iterator[Netns]:
    """Yield another network namespace."""
    with Lab() as lab:
        yield lab.netns("elsewhere")


@contextlib.contextmanager
def closing(
    netns: Netns, way: str = "close", *, started_in: Netns | None = None
) -> Iterator[tuple[int, socket.socket]]:
    """Yield the pid of a program with a thread in a call that closes a socket, and the peer, which does not read."""
    with netns.call(lambda: socket.create_server(("127.0.0.1", 0))) as door:
        sock = netns.call(lambda: socket.create_connection(door.getsockname()))
        argv = [sys.executable, "-c", PROGRAM, str(sock.fileno()), way]
        program = (started_in or netns).call(
            lambda: subprocess.Popen(
                argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=[sock.fileno()]
            )
        )
        sock.close()
        with program, door.accept()[0] as peer:
            try:
                assert program.stdout is not None
                assert program.stdout.readline() == b"closing\n"
                yield program.pid, peer
            finally:
                program.kill()


def looked(netns: Netns, port: int) -> tuple[Snapshot, int]:
    plan = LookPlan(only=frozenset({netns.inode}))
    shot = session.look(session.live_machine(), Look(plan=plan, not_holders=walled_off()))
    s = shot.sockets
    (row,) = np.flatnonzero((s.sport == port) & (s.state != tcp.LISTEN)).tolist()
    return shot, row


def settled(netns: Netns, port: int) -> tuple[Snapshot, int]:
    """Return a look after everything was quiet for a second: what was just used may just have been opened."""
    end = time.monotonic() + DEADLINE_S
    while True:
        shot, row = looked(netns, port)
        quiet = int(shot.sockets.last_data_sent_ms[row]) >= 1000
        if quiet and shot.sockets.state[row] == tcp.FIN_WAIT1 and not shot.view.holder_found[row]:
            return shot, row
        assert time.monotonic() < end, (int(shot.sockets.state[row]), shot.view.holders.of(row))
        time.sleep(0.05)


@pytest.mark.parametrize("way", WAYS)
def test_a_thread_that_closes_a_socket_holds_it(netns: Netns, way: str) -> None:
    if os.geteuid() != 0:
        missing("needs root, to read /proc/PID/task/TID/stack")
    with closing(netns, way) as (pid, peer):
        shot, row = settled(netns, peer.getpeername()[1])
        (thread,) = shot.view.releasers(row)
        assert (thread.pid, thread.call, thread.exiting) == (pid, way, False)
        assert (thread.tid != pid) == (way != "execve")
        assert f"is in {way}(), and keeps it" in shot.view.doubt_of(row)
        assert not shot.view.holder_missing[row]
        assert Cells(shot.view, np.array([row])).column("owner") == [f"{thread.name}({pid}:closing)"]
        diagnosis = session.diagnose(
            how=Look(plan=LookPlan(only=frozenset({netns.inode})), not_holders=walled_off())
        )
        sockets = diagnosis.snapshot.sockets
        ours = np.flatnonzero(sockets.cookie == shot.sockets.cookie[row])
        findings = [f for f in diagnosis.findings if np.isin(ours, f.rows).all()]
        said = [one for f in findings for one in f.evidence if one.column == "holder"]
        assert [(one.value, f"is in {way}() and keeps it" in one.says) for one in said] == [
            (f"{thread.name}({pid})", True)
        ]
        rules = {finding.rule for finding in findings}
        assert "holder-not-found" not in rules
        assert "zero-window" in rules
        (group,) = (f for f in findings if f.primary)
        assert holder(diagnosis.view, group) == f"{thread.name} ({pid})"


def test_a_thread_of_another_namespace_may_be_the_one_that_closes_a_socket(
    netns: Netns, elsewhere: Netns
) -> None:
    """A process keeps its sockets when it moves, and gets some from others."""
    if os.geteuid() != 0:
        missing("needs root, to read /proc/PID/task/TID/stack")
    with closing(netns, started_in=elsewhere) as (pid, peer):
        shot, row = settled(netns, peer.getpeername()[1])
        # Another program of this machine may be closing a socket too.
        (thread,) = (one for one in shot.view.releasers(row) if one.pid == pid)
        assert (thread.netns, thread.call) == (elsewhere.inode, "close")
        assert not shot.view.holder_missing[row]
        assert shot.view.holder_unknown[row]
        how = Look(plan=LookPlan(only=frozenset({netns.inode})), not_holders=walled_off())
        assert "holder-not-found" not in {finding.rule for finding in session.diagnose(how=how).findings}


def test_a_thread_of_the_same_namespace_comes_before_those_of_others(netns: Netns, elsewhere: Netns) -> None:
    if os.geteuid() != 0:
        missing("needs root, to read /proc/PID/task/TID/stack")
    with closing(elsewhere), closing(netns) as (pid, peer):
        shot, row = settled(netns, peer.getpeername()[1])
        (thread,) = shot.view.releasers(row)
        assert (thread.pid, thread.netns) == (pid, netns.inode)


def test_where_there_are_too_many_threads_a_gap_says_so(
    netns: Netns, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(releasing, "MOST_THREADS", 1)
    with closing(netns) as (_, peer):
        shot, row = settled(netns, peer.getpeername()[1])
        assert UNSEEN_THREADS in shot.view.releasing
        assert (shot.view.holder_missing[row], shot.view.holder_unknown[row]) == (False, True)
        assert shot.view.releasers(row) == ()
        assert shot.view.unknown_holder == "unknown (may be held by a thread that was not inspected)"
        how = Look(plan=LookPlan(only=frozenset({netns.inode})), not_holders=walled_off())
        diagnosis = session.diagnose(how=how)
        assert "some threads" in {gap.where for gap in diagnosis.gaps}
        assert "holder-not-found" not in {finding.rule for finding in diagnosis.findings}


def test_a_socket_in_another_state_is_not_taken_for_that_of_a_close(netns: Netns) -> None:
    """In flight in a Unix socket, half-closed: nobody lingers for it."""
    left, right = socket.socketpair()
    with left, right, closing(netns), netns.call(lambda: socket.create_server(("127.0.0.1", 0))) as door:
        lost = netns.call(lambda: socket.create_connection(door.getsockname()))
        with door.accept()[0]:
            port = lost.getsockname()[1]
            lost.shutdown(socket.SHUT_WR)
            socket.send_fds(left, [b"x"], [lost.fileno()])
            lost.close()
            end = time.monotonic() + DEADLINE_S
            while True:
                shot, row = looked(netns, port)
                if shot.view.holder_missing[row]:
                    break
                assert time.monotonic() < end
                time.sleep(0.1)
            assert shot.view.releasing
            assert shot.view.releasers(row) == ()


INIT = """
import os, signal, socket, sys, time
# The first process of a pid namespace, whose child its parent outside does not reap: it cannot end.
os.unshare(os.CLONE_NEWPID) if hasattr(os, "unshare") else __import__("ctypes").CDLL(None).unshare(0x20000000)
first = os.fork()
if not first:
    time.sleep(1000)
inside = os.open(f"/proc/{first}/ns/pid", os.O_RDONLY)
__import__("ctypes").CDLL(None).setns(inside, 0x20000000)
other = os.fork()
if not other:
    time.sleep(1000)
os.kill(first, signal.SIGKILL)
print(first, flush=True)
sys.stdin.read()
"""


def test_the_first_process_of_a_container_that_waits_for_its_last_one_closes_nothing() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", INIT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            first = int(process.stdout.readline())
            deadline = time.monotonic() + DEADLINE_S
            while "zap_pid_ns_processes" not in _wchan(first):
                assert time.monotonic() < deadline, _wchan(first)
                time.sleep(0.05)
            assert first not in {thread.pid for thread in releasing.threads([1])}
        finally:
            process.kill()


def _wchan(pid: int) -> str:
    with contextlib.suppress(OSError), open(f"/proc/{pid}/wchan", encoding="ascii") as file:
        return file.read()
    return ""
