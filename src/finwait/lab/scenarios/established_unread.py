"""established-unread: a backend accepted its clients and hangs; their requests lie unread."""

from __future__ import annotations

from typing import TYPE_CHECKING

from finwait.lab.actor import meet
from finwait.lab.scenario import Scenario, Situation, expect

if TYPE_CHECKING:
    from finwait.lab.topology import Lab

__all__ = ["SCENARIO"]


def build(lab: Lab) -> Situation:
    """Twelve requests at a backend that hangs, an answer that its client does not read, and a server that reads."""
    outside, inside = lab.netns("proxy"), lab.netns("backend")
    link = lab.link(outside, inside)
    proxy = lab.actor(outside, "proxy")
    hung = lab.actor(inside, "hung-backend")
    works = lab.actor(inside, "working-backend")
    door, other = hung.listen(link.b4, 8080), works.listen(link.b4, 8081)
    asking, unread = meet(proxy, link.b4, hung, door, 12)
    (well,), (read,) = meet(proxy, link.b4, works, other)
    (slow,), (answered,) = meet(proxy, link.b4, works, other)
    works.absorb([read])
    proxy.send([*asking, well], "GET / HTTP/1.1\r\n\r\n")
    works.send([answered], "what was asked for")
    return Situation(
        lab,
        "`hung-backend` accepted twelve connections from `proxy`, and its only thread hangs. The requests "
        "stay unread, and both kernels consider the connections healthy. `working-backend` reads. `proxy` "
        "has not yet read one of its answers; that is up to `proxy`, and only a notice.",
        expected=expect("established-unread", unread, "ESTABLISHED", rqueue=18),
        others=expect("established-unread", [slow], "ESTABLISHED", rqueue=18),
        healthy=expect("", [*asking, well, read, answered], "ESTABLISHED"),
    )


SCENARIO = Scenario(
    name="established-unread",
    title="a backend hangs and leaves the requests of its clients unread",
    story="Every row is ESTABLISHED, and no client gets an answer.",
    claims=("C21",),
    needs=("netns",),
    seconds=0.4,
    build=build,
    watch_ms=3200,
)
