"""close-wait-eof-unread: the end-of-file is there and the program does not read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from finwait.lab.actor import meet
from finwait.lab.scenario import Scenario, Situation, expect, orphan

if TYPE_CHECKING:
    from finwait.lab.topology import Lab

__all__ = ["SCENARIO"]


def build(lab: Lab) -> Situation:
    """Three idle pool connections, two with data unread as well, and one leak of the other kind."""
    outside, inside = lab.netns("client"), lab.netns("server")
    link = lab.link(outside, inside)
    pool = lab.actor(outside, "app", "app", "--pool-size=6")
    server = lab.actor(inside, "server", "server", "--keepalive-timeout=5")
    door = server.listen("::", 8080)
    idle, behind_idle = meet(pool, link.b4, server, door, 3)
    (busy, louder), behind_busy = meet(pool, link.b4, server, door, 2)
    (read,), (behind_read,) = meet(pool, link.b6, server, door)
    server.send(behind_busy, "bye\r\n")
    server.leave([*behind_idle, *behind_busy, behind_read])
    pool.read_to_end([read])
    return Situation(
        lab,
        "`server` closed six idle connections. `app` keeps them in a pool and does not read. On three, "
        "only the FIN is unread (receive queue 1). On two, there is also a last message (receive queue 6). "
        "On the sixth, `app` read the end-of-file and still kept the connection.",
        expected=expect("close-wait-eof-unread", idle, "CLOSE_WAIT", rqueue=1)
        + expect("close-wait-eof-unread", [busy, louder], "CLOSE_WAIT", rqueue=6),
        others=expect("close-wait-eof-read", [read], "CLOSE_WAIT", rqueue=0),
        healthy=orphan("fin-wait2-orphan", [*behind_idle, *behind_busy, behind_read], "FIN_WAIT2", timer=3),
    )


SCENARIO = Scenario(
    name="close-wait-eof-unread",
    title="an idle pool that does not notice that the server closed",
    story="The receive queue shows it, because an unread FIN counts 1.",
    claims=("C5", "X09"),
    needs=("netns",),
    seconds=0.4,
    build=build,
)
