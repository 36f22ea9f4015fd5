"""never-accepted: connections wait in the queue of a listener that does not accept."""

from __future__ import annotations

from typing import TYPE_CHECKING

from finwait.lab.actor import meet
from finwait.lab.scenario import Scenario, Situation, expect, orphan, queued

if TYPE_CHECKING:
    from finwait.lab.topology import Lab

__all__ = ["SCENARIO"]


def build(lab: Lab) -> Situation:
    """Three queued clients that have left, two that still wait, and a listener that works."""
    outside, inside = lab.netns("client"), lab.netns("server")
    link = lab.link(outside, inside)
    client = lab.actor(outside, "client")
    stuck = lab.actor(inside, "stuck-server")
    working = lab.actor(inside, "working-server")
    door, open_door = stuck.listen(link.b4, 8080), working.listen(link.b4, 8081)
    gone = client.connect_many(3, link.b4, door.sport)
    waiting = client.connect_many(2, link.b4, door.sport)
    served, serving = meet(client, link.b4, working, open_door, 2)
    (done,), (leaked,) = meet(client, link.b4, working, open_door)
    client.send([*gone, *waiting], "GET /")
    client.leave([*gone, done])
    working.read_to_end([leaked])
    return Situation(
        lab,
        "`stuck-server` listens and never calls accept(). The kernel still completes the handshakes and "
        "receives data. Five connections wait in the queue without a descriptor (no inode). Three clients "
        "have given up, so their connections are in CLOSE_WAIT. `working-server` accepts as it should.",
        expected=queued("never-accepted", stuck, gone, "CLOSE_WAIT", 6)
        + queued("never-accepted", stuck, waiting, "ESTABLISHED", 5),
        others=expect("close-wait-eof-read", [leaked], "CLOSE_WAIT", rqueue=0),
        healthy=orphan("fin-wait2-orphan", [*gone, done], "FIN_WAIT2", timer=3)
        + expect("", [*waiting, *served, *serving], "ESTABLISHED"),
    )


SCENARIO = Scenario(
    name="never-accepted",
    title="a listener that never calls accept()",
    story=(
        "The client sees a connection and the server's program does not, because it waits in the accept "
        "queue."
    ),
    claims=("C6", "X16"),
    needs=("netns",),
    seconds=0.4,
    build=build,
)
