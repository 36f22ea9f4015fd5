"""Descriptors of TCP sockets that no dump contains: of dead connections, or of living ones somewhere else."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

from finwait import lone_sockets, session
from finwait.acting.apply import apply
from finwait.diagnosis.finding import Finding
from finwait.kernel import pidfd
from finwait.kernel.journal import SqliteJournal
from finwait.lab.topology import Lab, unmet
from finwait.recording import open_recording, record
from finwait.remedy import making
from finwait.remedy.guards import Limits
from finwait.report.text import headline
from finwait.session import Diagnosis, Look
from finwait.uapi import tcp
from finwait.uapi.observation import LookPlan
from tests.captures.make import walled_off
from tests.kernel.needs import missing

pytestmark = pytest.mark.kernel

PROGRAM = """
import ctypes, encodings.idna, os, socket, subprocess, sys
libc = ctypes.CDLL(None)
home = os.open("/proc/self/ns/net", os.O_RDONLY)
def pairs(n):
    door = socket.create_server(("127.0.0.1", 0))
    ours = [socket.create_connection(door.getsockname()) for _ in range(n)]
    return door, ours, [door.accept()[0] for _ in ours]
def elsewhere():
    assert libc.unshare(0x40000000) == 0
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    made = pairs(6)
    assert libc.setns(home, 0x40000000) == 0
    return made
"""


@contextmanager
def program(what: str, *before: str) -> Iterator[subprocess.Popen[str]]:
    """Run a program that makes sockets, says so, and waits."""
    code = f"{PROGRAM}\n{what}\nprint('ready', flush=True)\nsys.stdin.read()\n"
    process = subprocess.Popen(
        [*before, sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(autouse=True)
def _needs() -> None:
    if lacking := unmet(("netns", "tool:ip")):
        missing("; ".join(lacking))


def looked(*only: int) -> Diagnosis:
    plan = LookPlan(only=frozenset(only) if only else None, established_limit=None)
    return session.diagnose(how=Look(plan=plan, not_holders=walled_off()))


def leaks(diagnosis: Diagnosis, pid: int) -> list[Finding]:
    return [f for f in diagnosis.findings if f.rule == "hidden-leak" and pid in f.pids]


def test_sockets_that_were_never_connected_are_no_leak() -> None:
    with program("kept = [socket.socket() for _ in range(9)]") as process:
        assert leaks(looked(), process.pid) == []


def test_sockets_whose_peers_reset_them_are_told_with_their_number() -> None:
    reset = """
door, ours, theirs = pairs(6)
for sock in ours:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\\1\\0\\0\\0\\0\\0\\0\\0")
    sock.close()
"""
    with Lab() as lab:
        netns = lab.netns("there")
        with program(reset, "nsenter", f"--net=/proc/{os.getpid()}/fd/{netns.fd}") as process:
            diagnosis = looked(netns.inode)
            (leak,) = leaks(diagnosis, process.pid)
            assert (leak.count, leak.severity, leak.confidence.level) == (6, "problem", "possible")
            (row,) = np.flatnonzero(diagnosis.view.sockets.state == tcp.LISTEN)
            assert leak.ports == (int(diagnosis.view.sockets.sport[row]),)
            first = headline(diagnosis.view, diagnosis.findings, "here")
            assert "6 descriptors of connections that are gone, and still open" in first
            assert "6 of" not in first


def test_what_was_not_yet_connected_at_the_first_look_was_not_without_its_connection_then() -> None:
    """The descriptors are in no dump at either look; but their connections came and went between the two."""
    code = """
mine = [socket.socket() for _ in range(9)]
door = socket.create_server(("127.0.0.1", 0))
print("ready", flush=True)
sys.stdin.readline()
for sock in mine:
    sock.connect(door.getsockname())
    there = door.accept()[0]
    there.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\\1\\0\\0\\0\\0\\0\\0\\0")
    there.close()
"""
    with Lab() as lab:
        netns = lab.netns("there")
        with program(code, "nsenter", f"--net=/proc/{os.getpid()}/fd/{netns.fd}") as process:

            def meanwhile(text: str) -> None:
                if not text.startswith("watching"):
                    return
                assert process.stdin is not None
                assert process.stdout is not None
                process.stdin.write("go\n")
                process.stdin.flush()
                process.stdout.readline()  # all nine are reset

            plan = LookPlan(only=frozenset({netns.inode}), established_limit=None)
            how = Look(plan=plan, not_holders=walled_off())
            twice = replace(how, watch_ms=1, progress=meanwhile)
            assert leaks(session.diagnose(how=twice), process.pid) == []
            (leak,) = leaks(session.diagnose(how=replace(how, watch_ms=1)), process.pid)
            assert (leak.count, leak.confidence.level) == (9, "certain")


_CANCELLED = """
import struct, threading
door = socket.create_server(("127.0.0.1", 0), backlog=500)
where = door.getsockname()

def answer(connection, work=threading.Event()):
    connection.recv(9)
    work.wait(0.3)
    connection.close()

def accept():
    while True:
        threading.Thread(target=answer, args=(door.accept()[0],), daemon=True).start()

def cancel():
    asked = socket.create_connection(where)
    asked.send(b"q")
    asked.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    asked.close()

threading.Thread(target=accept, daemon=True).start()
for _ in range(30):
    cancel()

def go_on(pause=threading.Event()):
    while True:
        cancel()
        pause.wait(0.01)

threading.Thread(target=go_on, daemon=True).start()
"""


def test_requests_whose_clients_cancel_them_are_no_leak_of_their_server() -> None:
    """It closes each descriptor when it is done with the work, and has some without a connection at every moment."""
    with Lab() as lab:
        netns = lab.netns("there")
        with program(_CANCELLED, "nsenter", f"--net=/proc/{os.getpid()}/fd/{netns.fd}") as process:
            plan = LookPlan(only=frozenset((netns.inode,)), established_limit=None)
            once = [leak.confidence for leak in leaks(looked(netns.inode), process.pid)]
            assert all(one.look_again for one in once)
            twice = session.diagnose(how=Look(plan=plan, not_holders=walled_off(), watch_ms=1500))
            assert leaks(twice, process.pid) == []


def test_sockets_of_a_namespace_that_is_not_asked_about_are_no_leak_of_the_process_s_own() -> None:
    """As a proxy for pods does: sockets made in their namespaces, the process at home."""
    with Lab() as lab:
        home, pod = lab.netns("home"), lab.netns("pod")
        what = f"""
there = os.open("/proc/{os.getpid()}/fd/{pod.fd}", os.O_RDONLY)
assert libc.setns(there, 0x40000000) == 0
kept = pairs(6)
assert libc.setns(home, 0x40000000) == 0
"""
        with program(what, "nsenter", f"--net=/proc/{os.getpid()}/fd/{home.fd}") as process:
            assert leaks(looked(home.inode), process.pid) == []
            assert leaks(looked(home.inode, pod.inode), process.pid) == []


HALF = "made = elsewhere()\nfor sock in made[1]: sock.shutdown(socket.SHUT_WR)\nos.close(home)"


def test_a_namespace_that_only_its_sockets_keep_is_found_and_looked_into(tmp_path: Path) -> None:
    with program(HALF) as process:
        diagnosis = looked()
        assert leaks(diagnosis, process.pid) == []
        view = diagnosis.view
        mine = [r for r in range(len(view)) if any(pid == process.pid for pid, _ in view.holders.of(r))]
        states = sorted(tcp.STATES[int(view.sockets.state[r])] for r in mine)
        assert states == ["CLOSE_WAIT"] * 6 + ["FIN_WAIT2"] * 6 + ["LISTEN"]
        (netns,) = {int(view.sockets.netns[r]) for r in mine}
        assert view.namespaces[netns].dumped
        assert netns != os.stat("/proc/self/ns/net").st_ino
        record(session.live_machine(), str(tmp_path / "a.finwait"))
        mask = np.zeros(len(view), np.bool_)
        mask[[r for r in mine if view.sockets.state[r] == tcp.FIN_WAIT2][:1]] = True
        plan = making.make(view, diagnosis.findings, mask, Limits(share=1.0), force="destroy")
        with SqliteJournal(tmp_path / "journal") as journal:
            (outcome,) = apply(plan, journal, boot_id="")
        assert outcome.result == "ended", outcome
    replay = open_recording(str(tmp_path / "a.finwait"))
    assert netns in {ns.inode for ns in replay.looks[0].namespaces}


def test_what_a_plain_user_cannot_look_into_is_no_leak() -> None:
    nobody = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
    if lacking := unmet(("tool:setpriv",)):
        missing("; ".join(lacking))
    what = """
import fcntl, struct
os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
libc.prctl(4, 1)  # PR_SET_DUMPABLE: its user may look into it
assert libc.unshare(0x10000000 | 0x40000000) == 0
with socket.socket() as any_:
    fcntl.ioctl(any_, 0x8914, struct.pack("16sh22x", b"lo", 1))
kept = pairs(6)
"""
    with program(what) as process:
        done = subprocess.run(
            [*nobody, sys.executable, "-m", "finwait", "-o", "json"],
            capture_output=True, text=True, check=False, cwd="/",
        )  # fmt: skip
        assert done.returncode == 3, done.stderr
        found = json.loads(done.stdout)["findings"]
        assert not [f for f in found if f["rule"] == "hidden-leak" and f"{process.pid}" in json.dumps(f)]


def test_a_socket_tells_where_it_lives_and_whether_it_was_used() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as door,
        socket.socket() as unused,
        socket.create_connection(door.getsockname()) as used,
    ):
        pid = os.getpid()
        triples = [(pid, s.fileno(), os.fstat(s.fileno()).st_ino) for s in (door, unused, used)]
        found = pidfd.lone_sockets(triples)
        here = os.stat("/proc/self/ns/net").st_ino
        assert [(one.netns, one.state, one.used) for one in (found[t[2]] for t in triples)] == [
            (here, tcp.LISTEN, False), (here, tcp.CLOSE, False), (here, tcp.ESTABLISHED, True),
        ]  # fmt: skip
        assert pidfd.lone_sockets([(pid, 0, 1), (1 << 22, 3, 5)]) == {}


def test_a_descriptor_that_is_gone_by_now_is_no_gap() -> None:
    churn = """
import threading
def work():
    door = socket.create_server(("127.0.0.1", 0))
    while True:
        with socket.create_connection(door.getsockname()), door.accept()[0]: pass
for _ in range(2): threading.Thread(target=work, daemon=True).start()
"""
    with Lab() as lab:
        netns = lab.netns("there")
        with program(churn, "nsenter", f"--net=/proc/{os.getpid()}/fd/{netns.fd}"):
            for _ in range(20):
                assert not [gap for gap in looked(netns.inode).gaps if "ask" in gap.doing]


def test_a_process_with_very_many_does_not_keep_the_others_from_being_asked() -> None:
    assert lone_sockets._fairly([(1, 3, 10), (1, 4, 11), (1, 5, 12), (2, 3, 20)]) == [
        (1, 3, 10), (2, 3, 20), (1, 4, 11), (1, 5, 12),
    ]  # fmt: skip


@pytest.mark.parametrize("many", [1, 2000], ids=["told apart by a dump", "asked"])
def test_a_namespace_with_too_many_open_connections_hides_no_leak_there_or_elsewhere(
    many: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = """
door, ours, theirs = pairs(6)
for sock in ours:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\\1\\0\\0\\0\\0\\0\\0\\0")
    sock.close()
open_ = pairs(COUNT)
"""
    monkeypatch.setattr(lone_sockets, "_MANY", many)
    with Lab() as lab:
        large, small = lab.netns("large"), lab.netns("small")
        enter = [("nsenter", f"--net=/proc/{os.getpid()}/fd/{one.fd}") for one in (large, small)]
        with (
            program(both.replace("COUNT", "20"), *enter[0]) as busy,
            program(both.replace("COUNT", "1"), *enter[1]) as calm,
        ):
            plan = LookPlan(only=frozenset((large.inode, small.inode)), established_limit=15)
            diagnosis = session.diagnose(how=Look(plan=plan, not_holders=walled_off()))
            assert diagnosis.view.established_skipped
            assert {n: ns.dumped for n, ns in diagnosis.view.namespaces.items()} == {
                large.inode: False, small.inode: True,
            }  # fmt: skip
            assert [f.count for f in leaks(diagnosis, busy.pid)] == [6]
            assert [f.count for f in leaks(diagnosis, calm.pid)] == [6]
            assert not [gap for gap in diagnosis.gaps if "ask" in gap.doing]
            monkeypatch.setattr(lone_sockets, "_MOST_ASKED", 4)
            monkeypatch.setattr(lone_sockets, "_MANY", 2000)
            cut = session.diagnose(how=Look(plan=plan, not_holders=walled_off()))
            (gap,) = [gap for gap in cut.gaps if "ask" in gap.doing]
            assert gap.where == "2 processes"


MPTCP = """
def mptcp():
    return socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262)
door = mptcp(); door.bind(("127.0.0.1", 0)); door.listen(9)
ours, theirs = [], []
for _ in range(6):
    sock = mptcp(); sock.connect(door.getsockname()); sock.sendall(b"x"); ours.append(sock)
    theirs.append(door.accept()[0]); theirs[-1].recv(1)
unused = [mptcp() for _ in range(3)]
for sock in ours:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\\1\\0\\0\\0\\0\\0\\0\\0")
    sock.close()
for sock in theirs:
    try: sock.recv(1)
    except OSError: pass
"""


def test_dead_mptcp_descriptors_are_a_leak_too_and_those_never_used_are_none() -> None:
    if lacking := unmet(("mptcp",)):
        missing("; ".join(lacking))
    with Lab() as lab:
        netns = lab.netns("there")
        netns.sysctl("net.mptcp.enabled", 1)
        with program(MPTCP, "nsenter", f"--net=/proc/{os.getpid()}/fd/{netns.fd}") as process:
            (leak,) = leaks(looked(netns.inode), process.pid)
            assert (leak.count, leak.severity) == (6, "problem")
