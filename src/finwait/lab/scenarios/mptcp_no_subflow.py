"""mptcp-no-subflow: the only path of an MPTCP connection is gone, and the connection outlives it."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from finwait.lab.scenario import Scenario, Situation, expect

if TYPE_CHECKING:
    from finwait.lab.topology import Lab

__all__ = ["SCENARIO"]


def build(lab: Lab) -> Situation:
    """Two MPTCP connections whose subflow was destroyed, and one that has it still."""
    outside, inside = lab.netns("client"), lab.netns("server")
    for netns in (outside, inside):
        netns.sysctl("net.mptcp.enabled", 1)
    link = lab.link(outside, inside)
    client, server = lab.actor(outside, "client"), lab.actor(inside, "server")
    door = server.listen(link.b4, 8080, mptcp=True)
    near = client.connect_many(3, link.b4, door.sport, mptcp=True)
    at = {conn.dport: conn for conn in server.accept_many(door, 3)}
    far = [at[conn.sport] for conn in near]
    client.send(near, "hello")
    server.recv(far, 5)
    server.send(far, "hello")
    client.recv(near, 5)
    for conn in near[:2]:
        outside.run("ss", "-K", "-t", "-n", "state", "established", f"sport = :{conn.sport}")
    return Situation(
        lab,
        "`client` and `server` speak MPTCP over one path. On two connections that path was reset. Their "
        "subflows are gone at both ends, and MPTCP waits for another one, for a minute by default. Neither "
        "program notices. The third connection still has its subflow.",
        expected=expect(
            "mptcp-no-subflow", [*near[:2], *far[:2]], "ESTABLISHED", protocol=socket.IPPROTO_MPTCP
        ),
        healthy=expect("", [near[2], far[2]], "ESTABLISHED", protocol=socket.IPPROTO_MPTCP)
        + expect("", [near[2], far[2]], "ESTABLISHED"),
    )


SCENARIO = Scenario(
    name="mptcp-no-subflow",
    title="MPTCP connections whose only path is gone",
    story="Both ends are ESTABLISHED, and no segment can pass.",
    claims=("C17b", "X57"),
    needs=("netns", "mptcp", "tool:ss"),
    seconds=0.4,
    build=build,
)
