"""Who waits in programs that die, hide, lie or are too large: no wrong answer, and no "nobody" for want of one."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

from finwait.attribution.owners import holders
from finwait.attribution.waiting import WaitedOn, Waits
from finwait.kernel import unlisted, waiting
from finwait.uapi.observation import Descriptors, ProcessWaits
from tests.kernel.needs import missing

pytestmark = pytest.mark.kernel
DEADLINE_S = 60


@contextlib.contextmanager
def hostile(*ways: str) -> Iterator[tuple[int, int, int]]:
    if platform.machine() != "x86_64":
        pytest.skip("the program makes system calls by the numbers of x86_64")
    argv = [sys.executable, "-m", "tests.kernel.programs.hostile", *ways]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as program:
        assert program.stdout is not None
        pid, fd, inode = json.loads(program.stdout.readline())
        yield pid, fd, inode


def read(pid: int, fd: int, inode: int) -> ProcessWaits:
    return waiting.waits({pid: [fd]}, [], [], [inode])[pid]


def told(pid: int, fd: int, inode: int, process: ProcessWaits) -> WaitedOn:
    held = Descriptors(
        np.array([pid], np.uint32), np.array([fd], np.uint32), np.array([inode], np.uint64), ()
    )
    inodes = np.array([inode], np.uint32)
    return Waits({pid: process}, inodes, holders(inodes, held)).of(0)


def end_all(programs: list[subprocess.Popen[bytes]]) -> None:
    for one in programs:
        one.send_signal(signal.SIGKILL)


def test_the_upper_half_of_the_number_of_entries_does_not_count_and_names_are_printable() -> None:
    with hostile("garbage") as program:
        end = time.monotonic() + DEADLINE_S
        while (found := told(*program, read(*program))).kind != "thread":
            assert time.monotonic() < end, found
            time.sleep(0.02)
        assert found.threads[0].call == "poll"
        assert found.threads[0].name.isprintable()


@pytest.mark.parametrize(("way", "name"), [("huge", "huge"), ("unmapped", "unmapped")])
def test_a_set_that_cannot_be_read_is_unknown(way: str, name: str) -> None:
    with hostile(way) as program:
        end = time.monotonic() + DEADLINE_S
        while True:
            process = read(*program)
            if any(one.name == name and one.kind == "unknown" for one in process.threads):
                break
            assert time.monotonic() < end, process
            time.sleep(0.02)
        assert told(*program, process).kind == "unknown"


def test_what_a_changing_set_says_is_not_believed() -> None:
    with hostile("changing") as program:
        end = time.monotonic() + DEADLINE_S
        while True:
            process = read(*program)
            one = next((one for one in process.threads if one.name == "changing"), None)
            if one is not None and one.call == "poll" and len(one.waits_for) > 1:
                break
            assert time.monotonic() < end, process
        assert not one.steady


def test_of_more_threads_than_are_read_none_is_said_to_have_just_begun(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(waiting, "MOST_THREADS", 2)
    a, b = socket.socketpair()
    threads = [threading.Thread(target=b.recv, args=(1,)) for _ in range(5)]
    with a, b:
        for one in threads:
            one.start()
        found = read(os.getpid(), a.fileno(), os.fstat(a.fileno()).st_ino)
        a.send(bytes(5))
        for one in threads:
            one.join()
    assert len(found.threads) == 2
    assert [what.split(":")[1] for what in found.unread] == [" there are too many\t"]
    assert told(os.getpid(), 5, 7, found).kind == "unknown"


def test_processes_that_die_while_they_are_read_are_left_out_or_whole() -> None:
    a, b = socket.socketpair()
    inode = os.fstat(b.fileno()).st_ino
    watch = select.epoll()
    watch.register(b.fileno(), select.EPOLLIN)
    with a, b, watch:
        sleep = ["sleep", "1000"]
        kept = (b.fileno(), watch.fileno())
        programs = [subprocess.Popen(sleep, pass_fds=kept) for _ in range(200)]
        killer = threading.Thread(target=end_all, args=(programs,))
        killer.start()
        pids = [one.pid for one in programs]
        rounds = 0
        while killer.is_alive() or not rounds:
            rounds += 1
            found = waiting.waits(
                {pid: [b.fileno()] for pid in pids}, [(pid, watch.fileno()) for pid in pids], [], [inode]
            )
            for pid, process in found.items():
                said = told(pid, b.fileno(), inode, process)
                # What was read of its loop goes with what was read of its threads, or nothing is known.
                assert said.kind in ("loop", "unknown"), (said, process)
        killer.join()
        for one in programs:
            one.wait()
        assert waiting.waits({pid: [b.fileno()] for pid in pids}, [], [], [inode]) == {}


def test_a_program_of_another_user_is_unknown_and_not_nobody() -> None:
    if os.geteuid() != 0:
        missing("needs root, to become somebody else")
    a, b = socket.socketpair()
    with a, b, subprocess.Popen(["sleep", "1000"], pass_fds=[b.fileno()]) as program:
        inode = os.fstat(b.fileno()).st_ino
        code = (
            "import os, sys; sys.path[:0] = sys.argv[4].split(os.pathsep)\n"
            "import finwait.kernel.waiting as w, finwait.cli, numpy\n"
            "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
            "pid, fd, inode = map(int, sys.argv[1:4])\n"
            "found = w.waits({pid: [fd]}, [], [], [inode])[pid]\n"
            "print(*found.unread, sep='\\n'); print(len(found.threads), {t.kind for t in found.threads})"
        )
        path = os.pathsep.join(p for p in sys.path if p)
        argv = [sys.executable, "-c", code, str(program.pid), str(b.fileno()), str(inode), path]
        said = subprocess.run(argv, capture_output=True, text=True, check=False)
        program.kill()
    assert "CAP_SYS_PTRACE" in said.stdout, said
    assert said.stdout.endswith("1 {'unknown'}\n"), said


@pytest.mark.parametrize(("handled", "known"), [("SIGTERM", True), ("SIGUSR1", False), ("SIGIO", False)])
def test_of_more_sockets_than_are_asked_it_is_not_known_whether_they_send_signals(
    monkeypatch: pytest.MonkeyPatch, handled: str, known: bool
) -> None:
    """Where the program handles a signal that sockets are made to send; SIGTERM is none."""
    monkeypatch.setattr(unlisted, "ALWAYS_FLAGS", 1)
    monkeypatch.setattr(unlisted, "MOST_FLAGS", 2)
    code = f"import signal; signal.signal(signal.{handled}, print); print(flush=True); signal.pause()"
    pairs = [socket.socketpair() for _ in range(4)]
    fds = sorted(right.fileno() for _, right in pairs)
    with subprocess.Popen([sys.executable, "-c", code], pass_fds=fds, stdout=subprocess.PIPE) as program:
        assert program.stdout is not None
        program.stdout.readline()
        inodes = {fd: os.fstat(fd).st_ino for fd in fds}
        end = time.monotonic() + DEADLINE_S
        while True:
            found = waiting.waits({program.pid: fds}, [], [], [*inodes.values()])[program.pid]
            if all(one.steady for one in found.threads):
                break
            assert time.monotonic() < end, found
        program.kill()
    for pair in pairs:
        for sock in pair:
            sock.close()
    assert found.unasked_from == (-1 if known else fds[2])
    kinds = [told(program.pid, fd, inodes[fd], found).kind for fd in fds]
    assert kinds == (["nobody"] * 4 if known else ["nobody", "nobody", "unknown", "unknown"])
