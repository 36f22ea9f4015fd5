"""time-wait: connections that both sides have closed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from finwait.lab.actor import meet
from finwait.lab.scenario import Scenario, Situation, expect, orphan

if TYPE_CHECKING:
    from finwait.lab.topology import Lab

__all__ = ["SCENARIO"]


def build(lab: Lab) -> Situation:
    """Five connections closed on both sides, the client first, and one that is still open."""
    client, server = lab.netns("client"), lab.netns("server")
    link = lab.link(client, server)
    cron = lab.actor(client, "cron")
    backend = lab.actor(server, "backend")
    door = backend.listen(link.b4, 8080)
    near, far = meet(cron, link.b4, backend, door, 5)
    (used,), (serving,) = meet(cron, link.b4, backend, door)
    cron.leave(near)
    backend.close(far)
    return Situation(
        lab,
        "`cron` and `backend` have closed five connections, `cron` first. Its kernel remembers them for 60 "
        "s, so that late segments are not mistaken for those of a new connection. Nothing needs to be done.",
        expected=orphan("time-wait", near, "TIME_WAIT", timer=3),
        healthy=expect("", [used, serving], "ESTABLISHED"),
    )


SCENARIO = Scenario(
    name="time-wait",
    title="closed on both sides, and remembered for a minute (healthy)",
    story="TIME_WAIT is how TCP forgets a connection safely.",
    claims=("C15a", "S22"),
    needs=("netns",),
    seconds=0.3,
    build=build,
)
