"""syn-unanswered: clients of a listener whose accept queue is full, and of a host that does not answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec.structs import replace

from finwait.lab.scenario import Scenario, Situation, expect, listening, queued

if TYPE_CHECKING:
    from finwait.lab.topology import Lab

__all__ = ["SCENARIO"]


def build(lab: Lab) -> Situation:
    """Two clients of a full queue, one of an address that nobody answers for, and the two that filled the queue."""
    client, server = lab.netns("client"), lab.netns("server")
    link, dark = lab.link(client, server), lab.link(client, server)
    caller = lab.actor(client, "caller")
    stuck = lab.actor(server, "stuck-server")
    door = stuck.listen(link.b4, 8080, backlog=1)
    stuck.listen(dark.b4, 8081)
    filling = caller.connect_many(2, link.b4, door.sport)
    dark.cut()
    late = [
        replace(conn, dst=link.b4, dport=8080) for conn in caller.connect_many(2, link.b4, 8080, wait=False)
    ]
    lost = [
        replace(conn, dst=dark.b4, dport=8081) for conn in caller.connect_many(1, dark.b4, 8081, wait=False)
    ]
    return Situation(
        lab,
        "`stuck-server` does not accept, and its queue is full, so the kernel drops the SYNs of two more "
        "clients of `caller`. A third connects over a dead path. All three see the same: no answer.",
        expected=expect("syn-unanswered", [*late, *lost], "SYN_SENT", timer=1, retrans=2),
        others=listening("accept-queue-full", [door], 2)
        + queued("never-accepted", stuck, filling, "ESTABLISHED", 0),
        healthy=expect("", filling, "ESTABLISHED"),
    )


SCENARIO = Scenario(
    name="syn-unanswered",
    title="connect() to a full accept queue, and to nobody",
    story=(
        "A dropped SYN gets no answer, no matter what drops it. If the full queue is on this machine, "
        "finwait can name it."
    ),
    claims=("C19b", "X60"),
    needs=("netns", "tool:nft"),
    seconds=4,
    build=build,
)
