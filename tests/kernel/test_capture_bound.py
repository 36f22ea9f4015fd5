"""Connections that are bound to an interface: captured there, named with it, and told from their doubles elsewhere."""

from __future__ import annotations

import signal
import socket
import struct
import time
from pathlib import Path

import pytest

from finwait.capturing import read_closings
from finwait.diagnosis.closing import Ending
from finwait.kernel.capture import Capture, space_of
from finwait.lab.actor import Actor, ProgramSocket
from finwait.lab.topology import Lab, unmet
from finwait.table.sockets import pack_address
from tests.kernel.needs import missing
from tests.kernel.test_capture import capturing_is_possible  # noqa: F401
from tests.kernel.test_capture_scenes import capture, fins

pytestmark = pytest.mark.kernel

SO_BINDTODEVICE = 25


@pytest.fixture(autouse=True)
def _needs() -> None:
    if lacking := unmet(("netns",)):
        missing("; ".join(lacking))


def test_a_link_local_connection_is_captured_and_named_with_its_interface(tmp_path: Path) -> None:
    path = tmp_path / "x.pcapng"
    with Lab() as lab:
        here, there = lab.netns("here"), lab.netns("there")
        link = lab.link(here, there)
        here.ip(f"addr add fe80::aaaa/64 dev {link.a_dev} nodad")
        there.ip(f"addr add fe80::bbbb/64 dev {link.b_dev} nodad")
        ours, theirs = (space.call(lambda: socket.socket(socket.AF_INET6)) for space in (here, there))
        with ours, theirs:
            theirs.bind(("::", 8080))
            theirs.listen()
            index = here.call(lambda: socket.if_nametoindex(link.a_dev))
            ours.bind(("fe80::aaaa", 0, 0, index))
            ours.connect(("fe80::bbbb", 8080, 0, index))
            port = ours.getsockname()[1]
            other, _ = theirs.accept()
            words = (f"[fe80::aaaa%{link.a_dev}]:{port}", f"[fe80::bbbb%{link.a_dev}]:8080", "-w", str(path))
            with other, capture(*words, "--until-closed", "--for", "60s") as (process, said):
                ours.shutdown(socket.SHUT_WR)
                assert other.recv(1) == b""
                other.close()
                assert ours.recv(1) == b""
                ours.close()
                out, err = process.communicate(timeout=60)
    assert process.returncode in (0, 3), err  # 3: this machine hides a process from us
    assert "is gone" not in err.split("TIME_WAIT")[0]
    assert f"[fe80::aaaa%{link.a_dev}]:{port}" in out
    assert f"[fe80::bbbb%{link.a_dev}]:8080" in out
    assert "Closed in order" in out
    assert any(f"%{link.a_dev}]" in line for line in said)
    (told,) = read_closings(str(path)).book.told()
    assert told.outcome is Ending.IN_ORDER
    assert told.scope == link.a_dev


def test_two_connections_with_the_same_numbers_on_two_interfaces_are_two(tmp_path: Path) -> None:
    """Two VRF-like worlds in one namespace: each is captured on its own interface."""
    path = tmp_path / "x.pcapng"
    with Lab() as lab:
        here, left, right = lab.netns("here"), lab.netns("left"), lab.netns("right")
        links = [lab.link(here, left), lab.link(here, right)]
        client = lab.actor(here, "client")
        here.sysctl("net.ipv4.ip_local_port_range", "40001 40001")
        here.sysctl("net.ipv4.conf.all.rp_filter", "0")
        conns: list[tuple[ProgramSocket, Actor, ProgramSocket]] = []
        for link, space in zip(links, (left, right), strict=True):
            here.sysctl(f"net.ipv4.conf.{link.a_dev}.rp_filter", "0")
            here.ip(
                f"addr add 10.9.0.1/24 dev {link.a_dev}",
                f"route add 10.9.0.2 dev {link.a_dev} metric {len(conns) + 1}",
            )
            space.ip(f"addr add 10.9.0.2/24 dev {link.b_dev}")
            server = lab.actor(space, f"server{len(conns)}")
            door = server.listen("10.9.0.2", 8080)
            device = int.from_bytes(struct.pack("4s", link.a_dev.encode()), "little")
            mine = client.connect(
                "10.9.0.2", 8080, source="10.9.0.1", options=[(socket.SOL_SOCKET, SO_BINDTODEVICE, device)]
            )
            conns.append((mine, server, server.accept(door)))
        words = ("netns", "=", str(here.inode), "dport", "=", ":8080", "-w", str(path))
        with capture(*words) as (process, said):
            mine, _, _ = conns[1]
            client.shutdown([mine], "WR")
            deadline = time.monotonic() + 60
            while not fins(path):
                assert time.monotonic() < deadline
                time.sleep(0.05)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    names = [f"10.9.0.1%{link.a_dev}:40001" for link in links]
    assert all(any(name in line for line in said) for name in names), said
    parts = out.split("\n\n")
    assert len(parts) == 2, out
    (closed,) = (part for part in parts if "FIN,ACK" in part)
    assert names[1] in closed
    (quiet,) = (part for part in parts if "FIN,ACK" not in part)
    assert names[0] in quiet
    assert "No packet came or went" in " ".join(quiet.split())


def test_a_socket_bound_to_a_bridge_is_captured_on_its_ports_too() -> None:
    with Lab() as lab:
        here, there = lab.netns("here"), lab.netns("there")
        link = lab.link(here, there)
        here.ip("link add br0 type bridge", f"link set {link.a_dev} master br0")
        one = (pack_address("10.9.0.1"), 1, pack_address("10.9.0.2"), 2)
        index = here.call(lambda: {name: number for number, name in socket.if_nameindex()})
        with Capture(space_of(here.inode), [(one, index["br0"])]) as capture_:
            assert capture_.reached(index["br0"]) == {1, index["br0"], index[link.a_dev]}
            assert capture_.reached(index[link.a_dev]) == {1, index[link.a_dev]}
