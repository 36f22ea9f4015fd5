"""mptcp-half-close: shutdown(SHUT_WR) on MPTCP, which the TCP tables do not show."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from finwait.lab.scenario import Scenario, Situation, expect

if TYPE_CHECKING:
    from finwait.lab.topology import Lab

__all__ = ["SCENARIO"]


def build(lab: Lab) -> Situation:
    """Two half-closed MPTCP connections, one in use, and one that fell back to plain TCP."""
    outside, inside = lab.netns("client"), lab.netns("server")
    for netns in (outside, inside):
        netns.sysctl("net.mptcp.enabled", 1)
    link = lab.link(outside, inside)
    client, server = lab.actor(outside, "client"), lab.actor(inside, "server")
    door = server.listen(link.b4, 8080, mptcp=True)
    near = client.connect_many(3, link.b4, door.sport, mptcp=True)
    plain = client.connect(link.b4, door.sport)
    at = {conn.dport: conn for conn in server.accept_many(door, 4)}
    far = [at[conn.sport] for conn in near]
    fallen_back = at[plain.sport]
    # Data both ways completes the MPTCP handshake; before that a close is a TCP close.
    client.send(near, "hello")
    server.recv(far, 5)
    server.send(far, "hello")
    client.recv(near, 5)
    client.shutdown([*near[:2], plain], "WR")
    server.read_to_end([*far[:2], fallen_back])
    return Situation(
        lab,
        "`client` half-closed two MPTCP connections. MPTCP sends a DATA_FIN for this and leaves the TCP "
        "subflows alone. `ss -t` shows them ESTABLISHED at both ends, and only `ss -M` shows FIN_WAIT2 and "
        "CLOSE_WAIT. A third connection is in use. A fourth client speaks plain TCP to the same listener, "
        "and its half-close is an ordinary one.",
        expected=expect("mptcp-half-close", near[:2], "FIN_WAIT2", protocol=socket.IPPROTO_MPTCP)
        + expect("mptcp-half-close", far[:2], "CLOSE_WAIT", protocol=socket.IPPROTO_MPTCP),
        others=expect("fin-wait2-held", [plain], "FIN_WAIT2")
        + expect("close-wait-eof-read", [fallen_back], "CLOSE_WAIT", rqueue=0),
        healthy=expect("", [near[2], far[2]], "ESTABLISHED", protocol=socket.IPPROTO_MPTCP)
        + expect("", [*near, *far], "ESTABLISHED"),
    )


SCENARIO = Scenario(
    name="mptcp-half-close",
    title="half-closed MPTCP connections whose subflows look ESTABLISHED",
    story="The TCP rows are the subflows. The state of the connection is in MPTCP's own table.",
    claims=("C17", "X49"),
    needs=("netns", "mptcp", "tool:ss"),
    seconds=0.4,
    build=build,
)
