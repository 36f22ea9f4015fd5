"""zero-window: the peer does not read, and our FIN waits behind data that may not be sent."""

from __future__ import annotations

from typing import TYPE_CHECKING

from finwait.diagnosis import forecast
from finwait.lab.actor import meet
from finwait.lab.scenario import Scenario, Situation, expect, orphan

if TYPE_CHECKING:
    from finwait.lab.topology import Lab

__all__ = ["SCENARIO"]

_LIFE = forecast.span(forecast.zero_window(orphaned=True))


def build(lab: Lab) -> Situation:
    """Full pipes: two shut down, one closed, two still open; and one whose peer does read."""
    client, server = lab.netns("client"), lab.netns("server")
    for netns in (client, server):  # small buffers: a full pipe in no time
        netns.sysctl("net.ipv4.tcp_wmem", "4096 65536 65536")
        netns.sysctl("net.ipv4.tcp_rmem", "4096 65536 65536")
    link = lab.link(client, server)
    sender = lab.actor(client, "exporter")
    stuck = lab.actor(server, "stuck-reader")
    reader = lab.actor(server, "reader")
    door, other = stuck.listen(link.b4, 8080), reader.listen(link.b4, 8081)
    near, far = meet(sender, link.b4, stuck, door, 5)
    (well,), (fine,) = meet(sender, link.b4, reader, other)
    reader.absorb([fine])
    for conn in [*near, well]:
        sender.fill(conn)
    sender.shutdown(near[:2], "WR")
    sender.close(near[2:3])
    return Situation(
        lab,
        "`stuck-reader` has stopped reading, so its window is closed. `exporter` shut down two of five "
        "full connections and closed one. These are in FIN_WAIT1, but the FIN was never sent: it waits "
        "behind the data (timer 4, the window probe). The peer answers the probes, so no retry limit ends "
        f"the held connections; the kernel gives up the closed one after about {_LIFE}. `reader` reads, and "
        "its connection is healthy.",
        expected=expect("zero-window", near[:2], "FIN_WAIT1", timer=4)
        + orphan("zero-window", near[2:3], "FIN_WAIT1", timer=4)
        + expect("zero-window", near[3:], "ESTABLISHED", timer=4),
        others=expect("established-unread", far, "ESTABLISHED"),
        healthy=expect("", [well], "ESTABLISHED", timer=0) + expect("", [fine], "ESTABLISHED", rqueue=0),
    )


SCENARIO = Scenario(
    name="zero-window",
    title="a peer stopped reading",
    story="FIN_WAIT1 with a full send queue does not mean that a FIN was lost. It was never sent.",
    claims=("C12", "X26", "X53"),
    needs=("netns",),
    seconds=0.4,
    build=build,
    watch_ms=3200,
)
