"""idle-unprobed: the peer is gone, nothing is in flight, and nobody asks."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from finwait.lab.actor import meet
from finwait.lab.scenario import Scenario, Situation, expect

if TYPE_CHECKING:
    from finwait.lab.topology import Lab

__all__ = ["SCENARIO"]


def build(lab: Lab) -> Situation:
    """Three established and two half-closed connections to a pod that is no more; one of six is probed."""
    client, node = lab.netns("client"), lab.netns("node")
    doomed, stays = lab.netns("doomed"), lab.netns("stays")
    near, far, alive = lab.link(client, node), lab.link(node, doomed), lab.link(node, stays)
    node.sysctl("net.ipv4.ip_forward", 1)
    client.ip(f"route add default via {near.b4}")
    doomed.ip(f"route add default via {far.a4}")
    stays.ip(f"route add default via {alive.a4}")
    app = lab.actor(client, "app")
    pod = lab.actor(doomed, "pod")
    living = lab.actor(stays, "living")
    door = pod.listen(far.b4, 8080)
    idle, _ = meet(app, far.b4, pod, door, 3)
    half, ends = meet(app, far.b4, pod, door, 2)
    (probed,), _ = meet(app, far.b4, pod, door)
    (well,), (fine,) = meet(app, alive.b4, living, living.listen(alive.b4, 8080))
    app.setsockopt([probed], socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    app.shutdown(half, "WR")
    pod.read_to_end(ends)
    Situation(lab, "half-closed, before the loss", expect("", half, "FIN_WAIT2", timer=0)).settle()
    lab.vanish(doomed)
    return Situation(
        lab,
        "`pod` was deleted together with its network. The link went first, so no FIN and no RST got out. "
        "On five of its six connections to `pod`, `app` has nothing in flight and no keepalive, so nothing "
        "will ever tell it. The sixth has SO_KEEPALIVE and will find out. The connection to `living` looks "
        "the same and is healthy. Only a probe can tell them apart, or the other end if it is on this "
        "machine.",
        expected=expect("idle-unprobed", idle, "ESTABLISHED", timer=0),
        others=expect("fin-wait2-held", half, "FIN_WAIT2", timer=0, also=("idle-unprobed",)),
        healthy=expect("", [probed], "ESTABLISHED", timer=2)
        + expect("", [well, fine], "ESTABLISHED", timer=0),
    )


SCENARIO = Scenario(
    name="idle-unprobed",
    title="connections to a pod that vanished, without keepalive",
    story="The peer vanished silently, and nothing checks whether it is alive.",
    claims=("C9", "X37"),
    needs=("netns",),
    seconds=0.4,
    build=build,
    idle_ms=1,
)
