"""half-open: a client lost its memory and comes back on the same port; the server still has the old connection."""

from __future__ import annotations

from typing import TYPE_CHECKING

from finwait.lab.actor import meet
from finwait.lab.scenario import Scenario, Situation, expect

if TYPE_CHECKING:
    from finwait.lab.topology import Lab

__all__ = ["SCENARIO"]


def build(lab: Lab) -> Situation:
    """Two connections that their client forgot and opens anew, and one that it still has."""
    outside, inside = lab.netns("client"), lab.netns("server")
    link = lab.link(outside, inside)
    client, server = lab.actor(outside, "mount-client"), lab.actor(inside, "file-server")
    door = server.listen(link.b4, 8080)
    near, far = meet(client, link.b4, server, door, 2)
    (kept,), (fine,) = meet(client, link.b4, server, door)
    client.forget(near)
    outside.nft(
        "table inet careless {\n chain arriving {\n type filter hook input priority 0\n"
        f" tcp sport {door.sport} tcp flags & (syn | ack) == ack drop\n }}\n}}"
    )
    again = [client.dial(link.b4, door.sport, source=conn.src, sport=conn.sport) for conn in near]
    return Situation(
        lab,
        "`mount-client` lost power (nothing was sent) and opens its connections again, from the same "
        "ports. `file-server` still has the old ones, and answers each SYN with a challenge ACK. The "
        "client would answer that with a RST, which would clear the way. But a filter on the client's host "
        "drops ACKs that belong to no connection it knows, so both sides wait.",
        expected=expect("half-open", far, "ESTABLISHED", timer=0)
        + expect("half-open", again, "SYN_SENT", timer=1, retrans=1),
        healthy=expect("", [kept, fine], "ESTABLISHED"),
    )


SCENARIO = Scenario(
    name="half-open",
    title="a client lost its memory and comes back on the same port",
    story="One side is ESTABLISHED and the other is in SYN_SENT. One of the two is no longer true.",
    claims=("C9b", "X56"),
    needs=("netns", "tool:nft"),
    seconds=1.5,
    build=build,
)
