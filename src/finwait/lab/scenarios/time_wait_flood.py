"""time-wait-flood: thousands of TIME_WAIT on the side that closes first."""

from __future__ import annotations

from typing import TYPE_CHECKING

from finwait.lab.actor import meet
from finwait.lab.scenario import Scenario, Situation, orphan

if TYPE_CHECKING:
    from finwait.lab.topology import Lab

__all__ = ["SCENARIO"]


def build(lab: Lab) -> Situation:
    """4,000 at a client that opens a connection per request, 20 at one that does so rarely."""
    busy, calm, server = lab.netns("busy"), lab.netns("calm"), lab.netns("server")
    busy.sysctl("net.ipv4.ip_local_port_range", "36000 42999")  # 7,000 ports: 4,000 are more than half
    link, other = lab.link(busy, server), lab.link(calm, server)
    client = lab.actor(busy, "client", "client", "--no-keepalive")
    cron = lab.actor(calm, "cron")
    backend = lab.actor(server, "backend")
    door = backend.listen("0.0.0.0", 8080)  # noqa: S104  # all of a private namespace
    flood, behind = meet(client, link.b4, backend, door, 4000)
    few, behind_few = meet(cron, other.b4, backend, door, 20)
    client.leave(flood)
    cron.leave(few)
    # The far side closes only now that every FIN is acknowledged. When it closed at once, it sent a few RSTs
    # as well (3 of 4,000 connections), and each took a record away: tcp_rfc1337 is 0.
    backend.close([*behind, *behind_few])
    return Situation(
        lab,
        "`client` opens a connection for each request and closes it first, so 4,000 connections to one "
        "server are in TIME_WAIT. TCP does this to keep late segments away from a new connection. Each one "
        "ends after 60 s, which is a constant. It matters only when local ports run out. `cron` has 20, "
        "which is nothing to report.",
        expected=orphan("time-wait-flood", flood, "TIME_WAIT", timer=3),
        healthy=orphan("time-wait", few, "TIME_WAIT", timer=3),
    )


SCENARIO = Scenario(
    name="time-wait-flood",
    title="4,000 TIME_WAIT sockets at a client that never reuses a connection",
    story="TIME_WAIT is legitimate and bounded, and tcp_fin_timeout does not affect it.",
    claims=("C15", "X03"),
    needs=("netns",),
    seconds=1.5,
    build=build,
)
