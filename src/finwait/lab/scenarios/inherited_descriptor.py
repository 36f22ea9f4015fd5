"""inherited-descriptor: a child process keeps what the service has closed."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from finwait.lab.actor import meet
from finwait.lab.scenario import Expected, Scenario, Situation, expect, orphan

if TYPE_CHECKING:
    from finwait.lab.topology import Lab

__all__ = ["SCENARIO"]


def build(lab: Lab) -> Situation:
    """The child keeps three connections open, two half-closed, and one whose client has left."""
    outside, inside = lab.netns("client"), lab.netns("server")
    link = lab.link(outside, inside)
    client = lab.actor(outside, "client")
    service = lab.actor(inside, "service", "service", "--on-start=hook.sh")
    door = service.listen(link.b4, 8080)
    plain, open_ones = meet(client, link.b4, service, door, 2)
    told, half_closed = meet(client, link.b4, service, door, 2)
    (left,), (abandoned,) = meet(client, link.b4, service, door)
    (asking,), (own,) = meet(client, link.b4, service, door)
    (content,), (served,) = meet(client, link.b4, service, door)
    (asks,), (deaf,) = meet(client, link.b4, service, door)
    inherited = [*open_ones, *half_closed, abandoned, deaf]
    time.sleep(0.1)  # start times are told in ticks of 10 ms: the child must be visibly younger
    child = service.child(inherited, "sleep", "86400")
    client.leave([left])
    service.read_to_end([abandoned])
    service.shutdown([*half_closed, own], "WR")
    service.close(inherited)
    client.send([asks], "GET /")
    client.read_to_end([*told, asking])

    def held_by_child(state: str, *numbers: int) -> tuple[Expected, ...]:
        return tuple(
            row
            for number in numbers
            for row in expect(
                "inherited-descriptor", [inherited[number]], state, owners=((child, inherited[number].fd),)
            )
        )

    return Situation(
        lab,
        "`service` started `sleep` without closing its connections in the child (no CLOEXEC), and then "
        "closed them itself. As long as the child holds a copy nothing is closed: three connections are still "
        "ESTABLISHED and no FIN was ever sent (on one of them a client even asks, and `sleep` does not read); two "
        "are in FIN_WAIT2 because `service` had called shutdown(); one is in CLOSE_WAIT. One half-closed and one "
        "plain connection are held by `service` alone.",
        expected=held_by_child("ESTABLISHED", 0, 1, 5)
        + held_by_child("FIN_WAIT2", 2, 3)
        + held_by_child("CLOSE_WAIT", 4),
        others=expect("fin-wait2-held", [own], "FIN_WAIT2")
        + expect("close-wait-eof-read", [*told, asking], "CLOSE_WAIT", rqueue=0),
        healthy=orphan("fin-wait2-orphan", [left], "FIN_WAIT2", timer=3)
        + expect("", [*plain, content, served, asks], "ESTABLISHED"),
    )


SCENARIO = Scenario(
    name="inherited-descriptor",
    title="a child that inherited the descriptors keeps them open",
    story="close() in the parent sends nothing while a child has a copy.",
    claims=("C7", "S06", "X14"),
    needs=("netns", "tool:sleep"),
    seconds=0.4,
    build=build,
    watch_ms=500,
)
