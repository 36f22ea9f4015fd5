"""data-unanswered: data is in flight and nobody acknowledges it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from finwait.diagnosis import forecast
from finwait.lab.actor import meet
from finwait.lab.scenario import Scenario, Situation, expect, orphan

if TYPE_CHECKING:
    from finwait.lab.topology import Lab

__all__ = ["SCENARIO"]

_LIFE = forecast.span(forecast.retransmission())


def build(lab: Lab) -> Situation:
    """Three established and one half-received connection over a dead path, two over a path that works."""
    client, server = lab.netns("client"), lab.netns("server")
    lost, works = lab.link(client, server), lab.link(client, server)
    app = lab.actor(client, "app")
    backend = lab.actor(server, "backend")
    door, other = backend.listen(lost.b4, 8080), backend.listen(works.b4, 8080)
    near, far = meet(app, lost.b4, backend, door, 3)
    (close_wait,), (orphaned,) = meet(app, lost.b4, backend, door)
    well, fine = meet(app, works.b4, backend, other, 2)
    backend.leave([orphaned])
    app.read_to_end([close_wait])
    lost.cut()
    app.send([*near, close_wait, *well], "are you there?")
    backend.recv(fine, 14)
    return Situation(
        lab,
        "The path to `backend` went dead silently, and then `app` sent data on four connections. The "
        "kernel retransmits it (timer 1, retransmits rising, the interval doubling from 0.2 s to 120 s) "
        f"and gives up after about {_LIFE} (tcp_retries2). Keepalive does not run meanwhile. Two "
        "connections over another link are healthy.",
        expected=expect("data-unanswered", near, "ESTABLISHED", timer=1, retrans=2)
        + expect("data-unanswered", [close_wait], "CLOSE_WAIT", timer=1, retrans=2),
        healthy=orphan("fin-wait2-orphan", [orphaned], "FIN_WAIT2", timer=3)
        + expect("", far, "ESTABLISHED")
        + expect("", [*well, *fine], "ESTABLISHED"),
    )


SCENARIO = Scenario(
    name="data-unanswered",
    title="data in flight over a path that went dead",
    story="The kernel retransmits and nothing answers. Keepalive does not run while data is queued.",
    claims=("C10", "X20"),
    needs=("netns", "tool:nft"),
    seconds=1.0,
    build=build,
)
