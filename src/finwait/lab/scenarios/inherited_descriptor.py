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
    """The child keeps three connections open, three half-closed, and one whose client has left."""
    outside, inside = lab.netns("client"), lab.netns("server")
    link = lab.link(outside, inside)
    client = lab.actor(outside, "client")
    service = lab.actor(inside, "service", "service", "--on-start=hook.sh")
    door = service.listen(link.b4, 8080)
    plain, open_ones = meet(client, link.b4, service, door, 2)
    close_wait, half_closed = meet(client, link.b4, service, door, 2)
    (orphaned,), (abandoned,) = meet(client, link.b4, service, door)
    (asking,), (own,) = meet(client, link.b4, service, door)
    (content,), (served,) = meet(client, link.b4, service, door)
    (asks,), (deaf,) = meet(client, link.b4, service, door)
    (asked,), (answered,) = meet(client, link.b4, service, door)
    inherited = [*open_ones, *half_closed, abandoned, deaf, answered]
    time.sleep(0.1)  # start times are told in ticks of 10 ms: the child must be visibly younger
    child = service.child(inherited, "sleep", "86400")
    client.leave([orphaned])
    service.read_to_end([abandoned])
    client.send([asked], "GET /")
    service.recv([answered], 5)
    service.send([answered], "200")
    client.recv([asked], 3)
    service.shutdown([*half_closed, answered, own], "WR")
    service.close(inherited)
    client.send([asks], "GET /")
    client.read_to_end([*close_wait, asking, asked])

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
        "closed them itself. Nothing is closed while the child holds a copy. Three connections are still "
        "ESTABLISHED and no FIN was ever sent (on one of them a client even sends a request, which `sleep` "
        "does not read). Three are in FIN_WAIT2 because `service` had called shutdown(), on one of them after "
        "it had answered a request while `sleep` had it already. One is in CLOSE_WAIT. `service` alone holds "
        "one half-closed and one plain connection.",
        expected=held_by_child("ESTABLISHED", 0, 1, 5)
        + held_by_child("FIN_WAIT2", 2, 3, 6)
        + held_by_child("CLOSE_WAIT", 4),
        others=expect("fin-wait2-held", [own], "FIN_WAIT2")
        + expect("close-wait-eof-read", [*close_wait, asking, asked], "CLOSE_WAIT", rqueue=0),
        healthy=orphan("fin-wait2-orphan", [orphaned], "FIN_WAIT2", timer=3)
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
