"""Programs whose main thread has ended, and threads with a descriptor table of their own: who holds what, and where."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from finwait import session
from finwait.errors import NotSupported
from finwait.kernel import kcmp, netns, pidfd, procfs, tasks
from finwait.kernel.holders import HolderFinder
from finwait.kernel.netns import NetNamespace
from finwait.session import Diagnosis, Look
from finwait.uapi import tcp
from finwait.uapi.observation import LookPlan
from tests.kernel.needs import missing
from tests.kernel.test_trace_owners import hidden

pytestmark = pytest.mark.kernel

PAIRS = 3
PROGRAM = """
import ctypes, encodings.idna, os, platform, socket, subprocess, sys, threading, time
libc = ctypes.CDLL(None, use_errno=True)
if libc.unshare(0x40000000): raise SystemExit(77)
subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
space = os.stat("/proc/thread-self/ns/net").st_ino
kept = []
def work():
    if sys.argv[1] == "own":
        assert libc.unshare(0x400) == 0
    door = socket.create_server(("127.0.0.1", 0))
    for _ in range(int(sys.argv[2])):
        ours = socket.create_connection(door.getsockname())
        kept.append((door, ours, door.accept()[0]))
        ours.shutdown(socket.SHUT_WR)
    while sys.argv[1] == "ended" and open(f"/proc/{os.getpid()}/stat").read().rpartition(")")[2].split()[0] != "Z":
        time.sleep(0.01)
    print(os.getpid(), threading.get_native_id(), space, flush=True)
    sys.stdin.read()
    os._exit(0)
threading.Thread(target=work).start()
if sys.argv[1] == "ended":
    libc.syscall({"x86_64": 60}.get(platform.machine(), 93), 0)
while True:
    time.sleep(60)
"""


@dataclass(frozen=True)
class Program:
    pid: int
    tid: int
    space: int


@contextmanager
def program(how: str) -> Iterator[Program]:
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, how, str(PAIRS)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        words = process.stdout.readline().split()
        if not words:
            assert process.wait(20) == 77
            missing("no network namespace to be had")
        yield Program(*map(int, words))
    finally:
        process.communicate(timeout=60)


@pytest.fixture(params=["ended", "own"])
def threaded(request: pytest.FixtureRequest) -> Iterator[Program]:
    with program(request.param) as running:
        yield running


@pytest.fixture
def ended() -> Iterator[Program]:
    with program("ended") as running:
        yield running


@pytest.fixture
def own() -> Iterator[Program]:
    with program("own") as running:
        yield running


@pytest.fixture(scope="module")
def strangers() -> frozenset[int]:
    return hidden()


def looked(space: int, strangers: frozenset[int] = frozenset()) -> Diagnosis:
    plan = LookPlan(only=frozenset({space}), established_limit=None)
    return session.diagnose(how=Look(plan=plan, not_holders=strangers))


def test_a_namespace_is_found_although_the_main_thread_of_its_only_program_has_ended(ended: Program) -> None:
    found, _ = netns.discover()
    here = [space for space in found if space.inode == ended.space]
    assert [(space.pids, space.process_count) for space in here] == [((ended.pid,), 1)]
    assert netns.inode_of_pid(ended.pid) == ended.space
    shot = session.snapshot()
    assert int((shot.sockets.netns == ended.space).sum()) == 2 * PAIRS + 1


def test_a_process_whose_main_thread_has_ended_is_described_by_one_that_goes_on(ended: Program) -> None:
    mine = procfs.processes([ended.pid])[ended.pid]
    assert mine.netns == ended.space
    assert mine.exe == os.fsencode(os.readlink(f"/proc/{ended.pid}/task/{ended.tid}/exe"))
    assert mine.cmdline
    assert mine.stat is not None
    assert mine.stat.rpartition(b")")[2].split()[0] != b"Z"


def test_the_holder_of_sockets_in_the_table_of_a_thread_is_its_process(
    threaded: Program, strangers: frozenset[int]
) -> None:
    diagnosis = looked(threaded.space, strangers)
    view = diagnosis.view
    closing = view.in_state(tcp.FIN_WAIT2, tcp.CLOSE_WAIT)
    assert int(closing.sum()) == 2 * PAIRS
    assert view.holders.complete
    assert {pid for row in closing.nonzero()[0].tolist() for pid, _ in view.holders.of(row)} == {threaded.pid}
    assert not (closing & view.holder_missing).any()
    assert "holder-not-found" not in {f.rule for f in diagnosis.findings}
    assert {f.pids for f in diagnosis.findings if f.primary and len(f.rows)} == {(threaded.pid,)}


def test_tables_are_looked_into_where_the_kernel_does_not_tell_them_apart(
    own: Program, strangers: frozenset[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kcmp, "_NUMBER", -1)
    assert own.tid in tasks.own_tables(own.pid)[0]
    view = looked(own.space, strangers).view
    assert not view.holder_missing.any()


def test_the_kernel_tells_which_threads_have_a_table_of_their_own(own: Program) -> None:
    assert tasks.own_tables(own.pid) == ([own.tid], len(tasks.of(own.pid)) - 1)


def test_where_there_are_too_many_threads_nobody_is_said_to_hold_nothing(
    own: Program, strangers: frozenset[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(procfs, "_MOST_THREADS", -1)
    diagnosis = looked(own.space, strangers)
    assert not diagnosis.view.holders.complete
    assert "holder-not-found" not in {f.rule for f in diagnosis.findings}
    assert [gap for gap in diagnosis.gaps if "threads" in gap.doing]


def test_a_descriptor_in_the_table_of_a_thread_is_borrowed_through_it(threaded: Program) -> None:
    view = looked(threaded.space).view
    row = int(view.in_state(tcp.CLOSE_WAIT).nonzero()[0][0])
    (pid, fd), *_ = view.holders.of(row)
    inode, cookie = int(view.sockets.inode[row]), int(view.sockets.cookie[row])
    with pidfd.borrowed(pid, fd, inode=inode, cookie=cookie) as sock:
        assert os.fstat(sock.fileno()).st_ino == inode


def test_a_kernel_that_does_not_give_descriptors_of_threads_is_said_to(
    ended: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    view = looked(ended.space).view
    row = int(view.in_state(tcp.CLOSE_WAIT).nonzero()[0][0])
    (pid, fd), *_ = view.holders.of(row)
    monkeypatch.setattr(pidfd, "_PIDFD_THREAD", 1 << 20)  # to an older kernel the real one is as unknown
    inode, cookie = int(view.sockets.inode[row]), int(view.sockets.cookie[row])
    with pytest.raises(NotSupported) as refused, pidfd.borrowed(pid, fd, inode=inode, cookie=cookie):
        pass
    assert "thread" in str(refused.value)
    assert "6.9" in refused.value.facility


def test_the_protocol_and_the_flags_of_a_descriptor_are_read_in_the_table_that_has_it(
    threaded: Program,
) -> None:
    found, _ = procfs.descriptors([threaded.pid], threads=True)
    triples = list(zip(found.pid.tolist(), found.fd.tolist(), found.inode.tolist(), strict=True))
    assert len(triples) == 2 * PAIRS + 1
    assert set(procfs.socket_protocols(triples).values()) == {"TCP"}
    assert {one.netns for one in pidfd.lone_sockets(triples).values()} == {threaded.space}
    assert set(procfs.close_on_exec((pid, fd) for pid, fd, _ in triples).values()) == {True}


def test_a_trace_finds_who_holds_a_socket_in_the_table_of_a_thread(threaded: Program) -> None:
    sockets = looked(threaded.space).view.sockets
    inodes = {int(inode) for inode in sockets.inode.tolist() if inode}
    holders = HolderFinder()
    holders.held(inodes)
    holders.search(inodes, 60, hurry=True)
    held = holders.held(inodes)
    assert {tuple(owner.pid for owner in one.owners) for one in held.values()} == {(threaded.pid,)}


# -- namespaces that end while they are looked for -------------------------------------------------------


def test_a_namespace_that_ended_between_listing_and_entering_is_no_gap() -> None:
    with program("own") as running:
        listed = [space for space in netns.discover()[0] if space.inode == running.space]
    assert len(listed) == 1
    deadline = time.monotonic() + 60
    while any(space.inode == running.space for space in netns.discover()[0]):
        assert time.monotonic() < deadline
    assert netns.visit(listed, lambda space: space.inode) == ({}, [])


def test_a_namespace_whose_first_way_is_gone_is_entered_by_another(own: Program) -> None:
    stale = NetNamespace(own.space, paths=(f"/proc/{own.pid}/task/0/ns/net",))
    assert netns.visit([stale], lambda space: space.inode) == ({own.space: own.space}, [])


def test_a_namespace_that_is_there_and_cannot_be_entered_is_a_gap(
    own: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = [space for space in netns.discover()[0] if space.inode == own.space]

    def refuse(path: str) -> int:
        raise FileNotFoundError(2, "gone", path)

    monkeypatch.setattr(netns, "open_path", refuse)
    found, gaps = netns.visit(listed, lambda space: space.inode)
    assert not found
    assert [(gap.where, gap.doing) for gap in gaps] == [(f"netns {own.space}", "enter it")]


def test_a_namespace_that_was_asked_for_and_is_gone_is_a_gap() -> None:
    with program("own") as running:
        space = running.space
    deadline = time.monotonic() + 60
    while any(one.inode == space for one in netns.discover()[0]):
        assert time.monotonic() < deadline
    assert f"netns {space}" in {gap.where for gap in looked(space).gaps}
