"""fin-unanswered-held: shut down, never acknowledged, and a program still holds it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from finwait.diagnosis import forecast
from finwait.lab.actor import meet
from finwait.lab.scenario import Scenario, Situation, expect, orphan

if TYPE_CHECKING:
    from finwait.lab.topology import Lab

__all__ = ["SCENARIO"]

_LIFE = forecast.span(forecast.retransmission())
_ORPHAN = forecast.span(forecast.orphan())


def build(lab: Lab) -> Situation:
    """Held sockets in FIN_WAIT1 and LAST_ACK, and an orphan."""
    client, server = lab.netns("client"), lab.netns("server")
    link = lab.link(client, server)
    app = lab.actor(client, "app")
    backend = lab.actor(server, "backend")
    door = backend.listen(link.b4, 8080)
    first, waiting = meet(app, link.b4, backend, door, 3)
    (last,), (orphaned,) = meet(app, link.b4, backend, door)
    (closed,), (kept,) = meet(app, link.b4, backend, door)
    backend.leave([orphaned])
    app.read_to_end([last])
    link.cut()
    app.shutdown([*first, last], "WR")
    app.close([closed])
    return Situation(
        lab,
        "The path went dead, and then `app` called shutdown(SHUT_WR) and kept its descriptors. The kernel "
        "retransmits the FIN (timer 1). Because a program still holds the socket, tcp_retries2 decides "
        f"when to give up: after about {_LIFE}, not after the {_ORPHAN} of an orphan. The fifth connection "
        "is such an orphan.",
        expected=expect("fin-unanswered-held", first, "FIN_WAIT1", timer=1, retrans=1)
        + expect("fin-unanswered-held", [last], "LAST_ACK", timer=1, retrans=1),
        others=orphan("fin-unanswered-orphan", [closed], "FIN_WAIT1", timer=1, retrans=1),
        healthy=orphan("fin-wait2-orphan", [orphaned], "FIN_WAIT2", timer=3)
        + expect("", [*waiting, kept], "ESTABLISHED"),
    )


SCENARIO = Scenario(
    name="fin-unanswered-held",
    title="shut down on a dead path, and still held",
    story="FIN_WAIT1 with an owner follows tcp_retries2, not tcp_orphan_retries.",
    claims=("C11b", "X25"),
    needs=("netns", "tool:nft"),
    seconds=0.5,
    build=build,
)
