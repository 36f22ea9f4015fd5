"""Sockets that are bound to an interface: found by questions that carry it, followed with their owner, and ended."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import pytest

from finwait.capturing.chosen import choose
from finwait.capturing.live import _question
from finwait.follow import Following
from finwait.kernel import netns as ns_edge
from finwait.kernel.destroy import Target, destroy, read_back
from finwait.kernel.lookup import Question, ask, interfaces
from finwait.kernel.observe import RunningMachine
from finwait.lab.topology import Lab, Link, Netns
from finwait.table import decode
from finwait.table.filter import parse
from finwait.table.sockets import SocketTable
from finwait.table.transitions import TransitionTable
from finwait.uapi import inet_diag, tcp
from finwait.uapi.observation import LookPlan
from tests.kernel.test_trace import tracing_is_possible  # noqa: F401

pytestmark = pytest.mark.kernel


@dataclass
class Place:
    """Two namespaces, and how to open and to reach a listener that is bound to an interface."""

    here: Netns
    there: Netns
    listen: Callable[[], socket.socket]
    connect: Callable[[socket.socket], socket.socket]
    device: str
    """What the client is bound to."""


def _wait(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _device(sock: socket.socket, name: str) -> socket.socket:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, name.encode() + b"\0")
    return sock


def _link_local(space: Netns, device: str) -> str:
    """Return the interface's link-local address, once it is ours (duplicate address detection takes a second)."""

    def show() -> list[str]:
        command = ["ip", "-6", "-o", "addr", "show", "dev", device, "scope", "link"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()

    def words() -> list[str]:
        return space.call(show)

    _wait(lambda: "inet6" in words() and "tentative" not in words())
    found = words()
    return found[found.index("inet6") + 1].partition("/")[0]


def link_local(here: Netns, there: Netns, link: Link) -> Place:
    address = _link_local(there, link.b_dev)
    _link_local(here, link.a_dev)

    def connect(listener: socket.socket) -> socket.socket:
        sock = socket.socket(socket.AF_INET6)
        sock.connect((address, listener.getsockname()[1], 0, socket.if_nametoindex(link.a_dev)))
        return sock

    return Place(
        here, there, lambda: socket.create_server(("::", 0), family=socket.AF_INET6), connect, link.a_dev
    )


def bound(here: Netns, there: Netns, link: Link) -> Place:
    def listen() -> socket.socket:
        sock = _device(socket.socket(), link.b_dev)
        sock.bind((link.b4, 0))
        sock.listen()
        return sock

    def connect(listener: socket.socket) -> socket.socket:
        sock = _device(socket.socket(), link.a_dev)
        sock.connect(listener.getsockname())
        return sock

    return Place(here, there, listen, connect, link.a_dev)


def vrf(here: Netns, there: Netns, link: Link) -> Place:
    def make() -> str:
        name = f"vrf{os.getpid()}"[:15]
        for words in (
            f"link add {name} type vrf table 77",
            f"link set {name} up",
            f"link set {link.a_dev} master {name}",
            f"addr replace {link.a4}/24 dev {link.a_dev}",
        ):
            done = subprocess.run(["ip", *words.split()], capture_output=True, text=True)
            if done.returncode and "type vrf" in words:
                pytest.skip(f"this kernel has no VRF: {done.stderr.strip()}")
            assert done.returncode == 0, (words, done.stderr)
        return name

    name = here.call(make)

    def connect(listener: socket.socket) -> socket.socket:
        sock = _device(socket.socket(), name)
        sock.connect(listener.getsockname())
        return sock

    return Place(here, there, lambda: socket.create_server((link.b4, 0)), connect, name)


@dataclass
class Scene:
    place: Place
    client: socket.socket
    server: socket.socket

    @property
    def spaces(self) -> list[ns_edge.NetNamespace]:
        return [
            ns_edge.NetNamespace(n.inode, paths=(f"/proc/{os.getpid()}/fd/{n.fd}",))
            for n in (self.place.here, self.place.there)
        ]

    def rows(self) -> SocketTable:
        """Both ends, by a dump."""
        mine = frozenset({self.place.here.inode, self.place.there.inode})
        table = decode.sockets(
            RunningMachine().observe(LookPlan(only=mine, conntrack=False, established_limit=None))
        )
        return table.select((table.state != tcp.LISTEN) & (table.dport != 0))

    def end(self) -> SocketTable:
        """The client's end, by a dump."""
        rows = self.rows()
        return rows.select(rows.netns == self.place.here.inode)


@contextmanager
def _inhabitant(space: Netns) -> Iterator[None]:
    with space.call(lambda: subprocess.Popen(["cat"], stdin=subprocess.PIPE)) as process:
        yield
        process.stdin.close()  # type: ignore[union-attr]


@contextmanager
def scene(make: Callable[[Netns, Netns, Link], Place]) -> Iterator[Scene]:
    with Lab() as lab, ExitStack() as stack:
        here, there = lab.netns("here"), lab.netns("there")
        for space in (here, there):  # a descriptor alone leads nobody there who does not list all of them
            stack.enter_context(_inhabitant(space))
        place = make(here, there, lab.link(here, there))
        listener = stack.enter_context(place.there.call(place.listen))
        client = stack.enter_context(place.here.call(lambda: place.connect(listener)))
        server = stack.enter_context(listener.accept()[0])
        yield Scene(place, client, server)


PLACES = pytest.mark.parametrize("make", [link_local, bound, vrf])


def question(rows: SocketTable, k: int, ifindex: int | None) -> Question:
    (a, b), (c, d) = rows.src[k].tolist(), rows.dst[k].tolist()
    return Question((a, b), (c, d), int(rows.sport[k]), int(rows.dport[k]), ifindex)


@PLACES
def test_a_question_finds_it_by_its_interface_and_without_knowing_it(make):
    with scene(make) as running:
        end = running.end()
        assert len(end) == 1
        index = running.place.here.call(lambda: socket.if_nametoindex(running.place.device))
        assert end.ifindex.tolist() == [index]
        for ifindex, found in ((index, 1), (None, 1), (0, 0)):
            sockets, gaps = ask([question(end, 0, ifindex)], running.spaces)
            assert gaps == []
            assert len(sockets) == found, ifindex
            assert sockets.cookie.tolist() == end.cookie.tolist()[:found]
        names = interfaces(running.spaces)[running.place.here.inode]
        assert names[index] == running.place.device


@PLACES
def test_a_capture_asks_for_it_by_its_interface(make):
    with scene(make) as running:
        rows = running.rows()
        asked = [_question(one) for one in choose(rows, range(len(rows)), None)]
        assert len(asked) == 2
        sockets, _ = ask(asked, running.spaces)
        assert sorted(sockets.cookie.tolist()) == sorted(rows.cookie.tolist())


@PLACES
def test_it_is_followed_with_its_namespace_its_interface_and_its_owner(make):
    with scene(make) as running:
        end = running.end()
        sport = int(end.sport[0])
        wanted = parse(f"sport = :{sport} and pid = {os.getpid()} and ifindex = {int(end.ifindex[0])}")
        with Following(wanted) as following:
            running.client.shutdown(socket.SHUT_WR)
            tables: list[TransitionTable] = []
            deadline = time.monotonic() + 60
            while sum(map(len, tables)) < 2:
                tables.append(following.step(0.2).rows)
                assert time.monotonic() < deadline
            rows = TransitionTable.concatenate(tables)
            owners = following.owners(rows.inode.tolist())
    assert set(rows.netns.tolist()) == {running.place.here.inode}
    assert set(rows.ifindex.tolist()) == set(end.ifindex.tolist())
    assert set(rows.inode.tolist()) == set(end.inode.tolist())
    assert {one.pid for holders in owners.values() for one in holders} == {os.getpid()}


@PLACES
def test_a_minisocket_of_it_is_found(make):
    with scene(make) as running:
        sport = int(running.end().sport[0])
        with Following(parse(f"sport = :{sport}")) as following:
            running.client.close()
            tables: list[TransitionTable] = []
            deadline = time.monotonic() + 60
            while not any((t.newstate == tcp.CLOSE).any() for t in tables):
                tables.append(following.step(0.2).rows)
                assert time.monotonic() < deadline
            rows = TransitionTable.concatenate(tables)
    last = rows.select(rows.newstate == tcp.CLOSE)
    assert last.became.tolist() == [tcp.FIN_WAIT2]
    assert last.netns.tolist() == [running.place.here.inode]


@PLACES
def test_it_is_read_again_and_destroyed_by_its_cookie(make):
    with scene(make) as running:
        end = running.end()
        src, dst = (
            (int(a) << 64 | int(b)).to_bytes(16, "big")[-4 if end.family[0] == inet_diag.AF_INET else 0 :]
            for a, b in (end.src[0].tolist(), end.dst[0].tolist())
        )
        identity = inet_diag.SocketId(
            int(end.sport[0]), int(end.dport[0]), src, dst, int(end.ifindex[0]), int(end.cookie[0])
        )
        target = Target(running.place.here.inode, int(end.family[0]), 6, identity)
        found, entered = read_back(running.spaces, [target], 0)
        assert entered == {running.place.here.inode}
        assert len(found) == 1
        results, _ = destroy(running.spaces, [target])
        assert results == {0: 0}
        assert len(running.end()) == 0
