"""What is said of connections that are nearly what a rule sees: whose turn it is, and whether it moves after all."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from finwait import session
from finwait.diagnosis.finding import Finding
from finwait.diagnosis.view import View
from finwait.kernel import procfs
from finwait.lab.actor import ProgramSocket
from finwait.lab.topology import Lab, Netns, unmet
from finwait.report.connection import connection
from finwait.report.json import connections
from finwait.session import Diagnosis, Look
from finwait.uapi.observation import LookPlan
from tests.kernel.acting_pair import Pair, planned, row_of, settled, state_of
from tests.kernel.needs import missing

pytestmark = pytest.mark.kernel
PERSIST = 4
"""``idiag_timer``: the window probe."""


@pytest.fixture(autouse=True)
def _needs() -> None:
    if lacking := unmet(("netns", "tool:nft")):
        missing("; ".join(lacking))


def looked(lab: Lab, watch_ms: int = 0) -> Diagnosis:
    plan = LookPlan(only=frozenset(ns.inode for ns in lab.namespaces.values()), established_limit=None)
    return session.diagnose(how=Look(plan=plan, watch_ms=watch_ms))


def until(lab: Lab, done: Callable[[View], bool], watch_ms: int = 0) -> Diagnosis:
    end = time.monotonic() + 20
    while True:
        diagnosis = looked(lab, watch_ms)
        if done(diagnosis.view):
            return diagnosis
        assert time.monotonic() < end, "it never came to that"
        time.sleep(0.02)


def accused(diagnosis: Diagnosis, row: int | None = None) -> list[str]:
    """Return the rules that call something (or a row) anything but healthy."""
    found = (f for f in diagnosis.findings if row is None or (f.rows == row).any())
    return [f.rule for f in found if f.severity != "healthy"]


def told(diagnosis: Diagnosis, conn: ProgramSocket) -> Finding | None:
    row = row_of(diagnosis.view, conn)
    return next((f for f in diagnosis.findings if f.primary and (f.rows == row).any()), None)


def evidence(finding: Finding, column: str) -> str:
    return next((f"{e.value}: {e.says}" for e in finding.evidence if e.column == column), "")


def test_a_program_that_does_not_read_is_named_and_not_its_peer_which_has_closed() -> None:
    with Lab() as lab:
        pair = Pair(lab)
        pair.near.shutdown(pair.ours, "WR")
        settled(pair, pair.ours, "FIN_WAIT2")
        pair.far.fill(pair.theirs[0])
        pair.far.close(pair.theirs)

        def stuck(view: View) -> bool:
            row = row_of(view, pair.ours[0])
            other = int(view.other[row])
            s = view.sockets
            return bool(
                s.rqueue[row] > 0 and other >= 0 and s.state[other] == 9 and s.timer[other] == PERSIST
            )

        until(lab, stuck)
        diagnosis = until(lab, lambda view: stuck(view) and not view.moved.any(), watch_ms=3200)
        finding = told(diagnosis, pair.ours[0])
        assert finding is not None
        assert finding.rule == "fin-wait2-held"
        assert "this program leaves data unread" in finding.title
        assert finding.confidence.level == "likely"  # a program that reads again later looks the same
        assert "read none" in finding.confidence.reason
        row = row_of(diagnosis.view, pair.ours[0])
        assert evidence(finding, "rqueue").startswith(f"{int(diagnosis.view.sockets.rqueue[row])}: ")
        assert evidence(finding, "other end").startswith("LAST_ACK ×1: the peer has closed")
        assert not any("other end" in remedy.text for remedy in finding.ends_it)
        assert any("other end" in advice.text for advice in finding.does_not)
        (theirs,) = (f for f in diagnosis.findings if f.rule == "zero-window" and f.primary)
        assert evidence(theirs, "other end's rqueue")
        for seen in (
            diagnosis,
            looked(lab, watch_ms=300),
        ):  # it may rest for longer than any two looks are apart
            assert [entry.guard for entry in planned(seen, pair.ours).left] == ["slow-reader"]
            (step,) = planned(seen, pair.ours, override=frozenset({"slow-reader"})).steps
            assert (step.means, step.sport) == ("destroy", pair.ours[0].sport)


def test_a_fin_that_has_no_room_at_our_end_is_not_asked_of_the_other_one() -> None:
    with Lab() as lab:
        pair = Pair(lab)
        pair.near.shutdown(pair.ours, "WR")
        pair.far.read_to_end(pair.theirs)
        pair.far.fill(pair.theirs[0])

        def full(view: View) -> bool:
            row = row_of(view, pair.theirs[0])
            return state_of(view, pair.ours[0]) == "FIN_WAIT2" and bool(view.sockets.timer[row] == PERSIST)

        diagnosis = until(lab, full)
        finding = told(diagnosis, pair.ours[0])
        assert finding is not None
        assert "this program leaves data unread" in finding.title
        assert [entry.guard for entry in planned(diagnosis, pair.ours).left] == [
            "slow-reader"
        ]  # so it may be
        (step,) = planned(diagnosis, pair.ours, override=frozenset({"slow-reader"})).steps
        assert (step.means, step.sport) == ("destroy", pair.ours[0].sport)


def test_a_slow_download_is_no_peer_that_stopped_reading() -> None:
    with Lab() as lab:
        netns = lab.netns("one")
        with (
            netns.call(lambda: socket.create_server(("127.0.0.1", 0))) as door,
            netns.call(socket.socket) as client,
        ):
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 20_000)
            client.connect(door.getsockname())
            server, _ = door.accept()
            server.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8_000_000)
            server.setblocking(False)
            wanted = server.send(bytes(3_000_000))
            server.close()
            client.settimeout(20)
            done = threading.Event()
            got = 0

            def read_slowly() -> None:
                nonlocal got
                while not done.wait(0.1):
                    got += len(client.recv(8192))

            reader = threading.Thread(target=read_slowly)
            reader.start()
            try:
                view = until(lab, lambda view: bool((view.sockets.timer == PERSIST).any())).view
                assert view.sockets.state[view.sockets.timer == PERSIST].tolist() == [4]
                diagnosis = looked(lab, watch_ms=2500)
            finally:
                done.set()
                reader.join()
            assert 0 < got < wanted
            sender = diagnosis.view.sockets.sport == door.getsockname()[1]
            rows = np.flatnonzero(sender & (diagnosis.view.sockets.state == 4))
            assert len(rows) == 1
            assert accused(diagnosis, rows[0]) == []


@pytest.mark.parametrize("held", [False, True])
def test_a_fin_that_waits_behind_data_is_not_said_to_be_retransmitted(held: bool) -> None:
    with Lab() as lab:
        pair = Pair(lab)
        pair.link.cut()
        pair.near.fill(pair.ours[0])
        if held:
            pair.near.shutdown(pair.ours, "WR")
        else:
            pair.near.close(pair.ours)

        def tried(view: View) -> bool:
            s = view.sockets
            return bool(((s.sport == pair.ours[0].sport) & (s.retrans >= 2) & (s.timer == 1)).any())

        diagnosis = until(lab, tried)
        s = diagnosis.view.sockets
        (row,) = np.flatnonzero(s.sport == pair.ours[0].sport).tolist()
        assert s.notsent_bytes[row] > 1
        (finding,) = (f for f in diagnosis.findings if f.primary and (f.rows == row).any())
        assert finding.rule == ("fin-unanswered-held" if held else "fin-unanswered-orphan")
        assert "data before the FIN" in finding.title
        behind = f"behind {int(s.wqueue[row]) - 1} bytes"
        assert f"{behind} and was never sent" in finding.confidence.reason
        picture = "".join(connection(diagnosis.view, row, [finding]))
        assert f"our FIN → not sent, it waits {behind}" in picture
        assert "retransmissions of the FIN" not in picture


def test_a_relay_through_which_an_answer_streams_waits_for_nothing() -> None:
    with Lab() as lab:
        outside, node, inside = lab.netns("client"), lab.netns("node"), lab.netns("backend")
        front, back = lab.link(outside, node), lab.link(node, inside)
        client, relay, backend = (
            lab.actor(outside, "client"),
            lab.actor(node, "relay"),
            lab.actor(inside, "backend"),
        )
        door, target = relay.listen(front.b4, 80), backend.listen(back.b4, 8080)
        relay.relay(door, back.b4, 8080)
        asking = client.connect_many(1, front.b4, 80)
        answering = backend.accept_many(target, 1)
        client.shutdown(asking, "WR")
        backend.read_to_end(answering)
        client.absorb(asking)
        backend.trickle(answering, "x" * 100, 0.1)
        ((inner, outer),) = relay.legs(door)

        def streams(view: View) -> bool:
            s, row = view.sockets, row_of(view, outer)
            return state_of(view, outer) == "FIN_WAIT2" and bool(s.bytes_received[row] > 0)

        once = until(lab, streams)
        pair = told(once, outer)
        assert pair is not None
        assert (pair.rule, pair.confidence.level, pair.confidence.look_again) == (
            "relay-pair",
            "possible",
            True,
        )
        assert "`--for 5s`" in pair.confidence.reason
        twice = looked(lab, watch_ms=600)
        assert [f.rule for f in twice.findings if f.severity == "problem"] == []
        assert accused(twice, row_of(twice.view, inner)) == []
        where = [w for ns in lab.namespaces.values() for w in ("--netns", str(ns.inode))]
        blind = [w for pid in procfs.descriptors()[0].unreadable for w in ("--not-holder", str(pid))]
        checked = subprocess.run(
            [sys.executable, "-m", "finwait", "check", *where, *blind],
            capture_output=True,
            text=True,
            check=False,
        )
        assert (checked.returncode, checked.stdout.split(" - ")[0]) == (0, "FINWAIT OK"), checked.stdout


@pytest.mark.parametrize("which", [0, 1])
def test_of_two_listeners_that_share_a_port_the_one_that_does_not_accept_is_found(which: int) -> None:
    with Lab() as lab, contextlib.ExitStack() as open_:
        netns = lab.netns("one")
        doors = []
        for _ in range(2):
            door = open_.enter_context(netns.call(socket.socket))
            door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            door.bind(("127.0.0.1", 7777))
            door.listen(64)
            doors.append(door)
        busy, stuck = doors[which], doors[1 - which]
        for _ in range(24):  # the kernel spreads them by a hash of their ports
            client = open_.enter_context(netns.call(socket.socket))
            client.connect(("127.0.0.1", 7777))
            client.shutdown(socket.SHUT_WR)
        busy.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                open_.enter_context(busy.accept()[0])

        def waited(view: View) -> bool:
            s = view.sockets
            queued = (s.state == 8) & (s.inode == 0)
            return bool(queued.any() and (s.last_ack_recv_ms[queued] > 1000).all())

        diagnosis = until(lab, waited)
        s = diagnosis.view.sockets
        queued = np.flatnonzero((s.state == 8) & (s.inode == 0))
        (finding,) = (f for f in diagnosis.findings if f.rule == "never-accepted")
        assert finding.confidence.level == "certain"
        assert sorted(finding.rows.tolist()) == queued.tolist()
        values = [(e.value, e.says) for e in finding.evidence if e.column == "listener :7777"]
        assert [value for value, _ in values] == [f"{len(queued)} of 64 waiting", "0 of 64 waiting"]
        assert f", fd {stuck.fileno()}) has not accepted" in values[0][1]
        assert f", fd {busy.fileno()}) shares the address" in values[1][1]
        assert "healthy" not in "".join(connection(diagnosis.view, int(queued[0]), [finding]))


def test_an_mptcp_half_close_over_which_an_answer_streams_is_healthy() -> None:
    if lacking := unmet(("mptcp",)):
        missing("; ".join(lacking))
    with Lab() as lab:
        outside, inside = lab.netns("client"), lab.netns("server")
        for netns in (outside, inside):
            netns.sysctl("net.mptcp.enabled", 1)
        link = lab.link(outside, inside)
        client, server = lab.actor(outside, "client"), lab.actor(inside, "server")
        door = server.listen(link.b4, 8080, mptcp=True)
        near = client.connect_many(1, link.b4, door.sport, mptcp=True)
        far = server.accept_many(door, 1)
        client.send(near, "hello")
        server.recv(far, 5)
        server.send(far, "hello")
        client.recv(near, 5)
        client.shutdown(near, "WR")
        server.read_to_end(far)
        client.absorb(near)
        server.trickle(far, "x" * 500, 0.1)

        def streams(view: View) -> bool:
            s = view.sockets
            mptcp = (s.protocol == 262) & np.isin(s.state, (5, 8))
            return bool(mptcp.sum() == 2 and view.moved.any())

        twice = until(lab, streams, watch_ms=500)
        assert accused(twice) == []
        once = looked(lab)
        assert {(f.rule, f.confidence.level) for f in once.findings} == {("mptcp-half-close", "possible")}


FORKING = """
import os, socket, sys
door = socket.create_server(("127.0.0.1", 0))
children = []
print(door.getsockname()[1], flush=True)
for line in sys.stdin:
    conn, _ = door.accept()
    if not (child := os.fork()):
        door.close()
        while conn.recv(1):
            pass
        if line == "keep\\n":
            sys.stdin.read()
        os._exit(0)
    children.append(child)
    if line != "keep\\n":
        conn.close()
    print(child, flush=True)
for child in children:
    os.kill(child, 9)
    os.waitpid(child, 0)
"""


@contextlib.contextmanager
def forking_server(netns: Netns) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A server that accepts, and forks a child for the connection, once for each line that it is told."""
    server = netns.call(
        lambda: subprocess.Popen(
            [sys.executable, "-c", FORKING],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
    )
    try:
        assert server.stdout
        yield server, int(server.stdout.readline())
    finally:
        server.communicate()


def test_a_server_that_forks_for_each_connection_leaks_none() -> None:
    with Lab() as lab, contextlib.ExitStack() as open_:
        netns = lab.netns("one")
        server, port = open_.enter_context(forking_server(netns))
        client = open_.enter_context(netns.call(socket.socket))
        client.connect(("127.0.0.1", port))

        def late(view: View) -> bool:  # the handshake is older than the child that will be made
            s = view.sockets
            queued = (s.state == 1) & (s.inode == 0)
            return bool(queued.any() and (s.last_ack_recv_ms[queued] > 200).all())

        until(lab, late)
        assert server.stdin
        assert server.stdout
        server.stdin.write("serve\n")
        child = int(server.stdout.readline())

        def served(view: View) -> bool:
            s = view.sockets
            (row,) = np.flatnonzero((s.sport == port) & (s.state == 1)).tolist()
            return {pid for pid, _ in view.holders.of(row)} == {child}

        diagnosis = until(lab, served)
        assert [f.rule for f in diagnosis.findings] == []


LEFT = """
import os, socket, subprocess, sys
door = socket.create_server(("127.0.0.1", 8099))  # its network namespace is its own
print(door.getsockname()[1], flush=True)
conn, _ = door.accept()
os.set_inheritable(conn.fileno(), True)
left = subprocess.Popen(["sleep", "86400"], close_fds=False, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
conn.sendall(b"answered after the child was started")
print(left.pid, flush=True)
os._exit(0)
"""


def test_an_open_connection_that_a_child_was_left_with_is_not_fine() -> None:
    """Its server answered after it had started the child, and is gone: neither clocks nor a listener tell."""
    with Lab() as lab, contextlib.ExitStack() as open_:
        netns = lab.netns("one")
        server = netns.call(
            lambda: subprocess.Popen([sys.executable, "-c", LEFT], stdout=subprocess.PIPE, text=True)
        )
        assert server.stdout
        port = int(server.stdout.readline())
        client = open_.enter_context(netns.call(socket.socket))
        client.connect(("127.0.0.1", port))
        child = int(server.stdout.readline())
        open_.callback(os.kill, child, 9)
        server.communicate()

        def seen(diagnosis: Diagnosis) -> list[str]:
            s = diagnosis.view.sockets
            (row,) = np.flatnonzero((s.sport == port) & (s.state == 1)).tolist()
            return [
                f"{f.rule}: {f.severity}" for f in diagnosis.findings if f.primary and (f.rows == row).any()
            ]

        deadline = time.monotonic() + 30
        while not (told := seen(looked(lab))) and time.monotonic() < deadline:
            time.sleep(0.2)
        assert told == ["inherited-descriptor: notice"]


def test_what_keeps_a_copy_from_a_child_is_told_by_how_the_child_was_made() -> None:
    with Lab() as lab, contextlib.ExitStack() as open_:
        netns = lab.netns("one")
        server, port = open_.enter_context(forking_server(netns))
        client = open_.enter_context(netns.call(socket.socket))
        client.connect(("127.0.0.1", port))
        client.shutdown(socket.SHUT_WR)
        assert server.stdin
        assert server.stdout
        server.stdin.write("keep\n")
        child = int(server.stdout.readline())
        diagnosis = until(
            lab, lambda view: bool(((view.sockets.state == 8) & (view.sockets.rqueue == 0)).any())
        )
        (forked,) = (f for f in diagnosis.findings if f.rule == "inherited-descriptor")
        assert forked.pids == (server.pid, child)
        assert any("SOCK_CLOEXEC has no effect" in remedy.text for remedy in forked.ends_it)
        assert evidence(forked, f"holder pid {child}").endswith("FD_CLOEXEC set")
        owners = json.loads(connections(diagnosis.view, forked.rows)[0])["owners"]
        assert {(o["pid"], o["close_on_exec"]) for o in owners} == {(server.pid, True), (child, True)}

    with Lab() as lab:
        pair = Pair(lab)
        pair.far.child(pair.theirs, "sleep", "86400")
        pair.near.shutdown(pair.ours, "WR")
        pair.far.read_to_end(pair.theirs)
        started = told(settled(pair, pair.theirs, "CLOSE_WAIT"), pair.theirs[0])
        assert started is not None
        assert started.rule == "inherited-descriptor"
        assert any(remedy.text.startswith("open sockets with SOCK_CLOEXEC") for remedy in started.ends_it)


def test_an_acknowledgment_that_is_lost_on_the_way_back_is_no_peer_that_does_not_answer() -> None:
    with Lab() as lab:
        pair = Pair(lab, 4)
        closed, shut, last, open_ = pair.ours
        pair.far.leave([pair.theirs[2]])
        pair.near.read_to_end([last])
        pair.link.cut(b=False)
        pair.near.close([closed, last])
        pair.near.shutdown([shut], "WR")
        pair.near.send([open_], "ping")
        ports = [conn.sport for conn in (closed, shut, last, open_)]

        def repeated(view: View) -> bool:
            s = view.sockets
            return bool((np.isin(s.sport, ports) & (s.timer == 1) & (s.retrans >= 2)).sum() == 4)

        diagnosis = until(lab, repeated)
        s = diagnosis.view.sockets
        rules, theirs = [], []
        for port in ports:
            (row,) = np.flatnonzero(s.sport == port).tolist()
            (finding,) = (f for f in diagnosis.findings if f.primary and (f.rows == row).any())
            assert "the peer has received" in finding.title
            assert evidence(finding, "other end").endswith("lost on the way back")
            assert any("lost" in remedy.text and remedy.kind == "read-only" for remedy in finding.ends_it)
            assert any("other end" in advice.text for advice in finding.does_not)
            rules.append(finding.rule)
            theirs.append(int(s.state[diagnosis.view.other[row]]))
        orphan, held, data = "fin-unanswered-orphan", "fin-unanswered-held", "data-unanswered"
        assert rules == [orphan, held, orphan, data]
        assert theirs == [8, 8, 6, 1]  # CLOSE_WAIT, CLOSE_WAIT, TIME_WAIT, ESTABLISHED


def test_a_server_that_does_not_read_the_end_and_a_client_that_does_not_are_told_apart() -> None:
    with Lab() as lab:
        pair = Pair(lab, 2)
        pair.near.leave([pair.ours[0]])
        pair.far.leave([pair.theirs[1]])
        served, opened = pair.theirs[0], pair.ours[1]
        unread = "close-wait-eof-unread"

        def both(view: View) -> bool:
            return all(state_of(view, conn) == "CLOSE_WAIT" for conn in (served, opened))

        diagnosis = until(lab, both)
        server, client = told(diagnosis, served), told(diagnosis, opened)
        assert server is not None
        assert client is not None
        assert (server.rule, client.rule) == (unread, unread)
        assert "this server has not read that" in server.title
        assert "this client has not read that" in client.title
        assert not any("pool" in text for text in (server.title, *(remedy.text for remedy in server.ends_it)))
