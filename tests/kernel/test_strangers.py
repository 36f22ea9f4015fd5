"""One tuple, two connections: addresses repeat where networks are not connected. Nobody is taken for another's end."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from finwait import session
from finwait.acting.apply import apply
from finwait.diagnosis.rules import MOMENT_MS
from finwait.diagnosis.view import Options, View
from finwait.kernel.journal import SqliteJournal
from finwait.lab.actor import Actor, ProgramSocket, meet
from finwait.lab.topology import Lab, Link, unmet
from finwait.remedy import making
from finwait.remedy import plan as plans
from finwait.remedy.guards import Limits
from finwait.session import Look
from finwait.uapi.observation import LookPlan
from tests.kernel.acting_pair import row_of, state_of
from tests.kernel.needs import missing

pytestmark = pytest.mark.kernel


@pytest.fixture(autouse=True)
def _needs() -> None:
    if lacking := unmet(("netns", "tool:nft")):
        missing("; ".join(lacking))


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        yield lab


def looked(*inodes: int, **more: int | bool) -> session.Diagnosis:
    options = Options(idle_ms=1) if "idle_ms" in more else Options()
    conntrack = bool(more.get("conntrack", True))
    plan = LookPlan(only=frozenset(inodes), established_limit=None, conntrack=conntrack)
    return session.diagnose(how=Look(plan=plan, options=options))


class Network:
    """A client at 10.8.0.1 port 40001 and a server at 10.8.0.2 that has half-closed."""

    def __init__(self, lab: Lab, name: str) -> None:
        self.near, self.far = lab.netns(f"near-{name}"), lab.netns(f"far-{name}")
        self.link: Link = lab.link(self.near, self.far)
        self.near.ip(f"addr add 10.8.0.1/30 dev {self.link.a_dev}")
        self.far.ip(f"addr add 10.8.0.2/30 dev {self.link.b_dev}")
        self.near.sysctl("net.ipv4.ip_local_port_range", "40001 40001")
        self.client: Actor = lab.actor(self.near, f"client-{name}")
        self.server: Actor = lab.actor(self.far, f"server-{name}")
        (self.ours,), (self.theirs,) = meet(
            self.client, "10.8.0.2", self.server, self.server.listen("10.8.0.2", 9000)
        )
        self.client.send([self.ours], name * 7)
        self.server.recv([self.theirs], len(name) * 7)
        self.server.shutdown([self.theirs], "WR")
        self.client.read_to_end([self.ours])
        end = time.monotonic() + 60
        while (
            state_of(looked(self.far.inode).view, self.theirs) != "FIN_WAIT2"
        ):  # a FIN may be acknowledged late
            assert time.monotonic() < end
            time.sleep(0.02)


def ended_for(diagnosis: session.Diagnosis, conn: ProgramSocket) -> plans.Plan:
    mask = np.zeros(len(diagnosis.view), np.bool_)
    mask[row_of(diagnosis.view, conn)] = True
    return making.make(diagnosis.view, diagnosis.findings, mask, Limits(share=1.0))


def test_a_connection_that_lost_its_end_is_not_given_another_s(lab: Lab, tmp_path: Path) -> None:
    one, two = Network(lab, "one"), Network(lab, "two")
    two.link.cut()
    two.client.reset([two.ours])
    diagnosis = looked(one.near.inode, one.far.inode, two.near.inode, two.far.inode)
    view = diagnosis.view
    assert view.other[row_of(view, one.ours)] == row_of(view, one.theirs)
    assert view.other[row_of(view, one.theirs)] == row_of(view, one.ours)
    assert view.other[row_of(view, two.theirs)] == -1
    plan = ended_for(diagnosis, two.theirs)
    assert [step.netns for step in plan.steps] == [two.far.inode]
    with SqliteJournal(tmp_path / "journal") as journal:
        apply(plan, journal, boot_id="")
    view = looked(one.near.inode, one.far.inode).view
    assert [state_of(view, conn) for conn in (one.ours, one.theirs)] == ["CLOSE_WAIT", "FIN_WAIT2"]


def test_an_end_that_counted_other_bytes_is_not_told_to_close(lab: Lab) -> None:
    """Each network has lost an end, so what is left fits, and fits nothing else."""
    one, two = Network(lab, "one"), Network(lab, "three")
    for network in (one, two):
        network.link.cut()
    one.server.reset([one.theirs])
    two.client.reset([two.ours])
    plan = ended_for(looked(one.near.inode, one.far.inode, two.near.inode, two.far.inode), two.theirs)
    assert [step.netns for step in plan.steps] == [two.far.inode]


def test_an_end_of_a_network_that_is_not_connected_is_at_best_possible(lab: Lab) -> None:
    """As many bytes, the same addresses and ports, and nothing else left that fits."""
    one, two = Network(lab, "one"), Network(lab, "two")
    for network in (one, two):
        network.link.cut()
    one.server.reset([one.theirs])
    two.client.reset([two.ours])
    diagnosis = looked(one.near.inode, one.far.inode, two.near.inode, two.far.inode)
    view = diagnosis.view
    mine, stranger = row_of(view, two.theirs), row_of(view, one.ours)
    assert (view.other[[mine, stranger]] == -1).all()
    assert view.other_possible[[mine, stranger]].tolist() == [stranger, mine]
    (found,) = (f for f in diagnosis.findings if f.primary and mine in f.rows)
    assert found.rule == "fin-wait2-held"
    assert "the other end was not found here" in found.title
    assert not [e for e in found.evidence if e.column == "other end"]
    plan = ended_for(diagnosis, two.theirs)
    assert [(step.netns, step.means) for step in plan.steps] == [(two.far.inode, "destroy")]
    assert all(step.other is None for step in plan.steps)


def test_namespaces_are_connected_through_others_that_are_not_looked_at(lab: Lab) -> None:
    near, middle, far = (lab.netns(name) for name in ("near", "middle", "far"))
    left, right = lab.link(near, middle), lab.link(middle, far)
    near.ip(f"addr add 10.8.1.1/24 dev {left.a_dev}")
    middle.ip(f"addr add 10.8.1.9/24 dev {left.b_dev}")
    middle.ip(f"addr add 10.8.2.9/24 dev {right.a_dev}")
    far.ip(f"addr add 10.8.2.2/24 dev {right.b_dev}")
    middle.sysctl("net.ipv4.ip_forward", "1")
    near.ip("route add default via 10.8.1.9")
    far.ip("route add default via 10.8.2.9")
    client, server = lab.actor(near, "client"), lab.actor(far, "server")
    (ours,), (theirs,) = meet(client, "10.8.2.2", server, server.listen("10.8.2.2", 9000))
    view = looked(near.inode, far.inode).view
    assert view.other[row_of(view, ours)] == row_of(view, theirs)
    assert view.connected(near.inode, far.inode)
    alone = lab.netns("alone")
    lab.actor(alone, "other").listen("127.0.0.1", 1)
    view = looked(near.inode, far.inode, alone.inode).view
    assert not view.connected(near.inode, alone.inode)


def test_two_ends_of_one_network_are_told_apart_from_strangers_by_nothing_but_each_other(lab: Lab) -> None:
    network = Network(lab, "one")
    diagnosis = looked(network.near.inode, network.far.inode)
    assert diagnosis.view.other[row_of(diagnosis.view, network.theirs)] == row_of(
        diagnosis.view, network.ours
    )
    plan = ended_for(diagnosis, network.theirs)
    assert [(step.netns, step.means) for step in plan.steps] == [(network.near.inode, "fin")]


def heard_of_a_moment_ago(view: View, conn: ProgramSocket) -> bool:
    return int(view.sockets.last_ack_recv_ms[row_of(view, conn)]) < MOMENT_MS


def settled(conn: ProgramSocket, *inodes: int) -> session.Diagnosis:
    """Look until the connection has been silent for so long that the absence of its other end means something."""
    end = time.monotonic() + 60
    while heard_of_a_moment_ago((diagnosis := looked(*inodes, idle_ms=1)).view, conn):
        assert absent(diagnosis, diagnosis.view, conn) in ([], [("notice", "possible")])
        assert time.monotonic() < end
        time.sleep(0.05)
    return diagnosis


def absent(diagnosis: session.Diagnosis, view: View, conn: ProgramSocket) -> list[tuple[str, str]]:
    return [
        (f.severity, f.confidence.level)
        for f in diagnosis.findings
        if f.rule == "idle-unprobed" and row_of(view, conn) in f.rows
    ]


def test_an_address_that_a_stranger_has_too_does_not_make_the_peer_absent(lab: Lab) -> None:
    """The peer lives in a namespace that is not looked at, as one on another machine would."""
    network = Network(lab, "one")
    (ours,), _ = meet(network.client, "10.8.0.2", network.server, network.server.listen("10.8.0.2", 9001))
    stranger = lab.netns("stranger")
    stranger.ip("addr add 10.8.0.2/32 dev lo")
    other = lab.actor(stranger, "other")
    other.listen("10.8.0.2", 1)
    diagnosis = settled(ours, network.near.inode, stranger.inode)
    assert absent(diagnosis, diagnosis.view, ours) == [("notice", "possible")]


def test_a_peer_that_is_gone_from_where_others_still_are_is_absent(lab: Lab) -> None:
    network = Network(lab, "one")
    network.near.sysctl("net.ipv4.ip_local_port_range", "40002 40100")
    door = network.server.listen("10.8.0.2", 9001)
    ours, theirs = meet(network.client, "10.8.0.2", network.server, door, 2)
    network.link.cut()
    network.server.reset(theirs[:1])
    diagnosis = settled(ours[0], network.near.inode, network.far.inode)
    assert absent(diagnosis, diagnosis.view, ours[0]) == [("problem", "possible")]
    assert absent(diagnosis, diagnosis.view, ours[1]) == []


def test_entries_that_were_not_read_are_not_entries_that_are_gone(lab: Lab) -> None:
    if lacking := unmet(("tool:conntrack",)):
        missing("; ".join(lacking))
    translated = lab.translated()
    (ours,), (theirs,) = meet(translated.client, translated.address, translated.backend, translated.door)
    translated.client.send([ours], "hello")
    translated.backend.recv([theirs], 5)
    translated.gateway.nft(
        "table inet lost {\n chain forward {\n"
        "  type filter hook forward priority 0\n  tcp flags & fin == fin drop\n }\n}"
    )
    translated.client.setsockopt([ours], socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    translated.client.shutdown([ours], "WR")
    where = [ns.inode for ns in lab.namespaces.values()]
    assert looked(*where).view.other_how[row_of(looked(*where).view, ours)] == 2
    unread = looked(*where, conntrack=False)
    assert not [f for f in unread.findings if f.rule == "nat-entry-gone"]
