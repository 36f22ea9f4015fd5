"""accept-queue-full: a listener takes no new clients, for its queue is full of connections that have ended."""

from __future__ import annotations

from typing import TYPE_CHECKING

from finwait.lab.actor import meet
from finwait.lab.scenario import Scenario, Situation, expect, listening, queued

if TYPE_CHECKING:
    from finwait.lab.topology import Lab

__all__ = ["SCENARIO"]


def build(lab: Lab) -> Situation:
    """A queue full of the dead, one full of the living, and two near misses: an empty one and one with room."""
    outside, inside = lab.netns("client"), lab.netns("server")
    link = lab.link(outside, inside)
    client = lab.actor(outside, "client")
    stuck = lab.actor(inside, "stuck-server")
    working = lab.actor(inside, "working-server")
    dead, alive = stuck.listen(link.b4, 8080, backlog=4), stuck.listen(link.b4, 8081, backlog=2)
    roomy, served = stuck.listen(link.b4, 8082, backlog=8), working.listen(link.b4, 8083, backlog=1)
    checks = client.connect_many(5, link.b4, dead.sport)
    waiting = client.connect_many(3, link.b4, alive.sport)
    few = client.connect_many(2, link.b4, roomy.sport)
    near, far = meet(client, link.b4, working, served)
    client.reset(checks)
    return Situation(
        lab,
        "`stuck-server` does not accept. Five health checks filled the queue of port 8080 (its backlog is "
        "4) and gave up with a reset. No connection is left, but the queue is still full. On port 8081 "
        "three clients still wait, and no other client gets in. The queue of port 8082 still has room. "
        "`working-server` accepts.",
        expected=listening("accept-queue-full", [dead], 5) + listening("accept-queue-full", [alive], 3),
        others=queued("never-accepted", stuck, [*waiting, *few], "ESTABLISHED", 0),
        healthy=listening("", [roomy], 2)
        + listening("", [served], 0)
        + expect("", [*waiting, *few, *near, *far], "ESTABLISHED"),
    )


SCENARIO = Scenario(
    name="accept-queue-full",
    title="an accept queue that is full of connections that have ended",
    story="No connection is left in the table, and no client gets in. The listener itself shows why.",
    claims=("C6b", "X16"),
    needs=("netns",),
    seconds=0.4,
    build=build,
)
