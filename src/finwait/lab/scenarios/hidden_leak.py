"""hidden-leak: the connection is gone from every table, its descriptor is not."""

from __future__ import annotations

from typing import TYPE_CHECKING

from finwait.lab.actor import meet
from finwait.lab.scenario import Scenario, Situation, expect, leaked

if TYPE_CHECKING:
    from finwait.lab.topology import Lab

__all__ = ["SCENARIO"]


def build(lab: Lab) -> Situation:
    """Five descriptors of dead sockets, among descriptors of living ones of several kinds."""
    outside, inside = lab.netns("client"), lab.netns("server")
    link = lab.link(outside, inside)
    client = lab.actor(outside, "client")
    leaky = lab.actor(inside, "leaky-server")
    door = leaky.listen("::", 8080)
    near, far = meet(client, link.b4, leaky, door, 3)
    near6, far6 = meet(client, link.b6, leaky, door, 2)
    well, fine = meet(client, link.b4, leaky, door, 2)
    leaky.udp(link.b4, 5353)
    client.reset([*near, *near6])
    leaky.await_reset([*far, *far6])
    return Situation(
        lab,
        "Five clients reset their connections. `leaky-server` got ECONNRESET and kept the descriptors. No "
        "socket table shows them any more, and neither does `ss`. Only /proc/PID/fd and the global `alloc` "
        "of /proc/net/sockstat do. Its two live connections, its listener, a UDP socket and a Unix socket "
        "are not a leak.",
        expected=leaked("hidden-leak", [*far, *far6]),
        healthy=expect("", [*well, *fine], "ESTABLISHED"),
    )


SCENARIO = Scenario(
    name="hidden-leak",
    title="descriptors whose connection is gone",
    story=(
        "The connections were reset (or destroyed) and never closed. The socket tables show nothing, and "
        "the leak goes on."
    ),
    claims=("C16", "X50"),
    needs=("netns",),
    seconds=0.4,
    build=build,
)
