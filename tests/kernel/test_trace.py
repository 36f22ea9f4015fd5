"""Tracing real connections in real namespaces: every transition, none lost, nothing left behind."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from finwait.errors import KernelError
from finwait.follow import Following
from finwait.kernel import tracefs
from finwait.table import transitions as tr
from finwait.table.filter import parse
from finwait.table.sockets import pack_address
from finwait.table.transitions import TransitionTable

pytestmark = pytest.mark.kernel

ONCE = Counter(
    {
        (7, 2): 1,
        (2, 1): 1,
        (1, 4): 1,
        (4, 5): 1,
        (5, 7): 1,
        (10, 3): 1,
        (3, 1): 1,
        (1, 8): 1,
        (8, 9): 1,
        (9, 7): 1,
    }
)


def _missing(what: str) -> None:
    if os.environ.get("FINWAIT_KERNEL_TESTS") == "1":
        pytest.fail(what)
    pytest.skip(what)


@pytest.fixture(autouse=True)
def tracing_is_possible() -> None:
    try:
        with tracefs.Tracing(["sock/inet_sock_set_state"]):
            pass
    except KernelError as error:
        _missing(f"no tracing here: {error}")


def own_address() -> str:
    """An address of 127/8 that no other run of these tests uses at the same time."""
    pid = os.getpid()
    return f"127.{64 + (pid >> 16 & 63)}.{pid >> 8 & 255}.{pid & 255}"


class Traffic:
    def __init__(self, count: int, mode: str, host: str) -> None:
        script = Path(__file__).with_name("traffic.py")
        self.process = subprocess.Popen(
            [sys.executable, str(script), str(count), host, mode],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        line = self.process.stdout.readline()  # type: ignore[union-attr]
        if not line:
            assert self.process.wait(10) == 77
            _missing("no network namespace to be had")
        inode, port = line.split()
        self.netns, self.port, self.host = int(inode), int(port), host
        self.done = False

    def go(self) -> None:
        self.process.stdin.write("\n")  # type: ignore[union-attr]
        self.process.stdin.flush()  # type: ignore[union-attr]

    def wait(self) -> None:
        assert self.process.stdout.readline() == "done\n"  # type: ignore[union-attr]

    def rows(self) -> list[str]:
        """Lines of /proc/net/tcp of its namespace."""
        return Path(f"/proc/{self.process.pid}/net/tcp").read_text().splitlines()[1:]

    def end(self) -> None:
        self.process.stdin.close()  # type: ignore[union-attr]
        self.process.stdout.close()  # type: ignore[union-attr]
        self.process.wait(20)


@contextmanager
def traffic(count: int, mode: str = "once", host: str | None = None) -> Iterator[Traffic]:
    running = Traffic(count, mode, host or own_address())
    try:
        yield running
    finally:
        running.end()


def gather(
    following: Following, wanted: Callable[[TransitionTable], bool], host: str, seconds: float = 30
) -> TransitionTable:
    """Follow until what is wanted has been seen; only rows of our own address count."""
    tables: list[TransitionTable] = []
    high, low = pack_address(host)
    deadline = time.monotonic() + seconds
    lost = 0
    while True:
        told = following.step(0.2)
        rows, lost = told.rows, lost + told.lost
        mine = (rows.src[:, 0] == high) & (rows.src[:, 1] == low)
        tables.append(rows.select(mine))
        whole = TransitionTable.concatenate(tables)
        if wanted(whole):
            return whole
        assert time.monotonic() < deadline, (
            f"saw only {dict(pairs(whole))}; {lost} lost, {following.waiting} wait; {following.statistics()}"
        )


def pairs(rows: TransitionTable) -> Counter[tuple[int, int]]:
    some = rows.kind == tr.TRANSITION
    return Counter(zip(rows.oldstate[some].tolist(), rows.newstate[some].tolist(), strict=True))


def instances() -> list[str]:
    with tracefs.Root() as root:
        return os.listdir(f"{root.path}/instances")


@pytest.mark.parametrize("count", [300, pytest.param(10_000, marks=[pytest.mark.slow, pytest.mark.storm])])
def test_a_known_script_gives_exactly_its_transitions_and_none_is_lost(count):
    with traffic(count) as script, Following() as following:
        assert following.mode == "tracing"
        script.go()
        rows = gather(following, lambda t: pairs(t)[9, 7] >= count, script.host, seconds=90)
        script.wait()
        statistics = following.statistics()
        assert statistics is not None
        assert statistics.lost == 0
        assert following.follower.lost == 0
    expected = Counter(dict.fromkeys(ONCE, count))
    assert pairs(rows) == expected
    # In the order of time, and every life in the order of TCP.
    assert (np.diff(rows.time_ns) >= 0).all()
    lives: Counter[tuple[int, ...]] = Counter()
    for life in np.unique(rows.life).tolist():
        some = rows.life == life
        old, new = rows.oldstate[some].tolist(), rows.newstate[some].tolist()
        assert new[:-1] == old[1:]
        lives[tuple(new)] += 1
    assert lives == {(2, 1, 4, 5, 7): count, (3, 1, 8, 9, 7): count}


def test_the_time_in_each_state_adds_up_to_the_life():
    with traffic(50) as script, Following() as following:
        script.go()
        rows = gather(following, lambda t: pairs(t)[9, 7] >= 50, script.host)
    for life in np.unique(rows.life).tolist():
        some = rows.select(rows.life == life)
        assert some.present("in_old_ns").tolist() == [False, True, True, True, True]
        assert int(some.in_old_ns.sum()) == int(some.time_ns[-1] - some.time_ns[0])


def test_an_orphan_that_the_kernel_calls_closed_is_told_as_a_minisocket_with_its_expiry():
    with traffic(20, "orphan") as script, Following() as following:
        script.go()
        rows = gather(following, lambda t: pairs(t)[5, 7] >= 20, script.host)
        closed = rows.select(rows.newstate == 7)
        assert closed.became.tolist() == [5] * 20
        assert ((closed.expires_ms > 59_000) & (closed.expires_ms <= 61_000)).all()
        assert closed.netns.tolist() == [script.netns] * 20
        assert len(set(closed.cookie.tolist())) == 20


def test_a_held_half_close_has_its_namespace_its_owner_and_its_age():
    with traffic(5, "half") as script, Following() as following:
        script.go()
        rows = gather(following, lambda t: pairs(t)[4, 5] >= 5, script.host)
        half = rows.select(rows.newstate == 5)
        assert half.netns.tolist() == [script.netns] * 5
        deadline = time.monotonic() + 60
        while len(owners := following.owners(half.inode.tolist())) < 5:
            assert time.monotonic() < deadline
        assert {o.pid for holders in owners.values() for o in holders} == {script.process.pid}
        deadline = time.monotonic() + 60
        while True:
            following.look_now()
            found = [s for s in following.stuck(0.2) if s.netns == script.netns and s.state == 5]
            if len(found) == 5:
                break
            assert time.monotonic() < deadline
            following.step(0.1)
        assert all(s.exact for s in found)
        assert all(s.inode for s in found)


def test_who_moved_it_is_the_task_in_process_context_and_nobody_in_an_interrupt():
    with traffic(5) as script, Following() as following:
        script.go()
        rows = gather(following, lambda t: pairs(t)[9, 7] >= 5, script.host)
    closes = rows.select((rows.oldstate == 1) & (rows.newstate == 4))
    assert not closes.interrupt.any()
    assert set(closes.pid.tolist()) == {script.process.pid}
    assert rows.interrupt[(rows.oldstate == 1) & (rows.newstate == 8)].all()


def test_a_refused_connection_ended_by_a_reset():
    with traffic(3, "refused") as script, Following() as following:
        script.go()
        rows = gather(following, lambda t: pairs(t)[2, 7] >= 3, script.host)
    assert rows.reset[rows.newstate == 7].tolist() == [tr.RECEIVE_RESET] * 3
    assert (rows.sport != 0).all()


def test_a_filter_by_port_is_applied_by_the_kernel_and_loses_no_age():
    with traffic(40) as script:
        wanted = parse(f"dport = :{script.port} and src {script.host}")
        with Following(wanted) as following:
            script.go()
            rows = gather(following, lambda t: pairs(t)[5, 7] >= 40, script.host)
    assert pairs(rows) == Counter({(7, 2): 40, (2, 1): 40, (1, 4): 40, (4, 5): 40, (5, 7): 40})
    assert int(rows.present("in_old_ns").sum()) == 4 * 40


def test_without_looking_up_transitions_and_times_are_the_same():
    with traffic(40) as script, Following(lookup=False) as following:
        script.go()
        rows = gather(following, lambda t: pairs(t)[9, 7] >= 40, script.host)
        assert any("nothing is looked up" in sentence for sentence in following.cannot_see)
    assert pairs(rows) == Counter(dict.fromkeys(ONCE, 40))
    assert int(rows.present("in_old_ns").sum()) == 8 * 40
    assert not rows.present("netns").any()
    assert following.looks == 0


def test_a_filter_by_state_keeps_what_enters_and_what_leaves_it():
    with traffic(10) as script, Following(parse(f"state fin-wait-2 src {script.host}")) as following:
        script.go()
        rows = gather(following, lambda t: pairs(t)[5, 7] >= 10, script.host)
    assert pairs(rows) == Counter({(4, 5): 10, (5, 7): 10})
    assert rows.present("in_old_ns").all()


def test_stacks_name_the_call_that_closed_it():
    from finwait.kernel.symbols import KernelSymbols

    symbols = KernelSymbols()
    if not symbols.known:
        _missing("the kernel does not show its symbols here")
    high, low = pack_address(own_address())
    frames: set[str] = set()
    deadline = time.monotonic() + 30
    with traffic(3) as script, Following(stacks=True) as following:
        script.go()
        while not any("close" in frame for frame in frames):
            found = following.step(0.2)
            rows = found.rows
            for k in range(len(rows)):
                if (rows.src[k, 0], rows.src[k, 1]) == (high, low) and rows.newstate[k] == 4:
                    kernel, _ = found.stacks[int(rows.cpu[k]), int(rows.time_ns[k])]
                    frames.update(symbols.frames(kernel))
            assert time.monotonic() < deadline, frames
    assert any(frame in ("tcp_close", "__tcp_close") for frame in frames)


def test_polling_alone_sees_what_lasts_and_says_what_it_cannot():
    host = own_address()
    # Looks are paced by what they cost: with hundreds of thousands of sockets around there are seconds between.
    with (
        traffic(7, "orphan") as script,
        Following(parse(f"src {host}"), tracing=False, interval=0.05) as following,
    ):
        assert following.mode == "polling"
        assert any("between two looks" in sentence for sentence in following.cannot_see)
        script.go()
        rows = gather(following, lambda t: int((t.became == 5).sum()) >= 7, host, seconds=100)
    assert set(rows.kind.tolist()) == {tr.POLLED}
    assert set(rows.netns.tolist()) == {script.netns}


def test_a_ring_buffer_that_overflows_is_told_to_the_record():
    events = ["sock/inet_sock_set_state"]
    with (
        traffic(400) as script,
        # What others on this machine do would go on between the two readings.
        tracefs.Tracing(
            events, buffer_kb=8, filters={events[0]: f"sport == {script.port} || dport == {script.port}"}
        ) as tracing,
    ):
        script.go()
        script.wait()
        from finwait.uapi import tracepoint

        drained = tracing.drain()
        records = tracepoint.walk(drained.buffer, drained.starts, drained.lengths, tracing.layout)
        statistics = tracing.statistics()
        assert statistics.overrun > 0
        told = int(records.missed[records.missed > 0].sum())
        assert told == statistics.overrun
        assert len(records) == statistics.read
        # The script made 4,000 transitions, of which one has no port yet on either side of a connection.
        assert len(records) + told >= 4000 - 400


def test_the_instance_is_gone_at_exit_and_after_an_error():
    with tracefs.Tracing(["sock/inet_sock_set_state"]) as tracing:
        name = tracing.name
        assert name in instances()
    assert name not in instances()
    failing = tracefs.Tracing(["sock/inet_sock_set_state"])
    with pytest.raises(ZeroDivisionError), failing:
        1 / 0  # noqa: B018
    assert failing.name
    name = failing.name
    assert name not in instances()


def test_an_event_that_does_not_exist_leaves_no_instance():
    before = [n for n in instances() if f"-{os.getpid()}-" in n]
    with pytest.raises(KernelError), tracefs.Tracing(["sock/no_such_event"]):
        pass
    with (
        pytest.raises(KernelError, match="filter"),
        tracefs.Tracing(
            ["sock/inet_sock_set_state"], filters={"sock/inet_sock_set_state": "no_such_field == 1"}
        ),
    ):
        pass
    assert [n for n in instances() if f"-{os.getpid()}-" in n] == before


KILLED = """
import sys, time
from finwait.kernel.tracefs import Tracing
with Tracing(["sock/inet_sock_set_state"]) as tracing:
    print(tracing.name, flush=True)
    time.sleep(60)
"""


def test_what_a_killed_finwait_left_is_removed_by_the_next_start_and_nothing_else():
    with subprocess.Popen([sys.executable, "-c", KILLED], stdout=subprocess.PIPE, text=True) as living:
        with subprocess.Popen([sys.executable, "-c", KILLED], stdout=subprocess.PIPE, text=True) as killed:
            assert living.stdout is not None
            assert killed.stdout is not None
            other, name = living.stdout.readline().strip(), killed.stdout.readline().strip()
            assert {name, other} <= set(instances())
            killed.send_signal(signal.SIGKILL)
            killed.wait(10)
        with tracefs.Tracing(["sock/inet_sock_set_state"]):
            left = instances()
            assert name not in left  # by us or by another start at the same time
            assert other in left
        living.send_signal(signal.SIGINT)
        living.wait(10)
    assert other not in instances()


SWEEPS = """
from finwait.kernel import tracefs
print(flush=True)
with tracefs.Root() as root:
    while True:
        tracefs.remove_leavings(root)
"""


@pytest.mark.timeout(120)
def test_a_finwait_in_another_pid_namespace_takes_nobody_s_instance_away():
    apart = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", sys.executable, "-c", SWEEPS]
    with subprocess.Popen(apart, stdout=subprocess.PIPE, text=True) as sweeping:
        assert sweeping.stdout is not None
        if not sweeping.stdout.readline():
            _missing("no pid namespace to be had")
        try:
            for _ in range(100):
                with tracefs.Tracing(["sock/inet_sock_set_state"], buffer_kb=64) as tracing:
                    assert tracing.name in instances()
        finally:
            sweeping.kill()
    assert not [n for n in instances() if n.startswith(f"finwait-{os.getpid()}-")]


OLD = """
import sys
from finwait.kernel import tracefs
tracefs._MADE_S = float(sys.argv[1])
tracefs.os.listdir = lambda path: [sys.argv[2]]  # no instance of anybody else
with tracefs.Root() as root:
    print(*tracefs.remove_leavings(root))
"""


def test_what_was_left_in_another_pid_namespace_goes_when_it_is_old():
    def swept(name: str, seconds: float) -> bool:
        apart = ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", OLD, str(seconds), name]
        done = subprocess.run(apart, capture_output=True, text=True, timeout=60)
        if done.returncode:
            _missing("no pid namespace to be had")
        return done.stdout.split() == [name]

    with subprocess.Popen([sys.executable, "-c", KILLED], stdout=subprocess.PIPE, text=True) as left:
        assert left.stdout is not None
        name = left.stdout.readline().strip()
        assert not swept(name, 0), "it has a file open"
        left.kill()
        left.wait(10)
        assert not swept(name, 3600), "it may be about to open one"
        assert swept(name, 0) or name not in instances(), "by this one or by another"
    assert name not in instances()


UNMOUNTED = """
import os, subprocess
from finwait.kernel.tracefs import Root, Tracing
if not os.path.ismount("/sys/kernel/tracing"):
    subprocess.run(["mount", "-t", "tracefs", "nodev", "/sys/kernel/tracing"], check=True)
with Tracing(["sock/inet_sock_set_state"]) as tracing:
    name = tracing.name
    assert name in os.listdir("/sys/kernel/tracing/instances")
    subprocess.run(["umount", "-l", "/sys/kernel/tracing"], check=True)
    tracing.drain()
with Root() as root:
    assert root.private
    assert name not in os.listdir(f"{root.path}/instances"), "left behind"
print("gone")
"""


def test_tracefs_that_is_unmounted_meanwhile_is_left_clean():
    done = subprocess.run(
        ["unshare", "-m", sys.executable, "-c", UNMOUNTED], capture_output=True, text=True, timeout=60
    )
    if "permission denied" in done.stderr.lower():
        _missing("no mount namespace to be had")
    assert done.stdout == "gone\n", done.stderr


UNPRIVILEGED = """
import os, subprocess, sys, threading
from finwait.follow import Following
import encodings.ascii, finwait.kernel.lookup, finwait.table.decode
from finwait.kernel.observe import RunningMachine
there = os.path.ismount("/sys/kernel/tracing")
if sys.argv[1] == "mounted" and not there:
    subprocess.run(["mount", "-t", "tracefs", "nodev", "/sys/kernel/tracing"], check=True)
if sys.argv[1] == "not mounted" and there:
    subprocess.run(["umount", "-l", "/sys/kernel/tracing"], check=True)
os.setgroups([])
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
with Following() as following:
    print(following.mode)
    print(following.why_polling)
"""


@pytest.mark.parametrize("tracing", ["mounted", "not mounted"])
def test_without_the_right_to_trace_it_polls_and_says_why(tracing):
    if os.geteuid() != 0:
        _missing("needs root to give its rights up")
    words = ["unshare", "-m", sys.executable, "-c", UNPRIVILEGED, tracing]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    mode, why = done.stdout.splitlines() or (done.stderr, "")
    assert mode == "polling"
    assert "CAP_SYS_ADMIN" in why


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_thousand_starts_and_stops_leave_nothing_behind():
    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    with tracefs.Tracing(["sock/inet_sock_set_state"], buffer_kb=64):
        pass
    before = descriptors()
    for _ in range(1000):
        with tracefs.Tracing(["sock/inet_sock_set_state"], buffer_kb=64):
            pass
    assert descriptors() == before
    assert not [n for n in instances() if n.startswith(f"finwait-{os.getpid()}-")]


def test_a_namespace_that_is_deleted_meanwhile_ends_nothing():
    host = own_address()
    with Following() as following:
        with traffic(5, host=host) as script:
            script.go()
            script.wait()
        rows = gather(following, lambda t: pairs(t)[9, 7] >= 5, host)
        assert pairs(rows)[5, 7] == 5


BPFTRACE = """
tracepoint:sock:inet_sock_set_state /args->family == 2/ {
  printf("%llu %d %d %d %d %s\\n", nsecs, args->oldstate, args->newstate, args->sport, args->dport,
         ntop(2, args->saddr));
}
"""


def test_order_and_times_agree_with_bpftrace_on_the_same_tracepoint(tmp_path):
    if not shutil.which("bpftrace") or not shutil.which("unshare"):
        pytest.skip("bpftrace is not installed")
    script = tmp_path / "states.bt"
    script.write_text(BPFTRACE)
    mounted = f"mount -t tracefs nodev /sys/kernel/tracing; exec bpftrace -B line {script}"
    with (
        subprocess.Popen(
            ["unshare", "-m", "sh", "-c", mounted],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        ) as other,
        traffic(100) as script_,
        Following() as following,
    ):
        assert other.stdout is not None
        lines: list[list[str]] = []

        def read() -> None:
            lines.extend(line.split() for line in other.stdout)  # type: ignore[union-attr]

        reader = threading.Thread(target=read)
        reader.start()
        try:
            _until_it_reports(other, lines)
            script_.go()
            rows = gather(following, lambda t: pairs(t)[9, 7] >= 100, script_.host)
            deadline = time.monotonic() + 60
            while sum(w[-1:] == [script_.host] and w[1:3] == ["9", "7"] for w in lines) < 100:
                assert time.monotonic() < deadline
                time.sleep(0.05)
        finally:
            other.terminate()
            reader.join(20)
    theirs = [tuple(int(x) for x in w[:5]) for w in lines if len(w) == 6 and w[5] == script_.host]
    some = rows.select((rows.kind == tr.TRANSITION) & (rows.newstate != 2))
    ours = list(
        zip(
            some.oldstate.tolist(),
            some.newstate.tolist(),
            some.sport.tolist(),
            some.dport.tolist(),
            strict=True,
        )
    )
    theirs = [t for t in theirs if t[2] != 2]  # a connection that begins has no port yet there; we fill it in
    theirs.sort()
    assert [t[1:] for t in theirs] == ours
    # Two programs on one tracepoint run one after the other: microseconds, unless something comes between.
    apart = np.abs(some.time_ns - np.array([t[0] for t in theirs]))
    assert float(np.median(apart)) < 100_000


def _until_it_reports(process: subprocess.Popen[str], lines: list[list[str]]) -> None:
    """Make connections until bpftrace tells of one: it says nothing when it is ready."""
    import socket

    deadline = time.monotonic() + 40
    while not lines:
        if process.poll() is not None or time.monotonic() > deadline:
            pytest.skip("bpftrace cannot run here")
        with socket.create_server(("127.0.0.1", 0)):
            time.sleep(0.1)
