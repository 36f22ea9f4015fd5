"""Who holds a connection, as `trace` tells it: the process that has the descriptor at that moment, or nobody known."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from finwait.follow import Following, Stuck
from finwait.kernel import procfs
from finwait.kernel.holders import HolderFinder, task
from finwait.table import transitions as tr
from finwait.table.filter import parse
from finwait.table.sockets import pack_address
from finwait.table.transitions import TransitionTable
from finwait.uapi import tcp
from tests.kernel.needs import missing
from tests.kernel.test_trace import own_address, pairs, tracing_is_possible  # noqa: F401

pytestmark = pytest.mark.kernel


class Scene:
    def __init__(self, name: str, host: str) -> None:
        script = Path(__file__).with_name("owner_scene.py")
        self.host = host
        self.process = subprocess.Popen(
            [sys.executable, str(script), name, host],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        first = self.read()
        if not first:
            assert self.process.wait(10) == 77
            missing("no network namespace to be had")
        self.netns, self.port = int(first[0]), int(first[1])

    def read(self) -> list[str]:
        assert self.process.stdout is not None
        return self.process.stdout.readline().split()

    def step(self) -> list[str]:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self.read()

    def end(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(20)
        self.process.stdout.close()


@contextmanager
def scene(name: str) -> Iterator[Scene]:
    running = Scene(name, own_address())
    try:
        yield running
    finally:
        running.end()


def hidden() -> frozenset[int]:
    """Processes that nobody may look into here; they hold nothing of ours."""
    holders = HolderFinder()
    holders.held([1 << 31])
    holders.search([1 << 31], 60, hurry=True)
    return frozenset(holders.unreadable)


@pytest.fixture(scope="module")
def strangers() -> frozenset[int]:
    return hidden()


def until(following: Following, host: str, wanted: Callable[[TransitionTable], bool]) -> TransitionTable:
    tables: list[TransitionTable] = []
    high, low = pack_address(host)
    deadline = time.monotonic() + 60
    while True:
        rows = following.step(0.2).rows
        tables.append(rows.select((rows.src[:, 0] == high) & (rows.src[:, 1] == low)))
        whole = TransitionTable.concatenate(tables)
        if wanted(whole):
            return whole
        assert time.monotonic() < deadline, sorted(zip(whole.oldstate, whole.newstate, strict=True))


def has(rows: TransitionTable, old: int, new: int) -> bool:
    return bool(((rows.oldstate == old) & (rows.newstate == new)).any())


def told(following: Following, rows: TransitionTable, inode: int) -> set[tuple[int, str]]:
    """Ask until somebody is known to hold it."""
    deadline = time.monotonic() + 60
    while not (found := following.who(rows).owners.get(inode)):
        assert time.monotonic() < deadline
    return {(one.pid, one.comm) for one in found}


def links(pid: int) -> set[str]:
    found = set()
    for fd in os.listdir(f"/proc/{pid}/fd"):
        try:
            found.add(os.readlink(f"/proc/{pid}/fd/{fd}"))
        except OSError:
            continue
    return found


def test_a_server_that_forks_and_closes_is_no_holder_any_more():
    with scene("fork_and_close") as running, Following() as following:
        _, parent = running.step()
        rows = until(following, running.host, lambda t: has(t, tcp.SYN_RECV, tcp.ESTABLISHED))
        server = rows.select((rows.newstate == tcp.ESTABLISHED) & (rows.sport == running.port))
        inode = int(server.inode[0])
        assert told(following, server, inode) == {(int(parent), "fw-parent")}
        _, child = running.step()
        assert told(following, server, inode) == {(int(child), "fw-child")}
        assert f"socket:[{inode}]" in links(int(child))
        assert f"socket:[{inode}]" not in links(int(parent))


def test_what_is_stuck_is_told_with_the_child_that_holds_it(strangers):
    with (
        scene("fork_and_close") as running,
        Following(parse(f"netns = {running.netns}"), not_holders=strangers) as following,
    ):
        running.step()
        following.step(0.2)
        following.look_now()
        running.step()
        _, child = running.step()
        skip: set[tuple[int, int]] = set()
        found: list[Stuck] = []
        deadline = time.monotonic() + 60
        while not (found := [one for one in following.stuck(0.3, skip) if one.state == tcp.CLOSE_WAIT]):
            following.look_now()
            following.step(0.1)
            assert time.monotonic() < deadline
        (one,) = found
        assert one.held is not None
        assert one.held.whole
        assert [(o.pid, o.comm) for o in one.held.owners] == [(int(child), "fw-child")]


def test_a_thread_is_told_as_its_process():
    with scene("thread") as running, Following() as following:
        _, pid, tid = running.step()
        assert pid != tid
        rows = until(following, running.host, lambda t: has(t, tcp.SYN_SENT, tcp.ESTABLISHED))
        running.step()
        rows = TransitionTable.concatenate(
            [rows, until(following, running.host, lambda t: has(t, tcp.ESTABLISHED, tcp.FIN_WAIT1))]
        )
        for inode in set(rows.inode[rows.inode != 0].tolist()):
            assert told(following, rows, inode) == {(int(pid), "fw-process")}
        moved = rows.select((rows.oldstate == tcp.ESTABLISHED) & (rows.newstate == tcp.FIN_WAIT1))
        who = following.who(moved)
        assert set(moved.pid.tolist()) == {int(tid)}
        one = who.tasks[int(tid)]
        assert (one.pid, one.comm, one.thread, one.kernel) == (int(pid), "fw-process", "fw-thread", False)


def test_another_descriptor_and_another_name_of_the_same_process_are_found():
    with scene("dup") as running, Following() as following:
        _, pid = running.step()
        rows = until(following, running.host, lambda t: has(t, tcp.SYN_RECV, tcp.ESTABLISHED))
        server = rows.select((rows.newstate == tcp.ESTABLISHED) & (rows.sport == running.port))
        inode = int(server.inode[0])
        assert told(following, server, inode) == {(int(pid), "fw-first")}
        running.step()
        assert told(following, server, inode) == {(int(pid), "fw-second")}


def test_who_held_what_is_over_is_told_as_the_past_and_never_as_a_holder():
    with scene("dup") as running, Following() as following:
        _, pid = running.step()
        rows = until(following, running.host, lambda t: has(t, tcp.SYN_RECV, tcp.ESTABLISHED))
        following.who(rows)
        running.step()
        running.step()
        rows = until(following, running.host, lambda t: has(t, tcp.LAST_ACK, tcp.CLOSE))
        last = rows.select((rows.oldstate == tcp.LAST_ACK) & (rows.newstate == tcp.CLOSE))
        assert last.over.all()
        who = following.who(last)
        assert who.owners == {}
        assert [[o.pid for o in known] for known in who.last.values()] == [[int(pid)]]


def test_the_kernels_own_threads_are_told_as_that():
    kthreadd = task(2)
    if kthreadd is None or kthreadd.thread != "kthreadd":
        missing("/proc does not show the kernel's threads")
    assert kthreadd.kernel
    own = task(os.getpid())
    assert own is not None
    assert (own.pid, own.kernel) == (os.getpid(), False)


def test_nobody_is_said_only_when_everybody_was_looked_into(strangers):
    holders = HolderFinder()
    inode = 1 << 31  # far from where sockfs is
    assert not holders.held([inode])[inode].whole
    holders.search([inode], 0.0, hurry=True)
    deadline = time.monotonic() + 60
    while not holders.held([inode])[inode].whole:
        holders.search([inode], 0.05, hurry=True)
        assert time.monotonic() < deadline
    assert holders.held([inode])[inode].owners == ()
    assert set(holders.unreadable) == set(strangers)


def test_a_process_that_may_not_be_looked_into_is_named(monkeypatch):
    plain = procfs.descriptors

    def refused(only, *, processes=None, threads=False):
        found, spaces = plain(only, processes=processes, threads=threads)
        return (
            type(found)(found.pid, found.fd, found.inode, (*found.unreadable, *(p for p in only if p == 1))),
            spaces,
        )

    monkeypatch.setattr(procfs, "descriptors", refused)
    holders = HolderFinder()
    holders.held([1 << 31])
    holders.search([1 << 31], 60, hurry=True)
    assert 1 in holders.unreadable


def mine(running: Scene) -> str:
    """A FILTER for the scene alone: by its ports, which the kernel applies, nothing of others is counted either."""
    return f"src {running.host} and ( sport = :{running.port} or dport = :{running.port} )"


# ── a FILTER by process ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("who", "port_is"), [("fw-client", "dport"), ("fw-server", "sport")])
def test_every_row_of_a_programs_short_connections_passes_a_filter_by_its_name(strangers, who, port_is):
    """Thirty connections of microseconds: their holder is known by what it did, although nobody saw it hold them."""
    with scene("short") as running:
        wanted = parse(f"comm = {who} and {mine(running)}")
        with Following(wanted, not_holders=strangers) as following:
            running.step()
            ends = tcp.FIN_WAIT2 if who == "fw-client" else tcp.LAST_ACK
            rows = until(
                following, running.host, lambda t: int(((t.oldstate == ends) & (t.newstate == 7)).sum()) >= 30
            )
            assert following.unjudged == 0
    assert len(rows) == 150
    assert set(getattr(rows, port_is).tolist()) == {running.port}
    assert (np.diff(rows.time_ns) >= 0).all()
    counts = {life: int((rows.life == life).sum()) for life in set(rows.life.tolist())}
    assert set(counts.values()) == {5}


def test_rows_wait_until_their_holder_is_found_and_keep_their_order(strangers, monkeypatch):
    """The holder of what an interrupt moved is found only by looking into every process, a little at a time."""
    plain = HolderFinder.search

    def slow(self, inodes, _seconds, *, hurry=False):
        plain(self, inodes, 0.0, hurry=hurry)

    monkeypatch.setattr(HolderFinder, "search", slow)
    with scene("both") as running:
        wanted = parse(f"comm = fw-server and {mine(running)}")
        with Following(wanted, not_holders=strangers) as following:
            running.step()
            rows = until(following, running.host, lambda t: has(t, tcp.ESTABLISHED, tcp.CLOSE_WAIT))
            assert following.unjudged == 0
    assert list(zip(rows.oldstate.tolist(), rows.newstate.tolist(), strict=True)) == [
        (tcp.LISTEN, tcp.SYN_RECV), (tcp.SYN_RECV, tcp.ESTABLISHED), (tcp.ESTABLISHED, tcp.CLOSE_WAIT)
    ]  # fmt: skip
    assert set(rows.sport.tolist()) == {running.port}


def test_rows_of_which_nobody_can_know_are_counted():
    """Looking comes too late for the user of a connection that is over; no row of it is silently gone."""
    with scene("short") as running:
        wanted = parse(f"user = nobody and {mine(running)}")
        with Following(wanted, interval=1.0) as following:
            running.step()
            rows = 0
            deadline = time.monotonic() + 60
            while following.unjudged < 290:  # of a few the look was early enough, and they are not nobody's
                rows += len(following.step(0.2).rows)
                assert time.monotonic() < deadline, following.unjudged
            assert rows == 0


def test_waiting_rows_are_handed_out_or_counted_at_the_end(strangers):
    with scene("both") as running:
        wanted = parse(f"comm = fw-nobody and {mine(running)}")
        with Following(wanted, not_holders=strangers) as following:
            running.step()
            deadline = time.monotonic() + 30
            while not following.waiting:
                following.step(0.05)
                assert time.monotonic() < deadline
            found = following.finish()
            assert len(found.rows) == 0
            assert following.waiting == following.follower.waiting, "what came since the end was asked for"


def test_a_look_that_could_not_see_is_told_also_when_nothing_was_traced(monkeypatch):
    from finwait.errors import Gap
    from finwait.kernel.observe import RunningMachine

    plain = RunningMachine.observe

    def blind(self, plan):
        from msgspec.structs import replace

        return replace(plain(self, plan), gaps=(Gap("netns 1", "enter it", "CAP_SYS_ADMIN"),))

    monkeypatch.setattr(RunningMachine, "observe", blind)
    with Following() as following:
        deadline = time.monotonic() + 60
        while not (gaps := following.look_now()):
            time.sleep(0.05)
            assert time.monotonic() < deadline
        assert [gap.doing for gap in gaps] == ["enter it"]


def test_polling_tells_the_holder_by_the_same_rule(strangers):
    with scene("both") as running:
        wanted = parse(f"comm = fw-client and src {running.host}")
        with Following(wanted, tracing=False, interval=0.05, not_holders=strangers) as following:
            running.step()
            rows = until(following, running.host, lambda t: bool((t.newstate == tcp.FIN_WAIT2).any()))
    assert set(rows.kind.tolist()) == {tr.POLLED}
    assert set(rows.dport.tolist()) == {running.port}


def test_rows_that_wait_in_vain_are_counted_and_those_behind_them_are_not_lost(strangers, monkeypatch):
    """A holder is never found in time: the row that waits for it is given up, and what is known to match is told."""
    from finwait.follow import sieve

    monkeypatch.setattr(sieve, "_HOLDER_S", 1.0)
    monkeypatch.setattr(HolderFinder, "search", lambda *_, **__: None)
    with scene("both") as running:
        wanted = parse(f"{mine(running)} and ( comm = fw-server or dport = :{running.port} )")
        with Following(wanted, not_holders=strangers) as following:
            running.step()
            rows = until(following, running.host, lambda t: has(t, tcp.FIN_WAIT1, tcp.FIN_WAIT2))
            deadline = time.monotonic() + 30
            while following.unjudged < 3:  # the server's rows, whose holder nobody looks for
                following.step(0.1)
                assert time.monotonic() < deadline
    assert pairs(rows) == Counter({(7, 2): 1, (2, 1): 1, (1, 4): 1, (4, 5): 1})


@pytest.mark.parametrize(("name", "steps"), [("fork_and_close", 2), ("both", 1)])
def test_no_process_outlives_its_scene(name, steps):
    with scene(name) as running:
        for _ in range(steps):
            running.step()
        pids = [
            int(p)
            for p in Path(f"/proc/{running.process.pid}/task/{running.process.pid}/children")
            .read_text()
            .split()
        ]
        assert pids
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("most", [1, 2, 3, 100])
def test_however_few_may_wait_no_row_is_lost_and_the_order_stays(strangers, monkeypatch, most):
    from finwait.follow import sieve

    monkeypatch.setattr(sieve, "_MOST_HELD_BACK", most)
    with scene("both") as running:
        wanted = parse(f"{mine(running)} and ( comm = fw-server or dport = :{running.port} )")
        with Following(wanted, not_holders=strangers) as following:
            running.step()
            tables: list[TransitionTable] = []
            deadline = time.monotonic() + 60
            while sum(map(len, tables)) + following.unjudged < 7:
                tables.append(following.step(0.2).rows)
                assert time.monotonic() < deadline
            tables.append(following.finish().rows)
            rows = TransitionTable.concatenate(tables)
            assert len(rows) + following.unjudged == 7
            if most == 100:
                assert following.unjudged == 0
    assert (np.diff(rows.time_ns) >= 0).all()
