"""handshake: connections that are being opened."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec.structs import replace

from finwait.lab.scenario import Scenario, Situation, expect, queued

if TYPE_CHECKING:
    from finwait.lab.topology import Lab

__all__ = ["SCENARIO"]


def build(lab: Lab) -> Situation:
    """Three SYNs that arrive and whose answers do not."""
    client, server = lab.netns("client"), lab.netns("server")
    link = lab.link(client, server)
    caller = lab.actor(client, "caller")
    backend = lab.actor(server, "backend")
    backend.listen(link.b4, 8080)
    link.cut(b=False)
    opening = [
        replace(conn, dst=link.b4, dport=8080) for conn in caller.connect_many(3, link.b4, 8080, wait=False)
    ]
    return Situation(
        lab,
        "`caller` opens three connections. Its SYNs reach `backend`, but the answers get lost. The state "
        "is SYN_SENT at `caller` and SYN_RECV at `backend`, both with a timer and few retries. Nothing is "
        "open yet that could close.",
        expected=expect("handshake", opening, "SYN_SENT", timer=1)
        + queued("handshake", backend, opening, "SYN_RECV", 0),
    )


SCENARIO = Scenario(
    name="handshake",
    title="connections that are being opened (healthy)",
    story=(
        "Every state except ESTABLISHED and LISTEN needs an explanation. This one explains SYN_SENT and "
        "SYN_RECV."
    ),
    claims=("C19",),
    needs=("netns", "tool:nft"),
    seconds=0.4,
    build=build,
)
