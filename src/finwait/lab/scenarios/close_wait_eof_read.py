"""close-wait-eof-read: the program has read the end-of-file and does not close."""

from __future__ import annotations

from typing import TYPE_CHECKING

from finwait.lab.actor import meet
from finwait.lab.scenario import Scenario, Situation, expect, orphan

if TYPE_CHECKING:
    from finwait.lab.topology import Lab

__all__ = ["SCENARIO"]


def build(lab: Lab) -> Situation:
    """Seven leaked sockets of two families, and one whose end-of-file nobody has read."""
    outside, inside = lab.netns("client"), lab.netns("server")
    link = lab.link(outside, inside)
    client = lab.actor(outside, "client")
    leaky = lab.actor(inside, "leaky-server", "leaky-server", "--workers=8")
    door = leaky.listen("::", 8080)
    near, far = meet(client, link.b4, leaky, door, 4)
    near6, far6 = meet(client, link.b6, leaky, door, 3)
    (quick,), (unread,) = meet(client, link.b4, leaky, door)
    client.send([*near, *near6], "hello")
    client.leave([*near, *near6, quick])
    leaky.read_to_end([*far, *far6])
    return Situation(
        lab,
        "Eight clients have closed. On seven of the connections, `leaky-server` read everything including "
        "the end-of-file and forgot to close. They are in CLOSE_WAIT with an empty receive queue, and no "
        "timer ever ends that. On the eighth it never read at all.",
        expected=expect("close-wait-eof-read", [*far, *far6], "CLOSE_WAIT", rqueue=0),
        others=expect("close-wait-eof-unread", [unread], "CLOSE_WAIT", rqueue=1),
        healthy=orphan("fin-wait2-orphan", [*near, *near6, quick], "FIN_WAIT2", timer=3),
    )


SCENARIO = Scenario(
    name="close-wait-eof-read",
    title="a program read the end-of-file and does not close",
    story="The peer is done, the program knows it, and the descriptor leaks.",
    claims=("C4", "X17"),
    needs=("netns",),
    seconds=0.4,
    build=build,
)
