"""Looking: complete against independent sources, harmless to the machine, unshaken by what dies meanwhile."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from finwait import session
from finwait.kernel import lookup, netns, observe, procfs
from finwait.kernel.observe import LookPlan, RunningMachine
from finwait.lab.actor import meet
from finwait.lab.topology import Lab, unmet
from finwait.recording import open_recording, record
from finwait.session import Look
from finwait.table import decode
from finwait.uapi import tcp
from tests.kernel.needs import missing

pytestmark = pytest.mark.kernel


@pytest.fixture(autouse=True)
def _namespaces() -> None:
    if lacking := unmet(("netns",)):
        missing("; ".join(lacking))


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


PSUTIL = """
import psutil, sys
for c in psutil.Process(int(sys.argv[1])).net_connections("tcp"):
    if c.status == "ESTABLISHED":
        print(c.fd)
"""


def test_owners_are_those_that_psutil_finds() -> None:
    with Lab() as lab:
        client, server = lab.netns("client"), lab.netns("server")
        link = lab.link(client, server)
        near, far = lab.actor(client, "near"), lab.actor(server, "far")
        door = far.listen(link.b4, 8080)
        meet(near, link.b4, far, door, 20)
        shot = session.look(
            session.live_machine(), Look(plan=LookPlan(only=frozenset({client.inode, server.inode})))
        )
        ours = {
            (pid, fd)
            for row in np.flatnonzero(shot.sockets.state == tcp.ESTABLISHED).tolist()
            for pid, fd in shot.view.holders.of(row)
        }
        theirs = {
            (pid, int(fd))
            for space, pid in ((client, near.pid), (server, far.pid))
            for fd in space.run(sys.executable, "-c", PSUTIL, str(pid)).split()
        }
        assert len(theirs) == 40
        assert ours == theirs


def _listed(folder: str) -> list[str]:
    return sorted(os.listdir(folder)) if os.access(folder, os.R_OK) else []


def _modules() -> list[str]:
    path = Path("/proc/modules")
    return sorted(line.split()[0] for line in path.read_text().splitlines()) if path.exists() else []


def state_of_the_machine(namespaces: list[netns.NetNamespace]) -> dict[str, object]:
    """What looking might change: settings, conntrack, sockets, modules, namespaces, trace instances."""

    def inside(_: netns.NetNamespace) -> dict[str, bytes | None]:
        names = ("nf_conntrack_count", "nf_conntrack_max", "nf_conntrack_tcp_timeout_close_wait")
        found = {n: procfs.read(f"/proc/sys/net/netfilter/{n}") for n in names}
        for n in ("tcp_fin_timeout", "tcp_keepalive_time", "tcp_retries2", "ip_local_port_range"):
            found[n] = procfs.read(f"/proc/sys/net/ipv4/{n}")
        found["rules"] = subprocess.run(["nft", "list", "ruleset"], capture_output=True).stdout
        found["sockstat"] = procfs.read("/proc/thread-self/net/sockstat")
        return found

    seen, _ = netns.visit(namespaces, inside)
    return {
        "inside": {n: {k: v for k, v in d.items() if k != "sockstat"} for n, d in seen.items()},
        # Others trace and load modules meanwhile: only what this process, or a question of its kind, could have made.
        "instances": [n for n in _listed("/sys/kernel/tracing/instances") if f"-{os.getpid()}-" in n],
        "modules": [m for m in _modules() if m.endswith("_diag") or m.startswith("nf_conntrack")],
        "descriptors": descriptors(),
        "threads": threading.active_count(),
        "netns": netns.own_netns(),
    }


def test_looking_changes_nothing() -> None:
    with Lab() as lab:
        client, server, still = lab.netns("client"), lab.netns("server"), lab.netns("still")
        link = lab.link(client, server)
        near, far = lab.actor(client, "near"), lab.actor(server, "far")
        meet(near, link.b4, far, far.listen(link.b4, 8080), 3)
        only = {client.inode, server.inode, still.inode}
        RunningMachine().observe(
            LookPlan()
        )  # modules that the first look loads are those that `ss` would load
        spaces = [ns for ns in netns.discover(procfs.descriptors()[1])[0] if ns.inode in only]
        assert {ns.inode for ns in spaces} == only
        before = state_of_the_machine(spaces)
        for _ in range(3):
            session.diagnose(how=Look(plan=LookPlan(established_limit=None), watch_ms=10))
        assert state_of_the_machine(spaces) == before


def test_a_namespace_that_only_a_descriptor_holds_is_found() -> None:
    with Lab() as lab:
        alone = lab.netns("alone")  # nobody lives there: the lab has its file open, that is all
        inodes = {ns.inode for ns in netns.discover(procfs.descriptors()[1])[0]}
        assert alone.inode in inodes
        assert alone.inode not in {ns.inode for ns in netns.discover()[0]}


def _namespaces_of(tasks: Path) -> set[int]:
    found = set()
    for task in tasks.iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            found.add(os.stat(task / "ns" / "net").st_ino)
    return found


def test_no_thread_is_left_in_a_foreign_namespace() -> None:
    with Lab() as lab:
        lab.netns("one")
        spaces, _ = netns.discover(procfs.descriptors()[1])
        home = netns.own_netns()
        before = threading.active_count()

        def fail(ns: netns.NetNamespace) -> int:
            if ns.inode != home:
                raise RuntimeError("in the middle")
            return netns.own_netns()

        with pytest.raises(RuntimeError, match="in the middle"):
            netns.visit(spaces, fail)
        assert threading.active_count() == before
        assert netns.own_netns() == home
        tasks = Path("/proc/self/task")
        deadline = time.monotonic() + 10  # a thread that was joined may be listed for a moment still
        while (seen := _namespaces_of(tasks)) != {home} and time.monotonic() < deadline:
            time.sleep(0.01)
        assert seen == {home}


def test_several_threads_look_into_each_namespace_once_and_see_what_one_sees(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with Lab() as lab:
        spaces = [lab.netns(f"n{k}") for k in range(9)]
        doors = [space.call(lambda: socket.create_server(("127.0.0.1", 0))) for space in spaces]
        clients = [
            space.call(partial(socket.create_connection, door.getsockname()))
            for space, door in zip(spaces, doors, strict=True)
            for _ in range(3)
        ]
        try:
            inodes = frozenset(space.inode for space in spaces)
            listed = [ns for ns in netns.discover(procfs.descriptors()[1])[0] if ns.inode in inodes]
            together = threading.Barrier(3, timeout=60)

            def inside(ns: netns.NetNamespace) -> tuple[int, int, int]:
                with contextlib.suppress(threading.BrokenBarrierError):
                    together.wait()  # each of the threads is in a namespace of its own now
                return ns.inode, netns.own_netns(), threading.get_ident()

            seen, gaps = netns.visit(listed, inside, threads=3)
            assert gaps == []
            assert {inode: (first, own) for inode, (first, own, _) in seen.items()} == {
                inode: (inode, inode) for inode in inodes
            }
            assert len({thread for _, _, thread in seen.values()}) == 3
            plan = LookPlan(only=inodes)
            rows = []
            for threads in (1, 4):
                monkeypatch.setattr(observe, "_threads", lambda _, n=threads: n)
                sockets = decode.sockets(RunningMachine().observe(plan))
                rows.append(sorted(zip(sockets.netns.tolist(), sockets.cookie.tolist(), strict=True)))
            assert len(rows[0]) == 9 * 7
            assert rows[0] == rows[1]
        finally:
            for sock in (*clients, *doors):
                sock.close()


def test_a_failure_in_one_of_several_threads_is_raised_after_all_have_ended() -> None:
    with Lab() as lab:
        inodes = [lab.netns(f"n{k}").inode for k in range(6)]
        spaces = [ns for ns in netns.discover(procfs.descriptors()[1])[0] if ns.inode in inodes]
        before = threading.active_count()

        def fail(ns: netns.NetNamespace) -> int:
            if ns.inode == inodes[2]:
                raise RuntimeError("in the middle")
            return 1

        with pytest.raises(RuntimeError, match="in the middle"):
            netns.visit(spaces, fail, threads=3)
        assert threading.active_count() == before


def test_a_namespace_that_has_ended_is_no_gap_and_one_asked_about_by_name_is() -> None:
    gone = netns.NetNamespace(1, ("ghost",), paths=("/proc/0/ns/net", "/nowhere"))
    seen, gaps = netns.visit([gone], lambda _: 1)
    assert seen == {}
    assert gaps == []
    _, gaps = lookup.ask([], [gone])
    assert [str(g) for g in gaps] == ["netns 1: could not enter it: it has vanished"]


CHURN = """
import os, socket, sys, threading
ends = [False]
def work():
    listener = socket.create_server(("127.0.0.1", 0))
    while not ends[0]:
        a = socket.create_connection(listener.getsockname())
        b, _ = listener.accept()
        a.shutdown(socket.SHUT_WR)
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        os.waitpid(pid, 0)
        a.close(); b.close()
thread = threading.Thread(target=work); thread.start()
print("ready", flush=True)
sys.stdin.read()
ends[0] = True
"""


def test_processes_and_connections_that_die_while_being_read_cost_nothing() -> None:
    with Lab() as lab:
        busy = lab.netns("busy")
        churn = busy.call(
            lambda: subprocess.Popen(
                [sys.executable, "-W", "ignore", "-c", CHURN], stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
        )
        assert churn.stdin is not None
        assert churn.stdout is not None
        try:
            churn.stdout.readline()
            before = descriptors()
            plan = LookPlan(only=frozenset({busy.inode}), established_limit=None)
            for _ in range(40):
                diagnosis = session.diagnose(how=Look(plan=plan))
                # What came and went between two reads is nobody's fault, and no finding about holders.
                assert not [f for f in diagnosis.findings if f.rule == "holder-not-found"]
            assert descriptors() == before
        finally:
            churn.stdin.close()
            churn.wait(20)
            churn.stdout.close()


def test_namespaces_that_come_and_go_are_read_or_missed_but_never_an_error() -> None:
    done = threading.Event()

    def churn() -> None:
        while not done.is_set():
            for _ in range(20):
                subprocess.run(["unshare", "-n", "true"], check=True)

    before = descriptors()
    thread = threading.Thread(target=churn)
    thread.start()
    try:
        for _ in range(30):
            spaces, _ = netns.discover(procfs.descriptors()[1])
            netns.visit(spaces, lambda _: procfs.read("/proc/thread-self/net/sockstat"))
    finally:
        done.set()
        thread.join()
    assert descriptors() == before


def test_five_hundred_namespaces_are_read_and_no_descriptor_is_left() -> None:
    with Lab() as lab:
        spaces = [lab.netns(f"n{k}") for k in range(100)]

        def populate() -> socket.socket:
            return socket.create_server(("127.0.0.1", 0))

        sockets = [ns.call(populate) for ns in spaces]
        before = descriptors()
        table = decode.sockets(RunningMachine().observe(LookPlan()))
        assert {ns.inode for ns in spaces} <= set(table.netns.tolist())
        assert descriptors() == before
        for one in sockets:
            one.close()


@pytest.mark.parametrize("redacted", [False, True])
def test_a_recording_is_diagnosed_as_the_machine_was(tmp_path: Path, redacted: bool) -> None:
    with Lab() as lab:
        client, server = lab.netns("client"), lab.netns("server")
        link = lab.link(client, server)
        near, far = lab.actor(client, "near"), lab.actor(server, "secret-name", "secret-name", "--token=hush")
        a, b = meet(near, link.b4, far, far.listen(link.b4, 8080), 7)
        near.shutdown(a[:5], "WR")
        far.read_to_end(b[:5])
        only = frozenset({client.inode, server.inode})
        walled = frozenset(procfs.descriptors()[0].unreadable)
        how = Look(plan=LookPlan(only=only, established_limit=None), watch_ms=50, not_holders=walled)
        live = session.diagnose(how=how)
        path = tmp_path / "r.finwait"
        recorded = record(
            session.live_machine(), str(path), looks=2, interval_ms=50, only=only, redact=redacted
        )
        replayed = session.diagnose(open_recording(str(path)), how=how)
    assert recorded.rows == len(live.view)
    told = [sorted((f.rule, f.primary, f.count, f.pids) for f in d.findings) for d in (live, replayed)]
    assert told[0] == told[1]
    if redacted:
        text = repr(replayed.snapshot.observation) + replayed.snapshot.observation.buffer.tobytes().decode(
            "latin-1"
        )
        for secret in ("secret-name", "hush", socket.gethostname() + "'"):
            assert secret not in text
        addresses = {link.a4, link.b4}
        raw = {socket.inet_aton(x).decode("latin-1") for x in addresses}
        assert not [x for x in raw if x in text]
